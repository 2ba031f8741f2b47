/* Reference: elementwise ops. Inputs have any strides and broadcast against the output. */
#include <math.h>

#include "cpu/ref/ref.h"

/* A walk over out[0] whose operands are the inputs. */
static void walk_inputs(const asen_call *call, ref_walk *walk)
{
    const asen_tensor *y = call->out[0];
    int64_t stride[ASEN_MAX_DIMS];
    asen_ref_walk_start(walk, y->ndim, y->shape);
    for (int i = 0; i < call->n_in; i++) {
        asen_broadcast_strides(call->in[i], y->ndim, y->shape, stride);
        asen_ref_walk_add(walk, stride, 0);
    }
}

typedef struct parameters {
    double first, second;
} parameters;

typedef double (*unary)(double x, parameters p);
typedef double (*binary)(double a, double b, parameters p);
typedef int (*integer_binary)(int64_t a, int64_t b, int64_t *y);

static int apply_unary(const asen_call *call, unary f, parameters p)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    ref_array x = ref_array_of(call->in[0]), y = ref_array_of(call->out[0]);
    ref_walk walk;
    walk_inputs(call, &walk);
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk))
        ref_put(y, i, f(ref_get(x, walk.at[0]), p));
    return ASEN_OK;
}

static int apply_binary(const asen_call *call, binary f, parameters p)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    ref_array a = ref_array_of(call->in[0]), b = ref_array_of(call->in[1]), y = ref_array_of(call->out[0]);
    ref_walk walk;
    walk_inputs(call, &walk);
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk))
        ref_put(y, i, f(ref_get(a, walk.at[0]), ref_get(b, walk.at[1]), p));
    return ASEN_OK;
}

static int apply_integer(const asen_call *call, integer_binary f)
{
    ref_array a = ref_array_of(call->in[0]), b = ref_array_of(call->in[1]), y = ref_array_of(call->out[0]);
    ref_walk walk;
    walk_inputs(call, &walk);
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk)) {
        int64_t value;
        int status = f(asen_ref_get_int(a, walk.at[0]), asen_ref_get_int(b, walk.at[1]), &value);
        if (status != ASEN_OK)
            return status;
        asen_ref_put_int(y, i, value);
    }
    return ASEN_OK;
}

/* float32, float64; integers (int64) where inputs and output are such. */
static int apply_arithmetic(const asen_call *call, binary f, integer_binary g)
{
    if (ref_is_int(call->out[0]) && ref_is_int(call->in[0]) && ref_is_int(call->in[1]))
        return apply_integer(call, g);
    return apply_binary(call, f, (parameters){0, 0});
}

static const parameters none = {0, 0};

/* ---- arithmetic; integers wrap around, integer division rounds down as Python's // ---- */

static double add(double a, double b, parameters p) { return a + b; }
static double sub(double a, double b, parameters p) { return a - b; }
static double mul(double a, double b, parameters p) { return a * b; }
static double divide(double a, double b, parameters p) { return a / b; }
static double neg(double x, parameters p) { return -x; }

static int add_integer(int64_t a, int64_t b, int64_t *y)
{
    *y = (int64_t)((uint64_t)a + (uint64_t)b);
    return ASEN_OK;
}

static int sub_integer(int64_t a, int64_t b, int64_t *y)
{
    *y = (int64_t)((uint64_t)a - (uint64_t)b);
    return ASEN_OK;
}

static int mul_integer(int64_t a, int64_t b, int64_t *y)
{
    *y = (int64_t)((uint64_t)a * (uint64_t)b);
    return ASEN_OK;
}

static int divide_integer(int64_t a, int64_t b, int64_t *y)
{
    if (b == 0)
        return asen_fail(ASEN_ERR_VALUE, "integer division by zero");
    if (b == -1)
        return sub_integer(0, a, y);
    *y = a / b - (a % b != 0 && (a < 0) != (b < 0));
    return ASEN_OK;
}

