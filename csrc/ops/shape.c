/* Shape rules, in the order of ops.def, and the normalising of attributes (shape.h).
 *
 * A rule refuses whatever its kernels could not read safely: kernels check no shapes. Indices
 * inside tensors (targets, embedding rows) are the kernels' to check. Shapes are written as in
 * ops.def: N batch, C channels, H height, W width, O filters. */
#include "ops/shape.h"

#include <limits.h>

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
static int give(asen_spec *out, asen_dtype dtype, int ndim, const int64_t *shape)
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

static int give_one(asen_spec *out, int *n_out, asen_dtype dtype, int ndim, const int64_t *shape)
{
    *n_out = 1;
    return give(out, dtype, ndim, shape);
}

static int give_like(asen_spec *out, int *n_out, const asen_tensor *t)
{
    return give_one(out, n_out, t->dtype, t->ndim, t->shape);
}

static asen_tensor *optional(asen_tensor *const *in, int n_in, int i)
{
    return i < n_in ? in[i] : NULL;
}

static int want_float(const char *name, const asen_tensor *t)
{
    if (!asen_dtype_is_float(t->dtype))
        return asen_fail(ASEN_ERR_TYPE, "%s is %s, but a floating dtype is wanted: convert it first", name, asen_dtype_name(t->dtype));
    return ASEN_OK;
}

static int want_dtype(const char *name, const asen_tensor *t, asen_dtype dtype, const char *whose)
{
    if (t->dtype != dtype)
        return asen_fail(ASEN_ERR_TYPE, "%s is %s, but %s %s: convert one of them", name, asen_dtype_name(t->dtype), whose, asen_dtype_name(dtype));
    return ASEN_OK;
}

static int want_int64(const char *name, const asen_tensor *t)
{
    if (t->dtype != ASEN_I64)
        return asen_fail(ASEN_ERR_TYPE, "%s is %s, but int64 is wanted", name, asen_dtype_name(t->dtype));
    return ASEN_OK;
}

static int want_ndim(const char *name, const asen_tensor *t, int ndim, const char *reading)
{
    WANT(t->ndim == ndim, "%s %s has %d dims, but %d are wanted: %s", name, TEXT(t), t->ndim, ndim, reading);
    return ASEN_OK;
}

/* `t` may be NULL: absent. `reading` says what the shape means. */
static int want_shape(const char *name, const asen_tensor *t, const char *reading, int ndim, const int64_t *shape)
{
    if (!t)
        return ASEN_OK;
    bool same = t->ndim == ndim;
    for (int i = 0; same && i < ndim; i++)
        same = t->shape[i] == shape[i];
    WANT(same, "%s is %s, but %s is wanted: %s", name, TEXT(t), asen_shape_text(ndim, shape, (char[128]){0}, 128), reading);
    return ASEN_OK;
}

static int want_like(const char *name, const asen_tensor *t, const char *other_name, const asen_tensor *other)
{
    WANT(asen_tensor_same_shape(t, other), "%s %s and %s %s must have one shape", name, TEXT(t), other_name, TEXT(other));
    return ASEN_OK;
}

/* The floating dtype of in[0] is that of in[1 .. n_in), absent ones aside. */
static int want_one_float(asen_tensor *const *in, int n_in, const char *const *name)
{
    TRY(want_float(name[0], in[0]));
    for (int i = 1; i < n_in; i++)
        if (in[i] && in[i]->dtype != in[0]->dtype)
            return asen_fail(ASEN_ERR_TYPE, "%s is %s, but %s is %s: convert one of them", name[i], asen_dtype_name(in[i]->dtype),
                             name[0], asen_dtype_name(in[0]->dtype));
    return ASEN_OK;
}
#define NAMES(...) ((const char *const[]){__VA_ARGS__})

/* ---- elementwise ---- */

static int broadcast_rule(asen_tensor *const *in, asen_spec *out, int *n_out)
{
    const asen_tensor *a = in[0], *b = in[1];
    int64_t shape[ASEN_MAX_DIMS];
    int ndim = a->ndim > b->ndim ? a->ndim : b->ndim;
    TRY(want_dtype("b", b, a->dtype, "a is"));
    for (int i = 0; i < ndim; i++) {
        int ia = i - (ndim - a->ndim), ib = i - (ndim - b->ndim);
        int64_t na = ia < 0 ? 1 : a->shape[ia], nb = ib < 0 ? 1 : b->shape[ib];
        WANT(na == nb || na == 1 || nb == 1, "a %s and b %s do not broadcast: %lld against %lld in dim %d", TEXT(a), TEXT(b),
             (long long)na, (long long)nb, i);
        shape[i] = na == 1 ? nb : na;
    }
    return give_one(out, n_out, a->dtype, ndim, shape);
}

