/* Rows that compare and choose: compare, where. Elementwise with broadcasting, any strides, any dtype.
 *
 * Bound by memory: bytes read + bytes written. Element by element: a comparison writes bytes, and a condition
 * is read as bytes, so there is no common width for vectors. NaN compares as IEEE 754 says. */
#include "index.cuh"

namespace {

enum { BLOCK = 256 };

/* What relations see: halves as float, everything else as it is. */
__device__ __forceinline__ float comparable(half_t x) { return widen(x); }
__device__ __forceinline__ float comparable(bfloat_t x) { return widen(x); }
template <typename T> __device__ __forceinline__ T comparable(T x) { return x; }

template <typename A> __device__ __forceinline__ bool relates(A a, A b, int relation)
{
    switch (relation) {
    case 0: return a < b;
    case 1: return a <= b;
    case 2: return a == b;
    case 3: return a != b;
    case 4: return a > b;
    default: return a >= b;
    }
}

/* y (count), dense; a and b at the walk's offsets. */
template <typename T>
__global__ void __launch_bounds__(BLOCK)
compare_kernel(const T *a, const T *b, uint8_t *y, int64_t count, walk<2> at, int relation)
{
    int64_t step = (int64_t)gridDim.x * BLOCK;
#pragma unroll 1
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < count; i += step) {
        int64_t offset[2];
        at.at(i, offset);
        y[i] = relates(comparable(a[offset[0]]), comparable(b[offset[1]]), relation);
    }
}

template <typename T> int compare(space *s, const T *a, const T *b, uint8_t *y, int relation)
{
    if (space_too_large(s)) {
        space rest;
        int64_t at[SPACE_OPERANDS] = {0};
        space_halve(s, &rest, at);
        CUDA_OK(compare<T>(&rest, a + at[0], b + at[1], y + space_count(s), relation));
        return compare<T>(s, a, b, y, relation);
    }
    int64_t count = space_count(s);
    return ASEN_LAUNCH(compare_kernel<T>, grid_for(count, BLOCK), BLOCK, 0, a, b, y, count, walk_over<2>(s, 1), relation);
}

/* y (count), dense; the condition, a and b at the walk's offsets. Elements move as bits of type U. */
template <typename U>
__global__ void __launch_bounds__(BLOCK)
where_kernel(const uint8_t *condition, const U *a, const U *b, U *y, int64_t count, walk<3> at)
{
    int64_t step = (int64_t)gridDim.x * BLOCK;
#pragma unroll 1
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < count; i += step) {
        int64_t offset[3];
        at.at(i, offset);
        y[i] = condition[offset[0]] ? a[offset[1]] : b[offset[2]];
    }
}

template <typename U> int where(space *s, const uint8_t *condition, const U *a, const U *b, U *y)
{
    if (space_too_large(s)) {
        space rest;
        int64_t at[SPACE_OPERANDS] = {0};
        space_halve(s, &rest, at);
        CUDA_OK(where<U>(&rest, condition + at[0], a + at[1], b + at[2], y + space_count(s)));
        return where<U>(s, condition, a, b, y);
    }
    int64_t count = space_count(s);
    return ASEN_LAUNCH(where_kernel<U>, grid_for(count, BLOCK), BLOCK, 0, condition, a, b, y, count, walk_over<3>(s, 1));
}

space space_of_inputs(const asen_call *call)
{
    const asen_tensor *y = call->out[0];
    space s = space_of(y->ndim, y->shape);
    for (int i = 0; i < call->n_in; i++)
        space_add_tensor(&s, call->in[i]);
    space_collapse(&s);
    return s;
}

template <typename T> int compare_as(const asen_call *call)
{
    space s = space_of_inputs(call);
    return compare<T>(&s, input<T>(call, 0), input<T>(call, 1), output<uint8_t>(call, 0),
                      (int)call->attrs->compare.relation);
}

template <typename U> int where_as(const asen_call *call)
{
    space s = space_of_inputs(call);
    return where<U>(&s, input<uint8_t>(call, 0), input<U>(call, 1), input<U>(call, 2), output<U>(call, 0));
}

} // namespace

ASEN_C_BEGIN

/* in: a b; out: y (bool) */
int cuda_compare(const asen_call *call)
{
    if (element_count(call->out[0]) == 0)
        return ASEN_OK;
    switch (call->in[0]->dtype) {
    case ASEN_I32: return compare_as<int32_t>(call);
    case ASEN_I64: return compare_as<int64_t>(call);
    case ASEN_F16: return compare_as<half_t>(call);
    case ASEN_BF16: return compare_as<bfloat_t>(call);
    case ASEN_F32: return compare_as<float>(call);
    case ASEN_F64: return compare_as<double>(call);
    default: return compare_as<uint8_t>(call); /* bool, uint8 */
    }
}

/* in: condition (bool) a b; out: y */
int cuda_where(const asen_call *call)
{
    if (element_count(call->out[0]) == 0)
        return ASEN_OK;
    switch (asen_dtype_size(call->out[0]->dtype)) {
    case 8: return where_as<uint64_t>(call);
    case 4: return where_as<uint32_t>(call);
    case 2: return where_as<uint16_t>(call);
    default: return where_as<uint8_t>(call);
    }
}

ASEN_C_END
