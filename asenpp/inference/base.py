"""What classifiers of images share: a model with the weights of a checkpoint, images made ready, batches.

Images are turned as their EXIF orientation says, unlike in training. Images in any number can be classified: no more
of them are held at once than a batch has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..data.index import DataError
from ..engine.errors import EngineError
from ..engine.images import Images
from ..engine.precision import Precision
from ..engine.run import choose_device, set_threads
from ..engine.weights import refuse_spoilt, take_weights
from ..models import build_model
from ..transforms import GlobalTransform, _as_pixels

__all__ = ["ImageClassifier", "Prepared", "value_names"]

_KEPT_BYTES = 1 << 30       # of decoded images in a batch, from which on it is not made longer


class Prepared(NamedTuple):
    """An image of a batch: as it was given, its global transform (S, S, 3) float32, and, for classifiers that cut crops
    out of it, its pixels (height, width, 3) uint8."""

    image: Any
    whole: np.ndarray
    pixels: np.ndarray | None


class ImageClassifier:
    """A model on its device, ready for inference, and the way of images into it.

    cfg: the configuration. state, path: the checkpoint, as asenpp.engine.state.read gives it, and its file.
    model_cfg: the configuration of the model, where it is another than cfg.
    keep_pixels: whether batches hold the images' own pixels.

    loaded: a line that says how many tensors were taken. Sets the number of threads of the process (NUM_THREADS).

    Raises CheckpointError for weights that do not fit; EngineError where they are spoilt, or DEVICE cannot be had.
    """

    def __init__(self, cfg: Any, state: dict[str, Any], path: str, model_cfg: Any = None,
                 keep_pixels: bool = False) -> None:
        self._device = choose_device(cfg)
        set_threads(cfg)
        self._model = build_model(cfg if model_cfg is None else model_cfg, pretrained=False)
        self.loaded = take_weights(self._model, state, path, cfg, whole=True)
        refuse_spoilt(self._model, path)
        self._model.to(device=self._device)
        self._model.eval()
        self._checkpoint, self._batch, self._keep_pixels = path, cfg.DATA.TEST_BATCHSIZE, keep_pixels
        self._images, self._precision = Images(cfg, self._device), Precision(cfg, self._device)
        self._transform = GlobalTransform(cfg)

    def _batches(self, images: Iterable[Any],
                 failed: Callable[[Any, Exception], None] | None = None) -> Iterator[list[Prepared]]:
        """The images in order, DATA.TEST_BATCHSIZE at a time; fewer where their pixels, if they are kept, take a GiB.
        A batch is emptied when the next is asked for, so that no two are held.

        failed: called with an image that cannot be used and the OSError or DataError that says why; the image is left
            out. Without it the error is raised, after a batch of the images before.
        """
        batch: list[Prepared] = []
        size = 0
        for image in images:
            try:
                batch.append(self._prepare(image))
            except (OSError, DataError) as error:
                if failed is None:
                    if batch:
                        yield batch
                    raise
                failed(image, error)
                continue
            pixels = batch[-1].pixels
            size += 0 if pixels is None else pixels.nbytes
            if len(batch) == self._batch or size >= _KEPT_BYTES:
                yield batch
                batch.clear()
                size = 0
        if batch:
            yield batch

    def _prepare(self, image: Any) -> Prepared:
        """One image. OSError, DataError: name the file; TypeError for what is no image."""
        name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else ""
        try:
            pixels = _as_pixels(image, exif=True)
            return Prepared(image, self._transform.batch([pixels])[0], pixels if self._keep_pixels else None)
        except OSError:
            raise
        except ValueError as error:
            text = str(error)
            raise DataError(text if not name or text.startswith(name) else f"{name}: {text}") from None

    def _whole(self, batch: list[Prepared]) -> Any:
        """The global transforms of a batch as a tensor (B, 3, S, S) on the device."""
        return self._images(np.stack([prepared.whole for prepared in batch]))

    def _finite(self, rows: np.ndarray) -> np.ndarray:
        """The rows, if all numbers are finite; else EngineError names the checkpoint."""
        if not np.isfinite(rows).all():
            raise EngineError(f"{self._checkpoint}: the result is not finite: the weights are spoilt (NaN or "
                              "infinite), or of another configuration")
        return rows


def value_names(cfg: Any, attribute: int, count: int) -> list[str]:
    """The names of an attribute's values, DATA.ATTRIBUTES.VALUES; their ids, 0 to count - 1, where there are none."""
    values = cfg.DATA.ATTRIBUTES.get("VALUES")
    return list(values[attribute]) if values and values[attribute] else [str(i) for i in range(count)]