static int unary_float_rule(asen_tensor *const *in, asen_spec *out, int *n_out)
{
    TRY(want_float("x", in[0]));
    return give_like(out, n_out, in[0]);
}

/* dy and what the tape kept, x or y */
static int unary_grad_rule(asen_tensor *const *in, const char *saved, asen_spec *out, int *n_out)
{
    TRY(want_one_float(in, 2, NAMES("dy", saved)));
    TRY(want_like("dy", in[0], saved, in[1]));
    return give_like(out, n_out, in[1]);
}

#define BROADCAST(name)                                                                                                \
    RULE(name) { UNUSED(n_in), UNUSED(attrs); return broadcast_rule(in, out, n_out); }
#define UNARY_FLOAT(name)                                                                                              \
    RULE(name) { UNUSED(n_in), UNUSED(attrs); return unary_float_rule(in, out, n_out); }
#define UNARY_GRAD(name, saved)                                                                                        \
    RULE(name) { UNUSED(n_in), UNUSED(attrs); return unary_grad_rule(in, saved, out, n_out); }
#define UNARY_ANY(name)                                                                                                \
    RULE(name) { UNUSED(n_in), UNUSED(attrs); return give_like(out, n_out, in[0]); }

BROADCAST(add)
BROADCAST(sub)
BROADCAST(mul)
BROADCAST(div)
UNARY_ANY(neg)
UNARY_FLOAT(exp)
UNARY_FLOAT(log)
UNARY_FLOAT(sqrt)
UNARY_FLOAT(pow)
UNARY_ANY(relu)
UNARY_FLOAT(tanh)
UNARY_FLOAT(sigmoid)
UNARY_GRAD(relu_grad, "y")
UNARY_GRAD(clamp_grad, "x")

RULE(clamp)
{
    UNUSED(n_in);
    WANT(attrs->clamp.min <= attrs->clamp.max, "min %g is above max %g", attrs->clamp.min, attrs->clamp.max);
    return give_like(out, n_out, in[0]);
}

RULE(copy)
{
    UNUSED(n_in);
    WANT(attrs->copy.dtype >= 0 && attrs->copy.dtype < ASEN_DTYPE_COUNT, "there is no dtype with number %lld", (long long)attrs->copy.dtype);
    return give_one(out, n_out, (asen_dtype)attrs->copy.dtype, in[0]->ndim, in[0]->shape);
}

/* ---- reductions: dims are sorted and in range ---- */

static void reduced_shape(const asen_tensor *x, const asen_attrs_reduce *attrs, int *ndim, int64_t *shape)
{
    *ndim = 0;
    for (int i = 0, next = 0; i < x->ndim; i++) {
        bool reduced = next < attrs->dims.count && attrs->dims.item[next] == i;
        next += reduced;
        if (!reduced || attrs->keepdim)
            shape[(*ndim)++] = reduced ? 1 : x->shape[i];
    }
}

static int reduce_rule(const asen_tensor *x, const asen_attrs_reduce *attrs, asen_spec *out, int *n_out)
{
    int ndim;
    int64_t shape[ASEN_MAX_DIMS];
    reduced_shape(x, attrs, &ndim, shape);
    return give_one(out, n_out, x->dtype, ndim, shape);
}

RULE(sum)
{
    UNUSED(n_in);
    return reduce_rule(in[0], &attrs->sum, out, n_out);
}

RULE(mean)
{
    UNUSED(n_in);
    TRY(want_float("x", in[0]));
    return reduce_rule(in[0], &attrs->mean, out, n_out);
}

RULE(max)
{
    UNUSED(n_in);
    for (int i = 0; i < attrs->max.dims.count; i++) {
        int d = (int)attrs->max.dims.item[i];
        WANT(in[0]->shape[d] > 0, "x %s has nothing in dim %d to take the maximum of", TEXT(in[0]), d);
    }
    return reduce_rule(in[0], &attrs->max, out, n_out);
}

RULE(max_grad)
{
    UNUSED(n_in);
    const asen_tensor *x = in[1];
    int ndim;
    int64_t shape[ASEN_MAX_DIMS];
    TRY(want_one_float(in, 3, NAMES("dy", "x", "y")));
    reduced_shape(x, &attrs->max_grad, &ndim, shape);
    TRY(want_shape("dy", in[0], "x without the dims reduced", ndim, shape));
    TRY(want_shape("y", in[2], "x without the dims reduced", ndim, shape));
    return give_like(out, n_out, x);
}

