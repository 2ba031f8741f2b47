/* Device memory: one reserved range of addresses, closed (PROT_NONE) to everybody but running kernels and
 * copies: what they touch is opened, at the first touch, and closed when the batch of work has run. An allocation lies at the end of its pages, so that the next byte beyond its 256-byte
 * granule faults at once; what lies between is a red zone, compared after each kernel. Fresh memory is
 * 0xFF (NaN). Addresses are never given twice: use after free faults.
 * Pinned host memory is the host's, with a closed page behind it. */
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "check.h"
#include "sim.h"

namespace cudasim {

enum : size_t { PAGE = 4096, GRANULE = 256, KEPT = 65536 };

struct allocation {
    char *base, *data; /* first page, first byte */
    size_t length, bytes;
    unsigned long long number;
    bool freed, opened;
    int device;
};

static char *arena, *cursor;
static size_t arena_size;
static std::map<uintptr_t, allocation> &allocations = *new std::map<uintptr_t, allocation>; /* by base, the freed ones too */
static std::vector<uintptr_t> &freed_order = *new std::vector<uintptr_t>;
static size_t in_use;
static unsigned long long made;
static int depth;
static std::vector<allocation *> &opened = *new std::vector<allocation *>;
static std::map<uintptr_t, size_t> &pinned = *new std::map<uintptr_t, size_t>;          /* cudaHostAlloc */
static std::map<uintptr_t, size_t> &registered = *new std::map<uintptr_t, size_t>;      /* cudaHostRegister */

static bool arena_open()
{
    for (size_t size = (size_t)16 << 40; arena == nullptr && size >= (size_t)64 << 30; size /= 2) {
        void *p = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p != MAP_FAILED) {
            arena = cursor = (char *)p;
            arena_size = size;
        }
    }
    return arena != nullptr;
}

void *memory_new(size_t bytes)
{
    size_t padded = (bytes + GRANULE - 1) / GRANULE * GRANULE;
    if (bytes > device().memory_limit || in_use + padded > device().memory_limit || !arena_open())
        return nullptr;
    size_t length = (padded + PAGE - 1) / PAGE * PAGE;
    if (cursor + length + 2 * PAGE > arena + arena_size)
        fatal("all addresses of the simulated device are used up");
    allocation a{};
    a.base = cursor + PAGE;
    a.data = a.base + length - padded;
    a.length = length;
    a.bytes = bytes;
    a.number = ++made;
    a.device = current_device();
    cursor = a.base + length;
    if (mprotect(a.base, length, PROT_READ | PROT_WRITE) != 0)
        return nullptr;
    if (length >= (size_t)4 << 20)
        madvise(a.base, length, MADV_HUGEPAGE);
    memset(a.base, 0xFF, length);
    mprotect(a.base, length, PROT_NONE);
    in_use += padded;
    allocations.emplace((uintptr_t)a.base, a);
    return a.data;
}

static allocation *find(const void *address)
{
    auto after = allocations.upper_bound((uintptr_t)address);
    if (after == allocations.begin())
        return nullptr;
    allocation *a = &std::prev(after)->second;
    return (char *)address < a->base + a->length + PAGE ? a : nullptr; /* its guard page counts */
}

