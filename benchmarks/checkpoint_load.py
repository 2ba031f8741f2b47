"""Times loading a ResNet-50 checkpoint (ImageNet's: layer4 and classifier included, 102 MB) beside torch.load.

    python benchmarks/checkpoint_load.py --rounds 15

A round loads the same file in each way in turn, so that a slow moment of the machine does not fall on one
way alone; figures are medians, ratios the medians of the rounds' ratios. The file is in the page cache.
"alone" stops when the object is there; "read through" adds up every tensor's elements, with NumPy in all
ways, since a mapped file is read only then.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

import numpy as np
import torch

import asenpp
from asenpp import models


def resnet50() -> dict[str, torch.Tensor]:
    state = {name: np.array(value.detach().numpy()) for name, value in models.resnet50(layer4=True).state_dict().items()}
    rng = np.random.default_rng(1)
    state |= {"fc.weight": rng.standard_normal((1000, 2048), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    return {name: torch.from_numpy(value) for name, value in state.items()}


def read_through(state) -> float:
    return sum(float(np.add.reduce(np.asarray(value), axis=None)) for value in state.values())


def seconds(load, path: str, through: bool) -> float:
    start = time.perf_counter()
    state = load(path)
    if through:
        read_through(state)
    spent = time.perf_counter() - start
    del state
    return spent


def compare(title: str, path: str, ways: dict, rounds: int) -> None:
    for through in (False, True):
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 2):
            for name, load in ways.items():
                spent = seconds(load, path, through)
                if turn >= 2:
                    times[name].append(spent)
        base = times["torch.load"]
        for name, spent in times.items():
            ratio = statistics.median(own / theirs for own, theirs in zip(spent, base))
            print(f"{title:8} {'read through' if through else 'alone':13} {name:32} {1e3 * statistics.median(spent):7.1f} ms  "
                  f"{ratio:5.2f} × torch.load")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    state = resnet50()
    ours = {"asenpp.load": asenpp.load, "asenpp.load(writable=True)": lambda path: asenpp.load(path, writable=True)}
    theirs = {"torch.load": lambda path: torch.load(path, weights_only=True)}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "resnet50")
        torch.save(state, path)
        print(f"torch {torch.__version__}, {len(state)} tensors, {os.path.getsize(path)} bytes, {options.rounds} rounds")
        compare("ZIP", path, {**theirs, "torch.load(mmap=True)": lambda path: torch.load(path, weights_only=True, mmap=True),
                              **ours}, options.rounds)
        torch.save(state, path, _use_new_zipfile_serialization=False)
        compare("stream", path, {**theirs, **ours}, options.rounds)


if __name__ == "__main__":
    main()
