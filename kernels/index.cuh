/* Where elements lie: walks over strided tensors; elements of integer dtypes.
 *
 * A `space` (host) is what a kernel iterates over: the dims of a dense tensor in memory order,
 * outermost first, with the strides of up to three operands. Collapsing it drops dims of size 1 and
 * joins neighbours that lie one behind the other in every operand, so most calls end with one dim or two.
 * A `walk` is what the kernel gets: position -> offset of each operand, with division by
 * multiplication. Positions are 64-bit in one dim and below 2^31 in several: space_halve cuts larger ones. */
#ifndef ASEN_INDEX_CUH
#define ASEN_INDEX_CUH

#include "vector.cuh"

enum { SPACE_OPERANDS = 3 };

static inline int64_t element_count(const asen_tensor *t)
{
    int64_t count = 1;
    for (int d = 0; d < t->ndim; d++)
        count *= t->shape[d];
    return count;
}

/* The d-th dim of `ndim` in memory order: four dims lie N, H, W, C. */
static inline int memory_dim(int ndim, int d)
{
    return ndim == 4 ? (d == 0 ? 0 : d == 3 ? 1 : d + 1) : d;
}

static inline void dense_strides(int ndim, const int64_t *shape, int64_t *stride)
{
    int64_t step = 1;
    for (int d = ndim - 1; d >= 0; d--) {
        int dim = memory_dim(ndim, d);
        stride[dim] = step;
        step *= shape[dim];
    }
}

struct space {
    int ndim, operands;
    int64_t size[ASEN_MAX_DIMS];
    int64_t stride[SPACE_OPERANDS][ASEN_MAX_DIMS];
};

static inline space space_of(int ndim, const int64_t *shape)
{
    space s = {};
    s.ndim = ndim;
    for (int d = 0; d < ndim; d++)
        s.size[d] = shape[memory_dim(ndim, d)];
    return s;
}

/* An operand, with a stride for each dim of the shape. */
static inline void space_add(space *s, const int64_t *stride)
{
    for (int d = 0; d < s->ndim; d++)
        s->stride[s->operands][d] = stride[memory_dim(s->ndim, d)];
    s->operands++;
}

/* A dense operand of the space's own shape. */
static inline void space_add_dense(space *s)
{
    int64_t step = 1;
    for (int d = s->ndim - 1; d >= 0; d--) {
        s->stride[s->operands][d] = step;
        step *= s->size[d];
    }
    s->operands++;
}

/* A tensor that broadcasts to the shape (ndim dims, trailing ones aligned). */
static inline void space_add_tensor(space *s, const asen_tensor *t)
{
    int64_t stride[ASEN_MAX_DIMS];
    for (int d = 0; d < s->ndim; d++) {
        int own = d - (s->ndim - t->ndim);
        stride[d] = own < 0 || t->shape[own] == 1 ? 0 : t->stride[own];
    }
    space_add(s, stride);
}

static inline int64_t space_count(const space *s)
{
    int64_t count = 1;
    for (int d = 0; d < s->ndim; d++)
        count *= s->size[d];
    return count;
}

/* Whether dim d + 1 continues dim d in every operand. */
static inline bool space_joins(const space *s, int d)
{
    for (int k = 0; k < s->operands; k++)
        if (s->stride[k][d] != s->stride[k][d + 1] * s->size[d + 1])
            return false;
    return true;
}

static inline void space_drop(space *s, int dim)
{
    s->ndim--;
    for (int d = dim; d < s->ndim; d++) {
        s->size[d] = s->size[d + 1];
        for (int k = 0; k < s->operands; k++)
            s->stride[k][d] = s->stride[k][d + 1];
    }
}

/* At least one dim is left. */
static inline void space_collapse(space *s)
{
    if (s->ndim == 0) {
        s->ndim = 1;
        s->size[0] = 1;
    }
    for (int d = s->ndim - 1; d >= 0 && s->ndim > 1; d--)
        if (s->size[d] == 1)
            space_drop(s, d);
    if (s->ndim == 1 && s->size[0] == 1)
        for (int k = 0; k < s->operands; k++)
            s->stride[k][0] = 1; /* one element is contiguous */
    for (int d = s->ndim - 2; d >= 0; d--)
        if (space_joins(s, d)) {
            s->size[d + 1] *= s->size[d];
            space_drop(s, d);
        }
}

static inline bool space_is_contiguous(const space *s)
{
    for (int k = 0; k < s->operands; k++)
        if (s->stride[k][0] != 1)
            return false;
    return s->ndim == 1;
}

