"""oneDNN kernels against the reference kernels in float64, and what their caches promise.

The kernels are run alone (set_kernel_paths("onednn")), so a kernel that declines fails here instead
of passing through the reference.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from asenpp import _asen
from process_kit import run_code

# n, channels in, h, w, channels out, kh, kw, stride, padding, dilation, groups
CONVOLUTIONS = {
    "stem, 3 channels, 7x7": (2, 3, 32, 32, 64, 7, 7, 2, 3, 1, 1),
    "one image, one channel": (1, 1, 9, 9, 5, 3, 3, 1, 1, 1, 1),
    "odd size, stride 2": (3, 64, 17, 15, 48, 3, 3, 2, 1, 1, 1),
    "even size, stride 2 leaves a row": (2, 16, 14, 14, 32, 3, 3, 2, 1, 1, 1),
    "channels that fill no vector": (2, 70, 9, 11, 33, 3, 3, 1, 1, 1, 1),
    "1x1": (2, 64, 14, 14, 96, 1, 1, 1, 0, 1, 1),
    "1x1 on one pixel": (1, 65, 1, 1, 17, 1, 1, 1, 0, 1, 1),
    "1x1, stride 2": (2, 64, 15, 15, 128, 1, 1, 2, 0, 1, 1),
    "1x1 with padding": (1, 64, 6, 7, 16, 1, 1, 2, 1, 1, 1),
    "wide image": (2, 64, 5, 56, 32, 3, 3, 1, 1, 1, 1),
    "unequal filter sides": (2, 17, 13, 12, 19, 5, 3, 2, 2, 1, 1),
    "dilation": (2, 64, 20, 20, 16, 3, 3, 2, 2, 2, 1),
    "dilation, no stride": (1, 2, 7, 7, 3, 3, 3, 1, 0, 2, 1),
    "two groups": (2, 4, 5, 5, 6, 3, 3, 1, 1, 1, 2),
    "one channel a group": (2, 32, 8, 8, 32, 3, 3, 2, 1, 1, 32),
}


@contextmanager
def paths(*names):
    _asen.set_kernel_paths(*names)
    try:
        yield
    finally:
        _asen.set_kernel_paths("all")


def dense(array):
    """A tensor of our own memory in the canonical layout."""
    return _asen.from_numpy(np.ascontiguousarray(array)).clone()


def run(name, arrays, attrs, dtype=np.float32, path="onednn"):
    """One op on one path; arrays may hold None. Returns NumPy."""
    tensors = [None if a is None else dense(a.astype(dtype)) for a in arrays]
    with paths(path):
        return np.array(_asen.apply(name, tensors, attrs).numpy())


def assert_close(ours, exact):
    """Within float32 rounding of sums: 1e-5 of the largest value."""
    assert ours.shape == exact.shape and ours.dtype == np.float32
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-5 * max(1e-3, np.abs(exact).max()))


def convolution(case, seed=0):
    """x, w, dy, bias, residual and the attributes of the forward pass and of both gradients."""
    n, ic, h, w, oc, kh, kw, stride, padding, dilation, groups = case
    oh = (h + 2 * padding - dilation * (kh - 1) - 1) // stride + 1
    ow = (w + 2 * padding - dilation * (kw - 1) - 1) // stride + 1
    rng = np.random.default_rng(seed)
    arrays = {
        "x": rng.standard_normal((n, ic, h, w)), "w": rng.standard_normal((oc, ic // groups, kh, kw)),
        "dy": rng.standard_normal((n, oc, oh, ow)), "bias": rng.standard_normal(oc),
        "residual": rng.standard_normal((n, oc, oh, ow)),
    }
    arrays = {k: a.astype(np.float32) for k, a in arrays.items()}
    attrs = {"stride": (stride, stride), "padding": (padding, padding), "dilation": (dilation, dilation),
             "groups": groups}
    return arrays, attrs, {**attrs, "size": (h, w)}, {**attrs, "size": (kh, kw)}


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_convolution_equals_the_reference(case):
    """Forward (without and with bias), both gradients, and the fused form, for one geometry."""
    a, forward, grad_input, grad_weight = convolution(case)
    for name, inputs, attrs in [
        ("conv2d", [a["x"], a["w"], None], forward),
        ("conv2d", [a["x"], a["w"], a["bias"]], forward),
        ("conv2d_grad_input", [a["dy"], a["w"]], grad_input),
        ("conv2d_grad_weight", [a["dy"], a["x"]], grad_weight),
        ("conv2d_fused", [a["x"], a["w"], a["bias"], None], {**forward, "relu": 1}),
        ("conv2d_fused", [a["x"], a["w"], a["bias"], a["residual"]], {**forward, "relu": 1}),
        ("conv2d_fused", [a["x"], a["w"], None, a["residual"]], forward),
    ]:
        assert_close(run(name, inputs, attrs), run(name, inputs, attrs, np.float64, "reference"))


@pytest.mark.parametrize("case", [CONVOLUTIONS["odd size, stride 2"], CONVOLUTIONS["two groups"]])
def test_convolution_equals_pytorch(case):
    """The reference itself could share a misreading with us; PyTorch does not."""
    torch = pytest.importorskip("torch")
    a, forward, grad_input, grad_weight = convolution(case)
    t = {k: torch.from_numpy(v).double() for k, v in a.items()}
    x, w = t["x"].requires_grad_(), t["w"].requires_grad_()
    y = torch.nn.functional.conv2d(x, w, t["bias"], **forward)
    y.backward(t["dy"])
    assert_close(run("conv2d", [a["x"], a["w"], a["bias"]], forward), y.detach().numpy())
    assert_close(run("conv2d_grad_input", [a["dy"], a["w"]], grad_input), x.grad.numpy())
    assert_close(run("conv2d_grad_weight", [a["dy"], a["x"]], grad_weight), w.grad.numpy())


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_matmul_equals_the_reference(batch, trans_a, trans_b):
    """Products of (7, 19) and (19, 33) in every transposition, alone and in batches."""
    rng = np.random.default_rng(1)
    a = rng.standard_normal((*batch, *((19, 7) if trans_a else (7, 19))))
    b = rng.standard_normal((*batch, *((33, 19) if trans_b else (19, 33))))
    attrs = {"trans_a": trans_a, "trans_b": trans_b}
    a, b = a.astype(np.float32), b.astype(np.float32)
    assert_close(run("matmul", [a, b], attrs), run("matmul", [a, b], attrs, np.float64, "reference"))


@pytest.mark.parametrize("shape", [(1, 7, 2), (5, 64, 48), (3, 1, 1), (16, 129, 65)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_equals_the_reference(shape, with_bias):
    """x (n, k) times w (m, k) transposed, with and without bias, also for vectors' odd ends."""
    n, k, m = shape
    rng = np.random.default_rng(2)
    x, w, bias = (rng.standard_normal(s).astype(np.float32) for s in [(n, k), (m, k), m])
    inputs = [x, w, bias if with_bias else None]
    assert_close(run("linear", inputs, {}), run("linear", inputs, {}, np.float64, "reference"))


