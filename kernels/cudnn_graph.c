/* See cudnn_graph.h. What is used of cuDNN's backend API, and no more (tests/cudasim implements it):
 *
 * TENSOR (DATA_TYPE, DIMENSIONS, STRIDES, BYTE_ALIGNMENT, UNIQUE_ID, IS_VIRTUAL),
 * CONVOLUTION (COMP_TYPE, CONV_MODE, SPATIAL_DIMS, FILTER_STRIDES, PRE_PADDINGS, POST_PADDINGS, DILATIONS),
 * POINTWISE (MODE: ADD, RELU_FWD; MATH_PREC), OPERATION_CONVOLUTION_FORWARD, _BACKWARD_DATA and
 * _BACKWARD_FILTER (ALPHA, BETA, CONV_DESC and the three tensors), OPERATION_POINTWISE
 * (PW_DESCRIPTOR, XDESC, BDESC, YDESC), OPERATIONGRAPH (OPS, HANDLE), ENGINEHEUR (OPERATION_GRAPH,
 * MODE, DEVICEPROP, RESULTS), ENGINECFG (ENGINE), ENGINE (GLOBAL_INDEX, NUMERICAL_NOTE,
 * BEHAVIOR_NOTE), EXECUTION_PLAN (HANDLE or DEVICEPROP, ENGINE_CONFIG, WORKSPACE_SIZE),
 * VARIANT_PACK (UNIQUE_IDS, DATA_POINTERS, WORKSPACE). */
#include "cudnn_graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

#if CUDNN_VERSION < 90800
#error "cuDNN 9.8 or newer is wanted: device property descriptors came with it"
#endif

#define NOTE(name) (1u << CUDNN_NUMERICAL_NOTE_##name)
#define BEHAVIOR(name) (1u << CUDNN_BEHAVIOR_NOTE_##name)

enum { ALIGNMENT = 16, MAX_CONFIGS = 64 };

/* ---- what went wrong ---- */

static const char *const kinds[] = {"conv2d", "conv2d_grad_input", "conv2d_grad_weight"};
static const char *const dtypes[ASEN_DTYPE_COUNT] = {
    [ASEN_F16] = "float16", [ASEN_BF16] = "bfloat16", [ASEN_F32] = "float32", [ASEN_F64] = "float64"};

const char *conv_spec_text(const conv_spec *s, char *buffer, size_t size)
{
    const char *dtype = s->dtype >= 0 && s->dtype < ASEN_DTYPE_COUNT && dtypes[s->dtype] ? dtypes[s->dtype] : "?";
    snprintf(buffer, size,
             "%s of x (%lld, %lld, %lld, %lld), w (%lld, %lld, %lld, %lld), y (%lld, %lld, %lld, %lld), "
             "stride %lld,%lld padding %lld,%lld dilation %lld,%lld groups %lld%s%s%s, %s%s",
             kinds[s->kind], (long long)s->n, (long long)s->c, (long long)s->h, (long long)s->w, (long long)s->o,
             (long long)(s->c / s->groups), (long long)s->kh, (long long)s->kw, (long long)s->n, (long long)s->o,
             (long long)s->p, (long long)s->q, (long long)s->stride[0], (long long)s->stride[1],
             (long long)s->padding[0], (long long)s->padding[1], (long long)s->dilation[0], (long long)s->dilation[1],
             (long long)s->groups, s->bias ? " + bias" : "", s->residual ? " + residual" : "", s->relu ? " + ReLU" : "",
             dtype, s->tf32 ? " (TF32 allowed)" : "");
    return buffer;
}

static int fail(cudnnStatus_t status, const char *call, const char *why, const conv_spec *spec)
{
    char text[400] = "";
    int length = (int)strcspn(call, "(");
    int code = status == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ||
                       status == CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED
                   ? ASEN_ERR_MEMORY
                   : ASEN_ERR_DEVICE;
    return cuda_host.fail(code, "%.*s: %s%s%s%s%s", length, call, cudnnGetErrorString(status), why[0] ? ": " : "", why,
                          spec ? "; " : "", spec ? conv_spec_text(spec, text, sizeof text) : "");
}

int conv_fail(cudnnStatus_t status, const char *call, const conv_spec *spec)
{
    char why[256] = "";
    cudnnGetLastErrorString(why, sizeof why);
    return fail(status, call, why, spec);
}

