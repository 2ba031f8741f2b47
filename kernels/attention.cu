/* Attribute-aware spatial attention (ASEN++, eq. 1-4), float32 and float64, over NHWC memory.
 *
 * x (B, C, H, W), z and k (B, Cc, H, W); q (B, Cc); m (B, H, W); v (B, C). With a pixel's score
 * s = sum_c q_c k_c / sqrt(Cc):
 *   k = tanh(z);  m = softmax over pixels of s;  v = sum over pixels of m x
 * and, with t = dm + sum_c dv_c x_c of a pixel and ds = m (t - sum over pixels of m t):
 *   dx = m dv;  dq = sum over pixels of ds k / sqrt(Cc);  dz = ds q / sqrt(Cc) (1 - k^2)
 *
 * Each direction is two kernels: one along a pixel's channels (a warp a pixel), one along an
 * image's pixels (a block an image and tile of channels). Between them stands one number a pixel,
 * in scratch memory. So every large array passes once, and memory is the bound: forward
 * |z| + |k| + |x|, gradient |x| + |dx| + |k| + |dz|. */
#include "block.cuh"
#include "channels.cuh"

enum { ATTENTION_THREADS = 256, ATTENTION_WARPS = ATTENTION_THREADS / 32 };

typedef struct attention_shape {
    int64_t B, pixels; /* pixels: H * W */
    int C, Cc;
    int groups; /* of ATTENTION_WARPS pixels, in an image */
    bool whole; /* vectors may be used on all of them (channels.cuh) */
} attention_shape;

__device__ __forceinline__ float attention_tanh(float x) { return tanhf(x); }
__device__ __forceinline__ double attention_tanh(double x) { return tanh(x); }
__device__ __forceinline__ float attention_exp(float x) { return expf(x); }
__device__ __forceinline__ double attention_exp(double x) { return exp(x); }

/* The warp's pixel of B * pixels, or -1; *image: whose it is. Neighbouring warps share an image, and so
 * its q or dv in the cache. */
__device__ __forceinline__ int64_t attention_pixel(const attention_shape &s, int64_t *image)
{
    int64_t pixel = (int64_t)(blockIdx.x % (unsigned)s.groups) * ATTENTION_WARPS + threadIdx.x / 32;
    *image = blockIdx.x / (unsigned)s.groups;
    return pixel < s.pixels ? *image * s.pixels + pixel : -1;
}

/* z (B, pixels, Cc), q (B, Cc) to k (B, pixels, Cc), score (B, pixels). Bytes: 2 |z|. */
template <typename T>
__global__ void __launch_bounds__(ATTENTION_THREADS, 3)
    attention_score_kernel(const T *__restrict__ z, const T *__restrict__ q, attention_shape s, T scale, T *__restrict__ k,
                           T *__restrict__ score)
{
    enum { V = vector_size<T> };
    int64_t image, pixel = attention_pixel(s, &image);
    T sum = 0;
    if (pixel >= 0)
#pragma unroll 2
        for (int c = (threadIdx.x % 32) * V; c < s.Cc; c += 32 * V) {
            vector<T> key, query;
            vector_load(key, z + pixel * s.Cc + c, s.Cc - c, s.whole);
            vector_load(query, q + image * s.Cc + c, s.Cc - c, s.whole);
#pragma unroll
            for (int i = 0; i < V; i++) {
                key.item[i] = attention_tanh(key.item[i]);
                sum += key.item[i] * query.item[i];
            }
            vector_store(k + pixel * s.Cc + c, key, s.Cc - c, s.whole);
        }
    sum = warp_sum(sum);
    if (pixel >= 0 && threadIdx.x % 32 == 0)
        score[pixel] = sum * scale;
}

/* Where a thread stands in a kernel along pixels: channels side by side, pixels down. */
typedef struct attention_place {
    int64_t image;
    int tile, channel, left; /* the first of its vector of channels, and how many there are from it on */
    int pixel, step;
} attention_place;

