/* Reference: comparing, choosing, ordering and picking elements. Any dtype; NaN compares as IEEE 754 says,
 * and is the largest where elements are ordered. */
#include <math.h>
#include <stdlib.h>

#include "cpu/ref/ref.h"

/* A walk over out[0] whose operands are the inputs, broadcast. */
static void walk_inputs(const asen_call *call, ref_walk *walk)
{
    const asen_tensor *y = call->out[0];
    int64_t stride[ASEN_MAX_DIMS];
    asen_ref_walk_start(walk, y->ndim, y->shape);
    for (int i = 0; i < call->n_in; i++) {
        asen_broadcast_strides(call->in[i], y->ndim, y->shape, stride);
        asen_ref_walk_add(walk, stride, 0);
    }
}

/* ---- comparisons; relations as in ops.def ---- */

#define RELATION(name, type)                                                                                           \
    static bool name(type a, type b, int64_t relation)                                                                 \
    {                                                                                                                  \
        switch (relation) {                                                                                            \
        case 0: return a < b;                                                                                          \
        case 1: return a <= b;                                                                                         \
        case 2: return a == b;                                                                                         \
        case 3: return a != b;                                                                                         \
        case 4: return a > b;                                                                                          \
        default: return a >= b;                                                                                        \
        }                                                                                                              \
    }
RELATION(relates_double, double)
RELATION(relates_integer, int64_t)

int ref_compare(const asen_call *call)
{
    ref_array a = ref_array_of(call->in[0]), b = ref_array_of(call->in[1]);
    bool *y = asen_tensor_data(call->out[0]);
    bool integer = ref_is_int(call->in[0]);
    int64_t relation = call->attrs->compare.relation;
    ref_walk walk;
    walk_inputs(call, &walk);
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk))
        y[i] = integer ? relates_integer(asen_ref_get_int(a, walk.at[0]), asen_ref_get_int(b, walk.at[1]), relation)
                       : relates_double(ref_get(a, walk.at[0]), ref_get(b, walk.at[1]), relation);
    return ASEN_OK;
}

/* ---- choosing ---- */

static void move_element(ref_array to, int64_t to_at, ref_array from, int64_t from_at, size_t size)
{
    memcpy((char *)to.data + to_at * (int64_t)size, (const char *)from.data + from_at * (int64_t)size, size);
}

int ref_where(const asen_call *call)
{
    const uint8_t *condition = asen_tensor_data(call->in[0]);
    ref_array a = ref_array_of(call->in[1]), b = ref_array_of(call->in[2]), y = ref_array_of(call->out[0]);
    size_t size = asen_dtype_size(y.dtype);
    ref_walk walk;
    walk_inputs(call, &walk);
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk)) {
        bool first = condition[walk.at[0]] != 0;
        move_element(y, i, first ? a : b, first ? walk.at[1] : walk.at[2], size);
    }
    return ASEN_OK;
}

/* ---- ordering: one line of x along the dim at a time ---- */

typedef struct line {
    ref_array x;
    int64_t at, step; /* of element 0, from one to the next */
    bool descending, nan_first;
} line;

/* Whether element i comes before element j whatever their places are. */
static bool precedes(const line *l, int64_t i, int64_t j)
{
    if (l->x.dtype <= ASEN_I64) {
        int64_t a = asen_ref_get_int(l->x, l->at + i * l->step), b = asen_ref_get_int(l->x, l->at + j * l->step);
        return l->descending ? a > b : a < b;
    }
    double a = ref_get(l->x, l->at + i * l->step), b = ref_get(l->x, l->at + j * l->step);
    if (isnan(a) || isnan(b))
        return l->descending || l->nan_first ? isnan(a) && !isnan(b) : isnan(b) && !isnan(a);
    return l->descending ? a > b : a < b;
}

/* order[n] becomes the places of the line's elements in order, equal ones as they lie: a merge sort from
 * runs of one upwards. spare[n]. Returns the one of the two arrays that holds the result. */
static int64_t *sort_line(const line *l, int64_t n, int64_t *order, int64_t *spare)
{
    for (int64_t i = 0; i < n; i++)
        order[i] = i;
    for (int64_t run = 1; run < n; run *= 2) {
        for (int64_t start = 0; start < n; start += 2 * run) {
            int64_t middle = start + run < n ? start + run : n, end = middle + run < n ? middle + run : n;
            int64_t a = start, b = middle;
            for (int64_t to = start; to < end; to++) {
                bool right = a == middle || (b < end && precedes(l, order[b], order[a]));
                spare[to] = order[right ? b++ : a++];
            }
        }
        int64_t *swap = order;
        order = spare;
        spare = swap;
    }
    return order;
}

static int64_t first_of_line(const line *l, int64_t n)
{
    int64_t first = 0;
    for (int64_t i = 1; i < n; i++)
        if (precedes(l, i, first))
            first = i;
    return first;
}

