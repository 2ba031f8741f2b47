/* The CPU device: adding it, and the kernel paths behind its dispatch. */
#ifndef ASEN_CPU_H
#define ASEN_CPU_H

#include "core/fork.h"
#include "ops/backend.h"

/* Adds the device "cpu", once: before any other. */
int asen_cpu_open(void);

/* fork()'s handlers: of OpenMP's threads, and of oneDNN. */
void asen_team_fork(asen_fork_phase phase);
void asen_onednn_fork(asen_fork_phase phase);

/* CPU kernel paths, tried in this order by the CPU's dispatch; a bit mask chooses (tests). */
enum { ASEN_PATH_FAST = 1, ASEN_PATH_ONEDNN = 2, ASEN_PATH_REFERENCE = 4, ASEN_PATH_ALL = 7 };
void asen_cpu_set_paths(unsigned mask);
/* How often each path ran each op since the last reset: counts[ASEN_OP_COUNT][3]. */
void asen_cpu_get_counts(uint64_t (*counts)[3]);
void asen_cpu_reset_counts(void);
/* How often a filter was brought into oneDNN's layout. */
uint64_t asen_onednn_pack_fills(void);

/* The tables behind the paths; a NULL slot declines. */
extern const asen_kernel asen_ref_kernels[ASEN_OP_COUNT];
extern const asen_kernel asen_fast_kernels[ASEN_OP_COUNT];
extern const asen_kernel asen_onednn_kernels[ASEN_OP_COUNT]; /* all NULL in a build without oneDNN */

/* Optimizer steps (ops/optim.h). */
int asen_optim_ref_step(const asen_optim_call *call);
int asen_optim_fast_step(const asen_optim_call *call); /* ASEN_DECLINED for float64 */

#endif
