"""Metrics against plain NumPy and Python models of their definitions."""

import json
import math
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from asenpp import _asen, metrics


def model_ap(scores, relevant) -> Fraction:
    """The definition, word by word, in exact arithmetic."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    hits, total = 0, Fraction(0)
    for rank, i in enumerate(order, 1):
        if relevant[i]:
            hits += 1
            total += Fraction(hits, rank)
    return total / hits if hits else Fraction(0)


def test_average_precision_by_hand():
    """Relevant at ranks 1 and 3: (1/1 + 2/3) / 2."""
    assert metrics.average_precision([0.9, 0.8, 0.7], [True, False, True]) == pytest.approx(5 / 6, abs=1e-15)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 100, 600])
def test_average_precision_follows_its_definition(n):
    """Random scores, with many ties where they are rounded, against the exact model."""
    rng = np.random.default_rng(n)
    for digits in (0, 1, 17):
        scores = np.round(rng.standard_normal(n) * 2, digits)
        relevant = rng.random(n) < rng.random()
        assert metrics.average_precision(scores, relevant) == pytest.approx(
            float(model_ap(scores.tolist(), relevant)), rel=1e-13, abs=0)


def test_average_precision_of_nothing_relevant_is_zero():
    assert metrics.average_precision([3.0, 1.0], [0, 0]) == 0.0
    assert metrics.average_precision([], []) == 0.0


def test_ties_rank_by_candidate_order():
    """One score for all: the ranking is the given order, so AP depends on where relevance stands."""
    assert metrics.average_precision(np.ones(4), [1, 0, 0, 0]) == 1.0
    assert metrics.average_precision(np.ones(4), [0, 0, 0, 1]) == 0.25
    assert metrics.average_precision([-0.0, 0.0, -0.0], [1, 0, 0]) == 1.0, "-0 and 0 are one score"


def test_ranking_is_the_stable_order_of_the_whole_double_range():
    """Signs, infinities, subnormals, differences in the last bit, ties."""
    rng = np.random.default_rng(1)
    scores = np.concatenate([
        rng.standard_normal(5000) * 10.0 ** rng.integers(-300, 300, 5000),
        np.repeat(rng.standard_normal(50), 40),
        [np.inf, -np.inf, 0.0, -0.0, 5e-324, -5e-324, 1.0, np.nextafter(1.0, 2), np.nextafter(1.0, 0)]])
    rng.shuffle(scores)
    np.testing.assert_array_equal(metrics.ranking(scores), np.argsort(-scores, kind="stable"))


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match="score 1 is NaN"):
        metrics.average_precision([1.0, math.nan], [1, 0])
    with pytest.raises(ValueError, match="score 0 is NaN"):
        metrics.ranking([math.nan])
    with pytest.raises(ValueError, match="one axis"):
        metrics.average_precision(np.ones((2, 2)), np.ones((2, 2), bool))
    with pytest.raises(ValueError, match="expected the same"):
        metrics.average_precision(np.ones(3), np.ones(2, bool))
    with pytest.raises(TypeError, match="complex128"):
        metrics.ranking(np.ones(3, complex))
    with pytest.raises(TypeError, match="relevant of dtype float64"):
        metrics.average_precision(np.ones(2), np.ones(2))


def vectors(rng, n, dim):
    v = rng.standard_normal((n, dim)).astype(np.float32)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


@pytest.mark.parametrize("q,c,dim", [(1, 1, 1), (3, 5, 2), (13, 33, 17), (97, 64, 256), (110, 101, 700)])
def test_mean_average_precision_against_the_model(q, c, dim):
    """Sizes off every panel, strip and depth. Small integers, so that every float32 sum is exact
    and the ranking, full of ties, has to be the model's, tie by tie."""
    rng = np.random.default_rng(q)
    queries = rng.integers(-3, 4, (q, dim)).astype(np.float32)
    candidates = rng.integers(-3, 4, (c, dim)).astype(np.float32)
    q_values, c_values = rng.integers(0, 4, q), rng.integers(0, 3, c)
    scores = queries.astype(np.float64) @ candidates.T.astype(np.float64)
    want = [float(model_ap(row.tolist(), c_values == value)) for row, value in zip(scores, q_values)]
    got = metrics.mean_average_precision(queries, candidates, q_values, c_values, per_query=True)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=0)
    assert metrics.mean_average_precision(queries, candidates, q_values, c_values) == np.mean(got)


