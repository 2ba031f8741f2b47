/* From an attention map to the square that is cropped: REFERENCE 5, local transform, steps 1 to 5.
 * Floats and doubles are used exactly where the published program has them, so that every crop is
 * the same.
 *
 * The mask of step 2 is never stored. Its byte is a non-decreasing function of the resized value
 * (subtraction, division, multiplication and truncation all are, rounding included), so a row holds
 * a kept pixel exactly when its greatest value is kept, and so does a column. */
#include "image_api.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "status.h"

/* Output i lies between inputs `first` and `second`; weight0 and weight1 belong to them. */
typedef struct {
    int32_t first, second;
    float weight0, weight1;
} tap;

/* OpenCV's coordinates: the position in double, rounded to float, its fraction the weight. */
static tap tap_at(int64_t i, int64_t in, int64_t out)
{
    double scale = 1.0 / ((double)out / (double)in);
    float position = (float)(((double)i + 0.5) * scale - 0.5);
    int32_t low = (int32_t)floorf(position);
    float fraction = position - (float)low;
    return (tap){low, low + 1, 1.0f - fraction, fraction};
}

/* Columns at the edge take the outermost value alone. */
static void taps_of_columns(tap *taps, int64_t in, int64_t out)
{
    for (int64_t i = 0; i < out; i++) {
        tap t = tap_at(i, in, out);
        if (t.first < 0)
            t = (tap){0, 0, 1.0f, 0.0f};
        if (t.first >= in - 1)
            t = (tap){(int32_t)in - 1, (int32_t)in - 1, 1.0f, 0.0f};
        taps[i] = t;
    }
}

/* Rows at the edge take the outermost row twice, each time with its weight. */
static void taps_of_rows(tap *taps, int64_t in, int64_t out)
{
    for (int64_t i = 0; i < out; i++) {
        tap t = tap_at(i, in, out);
        t.first = t.first < 0 ? 0 : t.first >= in ? (int32_t)in - 1 : t.first;
        t.second = t.second < 0 ? 0 : t.second >= in ? (int32_t)in - 1 : t.second;
        taps[i] = t;
    }
}

int asen_map_resize(const float *map, int64_t height, int64_t width, float *out, int64_t size_y, int64_t size_x)
{
    if (height < 1 || width < 1 || size_y < 1 || size_x < 1 || height > ASEN_IMAGE_MAX_SIZE ||
        width > ASEN_IMAGE_MAX_SIZE || size_y > ASEN_IMAGE_MAX_SIZE || size_x > ASEN_IMAGE_MAX_SIZE)
        return asen_fail(ASEN_ERR_VALUE, "an attention map of %lld x %lld cannot be resized to %lld x %lld",
                         (long long)height, (long long)width, (long long)size_y, (long long)size_x);
    tap *taps = malloc((size_t)(size_x + size_y) * sizeof *taps);
    float *wide = malloc((size_t)(height * size_x) * sizeof *wide); /* (height, size_x) */
    if (taps == NULL || wide == NULL) {
        free(taps);
        free(wide);
        return asen_fail(ASEN_ERR_MEMORY, "out of memory for resizing an attention map");
    }
    tap *columns = taps, *rows = taps + size_x;
    taps_of_columns(columns, width, size_x);
    taps_of_rows(rows, height, size_y);
    for (int64_t y = 0; y < height; y++) {
        const float *from = map + y * width;
        float *to = wide + y * size_x;
        for (int64_t x = 0; x < size_x; x++) {
            tap t = columns[x];
            to[x] = from[t.first] * t.weight0 + from[t.second] * t.weight1;
        }
    }
    for (int64_t y = 0; y < size_y; y++) {
        tap t = rows[y];
        const float *a = wide + t.first * size_x, *b = wide + t.second * size_x;
        float *to = out + y * size_x;
        for (int64_t x = 0; x < size_x; x++)
            to[x] = a[x] * t.weight0 + b[x] * t.weight1;
    }
    free(taps);
    free(wide);
    return ASEN_OK;
}

/* Is a resized value kept by steps 2: uint8(255 * (v - low)/(high - low)) > floor(255 * threshold)? */
static int is_kept(float v, float low, float range, double floor_threshold)
{
    float scaled = (v - low) / range * 255.0f;
    return (double)(uint8_t)scaled > floor_threshold;
}

typedef struct {
    int64_t first, last;
} extent;

/* The first and last of n greatest values that are kept. */
static extent extent_of_kept(const float *greatest, int64_t n, float low, float range, double floor_threshold)
{
    extent e = {-1, -1};
    for (int64_t i = 0; i < n; i++)
        if (is_kept(greatest[i], low, range, floor_threshold)) {
            e.first = e.first < 0 ? i : e.first;
            e.last = i;
        }
    return e;
}

