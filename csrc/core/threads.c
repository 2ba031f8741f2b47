/* One thread budget for everything: the processors this process may use (affinity) and the time
 * its cgroup grants (v2 cpu.max, v1 cpu.cfs_quota_us), not the processors of the host. */
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "core/threads.h"

static double cgroup_quota(void)
{
    double quota = 0, period = 0;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (f != NULL) {
        int n = fscanf(f, "%lf %lf", &quota, &period); /* "max 100000" reads nothing */
        fclose(f);
        return n == 2 && period > 0 ? quota / period : 0;
    }
    f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r");
    if (f == NULL)
        return 0;
    int n = fscanf(f, "%lf", &quota);
    fclose(f);
    f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r");
    if (f == NULL)
        return 0;
    n += fscanf(f, "%lf", &period);
    fclose(f);
    return n == 2 && quota > 0 && period > 0 ? quota / period : 0;
}

static int budget(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    double quota = cgroup_quota();
    if (quota > 0 && quota < n)
        n = (int)(quota + 0.5);
    return n < 1 ? 1 : n;
}

static _Atomic int chosen;

int asen_threads_get(void)
{
    int n = atomic_load(&chosen);
    if (n == 0) {
        n = budget();
        atomic_store(&chosen, n);
    }
    return n;
}

void asen_threads_set(int threads)
{
    atomic_store(&chosen, threads > 0 ? threads : budget());
}
