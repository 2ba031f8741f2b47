/* Rows that order and pick along a dim: sort, gather, gather_grad. Dense tensors of any dtype.
 *
 * In memory a dense tensor is (outer, n, inner) around the dim: element j of line (o, i) lies at
 * (o * n + j) * inner + i. Sorting merges: runs of w become runs of 2 w in log2(n) passes over an array of
 * places (int32), in which every element finds its new place in its pair of runs by binary search
 * (Cormen et al., "Introduction to Algorithms", 26: merging in parallel). So it is stable, takes lines of up to
 * 2^31 - 1 elements, and gives the same bits every time: O(n log^2 n) comparisons a line. One element (max,
 * argmax) is a search, a warp a line. The gradient of gather adds up a line in one thread, in order. */
#include "index.cuh"

namespace {

enum { BLOCK = 256, WARPS = BLOCK / 32 };

struct lines {
    int64_t count, inner; /* lines; elements between neighbours of one */
    int n;                /* elements of a line */
    bool descending, nan_first;

    __device__ __forceinline__ int64_t at(int64_t line, int64_t size, int64_t j) const
    {
        return (line / inner * size + j) * inner + line % inner;
    }
};

/* The memory order around `dim`: lines of x. */
lines lines_of(const asen_tensor *x, int dim)
{
    lines l = {};
    bool inside = false;
    int64_t outer = 1;
    l.inner = 1;
    for (int d = 0; d < x->ndim; d++) {
        int own = memory_dim(x->ndim, d);
        if (own == dim)
            inside = true;
        else
            (inside ? l.inner : outer) *= x->shape[own];
    }
    l.n = (int)x->shape[dim];
    l.count = outer * l.inner;
    return l;
}

/* ---- the order: whether a comes before b whatever their places are ---- */

__device__ __forceinline__ float key_of(half_t x) { return widen(x); }
__device__ __forceinline__ float key_of(bfloat_t x) { return widen(x); }
template <typename T> __device__ __forceinline__ T key_of(T x) { return x; }

template <typename A> __device__ __forceinline__ bool precedes(A a, A b, const lines &l)
{
    if (a != a || b != b) {
        bool first = a != a && !(b != b), last = b != b && !(a != a);
        return l.descending || l.nan_first ? first : last;
    }
    return l.descending ? a > b : a < b;
}

/* ---- sorting ---- */

/* One merging pass: from, to (count, n): places in x, sorted in runs of `run`, afterwards of 2 * run. In the first pass
 * (run 1) `from` is not read: element j is at place j. */
template <typename T>
__global__ void __launch_bounds__(BLOCK)
merge_kernel(const T *x, const int32_t *from, int32_t *to, lines l, int64_t run)
{
    int64_t count = l.count * l.n, step = (int64_t)gridDim.x * BLOCK;
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < count; i += step) {
        int64_t line = i / l.n, j = i - line * l.n, start = j / (2 * run) * (2 * run);
        int64_t middle = start + run < l.n ? start + run : l.n, end = middle + run < l.n ? middle + run : l.n;
        const int32_t *places = from + line * l.n;
        int32_t own = run == 1 ? (int32_t)j : places[j];
        auto mine = key_of(x[l.at(line, l.n, own)]);
        bool left = j < middle;
        /* how many of the other run come before: on the left those of the right run that precede mine; on the
         * right those of the left run that mine does not precede */
        int64_t low = left ? middle : start, high = left ? end : middle, base = low;
        while (low < high) {
            int64_t half = (low + high) / 2;
            auto other = key_of(x[l.at(line, l.n, run == 1 ? half : places[half])]);
            bool before = left ? precedes(other, mine, l) : !precedes(mine, other, l);
            if (before)
                low = half + 1;
            else
                high = half;
        }
        to[line * l.n + start + (j - (left ? start : middle)) + (low - base)] = own;
    }
}

/* values, indices: the first k of each line by `places`; NULL: n is 1. */
template <typename T>
__global__ void __launch_bounds__(BLOCK)
pick_kernel(const T *x, const int32_t *places, T *values, int64_t *indices, lines l, int64_t k)
{
    int64_t count = l.count * k, step = (int64_t)gridDim.x * BLOCK;
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < count; i += step) {
        int64_t line = i / k, j = i - line * k, to = l.at(line, k, j);
        int64_t place = places == nullptr ? j : places[line * l.n + j];
        values[to] = x[l.at(line, l.n, place)];
        indices[to] = place;
    }
}

