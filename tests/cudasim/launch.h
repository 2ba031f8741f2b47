/* A launch, between the call (launch.cpp) and its run (fibers.cpp). */
#ifndef CUDASIM_LAUNCH_H
#define CUDASIM_LAUNCH_H

#include <memory>
#include <string>
#include <vector>

#include "cudasim.h"

namespace cudasim {

struct launch_plan {
    std::string name;
    dim3 grid, threads;
    size_t shared, shared_limit;
    std::unique_ptr<launch_base> launch;
    std::vector<const void *> pointers; /* arguments */
};

void launch_run(const launch_plan &p);

} // namespace cudasim

#endif
