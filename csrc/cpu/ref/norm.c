/* Reference: batch norm in groups, with ReLU and residual (Ioffe and Szegedy 2015).
 *
 * x (N, C, H, W) lies N, H, W, C, so group g's rows of C values are the consecutive
 * [g R, (g + 1) R) with R = N / groups * H * W. Channel by channel:
 *   mean = sum x / R;  var = sum (x - mean)^2 / R;  invstd = 1 / sqrt(var + eps)
 *   y = relu((x - mean) invstd weight + bias + residual) */
#include <math.h>

#include "cpu/ref/ref.h"

typedef struct batch {
    int64_t groups, rows, C; /* rows of one group */
} batch;

static batch batch_of(const asen_tensor *x, int64_t groups)
{
    int64_t C = x->shape[1];
    return (batch){groups, C > 0 ? asen_tensor_count(x) / C / groups : 0, C};
}

static int64_t row_at(const batch *b, int64_t group, int64_t row) { return (group * b->rows + row) * b->C; }

static void statistics(const batch *b, ref_array x, int64_t group, int64_t c, double *mean, double *var)
{
    double sum = 0, squares = 0;
    for (int64_t r = 0; r < b->rows; r++)
        sum += ref_get(x, row_at(b, group, r) + c);
    *mean = sum / (double)b->rows;
    for (int64_t r = 0; r < b->rows; r++) {
        double difference = ref_get(x, row_at(b, group, r) + c) - *mean;
        squares += difference * difference;
    }
    *var = squares / (double)b->rows;
}

static void move(ref_array running, int64_t c, double momentum, double value)
{
    ref_put(running, c, (1 - momentum) * ref_get(running, c) + momentum * value);
}

/* in: x weight bias running_mean running_var residual?; out: y mean invstd */
int ref_batch_norm(const asen_call *call)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    bool training = call->attrs->batch_norm.training != 0, relu = call->attrs->batch_norm.relu != 0;
    double momentum = call->attrs->batch_norm.momentum, eps = call->attrs->batch_norm.eps;
    batch b = batch_of(call->in[0], training ? call->attrs->batch_norm.groups : 1);
    ref_array x = ref_array_of(call->in[0]), weight = ref_array_of(call->in[1]), bias = ref_array_of(call->in[2]);
    ref_array running_mean = ref_array_of(call->in[3]), running_var = ref_array_of(call->in[4]);
    ref_array y = ref_array_of(call->out[0]), means = ref_array_of(call->out[1]), invstds = ref_array_of(call->out[2]);
    const asen_tensor *residual = ref_optional(call, 5);
    double unbiased = b.rows > 1 ? (double)b.rows / (double)(b.rows - 1) : 1;

    for (int64_t g = 0; g < b.groups; g++)
        for (int64_t c = 0; c < b.C; c++) {
            double mean, var;
            if (training) {
                statistics(&b, x, g, c, &mean, &var);
                move(running_mean, c, momentum, mean);
                move(running_var, c, momentum, var * unbiased);
            } else {
                mean = ref_get(running_mean, c);
                var = ref_get(running_var, c);
            }
            double invstd = 1 / sqrt(var + eps), scale = invstd * ref_get(weight, c), shift = ref_get(bias, c);
            ref_put(means, g * b.C + c, mean);
            ref_put(invstds, g * b.C + c, invstd);
            for (int64_t r = 0; r < b.rows; r++) {
                int64_t at = row_at(&b, g, r) + c;
                double value = (ref_get(x, at) - mean) * scale + shift;
                if (residual)
                    value += ref_get(ref_array_of(residual), at);
                ref_put(y, at, relu && value <= 0 ? 0 : value);
            }
        }
    return ASEN_OK;
}

/* in: dy x y weight mean invstd; out: dx dweight dbias dresidual. With d = dy where y > 0 (relu)
 * and n = (x - mean) invstd:
 *   dbias = sum d;  dweight = sum d n;  dresidual = d
 *   dx = weight invstd (d - mean(d) - n mean(d n)), in inference weight invstd d */
int ref_batch_norm_grad(const asen_call *call)
{
    if (!asen_ref_all_float(call))
        return ASEN_DECLINED;
    bool training = call->attrs->batch_norm_grad.training != 0, relu = call->attrs->batch_norm_grad.relu != 0;
    bool residual = call->attrs->batch_norm_grad.residual != 0;
    batch b = batch_of(call->in[1], training ? call->attrs->batch_norm_grad.groups : 1);
    ref_array dy = ref_array_of(call->in[0]), x = ref_array_of(call->in[1]);
    ref_array y = relu ? ref_array_of(call->in[2]) : dy;
    ref_array weight = ref_array_of(call->in[3]), means = ref_array_of(call->in[4]), invstds = ref_array_of(call->in[5]);
    ref_array dx = ref_array_of(call->out[0]), dweight = ref_array_of(call->out[1]), dbias = ref_array_of(call->out[2]);

    for (int64_t c = 0; c < b.C; c++) {
        double dbias_sum = 0, dweight_sum = 0;
        for (int64_t g = 0; g < b.groups; g++) {
            double mean = ref_get(means, g * b.C + c), invstd = ref_get(invstds, g * b.C + c);
            double scale = ref_get(weight, c) * invstd, sum_d = 0, sum_dn = 0;
            for (int64_t r = 0; r < b.rows; r++) {
                int64_t at = row_at(&b, g, r) + c;
                double d = relu && !(ref_get(y, at) > 0) ? 0 : ref_get(dy, at);
                sum_d += d;
                sum_dn += d * (ref_get(x, at) - mean) * invstd;
            }
            for (int64_t r = 0; r < b.rows; r++) {
                int64_t at = row_at(&b, g, r) + c;
                double d = relu && !(ref_get(y, at) > 0) ? 0 : ref_get(dy, at);
                double n = (ref_get(x, at) - mean) * invstd;
                ref_put(dx, at, training ? scale * (d - (sum_d + n * sum_dn) / (double)b.rows) : scale * d);
                if (residual)
                    ref_put(ref_array_of(call->out[3]), at, d);
            }
            dbias_sum += sum_d;
            dweight_sum += sum_dn;
        }
        ref_put(dweight, c, dweight_sum);
        ref_put(dbias, c, dbias_sum);
    }
    return ASEN_OK;
}