/* ---- matrices ---- */

RULE(matmul)
{
    UNUSED(n_in);
    const asen_tensor *a = in[0], *b = in[1];
    TRY(want_one_float(in, 2, NAMES("a", "b")));
    WANT(a->ndim == b->ndim && (a->ndim == 2 || a->ndim == 3),
         "a %s and b %s: two matrices or two batches of matrices are wanted", TEXT(a), TEXT(b));
    int last = a->ndim - 1;
    bool ta = attrs->matmul.trans_a, tb = attrs->matmul.trans_b;
    int64_t m = a->shape[last - !ta], ka = a->shape[last - ta], kb = b->shape[last - !tb], n = b->shape[last - tb];
    WANT(ka == kb, "a %s%s and b %s%s do not fit: %lld columns against %lld rows", TEXT(a), ta ? " transposed" : "", TEXT(b),
         tb ? " transposed" : "", (long long)ka, (long long)kb);
    if (a->ndim == 2)
        return give_one(out, n_out, a->dtype, DIMS(m, n));
    WANT(a->shape[0] == b->shape[0], "a %s and b %s are batches of different lengths", TEXT(a), TEXT(b));
    return give_one(out, n_out, a->dtype, DIMS(a->shape[0], m, n));
}

RULE(linear)
{
    UNUSED(attrs);
    const asen_tensor *x = in[0], *w = in[1], *bias = optional(in, n_in, 2);
    TRY(want_one_float(in, n_in, NAMES("x", "w", "bias")));
    TRY(want_ndim("x", x, 2, "(N, K)"));
    TRY(want_ndim("w", w, 2, "(M, K)"));
    WANT(x->shape[1] == w->shape[1], "x %s has rows of %lld, but w %s wants %lld", TEXT(x), (long long)x->shape[1], TEXT(w),
         (long long)w->shape[1]);
    TRY(want_shape("bias", bias, "one for each row of w", DIMS(w->shape[0])));
    return give_one(out, n_out, x->dtype, DIMS(x->shape[0], w->shape[0]));
}

UNARY_FLOAT(softmax)
UNARY_FLOAT(log_softmax)

/* ---- convolution ---- */

/* Windows of `kernel` along a dim of `size`: floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1 */
static int window_count(const char *dim, int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation,
                        int64_t *out)
{
    WANT(kernel >= 1 && kernel <= INT_MAX, "the kernel's %s is %lld, but at least 1 is wanted", dim, (long long)kernel);
    WANT(stride >= 1 && stride <= INT_MAX, "stride %lld (%s): at least 1 is wanted", (long long)stride, dim);
    WANT(padding >= 0 && padding <= INT_MAX, "padding %lld (%s): at least 0 is wanted", (long long)padding, dim);
    WANT(dilation >= 1 && dilation <= INT_MAX, "dilation %lld (%s): at least 1 is wanted", (long long)dilation, dim);
    int64_t extent = dilation * (kernel - 1) + 1;
    WANT(size + 2 * padding >= extent, "a %s of %lld with padding %lld is smaller than the kernel's %lld", dim, (long long)size,
         (long long)padding, (long long)extent);
    *out = (size + 2 * padding - extent) / stride + 1;
    return ASEN_OK;
}

typedef struct conv_geometry {
    const int64_t *stride, *padding, *dilation;
    int64_t groups;
} conv_geometry;
#define GEOMETRY(a) (conv_geometry){(a).stride, (a).padding, (a).dilation, (a).groups}

/* y (N, O, OH, OW) of x (N, C, H, W) and w (O, C/groups, KH, KW) */
static int conv_shape(const int64_t *x, const int64_t *w, conv_geometry g, int64_t *y)
{
    y[0] = x[0];
    y[1] = w[0];
    TRY(window_count("height", x[2], w[2], g.stride[0], g.padding[0], g.dilation[0], &y[2]));
    return window_count("width", x[3], w[3], g.stride[1], g.padding[1], g.dilation[1], &y[3]);
}

static int want_groups(const char *name, const asen_tensor *t, int dim, int64_t groups)
{
    WANT(groups >= 1 && t->shape[dim] % groups == 0, "%s %s has %lld channels, which do not part into %lld groups", name, TEXT(t),
         (long long)t->shape[dim], (long long)groups);
    return ASEN_OK;
}

