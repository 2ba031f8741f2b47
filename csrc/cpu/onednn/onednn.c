/* oneDNN's plans: the table of cached primitives, running them, errors, and the kernel table.
 *
 * One engine for the process. The mutex guards the table; primitives themselves are stateless,
 * since their scratchpads are ours, so several threads may run the same plan at once.
 *
 * The gate is for fork() (core/fork.h): kernels pass it as readers, so a fork finds none inside oneDNN, whose own
 * locks and initialisations nobody could finish in the child. Plans and packed filters stay good there. */
#include "cpu/onednn/onednn.h"

#ifndef ASEN_ONEDNN
const asen_kernel asen_onednn_kernels[ASEN_OP_COUNT] = {0};
void asen_onednn_fork(asen_fork_phase phase) { (void)phase; }
#else

#include <dnnl_debug.h>
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

const asen_kernel asen_onednn_kernels[ASEN_OP_COUNT] = {
    [ASEN_OP_conv2d] = onednn_conv2d,
    [ASEN_OP_conv2d_grad_input] = onednn_conv2d_grad_input,
    [ASEN_OP_conv2d_grad_weight] = onednn_conv2d_grad_weight,
    [ASEN_OP_conv2d_fused] = onednn_conv2d_fused,
    [ASEN_OP_matmul] = onednn_matmul,
    [ASEN_OP_linear] = onednn_linear,
};

enum { BUCKETS = 512, MAX_PLANS = 512 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static dnnl_engine_t engine;
static asen_onednn_plan *table[BUCKETS];
static int n_plans;
static uint64_t clock_ticks;

/* A fork that waits goes first: threads that compute without a pause would never let it. */
#ifdef PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP
static const pthread_rwlock_t open_gate = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
static pthread_rwlock_t gate = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
#else
static const pthread_rwlock_t open_gate = PTHREAD_RWLOCK_INITIALIZER;
static pthread_rwlock_t gate = PTHREAD_RWLOCK_INITIALIZER;
#endif

void asen_onednn_enter(void)
{
    asen_onednn_signal_stack();
    pthread_rwlock_rdlock(&gate);
}
void asen_onednn_leave(void) { pthread_rwlock_unlock(&gate); }

void asen_onednn_fork(asen_fork_phase phase)
{
    if (phase == ASEN_FORK_BEFORE)
        pthread_rwlock_wrlock(&gate);
    else if (phase == ASEN_FORK_PARENT)
        pthread_rwlock_unlock(&gate);
    else
        gate = open_gate; /* the lock knows its writer by the number of the parent's thread */
}

int asen_onednn_fail(const asen_call *call, dnnl_status_t status)
{
    char shapes[256];
    size_t length = 0;
    shapes[0] = 0;
    for (int i = 0; i < call->n_in && length < sizeof shapes - 1; i++) {
        if (!call->in[i]) continue;
        int wrote = snprintf(shapes + length, sizeof shapes - length, "%s%s", length ? ", " : "",
                             ASEN_SHAPE_TEXT(call->in[i]));
        if (wrote > 0) length += (size_t)wrote;
    }
    return asen_fail(status == dnnl_out_of_memory ? ASEN_ERR_MEMORY : ASEN_ERR_DEVICE, "oneDNN: %s of %s: %s",
                     asen_op_get(call->op)->name, shapes, dnnl_status2str(status));
}

int asen_onednn_threads(void)
{
    int threads = asen_threads_get();
    if (omp_get_max_threads() != threads) omp_set_num_threads(threads);
    return threads;
}

dnnl_status_t asen_onednn_attr(dnnl_primitive_attr_t *out)
{
    dnnl_status_t status = dnnl_primitive_attr_create(out);
    if (status == dnnl_success) status = dnnl_primitive_attr_set_scratchpad_mode(*out, dnnl_scratchpad_mode_user);
    return status;
}

/* ---- threads that ran out of memory ---- */

/* oneDNN's code generator keeps the first error of a thread. Where its memory ran out once, it refuses every later kernel of
 * that thread, however much there is by then; and some primitives are made without the kernels they lack, or make one when
 * they run first, and then crash. So each build ends with a kernel that is small and always there: where that fails, the
 * thread is spent, and the build has failed with it. What a spent thread wants built or run, a new thread does. */
static _Thread_local bool generator_spent;

/* A thread whose thread-local variables find no memory ends the process: its stack, heap and those must have room. */
static bool room_for_thread(void)
{
    const size_t bytes = (size_t)96 << 20;
    void *room = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return room != MAP_FAILED && munmap(room, bytes) == 0;
}

/* Runs job(argument) in a new thread, and waits. */
static dnnl_status_t in_new_thread(void *(*job)(void *), void *argument)
{
    pthread_t thread;
    if (!room_for_thread() || pthread_create(&thread, NULL, job, argument)) return dnnl_out_of_memory;
    pthread_join(thread, NULL);
    return dnnl_success;
}

/* ---- building ---- */

static dnnl_status_t primitive_take(dnnl_primitive_desc_t pd, dnnl_primitive_t *primitive,
                                    dnnl_memory_desc_t *scratch_desc, size_t *scratch_bytes)
{
    const_dnnl_memory_desc_t scratch = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    *scratch_bytes = scratch ? dnnl_memory_desc_get_size(scratch) : 0;
    dnnl_status_t status = dnnl_success;
    if (*scratch_bytes) status = dnnl_memory_desc_clone(scratch_desc, scratch);
    if (status == dnnl_success) status = dnnl_primitive_create(primitive, pd);
    return status;
}

dnnl_status_t asen_onednn_plan_set(asen_onednn_plan *plan, dnnl_primitive_desc_t pd)
{
    const char *name = NULL;
    dnnl_status_t status = dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &name);
    plan->multiplies = name && strstr(name, "gemm");
    if (status == dnnl_success)
        status = primitive_take(pd, &plan->primitive, &plan->scratch_desc, &plan->scratch_bytes);
    dnnl_primitive_desc_destroy(pd);
    return status;
}

