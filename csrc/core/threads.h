/* One thread budget for everything that computes. */
#ifndef ASEN_THREADS_H
#define ASEN_THREADS_H

/* Threads for compute (OpenMP, in fast kernels and oneDNN). 0 in set: what affinity and the cgroup's quota allow. */
int asen_threads_get(void);
void asen_threads_set(int threads);

#endif
