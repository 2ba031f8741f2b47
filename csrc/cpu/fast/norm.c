/* Batch norm forward, with residual and ReLU: bound by memory, so x is read twice at most (once
 * for the statistics, once to normalise, the second time from the end: what the caches still
 * hold comes first) and y is written past the caches where it is larger than them.
 *
 * Statistics: each thread sums d = x - shift and d^2 over blocks of NORM_BLOCK rows in float,
 * where shift is its running mean, and merges blocks into (count, mean, M2) in double (Chan,
 * Golub and LeVeque 1979). So neither a large mean nor many rows cost precision. */
#include <omp.h>

#include "cpu/fast/norm.h"
#include "cpu/fast/stream.h"

/* shift[w] = mean over rows of x (rows, w). */
FAST_CLONES static void norm_row_mean(const float *restrict x, int64_t rows, int64_t wide, float *restrict shift)
{
    float scale = 1.0f / (float)rows;
    memset(shift, 0, (size_t)wide * sizeof *shift);
    for (int64_t r = 0; r < rows; r++, x += wide)
        FAST_SIMD
        for (int64_t c = 0; c < wide; c++)
            shift[c] += x[c] * scale;
}

/* d1[w] = sum of x - shift, d2[w] = sum of (x - shift)^2 over rows of x (rows, w). */
FAST_CLONES static void norm_row_moments(const float *restrict x, int64_t rows, int64_t wide,
                                         const float *restrict shift, float *restrict d1, float *restrict d2)
{
    memset(d1, 0, (size_t)wide * sizeof *d1);
    memset(d2, 0, (size_t)wide * sizeof *d2);
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4, x += 4 * wide) {
        const float *x1 = x + wide, *x2 = x + 2 * wide, *x3 = x + 3 * wide;
        FAST_SIMD
        for (int64_t c = 0; c < wide; c++) {
            float s = shift[c], a0 = x[c] - s, a1 = x1[c] - s, a2 = x2[c] - s, a3 = x3[c] - s;
            d1[c] += (a0 + a1) + (a2 + a3);
            d2[c] += (a0 * a0 + a1 * a1) + (a2 * a2 + a3 * a3);
        }
    }
    for (; r < rows; r++, x += wide)
        FAST_SIMD
        for (int64_t c = 0; c < wide; c++) {
            float a = x[c] - shift[c];
            d1[c] += a;
            d2[c] += a * a;
        }
}

/* Merges a block of n rows with sums d1, d2 about shift into (count, mean, m2); shift becomes the mean. */
FAST_CLONES static void norm_row_merge(double count, double n, int64_t wide, float *restrict shift,
                                       const float *restrict d1, const float *restrict d2, double *restrict mean,
                                       double *restrict m2)
{
    double share = n / (count + n), weight = count * share, inverse = 1.0 / n;
    FAST_SIMD
    for (int64_t c = 0; c < wide; c++) {
        double step = d1[c] * inverse;
        double delta = shift[c] + step - mean[c];
        double squares = d2[c] - d1[c] * step;
        m2[c] += (squares > 0 ? squares : 0) + delta * delta * weight;
        mean[c] += delta * share;
        shift[c] = (float)mean[c];
    }
}

/* y[n] = relu?((x - mean) * scale + bias + residual?), one wide row. */
FAST_INLINE void norm_apply(const float *restrict x, const float *restrict residual, float *restrict y, int64_t n,
                            const float *restrict mean, const float *restrict scale, const float *restrict bias,
                            bool has_residual, bool relu)
{
    FAST_SIMD
    for (int64_t c = 0; c < n; c++) {
        float v = (x[c] - mean[c]) * scale[c] + bias[c];
        if (has_residual)
            v += residual[c];
        y[c] = relu && v <= 0 ? 0.0f : v;
    }
}

#define NORM_CHUNK 1024

/* Rows [0, rows) of (rows, wide); columns in chunks, streamed or not. */
FAST_INLINE void norm_apply_rows(const float *x, const float *residual, float *y, int64_t rows, int64_t wide,
                                 const float *mean, const float *scale, const float *bias, bool stream,
                                 bool has_residual, bool relu)
{
    if (!stream) {
        for (int64_t r = 0; r < rows; r++) {
            int64_t at = r * wide;
            norm_apply(x + at, has_residual ? residual + at : NULL, y + at, wide, mean, scale, bias, has_residual, relu);
        }
        return;
    }
    float buffer[NORM_CHUNK] __attribute__((aligned(64)));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < wide; c += NORM_CHUNK) {
            int64_t at = r * wide + c, n = fast_min_i64(NORM_CHUNK, wide - c);
            norm_apply(x + at, has_residual ? residual + at : NULL, buffer, n, mean + c, scale + c, bias + c,
                       has_residual, relu);
            fast_stream_copy(y + at, buffer, n);
        }
}

typedef void (*norm_rows_fn)(const float *x, const float *residual, float *y, int64_t rows, int64_t wide,
                             const float *mean, const float *scale, const float *bias, bool stream);
