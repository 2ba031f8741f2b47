/* cuDNN's backend API: descriptors as typed attributes, checked when set, finalized and executed. What hardware
 * would answer with CUDNN_STATUS_BAD_PARAM is a fault of the caller and is reported as one; that a graph or an engine
 * is not supported is an answer. */
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cudnn_sim.h"

using namespace cudasim;

namespace {

struct rule {
    int name;
    cudnnBackendAttributeType_t type;
    int64_t min, max; /* elements; min 0: may be left out */
    bool read_only;
};

const cudnnBackendAttributeType_t D = CUDNN_TYPE_BACKEND_DESCRIPTOR, I = CUDNN_TYPE_INT64;
const int64_t MANY = 1 << 16;
#define CONVOLUTION_RULES(kind, x, w, y)                                                                               \
    {{CUDNN_ATTR_OPERATION_CONVOLUTION_##kind##_ALPHA, CUDNN_TYPE_FLOAT, 1, 1, false},                                 \
     {CUDNN_ATTR_OPERATION_CONVOLUTION_##kind##_BETA, CUDNN_TYPE_FLOAT, 1, 1, false},                                  \
     {CUDNN_ATTR_OPERATION_CONVOLUTION_##kind##_CONV_DESC, D, 1, 1, false},                                            \
     {CUDNN_ATTR_OPERATION_CONVOLUTION_##kind##_##x, D, 1, 1, false},                                                  \
     {CUDNN_ATTR_OPERATION_CONVOLUTION_##kind##_##w, D, 1, 1, false},                                                  \
     {CUDNN_ATTR_OPERATION_CONVOLUTION_##kind##_##y, D, 1, 1, false}}

const std::map<int, std::vector<rule>> &rules()
{
    static const std::map<int, std::vector<rule>> all = {
        {CUDNN_BACKEND_TENSOR_DESCRIPTOR,
         {{CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, 1, false},
          {CUDNN_ATTR_TENSOR_DIMENSIONS, I, 1, CUDNN_DIM_MAX, false},
          {CUDNN_ATTR_TENSOR_STRIDES, I, 1, CUDNN_DIM_MAX, false},
          {CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, I, 1, 1, false},
          {CUDNN_ATTR_TENSOR_UNIQUE_ID, I, 1, 1, false},
          {CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 0, 1, false}}},
        {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR,
         {{CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, 1, false},
          {CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, 1, false},
          {CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, I, 1, 1, false},
          {CUDNN_ATTR_CONVOLUTION_DILATIONS, I, 1, CUDNN_DIM_MAX, false},
          {CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, I, 1, CUDNN_DIM_MAX, false},
          {CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, I, 1, CUDNN_DIM_MAX, false},
          {CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, I, 1, CUDNN_DIM_MAX, false}}},
        {CUDNN_BACKEND_POINTWISE_DESCRIPTOR,
         {{CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, 1, false},
          {CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, 1, false}}},
        {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR, CONVOLUTION_RULES(FORWARD, X, W, Y)},
        {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR, CONVOLUTION_RULES(BWD_DATA, DX, W, DY)},
        {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR, CONVOLUTION_RULES(BWD_FILTER, X, DW, DY)},
        {CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR,
         {{CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, D, 1, 1, false},
          {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, D, 1, 1, false},
          {CUDNN_ATTR_OPERATION_POINTWISE_BDESC, D, 0, 1, false},
          {CUDNN_ATTR_OPERATION_POINTWISE_YDESC, D, 1, 1, false}}},
        {CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR,
         {{CUDNN_ATTR_OPERATIONGRAPH_OPS, D, 1, MANY, false},
          {CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 0, 1, false}}},
        {CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR,
         {{CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, D, 1, 1, false},
          {CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, 1, false},
          {CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, D, 0, 1, false},
          {CUDNN_ATTR_ENGINEHEUR_RESULTS, D, 0, MANY, true}}},
        {CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, {{CUDNN_ATTR_ENGINECFG_ENGINE, D, 1, 1, false}}},
        {CUDNN_BACKEND_ENGINE_DESCRIPTOR,
         {{CUDNN_ATTR_ENGINE_OPERATION_GRAPH, D, 1, 1, false},
          {CUDNN_ATTR_ENGINE_GLOBAL_INDEX, I, 1, 1, false},
          {CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, 0, MANY, true},
          {CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE, 0, MANY, true}}},
        {CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR,
         {{CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 0, 1, false},
          {CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, D, 0, 1, false},
          {CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, D, 1, 1, false},
          {CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, I, 0, 1, true}}},
        {CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR,
         {{CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, I, 1, MANY, false},
          {CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 1, MANY, false},
          {CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 0, 1, false}}},
        {CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR,
         {{CUDNN_ATTR_DEVICEPROP_DEVICE_ID, CUDNN_TYPE_INT32, 0, 1, false},
          {CUDNN_ATTR_DEVICEPROP_HANDLE, CUDNN_TYPE_HANDLE, 0, 1, false},
          {CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, 0, MANY, false}}},
    };
    return all;
}

const rule *rule_of(const descriptor &d, int name)
{
    for (const rule &r : rules().at(d.type))
        if (r.name == name)
            return &r;
    return nullptr;
}

size_t element_size(cudnnBackendAttributeType_t type)
{
    switch (type) {
    case CUDNN_TYPE_BOOLEAN: return sizeof(bool);
    case CUDNN_TYPE_CHAR: return 1;
    case CUDNN_TYPE_HANDLE: case CUDNN_TYPE_INT64: case CUDNN_TYPE_DOUBLE: case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR: return 8;
    default: return 4;
    }
}

struct cudnn_handle {
    cudaStream_t stream = nullptr;
};

std::string &last_message = *new std::string;
size_t plan_needs; /* bytes that must be free for a plan to be made */
int64_t last_engine;

cudnnStatus_t answer(cudnnStatus_t status, const std::string &text)
{
    last_message = text;
    return status;
}

/* A fault of the caller. */
cudnnStatus_t wrong(const char *call, cudnnStatus_t status, const std::string &text)
{
    violation("%s: %s", call, text.c_str());
    return answer(status, text);
}

descriptor *descriptor_of(const char *call, cudnnBackendDescriptor_t handle)
{
    if (handle && live_has("cudnn", handle))
        return (descriptor *)handle;
    wrong(call, CUDNN_STATUS_BAD_PARAM, "a descriptor is used that does not exist (any more)");
    return nullptr;
}

bool handle_ok(const char *call, const void *handle)
{
    if (handle && live_has("cudnn handle", handle))
        return chosen_is(call, "the handle", live_device(handle));
    wrong(call, CUDNN_STATUS_BAD_PARAM, "a handle is used that does not exist (any more)");
    return false;
}

/* Everything that a descriptor was made from must be there, and finalized. */
bool parts_alive(const descriptor &d)
{
    for (const descriptor *part : d.made_from)
        if (part->destroyed || !parts_alive(*part))
            return false;
    return true;
}

/* The kind of descriptor that an attribute wants; -1: any. */
int wanted_type(int name)
{
    switch (name) {
    case CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR: return CUDNN_BACKEND_POINTWISE_DESCRIPTOR;
    case CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC: case CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC:
    case CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC: return CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR;
    case CUDNN_ATTR_OPERATIONGRAPH_OPS: return -1;
    case CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH: case CUDNN_ATTR_ENGINE_OPERATION_GRAPH: return CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR;
    case CUDNN_ATTR_ENGINECFG_ENGINE: return CUDNN_BACKEND_ENGINE_DESCRIPTOR;
    case CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG: return CUDNN_BACKEND_ENGINECFG_DESCRIPTOR;
    case CUDNN_ATTR_ENGINEHEUR_DEVICEPROP: case CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP: return CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR;
    default: return CUDNN_BACKEND_TENSOR_DESCRIPTOR;
    }
}

cudnnStatus_t give(void *out, int64_t wanted, int64_t *count, const void *from, int64_t have, size_t size)
{
    if (count)
        *count = have;
    if (out)
        memcpy(out, from, (size_t)(wanted < have ? wanted : have) * size);
    return CUDNN_STATUS_SUCCESS;
}

/* Fills a descriptor that the caller made: it must be of the type and fresh. */
cudnnStatus_t fill(cudnnBackendDescriptor_t handle, cudnnBackendDescriptorType_t type, const std::shared_ptr<graph> &meaning,
                   const engine &e, const descriptor *from)
{
    const char *call = "cudnnBackendGetAttribute";
    descriptor *d = descriptor_of(call, handle);
    if (d == nullptr || d->type != type || d->finalized)
        return wrong(call, CUDNN_STATUS_BAD_PARAM, std::string("results want fresh descriptors of the type ") + type_name(type));
    d->meaning = meaning;
    d->choice = std::make_shared<engine>(e);
    d->finalized = true;
    d->made_from = from->made_from;
    return CUDNN_STATUS_SUCCESS;
}

} // namespace

#define ENTER(name, status)                                                                                            \
    static const char *const call_ = #name;                                                                            \
    lock_t lock_;                                                                                                      \
    if (CUDASIM_API_FAILS(name))                                                                                       \
        return answer((cudnnStatus_t)failure(status), "a failure was asked for");                                                             \
    if (device_error() != cudaSuccess || sticky() != cudaSuccess)                                                      \
    return answer(CUDNN_STATUS_EXECUTION_FAILED_CUDART, "the device has failed before")

extern "C" {

/* CUDASIM_CUDNN="9.1.0 12.4": which cuDNN the loader found, and for which CUDA. */
static void found_cudnn(int v[5])
{
    const char *text = getenv("CUDASIM_CUDNN");
    int own[5] = {CUDNN_MAJOR, CUDNN_MINOR, CUDNN_PATCHLEVEL, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10};
    if (text == nullptr || sscanf(text, "%d.%d.%d %d.%d", &v[0], &v[1], &v[2], &v[3], &v[4]) != 5)
        memcpy(v, own, sizeof own);
}
size_t cudnnGetVersion(void)
{
    int v[5];
    found_cudnn(v);
    return (size_t)(v[0] * 10000 + v[1] * 100 + v[2]);
}
size_t cudnnGetCudartVersion(void)
{
    int v[5];
    found_cudnn(v);
    return (size_t)(v[3] * 1000 + v[4] * 10);
}

const char *cudnnGetErrorString(cudnnStatus_t status)
{
    switch ((int)status) {
    case CUDNN_STATUS_SUCCESS: return "CUDNN_STATUS_SUCCESS";
    case CUDNN_STATUS_NOT_INITIALIZED: return "CUDNN_STATUS_NOT_INITIALIZED";
    case CUDNN_STATUS_BAD_PARAM: return "CUDNN_STATUS_BAD_PARAM";
    case CUDNN_STATUS_NOT_SUPPORTED: return "CUDNN_STATUS_NOT_SUPPORTED";
    case CUDNN_STATUS_INTERNAL_ERROR: return "CUDNN_STATUS_INTERNAL_ERROR";
    case CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED: return "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED";
    case CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED: return "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED";
    case CUDNN_STATUS_EXECUTION_FAILED: return "CUDNN_STATUS_EXECUTION_FAILED";
    case CUDNN_STATUS_EXECUTION_FAILED_CUDART: return "CUDNN_STATUS_EXECUTION_FAILED_CUDART";
    default: return "CUDNN_STATUS_ (another one)";
    }
}

void cudnnGetLastErrorString(char *message, size_t size)
{
    lock_t lock;
    if (size)
        snprintf(message, size, "%s", last_message.c_str());
    last_message.clear();
}

cudnnStatus_t cudnnCreate(cudnnHandle_t *out)
{
    *out = nullptr;
    ENTER(cudnnCreate, CUDNN_STATUS_NOT_INITIALIZED);
    (void)call_;
    cudnn_handle *h = new cudnn_handle; /* never deleted: a handle is never given twice */
    live_add("cudnn handle", h, "cuDNN handle");
    *out = (cudnnHandle_t)h;
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle)
{
    lock_t lock;
    if (!handle_ok("cudnnDestroy", handle))
        return CUDNN_STATUS_BAD_PARAM;
    queue_run_all();
    live_remove("cudnn handle", handle);
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream)
{
    ENTER(cudnnSetStream, CUDNN_STATUS_BAD_PARAM);
    if (!handle_ok(call_, handle) || !queue_stream_ok(stream))
        return CUDNN_STATUS_BAD_PARAM;
    ((cudnn_handle *)handle)->stream = stream;
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t *out)
{
    lock_t lock;
    if (!handle_ok("cudnnGetStream", handle))
        return CUDNN_STATUS_BAD_PARAM;
    *out = ((cudnn_handle *)handle)->stream;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *out)
{
    if (out == nullptr)
        return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
    *out = nullptr;
    ENTER(cudnnBackendCreateDescriptor, CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED);
    if (type_name(type) == nullptr)
        return wrong(call_, CUDNN_STATUS_NOT_SUPPORTED, "descriptor type " + std::to_string((int)type) + " is not simulated");
    descriptor *d = new descriptor{};
    d->type = type;
    live_add("cudnn", d, type_name(type));
    *out = (cudnnBackendDescriptor_t)d;
    return CUDNN_STATUS_SUCCESS;
}

/* The object itself stays, emptied: others remember it, and a handle is never given twice. */
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t handle)
{
    lock_t lock;
    descriptor *d = descriptor_of("cudnnBackendDestroyDescriptor", handle);
    if (d == nullptr)
        return CUDNN_STATUS_BAD_PARAM;
    auto type = d->type;
    *d = descriptor{};
    d->type = type;
    d->destroyed = true;
    live_remove("cudnn", handle);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t handle, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void *elements)
{
    ENTER(cudnnBackendSetAttribute, CUDNN_STATUS_INTERNAL_ERROR);
    descriptor *d = descriptor_of(call_, handle);
    if (d == nullptr)
        return CUDNN_STATUS_BAD_PARAM;
    std::string what = "attribute " + std::to_string((int)name) + " of a " + type_name(d->type);
    const rule *r = rule_of(*d, name);
    if (elements == nullptr)
        return wrong(call_, CUDNN_STATUS_BAD_PARAM_NULL_POINTER, what + ": no elements");
    if (d->finalized)
        return wrong(call_, CUDNN_STATUS_BAD_PARAM, what + " is set after finalizing");
    if (r == nullptr || r->read_only)
        return wrong(call_, CUDNN_STATUS_NOT_SUPPORTED, what + (r ? " cannot be set" : " is not simulated"));
    if (type != r->type && !(r->type == CUDNN_TYPE_FLOAT && type == CUDNN_TYPE_DOUBLE))
        return wrong(call_, CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE, what + " is of another type");
    if (count < 1 || count > r->max)
        return wrong(call_, CUDNN_STATUS_BAD_PARAM_OUT_OF_BOUND, what + " has " + std::to_string(count) + " elements");
    if (type == CUDNN_TYPE_HANDLE && !handle_ok(call_, *(void *const *)elements))
        return CUDNN_STATUS_BAD_PARAM;
    for (int64_t i = 0; type == D && i < count; i++) {
        descriptor *part = descriptor_of(call_, ((const cudnnBackendDescriptor_t *)elements)[i]);
        if (part == nullptr)
            return CUDNN_STATUS_BAD_PARAM;
        if (!part->finalized)
            return wrong(call_, CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, what + ": the " + type_name(part->type) + " is not finalized");
        if (wanted_type(name) >= 0 && part->type != wanted_type(name))
            return wrong(call_, CUDNN_STATUS_BAD_PARAM, what + " is a " + type_name(part->type));
        d->made_from.push_back(part);
    }
    value v{type, count, {}};
    v.bytes.assign((const char *)elements, (const char *)elements + (size_t)count * element_size(type));
    d->attributes[name] = v;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t handle)
{
    ENTER(cudnnBackendFinalize, CUDNN_STATUS_INTERNAL_ERROR);
    descriptor *d = descriptor_of(call_, handle);
    std::string why;
    if (d == nullptr)
        return CUDNN_STATUS_BAD_PARAM;
    std::string name = type_name(d->type);
    if (d->finalized)
        return wrong(call_, CUDNN_STATUS_BAD_PARAM, "a " + name + " is finalized twice");
    for (const rule &r : rules().at(d->type))
        if (r.min > 0 && !r.read_only && !d->has(r.name))
            return wrong(call_, CUDNN_STATUS_BAD_PARAM, "a " + name + " lacks attribute " + std::to_string(r.name));
    if (d->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR && !d->has(CUDNN_ATTR_EXECUTION_PLAN_HANDLE) &&
        !d->has(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP))
        return wrong(call_, CUDNN_STATUS_BAD_PARAM, "an execution plan lacks handle and device property");
    if (!parts_alive(*d))
        return wrong(call_, CUDNN_STATUS_BAD_PARAM, "something that a " + name + " was made from is destroyed");
    size_t free_bytes, total;
    memory_info(&free_bytes, &total);
    if (d->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR && free_bytes < plan_needs)
        return answer(CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, "the GPU has no memory left for the plan");
    cudnnStatus_t status = finalize_check(*d, &why);
    if (status != CUDNN_STATUS_SUCCESS)
        return CUDNN_STATUS_CATEGORY(status) == 3000 ? answer(status, why) : wrong(call_, status, why);
    d->finalized = true;
    return status;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const handle, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t wanted, int64_t *count, void *elements)
{
    ENTER(cudnnBackendGetAttribute, CUDNN_STATUS_INTERNAL_ERROR);
    descriptor *d = descriptor_of(call_, handle);
    if (d == nullptr)
        return CUDNN_STATUS_BAD_PARAM;
    std::string what = "attribute " + std::to_string((int)name) + " of a " + type_name(d->type);
    const rule *r = rule_of(*d, name);
    if (!d->finalized)
        return wrong(call_, CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, what + " is read before finalizing");
    if (r == nullptr || type != r->type)
        return wrong(call_, CUDNN_STATUS_BAD_PARAM, what + (r ? " is of another type" : " is not simulated"));
    if (wanted < 0 || (wanted > 0 && elements == nullptr))
        return wrong(call_, CUDNN_STATUS_BAD_PARAM, what + ": no room for elements");
    switch ((int)name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS: {
        int64_t have = (int64_t)d->proposals.size();
        if (elements)
            for (int64_t i = 0; i < have && i < wanted; i++) {
                cudnnStatus_t status = fill(((cudnnBackendDescriptor_t *)elements)[i], CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
                                            d->meaning, d->proposals[(size_t)i], d);
                if (status != CUDNN_STATUS_SUCCESS)
                    return status;
            }
        if (count)
            *count = wanted == 0 ? have : have < wanted ? have : wanted;
        return CUDNN_STATUS_SUCCESS;
    }
    case CUDNN_ATTR_ENGINECFG_ENGINE:
        if (count)
            *count = 1;
        return fill(*(cudnnBackendDescriptor_t *)elements, CUDNN_BACKEND_ENGINE_DESCRIPTOR, d->meaning, *d->choice, d);
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX: return give(elements, wanted, count, &d->choice->index, 1, 8);
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE:
        return give(elements, wanted, count, d->choice->notes.data(), (int64_t)d->choice->notes.size(), 4);
    case CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE:
        return give(elements, wanted, count, d->choice->behavior.data(), (int64_t)d->choice->behavior.size(), 4);
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE: return give(elements, wanted, count, &d->choice->workspace, 1, 8);
    default: break;
    }
    if (!d->has(name))
        return wrong(call_, CUDNN_STATUS_BAD_PARAM, what + " was not set");
    const value &v = d->get(name);
    return give(elements, wanted, count, v.bytes.data(), v.count, element_size(v.type));
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan_handle, cudnnBackendDescriptor_t pack_handle)
{
    ENTER(cudnnBackendExecute, CUDNN_STATUS_EXECUTION_FAILED);
    descriptor *plan = descriptor_of(call_, plan_handle), *pack = descriptor_of(call_, pack_handle);
    if (!handle_ok(call_, handle) || plan == nullptr || pack == nullptr)
        return CUDNN_STATUS_BAD_PARAM;
    auto bad = [](const std::string &text) { return wrong(call_, CUDNN_STATUS_BAD_PARAM, text); };
    if (plan->type != CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR || pack->type != CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)
        return bad("a plan and a variant pack are wanted");
    if (!plan->finalized || !pack->finalized)
        return wrong(call_, CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "the plan or the variant pack is not finalized");
    if (!parts_alive(*plan))
        return bad("something that the plan was made from is destroyed");
    if (!plan->has(CUDNN_ATTR_EXECUTION_PLAN_HANDLE) ||
        plan->get(CUDNN_ATTR_EXECUTION_PLAN_HANDLE).at<cudnnHandle_t>() != handle)
        return bad("the plan was made for another handle, or for none");
    std::map<int64_t, void *> data;
    const value &ids = pack->get(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS), &pointers = pack->get(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
    for (int64_t i = 0; i < ids.count; i++)
        data[ids.at<int64_t>(i)] = pointers.at<void *>(i);
    std::string why;
    for (auto &t : plan->meaning->tensors) {
        if (t.second.is_virtual)
            continue;
        auto found = data.find(t.first);
        std::string id = "tensor " + std::to_string(t.first);
        if (found == data.end() || found->second == nullptr)
            return bad(id + " has no pointer");
        if ((uintptr_t)found->second % (uintptr_t)t.second.alignment != 0)
            return wrong(call_, CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER, id + " is not aligned to what its descriptor says");
        if (!memory_covers(found->second, t.second.bytes(), &why))
            return bad(id + " lies in " + why);
    }
    for (auto &p : data) {
        auto t = plan->meaning->tensors.find(p.first);
        if (t == plan->meaning->tensors.end() || t->second.is_virtual)
            return bad("the variant pack has a pointer for " + std::to_string(p.first) + ", which the graph lacks");
    }
    const tensor &out = plan->meaning->operations.back().out();
    char *out_first = (char *)data[out.uid], *out_last = out_first + out.bytes();
    for (auto &p : data)
        if (p.first != out.uid && (char *)p.second < out_last && (char *)p.second + plan->meaning->tensors[p.first].bytes() > out_first)
            return bad("the output overlaps tensor " + std::to_string(p.first));
    void *workspace = pack->has(CUDNN_ATTR_VARIANT_PACK_WORKSPACE) ? pack->get(CUDNN_ATTR_VARIANT_PACK_WORKSPACE).at<void *>() : nullptr;
    size_t bytes = (size_t)plan->choice->workspace;
    if (bytes && (workspace == nullptr || (uintptr_t)workspace % 16 != 0 || !memory_covers(workspace, bytes, &why)))
        return bad("the workspace is missing, unaligned or too small: " + why);
    auto meaning = plan->meaning;
    auto choice = plan->choice;
    std::string name = std::string("cudnn ") + (meaning->operations.size() > 1                       ? "fused"
                                                : meaning->operations[0].kind == op_kind::forward       ? "forward"
                                                : meaning->operations[0].kind == op_kind::backward_data ? "backward data"
                                                                                                        : "backward filter");
    launch_count(name.c_str());
    last_engine = choice->index;
    cudaError_t error = queue_push(((cudnn_handle *)handle)->stream, "cudnnBackendExecute", [=] {
        run_as_kernel(name.c_str(), [&] {
            if (bytes)
                memset(workspace, 0xFF, bytes);
            graph_run(*meaning, *choice, data);
        });
    });
    return error == cudaSuccess ? CUDNN_STATUS_SUCCESS : answer(CUDNN_STATUS_EXECUTION_FAILED_CUDART, "the handle's stream is gone");
}

} // extern "C"

/* Plans are made only where so many bytes of the device's memory are free. */
CUDASIM_EXPORT void cudasim_plan_needs(unsigned long long bytes)
{
    lock_t lock;
    plan_needs = (size_t)bytes;
}

/* The engine of the plan that was executed last. */
CUDASIM_EXPORT long long cudasim_last_engine(void) { return last_engine; }
