/* Reference: matrix products and softmax. */
#include <math.h>

#include "cpu/ref/ref.h"

/* a (B, M, K) or, trans_a, (B, K, M); b (B, K, N) or, trans_b, (B, N, K); y (B, M, N). */
int ref_matmul(const asen_call *call)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    const asen_tensor *ta = call->in[0], *ty = call->out[0];
    bool trans_a = call->attrs->matmul.trans_a != 0, trans_b = call->attrs->matmul.trans_b != 0;
    int64_t M = ty->shape[ty->ndim - 2], N = ty->shape[ty->ndim - 1], batch = ty->ndim == 3 ? ty->shape[0] : 1;
    int64_t K = ta->shape[ta->ndim - (trans_a ? 2 : 1)];
    int64_t a_row = trans_a ? 1 : K, a_column = trans_a ? M : 1;
    int64_t b_row = trans_b ? 1 : N, b_column = trans_b ? K : 1;
    ref_array a = ref_array_of(ta), b = ref_array_of(call->in[1]), y = ref_array_of(ty);
    for (int64_t p = 0; p < batch; p++)
        for (int64_t m = 0; m < M; m++)
            for (int64_t n = 0; n < N; n++) {
                double sum = 0;
                for (int64_t k = 0; k < K; k++)
                    sum += ref_get(a, p * M * K + m * a_row + k * a_column) *
                           ref_get(b, p * K * N + k * b_row + n * b_column);
                ref_put(y, (p * M + m) * N + n, sum);
            }
    return ASEN_OK;
}

/* x (N, K), w (M, K), bias (M): y (N, M) */
int ref_linear(const asen_call *call)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    int64_t M = call->in[1]->shape[0], K = call->in[1]->shape[1], N = call->in[0]->shape[0];
    const asen_tensor *bias = ref_optional(call, 2);
    ref_array x = ref_array_of(call->in[0]), w = ref_array_of(call->in[1]), y = ref_array_of(call->out[0]);
    for (int64_t n = 0; n < N; n++)
        for (int64_t m = 0; m < M; m++) {
            double shift = bias ? ref_get(ref_array_of(bias), m) : 0;
            ref_put(y, n * M + m, shift + asen_ref_dot(x, n * K, w, m * K, K));
        }
    return ASEN_OK;
}

/* Over one dim of a dense x: exp(x - max) / sum, or x - max - log(sum). */
static int softmax_over(const asen_call *call, int64_t dim, bool logarithm)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    const asen_tensor *t = call->in[0];
    ref_array x = ref_array_of(t), y = ref_array_of(call->out[0]);
    int64_t shape[ASEN_MAX_DIMS], stride[ASEN_MAX_DIMS], length = 1, step = 0;
    asen_dense_strides(t->ndim, t->shape, stride);
    memcpy(shape, t->shape, sizeof shape);
    if (t->ndim > 0) {
        dim = dim < 0 ? dim + t->ndim : dim;
        length = t->shape[dim];
        step = stride[dim];
        shape[dim] = 1;
    }
    ref_walk walk;
    asen_ref_walk_start(&walk, t->ndim, shape);
    asen_ref_walk_add(&walk, stride, 0);
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk)) {
        int64_t at = walk.at[0];
        double max = -INFINITY, sum = 0;
        for (int64_t k = 0; k < length; k++) {
            double value = ref_get(x, at + k * step);
            max = value > max ? value : max;
        }
        for (int64_t k = 0; k < length; k++)
            sum += exp(ref_get(x, at + k * step) - max);
        for (int64_t k = 0; k < length; k++) {
            double shifted = ref_get(x, at + k * step) - max;
            ref_put(y, at + k * step, logarithm ? shifted - log(sum) : exp(shifted) / sum);
        }
    }
    return ASEN_OK;
}

int ref_softmax(const asen_call *call) { return softmax_over(call, call->attrs->softmax.dim, false); }
int ref_log_softmax(const asen_call *call) { return softmax_over(call, call->attrs->log_softmax.dim, true); }
