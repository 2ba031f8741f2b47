"""Methods of Tensor that are composed of the ops of the C core, under PyTorch's names.

The core puts METHODS on the type when it is loaded. Nothing is computed here that is not computed by an op,
so all of it works on every device, and gradients flow where they do in PyTorch. docs/api.md compares them
with PyTorch's line by line.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any, NamedTuple

from . import _asen, copying

Tensor = Any  # the type is being made while this module is loaded; the stub names it

__all__ = ["METHODS", "Extrema"]

_INTEGERS = ("bool", "uint8", "int32", "int64")


class Extrema(NamedTuple):
    """What max, min, sort and topk over a dim return: values, and where they were (int64)."""

    values: Tensor
    indices: Tensor


def _want_float(name: str, x: Tensor) -> None:
    if x.dtype in _INTEGERS:
        raise TypeError(f"{name}: x is {x.dtype}, but a floating dtype is wanted: convert it first")


def _dims(x: Tensor, dim: int | Sequence[int] | None) -> list[int]:
    """The dims that are meant, from 0; all for None. A tensor without dims has 0 and -1 to name, and none to go over."""
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return list(range(x.ndim))
    dims = [_dim(x, d) for d in ([dim] if isinstance(dim, int) else dim)]
    return dims if x.ndim else []


def _dim(x: Tensor, dim: int) -> int:
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"a dim is an int, not {type(dim).__name__}")
    if not -builtins.max(x.ndim, 1) <= dim < builtins.max(x.ndim, 1):
        raise IndexError(f"dim {dim} of a tensor of {x.ndim} dims")
    return dim % x.ndim if x.ndim else 0


# ---- arithmetic ----


def add(self: Tensor, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    """self + alpha * other, broadcast."""
    return self + (other if alpha == 1 else alpha * other)


def sub(self: Tensor, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    """self - alpha * other, broadcast."""
    return self - (other if alpha == 1 else alpha * other)


def mul(self: Tensor, other: Tensor | float) -> Tensor:
    """self * other, broadcast."""
    return self * other


def div(self: Tensor, other: Tensor | float) -> Tensor:
    """self / other, broadcast; not of integers."""
    return self / other


def add_(self: Tensor, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    """self += alpha * other, in place."""
    self += other if alpha == 1 else alpha * other
    return self


def sub_(self: Tensor, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    """self -= alpha * other, in place."""
    self -= other if alpha == 1 else alpha * other
    return self


def mul_(self: Tensor, other: Tensor | float) -> Tensor:
    """self *= other, in place."""
    self *= other
    return self


def div_(self: Tensor, other: Tensor | float) -> Tensor:
    """self /= other, in place; not of integers."""
    self /= other
    return self


def _mod(self: Tensor, other: Tensor | int) -> Tensor:
    """self % other of integers: what // leaves, with the sign of other."""
    return _remainder(self, other)


def _rmod(self: Tensor, other: Tensor | int) -> Tensor:
    return _remainder(other, self)


def _remainder(a: Any, b: Any) -> Tensor:
    for x in (a, b):
        if isinstance(x, _asen.Tensor) and x.dtype not in ("uint8", "int32", "int64"):
            raise TypeError(f"% is for integers, not for {x.dtype}: convert with .long() first")
    return a - a // b * b


def neg_(self: Tensor) -> Tensor:
    """-self, in place."""
    _asen.apply_("neg", [self])
    return self


def exp_(self: Tensor) -> Tensor:
    """exp(self), in place."""
    _asen.apply_("exp", [self])
    return self


def sqrt_(self: Tensor) -> Tensor:
    """sqrt(self), in place."""
    _asen.apply_("sqrt", [self])
    return self


def tanh_(self: Tensor) -> Tensor:
    """tanh(self), in place."""
    _asen.apply_("tanh", [self])
    return self


def sigmoid_(self: Tensor) -> Tensor:
    """sigmoid(self), in place."""
    _asen.apply_("sigmoid", [self])
    return self


def relu_(self: Tensor) -> Tensor:
    """max(self, 0), in place."""
    _asen.apply_("relu", [self])
    return self


