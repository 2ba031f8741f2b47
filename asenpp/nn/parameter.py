"""Parameters and buffers: the tensors that a module owns.

Both count their changes in one process-wide number, `generation()`, by which folded weights
(fold.py) notice that they are out of date. Optimizer steps, loading, moving and the running
statistics of batch norm report theirs by `changed()`.
"""

from __future__ import annotations

from typing import Any

from .._asen import Tensor

__all__ = ["Parameter", "Buffer", "generation", "changed"]

_generation = 0


def generation() -> int:
    """How often weights or running statistics have changed in this process."""
    return _generation


def changed() -> None:
    """To be called after weights were written by other means than the methods of Parameter."""
    global _generation
    _generation += 1


class _Owned(Tensor):
    def copy_(self, source: Any) -> "_Owned":
        super().copy_(source)
        changed()
        return self

    def fill_(self, value: float) -> "_Owned":
        super().fill_(value)
        changed()
        return self

    def zero_(self) -> "_Owned":
        return self.fill_(0.0)


class Parameter(_Owned):
    """A tensor that a module learns: registered when it is set as a module's attribute.

    data: a Tensor or NumPy array; shares its memory where that lies in the dense layout (4 dims:
        channels-last), which optimizers ask for, else copies.
    requires_grad: whether backward gives it a gradient.
    """

    def __new__(cls, data: Any, requires_grad: bool = True) -> "Parameter":
        self = super().__new__(cls, Tensor(data).detach().contiguous())
        if requires_grad:
            self.requires_grad_(True)
        return self

    def __repr__(self) -> str:
        return "Parameter " + super().__repr__()


class Buffer(_Owned):
    """A tensor that a module keeps and saves but does not learn, such as running statistics."""

    def __new__(cls, data: Any) -> "Buffer":
        return super().__new__(cls, Tensor(data).detach().contiguous())
