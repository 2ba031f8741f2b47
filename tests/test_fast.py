"""Our fast float32 kernels against the reference kernels in float64.

The fast path is run alone, so a kernel that declines a case fails here instead of passing through
the reference. Sizes are chosen to leave something over after vectors, blocks, tiles and threads.
"""

import itertools
import zlib
from contextlib import contextmanager

import numpy as np
import pytest

from asenpp import _asen

CHANNELS = [1, 3, 15, 16, 17, 64, 65, 256]


@contextmanager
def paths(*names):
    _asen.set_kernel_paths(*names)
    try:
        yield
    finally:
        _asen.set_kernel_paths("all")


@pytest.fixture(params=[1, 3], ids="{0} threads".format)
def threads(request):
    before = _asen.get_num_threads()
    _asen.set_num_threads(request.param)
    yield request.param
    _asen.set_num_threads(before)


def generator(*seed):
    return np.random.default_rng([zlib.crc32(s.encode()) if isinstance(s, str) else s for s in seed])


def channels_last(array):
    """The same values, so that a rank 4 lies N, H, W, C in memory."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if array.ndim == 4 else array


def randn(rng, *shape):
    return channels_last(np.asarray(rng.standard_normal(shape), np.float32))


def run(path, dtype, name, arrays, attrs):
    """(outputs, inputs afterwards) as NumPy arrays; floating inputs are taken as dtype."""
    tensors = []
    for i, a in enumerate(arrays):
        if a is not None and a.dtype == np.float32 and dtype != np.float32:
            a = a.astype(dtype, order="K")
        if name == "batch_norm" and i in (3, 4):  # written in place
            a = a.copy()
        tensors.append(None if a is None else _asen.from_numpy(np.asarray(a)))
    with paths(path):
        out = _asen.apply(name, tensors, attrs)
    out = out if isinstance(out, (tuple, list)) else (out,)
    return [np.array(o.numpy()) for o in out], [None if t is None else np.array(t.numpy()) for t in tensors]


def check(name, arrays, attrs=None, tol=1e-6, inputs_too=(), outputs=None, floor=0.0):
    """Fast float32 within tol of the reference in float64, relative to the largest value of each
    output, or to `floor` where that is more (the size of terms that cancel). Returns the fast outputs."""
    attrs = attrs or {}
    ours, ours_in = run("fast", np.float32, name, arrays, attrs)
    exact, exact_in = run("reference", np.float64, name, arrays, attrs)
    pairs = list(zip(ours, exact)) + [(ours_in[i], exact_in[i]) for i in inputs_too]
    assert len(ours) == len(exact)
    for k, (a, b) in enumerate(pairs):
        if outputs is not None and k not in outputs:
            continue
        assert a.shape == b.shape
        if not np.issubdtype(b.dtype, np.floating):
            np.testing.assert_array_equal(a, b)
            continue
        assert a.dtype == np.float32
        scale = np.abs(b[np.isfinite(b)]).max(initial=0.0)
        np.testing.assert_allclose(a, b, rtol=0, atol=tol * max(scale, floor, 1e-30), err_msg=f"output {k}")
    return ours


def test_the_comparison_catches_an_error_of_one_part_in_a_hundred_thousand(monkeypatch):
    """check() itself can fail: the fast result is disturbed and must be refused."""
    true_run = run

    def disturbed(path, *rest):
        out, arrays = true_run(path, *rest)
        if path == "fast":
            out[0].flat[3] *= 1 + 1e-5
        return out, arrays

    monkeypatch.setitem(globals(), "run", disturbed)
    with pytest.raises(AssertionError):
        check("exp", [np.full(5, 2, np.float32)])


# ---- batch norm ----


@pytest.mark.parametrize("c", CHANNELS)
def test_batch_norm_and_its_gradient(c):
    """Training and inference, ReLU, residual, groups, over odd sizes and one image."""
    rng = generator(c)
    for n, h, w, groups in ((3, 5, 7, 3), (1, 3, 3, 1), (6, 9, 5, 3), (2, 33, 31, 1), (4, 1, 2, 2)):
        for relu, residual, training in itertools.product((0, 1), (0, 1), (0, 1)):
            x = (randn(rng, n, c, h, w) * 2 + 3).astype(np.float32)
            weight, bias, mean, var = (randn(rng, c) for _ in range(4))
            skip = randn(rng, n, c, h, w) if residual else None
            groups_here = groups if training else 1
            attrs = {"training": training, "groups": groups, "relu": relu, "eps": 1e-3}
            y, means, invstd = check("batch_norm", [x, weight, bias, mean, np.abs(var) + 0.1, skip], attrs,
                                     tol=5e-6, inputs_too=(3, 4))
            assert means.shape == (groups_here, c)
            dy = randn(rng, n, c, h, w)
            out = check("batch_norm_grad", [dy, x, y, weight, means, invstd],
                        {"training": training, "groups": groups, "relu": relu, "residual": residual}, tol=5e-6, floor=np.sqrt(x.size / c))
            assert len(out) == 3 + residual
            if residual:
                np.testing.assert_array_equal(out[3], np.where(y > 0, dy, 0) if relu else dy)


def test_batch_norm_over_several_threads_and_past_the_caches(threads):
    """Sizes at which rows are divided and stores are streamed give what small ones give."""
    rng = generator("large")
    for shape, groups in (((6, 64, 56, 56), 3), ((3, 48, 57, 59), 1)):
        x, dy, skip = (randn(rng, *shape) for _ in range(3))
        weight, bias, mean, var = (np.abs(randn(rng, shape[1])) + 0.5 for _ in range(4))
        attrs = {"groups": groups, "relu": 1}
        y, means, invstd = check("batch_norm", [x, weight, bias, mean, var, skip], attrs, inputs_too=(3, 4))
        check("batch_norm_grad", [dy, x, y, weight, means, invstd],
              {"training": 1, "groups": groups, "relu": 1, "residual": 1}, tol=2e-6, floor=1)


def test_batch_norm_streams_an_output_of_many_megabytes():
    """Above the size from which stores go past the caches: against NumPy in float64."""
    rng = generator("stream")
    x = randn(rng, 2, 64, 200, 200)
    weight, bias = randn(rng, 64), randn(rng, 64)
    (y, mean, invstd), _ = run("fast", np.float32, "batch_norm",
                               [x, weight, bias, np.zeros(64, np.float32), np.ones(64, np.float32)], {"relu": 1})
    assert y.nbytes > 16 << 20
    exact = x.astype(np.float64)
    center, deviation = exact.mean((0, 2, 3), keepdims=True), exact.std((0, 2, 3), keepdims=True)
    per_channel = [v.astype(np.float64)[:, None, None] for v in (weight, bias)]
    expected = np.maximum((exact - center) / np.sqrt(deviation**2 + 1e-5) * per_channel[0] + per_channel[1], 0)
    np.testing.assert_allclose(y, expected, atol=5e-6)
    (dx, _, _), _ = run("fast", np.float32, "batch_norm_grad", [x, x, y, weight, mean, invstd],
                        {"training": 1, "groups": 1, "relu": 1})
    g = np.where(y > 0, exact, 0)
    norm = (exact - center) / np.sqrt(deviation**2 + 1e-5)
    expected = per_channel[0] / np.sqrt(deviation**2 + 1e-5) * (
        g - g.mean((0, 2, 3), keepdims=True) - norm * (g * norm).mean((0, 2, 3), keepdims=True))
    np.testing.assert_allclose(dx, expected, atol=1e-5)


def test_batch_norm_statistics_keep_their_precision_far_from_zero():
    """A mean of 10,000 standard deviations costs the variance no more than the input's rounding."""
    x = (generator("far").standard_normal((4, 3, 40, 40)) + 1e4).astype(np.float32)
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    (_, mean, invstd), _ = run("fast", np.float32, "batch_norm", [x, one, zero, zero, one], {"eps": 0.0})
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean[0], exact.mean((0, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(invstd[0], 1 / exact.std((0, 2, 3)), rtol=1e-6)


def test_batch_norm_over_a_step_in_the_data():
    """Blocks of very different level (a border of one colour) do not spoil the variance."""
    x = np.ones((1, 16, 400, 3), np.float32) * 1000
    x[:, :, 2:] = generator("step").standard_normal((1, 16, 398, 3))
    zero, one = np.zeros(16, np.float32), np.ones(16, np.float32)
    (_, _, invstd), _ = run("fast", np.float32, "batch_norm", [x, one, zero, zero, one], {"eps": 0.0})
    np.testing.assert_allclose(invstd[0], 1 / x.astype(np.float64).std((0, 2, 3)), rtol=1e-6)


def test_batch_norm_carries_nan():
    """A NaN in a channel makes that channel NaN, ReLU or not, and no other."""
    x = randn(generator("nan"), 2, 3, 4, 4)
    x[1, 1, 2, 2] = np.nan
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    (y, _, _), _ = run("fast", np.float32, "batch_norm", [x, one, zero, zero, one], {"relu": 1})
    assert np.isnan(y[:, 1]).all() and np.isfinite(y[:, [0, 2]]).all()


def test_same_bits_again(threads):
    """The same call with the same thread count gives the same bits."""
    rng = generator("bits")
    x, dy = randn(rng, 6, 65, 37, 35), randn(rng, 6, 65, 37, 35)
    per_channel = [np.abs(randn(rng, 65)) + 0.1 for _ in range(4)]

    def everything():
        (y, mean, invstd), _ = run("fast", np.float32, "batch_norm", [x, *per_channel], {"groups": 3, "relu": 1})
        grads, _ = run("fast", np.float32, "batch_norm_grad", [dy, x, y, per_channel[0], mean, invstd],
                       {"training": 1, "groups": 3, "relu": 1})
        total, _ = run("fast", np.float32, "sum", [x], {})
        z, q = x[:, :40], per_channel[0][:40]
        attention, _ = run("fast", np.float32, "spatial_attention", [x, channels_last(z), np.tile(q, (6, 1))], {})
        return [y, *grads, *total, *attention]

    for a, b in zip(everything(), everything()):
        np.testing.assert_array_equal(a, b)


# ---- elementwise ----


def ulps(ours, exact):
    """Distance in units of float32's last place at the exact value."""
    exact = np.asarray(exact, np.float64)
    _, exponent = np.frexp(exact)
    unit = np.ldexp(1.0, np.maximum(exponent - 24, -149))
    with np.errstate(invalid="ignore"):
        distance = np.abs(ours.astype(np.float64) - exact) / unit
    same = (ours == exact.astype(np.float32)) | (np.isnan(ours) & np.isnan(exact))
    return np.where(same, 0, distance)


SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38,
                    -3.4028235e38, 88.72283, 88.72284, -103.97, -87.4, 0.625, -0.625], np.float32)


