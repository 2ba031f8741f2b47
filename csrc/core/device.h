/* Devices as storages see them: memory, and how bytes move.
 *
 * A device may be asynchronous: fills, copies and kernels are queued in the order they are called,
 * one queue a device, and only `copy` to the host and `synchronize` wait. Nobody may read device
 * memory on the host except after those, unless host_memory is set (the CPU, whose calls are
 * complete when they return). What a device computes is its backend (ops/backend.h). */
#ifndef ASEN_DEVICE_H
#define ASEN_DEVICE_H

#include "core/asen.h"

ASEN_C_BEGIN

typedef enum asen_copy_kind { ASEN_HOST_TO_DEVICE, ASEN_DEVICE_TO_HOST, ASEN_DEVICE_TO_DEVICE } asen_copy_kind;

typedef struct asen_memory {
    bool host_memory; /* the host may read device pointers */
    void *self;

    /* Raw memory; the caching allocator stands above. 64-byte aligned at least. */
    int (*alloc)(void *self, size_t bytes, void **out);
    void (*free)(void *self, void *data); /* once the work that was queued before has run */
    /* Gives the memory of a part of a block back to the system: the pages that lie in it whole. Its addresses stay
     * valid, its contents are lost. NULL: a block is given back whole or not at all. */
    int (*discard)(void *self, void *data, size_t bytes);
    /* In queue order. From the host: the source may be reused on return. To the host: complete
     * on return. */
    int (*copy)(void *self, void *target, const void *source, size_t bytes, asen_copy_kind kind);
    /* `count` copies of the element of `size` bytes (1, 2, 4 or 8) at `value`. */
    int (*fill)(void *self, void *target, const void *value, size_t size, int64_t count);
    int (*synchronize)(void *self);
    /* Bytes of memory that are free now, and that there are; NULL: ask the system. */
    int (*info)(void *self, size_t *free_bytes, size_t *total_bytes);
} asen_memory;

struct asen_device {
    const asen_memory *memory;
    const struct asen_backend *backend;
    char name[16];
    struct asen_allocator *allocator;
};

ASEN_C_END

#endif
