"""The C core of asenpp: tensors, ops, autograd, optimizers, images, configuration.

Written by scripts/make_stubs.py from the built module: change csrc/ops/ops.def or that script, not this file.

Ops compute on float32 or float64 (on a GPU also float16 and bfloat16), of one dtype and on one device within a call, and give the dtype of
their inputs, unless they say otherwise. Errors of all ops: TypeError for arguments of the wrong kind or dtype,
ValueError for shapes and attributes that do not fit (the message names the op and the shapes),
MemoryError, NotImplementedError where a device has no kernel. Dims count from 0, or from the end
below 0. A `float` where a Tensor can stand is a 0-d tensor of the other one's dtype.
"""

import builtins
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any, Protocol, TypeAlias, overload

from numpy.typing import DTypeLike, NDArray
from typing_extensions import Buffer, CapsuleType, Self

from .composed import Extrema

# Any object with the buffer protocol (NumPy's stubs show theirs only from Python 3.12 on).
_Buffer: TypeAlias = Buffer | NDArray[Any]
# (line, content, plain): see parse_yaml.
_YamlNode: TypeAlias = tuple[int, str | list[_YamlNode] | dict[str, tuple[int, _YamlNode]], bool]
# What gives views; tensors, lists and arrays of integers or bools that pick and mask; tuples of these.
_Index: TypeAlias = int | builtins.slice | None | Tensor | list[Any] | NDArray[Any] | tuple[Any, ...]

class _SupportsDLPack(Protocol):
    def __dlpack__(self) -> Any: ...

