/* Matrix products through cuBLASLt: the rows matmul and linear.
 *
 * cuBLASLt counts columns first, so a row-major (M, N) matrix is its column-major (N, M): what is
 * computed is y^T = op(b)^T op(a)^T, without any transposing in memory. Algorithms are asked for once
 * a shape and kept. Float32 is computed in float32 unless the option tf32 is on. Split sums are added
 * up in a fixed order by every algorithm that cuBLASLt offers here, so the same call gives the same bits. */
#include <cublasLt.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "matmul.h"

enum { WORKSPACE = 32 << 20, BUCKETS = 256, MAX_PLANS = 4096 };

typedef struct plan {
    struct plan *next;
    cuda_product key;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, y;
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace;
} plan;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of everything below, and of bias pointers */
static cublasLtHandle_t handle;
static plan *plans[BUCKETS];
static int plan_count;

static int cublas_fail(cublasStatus_t error, const char *call)
{
    int length = (int)strcspn(call, "(");
    int code = error == CUBLAS_STATUS_ALLOC_FAILED ? ASEN_ERR_MEMORY : ASEN_ERR_DEVICE;
    return cuda_host.fail(code, "%.*s: %s", length, call, cublasLtGetStatusString(error));
}

static inline int cublas_status(cublasStatus_t error, const char *call)
{
    return error == CUBLAS_STATUS_SUCCESS ? ASEN_OK : cublas_fail(error, call);
}
/* A call of cuBLASLt as a status of the core's. */
#define CUBLAS_CALL(call) cublas_status((call), #call)

static cudaDataType_t data_type(int32_t dtype)
{
    switch (dtype) {
    case ASEN_F16: return CUDA_R_16F;
    case ASEN_BF16: return CUDA_R_16BF;
    case ASEN_F64: return CUDA_R_64F;
    default: return CUDA_R_32F;
    }
}

static cublasComputeType_t compute_type(const cuda_product *p)
{
    if (p->dtype == ASEN_F64)
        return CUBLAS_COMPUTE_64F;
    return p->dtype == ASEN_F32 && p->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

static void plan_free(plan *p)
{
    if (p == NULL)
        return;
    if (p->operation != NULL)
        cublasLtMatmulDescDestroy(p->operation);
    if (p->a != NULL)
        cublasLtMatrixLayoutDestroy(p->a);
    if (p->b != NULL)
        cublasLtMatrixLayoutDestroy(p->b);
    if (p->y != NULL)
        cublasLtMatrixLayoutDestroy(p->y);
    free(p);
}

static int layout_set(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t name, const void *value, size_t size)
{
    return CUBLAS_CALL(cublasLtMatrixLayoutSetAttribute(layout, name, value, size));
}

static int operation_set(const plan *p, cublasLtMatmulDescAttributes_t name, const void *value, size_t size)
{
    return CUBLAS_CALL(cublasLtMatmulDescSetAttribute(p->operation, name, value, size));
}

static int preference_set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t name,
                          const void *value, size_t size)
{
    return CUBLAS_CALL(cublasLtMatmulPreferenceSetAttribute(preference, name, value, size));
}

/* A batch of dense row-major (rows, columns), read as column-major (columns, rows). */
static int layout_new(cublasLtMatrixLayout_t *out, const cuda_product *p, int64_t rows, int64_t columns)
{
    int32_t batch = (int32_t)p->batch;
    int64_t stride = rows * columns;
    CUDA_OK(CUBLAS_CALL(cublasLtMatrixLayoutCreate(out, data_type(p->dtype), (uint64_t)columns, (uint64_t)rows, columns)));
    if (batch > 1) {
        CUDA_OK(layout_set(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch));
        CUDA_OK(layout_set(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride));
    }
    return ASEN_OK;
}

