"""Mixed precision on a GPU: convolutions in 16 bits, everything else in float32. PyTorch's names.

    with asenpp.amp.autocast("bfloat16"):
        loss = ...
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()

Parameters stay float32 (master weights): a convolution converts its filter on the way, and the gradient
comes back as float32. Under autocast a convolution's output, and what batch norm, ReLU, residual sums and
pooling make of it, has 16 bits; the statistics of batch norm, linear layers, attention and losses are float32.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from . import _asen
from ._asen import Tensor
from .modes import Mode

__all__ = ["autocast", "GradScaler"]

_HALF = ("float16", "bfloat16")
_state = threading.local()


def autocast_dtype() -> str | None:
    """The dtype that convolutions of this thread compute in; None: that of their inputs."""
    return getattr(_state, "dtype", None)


class autocast(Mode):
    """`with autocast("float16"):` (or `@autocast("float16")`) convolutions compute in this dtype, in this thread.

    dtype: "float16" or "bfloat16". enabled: False changes nothing.
    """

    def __init__(self, dtype: str, enabled: bool = True) -> None:
        if dtype not in _HALF:
            raise ValueError(f"autocast: a dtype of 16 bits is wanted, {' or '.join(_HALF)}, not {dtype!r}")
        super().__init__(partial(getattr, _state, "dtype", None), partial(setattr, _state, "dtype"),
                         *([dtype] if enabled else []))


def lowered(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Tensors in the dtype of autocast; float64 stays what it is."""
    dtype = autocast_dtype()
    if dtype is None or any(t is not None and t.dtype == "float64" for t in tensors):
        return tensors
    return tuple(t if t is None or t.dtype == dtype else t.to(dtype=dtype) for t in tensors)


def raised(tensor: Tensor) -> Tensor:
    """The tensor in float32, if it has 16 bits."""
    return tensor.to(dtype="float32") if tensor.dtype in _HALF else tensor


class GradScaler:
    """Scales the loss so that small gradients survive float16, and leaves out steps that overflowed.

    init_scale: what the loss is multiplied by at first. A step with a gradient that is not finite is
    skipped, counted in `skipped`, and the scale multiplied by backoff_factor; after growth_interval good
    steps in a row it is multiplied by growth_factor. With both factors 1 the scale stays (bfloat16: steps are
    only checked). enabled: False makes it a plain backward and step.
    """

    def __init__(self, init_scale: float = 65536.0, growth_factor: float = 2.0, backoff_factor: float = 0.5,
                 growth_interval: int = 2000, enabled: bool = True) -> None:
        if not init_scale > 0 or growth_factor < 1 or not 0 < backoff_factor <= 1 or growth_interval < 1:
            raise ValueError("GradScaler: init_scale above 0, growth_factor at least 1, backoff_factor in (0, 1] and "
                             "growth_interval at least 1 are wanted")
        self._scale, self._growth, self._backoff = float(init_scale), float(growth_factor), float(backoff_factor)
        self._interval, self._enabled = int(growth_interval), bool(enabled)
        self._good = 0              # good steps since the last change of the scale
        self._finite = True         # of the last step
        self.skipped = 0            # steps left out in all
        self.skipped_in_a_row = 0

    def get_scale(self) -> float:
        """What the loss is multiplied by now."""
        return self._scale if self._enabled else 1.0

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call backward() on."""
        return loss * self._scale if self._enabled and self._scale != 1 else loss

    def step(self, optimizer: Any) -> bool:
        """Unscales the gradients and makes the optimizer's step; False where it was left out. Waits for the
        device."""
        if not self._enabled:
            optimizer.step()
            return True
        self._finite = True
        for grads in _gradients(optimizer):
            self._finite &= _asen.unscale(grads, 1.0 / self._scale)
        if self._finite:
            optimizer.step()
        return self._finite

    def update(self) -> None:
        """After each step: moves the scale."""
        if not self._enabled:
            return
        if self._finite:
            self._good += 1
            self.skipped_in_a_row = 0
            if self._good >= self._interval:
                self._scale, self._good = self._scale * self._growth, 0
        else:
            self._scale, self._good = self._scale * self._backoff, 0
            self.skipped += 1
            self.skipped_in_a_row += 1

    def state_dict(self) -> dict[str, Any]:
        """{"scale", "growth_tracker", "skipped"}: plain numbers."""
        return {"scale": self._scale, "growth_tracker": self._good, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what state_dict gave."""
        self._scale, self._good = float(state["scale"]), int(state["growth_tracker"])
        self.skipped = int(state.get("skipped", 0))


def _gradients(optimizer: Any) -> list[list[Tensor]]:
    """The gradients of an optimizer, dense, by dtype and device; a gradient that lies otherwise is replaced."""
    alike: dict[tuple[str, str], list[Tensor]] = {}
    seen: set[int] = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if not parameter.grad.is_contiguous():
                parameter.grad = parameter.grad.contiguous()
            alike.setdefault((parameter.grad.dtype, parameter.grad.device), []).append(parameter.grad)
    return list(alike.values())