@pytest.mark.parametrize("name, function, limit, bound", [
    ("exp", np.exp, np.inf, 1.01),
    ("log", np.log, np.inf, 0.8),
    ("tanh", np.tanh, np.inf, 1.4),
    ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), 85, 2.5),
])
def test_functions_over_the_whole_range(name, function, limit, bound):
    """exp, log, tanh, sigmoid: within the stated number of units in the last place over every
    1009th float32 there is, special values included."""
    x = np.concatenate([np.arange(0, 2**32, 1009, dtype=np.uint64).astype(np.uint32).view(np.float32), SPECIAL])
    x = x[~(np.abs(x) > limit)]
    (y,), _ = run("fast", np.float32, name, [x], {})
    with np.errstate(all="ignore"):
        exact = function(x.astype(np.float64))
        exact = np.where(np.abs(exact) > np.float64(3.4028235677973366e38), np.sign(exact) * np.inf, exact)
    worst = ulps(y, exact)
    at = worst.argmax()
    assert worst[at] <= bound, f"{name}({x[at]}) = {y[at]}, should be {exact[at]}"


def test_functions_inside_vectors_and_after_them():
    """Each lane and each remainder of a vector computes the same value."""
    for name in ("exp", "log", "tanh", "sigmoid", "sqrt", "relu", "neg"):
        for n in (1, 7, 8, 15, 16, 17, 31, 33, 65):
            (y,), _ = run("fast", np.float32, name, [np.full(n, 0.7, np.float32)], {})
            np.testing.assert_allclose(y, y[0], rtol=2e-7)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
