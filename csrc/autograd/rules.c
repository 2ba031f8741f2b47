/* Gradient rules: how dy of an op's outputs becomes dx of its inputs, built from ops.
 *
 * A rule reads node->attrs (normalised), node->meta (shapes of inputs) and the tensors that its
 * row saves; it fills dx[i] with new references only where node->needs[i]. dy[k] may be NULL (that
 * output got no gradient), not all of them. Nothing that a rule runs is recorded. On an error the caller releases what
 * dx holds; a rule releases its own temporaries at `done`, on every path. */
#include "autograd/rules.h"

#include "ops/run.h"
#include "ops/shape.h"
#include "ops/transfer.h"

#define RULE(name) int grad_##name(const asen_node *node, asen_tensor *const *dy, asen_tensor **dx)
#define X (node->saved_in)
#define Y (node->saved_out)

/* An op of one output on the tensors given; its attributes are the union's member of its name. */
#define APPLY(out, op, attrs, ...)                                                                                     \
    asen_op_run1(ASEN_OP_##op, (asen_tensor *[]){__VA_ARGS__}, (int)(sizeof((asen_tensor *[]){__VA_ARGS__}) / sizeof(asen_tensor *)), \
                   attrs, out)
#define ATTRS(op, ...) &(asen_attrs){.op = {__VA_ARGS__}}
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        if ((status = (call)) != ASEN_OK)                                                                              \
            goto done;                                                                                                 \
    } while (0)

#define MAX_TEMPS 4

static void release_temps(asen_tensor **t)
{
    for (int i = 0; i < MAX_TEMPS; i++)
        asen_tensor_release(t[i]);
}

/* A scalar. */
static int constant(const asen_node *node, asen_dtype dtype, double value, asen_tensor **out)
{
    return asen_tensor_full(node->device, dtype, 0, NULL, value, out);
}

/* value * t */
static int scale(const asen_node *node, asen_tensor *t, double value, asen_tensor **out)
{
    asen_tensor *c = NULL;
    int status = constant(node, t->dtype, value, &c);
    if (status == ASEN_OK)
        status = APPLY(out, mul, NULL, t, c);
    asen_tensor_release(c);
    return status;
}

/* a * b, summed down to the shape of input i */
static int product_to(const asen_node *node, int i, asen_tensor *a, asen_tensor *b, asen_tensor **out)
{
    asen_tensor *product = NULL;
    int status = APPLY(&product, mul, NULL, a, b);
    if (status == ASEN_OK)
        status = asen_grad_reduce_to(node, i, product, out);
    asen_tensor_release(product);
    return status;
}

/* Outputs from the second on carry no gradient: statistics and indices for the rule itself. */
static int only_first(const asen_node *node, asen_tensor *const *dy, int first)
{
    for (int k = first; k < node->n_out; k++)
        if (dy[k])
            return asen_fail(ASEN_ERR_UNSUPPORTED, "output %d of %s has no gradient: detach it before it is used further", k,
                             asen_op_get(node->op)->name);
    return ASEN_OK;
}

/* The outputs of a gradient op become those of dx that are wanted; from[i] is the output for input
 * i, -1 for none. Takes the references in `result` over. */
static void scatter_gradients(const asen_node *node, asen_tensor **result, int count, const int *from, asen_tensor **dx)
{
    for (int i = 0; i < node->n_in; i++)
        if (node->needs[i] && from[i] >= 0 && from[i] < count)
            dx[i] = asen_tensor_retain(result[from[i]]);
    for (int k = 0; k < count; k++)
        asen_tensor_release(result[k]);
}

/* ---- elementwise ---- */

/* y = a + b */
RULE(add)
{
    int status = ASEN_OK;
    for (int i = 0; i < 2; i++)
        if (node->needs[i])
            TRY(asen_grad_reduce_to(node, i, dy[0], &dx[i]));
done:
    return status;
}

