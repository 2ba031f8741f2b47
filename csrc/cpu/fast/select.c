/* Comparing and choosing where every operand is dense and of the result's shape, or one element: what
 * activations and masks are made of. Other layouts are the reference's. */
#include "cpu/fast/fast.h"

/* The step of an operand along the result: 1, or 0 for one element; false where it is neither. */
static bool step_of(const asen_tensor *t, const asen_tensor *y, int64_t *step)
{
    *step = asen_tensor_count(t) != 1;
    return *step == 0 || (asen_tensor_same_shape(t, y) && asen_tensor_is_dense(t));
}

/* y[n] = a relation b; sa, sb: 0 or 1 */
typedef void (*compare_row)(uint8_t *y, const float *a, int64_t sa, const float *b, int64_t sb, int64_t n);

#define COMPARE_ROW(name, relation)                                                                                    \
    FAST_CLONES static void name(uint8_t *restrict y, const float *a, int64_t sa, const float *b, int64_t sb,          \
                                 int64_t n)                                                                            \
    {                                                                                                                  \
        if (sa && sb) {                                                                                                \
            FAST_SIMD                                                                                                  \
            for (int64_t i = 0; i < n; i++)                                                                            \
                y[i] = a[i] relation b[i];                                                                             \
        } else if (sa) {                                                                                               \
            float v = b[0];                                                                                            \
            FAST_SIMD                                                                                                  \
            for (int64_t i = 0; i < n; i++)                                                                            \
                y[i] = a[i] relation v;                                                                                \
        } else {                                                                                                       \
            float u = a[0];                                                                                            \
            FAST_SIMD                                                                                                  \
            for (int64_t i = 0; i < n; i++)                                                                            \
                y[i] = u relation b[i * sb];                                                                           \
        }                                                                                                              \
    }
COMPARE_ROW(compare_lt, <)
COMPARE_ROW(compare_le, <=)
COMPARE_ROW(compare_eq, ==)
COMPARE_ROW(compare_ne, !=)
COMPARE_ROW(compare_gt, >)
COMPARE_ROW(compare_ge, >=)

int fast_compare(const asen_call *call)
{
    static const compare_row rows[] = {compare_lt, compare_le, compare_eq, compare_ne, compare_gt, compare_ge};
    const asen_tensor *a = call->in[0], *b = call->in[1], *y = call->out[0];
    int64_t sa, sb, count = asen_tensor_count(y);
    if (!fast_is_f32(a) || !fast_is_f32(b) || !step_of(a, y, &sa) || !step_of(b, y, &sb))
        return ASEN_DECLINED;
    compare_row row = rows[call->attrs->compare.relation];
    const float *pa = fast_f32(a), *pb = fast_f32(b);
    uint8_t *py = asen_tensor_data(y);
    int threads = fast_threads(count, count);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int t = 0; t < threads; t++) {
        int64_t from = fast_part(count, t, threads), to = fast_part(count, t + 1, threads);
        row(py + from, pa + from * sa, sa, pb + from * sb, sb, to - from);
    }
    return ASEN_OK;
}

/* y[n] = c ? a : b; steps 0 or 1 */
#define WHERE_ROW(name, type)                                                                                          \
    FAST_CLONES static void name(type *restrict y, const uint8_t *c, int64_t sc, const type *a, int64_t sa,            \
                                 const type *b, int64_t sb, int64_t n)                                                 \
    {                                                                                                                  \
        if (sc && sa && sb) {                                                                                          \
            FAST_SIMD                                                                                                  \
            for (int64_t i = 0; i < n; i++)                                                                            \
                y[i] = c[i] ? a[i] : b[i];                                                                             \
        } else if (sc && sa) {                                                                                         \
            type v = b[0];                                                                                             \
            FAST_SIMD                                                                                                  \
            for (int64_t i = 0; i < n; i++)                                                                            \
                y[i] = c[i] ? a[i] : v;                                                                                \
        } else if (sc && sb) {                                                                                         \
            type u = a[0];                                                                                             \
            FAST_SIMD                                                                                                  \
            for (int64_t i = 0; i < n; i++)                                                                            \
                y[i] = c[i] ? u : b[i];                                                                                \
        } else {                                                                                                       \
            for (int64_t i = 0; i < n; i++)                                                                            \
                y[i] = c[i * sc] ? a[i * sa] : b[i * sb];                                                              \
        }                                                                                                              \
    }
WHERE_ROW(where_32, uint32_t)
WHERE_ROW(where_64, uint64_t)

int fast_where(const asen_call *call)
{
    const asen_tensor *c = call->in[0], *a = call->in[1], *b = call->in[2], *y = call->out[0];
    int64_t sc, sa, sb, count = asen_tensor_count(y);
    size_t size = asen_dtype_size(y->dtype);
    if (size < 4 || !step_of(c, y, &sc) || !step_of(a, y, &sa) || !step_of(b, y, &sb))
        return ASEN_DECLINED;
    const uint8_t *pc = asen_tensor_data(c);
    void *py = asen_tensor_data(y);
    const void *pa = asen_tensor_data(a), *pb = asen_tensor_data(b);
    int threads = fast_threads(count, count);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int t = 0; t < threads; t++) {
        int64_t from = fast_part(count, t, threads), n = fast_part(count, t + 1, threads) - from;
        if (size == 4)
            where_32((uint32_t *)py + from, pc + from * sc, sc, (const uint32_t *)pa + from * sa, sa,
                     (const uint32_t *)pb + from * sb, sb, n);
        else
            where_64((uint64_t *)py + from, pc + from * sc, sc, (const uint64_t *)pa + from * sa, sa,
                     (const uint64_t *)pb + from * sb, sb, n);
    }
    return ASEN_OK;
}