/* values, indices (count): the first of each line; a warp a line. */
template <typename T>
__global__ void __launch_bounds__(BLOCK) first_kernel(const T *x, T *values, int64_t *indices, lines l)
{
    int lane = threadIdx.x % 32;
    int64_t step = (int64_t)gridDim.x * WARPS;
    for (int64_t line = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; line < l.count; line += step) {
        int best = lane < l.n ? lane : -1;
        for (int64_t j = (int64_t)lane + 32; j < l.n; j += 32)
            if (precedes(key_of(x[l.at(line, l.n, j)]), key_of(x[l.at(line, l.n, best)]), l))
                best = (int)j;
        for (int offset = 16; offset > 0; offset >>= 1) {
            int other = __shfl_xor_sync(0xffffffffu, best, offset);
            if (other < 0)
                continue;
            if (best < 0) {
                best = other;
                continue;
            }
            auto a = key_of(x[l.at(line, l.n, other)]), b = key_of(x[l.at(line, l.n, best)]);
            if (precedes(a, b, l) || (!precedes(b, a, l) && other < best))
                best = other;
        }
        if (lane == 0) {
            values[line] = x[l.at(line, l.n, best)];
            indices[line] = best;
        }
    }
}

template <typename T> int merge_all(const asen_call *call, const T *x, int32_t *places, lines l, int32_t **sorted)
{
    int64_t count = l.count * l.n;
    int32_t *from = places, *to = places + count;
    for (int64_t run = 1; run < l.n; run *= 2) {
        CUDA_OK(ASEN_LAUNCH(merge_kernel<T>, grid_for(count, BLOCK), BLOCK, 0, x, from, to, l, run));
        int32_t *swap = from;
        from = to;
        to = swap;
    }
    *sorted = from;
    return ASEN_OK;
}

template <typename T> int sort_as(const asen_call *call)
{
    const asen_tensor *y = call->out[0];
    int dim = (int)call->attrs->sort.dim;
    lines l = lines_of(call->in[0], dim);
    l.descending = call->attrs->sort.descending != 0;
    l.nan_first = call->attrs->sort.nan_first != 0;
    int64_t k = y->shape[dim];
    const T *x = input<T>(call, 0);
    T *values = output<T>(call, 0);
    int64_t *indices = output<int64_t>(call, 1);
    if (k == 1)
        return ASEN_LAUNCH(first_kernel<T>, grid_for(l.count, WARPS), BLOCK, 0, x, values, indices, l);
    size_t bytes = 2 * sizeof(int32_t) * (size_t)(l.count * l.n);
    void *places = nullptr;
    int32_t *sorted = nullptr;
    CUDA_OK(cuda_scratch_new(call, bytes, &places));
    int status = merge_all<T>(call, x, static_cast<int32_t *>(places), l, &sorted);
    if (status == ASEN_OK)
        status = ASEN_LAUNCH(pick_kernel<T>, grid_for(l.count * k, BLOCK), BLOCK, 0, x, sorted, values, indices, l, k);
    cuda_scratch_free(call, places, bytes);
    return status;
}

/* ---- picking ---- */

/* y, index (count), dense; x at the walk's offset plus index times the stride of the dim. */
template <typename U>
__global__ void __launch_bounds__(BLOCK)
gather_kernel(const U *x, const int64_t *index, U *y, int64_t count, walk<1> at, int64_t n, int64_t stride, cuda_fault *fault)
{
    int64_t step = (int64_t)gridDim.x * BLOCK;
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < count; i += step) {
        int64_t offset[1], place = index[i];
        at.at(i, offset);
        if (place < 0 || place >= n) {
            cuda_fault_set(fault, ASEN_OP_gather, place, n);
            continue;
        }
        y[i] = x[offset[0] + place * stride];
    }
}

template <typename U> int gather(space *s, const U *x, const int64_t *index, U *y, int64_t n, int64_t stride)
{
    if (space_too_large(s)) {
        space rest;
        int64_t at[SPACE_OPERANDS] = {0};
        space_halve(s, &rest, at);
        CUDA_OK(gather<U>(&rest, x + at[0], index + space_count(s), y + space_count(s), n, stride));
        return gather<U>(s, x, index, y, n, stride);
    }
    int64_t count = space_count(s);
    return ASEN_LAUNCH(gather_kernel<U>, grid_for(count, BLOCK), BLOCK, 0, x, index, y, count, walk_over<1>(s, 1), n, stride,
                       cuda.fault);
}

/* The space of `index`, whose operand is `whole` with the dim left out; *stride is that of the dim. */
space space_of_picks(const asen_tensor *index, const asen_tensor *whole, int dim, int64_t *stride)
{
    int64_t strides[ASEN_MAX_DIMS] = {};
    dense_strides(whole->ndim, whole->shape, strides);
    *stride = strides[dim];
    strides[dim] = 0;
    space s = space_of(index->ndim, index->shape);
    space_add(&s, strides);
    return s;
}

