/* Sums and maxima over the threads of a warp or a block. The order is fixed by the number of threads, so the same call
 * gives the same bits. */
#ifndef ASEN_BLOCK_CUH
#define ASEN_BLOCK_CUH

#include "kernels.cuh"

struct sum_of {
    template <typename A> __device__ __forceinline__ A operator()(A a, A b) const { return a + b; }
};
struct max_of { /* NaN is greater than everything */
    template <typename A> __device__ __forceinline__ A operator()(A a, A b) const { return b > a || b != b ? b : a; }
};

/* Over a warp, in all its threads. */
template <typename A, typename F> __device__ __forceinline__ A warp_tree(A v, F combine)
{
    for (int offset = 16; offset > 0; offset >>= 1)
        v = combine(v, __shfl_xor_sync(0xffffffffu, v, offset));
    return v;
}
template <typename A> __device__ __forceinline__ A warp_sum(A v) { return warp_tree(v, sum_of()); }
template <typename A> __device__ __forceinline__ A warp_max(A v) { return warp_tree(v, max_of()); }

/* The sum of v over a block of `blockDim.x` threads (a multiple of 32, at most 1024), in all threads.
 * `partial` is shared memory for 32 values. */
template <typename A> __device__ __forceinline__ A block_sum(A v, A *partial)
{
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    v = warp_sum(v);
    __syncthreads(); /* partial may still be read from the call before */
    if (lane == 0)
        partial[warp] = v;
    __syncthreads();
    v = lane < warps ? partial[lane] : A(0);
    return warp_sum(v);
}

/* K values a thread, combined over the `lanes` threads (a power of two) that stand `step` threads apart: in v of lane
 * 0, and there in shared[k * THREADS + thread]; v of other lanes is spent. Ends without a barrier: one stands before
 * whatever else `shared` is used for, and before other lanes read. */
template <int THREADS, typename A, int K, typename F>
__device__ __forceinline__ void block_tree(A (&v)[K], A *shared, int lane, int lanes, int step, F combine)
{
    int thread = threadIdx.x;
#pragma unroll
    for (int k = 0; k < K; k++)
        shared[k * THREADS + thread] = v[k];
    for (int half = lanes / 2; half > 0; half /= 2) {
        __syncthreads();
        if (lane < half)
#pragma unroll
            for (int k = 0; k < K; k++) {
                v[k] = combine(v[k], shared[k * THREADS + thread + half * step]);
                shared[k * THREADS + thread] = v[k];
            }
    }
}

#endif
