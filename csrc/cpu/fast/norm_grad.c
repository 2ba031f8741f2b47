/* Gradient of batch norm with ReLU and residual. With g = dy where y > 0 (ReLU) or dy, and
 * xhat = (x - mean) * invstd, for every channel (Ioffe and Szegedy 2015):
 *   dbias = sum g, dweight = sum g * xhat, dresidual = g
 *   training   dx = weight * invstd * (g - dbias / M - xhat * dweight / M), M rows a group
 *   inference  dx = weight * invstd * g
 * dweight and dbias add up over groups. Bound by memory: the first pass reads dy, x and y and
 * writes dresidual, the second reads dresidual (else dy and y) and x, from the end. */
#include <omp.h>

#include "cpu/fast/norm.h"
#include "cpu/fast/stream.h"

typedef struct norm_grad_work {
    norm_shape s;
    const float *dy, *x, *y, *weight, *mean, *invstd;
    float *dx, *dweight, *dbias, *dresidual; /* dresidual may be NULL */
    bool relu, training, stream;
    float *wide_mean, *wide_a, *wide_b, *wide_c; /* (wide): dx = a g + b (x - mean) + c */
    double *total;                               /* dweight, dbias (2, C) over the groups so far */
    char *own;
    size_t own_bytes;
} norm_grad_work;

/* sum_g[w] = sum g, sum_gx[w] = sum g (x - mean) over rows of (rows, w); writes g to dresidual. */
FAST_INLINE void grad_sums(const float *restrict dy, const float *restrict x, const float *restrict y,
                           float *restrict dresidual, int64_t rows, int64_t wide, const float *restrict mean,
                           float *restrict sum_g, float *restrict sum_gx, bool relu, bool residual)
{
    memset(sum_g, 0, (size_t)wide * sizeof *sum_g);
    memset(sum_gx, 0, (size_t)wide * sizeof *sum_gx);
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2) {
        const float *dy0 = dy + r * wide, *dy1 = dy0 + wide, *x0 = x + r * wide, *x1 = x0 + wide;
        const float *y0 = relu ? y + r * wide : NULL, *y1 = relu ? y0 + wide : NULL;
        float *d0 = residual ? dresidual + r * wide : NULL, *d1 = residual ? d0 + wide : NULL;
        FAST_SIMD
        for (int64_t c = 0; c < wide; c++) {
            float g0 = dy0[c], g1 = dy1[c], m = mean[c];
            if (relu) {
                g0 = y0[c] > 0 ? g0 : 0.0f;
                g1 = y1[c] > 0 ? g1 : 0.0f;
            }
            if (residual) {
                d0[c] = g0;
                d1[c] = g1;
            }
            sum_g[c] += g0 + g1;
            sum_gx[c] += g0 * (x0[c] - m) + g1 * (x1[c] - m);
        }
    }
    for (; r < rows; r++)
        FAST_SIMD
        for (int64_t c = 0; c < wide; c++) {
            float g = dy[r * wide + c];
            if (relu)
                g = y[r * wide + c] > 0 ? g : 0.0f;
            if (residual)
                dresidual[r * wide + c] = g;
            sum_g[c] += g;
            sum_gx[c] += g * (x[r * wide + c] - mean[c]);
        }
}

/* dx = a g + b (x - mean) + c over n columns. */
FAST_INLINE void grad_apply(const float *restrict g, const float *restrict x, const float *restrict y,
                            float *restrict dx, int64_t n, const float *restrict mean, const float *restrict a,
                            const float *restrict b, const float *restrict k, bool relu)
{
    FAST_SIMD
    for (int64_t c = 0; c < n; c++) {
        float v = g[c];
        if (relu)
            v = y[c] > 0 ? v : 0.0f;
        dx[c] = a[c] * v + (b[c] * (x[c] - mean[c]) + k[c]);
    }
}

#define GRAD_SUMS(name, relu, residual)                                                                            \
    FAST_CLONES static void name(const float *dy, const float *x, const float *y, float *dresidual, int64_t rows,  \
                                 int64_t wide, const float *mean, float *sum_g, float *sum_gx)                     \
    {                                                                                                              \
        grad_sums(dy, x, y, dresidual, rows, wide, mean, sum_g, sum_gx, relu, residual);                           \
    }
GRAD_SUMS(grad_sums_plain, false, false)
GRAD_SUMS(grad_sums_relu, true, false)
GRAD_SUMS(grad_sums_residual, false, true)
GRAD_SUMS(grad_sums_relu_residual, true, true)

#define GRAD_CHUNK 1024

