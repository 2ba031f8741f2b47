/* Ops that move elements: cat, slice_grad, embedding and its gradient, dropout. The first three
 * take any dtype, by its size. */
#include <omp.h>

#include "core/random.h"
#include "cpu/fast/math.h"

/* y = x for n elements of `size` bytes, y with a stride. */
FAST_CLONES static void move_scatter(char *y, int64_t stride, const char *x, int64_t n, int64_t size)
{
    if (stride == 1) {
        memcpy(y, x, (size_t)(n * size));
    } else if (size == 4) {
        uint32_t *to = (uint32_t *)y;
        const uint32_t *from = (const uint32_t *)x;
        for (int64_t i = 0; i < n; i++)
            to[i * stride] = from[i];
    } else {
        for (int64_t i = 0; i < n; i++)
            memcpy(y + i * stride * size, x + i * size, (size_t)size);
    }
}

/* Puts a dense x into y (dense) from element `offset` on, where x's dims have the strides `y_stride`. */
static void move_into(const asen_tensor *x, const asen_tensor *y, const int64_t *y_stride, int64_t offset)
{
    int order[ASEN_MAX_DIMS];
    int64_t x_stride[ASEN_MAX_DIMS], size = (int64_t)asen_dtype_size(y->dtype);
    asen_dense_strides(x->ndim, x->shape, x_stride);
    fast_memory_order(x->ndim, order);
    fast_nest nest = {0};
    for (int i = 0; i < x->ndim; i++)
        fast_nest_add(&nest, 2, x->shape[order[i]], (int64_t[]){x_stride[order[i]], y_stride[order[i]]});
    fast_nest_close(&nest);
    int64_t count = asen_tensor_count(x), row = nest.size[nest.ndim - 1], stride = nest.stride[1][nest.ndim - 1];
    if (count == 0)
        return;
    int64_t rows = count / row;
    const char *from = asen_tensor_data(x);
    char *to = (char *)asen_tensor_data(y) + offset * size;
    int threads = fast_threads(count, rows);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int t = omp_get_thread_num(), team = omp_get_num_threads();
        int64_t begin = fast_part(rows, t, team), end = fast_part(rows, t + 1, team);
        int64_t position[ASEN_MAX_DIMS], at[FAST_MAX_OPERANDS];
        fast_nest_seek(&nest, 2, nest.ndim - 1, begin, position, at);
        for (int64_t r = begin; r < end; r++) {
            move_scatter(to + at[1] * size, row == 1 ? 1 : stride, from + r * row * size, row, size);
            fast_nest_next(&nest, 2, nest.ndim - 1, position, at);
        }
    }
}

int fast_cat(const asen_call *call)
{
    const asen_tensor *y = call->out[0];
    int64_t stride[ASEN_MAX_DIMS], dim = call->attrs->cat.dim, start = 0;
    dim = dim < 0 ? dim + y->ndim : dim;
    for (int i = 0; i < call->n_in; i++)
        if (call->in[i]->dtype != y->dtype)
            return ASEN_DECLINED;
    asen_dense_strides(y->ndim, y->shape, stride);
    for (int i = 0; i < call->n_in; i++) {
        move_into(call->in[i], y, stride, start * stride[dim]);
        start += call->in[i]->shape[dim];
    }
    return ASEN_OK;
}

int fast_slice_grad(const asen_call *call)
{
    const asen_tensor *dx = call->out[0];
    const asen_list *begin = &call->attrs->slice_grad.start, *step = &call->attrs->slice_grad.step;
    int64_t stride[ASEN_MAX_DIMS], offset = 0;
    if (call->in[0]->dtype != dx->dtype)
        return ASEN_DECLINED;
    asen_dense_strides(dx->ndim, dx->shape, stride);
    for (int d = 0; d < dx->ndim; d++) {
        offset += begin->item[d] * stride[d];
        stride[d] *= step->item[d];
    }
    memset(asen_tensor_data(dx), 0, asen_tensor_bytes(dx));
    move_into(call->in[0], dx, stride, offset);
    return ASEN_OK;
}

/* Rows (..., D) whose last dim is contiguous and which follow each other: any rank but 4. */
static bool rows_lie_in_order(const asen_tensor *rows)
{
    return rows->ndim != 4 || (rows->shape[1] == 1 && rows->shape[2] == 1);
}

int fast_embedding(const asen_call *call)
{
    const asen_tensor *weight = call->in[0], *index = call->in[1], *y = call->out[0];
    if (index->dtype != ASEN_I64 || weight->dtype != y->dtype || !rows_lie_in_order(y) || index->ndim == 4)
        return ASEN_DECLINED;
    int64_t count = asen_tensor_count(index);
    const int64_t *rows = asen_tensor_data(index);
    int status = fast_check_indices("index", rows, count, weight->shape[0], "rows of weight");
    if (status != ASEN_OK)
        return status;
    size_t bytes = (size_t)weight->shape[1] * asen_dtype_size(weight->dtype);
    for (int64_t i = 0; i < count; i++)
        memcpy((char *)asen_tensor_data(y) + (size_t)i * bytes,
               (const char *)asen_tensor_data(weight) + (size_t)rows[i] * bytes, bytes);
    return ASEN_OK;
}

