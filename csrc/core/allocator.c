/* The caching allocator: see allocator.h.
 *
 * Small blocks (up to 64 KiB) come one by one from the device, in size classes: multiples of 64 up to 1 KiB, above
 * that eight to each power of two, so at most an eighth is wasted. A class keeps a stack of free blocks.
 *
 * Large blocks are chunks of segments. A segment is asked of the device, cut as requests come, and its neighbouring
 * free chunks are joined again, so that one piece of memory serves any sequence of sizes. A request takes the
 * smallest free chunk it fits into. Free chunks are warm (their memory is held) or cold (it is not: never used, or
 * given back while the neighbours were in use, where the device can do that); only chunks of one kind are joined.
 * A segment whose chunks are all free can be given back whole.
 *
 * Before more is asked of the device than LIMIT allows, warm chunks are given back, those first that were free for
 * longest, and then the small blocks.
 *
 * With ASENPP_NO_MEMORY_CACHE=1 in the environment every block is asked of the device at its exact size and
 * given back at once, so that tools which watch a device's memory (sanitizers) see each tensor for itself. */
#include "core/allocator.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/device.h"

/* AddressSanitizer is told what nobody may touch: free blocks, and what lies behind the bytes that were asked. */
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, bytes) ((void)(data), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(data, bytes) ((void)(data), (void)(bytes))
#endif

enum {
    SMALL_MAX = 64 << 10,
    STEPS = 8,                              /* classes to each power of two */
    SMALL_CLASSES = 16 + STEPS * (16 - 10), /* to 1 KiB, and from 2^10 to 2^16 */
    BINS = STEPS * (48 - 16),               /* of chunks, from 2^16 */
    GRANULE = 4 << 10,                      /* chunks are multiples of this */
    SEGMENT_STEP = 2 << 20,                 /* segments whose memory can be given back in parts are multiples */
    SEGMENT_MIN = 32 << 20,                 /* and at least as large: only what was used of them is held */
    USED_BUCKETS = 1 << 10,
};

typedef struct free_stack {
    void **block;
    size_t count, capacity;
} free_stack;

typedef struct chunk chunk;
struct chunk {
    char *data;
    size_t bytes;
    bool free, cold;
    chunk *left, *right;   /* neighbours in the segment */
    chunk *next, *previous; /* free: in its bin; used: `next` in the bucket of its address */
    chunk *newer, *older;  /* warm: in the order in which they were freed */
};

struct asen_allocator {
    pthread_mutex_t lock;
    const asen_memory *memory;
    const char *name; /* of the device: for messages */
    bool uncached;
    free_stack small[SMALL_CLASSES];
    uint64_t small_cached;
    chunk *bin[2][BINS]; /* free chunks by size: warm, cold */
    chunk *used[USED_BUCKETS];
    chunk *oldest, *newest; /* warm chunks */
    uint64_t peak;          /* bytes ever in use since the cache was last emptied */
    asen_memory_stats stats;
};

/* What may be held where at most `peak` bytes were in use: 1.3 times that, or a little more than that. */
static uint64_t limit(uint64_t peak)
{
    const uint64_t slack = 4 << 20;
    uint64_t tenths = peak / 10 * 3;
    return peak + (tenths > slack ? tenths : slack);
}

/* With 2^shift < bytes <= 2^(shift + 1): the step (0 .. STEPS - 1) whose upper bound holds `bytes`, and that bound. */
static int step_of(size_t bytes, int *shift, size_t *upper)
{
    *shift = 63 - __builtin_clzll((unsigned long long)(bytes - 1));
    size_t base = (size_t)1 << *shift, step = base / STEPS;
    size_t k = (bytes - base + step - 1) / step;
    *upper = base + k * step;
    return (int)k - 1;
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
    if (pthread_mutex_init(&a->lock, NULL) != 0) {
        free(a);
        return NULL;
    }
    return a;
}

void asen_allocator_fork(asen_allocator *a, asen_fork_phase phase)
{
    if (phase == ASEN_FORK_BEFORE)
        pthread_mutex_lock(&a->lock);
    else
        pthread_mutex_unlock(&a->lock);
}

/* ---- what is in use, and what is held ---- */

static void count_used(asen_allocator *a, size_t bytes)
{
    a->stats.current += bytes;
    if (a->stats.current > a->stats.peak)
        a->stats.peak = a->stats.current;
    if (a->stats.current > a->peak)
        a->peak = a->stats.current;
}

/* Where the device can discard, the memory goes back to the system at once, though free() may keep the addresses. */
static void device_free(asen_allocator *a, void *data, size_t bytes)
{
    if (a->memory->discard != NULL && bytes >= SEGMENT_STEP)
        a->memory->discard(a->memory->self, data, bytes);
    a->memory->free(a->memory->self, data);
}

static void small_empty(asen_allocator *a)
{
    for (int c = 0; c < SMALL_CLASSES; c++) {
        free_stack *s = &a->small[c];
        for (size_t i = 0; i < s->count; i++)
            a->memory->free(a->memory->self, s->block[i]);
        free(s->block);
        *s = (free_stack){0};
    }
    a->stats.cached -= a->small_cached;
    a->small_cached = 0;
}

/* A block of `bytes` of which `asked` may be used. */
static void guard(const asen_allocator *a, void *data, size_t bytes, size_t asked)
{
    if (!a->memory->host_memory)
        return;
    ASAN_POISON_MEMORY_REGION(data, bytes);
    ASAN_UNPOISON_MEMORY_REGION(data, asked);
}

/* ---- lists of chunks ---- */

/* The bin of a free chunk: its size is at least the bin's lower bound. */
static int bin_of(size_t bytes)
{
    int shift = 63 - __builtin_clzll((unsigned long long)bytes);
    int bin = (shift - 16) * STEPS + (int)(((bytes - ((size_t)1 << shift)) << 3) >> shift);
    return shift < 16 ? 0 : bin < BINS ? bin : BINS - 1;
}

static void list_add(asen_allocator *a, chunk *c)
{
    chunk **head = &a->bin[c->cold][bin_of(c->bytes)];
    c->previous = NULL;
    c->next = *head;
    if (*head != NULL)
        (*head)->previous = c;
    *head = c;
    c->newer = c->older = NULL;
    if (c->cold)
        return;
    c->older = a->newest;
    *(a->newest == NULL ? &a->oldest : &a->newest->newer) = c;
    a->newest = c;
    a->stats.cached += c->bytes;
}

static void list_remove(asen_allocator *a, chunk *c)
{
    *(c->previous == NULL ? &a->bin[c->cold][bin_of(c->bytes)] : &c->previous->next) = c->next;
    if (c->next != NULL)
        c->next->previous = c->previous;
    if (c->cold)
        return;
    *(c->older == NULL ? &a->oldest : &c->older->newer) = c->newer;
    *(c->newer == NULL ? &a->newest : &c->newer->older) = c->older;
    a->stats.cached -= c->bytes;
}

static chunk **used_bucket(asen_allocator *a, const void *data)
{
    return &a->used[(uint64_t)(uintptr_t)data / GRANULE * UINT64_C(0x9E3779B97F4A7C15) >> 54];
}

/* Takes the chunk at an address from those in use. */
static chunk *used_take(asen_allocator *a, const void *data)
{
    chunk **at = used_bucket(a, data);
    while ((*at)->data != data)
        at = &(*at)->next;
    chunk *c = *at;
    *at = c->next;
    return c;
}

/* The smallest free chunk of a kind that holds `bytes`, of several the first in memory; or NULL. What is taken so depends
 * on what is free alone, not on the order in which it came free, and repeated work comes to rest. */
static chunk *best_fit(const asen_allocator *a, bool cold, size_t bytes)
{
    chunk *best = NULL;
    for (int b = bin_of(bytes); b < BINS && best == NULL; b++)
        for (chunk *c = a->bin[cold][b]; c != NULL; c = c->next)
            if (c->bytes >= bytes && (best == NULL || c->bytes < best->bytes ||
                                      (c->bytes == best->bytes && c->data < best->data)))
                best = c;
    return best;
}

/* ---- cutting and joining ---- */

/* Cuts what is more than `bytes` off a chunk that is in no list, and lists it. Where memory for its description is
 * out, the chunk stays whole. */
static void split(asen_allocator *a, chunk *c, size_t bytes)
{
    if (c->bytes - bytes < GRANULE)
        return;
    chunk *rest = malloc(sizeof *rest);
    if (rest == NULL)
        return;
    *rest = (chunk){.data = c->data + bytes, .bytes = c->bytes - bytes, .free = true, .cold = c->cold, .left = c,
                    .right = c->right};
    if (c->right != NULL)
        c->right->left = rest;
    c->right = rest;
    c->bytes = bytes;
    list_add(a, rest);
}

static bool joins(const chunk *c, const chunk *other)
{
    return other != NULL && other->free && other->cold == c->cold;
}

/* Joins a free chunk that is in no list with its neighbours of the same kind. */
static chunk *join(asen_allocator *a, chunk *c)
{
    if (joins(c, c->left)) {
        chunk *left = c->left;
        list_remove(a, left);
        left->bytes += c->bytes;
        left->right = c->right;
        if (c->right != NULL)
            c->right->left = left;
        free(c);
        c = left;
    }
    if (joins(c, c->right)) {
        chunk *right = c->right;
        list_remove(a, right);
        c->bytes += right->bytes;
        c->right = right->right;
        if (right->right != NULL)
            right->right->left = c;
        free(right);
    }
    return c;
}

static bool is_whole(const chunk *c) { return c->left == NULL && c->right == NULL; }

/* Gives a warm chunk's memory back, with its segment if that is free; false: the device cannot part with it. */
static bool give_back(asen_allocator *a, chunk *c)
{
    const asen_memory *m = a->memory;
    if (!is_whole(c) && (m->discard == NULL || m->discard(m->self, c->data, c->bytes) != ASEN_OK))
        return false;
    list_remove(a, c);
    if (!is_whole(c)) {
        c->cold = true;
        c = join(a, c);
    }
    if (is_whole(c)) {
        device_free(a, c->data, c->bytes);
        free(c);
    } else {
        list_add(a, c);
    }
    return true;
}

/* Gives back until no more than `bound` bytes are in use and cached together, or nothing is left to give. */
static void trim(asen_allocator *a, uint64_t bound)
{
    for (chunk *c = a->oldest, *newer; c != NULL && a->stats.current + a->stats.cached > bound; c = newer) {
        newer = c->newer;
        give_back(a, c);
    }
    if (a->stats.current + a->stats.cached > bound)
        small_empty(a);
}

/* Before `bytes` more are asked of the device. */
static void trim_for(asen_allocator *a, size_t bytes)
{
    uint64_t in_use = a->stats.current + bytes, bound = limit(in_use > a->peak ? in_use : a->peak);
    if (in_use + a->stats.cached > bound)
        trim(a, bound - bytes);
}

/* ---- asking the device ---- */

static int out_of_memory(const asen_allocator *a, size_t bytes)
{
    return asen_fail(ASEN_ERR_MEMORY,
                     "out of memory on %s: %.1f MiB asked, %.1f MiB in use (at most %.1f MiB so far), nothing cached; "
                     "lower DATA.TRAIN_BATCHSIZE, DATA.TEST_BATCHSIZE or the input size",
                     a->name, (double)bytes / 0x1p20, (double)a->stats.current / 0x1p20,
                     (double)a->stats.peak / 0x1p20);
}

/* `bytes`, or `wish` of them where the device has so many. When it refuses, the cache is handed back and the request
 * tried once more. */
static int device_alloc(asen_allocator *a, size_t bytes, size_t *wish, void **out)
{
    const asen_memory *m = a->memory;
    int status = m->alloc(m->self, *wish, out);
    if (status == ASEN_ERR_MEMORY) {
        *wish = bytes;
        trim(a, 0);
        status = m->alloc(m->self, bytes, out);
    }
    if (status == ASEN_OK)
        a->stats.system_requests++;
    return status == ASEN_ERR_MEMORY ? out_of_memory(a, bytes) : status;
}

/* A chunk of a new segment, in no list. */
static int segment_new(asen_allocator *a, size_t bytes, chunk **out)
{
    void *data;
    bool parts = a->memory->discard != NULL;
    size_t wish = bytes;
    if (parts) {
        wish = (bytes + SEGMENT_STEP - 1) / SEGMENT_STEP * SEGMENT_STEP;
        wish = wish > SEGMENT_MIN ? wish : SEGMENT_MIN;
    }
    chunk *c = malloc(sizeof *c);
    if (c == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory");
    int status = device_alloc(a, bytes, &wish, &data);
    if (status != ASEN_OK) {
        free(c);
        return status;
    }
    *c = (chunk){.data = data, .bytes = wish, .cold = parts};
    guard(a, data, wish, 0);
    *out = c;
    return ASEN_OK;
}

static int large_get(asen_allocator *a, size_t asked, void **out)
{
    int status = ASEN_OK;
    size_t bytes = (asked + GRANULE - 1) / GRANULE * GRANULE;
    chunk *c = best_fit(a, false, bytes);
    if (c == NULL) {
        trim_for(a, bytes);
        c = best_fit(a, true, bytes);
        if (c != NULL) { /* the system makes its pages anew */
            a->stats.system_requests++;
        } else {
            status = segment_new(a, bytes, &c);
            if (status != ASEN_OK)
                return status;
        }
    }
    if (c->free)
        list_remove(a, c);
    split(a, c, bytes);
    c->free = c->cold = false;
    chunk **bucket = used_bucket(a, c->data);
    c->next = *bucket;
    *bucket = c;
    count_used(a, c->bytes);
    guard(a, c->data, c->bytes, asked);
    *out = c->data;
    return ASEN_OK;
}

static void large_put(asen_allocator *a, void *data)
{
    chunk *c = used_take(a, data);
    a->stats.current -= c->bytes;
    guard(a, data, c->bytes, 0);
    c->free = true;
    list_add(a, join(a, c));
}

/* ---- small blocks ---- */

static int small_class(size_t bytes, size_t *rounded)
{
    if (bytes <= 1024) {
        size_t k = bytes == 0 ? 1 : (bytes + 63) / 64;
        *rounded = k * 64;
        return (int)k - 1;
    }
    int shift, step = step_of(bytes, &shift, rounded);
    return 16 + (shift - 10) * STEPS + step;
}

static int small_get(asen_allocator *a, size_t bytes, void **out)
{
    size_t rounded;
    free_stack *s = &a->small[small_class(bytes, &rounded)];
    if (s->count > 0) {
        *out = s->block[--s->count];
        a->stats.cached -= rounded;
        a->small_cached -= rounded;
    } else {
        trim_for(a, rounded);
        int status = device_alloc(a, rounded, &rounded, out);
        if (status != ASEN_OK)
            return status;
    }
    count_used(a, rounded);
    guard(a, *out, rounded, bytes);
    return ASEN_OK;
}

static void small_put(asen_allocator *a, void *data, size_t bytes)
{
    size_t rounded;
    free_stack *s = &a->small[small_class(bytes, &rounded)];
    a->stats.current -= rounded;
    if (s->count == s->capacity) {
        size_t capacity = s->capacity ? 2 * s->capacity : 8;
        void **grown = realloc(s->block, capacity * sizeof *grown);
        if (grown == NULL) {
            a->memory->free(a->memory->self, data);
            return;
        }
        s->block = grown;
        s->capacity = capacity;
    }
    guard(a, data, rounded, 0);
    s->block[s->count++] = data;
    a->stats.cached += rounded;
    a->small_cached += rounded;
}

/* ---- without a cache ---- */

static int exact_get(asen_allocator *a, size_t bytes, void **out)
{
    bytes = bytes > 0 ? bytes : 1;
    int status = device_alloc(a, bytes, &bytes, out);
    if (status == ASEN_OK)
        count_used(a, bytes);
    return status;
}

static void exact_put(asen_allocator *a, void *data, size_t bytes)
{
    a->stats.current -= bytes > 0 ? bytes : 1;
    a->memory->free(a->memory->self, data);
}

/* ---- the interface ---- */

int asen_block_get(asen_allocator *a, size_t bytes, void **out)
{
    if (bytes > SIZE_MAX / 4)
        return asen_fail(ASEN_ERR_MEMORY, "%zu bytes are more than any device has", bytes);
    pthread_mutex_lock(&a->lock);
    int status = a->uncached          ? exact_get(a, bytes, out)
                 : bytes <= SMALL_MAX ? small_get(a, bytes, out)
                                      : large_get(a, bytes, out);
    pthread_mutex_unlock(&a->lock);
    return status;
}

void asen_block_put(asen_allocator *a, void *data, size_t bytes)
{
    pthread_mutex_lock(&a->lock);
    if (a->uncached)
        exact_put(a, data, bytes);
    else if (bytes <= SMALL_MAX)
        small_put(a, data, bytes);
    else
        large_put(a, data);
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
    trim(a, 0);
    a->peak = a->stats.current;
    pthread_mutex_unlock(&a->lock);
}