static int conv_rule(asen_tensor *const *in, int n_in, conv_geometry g, asen_spec *out, int *n_out)
{
    const asen_tensor *x = in[0], *w = in[1], *bias = optional(in, n_in, 2), *residual = optional(in, n_in, 3);
    int64_t y[4];
    TRY(want_one_float(in, n_in, NAMES("x", "w", "bias", "residual")));
    TRY(want_ndim("x", x, 4, "(N, C, H, W)"));
    TRY(want_ndim("w", w, 4, "(O, C / groups, KH, KW)"));
    TRY(want_groups("x", x, 1, g.groups));
    TRY(want_groups("w", w, 0, g.groups));
    WANT(x->shape[1] == w->shape[1] * g.groups, "x %s has %lld channels, but w %s wants %lld", TEXT(x), (long long)x->shape[1],
         TEXT(w), (long long)(w->shape[1] * g.groups));
    TRY(conv_shape(x->shape, w->shape, g, y));
    TRY(want_shape("bias", bias, "one for each filter", DIMS(w->shape[0])));
    TRY(want_shape("residual", residual, "it is added to the result", 4, y));
    return give_one(out, n_out, x->dtype, 4, y);
}

RULE(conv2d)
{
    return conv_rule(in, n_in, GEOMETRY(attrs->conv2d), out, n_out);
}

RULE(conv2d_fused)
{
    return conv_rule(in, n_in, GEOMETRY(attrs->conv2d_fused), out, n_out);
}

RULE(conv2d_grad_input)
{
    UNUSED(n_in);
    const asen_tensor *dy = in[0], *w = in[1];
    const asen_attrs_conv_grad *a = &attrs->conv2d_grad_input;
    int64_t y[4];
    TRY(want_one_float(in, 2, NAMES("dy", "w")));
    TRY(want_ndim("dy", dy, 4, "(N, O, OH, OW)"));
    TRY(want_ndim("w", w, 4, "(O, C / groups, KH, KW)"));
    TRY(want_groups("w", w, 0, a->groups));
    int64_t x[4] = {dy->shape[0], w->shape[1] * a->groups, a->size[0], a->size[1]};
    TRY(conv_shape(x, w->shape, GEOMETRY(*a), y));
    TRY(want_shape("dy", dy, "what w makes of an input of this size", 4, y));
    return give_one(out, n_out, dy->dtype, 4, x);
}

RULE(conv2d_grad_weight)
{
    UNUSED(n_in);
    const asen_tensor *dy = in[0], *x = in[1];
    const asen_attrs_conv_grad *a = &attrs->conv2d_grad_weight;
    int64_t y[4];
    TRY(want_one_float(in, 2, NAMES("dy", "x")));
    TRY(want_ndim("dy", dy, 4, "(N, O, OH, OW)"));
    TRY(want_ndim("x", x, 4, "(N, C, H, W)"));
    TRY(want_groups("dy", dy, 1, a->groups));
    TRY(want_groups("x", x, 1, a->groups));
    int64_t w[4] = {dy->shape[1], x->shape[1] / a->groups, a->size[0], a->size[1]};
    TRY(conv_shape(x->shape, w, GEOMETRY(*a), y));
    TRY(want_shape("dy", dy, "what a filter of this size makes of x", 4, y));
    return give_one(out, n_out, dy->dtype, 4, w);
}

/* ---- pooling, normalisation ---- */

static int pool_shape(const int64_t *x, const int64_t *kernel, const int64_t *stride, const int64_t *padding, int64_t *y)
{
    static const char *const dim[2] = {"height", "width"};
    y[0] = x[0];
    y[1] = x[1];
    for (int i = 0; i < 2; i++) {
        TRY(window_count(dim[i], x[2 + i], kernel[i], stride[i], padding[i], 1, &y[2 + i]));
        WANT(padding[i] <= kernel[i] / 2, "padding %lld is more than half of the kernel's %s %lld: windows would be empty",
             (long long)padding[i], dim[i], (long long)kernel[i]);
    }
    return ASEN_OK;
}

RULE(max_pool2d)
{
    UNUSED(n_in);
    const asen_tensor *x = in[0];
    int64_t y[4];
    TRY(want_float("x", x));
    TRY(want_ndim("x", x, 4, "(N, C, H, W)"));
    WANT(x->shape[2] <= INT32_MAX / (x->shape[3] > 0 ? x->shape[3] : 1), "x %s: its planes are too large for an int32 index", TEXT(x));
    TRY(pool_shape(x->shape, attrs->max_pool2d.kernel_size, attrs->max_pool2d.stride, attrs->max_pool2d.padding, y));
    *n_out = 2;
    TRY(give(&out[0], x->dtype, 4, y));
    return give(&out[1], ASEN_I32, 4, y);
}