def test_other_types_are_declined():
    """float64 has no oneDNN kernel: alone it is an error, together the reference runs it."""
    a, forward, *_ = convolution(CONVOLUTIONS["1x1"])
    tensors = [dense(a["x"].astype(np.float64)), dense(a["w"].astype(np.float64)), None]
    with paths("onednn"), pytest.raises(NotImplementedError):
        _asen.apply("conv2d", tensors, forward)
    assert _asen.apply("conv2d", tensors, forward).numpy().dtype == np.float64


# -- caches ---------------------------------------------------------------------------------------

def test_packed_filter_follows_writes_in_place():
    """A filter is packed once a version: after copy_ and fill_ the new values count, in the forward
    pass and in the gradient, whose packed forms differ."""
    a, forward, grad_input, _ = convolution(CONVOLUTIONS["odd size, stride 2"])
    x, w, dy = dense(a["x"]), dense(a["w"]), dense(a["dy"])

    def both():
        return [np.array(_asen.apply("conv2d", [x, w, None], forward).numpy()),
                np.array(_asen.apply("conv2d_grad_input", [dy, w], grad_input).numpy())]

    first = both()
    w.copy_(_asen.from_numpy(2 * a["w"]))
    for one, two in zip(first, both()):
        np.testing.assert_array_equal(2 * one, two)
    w.fill_(0.0)
    assert all(not y.any() for y in both())


