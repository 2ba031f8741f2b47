/* Our own convolutions, for what cuDNN has no acceptable plan for, and what follows a convolution
 * that cuDNN does not fuse. Tensors as in cudnn_graph.h: N, H, W, C and O, H, W, I. */
#ifndef ASEN_CONV_DIRECT_H
#define ASEN_CONV_DIRECT_H

#include "cudnn_graph.h"

ASEN_C_BEGIN

/* The plain convolution or gradient of `spec`; bias, residual and relu are ignored. data[]: by CONV_X …;
 * the tensor that the kind names is written. ASEN_DECLINED for a dtype that is not floating. */
int conv_direct(const conv_spec *spec, void *const data[CONV_TENSORS]);

/* y = relu(y + residual + bias) in place, as far as `spec` has them. */
int conv_epilogue(const conv_spec *spec, void *const data[CONV_TENSORS]);

ASEN_C_END

#endif
