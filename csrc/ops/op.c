/* The op table: see op.h. */
#include "ops/op.h"

#include "ops/shape.h"

enum { DENSE = ASEN_DENSE, STRIDED = ASEN_STRIDED };

static const asen_op_info table[ASEN_OP_COUNT] = {
#define OP(name, inputs, outputs, attrs, saves, flags, grad, doc) \
    [ASEN_OP_##name] = {#name, inputs, outputs, saves, doc, flags, shape_##name},
#define VIEW(name, inputs, outputs, attrs, grad, doc) \
    [ASEN_OP_##name] = {#name, inputs, outputs, "", doc, ASEN_IS_VIEW, shape_##name},
#include "ops/ops.def"
};

const asen_op_info *asen_op_get(asen_op op) { return &table[op]; }
