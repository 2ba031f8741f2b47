/* Sum, mean and maximum of dense float32 tensors over any dims, and the maximum's gradient.
 *
 * x's dims in memory order, merged, become two loop nests: over the kept dims (operand 0 the
 * output's element, operand 1 x's) and over the reduced ones. If the innermost dim of memory is
 * reduced, each output is made of contiguous runs; if it is kept, runs of C outputs are made of
 * rows of C. Float sums run over a short block, then go into doubles. Where there are fewer
 * outputs than threads the reduced dims are divided instead, and the parts are joined in order. */
#include <omp.h>

#include "cpu/fast/rows.h"

#define REDUCE_ROWS 32 /* rows that are added in float before they go into doubles */
#define REDUCE_STRIP 256 /* outputs of a row at a time */

typedef enum reduce_kind { REDUCE_SUM, REDUCE_MAX } reduce_kind;

typedef struct reduce_work {
    fast_nest kept, reduced; /* operand 0: the output (kept only), operand 1: x; without the innermost run */
    int64_t outputs, inputs; /* positions of kept and of reduced */
    int64_t run;             /* the innermost dim of memory */
    bool run_reduced;
    int64_t run_stride; /* of the output, where the run is kept */
    int64_t per_output;
    reduce_kind kind;
    double scale;
    const float *x;
    float *y;
} reduce_work;

FAST_CLONES static double reduce_run_sum(const float *x, int64_t n) { return row_sum(x, n); }
FAST_CLONES static float reduce_run_max(const float *x, int64_t n) { return row_max(x, n); }

FAST_CLONES static void reduce_add(float *restrict y, const float *restrict x, int64_t n)
{
    FAST_SIMD
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}

FAST_CLONES static void reduce_larger(float *restrict y, const float *restrict x, int64_t n)
{
    FAST_SIMD
    for (int64_t i = 0; i < n; i++)
        y[i] = ((x[i] > y[i]) | (x[i] != x[i])) ? x[i] : y[i];
}

FAST_CLONES static void reduce_flush(double *restrict sum, float *restrict part, int64_t n)
{
    FAST_SIMD
    for (int64_t i = 0; i < n; i++) {
        sum[i] += part[i];
        part[i] = 0;
    }
}

/* The dims of x into the two nests; strides of the output through what keepdim leaves of it. */
static void reduce_plan(const asen_tensor *x, const asen_tensor *y, const asen_attrs_reduce *attrs, reduce_work *k)
{
    bool is_reduced[ASEN_MAX_DIMS];
    int64_t x_stride[ASEN_MAX_DIMS], y_dense[ASEN_MAX_DIMS], y_stride[ASEN_MAX_DIMS];
    for (int d = 0; d < x->ndim; d++)
        is_reduced[d] = attrs->dims.count == 0;
    for (int64_t j = 0; j < attrs->dims.count; j++)
        is_reduced[attrs->dims.item[j]] = true;
    asen_dense_strides(x->ndim, x->shape, x_stride);
    asen_dense_strides(y->ndim, y->shape, y_dense);
    int at = 0;
    k->per_output = 1;
    for (int d = 0; d < x->ndim; d++) {
        y_stride[d] = is_reduced[d] ? 0 : y_dense[at];
        at += !is_reduced[d] || attrs->keepdim;
        k->per_output *= is_reduced[d] ? x->shape[d] : 1;
    }

    int order[ASEN_MAX_DIMS], last = -1;
    fast_memory_order(x->ndim, order);
    k->kept.ndim = k->reduced.ndim = 0;
    for (int i = 0; i < x->ndim; i++) {
        int d = order[i];
        if (x->shape[d] != 1)
            last = d;
        fast_nest_add(is_reduced[d] ? &k->reduced : &k->kept, 2, x->shape[d], (int64_t[]){y_stride[d], x_stride[d]});
    }
    k->run = 1;
    k->run_reduced = last < 0 || is_reduced[last];
    fast_nest *owner = k->run_reduced ? &k->reduced : &k->kept;
    if (owner->ndim > 0) {
        k->run = owner->size[--owner->ndim];
        k->run_stride = owner->stride[0][owner->ndim];
    }
    k->outputs = k->inputs = 1;
    for (int d = 0; d < k->kept.ndim; d++)
        k->outputs *= k->kept.size[d];
    for (int d = 0; d < k->reduced.ndim; d++)
        k->inputs *= k->reduced.size[d];
}

/* The part [begin, end) of the reduced positions of one output, of which x starts at `x`. */
static double reduce_one(const reduce_work *k, const float *x, int64_t begin, int64_t end)
{
    int64_t position[ASEN_MAX_DIMS], at[FAST_MAX_OPERANDS];
    double result = k->kind == REDUCE_SUM ? 0 : -INFINITY;
    fast_nest_seek(&k->reduced, 2, k->reduced.ndim, begin, position, at);
    for (int64_t i = begin; i < end; i++) {
        if (k->kind == REDUCE_SUM) {
            result += reduce_run_sum(x + at[1], k->run);
        } else {
            float v = reduce_run_max(x + at[1], k->run);
            result = v > result || v != v ? v : result;
        }
        fast_nest_next(&k->reduced, 2, k->reduced.ndim, position, at);
    }
    return result;
}

