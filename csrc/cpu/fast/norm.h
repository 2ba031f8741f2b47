/* What batch norm forward and backward share: the geometry of the work.
 *
 * x lies as rows of C floats, `rows` of them in each group. Narrow rows are taken several at a
 * time ("pack") as one wide row of pack * C columns, so that vectors are full and inner loops long
 * for any C (64 channels: a third faster); what is left over at the end of a group (fewer than
 * `pack` rows) is its tail. */
#ifndef ASEN_CPU_FAST_NORM_H
#define ASEN_CPU_FAST_NORM_H

#include "cpu/fast/fast.h"

#define NORM_WIDE 512 /* columns that a wide row has at least */
#define NORM_BLOCK 64 /* wide rows that are summed in float before they go into doubles */

typedef struct norm_shape {
    int64_t channels, groups;
    int64_t rows;       /* of a group */
    int64_t pack, wide; /* rows in a wide row, its columns */
    int64_t wide_rows;  /* of a group */
    int64_t tail;       /* rows of a group after the last wide row */
} norm_shape;

/* False where the layout is none of ours. */
static inline bool norm_shape_of(const asen_tensor *x, int64_t groups, norm_shape *s)
{
    if (x->ndim != 2 && x->ndim != 4)
        return false;
    int64_t count = x->shape[0] * (x->ndim == 4 ? x->shape[2] * x->shape[3] : 1);
    s->channels = x->shape[1];
    s->groups = groups;
    if (s->channels < 1 || groups < 1 || x->shape[0] % groups != 0 || count == 0)
        return false;
    s->rows = count / groups;
    s->pack = fast_min_i64((NORM_WIDE + s->channels - 1) / s->channels, s->rows);
    s->wide = s->pack * s->channels;
    s->wide_rows = s->rows / s->pack;
    s->tail = s->rows % s->pack;
    return true;
}

/* The float arrays of a call start at multiples of 16 floats. */
static inline int64_t norm_round(int64_t floats) { return (floats + 15) / 16 * 16; }

#endif
