/* Small programs with one planted fault each, and their healthy twins: tests/test_cudasim.py runs each in a process
 * of its own and sees that the simulated device shows the fault. */
#include <cstdio>

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <cudnn.h>

struct state {
    cudaStream_t stream;
};
static state cuda;
static int cuda_launched(const char *) { return (int)cudaGetLastError(); }

#include "cudasim.h"

#define TEST(name) extern "C" __attribute__((visibility("default"))) double test_##name(void)

enum { N = 1024 };

static float *device_new(int count)
{
    void *p = nullptr;
    cudaMalloc(&p, (size_t)count * sizeof(float));
    return (float *)p;
}
static float *pinned_new(int count)
{
    void *p = nullptr;
    cudaHostAlloc(&p, (size_t)count * sizeof(float), cudaHostAllocDefault);
    return (float *)p;
}

__global__ void fill_kernel(float *x, float value, int count)
{
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
        x[i] = value;
}
__global__ void scale_kernel(const float *x, float *y, int count)
{
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
        y[i] = 2 * x[i];
}
__global__ void write_kernel(float *x, int i, float value)
{
    if (threadIdx.x == 0)
        x[i] = value;
}
__global__ void read_kernel(const float *x, int i, float *y) { *y = x[i]; }

/* ---- who may touch device memory ---- */

TEST(host_read)
{
    float *x = device_new(N);
    cudaMemset(x, 0, N * sizeof *x);
    cudaDeviceSynchronize();
    return x[3];
}
TEST(host_write)
{
    float *x = device_new(N);
    x[0] = 1;
    return 0;
}
TEST(host_pointer)
{
    static float table[4];
    return ASEN_LAUNCH(write_kernel, 1, 32, 0, table, 0, 1.0f);
}

/* ---- what runs late ---- */

static double read_back(bool wait)
{
    float *x = device_new(N), *host = pinned_new(N);
    host[0] = 7;
    ASEN_LAUNCH(fill_kernel, 2, 64, 0, x, 3.0f, N);
    cudaMemcpyAsync(host, x, N * sizeof *x, cudaMemcpyDeviceToHost, cuda.stream);
    if (wait)
        cudaStreamSynchronize(cuda.stream);
    return host[0];
}
TEST(read_with_wait) { return read_back(true); }
TEST(read_without_wait) { return read_back(false); }

static double two_streams(bool order)
{
    cudaStream_t other, own;
    cudaEvent_t done;
    float *x = device_new(N), *y = device_new(N), *host = pinned_new(N);
    cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&done, cudaEventDisableTiming);
    cuda.stream = other;
    ASEN_LAUNCH(fill_kernel, 2, 64, 0, x, 3.0f, N);
    cudaEventRecord(done, other);
    if (order)
        cudaStreamWaitEvent(own, done, 0);
    cuda.stream = own;
    ASEN_LAUNCH(scale_kernel, 2, 64, 0, x, y, N);
    cudaMemcpyAsync(host, y, N * sizeof *x, cudaMemcpyDeviceToHost, own);
    cudaStreamSynchronize(own);
    return host[5];
}
TEST(streams_ordered) { return two_streams(true); }
TEST(streams_unordered) { return two_streams(false); }

static double slot_twice(bool wait)
{
    float *x = device_new(1), *y = device_new(1), *slot = pinned_new(1), *host = pinned_new(1);
    cudaEvent_t taken;
    cudaEventCreate(&taken);
    *slot = 1;
    cudaMemcpyAsync(x, slot, sizeof *x, cudaMemcpyHostToDevice, cuda.stream);
    cudaEventRecord(taken, cuda.stream);
    if (wait)
        cudaEventSynchronize(taken);
    *slot = 2;
    cudaMemcpyAsync(y, slot, sizeof *y, cudaMemcpyHostToDevice, cuda.stream);
    cudaMemcpyAsync(host, x, sizeof *x, cudaMemcpyDeviceToHost, cuda.stream);
    cudaStreamSynchronize(cuda.stream);
    return *host;
}
TEST(slot_reused_in_time) { return slot_twice(true); }
TEST(slot_reused_early) { return slot_twice(false); }

/* The copy is queued first and its source written then: right only where the queue is slower than the host. */
static double slot_filled(bool early)
{
    float *x = device_new(1), *slot = pinned_new(1), *host = pinned_new(1);
    *slot = early ? 2 : 1;
    cudaMemcpyAsync(x, slot, sizeof *x, cudaMemcpyHostToDevice, cuda.stream);
    *slot = 2;
    cudaMemcpyAsync(host, x, sizeof *x, cudaMemcpyDeviceToHost, cuda.stream);
    cudaStreamSynchronize(cuda.stream);
    return *host;
}
TEST(slot_filled_in_time) { return slot_filled(true); }
TEST(slot_filled_late) { return slot_filled(false); }