/* y = a - b */
RULE(sub)
{
    int status = ASEN_OK;
    asen_tensor *t = NULL;
    if (node->needs[0])
        TRY(asen_grad_reduce_to(node, 0, dy[0], &dx[0]));
    if (node->needs[1]) {
        TRY(asen_grad_reduce_to(node, 1, dy[0], &t));
        TRY(APPLY(&dx[1], neg, NULL, t));
    }
done:
    asen_tensor_release(t);
    return status;
}

/* y = a b: da = dy b, db = dy a */
RULE(mul)
{
    int status = ASEN_OK;
    for (int i = 0; i < 2; i++)
        if (node->needs[i])
            TRY(product_to(node, i, dy[0], X[1 - i], &dx[i]));
done:
    return status;
}

/* y = a / b: da = dy / b, db = -da a / b */
RULE(div)
{
    int status = ASEN_OK;
    asen_tensor *t[MAX_TEMPS] = {NULL};
    TRY(APPLY(&t[0], div, NULL, dy[0], X[1]));
    if (node->needs[0])
        TRY(asen_grad_reduce_to(node, 0, t[0], &dx[0]));
    if (node->needs[1]) {
        TRY(APPLY(&t[1], div, NULL, X[0], X[1]));
        TRY(product_to(node, 1, t[0], t[1], &t[2]));
        TRY(APPLY(&dx[1], neg, NULL, t[2]));
    }
done:
    release_temps(t);
    return status;
}

RULE(neg)
{
    (void)node;
    return APPLY(&dx[0], neg, NULL, dy[0]);
}

/* y = exp x: dx = dy y */
RULE(exp)
{
    return APPLY(&dx[0], mul, NULL, dy[0], Y[0]);
}

/* y = log x: dx = dy / x */
RULE(log)
{
    return APPLY(&dx[0], div, NULL, dy[0], X[0]);
}

/* y = sqrt x: dx = dy / (2 y) */
RULE(sqrt)
{
    int status = ASEN_OK;
    asen_tensor *t[MAX_TEMPS] = {NULL};
    TRY(scale(node, Y[0], 2, &t[0]));
    TRY(APPLY(&dx[0], div, NULL, dy[0], t[0]));
done:
    release_temps(t);
    return status;
}

/* y = x^p: dx = dy p x^(p-1); zero for p = 0, also at x = 0 */
RULE(pow)
{
    int status = ASEN_OK;
    double p = node->attrs.pow.exponent;
    asen_tensor *t[MAX_TEMPS] = {NULL};
    if (p == 0)
        return scale(node, dy[0], 0, &dx[0]);
    TRY(APPLY(&t[0], pow, ATTRS(pow, .exponent = p - 1), X[0]));
    TRY(scale(node, t[0], p, &t[1]));
    TRY(APPLY(&dx[0], mul, NULL, dy[0], t[1]));
done:
    release_temps(t);
    return status;
}

RULE(clamp)
{
    return APPLY(&dx[0], clamp_grad, &node->attrs, dy[0], X[0]);
}

RULE(relu)
{
    return APPLY(&dx[0], relu_grad, NULL, dy[0], Y[0]);
}

/* y = tanh x: dx = dy (1 - y^2) */
RULE(tanh)
{
    int status = ASEN_OK;
    asen_tensor *t[MAX_TEMPS] = {NULL};
    TRY(APPLY(&t[0], mul, NULL, Y[0], Y[0]));
    TRY(constant(node, dy[0]->dtype, 1, &t[1]));
    TRY(APPLY(&t[2], sub, NULL, t[1], t[0]));
    TRY(APPLY(&dx[0], mul, NULL, dy[0], t[2]));
done:
    release_temps(t);
    return status;
}

