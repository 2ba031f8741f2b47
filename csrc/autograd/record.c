/* Running and recording: see record.h. */
#include "autograd/record.h"

#include "autograd/inplace.h"
#include "ops/run.h"
#include "ops/schema.h"

int asen_op_apply(asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs,
                  asen_tensor *out[ASEN_MAX_OUT], int *n_out)
{
    asen_tensor *few[ASEN_FEW_INPUTS], **used = asen_inputs_new(few, n_in);
    asen_attrs own;
    if (used == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory");
    if (attrs != NULL)
        own = *attrs;
    else
        asen_schema_defaults(op, &own);
    uint64_t versions[ASEN_FEW_INPUTS]; /* rows of more inputs save none */
    for (int i = 0; i < n_in && i < ASEN_FEW_INPUTS; i++)
        versions[i] = in[i] == NULL ? 0 : atomic_load(&in[i]->storage->version);
    int status = asen_op_run_used(op, in, n_in, &own, used, out, n_out);
    if (status == ASEN_OK) {
        status = asen_tape_record(op, in, used, n_in <= ASEN_FEW_INPUTS ? versions : NULL, n_in, &own, out, *n_out);
        if (status == ASEN_OK && (asen_op_get(op)->flags & ASEN_IS_VIEW) && out[0]->storage == in[0]->storage) {
            out[0]->unwritable = in[0]->unwritable;
            status = asen_aliases_join(in[0], out[0]);
        }
        if (status != ASEN_OK) {
            asen_fail_prefix("%s", asen_op_get(op)->name);
            for (int k = 0; k < *n_out; k++) {
                asen_tensor_release(out[k]);
                out[k] = NULL;
            }
            *n_out = 0;
        }
    }
    asen_inputs_free(used, few, n_in);
    return status;
}

int asen_op_apply1(asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs, asen_tensor **out)
{
    asen_tensor *all[ASEN_MAX_OUT];
    int n_out;
    *out = NULL;
    int status = asen_op_apply(op, in, n_in, attrs, all, &n_out);
    if (status == ASEN_OK)
        *out = asen_outputs_first(all, n_out);
    return status;
}
