"""Tensors from nothing and from others, and the switches of the process: PyTorch's names.

All under asenpp itself: asenpp.zeros, asenpp.no_grad, …
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _asen
from ._asen import Tensor
from . import random as _random
from .modes import Mode

__all__ = ["tensor", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "randn", "arange", "cat", "stack",
           "where", "maximum", "minimum", "no_grad", "enable_grad", "set_grad_enabled", "is_grad_enabled",
           "manual_seed", "set_num_threads", "get_num_threads", "memory_stats"]


def _finished(array: np.ndarray, dtype: str | None, device: str, requires_grad: bool) -> Tensor:
    result = _asen.owned(array)
    if dtype is not None:
        result = result.to(dtype=dtype)
    if device != result.device:
        result = result.to(device=device)
    return result.requires_grad_() if requires_grad else result


def tensor(data: Any, dtype: str | None = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor with a copy of `data`: numbers, nested lists, an array or a tensor.

    dtype: "float32", "float64", "int64", "uint8", …; where it is left out, Python's floats become
    float32 and its ints int64, and arrays keep their own.
    """
    if isinstance(data, Tensor):
        data = _asen.to_numpy_readonly(data.detach().to(device="cpu"))
    array = np.array(data)
    if dtype is None and not hasattr(data, "dtype") and array.dtype == np.float64:
        dtype = "float32"
    if dtype in ("uint8", "int32") and array.dtype.kind in "iu" and array.size and not hasattr(data, "dtype"):
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        if array.min() < low or array.max() > high:
            raise ValueError(f"tensor: {array.min()} to {array.max()} do not fit {dtype}, which holds {low} to {high}")
    return _finished(array, dtype, device, requires_grad)


def _shape(size: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(size[0]) if len(size) == 1 and isinstance(size[0], Sequence) else size


def zeros(*size: Any, dtype: str = "float32", device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Zeros of a shape: zeros(2, 3) or zeros((2, 3))."""
    return _finished(np.zeros(_shape(size), np.float32), dtype, device, requires_grad)


def ones(*size: Any, dtype: str = "float32", device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Ones of a shape: ones(2, 3) or ones((2, 3))."""
    return _finished(np.ones(_shape(size), np.float32), dtype, device, requires_grad)


def full(size: Any, fill_value: float, dtype: str | None = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A tensor of one value; without a dtype a float makes float32, an int int64 and a bool bool."""
    if dtype is None:
        dtype = ("bool" if isinstance(fill_value, (bool, np.bool_)) else
                 "int64" if isinstance(fill_value, (int, np.integer)) else "float32")
    result = _asen.full(tuple(size) if isinstance(size, Sequence) else (size,), fill_value, dtype, device)
    return result.requires_grad_() if requires_grad else result


def full_like(x: Tensor, fill_value: float, dtype: str | None = None, device: str | None = None) -> Tensor:
    """A tensor of one value, of x's shape, dtype and device unless others are given."""
    return _asen.full(x.shape, fill_value, dtype or x.dtype, device or x.device)


def zeros_like(x: Tensor, dtype: str | None = None, device: str | None = None) -> Tensor:
    """Zeros of x's shape, dtype and device unless others are given."""
    return full_like(x, 0, dtype, device)


def ones_like(x: Tensor, dtype: str | None = None, device: str | None = None) -> Tensor:
    """Ones of x's shape, dtype and device unless others are given."""
    return full_like(x, 1, dtype, device)


def randn(*size: Any, dtype: str = "float32", device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Numbers from N(0, 1) of a shape, drawn from the generator that `manual_seed` seeds."""
    array = _random.generator().standard_normal(_shape(size), np.float64)
    return _finished(np.asarray(array), dtype, device, requires_grad)


def arange(*bounds: Any, dtype: str | None = None, device: str = "cpu") -> Tensor:
    """arange(stop), arange(start, stop) or arange(start, stop, step): int64, or float32 where a bound is a float."""
    array = np.arange(*bounds)
    dtype = dtype or ("float32" if array.dtype.kind == "f" else "int64")
    return _finished(array, dtype, device, False)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors joined along a dim that is there; all other dims are equal."""
    return _asen.cat(list(tensors), dim=dim)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors of one shape joined along a new dim."""
    return _asen.cat([t.unsqueeze(dim) for t in tensors], dim=dim)


def where(condition: Tensor, a: Any, b: Any) -> Tensor:
    """a where the condition (bool) holds, else b; all broadcast. a and b: tensors of one dtype, or numbers."""
    return _asen.choose(condition, a, b)


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """The larger of two elements, broadcast; NaN where one is. Equal ones share the gradient equally."""
    return a.maximum(b)


def minimum(a: Tensor, b: Tensor) -> Tensor:
    """The smaller of two elements, broadcast; NaN where one is. Equal ones share the gradient equally."""
    return a.minimum(b)


class no_grad(Mode):
    """`with no_grad():` (or `@no_grad()`, `@no_grad`): nothing is recorded for backward, in this thread.

    A decorated generator or coroutine records nothing while it runs; whoever resumes it is as before.
    """

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        mode = super().__new__(cls)
        if function is None:
            return mode
        mode.__init__()         # type: ignore[misc]
        return mode(function)

    def __init__(self, function: None = None) -> None:
        super().__init__(_asen.is_grad_enabled, _asen.set_grad_enabled, False)


class enable_grad(Mode):
    """`with enable_grad():` (or `@enable_grad()`) within no_grad(): what is computed is recorded, in this thread."""

    def __init__(self) -> None:
        super().__init__(_asen.is_grad_enabled, _asen.set_grad_enabled, True)


class set_grad_enabled:
    """set_grad_enabled(False): from here on nothing is recorded, in this thread; True: it is.

    `with set_grad_enabled(training):` lasts for the block; what was before comes back at its end.
    """

    def __init__(self, mode: bool) -> None:
        self._before = _asen.is_grad_enabled()
        _asen.set_grad_enabled(bool(mode))

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception: Any) -> None:
        _asen.set_grad_enabled(self._before)


is_grad_enabled: Callable[[], bool] = _asen.is_grad_enabled


def manual_seed(seed: int) -> None:
    """Seeds initial weights, dropout and randn. Triplets are drawn by Python's `random`."""
    _random.manual_seed(seed)


set_num_threads: Callable[[int], None] = _asen.set_num_threads
get_num_threads: Callable[[], int] = _asen.get_num_threads


def memory_stats(device: str = "cpu") -> dict[str, int]:
    """Bytes: "current", "peak", "cached" (kept for reuse), and the number of "system_requests"."""
    return _asen.memory_stats(device)
