/* What a .cu file sees of the simulated device when g++ compiles it: see README.md.
 *
 * The CUDA headers are the real ones; for g++ they declare types and runtime calls, and leave out what
 * only a GPU has. That part is here: thread indices, barriers, warp exchange, atomics, shared memory and
 * the launch. A launch is queued and runs when something waits for it. Threads of a block run one after
 * another until they meet a barrier or a warp exchange; there they change places. */
#ifndef CUDASIM_H
#define CUDASIM_H

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include <cuda_runtime.h>

namespace cudasim {

/* The thread that runs now. One thread of the host executes kernels at a time. */
struct now_t {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
};
extern now_t now;

/* Where a barrier or an exchange stands in the source. */
struct site {
    const char *file;
    int line;
    const char *what;
};
#define CUDASIM_SITE(what) (::cudasim::site{__FILE__, __LINE__, what})

void barrier(site at);
/* Gives `value` to the warp and takes that of lane `from`, once all lanes of `mask` are there. */
uint64_t exchange(site at, unsigned mask, uint64_t value, int from);
/* The values of all lanes of `mask`; the pointer is valid until the next exchange of this warp. */
const uint64_t *exchange_all(site at, unsigned mask, uint64_t value);
int lane();

/* A static shared array: the same memory for all threads of a block, new for each block. */
struct shared_slot {
    unsigned long long block;
    void *data;
};
void *shared_static(shared_slot *slot, size_t bytes, const char *name);
void *shared_dynamic();

/* One launch. `call` runs the kernel for the thread that `now` names. */
struct launch_base {
    virtual ~launch_base() {}
    virtual void call() = 0;
};
struct pointer_argument {
    const void *value;
    int index;
};
/* Takes the launch over. Errors of the configuration are left for cudaGetLastError. */
void launch_queue(const char *name, const void *function, dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                  const pointer_argument *pointers, int n_pointers, launch_base *launch);
void extent_fail(const char *name, long long value);

template <typename... P> struct launch_of : launch_base {
    void (*kernel)(P...);
    std::tuple<std::decay_t<P>...> arguments;
    template <typename... A>
    explicit launch_of(void (*k)(P...), A &&...a) : kernel(k), arguments(std::forward<A>(a)...) {}
    void call() override { std::apply(kernel, arguments); }
};

template <typename T> dim3 extent(const char *name, T value)
{
    if constexpr (std::is_integral_v<T>) {
        if (value < 0 || (unsigned long long)value > 0xffffffffull)
            extent_fail(name, (long long)value);
        return dim3((unsigned)value);
    } else {
        return dim3(value);
    }
}

template <typename T> void pointer_note(pointer_argument *list, int &n, int index, const T &value)
{
    if constexpr (std::is_pointer_v<T>)
        list[n++] = {(const void *)value, index};
}

template <typename... P, typename G, typename B, typename... A>
void launch(const char *name, void (*kernel)(P...), G grid, B block, size_t shared, cudaStream_t stream, A &&...a)
{
    static_assert(sizeof...(P) == sizeof...(A), "a kernel wants another number of arguments");
    static_assert((true && ... && (std::is_trivially_copyable_v<std::decay_t<P>> && !std::is_reference_v<P>)),
                  "kernel arguments are plain values, copied at the launch");
    static_assert((0 + ... + sizeof(P)) <= 4096, "at most 4096 bytes of kernel arguments");
    auto *made = new launch_of<P...>(kernel, std::forward<A>(a)...);
    pointer_argument pointers[sizeof...(P) + 1];
    int n = 0, index = 0;
    std::apply([&](const auto &...value) { (pointer_note(pointers, n, index++, value), ...); }, made->arguments);
    launch_queue(name, (const void *)kernel, extent(name, grid), extent(name, block), shared, stream, pointers, n, made);
}

template <typename T> uint64_t to_word(T value)
{
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a warp exchanges values of at most 8 bytes");
    uint64_t word = 0;
    memcpy(&word, (const void *)&value, sizeof value);
    return word;
}
template <typename T> T from_word(uint64_t word)
{
    T value;
    memcpy((void *)&value, &word, sizeof value);
    return value;
}
template <typename T> T shuffle(site at, unsigned mask, T value, int from, int width)
{
    int me = lane(), first = me & ~(width - 1);
    return from_word<T>(exchange(at, mask, to_word(value), first + (from & (width - 1))));
}
template <typename T> T shuffle_xor(site at, unsigned mask, T value, int bits, int width = 32)
{
    int me = lane(), from = me ^ bits;
    return from_word<T>(exchange(at, mask, to_word(value), (from & ~(width - 1)) > (me & ~(width - 1)) ? me : from));
}
template <typename T> T shuffle_down(site at, unsigned mask, T value, unsigned delta, int width = 32)
{
    int me = lane(), from = me + (int)delta;
    return from_word<T>(exchange(at, mask, to_word(value), (me & (width - 1)) + (int)delta >= width ? me : from));
}
template <typename T> T shuffle_up(site at, unsigned mask, T value, unsigned delta, int width = 32)
{
    int me = lane();
    return from_word<T>(exchange(at, mask, to_word(value), (me & (width - 1)) < (int)delta ? me : me - (int)delta));
}
template <typename T> T shuffle_from(site at, unsigned mask, T value, int from, int width = 32)
{
    return shuffle(at, mask, value, from, width);
}
unsigned ballot(site at, unsigned mask, bool value);

/* A thread gives up its turn only at barriers, so these are plain. */
template <typename T, typename F> __attribute__((no_sanitize("thread"))) T atomic_update(T *address, F f)
{
    T old = *address;
    *address = f(old);
    return old;
}
template <typename T> struct same { typedef T is; };

} // namespace cudasim

