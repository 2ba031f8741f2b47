/* Storages, and scratch memory: see storage.h. */
#include "core/storage.h"

#include <stdlib.h>

#include "core/allocator.h"
#include "core/device.h"

int asen_scratch_new(asen_device *device, size_t bytes, void **out)
{
    *out = NULL;
    return asen_block_get(device->allocator, bytes, out);
}

void asen_scratch_free(asen_device *device, void *data, size_t bytes)
{
    if (data != NULL)
        asen_block_put(device->allocator, data, bytes);
}

static uint64_t next_id(void)
{
    static _Atomic uint64_t last;
    return atomic_fetch_add(&last, 1) + 1;
}

int asen_storage_wrap(asen_device *device, void *data, size_t bytes, void (*release)(void *), void *owner,
                      asen_storage **out)
{
    *out = NULL;
    asen_storage *s = malloc(sizeof *s);
    if (s == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory");
    *s = (asen_storage){.refs = 1, .id = next_id(), .device = device, .data = data, .bytes = bytes,
                        .release = release, .owner = owner,
                        .foreign = release != NULL};
    *out = s;
    return ASEN_OK;
}

int asen_storage_new(asen_device *device, size_t bytes, asen_storage **out)
{
    void *data = NULL;
    *out = NULL;
    int status = asen_block_get(device->allocator, bytes, &data);
    if (status != ASEN_OK)
        return status;
    status = asen_storage_wrap(device, data, bytes, NULL, NULL, out);
    if (status != ASEN_OK)
        asen_block_put(device->allocator, data, bytes);
    return status;
}

asen_storage *asen_storage_retain(asen_storage *storage)
{
    atomic_fetch_add(&storage->refs, 1);
    return storage;
}

void asen_storage_release(asen_storage *storage)
{
    if (storage == NULL || atomic_fetch_sub(&storage->refs, 1) != 1)
        return;
    if (storage->release != NULL)
        storage->release(storage->owner);
    else
        asen_block_put(storage->device->allocator, storage->data, storage->bytes);
    free(storage);
}

void asen_memory_get_stats(asen_device *device, asen_memory_stats *out)
{
    asen_allocator_get_stats(device->allocator, out);
}

void asen_memory_reset_peak(asen_device *device) { asen_allocator_reset_peak(device->allocator); }

void asen_memory_empty_cache(asen_device *device)
{
    asen_allocator_empty(device->allocator);
}
