/* The table of reference kernels, one for every row of ops.def that is no view. */
#include "cpu/ref/ref.h"

const asen_kernel asen_ref_kernels[ASEN_OP_COUNT] = {
#define OP(name, ...) [ASEN_OP_##name] = ref_##name,
#include "ops/ops.def"
};