TEST(pageable_source_reused)
{
    float *x = device_new(1), host = 1;
    cudaMemcpyAsync(x, &host, sizeof host, cudaMemcpyHostToDevice, cuda.stream);
    host = 2;
    cudaMemcpy(&host, x, sizeof host, cudaMemcpyDeviceToHost);
    return host;
}

/* ---- memory ---- */

static double fetch(const float *x)
{
    float host = 0;
    cudaMemcpy(&host, x, sizeof host, cudaMemcpyDeviceToHost);
    return host;
}
TEST(fresh_memory) { return fetch(device_new(N)); }

static double write_at(int i, int count)
{
    float *x = device_new(count);
    ASEN_LAUNCH(write_kernel, 1, 32, 0, x, i, 5.0f);
    return (double)cudaDeviceSynchronize();
}
TEST(write_inside) { return write_at(N - 1, N); }
TEST(write_one_behind) { return write_at(10, 10); }
TEST(write_far_behind) { return write_at(N + 20, N); }
TEST(write_before) { return write_at(-1, N); }
TEST(read_behind)
{
    float *x = device_new(N), *y = device_new(1);
    ASEN_LAUNCH(read_kernel, 1, 1, 0, x, N + 64, y);
    return (double)cudaDeviceSynchronize();
}
TEST(read_null)
{
    float *y = device_new(1);
    ASEN_LAUNCH(read_kernel, 1, 1, 0, nullptr, 0, y);
    return (double)cudaDeviceSynchronize();
}
TEST(use_after_free)
{
    float *x = device_new(N), *y = device_new(1);
    cudaFree(x);
    ASEN_LAUNCH(read_kernel, 1, 1, 0, x, 0, y);
    return (double)cudaDeviceSynchronize();
}
TEST(free_twice)
{
    float *x = device_new(N);
    cudaFree(x);
    return (double)cudaFree(x);
}
TEST(copy_too_long)
{
    float *x = device_new(N), host[N + 1] = {};
    return (double)cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice);
}
TEST(leak)
{
    cudaEvent_t event;
    cudaStream_t stream;
    void *memory;
    cudaEventCreate(&event);
    cudaStreamCreate(&stream);
    cudaMalloc(&memory, 12345);
    cudaStreamDestroy(stream);
    return 0;
}
TEST(all_memory)
{
    void *p;
    double got = 0;
    while (cudaMalloc(&p, 1 << 20) == cudaSuccess)
        got++;
    return cudaGetLastError() == cudaErrorMemoryAllocation ? got : -1;
}

/* ---- blocks ---- */

__global__ void divergent_kernel(float *x)
{
    if (threadIdx.x < 40)
        __syncthreads();
    x[threadIdx.x] = 1;
}
__global__ void two_barriers_kernel(float *x)
{
    if (threadIdx.x < 40)
        __syncthreads();
    else
        __syncthreads();
    x[threadIdx.x] = 1;
}
__global__ void half_warp_kernel(float *x)
{
    if ((threadIdx.x & 31) < 16)
        x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);
}
__global__ void partial_warp_kernel(float *x) { x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1); }
__global__ void shared_kernel(float *x, int set)
{
    ASEN_SHARED(float, partial, [64]);
    if (set)
        partial[threadIdx.x] = (float)threadIdx.x;
    __syncthreads();
    x[blockIdx.x * blockDim.x + threadIdx.x] = partial[63 - threadIdx.x];
}
__global__ void shared_overflow_kernel(float *x)
{
    ASEN_SHARED(float, partial, [64]);
    for (int i = (int)threadIdx.x; i <= 64; i += (int)blockDim.x)
        partial[i] = 1;
    __syncthreads();
    x[threadIdx.x] = partial[threadIdx.x];
}
/* Sums of a block, right only with the barrier. */
__global__ void sum_kernel(float *x, int barrier)
{
    ASEN_SHARED(float, partial, [64]);
    partial[threadIdx.x] = (float)threadIdx.x;
    for (int half = 32; half > 0; half /= 2) {
        if (barrier)
            __syncthreads();
        if ((int)threadIdx.x < half)
            partial[threadIdx.x] += partial[threadIdx.x + half];
    }
    if (threadIdx.x == 0)
        x[blockIdx.x] = partial[0];
}
__global__ void dynamic_kernel(float *x)
{
    ASEN_SHARED_DYNAMIC(float, tile);
    tile[threadIdx.x] = 1;
    __syncthreads();
    x[threadIdx.x] = tile[threadIdx.x];
}
struct alignas(16) four {
    float item[4];
};
__global__ void vector_kernel(const float *x, float *y)
{
    *reinterpret_cast<four *>(y) = *reinterpret_cast<const four *>(x);
}
/* Warp sums through shuffles, then one warp over the warps. */
__global__ void warp_sum_kernel(float *x)
{
    ASEN_SHARED(float, partial, [8]);
    float v = (float)(threadIdx.x + 1);
    for (int offset = 16; offset > 0; offset >>= 1)
        v += __shfl_down_sync(0xffffffffu, v, offset);
    if ((threadIdx.x & 31) == 0)
        partial[threadIdx.x / 32] = v;
    __syncthreads();
    v = (threadIdx.x & 31) < 8 ? partial[threadIdx.x & 31] : 0;
    for (int offset = 4; offset > 0; offset >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, offset);
    if (threadIdx.x == 0)
        x[blockIdx.x] = __shfl_sync(0xffffffffu, v, 0) + 0 * v;
    else if (threadIdx.x < 32)
        __shfl_sync(0xffffffffu, v, 0);
}
__global__ void right_warp_sum_kernel(float *x)
{
    ASEN_SHARED(float, partial, [8]);
    float v = (float)(threadIdx.x + 1);
    for (int offset = 16; offset > 0; offset >>= 1)
        v += __shfl_down_sync(0xffffffffu, v, offset);
    if ((threadIdx.x & 31) == 0)
        partial[threadIdx.x / 32] = v;
    __syncthreads();
    v = (threadIdx.x & 31) < 8 ? partial[threadIdx.x & 31] : 0;
    for (int offset = 4; offset > 0; offset >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, offset);
    v = __shfl_sync(0xffffffffu, v, 0);
    if (threadIdx.x == 0)
        x[blockIdx.x] = v;
}

