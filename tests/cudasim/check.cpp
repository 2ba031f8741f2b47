/* Every load and store of kernels, where build.py --check had the compiler instrument them (the calls are those of
 * ThreadSanitizer; the answer is ours). Two rules:
 *   an address is an allocation's, to its exact end, or shared memory, the thread's own stack, pinned memory, a constant;
 *   two threads use the same place, one of them writing, only with a barrier between them (within a warp, an exchange of
 *   all its lanes does as well), and threads of different blocks of a launch not at all. Atomics are left out.
 * Time is the number of barriers passed (`epoch`, over all blocks and launches), so an entry tells launch and block. */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include <dlfcn.h>
#include <link.h>
#include <malloc.h>
#include <sys/mman.h>

#include "check.h"
#include "sim.h"

namespace cudasim {

check_t check;

/* Set through a call, never inlined: a fiber may go on in another thread than it began in, and compilers keep the
 * addresses of thread-local variables. */
static thread_local bool inside __attribute__((tls_model("initial-exec")));
__attribute__((noinline)) void check_inside(bool now) { inside = now; }

enum : uint16_t { NOBODY = 0, WARP = 0x4000, WARPS = 0xFFFF, BLOCKS = 0xFFFE }; /* who: thread + 1, WARP + warp, several */

struct entry { /* of a byte, of which every second is used for accesses of 2 bytes and more */
    uint32_t write_epoch, read_epoch;
    uint16_t writer, write_sync, reader, read_sync;
};

/* ---- where entries lie: beside each allocation, made when it is first used ---- */

struct span {
    uintptr_t first, last;
    entry *entries;
};
static std::map<uintptr_t, span> &spans = *new std::map<uintptr_t, span>;
static span recent[4];
static unsigned recent_next;

static entry *entries_new(size_t bytes)
{
    void *p = mmap(nullptr, bytes * sizeof(entry), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : (entry *)p;
}

void check_forget(const void *data)
{
    auto found = spans.find((uintptr_t)data);
    if (found == spans.end())
        return;
    if (found->second.entries)
        munmap(found->second.entries, (found->second.last - found->second.first) * sizeof(entry));
    spans.erase(found);
    memset(recent, 0, sizeof recent);
}

static const span *span_of(uintptr_t address)
{
    for (const span &s : recent)
        if (address >= s.first && address < s.last)
            return &s;
    void *data;
    size_t bytes;
    if (!memory_find((const void *)address, &data, &bytes))
        return nullptr;
    auto made = spans.emplace((uintptr_t)data, span{(uintptr_t)data, (uintptr_t)data + bytes, nullptr});
    if (made.second)
        made.first->second.entries = entries_new(bytes);
    recent[recent_next = (recent_next + 1) % 4] = made.first->second;
    return &recent[recent_next];
}

/* ---- faults ---- */

static struct {
    char text[700];
    void *pc;
} fault;

[[noreturn]] static void fail(const char *what, const void *address, size_t size, bool write, void *pc, const char *more)
{
    snprintf(fault.text, sizeof fault.text, "kernel %s: %s of %zu bytes at %s%s%s", kernel_running(), write ? "a write" : "a read",
             size, what, more[0] ? ": " : "", more);
    (void)address;
    fault.pc = pc;
    kernel_abort_later();
}

/* The file and line of an instruction of this library; needs addr2line. */
static std::string place_of(void *pc)
{
    Dl_info info;
    char command[4200], line[600] = "";
    if (!dladdr(pc, &info))
        return "";
    snprintf(command, sizeof command, "addr2line -Cfpse '%s' 0x%zx 2>/dev/null", info.dli_fname,
             (size_t)((char *)pc - (char *)info.dli_fbase - 1));
    FILE *f = popen(command, "r");
    if (f == nullptr)
        return "";
    if (fgets(line, sizeof line, f) == nullptr)
        line[0] = '\0';
    pclose(f);
    line[strcspn(line, "\n")] = '\0';
    return line;
}

std::string check_fault() { return fault.text + std::string(" in ") + place_of(fault.pc); }

/* ---- the two rules ---- */

static const char *who_text(uint16_t who, char *text, size_t size)
{
    if (who == WARPS || who == BLOCKS)
        snprintf(text, size, "threads of several %s", who == WARPS ? "warps" : "blocks");
    else if (who >= WARP)
        snprintf(text, size, "lanes of warp %d", who - WARP);
    else
        snprintf(text, size, "thread %d", who - 1);
    return text;
}

static int warp_of(uint16_t who) { return who >= WARP ? who - WARP : (who - 1) / 32; }

/* Whether what `who` did at (epoch, sync) is not ordered before what this thread does now. What was before `since` is
 * over: the launch's begin, and for shared memory the block's. */
static bool unordered(uint32_t epoch, uint16_t who, uint16_t sync, uint32_t since)
{
    if (who == NOBODY || epoch < since)
        return false;
    if (who == BLOCKS || epoch < check.block_epoch)
        return true; /* another block of this launch */
    if (epoch != check.epoch || who == check.thread + 1)
        return false;
    return who == WARPS || warp_of(who) != check.thread / 32 || sync == check.sync;
}

static void touch(entry &e, const void *address, size_t size, bool write, void *pc, bool shared)
{
    char who[64], more[200];
    uint32_t since = shared ? check.block_epoch : check.launch_epoch;
    bool with_write = unordered(e.write_epoch, e.writer, e.write_sync, since);
    bool with_read = write && unordered(e.read_epoch, e.reader, e.read_sync, since);
    if (with_write || with_read) {
        uint32_t epoch = with_write ? e.write_epoch : e.read_epoch;
        snprintf(more, sizeof more, "a race with a %s by %s of %s block, no barrier between", with_write ? "write" : "read",
                 who_text(with_write ? e.writer : e.reader, who, sizeof who), epoch < check.block_epoch ? "another" : "this");
        fail(shared ? "shared memory" : memory_describe(address).c_str(), address, size, write, pc, more);
    }
    uint16_t me = (uint16_t)(check.thread + 1);
    if (write) {
        e.write_epoch = check.epoch;
        e.writer = me;
        e.write_sync = check.sync;
        return;
    }
    if (e.reader == NOBODY || e.read_epoch < since) {
        e.reader = me;
    } else if (e.reader == BLOCKS || e.read_epoch < check.block_epoch) {
        e.reader = BLOCKS;
    } else if (e.read_epoch == check.epoch && e.reader != me && e.reader != WARPS) {
        e.reader = warp_of(e.reader) == check.thread / 32 ? (uint16_t)(WARP + check.thread / 32) : (uint16_t)WARPS;
    } else if (e.read_epoch != check.epoch) {
        e.reader = me;
    }
    e.read_epoch = check.epoch;
    e.read_sync = check.sync;
}

static bool in_module(uintptr_t address)
{
    static uintptr_t first, last;
    if (last == 0)
        dl_iterate_phdr(
            [](dl_phdr_info *info, size_t, void *) -> int {
                uintptr_t a = UINTPTR_MAX, b = 0;
                for (int i = 0; i < info->dlpi_phnum; i++)
                    if (info->dlpi_phdr[i].p_type == PT_LOAD) {
                        uintptr_t at = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
                        a = at < a ? at : a;
                        b = at + info->dlpi_phdr[i].p_memsz > b ? at + info->dlpi_phdr[i].p_memsz : b;
                    }
                if ((uintptr_t)&check < a || (uintptr_t)&check >= b)
                    return 0;
                first = a;
                last = b;
                return 1;
            },
            nullptr);
    return address >= first && address < last;
}

static void access(const void *p, size_t size, bool write, void *pc)
{
    uintptr_t a = (uintptr_t)p;
    if (!inside || (a >= check.stack_first && a < check.stack_last) || size == 0)
        return;
    size_t step = size >= 2 ? 2 : 1;
    if (memory_is_device(p)) {
        const span *s = span_of(a);
        if (s == nullptr || a + size > s->last)
            fail(memory_describe(p).c_str(), p, size, write, pc, "");
        for (size_t i = 0; s->entries && i < size; i += step)
            touch(s->entries[a - s->first + i], p, size, write, pc, false);
        return;
    }
    if (a >= check.shared_first && a < check.shared_last) {
        static entry *entries = entries_new(check.shared_last - check.shared_first);
        if (!shared_covers(p, size))
            fail("shared memory", p, size, write, pc, "outside of every shared array");
        for (size_t i = 0; entries && i < size; i += step)
            touch(entries[a - check.shared_first + i], p, size, write, pc, true);
        return;
    }
    if (in_module(a) || pinned_is(p))
        return;
    uintptr_t launch = (uintptr_t)check.launch;
    if (launch && a >= launch && a < launch + malloc_usable_size(check.launch))
        return;
    fail(memory_describe(p).c_str(), p, size, write, pc, "memory of the host, or another thread's stack");
}

} // namespace cudasim

#define HOOK extern "C" __attribute__((visibility("hidden"))) void
#define HOOKS(size)                                                                                                    \
    HOOK __tsan_read##size(void *p) { cudasim::access(p, size, false, __builtin_return_address(0)); }                  \
    HOOK __tsan_write##size(void *p) { cudasim::access(p, size, true, __builtin_return_address(0)); }                  \
    HOOK __tsan_unaligned_read##size(void *p) { cudasim::access(p, size, false, __builtin_return_address(0)); }        \
    HOOK __tsan_unaligned_write##size(void *p) { cudasim::access(p, size, true, __builtin_return_address(0)); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
HOOK __tsan_read_range(void *p, size_t size) { cudasim::access(p, size, false, __builtin_return_address(0)); }
HOOK __tsan_write_range(void *p, size_t size) { cudasim::access(p, size, true, __builtin_return_address(0)); }
HOOK __tsan_func_entry(void *) {}
HOOK __tsan_func_exit() {}
HOOK __tsan_init() {}
HOOK __tsan_vptr_update(void *, void *) {}
HOOK __tsan_vptr_read(void *) {}
