/* See conv_direct.h. One thread an output element, sums in a fixed order, float accumulators (double
 * for float64): plain, for shapes that cuDNN leaves out. Neighbouring threads differ in the channel,
 * so one operand is the same for a whole warp and the other lies side by side (forward: each thread
 * walks its own filter, in pieces of 16 bytes where channels allow). Bound by loads from L1 and L2:
 * about two an arithmetic operation; cuDNN is some ten times faster. */
#include "conv_direct.h"

#include "vector.cuh"

enum { BLOCK = 256 };

/* What kernels need of a conv_spec; sizes of one image and one filter fit 32 bits. */
struct geometry {
    int C, H, W, O, P, Q, KH, KW, SH, SW, PH, PW, DH, DW, c_part, o_part;
    int64_t N, count; /* images; output elements */
};

/* The sum over c < n of a[c] b[c], c ascending, in loads of V elements. */
template <typename T, int V>
__device__ __forceinline__ accumulator<T> dot(const T *a, const T *b, int n, accumulator<T> sum)
{
    for (int c = 0; c < n; c += V) {
        vector_of<T, V> u, v;
        vector_load(u, a + c);
        vector_load(v, b + c);
#pragma unroll
        for (int i = 0; i < V; i++)
            sum += widen(u.item[i]) * widen(v.item[i]);
    }
    return sum;
}

/* y (N, P, Q, O) = sum over kh, kw, c of x (N, H, W, C) w (O, KH, KW, C / groups) */
template <typename T, int V>
__global__ void __launch_bounds__(BLOCK) direct_forward(geometry g, const T *x, const T *w, T *y)
{
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < g.count; i += (int64_t)gridDim.x * BLOCK) {
        int64_t at = i / g.O, row = at / g.Q;
        int o = (int)(i - at * g.O), q = (int)(at - row * g.Q), p = (int)(row % g.P);
        const T *image = x + row / g.P * g.H * g.W * g.C + o / g.o_part * g.c_part;
        const T *filter = w + (int64_t)o * g.KH * g.KW * g.c_part;
        accumulator<T> sum = 0;
        for (int kh = 0; kh < g.KH; kh++) {
            int h = p * g.SH - g.PH + kh * g.DH;
            if (h < 0 || h >= g.H)
                continue;
            for (int kw = 0; kw < g.KW; kw++) {
                int v = q * g.SW - g.PW + kw * g.DW;
                if (v >= 0 && v < g.W)
                    sum = dot<T, V>(image + ((int64_t)h * g.W + v) * g.C, filter + (kh * g.KW + kw) * g.c_part,
                                    g.c_part, sum);
            }
        }
        y[i] = narrow<T>(sum);
    }
}

/* dx (N, H, W, C) = sum over kh, kw, o of dy (N, P, Q, O) w where (p, q) read (h, v) through (kh, kw) */
template <typename T>
__global__ void __launch_bounds__(BLOCK) direct_grad_input(geometry g, const T *dy, const T *w, T *dx)
{
    int filter = g.KH * g.KW * g.c_part;
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < g.count; i += (int64_t)gridDim.x * BLOCK) {
        int64_t at = i / g.C, row = at / g.W, image = row / g.H;
        int c = (int)(i - at * g.C), v = (int)(at - row * g.W), h = (int)(row - image * g.H);
        int first = c / g.c_part * g.o_part;
        accumulator<T> sum = 0;
        for (int kh = 0; kh < g.KH; kh++) {
            int down = h + g.PH - kh * g.DH, p = down / g.SH;
            if (down < 0 || p * g.SH != down || p >= g.P)
                continue;
            for (int kw = 0; kw < g.KW; kw++) {
                int right = v + g.PW - kw * g.DW, q = right / g.SW;
                if (right < 0 || q * g.SW != right || q >= g.Q)
                    continue;
                const T *gradient = dy + ((image * g.P + p) * g.Q + q) * g.O + first;
                const T *weight = w + (int64_t)first * filter + (kh * g.KW + kw) * g.c_part + c % g.c_part;
                for (int o = 0; o < g.o_part; o++)
                    sum += widen(gradient[o]) * widen(weight[(int64_t)o * filter]);
            }
        }
        dx[i] = narrow<T>(sum);
    }
}

/* dw (O, KH, KW, C / groups) = sum over n, p, q of dy (N, P, Q, O) x (N, H, W, C). Rows of dy are summed
 * in the accumulator, the rows' sums in double: there may be a million of them. */
