/* Reductions over dims: sum, mean, max and its gradient.
 *
 * Bound by memory: x is read once. After collapsing, what is kept and what is reduced are walks of one dim
 * or two, and one kernel serves all cases. Where the innermost dim is reduced (rows of a matrix; everything),
 * threads side by side share an output; where it is kept (NHWC over H, W or over N, H, W; columns of a
 * matrix), they have neighbouring outputs; both ways their loads are coalesced, in 16 bytes where
 * alignment allows. Where that leaves the GPU idle (few outputs), the reduced positions are cut into slices
 * whose partial results, in scratch memory, a second launch reduces.
 *
 * Order: a thread adds four elements pairwise, then to its sum; the threads of an output form a tree in shared
 * memory; slices likewise. Fixed by shape and GPU, so the same call gives the same bits. */
#include "index.cuh"

namespace {

enum { BLOCK = 256, UNROLL = 4 };
enum operation { SUM, MAX, EQUAL }; /* EQUAL: how many elements equal the output's target */

/* What is kept and what is reduced, in the memory order of x. */
struct reduction {
    space kept;    /* operand 0: x, 1: y */
    space reduced; /* operand 0: x */
    operation op;
    asen_dtype to;  /* of y */
    double divisor; /* of a sum; 1, or for a mean the count */
};

/* The same for a kernel, in vectors of V elements along the innermost dim of x. */
template <typename A> struct reduce_arguments {
    walk<2> kept;
    walk<1> reduced;
    int64_t outputs, length; /* vectors or elements: positions of the two walks */
    int64_t slice;           /* reduced positions of one blockIdx.y */
    int64_t y_step;          /* between the outputs of one vector */
    int lanes;               /* threads that share an output: a power of two */
    bool by_rows;            /* the innermost dim is reduced, so a vector belongs to one output */
    bool partial;            /* y is scratch, (slices, outputs) */
    int op, to;
    A divisor;
};

template <bool LARGER, typename A> __device__ __forceinline__ A combine(A a, A b)
{
    return LARGER ? (b > a || b != b ? b : a) : a + b; /* NaN is greater than everything */
}

template <typename A> __device__ __forceinline__ void put(void *y, int to, int64_t i, A value)
{
    switch (to) {
    case ASEN_F16: static_cast<half_t *>(y)[i] = narrow<half_t>((float)value); break;
    case ASEN_BF16: static_cast<bfloat_t *>(y)[i] = narrow<bfloat_t>((float)value); break;
    case ASEN_F32: static_cast<float *>(y)[i] = (float)value; break;
    default: static_cast<double *>(y)[i] = value;
    }
}

/* N vectors into result, pairwise. */
template <bool LARGER, int N, typename A, int V>
__device__ __forceinline__ void fold(const A (&term)[N][V], A (&result)[V])
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
                part[u] = combine<LARGER, A>(part[u], part[u + pairs]);
        result[e] = combine<LARGER, A>(result[e], part[0]);
    }
}

/* N vectors, `lanes` reduced positions apart, loaded together. The op is the same in all threads: its
 * branches cost nothing beside the loads. */
template <int N, typename T, int V>
__device__ __forceinline__ void take(const T *x, const reduce_arguments<accumulator<T>> &r, int64_t i,
                                     const accumulator<T> (&target)[V], accumulator<T> (&result)[V])
{
    typedef accumulator<T> A;
    vector_of<T, V> v[N];
    A term[N][V];
#pragma unroll
    for (int u = 0; u < N; u++) {
        int64_t offset[1];
        r.reduced.at(i + u * r.lanes, offset);
        v[u] = load_vector<T, V>(x + offset[0], false);
    }
#pragma unroll
    for (int u = 0; u < N; u++)
        widen_vector<T, V>(v[u], term[u]);
    if (r.op == EQUAL) {
#pragma unroll
        for (int u = 0; u < N; u++)
#pragma unroll
            for (int e = 0; e < V; e++)
                term[u][e] = term[u][e] == target[e] ? A(1) : A(0);
    }
    if (r.op == MAX)
        fold<true, N, A, V>(term, result);
    else
        fold<false, N, A, V>(term, result);
}

template <typename A> __device__ __forceinline__ A combine_any(int op, A a, A b)
{
    return op == MAX ? combine<true, A>(a, b) : combine<false, A>(a, b);
}

