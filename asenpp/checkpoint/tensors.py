"""Tensors as views of storages: the part that all containers share."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .pickle_reader import BFLOAT16, Part, PickleError, brief, names

MAX_AXES = 32  # NumPy 1.x's limit


class Storage(Part):
    """A storage's elements: a contiguous array (count,), or None where a file is only listed. A
    class of its own, so that a pickle cannot pass a tensor where a storage is expected. order: of
    the bytes in the file, "<" or ">"; the array's are native."""

    __slots__ = ("array", "dtype", "count", "order")

    def __init__(self, array: np.ndarray | None, dtype: np.dtype, count: int, order: str = "<"):
        self.array, self.dtype, self.count, self.order = array, dtype, count, order

    def part(self, offset, count) -> Storage:
        """The storage over `count` elements from `offset`: a view of it that a file describes."""
        if not (type(offset) is int and type(count) is int and 0 <= offset and 0 <= count <= self.count - offset):
            raise PickleError(f"a view of {brief(count)} elements from {brief(offset)} in a storage of {self.count}")
        return Storage(None if self.array is None else self.array[offset:offset + count], self.dtype, count,
                       self.order)


class TensorInfo(NamedTuple):
    """What is known of a tensor whose data were not read. dtype: PyTorch's name for it."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class BFloat16:
    """An array of bfloat16, which NumPy has not. `bits` holds the upper halves of float32 numbers
    as uint16, with any strides. NumPy, and `load_state_dict`, see float32 of the same values."""

    __slots__ = ("bits",)
    dtype = "bfloat16"

    def __init__(self, bits: np.ndarray):
        if bits.dtype != np.uint16:
            raise TypeError(f"the bits of bfloat16 are uint16, not {bits.dtype}")
        self.bits = bits

    shape = property(lambda self: self.bits.shape)
    ndim = property(lambda self: self.bits.ndim)
    size = property(lambda self: self.bits.size)
    nbytes = property(lambda self: self.bits.nbytes)

    def numpy(self) -> np.ndarray:
        """The same values as float32, in memory of its own."""
        wide = self.bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)

    detach = numpy

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if copy is False:
            raise ValueError("bfloat16 cannot be an array of NumPy's without a copy")
        return self.numpy() if dtype is None else self.numpy().astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"BFloat16({self.numpy()!r})"


def dtype_name(dtype: np.dtype) -> str:
    """PyTorch's name of a dtype."""
    return "bfloat16" if dtype == BFLOAT16 else dtype.name


def finish(array: np.ndarray):
    """The value that a user sees for an array over a storage."""
    return BFloat16(array[BFLOAT16.names[0]]) if array.dtype == BFLOAT16 else array


def _counts(values) -> bool:
    return type(values) is tuple and len(values) <= MAX_AXES and all(type(v) is int and v >= 0 for v in values)


def rebuild_tensor(storage, offset, size, stride, *rest):
    """torch._utils._rebuild_tensor[_v2]: the view of `storage` with `size` and `stride` from
    `offset`, all in elements. `rest`: requires_grad and hooks, which say nothing about values, and
    metadata, which may. Everything is checked against the storage before NumPy sees it; nothing is
    copied."""
    if not isinstance(storage, Storage) or len(rest) > 3:
        raise PickleError("a tensor that is not built from a storage")
    if len(rest) == 3 and rest[2]:  # such as {"neg": True}: the elements stand for their negatives
        raise PickleError(f"a tensor whose elements stand for others ({brief(rest[2])}), which is not read")
    if not (type(offset) is int and offset >= 0 and _counts(size) and _counts(stride) and len(size) == len(stride)):
        raise PickleError(f"a tensor of size {brief(size)}, stride {brief(stride)}, offset {brief(offset)}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if 0 not in size and last >= storage.count:
        raise PickleError(f"a tensor of size {brief(size)}, stride {brief(stride)} from {brief(offset)} reaches "
                          f"element {brief(last)} of a storage of {storage.count}")
    dtype = storage.dtype
    if math.prod(size) * dtype.itemsize >= 1 << 63:
        raise PickleError(f"a tensor of size {brief(size)}, which is more than memory can be")
    try:
        if 0 in size:
            empty = np.empty(size, dtype)
            return finish(empty) if storage.array is not None else TensorInfo(dtype_name(dtype), size, 0)
        if storage.array is None:
            return TensorInfo(dtype_name(dtype), size, math.prod(size) * dtype.itemsize)
        steps = tuple(step * dtype.itemsize if n > 1 else dtype.itemsize for n, step in zip(size, stride))
        return finish(np.ndarray(size, dtype, storage.array, offset * dtype.itemsize, steps))
    except (ValueError, OverflowError, TypeError) as error:
        raise PickleError(f"a tensor of size {brief(size)}, stride {brief(stride)}: {error}") from None


def rebuild_untyped(storage, offset, size, stride, requires_grad, hooks, dtype, *rest):
    """torch._utils._rebuild_tensor_v3: as `rebuild_tensor`, of a storage of bytes that `dtype` tells
    how to read (the dtypes without a storage class)."""
    if not (isinstance(storage, Storage) and storage.dtype == np.uint8 and isinstance(dtype, np.dtype) and len(rest) <= 1):
        raise PickleError("a tensor with a dtype of its own that is not built from a storage of bytes")
    if storage.order == ">":
        raise PickleError(f"a tensor of {dtype_name(dtype)} in a big-endian file, which is not read")
    count = storage.count // dtype.itemsize
    array = None if storage.array is None else storage.array[:count * dtype.itemsize].view(dtype)
    return rebuild_tensor(Storage(array, dtype, count), offset, size, stride, requires_grad, hooks, *rest)


NAMES = names(rebuild_tensor, rebuild_untyped)
