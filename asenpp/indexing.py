"""Indexing by tensors: integers that pick, bools that mask, among slices; as PyTorch reads such keys.

get(x, key) composes a row lookup: the dims that tensors index come first, their indices become one number
a row (gradients are added up at repeated ones). put(x, key, value) writes all of x anew: the elements that
the key names from the value, the last one where a place is named twice, the others as they are; so what is
recorded of it is a copy_ of a where. Masks are counted on the host, which waits for the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _asen
from ._asen import Tensor

__all__ = ["get", "put", "positions"]

_ALL = slice(None)
_METHODS = {"bool": "bool()", "uint8": "to('uint8')", "int32": "int()", "int64": "long()"}


def positions(x: Tensor) -> Tensor:
    """The indices of the elements that are not 0, in order: int64 (count, ndim), on the device of x."""
    return Tensor(np.argwhere((x.detach() != 0).to(device="cpu").numpy())).to(device=x.device)


def _as_index(item: Any, device: str) -> Tensor:
    """A tensor of int64 or bool on the device."""
    if not isinstance(item, Tensor):
        array = np.asarray(item)
        if array.size == 0 and array.dtype.kind == "f":
            array = array.astype(np.int64)  # an empty list
        if array.dtype.kind not in "biu":
            raise TypeError(f"a list or array that indexes a tensor holds integers or bools, not {array.dtype}")
        item = Tensor(array if array.dtype.kind == "b" else array.astype(np.int64))
    if item.dtype in ("int32", "int64"):
        item = item.long()
    elif item.dtype != "bool":
        raise TypeError(f"a tensor that indexes another is int64, int32 or bool, not {item.dtype}")
    return item if item.device == device else item.to(device=device)


def _planned(x: Tensor, key: Any) -> tuple[list[Any], dict[int, Tensor], tuple[int, ...]]:
    """(basic, picks, shape): the key without what tensors index (a slice of all stands there), the index tensors
    by the dims of x[basic] that they pick from, all of one shape."""
    items = [item if isinstance(item, (int, slice, type(None), type(...))) and not isinstance(item, bool)
             or isinstance(item, np.integer) else _as_index(item, x.device)
             for item in (key if isinstance(key, tuple) else (key,))]
    used = sum(item.ndim if isinstance(item, Tensor) and item.dtype == "bool" else item is not None and item is not ...
               for item in items)
    if used > x.ndim:
        raise IndexError(f"too many indices for a tensor of {x.ndim} dims")
    dots = [i for i, item in enumerate(items) if item is ...]
    if len(dots) > 1:
        raise IndexError("an index can have only one ...")
    at = dots[0] if dots else len(items)
    items[at:at + 1] = [_ALL] * (x.ndim - used)

    basic: list[Any] = []
    given: dict[int, Tensor] = {}
    shapes: list[tuple[int, ...]] = []
    dim = out = 0  # of x, of x[basic]
    for item in items:
        if isinstance(item, Tensor) and item.dtype == "bool":
            if tuple(item.shape) != tuple(x.shape[dim:dim + item.ndim]):
                raise IndexError(f"a mask of shape {tuple(item.shape)} does not fit the dims from {dim} on of "
                                 f"{tuple(x.shape)}")
            found = positions(item)
            shapes.append((found.shape[0],))
            if item.ndim == 0:  # a dim of its own, there or not
                basic.append(None)
                given[out] = found.new_zeros(found.shape[0])
                out += 1
            for d in range(item.ndim):
                basic.append(_ALL)
                given[out] = found[:, d]
                dim, out = dim + 1, out + 1
        elif isinstance(item, Tensor):
            shapes.append(tuple(item.shape))
            basic.append(_ALL)
            given[out] = item
            dim, out = dim + 1, out + 1
        else:
            basic.append(item)
            out += item is None or isinstance(item, slice)
            dim += item is not None
    shape = _broadcast(shapes)
    return basic, {d: index.expand(shape) for d, index in given.items()}, shape


def _broadcast(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise IndexError(f"the indices have shapes {', '.join(map(str, shapes))}, which do not broadcast") from None


def get(x: Tensor, key: Any) -> Tensor:
    """x[key] for a key that holds tensors, arrays, lists or bools. IndexError for places that are not there."""
    basic, picks, shape = _planned(x, key)
    view = x[tuple(basic)]
    dims = list(picks)
    rest = [d for d in range(view.ndim) if d not in picks]
    rows = view if dims == list(range(len(dims))) else view.permute(dims + rest)
    kept = list(rows.shape[len(dims):])
    count, width = int(np.prod(rows.shape[:len(dims)])), int(np.prod(kept))
    sizes = {d: (index, view.shape[d]) for d, index in picks.items()}
    number = (_numbered_here if x.device == "cpu" else _numbered_there)(sizes, tuple(view.shape))
    picked = _rows(rows.reshape(count, width), number.reshape(number.numel()))
    result = picked.reshape([*shape, *kept])
    if dims == list(range(dims[0], dims[0] + len(dims))) and dims[0] > 0:  # neighbours: where the first one was
        n, front = len(shape), dims[0]
        result = result.permute([*range(n, n + front), *range(n), *range(n + front, result.ndim)])
    return result


def _numbered_here(picks: dict[int, tuple[Tensor, int]], shape: tuple[int, ...]) -> Tensor:
    """The number of each row that is picked, on the CPU; IndexError for one that is not there."""
    number: Any = 0
    for d, (index, size) in picks.items():
        array = _asen.to_numpy_readonly(index)
        if array.size and not (-size <= array.min() and array.max() < size):
            raise IndexError(f"an index is outside [{-size}, {size}), the size of dim {d} of {shape}")
        number = number * size + np.where(array < 0, array + size, array)
    return Tensor(np.asarray(number))


def _numbered_there(picks: dict[int, tuple[Tensor, int]], shape: tuple[int, ...]) -> Tensor:
    """The same on a GPU, without waiting for it: the lookup finds what is not there."""
    number: Any = 0
    inside: Any = True
    for index, size in picks.values():
        inside = (index >= -size) & (index < size) & inside
        number = number * size + _asen.choose(index < 0, index + size, index)
    return _asen.choose(inside, number, -1)


def _rows(table: Tensor, number: Tensor) -> Tensor:
    """Rows of a table (R, D) of any dtype by their numbers (N): (N, D)."""
    if table.is_floating_point():
        return _asen.embedding(table, number)
    return _asen.gather(table, number.unsqueeze(1).expand(number.numel(), table.shape[1]), dim=0)


def put(x: Tensor, key: Any, value: Any) -> None:
    """x[key] = value, which is broadcast, for a key that holds tensors, arrays, lists or bools."""
    key = tuple(item.to(device="cpu") if isinstance(item, Tensor) else item
                for item in (key if isinstance(key, tuple) else (key,)))
    places = get(_asen.from_numpy(np.arange(x.numel()).reshape(x.shape)), key)
    source = np.full(x.numel(), -1)
    if not isinstance(value, Tensor) and np.ndim(value):
        value = Tensor(value)
    if isinstance(value, Tensor) and value.is_floating_point() and not x.is_floating_point():
        raise TypeError(f"{value.dtype} cannot be written into elements of {x.dtype}: convert it with .{_METHODS[x.dtype]} first")
    if isinstance(value, Tensor) and value.ndim:
        while value.ndim > places.ndim and value.shape[0] == 1:
            value = value.reshape(value.shape[1:])
        value = value.expand(places.shape).to(dtype=x.dtype, device=x.device)
    if not places.numel():
        return
    source[places.numpy().ravel()] = np.arange(places.numel())
    chosen = Tensor((source >= 0).reshape(x.shape)).to(device=x.device)
    if isinstance(value, Tensor) and value.ndim:
        order = Tensor(np.maximum(source, 0)).to(device=x.device)
        value = _rows(value.reshape(value.numel(), 1), order.reshape(order.numel())).reshape(x.shape)
    elif isinstance(value, Tensor):
        value = value.to(dtype=x.dtype, device=x.device)
    else:
        value = x.detach().new_full((), value)
    x.copy_(_asen.choose(chosen, value, x))