/* The same for n outputs side by side, into result (n). */
static void reduce_strip(const reduce_work *k, const float *x, int64_t n, int64_t begin, int64_t end, double *result)
{
    int64_t position[ASEN_MAX_DIMS], at[FAST_MAX_OPERANDS];
    float part[REDUCE_STRIP];
    for (int64_t i = 0; i < n; i++) {
        part[i] = k->kind == REDUCE_SUM ? 0.0f : -INFINITY;
        result[i] = 0;
    }
    fast_nest_seek(&k->reduced, 2, k->reduced.ndim, begin, position, at);
    for (int64_t i = begin; i < end; i++) {
        if (k->kind == REDUCE_MAX)
            reduce_larger(part, x + at[1], n);
        else
            reduce_add(part, x + at[1], n);
        if (k->kind == REDUCE_SUM && (i - begin) % REDUCE_ROWS == REDUCE_ROWS - 1)
            reduce_flush(result, part, n);
        fast_nest_next(&k->reduced, 2, k->reduced.ndim, position, at);
    }
    for (int64_t i = 0; i < n; i++)
        result[i] = k->kind == REDUCE_SUM ? result[i] + part[i] : part[i];
}

/* Piece `piece` of the outputs (one output, or a strip of them), part [begin, end) of the reduced
 * positions: results into result, the outputs they belong to are y[*first + i * stride]. */
static int64_t reduce_piece(const reduce_work *k, int64_t piece, int64_t begin, int64_t end, double *result,
                            int64_t *first)
{
    int64_t position[ASEN_MAX_DIMS], at[FAST_MAX_OPERANDS];
    int64_t strips = k->run_reduced ? 1 : (k->run + REDUCE_STRIP - 1) / REDUCE_STRIP;
    fast_nest_seek(&k->kept, 2, k->kept.ndim, piece / strips, position, at);
    *first = at[0];
    if (k->run_reduced) {
        result[0] = reduce_one(k, k->x + at[1], begin, end);
        return 1;
    }
    int64_t column = piece % strips * REDUCE_STRIP, n = fast_min_i64(REDUCE_STRIP, k->run - column);
    *first += column * k->run_stride;
    reduce_strip(k, k->x + at[1] + column, n, begin, end, result);
    return n;
}

static void reduce_put(const reduce_work *k, int64_t first, int64_t n, const double *result)
{
    for (int64_t i = 0; i < n; i++)
        k->y[first + i * k->run_stride] = (float)(result[i] * k->scale);
}

/* Too few outputs for the threads: each takes a part of the reduced positions of every piece, or
 * of every run where there are too few positions. */
static int reduce_divided(const reduce_work *k, int64_t pieces, int threads, asen_device *device)
{
    void *scratch;
    size_t bytes = (size_t)(pieces * threads * REDUCE_STRIP) * sizeof(double);
    int status = asen_scratch_new(device, bytes, &scratch);
    if (status != ASEN_OK)
        return status;
    double *results = scratch;
    int64_t ran = 1; /* threads that there were */
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int64_t t = omp_get_thread_num(), team = omp_get_num_threads(), first;
        if (t == 0)
            ran = team;
        reduce_work own = *k;
        int64_t begin = fast_part(k->inputs, t, team), end = fast_part(k->inputs, t + 1, team);
        if (k->run_reduced && k->inputs < threads) {
            own.x += fast_part(k->run, t, team);
            own.run = fast_part(k->run, t + 1, team) - fast_part(k->run, t, team);
            begin = 0;
            end = k->inputs;
        }
        for (int64_t p = 0; p < pieces; p++)
            reduce_piece(&own, p, begin, end, results + (p * threads + t) * REDUCE_STRIP, &first);
    }
    for (int64_t p = 0; p < pieces; p++) {
        double *total = results + p * threads * REDUCE_STRIP;
        int64_t first, n = reduce_piece(k, p, 0, 0, (double[REDUCE_STRIP]){0}, &first);
        for (int64_t t = 1; t < ran; t++)
            for (int64_t i = 0; i < n; i++) {
                double v = total[t * REDUCE_STRIP + i];
                total[i] = k->kind == REDUCE_SUM ? total[i] + v : v > total[i] || v != v ? v : total[i];
            }
        reduce_put(k, first, n, total);
    }
    asen_scratch_free(device, scratch, bytes);
    return ASEN_OK;
}

static int reduce_run(const asen_call *call, const asen_attrs_reduce *attrs, reduce_kind kind, bool mean)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    const asen_tensor *x = call->in[0], *y = call->out[0];
    reduce_work k = {.kind = kind, .x = fast_f32(x), .y = fast_f32(y)};
    int64_t count = asen_tensor_count(x);
    if (count == 0)
        return ASEN_DECLINED;
    reduce_plan(x, y, attrs, &k);
    k.scale = mean ? 1.0 / (double)k.per_output : 1.0;
    int64_t strips = k.run_reduced ? 1 : (k.run + REDUCE_STRIP - 1) / REDUCE_STRIP, pieces = k.outputs * strips;
    int threads = fast_threads(count, count);
    if (threads > 1 && pieces < threads)
        return reduce_divided(&k, pieces, threads, call->device);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t p = 0; p < pieces; p++) {
        double result[REDUCE_STRIP];
        int64_t first, n = reduce_piece(&k, p, 0, k.inputs, result, &first);
        reduce_put(&k, first, n, result);
    }
    return ASEN_OK;
}

