/* The table behind the path "fast": one slot an op; NULL where we have no kernel of our own
 * (large matrix products and convolutions are oneDNN's). */
#include "cpu/fast/fast.h"

const asen_kernel asen_fast_kernels[ASEN_OP_COUNT] = {
#define SLOT(name, ...) [ASEN_OP_##name] = fast_##name,
    FAST_KERNELS(SLOT)
#define UNARY SLOT
#define BINARY SLOT
#include "ops/elementwise.def"
#undef SLOT
};
