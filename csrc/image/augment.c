/* Augmentation of one image. Windows: Szegedy et al. 2015, "Going deeper with convolutions"; erasing: Zhong et al.
 * 2020, "Random erasing data augmentation"; jitter: brightness blends with black, contrast with the mean grey,
 * saturation with each pixel's grey. Aspect ratios and erased areas have the ranges of torchvision's RandomResizedCrop
 * and RandomErasing.
 *
 * Blocks of four numbers for an image: 0: mirrored, brightness, contrast, saturation; 1: erased; then one for each
 * try of a window and of a rectangle: area, aspect ratio, row, column. */
#include "image/augment.h"

#include <math.h>
#include <stdlib.h>

#include "core/random.h"
#include "core/status.h"

#define TRIES 10
#define BLOCK_FACTORS 0
#define BLOCK_ERASED 1
#define BLOCK_WINDOW 2
#define BLOCK_RECTANGLE (BLOCK_WINDOW + TRIES)
#define BLOCKS 32 /* for each image; those behind the rectangles are spare */

#define ERASED_LEAST 0.02
#define ERASED_MOST 0.33
#define LOG_WINDOW_ASPECT 0.28768207245178085  /* log(4/3) */
#define LOG_ERASED_LEAST (-1.2039728043259361) /* log(0.3) */
#define LOG_ERASED_MOST 1.1939224684724346     /* log(3.3) */

/* Keeps the numbers apart from those that the seed gives elsewhere (dropout, initial weights). */
#define STREAM 0x61756d656e746174ull

int asen_augment_check(const asen_augment *s)
{
    const struct {
        const char *key;
        double value;
        int valid;
    } keys[] = {
        {"FLIP must lie in [0, 1]", s->flip, s->flip >= 0.0 && s->flip <= 1.0},
        {"CROP must lie in (0, 1]", s->crop, s->crop > 0.0 && s->crop <= 1.0},
        {"ERASE must lie in [0, 1]", s->erase, s->erase >= 0.0 && s->erase <= 1.0},
        {"JITTER must lie in [0, 1]", s->jitter, s->jitter >= 0.0 && s->jitter <= 1.0},
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!keys[i].valid)
            return asen_fail(ASEN_ERR_VALUE, "INPUT.AUGMENT.%s, but is %g", keys[i].key, keys[i].value);
    return ASEN_OK;
}

/* -- draws */

/* A 32-bit number as a real one from [low, high). */
static double between(uint32_t number, double low, double high)
{
    return low + (high - low) * ((double)number * 0x1p-32);
}

/* A 32-bit number as an integer from 0, ..., most. */
static int64_t up_to(uint32_t number, int64_t most)
{
    return (int64_t)(((uint64_t)number * ((uint64_t)most + 1)) >> 32);
}

static int happens(uint32_t number, double probability)
{
    return number < asen_random_threshold(probability);
}

/* exp(t) for |t| <= 1.25 by its series: libraries differ in the last bit of theirs. */
static double exponential(double t)
{
    double sum = 1.0;
    for (int k = 20; k > 0; k--)
        sum = 1.0 + sum * t / (double)k;
    return sum;
}

/* A rectangle of the given area and aspect ratio (width / height), rounded. */
static void sides(double area, double aspect, int64_t *height, int64_t *width)
{
    *height = (int64_t)floor(sqrt(area / aspect) + 0.5);
    *width = (int64_t)floor(sqrt(area * aspect) + 0.5);
}

/* The first window of TRIES that fits the image; its area is a part, from `least` to 1, of the centre square's. The
 * centre square where none fits. */
static asen_image_window draw_window(uint64_t key, uint64_t first, double least, int64_t height, int64_t width)
{
    asen_image_window centre = asen_image_centre(height, width);
    double whole = (double)centre.height * (double)centre.width;
    for (uint64_t t = 0; t < TRIES; t++) {
        uint32_t n[4];
        asen_random_block(key, first + BLOCK_WINDOW + t, n);
        double aspect = exponential(between(n[1], -LOG_WINDOW_ASPECT, LOG_WINDOW_ASPECT));
        asen_image_window w;
        sides(whole * between(n[0], least, 1.0), aspect, &w.height, &w.width);
        if (w.height < 1 || w.height > height || w.width < 1 || w.width > width)
            continue;
        w.y = up_to(n[2], height - w.height);
        w.x = up_to(n[3], width - w.width);
        return w;
    }
    return centre;
}

/* The first rectangle of TRIES that is smaller than the view, or none. */
static asen_image_window draw_rectangle(uint64_t key, uint64_t first, int64_t size)
{
    for (uint64_t t = 0; t < TRIES; t++) {
        uint32_t n[4];
        asen_random_block(key, first + BLOCK_RECTANGLE + t, n);
        double aspect = exponential(between(n[1], LOG_ERASED_LEAST, LOG_ERASED_MOST));
        asen_image_window r;
        sides((double)size * (double)size * between(n[0], ERASED_LEAST, ERASED_MOST), aspect, &r.height, &r.width);
        if (r.height < 1 || r.height >= size || r.width < 1 || r.width >= size)
            continue;
        r.y = up_to(n[2], size - r.height);
        r.x = up_to(n[3], size - r.width);
        return r;
    }
    return (asen_image_window){0, 0, 0, 0};
}

