/* Rows that look up: embedding and its gradient, tables of pixels, and dropout's random numbers.
 *
 * All are bound by memory, by the bytes of inputs and outputs; the sizes that models have (a table of
 * a few rows, a batch of some hundred indices) are bound by the launch. An index outside its table is
 * a fault (cuda.h); its row becomes zeros, and nothing is read. */
#include "index.cuh"
#include "core/random.h"

namespace {

enum { BLOCK = 256, PIXEL_VALUES = 256, SHARED_TABLE = 48 * 1024 };

/* ---- embedding ---- */

/* y (..., D) = weight (R, D) at index (...). The walk over y's units gives where index, y and the unit's place
 * in its row lie. Units are bits: no arithmetic is done. */
template <typename U>
__global__ void __launch_bounds__(BLOCK)
embedding_kernel(const U *weight, const int64_t *index, U *y, int64_t count, walk<3> at, int64_t R, int64_t row_units,
                 cuda_fault *fault)
{
    int64_t step = (int64_t)gridDim.x * BLOCK;
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < count; i += step) {
        int64_t offset[3];
        at.at(i, offset);
        int64_t row = index[offset[0]];
        bool inside = row >= 0 && row < R;
        if (!inside)
            cuda_fault_set(fault, ASEN_OP_embedding, row, R);
        y[offset[1]] = inside ? weight[row * row_units + offset[2]] : U();
    }
}

/* The space of a row's elements at each index: index's dims in its memory order, then D. Operand 0: index,
 * 1: `rows` (..., D), 2: the place in a row. */
space space_of_rows(const asen_tensor *index, const asen_tensor *rows)
{
    int64_t index_stride[ASEN_MAX_DIMS], rows_stride[ASEN_MAX_DIMS];
    dense_strides(index->ndim, index->shape, index_stride);
    dense_strides(rows->ndim, rows->shape, rows_stride);
    space s = space_of(index->ndim, index->shape);
    space_add(&s, index_stride);
    space_add(&s, rows_stride);
    s.operands = 3;
    int last = s.ndim++;
    s.size[last] = rows->shape[last];
    s.stride[1][last] = rows_stride[last];
    s.stride[2][last] = 1;
    space_collapse(&s);
    return s;
}

struct table {
    const char *weight;
    int64_t R, D; /* elements */
    size_t bytes; /* of an element */
};

/* n elements of a row are moved at once. */
template <typename U> int embedding(const table *t, const space *s, int n, const int64_t *index, char *y)
{
    int64_t count = space_count(s) / n;
    walk<3> at = walk_over<3>(s, n);
    for (int d = 0; d < s->ndim; d++) { /* elements to units */
        at.stride[1][d] /= n;
        at.stride[2][d] /= n;
    }
    return ASEN_LAUNCH(embedding_kernel<U>, grid_for(count, BLOCK), BLOCK, 0, reinterpret_cast<const U *>(t->weight), index,
                       reinterpret_cast<U *>(y), count, at, t->R, t->D / n, cuda.fault);
}

int embedding_any(const table *t, space *s, const int64_t *index, char *y)
{
    int last = s->ndim - 1, n = (int)(16 / t->bytes);
    if (space_too_large(s)) {
        space rest;
        int64_t at[SPACE_OPERANDS];
        space_halve(s, &rest, at);
        table second = *t;
        second.weight += at[2] * (int64_t)t->bytes;
        CUDA_OK(embedding_any(&second, &rest, index + at[0], y + at[1] * (int64_t)t->bytes));
        return embedding_any(t, s, index, y);
    }
    /* operand 2 has stride 1 along the row's own dim alone, whose size is D */
    if (s->size[last] % n == 0 && space_aligned(s, 1, y, n, t->bytes) && space_aligned(s, 2, t->weight, n, t->bytes))
        return embedding<unit16>(t, s, n, index, y);
    return t->bytes == 8   ? embedding<uint64_t>(t, s, 1, index, y)
           : t->bytes == 4 ? embedding<uint32_t>(t, s, 1, index, y)
                           : embedding<uint16_t>(t, s, 1, index, y);
}

/* ---- its gradient ---- */

/* dw (R, D): rows of dy (..., D) added up where index (n, in memory order) names the row, in that order, with
 * Kahan's compensation. A block has one row of dw and 256 of its columns; the indices pass through shared
 * memory. Reads all n indices for each row and each element of dy once. */