/* ---- gradient of the maximum: dx = dy / (number of elements equal to y) where x == y ---- */

/* NaN is the maximum of what holds one. */
FAST_INLINE bool is_max(float x, float y) { return (x == y) | ((x != x) & (y != y)); }

FAST_CLONES static float equal_run(const float *x, int64_t n, float y)
{
    float count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t i = 0; i < n; i++)
        count += is_max(x[i], y) ? 1.0f : 0.0f;
    return count;
}

FAST_CLONES static void max_grad_run(float *restrict dx, const float *restrict x, int64_t n, float y, float share)
{
    FAST_SIMD
    for (int64_t i = 0; i < n; i++)
        dx[i] = is_max(x[i], y) ? share : 0.0f;
}

FAST_CLONES static void equal_strip(float *restrict count, const float *restrict x, const float *restrict y, int64_t n)
{
    FAST_SIMD
    for (int64_t i = 0; i < n; i++)
        count[i] += is_max(x[i], y[i]) ? 1.0f : 0.0f;
}

FAST_CLONES static void max_grad_strip(float *restrict dx, const float *restrict x, const float *restrict y,
                                     const float *restrict share, int64_t n)
{
    FAST_SIMD
    for (int64_t i = 0; i < n; i++)
        dx[i] = is_max(x[i], y[i]) ? share[i] : 0.0f;
}

/* The outputs of a piece: k->y is the maximum here; columns [column, column + n) of the run. */
static void max_grad_piece(const reduce_work *k, const float *dy, float *dx, int64_t piece)
{
    int64_t position[ASEN_MAX_DIMS], kept[FAST_MAX_OPERANDS], at[FAST_MAX_OPERANDS];
    int64_t strips = k->run_reduced ? 1 : (k->run + REDUCE_STRIP - 1) / REDUCE_STRIP;
    int64_t column = piece % strips * REDUCE_STRIP, n = k->run_reduced ? 1 : fast_min_i64(REDUCE_STRIP, k->run - column);
    float largest[REDUCE_STRIP], share[REDUCE_STRIP];
    fast_nest_seek(&k->kept, 2, k->kept.ndim, piece / strips, position, kept);
    for (int64_t i = 0; i < n; i++) {
        largest[i] = k->y[kept[0] + (column + i) * k->run_stride];
        share[i] = 0;
    }
    const float *x = k->x + kept[1] + column;
    dx += kept[1] + column;
    fast_nest_seek(&k->reduced, 2, k->reduced.ndim, 0, position, at);
    for (int64_t i = 0; i < k->inputs; i++) {
        if (k->run_reduced)
            share[0] += equal_run(x + at[1], k->run, largest[0]);
        else
            equal_strip(share, x + at[1], largest, n);
        fast_nest_next(&k->reduced, 2, k->reduced.ndim, position, at);
    }
    for (int64_t i = 0; i < n; i++)
        share[i] = dy[kept[0] + (column + i) * k->run_stride] / share[i];
    fast_nest_seek(&k->reduced, 2, k->reduced.ndim, 0, position, at);
    for (int64_t i = 0; i < k->inputs; i++) {
        if (k->run_reduced)
            max_grad_run(dx + at[1], x + at[1], k->run, largest[0], share[0]);
        else
            max_grad_strip(dx + at[1], x + at[1], largest, share, n);
        fast_nest_next(&k->reduced, 2, k->reduced.ndim, position, at);
    }
}

int fast_max_grad(const asen_call *call)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    reduce_work k = {.kind = REDUCE_MAX, .x = fast_f32(call->in[1]), .y = fast_f32(call->in[2])};
    int64_t count = asen_tensor_count(call->in[1]);
    if (count == 0)
        return ASEN_OK;
    reduce_plan(call->in[1], call->in[2], &call->attrs->max_grad, &k);
    int64_t strips = k.run_reduced ? 1 : (k.run + REDUCE_STRIP - 1) / REDUCE_STRIP, pieces = k.outputs * strips;
    int threads = fast_threads(count, pieces);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t p = 0; p < pieces; p++)
        max_grad_piece(&k, fast_f32(call->in[0]), fast_f32(call->out[0]), p);
    return ASEN_OK;
}

int fast_sum(const asen_call *call) { return reduce_run(call, &call->attrs->sum, REDUCE_SUM, false); }
int fast_mean(const asen_call *call) { return reduce_run(call, &call->attrs->mean, REDUCE_SUM, true); }
int fast_max(const asen_call *call) { return reduce_run(call, &call->attrs->max, REDUCE_MAX, false); }
