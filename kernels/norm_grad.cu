/* Gradient of batch norm, over NHWC memory. With d = dy where y > 0 (relu), else dy, and
 * n = (x - mean) invstd, sums being over a group's R rows:
 *
 *   dbias = sum d;  dweight = sum d n, both over all groups;  dresidual = d
 *   dx = weight invstd (d - sum d / R - n sum (d n) / R), in inference weight invstd d
 *
 * The sums (read dy, x, and y with relu), a small kernel that joins them, then dx (reads the same
 * again, writes dx and dresidual): bound by memory, (2 (2 + relu) + 1 + residual) |x| bytes. In
 * inference the second reading of x falls away. */
#include "norm.cuh"

/* ---- sums ---- */

enum { GRAD_UNROLL = 2 };

/* What the kernels over x read and write: (groups, rows, C) each. y: NULL without relu. */
template <typename T> struct norm_grad_arrays {
    const T *dy, *x, *y;
    T *dx, *dresidual;
};

/* d of U rows, rounded as dresidual is: in v, from dy and y. */
template <typename T, int U>
__device__ __forceinline__ void norm_cut(vector<T> (&v)[U], const vector<T> (&y)[U], int count)
{
#pragma unroll
    for (int u = 0; u < U; u++)
        if (u < count)
#pragma unroll
            for (int i = 0; i < vector_size<T>; i++)
                if (!(widen(y[u].item[i]) > 0))
                    v[u].item[i] = narrow<T>(0);
}

/* partial: sum d and sum d (x - mean) of each chunk. mean: (groups, C). Bytes: (2 + relu) |x|. */
template <typename T>
__global__ void __launch_bounds__(NORM_THREADS)
    norm_grad_sums_kernel(norm_grad_arrays<T> a, norm_grid g, const accumulator<T> *__restrict__ mean,
                          accumulator<T> *__restrict__ partial)
{
    typedef accumulator<T> A;
    enum { V = vector_size<T>, U = GRAD_UNROLL };
    ASEN_SHARED(A, tile, [2 * V * NORM_THREADS]);
    const T *__restrict__ dy = a.dy, *__restrict__ x = a.x, *__restrict__ y = a.y;
    norm_place p = norm_place_of<T>(g, true);
    A center[V], sums[2 * V]; /* of d, then of d (x - mean) */
#pragma unroll
    for (int i = 0; i < 2 * V; i++)
        sums[i] = 0;
    if (p.left > 0) {
        vector<T> d[U], v[U], cut[U];
        int64_t step = (int64_t)g.down * g.C;
#pragma unroll
        for (int i = 0; i < V; i++)
            center[i] = mean[p.group * g.C + p.channel + (i < p.left ? i : 0)];
        for (int row = p.row; row < p.rows; row += U * g.down) {
            int count = norm_rows_left(g, p, row);
            int64_t at = p.at + (int64_t)row * g.C;
            channels_load_rows(d, dy + at, step, count, p.left, g.whole);
            channels_load_rows(v, x + at, step, count, p.left, g.whole);
            if (y) {
                channels_load_rows(cut, y + at, step, count, p.left, g.whole);
                norm_cut<T, U>(d, cut, count);
            }
#pragma unroll
            for (int u = 0; u < U; u++)
                if (u < count)
#pragma unroll
                    for (int i = 0; i < V; i++) {
                        A slope = widen(d[u].item[i]);
                        sums[i] += slope;
                        sums[V + i] += slope * (widen(v[u].item[i]) - center[i]);
                    }
        }
    }
    block_tree<NORM_THREADS>(sums, tile, p.row, g.down, g.across, sum_of());
    if (p.row != 0)
        return;
#pragma unroll
    for (int i = 0; i < V; i++)
        if (i < p.left) {
            partial[norm_partial_at(g, 0, p.group, p.chunk) + p.channel + i] = sums[i];
            partial[norm_partial_at(g, 1, p.group, p.chunk) + p.channel + i] = sums[V + i];
        }
}

