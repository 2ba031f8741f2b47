/* Ops: what a row of ops.def becomes, and the one function that applies any of them. */
#ifndef ASEN_OP_H
#define ASEN_OP_H

#include "ops/attrs.h"
#include "core/tensor.h"

ASEN_C_BEGIN

typedef enum asen_op {
#define OP(name, ...) ASEN_OP_##name,
#define VIEW(name, ...) ASEN_OP_##name,
#include "ops/ops.def"
#undef OP
#undef VIEW
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

/* Gradient rule: from the gradients dy of the outputs (NULL: zero) to those of the inputs, new
 * references in dx, only where node->needs[i] says so. Built from ops. */
typedef int (*asen_grad_rule)(const asen_node *node, asen_tensor *const *dy, asen_tensor **dx);

typedef struct asen_op_info {
    const char *name;
    const char *inputs;  /* "x w bias?" ; "x*" for any number */
    const char *outputs; /* "y mean invstd" */
    const char *attrs;   /* schema, see attrs.h */
    const char *saves;   /* inputs and outputs that the gradient rule reads */
    const char *samples; /* for the tests, see ops.def */
    const char *doc;
    unsigned flags;
    asen_shape_rule shape;
    asen_grad_rule grad; /* NULL: not differentiable */
} asen_op_info;

enum { ASEN_DENSE = 1, ASEN_STRIDED = 2, ASEN_IS_VIEW = 4 };

const asen_op_info *asen_op_get(asen_op op);

/* Applies an op: checks, lays inputs out as the row wants, allocates outputs, dispatches, and
 * records on the tape if that is on and an input wants a gradient. `attrs` may be NULL where the
 * row has none. On success out[0 .. *n_out) hold new references. */
int asen_op_apply(asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs,
                  asen_tensor *out[ASEN_MAX_OUT], int *n_out);

/* The same for ops of one output: a new reference or NULL (then *status holds the error). */
int asen_op_apply1(asen_op op, asen_tensor *const *in, int n_in, const asen_attrs *attrs, asen_tensor **out);

/* Copies `source` (any layout, dtype and device) into `target` in place. */
int asen_tensor_copy_into(asen_tensor *target, asen_tensor *source);
/* A new dense tensor of the same values (or the same tensor retained, where it is dense already). */
int asen_tensor_to_dense(asen_tensor *tensor, asen_tensor **out);

ASEN_C_END

#endif