#define threadIdx (::cudasim::now.thread)
#define blockIdx (::cudasim::now.block)
#define blockDim (::cudasim::now.block_dim)
#define gridDim (::cudasim::now.grid_dim)
#define warpSize 32
#define __launch_bounds__(...)

#define __syncthreads() ::cudasim::barrier(CUDASIM_SITE("__syncthreads"))
#define __shfl_sync(...) ::cudasim::shuffle_from(CUDASIM_SITE("__shfl_sync"), __VA_ARGS__)
#define __shfl_xor_sync(...) ::cudasim::shuffle_xor(CUDASIM_SITE("__shfl_xor_sync"), __VA_ARGS__)
#define __shfl_down_sync(...) ::cudasim::shuffle_down(CUDASIM_SITE("__shfl_down_sync"), __VA_ARGS__)
#define __shfl_up_sync(...) ::cudasim::shuffle_up(CUDASIM_SITE("__shfl_up_sync"), __VA_ARGS__)
#define __ballot_sync(mask, value) ::cudasim::ballot(CUDASIM_SITE("__ballot_sync"), (mask), (value) != 0)
#define __any_sync(mask, value) (__ballot_sync(mask, value) != 0)
#define __all_sync(mask, value) (__ballot_sync(mask, (value) == 0) == 0)
#define CUDASIM_SYNCWARP_OF(a, mask, ...) (void)::cudasim::exchange(CUDASIM_SITE("__syncwarp"), (mask), 0, ::cudasim::lane())
#define __syncwarp(...) CUDASIM_SYNCWARP_OF(0, ##__VA_ARGS__, 0xffffffffu)

