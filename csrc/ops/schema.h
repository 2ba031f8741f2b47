/* What a row of ops.def says of its arguments: tensors by name, and the attributes of its set. */
#ifndef ASEN_SCHEMA_H
#define ASEN_SCHEMA_H

#include "ops/op.h"

enum { ASEN_SCHEMA_MAX = 10, ASEN_NAME_MAX = 24 };

typedef enum asen_attr_kind {
    ASEN_ATTR_int,
    ASEN_ATTR_int2,
    ASEN_ATTR_flag,
    ASEN_ATTR_float,
    ASEN_ATTR_list,
    ASEN_ATTR_shape,
    ASEN_ATTR_dtype,
} asen_attr_kind;

typedef struct asen_attr_field {
    const char *name;
    asen_attr_kind kind;
    size_t offset; /* in the struct of the set, and so in asen_attrs */
    bool required;
} asen_attr_field;

typedef struct asen_attr_set {
    const asen_attr_field *field;
    int count;
    size_t size;          /* of the struct */
    const void *defaults; /* a struct */
    const char *text;     /* "stride:i2=1 size:i2 dims:l=None": kinds i i2 b f l s t, and the default */
} asen_attr_set;

typedef struct asen_schema {
    int n_in, n_out;
    bool variadic;
    char in_name[ASEN_SCHEMA_MAX][ASEN_NAME_MAX];
    bool optional[ASEN_SCHEMA_MAX];
    char out_name[ASEN_MAX_OUT][ASEN_NAME_MAX];
    unsigned saved_in, saved_out; /* bit masks */
    unsigned saved_for[ASEN_SCHEMA_MAX];    /* the saved input is read where one of these inputs wants a gradient */
    const asen_attr_field *saved_if[ASEN_MAX_OUT]; /* the saved output is read where this flag is set; NULL: always */
    const asen_attr_set *attrs;
} asen_schema;

const asen_schema *asen_schema_get(asen_op op);
void asen_schema_defaults(asen_op op, asen_attrs *attrs);

#endif
