"""Reading a pickle without running it.

A pickle is a program for a stack machine that may import and call anything. This machine is our
own: each opcode does only what is written here. Names are never imported: GLOBAL looks them up in a
fixed table, and what is not in it is an error that names it. Calls (REDUCE) reach only the functions
of that table, which build plain values and array descriptions.

Work and memory are bounded: every opcode, and every value that one makes, is charged to a budget
of MAX_MEMORY and the pickle's own length. Values nest MAX_DEPTH deep at most, never hold
themselves, and are MAX_VALUES at most to who walks through them, however they are shared. Keys are
flat and small, since hashing nested or huge ones takes long, and messages show values in brief, since
writing out shared ones does too.

The bytes are taken from the file's map. `pickletools.genops`, which would split them into opcodes,
takes longer than all the rest of loading a file.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

MAX_PICKLE = 256 << 20
MAX_MEMORY = 40 << 20
MAX_STRING = 4 << 20  # bytes, which may become four times as many
MAX_LINE = 4096
MAX_INT_BYTES = 255
MAX_DEPTH = 100
MAX_VALUES = 1 << 21
MAX_TUPLE_KEYS = 1000  # tuples of equal hash are easily made, and looking one up compares them all
_STEP, _CONTAINER = 64, 128  # what an opcode is charged, and a container beyond it

# bfloat16 by its bits: a dtype of its own, so that it is not taken for uint16.
BFLOAT16 = np.dtype([("bfloat16", "<u2")])

# Storage classes of torch (and its dtypes' names) by NumPy dtype, little-endian as files are.
STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "|i1", "ByteStorage": "|u1",
    "BoolStorage": "|b1", "BFloat16Storage": BFLOAT16,
}
UNTYPED = "torch.storage.UntypedStorage"  # bytes; a tensor over one brings its dtype
UNSIGNED = {"uint16": "<u2", "uint32": "<u4", "uint64": "<u8"}  # dtypes without a storage class
DTYPES = {
    "float64": "<f8", "double": "<f8", "float32": "<f4", "float": "<f4", "float16": "<f2", "half": "<f2",
    "int64": "<i8", "long": "<i8", "int32": "<i4", "int": "<i4", "int16": "<i2", "short": "<i2",
    "int8": "|i1", "uint8": "|u1", "bool": "|b1", "bfloat16": BFLOAT16, **UNSIGNED,
}


class Part:
    """What a pickle makes on the way to a value, and what is none by itself."""

    __slots__ = ()


class Name(Part):
    """A name of the table: what GLOBAL pushes. `call` is what REDUCE does with it, `dtype` what a
    storage class holds."""

    __slots__ = ("text", "call", "dtype")

    def __init__(self, text: str, call: Callable | None = None, dtype: np.dtype | None = None):
        self.text, self.call, self.dtype = text, call, dtype

    def __repr__(self) -> str:
        return f"<name {self.text}>"


class _Dtype(Part):
    """numpy.dtype while BUILD has not yet given its byte order."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype


class _Parameter(Part):
    """A Parameter of the oldest files, whose tensor BUILD brings."""

    __slots__ = ("data",)

    def __init__(self):
        self.data = None


_SCALARS = (str, int, float, bool, type(None), bytes)


class PickleError(Exception):
    """What is wrong with the pickle; the caller adds the file's name."""