dnnl_status_t asen_onednn_plan_add(asen_onednn_plan *plan, int id, const_dnnl_memory_desc_t desc)
{
    if (plan->n_args == ASEN_ONEDNN_ARGS) return dnnl_invalid_arguments;
    dnnl_status_t status = dnnl_memory_desc_clone(&plan->arg[plan->n_args].desc, desc);
    if (status == dnnl_success) plan->arg[plan->n_args++].id = id;
    return status;
}

dnnl_status_t asen_onednn_plan_add_packed(asen_onednn_plan *plan, dnnl_engine_t engine, int id,
                                          const_dnnl_memory_desc_t desc, const_dnnl_memory_desc_t plain,
                                          bool is_output)
{
    dnnl_status_t status = asen_onednn_plan_add(plan, id, desc);
    if (status != dnnl_success || dnnl_memory_desc_equal(desc, plain)) return status;
    status = dnnl_memory_desc_clone(&plan->plain_desc, plain);
    if (status != dnnl_success) return status;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    status = asen_onednn_attr(&attr);
    if (status == dnnl_success)
        status = dnnl_reorder_primitive_desc_create(&pd, is_output ? desc : plain, engine, is_output ? plain : desc,
                                                    engine, attr);
    if (attr) dnnl_primitive_attr_destroy(attr);
    if (status != dnnl_success) return status;
    status = primitive_take(pd, &plan->reorder, &plan->reorder_scratch_desc, &plan->reorder_scratch_bytes);
    dnnl_primitive_desc_destroy(pd);
    plan->packed = plan->n_args - 1;
    plan->packed_is_output = is_output;
    plan->packed_bytes = dnnl_memory_desc_get_size(desc);
    return status;
}

