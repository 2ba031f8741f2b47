"""PyTorch's names: every line of the tables in docs/api.md, run here and in PyTorch, and compared.

A line without a case here, or a case without a line, fails. A case is functions of a side `s`, which is
PyTorch or asenpp: s.x(shape, …) makes the same tensor on both. Values, dtypes, shapes and gradients must
agree, and what is refused there must be refused here. PyTorch is not needed for the table itself.
"""

import copy
import pickle
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

import asenpp
from asenpp import _asen, nn
from asenpp.nn import functional as F

torch = None
try:
    import torch
except ImportError:
    pass

API = Path(__file__).resolve().parent.parent / "docs" / "api.md"
INF, NAN = float("inf"), float("nan")


class Side:
    """One library: its modules, and the tensors that a case has made (whose gradients are compared)."""

    def __init__(self, name, case):
        self.name, self.leaves = name, []
        self.is_torch = name == "torch"
        self.m = torch if self.is_torch else asenpp
        self.nn = torch.nn if self.is_torch else nn
        self.F = torch.nn.functional if self.is_torch else F
        self.rng = np.random.default_rng(zlib.crc32(case.encode()))

    def dtype(self, name):
        return getattr(torch, name) if self.is_torch else name

    def x(self, *shape, of=None, dtype="float64", grad=True):
        """Normal numbers (integers in [-4, 5), bools) of a shape, or drawn from a list; a leaf where it can be one."""
        if of is not None:
            array = self.rng.choice(np.array(of), shape)
        elif "int" in dtype:
            array = self.rng.integers(0 if dtype == "uint8" else -4, 5, shape)
        elif dtype == "bool":
            array = self.rng.integers(0, 2, shape).astype(bool)
        else:
            array = self.rng.standard_normal(shape)
        return self.of(array, dtype, grad)

    def of(self, values, dtype=None, grad=True):
        """A tensor of these values."""
        array = np.array(values)
        dtype = dtype or str(array.dtype)
        array = array.astype("float32" if dtype == "bfloat16" else dtype)
        t = torch.from_numpy(array).to(self.dtype(dtype)) if self.is_torch else asenpp.tensor(array, dtype=dtype)
        if grad and "float" in dtype:
            t.requires_grad_()
            self.leaves.append(t)
        return t

    def is_tensor(self, value):
        return isinstance(value, torch.Tensor if self.is_torch else asenpp.Tensor)


def flat(value):
    """Everything in a result, tuples and lists opened."""
    if isinstance(value, (tuple, list)) and not (type(value).__name__ == "Size"):
        return [w for v in value for w in flat(v)]
    return [value]


def plain(side, value):
    """What is compared: (dtype, shape, values) of a tensor, other things as they are."""
    if side.is_tensor(value):
        name = str(value.dtype).removeprefix("torch.")
        wide = value.detach().to(side.dtype("float32")) if name in ("bfloat16", "float16") else value.detach()
        return name, tuple(value.shape), np.asarray(wide.cpu().numpy())
    return tuple(value) if type(value).__name__ in ("Size", "tuple") else value


def same(ours, theirs, tol):
    if isinstance(theirs, tuple) and len(theirs) == 3 and isinstance(theirs[2], np.ndarray):
        assert isinstance(ours, tuple) and ours[:2] == theirs[:2], (ours, theirs)
        np.testing.assert_allclose(ours[2], theirs[2], rtol=tol, atol=tol)
    else:
        assert type(ours) is type(theirs) and (ours == theirs or (ours != ours and theirs != theirs)), (ours, theirs)


def backward(side, results):
    """The gradients of the leaves: of a weighted sum of all that wants one; None where nothing comes."""
    wanting = [r for r in results if side.is_tensor(r) and r.requires_grad]
    rng = np.random.default_rng(1)
    total = None
    for r in wanting:
        if r.is_leaf:
            continue
        weights = np.asarray(rng.standard_normal(tuple(r.shape)), np.float64)
        part = (r.to(side.dtype("float64")) * side.of(weights, "float64", grad=False)).sum()
        total = part if total is None else total + part
    if total is not None:
        total.backward()
    return [None if leaf.grad is None else plain(side, leaf.grad) for leaf in side.leaves]


# ---- the cases, by the first column of the tables ----

CASES, FAILS, MODULE_CASES, TOLERANCE = {}, {}, {}, {}


def case(name, *runs, fails=(), tol=1e-12):
    assert name not in CASES and name not in MODULE_CASES, name
    CASES[name], FAILS[name], TOLERANCE[name] = runs, fails, tol


def own(name):
    """A line whose comparison is more than one expression: a test of its own, called with each side."""
    def add(function):
        MODULE_CASES[name] = function
        return function
    return add


AB = [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1, 4), (3, 1)), ((), (3,)), ((2, 3, 4, 5), (3, 1, 1))]


def pairs(f, dtype="float64", **kind):
    return [lambda s, a=a, b=b: f(s.x(*a, dtype=dtype, **kind), s.x(*b, dtype=dtype, **kind)) for a, b in AB]


SPECIAL = [-INF, -1.5, -0.0, 0.0, 2.0, INF, NAN]
NO_FIT = (2, 3), (2, 4)


def unfit(f, dtype="float64"):
    return lambda s: f(s.x(*NO_FIT[0], dtype=dtype), s.x(*NO_FIT[1], dtype=dtype))


for sign, f in {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}.items():
    whole = [] if sign == "/" else pairs(f, "int64") + pairs(f, "uint8") + [
        lambda s, f=f: f(s.x(3, dtype="int64"), 2), lambda s, f=f: f(s.of([1], "int64"), 2**60 + 1)]
    case(f"x {sign} y", *pairs(f), *whole, lambda s, f=f: (f(s.x(3), 2.5), f(2, s.x(3)), f(s.x(3, dtype="float32"), 0.1)),
         lambda s, f=f: f(s.x(2, dtype="float32"), np.float64(2.5)), lambda s, f=f: f(s.x(2, grad=False), np.array(2.5)),
         fails=[unfit(f), lambda s, f=f: f(s.x(2), "a"), lambda s, f=f: f(s.x(2), None), lambda s, f=f: f(s.x(2), [1.0, 2.0])], tol=1e-6)
case("mask * x", lambda s: s.x(2, 3, dtype="bool") * s.x(3), lambda s: s.x(3) * (s.x(3) > 0), lambda s: s.x(3, dtype="bool") + s.x(3, dtype="int64"),
     lambda s: s.x(3, dtype="bool") * s.x(3, dtype="bool"), lambda s: (s.x(3, dtype="bool") * 2, s.x(3, dtype="bool") + 0.5),
     fails=[lambda s: s.x(3, dtype="bool") - s.x(3, dtype="bool"), lambda s: -s.x(3, dtype="bool")])
