/* The convolution rows: cuDNN plans, cached by everything they depend on; matrix products for 1 x 1 filters in
 * float32 (conv_product.c); and our kernels where neither has anything (conv_direct.cu).
 *
 * One handle, on the device's stream; one lock around it and the cache, held while a convolution is
 * queued (some microseconds) or planned (a millisecond or so). Plans know no addresses: what lies
 * unaligned is copied first, so the same shapes always run the same plan. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "conv_direct.h"
#include "conv_product.h"
#include "cuda.h"
#include "cudnn_graph.h"

enum { OLDEST = 90800, ALIGNMENT = 16, SMALL = 1 << 20, BUCKETS = 1024, GENERATION = 1024, MAX_AUTOTUNE = 8 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static cudnnHandle_t handle;
static int autotune = 1;    /* plans to try on real data; 1: the heuristics' choice as it stands */
static bool direct_only;    /* for tests: cuDNN is not asked */
static size_t max_workspace; /* bytes of the largest workspace so far */

/* ---- the cache ---- */

/* What was found for a spec: a plan, or that there is none (plan.plan is NULL). */
typedef struct entry {
    struct entry *next;
    conv_spec spec;
    conv_plan plan;
} entry;

/* Two generations: what is used is in the young one; when that is full, the old one goes and the
 * young one grows old. So at most 2 GENERATION plans are kept (some 80 KB of host memory each), and
 * none that is in use is lost. */
typedef struct generation {
    entry *bucket[BUCKETS];
    int count;
} generation;

static generation cache[2];
static int young;

static unsigned hash(const conv_spec *spec)
{
    const int64_t *word = (const int64_t *)spec; /* nothing but int64 */
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < sizeof *spec / sizeof *word; i++)
        h = (h ^ (uint64_t)word[i]) * 1099511628211u;
    return (unsigned)((h ^ h >> 32) % BUCKETS);
}

static void generation_clear(generation *g)
{
    for (int i = 0; i < BUCKETS; i++)
        while (g->bucket[i] != NULL) {
            entry *e = g->bucket[i];
            g->bucket[i] = e->next;
            conv_plan_free(&e->plan);
            free(e);
        }
    g->count = 0;
}

/* Takes the entry of a spec out of a generation; NULL where it is not there. */
static entry *generation_take(generation *g, const conv_spec *spec, unsigned at)
{
    for (entry **link = &g->bucket[at]; *link != NULL; link = &(*link)->next)
        if (memcmp(&(*link)->spec, spec, sizeof *spec) == 0) {
            entry *found = *link;
            *link = found->next;
            g->count--;
            return found;
        }
    return NULL;
}

static void generation_put(generation *g, entry *e, unsigned at)
{
    e->next = g->bucket[at];
    g->bucket[at] = e;
    g->count++;
}

/* Evicts the old generation where the young one is full. */
static int cache_evict(void)
{
    if (cache[young].count < GENERATION)
        return ASEN_OK;
    CUDA_OK(CUDA_CALL(cudaStreamSynchronize(cuda.stream))); /* no queued work uses the plans that go */
    young = !young;
    generation_clear(&cache[young]);
    return ASEN_OK;
}

/* ---- the handle ---- */

static int handle_open(const asen_call *call)
{
    if (handle != NULL)
        return ASEN_OK;
    cudnnStatus_t status = cudnnCreate(&handle);
    if (status == CUDNN_STATUS_NOT_INITIALIZED) { /* it says so, too, where it had no memory */
        cuda_host.memory_release(call->device);
        status = cudnnCreate(&handle);
    }
    if (status != CUDNN_STATUS_SUCCESS) {
        handle = NULL;
        return conv_fail(status, "cudnnCreate", NULL);
    }
    status = cudnnSetStream(handle, cuda.stream);
    if (status == CUDNN_STATUS_SUCCESS)
        return ASEN_OK;
    int code = conv_fail(status, "cudnnSetStream", NULL);
    cudnnDestroy(handle);
    handle = NULL;
    return code;
}

