/* From an attention map to the square that is cropped: docs/reference.md 5, local transform, steps 1 to 5.
 * Floats and doubles are used exactly where the published program has them, so that every crop is
 * the same.
 *
 * The mask of step 2 is never stored. Its byte is a non-decreasing function of the resized value
 * (subtraction, division, multiplication and truncation all are, rounding included), so a row holds
 * a kept pixel exactly when its greatest value is kept, and so does a column. The resized map is
 * not stored either, but made row by row. */
#include "image/image.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"

/* Rows are padded to whole blocks, with copies of the last column, and the loops over a block have
 * a constant length: so the compiler vectorises them. */
#define BLOCK 8

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

/* A map resized along its rows, and how its columns are to be mixed. */
typedef struct {
    int64_t stride; /* floats of a row: a multiple of BLOCK */
    tap *rows;      /* (size_y) */
    float *wide;    /* (height, stride) */
    float *row;     /* (stride): one row of the result */
} resizer;

static void resizer_free(resizer *r)
{
    free(r->rows);
    free(r->wide);
    free(r->row);
}

static int resizer_init(resizer *r, const float *map, int64_t height, int64_t width, int64_t size_y, int64_t size_x)
{
    memset(r, 0, sizeof *r);
    if (height < 1 || width < 1 || size_y < 1 || size_x < 1 || height > ASEN_IMAGE_MAX_SIZE ||
        width > ASEN_IMAGE_MAX_SIZE || size_y > ASEN_IMAGE_MAX_SIZE || size_x > ASEN_IMAGE_MAX_SIZE)
        return asen_fail(ASEN_ERR_VALUE, "an attention map of %lld x %lld cannot be resized to %lld x %lld",
                         (long long)height, (long long)width, (long long)size_y, (long long)size_x);
    r->stride = (size_x + BLOCK - 1) / BLOCK * BLOCK;
    tap *columns = malloc((size_t)size_x * sizeof *columns);
    r->rows = malloc((size_t)size_y * sizeof *r->rows);
    r->wide = malloc((size_t)(height * r->stride) * sizeof *r->wide);
    r->row = malloc((size_t)r->stride * sizeof *r->row);
    if (columns == NULL || r->rows == NULL || r->wide == NULL || r->row == NULL) {
        free(columns);
        resizer_free(r);
        return asen_fail(ASEN_ERR_MEMORY, "out of memory for resizing an attention map");
    }
    taps_of_columns(columns, width, size_x);
    taps_of_rows(r->rows, height, size_y);
    for (int64_t y = 0; y < height; y++) {
        const float *from = map + y * width;
        float *to = r->wide + y * r->stride;
        for (int64_t x = 0; x < size_x; x++)
            to[x] = from[columns[x].first] * columns[x].weight0 + from[columns[x].second] * columns[x].weight1;
        for (int64_t x = size_x; x < r->stride; x++)
            to[x] = to[size_x - 1];
    }
    free(columns);
    return ASEN_OK;
}

/* Row y of the result, in r->row. */
static void make_row(const resizer *r, int64_t y)
{
    float w0 = r->rows[y].weight0, w1 = r->rows[y].weight1;
    const float *restrict a = r->wide + r->rows[y].first * r->stride;
    const float *restrict b = r->wide + r->rows[y].second * r->stride;
    float *restrict to = r->row;
    for (int64_t x = 0; x < r->stride; x += BLOCK)
        for (int k = 0; k < BLOCK; k++)
            to[x + k] = a[x + k] * w0 + b[x + k] * w1;
}

int asen_map_resize(const float *map, int64_t height, int64_t width, float *out, int64_t size_y, int64_t size_x)
{
    resizer r;
    int status = resizer_init(&r, map, height, width, size_y, size_x);
    if (status)
        return status;
    for (int64_t y = 0; y < size_y; y++) {
        make_row(&r, y);
        memcpy(out + y * size_x, r.row, (size_t)size_x * sizeof *out);
    }
    resizer_free(&r);
    return ASEN_OK;
}

