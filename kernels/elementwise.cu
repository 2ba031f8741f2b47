/* Elementwise rows: arithmetic with broadcasting, functions of one variable, and their gradients.
 *
 * All are bound by memory: (inputs + 1) * elements * element size, broadcast inputs counted once. One
 * kernel for each family of ops, dtype and vector width walks over the output in memory order; which
 * op it is, is a switch outside the loop over a vector's elements, the same branch in all threads: it
 * costs nothing beside the loads, and keeps the build small. Cheap and transcendental functions are
 * families of their own, so that the former do not pay the latter's registers.
 *
 * Per-channel broadcast is along the innermost dim (NHWC) and vectorised; a scalar operand is read
 * through its pointer on the device. */
#include "index.cuh"

namespace {

enum { BLOCK = 256 };
enum family { ARITHMETIC, SIMPLE, TRANSCENDENTAL };

/* ---- the functions ---- */

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
__device__ __forceinline__ float root(float x) { return sqrtf(x); }
__device__ __forceinline__ double root(double x) { return sqrt(x); }
__device__ __forceinline__ float power(float x, float y) { return powf(x, y); }
__device__ __forceinline__ double power(double x, double y) { return pow(x, y); }
__device__ __forceinline__ float hyperbolic_tangent(float x) { return tanhf(x); }
__device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }

/* No overflow on either side. */
template <typename A> __device__ __forceinline__ A logistic(A x)
{
    A e = exponential(x >= 0 ? -x : x);
    return (x >= 0 ? A(1) : e) / (1 + e);
}

/* The bounds of clamp, the exponent of pow. */
template <typename A> struct parameters {
    A min, max;
};

#define EACH(expression)                                                                                               \
    for (int e = 0; e < V; e++)                                                                                        \
        y[e] = (expression);                                                                                           \
    break

template <typename A, int V>
__device__ __forceinline__ void apply_arithmetic(int op, const A (&a)[V], const A (&b)[V], A (&y)[V], parameters<A> p)
{
    switch (op) {
    case ASEN_OP_add: EACH(a[e] + b[e]);
    case ASEN_OP_sub: EACH(a[e] - b[e]);
    case ASEN_OP_mul: EACH(a[e] * b[e]);
    case ASEN_OP_div: EACH(a[e] / b[e]);
    case ASEN_OP_clamp_grad: EACH(b[e] >= p.min && b[e] <= p.max ? a[e] : A(0));
    default: EACH(b[e] > 0 ? a[e] : A(0)); /* relu_grad */
    }
}

template <typename A, int V>
__device__ __forceinline__ void apply_simple(int op, const A (&x)[V], A (&y)[V], parameters<A> p)
{
    switch (op) {
    case ASEN_OP_neg: EACH(-x[e]);
    case ASEN_OP_sqrt: EACH(root(x[e]));
    case ASEN_OP_clamp: EACH(x[e] < p.min ? p.min : x[e] > p.max ? p.max : x[e]);
    default: EACH(x[e] <= 0 ? A(0) : x[e]); /* relu; NaN stays NaN */
    }
}

template <typename A, int V>
__device__ __forceinline__ void apply_transcendental(int op, const A (&x)[V], A (&y)[V], parameters<A> p)
{
    switch (op) {
    case ASEN_OP_exp: EACH(exponential(x[e]));
    case ASEN_OP_log: EACH(logarithm(x[e]));
    case ASEN_OP_tanh: EACH(hyperbolic_tangent(x[e]));
    case ASEN_OP_sigmoid: EACH(logistic(x[e]));
    default: EACH(p.min == 2 ? x[e] * x[e] : power(x[e], p.min)); /* pow */
    }
}

/* ---- floats ---- */

/* y: `count` vectors of V elements, dense; a and b (ARITHMETIC alone) at the walk's offsets, a vector each or,
 * where the flag says so, one element for all V. */
