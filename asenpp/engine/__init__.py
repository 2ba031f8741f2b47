"""Training and evaluation: what main.py calls.

    train.py      the loop over epochs        losses.py   the formulas
    evaluate.py   features, mAP, reports      step.py     one step's forward pass
    state.py      checkpoints, run folders    memory.py   whether it fits
    log.py        log lines, metrics.jsonl    run.py      device, threads, seeds
    stop.py       Ctrl-C                      command.py  the command line
"""

from __future__ import annotations

from typing import Any

from .errors import EngineError, Interrupted

__all__ = ["EngineError", "Interrupted", "evaluate", "train"]


def train(cfg: Any, **options: Any) -> dict[str, Any]:
    from .train import train as run

    return run(cfg, **options)


def evaluate(cfg: Any, **options: Any) -> dict[str, Any]:
    from .evaluate import evaluate as run

    return run(cfg, **options)
