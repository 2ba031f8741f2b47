/* Ranking by similarity, metrics of whole rankings, confusion counts.
 *
 * A ranking is a stable radix sort of 64-bit elements: the key in the high half, ordered so that
 * ascending means falling score, and a tag in the low half. Sorting is stable and elements start
 * in candidate order, so ties keep it. Queries are independent: each is summed and sorted by one
 * thread, so results have the same bits whatever the number of threads. */
#include "metrics/metrics.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "metrics/similarity/block.h"

enum {
    STRIP = 8 * ASEN_SIMILARITY_ROWS, /* queries whose scores one thread holds at a time */
    DIGIT_BITS = 11,
    DIGITS = 3, /* 3 * 11 >= 32 */
    BINS = 1 << DIGIT_BITS,
    LANES = 8, /* sums that hide the latency of divisions */
    MAX_THREADS = 256
};

/* --- ranking ----------------------------------------------------------------------------------*/

/* Ascending order of the result is falling order of scores; -0 and +0 are one score. */
static uint32_t key_f32(float score)
{
    uint32_t bits;
    score += 0.0f;
    memcpy(&bits, &score, sizeof bits);
    return ~(bits ^ (bits >> 31 ? UINT32_MAX : UINT32_C(1) << 31));
}

static uint64_t key_f64(double score)
{
    uint64_t bits;
    score += 0.0;
    memcpy(&bits, &score, sizeof bits);
    return ~(bits ^ (bits >> 63 ? UINT64_MAX : UINT64_C(1) << 63));
}

/* Sorts `items` (count) by their high 32 bits, stably. `other` (count) is scratch; returns the one
 * of the two that holds the result. */
static uint64_t *sort_items(uint64_t *items, uint64_t *other, size_t count)
{
    uint32_t histogram[DIGITS][BINS];
    memset(histogram, 0, sizeof histogram);
    for (size_t i = 0; i < count; i++)
        for (int d = 0; d < DIGITS; d++)
            histogram[d][items[i] >> (32 + d * DIGIT_BITS) & (BINS - 1)]++;
    for (int d = 0; d < DIGITS; d++) {
        int shift = 32 + d * DIGIT_BITS;
        uint32_t *place = histogram[d], sum = 0;
        if (count > 0 && place[items[0] >> shift & (BINS - 1)] == count)
            continue;
        for (int b = 0; b < BINS; b++) {
            uint32_t here = place[b];
            place[b] = sum;
            sum += here;
        }
        for (size_t i = 0; i < count; i++)
            other[place[items[i] >> shift & (BINS - 1)]++] = items[i];
        uint64_t *sorted = other;
        other = items;
        items = sorted;
    }
    return items;
}

/* Adds the precisions at the relevant ranks number `from` (a multiple of LANES) to `to`, each to the
 * sum of its lane. */
static inline void add_precisions(const uint32_t *ranks, size_t from, size_t to, double sum[LANES])
{
    size_t k = from;
    for (; k + LANES <= to; k += LANES)
        for (int lane = 0; lane < LANES; lane++)
            sum[lane] += (double)(k + (size_t)lane + 1) / ranks[k + (size_t)lane];
    for (; k < to; k++)
        sum[k % LANES] += (double)(k + 1) / ranks[k];
}