/* ---- descriptors ---- */

/* The descriptors of a graph, made one after the other; after the first failure the rest is not
 * tried, and status and call say what failed. Plans share it: cuDNN does not promise that a plan
 * outlives what it was made from. */
struct conv_graph {
    int refs, count;
    cudnnStatus_t status;
    const char *call;
    cudnnBackendDescriptor_t item[CONV_DESCRIPTORS];
    cudnnBackendDescriptor_t graph;
};
typedef struct conv_graph conv_graph;

static void graph_release(conv_graph *g)
{
    if (g == NULL || --g->refs > 0)
        return;
    while (g->count > 0)
        cudnnBackendDestroyDescriptor(g->item[--g->count]);
    free(g);
}

static void note_failure(conv_graph *g, cudnnStatus_t status, const char *call)
{
    if (status != CUDNN_STATUS_SUCCESS && g->status == CUDNN_STATUS_SUCCESS) {
        g->status = status;
        g->call = call;
    }
}

static cudnnBackendDescriptor_t make(conv_graph *g, cudnnBackendDescriptorType_t type)
{
    cudnnBackendDescriptor_t made = NULL;
    if (g->status != CUDNN_STATUS_SUCCESS)
        return NULL;
    note_failure(g, g->count < CONV_DESCRIPTORS ? cudnnBackendCreateDescriptor(type, &made) : CUDNN_STATUS_INTERNAL_ERROR,
                 "cudnnBackendCreateDescriptor");
    if (made != NULL)
        g->item[g->count++] = made;
    return made;
}

static void set(conv_graph *g, cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t count, const void *values)
{
    if (g->status == CUDNN_STATUS_SUCCESS)
        note_failure(g, cudnnBackendSetAttribute(descriptor, name, type, count, values), "cudnnBackendSetAttribute");
}

