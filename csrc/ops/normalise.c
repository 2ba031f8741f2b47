/* The normalising of attributes (shape.h): after it, no reader has to know that dims may be
 * negative, lists short, or sizes left to be worked out. */
#include "ops/shape.h"

static int wrap_dim(const asen_tensor *x, int64_t *dim)
{
    int64_t given = *dim;
    if (*dim < 0)
        *dim += x->ndim;
    if (*dim < 0 || *dim >= x->ndim)
        return asen_fail(ASEN_ERR_VALUE, "dim %lld is not a dim of x %s", (long long)given, ASEN_SHAPE_TEXT(x));
    return ASEN_OK;
}

/* Wraps each; none may come twice. `seen` has a bit for each dim. */
static int wrap_dims(const asen_tensor *x, asen_list *dims, unsigned *seen)
{
    *seen = 0;
    for (int i = 0; i < dims->count; i++) {
        int status = wrap_dim(x, &dims->item[i]);
        if (status != ASEN_OK)
            return status;
        unsigned bit = 1u << dims->item[i];
        if (*seen & bit)
            return asen_fail(ASEN_ERR_VALUE, "dim %lld of x %s is named twice", (long long)dims->item[i], ASEN_SHAPE_TEXT(x));
        *seen |= bit;
    }
    return ASEN_OK;
}

/* Sorted; an empty list means all dims. A tensor without dims has 0 (or -1) to name, once, and none to go over. */
static int normalise_reduce(const asen_tensor *x, asen_list *dims)
{
    unsigned seen;
    if (x->ndim == 0 && dims->count == 1 && (dims->item[0] == 0 || dims->item[0] == -1))
        dims->count = 0;
    int status = wrap_dims(x, dims, &seen);
    if (status != ASEN_OK)
        return status;
    if (dims->count == 0)
        seen = (1u << x->ndim) - 1;
    dims->count = 0;
    for (int i = 0; i < x->ndim; i++)
        if (seen >> i & 1)
            dims->item[dims->count++] = i;
    return ASEN_OK;
}

static int normalise_permute(const asen_tensor *x, asen_list *dims)
{
    unsigned seen;
    if (dims->count != x->ndim)
        return asen_fail(ASEN_ERR_VALUE, "%lld dims were given for x %s, but each of its %d must be named once",
                         (long long)dims->count, ASEN_SHAPE_TEXT(x), x->ndim);
    return wrap_dims(x, dims, &seen);
}

/* One size may be -1: what is left. */
static int normalise_reshape(const asen_tensor *x, asen_list *shape)
{
    int64_t count = asen_tensor_count(x), known = 1;
    int open = -1;
    for (int i = 0; i < shape->count; i++) {
        int64_t size = shape->item[i];
        if (size == -1 && open < 0) {
            open = i;
            continue;
        }
        if (size < 0)
            return asen_fail(ASEN_ERR_VALUE, "size %lld in dim %d of the new shape: one size may be -1, no other may be negative",
                             (long long)size, i);
        if (size > 0 && known > INT64_MAX / size)
            return asen_fail(ASEN_ERR_VALUE, "x %s does not fit into the new shape, which is too large", ASEN_SHAPE_TEXT(x));
        known *= size;
    }
    if (open < 0)
        return ASEN_OK;
    if (known == 0 || count % known != 0)
        return asen_fail(ASEN_ERR_VALUE, "x %s has %lld elements, which do not part into rows of %lld", ASEN_SHAPE_TEXT(x),
                         (long long)count, (long long)known);
    shape->item[open] = count / known;
    return ASEN_OK;
}

/* A bound of a slice of n, as Python reads it: from the end where negative, then inside [0, n]. */
static int64_t clamp_bound(int64_t bound, int64_t n)
{
    if (bound < 0)
        bound += n;
    return bound < 0 ? 0 : bound > n ? n : bound;
}

static int check_slice_lists(const asen_tensor *x, const asen_list *const *list, const char *const *name, int count)
{
    for (int i = 0; i < count; i++)
        if (list[i]->count > x->ndim)
            return asen_fail(ASEN_ERR_VALUE, "%lld items in %s, but x %s has %d dims", (long long)list[i]->count, name[i],
                             ASEN_SHAPE_TEXT(x), x->ndim);
    return ASEN_OK;
}

