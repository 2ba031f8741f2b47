"""One training step's forward pass: from a batch of triplets, or of labelled images, to the loss.

Anchors, positives and negatives go through the model as one batch of 3 B with batch norm in three
groups: the same mathematics as three passes. Of labelled images the backbone runs once an image, attention once for
each attribute that is labelled. In stage 2 the local branch sees crops that the detached attention maps of this very
pass point out.

A loss is a mean over `count(batch)` terms; so that of a batch is the sum of those of its parts, weighted by their
shares of the terms.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import _asen
from .._asen import Tensor
from ..data.balanced import ImageBatch
from ..data.samplers import TripletBatch
from ..nn import functional as F
from . import losses
from .images import Crops, Images, as_map, take_images

__all__ = ["TripletStep", "ImageStep", "make_step"]


def make_step(model: Any, cfg: Any, device: str, attributes: int = 1) -> "TripletStep | ImageStep":
    """The step of SOLVER.LOSS. attributes: the most that one image is labelled with."""
    return TripletStep(model, cfg, device) if cfg.SOLVER.LOSS == "triplet" else ImageStep(model, cfg, device, attributes)


class TripletStep:
    """Forward pass and loss of triplets as MODEL and SOLVER say.

    `ids(triplets)` are the images that a step needs, in the order in which it wants their pixels.
    """

    unit, images_each, crops_each = "triplets", losses.GROUPS, losses.GROUPS

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

    def count(self, triplets: TripletBatch) -> int:
        """Terms of the loss: triplets."""
        return len(triplets.anchors)

    def parts(self, triplets: TripletBatch, count: int) -> Iterator[tuple[np.ndarray, TripletBatch]]:
        """The batch in `count` parts: the places of each part's images in `ids`, and its triplets."""
        groups = len(self.ids(triplets)) // len(triplets.anchors)
        for rows in np.array_split(np.arange(len(triplets.anchors)), count):
            if len(rows):
                places = np.concatenate([rows + group * len(triplets.anchors) for group in range(groups)])
                yield places, TripletBatch(*(column[rows] for column in triplets))

    @staticmethod
    def sample(count: int) -> TripletBatch:
        """Made-up triplets."""
        zeros = np.zeros(count, np.int64)
        return TripletBatch(zeros, zeros, zeros, zeros, zeros, zeros + 1)

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