/* dx = scale (d + flat + slope (x - mean)): what a group and channel needs, [3][groups][C]. */
enum { COEFFICIENTS = 3 };

/* Joins the chunks, in order. partial: [2][groups][chunks][C]; invstd: (groups, C); weight, dweight,
 * dbias: (C); coefficients: scale, flat, slope. Bytes: the partial sums. */
template <typename A>
__global__ void __launch_bounds__(JOIN_MAX_THREADS, 1)
    norm_grad_join_kernel(const A *__restrict__ partial, norm_grid g, bool training, const A *__restrict__ weight,
                          const A *__restrict__ invstd, A *__restrict__ dweight, A *__restrict__ dbias, A *__restrict__ coefficients)
{
    ASEN_SHARED(A, shared, [JOIN_MAX_THREADS / 32 * JOIN_CHANNELS]);
    int c = blockIdx.x * JOIN_CHANNELS + threadIdx.x % JOIN_CHANNELS;
    int lane = threadIdx.x / JOIN_CHANNELS, lanes = blockDim.x / JOIN_CHANNELS;
    bool inside = c < g.C, writes = inside && lane == 0;
    A total = 0, total_n = 0;
    for (int group = 0; group < g.groups; group++) {
        const A *flat = partial + norm_partial_at(g, 0, group, 0), *slope = partial + norm_partial_at(g, 1, group, 0);
        A sum = 0, sum_n = 0;
        for (int chunk = lane; inside && chunk < g.chunks; chunk += lanes) {
            sum += flat[(int64_t)chunk * g.C + c];
            sum_n += slope[(int64_t)chunk * g.C + c];
        }
        sum = norm_join_sum(sum, shared);
        sum_n = norm_join_sum(sum_n, shared);
        if (!writes)
            continue;
        int64_t at = (int64_t)group * g.C + c, kind = (int64_t)g.groups * g.C;
        A inverse = invstd[at];
        total += sum;
        total_n += sum_n * inverse;
        coefficients[at] = weight[c] * inverse;
        coefficients[kind + at] = training ? -sum / (A)g.rows : A(0);
        coefficients[2 * kind + at] = training ? -sum_n * inverse * inverse / (A)g.rows : A(0);
    }
    if (writes) {
        dbias[c] = total;
        dweight[c] = total_n;
    }
}

/* ---- dx ---- */

/* mean: (groups, C); coefficients: [3][groups][C]. Bytes: (2 + training + relu + residual) |x|. */
template <typename T>
__global__ void __launch_bounds__(NORM_THREADS)
    norm_grad_apply_kernel(norm_grad_arrays<T> a, norm_grid g, bool training, const accumulator<T> *__restrict__ mean,
                           const accumulator<T> *__restrict__ coefficients)
{
    typedef accumulator<T> A;
    enum { V = vector_size<T>, U = GRAD_UNROLL };
    const T *__restrict__ dy = a.dy, *__restrict__ x = a.x, *__restrict__ y = a.y;
    T *__restrict__ dx = a.dx, *__restrict__ dresidual = a.dresidual;
    norm_place p = norm_place_of<T>(g, false);
    if (p.left <= 0)
        return;
    A center[V], scale[V], flat[V], slope[V];
#pragma unroll
    for (int i = 0; i < V; i++) {
        int at = p.group * g.C + p.channel + (i < p.left ? i : 0), kind = g.groups * g.C;
        center[i] = mean[at];
        scale[i] = coefficients[at];
        flat[i] = coefficients[kind + at];
        slope[i] = coefficients[2 * kind + at];
    }
    vector<T> d[U], v[U], cut[U];
    int64_t step = (int64_t)g.down * g.C;
    for (int row = p.row; row < p.rows; row += U * g.down) {
        int count = norm_rows_left(g, p, row);
        int64_t at = p.at + (int64_t)row * g.C;
        channels_load_rows(d, dy + at, step, count, p.left, g.whole);
        if (training)
            channels_load_rows(v, x + at, step, count, p.left, g.whole);
        if (y) {
            channels_load_rows(cut, y + at, step, count, p.left, g.whole);
            norm_cut<T, U>(d, cut, count);
        }
#pragma unroll
        for (int u = 0; u < U; u++) {
            if (u >= count)
                break;
            if (dresidual)
                vector_store(dresidual + at + u * step, d[u], p.left, g.whole);
#pragma unroll
            for (int i = 0; i < V; i++) {
                A value = widen(d[u].item[i]);
                if (training)
                    value += flat[i] + slope[i] * (widen(v[u].item[i]) - center[i]);
                d[u].item[i] = narrow<T>(scale[i] * value);
            }
            vector_store(dx + at + u * step, d[u], p.left, g.whole);
        }
    }
}

