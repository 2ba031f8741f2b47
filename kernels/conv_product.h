/* Convolutions that are matrix products: 1 x 1 filters, in the precisions where cuBLASLt is faster than cuDNN. */
#ifndef ASEN_CONV_PRODUCT_H
#define ASEN_CONV_PRODUCT_H

#include "cuda.h"
#include "cudnn_graph.h"

/* The convolution or gradient of `spec` with its epilogue; data[] by CONV_X …. ASEN_DECLINED: it is none of these. */
int conv_product(const asen_call *call, const conv_spec *spec, void *const data[CONV_TENSORS]);

#endif
