/* What cuDNN's descriptors mean, checked when they are finalized, and which engines a graph has.
 *
 * Engines stand in for what cuDNN proposes on hardware: for float32 since sm_80 first those that round inputs to
 * TF32, then one that is compiled at run time, one whose plan does not build, one that is not deterministic, one with
 * a huge workspace, and at last an honest one. Each does what it notes. */
#include <algorithm>
#include <set>

#include "cudnn_sim.h"

namespace cudasim {

const char *type_name(cudnnBackendDescriptorType_t type)
{
    switch (type) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR: return "tensor";
    case CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR: return "convolution";
    case CUDNN_BACKEND_POINTWISE_DESCRIPTOR: return "pointwise";
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR: return "forward operation";
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR: return "backward data operation";
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR: return "backward filter operation";
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR: return "pointwise operation";
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR: return "operation graph";
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR: return "engine heuristics";
    case CUDNN_BACKEND_ENGINECFG_DESCRIPTOR: return "engine configuration";
    case CUDNN_BACKEND_ENGINE_DESCRIPTOR: return "engine";
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR: return "execution plan";
    case CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR: return "variant pack";
    case CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR: return "device property";
    default: return nullptr;
    }
}

std::vector<const tensor *> operation::in() const
{
    switch (kind) {
    case op_kind::forward: return {&x, &w};
    case op_kind::backward_data: return {&w, &y};
    case op_kind::backward_filter: return {&x, &y};
    case op_kind::add: return {&x, &w};
    default: return {&x};
    }
}

size_t tensor::bytes() const
{
    int64_t last = 0;
    for (size_t i = 0; i < dims.size(); i++)
        last += (dims[i] - 1) * strides[i];
    return (size_t)(last + 1) * type_size(type);
}

static bool data_type(int type, cudaDataType_t *out)
{
    switch (type) {
    case CUDNN_DATA_FLOAT: *out = CUDA_R_32F; return true;
    case CUDNN_DATA_DOUBLE: *out = CUDA_R_64F; return true;
    case CUDNN_DATA_HALF: *out = CUDA_R_16F; return true;
    case CUDNN_DATA_BFLOAT16: *out = CUDA_R_16BF; return true;
    default: return false;
    }
}

static std::vector<int64_t> list(const value &v)
{
    const int64_t *p = (const int64_t *)v.bytes.data();
    return {p, p + v.count};
}

/* ---- single descriptors ---- */

#define WRONG(...)                                                                                                     \
    do {                                                                                                               \
        *why = __VA_ARGS__;                                                                                            \
        return CUDNN_STATUS_BAD_PARAM;                                                                                 \
    } while (0)

static tensor tensor_of(const descriptor &d)
{
    tensor t{};
    t.uid = d.get(CUDNN_ATTR_TENSOR_UNIQUE_ID).at<int64_t>();
    t.alignment = d.get(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT).at<int64_t>();
    t.is_virtual = d.has(CUDNN_ATTR_TENSOR_IS_VIRTUAL) && d.get(CUDNN_ATTR_TENSOR_IS_VIRTUAL).at<bool>();
    data_type(d.get(CUDNN_ATTR_TENSOR_DATA_TYPE).at<int>(), &t.type);
    t.dims = list(d.get(CUDNN_ATTR_TENSOR_DIMENSIONS));
    t.strides = list(d.get(CUDNN_ATTR_TENSOR_STRIDES));
    return t;
}

