/* The GPU: opening it, choosing it, its memory, waiting for it, and what its errors become. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "cuda.h"

cuda_state cuda;

int cuda_fail(cudaError_t error, const char *call)
{
    cudaGetLastError(); /* what is not sticky is taken back: it was reported */
    call += *call == '('; /* a template with commas: "(sum_kernel<T, V>)" */
    int length = (int)strcspn(call, "()");
    int code = error == cudaErrorMemoryAllocation ? ASEN_ERR_MEMORY : ASEN_ERR_DEVICE;
    return cuda_host.fail(code, "%.*s: %s (%s)", length, call, cudaGetErrorString(error), cudaGetErrorName(error));
}

int cuda_launched(const char *kernel)
{
    cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? ASEN_OK : cuda_fail(error, kernel);
}

/* ---- entering ---- */

static bool forked; /* in a child of fork: CUDA was opened before */

static void child_of_fork(void) { forked = cuda.stream != NULL; }

static int fail_forked(void)
{
    return cuda_host.fail(ASEN_ERR_DEVICE, "CUDA cannot be used in a process that was forked after CUDA was: start it with "
                          "multiprocessing's method 'spawn', or fork before the device \"cuda\" is first named");
}

bool cuda_is_forked(void) { return forked; }

int cuda_enter(int *before)
{
    if (forked)
        return fail_forked();
    CUDA_OK(CUDA_CALL(cudaGetDevice(before)));
    return *before == CUDA_DEVICE ? ASEN_OK : CUDA_CALL(cudaSetDevice(CUDA_DEVICE));
}

void cuda_leave(int before)
{
    if (before != CUDA_DEVICE && cudaSetDevice(before) != cudaSuccess)
        cudaGetLastError();
}

/* ---- opening ---- */

/* One line that says what is missing and what to do. */
static int no_device(cudaError_t error)
{
    int driver = 0, runtime = 0;
    cudaGetLastError();
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0)
        return cuda_host.fail(ASEN_ERR_DEVICE, "no NVIDIA driver is loaded here (libcuda.so.1): install it, or run on the CPU");
    if (error == cudaErrorInsufficientDriver)
        return cuda_host.fail(ASEN_ERR_DEVICE, "the NVIDIA driver is for CUDA %d.%d at most, and this build wants %d.%d: install a newer driver",
                              driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (error == cudaErrorInitializationError) /* another library has used CUDA before the fork */
        return fail_forked();
    if (error == cudaErrorNoDevice)
        return cuda_host.fail(ASEN_ERR_DEVICE, "the driver sees no GPU (CUDA_VISIBLE_DEVICES, containers without --gpus?)");
    return cuda_host.fail(ASEN_ERR_DEVICE, "the driver sees no usable GPU: %s (%s)", cudaGetErrorString(error), cudaGetErrorName(error));
}

enum { OLDEST = 75 }; /* the oldest architecture that kernels are built for: setup.py */

/* With the GPU chosen. */
static int open_chosen(void)
{
    struct cudaDeviceProp properties;
    void *fault = NULL;
    CUDA_OK(CUDA_CALL(cudaGetDeviceProperties(&properties, CUDA_DEVICE)));
    cuda.sm = 10 * properties.major + properties.minor;
    cuda.multiprocessors = properties.multiProcessorCount;
    snprintf(cuda.name, sizeof cuda.name, "%s", properties.name);
    if (cuda.sm < OLDEST)
        return cuda_host.fail(ASEN_ERR_DEVICE, "%s has compute capability %d.%d, and 7.5 is the oldest that this build has kernels for",
                              cuda.name, properties.major, properties.minor);
    CUDA_OK(CUDA_CALL(cudaStreamCreateWithFlags(&cuda.stream, cudaStreamNonBlocking)));
    CUDA_OK(CUDA_CALL(cudaHostAlloc(&fault, sizeof *cuda.fault, cudaHostAllocMapped | cudaHostAllocPortable)));
    memset(fault, 0, sizeof *cuda.fault);
    cuda.fault = fault;
    return cuda_transfer_open();
}

