/* Rows: cosine similarity, L2 normalising, additive angular margin; float32 and float64.
 *
 * A warp takes a row of (N, D), so that a row's dot products end in registers; what is read twice
 * (normalising) comes from the cache the second time. Bound by memory, every array once:
 *   cosine_similarity |a| + |b|, its gradient 2 (|a| + |b|); normalize 2 |x|, its gradient 3 |x|;
 *   arc_margin 2 |x|, its gradient 3 |x|. */
#include "block.cuh"
#include "channels.cuh"

enum { ROW_THREADS = 128, ROW_WARPS = ROW_THREADS / 32 };

typedef struct row_shape {
    int64_t N;
    int D;
    bool whole; /* vectors may be used (channels.cuh) */
} row_shape;

/* The warp's first row, and the step to its next. */
__device__ __forceinline__ int64_t row_first() { return (int64_t)blockIdx.x * ROW_WARPS + threadIdx.x / 32; }
__device__ __forceinline__ int64_t row_step() { return (int64_t)gridDim.x * ROW_WARPS; }

/* A norm, at least eps; NaN stays. */
template <typename T> __device__ __forceinline__ T row_norm(T squares, T eps)
{
    T norm = sqrt(squares);
    return norm > eps || norm != norm ? norm : eps;
}

/* Whether a sum of squares keeps its precision in T; else it is taken again in double. */
template <typename T> __device__ __forceinline__ bool is_moderate(T squares)
{
    return sizeof(T) == 8 || (squares > T(1e-24) && squares < T(1e24));
}

/* The dot product of two rows of D in double, in all threads of the warp. */
template <typename T> __device__ double dot_wide(const T *p, const T *q, int D)
{
    double sum = 0;
    for (int d = threadIdx.x % 32; d < D; d += 32)
        sum += (double)p[d] * (double)q[d];
    return warp_sum(sum);
}

/* ---- cosine similarity: y = a.b / (|a| |b|), the norms clamped ---- */

/* a, b: (N, D); y, norm_a, norm_b: (N). Bytes: |a| + |b|. */
template <typename T>
__global__ void __launch_bounds__(ROW_THREADS)
    cosine_similarity_kernel(const T *__restrict__ a, const T *__restrict__ b, row_shape s, T eps, T *__restrict__ y,
                             T *__restrict__ norm_a, T *__restrict__ norm_b)
{
    enum { V = vector_size<T> };
    for (int64_t n = row_first(); n < s.N; n += row_step()) {
        T aa = 0, bb = 0, ab = 0;
#pragma unroll 2
        for (int d = (threadIdx.x % 32) * V; d < s.D; d += 32 * V) {
            vector<T> p, q;
            vector_load(p, a + n * s.D + d, s.D - d, s.whole);
            vector_load(q, b + n * s.D + d, s.D - d, s.whole);
#pragma unroll
            for (int i = 0; i < V; i++) {
                aa += p.item[i] * p.item[i];
                bb += q.item[i] * q.item[i];
                ab += p.item[i] * q.item[i];
            }
        }
        aa = warp_sum(aa), bb = warp_sum(bb), ab = warp_sum(ab);
        if (!is_moderate(aa) || !is_moderate(bb)) {
            const T *p = a + n * s.D, *q = b + n * s.D;
            double length_a = row_norm(dot_wide(p, p, s.D), (double)eps), length_b = row_norm(dot_wide(q, q, s.D), (double)eps);
            double cosine = dot_wide(p, q, s.D) / (length_a * length_b);
            if (threadIdx.x % 32 == 0) {
                y[n] = (T)cosine;
                norm_a[n] = (T)length_a;
                norm_b[n] = (T)length_b;
            }
            continue;
        }
        T length_a = row_norm(aa, eps), length_b = row_norm(bb, eps);
        if (threadIdx.x % 32 == 0) {
            y[n] = ab / length_a / length_b; /* their product may overflow */
            norm_a[n] = length_a;
            norm_b[n] = length_b;
        }
    }
}

/* dy, y, norm_a, norm_b: (N); a, b, da, db: (N, D). da = dy (b / (|a| |b|) - y a / |a|^2), the second
 * term only where |a| is not clamped. Bytes: 2 (|a| + |b|). */