/* Step 4 for one coordinate: where a square of side d about `centre` begins. */
static int64_t square_start(int64_t centre, int64_t d, int64_t size)
{
    if (centre + d / 2 > size)
        return size - d;
    return centre - d / 2 > 0 ? centre - d / 2 : 0;
}

/* Step 5: an integer of the resized square, in pixels of the image. */
static int64_t to_image(int64_t v, int64_t size, int64_t shorter)
{
    return (int64_t)((double)v / (double)size * (double)shorter);
}

/* Steps 2 to 4: the square (x, y, d) in the resized map (size, size); `greatest` is scratch for
 * 2*size floats: the greatest value of each column, then of each row. */
static int box_in_map(const float *map, int64_t size, double threshold, float *greatest, asen_image_box *box)
{
    float *columns = greatest, *rows = greatest + size;
    float low = map[0], high = map[0];
    for (int64_t x = 0; x < size; x++)
        columns[x] = map[x];
    for (int64_t y = 0; y < size; y++) {
        const float *row = map + y * size;
        float most = row[0], least = row[0];
        for (int64_t x = 0; x < size; x++) {
            columns[x] = row[x] > columns[x] ? row[x] : columns[x];
            most = row[x] > most ? row[x] : most;
            least = row[x] < least ? row[x] : least;
        }
        rows[y] = most;
        low = least < low ? least : low;
        high = most > high ? most : high;
    }
    float range = high - low;
    if (!isfinite(range))
        return asen_fail(ASEN_ERR_VALUE, "the attention map spans more than a float32 can hold");
    if (range == 0.0f) {
        *box = (asen_image_box){0, 0, size};
        return ASEN_OK;
    }
    double least_kept = floor(255.0 * threshold);
    extent across = extent_of_kept(columns, size, low, range, least_kept);
    extent down = extent_of_kept(rows, size, low, range, least_kept);
    if (across.first < 0 || down.first < 0)
        return asen_fail(ASEN_ERR_VALUE, "INPUT.THRESHOLD %g keeps nothing of the attention map: set it below 1",
                         threshold);
    int64_t w = across.last - across.first + 1, h = down.last - down.first + 1;
    int64_t d = w > h ? w : h;
    box->x = square_start(across.first + w / 2, d, size);
    box->y = square_start(down.first + h / 2, d, size);
    box->d = d;
    return ASEN_OK;
}

int asen_map_box(const float *map, int64_t map_height, int64_t map_width, int64_t global_size, double threshold,
                 int64_t image_height, int64_t image_width, asen_image_box *box)
{
    *box = (asen_image_box){0, 0, 0};
    if (global_size < 1 || global_size > ASEN_IMAGE_MAX_SIZE)
        return asen_fail(ASEN_ERR_VALUE, "INPUT.GLOBAL_SIZE must lie in [1, %d], but is %lld", ASEN_IMAGE_MAX_SIZE,
                         (long long)global_size);
    if (!(threshold < 1.0))
        return asen_fail(ASEN_ERR_VALUE, "INPUT.THRESHOLD must be below 1, but is %g: nothing would be kept",
                         threshold);
    if (image_height < 1 || image_width < 1)
        return asen_fail(ASEN_ERR_VALUE, "an image of %lld x %lld pixels has no crop", (long long)image_width,
                         (long long)image_height);
    for (int64_t i = 0; i < map_height * map_width; i++)
        if (!isfinite(map[i]))
            return asen_fail(ASEN_ERR_VALUE, "the attention map holds NaN or infinity");
    float *resized = malloc((size_t)(global_size * global_size + 2 * global_size) * sizeof *resized);
    if (resized == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory for an attention map of %lld x %lld",
                         (long long)global_size, (long long)global_size);
    int status = asen_map_resize(map, map_height, map_width, resized, global_size, global_size);
    if (status == ASEN_OK)
        status = box_in_map(resized, global_size, threshold, resized + global_size * global_size, box);
    free(resized);
    if (status)
        return status;
    int64_t shorter = image_height < image_width ? image_height : image_width;
    int64_t offset = (image_height > image_width ? image_height - image_width : image_width - image_height) / 2;
    box->x = to_image(box->x, global_size, shorter);
    box->y = to_image(box->y, global_size, shorter);
    box->d = to_image(box->d, global_size, shorter);
    if (box->d < 1) /* an image smaller than the map: the published program would fail */
        box->d = 1;
    if (image_height > image_width)
        box->y += offset;
    else
        box->x += offset;
    return ASEN_OK;
}