static double after(void (*launch)(float *))
{
    float *x = device_new(N);
    cudaMemset(x, 0, N * sizeof *x);
    launch(x);
    cudaError_t error = cudaDeviceSynchronize();
    return error != cudaSuccess ? -(double)error : fetch(x);
}
TEST(divergent_barrier) { return after([](float *x) { ASEN_LAUNCH(divergent_kernel, 1, 64, 0, x); }); }
TEST(different_barriers) { return after([](float *x) { ASEN_LAUNCH(two_barriers_kernel, 1, 64, 0, x); }); }
TEST(divergent_shuffle) { return after([](float *x) { ASEN_LAUNCH(half_warp_kernel, 1, 64, 0, x); }); }
TEST(different_shuffles) { return after([](float *x) { ASEN_LAUNCH(warp_sum_kernel, 1, 256, 0, x); }); }
TEST(partial_warp) { return after([](float *x) { ASEN_LAUNCH(partial_warp_kernel, 1, 48, 0, x); }); }
TEST(warp_sum) { return after([](float *x) { ASEN_LAUNCH(right_warp_sum_kernel, 3, 256, 0, x); }); }
TEST(shared_set) { return after([](float *x) { ASEN_LAUNCH(shared_kernel, 3, 64, 0, x, 1); }); }
TEST(shared_unset) { return after([](float *x) { ASEN_LAUNCH(shared_kernel, 3, 64, 0, x, 0); }); }
TEST(shared_overflow) { return after([](float *x) { ASEN_LAUNCH(shared_overflow_kernel, 1, 64, 0, x); }); }
TEST(sum_with_barrier) { return after([](float *x) { ASEN_LAUNCH(sum_kernel, 3, 64, 0, x, 1); }); }
TEST(sum_without_barrier) { return after([](float *x) { ASEN_LAUNCH(sum_kernel, 3, 64, 0, x, 0); }); }
TEST(aligned_vector) { return after([](float *x) { ASEN_LAUNCH(vector_kernel, 1, 1, 0, x + 4, x + 8); }); }
TEST(misaligned_vector) { return after([](float *x) { ASEN_LAUNCH(vector_kernel, 1, 1, 0, x + 1, x + 8); }); }
TEST(too_many_threads) { return after([](float *x) { ASEN_LAUNCH(fill_kernel, 1, 2048, 0, x, 1.0f, N); }); }
TEST(no_blocks) { return after([](float *x) { ASEN_LAUNCH(fill_kernel, 0, 64, 0, x, 1.0f, N); }); }
TEST(much_shared) { return after([](float *x) { ASEN_LAUNCH(dynamic_kernel, 1, 64, 100 << 10, x); }); }
TEST(much_shared_asked)
{
    cudaFuncSetAttribute((const void *)dynamic_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 100 << 10);
    return after([](float *x) { ASEN_LAUNCH(dynamic_kernel, 1, 64, 100 << 10, x); });
}
TEST(shared_unlaunched) { return after([](float *x) { ASEN_LAUNCH(dynamic_kernel, 1, 64, 0, x); }); }

