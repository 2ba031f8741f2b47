/* The one function that runs any op: see run.h. */
#include "ops/run.h"

#include <stdlib.h>
#include <string.h>

#include "ops/backend.h"
#include "ops/schema.h"
#include "ops/shape.h"
#include "ops/transfer.h"
#include "ops/view.h"

asen_tensor **asen_inputs_new(asen_tensor **few, int n_in)
{
    if (n_in > ASEN_FEW_INPUTS)
        return calloc((size_t)n_in, sizeof(asen_tensor *));
    memset(few, 0, ASEN_FEW_INPUTS * sizeof *few);
    return few;
}

void asen_inputs_free(asen_tensor **inputs, asen_tensor **few, int n_in)
{
    for (int i = 0; i < n_in; i++)
        asen_tensor_release(inputs[i]);
    if (inputs != few)
        free(inputs);
}

/* Counts, absences and devices of the inputs. */
static int check_inputs(asen_op op, asen_tensor *const *in, int n_in, asen_device **device)
{
    const asen_schema *schema = asen_schema_get(op);
    *device = NULL;
    if (n_in < 1 || (!schema->variadic && n_in > schema->n_in))
        return asen_fail(ASEN_ERR_TYPE, "takes %d tensors, got %d", schema->n_in, n_in);
    for (int i = 0; i < schema->n_in && !schema->variadic; i++)
        if ((i >= n_in || in[i] == NULL) && !schema->optional[i])
            return asen_fail(ASEN_ERR_TYPE, "input '%s' is missing", schema->in_name[i]);
    for (int i = 0; i < n_in && schema->variadic; i++)
        if (in[i] == NULL)
            return asen_fail(ASEN_ERR_TYPE, "input '%s[%d]' is missing", schema->in_name[0], i);
    for (int i = 0; i < n_in; i++) {
        if (in[i] == NULL)
            continue;
        if (*device != NULL && in[i]->storage->device != *device)
            return asen_fail(ASEN_ERR_VALUE, "tensors lie on different devices (%s and %s): move them with .to()",
                             (*device)->name, in[i]->storage->device->name);
        *device = in[i]->storage->device;
    }
    return ASEN_OK;
}

/* batch_norm is the one op that writes into inputs: its running statistics. */
static int check_written_inputs(asen_op op, asen_tensor *const *in, const asen_attrs *attrs)
{
    if (op != ASEN_OP_batch_norm || !attrs->batch_norm.training)
        return ASEN_OK;
    for (int i = 3; i < 5; i++)
        if (!asen_tensor_is_dense(in[i]))
            return asen_fail(ASEN_ERR_VALUE, "running statistics are written in place and must be contiguous");
    return ASEN_OK;
}

/* The kernel, on outputs that the shape rule describes. */
static int dispatch(asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs, asen_device *device,
                    asen_tensor **used, asen_tensor **out, int *n_out)
{
    const asen_op_info *info = asen_op_get(op);
    asen_spec spec[ASEN_MAX_OUT];
    int status = info->shape(in, n_in, attrs, spec, n_out);
    for (int i = 0; i < n_in && status == ASEN_OK; i++) {
        if (in[i] == NULL)
            continue;
        if (info->flags & ASEN_DENSE)
            status = asen_tensor_to_dense(in[i], &used[i]);
        else
            used[i] = asen_tensor_retain(in[i]);
    }
    if (status != ASEN_OK)
        return status;
    if (info->flags & ASEN_IS_VIEW)
        return asen_view_make(op, used[0], attrs, &out[0]);
    for (int k = 0; k < *n_out && status == ASEN_OK; k++)
        status = asen_tensor_new(device, spec[k].dtype, spec[k].ndim, spec[k].shape, &out[k]);
    if (status != ASEN_OK)
        return status;
    const asen_call call = {op, n_in, *n_out, used, out, attrs, device};
    status = device->backend->dispatch(device->backend->self, &call);
    if (status == ASEN_DECLINED)
        status = asen_fail(ASEN_ERR_UNSUPPORTED, "no kernel on %s for %s: convert it first, as with .float()",
                           device->name, asen_dtype_name(in[0]->dtype));
    return status;
}

int asen_op_run_used(asen_op op, asen_tensor *const *in, int n_in, asen_attrs *attrs, asen_tensor **used,
                     asen_tensor *out[ASEN_MAX_OUT], int *n_out)
{
    asen_device *device;
    memset(out, 0, ASEN_MAX_OUT * sizeof *out);
    *n_out = 0;
    int status = check_inputs(op, in, n_in, &device);
    if (status == ASEN_OK)
        status = asen_attrs_normalise(op, in, n_in, attrs);
    if (status == ASEN_OK)
        status = check_written_inputs(op, in, attrs);
    if (status == ASEN_OK) {
        status = dispatch(op, in, n_in, attrs, device, used, out, n_out);
        if (op == ASEN_OP_batch_norm && attrs->batch_norm.training) { /* also where it failed half way */
            asen_storage_written(in[3]->storage);
            asen_storage_written(in[4]->storage);
        }
    }
    if (status == ASEN_OK)
        return ASEN_OK;
    asen_fail_prefix("%s", asen_op_get(op)->name);
    for (int k = 0; k < ASEN_MAX_OUT; k++) {
        asen_tensor_release(out[k]);
        out[k] = NULL;
    }
    *n_out = 0;
    return status;
}

int asen_op_run(asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs, asen_tensor *out[ASEN_MAX_OUT],
                int *n_out)
{
    asen_tensor *few[ASEN_FEW_INPUTS], **used = asen_inputs_new(few, n_in);
    asen_attrs own;
    if (used == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory");
    if (attrs != NULL)
        own = *attrs;
    else
        asen_schema_defaults(op, &own);
    int status = asen_op_run_used(op, in, n_in, &own, used, out, n_out);
    asen_inputs_free(used, few, n_in);
    return status;
}

asen_tensor *asen_outputs_first(asen_tensor *const *out, int n_out)
{
    for (int k = 1; k < n_out; k++)
        asen_tensor_release(out[k]);
    return out[0];
}

int asen_op_run1(asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs, asen_tensor **out)
{
    asen_tensor *all[ASEN_MAX_OUT];
    int n_out;
    *out = NULL;
    int status = asen_op_run(op, in, n_in, attrs, all, &n_out);
    if (status == ASEN_OK)
        *out = asen_outputs_first(all, n_out);
    return status;
}
