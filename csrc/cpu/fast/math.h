/* exp, log, tanh and sigmoid in float32 without branches or tables, so that loops over them become
 * vector instructions. No flag that gives up NaN or infinities may be set for files that use this.
 *
 * Largest error over all float32 arguments, against the true value, in units in the last place
 * (as the tests measure it over a dense sample, all three instruction sets):
 *   fast_expf     1.0 ulp, subnormal results included     fast_logf     0.8 ulp
 *   fast_tanhf    1.4 ulp                                 fast_sigmoidf 2.5 ulp above 1e-37
 * Polynomials: Taylor and Chebyshev-economised coefficients as in Cephes (Moshier 1989). */
#ifndef ASEN_CPU_FAST_MATH_H
#define ASEN_CPU_FAST_MATH_H

#include "cpu/fast/fast.h"

FAST_INLINE uint32_t fast_bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

FAST_INLINE float fast_float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* `condition` ? a : b without a branch: with one, the compiler would not make vectors of the loop. */
FAST_INLINE float fast_select(bool condition, float a, float b)
{
    uint32_t mask = 0u - (uint32_t)condition;
    return fast_float_of((fast_bits_of(a) & mask) | (fast_bits_of(b) & ~mask));
}

/* e^x. n = round(x / ln 2) comes out of the low bits of x / ln 2 + 1.5 * 2^23; r = x - n ln 2 in
 * two steps (ln 2 = 0.693359375 - 2.12194440e-4); 2^n as a product of two powers, so that results
 * up to the largest and down to the smallest number are reached. */
FAST_INLINE float fast_expf(float x)
{
    const float magic = 12582912.0f;
    float y = fast_select(x > 89.0f, 89.0f, x);
    y = fast_select(y < -104.0f, -104.0f, y);
    float t = y * 1.44269504f + magic, n = t - magic;
    float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    uint32_t k = fast_bits_of(t) - fast_bits_of(magic);
    uint32_t half = (uint32_t)((int32_t)k >> 1), rest = k - half;
    return p * fast_float_of((half + 127u) << 23) * fast_float_of((rest + 127u) << 23);
}

/* ln x: x = 2^e f with f in [sqrt(1/2), sqrt 2). */
FAST_INLINE float fast_logf(float x)
{
    float raised = x * 8388608.0f; /* for subnormal x */
    float scaled = fast_select(x < 1.17549435e-38f, raised, x);
    float extra = fast_select(x < 1.17549435e-38f, -23.0f, 0.0f);
    uint32_t bits = fast_bits_of(scaled), top = (bits - 0x3f3504f3u) & 0xff800000u;
    float e = (float)((int32_t)top >> 23) + extra, f = fast_float_of(bits - top) - 1.0f, z = f * f;
    float p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    float y = p * f * z + e * -2.12194440e-4f - 0.5f * z;
    y = f + y + e * 0.693359375f;
    y = fast_select(x > 3.40282347e38f, x, y);
    y = fast_select(x == 0.0f, -INFINITY, y);
    return fast_select(x >= 0.0f, y, NAN);
}

/* Of |x|, with the sign of x (also of -0): an odd polynomial below 0.625, else 1 - 2 / (e^2|x| + 1). */
FAST_INLINE float fast_tanhf(float x)
{
    float a = fabsf(x), z = x * x;
    float p = -5.70498872745e-3f;
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    float small = p * z * a + a;
    float large = 1.0f - 2.0f / (fast_expf(2.0f * a) + 1.0f);
    return copysignf(fast_select(a < 0.625f, small, large), x);
}

FAST_INLINE float fast_sigmoidf(float x) { return 1.0f / (1.0f + fast_expf(-x)); }

#endif