#define NORM_ROWS(name, has_residual, relu)                                                                     \
    FAST_CLONES static void name(const float *x, const float *residual, float *y, int64_t rows, int64_t wide,   \
                                 const float *mean, const float *scale, const float *bias, bool stream)         \
    {                                                                                                           \
        norm_apply_rows(x, residual, y, rows, wide, mean, scale, bias, stream, has_residual, relu);             \
    }
NORM_ROWS(norm_rows_plain, false, false)
NORM_ROWS(norm_rows_relu, false, true)
NORM_ROWS(norm_rows_residual, true, false)
NORM_ROWS(norm_rows_residual_relu, true, true)

typedef struct norm_work {
    norm_shape s;
    const float *x, *residual, *weight, *bias;
    float *y, *mean_out, *invstd_out, *running_mean, *running_var;
    double momentum, eps;
    bool stream;
    norm_rows_fn rows_fn;
    float *wide_mean, *wide_scale, *wide_bias; /* (wide) of the group at hand */
    char *own;                                 /* scratch of thread 0, the next `own_bytes` further */
    size_t own_bytes;
} norm_work;

typedef struct norm_own {
    double *count, *mean, *m2; /* (1), (wide), (wide) */
    float *shift, *d1, *d2;    /* (wide) */
} norm_own;

static size_t norm_own_bytes(const norm_shape *s)
{
    int64_t w = norm_round(s->wide);
    return (size_t)(64 + 2 * w * (int64_t)sizeof(double) + 3 * w * (int64_t)sizeof(float));
}

static norm_own norm_own_of(const norm_work *k, int thread)
{
    int64_t w = norm_round(k->s.wide);
    char *base = k->own + (size_t)thread * k->own_bytes;
    norm_own o;
    o.count = (double *)base;
    o.mean = (double *)(base + 64);
    o.m2 = o.mean + w;
    o.shift = (float *)(o.m2 + w);
    o.d1 = o.shift + w;
    o.d2 = o.d1 + w;
    return o;
}

/* Statistics of wide rows [begin, end) of x into the thread's own (count, mean, m2). */
static void norm_gather(const norm_shape *s, const float *x, int64_t begin, int64_t end, norm_own *o)
{
    *o->count = 0;
    memset(o->mean, 0, (size_t)s->wide * sizeof(double));
    memset(o->m2, 0, (size_t)s->wide * sizeof(double));
    for (int64_t r = begin; r < end; r += NORM_BLOCK) {
        int64_t n = fast_min_i64(NORM_BLOCK, end - r);
        const float *block = x + r * s->wide;
        if (r == begin)
            norm_row_mean(block, n, s->wide, o->shift);
        norm_row_moments(block, n, s->wide, o->shift, o->d1, o->d2);
        norm_row_merge(*o->count, (double)n, s->wide, o->shift, o->d1, o->d2, o->mean, o->m2);
        *o->count += (double)n;
    }
}

static void norm_merge_one(double *count, double *mean, double *m2, double n, double other_mean, double other_m2)
{
    if (n == 0)
        return;
    double delta = other_mean - *mean, total = *count + n;
    *mean += delta * n / total;
    *m2 += other_m2 + delta * delta * *count * n / total;
    *count = total;
}

/* A thread's statistics of channel c: its columns of a wide row, which have equal counts. */
static void norm_fold(const norm_shape *s, const norm_own *o, int64_t c, double *rows, double *mean, double *m2)
{
    double sum = 0, squares = 0;
    for (int64_t p = 0; p < s->pack; p++)
        sum += o->mean[p * s->channels + c];
    *mean = sum / (double)s->pack;
    *m2 = 0;
    for (int64_t p = 0; p < s->pack; p++) {
        double d = o->mean[p * s->channels + c] - *mean;
        squares += d * d;
        *m2 += o->m2[p * s->channels + c];
    }
    *m2 += *o->count * squares;
    *rows = *o->count * (double)s->pack;
}

static void norm_set_channel(const norm_work *k, int64_t c, double mean, double invstd)
{
    float scale = (float)(k->weight[c] * invstd);
    for (int64_t p = 0; p < k->s.pack; p++) {
        k->wide_mean[p * k->s.channels + c] = (float)mean;
        k->wide_scale[p * k->s.channels + c] = scale;
        k->wide_bias[p * k->s.channels + c] = k->bias[c];
    }
}

/* Channels [begin, end) of a group: joins the threads' statistics in order, moves the running ones. */
static void norm_finish(const norm_work *k, int64_t group, int threads, int64_t begin, int64_t end)
{
    const norm_shape *s = &k->s;
    const float *tail = k->x + (group * s->rows + s->wide_rows * s->pack) * s->channels;
    for (int64_t c = begin; c < end; c++) {
        double count = 0, mean = 0, m2 = 0;
        for (int t = 0; t < threads; t++) {
            norm_own o = norm_own_of(k, t);
            double rows, own_mean, own_m2;
            norm_fold(s, &o, c, &rows, &own_mean, &own_m2);
            norm_merge_one(&count, &mean, &m2, rows, own_mean, own_m2);
        }
        for (int64_t r = 0; r < s->tail; r++)
            norm_merge_one(&count, &mean, &m2, 1, tail[r * s->channels + c], 0);
        double invstd = 1.0 / sqrt(m2 / count + k->eps);
        k->mean_out[group * s->channels + c] = (float)mean;
        k->invstd_out[group * s->channels + c] = (float)invstd;
        norm_set_channel(k, c, mean, invstd);
        double unbiased = count > 1 ? m2 / (count - 1) : m2 / count;
        k->running_mean[c] = (float)((1 - k->momentum) * k->running_mean[c] + k->momentum * mean);
        k->running_var[c] = (float)((1 - k->momentum) * k->running_var[c] + k->momentum * unbiased);
    }
}