template <typename T>
__global__ void __launch_bounds__(BLOCK) direct_grad_weight(geometry g, const T *dy, const T *x, T *dw)
{
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < g.count; i += (int64_t)gridDim.x * BLOCK) {
        int64_t at = i / g.c_part, tap = at / g.KW;
        int c = (int)(i - at * g.c_part), kw = (int)(at - tap * g.KW), kh = (int)(tap % g.KH), o = (int)(tap / g.KH);
        int channel = o / g.o_part * g.c_part + c;
        double sum = 0;
        for (int64_t n = 0; n < g.N; n++)
            for (int p = 0; p < g.P; p++) {
                int h = p * g.SH - g.PH + kh * g.DH;
                if (h < 0 || h >= g.H)
                    continue;
                const T *gradient = dy + (n * g.P + p) * g.Q * g.O + o;
                const T *image = x + (n * g.H + h) * g.W * g.C + channel;
                accumulator<T> part = 0;
                for (int q = 0; q < g.Q; q++) {
                    int v = q * g.SW - g.PW + kw * g.DW;
                    if (v >= 0 && v < g.W)
                        part += widen(gradient[(int64_t)q * g.O]) * widen(image[(int64_t)v * g.C]);
                }
                sum += part;
            }
        dw[i] = narrow<T>((accumulator<T>)sum);
    }
}

/* y = relu(y + residual + bias) in place; y, residual (count / O, O), bias (O). Bound by memory: reads
 * and writes y, reads residual. V divides O. */
template <typename T, int V>
__global__ void __launch_bounds__(BLOCK) epilogue(T *y, const T *bias, const T *residual, int64_t count, int O, bool relu)
{
    for (int64_t i = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * V; i < count; i += (int64_t)gridDim.x * BLOCK * V) {
        vector_of<T, V> a, r = {};
        int o = (int)(i % O);
        vector_load(a, y + i);
        if (residual != nullptr)
            vector_load(r, residual + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            accumulator<T> value = widen(a.item[j]);
            if (residual != nullptr)
                value += widen(r.item[j]);
            if (bias != nullptr)
                value += widen(bias[o + j]);
            a.item[j] = narrow<T>(relu && value <= 0 ? accumulator<T>(0) : value);
        }
        vector_store(y + i, a);
    }
}

static geometry geometry_of(const conv_spec *s)
{
    geometry g = {};
    g.C = (int)s->c, g.H = (int)s->h, g.W = (int)s->w, g.O = (int)s->o, g.P = (int)s->p, g.Q = (int)s->q;
    g.KH = (int)s->kh, g.KW = (int)s->kw, g.SH = (int)s->stride[0], g.SW = (int)s->stride[1];
    g.PH = (int)s->padding[0], g.PW = (int)s->padding[1], g.DH = (int)s->dilation[0], g.DW = (int)s->dilation[1];
    g.c_part = (int)(s->c / s->groups), g.o_part = (int)(s->o / s->groups);
    g.N = s->n;
    g.count = s->kind == CONV_FORWARD      ? s->n * s->o * s->p * s->q
              : s->kind == CONV_GRAD_INPUT ? s->n * s->c * s->h * s->w
                                           : s->o * s->kh * s->kw * (s->c / s->groups);
    return g;
}

template <typename T> static int direct(const conv_spec *s, void *const data[CONV_TENSORS])
{
    constexpr int V = sizeof(T) == 8 ? 1 : vector_size<T>; /* pairs of doubles only cost registers */
    geometry g = geometry_of(s);
    T *x = (T *)data[CONV_X], *w = (T *)data[CONV_W], *y = (T *)data[CONV_Y];
    unsigned grid = grid_for(g.count, BLOCK);
    if (s->kind == CONV_GRAD_INPUT)
        return ASEN_LAUNCH(direct_grad_input<T>, grid, BLOCK, 0, g, y, w, x);
    if (s->kind == CONV_GRAD_WEIGHT)
        return ASEN_LAUNCH(direct_grad_weight<T>, grid, BLOCK, 0, g, y, x, w);
    if (g.c_part % V == 0 && vector_aligned(x, w))
        return ASEN_LAUNCH((direct_forward<T, V>), grid, BLOCK, 0, g, x, w, y);
    return ASEN_LAUNCH((direct_forward<T, 1>), grid, BLOCK, 0, g, x, w, y);
}

extern "C" int conv_direct(const conv_spec *spec, void *const data[CONV_TENSORS])
{
    CUDA_FLOAT_SWITCH(spec->dtype, T, { return direct<T>(spec, data); });
    return ASEN_OK;
}

template <typename T> static int add_all(const conv_spec *s, void *const data[CONV_TENSORS])
{
    constexpr int V = vector_size<T>;
    T *y = (T *)data[CONV_Y];
    const T *bias = s->bias ? (const T *)data[CONV_BIAS] : nullptr;
    const T *residual = s->residual ? (const T *)data[CONV_RESIDUAL] : nullptr;
    int64_t count = s->n * s->o * s->p * s->q;
    if (s->o % V == 0 && vector_aligned(y, residual))
        return ASEN_LAUNCH((epilogue<T, V>), grid_for(count / V, BLOCK), BLOCK, 0, y, bias, residual, count, (int)s->o,
                           s->relu != 0);
    return ASEN_LAUNCH((epilogue<T, 1>), grid_for(count, BLOCK), BLOCK, 0, y, bias, residual, count, (int)s->o,
                       s->relu != 0);
}

extern "C" int conv_epilogue(const conv_spec *spec, void *const data[CONV_TENSORS])
{
    CUDA_FLOAT_SWITCH(spec->dtype, T, { return add_all<T>(spec, data); });
    return ASEN_OK;
}
