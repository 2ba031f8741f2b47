/* Attributes of ops: what is not a tensor.
 *
 * Each op's struct consists of 8-byte words, so that the schema string of its row (ops.def) maps
 * onto it word by word: "stride:i2=1 eps:f=1e-5 dims:l" reads: two int64, a double, and a list
 * (its length, then ASEN_MAX_DIMS int64). Kinds: i (int64), b (int64 used as a flag), f (double),
 * l (list), s (a list that is a shape), t (a dtype, int64). A number after i repeats it; "=" gives
 * the default. The struct of an op is the union's member of the op's name; the op tests set every
 * attribute by name and see it arrive. */
#ifndef ASEN_ATTRS_H
#define ASEN_ATTRS_H

#include "core/asen.h"

typedef struct asen_list {
    int64_t count;
    int64_t item[ASEN_MAX_DIMS];
} asen_list;

typedef struct asen_attrs_conv {
    int64_t stride[2], padding[2], dilation[2], groups;
    int64_t size[2]; /* backward only: H, W of the input (grad_input) or of the filter (grad_weight) */
} asen_attrs_conv;

typedef struct asen_attrs_conv_fused {
    int64_t stride[2], padding[2], dilation[2], groups, relu;
} asen_attrs_conv_fused;

typedef struct asen_attrs_reduce {
    asen_list dims; /* empty: all; sorted, non-negative by the time a kernel sees them */
    int64_t keepdim;
} asen_attrs_reduce;

typedef union asen_attrs {
    struct { int64_t dtype; } copy;
    struct { double exponent; } pow;
    struct { double min, max; } clamp, clamp_grad;
    asen_attrs_reduce sum, mean, max, max_grad;
    struct { int64_t trans_a, trans_b; } matmul;
    struct { int64_t dim; } softmax, log_softmax, cat;
    struct { int64_t kernel_size[2], stride[2], padding[2]; } max_pool2d;
    struct { int64_t size[2], kernel_size[2], stride[2], padding[2]; } max_pool2d_grad;
    struct { asen_list shape, start, step; } slice_grad;
    struct { int64_t rows; } embedding_grad;
    struct { double p; int64_t seed, offset; } dropout;
    struct { double eps; } cosine_similarity, cosine_similarity_grad, normalize, normalize_grad;
    asen_attrs_conv conv2d, conv2d_grad_input, conv2d_grad_weight;
    asen_attrs_conv_fused conv2d_fused;
    struct { int64_t training, groups; double momentum, eps; int64_t relu; } batch_norm;
    struct { int64_t training, groups, relu, residual; } batch_norm_grad;
    struct { double s, m; int64_t easy_margin; } arc_margin, arc_margin_grad;
    struct { asen_list shape; } reshape, expand;
    struct { asen_list dims; } permute;
    struct { asen_list start, stop, step; } slice;
} asen_attrs;

#endif
