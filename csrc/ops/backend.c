/* The devices there are, and plugins: see backend.h. */
#include "ops/backend.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "core/allocator.h"

enum { MAX_DEVICES = 8 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static asen_device devices[MAX_DEVICES];
static int device_count;

const char *asen_op_names(void)
{
    return ""
#define OP(name, ...) #name ","
#define VIEW(name, ...) #name ","
#include "ops/ops.def"
        ;
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
    pthread_mutex_lock(&lock);
    int status = add(backend, out);
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

int asen_plugin_load(const char *path)
{
    asen_services services = {
        .abi = ASEN_BACKEND_ABI,
        .op_count = ASEN_OP_COUNT,
        .op_names = asen_op_names(),
        .fail = asen_fail,
        .fail_prefix = asen_fail_prefix,
        .scratch_new = asen_scratch_new,
        .scratch_free = asen_scratch_free,
        .reference_kernel = reference_kernel,
        .cpu = devices[0].backend,
    };
    const asen_backend *backend = NULL;
    asen_device *device;

    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return asen_fail(ASEN_ERR_DEVICE, "cannot load the plugin: %s", dlerror());
    asen_plugin_init_fn init;
    *(void **)&init = dlsym(library, ASEN_PLUGIN_SYMBOL);
    if (init == NULL) {
        dlclose(library);
        return asen_fail(ASEN_ERR_DEVICE, "%s is no plugin: it lacks %s", path, ASEN_PLUGIN_SYMBOL);
    }
    int status = init(&services, &backend);
    if (status != ASEN_OK)
        goto fail;
    if (backend->abi != ASEN_BACKEND_ABI || backend->op_count != ASEN_OP_COUNT ||
        strcmp(backend->op_names, asen_op_names()) != 0) {
        status = asen_fail(ASEN_ERR_DEVICE, "%s was built for another version of the core: build both together", path);
        goto fail;
    }
    status = asen_device_add(backend, &device);
    if (status == ASEN_OK)
        return ASEN_OK;
fail:
    dlclose(library);
    return status;
}
