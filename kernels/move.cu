/* Rows that move elements as they are: copy, cat, slice_grad; filling; writing into views.
 *
 * All are bound by memory: bytes read + bytes written. Elements are moved as bits, in units of up to 16
 * bytes: the widest that the alignment, the strides and the innermost size of both sides allow. Units
 * that lie one behind the other on both sides are one cudaMemcpyAsync. A copy whose innermost dims
 * differ (NCHW to NHWC, a transposed matrix) goes through tiles in shared memory, so that both sides are
 * coalesced. Only a copy that converts looks at the values: contiguous float32 <-> float16 and bfloat16 in
 * vectors, any other pair of dtypes element by element. */
#include "index.cuh"

namespace {

enum { BLOCK = 256, TILE = 32, WIDE = 8 };

/* Runs the statement with U being an unsigned type of `bytes` bytes. */
#define ELEMENT_SWITCH(bytes, U, ...)                                                                                  \
    switch (bytes) {                                                                                                   \
    case 8: { typedef uint64_t U; __VA_ARGS__ } break;                                                                 \
    case 4: { typedef uint32_t U; __VA_ARGS__ } break;                                                                 \
    case 2: { typedef uint16_t U; __VA_ARGS__ } break;                                                                 \
    default: { typedef uint8_t U; __VA_ARGS__ } break;                                                                 \
    }

/* ---- any strides on both sides ---- */

/* y at the walk's second offset = x at its first, `count` units. */
template <typename U> __global__ void __launch_bounds__(BLOCK) move_kernel(const U *x, U *y, int64_t count, walk<2> at)
{
    int64_t step = (int64_t)gridDim.x * BLOCK;
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < count; i += step) {
        int64_t offset[2];
        at.at(i, offset);
        y[offset[1]] = x[offset[0]];
    }
}

/* How many bytes can be moved at once; the space is turned from elements into such units. */
int widen_units(space *s, const void *x, const void *y, int bytes)
{
    int last = s->ndim - 1;
    for (int unit = 16; unit > bytes; unit /= 2) {
        int n = unit / bytes;
        if (s->size[last] % n != 0 || !space_aligned(s, 0, x, n, bytes) || !space_aligned(s, 1, y, n, bytes))
            continue;
        s->size[last] /= n;
        for (int k = 0; k < 2; k++)
            for (int d = 0; d < last; d++)
                s->stride[k][d] /= n;
        return unit;
    }
    return bytes;
}

template <typename U> int launch_move(const space *s, const char *x, char *y)
{
    int64_t count = space_count(s);
    return ASEN_LAUNCH(move_kernel<U>, grid_for(count, BLOCK), BLOCK, 0, reinterpret_cast<const U *>(x),
                       reinterpret_cast<U *>(y), count, walk_over<2>(s, 1));
}

/* x (operand 0) to y (operand 1); the space is collapsed, of elements of `bytes` bytes. */
int move(space *s, const char *x, char *y, int bytes)
{
    if (space_is_contiguous(s)) {
        CUDA_OK(CUDA_CALL(cudaMemcpyAsync(y, x, (size_t)s->size[0] * bytes, cudaMemcpyDeviceToDevice, cuda.stream)));
        return ASEN_OK;
    }
    if (space_too_large(s)) {
        space rest;
        int64_t at[SPACE_OPERANDS];
        space_halve(s, &rest, at);
        CUDA_OK(move(&rest, x + at[0] * bytes, y + at[1] * bytes, bytes));
        return move(s, x, y, bytes);
    }
    int unit = widen_units(s, x, y, bytes);
    if (unit == 16)
        return launch_move<unit16>(s, x, y);
    ELEMENT_SWITCH(unit, U, { return launch_move<U>(s, x, y); })
    return ASEN_OK;
}

/* ---- transposing ---- */

/* A dim q along which x is contiguous and a dim p along which y is; the rest is walked over. */
struct transposition {
    int64_t tiles, tiles_p, tiles_q; /* all; along p; along q */
    int64_t size_p, size_q, x_step, y_step; /* x along p, y along q */
    walk<2> rest;
};

