"""Reading a pickle without running it.

A pickle is a program for a stack machine that may import and call anything. This machine is our
own: `pickletools.genops` splits the bytes into opcodes, and each opcode does only what is written
here. Names are never imported: GLOBAL looks them up in a fixed table, and what is not in it is an
error that names it. Calls (REDUCE) reach only the functions of that table, which build plain
values and array descriptions. Work and memory are bounded by the pickle's own length: values are
shared, never copied, and keys are flat, since hashing nested ones can take exponential time.
"""

from __future__ import annotations

import io
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

MAX_PICKLE = 256 << 20

# Storage classes of torch (and its dtypes' names) by NumPy dtype, little-endian as files are.
STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "|i1", "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
DTYPES = {
    "float64": "<f8", "double": "<f8", "float32": "<f4", "float": "<f4", "float16": "<f2", "half": "<f2",
    "int64": "<i8", "long": "<i8", "int32": "<i4", "int": "<i4", "int16": "<i2", "short": "<i2",
    "int8": "|i1", "uint8": "|u1", "bool": "|b1",
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


class _Mark:
    __slots__ = ()


_MARK = _Mark()
_SCALARS = (str, int, float, bool, type(None), bytes)


class PickleError(Exception):
    """What is wrong with the pickle; the caller adds the file's name."""


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
          f"numpy.dtype {args[0] if args else ''!r}")
    return _Dtype(np.dtype(args[0]))


def _numpy_scalar(*args):
    _need(len(args) == 2 and isinstance(args[0], _Dtype) and isinstance(args[1], bytes)
          and len(args[1]) == args[0].dtype.itemsize, "a NumPy scalar of another size than its dtype")
    return np.frombuffer(args[1], args[0].dtype)[0]


def _key(key):
    flat = isinstance(key, _SCALARS) or (
        type(key) is tuple and len(key) <= 16 and all(isinstance(item, _SCALARS) for item in key))
    _need(flat, f"a {type(key).__name__} as key of a dictionary")
    return key


def _parameter(*args):
    """torch._utils._rebuild_parameter(data, requires_grad, hooks[, state]): its data."""
    _need(3 <= len(args) <= 4 and isinstance(args[0], np.ndarray), "a parameter without a tensor")
    return args[0]


def names(rebuild_tensor: Callable) -> dict[str, Name]:
    """The whole table: every name that a pickle may mention. `rebuild_tensor(storage, offset,
    size, stride, *rest)` makes a tensor of what the container's persistent ids became."""
    table = [Name("torch._utils._rebuild_tensor_v2", rebuild_tensor),
             Name("torch._utils._rebuild_tensor", rebuild_tensor),
             Name("torch._utils._rebuild_parameter", _parameter),
             Name("torch._utils._rebuild_parameter_with_state", _parameter),
             Name("collections.OrderedDict", _ordered_dict),
             Name("torch.Size", _size),
             Name("torch.device", _device),
             Name("_codecs.encode", _encode),
             Name("numpy.dtype", _numpy_dtype),
             Name("numpy.core.multiarray.scalar", _numpy_scalar),
             Name("numpy._core.multiarray.scalar", _numpy_scalar)]
    table += [Name(f"torch.{name}", dtype=np.dtype(code)) for name, code in STORAGES.items()]
    return {name.text: name for name in table}


class _Machine:
    """The state of one reading, and a method per opcode family."""

    def __init__(self, table: dict[str, Name], persistent_load: Callable[[Any], Any]):
        self.table, self.persistent_load = table, persistent_load
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

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
        for i in range(0, len(items), 2):
            target[_key(items[i])] = items[i + 1]

    def build(self, state) -> None:
        target = self.top((OrderedDict, _Dtype), "BUILD")
        if isinstance(target, _Dtype):
            _need(type(state) is tuple and len(state) >= 2 and state[1] in ("<", ">", "|", "="),
                  "a numpy.dtype with an odd state")
            target.dtype = target.dtype.newbyteorder(state[1])
        else:
            _need(type(state) is dict and set(state) <= {"_metadata"}, "an OrderedDict with odd attributes")
            for value in state.values():
                target._metadata = value

    def call(self, args) -> None:
        name = self.pop()
        _need(isinstance(name, Name) and name.call is not None, f"a call of {name!r:.80}")
        _need(type(args) is tuple, "a call without a tuple of arguments")
        self.stack.append(name.call(*args))

    def step(self, opcode: str, arg) -> None:
        stack = self.stack
        if opcode in _PUSH_ARGUMENT:
            stack.append(arg)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode]())
        elif opcode in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            _need(bool(stack), f"{opcode} without a value")
            self.memo[len(self.memo) if opcode == "MEMOIZE" else arg] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET", "GET"):
            _need(arg in self.memo, f"memo {arg} is read before it is written")
            stack.append(self.memo[arg])
        elif opcode == "MARK":
            self.marks.append(len(stack))
        elif opcode in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = [self.pop() for _ in range(int(opcode[-1]))]
            stack.append(tuple(reversed(items)))
        elif opcode == "TUPLE":
            stack.append(tuple(self.pop_mark()))
        elif opcode == "LIST":
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
            stack.append(self.persistent_load(self.pop()))
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


_PUSH_ARGUMENT = frozenset("""INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING
    BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES
    SHORT_BINBYTES BINBYTES8""".split())
_CONSTANTS = {"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict,
              "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}


def read_pickle(data: bytes, table: dict[str, Name], persistent_load: Callable[[Any], Any]) -> tuple[Any, int]:
    """The object that the pickle at the start of `data` describes, and where it ends.

    table: see `names`. persistent_load(id): what a persistent id stands for; it raises
    PickleError for one it does not know. Raises PickleError.
    """
    _need(len(data) <= MAX_PICKLE, f"it has {len(data)} bytes, more than the {MAX_PICKLE} that are read")
    machine = _Machine(table, persistent_load)
    position = 0
    try:
        for opcode, arg, position in pickletools.genops(io.BytesIO(data)):
            if opcode.name == "STOP":
                _need(len(machine.stack) == 1 and not machine.marks, "values are left over at its end")
                return machine.stack[0], position + 1
            machine.step(opcode.name, arg)
    except PickleError as error:
        raise PickleError(f"at byte {position}: {error}") from None
    except (ValueError, UnicodeError, OverflowError, TypeError, IndexError) as error:
        raise PickleError(f"after byte {position}: {error}") from None
    raise PickleError("it ends without STOP")

