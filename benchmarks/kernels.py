"""Our fast kernels: bytes moved over time, against the copy bandwidth of the same run.

    python benchmarks/kernels.py [--device cuda] [--threads N] [--images 48] [--only NAME]

Nearly every kernel here is bound by memory, so its speed is a bandwidth. "bytes" counts what the
kernel has to move once it has chosen its passes (batch norm in training reads x twice), and not
the lines that ordinary stores read before they overwrite them. The yardstick is memcpy by as many
threads (read + written bytes), measured before and after. "of copy" above 1 means that the data
came out of a cache. The best of several runs counts.
On a GPU the yardstick is a copy there, and a run is twenty calls in a row, waited for once.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from asenpp import _asen, cuda


DEVICE = "cpu"
GPU_CALLS = 20


def best_time(work, seconds: float = 0.4) -> float:
    """Seconds of the fastest run, over about `seconds` of runs after a first one."""
    calls = 1 if DEVICE == "cpu" else GPU_CALLS
    work()
    _asen.synchronize(DEVICE)
    best, end = float("inf"), time.perf_counter() + (seconds if DEVICE == "cpu" else seconds / 4)
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        _asen.synchronize(DEVICE)
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def copy_bandwidth(threads: int, megabytes: int = 256) -> float:
    """GB/s of memcpy, read and written, by `threads` threads; on a GPU of a copy there."""
    if DEVICE != "cpu":
        x = tensor(4 * megabytes << 18)
        return 2 * x.numel() * 4 / best_time(lambda: apply("copy", [x])) / 1e9
    source = np.ones(megabytes << 17)
    target = np.empty_like(source)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads)))
    with ThreadPoolExecutor(threads) as pool:
        seconds = best_time(lambda: list(pool.map(lambda part: np.copyto(part[1], part[0]), parts)))
    return 2 * source.nbytes / seconds / 1e9


def tensor(*shape: int, dtype=np.float32) -> _asen.Tensor:
    """A dense tensor of our own memory."""
    return _asen.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32).astype(dtype)).clone().to(device=DEVICE)


def apply(name, tensors, **attrs):
    out = _asen.apply(name, tensors, attrs)
    return out if isinstance(out, (tuple, list)) else (out,)


def batch_norm_cases(images: int):
    for c, side in ((64, 112), (64, 56), (256, 56), (512, 28), (1024, 14)):
        x, dy, residual = (tensor(images, c, side, side) for _ in range(3))
        weight, bias, mean = (tensor(c) for _ in range(3))
        var = apply("exp", [mean])[0]
        size = images * c * side * side * 4
        where = f"{c} x {side}²"
        for skip, name in ((None, "ReLU"), (residual, "residual, ReLU")):
            extra = int(skip is not None)
            args = [x, weight, bias, mean, var, skip]
            yield f"batch_norm {name} {where}", (3 + extra) * size, lambda a=args: apply("batch_norm", a, groups=3, relu=1)
            if side != 56 or c != 256:
                continue
            yield f"  inference {name} {where}", (2 + extra) * size, lambda a=args: apply("batch_norm", a, training=0, relu=1)
        y, m, invstd = apply("batch_norm", [x, weight, bias, mean, var], groups=3, relu=1)
        for extra, name in ((0, "ReLU"), (1, "residual, ReLU")):
            yield (f"batch_norm_grad {name} {where}", 7 * size, lambda a=[dy, x, y, weight, m, invstd], e=extra: apply(
                "batch_norm_grad", a, training=1, groups=3, relu=1, residual=e))


def optimizer_cases():
    shapes = [(256, 256, 3, 3)] * 12 + [(1024, 256, 1, 1)] * 12 + [(256,)] * 100  # about 10 million in 124 tensors
    params, grads, first, second = ([tensor(*s) for s in shapes] for _ in range(4))
    second = [apply("exp", [t])[0] for t in second]
    size = sum(int(np.prod(s)) for s in shapes) * 4
    yield "SGD, momentum", 5 * size, lambda: _asen.optim_step("sgd", params, grads, first, None, 2, 1e-3, momentum=0.9)
    for kind in ("adam", "adamw"):
        yield kind, 7 * size, lambda k=kind: _asen.optim_step(k, params, grads, first, second, 2, 1e-3, weight_decay=0.01)


def other_cases(images: int):
    x, y = tensor(images, 256, 56, 56), tensor(images, 256, 56, 56)
    size = images * 256 * 56 * 56 * 4
    channel, one = tensor(256, 1, 1), tensor()
    rows_first = tensor(images, 56, 256, 56).permute(0, 2, 3, 1)  # memory in the order N, C, H, W
    yield "add", 3 * size, lambda: apply("add", [x, y])
    yield "mul by a channel's number", 2 * size, lambda: apply("mul", [x, channel])
    yield "mul by one number", 2 * size, lambda: apply("mul", [x, one])
    yield "relu", 2 * size, lambda: apply("relu", [x])
    yield "relu_grad", 3 * size, lambda: apply("relu_grad", [y, x])
    for name in ("exp", "tanh", "sigmoid"):
        yield name, 2 * size, lambda n=name: apply(n, [x])
    yield "copy", 2 * size, lambda: apply("copy", [x])
    yield "copy, NCHW to NHWC", 2 * size, lambda: apply("copy", [rows_first])
    yield "copy to float64", 3 * size, lambda: apply("copy", [x], dtype="float64")
    for dims in ((2, 3), (0, 2, 3), (1,), ()):
        yield f"sum over {dims or 'all'}", size, lambda d=dims: apply("sum", [x], dims=d)
    yield "max over (2, 3)", size, lambda: apply("max", [x], dims=(2, 3))
    yield "softmax over channels", 2 * size, lambda: apply("softmax", [x], dim=1)
    yield "dropout", 2 * size, lambda: apply("dropout", [x], p=0.5, seed=1)
    yield "cat of channels", 4 * size, lambda: apply("cat", [x, y], dim=1)
    del x, y, rows_first

    x = tensor(images, 64, 112, 112)
    pool = {"kernel_size": 3, "stride": 2, "padding": 1}
    y, index = apply("max_pool2d", [x], **pool)
    size = images * 64 * 112 * 112
    yield "max_pool2d 3x3, stride 2", 4 * size + 8 * size // 4, lambda: apply("max_pool2d", [x], **pool)
    yield "max_pool2d_grad", 4 * size + 8 * size // 4, lambda: apply("max_pool2d_grad", [y, index], size=(112, 112), **pool)

    x, z, q = tensor(images, 1024, 14, 14), tensor(images, 512, 14, 14), tensor(images, 512)
    v, m, k = apply("spatial_attention", [x, z, q])
    big, small = images * 1024 * 196 * 4, images * 512 * 196 * 4
    yield "spatial_attention 1024, 512 x 14²", big + 2 * small, lambda: apply("spatial_attention", [x, z, q])
    yield "spatial_attention_grad", 2 * big + 3 * small, lambda: apply("spatial_attention_grad", [v, m, x, q, m, k])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=0, help="0: as many as the machine grants")
    parser.add_argument("--images", type=int, default=48, help="batch size of the activations (a multiple of 3)")
    parser.add_argument("--only", default="", help="run cases whose name contains this")
    args = parser.parse_args()
    global DEVICE
    DEVICE = args.device
    if DEVICE == "cuda" and not cuda.is_available():
        sys.exit(f"CUDA is unavailable: {cuda.why_not()}")
    _asen.set_num_threads(args.threads)
    _asen.set_kernel_paths("fast")
    threads = _asen.get_num_threads()
    before = copy_bandwidth(threads)
    print(f"{DEVICE}, {threads} threads; copy {before:.1f} GB/s\n\n{'kernel':44} {'MB':>7} {'ms':>8} {'GB/s':>7} {'of copy':>8}")
    for cases in (batch_norm_cases(args.images), optimizer_cases(), other_cases(args.images)):
        for name, moved, work in cases:
            if args.only not in name:
                continue
            seconds = best_time(work)
            rate = moved / seconds / 1e9
            print(f"{name:44} {moved / 1e6:7.0f} {seconds * 1e3:8.2f} {rate:7.1f} {rate / before:8.2f}", flush=True)
    print(f"\ncopy afterwards {copy_bandwidth(threads):.1f} GB/s")


if __name__ == "__main__":
    main()