/* What a build made of it, wholly or in part, goes. */
static void plan_clear(asen_onednn_plan *plan)
{
    if (plan->primitive) dnnl_primitive_destroy(plan->primitive);
    if (plan->reorder) dnnl_primitive_destroy(plan->reorder);
    for (int i = 0; i < plan->n_args; i++) dnnl_memory_desc_destroy(plan->arg[i].desc);
    dnnl_memory_desc_t descs[] = {plan->scratch_desc, plan->plain_desc, plan->reorder_scratch_desc};
    for (int i = 0; i < 3; i++)
        if (descs[i]) dnnl_memory_desc_destroy(descs[i]);
    *plan = (asen_onednn_plan){.packed = -1, .key = plan->key, .hash = plan->hash};
}

static void plan_free(asen_onednn_plan *plan)
{
    plan_clear(plan);
    free(plan);
}

/* ---- the table ---- */

/* Removes the plan that was not used for longest. Called locked. */
static void plan_evict(void)
{
    asen_onednn_plan **oldest = NULL;
    for (int i = 0; i < BUCKETS; i++)
        for (asen_onednn_plan **p = &table[i]; *p; p = &(*p)->next)
            if ((*p)->users == 0 && (!oldest || (*p)->used_at < (*oldest)->used_at)) oldest = p;
    if (!oldest) return;
    asen_onednn_plan *plan = *oldest;
    *oldest = plan->next;
    n_plans--;
    plan_free(plan);
}

static asen_onednn_plan *plan_find(const asen_onednn_key *key, uint64_t hash)
{
    size_t bytes = (size_t)key->count * sizeof key->word[0];
    for (asen_onednn_plan *p = table[hash % BUCKETS]; p; p = p->next)
        if (p->hash == hash && p->key.count == key->count && !memcmp(p->key.word, key->word, bytes)) return p;
    return NULL;
}

static bool generator_works(void)
{
    const dnnl_dims_t dims = {16};
    dnnl_memory_desc_t desc = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t primitive = NULL;
    dnnl_status_t status = dnnl_memory_desc_create_with_tag(&desc, 1, dims, dnnl_f32, dnnl_a);
    if (!status)
        status = dnnl_eltwise_forward_primitive_desc_create(&pd, engine, dnnl_forward_inference, dnnl_eltwise_relu, desc,
                                                            desc, 0, 0, NULL);
    if (!status) status = dnnl_primitive_create(&primitive, pd);
    if (primitive) dnnl_primitive_destroy(primitive);
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (desc) dnnl_memory_desc_destroy(desc);
    return status == dnnl_success;
}

/* A build, in whatever thread. */
typedef struct build_job {
    asen_onednn_build build;
    asen_onednn_plan *plan;
    const void *context;
    dnnl_status_t status;
} build_job;

static void build_here(build_job *job)
{
    job->status = job->build(engine, job->plan, job->context);
    generator_spent = !generator_works();
    if (generator_spent && (job->status == dnnl_success || job->status == dnnl_unimplemented))
        job->status = dnnl_out_of_memory;
}

static void *build_thread(void *job)
{
    asen_onednn_threads(); /* oneDNN builds for as many as the thread that builds would use */
    build_here(job);
    return NULL;
}

/* Fills the plan. */
static dnnl_status_t plan_build(asen_onednn_plan *plan, asen_onednn_build build, const void *context)
{
    build_job job = {build, plan, context, dnnl_out_of_memory};
    if (!generator_spent) {
        build_here(&job);
        if (!generator_spent) return job.status;
        plan_clear(plan);
    }
    dnnl_status_t status = in_new_thread(build_thread, &job);
    return status == dnnl_success ? job.status : status;
}