bool memory_delete(void *data)
{
    allocation *a = find(data);
    if (a == nullptr || a->freed || a->data != data)
        return false;
    a->freed = true;
    check_forget(a->data);
    in_use -= (a->bytes + GRANULE - 1) / GRANULE * GRANULE;
    mmap(a->base, a->length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    freed_order.push_back((uintptr_t)a->base);
    if (freed_order.size() > 2 * KEPT) {
        for (size_t i = 0; i < KEPT; i++)
            allocations.erase(freed_order[i]);
        freed_order.erase(freed_order.begin(), freed_order.begin() + KEPT);
    }
    return true;
}

bool memory_is_device(const void *p) { return arena && (char *)p >= arena && (char *)p < arena + arena_size; }

std::string memory_describe(const void *address)
{
    char text[256];
    allocation *a = find(address);
    if (a == nullptr)
        a = find((const char *)address + PAGE); /* the guard page before the first */
    if (!memory_is_device(address))
        snprintf(text, sizeof text, "%p, which is no device memory", address);
    else if (a == nullptr)
        snprintf(text, sizeof text, "%p, in no allocation", address);
    else if ((char *)address < a->data)
        snprintf(text, sizeof text, "%p, %zu bytes before allocation #%llu of %zu bytes%s", address,
                 (size_t)(a->data - (char *)address), a->number, a->bytes, a->freed ? " (freed)" : "");
    else if ((char *)address >= a->data + a->bytes)
        snprintf(text, sizeof text, "%p, %zu bytes behind the end of allocation #%llu of %zu bytes%s", address,
                 (size_t)((char *)address - a->data - a->bytes), a->number, a->bytes, a->freed ? " (freed)" : "");
    else
        snprintf(text, sizeof text, "%p, byte %zu of allocation #%llu of %zu bytes%s", address,
                 (size_t)((char *)address - a->data), a->number, a->bytes, a->freed ? ", which was freed" : "");
    std::string where = text;
    return a && device_count() > 1 ? where + " on GPU " + std::to_string(a->device) : where;
}

int memory_device(const void *address)
{
    allocation *a = find(address);
    return a ? a->device : -1;
}

bool memory_find(const void *address, void **data, size_t *bytes)
{
    allocation *a = find(address);
    if (a == nullptr || a->freed || (char *)address < a->data || (char *)address >= a->data + a->bytes)
        return false;
    *data = a->data;
    *bytes = a->bytes;
    return true;
}

bool memory_covers(const void *address, size_t bytes, std::string *why)
{
    allocation *a = find(address);
    if (a && !a->freed && (char *)address >= a->data && (char *)address + bytes <= a->data + a->bytes)
        return true;
    *why = std::to_string(bytes) + " bytes at " + memory_describe(address);
    return false;
}

void memory_info(size_t *free_bytes, size_t *total)
{
    size_t limit = device().memory_limit;
    *total = device().properties.totalGlobalMem;
    *free_bytes = in_use < limit ? limit - in_use : 0;
}

/* ---- red zones ---- */

/* The first byte that is not 0xFF. */
static char *touched(char *from, char *to)
{
    for (; from < to && ((uintptr_t)from & 7); from++)
        if (*(unsigned char *)from != 0xFF)
            return from;
    uint64_t all = ~(uint64_t)0;
    char *p = from;
    for (; p + 64 <= to; p += 64) {
        uint64_t sum = all;
        for (int i = 0; i < 8; i++)
            sum &= ((uint64_t *)p)[i];
        if (sum != all)
            break;
    }
    for (; p < to; p++)
        if (*(unsigned char *)p != 0xFF)
            return p;
    return nullptr;
}

bool memory_redzones_intact(std::string *why)
{
    bool intact = true;
    for (allocation *a : opened) {
        if (a->freed)
            continue;
        char *end = a->data + a->bytes, *last = a->base + a->length;
        char *at = touched(a->base, a->data);
        if (at == nullptr)
            at = touched(end, last);
        if (at == nullptr)
            continue;
        intact = false;
        *why = memory_describe(at);
        memset(a->base, 0xFF, (size_t)(a->data - a->base));
        memset(end, 0xFF, (size_t)(last - end));
    }
    return intact;
}

/* ---- opening ---- */

static void open_one(allocation *a)
{
    if (a->opened)
        return;
    if (mprotect(a->base, a->length, PROT_READ | PROT_WRITE) != 0)
        fatal("mprotect: too many allocations (vm.max_map_count)");
    a->opened = true;
    opened.push_back(a);
}

void memory_begin() { depth++; }

void memory_touch(const void *address)
{
    allocation *a = memory_is_device(address) ? find(address) : nullptr;
    if (a && !a->freed)
        open_one(a);
}

void memory_close()
{
    if (--depth > 0)
        return;
    for (allocation *a : opened) {
        a->opened = false;
        if (!a->freed)
            mprotect(a->base, a->length, PROT_NONE);
    }
    opened.clear();
}

/* ---- pinned host memory ---- */

void *pinned_new(size_t bytes)
{
    size_t length = (bytes + PAGE - 1) / PAGE * PAGE;
    void *p = mmap(nullptr, length + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return nullptr;
    mprotect((char *)p + length, PAGE, PROT_NONE);
    memset(p, 0xFF, length);
    madvise(p, length, MADV_DONTFORK); /* as the driver does */
    pinned[(uintptr_t)p] = bytes;
    return p;
}

bool pinned_delete(void *data)
{
    auto found = pinned.find((uintptr_t)data);
    if (found == pinned.end())
        return false;
    mprotect(data, (found->second + PAGE - 1) / PAGE * PAGE, PROT_NONE); /* stays, closed: use after free faults */
    madvise(data, (found->second + PAGE - 1) / PAGE * PAGE, MADV_DONTNEED);
    pinned.erase(found);
    return true;
}

static bool within(const std::map<uintptr_t, size_t> &table, const void *address)
{
    auto after = table.upper_bound((uintptr_t)address);
    if (after == table.begin())
        return false;
    --after;
    return (uintptr_t)address < after->first + after->second;
}

bool pinned_is(const void *address) { return within(pinned, address) || within(registered, address); }

bool pinned_register(void *data, size_t bytes)
{
    if (pinned_is(data))
        return false;
    registered[(uintptr_t)data] = bytes;
    return true;
}

bool pinned_unregister(void *data) { return registered.erase((uintptr_t)data) == 1; }

/* ---- faults ---- */

static struct sigaction before[64];

static const char *verb(const void *context)
{
#if defined(__x86_64__)
    const ucontext_t *u = (const ucontext_t *)context;
    return u->uc_mcontext.gregs[REG_ERR] & 2 ? "writes" : "reads";
#else
    (void)context;
    return "uses";
#endif
}

/* Opens the allocation that a kernel is the first of its batch to touch. A red zone stays closed. */
static bool open_on_demand(const void *address)
{
    allocation *a = memory_is_device(address) ? find(address) : nullptr;
    if (a == nullptr || a->freed || a->opened || (char *)address < a->data || (char *)address >= a->data + a->bytes ||
        a->device != current_device())
        return false;
    open_one(a);
    return true;
}

static void on_fault(int signal, siginfo_t *info, void *context)
{
    char text[600];
    const void *address = info->si_addr;
    const char *kernel = kernel_running();
    if (kernel != nullptr) {
        if (signal == SIGSEGV && open_on_demand(address))
            return;
        if (signal == SIGSEGV || signal == SIGBUS)
            snprintf(text, sizeof text, "kernel %s %s %s", kernel, verb(context), memory_describe(address).c_str());
        else
            snprintf(text, sizeof text, "kernel %s: %s", kernel,
                     signal == SIGFPE ? "an integer division by zero" : "a trap");
        violation_note(text);
        kernel_abort();
    }
    if ((signal == SIGSEGV || signal == SIGBUS) && memory_is_device(address)) {
        snprintf(text, sizeof text, "the host %s device memory outside of kernels and copies: %s", verb(context),
                 memory_describe(address).c_str());
        write_report(text);
        _exit(86);
    }
    sigaction(signal, &before[signal], nullptr); /* not ours: as if we were not there */
}

void faults_stack()
{
    static thread_local bool done;
    if (done)
        return;
    done = true;
    stack_t stack{};
    stack.ss_size = 256 << 10;
    stack.ss_sp = mmap(nullptr, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigaltstack(&stack, nullptr);
}

void faults_install()
{
    static bool done;
    if (done)
        return;
    done = true;
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL})
        sigaction(signal, &action, &before[signal]);
}

} // namespace cudasim
