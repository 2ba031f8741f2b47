/* Shape rules (shape.h): losses, similarities and attention. */
#include "ops/shape/rule.h"

/* ---- losses and similarities ---- */

/* target (N) for rows (N, K) */
static int want_targets(const char *name, const asen_tensor *rows, const asen_tensor *target)
{
    TRY(want_float(name, rows));
    TRY(want_ndim(name, rows, 2, "(N, K)"));
    TRY(want_int64("target", target));
    return want_shape("target", target, "one for each row", DIMS(rows->shape[0]));
}

RULE(cross_entropy)
{
    UNUSED(n_in), UNUSED(attrs);
    const asen_tensor *logits = in[0];
    TRY(want_targets("logits", logits, in[1]));
    WANT(logits->shape[0] > 0, "logits %s: an empty batch has no mean", TEXT(logits));
    *n_out = 2;
    TRY(give(&out[0], logits->dtype, 0, NULL));
    return give(&out[1], logits->dtype, 2, logits->shape);
}

RULE(cross_entropy_grad)
{
    UNUSED(n_in), UNUSED(attrs);
    TRY(want_one_float(in, 2, NAMES("dy", "softmax")));
    TRY(want_ndim("dy", in[0], 0, "a scalar"));
    TRY(want_targets("softmax", in[1], in[2]));
    return give_like(out, n_out, in[1]);
}

RULE(cosine_similarity)
{
    UNUSED(n_in);
    const asen_tensor *a = in[0];
    TRY(want_one_float(in, 2, NAMES("a", "b")));
    TRY(want_ndim("a", a, 2, "(N, D)"));
    TRY(want_like("a", a, "b", in[1]));
    WANT(attrs->cosine_similarity.eps >= 0, "eps %g: at least 0 is wanted", attrs->cosine_similarity.eps);
    *n_out = 3;
    for (int i = 0; i < 3; i++)
        TRY(give(&out[i], a->dtype, DIMS(a->shape[0])));
    return ASEN_OK;
}

RULE(cosine_similarity_grad)
{
    UNUSED(n_in), UNUSED(attrs);
    static const char *const name[] = {"dy", "a", "b", "y", "norm_a", "norm_b"};
    const asen_tensor *a = in[1];
    TRY(want_one_float(in, 6, name));
    TRY(want_ndim("a", a, 2, "(N, D)"));
    TRY(want_like("a", a, "b", in[2]));
    for (int i = 0; i < 6; i++)
        if (i != 1 && i != 2)
            TRY(want_shape(name[i], in[i], "one for each row of a", DIMS(a->shape[0])));
    *n_out = 2;
    TRY(give(&out[0], a->dtype, 2, a->shape));
    return give(&out[1], a->dtype, 2, a->shape);
}

RULE(normalize)
{
    UNUSED(n_in);
    const asen_tensor *x = in[0];
    TRY(want_float("x", x));
    TRY(want_ndim("x", x, 2, "(N, D)"));
    WANT(attrs->normalize.eps >= 0, "eps %g: at least 0 is wanted", attrs->normalize.eps);
    *n_out = 2;
    TRY(give(&out[0], x->dtype, 2, x->shape));
    return give(&out[1], x->dtype, DIMS(x->shape[0]));
}

RULE(normalize_grad)
{
    UNUSED(n_in), UNUSED(attrs);
    TRY(want_one_float(in, 3, NAMES("dy", "y", "norm")));
    TRY(want_ndim("y", in[1], 2, "(N, D)"));
    TRY(want_like("dy", in[0], "y", in[1]));
    TRY(want_shape("norm", in[2], "one for each row of y", DIMS(in[1]->shape[0])));
    return give_like(out, n_out, in[1]);
}

/* x (B, C, H, W) with H * W > 0 */
static int want_attended(const asen_tensor *x)
{
    TRY(want_ndim("x", x, 4, "(B, C, H, W)"));
    WANT(x->shape[2] > 0 && x->shape[3] > 0, "x %s has no positions to attend to", TEXT(x));
    return ASEN_OK;
}

RULE(spatial_attention)
{
    UNUSED(n_in), UNUSED(attrs);
    const asen_tensor *x = in[0], *z = in[1], *q = in[2];
    TRY(want_one_float(in, 3, NAMES("x", "z", "q")));
    TRY(want_attended(x));
    TRY(want_ndim("q", q, 2, "(B, Cc)"));
    TRY(want_shape("q", q, "one query for each image of x", DIMS(x->shape[0], q->shape[1])));
    TRY(want_shape("z", z, "(B, Cc, H, W), with x's images and positions and q's channels",
                   DIMS(x->shape[0], q->shape[1], x->shape[2], x->shape[3])));
    WANT(q->shape[1] > 0, "q %s has no channels", TEXT(q));
    *n_out = 3;
    TRY(give(&out[0], x->dtype, DIMS(x->shape[0], x->shape[1])));
    TRY(give(&out[1], x->dtype, DIMS(x->shape[0], x->shape[2], x->shape[3])));
    return give(&out[2], x->dtype, 4, z->shape);
}

RULE(spatial_attention_grad)
{
    UNUSED(n_in), UNUSED(attrs);
    const asen_tensor *dv = in[0], *dm = in[1], *x = in[2], *q = in[3], *m = in[4], *k = in[5];
    TRY(want_one_float(in, 6, NAMES("dv", "dm", "x", "q", "m", "k")));
    TRY(want_attended(x));
    TRY(want_ndim("q", q, 2, "(B, Cc)"));
    int64_t batch = x->shape[0], channels = q->shape[1], height = x->shape[2], width = x->shape[3];
    TRY(want_shape("q", q, "one query for each image of x", DIMS(batch, channels)));
    WANT(channels > 0, "q %s has no channels", TEXT(q));
    TRY(want_shape("dv", dv, "(B, C) of x", DIMS(batch, x->shape[1])));
    TRY(want_shape("dm", dm, "(B, H, W) of x", DIMS(batch, height, width)));
    TRY(want_shape("m", m, "(B, H, W) of x", DIMS(batch, height, width)));
    TRY(want_shape("k", k, "(B, Cc, H, W), with x's images and positions and q's channels", DIMS(batch, channels, height, width)));
    *n_out = 3;
    TRY(give(&out[0], x->dtype, 4, x->shape));
    TRY(give(&out[1], x->dtype, 4, k->shape));
    return give(&out[2], x->dtype, 2, q->shape);
}

RULE(arc_margin)
{
    UNUSED(n_in), UNUSED(attrs);
    TRY(want_targets("cosine", in[0], in[1]));
    return give_like(out, n_out, in[0]);
}

RULE(arc_margin_grad)
{
    UNUSED(n_in), UNUSED(attrs);
    TRY(want_one_float(in, 2, NAMES("dy", "cosine")));
    TRY(want_targets("cosine", in[1], in[2]));
    TRY(want_like("dy", in[0], "cosine", in[1]));
    return give_like(out, n_out, in[1]);
}
