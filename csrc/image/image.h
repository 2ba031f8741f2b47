/* Images: JPEG decoding, Pillow's bilinear resize, OpenCV's map resize, and the global and local
 * transforms made of them. Plain C on raw pointers: every function here runs without the GIL and
 * keeps no state between calls. Pixels are 8-bit RGB, interleaved; outputs are float32, channels
 * last. "Bit for bit" is meant: integers everywhere that Pillow has them, and no contraction of
 * a*b+c (setup.py compiles image/ so). */
#ifndef ASEN_IMAGE_H
#define ASEN_IMAGE_H

#include <stddef.h>
#include <stdint.h>

/* Above this many pixels a header is taken for a decompression bomb: Pillow's hard limit. */
#define ASEN_IMAGE_MAX_PIXELS ((int64_t)178956970)
/* Bounds on GLOBAL_SIZE and LOCAL_SIZE, and on the sides of an attention map. */
#define ASEN_IMAGE_MAX_SIZE 16384

/* A borrowed view of RGB pixels, or of a rectangle in them: row r, column c, channel k is
 * pixels[r*stride + 3*c + k]. Bytes from the view's own rows up to `end` (the end of the whole
 * image) may be read, though not used: rows may be loaded in blocks of 16 bytes. */
typedef struct {
    const uint8_t *pixels;
    int64_t height, width, stride;
    const uint8_t *end;
} asen_image;

/* A rectangle of pixels: rows [y, y+height), columns [x, x+width). */
typedef struct {
    int64_t y, x, height, width;
} asen_image_window;

/* A square, of a resized map or of an image: the corner (x, y) and the side d. */
typedef struct {
    int64_t x, y, d;
} asen_image_box;

/* Reads the header of the JPEG file in data (n bytes). ASEN_ERR_IO: broken, or larger than
 * ASEN_IMAGE_MAX_PIXELS. ASEN_ERR_UNSUPPORTED: a kind that Pillow must decode (CMYK, lossless, ...). */
int asen_jpeg_size(const uint8_t *data, size_t n, int64_t *height, int64_t *width);

/* Decodes to out (height, width, 3); the sizes must be those that asen_jpeg_size gave. Grayscale
 * comes out as RGB. A file that ends early or holds broken data is ASEN_ERR_IO. */
int asen_jpeg_decode(const uint8_t *data, size_t n, uint8_t *out, int64_t height, int64_t width);

/* Resizes `in` to out_height x out_width as Pillow's Image.resize(..., BILINEAR) does, and writes
 * the window of the result to out (window.height, window.width, 3); nothing else is computed.
 * mirrored: its columns from right to left, each with the same bits. */
int asen_image_resize(const asen_image *in, int64_t out_height, int64_t out_width,
                      asen_image_window window, int mirrored, uint8_t *out);

/* The rectangle (x, y, width, height) of `in`, which must lie within it. */
asen_image asen_image_view(const asen_image *in, int64_t x, int64_t y, int64_t width, int64_t height);

/* map (height, width) to out (size_y, size_x), as OpenCV's INTER_LINEAR in float32 (docs/reference.md 5,
 * local transform, step 1). */
int asen_map_resize(const float *map, int64_t height, int64_t width, float *out, int64_t size_y,
                    int64_t size_x);

/* The centre square of an image: what the global transform shows. */
asen_image_window asen_image_centre(int64_t height, int64_t width);

/* Steps 1 to 4 of the local transform: attention map (map_height, map_width) -> a square of the map
 * resized to global_size. A map that is constant after resizing gives the whole. */
int asen_map_square(const float *map, int64_t map_height, int64_t map_width, int64_t global_size,
                    double threshold, asen_image_box *square);

/* Step 5: the part of an image that the square of a map marks, where the map was made of `shown`, a
 * part of the image resized to global_size x global_size, and mirrored or not. It has at least one
 * pixel, and may overrun `shown`. */
asen_image_window asen_map_part(asen_image_box square, int64_t global_size, asen_image_window shown,
                                int mirrored);

/* Steps 1 to 5 of the local transform: attention map (map_height, map_width) -> the square to crop
 * from an image of image_height x image_width. A map that is constant after resizing gives the
 * whole centre square. The square has at least one pixel, and may overrun the image by one. */
int asen_map_box(const float *map, int64_t map_height, int64_t map_width, int64_t global_size,
                 double threshold, int64_t image_height, int64_t image_width, asen_image_box *box);

/* What a byte becomes, by channel: (x/255 - mean)/std in float32. */
typedef struct {
    float value[3][256];
} asen_image_scale;

void asen_image_scale_init(asen_image_scale *scale, const float mean[3], const float std[3]);

/* Where the 8-bit pixels (size, size, 3) are made that become `out`: `out` itself without a scale,
 * else memory of their own. `key` names the size in messages. After ASEN_OK, asen_image_end must
 * follow: it normalises them into `out` if status is ASEN_OK, frees them, and returns status. */
int asen_image_begin(const char *key, int64_t size, const asen_image_scale *scale, void *out,
                     uint8_t **pixels);
int asen_image_end(int status, uint8_t *pixels, int64_t size, const asen_image_scale *scale, void *out);

/* The global transform as 8-bit pixels (size, size, 3), mirrored or not. */
int asen_image_show(const asen_image *in, int64_t size, int mirrored, uint8_t *pixels);

/* A part of the image, black where it overruns, resized to 8-bit pixels (size, size, 3). */
int asen_image_show_part(const asen_image *in, asen_image_window part, int64_t size, int mirrored,
                         uint8_t *pixels);

/* The global transform: image -> out (size, size, 3), float32; without a scale (NULL) 8-bit pixels. */
int asen_image_global(const asen_image *in, int64_t size, const asen_image_scale *scale, void *out);

/* Step 6 of the local transform: the part of the image (black where it overruns) -> out as above. */
int asen_image_local(const asen_image *in, asen_image_window part, int64_t size,
                     const asen_image_scale *scale, void *out);

#endif
