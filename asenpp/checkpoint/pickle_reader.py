"""Reading a pickle without running it.

A pickle is a program for a stack machine that may import and call anything. This machine is our
own: `pickletools.genops` splits the bytes into opcodes, and each opcode does only what is written
here. Names are never imported: GLOBAL looks them up in a fixed table, and what is not in it is an
error that names it. Calls (REDUCE) reach only the functions of that table, which build plain
values and array descriptions.

Work and memory are bounded: every opcode, and every value that one makes, is charged to a budget
of MAX_MEMORY and the pickle's own length. Keys are flat and small, since hashing nested or huge ones
takes long, and messages show values in brief, since writing out shared ones does too.
"""

from __future__ import annotations

import io
import math
import pickletools
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

MAX_PICKLE = 256 << 20
MAX_MEMORY = 40 << 20
MAX_STRING = 8 << 20
MAX_INT_BITS = 255 * 8

# bfloat16 by its bits: a dtype of its own, so that it is not taken for uint16.
BFLOAT16 = np.dtype([("bfloat16", "<u2")])

# Storage classes of torch (and its dtypes' names) by NumPy dtype, little-endian as files are.
STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "|i1", "ByteStorage": "|u1",
    "BoolStorage": "|b1", "BFloat16Storage": BFLOAT16,
}
DTYPES = {
    "float64": "<f8", "double": "<f8", "float32": "<f4", "float": "<f4", "float16": "<f2", "half": "<f2",
    "int64": "<i8", "long": "<i8", "int32": "<i4", "int": "<i4", "int16": "<i2", "short": "<i2",
    "int8": "|i1", "uint8": "|u1", "bool": "|b1", "bfloat16": BFLOAT16,
}


class Name:
    """A name of the table: what GLOBAL pushes. `call` is what REDUCE does with it, `dtype` what a
    storage class holds."""

    __slots__ = ("text", "call", "dtype")

    def __init__(self, text: str, call: Callable | None = None, dtype: np.dtype | None = None):
        self.text, self.call, self.dtype = text, call, dtype

    def __repr__(self) -> str:
        return f"<name {self.text}>"