/* One output (or V neighbouring ones) of the block's slice, for all threads of the block. */
template <typename T, int V>
__device__ __forceinline__ void reduce_output(const T *x, const T *target, void *y, const reduce_arguments<accumulator<T>> &r,
                                              accumulator<T> *shared, int64_t output, int lane, int lane_step)
{
    typedef accumulator<T> A;
    A result[V], wanted[V];
    int64_t offset[2] = {0, 0}, first = blockIdx.y * r.slice, end = first + r.slice < r.length ? first + r.slice : r.length;
    int values = r.by_rows ? 1 : V, thread = threadIdx.x;
    bool inside = output < r.outputs;
#pragma unroll
    for (int e = 0; e < V; e++) {
        result[e] = r.op == MAX ? -A(INFINITY) : A(0);
        wanted[e] = 0;
    }
    if (inside) {
        r.kept.at(output, offset);
        if (r.op == EQUAL)
#pragma unroll
            for (int e = 0; e < V; e++)
                wanted[e] = widen(target[offset[1] + (r.by_rows ? 0 : e * r.y_step)]);
        enum { N = V > 4 ? UNROLL / 2 : UNROLL }; /* 8 sums a thread and 4 loads would spill on sm_75 */
        int64_t i = first + lane;
#pragma unroll 1
        for (; i + (N - 1) * r.lanes < end; i += N * r.lanes)
            take<N, T, V>(x + offset[0], r, i, wanted, result);
#pragma unroll 1
        for (; i < end; i += r.lanes)
            take<1, T, V>(x + offset[0], r, i, wanted, result);
    }
    if (r.by_rows)
#pragma unroll
        for (int e = 1; e < V; e++)
            result[0] = combine_any<A>(r.op, result[0], result[e]);
#pragma unroll
    for (int e = 0; e < V; e++)
        if (e < values)
            shared[e * BLOCK + thread] = result[e];
    for (int half = r.lanes / 2; half > 0; half /= 2) {
        __syncthreads();
        if (lane < half)
#pragma unroll 1
            for (int e = 0; e < values; e++) {
                A *own = shared + e * BLOCK + thread;
                *own = combine_any<A>(r.op, *own, own[half * lane_step]);
            }
    }
    if (lane == 0 && inside)
#pragma unroll 1
        for (int e = 0; e < values; e++) {
            A value = shared[e * BLOCK + thread];
            if (r.partial)
                static_cast<A *>(y)[(blockIdx.y * r.outputs + output) * values + e] = value;
            else
                put<A>(y, r.to, offset[1] + e * r.y_step, r.op == SUM ? value / r.divisor : value);
        }
    __syncthreads(); /* `shared` is free for the next output */
}

/* x: r.outputs x r.length positions of V elements; y: the outputs, or (slices, outputs) partial results;
 * target (EQUAL alone): lies as y does. Grid: tiles of outputs x slices. */
template <typename T, int V>
__global__ void __launch_bounds__(BLOCK)
reduce_kernel(const T *x, const T *target, void *y, reduce_arguments<accumulator<T>> r)
{
    ASEN_SHARED(accumulator<T>, shared, [BLOCK * V]);
    int columns = BLOCK / r.lanes, thread = threadIdx.x;
    int lane = r.by_rows ? thread % r.lanes : thread / columns, column = r.by_rows ? thread / r.lanes : thread % columns;
    int lane_step = r.by_rows ? 1 : columns;
    for (int64_t tile = (int64_t)blockIdx.x * columns; tile < r.outputs; tile += (int64_t)gridDim.x * columns)
        reduce_output<T, V>(x, target, y, r, shared, tile + column, lane, lane_step);
}

/* ---- how the threads are shared out ---- */

int power_of_two(int64_t at_least)
{
    int power = 1;
    while (power < at_least && power < BLOCK)
        power *= 2;
    return power;
}

int64_t tiles_of(int64_t outputs, int lanes) { return ceil_div(outputs, BLOCK / lanes); }

/* Rows: as many lanes as a row fills with UNROLL loads each, and more where rows are few. */
int lanes_by_rows(int64_t outputs, int64_t length)
{
    int lanes = power_of_two(length);
    while (lanes > 8 && length < (int64_t)lanes * UNROLL && tiles_of(outputs, lanes / 2) >= 2 * cuda.multiprocessors)
        lanes /= 2;
    return lanes;
}

/* Columns: 8 lanes (fewer for short columns), and more, as long as a row of the tile has `segment` bytes, where
 * the tiles would leave multiprocessors idle. */
