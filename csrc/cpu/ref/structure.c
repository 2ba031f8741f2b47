/* Reference: ops that move elements: cat, slice_grad, embedding, dropout, normalize_pixels. */
#include <stdlib.h>

#include "core/random.h"
#include "cpu/ref/ref.h"

static void move_element(ref_array to, int64_t to_at, ref_array from, int64_t from_at, size_t size)
{
    memcpy((char *)to.data + to_at * (int64_t)size, (const char *)from.data + from_at * (int64_t)size, size);
}

/* Puts a dense x into y so that its position 0 falls on `offset` and steps are y_stride. */
static void scatter(const asen_tensor *tx, const asen_tensor *ty, const int64_t *y_stride, int64_t offset)
{
    ref_array x = ref_array_of(tx), y = ref_array_of(ty);
    ref_walk walk;
    asen_ref_walk_start(&walk, tx->ndim, tx->shape);
    asen_ref_walk_add(&walk, y_stride, offset);
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk))
        move_element(y, walk.at[0], x, i, asen_dtype_size(x.dtype));
}

int ref_cat(const asen_call *call)
{
    const asen_tensor *y = call->out[0];
    int64_t stride[ASEN_MAX_DIMS], dim = call->attrs->cat.dim, start = 0;
    dim = dim < 0 ? dim + y->ndim : dim;
    asen_dense_strides(y->ndim, y->shape, stride);
    for (int i = 0; i < call->n_in; i++) {
        if (call->in[i]->dtype != y->dtype)
            return ASEN_DECLINED;
        scatter(call->in[i], y, stride, start * stride[dim]);
        start += call->in[i]->shape[dim];
    }
    return ASEN_OK;
}

int ref_slice_grad(const asen_call *call)
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
    scatter(call->in[0], dx, stride, offset);
    return ASEN_OK;
}

/* A walk over `index`: operand 0 index itself, operand 1 the first element of its row in `rows`
 * (..., D); *step is from one element of a row to the next. */
static void walk_rows(const asen_tensor *index, const asen_tensor *rows, ref_walk *walk, int64_t *step)
{
    int64_t index_stride[ASEN_MAX_DIMS], stride[ASEN_MAX_DIMS];
    asen_dense_strides(index->ndim, index->shape, index_stride);
    asen_dense_strides(rows->ndim, rows->shape, stride);
    asen_ref_walk_start(walk, index->ndim, index->shape);
    asen_ref_walk_add(walk, index_stride, 0);
    asen_ref_walk_add(walk, stride, 0);
    *step = stride[rows->ndim - 1];
}

int ref_embedding(const asen_call *call)
{
    const asen_tensor *weight = call->in[0], *y = call->out[0];
    if (!ref_is_int(call->in[1]) || weight->dtype != y->dtype)
        return ASEN_DECLINED;
    int64_t R = weight->shape[0], D = weight->shape[1], step;
    ref_array from = ref_array_of(weight), to = ref_array_of(y), index = ref_array_of(call->in[1]);
    ref_walk walk;
    walk_rows(call->in[1], y, &walk, &step);
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk)) {
        int64_t row = asen_ref_get_int(index, walk.at[0]);
        int status = asen_ref_check_index("index", row, i, R, "rows of weight");
        if (status != ASEN_OK)
            return status;
        for (int64_t d = 0; d < D; d++)
            move_element(to, walk.at[1] + d * step, from, row * D + d, asen_dtype_size(y->dtype));
    }
    return ASEN_OK;
}

int ref_embedding_grad(const asen_call *call)
{
    const asen_tensor *dy = call->in[0], *dw = call->out[0];
    if (!ref_is_float(dy) || !ref_is_float(dw) || !ref_is_int(call->in[1]))
        return ASEN_DECLINED;
    int64_t R = dw->shape[0], D = dw->shape[1], step;
    ref_array from = ref_array_of(dy), to = ref_array_of(dw), index = ref_array_of(call->in[1]);
    ref_walk walk;
    double *sum;
    int status = asen_ref_zeros_new(R * D, &sum);
    if (status != ASEN_OK)
        return status;
    walk_rows(call->in[1], dy, &walk, &step);
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk)) {
        int64_t row = asen_ref_get_int(index, walk.at[0]);
        status = asen_ref_check_index("index", row, i, R, "rows of weight");
        if (status != ASEN_OK)
            goto fail;
        for (int64_t d = 0; d < D; d++)
            sum[row * D + d] += ref_get(from, walk.at[1] + d * step);
    }
    for (int64_t i = 0; i < R * D; i++)
        ref_put(to, i, sum[i]);
fail:
    free(sum);
    return status;
}

int ref_dropout(const asen_call *call)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    double p = call->attrs->dropout.p;
    uint64_t seed = (uint64_t)call->attrs->dropout.seed, offset = (uint64_t)call->attrs->dropout.offset;
    if (!(p >= 0 && p <= 1))
        return asen_fail(ASEN_ERR_VALUE, "p is %g: a probability lies in [0, 1]", p);
    ref_array x = ref_array_of(call->in[0]), y = ref_array_of(call->out[0]);
    uint64_t threshold = asen_random_threshold(p);
    double scale = p < 1 ? 1 / (1 - p) : 0;
    int64_t count = asen_tensor_count(call->out[0]);
    for (int64_t i = 0; i < count; i++) {
        bool keep = asen_random_u32(seed, offset + (uint64_t)i) >= threshold;
        ref_put(y, i, keep ? ref_get(x, i) * scale : 0);
    }
    return ASEN_OK;
}

int ref_normalize_pixels(const asen_call *call)
{
    const asen_tensor *x = call->in[0], *table = call->in[1];
    const uint8_t *pixels = asen_tensor_data(x);
    int64_t channels = x->shape[1], count = asen_tensor_count(x);
    for (int64_t i = 0; i < count; i++) /* channels-last: the channel runs fastest */
        move_element(ref_array_of(call->out[0]), i, ref_array_of(table), i % channels * 256 + pixels[i],
                     asen_dtype_size(table->dtype));
    return ASEN_OK;
}
