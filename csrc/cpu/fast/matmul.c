/* Small matrix products; larger ones are oneDNN's, whose call costs more than the arithmetic of these.
 *
 * y (m, n) = a (m, k) times b (k, n), in panels of as many columns as a vector has lanes: of b's rows in a panel each is
 * read as one vector and added, times a number of a, to the sums of up to ROWS rows of y, which stay in registers. A panel
 * of a transposed b, or one narrower than a vector, is laid out first. One thread does it all. The .inc file is compiled
 * for each length of a vector, since the compiler keeps no longer ones in registers. */
#include "cpu/fast/fast.h"

enum { ROWS = 8, MAX_DEPTH = 512 };

/* Up to this many products of two numbers a call: some microseconds. */
static const int64_t MAX_WORK = 64 * 64 * 64;

/* One product; strides in elements. y is dense. */
typedef struct product {
    int64_t m, n, k;
    const float *a, *b;
    int64_t a_row, a_column, b_row, b_column;
    float *y;
} product;

#if defined(__x86_64__)
#define NAME(x) x##_avx512
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define LANES 16
#include "cpu/fast/matmul.inc"

#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#include "cpu/fast/matmul.inc"
#endif

#define NAME(x) x##_plain
#define TARGET
#define LANES 4
#include "cpu/fast/matmul.inc"

static void multiply(const product *p)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        multiply_avx512(p);
        return;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        multiply_avx2(p);
        return;
    }
#endif
    multiply_plain(p);
}

int fast_matmul(const asen_call *call)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    const asen_tensor *a = call->in[0], *b = call->in[1];
    bool trans_a = call->attrs->matmul.trans_a, trans_b = call->attrs->matmul.trans_b;
    int batched = a->ndim == 3;
    int64_t rows_a = a->shape[batched], columns_a = a->shape[batched + 1];
    int64_t columns_b = b->shape[batched + 1], batch = batched ? a->shape[0] : 1;
    product p = {.m = trans_a ? columns_a : rows_a, .k = trans_a ? rows_a : columns_a,
                 .n = trans_b ? b->shape[batched] : columns_b, .a = fast_f32(a), .b = fast_f32(b),
                 .y = fast_f32(call->out[0])};
    p.a_row = trans_a ? 1 : columns_a;
    p.a_column = trans_a ? columns_a : 1;
    p.b_row = trans_b ? 1 : columns_b;
    p.b_column = trans_b ? columns_b : 1;
    if (p.k > MAX_DEPTH || (p.m > 0 && p.n > 0 && p.k > 0 && batch > MAX_WORK / p.m / p.n / p.k))
        return ASEN_DECLINED;
    for (int64_t i = 0; i < batch; i++, p.a += p.m * p.k, p.b += p.k * p.n, p.y += p.m * p.n)
        multiply(&p);
    return ASEN_OK;
}
