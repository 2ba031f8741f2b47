"""Every op row on the GPU against the reference kernels on the CPU: values, gradients, layouts, dtypes, bits, memory.

The samples are those of tests/op_samples.py, so a new row is tested here without a word.
"""

import warnings

import numpy as np
import pytest

import test_ops as ops
from asenpp import _asen

SPECS = ops.SPECS
LARGE = [s for samples in ops.LARGE_SAMPLES.values() for s in samples]
ALL = ops.SAMPLES + LARGE

# Of the largest magnitude in the result. float32 rounds at 6e-8, sums of n terms lose about sqrt(n) of that;
# cuDNN may use Winograd's transforms, which lose a digit more.
TOLERANCE = {"float32": 4e-6, "float64": 1e-12}
# 16 bits: one rounding of the result, and of those in between, at 2^-9 and 2^-12.
HALF_TOLERANCE = {"bfloat16": 2.0**-6, "float16": 2.0**-9}
# Rows that a mixed-precision step runs in 16 bits.
HALF = ("add sub mul div neg exp log sqrt clamp relu tanh sigmoid copy sum mean max matmul linear softmax conv2d "
        "conv2d_fused max_pool2d batch_norm").split()


def every(samples):
    return pytest.mark.parametrize("sample", samples, ids=[f"{s.name}: {s.text}" for s in samples])


def on(tensor, device):
    return tensor if tensor is None or device == "cpu" else tensor.to(device=device)


def host(tensor):
    return np.array(tensor.detach().to(device="cpu").numpy())


def run(sample, dtype, device):
    """(outputs, inputs after the call, {input: gradient}) as arrays, computed in a dtype on a device."""
    tensors = [on(ops.as_tensor(a, dtype), device) for a in sample.arrays]
    differentiable = SPECS[sample.name]["differentiable"]
    for i in sample.gradient_inputs() if differentiable else ():
        tensors[i].requires_grad_()
    out = ops.apply(sample.name, tensors, sample.attrs)
    assert all(y.device == device for y in out)
    arrays, gradients = [host(y) for y in out], {}
    if differentiable:
        dys = ops.cotangents(sample, [y.shape for y in out])
        ops.start_backward(out, {k: on(ops.as_tensor(dy, arrays[k].dtype), device) for k, dy in dys.items()})
        gradients = {i: host(tensors[i].grad) for i in sample.gradient_inputs()}
    return arrays, [None if t is None else host(t) for t in tensors], gradients


def reference(sample):
    _asen.set_kernel_paths("reference")
    result = run(sample, None, "cpu")
    _asen.set_kernel_paths("all")
    return result


def in_deviations(mean, invstd):
    """A mean near zero is as exact as the values that were added up: in units of their deviation, beside a 1."""
    return np.append(mean * invstd.astype(mean.dtype), mean.dtype.type(1))


def compare(sample, ours, exact, tolerance):
    for k, (a, b) in enumerate(zip(ours[0], exact[0])):
        if sample.name == "batch_norm" and k == 1:
            a, b = in_deviations(a, exact[0][2]), in_deviations(b, exact[0][2])
        ops.assert_close(a, b, tolerance, f"output {k}")
    for i, (a, b) in enumerate(zip(ours[1], exact[1])):
        if a is not None:
            ops.assert_close(a, b, tolerance, f"{sample.inputs[i]} after the call")
    assert ours[2].keys() == exact[2].keys()
    for i, gradient in ours[2].items():
        ops.assert_close(gradient, exact[2][i], tolerance, f"gradient of {sample.inputs[i]}")


@every(ALL)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_reference(sample, dtype):
    """Outputs, running statistics and gradients."""
    if sample.attrs.get("dtype") in ("float32", "float64") and sample.attrs["dtype"] != dtype:
        pytest.skip("the other dtype's case")
    sample = ops.rounded(sample)
    compare(sample, run(sample, np.dtype(dtype), "cuda"), reference(sample), TOLERANCE[dtype])


