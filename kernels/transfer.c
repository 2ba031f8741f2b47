/* Copies between host and device.
 *
 * To the device: the bytes go through a ring of pinned slots, so the caller's memory is free at
 * once. A slot's transfer runs on a stream of its own into a device buffer of the slot, beside
 * whatever is being computed; only the last copy, from that buffer into the target, is queued among
 * the kernels. So uploads overlap with compute although the target may be memory that a queued
 * kernel still reads. That copy costs device bandwidth, which is a hundred times the bus's.
 * To the host: complete on return, and the place where faults of kernels are reported. */
#include <pthread.h>
#include <string.h>

#include "cuda.h"

enum { SLOTS = 4, SLOT_BYTES = 4 << 20 };

typedef struct slot {
    void *host, *device;
    cudaEvent_t arrived; /* the transfer is done: `host` may be written, `device` read */
    cudaEvent_t taken;   /* the last copy is done: `device` may be written */
    bool used;
} slot;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static cudaStream_t uploads;
static slot ring[SLOTS];
static unsigned next;

int cuda_transfer_open(void)
{
    return CUDA_CALL(cudaStreamCreateWithFlags(&uploads, cudaStreamNonBlocking));
}

void cuda_transfer_close(void)
{
    if (uploads != NULL)
        cudaStreamDestroy(uploads);
    uploads = NULL;
}

/* The buffers are made when something is first uploaded, all of them: later, memory may be short. */
static int slot_open(slot *s)
{
    if (s->host != NULL)
        return ASEN_OK;
    if (s->device == NULL)
        CUDA_OK(CUDA_CALL(cudaMalloc(&s->device, SLOT_BYTES)));
    if (s->arrived == NULL)
        CUDA_OK(CUDA_CALL(cudaEventCreateWithFlags(&s->arrived, cudaEventDisableTiming)));
    if (s->taken == NULL)
        CUDA_OK(CUDA_CALL(cudaEventCreateWithFlags(&s->taken, cudaEventDisableTiming)));
    return CUDA_CALL(cudaHostAlloc(&s->host, SLOT_BYTES, cudaHostAllocDefault));
}

/* At most SLOT_BYTES; with the lock held. */
static int upload_piece(void *target, const void *source, size_t bytes)
{
    slot *s = &ring[next++ % SLOTS];
    if (s->used) {
        CUDA_OK(CUDA_CALL(cudaEventSynchronize(s->arrived)));
        CUDA_OK(CUDA_CALL(cudaStreamWaitEvent(uploads, s->taken, 0)));
    }
    memcpy(s->host, source, bytes);
    CUDA_OK(CUDA_CALL(cudaMemcpyAsync(s->device, s->host, bytes, cudaMemcpyHostToDevice, uploads)));
    CUDA_OK(CUDA_CALL(cudaEventRecord(s->arrived, uploads)));
    CUDA_OK(CUDA_CALL(cudaStreamWaitEvent(cuda.stream, s->arrived, 0)));
    CUDA_OK(CUDA_CALL(cudaMemcpyAsync(target, s->device, bytes, cudaMemcpyDeviceToDevice, cuda.stream)));
    CUDA_OK(CUDA_CALL(cudaEventRecord(s->taken, cuda.stream)));
    s->used = true;
    return ASEN_OK;
}

/* The source may be reused at once. */
static int upload(void *target, const void *source, size_t bytes)
{
    int status = ASEN_OK;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < SLOTS && status == ASEN_OK; i++)
        status = slot_open(&ring[i]);
    for (size_t done = 0; done < bytes && status == ASEN_OK; done += SLOT_BYTES) {
        size_t n = bytes - done < SLOT_BYTES ? bytes - done : SLOT_BYTES;
        status = upload_piece((char *)target + done, (const char *)source + done, n);
    }
    pthread_mutex_unlock(&lock);
    return status;
}

int cuda_memory_copy(void *self, void *target, const void *source, size_t bytes, asen_copy_kind kind)
{
    if (bytes == 0)
        return kind == ASEN_DEVICE_TO_HOST ? cuda_synchronize(self) : ASEN_OK;
    if (kind == ASEN_HOST_TO_DEVICE)
        return upload(target, source, bytes);
    if (kind == ASEN_DEVICE_TO_DEVICE) {
        CUDA_OK(CUDA_CALL(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, cuda.stream)));
        return ASEN_OK;
    }
    CUDA_OK(CUDA_CALL(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToHost, cuda.stream)));
    return cuda_synchronize(self);
}
