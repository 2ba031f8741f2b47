/* What the oneDNN convolution files share: the numbers that describe one convolution. */
#ifndef ASEN_CPU_ONEDNN_CONV_H
#define ASEN_CPU_ONEDNN_CONV_H

#include "cpu/onednn/onednn.h"

#ifdef ASEN_ONEDNN

/* x (n, ic, ih, iw), w (oc, ic/groups, kh, kw), y (n, oc, oh, ow) */
typedef struct asen_conv_shape {
    int64_t n, ic, ih, iw, oc, kh, kw, oh, ow, groups;
    int64_t stride[2], padding[2], dilation[2];
    int64_t bias, residual, relu;
} asen_conv_shape;

/* Whether the filter gradient is faster as matrix products than as oneDNN's own primitive. */
bool asen_onednn_conv_gemm_pays(const asen_conv_shape *shape);
/* conv2d_grad_weight (dy, x -> dw) as matrix products; groups must be 1. */
int asen_onednn_conv_gemm_grad_weight(const asen_call *call, const asen_conv_shape *shape);

#endif
#endif