FAST_CLONES static void move_add(float *restrict y, const float *restrict x, int64_t n)
{
    FAST_SIMD
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}

/* The sums are float32, in the order of index, by one thread. */
int fast_embedding_grad(const asen_call *call)
{
    const asen_tensor *dy = call->in[0], *index = call->in[1], *dw = call->out[0];
    if (index->dtype != ASEN_I64 || dy->dtype != ASEN_F32 || dw->dtype != ASEN_F32 || !rows_lie_in_order(dy) ||
        index->ndim == 4)
        return ASEN_DECLINED;
    int64_t count = asen_tensor_count(index), width = dw->shape[1];
    const int64_t *rows = asen_tensor_data(index);
    int status = fast_check_indices("index", rows, count, dw->shape[0], "rows of weight");
    if (status != ASEN_OK)
        return status;
    memset(asen_tensor_data(dw), 0, asen_tensor_bytes(dw));
    for (int64_t i = 0; i < count; i++)
        move_add(fast_f32(dw) + rows[i] * width, fast_f32(dy) + i * width, width);
    return ASEN_OK;
}

#define DROPOUT_BLOCKS 32 /* blocks of four numbers made side by side */

/* asen_random_block for DROPOUT_BLOCKS blocks from `block` on: out[lane][i] is its lane of block + i.
 * The same rounds, written so that vectors run over the blocks. */
FAST_INLINE void dropout_numbers(uint64_t seed, uint64_t block, uint32_t out[4][DROPOUT_BLOCKS])
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < DROPOUT_BLOCKS; i++) {
        out[0][i] = (uint32_t)(block + (uint64_t)i);
        out[1][i] = (uint32_t)((block + (uint64_t)i) >> 32);
        out[2][i] = out[3][i] = 0;
    }
    for (int round = 0; round < 10; round++) {
        FAST_SIMD
        for (int i = 0; i < DROPOUT_BLOCKS; i++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * out[0][i], p1 = (uint64_t)0xCD9E8D57u * out[2][i];
            out[0][i] = (uint32_t)(p1 >> 32) ^ out[1][i] ^ k0;
            out[1][i] = (uint32_t)p1;
            out[2][i] = (uint32_t)(p0 >> 32) ^ out[3][i] ^ k1;
            out[3][i] = (uint32_t)p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* Elements of `count` blocks, the first with the numbers of `block`; kept where number >= threshold,
 * which lies below 2^32 (p < 1). */
FAST_CLONES static void dropout_blocks(float *restrict y, const float *restrict x, int64_t count, uint64_t seed,
                                       uint64_t block, uint32_t threshold, float scale)
{
    uint32_t number[4][DROPOUT_BLOCKS];
    for (int64_t at = 0; at < count; at += DROPOUT_BLOCKS) {
        dropout_numbers(seed, block + (uint64_t)at, number);
        float *to = y + 4 * at;
        const float *from = x + 4 * at;
        int64_t n = fast_min_i64(DROPOUT_BLOCKS, count - at);
        for (int64_t i = 0; i < n; i++)
            for (int j = 0; j < 4; j++)
                to[4 * i + j] = fast_select(number[j][i] >= threshold, from[4 * i + j] * scale, 0.0f);
    }
}

static void dropout_one(float *y, const float *x, uint64_t seed, uint64_t number, uint64_t threshold, float scale)
{
    *y = asen_random_u32(seed, number) >= threshold ? *x * scale : 0.0f;
}

int fast_dropout(const asen_call *call)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    double p = call->attrs->dropout.p;
    if (!(p >= 0 && p < 1))
        return ASEN_DECLINED;
    uint64_t seed = (uint64_t)call->attrs->dropout.seed, offset = (uint64_t)call->attrs->dropout.offset;
    uint64_t threshold = asen_random_threshold(p);
    float scale = (float)(1 / (1 - p));
    if (threshold > UINT32_MAX) /* p so near 1 that nothing is kept */
        return ASEN_DECLINED;
    const float *x = fast_f32(call->in[0]);
    float *y = fast_f32(call->out[0]);
    int64_t count = asen_tensor_count(call->out[0]);
    int64_t head = fast_min_i64((int64_t)((4 - (offset & 3)) & 3), count), blocks = (count - head) / 4;
    for (int64_t i = 0; i < head; i++)
        dropout_one(y + i, x + i, seed, offset + (uint64_t)i, threshold, scale);
    for (int64_t i = head + 4 * blocks; i < count; i++)
        dropout_one(y + i, x + i, seed, offset + (uint64_t)i, threshold, scale);
    int threads = fast_threads(count * 4, blocks);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int t = omp_get_thread_num(), team = omp_get_num_threads();
        int64_t begin = fast_part(blocks, t, team), end = fast_part(blocks, t + 1, team);
        dropout_blocks(y + head + 4 * begin, x + head + 4 * begin, end - begin, seed,
                       (offset + (uint64_t)head) / 4 + (uint64_t)begin, (uint32_t)threshold, scale);
    }
    return ASEN_OK;
}
