/* Dense copies, with the conversions that lose nothing or only round: from integers to wider ones
 * and to floats, and between float32 and float64; the others, and half types, are the reference's.
 * Elements of one dtype are moved as bits. Where the source's unit
 * stride lies along another dim than the output's (row-major NCHW into NHWC, a transposed
 * matrix), the two dims are walked in tiles that stay in the first-level cache. */
#include <omp.h>

#include "cpu/fast/stream.h"

typedef void (*copy_row)(void *target, const void *source, int64_t stride, int64_t n);

#define COPY_ROW(name, to, from, expression)                                                     \
    FAST_CLONES static void name(void *target, const void *source, int64_t stride, int64_t n)    \
    {                                                                                            \
        to *restrict y = target;                                                                 \
        const from *restrict x = source;                                                         \
        if (stride == 1) {                                                                       \
            for (int64_t i = 0; i < n; i++) {                                                    \
                from v = x[i];                                                                   \
                y[i] = (to)(expression);                                                         \
            }                                                                                    \
        } else {                                                                                 \
            for (int64_t i = 0; i < n; i++) {                                                    \
                from v = x[i * stride];                                                          \
                y[i] = (to)(expression);                                                         \
            }                                                                                    \
        }                                                                                        \
    }
COPY_ROW(copy_u8_i32, int32_t, uint8_t, v)
COPY_ROW(copy_u8_i64, int64_t, uint8_t, v)
COPY_ROW(copy_u8_f32, float, uint8_t, v)
COPY_ROW(copy_u8_f64, double, uint8_t, v)
COPY_ROW(copy_i32_i64, int64_t, int32_t, v)
COPY_ROW(copy_i32_f32, float, int32_t, v)
COPY_ROW(copy_i32_f64, double, int32_t, v)
COPY_ROW(copy_i64_f32, float, int64_t, v)
COPY_ROW(copy_i64_f64, double, int64_t, v)
COPY_ROW(copy_f32_f64, double, float, v)
COPY_ROW(copy_f64_f32, float, double, v)
COPY_ROW(copy_bits8, uint8_t, uint8_t, v)
COPY_ROW(copy_bits16, uint16_t, uint16_t, v)
COPY_ROW(copy_bits32, uint32_t, uint32_t, v)
COPY_ROW(copy_bits64, uint64_t, uint64_t, v)

#define FROM_U8 {[ASEN_I32] = copy_u8_i32, [ASEN_I64] = copy_u8_i64, [ASEN_F32] = copy_u8_f32, [ASEN_F64] = copy_u8_f64}
static const copy_row copy_rows[ASEN_DTYPE_COUNT][ASEN_DTYPE_COUNT] = {
    [ASEN_BOOL] = FROM_U8,
    [ASEN_U8] = FROM_U8,
    [ASEN_I32] = {[ASEN_I64] = copy_i32_i64, [ASEN_F32] = copy_i32_f32, [ASEN_F64] = copy_i32_f64},
    [ASEN_I64] = {[ASEN_F32] = copy_i64_f32, [ASEN_F64] = copy_i64_f64},
    [ASEN_F32] = {[ASEN_F64] = copy_f32_f64},
    [ASEN_F64] = {[ASEN_F32] = copy_f64_f32},
};

static copy_row copy_row_of(asen_dtype from, asen_dtype to)
{
    if (from != to)
        return copy_rows[from][to];
    switch (asen_dtype_size(from)) {
    case 1: return copy_bits8;
    case 2: return copy_bits16;
    case 4: return copy_bits32;
    default: return copy_bits64;
    }
}

#define COPY_TILE 32

/* y (rows, columns) with row stride ys and unit columns = x, unit along rows, stride xs along columns. */
#define COPY_TILES(name, type)                                                                               \
    FAST_CLONES static void name(void *target, int64_t ys, const void *source, int64_t xs, int64_t rows,     \
                                 int64_t columns)                                                            \
    {                                                                                                        \
        type *restrict y = target;                                                                           \
        const type *restrict x = source;                                                                     \
        for (int64_t r = 0; r < rows; r += COPY_TILE) {                                                      \
            int64_t r_end = fast_min_i64(rows, r + COPY_TILE);                                               \
            for (int64_t c = 0; c < columns; c += COPY_TILE) {                                               \
                int64_t c_end = fast_min_i64(columns, c + COPY_TILE);                                        \
                for (int64_t i = r; i < r_end; i++)                                                          \
                    for (int64_t j = c; j < c_end; j++)                                                      \
                        y[i * ys + j] = x[j * xs + i];                                                       \
            }                                                                                                \
        }                                                                                                    \
    }
