/* The caching allocator: see allocator.h.
 *
 * Size classes: multiples of 64 up to 1 KiB, above that eight to each power of two, so at most an
 * eighth is wasted. A class keeps a stack of free blocks. When the device refuses memory, the
 * cache is handed back and the request tried once more.
 *
 * With ASENPP_NO_MEMORY_CACHE=1 in the environment every block is asked of the device at its exact size and
 * given back at once, so that tools which watch a device's memory (sanitizers) see each tensor for itself. */
#include "core/allocator.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/device.h"

enum { SMALL_CLASSES = 16, STEPS = 8, FIRST_SHIFT = 10, CLASS_COUNT = SMALL_CLASSES + STEPS * 40 };

typedef struct free_stack {
    void **block;
    size_t count, capacity;
} free_stack;

struct asen_allocator {
    pthread_mutex_t lock;
    const asen_memory *memory;
    const char *name; /* of the device: for messages */
    bool uncached;
    free_stack classes[CLASS_COUNT];
    asen_memory_stats stats;
};

/* The class of a request, and the size of the blocks in it. */
static int size_class(const asen_allocator *a, size_t bytes, size_t *rounded)
{
    if (a->uncached) {
        *rounded = bytes > 0 ? bytes : 1;
        return 0;
    }
    if (bytes <= 1024) {
        size_t k = bytes == 0 ? 1 : (bytes + 63) / 64;
        *rounded = k * 64;
        return (int)k - 1;
    }
    int shift = 63 - __builtin_clzll((unsigned long long)(bytes - 1)); /* 2^shift < bytes <= 2^(shift+1) */
    size_t step = ((size_t)1 << shift) / STEPS;
    size_t k = (bytes - ((size_t)1 << shift) + step - 1) / step; /* 1 .. STEPS */
    *rounded = ((size_t)1 << shift) + k * step;
    int class = SMALL_CLASSES + (shift - FIRST_SHIFT) * STEPS + (int)k - 1;
    return class < CLASS_COUNT ? class : -1;
}

asen_allocator *asen_allocator_new(const asen_memory *memory, const char *name)
{
    asen_allocator *a = calloc(1, sizeof *a);
    if (a == NULL)
        return NULL;
    a->memory = memory;
    a->name = name;
    const char *uncached = getenv("ASENPP_NO_MEMORY_CACHE");
    a->uncached = uncached != NULL && strcmp(uncached, "1") == 0;
    pthread_mutex_init(&a->lock, NULL);
    return a;
}

static void empty_locked(asen_allocator *a)
{
    for (int c = 0; c < CLASS_COUNT; c++) {
        free_stack *s = &a->classes[c];
        for (size_t i = 0; i < s->count; i++)
            a->memory->free(a->memory->self, s->block[i]);
        free(s->block);
        *s = (free_stack){0};
    }
    a->stats.cached = 0;
}

int asen_block_get(asen_allocator *a, size_t bytes, void **out)
{
    size_t rounded;
    int class = bytes > SIZE_MAX / 4 ? -1 : size_class(a, bytes, &rounded);
    if (class < 0)
        return asen_fail(ASEN_ERR_MEMORY, "%zu bytes are more than any device has", bytes);
    int status = ASEN_OK;
    pthread_mutex_lock(&a->lock);
    free_stack *s = &a->classes[class];
    if (s->count > 0) {
        *out = s->block[--s->count];
        a->stats.cached -= rounded;
    } else {
        status = a->memory->alloc(a->memory->self, rounded, out);
        if (status == ASEN_ERR_MEMORY && a->stats.cached > 0) {
            empty_locked(a);
            status = a->memory->alloc(a->memory->self, rounded, out);
        }
        if (status == ASEN_ERR_MEMORY)
            status = asen_fail(ASEN_ERR_MEMORY,
                               "out of memory on %s: %.1f MiB asked, %.1f MiB in use (at most %.1f MiB so far), nothing cached; "
                               "lower DATA.TRAIN_BATCHSIZE, DATA.TEST_BATCHSIZE or the input size",
                               a->name, (double)rounded / 0x1p20, (double)a->stats.current / 0x1p20,
                               (double)a->stats.peak / 0x1p20);
        if (status == ASEN_OK)
            a->stats.system_requests++;
    }
    if (status == ASEN_OK) {
        a->stats.current += rounded;
        if (a->stats.current > a->stats.peak)
            a->stats.peak = a->stats.current;
    }
    pthread_mutex_unlock(&a->lock);
    return status;
}

void asen_block_put(asen_allocator *a, void *data, size_t bytes)
{
    size_t rounded;
    int class = size_class(a, bytes, &rounded);
    pthread_mutex_lock(&a->lock);
    a->stats.current -= rounded;
    if (a->uncached) {
        a->memory->free(a->memory->self, data);
        pthread_mutex_unlock(&a->lock);
        return;
    }
    free_stack *s = &a->classes[class];
    if (s->count == s->capacity) {
        size_t capacity = s->capacity ? 2 * s->capacity : 8;
        void **grown = realloc(s->block, capacity * sizeof *grown);
        if (grown == NULL) {
            a->memory->free(a->memory->self, data);
            pthread_mutex_unlock(&a->lock);
            return;
        }
        s->block = grown;
        s->capacity = capacity;
    }
    s->block[s->count++] = data;
    a->stats.cached += rounded;
    pthread_mutex_unlock(&a->lock);
}

void asen_allocator_get_stats(asen_allocator *a, asen_memory_stats *out)
{
    pthread_mutex_lock(&a->lock);
    *out = a->stats;
    pthread_mutex_unlock(&a->lock);
}

void asen_allocator_reset_peak(asen_allocator *a)
{
    pthread_mutex_lock(&a->lock);
    a->stats.peak = a->stats.current;
    pthread_mutex_unlock(&a->lock);
}

void asen_allocator_empty(asen_allocator *a)
{
    pthread_mutex_lock(&a->lock);
    empty_locked(a);
    pthread_mutex_unlock(&a->lock);
}