/* y = 1 / (1 + exp -x): dx = dy y (1 - y) */
RULE(sigmoid)
{
    int status = ASEN_OK;
    asen_tensor *t[MAX_TEMPS] = {NULL};
    TRY(constant(node, dy[0]->dtype, 1, &t[0]));
    TRY(APPLY(&t[1], sub, NULL, t[0], Y[0]));
    TRY(APPLY(&t[2], mul, NULL, Y[0], t[1]));
    TRY(APPLY(&dx[0], mul, NULL, dy[0], t[2]));
done:
    release_temps(t);
    return status;
}

/* Back to the dtype, and where the copy went to another device (Tensor.to) to the device, of x. */
RULE(copy)
{
    const asen_input_meta *x = &node->meta[0];
    asen_tensor *t = NULL;
    int status = ASEN_OK;
    if (dy[0]->dtype != x->dtype)
        status = APPLY(&t, copy, ATTRS(copy, .dtype = x->dtype), dy[0]);
    else
        t = asen_tensor_retain(dy[0]);
    if (status != ASEN_OK || t->storage->device == x->device) {
        dx[0] = t;
        return status;
    }
    TRY(asen_tensor_new(x->device, x->dtype, x->ndim, x->shape, &dx[0]));
    TRY(asen_tensor_copy_into(dx[0], t));
done:
    asen_tensor_release(t);
    return status;
}

/* y = a where the condition holds, else b: da = dy there, db = dy elsewhere */
RULE(where)
{
    int status = ASEN_OK;
    asen_tensor *t[MAX_TEMPS] = {NULL};
    TRY(constant(node, dy[0]->dtype, 0, &t[0]));
    if (node->needs[1]) {
        TRY(APPLY(&t[1], where, NULL, X[0], dy[0], t[0]));
        TRY(asen_grad_reduce_to(node, 1, t[1], &dx[1]));
    }
    if (node->needs[2]) {
        TRY(APPLY(&t[2], where, NULL, X[0], t[0], dy[0]));
        TRY(asen_grad_reduce_to(node, 2, t[2], &dx[2]));
    }
done:
    release_temps(t);
    return status;
}

/* ---- reductions ---- */

/* dy of a reduction, repeated along the dims that were reduced: the shape of x. A view. */
static int broadcast_to_input(const asen_node *node, asen_tensor *dy, asen_tensor **out)
{
    const asen_input_meta *x = &node->meta[0];
    const asen_list *dims = &node->attrs.sum.dims;
    asen_attrs kept = {.reshape.shape.count = x->ndim}, full = {.expand.shape.count = x->ndim};
    asen_tensor *t = NULL;
    for (int i = 0; i < x->ndim; i++)
        kept.reshape.shape.item[i] = full.expand.shape.item[i] = x->shape[i];
    for (int i = 0; i < dims->count; i++)
        kept.reshape.shape.item[dims->item[i]] = 1;
    int status = APPLY(&t, reshape, &kept, dy);
    if (status == ASEN_OK)
        status = APPLY(out, expand, &full, t);
    asen_tensor_release(t);
    return status;
}

/* y = sum x: dx = dy */
RULE(sum)
{
    return broadcast_to_input(node, dy[0], &dx[0]);
}

/* y = sum x / n: dx = dy / n */
RULE(mean)
{
    int status = ASEN_OK;
    asen_tensor *t[MAX_TEMPS] = {NULL};
    double n = 1;
    for (int i = 0; i < node->attrs.mean.dims.count; i++)
        n *= (double)node->meta[0].shape[node->attrs.mean.dims.item[i]];
    TRY(scale(node, dy[0], 1 / n, &t[0]));
    TRY(broadcast_to_input(node, t[0], &dx[0]));
done:
    release_temps(t);
    return status;
}

RULE(max)
{
    return APPLY(&dx[0], max_grad, &node->attrs, dy[0], X[0], Y[0]);
}

/* ---- matrices ---- */

