"""The state of a training, as checkpoints hold it, and the run folder that they lie in.

A checkpoint is one dictionary (asenpp.checkpoint; torch.load(weights_only=True) reads it):

    model       state dict, as the published programs have it
    epoch       epochs that are complete; batch: batches done in the next one
    step        optimizer steps in all
    mAP         total mAP of the last evaluation, best_mAP: the best so far, in [0, 1]
    optimizer, schedule, sampler, random, python_random
                the states that make a resumed run end in the same bits
    seed, threads, metrics_bytes, name, config

An epoch ends with its evaluation: `batch` equal to the number of batches says that the evaluation
is still to come.
"""

from __future__ import annotations

import os
import random
from typing import Any, NamedTuple

from .. import _asen, checkpoint
from ..checkpoint import CheckpointError
from .errors import EngineError

__all__ = ["RunFolder", "Position", "read", "take_weights", "python_random_state", "set_python_random_state",
           "changed_keys"]

LAST, BEST, METRICS = "checkpoint.pth.tar", "model_best.pth.tar", "metrics.jsonl"


class Position(NamedTuple):
    """Where a training stands: `epoch` complete epochs, `batch` batches of the next."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    last_map: float = 0.0
    best_map: float = 0.0


class RunFolder:
    """SAVE_DIR/NAME."""

    def __init__(self, cfg: Any) -> None:
        if not cfg.NAME:
            raise EngineError("NAME is empty: a run needs a name for its folder; s1.yaml and s2.yaml of a data set "
                              "set it, or --opts NAME my_run")
        self.path = os.path.join(cfg.SAVE_DIR or "", cfg.NAME)
        self.last, self.best, self.metrics = (os.path.join(self.path, name) for name in (LAST, BEST, METRICS))

    def taken(self) -> bool:
        """Whether a run lies here: one that has saved something."""
        return os.path.exists(self.last) or os.path.exists(self.best)

    def holds(self, path: str) -> bool:
        return os.path.realpath(os.path.dirname(path) or ".") == os.path.realpath(self.path)

    def refuse_if_taken(self) -> None:
        if self.taken():
            remedy = (f"go on with it (--resume {self.last})" if os.path.exists(self.last)
                      else "move it away")
            raise EngineError(f"{self.path} holds a run already: {remedy}, name another (--opts NAME ...), "
                              "or start anew in its place (--overwrite)")

    def clear(self) -> None:
        """Removes a run's files, and nothing else."""
        for path in (self.last, self.best, self.metrics):
            if os.path.exists(path):
                os.unlink(path)

    def make(self) -> None:
        os.makedirs(self.path, exist_ok=True)

    def save(self, state: dict[str, Any], best: bool) -> None:
        """Writes a checkpoint; with `best` the best one first, so that a stop in between loses nothing."""
        if best:
            checkpoint.save(state, self.best)
            checkpoint.copy_file(self.best, self.last)
        else:
            checkpoint.save(state, self.last)


def read(path: str) -> dict[str, Any]:
    """A checkpoint's dictionary, with the state dict under `model`, wherever the file has it: a file
    that is nothing but a state dict becomes {"model": …}. FileNotFoundError, CheckpointError."""
    state = checkpoint.load(path)
    weights = checkpoint.weights(state)
    if weights is None:
        raise CheckpointError(f"{path}: holds no model (a state dict, or a dictionary with one under 'model' or "
                              "'state_dict', was expected)")
    return {"model": weights} if weights is state else {**state, "model": weights}


# -- weights --------------------------------------------------------------------------------------

# What decides the shapes of a model: when weights do not fit, these are compared first.
_ARCHITECTURE = ("MODEL.TYPE", "MODEL.LOCAL.ENABLE", "MODEL.GLOBAL.BACKBONE.NAME", "MODEL.LOCAL.BACKBONE.NAME",
                 "MODEL.EMBED_SIZE", "MODEL.ATTRIBUTE.EMBED_SIZE", "DATA.NUM_ATTRIBUTES", "HEAD.in_features",
                 "HEAD.out_features", "MODEL.GLOBAL.ATTENTION.SPATIAL.ENABLE",
                 "MODEL.GLOBAL.ATTENTION.SPATIAL.COMMON_EMBED_SIZE", "MODEL.GLOBAL.ATTENTION.CHANNEL.ENABLE",
                 "MODEL.GLOBAL.ATTENTION.CHANNEL.REDUCTION_RATE",
                 "MODEL.LOCAL.ATTENTION.SPATIAL.COMMON_EMBED_SIZE")


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if hasattr(value, "items"):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(value) if isinstance(value, (list, tuple)) else value
    return flat