static void set_one(conv_graph *g, cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                    cudnnBackendDescriptor_t value)
{
    set(g, descriptor, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static cudnnBackendDescriptor_t finalize(conv_graph *g, cudnnBackendDescriptor_t descriptor, const char *call)
{
    if (g->status == CUDNN_STATUS_SUCCESS)
        note_failure(g, cudnnBackendFinalize(descriptor), call);
    return descriptor;
}

/* ---- the graph ---- */

static cudnnDataType_t cudnn_dtype(int64_t dtype)
{
    switch (dtype) {
    case ASEN_F16: return CUDNN_DATA_HALF;
    case ASEN_BF16: return CUDNN_DATA_BFLOAT16;
    case ASEN_F64: return CUDNN_DATA_DOUBLE;
    default: return CUDNN_DATA_FLOAT;
    }
}

static cudnnDataType_t compute_dtype(const conv_spec *s)
{
    return s->dtype == ASEN_F64 ? CUDNN_DATA_DOUBLE : CUDNN_DATA_FLOAT;
}

/* Shape (a, b, c, d) that lies a, c, d, b in memory. */
static cudnnBackendDescriptor_t tensor(conv_graph *g, int64_t id, cudnnDataType_t dtype, bool is_virtual, int64_t a,
                                       int64_t b, int64_t c, int64_t d)
{
    int64_t shape[4] = {a, b, c, d}, stride[4] = {c * d * b, 1, d * b, b}, alignment = ALIGNMENT;
    cudnnBackendDescriptor_t t = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set(g, t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &dtype);
    set(g, t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, shape);
    set(g, t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride);
    set(g, t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    set(g, t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    if (is_virtual)
        set(g, t, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    return finalize(g, t, "cudnnBackendFinalize(tensor)");
}

static cudnnBackendDescriptor_t convolution(conv_graph *g, const conv_spec *s)
{
    int64_t dims = 2;
    cudnnDataType_t compute = compute_dtype(s);
    cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    cudnnBackendDescriptor_t d = make(g, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    set(g, d, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
    set(g, d, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set(g, d, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &dims);
    set(g, d, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, s->stride);
    set(g, d, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, s->padding);
    set(g, d, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, s->padding);
    set(g, d, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, s->dilation);
    return finalize(g, d, "cudnnBackendFinalize(convolution)");
}

/* The three kinds differ in names only: conv_kind indexes them. */
static const cudnnBackendDescriptorType_t operation_type[] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                                                              CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                                                              CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR};
static const struct {
    cudnnBackendAttributeName_t alpha, beta, convolution, x, w, y;
} names[] = {
    {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y},
    {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY},
    {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY}};

static cudnnBackendDescriptor_t convolve(conv_graph *g, const conv_spec *s, cudnnBackendDescriptor_t y)
{
    cudnnDataType_t dtype = cudnn_dtype(s->dtype);
    const double one[] = {1.0}, zero[] = {0.0};
    const float one_f = 1, zero_f = 0;
    bool wide = s->dtype == ASEN_F64;
    cudnnBackendAttributeType_t scalar = wide ? CUDNN_TYPE_DOUBLE : CUDNN_TYPE_FLOAT;
    cudnnBackendDescriptor_t x = tensor(g, CONV_X + 1, dtype, false, s->n, s->c, s->h, s->w);
    cudnnBackendDescriptor_t w = tensor(g, CONV_W + 1, dtype, false, s->o, s->c / s->groups, s->kh, s->kw);
    cudnnBackendDescriptor_t d = convolution(g, s);
    cudnnBackendDescriptor_t op = make(g, operation_type[s->kind]);
    set_one(g, op, names[s->kind].convolution, d);
    set_one(g, op, names[s->kind].x, x);
    set_one(g, op, names[s->kind].w, w);
    set_one(g, op, names[s->kind].y, y);
    set(g, op, names[s->kind].alpha, scalar, 1, wide ? (const void *)one : &one_f);
    set(g, op, names[s->kind].beta, scalar, 1, wide ? (const void *)zero : &zero_f);
    return finalize(g, op, "cudnnBackendFinalize(convolution operation)");
}

/* out = mode(a, b); b NULL for a function of one tensor. */
static cudnnBackendDescriptor_t pointwise(conv_graph *g, const conv_spec *s, cudnnPointwiseMode_t mode,
                                          cudnnBackendDescriptor_t a, cudnnBackendDescriptor_t b,
                                          cudnnBackendDescriptor_t out)
{
    cudnnDataType_t compute = compute_dtype(s);
    cudnnBackendDescriptor_t d = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(g, d, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set(g, d, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &compute);
    finalize(g, d, "cudnnBackendFinalize(pointwise)");
    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_one(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, d);
    set_one(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, a);
    if (b != NULL)
        set_one(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    set_one(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, out);
    return finalize(g, op, "cudnnBackendFinalize(pointwise operation)");
}

/* What convolve() and each pointwise() write: y for the last, before it an intermediate in the
 * compute type that stays in registers. */
static cudnnBackendDescriptor_t result(conv_graph *g, const conv_spec *s, int64_t id, bool last)
{
    return last ? tensor(g, CONV_Y + 1, cudnn_dtype(s->dtype), false, s->n, s->o, s->p, s->q)
                : tensor(g, id, compute_dtype(s), true, s->n, s->o, s->p, s->q);
}

/* Operations into ops[], at most 4: convolution, + residual, + bias, ReLU. In this order, and with a
 * bias, cuDNN has kernels ready; any other order it compiles at run time, a second a shape. */
static int operations(conv_graph *g, const conv_spec *s, cudnnBackendDescriptor_t *ops)
{
    cudnnDataType_t dtype = cudnn_dtype(s->dtype);
    int count = 0, left = (s->bias != 0) + (s->residual != 0) + (s->relu != 0);
    int64_t id = CONV_TENSORS + 1;
    cudnnBackendDescriptor_t value = result(g, s, id++, left == 0);
    ops[count++] = convolve(g, s, value);
    if (s->residual) {
        cudnnBackendDescriptor_t r = tensor(g, CONV_RESIDUAL + 1, dtype, false, s->n, s->o, s->p, s->q);
        cudnnBackendDescriptor_t sum = result(g, s, id++, --left == 0);
        ops[count++] = pointwise(g, s, CUDNN_POINTWISE_ADD, value, r, sum);
        value = sum;
    }
    if (s->bias) {
        cudnnBackendDescriptor_t b = tensor(g, CONV_BIAS + 1, dtype, false, 1, s->o, 1, 1);
        cudnnBackendDescriptor_t sum = result(g, s, id++, --left == 0);
        ops[count++] = pointwise(g, s, CUDNN_POINTWISE_ADD, value, b, sum);
        value = sum;
    }
    if (s->relu)
        ops[count++] = pointwise(g, s, CUDNN_POINTWISE_RELU_FWD, value, NULL, result(g, s, id++, true));
    return count;
}

/* NULL where there is no memory. Look at status for the rest. */
static conv_graph *graph_new(const conv_target *target, const conv_spec *s)
{
    cudnnBackendDescriptor_t ops[4];
    conv_graph *g = calloc(1, sizeof *g);
    if (g == NULL)
        return NULL;
    g->refs = 1;
    int count = operations(g, s, ops);
    g->graph = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, g->graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, count, ops);
    if (target->handle != NULL)
        set(g, g->graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &target->handle);
    finalize(g, g->graph, "cudnnBackendFinalize(operation graph)");
    return g;
}

/* ---- the filter ---- */

unsigned conv_refused_notes(const conv_spec *spec, int sm)
{
    /* Winograd in float32 stays float32; tiles of 4x4 inputs cost it about a bit, larger ones several. */
    unsigned refused = NOTE(NONDETERMINISTIC) | NOTE(REDUCED_PRECISION_REDUCTION) | NOTE(DOWN_CONVERT_INPUTS) |
                       NOTE(WINOGRAD_TILE_6x6) | NOTE(WINOGRAD_TILE_13x13);
    /* A float32 kernel on tensor cores is one in TF32, since sm_80; before, one in float16. */
    if (spec->dtype == ASEN_F32 && !(spec->tf32 && sm >= 80))
        refused |= NOTE(TENSOR_CORE);
    return refused;
}

/* Compiling takes up to two seconds for each shape, and evaluation has many batch sizes; what needs
 * reordered filters would read ours wrongly. */
static const unsigned refused_behavior = BEHAVIOR(RUNTIME_COMPILATION) | BEHAVIOR(REQUIRES_FILTER_INT8x32_REORDER) |
                                         BEHAVIOR(REQUIRES_BIAS_INT8x32_REORDER);

/* Engines that want N, C, H, W rearrange both activations: as much as these must be granted, since in float32 the
 * next best engine is a hundred times slower. What wants over a quarter of a GiB more buys speed with memory
 * that batches need. */
static int64_t workspace_limit(const conv_spec *s)
{
    int64_t size = s->dtype == ASEN_F64 ? 8 : s->dtype == ASEN_F32 ? 4 : 2;
    int64_t x = s->n * s->c * s->h * s->w * size, y = s->n * s->o * s->p * s->q * size;
    return ((int64_t)256 << 20) + x + y;
}

/* ---- plans ---- */

/* Whether cuDNN has nothing for what it was asked: the one answer that a search passes over. Memory that ran out, a broken
 * installation, a failed execution or a wrong call say nothing about a candidate, and the next one would be taken for good. */
static bool unsupported(cudnnStatus_t status)
{
    return CUDNN_STATUS_CATEGORY(status) == CUDNN_STATUS_NOT_SUPPORTED;
}

static void remember(conv_search *search, cudnnStatus_t status, const char *call)
{
    search->status = status;
    search->call = call;
    search->why[0] = '\0';
    cudnnGetLastErrorString(search->why, sizeof search->why);
}

/* Leaves what a call answers in `status`; where that is no success, remembers it in `search` and goes to `done`. */
#define SEARCH_STEP(call)                                                                                              \
    do {                                                                                                               \
        status = (call);                                                                                               \
        if (status != CUDNN_STATUS_SUCCESS) {                                                                          \
            remember(search, status, #call);                                                                           \
            goto done;                                                                                                 \
        }                                                                                                              \
    } while (0)

/* What a search that met `status` returns: ASEN_DECLINED where cuDNN has nothing. */
static int outcome(cudnnStatus_t status, const conv_search *search, const conv_spec *spec)
{
    if (status == CUDNN_STATUS_SUCCESS)
        return ASEN_OK;
    return unsupported(status) ? ASEN_DECLINED : fail(status, search->call, search->why, spec);
}

/* The notes of a configuration's engine as bits, and its number. */
static cudnnStatus_t engine_notes(cudnnBackendDescriptor_t config, conv_plan *out, conv_search *search)
{
    cudnnBackendDescriptor_t engine = NULL;
    cudnnBackendNumericalNote_t note[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    cudnnBackendBehaviorNote_t behavior[CUDNN_BEHAVIOR_NOTE_TYPE_COUNT];
    int64_t count = 0, notes = 0, behaviors = 0;
    cudnnStatus_t status;
    SEARCH_STEP(cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine));
    SEARCH_STEP(cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &engine));
    SEARCH_STEP(cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &count, &out->engine));
    SEARCH_STEP(cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                         CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &notes, note));
    SEARCH_STEP(cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE,
                                         CUDNN_BEHAVIOR_NOTE_TYPE_COUNT, &behaviors, behavior));
    for (int64_t i = 0; i < notes && i < CUDNN_NUMERICAL_NOTE_TYPE_COUNT; i++)
        out->notes |= 1u << note[i];
    for (int64_t i = 0; i < behaviors && i < CUDNN_BEHAVIOR_NOTE_TYPE_COUNT; i++)
        out->behavior |= 1u << behavior[i];
done:
    if (engine != NULL)
        cudnnBackendDestroyDescriptor(engine);
    return status;
}

static cudnnStatus_t build(const conv_target *target, cudnnBackendDescriptor_t config, conv_plan *out, conv_search *search)
{
    int64_t count = 0;
    cudnnStatus_t status;
    SEARCH_STEP(cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &out->plan));
    if (target->handle != NULL)
        SEARCH_STEP(cudnnBackendSetAttribute(out->plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &target->handle));
    else
        SEARCH_STEP(cudnnBackendSetAttribute(out->plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                             &target->device));
    SEARCH_STEP(cudnnBackendSetAttribute(out->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                         &config));
    SEARCH_STEP(cudnnBackendFinalize(out->plan));
    SEARCH_STEP(cudnnBackendGetAttribute(out->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count,
                                         &out->workspace));
done:
    if (status != CUDNN_STATUS_SUCCESS && out->plan != NULL) {
        cudnnBackendDestroyDescriptor(out->plan);
        out->plan = NULL;
    }
    return status;
}

/* ASEN_OK: `config` became a plan, and *out owns both. ASEN_DECLINED: it does not become one. */
static int accept(const conv_target *target, const conv_spec *spec, unsigned refused, conv_graph *graph,
                  cudnnBackendDescriptor_t config, conv_plan *out, conv_search *search)
{
    *out = (conv_plan){0};
    search->proposed++;
    cudnnStatus_t status = engine_notes(config, out, search);
    if (status == CUDNN_STATUS_SUCCESS && (out->notes & refused || out->behavior & refused_behavior)) {
        search->refused++;
        search->refused_notes |= out->notes & refused;
        search->refused_behavior |= out->behavior & refused_behavior;
        return ASEN_DECLINED;
    }
    if (status == CUDNN_STATUS_SUCCESS)
        status = build(target, config, out, search);
    search->unbuildable += unsupported(status);
    CUDA_OK(outcome(status, search, spec));
    if (out->workspace > workspace_limit(spec)) {
        search->too_large++;
        cudnnBackendDestroyDescriptor(out->plan);
        *out = (conv_plan){0};
        return ASEN_DECLINED;
    }
    out->config = config;
    out->graph = graph;
    graph->refs++;
    return ASEN_OK;
}

/* The configurations that one heuristic proposes: *count new descriptors in configs[MAX_CONFIGS], none after a failure. */
static cudnnStatus_t propose(const conv_target *target, conv_graph *graph, cudnnBackendHeurMode_t mode,
                             cudnnBackendDescriptor_t *configs, int *count, conv_search *search)
{
    cudnnBackendDescriptor_t heuristic = NULL;
    int64_t have = 0, made = 0;
    cudnnStatus_t status;
    SEARCH_STEP(cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, &heuristic));
    SEARCH_STEP(cudnnBackendSetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                         &graph->graph));
    SEARCH_STEP(cudnnBackendSetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode));
    if (target->handle == NULL)
        SEARCH_STEP(cudnnBackendSetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                             &target->device));
    SEARCH_STEP(cudnnBackendFinalize(heuristic));
    for (; made < MAX_CONFIGS; made++)
        SEARCH_STEP(cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &configs[made]));
    SEARCH_STEP(cudnnBackendGetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, MAX_CONFIGS,
                                         &have, configs));