/* y = A B, A = a or a^T, B = b or b^T: dA = dy B^T, dB = A^T dy, transposed where a or b was. */
RULE(matmul)
{
    int status = ASEN_OK;
    bool ta = node->attrs.matmul.trans_a, tb = node->attrs.matmul.trans_b;
    if (node->needs[0]) {
        if (ta)
            TRY(APPLY(&dx[0], matmul, ATTRS(matmul, .trans_a = tb, .trans_b = 1), X[1], dy[0]));
        else
            TRY(APPLY(&dx[0], matmul, ATTRS(matmul, .trans_b = !tb), dy[0], X[1]));
    }
    if (node->needs[1]) {
        if (tb)
            TRY(APPLY(&dx[1], matmul, ATTRS(matmul, .trans_a = 1, .trans_b = ta), dy[0], X[0]));
        else
            TRY(APPLY(&dx[1], matmul, ATTRS(matmul, .trans_a = !ta), X[0], dy[0]));
    }
done:
    return status;
}

/* y = x w^T + bias: dx = dy w, dw = dy^T x, dbias = sum of dy over rows */
RULE(linear)
{
    int status = ASEN_OK;
    if (node->needs[0])
        TRY(APPLY(&dx[0], matmul, ATTRS(matmul, .trans_a = 0), dy[0], X[1]));
    if (node->needs[1])
        TRY(APPLY(&dx[1], matmul, ATTRS(matmul, .trans_a = 1), dy[0], X[0]));
    if (node->n_in > 2 && node->needs[2])
        TRY(APPLY(&dx[2], sum, ATTRS(sum, .dims = {1, {0}}), dy[0]));
done:
    return status;
}

/* y = softmax x: dx = y (dy - sum(dy y)) */
RULE(softmax)
{
    int status = ASEN_OK;
    asen_tensor *t[MAX_TEMPS] = {NULL};
    TRY(APPLY(&t[0], mul, NULL, dy[0], Y[0]));
    TRY(APPLY(&t[1], sum, ATTRS(sum, .dims = {1, {node->attrs.softmax.dim}}, .keepdim = 1), t[0]));
    TRY(APPLY(&t[2], sub, NULL, dy[0], t[1]));
    TRY(APPLY(&dx[0], mul, NULL, Y[0], t[2]));
done:
    release_temps(t);
    return status;
}

/* y = log softmax x: dx = dy - exp(y) sum(dy) */
RULE(log_softmax)
{
    int status = ASEN_OK;
    asen_tensor *t[MAX_TEMPS] = {NULL};
    TRY(APPLY(&t[0], sum, ATTRS(sum, .dims = {1, {node->attrs.log_softmax.dim}}, .keepdim = 1), dy[0]));
    TRY(APPLY(&t[1], exp, NULL, Y[0]));
    TRY(APPLY(&t[2], mul, NULL, t[1], t[0]));
    TRY(APPLY(&dx[0], sub, NULL, dy[0], t[2]));
done:
    release_temps(t);
    return status;
}

/* ---- convolution, pooling, normalisation ---- */

RULE(conv2d)
{
    int status = ASEN_OK;
    const asen_attrs_conv *a = &node->attrs.conv2d;
    asen_attrs attrs;
    for (int i = 0; i < 2; i++) {
        if (!node->needs[i])
            continue;
        attrs.conv2d_grad_input = (asen_attrs_conv_grad){ /* grad_weight has the same set */
            .stride = {a->stride[0], a->stride[1]}, .padding = {a->padding[0], a->padding[1]},
            .dilation = {a->dilation[0], a->dilation[1]}, .groups = a->groups,
            .size = {node->meta[i].shape[2], node->meta[i].shape[3]}};
        if (i == 0)
            TRY(APPLY(&dx[0], conv2d_grad_input, &attrs, dy[0], X[1]));
        else
            TRY(APPLY(&dx[1], conv2d_grad_weight, &attrs, dy[0], X[0]));
    }
    if (node->n_in > 2 && node->needs[2])
        TRY(APPLY(&dx[2], sum, ATTRS(sum, .dims = {3, {0, 2, 3}}), dy[0]));
done:
    return status;
}

