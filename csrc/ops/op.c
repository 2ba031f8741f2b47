/* The op table and the one function that applies any op: see op.h. */
#include "ops/op.h"

#include <string.h>

#include "ops/backend.h"
#include "autograd/grad.h"
#include "ops/schema.h"
#include "ops/shape.h"
#include "autograd/tape.h"
#include "ops/view.h"

enum { DENSE = ASEN_DENSE, STRIDED = ASEN_STRIDED };

static const asen_op_info table[ASEN_OP_COUNT] = {
#define NONE NULL
#define OP(name, inputs, outputs, attrs, saves, flags, grad, samples, doc) \
    [ASEN_OP_##name] = {#name, inputs, outputs, attrs, saves, samples, doc, flags, shape_##name, grad},
#define VIEW(name, inputs, outputs, attrs, grad, samples, doc) \
    [ASEN_OP_##name] = {#name, inputs, outputs, attrs, "", samples, doc, ASEN_IS_VIEW, shape_##name, grad},
#include "ops/ops.def"
#undef OP
#undef VIEW
#undef NONE
};

const asen_op_info *asen_op_get(asen_op op) { return &table[op]; }

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

int asen_tensor_to_dense(asen_tensor *tensor, asen_tensor **out)
{
    if (asen_tensor_is_dense(tensor)) {
        *out = asen_tensor_retain(tensor);
        return ASEN_OK;
    }
    asen_attrs attrs = {.copy = {.dtype = tensor->dtype}};
    return asen_op_apply1(ASEN_OP_copy, &tensor, 1, &attrs, out);
}

enum { MAX_IN = 1024 };

/* Runs the kernel: outputs by the shape rule, inputs laid out as the row wants. On success
 * used[i] holds owned references to the inputs as the kernel saw them. */
static int run(asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs, asen_device *device,
               asen_tensor **used, asen_tensor **out, int *n_out)
{
    const asen_op_info *info = &table[op];
    asen_spec spec[ASEN_MAX_OUT];
    int status = info->shape(in, n_in, attrs, spec, n_out);
    if (status != ASEN_OK)
        return status;
    bool recording = asen_grad_set_enabled(false);
    for (int i = 0; i < n_in && status == ASEN_OK; i++) {
        if (in[i] == NULL)
            continue;
        if (info->flags & ASEN_DENSE)
            status = asen_tensor_to_dense(in[i], &used[i]);
        else
            used[i] = asen_tensor_retain(in[i]);
    }
    if (status == ASEN_OK && (info->flags & ASEN_IS_VIEW))
        status = asen_view_apply(op, used[0], attrs, &out[0]);
    else if (status == ASEN_OK) {
        for (int k = 0; k < *n_out && status == ASEN_OK; k++)
            status = asen_tensor_new(device, spec[k].dtype, spec[k].ndim, spec[k].shape, &out[k]);
        if (status == ASEN_OK) {
            const asen_call call = {op, n_in, *n_out, used, out, attrs, device};
            status = device->backend->dispatch(device->backend->self, &call);
            if (status == ASEN_DECLINED)
                status = asen_fail(ASEN_ERR_UNSUPPORTED, "no kernel on %s for %s", device->name,
                                   asen_dtype_name(in[0]->dtype));
        }
    }
    asen_grad_set_enabled(recording);
    return status;
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

int asen_op_apply(asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs,
                  asen_tensor *out[ASEN_MAX_OUT], int *n_out)
{
    asen_tensor *used[MAX_IN] = {0};
    asen_device *device;
    asen_attrs own = {0};
    memset(out, 0, ASEN_MAX_OUT * sizeof *out);
    *n_out = 0;
    if (n_in > MAX_IN)
        return asen_fail(ASEN_ERR_VALUE, "%s: more than %d tensors", table[op].name, MAX_IN);

    int status = check_inputs(op, in, n_in, &device);
    if (status != ASEN_OK)
        goto fail;
    if (attrs != NULL)
        own = *attrs;
    else
        asen_schema_defaults(op, &own);
    status = asen_attrs_normalise(op, in, n_in, &own);
    if (status == ASEN_OK)
        status = check_written_inputs(op, in, &own);
    if (status == ASEN_OK)
        status = run(op, in, n_in, &own, device, used, out, n_out);
    if (status != ASEN_OK)
        goto fail;
    if (op == ASEN_OP_batch_norm && own.batch_norm.training) {
        asen_storage_written(in[3]->storage);
        asen_storage_written(in[4]->storage);
    }
    status = asen_tape_record(op, in, used, n_in, &own, out, *n_out);
    if (status != ASEN_OK)
        goto fail;
    for (int i = 0; i < n_in; i++)
        asen_tensor_release(used[i]);
    return ASEN_OK;

fail:
    asen_fail_prefix("%s", table[op].name);
    for (int i = 0; i < n_in; i++)
        asen_tensor_release(used[i]);
    for (int k = 0; k < ASEN_MAX_OUT; k++) {
        asen_tensor_release(out[k]);
        out[k] = NULL;
    }
    *n_out = 0;
    return status;
}

int asen_op_apply1(asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs, asen_tensor **out)
{
    asen_tensor *all[ASEN_MAX_OUT];
    int n_out;
    *out = NULL;
    int status = asen_op_apply(op, in, n_in, attrs, all, &n_out);
    if (status != ASEN_OK)
        return status;
    *out = all[0];
    for (int k = 1; k < n_out; k++)
        asen_tensor_release(all[k]);
    return ASEN_OK;
}