RULE(max_pool2d_grad)
{
    UNUSED(n_in);
    const asen_tensor *dy = in[0], *index = in[1];
    int64_t y[4];
    TRY(want_float("dy", dy));
    TRY(want_ndim("dy", dy, 4, "(N, C, OH, OW)"));
    TRY(want_dtype("index", index, ASEN_I32, "its dtype must be"));
    TRY(want_shape("index", index, "the shape of dy", 4, dy->shape));
    int64_t x[4] = {dy->shape[0], dy->shape[1], attrs->max_pool2d_grad.size[0], attrs->max_pool2d_grad.size[1]};
    TRY(pool_shape(x, attrs->max_pool2d_grad.kernel_size, attrs->max_pool2d_grad.stride, attrs->max_pool2d_grad.padding, y));
    TRY(want_shape("dy", dy, "what pooling makes of an input of this size", 4, y));
    return give_one(out, n_out, dy->dtype, 4, x);
}

/* The number of parts of the batch with statistics of their own. */
static int norm_groups(const asen_tensor *x, int64_t training, int64_t groups, int64_t *parts)
{
    *parts = 1;
    if (!training)
        return ASEN_OK;
    WANT(groups >= 1 && x->shape[0] % groups == 0, "x %s: a batch of %lld does not part into %lld equal groups", TEXT(x),
         (long long)x->shape[0], (long long)groups);
    *parts = groups;
    return ASEN_OK;
}

/* Parameters and statistics of a norm of x: float32 where x is of 16 bits (mixed precision), else x's dtype. */
static asen_dtype norm_dtype(const asen_tensor *x)
{
    return x->dtype == ASEN_F16 || x->dtype == ASEN_BF16 ? ASEN_F32 : x->dtype;
}

static int want_norm_dtype(const char *name, const asen_tensor *t, const asen_tensor *x)
{
    if (t->dtype != norm_dtype(x))
        return asen_fail(ASEN_ERR_TYPE, "%s is %s, but with x in %s it must be %s: convert one of them", name,
                         asen_dtype_name(t->dtype), asen_dtype_name(x->dtype), asen_dtype_name(norm_dtype(x)));
    return ASEN_OK;
}

RULE(batch_norm)
{
    const asen_tensor *x = in[0], *residual = optional(in, n_in, 5);
    static const char *const name[] = {"x", "weight", "bias", "running_mean", "running_var", "residual"};
    int64_t groups, values;
    TRY(want_float("x", x));
    if (residual)
        TRY(want_dtype("residual", residual, x->dtype, "x is"));
    for (int i = 1; i < 5; i++)
        TRY(want_norm_dtype(name[i], in[i], x));
    TRY(want_ndim("x", x, 4, "(N, C, H, W)"));
    for (int i = 1; i < 5; i++)
        TRY(want_shape(name[i], in[i], "one for each channel of x", DIMS(x->shape[1])));
    TRY(want_shape("residual", residual, "the shape of x", 4, x->shape));
    TRY(norm_groups(x, attrs->batch_norm.training, attrs->batch_norm.groups, &groups));
    WANT(attrs->batch_norm.eps >= 0, "eps %g: at least 0 is wanted", attrs->batch_norm.eps);
    values = x->shape[0] / groups * x->shape[2] * x->shape[3];
    WANT(!attrs->batch_norm.training || values > 1, "x %s has %s a channel and group: training needs more for %s", TEXT(x),
         values ? "one value" : "no value", values ? "a variance" : "a mean and a variance");
    *n_out = 3;
    TRY(give(&out[0], x->dtype, 4, x->shape));
    TRY(give(&out[1], norm_dtype(x), DIMS(groups, x->shape[1])));
    return give(&out[2], norm_dtype(x), DIMS(groups, x->shape[1]));
}

RULE(batch_norm_grad)
{
    UNUSED(n_in);
    const asen_tensor *dy = in[0], *x = in[1], *y = in[2], *weight = in[3];
    int64_t groups, channels;
    TRY(want_one_float(in, 3, NAMES("dy", "x", "y")));
    for (int i = 3; i < 6; i++)
        TRY(want_norm_dtype(NAMES("weight", "mean", "invstd")[i - 3], in[i], x));
    TRY(want_ndim("x", x, 4, "(N, C, H, W)"));
    channels = x->shape[1];
    TRY(want_shape("dy", dy, "the shape of x", 4, x->shape));
    TRY(want_shape("y", y, "the shape of x", 4, x->shape));
    TRY(want_shape("weight", weight, "one for each channel of x", DIMS(channels)));
    TRY(norm_groups(x, attrs->batch_norm_grad.training, attrs->batch_norm_grad.groups, &groups));
    TRY(want_shape("mean", in[4], "(groups, C) in training, else (1, C)", DIMS(groups, channels)));
    TRY(want_shape("invstd", in[5], "(groups, C) in training, else (1, C)", DIMS(groups, channels)));
    *n_out = attrs->batch_norm_grad.residual ? 4 : 3;
    TRY(give(&out[0], x->dtype, 4, x->shape));
    TRY(give(&out[1], norm_dtype(x), DIMS(channels)));
    TRY(give(&out[2], norm_dtype(x), DIMS(channels)));
    return *n_out == 4 ? give(&out[3], x->dtype, 4, x->shape) : ASEN_OK;
}

