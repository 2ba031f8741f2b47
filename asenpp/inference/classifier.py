"""The style of an image: the global branch, attribute 0, the softmax of the classifier (docs/reference.md 7 and 9).

Images are turned as their EXIF orientation says, unlike in training.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..basics import no_grad
from ..config import Config
from ..data.index import DataError
from ..engine.errors import EngineError
from ..engine.images import Images
from ..engine.precision import Precision
from ..engine.run import choose_device, set_threads
from ..engine.state import read
from ..engine.weights import take_weights
from ..models import build_model
from ..transforms import GlobalTransform, decode

__all__ = ["StyleClassifier"]

ATTRIBUTE = 0       # style labels are those of attribute 0


class StyleClassifier:
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
        state = read(path)
        values = cfg.DATA.ATTRIBUTES.get("VALUES")
        self.names = list(values[ATTRIBUTE]) if values and values[ATTRIBUTE] else [
            str(i) for i in range(cfg.HEAD.out_features)]
        self._device = choose_device(cfg)
        set_threads(cfg)
        self._model = build_model(_global_only(cfg), pretrained=False)
        self.loaded = take_weights(self._model, state, path, cfg, whole=True)
        self._model.to(device=self._device)
        self._model.eval()
        self._checkpoint, self._batch = path, cfg.DATA.TEST_BATCHSIZE
        self._images, self._precision = Images(cfg, self._device), Precision(cfg, self._device)
        self._transform = GlobalTransform(cfg)
        self._transform.exif = True

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
        results: list[tuple[int, float]] = []
        batch: list[np.ndarray] = []
        for image in images:
            batch.append(self._prepare(image))
            if len(batch) == self._batch:
                results += self._predict(batch)
                batch = []
        return results + self._predict(batch) if batch else results

    def probabilities(self, images: Iterable[Any]) -> np.ndarray:
        """(images, classes) float32: the probability of each class. Images as for classify_many."""
        prepared = [self._prepare(image) for image in images]
        parts = [self._probabilities(prepared[i:i + self._batch]) for i in range(0, len(prepared), self._batch)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.names)), np.float32)

    def _prepare(self, image: Any) -> np.ndarray:
        """The global transform of one image, (S, S, 3) float32."""
        name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else ""
        try:
            return self._transform.batch([decode(image, exif=True) if name else image])[0]
        except OSError:
            raise
        except ValueError as error:
            text = str(error)
            raise DataError(text if not name or text.startswith(name) else f"{name}: {text}") from None

    def _predict(self, prepared: Sequence[np.ndarray]) -> list[tuple[int, float]]:
        rows = self._probabilities(prepared)
        return [(number, float(row[number])) for row, number in zip(rows, rows.argmax(axis=1).tolist())]

    def _probabilities(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        with no_grad(), self._precision.autocast():
            attributes = np.full(len(prepared), ATTRIBUTE)
            logits = self._model.forward_style(self._images(np.stack(prepared)), attributes)[2]
            rows = self._model.probabilities(logits).to(device="cpu").numpy()
        if not np.isfinite(rows).all():
            raise EngineError(f"{self._checkpoint}: the result is not finite: the weights are spoilt (NaN or "
                              "infinite), or of another configuration")
        return rows


def _global_only(cfg: Any) -> Config:
    """The configuration without the local branch."""
    tree = cfg.to_dict()
    tree["MODEL"]["LOCAL"]["ENABLE"] = False
    return Config(tree)