/* Tiles of 32 x 32 through shared memory, 256 threads; one column of padding against bank conflicts. */
template <typename U> __global__ void __launch_bounds__(BLOCK) transpose_kernel(const U *x, U *y, transposition t)
{
    ASEN_SHARED(U, tile, [TILE * (TILE + 1)]);
    int column = threadIdx.x % TILE, first_row = threadIdx.x / TILE;
    for (int64_t i = blockIdx.x; i < t.tiles; i += gridDim.x) {
        int64_t p0 = i % t.tiles_p * TILE, q0 = i / t.tiles_p % t.tiles_q * TILE, offset[2];
        t.rest.at(i / t.tiles_p / t.tiles_q, offset);
        for (int row = first_row; row < TILE; row += BLOCK / TILE)
            if (p0 + row < t.size_p && q0 + column < t.size_q)
                tile[row * (TILE + 1) + column] = x[offset[0] + (p0 + row) * t.x_step + q0 + column];
        __syncthreads();
        for (int row = first_row; row < TILE; row += BLOCK / TILE)
            if (q0 + row < t.size_q && p0 + column < t.size_p)
                y[offset[1] + (q0 + row) * t.y_step + p0 + column] = tile[column * (TILE + 1) + row];
        __syncthreads();
    }
}

enum { FEW = 16 }; /* below so many, along p or q, tiles are mostly empty */

/* The dim q of a copy into dense y that tiles pay for, or -1. */
int transposed_dim(const space *s)
{
    int last = s->ndim - 1;
    if (s->stride[0][last] == 1 || s->stride[1][last] != 1 || s->size[last] < FEW)
        return -1;
    for (int d = 0; d < last; d++)
        if (s->stride[0][d] == 1 && s->size[d] >= FEW)
            return d;
    return -1;
}

int transpose(space s, int q, const void *x, void *y, int bytes)
{
    int p = s.ndim - 1;
    transposition t = {};
    t.size_p = s.size[p];
    t.size_q = s.size[q];
    t.x_step = s.stride[0][p];
    t.y_step = s.stride[1][q];
    s.size[p] = s.size[q] = 1;
    space_collapse(&s);
    t.tiles_p = ceil_div(t.size_p, TILE);
    t.tiles_q = ceil_div(t.size_q, TILE);
    t.tiles = space_count(&s) * t.tiles_p * t.tiles_q;
    t.rest = walk_over<2>(&s, 1);
    ELEMENT_SWITCH(bytes, U, {
        return ASEN_LAUNCH(transpose_kernel<U>, grid_for(t.tiles, 1), BLOCK, 0, static_cast<const U *>(x),
                           static_cast<U *>(y), t);
    })
    return ASEN_OK;
}

/* ---- conversions ---- */

/* float32 <-> float16 and bfloat16, contiguous, 8 elements a thread. */
template <typename From, typename To>
__global__ void __launch_bounds__(BLOCK) convert_kernel(const From *x, To *y, int64_t count)
{
    enum { N = 16 / (sizeof(From) > sizeof(To) ? sizeof(From) : sizeof(To)) };
    int64_t step = (int64_t)gridDim.x * BLOCK * WIDE;
    for (int64_t i = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * WIDE; i < count; i += step) {
        if (i + WIDE <= count) {
            vector_of<From, N> a[WIDE / N];
            for (int j = 0; j < WIDE / N; j++)
                vector_load(a[j], x + i + j * N);
            for (int j = 0; j < WIDE / N; j++) {
                vector_of<To, N> b;
                for (int e = 0; e < N; e++)
                    b.item[e] = narrow<To>(widen(a[j].item[e]));
                vector_store(y + i + j * N, b);
            }
        } else {
            for (int64_t j = i; j < count; j++)
                y[j] = narrow<To>(widen(x[j]));
        }
    }
}

template <typename From, typename To> int convert(const void *x, void *y, int64_t count)
{
    return ASEN_LAUNCH((convert_kernel<From, To>), grid_for(ceil_div(count, WIDE), BLOCK), BLOCK, 0,
                       static_cast<const From *>(x), static_cast<To *>(y), count);
}

/* Truncates, saturates at int64; NaN is 0. */
__device__ __forceinline__ int64_t int_from_double(double value)
{
    if (value != value)
        return 0;
    if (value >= 9223372036854775808.0)
        return INT64_MAX;
    if (value < -9223372036854775808.0)
        return INT64_MIN;
    return (int64_t)value;
}

