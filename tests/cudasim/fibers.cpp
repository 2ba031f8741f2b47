/* Kernels: block by block, in shuffled order; the threads of a block one after another, in shuffled order.
 *
 * A thread runs on a fiber (a stack of its own). As long as no thread waits, one fiber runs them all in
 * a loop. A thread that comes to a barrier or a warp exchange leaves its fiber standing and the next
 * ready thread goes on; when the last one arrives all are ready again. If none is ready and some have
 * not finished, the barrier is divergent. Faults leave by siglongjmp; the fibers are then dropped. */
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>

#include "check.h"
#include "cudasim.h"
#include "launch.h"
#include "sim.h"

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace cudasim {

now_t now;

enum { MAX_THREADS = 1024, WARPS = MAX_THREADS / 32, ORDERS = 6, RED = 64 };
enum : size_t { STACK = 64 << 10, SHARED_BYTES = 256 << 10, PAGE = 4096 };

/* ---- switching ---- */

#if defined(__x86_64__) && !defined(CUDASIM_UCONTEXT)
/* Saves the callee-saved registers and the stack pointer at *from; goes on at `to`. */
extern "C" void cudasim_switch(void **from, void *to);
__asm__(".text\n"
        ".type cudasim_switch,@function\n"
        "cudasim_switch:\n"
        "    pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
        "    ret\n"
        ".size cudasim_switch,.-cudasim_switch\n");
struct context {
    void *sp;
};
static inline void switch_to(context *from, context *to) { cudasim_switch(&from->sp, to->sp); }
static void context_make(context *c, char *top, void (*entry)())
{
    void **sp = (void **)top;
    *--sp = nullptr; /* the entry never returns; keeps the stack as a call would find it */
    *--sp = (void *)entry;
    for (int i = 0; i < 6; i++)
        *--sp = nullptr;
    c->sp = sp;
}
#else
struct context {
    ucontext_t u;
};
static inline void switch_to(context *from, context *to) { swapcontext(&from->u, &to->u); }
static void context_make(context *c, char *top, void (*entry)())
{
    getcontext(&c->u);
    c->u.uc_stack.ss_size = STACK - 16 * PAGE / 4;
    c->u.uc_stack.ss_sp = top - c->u.uc_stack.ss_size;
    c->u.uc_link = nullptr;
    makecontext(&c->u, entry, 0);
}
#endif

struct fiber {
    context at;
    char *top;
};

/* ---- the state of a launch and of its block ---- */

struct warp {
    unsigned arrived, mask, parity;
    site at;
    uint64_t value[2][32];
    uint16_t meetings;
};

enum status : unsigned char { UNSTARTED, RUNNING, READY, AT_BARRIER, AT_WARP, FINISHED };

static std::vector<fiber *> &fibers = *new std::vector<fiber *>, &idle = *new std::vector<fiber *>;
static context home;
static sigjmp_buf escape;
static thread_local const char *running; /* the kernel, in the thread that executes it */

static struct {
    launch_base *launch;
    unsigned n, started, finished;        /* threads of the block */
    const uint16_t *order;
    uint16_t me;                          /* the thread that runs */
    fiber *on;                            /* the fiber that runs */
    fiber *fiber_of[MAX_THREADS];
    status state[MAX_THREADS];
    uint16_t ready[MAX_THREADS];
    unsigned ready_first, ready_count;
    unsigned at_barrier;
    site barrier_at;
    warp warps[WARPS];
    uint3 index[MAX_THREADS];
    unsigned long long number;            /* of the block, over all launches: names its shared memory */
    char *shared_next;
    size_t dynamic_bytes, static_bytes, static_limit;
    std::vector<std::pair<char *, const char *>> *reds;
} block;

const char *kernel_running() { return running; }
void kernel_abort()
{
    check_inside(false);
    siglongjmp(escape, 1);
}
void kernel_abort_later()
{
    check_inside(false);
    siglongjmp(escape, 2);
}

static inline void enter_fiber(fiber *f)
{
    block.on = f;
    check.stack_last = (uintptr_t)f->top;
    check.stack_first = check.stack_last - STACK;
}

[[noreturn]] static void kernel_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void kernel_fail(const char *format, ...)
{
    char text[800];
    int n = snprintf(text, sizeof text, "kernel %s, block (%u, %u, %u): ", running, now.block.x, now.block.y, now.block.z);
    va_list list;
    va_start(list, format);
    vsnprintf(text + n, sizeof text - (size_t)n, format, list);
    va_end(list);
    violation_note(text);
    kernel_abort();
}

static uint64_t seed, random_state;
static uint64_t random_next()
{
    uint64_t z = random_state += 0x9E3779B97F4A7C15ull; /* splitmix64 */
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

/* ---- threads ---- */

static void fiber_main();

static fiber *fiber_get()
{
    if (!idle.empty()) {
        fiber *f = idle.back();
        idle.pop_back();
        return f;
    }
    fiber *f = new fiber;
    char *p = (char *)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        fatal("no memory for the stacks of a block");
    mprotect(p, PAGE, PROT_NONE);
    /* tops at different distances: else all stacks would share the same few lines of the cache */
    f->top = p + STACK - fibers.size() % 64 * 192 / 16 * 16;
    context_make(&f->at, f->top, fiber_main);
    fibers.push_back(f);
    return f;
}

static inline void become(uint16_t thread)
{
    block.me = thread;
    block.state[thread] = RUNNING;
    now.thread = block.index[thread];
    check.thread = thread;
    check.sync = block.warps[thread / 32].meetings;
}

static inline uint16_t pop_ready()
{
    uint16_t t = block.ready[block.ready_first];
    block.ready_first = (block.ready_first + 1) % MAX_THREADS;
    block.ready_count--;
    return t;
}
static inline void push_ready(uint16_t t)
{
    block.state[t] = READY;
    block.ready[(block.ready_first + block.ready_count++) % MAX_THREADS] = t;
}

/* What keeps the threads that are left: a message. */
[[noreturn]] static void deadlock()
{
    unsigned exited = 0, waiting = 0, in_warp = 0, w = 0;
    for (unsigned t = 0; t < block.n; t++) {
        exited += block.state[t] == FINISHED;
        waiting += block.state[t] == AT_BARRIER;
        if (block.state[t] == AT_WARP) {
            in_warp++;
            w = t / 32;
        }
    }
    if (in_warp) {
        warp &p = block.warps[w];
        kernel_fail("%s at %s:%d is divergent: warp %u waits for lanes 0x%08x, and 0x%08x came", p.at.what, p.at.file,
                    p.at.line, w, p.mask, p.arrived);
    }
    kernel_fail("__syncthreads at %s:%d is divergent: %u of %u threads came, %u have ended", block.barrier_at.file,
                block.barrier_at.line, waiting, block.n, exited);
}

/* Leaves this fiber for whoever can go on. The caller noted what it waits for, or put the fiber back. */
static inline void switch_from(fiber *self)
{
    if (block.ready_count) {
        uint16_t t = pop_ready();
        fiber *f = block.fiber_of[t];
        become(t);
        enter_fiber(f);
        if (f != self)
            switch_to(&self->at, &f->at);
    } else if (block.started < block.n) {
        fiber *f = fiber_get();
        enter_fiber(f);
        switch_to(&self->at, &f->at);
    } else {
        deadlock();
    }
}

static void fiber_main()
{
    for (;;) {
        fiber *self = block.on;
        while (block.started < block.n && block.ready_count == 0) {
            uint16_t t = block.order[block.started++];
            become(t);
            check_inside(true);
            block.launch->call();
            check_inside(false);
            self = block.on;
            block.state[block.me] = FINISHED;
            block.finished++;
        }
        idle.push_back(self);
        if (block.finished == block.n)
            switch_to(&self->at, &home);
        else
            switch_from(self);
    }
}

/* The running thread waits: others go on until it is made ready. */
static inline void wait(status why)
{
    block.state[block.me] = why;
    block.fiber_of[block.me] = block.on;
    switch_from(block.on);
    check_inside(true);
}

static inline bool same_place(const site &a, const site &b) { return a.line == b.line && strcmp(a.file, b.file) == 0; }

void barrier(site at)
{
    if (block.at_barrier == 0)
        block.barrier_at = at;
    else if (!same_place(at, block.barrier_at))
        kernel_fail("threads wait at different barriers: __syncthreads at %s:%d and at %s:%d", block.barrier_at.file,
                    block.barrier_at.line, at.file, at.line);
    if (++block.at_barrier < block.n) {
        wait(AT_BARRIER);
        return;
    }
    block.at_barrier = 0;
    check.epoch++;
    for (unsigned i = 0; i < block.n; i++)
        if (block.order[i] != block.me)
            push_ready(block.order[i]);
}

int lane() { return block.me & 31; }

/* All lanes of the mask meet; afterwards everybody may read the values of this round, until the next but one. */
static uint64_t *meet(site at, unsigned mask, uint64_t value)
{
    unsigned w = block.me / 32, bit = 1u << (block.me & 31), last = block.n - w * 32;
    unsigned exist = last >= 32 ? 0xffffffffu : (1u << last) - 1;
    warp &p = block.warps[w];
    if (p.arrived == 0) {
        p.mask = mask;
        p.at = at;
    }
    if (mask & ~exist)
        kernel_fail("%s at %s:%d: the mask 0x%08x names lanes that the warp lacks (it has 0x%08x)", at.what, at.file,
                    at.line, mask, exist);
    if (!(mask & bit) || p.mask != mask || !same_place(p.at, at))
        kernel_fail("%s at %s:%d is divergent: other lanes of warp %u are at %s:%d with mask 0x%08x, lane %d comes with 0x%08x",
                    at.what, at.file, at.line, w, p.at.file, p.at.line, p.mask, block.me & 31, mask);
    uint64_t *values = p.value[p.parity];
    values[block.me & 31] = value;
    p.arrived |= bit;
    if (p.arrived != mask) {
        wait(AT_WARP);
        return values;
    }
    p.arrived = 0;
    p.parity ^= 1;
    if (mask == exist)
        check.sync = ++p.meetings;
    for (unsigned l = 0; l < 32; l++)
        if ((mask >> l & 1) && w * 32 + l != block.me)
            push_ready((uint16_t)(w * 32 + l));
    return values;
}

uint64_t exchange(site at, unsigned mask, uint64_t value, int from)
{
    uint64_t *values = meet(at, mask, value);
    if (from < 0 || from > 31 || !(mask >> from & 1))
        kernel_fail("%s at %s:%d reads lane %d, which is not in the mask 0x%08x", at.what, at.file, at.line, from, mask);
    return values[from];
}

unsigned ballot(site at, unsigned mask, bool value)
{
    uint64_t *values = meet(at, mask, value);
    unsigned bits = 0;
    for (int l = 0; l < 32; l++)
        if ((mask >> l & 1) && values[l])
            bits |= 1u << l;
    return bits;
}

/* ---- shared memory: static arrays with red zones, from the start; the dynamic part ends at a closed page ---- */

static char *shared_base()
{
    static char *base;
    if (base == nullptr) {
        base = (char *)mmap(nullptr, 2 * SHARED_BYTES + 3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base == MAP_FAILED)
            fatal("no memory for shared memory");
        mprotect(base + PAGE, SHARED_BYTES, PROT_READ | PROT_WRITE);
        mprotect(base + 2 * PAGE + SHARED_BYTES, SHARED_BYTES, PROT_READ | PROT_WRITE);
    }
    return base;
}
static char *dynamic_at()
{
    return shared_base() + 2 * PAGE + 2 * SHARED_BYTES - (block.dynamic_bytes + 15) / 16 * 16;
}

void *shared_static(shared_slot *slot, size_t bytes, const char *name)
{
    if (slot->block == block.number)
        return slot->data;
    size_t padded = (bytes + 15) / 16 * 16;
    block.static_bytes += padded;
    if (block.static_bytes + block.dynamic_bytes > block.static_limit)
        kernel_fail("%zu bytes of shared memory (%zu of them dynamic), and a block may have %zu",
                    block.static_bytes + block.dynamic_bytes, block.dynamic_bytes, block.static_limit);
    slot->block = block.number;
    slot->data = block.shared_next;
    memset(slot->data, 0xFF, padded + RED);
    block.reds->push_back({block.shared_next + bytes, name});
    block.shared_next += padded + RED;
    return slot->data;
}

/* Whether a place lies in one of the arrays that this block has. */
bool shared_covers(const void *address, size_t size)
{
    const char *p = (const char *)address, *from = shared_base() + PAGE;
    if (block.dynamic_bytes && p >= dynamic_at() && p + size <= dynamic_at() + block.dynamic_bytes)
        return true;
    for (auto &red : *block.reds) { /* (end, name), in the order in which they lie */
        if (p >= from && p + size <= red.first)
            return true;
        from = shared_base() + PAGE + ((red.first - shared_base() - (ptrdiff_t)PAGE) + 15) / 16 * 16 + RED;
    }
    return false;
}

void *shared_dynamic()
{
    if (block.dynamic_bytes == 0)
        kernel_fail("dynamic shared memory is used, and the launch gave none");
    return dynamic_at();
}

static void shared_check()
{
    for (auto &red : *block.reds)
        for (int i = 0; i < RED; i++)
            if ((unsigned char)red.first[i] != 0xFF)
                kernel_fail("writes behind the end of the shared array %s", red.second);
    for (char *p = shared_base() + 2 * PAGE + SHARED_BYTES, *d = dynamic_at(); block.dynamic_bytes && p < d; p++)
        if (p >= d - RED && (unsigned char)*p != 0xFF)
            kernel_fail("writes before the dynamic shared memory");
}

/* ---- blocks ---- */

static uint16_t orders[ORDERS][MAX_THREADS];

/* Warps in one random order, lanes in another: first to last, last to first, and some more. */
static void orders_make(unsigned n)
{
    unsigned warps = (n + 31) / 32;
    for (int k = 0; k < ORDERS; k++) {
        unsigned wa = 1, wb = 0, la = 1, lb = 0, at = 0;
        if (k == 1)
            wa = warps - 1 ? warps - 1 : 1, wb = warps - 1, la = 31, lb = 31;
        if (k > 1) {
            wb = (unsigned)(random_next() % warps), lb = (unsigned)(random_next() % 32), la = (unsigned)random_next() | 1;
            do
                wa = (unsigned)(random_next() % warps) + (warps == 1);
            while (std::gcd(wa, warps) != 1);
        }
        for (unsigned w = 0; w < warps; w++)
            for (unsigned l = 0; l < 32; l++) {
                unsigned t = (wa * w + wb) % warps * 32 + ((la * l + lb) & 31);
                if (t < n)
                    orders[k][at++] = (uint16_t)t;
            }
    }
}

static void block_run()
{
    block.number++;
    check.block_epoch = ++check.epoch;
    block.started = block.finished = block.ready_count = block.ready_first = block.at_barrier = 0;
    block.order = orders[random_next() % ORDERS];
    block.static_bytes = 0;
    block.shared_next = shared_base() + PAGE;
    block.reds->clear();
    for (unsigned w = 0; w < (block.n + 31) / 32; w++)
        block.warps[w].arrived = 0;
    if (block.dynamic_bytes)
        memset(dynamic_at() - RED, 0xFF, block.dynamic_bytes + RED);
    fiber *f = fiber_get();
    enter_fiber(f);
    switch_to(&home, &f->at);
    if (!block.reds->empty() || block.dynamic_bytes)
        shared_check();
}

static void fibers_drop()
{
    idle.clear();
    for (fiber *f : fibers) {
        context_make(&f->at, f->top, fiber_main);
        idle.push_back(f);
    }
}

static void blocks_run(const launch_plan &p)
{
    uint64_t count = (uint64_t)p.grid.x * p.grid.y * p.grid.z, step = 1, at = 0;
    for (const void *pointer : p.pointers)
        memory_touch(pointer); /* a fault each is saved */
    block.launch = p.launch.get();
    check.launch = block.launch;
    check.launch_epoch = check.epoch + 1;
    check.shared_first = (uintptr_t)shared_base();
    check.shared_last = check.shared_first + 2 * SHARED_BYTES + 3 * PAGE;
    block.n = p.threads.x * p.threads.y * p.threads.z;
    block.dynamic_bytes = p.shared;
    block.static_limit = p.shared_limit;
    now.block_dim = p.threads;
    now.grid_dim = p.grid;
    for (unsigned t = 0; t < block.n; t++)
        block.index[t] = {t % p.threads.x, t / p.threads.x % p.threads.y, t / (p.threads.x * p.threads.y)};
    random_state = seed * 0x9E3779B97F4A7C15ull + block.number;
    static unsigned orders_for;
    static uint64_t orders_seed;
    if (orders_for != block.n || orders_seed != seed)
        orders_make(orders_for = block.n);
    orders_seed = seed;
    if (count > 1) {
        at = random_next() % count;
        do
            step = random_next() % count;
        while (std::gcd(step, count) != 1);
    }
    for (uint64_t i = 0; i < count; i++, at = (at + step) % count) {
        now.block = {(unsigned)(at % p.grid.x), (unsigned)(at / p.grid.x % p.grid.y), (unsigned)(at / p.grid.x / p.grid.y)};
        block_run();
    }
}

/* A fault comes back here. */
static void guarded(const char *name, void (*f)(const void *), const void *argument)
{
    std::string why;
    faults_install();
    faults_stack();
    memory_begin();
    int left = sigsetjmp(escape, 1);
    if (left == 0) {
        running = name;
        f(argument);
    } else {
        running = nullptr;
        fibers_drop();
        set_sticky(cudaErrorIllegalAddress);
    }
    running = nullptr;
    if (left == 2)
        violation_note(check_fault().c_str());
    if (!memory_redzones_intact(&why)) {
        violation("kernel %s wrote at %s", name, why.c_str());
        set_sticky(cudaErrorIllegalAddress);
    }
    memory_close();
}

void run_as_kernel(const char *name, const work &w)
{
    guarded(name, [](const void *p) { (*(const work *)p)(); }, &w);
}

void launch_run(const launch_plan &p)
{
    guarded(p.name.c_str(), [](const void *plan) { blocks_run(*(const launch_plan *)plan); }, &p);
}

__attribute__((constructor)) static void start()
{
    const char *text = getenv("CUDASIM_SEED");
    seed = text ? strtoull(text, nullptr, 10) : 1;
    queue_seed(seed);
    block.reds = new std::vector<std::pair<char *, const char *>>;
    faults_install();
}

} // namespace cudasim

CUDASIM_EXPORT void cudasim_seed(unsigned long long seed)
{
    cudasim::lock_t lock;
    cudasim::seed = seed;
    cudasim::queue_seed(seed);
}
