/* Convolutions on oneDNN: forward (also with residual and ReLU), and both gradients.
 *
 * Activations go in as they lie (NHWC); filters are packed into what oneDNN asks for, filter
 * gradients unpacked from it to O,H,W,I, unless matrix products are faster there
 * (cpu/onednn/conv_gemm.c). */
#include "cpu/onednn/conv.h"

#ifdef ASEN_ONEDNN

/* What every builder needs: descriptors as our tensors have them, and oneDNN's parameters. */
typedef struct conv_descs {
    dnnl_memory_desc_t x, y, w, w_any, bias;
    dnnl_dims_t stride, dilation, padding; /* dilation: oneDNN counts the gaps, 0 is dense */
} conv_descs;

static asen_conv_shape conv_shape_of(const asen_tensor *x, const asen_tensor *y, const int64_t filter[2],
                                     const int64_t stride[2], const int64_t padding[2], const int64_t dilation[2],
                                     int64_t groups)
{
    return (asen_conv_shape){.n = y->shape[0], .oc = y->shape[1], .oh = y->shape[2], .ow = y->shape[3],
                             .ic = x->shape[1], .ih = x->shape[2], .iw = x->shape[3],
                             .kh = filter[0], .kw = filter[1], .groups = groups,
                             .stride = {stride[0], stride[1]}, .padding = {padding[0], padding[1]},
                             .dilation = {dilation[0], dilation[1]}};
}

/* Of any set that has them. */
#define GEOMETRY(a) (a).stride, (a).padding, (a).dilation, (a).groups

static void conv_key(const asen_conv_shape *s, asen_onednn_key *key)
{
    key->count = 0;
    const int64_t *word = (const int64_t *)s; /* nothing but int64 */
    for (size_t i = 0; i < sizeof *s / sizeof *word; i++) asen_onednn_key_add(key, word[i]);
}

static void conv_descs_free(conv_descs *d)
{
    dnnl_memory_desc_t all[] = {d->x, d->y, d->w, d->w_any, d->bias};
    for (int i = 0; i < 5; i++)
        if (all[i]) dnnl_memory_desc_destroy(all[i]);
}

static dnnl_status_t conv_descs_make(const asen_conv_shape *s, conv_descs *d)
{
    *d = (conv_descs){.stride = {s->stride[0], s->stride[1]},
                      .dilation = {s->dilation[0] - 1, s->dilation[1] - 1},
                      .padding = {s->padding[0], s->padding[1]}};
    int64_t in = s->ic / s->groups, out = s->oc / s->groups;
    dnnl_dims_t x = {s->n, s->ic, s->ih, s->iw}, y = {s->n, s->oc, s->oh, s->ow}, bias = {s->oc};
    /* (groups, out, in, kh, kw), in memory O, H, W, I */
    dnnl_dims_t w = {s->groups, out, in, s->kh, s->kw};
    dnnl_dims_t strides = {out * s->kh * s->kw * in, s->kh * s->kw * in, 1, s->kw * in, in};
    int skip = s->groups == 1; /* without the groups' dim */
    dnnl_status_t status = dnnl_memory_desc_create_with_tag(&d->x, 4, x, dnnl_f32, dnnl_nhwc);
    if (!status) status = dnnl_memory_desc_create_with_tag(&d->y, 4, y, dnnl_f32, dnnl_nhwc);
    if (!status) status = dnnl_memory_desc_create_with_strides(&d->w, 5 - skip, w + skip, dnnl_f32, strides + skip);
    if (!status) status = dnnl_memory_desc_create_with_tag(&d->w_any, 5 - skip, w + skip, dnnl_f32, dnnl_format_tag_any);
    if (!status && s->bias) status = dnnl_memory_desc_create_with_tag(&d->bias, 1, bias, dnnl_f32, dnnl_a);
    return status;
}

