/* Elementwise ops on float32 with any strides: the rows of ops/elementwise.def. Operands become a loop nest in
 * the order of the output's memory with mergeable dims merged (cpu/fast/fast.h): dense operands of one shape are
 * one row, an operand per channel is rows of C. The innermost row is a function of its own, with
 * versions for unit strides and for an operand that stands still. */
#include <omp.h>

#include "cpu/fast/math.h"

/* The functions that expressions of the table name. */
#define exponential fast_expf
#define logarithm fast_logf
#define square_root sqrtf
#define hyperbolic_tangent fast_tanhf
#define logistic fast_sigmoidf
#define power powf

typedef struct row_parameters {
    float first, second;
} row_parameters;

typedef void (*binary_row)(float *y, const float *a, int64_t sa, const float *b, int64_t sb, int64_t n,
                           row_parameters p);

#define BINARY_ROW(name, expression)                                                                          \
    FAST_INLINE float point_##name(float a, float b, row_parameters p) { (void)p; return (expression); }      \
    FAST_CLONES static void row_##name(float *restrict y, const float *a, int64_t sa, const float *b,         \
                                       int64_t sb, int64_t n, row_parameters p)                               \
    {                                                                                                         \
        if (sa == 1 && sb == 1) {                                                                             \
            FAST_SIMD                                                                                         \
            for (int64_t i = 0; i < n; i++)                                                                   \
                y[i] = point_##name(a[i], b[i], p);                                                           \
        } else if (sa == 1 && sb == 0) {                                                                      \
            float c = b[0];                                                                                   \
            FAST_SIMD                                                                                         \
            for (int64_t i = 0; i < n; i++)                                                                   \
                y[i] = point_##name(a[i], c, p);                                                              \
        } else if (sa == 0 && sb == 1) {                                                                      \
            float c = a[0];                                                                                   \
            FAST_SIMD                                                                                         \
            for (int64_t i = 0; i < n; i++)                                                                   \
                y[i] = point_##name(c, b[i], p);                                                              \
        } else {                                                                                              \
            for (int64_t i = 0; i < n; i++)                                                                   \
                y[i] = point_##name(a[i * sa], b[i * sb], p);                                                 \
        }                                                                                                     \
    }

typedef void (*unary_row)(float *y, const float *x, int64_t sx, int64_t n, row_parameters p);

#define UNARY_ROW(name, expression)                                                                           \
    FAST_INLINE float point_##name(float x, row_parameters p) { (void)p; return (expression); }               \
    FAST_CLONES static void row_##name(float *restrict y, const float *x, int64_t sx, int64_t n,              \
                                       row_parameters p)                                                      \
    {                                                                                                         \
        if (sx == 1) {                                                                                        \
            FAST_SIMD                                                                                         \
            for (int64_t i = 0; i < n; i++)                                                                   \
                y[i] = point_##name(x[i], p);                                                                 \
        } else if (sx == 0) {                                                                                 \
            float v = point_##name(x[0], p);                                                                  \
            for (int64_t i = 0; i < n; i++)                                                                   \
                y[i] = v;                                                                                     \
        } else {                                                                                              \
            for (int64_t i = 0; i < n; i++)                                                                   \
                y[i] = point_##name(x[i * sx], p);                                                            \
        }                                                                                                     \
    }

#define BINARY(name, parameters, expression) BINARY_ROW(name, expression)
#define UNARY(name, cost, parameters, expression) UNARY_ROW(name, expression)
#include "ops/elementwise.def"

UNARY_ROW(pow_one, x)
UNARY_ROW(pow_two, x * x)
UNARY_ROW(pow_three, x * x * x)
UNARY_ROW(pow_half, sqrtf(x) + 0.0f)
UNARY_ROW(pow_inverse, 1.0f / x)