class Tensor:
    """An array of one dtype on one device that can remember how it was made.

    Tensor(data): from a tensor (shares memory), a NumPy array (shares memory where it can), or anything NumPy makes
    an array of.
    """

    # ---- properties ----

    __array_priority__: float

    @property
    def shape(self) -> tuple[builtins.int, ...]:
        """Sizes of the dims, a tuple of int."""

    @property
    def ndim(self) -> builtins.int:
        """Number of dims."""

    @property
    def data(self) -> Tensor:
        """The same memory without history: detach(). Set to a tensor of the same shape, it takes that one's values."""
    @data.setter
    def data(self, value: Tensor) -> None: ...

    @property
    def is_cuda(self) -> builtins.bool:
        """Whether it lies on the GPU."""

    @property
    def T(self) -> Tensor:
        """A matrix transposed; a tensor of fewer dims as it is."""

    @property
    def mT(self) -> Tensor:
        """The last two dims swapped."""

    @property
    def dtype(self) -> str:
        """Name of the element type: 'float32', 'float64', 'int64', 'uint8', ..."""

    @property
    def device(self) -> str:
        """Name of the device: 'cpu' or 'cuda'."""

    @property
    def requires_grad(self) -> builtins.bool:
        """Whether backward computes a gradient for or through this tensor."""
    @requires_grad.setter
    def requires_grad(self, value: builtins.bool) -> None: ...

    @property
    def is_leaf(self) -> builtins.bool:
        """Whether this tensor is not the recorded result of an op."""

    @property
    def _version(self) -> builtins.int:
        """A number that moves after every write into this memory; all views share it. A NumPy or DLPack view that could
        write counts as one write when it ends.
        """

    @property
    def _memory(self) -> tuple[builtins.int, builtins.int]:
        """(storage, offset): equal where two tensors begin at the same element of the same memory."""

    @property
    def grad(self) -> Tensor | None:
        """The gradient that backward accumulated here, or None. Assign None to clear it."""
    @grad.setter
    def grad(self, value: Tensor | None) -> None: ...

    # ---- making, values, dtypes and devices ----

    def __new__(cls, data: Any) -> Self: ...

    def numpy(self) -> NDArray[Any]:
        """The values as a NumPy array that shares memory (on the CPU)."""

    def item(self) -> Any:
        """The one element as a Python number."""

    def tolist(self) -> Any:
        """The values as nested lists."""

    def to(self, target: str | Tensor | None = None, dtype: str | None = None, device: str | None = None, *,
           non_blocking: builtins.bool = False, copy: builtins.bool = False) -> Tensor:
        """to(dtype, device or tensor whose both are meant): the tensor converted or moved; itself where nothing
        changes, but for copy=True. Gradients flow back, also between devices.
        """

    def float(self) -> Tensor:
        """to('float32')."""

    def double(self) -> Tensor:
        """to('float64')."""

    def half(self) -> Tensor:
        """to('float16')."""

    def bfloat16(self) -> Tensor:
        """to('bfloat16')."""

    def long(self) -> Tensor:
        """to('int64'): truncates."""

    def int(self) -> Tensor:
        """to('int32'): truncates."""

    def bool(self) -> Tensor:
        """to('bool'): whether an element is not 0."""

    def clone(self) -> Tensor:
        """A dense copy; gradients flow through it."""

    def contiguous(self) -> Tensor:
        """The tensor in the dense layout (channels-last for 4 dims)."""

    def is_contiguous(self) -> builtins.bool:
        """Whether the tensor is in the dense layout."""

    def detach(self) -> Tensor:
        """The same values and memory, without gradient."""

    # ---- writes in place ----

    def copy_(self, source: Any, /) -> Tensor:
        """Copies another tensor's or array's values into this one (broadcast)."""

    def fill_(self, value: builtins.float | builtins.bool, /) -> Tensor:
        """Sets every element to a number."""

    def zero_(self) -> Tensor:
        """Sets every element to 0."""

    # ---- gradients ----

    def backward(self, gradient: Tensor | None = None, retain_graph: builtins.bool = False) -> None:
        """backward(gradient=None, retain_graph=False): adds the gradients of this tensor to .grad of the leaves."""

    def requires_grad_(self, on: builtins.bool = True, /) -> Self:
        """Sets requires_grad and returns the tensor."""

    # ---- shape and views ----

    @overload
    def size(self) -> tuple[builtins.int, ...]:
        """size(): the shape; size(dim): the size of one dim."""
    @overload
    def size(self, dim: builtins.int, /) -> builtins.int: ...

    def stride(self) -> tuple[builtins.int, ...]:
        """Strides in elements."""

    def storage_offset(self) -> builtins.int:
        """Elements before the first one in the storage."""

    def numel(self) -> builtins.int:
        """Number of elements."""

    def data_ptr(self) -> builtins.int:
        """Address of the first element. Who has it can write there: nothing is kept of this memory's values from here
        on.
        """

    @overload
    def view(self, shape: Sequence[builtins.int], /) -> Tensor:
        """reshape(); a copy that the layout asks for cannot be written in place, since the write would not reach this
        tensor.
        """
    @overload
    def view(self, *shape: builtins.int) -> Tensor: ...

    def flatten(self, start_dim: builtins.int = 0, end_dim: builtins.int = -1) -> Tensor:
        """flatten(start_dim=0, end_dim=-1): the dims from start_dim to end_dim as one."""

    def unsqueeze(self, dim: builtins.int) -> Tensor:
        """unsqueeze(dim): with a dim of size 1 inserted."""

    def squeeze(self, dim: builtins.int | Sequence[builtins.int] | None = None) -> Tensor:
        """squeeze(dim=None): without the dims of size 1, or without those of the given ones that have size 1."""

    def transpose(self, a: builtins.int, b: builtins.int, /) -> Tensor:
        """transpose(a, b): two dims swapped."""

    def t(self) -> Tensor:
        """A matrix transposed."""

    # ---- protocols, indexing ----

    def __array__(self, dtype: DTypeLike | None = None, copy: builtins.bool | None = None) -> NDArray[Any]: ...

    def __dlpack__(self, *, stream: Any = None, max_version: tuple[builtins.int, builtins.int] | None = None,
                   dl_device: tuple[builtins.int, builtins.int] | None = None,
                   copy: builtins.bool | None = None) -> CapsuleType: ...

    def __dlpack_device__(self) -> tuple[builtins.int, builtins.int]: ...

    def __len__(self) -> builtins.int: ...

    def __iter__(self) -> Iterator[Tensor]: ...

    def __getitem__(self, key: _Index, /) -> Tensor: ...

    def __setitem__(self, key: _Index, value: Any, /) -> None: ...

    def __hash__(self) -> builtins.int: ...

    # ---- operators ----

    def __lt__(self, other: Tensor | builtins.float, /) -> Tensor: ...

    def __le__(self, other: Tensor | builtins.float, /) -> Tensor: ...

    def __eq__(self, other: object, /) -> Tensor: ...  # type: ignore[override]

    def __ne__(self, other: object, /) -> Tensor: ...  # type: ignore[override]

    def __gt__(self, other: Tensor | builtins.float, /) -> Tensor: ...

    def __ge__(self, other: Tensor | builtins.float, /) -> Tensor: ...

    def __and__(self, value: Tensor | builtins.bool, /) -> Tensor: ...

    def __rand__(self, value: Tensor | builtins.bool, /) -> Tensor: ...

    def __or__(self, value: Tensor | builtins.bool, /) -> Tensor: ...

    def __ror__(self, value: Tensor | builtins.bool, /) -> Tensor: ...

    def __xor__(self, value: Tensor | builtins.bool, /) -> Tensor: ...

    def __rxor__(self, value: Tensor | builtins.bool, /) -> Tensor: ...

    def __invert__(self) -> Tensor: ...

    def __iadd__(self, value: Tensor | builtins.float, /) -> Self: ...

    def __isub__(self, value: Tensor | builtins.float, /) -> Self: ...

    def __imul__(self, value: Tensor | builtins.float, /) -> Self: ...

    def __itruediv__(self, value: Tensor | builtins.float, /) -> Self: ...

    def __ifloordiv__(self, value: Tensor | builtins.int, /) -> Self: ...

    def __iand__(self, value: Tensor | builtins.bool, /) -> Self: ...

    def __ior__(self, value: Tensor | builtins.bool, /) -> Self: ...

    def __ixor__(self, value: Tensor | builtins.bool, /) -> Self: ...

    def __bool__(self) -> builtins.bool: ...

    def __float__(self) -> builtins.float: ...

    def __int__(self) -> builtins.int: ...

    def __neg__(self) -> Tensor: ...

    def __add__(self, value: Tensor | builtins.float, /) -> Tensor: ...

    def __radd__(self, value: Tensor | builtins.float, /) -> Tensor: ...

    def __sub__(self, value: Tensor | builtins.float, /) -> Tensor: ...

    def __rsub__(self, value: Tensor | builtins.float, /) -> Tensor: ...

    def __mul__(self, value: Tensor | builtins.float, /) -> Tensor: ...

    def __rmul__(self, value: Tensor | builtins.float, /) -> Tensor: ...

    def __truediv__(self, value: Tensor | builtins.float, /) -> Tensor: ...

    def __rtruediv__(self, value: Tensor | builtins.float, /) -> Tensor: ...

    def __floordiv__(self, value: Tensor | builtins.int, /) -> Tensor: ...

    def __rfloordiv__(self, value: Tensor | builtins.int, /) -> Tensor: ...

    def __matmul__(self, value: Tensor, /) -> Tensor: ...

    def __rmatmul__(self, value: Tensor, /) -> Tensor: ...

    def __pow__(self, value: builtins.float, mod: None = None, /) -> Tensor: ...

    # ---- composed of ops (asenpp/composed.py) ----

    def add(self, other: Tensor | builtins.float, *, alpha: builtins.float = 1) -> Tensor:
        """self + alpha * other, broadcast."""

    def sub(self, other: Tensor | builtins.float, *, alpha: builtins.float = 1) -> Tensor:
        """self - alpha * other, broadcast."""

    def mul(self, other: Tensor | builtins.float) -> Tensor:
        """self * other, broadcast."""

    def div(self, other: Tensor | builtins.float) -> Tensor:
        """self / other, broadcast; not of integers."""

    def add_(self, other: Tensor | builtins.float, *, alpha: builtins.float = 1) -> Tensor:
        """self += alpha * other, in place."""

    def sub_(self, other: Tensor | builtins.float, *, alpha: builtins.float = 1) -> Tensor:
        """self -= alpha * other, in place."""

    def mul_(self, other: Tensor | builtins.float) -> Tensor:
        """self *= other, in place."""

    def div_(self, other: Tensor | builtins.float) -> Tensor:
        """self /= other, in place; not of integers."""

    def neg_(self) -> Tensor:
        """-self, in place."""

    def exp_(self) -> Tensor:
        """exp(self), in place."""

    def sqrt_(self) -> Tensor:
        """sqrt(self), in place."""

    def tanh_(self) -> Tensor:
        """tanh(self), in place."""

    def sigmoid_(self) -> Tensor:
        """sigmoid(self), in place."""

    def relu_(self) -> Tensor:
        """max(self, 0), in place."""

    def clamp_(self, min: builtins.float | None = None, max: builtins.float | None = None) -> Tensor:
        """clamp(self, min, max), in place."""

    def masked_fill_(self, mask: Tensor, value: Tensor | builtins.float) -> Tensor:
        """masked_fill(self, mask, value), in place; the mask broadcasts to self."""

    def sign(self) -> Tensor:
        """-1, 0 or 1, of the same dtype; 0 for NaN. No gradient: it is 0."""

    def abs(self) -> Tensor:
        """|x|; the gradient is sign(x), 0 at 0."""

    def maximum(self, other: Tensor) -> Tensor:
        """The larger of two elements, broadcast; NaN where one is. Equal ones share the gradient equally."""

    def minimum(self, other: Tensor) -> Tensor:
        """The smaller of two elements, broadcast; NaN where one is. Equal ones share the gradient equally."""

    def isnan(self) -> Tensor:
        """Whether an element is NaN: bool."""

    def isinf(self) -> Tensor:
        """Whether an element is infinite: bool."""

    def isfinite(self) -> Tensor:
        """Whether an element is neither infinite nor NaN: bool."""

    def any(self, dim: builtins.int | Sequence[builtins.int] | None = None, keepdim: builtins.bool = False) -> Tensor:
        """Whether an element along the dims (all for None) is not 0: bool."""

    def all(self, dim: builtins.int | Sequence[builtins.int] | None = None, keepdim: builtins.bool = False) -> Tensor:
        """Whether no element along the dims (all for None) is 0: bool."""

    def where(self, condition: Tensor, other: Tensor | builtins.float) -> Tensor:
        """self where the condition (bool) holds, else other; all broadcast."""

    def masked_fill(self, mask: Tensor, value: Tensor | builtins.float) -> Tensor:
        """A copy with `value` where the mask (bool, broadcast) holds."""

    def eq(self, other: Tensor | builtins.float) -> Tensor:
        """self == other, element by element, broadcast: bool."""

    def ne(self, other: Tensor | builtins.float) -> Tensor:
        """self != other, element by element, broadcast: bool."""

    def lt(self, other: Tensor | builtins.float) -> Tensor:
        """self < other, element by element, broadcast: bool."""

    def le(self, other: Tensor | builtins.float) -> Tensor:
        """self <= other, element by element, broadcast: bool."""

    def gt(self, other: Tensor | builtins.float) -> Tensor:
        """self > other, element by element, broadcast: bool."""

    def ge(self, other: Tensor | builtins.float) -> Tensor:
        """self >= other, element by element, broadcast: bool."""

    def logical_not(self) -> Tensor:
        """Whether an element is 0: bool."""

    def amax(self, dim: builtins.int | Sequence[builtins.int] | None = None, keepdim: builtins.bool = False) -> Tensor:
        """The maximum over dims (all for None); NaN where there is one. Equal maxima share the gradient equally."""

    def amin(self, dim: builtins.int | Sequence[builtins.int] | None = None, keepdim: builtins.bool = False) -> Tensor:
        """The minimum over dims (all for None); NaN where there is one. Equal minima share the gradient equally."""

    def max(self, dim: builtins.int | Tensor | None = None, keepdim: builtins.bool = False) -> Any:
        """max(): the maximum of all, equal ones share the gradient. max(dim): (values, indices) of the first
        maximum along a dim, which gets the gradient. max(other): maximum(other).
        """

    def min(self, dim: builtins.int | Tensor | None = None, keepdim: builtins.bool = False) -> Any:
        """min(): the minimum of all, equal ones share the gradient. min(dim): (values, indices) of the first
        minimum along a dim, which gets the gradient. min(other): minimum(other).
        """

    def argmax(self, dim: builtins.int | None = None, keepdim: builtins.bool = False) -> Tensor:
        """Where the first maximum is, along a dim or (None) in the flattened tensor: int64. NaN counts as maximum."""

    def argmin(self, dim: builtins.int | None = None, keepdim: builtins.bool = False) -> Tensor:
        """Where the first minimum is, along a dim or (None) in the flattened tensor: int64. NaN counts as minimum."""

    def sort(self, dim: builtins.int = -1, descending: builtins.bool = False, stable: builtins.bool = True) -> Extrema:
        """(values, indices) in order along a dim; always stable; NaN is larger than all. Gradients flow to values."""

    def argsort(self, dim: builtins.int = -1, descending: builtins.bool = False,
                stable: builtins.bool = True) -> Tensor:
        """The indices of sort(): int64."""

    def topk(self, k: builtins.int, dim: builtins.int = -1, largest: builtins.bool = True,
             sorted: builtins.bool = True) -> Extrema:
        """(values, indices) of the k largest (or smallest) along a dim, in order; equal ones by their places."""

    def var(self, dim: builtins.int | Sequence[builtins.int] | builtins.bool | None = None,
            unbiased: builtins.bool | None = None, keepdim: builtins.bool = False, *,
            correction: builtins.float | None = None) -> Tensor:
        """The variance over dims (all for None): the sum of squared deviations divided by n - correction (default 1).

        unbiased: True is correction=1, False correction=0; var(False) is var(unbiased=False).
        """

    def std(self, dim: builtins.int | Sequence[builtins.int] | builtins.bool | None = None,
            unbiased: builtins.bool | None = None, keepdim: builtins.bool = False, *,
            correction: builtins.float | None = None) -> Tensor:
        """The square root of var(), with its arguments. The gradient of one that is 0 is 0."""

    def norm(self, p: builtins.float | str = 2, dim: builtins.int | Sequence[builtins.int] | None = None,
             keepdim: builtins.bool = False) -> Tensor:
        """The p-norm over dims (all for None): (sum |x|^p)^(1/p); inf: max |x|; -inf: min |x|; 0: the count of
        elements that are not 0. p may be "fro", which is 2. Squares are scaled: nothing overflows on the way.
        The gradient of a norm that is 0 is 0.
        """

    def gather(self, dim: builtins.int, index: Tensor) -> Tensor:
        """y[i][j][k] = self[index[i][j][k]][j][k] for dim 0, and so on: of the shape of index (int64), which is no
        larger than self in the other dims. Gradients are added up at the index.
        """

    def narrow(self, dim: builtins.int, start: builtins.int, length: builtins.int) -> Tensor:
        """The view [start, start + length) of a dim."""

    def split(self, split_size: builtins.int | Sequence[builtins.int], dim: builtins.int = 0) -> tuple[Tensor, ...]:
        """Views along a dim: of split_size elements each (the last may be smaller), or of the sizes of a list."""

    def chunk(self, chunks: builtins.int, dim: builtins.int = 0) -> tuple[Tensor, ...]:
        """At most `chunks` views of equal size along a dim; the last may be smaller."""

    def unbind(self, dim: builtins.int = 0) -> tuple[Tensor, ...]:
        """The views self[0], self[1], ... along a dim, which goes."""

    def nonzero(self) -> Tensor:
        """The indices of the elements that are not 0, in order: int64 (count, ndim). Waits for the device."""

    def view_as(self, other: Tensor) -> Tensor:
        """view() in the shape of another."""

    def expand_as(self, other: Tensor) -> Tensor:
        """Expanded to the shape of another."""

    def type_as(self, other: Tensor) -> Tensor:
        """Converted and moved to the dtype and device of another."""

    def new_full(self, size: Sequence[builtins.int], fill_value: builtins.float, *, dtype: str | None = None,
                 device: str | None = None) -> Tensor:
        """A tensor of one value, of this one's dtype and device unless others are given."""

    def new_zeros(self, *size: Any, dtype: str | None = None, device: str | None = None) -> Tensor:
        """Zeros of a shape, of this one's dtype and device unless others are given."""

    def new_ones(self, *size: Any, dtype: str | None = None, device: str | None = None) -> Tensor:
        """Ones of a shape, of this one's dtype and device unless others are given."""

    def cpu(self) -> Tensor:
        """to('cpu')."""

    def cuda(self, *, non_blocking: builtins.bool = False) -> Tensor:
        """to('cuda')."""

    def dim(self) -> builtins.int:
        """The number of dims."""

    def element_size(self) -> builtins.int:
        """Bytes of an element."""

    def is_floating_point(self) -> builtins.bool:
        """Whether the dtype is a floating one."""

    def __contains__(self, element: Any) -> builtins.bool: ...

    def __mod__(self, other: Tensor | builtins.int) -> Tensor: ...

    def __rmod__(self, other: Tensor | builtins.int) -> Tensor: ...

    def __abs__(self) -> Tensor: ...

    def __format__(self, spec: str) -> str: ...

    def __copy__(self) -> Any: ...

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any: ...

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]: ...

    # ---- ops: this tensor is the first input ----

    def neg(self) -> Tensor:
        """-x."""

    def exp(self) -> Tensor:
        """e to the x."""

    def log(self) -> Tensor:
        """Natural logarithm."""

    def sqrt(self) -> Tensor:
        """Square root."""

    def pow(self, exponent: builtins.float) -> Tensor:
        """x to a constant power."""

    def clamp(self, min: builtins.float = ..., max: builtins.float = ...) -> Tensor:
        """x limited to [min, max]; the gradient is 1 inside and at the bounds, 0 outside."""

    def relu(self) -> Tensor:
        """max(x, 0)."""

    def tanh(self) -> Tensor:
        """Hyperbolic tangent."""

    def sigmoid(self) -> Tensor:
        """1 / (1 + exp(-x))."""

    def copy(self, dtype: str | None = None) -> Tensor:
        """A dense copy of x, converted to a dtype (default: its own)."""

    @overload
    def sum(self, dims: builtins.int | Sequence[builtins.int] | None = None, keepdim: builtins.bool = False) -> Tensor:
        """Sum over dims (all where none are given)."""
    @overload
    def sum(self, *, dim: builtins.int | Sequence[builtins.int], keepdim: builtins.bool = False) -> Tensor: ...

    @overload
    def mean(self, dims: builtins.int | Sequence[builtins.int] | None = None, keepdim: builtins.bool = False) -> Tensor:
        """Mean over dims (all where none are given)."""
    @overload
    def mean(self, *, dim: builtins.int | Sequence[builtins.int], keepdim: builtins.bool = False) -> Tensor: ...

    def matmul(self, b: Tensor, trans_a: builtins.bool = False, trans_b: builtins.bool = False) -> Tensor:
        """Matrix product of (M, K) and (K, N), or of batches (B, M, K) and (B, K, N); trans_a, trans_b: the last two
        dims are swapped first.
        """

    def linear(self, w: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (N, K) times w (M, K) transposed, plus bias (M)."""

    def softmax(self, dim: builtins.int = -1) -> Tensor:
        """Softmax over one dim."""

    def log_softmax(self, dim: builtins.int = -1) -> Tensor:
        """Logarithm of the softmax over one dim."""

    def conv2d(self, w: Tensor, bias: Tensor | None = None, stride: builtins.int | Sequence[builtins.int] = 1,
               padding: builtins.int | Sequence[builtins.int] = 0, dilation: builtins.int | Sequence[builtins.int] = 1,
               groups: builtins.int = 1) -> Tensor:
        """2-D cross-correlation of x (N, C, H, W) with w (O, C/groups, KH, KW)."""

    def max_pool2d(self, kernel_size: builtins.int | Sequence[builtins.int],
                   stride: builtins.int | Sequence[builtins.int],
                   padding: builtins.int | Sequence[builtins.int] = 0) -> tuple[Tensor, Tensor]:
        """Maximum in windows of x (N, C, H, W); index (int32): h * W + w of the maximum in its plane, the first where
        equal. Padding counts as -inf.
        """

    def batch_norm(self, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor,
                   residual: Tensor | None = None, training: builtins.bool = True, groups: builtins.int = 1,
                   momentum: builtins.float = 0.1, eps: builtins.float = 1e-5,
                   relu: builtins.bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Batch norm of x (N, C, H, W) with the batch in `groups` equal consecutive parts, each with statistics of its
        own (biased variance); then + residual, then ReLU. mean, invstd: (groups, C). Training moves running_mean and
        running_var (unbiased variance) in place, group by group in order; inference reads them (mean, invstd are
        then (1, C)). Ioffe and Szegedy 2015.
        """

    def cat(self, tensors: Sequence[Tensor], /, dim: builtins.int = 0) -> Tensor:
        """Joins tensors along a dim."""

    def embedding(self, index: Tensor) -> Tensor:
        """Rows of weight (R, D) at index (any shape, int64): (..., D)."""

    def dropout(self, p: builtins.float, seed: builtins.int, offset: builtins.int = 0) -> Tensor:
        """Zeroes elements with probability p and scales the others by 1/(1-p). Element i (in memory order) is kept
        where the counter-based generator of (seed, offset + i) says so, so the same call repeats the same mask.
        """

    def cross_entropy(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over the batch of -log softmax(logits)[target]; logits (N, K), target (N) int64."""

    def cosine_similarity(self, b: Tensor, eps: builtins.float = 1e-8) -> tuple[Tensor, Tensor, Tensor]:
        """Row by row a.b / (max(|a|, eps) max(|b|, eps)) of (N, D); also the two clamped norms, (N)."""

    def normalize(self, eps: builtins.float = 1e-12) -> tuple[Tensor, Tensor]:
        """Rows of (N, D) divided by max(norm, eps); also those divisors, (N)."""

    def spatial_attention(self, z: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attribute-aware spatial attention (ASEN++ eq. 1-4): k = tanh(z) (B, Cc, H, W); m = softmax over H*W of sum_c
        q_c k_c / sqrt(Cc) (B, H, W); v = sum_hw m x (B, C).
        """

    def arc_margin(self, target: Tensor, s: builtins.float, m: builtins.float,
                   easy_margin: builtins.bool = False) -> Tensor:
        """Additive angular margin (Deng et al. 2019) on cosines (N, K): the target's becomes phi = c cos m - sqrt(1 -
        c^2) sin m where c > cos(pi - m), else c - m sin(pi - m) (easy_margin: phi where c > 0, else c); all times s.
        """

    @overload
    def reshape(self, shape: Sequence[builtins.int]) -> Tensor:
        """x in another shape; copies where the layout asks for it."""
    @overload
    def reshape(self, *shape: builtins.int) -> Tensor: ...

    @overload
    def permute(self, dims: Sequence[builtins.int]) -> Tensor:
        """x with its dims in another order."""
    @overload
    def permute(self, *dims: builtins.int) -> Tensor: ...
    @overload
    def permute(self, *, dim: builtins.int | Sequence[builtins.int]) -> Tensor: ...

    def slice(self, start: builtins.int | Sequence[builtins.int] | None = None,
              stop: builtins.int | Sequence[builtins.int] | None = None,
              step: builtins.int | Sequence[builtins.int] | None = None) -> Tensor:
        """x[start:stop:step] for every dim; positive steps."""

    @overload
    def expand(self, shape: Sequence[builtins.int]) -> Tensor:
        """x broadcast to a shape."""
    @overload
    def expand(self, *shape: builtins.int) -> Tensor: ...

# ---- tensors of arrays, memory and ops by name ----

def from_numpy(array: NDArray[Any], /) -> Tensor:
    """A tensor over a NumPy array's memory; a copy where the array is read-only or has odd strides."""

def to_numpy_readonly(tensor: Tensor, /) -> NDArray[Any]:
    """The values of a tensor on the CPU as an array that cannot be written: numpy() lends the memory for writing, after
    which nothing made from the values can be kept until the array is gone.
    """

def owned(data: Any, /) -> Tensor:
    """A tensor, an array or what NumPy makes an array of as a dense tensor, without gradient, of memory that is ours: a
    copy where others could write there.
    """

def from_dlpack(source: _SupportsDLPack | CapsuleType, /) -> Tensor:
    """A tensor over the memory of any object with __dlpack__ (CPU)."""

def apply(name: str, tensors: list[Any] | tuple[Any, ...], attrs: dict[str, Any] = ..., /) -> Any:
    """apply(name, tensors, attrs={}): any op of the table by name; absent inputs are None."""

def apply_(name: str, tensors: list[Any] | tuple[Any, ...], attrs: dict[str, Any] = ..., /) -> Tensor:
    """apply_(name, tensors, attrs={}): any op by name, in place: the first tensor becomes the (first) result, as part
    of the graph where that is recorded, and is returned.
    """

def op_specs() -> list[dict[str, Any]]:
    """The rows of the op table as dicts: what the tests run over."""

def choose(condition: Tensor, a: Tensor | float, b: Tensor | float, /) -> Tensor:
    """choose(condition, a, b): where() of tensors or numbers, of which a and b are brought to one dtype."""

def promote(a: Tensor | float, b: Tensor | float, /) -> tuple[Tensor, Tensor]:
    """promote(a, b): both as tensors of the dtype that a + b has."""

def full(shape: tuple[int, ...], value: float, dtype: str, device: str = "cpu", /) -> Tensor:
    """full(shape, value, dtype, device='cpu'): a tensor of one value; integers are exact."""

def storage_id(tensor: Tensor, /) -> int:
    """A number that tells the tensor's storage from all others, past and present."""

def storage_bytes(tensor: Tensor, /) -> Tensor:
    """All bytes of the tensor's storage as a uint8 tensor that shares them."""

def storage_view(tensor: Tensor, dtype: str, shape: tuple[int, ...], stride: tuple[int, ...] | None = None,
                 offset: int = 0, /) -> Tensor:
    """storage_view(tensor, dtype, shape, stride=None, offset=0): another tensor over the storage of `tensor`, without
    gradient. Strides (default: of the dense layout) and offset are in elements of the dtype.
    """

# ---- modes of a thread ----

def set_grad_enabled(on: bool, /) -> bool:
    """Turns recording on or off for this thread; returns what it was."""

def is_grad_enabled() -> bool:
    """Whether this thread records ops for backward."""

def enter_mode(before: dict[int, list[Any]], read: Callable[[], Any], write: Callable[[Any], Any], value: Any = ...,
               /) -> None:
    """enter_mode(before, read, write[, value]): keeps what read() gives for this thread, then write(value)."""

def leave_mode(before: dict[int, list[Any]], write: Callable[[Any], Any], kind: Any = ..., error: Any = ...,
               trace: Any = ..., /) -> None:
    """leave_mode(before, write, *exception): writes what enter_mode kept last."""

# ---- threads, memory, devices ----

def set_num_threads(count: int, /) -> None:
    """Threads for compute; 0: what affinity and the cgroup allow."""

def get_num_threads() -> int:
    """Threads for compute."""

def memory_stats(device: str = "cpu", /) -> dict[str, int]:
    """memory_stats(device='cpu'): bytes current, peak, cached, and system_requests (blocks)."""

def reset_peak_memory(device: str = "cpu", /) -> None:
    """Sets the peak of memory_stats to the current use."""

def empty_cache(device: str = "cpu", /) -> None:
    """Gives cached blocks back to the system."""

def synchronize(device: str = "cpu", /) -> None:
    """synchronize(device='cpu'): waits until its queue is empty."""

def load_plugin(path: str | bytes | PathLike[Any], /) -> None:
    """Loads a device from a shared library built for this core."""

def memory_info(device: str = "cpu", /) -> tuple[int, int] | None:
    """memory_info(device='cpu'): bytes (free, total) of a device's own memory, or None."""

def set_option(device: str, name: str, value: int, /) -> None:
    """set_option(device, name, value): a switch of a device, such as 'tf32' of cuda."""

# ---- which kernels run ----

def set_kernel_paths(*names: str) -> None:
    """Which CPU kernels may run: any of 'fast', 'onednn', 'reference'; or 'all'. For tests."""

def dispatch_counts(reset: bool = False, /) -> dict[str, dict[str, int]]:
    """dispatch_counts(reset=False): how often each path ran each op."""

# ---- optimizers, and what is kept of parameters ----

def optim_step(kind: str, params: list[Tensor], grads: list[Tensor], state1: list[Tensor] | None,
               state2: list[Tensor] | None, step: int, lr: float, momentum: float = 0.0, dampening: float = 0.0,
               beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0,
               nesterov: bool = False) -> None:
    """One optimizer step over lists of tensors, in place: see asenpp.optim."""

def unscale(tensors: list[Tensor], factor: float, /) -> bool:
    """unscale(tensors, factor): multiplies them in place; whether all elements were finite."""

def edition(*tensors: Tensor | None) -> bytes | None:
    """edition(*tensors): bytes that are equal as long as the tensors are the same and nothing wrote into their memory;
    ask before reading what is to be kept under them. None where something outside may write at any time (memory of a
    NumPy array, a numpy() or DLPack view that is alive): then nothing can be kept. An argument may be None.
    """

def packed_filters() -> int:
    """How often a filter was brought into oneDNN's layout. For tests."""

# ---- configuration ----

def parse_yaml(source: str | PathLike[Any] | _Buffer, name: str | None = None) -> _YamlNode | None:
    """The one YAML document in `source`, a path or bytes, as (line, content, plain), or None where
    there is none. `content` is a scalar's text (str; what it means is left to the caller), a list
    of such triples, or a dict of key text -> (the key's line, triple). `plain` is true for a scalar
    without quotes. Aliases are expanded. `name` stands in messages, for bytes '<bytes>' by default.

    Raises ValueError, beginning with 'name:line:', for bad syntax, duplicate keys, tags that ask
    for a type, or more than 4 MiB of text, 100,000 values, 64 levels, 1,000 anchors; OSError.
    """

# ---- metrics ----

def metrics_rank(scores: _Buffer, order: _Buffer, /) -> None:
    """order (n,) int64 := indices of scores (n,) float64 by falling score, ties by index."""

def metrics_average_precision(scores: _Buffer, relevant: _Buffer, /) -> float:
    """AP of scores (n,) float64 with relevant (n,) bool."""

def metrics_retrieval(queries: _Buffer, candidates: _Buffer, q_values: _Buffer, c_values: _Buffer, table: _Buffer,
                      threads: int, progress: Callable[[int, int], object] | None, /) -> None:
    """table (Q, 6) float64 := AP, recall@1, recall@5, recall@10, precision@10 and MAP@R of
    each of queries (Q, D) float32 over candidates (C, D) float32; relevant are the
    candidates with c_values (C,) int64 equal to q_values (Q,) int64.
    progress(done, total) is called after each block of queries, unless None.
    """

def metrics_confusion(truth: _Buffer, predicted: _Buffer, counts: _Buffer, /) -> None:
    """counts (K, K) int64 := items by true class (row) and predicted class (column)."""

# ---- images ----

def jpeg_size(data: _Buffer, /) -> tuple[int, int]:
    """(height, width) from the header of a JPEG file in memory.

    OSError: broken or far too large; NotImplementedError: a kind that Pillow has to decode.
    """

def jpeg_decode(data: _Buffer, /) -> tuple[int, int, bytearray]:
    """(height, width, bytearray of RGB pixels) of a JPEG file in memory.

    OSError: broken, truncated or far too large; NotImplementedError: a kind that Pillow has to decode.
    """

def image_resize(image: _Buffer, out: _Buffer, height: int, width: int, y: int = 0, x: int = 0, /) -> None:
    """Writes the window at (y, x) of the uint8 image resized to height x width as Pillow's BILINEAR
    does; the window's size is that of out, uint8 (rows, columns, 3).
    """

def map_resize(map: _Buffer, out: _Buffer, /) -> None:
    """Resizes the float32 map (height, width) to the shape of out, as OpenCV's INTER_LINEAR in float32."""

def local_box(map: _Buffer, global_size: int, threshold: float, height: int, width: int, /) -> tuple[int, int, int]:
    """(x, y, d): the square that the float32 attention map (rows, columns) marks in an image of
    height x width pixels.
    """

def global_batch(images: Sequence[_Buffer], slots: Sequence[int], out: _Buffer, mean: tuple[float, float, float],
                 std: tuple[float, float, float], /) -> None:
    """The global transform of uint8 images (height, width, 3): image i goes to out[slots[i]], out being
    (count, size, size, 3), float32, or uint8 for pixels that are not normalised. mean and std are tuples of three.
    """

def local_batch(images: Sequence[_Buffer], maps: _Buffer, global_size: int, threshold: float, out: _Buffer,
                mean: tuple[float, float, float], std: tuple[float, float, float], /) -> list[tuple[int, int, int]]:
    """The local transform of uint8 images (height, width, 3) with float32 maps (count, rows, columns),
    into out, (count, size, size, 3) as for global_batch. Returns the squares as a list of (x, y, d).
    """

def augment_draw(image_id: int, height: int, width: int, size: int, settings: tuple[float, float, float, float],
                 seed: int, epoch: int, /) -> tuple[float, ...]:
    """What is drawn for an image of height x width pixels that is shown at size x size: (mirrored, x, y, width, height
    of
    what is shown, x, y, width, height of what is erased from it, brightness, contrast, saturation, 0), floats.
    settings: (flip, crop, erase, jitter).
    """

def augment_batch(images: Sequence[_Buffer], ids: Sequence[int], slots: Sequence[int], out: _Buffer, draws: _Buffer,
                  settings: tuple[float, float, float, float], seed: int, epoch: int, mean: tuple[float, float, float],
                  std: tuple[float, float, float], /) -> None:
    """As global_batch, augmented: what is drawn depends on (seed, epoch, ids[i]) and the image's size. settings: (flip,
    crop, erase, jitter). What was drawn goes to draws[slots[i]], float64 (count, 13): see augment_draw; the last is
    the
    mean grey that contrast went by.
    """

def augment_local_batch(images: Sequence[_Buffer], maps: _Buffer, draws: _Buffer, global_size: int, threshold: float,
                        out: _Buffer, mean: tuple[float, float, float], std: tuple[float, float, float],
                        /) -> list[tuple[int, int, int, int]]:
    """As local_batch, for maps of views that augment_batch made and of which it wrote `draws`: what a map marks is cut
    out
    of the original image, mirrored and jittered as the view was. Returns the parts as a list of (x, y, width,
    height).
    """

# ---- ops (csrc/ops/ops.def) ----

def add(a: Tensor | float, b: Tensor | float) -> Tensor:
    """a + b, broadcast."""

def sub(a: Tensor | float, b: Tensor | float) -> Tensor:
    """a - b, broadcast."""

def mul(a: Tensor | float, b: Tensor | float) -> Tensor:
    """a * b, broadcast."""

def div(a: Tensor | float, b: Tensor | float) -> Tensor:
    """a / b, broadcast."""

def neg(x: Tensor) -> Tensor:
    """-x."""

def exp(x: Tensor) -> Tensor:
    """e to the x."""

def log(x: Tensor) -> Tensor:
    """Natural logarithm."""

def sqrt(x: Tensor) -> Tensor:
    """Square root."""

def pow(x: Tensor, exponent: float) -> Tensor:
    """x to a constant power."""

def clamp(x: Tensor, min: float = ..., max: float = ...) -> Tensor:
    """x limited to [min, max]; the gradient is 1 inside and at the bounds, 0 outside."""

def clamp_grad(dy: Tensor, x: Tensor, min: float = ..., max: float = ...) -> Tensor:
    """dy where min <= x <= max, else 0."""

def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""

def relu_grad(dy: Tensor, y: Tensor) -> Tensor:
    """dy where y > 0, else 0."""

def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent."""

def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""

def copy(x: Tensor, dtype: str | None = None) -> Tensor:
    """A dense copy of x, converted to a dtype (default: its own)."""

def compare(a: Tensor, b: Tensor, relation: int) -> Tensor:
    """Whether a < b, a <= b, a == b, a != b, a > b or a >= b (relation 0 to 5), broadcast: bool."""

def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where the condition (bool) holds, else b; all broadcast."""

@overload
def sum(x: Tensor, dims: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """Sum over dims (all where none are given)."""
@overload
def sum(x: Tensor, *, dim: int | Sequence[int], keepdim: bool = False) -> Tensor: ...

@overload
def mean(x: Tensor, dims: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """Mean over dims (all where none are given)."""
@overload
def mean(x: Tensor, *, dim: int | Sequence[int], keepdim: bool = False) -> Tensor: ...

@overload
def max(x: Tensor, dims: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """Maximum over dims; the gradient is shared equally between equal maxima."""
@overload
def max(x: Tensor, *, dim: int | Sequence[int], keepdim: bool = False) -> Tensor: ...

@overload
def max_grad(dy: Tensor, x: Tensor, y: Tensor, dims: int | Sequence[int] | None = None,
             keepdim: bool = False) -> Tensor:
    """Gradient of max: dy / (number of elements equal to the maximum) where x == y, else 0."""
@overload
def max_grad(dy: Tensor, x: Tensor, y: Tensor, *, dim: int | Sequence[int], keepdim: bool = False) -> Tensor: ...

def matmul(a: Tensor, b: Tensor, trans_a: bool = False, trans_b: bool = False) -> Tensor:
    """Matrix product of (M, K) and (K, N), or of batches (B, M, K) and (B, K, N); trans_a, trans_b: the last two dims
    are swapped first.
    """

def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (N, K) times w (M, K) transposed, plus bias (M)."""

def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Softmax over one dim."""

def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Logarithm of the softmax over one dim."""

def conv2d(x: Tensor, w: Tensor, bias: Tensor | None = None, stride: int | Sequence[int] = 1,
           padding: int | Sequence[int] = 0, dilation: int | Sequence[int] = 1, groups: int = 1) -> Tensor:
    """2-D cross-correlation of x (N, C, H, W) with w (O, C/groups, KH, KW)."""

def conv2d_grad_input(dy: Tensor, w: Tensor, stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0,
                      dilation: int | Sequence[int] = 1, groups: int = 1, *, size: int | Sequence[int]) -> Tensor:
    """Gradient of conv2d with respect to x, whose height and width are `size`."""

def conv2d_grad_weight(dy: Tensor, x: Tensor, stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0,
                       dilation: int | Sequence[int] = 1, groups: int = 1, *, size: int | Sequence[int]) -> Tensor:
    """Gradient of conv2d with respect to w, whose height and width are `size`."""

def conv2d_fused(x: Tensor, w: Tensor, bias: Tensor | None = None, residual: Tensor | None = None,
                 stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0, dilation: int | Sequence[int] = 1,
                 groups: int = 1, relu: bool = False) -> Tensor:
    """Inference: conv2d + bias + residual, then ReLU, in one pass."""

def max_pool2d(x: Tensor, kernel_size: int | Sequence[int], stride: int | Sequence[int],
               padding: int | Sequence[int] = 0) -> tuple[Tensor, Tensor]:
    """Maximum in windows of x (N, C, H, W); index (int32): h * W + w of the maximum in its plane, the first where
    equal. Padding counts as -inf.
    """

def max_pool2d_grad(dy: Tensor, index: Tensor, size: int | Sequence[int], kernel_size: int | Sequence[int],
                    stride: int | Sequence[int], padding: int | Sequence[int] = 0) -> Tensor:
    """Gradient of max_pool2d with respect to x, whose height and width are `size`: dy added up at index."""

def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor,
               residual: Tensor | None = None, training: bool = True, groups: int = 1, momentum: float = 0.1,
               eps: float = 1e-5, relu: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm of x (N, C, H, W) with the batch in `groups` equal consecutive parts, each with statistics of its own
    (biased variance); then + residual, then ReLU. mean, invstd: (groups, C). Training moves running_mean and
    running_var (unbiased variance) in place, group by group in order; inference reads them (mean, invstd are then
    (1, C)). Ioffe and Szegedy 2015.
    """

def batch_norm_grad(dy: Tensor, x: Tensor, y: Tensor, weight: Tensor, mean: Tensor, invstd: Tensor, training: bool,
                    groups: int = 1, relu: bool = False, residual: bool = False) -> tuple[Tensor, ...]:
    """Gradient of batch_norm; with relu, y says where it was cut. dresidual is there only where residual is set."""

def cat(tensors: Sequence[Tensor], /, dim: int = 0) -> Tensor:
    """Joins tensors along a dim."""

def slice_grad(dy: Tensor, shape: int | Sequence[int], start: int | Sequence[int] | None = None,
               step: int | Sequence[int] | None = None) -> Tensor:
    """Zeros of `shape` with dy at start, start + step, ...: the gradient of slice."""

def embedding(weight: Tensor, index: Tensor) -> Tensor:
    """Rows of weight (R, D) at index (any shape, int64): (..., D)."""

def embedding_grad(dy: Tensor, index: Tensor, rows: int) -> Tensor:
    """Rows of dy added up at index: (rows, D), in the order of index."""

def sort(x: Tensor, dim: int = -1, descending: bool = False, k: int = -1, nan_first: bool = False) -> tuple[Tensor,
         Tensor]:
    """The first k elements (-1: all) in order along a dim, equal ones in the order in which they lie, and where they
    were (int64). NaN is the largest; with nan_first it comes first in ascending order too.
    """

def gather(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """x at index (int64) along a dim: of the shape of index, which is no larger than x in the other dims."""

def gather_grad(dy: Tensor, index: Tensor, shape: int | Sequence[int], dim: int) -> Tensor:
    """Zeros of `shape` with dy added up at index along the dim, in the order of index: the gradient of gather."""

def dropout(x: Tensor, p: float, seed: int, offset: int = 0) -> Tensor:
    """Zeroes elements with probability p and scales the others by 1/(1-p). Element i (in memory order) is kept where
    the counter-based generator of (seed, offset + i) says so, so the same call repeats the same mask.
    """

def normalize_pixels(x: Tensor, table: Tensor) -> Tensor:
    """table[c, x] for 8-bit pixels x (N, C, H, W) and a table (C, 256) of what each value becomes in its channel; of
    the table's dtype.
    """

def cross_entropy(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the batch of -log softmax(logits)[target]; logits (N, K), target (N) int64."""

def cross_entropy_grad(dy: Tensor, softmax: Tensor, target: Tensor) -> Tensor:
    """dy * (softmax - onehot(target)) / N."""

def cosine_similarity(a: Tensor, b: Tensor, eps: float = 1e-8) -> tuple[Tensor, Tensor, Tensor]:
    """Row by row a.b / (max(|a|, eps) max(|b|, eps)) of (N, D); also the two clamped norms, (N)."""

def cosine_similarity_grad(dy: Tensor, a: Tensor, b: Tensor, y: Tensor, norm_a: Tensor, norm_b: Tensor,
                           eps: float = 1e-8) -> tuple[Tensor, Tensor]:
    """Gradient of cosine_similarity; where a norm is clamped it counts as constant."""

def normalize(x: Tensor, eps: float = 1e-12) -> tuple[Tensor, Tensor]:
    """Rows of (N, D) divided by max(norm, eps); also those divisors, (N)."""

def normalize_grad(dy: Tensor, y: Tensor, norm: Tensor, eps: float = 1e-12) -> Tensor:
    """Gradient of normalize: (dy - y (y.dy)) / norm, or dy / norm where the norm was clamped."""

def spatial_attention(x: Tensor, z: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attribute-aware spatial attention (ASEN++ eq. 1-4): k = tanh(z) (B, Cc, H, W); m = softmax over H*W of sum_c q_c
    k_c / sqrt(Cc) (B, H, W); v = sum_hw m x (B, C).
    """

def spatial_attention_grad(dv: Tensor, dm: Tensor | None, x: Tensor, q: Tensor, m: Tensor, k: Tensor) -> tuple[Tensor,
                           Tensor, Tensor]:
    """Gradient of spatial_attention."""

def arc_margin(cosine: Tensor, target: Tensor, s: float, m: float, easy_margin: bool = False) -> Tensor:
    """Additive angular margin (Deng et al. 2019) on cosines (N, K): the target's becomes phi = c cos m - sqrt(1 - c^2)
    sin m where c > cos(pi - m), else c - m sin(pi - m) (easy_margin: phi where c > 0, else c); all times s.
    """

def arc_margin_grad(dy: Tensor, cosine: Tensor, target: Tensor, s: float, m: float,
                    easy_margin: bool = False) -> Tensor:
    """Gradient of arc_margin; 1 - c^2 is clamped to at least 1e-12 in the slope of the root."""

@overload
def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """x in another shape; copies where the layout asks for it."""
@overload
def reshape(x: Tensor, *shape: int) -> Tensor: ...

@overload
def permute(x: Tensor, dims: Sequence[int]) -> Tensor:
    """x with its dims in another order."""
@overload
def permute(x: Tensor, *dims: int) -> Tensor: ...
@overload
def permute(x: Tensor, *, dim: int | Sequence[int]) -> Tensor: ...

def slice(x: Tensor, start: int | Sequence[int] | None = None, stop: int | Sequence[int] | None = None,
          step: int | Sequence[int] | None = None) -> Tensor:
    """x[start:stop:step] for every dim; positive steps."""

@overload
def expand(x: Tensor, shape: Sequence[int]) -> Tensor:
    """x broadcast to a shape."""
@overload
def expand(x: Tensor, *shape: int) -> Tensor: ...