def test_real_valued_similarity_matches_float64():
    """Unit vectors: mAP in float32 within what swapping near-equal neighbours can change."""
    rng = np.random.default_rng(5)
    queries, candidates = vectors(rng, 60, 1024), vectors(rng, 500, 1024)
    q_values, c_values = rng.integers(0, 3, 60), rng.integers(0, 3, 500)
    scores = queries.astype(np.float64) @ candidates.T.astype(np.float64)
    want = np.mean([metrics.average_precision(row, c_values == v) for row, v in zip(scores, q_values)])
    assert metrics.mean_average_precision(queries, candidates, q_values, c_values) == pytest.approx(want, rel=1e-4)


def test_equal_candidates_tie_wherever_they_stand():
    """The same vector in every lane and panel must score the same bits: AP is then known."""
    rng = np.random.default_rng(6)
    candidates = np.repeat(vectors(rng, 1, 1000), 101, axis=0)
    c_values = np.zeros(101, int)
    c_values[70] = 1
    queries = vectors(rng, 30, 1000)
    got = metrics.mean_average_precision(queries, candidates, np.ones(30, int), c_values, per_query=True)
    np.testing.assert_array_equal(got, 1 / 71)


def test_same_bits_whatever_the_threads():
    rng = np.random.default_rng(7)
    args = (vectors(rng, 1000, 40), vectors(rng, 150, 40), rng.integers(0, 3, 1000), rng.integers(0, 3, 150))
    one = metrics.mean_average_precision(*args, per_query=True, threads=1)
    for threads in (2, 3, 7):
        assert one.tobytes() == metrics.mean_average_precision(*args, per_query=True, threads=threads).tobytes()


