/* Views: see view.h. */
#include "ops/view.h"

#include <string.h>

#include "ops/run.h"

/* Strides with which `x` reads as `shape` without moving an element; false where there are none.
 * Both shapes are cut into runs of equal element counts; a run of x must step evenly. */
static bool reshape_strides(const asen_tensor *x, const asen_list *shape, int64_t *stride)
{
    int64_t old_shape[ASEN_MAX_DIMS], old_stride[ASEN_MAX_DIMS];
    int old_n = 0, n = (int)shape->count;
    for (int d = 0; d < x->ndim; d++)
        if (x->shape[d] != 1) {
            old_shape[old_n] = x->shape[d];
            old_stride[old_n++] = x->stride[d];
        }
    int i = 0, j = 0;
    while (i < old_n && j < n) {
        int64_t have = old_shape[i], want = shape->item[j];
        int i_end = i + 1, j_end = j + 1;
        while (have != want) {
            if (have < want) {
                if (i_end == old_n)
                    return false;
                have *= old_shape[i_end++];
            } else {
                if (j_end == n)
                    return false;
                want *= shape->item[j_end++];
            }
        }
        for (int k = i; k + 1 < i_end; k++)
            if (old_stride[k] != old_shape[k + 1] * old_stride[k + 1])
                return false;
        int64_t step = old_stride[i_end - 1];
        for (int k = j_end - 1; k >= j; k--) {
            stride[k] = step;
            step *= shape->item[k];
        }
        i = i_end;
        j = j_end;
    }
    for (; j < n; j++) /* what is left has size 1 */
        stride[j] = 1;
    return true;
}

static int view_reshape(asen_tensor *x, const asen_attrs *attrs, asen_tensor **out)
{
    const asen_list *shape = &attrs->reshape.shape;
    int64_t stride[ASEN_MAX_DIMS];
    if (asen_tensor_count(x) == 0) {
        asen_dense_strides((int)shape->count, shape->item, stride);
        return asen_tensor_view(x->storage, x->dtype, (int)shape->count, shape->item, stride, x->offset, out);
    }
    if (reshape_strides(x, shape, stride))
        return asen_tensor_view(x->storage, x->dtype, (int)shape->count, shape->item, stride, x->offset, out);
    /* A copy in logical order: dense is row-major at any rank but 4, where a leading dim of 1 makes it 5. */
    asen_tensor *wide = NULL, *flat = NULL;
    int64_t wide_shape[ASEN_MAX_DIMS] = {1}, wide_stride[ASEN_MAX_DIMS] = {0};
    int lead = x->ndim == 4, ndim = x->ndim + lead;
    memcpy(wide_shape + lead, x->shape, (size_t)x->ndim * sizeof *wide_shape);
    memcpy(wide_stride + lead, x->stride, (size_t)x->ndim * sizeof *wide_stride);
    asen_attrs copy = {.copy = {.dtype = x->dtype}};
    int status = asen_tensor_view(x->storage, x->dtype, ndim, wide_shape, wide_stride, x->offset, &wide);
    if (status == ASEN_OK)
        status = asen_op_run1(ASEN_OP_copy, &wide, 1, &copy, &flat);
    if (status == ASEN_OK) {
        int64_t step = 1;
        for (int d = (int)shape->count - 1; d >= 0; d--) {
            stride[d] = step;
            step *= shape->item[d];
        }
        status = asen_tensor_view(flat->storage, x->dtype, (int)shape->count, shape->item, stride, flat->offset, out);
    }
    asen_tensor_release(wide);
    asen_tensor_release(flat);
    return status;
}

static int view_permute(asen_tensor *x, const asen_attrs *attrs, asen_tensor **out)
{
    int64_t shape[ASEN_MAX_DIMS], stride[ASEN_MAX_DIMS];
    for (int d = 0; d < x->ndim; d++) {
        shape[d] = x->shape[attrs->permute.dims.item[d]];
        stride[d] = x->stride[attrs->permute.dims.item[d]];
    }
    return asen_tensor_view(x->storage, x->dtype, x->ndim, shape, stride, x->offset, out);
}

static int view_slice(asen_tensor *x, const asen_attrs *attrs, asen_tensor **out)
{
    int64_t shape[ASEN_MAX_DIMS], stride[ASEN_MAX_DIMS], offset = x->offset;
    for (int d = 0; d < x->ndim; d++) {
        int64_t start = attrs->slice.start.item[d], stop = attrs->slice.stop.item[d], step = attrs->slice.step.item[d];
        shape[d] = stop > start ? (stop - start - 1) / step + 1 : 0;
        stride[d] = shape[d] > 1 ? x->stride[d] * step : x->stride[d]; /* a huge step takes one element */
        offset += shape[d] > 0 ? start * x->stride[d] : 0;
    }
    return asen_tensor_view(x->storage, x->dtype, x->ndim, shape, stride, offset, out);
}

static int view_expand(asen_tensor *x, const asen_attrs *attrs, asen_tensor **out)
{
    int64_t stride[ASEN_MAX_DIMS];
    const asen_list *shape = &attrs->expand.shape;
    asen_broadcast_strides(x, (int)shape->count, shape->item, stride);
    return asen_tensor_view(x->storage, x->dtype, (int)shape->count, shape->item, stride, x->offset, out);
}

int asen_view_make(asen_op op, asen_tensor *x, const asen_attrs *attrs, asen_tensor **out)
{
    switch (op) {
#define VIEW(name, ...) \
    case ASEN_OP_##name: return view_##name(x, attrs, out);
#include "ops/ops.def"
    default: return asen_fail(ASEN_ERR_INTERNAL, "not a view");
    }
}