/* Calls row(offsets, length) for every innermost row, or part of one, of elements [from, to). */
#define FOR_ROWS(nest, operands, from, to, offset, length, body)                                              \
    do {                                                                                                      \
        int inner_ = (nest)->ndim - 1;                                                                        \
        int64_t row_ = (nest)->size[inner_], at_ = (from), position_[ASEN_MAX_DIMS];                          \
        int64_t skip_ = at_ % row_, start_[FAST_MAX_OPERANDS], offset[FAST_MAX_OPERANDS];                     \
        fast_nest_seek((nest), (operands), inner_, at_ / row_, position_, start_);                            \
        while (at_ < (to)) {                                                                                  \
            int64_t length = fast_min_i64(row_ - skip_, (to) - at_);                                          \
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
    row_parameters p;
} work;

static void binary_part(const work *w, int t, int team)
{
    int64_t from = fast_part(w->count, t, team), to = fast_part(w->count, t + 1, team);
    int64_t sa = w->nest.stride[1][w->nest.ndim - 1], sb = w->nest.stride[2][w->nest.ndim - 1];
    FOR_ROWS(&w->nest, 3, from, to, offset, length,
             w->binary(w->y + offset[0], w->a + offset[1], sa, w->b + offset[2], sb, length, w->p));
}

static void unary_part(const work *w, int t, int team)
{
    int64_t from = fast_part(w->count, t, team), to = fast_part(w->count, t + 1, team);
    int64_t sx = w->nest.stride[1][w->nest.ndim - 1];
    FOR_ROWS(&w->nest, 2, from, to, offset, length, w->unary(w->y + offset[0], w->a + offset[1], sx, length, w->p));
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

static int run_binary(const asen_call *call, binary_row row, row_parameters p)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    work w = {.count = asen_tensor_count(call->out[0]), .binary = row, .p = p};
    if (w.count == 0)
        return ASEN_OK;
    w.y = fast_f32(call->out[0]);
    w.a = fast_f32(call->in[0]);
    w.b = fast_f32(call->in[1]);
    fast_nest_of(&w.nest, call->out[0], (const asen_tensor *const *)call->in, 2);
    run_parts(&w, fast_threads(w.count, w.count), binary_part);
    return ASEN_OK;
}

/* Exponents that need no power have rows of their own; an expensive row uses threads earlier. */
static void choose_power(double exponent, unary_row *row, int *cost)
{
    static const struct { double exponent; unary_row row; } special[] = {
        {1, row_pow_one}, {2, row_pow_two}, {3, row_pow_three}, {0.5, row_pow_half}, {-1, row_pow_inverse},
    };
    for (size_t i = 0; i < sizeof special / sizeof special[0]; i++) {
        if (special[i].exponent == exponent) {
            *row = special[i].row;
            *cost = 1;
        }
    }
}

static int run_unary(const asen_call *call, unary_row row, int cost, row_parameters p)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    if (call->op == ASEN_OP_pow)
        choose_power(call->attrs->pow.exponent, &row, &cost);
    work w = {.count = asen_tensor_count(call->out[0]), .unary = row, .p = p};
    if (w.count == 0)
        return ASEN_OK;
    w.y = fast_f32(call->out[0]);
    w.a = fast_f32(call->in[0]);
    fast_nest_of(&w.nest, call->out[0], (const asen_tensor *const *)call->in, 1);
    run_parts(&w, fast_threads(w.count * cost, w.count), unary_part);
    return ASEN_OK;
}

#define NO_PARAMETERS (row_parameters){0, 0}
#define EXACT(first, second) (row_parameters){(float)(first), (float)(second)}
#define ROUNDED EXACT
#define BINARY(name, parameters, expression)                                                                  \
    int fast_##name(const asen_call *call)                                                                    \
    {                                                                                                         \
        const asen_attrs *attrs = call->attrs;                                                                \
        (void)attrs;                                                                                          \
        return run_binary(call, row_##name, parameters);                                                      \
    }
#define UNARY(name, cost, parameters, expression)                                                             \
    int fast_##name(const asen_call *call)                                                                    \
    {                                                                                                         \
        const asen_attrs *attrs = call->attrs;                                                                \
        (void)attrs;                                                                                          \
        return run_unary(call, row_##name, cost, parameters);                                                 \
    }
#include "ops/elementwise.def"