done:
    if (status != CUDNN_STATUS_SUCCESS)
        have = 0;
    have = have < made ? have : made;
    while (made > have)
        cudnnBackendDestroyDescriptor(configs[--made]);
    if (heuristic != NULL)
        cudnnBackendDestroyDescriptor(heuristic);
    *count = (int)have;
    return status;
}

/* Tries what one heuristic proposes, until `wanted` plans are found. */
static int search_mode(const conv_target *target, const conv_spec *spec, unsigned refused, conv_graph *graph,
                       cudnnBackendHeurMode_t mode, int wanted, conv_plan *plans, int *found, conv_search *search)
{
    cudnnBackendDescriptor_t configs[MAX_CONFIGS];
    int count = 0, status = outcome(propose(target, graph, mode, configs, &count, search), search, spec);
    for (int i = 0; i < count; i++) {
        int accepted = ASEN_DECLINED;
        if (status == ASEN_OK && *found < wanted)
            accepted = accept(target, spec, refused, graph, configs[i], &plans[*found], search);
        if (accepted == ASEN_OK) {
            ++*found;
            continue;
        }
        cudnnBackendDestroyDescriptor(configs[i]);
        if (accepted != ASEN_DECLINED)
            status = accepted;
    }
    return status == ASEN_DECLINED ? ASEN_OK : status;
}