int ref_add(const asen_call *call) { return apply_arithmetic(call, add, add_integer); }
int ref_sub(const asen_call *call) { return apply_arithmetic(call, sub, sub_integer); }
int ref_mul(const asen_call *call) { return apply_arithmetic(call, mul, mul_integer); }
int ref_div(const asen_call *call) { return apply_arithmetic(call, divide, divide_integer); }

int ref_neg(const asen_call *call)
{
    if (!ref_is_int(call->out[0]) || !ref_is_int(call->in[0]))
        return apply_unary(call, neg, none);
    ref_array x = ref_array_of(call->in[0]), y = ref_array_of(call->out[0]);
    ref_walk walk;
    walk_inputs(call, &walk);
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk))
        asen_ref_put_int(y, i, (int64_t)(0 - (uint64_t)asen_ref_get_int(x, walk.at[0])));
    return ASEN_OK;
}

/* ---- functions of one variable; NaN stays NaN ---- */

static double exponential(double x, parameters p) { return exp(x); }
static double logarithm(double x, parameters p) { return log(x); }
static double root(double x, parameters p) { return sqrt(x); }
static double power(double x, parameters p) { return pow(x, p.first); }
static double clamp(double x, parameters p) { return x < p.first ? p.first : x > p.second ? p.second : x; }
static double clamp_grad(double dy, double x, parameters p) { return x >= p.first && x <= p.second ? dy : 0; }
static double relu(double x, parameters p) { return x <= 0 ? 0 : x; }
static double relu_grad(double dy, double y, parameters p) { return y > 0 ? dy : 0; }
static double hyperbolic_tangent(double x, parameters p) { return tanh(x); }

static double sigmoid(double x, parameters p)
{
    return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x)); /* no overflow on either side */
}

/* The bounds as the tensor's dtype holds them: a clamped value lies inside its own bounds. */
static parameters clamp_range(asen_dtype dtype, double min, double max)
{
    return (parameters){ref_round(dtype, min), ref_round(dtype, max)};
}

int ref_exp(const asen_call *call) { return apply_unary(call, exponential, none); }
int ref_log(const asen_call *call) { return apply_unary(call, logarithm, none); }
int ref_sqrt(const asen_call *call) { return apply_unary(call, root, none); }
int ref_pow(const asen_call *call) { return apply_unary(call, power, (parameters){call->attrs->pow.exponent, 0}); }
int ref_relu(const asen_call *call) { return apply_unary(call, relu, none); }
int ref_relu_grad(const asen_call *call) { return apply_binary(call, relu_grad, none); }
int ref_tanh(const asen_call *call) { return apply_unary(call, hyperbolic_tangent, none); }
int ref_sigmoid(const asen_call *call) { return apply_unary(call, sigmoid, none); }

int ref_clamp(const asen_call *call)
{
    return apply_unary(call, clamp, clamp_range(call->in[0]->dtype, call->attrs->clamp.min, call->attrs->clamp.max));
}

int ref_clamp_grad(const asen_call *call)
{
    return apply_binary(call, clamp_grad,
                        clamp_range(call->in[1]->dtype, call->attrs->clamp_grad.min, call->attrs->clamp_grad.max));
}

/* ---- copies ---- */

/* Between any two dtypes. Integers move as integers, everything else through double. */
int ref_copy(const asen_call *call)
{
    ref_array x = ref_array_of(call->in[0]), y = ref_array_of(call->out[0]);
    bool integer = ref_is_int(call->in[0]);
    size_t size = asen_dtype_size(y.dtype);
    ref_walk walk;
    walk_inputs(call, &walk);
    for (int64_t i = 0; i < walk.count; i++, ref_walk_next(&walk)) {
        if (x.dtype == y.dtype)
            memcpy((char *)y.data + (size_t)i * size, (const char *)x.data + walk.at[0] * (int64_t)size, size);
        else if (integer)
            asen_ref_put_int(y, i, asen_ref_get_int(x, walk.at[0]));
        else
            ref_put(y, i, ref_get(x, walk.at[0]));
    }
    return ASEN_OK;
}