template <typename T>
__global__ void __launch_bounds__(ROW_THREADS)
    cosine_similarity_grad_kernel(const T *__restrict__ dy, const T *__restrict__ a, const T *__restrict__ b, const T *__restrict__ y,
                                  const T *__restrict__ norm_a, const T *__restrict__ norm_b, row_shape s, T eps, T *__restrict__ da,
                                  T *__restrict__ db)
{
    enum { V = vector_size<T> };
    for (int64_t n = row_first(); n < s.N; n += row_step()) {
        T slope = dy[n], cosine = y[n], na = norm_a[n], nb = norm_b[n];
        if (!is_moderate(na * na) || !is_moderate(nb * nb)) {
            double far = (double)slope / ((double)na * nb), toward_a = na <= eps ? 0 : (double)slope * cosine / ((double)na * na);
            double toward_b = nb <= eps ? 0 : (double)slope * cosine / ((double)nb * nb);
            for (int64_t i = n * s.D + threadIdx.x % 32; i < (n + 1) * s.D; i += 32) {
                da[i] = (T)(far * b[i] - toward_a * a[i]);
                db[i] = (T)(far * a[i] - toward_b * b[i]);
            }
            continue;
        }
        T along_a = na <= eps ? T(0) : cosine / na / na, along_b = nb <= eps ? T(0) : cosine / nb / nb, across = 1 / na / nb;
        for (int d = (threadIdx.x % 32) * V; d < s.D; d += 32 * V) {
            vector<T> p, q;
            vector_load(p, a + n * s.D + d, s.D - d, s.whole);
            vector_load(q, b + n * s.D + d, s.D - d, s.whole);
#pragma unroll
            for (int i = 0; i < V; i++) {
                T u = p.item[i], v = q.item[i];
                p.item[i] = slope * (v * across - along_a * u);
                q.item[i] = slope * (u * across - along_b * v);
            }
            vector_store(da + n * s.D + d, p, s.D - d, s.whole);
            vector_store(db + n * s.D + d, q, s.D - d, s.whole);
        }
    }
}

/* ---- normalising: y = x / |x|, the norm clamped ---- */

/* x, y: (N, D); norm: (N). Bytes: 2 |x|. */
template <typename T>
__global__ void __launch_bounds__(ROW_THREADS)
    normalize_kernel(const T *__restrict__ x, row_shape s, T eps, T *__restrict__ y, T *__restrict__ norm)
{
    enum { V = vector_size<T> };
    for (int64_t n = row_first(); n < s.N; n += row_step()) {
        vector<T> v;
        T squares = 0;
        for (int d = (threadIdx.x % 32) * V; d < s.D; d += 32 * V) {
            vector_load(v, x + n * s.D + d, s.D - d, s.whole);
#pragma unroll
            for (int i = 0; i < V; i++)
                squares += v.item[i] * v.item[i];
        }
        squares = warp_sum(squares);
        T length = row_norm(squares, eps);
        if (!is_moderate(squares)) {
            double wide = row_norm(dot_wide(x + n * s.D, x + n * s.D, s.D), (double)eps);
            for (int d = threadIdx.x % 32; d < s.D; d += 32)
                y[n * s.D + d] = (T)((double)x[n * s.D + d] / wide);
            if (threadIdx.x % 32 == 0)
                norm[n] = (T)wide;
            continue;
        }
        for (int d = (threadIdx.x % 32) * V; d < s.D; d += 32 * V) {
            vector_load(v, x + n * s.D + d, s.D - d, s.whole);
#pragma unroll
            for (int i = 0; i < V; i++)
                v.item[i] /= length;
            vector_store(y + n * s.D + d, v, s.D - d, s.whole);
        }
        if (threadIdx.x % 32 == 0)
            norm[n] = length;
    }
}

/* dy, y, dx: (N, D); norm: (N). dx = (dy - y (y.dy)) / norm, dy / norm where that was clamped.
 * Bytes: 3 |x|. */
template <typename T>
__global__ void __launch_bounds__(ROW_THREADS)
    normalize_grad_kernel(const T *__restrict__ dy, const T *__restrict__ y, const T *__restrict__ norm, row_shape s, T eps,
                          T *__restrict__ dx)
{
    enum { V = vector_size<T> };
    for (int64_t n = row_first(); n < s.N; n += row_step()) {
        vector<T> slope, v;
        T length = norm[n], along = 0;
        if (!(length <= eps))
#pragma unroll 2
            for (int d = (threadIdx.x % 32) * V; d < s.D; d += 32 * V) {
                vector_load(slope, dy + n * s.D + d, s.D - d, s.whole);
                vector_load(v, y + n * s.D + d, s.D - d, s.whole);
#pragma unroll
                for (int i = 0; i < V; i++)
                    along += slope.item[i] * v.item[i];
            }
        along = warp_sum(along);
#pragma unroll 2
        for (int d = (threadIdx.x % 32) * V; d < s.D; d += 32 * V) {
            vector_load(slope, dy + n * s.D + d, s.D - d, s.whole);
            vector_load(v, y + n * s.D + d, s.D - d, s.whole);
#pragma unroll
            for (int i = 0; i < V; i++)
                slope.item[i] = (slope.item[i] - v.item[i] * along) / length;
            vector_store(dx + n * s.D + d, slope, s.D - d, s.whole);
        }
    }
}