RULE(max_pool2d)
{
    int status = only_first(node, dy, 1);
    asen_attrs attrs = {.max_pool2d_grad = {.size = {node->meta[0].shape[2], node->meta[0].shape[3]}}};
    for (int i = 0; i < 2; i++) {
        attrs.max_pool2d_grad.kernel_size[i] = node->attrs.max_pool2d.kernel_size[i];
        attrs.max_pool2d_grad.stride[i] = node->attrs.max_pool2d.stride[i];
        attrs.max_pool2d_grad.padding[i] = node->attrs.max_pool2d.padding[i];
    }
    return status != ASEN_OK ? status : APPLY(&dx[0], max_pool2d_grad, &attrs, dy[0], Y[1]);
}

RULE(batch_norm)
{
    int status = only_first(node, dy, 1), count = 0;
    bool residual = node->n_in > 5 && node->needs[5];
    asen_tensor *result[ASEN_MAX_OUT] = {NULL}, *cut = Y[0] != NULL ? Y[0] : X[0]; /* y is read with relu */
    asen_tensor *in[] = {dy[0], X[0], cut, X[1], Y[1], Y[2]};
    if (status == ASEN_OK && (node->needs[3] || node->needs[4]))
        status = asen_fail(ASEN_ERR_UNSUPPORTED, "running_mean and running_var have no gradient");
    if (status == ASEN_OK)
        status = asen_op_run(ASEN_OP_batch_norm_grad, in, 6,
                               ATTRS(batch_norm_grad, .training = node->attrs.batch_norm.training,
                                     .groups = node->attrs.batch_norm.groups, .relu = node->attrs.batch_norm.relu,
                                     .residual = residual),
                               result, &count);
    if (status == ASEN_OK)
        scatter_gradients(node, result, count, (const int[]){0, 1, 2, -1, -1, 3}, dx);
    return status;
}

/* ---- structure ---- */

RULE(cat)
{
    int status = ASEN_OK;
    int dim = (int)node->attrs.cat.dim;
    int64_t from = 0;
    for (int i = 0; i < node->n_in; i++) {
        int64_t to = from + node->meta[i].shape[dim];
        asen_attrs attrs = {0};
        attrs.slice.start.count = attrs.slice.stop.count = attrs.slice.step.count = node->meta[i].ndim;
        for (int d = 0; d < node->meta[i].ndim; d++) {
            attrs.slice.start.item[d] = d == dim ? from : 0;
            attrs.slice.stop.item[d] = d == dim ? to : node->meta[i].shape[d];
            attrs.slice.step.item[d] = 1;
        }
        if (node->needs[i])
            TRY(APPLY(&dx[i], slice, &attrs, dy[0]));
        from = to;
    }
done:
    return status;
}

RULE(embedding)
{
    return APPLY(&dx[0], embedding_grad, ATTRS(embedding_grad, .rows = node->meta[0].shape[0]), dy[0], X[1]);
}

/* dy goes where `index` says, in the shape of input 0. */
static int scatter_back(const asen_node *node, asen_tensor *dy, asen_tensor *index, int64_t dim, asen_tensor **out)
{
    const asen_input_meta *x = &node->meta[0];
    asen_attrs attrs = {.gather_grad = {.shape = {.count = x->ndim}, .dim = dim}};
    for (int d = 0; d < x->ndim; d++)
        attrs.gather_grad.shape.item[d] = x->shape[d];
    return APPLY(out, gather_grad, &attrs, dy, index);
}

RULE(sort)
{
    int status = only_first(node, dy, 1);
    return status != ASEN_OK ? status : scatter_back(node, dy[0], Y[1], node->attrs.sort.dim, &dx[0]);
}

RULE(gather)
{
    return scatter_back(node, dy[0], X[1], node->attrs.gather.dim, &dx[0]);
}

