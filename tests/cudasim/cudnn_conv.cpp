/* The arithmetic of the simulated cuDNN: convolutions as sums of products over gathered pixels, channels last. */
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cudnn_sim.h"

namespace cudasim {

/* A tensor as N, H, W, C numbers; a plain view where it lies so. */
template <typename T> struct nhwc {
    std::vector<T> own;
    const T *data;
    int64_t n, c, h, w;
};

static bool lies_nhwc(const tensor &t)
{
    int64_t stride[4] = {t.dims[1] * t.dims[2] * t.dims[3], 1, t.dims[1] * t.dims[3], t.dims[1]};
    for (size_t i = 0; i < 4; i++)
        if (t.dims[i] > 1 && t.strides[i] != stride[i])
            return false;
    return true;
}

static float to_half_and_back(float x) /* 11 bits of mantissa, in the range of float */
{
    return round_tf32(x);
}

template <typename T> static nhwc<T> load(const tensor &t, const void *p, const engine &e)
{
    nhwc<T> a{{}, nullptr, t.dims[0], t.dims[1], t.dims[2], t.dims[3]};
    bool rounds = e.rounds_tf32 || e.rounds_half;
    if (lies_nhwc(t) && !rounds && type_size(t.type) == sizeof(T)) {
        a.data = (const T *)p;
        return a;
    }
    a.own.resize((size_t)t.count());
    if (lies_nhwc(t)) {
        elements_read(a.own.data(), p, t.type, t.count(), rounds);
    } else {
        size_t i = 0;
        for (int64_t n = 0; n < a.n; n++)
            for (int64_t h = 0; h < a.h; h++)
                for (int64_t w = 0; w < a.w; w++)
                    for (int64_t c = 0; c < a.c; c++, i++) {
                        double v = element_read(p, t.type, t.offset(n, c, h, w));
                        a.own[i] = (T)(rounds ? to_half_and_back((float)v) : v);
                    }
    }
    a.data = a.own.data();
    return a;
}

/* Numbers N, H, W, C into memory: alpha * value (+ beta * what was there). */
static void store(const tensor &t, void *p, const double *from, double alpha, double beta, bool noisy)
{
    static uint32_t noise = 1;
    bool dense = lies_nhwc(t);
    int64_t i = 0;
    for (int64_t n = 0; n < t.dims[0]; n++)
        for (int64_t h = 0; h < t.dims[2]; h++)
            for (int64_t w = 0; w < t.dims[3]; w++)
                for (int64_t c = 0; c < t.dims[1]; c++, i++) {
                    int64_t at = dense ? i : t.offset(n, c, h, w);
                    double v = alpha * from[i];
                    if (noisy) {
                        noise = noise * 1664525u + 1013904223u;
                        v *= 1 + 1e-3 * ((double)noise / 4294967296.0 - 0.5);
                    }
                    if (beta != 0)
                        v += beta * element_read(p, t.type, at);
                    element_write(p, t.type, at, v);
                }
}

/* Values of rows row .. row + count at position j of panels. */
template <typename T, int R> static void put(panels<T, R> &p, int64_t row, int64_t j, const T *from, int64_t count)
{
    while (count > 0) {
        int64_t n = std::min(count, (int64_t)R - row % R);
        memcpy(p.at(row) + j * R, from, (size_t)n * sizeof(T));
        row += n;
        from += n;
        count -= n;
    }
}

template <typename T> struct convolution {
    const operation &o;
    int64_t groups, cg, og, kh, kw, n, h, w, p, q, k, pixels; /* channels a group, kernel, sizes; k = kh kw cg */
    explicit convolution(const operation &o_)
        : o(o_), groups(o.x.dims[1] / o.w.dims[1]), cg(o.w.dims[1]), og(o.w.dims[0] / groups), kh(o.w.dims[2]), kw(o.w.dims[3]),
          n(o.x.dims[0]), h(o.x.dims[2]), w(o.x.dims[3]), p(o.y.dims[2]), q(o.y.dims[3]), k(kh * kw * cg), pixels(n * p * q)
    {
    }

    /* f(tap, pixel of x) for each tap of output pixel `m` that lies inside. */
    template <typename F> void taps(int64_t m, F f) const
    {
        int64_t image = m / (p * q), y = m / q % p * o.stride[0] - o.pre[0], x = m % q * o.stride[1] - o.pre[1];
        for (int64_t i = 0; i < kh; i++)
            for (int64_t j = 0; j < kw; j++) {
                int64_t a = y + i * o.dilation[0], b = x + j * o.dilation[1];
                if (a >= 0 && a < h && b >= 0 && b < w)
                    f(i * kw + j, (image * h + a) * w + b);
            }
    }

    std::vector<double> forward(const nhwc<T> &x, const nhwc<T> &f) const
    {
        enum { ROWS = 16 * GEMM_MR };
        int64_t channels = groups * og;
        std::vector<double> y((size_t)(pixels * channels));
        for (int64_t g = 0; g < groups; g++) {
            right<T> b(og, k);
            for (int64_t i = 0; i < og; i++)
                for (int64_t j = 0; j < k; j++)
                    b.at(i)[j * gemm_nr<T>] = f.data[(g * og + i) * k + j];
            for (int64_t m0 = 0; m0 < pixels; m0 += ROWS) {
                left<T> a(std::min((int64_t)ROWS, pixels - m0), k);
                for (int64_t i = 0; i < a.count; i++)
                    taps(m0 + i, [&](int64_t tap, int64_t pixel) {
                        const T *from = x.data + pixel * x.c + g * cg;
                        T *to = a.at(i) + tap * cg * GEMM_MR;
                        for (int64_t c = 0; c < cg; c++)
                            to[c * GEMM_MR] = from[c];
                    });
                gemm_add(a, b, y.data() + m0 * channels + g * og, channels);
            }
        }
        return y;
    }

    /* Products of dy with the filter, added up where their taps lie. */
    std::vector<double> backward_data(const nhwc<T> &f, const nhwc<T> &dy) const
    {
        enum { ROWS = 16 * GEMM_MR };
        std::vector<double> dx((size_t)(n * h * w * groups * cg)), columns((size_t)(ROWS * k));
        for (int64_t g = 0; g < groups; g++) {
            right<T> b(k, og);
            for (int64_t i = 0; i < og; i++)
                put(b, 0, i, f.data + (g * og + i) * k, k);
            for (int64_t m0 = 0; m0 < pixels; m0 += ROWS) {
                left<T> a(std::min((int64_t)ROWS, pixels - m0), og);
                for (int64_t i = 0; i < a.count; i++)
                    for (int64_t c = 0; c < og; c++)
                        a.at(i)[c * GEMM_MR] = dy.data[(m0 + i) * dy.c + g * og + c];
                std::fill(columns.begin(), columns.end(), 0.0);
                gemm_add(a, b, columns.data(), k);
                for (int64_t i = 0; i < a.count; i++)
                    taps(m0 + i, [&](int64_t tap, int64_t pixel) {
                        const double *from = columns.data() + i * k + tap * cg;
                        double *to = dx.data() + pixel * groups * cg + g * cg;
                        for (int64_t c = 0; c < cg; c++)
                            to[c] += from[c];
                    });
            }
        }
        return dx;
    }

    std::vector<double> backward_filter(const nhwc<T> &x, const nhwc<T> &dy) const
    {
        enum { STEPS = 512 };
        std::vector<double> dw((size_t)(groups * og * k));
        for (int64_t g = 0; g < groups; g++)
            for (int64_t m0 = 0; m0 < pixels; m0 += STEPS) {
                int64_t steps = std::min((int64_t)STEPS, pixels - m0);
                left<T> a(og, steps);
                right<T> b(k, steps);
                for (int64_t i = 0; i < steps; i++) {
                    put(a, 0, i, dy.data + (m0 + i) * dy.c + g * og, og);
                    taps(m0 + i, [&](int64_t tap, int64_t pixel) { put(b, tap * cg, i, x.data + pixel * x.c + g * cg, cg); });
                }
                gemm_add(a, b, dw.data() + g * og * k, k);
            }
        return dw;
    }

    std::vector<double> run(const engine &e, const std::map<int64_t, void *> &data) const
    {
        switch (o.kind) {
        case op_kind::forward:
            return forward(load<T>(o.x, data.at(o.x.uid), e), load<T>(o.w, data.at(o.w.uid), e));
        case op_kind::backward_data:
            return backward_data(load<T>(o.w, data.at(o.w.uid), e), load<T>(o.y, data.at(o.y.uid), e));
        default:
            return backward_filter(load<T>(o.x, data.at(o.x.uid), e), load<T>(o.y, data.at(o.y.uid), e));
        }
    }
};

/* value, N, H, W, C: += b broadcast, or max(0, .), each result rounded to what holds it. */
static void pointwise(std::vector<double> &v, const operation &o, const std::map<int64_t, void *> &data)
{
    const tensor &b = o.w;
    size_t i = 0;
    for (int64_t n = 0; n < o.y.dims[0]; n++)
        for (int64_t h = 0; h < o.y.dims[2]; h++)
            for (int64_t w = 0; w < o.y.dims[3]; w++)
                for (int64_t c = 0; c < o.y.dims[1]; c++, i++) {
                    if (o.kind == op_kind::add)
                        v[i] += element_read(data.at(b.uid), b.type,
                                             b.offset(b.dims[0] > 1 ? n : 0, b.dims[1] > 1 ? c : 0, b.dims[2] > 1 ? h : 0,
                                                      b.dims[3] > 1 ? w : 0));
                    else if (!(v[i] > 0) && v[i] == v[i])
                        v[i] = 0;
                }
}

static void round_to(std::vector<double> &v, cudaDataType_t type)
{
    for (double &x : v) {
        double held;
        element_write(&held, type, 0, x);
        x = element_read(&held, type, 0);
    }
}

void graph_run(const graph &g, const engine &e, const std::map<int64_t, void *> &data)
{
    const operation &first = g.operations[0], &last = g.operations.back();
    std::vector<double> v = first.in()[0]->type == CUDA_R_64F ? convolution<double>(first).run(e, data)
                                                              : convolution<float>(first).run(e, data);
    if (g.operations.size() > 1) {
        for (double &x : v)
            x *= first.alpha;
        round_to(v, first.out().type);
    }
    for (size_t i = 1; i < g.operations.size(); i++) {
        pointwise(v, g.operations[i], data);
        if (i + 1 < g.operations.size())
            round_to(v, g.operations[i].y.type);
    }
    bool alone = g.operations.size() == 1;
    store(last.out(), data.at(last.out().uid), v.data(), alone ? first.alpha : 1, alone ? first.beta : 0, e.noisy);
}

} // namespace cudasim