static int operation_new(plan *p)
{
    const cuda_product *key = &p->key;
    cublasOperation_t transpose = CUBLAS_OP_T;
    cublasLtEpilogue_t epilogue = key->bias && key->relu ? CUBLASLT_EPILOGUE_RELU_BIAS
                                  : key->bias            ? CUBLASLT_EPILOGUE_BIAS
                                                         : CUBLASLT_EPILOGUE_RELU;
    CUDA_OK(CUBLAS_CALL(cublasLtMatmulDescCreate(&p->operation, compute_type(key),
                                                 key->dtype == ASEN_F64 ? CUDA_R_64F : CUDA_R_32F)));
    /* b stands first: see above */
    if (key->trans_b)
        CUDA_OK(operation_set(p, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof transpose));
    if (key->trans_a)
        CUDA_OK(operation_set(p, CUBLASLT_MATMUL_DESC_TRANSB, &transpose, sizeof transpose));
    if (key->bias || key->relu)
        CUDA_OK(operation_set(p, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    return ASEN_OK;
}

static int algorithm_choose(plan *p)
{
    int status = ASEN_OK, found = 0;
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t result;
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    size_t limit = WORKSPACE;
    uint32_t alignment = (uint32_t)p->key.alignment;
    CUDA_STEP(CUBLAS_CALL(cublasLtMatmulPreferenceCreate(&preference)));
    CUDA_STEP(preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &limit, sizeof limit));
    for (int i = 0; i < 4; i++)
        CUDA_STEP(preference_set(preference, alignments[i], &alignment, sizeof alignment));
    cublasStatus_t answer = cublasLtMatmulAlgoGetHeuristic(handle, p->operation, p->b, p->a, p->y, p->y, preference, 1,
                                                           &result, &found);
    if (answer == CUBLAS_STATUS_NOT_SUPPORTED ||
        (answer == CUBLAS_STATUS_SUCCESS && (found == 0 || result.state == CUBLAS_STATUS_NOT_SUPPORTED))) {
        status = ASEN_DECLINED;
        goto done;
    }
    CUDA_STEP(cublas_status(answer, "cublasLtMatmulAlgoGetHeuristic"));
    CUDA_STEP(cublas_status(result.state, "cublasLtMatmulAlgoGetHeuristic"));
    p->algorithm = result.algo;
    p->workspace = result.workspaceSize;
done:
    if (preference != NULL)
        cublasLtMatmulPreferenceDestroy(preference);
    return status;
}

/* ASEN_DECLINED: cuBLASLt has no algorithm for it. */
static int plan_new(const cuda_product *key, plan **out)
{
    int status = ASEN_OK;
    *out = NULL;
    plan *p = calloc(1, sizeof *p);
    if (p == NULL)
        return cuda_host.fail(ASEN_ERR_MEMORY, "out of memory");
    p->key = *key;
    CUDA_STEP(operation_new(p));
    CUDA_STEP(key->trans_a ? layout_new(&p->a, key, key->k, key->m) : layout_new(&p->a, key, key->m, key->k));
    CUDA_STEP(key->trans_b ? layout_new(&p->b, key, key->n, key->k) : layout_new(&p->b, key, key->k, key->n));
    CUDA_STEP(layout_new(&p->y, key, key->m, key->n));
    CUDA_STEP(algorithm_choose(p));
done:
    if (status != ASEN_OK)
        plan_free(p);
    else
        *out = p;
    return status;
}

static void forget(void)
{
    for (int i = 0; i < BUCKETS; i++)
        for (plan *p = plans[i], *after; p != NULL; p = after) {
            after = p->next;
            plan_free(p);
        }
    memset(plans, 0, sizeof plans);
    plan_count = 0;
}

static int handle_open(const asen_call *call)
{
    if (handle != NULL)
        return ASEN_OK;
    cublasStatus_t error = cublasLtCreate(&handle);
    if (error == CUBLAS_STATUS_NOT_INITIALIZED) { /* it says so, too, where it had no memory */
        cuda_host.memory_release(call->device);
        error = cublasLtCreate(&handle);
    }
    if (error != CUBLAS_STATUS_SUCCESS)
        handle = NULL;
    return cublas_status(error, "cublasLtCreate");
}

static int plan_get(const cuda_product *key, plan **out)
{
    uint64_t hash = 1469598103934665603u; /* FNV-1a */
    for (size_t i = 0; i < sizeof *key; i++)
        hash = (hash ^ ((const unsigned char *)key)[i]) * 1099511628211u;
    plan **bucket = &plans[hash % BUCKETS];
    for (plan *p = *bucket; p != NULL; p = p->next)
        if (memcmp(&p->key, key, sizeof *key) == 0) {
            *out = p;
            return ASEN_OK;
        }
    if (plan_count >= MAX_PLANS)
        forget();
    int status = plan_new(key, out);
    if (status != ASEN_OK)
        return status;
    (*out)->next = *bucket;
    *bucket = *out;
    plan_count++;
    return ASEN_OK;
}

int cuda_matmul_check_library(void)
{
    Dl_info file = {0};
    size_t version = cublasLtGetVersion(); /* 131000: 13.10.0 */
    if (version / 10000 == CUBLAS_VER_MAJOR && cublasLtGetCudartVersion() / 1000 == CUDART_VERSION / 1000)
        return ASEN_OK;
    dladdr((void *)cublasLtGetVersion, &file);
    return cuda_host.fail(ASEN_ERR_DEVICE, "cuBLASLt %zu.%zu for CUDA %zu is loaded (%s), and %d for CUDA %d is wanted: pip "
                          "install nvidia-cublas, and see that no other one is found before it (LD_LIBRARY_PATH)",
                          version / 10000, version / 100 % 100, cublasLtGetCudartVersion() / 1000,
                          file.dli_fname != NULL ? file.dli_fname : "?", CUBLAS_VER_MAJOR, CUDART_VERSION / 1000);
}

void cuda_matmul_forget(void)
{
    pthread_mutex_lock(&lock);
    if (handle != NULL && cudaStreamSynchronize(cuda.stream) != cudaSuccess) /* queued products use what the handle has */
        cudaGetLastError(); /* whoever waits next is told */
    forget();
    if (handle != NULL)
        cublasLtDestroy(handle);
    handle = NULL;
    pthread_mutex_unlock(&lock);
}

/* The largest power of two, 256 at most, that divides all the addresses. */
static int32_t common_alignment(const void *const *pointer, int count)
{
    uintptr_t bits = 256;
    for (int i = 0; i < count; i++)
        bits |= (uintptr_t)pointer[i];
    return (int32_t)(bits & -bits);
}

/* With the lock held. */
static int run(const asen_call *call, const cuda_product *key, const void *a, const void *b, const void *bias,
               const void *residual, void *y)
{
    plan *p = NULL;
    int status;
    void *workspace = NULL;
    const float number[2] = {0, 1};
    const double wide_number[2] = {0, 1};
    bool wide = key->dtype == ASEN_F64;
    const void *one = wide ? (const void *)&wide_number[1] : &number[1];
    const void *beta = wide ? (const void *)&wide_number[residual != NULL] : &number[residual != NULL];
    CUDA_STEP(handle_open(call));
    CUDA_STEP(plan_get(key, &p));
    if (p->workspace > 0)
        CUDA_STEP(cuda_scratch_new(call, p->workspace, &workspace));
    if (key->bias)
        CUDA_STEP(operation_set(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    CUDA_STEP(CUBLAS_CALL(cublasLtMatmul(handle, p->operation, one, b, p->b, a, p->a, beta, residual != NULL ? residual : y, p->y,
                                         y, p->y, &p->algorithm, workspace, p->workspace, cuda.stream)));
done:
    if (workspace != NULL)
        cuda_scratch_free(call, workspace, p->workspace);
    return status;
}

int cuda_product_run(const asen_call *call, cuda_product *key, const void *a, const void *b, const void *bias,
                     const void *residual, void *y)
{
    const void *pointer[] = {a, b, y, bias, residual};
    if (key->m == 0 || key->n == 0 || key->batch == 0)
        return ASEN_OK;
    key->alignment = common_alignment(pointer, 5);
    key->tf32 = key->dtype == ASEN_F32 && cuda.tf32;
    key->bias = bias != NULL;
    key->residual = residual != NULL;

    pthread_mutex_lock(&lock);
    int status = run(call, key, a, b, bias, residual, y);
    if (status == ASEN_ERR_MEMORY) { /* cuBLASLt allocates, too: what the core keeps for reuse is given back */
        cuda_host.memory_release(call->device);
        status = run(call, key, a, b, bias, residual, y);
    }
    pthread_mutex_unlock(&lock);
    return status;
}

/* y += bias, by rows, where no algorithm has the addition in it. */
static int add_bias(const asen_call *call, asen_tensor *y, asen_tensor *bias)
{
    asen_tensor *in[] = {y, bias};
    const asen_call add = {ASEN_OP_add, 2, 1, in, &y, NULL, call->device};
    return cuda_add(&add);
}

static int row_run(const asen_call *call, cuda_product *key, asen_tensor *bias)
{
    asen_tensor *y = call->out[0];
    const void *a = asen_tensor_data(call->in[0]), *b = asen_tensor_data(call->in[1]);
    int status;
    if (asen_tensor_count(y) == 0)
        return ASEN_OK;
    if (key->k == 0) {
        const uint64_t zero = 0;
        CUDA_OK(cuda_fill(NULL, asen_tensor_data(y), &zero, asen_dtype_size(y->dtype), asen_tensor_count(y)));
        return bias != NULL ? add_bias(call, y, bias) : ASEN_OK;
    }
    status = cuda_product_run(call, key, a, b, bias != NULL ? asen_tensor_data(bias) : NULL, NULL, asen_tensor_data(y));
    if (status != ASEN_DECLINED || bias == NULL)
        return status;
    CUDA_OK(cuda_product_run(call, key, a, b, NULL, NULL, asen_tensor_data(y)));
    return add_bias(call, y, bias);
}

int cuda_matmul(const asen_call *call)
{
    const asen_tensor *a = call->in[0], *y = call->out[0];
    int last = a->ndim - 1, trans_a = call->attrs->matmul.trans_a != 0;
    if (!asen_dtype_is_float(a->dtype))
        return ASEN_DECLINED;
    cuda_product key = {.m = y->shape[last - 1], .n = y->shape[last], .k = a->shape[last - trans_a],
                        .batch = a->ndim == 3 ? a->shape[0] : 1, .trans_a = trans_a,
                        .trans_b = call->attrs->matmul.trans_b != 0, .dtype = (int32_t)a->dtype};
    return row_run(call, &key, NULL);
}

/* y (N, M) = x (N, K) w (M, K)^T + bias (M) */
int cuda_linear(const asen_call *call)
{
    const asen_tensor *x = call->in[0], *w = call->in[1];
    if (!asen_dtype_is_float(x->dtype))
        return ASEN_DECLINED;
    cuda_product key = {.m = x->shape[0], .n = w->shape[0], .k = x->shape[1], .batch = 1, .trans_b = 1,
                        .dtype = (int32_t)x->dtype};
    return row_run(call, &key, call->n_in > 2 ? call->in[2] : NULL);
}
