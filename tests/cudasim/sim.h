/* What the files of the simulated device share. Everything here runs under one lock (`lock_t`). */
#ifndef CUDASIM_SIM_H
#define CUDASIM_SIM_H

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include <cuda_runtime_api.h>

namespace cudasim {

/* ---- report.cpp: what went wrong, what is alive, what is to fail ---- */

/* A fault that hardware reports late or never: counted, kept as text, written to stderr and to the file
 * that CUDASIM_LOG names. */
void violation(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same, and the process ends. */
[[noreturn]] void fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));
void write_report(const char *text); /* async-signal-safe */
void violation_note(const char *text);

struct lock_t {
    lock_t();
    ~lock_t();
    lock_t(const lock_t &) = delete;
};
void lock_renew(); /* in a child of fork: whoever held it is not there */

/* One API function: how often it was called. */
struct api {
    const char *name;
    unsigned long long calls = 0;
    api *next;
    explicit api(const char *name);
    bool enter(); /* counts; true: this call is to fail */
};
/* The status of a call that is to fail: what was asked for, or `otherwise`. */
int failure(int otherwise);
#define CUDASIM_API_FAILS(name) ([]() -> bool { static ::cudasim::api self(#name); return self.enter(); }())

/* Objects with a handle of the program's, by kind: "memory", "host", "stream", "event", "cublas", "cudnn". */
void live_add(const char *kind, const void *handle, std::string what, size_t bytes = 0);
bool live_remove(const char *kind, const void *handle);
bool live_has(const char *kind, const void *handle);
int live_device(const void *handle); /* the GPU that was chosen when it was made; -1: it is not there */
unsigned long long serial(); /* 1, 2, ...: names objects in messages */
void launch_count(const char *name);

/* ---- device.cpp ---- */
struct device_t {
    cudaDeviceProp properties;
    size_t memory_limit; /* what cudaMalloc gives at most */
    int driver;          /* 0: none */
    bool present;
};
const device_t &device();
cudaError_t device_error(); /* what every call returns where there is no driver, or no GPU */

/* ---- context.cpp: several GPUs, forked processes ---- */
int device_count();
int current_device(); /* the GPU of this thread, or of the work that runs */
bool set_current_device(int index);
/* Whether something of `device` may be used now; a fault where not. */
bool chosen_is(const char *call, const char *what, int device);
typedef std::function<void()> work;
work on_this_device(work w); /* runs it, later, for the GPU that is chosen now */
bool forked();               /* a process that cannot use CUDA calls it: a fault */

/* ---- memory.cpp ---- */
void *memory_new(size_t bytes); /* NULL: the limit is reached */
bool memory_delete(void *data);
bool memory_is_device(const void *address); /* in the arena, alive or not */
/* Whether [address, address + bytes) lies in one live allocation; otherwise `why` says where it lies. */
bool memory_covers(const void *address, size_t bytes, std::string *why);
std::string memory_describe(const void *address);
int memory_device(const void *address); /* the GPU of an allocation; -1: there is none */
void memory_info(size_t *free_bytes, size_t *total);
bool memory_redzones_intact(std::string *why); /* and repairs what is not */
/* Device memory is readable only between begin and close (nested): what a kernel uses then is opened on
 * demand; what else runs touches what it wants. */
void memory_begin();
void memory_touch(const void *address);
void memory_close();
void *pinned_new(size_t bytes);
bool pinned_delete(void *data);
bool pinned_is(const void *address);
bool pinned_register(void *data, size_t bytes);
bool pinned_unregister(void *data);
void faults_install(); /* the handler of SIGSEGV and its kin */
void faults_stack();   /* the signal stack of this thread */

/* ---- queue.cpp: streams, events, what runs late ---- */
/* Queues work on a stream; false with cudaErrorInvalidResourceHandle for a stream that is none. */
cudaError_t queue_push(cudaStream_t stream, const char *name, work w);
void queue_seed(uint64_t seed); /* of the drawn schedule */
/* Runs all of it. */
void queue_run_all();
cudaError_t set_error(cudaError_t error);   /* remembers it for cudaGetLastError */
cudaError_t sticky();                       /* an error after which nothing works */
void set_sticky(cudaError_t error);
bool queue_stream_ok(cudaStream_t stream);

/* ---- fibers.cpp: kernels ---- */
struct launch_base;
const char *kernel_running(); /* NULL: none; else its name */
/* Runs host code that works on device memory under a kernel's name, so that a fault is the kernel's. */
void run_as_kernel(const char *name, const work &w);
[[noreturn]] void kernel_abort(); /* leaves the running kernel after a violation */

/* The start of every API function that wants a device. */
#define CUDASIM_ENTER(name)                                                                                            \
    ::cudasim::lock_t lock_;                                                                                           \
    bool fails_ = CUDASIM_API_FAILS(name);                                                                             \
    if (::cudasim::device_error() != cudaSuccess)                                                                      \
        return ::cudasim::set_error(::cudasim::device_error());                                                       \
    if (::cudasim::sticky() != cudaSuccess)                                                                            \
        return ::cudasim::set_error(::cudasim::sticky());                                                             \
    if (fails_)                                                                                                        \
    return ::cudasim::set_error((cudaError_t)::cudasim::failure(cudaErrorUnknown))

} // namespace cudasim

#define CUDASIM_EXPORT extern "C" __attribute__((visibility("default")))

#endif
