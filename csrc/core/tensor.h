/* Tensors: a dtype, a shape and strides over a storage.
 *
 * Shapes read (N, C, H, W). The canonical layout ("dense") of a 4-D tensor is channels-last: in
 * memory it lies N, H, W, C (filters: logically O, I, H, W, in memory O, H, W, I); every other
 * rank is row-major. Kernels of ops that are marked DENSE get their inputs so. */
#ifndef ASEN_TENSOR_H
#define ASEN_TENSOR_H

#include "core/fork.h"
#include "core/storage.h"

ASEN_C_BEGIN

struct asen_tensor {
    ASEN_ATOMIC(int64_t) refs;
    asen_storage *storage; /* owned reference */
    asen_dtype dtype;
    int ndim;
    int64_t shape[ASEN_MAX_DIMS];
    int64_t stride[ASEN_MAX_DIMS]; /* in elements, may be 0 (expanded) */
    int64_t offset;                /* in elements */
    ASEN_ATOMIC(asen_history *) history; /* owned; NULL: no gradient is wanted. Only by the functions below: */
    int slot;                      /* which output of the history's op this is */
    ASEN_ATOMIC(bool) aliases_base; /* of those, the one that the others are views of */
    bool unrecorded_view;          /* a view, made while nothing was recorded */
    bool unwritable;               /* a copy that stands for a view: a write would not reach what was viewed */
    ASEN_ATOMIC(asen_history *) aliases; /* owned; the tensors that are views of one another (autograd/inplace.h), or NULL;
                                      set once */
    ASEN_ATOMIC(uint64_t) aliases_seen; /* how often those had been rewritten when `history` was made */
};

/* How a tensor came to be, for whoever records that (autograd/tape.h): counted here, known there. A tensor's
 * history may be replaced in one thread while others read it. */
struct asen_history {
    ASEN_ATOMIC(int64_t) refs;
    void (*free)(asen_history *history); /* the last reference is gone */
};

/* A new dense tensor, contents undefined. */
int asen_tensor_new(asen_device *device, asen_dtype dtype, int ndim, const int64_t *shape, asen_tensor **out);
/* A new tensor over `storage` (a reference is taken). Checks that the view lies inside it. */
int asen_tensor_view(asen_storage *storage, asen_dtype dtype, int ndim, const int64_t *shape, const int64_t *stride,
                     int64_t offset, asen_tensor **out);
/* A new tensor of the same storage and view, without a history, and no view to whoever records. */
int asen_tensor_detach(const asen_tensor *tensor, asen_tensor **out);
asen_tensor *asen_tensor_retain(asen_tensor *tensor);
void asen_tensor_release(asen_tensor *tensor); /* NULL is fine */
asen_history *asen_history_retain(asen_history *history);
void asen_history_release(asen_history *history); /* NULL is fine */
/* The history, a new reference, and which output of it this is (`slot` may be NULL); NULL where there is none. */
asen_history *asen_tensor_history(const asen_tensor *tensor, int *slot);
/* Replaces `before` (borrowed, or NULL) by `history` (or NULL), of which it takes a reference. False where the tensor
 * has another history than `before`. */
bool asen_tensor_replace_history(asen_tensor *tensor, asen_history *before, asen_history *history, int slot);
/* The lock behind those two, for other state that changes with histories: shared with other objects, to be held for a
 * few instructions that take no other lock. */
void asen_history_lock(const void *object);
void asen_history_unlock(const void *object);
void asen_histories_fork(asen_fork_phase phase); /* fork()'s handler */
#ifndef __cplusplus
/* Whether there is one at this moment. */
static inline bool asen_tensor_has_history(const asen_tensor *t)
{
    return atomic_load_explicit(&t->history, memory_order_relaxed) != NULL;
}
#endif

static inline int64_t asen_shape_count(int ndim, const int64_t *shape)
{
    int64_t n = 1;
    for (int d = 0; d < ndim; d++)
        n *= shape[d];
    return n;
}
/* The number of elements. */
static inline int64_t asen_tensor_count(const asen_tensor *t) { return asen_shape_count(t->ndim, t->shape); }
static inline size_t asen_tensor_bytes(const asen_tensor *t)
{
    return (size_t)asen_tensor_count(t) * asen_dtype_size(t->dtype);
}
bool asen_tensor_is_dense(const asen_tensor *tensor); /* in the canonical layout, without holes */
/* Whether two indices may mean one element (expanded dims; strides that run into one another). */
bool asen_tensor_overlaps_itself(const asen_tensor *tensor);
bool asen_tensor_same_shape(const asen_tensor *a, const asen_tensor *b);
void asen_dense_strides(int ndim, const int64_t *shape, int64_t *stride);

/* The first element. On a device that is not host memory: a device pointer. */
static inline void *asen_tensor_data(const asen_tensor *t)
{
    return (char *)t->storage->data + t->offset * (int64_t)asen_dtype_size(t->dtype);
}

/* "(2, 3, 4)" into a buffer; returns the buffer. For messages. */
const char *asen_shape_text(int ndim, const int64_t *shape, char *buffer, size_t size);
#define ASEN_SHAPE_TEXT(t) asen_shape_text((t)->ndim, (t)->shape, (char[128]){0}, 128)

/* Strides with which `t` is read as if it had shape[ndim] (broadcasting; trailing dims aligned).
 * The shapes must be compatible. */
void asen_broadcast_strides(const asen_tensor *t, int ndim, const int64_t *shape, int64_t *stride);

ASEN_C_END

#endif
