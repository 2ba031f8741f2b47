/* A toy asynchronous device, for tests: nothing runs before somebody must wait for it.
 *
 * Kernels, fills and copies are queued as closures and run in order, in a thread of the device's
 * own, only when a copy to the host or `synchronize` asks for it. Fresh memory is filled with
 * 0xFF (NaN), and memory that goes back is, so a core that reads on the host before the queue
 * has run, or that relies on a tensor staying alive, gets NaN. Kernels are the reference's.
 * Tensor descriptors are copied when a call is queued: the core may free its own at once.
 *
 * TOY_WRONG_ABI and TOY_OPEN_FAILS make devices that must be refused. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <unistd.h>

#include "ops/abi.h"

enum { MAX_IN = 64 };

typedef struct task {
    struct task *next;
    enum { KERNEL, COPY, OPTIM } kind;
    /* KERNEL */
    asen_call call;
    asen_tensor tensor[MAX_IN + ASEN_MAX_OUT];
    asen_storage storage[MAX_IN + ASEN_MAX_OUT];
    asen_tensor *pointer[MAX_IN + ASEN_MAX_OUT];
    asen_attrs attrs;
    /* COPY: `staged` owns the bytes where they come from the host */
    void *target, *staged;
    const void *source;
    size_t bytes;
    /* OPTIM */
    asen_optim_call optim;
    void *lists[4];
    int64_t *length;
} task;

static asen_services host;
static task *first, **last = &first;
static uint64_t queued, ran;
static int failed;

static int run_task(task *t)
{
    switch (t->kind) {
    case KERNEL: return host.reference_kernel(t->call.op)(&t->call);
    case COPY:
        memcpy(t->target, t->staged ? t->staged : t->source, t->bytes);
        return ASEN_OK;
    default: return host.cpu->optim_step(host.cpu->self, &t->optim);
    }
}

static void free_task(task *t)
{
    free(t->staged);
    for (int i = 0; i < 4; i++)
        free(t->lists[i]);
    free(t->length);
    free(t);
}

static void *drain(void *unused)
{
    while (first != NULL) {
        task *t = first;
        first = t->next;
        if (first == NULL)
            last = &first;
        if (failed == ASEN_OK)
            failed = run_task(t);
        ran++;
        free_task(t);
    }
    return NULL;
}

static int synchronize(void *self)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, drain, NULL) != 0)
        return host.fail(ASEN_ERR_DEVICE, "toy: no thread");
    pthread_join(thread, NULL);
    int status = failed;
    failed = ASEN_OK;
    return status == ASEN_OK ? ASEN_OK : host.fail(status, "toy: a queued kernel failed");
}

static task *enqueue(int kind)
{
    task *t = calloc(1, sizeof *t);
    if (t == NULL)
        return NULL;
    t->kind = kind;
    *last = t;
    last = &t->next;
    queued++;
    return t;
}

static int memory_alloc(void *self, size_t bytes, void **out)
{
    *out = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (*out == NULL)
        return host.fail(ASEN_ERR_MEMORY, "toy: out of memory");
    memset(*out, 0xFF, bytes);
    return ASEN_OK;
}

static void memory_free(void *self, void *data)
{
    synchronize(self); /* queued work may use it */
    free(data);
}

static int copy(void *self, void *target, const void *source, size_t bytes, asen_copy_kind kind)
{
    if (kind == ASEN_DEVICE_TO_HOST) {
        int status = synchronize(self);
        if (status == ASEN_OK)
            memcpy(target, source, bytes);
        return status;
    }
    task *t = enqueue(COPY);
    if (t == NULL)
        return host.fail(ASEN_ERR_MEMORY, "toy: out of memory");
    t->target = target;
    t->bytes = bytes;
    t->source = source;
    if (kind == ASEN_HOST_TO_DEVICE) {
        t->staged = malloc(bytes + 1);
        if (t->staged == NULL)
            return host.fail(ASEN_ERR_MEMORY, "toy: out of memory");
        memcpy(t->staged, source, bytes);
    }
    return ASEN_OK;
}

static int fill(void *self, void *target, const void *value, size_t size, int64_t count)
{
    task *t = enqueue(COPY);
    size_t bytes = size * (size_t)count;
    if (t == NULL || (t->staged = malloc(bytes + 1)) == NULL)
        return host.fail(ASEN_ERR_MEMORY, "toy: out of memory");
    for (int64_t i = 0; i < count; i++)
        memcpy((char *)t->staged + (size_t)i * size, value, size);
    t->target = target;
    t->bytes = bytes;
    return ASEN_OK;
}

/* tanh has no kernel here, so that a test can see how that is said. */
static bool supports(asen_op op) { return op != ASEN_OP_tanh && host.reference_kernel(op) != NULL; }