/* ---- additive angular margin (Deng et al. 2019) ---- */

/* The margin applies where c > bound. */
template <typename T> struct arc {
    T s, cos_m, sin_m, bound;
    T below; /* what is taken off where it does not */
    int op;  /* the row, for faults */
};

/* y = s c, and for the target s (c cos m - sqrt(1 - c^2) sin m). 1 - c^2 = (1 - c)(1 + c) keeps its
 * digits near c = 1. cosine, y: (N, K); target: (N). Bytes: 2 |x|. */
template <typename T>
__global__ void arc_margin_kernel(const T *__restrict__ cosine, const int64_t *__restrict__ target, int64_t count, int K, arc<T> g,
                                  cuda_fault *fault, T *__restrict__ y)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
        int64_t n = i / K, k = i - n * K, chosen = target[n];
        T c = cosine[i];
        if (k == 0 && (chosen < 0 || chosen >= K))
            cuda_fault_set(fault, g.op, chosen, K);
        if (k == chosen) {
            T root = (1 - c) * (1 + c);
            c = c > g.bound ? c * g.cos_m - sqrt(root > 0 ? root : T(0)) * g.sin_m : c - g.below;
        }
        y[i] = g.s * c;
    }
}

/* dx = s dy, for the target times the slope cos m + sin m c / sqrt(1 - c^2). dy, cosine, dx: (N, K);
 * target: (N). Bytes: 3 |x|; cosine is read where the target is. */
template <typename T>
__global__ void arc_margin_grad_kernel(const T *__restrict__ dy, const T *__restrict__ cosine, const int64_t *__restrict__ target,
                                       int64_t count, int K, arc<T> g, cuda_fault *fault, T *__restrict__ dx)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x) {
        int64_t n = i / K, k = i - n * K, chosen = target[n];
        T slope = 1;
        if (k == 0 && (chosen < 0 || chosen >= K))
            cuda_fault_set(fault, g.op, chosen, K);
        if (k == chosen) {
            T c = cosine[i], root = (1 - c) * (1 + c);
            if (c > g.bound)
                slope = g.cos_m + g.sin_m * c / sqrt(root > T(1e-12) ? root : T(1e-12));
        }
        dx[i] = g.s * slope * dy[i];
    }
}

/* ---- the rows ---- */

/* The shape of rows (N, D); at these addresses, vectors or not. */
template <typename T>
static int rows_make(const asen_tensor *x, const void *a, const void *b, const void *c, const void *d, row_shape *s)
{
    if (x->shape[1] > INT32_MAX / 2)
        return ASEN_DECLINED;
    s->N = x->shape[0];
    s->D = (int)x->shape[1];
    s->whole = channels_whole<T>(s->D, a, b, c, d);
    return ASEN_OK;
}

static inline unsigned row_blocks(const row_shape *s) { return grid_for(s->N, ROW_WARPS); }

/* in: a b; out: y norm_a norm_b */
extern "C" int cuda_cosine_similarity(const asen_call *call)
{
    const asen_tensor *a = call->in[0];
    row_shape s;
    if (a->shape[0] == 0)
        return ASEN_OK;
    CUDA_WIDE_SWITCH(a->dtype, T, {
        CUDA_OK(rows_make<T>(a, input<T>(call, 0), input<T>(call, 1), nullptr, nullptr, &s));
        return ASEN_LAUNCH(cosine_similarity_kernel<T>, row_blocks(&s), ROW_THREADS, 0, input<T>(call, 0), input<T>(call, 1), s,
                           (T)call->attrs->cosine_similarity.eps, output<T>(call, 0), output<T>(call, 1), output<T>(call, 2));
    });
    return ASEN_DECLINED;
}

/* in: dy a b y norm_a norm_b; out: da db */
extern "C" int cuda_cosine_similarity_grad(const asen_call *call)
{
    const asen_tensor *a = call->in[1];
    row_shape s;
    if (a->shape[0] == 0)
        return ASEN_OK;
    CUDA_WIDE_SWITCH(a->dtype, T, {
        T *da = output<T>(call, 0), *db = output<T>(call, 1);
        CUDA_OK(rows_make<T>(a, input<T>(call, 1), input<T>(call, 2), da, db, &s));
        return ASEN_LAUNCH(cosine_similarity_grad_kernel<T>, row_blocks(&s), ROW_THREADS, 0, input<T>(call, 0), input<T>(call, 1),
                           input<T>(call, 2), input<T>(call, 3), input<T>(call, 4), input<T>(call, 5), s,
                           (T)call->attrs->cosine_similarity_grad.eps, da, db);
    });
    return ASEN_DECLINED;
}