template <typename T> __device__ __forceinline__ attention_place attention_place_of(int channels, int across, int tiles)
{
    attention_place p;
    p.image = blockIdx.x / (unsigned)tiles;
    p.tile = (int)(blockIdx.x % (unsigned)tiles);
    p.channel = (p.tile * across + (int)(threadIdx.x & (across - 1))) * vector_size<T>;
    p.left = channels - p.channel;
    p.pixel = threadIdx.x / across;
    p.step = ATTENTION_THREADS / across;
    return p;
}

/* Adds up sum over the pixels of a block, as a tree, and stores it in `to` (the image's channels). */
template <typename T>
__device__ __forceinline__ void attention_store_sum(T (&sum)[vector_size<T>], T *tile, const attention_place &p, int across,
                                                    T *__restrict__ to, bool whole)
{
    enum { V = vector_size<T> };
    block_tree<ATTENTION_THREADS>(sum, tile, p.pixel, p.step, across, sum_of());
    if (p.pixel != 0 || p.left <= 0)
        return;
    vector<T> v;
#pragma unroll
    for (int i = 0; i < V; i++)
        v.item[i] = sum[i];
    vector_store(to + p.channel, v, p.left, whole);
}

/* x (B, pixels, C), score (B, pixels) to m (B, pixels), v (B, C). A block makes the softmax of its
 * image anew: its scores are few beside its share of x. Bytes: |x|. */
template <typename T>
__global__ void __launch_bounds__(ATTENTION_THREADS, 3)
    attention_value_kernel(const T *__restrict__ x, const T *__restrict__ score, attention_shape s, int across, int tiles,
                           T *__restrict__ m, T *__restrict__ v)
{
    enum { V = vector_size<T>, U = 4 };
    ASEN_SHARED(T, tile, [V * ATTENTION_THREADS]);
    attention_place p = attention_place_of<T>(s.C, across, tiles);
    const T *mine = score + p.image * s.pixels;
    T best = -INFINITY, total = 0, sum[V];
    for (int64_t i = threadIdx.x; i < s.pixels; i += ATTENTION_THREADS)
        best = max_of()(best, mine[i]);
    best = warp_max(best);
    if (threadIdx.x % 32 == 0)
        tile[threadIdx.x / 32] = best;
    __syncthreads();
    best = warp_max(tile[threadIdx.x % ATTENTION_WARPS]);
    for (int64_t i = threadIdx.x; i < s.pixels; i += ATTENTION_THREADS)
        total += attention_exp(mine[i] - best);
    total = block_sum(total, tile); /* begins with a barrier: tile has been read */
    if (p.tile == 0)
        for (int64_t i = threadIdx.x; i < s.pixels; i += ATTENTION_THREADS)
            m[p.image * s.pixels + i] = attention_exp(mine[i] - best) / total;
    __syncthreads(); /* tile is about to be used anew */
#pragma unroll
    for (int i = 0; i < V; i++)
        sum[i] = 0;
    if (p.left > 0)
        for (int64_t i = p.pixel; i < s.pixels; i += U * p.step) {
            int count = (int)(s.pixels - i < U * p.step ? (s.pixels - i + p.step - 1) / p.step : U);
            vector<T> values[U];
            channels_load_rows(values, x + (p.image * s.pixels + i) * s.C + p.channel, (int64_t)p.step * s.C, count, p.left,
                                     s.whole);
#pragma unroll
            for (int u = 0; u < U; u++)
                if (u < count) {
                    T weight = attention_exp(mine[i + u * p.step] - best) / total;
#pragma unroll
                    for (int j = 0; j < V; j++)
                        sum[j] += weight * values[u].item[j];
                }
        }
    attention_store_sum<T>(sum, tile, p, across, v + p.image * s.C, s.whole);
}

/* dv (B, C), dm or NULL and m (B, pixels), x (B, pixels, C) to dx (B, pixels, C), t (B, pixels).
 * Bytes: 2 |x|. */
