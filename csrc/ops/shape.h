/* Shape rules: what an op's inputs must be, and what its outputs are. One rule a row of ops.def. */
#ifndef ASEN_SHAPE_H
#define ASEN_SHAPE_H

#include "ops/op.h"

/* Brings the attributes of a call into the form that shape rules, kernels and gradient rules read:
 * dims wrapped and (for reductions) sorted, slices clamped, -1 in shapes resolved, defaults that
 * depend on an input filled in. `in` holds the op's inputs, the required ones present. An
 * attribute that cannot be used is an error. */
int asen_attrs_normalise(asen_op op, asen_tensor *const *in, int n_in, asen_attrs *attrs);

/* in[n_in]: an input that the row names with "?" may be NULL, or missing at the end; the others are
 * there. `attrs` is normalised. Fills out[0 .. *n_out). */
#define OP(name, ...) int shape_##name(asen_tensor *const *in, int n_in, const asen_attrs *attrs, asen_spec *out, int *n_out);
#define VIEW(name, ...) OP(name)
#include "ops/ops.def"

#endif