/* Called locked. */
static dnnl_status_t plan_make(const asen_onednn_key *key, uint64_t hash, asen_onednn_build build,
                               const void *context, asen_onednn_plan **out)
{
    dnnl_status_t status = dnnl_success;
    if (!engine) {
        /* The table here holds the primitives: a second cache inside oneDNN would keep evicted ones. */
        dnnl_set_primitive_cache_capacity(0);
        status = dnnl_engine_create(&engine, dnnl_cpu, 0);
        if (status != dnnl_success) return status;
    }
    asen_onednn_plan *plan = calloc(1, sizeof *plan);
    if (!plan) return dnnl_out_of_memory;
    plan->packed = -1;
    plan->key = *key;
    plan->hash = hash;
    status = plan_build(plan, build, context);
    if (status != dnnl_success && status != dnnl_unimplemented) {
        plan_free(plan);
        return status;
    }
    if (status == dnnl_unimplemented && plan->primitive) {
        dnnl_primitive_destroy(plan->primitive);
        plan->primitive = NULL;
    }
    if (n_plans >= MAX_PLANS) plan_evict();
    plan->next = table[hash % BUCKETS];
    table[hash % BUCKETS] = plan;
    n_plans++;
    *out = plan;
    return dnnl_success;
}

int asen_onednn_plan_get(const asen_call *call, asen_onednn_key *key, asen_onednn_build build, const void *context,
                         asen_onednn_plan **out)
{
    *out = NULL;
    asen_onednn_key_add(key, call->op);
    asen_onednn_key_add(key, asen_onednn_threads());
    if (key->count > ASEN_ONEDNN_KEY)
        return asen_fail(ASEN_ERR_INTERNAL, "oneDNN: the key of %s is too long", asen_op_get(call->op)->name);
    uint64_t hash = 1469598103934665603u;
    for (int i = 0; i < key->count; i++) {
        hash = (hash ^ (uint64_t)key->word[i]) * 1099511628211u;
        hash ^= hash >> 29;
    }
    asen_onednn_enter();
    pthread_mutex_lock(&lock);
    dnnl_status_t status = dnnl_success;
    asen_onednn_plan *plan = plan_find(key, hash);
    if (!plan) status = plan_make(key, hash, build, context, &plan);
    bool usable = status == dnnl_success && plan->primitive;
    if (usable) plan->users++;
    if (plan) plan->used_at = ++clock_ticks;
    pthread_mutex_unlock(&lock);
    if (usable) {
        *out = plan;
        return ASEN_OK;
    }
    asen_onednn_leave();
    return status == dnnl_success ? ASEN_DECLINED : asen_onednn_fail(call, status);
}

void asen_onednn_plan_put(asen_onednn_plan *plan)
{
    if (!plan) return;
    pthread_mutex_lock(&lock);
    plan->users--;
    pthread_mutex_unlock(&lock);
    asen_onednn_leave();
}

/* ---- running ---- */

/* Executes over plain pointers: memory objects and a stream are made for the call (under a
 * microsecond together), so that nothing is shared between threads. */
static dnnl_status_t execute_here(dnnl_primitive_t primitive, int n, const int *ids, const_dnnl_memory_desc_t *descs,
                                  void *const *data)
{
    dnnl_exec_arg_t args[ASEN_ONEDNN_ARGS + 1];
    dnnl_stream_t stream = NULL;
    int made = 0;
    dnnl_status_t status = dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
    for (; made < n && status == dnnl_success; made++) {
        args[made].arg = ids[made];
        status = dnnl_memory_create(&args[made].memory, descs[made], engine, data[made]);
        if (status != dnnl_success) break;
    }
    if (status == dnnl_success) status = dnnl_primitive_execute(primitive, stream, n, args);
    if (status == dnnl_success) status = dnnl_stream_wait(stream);
    for (int i = 0; i < made; i++) dnnl_memory_destroy(args[i].memory);
    if (stream) dnnl_stream_destroy(stream);
    return status;
}

typedef struct execute_job {
    dnnl_primitive_t primitive;
    int n;
    const int *ids;
    const_dnnl_memory_desc_t *descs;
    void *const *data;
    dnnl_status_t status;
} execute_job;

static void *execute_thread(void *argument)
{
    execute_job *job = argument;
    asen_onednn_signal_stacks(asen_onednn_threads());
    job->status = execute_here(job->primitive, job->n, job->ids, job->descs, job->data);
    return NULL;
}

