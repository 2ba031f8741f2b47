/* Reference: reductions over dims. */
#include <math.h>
#include <stdlib.h>

#include "cpu/ref/ref.h"

/* A walk over x (operand 0) that also says which element of the reduced tensor (operand 1) each
 * position belongs to. *per_output: how many positions share one. */
static void walk_reduction(const asen_tensor *x, const asen_attrs_reduce *attrs, ref_walk *walk, int64_t *per_output)
{
    bool reduced[ASEN_MAX_DIMS] = {false};
    int64_t shape[ASEN_MAX_DIMS], dense[ASEN_MAX_DIMS], x_stride[ASEN_MAX_DIMS], y_stride[ASEN_MAX_DIMS];
    for (int d = 0; d < x->ndim; d++)
        reduced[d] = attrs->dims.count == 0;
    for (int64_t j = 0; j < attrs->dims.count; j++)
        reduced[attrs->dims.item[j]] = true;

    int ndim = 0;
    *per_output = 1;
    for (int d = 0; d < x->ndim; d++) {
        if (reduced[d])
            *per_output *= x->shape[d];
        if (!reduced[d] || attrs->keepdim)
            shape[ndim++] = reduced[d] ? 1 : x->shape[d];
    }
    asen_dense_strides(ndim, shape, dense);
    ndim = 0;
    for (int d = 0; d < x->ndim; d++) {
        y_stride[d] = reduced[d] ? 0 : dense[ndim];
        ndim += !reduced[d] || attrs->keepdim;
    }
    asen_dense_strides(x->ndim, x->shape, x_stride);
    asen_ref_walk_start(walk, x->ndim, x->shape);
    asen_ref_walk_add(walk, x_stride, 0);
    asen_ref_walk_add(walk, y_stride, 0);
}

static int sum_integers(const asen_call *call)
{
    ref_array x = ref_array_of(call->in[0]), y = ref_array_of(call->out[0]);
    int64_t per_output, count = asen_tensor_count(call->out[0]);
    ref_walk walk;
    walk_reduction(call->in[0], &call->attrs->sum, &walk, &per_output);
    memset(y.data, 0, (size_t)count * asen_dtype_size(y.dtype));
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk)) {
        uint64_t sum = (uint64_t)asen_ref_get_int(y, walk.at[1]) + (uint64_t)asen_ref_get_int(x, walk.at[0]);
        asen_ref_put_int(y, walk.at[1], (int64_t)sum);
    }
    return ASEN_OK;
}

static int sum_floats(const asen_call *call, const asen_attrs_reduce *attrs, bool mean)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    ref_array x = ref_array_of(call->in[0]), y = ref_array_of(call->out[0]);
    int64_t per_output, count = asen_tensor_count(call->out[0]);
    ref_walk walk;
    double *sum;
    int status = asen_ref_zeros_new(count, &sum);
    if (status != ASEN_OK)
        return status;
    walk_reduction(call->in[0], attrs, &walk, &per_output);
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk))
        sum[walk.at[1]] += ref_get(x, walk.at[0]);
    for (int64_t i = 0; i < count; i++)
        ref_put(y, i, mean ? sum[i] / (double)per_output : sum[i]);
    free(sum);
    return ASEN_OK;
}

int ref_sum(const asen_call *call)
{
    if (ref_is_int(call->in[0]) && ref_is_int(call->out[0]))
        return sum_integers(call);
    return sum_floats(call, &call->attrs->sum, false);
}

int ref_mean(const asen_call *call) { return sum_floats(call, &call->attrs->mean, true); }

/* A NaN is greater than everything. */
int ref_max(const asen_call *call)
{
    ref_array x = ref_array_of(call->in[0]), y = ref_array_of(call->out[0]);
    bool integer = ref_is_int(call->in[0]) && x.dtype == y.dtype;
    if (!integer && !asen_ref_all_float(call))
        return ASEN_DECLINED;
    int64_t per_output, count = asen_tensor_count(call->out[0]);
    ref_walk walk;
    walk_reduction(call->in[0], &call->attrs->max, &walk, &per_output);
    if (per_output == 0 && count > 0)
        return asen_fail(ASEN_ERR_VALUE, "the maximum of no elements: x has shape %s", ASEN_SHAPE_TEXT(call->in[0]));
    for (int64_t i = 0; i < count; i++) {
        if (integer)
            asen_ref_put_int(y, i, x.dtype == ASEN_I64 ? INT64_MIN : x.dtype == ASEN_I32 ? INT32_MIN : 0);
        else
            ref_put(y, i, -INFINITY);
    }
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk)) {
        if (integer) {
            int64_t value = asen_ref_get_int(x, walk.at[0]);
            if (value > asen_ref_get_int(y, walk.at[1]))
                asen_ref_put_int(y, walk.at[1], value);
        } else {
            double value = ref_get(x, walk.at[0]);
            if (value > ref_get(y, walk.at[1]) || isnan(value))
                ref_put(y, walk.at[1], value);
        }
    }
    return ASEN_OK;
}

/* Whether x is the maximum y: NaN is the maximum of what holds one. */
static bool is_max(double x, double y) { return x == y || (isnan(x) && isnan(y)); }

int ref_max_grad(const asen_call *call)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    ref_array dy = ref_array_of(call->in[0]), x = ref_array_of(call->in[1]), y = ref_array_of(call->in[2]);
    ref_array dx = ref_array_of(call->out[0]);
    int64_t per_output;
    ref_walk start, walk;
    double *equal;
    int status = asen_ref_zeros_new(asen_tensor_count(call->in[2]), &equal);
    if (status != ASEN_OK)
        return status;
    walk_reduction(call->in[1], &call->attrs->max_grad, &start, &per_output);
    walk = start;
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk))
        equal[walk.at[1]] += is_max(ref_get(x, walk.at[0]), ref_get(y, walk.at[1]));
    walk = start;
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk)) {
        bool largest = is_max(ref_get(x, walk.at[0]), ref_get(y, walk.at[1]));
        ref_put(dx, i, largest ? ref_get(dy, walk.at[1]) / equal[walk.at[1]] : 0);
    }
    free(equal);
    return ASEN_OK;
}