#define CUDASIM_NAME_(a, b) a##b
#define CUDASIM_NAME(a, b) CUDASIM_NAME_(a, b)
#define ASEN_SHARED(type, name, size)                                                                                  \
    static ::cudasim::shared_slot CUDASIM_NAME(name, _slot);                                                           \
    auto &name = *reinterpret_cast<typename ::cudasim::same<type size>::is *>(                                                \
        ::cudasim::shared_static(&CUDASIM_NAME(name, _slot), sizeof(type size), #name))
#define ASEN_SHARED_DYNAMIC(type, name) type *name = reinterpret_cast<type *>(::cudasim::shared_dynamic())

/* A stray `#kernel` of a template has its parentheses; names are compared without. */
#define ASEN_LAUNCH(kernel, grid, block, shared, ...)                                                                  \
    (::cudasim::launch(#kernel, kernel, (grid), (block), (shared), cuda.stream, ##__VA_ARGS__), cuda_launched(#kernel))

/* Atomics on integers. Those on floats are left out: their order, and so their sum, is not fixed. */
#define CUDASIM_ATOMIC(name, result)                                                                                   \
    template <typename T> static inline T name(T *address, typename ::cudasim::same<T>::is v)                       \
    {                                                                                                                  \
        static_assert(std::is_integral_v<T>, #name " on floats would not be deterministic");                          \
        return ::cudasim::atomic_update(address, [=](T old) -> T { return (T)(result); });                            \
    }
CUDASIM_ATOMIC(atomicAdd, old + v)
CUDASIM_ATOMIC(atomicSub, old - v)
CUDASIM_ATOMIC(atomicMax, old > v ? old : v)
CUDASIM_ATOMIC(atomicMin, old < v ? old : v)
CUDASIM_ATOMIC(atomicAnd, old & v)
CUDASIM_ATOMIC(atomicOr, old | v)
CUDASIM_ATOMIC(atomicXor, old ^ v)
CUDASIM_ATOMIC(atomicExch, v)
template <typename T>
static inline T atomicCAS(T *address, typename ::cudasim::same<T>::is compare, typename ::cudasim::same<T>::is v)
{
    return ::cudasim::atomic_update(address, [=](T old) -> T { return old == compare ? v : old; });
}

static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __nanosleep(unsigned) {}
#define __trap() __builtin_trap()

/* Loads and stores with cache hints. */
template <typename T> static inline T __ldg(const T *p) { return *p; }
template <typename T> static inline T __ldcs(const T *p) { return *p; }
template <typename T> static inline T __ldcg(const T *p) { return *p; }
template <typename T> static inline T __ldca(const T *p) { return *p; }
template <typename T> static inline void __stcs(T *p, typename ::cudasim::same<T>::is v) { *p = v; }
template <typename T> static inline void __stcg(T *p, typename ::cudasim::same<T>::is v) { *p = v; }

/* Arithmetic that the host lacks under these names. */
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __frsqrt_rn(float a) { return 1.0f / sqrtf(a); }
#define __expf(a) expf(a)
#define __logf(a) logf(a)
#define __powf(a, b) powf(a, b)
#define __sinf(a) sinf(a)
#define __cosf(a) cosf(a)
static inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
static inline float rsqrt(float a) { return 1.0f / sqrtf(a); }
static inline double rsqrt(double a) { return 1.0 / sqrt(a); }
static inline float __saturatef(float a) { return a > 1.0f ? 1.0f : a > 0.0f ? a : 0.0f; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __dsqrt_rn(double a) { return sqrt(a); }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline int __float_as_int(float a) { return ::cudasim::from_word<int>(::cudasim::to_word(a)); }
static inline unsigned __float_as_uint(float a) { return ::cudasim::from_word<unsigned>(::cudasim::to_word(a)); }
static inline float __int_as_float(int a) { return ::cudasim::from_word<float>(::cudasim::to_word(a)); }
static inline float __uint_as_float(unsigned a) { return ::cudasim::from_word<float>(::cudasim::to_word(a)); }
static inline long long __double_as_longlong(double a) { return ::cudasim::from_word<long long>(::cudasim::to_word(a)); }
static inline double __longlong_as_double(long long a) { return ::cudasim::from_word<double>(::cudasim::to_word(a)); }
static inline int __popc(unsigned a) { return __builtin_popcount(a); }
static inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
static inline int __clz(int a) { return a ? __builtin_clz((unsigned)a) : 32; }
static inline int __clzll(long long a) { return a ? __builtin_clzll((unsigned long long)a) : 64; }
static inline int __ffs(int a) { return __builtin_ffs(a); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline int __float2int_rn(float a) { return (int)lrintf(a); }
static inline int __float2int_rd(float a) { return (int)floorf(a); }
static inline float __int2float_rn(int a) { return (float)a; }

/* min and max of CUDA: any pair of arithmetic types, also mixed signs of ints as the header has them. */
#define CUDASIM_MINMAX(T)                                                                                              \
    static inline T min(T a, T b) { return a < b ? a : b; }                                                            \
    static inline T max(T a, T b) { return a > b ? a : b; }
CUDASIM_MINMAX(int)
CUDASIM_MINMAX(unsigned)
CUDASIM_MINMAX(long)
CUDASIM_MINMAX(unsigned long)
CUDASIM_MINMAX(long long)
CUDASIM_MINMAX(unsigned long long)
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline double min(float a, double b) { return fmin(a, b); }
static inline double min(double a, float b) { return fmin(a, b); }
static inline double max(float a, double b) { return fmax(a, b); }
static inline double max(double a, float b) { return fmax(a, b); }
static inline unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
static inline unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
static inline unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
static inline unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }
static inline long min(int a, long b) { return min((long)a, b); }
static inline long min(long a, int b) { return min(a, (long)b); }
static inline long max(int a, long b) { return max((long)a, b); }
static inline long max(long a, int b) { return max(a, (long)b); }

using std::isfinite;
using std::isinf;
using std::isnan;

#endif
