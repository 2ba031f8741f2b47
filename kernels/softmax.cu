/* Softmax over a dim, its logarithm, and cross-entropy.
 *
 * Bound by memory: x is read from memory once (twice more from the caches, for the sum and the result) and y
 * written once. A position's elements are `step` apart; threads that share it (lanes) take them in turn. Along
 * the innermost dim the lanes lie side by side, along another one positions do: either way loads are
 * coalesced. Maxima and sums are trees in shared memory, so their order is fixed. */
#include "block.cuh"
#include "index.cuh"

namespace {

enum { BLOCK = 256 };
enum result { SOFTMAX, LOGARITHM, CROSS_ENTROPY };

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

/* outer x inner positions of `length` elements, `inner` apart (inner: the product of the dims after it). */
struct softmax_arguments {
    int64_t positions, inner, length;
    int lanes;    /* threads that share a position: a power of two */
    bool by_rows; /* inner == 1 */
    int result;
};

/* Over the lanes of a position, in all of them; `shared` has a value for each thread. */
template <typename A, typename F>
__device__ __forceinline__ A over_lanes(A value, A *shared, int lane, int lanes, int lane_step, F combine)
{
    A v[1] = {value};
    __syncthreads(); /* `shared` may still be read from the call before */
    block_tree<BLOCK>(v, shared, lane, lanes, lane_step, combine);
    __syncthreads();
    return shared[threadIdx.x - lane * lane_step];
}

/* x, y: positions x length. With CROSS_ENTROPY also loss (positions) = -log softmax at target, in [0, length). */
template <typename T>
__global__ void __launch_bounds__(BLOCK)
softmax_kernel(const T *x, T *y, const int64_t *target, accumulator<T> *loss, softmax_arguments p, cuda_fault *fault)
{
    typedef accumulator<T> A;
    ASEN_SHARED(A, shared, [BLOCK]);
    int columns = BLOCK / p.lanes, thread = threadIdx.x;
    int lane = p.by_rows ? thread % p.lanes : thread / columns, column = p.by_rows ? thread / p.lanes : thread % columns;
    int lane_step = p.by_rows ? 1 : columns;
    for (int64_t tile = (int64_t)blockIdx.x * columns; tile < p.positions; tile += (int64_t)gridDim.x * columns) {
        int64_t position = tile + column, end = position < p.positions ? p.length : 0;
        int64_t at = position / p.inner * p.length * p.inner + position % p.inner;
        A max = -A(INFINITY), sum = 0;
        for (int64_t k = lane; k < end; k += p.lanes)
            max = max_of()(max, A(widen(x[at + k * p.inner])));
        max = over_lanes(max, shared, lane, p.lanes, lane_step, max_of());
        for (int64_t k = lane; k < end; k += p.lanes)
            sum += exponential(widen(x[at + k * p.inner]) - max);
        sum = over_lanes(sum, shared, lane, p.lanes, lane_step, sum_of());
        A log_sum = logarithm(sum);
        for (int64_t k = lane; k < end; k += p.lanes) {
            A shifted = widen(x[at + k * p.inner]) - max;
            y[at + k * p.inner] = narrow<T>(p.result == LOGARITHM ? shifted - log_sum : exponential(shifted) / sum);
        }
        if (p.result == CROSS_ENTROPY && lane == 0 && position < p.positions) {
            int64_t chosen = target[position];
            bool inside = chosen >= 0 && chosen < p.length;
            if (!inside)
                cuda_fault_set(fault, ASEN_OP_cross_entropy, chosen, p.length);
            loss[position] = inside ? log_sum - (widen(x[at + chosen]) - max) : A(NAN);
        }
    }
}

int power_of_two(int64_t at_least, int limit)
{
    int power = 1;
    while (power < at_least && power < limit)
        power *= 2;
    return power;
}

/* Rows: lanes for four elements each, a warp at most unless rows are long or few. Columns: 8, more where the
 * positions would not fill the GPU. */
softmax_arguments arguments_of(int64_t outer, int64_t length, int64_t inner, result what)
{
    softmax_arguments p = {outer * inner, inner, length, 1, inner == 1, what};
    p.lanes = power_of_two(ceil_div(length, 4), p.by_rows ? 32 : 8);
    while (p.lanes < BLOCK && length > p.lanes &&
           (ceil_div(p.positions, BLOCK / p.lanes) < cuda.multiprocessors || length > (int64_t)p.lanes * 64))
        p.lanes *= 2;
    return p;
}

template <typename T>
int launch(const T *x, T *y, const int64_t *target, accumulator<T> *loss, softmax_arguments p)
{
    return ASEN_LAUNCH(softmax_kernel<T>, grid_for(ceil_div(p.positions, BLOCK / p.lanes), 1), BLOCK, 0, x, y, target, loss, p,
                       cuda.fault);
}

int softmax_over(const asen_call *call, int64_t dim, result what)
{
    const asen_tensor *x = call->in[0];
    int64_t outer = 1, length = 1, inner = 1;
    bool before = true;
    if (element_count(x) == 0)
        return ASEN_OK;
    for (int i = 0; i < x->ndim; i++) {
        int d = memory_dim(x->ndim, i);
        if (d == dim) {
            length = x->shape[d];
            before = false;
        } else if (before) {
            outer *= x->shape[d];
        } else {
            inner *= x->shape[d];
        }
    }
    CUDA_FLOAT_SWITCH(x->dtype, T, {
        accumulator<T> *no_loss = nullptr;
        return launch<T>(input<T>(call, 0), output<T>(call, 0), nullptr, no_loss, arguments_of(outer, length, inner, what));
    })
    return ASEN_DECLINED;
}

/* ---- cross-entropy ---- */

/* loss = the mean of row_loss (N): one block, a tree. */
template <typename T>
__global__ void __launch_bounds__(BLOCK) mean_loss_kernel(const accumulator<T> *row_loss, T *loss, int64_t N)
{
    typedef accumulator<T> A;
    ASEN_SHARED(A, shared, [BLOCK]);
    A sum = 0;
    for (int64_t n = threadIdx.x; n < N; n += BLOCK)
        sum += row_loss[n];
    sum = over_lanes(sum, shared, threadIdx.x, BLOCK, 1, sum_of());
    if (threadIdx.x == 0)
        *loss = narrow<T>(sum / (A)N);
}

template <typename T> int cross_entropy(const asen_call *call, int64_t N, int64_t K)
{
    typedef accumulator<T> A;
    void *row_loss;
    size_t bytes = (size_t)N * sizeof(A);
    CUDA_OK(cuda_scratch_new(call, bytes, &row_loss));
    A *losses = static_cast<A *>(row_loss);
    int status = launch<T>(input<T>(call, 0), output<T>(call, 1), input<int64_t>(call, 1), losses,
                           arguments_of(N, K, 1, CROSS_ENTROPY));
    if (status == ASEN_OK)
        status = ASEN_LAUNCH(mean_loss_kernel<T>, 1, BLOCK, 0, losses, output<T>(call, 0), N);
    cuda_scratch_free(call, row_loss, bytes);
    return status;
}

/* dx (N, K) = dy (softmax - onehot(target)) / N; dy is one element. Blocks of rows x lanes threads, so that no
 * element's row needs a division. */
template <typename T>
__global__ void __launch_bounds__(BLOCK)
cross_entropy_grad_kernel(const T *dy, const T *softmax, const int64_t *target, T *dx, int64_t N, int64_t K, int lanes,
                          cuda_fault *fault)
{
    typedef accumulator<T> A;
    A scale = widen(*dy) / (A)N;
    int rows = BLOCK / lanes, lane = threadIdx.x % lanes;
    for (int64_t n = (int64_t)blockIdx.x * rows + threadIdx.x / lanes; n < N; n += (int64_t)gridDim.x * rows) {
        int64_t chosen = target[n];
        if (lane == 0 && (chosen < 0 || chosen >= K))
            cuda_fault_set(fault, ASEN_OP_cross_entropy_grad, chosen, K);
        for (int64_t k = lane; k < K; k += lanes)
            dx[n * K + k] = narrow<T>(scale * (widen(softmax[n * K + k]) - (k == chosen ? 1 : 0)));
    }
}

template <typename T> int cross_entropy_grad(const asen_call *call, int64_t N, int64_t K)
{
    int lanes = power_of_two(K, BLOCK);
    return ASEN_LAUNCH(cross_entropy_grad_kernel<T>, grid_for(ceil_div(N, BLOCK / lanes), 1), BLOCK, 0, input<T>(call, 0),
                       input<T>(call, 1), input<int64_t>(call, 2), output<T>(call, 0), N, K, lanes, cuda.fault);
}

} // namespace

ASEN_C_BEGIN

int cuda_softmax(const asen_call *call) { return softmax_over(call, call->attrs->softmax.dim, SOFTMAX); }
int cuda_log_softmax(const asen_call *call) { return softmax_over(call, call->attrs->log_softmax.dim, LOGARITHM); }

int cuda_cross_entropy(const asen_call *call)
{
    const asen_tensor *logits = call->in[0];
    CUDA_FLOAT_SWITCH(logits->dtype, T, { return cross_entropy<T>(call, logits->shape[0], logits->shape[1]); })
    return ASEN_DECLINED;
}

int cuda_cross_entropy_grad(const asen_call *call)
{
    const asen_tensor *softmax = call->in[1];
    if (element_count(softmax) == 0)
        return ASEN_OK;
    CUDA_FLOAT_SWITCH(softmax->dtype, T, { return cross_entropy_grad<T>(call, softmax->shape[0], softmax->shape[1]); })
    return ASEN_DECLINED;
}

ASEN_C_END
