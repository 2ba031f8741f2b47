"""Writing objects as a pickle (protocol 2) in the shape that torch.save gives them.

Only what `torch.load(weights_only=True)` takes back can be written: dictionaries, OrderedDicts
(with `_metadata`), lists, tuples, strings, bytes, numbers, None, and arrays, which become CPU
tensors over storages of their own. The same object met twice is written once, and arrays over the
same memory share a storage.
"""

from __future__ import annotations

import struct
from collections import OrderedDict

import numpy as np

from .. import _asen
from .errors import CheckpointError
from .pickle_reader import BFLOAT16, STORAGES, UNSIGNED, UNTYPED
from .tensors import BFloat16

MAX_DEPTH = 100  # four Python frames a level
_BATCH = 1000
_STORAGE_OF = {np.dtype(code): ("torch", name) for name, code in STORAGES.items()}
_UNTYPED_OF = {np.dtype(code): name for name, code in UNSIGNED.items()}


def as_array(value) -> np.ndarray | None:
    """An array for what is one: NumPy's, or anything with numpy() or __array__; else None. BFloat16
    becomes an array of dtype BFLOAT16."""
    if isinstance(value, BFloat16):
        return value.bits.astype("<u2", copy=False).view(BFLOAT16)
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, type):
        return None
    detach = getattr(value, "detach", None)
    if callable(detach):
        value = detach()
    if isinstance(value, _asen.Tensor):  # read only: nothing is lent
        return _asen.to_numpy_readonly(value.to(device="cpu"))
    if callable(getattr(value, "numpy", None)):
        return np.asarray(value.numpy())
    if hasattr(value, "__array__"):
        return np.asarray(value)
    return None


