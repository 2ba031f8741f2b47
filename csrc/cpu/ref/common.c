/* What the reference kernels share: elements of any dtype, walks, small sums. */
#include <inttypes.h>
#include <stdlib.h>

#include "cpu/ref/ref.h"

/* ---- half and bfloat16, by their bits ---- */

static float float_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_from_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* IEEE binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits. */
static float float_from_half(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = (half >> 10) & 31u, fraction = half & 1023u;
    if (exponent == 31)
        return float_from_bits(sign | 0x7F800000u | fraction << 13);
    if (exponent != 0)
        return float_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float value = (float)fraction * 0x1p-24f; /* subnormal or zero */
    return sign ? -value : value;
}

/* The upper bits of `value` after `drop` low ones are rounded away, to nearest, ties to even. */
static uint32_t shift_rounded(uint32_t value, unsigned drop)
{
    uint32_t rest = value & ((1u << drop) - 1), half = 1u << (drop - 1), kept = value >> drop;
    return kept + (rest > half || (rest == half && (kept & 1)));
}

static uint16_t half_from_float(float value)
{
    uint32_t bits = bits_from_float(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u)
        return (uint16_t)(sign | 0x7E00u); /* NaN */
    if (magnitude >= 0x477FF000u)
        return (uint16_t)(sign | 0x7C00u); /* 65520 and more: infinity */
    if (magnitude >= 0x38800000u)          /* 2^-14: normal; a carry moves the exponent */
        return (uint16_t)(sign | shift_rounded(magnitude - (112u << 23), 13));
    if (magnitude < 0x33000000u) /* below 2^-25 */
        return (uint16_t)sign;
    uint32_t exponent = magnitude >> 23, fraction = (magnitude & 0x7FFFFFu) | 0x800000u;
    return (uint16_t)(sign | shift_rounded(fraction, 126 - exponent));
}

static uint16_t bfloat_from_float(float value)
{
    uint32_t bits = bits_from_float(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)shift_rounded(bits, 16);
}

/* ---- elements ---- */

static int64_t int_from_double(double value)
{
    if (value != value)
        return 0;
    if (value >= 0x1p63)
        return INT64_MAX;
    if (value < -0x1p63)
        return INT64_MIN;
    return (int64_t)value;
}

int64_t asen_ref_get_int(ref_array a, int64_t i)
{
    switch (a.dtype) {
    case ASEN_BOOL:
    case ASEN_U8: return ((const uint8_t *)a.data)[i];
    case ASEN_I32: return ((const int32_t *)a.data)[i];
    case ASEN_I64: return ((const int64_t *)a.data)[i];
    default: return int_from_double(ref_get(a, i));
    }
}

void asen_ref_put_int(ref_array a, int64_t i, int64_t value)
{
    switch (a.dtype) {
    case ASEN_BOOL: ((uint8_t *)a.data)[i] = value != 0; break;
    case ASEN_U8: ((uint8_t *)a.data)[i] = (uint8_t)value; break;
    case ASEN_I32: ((int32_t *)a.data)[i] = (int32_t)(uint32_t)value; break;
    case ASEN_I64: ((int64_t *)a.data)[i] = value; break;
    case ASEN_F32: ((float *)a.data)[i] = (float)value; break; /* not through double: one rounding */
    default: ref_put(a, i, (double)value);
    }
}

double asen_ref_get_any(ref_array a, int64_t i)
{
    switch (a.dtype) {
    case ASEN_F16: return float_from_half(((const uint16_t *)a.data)[i]);
    case ASEN_BF16: return float_from_bits((uint32_t)((const uint16_t *)a.data)[i] << 16);
    case ASEN_F32: return ((const float *)a.data)[i];
    case ASEN_F64: return ((const double *)a.data)[i];
    default: return (double)asen_ref_get_int(a, i);
    }
}

void asen_ref_put_any(ref_array a, int64_t i, double value)
{
    switch (a.dtype) {
    case ASEN_BOOL: ((uint8_t *)a.data)[i] = value != 0; break;
    case ASEN_F16: ((uint16_t *)a.data)[i] = half_from_float((float)value); break;
    case ASEN_BF16: ((uint16_t *)a.data)[i] = bfloat_from_float((float)value); break;
    case ASEN_F32: ((float *)a.data)[i] = (float)value; break;
    case ASEN_F64: ((double *)a.data)[i] = value; break;
    default: asen_ref_put_int(a, i, int_from_double(value));
    }
}

bool asen_ref_all_float(const asen_call *call)
{
    for (int i = 0; i < call->n_in; i++)
        if (!ref_is_float(call->in[i]))
            return false;
    for (int i = 0; i < call->n_out; i++)
        if (!ref_is_float(call->out[i]))
            return false;
    return true;
}

double asen_ref_dot(ref_array a, int64_t ia, ref_array b, int64_t ib, int64_t n)
{
    double sum = 0;
    if (a.dtype == ASEN_F32 && b.dtype == ASEN_F32) {
        const float *p = (const float *)a.data + ia, *q = (const float *)b.data + ib;
        for (int64_t j = 0; j < n; j++)
            sum += (double)p[j] * q[j];
    } else {
        for (int64_t j = 0; j < n; j++)
            sum += ref_get(a, ia + j) * ref_get(b, ib + j);
    }
    return sum;
}

void asen_ref_add_scaled(double *sum, double factor, ref_array a, int64_t ia, int64_t n)
{
    if (a.dtype == ASEN_F32) {
        const float *p = (const float *)a.data + ia;
        for (int64_t j = 0; j < n; j++)
            sum[j] += factor * p[j];
    } else {
        for (int64_t j = 0; j < n; j++)
            sum[j] += factor * ref_get(a, ia + j);
    }
}

int asen_ref_zeros_new(int64_t count, double **out)
{
    *out = calloc(count > 0 ? (size_t)count : 1, sizeof **out);
    if (*out == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "no memory for %" PRId64 " sums in float64", count);
    return ASEN_OK;
}

int asen_ref_check_index(const char *what, int64_t value, int64_t position, int64_t size, const char *size_name)
{
    if (value >= 0 && value < size)
        return ASEN_OK;
    return asen_fail(ASEN_ERR_INDEX, "%s %" PRId64 " at position %" PRId64 " is outside [0, %" PRId64 "): there are %" PRId64 " %s",
                     what, value, position, size, size, size_name);
}

/* ---- walks ---- */

void asen_ref_walk_start(ref_walk *walk, int ndim, const int64_t *shape)
{
    static const int channels_last[4] = {0, 2, 3, 1};
    *walk = (ref_walk){.ndim = ndim, .count = 1};
    for (int d = 0; d < ndim; d++) {
        walk->order[d] = ndim == 4 ? channels_last[d] : d;
        walk->size[d] = shape[walk->order[d]];
        walk->count *= walk->size[d];
    }
}

void asen_ref_walk_add(ref_walk *walk, const int64_t *stride, int64_t offset)
{
    int k = walk->operands++;
    for (int d = 0; d < walk->ndim; d++)
        walk->stride[k][d] = stride[walk->order[d]];
    walk->at[k] = offset;
}
