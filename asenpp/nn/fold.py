"""Convolution and batch norm in one pass for inference.

In evaluation batch norm is y = (z - mean) * s + b with s = weight / sqrt(var + eps), z = conv(x, w):
so y = conv(x, w * s) + (b - mean * s), which the core computes together with residual and ReLU.
The folded weights are made once, in the dtype of amp.autocast, and kept under the edition of the
tensors they were made from: whoever writes into one of those, by whatever means, moves it.
"""

from __future__ import annotations

from typing import Any, cast

from .. import _asen
from .._asen import Tensor
from ..amp import autocast_dtype, lowered
from .modules import BatchNorm2d, Conv2d

__all__ = ["conv_bn"]


class _Folded:
    """The folded weights of a batch norm, and what they were made from. A copy of the module has none."""

    __slots__ = ("key", "result")

    def __init__(self, key: Any = None, result: tuple[Tensor, Tensor] | None = None):
        self.key, self.result = key, result

    def __reduce__(self) -> Any:
        return _Folded, ()


def conv_bn(conv: Conv2d, bn: BatchNorm2d, x: Tensor, relu: bool = False, residual: Tensor | None = None,
            groups: int = 1) -> Tensor:
    """bn(conv(x)) (+ residual) (then ReLU); folded in evaluation mode while no gradient is recorded.

    x (N, C, H, W); groups: see BatchNorm2d. Modules with hooks are called, one after the other.
    """
    if bn.training or _asen.is_grad_enabled() or conv.has_hooks() or bn.has_hooks():
        bn.__dict__.pop("_folded", None)
        return bn(conv(x), residual, relu, groups)
    weight, bias = _folded(conv, bn)
    x, residual = lowered(x, residual)
    return _asen.conv2d_fused(x, weight, bias, residual, stride=conv.stride, padding=conv.padding,
                              dilation=conv.dilation, groups=conv.groups, relu=relu)


def _folded(conv: Conv2d, bn: BatchNorm2d) -> tuple[Tensor, Tensor]:
    of, own = conv._parameters, bn._parameters
    edition = _asen.edition(of["weight"], of["bias"], own["weight"], own["bias"],
                            bn._buffers["running_mean"], bn._buffers["running_var"])  # before they are read
    key = edition, bn.eps, autocast_dtype()
    kept = bn.__dict__.get("_folded")
    if kept is not None and edition is not None and kept.key == key:
        return kept.result
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    shift = bn.bias - bn.running_mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    result = cast("tuple[Tensor, Tensor]",
                  lowered((conv.weight * scale.reshape(-1, 1, 1, 1)).contiguous(), shift))
    bn.__dict__["_folded"] = _Folded(key, result)
    return result
