/* Softmax and log-softmax over one dim, and cross-entropy, float32. In memory a dim is (outer,
 * length, inner): inner 1 is a contiguous row; else the vectors run along inner. */
#include <omp.h>

#include "cpu/fast/rows.h"

FAST_CLONES static void softmax_row(float *y, const float *x, int64_t n)
{
    double sum = row_exp_sum(y, x, n, row_max(x, n));
    row_scale(y, y, n, (float)(1 / sum));
}

FAST_CLONES static void log_softmax_row(float *restrict y, const float *restrict x, int64_t n)
{
    float largest = row_max(x, n), shift = (float)log(row_exp_sum(y, x, n, largest));
    FAST_SIMD
    for (int64_t i = 0; i < n; i++)
        y[i] = (x[i] - largest) - shift;
}

#define STRIP 64 /* columns of a plane at a time */

/* x, y (length, inner): columns [begin, end), at most STRIP of them. */
FAST_CLONES static void softmax_columns(float *restrict y, const float *restrict x, int64_t length, int64_t inner,
                                        int64_t begin, int64_t end, bool logarithm)
{
    float largest[STRIP], sum[STRIP];
    int64_t n = end - begin;
    for (int64_t i = 0; i < n; i++) {
        largest[i] = -INFINITY;
        sum[i] = 0;
    }
    for (int64_t r = 0; r < length; r++)
        for (int64_t i = 0; i < n; i++) {
            float v = x[r * inner + begin + i];
            largest[i] = v > largest[i] ? v : largest[i];
        }
    for (int64_t r = 0; r < length; r++)
        FAST_SIMD
        for (int64_t i = 0; i < n; i++) {
            float e = fast_expf(x[r * inner + begin + i] - largest[i]);
            y[r * inner + begin + i] = e;
            sum[i] += e;
        }
    for (int64_t i = 0; i < n; i++)
        sum[i] = logarithm ? logf(sum[i]) : 1 / sum[i];
    for (int64_t r = 0; r < length; r++)
        FAST_SIMD
        for (int64_t i = 0; i < n; i++) {
            int64_t at = r * inner + begin + i;
            y[at] = logarithm ? x[at] - largest[i] - sum[i] : y[at] * sum[i];
        }
}

static int run_softmax(const asen_call *call, int64_t dim, bool logarithm)
{
    if (!fast_all_f32(call))
        return ASEN_DECLINED;
    const asen_tensor *tx = call->in[0];
    const float *x = fast_f32(tx);
    float *y = fast_f32(call->out[0]);
    int64_t count = asen_tensor_count(tx), stride[ASEN_MAX_DIMS];
    if (count == 0)
        return ASEN_OK;
    dim = dim < 0 ? dim + tx->ndim : dim;
    asen_dense_strides(tx->ndim, tx->shape, stride);
    int64_t inner = tx->ndim > 0 ? stride[dim] : 1, length = tx->ndim > 0 ? tx->shape[dim] : 1;
    int64_t strips = inner == 1 ? 1 : (inner + STRIP - 1) / STRIP, pieces = count / (length * inner) * strips;
    int threads = fast_threads(count * 4, pieces);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int t = omp_get_thread_num(), team = omp_get_num_threads();
        for (int64_t p = fast_part(pieces, t, team); p < fast_part(pieces, t + 1, team); p++) {
            int64_t at = p / strips * length * inner, begin = p % strips * STRIP;
            if (inner > 1)
                softmax_columns(y + at, x + at, length, inner, begin, fast_min_i64(inner, begin + STRIP), logarithm);
            else
                (logarithm ? log_softmax_row : softmax_row)(y + at, x + at, length);
        }
    }
    return ASEN_OK;
}

int fast_softmax(const asen_call *call) { return run_softmax(call, call->attrs->softmax.dim, false); }
int fast_log_softmax(const asen_call *call) { return run_softmax(call, call->attrs->log_softmax.dim, true); }

/* y[n] = softmax of x[n], whose largest is *largest; returns log sum exp(x - largest). */
FAST_CLONES static double entropy_row(float *y, const float *x, int64_t n, float *largest)
{
    *largest = row_max(x, n);
    double sum = row_exp_sum(y, x, n, *largest);
    row_scale(y, y, n, (float)(1 / sum));
    return log(sum);
}

int fast_cross_entropy(const asen_call *call)
{
    const asen_tensor *t = call->in[0];
    if (t->dtype != ASEN_F32 || call->in[1]->dtype != ASEN_I64)
        return ASEN_DECLINED;
    int64_t rows = t->shape[0], classes = t->shape[1];
    const float *x = fast_f32(t);
    const int64_t *target = asen_tensor_data(call->in[1]);
    float *loss = fast_f32(call->out[0]), *softmax = fast_f32(call->out[1]);
    int status = fast_check_indices("target", target, rows, classes, "classes");
    if (status != ASEN_OK)
        return status;
    double total = 0;
    for (int64_t n = 0; n < rows; n++) {
        float largest;
        double log_sum = entropy_row(softmax + n * classes, x + n * classes, classes, &largest);
        total += log_sum - ((double)x[n * classes + target[n]] - largest);
    }
    loss[0] = (float)(total / (double)rows);
    return ASEN_OK;
}

FAST_CLONES static void entropy_grad_row(float *y, const float *x, int64_t n, float scale) { row_scale(y, x, n, scale); }

int fast_cross_entropy_grad(const asen_call *call)
{
    const asen_tensor *t = call->in[1];
    if (t->dtype != ASEN_F32 || call->in[0]->dtype != ASEN_F32 || call->in[2]->dtype != ASEN_I64)
        return ASEN_DECLINED;
    int64_t rows = t->shape[0], classes = t->shape[1];
    const float *softmax = fast_f32(t);
    const int64_t *target = asen_tensor_data(call->in[2]);
    float *dx = fast_f32(call->out[0]), scale = (float)((double)fast_f32(call->in[0])[0] / (double)rows);
    int status = fast_check_indices("target", target, rows, classes, "classes");
    if (status != ASEN_OK)
        return status;
    for (int64_t n = 0; n < rows; n++) {
        int64_t at = n * classes;
        entropy_grad_row(dx + at, softmax + at, classes, scale);
        dx[at + target[n]] = scale * (softmax[at + target[n]] - 1.0f);
    }
    return ASEN_OK;
}
