/* Attribute-aware spatial attention (ASEN++, eq. 1-4), fused. x (B, C, H, W), z and k (B, Cc, H, W)
 * lie pixel by pixel, channels innermost; q (B, Cc), m (B, H, W), v (B, C). For a pixel with the
 * score s = sum_c q_c k_c / sqrt(Cc): k = tanh(z), m = softmax over pixels of s, v = sum m x.
 * One image is one thread's work; with fewer images than threads, the parts share the pixels of
 * each image. Sums over pixels run in float over PIXELS of them, then in double. */
#include <omp.h>

#include "cpu/fast/rows.h"

#define PIXELS 32

typedef struct attention {
    int64_t batch, channels, keys, pixels;
    float scale; /* 1 / sqrt(Cc) */
} attention;

/* k = tanh(z) and scores s of pixels [begin, end) of an image. */
FAST_CLONES static void attention_scores(const attention *a, const float *z, const float *q, float *k, float *s,
                                         int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) {
        const float *restrict from = z + i * a->keys;
        float *restrict to = k + i * a->keys;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < a->keys; c++) {
            float t = fast_tanhf(from[c]);
            to[c] = t;
            sum += q[c] * t;
        }
        s[i] = sum * a->scale;
    }
}

FAST_CLONES static void attention_softmax(float *m, int64_t pixels)
{
    float largest = row_max(m, pixels);
    double total = 0;
    for (int64_t at = 0; at < pixels; at += ROW_BLOCK) {
        int64_t end = fast_min_i64(pixels, at + ROW_BLOCK);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = at; i < end; i++) {
            m[i] = fast_expf(m[i] - largest);
            sum += m[i];
        }
        total += sum;
    }
    row_scale(m, m, pixels, (float)(1 / total));
}

/* sum (double, n) += over pixels [begin, end) of weight * rows; part (n) is scratch. */
FAST_CLONES static void attention_weighted(double *sum, float *restrict part, const float *weight, const float *rows,
                                           int64_t begin, int64_t end, int64_t n)
{
    for (int64_t at = begin; at < end; at += PIXELS) {
        int64_t stop = fast_min_i64(end, at + PIXELS), i = at;
        memset(part, 0, (size_t)n * sizeof *part);
        for (; i + 4 <= stop; i += 4) {
            const float *restrict r = rows + i * n;
            float w0 = weight[i], w1 = weight[i + 1], w2 = weight[i + 2], w3 = weight[i + 3];
            FAST_SIMD
            for (int64_t c = 0; c < n; c++)
                part[c] += (w0 * r[c] + w1 * r[n + c]) + (w2 * r[2 * n + c] + w3 * r[3 * n + c]);
        }
        for (; i < stop; i++)
            row_add_scaled(part, rows + i * n, n, weight[i]);
        row_flush(sum, part, n);
    }
}

/* t = dm + dv . x of pixels [begin, end); dx = m dv. */
FAST_CLONES static void attention_inner(const attention *a, const float *restrict dv, const float *dm,
                                        const float *restrict x, const float *m, float *restrict dx, float *t,
                                        int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) {
        const float *restrict from = x + i * a->channels;
        float *restrict to = dx + i * a->channels;
        float sum = 0, weight = m[i];
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < a->channels; c++) {
            sum += dv[c] * from[c];
            to[c] = weight * dv[c];
        }
        t[i] = sum + (dm != NULL ? dm[i] : 0.0f);
    }
}

/* ds[n] = m (t - mean) scale, in place of t */
FAST_CLONES static void attention_slope(float *restrict t, const float *restrict m, int64_t n, float mean, float scale)
{
    FAST_SIMD
    for (int64_t i = 0; i < n; i++)
        t[i] = m[i] * (t[i] - mean) * scale;
}

FAST_CLONES static double attention_mean(const float *m, const float *t, int64_t n) { return row_dot(m, t, n); }

/* dz = ds q (1 - k^2) of pixels [begin, end) */
FAST_CLONES static void attention_keys(const attention *a, const float *restrict ds, const float *restrict q,
                                       const float *k, float *dz, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) {
        const float *restrict from = k + i * a->keys;
        float *restrict to = dz + i * a->keys;
        float slope = ds[i];
        FAST_SIMD
        for (int64_t c = 0; c < a->keys; c++)
            to[c] = slope * q[c] * (1.0f - from[c] * from[c]);
    }
}

FAST_CLONES static void attention_round(float *restrict y, const double *restrict x, int64_t n)
{
    FAST_SIMD
    for (int64_t i = 0; i < n; i++)
        y[i] = (float)x[i];
}

/* Scratch: for each of `parts` a sum (n) in double and a part (n) in float. */
static size_t attention_bytes(int64_t n, int parts) { return (size_t)parts * (size_t)(n + 16) * 12 + 64; }
static double *attention_sum(char *scratch, int64_t n, int part) { return (double *)scratch + part * (n + 16); }
static float *attention_part(char *scratch, int64_t n, int parts, int part)
{
    return (float *)((double *)scratch + parts * (n + 16)) + part * (n + 16);
}

/* Joins the threads' sums, in order, into the first. */
static void attention_join(char *scratch, int64_t n, int parts)
{
    double *first = attention_sum(scratch, n, 0);
    for (int p = 1; p < parts; p++)
        for (int64_t i = 0; i < n; i++)
            first[i] += attention_sum(scratch, n, p)[i];
}