def changed_keys(cfg: Any, state: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose value differs: (in the checkpoint, here); empty for checkpoints without a configuration."""
    there = state.get("config")
    if not isinstance(there, dict):
        return {}
    then, now = _flat(there), _flat(cfg)
    return {key: (then[key], now[key]) for key in now if key in then and then[key] != now[key]}


def _other_architecture(cfg: Any, state: dict[str, Any], path: str, what: str) -> CheckpointError:
    changed = changed_keys(cfg, state)
    differing = [f"{key} is {changed[key][0]} there and {changed[key][1]} here"
                 for key in _ARCHITECTURE if key in changed]
    why = "; ".join(differing) if differing else "check MODEL in the configuration"
    return CheckpointError(f"{path}: is of another architecture: {what}; {why}")


def take_weights(model: Any, state: dict[str, Any], path: str, cfg: Any, whole: bool) -> str:
    """Loads the weights that the model has; returns a line that says how many were taken.

    whole: every tensor of the model must be there (evaluation, and going on exactly); otherwise
    absent ones keep their values (stage 2 from stage 1). A shape that differs, or nothing that
    fits, is a CheckpointError.
    """
    weights, own = state["model"], model.state_dict()
    for name, tensor in own.items():
        if name in weights and tuple(getattr(weights[name], "shape", ())) != tuple(tensor.shape):
            raise _other_architecture(
                cfg, state, path, f"{name} is {_size(weights[name])} there, {_size(tensor)} here")
    # The attribute table has a name in each branch; batch norm's counters are absent in old files.
    given = {own[name]._memory for name in own if name in weights}
    absent = [name for name in own if name not in weights and own[name]._memory not in given]
    missing = [name for name in absent if not name.endswith("num_batches_tracked")]
    ignored = [name for name in weights if name not in own]
    taken = len(own) - len(absent)
    if not taken:
        raise _other_architecture(cfg, state, path, f"none of its {len(weights)} tensors is one of the model's "
                                  f"(which begin with {next(iter(own))})")
    if missing and whole:
        raise _other_architecture(cfg, state, path, f"{len(missing)} of the model's {len(own)} tensors are not "
                                  f"there, the first: {missing[0]}")
    # A missing local branch is how stage 2 begins; but half a branch is an accident.
    part = _partly_missing(own, weights, missing)
    if part and _flat(state.get("config") or {}) and not whole:
        raise _other_architecture(cfg, state, path, f"{part} is not there, though others of its part are")
    model.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)
    line = f"{path}: {taken} of the model's {len(own)} tensors taken"
    if absent:
        line += f", {len(absent)} not there and left as they are (the first: {absent[0]})"
    if ignored:
        line += f"; {len(ignored)} of the checkpoint's ignored (the first: {ignored[0]})"
    return line


def _size(tensor: Any) -> str:
    return "×".join(map(str, getattr(tensor, "shape", ()))) or "a number"


def _partly_missing(own: Any, weights: Any, missing: list[str]) -> str:
    """The first missing tensor of a backbone or attention net of which others are there."""
    def part(name: str) -> str:
        return ".".join(name.split(".")[:name.split(".").index("choices") + 3]) if "choices" in name else ""

    there = {part(name) for name in own if name in weights}
    return next((name for name in missing if part(name) and part(name) in there
                 and not part(name).endswith("attrnet")), "")


# -- random states --------------------------------------------------------------------------------

def python_random_state() -> list[Any]:
    """The state of Python's `random`, in lists and ints."""
    version, numbers, gauss = random.getstate()
    return [version, list(numbers), gauss]


def set_python_random_state(state: list[Any]) -> None:
    random.setstate((int(state[0]), tuple(int(i) for i in state[1]), state[2]))


def thread_warning(state: dict[str, Any]) -> str:
    """A warning where the checkpoint was written with another number of threads; "" where not."""
    then, now = state.get("threads"), _asen.get_num_threads()
    if then in (None, now):
        return ""
    return (f"the checkpoint was written with {then} threads, now there are {now}: sums are added in another order, "
            f"so the result will not be the same bits (--opts NUM_THREADS {then} keeps them)")
