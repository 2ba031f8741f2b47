/* The CPU device: memory, and the order in which kernel paths are asked (ours, oneDNN, reference). */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "backend.h"

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

static int copy(void *self, void *target, const void *source, size_t bytes, asen_copy_kind kind)
{
    if (bytes > 0)
        memmove(target, source, bytes);
    return ASEN_OK;
}

static int fill_zero(void *self, void *target, size_t bytes)
{
    if (bytes > 0)
        memset(target, 0, bytes);
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

static bool supports(void *self, asen_op op) { return asen_ref_kernels[op] != NULL; }

static int optim_step(void *self, const asen_optim_call *call)
{
    int status = ASEN_DECLINED;
    if (atomic_load(&paths) & ASEN_PATH_FAST)
        status = asen_optim_fast_step(call);
    return status == ASEN_DECLINED ? asen_optim_ref_step(call) : status;
}

const asen_backend asen_cpu_backend = {
    .abi = ASEN_BACKEND_ABI,
    .op_count = ASEN_OP_COUNT,
    .op_names = "",
    .name = "cpu",
    .host_memory = true,
    .memory_alloc = memory_alloc,
    .memory_free = memory_free,
    .copy = copy,
    .fill_zero = fill_zero,
    .synchronize = synchronize,
    .dispatch = dispatch,
    .supports = supports,
    .optim_step = optim_step,
};

void asen_cpu_set_paths(unsigned mask) { atomic_store(&paths, mask); }
unsigned asen_cpu_get_paths(void) { return atomic_load(&paths); }

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