static cudnnStatus_t tensor_check(const descriptor &d, std::string *why)
{
    cudaDataType_t type;
    if (!data_type(d.get(CUDNN_ATTR_TENSOR_DATA_TYPE).at<int>(), &type))
        WRONG("a tensor's data type is not simulated");
    tensor t = tensor_of(d);
    if (t.dims.size() != t.strides.size())
        WRONG("a tensor has " + std::to_string(t.dims.size()) + " dimensions and " + std::to_string(t.strides.size()) + " strides");
    if (t.dims.size() != 4)
        WRONG("only tensors of 4 dimensions are simulated");
    std::vector<std::pair<int64_t, int64_t>> order;
    for (size_t i = 0; i < 4; i++) {
        if (t.dims[i] < 1 || t.strides[i] < 1)
            WRONG("a tensor's dimensions and strides must be positive");
        if (t.dims[i] > 1)
            order.push_back({t.strides[i], t.dims[i]});
    }
    std::sort(order.begin(), order.end());
    int64_t extent = 1;
    for (auto &o : order) {
        if (o.first < extent)
            WRONG("a tensor's elements overlap: strides do not fit its dimensions");
        extent = o.first * o.second;
    }
    if (t.alignment < (int64_t)type_size(type) || (t.alignment & (t.alignment - 1)) != 0)
        WRONG("a tensor's alignment must be a power of two, of its element's size at least");
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t convolution_check(const descriptor &d, std::string *why)
{
    int64_t dims = d.get(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS).at<int64_t>();
    if (dims != 2)
        WRONG("only convolutions of 2 spatial dimensions are simulated");
    for (int name : {CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES,
                     CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS}) {
        const value &v = d.get(name);
        bool padding = name == CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS || name == CUDNN_ATTR_CONVOLUTION_POST_PADDINGS;
        if (v.count != dims)
            WRONG("a convolution's lists must have a number for each spatial dimension");
        for (int64_t i = 0; i < dims; i++)
            if (v.at<int64_t>(i) < (padding ? 0 : 1))
                WRONG("a convolution's stride, dilation or padding is out of range");
    }
    if (d.get(CUDNN_ATTR_CONVOLUTION_CONV_MODE).at<int>() != CUDNN_CROSS_CORRELATION)
        WRONG("only cross-correlation is simulated");
    cudaDataType_t compute;
    if (!data_type(d.get(CUDNN_ATTR_CONVOLUTION_COMP_TYPE).at<int>(), &compute) ||
        (compute != CUDA_R_32F && compute != CUDA_R_64F))
        WRONG("convolutions compute in float or double");
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t pointwise_check(const descriptor &d, std::string *why)
{
    int mode = d.get(CUDNN_ATTR_POINTWISE_MODE).at<int>();
    if (mode != CUDNN_POINTWISE_ADD && mode != CUDNN_POINTWISE_RELU_FWD)
        WRONG("pointwise mode " + std::to_string(mode) + " is not simulated");
    return CUDNN_STATUS_SUCCESS;
}

struct operation_names {
    op_kind kind;
    int alpha, beta, convolution, x, w, y;
};
static const operation_names *names_of(cudnnBackendDescriptorType_t type)
{
    static const operation_names forward = {
        op_kind::forward, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y};
    static const operation_names data = {
        op_kind::backward_data, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY};
    static const operation_names filter = {
        op_kind::backward_filter, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY};
    switch (type) {
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR: return &forward;
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR: return &data;
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR: return &filter;
    default: return nullptr;
    }
}

static operation operation_of(const descriptor &d)
{
    operation o{};
    if (const operation_names *n = names_of(d.type)) {
        const descriptor &c = *d.child(n->convolution);
        o.kind = n->kind;
        o.x = tensor_of(*d.child(n->x));
        o.w = tensor_of(*d.child(n->w));
        o.y = tensor_of(*d.child(n->y));
        o.alpha = d.get(n->alpha).number();
        o.beta = d.get(n->beta).number();
        data_type(c.get(CUDNN_ATTR_CONVOLUTION_COMP_TYPE).at<int>(), &o.compute);
        o.pre = list(c.get(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS));
        o.post = list(c.get(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS));
        o.stride = list(c.get(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES));
        o.dilation = list(c.get(CUDNN_ATTR_CONVOLUTION_DILATIONS));
        return o;
    }
    const descriptor &p = *d.child(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
    o.kind = p.get(CUDNN_ATTR_POINTWISE_MODE).at<int>() == CUDNN_POINTWISE_ADD ? op_kind::add : op_kind::relu;
    data_type(p.get(CUDNN_ATTR_POINTWISE_MATH_PREC).at<int>(), &o.compute);
    o.x = tensor_of(*d.child(CUDNN_ATTR_OPERATION_POINTWISE_XDESC));
    o.y = tensor_of(*d.child(CUDNN_ATTR_OPERATION_POINTWISE_YDESC));
    if (o.kind == op_kind::add)
        o.w = tensor_of(*d.child(CUDNN_ATTR_OPERATION_POINTWISE_BDESC));
    return o;
}

static cudnnStatus_t convolution_operation_check(const descriptor &d, std::string *why)
{
    operation o = operation_of(d);
    const operation_names *n = names_of(d.type);
    bool wide = o.compute == CUDA_R_64F;
    for (int name : {n->alpha, n->beta})
        if (d.get(name).type != (wide ? CUDNN_TYPE_DOUBLE : CUDNN_TYPE_FLOAT))
            WRONG("alpha and beta must be of the convolution's compute type");
    if (o.w.dims[1] == 0 || o.x.dims[1] % o.w.dims[1] != 0)
        WRONG("x has channels that the filter's do not divide");
    int64_t groups = o.x.dims[1] / o.w.dims[1];
    if (o.w.dims[0] % groups != 0 || o.y.dims[1] != o.w.dims[0] || o.y.dims[0] != o.x.dims[0])
        WRONG("batch or channels of x, filter and y do not fit");
    for (size_t i = 0; i < 2; i++) {
        int64_t reach = o.x.dims[i + 2] + o.pre[i] + o.post[i] - o.dilation[i] * (o.w.dims[i + 2] - 1) - 1;
        if (reach < 0 || reach / o.stride[i] + 1 != o.y.dims[i + 2])
            WRONG("height or width of y is not what the convolution gives");
    }
    for (const tensor *t : o.in())
        if (t->type != o.in()[0]->type)
            WRONG("x, filter and y must be of one type");
    if (o.out().type != o.in()[0]->type && !o.out().is_virtual)
        WRONG("x, filter and y must be of one type");
    if ((o.in()[0]->type == CUDA_R_64F) != wide)
        WRONG("double goes with the compute type double");
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t pointwise_operation_check(const descriptor &d, std::string *why)
{
    const descriptor &p = *d.child(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
    bool two = p.get(CUDNN_ATTR_POINTWISE_MODE).at<int>() == CUDNN_POINTWISE_ADD;
    if (two != d.has(CUDNN_ATTR_OPERATION_POINTWISE_BDESC))
        WRONG(two ? "an addition wants a second tensor" : "ReLU has one tensor");
    operation o = operation_of(d);
    for (size_t i = 0; i < 4; i++)
        if (o.x.dims[i] != o.y.dims[i] || (two && o.w.dims[i] != 1 && o.w.dims[i] != o.y.dims[i]))
            WRONG("the shapes of a pointwise operation do not fit");
    return CUDNN_STATUS_SUCCESS;
}

/* ---- graphs ---- */

static bool same(const tensor &a, const tensor &b)
{
    return a.dims == b.dims && a.strides == b.strides && a.type == b.type && a.is_virtual == b.is_virtual &&
           a.alignment == b.alignment;
}

static cudnnStatus_t graph_check(descriptor &d, std::string *why)
{
    auto g = std::make_shared<graph>();
    const value &ops = d.get(CUDNN_ATTR_OPERATIONGRAPH_OPS);
    std::set<int64_t> produced, consumed;
    for (int64_t i = 0; i < ops.count; i++) {
        descriptor &o = *(descriptor *)ops.at<cudnnBackendDescriptor_t>(i);
        if (names_of(o.type) == nullptr && o.type != CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)
            WRONG("an operation graph holds a descriptor that is no operation");
        g->operations.push_back(operation_of(o));
    }
    for (const operation &o : g->operations) {
        std::vector<const tensor *> all = o.in();
        all.push_back(&o.out());
        for (const tensor *t : all) {
            auto known = g->tensors.find(t->uid);
            if (known != g->tensors.end() && !same(known->second, *t))
                WRONG("two different tensors have the unique id " + std::to_string(t->uid));
            g->tensors[t->uid] = *t;
        }
        for (const tensor *t : o.in()) {
            if (t->is_virtual && !produced.count(t->uid))
                WRONG("a virtual tensor is read that no operation before wrote: id " + std::to_string(t->uid));
            consumed.insert(t->uid);
        }
        if (!produced.insert(o.out().uid).second || consumed.count(o.out().uid))
            WRONG("a tensor is written twice, or read and written: id " + std::to_string(o.out().uid));
    }
    for (auto &t : g->tensors)
        if (t.second.is_virtual && !consumed.count(t.first))
            WRONG("a virtual tensor is never read: id " + std::to_string(t.first));
    d.meaning = g;
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t pack_check(const descriptor &d, std::string *why)
{
    const value &ids = d.get(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS), &data = d.get(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
    std::set<int64_t> seen;
    if (ids.count != data.count)
        WRONG("a variant pack has " + std::to_string(ids.count) + " ids and " + std::to_string(data.count) + " pointers");
    for (int64_t i = 0; i < ids.count; i++)
        if (!seen.insert(ids.at<int64_t>(i)).second)
            WRONG("a variant pack has an id twice");
    return CUDNN_STATUS_SUCCESS;
}

/* ---- engines ---- */

enum { TF32_DOWN = 57, TF32 = 58, COMPILED = 71, UNBUILDABLE = 13, RANDOM = 3, HUGE = 21, HALF_SUMS = 34, PLAIN = 0, SPARE = 1, CORES = 40 };

/* Graphs with kernels ready: a convolution, or forward (+ tensor of its shape) + bias (+ ReLU). Others are compiled. */
static bool ready(const graph &g)
{
    const auto &o = g.operations;
    size_t i = 1;
    auto is_bias = [&](size_t k) {
        const tensor &b = o[k].w;
        return o[k].kind == op_kind::add && b.dims[0] == 1 && b.dims[2] == 1 && b.dims[3] == 1;
    };
    if (o.size() == 1)
        return true;
    if (i < o.size() && o[i].kind == op_kind::add && o[i].w.dims == o[i].y.dims && !is_bias(i))
        i++;
    if (i >= o.size() || !is_bias(i++))
        return false;
    if (i < o.size() && o[i].kind == op_kind::relu)
        i++;
    return i == o.size();
}

static bool chained(const graph &g)
{
    for (size_t i = 1; i < g.operations.size(); i++)
        if (g.operations[i].kind < op_kind::add || g.operations[i].x.uid != g.operations[i - 1].out().uid)
            return false;
    return g.operations[0].kind < op_kind::add;
}

static std::vector<engine> all_engines(const graph &g, bool fallback)
{
    const operation &first = g.operations[0];
    cudaDataType_t type = first.in()[0]->type;
    int sm = 10 * device().properties.major + device().properties.minor;
    bool plain = ready(g), gradient = first.kind != op_kind::forward;
    int64_t pixels = first.y.count(), groups = first.x.dims[1] / first.w.dims[1];
    std::vector<engine> out;
    auto add = [&](int64_t index, std::vector<cudnnBackendNumericalNote_t> notes, int64_t workspace) -> engine & {
        engine e;
        e.index = index;
        e.notes = std::move(notes);
        e.workspace = workspace;
        out.push_back(e);
        return out.back();
    };
    if (type == CUDA_R_16BF && sm < 80)
        return out;
    if (type == CUDA_R_64F && (g.operations.size() > 1 || groups > 1))
        return out;
    if (!fallback && type == CUDA_R_32F && sm >= 80) {
        add(TF32_DOWN, {CUDNN_NUMERICAL_NOTE_TENSOR_CORE, CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS}, 2048).rounds_tf32 = true;
        add(TF32, {CUDNN_NUMERICAL_NOTE_TENSOR_CORE}, 4096).rounds_tf32 = true;
    }
    if (!fallback && type == CUDA_R_32F && sm < 80)
        add(TF32_DOWN, {CUDNN_NUMERICAL_NOTE_TENSOR_CORE, CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS}, 2048).rounds_half = true;
    if (!fallback && (type == CUDA_R_16F || type == CUDA_R_16BF)) {
        add(HALF_SUMS, {CUDNN_NUMERICAL_NOTE_TENSOR_CORE, CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION}, 2048).noisy = true;
        if (plain)
            add(CORES, {CUDNN_NUMERICAL_NOTE_TENSOR_CORE}, 8192 + pixels / 16 * 16);
    }
    if (!fallback) {
        add(COMPILED, {}, 1024).behavior = {CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION};
        add(UNBUILDABLE, {}, 1024).builds = false;
        if (gradient)
            add(RANDOM, {CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC}, 1024).noisy = true;
        add(HUGE, {}, (int64_t)1 << 40);
    }
    if (plain && !(type == CUDA_R_32F && groups > 1 && first.dilation[0] > 1)) /* as if cuDNN had none: ours run then */
        add(fallback ? SPARE : PLAIN, {CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP}, 512 + pixels / 64 * 16);
    return out;
}

cudnnStatus_t engines_propose(const graph &g, cudnnBackendHeurMode_t mode, std::vector<engine> *out, std::string *why)
{
    if (!chained(g)) {
        *why = "only a convolution with what follows it is simulated";
        return CUDNN_STATUS_NOT_SUPPORTED_GRAPH_PATTERN;
    }
    *out = all_engines(g, mode == CUDNN_HEUR_MODE_FALLBACK);
    *why = "no engine for this graph";
    return out->empty() ? CUDNN_STATUS_NOT_SUPPORTED : CUDNN_STATUS_SUCCESS;
}

bool engine_by_index(const graph &g, int64_t index, engine *out)
{
    for (bool fallback : {false, true})
        for (const engine &e : all_engines(g, fallback))
            if (e.index == index) {
                *out = e;
                return true;
            }
    return false;
}

/* ---- finalizing ---- */

cudnnStatus_t finalize_check(descriptor &d, std::string *why)
{
    switch (d.type) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR: return tensor_check(d, why);
    case CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR: return convolution_check(d, why);
    case CUDNN_BACKEND_POINTWISE_DESCRIPTOR: return pointwise_check(d, why);
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR: return pointwise_operation_check(d, why);
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR: return graph_check(d, why);
    case CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR: return pack_check(d, why);
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR:
        d.meaning = d.child(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH)->meaning;
        return engines_propose(*d.meaning, (cudnnBackendHeurMode_t)d.get(CUDNN_ATTR_ENGINEHEUR_MODE).at<int>(), &d.proposals, why);
    case CUDNN_BACKEND_ENGINE_DESCRIPTOR: {
        d.meaning = d.child(CUDNN_ATTR_ENGINE_OPERATION_GRAPH)->meaning;
        d.choice = std::make_shared<engine>();
        if (!engine_by_index(*d.meaning, d.get(CUDNN_ATTR_ENGINE_GLOBAL_INDEX).at<int64_t>(), d.choice.get()))
            WRONG("there is no such engine");
        return CUDNN_STATUS_SUCCESS;
    }
    case CUDNN_BACKEND_ENGINECFG_DESCRIPTOR:
        d.meaning = d.child(CUDNN_ATTR_ENGINECFG_ENGINE)->meaning;
        d.choice = d.child(CUDNN_ATTR_ENGINECFG_ENGINE)->choice;
        return CUDNN_STATUS_SUCCESS;
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
        d.meaning = d.child(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->meaning;
        d.choice = d.child(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->choice;
        *why = "this engine does not build here";
        return d.choice->builds ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_NOT_SUPPORTED;
    case CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR: return CUDNN_STATUS_SUCCESS;
    default: return names_of(d.type) ? convolution_operation_check(d, why) : CUDNN_STATUS_NOT_SUPPORTED;
    }
}

} // namespace cudasim
