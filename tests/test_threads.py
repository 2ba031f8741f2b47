"""Several threads in the core at once, and Python code that runs in the middle of a call: nothing crashes, hangs or
computes something else.

Python code runs inside calls where an argument's __index__ or __float__ is asked, and where memory is let go that an
array or a finalizer hangs on. docs/api.md says what threads may do with one object; these tests do it.
"""

import pytest

from process_kit import run_code

PRELUDE = """
import gc, os, sys, threading, weakref
import numpy as np
import asenpp
from asenpp import _asen
asenpp.set_num_threads(1)

def together(*functions):
    "Runs functions in a thread each; raises what they raised."
    errors, start = [], threading.Barrier(len(functions))
    def guarded(function):
        try:
            start.wait()
            function()
        except BaseException as error:
            errors.append(error)
    threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    for t in threads: t.start()
    for t in threads: t.join()
    for error in errors: raise error

class Array(np.ndarray):
    "An array that can have a finalizer."

def lent(values, function):
    "A tensor over an array; function runs when the last that reads it is gone."
    array = np.asarray(values, np.float32).view(Array)
    weakref.finalize(array, function)
    return asenpp.from_numpy(array)
"""


def run(code, timeout=120):
    run_code(PRELUDE + code, timeout=timeout)


# ---- requires_grad, grad and history ----


def test_requires_grad_is_switched_while_others_compute():
    """The leaf's node is replaced while ops take references of it."""
    run("""
leaf, done = asenpp.ones(8), threading.Event()
def switch():
    for i in range(200000):
        leaf.requires_grad_(i % 2 == 0)
    leaf.requires_grad_(True)
    done.set()
def compute():
    many = [leaf, leaf * 1.0] * 400     # an op that reads the leaf's history often
    while not done.is_set():
        y = _asen.cat(many)
        assert y.shape == (6400,)
def train():
    other = asenpp.ones(8, requires_grad=True)
    while not done.is_set():
        ((leaf * other + leaf) * leaf).sum().backward()
        assert leaf.grad is None or leaf.grad.shape == (8,)
        leaf.is_leaf, leaf.requires_grad, repr(leaf)
sys.setswitchinterval(1e-4)
together(switch, compute, train)
leaf.grad = None
(leaf * 2.0).sum().backward()
assert leaf.grad.tolist() == [2.0] * 8
""")


def test_gradients_are_cleared_and_read_while_backwards_add_to_them():
    run("""
leaf, done = asenpp.ones(64, requires_grad=True), threading.Event()
def train():
    for _ in range(3000):
        (leaf * 2.0).sum().backward()
    done.set()
def clear():
    while not done.is_set():
        leaf.grad = None
        leaf.grad = asenpp.zeros(64)
def read():
    while not done.is_set():
        grad = leaf.grad
        if grad is not None:
            values = set(grad.tolist())
            assert len(values) == 1 and values.pop() % 2 == 0
together(train, clear, read)
""")


def test_many_backwards_over_one_graph_at_once():
    """With retain_graph each adds the whole gradient, and none is lost."""
    run("""
leaf = asenpp.ones(16, requires_grad=True)
y = leaf * 3.0
for _ in range(40):
    y = (y * 1.0) + leaf
z = y.sum()
def backward():
    for _ in range(100):
        z.backward(retain_graph=True)
together(backward, backward, backward)
assert leaf.grad.tolist() == [3 * 100 * 43.0] * 16, leaf.grad
""")


def test_a_graph_is_consumed_once():
    """Backwards without retain_graph over one graph: what one lets go another still reads, or says that it is gone."""
    run("""
for _ in range(150):
    leaf = asenpp.ones(16, requires_grad=True)
    y = leaf
    for _ in range(30):
        y = (y * y).sqrt()
    z = y.sum()
    refused = []
    def backward():
        try:
            z.backward()
        except ValueError as error:
            assert "retain_graph" in str(error), error
            refused.append(error)
    together(backward, backward)
    assert len(refused) < 2 or leaf.grad is None
    assert leaf.grad is None or leaf.grad.tolist() in ([1.0] * 16, [2.0] * 16), leaf.grad
    try:
        z.backward()
    except ValueError as error:
        assert "retain_graph" in str(error), error
    else:
        raise AssertionError("the graph was not consumed")
""")


# ---- finalizers ----


def test_a_finalizer_calls_backward_inside_backward():
    run("""
inner = asenpp.ones(2, requires_grad=True)
calls = []
def finalizer():
    (inner * 3.0).sum().backward()
    calls.append(asenpp._asen.is_grad_enabled())
leaf = asenpp.ones(2, requires_grad=True)
y = leaf * lent([5, 7], finalizer)
y.sum().backward()
assert calls == [True], calls
assert leaf.grad.tolist() == [5.0, 7.0] and inner.grad.tolist() == [3.0, 3.0]
""")