static void fill_list(asen_list *list, int count, int64_t value)
{
    for (; list->count < count; list->count++)
        list->item[list->count] = value;
}

static int normalise_slice(const asen_tensor *x, asen_list *start, asen_list *stop, asen_list *step)
{
    int status = check_slice_lists(x, (const asen_list *const[]){start, stop, step},
                                   (const char *const[]){"start", "stop", "step"}, 3);
    if (status != ASEN_OK)
        return status;
    fill_list(start, x->ndim, 0);
    fill_list(stop, x->ndim, INT64_MAX);
    fill_list(step, x->ndim, 1);
    for (int i = 0; i < x->ndim; i++) {
        if (step->item[i] < 1)
            return asen_fail(ASEN_ERR_VALUE, "step %lld in dim %d: at least 1 is wanted", (long long)step->item[i], i);
        start->item[i] = clamp_bound(start->item[i], x->shape[i]);
        stop->item[i] = clamp_bound(stop->item[i], x->shape[i]);
        if (stop->item[i] < start->item[i])
            stop->item[i] = start->item[i];
    }
    return ASEN_OK;
}

/* -1: the size that x has there. */
static int normalise_expand(const asen_tensor *x, asen_list *shape)
{
    for (int i = 0; i < shape->count; i++) {
        int64_t from = i - (shape->count - x->ndim);
        if (shape->item[i] != -1)
            continue;
        if (from < 0)
            return asen_fail(ASEN_ERR_VALUE, "size -1 in dim %d of the new shape, where x %s has no dim to keep", i, ASEN_SHAPE_TEXT(x));
        shape->item[i] = x->shape[from];
    }
    return ASEN_OK;
}

/* k: -1 becomes the size of the dim. */
static int normalise_sort(const asen_tensor *x, asen_attrs *attrs)
{
    int status = wrap_dim(x, &attrs->sort.dim);
    if (status == ASEN_OK && attrs->sort.k == -1)
        attrs->sort.k = x->shape[attrs->sort.dim];
    return status;
}

int asen_attrs_normalise(asen_op op, asen_tensor *const *in, int n_in, asen_attrs *attrs)
{
    if (n_in < 1 || !in[0])
        return asen_fail(ASEN_ERR_VALUE, "at least one input is wanted");
    const asen_tensor *x = in[0];
    switch (op) {
    case ASEN_OP_copy:
        if (attrs->copy.dtype == -1)
            attrs->copy.dtype = x->dtype;
        return ASEN_OK;
    case ASEN_OP_sum:
    case ASEN_OP_mean:
    case ASEN_OP_max:
        return normalise_reduce(x, &attrs->sum.dims);
    case ASEN_OP_max_grad:
        return normalise_reduce(in[1], &attrs->max_grad.dims);
    case ASEN_OP_softmax:
    case ASEN_OP_log_softmax:
        return wrap_dim(x, &attrs->softmax.dim);
    case ASEN_OP_cat:
        return wrap_dim(x, &attrs->cat.dim);
    case ASEN_OP_sort:
        return normalise_sort(x, attrs);
    case ASEN_OP_gather:
        return wrap_dim(x, &attrs->gather.dim);
    case ASEN_OP_max_pool2d:
        for (int i = 0; i < 2; i++)
            if (attrs->max_pool2d.stride[i] == 0)
                attrs->max_pool2d.stride[i] = attrs->max_pool2d.kernel_size[i];
        return ASEN_OK;
    case ASEN_OP_slice_grad:
        fill_list(&attrs->slice_grad.start, x->ndim, 0);
        fill_list(&attrs->slice_grad.step, x->ndim, 1);
        return ASEN_OK;
    case ASEN_OP_reshape:
        return normalise_reshape(x, &attrs->reshape.shape);
    case ASEN_OP_permute:
        return normalise_permute(x, &attrs->permute.dims);
    case ASEN_OP_slice:
        return normalise_slice(x, &attrs->slice.start, &attrs->slice.stop, &attrs->slice.step);
    case ASEN_OP_expand:
        return normalise_expand(x, &attrs->expand.shape);
    default:
        return ASEN_OK;
    }
}
