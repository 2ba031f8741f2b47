/* What shape rules are made of.
 *
 * A rule refuses whatever its kernels could not read safely: kernels check no shapes. Indices
 * inside tensors (targets, embedding rows) are the kernels' to check. Shapes are written as in
 * ops.def: N batch, C channels, H height, W width, O filters. */
#ifndef ASEN_SHAPE_RULE_H
#define ASEN_SHAPE_RULE_H

#include <string.h>

#include "ops/shape.h"

#define TEXT ASEN_SHAPE_TEXT
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        int status_ = (call);                                                                                          \
        if (status_ != ASEN_OK)                                                                                        \
            return status_;                                                                                            \
    } while (0)
#define WANT(condition, ...)                                                                                           \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            return asen_fail(ASEN_ERR_VALUE, __VA_ARGS__);                                                             \
    } while (0)
#define RULE(name)                                                                                                     \
    int shape_##name(asen_tensor *const *in, int n_in, const asen_attrs *attrs, asen_spec *out, int *n_out)
#define UNUSED(x) (void)(x)
#define DIMS(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__}

/* ---- what the rules are made of ---- */

/* An output; refuses more elements than addresses can count. */
static inline int give(asen_spec *out, asen_dtype dtype, int ndim, const int64_t *shape)
{
    int64_t count = 1;
    WANT(ndim <= ASEN_MAX_DIMS, "the result would have %d dims, more than %d", ndim, ASEN_MAX_DIMS);
    *out = (asen_spec){.dtype = dtype, .ndim = ndim};
    for (int i = 0; i < ndim; i++) {
        WANT(shape[i] >= 0, "the result would have size %lld in dim %d", (long long)shape[i], i);
        out->shape[i] = shape[i];
        if (shape[i] > 0 && count > INT64_MAX / 16 / shape[i])
            return asen_fail(ASEN_ERR_VALUE, "the result %s would be too large", asen_shape_text(ndim, shape, (char[128]){0}, 128));
        if (shape[i] > 0)
            count *= shape[i];
    }
    return ASEN_OK;
}

static inline int give_one(asen_spec *out, int *n_out, asen_dtype dtype, int ndim, const int64_t *shape)
{
    *n_out = 1;
    return give(out, dtype, ndim, shape);
}

static inline int give_like(asen_spec *out, int *n_out, const asen_tensor *t)
{
    return give_one(out, n_out, t->dtype, t->ndim, t->shape);
}

static inline asen_tensor *optional(asen_tensor *const *in, int n_in, int i)
{
    return i < n_in ? in[i] : NULL;
}

static inline int want_float(const char *name, const asen_tensor *t)
{
    if (!asen_dtype_is_float(t->dtype))
        return asen_fail(ASEN_ERR_TYPE, "%s is %s, but a floating dtype is wanted: convert it first", name, asen_dtype_name(t->dtype));
    return ASEN_OK;
}

static inline int want_dtype(const char *name, const asen_tensor *t, asen_dtype dtype, const char *whose)
{
    if (t->dtype != dtype)
        return asen_fail(ASEN_ERR_TYPE, "%s is %s, but %s %s: convert one of them", name, asen_dtype_name(t->dtype), whose, asen_dtype_name(dtype));
    return ASEN_OK;
}

static inline int want_int64(const char *name, const asen_tensor *t)
{
    if (t->dtype != ASEN_I64)
        return asen_fail(ASEN_ERR_TYPE, "%s is %s, but int64 is wanted", name, asen_dtype_name(t->dtype));
    return ASEN_OK;
}

static inline int want_ndim(const char *name, const asen_tensor *t, int ndim, const char *reading)
{
    WANT(t->ndim == ndim, "%s %s has %d dims, but %d are wanted: %s", name, TEXT(t), t->ndim, ndim, reading);
    return ASEN_OK;
}

/* `t` may be NULL: absent. `reading` says what the shape means. */
static inline int want_shape(const char *name, const asen_tensor *t, const char *reading, int ndim, const int64_t *shape)
{
    if (!t)
        return ASEN_OK;
    bool same = t->ndim == ndim;
    for (int i = 0; same && i < ndim; i++)
        same = t->shape[i] == shape[i];
    WANT(same, "%s is %s, but %s is wanted: %s", name, TEXT(t), asen_shape_text(ndim, shape, (char[128]){0}, 128), reading);
    return ASEN_OK;
}

static inline int want_like(const char *name, const asen_tensor *t, const char *other_name, const asen_tensor *other)
{
    WANT(asen_tensor_same_shape(t, other), "%s %s and %s %s must have one shape", name, TEXT(t), other_name, TEXT(other));
    return ASEN_OK;
}

/* The floating dtype of in[0] is that of in[1 .. n_in), absent ones aside. */
static inline int want_one_float(asen_tensor *const *in, int n_in, const char *const *name)
{
    TRY(want_float(name[0], in[0]));
    for (int i = 1; i < n_in; i++)
        if (in[i] && in[i]->dtype != in[0]->dtype)
            return asen_fail(ASEN_ERR_TYPE, "%s is %s, but %s is %s: convert one of them", name[i], asen_dtype_name(in[i]->dtype),
                             name[0], asen_dtype_name(in[0]->dtype));
    return ASEN_OK;
}
#define NAMES(...) ((const char *const[]){__VA_ARGS__})

static inline int unary_float_rule(asen_tensor *const *in, asen_spec *out, int *n_out)
{
    TRY(want_float("x", in[0]));
    return give_like(out, n_out, in[0]);
}
#define UNARY_FLOAT(name)                                                                                              \
    RULE(name) { UNUSED(n_in), UNUSED(attrs); return unary_float_rule(in, out, n_out); }

/* The shape that a and b broadcast to. */
static inline int broadcast_shape(const char *a_name, int a_ndim, const int64_t *a, const char *b_name, const asen_tensor *b, int *ndim,
                           int64_t *shape)
{
    int64_t result[ASEN_MAX_DIMS];
    *ndim = a_ndim > b->ndim ? a_ndim : b->ndim;
    for (int i = 0; i < *ndim; i++) {
        int ia = i - (*ndim - a_ndim), ib = i - (*ndim - b->ndim);
        int64_t na = ia < 0 ? 1 : a[ia], nb = ib < 0 ? 1 : b->shape[ib];
        WANT(na == nb || na == 1 || nb == 1, "%s %s and %s %s do not broadcast: %lld against %lld in dim %d", a_name,
             asen_shape_text(a_ndim, a, (char[128]){0}, 128), b_name, TEXT(b), (long long)na, (long long)nb, i);
        result[i] = na == 1 ? nb : na;
    }
    memcpy(shape, result, sizeof result);
    return ASEN_OK;
}

static inline int broadcast_rule(asen_tensor *const *in, asen_dtype dtype, asen_spec *out, int *n_out)
{
    const asen_tensor *a = in[0], *b = in[1];
    int64_t shape[ASEN_MAX_DIMS];
    int ndim;
    TRY(want_dtype("b", b, a->dtype, "a is"));
    TRY(broadcast_shape("a", a->ndim, a->shape, "b", b, &ndim, shape));
    return give_one(out, n_out, dtype, ndim, shape);
}

static inline int want_no_bool(const char *name, const asen_tensor *t, const char *instead)
{
    if (t->dtype == ASEN_BOOL)
        return asen_fail(ASEN_ERR_TYPE, "%s is bool: use %s", name, instead);
    return ASEN_OK;
}

#endif