static int dispatch(void *self, const asen_call *call)
{
    if (!supports(call->op) || call->n_in > MAX_IN)
        return ASEN_DECLINED;
    task *t = enqueue(KERNEL);
    if (t == NULL)
        return host.fail(ASEN_ERR_MEMORY, "toy: out of memory");
    t->attrs = *call->attrs;
    t->call = *call;
    t->call.attrs = &t->attrs;
    t->call.in = t->pointer;
    t->call.out = t->pointer + call->n_in;
    for (int i = 0; i < call->n_in + call->n_out; i++) {
        const asen_tensor *from = i < call->n_in ? call->in[i] : call->out[i - call->n_in];
        if (from == NULL)
            continue;
        memcpy(&t->tensor[i], from, sizeof *from);
        memcpy(&t->storage[i], from->storage, sizeof t->storage[i]);
        t->tensor[i].storage = &t->storage[i];
        t->tensor[i].history = NULL;
        t->pointer[i] = &t->tensor[i];
    }
    return ASEN_OK;
}

static void *duplicate(const void *list, size_t bytes)
{
    void *copy = list == NULL ? NULL : malloc(bytes);
    if (copy != NULL)
        memcpy(copy, list, bytes);
    return copy;
}

static int optim_step(void *self, const asen_optim_call *call)
{
    task *t = enqueue(OPTIM);
    if (t == NULL)
        return host.fail(ASEN_ERR_MEMORY, "toy: out of memory");
    size_t bytes = (size_t)call->count * sizeof(void *);
    t->optim = *call;
    t->optim.param = t->lists[0] = duplicate(call->param, bytes);
    t->optim.grad = t->lists[1] = duplicate(call->grad, bytes);
    t->optim.state1 = t->lists[2] = duplicate(call->state1, bytes);
    t->optim.state2 = t->lists[3] = duplicate(call->state2, bytes);
    t->optim.length = t->length = duplicate(call->length, (size_t)call->count * sizeof *call->length);
    return ASEN_OK;
}

static void *warn_twice(void *unused)
{
    host.warning("toy: %d of %s", 1, "2");
    host.warning("toy: 2 of 2");
    return NULL;
}

/* "warn": says something, from a thread of its own that the caller waits for. */
static int set_option(void *self, const char *name, int64_t value)
{
    pthread_t thread;
    if (strcmp(name, "warn") != 0)
        return host.fail(ASEN_ERR_VALUE, "toy has no option '%s'", name);
    if (pthread_create(&thread, NULL, warn_twice, NULL) != 0)
        return host.fail(ASEN_ERR_DEVICE, "toy: no thread");
    pthread_join(thread, NULL);
    return ASEN_OK;
}

static int opened, closed; /* calls of open and of close */

#ifdef TOY_OPEN_FAILS
/* What a library behind a device may leave: a thread that goes on in its code, a function to be called at exit. */
static _Atomic int ticks;

static void *idle(void *unused)
{
    for (;; ticks++)
        usleep(1000);
    return NULL;
}

__attribute__((visibility("default"))) int toy_ticks(void) { return ticks; }

static void at_exit(void) { closed++; }
#endif

static int toy_open(void *self)
{
    opened++;
    queued = ran = 0;
    failed = ASEN_OK;
    first = NULL;
    last = &first;
#ifdef TOY_OPEN_FAILS
    pthread_t thread;
    if (opened == 1) {
        atexit(at_exit);
        if (pthread_create(&thread, NULL, idle, NULL) == 0)
            pthread_detach(thread);
        return host.fail(ASEN_ERR_DEVICE, "toy: does not open");
    }
#endif
    return ASEN_OK;
}

static void toy_close(void *self) { closed++; }

static asen_backend backend = {
    .abi = ASEN_BACKEND_ABI,
    .name = "toy",
    .open = toy_open,
    .close = toy_close,
    .memory = {
        .alloc = memory_alloc,
        .free = memory_free,
        .copy = copy,
        .fill = fill,
        .synchronize = synchronize,
    },
    .dispatch = dispatch,
    .optim_step = optim_step,
    .set_option = set_option,
};

__attribute__((visibility("default"))) int asen_plugin_init(const asen_services *services, const asen_backend **out)
{
#ifdef TOY_WRONG_ABI
    backend.abi++;
    backend.name = NULL; /* and what else follows means something else */
#endif
    backend.built = asen_abi_here();
    *out = &backend;
    if (services->abi == ASEN_BACKEND_ABI)
        host = *services;
    return ASEN_OK;
}

/* For the test: how many tasks were queued and how many ran so far. */
__attribute__((visibility("default"))) uint64_t toy_queued(void) { return queued; }
__attribute__((visibility("default"))) uint64_t toy_ran(void) { return ran; }
/* How often it was opened. */
__attribute__((visibility("default"))) int toy_opened(void) { return opened; }