/* All of cuDNN 9 has one file name, for whatever CUDA it is. */
int cuda_conv_check_library(void)
{
    Dl_info file = {0};
    size_t version = cudnnGetVersion(), runtime = cudnnGetCudartVersion(); /* 90800: 9.8.0; 13000: 13.0 */
    if (version / 10000 == CUDNN_MAJOR && version >= OLDEST && runtime / 1000 == CUDART_VERSION / 1000)
        return ASEN_OK;
    dladdr((void *)cudnnGetVersion, &file);
    return cuda_host.fail(ASEN_ERR_DEVICE, "cuDNN %zu.%zu.%zu for CUDA %zu.%zu is loaded (%s), and 9.8 or later for CUDA %d is "
                          "wanted: pip install nvidia-cudnn-cu13, and see that no other one is found before it "
                          "(LD_LIBRARY_PATH; a PyTorch for another CUDA, imported before, brings its own)",
                          version / 10000, version / 100 % 100, version % 100, runtime / 1000, runtime % 1000 / 10,
                          file.dli_fname != NULL ? file.dli_fname : "?", CUDART_VERSION / 1000);
}

/* With the lock held. */
static void forget(void)
{
    if (handle == NULL)
        return;
    if (cudaStreamSynchronize(cuda.stream) != cudaSuccess)
        cudaGetLastError(); /* whoever waits next is told */
    generation_clear(&cache[0]);
    generation_clear(&cache[1]);
    cudnnDestroy(handle);
    handle = NULL;
    max_workspace = 0;
}

void cuda_conv_forget(void)
{
    pthread_mutex_lock(&lock);
    forget();
    pthread_mutex_unlock(&lock);
}

int cuda_conv_set_autotune(int n)
{
    if (n < 0 || n > MAX_AUTOTUNE)
        return cuda_host.fail(ASEN_ERR_VALUE, "autotune is %d: 0 or 1 (off) to %d plans are wanted", n, MAX_AUTOTUNE);
    pthread_mutex_lock(&lock);
    if (autotune != (n < 1 ? 1 : n)) {
        autotune = n < 1 ? 1 : n;
        forget();
    }
    pthread_mutex_unlock(&lock);
    return ASEN_OK;
}

void cuda_conv_set_direct(bool only)
{
    pthread_mutex_lock(&lock);
    direct_only = only;
    pthread_mutex_unlock(&lock);
}

/* ---- operands ---- */

/* What a call reads, aligned for cuDNN: its own memory or a copy. */
typedef struct operands {
    const asen_call *call;
    void *data[CONV_TENSORS];
    void *copy[CONV_TENSORS];
    size_t bytes[CONV_TENSORS];
} operands;

static void operands_free(operands *o)
{
    for (int i = 0; i < CONV_TENSORS; i++)
        if (o->copy[i] != NULL)
            cuda_scratch_free(o->call, o->copy[i], o->bytes[i]);
}

static int operand_align(operands *o, int i, const asen_tensor *t)
{
    o->data[i] = asen_tensor_data(t);
    o->bytes[i] = asen_tensor_bytes(t);
    if ((uintptr_t)o->data[i] % ALIGNMENT == 0)
        return ASEN_OK;
    CUDA_OK(cuda_scratch_new(o->call, o->bytes[i], &o->copy[i]));
    CUDA_OK(CUDA_CALL(cudaMemcpyAsync(o->copy[i], o->data[i], o->bytes[i], cudaMemcpyDeviceToDevice, cuda.stream)));
    o->data[i] = o->copy[i];
    return ASEN_OK;
}

/* A bias of zeros: without one cuDNN would have to compile what follows the convolution. */
static int operand_zero_bias(operands *o, const conv_spec *spec)
{
    size_t size = spec->dtype == ASEN_F64 ? 8 : spec->dtype == ASEN_F32 ? 4 : 2;
    o->bytes[CONV_BIAS] = (size_t)spec->o * size;
    CUDA_OK(cuda_scratch_new(o->call, o->bytes[CONV_BIAS], &o->copy[CONV_BIAS]));
    o->data[CONV_BIAS] = o->copy[CONV_BIAS];
    CUDA_OK(CUDA_CALL(cudaMemsetAsync(o->data[CONV_BIAS], 0, o->bytes[CONV_BIAS], cuda.stream)));
    return ASEN_OK;
}

/* ---- running a plan ---- */

