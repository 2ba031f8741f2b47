/* Batch norm in groups, with residual and ReLU (Ioffe and Szegedy 2015), over NHWC memory.
 *
 *   mean = sum x / R;  var = sum (x - mean)^2 / R;  invstd = 1 / sqrt(var + eps)
 *   y = relu((x - mean) invstd weight + bias + residual)
 *
 * Training: statistics (reads x), a small kernel that joins them and moves the running statistics,
 * normalising (reads x and residual, writes y): bound by memory, (2 + residual + 1) |x| bytes. In
 * inference 1 |x| less.
 *
 * Sums are of differences from a shift, the first row of a chunk, so a large mean costs no digits:
 * var = (sum d^2 - (sum d)^2 / n) / n loses at most log2(n) bits even where that row is the one
 * outlier that makes up the variance, and nothing in ordinary data. Chunks are then joined around
 * their common mean, in two passes over the partial sums. */
#include "norm.cuh"

/* ---- statistics ---- */

enum { STATISTICS_UNROLL = 4 };

/* x: (groups, rows, C). partial: shift, mean - shift, and sum (x - mean)^2 of each chunk. */
template <typename T>
__global__ void __launch_bounds__(NORM_THREADS)
    norm_statistics_kernel(const T *__restrict__ x, norm_grid g, accumulator<T> *__restrict__ partial)
{
    typedef accumulator<T> A;
    enum { V = vector_size<T>, U = STATISTICS_UNROLL };
    ASEN_SHARED(A, tile, [2 * V * NORM_THREADS]);
    norm_place p = norm_place_of<T>(g, true);
    A shift[V], sums[2 * V]; /* of d, then of d^2 */
#pragma unroll
    for (int i = 0; i < 2 * V; i++)
        sums[i] = 0;
    if (p.left > 0) {
        vector<T> first, v[U];
        int64_t step = (int64_t)g.down * g.C;
        vector_load(first, x + p.at, p.left, g.whole);
#pragma unroll
        for (int i = 0; i < V; i++)
            shift[i] = widen(first.item[i]);
        for (int row = p.row; row < p.rows; row += U * g.down) {
            int count = norm_rows_left(g, p, row);
            channels_load_rows(v, x + p.at + (int64_t)row * g.C, step, count, p.left, g.whole);
#pragma unroll
            for (int u = 0; u < U; u++)
                if (u < count)
#pragma unroll
                    for (int i = 0; i < V; i++) {
                        A d = widen(v[u].item[i]) - shift[i];
                        sums[i] += d;
                        sums[V + i] += d * d;
                    }
        }
    }
    block_tree<NORM_THREADS>(sums, tile, p.row, g.down, g.across, sum_of());
    if (p.row != 0)
        return;
#pragma unroll
    for (int i = 0; i < V; i++)
        if (i < p.left) {
            A offset = sums[i] / (A)p.rows, squares = sums[V + i] - sums[i] * offset;
            partial[norm_partial_at(g, 0, p.group, p.chunk) + p.channel + i] = shift[i];
            partial[norm_partial_at(g, 1, p.group, p.chunk) + p.channel + i] = offset;
            partial[norm_partial_at(g, 2, p.group, p.chunk) + p.channel + i] = squares < 0 ? A(0) : squares;
        }
}

/* Joins the chunks of each group, and moves the running statistics group by group in order.
 * partial: [3][groups][chunks][C]; mean, invstd: (groups, C); running: (C). Bytes: the partial sums. */