def test_the_comparison_can_fail():
    """A gradient that is off by 1e-5 is seen."""
    sample = ops.rounded(next(s for s in ALL if s.name == "conv2d"))
    ours, exact = run(sample, np.float32, "cuda"), reference(sample)
    ours[2][1].flat[0] += 1e-5 * np.abs(exact[2][1]).max()
    with pytest.raises(AssertionError, match="gradient of w"):
        compare(sample, ours, exact, TOLERANCE["float32"])


def test_every_row_was_run():
    """No row is missing above: each has samples or is another's gradient; views have no kernels."""
    run_here = {s.name for s in ALL} | set(ops.COVERED_BY)
    assert {name for name, spec in SPECS.items() if not spec["view"]} <= run_here


# ---- 16 bits ----

def half_of(array, dtype):
    """float64 values that a 16-bit dtype holds."""
    return np.array(_asen.from_numpy(array.astype(np.float32)).to(dtype=dtype).to(dtype="float32").numpy()).astype(np.float64)


def wide_inputs(sample):
    """Inputs that stay float32 beside 16-bit ones: parameters and statistics of a norm."""
    return set(range(1, 5)) if sample.name == "batch_norm" else set()


@every([s for s in ALL if s.name in HALF and "dtype" not in s.attrs])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_are_the_rounded_result(sample, dtype):
    """Inputs that 16 bits hold; the float64 reference on them, within the roundings of the result."""
    wide = wide_inputs(sample)
    exact_sample = ops.rounded(sample)
    exact_sample.arrays = [a if a is None or a.dtype != np.float64 or i in wide else half_of(a, dtype)
                           for i, a in enumerate(exact_sample.arrays)]
    exact = reference(exact_sample)
    tensors = [None if a is None else on(_asen.from_numpy(np.array(a.astype(np.float32) if a.dtype == np.float64 else a)), "cuda")
               for a in exact_sample.arrays]
    tensors = [t if t is None or t.dtype != "float32" or i in wide else t.to(dtype=dtype) for i, t in enumerate(tensors)]
    leaves = exact_sample.gradient_inputs() if SPECS[sample.name]["differentiable"] else []
    for i in leaves:
        tensors[i].requires_grad_()
    out = ops.apply(sample.name, tensors, sample.attrs)
    for k, (y, b) in enumerate(zip(out, exact[0])):
        a = host(y.detach().to(dtype="float32")) if y.dtype in ("float16", "bfloat16") else host(y)
        if not (sample.name == "max_pool2d" and k == 1):  # ties after rounding: which of them is not the point
            ops.assert_close(a, b, HALF_TOLERANCE[dtype], f"output {k}")
    if leaves and sample.name not in ("max", "max_pool2d", "relu", "clamp", "div", "conv2d_fused"):
        dys = {k: half_of(dy, dtype) for k, dy in ops.cotangents(sample, [y.shape for y in out]).items()}
        for k, dy in dys.items():
            given = on(_asen.from_numpy(dy.astype(np.float32)), "cuda").to(dtype=out[k].dtype)
            out[k].backward(given)
        exact_tensors = [ops.as_tensor(a) for a in exact_sample.arrays]
        for i in leaves:
            exact_tensors[i].requires_grad_()
        _asen.set_kernel_paths("reference")
        exact_out = ops.apply(sample.name, exact_tensors, sample.attrs)
        for k, dy in dys.items():
            exact_out[k].backward(ops.as_tensor(dy))
        for i in leaves:
            assert tensors[i].grad.dtype == tensors[i].dtype
            ops.assert_close(host(tensors[i].grad.to(dtype="float32")), host(exact_tensors[i].grad), 4 * HALF_TOLERANCE[dtype],
                             f"gradient of {sample.inputs[i]}")