int lanes_by_columns(int64_t outputs, int64_t length, int vector_bytes, int segment)
{
    int lanes = power_of_two(ceil_div(length, UNROLL));
    lanes = lanes < 8 ? lanes : 8;
    int columns = power_of_two(outputs);
    if (columns < BLOCK / lanes)
        lanes = BLOCK / columns;
    while (lanes < BLOCK && BLOCK / lanes * vector_bytes > segment && tiles_of(outputs, lanes) < cuda.multiprocessors &&
           length >= (int64_t)lanes * 2)
        lanes *= 2;
    return lanes;
}

int64_t slices_of(int64_t tiles, int64_t length, int lanes)
{
    if (tiles >= cuda.multiprocessors)
        return 1;
    int64_t wanted = ceil_div((int64_t)cuda.multiprocessors * 4, tiles), most = length / (lanes * 2 * UNROLL);
    int64_t slices = wanted < most ? wanted : most;
    return slices < 1 ? 1 : slices;
}

bool strides_are_multiples(const space *s, int n, bool except_last)
{
    for (int d = 0; d < s->ndim - except_last; d++)
        if (s->size[d] > 1 && s->stride[0][d] % n != 0)
            return false;
    return true;
}

/* Whether x can be read V elements at a time along `inner`, which holds its innermost dim. */
bool vectors_fit(const space *inner, const space *other, const void *x, int V, size_t bytes)
{
    return inner->size[inner->ndim - 1] % V == 0 && space_aligned(inner, 0, x, V, bytes) && strides_are_multiples(other, V, false);
}

/* ---- launching ---- */

template <typename T, int V>
int launch(const reduction *n, const T *x, const T *target, void *y, bool by_rows, int lanes, int64_t slices)
{
    reduce_arguments<accumulator<T>> r = {};
    r.kept = walk_over<2>(&n->kept, by_rows ? 1 : V);
    r.reduced = walk_over<1>(&n->reduced, by_rows ? V : 1);
    r.outputs = space_count(&n->kept) / (by_rows ? 1 : V);
    r.length = space_count(&n->reduced) / (by_rows ? V : 1);
    r.slice = ceil_div(r.length, slices);
    r.y_step = n->kept.stride[1][n->kept.ndim - 1];
    r.lanes = lanes;
    r.by_rows = by_rows;
    r.partial = slices > 1;
    r.op = n->op;
    r.to = n->to;
    r.divisor = (accumulator<T>)n->divisor;
    dim3 grid(grid_for(tiles_of(r.outputs, lanes), 1), (unsigned)slices);
    return ASEN_LAUNCH((reduce_kernel<T, V>), grid, BLOCK, 0, x, target, y, r);
}

/* What is left of `n` after its slices: (slices, outputs) partial results. */
reduction second_stage(const reduction *n, int64_t slices)
{
    reduction second = *n;
    second.op = n->op == EQUAL ? SUM : n->op;
    space kept = n->kept;
    kept.operands = 0;
    space_add_dense(&kept);
    for (int d = 0; d < kept.ndim; d++)
        kept.stride[1][d] = n->kept.stride[1][d];
    kept.operands = 2;
    space_collapse(&kept);
    space reduced = {};
    reduced.ndim = reduced.operands = 1;
    reduced.size[0] = slices;
    reduced.stride[0][0] = space_count(&kept);
    second.kept = kept;
    second.reduced = reduced;
    return second;
}

enum { LINE = 128, SECTOR = 32 }; /* bytes that are read together at least */

/* `whole`: without slices. */
template <typename T>
int run(const asen_call *call, const reduction *n, const T *x, const T *target, void *y, bool whole)
{
    typedef accumulator<T> A;
    enum { V = 16 / sizeof(T) };
    int64_t outputs = space_count(&n->kept), length = space_count(&n->reduced);
    bool by_rows = outputs == 1 || n->kept.stride[0][n->kept.ndim - 1] != 1;
    const space *inner = by_rows ? &n->reduced : &n->kept, *other = by_rows ? &n->kept : &n->reduced;
    bool vectors = vectors_fit(inner, other, x, V, sizeof(T));
    int lanes, width = vectors ? V : 1;
    if (space_too_large(&n->kept) || space_too_large(&n->reduced))
        return cuda_host.fail(ASEN_ERR_UNSUPPORTED, "more than 2^31 elements in dims that do not lie together");
    int64_t positions = by_rows ? length / width : length, tiles;
    if (by_rows)
        lanes = lanes_by_rows(outputs, positions);
    else
        lanes = lanes_by_columns(outputs / width, positions, width * (int)sizeof(T), whole ? SECTOR : LINE);
    tiles = tiles_of(by_rows ? outputs : outputs / width, lanes);
    int64_t slices = whole ? 1 : slices_of(tiles, positions, lanes);
    void *partial = nullptr;
    size_t bytes = (size_t)(slices * outputs) * sizeof(A);
    if (slices > 1)
        CUDA_OK(cuda_scratch_new(call, bytes, &partial));
    void *to = slices > 1 ? partial : y;
    int status = vectors ? launch<T, V>(n, x, target, to, by_rows, lanes, slices)
                         : launch<T, 1>(n, x, target, to, by_rows, lanes, slices);
    if (slices > 1) {
        reduction second = second_stage(n, slices);
        if (status == ASEN_OK)
            status = run<A>(call, &second, static_cast<const A *>(partial), nullptr, y, true);
        cuda_scratch_free(call, partial, bytes);
    }
    return status;
}

