"""Sizes, addresses and dtypes at which the GPU's kernels take another turn than the rows' own samples make them take.

Blocks that have more to do than one turn (on a GPU of one multiprocessor a kernel has 32 blocks or few more), more
indices than threads, tiles that are not full, vectors whose address or stride does not allow them, elements of
every size. tests/cudasim/mutants.py shows that each barrier and each bound of the kernels is needed by one of these.
"""

import numpy as np
import pytest

import test_cuda_ops as rows
from asenpp import _asen
from test_cuda_ops import compare, host, on, ops, run

SAMPLES = {name: [ops.Sample(ops.SPECS[name], t.strip()) for t in text.split("|")] for name, text in {
    # outputs and rows beyond one turn of 32 blocks
    "sum": "x[130,70,9] dims=2 | x[3,9000] dims=0 | x[9000,3] dims=1 | x[40,40,2,3] dims=0,3 | x[700,36] dims=0 | x[2,20001] dims=1 "
           "| x[40,9000] dims=0 | x[17,4099] dims=0",
    "mean": "x[9000,5] dims=1 | x[5,9000] dims=0 keepdim=1",
    "max": "x[9000,3]d dims=1 | x[3,9000]d dims=0 | x[20001]d dims=0",
    "softmax": "x[2000,7] | x[5,7,300] dim=1 | x[3,5000]",
    "log_softmax": "x[300,33] dim=0",
    "cross_entropy": "logits[700,5] target[700]i5 | logits[3,700] target[3]i700",
    "embedding": "weight[40,36] index[400]i40 | weight[7,5] index[300,9]i7",
    "embedding_grad": "dy[700,3] index[700]i5 rows=5 | dy[600,260] index[600]i40 rows=40",
    "normalize": "x[200,9] | x[200,132]",
    "cosine_similarity": "a[200,9] b[200,9] | a[150,132] b[150,132]",
    "arc_margin": "cosine[90,101]u target[90]i101 s=3 m=0.2",
    "dropout": "x[70,1001] p=0.3 seed=4 | x[41000] p=0.3 seed=4 offset=2",
    "max_pool2d": "x[2,17,70,5]d kernel_size=3 stride=2 padding=1 | x[2,264,5,6]d kernel_size=2 stride=1",
    "batch_norm": "x[4,264,5,3] weight[264] bias[264] running_mean[264] running_var[264]p groups=2 "
                  "| x[40,9,13,11] weight[9] bias[9] running_mean[9] running_var[9]p groups=2 relu=1",
    "spatial_attention": "x[2,260,3,5] z[2,140,3,5] q[2,140] | x[1,5,40,30] z[1,3,40,30] q[1,3]",
    "add": "a[70,1001] b[1001] | a[257,33] b[257,1] | a[1] b[1] | a[5,4,3] b[5,1,3]",
    "mul": "a[2,3,4,5] b[3,1,5] | a[40000] b[1]",
    "relu": "x[40003]",
    "exp": "x[9001]",
    "cat": "x[9001] x[3] | x[70,33] x[70,100] dim=1",
    "normalize_pixels": "x[2,3,40,41]b table[3,256] | x[1,5,7,70]b table[5,256] | x[1,64,9,9]b table[64,256]",
}.items()}
EVERY = [s for samples in SAMPLES.values() for s in samples]


@rows.every(EVERY)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_more_than_one_turn(sample, dtype):
    sample = ops.rounded(sample)
    compare(sample, run(sample, np.dtype(dtype), "cuda"), rows.reference(sample), rows.TOLERANCE[dtype] * 2)


def shifted(tensor, elements):
    """The same dense tensor on the GPU, at an address `elements` elements behind an aligned one."""
    if tensor is None or tensor.ndim == 0:
        return on(tensor, "cuda")
    lying = tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor
    values = host(lying).reshape(-1)
    base = on(_asen.from_numpy(np.concatenate([np.zeros(elements, values.dtype), values])), "cuda")
    moved = base[elements:].reshape(tuple(lying.shape))
    return moved.permute(0, 3, 1, 2) if tensor.ndim == 4 else moved


