/* Reference: losses, similarities, margins. Rows of (N, D) or (N, K). */
#include <math.h>

#include "cpu/ref/ref.h"

#define PI 3.14159265358979323846

static int check_targets(const asen_tensor *target, int64_t N, int64_t K)
{
    ref_array t = ref_array_of(target);
    for (int64_t n = 0; n < N; n++) {
        int status = asen_ref_check_index("target", asen_ref_get_int(t, n), n, K, "classes");
        if (status != ASEN_OK)
            return status;
    }
    return ASEN_OK;
}

/* ---- cross-entropy ---- */

/* loss = mean over n of log(sum_k exp(l_nk)) - l_n,target */
int ref_cross_entropy(const asen_call *call)
{
    const asen_tensor *t = call->in[0];
    if (!ref_is_float(t) || !ref_is_int(call->in[1]))
        return ASEN_DECLINED;
    int64_t N = t->shape[0], K = t->shape[1];
    ref_array logits = ref_array_of(t), target = ref_array_of(call->in[1]);
    ref_array loss = ref_array_of(call->out[0]), softmax = ref_array_of(call->out[1]);
    int status = check_targets(call->in[1], N, K);
    if (status != ASEN_OK)
        return status;
    double total = 0;
    for (int64_t n = 0; n < N; n++) {
        double max = -INFINITY, sum = 0;
        for (int64_t k = 0; k < K; k++) {
            double value = ref_get(logits, n * K + k);
            max = value > max ? value : max;
        }
        for (int64_t k = 0; k < K; k++)
            sum += exp(ref_get(logits, n * K + k) - max);
        for (int64_t k = 0; k < K; k++)
            ref_put(softmax, n * K + k, exp(ref_get(logits, n * K + k) - max) / sum);
        total += log(sum) - (ref_get(logits, n * K + asen_ref_get_int(target, n)) - max);
    }
    ref_put(loss, 0, total / (double)N);
    return ASEN_OK;
}

int ref_cross_entropy_grad(const asen_call *call)
{
    const asen_tensor *t = call->in[1];
    if (!ref_is_float(call->in[0]) || !ref_is_float(t) || !ref_is_int(call->in[2]))
        return ASEN_DECLINED;
    int64_t N = t->shape[0], K = t->shape[1];
    ref_array softmax = ref_array_of(t), target = ref_array_of(call->in[2]), dx = ref_array_of(call->out[0]);
    int status = check_targets(call->in[2], N, K);
    if (status != ASEN_OK)
        return status;
    double scale = ref_get(ref_array_of(call->in[0]), 0) / (double)N;
    for (int64_t n = 0; n < N; n++)
        for (int64_t k = 0; k < K; k++)
            ref_put(dx, n * K + k,
                    scale * (ref_get(softmax, n * K + k) - (k == asen_ref_get_int(target, n) ? 1 : 0)));
    return ASEN_OK;
}

/* ---- cosine similarity and normalisation ---- */

static double clamped_norm(ref_array x, int64_t row, int64_t D, double eps)
{
    double norm = sqrt(asen_ref_dot(x, row * D, x, row * D, D));
    return norm > eps || isnan(norm) ? norm : eps;
}

/* A norm that was stored as eps was clamped, and is a constant. */
static bool was_clamped(ref_array norm, int64_t row, double eps)
{
    return ref_get(norm, row) <= ref_round(norm.dtype, eps);
}

int ref_cosine_similarity(const asen_call *call)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    int64_t N = call->in[0]->shape[0], D = call->in[0]->shape[1];
    double eps = call->attrs->cosine_similarity.eps;
    ref_array a = ref_array_of(call->in[0]), b = ref_array_of(call->in[1]);
    for (int64_t n = 0; n < N; n++) {
        double norm_a = clamped_norm(a, n, D, eps), norm_b = clamped_norm(b, n, D, eps);
        ref_put(ref_array_of(call->out[0]), n, asen_ref_dot(a, n * D, b, n * D, D) / (norm_a * norm_b));
        ref_put(ref_array_of(call->out[1]), n, norm_a);
        ref_put(ref_array_of(call->out[2]), n, norm_b);
    }
    return ASEN_OK;
}

/* da = dy (b / (|a| |b|) - y a / |a|^2), the second term only where |a| is not clamped */
int ref_cosine_similarity_grad(const asen_call *call)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    int64_t N = call->in[1]->shape[0], D = call->in[1]->shape[1];
    double eps = call->attrs->cosine_similarity_grad.eps;
    ref_array dy = ref_array_of(call->in[0]), a = ref_array_of(call->in[1]), b = ref_array_of(call->in[2]);
    ref_array y = ref_array_of(call->in[3]), norm_a = ref_array_of(call->in[4]), norm_b = ref_array_of(call->in[5]);
    ref_array da = ref_array_of(call->out[0]), db = ref_array_of(call->out[1]);
    for (int64_t n = 0; n < N; n++) {
        double g = ref_get(dy, n), cosine = ref_get(y, n), na = ref_get(norm_a, n), nb = ref_get(norm_b, n);
        double along_a = was_clamped(norm_a, n, eps) ? 0 : cosine / (na * na);
        double along_b = was_clamped(norm_b, n, eps) ? 0 : cosine / (nb * nb);
        for (int64_t d = n * D; d < (n + 1) * D; d++) {
            ref_put(da, d, g * (ref_get(b, d) / (na * nb) - along_a * ref_get(a, d)));
            ref_put(db, d, g * (ref_get(a, d) / (na * nb) - along_b * ref_get(b, d)));
        }
    }
    return ASEN_OK;
}