/* Which dims of x are reduced, and the strides that y has for the dims of x (0: reduced). */
void find_kept(const asen_tensor *x, const asen_attrs_reduce *attrs, bool *reduced, int64_t *y_stride)
{
    int64_t shape[ASEN_MAX_DIMS], stride[ASEN_MAX_DIMS];
    int ndim = 0;
    for (int d = 0; d < x->ndim; d++)
        reduced[d] = false;
    for (int64_t j = 0; j < attrs->dims.count; j++)
        reduced[attrs->dims.item[j]] = true;
    for (int d = 0; d < x->ndim; d++)
        if (!reduced[d] || attrs->keepdim)
            shape[ndim++] = reduced[d] ? 1 : x->shape[d];
    dense_strides(ndim, shape, stride);
    ndim = 0;
    for (int d = 0; d < x->ndim; d++) {
        y_stride[d] = reduced[d] ? 0 : stride[ndim];
        ndim += !reduced[d] || attrs->keepdim;
    }
}

reduction reduction_of(const asen_tensor *x, const asen_attrs_reduce *attrs, operation op, asen_dtype to, bool mean)
{
    reduction n = {};
    bool reduced[ASEN_MAX_DIMS];
    int64_t x_stride[ASEN_MAX_DIMS], y_stride[ASEN_MAX_DIMS];
    find_kept(x, attrs, reduced, y_stride);
    dense_strides(x->ndim, x->shape, x_stride);
    n.kept.operands = 2;
    n.reduced.operands = 1;
    for (int i = 0; i < x->ndim; i++) {
        int d = memory_dim(x->ndim, i);
        space *s = reduced[d] ? &n.reduced : &n.kept;
        s->size[s->ndim] = x->shape[d];
        s->stride[0][s->ndim] = x_stride[d];
        s->stride[1][s->ndim] = y_stride[d];
        s->ndim++;
    }
    space_collapse(&n.kept);
    space_collapse(&n.reduced);
    n.op = op;
    n.to = to;
    n.divisor = mean ? (double)space_count(&n.reduced) : 1;
    return n;
}

/* ---- integers: sums wrap around ---- */

/* A block an output. */
__global__ void __launch_bounds__(BLOCK)
integer_reduce_kernel(const void *x, void *y, int dtype, int64_t outputs, int64_t length, walk<2> kept, walk<1> reduced, bool max)
{
    ASEN_SHARED(int64_t, shared, [BLOCK]);
    int64_t least = !max ? 0 : dtype == ASEN_I64 ? INT64_MIN : dtype == ASEN_I32 ? INT32_MIN : 0;
    for (int64_t output = blockIdx.x; output < outputs; output += gridDim.x) {
        int64_t offset[2], at[1], result = least;
        kept.at(output, offset);
        for (int64_t i = threadIdx.x; i < length; i += BLOCK) {
            reduced.at(i, at);
            int64_t value = load_integer(x, dtype, offset[0] + at[0]);
            result = !max ? (int64_t)((uint64_t)result + (uint64_t)value) : value > result ? value : result;
        }
        shared[threadIdx.x] = result;
        for (int half = BLOCK / 2; half > 0; half /= 2) {
            __syncthreads();
            if ((int)threadIdx.x < half) {
                int64_t value = shared[threadIdx.x + half];
                result = !max ? (int64_t)((uint64_t)result + (uint64_t)value) : value > result ? value : result;
                shared[threadIdx.x] = result;
            }
        }
        if (threadIdx.x == 0)
            store_integer(y, dtype, offset[1], result);
        __syncthreads();
    }
}

