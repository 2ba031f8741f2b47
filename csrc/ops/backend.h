/* The table of functions a device fills, and the devices there are.
 *
 * Kernels are queued with the device's fills and copies, in the order they are called
 * (core/device.h). Backends know nothing of autograd. */
#ifndef ASEN_BACKEND_H
#define ASEN_BACKEND_H

#include "core/device.h"
#include "ops/op.h"
#include "ops/optim.h"

ASEN_C_BEGIN

/* Moves when what a plugin and the core exchange first changes: the start of the two structs below, and asen_abi.
 * Whatever else differs is found by comparing those (abi.h). */
#define ASEN_BACKEND_ABI 4

typedef struct asen_abi asen_abi;

typedef struct asen_backend {
    uint32_t abi;          /* ASEN_BACKEND_ABI */
    const asen_abi *built; /* asen_abi_here(): compared on loading */
    const char *name;      /* "cpu", "cuda" */
    asen_memory memory;
    void *self;

    /* Makes the device ready: called once, before anything else; after a failure nothing of it may be left, and it may be
     * called again. `close` takes back what `open` did. NULL: there is nothing to do. */
    int (*open)(void *self);
    void (*close)(void *self);

    /* Dense `source` into `target` of any strides, of the same dtype and shape. NULL: unsupported. */
    int (*write_strided)(void *self, const asen_tensor *target, const asen_tensor *source);

    /* One function for all ops; ASEN_DECLINED where there is no kernel. */
    int (*dispatch)(void *self, const asen_call *call);

    /* One step over many tensors (optim.h). */
    int (*optim_step)(void *self, const asen_optim_call *call);
    /* Multiplies `count` buffers of `length` elements each by `factor` in place, and says whether all their
     * elements were finite. Waits for the answer. */
    int (*unscale)(void *self, asen_dtype dtype, int64_t count, void *const *data, const int64_t *length,
                   double factor, bool *finite);

    /* A switch of the device by name; NULL: it has none. */
    int (*set_option)(void *self, const char *name, int64_t value);
    /* The reference kernel of an op: the CPU's alone, NULL elsewhere. */
    asen_kernel (*reference_kernel)(asen_op op);
} asen_backend;

/* Adds a device of the backend's name. An error where there is one already. */
int asen_device_add(const asen_backend *backend, asen_device **out);

/* A device by name ("cpu", "cuda", or the name of a plugin loaded before): borrowed, or NULL
 * with a message. */
int asen_device_get(const char *name, asen_device **out);
asen_device *asen_device_cpu(void); /* borrowed: the first device that was added */

/* What a plugin gets at init: it is loaded locally and cannot call the module's symbols. */
typedef struct asen_services {
    uint32_t abi; /* ASEN_BACKEND_ABI: where it is another one, a plugin reads no further */
    int (*fail)(int code, const char *format, ...);
    void (*fail_prefix)(const char *format, ...);
    void (*warning)(const char *format, ...);
    int (*scratch_new)(asen_device *device, size_t bytes, void **out);
    void (*scratch_free)(asen_device *device, void *data, size_t bytes);
    /* Gives back to the device the memory that is kept for reuse. */
    void (*memory_release)(asen_device *device);
    /* The CPU's reference kernel of an op: for tests of backends on the host. */
    asen_kernel (*reference_kernel)(asen_op op);
    const asen_backend *cpu;
} asen_services;

/* A plugin exports exactly this symbol: it keeps the services and gives its table, and does nothing else; the device is
 * opened by the table's `open`, once the core knows that it wants it. */
#define ASEN_PLUGIN_SYMBOL "asen_plugin_init"
typedef int (*asen_plugin_init_fn)(const asen_services *services, const asen_backend **out);

/* dlopens a plugin, compares what both were built from, opens its device and adds it under its name. A library that is
 * loaded already, by whatever path, is left as it is; another one whose device has a name that is taken is refused before
 * it is opened. Any thread may call it. */
int asen_plugin_load(const char *path);

ASEN_C_END

#endif
