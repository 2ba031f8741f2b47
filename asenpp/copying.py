"""Copying and pickling of tensors: copy.copy, copy.deepcopy and pickle, as in PyTorch.

copy.copy shares memory. copy.deepcopy copies the storage whole and keeps strides; tensors that share a
storage share the copy's within one deepcopy; gradients and attributes come along; the results of ops are
refused. A pickle holds each tensor's own elements, dense: tensors that share memory come back apart, one
tensor in several places comes back as one. Device, dtype and requires_grad are kept.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from . import _asen

__all__ = ["shallow", "deep", "reduced", "rebuilt"]


def _made(kind: type, view: Any, requires_grad: bool) -> Any:
    """A tensor of a subclass, past its __new__, which may take other arguments."""
    result: Any = _asen.Tensor.__new__(kind, view)
    if requires_grad:
        result.requires_grad = True
    return result


def shallow(self: Any) -> Any:
    """copy.copy: another tensor over the same memory, with the same requires_grad, a leaf."""
    result = _made(type(self), self, self.requires_grad)
    vars_of = getattr(self, "__dict__", None)
    if vars_of:
        result.__dict__.update(vars_of)
    return result


def deep(self: Any, memo: dict[Any, Any]) -> Any:
    """copy.deepcopy: see the module. RuntimeError for the result of an op."""
    if id(self) in memo:
        return memo[id(self)]
    if not self.is_leaf:
        raise RuntimeError("copy.deepcopy of the result of an op, which has a history: copy detach() or clone() it "
                           "instead; in a module such a tensor is an attribute that forward() set")
    key = "asenpp storage", _asen.storage_id(self)
    if key not in memo:
        memo[key] = _asen.storage_bytes(self).clone()
    view = _asen.storage_view(memo[key], self.dtype, self.shape, self.stride(), self.storage_offset())
    result = memo[id(self)] = _made(type(self), view, self.requires_grad)
    if self.grad is not None:
        result.grad = copy.deepcopy(self.grad, memo)
    vars_of = getattr(self, "__dict__", None)
    if vars_of:
        result.__dict__.update(copy.deepcopy(vars_of, memo))
    return result


def reduced(self: Any, protocol: Any) -> tuple[Any, ...]:
    """__reduce_ex__: the elements as bytes (out of band where pickle's protocol 5 is asked for that)."""
    dense = self.detach().to(device="cpu").clone()
    count = dense.numel() * dense.element_size()
    array = _asen.storage_view(dense, "uint8", (count,), (1,)).numpy()
    given = type(self), array, self.dtype, self.shape, self.device, self.requires_grad
    return rebuilt, given, getattr(self, "__dict__", None) or None


def rebuilt(kind: type, array: np.ndarray, dtype: str, shape: tuple[int, ...], device: str, requires_grad: bool) -> Any:
    """The tensor that `reduced` took apart, in memory of its own."""
    dense = _asen.storage_view(_asen.Tensor(array).clone(), dtype, shape)
    return _made(kind, dense.to(device=device), requires_grad)