@pytest.mark.parametrize("a, b", [
    ((3, 4), (3, 4)), ((2, 5, 7, 9), (2, 5, 7, 9)), ((200, 300), (200, 300)), ((200, 300), ()), ((3,), ()),
    ((2, 3, 4, 5), (3, 1, 1)), ((2, 3, 4, 5), (2, 1, 4, 1)), ((2, 3, 4, 5), (5,)), ((2, 70, 40, 50), (2, 70, 1, 1)),
    ((5, 1), (4,)), ((3, 1), (1, 4)), ((6, 64), (6, 1)), ((2, 3, 2, 3, 2), (3, 1, 3, 1)), ((0, 3), (3,)),
], ids=str)
def test_binary_ops_broadcast(name, a, b, threads):
    """Both orders of operands, channels-last and row-major memory."""
    rng = generator(name, str(a), str(b))
    for first, second in ((a, b), (b, a)):
        x, y = (np.asarray(rng.standard_normal(s), np.float32) for s in (first, second))
        y = np.asarray(np.sign(y) * (np.abs(y) + np.float32(0.1)), np.float32)
        check(name, [x, y], tol=1e-7)
        check(name, [channels_last(x), y], tol=1e-7)


@pytest.mark.parametrize("view", [lambda a: a.T, lambda a: a[::2, 1:], lambda a: a[:, ::3], lambda a: a[5:6]],
                         ids=["transposed", "every second row", "every third column", "one row"])