/* ---- structure ---- */

RULE(cat)
{
    const asen_tensor *first = in[0];
    int dim = (int)attrs->cat.dim;
    int64_t shape[ASEN_MAX_DIMS];
    for (int d = 0; d < first->ndim; d++)
        shape[d] = d == dim ? 0 : first->shape[d];
    for (int i = 0; i < n_in; i++) {
        bool fits = in[i]->ndim == first->ndim;
        for (int d = 0; fits && d < first->ndim; d++)
            fits = d == dim || in[i]->shape[d] == first->shape[d];
        WANT(fits, "x[%d] %s does not join x[0] %s along dim %d: all other dims must be equal", i, TEXT(in[i]), TEXT(first), dim);
        TRY(want_dtype("an input", in[i], first->dtype, "the first is"));
        shape[dim] += in[i]->shape[dim];
    }
    return give_one(out, n_out, first->dtype, first->ndim, shape);
}

RULE(slice_grad)
{
    UNUSED(n_in);
    const asen_tensor *dy = in[0];
    const asen_list *shape = &attrs->slice_grad.shape, *start = &attrs->slice_grad.start, *step = &attrs->slice_grad.step;
    WANT(shape->count == dy->ndim, "dy %s has %d dims, but shape %lld", TEXT(dy), dy->ndim, (long long)shape->count);
    for (int i = 0; i < dy->ndim; i++) {
        WANT(start->item[i] >= 0 && step->item[i] >= 1, "start %lld and step %lld in dim %d: at least 0 and 1 are wanted",
             (long long)start->item[i], (long long)step->item[i], i);
        WANT(shape->item[i] >= 0, "negative size %lld in dim %d of shape", (long long)shape->item[i], i);
        int64_t room = shape->item[i] - 1 - start->item[i];
        WANT(dy->shape[i] == 0 || (room >= 0 && dy->shape[i] - 1 <= room / step->item[i]),
             "dy %s from %lld in steps of %lld does not lie in a dim %d of %lld", TEXT(dy), (long long)start->item[i],
             (long long)step->item[i], i, (long long)shape->item[i]);
    }
    return give_one(out, n_out, dy->dtype, (int)shape->count, shape->item);
}

RULE(embedding)
{
    UNUSED(n_in), UNUSED(attrs);
    const asen_tensor *weight = in[0], *index = in[1];
    int64_t shape[ASEN_MAX_DIMS + 1];
    TRY(want_float("weight", weight));
    TRY(want_ndim("weight", weight, 2, "(R, D)"));
    TRY(want_int64("index", index));
    for (int i = 0; i < index->ndim; i++)
        shape[i] = index->shape[i];
    shape[index->ndim] = weight->shape[1];
    return give_one(out, n_out, weight->dtype, index->ndim + 1, shape);
}

RULE(embedding_grad)
{
    UNUSED(n_in);
    const asen_tensor *dy = in[0], *index = in[1];
    TRY(want_float("dy", dy));
    TRY(want_int64("index", index));
    WANT(dy->ndim >= 1, "dy () has no dims, but (..., D) is wanted");
    int64_t width = dy->shape[dy->ndim - 1];
    WANT(dy->ndim == index->ndim + 1 && asen_shape_count(index->ndim, index->shape) == asen_shape_count(index->ndim, dy->shape),
         "dy %s must have the shape of index %s and one dim more", TEXT(dy), TEXT(index));
    return give_one(out, n_out, dy->dtype, DIMS(attrs->embedding_grad.rows, width));
}

RULE(dropout)
{
    UNUSED(n_in);
    TRY(want_float("x", in[0]));
    WANT(attrs->dropout.p >= 0 && attrs->dropout.p < 1, "p %g is not in [0, 1)", attrs->dropout.p);
    return give_like(out, n_out, in[0]);
}

RULE(normalize_pixels)
{
    UNUSED(n_in), UNUSED(attrs);
    const asen_tensor *x = in[0], *table = in[1];
    TRY(want_ndim("x", x, 4, "(N, C, H, W)"));
    TRY(want_dtype("x", x, ASEN_U8, "its dtype must be"));
    TRY(want_float("table", table));
    TRY(want_shape("table", table, "a row of 256 for each channel of x", DIMS(x->shape[1], 256)));
    return give_one(out, n_out, table->dtype, 4, x->shape);
}