/* Memory for a plan. The allocator keeps blocks by size, and plans want many sizes, some of a gibibyte:
 * so all but small ones ask for as much as the largest, and share its block. */
static int workspace_new(const operands *o, size_t *bytes, void **out)
{
    size_t wanted = *bytes;
    *out = NULL;
    if (wanted == 0)
        return ASEN_OK;
    if (wanted > max_workspace)
        max_workspace = wanted;
    if (wanted > SMALL && cuda_scratch_new(o->call, max_workspace, out) == ASEN_OK) {
        *bytes = max_workspace;
        return ASEN_OK;
    }
    if (wanted > SMALL)
        max_workspace = wanted; /* that much is not to be had any more, and asking costs all that is kept for reuse */
    return cuda_scratch_new(o->call, wanted, out);
}

static int run(const operands *o, const conv_spec *spec, const conv_plan *plan)
{
    void *workspace = NULL;
    size_t bytes = (size_t)plan->workspace;
    CUDA_OK(workspace_new(o, &bytes, &workspace));
    int status = conv_plan_run(handle, spec, plan, o->data, workspace);
    if (workspace != NULL)
        cuda_scratch_free(o->call, workspace, bytes);
    return status;
}

/* Milliseconds of one run of a plan, after one that loads its kernels. */
static int time_plan(const operands *o, const conv_spec *spec, const conv_plan *plan, cudaEvent_t event[2], float *out)
{
    CUDA_OK(run(o, spec, plan));
    CUDA_OK(CUDA_CALL(cudaEventRecord(event[0], cuda.stream)));
    CUDA_OK(run(o, spec, plan));
    CUDA_OK(CUDA_CALL(cudaEventRecord(event[1], cuda.stream)));
    CUDA_OK(CUDA_CALL(cudaEventSynchronize(event[1])));
    CUDA_OK(CUDA_CALL(cudaEventElapsedTime(out, event[0], event[1])));
    return ASEN_OK;
}

/* The index of the fastest of `count` plans on these very operands. */
static int fastest(const operands *o, const conv_spec *spec, const conv_plan *plans, int count, int *out)
{
    cudaEvent_t event[2] = {NULL, NULL};
    float best = 0, now = 0;
    int status = ASEN_OK;
    *out = 0;
    for (int i = 0; i < 2 && status == ASEN_OK; i++) {
        cudaError_t error = cudaEventCreate(&event[i]);
        status = error == cudaSuccess ? ASEN_OK : cuda_fail(error, "cudaEventCreate");
    }
    for (int i = 0; i < count && status == ASEN_OK; i++) {
        status = time_plan(o, spec, &plans[i], event, &now);
        if (status == ASEN_OK && (i == 0 || now < best)) {
            best = now;
            *out = i;
        }
    }
    for (int i = 0; i < 2; i++)
        if (event[i] != NULL)
            cudaEventDestroy(event[i]);
    return status;
}

/* Says, once, that cuDNN has no plan where it should have: a slow way is taken. */
static void warn_of_fallback(const conv_spec *spec, const conv_search *search)
{
    static bool said;
    char text[400], why[500];
    bool plain = !spec->bias && !spec->residual && !spec->relu; /* else what follows is computed after it */
    if (said || !plain || (spec->dtype == ASEN_BF16 && cuda.sm < 80))
        return;
    said = true;
    cuda_host.warning("cuDNN has no plan for %s (%s): a kernel of asenpp's own computes it, which is slower. Further ones are "
                      "not mentioned.", conv_spec_text(spec, text, sizeof text), conv_search_text(search, why, sizeof why));
}

/* Plans a spec: *out holds the plan, or none. */
static int plan_new(const operands *o, const conv_spec *spec, conv_plan *out)
{
    conv_plan plans[MAX_AUTOTUNE];
    conv_search search;
    conv_target target = {.handle = handle, .sm = cuda.sm};
    int found = 0, chosen = 0, status = ASEN_OK;
    *out = (conv_plan){0};
    CUDA_OK(conv_plans_find(&target, spec, conv_refused_notes(spec, cuda.sm), autotune, plans, &found, &search));
    if (found == 0)
        warn_of_fallback(spec, &search);
    if (found > 1)
        status = fastest(o, spec, plans, found, &chosen);
    for (int i = 0; i < found; i++)
        if (status == ASEN_OK && i == chosen)
            *out = plans[i];
        else
            conv_plan_free(&plans[i]);
    return status;
}