case("x // y", *pairs(lambda a, b: a // b, "int64", of=[-5, -2, 3, 7]), lambda s: (s.x(5, dtype="int64") // 3, s.x(5, dtype="uint8") // 2, 7 // s.x(3, dtype="int64", of=[-2, 3])),
     fails=[unfit(lambda a, b: a // b, "int64"), lambda s: s.x(3, dtype="int64") // "a"])
SIGNED = [-7, -5, -2, 3, 8]
case("x % y", *pairs(lambda a, b: a % b, "int64", of=SIGNED), *pairs(lambda a, b: a % b, "int32", of=SIGNED), lambda s: (s.x(5, dtype="int64") % 3, 7 % s.x(3, dtype="int64", of=[-2, 3])),
     lambda s: (s.x(3, dtype="uint8") % 2, s.x(3, dtype="int64") % np.int64(-3), s.of([2**60 + 3]) % 2**40), fails=[unfit(lambda a, b: a % b, "int64"), lambda s: s.x(3, dtype="int64") % "a"])
case("x @ y", lambda s: s.x(2, 3) @ s.x(3, 4), lambda s: s.x(5, 2, 3) @ s.x(5, 3, 4),
     fails=[lambda s: s.x(2, 3) @ s.x(2, 3), lambda s: s.x(2, 2) @ 2.0])
case("x ** p", lambda s: s.x(2, 3) ** 2, lambda s: s.x(3, of=[0.5, 2.0]) ** 1.5, lambda s: s.x(3, of=[0.5, 2.0]) ** -1, fails=[lambda s: s.x(2) ** "a"])
case("-x", lambda s: -s.x(2, 3), lambda s: -s.x(2, 3, dtype="int64"))
RELATIONS = {"<": lambda a, b: a < b, "<=": lambda a, b: a <= b, "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
             ">": lambda a, b: a > b, ">=": lambda a, b: a >= b}
for sign, f in RELATIONS.items():
    more = [lambda s, f=f: (f(s.x(3), None), f(s.x(3), "a"), f(s.x(3), [1, 2, 3]))] if sign in ("==", "!=") else []
    refused = [] if more else [lambda s, f=f: f(s.x(3), None), lambda s, f=f: f(s.x(3), [1, 2, 3])]
    case(f"x {sign} y", *pairs(f, of=SPECIAL), *pairs(f, "int64"), *pairs(f, "uint8"), *pairs(f, "bool"), *pairs(f, "float16"),
         *pairs(f, "bfloat16"), lambda s, f=f: (f(s.x(3), 0.5), f(1, s.x(3)), f(s.x(3, dtype="int64"), 2), f(s.x(3, dtype="uint8"), 300)),
         lambda s, f=f: f(s.of([2**60, 2**60 + 1]), 2**60 + 1), *more, fails=[unfit(f), *refused])
for sign, f in {"&": lambda a, b: a & b, "|": lambda a, b: a | b, "^": lambda a, b: a ^ b}.items():
    case(f"x {sign} y", *pairs(f, "bool"), lambda s, f=f: (f(s.x(3, dtype="bool"), True), f(False, s.x(3, dtype="bool"))),
         fails=[lambda s, f=f: f(s.x(3), s.x(3))])
case("~x", lambda s: ~s.x(2, 3, dtype="bool"), fails=[lambda s: ~s.x(3)])
case("abs(x)", lambda s: abs(s.x(4, of=SPECIAL)))
case("y in x", lambda s: (2.0 in s.x(9, of=[1.0, 2.0]), 3.0 in s.x(9, of=[1.0, 2.0])))
case("bool(x)", lambda s: [bool(s.of(v)) for v in (0.0, [2.0], [[True]], 0)],
     fails=[lambda s: bool(s.x(2)), lambda s: bool(s.x(0)), lambda s: not s.x(2)])
case("float(x), int(x)", lambda s: [float(s.of([2.5])), int(s.of(2.5)), int(s.of([7]))], fails=[lambda s: float(s.x(2)), lambda s: int(s.x(2))])
case("len(x)", lambda s: len(s.x(2, 3)), fails=[lambda s: len(s.x())])
case('f"{x:.2f}"', lambda s: f"{s.of(2.345):.2f}")

# ---- indexing ----

case("x[i], x[a:b:c], x[..., None]", lambda s: [s.x(3, 4, 5)[k] for k in (0, -1, (1, 2), slice(1, None, 2), (..., 2), (slice(None), None, 1))],
     fails=[lambda s: s.x(3)[3], lambda s: s.x(3)[0, 0], lambda s: s.x(3)["a"], lambda s: s.x(3)[::-1]])
INDEX = {"one": lambda s: ([2, 0, 2, -1],), "scalar": lambda s: (s.of(1),), "matrix": lambda s: (s.of([[0, 2], [1, 1]]),), "empty": lambda s: ([],),
         "two": lambda s: (s.of([0, 2]), s.of([1, 3])), "spread": lambda s: ([0, 2], slice(None), [1, 3]), "inner": lambda s: (slice(None), [0, -1], [[1], [2]]),
         "last": lambda s: (..., [1, 0]), "after int": lambda s: (1, slice(None), [1, 0, 0]), "with new": lambda s: ([0, 2], None, [1, 1]),
         "int32": lambda s: (s.of([1, 0], "int32"),), "array": lambda s: (np.array([1, 0]),)}
MASK = {"all": lambda s: (s.x(3, 4, 5, dtype="bool"),), "rows": lambda s: (s.of([True, False, True]),), "two": lambda s: (s.x(3, 4, dtype="bool"),),
        "inner": lambda s: (slice(None), s.of([True, False, True, True])), "none": lambda s: (s.of([False] * 3),), "list": lambda s: ([True, False, True],),
        "with index": lambda s: (s.of([True, False, True]), [0, 1]), "last": lambda s: (..., s.of([True, False, True, False, True])),
        "true": lambda s: (True,), "false": lambda s: (False,), "array": lambda s: (np.array([True, False, True]),)}


def picked(keys, dtype="float64"):
    return [lambda s, k=k: s.x(3, 4, 5, dtype=dtype)[k(s) if len(k(s)) > 1 else k(s)[0]] for k in keys.values()]


def put(keys, values, dtype="float64"):
    def run(s, k, v):
        x = s.x(3, 4, 5, dtype=dtype) * 1
        key = k(s) if len(k(s)) > 1 else k(s)[0]
        x[key] = v(s, x[key])
        return x
    return [lambda s, k=k, v=v: run(s, k, v) for k in keys.values() for v in values]


case("x[index]", *picked(INDEX), *picked(INDEX, "int64"), *picked(INDEX, "bool"), lambda s: s.x(2, 3, 4, 5)[[1, 0]],
     fails=[lambda s: s.x(3)[[3]], lambda s: s.x(3)[[-4]], lambda s: s.x(3, 3)[[0, 1], [0, 1, 2]],
            lambda s: s.x(3)[s.of([1.0])], lambda s: s.x(3, 4)[[0, 2], [1, 4]]])
case("x[mask]", *picked(MASK), *picked(MASK, "int64"), fails=[lambda s: s.x(3)[s.of([True, False])], lambda s: s.x(3)[s.x(3, 1, dtype="bool")]])
NEW = [lambda s, part: 7, lambda s, part: s.x(), lambda s, part: s.x(*part.shape)]
case("x[a:b] = y", *put({"row": lambda s: (1,), "slice": lambda s: (slice(None), slice(1, 3)), "new": lambda s: (None, 0)}, NEW),
     fails=[lambda s: (s.x(3, 3) * 1).__setitem__(0, s.x(2)), lambda s: (s.x(3) * 1).__setitem__(5, 1.0)])
DISTINCT = {k: v for k, v in INDEX.items() if k != "one" and k != "matrix" and k != "after int" and k != "with new"}
case("x[index] = y, x[mask] = y", *put(DISTINCT, NEW), *put(MASK, NEW), *put(MASK, NEW[:1], "int64"),
     fails=[lambda s: s.x(3, dtype="int64").__setitem__([0, 1], s.x(2)), lambda s: (s.x(3) * 1).__setitem__([3], 1.0), lambda s: (s.x(3) * 1).__setitem__(s.of([True]), 1.0),
            lambda s: (s.x(3) * 1).__setitem__([0, 1], s.x(3))])

# ---- methods ----


def of_each(f, *dtypes, shape=(2, 3, 4), **kind):
    return [lambda s, d=d: f(s.x(*shape, dtype=d, **kind)) for d in dtypes or ("float64",)]


ALL = ("float64", "float32", "int64", "int32", "uint8", "bool")
NUMBERS = ALL[:-1]
case("Tensor.abs", lambda s: s.x(9, of=SPECIAL).abs(), *of_each(lambda x: x.abs(), *NUMBERS), fails=[lambda s: s.x(2, dtype="bool").abs()])
case("Tensor.sign", *of_each(lambda x: x.detach().sign(), *ALL), lambda s: s.x(9, of=SPECIAL, grad=False).sign())
for name in ("add", "sub", "mul", "div"):
    g = lambda a, b, n=name: getattr(a, n)(b)  # noqa: E731
    alpha = [lambda s, n=name: getattr(s.x(3), n)(s.x(3), alpha=2)] if name in ("add", "sub") else []
    case(f"Tensor.{name}", *pairs(g), *alpha, lambda s, g=g: g(s.x(3), 2.5), fails=[unfit(g), lambda s, g=g: g(s.x(3), "a")])
for name in ("maximum", "minimum"):
    g = lambda a, b, n=name: getattr(a, n)(b)  # noqa: E731
    case(f"Tensor.{name}", *pairs(g), *pairs(g, "int64"), *pairs(g, "uint8"), *pairs(g, "bool"), *pairs(g, of=[1.0, 2.0]),
         lambda s, g=g: g(s.x(30, of=SPECIAL, grad=False), s.x(30, of=SPECIAL, grad=False)), lambda s, n=name: getattr(s.m, n)(s.x(3), s.x(3)),
         fails=[unfit(g), lambda s, g=g: g(s.x(3), 2.0)])
for name in ("isnan", "isinf", "isfinite"):
    case(f"Tensor.{name}", lambda s, n=name: getattr(s.x(20, of=SPECIAL), n)(), *of_each(lambda x, n=name: getattr(x, n)(), *ALL[2:]))
for name in ("eq", "ne", "lt", "le", "gt", "ge"):
    g = lambda a, b, n=name: getattr(a, n)(b)  # noqa: E731
    case(f"Tensor.{name}", *pairs(g, of=SPECIAL), lambda s, g=g: g(s.x(3), 0.5), fails=[unfit(g), lambda s, g=g: g(s.x(3), None)])
case("Tensor.logical_not", *of_each(lambda x: x.logical_not(), *ALL))
case("Tensor.where, torch.where", lambda s: s.m.where(s.x(2, 3, dtype="bool"), s.x(2, 3), s.x(3)), lambda s: s.m.where(s.x(2, 1, dtype="bool"), s.x(3), 0.0),
     lambda s: s.m.where(s.x(4, dtype="bool"), 1.5, 0.5), lambda s: s.m.where(s.x(4, dtype="bool"), 1, 2), lambda s: s.x(3).where(s.x(3, dtype="bool"), -1.0),
     lambda s: s.m.where(s.x(3, dtype="bool"), s.x(3, dtype="int64"), s.x(3, dtype="int64")), lambda s: s.m.where(s.x(2, 3, 4, 5, dtype="bool"), s.x(2, 3, 4, 5), s.x(3, 1, 1)),
     fails=[lambda s: s.m.where(s.x(3), s.x(3), s.x(3)), lambda s: s.m.where(s.x(2, dtype="bool"), s.x(3), s.x(3))])
case("Tensor.masked_fill", lambda s: s.x(2, 3).masked_fill(s.x(3, dtype="bool"), -1.0), lambda s: s.x(2, 3).masked_fill(s.x(2, 1, dtype="bool"), s.x()),
     lambda s: s.x(3, dtype="int64").masked_fill(s.x(3, dtype="bool"), 2), fails=[lambda s: s.x(3).masked_fill(s.x(3), 1.0)])
for name in ("any", "all"):
    g = lambda x, *a, n=name: getattr(x, n)(*a)  # noqa: E731
    case(f"Tensor.{name}", *of_each(g, "float64", "int64", "bool", of=[0, 1]), lambda s, g=g: [g(s.x(2, 3, 4, dtype="bool"), *a) for a in [(0,), (-1, True), (1, False)]],
         lambda s, g=g: (g(s.x(0)), g(s.x(0, 3, dtype="bool"), 0)), lambda s, n=name: getattr(s.x(2, 3, dtype="bool"), n)(dim=1, keepdim=True), lambda s, g=g: (g(s.x(), 0), g(s.x(), -1, True)), fails=[lambda s, g=g: g(s.x(3), 1), lambda s, g=g: g(s.x(), 1)])
case("Tensor.sum", *of_each(lambda x: (x.sum(), x.sum(1), x.sum((0, 2)), x.sum(-1, True), x.sum(dim=0, keepdim=True)), *ALL), lambda s: (s.x().sum(0), s.x().sum(-1, True), s.x(dtype="int64").sum(0)), fails=[lambda s: s.x(3).sum(1), lambda s: s.x().sum(1), lambda s: s.x().sum((0, -1))], tol=1e-6)
case("Tensor.mean", *of_each(lambda x: (x.mean(), x.mean(1), x.mean((0, 2)), x.mean(-1, True)), "float64", "float32"),
     lambda s: (s.x().mean(0), s.x().mean(-1, True)), fails=[lambda s: s.x(3, dtype="int64").mean(), lambda s: s.x(3).mean(1), lambda s: s.x().mean(1)], tol=1e-6)
for name in ("amax", "amin"):
    g = lambda x, n=name: (getattr(x, n)(), getattr(x, n)(1), getattr(x, n)((0, 2)), getattr(x, n)(-1, True))  # noqa: E731
    case(f"Tensor.{name}", *of_each(g, *ALL), *of_each(g, of=[1.0, 2.0]), lambda s, n=name: getattr(s.x(30, of=SPECIAL, grad=False), n)(),
         lambda s, n=name: getattr(s.of([-2**63, 2**63 - 1]), n)(), lambda s, n=name: (getattr(s.x(), n)(0), getattr(s.x(), n)((-1,), True)), fails=[lambda s, n=name: getattr(s.x(0), n)(), lambda s, n=name: getattr(s.x(3), n)(1)])
for name in ("max", "min"):
    g = lambda x, n=name: (getattr(x, n)(), getattr(x, n)(1), getattr(x, n)(-1, True), getattr(x, n)(dim=0, keepdim=True))  # noqa: E731
    case(f"Tensor.{name}", *of_each(g, *ALL), *of_each(g, of=[1.0, 2.0]), lambda s, n=name: getattr(s.x(5, 6, of=SPECIAL, grad=False), n)(0),
         lambda s, n=name: getattr(s.x(2, 3), n)(s.x(3)), lambda s, n=name: (getattr(s.x(2, 3), n)(0).values, getattr(s.x(2, 3), n)(0).indices, getattr(s.x(), n)(0)),
         fails=[lambda s, n=name: getattr(s.x(0), n)(), lambda s, n=name: getattr(s.x(0, 2), n)(0), lambda s, n=name: getattr(s.x(3), n)(1), lambda s, n=name: getattr(s.x(2, 3), n)((0, 1))])
for name in ("argmax", "argmin"):
    g = lambda x, n=name: (getattr(x, n)(), getattr(x, n)(1), getattr(x, n)(-1, True), getattr(x, n)(keepdim=True))  # noqa: E731
    case(f"Tensor.{name}", *of_each(g, *NUMBERS), *of_each(g, of=[1.0, 2.0]), lambda s, g=g: g(s.x(5, 6, of=SPECIAL)), lambda s, n=name: getattr(s.x(), n)(),
         fails=[lambda s, n=name: getattr(s.x(0), n)(), lambda s, n=name: getattr(s.x(3), n)(1)])
for name in ("sort", "argsort"):
    def g(x, n=name):
        return (getattr(x, n)(stable=True), getattr(x, n)(dim=0, stable=True), getattr(x, n)(dim=1, descending=True, stable=True))
    case(f"Tensor.{name}", *of_each(g, *ALL), *of_each(g, of=[1.0, 2.0]), lambda s, g=g: g(s.x(5, 6, of=SPECIAL)), lambda s, g=g: g(s.x(3, 4, 5, 6, of=[1.0, 2.0, 3.0])),
         lambda s, n=name: (getattr(s.x(), n)(), getattr(s.x(0), n)(), getattr(s.x(1000, of=[1.0, 2.0, 3.0]), n)(stable=True)), fails=[lambda s, n=name: getattr(s.x(3), n)(1)])
case("Tensor.topk", lambda s: (s.x(2, 9).topk(3), s.x(2, 9).topk(9, 1, False), s.x(9, 2).topk(2, 0), s.x(2, 9).topk(0), s.x(4, dtype="int64", of=[3, 1, 7, 5]).topk(1)),
     lambda s: (s.x().topk(1), s.of([NAN, 1.0, 3.0]).topk(2), s.of([NAN, 1.0, 3.0]).topk(2, largest=False)),
     fails=[lambda s: s.x(3).topk(4), lambda s: s.x(3).topk(-1), lambda s: s.x(3).topk(1, 1)])
for name in ("var", "std"):
    g = lambda x, n=name: (getattr(x, n)(), getattr(x, n)(1), getattr(x, n)((0, 2), keepdim=True), getattr(x, n)(False), getattr(x, n)(0, False),  # noqa: E731
                           getattr(x, n)(1, True, True), getattr(x, n)(dim=2, correction=0), getattr(x, n)(unbiased=False))
    case(f"Tensor.{name}", *of_each(g, "float64", "float32"), lambda s, n=name: getattr(s.x(1, grad=False), n)(),
         lambda s, n=name: (getattr(s.of([2.0, 2.0]), n)(), getattr(s.of([[1.0, 1.0], [3.0, 4.0]]), n)(1), getattr(s.of(2.0, grad=False), n)(0, False)),
         fails=[lambda s, n=name: getattr(s.x(3, dtype="int64"), n)(), lambda s, n=name: getattr(s.x(3), n)(1)], tol=1e-5)
case("Tensor.norm", *of_each(lambda x: (x.norm(), x.norm(1), x.norm(3), x.norm(INF), x.norm(-INF), x.detach().norm(0), x.norm(2, 1), x.norm(2, (0, 2), True), x.norm("fro")), "float64"),
     lambda s: (s.of([0.0, 0.0]).norm(), s.of([[0.0, 0.0], [3.0, 4.0]]).norm(dim=1), s.x(0).norm(), s.of([1e200, 1e-200], grad=False).norm(INF)),
     lambda s: s.x(2, 3, dtype="float32").norm(dim=0), lambda s: (s.x().norm(2, 0), s.x().norm(1, -1, True)),
     lambda s: [s.of([[0.0, 2.0, -1.0], [0.0, 0.0, 0.0]]).norm(p, 1) for p in (0.5, 1.5, 3, INF)] + [s.of([[0.5, 2.0, -1.0], [0.0, 4.0, 1.0]]).norm(p, 1) for p in (-1, -2.0)], lambda s: s.of([INF, 1.0], grad=False).norm(), lambda s: s.of([NAN, 1.0], grad=False).norm(),
     fails=[lambda s: s.x(3, dtype="int64").norm(), lambda s: s.x(3).norm(2, 1)], tol=1e-6)
case("Tensor.gather", lambda s: s.x(3, 4).gather(0, s.of([[0, 2, 2], [1, 1, 0]])), lambda s: s.x(3, 4).gather(-1, s.of([[0, 2, 2, 3, 0]])),
     lambda s: s.x(2, 3, 4, 5).gather(1, s.of(np.zeros((2, 5, 2, 2), np.int64))), lambda s: s.x().gather(0, s.of(0)), lambda s: s.x(3, dtype="bool").gather(0, s.of([1, 1])),
     fails=[lambda s: s.x(3).gather(0, s.of([3])), lambda s: s.x(3).gather(0, s.of([-1])), lambda s: s.x(2, 3).gather(0, s.of([0])),
            lambda s: s.x(2, 3).gather(0, s.of([[0, 0, 0, 0]])), lambda s: s.x(3).gather(0, s.of([0.0]))])
case("Tensor.narrow", lambda s: (s.x(4, 3).narrow(0, 1, 2), s.x(4, 3).narrow(-1, -2, 1)), fails=[lambda s: s.x(3).narrow(0, 2, 2)])
case("Tensor.split", lambda s: (s.x(7, 2).split(3), s.x(2, 6).split(2, 1), s.x(7).split([1, 0, 6]), s.x(0).split(2)), fails=[lambda s: s.x(4).split([1, 2]), lambda s: s.x(4).split(0)])
case("Tensor.chunk", lambda s: (s.x(7, 2).chunk(3), s.x(2, 6).chunk(4, 1), s.x(2).chunk(5)), fails=[lambda s: s.x(4).chunk(0)])
case("Tensor.unbind", lambda s: (s.x(2, 3).unbind(), s.x(2, 3).unbind(1)), fails=[lambda s: s.x().unbind()])
case("Tensor.nonzero", lambda s: (s.x(3, 4, of=[0.0, 1.0]).nonzero(), s.x(4, dtype="bool").nonzero(), s.of(1.0).nonzero()))
case("Tensor.T", lambda s: s.x(2, 3).T, lambda s: s.x(3).T)
case("Tensor.mT", lambda s: s.x(2, 3, 4).mT, fails=[lambda s: s.x(3).mT])
case("Tensor.t", lambda s: s.x(2, 3).t(), fails=[lambda s: s.x(2, 3, 4).t()])
case("Tensor.transpose", lambda s: s.x(2, 3, 4).transpose(0, -1), fails=[lambda s: s.x(2, 3).transpose(0, 2)])
case("Tensor.permute", lambda s: (s.x(2, 3, 4).permute(2, 0, 1), s.x(2, 3).permute((1, 0))), fails=[lambda s: s.x(2, 3).permute(0, 0)])
case("Tensor.reshape, Tensor.view", lambda s: (s.x(2, 1, 3, 1).expand(2, 2, 3, 2).reshape(-1), s.x(1, 1, 1, 1, 1, 1, 3).expand(*[2] * 7, 3).reshape(-1), s.x(2, 3).t().reshape(6)),
     lambda s: (s.x(2, 6).reshape(3, -1), s.x(2, 6).reshape((12,)), s.x(2, 6).view(4, 3)), fails=[lambda s: s.x(6).reshape(4, 2), lambda s: s.x(6).view(4)])
case("Tensor.view_as, Tensor.expand_as", lambda s: (s.x(6).view_as(s.x(2, 3)), s.x(3).expand_as(s.x(2, 3))), fails=[lambda s: s.x(6).view_as(s.x(4)), lambda s: s.x(2).expand_as(s.x(3))])
case("Tensor.expand", lambda s: (s.x(3, 1).expand(2, 3, 4), s.x(3, 1).expand(-1, 4)), fails=[lambda s: s.x(3).expand(4)])
case("Tensor.flatten", lambda s: (s.x(2, 3, 4).flatten(), s.x(2, 3, 4).flatten(1), s.x(2, 3, 4).flatten(0, 1), s.x().flatten(), s.x(2, 3, 4).flatten(start_dim=1, end_dim=-1)),
     fails=[lambda s: s.x(2, 3).flatten(2), lambda s: s.x(2, 3).flatten(1, 0)])
case("Tensor.unsqueeze", lambda s: (s.x(2, 3).unsqueeze(0), s.x(2, 3).unsqueeze(-1), s.x(2, 3).unsqueeze(dim=1)), fails=[lambda s: s.x(2).unsqueeze(3)])
case("Tensor.squeeze", lambda s: (s.x(1, 3, 1).squeeze(), s.x(1, 3, 1).squeeze(0), s.x(1, 3, 1).squeeze(1), s.x(1, 3, 1).squeeze(dim=-1), s.x(1, 3, 1).squeeze((0, 2))),
     fails=[lambda s: s.x(2).squeeze(1)])
case("Tensor.clamp", lambda s: (s.x(9).clamp(-0.5, 0.5), s.x(9).clamp(min=0), s.x(9).clamp(max=0.1)))
for name in ("exp", "log", "sqrt", "tanh", "sigmoid", "relu", "neg"):
    case(f"Tensor.{name}", lambda s, n=name: getattr(s.x(6, of=[0.5, 1.5, 2.0]), n)(), tol=1e-9)
case("Tensor.softmax, Tensor.log_softmax", lambda s: (s.x(2, 3).softmax(1), s.x(2, 3).log_softmax(dim=0)), fails=[lambda s: s.x(3).softmax(1)])
case("Tensor.clone", lambda s: s.x(2, 3).clone())
case("Tensor.detach", lambda s: s.x(3).detach().requires_grad)
case("Tensor.contiguous", lambda s: s.x(2, 3).t().contiguous())
case("Tensor.item, Tensor.tolist", lambda s: [s.of([2.5]).item(), s.of(3).item(), s.of(True).item(), *s.x(2, 2, dtype="int64").tolist(), s.of(2.5).tolist()],
     lambda s: [s.of(2.5, "bfloat16").item(), s.of([[0.5, 2.0]], "bfloat16").tolist(), float(s.of([2.5], "bfloat16")), int(s.of(2.5, "bfloat16")), bool(s.of(2.5, "bfloat16")), f"{s.of(2.5, 'bfloat16'):.2f}"],
     fails=[lambda s: s.x(2).item()])


def with_data(s):
    """Written through, and set, on a parameter; the gradient stays."""
    p = s.nn.Parameter(s.x(2, 3, grad=False))
    (p * p).sum().backward()
    p.data.mul_(2.0)
    p.data[0] = 5.0
    p.data = p.data + 1
    return [p.detach(), p.data.requires_grad, p.requires_grad, p.grad]


case("Tensor.data", with_data, fails=[lambda s: setattr(s.x(3), "data", 1.0)])
case("Tensor.type_as, .is_cuda", lambda s: (s.x(3).type_as(s.x(2, dtype="float32")), s.x(3, dtype="int64").type_as(s.x()), s.x(3).is_cuda))
case("Tensor.numel, .dim, .element_size, .is_floating_point", *of_each(lambda x: [x.numel(), x.dim(), x.ndim, x.element_size(), x.is_floating_point()], *ALL, "float16", "bfloat16"))
case("Tensor.size, .shape, .stride", lambda s: [s.x(2, 3).size(1), tuple(s.x(2, 3).shape), s.x(2, 3).stride(), s.x(2, 3)[1].storage_offset()], fails=[lambda s: s.x(2).size(1)])
case("Tensor.float, .double, .half, .bfloat16, .long, .int, .bool", *of_each(lambda x: (x.float(), x.double(), x.half(), x.bfloat16(), x.long(), x.int(), x.bool()), *NUMBERS))
case("Tensor.to", *of_each(lambda x: [x.to("cpu") is x], "float64"), lambda s: (s.x(3).to(s.dtype("float32")), s.x(3).to(dtype=s.dtype("int64")), s.x(3).to("cpu", s.dtype("float32"))),
     lambda s: (s.x(3).to(s.x(2, dtype="float32")), s.x(3).to("cpu", non_blocking=True), s.x(3).to(dtype=s.dtype("float32"), non_blocking=True)),
     *of_each(lambda x: [x.to("cpu", copy=True) is x, x.to(x) is x, x.to(x, copy=True) is x], "float64"), lambda s: s.x(2, 3).to("cpu", copy=True),
     fails=[lambda s: s.x(3).to(s.x(3), dtype=s.dtype("int64")), lambda s: s.x(3).to("cpu", device="cpu"), lambda s: s.x(3).to(s.dtype("int64"), dtype=s.dtype("int64")), lambda s: s.x(3).to(None, 3)])
case("Tensor.cpu", lambda s: [s.x(3).cpu().device == ("cpu" if not s.is_torch else torch.device("cpu"))])
case("Tensor.cuda", fails=[lambda s: s.x(3).cuda()])
case("Tensor.new_full, .new_zeros, .new_ones", lambda s: (s.x(2, dtype="float32").new_full((2, 3), 1.5), s.x(2).new_zeros(2, 3), s.x(2).new_zeros((2,)), s.x(2, dtype="int64").new_ones(3),
                                                          s.x(2).new_full((), 2, dtype=s.dtype("int64"))))
case("Tensor.fill_, Tensor.zero_", lambda s: (s.x(3, grad=False).fill_(2.5), s.x(3, dtype="int64").fill_(2**60 + 1), s.x(2, dtype="bool").fill_(True), s.x(3, grad=False).zero_()),
     fails=[lambda s: s.x(3, dtype="int64").fill_(2**63), lambda s: s.x(3, dtype="uint8").fill_(300), lambda s: s.x(3, dtype="int32").fill_(2**40), lambda s: s.x(3).fill_(1.0)])
case("Tensor.copy_", lambda s: (s.x(2, 3, grad=False).copy_(s.x(3, grad=False)), s.x(3, dtype="float32", grad=False).copy_(s.of([1, 2, 3]))),
     fails=[lambda s: s.x(3, grad=False).copy_(s.x(2, grad=False)), lambda s: s.x(3).copy_(s.x(3))])
case("torch.full, .zeros_like, .ones_like, .full_like", lambda s: (s.m.full((2, 3), 1.5), s.m.full((), 7), s.m.full((2,), True), s.m.full((2,), np.int64(3)), s.m.full((2,), 3, dtype=s.dtype("float64")),
     s.m.zeros_like(s.x(2, 3)), s.m.ones_like(s.x(2, dtype="int64")), s.m.full_like(s.x(2), 2.5), s.m.zeros_like(s.x(2), dtype=s.dtype("int64"))))
ONE = ("abs amax amin any all argmax argmin argsort clone exp flatten isfinite isinf isnan log logical_not max mean min neg nonzero norm numel relu sigmoid "
       "sort sqrt squeeze std sum tanh unbind var")
MORE = {"add": (2.0,), "sub": (2.0,), "mul": (2.0,), "div": (2.0,), "eq": (1.5,), "ne": (1.5,), "lt": (1.5,), "le": (1.5,), "gt": (1.5,), "ge": (1.5,), "chunk": (2,),
        "clamp": (0.6, 1.6), "softmax": (1,), "log_softmax": (1,), "narrow": (1, 0, 2), "permute": ((1, 0),), "pow": (2,), "reshape": ((3, 2),), "split": (1,), "topk": (2,),
        "transpose": (0, 1), "unsqueeze": (0,)}
case("torch.exp(x), torch.sum(x, dim), …",
     *[lambda s, n=name: getattr(s.m, n)(s.x(2, 3, of=[0.5, 1.5, 2.0, 4.0])) for name in ONE.split()], *[lambda s, n=n, a=a: getattr(s.m, n)(s.x(2, 3), *a) for n, a in MORE.items()],
     lambda s: (s.m.sum(s.x(2, 3), dim=1), s.m.max(s.x(2, 3), dim=1), s.m.max(s.x(3), s.x(3)), s.m.mean(s.x(2, 3), 0, keepdim=True), s.m.matmul(s.x(2, 3), s.x(3, 2))),
     lambda s: (s.m.gather(s.x(2, 3), 1, s.of([[0], [2]])), s.m.masked_fill(s.x(3), s.of([True, False, True]), 0.0), s.m.sign(s.x(3, grad=False))),
     fails=[lambda s: s.m.exp([1.0]), lambda s: s.m.sum(s.x(3), dim=1)], tol=1e-9)
DTYPES = "float16 half bfloat16 float32 float float64 double uint8 int32 int int64 long bool".split()
case("torch.float32, .float, .long, …", lambda s: [str(getattr(s.m, n)).removeprefix("torch.") for n in DTYPES], lambda s: [s.x(2, dtype="float32").dtype == s.m.float, s.x(2).bool().dtype == s.m.bool],
     lambda s: s.m.zeros(2, dtype=s.m.long), lambda s: s.m.tensor([1, 0], dtype=s.m.bool), lambda s: s.x(2).to(s.m.float32))


def switches(s):
    """Within, after, nested, and as a call; an error restores what was before."""
    seen = []
    with s.m.no_grad():
        with s.m.enable_grad():
            seen.append(s.m.is_grad_enabled())
        with s.m.set_grad_enabled(True):
            seen.append((s.x(2) * 2).requires_grad)
            with pytest.raises(KeyError):
                with s.m.set_grad_enabled(False):
                    raise KeyError
            seen.append(s.m.is_grad_enabled())
        seen.append(s.m.is_grad_enabled())
    try:
        s.m.set_grad_enabled(False)
        seen.append((s.x(2) * 2).requires_grad)
    finally:
        s.m.set_grad_enabled(True)
    return [*seen, s.m.is_grad_enabled()]


case("torch.enable_grad, .set_grad_enabled, .is_grad_enabled", switches)
case("torch.cat, torch.stack", lambda s: (s.m.cat([s.x(2, 3), s.x(1, 3)]), s.m.cat([s.x(2, 3), s.x(2, 1)], dim=1), s.m.stack([s.x(3), s.x(3)], dim=1)),
     fails=[lambda s: s.m.cat([s.x(2, 3), s.x(2, 2)]), lambda s: s.m.stack([s.x(2), s.x(3)])])


# ---- modules, copies, in place: more than one expression ----


def model(s):
    return s.nn.Sequential(s.nn.Linear(3, 4), s.nn.ReLU(), s.nn.Sequential(s.nn.Linear(4, 2)))


@own("nn.Module.register_forward_hook, .register_forward_pre_hook")
def hooks(s):
    """Order, arguments, replaced inputs and outputs, prepend, kwargs, remove."""
    net, seen = model(s), []
    x = s.x(2, 3, dtype="float32")
    handles = [net.register_forward_pre_hook(lambda m, a: seen.append(("pre", type(m).__name__, len(a), tuple(a[0].shape)))),
               net[0].register_forward_hook(lambda m, a, y: seen.append(("post", type(m).__name__, tuple(y.shape)))),
               net.register_forward_hook(lambda m, a, y: y * 0 + 1),
               net.register_forward_hook(lambda m, a, y: seen.append(("last", float(y.sum())))),
               net.register_forward_hook(lambda m, a, y: seen.append(("first",)), prepend=True),
               net[2].register_forward_pre_hook(lambda m, a, k: seen.append(("kwargs", len(a), sorted(k))), with_kwargs=True),
               net[2].register_forward_pre_hook(lambda m, a: a[0] * 0)]
    y = net(x)
    seen.append(tuple(y.shape))
    for handle in handles[:4]:
        handle.remove()
        handle.remove()
    changed = float((net(x) - net[2][0].bias).abs().sum())  # the last pre-hook still gives zeros
    return [*seen, changed]


@own("nn.Module.named_children, .children, .named_modules, .modules, .apply")
def tree(s):
    """A shared module appears once among children and modules."""
    net = model(s)
    net.add_module("again", net[0])
    called = []
    net.apply(lambda m: called.append(type(m).__name__))
    return [[n for n, _ in net.named_children()], len(list(net.children())), [n for n, _ in net.named_modules()], len(list(net.modules())), called]


@own("nn.Module.half, .float, .double, .bfloat16, .cpu")
def converted(s):
    return [str(getattr(model(s), name)()[0].weight.dtype).removeprefix("torch.") for name in ("half", "bfloat16", "float", "double", "cpu")]


@own("nn.Parameter (subclasses)")
def subclass(s):
    """An instance of a subclass is a parameter of the module; so is one of Buffer a buffer."""
    kind = type("Scale", (s.nn.Parameter,), {})
    net = s.nn.Linear(2, 2)
    net.scale = kind(s.x(3, dtype="float32", grad=False))
    return [[n for n, _ in net.named_parameters()], type(net.scale).__name__, net.scale.requires_grad]


def values_of(s, state):
    return [np.asarray(v.detach().cpu().numpy()).shape for v in state.values()]


@own("copy.deepcopy")
def deepcopy(s):
    """Tensors, views that share memory, parameters, modules with tied weights, gradients; results of ops are refused."""
    base = s.x(4, 3, grad=False)
    both = copy.deepcopy([base, base[1:], base])
    both[0][1, 0] = 99.0
    leaf = s.x(3)
    (leaf * leaf).sum().backward()
    twin = copy.deepcopy(leaf)
    net = model(s)
    net.tied = net[0]
    clone = copy.deepcopy(net)
    clone[0].weight.data_ptr()
    with pytest.raises(RuntimeError):
        copy.deepcopy(leaf * 2)
    return [both[2] is both[0], float(both[1][0, 0]), float(base[1, 0]) != 99.0, twin.requires_grad, twin.is_leaf, twin is not leaf,
            np.array_equal(twin.grad.numpy(), leaf.grad.numpy()), clone.tied is clone[0], clone[0] is not net[0], clone[0].weight is not net[0].weight,
            type(clone[0].weight) is type(net[0].weight), clone[0].weight.requires_grad, list(clone.state_dict()) == list(net.state_dict()),
            copy.deepcopy(base.t()).stride()]


@own("copy.copy")
def shallow(s):
    """Of a tensor: the same memory, the same requires_grad; of a module: the same parameters."""
    base = s.x(3, grad=False)
    twin = copy.copy(base)
    twin[0] = 99.0
    net = model(s)
    other = copy.copy(net)
    return [float(base[0]), twin is not base, copy.copy(s.x(3)).requires_grad, copy.copy(s.x(3)).is_leaf, other is not net, other[0] is net[0], type(other) is type(net)]


@own("pickle")
def pickled(s):
    """Tensors of every dtype, parameters, modules and optimizers come back; one tensor in two places as one."""
    result = []
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        for dtype in (*ALL, "float16", "bfloat16"):
            x = s.x(2, 3, 2, 2, dtype=dtype, grad=False)
            result.append(pickle.loads(pickle.dumps(x, protocol)))
        leaf = s.x(3)
        a, b = pickle.loads(pickle.dumps([leaf, leaf], protocol))
        result += [a is b, a.requires_grad, s.x(3, grad=False)[1:].t() if False else pickle.loads(pickle.dumps(s.x(3, 4, grad=False).t(), protocol))]
        net = pickle.loads(pickle.dumps(model(s), protocol))
        result += [type(net[0].weight).__name__, net[0].weight.requires_grad, list(net.state_dict())]
    return result


@own("copy.deepcopy((model, optimizer)), pickle")
def optimizers(s):
    """The optimizer's copy keeps its state and steps the copied parameters, not the old ones."""
    opt_module = torch.optim if s.is_torch else asenpp.optim
    result = []
    for again in (copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))):
        net = s.nn.Linear(3, 2)
        opt = opt_module.Adam(net.parameters(), lr=0.1)
        for _ in range(2):
            net(s.x(2, 3, dtype="float32", grad=False)).sum().backward()
            opt.step()
        net2, opt2 = again((net, opt))
        before = [float(p.detach().abs().sum()) for p in net.parameters()]
        same = all(p is q for p, q in zip(opt2.param_groups[0]["params"], net2.parameters()))
        opt2.zero_grad()
        net2(s.x(2, 3, dtype="float32", grad=False)).sum().backward()
        opt2.step()
        result += [same, before == [float(p.detach().abs().sum()) for p in net.parameters()], len(opt2.state), len(opt.state),
                   before != [float(p.detach().abs().sum()) for p in net2.parameters()], float(opt2.state_dict()["state"][0]["step"])]
    return result


@own("hash(x)")
def hashed(s):
    """Tensors are keys by identity, though == compares elements."""
    a, b = s.of([1.0, 2.0], grad=False), s.of([1.0, 2.0], grad=False)
    table = {a: "a", b: "b"}
    return [len({a, b, a}), table[a], table[b], hash(a) == hash(a), a in {a}, a in {b}, a in [a]]


@own("nn.Module (buffers)")
def buffers(s):
    """forward() may set a registered buffer anew; it is saved, and found by its name."""
    class Mean(s.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", s.of([0.0, 0.0], grad=False))
            self.register_buffer("grid", s.of([1.0], grad=False), persistent=False)

        def forward(self, x):
            self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
            return x - self.mean

    net = Mean()
    y = net(s.of([[1.0, 3.0], [3.0, 5.0]]))
    twins = copy.deepcopy(net), copy.copy(net)
    loaded = net.load_state_dict(net.state_dict())
    with pytest.raises((KeyError, RuntimeError)):
        net.load_state_dict({**net.state_dict(), "grid": net.grid})
    return [y, net.mean, net.state_dict()["mean"], [n for n, _ in net.named_buffers()], [list(t.state_dict()) for t in (net, *twins)] == [["mean"]] * 3,
            list(net.state_dict()), bool(loaded), net.double().grid.dtype == s.dtype("float64")]


@own("nn.Module.zero_grad, optimizer.zero_grad")
def zeroed(s):
    opt_module = torch.optim if s.is_torch else asenpp.optim
    result = []
    for none in (True, False):
        net = model(s)
        opt = opt_module.SGD(net.parameters(), lr=0.1)
        for forget in (net.zero_grad, opt.zero_grad):
            forget(set_to_none=none)
            net(s.x(2, 3, dtype="float32", grad=False)).sum().backward()
            forget(set_to_none=none)
            result += [p.grad is None or float(p.grad.abs().sum()) for p in net.parameters()]
    return result


@own("nn.Sequential, nn.ModuleList, nn.ModuleDict")
def containers(s):
    """Slices are containers themselves, and keep the modules."""
    net = model(s).append(s.nn.ReLU())
    part, modules = net[1:], s.nn.ModuleList([net[0]]).extend([net[1], net[2]])
    table = s.nn.ModuleDict({"a": net[0]})
    table.update({"b": net[1], "a": net[2]})
    return [type(part).__name__, len(part), part[0] is net[1], [n for n, _ in part.named_children()], part(s.of(np.ones((2, 4)), "float32")).shape == (2, 2),
            type(modules[:2]).__name__, len(modules), modules[1:][0] is net[1], list(table.keys()), table["a"] is net[2], len(net), len(net[::2])]


@own("nn.ReLU, F.relu, nn.Flatten")
def layers(s):
    """In place the result is the input, and part of the graph."""
    x = s.x(2, 3, 4)
    y, z = x * 2, x * 3
    return [s.nn.ReLU(inplace=True)(y) is y, y, s.F.relu(z, inplace=True) is z, z, s.nn.ReLU()(x), s.nn.Flatten()(x), s.nn.Flatten(0, 1)(x), s.nn.Flatten(0)(x)]


@own("F.normalize, F.cosine_similarity")
def normalized(s):
    """Rows, vectors, maps; other norms; small eps; zeros."""
    v, rows, maps = s.x(4), s.x(3, 4), s.x(2, 3, 4, 5)
    zero = s.of([[0.0, 0.0], [3.0, 4.0]], grad=False)
    return [s.F.normalize(v, dim=0), s.F.normalize(v, dim=-1), s.F.normalize(rows), s.F.normalize(rows, dim=0), s.F.normalize(maps), s.F.normalize(maps, dim=-1),
            s.F.normalize(rows, p=1), s.F.normalize(rows, p=3.0, dim=0), s.F.normalize(rows, p=INF), s.F.normalize(zero, dim=0), s.F.normalize(zero), s.F.normalize(rows, eps=100.0, dim=0),
            s.F.cosine_similarity(rows, s.x(3, 4)), s.F.cosine_similarity(v, s.x(4), dim=0), s.F.cosine_similarity(rows.unsqueeze(1), s.x(2, 4).unsqueeze(0), dim=-1),
            s.F.cosine_similarity(maps, s.x(2, 3, 4, 5)), s.F.cosine_similarity(rows, v, dim=-1), s.F.cosine_similarity(rows, v.unsqueeze(0)), s.F.cosine_similarity(rows, s.x(3, 4), dim=0),
            s.F.cosine_similarity(s.x(1, 4), s.x(3, 1)), s.F.cosine_similarity(s.x(2, 3, 1, 1), s.x(1, 1, 1, 3))]


@own("F.leaky_relu, F.elu, F.silu, nn.LeakyReLU")
def activations(s):
    x = s.x(20, of=[-3.0, -0.5, 0.0, 0.25, 4.0])
    return [s.F.leaky_relu(x, 0.2), s.F.leaky_relu(x), s.F.elu(x, 1.5), s.F.silu(x), s.nn.LeakyReLU(0.1)(x)]


def changed(f, *shape, dtype="float64", **kind):
    """f in place on the result of an op, and on a view of one, whose base is returned too; y takes part in the graph."""
    def run(s):
        x, y = s.x(*shape, dtype=dtype, **kind), s.x(*shape[-1:], dtype=dtype, **kind)
        whole = x * 1 if dtype != "bool" else x & True
        base = x * 1 if dtype != "bool" else x & True
        view = base[1:]
        alias = whole
        result = f(whole, y)
        f(view, y)
        return [result is alias, result, base, view]
    return run


def with_(operator):
    def run(x, y):
        scope = {"x": x, "y": y}
        exec(f"x {operator} y", scope)
        return scope["x"]
    return run


case("x += y, x -= y, x *= y, x /= y, x //= y, x &= y, x |= y, x ^= y",
     *[changed(with_(o), 3, 4) for o in ("+=", "-=", "*=", "/=")], *[changed(with_(o), 3, 4, dtype="int64") for o in ("+=", "-=", "*=")],
     changed(with_("//="), 3, 4, dtype="int64", of=[-3, 1, 2]), *[changed(with_(o), 3, 4, dtype="bool") for o in ("&=", "|=", "^=")],
     lambda s: with_("+=")(s.x(3, grad=False), 2.5), lambda s: with_("*=")(s.x(2, 3, grad=False), s.x(3, dtype="bool")),
     lambda s: with_("+=")(s.x(3, dtype="int64"), 2**60 + 1),
     fails=[lambda s: with_("+=")(s.x(3), 1.0), lambda s: with_("+=")(s.x(3) * 1, s.x(2, 3)), lambda s: with_("+=")(s.x(3, dtype="int64"), 0.5),
            lambda s: with_("/=")(s.x(3, dtype="int64"), 2), lambda s: with_("-=")(s.x(3, dtype="bool"), True), lambda s: with_("+=")(s.x(3) * 1, "a"),
            lambda s: with_("+=")(s.x(3, dtype="bool"), 2), lambda s: with_("+=")(s.x(3).detach().expand(2, 3), 1.0)], tol=1e-9)
case("Tensor.add_, .sub_, .mul_, .div_", *[changed(lambda x, y, n=n: getattr(x, n)(y), 3, 4) for n in ("add_", "sub_", "mul_", "div_")],
     changed(lambda x, y: x.add_(y, alpha=2), 3, 4), changed(lambda x, y: x.sub_(y, alpha=0.5), 3, 4), lambda s: s.x(3, grad=False).mul_(2.5),
     fails=[lambda s: s.x(3).add_(1.0), lambda s: s.x(3)[:2].mul_(2.0), lambda s: (s.x(3) * 1).add_(s.x(2))], tol=1e-9)
case("Tensor.neg_, .exp_, .sqrt_, .tanh_, .sigmoid_, .relu_, .clamp_, .masked_fill_",
     *[changed(lambda x, y, n=n: getattr(x, n)(), 3, 4, of=[0.5, 1.5, 2.0]) for n in ("neg_", "exp_", "sqrt_", "tanh_", "sigmoid_", "relu_")],
     changed(lambda x, y: x.clamp_(min=1.0), 3, 4), changed(lambda x, y: x.clamp_(-0.5, 0.5), 3, 4), lambda s: (s.x(3) * 1).masked_fill_(s.x(3, dtype="bool"), 2.0),
     fails=[lambda s: s.x(3).exp_(), lambda s: s.x(3, dtype="int64").exp_(), lambda s: (s.x(3) * 1).masked_fill_(s.x(2, 3, dtype="bool"), 2.0)], tol=1e-9)


# ---- the tables against the cases, and the comparison ----


def lines():
    """What stands as code in the first columns of the tables under the heading of PyTorch's names."""
    text = API.read_text(encoding="utf-8").split("## PyTorch's names", 1)[1].split("\n## ", 1)[0]
    cells = [re.split(r"(?<!\\)\|", line)[1] for line in text.splitlines() if line.startswith("| `")]
    return [", ".join(re.findall(r"`([^`]+)`", cell)).replace("\\|", "|") for cell in cells]


def test_every_line_of_the_tables_is_compared():
    """Both ways; no line stands twice."""
    found = lines()
    assert len(found) > 100 and len(found) == len(set(found))
    assert set(found) == set(CASES) | set(MODULE_CASES), sorted(set(found) ^ (set(CASES) | set(MODULE_CASES)))


RUNS = [(name, i) for name, runs in CASES.items() for i in range(len(runs))]
REFUSED = [(name, i) for name, fails in FAILS.items() for i in range(len(fails))]
needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")


def outcome(library, name, function):
    side = Side(library, name)
    results = flat(function(side))
    values = [plain(side, r) for r in results]
    return values, [side.is_tensor(r) and r.requires_grad for r in results], backward(side, results)


def compare(name, function, tol):
    ours, theirs = outcome("asenpp", name, function), outcome("torch", name, function)
    assert len(ours[0]) == len(theirs[0]) and ours[1] == theirs[1]
    for a, b in zip(ours[0], theirs[0]):
        same(a, b, tol)
    for a, b in zip(ours[2], theirs[2], strict=True):
        none = [g for g in (a, b) if g is None]
        if len(none) == 1:  # no gradient, or zeros
            other = b if a is None else a
            assert not np.any(other[2])
        elif not none:
            same(a, b, tol)


@needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, i", RUNS, ids=[f"{n}-{i}" for n, i in RUNS])
def test_as_in_pytorch(name, i):
    """Values, dtypes, shapes, whether a gradient is wanted, and the gradients."""
    compare(name, CASES[name][i], TOLERANCE[name])


@needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, i", REFUSED, ids=[f"{n}-{i}" for n, i in REFUSED])
def test_refused_as_in_pytorch(name, i):
    """What PyTorch refuses is refused, with one of Python's kinds of errors and a message."""
    with pytest.raises((RuntimeError, TypeError, ValueError, IndexError, AssertionError, NotImplementedError)):
        FAILS[name][i](Side("torch", name))
    with pytest.raises((RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)) as error:
        FAILS[name][i](Side("asenpp", name))
    assert len(str(error.value)) > 10


@needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODULE_CASES)
def test_modules_and_copies_as_in_pytorch(name):
    compare(name, MODULE_CASES[name], 1e-6)


@needs_torch
def test_the_comparison_can_fail():
    """A value, a dtype, a shape and a gradient that differ are each caught."""
    for wrong in (lambda s: s.x(3) * (1 if s.is_torch else 1.001), lambda s: s.x(3).to(s.dtype("float64" if s.is_torch else "float32")),
                  lambda s: s.x(3) if s.is_torch else s.x(3).unsqueeze(0), lambda s: s.x(3) * 2 if s.is_torch else s.x(3) + s.x(3).detach(),
                  lambda s: 1 if s.is_torch else 1.0):
        with pytest.raises(AssertionError):
            compare("sum", wrong, 1e-9)


@pytest.mark.parametrize("wrong", [lambda x: x % np.float32(2), lambda x: np.float32(2) % x, lambda x: x % 2.0])
def test_remainders_of_floats_are_refused(wrong):
    """NumPy would answer with an array, and lose the gradient, where the tensor declines."""
    with pytest.raises(TypeError, match="% is for integers"):
        wrong(asenpp.ones(3))


def test_numbers_that_a_dtype_lacks_are_refused_by_tensor():
    """As by torch.tensor; an array is converted as NumPy does."""
    for dtype, number in (("uint8", 256), ("uint8", -1), ("int32", 2**31)):
        with pytest.raises(ValueError, match=dtype):
            asenpp.tensor([0, number], dtype=dtype)
    assert asenpp.tensor([0, 255], dtype="uint8").tolist() == [0, 255]


@needs_torch
@pytest.mark.parametrize("make", [lambda m, d: m.tensor([0.1, 1e300], dtype=d), lambda m, d: m.tensor(0.1, dtype=d), lambda m, d: m.tensor([2**53 + 1, 0.5], dtype=d),
                                  lambda m, d: m.arange(0, 1, 0.1, dtype=d), lambda m, d: m.full((2,), 0.1, dtype=d), lambda m, d: m.tensor([True, False], dtype=d)])
def test_numbers_go_to_the_dtype_that_is_asked_for_without_a_rounding_between(make):
    """A float64 of Python's floats is not one of their float32."""
    assert make(asenpp, "float64").tolist() == make(torch, torch.float64).tolist()
    assert make(asenpp, "float64").dtype == "float64"


def test_a_buffer_keeps_no_history():
    """Set to the result of an op, it says what to write instead; the wrong shape of `data`, too."""
    net = nn.Module()
    net.register_buffer("mean", asenpp.zeros(2))
    with pytest.raises(ValueError, match="detach"):
        net.mean = asenpp.ones(2, requires_grad=True) * 2
    with pytest.raises(ValueError, match="new tensor"):
        net.mean.data = asenpp.zeros(3)
    assert net.mean.tolist() == [0, 0]


def test_modules_pickled_before_buffers_could_be_left_out_load():
    """Such a pickle knows nothing of which buffers are saved: all are."""
    net = nn.BatchNorm2d(2)
    net.__dict__.pop("_unsaved", None)
    twin = pickle.loads(pickle.dumps(net))
    assert list(twin.state_dict()) == list(net.state_dict()) and "running_mean" in twin.state_dict()


def test_tensors_of_16_bits_show_their_values():
    assert "[1.5" in repr(asenpp.tensor([1.5, 2]).bfloat16()) and "[1.5" in repr(asenpp.tensor([1.5, 2]).half())


def test_the_order_of_nan():
    """sort has NaN last, and first with nan_first; the first of equal ones wins."""
    x = asenpp.tensor([2.0, NAN, 1.0, NAN])
    order = {attrs: _asen.sort(x, descending=attrs[0], nan_first=attrs[1])[1].tolist() for attrs in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert order == {(0, 0): [2, 0, 1, 3], (0, 1): [1, 3, 2, 0], (1, 0): [1, 3, 0, 2], (1, 1): [1, 3, 0, 2]}
