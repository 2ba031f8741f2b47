"""Images by the batch, between the loader's arrays and the model's tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _asen
from .._asen import Tensor
from ..amp import autocast_dtype
from ..nn import functional as F
from ..transforms import pixel_table

__all__ = ["Images", "Crops", "as_map", "crops_of", "take_batch", "take_images"]

# (maps (N, H, W) float32, rows (N,) of the batch that they belong to; None: all in order) -> the crops that the maps
# point out, (N, L, L, 3) of the pixels' dtype.
Crops = Callable[..., np.ndarray]


class Images:
    """Pixels (N, S, S, 3) as images (N, 3, S, S) on a device.

    float32 pixels are normalised already; on the CPU the tensor lies over the same memory. uint8 pixels are moved as
    they are and normalised there, through a table, to the bits that the CPU has; in autocast's dtype.
    """

    def __init__(self, cfg: Any, device: str) -> None:
        self.device = device
        self.pixel_dtype = np.float32 if device == "cpu" else np.uint8
        self._table = pixel_table(cfg)
        self._tables: dict[str, Tensor] = {}

    def __call__(self, pixels: np.ndarray) -> Tensor:
        images = _asen.from_numpy(pixels).permute(0, 3, 1, 2)
        if self.device != "cpu":
            images = images.to(device=self.device)
        return images if images.dtype != "uint8" else _asen.normalize_pixels(images, self._table_of(
            autocast_dtype() or "float32"))

    def _table_of(self, dtype: str) -> Tensor:
        if dtype not in self._tables:
            self._tables[dtype] = _asen.from_numpy(self._table).to(dtype=dtype).to(device=self.device)
        return self._tables[dtype]


def as_map(attention: Tensor) -> np.ndarray:
    """Attention maps without their history, as an array on the host."""
    return attention.detach().to(device="cpu").numpy()


def take_images(features: Any, rows: np.ndarray) -> Any:
    """Some images of a batch of feature maps (B, C, H, W) or vectors (B, C), as ints `rows` say: the features
    themselves where that is all of them in order. StyleFeatures are taken from in both parts."""
    if hasattr(features, "_replace"):
        average = features.average
        return features._replace(map=take_images(features.map, rows),
                                 average=None if average is None else take_images(average, rows))
    count = features.shape[0]
    if len(rows) == count and (rows == np.arange(count)).all():
        return features
    index = F.indices(rows, features)
    if features.ndim == 2:
        return features[index]
    _, channels, height, width = features.shape
    flat = features.permute(0, 2, 3, 1).reshape(count, height * width * channels)[index]
    return flat.reshape(len(rows), height, width, channels).permute(0, 3, 1, 2)


def take_batch(batch: Any, rows: np.ndarray) -> Any:
    """Some images of a loader's Batch, as ints `rows` say."""
    return dataclasses.replace(
        batch, ids=[batch.ids[row] for row in rows], pixels=batch.pixels[rows],
        images=None if batch.images is None else [batch.images[row] for row in rows],
        draws=None if batch.draws is None else batch.draws[rows])


def crops_of(batch: Any) -> Crops:
    """The Crops of a loader's Batch that keeps its images."""
    def crops(maps: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        return (batch if rows is None else take_batch(batch, rows)).local(maps)

    return crops