DTYPES = ["bool", "uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_conversions_are_the_cpus(source, target):
    """Every dtype to every other, dense and strided: bit for bit, halves rounded to even."""
    values = np.array([0, 1, 2, 3, 7, 100, 0.5, 1.5, 2.5, 65504, 3e-5, 1 / 3, 255, 1e-8, 200.7, 17], np.float64).reshape(4, 4)
    if source not in ("uint8", "bool"):
        values = np.concatenate([values, -values[1:] if target not in ("uint8", "bool") else values[1:]])
    if target in ("uint8",):
        values = np.minimum(values, 255)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = _asen.from_numpy(values).to(dtype=source)
    for tensor in (x, x.permute(1, 0), x[::2, 1:]):
        ours = tensor.to(device="cuda").to(dtype=target)
        exact = tensor.to(dtype=target)
        assert ours.dtype == target
        np.testing.assert_array_equal(host(ours.to(dtype="float64")), host(exact.to(dtype="float64")))
    moved = x.to(device="cuda")
    for view in (lambda t: t.permute(1, 0), lambda t: t[::2, 1:], lambda t: t[1:2].expand(3, 4)):
        np.testing.assert_array_equal(host(view(moved).to(dtype=target).to(dtype="float64")),
                                      host(view(x).to(dtype=target).to(dtype="float64")))


# ---- layouts, bits, memory, faults ----

@every([s for s in ops.SAMPLES if s.name not in ("dropout",)])
def test_layouts_do_not_change_results(sample):
    """Each input in turn every second element, a window, permuted: the bits of dense inputs."""
    exact = run(sample, np.float32, "cuda")[0]
    for i, array in enumerate(sample.arrays):
        if array is None or array.ndim == 0 or sample.inputs[i].startswith("running_"):
            continue
        for what, strided in ops.layouts(array, np.float32):
            base = strided.to(device="cuda")
            # A view that is strided on the device too: move a larger base, then look at it.
            wide = np.zeros([2 * n + 1 for n in array.shape], host(base).dtype)
            wide[tuple(slice(1, None, 2) for _ in array.shape)] = host(base)
            view = _asen.from_numpy(wide).to(device="cuda")[tuple(slice(1, None, 2) for _ in array.shape)]
            assert view.shape == array.shape
            tensors = [on(ops.as_tensor(a, np.float32), "cuda") for a in sample.arrays]
            for tensor in (base, view):
                tensors[i] = tensor
                for k, (a, b) in enumerate(zip(ops.apply(sample.name, tensors, sample.attrs), exact)):
                    ops.assert_close(host(a), b, 1e-6, f"{sample.inputs[i]}, {what}: output {k}")
                if sample.name == "batch_norm":     # the statistics moved: anew
                    tensors = [on(ops.as_tensor(a, np.float32), "cuda") for a in sample.arrays]


@every(LARGE + [s for s in ops.SAMPLES if s.name.endswith("_grad") or s.name in ("embedding_grad", "cat")])
def test_the_same_call_gives_the_same_bits(sample):
    first, second = (run(ops.rounded(sample), np.float32, "cuda") for _ in range(2))
    for a, b in zip(first[0] + list(first[2].values()), second[0] + list(second[2].values())):
        np.testing.assert_array_equal(a, b)


def test_dropout_has_the_cpus_mask():
    for sample in ops.samples_of(SPECS["dropout"]) + ops.LARGE_SAMPLES["dropout"]:
        for dtype in (np.float32, np.float64):
            np.testing.assert_array_equal(run(sample, dtype, "cuda")[0][0], run(sample, dtype, "cpu")[0][0], sample.text)


@pytest.mark.parametrize("name", [n for n in SPECS if ops.samples_of(SPECS[n])])
def test_memory_returns_after_forward_and_backward(name):
    samples = ops.samples_of(SPECS[name])
    for sample in samples:
        run(sample, np.float32, "cuda")
    start = _asen.memory_stats("cuda")["current"]
    for sample in samples * 3:
        run(sample, np.float32, "cuda")
    assert _asen.memory_stats("cuda")["current"] == start


FAULTS = {
    "embedding": ([np.ones((3, 2), np.float32), np.array([0, 3])], {}, 3, 3),
    "embedding below": ([np.ones((3, 2), np.float32), np.array([-1, 1])], {}, -1, 3),
    "embedding_grad": ([np.ones((2, 2), np.float32), np.array([0, 5])], {"rows": 4}, 5, 4),
    "cross_entropy": ([np.ones((2, 3), np.float32), np.array([0, 7])], {}, 7, 3),
    "cross_entropy_grad": ([np.array(1, np.float32), np.full((2, 3), 1 / 3, np.float32), np.array([-2, 0])], {}, -2, 3),
    "arc_margin": ([np.zeros((2, 3), np.float32), np.array([0, 3])], {"s": 1.0, "m": 0.5}, 3, 3),
    "arc_margin_grad": ([np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32), np.array([3, 0])],
                        {"s": 1.0, "m": 0.5}, 3, 3),
}


