/* What all files of our own float32 CPU kernels share.
 *
 * A kernel fast_<op> declines (ASEN_DECLINED) what it does not cover: other dtypes, mostly. The
 * loops over one row or block are functions of their own, marked FAST_CLONES: compiled for
 * AVX-512, AVX2 with FMA, and the base instruction set, and chosen once when the module is loaded.
 * They are called from OpenMP regions and never contain one, since the function that the
 * compiler makes of a region does not inherit the clones.
 *
 * The same input, thread count and machine give the same bits: work is divided statically and
 * partial results are added in the order of the threads. */
#ifndef ASEN_CPU_FAST_H
#define ASEN_CPU_FAST_H

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/threads.h"
#include "cpu/cpu.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#if __GNUC__ >= 12
#define FAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FAST_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define FAST_CLONES
#endif

#define FAST_INLINE static inline __attribute__((always_inline))
#define FAST_SIMD _Pragma("omp simd")

/* Below this many elements starting threads costs more than it gains. */
#define FAST_GRAIN 32768

static inline int64_t fast_min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t fast_max_i64(int64_t a, int64_t b) { return a > b ? a : b; }

/* Threads for a loop over `work` elements that can be cut into `pieces`. */
static inline int fast_threads(int64_t work, int64_t pieces)
{
    if (work < FAST_GRAIN || pieces < 2)
        return 1;
    int64_t wanted = fast_min_i64(work / (FAST_GRAIN / 2), pieces);
    int64_t threads = asen_threads_get();
    return (int)(threads < wanted ? fast_max_i64(threads, 1) : wanted);
}

/* Part `index` of `parts` of [0, count): its begin; its end is that of index + 1. */
static inline int64_t fast_part(int64_t count, int64_t index, int64_t parts)
{
    return count / parts * index + fast_min_i64(count % parts, index);
}

static inline float *fast_f32(const asen_tensor *t) { return t == NULL ? NULL : (float *)asen_tensor_data(t); }
static inline bool fast_is_f32(const asen_tensor *t) { return t == NULL || t->dtype == ASEN_F32; }

/* All inputs and outputs that are there: float32. */
static inline bool fast_all_f32(const asen_call *call)
{
    for (int i = 0; i < call->n_in; i++)
        if (!fast_is_f32(call->in[i]))
            return false;
    for (int i = 0; i < call->n_out; i++)
        if (!fast_is_f32(call->out[i]))
            return false;
    return true;
}

/* The message is the reference's. */
static inline int fast_check_indices(const char *what, const int64_t *index, int64_t count, int64_t size,
                                     const char *size_name)
{
    for (int64_t i = 0; i < count; i++)
        if (index[i] < 0 || index[i] >= size)
            return asen_fail(ASEN_ERR_INDEX,
                             "%s %" PRId64 " at position %" PRId64 " is outside [0, %" PRId64 "): there are %" PRId64
                             " %s",
                             what, index[i], i, size, size, size_name);
    return ASEN_OK;
}

/* The order in which the dims of a dense tensor lie in memory: N, H, W, C for rank 4. */
static inline void fast_memory_order(int ndim, int *order)
{
    static const int nhwc[4] = {0, 2, 3, 1};
    for (int i = 0; i < ndim; i++)
        order[i] = ndim == 4 ? nhwc[i] : i;
}

/* A loop nest over `count` operands, outermost dim first, with neighbouring dims merged where all
 * operands allow it and dims of size 1 left out. ndim is at least 1. */
#define FAST_MAX_OPERANDS 3
typedef struct fast_nest {
    int ndim;
    int64_t size[ASEN_MAX_DIMS];
    int64_t stride[FAST_MAX_OPERANDS][ASEN_MAX_DIMS];
} fast_nest;

