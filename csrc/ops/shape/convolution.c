/* Shape rules (shape.h): convolution, pooling and batch norm. */
#include "ops/shape/rule.h"

#include <limits.h>

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
