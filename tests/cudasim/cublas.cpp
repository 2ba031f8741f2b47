/* cuBLASLt: descriptors, one heuristic, the product. An algorithm remembers what it was asked for (shapes, types,
 * alignments, workspace); another use of it is a fault. The workspace is overwritten: it may hold nothing else. */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <cublasLt.h>

#include "gemm.h"
#include "sim.h"

namespace cudasim {

struct matmul_desc {
    cublasComputeType_t compute;
    cudaDataType_t scale;
    cublasOperation_t trans_a = CUBLAS_OP_N, trans_b = CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    const void *bias = nullptr;
    int bias_type = -1;
};

static bool has_bias(const matmul_desc &d)
{
    return d.epilogue == CUBLASLT_EPILOGUE_BIAS || d.epilogue == CUBLASLT_EPILOGUE_RELU_BIAS;
}

struct layout {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t ld;
    cublasLtOrder_t order = CUBLASLT_ORDER_COL;
    int32_t batch = 1;
    int64_t batch_stride = 0;
};

struct preference {
    uint64_t workspace = 0;
    uint32_t alignment[4] = {256, 256, 256, 256};
};

/* What an algorithm's eight words hold. */
struct algorithm {
    uint64_t magic, digest, workspace;
    uint32_t alignment[4];
    uint64_t rest[3];
};
static_assert(sizeof(algorithm) == sizeof(cublasLtMatmulAlgo_t), "an algorithm fills its opaque words");
enum : uint64_t { MAGIC = 0x6375646173696d21ull };

static uint64_t digest(const matmul_desc &d, const layout *const l[4])
{
    uint64_t h = 1469598103934665603ull;
    auto add = [&h](uint64_t v) { h = (h ^ v) * 1099511628211ull; };
    for (uint64_t v : {(uint64_t)d.compute, (uint64_t)d.scale, (uint64_t)d.trans_a, (uint64_t)d.trans_b, (uint64_t)d.epilogue})
        add(v);
    for (int i = 0; i < 4; i++)
        for (uint64_t v : {(uint64_t)l[i]->type, l[i]->rows, l[i]->columns, (uint64_t)l[i]->ld, (uint64_t)l[i]->order,
                           (uint64_t)l[i]->batch, (uint64_t)l[i]->batch_stride})
            add(v);
    return h;
}

static bool transposed(cublasOperation_t op) { return op != CUBLAS_OP_N; }

/* What is wrong with a product; NULL: nothing. */
static const char *shapes_wrong(const matmul_desc &d, const layout &a, const layout &b, const layout &c, const layout &out)
{
    uint64_t m = transposed(d.trans_a) ? a.columns : a.rows, k = transposed(d.trans_a) ? a.rows : a.columns;
    uint64_t kb = transposed(d.trans_b) ? b.columns : b.rows, n = transposed(d.trans_b) ? b.rows : b.columns;
    if (k != kb || out.rows != m || out.columns != n || c.rows != m || c.columns != n)
        return "the shapes do not fit";
    if (a.batch != out.batch || b.batch != out.batch || c.batch != out.batch)
        return "the batch counts differ";
    for (const layout *l : {&a, &b, &c, &out}) {
        if (l->ld < (int64_t)(l->order == CUBLASLT_ORDER_COL ? l->rows : l->columns))
            return "a leading dimension is smaller than its matrix";
        if (l->rows == 0 || l->columns == 0)
            return "a matrix is empty";
    }
    uint64_t size = (uint64_t)out.ld * (out.order == CUBLASLT_ORDER_COL ? out.columns : out.rows);
    if (out.batch > 1 && (uint64_t)out.batch_stride < size)
        return "the matrices of the output's batch overlap";
    return nullptr;
}

/* Whether hardware has it: types that go together, by compute capability. */
static bool supported(const matmul_desc &d, const layout &a, const layout &b, const layout &c, const layout &out)
{
    int sm = 10 * device().properties.major + device().properties.minor;
    bool wide = a.type == CUDA_R_64F, epilogue = d.epilogue != CUBLASLT_EPILOGUE_DEFAULT;
    if (a.type != b.type || c.type != out.type || out.type != a.type || type_size(a.type) == 0)
        return false;
    if (a.type == CUDA_R_16BF && sm < 80)
        return false;
    if (wide ? d.compute != CUBLAS_COMPUTE_64F || d.scale != CUDA_R_64F
             : (d.compute != CUBLAS_COMPUTE_32F && d.compute != CUBLAS_COMPUTE_32F_FAST_TF32) || d.scale != CUDA_R_32F)
        return false;
    if (d.compute == CUBLAS_COMPUTE_32F_FAST_TF32 && a.type != CUDA_R_32F)
        return false;
    return (!epilogue || has_bias(d) || d.epilogue == CUBLASLT_EPILOGUE_RELU) && !(wide && epilogue);
}

/* The memory that a matrix takes, in bytes. */
static size_t extent(const layout &l)
{
    int64_t inner = l.order == CUBLASLT_ORDER_COL ? l.rows : l.columns, outer = l.order == CUBLASLT_ORDER_COL ? l.columns : l.rows;
    return (size_t)((l.batch - 1) * l.batch_stride + (outer - 1) * l.ld + inner) * type_size(l.type);
}

template <typename T, int R>
static void pack(panels<T, R> &p, const void *base, const layout &l, bool rows_are_columns, int64_t batch, bool tf32)
{
    int64_t row_step = l.order == CUBLASLT_ORDER_COL ? 1 : l.ld, column_step = l.order == CUBLASLT_ORDER_COL ? l.ld : 1;
    int64_t i_step = rows_are_columns ? column_step : row_step, k_step = rows_are_columns ? row_step : column_step;
    for (int64_t i = 0; i < p.count; i++) {
        T *to = p.at(i);
        for (int64_t j = 0; j < p.k; j++) {
            double value = element_read(base, l.type, batch * l.batch_stride + i * i_step + j * k_step);
            to[j * R] = (T)(tf32 ? round_tf32((float)value) : value);
        }
    }
}

template <typename T>
static void product(const matmul_desc &d, double alpha, const void *a, const layout &la, const void *b, const layout &lb,
                    double beta, const void *c, const layout &lc, void *out, const layout &lo)
{
    int64_t m = (int64_t)lo.rows, n = (int64_t)lo.columns, k = (int64_t)(transposed(d.trans_a) ? la.rows : la.columns);
    bool tf32 = d.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    auto at = [](const layout &l, int64_t batch, int64_t i, int64_t j) {
        return batch * l.batch_stride + (l.order == CUBLASLT_ORDER_COL ? i + j * l.ld : i * l.ld + j);
    };
    for (int64_t batch = 0; batch < lo.batch; batch++) {
        left<T> pa(m, k);
        right<T> pb(n, k);
        std::vector<double> sum((size_t)(m * n));
        pack(pa, a, la, transposed(d.trans_a), batch, tf32);
        pack(pb, b, lb, !transposed(d.trans_b), batch, tf32);
        gemm_add(pa, pb, sum.data(), n);
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = 0; i < m; i++) {
                double value = alpha * sum[(size_t)(i * n + j)];
                if (beta != 0)
                    value += beta * element_read(c, lc.type, at(lc, batch, i, j));
                if (has_bias(d))
                    value += element_read(d.bias, d.bias_type < 0 ? lo.type : (cudaDataType_t)d.bias_type, i);
                if (d.epilogue == CUBLASLT_EPILOGUE_RELU || d.epilogue == CUBLASLT_EPILOGUE_RELU_BIAS)
                    value = value < 0 ? 0 : value;
                element_write(out, lo.type, at(lo, batch, i, j), value);
            }
    }
}

