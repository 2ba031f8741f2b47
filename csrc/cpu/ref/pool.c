/* Reference: max pooling. x (N, C, H, W) lies N, H, W, C. */
#include <math.h>
#include <stdlib.h>

#include "cpu/ref/ref.h"

/* y (N, C, P, Q), index the same, int32: h * W + w of the first maximum; a NaN is the maximum. */
int ref_max_pool2d(const asen_call *call)
{
    const asen_tensor *tx = call->in[0], *ty = call->out[0];
    if (!ref_is_float(tx) || !ref_is_float(ty) || !ref_is_int(call->out[1]))
        return ASEN_DECLINED;
    const int64_t *kernel = call->attrs->max_pool2d.kernel_size, *stride = call->attrs->max_pool2d.stride;
    const int64_t *padding = call->attrs->max_pool2d.padding;
    int64_t N = tx->shape[0], C = tx->shape[1], H = tx->shape[2], W = tx->shape[3], P = ty->shape[2], Q = ty->shape[3];
    ref_array x = ref_array_of(tx), y = ref_array_of(ty), index = ref_array_of(call->out[1]);
    for (int64_t n = 0; n < N; n++)
        for (int64_t p = 0; p < P; p++)
            for (int64_t q = 0; q < Q; q++)
                for (int64_t c = 0; c < C; c++) {
                    double best = -INFINITY;
                    int64_t best_at = -1, at = ((n * P + p) * Q + q) * C + c;
                    for (int64_t kh = 0; kh < kernel[0]; kh++)
                        for (int64_t kw = 0; kw < kernel[1]; kw++) {
                            int64_t h = p * stride[0] - padding[0] + kh, w = q * stride[1] - padding[1] + kw;
                            if (h < 0 || h >= H || w < 0 || w >= W)
                                continue;
                            double value = ref_get(x, ((n * H + h) * W + w) * C + c);
                            if (best_at < 0 || value > best || (isnan(value) && !isnan(best))) {
                                best = value;
                                best_at = h * W + w;
                            }
                        }
                    ref_put(y, at, best);
                    asen_ref_put_int(index, at, best_at);
                }
    return ASEN_OK;
}

int ref_max_pool2d_grad(const asen_call *call)
{
    const asen_tensor *ty = call->in[0], *tx = call->out[0];
    if (!ref_is_float(ty) || !ref_is_float(tx) || !ref_is_int(call->in[1]))
        return ASEN_DECLINED;
    int64_t N = tx->shape[0], C = tx->shape[1], plane = tx->shape[2] * tx->shape[3], PQ = ty->shape[2] * ty->shape[3];
    ref_array dy = ref_array_of(ty), index = ref_array_of(call->in[1]), dx = ref_array_of(tx);
    double *sum;
    int status = asen_ref_zeros_new(plane * C, &sum);
    if (status != ASEN_OK)
        return status;
    for (int64_t n = 0; n < N; n++) {
        memset(sum, 0, (size_t)(plane * C) * sizeof *sum);
        for (int64_t i = 0; i < PQ * C; i++) {
            int64_t at = asen_ref_get_int(index, n * PQ * C + i);
            if (at < 0) /* a window of nothing but padding */
                continue;
            status = asen_ref_check_index("index", at, n * PQ * C + i, plane, "pixels");
            if (status != ASEN_OK)
                goto fail;
            sum[at * C + i % C] += ref_get(dy, n * PQ * C + i);
        }
        for (int64_t i = 0; i < plane * C; i++)
            ref_put(dx, n * plane * C + i, sum[i]);
    }
fail:
    free(sum);
    return status;
}
