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

int asen_image_begin(const char *key, int64_t size, const asen_image_scale *scale, void *out, uint8_t **pixels)
{
    *pixels = NULL;
    if (size < 1 || size > ASEN_IMAGE_MAX_SIZE)
        return asen_fail(ASEN_ERR_VALUE, "%s must lie in [1, %d], but is %lld", key, ASEN_IMAGE_MAX_SIZE,
                         (long long)size);
    *pixels = scale == NULL ? out : malloc((size_t)(size * size) * 3);
    if (*pixels == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory for an image of %lld x %lld pixels", (long long)size,
                         (long long)size);
    return ASEN_OK;
}

int asen_image_end(int status, uint8_t *pixels, int64_t size, const asen_image_scale *scale, void *out)
{
    if (scale == NULL)
        return status;
    if (status == ASEN_OK)
        normalize(pixels, size * size, scale, out);
    free(pixels);
    return status;
}

/* int(round(v/2)) with Python's rounding: halves go to the even neighbour. v >= 0. */
static int64_t half_rounded(int64_t v)
{
    int64_t down = v / 2;
    return v % 2 == 0 ? down : down + down % 2;
}

int asen_image_show(const asen_image *in, int64_t size, int mirrored, uint8_t *pixels)
{
    if (in->height < 1 || in->width < 1)
        return asen_fail(ASEN_ERR_VALUE, "an image of %lld x %lld pixels has nothing to show",
                         (long long)in->width, (long long)in->height);
    int64_t height = size, width = size;
    if (in->height > in->width)
        height = (int64_t)((double)(size * in->height) / (double)in->width);
    else
        width = (int64_t)((double)(size * in->width) / (double)in->height);
    asen_image_window window = {half_rounded(height - size), half_rounded(width - size), size, size};
    return asen_image_resize(in, height, width, window, mirrored, pixels);
}

int asen_image_global(const asen_image *in, int64_t size, const asen_image_scale *scale, void *out)
{
    uint8_t *pixels;
    int status = asen_image_begin("INPUT.GLOBAL_SIZE", size, scale, out, &pixels);
    if (status)
        return status;
    return asen_image_end(asen_image_show(in, size, 0, pixels), pixels, size, scale, out);
}

/* A copy of the part with black where it lies outside the image; the caller frees *pixels. */
static int copy_part(const asen_image *in, asen_image_window part, uint8_t **pixels)
{
    *pixels = calloc((size_t)part.height * (size_t)part.width, 3);
    if (*pixels == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory for a crop of %lld x %lld pixels", (long long)part.width,
                         (long long)part.height);
    int64_t x0 = part.x < 0 ? 0 : part.x, x1 = part.x + part.width < in->width ? part.x + part.width : in->width;
    int64_t y0 = part.y < 0 ? 0 : part.y, y1 = part.y + part.height < in->height ? part.y + part.height : in->height;
    for (int64_t y = y0; y < y1 && x0 < x1; y++)
        memcpy(*pixels + 3 * ((y - part.y) * part.width + (x0 - part.x)), in->pixels + y * in->stride + 3 * x0,
               (size_t)(x1 - x0) * 3);
    return ASEN_OK;
}

int asen_image_show_part(const asen_image *in, asen_image_window part, int64_t size, int mirrored, uint8_t *pixels)
{
    const int64_t far = INT32_MAX / 4, longest = 65536;
    if (part.width < 1 || part.width > longest || part.height < 1 || part.height > longest || part.x < -far ||
        part.y < -far || part.x > far || part.y > far)
        return asen_fail(ASEN_ERR_VALUE, "a crop at (%lld, %lld) of %lld x %lld pixels cannot be taken",
                         (long long)part.x, (long long)part.y, (long long)part.width, (long long)part.height);
    asen_image_window whole = {0, 0, size, size};
    if (part.x >= 0 && part.y >= 0 && part.x + part.width <= in->width && part.y + part.height <= in->height) {
        asen_image view = asen_image_view(in, part.x, part.y, part.width, part.height);
        return asen_image_resize(&view, size, size, whole, mirrored, pixels);
    }
    uint8_t *copy;
    int status = copy_part(in, part, &copy);
    if (status)
        return status;
    asen_image view = {copy, part.height, part.width, 3 * part.width, copy + 3 * part.width * part.height};
    status = asen_image_resize(&view, size, size, whole, mirrored, pixels);
    free(copy);
    return status;
}

int asen_image_local(const asen_image *in, asen_image_window part, int64_t size, const asen_image_scale *scale,
                     void *out)
{
    uint8_t *pixels;
    int status = asen_image_begin("INPUT.LOCAL_SIZE", size, scale, out, &pixels);
    if (status)
        return status;
    return asen_image_end(asen_image_show_part(in, part, size, 0, pixels), pixels, size, scale, out);
}