@rows.every([s for s in [*ops.SAMPLES, *rows.LARGE, *EVERY] if s.name not in ("reshape", "permute", "slice", "expand")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_addresses_that_allow_no_vectors(sample, dtype):
    """Each input in turn, then all of them, one element behind an aligned address: the values of aligned ones."""
    if sample.attrs.get("dtype") in ("float32", "float64") and sample.attrs["dtype"] != dtype:
        pytest.skip("the other dtype's case")
    exact = run(sample, np.dtype(dtype), "cuda")[0]
    tensors = [ops.as_tensor(a, np.dtype(dtype)) for a in sample.arrays]
    places = [i for i, t in enumerate(tensors) if t is not None and t.ndim > 0 and not sample.inputs[i].startswith("running_")]
    for chosen in [*([i] for i in places), places]:
        given = [shifted(t, 1) if i in chosen else on(t, "cuda") for i, t in enumerate(tensors)]
        for k, (a, b) in enumerate(zip(ops.apply(sample.name, given, sample.attrs), exact)):
            ops.assert_close(host(a), b, 1e-5 if dtype == "float32" else 1e-13, f"{[sample.inputs[i] for i in chosen]}: output {k}")


@rows.every([s for s in ops.SAMPLES if s.name in ("conv2d", "conv2d_fused")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_our_own_convolutions(sample, dtype):
    """In place of cuDNN's: groups, steps, channels that fill no vector, addresses that allow none."""
    sample = ops.rounded(sample)
    _asen.set_option("cuda", "direct_convolution", 1)
    try:
        exact = rows.reference(sample)
        compare(sample, run(sample, np.dtype(dtype), "cuda"), exact, rows.TOLERANCE[dtype])
        given = [shifted(ops.as_tensor(a, np.dtype(dtype)), 1) for a in sample.arrays]
        ours = host(ops.apply(sample.name, given, sample.attrs)[0])
        ops.assert_close(ours, exact[0][0], rows.TOLERANCE[dtype], "one element behind an aligned address")
    finally:
        _asen.set_option("cuda", "direct_convolution", 0)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64"])
def test_copies_of_any_strides(dtype):
    """Transposed, permuted, sliced and shifted copies of elements of every size: bit for bit."""
    values = np.arange(2 * 45 * 70 * 3) * 37 % 251
    if dtype == "bool":
        values = values % 2
    base = _asen.from_numpy(values.astype(np.float32)).to(dtype=dtype)
    shaped = base.reshape(2 * 45, 70 * 3)
    four = base.reshape(2, 45, 70, 3)
    views = [
        (shaped, lambda t: t.permute(1, 0)), (shaped, lambda t: t[1:, 1:].permute(1, 0)), (shaped, lambda t: t[:, 3:35]),
        (shaped, lambda t: t[:, ::2]), (shaped, lambda t: t[1:5, 1:9]), (shaped, lambda t: t[:16, :16].permute(1, 0)),
        (shaped, lambda t: t[:33, :17].permute(1, 0)), (shaped, lambda t: t[:15, :40].permute(1, 0)),
        (shaped, lambda t: t[:40, :15].permute(1, 0)), (shaped, lambda t: t[:32, 8:72].permute(1, 0)),
        (four, lambda t: t.permute(0, 2, 1, 3)), (four, lambda t: t.permute(3, 2, 1, 0)), (four, lambda t: t[:, 1:, ::3]),
        (four, lambda t: t.permute(0, 3, 1, 2)), (base, lambda t: t[1:]), (base, lambda t: t[1:17]), (base, lambda t: t[:1]),
        (base, lambda t: t[::5]), (base.reshape(2, 45, 210), lambda t: t.permute(0, 2, 1)),
        (base.reshape(2, 45, 210), lambda t: t[:, :, :4]), (base.reshape(2, 45, 210), lambda t: t[:, ::2, 2:10]),
    ]
    for whole, view in views:
        exact = host(view(whole).clone().to(dtype="float64"))
        there = view(on(whole, "cuda"))
        np.testing.assert_array_equal(host(there.clone().to(dtype="float64")), exact)
        target = on(_asen.from_numpy(np.zeros(whole.shape, np.float32)).to(dtype=dtype), "cuda")
        view(target).copy_(there)
        wanted = _asen.from_numpy(np.zeros(whole.shape, np.float32)).to(dtype=dtype)
        view(wanted).copy_(view(whole))
        np.testing.assert_array_equal(host(target.to(dtype="float64")), host(wanted.to(dtype="float64")))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64"])
def test_filling_any_stretch(dtype):
    """Every head and tail of a fill in 16-byte units, and nothing beside it."""
    for first in (0, 1, 2, 5, 15, 16):
        for count in (0, 1, 2, 3, 7, 8, 15, 16, 17, 33, 20000):
            x = on(_asen.from_numpy(np.zeros(first + count + 5, np.float32)).to(dtype=dtype), "cuda")
            x[first:first + count].fill_(3)
            wanted = np.zeros(first + count + 5)
            wanted[first:first + count] = 3
            np.testing.assert_array_equal(host(x.to(dtype="float64")), wanted)


@pytest.mark.parametrize("source, target", [("float32", "float16"), ("float32", "bfloat16"), ("float16", "float32"), ("bfloat16", "float32"),
                                            ("float32", "float64"), ("int64", "float32")])
def test_conversions_of_any_length(source, target):
    """Vectors of eight and what they leave over; addresses that allow none."""
    for count in (1, 7, 8, 9, 16, 17, 8191, 70001):
        values = _asen.from_numpy(np.linspace(-50, 50, count + 1, dtype=np.float32)).to(dtype=source)
        for cut in (lambda t: t[:count], lambda t: t[1:]):
            ours, exact = cut(on(values, "cuda")).to(dtype=target), cut(values).to(dtype=target)
            np.testing.assert_array_equal(host(ours.to(dtype="float64")), host(exact.to(dtype="float64")))


INTEGERS = ["uint8", "int32", "int64"]


def integers(shape, dtype, seed=0):
    low, high = (0, 256) if dtype == "uint8" else (-1000, 1000)
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("shape, dims", [((5, 7), [1]), ((7, 5), [0]), ((300, 3), [1]), ((3, 700), [1]), ((2, 3, 4, 5), [0, 3]), ((600,), [0]),
                                         ((2, 40, 6, 5), [1]), ((1, 1), [0])])
def test_integer_reductions_are_the_cpus(dtype, shape, dims):
    """Sums wrap around in the dtype that the CPU gives them; maxima of negative numbers, too."""
    x = integers(shape, dtype)
    for name in ("sum", "max"):
        for values in (x, -np.abs(x) if dtype != "uint8" else x, np.full(shape, np.iinfo(dtype).max, dtype)):
            ours, exact = (_asen.apply(name, [on(_asen.from_numpy(values), device)], {"dims": dims}) for device in ("cuda", "cpu"))
            assert ours.dtype == exact.dtype
            np.testing.assert_array_equal(host(ours), host(exact))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_arithmetic_is_the_cpus(dtype):
    """With broadcasting, wrapping around, division rounding down for every pair of signs."""
    a, b = integers((40, 300), dtype), integers((300,), dtype, 1)
    b[b == 0] = 3
    b[:4] = [1, 255, 2, 7] if dtype == "uint8" else [1, -1, 2, -7]
    for name in ("add", "sub", "mul", "div"):
        ours, exact = (_asen.apply(name, [on(_asen.from_numpy(v), device) for v in (a, b)], {}) for device in ("cuda", "cpu"))
        np.testing.assert_array_equal(host(ours), host(exact))
    if dtype != "uint8":
        np.testing.assert_array_equal(host(-on(_asen.from_numpy(a), "cuda")), -a)


@pytest.mark.parametrize("name", ["max", "max_pool2d", "softmax", "relu", "clamp", "sum"])
def test_nan_and_ties_are_the_cpus(name):
    """A NaN anywhere wins a maximum and stays; of equals the first counts; bounds themselves are inside."""
    rng = np.random.default_rng(5)
    attrs = {"max": {"dims": [1]}, "max_pool2d": {"kernel_size": 2, "stride": 1}, "softmax": {"dim": 1}, "clamp": {"min": -1.0, "max": 1.0},
             "sum": {"dims": [1]}}.get(name, {})
    shape = (2, 5, 6, 7) if name == "max_pool2d" else (9, 70)
    for dtype in (np.float32, np.float64):
        whole = rng.integers(-2, 3, shape).astype(dtype)
        for hole in (None, 0, whole.size // 2, whole.size - 1):
            x = whole.copy()
            if hole is not None:
                x.flat[hole] = np.nan
            results = []
            for device in ("cuda", "cpu"):
                _asen.set_kernel_paths("reference")
                t = on(_asen.from_numpy(x.copy()).clone(), device).requires_grad_()
                out = ops.apply(name, [t], attrs)
                out[0].sum().backward()
                results.append([*(host(y) for y in out), host(t.grad)])
            for ours, exact in zip(*results):
                np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("dims", [[], [0], [1], [0, 2]], ids=str)
def test_the_gradient_of_a_maximum_that_is_nan_goes_to_the_nans(dims):
    x = np.random.default_rng(5).standard_normal((3, 40, 5)).astype(np.float32)
    x[0, 0, 0] = x[1, 0, 0] = np.nan
    results = []
    for device in ("cpu", "cuda"):
        leaf = on(_asen.from_numpy(x), device).detach().requires_grad_()
        _asen.max(leaf, dims).sum().backward()
        results.append(host(leaf.grad))
    assert results[1][0, 0, 0] > 0 and results[1][1, 0, 0] > 0
    np.testing.assert_array_equal(results[1], results[0])