template <typename T>
__global__ void __launch_bounds__(BLOCK)
embedding_grad_kernel(const T *dy, const int64_t *index, T *dw, int64_t n, walk<2> at, int64_t R, int64_t D, int64_t dy_step,
                      int64_t slabs, cuda_fault *fault)
{
    typedef accumulator<T> A;
    ASEN_SHARED(int64_t, part, [BLOCK]);
    for (int64_t block = blockIdx.x; block < R * slabs; block += gridDim.x) {
        int64_t row = block / slabs, column = block % slabs * BLOCK + threadIdx.x;
        A sum = 0, lost = 0;
        for (int64_t first = 0; first < n; first += BLOCK) {
            int have = (int)(n - first < BLOCK ? n - first : BLOCK);
            __syncthreads();
            if ((int)threadIdx.x < have) {
                int64_t offset[2];
                at.at(first + threadIdx.x, offset);
                int64_t named = index[offset[0]];
                part[threadIdx.x] = named;
                if (block == 0 && (named < 0 || named >= R))
                    cuda_fault_set(fault, ASEN_OP_embedding_grad, named, R);
            }
            __syncthreads();
            for (int i = 0; i < have; i++) {
                if (part[i] != row || column >= D)
                    continue;
                int64_t offset[2];
                at.at(first + i, offset);
                A term = widen(dy[offset[1] + column * dy_step]) - lost, next = sum + term;
                lost = next - sum - term;
                sum = next;
            }
        }
        if (column < D)
            dw[row * D + column] = narrow<T>(sum);
    }
}

template <typename T> int embedding_grad(const asen_call *call)
{
    const asen_tensor *dy = call->in[0], *index = call->in[1];
    int64_t index_stride[ASEN_MAX_DIMS], dy_stride[ASEN_MAX_DIMS];
    int64_t R = call->out[0]->shape[0], D = call->out[0]->shape[1], n = element_count(index), slabs = ceil_div(D, BLOCK);
    dense_strides(index->ndim, index->shape, index_stride);
    dense_strides(dy->ndim, dy->shape, dy_stride);
    space s = space_of(index->ndim, index->shape);
    space_add(&s, index_stride);
    space_add(&s, dy_stride);
    space_collapse(&s);
    if (space_too_large(&s))
        return ASEN_DECLINED;
    return ASEN_LAUNCH(embedding_grad_kernel<T>, grid_for(R * slabs, 1), BLOCK, 0, input<T>(call, 0), input<int64_t>(call, 1),
                       output<T>(call, 0), n, walk_over<2>(&s, 1), R, D, dy_stride[dy->ndim - 1], slabs, cuda.fault);
}

/* ---- dropout ---- */

/* y (n) = x * scale where number offset + i of the generator is at least the threshold, else 0. A thread takes the
 * four numbers of one block of the generator; `skip` = offset % 4 of the first lie before element 0. */
template <typename T>
__global__ void __launch_bounds__(BLOCK)
dropout_kernel(const T *x, T *y, int64_t n, uint64_t seed, uint64_t first_block, int skip, uint64_t threshold, accumulator<T> scale,
               bool aligned)
{
    typedef vector_of<T, (sizeof(T) < 8 ? 4 : 2)> four; /* 16 bytes at most: two of them for float64 */
    enum { N = sizeof(four) / sizeof(T) };
    int64_t step = (int64_t)gridDim.x * BLOCK, blocks = (n + skip + 3) / 4;
    for (int64_t b = (int64_t)blockIdx.x * BLOCK + threadIdx.x; b < blocks; b += step) {
        int64_t i = 4 * b - skip;
        uint32_t number[4];
        if (aligned && i + 4 <= n) {
            four v[4 / N];
            for (int j = 0; j < 4 / N; j++)
                vector_load(v[j], x + i + j * N);
            asen_random_block(seed, (first_block + (uint64_t)b) & (~(uint64_t)0 >> 2), number);
            for (int j = 0; j < 4; j++) {
                T &e = v[j / N].item[j % N];
                e = number[j] >= threshold ? narrow<T>(widen(e) * scale) : narrow<T>(0);
            }
            for (int j = 0; j < 4 / N; j++)
                vector_store(y + i + j * N, v[j]);
        } else {
            asen_random_block(seed, (first_block + (uint64_t)b) & (~(uint64_t)0 >> 2), number);
            for (int j = 0; j < 4; j++)
                if (i + j >= 0 && i + j < n)
                    y[i + j] = number[j] >= threshold ? narrow<T>(widen(x[i + j]) * scale) : narrow<T>(0);
        }
    }
}

template <typename T> int dropout(const asen_call *call, int64_t n)
{
    double p = call->attrs->dropout.p;
    uint64_t offset = (uint64_t)call->attrs->dropout.offset;
    int skip = (int)(offset % 4);
    const T *x = input<T>(call, 0);
    T *y = output<T>(call, 0);
    bool aligned = skip == 0 && vector_aligned(x, y);
    return ASEN_LAUNCH(dropout_kernel<T>, grid_for(ceil_div(n + skip, 4), BLOCK), BLOCK, 0, x, y, n,
                       (uint64_t)call->attrs->dropout.seed, offset / 4, skip, asen_random_threshold(p),
                       (accumulator<T>)(p < 1 ? 1 / (1 - p) : 0), aligned);
}