__device__ __forceinline__ void put_int(void *y, int to, int64_t i, int64_t value)
{
    switch (to) {
    case ASEN_BOOL: static_cast<uint8_t *>(y)[i] = value != 0; break;
    case ASEN_U8: static_cast<uint8_t *>(y)[i] = (uint8_t)value; break;
    case ASEN_I32: static_cast<int32_t *>(y)[i] = (int32_t)(uint32_t)value; break;
    case ASEN_I64: static_cast<int64_t *>(y)[i] = value; break;
    case ASEN_F16: static_cast<half_t *>(y)[i] = narrow<half_t>((float)(double)value); break;
    case ASEN_BF16: static_cast<bfloat_t *>(y)[i] = narrow<bfloat_t>((float)(double)value); break;
    case ASEN_F32: static_cast<float *>(y)[i] = (float)value; break; /* not through double: one rounding */
    default: static_cast<double *>(y)[i] = (double)value;
    }
}

__device__ __forceinline__ void put_double(void *y, int to, int64_t i, double value)
{
    switch (to) {
    case ASEN_BOOL: static_cast<uint8_t *>(y)[i] = value != 0; break;
    case ASEN_F16: static_cast<half_t *>(y)[i] = narrow<half_t>((float)value); break;
    case ASEN_BF16: static_cast<bfloat_t *>(y)[i] = narrow<bfloat_t>((float)value); break;
    case ASEN_F32: static_cast<float *>(y)[i] = (float)value; break;
    case ASEN_F64: static_cast<double *>(y)[i] = value; break;
    default: put_int(y, to, i, int_from_double(value));
    }
}

/* One element between any two dtypes: integers move as int64, everything else through double. */
__device__ __forceinline__ void convert_element(const void *x, int from, int64_t at, void *y, int to, int64_t i)
{
    switch (from) {
    case ASEN_BOOL:
    case ASEN_U8: put_int(y, to, i, static_cast<const uint8_t *>(x)[at]); break;
    case ASEN_I32: put_int(y, to, i, static_cast<const int32_t *>(x)[at]); break;
    case ASEN_I64: put_int(y, to, i, static_cast<const int64_t *>(x)[at]); break;
    case ASEN_F16: put_double(y, to, i, widen(static_cast<const half_t *>(x)[at])); break;
    case ASEN_BF16: put_double(y, to, i, widen(static_cast<const bfloat_t *>(x)[at])); break;
    case ASEN_F32: put_double(y, to, i, static_cast<const float *>(x)[at]); break;
    default: put_double(y, to, i, static_cast<const double *>(x)[at]);
    }
}

__global__ void __launch_bounds__(BLOCK)
convert_any_kernel(const void *x, int from, void *y, int to, int64_t count, walk<1> at)
{
    int64_t step = (int64_t)gridDim.x * BLOCK;
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < count; i += step) {
        int64_t offset[1];
        at.at(i, offset);
        convert_element(x, from, offset[0], y, to, i);
    }
}

int convert_any(space *s, const char *x, asen_dtype from, char *y, asen_dtype to)
{
    int64_t count = space_count(s);
    if (space_too_large(s)) {
        space rest;
        int64_t at[SPACE_OPERANDS];
        space_halve(s, &rest, at);
        int64_t x_at = at[0] * (int64_t)asen_dtype_size(from), y_at = space_count(s) * (int64_t)asen_dtype_size(to);
        CUDA_OK(convert_any(&rest, x + x_at, from, y + y_at, to));
        return convert_any(s, x, from, y, to);
    }
    if (space_is_contiguous(s) && vector_aligned(x, y)) {
        if (from == ASEN_F32 && to == ASEN_F16)
            return convert<float, half_t>(x, y, count);
        if (from == ASEN_F32 && to == ASEN_BF16)
            return convert<float, bfloat_t>(x, y, count);
        if (from == ASEN_F16 && to == ASEN_F32)
            return convert<half_t, float>(x, y, count);
        if (from == ASEN_BF16 && to == ASEN_F32)
            return convert<bfloat_t, float>(x, y, count);
    }
    return ASEN_LAUNCH(convert_any_kernel, grid_for(count, BLOCK), BLOCK, 0, x, (int)from, y, (int)to, count,
                       walk_over<1>(s, 1));
}

/* ---- filling ---- */

/* target (bytes): the 8-byte pattern over and over. Its period is the element's size, which divides both 8 and
 * the target's address, so the unaligned ends (head and tail, below 16 bytes each) start the pattern anew. */