/* Wide rows [begin, end) of a group and, for the last thread, its tail. */
static void norm_write(const norm_work *k, int64_t group, int64_t begin, int64_t end, bool with_tail)
{
    const norm_shape *s = &k->s;
    int64_t start = group * s->rows * s->channels;
    if (with_tail && s->tail > 0) {
        int64_t at = start + s->wide_rows * s->wide;
        k->rows_fn(k->x + at, k->residual ? k->residual + at : NULL, k->y + at, 1, s->tail * s->channels, k->wide_mean,
                   k->wide_scale, k->wide_bias, false);
    }
    for (int64_t stop = end; stop > begin; stop -= NORM_BLOCK) {
        int64_t first = fast_max_i64(begin, stop - NORM_BLOCK), at = start + first * s->wide;
        k->rows_fn(k->x + at, k->residual ? k->residual + at : NULL, k->y + at, stop - first, s->wide, k->wide_mean,
                   k->wide_scale, k->wide_bias, k->stream);
    }
    if (k->stream)
        fast_stream_fence();
}

static void norm_train(const norm_work *k, int threads)
{
    const norm_shape *s = &k->s;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int t = omp_get_thread_num(), team = omp_get_num_threads();
        int64_t begin = fast_part(s->wide_rows, t, team), end = fast_part(s->wide_rows, t + 1, team);
        norm_own own = norm_own_of(k, t);
        for (int64_t g = 0; g < s->groups; g++) {
            norm_gather(s, k->x + g * s->rows * s->channels, begin, end, &own);
#pragma omp barrier
            norm_finish(k, g, team, fast_part(s->channels, t, team), fast_part(s->channels, t + 1, team));
#pragma omp barrier
            norm_write(k, g, begin, end, t == team - 1);
        }
    }
}

static void norm_infer(const norm_work *k, int threads)
{
    const norm_shape *s = &k->s;
    for (int64_t c = 0; c < s->channels; c++) {
        double mean = k->running_mean[c], invstd = 1.0 / sqrt(k->running_var[c] + k->eps);
        k->mean_out[c] = (float)mean;
        k->invstd_out[c] = (float)invstd;
        norm_set_channel(k, c, mean, invstd);
    }
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int t = omp_get_thread_num(), team = omp_get_num_threads();
        norm_write(k, 0, fast_part(s->wide_rows, t, team), fast_part(s->wide_rows, t + 1, team), t == team - 1);
    }
}

int fast_batch_norm(const asen_call *call)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    const asen_tensor *x = call->in[0];
    bool training = call->attrs->batch_norm.training != 0, relu = call->attrs->batch_norm.relu != 0;
    norm_work k = {
        .x = fast_f32(x),
        .weight = fast_f32(call->in[1]),
        .bias = fast_f32(call->in[2]),
        .running_mean = fast_f32(call->in[3]),
        .running_var = fast_f32(call->in[4]),
        .residual = call->n_in > 5 ? fast_f32(call->in[5]) : NULL,
        .y = fast_f32(call->out[0]),
        .mean_out = fast_f32(call->out[1]),
        .invstd_out = fast_f32(call->out[2]),
        .momentum = call->attrs->batch_norm.momentum,
        .eps = call->attrs->batch_norm.eps,
    };
    if (!norm_shape_of(x, training ? call->attrs->batch_norm.groups : 1, &k.s))
        return ASEN_DECLINED;
    int64_t count = asen_tensor_count(x), wide = norm_round(k.s.wide);
    int threads = fast_threads(count, k.s.wide_rows);
    k.stream = k.s.wide % 16 == 0 && count * (int64_t)sizeof(float) >= FAST_STREAM_BYTES;
    k.rows_fn = k.residual ? (relu ? norm_rows_residual_relu : norm_rows_residual)
                           : (relu ? norm_rows_relu : norm_rows_plain);
    k.own_bytes = training ? norm_own_bytes(&k.s) : 0;
    size_t bytes = (size_t)(3 * wide) * sizeof(float) + (size_t)threads * k.own_bytes;
    void *scratch;
    int status = asen_scratch_new(call->device, bytes, &scratch);
    if (status != ASEN_OK)
        return status;
    k.wide_mean = scratch;
    k.wide_scale = k.wide_mean + wide;
    k.wide_bias = k.wide_scale + wide;
    k.own = (char *)(k.wide_bias + wide);
    if (training)
        norm_train(&k, threads);
    else
        norm_infer(&k, threads);
    asen_scratch_free(call->device, scratch, bytes);
    return ASEN_OK;
}
