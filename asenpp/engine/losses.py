"""The losses of ASEN++, of its style classifiers, and of batches of single images.

cos(u, v) is the cosine with each norm at least 1e-8. Embeddings x, p, n of anchor, positive and negative (Ma et al. 2020;
Dong et al. 2021):

    triplet  mean over the batch of max(0, MARGIN - cos(x, p) + cos(x, n))
    align    sum over x, p, n of mean(max(0, 1 - cos(global, local))); of images, 3 times the mean over all embeddings
    asen     GLOBAL_WEIGHT triplet(global) [+ LOCAL_WEIGHT triplet(local) + ALIGN_WEIGHT align]
    style    combined: 0.1 asen + 0.5 CE(anchor) + 0.5 CE(negative);  anchor: CE(anchor)

Over the N images that have an attribute, with embeddings e_i and values y of it (several for an image where it has several);
P(i): the other images that share a value with image i; Q(i): those that share none. Sums, with the number of their terms:

    cosine         for each label y of image i, divided by the image's number of labels:
                   cross-entropy of s (cos(e_i, W_k) - m [k = y]) over the classes k that are y or no value of image i
                   (normalised softmax: Zhai and Wu 2019; its margin, CosFace: Wang et al. 2018); target (1 - eps) [k = y] +
                   eps / (number of these classes) (label smoothing: Szegedy et al. 2016)
    supcon         for each i with positives: -1/|P(i)| sum over p in P(i) of
                   log(exp(cos(e_i, e_p) / t) / sum over a != i of exp(cos(e_i, e_a) / t))    (L_out of Khosla et al. 2020)
    dense_triplet  max(0, margin - cos(e_i, e_p) + cos(e_i, e_n)) for p in P(i), n in Q(i); only terms above 0 are counted
                   (every valid triplet of a batch: Hermans et al. 2017)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .._asen import Tensor
from ..nn import functional as F

__all__ = ["triplet", "align", "asen", "GROUPS", "Terms", "cosine", "supcon", "dense_triplet"]

GROUPS = 3                  # anchors, positives, negatives: consecutive thirds of a batch
STYLE_ASEN, STYLE_ANCHOR, STYLE_NEGATIVE = 0.1, 0.5, 0.5
EPS = 1e-8                  # the least norm in a cosine
LEFT_OUT = -1e30            # a logit whose exponential is 0 beside any other; times a target of 0 it is 0, as -inf is not


def triplet(embeddings: Tensor, margin: float) -> Tensor:
    """Triplet loss of embeddings (3 B, D): anchors, then positives, then negatives."""
    count = embeddings.shape[0] // GROUPS
    x, p, n = (embeddings[i * count:(i + 1) * count] for i in range(GROUPS))
    return F.margin_ranking_loss(F.cosine_similarity(x, p), F.cosine_similarity(x, n), 1, margin)


def align(whole: Tensor, local: Tensor) -> Tensor:
    """Alignment of global and local embeddings of the same images, both (N, D): 3 times the mean over N, which of
    anchors, positives and negatives (3 B, D) is the sum of three means of B."""
    return (1.0 - F.cosine_similarity(whole, local)).clamp(min=0.0).mean() * float(GROUPS)


def asen(whole: Tensor, local: Tensor | None, solver: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the embeddings, and its unweighted parts. local: None in stage 1."""
    parts = {"global": triplet(whole, solver.MARGIN)}
    total = parts["global"] * solver.GLOBAL_WEIGHT
    if local is not None:
        parts["local"] = triplet(local, solver.MARGIN)
        parts["align"] = align(whole, local)
        total = total + parts["local"] * solver.LOCAL_WEIGHT + parts["align"] * solver.ALIGN_WEIGHT
    return total, parts


# ---- batches of single images ----


class Terms(NamedTuple):
    """A sum of terms: total, a 0-d tensor with its history; count, how many terms there are (0: total is 0)."""

    total: Tensor
    count: float


def cosine(embeddings: Tensor, weight: Tensor, rows: np.ndarray, values: np.ndarray, scale: float, margin: float,
           smoothing: float = 0.0) -> Terms:
    """Cross-entropy of scaled cosines with a margin; each image counts once, whatever its number of labels.

    embeddings: (N, D), weight: (K, D), float32 or float64. rows, values: int64 (L,), label l says that embeddings[rows[l]]
    has value values[l], in 0..K-1; each pair once. scale: s, margin: m, smoothing: eps in [0, 1).
    """
    labels = np.arange(len(rows))
    others = np.zeros((embeddings.shape[0], weight.shape[0]), bool)
    others[rows, values] = True
    others = others[rows]
    others[labels, values] = False                                      # (L, K): the image's values besides this one

    margins = np.zeros(others.shape)
    margins[labels, values] = margin
    target = np.where(others, 0.0, smoothing / (~others).sum(1, keepdims=True))
    target[labels, values] += 1.0 - smoothing
    target /= np.bincount(rows)[rows][:, np.newaxis]

    cosines = F.linear(_unit(embeddings), _unit(weight))[F.indices(rows, embeddings)]
    logits = (cosines - _constant(margins, cosines)) * scale
    log_probability = F.log_softmax(_leave_out(logits, others), dim=1)
    return Terms(-(log_probability * _constant(target, cosines)).sum(), float(len(np.unique(rows))))


