/* fork(): the child has one thread, and what other threads held at that moment stays held there for ever.
 *
 * So whoever keeps state behind locks registers a handler, which takes them before a fork and gives them back in both
 * processes: the child inherits state that nobody was changing. No lock of the core is held while Python code may run or
 * the GIL is waited for, since whoever forks holds the GIL and waits for these locks. */
#ifndef ASEN_FORK_H
#define ASEN_FORK_H

typedef enum asen_fork_phase {
    ASEN_FORK_BEFORE, /* takes the locks */
    ASEN_FORK_PARENT, /* gives them back */
    ASEN_FORK_CHILD   /* the same, in the child */
} asen_fork_phase;

/* The order in which they are taken: a thread that holds locks of one rank may wait for those of a later one. */
typedef enum asen_fork_rank {
    ASEN_FORK_TEAMS,    /* OpenMP's threads (cpu/team.c) */
    ASEN_FORK_KERNELS,  /* kernels with state of their own, which allocate (cpu/onednn) */
    ASEN_FORK_DEVICES,  /* devices and their allocators */
    ASEN_FORK_GRADIENTS,
    ASEN_FORK_HISTORIES,
    ASEN_FORK_WARNINGS, /* may be said with any lock held */
    ASEN_FORK_RANKS
} asen_fork_rank;

/* Registers the handler of a rank for as long as the process lives; again is harmless. To be called while the module is
 * set up. */
int asen_fork_protect(asen_fork_rank rank, void (*handler)(asen_fork_phase phase));

#endif
