/* Retrieval and classification metrics: ranking candidates by similarity, average precision,
 * confusion counts. Nothing here knows of Python; long work is cut into blocks by the caller. */
#ifndef ASEN_METRICS_H
#define ASEN_METRICS_H

#include <stddef.h>
#include <stdint.h>

/* Candidates prepared for many queries: packed vectors and their values. */
typedef struct asen_ranker asen_ranker;

/* candidates (count, dim) and values (count) are copied. New ranker in *out, NULL on failure. */
int asen_ranker_create(const float *candidates, const int64_t *values, size_t count, size_t dim,
                       asen_ranker **out);
void asen_ranker_free(asen_ranker *ranker);

/* ap[i] of queries (count, dim) whose relevant candidates are those with values[i]. `first` is
 * the number of the first query, for messages. Memory: threads * 96 * candidates floats. */
int asen_ranker_average_precision(const asen_ranker *ranker, const float *queries, const int64_t *values,
                                  size_t count, size_t first, int threads, double *ap);

/* order (count): indices by falling score, ties by index. NaN is an error. */
int asen_metrics_rank(const double *scores, size_t count, int64_t *order);

/* AP of one ranking: mean over the relevant ranks r of (relevant among the first r) / r, and 0
 * when nothing is relevant. */
int asen_metrics_average_precision(const double *scores, const uint8_t *relevant, size_t count, double *ap);

/* counts (classes, classes): rows are true classes, columns predicted ones. */
int asen_metrics_confusion(const int64_t *truth, const int64_t *predicted, size_t count, size_t classes,
                           int64_t *counts);

#endif
