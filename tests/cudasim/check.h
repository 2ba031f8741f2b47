/* What the fibers tell the checks of every access (check.cpp). */
#ifndef CUDASIM_CHECK_H
#define CUDASIM_CHECK_H

#include <cstddef>
#include <cstdint>
#include <string>

namespace cudasim {

struct check_t {
    int thread;                                 /* in its block */
    uint16_t sync;                              /* exchanges of its warp so far */
    uint32_t epoch, block_epoch, launch_epoch;  /* barriers so far; when this block, this launch began */
    uintptr_t stack_first, stack_last;          /* of the thread */
    uintptr_t shared_first, shared_last;        /* where shared memory lies */
    void *launch;                               /* holds the arguments */
};
extern check_t check;

/* Whether this thread of the host runs a kernel's code now (not the simulator's, not the host's). */
void check_inside(bool inside);

void check_forget(const void *data); /* an allocation goes */
std::string check_fault();           /* the text of what kernel_abort_later() left behind */
[[noreturn]] void kernel_abort_later();
bool shared_covers(const void *address, size_t size);
bool memory_find(const void *address, void **data, size_t *bytes); /* the live allocation around an address */

} // namespace cudasim

#endif
