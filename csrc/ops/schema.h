/* What the strings of a row of ops.def say, parsed once. */
#ifndef ASEN_SCHEMA_H
#define ASEN_SCHEMA_H

#include "ops/op.h"

enum { ASEN_SCHEMA_MAX = 10, ASEN_NAME_MAX = 24 };

typedef struct asen_attr_field {
    char name[ASEN_NAME_MAX];
    char kind;    /* i b f l s t: see attrs.h */
    int repeat;   /* i2: two words */
    int word;     /* index of its first 8-byte word in asen_attrs */
    bool required;
    double value; /* the default */
} asen_attr_field;

typedef struct asen_schema {
    int n_in, n_out, n_attrs;
    bool variadic;
    char in_name[ASEN_SCHEMA_MAX][ASEN_NAME_MAX];
    bool optional[ASEN_SCHEMA_MAX];
    char out_name[ASEN_MAX_OUT][ASEN_NAME_MAX];
    unsigned saved_in, saved_out; /* bit masks */
    asen_attr_field attr[ASEN_SCHEMA_MAX];
} asen_schema;

const asen_schema *asen_schema_get(asen_op op);
void asen_schema_defaults(asen_op op, asen_attrs *attrs);

#endif
