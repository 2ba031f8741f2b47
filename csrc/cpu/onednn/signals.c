/* Signals that arrive while oneDNN computes.
 *
 * Its float32 matrix products on x86-64 keep the stack pointer on a work space of the heap while they multiply (until
 * version 3.11.2: https://github.com/uxlfoundation/oneDNN/issues/4845). The system lays what a signal's handler needs
 * below the stack pointer, there over whatever the heap holds: Ctrl-C could end the process, or spoil weights unseen.
 *
 * A handler that was set with SA_ONSTACK, as Python sets all of its own, runs on the alternate stack of the thread
 * instead, where it has one. So each thread is given one before it is within oneDNN for the first time, unless it has
 * one already (faulthandler's, a sanitizer's). Without memory for it the thread goes on unprotected, and tries again
 * at its next call. Handlers that others set without SA_ONSTACK are not helped. */
#include "cpu/onednn/onednn.h"

#ifdef ASEN_ONEDNN
#include <omp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

/* A frame takes 11 KiB where a processor has AMX; handlers that dump or unwind take more. */
enum { STACK_BYTES = 64 << 10 };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key; /* a thread's stack, to be freed when it ends */
static bool has_key;
static _Thread_local bool ready;

/* One page below the stack cannot be touched. */
static size_t mapped_bytes(void) { return STACK_BYTES + (size_t)sysconf(_SC_PAGESIZE); }
static char *stack_of(char *mapped) { return mapped + sysconf(_SC_PAGESIZE); }

static void stack_free(void *mapped)
{
    stack_t present;
    const stack_t none = {.ss_flags = SS_DISABLE};
    if (sigaltstack(NULL, &present) == 0 && present.ss_sp == stack_of(mapped)) sigaltstack(&none, NULL);
    munmap(mapped, mapped_bytes());
}

static void key_make(void) { has_key = pthread_key_create(&key, stack_free) == 0; }

/* Whether the thread has an alternate stack now. */
static bool stack_make(void)
{
    stack_t present;
    if (sigaltstack(NULL, &present) != 0) return false;
    if (!(present.ss_flags & SS_DISABLE)) return true;
    pthread_once(&once, key_make);
    if (!has_key) return false;
    char *mapped = mmap(NULL, mapped_bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return false;
    const stack_t wanted = {.ss_sp = stack_of(mapped), .ss_size = STACK_BYTES};
    if (mprotect(wanted.ss_sp, STACK_BYTES, PROT_READ | PROT_WRITE) == 0 && pthread_setspecific(key, mapped) == 0) {
        if (sigaltstack(&wanted, NULL) == 0) return true;
        pthread_setspecific(key, NULL);
    }
    munmap(mapped, mapped_bytes());
    return false;
}

void asen_onednn_signal_stack(void)
{
    if (!ready) ready = stack_make();
}

void asen_onednn_signal_stacks(int threads)
{
    asen_onednn_signal_stack();
    if (threads < 2) return;
#pragma omp parallel num_threads(threads)
    asen_onednn_signal_stack();
}

#endif