static dnnl_status_t forward_pd(dnnl_engine_t engine, const conv_descs *d, dnnl_prop_kind_t kind,
                                const_dnnl_primitive_attr_t attr, dnnl_primitive_desc_t *pd)
{
    return dnnl_convolution_forward_primitive_desc_create(pd, engine, kind, dnnl_convolution_direct, d->x, d->w_any,
                                                          d->bias, d->y, d->stride, d->dilation, d->padding,
                                                          d->padding, attr);
}

/* The residual, then the ReLU, while the result is in registers. */
static dnnl_status_t post_ops_set(const asen_conv_shape *s, const conv_descs *d, dnnl_primitive_attr_t attr)
{
    if (!s->residual && !s->relu) return dnnl_success;
    dnnl_post_ops_t ops = NULL;
    dnnl_status_t status = dnnl_post_ops_create(&ops);
    if (!status && s->residual) status = dnnl_post_ops_append_binary(ops, dnnl_binary_add, d->y);
    if (!status && s->relu) status = dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_relu, 0, 0);
    if (!status) status = dnnl_primitive_attr_set_post_ops(attr, ops);
    if (ops) dnnl_post_ops_destroy(ops);
    return status;
}

/* Arguments: x, w, y, then bias and residual where there are such. */
static dnnl_status_t forward_build(dnnl_engine_t engine, asen_onednn_plan *plan, const void *context)
{
    const asen_conv_shape *s = context;
    conv_descs d;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t status = conv_descs_make(s, &d);
    if (!status) status = asen_onednn_attr(&attr);
    if (!status) status = post_ops_set(s, &d, attr);
    if (!status) status = forward_pd(engine, &d, dnnl_forward_inference, attr, &pd);
    if (!status) status = asen_onednn_plan_add(plan, DNNL_ARG_SRC, d.x);
    if (!status)
        status = asen_onednn_plan_add_packed(plan, engine, DNNL_ARG_WEIGHTS,
                                             dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0), d.w, false);
    if (!status) status = asen_onednn_plan_add(plan, DNNL_ARG_DST, d.y);
    if (!status && s->bias) status = asen_onednn_plan_add(plan, DNNL_ARG_BIAS, d.bias);
    if (!status && s->residual)
        status = asen_onednn_plan_add(plan, DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, d.y);
    if (!status) status = asen_onednn_plan_set(plan, pd), pd = NULL;
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (attr) dnnl_primitive_attr_destroy(attr);
    conv_descs_free(&d);
    return status;
}

/* Arguments of the gradients: dy, w, dx or dy, dw, x. */
static dnnl_status_t backward_build(dnnl_engine_t engine, asen_onednn_plan *plan, const void *context, bool weights)
{
    const asen_conv_shape *s = context;
    conv_descs d;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t hint = NULL, pd = NULL;
    dnnl_status_t status = conv_descs_make(s, &d);
    if (!status) status = asen_onednn_attr(&attr);
    if (!status) status = forward_pd(engine, &d, dnnl_forward_training, attr, &hint);
    if (!status && weights)
        status = dnnl_convolution_backward_weights_primitive_desc_create(&pd, engine, dnnl_convolution_direct, d.x,
                                                                         d.w_any, NULL, d.y, d.stride, d.dilation,
                                                                         d.padding, d.padding, hint, attr);
    if (!status && !weights)
        status = dnnl_convolution_backward_data_primitive_desc_create(&pd, engine, dnnl_convolution_direct, d.x,
                                                                      d.w_any, d.y, d.stride, d.dilation, d.padding,
                                                                      d.padding, hint, attr);
    if (!status) status = asen_onednn_plan_add(plan, DNNL_ARG_DIFF_DST, d.y);
    if (!status)
        status = asen_onednn_plan_add_packed(
            plan, engine, weights ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS,
            dnnl_primitive_desc_query_md(pd, weights ? dnnl_query_diff_weights_md : dnnl_query_weights_md, 0), d.w,
            weights);
    if (!status) status = asen_onednn_plan_add(plan, weights ? DNNL_ARG_SRC : DNNL_ARG_DIFF_SRC, d.x);
    if (!status) status = asen_onednn_plan_set(plan, pd), pd = NULL;
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (hint) dnnl_primitive_desc_destroy(hint);
    if (attr) dnnl_primitive_attr_destroy(attr);
    conv_descs_free(&d);
    return status;
}