int fast_spatial_attention(const asen_call *call)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    const asen_tensor *tx = call->in[0], *tz = call->in[1];
    attention a = {tx->shape[0], tx->shape[1], tz->shape[1], tx->shape[2] * tx->shape[3], 0};
    a.scale = (float)(1 / sqrt((double)a.keys));
    const float *x = fast_f32(tx), *z = fast_f32(tz), *q = fast_f32(call->in[2]);
    float *v = fast_f32(call->out[0]), *m = fast_f32(call->out[1]), *k = fast_f32(call->out[2]);
    int threads = fast_threads(asen_tensor_count(tx), a.batch * a.pixels);
    bool by_image = a.batch >= threads; /* else the threads share each image */
    size_t bytes = attention_bytes(a.channels, threads);
    void *scratch;
    int status = asen_scratch_new(call->device, bytes, &scratch);
    if (status != ASEN_OK)
        return status;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int t = omp_get_thread_num(), team = omp_get_num_threads();
        double *sum = attention_sum(scratch, a.channels, t);
        float *part = attention_part(scratch, a.channels, threads, t);
        int64_t first = by_image ? fast_part(a.batch, t, team) : 0;
        int64_t last = by_image ? fast_part(a.batch, t + 1, team) : a.batch;
        int64_t begin = by_image ? 0 : fast_part(a.pixels, t, team);
        int64_t end = by_image ? a.pixels : fast_part(a.pixels, t + 1, team);
        for (int64_t b = first; b < last; b++) {
            float *mb = m + b * a.pixels;
            int64_t kb = b * a.pixels * a.keys;
            attention_scores(&a, z + kb, q + b * a.keys, k + kb, mb, begin, end);
            if (!by_image) {
#pragma omp barrier
            }
            if (by_image || t == 0)
                attention_softmax(mb, a.pixels);
            if (!by_image) {
#pragma omp barrier
            }
            memset(sum, 0, (size_t)a.channels * sizeof *sum);
            attention_weighted(sum, part, mb, x + b * a.pixels * a.channels, begin, end, a.channels);
            if (!by_image) {
#pragma omp barrier
                if (t == 0)
                    attention_join(scratch, a.channels, team);
            }
            if (by_image || t == 0)
                attention_round(v + b * a.channels, sum, a.channels);
            if (!by_image) {
#pragma omp barrier
            }
        }
    }
    asen_scratch_free(call->device, scratch, bytes);
    return ASEN_OK;
}

/* dx = m dv; t = dm + dv . x; ds = m (t - sum m t) / sqrt(Cc); dq = sum ds k; dz = ds q (1 - k^2) */
int fast_spatial_attention_grad(const asen_call *call)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    const asen_tensor *tx = call->in[2], *tk = call->in[5];
    attention a = {tx->shape[0], tx->shape[1], tk->shape[1], tx->shape[2] * tx->shape[3], 0};
    a.scale = (float)(1 / sqrt((double)a.keys));
    const float *dv = fast_f32(call->in[0]), *dm = fast_f32(call->in[1]), *x = fast_f32(tx);
    const float *q = fast_f32(call->in[3]), *m = fast_f32(call->in[4]), *k = fast_f32(tk);
    float *dx = fast_f32(call->out[0]), *dz = fast_f32(call->out[1]), *dq = fast_f32(call->out[2]);
    int threads = fast_threads(asen_tensor_count(tx), a.batch * a.pixels);
    bool by_image = a.batch >= threads;
    int slopes = by_image ? threads : 1; /* ds: one a thread, or one that all share */
    size_t sums = (attention_bytes(a.keys, threads) + 63) / 64 * 64;
    size_t bytes = sums + (size_t)slopes * (size_t)a.pixels * sizeof(float);
    void *scratch;
    int status = asen_scratch_new(call->device, bytes, &scratch);
    if (status != ASEN_OK)
        return status;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int t = omp_get_thread_num(), team = omp_get_num_threads();
        double *sum = attention_sum(scratch, a.keys, t);
        float *part = attention_part(scratch, a.keys, threads, t);
        float *ds = (float *)((char *)scratch + sums) + (by_image ? t * a.pixels : 0);
        int64_t first = by_image ? fast_part(a.batch, t, team) : 0;
        int64_t last = by_image ? fast_part(a.batch, t + 1, team) : a.batch;
        int64_t begin = by_image ? 0 : fast_part(a.pixels, t, team);
        int64_t end = by_image ? a.pixels : fast_part(a.pixels, t + 1, team);
        for (int64_t b = first; b < last; b++) {
            const float *mb = m + b * a.pixels;
            int64_t xb = b * a.pixels * a.channels, kb = b * a.pixels * a.keys;
            attention_inner(&a, dv + b * a.channels, dm ? dm + b * a.pixels : NULL, x + xb, mb, dx + xb, ds, begin,
                            end);
            if (!by_image) {
#pragma omp barrier
            }
            if (by_image || t == 0)
                attention_slope(ds, mb, a.pixels, (float)attention_mean(mb, ds, a.pixels), a.scale);
            if (!by_image) {
#pragma omp barrier
            }
            memset(sum, 0, (size_t)a.keys * sizeof *sum);
            attention_weighted(sum, part, ds, k + kb, begin, end, a.keys);
            attention_keys(&a, ds, q + b * a.keys, k + kb, dz + kb, begin, end);
            if (!by_image) {
#pragma omp barrier
                if (t == 0)
                    attention_join(scratch, a.keys, team);
            }
            if (by_image || t == 0)
                attention_round(dq + b * a.keys, sum, a.keys);
            if (!by_image) {
#pragma omp barrier
            }
        }
    }
    asen_scratch_free(call->device, scratch, bytes);
    return ASEN_OK;
}
