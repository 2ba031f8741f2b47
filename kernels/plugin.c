/* The plugin's one export: gives the core its table of functions (backend.h), which opens the GPU when the core asks. */
#include <stdio.h>
#include <string.h>

#include "cuda.h"
#include "ops/abi.h"

asen_services cuda_host;

static const asen_kernel kernels[ASEN_OP_COUNT] = {
#define OP(name, ...) [ASEN_OP_##name] = cuda_##name,
#define VIEW(name, ...)
#include "ops/ops.def"
#undef OP
#undef VIEW
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

static int dispatch(void *self, const asen_call *call)
{
    char text[512];
    int status = kernels[call->op] == NULL ? ASEN_DECLINED : kernels[call->op](call);
    if (status != ASEN_OK && status != ASEN_DECLINED)
        cuda_host.fail_prefix("on inputs %s", inputs_text(call, text, sizeof text));
    return status;
}

static void close_device(void *self)
{
    cuda_transfer_close();
    cuda_device_close();
}

static int open_device(void *self)
{
    int status = cuda_device_open();
    if (status == ASEN_OK)
        status = cuda_transfer_open();
    if (status != ASEN_OK)
        close_device(self);
    return status;
}

static asen_backend backend = {
    .abi = ASEN_BACKEND_ABI,
    .name = "cuda",
    .open = open_device,
    .close = close_device,
    .memory = {
        .alloc = cuda_memory_alloc,
        .free = cuda_memory_free,
        .info = cuda_memory_info,
        .copy = cuda_memory_copy,
        .fill = cuda_fill,
        .synchronize = cuda_synchronize,
    },
    .write_strided = cuda_write_strided,
    .dispatch = dispatch,
    .optim_step = cuda_optim_step,
    .unscale = cuda_unscale,
    .set_option = cuda_set_option,
};

__attribute__((visibility("default"))) int asen_plugin_init(const asen_services *services, const asen_backend **out)
{
    backend.built = asen_abi_here();
    *out = &backend;
    if (services->abi == ASEN_BACKEND_ABI)
        cuda_host = *services;
    return ASEN_OK;
}