def brief(value, nested: bool = False) -> str:
    """A value for a message, in bounded time and length: nested values may be exponentially long."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (str, bytes)):
        return repr(value[:60])
    if isinstance(value, (int, float, type(None), Name)):
        return repr(value)
    if type(value) is tuple and not nested:
        items = ", ".join(brief(item, True) for item in value[:8])
        return f"({items}{', …' if len(value) > 8 else ',' if len(value) == 1 else ''})"
    return f"<{type(value).__name__}>"


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise PickleError(message)


def _is_int(value) -> bool:
    return type(value) is int


def _ordered_dict(*args) -> OrderedDict:
    _need(len(args) <= 1, "OrderedDict with more than one argument")
    result: OrderedDict = OrderedDict()
    for pair in args[0] if args else ():
        _need(isinstance(pair, (list, tuple)) and len(pair) == 2, "OrderedDict of something but pairs")
        result[_key(pair[0])] = pair[1]
    return result


def _size(*args) -> tuple:
    _need(len(args) == 1 and isinstance(args[0], (list, tuple)) and all(map(_is_int, args[0])),
          "torch.Size of something but integers")
    return tuple(args[0])


def _device(*args) -> str:
    _need(1 <= len(args) <= 2 and isinstance(args[0], str) and all(map(_is_int, args[1:])),
          "torch.device with odd arguments")
    return ":".join(map(str, args))


def _encode(*args) -> bytes:
    """How protocol 2 spells bytes: _codecs.encode(text, 'latin1')."""
    _need(len(args) == 2 and isinstance(args[0], str) and args[1] in ("latin1", "latin-1"),
          "_codecs.encode with another codec than latin1")
    try:
        return args[0].encode("latin1")
    except UnicodeEncodeError:
        raise PickleError("bytes with characters that are none") from None


def _numpy_dtype(*args) -> _Dtype:
    _need(bool(args) and isinstance(args[0], str) and len(args[0]) == 2
          and args[0] in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"),
          f"numpy.dtype {brief(args[0]) if args else ''}")
    return _Dtype(np.dtype(args[0]))


def _numpy_scalar(*args):
    _need(len(args) == 2 and isinstance(args[0], _Dtype) and isinstance(args[1], bytes)
          and len(args[1]) == args[0].dtype.itemsize, "a NumPy scalar of another size than its dtype")
    return np.frombuffer(args[1], args[0].dtype)[0]


def _is_key(key) -> bool:
    """Whether a value hashes fast: numbers far beyond those in use could be made to collide."""
    if isinstance(key, (int, float)):
        return math.isfinite(key) and abs(key) < 1 << 60
    return isinstance(key, _SCALARS)


def _key(key):
    if not (type(key) is str or _is_key(key) or type(key) is tuple and len(key) <= 16 and all(map(_is_key, key))):
        raise PickleError(f"a {type(key).__name__} as key of a dictionary")
    return key


def _is_tensor(value) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "nbytes")


def _rebuild_parameter(*args):
    """torch._utils._rebuild_parameter(data, requires_grad, hooks[, state]): its data."""
    _need(3 <= len(args) <= 4 and _is_tensor(args[0]), "a parameter without a tensor")
    return args[0]


def _parameter(*args):
    """torch.nn.parameter.Parameter(data), or without data, which BUILD then brings."""
    _need(len(args) == 0 or len(args) <= 2 and _is_tensor(args[0]), "a parameter of something but a tensor")
    return args[0] if args else _Parameter()


def names(rebuild_tensor: Callable, rebuild_untyped: Callable) -> dict[str, Name]:
    """The whole table: every name that a pickle may mention. `rebuild_tensor(storage, offset, size,
    stride, *rest)` and `rebuild_untyped(storage, offset, size, stride, requires_grad, hooks, dtype, *rest)`
    make a tensor of what the container's persistent ids became."""
    table = [Name("torch._utils._rebuild_tensor_v2", rebuild_tensor),
             Name("torch._utils._rebuild_tensor", rebuild_tensor),
             Name("torch._utils._rebuild_tensor_v3", rebuild_untyped),
             Name(UNTYPED, dtype=np.dtype("|u1")),
             Name("torch._utils._rebuild_parameter", _rebuild_parameter),
             Name("torch._utils._rebuild_parameter_with_state", _rebuild_parameter),
             Name("torch.nn.parameter.Parameter", _parameter),
             Name("collections.OrderedDict", _ordered_dict),
             Name("torch.Size", _size),
             Name("torch.device", _device),
             Name("_codecs.encode", _encode),
             Name("numpy.dtype", _numpy_dtype),
             Name("numpy.core.multiarray.scalar", _numpy_scalar),
             Name("numpy._core.multiarray.scalar", _numpy_scalar)]
    table += [Name(f"torch.{name}", dtype=np.dtype(code)) for name, code in STORAGES.items()]
    table += [Name(f"torch.{name.replace('Storage', 'Tensor')}") for name in STORAGES]
    return {name.text: name for name in table}


