/* Filter gradients as matrix products.
 *
 *   dW (O, KH*KW*I) = sum over blocks of rows r of dY_r^T (O, rows) U_r (rows, KH*KW*I)
 *
 * where a row is one output pixel (n, oh, ow) and U_r holds the input pixels under the filter
 * there, unfolded block by block so that it stays in cache; a 1x1 filter with stride 1 needs no
 * unfolding. The result lies O,H,W,I, as our filters do. In NHWC oneDNN 3.2's primitive is slower
 * than this for strides (18.5 against 30.2 ms for 128 channels, 3x3, stride 2, 56x56, 16 images,
 * one Zen 5 core), for wide images and for 1x1; elsewhere it is as fast or faster.
 *
 * Every thread takes a fixed share of the rows and has a dW of its own; these are added up in
 * order, so the same thread count gives the same bits. */
#include "cpu/onednn/conv.h"

#ifdef ASEN_ONEDNN
#include <omp.h>
#include <string.h>

enum {
    BLOCK_BYTES = 2 << 20,    /* of unfolded input a thread */
    PARTIAL_BYTES = 64 << 20, /* at most, of all threads' own gradients */
    WIDE = 56,
    CHANNELS = 64
};

static size_t filter_row(const asen_conv_shape *s) { return (size_t)(s->kh * s->kw * s->ic); }

static bool is_plain(const asen_conv_shape *s)
{
    return s->kh == 1 && s->kw == 1 && s->stride[0] == 1 && s->stride[1] == 1 && s->padding[0] == 0 &&
           s->padding[1] == 0;
}

bool asen_onednn_conv_gemm_pays(const asen_conv_shape *s)
{
    if (s->groups != 1) return false;
    size_t partials = filter_row(s) * (size_t)s->oc * sizeof(float) * (size_t)(asen_threads_get() - 1);
    if (partials > PARTIAL_BYTES) return false;
    if (is_plain(s)) return true;
    return s->ic >= CHANNELS && (s->stride[0] > 1 || s->stride[1] > 1 || s->ow >= WIDE);
}

/* Rows [row, row + count) of U (count, KH, KW, I) from x (N, H, W, I). */
static void unfold(const asen_conv_shape *s, const float *x, int64_t row, int64_t count, float *u)
{
    int64_t plane = s->oh * s->ow, channels = s->ic;
    size_t pixel = (size_t)channels * sizeof(float);
    for (int64_t r = row; r < row + count; r++) {
        const float *image = x + r / plane * s->ih * s->iw * channels;
        int64_t top = r % plane / s->ow * s->stride[0] - s->padding[0];
        int64_t left = r % s->ow * s->stride[1] - s->padding[1];
        bool inside = s->dilation[1] == 1 && left >= 0 && left + s->kw <= s->iw;
        for (int64_t i = 0; i < s->kh; i++, u += s->kw * channels) {
            int64_t h = top + i * s->dilation[0];
            if (h < 0 || h >= s->ih) {
                memset(u, 0, (size_t)s->kw * pixel);
                continue;
            }
            const float *line = image + h * s->iw * channels;
            if (inside) {
                memcpy(u, line + left * channels, (size_t)s->kw * pixel);
                continue;
            }
            for (int64_t j = 0; j < s->kw; j++) {
                int64_t w = left + j * s->dilation[1];
                if (w < 0 || w >= s->iw) memset(u + j * channels, 0, pixel);
                else memcpy(u + j * channels, line + w * channels, pixel);
            }
        }
    }
}

/* dw = dY^T U over rows [row, end); `block` holds U of up to `rows` rows, NULL where U is x. */
static dnnl_status_t part(const asen_conv_shape *s, const float *dy, const float *x, int64_t row, int64_t end,
                          int64_t rows, float *block, float *dw)
{
    int64_t columns = (int64_t)filter_row(s);
    float beta = 0;
    dnnl_status_t status = dnnl_success;
    for (int64_t count; row < end && status == dnnl_success; row += count, beta = 1) {
        count = end - row < rows ? end - row : rows;
        const float *u = block ? block : x + row * s->ic;
        if (block) unfold(s, x, row, count, block);
        status = dnnl_sgemm('T', 'N', s->oc, columns, count, 1.0f, dy + row * s->oc, s->oc, u, columns, beta, dw,
                            columns);
    }
    return status;
}

int asen_onednn_conv_gemm_grad_weight(const asen_call *call, const asen_conv_shape *s)
{
    const float *dy = asen_tensor_data(call->in[0]), *x = asen_tensor_data(call->in[1]);
    float *dw = asen_tensor_data(call->out[0]);
    int64_t total = s->n * s->oh * s->ow, columns = (int64_t)filter_row(s), size = columns * s->oc;
    int64_t rows = BLOCK_BYTES / (columns * (int64_t)sizeof(float));
    if (rows < 128) rows = 128;
    if (rows > total) rows = total;
    int64_t parts = asen_onednn_threads();
    if (parts > (total + 127) / 128) parts = (total + 127) / 128;
    int64_t share = (total + parts - 1) / parts;
    parts = (total + share - 1) / share;

    bool plain = is_plain(s);
    int64_t block = plain ? 0 : rows * columns;
    size_t bytes = (size_t)((parts - 1) * size + parts * block) * sizeof(float);
    float *partials = NULL;
    int status = bytes ? asen_scratch_new(call->device, bytes, (void **)&partials) : ASEN_OK;
    if (status) return status;
    float *blocks = partials + (parts - 1) * size;
    int failed = dnnl_success;

    asen_onednn_enter();
#pragma omp parallel for num_threads((int)parts) schedule(static, 1) reduction(max : failed)
    for (int64_t p = 0; p < parts; p++) {
        asen_onednn_signal_stack();
        int64_t end = (p + 1) * share < total ? (p + 1) * share : total;
        failed = (int)part(s, dy, x, p * share, end, plain ? total : rows, plain ? NULL : blocks + p * block,
                           p ? partials + (p - 1) * size : dw);
    }
    asen_onednn_leave();
    if (parts > 1 && failed == dnnl_success) {
#pragma omp parallel for num_threads((int)parts) schedule(static)
        for (int64_t i = 0; i < size; i++) {
            float sum = dw[i];
            for (int64_t p = 0; p < parts - 1; p++) sum += partials[p * size + i];
            dw[i] = sum;
        }
    }
    if (bytes) asen_scratch_free(call->device, partials, bytes);
    return failed == dnnl_success ? ASEN_OK : asen_onednn_fail(call, (dnnl_status_t)failed);
}

#endif
