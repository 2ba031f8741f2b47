/* Row by row on (N, D), float32: cosine similarity, normalisation, the additive angular margin,
 * and their gradients. A norm that was stored as eps was clamped, and counts as a constant. */
#include "cpu/fast/rows.h"

#define PI 3.14159265358979323846

FAST_CLONES static double rows_dot(const float *a, const float *b, int64_t n) { return row_dot(a, b, n); }
FAST_CLONES static void rows_scale(float *y, const float *x, int64_t n, float scale) { row_scale(y, x, n, scale); }

/* y[n] = p a + r b */
FAST_CLONES static void rows_mix(float *restrict y, const float *a, const float *b, int64_t n, float p, float r)
{
    FAST_SIMD
    for (int64_t i = 0; i < n; i++)
        y[i] = p * a[i] + r * b[i];
}

/* The same in double, for rows whose products leave the range of float. */
FAST_CLONES static double rows_dot_wide(const float *a, const float *b, int64_t n)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

FAST_CLONES static void rows_mix_wide(float *restrict y, const float *a, const float *b, int64_t n, double p, double r)
{
    FAST_SIMD
    for (int64_t i = 0; i < n; i++)
        y[i] = (float)(p * a[i] + r * b[i]);
}

/* Whether sums of squares of this size, and what is divided by them, keep float's precision in float. */
static bool is_moderate(double squares) { return squares > 1e-24 && squares < 1e24; }

static double rows_norm(const float *x, int64_t n, double eps)
{
    double squares = rows_dot(x, x, n);
    double norm = sqrt(is_moderate(squares) ? squares : rows_dot_wide(x, x, n));
    return norm > eps || isnan(norm) ? norm : eps;
}

/* y[n] = p a + r b; moderate: p and r times elements of a and b stay in float's range. */
static void rows_combine(float *y, const float *a, const float *b, int64_t n, double p, double r, bool moderate)
{
    if (moderate)
        rows_mix(y, a, b, n, (float)p, (float)r);
    else
        rows_mix_wide(y, a, b, n, p, r);
}

int fast_cosine_similarity(const asen_call *call)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    int64_t rows = call->in[0]->shape[0], width = call->in[0]->shape[1];
    double eps = call->attrs->cosine_similarity.eps;
    const float *a = fast_f32(call->in[0]), *b = fast_f32(call->in[1]);
    float *y = fast_f32(call->out[0]), *norm_a = fast_f32(call->out[1]), *norm_b = fast_f32(call->out[2]);
    int threads = fast_threads(rows * width, rows);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t n = 0; n < rows; n++) {
        const float *an = a + n * width, *bn = b + n * width;
        double na = rows_norm(an, width, eps), nb = rows_norm(bn, width, eps);
        bool moderate = is_moderate(na * na) && is_moderate(nb * nb);
        y[n] = (float)((moderate ? rows_dot(an, bn, width) : rows_dot_wide(an, bn, width)) / (na * nb));
        norm_a[n] = (float)na;
        norm_b[n] = (float)nb;
    }
    return ASEN_OK;
}

/* da = dy (b / (|a| |b|) - y a / |a|^2), the second term only where |a| was not clamped */
int fast_cosine_similarity_grad(const asen_call *call)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    int64_t rows = call->in[1]->shape[0], width = call->in[1]->shape[1];
    float eps = (float)call->attrs->cosine_similarity_grad.eps;
    const float *dy = fast_f32(call->in[0]), *a = fast_f32(call->in[1]), *b = fast_f32(call->in[2]);
    const float *y = fast_f32(call->in[3]), *norm_a = fast_f32(call->in[4]), *norm_b = fast_f32(call->in[5]);
    float *da = fast_f32(call->out[0]), *db = fast_f32(call->out[1]);
    int threads = fast_threads(rows * width, rows);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t n = 0; n < rows; n++) {
        double g = dy[n], na = norm_a[n], nb = norm_b[n], across = g / (na * nb);
        double along_a = norm_a[n] <= eps ? 0 : -g * y[n] / (na * na);
        double along_b = norm_b[n] <= eps ? 0 : -g * y[n] / (nb * nb);
        const float *an = a + n * width, *bn = b + n * width;
        bool moderate = is_moderate(na * na) && is_moderate(nb * nb);
        rows_combine(da + n * width, bn, an, width, across, along_a, moderate);
        rows_combine(db + n * width, an, bn, width, across, along_b, moderate);
    }
    return ASEN_OK;
}

