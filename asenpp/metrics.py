"""Retrieval and classification metrics.

Ranking: candidates by falling similarity, ties in candidate order; average precision over the
whole ranking, as ASEN++ evaluates (Dong et al. 2021), and in the same pass the metrics of metric
learning (Musgrave et al. 2020). All scores are in [0, 1]. Long rankings run in C, block by block, so
that nothing of the size queries x candidates is ever stored.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from . import _asen

__all__ = ["METRICS", "average_precision", "classification_report", "format_metrics", "format_report",
           "mean_average_precision", "ranking", "retrieval_metrics", "total_map", "total_metrics"]

METRICS = ("mAP", "recall@1", "recall@5", "recall@10", "precision@10", "map@r")
"""The names of `retrieval_metrics`, in the order of csrc/metrics/metrics.h."""


def _scores(scores, what: str) -> np.ndarray:
    array = np.asarray(scores)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{what}: scores of dtype {array.dtype}, expected real numbers")
    if array.ndim != 1:
        raise ValueError(f"{what}: scores of shape {array.shape}, expected one axis: one ranking")
    return np.ascontiguousarray(array, np.float64)


def _features(vectors, name: str, what: str) -> np.ndarray:
    array = np.asarray(vectors)
    if array.dtype.kind != "f":
        raise TypeError(f"{what}: {name} of dtype {array.dtype}, expected float32")
    if array.ndim != 2:
        raise ValueError(f"{what}: {name} of shape {array.shape}, expected ({name}, dimensions)")
    return np.ascontiguousarray(array, np.float32)


def _integers(values, name: str, what: str) -> np.ndarray:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{what}: {name} of dtype {array.dtype}, expected integers")
    if array.ndim != 1:
        raise ValueError(f"{what}: {name} of shape {array.shape}, expected one axis")
    return np.ascontiguousarray(array, np.int64)


def _thread_count() -> int:
    """The package's thread budget, or the processors that this process may use."""
    budget = getattr(_asen, "get_num_threads", None)
    if budget is not None:
        return budget()
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ranking(scores: Any) -> np.ndarray:
    """Indices of `scores` by falling score; equal scores keep their order.

    scores: (n,) real numbers, compared as float64. Returns (n,) int64.
    Raises ValueError for a NaN or another shape, TypeError for another dtype.
    """
    scores = _scores(scores, "ranking")
    order = np.empty(scores.shape, np.int64)
    _asen.metrics_rank(scores, order)
    return order


def average_precision(scores: Any, relevant: Any) -> float:
    """Average precision of one ranking, in [0, 1].

    Candidates are ranked by falling score, ties in the given order. AP is the mean, over the
    ranks r of the relevant candidates, of (relevant ones among the first r) / r: over the whole
    ranking, without a cut. 0 when nothing is relevant.

    scores: (n,) real numbers. relevant: (n,) bool, or integers of which non-zero is relevant.
    Raises ValueError for a NaN score or shapes that do not fit, TypeError for other dtypes.
    """
    scores = _scores(scores, "average_precision")
    relevant = np.asarray(relevant)
    if relevant.size and relevant.dtype.kind not in "biu":
        raise TypeError(f"average_precision: relevant of dtype {relevant.dtype}, expected bool")
    if relevant.shape != scores.shape:
        raise ValueError(f"average_precision: scores of shape {scores.shape}, relevant of shape "
                         f"{relevant.shape}: expected the same")
    return _asen.metrics_average_precision(scores, np.ascontiguousarray(relevant != 0))


def mean_average_precision(queries: Any, candidates: Any, q_values: Any, c_values: Any, *,
                           per_query: bool = False, threads: int | None = None,
                           progress: Callable[[int, int], object] | None = None) -> Any:
    """Mean over the queries of the average precision of ranking all candidates.

    The similarity is the dot product in float32 (cosine similarity when the vectors have length
    one); a candidate is relevant when its value is the query's. See `average_precision`.

    queries: (Q, D), candidates: (C, D) floats, taken as float32. q_values: (Q,), c_values: (C,)
    integers. Returns a float, or the APs (Q,) float64 with `per_query`. The result has the same
    bits whatever `threads` is (default: the package's budget). `progress(done, Q)` is called
    after each block of queries; Ctrl-C and its exceptions end the work there.
    Memory: C x (D + 100 x threads) floats.

    Raises ValueError for shapes that do not fit, no queries, no candidates, or a similarity that
    is NaN (naming query and candidate), TypeError for other dtypes.
    """
    ap = _measure("mean_average_precision", queries, candidates, q_values, c_values, threads, progress)[0]
    return ap if per_query else float(ap.mean())


