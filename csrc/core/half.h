/* The bits of float16 and bfloat16 of a float, rounded to nearest even. */
#ifndef ASEN_HALF_H
#define ASEN_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t asen_float_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float asen_bits_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline uint16_t asen_bfloat_from_float(float x)
{
    uint32_t u = asen_float_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40); /* a quiet NaN */
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

static inline uint16_t asen_half_from_float(float x)
{
    uint32_t u = asen_float_bits(x), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (a >= 0x477ff000u) /* rounds to 2^16 or more */
        return (uint16_t)(sign | 0x7c00u);
    if (a < 0x38800000u) { /* subnormal: let the adder round at 2^-24 */
        uint32_t r = asen_float_bits(asen_bits_float(a) + 0.5f) - asen_float_bits(0.5f);
        return (uint16_t)(sign | r);
    }
    uint32_t r = a + 0xfffu + (a >> 13 & 1) - 0x38000000u;
    return (uint16_t)(sign | r >> 13);
}

#endif