static dnnl_status_t grad_input_build(dnnl_engine_t engine, asen_onednn_plan *plan, const void *context)
{
    return backward_build(engine, plan, context, false);
}

static dnnl_status_t grad_weight_build(dnnl_engine_t engine, asen_onednn_plan *plan, const void *context)
{
    return backward_build(engine, plan, context, true);
}

/* Finds the plan of the shape and runs it over `tensors`, in the builder's order of arguments. */
static int conv_run(const asen_call *call, const asen_conv_shape *s, asen_onednn_build build, asen_tensor *const *tensors)
{
    asen_onednn_key key;
    asen_onednn_plan *plan = NULL;
    conv_key(s, &key);
    int status = asen_onednn_plan_get(call, &key, build, s, &plan);
    if (!status) status = asen_onednn_run(call, plan, tensors);
    asen_onednn_plan_put(plan);
    return status;
}

static int forward(const asen_call *call, asen_conv_shape *s, asen_tensor *bias, asen_tensor *residual)
{
    asen_tensor *tensors[ASEN_ONEDNN_ARGS] = {call->in[0], call->in[1], call->out[0]};
    int n = 3;
    if ((s->bias = bias != NULL)) tensors[n++] = bias;
    if ((s->residual = residual != NULL)) tensors[n++] = residual;
    return conv_run(call, s, forward_build, tensors);
}

int onednn_conv2d(const asen_call *call)
{
    if (!asen_onednn_all_f32(call)) return ASEN_DECLINED;
    asen_conv_shape s = conv_shape_of(call->in[0], call->out[0], call->in[1]->shape + 2, GEOMETRY(call->attrs->conv2d));
    return forward(call, &s, call->n_in > 2 ? call->in[2] : NULL, NULL);
}

int onednn_conv2d_fused(const asen_call *call)
{
    if (!asen_onednn_all_f32(call)) return ASEN_DECLINED;
    const asen_attrs_conv_fused *a = &call->attrs->conv2d_fused;
    asen_conv_shape s = conv_shape_of(call->in[0], call->out[0], call->in[1]->shape + 2, GEOMETRY(*a));
    s.relu = a->relu != 0;
    return forward(call, &s, call->n_in > 2 ? call->in[2] : NULL, call->n_in > 3 ? call->in[3] : NULL);
}

int onednn_conv2d_grad_input(const asen_call *call)
{
    if (!asen_onednn_all_f32(call)) return ASEN_DECLINED;
    asen_conv_shape s = conv_shape_of(call->out[0], call->in[0], call->in[1]->shape + 2, GEOMETRY(call->attrs->conv2d_grad_input));
    asen_tensor *tensors[] = {call->in[0], call->in[1], call->out[0]};
    return conv_run(call, &s, grad_input_build, tensors);
}

int onednn_conv2d_grad_weight(const asen_call *call)
{
    if (!asen_onednn_all_f32(call)) return ASEN_DECLINED;
    const asen_tensor *dy = call->in[0], *x = call->in[1];
    asen_conv_shape s = conv_shape_of(x, dy, call->out[0]->shape + 2, GEOMETRY(call->attrs->conv2d_grad_weight));
    if (asen_onednn_conv_gemm_pays(&s)) return asen_onednn_conv_gemm_grad_weight(call, &s);
    asen_tensor *tensors[] = {call->in[0], call->out[0], call->in[1]};
    return conv_run(call, &s, grad_weight_build, tensors);
}

#endif