def retrieval_metrics(queries: Any, candidates: Any, q_values: Any, c_values: Any, *,
                      per_query: bool = False, threads: int | None = None,
                      progress: Callable[[int, int], object] | None = None) -> dict[str, Any]:
    """What is measured of ranking all candidates for each query, as means over the queries, in [0, 1].

    Arguments, similarity, relevance, ties and errors are those of `mean_average_precision`; it is one
    pass, and the mAP has the same bits. With R relevant candidates of a query and P(r) = (relevant
    among the first r) / r, a query has

        mAP             (1/R) sum of P(r) over all ranks r of relevant candidates: its AP
        recall@1, @5, @10
                        1 where at least one of the first K is relevant, else 0: Recall@K as metric
                        learning has it (Jegou et al. 2011), not the share of the relevant ones found
        precision@10    relevant among the first 10, over 10
        map@r           (1/R) sum of P(r) over the ranks r <= R of relevant candidates (Musgrave et al.
                        2020, "A Metric Learning Reality Check"): 1 where the first R are the relevant
                        ones, and at most the AP

    All are 0 for a query without a relevant candidate. Candidates that are fewer than K count as a
    longer ranking whose rest is not relevant: recall@K asks all of them, and precision@10 is still
    over 10.

    Returns {name: float}, or {name: (Q,) float64} with `per_query`, names as in METRICS.
    """
    table = _measure("retrieval_metrics", queries, candidates, q_values, c_values, threads, progress)
    return {name: column if per_query else float(column.mean()) for name, column in zip(METRICS, table)}


def _measure(what: str, queries: Any, candidates: Any, q_values: Any, c_values: Any, threads: int | None,
             progress: Callable[[int, int], object] | None) -> np.ndarray:
    """(len(METRICS), Q) float64: each metric of each query."""
    queries, candidates = _features(queries, "queries", what), _features(candidates, "candidates", what)
    q_values, c_values = _integers(q_values, "q_values", what), _integers(c_values, "c_values", what)
    if len(queries) == 0:
        raise ValueError(f"{what}: no queries: leave this attribute out")
    if threads is None:
        threads = _thread_count()
    elif threads < 1:
        raise ValueError(f"{what}: threads={threads}, expected at least 1")
    table = np.empty((len(queries), len(METRICS)), np.float64)
    _asen.metrics_retrieval(queries, candidates, q_values, c_values, table, threads, progress)
    return np.ascontiguousarray(table.T)


def total_map(per_attribute: Mapping[str, float] | Sequence[float],
              counts: Mapping[str, int] | Sequence[int]) -> float:
    """Mean of the attributes' mAPs weighted by their numbers of queries.

    Both arguments are mappings with the same keys, or sequences of the same length. An attribute
    without queries is left out, with a warning. Raises ValueError when they do not match, a count
    is negative or no attribute has queries.
    """
    return _weighted(_asked("total_map", "mAPs", per_attribute, counts))


def total_metrics(per_attribute: Mapping[str, Mapping[str, float]] | Sequence[Mapping[str, float]],
                  counts: Mapping[str, int] | Sequence[int]) -> dict[str, float]:
    """For each metric of `retrieval_metrics`, what `total_map` is for mAP: the mean over all queries.

    per_attribute: {attribute: {metric: score}}, or a sequence of {metric: score}; counts likewise.
    Returns {metric: score}. Raises ValueError as `total_map` does, and where attributes have
    different metrics.
    """
    rows = _asked("total_metrics", "metrics", per_attribute, counts)
    for row, _ in rows:
        if row.keys() != rows[0][0].keys():
            odd = sorted(map(str, row.keys() ^ rows[0][0].keys()))
            raise ValueError(f"total_metrics: only some attributes have {', '.join(odd)}")
    return {name: _weighted([(row[name], count) for row, count in rows]) for name in rows[0][0]}


