/* Streams and events: when queued work runs. Calls of cudart that concern streams, events and copies are here.
 * The environment variable CUDASIM_QUEUE, read once, names the schedule:
 *   late    (default) nothing runs when it is queued: a stream's work runs when something waits for it, in order, and
 *           before it what it waits for by events. So what nobody ordered runs too late to be seen.
 *   eager   everything runs when it is queued: what the host writes after queueing its reader comes too late.
 *   drawn   each time something is queued, a drawn stream runs up to a drawn piece of work (CUDASIM_SEED draws). */
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <vector>

#include "sim.h"

namespace cudasim {

struct stream {
    unsigned long long number = 0, queued = 0, done = 0;
    int device = 0;
    bool blocking = false; /* orders itself with the default stream */
    struct task {
        const char *name;
        work run;
        std::vector<std::pair<stream *, unsigned long long>> after;
    };
    std::deque<task> tasks;
};

struct event {
    unsigned long long number = 0, position = 0;
    int device = 0;
    stream *on = nullptr; /* NULL: never recorded */
    bool timing = true;
    std::shared_ptr<double> time;
};

/* Streams and events are never deleted, so that a handle is never given twice. */
static std::map<const void *, stream *> &streams = *new std::map<const void *, stream *>;
static std::map<const void *, event *> &events = *new std::map<const void *, event *>;
static cudaError_t last_error, sticky_error;

cudaError_t set_error(cudaError_t error) { return error == cudaSuccess ? error : (last_error = error); }
cudaError_t sticky() { return sticky_error; }
void set_sticky(cudaError_t error)
{
    sticky_error = error;
    if (error == cudaSuccess)
        last_error = cudaSuccess;
}

static stream *default_stream()
{
    static stream *s;
    if (s == nullptr) {
        s = new stream;
        s->blocking = true;
        streams[nullptr] = s;
    }
    return s;
}

static stream *stream_of(cudaStream_t handle)
{
    if (handle == nullptr || handle == cudaStreamLegacy)
        return default_stream();
    auto found = streams.find(handle);
    if (found == streams.end()) {
        violation("a stream is used that does not exist (any more): %p", (void *)handle);
        return nullptr;
    }
    return chosen_is("a stream is used", "it", found->second->device) ? found->second : nullptr;
}

bool queue_stream_ok(cudaStream_t handle) { return stream_of(handle) != nullptr; }

/* ---- what runs when ---- */

static void run_until(stream *s, unsigned long long position)
{
    while (s->done < position) {
        stream::task t = std::move(s->tasks.front());
        s->tasks.pop_front();
        if (sticky_error == cudaSuccess) {
            for (auto &a : t.after)
                run_until(a.first, a.second);
            if (sticky_error == cudaSuccess && t.run)
                t.run();
        }
        s->done++;
    }
}

static cudaError_t run(stream *s, unsigned long long position)
{
    if (s->done < position) {
        faults_stack();
        run_until(s, position);
        memory_close();
    }
    return sticky_error;
}

/* `run` opens nothing itself: each task opens what it needs, and all is closed at the end of the batch. */
static cudaError_t run_batch(stream *s, unsigned long long position)
{
    if (s->done >= position)
        return sticky_error;
    memory_begin();
    return run(s, position);
}

void queue_run_all()
{
    std::vector<stream *> all;
    for (auto &s : streams)
        all.push_back(s.second);
    for (stream *s : all)
        run_batch(s, s->queued);
}

enum schedule { LATE, EAGER, DRAWN };

static schedule schedule_of(const char *text)
{
    if (text == nullptr || strcmp(text, "late") == 0)
        return LATE;
    if (strcmp(text, "eager") == 0)
        return EAGER;
    if (strcmp(text, "drawn") == 0)
        return DRAWN;
    fatal("CUDASIM_QUEUE is '%s', and may be late, eager or drawn", text);
}

static uint64_t drawn_state;

void queue_seed(uint64_t seed) { drawn_state = seed; }

static uint64_t drawn_next()
{
    uint64_t z = drawn_state += 0x9E3779B97F4A7C15ull; /* splitmix64 */
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

/* After something was queued: what a device that is quicker than its host may do meanwhile. */
static void queue_turn()
{
    static schedule chosen = schedule_of(getenv("CUDASIM_QUEUE"));
    if (chosen == EAGER)
        queue_run_all();
    if (chosen != DRAWN || streams.empty())
        return;
    std::vector<stream *> waiting; /* in the order of their numbers: addresses differ from run to run */
    for (auto &s : streams)
        if (s.second->done < s.second->queued)
            waiting.push_back(s.second);
    if (waiting.empty() || drawn_next() % 2)
        return;
    std::sort(waiting.begin(), waiting.end(), [](stream *a, stream *b) { return a->number < b->number; });
    stream *s = waiting[drawn_next() % waiting.size()];
    run_batch(s, s->done + 1 + drawn_next() % (s->queued - s->done));
}

/* Queues a piece of work that runs when the positions of `after` are reached. */
static cudaError_t push(cudaStream_t handle, const char *name, work w, std::vector<std::pair<stream *, unsigned long long>> after)
{
    stream *s = stream_of(handle);
    if (s == nullptr)
        return set_error(cudaErrorInvalidResourceHandle);
    stream::task t{name, on_this_device(std::move(w)), std::move(after)};
    if (s->blocking)
        for (auto &other : streams)
            if (other.second->blocking && other.second != s && (s == default_stream() || other.second == default_stream()))
                t.after.push_back({other.second, other.second->queued});
    s->tasks.push_back(std::move(t));
    s->queued++;
    queue_turn();
    return cudaSuccess;
}

cudaError_t queue_push(cudaStream_t handle, const char *name, work w) { return push(handle, name, std::move(w), {}); }

/* ---- copies ---- */

static double seconds()
{
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/* The device side of a copy must lie in one allocation: now, and when it runs. */
static bool side_ok(const char *call, const char *verb, const void *p, size_t bytes)
{
    std::string why;
    if (memory_covers(p, bytes, &why))
        return chosen_is(call, "the memory", memory_device(p));
    violation("%s %s %s", call, verb, why.c_str());
    return false;
}

static void copy_now(const char *call, void *target, const void *source, size_t bytes)
{
    for (const void *p : {(const void *)target, source})
        if (memory_is_device(p)) {
            if (!side_ok(call, p == target ? "writes" : "reads", p, bytes)) {
                set_sticky(cudaErrorIllegalAddress);
                return;
            }
            memory_touch(p);
        }
    memmove(target, source, bytes);
}

static cudaError_t copy_queue(const char *call, void *target, const void *source, size_t bytes, cudaMemcpyKind kind,
                              cudaStream_t handle)
{
    bool to_device = memory_is_device(target), from_device = memory_is_device(source);
    if (bytes == 0)
        return cudaSuccess;
    if (kind == cudaMemcpyDefault)
        kind = to_device ? from_device ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice
                         : from_device ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost;
    bool want_to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool want_from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (want_to != to_device || want_from != from_device) {
        violation("%s: the kind of copy says %s to %s, the addresses %s to %s", call, want_from ? "device" : "host",
                  want_to ? "device" : "host", from_device ? "device" : "host", to_device ? "device" : "host");
        return set_error(cudaErrorInvalidValue);
    }
    if ((to_device && !side_ok(call, "writes", target, bytes)) || (from_device && !side_ok(call, "reads", source, bytes)))
        return set_error(cudaErrorInvalidValue);
    if (to_device && from_device && (const char *)source < (const char *)target + bytes &&
        (const char *)target < (const char *)source + bytes) {
        violation("%s: source and target overlap", call);
        return set_error(cudaErrorInvalidValue);
    }
    if (kind == cudaMemcpyHostToDevice && !pinned_is(source)) {
        /* pageable: staged at once, as hardware does */
        auto staged = std::make_shared<std::vector<char>>((const char *)source, (const char *)source + bytes);
        return queue_push(handle, call, [=] { copy_now(call, target, staged->data(), bytes); });
    }
    if (kind == cudaMemcpyDeviceToHost)
        memset(target, 0xFF, bytes); /* whoever reads it before waiting sees NaN */
    return queue_push(handle, call, [=] { copy_now(call, target, source, bytes); });
}

static cudaError_t fill_queue(const char *call, void *target, int value, size_t bytes, cudaStream_t handle)
{
    if (bytes == 0)
        return cudaSuccess;
    if (!side_ok(call, "writes", target, bytes))
        return set_error(cudaErrorInvalidValue);
    return queue_push(handle, call, [=] {
        memory_touch(target);
        memset(target, value, bytes);
    });
}

static cudaError_t stream_new(cudaStream_t *out, unsigned flags)
{
    stream *s = new stream;
    default_stream();
    s->number = serial();
    s->device = current_device();
    s->blocking = !(flags & cudaStreamNonBlocking);
    streams[s] = s;
    live_add("stream", s, flags & cudaStreamNonBlocking ? "non-blocking" : "blocking");
    *out = (cudaStream_t)s;
    return cudaSuccess;
}

static event *event_of(cudaEvent_t handle)
{
    auto found = events.find(handle);
    if (found == events.end()) {
        violation("an event is used that does not exist (any more): %p", (void *)handle);
        set_error(cudaErrorInvalidResourceHandle);
        return nullptr;
    }
    if (chosen_is("an event is used", "it", found->second->device))
        return found->second;
    set_error(cudaErrorInvalidResourceHandle);
    return nullptr;
}

static cudaError_t event_new(cudaEvent_t *out, unsigned flags)
{
    event *e = new event;
    e->number = serial();
    e->device = current_device();
    e->timing = !(flags & cudaEventDisableTiming);
    events[e] = e;
    live_add("event", e, e->timing ? "timing" : "no timing");
    *out = (cudaEvent_t)e;
    return cudaSuccess;
}

/* Polling makes progress, one piece a call. */
static cudaError_t poll(stream *s, unsigned long long position)
{
    if (s->done >= position)
        return sticky_error;
    cudaError_t error = run_batch(s, s->done + 1);
    return error != cudaSuccess ? error : s->done >= position ? cudaSuccess : cudaErrorNotReady;
}

} // namespace cudasim

using namespace cudasim;

/* An injected failure of a wait still lets the work run: a device that fails has stopped, it does not
 * write into the caller's memory later. */
#define ENTER_WAIT(name)                                                                                               \
    lock_t lock_;                                                                                                      \
    bool fails_ = CUDASIM_API_FAILS(name);                                                                             \
    if (device_error() != cudaSuccess)                                                                                 \
        return set_error(device_error());                                                                              \
    if (sticky() != cudaSuccess)                                                                                       \
    return set_error(sticky())
#define FAIL_AFTER(error) (fails_ ? set_error(cudaErrorUnknown) : set_error(error))

extern "C" {

cudaError_t cudaGetLastError(void)
{
    lock_t lock;
    cudaError_t error = sticky() != cudaSuccess ? sticky() : last_error;
    last_error = cudaSuccess;
    return error;
}
cudaError_t cudaPeekAtLastError(void)
{
    lock_t lock;
    return sticky() != cudaSuccess ? sticky() : last_error;
}

cudaError_t cudaStreamCreate(cudaStream_t *out)
{
    CUDASIM_ENTER(cudaStreamCreate);
    return stream_new(out, cudaStreamDefault);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    CUDASIM_ENTER(cudaStreamCreateWithFlags);
    return stream_new(out, flags);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int)
{
    CUDASIM_ENTER(cudaStreamCreateWithPriority);
    return stream_new(out, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t handle)
{
    CUDASIM_ENTER(cudaStreamDestroy);
    stream *s = handle ? stream_of(handle) : nullptr;
    if (s == nullptr)
        return set_error(cudaErrorInvalidResourceHandle);
    run_batch(s, s->queued);
    streams.erase(handle);
    live_remove("stream", handle);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    ENTER_WAIT(cudaStreamSynchronize);
    stream *s = stream_of(handle);
    if (s == nullptr)
        return set_error(cudaErrorInvalidResourceHandle);
    return FAIL_AFTER(run_batch(s, s->queued));
}
cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    ENTER_WAIT(cudaStreamQuery);
    stream *s = stream_of(handle);
    if (s == nullptr)
        return set_error(cudaErrorInvalidResourceHandle);
    return FAIL_AFTER(poll(s, s->queued));
}
cudaError_t cudaDeviceSynchronize(void)
{
    ENTER_WAIT(cudaDeviceSynchronize);
    queue_run_all();
    return FAIL_AFTER(sticky());
}

cudaError_t cudaEventCreate(cudaEvent_t *out)
{
    CUDASIM_ENTER(cudaEventCreate);
    return event_new(out, cudaEventDefault);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    CUDASIM_ENTER(cudaEventCreateWithFlags);
    return event_new(out, flags);
}
cudaError_t cudaEventDestroy(cudaEvent_t handle)
{
    CUDASIM_ENTER(cudaEventDestroy);
    if (event_of(handle) == nullptr)
        return cudaErrorInvalidResourceHandle;
    events.erase(handle);
    live_remove("event", handle);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t on)
{
    CUDASIM_ENTER(cudaEventRecord);
    event *e = event_of(handle);
    if (e == nullptr)
        return cudaErrorInvalidResourceHandle;
    auto time = e->time = std::make_shared<double>(-1.0);
    cudaError_t error = queue_push(on, "cudaEventRecord", [=] { *time = seconds(); });
    if (error != cudaSuccess)
        return error;
    e->on = stream_of(on);
    e->position = e->on->queued;
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t what, unsigned)
{
    CUDASIM_ENTER(cudaStreamWaitEvent);
    event *e = event_of(what);
    stream *s = stream_of(handle);
    if (e == nullptr || s == nullptr)
        return set_error(cudaErrorInvalidResourceHandle);
    if (e->on == nullptr || e->on == s)
        return cudaSuccess;
    return push(handle, "cudaStreamWaitEvent", nullptr, {{e->on, e->position}});
}
cudaError_t cudaEventSynchronize(cudaEvent_t handle)
{
    ENTER_WAIT(cudaEventSynchronize);
    event *e = event_of(handle);
    if (e == nullptr)
        return cudaErrorInvalidResourceHandle;
    return FAIL_AFTER(e->on ? run_batch(e->on, e->position) : cudaSuccess);
}
cudaError_t cudaEventQuery(cudaEvent_t handle)
{
    ENTER_WAIT(cudaEventQuery);
    event *e = event_of(handle);
    if (e == nullptr)
        return cudaErrorInvalidResourceHandle;
    return FAIL_AFTER(e->on ? poll(e->on, e->position) : cudaSuccess);
}
cudaError_t cudaEventElapsedTime(float *out, cudaEvent_t from, cudaEvent_t to)
{
    CUDASIM_ENTER(cudaEventElapsedTime);
    event *a = event_of(from), *b = event_of(to);
    if (a == nullptr || b == nullptr || !a->timing || !b->timing || !a->time || !b->time)
        return set_error(cudaErrorInvalidResourceHandle);
    if (*a->time < 0 || *b->time < 0)
        return set_error(cudaErrorNotReady);
    *out = (float)((*b->time - *a->time) * 1e3);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream)
{
    CUDASIM_ENTER(cudaMemcpyAsync);
    return copy_queue("cudaMemcpyAsync", target, source, bytes, kind, stream);
}
cudaError_t cudaMemcpy(void *target, const void *source, size_t bytes, cudaMemcpyKind kind)
{
    ENTER_WAIT(cudaMemcpy);
    if (fails_)
        return set_error(cudaErrorUnknown);
    cudaError_t error = copy_queue("cudaMemcpy", target, source, bytes, kind, nullptr);
    return error != cudaSuccess ? error : set_error(run_batch(default_stream(), default_stream()->queued));
}
cudaError_t cudaMemsetAsync(void *target, int value, size_t bytes, cudaStream_t stream)
{
    CUDASIM_ENTER(cudaMemsetAsync);
    return fill_queue("cudaMemsetAsync", target, value, bytes, stream);
}
cudaError_t cudaMemset(void *target, int value, size_t bytes)
{
    CUDASIM_ENTER(cudaMemset);
    return fill_queue("cudaMemset", target, value, bytes, nullptr);
}

} // extern "C"

/* Pieces of work that are queued and have not run. */
CUDASIM_EXPORT unsigned long long cudasim_pending(void)
{
    lock_t lock;
    unsigned long long n = 0;
    for (auto &s : streams)
        n += s.second->queued - s.second->done;
    return n;
}
