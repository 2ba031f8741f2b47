/* Optimizer steps and unscaling over lists of tensors (formulas and their order: csrc/ops/optim.h).
 *
 * One launch takes up to TABLE_ENTRIES tensors. Their addresses travel as an argument of the kernel, so no
 * table has to be uploaded, kept or waited for; a model of 300 tensors takes four launches. All
 * elements of a launch are cut into chunks of one size, a block each; a block finds its tensor by
 * bisection. Bound by memory, n elements of s bytes: SGD 3 n s (with momentum 5 n s), Adam and
 * AdamW 7 n s, unscaling 2 n s. */
#include <pthread.h>

#include "block.cuh"
#include "vector.cuh"

enum { OPTIM_THREADS = 256, CHUNK_VECTORS = 4, TABLE_ENTRIES = 80 };

/* Elements of a chunk: CHUNK_VECTORS vectors of 16 bytes a thread. */
template <typename T> struct chunk_of {
    static constexpr int elements = OPTIM_THREADS * CHUNK_VECTORS * vector_size<T>;
};

/* Arguments of a kernel may take 4 KB. */
typedef struct optim_table {
    void *param[TABLE_ENTRIES], *first[TABLE_ENTRIES], *second[TABLE_ENTRIES];
    const void *grad[TABLE_ENTRIES];
    int64_t length[TABLE_ENTRIES];
    int chunk[TABLE_ENTRIES]; /* the first of each tensor's */
    int count;
} optim_table;

