/* Matrix products on cuBLASLt, for the rows matmul and linear and for convolutions that are products. */
#ifndef ASEN_CUDA_MATMUL_H
#define ASEN_CUDA_MATMUL_H

#include "cuda.h"

/* y (batch, m, n) = relu(a b + residual + bias), row-major throughout; a is (m, k), or (k, m) where trans_a,
 * and so on. Compared as bytes: no padding. */
typedef struct cuda_product {
    int64_t m, n, k, batch;
    int32_t trans_a, trans_b, dtype; /* asen_dtype, floating */
    int32_t relu;
    int32_t bias, residual, tf32, alignment; /* filled in by cuda_product_run */
} cuda_product;

/* bias (n), residual (like y): NULL where there is none. ASEN_DECLINED: cuBLASLt has no algorithm for it. */
int cuda_product_run(const asen_call *call, cuda_product *product, const void *a, const void *b, const void *bias,
                     const void *residual, void *y);

#endif
