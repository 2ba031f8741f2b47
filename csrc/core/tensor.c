/* Tensors: making, viewing, describing: see tensor.h. */
#include "core/tensor.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *asen_dtype_name(asen_dtype dtype)
{
    static const char *const names[ASEN_DTYPE_COUNT] = {"bool", "uint8", "int32", "int64",
                                                        "float16", "bfloat16", "float32", "float64"};
    return names[dtype];
}

void asen_dense_strides(int ndim, const int64_t *shape, int64_t *stride)
{
    if (ndim == 4) { /* N, H, W, C in memory */
        stride[1] = 1;
        stride[3] = shape[1];
        stride[2] = stride[3] * shape[3];
        stride[0] = stride[2] * shape[2];
        return;
    }
    int64_t step = 1;
    for (int d = ndim - 1; d >= 0; d--) {
        stride[d] = step;
        step *= shape[d];
    }
}

bool asen_tensor_is_dense(const asen_tensor *t)
{
    int64_t want[ASEN_MAX_DIMS];
    if (asen_tensor_count(t) == 0)
        return true;
    asen_dense_strides(t->ndim, t->shape, want);
    for (int d = 0; d < t->ndim; d++)
        if (t->shape[d] != 1 && t->stride[d] != want[d])
            return false;
    return true;
}

bool asen_tensor_overlaps_itself(const asen_tensor *t)
{
    int order[ASEN_MAX_DIMS], n = 0;
    if (asen_tensor_count(t) == 0)
        return false;
    for (int d = 0; d < t->ndim; d++) { /* dims that step, by stride */
        if (t->shape[d] == 1)
            continue;
        int at = n++;
        for (; at > 0 && t->stride[order[at - 1]] > t->stride[d]; at--)
            order[at] = order[at - 1];
        order[at] = d;
    }
    int64_t reach = 0; /* of all dims that step less */
    for (int i = 0; i < n; i++) {
        if (t->stride[order[i]] <= reach)
            return true;
        reach += (t->shape[order[i]] - 1) * t->stride[order[i]];
    }
    return false;
}

bool asen_tensor_same_shape(const asen_tensor *a, const asen_tensor *b)
{
    return a->ndim == b->ndim && memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof a->shape[0]) == 0;
}

/* Takes over the caller's reference on `storage`, also when it fails. */
static int tensor_make(asen_storage *storage, asen_dtype dtype, int ndim, const int64_t *shape, const int64_t *stride,
                       int64_t offset, asen_tensor **out)
{
    asen_tensor *t = malloc(sizeof *t);
    if (t == NULL) {
        asen_storage_release(storage);
        return asen_fail(ASEN_ERR_MEMORY, "out of memory");
    }
    *t = (asen_tensor){.refs = 1, .storage = storage, .dtype = dtype, .ndim = ndim, .offset = offset};
    for (int d = 0; d < ndim; d++) { /* `shape` of a scalar may be NULL */
        t->shape[d] = shape[d];
        t->stride[d] = stride[d];
    }
    *out = t;
    return ASEN_OK;
}

/* The number of bytes of a shape; an error for negative sizes and overflow. */
static int shape_bytes(asen_dtype dtype, int ndim, const int64_t *shape, size_t *bytes)
{
    if (ndim < 0 || ndim > ASEN_MAX_DIMS)
        return asen_fail(ASEN_ERR_VALUE, "a tensor has at most %d dims, not %d", ASEN_MAX_DIMS, ndim);
    int64_t n = (int64_t)asen_dtype_size(dtype);
    bool empty = false;
    for (int d = 0; d < ndim; d++) {
        if (shape[d] < 0)
            return asen_fail(ASEN_ERR_VALUE, "negative size %lld in dim %d", (long long)shape[d], d);
        empty |= shape[d] == 0;
    }
    for (int d = 0; d < ndim && !empty; d++)
        if (__builtin_mul_overflow(n, shape[d], &n))
            return asen_fail(ASEN_ERR_MEMORY, "a tensor of shape %s is too large",
                             asen_shape_text(ndim, shape, (char[128]){0}, 128));
    *bytes = empty ? 0 : (size_t)n;
    return ASEN_OK;
}

int asen_tensor_new(asen_device *device, asen_dtype dtype, int ndim, const int64_t *shape, asen_tensor **out)
{
    size_t bytes;
    int64_t stride[ASEN_MAX_DIMS];
    asen_storage *storage;
    *out = NULL;
    int status = shape_bytes(dtype, ndim, shape, &bytes);
    if (status == ASEN_OK)
        status = asen_storage_new(device, bytes, &storage);
    if (status != ASEN_OK)
        return status;
    asen_dense_strides(ndim, shape, stride);
    return tensor_make(storage, dtype, ndim, shape, stride, 0, out);
}

