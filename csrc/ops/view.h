/* The VIEW rows of ops.def: tensors that share their input's storage. Attributes are normalised. */
#ifndef ASEN_VIEW_H
#define ASEN_VIEW_H

#include "ops/op.h"

int asen_view_make(asen_op op, asen_tensor *x, const asen_attrs *attrs, asen_tensor **out);

#endif
