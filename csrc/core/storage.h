/* Storages: reference-counted buffers on a device, over its caching allocator (allocator.h). All functions may
 * be called from any thread. */
#ifndef ASEN_STORAGE_H
#define ASEN_STORAGE_H

#include "core/asen.h"

#ifndef __cplusplus
#include <stdatomic.h>
#endif

ASEN_C_BEGIN

struct asen_storage {
    ASEN_ATOMIC(int64_t) refs;
    uint64_t id;               /* never reused: keys of caches */
    ASEN_ATOMIC(uint64_t) version;  /* moves after every write in place, by whoever wrote */
    ASEN_ATOMIC(uint64_t) returned; /* moves when a writable export ends: what it wrote is not known */
    ASEN_ATOMIC(int64_t) exports;   /* writable exports that live (numpy(), DLPack) */
    bool foreign;                   /* memory of somebody else, who may write without a word */
    asen_device *device;
    void *data;
    size_t bytes;
    void (*release)(void *owner);  /* foreign memory (a NumPy array): called instead of caching */
    void *owner;
};

/* A new storage (contents undefined). */
int asen_storage_new(asen_device *device, size_t bytes, asen_storage **out);
/* A storage over foreign host memory; `release(owner)` runs when the last reference goes. Where nobody else
 * can write there, the caller clears `foreign`. */
int asen_storage_wrap(asen_device *device, void *data, size_t bytes, void (*release)(void *), void *owner,
                      asen_storage **out);
asen_storage *asen_storage_retain(asen_storage *storage);
void asen_storage_release(asen_storage *storage); /* NULL is fine */
#ifndef __cplusplus
/* To be called after every write in place is complete, also one that failed half way. */
static inline void asen_storage_written(asen_storage *s) { atomic_fetch_add(&s->version, 1); }

/* What something made from the values is kept under: a number that moves after every write. It is read before
 * the values are, so that what was made while another thread wrote lies under an older number and is made anew.
 * False: somebody outside may write at any time, so nothing may be kept. */
static inline bool asen_storage_edition(const asen_storage *s, uint64_t *edition)
{
    *edition = atomic_load(&s->version) + atomic_load(&s->returned);
    return !s->foreign && atomic_load(&s->exports) == 0;
}

/* A writable export of the memory begins and ends. The edition moves before the export is gone. */
static inline void asen_storage_export_begin(asen_storage *s) { atomic_fetch_add(&s->exports, 1); }
static inline void asen_storage_export_end(asen_storage *s)
{
    atomic_fetch_add(&s->returned, 1);
    atomic_fetch_sub(&s->exports, 1);
}
#endif

/* Scratch memory for one kernel call, from the same caching allocator. */
int asen_scratch_new(asen_device *device, size_t bytes, void **out);
void asen_scratch_free(asen_device *device, void *data, size_t bytes);

typedef struct asen_memory_stats {
    uint64_t current, peak, cached; /* bytes in use, most ever in use, held for reuse */
    uint64_t system_requests;       /* blocks ever asked of the system */
} asen_memory_stats;

void asen_memory_get_stats(asen_device *device, asen_memory_stats *out);
void asen_memory_reset_peak(asen_device *device);
void asen_memory_empty_cache(asen_device *device);

ASEN_C_END

#endif