def test_filter_in_foreign_memory_is_never_stale():
    """A wrapped NumPy array changes without our seeing it: its filter is packed at every call."""
    a, forward, *_ = convolution(CONVOLUTIONS["odd size, stride 2"])
    lying = np.ascontiguousarray(a["w"].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    x, w = dense(a["x"]), _asen.from_numpy(lying)
    assert w.is_contiguous()
    first = np.array(_asen.apply("conv2d", [x, w, None], forward).numpy())
    lying *= 2
    np.testing.assert_array_equal(_asen.apply("conv2d", [x, w, None], forward).numpy(), 2 * first)


def test_views_of_one_storage_are_packed_apart():
    """Filters that share a storage differ in offset."""
    rng = np.random.default_rng(3)
    x, both = dense(rng.standard_normal((2, 16, 8, 8), np.float32)), rng.standard_normal((64, 16, 3, 3), np.float32)
    w = dense(both)
    attrs = {"padding": (1, 1)}
    whole = np.array(_asen.apply("conv2d", [x, w, None], attrs).numpy())
    for start in (0, 32):
        half = np.array(_asen.apply("conv2d", [x, w[start:start + 32], None], attrs).numpy())
        np.testing.assert_allclose(half, whole[:, start:start + 32], rtol=0, atol=1e-4)


def test_many_shapes_turn_the_table_over():
    """More shapes than the table of primitives holds: the oldest go, and come back right."""
    a, forward, *_ = convolution(CONVOLUTIONS["1x1"])
    first = run("conv2d", [a["x"], a["w"], None], forward)
    rng = np.random.default_rng(4)
    left, right = rng.standard_normal((600, 3)).astype(np.float32), dense(rng.standard_normal((3, 2), np.float32))
    for rows in range(1, 601):
        with paths("onednn", "reference"):
            product = _asen.apply("matmul", [dense(left[:rows]), right], {})
    assert_close(np.array(product.numpy()), left.astype(np.float64) @ np.array(right.numpy(), np.float64))
    np.testing.assert_array_equal(run("conv2d", [a["x"], a["w"], None], forward), first)


@pytest.mark.skipif(os.environ.get("ASENPP_NO_MEMORY_CACHE") == "1", reason="ASENPP_NO_MEMORY_CACHE=1: nothing is cached")
def test_a_repeated_step_asks_the_system_for_nothing():
    """After the first round of all three passes the allocator serves everything from its cache."""
    a, forward, grad_input, grad_weight = convolution(CONVOLUTIONS["odd size, stride 2"])
    x, w, dy = dense(a["x"]), dense(a["w"]), dense(a["dy"])

    def step():
        _asen.apply("conv2d", [x, w, None], forward)
        _asen.apply("conv2d_grad_input", [dy, w], grad_input)
        _asen.apply("conv2d_grad_weight", [dy, x], grad_weight)
        w.copy_(w)

    step()
    before = _asen.memory_stats()
    for _ in range(5):
        step()
    after = _asen.memory_stats()
    assert after["system_requests"] == before["system_requests"] and after["current"] == before["current"]


def test_threads_may_share_primitives_and_filters():
    """Four threads run the same shapes over shared and own filters, some of them rewritten."""
    a, forward, *_ = convolution(CONVOLUTIONS["odd size, stride 2"])
    x, shared = dense(a["x"]), dense(a["w"])
    exact = run("conv2d", [a["x"], a["w"], None], forward)

    def work(scale):
        own = dense(a["w"] * scale)
        for _ in range(10):
            own.copy_(own)  # a new version, the same values
            yield np.array(_asen.apply("conv2d", [x, own, None], forward).numpy()) / scale
            yield np.array(_asen.apply("conv2d", [x, shared, None], forward).numpy())

    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda s: list(work(s)), [0.5, 1.0, 2.0, 4.0]):
            for y in results:
                np.testing.assert_array_equal(y, exact)