int cuda_device_open(void)
{
    static bool watched;
    int count = 0, before;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0)
        return no_device(error == cudaSuccess ? cudaErrorNoDevice : error);
    CUDA_OK(cuda_conv_check_library());
    CUDA_OK(cuda_matmul_check_library());
    if (!watched && pthread_atfork(NULL, NULL, child_of_fork) != 0)
        return cuda_host.fail(ASEN_ERR_MEMORY, "no memory to watch for forks");
    watched = true;
    CUDA_OK(cuda_enter(&before));
    int status = open_chosen();
    if (status != ASEN_OK)
        cuda_device_close();
    cuda_leave(before);
    return status;
}

void cuda_device_close(void)
{
    int before;
    if (cuda_enter(&before) != ASEN_OK)
        return;
    cuda_transfer_close();
    if (cuda.stream != NULL)
        cudaStreamDestroy(cuda.stream);
    if (cuda.fault != NULL)
        cudaFreeHost(cuda.fault);
    cuda.stream = NULL;
    cuda.fault = NULL;
    cudaGetLastError();
    cuda_leave(before);
}

/* ---- memory ---- */

int cuda_memory_alloc(void *self, size_t bytes, void **out)
{
    *out = NULL;
    CUDA_OK(CUDA_CALL(cudaMalloc(out, bytes)));
    return ASEN_OK;
}

/* cudaFree waits for the device, so queued work that still uses the block has run. After the
 * runtime was shut down at exit there is nothing left to free. */
void cuda_memory_free(void *self, void *data)
{
    if (cudaFree(data) != cudaSuccess)
        cudaGetLastError();
}

int cuda_memory_info(void *self, size_t *free_bytes, size_t *total_bytes)
{
    CUDA_OK(CUDA_CALL(cudaMemGetInfo(free_bytes, total_bytes)));
    return ASEN_OK;
}

/* The fault that is there, to one of the threads that ask. Kernels of other threads may run, and write the next one. */
static bool fault_take(cuda_fault *out)
{
    *out = *(volatile cuda_fault *)cuda.fault;
    return out->what != 0 && __atomic_exchange_n(&cuda.fault->what, 0, __ATOMIC_ACQ_REL) != 0;
}

/* After waiting: the fault as an error, and it is taken back. */
static int fault_check(void)
{
    cuda_fault fault;
    if (!fault_take(&fault))
        return ASEN_OK;
    static const char *const names[] = {
#define OP(name, ...) #name,
#define VIEW(name, ...) #name,
#include "ops/ops.def"
    };
    if (fault.what == ASEN_OP_div + 1)
        return cuda_host.fail(ASEN_ERR_VALUE, "div: integer division by zero (found on the GPU: what was computed after it is not valid)");
    if (fault.what < 0 || fault.what > ASEN_OP_COUNT || names[fault.what - 1] == NULL)
        return cuda_host.fail(ASEN_ERR_DEVICE, "a kernel has overwritten memory that is not its own");
    return cuda_host.fail(ASEN_ERR_INDEX, "%s: an index is %lld, outside [0, %lld) (found on the GPU: what was computed after it is not valid)",
                          names[fault.what - 1], fault.value, fault.limit);
}

int cuda_synchronize(void *self)
{
    CUDA_OK(CUDA_CALL(cudaStreamSynchronize(cuda.stream)));
    return fault_check();
}

/* tf32: float32 products may round their inputs. autotune: see cuda_conv_set_autotune.
 * direct_convolution: our kernels alone (tests). release: frees plans and library handles, until they are needed. */
int cuda_set_option(void *self, const char *name, int64_t value)
{
    if (strcmp(name, "tf32") == 0) {
        cuda.tf32 = value != 0;
        return ASEN_OK;
    }
    if (strcmp(name, "autotune") == 0)
        return cuda_conv_set_autotune((int)(value < 0 || value > 1000 ? -1 : value));
    if (strcmp(name, "direct_convolution") == 0) {
        cuda_conv_set_direct(value != 0);
        return ASEN_OK;
    }
    if (strcmp(name, "release") == 0) {
        CUDA_OK(cuda_synchronize(self));
        cuda_conv_forget();
        cuda_matmul_forget();
        return ASEN_OK;
    }
    return cuda_host.fail(ASEN_ERR_VALUE, "cuda has no option '%s'", name);
}
