/* The parts of the simulated cuDNN: descriptors (cudnn_api.cpp), what a graph means and which engines there are for
 * it (cudnn_graph.cpp), its arithmetic (cudnn_conv.cpp). */
#ifndef CUDASIM_CUDNN_SIM_H
#define CUDASIM_CUDNN_SIM_H

#include <map>
#include <memory>
#include <string>
#include <vector>

#include <cudnn.h>

#include "gemm.h"
#include "sim.h"

namespace cudasim {

/* An attribute: elements of one type, as bytes. */
struct value {
    cudnnBackendAttributeType_t type;
    int64_t count;
    std::vector<char> bytes;
    template <typename T> T at(int64_t i = 0) const { return ((const T *)bytes.data())[i]; }
    double number() const { return type == CUDNN_TYPE_DOUBLE ? at<double>() : at<float>(); }
};

struct graph;

/* One engine for one graph: what it notes and what it does. */
struct engine {
    int64_t index = 0;
    std::vector<cudnnBackendNumericalNote_t> notes;
    std::vector<cudnnBackendBehaviorNote_t> behavior;
    int64_t workspace = 0;
    bool builds = true;
    bool rounds_tf32 = false, rounds_half = false, noisy = false;
};

/* Content of a descriptor. Handles are never given twice; a destroyed one keeps nothing. */
struct descriptor {
    cudnnBackendDescriptorType_t type;
    bool finalized = false, destroyed = false;
    std::map<int, value> attributes;
    std::shared_ptr<graph> meaning;      /* operation graph, and what is made from it */
    std::shared_ptr<engine> choice;      /* engine, configuration, plan */
    std::vector<engine> proposals;       /* heuristics */
    std::vector<descriptor *> made_from; /* must live as long as it is used */
    bool has(int name) const { return attributes.count(name) != 0; }
    const value &get(int name) const { return attributes.at(name); }
    descriptor *child(int name) const { return (descriptor *)get(name).at<cudnnBackendDescriptor_t>(); }
};

struct tensor {
    int64_t uid, alignment;
    bool is_virtual;
    cudaDataType_t type;
    std::vector<int64_t> dims, strides; /* N, C, H, W */
    size_t bytes() const;
    int64_t offset(int64_t n, int64_t c, int64_t h, int64_t w) const
    {
        return n * strides[0] + c * strides[1] + h * strides[2] + w * strides[3];
    }
    int64_t count() const { return dims[0] * dims[1] * dims[2] * dims[3]; }
};

enum class op_kind { forward, backward_data, backward_filter, add, relu };

struct operation {
    op_kind kind;
    tensor x, w, y; /* convolutions: x or dx, w or dw, y or dy; pointwise: x, b (in w), y */
    cudaDataType_t compute;
    double alpha = 1, beta = 0;
    std::vector<int64_t> pre, post, stride, dilation;
    const tensor &out() const
    {
        return kind == op_kind::backward_data ? x : kind == op_kind::backward_filter ? w : y;
    }
    std::vector<const tensor *> in() const;
};

struct graph {
    std::vector<operation> operations;
    std::map<int64_t, tensor> tensors; /* by uid */
};

/* CUDNN_STATUS_SUCCESS, or a status with `why`. */
cudnnStatus_t finalize_check(descriptor &d, std::string *why);
/* What the heuristics propose for a graph. */
cudnnStatus_t engines_propose(const graph &g, cudnnBackendHeurMode_t mode, std::vector<engine> *out, std::string *why);
/* An engine by its number. */
bool engine_by_index(const graph &g, int64_t index, engine *out);
const char *type_name(cudnnBackendDescriptorType_t type);

/* Runs a graph on device memory. */
void graph_run(const graph &g, const engine &e, const std::map<int64_t, void *> &data);

} // namespace cudasim

#endif
