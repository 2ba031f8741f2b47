"""Initial weights, in place, from the generator of asenpp.random. PyTorch's names."""

from __future__ import annotations

import math

import numpy as np

from .. import random
from .._asen import Tensor

__all__ = ["uniform_", "normal_", "constant_", "zeros_", "ones_", "xavier_uniform_", "fan_in_and_out"]


def fan_in_and_out(tensor: Tensor) -> tuple[int, int]:
    """Inputs and outputs that meet in one element: of (out, in) or (out, in, kh, kw)."""
    if tensor.ndim < 2:
        raise ValueError(f"fan-in and fan-out need two dims or more, not the shape {tuple(tensor.shape)}")
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


def _set(tensor: Tensor, values: np.ndarray) -> Tensor:
    tensor.detach().copy_(values)  # apart from the graph: parameters are leaves
    return tensor


def uniform_(tensor: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """U(low, high)."""
    values = random.generator().random(tensor.shape, dtype=np.float32)
    return _set(tensor, values * np.float32(high - low) + np.float32(low))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """N(mean, std)."""
    values = random.generator().standard_normal(tensor.shape, dtype=np.float32)
    return _set(tensor, values * np.float32(std) + np.float32(mean))


def constant_(tensor: Tensor, value: float) -> Tensor:
    """One value everywhere."""
    tensor.detach().fill_(value)
    return tensor


def zeros_(tensor: Tensor) -> Tensor:
    """Zeros."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Ones."""
    return constant_(tensor, 1.0)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """U(-a, a) with a = gain * sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    bound = gain * math.sqrt(6.0 / sum(fan_in_and_out(tensor)))
    return uniform_(tensor, -bound, bound)


def fan_in_uniform_(tensor: Tensor, fan_in: int) -> Tensor:
    """U(-a, a) with a = 1 / sqrt(fan_in): PyTorch's start of convolutions, linear layers and biases."""
    bound = 1.0 / math.sqrt(fan_in) if fan_in > 0 else 0.0
    return uniform_(tensor, -bound, bound)
