"""The losses of ASEN++ and of its style classifiers.

For L2-like cosine similarity cos (each norm at least 1e-8), embeddings x, p, n of anchor, positive
and negative (Ma et al. 2020; Dong et al. 2021):

    triplet  mean over the batch of max(0, MARGIN - cos(x, p) + cos(x, n))
    align    sum over x, p, n of mean(max(0, 1 - cos(global, local)))
    asen     GLOBAL_WEIGHT triplet(global) [+ LOCAL_WEIGHT triplet(local) + ALIGN_WEIGHT align]
    style    combined: 0.1 asen + 0.5 CE(anchor) + 0.5 CE(negative);  anchor: CE(anchor)
"""

from __future__ import annotations

from typing import Any

from .._asen import Tensor
from ..nn import functional as F

__all__ = ["triplet", "align", "asen", "GROUPS"]

GROUPS = 3                  # anchors, positives, negatives: consecutive thirds of a batch
STYLE_ASEN, STYLE_ANCHOR, STYLE_NEGATIVE = 0.1, 0.5, 0.5


def triplet(embeddings: Tensor, margin: float) -> Tensor:
    """Triplet loss of embeddings (3 B, D): anchors, then positives, then negatives."""
    count = embeddings.shape[0] // GROUPS
    x, p, n = (embeddings[i * count:(i + 1) * count] for i in range(GROUPS))
    return F.margin_ranking_loss(F.cosine_similarity(x, p), F.cosine_similarity(x, n), 1, margin)


def align(whole: Tensor, local: Tensor) -> Tensor:
    """Alignment of global and local embeddings, both (3 B, D): the sum of three means of B."""
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
