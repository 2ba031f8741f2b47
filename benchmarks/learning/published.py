"""The published mode beside an older checkout, in pairs that alternate: the same bits, and how much time it takes.

A pair is a short run of both stages on FashionMNIST by the configuration files of each checkout, one right after the
other; which comes first alternates. Compared are the weights, the optimizer's state (moments, rates) and the mAP on
VALID in the last checkpoint of each stage: of two epochs, so that the schedule and the second draw of triplets count.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from asenpp import checkpoint
from benchmarks import record

from . import results
from .results import Row
from .runner import RESULTS, ROOT, RunError

STEPS = (25, 10)        # of an epoch of stage 1 and 2, 32 triplets each
EPOCHS = 2
BUDGET = 32 * 3 * EPOCHS * (STEPS[0] + 2 * STEPS[1])


def compared(state: dict[str, Any]) -> dict[str, Any]:
    """What is held to the bit of a checkpoint, by name."""
    found = {"mAP": state["mAP"], "best_mAP": state["best_mAP"], **state["model"]}
    for number, tensors in state["optimizer"]["state"].items():
        found.update({f"optimizer, parameter {number}, {name}": tensor for name, tensor in tensors.items()})
    for number, group in enumerate(state["optimizer"]["param_groups"]):
        found[f"learning rate {number}"] = group["lr"]
    return found


def difference(a: dict[str, Any], b: dict[str, Any]) -> str:
    """The first array or number that differs in a bit between two dicts; "" where none does."""
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            return f"{name} is on one side only"
        x, y = (np.asarray(side[name]) for side in (a, b))
        if x.dtype != y.dtype or x.shape != y.shape or x.tobytes() != y.tobytes():
            return name
    return ""


def _train(root: Path, work: Path, data: Path, threads: int, seed: int) -> float:
    """Trains both stages with a checkout's own program; seconds."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    folder, began = root / "config/FashionMNIST", time.monotonic()
    before: list[str] = []
    for stage, steps in enumerate(STEPS, 1):
        options = ["DATA.BASE_PATH", str(data), "SAVE_DIR", str(work), "SEED", str(seed), "NUM_THREADS", str(threads),
                   "DEVICE", "cpu", "DATA.NUM_TRIPLETS", str(32 * steps), "SOLVER.EPOCHS", str(EPOCHS), "EVAL.SUBSET", "50"]
        command = [sys.executable, str(root / "main.py"), "--cfg", str(folder / "FashionMNIST.yaml"),
                   str(folder / f"s{stage}.yaml"), *before, "--opts", *options]
        with open(work / "log", "ab") as log:
            status = subprocess.run(command, cwd=root, stdout=log, stderr=log,
                                    env={**os.environ, "PYTHONPATH": str(root)}).returncode
        if status:
            raise RunError(f"status {status}: {work / 'log'}")
        before = ["--resume", str(work / f"FashionMNIST_s{stage}" / "model_best.pth.tar")]
    return time.monotonic() - began


def pair(before: Path, work: Path, data: Path, threads: int, number: int) -> Row:
    """A line of the results; "differs" is empty where both checkouts have the same bits."""
    roots = {"ours": ROOT, "before": before}
    seconds = {name: _train(roots[name], work / name, data, threads, number)
               for name in (list(roots) if number % 2 == 0 else list(roots)[::-1])}
    differs = ""
    for stage in range(1, len(STEPS) + 1):
        states = [checkpoint.load(str(work / name / f"FashionMNIST_s{stage}" / "checkpoint.pth.tar")) for name in roots]
        found = difference(*map(compared, states))
        differs = differs or (found and f"stage {stage}: {found}")
    return {"study": "published", "data": "FashionMNIST", "images_of": "FashionMNIST", "mode": "triplet", "seed": number,
            "budget": BUDGET, "rate": 0.0, "options_hash": record.commit(before)[:12], "differs": differs,
            "seconds": round(seconds["ours"], 3), "process_seconds": round(seconds["ours"], 3),
            "before_seconds": round(seconds["before"], 3), "before": record.commit(before), "threads": threads,
            "jobs": 1, "device": "cpu", "scores": {}, **record.campaign(but=RESULTS)}


def run(out: Path, work: Path, data: Path, before: Path, threads: int, pairs: int) -> int:
    """Does the pairs that are not there for these two commits; how many differ in a bit."""
    commits = record.commit(ROOT, RESULTS), record.commit(before)
    there = {row["seed"]: row for row in results.read(out)
             if row["study"] == "published" and (row["commit"], row["before"]) == commits}
    for number in range(pairs):
        if number not in there:
            there[number] = row = pair(before, work / "published", data, threads, number)
            results.append(out, row)
            print(f"pair {number}: {row['differs'] or 'the same bits'}, {row['seconds']:.1f} s, before "
                  f"{row['before_seconds']:.1f} s", flush=True)
    return sum(bool(there[number]["differs"]) for number in range(pairs))
