/* Elementwise ops on float32 with any strides. Operands become a loop nest in the order of the
 * output's memory with mergeable dims merged (cpu/fast/fast.h): dense operands of one shape are one
 * row, an operand per channel is rows of C. The innermost row is a function of its own, with
 * versions for unit strides and for an operand that stands still. */
#include <omp.h>

#include "cpu/fast/math.h"

/* Two numbers that unary ops take along: bounds, an exponent. */
typedef struct row_args {
    float first, second;
} row_args;

typedef void (*binary_row)(float *y, const float *a, int64_t sa, const float *b, int64_t sb, int64_t n, row_args k);

#define BINARY_ROW(name, expression)                                                                          \
    FAST_INLINE float point_##name(float a, float b, row_args k) { (void)k; return (expression); }            \
    FAST_CLONES static void row_##name(float *restrict y, const float *a, int64_t sa, const float *b,         \
                                       int64_t sb, int64_t n, row_args k)                                     \
    {                                                                                                         \
        if (sa == 1 && sb == 1) {                                                                             \
            FAST_SIMD                                                                                         \
            for (int64_t i = 0; i < n; i++)                                                                   \
                y[i] = point_##name(a[i], b[i], k);                                                           \
        } else if (sa == 1 && sb == 0) {                                                                      \
            float c = b[0];                                                                                   \
            FAST_SIMD                                                                                         \
            for (int64_t i = 0; i < n; i++)                                                                   \
                y[i] = point_##name(a[i], c, k);                                                              \
        } else if (sa == 0 && sb == 1) {                                                                      \
            float c = a[0];                                                                                   \
            FAST_SIMD                                                                                         \
            for (int64_t i = 0; i < n; i++)                                                                   \
                y[i] = point_##name(c, b[i], k);                                                              \
        } else {                                                                                              \
            for (int64_t i = 0; i < n; i++)                                                                   \
                y[i] = point_##name(a[i * sa], b[i * sb], k);                                                 \
        }                                                                                                     \
    }

BINARY_ROW(add, a + b)
BINARY_ROW(sub, a - b)
BINARY_ROW(mul, a * b)
BINARY_ROW(div, a / b)
BINARY_ROW(relu_grad, b > 0 ? a : 0.0f)
BINARY_ROW(clamp_grad, b >= k.first && b <= k.second ? a : 0.0f)

typedef void (*unary_row)(float *y, const float *x, int64_t sx, int64_t n, row_args k);

#define UNARY_ROW(name, expression)                                                                           \
    FAST_INLINE float point_##name(float x, row_args k) { (void)k; return (expression); }                     \
    FAST_CLONES static void row_##name(float *restrict y, const float *x, int64_t sx, int64_t n, row_args k)  \
    {                                                                                                         \
        if (sx == 1) {                                                                                        \
            FAST_SIMD                                                                                         \
            for (int64_t i = 0; i < n; i++)                                                                   \
                y[i] = point_##name(x[i], k);                                                                 \
        } else if (sx == 0) {                                                                                 \
            float v = point_##name(x[0], k);                                                                  \
            for (int64_t i = 0; i < n; i++)                                                                   \
                y[i] = v;                                                                                     \
        } else {                                                                                              \
            for (int64_t i = 0; i < n; i++)                                                                   \
                y[i] = point_##name(x[i * sx], k);                                                            \
        }                                                                                                     \
    }

UNARY_ROW(neg, -x)
UNARY_ROW(exp, fast_expf(x))
UNARY_ROW(log, fast_logf(x))
UNARY_ROW(sqrt, sqrtf(x))
UNARY_ROW(tanh, fast_tanhf(x))
UNARY_ROW(sigmoid, fast_sigmoidf(x))
UNARY_ROW(relu, x <= 0 ? 0.0f : x)
UNARY_ROW(clamp, x < k.first ? k.first : x > k.second ? k.second : x)
UNARY_ROW(pow_one, x)
UNARY_ROW(pow_two, x * x)
UNARY_ROW(pow_three, x * x * x)
UNARY_ROW(pow_half, sqrtf(x) + 0.0f)
UNARY_ROW(pow_inverse, 1.0f / x)
UNARY_ROW(pow, powf(x, k.first))

/* Calls row(offsets, length) for every innermost row, or part of one, of elements [from, to). */
#define FOR_ROWS(nest, operands, from, to, offset, length, body)                                              \
    do {                                                                                                      \
        int inner_ = (nest)->ndim - 1;                                                                        \
        int64_t row_ = (nest)->size[inner_], at_ = (from), position_[ASEN_MAX_DIMS];                          \
        int64_t skip_ = at_ % row_, start_[FAST_MAX_OPERANDS], offset[FAST_MAX_OPERANDS];                     \
        fast_nest_seek((nest), (operands), inner_, at_ / row_, position_, start_);                            \
        while (at_ < (to)) {                                                                                  \
            int64_t length = fast_least(row_ - skip_, (to) - at_);                                            \
            for (int k_ = 0; k_ < (operands); k_++)                                                           \
                offset[k_] = start_[k_] + skip_ * (nest)->stride[k_][inner_];                                 \
            body;                                                                                             \
            at_ += length;                                                                                    \
            skip_ = 0;                                                                                        \
            fast_nest_next((nest), (operands), inner_, position_, start_);                                    \
        }                                                                                                     \
    } while (0)

