"""The values of an image's attributes, told by the heads of SOLVER.LOSS cosine: the softmax of ASEN.classify's logits.

As in evaluation: the backbone runs once an image, attention (and the local branch, on crops of the image as it was
given) once for each attribute that is asked of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..basics import no_grad
from ..checkpoint import CheckpointError
from ..engine.errors import EngineError
from ..engine.images import as_map
from ..engine.state import changed_keys, read
from ..nn import functional as F
from ..transforms import LocalTransform
from .base import ImageClassifier, Prepared, value_names

__all__ = ["AttributeClassifier"]

Values = dict[str, dict[str, Any]]      # of an image: {attribute: {"value": name, "probability": p}}


class AttributeClassifier(ImageClassifier):
    """Tells the values of images' attributes.

        classifier = AttributeClassifier(cfg, "runs/Garments_s2/model_best.pth.tar")
        classifier.predict(["photo.jpg"])       # [{"colour": {"value": "red", "probability": 0.93}, …}]

    cfg: see asenpp.load_config; SOLVER.LOSS must be cosine. With MODEL.LOCAL.ENABLE both branches are used, weighted
        by SOLVER.BETA, and the checkpoint must be one of stage 2; without, the global branch of either stage.
    checkpoint: the file with the weights, trained with SOLVER.LOSS cosine.

    values: {attribute: names of its values}, in the order of DATA.ATTRIBUTES.NAME and VALUES; ids as text where an
        attribute has no names. loaded: a line that says how many tensors were taken.
    Sets the number of threads of the process (NUM_THREADS).

    images, in all methods: paths, PIL images, or uint8 RGB arrays (height, width, 3), mixed as you like; the EXIF
        orientation of paths and PIL images is applied. DATA.TEST_BATCHSIZE of them are classified at a time, and
        held: fewer where crops are cut out of images so large that they take a GiB.
    attributes: the names of those that are asked for, in the order of the answer; None: all.

    Raises EngineError for a configuration without heads; FileNotFoundError and CheckpointError for the checkpoint.
    The methods raise OSError for a file that cannot be read and DataError for an image that cannot be used, both
    naming the file; TypeError for what is no image; EngineError for unknown attributes and where the weights are
    spoilt.
    """

    def __init__(self, cfg: Any, checkpoint: str | os.PathLike) -> None:
        _check_configuration(cfg)
        path = os.fspath(checkpoint)
        state = read(path)
        _check_heads(cfg, state, path)
        super().__init__(cfg, state, path, keep_pixels=cfg.MODEL.LOCAL.ENABLE)
        names, sizes = cfg.DATA.ATTRIBUTES.NAME, cfg.DATA.ATTRIBUTES.NUM
        self.values = {name: value_names(cfg, i, size) for i, (name, size) in enumerate(zip(names, sizes))}
        self._local = LocalTransform(cfg) if self._model.has_local else None

    def predict(self, images: Iterable[Any], attributes: Sequence[str] | None = None) -> list[Values]:
        """{attribute: {"value": name, "probability": p}} of each image, in order: the likeliest value, the one with the
        smaller id where two tie, and its probability in [0, 1]."""
        return [values for _, values in self.stream(images, attributes)]

    def stream(self, images: Iterable[Any], attributes: Sequence[str] | None = None,
               failed: Callable[[Any, Exception], None] | None = None) -> Iterator[tuple[Any, Values]]:
        """(image, what predict says of it) of each image, in order, as soon as its batch is done.

        failed: called with an image that cannot be used and the error that says why, and the image is left out.
            Without it the error is raised, after the images before.
        """
        chosen = self._choose(attributes)

        def results() -> Iterator[tuple[Any, Values]]:
            for batch in self._batches(images, failed):
                told = self._tell(batch, chosen)
                for row, prepared in enumerate(batch):
                    yield prepared.image, {
                        name: {"value": self.values[name][best[row]], "probability": float(rows[row, best[row]])}
                        for name, (best, rows) in told.items()}

        return results()

    def probabilities(self, images: Iterable[Any], attributes: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """{attribute: (images, values) float32}: the probability of each value."""
        chosen = self._choose(attributes)
        parts: dict[str, list[np.ndarray]] = {
            name: [np.empty((0, len(self.values[name])), np.float32)] for name in chosen}
        for batch in self._batches(images):
            for name, (_, rows) in self._tell(batch, chosen).items():
                parts[name].append(rows)
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def _choose(self, attributes: Sequence[str] | None) -> dict[str, int]:
        """Names and numbers of the attributes that are asked for."""
        numbers = {name: number for number, name in enumerate(self.values)}
        if attributes is None:
            return numbers
        if isinstance(attributes, str):
            attributes = [attributes]
        unknown = [repr(name) for name in attributes if name not in numbers]
        if unknown:
            raise EngineError(f"there is no attribute {', '.join(unknown)} (DATA.ATTRIBUTES.NAME has: "
                              f"{', '.join(numbers)})")
        return {name: numbers[name] for name in attributes}

    # -- one batch --------------------------------------------------------------------------------

    def _tell(self, batch: list[Prepared], chosen: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """(ids of the likeliest values (B,), probabilities (B, values)) by attribute."""
        model = self._model
        with no_grad(), self._precision.autocast():
            maps = model.backbone(self._whole(batch))
            keys = model.keys(maps)
            return {name: self._tell_one(batch, maps, keys, attribute) for name, attribute in chosen.items()}

    def _tell_one(self, batch: list[Prepared], maps: Any, keys: Any, attribute: int) -> tuple[np.ndarray, np.ndarray]:
        model, asked = self._model, np.full(len(batch), attribute)
        embedding, attention = model.attend(maps, asked, "global", keys)
        local = None
        if self._local is not None:
            crops = self._local.batch([prepared.pixels for prepared in batch], self._finite(as_map(attention)))
            # Evaluation hands the local feature on normalised: the same bits are the same values where two nearly tie.
            local = F.normalize(model.forward_branch("local", self._images(crops), asked)[0])
        logits = model.classify(embedding, attribute, local)
        rows = self._finite(F.softmax(logits, dim=1).to(device="cpu").numpy())
        return logits.to(device="cpu").numpy().argmax(axis=1), rows


# -- configurations and checkpoints without heads --------------------------------------------------

_COMMAND = "python -m asenpp.inference"
_HEADS = "heads, which tell the values of attributes"


def _check_configuration(cfg: Any) -> None:
    if cfg.MODEL.TYPE != "ASEN":
        raise EngineError(f"MODEL.TYPE is {cfg.MODEL.TYPE}, which tells styles alone (StyleClassifier, {_COMMAND} image): "
                          "the values of attributes need MODEL.TYPE ASEN, trained with SOLVER.LOSS cosine")
    if not cfg.DATA.ATTRIBUTES.NAME:
        raise EngineError("DATA.ATTRIBUTES.NAME is empty: the attributes stand in the data set's own YAML file "
                          "(config/<Dataset>/<Dataset>.yaml), which the configuration must begin with")


def _check_heads(cfg: Any, state: dict[str, Any], path: str) -> None:
    there = any(name.startswith("heads.") for name in state["model"])
    changed = changed_keys(cfg, state)
    if cfg.SOLVER.LOSS != "cosine":
        remedy = (f"{path} has them: --opts SOLVER.LOSS cosine takes them" if there else
                  "train with SOLVER.LOSS cosine (--opts SOLVER.LOSS cosine) and take that checkpoint")
        raise EngineError(f"SOLVER.LOSS is {cfg.SOLVER.LOSS}: such a model has no {_HEADS}; {remedy}")
    if not there:
        loss = changed.get("SOLVER.LOSS")
        raise CheckpointError(f"{path}: has no {_HEADS}" + (f" (SOLVER.LOSS was {loss[0]})" if loss else "") +
                              ": train with SOLVER.LOSS cosine and take that checkpoint")
    if "DATA.ATTRIBUTES.NUM" in changed:        # the heads' one tensor may have the same size nevertheless
        then, now = changed["DATA.ATTRIBUTES.NUM"]
        raise CheckpointError(f"{path}: has heads of other attributes: DATA.ATTRIBUTES.NUM is {then} there and {now} "
                              "here; take the configuration that it was trained with")
