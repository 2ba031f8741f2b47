/* What the reductions share: the description of one, its arguments on the device, a thread's part of it.
 *
 * After collapsing, what is kept and what is reduced are walks of one dim or two. Rows (reduce_rows.cu): the innermost
 * dim of x is reduced, threads side by side share an output. Columns (reduce_columns.cu): it is kept, threads side by
 * side have neighbouring outputs. Both ways their loads are coalesced, in vectors where alignment allows. Slices
 * (reduce.cu): where few outputs leave the GPU idle, blockIdx.y has a part of the reduced positions each, and
 * a second launch reduces the partial results.
 *
 * Order: a thread combines four vectors pairwise, then with its own; the threads of an output form a tree in shared
 * memory; slices likewise. Fixed by shape and GPU, so the same call gives the same bits. */
#ifndef ASEN_REDUCE_CUH
#define ASEN_REDUCE_CUH

#include "block.cuh"
#include "index.cuh"

enum { REDUCE_BLOCK = 256, REDUCE_UNROLL = 4 };
enum reduce_operation { REDUCE_SUM, REDUCE_MAX, REDUCE_EQUAL }; /* EQUAL: how many elements are the output's target (is_max) */

/* What is kept and what is reduced, in the memory order of x. */
struct reduction {
    space kept;    /* operand 0: x, 1: y */
    space reduced; /* operand 0: x */
    reduce_operation op;
    asen_dtype to;  /* of y */
    double divisor; /* of a sum; 1, or for a mean the count */
};

/* How the threads are shared out. */
struct reduce_plan {
    int width;               /* elements of a vector; 1: no vectors */
    int64_t outputs, length; /* positions of the two walks, in vectors along the innermost dim */
    int lanes;               /* threads that share an output: a power of two */
    int64_t tiles;           /* of BLOCK / lanes outputs */
    int64_t slices;          /* of the reduced positions; y is then scratch, (slices, outputs) */
};

/* reduce.cu: the reduction of x over the dims of attrs; a mean divides. */
reduction reduce_describe(const asen_tensor *x, const asen_attrs_reduce *attrs, reduce_operation op, asen_dtype to, bool mean);
/* reduce_rows.cu, reduce_columns.cu: plans, with one slice, for x of elements of `bytes`; whether a vector of `width`
 * elements can be used is told by the caller (1: no). segment: the bytes that a row of a tile has at least. */
reduce_plan reduce_rows_plan(const reduction *n, int width);
reduce_plan reduce_columns_plan(const reduction *n, int width, int bytes, int segment);
/* x of dtype `from`; target (EQUAL alone) lies as y does. */
int reduce_rows(const reduction *n, const reduce_plan *p, asen_dtype from, const void *x, const void *target, void *y);
int reduce_columns(const reduction *n, const reduce_plan *p, asen_dtype from, const void *x, const void *target, void *y);
/* reduce_integers.cu */
int reduce_integers(const asen_call *call, const asen_attrs_reduce *attrs, bool max);

static inline int reduce_power_of_two(int64_t at_least)
{
    int power = 1;
    while (power < at_least && power < REDUCE_BLOCK)
        power *= 2;
    return power;
}

static inline int64_t reduce_tiles(int64_t outputs, int lanes) { return ceil_div(outputs, REDUCE_BLOCK / lanes); }

/* ---- on the device ---- */

template <typename A> struct reduce_arguments {
    walk<2> kept;
    walk<1> reduced;
    int64_t outputs, length; /* as in the plan */
    int64_t slice;           /* reduced positions of one blockIdx.y */
    int64_t y_step;          /* between the outputs of one vector of kept elements */
    int lanes;
    bool partial; /* y is scratch, (slices, outputs) */
    int op, to;
    A divisor;
};

template <typename A>
static inline reduce_arguments<A> reduce_arguments_of(const reduction *n, const reduce_plan *p, int kept_width, int reduced_width)
{
    reduce_arguments<A> r = {};
    r.kept = walk_over<2>(&n->kept, kept_width);
    r.reduced = walk_over<1>(&n->reduced, reduced_width);
    r.outputs = p->outputs;
    r.length = p->length;
    r.slice = ceil_div(p->length, p->slices);
    r.y_step = n->kept.stride[1][n->kept.ndim - 1];
    r.lanes = p->lanes;
    r.partial = p->slices > 1;
    r.op = n->op;
    r.to = n->to;
    r.divisor = (A)n->divisor;
    return r;
}