/* The tensor of a chunk: the last one that begins at it or before. */
__device__ __forceinline__ int table_find(const optim_table &t, int chunk)
{
    int low = 0, high = t.count - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (t.chunk[middle] <= chunk)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* ---- one step ---- */

/* Scalars, computed in double and rounded once. */
template <typename T> struct optim_scalars {
    T lr, momentum, rest, weight_decay;                 /* rest: 1 - dampening */
    T shrink, rest1, beta2, rest2, eps, rate, correction; /* Adam: 1 - lr decay, 1 - beta1, ... */
    bool sgd, decoupled, decays, has_momentum, nesterov, is_first;
};

/* One element. SGD without momentum has no buffer. */
template <typename T> __device__ __forceinline__ void optim_element(const optim_scalars<T> &s, T &p, T g, T &first, T &second)
{
    if (s.sgd) {
        if (s.decays)
            g += s.weight_decay * p;
        if (s.has_momentum) {
            first = s.is_first ? g : s.momentum * first + s.rest * g;
            g = s.nesterov ? g + s.momentum * first : first;
        }
        p -= s.lr * g;
        return;
    }
    if (s.decays && s.decoupled)
        p *= s.shrink;
    else if (s.decays)
        g += s.weight_decay * p;
    first += s.rest1 * (g - first);
    second = s.beta2 * second + s.rest2 * g * g;
    p -= s.rate * first / (sqrt(second) / s.correction + s.eps);
}

/* Tensors of the table, in place. Bytes: see above. */
template <typename T> __global__ void __launch_bounds__(OPTIM_THREADS) optim_kernel(optim_table t, optim_scalars<T> s)
{
    enum { V = vector_size<T> };
    int k = table_find(t, (int)blockIdx.x);
    int64_t length = t.length[k], begin = (int64_t)((int)blockIdx.x - t.chunk[k]) * chunk_of<T>::elements;
    int64_t end = begin + chunk_of<T>::elements < length ? begin + chunk_of<T>::elements : length;
    T *param = (T *)t.param[k], *first = (T *)t.first[k], *second = (T *)t.second[k];
    const T *grad = (const T *)t.grad[k];
    bool aligned = vector_aligned(param, grad, first, second), reads_first = first && !(s.sgd && s.is_first);
    vector<T> p, g, m, v;
#pragma unroll 1 /* four loads in flight are enough; more would cost registers */
    for (int64_t at = begin + threadIdx.x * V; at < end; at += OPTIM_THREADS * V) {
        int64_t left = length - at;
        bool whole = aligned && left >= V;
        vector_load(p, param + at, left, whole);
        vector_load(g, grad + at, left, whole);
        if (reads_first)
            vector_load(m, first + at, left, whole);
        if (second)
            vector_load(v, second + at, left, whole);
#pragma unroll
        for (int i = 0; i < V; i++)
            optim_element<T>(s, p.item[i], g.item[i], m.item[i], v.item[i]);
        vector_store(param + at, p, left, whole);
        if (first)
            vector_store(first + at, m, left, whole);
        if (second)
            vector_store(second + at, v, left, whole);
    }
}

template <typename T> static optim_scalars<T> scalars_of(const asen_optim_call *c)
{
    optim_scalars<T> s;
    s.lr = (T)c->lr;
    s.momentum = (T)c->momentum;
    s.rest = (T)(1 - c->dampening);
    s.weight_decay = (T)c->weight_decay;
    s.shrink = (T)(1 - c->lr * c->weight_decay);
    s.rest1 = (T)(1 - c->beta1);
    s.beta2 = (T)c->beta2;
    s.rest2 = (T)(1 - c->beta2);
    s.eps = (T)c->eps;
    s.rate = (T)(c->lr / (1 - pow(c->beta1, (double)c->step)));
    s.correction = (T)sqrt(1 - pow(c->beta2, (double)c->step));
    s.sgd = c->kind == ASEN_SGD;
    s.decoupled = c->kind == ASEN_ADAMW;
    s.decays = c->weight_decay != 0;
    s.has_momentum = c->momentum != 0;
    s.nesterov = c->nesterov != 0;
    s.is_first = c->step == 1;
    return s;
}

/* Fills a table from tensor *next on, as far as it and the grid reach; the blocks it takes. Empty
 * tensors are passed over. */
template <typename T>
static int64_t table_fill(optim_table *t, int64_t *next, int64_t count, const int64_t *length, void *const *param,
                          const void *const *grad, void *const *first, void *const *second)
{
    int64_t chunks = 0;
    for (t->count = 0; *next < count && t->count < TABLE_ENTRIES; ++*next) {
        int64_t i = *next, wanted = ceil_div(length[i], chunk_of<T>::elements);
        if (wanted == 0)
            continue;
        if (chunks > 0 && chunks + wanted > INT32_MAX)
            break;
        t->param[t->count] = param[i];
        t->grad[t->count] = grad ? grad[i] : NULL;
        t->first[t->count] = first ? first[i] : NULL;
        t->second[t->count] = second ? second[i] : NULL;
        t->length[t->count] = length[i];
        t->chunk[t->count++] = (int)chunks;
        chunks += wanted;
    }
    return chunks;
}

template <typename T> static int step(const asen_optim_call *c)
{
    optim_table table;
    optim_scalars<T> scalars = scalars_of<T>(c);
    void *const *first = c->kind == ASEN_SGD && c->momentum == 0 ? NULL : c->state1;
    void *const *second = c->kind == ASEN_SGD ? NULL : c->state2;
    for (int64_t next = 0; next < c->count;) {
        int64_t chunks = table_fill<T>(&table, &next, c->count, c->length, c->param, c->grad, first, second);
        if (chunks > 0)
            CUDA_OK(ASEN_LAUNCH(optim_kernel<T>, (unsigned)chunks, OPTIM_THREADS, 0, table, scalars));
    }
    return ASEN_OK;
}

extern "C" int cuda_optim_step(void *self, const asen_optim_call *call)
{
    if (call->dtype != ASEN_F32 && call->dtype != ASEN_F64)
        return cuda_host.fail(ASEN_ERR_TYPE, "an optimizer steps float32 or float64 parameters");
    CUDA_WIDE_SWITCH(call->dtype, T, { return step<T>(call); });
    return ASEN_DECLINED;
}

/* ---- unscaling ---- */

/* The table's params times factor, in place; *infinite, on the host, becomes 1 where one was not finite
 * before: a block writes it once at most, and each the same. Bytes: 2 n s. */
template <typename T> __global__ void __launch_bounds__(OPTIM_THREADS) unscale_kernel(optim_table t, T factor, int *infinite)
{
    enum { V = vector_size<T> };
    int k = table_find(t, (int)blockIdx.x), strange = 0;
    int64_t length = t.length[k], begin = (int64_t)((int)blockIdx.x - t.chunk[k]) * chunk_of<T>::elements + threadIdx.x * V;
    T *param = (T *)t.param[k];
    bool aligned = vector_aligned(param);
    ASEN_SHARED(int, partial, [32]);
    vector<T> p[CHUNK_VECTORS];
#pragma unroll
    for (int j = 0; j < CHUNK_VECTORS; j++) {
        int64_t at = begin + (int64_t)j * OPTIM_THREADS * V, left = length - at;
        if (left > 0)
            vector_load(p[j], param + at, left, aligned && left >= V);
    }
#pragma unroll
    for (int j = 0; j < CHUNK_VECTORS; j++) {
        int64_t at = begin + (int64_t)j * OPTIM_THREADS * V, left = length - at;
        if (left <= 0)
            continue;
#pragma unroll
        for (int i = 0; i < V; i++) {
            strange |= !(p[j].item[i] - p[j].item[i] == 0); /* inf - inf and NaN are NaN */
            p[j].item[i] *= factor;
        }
        vector_store(param + at, p[j], left, aligned && left >= V);
    }
    if (block_sum(strange, partial) != 0 && threadIdx.x == 0)
        *infinite = 1;
}

/* Host memory that kernels write into, as cuda.fault is: the answer is there when the queue is empty. */
static pthread_mutex_t answer_lock = PTHREAD_MUTEX_INITIALIZER;
static int *answer;

template <typename T> static int unscale(int64_t count, void *const *data, const int64_t *length, double factor)
{
    optim_table table;
    for (int64_t next = 0; next < count;) {
        int64_t chunks = table_fill<T>(&table, &next, count, length, data, NULL, NULL, NULL);
        if (chunks > 0)
            CUDA_OK(ASEN_LAUNCH(unscale_kernel<T>, (unsigned)chunks, OPTIM_THREADS, 0, table, (T)factor, answer));
    }
    return ASEN_OK;
}

static int unscale_any(asen_dtype dtype, int64_t count, void *const *data, const int64_t *length, double factor)
{
    if (dtype != ASEN_F32 && dtype != ASEN_F64)
        return cuda_host.fail(ASEN_ERR_TYPE, "gradients are float32 or float64");
    CUDA_WIDE_SWITCH(dtype, T, { return unscale<T>(count, data, length, factor); });
    return ASEN_DECLINED;
}

/* With the lock held, so that two threads do not share the answer. */
static int unscale_and_wait(asen_dtype dtype, int64_t count, void *const *data, const int64_t *length, double factor, bool *finite)
{
    void *made = answer;
    if (made == NULL)
        CUDA_OK(CUDA_CALL(cudaHostAlloc(&made, sizeof *answer, cudaHostAllocMapped | cudaHostAllocPortable)));
    answer = (int *)made;
    *answer = 0;
    int status = unscale_any(dtype, count, data, length, factor);
    int waited = cuda_synchronize(NULL); /* in any case: kernels that were queued write the answer, and the next call's */
    CUDA_OK(status);
    CUDA_OK(waited);
    *finite = *(volatile int *)answer == 0;
    return ASEN_OK;
}

extern "C" int cuda_unscale(void *self, asen_dtype dtype, int64_t count, void *const *data, const int64_t *length, double factor,
                            bool *finite)
{
    *finite = true;
    pthread_mutex_lock(&answer_lock);
    int status = unscale_and_wait(dtype, count, data, length, factor, finite);
    pthread_mutex_unlock(&answer_lock);
    return status;
}
