"""The style of an image: the global branch, attribute 0, the softmax of the classifier (docs/reference.md 7 and 9)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..basics import no_grad
from ..config import Config
from ..engine.errors import EngineError
from ..engine.state import read
from .base import ImageClassifier, Prepared, value_names

__all__ = ["StyleClassifier"]

ATTRIBUTE = 0       # style labels are those of attribute 0


class StyleClassifier(ImageClassifier):
    """Tells the style of images.

        classifier = StyleClassifier(cfg, "runs/KFashion_s2/model_best.pth.tar")
        classifier.classify("photo.jpg")        # {"style": "casual", "score": 0.93}

    cfg: see asenpp.load_config; MODEL.TYPE must be StyleClassification or ArcStyleClassification.
        Only the global branch is used: weights of either stage do, and MODEL.LOCAL is left out.
        Names are DATA.ATTRIBUTES.VALUES[0]; class ids where the configuration has none.
    checkpoint: the file with the weights.

    names: the names of the classes. loaded: a line that says how many tensors were taken.
    Sets the number of threads of the process (NUM_THREADS).

    Raises EngineError for a model that is no classifier; FileNotFoundError and CheckpointError for
    the checkpoint.
    """

    def __init__(self, cfg: Any, checkpoint: str | os.PathLike) -> None:
        if cfg.MODEL.TYPE == "ASEN":
            raise EngineError("MODEL.TYPE is ASEN, which has no classifier: style inference needs "
                              "StyleClassification or ArcStyleClassification, and a checkpoint of one")
        path = os.fspath(checkpoint)
        super().__init__(cfg, read(path), path, _global_only(cfg))
        self.names = value_names(cfg, ATTRIBUTE, cfg.HEAD.out_features)

    def classify(self, image: Any) -> dict[str, Any]:
        """{"style": name, "score": its probability in [0, 1]} of one image: see classify_many."""
        return self.classify_many([image])[0]

    def classify_many(self, images: Iterable[Any]) -> list[dict[str, Any]]:
        """The result of classify for each image, in order, DATA.TEST_BATCHSIZE images at a time.

        images: paths, PIL images, or uint8 RGB arrays (height, width, 3), mixed as you like. The
            EXIF orientation of paths and PIL images is applied.

        Raises OSError for a file that cannot be read and DataError for an image that cannot be
        used, both naming the file; TypeError for what is no image; EngineError where the weights
        are spoilt.
        """
        return [self.result(number, score) for number, score in self.predict(images)]

    def result(self, number: int, score: float) -> dict[str, Any]:
        """Class id and score under the names that classify gives."""
        return {"style": self.names[number], "score": score}

    def predict(self, images: Iterable[Any]) -> list[tuple[int, float]]:
        """(class id, probability) of the likeliest class of each image; the smaller id where two tie."""
        found: list[tuple[int, float]] = []
        for batch in self._batches(images):
            rows = self._probabilities(batch)
            found += [(number, float(row[number])) for row, number in zip(rows, rows.argmax(axis=1).tolist())]
        return found

    def probabilities(self, images: Iterable[Any]) -> np.ndarray:
        """(images, classes) float32: the probability of each class. Images as for classify_many."""
        parts = [self._probabilities(batch) for batch in self._batches(images)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.names)), np.float32)

    def _probabilities(self, batch: list[Prepared]) -> np.ndarray:
        with no_grad(), self._precision.autocast():
            logits = self._model.forward_style(self._whole(batch), np.full(len(batch), ATTRIBUTE))[2]
            return self._finite(self._model.probabilities(logits).to(device="cpu").numpy())


def _global_only(cfg: Any) -> Config:
    """The configuration without the local branch."""
    tree = cfg.to_dict()
    tree["MODEL"]["LOCAL"]["ENABLE"] = False
    return Config(tree)