/* Whether operand k can be read `n` elements of `bytes` each at a time along the innermost dim (whose size is
 * a multiple of n): contiguous there and aligned. */
static inline bool space_aligned(const space *s, int k, const void *data, int n, size_t bytes)
{
    if ((uintptr_t)data % ((size_t)n * bytes) != 0 || s->stride[k][s->ndim - 1] != 1)
        return false;
    for (int d = 0; d < s->ndim - 1; d++)
        if (s->stride[k][d] % n != 0)
            return false;
    return true;
}

static inline bool space_too_large(const space *s) { return s->ndim > 1 && space_count(s) > INT32_MAX; }

/* Cuts the outermost dim in two: *s becomes the first part, *rest the second, which begins at[k] elements
 * further in operand k. */
static inline void space_halve(space *s, space *rest, int64_t *at)
{
    int64_t half = s->size[0] / 2;
    *rest = *s;
    rest->size[0] -= half;
    s->size[0] = half;
    for (int k = 0; k < s->operands; k++)
        at[k] = half * s->stride[k][0];
    space_collapse(s); /* a dim of which one is left can be cut no further */
    space_collapse(rest);
}

/* n / divisor for n < 2^31: Granlund and Montgomery 1994, "Division by invariant integers using multiplication". */
struct fast_divide {
    uint32_t divisor, multiplier, shift;
    __host__ __device__ __forceinline__ uint32_t quotient(uint32_t n) const
    {
        return ((uint32_t)((uint64_t)n * multiplier >> 32) + n) >> shift;
    }
};

static inline fast_divide fast_divide_by(uint32_t divisor)
{
    fast_divide f = {divisor, 0, 0};
    while (((uint64_t)1 << f.shift) < divisor)
        f.shift++;
    f.multiplier = (uint32_t)(((((uint64_t)1 << f.shift) - divisor) << 32) / (divisor ? divisor : 1) + 1);
    return f;
}

template <int N> struct walk {
    int ndim;
    fast_divide size[ASEN_MAX_DIMS]; /* the outermost is not asked */
    int64_t stride[N][ASEN_MAX_DIMS];

    __device__ __forceinline__ void at(int64_t i, int64_t (&offset)[N]) const
    {
        uint32_t rest = (uint32_t)i;
        for (int k = 0; k < N; k++)
            offset[k] = 0;
#pragma unroll 1 /* few turns if any; unrolled, they are most of a kernel's code and of the build's time */
        for (int d = ndim - 1; d > 0; d--) {
            uint32_t q = size[d].quotient(rest), r = rest - q * size[d].divisor;
            for (int k = 0; k < N; k++)
                offset[k] += r * stride[k][d];
            rest = q;
        }
        int64_t outermost = ndim > 1 ? (int64_t)rest : i;
        for (int k = 0; k < N; k++)
            offset[k] += outermost * stride[k][0];
    }
};

/* A walk in steps of `n` elements of the innermost dim; an operand that is broadcast there has stride 0. */
template <int N> static inline walk<N> walk_over(const space *s, int n)
{
    walk<N> w = {};
    w.ndim = s->ndim;
    for (int d = 0; d < s->ndim; d++) {
        int64_t size = d == s->ndim - 1 ? s->size[d] / n : s->size[d];
        w.size[d] = fast_divide_by(size > INT32_MAX ? 1 : (uint32_t)size);
        for (int k = 0; k < N && k < s->operands; k++)
            w.stride[k][d] = d == s->ndim - 1 ? s->stride[k][d] * n : s->stride[k][d];
    }
    return w;
}

/* Elements of bool, uint8, int32 and int64 as int64; storing wraps around, bool is x != 0. */
__device__ __forceinline__ int64_t load_integer(const void *p, int dtype, int64_t i)
{
    switch (dtype) {
    case ASEN_I32: return static_cast<const int32_t *>(p)[i];
    case ASEN_I64: return static_cast<const int64_t *>(p)[i];
    default: return static_cast<const uint8_t *>(p)[i];
    }
}

__device__ __forceinline__ void store_integer(void *p, int dtype, int64_t i, int64_t value)
{
    switch (dtype) {
    case ASEN_BOOL: static_cast<uint8_t *>(p)[i] = value != 0; break;
    case ASEN_U8: static_cast<uint8_t *>(p)[i] = (uint8_t)value; break;
    case ASEN_I32: static_cast<int32_t *>(p)[i] = (int32_t)(uint32_t)value; break;
    default: static_cast<int64_t *>(p)[i] = value;
    }
}

#endif
