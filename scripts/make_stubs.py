"""Writes asenpp/_asen.pyi, the type stub of the C core, from the built module.

    make dev && python scripts/make_stubs.py [FILE]

Ops come from `_asen.op_specs()`: a row of csrc/ops/ops.def becomes a function and (most of them) a method
of Tensor, with the rules of csrc/python/ops.c for what may be left out and what is positional. Methods that
are written in Python have the signatures of asenpp/composed.py. The signatures of everything else stand
below, as C parses them. Docstrings are the module's. tests/test_stubs.py fails where the committed stub is
not what this script writes, or is not what the module does.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STUB = ROOT / "asenpp" / "_asen.pyi"
WIDTH = 120

HEADER = '''"""{doc}

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
'''

# What is no op, as C parses it; a line that begins with # is the heading of those below it. `float`, `int`, `bool` and `slice` are methods of Tensor, `max`, `sum`, `pow` and
# `slice` functions of the module: Python's own are written
# builtins.float and so on in the class (in_class does that).
# `__iter__` stands for what __len__ and __getitem__ do: type checkers want it.
PROPERTIES = """
shape: tuple[int, ...]
ndim: int
data: Tensor = Tensor
is_cuda: bool
T: Tensor
mT: Tensor
dtype: str
device: str
requires_grad: bool = bool
is_leaf: bool
_version: int
_memory: tuple[int, int]
grad: Tensor | None = Tensor | None
"""  # after "=": what may be assigned

METHODS = """
# Making, values, dtypes and devices
__new__(cls, data: Any) -> Self
numpy(self) -> NDArray[Any]
item(self) -> Any
tolist(self) -> Any
to(self, target: str | Tensor | None = None, dtype: str | None = None, device: str | None = None, *, non_blocking: bool = False, copy: bool = False) -> Tensor
float(self) -> Tensor
double(self) -> Tensor
half(self) -> Tensor
bfloat16(self) -> Tensor
long(self) -> Tensor
int(self) -> Tensor
bool(self) -> Tensor
clone(self) -> Tensor
contiguous(self) -> Tensor
is_contiguous(self) -> bool
detach(self) -> Tensor
# Writes in place
copy_(self, source: Any, /) -> Tensor
fill_(self, value: float | bool, /) -> Tensor
zero_(self) -> Tensor
# Gradients
backward(self, gradient: Tensor | None = None, retain_graph: bool = False) -> None
requires_grad_(self, on: bool = True, /) -> Self
# Shape and views
size(self) -> tuple[int, ...]
size(self, dim: int, /) -> int
stride(self) -> tuple[int, ...]
storage_offset(self) -> int
numel(self) -> int
data_ptr(self) -> int
view(self, shape: Sequence[int], /) -> Tensor
view(self, *shape: int) -> Tensor
flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor
unsqueeze(self, dim: int) -> Tensor
squeeze(self, dim: int | Sequence[int] | None = None) -> Tensor
transpose(self, a: int, b: int, /) -> Tensor
t(self) -> Tensor
# Protocols, indexing
__array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]
__dlpack__(self, *, stream: Any = None, max_version: tuple[int, int] | None = None,
    dl_device: tuple[int, int] | None = None, copy: bool | None = None) -> CapsuleType
__dlpack_device__(self) -> tuple[int, int]
__len__(self) -> int
__iter__(self) -> Iterator[Tensor]
__getitem__(self, key: _Index, /) -> Tensor
__setitem__(self, key: _Index, value: Any, /) -> None
__hash__(self) -> int
# Operators
__lt__(self, other: Tensor | float, /) -> Tensor
__le__(self, other: Tensor | float, /) -> Tensor
__eq__(self, other: object, /) -> Tensor
__ne__(self, other: object, /) -> Tensor
__gt__(self, other: Tensor | float, /) -> Tensor
__ge__(self, other: Tensor | float, /) -> Tensor
__and__(self, value: Tensor | bool, /) -> Tensor
__rand__(self, value: Tensor | bool, /) -> Tensor
__or__(self, value: Tensor | bool, /) -> Tensor
__ror__(self, value: Tensor | bool, /) -> Tensor
__xor__(self, value: Tensor | bool, /) -> Tensor
__rxor__(self, value: Tensor | bool, /) -> Tensor
__invert__(self) -> Tensor
__iadd__(self, value: Tensor | float, /) -> Self
__isub__(self, value: Tensor | float, /) -> Self
__imul__(self, value: Tensor | float, /) -> Self
__itruediv__(self, value: Tensor | float, /) -> Self
__ifloordiv__(self, value: Tensor | int, /) -> Self
__iand__(self, value: Tensor | bool, /) -> Self
__ior__(self, value: Tensor | bool, /) -> Self
__ixor__(self, value: Tensor | bool, /) -> Self
__bool__(self) -> bool
__float__(self) -> float
__int__(self) -> int
__neg__(self) -> Tensor
__add__(self, value: Tensor | float, /) -> Tensor
__radd__(self, value: Tensor | float, /) -> Tensor
__sub__(self, value: Tensor | float, /) -> Tensor
__rsub__(self, value: Tensor | float, /) -> Tensor
__mul__(self, value: Tensor | float, /) -> Tensor
__rmul__(self, value: Tensor | float, /) -> Tensor
__truediv__(self, value: Tensor | float, /) -> Tensor
__rtruediv__(self, value: Tensor | float, /) -> Tensor
__floordiv__(self, value: Tensor | int, /) -> Tensor
__rfloordiv__(self, value: Tensor | int, /) -> Tensor
__matmul__(self, value: Tensor, /) -> Tensor
__rmatmul__(self, value: Tensor, /) -> Tensor
__pow__(self, value: float, mod: None = None, /) -> Tensor
"""

FUNCTIONS = """
# Tensors of arrays, memory and ops by name
from_numpy(array: NDArray[Any], /) -> Tensor
to_numpy_readonly(tensor: Tensor, /) -> NDArray[Any]
owned(data: Any, /) -> Tensor
from_dlpack(source: _SupportsDLPack | CapsuleType, /) -> Tensor
apply(name: str, tensors: list[Any] | tuple[Any, ...], attrs: dict[str, Any] = ..., /) -> Any
apply_(name: str, tensors: list[Any] | tuple[Any, ...], attrs: dict[str, Any] = ..., /) -> Tensor
op_specs() -> list[dict[str, Any]]
choose(condition: Tensor, a: Tensor | float, b: Tensor | float, /) -> Tensor
promote(a: Tensor | float, b: Tensor | float, /) -> tuple[Tensor, Tensor]
full(shape: tuple[int, ...], value: float, dtype: str, device: str = "cpu", /) -> Tensor
storage_id(tensor: Tensor, /) -> int
storage_bytes(tensor: Tensor, /) -> Tensor
storage_view(tensor: Tensor, dtype: str, shape: tuple[int, ...], stride: tuple[int, ...] | None = None,
    offset: int = 0, /) -> Tensor
# Modes of a thread
set_grad_enabled(on: bool, /) -> bool
is_grad_enabled() -> bool
enter_mode(before: dict[int, list[Any]], read: Callable[[], Any], write: Callable[[Any], Any], value: Any = ..., /) -> None
leave_mode(before: dict[int, list[Any]], write: Callable[[Any], Any], kind: Any = ..., error: Any = ..., trace: Any = ..., /) -> None
# Threads, memory, devices
set_num_threads(count: int, /) -> None
get_num_threads() -> int
memory_stats(device: str = "cpu", /) -> dict[str, int]
reset_peak_memory(device: str = "cpu", /) -> None
empty_cache(device: str = "cpu", /) -> None
synchronize(device: str = "cpu", /) -> None
load_plugin(path: str | bytes | PathLike[Any], /) -> None
memory_info(device: str = "cpu", /) -> tuple[int, int] | None
set_option(device: str, name: str, value: int, /) -> None
# Which kernels run
set_kernel_paths(*names: str) -> None
dispatch_counts(reset: bool = False, /) -> dict[str, dict[str, int]]
# Optimizers, and what is kept of parameters
optim_step(kind: str, params: list[Tensor], grads: list[Tensor], state1: list[Tensor] | None,
    state2: list[Tensor] | None, step: int, lr: float,
    momentum: float = 0.0, dampening: float = 0.0, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8,
    weight_decay: float = 0.0, nesterov: bool = False) -> None
unscale(tensors: list[Tensor], factor: float, /) -> bool
edition(*tensors: Tensor | None) -> bytes | None
packed_filters() -> int
# Configuration
parse_yaml(source: str | PathLike[Any] | _Buffer, name: str | None = None) -> _YamlNode | None
# Metrics
metrics_rank(scores: _Buffer, order: _Buffer, /) -> None
metrics_average_precision(scores: _Buffer, relevant: _Buffer, /) -> float
metrics_retrieval(queries: _Buffer, candidates: _Buffer, q_values: _Buffer, c_values: _Buffer,
    table: _Buffer, threads: int, progress: Callable[[int, int], object] | None, /) -> None
metrics_confusion(truth: _Buffer, predicted: _Buffer, counts: _Buffer, /) -> None
# Images
jpeg_size(data: _Buffer, /) -> tuple[int, int]
jpeg_decode(data: _Buffer, /) -> tuple[int, int, bytearray]
image_resize(image: _Buffer, out: _Buffer, height: int, width: int, y: int = 0, x: int = 0, /) -> None
map_resize(map: _Buffer, out: _Buffer, /) -> None
local_box(map: _Buffer, global_size: int, threshold: float, height: int, width: int, /) -> tuple[int, int, int]
global_batch(images: Sequence[_Buffer], slots: Sequence[int], out: _Buffer, mean: tuple[float, float, float],
    std: tuple[float, float, float], /) -> None
local_batch(images: Sequence[_Buffer], maps: _Buffer, global_size: int, threshold: float, out: _Buffer,
    mean: tuple[float, float, float],
    std: tuple[float, float, float], /) -> list[tuple[int, int, int]]
augment_draw(image_id: int, height: int, width: int, size: int, settings: tuple[float, float, float, float],
    seed: int, epoch: int, /) -> tuple[float, ...]
augment_batch(images: Sequence[_Buffer], ids: Sequence[int], slots: Sequence[int], out: _Buffer, draws: _Buffer,
    settings: tuple[float, float, float, float], seed: int, epoch: int, mean: tuple[float, float, float],
    std: tuple[float, float, float], /) -> None
augment_local_batch(images: Sequence[_Buffer], maps: _Buffer, draws: _Buffer, global_size: int, threshold: float,
    out: _Buffer, mean: tuple[float, float, float],
    std: tuple[float, float, float], /) -> list[tuple[int, int, int, int]]
"""

# What op_specs() does not say.
NUMBERS = {"add", "sub", "mul", "div"}  # ops that broadcast: either input can be a number
SOME_OUTPUTS = {"batch_norm_grad"}      # the last output is there only where it is asked for


# ---- text ----


def lines_of(text: str) -> list[str]:
    """The signatures: indented lines belong to the one before."""
    return [line for line in re.sub(r"\n +", " ", text).splitlines() if line and not line.startswith("#")]


def sections_of(text: str) -> list[tuple[str, str]]:
    """(heading, the lines under it)."""
    _, *parts = re.split(r"^# (.*)\n", text, flags=re.MULTILINE)
    return list(zip(parts[::2], parts[1::2]))


def heading(text: str, indent: int) -> str:
    return f"{' ' * indent}# ---- {text[0].lower()}{text[1:]} ----\n"


def wrapped(line: str, width: int) -> str:
    """The `def` line, broken between parameters only."""
    depth, text = 0, ""
    for i, c in enumerate(line):
        depth += (c in "([") - (c in ")]")
        text += "\0" if c == " " and not (depth == 1 and line[i - 1] == ",") else c
    hang = " " * (line.index("(") + 1)
    return "\n".join(textwrap.wrap(text, width, subsequent_indent=hang, break_long_words=False,
                                   break_on_hyphens=False)).replace("\0", " ")


def definition(signature: str, doc: str | None, indent: int, decorators: tuple[str, ...] = ()) -> str:
    """`def <signature>:` with a docstring or `...`; with an indent, in the class."""
    tail = "" if doc else " ..."
    signature = in_class(signature) if indent else signature
    if signature.startswith(("__eq__", "__ne__")):
        tail += "  # type: ignore[override]"  # element by element, where object's is a bool
    text = "".join(f"@{name}\n" for name in decorators) + wrapped(f"def {signature}:{tail}", WIDTH - indent)
    if doc:
        text += "\n" + textwrap.indent(docstring(doc, WIDTH - indent - 4), "    ")
    return textwrap.indent(text, " " * indent) + "\n"


def in_class(signature: str) -> str:
    """With Python's own int, bool and float named in full: in the class these are methods."""
    name, bracket, rest = signature.partition("(")
    return name + bracket + re.sub(r"(?<![\w.])(int|bool|float)\b(?! *:)", r"builtins.\1", rest)


def docstring(doc: str, width: int) -> str:
    """The text in quotes; paragraphs are filled only where a line is too long."""
    text = doc.replace("\\", "\\\\")
    if len(text) + 6 <= width and "\n" not in text:
        return f'"""{text}"""'
    lines = [part for line in text.splitlines()
             for part in (textwrap.wrap(line, width - 3, break_on_hyphens=False) if len(line) > width - 3 else [line])]
    return '"""' + "\n".join(lines) + '\n"""'


def overloads(signatures: list[str], doc: str | None, indent: int) -> str:
    """One definition, or overloads of which the first has the docstring."""
    decorators = ("overload",) if len(signatures) > 1 else ()
    return "".join(definition(s, None if i else doc, indent, decorators) for i, s in enumerate(signatures))


# ---- ops ----


def attribute_type(kind: str) -> str:
    """kind: the letter of csrc/ops/schema.c."""
    return {"i": "int", "i2": "int | Sequence[int]", "f": "float", "b": "bool", "l": "int | Sequence[int] | None",
            "s": "int | Sequence[int]", "t": "str | None"}[kind]


def attribute_default(kind: str, text: str) -> str | None:
    """The default as Python; None: it must be given."""
    if not text:
        return None
    if kind == "b":
        return str(bool(int(text)))
    return "..." if "INF" in text else text


def joined(parameters: list[tuple[str, str, str | None]], first: str, returns: str, name: str) -> str:
    """A signature. parameters: (name, type, default or None); one without a default after one with
    a default, and all after it, go by name only."""
    texts, defaults, named = [first] if first else [], False, False
    for parameter, kind, default in parameters:
        if default is None and defaults and not named:
            texts.append("*")
            named = True
        defaults = defaults or default is not None
        texts.append(f"{parameter}: {kind}" + ("" if default is None else f" = {default}"))
    return f"{name}({', '.join(texts)}) -> {returns}"


def op_signatures(spec: dict[str, Any], method: bool) -> list[str]:
    """The ways to call an op, the usual one first. In the class the first input is self."""
    name, inputs = spec["name"], spec["inputs"].split()
    outputs = len(spec["outputs"].split())
    returns = "Tensor" if outputs == 1 else f"tuple[{', '.join(['Tensor'] * outputs)}]"
    if name in SOME_OUTPUTS:
        returns = "tuple[Tensor, ...]"
    first = "self" if method else ""
    given: list[tuple[str, str, str | None]] = []
    if inputs[-1].endswith("*"):
        first = "self, tensors: Sequence[Tensor], /" if method else "tensors: Sequence[Tensor], /"
    else:
        for i, word in enumerate(inputs):
            if i == 0 and method:
                continue
            optional = word.endswith("?")
            last = all(later.endswith("?") for later in inputs[i:])
            kind = "Tensor | None" if optional else "Tensor | float" if name in NUMBERS else "Tensor"
            given.append((word.rstrip("?"), kind, "None" if last else None))
    attributes = []
    for word in spec["attrs"].split():
        attribute, _, rest = word.partition(":")
        kind, _, value = rest.partition("=")
        attributes.append((attribute, kind, attribute_type(kind), attribute_default(kind, value)))

    plain = [(a, t, d) for a, _, t, d in attributes]
    if len(attributes) == 1 and attributes[0][1] in ("l", "s"):  # x.reshape((2, 3)), x.reshape(2, 3)
        attribute = attributes[0][0]
        texts = [first, *(f"{n}: {t}" for n, t, _ in given), f"*{attribute}: int"]
        signatures = [joined(given + [(attribute, "Sequence[int]", None)], first, returns, name),
                      f"{name}({', '.join(t for t in texts if t)}) -> {returns}"]
    else:
        signatures = [joined(given + plain, first, returns, name)]
    if any(a == "dims" for a, *_ in attributes):  # dim is another name for dims
        renamed = [("dim", "int | Sequence[int]", None) if a == "dims" else (a, t, d) for a, t, d in plain]
        texts = [first, *(f"{n}: {t}" for n, t, _ in given), "*",
                 *(f"{a}: {t}" + ("" if d is None else f" = {d}") for a, t, d in renamed)]
        signatures.append(f"{name}({', '.join(t for t in texts if t)}) -> {returns}")
    return signatures


# ---- methods written in Python ----


def composed_signature(name: str, function: Any) -> str:
    """The signature of a function of asenpp/composed.py, whose annotations are text."""
    texts, named = [], False
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY and not named:
            texts.append("*")
            named = True
        star = "*" if p.kind is p.VAR_POSITIONAL else ""
        named = named or bool(star)
        text = p.name if p.name == "self" else f"{star}{p.name}: {p.annotation}"
        texts.append(text if p.default is p.empty else f"{text} = {p.default!r}")
    returns = inspect.signature(function).return_annotation
    return f"{name}({', '.join(texts)}) -> {returns}"


# ---- the stub ----


def by_name(text: str) -> dict[str, list[str]]:
    """Signatures by name, in the order of the text."""
    result: dict[str, list[str]] = {}
    for line in lines_of(text):
        result.setdefault(line.partition("(")[0], []).append(line)
    return result


def doc_of(owner: Any, name: str) -> str | None:
    """The module's docstring; none for special methods, whose is Python's own."""
    return None if name.startswith("__") else inspect.cleandoc(getattr(owner, name).__doc__ or "") or None


def property_text(line: str, tensor: Any) -> str:
    name, _, rest = line.partition(": ")
    kind, _, settable = rest.partition(" = ")
    text = definition(f"{name}(self) -> {kind}", doc_of(tensor, name), 4, ("property",))
    if settable:
        text += definition(f"{name}(self, value: {settable}) -> None", None, 4, (f"{name}.setter",))
    return text


def make(module: ModuleType) -> str:
    """The text of the stub of the built module."""
    from asenpp.composed import METHODS as COMPOSED

    specs = {spec["name"]: spec for spec in module.op_specs()}
    parts = [HEADER.format(doc=module.__doc__),
             "class Tensor:",
             textwrap.indent(docstring(inspect.cleandoc(module.Tensor.__doc__), WIDTH - 4), "    ") + "\n",
             heading("Properties", 4), "    __array_priority__: float\n"]
    parts += [property_text(line, module.Tensor) for line in lines_of(PROPERTIES)]
    for title, text in sections_of(METHODS):
        parts.append(heading(title, 4))
        parts += [overloads(signatures, doc_of(module.Tensor, name), 4) for name, signatures in by_name(text).items()]
    parts.append(heading("Composed of ops (asenpp/composed.py)", 4))
    parts += [overloads([composed_signature(name, f)], doc_of(module.Tensor, name), 4)
              for name, f in COMPOSED.items() if not isinstance(f, property)]
    parts.append(heading("Ops: this tensor is the first input", 4))
    parts += [overloads(op_signatures(spec, True), spec["doc"], 4) for spec in specs.values() if spec["method"]]
    for title, text in sections_of(FUNCTIONS):
        parts.append(heading(title, 0))
        parts += [overloads(signatures, doc_of(module, name), 0) for name, signatures in by_name(text).items()]
    parts.append(heading("Ops (csrc/ops/ops.def)", 0))
    parts += [overloads(op_signatures(spec, False), spec["doc"], 0) for spec in specs.values()]
    text = "\n".join(parts).rstrip() + "\n"
    ast.parse(text)
    return text


def main(arguments: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    try:
        from asenpp import _asen
    except ImportError as error:
        print(f"make_stubs: {error}\nbuild the module first: make dev", file=sys.stderr)
        return 1
    target = Path(arguments[0]) if arguments else STUB
    target.write_text(make(_asen), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
