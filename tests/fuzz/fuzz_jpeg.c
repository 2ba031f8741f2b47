/* Fuzz target: any bytes as a JPEG file, decoded and put through the global and the local transform,
 * plain and augmented, at small outputs. Files whose header promises more than MAX_PIXELS are only measured. */
#include <stdint.h>
#include <stdlib.h>

#include "image/augment.h"

#define MAX_PIXELS 65536
#define SIZE 24

/* The augmented view at 1 x 1 up to SIZE x SIZE, 8-bit or not, and the crop that a map of it marks. */
static void augment(const asen_image *image, const uint8_t *data, size_t n, const asen_image_scale *scale,
                    const float *map, void *out)
{
    static const uint8_t mean[3] = {1, 2, 3};
    const uint8_t *last = data + n - 1;
    asen_augment settings = {0.5, (last[0] + 1) / 256.0, 0.5, data[n / 2] / 255.0};
    int64_t size = 1 + data[n / 3] % SIZE;
    const asen_image_scale *wanted = data[n / 4] % 2 ? scale : NULL;
    asen_augment_draw draw;
    asen_augment_draw_init(&draw, &settings, n, 0, data[n / 5], image->height, image->width, size);
    if (asen_augment_check(&settings) || asen_augment_global(image, size, &settings, &draw, wanted, mean, out))
        return;
    asen_image_box square;
    if (asen_map_square(map, 4, 4, size, 0.5, &square) == 0)
        asen_augment_local(image, asen_map_part(square, size, draw.shown, draw.mirrored), SIZE, &draw, wanted, out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const float mean[3] = {0.5f, 0.5f, 0.5f}, std[3] = {0.25f, 0.25f, 0.25f};
    int64_t height, width;
    if (asen_jpeg_size(data, size, &height, &width) || height * width > MAX_PIXELS)
        return 0;
    size_t bytes = (size_t)(height * width * 3);
    uint8_t *pixels = malloc(bytes);
    float *out = malloc(SIZE * SIZE * 3 * sizeof *out);
    if (pixels != NULL && out != NULL && asen_jpeg_decode(data, size, pixels, height, width) == 0) {
        asen_image image = {pixels, height, width, 3 * width, pixels + bytes};
        asen_image_scale scale;
        asen_image_scale_init(&scale, mean, std);
        asen_image_global(&image, SIZE, &scale, out);
        float map[16];
        for (int i = 0; i < 16; i++)
            map[i] = (float)data[((size_t)i * 37 + 11) % size];
        asen_image_box box;
        if (asen_map_box(map, 4, 4, SIZE, 0.5, height, width, &box) == 0)
            asen_image_local(&image, (asen_image_window){box.y, box.x, box.d, box.d}, SIZE, &scale, out);
        augment(&image, data, size, &scale, map, out);
    }
    free(pixels);
    free(out);
    return 0;
}
