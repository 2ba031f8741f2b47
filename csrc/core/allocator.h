/* Making a device's caching allocator: for ops/backend.c only. */
#ifndef ASEN_ALLOCATOR_H
#define ASEN_ALLOCATOR_H

typedef struct asen_allocator asen_allocator;
struct asen_memory;

/* NULL when memory is out. Devices live as long as the process, and so do their allocators. */
asen_allocator *asen_allocator_new(const struct asen_memory *memory, const char *name);

#endif