def test_elementwise_on_views(view):
    """Inputs with strides; outputs are dense."""
    rng = generator("views")
    a, b = (view(rng.standard_normal((70, 90)).astype(np.float32)) for _ in range(2))
    positive = np.abs(a) + np.float32(0.1)
    for name in ("add", "mul", "relu_grad"):
        check(name, [a, b], tol=1e-7)
        check(name, [a, np.ascontiguousarray(b)], tol=1e-7)
    check("clamp_grad", [a, b], {"min": -0.5, "max": 0.5}, tol=1e-7)
    for name in ("relu", "tanh", "neg", "exp", "sigmoid"):
        check(name, [a], tol=3e-7)
    check("log", [positive], tol=3e-7)
    check("clamp", [a], {"min": -0.5, "max": 0.5}, tol=1e-7)
    for exponent in (1, 2, 3, 0.5, -1, 2.5, -0.3):
        check("pow", [positive], {"exponent": exponent}, tol=3e-7)


def test_tanh_keeps_the_sign_of_zero():
    for count in (1, 100): # rests of vectors, and vectors
        y = _asen.from_numpy(np.array([-0.0, 0.0] * count, np.float32)).tanh().numpy()
        assert np.signbit(y).tolist() == [True, False] * count


def test_relu_keeps_nan_and_makes_no_negative_zero():
    (y,), _ = run("fast", np.float32, "relu", [np.array([np.nan, -0.0, -1, 2], np.float32)], {})
    assert np.isnan(y[0]) and not np.signbit(y[1:]).any()
    np.testing.assert_array_equal(y[1:], [0, 0, 2])


# ---- copies ----


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 64, 70), (2, 65, 33, 31), (5, 1, 7, 7), (300, 200), (2, 3, 4, 5, 6)], ids=str)
def test_copies(shape, threads):
    """Row-major, channels-last, swapped and strided sources become dense copies, bit for bit."""
    rng = generator("copy", str(shape))
    for dtype in (np.float32, np.float64, np.int64, np.uint8):
        a = (rng.standard_normal(shape) * 100).astype(np.int64).astype(dtype)
        for source in (a, channels_last(a), np.swapaxes(a, 0, 1), a[:1], a[..., ::2], a[..., 1:2]):
            (y,), _ = run("fast", np.float32, "copy", [source], {})
            np.testing.assert_array_equal(y, source)
            dense = y.transpose(0, 2, 3, 1) if y.ndim == 4 else y
            assert dense.flags.c_contiguous


@pytest.mark.parametrize("source, target", [
    ("uint8", "float32"), ("uint8", "int64"), ("int64", "float32"), ("int64", "float64"), ("float64", "float32"),
    ("float32", "float64"), ("bool", "float32"), ("int32", "int64"),
])
def test_conversions(source, target):
    a = generator(source).integers(0, 2 if source == "bool" else 100, (3, 5, 7, 4)).astype(source)
    for array in (a, channels_last(a), a[:, ::2]):
        with paths("fast"):
            y = _asen.apply("copy", [_asen.from_numpy(array)], {"dtype": target})
        y = (y[0] if isinstance(y, (tuple, list)) else y).numpy()
        assert y.dtype == target
        np.testing.assert_array_equal(y, array.astype(target))


# ---- reductions ----


