/* What went wrong, what is alive, what is to fail: the part that tests ask (cudasim_* symbols). */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include <fcntl.h>
#include <unistd.h>

#include "sim.h"

namespace cudasim {

static std::recursive_mutex mutex;
lock_t::lock_t() { mutex.lock(); }
lock_t::~lock_t() { mutex.unlock(); }
void lock_renew() { new (&mutex) std::recursive_mutex; }

/* ---- faults ---- */

static int violation_count;
static char last_violation[1024];

void write_report(const char *text)
{
    size_t n = strlen(text);
    const char *path = getenv("CUDASIM_LOG");
    int log = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0644) : -1;
    for (int fd : {2, log})
        if (fd >= 0 && (write(fd, "cudasim: ", 9) < 0 || write(fd, text, n) < 0 || write(fd, "\n", 1) < 0))
            break;
    if (log >= 0)
        close(log);
}

void violation_note(const char *text)
{
    violation_count++;
    snprintf(last_violation, sizeof last_violation, "%s", text);
    write_report(text);
}

void violation(const char *format, ...)
{
    char text[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    violation_note(text);
}

void fatal(const char *format, ...)
{
    char text[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    write_report(text);
    _exit(86);
}

/* ---- calls and failures on demand ---- */

static api *apis;
static char fail_name[64];
static long long fail_countdown; /* 0: none */
static long long fail_times = 1; /* how many calls fail from then on */
static int fail_status;          /* 0: what the function fails with */
static long long failed;

static void fail_from_environment()
{
    static bool done;
    const char *spec = done ? nullptr : getenv("CUDASIM_FAIL"); /* "cudaMalloc:3", "*:17" */
    done = true;
    const char *colon = spec ? strrchr(spec, ':') : nullptr;
    if (colon == nullptr)
        return;
    snprintf(fail_name, sizeof fail_name, "%.*s", (int)(colon - spec), spec);
    fail_countdown = atoll(colon + 1);
}

api::api(const char *n) : name(n), next(apis) { apis = this; }

/* What gives things back is left alone: a program has no answer to its failure. */
static bool may_fail(const char *name)
{
    static const char *const never[] = {"Free", "Destroy", "GetLastError", "PeekAtLastError", "GetErrorString",
                                        "GetErrorName", "GetVersion", "DriverGetVersion", "RuntimeGetVersion"};
    for (const char *part : never)
        if (strstr(name, part))
            return false;
    return true;
}

bool api::enter()
{
    fail_from_environment();
    calls++;
    if (fail_countdown == 0 || !may_fail(name) || (strcmp(fail_name, "*") != 0 && strcmp(fail_name, name) != 0) ||
        --fail_countdown > 0)
        return false;
    if (--fail_times > 0)
        fail_countdown = 1;
    failed++;
    return true;
}

int failure(int otherwise) { return fail_status ? fail_status : otherwise; }

/* ---- what is alive ---- */

struct object {
    std::string kind, what;
    size_t bytes;
    unsigned long long serial;
    int device;
};
/* Containers are never destroyed: the process may call until its very end. */
static std::map<const void *, object> &objects = *new std::map<const void *, object>;
static std::map<std::string, unsigned long long> &launches = *new std::map<std::string, unsigned long long>;

unsigned long long serial()
{
    static unsigned long long last;
    return ++last;
}

void live_add(const char *kind, const void *handle, std::string what, size_t bytes)
{
    objects[handle] = {kind, std::move(what), bytes, serial(), current_device()};
}

int live_device(const void *handle)
{
    auto found = objects.find(handle);
    return found == objects.end() ? -1 : found->second.device;
}

bool live_has(const char *kind, const void *handle)
{
    auto found = objects.find(handle);
    return found != objects.end() && found->second.kind == kind;
}

bool live_remove(const char *kind, const void *handle)
{
    if (!live_has(kind, handle))
        return false;
    objects.erase(handle);
    return true;
}

void launch_count(const char *name) { launches[name]++; }

} // namespace cudasim

using namespace cudasim;

static int give_text(const std::string &text, char *buffer, size_t size)
{
    if (buffer && size)
        snprintf(buffer, size, "%s", text.c_str());
    return (int)text.size();
}

CUDASIM_EXPORT int cudasim_violations(void) { return violation_count; }
CUDASIM_EXPORT const char *cudasim_last_violation(void) { return last_violation; }

CUDASIM_EXPORT long long cudasim_live(const char *kind)
{
    lock_t lock;
    long long n = 0;
    for (auto &o : objects)
        n += kind == nullptr || o.second.kind == kind;
    return n;
}

CUDASIM_EXPORT unsigned long long cudasim_live_bytes(const char *kind)
{
    lock_t lock;
    unsigned long long n = 0;
    for (auto &o : objects)
        n += kind == nullptr || o.second.kind == kind ? o.second.bytes : 0;
    return n;
}

/* One line an object; the length it would have. */
CUDASIM_EXPORT int cudasim_report(char *buffer, size_t size)
{
    lock_t lock;
    std::string text;
    std::map<unsigned long long, std::string> lines;
    for (auto &o : objects)
        lines[o.second.serial] = o.second.kind + " #" + std::to_string(o.second.serial) + ": " + o.second.what + "\n";
    for (auto &line : lines)
        text += line.second;
    return give_text(text, buffer, size);
}

CUDASIM_EXPORT long long cudasim_launches(const char *kernel)
{
    lock_t lock;
    long long n = 0;
    for (auto &l : launches)
        n += kernel == nullptr || l.first == kernel ? (long long)l.second : 0;
    return n;
}

/* "name count" lines. */
CUDASIM_EXPORT int cudasim_call_table(char *buffer, size_t size)
{
    lock_t lock;
    std::string text;
    for (api *a = apis; a; a = a->next)
        text += std::string(a->name) + " " + std::to_string(a->calls) + "\n";
    return give_text(text, buffer, size);
}

/* How many calls could be made to fail so far (of one function, or of all with "*"). */
CUDASIM_EXPORT long long cudasim_calls(const char *name)
{
    lock_t lock;
    long long n = 0;
    for (api *a = apis; a; a = a->next)
        if (strcmp(name, "*") == 0 ? may_fail(a->name) : strcmp(name, a->name) == 0)
            n += (long long)a->calls;
    return n;
}

/* From now on the n-th call of `name` ("*": of anything that may fail) fails, and so many from it on, with this status (0:
 * what the function fails with by itself). 0: none does. */
CUDASIM_EXPORT void cudasim_fail_with(const char *name, long long nth, long long times, int status)
{
    lock_t lock;
    fail_from_environment();
    snprintf(fail_name, sizeof fail_name, "%s", name);
    fail_countdown = nth;
    fail_times = times;
    fail_status = status;
}
CUDASIM_EXPORT void cudasim_fail(const char *name, long long nth) { cudasim_fail_with(name, nth, 1, 0); }

CUDASIM_EXPORT long long cudasim_failed(void) { return failed; }

/* Takes back what a faulty kernel left: the sticky error and the count of faults. */
CUDASIM_EXPORT void cudasim_reset(void)
{
    lock_t lock;
    violation_count = 0;
    last_violation[0] = '\0';
    set_sticky(cudaSuccess);
    set_error(cudaSuccess);
}

/* At the end of the process: CUDASIM_REPORT=1 lists what is alive, CUDASIM_STRICT=1 turns faults that nobody looked at into
 * a failure of the process. */
__attribute__((destructor)) static void finish()
{
    static char text[65536];
    const char *report = getenv("CUDASIM_REPORT"), *strict = getenv("CUDASIM_STRICT");
    if (report && strcmp(report, "1") == 0 && cudasim_report(text, sizeof text) > 0)
        write_report(text);
    if (strict && strcmp(strict, "1") == 0 && violation_count > 0) {
        snprintf(text, sizeof text, "%d faults; the last: %s", violation_count, last_violation);
        write_report(text);
        _exit(86);
    }
}
