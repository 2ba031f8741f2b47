/* Training images changed at random (docs/reference.md 5, augmentation): random resized crop, mirroring, jitter of
 * brightness, contrast and saturation, random erasing.
 *
 * What is drawn is a pure function of (seed, epoch, image id, number of the draw): Philox numbers, IEEE arithmetic
 * and integers, so it is the same on every machine. Each property has numbers of its own: whether one is switched
 * on leaves the others' draws as they are. */
#ifndef ASEN_AUGMENT_H
#define ASEN_AUGMENT_H

#include "image/image.h"

/* INPUT.AUGMENT, by its keys. */
typedef struct {
    double flip;   /* FLIP: probability of mirroring, in [0, 1] */
    double crop;   /* CROP: least area of a window as a part of the centre square's, in (0, 1]; 1: no windows */
    double erase;  /* ERASE: probability of a rectangle without content, in [0, 1] */
    double jitter; /* JITTER x: factors from [1 - x, 1 + x], x in [0, 1] */
} asen_augment;

/* What was drawn for an image. */
typedef struct {
    int mirrored;
    asen_image_window shown;  /* of the image: the window, or the centre square, which the global transform shows */
    asen_image_window erased; /* of the view (size, size); height and width 0: nothing */
    double brightness, contrast, saturation;
    double grey;              /* mean grey of the brightened view, 0 to 255: what contrast goes by */
} asen_augment_draw;

/* ASEN_ERR_VALUE names the key that is out of range. */
int asen_augment_check(const asen_augment *settings);

/* Draws for an image of height x width pixels that is shown at size x size, all at least 1; grey stays 0. */
void asen_augment_draw_init(asen_augment_draw *draw, const asen_augment *settings, uint64_t seed, uint64_t epoch,
                            int64_t image_id, int64_t height, int64_t width, int64_t size);

/* The augmented view -> out (size, size, 3) as asen_image_global has it; erased pixels are 0 after normalisation,
 * or `mean` (3 bytes) where out is 8-bit. Sets draw->grey. */
int asen_augment_global(const asen_image *in, int64_t size, const asen_augment *settings, asen_augment_draw *draw,
                        const asen_image_scale *scale, const uint8_t mean[3], void *out);

/* The part of the original image, mirrored and jittered as its view was, not erased -> out (size, size, 3). */
int asen_augment_local(const asen_image *in, asen_image_window part, int64_t size, const asen_augment_draw *draw,
                       const asen_image_scale *scale, void *out);

#endif
