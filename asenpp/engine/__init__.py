"""Training and evaluation: what main.py calls.

    training.py    the loop over epochs        losses.py   the formulas
    evaluation.py  features, mAP, reports      step.py     one step's forward pass
    state.py       checkpoints, run folders    memory.py   whether it fits
    log.py         log lines, metrics.jsonl    run.py      device, threads, seeds
    stop.py        Ctrl-C                      command.py  the command line
    weights.py     checkpoint, ImageNet, seed

`train` and `evaluate` are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from .errors import EngineError, Interrupted

__all__ = ["EngineError", "Interrupted", "evaluate", "train"]

_HOMES = {"train": "training", "evaluate": "evaluation"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'asenpp.engine' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
