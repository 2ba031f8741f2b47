/* 1 x 1 convolutions as matrix products over the pixels: see conv_product.h.
 *
 * Channels-last, a 1 x 1 convolution is y (NPQ, O) = x (NPQ, C) w (O, C)^T as it lies; its gradients are dx = dy w
 * and dw = dy^T x. With a stride only every so many pixels of x take part: they are gathered first, or, for dx,
 * scattered among zeros afterwards.
 *
 * Only float32 that must stay float32, and float64: there cuDNN 9's deterministic engines reach a tenth to a half
 * of what cuBLASLt does (H200, batch 192: the gradient of 256 -> 128 at 56 x 56 takes 82 ms against 1; TF32 and
 * 16-bit plans of cuDNN are as good as products, and need no gathering). */
#include "conv_product.h"

#include <stdatomic.h>

#include "matmul.h"

/* A dense tensor (n, c, h, w) over borrowed device memory. */
typedef struct borrowed {
    asen_storage storage;
    asen_tensor tensor;
} borrowed;

static asen_tensor *borrow(borrowed *b, const asen_call *call, void *data, int64_t dtype, int64_t n, int64_t c, int64_t h,
                           int64_t w)
{
    *b = (borrowed){.storage = {.device = call->device, .data = data},
                    .tensor = {.storage = &b->storage, .dtype = (asen_dtype)dtype, .ndim = 4, .shape = {n, c, h, w},
                               .stride = {h * w * c, 1, w * c, c}}};
    return &b->tensor;
}

/* Every stride-th pixel of x (N, C, H, W) into rows (NPQ, C). */
static int gather(const asen_call *call, const conv_spec *s, void *x, void *rows)
{
    borrowed from, to;
    asen_tensor *in = borrow(&from, call, x, s->dtype, s->n, s->c, s->h, s->w);
    asen_tensor *out = borrow(&to, call, rows, s->dtype, s->n, s->c, s->p, s->q);
    const asen_attrs attrs = {.copy = {.dtype = s->dtype}};
    in->shape[2] = s->p;
    in->shape[3] = s->q;
    in->stride[2] *= s->stride[0];
    in->stride[3] *= s->stride[1];
    return cuda_copy(&(asen_call){ASEN_OP_copy, 1, 1, &in, &out, &attrs, call->device});
}

/* Rows (NPQ, C) to every stride-th pixel of dx (N, C, H, W), zeros elsewhere. */
static int scatter(const asen_call *call, const conv_spec *s, void *rows, void *dx)
{
    borrowed from, to;
    asen_tensor *in = borrow(&from, call, rows, s->dtype, s->n, s->c, s->p, s->q);
    asen_tensor *out = borrow(&to, call, dx, s->dtype, s->n, s->c, s->h, s->w);
    const asen_attrs attrs = {.slice_grad = {.shape = {4, {s->n, s->c, s->h, s->w}}, .start = {4, {0}},
                                             .step = {4, {1, 1, s->stride[0], s->stride[1]}}}};
    return cuda_slice_grad(&(asen_call){ASEN_OP_slice_grad, 1, 1, &in, &out, &attrs, call->device});
}

/* x: (NPQ, C), or for dx its rows. */
static int multiply(const asen_call *call, const conv_spec *s, void *x, void *const data[CONV_TENSORS])
{
    int64_t pixels = s->n * s->p * s->q;
    cuda_product product = {.batch = 1, .dtype = (int32_t)s->dtype};
    switch (s->kind) {
    case CONV_FORWARD:
        product.m = pixels, product.n = s->o, product.k = s->c;
        product.trans_b = 1;
        product.relu = s->relu != 0;
        return cuda_product_run(call, &product, x, data[CONV_W], s->bias ? data[CONV_BIAS] : NULL,
                                s->residual ? data[CONV_RESIDUAL] : NULL, data[CONV_Y]);
    case CONV_GRAD_INPUT:
        product.m = pixels, product.n = s->c, product.k = s->o;
        return cuda_product_run(call, &product, data[CONV_Y], data[CONV_W], NULL, NULL, x);
    default:
        product.m = s->o, product.n = s->c, product.k = pixels;
        product.trans_a = 1;
        return cuda_product_run(call, &product, data[CONV_Y], x, NULL, NULL, data[CONV_W]);
    }
}

/* Says, once, that there is no algorithm where there should be one: cuDNN's plans can be many times slower. In float64 no
 * algorithm has an epilogue in it, and cuDNN is as good. */
static void warn_of_fallback(const conv_spec *s)
{
    static atomic_bool said;
    char text[400];
    if (s->dtype == ASEN_F32 && !atomic_exchange(&said, true))
        cuda_host.warning("cuBLASLt has no algorithm for %s: it is left to cuDNN, which can be many times slower. Further ones "
                          "are not mentioned.", conv_spec_text(s, text, sizeof text));
}

static bool is_product(const conv_spec *s)
{
    return ((s->dtype == ASEN_F32 && !s->tf32) || s->dtype == ASEN_F64) && s->kh == 1 && s->kw == 1 && s->groups == 1 &&
           s->padding[0] == 0 && s->padding[1] == 0;
}

int conv_product(const asen_call *call, const conv_spec *s, void *const data[CONV_TENSORS])
{
    void *rows = data[CONV_X];
    size_t bytes = 0;
    if (!is_product(s))
        return ASEN_DECLINED;
    if (s->stride[0] != 1 || s->stride[1] != 1) {
        bytes = (size_t)(s->n * s->p * s->q * s->c) * asen_dtype_size((asen_dtype)s->dtype);
        CUDA_OK(cuda_scratch_new(call, bytes, &rows));
    }
    int status = bytes > 0 && s->kind != CONV_GRAD_INPUT ? gather(call, s, data[CONV_X], rows) : ASEN_OK;
    if (status == ASEN_OK)
        status = multiply(call, s, rows, data);
    if (status == ASEN_DECLINED)
        warn_of_fallback(s);
    if (status == ASEN_OK && bytes > 0 && s->kind == CONV_GRAD_INPUT)
        status = scatter(call, s, rows, data[CONV_X]);
    if (bytes > 0)
        cuda_scratch_free(call, rows, bytes);
    return status;
}
