/* One thread budget for everything that computes. */
#ifndef ASEN_THREADS_H
#define ASEN_THREADS_H

/* Threads for compute (OpenMP, in fast kernels and oneDNN). 0 in set: the machine's budget. */
int asen_threads_get(void);
void asen_threads_set(int threads);
int asen_threads_budget(void); /* affinity and the cgroup's quota */

#endif
