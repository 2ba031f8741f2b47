/* Sums of products for the simulated cuBLASLt and cuDNN: C += A B^T over panels, in float (partial sums of
 * 128 products at most, added up in double) or in double. */
#ifndef CUDASIM_GEMM_H
#define CUDASIM_GEMM_H

#include <cstddef>
#include <cstdint>
#include <vector>

#include <library_types.h>

namespace cudasim {

enum { GEMM_MR = 6 };
template <typename T> constexpr int gemm_nr = 64 / (int)sizeof(T); /* 16 floats, 8 doubles */

/* An operand, `count` rows of length k: panels of R rows, in each the R values of a k beside each other.
 * Rows beyond the count are zero. */
template <typename T, int R> struct panels {
    int64_t count, k;
    std::vector<T> data;
    panels(int64_t count_, int64_t k_) : count(count_), k(k_), data((size_t)((count_ + R - 1) / R * R * k_)) {}
    T *at(int64_t row) { return data.data() + row / R * R * k + row % R; } /* its value of j: at(row)[j * R] */
};
template <typename T> using left = panels<T, GEMM_MR>;
template <typename T> using right = panels<T, gemm_nr<T>>;

/* c (a.count, b.count), rows `ldc` apart: += a b^T */
template <typename T> void gemm_add(const left<T> &a, const right<T> &b, double *c, int64_t ldc);

/* Bytes of an element; 0 for a type that is not simulated. */
size_t type_size(cudaDataType_t type);
/* Elements of a tensor in memory as T: converts, with `tf32` float32 rounded to it. */
template <typename T> void elements_read(T *to, const void *from, cudaDataType_t type, int64_t count, bool tf32);
double element_read(const void *from, cudaDataType_t type, int64_t index);
void element_write(void *to, cudaDataType_t type, int64_t index, double value);
float round_tf32(float x);

} // namespace cudasim

#endif