static double lane_total(const double sum[LANES])
{
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

/* How many of the ascending `ranks` (hits) are at most `limit`. */
static size_t hits_within(const uint32_t *ranks, size_t hits, size_t limit)
{
    size_t low = 0, high = hits < limit ? hits : limit; /* ranks are at least 1, 2, 3, ... */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (ranks[middle] <= limit)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* metrics (ASEN_METRICS) from a ranking (count) whose elements have bit 0 set where relevant. `ranks`
 * (count) is scratch. The ranks of the relevant ones are gathered first, without a branch that a
 * processor would guess wrongly at every turn; everything is known from them. The sum of MAP@R is
 * that of AP, stopped on its way: at the last whole round of lanes a copy leaves it. */
static void measure_ranking(const uint64_t *ranked, size_t count, uint32_t *ranks, double *metrics)
{
    size_t hits = 0;
    for (size_t i = 0; i < count; i++) {
        ranks[hits] = (uint32_t)(i + 1);
        hits += ranked[i] & 1;
    }
    memset(metrics, 0, ASEN_METRICS * sizeof *metrics);
    if (hits == 0)
        return;

    size_t within = hits_within(ranks, hits, hits), rounds = within - within % LANES;
    double whole[LANES] = {0}, head[LANES];
    add_precisions(ranks, 0, rounds, whole);
    memcpy(head, whole, sizeof head);
    add_precisions(ranks, rounds, within, head);
    add_precisions(ranks, rounds, hits, whole);
    metrics[ASEN_AVERAGE_PRECISION] = lane_total(whole) / (double)hits;
    metrics[ASEN_MAP_R] = lane_total(head) / (double)hits;
    metrics[ASEN_RECALL_1] = ranks[0] <= 1;
    metrics[ASEN_RECALL_5] = ranks[0] <= 5;
    metrics[ASEN_RECALL_10] = ranks[0] <= 10;
    metrics[ASEN_PRECISION_10] = (double)hits_within(ranks, hits, 10) / 10;
}

/* Indices by falling score in the low halves of the result, which lies in scratch (2 * count). */
static int rank_f64(const double *scores, size_t count, uint64_t *scratch, uint64_t **ranked)
{
    uint64_t *items = scratch, *other = scratch + count;
    if (count > UINT32_MAX)
        return asen_fail(ASEN_ERR_VALUE, "ranking: %zu scores are more than can be ranked", count);
    for (size_t i = 0; i < count; i++) {
        if (isnan(scores[i]))
            return asen_fail(ASEN_ERR_VALUE, "ranking: score %zu is NaN", i);
        items[i] = key_f64(scores[i]) << 32 | i;
    }
    uint64_t *low = sort_items(items, other, count);
    for (size_t i = 0; i < count; i++) {
        uint64_t index = low[i] & UINT32_MAX;
        low[i] = (key_f64(scores[index]) >> 32) << 32 | index;
    }
    *ranked = sort_items(low, low == items ? other : items, count);
    return ASEN_OK;
}

int asen_metrics_rank(const double *scores, size_t count, int64_t *order)
{
    uint64_t *ranked, *scratch = malloc((count ? count : 1) * 2 * sizeof *scratch);
    if (scratch == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "ranking: no memory for %zu scores", count);
    int status = rank_f64(scores, count, scratch, &ranked);
    if (status == ASEN_OK)
        for (size_t i = 0; i < count; i++)
            order[i] = (int64_t)(ranked[i] & UINT32_MAX);
    free(scratch);
    return status;
}

int asen_metrics_average_precision(const double *scores, const uint8_t *relevant, size_t count, double *ap)
{
    uint64_t *ranked, *scratch = malloc((count ? count : 1) * 2 * sizeof *scratch);
    *ap = 0;
    if (scratch == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "average_precision: no memory for %zu scores", count);
    int status = rank_f64(scores, count, scratch, &ranked);
    if (status == ASEN_OK) {
        double metrics[ASEN_METRICS];
        for (size_t i = 0; i < count; i++)
            ranked[i] = relevant[ranked[i] & UINT32_MAX] != 0;
        measure_ranking(ranked, count, (uint32_t *)(ranked == scratch ? scratch + count : scratch), metrics);
        *ap = metrics[ASEN_AVERAGE_PRECISION];
    }
    free(scratch);
    return status;
}

/* --- many queries -----------------------------------------------------------------------------*/

struct asen_ranker {
    float *packed;   /* panels of (dim, ASEN_SIMILARITY_COLS) */
    int64_t *values; /* (count) */
    size_t count, dim;
};

int asen_ranker_create(const float *candidates, const int64_t *values, size_t count, size_t dim,
                       asen_ranker **out)
{
    asen_ranker *ranker = NULL;
    *out = NULL;
    if (count == 0 || dim == 0)
        return asen_fail(ASEN_ERR_VALUE, "ranking: %zu candidates of %zu dimensions: nothing to rank",
                         count, dim);
    if (count > UINT32_MAX)
        return asen_fail(ASEN_ERR_VALUE, "ranking: %zu candidates are more than can be ranked", count);
    size_t size = asen_similarity_packed_size(count, dim, ASEN_SIMILARITY_COLS);
    ranker = calloc(1, sizeof *ranker);
    if (ranker == NULL)
        goto fail;
    ranker->count = count;
    ranker->dim = dim;
    ranker->packed = aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64);
    ranker->values = malloc(count * sizeof *ranker->values);
    if (ranker->packed == NULL || ranker->values == NULL)
        goto fail;
    asen_similarity_pack(candidates, count, dim, ASEN_SIMILARITY_COLS, ranker->packed);
    memcpy(ranker->values, values, count * sizeof *values);
    *out = ranker;
    return ASEN_OK;
fail:
    asen_ranker_free(ranker);
    return asen_fail(ASEN_ERR_MEMORY, "ranking: no memory for %zu candidates of %zu dimensions (%zu bytes)",
                     count, dim, size * sizeof(float));
}

void asen_ranker_free(asen_ranker *ranker)
{
    if (ranker == NULL)
        return;
    free(ranker->packed);
    free(ranker->values);
    free(ranker);
}

/* What the threads of one call share. */
typedef struct {
    const asen_ranker *ranker;
    const float *queries;  /* (count, dim) */
    const int64_t *values; /* (count) */
    double *metrics;       /* (count, ASEN_METRICS) */
    size_t count;
    atomic_size_t next;    /* first query of the next strip */
} job;

/* A thread's own memory and what it met. */
typedef struct {
    job *shared;
    pthread_t thread;
    float *packed;     /* STRIP queries */
    float *scores;     /* (STRIP, candidates padded) */
    uint64_t *scratch; /* (2 * candidates) */
    size_t bad_query;  /* SIZE_MAX, or the first query it met with a NaN score */
    size_t bad_candidate;
} worker;

static void worker_free(worker *self)
{
    free(self->packed);
    free(self->scores);
    free(self->scratch);
}

static int worker_init(worker *self, job *shared)
{
    size_t dim = shared->ranker->dim, count = shared->ranker->count;
    size_t padded = asen_similarity_packed_size(count, 1, ASEN_SIMILARITY_COLS);
    self->shared = shared;
    self->bad_query = SIZE_MAX;
    self->packed = aligned_alloc(64, STRIP * dim * sizeof(float));
    self->scores = aligned_alloc(64, STRIP * padded * sizeof(float));
    self->scratch = malloc(2 * count * sizeof *self->scratch);
    if (self->packed != NULL && self->scores != NULL && self->scratch != NULL)
        return ASEN_OK;
    worker_free(self);
    return asen_fail(ASEN_ERR_MEMORY, "ranking: no memory for the scores of %d queries by %zu candidates",
                     STRIP, count);
}

/* metrics (ASEN_METRICS) of one row of scores (count), or the index of a NaN in *bad. */
static void measure_row(const float *scores, const int64_t *values, int64_t value, size_t count,
                        uint64_t *scratch, double *metrics, size_t *bad)
{
    for (size_t j = 0; j < count; j++) {
        if (isnan(scores[j])) {
            *bad = j;
            return;
        }
        scratch[j] = (uint64_t)key_f32(scores[j]) << 32 | (values[j] == value);
    }
    const uint64_t *ranked = sort_items(scratch, scratch + count, count);
    measure_ranking(ranked, count, (uint32_t *)(ranked == scratch ? scratch + count : scratch), metrics);
}

static void *worker_run(void *argument)
{
    worker *self = argument;
    job *shared = self->shared;
    const asen_ranker *ranker = shared->ranker;
    size_t dim = ranker->dim, ld = asen_similarity_packed_size(ranker->count, 1, ASEN_SIMILARITY_COLS);
    while (self->bad_query == SIZE_MAX) {
        size_t start = atomic_fetch_add(&shared->next, STRIP);
        if (start >= shared->count)
            break;
        size_t rows = shared->count - start < STRIP ? shared->count - start : STRIP;
        asen_similarity_pack(shared->queries + start * dim, rows, dim, ASEN_SIMILARITY_ROWS, self->packed);
        asen_similarity_block(self->packed, rows, ranker->packed, ranker->count, dim, self->scores);
        for (size_t i = start; i < start + rows && self->bad_query == SIZE_MAX; i++) {
            size_t bad = SIZE_MAX;
            measure_row(self->scores + (i - start) * ld, ranker->values, shared->values[i], ranker->count,
                        self->scratch, shared->metrics + i * ASEN_METRICS, &bad);
            if (bad != SIZE_MAX) {
                self->bad_query = i;
                self->bad_candidate = bad;
            }
        }
    }
    return NULL;
}

int asen_ranker_measure(const asen_ranker *ranker, const float *queries, const int64_t *values, size_t count,
                        size_t first, int threads, double *metrics)
{
    size_t strips = (count + STRIP - 1) / STRIP, wanted = threads < 1 ? 1 : (size_t)threads;
    wanted = wanted > strips ? strips : wanted;
    wanted = wanted > MAX_THREADS ? MAX_THREADS : wanted;
    if (wanted == 0)
        return ASEN_OK;
    job shared = {.ranker = ranker, .queries = queries, .values = values, .metrics = metrics, .count = count};
    atomic_init(&shared.next, 0);
    worker *workers = calloc(wanted, sizeof *workers);
    if (workers == NULL)
        return asen_fail(ASEN_ERR_MEMORY, "ranking: no memory for %zu threads", wanted);

    /* Fewer threads than wanted is slower, not wrong: only the first one has to work. */
    int status = worker_init(&workers[0], &shared);
    size_t ready = status == ASEN_OK, started = ready;
    while (ready > 0 && ready < wanted && worker_init(&workers[ready], &shared) == ASEN_OK)
        ready++;
    while (started > 0 && started < ready
           && pthread_create(&workers[started].thread, NULL, worker_run, &workers[started]) == 0)
        started++;
    if (ready > 0)
        worker_run(&workers[0]);
    for (size_t i = 1; i < started; i++)
        pthread_join(workers[i].thread, NULL);

    const worker *bad = NULL;
    for (size_t i = 0; i < ready; i++) {
        if (workers[i].bad_query != SIZE_MAX && (bad == NULL || workers[i].bad_query < bad->bad_query))
            bad = &workers[i];
        worker_free(&workers[i]);
    }
    if (bad != NULL)
        status = asen_fail(ASEN_ERR_VALUE,
                           "ranking: the similarity of query %zu and candidate %zu is NaN: "
                           "one of the two embeddings is not finite",
                           first + bad->bad_query, bad->bad_candidate);
    free(workers);
    return status;
}

/* --- classification ---------------------------------------------------------------------------*/

int asen_metrics_confusion(const int64_t *truth, const int64_t *predicted, size_t count, size_t classes,
                           int64_t *counts)
{
    memset(counts, 0, classes * classes * sizeof *counts);
    for (size_t i = 0; i < count; i++) {
        int64_t wrong = truth[i] < 0 || (uint64_t)truth[i] >= classes ? truth[i] : predicted[i];
        if (wrong < 0 || (uint64_t)wrong >= classes)
            return asen_fail(ASEN_ERR_VALUE, "classification: %s class of item %zu is %lld, not one of 0 to %lld",
                             wrong == truth[i] ? "the true" : "the predicted", i, (long long)wrong,
                             (long long)classes - 1);
        counts[(size_t)truth[i] * classes + (size_t)predicted[i]]++;
    }
    return ASEN_OK;
}
