/* Matrix products on oneDNN: matmul (also batched and transposed) and linear with its bias.
 *
 * Transposition is a matter of strides. Nothing is packed: for a linear layer in training, whose
 * weight changes every step, packing costs as much as the product (0.39 ms beside 0.38 ms for 48
 * rows of 1024 times 1024 x 1024, one Zen 5 core) and the product without it 0.47 ms. */
#include "cpu/onednn/onednn.h"

#ifdef ASEN_ONEDNN

/* (batch, m, k) times (batch, k, n); strides of the two matrix dims are chosen by trans_*. */
typedef struct matmul_shape {
    int64_t batch, m, k, n, trans_a, trans_b, bias;
} matmul_shape;

/* A (batch, rows, cols) matrix, or without the batch's dim; `transposed`: it lies as (cols, rows). */
static dnnl_status_t matrix_desc(const matmul_shape *s, int64_t rows, int64_t cols, bool transposed,
                                 dnnl_memory_desc_t *out)
{
    int skip = s->batch == 0;
    dnnl_dims_t dims = {s->batch, rows, cols};
    dnnl_dims_t strides = {rows * cols, transposed ? 1 : cols, transposed ? rows : 1};
    return dnnl_memory_desc_create_with_strides(out, 3 - skip, dims + skip, dnnl_f32, strides + skip);
}

/* Arguments: a, b, y, and the bias where there is one. */
static dnnl_status_t matmul_build(dnnl_engine_t engine, asen_onednn_plan *plan, const void *context)
{
    const matmul_shape *s = context;
    dnnl_memory_desc_t a = NULL, b = NULL, y = NULL, bias = NULL;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_dims_t row = {1, s->n};
    dnnl_status_t status = matrix_desc(s, s->m, s->k, s->trans_a, &a);
    if (!status) status = matrix_desc(s, s->k, s->n, s->trans_b, &b);
    if (!status) status = matrix_desc(s, s->m, s->n, false, &y);
    if (!status && s->bias) status = dnnl_memory_desc_create_with_tag(&bias, 2, row, dnnl_f32, dnnl_ab);
    if (!status) status = asen_onednn_attr(&attr);
    if (!status) status = dnnl_matmul_primitive_desc_create(&pd, engine, a, b, bias, y, attr);
    if (!status) status = asen_onednn_plan_add(plan, DNNL_ARG_SRC, a);
    if (!status) status = asen_onednn_plan_add(plan, DNNL_ARG_WEIGHTS, b);
    if (!status) status = asen_onednn_plan_add(plan, DNNL_ARG_DST, y);
    if (!status && bias) status = asen_onednn_plan_add(plan, DNNL_ARG_BIAS, bias);
    if (!status) status = asen_onednn_plan_set(plan, pd), pd = NULL;
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (attr) dnnl_primitive_attr_destroy(attr);
    dnnl_memory_desc_t descs[] = {a, b, y, bias};
    for (int i = 0; i < 4; i++)
        if (descs[i]) dnnl_memory_desc_destroy(descs[i]);
    return status;
}

static int matmul_run(const asen_call *call, const matmul_shape *s, asen_tensor *const *tensors)
{
    asen_onednn_key key = {0};
    const int64_t *word = (const int64_t *)s; /* nothing but int64 */
    for (size_t i = 0; i < sizeof *s / sizeof *word; i++) asen_onednn_key_add(&key, word[i]);
    asen_onednn_plan *plan = NULL;
    int status = asen_onednn_plan_get(call, &key, matmul_build, s, &plan);
    if (!status) status = asen_onednn_run(call, plan, tensors);
    asen_onednn_plan_put(plan);
    return status;
}

int onednn_matmul(const asen_call *call)
{
    if (!asen_onednn_all_f32(call)) return ASEN_DECLINED;
    const asen_tensor *a = call->in[0], *b = call->in[1];
    int batched = a->ndim == 3;
    int64_t trans_a = call->attrs->matmul.trans_a != 0, trans_b = call->attrs->matmul.trans_b != 0;
    matmul_shape s = {.batch = batched ? a->shape[0] : 0, .m = a->shape[batched + trans_a],
                      .k = a->shape[batched + !trans_a], .n = b->shape[batched + !trans_b],
                      .trans_a = trans_a, .trans_b = trans_b};
    asen_tensor *tensors[] = {call->in[0], call->in[1], call->out[0]};
    return matmul_run(call, &s, tensors);
}

int onednn_linear(const asen_call *call)
{
    if (!asen_onednn_all_f32(call)) return ASEN_DECLINED;
    const asen_tensor *x = call->in[0], *w = call->in[1];
    asen_tensor *bias = call->n_in > 2 ? call->in[2] : NULL;
    matmul_shape s = {.m = x->shape[0], .k = x->shape[1], .n = w->shape[0], .trans_b = 1, .bias = bias != NULL};
    asen_tensor *tensors[] = {call->in[0], call->in[1], call->out[0], bias};
    return matmul_run(call, &s, tensors);
}

#endif
