"""What training and evaluation have in common: device, threads, seeds, images by the batch."""

from __future__ import annotations

import random
from typing import Any

from .. import _asen, cuda
from .. import random as asen_random
from ..transforms import Augmentation
from .errors import EngineError

__all__ = ["choose_device", "set_threads", "seed_everything", "make_loader"]


def choose_device(cfg: Any, logger: Any = None) -> str:
    """DEVICE: "cpu" or "cuda"; "auto" is cuda where it can be used. EngineError says what is missing."""
    if cfg.DEVICE == "cpu":
        device = "cpu"
    elif cfg.DEVICE == "cuda":
        if not cuda.is_available():
            raise EngineError(f"DEVICE is cuda, but CUDA is unavailable: {cuda.why_not()}; "
                              "--opts DEVICE cpu (or auto) runs on the processor")
        device = "cuda"
    else:
        device = "cuda" if cuda.is_available() else "cpu"
        if device == "cpu" and cuda.is_built() and logger is not None:
            logger.info("on the processor: CUDA is unavailable: %s", cuda.why_not())
    if cfg.SOLVER.AMP != "off" and device == "cpu" and logger is not None:
        logger.warning("SOLVER.AMP is %s, but on the processor all is computed in float32", cfg.SOLVER.AMP)
    return device


def set_threads(cfg: Any) -> int:
    """NUM_THREADS for compute; returns the number in force."""
    _asen.set_num_threads(cfg.NUM_THREADS)
    return _asen.get_num_threads()


def seed_everything(seed: int) -> None:
    """Seeds Python's `random`, and asenpp's initial weights and dropout."""
    random.seed(seed)
    asen_random.manual_seed(seed)


def make_loader(cfg: Any, paths: list[str], device: str, keep_images: bool, augment: bool = False) -> Any:
    """A BatchLoader with the configuration's transform; its threads stay within the thread budget. For a GPU it
    makes 8-bit pixels: a quarter of the bytes to move; they are normalised there. augment: as INPUT.AUGMENT says."""
    from ..data.loader import BatchLoader

    workers = min(cfg.DATA.NUM_WORKERS, _asen.get_num_threads())
    return BatchLoader((), paths, cfg, workers, keep_images=keep_images,
                       normalize=device == "cpu", augment=Augmentation(cfg) if augment else None)
