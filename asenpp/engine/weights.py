"""Where the weights of a model come from: a checkpoint, ImageNet, or the seed.

The order is the published programs': ImageNet first, the checkpoint over it. So a backbone that the checkpoint lacks
(the local one, when stage 2 starts from stage 1) begins with ImageNet weights; for one that it holds whole, they are
not even looked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checkpoint import CheckpointError
from ..models import build_model, pretrain
from .errors import EngineError
from .state import changed_keys, flat

__all__ = ["initial_model", "refuse_spoilt", "take_weights"]

# What decides the shapes of a model: when weights do not fit, these are compared first.
_ARCHITECTURE = ("MODEL.TYPE", "MODEL.LOCAL.ENABLE", "MODEL.GLOBAL.BACKBONE.NAME", "MODEL.LOCAL.BACKBONE.NAME",
                 "MODEL.EMBED_SIZE", "MODEL.ATTRIBUTE.EMBED_SIZE", "DATA.NUM_ATTRIBUTES", "HEAD.in_features",
                 "HEAD.out_features", "MODEL.GLOBAL.ATTENTION.SPATIAL.ENABLE",
                 "MODEL.GLOBAL.ATTENTION.SPATIAL.COMMON_EMBED_SIZE", "MODEL.GLOBAL.ATTENTION.CHANNEL.ENABLE",
                 "MODEL.GLOBAL.ATTENTION.CHANNEL.REDUCTION_RATE",
                 "MODEL.LOCAL.ATTENTION.SPATIAL.COMMON_EMBED_SIZE", "SOLVER.LOSS", "DATA.ATTRIBUTES.NUM")


class _Match:
    """The tensors of a model beside those of a checkpoint, of which nothing was loaded yet.

    path, cfg, whole: see take_weights, for what it raises.
    """

    def __init__(self, model: Any, state: dict[str, Any], path: str, cfg: Any, whole: bool) -> None:
        self.model, self.path = model, path
        self.weights = weights = state["model"]
        self.own = own = model.state_dict()
        for name, tensor in own.items():
            if name in weights and tuple(getattr(weights[name], "shape", ())) != tuple(tensor.shape):
                raise _other_architecture(
                    cfg, state, path, f"{name} is {_size(weights[name])} there, {_size(tensor)} here")
        # The attribute table has a name in each branch; batch norm's counters are absent in old files.
        given = {own[name]._memory for name in own if name in weights}
        self.absent = [name for name in own if name not in weights and own[name]._memory not in given]
        self.missing = [name for name in self.absent if not name.endswith("num_batches_tracked")]
        if len(self.absent) == len(own):
            raise _other_architecture(cfg, state, path, f"none of its {len(weights)} tensors is one of the model's "
                                      f"(which begin with {next(iter(own))})")
        if self.missing and whole:
            raise _other_architecture(cfg, state, path, f"{len(self.missing)} of the model's {len(own)} tensors are not "
                                      f"there, the first: {self.missing[0]}")
        # A missing local branch is how stage 2 begins; but half a branch is an accident.
        part = _partly_missing(own, weights, self.missing)
        if part and flat(state.get("config") or {}) and not whole:
            raise _other_architecture(cfg, state, path, f"{part} is not there, though others of its part are")

    def load(self) -> str:
        """Loads what is there; returns a line that says how much that was."""
        self.model.load_state_dict({name: self.weights[name] for name in self.own if name in self.weights}, strict=False)
        ignored = [name for name in self.weights if name not in self.own]
        line = f"{self.path}: {len(self.own) - len(self.absent)} of the model's {len(self.own)} tensors taken"
        if self.absent:
            line += f", {len(self.absent)} not there and left as they are (the first: {self.absent[0]})"
        if ignored:
            line += f"; {len(ignored)} of the checkpoint's ignored (the first: {ignored[0]})"
        return line


def take_weights(model: Any, state: dict[str, Any], path: str, cfg: Any, whole: bool) -> str:
    """Loads the weights that the model has; returns a line that says how many were taken.

    whole: every tensor of the model must be there (evaluation, and going on exactly); otherwise
    absent ones keep their values. A shape that differs, or nothing that fits, is a CheckpointError.
    """
    return _Match(model, state, path, cfg, whole).load()


def initial_model(cfg: Any, state: dict[str, Any] | None, path: str, whole: bool) -> tuple[Any, list[str]]:
    """The model that a training starts with, and lines that say where its parts came from.

    state, path: the checkpoint, if there is one; whole: see take_weights.

    Raises CheckpointError, before ImageNet weights are looked for, and PretrainedError where they cannot be had.
    """
    model = build_model(cfg, pretrained=False)
    match = None if state is None else _Match(model, state, path, cfg, whole)
    missing = list(model.state_dict()) if match is None else match.missing
    files = pretrain(model, cfg, missing)
    lines = [] if match is None else [match.load()]
    return model, lines + ([] if whole else _sources(model, missing, files, path))


def refuse_spoilt(model: Any, where: str) -> None:
    """EngineError names the first tensor of a model that holds NaN or infinity; where: whose it is. (A ReLU that is part of
    a convolution may make zeros of NaN, so that results are finite.)"""
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().to(device="cpu")
        if tensor.dtype in ("float16", "bfloat16"):
            tensor = tensor.to(dtype="float32")
        if not np.isfinite(tensor.numpy()).all():
            raise EngineError(f"{where}: {name} is not finite: the weights are spoilt (NaN or infinite); take an earlier "
                              "checkpoint")


def _sources(model: Any, missing: list[str], files: dict[str, str], path: str) -> list[str]:
    """A line for each part of the model."""
    absent = set(missing)
    parts: dict[str, list[bool]] = {}
    for name in model.state_dict():
        if not name.endswith("num_batches_tracked"):
            parts.setdefault(_part(name), []).append(name not in absent)
    lines = []
    for part, given in parts.items():
        else_from = files.get(part.partition(" ")[0], "fresh") if part.endswith("backbone") else "fresh"
        if all(given):
            source = f"checkpoint {path}"
        elif any(given):
            source = f"{sum(given)} of {len(given)} tensors from checkpoint {path}, the others {else_from}"
        else:
            source = else_from
        lines.append(f"{part}: {source}")
    return lines


_PARTS = {"basenet": "backbone", "attnnet": "attention"}


def _part(name: str) -> str:
    """"global branch, backbone" and the like, "attribute table", or "classifier" (of a style model)."""
    words = name.split(".")
    if words[0] == "heads":
        return f"{words[1]} branch, heads"
    if "choices" not in words:
        return "classifier"
    branch, kind = words[words.index("choices") + 1:][:2]
    return f"{branch} branch, {_PARTS[kind]}" if kind in _PARTS else "attribute table"


def _other_architecture(cfg: Any, state: dict[str, Any], path: str, what: str) -> CheckpointError:
    changed = changed_keys(cfg, state)
    differing = [f"{key} is {changed[key][0]} there and {changed[key][1]} here"
                 for key in _ARCHITECTURE if key in changed]
    why = "; ".join(differing) if differing else "check MODEL in the configuration"
    return CheckpointError(f"{path}: is of another architecture: {what}; {why}")


def _size(tensor: Any) -> str:
    return "×".join(map(str, getattr(tensor, "shape", ()))) or "a number"


def _partly_missing(own: Any, weights: Any, missing: list[str]) -> str:
    """The first missing tensor of a backbone or attention net of which others are there."""
    def part(name: str) -> str:
        return ".".join(name.split(".")[:name.split(".").index("choices") + 3]) if "choices" in name else ""

    there = {part(name) for name in own if name in weights}
    return next((name for name in missing if part(name) and part(name) in there
                 and not part(name).endswith("attrnet")), "")
