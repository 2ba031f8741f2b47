/* The table of functions a device fills, and the devices there are.
 *
 * A backend may be asynchronous: kernels, fills and copies are queued in the order they are
 * called, one queue a device, and only `copy` to the host and `synchronize` wait. Nothing above
 * this line may read device memory on the host except after those, unless host_memory is set
 * (the CPU, whose calls are complete when they return). Backends know nothing of autograd. */
#ifndef ASEN_BACKEND_H
#define ASEN_BACKEND_H

#include "ops/op.h"
#include "ops/optim.h"

ASEN_C_BEGIN

#define ASEN_BACKEND_ABI 2

typedef enum asen_copy_kind { ASEN_HOST_TO_DEVICE, ASEN_DEVICE_TO_HOST, ASEN_DEVICE_TO_DEVICE } asen_copy_kind;

typedef struct asen_backend {
    uint32_t abi;         /* ASEN_BACKEND_ABI */
    uint32_t op_count;    /* ASEN_OP_COUNT: the same op list */
    const char *op_names; /* asen_op_names(): compared on loading */
    const char *name;     /* "cpu", "cuda" */
    bool host_memory;     /* the host may read device pointers */
    void *self;

    /* Raw memory; the caching allocator stands above. 64-byte aligned at least. */
    int (*memory_alloc)(void *self, size_t bytes, void **out);
    void (*memory_free)(void *self, void *data);
    /* In queue order. From the host: the source may be reused on return. To the host: complete
     * on return. */
    int (*copy)(void *self, void *target, const void *source, size_t bytes, asen_copy_kind kind);
    /* `count` copies of the element of `size` bytes (1, 2, 4 or 8) at `value`. */
    int (*fill)(void *self, void *target, const void *value, size_t size, int64_t count);
    /* Dense `source` into `target` of any strides, of the same dtype and shape. NULL: unsupported. */
    int (*write_strided)(void *self, const asen_tensor *target, const asen_tensor *source);
    int (*synchronize)(void *self);

    /* One function for all ops; ASEN_DECLINED where there is no kernel. */
    int (*dispatch)(void *self, const asen_call *call);
    bool (*supports)(void *self, asen_op op);

    /* One step over many tensors (optim.h). */
    int (*optim_step)(void *self, const asen_optim_call *call);
    /* Multiplies `count` buffers of `length` elements each by `factor` in place, and says whether all their
     * elements were finite. Waits for the answer. */
    int (*unscale)(void *self, asen_dtype dtype, int64_t count, void *const *data, const int64_t *length,
                   double factor, bool *finite);

    /* Bytes of memory that are free now, and that there are; NULL: ask the system. */
    int (*memory_info)(void *self, size_t *free_bytes, size_t *total_bytes);
    /* A switch of the device by name; NULL: it has none. */
    int (*set_option)(void *self, const char *name, int64_t value);
} asen_backend;

struct asen_device {
    const asen_backend *backend;
    char name[16];
    struct asen_allocator *allocator;
};

/* The comma-separated names of all ops, in order: an ABI check for plugins. */
const char *asen_op_names(void);

/* A device by name ("cpu", "cuda", or the name of a plugin loaded before): borrowed, or NULL
 * with a message. */
int asen_device_get(const char *name, asen_device **out);
asen_device *asen_device_cpu(void); /* borrowed */

/* What a plugin gets at init: it is loaded locally and cannot call the module's symbols. */
typedef struct asen_services {
    uint32_t abi;
    uint32_t op_count;
    const char *op_names;
    int (*fail)(int code, const char *format, ...);
    void (*fail_prefix)(const char *format, ...);
    int (*scratch_new)(asen_device *device, size_t bytes, void **out);
    void (*scratch_free)(asen_device *device, void *data, size_t bytes);
    /* The CPU's reference kernel of an op: for tests of backends on the host. */
    asen_kernel (*reference_kernel)(asen_op op);
    const asen_backend *cpu;
} asen_services;

/* A plugin exports exactly this symbol. */
#define ASEN_PLUGIN_SYMBOL "asen_plugin_init"
typedef int (*asen_plugin_init_fn)(const asen_services *services, const asen_backend **out);

/* dlopens a plugin, checks ABI and op list, adds its device under its backend's name. */
int asen_plugin_load(const char *path);

/* CPU kernel paths, tried in this order by the CPU's dispatch; a bit mask chooses (tests). */
enum { ASEN_PATH_FAST = 1, ASEN_PATH_ONEDNN = 2, ASEN_PATH_REFERENCE = 4, ASEN_PATH_ALL = 7 };
void asen_cpu_set_paths(unsigned mask);
unsigned asen_cpu_get_paths(void);
/* How often each path ran each op since the last reset: counts[ASEN_OP_COUNT][3]. */
void asen_cpu_get_counts(uint64_t (*counts)[3]);
void asen_cpu_reset_counts(void);
extern const asen_backend asen_cpu_backend;

/* The tables behind the paths; a NULL slot declines. */
extern const asen_kernel asen_ref_kernels[ASEN_OP_COUNT];
extern const asen_kernel asen_fast_kernels[ASEN_OP_COUNT];
extern const asen_kernel asen_onednn_kernels[ASEN_OP_COUNT]; /* all NULL in a build without oneDNN */

/* Threads for compute (OpenMP, in fast kernels and oneDNN). 0 in set: the machine's budget. */
int asen_threads_get(void);
void asen_threads_set(int threads);
int asen_threads_budget(void); /* affinity and the cgroup's quota */

ASEN_C_END

#endif