template <typename U> int gather_as(const asen_call *call)
{
    int64_t stride;
    int dim = (int)call->attrs->gather.dim;
    space s = space_of_picks(call->in[1], call->in[0], dim, &stride);
    space_collapse(&s);
    return gather<U>(&s, input<U>(call, 0), input<int64_t>(call, 1), output<U>(call, 0), call->in[0]->shape[dim], stride);
}

/* dx, zeros before: line `i` of index and dy (l; n elements of a line) is added up, in order, into the line of dx
 * (`size` elements, `stride` apart) that the walk says. */
template <typename T>
__global__ void __launch_bounds__(BLOCK)
gather_grad_kernel(const T *dy, const int64_t *index, T *dx, lines l, walk<2> at, int64_t step_dy, int64_t size,
                   int64_t stride, cuda_fault *fault)
{
    int64_t step = (int64_t)gridDim.x * BLOCK;
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < l.count; i += step) {
        int64_t offset[2];
        at.at(i, offset);
        for (int j = 0; j < l.n; j++) {
            int64_t from = offset[0] + j * step_dy, place = index[from];
            if (place < 0 || place >= size) {
                cuda_fault_set(fault, ASEN_OP_gather, place, size);
                continue;
            }
            T *sum = dx + offset[1] + place * stride;
            *sum = narrow<T>(widen(*sum) + widen(dy[from]));
        }
    }
}

template <typename T> int gather_grad_as(const asen_call *call)
{
    const asen_tensor *index = call->in[1], *dx = call->out[0];
    int dim = (int)call->attrs->gather_grad.dim;
    int64_t strides[ASEN_MAX_DIMS] = {}, shape[ASEN_MAX_DIMS], step_dy, stride;
    CUDA_OK(CUDA_CALL(cudaMemsetAsync(asen_tensor_data(dx), 0, (size_t)element_count(dx) * sizeof(T), cuda.stream)));
    if (element_count(index) == 0)
        return ASEN_OK;
    for (int d = 0; d < index->ndim; d++)
        shape[d] = d == dim ? 1 : index->shape[d];
    space s = space_of(index->ndim, shape); /* of the lines */
    dense_strides(index->ndim, index->shape, strides);
    step_dy = strides[dim];
    space_add(&s, strides);
    dense_strides(dx->ndim, dx->shape, strides);
    stride = strides[dim];
    space_add(&s, strides);
    space_collapse(&s);
    if (space_too_large(&s))
        return cuda_host.fail(ASEN_ERR_UNSUPPORTED, "more than 2^31 lines");
    lines l = lines_of(index, dim);
    return ASEN_LAUNCH(gather_grad_kernel<T>, grid_for(l.count, BLOCK), BLOCK, 0, input<T>(call, 0), input<int64_t>(call, 1),
                       output<T>(call, 0), l, walk_over<2>(&s, 1), step_dy, dx->shape[dim], stride, cuda.fault);
}

} // namespace

ASEN_C_BEGIN

/* in: x; out: values indices */
int cuda_sort(const asen_call *call)
{
    if (element_count(call->out[0]) == 0)
        return ASEN_OK;
    switch (call->in[0]->dtype) {
    case ASEN_I32: return sort_as<int32_t>(call);
    case ASEN_I64: return sort_as<int64_t>(call);
    case ASEN_F16: return sort_as<half_t>(call);
    case ASEN_BF16: return sort_as<bfloat_t>(call);
    case ASEN_F32: return sort_as<float>(call);
    case ASEN_F64: return sort_as<double>(call);
    default: return sort_as<uint8_t>(call); /* bool, uint8 */
    }
}

/* in: x index; out: y */
int cuda_gather(const asen_call *call)
{
    if (element_count(call->out[0]) == 0)
        return ASEN_OK;
    switch (asen_dtype_size(call->out[0]->dtype)) {
    case 8: return gather_as<uint64_t>(call);
    case 4: return gather_as<uint32_t>(call);
    case 2: return gather_as<uint16_t>(call);
    default: return gather_as<uint8_t>(call);
    }
}

/* in: dy index; out: dx */
int cuda_gather_grad(const asen_call *call)
{
    if (element_count(call->out[0]) == 0)
        return ASEN_OK;
    CUDA_FLOAT_SWITCH(call->out[0]->dtype, T, { return gather_grad_as<T>(call); })
    return ASEN_DECLINED;
}

ASEN_C_END