int conv_plans_find(const conv_target *target, const conv_spec *spec, unsigned refused, int wanted, conv_plan *plans,
                    int *found, conv_search *search)
{
    static const cudnnBackendHeurMode_t modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
    int status = ASEN_OK;
    *found = 0;
    *search = (conv_search){0};
    conv_graph *graph = graph_new(target, spec);
    if (graph == NULL)
        return cuda_host.fail(ASEN_ERR_MEMORY, "no memory for a graph descriptor");
    if (graph->status != CUDNN_STATUS_SUCCESS) {
        remember(search, graph->status, graph->call);
        status = outcome(graph->status, search, spec);
    }
    for (int m = 0; m < 2 && status == ASEN_OK && *found < wanted; m++)
        status = search_mode(target, spec, refused, graph, modes[m], wanted, plans, found, search);
    graph_release(graph);
    if (status == ASEN_OK || status == ASEN_DECLINED)
        return ASEN_OK;
    while (*found > 0)
        conv_plan_free(&plans[--*found]);
    return status;
}

const char *conv_search_text(const conv_search *search, char *buffer, size_t size)
{
    size_t n = (size_t)snprintf(buffer, size, "%d proposed, %d refused for their precision or for being compiled at run time, "
                                "%d want too much memory", search->proposed, search->refused, search->too_large);
    if (search->call != NULL && n < size)
        snprintf(buffer + n, size - n, ", %d cannot be built: %.*s: %s%s%s", search->unbuildable,
                 (int)strcspn(search->call, "("), search->call, cudnnGetErrorString(search->status),
                 search->why[0] ? ": " : "", search->why);
    return buffer;
}

