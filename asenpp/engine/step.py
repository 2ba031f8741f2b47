"""One training step's forward pass: from a batch of triplets to the loss.

Anchors, positives and negatives go through the model as one batch of 3 B with batch norm in three
groups: the same mathematics as three passes. In stage 2 the local branch sees crops that the
detached attention maps of this very pass point out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._asen import Tensor
from ..data.samplers import TripletBatch
from ..nn import functional as F
from . import losses
from .images import Crops, Images, as_map

__all__ = ["TripletStep"]


class TripletStep:
    """Forward pass and loss as MODEL and SOLVER say.

    `ids(triplets)` are the images that a step needs, in the order in which it wants their pixels.
    """

    def __init__(self, model: Any, cfg: Any, device: str) -> None:
        self.model, self.solver = model, cfg.SOLVER
        self.images = Images(cfg, device)
        self.style = cfg.MODEL.TYPE != "ASEN"
        self.anchor_only = self.style and cfg.SOLVER.OBJECTIVE == "anchor"
        self.local = cfg.MODEL.LOCAL.ENABLE and not self.anchor_only

    @property
    def pixel_dtype(self) -> Any:
        """What pixels are made as for this device: see Images."""
        return self.images.pixel_dtype

    def ids(self, triplets: TripletBatch) -> np.ndarray:
        """(3 B,) image ids: anchors, positives, negatives; only the anchors for their objective."""
        if self.anchor_only:
            return triplets.anchors
        return np.concatenate([triplets.anchors, triplets.positives, triplets.negatives])

    def __call__(self, pixels: np.ndarray, triplets: TripletBatch, crops: Crops) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (0-d, with its history) and its parts by name.

        pixels: (len(ids), S, S, 3) of `pixel_dtype`, and the crops too.
        """
        groups = 1 if self.anchor_only else losses.GROUPS
        attributes = np.tile(triplets.attributes, groups)
        features = self.model.backbone(self.images(pixels), "global", groups)
        whole, attention = self.model.attend(features, attributes, "global")
        if self.anchor_only:
            return self._classify(whole, features, triplets)
        local = None
        if self.local:
            parts = self.images(crops(as_map(attention)))
            local = self.model.forward_branch("local", parts, attributes, groups)[0]
        total, parts = losses.asen(whole, local, self.solver)
        if self.style:
            total, more = self._combine(total, whole, features, triplets)
            parts.update(more)
        return total, parts

    # -- style classifiers: labels are those of attribute 0 -----------------------------------------

    def _logits(self, embeddings: Tensor, features: Any, rows: np.ndarray, labels: np.ndarray) -> Tensor:
        """Logits of some rows of the batch."""
        index = F.indices(rows, embeddings)
        chosen = features if features.average is None else features._replace(average=features.average[index])
        return self.model.logits(embeddings[index], chosen, labels)

    def _classify(self, embeddings: Tensor, features: Any, triplets: TripletBatch) -> tuple[Tensor, dict[str, Tensor]]:
        rows = np.flatnonzero(triplets.attributes == 0)
        if not len(rows):
            loss = embeddings.sum() * 0.0
        else:
            labels = triplets.values[rows]
            loss = F.cross_entropy(self._logits(embeddings, features, rows, labels), labels)
        return loss, {"anchor": loss}

    def _combine(self, total: Tensor, embeddings: Tensor, features: Any,
                 triplets: TripletBatch) -> tuple[Tensor, dict[str, Tensor]]:
        total = total * losses.STYLE_ASEN
        rows = np.flatnonzero(triplets.attributes == 0)
        if not len(rows):
            return total, {}
        count = len(triplets.anchors)
        labels = np.concatenate([triplets.values[rows], triplets.negative_values[rows]])
        logits = self._logits(embeddings, features, np.concatenate([rows, rows + 2 * count]), labels)
        parts = {"anchor": F.cross_entropy(logits[:len(rows)], labels[:len(rows)]),
                 "negative": F.cross_entropy(logits[len(rows):], labels[len(rows):])}
        return (total + parts["anchor"] * losses.STYLE_ANCHOR + parts["negative"] * losses.STYLE_NEGATIVE), parts
