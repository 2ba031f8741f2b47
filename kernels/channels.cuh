/* Channels in vectors: kernels over NHWC memory give each thread a vector of neighbouring channels (vector.cuh),
 * `whole` where C is a multiple of its size and all arrays are aligned. The slow way is for the channel counts
 * that no model has. */
#ifndef ASEN_CHANNELS_CUH
#define ASEN_CHANNELS_CUH

#include "vector.cuh"

/* U rows of memory `step` elements apart, all loads in flight together: a loop that loads one row
 * and works on it would wait for memory each time. Rows from `rows` on are left as they are. */
template <typename T, int U>
__device__ __forceinline__ void channels_load_rows(vector<T> (&v)[U], const T *__restrict__ p, int64_t step, int rows,
                                                   int left, bool whole)
{
#pragma unroll
    for (int u = 0; u < U; u++)
        if (u < rows)
            vector_load(v[u], p + u * step, left, whole);
}

/* Whether vectors of T may be used on rows of C channels at these addresses (NULL: absent). */
template <typename T, typename... P> static inline bool channels_whole(int64_t C, P... pointer)
{
    return C % vector_size<T> == 0 && vector_aligned(pointer...);
}

/* Threads side by side along C: the least power of two that covers `vectors`, 32 at most. */
static inline int channels_threads(int64_t vectors)
{
    int threads = 1;
    while (threads < 32 && threads < vectors)
        threads *= 2;
    return threads;
}

#endif
