/* Ops: what a row of ops.def becomes. run.h runs them. */
#ifndef ASEN_OP_H
#define ASEN_OP_H

#include "core/tensor.h"
#include "ops/attrs.h"

ASEN_C_BEGIN

typedef enum asen_op {
#define OP(name, ...) ASEN_OP_##name,
#define VIEW(name, ...) ASEN_OP_##name,
#include "ops/ops.def"
    ASEN_OP_COUNT
} asen_op;

#define ASEN_MAX_OUT 4

/* One dispatch: what a kernel gets. Inputs that a row names with "?" may be NULL. Outputs are
 * allocated, dense, of the shapes that the shape rule gave; a kernel writes every element. */
typedef struct asen_call {
    asen_op op;
    int n_in, n_out;
    asen_tensor *const *in;
    asen_tensor *const *out;
    const asen_attrs *attrs;
    asen_device *device;
} asen_call;

/* Returns ASEN_OK, an error with a message, or ASEN_DECLINED (no message): not for me, ask the
 * next (a wrong dtype, a case not covered). */
typedef int (*asen_kernel)(const asen_call *call);
#define ASEN_DECLINED (-1)

/* What a shape rule says of an output. */
typedef struct asen_spec {
    asen_dtype dtype;
    int ndim;
    int64_t shape[ASEN_MAX_DIMS];
} asen_spec;

typedef int (*asen_shape_rule)(asen_tensor *const *in, int n_in, const asen_attrs *attrs, asen_spec *out, int *n_out);

typedef struct asen_op_info {
    const char *name;
    const char *inputs;  /* "x w bias?" ; "x*" for any number */
    const char *outputs; /* "y mean invstd" */
    const char *saves;   /* inputs and outputs that the gradient rule reads */
    const char *doc;
    unsigned flags;
    asen_shape_rule shape;
} asen_op_info;

enum { ASEN_DENSE = 1, ASEN_STRIDED = 2, ASEN_IS_VIEW = 4 };

const asen_op_info *asen_op_get(asen_op op);

ASEN_C_END

#endif
