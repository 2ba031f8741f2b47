/* Pillow's antialiased bilinear resize of 8-bit RGB, bit for bit.
 *
 * Along an axis, output i is centred at (i + 0.5)*scale, scale = in/out, and is a triangle-weighted
 * mean of the inputs within `support` = max(scale, 1) of the centre; the weights are computed and
 * normalised in double, then rounded to 22-bit fixed point. Rows are resized first, to 8-bit
 * values, then columns. Sums are integers, so their order is free: the AVX2 kernels reorder them
 * and still give the same bits. Only the taps of the window asked for are computed. */
#include "image/image.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"

/* ASENPP_CFLAGS=-DASEN_PORTABLE builds what other processors run. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(ASEN_PORTABLE)
#include <immintrin.h>
#define HAVE_AVX2 1
#endif

#define PRECISION 22 /* 32 bits less 8 for the pixel less 2 of headroom, as in Pillow */
#define HALF (1 << (PRECISION - 1))
#define GROUP 4      /* taps that the AVX2 row kernel takes at once */
#define SPLIT 11     /* a weight is high * 2^11 + low: both fit 16 bits */

/* The weights of outputs [first, first + count) along one axis. */
typedef struct {
    int64_t count, taps;   /* taps: room for each output, a multiple of GROUP */
    int64_t low, high;     /* inputs [low, high) have a weight somewhere */
    int32_t *start;        /* (count) first input of output i */
    int32_t *used;         /* (count) its number of weights */
    int32_t *weight;       /* (count, taps), 22-bit fixed point, zero behind the used ones */
    int16_t *packed;       /* (count, taps/GROUP, 2, 16): for the row kernel, see pack_weights */
} axis;

static void axis_free(axis *a)
{
    free(a->start);
    free(a->weight);
    free(a->packed);
}

/* Weights of one output: Pillow's precompute_coeffs and normalize_coeffs_8bpc for the triangle.
 * `scratch` has room for every weight. */
static void weigh(axis *a, int64_t i, int64_t position, int64_t in, double scale, double *scratch)
{
    double filter_scale = scale < 1.0 ? 1.0 : scale;
    double support = filter_scale, inverse = 1.0 / filter_scale;
    double centre = ((double)position + 0.5) * scale;
    int64_t low = (int64_t)(centre - support + 0.5), high = (int64_t)(centre + support + 0.5);
    if (low < 0)
        low = 0;
    if (high > in)
        high = in;
    double sum = 0.0;
    int64_t used = high - low;
    for (int64_t t = 0; t < used; t++) {
        double x = fabs(((double)(t + low) - centre + 0.5) * inverse);
        scratch[t] = x < 1.0 ? 1.0 - x : 0.0;
        sum += scratch[t];
    }
    int32_t *weight = a->weight + i * a->taps;
    for (int64_t t = 0; t < used; t++) {
        double w = sum != 0.0 ? scratch[t] / sum : scratch[t];
        weight[t] = (int32_t)(0.5 + w * (double)(1 << PRECISION));
    }
    while (used > 1 && weight[used - 1] == 0)
        used--;
    a->start[i] = (int32_t)low;
    a->used[i] = (int32_t)used;
}

/* mirrored: the last output first. */
static int axis_init(axis *a, int64_t in, int64_t out, int64_t first, int64_t count, int mirrored)
{
    memset(a, 0, sizeof *a);
    double scale = (double)in / (double)out;
    double support = scale < 1.0 ? 1.0 : scale;
    int64_t window = (int64_t)ceil(support) * 2 + 1;
    a->count = count;
    a->taps = (window + GROUP - 1) / GROUP * GROUP;
    a->start = malloc((size_t)count * 2 * sizeof *a->start);
    a->weight = calloc((size_t)(count * a->taps), sizeof *a->weight);
    double *scratch = malloc((size_t)a->taps * sizeof *scratch);
    if (a->start == NULL || a->weight == NULL || scratch == NULL) {
        free(scratch);
        axis_free(a);
        return asen_fail(ASEN_ERR_MEMORY, "out of memory for the weights of a resize from %lld to %lld",
                         (long long)in, (long long)out);
    }
    a->used = a->start + count;
    a->low = in;
    for (int64_t i = 0; i < count; i++) {
        weigh(a, i, mirrored ? first + count - 1 - i : first + i, in, scale, scratch);
        if (a->start[i] < a->low)
            a->low = a->start[i];
        if (a->start[i] + a->used[i] > a->high)
            a->high = a->start[i] + a->used[i];
    }
    free(scratch);
    return ASEN_OK;
}