void asen_augment_draw_init(asen_augment_draw *draw, const asen_augment *settings, uint64_t seed, uint64_t epoch,
                            int64_t image_id, int64_t height, int64_t width, int64_t size)
{
    uint32_t n[4];
    asen_random_block(seed ^ STREAM, epoch, n);
    uint64_t key = (uint64_t)n[1] << 32 | n[0], first = (uint64_t)image_id * BLOCKS;
    *draw = (asen_augment_draw){.brightness = 1.0, .contrast = 1.0, .saturation = 1.0};

    asen_random_block(key, first + BLOCK_FACTORS, n);
    draw->mirrored = happens(n[0], settings->flip);
    if (settings->jitter > 0.0) {
        double low = 1.0 - settings->jitter, high = 1.0 + settings->jitter;
        draw->brightness = between(n[1], low, high);
        draw->contrast = between(n[2], low, high);
        draw->saturation = between(n[3], low, high);
    }
    draw->shown = settings->crop < 1.0 ? draw_window(key, first, settings->crop, height, width)
                                       : asen_image_centre(height, width);
    asen_random_block(key, first + BLOCK_ERASED, n);
    if (happens(n[0], settings->erase))
        draw->erased = draw_rectangle(key, first, size);
}

/* -- jitter */

/* v >= 0, rounded to nearest. */
static int32_t nearest(double v)
{
    return (int32_t)(v + 0.5);
}

static double clipped(double v)
{
    return v < 0.0 ? 0.0 : v > 255.0 ? 255.0 : v;
}

static const double GREY[3] = {0.299, 0.587, 0.114}; /* ITU-R BT.601, Pillow's */

/* The mean grey of the pixels times `brightness`, from 24.8 fixed-point values: exact sums, in whatever order. */
static double mean_grey(const uint8_t *pixels, int64_t count, double brightness)
{
    int32_t bright[256];
    for (int v = 0; v < 256; v++)
        bright[v] = nearest(256.0 * clipped(brightness * v));
    int64_t sum[3] = {0, 0, 0};
    for (int64_t i = 0; i < 3 * count; i += 3) {
        sum[0] += bright[pixels[i]];
        sum[1] += bright[pixels[i + 1]];
        sum[2] += bright[pixels[i + 2]];
    }
    double total = GREY[0] * (double)sum[0] + GREY[1] * (double)sum[1] + GREY[2] * (double)sum[2];
    return total / (256.0 * (double)count);
}

#define FRACTION 16 /* bits, of what saturation adds up */

static inline uint8_t to_byte(int32_t sum)
{
    int32_t v = sum >> FRACTION;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* v' = clip(c*clip(b*v) + (1-c)*grey) for each channel; then clip(s*v' + (1-s)*(0.299 r' + 0.587 g' + 0.114 b')),
 * rounded to nearest once, at the end. A table holds each term by the byte that it comes from. */
static void jitter(uint8_t *pixels, int64_t count, const asen_augment_draw *draw)
{
    int32_t own[256], grey[3][256];
    const double one = (double)(1 << FRACTION);
    for (int v = 0; v < 256; v++) {
        double bright = clipped(draw->brightness * v);
        double value = clipped(draw->contrast * bright + (1.0 - draw->contrast) * draw->grey);
        own[v] = nearest(one * (draw->saturation * value + 0.5));
        for (int k = 0; k < 3; k++)
            grey[k][v] = (int32_t)(one * ((1.0 - draw->saturation) * GREY[k] * value));
    }
    for (int64_t i = 0; i < 3 * count; i += 3) {
        uint8_t *p = pixels + i;
        int32_t shared = grey[0][p[0]] + grey[1][p[1]] + grey[2][p[2]];
        p[0] = to_byte(own[p[0]] + shared);
        p[1] = to_byte(own[p[1]] + shared);
        p[2] = to_byte(own[p[2]] + shared);
    }
}

static int is_jittered(const asen_augment_draw *draw)
{
    return draw->brightness != 1.0 || draw->contrast != 1.0 || draw->saturation != 1.0;
}

/* -- views */

/* Erased pixels of out (size, size, 3): 0, or in bytes the mean. */
static void erase(const asen_image_window *r, int64_t size, const asen_image_scale *scale, const uint8_t mean[3],
                  void *out)
{
    float *floats = out;
    uint8_t *bytes = out;
    for (int64_t y = r->y; y < r->y + r->height; y++)
        for (int64_t i = 3 * (y * size + r->x), end = i + 3 * r->width; i < end; i++) {
            if (scale != NULL)
                floats[i] = 0.0f;
            else
                bytes[i] = mean[i % 3];
        }
}

int asen_augment_global(const asen_image *in, int64_t size, const asen_augment *settings, asen_augment_draw *draw,
                        const asen_image_scale *scale, const uint8_t mean[3], void *out)
{
    uint8_t *pixels;
    int status = asen_image_begin("INPUT.GLOBAL_SIZE", size, scale, out, &pixels);
    if (status)
        return status;
    if (settings->crop < 1.0)
        status = asen_image_show_part(in, draw->shown, size, draw->mirrored, pixels);
    else
        status = asen_image_show(in, size, draw->mirrored, pixels);
    if (status == ASEN_OK && is_jittered(draw)) {
        draw->grey = mean_grey(pixels, size * size, draw->brightness);
        jitter(pixels, size * size, draw);
    }
    status = asen_image_end(status, pixels, size, scale, out);
    if (status == ASEN_OK)
        erase(&draw->erased, size, scale, mean, out);
    return status;
}

int asen_augment_local(const asen_image *in, asen_image_window part, int64_t size, const asen_augment_draw *draw,
                       const asen_image_scale *scale, void *out)
{
    uint8_t *pixels;
    int status = asen_image_begin("INPUT.LOCAL_SIZE", size, scale, out, &pixels);
    if (status)
        return status;
    status = asen_image_show_part(in, part, size, draw->mirrored, pixels);
    if (status == ASEN_OK && is_jittered(draw))
        jitter(pixels, size * size, draw);
    return asen_image_end(status, pixels, size, scale, out);
}
