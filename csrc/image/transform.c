/* The global and the local transform (docs/reference.md 5) for one image: resize, crop, scale, normalise. */
#include "image/image.h"

#include <stdlib.h>
#include <string.h>

#include "core/status.h"

void asen_image_scale_init(asen_image_scale *scale, const float mean[3], const float std[3])
{
    for (int c = 0; c < 3; c++)
        for (int v = 0; v < 256; v++)
            scale->value[c][v] = ((float)v / 255.0f - mean[c]) / std[c];
}

static void normalize(const uint8_t *pixels, int64_t count, const asen_image_scale *scale, float *out)
{
    for (int64_t i = 0; i < 3 * count; i += 3) {
        out[i] = scale->value[0][pixels[i]];
        out[i + 1] = scale->value[1][pixels[i + 1]];
        out[i + 2] = scale->value[2][pixels[i + 2]];
    }
}

static int resize_and_normalize(const asen_image *in, int64_t out_height, int64_t out_width,
                                asen_image_window window, const asen_image_scale *scale, void *out)
{
    if (scale == NULL)
        return asen_image_resize(in, out_height, out_width, window, out);
    int64_t count = window.height * window.width;
    uint8_t *pixels = malloc((size_t)count * 3);
    if (pixels == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory for an image of %lld x %lld pixels",
                         (long long)window.width, (long long)window.height);
    int status = asen_image_resize(in, out_height, out_width, window, pixels);
    if (status == ASEN_OK)
        normalize(pixels, count, scale, out);
    free(pixels);
    return status;
}

static int check_size(const char *key, int64_t size)
{
    if (size < 1 || size > ASEN_IMAGE_MAX_SIZE)
        return asen_fail(ASEN_ERR_VALUE, "%s must lie in [1, %d], but is %lld", key, ASEN_IMAGE_MAX_SIZE,
                         (long long)size);
    return ASEN_OK;
}

/* int(round(v/2)) with Python's rounding: halves go to the even neighbour. v >= 0. */
static int64_t half_rounded(int64_t v)
{
    int64_t down = v / 2;
    return v % 2 == 0 ? down : down + down % 2;
}

int asen_image_global(const asen_image *in, int64_t size, const asen_image_scale *scale, void *out)
{
    int status = check_size("INPUT.GLOBAL_SIZE", size);
    if (status)
        return status;
    if (in->height < 1 || in->width < 1)
        return asen_fail(ASEN_ERR_VALUE, "an image of %lld x %lld pixels has nothing to show",
                         (long long)in->width, (long long)in->height);
    int64_t height = size, width = size;
    if (in->height > in->width)
        height = (int64_t)((double)(size * in->height) / (double)in->width);
    else
        width = (int64_t)((double)(size * in->width) / (double)in->height);
    asen_image_window window = {half_rounded(height - size), half_rounded(width - size), size, size};
    return resize_and_normalize(in, height, width, window, scale, out);
}

/* A copy of the square with black where it lies outside the image; the caller frees *pixels. */
static int copy_square(const asen_image *in, asen_image_box box, uint8_t **pixels)
{
    *pixels = calloc((size_t)box.d * (size_t)box.d, 3);
    if (*pixels == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory for a crop of %lld x %lld pixels", (long long)box.d,
                         (long long)box.d);
    int64_t x0 = box.x < 0 ? 0 : box.x, x1 = box.x + box.d < in->width ? box.x + box.d : in->width;
    int64_t y0 = box.y < 0 ? 0 : box.y, y1 = box.y + box.d < in->height ? box.y + box.d : in->height;
    for (int64_t y = y0; y < y1 && x0 < x1; y++)
        memcpy(*pixels + 3 * ((y - box.y) * box.d + (x0 - box.x)), in->pixels + y * in->stride + 3 * x0,
               (size_t)(x1 - x0) * 3);
    return ASEN_OK;
}

int asen_image_local(const asen_image *in, asen_image_box box, int64_t size, const asen_image_scale *scale,
                     void *out)
{
    int status = check_size("INPUT.LOCAL_SIZE", size);
    if (status)
        return status;
    const int64_t far = INT32_MAX / 4;
    if (box.d < 1 || box.d > 65536 || box.x < -far || box.y < -far || box.x > far || box.y > far)
        return asen_fail(ASEN_ERR_VALUE, "a crop at (%lld, %lld) of side %lld cannot be taken", (long long)box.x,
                         (long long)box.y, (long long)box.d);
    asen_image_window window = {0, 0, size, size};
    if (box.x >= 0 && box.y >= 0 && box.x + box.d <= in->width && box.y + box.d <= in->height) {
        asen_image square = asen_image_view(in, box.x, box.y, box.d, box.d);
        return resize_and_normalize(&square, size, size, window, scale, out);
    }
    uint8_t *pixels;
    status = copy_square(in, box, &pixels);
    if (status)
        return status;
    asen_image square = {pixels, box.d, box.d, 3 * box.d, pixels + 3 * box.d * box.d};
    status = resize_and_normalize(&square, size, size, window, scale, out);
    free(pixels);
    return status;
}
