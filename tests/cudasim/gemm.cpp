/* See gemm.h. The inner loop is GCC vectors: 6 rows by two vectors of columns, in registers. */
#include "gemm.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace cudasim {

enum : int64_t { KC = 128 };

template <typename T> struct vector_type;
template <> struct vector_type<float> {
    typedef float type __attribute__((vector_size(32), aligned(4), may_alias));
    typedef float full __attribute__((vector_size(32)));
};
template <> struct vector_type<double> {
    typedef double type __attribute__((vector_size(32), aligned(8), may_alias));
    typedef double full __attribute__((vector_size(32)));
};

template <typename T>
static void micro(const T *a, const T *b, int64_t k, double *c, int64_t ldc, int64_t rows, int64_t columns)
{
    typedef typename vector_type<T>::type loose;
    typedef typename vector_type<T>::full full;
    constexpr int NR = gemm_nr<T>, W = NR / 2;
    full sum[GEMM_MR][2] = {};
    for (int64_t j = 0; j < k; j++, a += GEMM_MR, b += NR) {
        full b0 = *(const loose *)b, b1 = *(const loose *)(b + W);
        for (int r = 0; r < GEMM_MR; r++) {
            full x = a[r] - full{};
            sum[r][0] += x * b0;
            sum[r][1] += x * b1;
        }
    }
    if (rows == GEMM_MR && columns == NR) {
        for (int r = 0; r < GEMM_MR; r++)
            for (int i = 0; i < NR; i++)
                c[r * ldc + i] += (double)((T *)sum[r])[i];
        return;
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < columns; i++)
            c[r * ldc + i] += (double)((T *)sum[r])[i];
}

template <typename T> void gemm_add(const left<T> &a, const right<T> &b, double *c, int64_t ldc)
{
    constexpr int NR = gemm_nr<T>;
    int64_t k = a.k, block = 16 * GEMM_MR; /* rows of a that stay in the cache */
    for (int64_t m0 = 0; m0 < a.count; m0 += block)
        for (int64_t k0 = 0; k0 < k; k0 += KC) {
            int64_t kb = std::min(k - k0, (int64_t)KC), m1 = std::min(a.count, m0 + block);
            for (int64_t n = 0; n < b.count; n += NR)
                for (int64_t m = m0; m < m1; m += GEMM_MR)
                    micro<T>(a.data.data() + m * k + k0 * GEMM_MR, b.data.data() + n * k + k0 * NR, kb, c + m * ldc + n, ldc,
                             std::min(a.count - m, (int64_t)GEMM_MR), std::min(b.count - n, (int64_t)NR));
        }
}
template void gemm_add<float>(const left<float> &, const right<float> &, double *, int64_t);
template void gemm_add<double>(const left<double> &, const right<double> &, double *, int64_t);

size_t type_size(cudaDataType_t type)
{
    switch (type) {
    case CUDA_R_64F: return 8;
    case CUDA_R_32F: return 4;
    case CUDA_R_16F: case CUDA_R_16BF: return 2;
    default: return 0;
    }
}

/* To 10 bits of mantissa, nearest even. */
float round_tf32(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7f800000u) != 0x7f800000u)
        bits = (bits + 0xfffu + (bits >> 13 & 1)) & ~0x1fffu;
    memcpy(&x, &bits, 4);
    return x;
}

double element_read(const void *from, cudaDataType_t type, int64_t i)
{
    switch (type) {
    case CUDA_R_64F: return ((const double *)from)[i];
    case CUDA_R_32F: return ((const float *)from)[i];
    case CUDA_R_16F: return __half2float(((const __half *)from)[i]);
    default: return __bfloat162float(((const __nv_bfloat16 *)from)[i]);
    }
}

void element_write(void *to, cudaDataType_t type, int64_t i, double value)
{
    switch (type) {
    case CUDA_R_64F: ((double *)to)[i] = value; break;
    case CUDA_R_32F: ((float *)to)[i] = (float)value; break;
    case CUDA_R_16F: ((__half *)to)[i] = __float2half_rn((float)value); break;
    default: ((__nv_bfloat16 *)to)[i] = __float2bfloat16_rn((float)value);
    }
}

template <typename T> void elements_read(T *to, const void *from, cudaDataType_t type, int64_t count, bool tf32)
{
    if (type == CUDA_R_32F && !tf32) {
        const float *p = (const float *)from;
        for (int64_t i = 0; i < count; i++)
            to[i] = (T)p[i];
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        double value = element_read(from, type, i);
        to[i] = (T)(tf32 ? round_tf32((float)value) : value);
    }
}
template void elements_read<float>(float *, const void *, cudaDataType_t, int64_t, bool);
template void elements_read<double>(double *, const void *, cudaDataType_t, int64_t, bool);

} // namespace cudasim