/* What a part of a team computes: everything a kernel's loop reads. */
typedef struct work {
    fast_nest nest;
    int64_t count;
    float *y;
    const float *a, *b;
    binary_row binary;
    unary_row unary;
    row_args k;
} work;

static void binary_part(const work *w, int t, int team)
{
    int64_t from = fast_part(w->count, t, team), to = fast_part(w->count, t + 1, team);
    int64_t sa = w->nest.stride[1][w->nest.ndim - 1], sb = w->nest.stride[2][w->nest.ndim - 1];
    FOR_ROWS(&w->nest, 3, from, to, offset, length,
             w->binary(w->y + offset[0], w->a + offset[1], sa, w->b + offset[2], sb, length, w->k));
}

static void unary_part(const work *w, int t, int team)
{
    int64_t from = fast_part(w->count, t, team), to = fast_part(w->count, t + 1, team);
    int64_t sx = w->nest.stride[1][w->nest.ndim - 1];
    FOR_ROWS(&w->nest, 2, from, to, offset, length, w->unary(w->y + offset[0], w->a + offset[1], sx, length, w->k));
}

/* One thread enters no parallel region: for a few elements that costs more than they do. */
static void run_parts(const work *w, int threads, void (*part)(const work *w, int t, int team))
{
    if (threads == 1) {
        part(w, 0, 1);
        return;
    }
#pragma omp parallel num_threads(threads)
    part(w, omp_get_thread_num(), omp_get_num_threads());
}

static int run_binary(const asen_call *call, binary_row row, row_args k)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    work w = {.count = asen_tensor_count(call->out[0]), .binary = row, .k = k};
    if (w.count == 0)
        return ASEN_OK;
    w.y = fast_f32(call->out[0]);
    w.a = fast_f32(call->in[0]);
    w.b = fast_f32(call->in[1]);
    fast_nest_of(&w.nest, call->out[0], (const asen_tensor *const *)call->in, 2);
    run_parts(&w, fast_threads(w.count, w.count), binary_part);
    return ASEN_OK;
}

/* `weight`: how many additions an element costs, so that expensive ops use threads earlier. */
static int run_unary(const asen_call *call, unary_row row, row_args k, int weight)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    work w = {.count = asen_tensor_count(call->out[0]), .unary = row, .k = k};
    if (w.count == 0)
        return ASEN_OK;
    w.y = fast_f32(call->out[0]);
    w.a = fast_f32(call->in[0]);
    fast_nest_of(&w.nest, call->out[0], (const asen_tensor *const *)call->in, 1);
    run_parts(&w, fast_threads(w.count * weight, w.count), unary_part);
    return ASEN_OK;
}

#define BINARY(name) \
    int fast_##name(const asen_call *call) { return run_binary(call, row_##name, (row_args){0, 0}); }
#define UNARY(name, weight) \
    int fast_##name(const asen_call *call) { return run_unary(call, row_##name, (row_args){0, 0}, weight); }

BINARY(add)
BINARY(sub)
BINARY(mul)
BINARY(div)
BINARY(relu_grad)
UNARY(neg, 1)
UNARY(exp, 4)
UNARY(log, 4)
UNARY(sqrt, 2)
UNARY(tanh, 8)
UNARY(sigmoid, 4)
UNARY(relu, 1)

int fast_clamp(const asen_call *call)
{
    return run_unary(call, row_clamp, (row_args){(float)call->attrs->clamp.min, (float)call->attrs->clamp.max}, 1);
}

int fast_clamp_grad(const asen_call *call)
{
    row_args k = {(float)call->attrs->clamp_grad.min, (float)call->attrs->clamp_grad.max};
    return run_binary(call, row_clamp_grad, k);
}

int fast_pow(const asen_call *call)
{
    static const struct { double exponent; unary_row row; } special[] = {
        {1, row_pow_one}, {2, row_pow_two}, {3, row_pow_three}, {0.5, row_pow_half}, {-1, row_pow_inverse},
    };
    double exponent = call->attrs->pow.exponent;
    for (size_t i = 0; i < sizeof special / sizeof special[0]; i++)
        if (special[i].exponent == exponent)
            return run_unary(call, special[i].row, (row_args){0, 0}, 1);
    return run_unary(call, row_pow, (row_args){(float)exponent, 0}, 32);
}
