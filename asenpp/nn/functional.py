"""Functions of tensors under PyTorch's names; all arithmetic is done by the ops of the C core.

Shapes: N batch, C channels, H height, W width. Floating tensors are float32 or float64, on a GPU also float16
and bfloat16; class and row numbers are int64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _asen
from .._asen import Tensor
from ..amp import lowered
from ..basics import where
from ..random import dropout_seed

__all__ = ["conv2d", "batch_norm", "relu", "leaky_relu", "elu", "silu", "tanh", "sigmoid", "softmax", "log_softmax", "max_pool2d",
           "adaptive_avg_pool2d", "linear", "embedding", "dropout", "cross_entropy", "cosine_similarity",
           "margin_ranking_loss", "normalize", "arc_margin", "spatial_attention", "indices"]


def indices(values: Any, like: Tensor | None = None) -> Tensor:
    """Row or class numbers as an int64 tensor (on the device of `like`).

    values: an integer tensor or array, or a list of ints.
    Raises TypeError for values that are no integers.
    """
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.size and array.dtype.kind not in "iu":
            raise TypeError(f"integers are wanted (row or class numbers), not {array.dtype}")
        values = Tensor(array.astype(np.int64))
    elif values.dtype != "int64":
        if values.dtype not in ("uint8", "int32"):
            raise TypeError(f"integers are wanted (row or class numbers), not {values.dtype}")
        values = values.to("int64")
    return values.to(device=like.device) if like is not None and values.device != like.device else values


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
           dilation: Any = 1, groups: int = 1) -> Tensor:
    """2-D cross-correlation of x (N, C, H, W) with weight (O, C/groups, KH, KW), plus bias (O).

    In the dtype of amp.autocast, where that is on.
    """
    x, weight, bias = lowered(x, weight, bias)
    return _asen.conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def batch_norm(x: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor, bias: Tensor,
               training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *,
               residual: Tensor | None = None, relu: bool = False, groups: int = 1) -> Tensor:
    """Batch norm of x (N, C, H, W); then + residual, then ReLU, in the same pass.

    groups: the batch is this many equal consecutive parts with statistics of their own; running
        statistics move once for each, in order. So triplets can be one batch.
    """
    return _asen.batch_norm(x, weight, bias, running_mean, running_var, residual, training=training,
                            groups=groups, momentum=momentum, eps=eps, relu=relu)[0]


def relu(x: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0), element by element; inplace: written over x, as x.relu_()."""
    return x.relu_() if inplace else _asen.relu(x)


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope * x, element by element."""
    return where(x > 0, x, negative_slope * x)


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha * (exp(x) - 1), element by element."""
    return where(x > 0, x, alpha * (x.clamp(max=0.0).exp() - 1))


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), element by element."""
    return x * x.sigmoid()


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent, element by element."""
    return _asen.tanh(x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), element by element."""
    return _asen.sigmoid(x)


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """exp(x) / sum of exp(x) over one dim, of x's shape."""
    return _asen.softmax(x, dim=dim)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """The logarithm of the softmax over one dim, of x's shape."""
    return _asen.log_softmax(x, dim=dim)


def max_pool2d(x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0) -> Tensor:
    """Maximum in windows of x (N, C, H, W); stride None: that of the window."""
    return _asen.max_pool2d(x, kernel_size=kernel_size, stride=kernel_size if stride is None else stride,
                            padding=padding)[0]


def adaptive_avg_pool2d(x: Tensor, output_size: Any = 1) -> Tensor:
    """Mean over all of H and W: (N, C, H, W) to (N, C, 1, 1).

    Raises ValueError for any output_size but 1 (or (1, 1)): other sizes are not built.
    """
    if output_size not in (1, (1, 1), [1, 1]):
        raise ValueError(f"adaptive_avg_pool2d: output_size must be 1 (the global average), not {output_size!r}")
    if x.ndim != 4:
        raise ValueError(f"adaptive_avg_pool2d: x must be (N, C, H, W), not {tuple(x.shape)}")
    return _asen.mean(x, dims=(2, 3), keepdim=True)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times weight (M, K) transposed, plus bias (M): (..., M)."""
    if x.ndim == 2:
        return _asen.linear(x, weight, bias)
    if x.ndim == 0:
        raise ValueError("linear: x must have one dim or more")
    rows = x.reshape(-1, x.shape[-1])
    return _asen.linear(rows, weight, bias).reshape(*x.shape[:-1], weight.shape[0])


def embedding(index: Any, weight: Tensor) -> Tensor:
    """Rows of weight (R, D) at index (any shape, integers in [0, R)): (..., D)."""
    return _asen.embedding(weight, indices(index, weight))


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Zeroes elements with probability p and scales the others by 1/(1-p); x itself outside training."""
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p is {p}: it must be in [0, 1)")
    return _asen.dropout(x, p=p, seed=dropout_seed()) if training and p > 0 else x


def cross_entropy(logits: Tensor, target: Any) -> Tensor:
    """Mean over the batch of -log softmax(logits)[target]; logits (N, K), target (N) in [0, K)."""
    return _asen.cross_entropy(logits, indices(target, logits))[0]


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x1.x2 / (max(|x1|, eps) max(|x2|, eps)) along a dim, broadcast; of two (N, D): (N)."""
    if x1.ndim == x2.ndim == 2 and x1.shape == x2.shape and dim in (1, -1):
        return _asen.cosine_similarity(x1, x2, eps=eps)[0]
    if eps <= 0:
        raise ValueError(f"cosine_similarity: eps is {eps}: it must be above 0")
    shape = np.broadcast_shapes(x1.shape, x2.shape)
    x1, x2 = x1.expand(shape), x2.expand(shape)  # before the norms are taken
    a, b = (x / x.norm(2, dim, True).clamp(min=eps) for x in (x1, x2))
    return (a * b).sum(dim)


def margin_ranking_loss(x1: Tensor, x2: Tensor, target: Any = 1, margin: float = 0.0) -> Tensor:
    """Mean of max(0, -target (x1 - x2) + margin); target: 1 or -1, a number or a tensor like x1."""
    return ((x2 - x1) * target + margin).clamp(min=0.0).mean()


def normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """x divided by max(its p-norm along a dim, eps); rows of x (N, D) with the Euclidean norm in one pass."""
    if p == 2 and x.ndim == 2 and dim in (1, -1):
        return _asen.normalize(x, eps=eps)[0]
    return x / x.norm(p, dim, True).clamp(min=eps)


def arc_margin(cosine: Tensor, target: Any, s: float, m: float, easy_margin: bool = False) -> Tensor:
    """Additive angular margin on cosines (N, K) with target classes (N) (Deng et al. 2019).

    The target's cosine c becomes phi = c cos m - sqrt(1 - c^2) sin m where c > cos(pi - m), else
    c - m sin(pi - m) (easy_margin: phi where c > 0, else c); all are multiplied by s.
    """
    return _asen.arc_margin(cosine, indices(target, cosine), s=s, m=m, easy_margin=easy_margin)


def spatial_attention(x: Tensor, z: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Attribute-aware spatial attention of x (B, C, H, W): pooled (B, C) and map (B, H, W).

    k = tanh(z), z (B, Cc, H, W); q (B, Cc); m = softmax over H W of sum_c q_c k_c / sqrt(Cc);
    pooled = sum_hw m x (Ma et al. 2020, equations 1 to 4).
    """
    return _asen.spatial_attention(x, z, q)[:2]