/* The entry of a spec, in the young generation; made where there is none, and kept only when all of that went well. */
static int entry_get(const operands *o, const conv_spec *spec, entry **out)
{
    unsigned at = hash(spec);
    entry *e = generation_take(&cache[young], spec, at);
    int old = e == NULL ? !young : young, status = ASEN_OK;
    bool made = false;
    *out = NULL;
    if (e == NULL)
        e = generation_take(&cache[old], spec, at);
    if (e == NULL) {
        made = true;
        e = malloc(sizeof *e);
        if (e == NULL)
            return cuda_host.fail(ASEN_ERR_MEMORY, "no memory for a convolution plan");
        e->spec = *spec;
        e->plan = (conv_plan){0};
        status = plan_new(o, spec, &e->plan);
    }
    if (status == ASEN_OK)
        status = cache_evict();
    if (status == ASEN_OK) {
        generation_put(&cache[young], e, at);
        *out = e;
    } else if (made) {
        conv_plan_free(&e->plan);
        free(e);
    } else {
        generation_put(&cache[old], e, at); /* queued work may use it */
    }
    return status;
}

static int run_planned(const operands *o, const conv_spec *spec)
{
    entry *e = NULL;
    CUDA_OK(handle_open(o->call));
    CUDA_OK(entry_get(o, spec, &e));
    return e->plan.plan == NULL ? ASEN_DECLINED : run(o, spec, &e->plan);
}

/* ASEN_DECLINED where cuDNN has no plan. cuDNN allocates, too, when it plans and when it loads kernels: where memory runs
 * out, what the core keeps for reuse is given back, and all is tried once more. */
static int convolve_planned(const operands *o, const conv_spec *spec)
{
    pthread_mutex_lock(&lock);
    int status = direct_only ? ASEN_DECLINED : run_planned(o, spec);
    if (status == ASEN_ERR_MEMORY) {
        cuda_host.memory_release(o->call->device);
        status = run_planned(o, spec);
        if (status == ASEN_ERR_MEMORY)
            cuda_host.fail_prefix("the GPU's memory is full, and nothing is left to give back (a smaller batch wants less)");
    }
    pthread_mutex_unlock(&lock);
    return status;
}

/* ---- the rows ---- */

static conv_spec without_epilogue(const conv_spec *spec)
{
    conv_spec plain = *spec;
    plain.bias = plain.residual = plain.relu = 0;
    return plain;
}

static int no_bfloat16(void)
{
    return cuda_host.fail(ASEN_ERR_UNSUPPORTED, "%s (compute capability %d.%d) has no bfloat16 convolutions: 8.0 is the "
                          "oldest that has; float16 or float32 run here", cuda.name, cuda.sm / 10, cuda.sm % 10);
}

/* The plain convolution, by cuDNN or by ours. */
static int convolve_plain(const operands *o, const conv_spec *spec)
{
    int status = convolve_planned(o, spec);
    if (status != ASEN_DECLINED)
        return status;
    return spec->dtype == ASEN_BF16 && cuda.sm < 80 && !direct_only ? no_bfloat16() : conv_direct(spec, o->data);
}

/* Everything of a spec: in one graph, or one after the other. */
static int convolve(operands *o, const conv_spec *spec)
{
    conv_spec plain = without_epilogue(spec), whole = *spec;
    int status = direct_only ? ASEN_DECLINED : conv_product(o->call, spec, o->data);
    if (status != ASEN_DECLINED)
        return status;
    if (memcmp(&plain, spec, sizeof plain) == 0)
        return convolve_plain(o, spec);
    if (!spec->bias) {
        CUDA_OK(operand_zero_bias(o, spec));
        whole.bias = 1;
    }
    status = convolve_planned(o, &whole);
    if (status != ASEN_DECLINED)
        return status;
    CUDA_OK(convolve_plain(o, &plain));
    return conv_epilogue(spec, o->data);
}

