/* Running an op: from inputs and attributes to outputs. Nothing here remembers how they were made
 * (autograd/record.h does). */
#ifndef ASEN_RUN_H
#define ASEN_RUN_H

#include "ops/op.h"

/* Runs an op: checks, lays inputs out as the row wants, allocates outputs, dispatches. `attrs` may
 * be NULL where the row has none or all have defaults. On success out[0 .. *n_out) hold new references. */
int asen_op_run(asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs, asen_tensor *out[ASEN_MAX_OUT],
                int *n_out);

/* The same for the first output alone: a new reference, or NULL and an error. */
int asen_op_run1(asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs, asen_tensor **out);

/* The same for whoever wants to know what the kernel saw: `attrs` as they came in (complete), normalised on
 * return; used[n_in], NULL at first: new references to the inputs as they were laid out, also after an error. */
int asen_op_run_used(asen_op op, asen_tensor *const *in, int n_in, asen_attrs *attrs, asen_tensor **used,
                     asen_tensor *out[ASEN_MAX_OUT], int *n_out);

/* The first of the outputs, kept; the others are released. */
asen_tensor *asen_outputs_first(asen_tensor *const *out, int n_out);

/* Pointers to n_in tensors, all NULL: `few` (of ASEN_FEW_INPUTS) where that is enough, else memory that
 * asen_inputs_free frees; NULL when memory is out. */
enum { ASEN_FEW_INPUTS = 8 };
asen_tensor **asen_inputs_new(asen_tensor **few, int n_in);
void asen_inputs_free(asen_tensor **inputs, asen_tensor **few, int n_in); /* releases the tensors too */

#endif