int ref_normalize(const asen_call *call)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    int64_t N = call->in[0]->shape[0], D = call->in[0]->shape[1];
    ref_array x = ref_array_of(call->in[0]), y = ref_array_of(call->out[0]);
    for (int64_t n = 0; n < N; n++) {
        double norm = clamped_norm(x, n, D, call->attrs->normalize.eps);
        ref_put(ref_array_of(call->out[1]), n, norm);
        for (int64_t d = n * D; d < (n + 1) * D; d++)
            ref_put(y, d, ref_get(x, d) / norm);
    }
    return ASEN_OK;
}

/* dx = (dy - y (y . dy)) / norm; dy / norm where the norm was clamped */
int ref_normalize_grad(const asen_call *call)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    int64_t N = call->in[0]->shape[0], D = call->in[0]->shape[1];
    ref_array dy = ref_array_of(call->in[0]), y = ref_array_of(call->in[1]), norm = ref_array_of(call->in[2]);
    ref_array dx = ref_array_of(call->out[0]);
    for (int64_t n = 0; n < N; n++) {
        bool clamped = was_clamped(norm, n, call->attrs->normalize_grad.eps);
        double along = clamped ? 0 : asen_ref_dot(y, n * D, dy, n * D, D);
        for (int64_t d = n * D; d < (n + 1) * D; d++)
            ref_put(dx, d, (ref_get(dy, d) - ref_get(y, d) * along) / ref_get(norm, n));
    }
    return ASEN_OK;
}

/* ---- additive angular margin (Deng et al. 2019) ---- */

typedef struct margin {
    double s, m;
    bool easy;
} margin;

static bool has_margin(margin g, double c) { return g.easy ? c > 0 : c > cos(PI - g.m); }

/* What the target's cosine c becomes, before the scale s. */
static double margin_value(margin g, double c)
{
    if (has_margin(g, c))
        return c * cos(g.m) - sqrt(fmax(1 - c * c, 0)) * sin(g.m);
    return g.easy ? c : c - g.m * sin(PI - g.m);
}

static double margin_slope(margin g, double c)
{
    return has_margin(g, c) ? cos(g.m) + sin(g.m) * c / sqrt(fmax(1 - c * c, 1e-12)) : 1;
}

int ref_arc_margin(const asen_call *call)
{
    const asen_tensor *t = call->in[0];
    if (!ref_is_float(t) || !ref_is_int(call->in[1]))
        return ASEN_DECLINED;
    margin g = {call->attrs->arc_margin.s, call->attrs->arc_margin.m, call->attrs->arc_margin.easy_margin != 0};
    int64_t N = t->shape[0], K = t->shape[1];
    ref_array cosine = ref_array_of(t), target = ref_array_of(call->in[1]), y = ref_array_of(call->out[0]);
    int status = check_targets(call->in[1], N, K);
    if (status != ASEN_OK)
        return status;
    for (int64_t n = 0; n < N; n++)
        for (int64_t k = 0; k < K; k++) {
            double c = ref_get(cosine, n * K + k);
            ref_put(y, n * K + k, g.s * (k == asen_ref_get_int(target, n) ? margin_value(g, c) : c));
        }
    return ASEN_OK;
}

int ref_arc_margin_grad(const asen_call *call)
{
    const asen_tensor *t = call->in[1];
    if (!ref_is_float(call->in[0]) || !ref_is_float(t) || !ref_is_int(call->in[2]))
        return ASEN_DECLINED;
    margin g = {call->attrs->arc_margin_grad.s, call->attrs->arc_margin_grad.m,
                call->attrs->arc_margin_grad.easy_margin != 0};
    int64_t N = t->shape[0], K = t->shape[1];
    ref_array dy = ref_array_of(call->in[0]), cosine = ref_array_of(t), target = ref_array_of(call->in[2]);
    ref_array dx = ref_array_of(call->out[0]);
    int status = check_targets(call->in[2], N, K);
    if (status != ASEN_OK)
        return status;
    for (int64_t n = 0; n < N; n++)
        for (int64_t k = 0; k < K; k++) {
            bool chosen = k == asen_ref_get_int(target, n);
            double slope = chosen ? margin_slope(g, ref_get(cosine, n * K + k)) : 1;
            ref_put(dx, n * K + k, g.s * slope * ref_get(dy, n * K + k));
        }
    return ASEN_OK;
}
