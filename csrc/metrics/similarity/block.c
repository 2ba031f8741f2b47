/* Dot products of many queries with many candidates: a register-blocked matrix product.
 *
 * Both sides are packed into panels, so that the inner loop reads two streams. One panel of
 * candidates stays in L1 for ASEN_SIMILARITY_DEPTH of the dimension while the query panels, in
 * L2, pass by. The kernel (the .inc file) is compiled for each instruction set with as many
 * accumulators as it has registers. Every score is a chain of multiply-adds along k of its own,
 * so its bits do not depend on which panel or lane it falls into. */
#include <string.h>

#include "metrics/similarity/block.h"

enum { ROWS = ASEN_SIMILARITY_ROWS, COLS = ASEN_SIMILARITY_COLS, DEPTH = ASEN_SIMILARITY_DEPTH };

size_t asen_similarity_packed_size(size_t count, size_t dim, size_t panel)
{
    return (count + panel - 1) / panel * panel * dim;
}

void asen_similarity_pack(const float *vectors, size_t count, size_t dim, size_t panel, float *packed)
{
    for (size_t start = 0; start < count; start += panel, packed += panel * dim) {
        size_t here = count - start < panel ? count - start : panel;
        if (here < panel)
            memset(packed, 0, panel * dim * sizeof *packed);
        for (size_t i = 0; i < here; i++)
            for (size_t k = 0; k < dim; k++)
                packed[k * panel + i] = vectors[(start + i) * dim + k];
    }
}

#if defined(__x86_64__)
#define NAME(x) x##_avx512
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define LANES 16
#define TILE_ROWS 12
#define TILE_VECS 2
#include "metrics/similarity/block.inc"

#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define TILE_ROWS 6
#define TILE_VECS 2
#include "metrics/similarity/block.inc"
#endif

/* 16 registers of four floats on x86-64, 32 on aarch64. */
#define NAME(x) x##_plain
#define TARGET
#define LANES 4
#if defined(__aarch64__)
#define TILE_ROWS 12
#else
#define TILE_ROWS 6
#endif
#define TILE_VECS 2
#include "metrics/similarity/block.inc"

void asen_similarity_block(const float *queries, size_t rows, const float *candidates, size_t cols,
                           size_t dim, float *scores)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) {
        block_avx512(queries, rows, candidates, cols, dim, scores);
        return;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        block_avx2(queries, rows, candidates, cols, dim, scores);
        return;
    }
#endif
    block_plain(queries, rows, candidates, cols, dim, scores);
}