def _asked(what: str, noun: str, per_attribute: Any, counts: Any) -> list[tuple[Any, int]]:
    """(what an attribute has, its queries) of the attributes that have queries: at least one."""
    if isinstance(per_attribute, Mapping) != isinstance(counts, Mapping):
        raise ValueError(f"{what}: one argument is a mapping, the other is not")
    if isinstance(counts, Mapping):
        if per_attribute.keys() != counts.keys():
            odd = sorted(map(str, per_attribute.keys() ^ counts.keys()))
            raise ValueError(f"{what}: only one of {noun} and counts has {', '.join(odd)}")
        rows = [(name, per_attribute[name], counts[name]) for name in per_attribute]
    else:
        if len(per_attribute) != len(counts):
            raise ValueError(f"{what}: {len(per_attribute)} {noun}, {len(counts)} counts")
        rows = [(str(i), value, count) for i, (value, count) in enumerate(zip(per_attribute, counts))]
    for name, _, count in rows:
        if count < 0:
            raise ValueError(f"{what}: attribute {name} has {count} queries")
        if count == 0:
            warnings.warn(f"attribute {name} has no queries and is left out of the total", stacklevel=3)
    if not any(count for _, _, count in rows):
        raise ValueError(f"{what}: no attribute has queries")
    return [(value, count) for _, value, count in rows if count]


def _weighted(rows: list[tuple[float, int]]) -> float:
    total, queries = 0.0, 0
    for value, count in rows:
        total += float(value) * count
        queries += count
    return total / queries


def format_metrics(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """{attribute or "total": {metric: score}} as text, a line each, scores in [0, 1]:

        category: mAP 0.7602, recall@1 0.8910, …
    """
    width = max(map(len, metrics), default=0) + 1
    return "\n".join(f"{name + ':':{width}} " + ", ".join(f"{metric} {score:.4f}" for metric, score in row.items())
                     for name, row in metrics.items())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def classification_report(y_true: Any, y_pred: Any, names: Sequence[str] | int) -> dict[str, Any]:
    """Top-1 accuracy and, per class and averaged, precision, recall, F1 and support.

    y_true, y_pred: (n,) integers in 0 … K−1. names: the K class names, or K. Returns a dict of
    plain numbers (JSON as it stands):

        accuracy    share of right answers
        per_class   K dicts {name, precision, recall, f1, support}, in class order
        macro       {precision, recall, f1}: plain mean over all K classes
        weighted    {precision, recall, f1}: mean weighted by support
        confusion   K lists of K counts: rows are true classes, columns predicted ones
        support     n

    A ratio without anything under the line is 0: a class that never occurs and is never predicted
    has zeros and stays in the macro mean. Raises ValueError for a class out of range (naming the
    item), for lengths that differ and for no items, TypeError for other dtypes.
    """
    names = [str(i) for i in range(names)] if isinstance(names, int) else [str(name) for name in names]
    y_true = _integers(y_true, "y_true", "classification_report")
    y_pred = _integers(y_pred, "y_pred", "classification_report")
    if y_true.shape != y_pred.shape:
        raise ValueError(f"classification_report: {len(y_true)} true classes, {len(y_pred)} predicted")
    if not names or not len(y_true):
        raise ValueError("classification_report: no classes or no items")
    counts = np.empty((len(names), len(names)), np.int64)
    _asen.metrics_confusion(y_true, y_pred, counts)

    confusion = counts.tolist()
    n = len(y_true)
    per_class = []
    for k, name in enumerate(names):
        hit, support = confusion[k][k], sum(confusion[k])
        predicted = sum(row[k] for row in confusion)
        per_class.append({"name": name, "precision": _ratio(hit, predicted),
                          "recall": _ratio(hit, support), "f1": _ratio(2 * hit, predicted + support),
                          "support": support})
    keys = ("precision", "recall", "f1")
    return {
        "accuracy": sum(confusion[k][k] for k in range(len(names))) / n,
        "per_class": per_class,
        "macro": {key: sum(row[key] for row in per_class) / len(names) for key in keys},
        "weighted": {key: sum(row[key] * row["support"] for row in per_class) / n for key in keys},
        "confusion": confusion,
        "support": n,
    }


def format_report(report: Mapping) -> str:
    """A `classification_report` as a table of text, with the confusion matrix below."""
    names = [row["name"] for row in report["per_class"]]
    width = max([len(name) for name in names] + [len("weighted")])
    lines = [f"{'':{width}}  precision  recall      f1  support"]
    rows = [*report["per_class"],
            *({"name": key, "support": report["support"], **report[key]} for key in ("macro", "weighted"))]
    for row in rows:
        lines.append(f"{row['name']:{width}}  {row['precision']:9.4f}  {row['recall']:6.4f}  "
                     f"{row['f1']:6.4f}  {row['support']:7d}")
    lines.append(f"{'accuracy':{width}}  {report['accuracy']:.4f}")
    lines.append("confusion (row: true, column: predicted)")
    digits = max(len(str(count)) for row in report["confusion"] for count in row)
    for name, row in zip(names, report["confusion"]):
        lines.append(f"{name:{width}}  " + "  ".join(f"{count:{digits}d}" for count in row))
    return "\n".join(lines)
