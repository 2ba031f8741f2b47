/* Shape rules (shape.h): rows that compare, choose, order and pick. */
#include <limits.h>

#include "ops/shape/rule.h"

/* ---- comparing and choosing ---- */

RULE(compare)
{
    UNUSED(n_in);
    WANT(attrs->compare.relation >= 0 && attrs->compare.relation <= 5, "there is no relation %lld: 0 to 5 are <, <=, ==, !=, >, >=",
         (long long)attrs->compare.relation);
    return broadcast_rule(in, ASEN_BOOL, out, n_out);
}

RULE(where)
{
    UNUSED(n_in), UNUSED(attrs);
    const asen_tensor *condition = in[0], *a = in[1], *b = in[2];
    int64_t shape[ASEN_MAX_DIMS];
    int ndim;
    if (condition->dtype != ASEN_BOOL)
        return asen_fail(ASEN_ERR_TYPE, "condition is %s, but bool is wanted: compare it first", asen_dtype_name(condition->dtype));
    TRY(want_dtype("b", b, a->dtype, "a is"));
    TRY(broadcast_shape("a", a->ndim, a->shape, "b", b, &ndim, shape));
    TRY(broadcast_shape("a and b", ndim, shape, "condition", condition, &ndim, shape));
    return give_one(out, n_out, a->dtype, ndim, shape);
}

/* ---- ordering and picking along a dim ---- */

/* Lines that kernels may number with 31 bits. */
RULE(sort)
{
    UNUSED(n_in);
    const asen_tensor *x = in[0];
    int64_t shape[ASEN_MAX_DIMS], n = x->shape[attrs->sort.dim], k = attrs->sort.k;
    WANT(k >= 0 && k <= n, "k is %lld, but dim %lld of x %s has %lld elements", (long long)k, (long long)attrs->sort.dim, TEXT(x),
         (long long)n);
    WANT(n <= INT_MAX, "dim %lld of x %s is longer than %d", (long long)attrs->sort.dim, TEXT(x), INT_MAX);
    memcpy(shape, x->shape, sizeof shape);
    shape[attrs->sort.dim] = k;
    TRY(give(&out[0], x->dtype, x->ndim, shape));
    *n_out = 2;
    return give(&out[1], ASEN_I64, x->ndim, shape);
}

/* index: what is picked of `shape` along `dim` */
static int want_picks(const asen_tensor *index, const char *whole, int ndim, const int64_t *shape, int64_t dim)
{
    TRY(want_int64("index", index));
    WANT(index->ndim == ndim, "index %s has %d dims, but %s has %d", TEXT(index), index->ndim, whole, ndim);
    for (int d = 0; d < ndim; d++)
        WANT(d == dim || index->shape[d] <= shape[d], "index %s is larger than %s %s in dim %d", TEXT(index), whole,
             asen_shape_text(ndim, shape, (char[128]){0}, 128), d);
    return ASEN_OK;
}

RULE(gather)
{
    UNUSED(n_in);
    TRY(want_picks(in[1], "x", in[0]->ndim, in[0]->shape, attrs->gather.dim));
    return give_one(out, n_out, in[0]->dtype, in[1]->ndim, in[1]->shape);
}

RULE(gather_grad)
{
    UNUSED(n_in);
    const asen_list *shape = &attrs->gather_grad.shape;
    WANT(attrs->gather_grad.dim >= 0 && attrs->gather_grad.dim < shape->count, "dim %lld of a shape of %lld dims",
         (long long)attrs->gather_grad.dim, (long long)shape->count);
    TRY(want_float("dy", in[0]));
    TRY(want_like("dy", in[0], "index", in[1]));
    TRY(give_one(out, n_out, in[0]->dtype, (int)shape->count, shape->item));
    return want_picks(in[1], "the shape", (int)shape->count, shape->item, attrs->gather_grad.dim);
}