template <typename A>
__global__ void __launch_bounds__(JOIN_MAX_THREADS, 1)
    norm_join_kernel(const A *__restrict__ partial, norm_grid g, double momentum, double eps, A *__restrict__ running_mean,
                     A *__restrict__ running_var, A *__restrict__ mean, A *__restrict__ invstd)
{
    ASEN_SHARED(A, shared, [JOIN_MAX_THREADS / 32 * JOIN_CHANNELS]);
    int c = blockIdx.x * JOIN_CHANNELS + threadIdx.x % JOIN_CHANNELS;
    int lane = threadIdx.x / JOIN_CHANNELS, lanes = blockDim.x / JOIN_CHANNELS;
    bool inside = c < g.C, writes = inside && lane == 0;
    double moved_mean = writes ? (double)running_mean[c] : 0, moved_var = writes ? (double)running_var[c] : 0;
    double unbiased = g.rows > 1 ? (double)g.rows / (double)(g.rows - 1) : 1;
    for (int group = 0; group < g.groups; group++) {
        const A *shifts = partial + norm_partial_at(g, 0, group, 0), *offsets = partial + norm_partial_at(g, 1, group, 0);
        const A *squares = partial + norm_partial_at(g, 2, group, 0);
        A base = inside && g.chunks > 0 ? shifts[c] : A(0), sum = 0, m2 = 0;
        for (int chunk = lane; inside && chunk < g.chunks; chunk += lanes) {
            int64_t rest = g.rows - (int64_t)chunk * g.chunk_rows, at = (int64_t)chunk * g.C + c;
            sum += (A)(rest < g.chunk_rows ? rest : g.chunk_rows) * (shifts[at] - base + offsets[at]);
        }
        A center = norm_join_sum(sum, shared) / (A)g.rows;
        for (int chunk = lane; inside && chunk < g.chunks; chunk += lanes) {
            int64_t rest = g.rows - (int64_t)chunk * g.chunk_rows, at = (int64_t)chunk * g.C + c;
            A d = shifts[at] - base + offsets[at] - center;
            m2 += squares[at] + (A)(rest < g.chunk_rows ? rest : g.chunk_rows) * d * d;
        }
        A var = norm_join_sum(m2, shared) / (A)g.rows;
        if (!writes)
            continue;
        moved_mean = (double)(A)((1 - momentum) * moved_mean + momentum * (double)(base + center));
        moved_var = (double)(A)((1 - momentum) * moved_var + momentum * ((double)var * unbiased));
        mean[(int64_t)group * g.C + c] = base + center;
        invstd[(int64_t)group * g.C + c] = (A)(1 / sqrt((double)var + eps));
    }
    if (writes) {
        running_mean[c] = (A)moved_mean;
        running_var[c] = (A)moved_var;
    }
}

/* Inference: mean, invstd (1, C) from the running statistics (C). */
template <typename A>
__global__ void norm_running_kernel(const A *__restrict__ running_mean, const A *__restrict__ running_var, int C, double eps,
                                    A *__restrict__ mean, A *__restrict__ invstd)
{
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < C) {
        mean[c] = running_mean[c];
        invstd[c] = (A)(1 / sqrt((double)running_var[c] + eps));
    }
}

/* ---- normalising ---- */

enum { APPLY_UNROLL = 2 };

/* x, residual, y: (groups, rows, C); mean, invstd: (groups, C); weight, bias: (C).
 * Bytes: (2 + residual) |x|. */
template <typename T>
__global__ void __launch_bounds__(NORM_THREADS)
    norm_apply_kernel(const T *__restrict__ x, const T *__restrict__ residual, norm_grid g, const accumulator<T> *__restrict__ mean,
                      const accumulator<T> *__restrict__ invstd, const accumulator<T> *__restrict__ weight,
                      const accumulator<T> *__restrict__ bias, bool relu, T *__restrict__ y)
{
    typedef accumulator<T> A;
    enum { V = vector_size<T>, U = APPLY_UNROLL };
    norm_place p = norm_place_of<T>(g, false);
    if (p.left <= 0)
        return;
    A center[V], scale[V], shift[V];
#pragma unroll
    for (int i = 0; i < V; i++) {
        int c = p.channel + (i < p.left ? i : 0), at = p.group * g.C + c;
        center[i] = mean[at];
        scale[i] = invstd[at] * weight[c];
        shift[i] = bias[c];
    }
    vector<T> v[U], r[U];
    int64_t step = (int64_t)g.down * g.C;
    for (int row = p.row; row < p.rows; row += U * g.down) {
        int count = norm_rows_left(g, p, row);
        int64_t at = p.at + (int64_t)row * g.C;
        channels_load_rows(v, x + at, step, count, p.left, g.whole);
        if (residual)
            channels_load_rows(r, residual + at, step, count, p.left, g.whole);
#pragma unroll
        for (int u = 0; u < U; u++) {
            if (u >= count)
                break;
#pragma unroll
            for (int i = 0; i < V; i++) {
                A value = (widen(v[u].item[i]) - center[i]) * scale[i] + shift[i];
                if (residual)
                    value += widen(r[u].item[i]);
                v[u].item[i] = narrow<T>(relu && value <= 0 ? A(0) : value);
            }
            vector_store(y + at + u * step, v[u], p.left, g.whole);
        }
    }
}