int fast_normalize(const asen_call *call)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    int64_t rows = call->in[0]->shape[0], width = call->in[0]->shape[1];
    double eps = call->attrs->normalize.eps;
    const float *x = fast_f32(call->in[0]);
    float *y = fast_f32(call->out[0]), *norm = fast_f32(call->out[1]);
    int threads = fast_threads(rows * width, rows);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t n = 0; n < rows; n++) {
        double length = rows_norm(x + n * width, width, eps);
        norm[n] = (float)length;
        if (is_moderate(length * length))
            rows_scale(y + n * width, x + n * width, width, (float)(1 / length));
        else
            rows_mix_wide(y + n * width, x + n * width, x + n * width, width, 1 / length, 0);
    }
    return ASEN_OK;
}

/* dx = (dy - y (y . dy)) / norm; dy / norm where the norm was clamped */
int fast_normalize_grad(const asen_call *call)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    int64_t rows = call->in[0]->shape[0], width = call->in[0]->shape[1];
    float eps = (float)call->attrs->normalize_grad.eps;
    const float *dy = fast_f32(call->in[0]), *y = fast_f32(call->in[1]), *norm = fast_f32(call->in[2]);
    float *dx = fast_f32(call->out[0]);
    int threads = fast_threads(rows * width, rows);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t n = 0; n < rows; n++) {
        const float *dyn = dy + n * width, *yn = y + n * width;
        double along = norm[n] <= eps ? 0 : rows_dot(yn, dyn, width);
        double length = norm[n];
        rows_combine(dx + n * width, dyn, yn, width, 1 / length, -along / length, is_moderate(length * length));
    }
    return ASEN_OK;
}

/* ---- additive angular margin (Deng et al. 2019) ---- */

typedef struct margin {
    double s, m;
    bool easy;
} margin;

static bool margin_applies(margin g, double c) { return g.easy ? c > 0 : c > cos(PI - g.m); }

/* What the target's cosine becomes, before the scale s. */
static double margin_value(margin g, double c)
{
    if (margin_applies(g, c))
        return c * cos(g.m) - sqrt(fmax(1 - c * c, 0)) * sin(g.m);
    return g.easy ? c : c - g.m * sin(PI - g.m);
}

static double margin_slope(margin g, double c)
{
    return margin_applies(g, c) ? cos(g.m) + sin(g.m) * c / sqrt(fmax(1 - c * c, 1e-12)) : 1;
}

int fast_arc_margin(const asen_call *call)
{
    const asen_tensor *t = call->in[0];
    if (t->dtype != ASEN_F32 || call->in[1]->dtype != ASEN_I64)
        return ASEN_DECLINED;
    margin g = {call->attrs->arc_margin.s, call->attrs->arc_margin.m, call->attrs->arc_margin.easy_margin != 0};
    int64_t rows = t->shape[0], classes = t->shape[1];
    const float *cosine = fast_f32(t);
    const int64_t *target = asen_tensor_data(call->in[1]);
    float *y = fast_f32(call->out[0]);
    int status = fast_check_indices("target", target, rows, classes, "classes");
    if (status != ASEN_OK)
        return status;
    rows_scale(y, cosine, rows * classes, (float)g.s);
    for (int64_t n = 0; n < rows; n++)
        y[n * classes + target[n]] = (float)(g.s * margin_value(g, cosine[n * classes + target[n]]));
    return ASEN_OK;
}

int fast_arc_margin_grad(const asen_call *call)
{
    const asen_tensor *t = call->in[1];
    if (t->dtype != ASEN_F32 || call->in[0]->dtype != ASEN_F32 || call->in[2]->dtype != ASEN_I64)
        return ASEN_DECLINED;
    margin g = {call->attrs->arc_margin_grad.s, call->attrs->arc_margin_grad.m,
                call->attrs->arc_margin_grad.easy_margin != 0};
    int64_t rows = t->shape[0], classes = t->shape[1];
    const float *dy = fast_f32(call->in[0]), *cosine = fast_f32(t);
    const int64_t *target = asen_tensor_data(call->in[2]);
    float *dx = fast_f32(call->out[0]);
    int status = fast_check_indices("target", target, rows, classes, "classes");
    if (status != ASEN_OK)
        return status;
    rows_scale(dx, dy, rows * classes, (float)g.s);
    for (int64_t n = 0; n < rows; n++) {
        int64_t at = n * classes + target[n];
        dx[at] = (float)(g.s * margin_slope(g, cosine[at]) * dy[at]);
    }
    return ASEN_OK;
}