@pytest.mark.parametrize("shape", [(3, 4), (2, 64, 33, 31), (3, 257, 7, 9), (7, 1, 3, 1), (2, 3, 4, 5, 6),
                                   (1, 30, 20, 1), (3, 20000), (4, 16, 1, 1), (), (1,)], ids=str)
def test_reductions_over_all_sets_of_dims(shape):
    """sum, mean, max, and max_grad where maxima repeat, over every set of dims."""
    rng = generator("reduce", str(shape))
    x = randn(rng, *shape) + np.float32(0.2)
    ties = channels_last(np.asarray(rng.integers(0, 3, shape), np.float32))
    for count in range(len(shape) + 1):
        for dims in itertools.combinations(range(len(shape)), count):
            for keepdim in (0, 1):
                attrs = {"dims": dims, "keepdim": keepdim}
                check("sum", [x], attrs)
                check("mean", [x], attrs)
                (y,) = check("max", [x], attrs, tol=0)
                (y,) = check("max", [ties], attrs, tol=0)
                check("max_grad", [channels_last(randn(rng, *y.shape)), ties, channels_last(y)], attrs, tol=1e-7)


@pytest.mark.parametrize("dims", [[], [0], [1], [0, 2]], ids=str)
def test_the_gradient_of_a_maximum_that_is_nan_goes_to_the_nans(dims):
    """NaN is the maximum of what holds one: its gradient must not vanish, or a scaler would not see the NaN."""
    x = randn(generator("nan maximum"), 3, 40, 5)
    x[0, 0, 0] = x[1, 0, 0] = np.nan
    (y,) = check("max", [x], {"dims": dims}, tol=0)
    (dx,) = check("max_grad", [np.ones_like(y), x, y], {"dims": dims}, tol=1e-7)
    assert dx[0, 0, 0] in (0.5, 1) and dx[1, 0, 0] in (0.5, 1)


def test_large_sums(threads):
    """A million equal numbers: what float32 added one by one would get wrong by 1 %."""
    x = np.full((1_000_003,), 0.1, np.float32)
    check("sum", [x], tol=4e-6)
    check("mean", [channels_last(x[: 4 * 5 * 200 * 250].reshape(4, 5, 200, 250))], {"dims": (0, 2, 3)}, tol=4e-6)
    y = check("max", [x], tol=0)[0]
    assert y == np.float32(0.1)


def test_max_finds_nan():
    for n, at in ((5, 0), (70, 69), (70_000, 40_000)):
        x = randn(generator("maxnan"), n)
        x[at] = np.nan
        assert np.isnan(run("fast", np.float32, "max", [x], {})[0][0])


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 3, 4, 5), (5,), (7, 1000), (2, 70, 9, 9), (64, 30, 40)], ids=str)
def test_softmax_over_every_dim(shape):
    x = randn(generator("softmax", str(shape)), *shape) * np.float32(3)
    for dim in range(len(shape)):
        check("softmax", [x], {"dim": dim}, tol=1e-6)
        check("log_softmax", [x], {"dim": dim - len(shape)}, tol=1e-6)


# ---- pooling ----


@pytest.mark.parametrize("c", [1, 3, 16, 65])
@pytest.mark.parametrize("h, w, kernel, stride, padding", [
    (7, 8, 3, 2, 1), (31, 30, 3, 2, 1), (4, 4, 2, 2, 0), (9, 9, 3, 1, 1), (5, 6, 2, 3, 0), (6, 6, 5, 2, 2), (1, 1, 3, 2, 1)])
def test_max_pool(c, h, w, kernel, stride, padding, threads):
    """Ties go to the first (ReLU makes many); the gradient adds up where windows overlap."""
    rng = generator("pool", c, h, w)
    x = np.maximum(randn(rng, 3, c, h, w), 0)
    attrs = {"kernel_size": kernel, "stride": stride, "padding": padding}
    y, index = check("max_pool2d", [x], attrs, tol=0)
    assert index.dtype == np.int32
    check("max_pool2d_grad", [randn(rng, *y.shape), channels_last(index)], {**attrs, "size": (h, w)}, tol=3e-7)


# ---- attention, losses, rows ----


@pytest.mark.parametrize("batch, channels, keys, h, w", [
    (2, 6, 3, 4, 5), (1, 8, 4, 7, 7), (1, 1024, 512, 7, 7), (3, 65, 17, 9, 5), (5, 256, 64, 1, 1), (4, 300, 40, 14, 13)])
