/* Shape rules (shape.h): ops that move elements, and views. */
#include "ops/shape/rule.h"

/* ---- structure ---- */

RULE(cat)
{
    const asen_tensor *first = in[0];
    int dim = (int)attrs->cat.dim;
    int64_t shape[ASEN_MAX_DIMS];
    for (int d = 0; d < first->ndim; d++)
        shape[d] = d == dim ? 0 : first->shape[d];
    for (int i = 0; i < n_in; i++) {
        bool fits = in[i]->ndim == first->ndim;
        for (int d = 0; fits && d < first->ndim; d++)
            fits = d == dim || in[i]->shape[d] == first->shape[d];
        WANT(fits, "x[%d] %s does not join x[0] %s along dim %d: all other dims must be equal", i, TEXT(in[i]), TEXT(first), dim);
        TRY(want_dtype("an input", in[i], first->dtype, "the first is"));
        shape[dim] += in[i]->shape[dim];
    }
    return give_one(out, n_out, first->dtype, first->ndim, shape);
}

RULE(slice_grad)
{
    UNUSED(n_in);
    const asen_tensor *dy = in[0];
    const asen_list *shape = &attrs->slice_grad.shape, *start = &attrs->slice_grad.start, *step = &attrs->slice_grad.step;
    WANT(shape->count == dy->ndim, "dy %s has %d dims, but shape %lld", TEXT(dy), dy->ndim, (long long)shape->count);
    for (int i = 0; i < dy->ndim; i++) {
        WANT(start->item[i] >= 0 && step->item[i] >= 1, "start %lld and step %lld in dim %d: at least 0 and 1 are wanted",
             (long long)start->item[i], (long long)step->item[i], i);
        WANT(shape->item[i] >= 0, "negative size %lld in dim %d of shape", (long long)shape->item[i], i);
        int64_t extent = shape->item[i] - 1 - start->item[i];
        WANT(dy->shape[i] == 0 || (extent >= 0 && dy->shape[i] - 1 <= extent / step->item[i]),
             "dy %s from %lld in steps of %lld does not lie in a dim %d of %lld", TEXT(dy), (long long)start->item[i],
             (long long)step->item[i], i, (long long)shape->item[i]);
    }
    return give_one(out, n_out, dy->dtype, (int)shape->count, shape->item);
}

RULE(embedding)
{
    UNUSED(n_in), UNUSED(attrs);
    const asen_tensor *weight = in[0], *index = in[1];
    int64_t shape[ASEN_MAX_DIMS + 1];
    TRY(want_float("weight", weight));
    TRY(want_ndim("weight", weight, 2, "(R, D)"));
    TRY(want_int64("index", index));
    for (int i = 0; i < index->ndim; i++)
        shape[i] = index->shape[i];
    shape[index->ndim] = weight->shape[1];
    return give_one(out, n_out, weight->dtype, index->ndim + 1, shape);
}

RULE(embedding_grad)
{
    UNUSED(n_in);
    const asen_tensor *dy = in[0], *index = in[1];
    TRY(want_float("dy", dy));
    TRY(want_int64("index", index));
    WANT(dy->ndim >= 1, "dy () has no dims, but (..., D) is wanted");
    int64_t width = dy->shape[dy->ndim - 1];
    WANT(dy->ndim == index->ndim + 1 && asen_shape_count(index->ndim, index->shape) == asen_shape_count(index->ndim, dy->shape),
         "dy %s must have the shape of index %s and one dim more", TEXT(dy), TEXT(index));
    return give_one(out, n_out, dy->dtype, DIMS(attrs->embedding_grad.rows, width));
}

RULE(dropout)
{
    UNUSED(n_in);
    TRY(want_float("x", in[0]));
    WANT(attrs->dropout.p >= 0 && attrs->dropout.p < 1, "p %g is not in [0, 1)", attrs->dropout.p);
    return give_like(out, n_out, in[0]);
}

RULE(normalize_pixels)
{
    UNUSED(n_in), UNUSED(attrs);
    const asen_tensor *x = in[0], *table = in[1];
    TRY(want_ndim("x", x, 4, "(N, C, H, W)"));
    TRY(want_dtype("x", x, ASEN_U8, "its dtype must be"));
    TRY(want_float("table", table));
    TRY(want_shape("table", table, "a row of 256 for each channel of x", DIMS(x->shape[1], 256)));
    return give_one(out, n_out, table->dtype, 4, x->shape);
}

/* ---- views ---- */

RULE(reshape)
{
    UNUSED(n_in);
    const asen_list *shape = &attrs->reshape.shape;
    TRY(give_one(out, n_out, in[0]->dtype, (int)shape->count, shape->item));
    WANT(asen_shape_count(out->ndim, out->shape) == asen_tensor_count(in[0]), "x %s has %lld elements, but %s has %lld", TEXT(in[0]),
         (long long)asen_tensor_count(in[0]), TEXT(out), (long long)asen_shape_count(out->ndim, out->shape));
    return ASEN_OK;
}

RULE(permute)
{
    UNUSED(n_in);
    int64_t shape[ASEN_MAX_DIMS];
    for (int i = 0; i < in[0]->ndim; i++)
        shape[i] = in[0]->shape[attrs->permute.dims.item[i]];
    return give_one(out, n_out, in[0]->dtype, in[0]->ndim, shape);
}

RULE(slice)
{
    UNUSED(n_in);
    int64_t shape[ASEN_MAX_DIMS];
    for (int i = 0; i < in[0]->ndim; i++) {
        int64_t length = attrs->slice.stop.item[i] - attrs->slice.start.item[i];
        shape[i] = length > 0 ? (length - 1) / attrs->slice.step.item[i] + 1 : 0;
    }
    return give_one(out, n_out, in[0]->dtype, in[0]->ndim, shape);
}

RULE(expand)
{
    UNUSED(n_in);
    const asen_tensor *x = in[0];
    const asen_list *shape = &attrs->expand.shape;
    int added = (int)shape->count - x->ndim;
    TRY(give_one(out, n_out, x->dtype, (int)shape->count, shape->item));
    WANT(added >= 0, "x %s has more dims than %s", TEXT(x), TEXT(out));
    for (int i = 0; i < x->ndim; i++)
        WANT(x->shape[i] == shape->item[added + i] || x->shape[i] == 1, "x %s does not broadcast to %s: %lld against %lld in dim %d",
             TEXT(x), TEXT(out), (long long)x->shape[i], (long long)shape->item[added + i], added + i);
    return ASEN_OK;
}