int asen_tensor_view(asen_storage *storage, asen_dtype dtype, int ndim, const int64_t *shape, const int64_t *stride,
                     int64_t offset, asen_tensor **out)
{
    size_t bytes;
    *out = NULL;
    int status = shape_bytes(dtype, ndim, shape, &bytes);
    if (status != ASEN_OK)
        return status;
    int64_t low = offset, high = offset;
    for (int d = 0; d < ndim; d++) {
        int64_t reach = (shape[d] - 1) * stride[d];
        if (reach > 0)
            high += reach;
        else
            low += reach;
    }
    if (bytes > 0 && (low < 0 || (uint64_t)(high + 1) * asen_dtype_size(dtype) > storage->bytes))
        return asen_fail(ASEN_ERR_VALUE, "a view of shape %s does not fit into %zu bytes",
                         asen_shape_text(ndim, shape, (char[128]){0}, 128), storage->bytes);
    return tensor_make(asen_storage_retain(storage), dtype, ndim, shape, stride, offset, out);
}

int asen_tensor_detach(const asen_tensor *t, asen_tensor **out)
{
    *out = NULL;
    int status = tensor_make(asen_storage_retain(t->storage), t->dtype, t->ndim, t->shape, t->stride, t->offset, out);
    if (status == ASEN_OK)
        (*out)->unwritable = t->unwritable;
    return status;
}

asen_tensor *asen_tensor_retain(asen_tensor *tensor)
{
    atomic_fetch_add(&tensor->refs, 1);
    return tensor;
}

void asen_tensor_release(asen_tensor *tensor)
{
    if (tensor == NULL || atomic_fetch_sub(&tensor->refs, 1) != 1)
        return;
    asen_history *history = tensor->history, *aliases = tensor->aliases;
    asen_storage_release(tensor->storage);
    free(tensor);
    asen_history_release(history);
    asen_history_release(aliases);
}

asen_history *asen_history_retain(asen_history *history)
{
    atomic_fetch_add(&history->refs, 1);
    return history;
}

void asen_history_release(asen_history *history)
{
    if (history != NULL && atomic_fetch_sub(&history->refs, 1) == 1)
        history->free(history);
}

/* Reading a history and taking a reference of it must be one step where another thread may replace it. The locks are
 * held for a few instructions, shared among tensors, and apart in memory. */
enum { STRIPES = 32 };

static struct {
    _Alignas(64) atomic_flag busy;
} stripes[STRIPES];

static void stripe_lock(atomic_flag *busy)
{
    while (atomic_flag_test_and_set_explicit(busy, memory_order_acquire))
        sched_yield();
}

static void stripe_unlock(atomic_flag *busy) { atomic_flag_clear_explicit(busy, memory_order_release); }

static atomic_flag *stripe_of(const void *object)
{
    uintptr_t at = (uintptr_t)object;
    return &stripes[(at >> 6 ^ at >> 12) % STRIPES].busy;
}

void asen_history_lock(const void *object) { stripe_lock(stripe_of(object)); }
void asen_history_unlock(const void *object) { stripe_unlock(stripe_of(object)); }

void asen_histories_fork(asen_fork_phase phase)
{
    for (int i = 0; i < STRIPES; i++)
        if (phase == ASEN_FORK_BEFORE)
            stripe_lock(&stripes[i].busy);
        else
            stripe_unlock(&stripes[i].busy);
}

asen_history *asen_tensor_history(const asen_tensor *tensor, int *slot)
{
    if (!asen_tensor_has_history(tensor))
        return NULL;
    atomic_flag *busy = stripe_of(tensor);
    stripe_lock(busy);
    asen_history *history = atomic_load_explicit(&tensor->history, memory_order_relaxed);
    if (history != NULL)
        asen_history_retain(history);
    if (slot != NULL)
        *slot = tensor->slot;
    stripe_unlock(busy);
    return history;
}

bool asen_tensor_replace_history(asen_tensor *tensor, asen_history *before, asen_history *history, int slot)
{
    atomic_flag *busy = stripe_of(tensor);
    stripe_lock(busy);
    bool same = atomic_load_explicit(&tensor->history, memory_order_relaxed) == before;
    if (same) {
        atomic_store_explicit(&tensor->history, history != NULL ? asen_history_retain(history) : NULL,
                              memory_order_relaxed);
        tensor->slot = slot;
    }
    stripe_unlock(busy);
    if (same)
        asen_history_release(before);
    return same;
}

const char *asen_shape_text(int ndim, const int64_t *shape, char *buffer, size_t size)
{
    size_t used = 0;
    for (int d = 0; d < ndim && used < size; d++)
        used += (size_t)snprintf(buffer + used, size - used, "%s%lld", d ? ", " : "(", (long long)shape[d]);
    if (used < size)
        snprintf(buffer + used, size - used, ndim == 0 ? "()" : ndim == 1 ? ",)" : ")");
    return buffer;
}

void asen_broadcast_strides(const asen_tensor *t, int ndim, const int64_t *shape, int64_t *stride)
{
    int skip = ndim - t->ndim;
    for (int d = 0; d < ndim; d++)
        stride[d] = d < skip || (t->shape[d - skip] == 1 && shape[d] != 1) ? 0 : t->stride[d - skip];
}
