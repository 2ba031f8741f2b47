/* Applying an op for a caller who may want gradients: it is run, and recorded. */
#ifndef ASEN_RECORD_H
#define ASEN_RECORD_H

#include "ops/op.h"

/* Runs an op as asen_op_run does, and records it on the tape if that is on in this thread and an input wants a
 * gradient. Views remember what they are views of (inplace.h). `attrs` may be NULL where the row has none or all
 * have defaults. On success out[0 .. *n_out) hold new references. */
int asen_op_apply(asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs,
                  asen_tensor *out[ASEN_MAX_OUT], int *n_out);

/* The same for the first output alone: a new reference, or NULL and an error. */
int asen_op_apply1(asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs, asen_tensor **out);

#endif
