/* Dot products of blocks of vectors, the inner loop of ranking.
 *
 * s[i][j] = sum_k q[i][k] c[j][k] in float32. A score is summed in one fixed order
 * (blocks of ASEN_SIMILARITY_DEPTH along k, ascending), whatever its place in the block and
 * whatever the number of threads: equal vectors get equal bits, so ties are ties. */
#ifndef ASEN_METRICS_SIMILARITY_BLOCK_H
#define ASEN_METRICS_SIMILARITY_BLOCK_H

#include <stddef.h>

enum {
    ASEN_SIMILARITY_ROWS = 12,   /* queries are packed in panels of so many */
    ASEN_SIMILARITY_COLS = 32,   /* candidates likewise */
    ASEN_SIMILARITY_DEPTH = 256  /* of the dimension, kept in L1 */
};

/* Floats that `count` vectors of `dim` take when packed in panels of `panel`. */
size_t asen_similarity_packed_size(size_t count, size_t dim, size_t panel);

/* (count, dim) -> panels (ceil(count/panel), dim, panel), the last one filled with zeros. */
void asen_similarity_pack(const float *vectors, size_t count, size_t dim, size_t panel, float *packed);

/* scores (rows padded to ROWS, ld), ld = candidates padded to COLS; both inputs packed.
 * Plain function, one thread. */
void asen_similarity_block(const float *queries, size_t rows, const float *candidates, size_t cols,
                           size_t dim, float *scores);

#endif
