"""Whether a training fits into memory, before it starts.

What a batch needs is measured, not computed: a few triplets are run forwards and backwards under
the allocator's own count, and the rest is proportion. The model is left as it was, to the bit.
"""

from __future__ import annotations

from typing import Any

from .. import _asen
from ..data.loader import available_bytes
from .errors import EngineError

__all__ = ["available_bytes", "check_training", "gigabytes"]

_WHERE = {"cpu": "main memory, and the limit of the control group", "cuda": "memory of the GPU"}
_SMALL, _LARGE = 2, 4       # triplets of the two measurements
_MARGIN = 1.1               # the allocator's size classes, Python, buffers of the system


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _peak(step: Any, count: int, device: str) -> int:
    """The most bytes beyond those in use now that a step of `count` triplets takes."""
    before = _asen.memory_stats(device)["current"]
    _asen.reset_peak_memory(device)
    step(count)
    return _asen.memory_stats(device)["peak"] - before


def check_training(step: Any, cfg: Any, state_bytes: int, device: str = "cpu") -> int:
    """Raises EngineError, naming the batch that fits, where training needs more than there is.

    step(count): runs `count` made-up triplets forwards and backwards, and leaves no trace.
    state_bytes: what else will be taken (gradients, optimizer states).
    Returns the estimate in bytes.
    """
    batch = cfg.DATA.TRAIN_BATCHSIZE
    if batch <= _LARGE:
        fixed, each = 0.0, _peak(step, batch, device) / batch
    else:
        small, large = _peak(step, _SMALL, device), _peak(step, _LARGE, device)
        each = max(0.0, (large - small) / (_LARGE - _SMALL))
        fixed = max(0.0, small - _SMALL * each)
    each += _pixels(cfg)
    info = _asen.memory_info(device)
    have = (available_bytes() if info is None else info[0]) + _asen.memory_stats(device)["cached"]
    return require(fixed + state_bytes, each, batch, have, device)


def require(fixed: float, each: float, batch: int, have: float, device: str = "cpu") -> int:
    """Raises EngineError where fixed + each * batch (bytes, with a margin) is more than `have`."""
    need = _MARGIN * (fixed + each * batch)
    if need > have:
        fits = int((have / _MARGIN - fixed) // each) if each else 0
        remedy = (f"set DATA.TRAIN_BATCHSIZE to {fits} or less (--opts DATA.TRAIN_BATCHSIZE {fits})" if fits >= 1
                  else "not even one triplet fits: take a smaller model or smaller images, or a larger machine")
        raise EngineError(f"not enough memory: training with batches of {batch} triplets needs about "
                          f"{gigabytes(need)}, {gigabytes(have)} are available ({_WHERE[device]}); {remedy}")
    return int(need)


def _pixels(cfg: Any) -> int:
    """Bytes of the images of a triplet, in the batch and in those made ahead (two)."""
    size = 3 * 3 * 4 * cfg.INPUT.GLOBAL_SIZE ** 2 * 3
    return size + (3 * 3 * 4 * cfg.INPUT.LOCAL_SIZE ** 2 if cfg.MODEL.LOCAL.ENABLE else 0)