FAST_INLINE void grad_apply_rows(const norm_grad_work *k, const float *g, const float *x, const float *y, float *dx,
                                 int64_t rows, int64_t wide, bool stream, bool relu)
{
    float buffer[GRAD_CHUNK] __attribute__((aligned(64)));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < wide; c += GRAD_CHUNK) {
            int64_t at = r * wide + c, n = fast_min_i64(GRAD_CHUNK, wide - c);
            grad_apply(g + at, x + at, relu ? y + at : NULL, stream ? buffer : dx + at, n, k->wide_mean + c,
                       k->wide_a + c, k->wide_b + c, k->wide_c + c, relu);
            if (stream)
                fast_stream_copy(dx + at, buffer, n);
        }
}

FAST_CLONES static void grad_rows_plain(const norm_grad_work *k, const float *g, const float *x, const float *y,
                                        float *dx, int64_t rows, int64_t wide, bool stream)
{
    grad_apply_rows(k, g, x, y, dx, rows, wide, stream, false);
}

FAST_CLONES static void grad_rows_relu(const norm_grad_work *k, const float *g, const float *x, const float *y,
                                       float *dx, int64_t rows, int64_t wide, bool stream)
{
    grad_apply_rows(k, g, x, y, dx, rows, wide, stream, true);
}

typedef struct grad_own {
    double *sum_g, *sum_gx;   /* (wide) */
    float *block_g, *block_gx; /* (wide) */
} grad_own;

static size_t grad_own_bytes(const norm_shape *s)
{
    return (size_t)norm_round(s->wide) * 2 * (sizeof(double) + sizeof(float));
}

static grad_own grad_own_of(const norm_grad_work *k, int thread)
{
    int64_t w = norm_round(k->s.wide);
    grad_own o;
    o.sum_g = (double *)(k->own + (size_t)thread * k->own_bytes);
    o.sum_gx = o.sum_g + w;
    o.block_g = (float *)(o.sum_gx + w);
    o.block_gx = o.block_g + w;
    return o;
}

FAST_CLONES static void grad_add(double *restrict a, double *restrict b, const float *restrict x,
                                 const float *restrict y, int64_t n)
{
    FAST_SIMD
    for (int64_t c = 0; c < n; c++) {
        a[c] += x[c];
        b[c] += y[c];
    }
}

/* Wide rows [begin, end) of a group, then (last thread) its tail, into the thread's own sums. */
static void grad_gather(const norm_grad_work *k, int64_t group, int64_t begin, int64_t end, bool with_tail,
                        grad_own *o)
{
    const norm_shape *s = &k->s;
    memset(o->sum_g, 0, (size_t)s->wide * sizeof(double));
    memset(o->sum_gx, 0, (size_t)s->wide * sizeof(double));
    int64_t start = group * s->rows * s->channels;
    bool tail = with_tail && s->tail > 0;
    for (int64_t r = begin; r < end || tail;) {
        bool last = r >= end;
        int64_t n = last ? 1 : fast_min_i64(NORM_BLOCK, end - r), wide = last ? s->tail * s->channels : s->wide;
        int64_t at = start + (last ? s->wide_rows : r) * s->wide;
        const float *dy = k->dy + at, *x = k->x + at, *y = k->relu ? k->y + at : NULL;
        float *dres = k->dresidual ? k->dresidual + at : NULL;
        (k->relu ? (dres ? grad_sums_relu_residual : grad_sums_relu)
                 : (dres ? grad_sums_residual : grad_sums_plain))(dy, x, y, dres, n, wide, k->wide_mean, o->block_g,
                                                                  o->block_gx);
        grad_add(o->sum_g, o->sum_gx, o->block_g, o->block_gx, wide);
        if (last)
            tail = false;
        r += n;
    }
}

/* Channels [begin, end): sets the means of a group before its sums are taken. */
static void grad_begin(const norm_grad_work *k, int64_t group, int64_t begin, int64_t end)
{
    const norm_shape *s = &k->s;
    for (int64_t p = 0; p < s->pack; p++)
        for (int64_t c = begin; c < end; c++)
            k->wide_mean[p * s->channels + c] = k->mean[group * s->channels + c];
}

/* Channels [begin, end) of a group: joins the threads' sums in order, sets a, b, c. */
static void grad_finish(const norm_grad_work *k, int64_t group, int threads, int64_t begin, int64_t end)
{
    const norm_shape *s = &k->s;
    for (int64_t c = begin; c < end; c++) {
        double sum_g = 0, sum_gx = 0;
        for (int t = 0; t < threads; t++) {
            grad_own o = grad_own_of(k, t);
            for (int64_t p = 0; p < s->pack; p++) {
                sum_g += o.sum_g[p * s->channels + c];
                sum_gx += o.sum_gx[p * s->channels + c];
            }
        }
        double invstd = k->invstd[group * s->channels + c], a = k->weight[c] * invstd;
        k->total[c] += sum_gx * invstd;
        k->total[s->channels + c] += sum_g;
        double b = k->training ? -a * invstd * invstd * sum_gx / (double)s->rows : 0.0;
        double constant = k->training ? -a * sum_g / (double)s->rows : 0.0;
        for (int64_t p = 0; p < s->pack; p++) {
            k->wide_a[p * s->channels + c] = (float)a;
            k->wide_b[p * s->channels + c] = (float)b;
            k->wide_c[p * s->channels + c] = (float)constant;
        }
    }
}