static dnnl_status_t execute(dnnl_primitive_t primitive, int n, const int *ids, const_dnnl_memory_desc_t *descs,
                             void *const *data)
{
    if (!generator_spent) return execute_here(primitive, n, ids, descs, data);
    execute_job job = {primitive, n, ids, descs, data, dnnl_success};
    dnnl_status_t status = in_new_thread(execute_thread, &job);
    return status == dnnl_success ? job.status : status;
}

/* The reorder between `plain` and `packed` memory, in the plan's direction. */
static int reorder_run(const asen_call *call, asen_onednn_plan *plan, void *plain, void *packed)
{
    int ids[] = {DNNL_ARG_FROM, DNNL_ARG_TO, DNNL_ARG_SCRATCHPAD};
    const_dnnl_memory_desc_t descs[] = {plan->plain_desc, plan->arg[plan->packed].desc, plan->reorder_scratch_desc};
    void *data[] = {plain, packed, NULL};
    if (plan->packed_is_output) {
        ids[0] = DNNL_ARG_TO;
        ids[1] = DNNL_ARG_FROM;
    }
    int status = ASEN_OK;
    size_t scratch = plan->reorder_scratch_bytes;
    if (scratch && (status = asen_scratch_new(call->device, scratch, &data[2]))) return status;
    dnnl_status_t done = execute(plan->reorder, scratch ? 3 : 2, ids, descs, data);
    if (scratch) asen_scratch_free(call->device, data[2], scratch);
    return done == dnnl_success ? ASEN_OK : asen_onednn_fail(call, done);
}

static int filter_fill(const asen_call *call, asen_onednn_plan *plan, const asen_tensor *tensor, void *memory)
{
    return reorder_run(call, plan, asen_tensor_data(tensor), memory);
}

int asen_onednn_run(const asen_call *call, asen_onednn_plan *plan, asen_tensor *const *tensors)
{
    int status = ASEN_OK, n = plan->n_args;
    int ids[ASEN_ONEDNN_ARGS + 1];
    const_dnnl_memory_desc_t descs[ASEN_ONEDNN_ARGS + 1];
    void *data[ASEN_ONEDNN_ARGS + 1];
    asen_onednn_pack *pack = NULL;
    void *scratch = NULL, *unpacked = NULL;

    for (int i = 0; i < n; i++) {
        ids[i] = plan->arg[i].id;
        descs[i] = plan->arg[i].desc;
        data[i] = asen_tensor_data(tensors[i]);
    }
    if (plan->packed >= 0 && !plan->packed_is_output) {
        status = asen_onednn_pack_get(call, plan, tensors[plan->packed], filter_fill, &pack, &data[plan->packed]);
        if (status) goto done;
    } else if (plan->packed >= 0) {
        if ((status = asen_scratch_new(call->device, plan->packed_bytes, &unpacked))) goto done;
        data[plan->packed] = unpacked;
    }
    if (plan->scratch_bytes) {
        if ((status = asen_scratch_new(call->device, plan->scratch_bytes, &scratch))) goto done;
        ids[n] = DNNL_ARG_SCRATCHPAD;
        descs[n] = plan->scratch_desc;
        data[n++] = scratch;
    }
    if (plan->multiplies) asen_onednn_signal_stacks(asen_onednn_threads());
    dnnl_status_t ran = execute(plan->primitive, n, ids, descs, data);
    if (ran != dnnl_success) status = asen_onednn_fail(call, ran);
    if (!status && unpacked) status = reorder_run(call, plan, asen_tensor_data(tensors[plan->packed]), unpacked);
done:
    if (scratch) asen_scratch_free(call->device, scratch, plan->scratch_bytes);
    if (unpacked) asen_scratch_free(call->device, unpacked, plan->packed_bytes);
    asen_onednn_pack_put(pack);
    return status;
}

#endif