template <typename T>
__global__ void __launch_bounds__(ATTENTION_THREADS, 3)
    attention_grad_pixel_kernel(const T *__restrict__ dv, const T *__restrict__ dm, const T *__restrict__ m, const T *__restrict__ x,
                                attention_shape s, T *__restrict__ dx, T *__restrict__ t)
{
    enum { V = vector_size<T> };
    int64_t image, pixel = attention_pixel(s, &image);
    T weight = pixel >= 0 ? m[pixel] : T(0), sum = 0;
    if (pixel >= 0)
#pragma unroll 2
        for (int c = (threadIdx.x % 32) * V; c < s.C; c += 32 * V) {
            vector<T> value, slope;
            vector_load(value, x + pixel * s.C + c, s.C - c, s.whole);
            vector_load(slope, dv + image * s.C + c, s.C - c, s.whole);
#pragma unroll
            for (int i = 0; i < V; i++) {
                sum += value.item[i] * slope.item[i];
                slope.item[i] *= weight;
            }
            vector_store(dx + pixel * s.C + c, slope, s.C - c, s.whole);
        }
    sum = warp_sum(sum);
    if (pixel >= 0 && threadIdx.x % 32 == 0)
        t[pixel] = sum + (dm ? dm[pixel] : T(0));
}

/* m, t (B, pixels), k (B, pixels, Cc), q (B, Cc) to dz (B, pixels, Cc), dq (B, Cc). Bytes: 2 |k|. */
template <typename T>
__global__ void __launch_bounds__(ATTENTION_THREADS, 3)
    attention_grad_key_kernel(const T *__restrict__ m, const T *__restrict__ t, const T *__restrict__ k, const T *__restrict__ q,
                              attention_shape s, int across, int tiles, T scale, T *__restrict__ dz, T *__restrict__ dq)
{
    enum { V = vector_size<T>, U = 4 };
    ASEN_SHARED(T, tile, [V * ATTENTION_THREADS]);
    attention_place p = attention_place_of<T>(s.Cc, across, tiles);
    const T *weight = m + p.image * s.pixels, *slope = t + p.image * s.pixels;
    T mean = 0, sum[V];
    for (int64_t i = threadIdx.x; i < s.pixels; i += ATTENTION_THREADS)
        mean += weight[i] * slope[i];
    mean = block_sum(mean, tile);
    __syncthreads(); /* tile is about to be used anew */
#pragma unroll
    for (int i = 0; i < V; i++)
        sum[i] = 0;
    if (p.left > 0) {
        vector<T> query;
        vector_load(query, q + p.image * s.Cc + p.channel, p.left, s.whole);
        for (int64_t i = p.pixel; i < s.pixels; i += U * p.step) {
            int count = (int)(s.pixels - i < U * p.step ? (s.pixels - i + p.step - 1) / p.step : U);
            int64_t at = (p.image * s.pixels + i) * s.Cc + p.channel;
            vector<T> keys[U];
            channels_load_rows(keys, k + at, (int64_t)p.step * s.Cc, count, p.left, s.whole);
#pragma unroll
            for (int u = 0; u < U; u++) {
                if (u >= count)
                    break;
                T ds = weight[i + u * p.step] * (slope[i + u * p.step] - mean) * scale;
#pragma unroll
                for (int j = 0; j < V; j++) {
                    T key = keys[u].item[j];
                    sum[j] += ds * key;
                    keys[u].item[j] = ds * query.item[j] * (1 - key * key);
                }
                vector_store(dz + at + (int64_t)u * p.step * s.Cc, keys[u], p.left, s.whole);
            }
        }
    }
    attention_store_sum<T>(sum, tile, p, across, dq + p.image * s.Cc, s.whole);
}

/* ---- the rows ---- */

static int shape_make(const asen_tensor *x, const asen_tensor *q, attention_shape *s)
{
    s->B = x->shape[0];
    s->pixels = x->shape[2] * x->shape[3];
    int64_t groups = ceil_div(s->pixels, ATTENTION_WARPS);
    if (x->shape[1] > INT32_MAX / 64 || q->shape[1] > INT32_MAX / 64 || groups * s->B > INT32_MAX)
        return ASEN_DECLINED;
    s->C = (int)x->shape[1];
    s->Cc = (int)q->shape[1];
    s->groups = (int)groups;
    return ASEN_OK;
}

