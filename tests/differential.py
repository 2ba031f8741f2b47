"""Tensors against NumPy: random views, strides, dtypes, operations, comparisons and writes in place.

    python tests/differential.py --checks 1000000 --out build/differential.json

A round makes a few arrays and tensors of the same values, views of views of them on both sides (slices with
steps, other orders of dims, new dims, expanded ones), applies operations to views and compares each result, and
writes into views, after which the whole memory is compared: a write must reach what shares the memory, and
nothing else. Every comparison of a result or a memory is a check. Values are halves of small integers, so that
sums are exact in every order, with infinities, NaN and -0 among floats. A mismatch stops with the round's
number, from which `--seed` and `--round` repeat it.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import asenpp  # noqa: E402
from asenpp import _asen  # noqa: E402

WHOLE = ("bool", "uint8", "int32", "int64")
COMPUTED = ("float32", "float64")  # floats in which the CPU computes; float16 is stored, compared and moved
DTYPES = (*WHOLE, *COMPUTED, "float16")


class Mismatch(AssertionError):
    """What was done, and how the two sides differ."""


class Pair:
    """A view of an array and the same view of a tensor; `whole`: the memory behind both."""

    def __init__(self, array, tensor, whole=None, writable=True):
        self.array, self.tensor, self.whole, self.writable = array, tensor, whole or self, writable

    @property
    def dtype(self):
        return self.array.dtype.name


class Round:
    """One round: draws everything from a generator of its own."""

    def __init__(self, seed, number):
        self.rng = np.random.default_rng([seed, number])
        self.checks, self.log = 0, []

    # -- values and views ---------------------------------------------------------------------------

    def one_of(self, items):
        return items[int(self.rng.integers(len(items)))]

    def values(self, shape, dtype):
        if dtype == "bool":
            return self.rng.integers(0, 2, shape).astype(bool)
        if dtype in WHOLE:
            ends = {"uint8": [0, 255], "int32": [-2**31, 2**31 - 1], "int64": [-2**63, 2**63 - 1]}[dtype]
            array = self.rng.integers(0 if dtype == "uint8" else -6, 7, shape).astype(dtype)
            return np.where(self.rng.random(shape) < 0.05, self.rng.choice(np.array(ends, dtype), shape), array).astype(dtype)
        array = self.rng.integers(-8, 9, shape) / 2
        if self.rng.random() < 0.3:
            array = np.where(self.rng.random(shape) < 0.1, self.rng.choice([np.inf, -np.inf, np.nan, -0.0], shape), array)
        return np.asarray(array, dtype)

    def shape(self, most=5):
        return tuple(int(n) for n in self.rng.choice([0, 1, 1, 2, 3, 4, 5], int(self.rng.integers(0, most))))

    def new(self, shape, dtype):
        """A pair of the same values, the tensor with memory of its own or NumPy's."""
        array = np.array(self.values(shape, dtype))
        return Pair(array, _asen.from_numpy(array.copy()) if self.rng.random() < 0.3 else asenpp.tensor(array).clone())

    def key(self, shape):
        """An index of basic items."""
        items = []
        for n in shape:
            draw = self.rng.random()
            if draw < 0.15 and n:
                items.append(int(self.rng.integers(-n, n)))
            elif draw < 0.75:
                bounds = [None if self.rng.random() < 0.3 else int(self.rng.integers(-n - 1, n + 2)) for _ in range(2)]
                items.append(slice(*bounds, self.one_of([None, 1, 2, 3])))
            elif draw < 0.85 and ... not in items:
                items.append(...)
                break
            elif draw < 0.92 and len(shape) + items.count(None) < 8:
                items += [None, slice(None)]
            else:
                break
        return tuple(items)

    def view(self, pair):
        """The same view on both sides."""
        array, tensor, writable = pair.array, pair.tensor, pair.writable
        what = self.one_of(["index", "index", "permute", "expand", "transpose", "narrow"])
        if what == "index":
            key = self.key(array.shape)
            array, tensor = array[key if len(key) != 1 else key[0]], tensor[key if len(key) != 1 else key[0]]
            array = np.asarray(array) if not isinstance(array, np.ndarray) else array
            writable = writable and (array.base is not None or array is pair.array)
        elif what == "permute" and array.ndim:
            dims = [int(d) for d in self.rng.permutation(array.ndim)]
            array, tensor = array.transpose(dims), tensor.permute(dims)
        elif what == "transpose" and array.ndim > 1:
            a, b = (int(d) for d in self.rng.integers(-array.ndim, array.ndim, 2))
            array, tensor = array.swapaxes(a, b), tensor.transpose(a, b)
        elif what == "narrow" and array.ndim and array.shape[0]:
            start = int(self.rng.integers(array.shape[0]))
            array, tensor = array[start:start + 1], tensor.narrow(0, start, 1)
        elif what == "expand" and array.ndim < 6:
            shape = (int(self.rng.integers(1, 4)), *(int(self.rng.integers(1, 4)) if n == 1 else n for n in array.shape))
            array, tensor, writable = np.broadcast_to(array, shape), tensor.expand(shape), False
        self.log.append(f"{what} -> {array.shape} {array.dtype}")
        return Pair(array, tensor, pair.whole, writable)

    def some_view(self, pair):
        for _ in range(int(self.rng.integers(0, 4))):
            pair = self.view(pair)
        return pair

    def partner(self, pair, dtype=None):
        """Another pair whose shape broadcasts to this one's: fresh, or the pair itself."""
        if self.rng.random() < 0.1 and dtype in (None, pair.dtype):
            return pair
        shape = [n if self.rng.random() < 0.7 else 1 for n in pair.array.shape]
        shape = shape[int(self.rng.integers(0, len(shape) + 1)):] if self.rng.random() < 0.3 else shape
        other = self.new(tuple(shape), dtype or pair.dtype)
        if other.array.ndim > 1 and self.rng.random() < 0.3:  # other strides, the same shape
            dims = list(range(other.array.ndim))[::-1]
            other = Pair(np.ascontiguousarray(other.array.transpose(dims)).transpose(dims),
                         other.tensor.permute(dims).clone().permute(dims))
        return other

    # -- comparing ------------------------------------------------------------------------------------

    def same(self, what, tensor, array, tol=0.0):
        self.checks += 1
        got = tensor.numpy() if isinstance(tensor, asenpp.Tensor) else np.asarray(tensor)
        array = np.asarray(array)
        if got.dtype == array.dtype and got.shape == array.shape:
            if tol == 0 and (np.array_equal(got, array) or (got.dtype.kind == "f" and np.array_equal(got, array, equal_nan=True))):
                return
            if tol and np.allclose(got, array, rtol=tol, atol=tol, equal_nan=True):
                return
        raise Mismatch(f"{what}\ngot {got.dtype} {got.shape}:\n{got}\nwanted {array.dtype} {array.shape}:\n{array}\nafter:\n" + "\n".join(self.log))

    def whole_is_same(self, what, pair):
        self.same(f"{what}: the memory", pair.whole.tensor, pair.whole.array)

    # -- what is done -----------------------------------------------------------------------------------

    def arithmetic(self, x):
        if x.dtype == "float16":
            return self.comparison(x)
        y = self.partner(x)
        name = self.one_of({"bool": ["and", "or", "xor"]}.get(x.dtype, ["add", "sub", "mul", "div"]))
        if name == "div" and x.dtype in WHOLE:
            y = Pair(np.where(y.array == 0, np.ones_like(y.array), y.array), y.tensor.masked_fill(y.tensor == 0, 1))
            if x.dtype in ("int32", "int64"):  # the least number by -1 wraps here, NumPy warns and wraps too
                return self.same("floor divide", x.tensor // y.tensor, x.array // y.array)
            return self.same("floor divide", x.tensor // y.tensor, x.array // y.array)
        a, b, s, t = x.array, y.array, x.tensor, y.tensor
        if self.rng.random() < 0.2 and x.dtype not in ("bool", "uint8"):
            number = int(self.rng.integers(1, 5)) if x.dtype in WHOLE else float(self.rng.integers(1, 9)) / 2
            b, t = a.dtype.type(number), number
            if self.rng.random() < 0.5:
                a, b, s, t = b, a, t, s
                if name == "div":
                    name = "sub"
        f = {"add": lambda p, q: p + q, "sub": lambda p, q: p - q, "mul": lambda p, q: p * q, "and": lambda p, q: p & q,
             "or": lambda p, q: p | q, "xor": lambda p, q: p ^ q,
             "div": lambda p, q: p // q if x.dtype in WHOLE else p / q}[name]
        self.same(name, f(s, t), np.asarray(f(a, b), x.dtype))

    def comparison(self, x):
        y = self.partner(x)
        f = self.one_of([lambda p, q: p < q, lambda p, q: p <= q, lambda p, q: p == q, lambda p, q: p != q,
                         lambda p, q: p > q, lambda p, q: p >= q])
        if self.rng.random() < 0.3 and x.dtype not in ("bool", "uint8"):
            number = int(self.rng.integers(-3, 4))
            return self.same("compare with a number", f(x.tensor, number), f(x.array, number))
        self.same("compare", f(x.tensor, y.tensor), f(x.array, y.array))

    def choice(self, x):
        y, mask = self.partner(x), self.partner(x, "bool")
        self.same("where", asenpp.where(mask.tensor, x.tensor, y.tensor), np.where(mask.array, x.array, y.array))
        if x.dtype != "float16":
            self.same("maximum", x.tensor.maximum(y.tensor), np.maximum(x.array, y.array))
            self.same("minimum", x.tensor.minimum(y.tensor), np.minimum(x.array, y.array))

    def unary(self, x):
        self.same("bool", x.tensor.bool(), x.array.astype(bool))
        self.same("isnan", x.tensor.isnan(), np.isnan(x.array) if x.array.dtype.kind == "f" else np.zeros(x.array.shape, bool))
        if x.dtype in ("int32", "int64", *COMPUTED):
            self.same("neg", -x.tensor, -x.array)
            self.same("abs", x.tensor.abs(), np.abs(x.array))
        self.same("nonzero", x.tensor.nonzero(), np.argwhere(x.array))

    def conversion(self, x):
        dtype = self.one_of(DTYPES)
        array = x.array
        if array.dtype.kind == "f" and dtype in WHOLE:
            array = np.where(np.isfinite(array), array, 0)
            tensor = asenpp.where(x.tensor.isfinite(), x.tensor, asenpp.zeros_like(x.tensor)).to(dtype)
            array = array.astype(bool if dtype == "bool" else np.int64).astype(dtype)
        else:
            tensor, array = x.tensor.to(dtype), array.astype(dtype)
        self.same(f"to {dtype}", tensor, array)

    def reduction(self, x):
        if x.dtype == "float16":
            return self.ordering(x)
        dims = [int(d) for d in self.rng.permutation(x.array.ndim)[:int(self.rng.integers(0, x.array.ndim + 1))]]
        axis, keep = tuple(dims) if dims else None, bool(self.rng.random() < 0.5)
        a, t, given = x.array, x.tensor, {"keepdim": keep}
        whole = x.dtype in WHOLE
        self.same("sum", t.sum(dims=dims or None, **given), np.asarray(a.sum(axis, dtype=np.int64 if whole else x.dtype, keepdims=keep)))
        self.same("any", t.any(dims or None, keep), np.asarray((a != 0).any(axis, keepdims=keep)))
        self.same("all", t.all(dims or None, keep), np.asarray((a != 0).all(axis, keepdims=keep)))
        count = np.prod([a.shape[d] for d in (dims or range(a.ndim))], dtype=int)
        if count:
            self.same("amax", t.amax(dims or None, keep), np.asarray(a.max(axis, keepdims=keep)))
            self.same("amin", t.amin(dims or None, keep), np.asarray(a.min(axis, keepdims=keep)))
        if count > 1 and not whole and np.isfinite(a).all():
            self.same("mean", t.mean(dims=dims or None, **given), np.asarray(a.mean(axis, keepdims=keep)), 1e-6)
            self.same("var", t.var(dims or None, keepdim=keep), np.asarray(a.astype(np.float64).var(axis, ddof=1, keepdims=keep), x.dtype), 1e-5)

    def ordering(self, x):
        a, t = x.array, x.tensor
        if a.ndim == 0:
            return self.same("argmax", t.sort().values, a)
        dim = int(self.rng.integers(-a.ndim, a.ndim))
        order = np.argsort(a, dim, kind="stable")
        values, indices = t.sort(dim)
        self.same("sort", values, np.take_along_axis(a, order, dim))
        self.same("argsort", indices, order)
        if a.shape[dim]:
            k = int(self.rng.integers(0, a.shape[dim] + 1))
            self.same("topk", t.topk(k, dim, largest=False).indices, np.take(order, range(k), dim))
            index = self.rng.integers(0, a.shape[dim], [n if d != dim % a.ndim else int(self.rng.integers(1, 4)) for d, n in enumerate(a.shape)])
            self.same("gather", t.gather(dim, asenpp.tensor(index)), np.take_along_axis(a, index, dim))
            if a.size and x.dtype != "bool":
                self.same("argmax", t.argmax(dim), a.argmax(dim))
                self.same("argmin", t.argmin(dim), a.argmin(dim))

    def advanced(self, shape):
        """A key of arrays or masks among slices, and its parts as tensors; None where the shape allows none."""
        if not shape or 0 in shape:
            return None
        if self.rng.random() < 0.4:
            first = int(self.rng.integers(0, len(shape)))
            last = int(self.rng.integers(first + 1, len(shape) + 1))
            mask = self.rng.random(shape[first:last]) < 0.5
            key = [slice(None)] * first + [mask]
        else:
            at = sorted(int(d) for d in self.rng.permutation(len(shape))[:int(self.rng.integers(1, len(shape) + 1))])
            size = self.one_of([(), (1,), (3,), (2, 2)])
            key = [slice(None, None, self.one_of([None, 2])) for _ in range(at[-1] + 1)]
            for d in at:
                key[d] = self.rng.integers(-shape[d], shape[d], size)
        return tuple(key), tuple(asenpp.tensor(k) if isinstance(k, np.ndarray) or np.ndim(k) == 0 and not isinstance(k, slice) else k for k in key)

    def picking(self, x):
        keys = self.advanced(x.array.shape)
        if keys:
            self.same(f"pick {keys[0]}", x.tensor[keys[1]], x.array[keys[0]])

    def write(self, x):
        """A write in place; then the memory as a whole."""
        a, t = x.array, x.tensor
        number = {"bool": True, "uint8": 7}.get(x.dtype, int(self.rng.integers(-5, 6)))
        what = self.one_of(["fill_", "copy_", "set", "set", "put", "put", "number", "add_", "mul_", "sub_", "neg_", "masked_fill_"])
        self.log.append(f"{what} into {a.shape} {a.dtype}")
        computed = x.dtype not in ("float16", "bool")
        if what == "fill_":
            t.fill_(number)
            a[...] = number
        elif what == "copy_":
            y = self.partner(x, self.one_of([x.dtype, "int32" if x.dtype in ("int64", *COMPUTED) else x.dtype]))
            a[...] = y.array.copy()
            t.copy_(y.tensor)
        elif what in ("set", "number"):
            key = self.key(a.shape)
            key = key[0] if len(key) == 1 else key
            part = np.asarray(a[key])
            y = self.partner(Pair(part, None)) if what == "set" and part.ndim else None
            value = number if y is None or y.tensor is None else y
            t[key] = value.tensor if isinstance(value, Pair) else value
            a[key] = value.array.copy() if isinstance(value, Pair) else value
        elif what == "put":
            keys = self.advanced(a.shape)
            if keys is None:
                return
            part = a[keys[0]]
            y = self.new(part.shape, x.dtype) if self.rng.random() < 0.6 else None
            a[keys[0]] = number if y is None else y.array
            t[keys[1]] = number if y is None else y.tensor
        elif what == "masked_fill_":
            mask = self.new(a.shape, "bool")
            np.copyto(a, np.asarray(number, a.dtype), where=mask.array)
            t.masked_fill_(mask.tensor, number)
        elif computed and what == "neg_":
            if x.dtype != "uint8":
                t.neg_()
                a[...] = -a.copy()  # NumPy 2.4.6: np.negative(a, out=a) is wrong for some strided int32
        elif computed:
            y = self.partner(x)
            result = {"add_": a + y.array, "mul_": a * y.array, "sub_": a - y.array}[what]
            getattr(t, what)(y.tensor)
            a[...] = result
        self.whole_is_same(what, x)

    def run(self):
        wholes = [self.new(self.shape(), self.one_of(DTYPES)) for _ in range(2)]
        for _ in range(8):
            x = self.some_view(self.one_of(wholes))
            self.same("view", x.tensor, x.array)
            kinds = [self.arithmetic, self.comparison, self.choice, self.unary, self.conversion, self.reduction, self.ordering,
                     self.picking] + [self.write] * 4 * x.writable
            kind = self.one_of(kinds)
            self.log.append(kind.__name__)
            kind(x)
        return self.checks


def campaign(seed, checks, progress=None):
    """(rounds, checks) of as many rounds as make that many checks. Raises Mismatch with the round's number."""
    done = number = 0
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        while done < checks:
            one = Round(seed, number)
            try:
                done += one.run()
            except Exception as error:
                raise Mismatch(f"seed {seed}, round {number}: {type(error).__name__}: {error}\n" + "\n".join(one.log)) from error
            number += 1
            if progress and number % 1000 == 0:
                progress(number, done)
    return number, done


def main():
    from benchmarks import record

    parser = argparse.ArgumentParser(description="Compares tensors with NumPy over random programs.")
    parser.add_argument("--checks", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round", type=int, help="run this round alone")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.round is not None:
        with np.errstate(all="ignore"):
            print(Round(args.seed, args.round).run(), "checks")
        return 0
    start, result = time.monotonic(), {}
    try:
        rounds, checks = campaign(args.seed, args.checks, lambda n, c: print(f"{n} rounds, {c} checks", file=sys.stderr, end="\r"))
        result = {"rounds": rounds, "checks": checks, "mismatches": 0}
    except Mismatch as error:
        print(error, file=sys.stderr)
        result = {"mismatches": 1, "first": str(error).splitlines()[0]}
    record.report(args.out, {**record.campaign(), "seed": args.seed, **result,
                             "seconds": round(time.monotonic() - start, 1)})
    return 1 if result["mismatches"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