static inline dim3 reduce_grid(const reduce_plan *p) { return dim3(grid_for(p->tiles, 1), (unsigned)p->slices); }

/* Whether x is the maximum y: NaN is the maximum of what holds one. */
template <typename A> __device__ __forceinline__ bool is_max(A x, A y) { return x == y || (x != x && y != y); }

/* The op is the same in all threads: its branches cost nothing beside the loads. */
struct reduce_combine {
    int op;
    template <typename A> __device__ __forceinline__ A operator()(A a, A b) const
    {
        return op == REDUCE_MAX ? max_of()(a, b) : sum_of()(a, b);
    }
};

/* N vectors into result, pairwise. */
template <int N, typename A, int V, typename F>
__device__ __forceinline__ void reduce_fold(const A (&term)[N][V], A (&result)[V], F combine)
{
#pragma unroll
    for (int e = 0; e < V; e++) {
        A part[N];
#pragma unroll
        for (int u = 0; u < N; u++)
            part[u] = term[u][e];
#pragma unroll
        for (int pairs = N / 2; pairs > 0; pairs /= 2)
#pragma unroll
            for (int u = 0; u < pairs; u++)
                part[u] = combine(part[u], part[u + pairs]);
        result[e] = combine(result[e], part[0]);
    }
}

/* N vectors, `lanes` reduced positions apart, loaded together. */
template <int N, typename T, int V>
__device__ __forceinline__ void reduce_take(const T *x, const reduce_arguments<accumulator<T>> &r, int64_t i,
                                            const accumulator<T> (&target)[V], accumulator<T> (&result)[V])
{
    typedef accumulator<T> A;
    vector_of<T, V> v[N];
    A term[N][V];
#pragma unroll
    for (int u = 0; u < N; u++) {
        int64_t offset[1];
        r.reduced.at(i + u * r.lanes, offset);
        vector_load(v[u], x + offset[0]);
    }
#pragma unroll
    for (int u = 0; u < N; u++)
        vector_widen(term[u], v[u]);
    if (r.op == REDUCE_EQUAL) {
#pragma unroll
        for (int u = 0; u < N; u++)
#pragma unroll
            for (int e = 0; e < V; e++)
                term[u][e] = is_max(term[u][e], target[e]) ? A(1) : A(0);
    }
    if (r.op == REDUCE_MAX)
        reduce_fold(term, result, max_of());
    else
        reduce_fold(term, result, sum_of());
}

/* A lane's part of an output (or of V neighbouring ones) in the block's slice; x: where the output's elements begin. */
template <typename T, int V>
__device__ __forceinline__ void reduce_lane(const T *x, const reduce_arguments<accumulator<T>> &r, int lane,
                                            const accumulator<T> (&target)[V], accumulator<T> (&result)[V])
{
    enum { N = V > 4 ? REDUCE_UNROLL / 2 : REDUCE_UNROLL }; /* 8 sums a thread and 4 loads would spill on sm_75 */
    int64_t first = blockIdx.y * r.slice, end = first + r.slice < r.length ? first + r.slice : r.length, i = first + lane;
#pragma unroll 1
    for (; i + (N - 1) * r.lanes < end; i += N * r.lanes)
        reduce_take<N, T, V>(x, r, i, target, result);
#pragma unroll 1
    for (; i < end; i += r.lanes)
        reduce_take<1, T, V>(x, r, i, target, result);
}

/* What a reduction of nothing is. */
template <typename A> __device__ __forceinline__ A reduce_begin(int op) { return op == REDUCE_MAX ? -A(INFINITY) : A(0); }

/* Stores a result: output number `output` of all, which lies `at` elements into y. */
template <typename A>
__device__ __forceinline__ void reduce_store(void *y, const reduce_arguments<A> &r, int64_t outputs, int64_t output, int64_t at, A value)
{
    if (r.partial) {
        static_cast<A *>(y)[blockIdx.y * outputs + output] = value;
        return;
    }
    if (r.op == REDUCE_SUM)
        value /= r.divisor;
    switch (r.to) {
    case ASEN_F16: static_cast<half_t *>(y)[at] = narrow<half_t>((float)value); break;
    case ASEN_BF16: static_cast<bfloat_t *>(y)[at] = narrow<bfloat_t>((float)value); break;
    case ASEN_F32: static_cast<float *>(y)[at] = (float)value; break;
    default: static_cast<double *>(y)[at] = value;
    }
}

#endif
