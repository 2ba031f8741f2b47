/* Elementwise ops: the rows of ops/elementwise.def, for every floating dtype, and arithmetic on integers.
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

#define FAMILY_OF(cost) ((cost) > 2 ? TRANSCENDENTAL : SIMPLE)

/* ---- the functions that expressions of the table name ---- */

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
__device__ __forceinline__ float square_root(float x) { return sqrtf(x); }
__device__ __forceinline__ double square_root(double x) { return sqrt(x); }
__device__ __forceinline__ float power(float x, float y) { return y == 2 ? x * x : powf(x, y); }
__device__ __forceinline__ double power(double x, double y) { return y == 2 ? x * x : pow(x, y); }
__device__ __forceinline__ float hyperbolic_tangent(float x) { return tanhf(x); }
__device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }

/* No overflow on either side. */
template <typename A> __device__ __forceinline__ A logistic(A x)
{
    A e = exponential(x >= 0 ? -x : x);
    return (x >= 0 ? A(1) : e) / (1 + e);
}

template <typename A> struct parameters {
    A first, second;
};

/* vy of va and vb (ARITHMETIC) or of va alone. */
template <typename A, int V, int FAMILY>
__device__ __forceinline__ void apply_row(int op, const A (&va)[V], const A (&vb)[V], A (&vy)[V], parameters<A> p)
{
#define ROW(name, family, operands, expression)                                                                        \
    case ASEN_OP_##name:                                                                                               \
        if constexpr (FAMILY == family) {                                                                              \
            for (int e = 0; e < V; e++) {                                                                              \
                operands;                                                                                              \
                vy[e] = (expression);                                                                                  \
            }                                                                                                          \
            return;                                                                                                    \
        }                                                                                                              \
        break;
#define OPERAND A x = va[e]
#define OPERANDS A a = va[e], b = vb[e]
#define UNARY(name, cost, parameters, expression) ROW(name, FAMILY_OF(cost), OPERAND, expression)
#define BINARY(name, parameters, expression) ROW(name, ARITHMETIC, OPERANDS, expression)
    switch (op) {
#include "ops/elementwise.def"
    }
#undef ROW
#undef OPERAND
#undef OPERANDS
    __builtin_unreachable(); /* a launch is of a family that has the op */
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
        vector_of<T, V> xa, xb;
        vector_load_broadcast(xa, a + offset[0], broadcast_a);
        if (FAMILY == ARITHMETIC)
            vector_load_broadcast(xb, b + offset[1], broadcast_b);
        vector_widen(va, xa);
        if (FAMILY == ARITHMETIC)
            vector_widen(vb, xb);
        apply_row<A, V, FAMILY>(op, va, vb, vy, p);
        vector_narrow(xa, vy);
        vector_store(y + i * V, xa);
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
    enum { V = vector_size<T> };
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
    bool vectors = s->size[last] >= V && (left == 0 || s->ndim == 1) && vector_aligned(y);
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

bool has_integers(int op)
{
    return op == ASEN_OP_add || op == ASEN_OP_sub || op == ASEN_OP_mul || op == ASEN_OP_div || op == ASEN_OP_neg;
}

int run_integers(space *s, const char *a, const char *b, char *y, asen_dtype dtype, int op)
{
    if (!has_integers(op))
        return ASEN_DECLINED;
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

/* ---- calls ---- */

/* The parameters of a row: doubles, and whether they are rounded to the dtype of the tensors. */
struct row_parameters {
    double first, second;
    bool rounded;
};

template <int FAMILY> int apply(const asen_call *call, row_parameters given)
{
    asen_dtype dtype = call->out[0]->dtype;
    if (element_count(call->out[0]) == 0)
        return ASEN_OK;
    space s = space_of_call(call);
    if (!asen_dtype_is_float(dtype))
        return run_integers(&s, input<char>(call, 0), FAMILY == ARITHMETIC ? input<char>(call, 1) : nullptr,
                            output<char>(call, 0), dtype, call->op);
    CUDA_FLOAT_SWITCH(dtype, T, {
        typedef accumulator<T> A;
        parameters<A> p = {(A)given.first, (A)given.second};
        if (given.rounded)
            p = {widen(narrow<T>(p.first)), widen(narrow<T>(p.second))};
        const T *b = FAMILY == ARITHMETIC ? input<T>(call, 1) : nullptr;
        return run<T, FAMILY>(&s, input<T>(call, 0), b, output<T>(call, 0), call->op, p);
    })
    return ASEN_DECLINED;
}

} // namespace

ASEN_C_BEGIN

#define NO_PARAMETERS 0, 0, false
#define EXACT(first, second) first, second, false
#define ROUNDED(first, second) first, second, true
#define ROW(name, family, ...)                                                                                         \
    int cuda_##name(const asen_call *call)                                                                             \
    {                                                                                                                  \
        [[maybe_unused]] const asen_attrs *attrs = call->attrs;                                                        \
        return apply<family>(call, {__VA_ARGS__});                                                                     \
    }
#define UNARY(name, cost, parameters, expression) ROW(name, FAMILY_OF(cost), parameters)
#define BINARY(name, parameters, expression) ROW(name, ARITHMETIC, parameters)
#include "ops/elementwise.def"
#undef ROW

ASEN_C_END