__global__ void __launch_bounds__(BLOCK) fill_kernel(uint8_t *target, int64_t bytes, uint64_t pattern)
{
    int64_t head = (16 - (int64_t)((uintptr_t)target % 16)) % 16, step = (int64_t)gridDim.x * BLOCK;
    head = head < bytes ? head : bytes;
    int64_t units = (bytes - head) / 16, tail = bytes - head - units * 16;
    int64_t first = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    uint8_t byte = (uint8_t)(pattern >> first % 8 * 8);
    unit16 *whole = reinterpret_cast<unit16 *>(target + head);
    for (int64_t i = first; i < units; i += step)
        whole[i] = unit16{{pattern, pattern}};
    if (first < head)
        target[first] = byte;
    if (first < tail)
        target[head + units * 16 + first] = byte;
}

int fill(void *target, int64_t bytes, uint64_t pattern)
{
    if (bytes == 0)
        return ASEN_OK;
    return ASEN_LAUNCH(fill_kernel, grid_for(ceil_div(bytes, 16), BLOCK), BLOCK, 0, static_cast<uint8_t *>(target), bytes,
                       pattern);
}

} // namespace

ASEN_C_BEGIN

int cuda_fill(void *self, void *target, const void *value, size_t size, int64_t count)
{
    uint64_t word = 0;
    for (size_t i = 0; i < 8; i++)
        word |= (uint64_t) static_cast<const uint8_t *>(value)[i % size] << 8 * i;
    return fill(target, (int64_t)size * count, word);
}

int cuda_write_strided(void *self, const asen_tensor *target, const asen_tensor *source)
{
    space s = space_of(source->ndim, source->shape);
    space_add_dense(&s);
    space_add(&s, target->stride);
    space_collapse(&s);
    if (space_count(&s) == 0)
        return ASEN_OK;
    return move(&s, static_cast<const char *>(asen_tensor_data(source)), static_cast<char *>(asen_tensor_data(target)),
                (int)asen_dtype_size(source->dtype));
}

/* x of any strides to dense y of any dtype. */
int cuda_copy(const asen_call *call)
{
    const asen_tensor *x = call->in[0], *y = call->out[0];
    space s = space_of(y->ndim, y->shape);
    space_add_tensor(&s, x);
    space_add_dense(&s);
    space_collapse(&s);
    if (space_count(&s) == 0)
        return ASEN_OK;
    if (x->dtype != y->dtype)
        return convert_any(&s, input<char>(call, 0), x->dtype, output<char>(call, 0), y->dtype);
    int bytes = (int)asen_dtype_size(x->dtype), q = transposed_dim(&s);
    if (q >= 0 && space_count(&s) <= INT32_MAX)
        return transpose(s, q, input<char>(call, 0), output<char>(call, 0), bytes);
    return move(&s, input<char>(call, 0), output<char>(call, 0), bytes);
}

int cuda_cat(const asen_call *call)
{
    const asen_tensor *y = call->out[0];
    int64_t stride[ASEN_MAX_DIMS], dim = call->attrs->cat.dim, start = 0;
    int bytes = (int)asen_dtype_size(y->dtype);
    dense_strides(y->ndim, y->shape, stride);
    for (int i = 0; i < call->n_in; i++) {
        const asen_tensor *x = call->in[i];
        if (element_count(x) > 0) {
            space s = space_of(x->ndim, x->shape);
            space_add_dense(&s);
            space_add(&s, stride);
            space_collapse(&s);
            CUDA_OK(move(&s, input<char>(call, i), output<char>(call, 0) + start * stride[dim] * bytes, bytes));
        }
        start += x->shape[dim];
    }
    return ASEN_OK;
}

/* Zeros everywhere, then dy where the slice was. */
int cuda_slice_grad(const asen_call *call)
{
    const asen_tensor *dy = call->in[0], *dx = call->out[0];
    const asen_list *begin = &call->attrs->slice_grad.start, *step = &call->attrs->slice_grad.step;
    int64_t stride[ASEN_MAX_DIMS], offset = 0, bytes = (int64_t)asen_dtype_size(dx->dtype);
    if (element_count(dy) != element_count(dx))
        CUDA_OK(fill(output<char>(call, 0), element_count(dx) * bytes, 0));
    if (element_count(dy) == 0)
        return ASEN_OK;
    dense_strides(dx->ndim, dx->shape, stride);
    for (int d = 0; d < dx->ndim; d++) {
        offset += begin->item[d] * stride[d];
        stride[d] *= step->item[d];
    }
    space s = space_of(dy->ndim, dy->shape);
    space_add_dense(&s);
    space_add(&s, stride);
    space_collapse(&s);
    return move(&s, input<char>(call, 0), output<char>(call, 0) + offset * bytes, (int)bytes);
}

ASEN_C_END
