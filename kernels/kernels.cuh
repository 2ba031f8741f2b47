/* What kernels share: launching, dtypes, the arrays of a call, faults. Beside it: vector.cuh, block.cuh, index.cuh.
 *
 * Arithmetic is in float for float16, bfloat16 and float32 and in double for float64 (accumulator<T>).
 * All launches go through ASEN_LAUNCH, so that tests/cudasim can compile these files for the host. */
#ifndef ASEN_KERNELS_CUH
#define ASEN_KERNELS_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda.h"

#ifdef ASEN_CUDASIM
#include "cudasim.h" /* brings ASEN_LAUNCH, ASEN_SHARED, the thread indices and barriers */
#else
/* Runs kernel(...) on the device's stream: ASEN_OK or the launch's error. A template with commas goes in
 * parentheses: ASEN_LAUNCH((sum_kernel<float, 4>), grid, block, 0, x, y, n). */
#define ASEN_LAUNCH(kernel, grid, block, shared, ...)                                                                  \
    (kernel<<<(grid), (block), (shared), cuda.stream>>>(__VA_ARGS__), cuda_launched(#kernel))
/* `__shared__ T name[size]` of a fixed size: ASEN_SHARED(float, partial, [32]). */
#define ASEN_SHARED(type, name, size) __shared__ type name size
/* Dynamic shared memory, aligned for any type: ASEN_SHARED_DYNAMIC(float, tile). */
#define ASEN_SHARED_DYNAMIC(type, name)                                                                                \
    extern __shared__ __align__(16) unsigned char asen_shared_bytes[];                                                 \
    type *name = reinterpret_cast<type *>(asen_shared_bytes)
#endif

typedef __half half_t;
typedef __nv_bfloat16 bfloat_t;

template <typename T> struct accumulator_of { typedef float type; };
template <> struct accumulator_of<double> { typedef double type; };
template <typename T> using accumulator = typename accumulator_of<T>::type;

/* x as its accumulator, and back, rounded to nearest even. */
__host__ __device__ __forceinline__ float widen(float x) { return x; }
__host__ __device__ __forceinline__ double widen(double x) { return x; }
__host__ __device__ __forceinline__ float widen(half_t x) { return __half2float(x); }
__host__ __device__ __forceinline__ float widen(bfloat_t x) { return __bfloat162float(x); }
template <typename T> __host__ __device__ __forceinline__ T narrow(accumulator<T> x) { return x; }
template <> __host__ __device__ __forceinline__ half_t narrow<half_t>(float x) { return __float2half_rn(x); }
template <> __host__ __device__ __forceinline__ bfloat_t narrow<bfloat_t>(float x) { return __float2bfloat16_rn(x); }

/* Runs the statements with T being the C++ type of a floating dtype; another dtype is declined.
 *     CUDA_FLOAT_SWITCH(x->dtype, T, { return launch<T>(call); });  */
#define CUDA_FLOAT_SWITCH(dtype, T, ...)                                                                               \
    switch (dtype) {                                                                                                   \
    case ASEN_F32: { typedef float T; __VA_ARGS__ } break;                                                             \
    case ASEN_F64: { typedef double T; __VA_ARGS__ } break;                                                            \
    case ASEN_F16: { typedef half_t T; __VA_ARGS__ } break;                                                            \
    case ASEN_BF16: { typedef bfloat_t T; __VA_ARGS__ } break;                                                         \
    default: return ASEN_DECLINED;                                                                                     \
    }
/* The same for float32 and float64 alone. */
#define CUDA_WIDE_SWITCH(dtype, T, ...)                                                                                \
    switch (dtype) {                                                                                                   \
    case ASEN_F32: { typedef float T; __VA_ARGS__ } break;                                                             \
    case ASEN_F64: { typedef double T; __VA_ARGS__ } break;                                                            \
    default: return ASEN_DECLINED;                                                                                     \
    }

template <typename T> static inline const T *input(const asen_call *call, int i)
{
    return call->in[i] ? static_cast<const T *>(asen_tensor_data(call->in[i])) : nullptr;
}
template <typename T> static inline T *output(const asen_call *call, int k)
{
    return static_cast<T *>(asen_tensor_data(call->out[k]));
}

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Blocks for a grid-stride loop over `count` items: enough to fill the device, no more. */
static inline unsigned grid_for(int64_t count, int block)
{
    int64_t wanted = ceil_div(count, block), limit = (int64_t)cuda.multiprocessors * 32;
    return (unsigned)(wanted < 1 ? 1 : wanted < limit ? wanted : limit);
}

/* Records the first fault of a kernel: see cuda.h. */
__device__ __forceinline__ void cuda_fault_set(cuda_fault *fault, int op, long long value, long long limit)
{
    if (atomicCAS(&fault->what, 0, op + 1) == 0) {
        fault->value = value;
        fault->limit = limit;
    }
}

#endif