def test_a_finalizer_calls_backward_over_the_same_graph():
    """What is consumed already is refused; nothing hangs."""
    run("""
leaf, seen = asenpp.ones(2, requires_grad=True), []
def finalizer():
    try:
        z.backward()
    except ValueError as error:
        seen.append(str(error))
z = (leaf * lent([5, 7], finalizer) * 2.0).sum()
z.backward()
assert len(seen) == 1 and "retain_graph" in seen[0], seen
assert leaf.grad.tolist() == [10.0, 14.0]
""")


def test_finalizers_of_two_backwards_that_run_at_once():
    """Each runs Python code, so it waits for the GIL, inside backward; the other thread holds the GIL meanwhile."""
    run("""
calls = []
def work():
    leaf = asenpp.ones(2, requires_grad=True)
    def finalizer():
        (leaf * 1.0).sum().backward()
        calls.append(1)
    for _ in range(200):
        (leaf * lent([5, 7], finalizer)).sum().backward()
    assert leaf.grad.tolist() == [200 * 6.0, 200 * 8.0], leaf.grad
together(work, work, work)
assert len(calls) == 600
""")


def test_a_finalizer_of_a_gradient_that_is_replaced():
    run("""
leaf, calls = asenpp.ones(2, requires_grad=True), []
def finalizer():
    calls.append(leaf.grad)
    leaf.grad = None
    (leaf * 1.0).sum().backward()
leaf.grad = lent([1, 1], finalizer)
leaf.grad = asenpp.zeros(2)
assert len(calls) == 1 and calls[0].tolist() == [0.0, 0.0]
assert leaf.grad.tolist() == [1.0, 1.0]
leaf.grad = lent([1, 1], finalizer)
(leaf * 2.0).sum().backward()
assert len(calls) == 2 and leaf.grad.tolist() == [1.0, 1.0], leaf.grad
leaf.grad = lent([1, 1], finalizer)
leaf.requires_grad_(False)
assert len(calls) == 3
""")


# ---- arguments whose own code changes what is being read ----


@pytest.mark.parametrize("call", [
    "asenpp.ones(6).reshape(shape)", "asenpp.ones(6).view(shape)", "asenpp.ones(2, 3).permute(shape)",
    "asenpp.ones(1, 1).expand(shape)", "asenpp.ones(2, 3).sum(dim=shape)", "_asen.apply('reshape', [asenpp.ones(6)], {'shape': shape})",
    "_asen.conv2d(asenpp.ones(1, 1, 8, 8), asenpp.ones(1, 1, 3, 3), stride=shape, padding=shape)",
    "asenpp.ones(4, 4)[tuple(shape)]"])
def test_a_list_of_integers_that_empties_itself(call):
    run(f"""
class Index:
    def __init__(self, value): self.value, self.weight = value, [0] * 1000
    def __index__(self):
        shape.clear()
        gc.collect()
        [object() for _ in range(1000)]
        return self.value
for _ in range(50):
    shape = [Index(2), Index(3)]
    try:
        {call}
    except (ValueError, IndexError, TypeError):
        pass
""")


def test_a_dict_of_attributes_that_empties_itself():
    run("""
class Value:
    def __init__(self, value): self.value = value
    def __index__(self):
        attributes.clear()
        gc.collect()
        [np.ones(100) for _ in range(50)]
        return self.value
    def __float__(self):
        return float(self.__index__())
for _ in range(50):
    attributes = {"groups": Value(1), "stride": [Value(1)], "bias": asenpp.ones(1), "padding": Value(0)}
    y = _asen.apply("conv2d", [asenpp.ones(1, 1, 4, 4), asenpp.ones(1, 1, 3, 3)], attributes)
    assert y.shape == (1, 1, 2, 2) and y.tolist()[0][0][0][0] == 10.0
    attributes = {"low": Value(2), "high": Value(3)}
    try:
        _asen.apply("clamp", [asenpp.ones(3)], attributes)
    except TypeError:
        pass
    attributes = {Value(1): 1, "x": asenpp.ones(1)}
    try:
        _asen.apply("relu", [asenpp.ones(3)], attributes)
    except TypeError:
        pass
""")


def test_a_list_of_tensors_that_empties_itself():
    run("""
class Number:
    def __init__(self, value): self.value = value
    def __float__(self):
        tensors.clear()
        gc.collect()
        [np.ones(100) for _ in range(50)]
        return self.value
for _ in range(50):
    tensors = [asenpp.ones(3) * 2.0, Number(3.0)]
    assert _asen.apply("mul", tensors).tolist() == [6.0] * 3
    tensors = [Number(3.0), asenpp.ones(3) * 2.0]
    assert _asen.apply("mul", tensors).tolist() == [6.0] * 3
    tensors = [asenpp.ones(3) * 2.0, Number(3.0), asenpp.ones(3)]
    try:
        _asen.cat(tensors)
    except (TypeError, ValueError):
        pass
""")


