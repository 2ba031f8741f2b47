/* Several GPUs, of one description, and which of them a thread has chosen; processes that were forked.
 *
 * What is made belongs to the GPU that its thread has chosen then. Hardware is silent about some uses of it while another
 * one is chosen (copies, waits), and fails late in others; here every use is a fault. Environment, read once:
 *   CUDASIM_DEVICES   how many there are: 1
 * A process that is forked after CUDA was used cannot use it: every call is a fault there, and pinned memory is gone. */
#include <cstdlib>

#include <pthread.h>

#include "sim.h"

namespace cudasim {

static thread_local int chosen, running = -1;
static bool used, forked_child;

int device_count()
{
    static const char *text = getenv("CUDASIM_DEVICES");
    static int count = text ? atoi(text) : 1;
    return count;
}

int current_device() { return running >= 0 ? running : chosen; }

bool set_current_device(int index)
{
    if (index < 0 || index >= device_count())
        return false;
    chosen = index;
    return true;
}

work on_this_device(work w)
{
    int device = current_device();
    if (!w)
        return w;
    return [device, w] {
        int before = running;
        running = device;
        w();
        running = before;
    };
}

bool chosen_is(const char *call, const char *what, int device)
{
    if (device == current_device())
        return true;
    violation("%s: %s belongs to GPU %d, and GPU %d is the thread's (cudaSetDevice)", call, what, device, current_device());
    return false;
}

static void child_of_fork()
{
    lock_renew();
    forked_child = used;
}

bool forked()
{
    if (!used)
        pthread_atfork(nullptr, nullptr, child_of_fork);
    used = true;
    if (forked_child)
        violation("CUDA is called in a forked process");
    return forked_child;
}

} // namespace cudasim

using namespace cudasim;

/* What another library in the process does: chooses a GPU for this thread. */
CUDASIM_EXPORT int cudasim_set_device(int index) { return set_current_device(index); }
CUDASIM_EXPORT int cudasim_get_device(void) { return current_device(); }
