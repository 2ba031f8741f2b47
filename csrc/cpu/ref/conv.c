/* Reference: 2-D cross-correlation and its gradients, direct.
 *
 * x (N, C, H, W) lies N, H, W, C; w (O, C/groups, KH, KW) lies O, KH, KW, C/groups;
 * y[n, o, p, q] = sum over kh, kw, c of x[n, c, p stride - pad + kh dilation, ...] w[o, c, kh, kw] */
#include <stdlib.h>

#include "cpu/ref/ref.h"

typedef struct geometry {
    int64_t N, C, H, W, O, P, Q, KH, KW;
    int64_t stride[2], padding[2], dilation[2], groups;
    int64_t c_part, o_part; /* channels of one group */
} geometry;

static geometry geometry_of(const int64_t x[4], const int64_t w[4], const int64_t y[4], const int64_t stride[2],
                            const int64_t padding[2], const int64_t dilation[2], int64_t groups)
{
    return (geometry){.N = x[0], .C = x[1], .H = x[2], .W = x[3], .O = w[0], .P = y[2], .Q = y[3], .KH = w[2], .KW = w[3],
                      .stride = {stride[0], stride[1]}, .padding = {padding[0], padding[1]},
                      .dilation = {dilation[0], dilation[1]}, .groups = groups,
                      .c_part = x[1] / groups, .o_part = w[0] / groups};
}

static int64_t x_row(const geometry *g, int64_t p, int64_t kh)
{
    return p * g->stride[0] - g->padding[0] + kh * g->dilation[0];
}

static int64_t x_column(const geometry *g, int64_t q, int64_t kw)
{
    return q * g->stride[1] - g->padding[1] + kw * g->dilation[1];
}

static bool inside(const geometry *g, int64_t h, int64_t w) { return h >= 0 && h < g->H && w >= 0 && w < g->W; }

static double convolve_at(const geometry *g, ref_array x, ref_array w, int64_t n, int64_t o, int64_t p, int64_t q)
{
    int64_t first = o / g->o_part * g->c_part;
    double sum = 0;
    for (int64_t kh = 0; kh < g->KH; kh++)
        for (int64_t kw = 0; kw < g->KW; kw++) {
            int64_t h = x_row(g, p, kh), v = x_column(g, q, kw);
            if (inside(g, h, v))
                sum += asen_ref_dot(x, ((n * g->H + h) * g->W + v) * g->C + first, w,
                                    ((o * g->KH + kh) * g->KW + kw) * g->c_part, g->c_part);
        }
    return sum;
}

/* y = conv(x, w) + bias + residual, then ReLU; bias and residual may be NULL. */
static int convolve(const asen_call *call, const geometry *g, const asen_tensor *bias, const asen_tensor *residual,
                    bool relu)
{
    ref_array x = ref_array_of(call->in[0]), w = ref_array_of(call->in[1]), y = ref_array_of(call->out[0]);
    for (int64_t n = 0; n < g->N; n++)
        for (int64_t p = 0; p < g->P; p++)
            for (int64_t q = 0; q < g->Q; q++)
                for (int64_t o = 0; o < g->O; o++) {
                    int64_t at = ((n * g->P + p) * g->Q + q) * g->O + o;
                    double value = convolve_at(g, x, w, n, o, p, q);
                    if (bias)
                        value += ref_get(ref_array_of(bias), o);
                    if (residual)
                        value += ref_get(ref_array_of(residual), at);
                    ref_put(y, at, relu && value <= 0 ? 0 : value);
                }
    return ASEN_OK;
}

int ref_conv2d(const asen_call *call)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    const asen_attrs_conv *a = &call->attrs->conv2d;
    geometry g = geometry_of(call->in[0]->shape, call->in[1]->shape, call->out[0]->shape, a->stride, a->padding,
                             a->dilation, a->groups);
    return convolve(call, &g, ref_optional(call, 2), NULL, false);
}