/* Raises the column's greatest values, and returns the row's extremes. */
static void scan_row(const float *restrict row, int64_t stride, float *restrict columns, float *max, float *min)
{
    float high[BLOCK], low[BLOCK];
    memcpy(high, row, sizeof high);
    memcpy(low, row, sizeof low);
    for (int64_t x = 0; x < stride; x += BLOCK)
        for (int k = 0; k < BLOCK; k++) {
            float v = row[x + k];
            columns[x + k] = v > columns[x + k] ? v : columns[x + k];
            high[k] = v > high[k] ? v : high[k];
            low[k] = v < low[k] ? v : low[k];
        }
    *max = high[0];
    *min = low[0];
    for (int k = 1; k < BLOCK; k++) {
        *max = high[k] > *max ? high[k] : *max;
        *min = low[k] < *min ? low[k] : *min;
    }
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

/* Step 5: an integer of the resized square, in pixels of the side that it was made of. */
static int64_t to_image(int64_t v, int64_t size, int64_t side)
{
    return (int64_t)((double)v / (double)size * (double)side);
}

/* Steps 2 to 4: the square (x, y, d) in the resized map (size, size). `greatest` is scratch for
 * the greatest value of each column (r->stride floats), then of each row (size). */
static int box_in_map(const resizer *r, int64_t size, double threshold, float *greatest, asen_image_box *box)
{
    float *columns = greatest, *rows = greatest + r->stride;
    float low = INFINITY, high = -INFINITY;
    for (int64_t x = 0; x < r->stride; x++)
        columns[x] = -INFINITY;
    for (int64_t y = 0; y < size; y++) {
        float min;
        make_row(r, y);
        scan_row(r->row, r->stride, columns, &rows[y], &min);
        low = min < low ? min : low;
        high = rows[y] > high ? rows[y] : high;
    }
    float range = high - low;
    if (!isfinite(range))
        return asen_fail(ASEN_ERR_VALUE, "the attention map spans more than a float32 can hold");
    if (range == 0.0f) {
        *box = (asen_image_box){0, 0, size};
        return ASEN_OK;
    }
    double min_kept = floor(255.0 * threshold);
    extent across = extent_of_kept(columns, size, low, range, min_kept);
    extent down = extent_of_kept(rows, size, low, range, min_kept);
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

int asen_map_square(const float *map, int64_t map_height, int64_t map_width, int64_t global_size, double threshold,
                    asen_image_box *square)
{
    *square = (asen_image_box){0, 0, 0};
    if (global_size < 1 || global_size > ASEN_IMAGE_MAX_SIZE)
        return asen_fail(ASEN_ERR_VALUE, "INPUT.GLOBAL_SIZE must lie in [1, %d], but is %lld", ASEN_IMAGE_MAX_SIZE,
                         (long long)global_size);
    if (!(threshold < 1.0))
        return asen_fail(ASEN_ERR_VALUE, "INPUT.THRESHOLD must be below 1, but is %g: nothing would be kept",
                         threshold);
    for (int64_t i = 0; i < map_height * map_width; i++)
        if (!isfinite(map[i]))
            return asen_fail(ASEN_ERR_VALUE, "the attention map holds NaN or infinity");
    resizer r;
    int status = resizer_init(&r, map, map_height, map_width, global_size, global_size);
    if (status)
        return status;
    float *greatest = malloc((size_t)(r.stride + global_size) * sizeof *greatest);
    if (greatest == NULL)
        status = asen_fail(ASEN_ERR_MEMORY, "out of memory for an attention map of %lld x %lld",
                           (long long)global_size, (long long)global_size);
    else
        status = box_in_map(&r, global_size, threshold, greatest, square);
    free(greatest);
    resizer_free(&r);
    return status;
}

asen_image_window asen_image_centre(int64_t height, int64_t width)
{
    int64_t side = height < width ? height : width;
    return (asen_image_window){(height - side) / 2, (width - side) / 2, side, side};
}

asen_image_window asen_map_part(asen_image_box square, int64_t global_size, asen_image_window shown, int mirrored)
{
    int64_t x = mirrored ? global_size - square.x - square.d : square.x;
    asen_image_window part = {
        shown.y + to_image(square.y, global_size, shown.height),
        shown.x + to_image(x, global_size, shown.width),
        to_image(square.d, global_size, shown.height),
        to_image(square.d, global_size, shown.width),
    };
    if (part.height < 1) /* an image smaller than the map: the published program would fail */
        part.height = 1;
    if (part.width < 1)
        part.width = 1;
    return part;
}

int asen_map_box(const float *map, int64_t map_height, int64_t map_width, int64_t global_size, double threshold,
                 int64_t image_height, int64_t image_width, asen_image_box *box)
{
    *box = (asen_image_box){0, 0, 0};
    if (image_height < 1 || image_width < 1)
        return asen_fail(ASEN_ERR_VALUE, "an image of %lld x %lld pixels has no crop", (long long)image_width,
                         (long long)image_height);
    asen_image_box square;
    int status = asen_map_square(map, map_height, map_width, global_size, threshold, &square);
    if (status)
        return status;
    asen_image_window part = asen_map_part(square, global_size, asen_image_centre(image_height, image_width), 0);
    *box = (asen_image_box){part.x, part.y, part.width};
    return ASEN_OK;
}
