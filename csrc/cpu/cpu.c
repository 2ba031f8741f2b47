/* The CPU device: memory, and the order in which kernel paths are asked (ours, oneDNN, reference). */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu/cpu.h"

static _Atomic unsigned paths = ASEN_PATH_ALL;
static _Atomic uint64_t counts[ASEN_OP_COUNT][3];

static int memory_alloc(void *self, size_t bytes, void **out)
{
    /* Large blocks are aligned to huge pages and ask for them: fewer TLB misses and page faults. */
    const size_t huge = (size_t)2 << 20;
    size_t align = bytes >= huge ? huge : 64;
    size_t rounded = (bytes + align - 1) / align * align;
    *out = aligned_alloc(align, rounded);
    if (*out == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory");
    if (align == huge)
        madvise(*out, rounded, MADV_HUGEPAGE);
    return ASEN_OK;
}

static void memory_free(void *self, void *data) { free(data); }

static int memory_discard(void *self, void *data, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)data + page - 1) / page * page, to = ((uintptr_t)data + bytes) / page * page;
    if (from < to && madvise((void *)from, to - from, MADV_DONTNEED) != 0)
        return asen_fail(ASEN_ERR_DEVICE, "memory cannot be given back");
    return ASEN_OK;
}

static int copy(void *self, void *target, const void *source, size_t bytes, asen_copy_kind kind)
{
    if (bytes > 0)
        memmove(target, source, bytes);
    return ASEN_OK;
}

static int fill(void *self, void *target, const void *value, size_t size, int64_t count)
{
    static const char zero[8];
    size_t bytes = size * (size_t)count;
    if (memcmp(value, zero, size) == 0 && bytes > 0) {
        memset(target, 0, bytes);
        return ASEN_OK;
    }
    for (size_t done = 0; done < bytes;) { /* doubling */
        const void *from = done == 0 ? value : target;
        size_t n = done == 0 ? size : done < bytes - done ? done : bytes - done;
        memcpy((char *)target + done, from, n);
        done += n;
    }
    return ASEN_OK;
}

/* Element by element. */
static int write_strided(void *self, const asen_tensor *target, const asen_tensor *source)
{
    int64_t index[ASEN_MAX_DIMS] = {0};
    size_t size = asen_dtype_size(target->dtype);
    char *to = asen_tensor_data(target);
    const char *from = asen_tensor_data(source);
    for (int64_t n = asen_tensor_count(target); n > 0; n--) {
        int64_t at = 0, of = 0;
        for (int d = 0; d < target->ndim; d++) {
            at += index[d] * target->stride[d];
            of += index[d] * source->stride[d];
        }
        memcpy(to + at * (int64_t)size, from + of * (int64_t)size, size);
        for (int d = target->ndim - 1; d >= 0 && ++index[d] == target->shape[d]; d--)
            index[d] = 0;
    }
    return ASEN_OK;
}

static int synchronize(void *self) { return ASEN_OK; }

static int dispatch(void *self, const asen_call *call)
{
    const asen_kernel path[3] = {asen_fast_kernels[call->op], asen_onednn_kernels[call->op],
                                 asen_ref_kernels[call->op]};
    unsigned mask = atomic_load_explicit(&paths, memory_order_relaxed);
    for (int p = 0; p < 3; p++) {
        if (path[p] == NULL || !(mask >> p & 1))
            continue;
        int status = path[p](call);
        if (status == ASEN_DECLINED)
            continue;
        atomic_fetch_add_explicit(&counts[call->op][p], 1, memory_order_relaxed);
        return status;
    }
    return ASEN_DECLINED;
}

static int optim_step(void *self, const asen_optim_call *call)
{
    int status = ASEN_DECLINED;
    if (atomic_load(&paths) & ASEN_PATH_FAST)
        status = asen_optim_fast_step(call);
    return status == ASEN_DECLINED ? asen_optim_ref_step(call) : status;
}

static int unscale(void *self, asen_dtype dtype, int64_t count, void *const *data, const int64_t *length, double factor,
                   bool *finite)
{
    *finite = true;
    if (dtype != ASEN_F32 && dtype != ASEN_F64)
        return asen_fail(ASEN_ERR_TYPE, "gradients are float32 or float64, not %s", asen_dtype_name(dtype));
    for (int64_t t = 0; t < count; t++)
        for (int64_t i = 0; i < length[t]; i++) {
            double value = dtype == ASEN_F32 ? ((float *)data[t])[i] : ((double *)data[t])[i];
            *finite &= isfinite(value) != 0;
            if (dtype == ASEN_F32)
                ((float *)data[t])[i] = (float)(value * factor);
            else
                ((double *)data[t])[i] = value * factor;
        }
    return ASEN_OK;
}

static asen_kernel reference_kernel(asen_op op) { return op < ASEN_OP_COUNT ? asen_ref_kernels[op] : NULL; }

static const asen_backend backend = {
    .abi = ASEN_BACKEND_ABI,
    .name = "cpu",
    .memory = {
        .host_memory = true,
        .alloc = memory_alloc,
        .free = memory_free,
        .discard = memory_discard,
        .copy = copy,
        .fill = fill,
        .synchronize = synchronize,
    },
    .write_strided = write_strided,
    .dispatch = dispatch,
    .optim_step = optim_step,
    .unscale = unscale,
    .reference_kernel = reference_kernel,
};

static int open_status;

static void open_once(void)
{
    asen_device *device;
    open_status = asen_device_add(&backend, &device);
    if (open_status == ASEN_OK)
        open_status = asen_fork_protect(ASEN_FORK_TEAMS, asen_team_fork);
    if (open_status == ASEN_OK)
        open_status = asen_fork_protect(ASEN_FORK_KERNELS, asen_onednn_fork);
}

int asen_cpu_open(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, open_once);
    return open_status == ASEN_OK ? ASEN_OK : asen_fail(open_status, "the CPU device could not be made");
}

void asen_cpu_set_paths(unsigned mask) { atomic_store(&paths, mask); }

void asen_cpu_get_counts(uint64_t (*out)[3])
{
    for (int op = 0; op < ASEN_OP_COUNT; op++)
        for (int p = 0; p < 3; p++)
            out[op][p] = atomic_load(&counts[op][p]);
}

void asen_cpu_reset_counts(void)
{
    for (int op = 0; op < ASEN_OP_COUNT; op++)
        for (int p = 0; p < 3; p++)
            atomic_store(&counts[op][p], 0);
}
