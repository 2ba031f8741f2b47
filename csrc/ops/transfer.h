/* Values from one layout, dtype or device into another, and filling. */
#ifndef ASEN_TRANSFER_H
#define ASEN_TRANSFER_H

#include "core/tensor.h"

/* A new dense tensor of one value (rounded to a floating dtype; an error where integers lack it). */
int asen_tensor_full(asen_device *device, asen_dtype dtype, int ndim, const int64_t *shape, double value,
                     asen_tensor **out);
/* The same of an integer, exactly. */
int asen_tensor_full_integer(asen_device *device, asen_dtype dtype, int ndim, const int64_t *shape, int64_t value,
                             asen_tensor **out);
/* Copies `source` (any layout, dtype and device; broadcast) into `target` in place. They may share memory; a
 * target whose elements lie on one another is refused. */
int asen_tensor_copy_into(asen_tensor *target, asen_tensor *source);
/* Sets every element of `target` to the one element of `value`. */
int asen_tensor_fill_with(asen_tensor *target, asen_tensor *value);
/* A new dense tensor of the same values (or the same tensor retained, where it is dense already). */
int asen_tensor_to_dense(asen_tensor *tensor, asen_tensor **out);

#endif