/* Blocks of a kernel along pixels: an image and a tile of channels each; one where there are none. */
template <typename T> static unsigned tile_blocks(const attention_shape *s, int channels, int *across, int *tiles)
{
    int64_t vectors = channels > 0 ? ceil_div(channels, vector_size<T>) : 1;
    *across = channels_threads(vectors);
    *tiles = (int)ceil_div(vectors, *across);
    return (unsigned)(s->B * *tiles);
}

/* The bytes of one number a pixel, between the two kernels. */
template <typename T> static size_t pixel_bytes(const attention_shape *s) { return (size_t)(s->B * s->pixels) * sizeof(T); }

template <typename T> static int forward(const asen_call *call, attention_shape s)
{
    const T *x = input<T>(call, 0), *z = input<T>(call, 1), *q = input<T>(call, 2);
    T *v = output<T>(call, 0), *m = output<T>(call, 1), *k = output<T>(call, 2), scale = (T)(1 / sqrt((double)s.Cc));
    int across, tiles;
    void *score;
    s.whole = channels_whole<T>(s.C, x, v) && channels_whole<T>(s.Cc, z, q, k);
    CUDA_OK(cuda_scratch_new(call, pixel_bytes<T>(&s), &score));
    int status = ASEN_LAUNCH(attention_score_kernel<T>, (unsigned)(s.B * s.groups), ATTENTION_THREADS, 0, z, q, s, scale, k, (T *)score);
    unsigned blocks = tile_blocks<T>(&s, s.C, &across, &tiles);
    if (status == ASEN_OK)
        status = ASEN_LAUNCH(attention_value_kernel<T>, blocks, ATTENTION_THREADS, 0, x, (const T *)score, s, across, tiles, m, v);
    cuda_scratch_free(call, score, pixel_bytes<T>(&s));
    return status;
}

/* in: x z q; out: v m k */
extern "C" int cuda_spatial_attention(const asen_call *call)
{
    attention_shape s;
    CUDA_OK(shape_make(call->in[0], call->in[2], &s));
    if (s.B == 0)
        return ASEN_OK;
    CUDA_WIDE_SWITCH(call->in[0]->dtype, T, { return forward<T>(call, s); });
    return ASEN_DECLINED;
}

template <typename T> static int backward(const asen_call *call, attention_shape s)
{
    const T *dv = input<T>(call, 0), *dm = input<T>(call, 1), *x = input<T>(call, 2), *q = input<T>(call, 3);
    const T *m = input<T>(call, 4), *k = input<T>(call, 5);
    T *dx = output<T>(call, 0), *dz = output<T>(call, 1), *dq = output<T>(call, 2), scale = (T)(1 / sqrt((double)s.Cc));
    int across, tiles;
    void *t;
    s.whole = channels_whole<T>(s.C, dv, x, dx) && channels_whole<T>(s.Cc, q, k, dz, dq);
    CUDA_OK(cuda_scratch_new(call, pixel_bytes<T>(&s), &t));
    int status = ASEN_LAUNCH(attention_grad_pixel_kernel<T>, (unsigned)(s.B * s.groups), ATTENTION_THREADS, 0, dv, dm, m, x, s, dx, (T *)t);
    unsigned blocks = tile_blocks<T>(&s, s.Cc, &across, &tiles);
    if (status == ASEN_OK)
        status = ASEN_LAUNCH(attention_grad_key_kernel<T>, blocks, ATTENTION_THREADS, 0, m, (const T *)t, k, q, s, across, tiles, scale,
                             dz, dq);
    cuda_scratch_free(call, t, pixel_bytes<T>(&s));
    return status;
}

/* in: dv dm? x q m k; out: dx dz dq */
extern "C" int cuda_spatial_attention_grad(const asen_call *call)
{
    attention_shape s;
    CUDA_OK(shape_make(call->in[2], call->in[3], &s));
    if (s.B == 0)
        return ASEN_OK;
    CUDA_WIDE_SWITCH(call->in[2]->dtype, T, { return backward<T>(call, s); });
    return ASEN_DECLINED;
}
