/* Shape rules (shape.h): elementwise ops. */
#include "ops/shape/rule.h"

/* ---- elementwise ---- */

/* dy and what the tape kept, x or y */
static int unary_grad_rule(asen_tensor *const *in, const char *saved, asen_spec *out, int *n_out)
{
    TRY(want_one_float(in, 2, NAMES("dy", saved)));
    TRY(want_like("dy", in[0], saved, in[1]));
    return give_like(out, n_out, in[1]);
}

#define BROADCAST(name)                                                                                                \
    RULE(name) { UNUSED(n_in), UNUSED(attrs); return broadcast_rule(in, in[0]->dtype, out, n_out); }
#define UNARY_GRAD(name, saved)                                                                                        \
    RULE(name) { UNUSED(n_in), UNUSED(attrs); return unary_grad_rule(in, saved, out, n_out); }
#define UNARY_ANY(name)                                                                                                \
    RULE(name) { UNUSED(n_in), UNUSED(attrs); return give_like(out, n_out, in[0]); }

BROADCAST(add)
BROADCAST(mul)
BROADCAST(div)
UNARY_FLOAT(exp)
UNARY_FLOAT(log)
UNARY_FLOAT(sqrt)
UNARY_FLOAT(pow)
UNARY_ANY(relu)
UNARY_FLOAT(tanh)
UNARY_FLOAT(sigmoid)
UNARY_GRAD(relu_grad, "y")
UNARY_GRAD(clamp_grad, "x")

RULE(sub)
{
    UNUSED(n_in), UNUSED(attrs);
    TRY(want_no_bool("a", in[0], "a ^ b"));
    return broadcast_rule(in, in[0]->dtype, out, n_out);
}

RULE(neg)
{
    UNUSED(n_in), UNUSED(attrs);
    TRY(want_no_bool("x", in[0], "~x"));
    return give_like(out, n_out, in[0]);
}

RULE(clamp)
{
    UNUSED(n_in);
    WANT(attrs->clamp.min <= attrs->clamp.max, "min %g is above max %g", attrs->clamp.min, attrs->clamp.max);
    return give_like(out, n_out, in[0]);
}

RULE(copy)
{
    UNUSED(n_in);
    WANT(attrs->copy.dtype >= 0 && attrs->copy.dtype < ASEN_DTYPE_COUNT, "there is no dtype with number %lld", (long long)attrs->copy.dtype);
    return give_one(out, n_out, (asen_dtype)attrs->copy.dtype, in[0]->ndim, in[0]->shape);
}
