"""Times a training step of the global ASEN: ResNet-50, 16 triplets of 224², float32, Adam.

    python benchmarks/training_step.py [--triplets 16] [--size 224] [--rounds 3] [--steps 3]
                                       [--before CHECKOUT] [--kinds ours before] [--json FILE]

Runs, in alternating processes of one run, so that a drift of the machine hits all alike:
  ours           this package
  before         the package of another checkout, built in place, where --before names one
  torch          PyTorch, channels-last, as it comes (where it is installed)
  torch-malloc   the same with glibc's malloc kept from giving memory back to the system
and prints the median step of each, the ratios to ours (of the medians of two processes that ran in one
round; their median and spread), and the share of the bound: the sum of the
fastest times of the step's convolutions on this machine (benchmarks/conv_shapes.py), measured in
the same run. What is timed: forward of 3B images with three groups of batch statistics (PyTorch:
three passes), triplet loss, backward, Adam; images are in memory. Odd rounds run in the opposite order.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import record

ROOT = Path(__file__).resolve().parent.parent
MALLOC = "glibc.malloc.trim_threshold=17179869184:glibc.malloc.mmap_threshold=17179869184:glibc.malloc.top_pad=268435456"


def timed(step, steps: int) -> list[float]:
    """Seconds of each step after two that are not counted."""
    seconds = []
    for i in range(steps + 2):
        start = time.perf_counter()
        step()
        if i >= 2:
            seconds.append(time.perf_counter() - start)
    return seconds


def configuration():
    """The published global ASEN, as if for eight attributes."""
    import asenpp

    return asenpp.load_config(opts=["DATA.NUM_ATTRIBUTES", 8, "MODEL.PRETRAINED", False, "MODEL.LOCAL.ENABLE", False,
                                    "MODEL.GLOBAL.BACKBONE.NAME", "resnet50"])


def run_ours(triplets: int, size: int, steps: int) -> list[float]:
    import numpy as np

    import asenpp
    from asenpp.nn import functional as F

    asenpp.manual_seed(0)
    model = asenpp.build_model(configuration())
    optimizer = asenpp.optim.Adam(model.parameters(), lr=1e-4)
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((3 * triplets, size, size, 3), dtype=np.float32)
    images = asenpp.from_numpy(pixels).permute(0, 3, 1, 2)
    attributes = asenpp.from_numpy(np.tile(np.arange(triplets) % 8, 3))

    def step():
        embedding, _ = model.forward_branch("global", images, attributes, groups=3)
        x, p, n = (embedding[i * triplets:(i + 1) * triplets] for i in range(3))
        loss = F.relu(F.cosine_similarity(x, n) - F.cosine_similarity(x, p) + 0.2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return timed(step, steps)


def run_torch(triplets: int, size: int, steps: int) -> list[float]:
    import torch
    import torch_models

    torch.manual_seed(0)
    model = torch_models.ASEN(configuration()).to(memory_format=torch.channels_last)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    images = [torch.randn(triplets, 3, size, size).to(memory_format=torch.channels_last) for _ in range(3)]
    attributes = torch.arange(triplets) % 8

    def step():
        x, p, n = (model("global", image, attributes)[0] for image in images)
        similarity = torch.nn.functional.cosine_similarity
        loss = (similarity(x, n) - similarity(x, p) + 0.2).clamp(min=0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return timed(step, steps)


def child(kind: str, args: argparse.Namespace) -> list[float]:
    environment = dict(os.environ)
    if kind == "torch-malloc":
        environment["GLIBC_TUNABLES"] = MALLOC
    command = [sys.executable, __file__, "--worker", kind, "--triplets", args.triplets, "--size", args.size,
               "--steps", args.steps, *(["--before", args.before] if kind == "before" else [])]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{kind} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def available(args: argparse.Namespace) -> list[str]:
    """The kinds to run, "ours" first."""
    kinds = ["ours", "bound"] + (["before"] if args.before else [])
    if importlib.util.find_spec("torch"):
        kinds += ["torch", "torch-malloc"]
    else:
        print("PyTorch is not installed: it is not compared with")
    return [kind for kind in kinds if kind == "ours" or args.kinds is None or kind in args.kinds]


def summary(args: argparse.Namespace, seconds: dict[str, list[list[float]]]) -> dict:
    """Medians of all steps, and the ratios of the processes' medians, round by round."""
    steps = {kind: [t for process in rounds for t in process] for kind, rounds in seconds.items()}
    of_round = {kind: [statistics.median(process) for process in rounds] for kind, rounds in seconds.items()}
    middle = {kind: statistics.median(values) for kind, values in steps.items()}
    if "bound" in steps:
        middle["bound"] = min(steps["bound"])
    checkouts = {"ours": ROOT} | ({"before": args.before} if "before" in seconds else {})
    return {"benchmark": "training_step", **record.machine(**checkouts), "triplets": args.triplets, "size": args.size,
            "rounds": args.rounds, "seconds": middle,
            "spread": {kind: [min(values), max(values)] for kind, values in steps.items()},
            "ratios": {kind: record.ratios(values, of_round["ours"]) for kind, values in of_round.items()
                       if kind not in ("ours", "bound")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triplets", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind")
    parser.add_argument("--steps", type=int, default=3, help="counted steps a process")
    parser.add_argument("--before", type=Path, help="another checkout, built in place, to alternate with")
    parser.add_argument("--kinds", nargs="+", help="run these alone (and ours)")
    parser.add_argument("--json", help="where the result is written")
    parser.add_argument("--worker", choices=["ours", "before", "torch", "torch-malloc", "bound"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.before:
        args.before = args.before.resolve()
    if args.worker:
        root = args.before if args.worker == "before" else ROOT
        sys.path[:0] = [str(root), str(ROOT / "benchmarks"), str(ROOT / "tests")]
    if args.worker == "bound":
        import conv_shapes

        print(json.dumps([conv_shapes.bound_seconds(3 * args.triplets, args.size, rounds=3)]))
        return
    if args.worker:
        run = run_ours if args.worker in ("ours", "before") else run_torch
        print(json.dumps(run(args.triplets, args.size, args.steps)))
        return

    kinds = available(args)
    seconds: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    for turn in range(args.rounds):
        for kind in kinds if turn % 2 == 0 else kinds[::-1]:
            seconds[kind].append(child(kind, args))
    result = summary(args, seconds)
    images = 3 * args.triplets
    print(f"{args.triplets} triplets of {args.size}x{args.size}, {args.rounds} processes each, median of their steps")
    for kind, value in result["seconds"].items():
        low, high = result["spread"][kind]
        print(f"  {kind:14s} {value * 1e3:8.0f} ms a step {images / value:6.2f} images/s   ({low * 1e3:.0f} to {high * 1e3:.0f} ms)")
    for kind, ratio in result["ratios"].items():
        print(f"  {kind} / ours: {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})")
    if "bound" in kinds:
        print(f"  share of the bound: {result['seconds']['bound'] / result['seconds']['ours']:.2f}")
    record.write(args.json, result)


if __name__ == "__main__":
    main()
