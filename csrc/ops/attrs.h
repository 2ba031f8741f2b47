/* Attributes of ops, as C sees them: what is not a tensor.
 *
 * A set of ops.def is the struct asen_attrs_<set>; an op's attributes are the member of the union that has its
 * name. Every kind is made of 8-byte words, so no struct has padding. */
#ifndef ASEN_ATTRS_H
#define ASEN_ATTRS_H

#include "core/asen.h"

typedef struct asen_list {
    int64_t count;
    int64_t item[ASEN_MAX_DIMS];
} asen_list;

/* The kinds. */
typedef int64_t asen_attr_int, asen_attr_int2[2], asen_attr_flag;
typedef double asen_attr_float;
typedef asen_list asen_attr_list, asen_attr_shape;
typedef int64_t asen_attr_dtype; /* asen_dtype, or -1 */

typedef struct asen_attrs_none {
    int64_t unused;
} asen_attrs_none;

#define ATTR(kind, name, value) asen_attr_##kind name;
#define REQUIRED(kind, name) asen_attr_##kind name;
#define OPTIONAL(kind, name) asen_attr_##kind name;
#define ATTRIBUTES(set, ...) typedef struct asen_attrs_##set { __VA_ARGS__ } asen_attrs_##set;
#include "ops/ops.def"

typedef union asen_attrs {
#define OP(name, inputs, outputs, attributes, ...) asen_attrs_##attributes name;
#define VIEW OP
#include "ops/ops.def"
} asen_attrs;

#endif
