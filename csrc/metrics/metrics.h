/* Retrieval and classification metrics: ranking candidates by similarity, what is measured of a
 * ranking, confusion counts. Nothing here knows of Python; long work is cut into blocks by the caller. */
#ifndef ASEN_METRICS_H
#define ASEN_METRICS_H

#include <stddef.h>
#include <stdint.h>

/* What is measured of one ranking. With R relevant candidates and P(r) = (relevant among the first
 * r) / r. All are in [0, 1], and 0 when nothing is relevant. A ranking that is shorter than K or 10
 * counts as one that goes on with candidates that are not relevant. */
enum {
    ASEN_AVERAGE_PRECISION, /* (1/R) sum of P(r) over all ranks r of relevant candidates */
    ASEN_RECALL_1,          /* Recall@K of metric learning: 1 where a relevant candidate is among the */
    ASEN_RECALL_5,          /* first K, else 0 (Jegou et al. 2011; Musgrave et al. 2020) */
    ASEN_RECALL_10,
    ASEN_PRECISION_10,      /* relevant among the first 10, over 10 */
    ASEN_MAP_R,             /* (1/R) sum of P(r) over the ranks r <= R of relevant candidates
                             * (Musgrave et al. 2020, A Metric Learning Reality Check) */
    ASEN_METRICS            /* how many */
};

/* Candidates prepared for many queries: packed vectors and their values. */
typedef struct asen_ranker asen_ranker;

/* candidates (count, dim) and values (count) are copied. New ranker in *out, NULL on failure. */
int asen_ranker_create(const float *candidates, const int64_t *values, size_t count, size_t dim,
                       asen_ranker **out);
void asen_ranker_free(asen_ranker *ranker);

/* metrics (count, ASEN_METRICS) of queries (count, dim); the relevant candidates of query i are those
 * with values[i]. `first` is the number of the first query, for messages. Memory: threads * 96 *
 * candidates floats. */
int asen_ranker_measure(const asen_ranker *ranker, const float *queries, const int64_t *values, size_t count,
                        size_t first, int threads, double *metrics);

/* order (count): indices by falling score, ties by index. NaN is an error. */
int asen_metrics_rank(const double *scores, size_t count, int64_t *order);

/* ASEN_AVERAGE_PRECISION of one ranking. */
int asen_metrics_average_precision(const double *scores, const uint8_t *relevant, size_t count, double *ap);

/* counts (classes, classes): rows are true classes, columns predicted ones. */
int asen_metrics_confusion(const int64_t *truth, const int64_t *predicted, size_t count, size_t classes,
                           int64_t *counts);

#endif