/* ---- the row ---- */

/* scratch: the partial sums, then the coefficients. */
template <typename T> static int launch(const asen_call *call, const norm_grad_arrays<T> *a, const norm_grid *g, accumulator<T> *scratch)
{
    typedef accumulator<T> A;
    bool training = call->attrs->batch_norm_grad.training != 0;
    A *coefficients = scratch + norm_partial_at(*g, 2, 0, 0);
    const A *mean = input<A>(call, 4);
    if (g->chunks > 0)
        CUDA_OK(ASEN_LAUNCH(norm_grad_sums_kernel<T>, norm_blocks(g), NORM_THREADS, 0, *a, *g, mean, scratch));
    CUDA_OK(ASEN_LAUNCH(norm_grad_join_kernel<A>, norm_join_blocks(g), norm_join_threads(g), 0, (const A *)scratch,
                        *g, training, input<A>(call, 3), input<A>(call, 5), output<A>(call, 1), output<A>(call, 2), coefficients));
    if (g->chunks > 0)
        CUDA_OK(ASEN_LAUNCH(norm_grad_apply_kernel<T>, norm_blocks(g), NORM_THREADS, 0, *a, *g, training, mean,
                            (const A *)coefficients));
    return ASEN_OK;
}

template <typename T> static int norm_grad(const asen_call *call)
{
    typedef accumulator<T> A;
    int64_t groups = call->attrs->batch_norm_grad.training ? call->attrs->batch_norm_grad.groups : 1;
    norm_grad_arrays<T> a;
    norm_grid g;
    void *scratch;
    a.dy = input<T>(call, 0);
    a.x = input<T>(call, 1);
    a.y = call->attrs->batch_norm_grad.relu ? input<T>(call, 2) : nullptr;
    a.dx = output<T>(call, 0);
    a.dresidual = call->attrs->batch_norm_grad.residual ? output<T>(call, 3) : nullptr;
    CUDA_OK(norm_grid_make<T>(call->in[1], groups, channels_whole<T>(call->in[1]->shape[1], a.dy, a.x, a.y, a.dx, a.dresidual), &g));
    if (g.C == 0)
        return ASEN_OK;
    size_t bytes = (size_t)(norm_partial_at(g, 2, 0, 0) + COEFFICIENTS * groups * g.C) * sizeof(A);
    CUDA_OK(cuda_scratch_new(call, bytes, &scratch));
    int status = launch<T>(call, &a, &g, static_cast<A *>(scratch));
    cuda_scratch_free(call, scratch, bytes);
    return status;
}

/* in: dy x y weight mean invstd; out: dx dweight dbias dresidual */
extern "C" int cuda_batch_norm_grad(const asen_call *call)
{
    const asen_tensor *x = call->in[1];
    for (int i = 3; i < 6; i++)
        if (call->in[i]->dtype != norm_parameter_dtype(x))
            return ASEN_DECLINED;
    if (call->in[0]->dtype != x->dtype || call->in[2]->dtype != x->dtype)
        return ASEN_DECLINED;
    CUDA_FLOAT_SWITCH(x->dtype, T, { return norm_grad<T>(call); });
    return ASEN_DECLINED;
}