/* ---- losses and similarities ---- */

/* target (N) for rows (N, K) */
static int want_targets(const char *name, const asen_tensor *rows, const asen_tensor *target)
{
    TRY(want_float(name, rows));
    TRY(want_ndim(name, rows, 2, "(N, K)"));
    TRY(want_int64("target", target));
    return want_shape("target", target, "one for each row", DIMS(rows->shape[0]));
}

RULE(cross_entropy)
{
    UNUSED(n_in), UNUSED(attrs);
    const asen_tensor *logits = in[0];
    TRY(want_targets("logits", logits, in[1]));
    WANT(logits->shape[0] > 0, "logits %s: an empty batch has no mean", TEXT(logits));
    *n_out = 2;
    TRY(give(&out[0], logits->dtype, 0, NULL));
    return give(&out[1], logits->dtype, 2, logits->shape);
}

RULE(cross_entropy_grad)
{
    UNUSED(n_in), UNUSED(attrs);
    TRY(want_one_float(in, 2, NAMES("dy", "softmax")));
    TRY(want_ndim("dy", in[0], 0, "a scalar"));
    TRY(want_targets("softmax", in[1], in[2]));
    return give_like(out, n_out, in[1]);
}

RULE(cosine_similarity)
{
    UNUSED(n_in);
    const asen_tensor *a = in[0];
    TRY(want_one_float(in, 2, NAMES("a", "b")));
    TRY(want_ndim("a", a, 2, "(N, D)"));
    TRY(want_like("a", a, "b", in[1]));
    WANT(attrs->cosine_similarity.eps >= 0, "eps %g: at least 0 is wanted", attrs->cosine_similarity.eps);
    *n_out = 3;
    for (int i = 0; i < 3; i++)
        TRY(give(&out[i], a->dtype, DIMS(a->shape[0])));
    return ASEN_OK;
}

RULE(cosine_similarity_grad)
{
    UNUSED(n_in), UNUSED(attrs);
    static const char *const name[] = {"dy", "a", "b", "y", "norm_a", "norm_b"};
    const asen_tensor *a = in[1];
    TRY(want_one_float(in, 6, name));
    TRY(want_ndim("a", a, 2, "(N, D)"));
    TRY(want_like("a", a, "b", in[2]));
    for (int i = 0; i < 6; i++)
        if (i != 1 && i != 2)
            TRY(want_shape(name[i], in[i], "one for each row of a", DIMS(a->shape[0])));
    *n_out = 2;
    TRY(give(&out[0], a->dtype, 2, a->shape));
    return give(&out[1], a->dtype, 2, a->shape);
}

RULE(normalize)
{
    UNUSED(n_in);
    const asen_tensor *x = in[0];
    TRY(want_float("x", x));
    TRY(want_ndim("x", x, 2, "(N, D)"));
    WANT(attrs->normalize.eps >= 0, "eps %g: at least 0 is wanted", attrs->normalize.eps);
    *n_out = 2;
    TRY(give(&out[0], x->dtype, 2, x->shape));
    return give(&out[1], x->dtype, DIMS(x->shape[0]));
}

RULE(normalize_grad)
{
    UNUSED(n_in), UNUSED(attrs);
    TRY(want_one_float(in, 3, NAMES("dy", "y", "norm")));
    TRY(want_ndim("y", in[1], 2, "(N, D)"));
    TRY(want_like("dy", in[0], "y", in[1]));
    TRY(want_shape("norm", in[2], "one for each row of y", DIMS(in[1]->shape[0])));
    return give_like(out, n_out, in[1]);
}

/* x (B, C, H, W) with H * W > 0 */
static int want_attended(const asen_tensor *x)
{
    TRY(want_ndim("x", x, 4, "(B, C, H, W)"));
    WANT(x->shape[2] > 0 && x->shape[3] > 0, "x %s has no positions to attend to", TEXT(x));
    return ASEN_OK;
}

