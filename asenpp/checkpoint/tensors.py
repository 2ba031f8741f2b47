"""Tensors as views of storages: the part that all of PyTorch's containers share."""

from __future__ import annotations

import numpy as np

from .pickle_reader import PickleError

MAX_AXES = 32  # NumPy 1.x's limit


class Storage:
    """A storage's elements: a contiguous array (n,). A class of its own, so that a pickle cannot
    pass a tensor where a storage is expected."""

    __slots__ = ("array",)

    def __init__(self, array: np.ndarray):
        self.array = array


def _counts(values) -> bool:
    return type(values) is tuple and all(type(v) is int and v >= 0 for v in values)


def rebuild_tensor(storage, offset, size, stride, *rest) -> np.ndarray:
    """torch._utils._rebuild_tensor[_v2]: the view of `storage` with `size` and `stride` from
    `offset`, all in elements. `rest` (requires_grad, hooks, metadata) says nothing about values.
    Everything is checked against the storage before NumPy sees it; nothing is copied."""
    if not isinstance(storage, Storage) or len(rest) > 3:
        raise PickleError("a tensor that is not built from a storage")
    if not (type(offset) is int and offset >= 0 and _counts(size) and _counts(stride)
            and len(size) == len(stride) <= MAX_AXES):
        raise PickleError(f"a tensor of size {size!r:.80}, stride {stride!r:.80}, offset {offset!r:.40}")
    elements = storage.array
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if 0 not in size and last >= len(elements):
        raise PickleError(f"a tensor of size {size!r:.80}, stride {stride!r:.80} from {offset} reaches element "
                          f"{last} of a storage of {len(elements)}")
    itemsize = elements.dtype.itemsize
    steps = tuple(step * itemsize if n > 1 else itemsize for n, step in zip(size, stride))
    try:
        if 0 in size:
            return np.empty(size, elements.dtype)
        return np.ndarray(size, elements.dtype, elements, offset * itemsize, steps)
    except (ValueError, OverflowError, TypeError) as error:
        raise PickleError(f"a tensor of size {size!r:.80}, stride {stride!r:.80}: {error}") from None
