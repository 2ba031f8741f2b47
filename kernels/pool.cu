/* Max pooling over NHWC memory.
 *
 * A thread takes a vector of channels of one pixel. Both directions gather, so nothing is added up
 * with atomics: the forward looks through its window, the gradient through the windows that could
 * have chosen its pixel. Windows overlap in the cache; from memory every byte comes once:
 * forward |x| + |y| + |index|, gradient |dy| + |index| + |dx|. */
#include "channels.cuh"

enum { POOL_THREADS = 256 };

typedef struct pool_window {
    int kernel[2], stride[2], padding[2];
    int H, W, P, Q, C; /* x (N, C, H, W), y (N, C, P, Q) */
    int64_t N;
    int across;        /* threads along C */
    bool whole;        /* vectors may be used (channels.cuh) */
} pool_window;

/* V int32 indices in loads and stores of 16 bytes at most. */
template <typename T> struct index_vector {
    enum { V = vector_size<T>, PART = V < 4 ? V : 4 };
    int item[V];

    __device__ __forceinline__ void load(const int *__restrict__ p, int left, bool whole)
    {
#pragma unroll
        for (int i = 0; i < V; i += PART) {
            vector_of<int, PART> part;
            vector_load(part, p + i, left - i, whole, -1);
#pragma unroll
            for (int j = 0; j < PART; j++)
                item[i + j] = part.item[j];
        }
    }
    __device__ __forceinline__ void store(int *__restrict__ p, int left, bool whole) const
    {
#pragma unroll
        for (int i = 0; i < V; i += PART) {
            vector_of<int, PART> part;
#pragma unroll
            for (int j = 0; j < PART; j++)
                part.item[j] = item[i + j];
            vector_store(p + i, part, left - i, whole);
        }
    }
};

/* The thread's first pixel of a plane, and the step to its next. */
__device__ __forceinline__ int pool_first(const pool_window &w) { return blockIdx.x * (POOL_THREADS / w.across) + threadIdx.x / w.across; }
__device__ __forceinline__ int pool_step(const pool_window &w) { return gridDim.x * (POOL_THREADS / w.across); }

/* x (N, H, W, C) to y, index (N, P, Q, C). The first of equals counts, and a NaN before all. */
template <typename T>
__global__ void __launch_bounds__(POOL_THREADS, 4)
    max_pool2d_kernel(const T *__restrict__ x, pool_window w, T *__restrict__ y, int *__restrict__ index)
{
    enum { V = vector_size<T> };
    for (int64_t n = blockIdx.y; n < w.N; n += gridDim.y)
        for (int pixel = pool_first(w); pixel < w.P * w.Q; pixel += pool_step(w)) {
            int h0 = pixel / w.Q * w.stride[0] - w.padding[0], w0 = pixel % w.Q * w.stride[1] - w.padding[1];
            for (int c = (threadIdx.x & (w.across - 1)) * V; c < w.C; c += w.across * V) {
                const T *plane = x + n * w.H * w.W * w.C + c;
                vector<T> v;
                accumulator<T> best[V];
                index_vector<T> at;
#pragma unroll
                for (int i = 0; i < V; i++) {
                    best[i] = -INFINITY;
                    at.item[i] = -1;
                }
                for (int h = h0 < 0 ? 0 : h0; h < h0 + w.kernel[0] && h < w.H; h++)
                    for (int q = w0 < 0 ? 0 : w0; q < w0 + w.kernel[1] && q < w.W; q++) {
                        int here = h * w.W + q;
                        vector_load(v, plane + (int64_t)here * w.C, w.C - c, w.whole);
#pragma unroll
                        for (int i = 0; i < V; i++) {
                            accumulator<T> value = widen(v.item[i]);
                            if (at.item[i] < 0 || value > best[i] || (value != value && best[i] == best[i])) {
                                best[i] = value;
                                at.item[i] = here;
                            }
                        }
                    }
#pragma unroll
                for (int i = 0; i < V; i++)
                    v.item[i] = narrow<T>(best[i]);
                int64_t to = (n * w.P * w.Q + pixel) * w.C + c;
                vector_store(y + to, v, w.C - c, w.whole);
                at.store(index + to, w.C - c, w.whole);
            }
        }
}

/* The windows [*first, *last] of `count` that cover a coordinate. */
__device__ __forceinline__ void pool_covering(int at, int kernel, int stride, int padding, int count, int *first, int *last)
{
    int end = at + padding, begin = end - kernel + 1;
    *first = begin <= 0 ? 0 : (begin + stride - 1) / stride;
    *last = end / stride < count - 1 ? end / stride : count - 1;
}