RULE(spatial_attention)
{
    UNUSED(n_in), UNUSED(attrs);
    const asen_tensor *x = in[0], *z = in[1], *q = in[2];
    TRY(want_one_float(in, 3, NAMES("x", "z", "q")));
    TRY(want_attended(x));
    TRY(want_ndim("q", q, 2, "(B, Cc)"));
    TRY(want_shape("q", q, "one query for each image of x", DIMS(x->shape[0], q->shape[1])));
    TRY(want_shape("z", z, "(B, Cc, H, W), with x's images and positions and q's channels",
                   DIMS(x->shape[0], q->shape[1], x->shape[2], x->shape[3])));
    WANT(q->shape[1] > 0, "q %s has no channels", TEXT(q));
    *n_out = 3;
    TRY(give(&out[0], x->dtype, DIMS(x->shape[0], x->shape[1])));
    TRY(give(&out[1], x->dtype, DIMS(x->shape[0], x->shape[2], x->shape[3])));
    return give(&out[2], x->dtype, 4, z->shape);
}

RULE(spatial_attention_grad)
{
    UNUSED(n_in), UNUSED(attrs);
    const asen_tensor *dv = in[0], *dm = in[1], *x = in[2], *q = in[3], *m = in[4], *k = in[5];
    TRY(want_one_float(in, 6, NAMES("dv", "dm", "x", "q", "m", "k")));
    TRY(want_attended(x));
    TRY(want_ndim("q", q, 2, "(B, Cc)"));
    int64_t batch = x->shape[0], channels = q->shape[1], height = x->shape[2], width = x->shape[3];
    TRY(want_shape("q", q, "one query for each image of x", DIMS(batch, channels)));
    WANT(channels > 0, "q %s has no channels", TEXT(q));
    TRY(want_shape("dv", dv, "(B, C) of x", DIMS(batch, x->shape[1])));
    TRY(want_shape("dm", dm, "(B, H, W) of x", DIMS(batch, height, width)));
    TRY(want_shape("m", m, "(B, H, W) of x", DIMS(batch, height, width)));
    TRY(want_shape("k", k, "(B, Cc, H, W), with x's images and positions and q's channels", DIMS(batch, channels, height, width)));
    *n_out = 3;
    TRY(give(&out[0], x->dtype, 4, x->shape));
    TRY(give(&out[1], x->dtype, 4, k->shape));
    return give(&out[2], x->dtype, 2, q->shape);
}

RULE(arc_margin)
{
    UNUSED(n_in), UNUSED(attrs);
    TRY(want_targets("cosine", in[0], in[1]));
    return give_like(out, n_out, in[0]);
}

RULE(arc_margin_grad)
{
    UNUSED(n_in), UNUSED(attrs);
    TRY(want_one_float(in, 2, NAMES("dy", "cosine")));
    TRY(want_targets("cosine", in[1], in[2]));
    TRY(want_like("dy", in[0], "cosine", in[1]));
    return give_like(out, n_out, in[1]);
}

/* ---- views ---- */

RULE(reshape)
{
    UNUSED(n_in);
    const asen_list *shape = &attrs->reshape.shape;
    TRY(give_one(out, n_out, in[0]->dtype, (int)shape->count, shape->item));
    WANT(asen_shape_count(out->ndim, out->shape) == asen_tensor_count(in[0]), "x %s has %lld elements, but %s has %lld", TEXT(in[0]),
         (long long)asen_tensor_count(in[0]), TEXT(out), (long long)asen_shape_count(out->ndim, out->shape));
    return ASEN_OK;
}

RULE(permute)
{
    UNUSED(n_in);
    int64_t shape[ASEN_MAX_DIMS];
    for (int i = 0; i < in[0]->ndim; i++)
        shape[i] = in[0]->shape[attrs->permute.dims.item[i]];
    return give_one(out, n_out, in[0]->dtype, in[0]->ndim, shape);
}

RULE(slice)
{
    UNUSED(n_in);
    int64_t shape[ASEN_MAX_DIMS];
    for (int i = 0; i < in[0]->ndim; i++) {
        int64_t length = attrs->slice.stop.item[i] - attrs->slice.start.item[i];
        shape[i] = length > 0 ? (length - 1) / attrs->slice.step.item[i] + 1 : 0;
    }
    return give_one(out, n_out, in[0]->dtype, in[0]->ndim, shape);
}

RULE(expand)
{
    UNUSED(n_in);
    const asen_tensor *x = in[0];
    const asen_list *shape = &attrs->expand.shape;
    int added = (int)shape->count - x->ndim;
    TRY(give_one(out, n_out, x->dtype, (int)shape->count, shape->item));
    WANT(added >= 0, "x %s has more dims than %s", TEXT(x), TEXT(out));
    for (int i = 0; i < x->ndim; i++)
        WANT(x->shape[i] == shape->item[added + i] || x->shape[i] == 1, "x %s does not broadcast to %s: %lld against %lld in dim %d",
             TEXT(x), TEXT(out), (long long)x->shape[i], (long long)shape->item[added + i], added + i);
    return ASEN_OK;
}