class _Machine:
    """The state of one reading, and what the opcodes do to it."""

    def __init__(self, data: mmap.mmap | bytes, start: int, end: int, table: dict[str, Name],
                 persistent_load: Callable[[Any], Any]):
        self.data, self.start, self.at, self.end = data, start, start, end
        self.table, self.persistent_load = table, persistent_load
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.spent = 0  # bytes
        self.tuple_keys = 0

    def run(self, parts: type | tuple) -> Any:
        data, end = self.data, self.end
        while True:
            if self.at >= end:
                raise PickleError("it ends without STOP")
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self.result(parts)
            step = _STEPS.get(code)
            if step is None:
                known = pickletools.code2op.get(chr(code))
                raise PickleError(f"opcode {known.name if known else hex(code)} is not read")
            self.spent += _STEP
            step(self)
            if self.spent > MAX_MEMORY + self.at - self.start:
                raise PickleError(f"it asks for more than {MAX_MEMORY >> 20} MB of values beyond its length")

    def result(self, parts: type | tuple):
        _need(len(self.stack) == 1 and not self.marks, "values are left over at its end")
        _measure(self.stack[0], parts, 0, {})
        return self.stack[0]

    # the bytes

    def take(self, count: int) -> bytes:
        start, self.at = self.at, self.at + count
        if self.at > self.end:
            raise PickleError(f"it ends where {count} bytes belong")
        return self.data[start:self.at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def string(self, count: int) -> bytes:
        if count > MAX_STRING:
            raise PickleError(f"a string of {count} bytes, more than the {MAX_STRING} that are read")
        return self.take(count)

    def line(self) -> str:
        stop = self.data.find(b"\n", self.at, min(self.end, self.at + MAX_LINE))
        _need(stop >= 0, f"a line that does not end within {MAX_LINE} bytes")
        text = self.data[self.at:stop].decode("utf-8")
        self.at = stop + 1
        return text

    # the stack

    def push_string(self, value: str | bytes) -> None:
        self.spent += sys.getsizeof(value)
        self.stack.append(value)

    def push_container(self, value) -> None:
        self.spent += _CONTAINER
        self.stack.append(value)

    def pop(self):
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PickleError("a value is taken that is not there")
        return self.stack.pop()

    def top(self, kind: type, opcode: str):
        _need(bool(self.stack) and isinstance(self.stack[-1], kind),
              f"{opcode} on a {type(self.stack[-1]).__name__ if self.stack else 'missing value'}")
        return self.stack[-1]

    def pop_mark(self) -> list:
        _need(bool(self.marks), "a mark is taken that is not there")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def drop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def duplicate(self) -> None:
        _need(bool(self.stack), "DUP without a value")
        self.stack.append(self.stack[-1])

    # the memo

    def put(self, number: int) -> None:
        _need(bool(self.stack), "a value is remembered that is not there")
        self.spent += 128
        self.memo[number] = self.stack[-1]

    def get(self, number: int) -> None:
        if number not in self.memo:
            raise PickleError(f"memo {number} is read before it is written")
        value = self.memo[number]
        self.stack.append(value.data if type(value) is _Parameter and value.data is not None else value)

    # values

    def push_line_int(self) -> None:
        text = self.line()
        self.stack.append({"00": False, "01": True}[text] if text in ("00", "01") else _integer(text))

    def push_long(self, size: int) -> None:
        _need(size <= MAX_INT_BYTES, f"an integer of {size} bytes, more than the {MAX_INT_BYTES} that are read")
        self.stack.append(int.from_bytes(self.take(size), "little", signed=True))

    def push_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push_container(tuple(reversed(items)))

    def push_dict(self) -> None:
        items, target = self.pop_mark(), {}
        self.fill(target, items)
        self.push_container(target)

    def append(self) -> None:
        item = self.pop()
        self.top(list, "APPEND").append(item)

    def extend(self) -> None:
        items = self.pop_mark()
        self.top(list, "APPENDS").extend(items)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.fill(self.top(dict, "SETITEM"), [key, value])

    def set_items(self) -> None:
        items = self.pop_mark()
        self.fill(self.top(dict, "SETITEMS"), items)

    def fill(self, target: dict, items: list) -> None:
        _need(len(items) % 2 == 0, "a key without a value")
        self.spent += 256 + 128 * len(items)
        for i in range(0, len(items), 2):
            if type(items[i]) is tuple:
                self.tuple_keys += 1
                _need(self.tuple_keys <= MAX_TUPLE_KEYS, f"more than {MAX_TUPLE_KEYS} tuples as keys of dictionaries")
            target[_key(items[i])] = items[i + 1]

    # names and calls

    def find(self, module: str, name: str) -> None:
        if module == "torch" and name in DTYPES:
            self.stack.append(np.dtype(DTYPES[name]))
            return
        found = self.table.get(f"{module}.{name}")
        if found is None:
            raise PickleError(f"it asks for {module[:100]}.{name[:100]}, which is not among the names that are read")
        self.stack.append(found)

    def find_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        _need(isinstance(name, str) and isinstance(module, str), "STACK_GLOBAL without names")
        self.find(module, name)

    def call(self) -> None:
        args, name = self.pop(), self.pop()
        if not (isinstance(name, Name) and name.call is not None):
            raise PickleError(f"a call of {brief(name)}")
        _need(type(args) is tuple, "a call without a tuple of arguments")
        self.spent += 512
        for arg in args:
            if isinstance(arg, (tuple, list, dict)):
                self.spent += 256 * len(arg)
            elif isinstance(arg, (str, bytes)):
                self.spent += sys.getsizeof(arg)
        _need(self.spent <= MAX_MEMORY + self.at - self.start, "it calls for too many values")
        self.stack.append(name.call(*args))

    def build(self) -> None:
        state = self.pop()
        target = self.stack[-1] if self.stack else None
        if isinstance(target, _Dtype):
            _need(type(state) is tuple and len(state) >= 2 and state[1] in ("<", ">", "|", "="),
                  "a numpy.dtype with an odd state")
            target.dtype = target.dtype.newbyteorder(state[1])
        elif isinstance(target, OrderedDict):
            _need(type(state) is dict and (not state or len(state) == 1 and "_metadata" in state),
                  "an OrderedDict with odd attributes")
            for value in state.values():
                target._metadata = value
        elif isinstance(target, _Parameter):
            _need(type(state) is tuple and len(state) in (4, 5) and _is_tensor(state[0]) and target.data is None,
                  "a parameter with an odd state")
            target.data = self.stack[-1] = state[0]
        else:
            _need(_is_tensor(target) and type(state) is tuple and len(state) == 3,
                  f"BUILD on a {type(target).__name__ if self.stack else 'missing value'}")

    def persistent(self) -> None:
        self.spent += 256
        self.stack.append(self.persistent_load(self.pop()))


def _integer(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise PickleError(f"{text[:60]!r} is no integer") from None
    _need(value.bit_length() <= 8 * MAX_INT_BYTES, brief(value))
    return value


def _measure(value, parts: type | tuple, level: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many containers deep `value` is, and how many values it has to who walks through it, where
    shared ones count each time. Raises PickleError where either is too much (what holds itself is
    endless) or where there is a Part that is not one of `parts`. known: containers seen before, by id."""
    if type(value) not in _CONTAINERS:
        if isinstance(value, Part) and not isinstance(value, parts):
            raise PickleError(f"a {brief(value)} where a value belongs")
        return 0, 1
    if id(value) not in known:
        height, count = 0, 1
        if level < MAX_DEPTH:
            inner = list(value.values()) if isinstance(value, dict) else value
            if type(value) is OrderedDict and hasattr(value, "_metadata"):
                inner = [*inner, value._metadata]
            for item in inner:
                higher, more = _measure(item, parts, level + 1, known)
                height, count = max(height, higher), count + more
        known[id(value)] = height + 1, count
    height, count = known[id(value)]
    if level + height > MAX_DEPTH:
        raise PickleError(f"values are nested deeper than {MAX_DEPTH} levels")
    if count > MAX_VALUES:
        raise PickleError(f"more than {MAX_VALUES} values, shared ones counted each time")
    return height, count


_CONTAINERS = {dict, OrderedDict, list, tuple}
_STOP = ord(".")
_STEPS: dict[int, Callable[[_Machine], Any]] = {code[0]: step for code, step in {
    b"\x80": lambda m: m.take(1),                                                        # PROTO
    b"\x95": lambda m: m.take(8),                                                        # FRAME
    b"(": lambda m: m.marks.append(len(m.stack)),                                        # MARK
    b"0": _Machine.drop,                                                                 # POP
    b"1": _Machine.pop_mark,                                                             # POP_MARK
    b"2": _Machine.duplicate,                                                            # DUP
    b"q": lambda m: m.put(m.number(1)),                                                  # BINPUT
    b"r": lambda m: m.put(m.number(4)),                                                  # LONG_BINPUT
    b"p": lambda m: m.put(_integer(m.line())),                                           # PUT
    b"\x94": lambda m: m.put(len(m.memo)),                                               # MEMOIZE
    b"h": lambda m: m.get(m.number(1)),                                                  # BINGET
    b"j": lambda m: m.get(m.number(4)),                                                  # LONG_BINGET
    b"g": lambda m: m.get(_integer(m.line())),                                           # GET
    b"N": lambda m: m.stack.append(None),                                                # NONE
    b"\x88": lambda m: m.stack.append(True),                                             # NEWTRUE
    b"\x89": lambda m: m.stack.append(False),                                            # NEWFALSE
    b"I": _Machine.push_line_int,                                                        # INT
    b"L": lambda m: m.stack.append(_integer(m.line().removesuffix("L"))),                # LONG
    b"J": lambda m: m.stack.append(int.from_bytes(m.take(4), "little", signed=True)),    # BININT
    b"K": lambda m: m.stack.append(m.number(1)),                                         # BININT1
    b"M": lambda m: m.stack.append(m.number(2)),                                         # BININT2
    b"\x8a": lambda m: m.push_long(m.number(1)),                                         # LONG1
    b"\x8b": lambda m: m.push_long(m.number(4)),                                         # LONG4
    b"G": lambda m: m.stack.append(struct.unpack(">d", m.take(8))[0]),                   # BINFLOAT
    b"X": lambda m: m.push_string(m.string(m.number(4)).decode("utf-8", "surrogatepass")),     # BINUNICODE
    b"\x8c": lambda m: m.push_string(m.string(m.number(1)).decode("utf-8", "surrogatepass")),  # SHORT_BINUNICODE
    b"\x8d": lambda m: m.push_string(m.string(m.number(8)).decode("utf-8", "surrogatepass")),  # BINUNICODE8
    b"T": lambda m: m.push_string(m.string(m.number(4)).decode("latin1")),               # BINSTRING, of Python 2
    b"U": lambda m: m.push_string(m.string(m.number(1)).decode("latin1")),               # SHORT_BINSTRING
    b"B": lambda m: m.push_string(m.string(m.number(4))),                                # BINBYTES
    b"C": lambda m: m.push_string(m.string(m.number(1))),                                # SHORT_BINBYTES
    b"\x8e": lambda m: m.push_string(m.string(m.number(8))),                             # BINBYTES8
    b")": lambda m: m.stack.append(()),                                                  # EMPTY_TUPLE
    b"\x85": lambda m: m.push_tuple(1),                                                  # TUPLE1
    b"\x86": lambda m: m.push_tuple(2),                                                  # TUPLE2
    b"\x87": lambda m: m.push_tuple(3),                                                  # TUPLE3
    b"t": lambda m: m.push_container(tuple(m.pop_mark())),                               # TUPLE
    b"]": lambda m: m.push_container([]),                                                # EMPTY_LIST
    b"l": lambda m: m.push_container(m.pop_mark()),                                      # LIST
    b"a": _Machine.append,                                                               # APPEND
    b"e": _Machine.extend,                                                               # APPENDS
    b"}": lambda m: m.push_container({}),                                                # EMPTY_DICT
    b"d": _Machine.push_dict,                                                            # DICT
    b"s": _Machine.set_item,                                                             # SETITEM
    b"u": _Machine.set_items,                                                            # SETITEMS
    b"c": lambda m: m.find(m.line(), m.line()),                                          # GLOBAL
    b"\x93": _Machine.find_on_stack,                                                     # STACK_GLOBAL
    b"R": _Machine.call,                                                                 # REDUCE
    b"\x81": _Machine.call,                                                              # NEWOBJ
    b"b": _Machine.build,                                                                # BUILD
    b"Q": _Machine.persistent,                                                           # BINPERSID
}.items()}


def read_pickle(data: mmap.mmap | bytes, start: int, end: int, table: dict[str, Name],
                persistent_load: Callable[[Any], Any], parts: type | tuple = ()) -> tuple[Any, int]:
    """The object that the pickle at `start` of `data` describes, and where it ends, at most at `end`.

    table: see `names`. persistent_load(id): what a persistent id stands for; it raises
    PickleError for one it does not know. parts: kinds of Part that may be left in the object.
    Raises PickleError.
    """
    machine = _Machine(data, start, min(end, start + MAX_PICKLE), table, persistent_load)
    try:
        return machine.run(parts), machine.at
    except PickleError as error:
        raise PickleError(f"before byte {machine.at - start}: {error}") from None
    except (ValueError, OverflowError, TypeError) as error:
        raise PickleError(f"before byte {machine.at - start}: {error!s:.200}") from None