class _Dtype:
    """numpy.dtype while BUILD has not yet given its byte order."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype


class _Parameter:
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
    flat = _is_key(key) or type(key) is tuple and len(key) <= 16 and all(map(_is_key, key))
    _need(flat, f"a {type(key).__name__} as key of a dictionary")
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


def names(rebuild_tensor: Callable) -> dict[str, Name]:
    """The whole table: every name that a pickle may mention. `rebuild_tensor(storage, offset,
    size, stride, *rest)` makes a tensor of what the container's persistent ids became."""
    table = [Name("torch._utils._rebuild_tensor_v2", rebuild_tensor),
             Name("torch._utils._rebuild_tensor", rebuild_tensor),
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


class _Source:
    """The bytes [start, end) of a file, for `genops`: no length in the pickle makes it read more."""

    def __init__(self, file: BinaryIO, start: int, end: int):
        self.file, self.start, self.position, self.end = file, start, start, end
        file.seek(start)

    def tell(self) -> int:
        return self.position - self.start

    def read(self, count: int) -> bytes:
        _need(count <= MAX_STRING, f"a string of {count} bytes, more than the {MAX_STRING} that are read")
        data = self.file.read(max(0, min(count, self.end - self.position)))
        self.position += len(data)
        return data

    def readline(self) -> bytes:
        data = self.file.readline(min(MAX_STRING, self.end - self.position))
        self.position += len(data)
        return data


class _Machine:
    """The state of one reading, and a method per opcode family."""

    def __init__(self, table: dict[str, Name], persistent_load: Callable[[Any], Any], source: _Source):
        self.source = source
        self.table, self.persistent_load = table, persistent_load
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.spent = 0  # bytes

    def pop(self):
        _need(len(self.stack) > (self.marks[-1] if self.marks else 0), "a value is taken that is not there")
        return self.stack.pop()

    def top(self, kind: tuple | type, opcode: str):
        _need(bool(self.stack) and isinstance(self.stack[-1], kind),
              f"{opcode} on a {type(self.stack[-1]).__name__ if self.stack else 'missing value'}")
        return self.stack[-1]

    def pop_mark(self) -> list:
        _need(bool(self.marks), "a mark is taken that is not there")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def find(self, module: str, name: str):
        if module == "torch" and name in DTYPES:
            return np.dtype(DTYPES[name])
        found = self.table.get(f"{module}.{name}")
        _need(found is not None, f"it asks for {module}.{name}, which is not among the names that are read")
        return found

    def fill(self, target: dict, items: list) -> None:
        _need(len(items) % 2 == 0, "a key without a value")
        self.spent += 256 + 128 * len(items)
        for i in range(0, len(items), 2):
            target[_key(items[i])] = items[i + 1]

    def build(self, state) -> None:
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

    def call(self, args) -> None:
        name = self.pop()
        _need(isinstance(name, Name) and name.call is not None, f"a call of {brief(name)}")
        _need(type(args) is tuple, "a call without a tuple of arguments")
        self.spent += 512 + 256 * sum(len(arg) for arg in args if isinstance(arg, (tuple, list, dict)))
        self.spent += sum(sys.getsizeof(arg) for arg in args if isinstance(arg, (str, bytes)))
        self.charge()
        self.stack.append(name.call(*args))

    def charge(self) -> None:
        _need(self.spent <= MAX_MEMORY + self.source.tell(), f"it asks for more than {MAX_MEMORY >> 20} MB of values beyond its length")

    def step(self, opcode: str, arg) -> None:
        stack = self.stack
        self.spent += 16 if arg is None else 64
        if opcode in _PUSH_ARGUMENT:
            if type(arg) is int:
                _need(arg.bit_length() <= MAX_INT_BITS, f"{brief(arg)}")
            elif type(arg) is not float:
                self.spent += sys.getsizeof(arg)
            stack.append(arg)
        elif opcode in _CONSTANTS:
            self.spent += 64
            stack.append(_CONSTANTS[opcode]())
        elif opcode in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            _need(bool(stack), f"{opcode} without a value")
            self.spent += 128
            self.memo[len(self.memo) if opcode == "MEMOIZE" else arg] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET", "GET"):
            _need(arg in self.memo, f"memo {arg} is read before it is written")
            value = self.memo[arg]
            stack.append(value if not isinstance(value, _Parameter) or value.data is None else value.data)
        elif opcode == "MARK":
            self.marks.append(len(stack))
        elif opcode in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = [self.pop() for _ in range(int(opcode[-1]))]
            self.spent += 64
            stack.append(tuple(reversed(items)))
        elif opcode == "TUPLE":
            self.spent += 64
            stack.append(tuple(self.pop_mark()))
        elif opcode == "LIST":
            self.spent += 64
            stack.append(self.pop_mark())
        elif opcode == "DICT":
            items, target = self.pop_mark(), {}
            self.fill(target, items)
            stack.append(target)
        elif opcode == "APPEND":
            item = self.pop()
            self.top(list, opcode).append(item)
        elif opcode == "APPENDS":
            items = self.pop_mark()
            self.top(list, opcode).extend(items)
        elif opcode == "SETITEM":
            value, key = self.pop(), self.pop()
            self.fill(self.top(dict, opcode), [key, value])
        elif opcode == "SETITEMS":
            items = self.pop_mark()
            self.fill(self.top(dict, opcode), items)
        elif opcode == "GLOBAL":
            module, _, name = arg.partition(" ")
            stack.append(self.find(module, name))
        elif opcode == "STACK_GLOBAL":
            name, module = self.pop(), self.pop()
            _need(isinstance(name, str) and isinstance(module, str), "STACK_GLOBAL without names")
            stack.append(self.find(module, name))
        elif opcode in ("REDUCE", "NEWOBJ"):
            self.call(self.pop())
        elif opcode == "BUILD":
            self.build(self.pop())
        elif opcode == "BINPERSID":
            self.spent += 256
            stack.append(self.persistent_load(self.pop()))
        elif opcode == "PERSID":  # protocol 0
            self.spent += 256
            stack.append(self.persistent_load(arg))
        elif opcode == "POP":
            if self.marks and self.marks[-1] == len(stack):
                self.marks.pop()
            else:
                self.pop()
        elif opcode == "POP_MARK":
            self.pop_mark()
        elif opcode == "DUP":
            _need(bool(stack), "DUP without a value")
            stack.append(stack[-1])
        elif opcode not in ("PROTO", "FRAME"):
            raise PickleError(f"opcode {opcode} is not read")
        self.charge()


_PUSH_ARGUMENT = frozenset("""INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING
    BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES
    SHORT_BINBYTES BINBYTES8""".split())
_CONSTANTS = {"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict,
              "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}


def read_pickle(file: BinaryIO, start: int, end: int, table: dict[str, Name],
                persistent_load: Callable[[Any], Any]) -> tuple[Any, int]:
    """The object that the pickle at `start` describes, and where it ends, at most at `end`.

    table: see `names`. persistent_load(id): what a persistent id stands for; it raises
    PickleError for one it does not know. Raises PickleError.
    """
    source = _Source(file, start, min(end, start + MAX_PICKLE))

    def load(pid):
        value = persistent_load(pid)
        file.seek(source.position)
        return value

    machine = _Machine(table, load, source)
    position = 0
    try:
        for opcode, arg, position in pickletools.genops(source):
            if opcode.name == "STOP":
                _need(len(machine.stack) == 1 and not machine.marks, "values are left over at its end")
                _need(not isinstance(machine.stack[0], (Name, _Dtype, _Parameter)), "it is no value")
                return machine.stack[0], start + position + 1
            machine.step(opcode.name, arg)
    except PickleError as error:
        raise PickleError(f"at byte {position}: {error}") from None
    except (ValueError, UnicodeError, OverflowError, TypeError, IndexError) as error:
        raise PickleError(f"after byte {position}: {error!s:.200}") from None
    raise PickleError("it ends without STOP")