/* A million threads, each with a barrier: for timing. */
__global__ void barrier_kernel(float *x)
{
    for (int i = 0; i < 10; i++)
        __syncthreads();
    if (threadIdx.x == 0)
        x[blockIdx.x] = 1;
}
TEST(many_barriers) { return after([](float *x) { ASEN_LAUNCH(barrier_kernel, 1000, 256, 0, x); }); }
TEST(many_threads) { return after([](float *x) { ASEN_LAUNCH(fill_kernel, 10000, 256, 0, x, 1.0f, N); }); }

/* ---- errors that nobody looks at ---- */

static int checked(bool all)
{
    void *p = nullptr;
    int status = (int)cudaMalloc(&p, 256);
    if (status)
        return status;
    int fill = (int)cudaMemsetAsync(p, 0, 256, cuda.stream);
    if (all)
        status = fill;
    if (!status)
        status = (int)cudaStreamSynchronize(cuda.stream);
    cudaFree(p);
    return status;
}
TEST(all_checked) { return checked(true); }
TEST(one_unchecked) { return checked(false); }
static int leaks_on_error()
{
    void *p = nullptr;
    int status = (int)cudaMalloc(&p, 256);
    if (status || (status = (int)cudaMemsetAsync(p, 0, 256, cuda.stream)) != 0)
        return status;
    cudaFree(p);
    return 0;
}
TEST(leak_on_error) { return leaks_on_error(); }

/* ---- cuDNN's descriptors ---- */

static cudnnBackendDescriptor_t tensor(int64_t id, int strides, int64_t alignment, int64_t channels_stride)
{
    cudnnBackendDescriptor_t t;
    cudnnDataType_t type = CUDNN_DATA_FLOAT;
    int64_t dims[4] = {2, 4, 3, 3}, stride[4] = {36, channels_stride, 12, 4};
    cudnnBackendCreateDescriptor(CUDNN_BACKEND_TENSOR_DESCRIPTOR, &t);
    cudnnBackendSetAttribute(t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    cudnnBackendSetAttribute(t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims);
    if (strides)
        cudnnBackendSetAttribute(t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, strides, stride);
    cudnnBackendSetAttribute(t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    cudnnBackendSetAttribute(t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    return t;
}
TEST(cudnn_tensor) { return (double)cudnnBackendFinalize(tensor(1, 4, 16, 1)); }
TEST(cudnn_missing_attribute) { return (double)cudnnBackendFinalize(tensor(1, 0, 16, 1)); }
TEST(cudnn_three_strides) { return (double)cudnnBackendFinalize(tensor(1, 3, 16, 1)); }
TEST(cudnn_overlapping_strides) { return (double)cudnnBackendFinalize(tensor(1, 4, 16, 2)); }
TEST(cudnn_odd_alignment) { return (double)cudnnBackendFinalize(tensor(1, 4, 12, 1)); }
TEST(cudnn_wrong_type)
{
    cudnnBackendDescriptor_t t = tensor(1, 4, 16, 1);
    float alignment = 16;
    return (double)cudnnBackendSetAttribute(t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_FLOAT, 1, &alignment);
}
TEST(cudnn_finalized_twice)
{
    cudnnBackendDescriptor_t t = tensor(1, 4, 16, 1);
    cudnnBackendFinalize(t);
    return (double)cudnnBackendFinalize(t);
}
TEST(cudnn_unfinalized_part)
{
    cudnnBackendDescriptor_t t = tensor(1, 4, 16, 1), op;
    cudnnBackendCreateDescriptor(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, &op);
    return (double)cudnnBackendSetAttribute(op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &t);
}
TEST(cudnn_destroyed)
{
    cudnnBackendDescriptor_t t = tensor(1, 4, 16, 1);
    cudnnBackendDestroyDescriptor(t);
    return (double)cudnnBackendFinalize(t);
}

/* ---- for --check: what no order of threads shows ---- */

__global__ void same_value_kernel(float *x) { x[0] = 1; }
__global__ void neighbour_kernel(float *x)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    x[i] = 0 * x[(i + 1) % 128] + 1;
}
__global__ void count_kernel(float *x)
{
    atomicAdd((int *)x + 8, 1);
    if (threadIdx.x == 0 && blockIdx.x == 0)
        x[0] = 1;
}
TEST(race_same_value) { return after([](float *x) { ASEN_LAUNCH(same_value_kernel, 1, 64, 0, x); }); }
TEST(race_of_blocks) { return after([](float *x) { ASEN_LAUNCH(neighbour_kernel, 4, 32, 0, x); }); }
TEST(atomics) { return after([](float *x) { ASEN_LAUNCH(count_kernel, 4, 64, 0, x); }); }
TEST(read_in_granule)
{
    float *x = device_new(10), *y = device_new(1);
    ASEN_LAUNCH(read_kernel, 1, 1, 0, x, 10, y);
    return (double)cudaDeviceSynchronize();
}
