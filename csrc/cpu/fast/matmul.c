/* Small matrix products; larger ones are oneDNN's, whose call costs more than the arithmetic of these.
 *
 * y (m, n) = a (m, k) times b (k, n), in panels of LANES columns: of b's rows in a panel each is read as one vector and
 * added, times a number of a, to the sums of up to ROWS rows of y, which stay in registers. A panel of a transposed b,
 * or one narrower than LANES, is laid out first. One thread does it all. */
#include "cpu/fast/fast.h"

enum { LANES = 16, ROWS = 6, MAX_DEPTH = 512 };

/* Up to this many products of two numbers a call: some microseconds. */
static const int64_t MAX_WORK = 64 * 64 * 64;

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* One product; strides in elements. y is dense. */
typedef struct product {
    int64_t m, n, k;
    const float *a, *b;
    int64_t a_row, a_column, b_row, b_column;
    float *y;
} product;

/* `rows` rows of y from `row` on, `width` columns from `column` on; `panel` has b's, `step` from row to row. */
FAST_INLINE void block(const product *p, int rows, int64_t row, int64_t column, int width, const float *panel,
                       int64_t step)
{
    lanes sum[ROWS] = {{0}};
    const float *a = p->a + row * p->a_row;
    for (int64_t i = 0; i < p->k; i++) {
        const lanes b = *(const lanes *)(panel + i * step);
        for (int r = 0; r < rows; r++)
            sum[r] += a[r * p->a_row + i * p->a_column] * b;
    }
    for (int r = 0; r < rows; r++) {
        float *y = p->y + (row + r) * p->n + column;
        if (width == LANES)
            *(lanes *)y = sum[r];
        else
            memcpy(y, &sum[r], (size_t)width * sizeof *y);
    }
}

/* Columns [column, column + width) of b as (k, LANES), zeros behind them. */
FAST_INLINE void lay_out(const product *p, int64_t column, int width, float *panel)
{
    for (int64_t i = 0; i < p->k; i++)
        for (int j = 0; j < LANES; j++)
            panel[i * LANES + j] = j < width ? p->b[i * p->b_row + (column + j) * p->b_column] : 0;
}

FAST_CLONES static void multiply(const product *p)
{
    float laid_out[MAX_DEPTH * LANES];
    for (int64_t column = 0; column < p->n; column += LANES) {
        int width = (int)fast_min_i64(LANES, p->n - column);
        const float *panel = p->b + column;
        int64_t step = p->b_row, row = 0;
        if (width < LANES || p->b_column != 1) {
            lay_out(p, column, width, laid_out);
            panel = laid_out;
            step = LANES;
        }
        for (; row + ROWS <= p->m; row += ROWS)
            block(p, ROWS, row, column, width, panel, step);
        for (; row + 4 <= p->m; row += 4)
            block(p, 4, row, column, width, panel, step);
        for (; row + 2 <= p->m; row += 2)
            block(p, 2, row, column, width, panel, step);
        if (row < p->m)
            block(p, 1, row, column, width, panel, step);
    }
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
