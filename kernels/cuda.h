/* What all files of the CUDA plugin share: the device's state, errors, services of the core.
 *
 * The plugin is one device, "cuda": the first GPU that CUDA_VISIBLE_DEVICES leaves. Everything runs
 * in queue order on one stream (transfer.c has a second one for uploads), so memory that the core
 * frees may be given to the next op at once. Functions return the core's status codes; a kernel of
 * a row of ops.def is `int cuda_<op>(const asen_call *)`, called with inputs as the row wants them
 * and dense outputs allocated.
 *
 * No kernel adds up floats with atomics: the same call gives the same bits. */
#ifndef ASEN_CUDA_H
#define ASEN_CUDA_H

#include <cuda_runtime_api.h>

#include "ops/backend.h"

ASEN_C_BEGIN

/* The core's services, set when the plugin is loaded. */
extern asen_services cuda_host;

enum { CUDA_DEVICE = 0 }; /* the GPU's number in this process */

typedef struct cuda_state {
    cudaStream_t stream;
    int sm;                 /* compute capability, 90 for 9.0 */
    int multiprocessors;
    ASEN_ATOMIC(bool) tf32; /* options: float32 convolutions and matrix products may run as TF32 */
    struct cuda_fault *fault; /* host memory that kernels write into: see below */
    char name[256];
} cuda_state;

extern cuda_state cuda;

/* ---- errors ----
 *
 * Everything that can fail is an expression of the core's status codes; a call of a library becomes one by CUDA_CALL,
 * or CUBLAS_CALL and its like beside it. Two statements look at them: CUDA_OK where there is nothing to give back,
 * CUDA_STEP where there is. */

/* The status of a failed call, with a message that names it: "cudaMemcpyAsync: an illegal …". */
int cuda_fail(cudaError_t error, const char *call);
static inline int cuda_status(cudaError_t error, const char *call)
{
    return error == cudaSuccess ? ASEN_OK : cuda_fail(error, call);
}
/* A call of the runtime as a status. */
#define CUDA_CALL(call) cuda_status((call), #call)
/* `return`s a status that is not ASEN_OK. */
#define CUDA_OK(...)                                                                                                   \
    do {                                                                                                               \
        int status_ = (__VA_ARGS__);                                                                                   \
        if (status_ != ASEN_OK)                                                                                        \
            return status_;                                                                                            \
    } while (0)
/* Leaves a status in the variable `status` of the caller, and goes to its label `done` where it is not ASEN_OK. */
#define CUDA_STEP(...)                                                                                                 \
    do {                                                                                                               \
        status = (__VA_ARGS__);                                                                                        \
        if (status != ASEN_OK)                                                                                         \
            goto done;                                                                                                 \
    } while (0)
/* After a launch: ASEN_OK, or the error of the launch itself (a bad configuration, no image). */
int cuda_launched(const char *kernel);

/* Errors that only a kernel can see (an index out of range, an integer divided by zero) are written into
 * host memory and reported by whoever waits next. A kernel calls cuda_fault_set (kernels.cuh); the first
 * one counts. */
typedef struct cuda_fault {
    int what; /* 0: none; asen_op + 1 */
    long long value, limit;
} cuda_fault;

/* device.c */
int cuda_device_open(void); /* leaves the thread's choice of a GPU as it was; so does close */
void cuda_device_close(void);
/* Every function of the table stands between these two (plugin.c): other libraries in the process may have chosen another
 * GPU for this thread, and a new thread has chosen the first one. An error in a process that was forked since CUDA was
 * opened: nothing of CUDA may be touched there, pinned memory included. */
int cuda_enter(int *before);
void cuda_leave(int before);
bool cuda_is_forked(void);
int cuda_memory_alloc(void *self, size_t bytes, void **out);
void cuda_memory_free(void *self, void *data);
int cuda_memory_info(void *self, size_t *free_bytes, size_t *total_bytes);
int cuda_synchronize(void *self);
int cuda_set_option(void *self, const char *name, int64_t value);

/* transfer.c */
int cuda_transfer_open(void);
void cuda_transfer_close(void);
int cuda_memory_copy(void *self, void *target, const void *source, size_t bytes, asen_copy_kind kind);

/* move.cu */
int cuda_fill(void *self, void *target, const void *value, size_t size, int64_t count);
int cuda_write_strided(void *self, const asen_tensor *target, const asen_tensor *source);

/* optim.cu */
int cuda_optim_step(void *self, const asen_optim_call *call);
int cuda_unscale(void *self, asen_dtype dtype, int64_t count, void *const *data, const int64_t *length, double factor,
                 bool *finite);

/* cudnn_conv.c */
int cuda_conv_check_library(void); /* whether the cuDNN that was loaded is one for this build */
void cuda_conv_forget(void); /* frees plans and the cuDNN handle; they are made again when needed */
/* How many plans to try on real data when a convolution is first met (8 at most), keeping the fastest; 0 or
 * 1: what the heuristics put first. Timings decide then, so two runs may differ in their last bits. */
int cuda_conv_set_autotune(int n);
void cuda_conv_set_direct(bool only); /* our kernels in place of cuDNN, which they otherwise only stand behind */

/* matmul.c */
int cuda_matmul_check_library(void);
void cuda_matmul_forget(void); /* frees plans and the cuBLASLt handle, until they are needed */

/* int cuda_<op>(const asen_call *) for every row: what is missing does not link. */
#define OP(name, ...) int cuda_##name(const asen_call *call);
#include "ops/ops.def"

/* An input that may be absent: NULL then. */
static inline const asen_tensor *cuda_optional(const asen_call *call, int i)
{
    return i < call->n_in ? call->in[i] : NULL;
}

/* Device memory for one call. Freed right after the launch: the next user comes later in the queue. */
static inline int cuda_scratch_new(const asen_call *call, size_t bytes, void **out)
{
    return cuda_host.scratch_new(call->device, bytes, out);
}
static inline void cuda_scratch_free(const asen_call *call, void *data, size_t bytes)
{
    cuda_host.scratch_free(call->device, data, bytes);
}

ASEN_C_END
#endif