def test_spatial_attention(batch, channels, keys, h, w, threads):
    rng = generator("attention", batch, channels)
    x, z, q = randn(rng, batch, channels, h, w), randn(rng, batch, keys, h, w), randn(rng, batch, keys)
    _, m, k = check("spatial_attention", [x, z, q])
    assert m.shape == (batch, h, w)
    for dm in (None, randn(rng, batch, h, w)):
        check("spatial_attention_grad", [randn(rng, batch, channels), dm, x, q, m, channels_last(k)], tol=3e-6)


@pytest.mark.parametrize("rows, classes", [(4, 3), (1, 5), (33, 1000)])
def test_cross_entropy_and_arc_margin(rows, classes):
    rng = generator("entropy", rows)
    target, logits = rng.integers(0, classes, rows), randn(rng, rows, classes) * np.float32(4)
    _, softmax = check("cross_entropy", [logits, target], tol=2e-6)
    check("cross_entropy_grad", [randn(rng), softmax, target])
    cosine = np.tanh(logits / 3)
    cosine[0, :3] = 1, -1, 0
    for target in (target, np.zeros_like(target), np.ones_like(target)):
        for easy in (0, 1):
            attrs = {"s": 10.0, "m": 0.5, "easy_margin": easy}
            check("arc_margin", [cosine, target], attrs)
            check("arc_margin_grad", [randn(rng, rows, classes), cosine, target], attrs)


@pytest.mark.parametrize("rows, width", [(4, 5), (1, 16), (48, 1024), (300, 17), (3, 2)])
def test_cosine_similarity_and_normalize(rows, width):
    """Rows of zeros (clamped norms) among them."""
    rng = generator("rows", rows)
    a, b = randn(rng, rows, width), randn(rng, rows, width)
    check("normalize", [a])
    y, norm_a, norm_b = check("cosine_similarity", [a, b])
    check("cosine_similarity_grad", [randn(rng, rows), a, b, y, norm_a, norm_b], tol=1e-5)
    y, norm = check("normalize", [a])
    check("normalize_grad", [randn(rng, rows, width), y, norm], tol=1e-5)
    a[0] = 0
    y, norm_a, norm_b = check("cosine_similarity", [a, b])
    for outputs in ([0], [1]):
        check("cosine_similarity_grad", [randn(rng, rows), a, b, y, norm_a, norm_b], tol=1e-5, outputs=outputs)
    y, norm = check("normalize", [a], {"eps": 1e-3})
    check("normalize_grad", [randn(rng, rows, width), y, norm], {"eps": 1e-3}, tol=1e-5)


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e-20, 1e-12, 1e12, 1e19, 1e30, 1e38])
@pytest.mark.parametrize("width", [2, 17, 300])
def test_rows_whose_squares_leave_the_range_of_float(scale, width):
    """Norms, cosines and their gradients agree with the reference where squares overflow or vanish in float32."""
    rng = generator("scale", width)
    a, b = (np.asarray(scale * rng.uniform(0.5, 1, (5, width)) * rng.choice([-1, 1], (5, width)), np.float32) for _ in range(2))
    for eps in (1e-12, 0.0):
        y, norm = check_relative("normalize", [a], {"eps": eps})
        check_relative("normalize_grad", [randn(rng, 5, width), y, norm], {"eps": eps}, 1e-4)
        y, norm_a, norm_b = check_relative("cosine_similarity", [a, b], {"eps": eps})
        check_relative("cosine_similarity_grad", [randn(rng, 5), a, b, y, norm_a, norm_b], {"eps": eps}, 1e-4)
    if 1e-38 <= scale <= 1e30:
        np.testing.assert_allclose(np.linalg.norm(check_relative("normalize", [a], {"eps": 0.0})[0].astype(np.float64), axis=1), 1, rtol=1e-6)


def check_relative(name, arrays, attrs, tol=3e-6):
    """Fast float32 within tol of the reference on the same float32 input, relative to each output's largest value."""
    ours, same = run("fast", np.float32, name, arrays, attrs)[0], run("reference", np.float32, name, arrays, attrs)[0]
    for a, b in zip(ours, same, strict=True):
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
        finite = np.isfinite(b)
        largest = np.abs(b[finite], dtype=np.float64).max(initial=0)
        np.testing.assert_allclose(a[finite].astype(np.float64), b[finite].astype(np.float64), rtol=0, atol=max(tol * largest, 1e-45))
    return same