class ImageStep:
    """Forward pass and loss of labelled images as MODEL and SOLVER.LOSS say: its methods are TripletStep's.

    With losses L of the branches' embeddings, one embedding for each image and labelled attribute:
    GLOBAL_WEIGHT L(global) [+ LOCAL_WEIGHT L(local) + ALIGN_WEIGHT align(global, local)].
    """

    unit, images_each = "images", 1

    def __init__(self, model: Any, cfg: Any, device: str, attributes: int = 1) -> None:
        self.model, self.solver = model, cfg.SOLVER
        self.sizes = cfg.DATA.ATTRIBUTES.NUM
        self.images = Images(cfg, device)
        self.local = cfg.MODEL.LOCAL.ENABLE
        self.crops_each = attributes

    @property
    def pixel_dtype(self) -> Any:
        """What pixels are made as for this device: see Images."""
        return self.images.pixel_dtype

    def ids(self, batch: ImageBatch) -> np.ndarray:
        """(B,) image ids."""
        return batch.images

    def count(self, batch: ImageBatch) -> int:
        """Terms of the loss: pairs of an image and an attribute that is labelled."""
        return len(np.unique(batch.rows * len(self.sizes) + batch.attributes))

    def parts(self, batch: ImageBatch, count: int) -> Iterator[tuple[np.ndarray, ImageBatch]]:
        """The batch in `count` parts: the places of each part's images in `ids`, and their labels."""
        for places in np.array_split(np.arange(len(batch.images)), count):
            if len(places):
                mine = (batch.rows >= places[0]) & (batch.rows <= places[-1])
                yield places, ImageBatch(batch.images[places], batch.rows[mine] - places[0], batch.attributes[mine],
                                         batch.values[mine])

    def sample(self, count: int) -> ImageBatch:
        """Made-up images, each with as many attributes labelled as an image of the data set has at most."""
        rows = np.tile(np.arange(count), self.crops_each)
        attributes = np.repeat(np.arange(self.crops_each), count)
        return ImageBatch(np.zeros(count, np.int64), rows, attributes, rows % np.asarray(self.sizes)[attributes])

    def __call__(self, pixels: np.ndarray, batch: ImageBatch, crops: Crops) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (0-d, with its history) and its parts by name.

        pixels: (len(ids), S, S, 3) of `pixel_dtype`, and the crops too.
        """
        labels = list(self._labels(batch))
        features = self.model.backbone(self.images(pixels), "global")
        keys = self.model.keys(features)
        whole, maps = [], []
        for attribute, rows, _, _ in labels:
            embeddings, attention = self.model.attend(
                take_images(features, rows), np.full(len(rows), attribute), "global",
                None if keys is None else take_images(keys, rows))
            whole.append(embeddings)
            maps.append(attention)
        parts = {"global": self._loss("global", whole, labels)}
        total = parts["global"] * self.solver.GLOBAL_WEIGHT
        if self.local:
            local = self._local(maps, labels, crops)
            parts["local"] = self._loss("local", local, labels)
            parts["align"] = losses.align(_asen.cat(whole), _asen.cat(local))
            total = total + parts["local"] * self.solver.LOCAL_WEIGHT + parts["align"] * self.solver.ALIGN_WEIGHT
        return total, parts

    @staticmethod
    def _labels(batch: ImageBatch) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """For each labelled attribute: it, the images (rows of the batch) that are labelled, and their labels: the place
        of each among those images, and the value."""
        for attribute in np.unique(batch.attributes):
            mine = batch.attributes == attribute
            rows, places = np.unique(batch.rows[mine], return_inverse=True)
            yield int(attribute), rows, places.reshape(-1), batch.values[mine]

    def _local(self, maps: list[Tensor], labels: list[Any], crops: Crops) -> list[Tensor]:
        """The local branch's embeddings, by attribute; all crops go through it as one batch."""
        rows = np.concatenate([label[1] for label in labels])
        attributes = np.repeat([label[0] for label in labels], [len(label[1]) for label in labels])
        pixels = crops(np.concatenate([as_map(attention) for attention in maps]), rows)
        embeddings = self.model.forward_branch("local", self.images(pixels), attributes)[0]
        ends = np.cumsum([len(label[1]) for label in labels])
        return [embeddings[end - len(label[1]):end] for end, label in zip(ends.tolist(), labels)]

    def _loss(self, branch: str, embeddings: list[Tensor], labels: list[Any]) -> Tensor:
        """The mean over the terms of all attributes."""
        terms = [self._terms(branch, attribute, mine, places, values)
                 for mine, (attribute, _, places, values) in zip(embeddings, labels)]
        total = terms[0].total
        for other in terms[1:]:
            total = total + other.total
        return total * (1.0 / max(1.0, sum(term.count for term in terms)))

    def _terms(self, branch: str, attribute: int, embeddings: Tensor, rows: np.ndarray,
               values: np.ndarray) -> losses.Terms:
        """Terms of embeddings (N, EMBED_SIZE) of one attribute, labelled as losses.py says."""
        solver = self.solver
        if solver.LOSS == "cosine":
            return losses.cosine(embeddings, self.model.heads[branch].rows(attribute), rows, values, solver.SCALE,
                                 solver.MARGIN, solver.LABEL_SMOOTHING)
        if solver.LOSS == "supcon":
            return losses.supcon(embeddings, rows, values, solver.TEMPERATURE)
        return losses.dense_triplet(embeddings, rows, values, solver.MARGIN)
