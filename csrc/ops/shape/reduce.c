/* Shape rules (shape.h): reductions and matrix products. */
#include "ops/shape/rule.h"

/* ---- reductions: dims are sorted and in range ---- */

static void reduced_shape(const asen_tensor *x, const asen_attrs_reduce *attrs, int *ndim, int64_t *shape)
{
    *ndim = 0;
    for (int i = 0, next = 0; i < x->ndim; i++) {
        bool reduced = next < attrs->dims.count && attrs->dims.item[next] == i;
        next += reduced;
        if (!reduced || attrs->keepdim)
            shape[(*ndim)++] = reduced ? 1 : x->shape[i];
    }
}

static int reduce_rule(const asen_tensor *x, const asen_attrs_reduce *attrs, asen_spec *out, int *n_out)
{
    int ndim;
    int64_t shape[ASEN_MAX_DIMS];
    reduced_shape(x, attrs, &ndim, shape);
    return give_one(out, n_out, x->dtype, ndim, shape);
}

RULE(sum)
{
    UNUSED(n_in);
    return reduce_rule(in[0], &attrs->sum, out, n_out);
}

RULE(mean)
{
    UNUSED(n_in);
    TRY(want_float("x", in[0]));
    return reduce_rule(in[0], &attrs->mean, out, n_out);
}

RULE(max)
{
    UNUSED(n_in);
    for (int i = 0; i < attrs->max.dims.count; i++) {
        int d = (int)attrs->max.dims.item[i];
        WANT(in[0]->shape[d] > 0, "x %s has nothing in dim %d to take the maximum of", TEXT(in[0]), d);
    }
    return reduce_rule(in[0], &attrs->max, out, n_out);
}

RULE(max_grad)
{
    UNUSED(n_in);
    const asen_tensor *x = in[1];
    int ndim;
    int64_t shape[ASEN_MAX_DIMS];
    TRY(want_one_float(in, 3, NAMES("dy", "x", "y")));
    reduced_shape(x, &attrs->max_grad, &ndim, shape);
    TRY(want_shape("dy", in[0], "x without the dims reduced", ndim, shape));
    TRY(want_shape("y", in[2], "x without the dims reduced", ndim, shape));
    return give_like(out, n_out, x);
}

/* ---- matrices ---- */

RULE(matmul)
{
    UNUSED(n_in);
    const asen_tensor *a = in[0], *b = in[1];
    TRY(want_one_float(in, 2, NAMES("a", "b")));
    WANT(a->ndim == b->ndim && (a->ndim == 2 || a->ndim == 3),
         "a %s and b %s: two matrices or two batches of matrices are wanted", TEXT(a), TEXT(b));
    int last = a->ndim - 1;
    bool ta = attrs->matmul.trans_a, tb = attrs->matmul.trans_b;
    int64_t m = a->shape[last - !ta], ka = a->shape[last - ta], kb = b->shape[last - !tb], n = b->shape[last - tb];
    WANT(ka == kb, "a %s%s and b %s%s do not fit: %lld columns against %lld rows", TEXT(a), ta ? " transposed" : "", TEXT(b),
         tb ? " transposed" : "", (long long)ka, (long long)kb);
    if (a->ndim == 2)
        return give_one(out, n_out, a->dtype, DIMS(m, n));
    WANT(a->shape[0] == b->shape[0], "a %s and b %s are batches of different lengths", TEXT(a), TEXT(b));
    return give_one(out, n_out, a->dtype, DIMS(a->shape[0], m, n));
}

RULE(linear)
{
    UNUSED(attrs);
    const asen_tensor *x = in[0], *w = in[1], *bias = optional(in, n_in, 2);
    TRY(want_one_float(in, n_in, NAMES("x", "w", "bias")));
    TRY(want_ndim("x", x, 2, "(N, K)"));
    TRY(want_ndim("w", w, 2, "(M, K)"));
    WANT(x->shape[1] == w->shape[1], "x %s has rows of %lld, but w %s wants %lld", TEXT(x), (long long)x->shape[1], TEXT(w),
         (long long)w->shape[1]);
    TRY(want_shape("bias", bias, "one for each row of w", DIMS(w->shape[0])));
    return give_one(out, n_out, x->dtype, DIMS(x->shape[0], w->shape[0]));
}

UNARY_FLOAT(softmax)
UNARY_FLOAT(log_softmax)
