"""Random programs of ops, views, writes in place, detached aliases, no_grad blocks and backward, run side by side on asenpp
and on PyTorch: after every step all values and requires_grad are equal, in the end all gradients are; a step that
PyTorch refuses is refused here, and what only asenpp refuses is one of REFUSALS. Nothing may differ without a word.

    python tests/inplace_programs.py [--programs N] [--seed S] [--out FILE]
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import asenpp
from asenpp import _asen

# What asenpp refuses though PyTorch does not, each with an error that says so (docs/api.md).
REFUSALS = (
    "changed in place between forward and backward",        # an op saves more here than there
    "not contiguous is written in place while recording",   # a region of what is not dense
    "a view of a tensor that is not contiguous, and that was written in place",
    "made a leaf that requires a gradient, and then its base",
    "lie on one another",                                   # an expanded view copied onto its own elements
)
# What only PyTorch refuses: here it has a result.
ALLOWED = (
    "modified by an inplace operation",                     # PyTorch's own writes only: asenpp's results are computed beside
    "more than one element of the written-to tensor refers to a single memory location",   # of fill_ and zero_
    "a leaf Variable that requires grad is being used in an in-place operation",            # of what turned into a leaf's view
)


class Differs(AssertionError):
    """The two disagree without an error."""


class Ours:
    def leaf(self, a, grad):
        return _asen.from_numpy(a.copy()).clone().requires_grad_(grad)

    def apply_(self, name, x, *rest):
        return _asen.apply_(name, [x, *rest], {"dtype": "float64"} if name == "copy" else {})

    def values(self, t):
        return np.array(_asen.to_numpy_readonly(t))

    recording = staticmethod(_asen.set_grad_enabled)


class Theirs:
    """composed: x.op_(…) as x.copy_(x.clone().op(…)), which saves for backward what asenpp saves; PyTorch's own writes
    refuse more."""

    def __init__(self, composed):
        self.composed = composed

    def leaf(self, a, grad):
        return torch.from_numpy(a.copy()).requires_grad_(grad)

    def apply_(self, name, x, *rest):
        if self.composed:
            before = x.clone()
            return x.copy_(getattr(before, name)(*[before if r is x else r for r in rest]))
        if name in ("exp", "tanh", "relu", "neg", "sigmoid"):
            return getattr(x, name + "_")()
        return getattr(x, name + "_")(*rest)

    def values(self, t):
        return t.detach().numpy().copy()

    @staticmethod
    def recording(on):
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(on)
        return before


UNARY = ("exp", "tanh", "relu", "neg", "sigmoid")
BINARY = ("add", "sub", "mul")
SHAPES = ((6,), (2, 3), (3, 2), (1,), (2,), (3,), (2, 1, 3), ())


def broadcasts(shape, to):
    return len(shape) <= len(to) and all(s in (1, t) for s, t in zip(reversed(shape), reversed(to)))


class Program:
    """One program, drawn from a seed as it goes."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.sides = (Ours(), Theirs(composed=seed % 2 == 1))
        self.pairs: list[tuple] = []
        self.text: list[str] = []
        self.ended = ""

    def run(self, steps: int) -> str:
        """"compared", or why it ended early."""
        try:
            for _ in range(3):
                self.new()
            for _ in range(steps):
                if self.ended:
                    return self.ended
                self.rng.choices((self.op, self.view, self.write, self.alias, self.toggle, self.new, self.backward, self.leaf),
                                 (5, 6, 7, 1, 1, 1, 0.5, 0.3))[0]()
            for side in self.sides:
                side.recording(True)
            if not self.ended:
                self.backward()
            return self.ended or "compared"
        finally:
            for side in self.sides:
                side.recording(True)

    # -- steps -----------------------------------------------------------------------------------

    def step(self, text, function, keep=True):
        """Runs function(side, machine) on both and compares; keeps the result as a new tensor."""
        self.text.append(text)
        results, errors = [], []
        for i, machine in enumerate(self.sides):
            try:
                results.append(function(i, machine))
                errors.append("")
            except (ValueError, RuntimeError, TypeError) as error:
                results.append(None)
                errors.append(str(error) or type(error).__name__)
        self.text[-1] += f"   # {errors}" if any(errors) else ""
        if errors[0] and errors[1]:
            return
        if errors[0]:
            if not any(text in errors[0] for text in REFUSALS):
                raise Differs(f"only asenpp refuses: {errors[0]}")
            self.ended = "refused: " + next(text for text in REFUSALS if text in errors[0])
            return
        if errors[1]:
            if not any(text in errors[1] for text in ALLOWED[self.sides[1].composed:]):
                raise Differs(f"only PyTorch refuses: {errors[1]}")
            self.ended = "allowed: " + next(text for text in ALLOWED if text in errors[1])
            return
        if keep:
            self.pairs.append(tuple(results))
        self.compare()

    def compare(self):
        for n, (ours, theirs) in enumerate(self.pairs):
            if tuple(ours.shape) != tuple(theirs.shape):
                raise Differs(f"t{n} has the shape {ours.shape}, there {tuple(theirs.shape)}")
            if not np.allclose(self.sides[0].values(ours), self.sides[1].values(theirs), rtol=1e-9, atol=1e-9, equal_nan=True):
                raise Differs(f"t{n} is {ours.tolist()}, there {theirs.tolist()}")
            try:
                there = theirs.requires_grad, theirs.is_leaf
            except RuntimeError:  # "a view was created in no_grad mode and its base …"
                continue
            if (ours.requires_grad, ours.is_leaf) != there:
                raise Differs(f"(requires_grad, is_leaf) of t{n} is {(ours.requires_grad, ours.is_leaf)}")

    def pick(self):
        """A tensor: late ones more often."""
        n = len(self.pairs)
        i = max(self.rng.randrange(n), self.rng.randrange(n))
        return i, self.pairs[i]

    def partner(self, shape):
        fitting = [i for i, (ours, _) in enumerate(self.pairs) if broadcasts(tuple(ours.shape), shape)]
        return self.rng.choice(fitting) if fitting else None

    def new(self):
        shape, grad = self.rng.choice(SHAPES), self.rng.random() < 0.5
        a = self.numbers.uniform(-1, 1, shape)
        self.step(f"t{len(self.pairs)} = leaf({shape}, {grad})", lambda i, m: m.leaf(a, grad))

    def leaf(self):
        n, pair = self.pick()
        if pair[0].requires_grad or sum(pair[0]._memory[0] == ours._memory[0] for ours, _ in self.pairs) > 1:
            return  # views made before say there that they require a gradient, too, and get none
        self.step(f"t{n}.requires_grad_()", lambda i, m: pair[i].requires_grad_(), keep=False)

    def op(self):
        n, pair = self.pick()
        name = self.rng.choice(UNARY + BINARY + ("clone",))
        if name in BINARY:
            k = self.partner(tuple(pair[0].shape))
            if k is None:
                return
            other = self.pairs[k]
            self.step(f"t{len(self.pairs)} = t{n}.{name}(t{k})", lambda i, m: getattr(pair[i], name)(other[i]))
        else:
            self.step(f"t{len(self.pairs)} = t{n}.{name}()", lambda i, m: getattr(pair[i], name)())

    def view(self):
        n, pair = self.pick()
        if pair[0].requires_grad and not _asen.is_grad_enabled():
            return  # there it says that it requires a gradient, and gets none
        shape = tuple(pair[0].shape)
        kind = self.rng.choice(("slice", "row", "reshape", "permute", "expand", "unsqueeze", "flatten"))
        if kind == "slice" and shape:
            key = tuple(slice(self.rng.randrange(max(1, s)), s, self.rng.choice((1, 1, 2))) for s in shape)
            text, function = f"[{key}]", lambda x: x[key]
        elif kind == "row" and shape and shape[0]:
            row = self.rng.randrange(shape[0])
            text, function = f"[{row}]", lambda x: x[row]
        elif kind == "permute" and len(shape) > 1:
            dims = list(range(len(shape)))
            self.rng.shuffle(dims)
            text, function = f".permute({dims})", lambda x: x.permute(*dims)
        elif kind == "expand" and 1 in shape:
            to = tuple(2 if s == 1 else s for s in shape)
            text, function = f".expand({to})", lambda x: x.expand(*to)
        elif kind == "unsqueeze" and len(shape) < 3:
            text, function = ".unsqueeze(0)", lambda x: x.unsqueeze(0)
        elif kind == "flatten" and len(shape) > 1:
            text, function = ".flatten()", lambda x: x.flatten()
        else:
            count = int(np.prod(shape))
            to = self.rng.choice([s for s in ((count,), (1, count), (2, count // 2), (count // 2, 2)) if np.prod(s) == count])
            text, function = f".reshape({to})", lambda x: x.reshape(to)
        before = len(self.pairs)
        self.step(f"t{before} = t{n}{text}", lambda i, m: function(pair[i]))
        if len(self.pairs) > before:
            ours, theirs = self.pairs[-1]
            if (ours._memory[0] == pair[0]._memory[0]) != (theirs.untyped_storage().data_ptr() == pair[1].untyped_storage().data_ptr()):
                self.pairs.pop()  # a copy here, a view there: results lie in memory otherwise
                self.text[-1] += "   # forgotten"

    def write(self):
        n, pair = self.pick()
        shape = tuple(pair[0].shape)
        kind = self.rng.choice(("zero_", "fill_", "copy_", "copy_", "unary", "binary", "binary"))
        k = self.partner(shape)
        if kind == "zero_":
            self.step(f"t{n}.zero_()", lambda i, m: pair[i].zero_(), keep=False)
        elif kind == "fill_":
            self.step(f"t{n}.fill_(0.5)", lambda i, m: pair[i].fill_(0.5), keep=False)
        elif kind == "unary":
            name = self.rng.choice(UNARY)
            self.step(f"t{n}.{name}_()", lambda i, m: m.apply_(name, pair[i]), keep=False)
        elif k is not None:
            mine, its = self.pairs[k]
            if k != n and its.untyped_storage().data_ptr() == pair[1].untyped_storage().data_ptr():
                its = its.clone()  # overlapping: asenpp reads the source first; PyTorch refuses, or what it leaves depends on the order
            other = mine, its
            name = "copy" if kind == "copy_" else self.rng.choice(BINARY)
            self.step(f"t{n}.{name}_(t{k})", lambda i, m: pair[i].copy_(other[i]) if name == "copy"
                      else m.apply_(name, pair[i], other[i]), keep=False)

    def alias(self):
        n, pair = self.pick()
        self.step(f"t{len(self.pairs)} = t{n}.detach()", lambda i, m: pair[i].detach())

    def toggle(self):
        on = self.rng.random() < 0.7
        self.step(f"recording({on})", lambda i, m: m.recording(on), keep=False)

    def backward(self):
        """From a random tensor; then all gradients are compared, and forgotten."""
        wanted = [n for n, (ours, _) in enumerate(self.pairs) if ours.requires_grad]
        if not wanted:
            return
        n = max(self.rng.choice(wanted), self.rng.choice(wanted))
        pair = self.pairs[n]
        seed = self.numbers.uniform(-1, 1, tuple(pair[0].shape))

        def run(i, machine):
            before = machine.recording(False)
            try:
                gradient = machine.leaf(seed, False)
            finally:
                machine.recording(before)
            pair[i].backward(gradient, retain_graph=True)

        errors = len([line for line in self.text if "#" in line])
        self.step(f"t{n}.backward()", run, keep=False)
        failed = len([line for line in self.text if "#" in line]) > errors
        for m, (ours, theirs) in enumerate(self.pairs):
            if not ours.is_leaf:
                continue
            if not failed:
                mine, its = ours.grad, theirs.grad
                if (mine is None) != (its is None):
                    raise Differs(f"t{m}.grad is {mine}, there {its}")
                if mine is not None and not np.allclose(self.sides[0].values(mine), its.numpy(), rtol=1e-8, atol=1e-8, equal_nan=True):
                    raise Differs(f"t{m}.grad is {mine.tolist()}, there {its.tolist()}")
            if ours.requires_grad:
                ours.grad = None
            theirs.grad = None


def run(seed: int, steps: int = 24) -> str:
    """How a program ended; raises Differs with the program in it."""
    program = Program(seed)
    try:
        return program.run(steps)
    except Differs as error:
        raise Differs(f"program {seed}: {error}\n  " + "\n  ".join(program.text)) from None


def main() -> int:
    from benchmarks import record

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--programs", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--out", help="a JSON file for the result")
    args = parser.parse_args()
    begin, ends, differ = time.time(), Counter(), []
    for seed in range(args.seed, args.seed + args.programs):
        try:
            ends[run(seed, args.steps)] += 1
        except Differs as error:
            differ.append(str(error))
            if len(differ) <= 5:
                print(error, file=sys.stderr)
    record.report(args.out, {**record.campaign(), "programs": args.programs, "seed": args.seed, "steps": args.steps,
                             "differ": len(differ), "ends": dict(ends), "seconds": round(time.time() - begin, 1)})
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