COPY_TILES(copy_tiles8, uint8_t)
COPY_TILES(copy_tiles32, uint32_t)
COPY_TILES(copy_tiles64, uint64_t)

typedef struct copy_work {
    fast_nest nest; /* operand 0 the output, 1 the source */
    int64_t count;
    size_t to_size, from_size;
    char *y;
    const char *x;
    copy_row row;
} copy_work;

static void copy_linear(const copy_work *k, int64_t from, int64_t to)
{
    int inner = k->nest.ndim - 1;
    int64_t row = k->nest.size[inner], stride = k->nest.stride[1][inner], skip = from % row;
    int64_t position[ASEN_MAX_DIMS], offset[FAST_MAX_OPERANDS];
    fast_nest_seek(&k->nest, 2, inner, from / row, position, offset);
    for (int64_t at = from; at < to;) {
        int64_t n = fast_min_i64(row - skip, to - at);
        k->row(k->y + (offset[0] + skip) * (int64_t)k->to_size,
               k->x + (offset[1] + skip * stride) * (int64_t)k->from_size, stride, n);
        at += n;
        skip = 0;
        fast_nest_next(&k->nest, 2, inner, position, offset);
    }
}

/* The dim, before the innermost, along which the source has stride 1; -1: none. */
static int copy_unit_dim(const fast_nest *nest)
{
    if (nest->stride[1][nest->ndim - 1] == 1 || nest->size[nest->ndim - 1] < 2)
        return -1;
    for (int d = nest->ndim - 2; d >= 0; d--)
        if (nest->stride[1][d] == 1 && nest->size[d] >= 4)
            return d;
    return -1;
}

/* Slices of the unit dim of all the other outer positions, divided among the threads. */
static void copy_tiled(const copy_work *k, int unit, int threads)
{
    fast_nest rest = {0};
    int inner = k->nest.ndim - 1;
    for (int d = 0; d < inner; d++)
        if (d != unit) {
            rest.size[rest.ndim] = k->nest.size[d];
            rest.stride[0][rest.ndim] = k->nest.stride[0][d];
            rest.stride[1][rest.ndim++] = k->nest.stride[1][d];
        }
    int64_t rows = k->nest.size[unit], ys = k->nest.stride[0][unit], xs = k->nest.stride[1][inner];
    int64_t columns = k->nest.size[inner], size = (int64_t)k->to_size;
    int64_t outer = k->count / (rows * columns), slices = (rows + COPY_TILE - 1) / COPY_TILE;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int t = omp_get_thread_num(), team = omp_get_num_threads();
        int64_t to = fast_part(outer * slices, t + 1, team);
        for (int64_t piece = fast_part(outer * slices, t, team); piece < to;) {
            int64_t position[ASEN_MAX_DIMS], offset[FAST_MAX_OPERANDS];
            fast_nest_seek(&rest, 2, rest.ndim, piece / slices, position, offset);
            int64_t first = piece % slices, last = fast_min_i64(slices, first + (to - piece));
            int64_t begin = first * COPY_TILE, end = fast_min_i64(rows, last * COPY_TILE);
            char *y = k->y + (offset[0] + begin * ys) * size;
            const char *x = k->x + (offset[1] + begin) * size;
            (size == 1 ? copy_tiles8 : size == 4 ? copy_tiles32 : copy_tiles64)(y, ys, x, xs, end - begin, columns);
            piece += last - first;
        }
    }
}

int fast_copy(const asen_call *call)
{
    const asen_tensor *x = call->in[0];
    asen_tensor *y = call->out[0];
    copy_work k = {
        .count = asen_tensor_count(y),
        .to_size = asen_dtype_size(y->dtype),
        .from_size = asen_dtype_size(x->dtype),
        .y = asen_tensor_data(y),
        .x = asen_tensor_data(x),
        .row = copy_row_of(x->dtype, y->dtype),
    };
    if (k.row == NULL)
        return ASEN_DECLINED;
    if (k.count == 0)
        return ASEN_OK;
    fast_nest_of(&k.nest, y, (const asen_tensor *const *)call->in, 1);
    int threads = fast_threads(k.count, k.count);
    int unit = x->dtype == y->dtype && k.to_size != 2 ? copy_unit_dim(&k.nest) : -1;
    if (unit >= 0) {
        copy_tiled(&k, unit, threads);
        return ASEN_OK;
    }
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int t = omp_get_thread_num(), team = omp_get_num_threads();
        copy_linear(&k, fast_part(k.count, t, team), fast_part(k.count, t + 1, team));
    }
    return ASEN_OK;
}
