/* Reference: attribute-aware spatial attention (ASEN++, eq. 1-4).
 *
 * x (B, C, H, W), z and k (B, Cc, H, W) lie with channels last; q (B, Cc); m (B, H, W); v (B, C).
 * With a pixel's score s = sum_c q_c k_c / sqrt(Cc):
 *   k = tanh(z);  m = softmax over pixels of s;  v = sum over pixels of m x */
#include <math.h>
#include <stdlib.h>

#include "cpu/ref/ref.h"

/* m[pixels] in: scores; out: their softmax. */
static void softmax_in_place(double *m, int64_t pixels)
{
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < pixels; i++)
        max = m[i] > max ? m[i] : max;
    for (int64_t i = 0; i < pixels; i++) {
        m[i] = exp(m[i] - max);
        sum += m[i];
    }
    for (int64_t i = 0; i < pixels; i++)
        m[i] /= sum;
}

int ref_spatial_attention(const asen_call *call)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    const asen_tensor *tx = call->in[0];
    int64_t B = tx->shape[0], C = tx->shape[1], pixels = tx->shape[2] * tx->shape[3], Cc = call->in[1]->shape[1];
    ref_array x = ref_array_of(tx), z = ref_array_of(call->in[1]), q = ref_array_of(call->in[2]);
    ref_array v = ref_array_of(call->out[0]), m = ref_array_of(call->out[1]), k = ref_array_of(call->out[2]);
    double *weight = NULL, *sum = NULL, scale = 1 / sqrt((double)Cc);
    int status = asen_ref_zeros_new(pixels, &weight);
    if (status == ASEN_OK)
        status = asen_ref_zeros_new(C, &sum);
    if (status != ASEN_OK)
        goto fail;
    for (int64_t b = 0; b < B; b++) {
        for (int64_t i = 0; i < pixels; i++) {
            weight[i] = 0;
            for (int64_t c = 0; c < Cc; c++) {
                double key = tanh(ref_get(z, (b * pixels + i) * Cc + c));
                ref_put(k, (b * pixels + i) * Cc + c, key);
                weight[i] += ref_get(q, b * Cc + c) * key * scale;
            }
        }
        softmax_in_place(weight, pixels);
        memset(sum, 0, (size_t)C * sizeof *sum);
        for (int64_t i = 0; i < pixels; i++) {
            ref_put(m, b * pixels + i, weight[i]);
            asen_ref_add_scaled(sum, weight[i], x, (b * pixels + i) * C, C);
        }
        for (int64_t c = 0; c < C; c++)
            ref_put(v, b * C + c, sum[c]);
    }
fail:
    free(weight);
    free(sum);
    return status;
}

/* in: dv dm? x q m k; out: dx dz dq. With t = dm + sum_c dv_c x_c of a pixel:
 *   dx = m dv;  ds = m (t - sum over pixels of m t);
 *   dq = sum over pixels of ds k / sqrt(Cc);  dz = ds q / sqrt(Cc) (1 - k^2) */
int ref_spatial_attention_grad(const asen_call *call)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    const asen_tensor *dm = call->in[1], *tx = call->in[2];
    int64_t B = tx->shape[0], C = tx->shape[1], pixels = tx->shape[2] * tx->shape[3], Cc = call->in[3]->shape[1];
    ref_array dv = ref_array_of(call->in[0]), x = ref_array_of(tx), q = ref_array_of(call->in[3]);
    ref_array m = ref_array_of(call->in[4]), k = ref_array_of(call->in[5]);
    ref_array dx = ref_array_of(call->out[0]), dz = ref_array_of(call->out[1]), dq = ref_array_of(call->out[2]);
    double *ds = NULL, *sum = NULL, scale = 1 / sqrt((double)Cc);
    int status = asen_ref_zeros_new(pixels, &ds);
    if (status == ASEN_OK)
        status = asen_ref_zeros_new(Cc, &sum);
    if (status != ASEN_OK)
        goto fail;
    for (int64_t b = 0; b < B; b++) {
        double mean = 0;
        for (int64_t i = 0; i < pixels; i++) {
            int64_t at = b * pixels + i;
            ds[i] = asen_ref_dot(dv, b * C, x, at * C, C) + (dm ? ref_get(ref_array_of(dm), at) : 0);
            mean += ref_get(m, at) * ds[i];
            for (int64_t c = 0; c < C; c++)
                ref_put(dx, at * C + c, ref_get(m, at) * ref_get(dv, b * C + c));
        }
        memset(sum, 0, (size_t)Cc * sizeof *sum);
        for (int64_t i = 0; i < pixels; i++) {
            int64_t at = b * pixels + i;
            double slope = ref_get(m, at) * (ds[i] - mean) * scale;
            asen_ref_add_scaled(sum, slope, k, at * Cc, Cc);
            for (int64_t c = 0; c < Cc; c++) {
                double key = ref_get(k, at * Cc + c);
                ref_put(dz, at * Cc + c, slope * ref_get(q, b * Cc + c) * (1 - key * key));
            }
        }
        for (int64_t c = 0; c < Cc; c++)
            ref_put(dq, b * Cc + c, sum[c]);
    }
fail:
    free(ds);
    free(sum);
    return status;
}
