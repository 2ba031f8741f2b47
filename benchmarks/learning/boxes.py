"""How much of an attention map lies in the true boxes of its attribute.

The map covers what the global transform shows the model: the centre square of the image. A cell counts by the part of
its area that the union of the boxes covers. Beside it: chance, the part of the whole view that they cover, and what
the same image's maps for the other attributes put there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

Box = Sequence[int]     # x, y, width, height in pixels of the image


def view(height: int, width: int, size: int) -> tuple[float, float, float]:
    """(left, top, side) in pixels of the image: what is left after its shorter side was made `size` and the centre cut
    out, in whole pixels of the resized image (docs/reference.md 5)."""
    short, long = min(height, width), max(height, width)
    offset = round((int(size * long / short) - size) / 2) * short / size
    return (offset, 0.0, float(short)) if width > height else (0.0, offset, float(short))


def _between(positions: np.ndarray, count: int) -> np.ndarray:
    """(len(positions), count + 1): rows that interpolate linearly between values at 0, 1, …, count."""
    positions = np.clip(positions, 0, count)
    lower = np.minimum(positions.astype(np.int64), count - 1)
    weights = np.zeros((len(positions), count + 1))
    rows = np.arange(len(positions))
    weights[rows, lower] = 1 - (positions - lower)
    weights[rows, lower + 1] = positions - lower
    return weights


def coverage(boxes: Sequence[Box], height: int, width: int, size: int, grid: tuple[int, int]) -> np.ndarray:
    """(rows, columns) float64 in [0, 1]: the part of each map cell that the union of the boxes covers.

    Areas are differences of the integral of the boxes' mask, which is bilinear within a pixel: exact for cells of any
    size.
    """
    mask = np.zeros((height, width))
    for x, y, w, h in boxes:
        mask[max(0, y):y + h, max(0, x):x + w] = 1
    integral = np.zeros((height + 1, width + 1))
    integral[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)
    left, top, side = view(height, width, size)
    rows, columns = grid
    across = _between(top + side * np.arange(rows + 1) / rows, height)
    down = _between(left + side * np.arange(columns + 1) / columns, width)
    areas = np.diff(np.diff(across @ integral @ down.T, axis=0), axis=1)
    return areas / (side / rows * side / columns)


def shares(maps: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """(A, A): [a, b] is the part of map a's mass inside the boxes of attribute b. maps, covered: (A, rows, columns)."""
    mass = maps / maps.sum(axis=(1, 2), keepdims=True)
    return np.einsum("ahw,bhw->ab", mass, covered)


def summarise(inside: np.ndarray, chance: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """By attribute the means over images. inside: (images, A, A), see shares; chance: (images, A)."""
    mean, by_chance = inside.mean(axis=0), chance.mean(axis=0)
    return {name: {"own": float(mean[i, i]), "chance": float(by_chance[i]),
                   "others": float(np.delete(mean[:, i], i).mean())} for i, name in enumerate(names)}


def measure(cfg: Any, checkpoint: str, split: str = "TEST", batch: int = 64) -> dict[str, dict[str, float]]:
    """The global branch's maps on all images of a split that has a boxes.json: see summarise."""
    import asenpp
    from asenpp.data.index import load_eval
    from asenpp.engine.state import read
    from asenpp.engine.weights import take_weights
    from asenpp.transforms import GlobalTransform, decode

    folder = os.path.join(cfg.DATA.BASE_PATH, cfg.DATA.DATASET)
    with open(os.path.join(folder, "boxes.json"), encoding="utf-8") as file:
        known = json.load(file)[split.lower()]
    names = [name for name in cfg.DATA.ATTRIBUTES.NAME if any(name in boxes for boxes in known.values())]
    rows = [cfg.DATA.ATTRIBUTES.NAME.index(name) for name in names]
    model = asenpp.build_model(cfg, pretrained=False)
    take_weights(model, read(checkpoint), checkpoint, cfg, whole=True)
    model.eval()
    transform, size = GlobalTransform(cfg), cfg.INPUT.GLOBAL_SIZE
    paths = load_eval(cfg, split).paths
    inside, chance = [], []
    for start in range(0, len(paths), batch):
        images = [decode(path) for path in paths[start:start + batch]]
        with asenpp.no_grad():
            features = model.backbone(asenpp.from_numpy(transform.batch(images)).permute(0, 3, 1, 2), "global")
            maps = np.stack([model.attend(features, np.full(len(images), row), "global")[1].numpy() for row in rows], 1)
        for path, image, own in zip(paths[start:start + batch], images, maps):
            boxes = known[os.path.relpath(path, folder)]
            (height, width), grid = image.shape[:2], own.shape[1:]
            covered = np.stack([coverage(boxes[name], height, width, size, grid) for name in names])
            inside.append(shares(own.astype(np.float64), covered))
            chance.append(covered.mean(axis=(1, 2)))
    return summarise(np.stack(inside), np.stack(chance), names)
