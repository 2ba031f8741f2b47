/* The reference kernels: every op in plain loops, float32 and float64. The oracle for the tests
 * and the fallback where no faster kernel takes a call.
 *
 * Elements are read as double and rounded once when they are written; sums are in double, for
 * float32 too. A kernel declines dtypes it does not know. Offsets are computed from shapes: the
 * stride of a dim of size 1 means nothing. */
#ifndef ASEN_CPU_REF_H
#define ASEN_CPU_REF_H

#include <string.h>

#include "cpu/cpu.h"

/* int ref_<op>(const asen_call *call) for every row. */
#define OP(name, ...) int ref_##name(const asen_call *call);
#include "ops/ops.def"

/* ---- elements ---- */

typedef struct ref_array {
    void *data;
    asen_dtype dtype;
} ref_array;

static inline ref_array ref_array_of(const asen_tensor *t)
{
    return (ref_array){asen_tensor_data(t), t->dtype};
}

/* Any dtype; float to integer truncates and saturates at int64, bool is x != 0. */
double asen_ref_get_any(ref_array a, int64_t i);
void asen_ref_put_any(ref_array a, int64_t i, double value);
int64_t asen_ref_get_int(ref_array a, int64_t i);
void asen_ref_put_int(ref_array a, int64_t i, int64_t value);

static inline double ref_get(ref_array a, int64_t i)
{
    if (a.dtype == ASEN_F32)
        return ((const float *)a.data)[i];
    if (a.dtype == ASEN_F64)
        return ((const double *)a.data)[i];
    return asen_ref_get_any(a, i);
}

static inline void ref_put(ref_array a, int64_t i, double value)
{
    if (a.dtype == ASEN_F32)
        ((float *)a.data)[i] = (float)value;
    else if (a.dtype == ASEN_F64)
        ((double *)a.data)[i] = value;
    else
        asen_ref_put_any(a, i, value);
}

/* A scalar as an operation in `dtype` sees it. volatile: GCC 12.2 at -O2 loses the
 * conversion where it vectorises two of these side by side (-fno-tree-slp-vectorize keeps it). */
static inline double ref_round(asen_dtype dtype, double value)
{
    volatile float rounded = (float)value;
    return dtype == ASEN_F32 ? (double)rounded : value;
}

static inline bool ref_is_float(const asen_tensor *t)
{
    return t == NULL || t->dtype == ASEN_F32 || t->dtype == ASEN_F64;
}

static inline bool ref_is_int(const asen_tensor *t) { return t->dtype <= ASEN_I64; }

/* An input that may be absent: NULL then. */
static inline const asen_tensor *ref_optional(const asen_call *call, int i)
{
    return i < call->n_in ? call->in[i] : NULL;
}

/* True when every input that is there and every output is float32 or float64. */
bool asen_ref_all_float(const asen_call *call);

/* sum_j a[ia + j] b[ib + j], j < n */
double asen_ref_dot(ref_array a, int64_t ia, ref_array b, int64_t ib, int64_t n);
/* sum[j] += factor * a[ia + j], j < n */
void asen_ref_add_scaled(double *sum, double factor, ref_array a, int64_t ia, int64_t n);

/* `count` zeros, to be freed by the caller. */
int asen_ref_zeros_new(int64_t count, double **out);
/* An index outside [0, size): ASEN_ERR_INDEX, naming all three. */
int asen_ref_check_index(const char *what, int64_t value, int64_t position, int64_t size, const char *size_name);

/* ---- walking over a shape ---- */

#define REF_WALK_MAX 3

/* Visits the positions of a shape in the memory order of a dense tensor of that shape; at[k] is
 * the offset of the position in the k-th operand added. */
typedef struct ref_walk {
    int ndim, operands;
    int order[ASEN_MAX_DIMS]; /* memory order -> dim */
    int64_t size[ASEN_MAX_DIMS], index[ASEN_MAX_DIMS];
    int64_t stride[REF_WALK_MAX][ASEN_MAX_DIMS];
    int64_t at[REF_WALK_MAX];
    int64_t count; /* positions */
} ref_walk;

void asen_ref_walk_start(ref_walk *walk, int ndim, const int64_t *shape);
/* An operand with a stride for each dim of the shape and the offset of position 0. */
void asen_ref_walk_add(ref_walk *walk, const int64_t *stride, int64_t offset);

static inline void ref_walk_next(ref_walk *w)
{
    for (int d = w->ndim - 1; d >= 0; d--) {
        for (int k = 0; k < w->operands; k++)
            w->at[k] += w->stride[k][d];
        if (++w->index[d] < w->size[d])
            return;
        for (int k = 0; k < w->operands; k++)
            w->at[k] -= w->stride[k][d] * w->size[d];
        w->index[d] = 0;
    }
}

#endif