int reduce_integers(const asen_call *call, const asen_attrs_reduce *attrs, bool max)
{
    asen_dtype dtype = call->in[0]->dtype;
    reduction n = reduction_of(call->in[0], attrs, SUM, dtype, false);
    int64_t outputs = space_count(&n.kept);
    if (space_too_large(&n.kept) || space_too_large(&n.reduced))
        return ASEN_DECLINED;
    return ASEN_LAUNCH(integer_reduce_kernel, grid_for(outputs, 1), BLOCK, 0, input<char>(call, 0), output<char>(call, 0),
                       (int)dtype, outputs, space_count(&n.reduced), walk_over<2>(&n.kept, 1), walk_over<1>(&n.reduced, 1), max);
}

int reduce(const asen_call *call, const asen_attrs_reduce *attrs, operation op, bool mean)
{
    const asen_tensor *x = call->in[0];
    if (element_count(call->out[0]) == 0)
        return ASEN_OK;
    if (!asen_dtype_is_float(x->dtype))
        return mean ? ASEN_DECLINED : reduce_integers(call, attrs, op == MAX);
    reduction n = reduction_of(x, attrs, op, x->dtype, mean);
    CUDA_FLOAT_SWITCH(x->dtype, T,
                      { return run<T>(call, &n, input<T>(call, 0), nullptr, output<T>(call, 0), false); })
    return ASEN_DECLINED;
}

/* ---- the gradient of max ---- */

/* dx (count) = dy / equal where x equals y; dy, equal and y at the walk's offset. Reads x twice in all (the
 * counting was one launch) and writes dx. */
template <typename T>
__global__ void __launch_bounds__(BLOCK)
max_grad_kernel(const T *dy, const T *x, const T *y, const accumulator<T> *equal, T *dx, int64_t count, walk<1> at)
{
    int64_t step = (int64_t)gridDim.x * BLOCK;
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < count; i += step) {
        int64_t offset[1];
        at.at(i, offset);
        bool largest = widen(x[i]) == widen(y[offset[0]]);
        dx[i] = narrow<T>(largest ? widen(dy[offset[0]]) / equal[offset[0]] : accumulator<T>(0));
    }
}

template <typename T> int max_grad(const asen_call *call)
{
    typedef accumulator<T> A;
    const asen_tensor *tx = call->in[1];
    const asen_attrs_reduce *attrs = &call->attrs->max_grad;
    const T *dy = input<T>(call, 0), *x = input<T>(call, 1), *y = input<T>(call, 2);
    int64_t count = element_count(tx), y_stride[ASEN_MAX_DIMS];
    bool reduced[ASEN_MAX_DIMS];
    size_t bytes = (size_t)element_count(call->in[2]) * sizeof(A);
    void *equal;
    find_kept(tx, attrs, reduced, y_stride);
    space s = space_of(tx->ndim, tx->shape);
    space_add(&s, y_stride);
    space_collapse(&s);
    if (space_too_large(&s))
        return cuda_host.fail(ASEN_ERR_UNSUPPORTED, "more than 2^31 elements in dims that do not lie together");
    CUDA_OK(cuda_scratch_new(call, bytes, &equal));
    reduction n = reduction_of(tx, attrs, EQUAL, sizeof(A) == 8 ? ASEN_F64 : ASEN_F32, false);
    int status = run<T>(call, &n, x, y, equal, false);
    if (status == ASEN_OK)
        status = ASEN_LAUNCH(max_grad_kernel<T>, grid_for(count, BLOCK), BLOCK, 0, dy, x, y, static_cast<const A *>(equal),
                             output<T>(call, 0), count, walk_over<1>(&s, 1));
    cuda_scratch_free(call, equal, bytes);
    return status;
}

} // namespace

ASEN_C_BEGIN

int cuda_sum(const asen_call *call) { return reduce(call, &call->attrs->sum, SUM, false); }
int cuda_mean(const asen_call *call) { return reduce(call, &call->attrs->mean, SUM, true); }
int cuda_max(const asen_call *call) { return reduce(call, &call->attrs->max, MAX, false); }

int cuda_max_grad(const asen_call *call)
{
    if (element_count(call->in[1]) == 0)
        return ASEN_OK;
    CUDA_FLOAT_SWITCH(call->in[1]->dtype, T, { return max_grad<T>(call); })
    return ASEN_DECLINED;
}

ASEN_C_END
