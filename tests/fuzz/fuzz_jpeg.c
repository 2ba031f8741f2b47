/* Fuzz target: any bytes as a JPEG file, decoded and put through the global and the local transform
 * at small outputs. Files whose header promises more than MAX_PIXELS are only measured. */
#include <stdint.h>
#include <stdlib.h>

#include "image/image.h"

#define MAX_PIXELS 65536
#define SIZE 24

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
    }
    free(pixels);
    free(out);
    return 0;
}
