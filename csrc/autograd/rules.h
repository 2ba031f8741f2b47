/* The gradient rules (rules.c), declared from the rows of ops.def. */
#ifndef ASEN_RULES_H
#define ASEN_RULES_H

#include "autograd/tape.h"

/* A row without a gradient says NONE: that declares this function, which nobody defines. */
#define NONE grad_none_
#define OP(name, inputs, outputs, attrs, saves, flags, grad, doc) \
    int grad(const asen_node *node, asen_tensor *const *dy, asen_tensor **dx);
#define VIEW(name, inputs, outputs, attrs, grad, doc) \
    int grad(const asen_node *node, asen_tensor *const *dy, asen_tensor **dx);
#include "ops/ops.def"
#undef NONE

/* By op; NULL: not differentiable. */
extern const asen_grad_rule asen_grad_rules[ASEN_OP_COUNT];

#endif
