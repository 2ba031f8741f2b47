/* Max pooling of x (N, C, H, W), which lies N, H, W, C: vectors run along the channels. The
 * gradient is gathered, not scattered: each row of dx adds up the windows that cover it, in the
 * order of the windows, so rows can be divided among threads and the sums keep their order. */
#include <omp.h>

#include "cpu/fast/fast.h"

typedef struct pool_shape {
    int64_t n, channels, height, width, out_height, out_width;
    int64_t kh, kw, sh, sw, ph, pw;
} pool_shape;

FAST_INLINE void pool_first(const float *restrict x, int64_t n, int32_t position, float *restrict best,
                                   int32_t *restrict index)
{
    FAST_SIMD
    for (int64_t c = 0; c < n; c++) {
        best[c] = x[c];
        index[c] = position;
    }
}

/* best, index (n) take x where it is larger, or where it is NaN. */
FAST_INLINE void pool_next(const float *restrict x, int64_t n, int32_t position, float *restrict best,
                                  int32_t *restrict index)
{
    FAST_SIMD
    for (int64_t c = 0; c < n; c++) {
        float v = x[c], b = best[c];
        bool larger = (v > b) | ((v != v) & (b == b));
        best[c] = larger ? v : b;
        index[c] = larger ? position : index[c];
    }
}

/* dx[n] += dy where index is this position. */
FAST_INLINE void pool_add(float *restrict dx, const float *restrict dy, const int32_t *restrict index,
                                 int64_t n, int32_t position)
{
    FAST_SIMD
    for (int64_t c = 0; c < n; c++)
        dx[c] += index[c] == position ? dy[c] : 0.0f;
}

/* One output row (image b, row oh): out_width points of C. */
FAST_CLONES static void pool_row(const pool_shape *s, const float *x, float *y, int32_t *index, int64_t b, int64_t oh)
{
    int64_t c = s->channels, h0 = oh * s->sh - s->ph;
    int64_t h_begin = fast_max_i64(h0, 0), h_end = fast_min_i64(h0 + s->kh, s->height);
    const float *image = x + b * s->height * s->width * c;
    for (int64_t ow = 0; ow < s->out_width; ow++) {
        int64_t at = ((b * s->out_height + oh) * s->out_width + ow) * c, w0 = ow * s->sw - s->pw;
        int64_t w_begin = fast_max_i64(w0, 0), w_end = fast_min_i64(w0 + s->kw, s->width);
        bool first = true;
        for (int64_t h = h_begin; h < h_end; h++)
            for (int64_t w = w_begin; w < w_end; w++) {
                int64_t position = h * s->width + w;
                if (first)
                    pool_first(image + position * c, c, (int32_t)position, y + at, index + at);
                else
                    pool_next(image + position * c, c, (int32_t)position, y + at, index + at);
                first = false;
            }
        if (first) /* a window that lies in the padding altogether */
            for (int64_t i = 0; i < c; i++) {
                y[at + i] = -INFINITY;
                index[at + i] = -1;
            }
    }
}

/* One row of dx (image b, row h). */
FAST_CLONES static void pool_grad_row(const pool_shape *s, const float *dy, const int32_t *index, float *dx, int64_t b, int64_t h)
{
    int64_t c = s->channels;
    int64_t oh_begin = h + s->ph < s->kh ? 0 : (h + s->ph - s->kh) / s->sh + 1;
    int64_t oh_end = fast_min_i64((h + s->ph) / s->sh + 1, s->out_height);
    for (int64_t w = 0; w < s->width; w++) {
        float *target = dx + ((b * s->height + h) * s->width + w) * c;
        memset(target, 0, (size_t)c * sizeof *target);
        int64_t ow_begin = w + s->pw < s->kw ? 0 : (w + s->pw - s->kw) / s->sw + 1;
        int64_t ow_end = fast_min_i64((w + s->pw) / s->sw + 1, s->out_width);
        for (int64_t oh = oh_begin; oh < oh_end; oh++)
            for (int64_t ow = ow_begin; ow < ow_end; ow++) {
                int64_t at = ((b * s->out_height + oh) * s->out_width + ow) * c;
                pool_add(target, dy + at, index + at, c, (int32_t)(h * s->width + w));
            }
    }
}

int fast_max_pool2d(const asen_call *call)
{
    const asen_tensor *x = call->in[0], *y = call->out[0];
    if (x->dtype != ASEN_F32 || call->out[1]->dtype != ASEN_I32 || x->ndim != 4)
        return ASEN_DECLINED;
    const int64_t *kernel = call->attrs->max_pool2d.kernel_size, *stride = call->attrs->max_pool2d.stride;
    const int64_t *padding = call->attrs->max_pool2d.padding;
    pool_shape s = {x->shape[0], x->shape[1], x->shape[2], x->shape[3], y->shape[2], y->shape[3],
                    kernel[0], kernel[1], stride[0], stride[1], padding[0], padding[1]};
    int64_t rows = s.n * s.out_height;
    int threads = fast_threads(asen_tensor_count(x), rows);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int t = omp_get_thread_num(), team = omp_get_num_threads();
        for (int64_t r = fast_part(rows, t, team); r < fast_part(rows, t + 1, team); r++)
            pool_row(&s, fast_f32(x), fast_f32(y), asen_tensor_data(call->out[1]), r / s.out_height,
                     r % s.out_height);
    }
    return ASEN_OK;
}

int fast_max_pool2d_grad(const asen_call *call)
{
    const asen_tensor *dy = call->in[0], *index = call->in[1], *dx = call->out[0];
    if (dy->dtype != ASEN_F32 || index->dtype != ASEN_I32 || dx->dtype != ASEN_F32 || dx->ndim != 4)
        return ASEN_DECLINED;
    const int64_t *kernel = call->attrs->max_pool2d_grad.kernel_size, *stride = call->attrs->max_pool2d_grad.stride;
    const int64_t *padding = call->attrs->max_pool2d_grad.padding;
    pool_shape s = {dx->shape[0], dx->shape[1], dx->shape[2], dx->shape[3], dy->shape[2], dy->shape[3],
                    kernel[0], kernel[1], stride[0], stride[1], padding[0], padding[1]};
    int64_t rows = s.n * s.height;
    int threads = fast_threads(asen_tensor_count(dx), rows);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int t = omp_get_thread_num(), team = omp_get_num_threads();
        for (int64_t r = fast_part(rows, t, team); r < fast_part(rows, t + 1, team); r++)
            pool_grad_row(&s, fast_f32(dy), asen_tensor_data(index), fast_f32(dx), r / s.height, r % s.height);
    }
    return ASEN_OK;
}
