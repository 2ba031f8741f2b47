/* The caching allocator of one device.
 *
 * A freed block is kept, and what is kept serves later requests of any size, so that training asks nothing of the
 * system after its first steps. What is in use and kept together stays within 1.3 times the most that was ever in
 * use (or 4 MiB more than that, where this is more). That is strict where the device can give back parts of a block
 * (the CPU); elsewhere what lies in one block with memory in use stays.
 *
 * Blocks are 64-byte aligned; on a queued device (CUDA) memory is reused in queue order, which is safe because a
 * device has one queue. All functions may be called from any thread; one lock guards an allocator. */
#ifndef ASEN_ALLOCATOR_H
#define ASEN_ALLOCATOR_H

#include "core/fork.h"
#include "core/storage.h"

typedef struct asen_allocator asen_allocator;
struct asen_memory;

/* NULL when memory is out. Devices live as long as the process, and so do their allocators. */
asen_allocator *asen_allocator_new(const struct asen_memory *memory, const char *name);
/* fork()'s handler of one allocator. */
void asen_allocator_fork(asen_allocator *allocator, asen_fork_phase phase);

/* A block, contents undefined; it is put back with the number of bytes that were asked. */
int asen_block_get(asen_allocator *allocator, size_t bytes, void **out);
void asen_block_put(asen_allocator *allocator, void *data, size_t bytes);

void asen_allocator_get_stats(asen_allocator *allocator, asen_memory_stats *out);
void asen_allocator_reset_peak(asen_allocator *allocator); /* to the current use */
/* Gives the cache back to the device, whose `free` waits for queued work; the most that was ever in use counts from
 * here. */
void asen_allocator_empty(asen_allocator *allocator);

#endif