template <typename T, int V, int FAMILY>
__global__ void __launch_bounds__(BLOCK)
elementwise_kernel(const T *a, const T *b, T *y, int64_t count, walk<2> at, bool broadcast_a, bool broadcast_b, int op,
                   parameters<accumulator<T>> p)
{
    typedef accumulator<T> A;
    int64_t step = (int64_t)gridDim.x * BLOCK;
#pragma unroll 1
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < count; i += step) {
        A va[V], vb[V], vy[V];
        int64_t offset[2];
        at.at(i, offset);
        vector_of<T, V> xa = load_vector<T, V>(a + offset[0], broadcast_a), xb;
        if (FAMILY == ARITHMETIC)
            xb = load_vector<T, V>(b + offset[1], broadcast_b);
        widen_vector<T, V>(xa, va);
        if (FAMILY == ARITHMETIC) {
            widen_vector<T, V>(xb, vb);
            apply_arithmetic<A, V>(op, va, vb, vy, p);
        } else if (FAMILY == SIMPLE) {
            apply_simple<A, V>(op, va, vy, p);
        } else {
            apply_transcendental<A, V>(op, va, vy, p);
        }
        store_vector<T, V>(y + i * V, vy);
    }
}

template <typename T, int V, int FAMILY>
int launch(const space *s, const T *a, const T *b, T *y, int op, parameters<accumulator<T>> p)
{
    int64_t count = space_count(s) / V;
    int last = s->ndim - 1;
    return ASEN_LAUNCH((elementwise_kernel<T, V, FAMILY>), grid_for(count, BLOCK), BLOCK, 0, a, b, y, count,
                       walk_over<2>(s, V), s->stride[0][last] == 0, s->stride[1][last] == 0, op, p);
}

/* Whole vectors first; what one dim leaves over goes element by element. */
template <typename T, int FAMILY>
int run(space *s, const T *a, const T *b, T *y, int op, parameters<accumulator<T>> p)
{
    enum { V = 16 / sizeof(T) };
    const T *data[2] = {a, b};
    if (space_too_large(s)) {
        space rest;
        int64_t at[SPACE_OPERANDS];
        space_halve(s, &rest, at);
        CUDA_OK((run<T, FAMILY>(&rest, a + at[0], FAMILY == ARITHMETIC ? b + at[1] : b, y + space_count(s), op, p)));
        return run<T, FAMILY>(s, a, b, y, op, p);
    }
    int last = s->ndim - 1;
    int64_t left = s->size[last] % V;
    bool vectors = s->size[last] >= V && (left == 0 || s->ndim == 1) && (uintptr_t)y % 16 == 0;
    for (int k = 0; k < s->operands; k++)
        vectors = vectors && (s->stride[k][last] == 0 || space_aligned(s, k, data[k], V, sizeof(T)));
    if (!vectors)
        return launch<T, 1, FAMILY>(s, a, b, y, op, p);
    int64_t whole = s->size[last] - left;
    s->size[last] = whole;
    CUDA_OK((launch<T, V, FAMILY>(s, a, b, y, op, p)));
    if (left == 0)
        return ASEN_OK;
    s->size[last] = left;
    return launch<T, 1, FAMILY>(s, a + whole * s->stride[0][0], FAMILY == ARITHMETIC ? b + whole * s->stride[1][0] : b,
                                y + whole, op, p);
}

space space_of_call(const asen_call *call)
{
    const asen_tensor *y = call->out[0];
    space s = space_of(y->ndim, y->shape);
    for (int i = 0; i < call->n_in; i++)
        space_add_tensor(&s, call->in[i]);
    space_collapse(&s);
    return s;
}

/* Bounds are rounded to the dtype, so that a clamped value lies inside its own; pow's exponent is not. */
template <int FAMILY> int apply(const asen_call *call, double min, double max)
{
    if (element_count(call->out[0]) == 0)
        return ASEN_OK;
    space s = space_of_call(call);
    CUDA_FLOAT_SWITCH(call->out[0]->dtype, T, {
        typedef accumulator<T> A;
        parameters<A> p = {(A)min, (A)max};
        if (FAMILY != TRANSCENDENTAL)
            p = {widen(narrow<T>(p.min)), widen(narrow<T>(p.max))};
        const T *b = FAMILY == ARITHMETIC ? input<T>(call, 1) : nullptr;
        return run<T, FAMILY>(&s, input<T>(call, 0), b, output<T>(call, 0), call->op, p);
    })
    return ASEN_DECLINED;
}

/* ---- integers: wrapping around in 64 bits; division rounds down, as Python's // ---- */