/* dy, index (N, P, Q, C) to dx (N, H, W, C): the sum of dy where index is the pixel, in window order. */
template <typename T>
__global__ void __launch_bounds__(POOL_THREADS, 4)
    max_pool2d_grad_kernel(const T *__restrict__ dy, const int *__restrict__ index, pool_window w, T *__restrict__ dx)
{
    enum { V = vector_size<T> };
    for (int64_t n = blockIdx.y; n < w.N; n += gridDim.y)
        for (int pixel = pool_first(w); pixel < w.H * w.W; pixel += pool_step(w)) {
            int p0, p1, q0, q1;
            pool_covering(pixel / w.W, w.kernel[0], w.stride[0], w.padding[0], w.P, &p0, &p1);
            pool_covering(pixel % w.W, w.kernel[1], w.stride[1], w.padding[1], w.Q, &q0, &q1);
            for (int c = (threadIdx.x & (w.across - 1)) * V; c < w.C; c += w.across * V) {
                int64_t plane = n * w.P * w.Q * w.C + c;
                vector<T> v;
                accumulator<T> sum[V];
                index_vector<T> at;
#pragma unroll
                for (int i = 0; i < V; i++)
                    sum[i] = 0;
                for (int p = p0; p <= p1; p++)
                    for (int q = q0; q <= q1; q++) {
                        int64_t from = plane + (int64_t)(p * w.Q + q) * w.C;
                        at.load(index + from, w.C - c, w.whole);
                        vector_load(v, dy + from, w.C - c, w.whole);
#pragma unroll
                        for (int i = 0; i < V; i++)
                            if (at.item[i] == pixel)
                                sum[i] += widen(v.item[i]);
                    }
#pragma unroll
                for (int i = 0; i < V; i++)
                    v.item[i] = narrow<T>(sum[i]);
                vector_store(dx + (n * w.H * w.W + pixel) * w.C + c, v, w.C - c, w.whole);
            }
        }
}

/* ---- the rows ---- */

/* x: of which H, W are pooled; y: P, Q. Sizes beyond int32 a plane are declined. */
static int window_make(const asen_tensor *x, const asen_tensor *y, const int64_t *kernel, const int64_t *stride,
                       const int64_t *padding, pool_window *w)
{
    int64_t limit = INT32_MAX / 4;
    if (x->shape[1] > limit || x->shape[2] > limit || x->shape[3] > limit || x->shape[2] * x->shape[3] > limit ||
        y->shape[2] * y->shape[3] > limit)
        return ASEN_DECLINED;
    for (int i = 0; i < 2; i++) {
        if (kernel[i] > limit || stride[i] > limit || padding[i] > limit)
            return ASEN_DECLINED;
        w->kernel[i] = (int)kernel[i];
        w->stride[i] = (int)stride[i];
        w->padding[i] = (int)padding[i];
    }
    w->N = x->shape[0];
    w->C = (int)x->shape[1];
    w->H = (int)x->shape[2];
    w->W = (int)x->shape[3];
    w->P = (int)y->shape[2];
    w->Q = (int)y->shape[3];
    return ASEN_OK;
}

/* Chooses vectors and threads along C; the blocks for `pixels` a plane. */
template <typename T> static dim3 pool_blocks(pool_window *w, int pixels, const void *a, const void *b, const void *index)
{
    w->whole = channels_whole<T>(w->C, a, b, index);
    w->across = channels_threads(ceil_div(w->C, vector_size<T>));
    int64_t down = ceil_div(pixels, POOL_THREADS / w->across);
    return dim3((unsigned)(down < 65535 ? down : 65535), (unsigned)(w->N < 65535 ? w->N : 65535));
}

extern "C" int cuda_max_pool2d(const asen_call *call)
{
    const asen_tensor *x = call->in[0];
    pool_window w;
    CUDA_OK(window_make(x, call->out[0], call->attrs->max_pool2d.kernel_size, call->attrs->max_pool2d.stride,
                        call->attrs->max_pool2d.padding, &w));
    if (w.N == 0 || w.C == 0 || w.P * w.Q == 0)
        return ASEN_OK;
    int *index = output<int>(call, 1);
    CUDA_FLOAT_SWITCH(x->dtype, T, {
        T *y = output<T>(call, 0);
        dim3 blocks = pool_blocks<T>(&w, w.P * w.Q, input<T>(call, 0), y, index);
        return ASEN_LAUNCH(max_pool2d_kernel<T>, blocks, POOL_THREADS, 0, input<T>(call, 0), w, y, index);
    });
    return ASEN_DECLINED;
}

/* in: dy index; out: dx */
extern "C" int cuda_max_pool2d_grad(const asen_call *call)
{
    const asen_tensor *dx = call->out[0];
    pool_window w;
    CUDA_OK(window_make(dx, call->in[0], call->attrs->max_pool2d_grad.kernel_size, call->attrs->max_pool2d_grad.stride,
                        call->attrs->max_pool2d_grad.padding, &w));
    if (w.N == 0 || w.C == 0 || w.H * w.W == 0)
        return ASEN_OK;
    const int *index = input<int>(call, 1);
    CUDA_FLOAT_SWITCH(dx->dtype, T, {
        T *to = output<T>(call, 0);
        dim3 blocks = pool_blocks<T>(&w, w.H * w.W, input<T>(call, 0), to, index);
        return ASEN_LAUNCH(max_pool2d_grad_kernel<T>, blocks, POOL_THREADS, 0, input<T>(call, 0), index, w, to);
    });
    return ASEN_DECLINED;
}