static inline uint8_t clip(int32_t sum)
{
    int32_t v = sum >> PRECISION;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* One row of pixels (width, 3) to (a->count, 3). */
static void resize_row(const axis *a, const uint8_t *row, uint8_t *out)
{
    for (int64_t i = 0; i < a->count; i++) {
        const uint8_t *p = row + 3 * (int64_t)a->start[i];
        const int32_t *w = a->weight + i * a->taps;
        int32_t r = HALF, g = HALF, b = HALF;
        for (int32_t t = 0; t < a->used[i]; t++) {
            r += p[3 * t] * w[t];
            g += p[3 * t + 1] * w[t];
            b += p[3 * t + 2] * w[t];
        }
        out[3 * i] = clip(r);
        out[3 * i + 1] = clip(g);
        out[3 * i + 2] = clip(b);
    }
}

/* One row of the result: n bytes, each a sum over the rows p, p + stride, ... */
static void mix_rows(const int32_t *weight, int32_t used, const uint8_t *p, int64_t stride, int64_t n,
                     uint8_t *out)
{
    for (int64_t i = 0; i < n; i++) {
        int32_t sum = HALF;
        for (int32_t t = 0; t < used; t++)
            sum += p[t * stride + i] * weight[t];
        out[i] = clip(sum);
    }
}

#ifdef HAVE_AVX2
/* For each output and each group of four taps k0..k3, 16 high halves then 16 low halves, laid out
 * as the pixels are shuffled: k0 k1 (red) k0 k1 (green) k0 k1 (blue) 0 0 | k2 k3 three times, 0 0. */
static int pack_weights(axis *a)
{
    int64_t groups = a->taps / GROUP;
    a->packed = aligned_alloc(32, (size_t)(a->count * groups) * 32 * sizeof *a->packed);
    if (a->packed == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory for the weights of a resize");
    for (int64_t g = 0; g < a->count * groups; g++) {
        const int32_t *w = a->weight + g * GROUP;
        int16_t *high = a->packed + g * 32, *low = high + 16;
        memset(high, 0, 64);
        for (int lane = 0; lane < 2; lane++)
            for (int k = 0; k < 6; k++) {
                int32_t v = w[2 * lane + k % 2];
                high[8 * lane + k] = (int16_t)(v >> SPLIT);
                low[8 * lane + k] = (int16_t)(v & ((1 << SPLIT) - 1));
            }
    }
    return ASEN_OK;
}

/* The bytes from the row's beginning that resize_row_avx2 may load. */
static int64_t row_reach(const axis *a)
{
    int64_t reach = 0;
    for (int64_t i = 0; i < a->count; i++) {
        int64_t groups = (a->used[i] + GROUP - 1) / GROUP;
        int64_t end = 3 * (a->start[i] + GROUP * (groups - 1)) + 16;
        reach = end > reach ? end : reach;
    }
    return reach;
}

/* As resize_row; out has room for one byte more than it asks for. Four taps at a time: 16 bytes
 * into both lanes, shuffled to 16-bit (tap, next tap) pairs by channel, multiplied and added in
 * pairs with the weights' high and low halves. */
__attribute__((target("avx2"))) static void resize_row_avx2(const axis *a, const uint8_t *row, uint8_t *out)
{
    const __m256i pairs = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,
                                           6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    int64_t stride = a->taps / GROUP * 32;
    for (int64_t i = 0; i < a->count; i++) {
        const uint8_t *p = row + 3 * (int64_t)a->start[i];
        const int16_t *w = a->packed + i * stride;
        __m256i high = _mm256_setzero_si256(), low = _mm256_setzero_si256();
        for (int32_t t = 0; t < a->used[i]; t += GROUP, p += 3 * GROUP, w += 32) {
            __m256i x = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
            x = _mm256_shuffle_epi8(x, pairs);
            high = _mm256_add_epi32(high, _mm256_madd_epi16(x, _mm256_load_si256((const __m256i *)w)));
            low = _mm256_add_epi32(low, _mm256_madd_epi16(x, _mm256_load_si256((const __m256i *)(w + 16))));
        }
        __m256i both = _mm256_add_epi32(_mm256_slli_epi32(high, SPLIT), low);
        __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
        sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(HALF)), PRECISION);
        sum = _mm_packs_epi32(sum, sum);
        sum = _mm_packus_epi16(sum, sum);
        int32_t pixel = _mm_cvtsi128_si32(sum);
        memcpy(out + 3 * i, &pixel, 4);
    }
}

/* As mix_rows. */
__attribute__((target("avx2"))) static void mix_rows_avx2(const int32_t *weight, int32_t used, const uint8_t *p,
                                                          int64_t stride, int64_t n, uint8_t *out)
{
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i s0 = _mm256_set1_epi32(HALF), s1 = s0, s2 = s0, s3 = s0;
        const uint8_t *q = p + i;
        for (int32_t t = 0; t < used; t++, q += stride) {
            __m256i w = _mm256_set1_epi32(weight[t]);
#define TERM(k) _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(q + 8 * (k)))), w)
            s0 = _mm256_add_epi32(s0, TERM(0));
            s1 = _mm256_add_epi32(s1, TERM(1));
            s2 = _mm256_add_epi32(s2, TERM(2));
            s3 = _mm256_add_epi32(s3, TERM(3));
#undef TERM
        }
        s0 = _mm256_packs_epi32(_mm256_srai_epi32(s0, PRECISION), _mm256_srai_epi32(s1, PRECISION));
        s2 = _mm256_packs_epi32(_mm256_srai_epi32(s2, PRECISION), _mm256_srai_epi32(s3, PRECISION));
        s0 = _mm256_packus_epi16(s0, s2); /* dwords in the order 0 2 4 6 | 1 3 5 7 of eight */
        s0 = _mm256_permutevar8x32_epi32(s0, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)(out + i), s0);
    }
    mix_rows(weight, used, p + i, stride, n - i, out + i);
}

