/* Vectors: neighbouring elements that one instruction loads or stores, 16 bytes at most.
 *
 * A kernel that works on vectors asks vector_aligned of its arrays first. Where an array ends within a vector, or an
 * address allows none, the same thread takes the same elements one by one (`whole` false), as many as are left: so one
 * kernel serves every size. */
#ifndef ASEN_VECTOR_CUH
#define ASEN_VECTOR_CUH

#include "kernels.cuh"

/* N * sizeof(T) is 16 at most. */
template <typename T, int N> struct alignas(sizeof(T) * N) vector_of { T item[N]; };

/* The elements of 16 bytes. */
template <typename T> constexpr int vector_size = 16 / (int)sizeof(T);
template <typename T> using vector = vector_of<T, vector_size<T>>;

/* 16 bytes that are moved as they are. */
typedef vector_of<uint64_t, 2> unit16;

/* Whether all addresses (NULL: absent) are those of vectors of 16 bytes. */
template <typename... P> __host__ __device__ __forceinline__ bool vector_aligned(P... pointer)
{
    return ((uintptr_t)pointer | ...) % 16 == 0;
}

template <typename T, int N> __device__ __forceinline__ void vector_load(vector_of<T, N> &v, const T *p)
{
    v = *reinterpret_cast<const vector_of<T, N> *>(p);
}

/* left: how many elements there are from p on; whole: it may be loaded at once. What is not there becomes `rest`. */
template <typename T, int N, typename L>
__device__ __forceinline__ void vector_load(vector_of<T, N> &v, const T *__restrict__ p, L left, bool whole, T rest = narrow<T>(0))
{
    if (whole) {
        vector_load(v, p);
        return;
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        v.item[i] = i < left ? p[i] : rest;
}

template <typename T, int N> __device__ __forceinline__ void vector_store(T *p, const vector_of<T, N> &v)
{
    *reinterpret_cast<vector_of<T, N> *>(p) = v;
}

template <typename T, int N, typename L>
__device__ __forceinline__ void vector_store(T *__restrict__ p, const vector_of<T, N> &v, L left, bool whole)
{
    if (whole) {
        vector_store(p, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        if (i < left)
            p[i] = v.item[i];
}

/* One load, or one element N times where it is broadcast. */
template <typename T, int N> __device__ __forceinline__ void vector_load_broadcast(vector_of<T, N> &v, const T *p, bool broadcast)
{
    if (N > 1 && !broadcast) {
        vector_load(v, p);
        return;
    }
    for (int i = 0; i < N; i++)
        v.item[i] = *p;
}

/* To accumulators, in a step of its own, so that a thread's loads do not wait for each other; and back. */
template <typename T, int N> __device__ __forceinline__ void vector_widen(accumulator<T> (&to)[N], const vector_of<T, N> &v)
{
    for (int i = 0; i < N; i++)
        to[i] = widen(v.item[i]);
}
template <typename T, int N> __device__ __forceinline__ void vector_narrow(vector_of<T, N> &v, const accumulator<T> (&from)[N])
{
    for (int i = 0; i < N; i++)
        v.item[i] = narrow<T>(from[i]);
}

#endif