SELECT_SHAPES = [((5, 7), (5, 7)), ((40, 1001), (40, 1001)), ((2, 65, 9, 11), ()), ((), (3, 4)), ((1, 1), (33, 5))]


@pytest.mark.parametrize("relation", range(6))
@pytest.mark.parametrize("a, b", SELECT_SHAPES)
def test_compare(relation, a, b):
    """Equal elements and NaN among them; dense operands and single elements."""
    rng = generator("compare", str(a))
    x, y = (channels_last(np.asarray(rng.choice([-1.5, -0.0, 0.0, 2.0, np.inf, np.nan], s), np.float32)) for s in (a, b))
    check("compare", [x, y], {"relation": relation})


@pytest.mark.parametrize("a, b", SELECT_SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32])
def test_where(a, b, dtype):
    """Elements move unchanged, whatever their dtype; single elements on either side, and as the condition."""
    rng = generator("where", str(a))
    x, y = (channels_last(np.asarray(rng.integers(-9, 9, s), dtype)) for s in (a, b))
    for shape in {np.broadcast_shapes(a, b), ()}:
        condition = channels_last(np.asarray(rng.integers(0, 2, shape), bool))
        with paths("fast"):
            ours = _asen.apply("where", [_asen.from_numpy(t) for t in (condition, x, y)], {}).numpy()
        np.testing.assert_array_equal(ours, np.where(condition, x, y))


@pytest.mark.parametrize("name, arrays, message", [
    ("cross_entropy", [np.zeros((2, 3), np.float32), np.array([0, 3])], "target 3 at position 1"),
    ("embedding", [np.zeros((2, 3), np.float32), np.array([-1])], "index -1 at position 0"),
    ("arc_margin", [np.zeros((2, 3), np.float32), np.array([4, 0])], "target 4 at position 0"),
])
def test_indices_outside_are_errors(name, arrays, message):
    attrs = {"s": 1.0, "m": 0.5} if name == "arc_margin" else {}
    with pytest.raises(IndexError, match=message):
        run("fast", np.float32, name, arrays, attrs)


# ---- moves ----


def test_cat_slice_grad_embedding():
    rng = generator("moves")
    for shapes, dim in (([(2, 3), (1, 3)], 0), ([(2, 3), (2, 4)], 1), ([(2, 3, 4, 4), (2, 200, 4, 4)], 1),
                        ([(2, 3, 40, 40), (2, 3, 1, 40)], -2), ([(3,), (4,), (1,)], 0), ([(2, 3, 2, 5, 2)] * 2, 3)):
        check("cat", [randn(rng, *s) for s in shapes], {"dim": dim}, tol=0)
    check("slice_grad", [randn(rng, 2, 2)], {"shape": (4, 5), "start": (1, 0), "step": (1, 3)}, tol=0)
    check("slice_grad", [randn(rng, 2, 3, 4, 5)], {"shape": (2, 6, 9, 5), "start": (0, 1, 1, 0), "step": (1, 2, 2, 1)}, tol=0)
    for shape in ((4,), (2, 3), (100, 2)):
        index = rng.integers(0, 6, shape)
        check("embedding", [randn(rng, 6, 9), index], tol=0)
        check("embedding_grad", [randn(rng, *shape, 9), index], {"rows": 6}, tol=3e-7)


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 100, 2**32 + 5])
def test_dropout_keeps_what_the_reference_keeps(offset, threads):
    """The same elements, whatever the offset and however the elements are divided among threads."""
    rng = generator("dropout")
    for shape in ((3, 4), (41,), (2, 3, 4, 4), (5, 77, 33, 3), (2,)):
        x = np.abs(randn(rng, *shape)) + np.float32(0.1)
        for p in (0.3, 0.0, 0.999):
            attrs = {"p": p, "seed": 7, "offset": offset}
            (y,) = check("dropout", [x], attrs, tol=2e-7)
            (exact,), _ = run("reference", np.float32, "dropout", [x], attrs)
            np.testing.assert_array_equal(y == 0, exact == 0)


# ---- optimizers ----