/* A walk over the lines of x along `dim`; operand k has the strides of t[k] with the dim left out. */
static void walk_lines(const asen_tensor *x, int dim, const asen_tensor *const *t, int count, ref_walk *walk)
{
    int64_t shape[ASEN_MAX_DIMS], stride[ASEN_MAX_DIMS];
    memcpy(shape, x->shape, sizeof shape);
    shape[dim] = 1;
    asen_ref_walk_start(walk, x->ndim, shape);
    for (int k = 0; k < count; k++) {
        asen_dense_strides(t[k]->ndim, t[k]->shape, stride);
        asen_ref_walk_add(walk, stride, 0);
    }
}

static int64_t dense_stride(const asen_tensor *t, int dim)
{
    int64_t stride[ASEN_MAX_DIMS];
    asen_dense_strides(t->ndim, t->shape, stride);
    return stride[dim];
}

int ref_sort(const asen_call *call)
{
    const asen_tensor *x = call->in[0], *y = call->out[0];
    int dim = (int)call->attrs->sort.dim;
    int64_t n = x->shape[dim], k = y->shape[dim], y_step = dense_stride(y, dim), *index = asen_tensor_data(call->out[1]);
    size_t size = asen_dtype_size(x->dtype);
    if (asen_tensor_count(y) == 0)
        return ASEN_OK;
    int64_t *order = malloc(2 * (size_t)n * sizeof *order);
    if (order == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "no memory to sort lines of %lld", (long long)n);
    line l = {.x = ref_array_of(x), .step = dense_stride(x, dim), .descending = call->attrs->sort.descending != 0,
              .nan_first = call->attrs->sort.nan_first != 0};
    ref_walk walk;
    walk_lines(x, dim, (const asen_tensor *const[]){x, y}, 2, &walk);
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk)) {
        l.at = walk.at[0];
        const int64_t first = k == 1 ? first_of_line(&l, n) : 0;
        const int64_t *sorted = k == 1 ? &first : sort_line(&l, n, order, order + n);
        for (int64_t j = 0; j < k; j++) {
            int64_t to = walk.at[1] + j * y_step;
            move_element(ref_array_of(y), to, l.x, l.at + sorted[j] * l.step, size);
            index[to] = sorted[j];
        }
    }
    free(order);
    return ASEN_OK;
}

/* ---- picking along a dim: index may be smaller than x in the other dims ---- */

/* A walk over index, whose operands are itself and the elements of `whole` at its position with 0 in the dim. */
static void walk_picks(const asen_tensor *index, const asen_tensor *whole, int dim, ref_walk *walk, int64_t *step)
{
    int64_t index_stride[ASEN_MAX_DIMS], stride[ASEN_MAX_DIMS];
    asen_dense_strides(index->ndim, index->shape, index_stride);
    asen_dense_strides(whole->ndim, whole->shape, stride);
    *step = stride[dim];
    stride[dim] = 0;
    asen_ref_walk_start(walk, index->ndim, index->shape);
    asen_ref_walk_add(walk, index_stride, 0);
    asen_ref_walk_add(walk, stride, 0);
}

int ref_gather(const asen_call *call)
{
    const asen_tensor *x = call->in[0], *index = call->in[1];
    int dim = (int)call->attrs->gather.dim;
    const int64_t *picked = asen_tensor_data(index);
    int64_t step;
    ref_walk walk;
    walk_picks(index, x, dim, &walk, &step);
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk)) {
        int status = asen_ref_check_index("index", picked[walk.at[0]], i, x->shape[dim], "elements in the dim");
        if (status != ASEN_OK)
            return status;
        move_element(ref_array_of(call->out[0]), walk.at[0], ref_array_of(x), walk.at[1] + picked[walk.at[0]] * step,
                     asen_dtype_size(x->dtype));
    }
    return ASEN_OK;
}

int ref_gather_grad(const asen_call *call)
{
    const asen_tensor *dy = call->in[0], *index = call->in[1], *dx = call->out[0];
    if (!ref_is_float(dy))
        return ASEN_DECLINED;
    int dim = (int)call->attrs->gather_grad.dim;
    const int64_t *picked = asen_tensor_data(index);
    int64_t step, count = asen_tensor_count(dx);
    ref_walk walk;
    double *sum;
    int status = asen_ref_zeros_new(count, &sum);
    if (status != ASEN_OK)
        return status;
    walk_picks(index, dx, dim, &walk, &step);
    for (int64_t i = 0; i < walk.count && status == ASEN_OK; i++, ref_walk_next(&walk)) {
        status = asen_ref_check_index("index", picked[walk.at[0]], i, dx->shape[dim], "elements in the dim");
        if (status == ASEN_OK)
            sum[walk.at[1] + picked[walk.at[0]] * step] += ref_get(ref_array_of(dy), walk.at[0]);
    }
    for (int64_t i = 0; i < count && status == ASEN_OK; i++)
        ref_put(ref_array_of(dx), i, sum[i]);
    free(sum);
    return status;
}