def test_progress_counts_up_and_its_exception_ends_the_work():
    rng = np.random.default_rng(8)
    args = (vectors(rng, 2000, 4), vectors(rng, 20, 4), np.zeros(2000, int), np.zeros(20, int))
    seen = []
    metrics.mean_average_precision(*args, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 1 and seen == sorted(seen) and seen[-1] == (2000, 2000)

    def stop(done, total):
        raise LookupError(done)

    with pytest.raises(LookupError):
        metrics.mean_average_precision(*args, progress=stop)


def test_ctrl_c_ends_it_between_blocks():
    """SIGINT sent by a timer thread while C works without the GIL and without a progress callback
    ends the call: the work left after it is far longer than the test's patience."""
    program = """
import os, signal, threading, numpy as np
from asenpp import metrics
signal.signal(signal.SIGINT, signal.default_int_handler)    # a shell's background jobs begin with SIGINT ignored
q = np.ones((400000, 4), np.float32); c = np.ones((18000, 4), np.float32)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    metrics.mean_average_precision(q, c, np.zeros(len(q), int), np.zeros(len(c), int), threads=1)
    print("finished")
except KeyboardInterrupt:
    print("stopped")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout.split() == ["stopped"]


def test_anything_with_array_and_any_layout_will_do():
    """__array__, float64, Fortran order, strided views, lists."""
    class Wrapped:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array if dtype is None else self.array.astype(dtype)

    rng = np.random.default_rng(9)
    queries, candidates = vectors(rng, 20, 6), vectors(rng, 30, 6)
    q_values, c_values = rng.integers(0, 2, 20), rng.integers(0, 2, 30)
    want = metrics.mean_average_precision(queries, candidates, q_values, c_values)
    assert want == metrics.mean_average_precision(
        Wrapped(queries), np.asfortranarray(candidates.astype(np.float64)), q_values.tolist(),
        np.repeat(c_values.astype(np.int8), 2)[::2])


def test_mean_average_precision_names_what_is_wrong():
    q, c, qv, cv = np.ones((3, 4), np.float32), np.ones((5, 4), np.float32), np.zeros(3, int), np.zeros(5, int)
    call = metrics.mean_average_precision
    with pytest.raises(ValueError, match="queries have 4 dimensions, candidates 3"):
        call(q, c[:, :3], qv, cv)
    with pytest.raises(ValueError, match="3 queries, but 2 q_values"):
        call(q, c, qv[:2], cv)
    with pytest.raises(ValueError, match="5 candidates, but 4 c_values"):
        call(q, c, qv, cv[:4])
    with pytest.raises(ValueError, match="no queries"):
        call(q[:0], c, qv[:0], cv)
    with pytest.raises(ValueError, match="0 candidates"):
        call(q, c[:0], qv, cv[:0])
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        call(q[0], c, qv, cv)
    with pytest.raises(TypeError, match="int64, expected float32"):
        call(q.astype(np.int64), c, qv, cv)
    with pytest.raises(TypeError, match="q_values of dtype float32"):
        call(q, c, qv.astype(np.float32), cv)
    with pytest.raises(ValueError, match="threads=0"):
        call(q, c, qv, cv, threads=0)


def test_nan_embedding_is_refused_and_named():
    """In the second block of queries, to see that the number is the whole array's."""
    q, c = np.ones((1500, 4), np.float32), np.ones((5, 4), np.float32)
    q[1234, 2] = np.nan
    with pytest.raises(ValueError, match="query 1234 and candidate 0 is NaN"):
        metrics.mean_average_precision(q, c, np.zeros(1500, int), np.zeros(5, int))


def test_core_checks_buffers_itself():
    """The C functions hold against wrong buffers without the Python layer's conversions."""
    with pytest.raises(TypeError, match="scores: buffer format"):
        _asen.metrics_rank(np.zeros(2, np.float32), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="differ in length"):
        _asen.metrics_rank(np.zeros(2), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="scores: 2 axes"):
        _asen.metrics_rank(np.zeros((2, 2)), np.zeros(2, np.int64))
    with pytest.raises((TypeError, ValueError), match="buffer format"):
        _asen.metrics_rank(np.zeros(2, ">f8"), np.zeros(2, np.int64))
    order = np.zeros(2, np.int64)
    order.setflags(write=False)
    with pytest.raises((ValueError, BufferError)):
        _asen.metrics_rank(np.zeros(2), order)


# -- metrics of metric learning ----------------------------------------------------------------------

def model_metrics(scores, relevant) -> dict:
    """The definitions in NumPy, of one ranking: scores and relevance (C,)."""
    hit = relevant[np.argsort(-scores, kind="stable")]
    total = hit.sum()
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    share = lambda upto: (precision * hit)[:upto].sum() / total if total else 0.0     # noqa: E731
    return {"mAP": share(None), "recall@1": hit[:1].any(), "recall@5": hit[:5].any(), "recall@10": hit[:10].any(),
            "precision@10": hit[:10].sum() / 10, "map@r": share(total)}


def check_against_model(queries, candidates, q_values, c_values):
    """Each metric of each query. Vectors of small integers: float32 sums are exact, ties are ties."""
    got = metrics.retrieval_metrics(queries, candidates, q_values, c_values, per_query=True)
    scores = queries.astype(np.float64) @ candidates.T.astype(np.float64)
    want = [model_metrics(row, c_values == value) for row, value in zip(scores, q_values)]
    assert tuple(got) == metrics.METRICS
    for name, column in got.items():
        assert column.dtype == np.float64 and column.shape == (len(queries),)
        np.testing.assert_allclose(column, [float(row[name]) for row in want], rtol=1e-13, atol=0, err_msg=name)
    return got


@pytest.mark.parametrize("q,c,dim,values", [(1, 1, 1, 1), (40, 3, 2, 3), (40, 9, 3, 2), (40, 10, 3, 5), (97, 64, 40, 3),
                                            (60, 700, 5, 2), (60, 700, 5, 70), (800, 33, 17, 6)])
def test_retrieval_metrics_follow_their_definitions(q, c, dim, values):
    """Random integers, full of ties; fewer candidates than 5 and 10; few and many relevant ones; queries whose value
    no candidate has; two blocks of queries."""
    rng = np.random.default_rng(c)
    vectors_ = lambda n: rng.integers(-3, 4, (n, dim)).astype(np.float32)     # noqa: E731
    q_values, c_values = rng.integers(0, values + 1, q), rng.integers(0, values, c)
    args = vectors_(q), vectors_(c), q_values, c_values
    got = check_against_model(*args)
    means = metrics.retrieval_metrics(*args)
    assert means == {name: float(column.mean()) for name, column in got.items()}
    assert all(type(value) is float for value in means.values())


def test_retrieval_metrics_by_hand():
    """Relevant at ranks 2, 3 and 12 of 12: R is 3, so that MAP@R ends at rank 3."""
    relevant = np.zeros(12, int)
    relevant[[1, 2, 11]] = 1
    candidates = np.arange(12, 0, -1, dtype=np.float32)[:, None]
    got = metrics.retrieval_metrics(np.ones((1, 1), np.float32), candidates, [1], relevant)
    assert got == pytest.approx({"mAP": (1 / 2 + 2 / 3 + 3 / 12) / 3, "recall@1": 0, "recall@5": 1, "recall@10": 1,
                                 "precision@10": 0.2, "map@r": (1 / 2 + 2 / 3) / 3}, abs=1e-15)


@pytest.mark.parametrize("first,recalls", [(1, (1, 1, 1)), (2, (0, 1, 1)), (5, (0, 1, 1)), (6, (0, 0, 1)),
                                           (10, (0, 0, 1)), (11, (0, 0, 0))])
def test_recall_asks_whether_one_is_among_the_first(first, recalls):
    """The first relevant candidate at each edge of K; those behind it do not count."""
    relevant = np.arange(1, 41) >= first
    candidates = -np.arange(40, dtype=np.float32)[:, None]
    got = metrics.retrieval_metrics(np.ones((1, 1), np.float32), candidates, [1], relevant.astype(int))
    assert (got["recall@1"], got["recall@5"], got["recall@10"]) == recalls
    assert got["precision@10"] == max(11 - first, 0) / 10


def test_ties_keep_candidate_order_in_every_metric():
    """All scores equal: the ranking is the given order."""
    ones, one = np.ones((30, 1), np.float32), np.ones((1, 1), np.float32)
    relevant = np.zeros(30, int)
    relevant[[4, 5]] = 1
    got = metrics.retrieval_metrics(one, ones, [1], relevant)
    assert got == pytest.approx({"mAP": (1 / 5 + 2 / 6) / 2, "recall@1": 0, "recall@5": 1, "recall@10": 1,
                                 "precision@10": 0.2, "map@r": 0}, abs=1e-15)


def test_without_a_relevant_candidate_all_is_zero():
    q, c = np.ones((2, 3), np.float32), np.ones((20, 3), np.float32)
    assert metrics.retrieval_metrics(q, c, [7, 7], np.zeros(20, int)) == dict.fromkeys(metrics.METRICS, 0.0)


def test_fewer_candidates_than_k():
    """Three candidates, all relevant: recall and the averages are full, precision@10 is over 10 all the same."""
    got = metrics.retrieval_metrics(np.ones((1, 2), np.float32), np.ones((3, 2), np.float32), [0], [0, 0, 0])
    assert got == {"mAP": 1.0, "recall@1": 1.0, "recall@5": 1.0, "recall@10": 1.0, "precision@10": 0.3, "map@r": 1.0}


def lane_ap(ranks):
    """AP in the core's order of additions: eight sums over the relevant ranks, then pairs of them."""
    lanes = [0.0] * 8
    for k, rank in enumerate(ranks):
        lanes[k % 8] += (k + 1) / rank
    pairs = [lanes[i] + lanes[i + 1] for i in range(0, 8, 2)]
    return ((pairs[0] + pairs[1]) + (pairs[2] + pairs[3])) / len(ranks) if ranks else 0.0


def test_average_precision_keeps_its_bits():
    """AP is its formula, summed in this order, to the last bit: alone, in the mean and among the other metrics.
    MAP@R is the same sum over the relevant ranks up to R."""
    rng = np.random.default_rng(11)
    queries, candidates = (rng.integers(-3, 4, (n, 6)).astype(np.float32) for n in (150, 400))
    q_values, c_values = rng.integers(0, 6, 150), rng.choice(5, 400, p=[0.6, 0.3, 0.06, 0.03, 0.01])
    got = metrics.retrieval_metrics(queries, candidates, q_values, c_values, per_query=True)
    scores = queries.astype(np.float64) @ candidates.T.astype(np.float64)
    ranks = [(np.flatnonzero((c_values == v)[np.argsort(-row, kind="stable")]) + 1).tolist()
             for row, v in zip(scores, q_values)]
    want = np.array([lane_ap(row) for row in ranks])
    head = np.array([lane_ap([rank for rank in row if rank <= len(row)]) for row in ranks])
    share = np.array([sum(rank <= len(row) for rank in row) / max(len(row), 1) for row in ranks])
    assert got["mAP"].tobytes() == want.tobytes()
    np.testing.assert_allclose(got["map@r"], head * share, rtol=4e-15, atol=0)
    assert len({len(row) % 8 for row in ranks}) > 3, "sizes off the eight sums"
    alone = metrics.mean_average_precision(queries, candidates, q_values, c_values, per_query=True)
    single = [metrics.average_precision(row, c_values == v) for row, v in zip(scores, q_values)]
    assert alone.tobytes() == want.tobytes() == np.array(single).tobytes()
    means = (metrics.mean_average_precision(queries, candidates, q_values, c_values),
             metrics.retrieval_metrics(queries, candidates, q_values, c_values)["mAP"])
    assert means == (want.mean(), want.mean())


def test_metrics_have_the_same_bits_whatever_the_threads():
    rng = np.random.default_rng(12)
    args = (vectors(rng, 1000, 40), vectors(rng, 150, 40), rng.integers(0, 3, 1000), rng.integers(0, 3, 150))
    one = metrics.retrieval_metrics(*args, per_query=True, threads=1)
    for threads in (2, 3, 4):
        more = metrics.retrieval_metrics(*args, per_query=True, threads=threads)
        assert {name: column.tobytes() for name, column in more.items()} \
            == {name: column.tobytes() for name, column in one.items()}


@pytest.mark.parametrize("seed", range(60))
def test_properties_of_the_metrics(seed):
    """On random data of random sizes the definitions hold; everything is in [0, 1]; recall grows with K; MAP@R is at
    most AP, and both are 1 for the same rankings; candidates that rank last and are not relevant change no bit."""
    rng = np.random.default_rng(seed)
    q, c, dim, values = (int(rng.integers(1, most)) for most in (30, 60, 4, 12))
    queries, candidates = (rng.integers(-2, 3, (n, dim)).astype(np.float32) for n in (q, c))
    q_values, c_values = rng.integers(0, values, q), rng.integers(0, values, c)
    got = check_against_model(queries, candidates, q_values, c_values)
    assert all(((column >= 0) & (column <= 1)).all() for column in got.values())
    assert (got["recall@1"] <= got["recall@5"]).all() and (got["recall@5"] <= got["recall@10"]).all()
    assert (got["map@r"] <= got["mAP"]).all()
    assert ((got["mAP"] == 1) == (got["map@r"] == 1)).all()
    assert ((got["precision@10"] > 0) == (got["recall@10"] == 1)).all()
    # One dimension more: 0 for all candidates, and far below 0 for three that stand behind them.
    longer = np.zeros((c + 3, dim + 1), np.float32)
    longer[:c, :dim], longer[c:, dim] = candidates, -1000
    more = metrics.retrieval_metrics(np.c_[queries, np.ones(q, np.float32)], longer, q_values, np.r_[c_values, [-1] * 3],
                                     per_query=True)
    assert {name: column.tobytes() for name, column in more.items()} \
        == {name: column.tobytes() for name, column in got.items()}


def test_retrieval_metrics_name_what_is_wrong():
    """As mean_average_precision does: NaN by query and candidate, shapes, dtypes, threads."""
    q, c = np.ones((1500, 4), np.float32), np.ones((5, 4), np.float32)
    qv, cv, call = np.zeros(1500, int), np.zeros(5, int), metrics.retrieval_metrics
    c[3, 1] = np.nan
    with pytest.raises(ValueError, match="query 0 and candidate 3 is NaN"):
        call(q, c, qv, cv)
    c[3, 1], q[1234, 2] = 1, np.nan
    with pytest.raises(ValueError, match="query 1234 and candidate 0 is NaN"):
        call(q, c, qv, cv)
    with pytest.raises(ValueError, match="queries have 4 dimensions, candidates 3"):
        call(q, c[:, :3], qv, cv)
    with pytest.raises(ValueError, match="1500 queries, but 2 q_values"):
        call(q, c, qv[:2], cv)
    with pytest.raises(ValueError, match="retrieval_metrics: no queries"):
        call(q[:0], c, qv[:0], cv)
    with pytest.raises(TypeError, match="retrieval_metrics: candidates of dtype int64"):
        call(q, c.astype(np.int64), qv, cv)
    with pytest.raises(ValueError, match="retrieval_metrics: threads=0"):
        call(q, c, qv, cv, threads=0)
    for table in (np.zeros((2, 5)), np.zeros((3, 6)), np.zeros((2, 7))):
        with pytest.raises(ValueError, match=r"table of shape \(\d, \d\), expected \(2, 6\)"):
            _asen.metrics_retrieval(c[:2], c, np.zeros(2, int), cv, table, 1, None)


def test_total_metrics_weigh_by_queries():
    a, b = {"mAP": 0.5, "recall@1": 0.0}, {"mAP": 1.0, "recall@1": 0.4}
    assert metrics.total_metrics({"a": a, "b": b}, {"b": 3, "a": 1}) == pytest.approx({"mAP": 0.875, "recall@1": 0.3})
    assert metrics.total_metrics([a, b], [1, 3])["mAP"] == metrics.total_map([0.5, 1.0], [1, 3])
    with pytest.warns(UserWarning, match="attribute b has no queries") as seen:
        assert metrics.total_metrics({"a": a, "b": {}}, {"a": 2, "b": 0}) == a
    assert len(seen) == 1 and seen[0].filename == __file__
    with pytest.raises(ValueError, match="only some attributes have recall@1"):
        metrics.total_metrics([a, {"mAP": 0.1}], [1, 1])
    with pytest.raises(ValueError, match="total_metrics: 1 metrics, 2 counts"):
        metrics.total_metrics([a], [1, 1])
    with pytest.raises(ValueError, match="attribute 0 has -1 queries"):
        metrics.total_metrics([a], [-1])


def test_format_metrics_is_a_line_an_attribute():
    text = metrics.format_metrics({"category": {"mAP": 0.7602, "recall@1": 0.891}, "total": {"mAP": 1.0, "recall@1": 0.0}})
    assert text == "category: mAP 0.7602, recall@1 0.8910\ntotal:    mAP 1.0000, recall@1 0.0000"


def test_total_map_weighs_by_queries():
    assert metrics.total_map({"a": 0.5, "b": 1.0}, {"b": 3, "a": 1}) == 0.875
    assert metrics.total_map([0.5, 1.0], [1, 3]) == 0.875
    with pytest.warns(UserWarning, match="attribute b has no queries"):
        assert metrics.total_map({"a": 0.5, "b": math.nan}, {"a": 2, "b": 0}) == 0.5
    with pytest.raises(ValueError, match="only one of mAPs and counts has b"):
        metrics.total_map({"a": 0.5}, {"a": 1, "b": 2})
    with pytest.raises(ValueError, match="2 mAPs, 1 counts"):
        metrics.total_map([0.5, 0.5], [1])
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no attribute has queries"):
        metrics.total_map([0.5], [0])


def test_classification_report_by_hand():
    """Three classes; the third neither occurs nor is predicted: zeros, and in the macro mean."""
    report = metrics.classification_report([0, 0, 0, 1, 1], [0, 0, 1, 1, 0], ["formal", "semi", "casual"])
    assert report["accuracy"] == 0.6
    assert report["confusion"] == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    formal, semi, casual = report["per_class"]
    assert formal == {"name": "formal", "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3}
    assert semi == {"name": "semi", "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert casual == {"name": "casual", "precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert report["macro"]["f1"] == pytest.approx((2 / 3 + 0.5) / 3)
    assert report["weighted"]["recall"] == pytest.approx(0.6), "weighted recall is the accuracy"
    assert json.loads(json.dumps(report)) == report
    text = metrics.format_report(report)
    assert "semi" in text and "0.6000" in text and len(text.splitlines()) == 11


def test_classification_report_against_a_model():
    """Counts by np.bincount, ratios by their definitions, on random labels of 11 classes."""
    rng = np.random.default_rng(3)
    y, p = rng.integers(0, 11, 5000), rng.integers(0, 10, 5000)
    report = metrics.classification_report(y.astype(np.uint8), p.astype(np.int32), 11)
    confusion = np.bincount(y * 11 + p, minlength=121).reshape(11, 11)
    np.testing.assert_array_equal(report["confusion"], confusion)
    assert report["accuracy"] == np.trace(confusion) / 5000
    precision = np.diag(confusion) / np.maximum(confusion.sum(0), 1)
    recall = np.diag(confusion) / np.maximum(confusion.sum(1), 1)
    f1 = 2 * precision * recall / np.where(precision + recall, precision + recall, 1)
    for key, want in (("precision", precision), ("recall", recall), ("f1", f1)):
        np.testing.assert_allclose([row[key] for row in report["per_class"]], want, rtol=1e-12)
        assert report["macro"][key] == pytest.approx(want.mean())
        assert report["weighted"][key] == pytest.approx((want * confusion.sum(1)).sum() / 5000)


def test_classification_report_names_what_is_wrong():
    with pytest.raises(ValueError, match="the true class of item 1 is 3, not one of 0 to 2"):
        metrics.classification_report([0, 3], [0, 0], 3)
    with pytest.raises(ValueError, match="the predicted class of item 0 is -1"):
        metrics.classification_report([0, 1], [-1, 0], 3)
    with pytest.raises(ValueError, match="2 true classes, 1 predicted"):
        metrics.classification_report([0, 1], [0], 3)
    with pytest.raises(ValueError, match="no classes or no items"):
        metrics.classification_report([], [], 3)
    with pytest.raises(TypeError, match="y_pred of dtype float64"):
        metrics.classification_report([0, 1], [0.0, 1.0], 3)
