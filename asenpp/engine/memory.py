"""Whether a training fits into memory, before it starts.

What a batch needs is measured, not computed: a few triplets are run forwards and backwards under
the allocator's own count, and the rest is proportion. The model is left as it was, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import _asen
from ..data.loader import available_bytes
from .errors import EngineError

__all__ = ["available_bytes", "check_training", "gigabytes"]

_WHERE = {"cpu": "main memory, and the limit of the control group", "cuda": "memory of the GPU"}
_FIRST = 2                  # triplets or images of the first measurement; each further one takes twice as many
_STEADY = 1.05              # what each takes grows by less than this from one measurement to the next: the last one
_SHARE = 4                  # no measurement is begun that might take more than this part of the memory
_MARGIN = 1.1               # the allocator's size classes, Python, buffers of the system


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _peak(trial: Callable[[int], None], count: int, device: str) -> int:
    """The most bytes beyond those in use now that a step of `count` triplets or images takes."""
    before = _asen.memory_stats(device)["current"]
    _asen.reset_peak_memory(device)
    trial(count)
    return _asen.memory_stats(device)["peak"] - before


def check_training(trial: Callable[[int], None], step: Any, cfg: Any, state_bytes: int, device: str = "cpu",
                   largest: int | None = None) -> int:
    """Raises EngineError, naming the batch that fits, where training needs more than there is.

    trial(count): runs `count` made-up triplets or images forwards and backwards, and leaves no trace.
    step: says what they are (engine.step). state_bytes: what else will be taken (gradients, optimizer states).
    largest: the largest batch there will be; None: DATA.TRAIN_BATCHSIZE. With SOLVER.ACCUMULATE its largest part counts.
    Returns the estimate in bytes.
    """
    parts = cfg.SOLVER.ACCUMULATE
    batch = -(-(largest or cfg.DATA.TRAIN_BATCHSIZE) // parts)
    info = _asen.memory_info(device)
    have = (available_bytes() if info is None else info[0]) + _asen.memory_stats(device)["cached"]
    fixed, each = _measure(lambda count: _peak(trial, count, device), batch, have)
    return require(fixed + state_bytes, each + _pixels(cfg, step), batch, have, device, step.unit, parts)


def _measure(peak: Callable[[int], int], batch: int, have: float) -> tuple[float, float]:
    """(fixed, each): a batch of n takes about fixed + n * each bytes.

    A few measurements are a line only where one moment of the step has the most: with few images that may be the end of
    backward, where gradients are most, and with many its beginning, where activations are. So the number is doubled until
    what each takes is steady, the batch is reached, or the memory is.
    """
    if batch < 2 * _FIRST:
        return 0.0, peak(batch) / batch
    count, before, now = 2 * _FIRST, peak(_FIRST), peak(2 * _FIRST)
    each = (now - before) / _FIRST
    while 2 * count <= batch and 2 * now <= have / _SHARE:
        before, now, count = now, peak(2 * count), 2 * count
        steady = (now - before) / (count // 2) <= _STEADY * each
        each = (now - before) / (count // 2)
        if steady:
            break
    each = max(0.0, each)
    return max(0.0, now - count * each), each


def require(fixed: float, each: float, batch: int, have: float, device: str = "cpu", unit: str = "triplets",
            parts: int = 1) -> int:
    """Raises EngineError where fixed + each * batch (bytes, with a margin) is more than `have`."""
    need = _MARGIN * (fixed + each * batch)
    if need > have:
        fits = int((have / _MARGIN - fixed) // each) if each else 0
        remedy = (f"set DATA.TRAIN_BATCHSIZE to {fits * parts} or less (--opts DATA.TRAIN_BATCHSIZE {fits * parts})"
                  if fits >= 1 else
                  f"not even one {unit[:-1]} fits: take a smaller model or smaller images, or a larger machine")
        what = f"parts of {batch} {unit} (SOLVER.ACCUMULATE {parts})" if parts > 1 else f"batches of {batch} {unit}"
        raise EngineError(f"not enough memory: training with {what} needs about "
                          f"{gigabytes(need)}, {gigabytes(have)} are available ({_WHERE[device]}); {remedy}")
    return int(need)


def _pixels(cfg: Any, step: Any) -> int:
    """Bytes of the pixels of a triplet or image: of its images, in the batch and in those made ahead (two), and of its
    local crops."""
    images = step.images_each * 3 * 4 * cfg.INPUT.GLOBAL_SIZE ** 2 * 3 * cfg.SOLVER.ACCUMULATE
    return images + (step.crops_each * 3 * 4 * cfg.INPUT.LOCAL_SIZE ** 2 if cfg.MODEL.LOCAL.ENABLE else 0)