__device__ __forceinline__ int64_t divide_integer(int64_t a, int64_t b, cuda_fault *fault)
{
    if (b == 0) {
        cuda_fault_set(fault, ASEN_OP_div, 0, 0);
        return 0;
    }
    if (b == -1)
        return (int64_t)(0 - (uint64_t)a);
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

/* a, b (neg: a alone) at the walk's offsets; y (count), dense. */
__global__ void __launch_bounds__(BLOCK)
integer_kernel(const void *a, const void *b, void *y, int64_t count, walk<2> at, int dtype, int op, cuda_fault *fault)
{
    int64_t step = (int64_t)gridDim.x * BLOCK;
#pragma unroll 1
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < count; i += step) {
        int64_t offset[2];
        at.at(i, offset);
        uint64_t va = (uint64_t)load_integer(a, dtype, offset[0]);
        uint64_t vb = op == ASEN_OP_neg ? 0 : (uint64_t)load_integer(b, dtype, offset[1]);
        int64_t value;
        switch (op) {
        case ASEN_OP_add: value = (int64_t)(va + vb); break;
        case ASEN_OP_sub: value = (int64_t)(va - vb); break;
        case ASEN_OP_mul: value = (int64_t)(va * vb); break;
        case ASEN_OP_div: value = divide_integer((int64_t)va, (int64_t)vb, fault); break;
        default: value = (int64_t)(0 - va);
        }
        store_integer(y, dtype, i, value);
    }
}

int run_integers(space *s, const char *a, const char *b, char *y, asen_dtype dtype, int op)
{
    if (space_too_large(s)) {
        space rest;
        int64_t at[SPACE_OPERANDS] = {0}, bytes = dtype == ASEN_I64 ? 8 : dtype == ASEN_I32 ? 4 : 1;
        space_halve(s, &rest, at);
        CUDA_OK(run_integers(&rest, a + at[0] * bytes, b == nullptr ? b : b + at[1] * bytes, y + space_count(s) * bytes,
                             dtype, op));
        return run_integers(s, a, b, y, dtype, op);
    }
    int64_t count = space_count(s);
    return ASEN_LAUNCH(integer_kernel, grid_for(count, BLOCK), BLOCK, 0, a, b, y, count, walk_over<2>(s, 1), (int)dtype, op,
                       cuda.fault);
}

template <int FAMILY> int apply_any(const asen_call *call)
{
    asen_dtype dtype = call->out[0]->dtype;
    if (asen_dtype_is_float(dtype))
        return apply<FAMILY>(call, 0, 0);
    if (element_count(call->out[0]) == 0)
        return ASEN_OK;
    space s = space_of_call(call);
    const char *b = FAMILY == ARITHMETIC ? input<char>(call, 1) : nullptr;
    return run_integers(&s, input<char>(call, 0), b, output<char>(call, 0), dtype, call->op);
}

} // namespace

ASEN_C_BEGIN

int cuda_add(const asen_call *call) { return apply_any<ARITHMETIC>(call); }
int cuda_sub(const asen_call *call) { return apply_any<ARITHMETIC>(call); }
int cuda_mul(const asen_call *call) { return apply_any<ARITHMETIC>(call); }
int cuda_div(const asen_call *call) { return apply_any<ARITHMETIC>(call); }
int cuda_neg(const asen_call *call) { return apply_any<SIMPLE>(call); }
int cuda_exp(const asen_call *call) { return apply<TRANSCENDENTAL>(call, 0, 0); }
int cuda_log(const asen_call *call) { return apply<TRANSCENDENTAL>(call, 0, 0); }
int cuda_sqrt(const asen_call *call) { return apply<SIMPLE>(call, 0, 0); }
int cuda_relu(const asen_call *call) { return apply<SIMPLE>(call, 0, 0); }
int cuda_relu_grad(const asen_call *call) { return apply<ARITHMETIC>(call, 0, 0); }
int cuda_tanh(const asen_call *call) { return apply<TRANSCENDENTAL>(call, 0, 0); }
int cuda_sigmoid(const asen_call *call) { return apply<TRANSCENDENTAL>(call, 0, 0); }

int cuda_pow(const asen_call *call) { return apply<TRANSCENDENTAL>(call, call->attrs->pow.exponent, 0); }

int cuda_clamp(const asen_call *call)
{
    return apply<SIMPLE>(call, call->attrs->clamp.min, call->attrs->clamp.max);
}

int cuda_clamp_grad(const asen_call *call)
{
    return apply<ARITHMETIC>(call, call->attrs->clamp_grad.min, call->attrs->clamp_grad.max);
}

ASEN_C_END