def clamp_(self: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    """clamp(self, min, max), in place."""
    given = {name: value for name, value in (("min", min), ("max", max)) if value is not None}
    _asen.apply_("clamp", [self], given)
    return self


def masked_fill_(self: Tensor, mask: Tensor, value: Tensor | float) -> Tensor:
    """masked_fill(self, mask, value), in place; the mask broadcasts to self."""
    filled = masked_fill(self, mask, value)
    if filled.shape != self.shape:
        raise ValueError(f"masked_fill_: a mask of {tuple(mask.shape)} does not broadcast to {tuple(self.shape)}")
    return self.copy_(filled)


def sign(self: Tensor) -> Tensor:
    """-1, 0 or 1, of the same dtype; 0 for NaN. No gradient: it is 0."""
    x = self.detach()
    if x.dtype in ("bool", "uint8"):
        return (x > 0).to(x.dtype)
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


def abs(self: Tensor) -> Tensor:
    """|x|; the gradient is sign(x), 0 at 0."""
    if self.dtype == "bool":
        raise TypeError("abs: bools have no magnitude")
    if self.dtype in _INTEGERS:
        return self * self.sign()
    return self * self.sign() + 0.0  # -0 becomes 0


def maximum(self: Tensor, other: Tensor) -> Tensor:
    """The larger of two elements, broadcast; NaN where one is. Equal ones share the gradient equally."""
    return _larger(*_alike("maximum", self, other))


def minimum(self: Tensor, other: Tensor) -> Tensor:
    """The smaller of two elements, broadcast; NaN where one is. Equal ones share the gradient equally."""
    a, b = _alike("minimum", self, other)
    return _reversed(_larger(_reversed(a), _reversed(b)))


def _larger(a: Tensor, b: Tensor) -> Tensor:
    """Of one shape, element by element; equal ones share the gradient equally."""
    return _asen.max(_asen.cat([a.reshape(1, a.numel()), b.reshape(1, b.numel())]), dims=0).reshape(a.shape)


def _alike(name: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of one dtype (the promoted one) and shape."""
    if not isinstance(b, _asen.Tensor):
        raise TypeError(f"{name}: other must be a Tensor, not {type(b).__name__}: clamp() takes numbers")
    shape = _broadcast(name, a.shape, b.shape)
    a, b = _asen.promote(a, b)
    return a.expand(shape), b.expand(shape)


def _broadcast(name: str, *shapes: Sequence[int]) -> tuple[int, ...]:
    result = [1] * builtins.max(len(s) for s in shapes)
    for shape in shapes:
        for i, n in enumerate(reversed(shape), 1):
            if n != 1 and result[-i] not in (1, n):
                raise ValueError(f"{name}: the shapes {', '.join(str(tuple(s)) for s in shapes)} do not broadcast")
            result[-i] = n if result[-i] == 1 else result[-i]
    return tuple(result)


def _reversed(x: Tensor) -> Tensor:
    """With the order turned round: -x, for integers -x - 1, which the smallest of them has too; its own inverse."""
    if x.dtype == "bool":
        return ~x
    return -x - 1 if x.dtype in _INTEGERS else -x


# ---- what an element is ----


def isnan(self: Tensor) -> Tensor:
    """Whether an element is NaN: bool."""
    return self.detach() != self.detach()


def isinf(self: Tensor) -> Tensor:
    """Whether an element is infinite: bool."""
    x = self.detach()
    return (x != x) if x.dtype in _INTEGERS else (x == float("inf")) | (x == float("-inf"))


def isfinite(self: Tensor) -> Tensor:
    """Whether an element is neither infinite nor NaN: bool."""
    x = self.detach()
    return x == x if x.dtype in _INTEGERS else (x > float("-inf")) & (x < float("inf"))


def any(self: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """Whether an element along the dims (all for None) is not 0: bool."""
    return (self.detach() != 0).sum(dims=_dims(self, dim), keepdim=keepdim) > 0


def all(self: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """Whether no element along the dims (all for None) is 0: bool."""
    return (self.detach() == 0).sum(dims=_dims(self, dim), keepdim=keepdim) == 0


def where(self: Tensor, condition: Tensor, other: Tensor | float) -> Tensor:
    """self where the condition (bool) holds, else other; all broadcast."""
    return _asen.choose(condition, self, other)


def masked_fill(self: Tensor, mask: Tensor, value: Tensor | float) -> Tensor:
    """A copy with `value` where the mask (bool, broadcast) holds."""
    if isinstance(value, _asen.Tensor) and value.ndim:
        raise ValueError(f"masked_fill: a number or a tensor without dims is wanted, not one of {tuple(value.shape)}")
    result = _asen.choose(mask, value, self)
    if result.dtype != self.dtype:
        raise TypeError(f"masked_fill: {value} is not a value of {self.dtype}")
    return result


# ---- comparisons by name ----


def eq(self: Tensor, other: Tensor | float) -> Tensor:
    """self == other, element by element, broadcast: bool."""
    return _compared("eq", self == other)


def ne(self: Tensor, other: Tensor | float) -> Tensor:
    """self != other, element by element, broadcast: bool."""
    return _compared("ne", self != other)


def lt(self: Tensor, other: Tensor | float) -> Tensor:
    """self < other, element by element, broadcast: bool."""
    return self < other


def le(self: Tensor, other: Tensor | float) -> Tensor:
    """self <= other, element by element, broadcast: bool."""
    return self <= other


def gt(self: Tensor, other: Tensor | float) -> Tensor:
    """self > other, element by element, broadcast: bool."""
    return self > other


def ge(self: Tensor, other: Tensor | float) -> Tensor:
    """self >= other, element by element, broadcast: bool."""
    return self >= other


def _compared(name: str, result: Any) -> Tensor:
    """Python answers == of things that do not compare with False; by name that is an error."""
    if isinstance(result, bool):
        raise TypeError(f"{name}: other must be a Tensor or a number")
    return result


def logical_not(self: Tensor) -> Tensor:
    """Whether an element is 0: bool."""
    return self.detach() == 0


# ---- reductions ----


def amax(self: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """The maximum over dims (all for None); NaN where there is one. Equal maxima share the gradient equally."""
    return _asen.max(self, dims=_dims(self, dim), keepdim=keepdim)


def amin(self: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """The minimum over dims (all for None); NaN where there is one. Equal minima share the gradient equally."""
    return _reversed(_asen.max(_reversed(self), dims=_dims(self, dim), keepdim=keepdim))


def max(self: Tensor, dim: int | Tensor | None = None, keepdim: bool = False) -> Any:
    """max(): the maximum of all, equal ones share the gradient. max(dim): (values, indices) of the first
    maximum along a dim, which gets the gradient. max(other): maximum(other)."""
    if isinstance(dim, _asen.Tensor):
        return self.maximum(dim)
    return self.amax() if dim is None else _extremum(self, dim, keepdim, True)


def min(self: Tensor, dim: int | Tensor | None = None, keepdim: bool = False) -> Any:
    """min(): the minimum of all, equal ones share the gradient. min(dim): (values, indices) of the first
    minimum along a dim, which gets the gradient. min(other): minimum(other)."""
    if isinstance(dim, _asen.Tensor):
        return self.minimum(dim)
    return self.amin() if dim is None else _extremum(self, dim, keepdim, False)


def _extremum(x: Tensor, dim: int, keepdim: bool, largest: bool) -> Extrema:
    values, indices = _sorted(x, dim, largest, 1, nan_first=True)
    return Extrema(values, indices) if keepdim or x.ndim == 0 else Extrema(values.squeeze(dim), indices.squeeze(dim))


def argmax(self: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the first maximum is, along a dim or (None) in the flattened tensor: int64. NaN counts as maximum."""
    return _arg(self, dim, keepdim, True)


def argmin(self: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the first minimum is, along a dim or (None) in the flattened tensor: int64. NaN counts as minimum."""
    return _arg(self, dim, keepdim, False)


def _arg(x: Tensor, dim: int | None, keepdim: bool, largest: bool) -> Tensor:
    x = x.detach()
    if dim is not None:
        return _extremum(x, dim, keepdim, largest).indices
    result = _extremum(x.flatten(), 0, False, largest).indices
    return result.reshape([1] * x.ndim) if keepdim else result


def sort(self: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Extrema:
    """(values, indices) in order along a dim; always stable; NaN is larger than all. Gradients flow to values."""
    return Extrema(*_sorted(self, dim, descending, -1))


def argsort(self: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The indices of sort(): int64."""
    return _sorted(self.detach(), dim, descending, -1)[1]


def topk(self: Tensor, k: int, dim: int = -1, largest: bool = True,
         sorted: bool = True) -> Extrema:
    """(values, indices) of the k largest (or smallest) along a dim, in order; equal ones by their places."""
    size = self.shape[_dim(self, dim)] if self.ndim else 1
    if not 0 <= k <= size:
        raise ValueError(f"topk: k is {k}, but dim {dim} of {tuple(self.shape)} has {size} elements")
    return Extrema(*_sorted(self, dim, largest, k))


def _sorted(x: Tensor, dim: int, descending: bool, k: int,
            nan_first: bool = False) -> tuple[Tensor, Tensor]:
    """The first k (-1: all) in order along a dim. nan_first: NaN comes first in ascending order, too."""
    dim = _dim(x, dim)
    values, indices = _asen.sort(x if x.ndim else x.reshape(1), dim=dim, descending=descending, k=k, nan_first=nan_first)
    return (values, indices) if x.ndim else (values.reshape(()), indices.reshape(()))


def var(self: Tensor, dim: int | Sequence[int] | bool | None = None,
        unbiased: bool | None = None, keepdim: bool = False, *,
        correction: float | None = None) -> Tensor:
    """The variance over dims (all for None): the sum of squared deviations divided by n - correction (default 1).

    unbiased: True is correction=1, False correction=0; var(False) is var(unbiased=False).
    """
    _want_float("var", self)
    if isinstance(dim, bool):
        if unbiased is not None:
            raise TypeError("var: unbiased is given twice")
        dim, unbiased = None, dim
    if unbiased is not None and correction is not None:
        raise TypeError("var: unbiased and correction are two ways to say the same: give one")
    less = correction if correction is not None else 1 if unbiased in (None, True) else 0
    dims, count = _dims(self, dim), 1
    for d in dims:
        count *= self.shape[d]
    far = self - self.mean(dims=dims, keepdim=True)
    freedom = count - less if count > less else 0
    return (far * far).sum(dims=dims, keepdim=keepdim) / freedom


def std(self: Tensor, dim: int | Sequence[int] | bool | None = None,
        unbiased: bool | None = None, keepdim: bool = False, *,
        correction: float | None = None) -> Tensor:
    """The square root of var(), with its arguments. The gradient of one that is 0 is 0."""
    _want_float("std", self)
    squared = self.var(dim, unbiased, keepdim, correction=correction)
    zero = squared == 0
    return _asen.choose(zero, 0.0, _asen.choose(zero, 1.0, squared).sqrt())


def norm(self: Tensor, p: float | str = 2, dim: int | Sequence[int] | None = None,
         keepdim: bool = False) -> Tensor:
    """The p-norm over dims (all for None): (sum |x|^p)^(1/p); inf: max |x|; -inf: min |x|; 0: the count of
    elements that are not 0. p may be "fro", which is 2. Squares are scaled: nothing overflows on the way.
    The gradient of a norm that is 0 is 0."""
    _want_float("norm", self)
    if p == "fro":
        p = 2
    if isinstance(p, str) or isinstance(p, bool):
        raise ValueError(f"norm: p is {p!r}: a number or 'fro' is wanted")
    dims, inf = _dims(self, dim), float("inf")
    if p in (inf, -inf):
        return self.abs().amax(dims, keepdim) if p > 0 else self.abs().amin(dims, keepdim)
    if p == 0:
        return (self != 0).to(self.dtype).sum(dims=dims, keepdim=keepdim)
    if p == 1:
        return self.abs().sum(dims=dims, keepdim=keepdim)
    if self.numel() == 0:
        return self.abs().sum(dims=dims, keepdim=keepdim)
    largest = self.detach().abs().amax(dims, True)
    scale = _asen.choose((largest > 0) & largest.isfinite(), largest, 1.0)
    part = self / scale
    total = _powers(part, p).sum(dims=dims, keepdim=True)
    zero = total == 0
    root = _asen.choose(zero, 1.0, total)
    root = _asen.choose(zero, 0.0, (root.sqrt() if p == 2 else root ** (1 / p)) * scale)
    return root if keepdim else root.reshape([n for d, n in enumerate(self.shape) if d not in dims])


def _powers(x: Tensor, p: float) -> Tensor:
    """|x|^p. Elements that are 0 get a gradient of 0 where that of the power would be infinite."""
    if p == 2:
        return x * x
    if p >= 1:
        return x.abs() ** p
    none = x == 0
    return _asen.choose(none, 0.0 if p > 0 else float("inf"), _asen.choose(none, 1.0, x.abs()) ** p)


# ---- picking and parting ----


def gather(self: Tensor, dim: int, index: Tensor) -> Tensor:
    """y[i][j][k] = self[index[i][j][k]][j][k] for dim 0, and so on: of the shape of index (int64), which is no
    larger than self in the other dims. Gradients are added up at the index."""
    dim = _dim(self, dim)
    if self.ndim or index.ndim:
        return _asen.gather(self, index, dim=dim)
    return _asen.gather(self.reshape(1), index.reshape(1), dim=0).reshape(())


def narrow(self: Tensor, dim: int, start: int, length: int) -> Tensor:
    """The view [start, start + length) of a dim."""
    dim = _dim(self, dim)
    size = self.shape[dim] if self.ndim else 0
    start = start + size if start < 0 else start
    if start < 0 or length < 0 or start + length > size:
        raise IndexError(f"narrow: [{start}, {start + length}) of dim {dim} of {tuple(self.shape)}")
    return self[(slice(None),) * dim + (slice(start, start + length),)]


def split(self: Tensor, split_size: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Views along a dim: of split_size elements each (the last may be smaller), or of the sizes of a list."""
    dim = _dim(self, dim)
    size = self.shape[dim] if self.ndim else 0
    if isinstance(split_size, int):
        if split_size < 1 and not (split_size == 0 and size == 0):
            raise ValueError(f"split: the size is {split_size}: at least 1 is wanted")
        count = -(-size // split_size) if split_size else 1
        sizes = [split_size] * (count - 1) + [size - split_size * (count - 1)] if count else [0]
    else:
        sizes = list(split_size)
        if builtins.sum(sizes) != size or builtins.any(n < 0 for n in sizes):
            raise ValueError(f"split: the sizes {sizes} do not add up to the {size} of dim {dim}")
    start, parts = 0, []
    for n in sizes:
        parts.append(narrow(self, dim, start, n))
        start += n
    return tuple(parts)


def chunk(self: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most `chunks` views of equal size along a dim; the last may be smaller."""
    if chunks < 1:
        raise ValueError(f"chunk: {chunks} chunks: at least 1 is wanted")
    size = self.shape[_dim(self, dim)] if self.ndim else 0
    if size == 0:
        return tuple(narrow(self, dim, 0, 0) for _ in range(chunks))
    return split(self, -(-size // chunks), dim)


def unbind(self: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """The views self[0], self[1], ... along a dim, which goes."""
    dim = _dim(self, dim)
    if self.ndim == 0:
        raise IndexError("unbind: a tensor without dims")
    return tuple(self[(slice(None),) * dim + (i,)] for i in range(self.shape[dim]))


def nonzero(self: Tensor) -> Tensor:
    """The indices of the elements that are not 0, in order: int64 (count, ndim). Waits for the device."""
    from .indexing import positions
    return positions(self)


def view_as(self: Tensor, other: Tensor) -> Tensor:
    """view() in the shape of another."""
    return self.view(other.shape)


def expand_as(self: Tensor, other: Tensor) -> Tensor:
    """Expanded to the shape of another."""
    return self.expand(other.shape)


# ---- new ones, places and sizes ----


def new_full(self: Tensor, size: Sequence[int], fill_value: float, *, dtype: str | None = None,
             device: str | None = None) -> Tensor:
    """A tensor of one value, of this one's dtype and device unless others are given."""
    return _asen.full(tuple(size), fill_value, dtype or self.dtype, device or self.device)


def new_zeros(self: Tensor, *size: Any, dtype: str | None = None, device: str | None = None) -> Tensor:
    """Zeros of a shape, of this one's dtype and device unless others are given."""
    return new_full(self, _sizes(size), 0, dtype=dtype, device=device)


def new_ones(self: Tensor, *size: Any, dtype: str | None = None, device: str | None = None) -> Tensor:
    """Ones of a shape, of this one's dtype and device unless others are given."""
    return new_full(self, _sizes(size), 1, dtype=dtype, device=device)


def _sizes(size: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(size[0]) if len(size) == 1 and isinstance(size[0], Sequence) else size


def cpu(self: Tensor) -> Tensor:
    """to('cpu')."""
    return self.to(device="cpu")


def cuda(self: Tensor, *, non_blocking: bool = False) -> Tensor:
    """to('cuda')."""
    return self.to(device="cuda")


def dim(self: Tensor) -> int:
    """The number of dims."""
    return self.ndim


def element_size(self: Tensor) -> int:
    """Bytes of an element."""
    return {"bool": 1, "uint8": 1, "int32": 4, "float32": 4, "float16": 2, "bfloat16": 2}.get(self.dtype, 8)


def is_floating_point(self: Tensor) -> bool:
    """Whether the dtype is a floating one."""
    return self.dtype not in _INTEGERS


def _transposed(self: Tensor) -> Tensor:
    """A matrix transposed; a tensor of fewer dims as it is."""
    if self.ndim > 2:
        raise ValueError(f"T: a matrix is wanted, not {self.ndim} dims: use permute() or mT")
    return self.permute(list(range(self.ndim))[::-1])


def _matrices_transposed(self: Tensor) -> Tensor:
    """The last two dims swapped."""
    if self.ndim < 2:
        raise ValueError(f"mT: matrices are wanted, not {self.ndim} dims")
    return self.transpose(-1, -2)


def type_as(self: Tensor, other: Tensor) -> Tensor:
    """Converted and moved to the dtype and device of another."""
    return self.to(dtype=other.dtype, device=other.device)


def _data(self: Tensor) -> Tensor:
    """The same memory without history: detach(). Set to a tensor of the same shape, it takes that one's values."""
    return self.detach()


def _set_data(self: Tensor, value: Tensor) -> None:
    if not isinstance(value, _asen.Tensor):
        raise TypeError(f"data: a Tensor is wanted, not {type(value).__name__}")
    if (value.shape, value.dtype, value.device) != (self.shape, self.dtype, self.device):
        raise ValueError(f"data of a {self.dtype} {tuple(self.shape)} on {self.device} cannot become a {value.dtype} "
                         f"{tuple(value.shape)} on {value.device}: make a new tensor or Parameter of it")
    self.detach().copy_(value.detach())


def _is_cuda(self: Tensor) -> bool:
    """Whether it lies on the GPU."""
    return self.device == "cuda"


def _contains(self: Tensor, element: Any) -> bool:
    """element in self: whether any element equals it."""
    return bool(_compared("in", self == element).any())


def _format(self: Tensor, spec: str) -> str:
    """A tensor of one element is formatted as its number."""
    return format(self.item(), spec) if spec and self.ndim == 0 else object.__format__(self, spec)


METHODS: dict[str, Any] = {function.__name__: function for function in (
    add, sub, mul, div, add_, sub_, mul_, div_, neg_, exp_, sqrt_, tanh_, sigmoid_, relu_, clamp_, masked_fill_, sign,
    abs, maximum, minimum, isnan, isinf, isfinite, any, all, where, masked_fill, eq, ne, lt, le, gt, ge, logical_not,
    amax, amin, max, min, argmax, argmin, sort, argsort, topk, var, std, norm, gather, narrow, split, chunk, unbind,
    nonzero, view_as, expand_as, type_as, new_full, new_zeros, new_ones, cpu, cuda, dim, element_size,
    is_floating_point)}
METHODS |= {"data": property(_data, _set_data), "is_cuda": property(_is_cuda), "T": property(_transposed),
            "mT": property(_matrices_transposed), "__contains__": _contains, "__mod__": _mod, "__rmod__": _rmod, "__abs__": abs,
            "__format__": _format, "__copy__": copying.shallow, "__deepcopy__": copying.deep, "__reduce_ex__": copying.reduced}