def test_slots_of_a_batch_that_empty_themselves():
    run("""
class Slot:
    def __init__(self, value): self.value = value
    def __index__(self):
        slots.clear()
        images.clear()
        gc.collect()
        [np.ones(100) for _ in range(50)]
        return self.value
for _ in range(50):
    images = [np.full((8, 8, 3), 200, np.uint8) for _ in range(3)]
    slots = [Slot(i) for i in range(3)]
    out = np.zeros((3, 4, 4, 3), np.uint8)
    _asen.global_batch(images, slots, out, (0, 0, 0), (1, 1, 1))
    assert (out == 200).all()
""")


def test_scalars_of_an_optimizer_step_that_empty_its_lists():
    run("""
class Step:
    def __index__(self):
        params.clear()
        grads.clear()
        gc.collect()
        [np.ones(100) for _ in range(50)]
        return 1
for _ in range(50):
    params, grads = [asenpp.ones(5) * 2.0], [asenpp.ones(5) * 2.0]
    _asen.optim_step("sgd", params, grads, None, None, Step(), 0.1)
""")


def test_a_value_to_fill_with_that_lets_its_tensor_go():
    run("""
class Value:
    def __float__(self):
        tensors.clear()
        gc.collect()
        [np.ones(100) for _ in range(50)]
        return 4.0
for _ in range(50):
    tensors = [asenpp.ones(3)]
    assert tensors[0].fill_(Value()).tolist() == [4.0] * 3
""")


# ---- memory that is lent back and forth ----


@pytest.mark.parametrize("lend", ["asenpp.from_numpy(t.numpy())", "asenpp.from_numpy(t.numpy()[:])", "asenpp.from_dlpack(t)",
                                  "asenpp.from_dlpack(t.__dlpack__())"])
def test_memory_that_comes_back_is_known(lend):
    """However often it was lent: no chain of owners, which would end in a recursion as deep, and writes move one version."""
    run(f"""
first = t = asenpp.ones(3)
for _ in range(200000):
    t = {lend}
assert t.data_ptr() == first.data_ptr()
leaf = asenpp.ones(3, requires_grad=True)
y = (leaf * first).sum()
t.fill_(5.0)
assert first.tolist() == [5.0] * 3
try:
    y.backward()
except ValueError as error:
    assert "in place" in str(error), error
else:
    raise AssertionError("a saved tensor was written")
before = weakref.ref(first)
del first
assert before() is None and t.tolist() == [5.0] * 3
""")


def test_parts_of_lent_memory_come_back():
    run("""
t = asenpp.arange(24).float().reshape(4, 6)
array = t.numpy()
part = asenpp.from_numpy(array[1:3, ::2])
assert part.tolist() == array[1:3, ::2].tolist() and part.stride() == (6, 2)
bits = asenpp.from_numpy(array.view(np.int32)[2:])
assert bits.dtype == "int32" and (bits.numpy() == array.view(np.int32)[2:]).all()
halves = asenpp.from_numpy(t.reshape(24).numpy()[1:23].view(np.uint8)[4:])   # any bytes of it
assert halves.numpy().tobytes() == t.reshape(24)[2:23].numpy().tobytes()[:84]
del array, t
gc.collect()
part.fill_(1.0)
assert part.tolist() == [[1.0] * 3] * 2
""")


# ---- writes in place, views and versions ----


def test_one_tensor_is_written_viewed_and_run_backward_by_all_at_once():
    """Nobody keeps these apart, so values are anyone's, and errors of what was written since are right; nothing crashes."""
    run("""
import time
for seed in range(2):
    leaf = asenpp.ones(6, 8, requires_grad=True)
    z = leaf * 1.0
    end = time.monotonic() + 1.0
    def guarded(function):
        def loop():
            while time.monotonic() < end:
                try:
                    function()
                except ValueError as error:
                    assert "place" in str(error) or "retain_graph" in str(error) or "view" in str(error), error
        return loop
    views = [z[1], z.t(), z.reshape(48)]
    other = asenpp.ones(8, requires_grad=True)
    def write():
        z.zero_()
        z.copy_(leaf * 2.0)
    def write_view():
        views[0].copy_(other * 3.0)
        views[2].fill_(1.0)
    def view():
        views[1] = z.t()
        y = views[1][0] * 2.0 + views[2].reshape(6, 8)[:, 0]
        y.is_leaf, y.requires_grad, repr(views[0])
    def backward():
        (z * z).sum().backward()
        leaf.grad = None
        other.grad = None
    def detached():
        with asenpp.no_grad():
            d = z.detach()
            d.fill_(2.0)
            d.numpy()[:] = 1.0
    together(*map(guarded, [write, write_view, view, backward, detached]))
""")


def test_filters_are_written_while_others_convolve():
    """What is packed of a filter follows its last write: once all is quiet the values are the right ones."""
    run("""
x = asenpp.ones(1, 16, 6, 6)
filter = asenpp.ones(32, 16, 3, 3)
for _ in range(30):
    done = threading.Event()
    def write():
        for i in range(40):
            filter.fill_(float(i))
        filter.fill_(0.5)
        done.set()
    def convolve():
        while not done.is_set():
            _asen.conv2d(x, filter)
    together(write, convolve, convolve)
    assert set(np.unique(_asen.conv2d(x, filter).numpy())) == {72.0}
""")
