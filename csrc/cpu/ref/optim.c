/* Reference: optimizer steps in float32 and float64 (formulas and sources: optim.h). */
#include <math.h>

#include "cpu/cpu.h"

#define T float
#define NAME(x) x##_float
#define SQRT sqrtf
#include "cpu/ref/optim.inc"
#undef T
#undef NAME
#undef SQRT

#define T double
#define NAME(x) x##_double
#define SQRT sqrt
#include "cpu/ref/optim.inc"
#undef T
#undef NAME
#undef SQRT

int asen_optim_ref_step(const asen_optim_call *call)
{
    bool single = call->dtype == ASEN_F32;
    if (!single && call->dtype != ASEN_F64)
        return asen_fail(ASEN_ERR_TYPE, "an optimizer steps float32 or float64 parameters, not %s",
                         asen_dtype_name(call->dtype));
    for (int64_t t = 0; t < call->count; t++) {
        void *p = call->param[t], *first = call->state1 ? call->state1[t] : NULL;
        void *second = call->state2 ? call->state2[t] : NULL;
        const void *g = call->grad[t];
        if (call->kind == ASEN_SGD && single)
            sgd_float(call, p, g, first, call->length[t]);
        else if (call->kind == ASEN_SGD)
            sgd_double(call, p, g, first, call->length[t]);
        else if (single)
            adam_float(call, p, g, first, second, call->length[t]);
        else
            adam_double(call, p, g, first, second, call->length[t]);
    }
    return ASEN_OK;
}
