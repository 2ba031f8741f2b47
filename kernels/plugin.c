/* The plugin's one export: gives the core its table of functions (backend.h), which opens the GPU when the core asks. */
#include <stdio.h>
#include <string.h>

#include "cuda.h"
#include "ops/abi.h"

asen_services cuda_host;

static const asen_kernel kernels[ASEN_OP_COUNT] = {
#define OP(name, ...) [ASEN_OP_##name] = cuda_##name,
#include "ops/ops.def"
};

static const char *const dtype_names[ASEN_DTYPE_COUNT] = {"bool", "uint8", "int32", "int64",
                                                          "float16", "bfloat16", "float32", "float64"};

/* "(2, 3) float32, (3) float32" of the inputs of a call. */
static const char *inputs_text(const asen_call *call, char *buffer, size_t size)
{
    size_t n = 0;
    buffer[0] = '\0';
    for (int i = 0; i < call->n_in && n < size; i++) {
        const asen_tensor *t = call->in[i];
        if (t == NULL)
            continue;
        n += (size_t)snprintf(buffer + n, size - n, "%s(", n ? ", " : "");
        for (int d = 0; d < t->ndim && n < size; d++)
            n += (size_t)snprintf(buffer + n, size - n, "%s%lld", d ? ", " : "", (long long)t->shape[d]);
        if (n < size)
            n += (size_t)snprintf(buffer + n, size - n, ") %s", dtype_names[t->dtype]);
    }
    return buffer;
}

static int run(const asen_call *call)
{
    char text[512];
    int status = kernels[call->op] == NULL ? ASEN_DECLINED : kernels[call->op](call);
    if (status != ASEN_OK && status != ASEN_DECLINED)
        cuda_host.fail_prefix("on inputs %s", inputs_text(call, text, sizeof text));
    return status;
}

/* ---- the table: every function enters the device, and leaves it ---- */

#define ENTERED(...)                                                                                                   \
    do {                                                                                                               \
        int before_;                                                                                                   \
        CUDA_OK(cuda_enter(&before_));                                                                                 \
        int result_ = (__VA_ARGS__);                                                                                   \
        cuda_leave(before_);                                                                                           \
        return result_;                                                                                                \
    } while (0)

static int open_device(void *self) { return cuda_device_open(); }
static void close_device(void *self) { cuda_device_close(); }

static int memory_alloc(void *self, size_t bytes, void **out)
{
    *out = NULL;
    ENTERED(cuda_memory_alloc(self, bytes, out));
}

static void memory_free(void *self, void *data)
{
    int before = CUDA_DEVICE;
    if (cuda_is_forked()) /* it is the parent's */
        return;
    cuda_enter(&before); /* an address says whose it is: it is freed all the same */
    cuda_memory_free(self, data);
    cuda_leave(before);
}

static int memory_info(void *self, size_t *free_bytes, size_t *total_bytes)
{
    ENTERED(cuda_memory_info(self, free_bytes, total_bytes));
}

static int memory_copy(void *self, void *target, const void *source, size_t bytes, asen_copy_kind kind)
{
    ENTERED(cuda_memory_copy(self, target, source, bytes, kind));
}

static int memory_fill(void *self, void *target, const void *value, size_t size, int64_t count)
{
    ENTERED(cuda_fill(self, target, value, size, count));
}

static int memory_synchronize(void *self) { ENTERED(cuda_synchronize(self)); }

static int write_strided(void *self, const asen_tensor *target, const asen_tensor *source)
{
    ENTERED(cuda_write_strided(self, target, source));
}

static int dispatch(void *self, const asen_call *call) { ENTERED(run(call)); }

static int optim_step(void *self, const asen_optim_call *call) { ENTERED(cuda_optim_step(self, call)); }

static int unscale(void *self, asen_dtype dtype, int64_t count, void *const *data, const int64_t *length, double factor,
                   bool *finite)
{
    ENTERED(cuda_unscale(self, dtype, count, data, length, factor, finite));
}

static int set_option(void *self, const char *name, int64_t value) { ENTERED(cuda_set_option(self, name, value)); }

static asen_backend backend = {
    .abi = ASEN_BACKEND_ABI,
    .name = "cuda",
    .open = open_device,
    .close = close_device,
    .memory = {
        .alloc = memory_alloc,
        .free = memory_free,
        .info = memory_info,
        .copy = memory_copy,
        .fill = memory_fill,
        .synchronize = memory_synchronize,
    },
    .write_strided = write_strided,
    .dispatch = dispatch,
    .optim_step = optim_step,
    .unscale = unscale,
    .set_option = set_option,
};

__attribute__((visibility("default"))) int asen_plugin_init(const asen_services *services, const asen_backend **out)
{
    backend.built = asen_abi_here();
    *out = &backend;
    if (services->abi == ASEN_BACKEND_ABI)
        cuda_host = *services;
    return ASEN_OK;
}
