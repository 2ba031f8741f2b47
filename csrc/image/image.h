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

/* A rectangle in a resized image: rows [y, y+height), columns [x, x+width). */
typedef struct {
    int64_t y, x, height, width;
} asen_image_window;

/* A square in the original image: the corner (x, y) and the side d. */
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
 * the window of the result to out (window.height, window.width, 3); nothing else is computed. */
int asen_image_resize(const asen_image *in, int64_t out_height, int64_t out_width,
                      asen_image_window window, uint8_t *out);

/* The rectangle (x, y, width, height) of `in`, which must lie within it. */
asen_image asen_image_view(const asen_image *in, int64_t x, int64_t y, int64_t width, int64_t height);

/* map (height, width) to out (size_y, size_x), as OpenCV's INTER_LINEAR in float32 (docs/reference.md 5,
 * local transform, step 1). */
int asen_map_resize(const float *map, int64_t height, int64_t width, float *out, int64_t size_y,
                    int64_t size_x);

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

/* The global transform: image -> out (size, size, 3), float32; without a scale (NULL) 8-bit pixels. */
int asen_image_global(const asen_image *in, int64_t size, const asen_image_scale *scale, void *out);

/* Step 6 of the local transform: the box of the image (black where it overruns) -> out as above. */
int asen_image_local(const asen_image *in, asen_image_box box, int64_t size,
                     const asen_image_scale *scale, void *out);

#endif
