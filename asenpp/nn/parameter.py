"""Parameters and buffers: the tensors that a module owns."""

from __future__ import annotations

from typing import Any

from .. import _asen
from .._asen import Tensor

__all__ = ["Parameter", "Buffer", "forget_grad"]


class Parameter(Tensor):
    """A tensor that a module learns: registered when it is set as a module's attribute.

    data: a Tensor, whose memory it shares where that lies in the dense layout (4 dims: channels-last),
        which optimizers ask for; anything else is copied, NumPy arrays too, as a tensor over one is:
        what is kept of a parameter's values relies on hearing of every write.
    requires_grad: whether backward gives it a gradient.
    """

    def __new__(cls, data: Any, requires_grad: bool = True) -> "Parameter":
        self = super().__new__(cls, _asen.owned(data))
        if requires_grad:
            self.requires_grad_(True)
        return self

    def __repr__(self) -> str:
        return "Parameter " + super().__repr__()


class Buffer(Tensor):
    """A tensor that a module keeps and saves but does not learn, such as running statistics. `data` is taken as a
    Parameter's is."""

    def __new__(cls, data: Any) -> "Buffer":
        return super().__new__(cls, _asen.owned(data))


def forget_grad(parameter: Tensor, set_to_none: bool) -> None:
    """No gradient, or with set_to_none=False zeros where there is one (whose memory stays)."""
    if set_to_none:
        parameter.grad = None
    elif parameter.grad is not None:
        parameter.grad.detach().zero_()