class Pickler:
    """Turns one object into `data` (the pickle) and `storages` (arrays in the order of their keys
    "0", "1", …; each is written as contiguous little-endian elements). Raises CheckpointError,
    naming the place in the object, for what cannot be written."""

    def __init__(self, obj):
        self.out = bytearray(b"\x80\x02")
        self.storages: list[np.ndarray] = []
        self._memo: dict = {}
        self._alive: list = []       # objects whose id() stands in the memo
        self._storage_keys: dict = {}
        self._open: set[int] = set()  # containers being written, to see cycles
        self._path: list[str] = []
        self._write(obj)
        self.out += b"."
        self.data = bytes(self.out)

    def _fail(self, message: str):
        where = "".join(self._path) or "the object itself"
        raise CheckpointError(f"cannot save {where.lstrip('.')}: {message}")

    # memo: (kind, id or value) -> number

    def _recall(self, key) -> bool:
        number = self._memo.get(key)
        if number is None:
            return False
        self.out += b"h" + bytes([number]) if number < 256 else b"j" + struct.pack("<I", number)
        return True

    def _remember(self, key, keep=None) -> None:
        number = self._memo[key] = len(self._memo)
        if keep is not None:
            self._alive.append(keep)
        self.out += b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)

    # values

    def _write(self, value) -> None:
        if value is None:
            self.out += b"N"
        elif isinstance(value, (bool, np.bool_)):
            self.out += b"\x88" if value else b"\x89"
        elif isinstance(value, (int, np.integer)):
            self._int(int(value))
        elif isinstance(value, (float, np.floating)):
            self.out += b"G" + struct.pack(">d", float(value))
        elif isinstance(value, str):
            self._str(str(value))
        elif isinstance(value, bytes):
            self._bytes(value)
        elif isinstance(value, dict):
            self._container(value, self._dict)
        elif isinstance(value, list):
            self._container(value, self._list)
        elif isinstance(value, tuple):
            self._container(value, self._tuple)
        else:
            self._tensor(value)

    def _int(self, value: int) -> None:
        if 0 <= value < 1 << 8:
            self.out += b"K" + bytes([value])
        elif 0 <= value < 1 << 16:
            self.out += b"M" + struct.pack("<H", value)
        elif -1 << 31 <= value < 1 << 31:
            self.out += b"J" + struct.pack("<i", value)
        else:
            size = value.bit_length() // 8 + 1
            if size > 255:
                self._fail(f"an integer of {size} bytes, more than 255")
            self.out += b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)

    def _str(self, value: str) -> None:
        if not self._recall(("str", value)):
            try:
                data = value.encode("utf-8", "surrogatepass")
            except UnicodeEncodeError as error:
                self._fail(str(error))
            self.out += b"X" + struct.pack("<I", len(data)) + data
            self._remember(("str", value))

    def _bytes(self, value: bytes) -> None:
        if not self._recall(("bytes", value)):
            self._global("_codecs", "encode")
            self._str(value.decode("latin1"))
            self._str("latin1")
            self.out += b"\x86R"
            self._remember(("bytes", value))

    def _global(self, module: str, name: str) -> None:
        if not self._recall(("global", module, name)):
            self.out += f"c{module}\n{name}\n".encode()
            self._remember(("global", module, name))

    def _container(self, value, write) -> None:
        key = ("object", id(value))
        if self._recall(key):
            return
        if id(value) in self._open:
            self._fail("it contains itself")
        if len(self._open) >= MAX_DEPTH:
            self._fail(f"it lies deeper than {MAX_DEPTH} levels")
        self._open.add(id(value))
        write(value)
        self._open.discard(id(value))

    def _member(self, label: str, value) -> None:
        self._path.append(label)
        self._write(value)
        self._path.pop()

    def _dict(self, value: dict) -> None:
        ordered = isinstance(value, OrderedDict)
        if ordered:
            self._empty_ordered_dict()
        else:
            self.out += b"}"
        items = list(value.items())
        for start in range(0, len(items), _BATCH):
            self.out += b"("
            for key, item in items[start:start + _BATCH]:
                self._key(key)
                self._member(f".{key}", item)
            self.out += b"u"
        metadata = getattr(value, "_metadata", None) if ordered else None
        if metadata is not None:
            self.out += b"}"
            self._str("_metadata")
            self._member("._metadata", metadata)
            self.out += b"sb"
        self._remember(("object", id(value)), value)

    def _empty_ordered_dict(self) -> None:
        self._global("collections", "OrderedDict")
        self.out += b")R"

    def _key(self, key) -> None:
        scalars = (str, int, float, bytes, type(None))
        if not (isinstance(key, scalars) or type(key) is tuple and all(isinstance(k, scalars) for k in key)):
            self._fail(f"a {type(key).__name__} as key of a dictionary")
        self._write(key)

    def _list(self, value: list) -> None:
        self.out += b"]"
        for start in range(0, len(value), _BATCH):
            self.out += b"("
            for i, item in enumerate(value[start:start + _BATCH], start):
                self._member(f"[{i}]", item)
            self.out += b"e"
        self._remember(("object", id(value)), value)

    def _tuple(self, value: tuple) -> None:
        if len(value) == 0:
            self.out += b")"
            return
        if len(value) > 3:
            self.out += b"("
        for i, item in enumerate(value):
            self._member(f"[{i}]", item)
        self.out += {1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(value), b"t")
        self._remember(("object", id(value)), value)

    # tensors: _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks), or where the dtype
    # has no storage class, _rebuild_tensor_v3(storage of bytes, …, hooks, dtype)

    def _tensor(self, value) -> None:
        if self._recall(("object", id(value))):
            return
        try:
            array = as_array(value)
        except TypeError as error:  # a dtype that NumPy has not
            self._fail(str(error))
        if array is None:
            self._fail(f"a {type(value).__module__}.{type(value).__qualname__} cannot be saved; "
                       "make it a dict, list, str, number or array")
        dtype = array.dtype.newbyteorder("<")
        untyped = _UNTYPED_OF.get(dtype)
        if untyped is None and dtype not in _STORAGE_OF:
            self._fail(f"arrays of dtype {array.dtype} cannot be saved")
        self._global("torch._utils", "_rebuild_tensor_v3" if untyped else "_rebuild_tensor_v2")
        self.out += b"(("
        self._str("storage")
        self._global(*(UNTYPED.rsplit(".", 1) if untyped else _STORAGE_OF[dtype]))
        self._str(self._storage_key(array))
        self._str("cpu")
        self._int(array.nbytes if untyped else array.size)
        self.out += b"tQ"
        self._int(0)
        strides, step = [], 1
        for n in reversed(array.shape):
            strides.append(step)
            step *= max(n, 1)
        self._ints(array.shape)
        self._ints(tuple(reversed(strides)))
        self.out += b"\x89"
        self._empty_ordered_dict()
        if untyped:
            self._global("torch", untyped)
        self.out += b"tR"
        self._remember(("object", id(value)), value)

    def _ints(self, values: tuple) -> None:
        if len(values) == 0:
            self.out += b")"
            return
        if len(values) > 3:
            self.out += b"("
        for value in values:
            self._int(value)
        self.out += {1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(values), b"t")

    def _storage_key(self, array: np.ndarray) -> str:
        """The key of a storage with this array's elements in C order: the one over the same
        memory if it is there. Arrays stay alive in `storages`, so an address is theirs alone."""
        form = array.size if array.flags.c_contiguous else (array.shape, array.strides)
        identity = (array.__array_interface__["data"][0], array.dtype, form)
        key = self._storage_keys.get(identity) if array.size else None
        if key is None:
            key = str(len(self.storages))
            self.storages.append(array)
            self._storage_keys[identity] = key
        return key
