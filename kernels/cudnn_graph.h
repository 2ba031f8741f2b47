/* Convolutions as cuDNN operation graphs: building them, and choosing an execution plan.
 *
 * One graph is a convolution (forward, or a gradient of it), forward with bias, residual and ReLU
 * fused behind it. Activations lie N, H, W, C and filters O, H, W, I; descriptors carry the logical
 * N, C, H, W shapes with those strides. Everything is aligned to 16 bytes.
 *
 * A plan is the first that cuDNN's heuristics propose (mode A, then the fallback list) which
 * - carries no numerical note that conv_refused_notes() lists: float32 is computed in float32, every
 *   type accumulates in float32 or wider, and the same call gives the same bits;
 * - is not compiled at run time, which would take a second for every new shape;
 * - needs at most a quarter of a GiB and the size of both activations as workspace;
 * - builds.
 * There may be none; the caller then has other means (conv_direct.cu).
 *
 * The target is a GPU through a cuDNN handle, or the description of one (a device property
 * descriptor made from JSON), for which cuDNN plans without any GPU: tests/cudnn_plans. */
#ifndef ASEN_CUDNN_GRAPH_H
#define ASEN_CUDNN_GRAPH_H

#include <cudnn.h>

#include "core/asen.h"

typedef enum conv_kind { CONV_FORWARD, CONV_GRAD_INPUT, CONV_GRAD_WEIGHT } conv_kind;

/* What a plan depends on, and nothing else: the key of the plan cache (all words are compared). */
typedef struct conv_spec {
    int64_t kind, dtype;            /* conv_kind, asen_dtype */
    int64_t n, c, h, w;             /* x (N, C, H, W) */
    int64_t o, p, q;                /* y (N, O, P, Q) */
    int64_t kh, kw;                 /* filter (O, C / groups, KH, KW) */
    int64_t stride[2], padding[2], dilation[2], groups;
    int64_t bias, residual, relu;   /* forward only: y = relu(conv + residual + bias) */
    int64_t tf32;                   /* float32 may be rounded to TF32 on its way into tensor cores */
} conv_spec;

typedef struct conv_target {
    cudnnHandle_t handle;             /* a GPU, or */
    cudnnBackendDescriptor_t device;  /* the description of one */
    int sm;                           /* compute capability, 90 for 9.0 */
} conv_target;

/* The tensors of a graph, in the order in which conv_plan_run() takes their addresses. */
enum { CONV_X, CONV_W, CONV_Y, CONV_BIAS, CONV_RESIDUAL, CONV_TENSORS };

enum { CONV_DESCRIPTORS = 20 };

typedef struct conv_plan {
    cudnnBackendDescriptor_t plan;
    int64_t workspace;        /* bytes */
    int64_t engine;           /* cuDNN's number of it */
    unsigned notes, behavior; /* bits 1 << cudnnBackendNumericalNote_t, 1 << cudnnBackendBehaviorNote_t */
    cudnnBackendDescriptor_t config;
    struct conv_graph *graph; /* what the plan was made from: shared, counted */
} conv_plan;

/* What a search, or a run, met: for messages, and for checking that the filter filters. */
typedef struct conv_search {
    int proposed, refused, too_large, unbuildable;
    unsigned refused_notes, refused_behavior; /* those that led to refusals */
    cudnnStatus_t status;     /* of the last thing that cuDNN could not do */
    const char *call;         /* which call that was */
    char why[256];            /* cuDNN's words for it */
} conv_search;

/* Numerical notes (bits) that a plan for `spec` may not carry on a GPU of capability `sm`. */
unsigned conv_refused_notes(const conv_spec *spec, int sm);

/* Up to `wanted` plans, best first, into plans[]; *found may be 0, and *search then tells why.
 * `refused`: see conv_refused_notes(). That cuDNN does not support a candidate is no failure; whatever else a call answers
 * is: plans are kept for good, so none may be taken because a better one met a full memory, say. */
int conv_plans_find(const conv_target *target, const conv_spec *spec, unsigned refused, int wanted, conv_plan *plans,
                    int *found, conv_search *search);
void conv_plan_free(conv_plan *plan);

/* Queues the plan on the handle's stream. data[]: device addresses by CONV_X …; what the spec
 * lacks is not looked at. */
int conv_plan_run(cudnnHandle_t handle, const conv_spec *spec, const conv_plan *plan, void *const data[CONV_TENSORS],
                  void *workspace);

/* "conv2d of x (2, 3, 5, 6) with w (4, 3, 3, 3), …" into a buffer; returns the buffer. */
const char *conv_spec_text(const conv_spec *spec, char *buffer, size_t size);
/* "3 proposed, 2 refused …" into a buffer; returns the buffer. */
const char *conv_search_text(const conv_search *search, char *buffer, size_t size);
/* The status of a failed cuDNN call, with its name, cuDNN's words and the convolution's shapes. */
int conv_fail(cudnnStatus_t status, const char *call, const conv_spec *spec);

#endif
