/* OpenMP's threads around a fork.
 *
 * A thread that has run a parallel region keeps the team's threads for the next one. A child has none of them, but the
 * runtime there (GCC's) believes in them, so that the next region waits for ever. Before a fork the thread that forks
 * therefore lets its team go; parent and child make new ones when they need them. Teams of the parent's other threads
 * are forgotten with these. Where the team cannot be let go, inside a parallel region of somebody else, the child
 * computes in one thread, for which no team is made. */
#include <omp.h>
#include <stdbool.h>

#include "core/threads.h"
#include "cpu/cpu.h"

static _Thread_local bool kept; /* of the thread that forks */

void asen_team_fork(asen_fork_phase phase)
{
    if (phase == ASEN_FORK_BEFORE)
        kept = omp_pause_resource_all(omp_pause_hard) != 0;
    if (phase != ASEN_FORK_CHILD || !kept)
        return;
    asen_threads_set(1);
    asen_warn("this process was forked inside a parallel region of OpenMP: it computes in one thread");
}
