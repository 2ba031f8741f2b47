/* The calls of cudart that are no streams, events or copies: the device, memory, errors, launches' limits. */
#include <cstdio>
#include <cstring>
#include <map>

#include "sim.h"

using namespace cudasim;

namespace cudasim {
/* Bytes of dynamic shared memory that a kernel asked for (cudaFuncSetAttribute); -1: it did not. */
static std::map<const void *, int> &dynamic_limit = *new std::map<const void *, int>;
int dynamic_limit_of(const void *function)
{
    auto found = dynamic_limit.find(function);
    return found == dynamic_limit.end() ? -1 : found->second;
}
} // namespace cudasim

namespace {
struct name_of {
    cudaError_t error;
    const char *name, *text;
};
const name_of names[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered", "part or all of the requested memory range is already mapped"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};
const name_of &entry(cudaError_t error)
{
    for (auto &n : names)
        if (n.error == error)
            return n;
    return names[sizeof names / sizeof *names - 1];
}
} // namespace

extern "C" {

const char *cudaGetErrorName(cudaError_t error) { return entry(error).name; }
const char *cudaGetErrorString(cudaError_t error) { return entry(error).text; }

cudaError_t cudaDriverGetVersion(int *out)
{
    *out = device().driver;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *out)
{
    *out = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *out)
{
    *out = 0;
    CUDASIM_ENTER(cudaGetDeviceCount);
    *out = device_count();
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int index)
{
    CUDASIM_ENTER(cudaSetDevice);
    return set_current_device(index) ? cudaSuccess : set_error(cudaErrorInvalidDevice);
}
cudaError_t cudaGetDevice(int *out)
{
    CUDASIM_ENTER(cudaGetDevice);
    *out = current_device();
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int index)
{
    CUDASIM_ENTER(cudaGetDeviceProperties);
    if (index < 0 || index >= device_count())
        return set_error(cudaErrorInvalidDevice);
    *out = device().properties;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *out, cudaDeviceAttr attribute, int index)
{
    CUDASIM_ENTER(cudaDeviceGetAttribute);
    const cudaDeviceProp &p = device().properties;
    if (index < 0 || index >= device_count())
        return set_error(cudaErrorInvalidDevice);
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *out = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *out = p.minor; break;
    case cudaDevAttrMultiProcessorCount: *out = p.multiProcessorCount; break;
    case cudaDevAttrMaxThreadsPerBlock: *out = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *out = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *out = (int)p.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *out = (int)p.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *out = (int)p.sharedMemPerMultiprocessor; break;
    case cudaDevAttrWarpSize: *out = 32; break;
    case cudaDevAttrL2CacheSize: *out = p.l2CacheSize; break;
    default:
        violation("cudaDeviceGetAttribute: attribute %d is not simulated", (int)attribute);
        return set_error(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    lock_t lock;
    bool fails = CUDASIM_API_FAILS(cudaMalloc);
    *out = nullptr;
    if (device_error() != cudaSuccess)
        return set_error(device_error());
    if (sticky() != cudaSuccess)
        return set_error(sticky());
    if (bytes == 0)
        return cudaSuccess;
    *out = fails ? nullptr : memory_new(bytes);
    if (*out == nullptr)
        return set_error(cudaErrorMemoryAllocation);
    live_add("memory", *out, std::to_string(bytes) + " bytes of device memory", bytes);
    return cudaSuccess;
}
/* Waits for everything first, as hardware does. */
cudaError_t cudaFree(void *data)
{
    CUDASIM_ENTER(cudaFree);
    if (data == nullptr)
        return cudaSuccess;
    queue_run_all();
    if (!memory_delete(data)) {
        violation("cudaFree of %s", memory_describe(data).c_str());
        return set_error(cudaErrorInvalidValue);
    }
    live_remove("memory", data);
    return set_error(sticky());
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    CUDASIM_ENTER(cudaMemGetInfo);
    memory_info(free_bytes, total);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned)
{
    lock_t lock;
    bool fails = CUDASIM_API_FAILS(cudaHostAlloc);
    *out = nullptr;
    if (device_error() != cudaSuccess || sticky() != cudaSuccess)
        return set_error(device_error() != cudaSuccess ? device_error() : sticky());
    *out = fails || bytes == 0 ? nullptr : pinned_new(bytes);
    if (*out == nullptr)
        return bytes == 0 ? cudaSuccess : set_error(cudaErrorMemoryAllocation);
    live_add("host", *out, std::to_string(bytes) + " bytes of pinned memory", bytes);
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **out, size_t bytes) { return cudaHostAlloc(out, bytes, cudaHostAllocDefault); }
cudaError_t cudaFreeHost(void *data)
{
    CUDASIM_ENTER(cudaFreeHost);
    if (data == nullptr)
        return cudaSuccess;
    queue_run_all();
    if (!pinned_delete(data)) {
        violation("cudaFreeHost of %p, which cudaHostAlloc did not give", data);
        return set_error(cudaErrorInvalidValue);
    }
    live_remove("host", data);
    return cudaSuccess;
}
cudaError_t cudaHostGetDevicePointer(void **out, void *host, unsigned)
{
    CUDASIM_ENTER(cudaHostGetDevicePointer);
    *out = nullptr;
    if (!pinned_is(host))
        return set_error(cudaErrorInvalidValue);
    *out = host;
    return cudaSuccess;
}
cudaError_t cudaHostRegister(void *data, size_t bytes, unsigned)
{
    CUDASIM_ENTER(cudaHostRegister);
    if (!pinned_register(data, bytes))
        return set_error(cudaErrorHostMemoryAlreadyRegistered);
    live_add("host", data, std::to_string(bytes) + " bytes of registered memory", bytes);
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *data)
{
    CUDASIM_ENTER(cudaHostUnregister);
    queue_run_all();
    if (!pinned_unregister(data))
        return set_error(cudaErrorInvalidValue);
    live_remove("host", data);
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute attribute, int value)
{
    CUDASIM_ENTER(cudaFuncSetAttribute);
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (value < 0 || (size_t)value > device().properties.sharedMemPerBlockOptin)
            return set_error(cudaErrorInvalidValue);
        dynamic_limit[function] = value;
    }
    return cudaSuccess;
}

} // extern "C"
