"""Layers and losses under PyTorch's names, with PyTorch's initial weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._asen import Tensor
from . import functional as F
from . import init
from .module import Module
from .parameter import Buffer, Parameter

__all__ = ["Conv2d", "BatchNorm2d", "Linear", "Embedding", "Dropout", "ReLU", "LeakyReLU", "Tanh", "Sigmoid", "Softmax",
           "MaxPool2d", "AdaptiveAvgPool2d", "Identity", "Flatten", "CrossEntropyLoss", "CosineSimilarity",
           "MarginRankingLoss"]


def _empty(*shape: int) -> Parameter:
    return Parameter(np.zeros(shape, np.float32))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


class Conv2d(Module):
    """2-D convolution: (N, in_channels, H, W) to (N, out_channels, H', W').

    weight (out_channels, in_channels / groups, KH, KW) and bias (out_channels) start as
    U(-a, a), a = 1 / sqrt(in_channels / groups * KH * KW).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0,
                 dilation: Any = 1, groups: int = 1, bias: bool = True):
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"Conv2d: {in_channels} and {out_channels} channels cannot be cut into {groups} groups")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.padding, self.dilation = map(_pair, (kernel_size, stride, padding, dilation))
        self.weight = _empty(out_channels, in_channels // groups, *self.kernel_size)
        fan_in = init.fan_in_and_out(self.weight)[0]
        init.fan_in_uniform_(self.weight, fan_in)
        self.register_parameter("bias", _empty(out_channels) if bias else None)
        if bias:
            init.fan_in_uniform_(self.bias, fan_in)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return (f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
                f"padding={self.padding}, bias={self.bias is not None}")


class BatchNorm2d(Module):
    """Batch norm over (N, H, W) for each of num_features channels (Ioffe and Szegedy 2015).

    forward(x, residual=None, relu=False, groups=1): + residual and ReLU happen in the same pass;
    groups: the batch is that many consecutive parts with statistics of their own, as if each had been
    a pass of its own (the running statistics move `groups` times).
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = Parameter(np.ones(num_features, np.float32))
        self.bias = Parameter(np.zeros(num_features, np.float32))
        self.running_mean = Buffer(np.zeros(num_features, np.float32))
        self.running_var = Buffer(np.ones(num_features, np.float32))
        self.num_batches_tracked = Buffer(np.zeros((), np.int64))

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False, groups: int = 1) -> Tensor:
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
                         self.momentum, self.eps, residual=residual, relu=relu, groups=groups)
        if self.training:       # and the batch was not refused
            self.num_batches_tracked.fill_(int(self.num_batches_tracked) + groups)
        return y

    def _moved(self, name: str, tensor: Tensor, dtype: str | None, device: str | None) -> Tensor:
        """The counter stays on the CPU, where counting costs nothing."""
        return tensor if name == "num_batches_tracked" else super()._moved(name, tensor, dtype, device)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class Linear(Module):
    """x (..., in_features) times weight (out_features, in_features) transposed, plus bias.

    Both start as U(-a, a), a = 1 / sqrt(in_features).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = _empty(out_features, in_features)
        init.fan_in_uniform_(self.weight, in_features)
        self.register_parameter("bias", _empty(out_features) if bias else None)
        if bias:
            init.fan_in_uniform_(self.bias, in_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Embedding(Module):
    """A table of num_embeddings rows of embedding_dim numbers, N(0, 1) at first.

    forward(index): integers of any shape in [0, num_embeddings) to rows, (..., embedding_dim).
    """

    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = _empty(num_embeddings, embedding_dim)
        init.normal_(self.weight)

    def forward(self, index: Any) -> Tensor:
        return F.embedding(index, self.weight)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class Dropout(Module):
    """In training zeroes elements with probability p and scales the others by 1 / (1 - p)."""

    def __init__(self, p: float = 0.5):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p is {p}: it must be in [0, 1)")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class ReLU(Module):
    """max(x, 0), of any shape. inplace: written over x, which is part of the graph."""

    def __init__(self, inplace: bool = False):
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, self.inplace)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class LeakyReLU(Module):
    """x where x > 0, else negative_slope * x, of any shape."""

    def __init__(self, negative_slope: float = 0.01):
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class Tanh(Module):
    """The hyperbolic tangent, of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return F.tanh(x)


class Sigmoid(Module):
    """1 / (1 + exp(-x)), of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return F.sigmoid(x)


class Softmax(Module):
    """The softmax over one dim, of x's shape."""

    def __init__(self, dim: int = -1):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x, self.dim)


class MaxPool2d(Module):
    """Maximum in windows of (N, C, H, W)."""

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0):
        super().__init__()
        self.kernel_size = _pair(kernel_size)
        self.stride = self.kernel_size if stride is None else _pair(stride)
        self.padding = _pair(padding)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding)

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AdaptiveAvgPool2d(Module):
    """The global average: (N, C, H, W) to (N, C, 1, 1). output_size must be 1."""

    def __init__(self, output_size: Any = 1):
        super().__init__()
        if output_size not in (1, (1, 1), [1, 1]):
            raise ValueError(f"AdaptiveAvgPool2d: output_size must be 1 (the global average), not {output_size!r}")

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1)


class Identity(Module):
    """What comes in."""

    def forward(self, x: Any) -> Any:
        return x


class Flatten(Module):
    """(N, ...) to (N, the product of the rest); in general the dims from start_dim to end_dim become one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.start_dim, self.end_dim)


class CrossEntropyLoss(Module):
    """forward(logits (N, K), target (N)): the mean of -log softmax(logits)[target]."""

    def forward(self, logits: Tensor, target: Any) -> Tensor:
        return F.cross_entropy(logits, target)


class CosineSimilarity(Module):
    """forward(x1 (N, D), x2 (N, D)): the cosine of each pair of rows, (N)."""

    def __init__(self, dim: int = 1, eps: float = 1e-8):
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return F.cosine_similarity(x1, x2, self.dim, self.eps)


class MarginRankingLoss(Module):
    """forward(x1, x2, target): the mean of max(0, -target (x1 - x2) + margin)."""

    def __init__(self, margin: float = 0.0):
        super().__init__()
        self.margin = margin

    def forward(self, x1: Tensor, x2: Tensor, target: Any = 1) -> Tensor:
        return F.margin_ranking_loss(x1, x2, target, self.margin)