void conv_plan_free(conv_plan *plan)
{
    if (plan->plan != NULL)
        cudnnBackendDestroyDescriptor(plan->plan);
    if (plan->config != NULL)
        cudnnBackendDestroyDescriptor(plan->config);
    graph_release(plan->graph);
    *plan = (conv_plan){0};
}

/* ---- running ---- */

int conv_plan_run(cudnnHandle_t handle, const conv_spec *spec, const conv_plan *plan, void *const data[CONV_TENSORS],
                  void *workspace)
{
    void *address[CONV_TENSORS];
    int64_t id[CONV_TENSORS], count = 0;
    conv_search met, *search = &met;
    cudnnBackendDescriptor_t pack = NULL;
    cudnnStatus_t status;
    for (int i = 0; i < CONV_TENSORS; i++)
        if ((i != CONV_BIAS || spec->bias) && (i != CONV_RESIDUAL || spec->residual)) {
            id[count] = i + 1;
            address[count++] = data[i];
        }
    SEARCH_STEP(cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack));
    SEARCH_STEP(cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, id));
    SEARCH_STEP(cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, address));
    SEARCH_STEP(cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace));
    SEARCH_STEP(cudnnBackendFinalize(pack));
    SEARCH_STEP(cudnnBackendExecute(handle, plan->plan, pack));
done:
    if (pack != NULL)
        cudnnBackendDestroyDescriptor(pack);
    return status == CUDNN_STATUS_SUCCESS ? ASEN_OK : fail(status, met.call, met.why, spec);
}
