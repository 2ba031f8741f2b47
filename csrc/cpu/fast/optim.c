/* SGD, Adam and AdamW over a list of tensors, float32. One parallel region; the elements of all
 * tensors together are divided evenly, whatever the sizes of the tensors. Formulas: optim.h. */
#include <omp.h>

#include "cpu/fast/fast.h"

/* Scalars of a step, computed in double, rounded once. */
typedef struct optim_step {
    float lr, decay, momentum, fresh, beta1_rest, beta2, beta2_rest, eps, step_size, root_scale, keep;
    bool nesterov;
} optim_step;

/* p[n], g[n], b[n]; b is the momentum buffer. */
FAST_INLINE void sgd_momentum(float *restrict p, const float *restrict g, float *restrict b, int64_t n,
                              const optim_step *s, bool first)
{
    float lr = s->lr, decay = s->decay, momentum = s->momentum, fresh = s->fresh;
    bool nesterov = s->nesterov;
    FAST_SIMD
    for (int64_t i = 0; i < n; i++) {
        float v = g[i] + decay * p[i];
        float buffer = first ? v : momentum * b[i] + fresh * v;
        b[i] = buffer;
        p[i] -= lr * (nesterov ? v + momentum * buffer : buffer);
    }
}

FAST_CLONES static void optim_sgd_first(float *p, const float *g, float *b, int64_t n, const optim_step *s)
{
    sgd_momentum(p, g, b, n, s, true);
}

FAST_CLONES static void optim_sgd_next(float *p, const float *g, float *b, int64_t n, const optim_step *s)
{
    sgd_momentum(p, g, b, n, s, false);
}

FAST_CLONES static void optim_sgd_plain(float *restrict p, const float *restrict g, int64_t n, const optim_step *s)
{
    float lr = s->lr, decay = s->decay;
    FAST_SIMD
    for (int64_t i = 0; i < n; i++)
        p[i] -= lr * (g[i] + decay * p[i]);
}

FAST_INLINE void adam(float *restrict p, const float *restrict g, float *restrict m, float *restrict v, int64_t n,
                      const optim_step *s, bool decoupled)
{
    float decay = s->decay, keep = s->keep, beta1_rest = s->beta1_rest, beta2 = s->beta2, beta2_rest = s->beta2_rest;
    float eps = s->eps, step_size = s->step_size, root_scale = s->root_scale;
    FAST_SIMD
    for (int64_t i = 0; i < n; i++) {
        float q = p[i], d = g[i];
        if (decoupled)
            q *= keep;
        else
            d += decay * q;
        float first = m[i] + beta1_rest * (d - m[i]);
        float second = beta2 * v[i] + beta2_rest * d * d;
        m[i] = first;
        v[i] = second;
        p[i] = q - step_size * first / (sqrtf(second) * root_scale + eps);
    }
}

FAST_CLONES static void optim_adam(float *p, const float *g, float *m, float *v, int64_t n, const optim_step *s)
{
    adam(p, g, m, v, n, s, false);
}

FAST_CLONES static void optim_adamw(float *p, const float *g, float *m, float *v, int64_t n, const optim_step *s)
{
    adam(p, g, m, v, n, s, true);
}

/* Elements [begin, begin + n) of one tensor. */
static void optim_piece(const asen_optim_call *call, const optim_step *s, int64_t tensor, int64_t begin, int64_t n)
{
    float *p = (float *)call->param[tensor] + begin;
    const float *g = (const float *)call->grad[tensor] + begin;
    float *first = call->state1 && call->state1[tensor] ? (float *)call->state1[tensor] + begin : NULL;
    float *second = call->state2 && call->state2[tensor] ? (float *)call->state2[tensor] + begin : NULL;
    if (call->kind == ASEN_ADAM)
        optim_adam(p, g, first, second, n, s);
    else if (call->kind == ASEN_ADAMW)
        optim_adamw(p, g, first, second, n, s);
    else if (first == NULL || call->momentum == 0)
        optim_sgd_plain(p, g, n, s);
    else if (call->step <= 1)
        optim_sgd_first(p, g, first, n, s);
    else
        optim_sgd_next(p, g, first, n, s);
}

int asen_optim_fast_step(const asen_optim_call *call)
{
    if (call->dtype != ASEN_F32)
        return ASEN_DECLINED;
    double correction1 = 1 - pow(call->beta1, (double)call->step), correction2 = 1 - pow(call->beta2, (double)call->step);
    optim_step s = {
        .lr = (float)call->lr,
        .decay = (float)call->weight_decay,
        .keep = (float)(1 - call->lr * call->weight_decay),
        .momentum = (float)call->momentum,
        .fresh = (float)(1 - call->dampening),
        .beta1_rest = (float)(1 - call->beta1),
        .beta2 = (float)call->beta2,
        .beta2_rest = (float)(1 - call->beta2),
        .eps = (float)call->eps,
        .step_size = (float)(call->lr / correction1),
        .root_scale = (float)(1 / sqrt(correction2)),
        .nesterov = call->nesterov != 0,
    };
    int64_t total = 0;
    for (int64_t i = 0; i < call->count; i++)
        total += call->length[i];
    int threads = fast_threads(total, total);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int t = omp_get_thread_num(), team = omp_get_num_threads();
        /* Cut at multiples of 16 elements, so that the parts' vectors are full. */
        int64_t from = fast_part(total / 16, t, team) * 16;
        int64_t to = t + 1 == team ? total : fast_part(total / 16, t + 1, team) * 16;
        int64_t at = 0;
        for (int64_t i = 0; i < call->count && at < to; at += call->length[i], i++) {
            int64_t begin = fast_max_i64(from - at, 0), end = fast_min_i64(to - at, call->length[i]);
            if (begin < end)
                optim_piece(call, &s, i, begin, end - begin);
        }
    }
    return ASEN_OK;
}
