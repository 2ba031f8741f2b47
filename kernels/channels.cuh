/* Channels in vectors: kernels over NHWC memory give each thread V neighbouring channels, 16 bytes.
 *
 * Where C is a multiple of V and the pointers are aligned ("whole"), a vector is one load or store;
 * else the same thread takes the same channels one by one, as many as are left. So one kernel a
 * dtype serves every C, and the slow way is for the channel counts that no model has. */
#ifndef ASEN_CHANNELS_CUH
#define ASEN_CHANNELS_CUH

#include "kernels.cuh"

template <typename T> struct channels_of { static constexpr int count = 16 / (int)sizeof(T); };
template <typename T> using channel_vector = vector_of<T, channels_of<T>::count>;

/* p: the first of the thread's channels; left: how many channels there are from p on (at least 1). */
template <typename T>
__device__ __forceinline__ void channels_load(channel_vector<T> &v, const T *__restrict__ p, int left, bool whole)
{
    if (whole) {
        v = *reinterpret_cast<const channel_vector<T> *>(p);
        return;
    }
#pragma unroll
    for (int i = 0; i < channels_of<T>::count; i++)
        v.item[i] = i < left ? p[i] : narrow<T>(0);
}

template <typename T>
__device__ __forceinline__ void channels_store(T *__restrict__ p, const channel_vector<T> &v, int left, bool whole)
{
    if (whole) {
        *reinterpret_cast<channel_vector<T> *>(p) = v;
        return;
    }
#pragma unroll
    for (int i = 0; i < channels_of<T>::count; i++)
        if (i < left)
            p[i] = v.item[i];
}

/* U rows of memory `step` elements apart, all loads in flight together: a loop that loads one row
 * and works on it would wait for memory each time. Rows from `rows` on are left as they are. */
template <typename T, int U>
__device__ __forceinline__ void channels_load_rows(channel_vector<T> (&v)[U], const T *__restrict__ p, int64_t step, int rows,
                                                   int left, bool whole)
{
#pragma unroll
    for (int u = 0; u < U; u++)
        if (u < rows)
            channels_load<T>(v[u], p + u * step, left, whole);
}

/* Whether vectors of T may be used on rows of C channels at these addresses (NULL: absent). */
template <typename T> static inline bool channels_whole(int64_t C, const void *a, const void *b = nullptr, const void *c = nullptr,
                                                        const void *d = nullptr, const void *e = nullptr)
{
    uintptr_t bits = (uintptr_t)a | (uintptr_t)b | (uintptr_t)c | (uintptr_t)d | (uintptr_t)e;
    return C % channels_of<T>::count == 0 && bits % 16 == 0;
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
