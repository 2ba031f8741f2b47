/* Optimizer steps over lists of tensors: one call updates many parameters.
 *
 * Formulas (dtype of the parameters, float32 or float64; scalars in double, rounded once):
 *   SGD    g += weight_decay * p;  b = first step ? g : momentum * b + (1 - dampening) * g;
 *          d = nesterov ? g + momentum * b : (momentum ? b : g);  p -= lr * d
 *   Adam   g += weight_decay * p (AdamW: p *= 1 - lr * weight_decay instead);
 *          m += (1 - beta1) * (g - m);  v = beta2 * v + (1 - beta2) * g * g;
 *          p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
 * Sources: Kingma and Ba 2015; Loshchilov and Hutter 2019; the order of operations is PyTorch's. */
#ifndef ASEN_OPTIM_H
#define ASEN_OPTIM_H

#include "core/asen.h"

ASEN_C_BEGIN

typedef enum asen_optim_kind { ASEN_SGD, ASEN_ADAM, ASEN_ADAMW } asen_optim_kind;

typedef struct asen_optim_call {
    asen_optim_kind kind;
    asen_dtype dtype;
    int64_t count;        /* tensors */
    void *const *param;   /* count device pointers each */
    const void *const *grad;
    void *const *state1;  /* momentum buffer / first moment; may be NULL for plain SGD */
    void *const *state2;  /* second moment; NULL for SGD */
    const int64_t *length; /* elements */
    int64_t step;         /* t, from 1 */
    double lr, momentum, dampening, beta1, beta2, eps, weight_decay;
    int nesterov;
    asen_device *device;
} asen_optim_call;

ASEN_C_END

#endif
