/* Loops over one row of floats that several kernels use. Each is cloned where it is included. */
#ifndef ASEN_CPU_FAST_ROWS_H
#define ASEN_CPU_FAST_ROWS_H

#include "cpu/fast/math.h"

#define ROW_BLOCK 256 /* elements that are summed in float before they go into a double */

/* sum a[n] */
FAST_INLINE double row_sum(const float *a, int64_t n)
{
    double total = 0;
    for (int64_t at = 0; at < n; at += ROW_BLOCK) {
        int64_t end = fast_min_i64(n, at + ROW_BLOCK);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = at; i < end; i++)
            sum += a[i];
        total += sum;
    }
    return total;
}

/* sum a[n] * b[n] */
FAST_INLINE double row_dot(const float *a, const float *b, int64_t n)
{
    double total = 0;
    for (int64_t at = 0; at < n; at += ROW_BLOCK) {
        int64_t end = fast_min_i64(n, at + ROW_BLOCK);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = at; i < end; i++)
            sum += a[i] * b[i];
        total += sum;
    }
    return total;
}

/* Largest of a[n]; -inf where n is 0; NaN where there is one. */
FAST_INLINE float row_max(const float *a, int64_t n)
{
    float best = -INFINITY;
    int nan = 0;
#pragma omp simd reduction(max : best) reduction(| : nan)
    for (int64_t i = 0; i < n; i++) {
        best = a[i] > best ? a[i] : best;
        nan |= a[i] != a[i];
    }
    return nan ? NAN : best;
}

/* y[n] = exp(x - shift); the sum of y. */
FAST_INLINE double row_exp_sum(float *restrict y, const float *restrict x, int64_t n, float shift)
{
    double total = 0;
    for (int64_t at = 0; at < n; at += ROW_BLOCK) {
        int64_t end = fast_min_i64(n, at + ROW_BLOCK);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = at; i < end; i++) {
            float e = fast_expf(x[i] - shift);
            y[i] = e;
            sum += e;
        }
        total += sum;
    }
    return total;
}

/* y[n] = x[n] * scale */
FAST_INLINE void row_scale(float *y, const float *x, int64_t n, float scale)
{
    FAST_SIMD
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * scale;
}

/* y[n] += x[n] * scale */
FAST_INLINE void row_add_scaled(float *restrict y, const float *restrict x, int64_t n, float scale)
{
    FAST_SIMD
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i] * scale;
}

/* sum[n] += x[n], in double */
FAST_INLINE void row_flush(double *restrict sum, const float *restrict x, int64_t n)
{
    FAST_SIMD
    for (int64_t i = 0; i < n; i++)
        sum[i] += x[i];
}

#endif