@pytest.mark.parametrize("case", list(FAULTS))
def test_an_index_out_of_range_is_an_error_when_somebody_waits(case):
    """Named with its value and bound; and the device works on."""
    arrays, attrs, value, limit = FAULTS[case]
    name = case.split()[0]
    tensors = [_asen.from_numpy(a).to(device="cuda") for a in arrays]
    with pytest.raises(IndexError, match=rf"{name}: an index is {value}, outside \[0, {limit}\)"):
        _asen.apply(name, tensors, attrs)
        _asen.synchronize("cuda")
    assert (_asen.from_numpy(np.ones(3, np.float32)).to(device="cuda") + 1.0).to(device="cpu").tolist() == [2, 2, 2]


def test_wrong_calls_are_refused_as_on_the_cpu():
    """Shape rules are the core's: nothing wrong reaches a kernel."""
    for name, cases in ops.MUST_FAIL.items():
        if name in ("embedding", "embedding_grad", "cross_entropy", "cross_entropy_grad", "arc_margin", "arc_margin_grad"):
            continue    # some of these only a kernel can see: above
        for tensors, attrs in cases:
            if name == "div" and isinstance(tensors[1], np.ndarray):
                continue    # an integer zero: a fault as well
            given = [on(ops.make(t), "cuda") for t in tensors]
            with pytest.raises((ValueError, TypeError), match=f"^{name}: "):
                _asen.apply(name, given, attrs)


@pytest.mark.parametrize("name, arrays, attrs", [
    ("add", [(0, 3), (3,)], {}), ("relu", [(0,)], {}), ("sum", [(0, 3)], {"dims": [0]}), ("sum", [(0, 3)], {}),
    ("matmul", [(0, 3), (3, 2)], {}), ("matmul", [(2, 0), (0, 3)], {}), ("linear", [(2, 0), (3, 0), (3,)], {}),
    ("linear", [(0, 3), (2, 3), (2,)], {}), ("softmax", [(0, 3)], {}), ("copy", [(2, 0, 3)], {"dtype": "float64"}),
    ("cat", [(0, 3), (0, 3)], {}), ("conv2d", [(0, 3, 5, 5), (2, 3, 3, 3)], {}), ("normalize", [(0, 4)], {}),
    ("cosine_similarity", [(0, 4), (0, 4)], {}), ("max_pool2d", [(0, 3, 4, 4)], {"kernel_size": 2, "stride": 2}),
])
def test_empty_tensors(name, arrays, attrs):
    """Nothing in, what mathematics says out: empty results, sums of 0, the bias alone."""
    arrays = [np.ones(shape, np.float32) for shape in arrays]
    for a, b in zip(ops.apply(name, [_asen.from_numpy(a).to(device="cuda") for a in arrays], attrs),
                    ops.apply(name, [_asen.from_numpy(a) for a in arrays], attrs)):
        np.testing.assert_array_equal(host(a), host(b))