/* The mask is a function of seed and offset: the op itself, on dy. */
RULE(dropout)
{
    return APPLY(&dx[0], dropout, &node->attrs, dy[0]);
}

/* ---- losses and similarities ---- */

RULE(cross_entropy)
{
    int status = only_first(node, dy, 1);
    return status != ASEN_OK ? status : APPLY(&dx[0], cross_entropy_grad, NULL, dy[0], Y[1], X[1]);
}

RULE(cosine_similarity)
{
    int status = only_first(node, dy, 1), count = 0;
    asen_tensor *result[ASEN_MAX_OUT] = {NULL}, *in[] = {dy[0], X[0], X[1], Y[0], Y[1], Y[2]};
    if (status == ASEN_OK)
        status = asen_op_run(ASEN_OP_cosine_similarity_grad, in, 6, &node->attrs, result, &count);
    if (status == ASEN_OK)
        scatter_gradients(node, result, count, (const int[]){0, 1}, dx);
    return status;
}

RULE(normalize)
{
    int status = only_first(node, dy, 1);
    return status != ASEN_OK ? status : APPLY(&dx[0], normalize_grad, &node->attrs, dy[0], Y[0], Y[1]);
}

/* Gradients come through v and m; k is for the rule itself. */
RULE(spatial_attention)
{
    int count = 0, status = only_first(node, dy, 2);
    const asen_input_meta *x = &node->meta[0];
    asen_tensor *dv = dy[0] ? asen_tensor_retain(dy[0]) : NULL, *result[ASEN_MAX_OUT] = {NULL};
    if (status == ASEN_OK && !dv)
        status = asen_tensor_full(node->device, x->dtype, 2, x->shape, 0, &dv);
    asen_tensor *in[] = {dv, dy[1], X[0], X[2], Y[1], Y[2]};
    if (status == ASEN_OK)
        status = asen_op_run(ASEN_OP_spatial_attention_grad, in, 6, NULL, result, &count);
    if (status == ASEN_OK)
        scatter_gradients(node, result, count, (const int[]){0, 1, 2}, dx);
    asen_tensor_release(dv);
    return status;
}

RULE(arc_margin)
{
    return APPLY(&dx[0], arc_margin_grad, &node->attrs, dy[0], X[0], X[1]);
}

/* ---- views ---- */

RULE(reshape)
{
    asen_attrs attrs = {.reshape.shape.count = node->meta[0].ndim};
    for (int i = 0; i < node->meta[0].ndim; i++)
        attrs.reshape.shape.item[i] = node->meta[0].shape[i];
    return APPLY(&dx[0], reshape, &attrs, dy[0]);
}

/* The inverse permutation. */
RULE(permute)
{
    asen_attrs attrs = {.permute.dims.count = node->attrs.permute.dims.count};
    for (int i = 0; i < attrs.permute.dims.count; i++)
        attrs.permute.dims.item[node->attrs.permute.dims.item[i]] = i;
    return APPLY(&dx[0], permute, &attrs, dy[0]);
}

RULE(slice)
{
    asen_attrs attrs = {.slice_grad = {.shape.count = node->meta[0].ndim, .start = node->attrs.slice.start,
                                       .step = node->attrs.slice.step}};
    for (int i = 0; i < node->meta[0].ndim; i++)
        attrs.slice_grad.shape.item[i] = node->meta[0].shape[i];
    return APPLY(&dx[0], slice_grad, &attrs, dy[0]);
}

RULE(expand)
{
    return asen_grad_reduce_to(node, 0, dy[0], &dx[0]);
}

/* ---- the table ---- */

const asen_grad_rule asen_grad_rules[ASEN_OP_COUNT] = {
#define NONE NULL
#define OP(name, inputs, outputs, attrs, saves, flags, grad, ...) [ASEN_OP_##name] = grad,
#define VIEW(name, inputs, outputs, attrs, grad, ...) [ASEN_OP_##name] = grad,
#include "ops/ops.def"
#undef NONE
};
