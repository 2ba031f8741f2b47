/* Stores past the caches, for outputs larger than them.
 *
 * An ordinary store first reads the line it will overwrite; a non-temporal one does not, which
 * saves a third of the traffic of y = f(x). A block is computed into a small buffer that stays
 * in the first-level cache, and copied out from there. */
#ifndef ASEN_CPU_FAST_STREAM_H
#define ASEN_CPU_FAST_STREAM_H

#include "cpu/fast/fast.h"

#ifdef __SSE2__
#include <xmmintrin.h>
#endif

/* From this many bytes of output on. */
#define FAST_STREAM_BYTES ((int64_t)16 << 20)

/* target[n] = source[n]; both aligned to 4 bytes at least. */
FAST_INLINE void fast_stream_copy(float *target, const float *source, int64_t n)
{
#ifdef __SSE2__
    int64_t i = 0;
    for (; i < n && ((uintptr_t)(target + i) & 63) != 0; i++)
        target[i] = source[i];
    for (; i + 16 <= n; i += 16) {
        __m128 a = _mm_loadu_ps(source + i), b = _mm_loadu_ps(source + i + 4);
        __m128 c = _mm_loadu_ps(source + i + 8), d = _mm_loadu_ps(source + i + 12);
        _mm_stream_ps(target + i, a);
        _mm_stream_ps(target + i + 4, b);
        _mm_stream_ps(target + i + 8, c);
        _mm_stream_ps(target + i + 12, d);
    }
    for (; i < n; i++)
        target[i] = source[i];
#else
    memcpy(target, source, (size_t)n * sizeof *target);
#endif
}

/* Makes streamed stores visible to other threads; once after a thread's last one. */
FAST_INLINE void fast_stream_fence(void)
{
#ifdef __SSE2__
    _mm_sfence();
#endif
}

#endif
