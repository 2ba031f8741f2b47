"""SOLVER.AMP: in which precision a device computes, and what that takes of a training step.

    off    float32 throughout
    tf32   float32 with inputs of convolutions and matrix products rounded to TF32 (GPUs since 8.0)
    bf16   convolutions in bfloat16 (asenpp.amp)
    fp16   convolutions in float16, the loss scaled

With bf16 and fp16 a step whose gradients are not finite is left out and counted. On the CPU all is float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from .. import amp, cuda
from .errors import EngineError

__all__ = ["Precision"]

_DTYPE = {"bf16": "bfloat16", "fp16": "float16"}
_MAX_SKIPPED = 50      # steps left out in a row, after which a training has failed


class Precision:
    """What SOLVER.AMP asks for, on a device."""

    def __init__(self, cfg: Any, device: str) -> None:
        self.mode = cfg.SOLVER.AMP if device == "cuda" else "off"
        self.dtype = _DTYPE.get(self.mode)
        scaled = self.mode == "fp16"
        self.scaler = amp.GradScaler(65536.0 if scaled else 1.0, 2.0 if scaled else 1.0, 0.5 if scaled else 1.0,
                                     enabled=self.dtype is not None)
        if device == "cuda":
            cuda.allow_tf32(self.mode == "tf32")

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which a model is to be called."""
        return amp.autocast(self.dtype) if self.dtype else contextlib.nullcontext()

    def step(self, losses: Iterable[Any], optimizer: Any) -> bool:
        """Backward of each loss as it comes, then the optimizer's step with the sum of their gradients; False where that
        was left out. EngineError where it is again and again."""
        optimizer.zero_grad()
        for loss in losses:
            self.scaler.scale(loss).backward()
        # Here the gradients are complete: the place for whatever several machines exchange.
        done = self.scaler.step(optimizer)
        self.scaler.update()
        if self.scaler.skipped_in_a_row > _MAX_SKIPPED:
            raise EngineError(f"{self.scaler.skipped_in_a_row} steps in a row had gradients that are not finite (SOLVER.AMP "
                              f"{self.mode}, scale {self.scaler.get_scale():g}); nothing was saved over the last "
                              "checkpoint. --opts SOLVER.AMP off computes in float32")
        return done