/* in: x; out: y norm */
extern "C" int cuda_normalize(const asen_call *call)
{
    const asen_tensor *x = call->in[0];
    row_shape s;
    if (x->shape[0] == 0)
        return ASEN_OK;
    CUDA_WIDE_SWITCH(x->dtype, T, {
        T *y = output<T>(call, 0);
        CUDA_OK(rows_make<T>(x, input<T>(call, 0), y, nullptr, nullptr, &s));
        return ASEN_LAUNCH(normalize_kernel<T>, row_blocks(&s), ROW_THREADS, 0, input<T>(call, 0), s,
                           (T)call->attrs->normalize.eps, y, output<T>(call, 1));
    });
    return ASEN_DECLINED;
}

/* in: dy y norm; out: dx */
extern "C" int cuda_normalize_grad(const asen_call *call)
{
    const asen_tensor *y = call->in[1];
    row_shape s;
    if (y->shape[0] == 0)
        return ASEN_OK;
    CUDA_WIDE_SWITCH(y->dtype, T, {
        T *dx = output<T>(call, 0);
        CUDA_OK(rows_make<T>(y, input<T>(call, 0), input<T>(call, 1), dx, nullptr, &s));
        return ASEN_LAUNCH(normalize_grad_kernel<T>, row_blocks(&s), ROW_THREADS, 0, input<T>(call, 0), input<T>(call, 1),
                           input<T>(call, 2), s, (T)call->attrs->normalize_grad.eps, dx);
    });
    return ASEN_DECLINED;
}

#define PI 3.14159265358979323846

template <typename T> static arc<T> arc_make(asen_op op, double s, double m, bool easy)
{
    arc<T> g;
    g.s = (T)s;
    g.cos_m = (T)cos(m);
    g.sin_m = (T)sin(m);
    g.bound = easy ? T(0) : (T)cos(PI - m);
    g.below = easy ? T(0) : (T)(m * sin(PI - m));
    g.op = (int)op;
    return g;
}

enum { ARC_THREADS = 256 };

static int arc_count(const asen_tensor *cosine, const asen_tensor *target, int64_t *count)
{
    *count = cosine->shape[0] * cosine->shape[1];
    return target->dtype != ASEN_I64 || cosine->shape[1] > INT32_MAX ? ASEN_DECLINED : ASEN_OK;
}

/* in: cosine target; out: y */
extern "C" int cuda_arc_margin(const asen_call *call)
{
    const asen_tensor *cosine = call->in[0];
    int64_t count;
    CUDA_OK(arc_count(cosine, call->in[1], &count));
    if (count == 0)
        return ASEN_OK;
    CUDA_WIDE_SWITCH(cosine->dtype, T, {
        arc<T> g = arc_make<T>(call->op, call->attrs->arc_margin.s, call->attrs->arc_margin.m, call->attrs->arc_margin.easy_margin != 0);
        return ASEN_LAUNCH(arc_margin_kernel<T>, grid_for(count, ARC_THREADS), ARC_THREADS, 0, input<T>(call, 0),
                           input<int64_t>(call, 1), count, (int)cosine->shape[1], g, cuda.fault, output<T>(call, 0));
    });
    return ASEN_DECLINED;
}

/* in: dy cosine target; out: dx */
extern "C" int cuda_arc_margin_grad(const asen_call *call)
{
    const asen_tensor *cosine = call->in[1];
    int64_t count;
    CUDA_OK(arc_count(cosine, call->in[2], &count));
    if (count == 0)
        return ASEN_OK;
    CUDA_WIDE_SWITCH(cosine->dtype, T, {
        arc<T> g = arc_make<T>(call->op, call->attrs->arc_margin_grad.s, call->attrs->arc_margin_grad.m,
                               call->attrs->arc_margin_grad.easy_margin != 0);
        return ASEN_LAUNCH(arc_margin_grad_kernel<T>, grid_for(count, ARC_THREADS), ARC_THREADS, 0, input<T>(call, 0),
                           input<T>(call, 1), input<int64_t>(call, 2), count, (int)cosine->shape[1], g, cuda.fault, output<T>(call, 0));
    });
    return ASEN_DECLINED;
}