template <typename T> static T *object_of(const char *what, const void *handle)
{
    if (handle && live_has("cublas", handle))
        return strcmp(what, "handle") != 0 || chosen_is("cuBLASLt", "the handle", live_device(handle)) ? (T *)handle : nullptr;
    violation("cuBLASLt: a %s is used that does not exist (any more)", what);
    return nullptr;
}

template <typename T> static cublasStatus_t object_new(void *out, const char *what, T made)
{
    T *object = new T(made); /* never deleted, so that a handle is never given twice */
    live_add("cublas", object, what);
    memcpy(out, &object, sizeof object);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t object_delete(const char *what, const void *handle)
{
    if (!live_remove("cublas", handle)) {
        violation("cuBLASLt: a %s is destroyed that does not exist (any more)", what);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t unknown(const char *what, int attribute, size_t size)
{
    violation("cuBLASLt: attribute %d of a %s with %zu bytes is not simulated", attribute, what, size);
    return CUBLAS_STATUS_INVALID_VALUE;
}

template <typename T> static bool take(T *to, const void *from, size_t size)
{
    if (size != sizeof(T))
        return false;
    memcpy(to, from, size);
    return true;
}

} // namespace cudasim

using namespace cudasim;

#define ENTER(name, status)                                                                                            \
    lock_t lock_;                                                                                                      \
    if (CUDASIM_API_FAILS(name))                                                                                       \
        return (cublasStatus_t)failure(status);                                                                        \
    if (device_error() != cudaSuccess || sticky() != cudaSuccess)                                                      \
    return status

struct light_handle {
    int nothing;
};

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t *out)
{
    *out = nullptr;
    ENTER(cublasLtCreate, CUBLAS_STATUS_NOT_INITIALIZED);
    return object_new(out, "cuBLASLt handle", light_handle{});
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    lock_t lock;
    return object_delete("handle", handle);
}

const char *cublasLtGetStatusName(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR: return "CUBLAS_STATUS_INTERNAL_ERROR";
    default: return "unknown cuBLAS status";
    }
}
const char *cublasLtGetStatusString(cublasStatus_t status) { return cublasLtGetStatusName(status); }
const char *cublasGetStatusName(cublasStatus_t status) { return cublasLtGetStatusName(status); }
const char *cublasGetStatusString(cublasStatus_t status) { return cublasLtGetStatusName(status); }
/* CUDASIM_CUBLASLT="12.8": which one the loader found. */
static size_t found_cublas(int of_major, int of_minor)
{
    int major = CUBLAS_VER_MAJOR, minor = CUBLAS_VER_MINOR;
    const char *text = getenv("CUDASIM_CUBLASLT");
    if (text && sscanf(text, "%d.%d", &major, &minor) != 2)
        fatal("CUDASIM_CUBLASLT is '%s', and may be 12.8", text);
    return (size_t)(major * of_major + minor * of_minor);
}
size_t cublasLtGetVersion(void) { return found_cublas(10000, 100); }
size_t cublasLtGetCudartVersion(void) { return found_cublas(1000, 0); }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType_t scale)
{
    *out = nullptr;
    ENTER(cublasLtMatmulDescCreate, CUBLAS_STATUS_ALLOC_FAILED);
    matmul_desc d{};
    d.compute = compute;
    d.scale = scale;
    return object_new(out, "matmul descriptor", d);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t handle)
{
    lock_t lock;
    return object_delete("matmul descriptor", handle);
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t handle, cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t size)
{
    ENTER(cublasLtMatmulDescSetAttribute, CUBLAS_STATUS_INTERNAL_ERROR);
    matmul_desc *d = object_of<matmul_desc>("matmul descriptor", handle);
    bool taken = false;
    if (d == nullptr)
        return CUBLAS_STATUS_INVALID_VALUE;
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA: taken = take(&d->trans_a, value, size); break;
    case CUBLASLT_MATMUL_DESC_TRANSB: taken = take(&d->trans_b, value, size); break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE: taken = take(&d->epilogue, value, size); break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: taken = take(&d->bias, value, size); break;
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: taken = take(&d->bias_type, value, size); break;
    default: break;
    }
    return taken ? CUBLAS_STATUS_SUCCESS : unknown("matmul descriptor", attribute, size);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows, uint64_t columns,
                                          int64_t ld)
{
    *out = nullptr;
    ENTER(cublasLtMatrixLayoutCreate, CUBLAS_STATUS_ALLOC_FAILED);
    layout l{};
    l.type = type;
    l.rows = rows;
    l.columns = columns;
    l.ld = ld;
    return object_new(out, "matrix layout", l);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t handle)
{
    lock_t lock;
    return object_delete("matrix layout", handle);
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t handle, cublasLtMatrixLayoutAttribute_t attribute,
                                                const void *value, size_t size)
{
    ENTER(cublasLtMatrixLayoutSetAttribute, CUBLAS_STATUS_INTERNAL_ERROR);
    layout *l = object_of<layout>("matrix layout", handle);
    bool taken = false;
    if (l == nullptr)
        return CUBLAS_STATUS_INVALID_VALUE;
    switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_ORDER: taken = take(&l->order, value, size); break;
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT: taken = take(&l->batch, value, size); break;
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET: taken = take(&l->batch_stride, value, size); break;
    default: break;
    }
    return taken ? CUBLAS_STATUS_SUCCESS : unknown("matrix layout", attribute, size);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out)
{
    *out = nullptr;
    ENTER(cublasLtMatmulPreferenceCreate, CUBLAS_STATUS_ALLOC_FAILED);
    return object_new(out, "matmul preference", preference{});
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t handle)
{
    lock_t lock;
    return object_delete("matmul preference", handle);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t handle,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
                                                    size_t size)
{
    ENTER(cublasLtMatmulPreferenceSetAttribute, CUBLAS_STATUS_INTERNAL_ERROR);
    preference *p = object_of<preference>("matmul preference", handle);
    bool taken = false;
    if (p == nullptr)
        return CUBLAS_STATUS_INVALID_VALUE;
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: taken = take(&p->workspace, value, size); break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: taken = take(&p->alignment[0], value, size); break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: taken = take(&p->alignment[1], value, size); break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: taken = take(&p->alignment[2], value, size); break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: taken = take(&p->alignment[3], value, size); break;
    default: break;
    }
    return taken ? CUBLAS_STATUS_SUCCESS : unknown("matmul preference", attribute, size);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out,
                                              cublasLtMatmulPreference_t pref, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int *found)
{
    ENTER(cublasLtMatmulAlgoGetHeuristic, CUBLAS_STATUS_INTERNAL_ERROR);
    *found = 0;
    matmul_desc *d = object_of<matmul_desc>("matmul descriptor", desc);
    layout *l[4] = {object_of<layout>("matrix layout", a), object_of<layout>("matrix layout", b),
                    object_of<layout>("matrix layout", c), object_of<layout>("matrix layout", out)};
    preference *p = object_of<preference>("matmul preference", pref);
    if (!object_of<light_handle>("handle", handle) || !d || !l[0] || !l[1] || !l[2] || !l[3] || !p || wanted < 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    const char *wrong = shapes_wrong(*d, *l[0], *l[1], *l[2], *l[3]);
    if (wrong) {
        violation("cublasLtMatmulAlgoGetHeuristic: %s", wrong);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (!supported(*d, *l[0], *l[1], *l[2], *l[3]))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    algorithm made{};
    made.magic = MAGIC;
    made.digest = digest(*d, l);
    made.workspace = p->workspace < 4096 ? p->workspace : 4096; /* some, so that it is seen whether it is given */
    memcpy(made.alignment, p->alignment, sizeof made.alignment);
    memset(results, 0, sizeof *results);
    memcpy(&results->algo, &made, sizeof made);
    results->workspaceSize = made.workspace;
    results->state = CUBLAS_STATUS_SUCCESS;
    results->wavesCount = 1;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t la, const void *b, cublasLtMatrixLayout_t lb, const void *beta,
                              const void *c, cublasLtMatrixLayout_t lc, void *out, cublasLtMatrixLayout_t lo,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    ENTER(cublasLtMatmul, CUBLAS_STATUS_EXECUTION_FAILED);
    matmul_desc *d = object_of<matmul_desc>("matmul descriptor", desc);
    layout *l[4] = {object_of<layout>("matrix layout", la), object_of<layout>("matrix layout", lb),
                    object_of<layout>("matrix layout", lc), object_of<layout>("matrix layout", lo)};
    if (!object_of<light_handle>("handle", handle) || !d || !l[0] || !l[1] || !l[2] || !l[3])
        return CUBLAS_STATUS_INVALID_VALUE;
    algorithm chosen{};
    if (algo)
        memcpy(&chosen, algo, sizeof chosen);
    const char *wrong = shapes_wrong(*d, *l[0], *l[1], *l[2], *l[3]);
    if (!wrong && (!algo || chosen.magic != MAGIC || chosen.digest != digest(*d, l)))
        wrong = "the algorithm was chosen for something else";
    if (!wrong && chosen.workspace && (workspace_bytes < chosen.workspace || workspace == nullptr))
        wrong = "the workspace is smaller than the algorithm wants";
    if (!wrong && workspace && (uintptr_t)workspace % 256 != 0)
        wrong = "the workspace is not aligned to 256 bytes";
    if (!wrong && has_bias(*d) && d->bias == nullptr)
        wrong = "there is no bias pointer";
    const void *pointer[4] = {a, b, c, out};
    for (int i = 0; i < 4 && !wrong; i++)
        if ((uintptr_t)pointer[i] % chosen.alignment[i] != 0)
            wrong = "a pointer is less aligned than the preference said";
    double scale[2];
    for (int i = 0; i < 2; i++)
        scale[i] = d->scale == CUDA_R_64F ? *(const double *)(i ? beta : alpha) : *(const float *)(i ? beta : alpha);
    std::string why;
    size_t bias_bytes = (size_t)l[3]->rows * type_size(d->bias_type < 0 ? l[3]->type : (cudaDataType_t)d->bias_type);
    for (int i = 0; i < 4 && !wrong; i++)
        if ((i != 2 || scale[1] != 0) && !memory_covers(pointer[i], extent(*l[i]), &why))
            wrong = why.c_str();
    if (!wrong && has_bias(*d) && !memory_covers(d->bias, bias_bytes, &why))
        wrong = why.c_str();
    if (!wrong && workspace_bytes && !memory_covers(workspace, workspace_bytes, &why))
        wrong = why.c_str();
    if (wrong) {
        violation("cublasLtMatmul: %s", wrong);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    matmul_desc desc_now = *d;
    layout now[4] = {*l[0], *l[1], *l[2], *l[3]};
    double alpha_now = scale[0], beta_now = scale[1];
    launch_count("cublasLtMatmul");
    queue_push(stream, "cublasLtMatmul", [=] {
        run_as_kernel("cublasLtMatmul", [&] {
            if (workspace)
                memset(workspace, 0xFF, workspace_bytes);
            if (now[0].type == CUDA_R_64F)
                product<double>(desc_now, alpha_now, a, now[0], b, now[1], beta_now, c, now[2], out, now[3]);
            else
                product<float>(desc_now, alpha_now, a, now[0], b, now[1], beta_now, c, now[2], out, now[3]);
        });
    });
    return CUBLAS_STATUS_SUCCESS;
}

} // extern "C"