/* ---- the row ---- */

/* Statistics of x into mean and invstd; running statistics moved. */
template <typename T> static int train(const asen_call *call, const norm_grid *g)
{
    typedef accumulator<T> A;
    double momentum = call->attrs->batch_norm.momentum, eps = call->attrs->batch_norm.eps;
    size_t bytes = (size_t)norm_partial_at(*g, 3, 0, 0) * sizeof(A);
    void *partial = NULL;
    int status = ASEN_OK;
    if (g->chunks > 0) {
        CUDA_OK(cuda_scratch_new(call, bytes, &partial));
        status = ASEN_LAUNCH(norm_statistics_kernel<T>, norm_blocks(g), NORM_THREADS, 0, input<T>(call, 0), *g, (A *)partial);
    }
    if (status == ASEN_OK)
        status = ASEN_LAUNCH(norm_join_kernel<A>, norm_join_blocks(g), norm_join_threads(g), 0,
                             (const A *)partial, *g, momentum, eps, static_cast<A *>(asen_tensor_data(call->in[3])),
                             static_cast<A *>(asen_tensor_data(call->in[4])), output<A>(call, 1), output<A>(call, 2));
    if (partial != NULL)
        cuda_scratch_free(call, partial, bytes);
    return status;
}

template <typename T> static int norm(const asen_call *call)
{
    typedef accumulator<T> A;
    bool training = call->attrs->batch_norm.training != 0;
    const asen_tensor *residual = cuda_optional(call, 5);
    const T *x = input<T>(call, 0), *r = residual ? input<T>(call, 5) : nullptr;
    T *y = output<T>(call, 0);
    norm_grid g;
    CUDA_OK(norm_grid_make<T>(call->in[0], training ? call->attrs->batch_norm.groups : 1,
                              channels_whole<T>(call->in[0]->shape[1], x, y, r), &g));
    if (g.C == 0)
        return ASEN_OK;
    if (training)
        CUDA_OK(train<T>(call, &g));
    else
        CUDA_OK(ASEN_LAUNCH(norm_running_kernel<A>, (unsigned)ceil_div(g.C, 128), 128, 0, input<A>(call, 3), input<A>(call, 4), g.C,
                            call->attrs->batch_norm.eps, output<A>(call, 1), output<A>(call, 2)));
    if (g.chunks == 0)
        return ASEN_OK;
    return ASEN_LAUNCH(norm_apply_kernel<T>, norm_blocks(&g), NORM_THREADS, 0, x, r, g, (const A *)output<A>(call, 1),
                       (const A *)output<A>(call, 2), input<A>(call, 1), input<A>(call, 2),
                       call->attrs->batch_norm.relu != 0, y);
}

/* in: x weight bias running_mean running_var residual?; out: y mean invstd */
extern "C" int cuda_batch_norm(const asen_call *call)
{
    const asen_tensor *x = call->in[0], *residual = cuda_optional(call, 5);
    for (int i = 1; i < 5; i++)
        if (call->in[i]->dtype != norm_parameter_dtype(x))
            return ASEN_DECLINED;
    if (residual && residual->dtype != x->dtype)
        return ASEN_DECLINED;
    CUDA_FLOAT_SWITCH(x->dtype, T, { return norm<T>(call); });
    return ASEN_DECLINED;
}
