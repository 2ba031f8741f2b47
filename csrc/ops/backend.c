/* The devices there are, and plugins: see backend.h. */
#include "ops/backend.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "core/allocator.h"
#include "core/fork.h"
#include "ops/abi.h"

enum { MAX_DEVICES = 8 };

#define CORE_OK(call)                                                                                                  \
    do {                                                                                                               \
        int status_ = (call);                                                                                          \
        if (status_ != ASEN_OK)                                                                                        \
            return status_;                                                                                            \
    } while (0)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static asen_device devices[MAX_DEVICES];
static int device_count;

static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER; /* held while a plugin is loaded; taken before `lock` */
static void *library_of[MAX_DEVICES];                       /* the plugin of a device */

/* fork()'s handler. What a plugin's device does in a child is the plugin's to say. */
static void devices_fork(asen_fork_phase phase)
{
    if (phase == ASEN_FORK_BEFORE) {
        pthread_mutex_lock(&loading);
        pthread_mutex_lock(&lock);
    }
    for (int i = 0; i < device_count; i++)
        asen_allocator_fork(devices[i].allocator, phase);
    if (phase != ASEN_FORK_BEFORE) {
        pthread_mutex_unlock(&lock);
        pthread_mutex_unlock(&loading);
    }
}

static asen_device *find(const char *name)
{
    for (int i = 0; i < device_count; i++)
        if (strcmp(devices[i].name, name) == 0)
            return &devices[i];
    return NULL;
}

/* With the lock held. */
static int add(const asen_backend *backend, asen_device **out)
{
    if (find(backend->name) != NULL)
        return asen_fail(ASEN_ERR_VALUE, "a device '%s' is loaded already", backend->name);
    if (device_count == MAX_DEVICES)
        return asen_fail(ASEN_ERR_DEVICE, "at most %d devices", MAX_DEVICES);
    asen_device *d = &devices[device_count];
    snprintf(d->name, sizeof d->name, "%s", backend->name);
    d->allocator = asen_allocator_new(&backend->memory, d->name);
    if (d->allocator == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory");
    d->backend = backend;
    d->memory = &backend->memory;
    device_count++;
    *out = d;
    return ASEN_OK;
}

int asen_device_add(const asen_backend *backend, asen_device **out)
{
    *out = NULL;
    int status = asen_fork_protect(ASEN_FORK_DEVICES, devices_fork);
    if (status != ASEN_OK)
        return status;
    pthread_mutex_lock(&lock);
    status = add(backend, out);
    pthread_mutex_unlock(&lock);
    return status;
}

int asen_device_get(const char *name, asen_device **out)
{
    pthread_mutex_lock(&lock);
    *out = find(name);
    pthread_mutex_unlock(&lock);
    return *out != NULL ? ASEN_OK : asen_fail(ASEN_ERR_VALUE, "there is no device '%s' here", name);
}

asen_device *asen_device_cpu(void) { return &devices[0]; }

static asen_kernel reference_kernel(asen_op op) { return devices[0].backend->reference_kernel(op); }

/* The services, made by whoever loads first. */
static const asen_services *services_get(void)
{
    static asen_services services;
    services = (asen_services){
        .abi = ASEN_BACKEND_ABI,
        .fail = asen_fail,
        .fail_prefix = asen_fail_prefix,
        .warning = asen_warn,
        .scratch_new = asen_scratch_new,
        .scratch_free = asen_scratch_free,
        .memory_release = asen_memory_empty_cache,
        .reference_kernel = reference_kernel,
        .cpu = devices[0].backend,
    };
    return &services;
}

/* ---- plugins ---- */

static int other_version(const char *path, const char *what, int length)
{
    return asen_fail(ASEN_ERR_DEVICE, "%s was built for another version of the core (%.*s differs): build both together", path,
                     length, what);
}

/* The rows, one by one, so that the message names the op. */
static int rows_compare(const char *path, const char *ours, const char *theirs)
{
    while (*ours != '\0') {
        size_t n = strcspn(ours, "\n") + 1;
        if (strncmp(ours, theirs, n) != 0)
            return other_version(path, ours, (int)strcspn(ours, ":"));
        ours += n;
        theirs += n;
    }
    return *theirs == '\0' ? ASEN_OK : other_version(path, theirs, (int)strcspn(theirs, ":"));
}

static int abi_compare(const char *path, const asen_backend *backend)
{
    const asen_abi *ours = asen_abi_here(), *theirs;
    if (backend == NULL || backend->abi != ASEN_BACKEND_ABI)
        return other_version(path, "ASEN_BACKEND_ABI", 100);
    theirs = backend->built;
    CORE_OK(rows_compare(path, ours->rows, theirs->rows));
    for (uint64_t i = 0; i < ours->word_count; i++)
        if (i >= theirs->word_count || strcmp(ours->words[i].what, theirs->words[i].what) != 0 ||
            ours->words[i].value != theirs->words[i].value)
            return other_version(path, ours->words[i].what, 100);
    return ours->word_count == theirs->word_count ? ASEN_OK : other_version(path, "abi.h", 100);
}

/* The table of a library that was not asked before. Nothing is opened. */
static int plugin_describe(void *library, const char *path, const asen_backend **out)
{
    asen_plugin_init_fn init;
    *(void **)&init = dlsym(library, ASEN_PLUGIN_SYMBOL);
    if (init == NULL)
        return asen_fail(ASEN_ERR_DEVICE, "%s is no plugin: it lacks %s", path, ASEN_PLUGIN_SYMBOL);
    CORE_OK(init(services_get(), out));
    CORE_OK(abi_compare(path, *out));
    pthread_mutex_lock(&lock);
    int count = device_count;
    bool taken = find((*out)->name) != NULL;
    pthread_mutex_unlock(&lock);
    if (taken)
        return asen_fail(ASEN_ERR_VALUE, "a device '%s' is loaded already, from another file than %s", (*out)->name, path);
    return count == MAX_DEVICES ? asen_fail(ASEN_ERR_DEVICE, "at most %d devices", MAX_DEVICES) : ASEN_OK;
}

static int plugin_open(void *library, const asen_backend *backend)
{
    asen_device *device;
    if (backend->open != NULL)
        CORE_OK(backend->open(backend->self));
    int status = asen_device_add(backend, &device);
    if (status == ASEN_OK)
        library_of[device - devices] = library;
    else if (backend->close != NULL)
        backend->close(backend->self);
    return status;
}

static int plugin_load(const char *path)
{
    const asen_backend *backend = NULL;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return asen_fail(ASEN_ERR_DEVICE, "cannot load the plugin: %s", dlerror());
    for (int i = 0; i < MAX_DEVICES; i++)
        if (library_of[i] == library) { /* the loader gives the same handle for the same file */
            dlclose(library);
            return ASEN_OK;
        }
    int status = plugin_describe(library, path, &backend);
    if (status != ASEN_OK) {
        dlclose(library);
        return status;
    }
    /* From here on it stays mapped, also when it does not open: libraries that it needs may have started threads, or left
     * functions to be called at exit. A second try finds it as it is. */
    return plugin_open(library, backend);
}

int asen_plugin_load(const char *path)
{
    pthread_mutex_lock(&loading);
    int status = plugin_load(path);
    pthread_mutex_unlock(&loading);
    return status;
}
