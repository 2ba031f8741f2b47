/* Handlers of fork(), in order: see fork.h. */
#include "core/fork.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "core/status.h"

static void (*handlers[ASEN_FORK_RANKS])(asen_fork_phase phase);

static void before(void)
{
    for (int rank = 0; rank < ASEN_FORK_RANKS; rank++)
        if (handlers[rank] != NULL)
            handlers[rank](ASEN_FORK_BEFORE);
}

static void after(asen_fork_phase phase)
{
    for (int rank = ASEN_FORK_RANKS - 1; rank >= 0; rank--)
        if (handlers[rank] != NULL)
            handlers[rank](phase);
}

static void in_parent(void) { after(ASEN_FORK_PARENT); }
static void in_child(void) { after(ASEN_FORK_CHILD); }

int asen_fork_protect(asen_fork_rank rank, void (*handler)(asen_fork_phase phase))
{
    static bool installed;
    if (!installed && pthread_atfork(before, in_parent, in_child) != 0)
        return asen_fail(ASEN_ERR_MEMORY, "out of memory");
    installed = true;
    handlers[rank] = handler;
    return ASEN_OK;
}