/* Sums over nothing: zeros, and what is added to them. */
static int convolve_nothing(const operands *o, const conv_spec *spec, const asen_tensor *out)
{
    CUDA_OK(CUDA_CALL(cudaMemsetAsync(asen_tensor_data(out), 0, asen_tensor_bytes(out), cuda.stream)));
    return spec->bias || spec->residual || spec->relu ? conv_epilogue(spec, o->data) : ASEN_OK;
}

/* t[]: x, w, y, bias, residual; absent ones NULL. One of the first three is out[0] of the call. */
static int convolution(const asen_call *call, const conv_spec *spec, const asen_tensor *const t[CONV_TENSORS])
{
    const asen_tensor *out = call->out[0];
    operands o = {.call = call};
    bool empty = false;
    int status = ASEN_OK;
    if (!asen_dtype_is_float(out->dtype))
        return ASEN_DECLINED;
    if (asen_tensor_count(out) == 0)
        return ASEN_OK;
    for (int i = 0; i < CONV_TENSORS && status == ASEN_OK; i++)
        if (t[i] != NULL) {
            status = operand_align(&o, i, t[i]);
            empty |= asen_tensor_count(t[i]) == 0;
        }
    if (status == ASEN_OK)
        status = empty ? convolve_nothing(&o, spec, out) : convolve(&o, spec);
    operands_free(&o);
    return status;
}

static conv_spec spec_of(conv_kind kind, const asen_tensor *const t[CONV_TENSORS], const int64_t stride[2],
                         const int64_t padding[2], const int64_t dilation[2], int64_t groups)
{
    const int64_t *x = t[CONV_X]->shape, *w = t[CONV_W]->shape, *y = t[CONV_Y]->shape;
    return (conv_spec){.kind = kind, .dtype = t[CONV_X]->dtype, .n = x[0], .c = x[1], .h = x[2], .w = x[3],
                       .o = y[1], .p = y[2], .q = y[3], .kh = w[2], .kw = w[3],
                       .stride = {stride[0], stride[1]}, .padding = {padding[0], padding[1]},
                       .dilation = {dilation[0], dilation[1]}, .groups = groups,
                       .bias = t[CONV_BIAS] != NULL, .residual = t[CONV_RESIDUAL] != NULL,
                       .tf32 = cuda.tf32 && t[CONV_X]->dtype == ASEN_F32};
}

int cuda_conv2d(const asen_call *call)
{
    const asen_attrs_conv *a = &call->attrs->conv2d;
    const asen_tensor *t[CONV_TENSORS] = {call->in[0], call->in[1], call->out[0], cuda_optional(call, 2), NULL};
    conv_spec spec = spec_of(CONV_FORWARD, t, a->stride, a->padding, a->dilation, a->groups);
    return convolution(call, &spec, t);
}

int cuda_conv2d_fused(const asen_call *call)
{
    const asen_attrs_conv_fused *a = &call->attrs->conv2d_fused;
    const asen_tensor *t[CONV_TENSORS] = {call->in[0], call->in[1], call->out[0], cuda_optional(call, 2),
                                          cuda_optional(call, 3)};
    conv_spec spec = spec_of(CONV_FORWARD, t, a->stride, a->padding, a->dilation, a->groups);
    spec.relu = a->relu != 0;
    return convolution(call, &spec, t);
}

int cuda_conv2d_grad_input(const asen_call *call)
{
    const asen_attrs_conv_grad *a = &call->attrs->conv2d_grad_input;
    const asen_tensor *t[CONV_TENSORS] = {call->out[0], call->in[1], call->in[0], NULL, NULL};
    conv_spec spec = spec_of(CONV_GRAD_INPUT, t, a->stride, a->padding, a->dilation, a->groups);
    return convolution(call, &spec, t);
}

int cuda_conv2d_grad_weight(const asen_call *call)
{
    const asen_attrs_conv_grad *a = &call->attrs->conv2d_grad_weight;
    const asen_tensor *t[CONV_TENSORS] = {call->in[1], call->out[0], call->in[0], NULL, NULL};
    conv_spec spec = spec_of(CONV_GRAD_WEIGHT, t, a->stride, a->padding, a->dilation, a->groups);
    return convolution(call, &spec, t);
}
