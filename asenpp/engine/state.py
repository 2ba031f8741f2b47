"""The state of a training, as checkpoints hold it, and the run folder that they lie in.

A checkpoint is one dictionary (asenpp.checkpoint; torch.load(weights_only=True) reads it):

    model       state dict, as the published programs have it; with SOLVER.EMA_DECAY the averaged weights (those that
                are evaluated), and then training_model: the weights that training goes on with, ema_updates
    epoch       epochs that are complete; batch: batches done in the next one
    step        optimizer steps in all
    mAP         total mAP of the last evaluation, best_mAP: the best so far, in [0, 1]; since_best: evaluations since
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
from ..config import DEFAULTS
from .errors import EngineError

__all__ = ["RunFolder", "Position", "read", "python_random_state", "set_python_random_state", "changed_keys", "flat"]

LAST, BEST, METRICS = "checkpoint.pth.tar", "model_best.pth.tar", "metrics.jsonl"


class Position(NamedTuple):
    """Where a training stands: `epoch` complete epochs, `batch` batches of the next."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    last_map: float = 0.0
    best_map: float = 0.0
    since_best: int = 0     # evaluations since the best one


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


# -- configurations ------------------------------------------------------------------------------

def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A configuration as {"A.B.KEY": value}."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if hasattr(value, "items"):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = _lists(value)
    return found


def _lists(value: Any) -> Any:
    """Tuples, within others too, as lists: checkpoints have these."""
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def changed_keys(cfg: Any, state: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose value differs: (in the checkpoint, here); empty for checkpoints without a configuration. Keys that the
    checkpoint's lacks had their default's effect."""
    there = state.get("config")
    if not isinstance(there, dict):
        return {}
    then, now = {**flat(DEFAULTS), **flat(there)}, flat(cfg)
    return {key: (then[key], now[key]) for key in now if key in then and then[key] != now[key]}


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