# -- determinism ----------------------------------------------------------------------------------

@pytest.mark.parametrize("case", [
    pytest.param((4, 3, 40, 40, 64, 7, 7, 2, 3, 1, 1), id="stem"),
    pytest.param((4, 64, 28, 28, 64, 3, 3, 1, 1, 1, 1), id="3x3"),
    pytest.param((4, 64, 28, 28, 64, 3, 3, 2, 1, 1, 1), id="3x3 stride 2"),
    pytest.param((4, 128, 14, 14, 256, 1, 1, 1, 0, 1, 1), id="1x1"),
])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_threads_same_bits(case, threads):
    """Sums over the batch are split among threads; the split and its order are fixed."""
    a, forward, grad_input, grad_weight = convolution(case)
    before = _asen.get_num_threads()
    _asen.set_num_threads(threads)
    try:
        for name, inputs, attrs in [("conv2d", ["x", "w"], forward), ("conv2d_grad_input", ["dy", "w"], grad_input),
                                    ("conv2d_grad_weight", ["dy", "x"], grad_weight)]:
            arrays = [a[i] for i in inputs]
            first = run(name, arrays, attrs)
            for _ in range(5):
                np.testing.assert_array_equal(run(name, arrays, attrs), first)
    finally:
        _asen.set_num_threads(before)


def test_filter_written_through_numpy_is_packed_anew():
    """Writes through memory that was handed out move no version: such a filter is never cached."""
    x = _asen.from_numpy(np.ones((2, 16, 8, 8), np.float32)).clone()
    w = _asen.from_numpy(np.ones((16, 16, 3, 3), np.float32)).clone()
    before = _asen.conv2d(x, w).numpy().copy()
    view = w.numpy()
    assert (_asen.conv2d(x, w).numpy() == before).all()
    view[...] = 2
    assert (_asen.conv2d(x, w).numpy() == 2 * before).all()


RUNS_SHORT = """
import re, resource
import numpy as np
from asenpp import _asen

def limit(on):
    used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used if on else resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def leaves(n):
    return [_asen.from_numpy(rng.random(shape, dtype="float32")).requires_grad_() for shape in ((n, 16, 12, 12), (32, 16, 3, 3))]

def convolve(n):
    x, w = leaves(n)
    y = _asen.conv2d(x, w, padding=1)
    y.sum().backward()
    return y, x, w

rng = np.random.default_rng(0)
convolve(1)
refused = 0
for n in range(2, 26):
    x, w = leaves(n)
    limit(True)
    try:
        _asen.conv2d(x, w, padding=1)
    except MemoryError as error:
        refused += "oneDNN" in str(error)
    finally:
        limit(False)
_asen.set_kernel_paths("onednn", "fast")
for n in range(2, 50): # shapes that failed, and ones that are new
    y, x, w = convolve(n)
    _asen.set_kernel_paths("reference")
    x2, w2 = (_asen.Tensor(t.detach().double()).requires_grad_() for t in (x, w))
    z = _asen.conv2d(x2, w2, padding=1)
    z.sum().backward()
    _asen.set_kernel_paths("onednn", "fast")
    for a, b in ((y, z), (x.grad, x2.grad), (w.grad, w2.grad)):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-3, atol=1e-3)
print(refused)
"""


def test_kernels_are_made_again_after_memory_ran_out():
    """Memory runs out while oneDNN writes kernels, and comes back: the same thread makes kernels of the shapes that failed
    and of new ones, whole ones. (oneDNN's code generator remembers the first error of a thread.)"""
    out, _ = run_code(RUNS_SHORT)
    assert int(out) > 0, "memory did not run out: nothing was proven"
