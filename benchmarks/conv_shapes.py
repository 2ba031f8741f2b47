"""Times every distinct convolution of ResNet-50 up to layer3: forward and both gradients.

The sum over a training step is the bound that the step benchmark is compared with: no
implementation that computes these convolutions directly can train faster.

    python benchmarks/conv_shapes.py --batch 48 [--device cuda --dtype float32|tf32|bfloat16|float16 --autotune 4]

Each figure is the least of several rounds; a round runs all shapes once in turn, so that a slow
moment of the machine does not fall on one shape alone. The stem's input needs no gradient.
On a GPU a figure is the mean of ten calls in a row, and rates are in TFLOP/s.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter

import numpy as np

from asenpp import _asen, cuda

PASSES = ("fwd", "grad_input", "grad_weight")


def resnet50_convolutions(size: int) -> Counter:
    """(channels in, channels out, filter, stride, input size) -> how often, stem to layer3."""
    shapes: Counter = Counter({(3, 64, 7, 2, size): 1})
    inside, size = 64, size // 4
    for width, blocks, first_stride in [(64, 3, 1), (128, 4, 2), (256, 6, 2)]:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            shapes[inside, width, 1, 1, size] += 1
            shapes[width, width, 3, stride, size] += 1
            if block == 0:
                shapes[inside, 4 * width, 1, stride, size] += 1
            size //= stride
            shapes[width, 4 * width, 1, 1, size] += 1
            inside = 4 * width
    return shapes


def tensor(rng, *shape, device="cpu", dtype="float32"):
    return _asen.from_numpy(rng.standard_normal(shape, dtype=np.float32)).clone().to(device=device).to(dtype=dtype)


def prepare(shape, batch, rng, **kind):
    """The calls of one convolution, by pass, and the floating-point operations of each."""
    ic, oc, k, stride, size = shape
    out = (size + 2 * (k // 2) - k) // stride + 1
    x, w, dy = (tensor(rng, *s, **kind) for s in ((batch, ic, size, size), (oc, ic, k, k), (batch, oc, out, out)))
    attrs = {"stride": (stride, stride), "padding": (k // 2, k // 2)}
    calls = {
        "fwd": ("conv2d", [x, w, None], attrs),
        "grad_input": ("conv2d_grad_input", [dy, w], {**attrs, "size": (size, size)}),
        "grad_weight": ("conv2d_grad_weight", [dy, x], {**attrs, "size": (k, k)}),
    }
    if ic == 3:
        del calls["grad_input"]
    return calls, 2 * batch * oc * out * out * ic * k * k


def measure(batch: int, size: int = 224, rounds: int = 5, device: str = "cpu", dtype: str = "float32") -> tuple[dict, dict, dict]:
    """({(shape, pass): seconds}, {shape: flop}, {shape: count}); seconds are the least of `rounds`."""
    calls_in_a_row = 1 if device == "cpu" else 10
    shapes = resnet50_convolutions(size)
    rng = np.random.default_rng(0)
    prepared = {shape: prepare(shape, batch, rng, device=device, dtype=dtype) for shape in shapes}
    best: dict = {}
    for turn in range(rounds + 1):  # the first makes the primitives
        for shape, (calls, _) in prepared.items():
            for name, call in calls.items():
                _asen.synchronize(device)
                start = time.perf_counter()
                for _ in range(calls_in_a_row):
                    _asen.apply(*call)
                _asen.synchronize(device)
                seconds = (time.perf_counter() - start) / calls_in_a_row
                if turn:
                    best[shape, name] = min(seconds, best.get((shape, name), seconds))
    flop = {shape: work for shape, (_, work) in prepared.items()}
    return best, flop, dict(shapes)


def bound_seconds(batch: int, size: int = 224, rounds: int = 5) -> float:
    """The least time of all convolutions of one training step."""
    best, _, shapes = measure(batch, size, rounds)
    return sum(seconds * shapes[shape] for (shape, _), seconds in best.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=48, help="images (default 48: 16 triplets)")
    parser.add_argument("--size", type=int, default=224, help="height and width of an image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: what the machine allows")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "tf32", "bfloat16", "float16"])
    parser.add_argument("--autotune", type=int, default=0, help="cuDNN plans to try for each convolution")
    args = parser.parse_args()
    _asen.set_num_threads(args.threads)
    unit, rate = "GFLOP/s", 1e-9
    if args.device == "cuda":
        if not cuda.is_available():
            sys.exit(f"CUDA is unavailable: {cuda.why_not()}")
        cuda.allow_tf32(args.dtype == "tf32")
        cuda.autotune(args.autotune)
        unit, rate = "TFLOP/s", 1e-12
    best, flop, shapes = measure(args.batch, args.size, args.rounds, args.device, args.dtype.replace("tf32", "float32"))

    print(f"batch {args.batch}, {args.size}x{args.size}, {args.dtype} on {args.device}, {_asen.get_num_threads()} threads; ms ({unit})")
    print(f"{'convolution':34s} {'times':>5s}" + "".join(f"{name:>20s}" for name in PASSES))
    for shape, times in shapes.items():
        ic, oc, k, stride, size = shape
        row = f"{ic:5d} -> {oc:4d}  {k}x{k} stride {stride} at {size:3d}²"
        cells = "".join(f"{best[shape, p] * 1e3:10.3f} ({flop[shape] / best[shape, p] * rate:6.1f})"
                        if (shape, p) in best else f"{'-':>20s}" for p in PASSES)
        print(f"{row:34s} {times:5d}  {cells}")
    total = {p: sum(s * shapes[shape] for (shape, name), s in best.items() if name == p) for p in PASSES}
    work = sum(flop[shape] * shapes[shape] for shape, _ in best)
    step = sum(total.values())
    print(json.dumps({"batch": args.batch, **{f"{p}_ms": round(total[p] * 1e3, 1) for p in PASSES},
                      "step_ms": round(step * 1e3, 1), "images_per_second": round(args.batch / step, 2),
                      unit: round(work / step * rate, 1)}))


if __name__ == "__main__":
    main()