static int have_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}
#endif

/* Rows [rows->low, rows->high) of `in`, resized along columns, to middle (those rows, stride). */
static int resize_rows(const asen_image *in, axis *columns, const axis *rows, uint8_t *middle, int64_t stride)
{
#ifdef HAVE_AVX2
    if (have_avx2()) {
        int status = pack_weights(columns);
        if (status)
            return status;
        int64_t reach = row_reach(columns), bytes = 3 * in->width;
        /* The last rows may be shorter than a load reaches: they go through a padded copy. */
        uint8_t *padded = calloc(1, (size_t)(reach > bytes ? reach : bytes));
        if (padded == NULL)
            return asen_fail(ASEN_ERR_MEMORY, "out of memory for a row of %lld pixels", (long long)in->width);
        for (int64_t r = rows->low; r < rows->high; r++) {
            const uint8_t *row = in->pixels + r * in->stride;
            if (in->end - row < reach)
                row = memcpy(padded, row, (size_t)bytes);
            resize_row_avx2(columns, row, middle + (r - rows->low) * stride);
        }
        free(padded);
        return ASEN_OK;
    }
#endif
    for (int64_t r = rows->low; r < rows->high; r++)
        resize_row(columns, in->pixels + r * in->stride, middle + (r - rows->low) * stride);
    return ASEN_OK;
}

static void resize_columns(const axis *rows, const uint8_t *middle, int64_t stride, int64_t bytes, uint8_t *out)
{
    for (int64_t i = 0; i < rows->count; i++) {
        const uint8_t *p = middle + (rows->start[i] - rows->low) * stride;
        const int32_t *weight = rows->weight + i * rows->taps;
#ifdef HAVE_AVX2
        if (have_avx2()) {
            mix_rows_avx2(weight, rows->used[i], p, stride, bytes, out + i * bytes);
            continue;
        }
#endif
        mix_rows(weight, rows->used[i], p, stride, bytes, out + i * bytes);
    }
}

int asen_image_resize(const asen_image *in, int64_t out_height, int64_t out_width, asen_image_window window,
                      int mirrored, uint8_t *out)
{
    if (in->height < 1 || in->width < 1 || in->height > INT32_MAX / 4 || in->width > INT32_MAX / 4)
        return asen_fail(ASEN_ERR_VALUE, "an image of %lld x %lld pixels cannot be resized",
                         (long long)in->width, (long long)in->height);
    if (window.y < 0 || window.x < 0 || window.height < 1 || window.width < 1 ||
        window.height > out_height - window.y || window.width > out_width - window.x ||
        window.height > ASEN_IMAGE_MAX_SIZE || window.width > ASEN_IMAGE_MAX_SIZE)
        return asen_fail(ASEN_ERR_VALUE, "the window (%lld, %lld, %lld, %lld) does not fit an image of %lld x %lld",
                         (long long)window.x, (long long)window.y, (long long)window.width,
                         (long long)window.height, (long long)out_width, (long long)out_height);
    axis rows = {0}, columns = {0};
    uint8_t *middle = NULL;
    int status = axis_init(&rows, in->height, out_height, window.y, window.height, 0);
    if (status)
        return status;
    if (in->width == out_width && !mirrored) { /* all weights are 1: the pass is the identity */
        const uint8_t *first = in->pixels + rows.low * in->stride + 3 * window.x;
        resize_columns(&rows, first, in->stride, 3 * window.width, out);
        goto done;
    }
    status = axis_init(&columns, in->width, out_width, window.x, window.width, mirrored);
    if (status)
        goto done;
    int64_t stride = 3 * window.width;
    middle = malloc((size_t)((rows.high - rows.low) * stride) + 1);
    if (middle == NULL) {
        status = asen_fail(ASEN_ERR_MEMORY, "out of memory for resizing %lld rows", (long long)in->height);
        goto done;
    }
    status = resize_rows(in, &columns, &rows, middle, stride);
    if (status == ASEN_OK)
        resize_columns(&rows, middle, stride, stride, out);
done:
    free(middle);
    axis_free(&columns);
    axis_free(&rows);
    return status;
}

asen_image asen_image_view(const asen_image *in, int64_t x, int64_t y, int64_t width, int64_t height)
{
    asen_image view = *in;
    view.pixels += y * in->stride + 3 * x;
    view.height = height;
    view.width = width;
    return view;
}