int ref_conv2d_fused(const asen_call *call)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    const asen_attrs_conv_fused *a = &call->attrs->conv2d_fused;
    geometry g = geometry_of(call->in[0]->shape, call->in[1]->shape, call->out[0]->shape, a->stride, a->padding,
                             a->dilation, a->groups);
    return convolve(call, &g, ref_optional(call, 2), ref_optional(call, 3), a->relu != 0);
}

/* sum[C] of the gradient of one position (n, h, v) of x: over all p, q, kh, kw that read it. */
static void gather_input(const geometry *g, ref_array dy, ref_array w, int64_t n, int64_t h, int64_t v, double *sum)
{
    for (int64_t kh = 0; kh < g->KH; kh++)
        for (int64_t kw = 0; kw < g->KW; kw++) {
            int64_t down = h + g->padding[0] - kh * g->dilation[0], right = v + g->padding[1] - kw * g->dilation[1];
            if (down < 0 || right < 0 || down % g->stride[0] || right % g->stride[1])
                continue;
            int64_t p = down / g->stride[0], q = right / g->stride[1];
            if (p >= g->P || q >= g->Q)
                continue;
            for (int64_t o = 0; o < g->O; o++)
                asen_ref_add_scaled(sum + o / g->o_part * g->c_part,
                                    ref_get(dy, ((n * g->P + p) * g->Q + q) * g->O + o), w,
                                    ((o * g->KH + kh) * g->KW + kw) * g->c_part, g->c_part);
        }
}

int ref_conv2d_grad_input(const asen_call *call)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    const asen_attrs_conv_grad *a = &call->attrs->conv2d_grad_input;
    geometry g = geometry_of(call->out[0]->shape, call->in[1]->shape, call->in[0]->shape, a->stride, a->padding,
                             a->dilation, a->groups);
    ref_array dy = ref_array_of(call->in[0]), w = ref_array_of(call->in[1]), dx = ref_array_of(call->out[0]);
    double *sum;
    int status = asen_ref_zeros_new(g.C, &sum);
    if (status != ASEN_OK)
        return status;
    for (int64_t n = 0; n < g.N; n++)
        for (int64_t h = 0; h < g.H; h++)
            for (int64_t v = 0; v < g.W; v++) {
                memset(sum, 0, (size_t)g.C * sizeof *sum);
                gather_input(&g, dy, w, n, h, v, sum);
                for (int64_t c = 0; c < g.C; c++)
                    ref_put(dx, ((n * g.H + h) * g.W + v) * g.C + c, sum[c]);
            }
    free(sum);
    return ASEN_OK;
}

int ref_conv2d_grad_weight(const asen_call *call)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    const asen_attrs_conv_grad *a = &call->attrs->conv2d_grad_weight;
    geometry g = geometry_of(call->in[1]->shape, call->out[0]->shape, call->in[0]->shape, a->stride, a->padding,
                             a->dilation, a->groups);
    ref_array dy = ref_array_of(call->in[0]), x = ref_array_of(call->in[1]), dw = ref_array_of(call->out[0]);
    double *sum;
    int status = asen_ref_zeros_new(g.c_part, &sum);
    if (status != ASEN_OK)
        return status;
    for (int64_t o = 0; o < g.O; o++)
        for (int64_t kh = 0; kh < g.KH; kh++)
            for (int64_t kw = 0; kw < g.KW; kw++) {
                memset(sum, 0, (size_t)g.c_part * sizeof *sum);
                for (int64_t n = 0; n < g.N; n++)
                    for (int64_t p = 0; p < g.P; p++)
                        for (int64_t q = 0; q < g.Q; q++) {
                            int64_t h = x_row(&g, p, kh), v = x_column(&g, q, kw);
                            if (inside(&g, h, v))
                                asen_ref_add_scaled(sum, ref_get(dy, ((n * g.P + p) * g.Q + q) * g.O + o), x,
                                                    ((n * g.H + h) * g.W + v) * g.C + o / g.o_part * g.c_part,
                                                    g.c_part);
                        }
                for (int64_t c = 0; c < g.c_part; c++)
                    ref_put(dw, ((o * g.KH + kh) * g.KW + kw) * g.c_part + c, sum[c]);
            }
    free(sum);
    return ASEN_OK;
}