static void grad_write(const norm_grad_work *k, int64_t group, int64_t begin, int64_t end, bool with_tail)
{
    const norm_shape *s = &k->s;
    const float *g = k->dresidual ? k->dresidual : k->dy;
    bool relu = k->relu && k->dresidual == NULL;
    int64_t start = group * s->rows * s->channels;
    if (with_tail && s->tail > 0) {
        int64_t at = start + s->wide_rows * s->wide;
        (relu ? grad_rows_relu : grad_rows_plain)(k, g + at, k->x + at, relu ? k->y + at : NULL, k->dx + at, 1,
                                                  s->tail * s->channels, false);
    }
    for (int64_t stop = end; stop > begin; stop -= NORM_BLOCK) {
        int64_t first = fast_max_i64(begin, stop - NORM_BLOCK), at = start + first * s->wide;
        (relu ? grad_rows_relu : grad_rows_plain)(k, g + at, k->x + at, relu ? k->y + at : NULL, k->dx + at,
                                                  stop - first, s->wide, k->stream);
    }
    if (k->stream)
        fast_stream_fence();
}

static void grad_run(const norm_grad_work *k, int threads)
{
    const norm_shape *s = &k->s;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int t = omp_get_thread_num(), team = omp_get_num_threads();
        int64_t begin = fast_part(s->wide_rows, t, team), end = fast_part(s->wide_rows, t + 1, team);
        int64_t first = fast_part(s->channels, t, team), last = fast_part(s->channels, t + 1, team);
        grad_own own = grad_own_of(k, t);
        for (int64_t g = 0; g < s->groups; g++) {
            grad_begin(k, g, first, last);
#pragma omp barrier
            grad_gather(k, g, begin, end, t == team - 1, &own);
#pragma omp barrier
            grad_finish(k, g, team, first, last);
#pragma omp barrier
            grad_write(k, g, begin, end, t == team - 1);
#pragma omp barrier
        }
        for (int64_t c = first; c < last; c++) {
            k->dweight[c] = (float)k->total[c];
            k->dbias[c] = (float)k->total[s->channels + c];
        }
    }
}

int fast_batch_norm_grad(const asen_call *call)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    const asen_tensor *x = call->in[1];
    norm_grad_work k = {
        .dy = fast_f32(call->in[0]),
        .x = fast_f32(x),
        .y = fast_f32(call->in[2]),
        .weight = fast_f32(call->in[3]),
        .mean = fast_f32(call->in[4]),
        .invstd = fast_f32(call->in[5]),
        .dx = fast_f32(call->out[0]),
        .dweight = fast_f32(call->out[1]),
        .dbias = fast_f32(call->out[2]),
        .relu = call->attrs->batch_norm_grad.relu != 0,
        .training = call->attrs->batch_norm_grad.training != 0,
    };
    if (call->attrs->batch_norm_grad.residual && call->n_out > 3)
        k.dresidual = fast_f32(call->out[3]);
    if (!norm_shape_of(x, k.training ? call->attrs->batch_norm_grad.groups : 1, &k.s))
        return ASEN_DECLINED;
    int64_t count = asen_tensor_count(x), wide = norm_round(k.s.wide);
    int threads = fast_threads(count, k.s.wide_rows);
    /* Three streams read beside one written past the caches were slower than ordinary stores. */
    k.stream = (k.dresidual || !k.relu) && k.s.wide % 16 == 0 && count * (int64_t)sizeof(float) >= FAST_STREAM_BYTES;
    k.own_bytes = grad_own_bytes(&k.s);
    size_t totals = (size_t)norm_round(2 * k.s.channels) * sizeof(double);
    size_t bytes = totals + (size_t)(4 * wide) * sizeof(float) + (size_t)threads * k.own_bytes;
    void *scratch;
    int status = asen_scratch_new(call->device, bytes, &scratch);
    if (status != ASEN_OK)
        return status;
    k.total = scratch;
    memset(k.total, 0, totals);
    k.wide_mean = (float *)((char *)scratch + totals);
    k.wide_a = k.wide_mean + wide;
    k.wide_b = k.wide_a + wide;
    k.wide_c = k.wide_b + wide;
    k.own = (char *)(k.wide_c + wide);
    grad_run(&k, threads);
    asen_scratch_free(call->device, scratch, bytes);
    return ASEN_OK;
}
