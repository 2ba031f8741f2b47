"""Images a second of the global ASEN on a GPU: training steps and inference, in each precision, beside PyTorch.

    python benchmarks/cuda_training.py [--triplets 16 64] [--size 224] [--backbone resnet50] [--steps 20]

One process, one table: for each batch and precision our step and, where PyTorch is installed and sees the
GPU, PyTorch's of the same model (three passes, channels-last, autocast for 16 bits; cuDNN's choice as it comes,
and with cudnn.benchmark). A step is forward, triplet loss, backward, Adam; images lie on the GPU. The
bound counts the convolutions' operations, 2 a multiply and add, forward and twice that backward, over the
rate of the largest matrix product measured here in that precision.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import asenpp  # noqa: E402
from asenpp import _asen, amp, cuda  # noqa: E402
from asenpp.nn import functional as F  # noqa: E402

DTYPE = {"float32": None, "tf32": None, "bf16": "bfloat16", "fp16": "float16"}


def median_time(step, wait, steps: int) -> float:
    """Seconds a step: the median of five groups of `steps`, each waited for, after a warm-up."""
    for _ in range(5):
        step()
    wait()
    groups = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(max(1, steps // 5)):
            step()
        wait()
        groups.append((time.perf_counter() - start) / max(1, steps // 5))
    return statistics.median(groups)


def configuration(backbone: str):
    return asenpp.load_config(opts=["DATA.NUM_ATTRIBUTES", 8, "MODEL.PRETRAINED", False, "MODEL.LOCAL.ENABLE", False,
                                    "MODEL.GLOBAL.BACKBONE.NAME", backbone])


def context(precision: str):
    cuda.allow_tf32(precision == "tf32")
    return amp.autocast(DTYPE[precision] or "bfloat16", enabled=DTYPE[precision] is not None)


def ours(precision: str, backbone: str, triplets: int, size: int, steps: int) -> tuple[float, float]:
    """Seconds of a training step and of a batch in inference."""
    asenpp.manual_seed(0)
    model = asenpp.build_model(configuration(backbone)).to(device="cuda")
    optimizer = asenpp.optim.Adam(model.parameters(), lr=1e-4)
    pixels = np.random.default_rng(0).standard_normal((3 * triplets, size, size, 3), dtype=np.float32)
    images = asenpp.from_numpy(pixels).permute(0, 3, 1, 2).to(device="cuda")
    attributes = asenpp.from_numpy(np.tile(np.arange(triplets) % 8, 3)).to(device="cuda")
    scaler = amp.GradScaler(65536.0 if precision == "fp16" else 1.0, enabled=DTYPE[precision] is not None)

    def train():
        with context(precision):
            embedding, _ = model.forward_branch("global", images, attributes, groups=3)
            x, p, n = (embedding[i * triplets:(i + 1) * triplets] for i in range(3))
            loss = F.relu(F.cosine_similarity(x, n) - F.cosine_similarity(x, p) + 0.2).mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    def infer():
        with asenpp.no_grad(), context(precision):
            model.forward_branch("global", images, attributes)

    trained = median_time(train, cuda.synchronize, steps)
    model.eval()
    return trained, median_time(infer, cuda.synchronize, steps)


def pytorch(precision: str, backbone: str, triplets: int, size: int, steps: int, benchmark: bool) -> tuple[float, float]:
    import torch
    import torch_models

    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.manual_seed(0)
    model = torch_models.ASEN(configuration(backbone)).cuda().to(memory_format=torch.channels_last)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    images = [torch.randn(triplets, 3, size, size, device="cuda").to(memory_format=torch.channels_last) for _ in range(3)]
    attributes = torch.arange(triplets, device="cuda") % 8
    dtype = getattr(torch, DTYPE[precision] or "bfloat16")
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")

    def train():
        with torch.autocast("cuda", dtype, enabled=DTYPE[precision] is not None):
            x, p, n = (model("global", image, attributes)[0] for image in images)
            similarity = torch.nn.functional.cosine_similarity
            loss = (similarity(x, n) - similarity(x, p) + 0.2).clamp(min=0).mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    whole, all_attributes = torch.cat(images), attributes.repeat(3)

    def infer():
        with torch.no_grad(), torch.autocast("cuda", dtype, enabled=DTYPE[precision] is not None):
            model("global", whole, all_attributes)

    trained = median_time(train, torch.cuda.synchronize, steps)
    model.eval()
    return trained, median_time(infer, torch.cuda.synchronize, steps)


def convolution_operations(backbone: str, size: int) -> float:
    """Operations of the forward convolutions of one image."""
    total = 0.0
    real = _asen.conv2d

    def counted(x, w, *args, **kwargs):
        nonlocal total
        y = real(x, w, *args, **kwargs)
        total += 2.0 * np.prod(y.shape) * np.prod(w.shape[1:])
        return y

    _asen.conv2d = counted
    try:
        model = asenpp.models.resnet.backbone(backbone)
        model.eval()
        model(asenpp.from_numpy(np.zeros((1, 3, size, size), np.float32)))
    finally:
        _asen.conv2d = real
    return total


def product_rate(precision: str) -> float:
    """Operations a second of a product of two (8192, 8192) matrices."""
    n = 8192
    rng = np.random.default_rng(0)
    a = asenpp.from_numpy(rng.standard_normal((n, n), dtype=np.float32)).to(device="cuda")
    if DTYPE[precision]:
        a = a.to(dtype=DTYPE[precision])
    cuda.allow_tf32(precision == "tf32")
    return 2.0 * n**3 / median_time(lambda: _asen.matmul(a, a), cuda.synchronize, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triplets", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--autotune", type=int, default=0, help="cuDNN plans of ours to try for each convolution")
    parser.add_argument("--precision", nargs="*", default=list(DTYPE), choices=list(DTYPE))
    args = parser.parse_args()
    if not cuda.is_available():
        sys.exit(f"CUDA is unavailable: {cuda.why_not()}")
    cuda.autotune(args.autotune)
    operations = convolution_operations(args.backbone, args.size)
    torch_here = False
    if importlib.util.find_spec("torch"):
        import torch

        torch_here = torch.cuda.is_available()
    print(f"{args.backbone}, {args.size}x{args.size}, {operations / 1e9:.2f} GFLOP of convolutions an image forward")
    print(f"{'':10} {'triplets':>8} | training: images/s {'of bound':>8} {'PyTorch':>8} {'bench.':>8} {'ratio':>6} | inference: "
          f"images/s {'PyTorch':>8} {'bench.':>8} {'ratio':>6}")
    for precision in args.precision:
        rate = product_rate(precision)
        for triplets in args.triplets:
            images = 3 * triplets
            trained, inferred = ours(precision, args.backbone, triplets, args.size, args.steps)
            bound = 3 * operations * images / rate
            theirs = [pytorch(precision, args.backbone, triplets, args.size, args.steps, b) for b in (False, True)] if torch_here else []
            best = [min(t[i] for t in theirs) for i in (0, 1)] if theirs else [float("nan")] * 2
            cells = [[f"{images / t[i]:8.0f}" for t in theirs] or [f"{'-':>8}"] * 2 for i in (0, 1)]
            print(f"{precision:10} {triplets:8} | {images / trained:18.0f} {bound / trained:8.2f} {' '.join(cells[0])} "
                  f"{best[0] / trained:6.2f} | {images / inferred:18.0f} {' '.join(cells[1])} {best[1] / inferred:6.2f}", flush=True)
        print(f"{precision:10} matrix product {rate / 1e12:.0f} TFLOP/s")


if __name__ == "__main__":
    main()