@pytest.mark.parametrize("kind, options", [
    ("sgd", {}), ("sgd", {"weight_decay": 0.01}), ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}), ("sgd", {"momentum": 0.9, "nesterov": True}),
    ("adam", {}), ("adam", {"weight_decay": 0.1, "beta1": 0.8}), ("adamw", {}), ("adamw", {"weight_decay": 0.1}),
], ids=str)
def test_optimizers(kind, options, threads):
    """Six steps over tensors from one element to many, against the reference in float64."""
    rng = generator(kind)
    sizes = [(1,), (3, 5), (17,), (40, 1000), (16,), (2, 3, 4, 5), (70_001,)]
    start = [randn(rng, *s) for s in sizes]
    grads = [[randn(rng, *s) for s in sizes] for _ in range(6)]
    results = {}
    for path, dtype in (("fast", np.float32), ("reference", np.float64)):
        params = [_asen.from_numpy(a.astype(dtype, order="K")).clone() for a in start]
        states = [[_asen.from_numpy(np.zeros(s, dtype)).clone() for s in sizes] for _ in range(2)]
        with paths(path, "reference"):
            for step, given in enumerate(grads, 1):
                _asen.optim_step(kind, params, [_asen.from_numpy(g.astype(dtype, order="K")).clone() for g in given],
                                 states[0] if kind != "sgd" or "momentum" in options else None,
                                 states[1] if kind != "sgd" else None, step, 0.01, **options)
        results[path] = [np.array(t.numpy()) for t in params + states[0] + states[1]]
    for ours, exact in zip(results["fast"], results["reference"]):
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-6)


# ---- small matrix products ----


def dense(array):
    """In memory of its own."""
    return _asen.from_numpy(array).clone()


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_small_matrix_products(trans_a, trans_b):
    """Every number of rows and columns around a block's and a panel's, depths from 0 to the largest, in batches too."""
    rng = np.random.default_rng(3)
    shapes = [(m, n, k) for m in (0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 23) for n in (0, 1, 15, 16, 17, 31, 33) for k in (0, 1, 5, 16)]
    shapes += [(1, 512, 512), (64, 64, 64), (3, 2, 512)]
    with paths("fast"):
        for m, n, k in shapes:
            for batch in ((), (1,), (3,)):
                if int(np.prod(batch)) * m * n * k > 64 ** 3:
                    continue
                a = rng.standard_normal((*batch, *((k, m) if trans_a else (m, k))), np.float32)
                b = rng.standard_normal((*batch, *((n, k) if trans_b else (k, n))), np.float32)
                y = _asen.apply("matmul", [dense(a), dense(b)], {"trans_a": trans_a, "trans_b": trans_b}).numpy()
                exact = ((a.swapaxes(-1, -2) if trans_a else a).astype(np.float64)
                         @ (b.swapaxes(-1, -2) if trans_b else b).astype(np.float64))
                assert y.shape == exact.shape
                np.testing.assert_allclose(y, exact, rtol=0, atol=4e-6 * max(k, 1) ** 0.5, err_msg=str((batch, m, n, k)))


def test_large_matrix_products_are_left_to_onednn():
    """More work than 64 x 64 x 64, or deeper than 512: declined, alone and as a batch; also where the product overflows."""
    with paths("fast"):
        for a, b in (((65, 64), (64, 64)), ((1, 513), (513, 1)), ((5, 32, 64), (5, 64, 32))):
            with pytest.raises(NotImplementedError):
                _asen.apply("matmul", [dense(np.ones(a, np.float32)), dense(np.ones(b, np.float32))], {})


# ---- the table ----


def test_every_row_but_linear_and_convolutions_has_a_fast_kernel():
    """A new row without a fast kernel would run on the reference in training: it must be listed here. Pixels are
    normalised by the loader on the CPU; only a GPU has them done by a row."""
    other = {"linear", "conv2d", "conv2d_grad_input", "conv2d_grad_weight", "conv2d_fused", "normalize_pixels",
             "sort", "gather", "gather_grad"}
    rows = {spec["name"] for spec in _asen.op_specs() if not spec["view"]}
    missing = set()
    for name in rows - other:
        with paths("fast"):
            try:
                _asen.apply(name, [], {})
            except NotImplementedError:
                missing.add(name)
            except Exception:  # wrong arguments: there is a test above for the right ones
                pass
    assert not missing
    source = open(__file__, encoding="utf-8").read()
    assert not [name for name in rows - other if f'"{name}"' not in source]
