/* Launching: what a launch may ask for, and what it leaves for later (fibers.cpp). */
#include <cstdio>

#include <sys/mman.h>

#include "launch.h"
#include "sim.h"

namespace cudasim {

int dynamic_limit_of(const void *function);

static std::string plain_name(const char *name)
{
    std::string text = name;
    if (text.size() > 2 && text.front() == '(' && text.back() == ')')
        text = text.substr(1, text.size() - 2);
    return text;
}

void extent_fail(const char *name, long long value)
{
    violation("kernel %s: %lld blocks or threads do not fit into 32 bits", plain_name(name).c_str(), value);
}

static cudaError_t configuration(const std::string &name, const void *function, dim3 grid, dim3 threads, size_t shared,
                                 size_t *limit)
{
    const cudaDeviceProp &p = device().properties;
    unsigned g[3] = {grid.x, grid.y, grid.z}, t[3] = {threads.x, threads.y, threads.z};
    for (int i = 0; i < 3; i++)
        if (g[i] == 0 || t[i] == 0 || g[i] > (unsigned)p.maxGridSize[i] || t[i] > (unsigned)p.maxThreadsDim[i] ||
            (uint64_t)t[0] * t[1] * t[2] > (unsigned)p.maxThreadsPerBlock) {
            violation("kernel %s: a grid of (%u, %u, %u) blocks of (%u, %u, %u) threads is beyond the device's limits",
                      name.c_str(), g[0], g[1], g[2], t[0], t[1], t[2]);
            return cudaErrorInvalidConfiguration;
        }
    int asked = dynamic_limit_of(function);
    *limit = asked > (int)p.sharedMemPerBlock ? p.sharedMemPerBlockOptin : p.sharedMemPerBlock;
    if (shared > (asked >= 0 ? (size_t)asked : p.sharedMemPerBlock)) {
        violation("kernel %s: %zu bytes of dynamic shared memory, and %zu are allowed (cudaFuncSetAttribute)", name.c_str(),
                  shared, asked >= 0 ? (size_t)asked : p.sharedMemPerBlock);
        return cudaErrorInvalidValue;
    }
    return cudaSuccess;
}

/* Whether an address is mapped: then it is memory of the host's. */
static bool host_memory(const void *address)
{
    unsigned char resident;
    void *page = (void *)((uintptr_t)address & ~(uintptr_t)4095);
    return address != nullptr && mincore(page, 1, &resident) == 0;
}

void launch_queue(const char *name, const void *function, dim3 grid, dim3 threads, size_t shared, cudaStream_t stream,
                  const pointer_argument *pointers, int n_pointers, launch_base *launch)
{
    lock_t lock;
    auto p = std::make_shared<launch_plan>(launch_plan{plain_name(name), grid, threads, shared, 0, {}, {}});
    p->launch.reset(launch);
    bool fails = CUDASIM_API_FAILS(cudaLaunchKernel);
    cudaError_t error = device_error();
    if (error == cudaSuccess)
        error = sticky();
    if (error == cudaSuccess && fails)
        error = cudaErrorUnknown;
    if (error == cudaSuccess)
        error = configuration(p->name, function, grid, threads, shared, &p->shared_limit);
    for (int i = 0; i < n_pointers && error == cudaSuccess; i++)
        if (!memory_is_device(pointers[i].value) && !pinned_is(pointers[i].value) && host_memory(pointers[i].value)) {
            violation("kernel %s: argument %d points to memory of the host (%p)", p->name.c_str(), pointers[i].index,
                      pointers[i].value);
            error = cudaErrorIllegalAddress;
        }
    if (error != cudaSuccess) {
        set_error(error);
        return;
    }
    for (int i = 0; i < n_pointers; i++)
        p->pointers.push_back(pointers[i].value);
    launch_count(p->name.c_str());
    queue_push(stream, "kernel", [p] { launch_run(*p); });
}

} // namespace cudasim

/* ---- -fsanitize=alignment calls this where a kernel uses an address that its type does not allow ---- */

struct source_location {
    const char *file;
    uint32_t line, column;
};
struct type_mismatch {
    source_location at;
    const void *type;
    unsigned char log_alignment, kind;
};
extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1(type_mismatch *what, uintptr_t address)
{
    const char *kernel = cudasim::kernel_running();
    char text[400];
    snprintf(text, sizeof text, "%s%s: address %p at %s:%u wants an alignment of %u bytes", kernel ? "kernel " : "host code",
             kernel ? kernel : "", (void *)address, what->at.file, what->at.line, 1u << what->log_alignment);
    cudasim::violation_note(text);
    if (kernel)
        cudasim::kernel_abort();
}
extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1_abort(type_mismatch *what, uintptr_t address)
{
    __ubsan_handle_type_mismatch_v1(what, address);
}