def supcon(embeddings: Tensor, rows: np.ndarray, values: np.ndarray, temperature: float) -> Terms:
    """Supervised contrastive loss; a term for each image that has a positive.

    embeddings: (N, D), float32 or float64. rows, values: int64 (L,), label l says that embeddings[rows[l]] has value
    values[l]. temperature: t, above 0.
    """
    positive, _ = _pairs(rows, values, embeddings.shape[0])
    positives = positive.sum(1, keepdims=True)                          # (N, 1): |P(i)|
    z = _unit(embeddings)
    logits = F.linear(z, z) / temperature
    log_probability = F.log_softmax(_leave_out(logits, np.eye(len(positive), dtype=bool)), dim=1)
    weights = positive / np.maximum(positives, 1)
    return Terms(-(log_probability * _constant(weights, logits)).sum(), float((positives > 0).sum()))


def dense_triplet(embeddings: Tensor, rows: np.ndarray, values: np.ndarray, margin: float) -> Terms:
    """Triplet loss of every triplet of the batch; a term for each triplet with a loss above 0.

    embeddings: (N, D), float32 or float64. rows, values: int64 (L,), label l says that embeddings[rows[l]] has value
    values[l]. On a GPU the N x N cosines are copied to the host, which waits for them.

    The loss is piecewise linear in the cosines: over the active triplets T it is margin |T| - sum of c_ip + sum of c_in,
    each cosine as often as its pair is in T. These numbers are constant wherever the loss has a gradient, so they are
    counted apart from the tape, and the weighted sum has the value and the gradient of the sum over all triplets in
    N^2 memory. A triplet whose loss is exactly 0 is not active and has the subgradient 0.
    """
    positive, negative = _pairs(rows, values, embeddings.shape[0])
    z = _unit(embeddings)
    cosines = F.linear(z, z)
    host = cosines.detach().to(device="cpu").to(dtype="float64").numpy()
    weights, active = _active_triplets(host, positive, negative, margin)
    return Terms((cosines * _constant(weights, cosines)).sum() + margin * active, float(active))


def _active_triplets(cosines: np.ndarray, positive: np.ndarray, negative: np.ndarray, margin: float) -> tuple[np.ndarray, int]:
    """(weights (N, N), number of active triplets): how many active triplets have the pair (i, n), minus how many (i, p).

    A triplet is active where c_in > c_ip - margin; both numbers come from this one comparison of rounded numbers, so they
    count the same triplets. O(N^2 log N).
    """
    weights = np.zeros(cosines.shape)
    for c, w, p, n in zip(cosines, weights, positive, negative):
        p, n = np.flatnonzero(p), np.flatnonzero(n)
        p = p[np.argsort(c[p])]
        below = np.searchsorted(c[p] - margin, c[n])                    # how many positives are active with each negative:
        negatives = np.bincount(below, minlength=len(p) + 1)            #   always the first ones
        w[n] = below
        w[p] = -np.cumsum(negatives[::-1])[::-1][1:]                    # negatives active with more than the first k positives
    return weights, int(weights[negative].sum())


def _pairs(rows: np.ndarray, values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(positive, negative), bool (count, count): which other images share a value with each, and which share none."""
    positive = np.zeros((count, count), bool)
    for value in np.unique(values):
        members = rows[values == value]
        positive[np.ix_(members, members)] = True
    negative = ~positive
    np.fill_diagonal(positive, False)
    np.fill_diagonal(negative, False)
    return positive, negative


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1, so that a product of two is their cosine."""
    return F.normalize(x, eps=EPS)


def _constant(array: np.ndarray, like: Tensor) -> Tensor:
    """An array as a tensor of another's dtype on its device."""
    return Tensor(array.astype(like.dtype)).to(device=like.device)


def _leave_out(logits: Tensor, places: np.ndarray) -> Tensor:
    """Logits without some places (bool, of their shape), which a softmax then gives probability 0 and no gradient."""
    return logits.masked_fill(Tensor(places).to(device=logits.device), LEFT_OUT)