/* ---- pixels ---- */

/* y[i] = table[c][x[i]], x and y (N, C, H, W) channels-last, so c = i % C; table (C, 256), in shared memory where it
 * fits. V pixels a thread: one 16-byte store each. Reads 1 and writes sizeof(T) bytes a pixel. */
template <typename T, int V>
__global__ void __launch_bounds__(BLOCK)
normalize_pixels_kernel(const uint8_t *x, const T *table, T *y, int64_t count, int C, int shared_values)
{
    ASEN_SHARED_DYNAMIC(T, own);
    for (int i = threadIdx.x; i < shared_values; i += BLOCK)
        own[i] = table[i];
    if (shared_values > 0)
        table = own;
    __syncthreads();
    int64_t step = (int64_t)gridDim.x * BLOCK * V, first = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * V;
    int c = (int)(first % C), further = (int)(step % C); /* no division in the loop */
    for (int64_t i = first; i < count; i += step) {
        int channel = c;
        c += further;
        c -= c >= C ? C : 0;
        if (i + V <= count) {
            vector_of<uint8_t, V> pixel;
            vector_of<T, V> value;
            vector_load(pixel, x + i);
            for (int e = 0; e < V; e++) {
                value.item[e] = table[channel * PIXEL_VALUES + pixel.item[e]];
                channel = channel + 1 == C ? 0 : channel + 1;
            }
            vector_store(y + i, value);
        } else {
            for (int64_t j = i; j < count; j++) {
                y[j] = table[channel * PIXEL_VALUES + x[j]];
                channel = channel + 1 == C ? 0 : channel + 1;
            }
        }
    }
}

/* A few blocks a multiprocessor, so that filling the tables is a small part of a block's work. */
unsigned pixel_blocks(int64_t count)
{
    int64_t wanted = ceil_div(count, BLOCK), limit = (int64_t)cuda.multiprocessors * 8;
    return (unsigned)(wanted < limit ? wanted : limit);
}

template <typename T, int V> int normalize_pixels(const asen_call *call, int64_t count)
{
    int64_t C = call->in[0]->shape[1], values = C * PIXEL_VALUES;
    int shared = values * (int64_t)sizeof(T) <= SHARED_TABLE ? (int)values : 0;
    size_t bytes = (shared > 0 ? shared : 1) * sizeof(T);
    return ASEN_LAUNCH((normalize_pixels_kernel<T, V>), pixel_blocks(ceil_div(count, V)), BLOCK, bytes,
                       input<uint8_t>(call, 0), input<T>(call, 1), output<T>(call, 0), count, (int)C, shared);
}

} // namespace

ASEN_C_BEGIN

int cuda_embedding(const asen_call *call)
{
    const asen_tensor *weight = call->in[0];
    table t = {input<char>(call, 0), weight->shape[0], weight->shape[1], asen_dtype_size(weight->dtype)};
    if (element_count(call->out[0]) == 0)
        return ASEN_OK;
    space s = space_of_rows(call->in[1], call->out[0]);
    return embedding_any(&t, &s, input<int64_t>(call, 1), output<char>(call, 0));
}

int cuda_embedding_grad(const asen_call *call)
{
    if (element_count(call->out[0]) == 0)
        return ASEN_OK;
    CUDA_FLOAT_SWITCH(call->out[0]->dtype, T, { return embedding_grad<T>(call); })
    return ASEN_DECLINED;
}

int cuda_dropout(const asen_call *call)
{
    int64_t n = element_count(call->out[0]);
    if (n == 0)
        return ASEN_OK;
    CUDA_FLOAT_SWITCH(call->out[0]->dtype, T, { return dropout<T>(call, n); })
    return ASEN_DECLINED;
}

int cuda_normalize_pixels(const asen_call *call)
{
    int64_t count = element_count(call->out[0]);
    const void *x = input<char>(call, 0), *y = output<char>(call, 0);
    bool aligned = (uintptr_t)x % 8 == 0 && vector_aligned(y);
    if (count == 0)
        return ASEN_OK;
    CUDA_FLOAT_SWITCH(call->out[0]->dtype, T, {
        enum { V = vector_size<T> };
        return aligned ? normalize_pixels<T, V>(call, count) : normalize_pixels<T, 1>(call, count);
    })
    return ASEN_DECLINED;
}

ASEN_C_END