/* Adds a dim inside the ones that are there. */
static inline void fast_nest_add(fast_nest *nest, int operands, int64_t size, const int64_t *stride)
{
    if (size == 1)
        return;
    if (nest->ndim > 0) {
        int last = nest->ndim - 1;
        bool merges = true;
        for (int k = 0; k < operands; k++)
            merges = merges && nest->stride[k][last] == stride[k] * size;
        if (merges) {
            nest->size[last] *= size;
            for (int k = 0; k < operands; k++)
                nest->stride[k][last] = stride[k];
            return;
        }
    }
    nest->size[nest->ndim] = size;
    for (int k = 0; k < operands; k++)
        nest->stride[k][nest->ndim] = stride[k];
    nest->ndim++;
}

static inline void fast_nest_close(fast_nest *nest)
{
    if (nest->ndim == 0) {
        nest->ndim = 1;
        nest->size[0] = 1;
        for (int k = 0; k < FAST_MAX_OPERANDS; k++)
            nest->stride[k][0] = 0;
    }
}

/* The nest over an output's elements in its memory order (stride of operand 0 is the output's,
 * merged only where dense) and over `inputs` broadcast to its shape. */
static inline void fast_nest_of(fast_nest *nest, const asen_tensor *y, const asen_tensor *const *x, int inputs)
{
    int64_t stride[FAST_MAX_OPERANDS][ASEN_MAX_DIMS];
    memcpy(stride[0], y->stride, sizeof stride[0]);
    for (int k = 0; k < inputs; k++)
        asen_broadcast_strides(x[k], y->ndim, y->shape, stride[k + 1]);
    int order[ASEN_MAX_DIMS];
    fast_memory_order(y->ndim, order);
    nest->ndim = 0;
    for (int i = 0; i < y->ndim; i++) {
        int d = order[i];
        int64_t s[FAST_MAX_OPERANDS];
        for (int k = 0; k <= inputs; k++)
            s[k] = stride[k][d];
        fast_nest_add(nest, inputs + 1, y->shape[d], s);
    }
    fast_nest_close(nest);
}

/* Offsets of all operands at position `index` of the first `dims` dims, row-major. */
static inline void fast_nest_seek(const fast_nest *nest, int operands, int dims, int64_t index, int64_t *position,
                                  int64_t *offset)
{
    for (int k = 0; k < operands; k++)
        offset[k] = 0;
    for (int d = dims - 1; d >= 0; d--) {
        position[d] = index % nest->size[d];
        index /= nest->size[d];
        for (int k = 0; k < operands; k++)
            offset[k] += position[d] * nest->stride[k][d];
    }
}

/* The next position of the first `dims` dims. */
static inline void fast_nest_next(const fast_nest *nest, int operands, int dims, int64_t *position, int64_t *offset)
{
    for (int d = dims - 1; d >= 0; d--) {
        for (int k = 0; k < operands; k++)
            offset[k] += nest->stride[k][d];
        if (++position[d] < nest->size[d])
            return;
        for (int k = 0; k < operands; k++)
            offset[k] -= nest->size[d] * nest->stride[k][d];
        position[d] = 0;
    }
}

/* Our kernels, besides those of ops/elementwise.def. */
#define FAST_KERNELS(K)                                                                           \
    K(copy) K(compare) K(where)                                                                   \
    K(sum) K(mean) K(max) K(max_grad) K(matmul)                                                   \
    K(softmax) K(log_softmax) K(cross_entropy) K(cross_entropy_grad)                              \
    K(max_pool2d) K(max_pool2d_grad) K(batch_norm) K(batch_norm_grad)                             \
    K(cat) K(slice_grad) K(embedding) K(embedding_grad) K(dropout)                                \
    K(cosine_similarity) K(cosine_similarity_grad) K(normalize) K(normalize_grad)                 \
    K(spatial_attention) K(spatial_attention_grad) K(arc_margin) K(arc_margin_grad)
#define FAST_KERNEL(name, ...) int fast_##name(const asen_call *call);
FAST_KERNELS(FAST_KERNEL)
#define UNARY FAST_KERNEL
#define BINARY FAST_KERNEL
#include "ops/elementwise.def"
#undef FAST_KERNEL

#endif
