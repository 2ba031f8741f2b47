"""Every op of csrc/ops/ops.def, through `op_specs()` and the samples of tests/op_samples.py: a row without
samples fails.

For each sample of each row: gradients by central differences in float64 on the reference path, the
fast and the oneDNN kernels in float32 against the reference in float64, memory, layouts, and errors.
test_op_parity.py holds the same samples to PyTorch.
"""

import itertools
import zlib

import numpy as np
import pytest

from asenpp import _asen
from op_samples import COVERED_BY, LARGE, SAMPLES as SAMPLE_TEXTS, Sample, large_samples_of, samples_of

SPECS = {spec["name"]: spec for spec in _asen.op_specs()}

SAMPLES = [s for spec in SPECS.values() for s in samples_of(spec)]
DIFFERENTIABLE = [s for s in SAMPLES if SPECS[s.name]["differentiable"] and s.gradient_inputs()]


def every(samples):
    return pytest.mark.parametrize("sample", samples, ids=[f"{s.name}: {s.text}" for s in samples])


# ---- running ----


@pytest.fixture(autouse=True)
def all_paths():
    yield
    _asen.set_kernel_paths("all")
    _asen.set_grad_enabled(True)


def as_tensor(array, dtype=None):
    """A tensor of our own memory in the dense layout; floats in `dtype`."""
    if array is None:
        return None
    if dtype and array.dtype == np.float64:
        array = array.astype(dtype)
    return _asen.from_numpy(np.array(array)).clone()


def apply(name, tensors, attrs):
    """The op's outputs, always a tuple."""
    out = _asen.apply(name, tensors, attrs)
    return out if isinstance(out, tuple) else (out,)


def to_array(tensor):
    return np.array(tensor.detach().numpy())


def cotangents(sample, shapes):
    """dy for each output with a gradient: values that float32 holds too."""
    rng = np.random.default_rng(zlib.crc32(f"dy {sample.name} {sample.text}".encode()))
    return {k: np.array(rng.standard_normal(shapes[k])).astype(np.float32).astype(np.float64) for k in sample.gradient_outputs()}


def forward(sample, dtype=None, arrays=None):
    """The outputs as arrays, and the inputs after the call (running statistics move)."""
    tensors = [as_tensor(a, dtype) for a in arrays or sample.arrays]
    out = apply(sample.name, tensors, sample.attrs)
    return [to_array(y) for y in out], [None if t is None else to_array(t) for t in tensors]


def start_backward(outs, dys):
    """One backward through several outputs: the sum of their products with the cotangents."""
    total = None
    for k, dy in dys.items():
        part = _asen.sum(_asen.mul(outs[k], dy))
        total = part if total is None else _asen.add(total, part)
    total.backward()


def run(sample, dtype=None):
    """Outputs, and the gradients of the inputs that have one: {input: array}."""
    tensors = [as_tensor(a, dtype) for a in sample.arrays]
    for i in sample.gradient_inputs():
        tensors[i].requires_grad_()
    out = apply(sample.name, tensors, sample.attrs)
    arrays = [to_array(y) for y in out]
    gradients = {}
    if SPECS[sample.name]["differentiable"]:
        dys = cotangents(sample, [y.shape for y in out])
        out_dtype = {k: arrays[k].dtype for k in dys}
        start_backward(out, {k: as_tensor(dy, out_dtype[k]) for k, dy in dys.items()})
        gradients = {i: to_array(tensors[i].grad) for i in sample.gradient_inputs()}
    return arrays, gradients


# ---- (a) rows have samples ----


def test_every_op_has_samples_or_a_named_reason():
    """A row nobody runs would pass everything else in this file."""
    for name, spec in SPECS.items():
        if samples_of(spec):
            assert name not in COVERED_BY, f"{name} has samples now: take it out of COVERED_BY"
        else:
            assert SPECS[COVERED_BY[name]]["differentiable"], name
    for names in (SAMPLE_TEXTS, LARGE, COVERED_BY):
        assert set(names) <= set(SPECS)
    assert not any("samples" in spec for spec in SPECS.values()), "tests belong to op_samples.py, not into the shipped table"


# ---- (b) gradients by central differences ----

STEP = 1e-5
DIFFERENCE_TOLERANCE = 1e-7


def scalar(sample, arrays, dys):
    out, _ = forward(sample, arrays=arrays)
    return sum(float((out[k] * dy).sum()) for k, dy in dys.items())


def differences(sample, i, dys, rng):
    """Central differences along unit directions (all where few, else 48) and 4 dense random ones:
    [(direction, slope)]."""
    shape, n = sample.arrays[i].shape, sample.arrays[i].size
    directions = []
    for j in range(n) if n <= 96 else rng.choice(n, 48, replace=False):
        unit = np.zeros(n)
        unit[j] = 1
        directions.append(unit.reshape(shape))
    if n > 96:
        directions += [rng.standard_normal(shape) / np.sqrt(n) for _ in range(4)]
    result = []
    for d in directions:
        ends = [scalar(sample, [a + s * STEP * d if k == i else a for k, a in enumerate(sample.arrays)], dys) for s in (1, -1)]
        result.append((d, (ends[0] - ends[1]) / (2 * STEP)))
    return result


def check_gradient(gradient, slopes):
    scale = max(1.0, max((abs(s) for _, s in slopes), default=0.0))
    for direction, slope in slopes:
        assert abs(float((gradient * direction).sum()) - slope) <= DIFFERENCE_TOLERANCE * scale


@every(DIFFERENTIABLE)
def test_gradient_equals_central_differences(sample):
    """The gradient of a random combination of the outputs, on the reference in float64; and the
    check itself can fail: one element of the gradient off by 1e-4 is caught."""
    if sample.attrs.get("dtype") == "float32":
        pytest.skip("rounding to float32 is a staircase at steps of 1e-5")
    if any("z" in word.partition("]")[2] for word in sample.text.split()) and sample.name in ("cosine_similarity", "normalize"):
        pytest.skip("a row of zeros is clamped by 1e-12: steps of 1e-5 leave the clamp")
    _asen.set_kernel_paths("reference")
    arrays, gradients = run(sample)
    dys = cotangents(sample, [a.shape for a in arrays])
    rng = np.random.default_rng(0)
    for i, gradient in gradients.items():
        assert gradient.shape == sample.arrays[i].shape
        if gradient.size == 0:
            continue
        slopes = differences(sample, i, dys, rng)
        check_gradient(gradient, slopes)
        wrong = gradient.copy()
        wrong.reshape(-1)[int(np.argmax(slopes[0][0]))] += 1e-4 * max(1.0, max(abs(s) for _, s in slopes))
        with pytest.raises(AssertionError):
            check_gradient(wrong, slopes)


# ---- (c) fast and oneDNN kernels in float32 ----

LARGE_SAMPLES = {name: large_samples_of(SPECS[name]) for name in LARGE}

# Of the largest magnitude in the result: a few float32 roundings (6e-8 each); sums of n terms in
# float32 lose about sqrt(n) of them, convolutions here have n up to 4 thousand.
TOLERANCE = {"fast": 2e-6, "onednn": 3e-6, "reference": 1e-6}


def rounded(sample):
    """The sample with values that float32 holds, so that both precisions see the same numbers."""
    copy = Sample(SPECS[sample.name], sample.text)
    copy.arrays = [a if a is None or a.dtype != np.float64 else a.astype(np.float32).astype(np.float64) for a in copy.arrays]
    return copy


def assert_close(ours, exact, tolerance, what):
    assert ours.shape == exact.shape, what
    if ours.dtype.kind != "f":
        np.testing.assert_array_equal(ours, exact, what)
    elif ours.size:
        np.testing.assert_allclose(ours.astype(np.float64), exact, rtol=0, atol=tolerance * np.abs(exact).max() + 1e-30, err_msg=what)


def ops_of(path):
    """The rows in whose forward or gradient, on the small samples, the path runs a kernel."""
    found = []
    for name in SPECS:
        _asen.set_kernel_paths(path, "reference")
        _asen.dispatch_counts(True)
        for sample in samples_of(SPECS[name]):
            run(sample, np.float32)
        used = {op for op, count in _asen.dispatch_counts(True).items() if count[path]}
        if used & {name, f"{name}_grad", f"{name}_grad_input", f"{name}_grad_weight"}:
            found.append(name)
    _asen.set_kernel_paths("all")
    return found


OPS_OF = {path: ops_of(path) for path in ("fast", "onednn", "reference")}


@pytest.mark.parametrize("path", ["fast", "onednn"])
def test_paths_without_kernels(path):
    """Nothing to hold to the reference: says for which rows."""
    without = [n for n in SPECS if n not in OPS_OF[path] and n not in COVERED_BY and not SPECS[n]["view"]]
    assert OPS_OF[path] or path == "onednn"
    if without:
        pytest.skip(f"the {path} path never dispatches {', '.join(without)}")


@pytest.mark.parametrize("path,name", [(p, n) for p, names in OPS_OF.items() for n in names])
def test_float32_kernels_equal_the_reference_in_float64(path, name):
    """Values, running statistics and gradients, for the small samples and for sizes that models use.
    The path's kernels run where it has them, the reference fills in."""
    for sample in map(rounded, samples_of(SPECS[name]) + LARGE_SAMPLES.get(name, [])):
        if sample.attrs.get("dtype") == "float64":
            continue
        _asen.set_kernel_paths(path, "reference")
        ours, gradients = run(sample, np.float32)
        after = forward(sample, np.float32)[1]
        _asen.set_kernel_paths("reference")
        exact, exact_gradients = run(sample)
        exact_after = forward(sample)[1]
        for k, (a, b) in enumerate(zip(ours, exact)):
            assert_close(a, b, TOLERANCE[path], f"{sample.text}: output {k}")
        for i, (a, b) in enumerate(zip(after, exact_after)):
            if a is not None:
                assert_close(a, b, TOLERANCE[path], f"{sample.text}: {sample.inputs[i]} after the call")
        for i, gradient in gradients.items():
            assert_close(gradient, exact_gradients[i], TOLERANCE[path], f"{sample.text}: gradient of {sample.inputs[i]}")


# ---- (d) memory ----


@pytest.mark.parametrize("name", list(SPECS))
def test_memory_returns_after_forward_and_backward(name):
    """Fifty times each sample; what is in use afterwards is what was in use before."""
    for sample in samples_of(SPECS[name]):
        run(sample, np.float32)  # caches of packed filters fill once
        start = _asen.memory_stats()["current"]
        for _ in range(50 if sum(a.size for a in sample.arrays if a is not None) < 1000 else 5):
            run(sample, np.float32)
        assert _asen.memory_stats()["current"] == start, sample.text


# ---- (e) layouts ----


def strided_copy(array, step):
    """(base, index): the array inside a larger base, every `step`-th element from offset 1."""
    base = np.full([1 + n * step for n in array.shape], 7.0 if array.dtype.kind == "f" else 0).astype(array.dtype)
    index = tuple(slice(1, None, step) for _ in array.shape)
    base[index] = array
    return base, index


def layouts(array, dtype):
    """Tensors of the same values in other layouts."""
    array = array.astype(dtype) if array.dtype == np.float64 else array
    base, index = strided_copy(array, 2)
    yield "every second element", _asen.from_numpy(base)[index]
    base, index = strided_copy(array, 1)
    yield "a window", _asen.from_numpy(base)[index]
    yield "reversed memory order", _asen.from_numpy(np.ascontiguousarray(array.T)).permute(tuple(reversed(range(array.ndim))))
    yield "row-major", _asen.from_numpy(np.ascontiguousarray(array))


@every(SAMPLES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layouts_do_not_change_results(sample, dtype):
    """Each input in turn strided, windowed, permuted; and expanded (strides of 0): the values and
    gradients are those of dense inputs. DENSE rows must lay out, STRIDED rows must follow strides."""
    exact, exact_gradients = run(sample, dtype)
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    for i, array in enumerate(sample.arrays):
        if array is None or array.ndim == 0 or sample.inputs[i].startswith("running_"):
            continue
        for what, strided in layouts(array, dtype):
            tensors = [as_tensor(a, dtype) for a in sample.arrays]
            tensors[i] = strided
            if i in exact_gradients:
                strided.requires_grad_()
            out = apply(sample.name, tensors, sample.attrs)
            for k, (a, b) in enumerate(zip(map(to_array, out), exact)):
                assert_close(a, b, tolerance, f"{sample.inputs[i]}, {what}: output {k}")
            if i in exact_gradients:
                dys = cotangents(sample, [y.shape for y in exact])
                start_backward(out, {k: as_tensor(dy, exact[k].dtype) for k, dy in dys.items()})
                assert_close(to_array(strided.grad), exact_gradients[i], tolerance, f"{sample.inputs[i]}, {what}: gradient")
        if array.size == 0:
            continue
        row = as_tensor(array[:1], dtype)
        tensors = [as_tensor(a, dtype) for a in sample.arrays]
        tensors[i] = row.expand(array.shape)
        same = [as_tensor(a, dtype) for a in sample.arrays]
        same[i] = as_tensor(np.broadcast_to(array[:1], array.shape), dtype)
        for a, b in zip(apply(sample.name, tensors, sample.attrs), apply(sample.name, same, sample.attrs)):
            assert_close(to_array(a), to_array(b), tolerance, f"{sample.inputs[i]} expanded")


def test_running_statistics_must_be_written_in_place():
    """A strided running_mean would be copied, and the copy written: an error instead of silence."""
    x, w, b, v = (as_tensor(np.ones(s, np.float32)) for s in ([2, 3, 2, 2], [3], [3], [3]))
    mean = _asen.from_numpy(np.zeros(6, np.float32))[::2]
    with pytest.raises(ValueError, match="batch_norm: .*contiguous"):
        _asen.batch_norm(x, w, b, mean, v)


# ---- (f) errors ----

MUST_FAIL = {  # op: (tensors as shapes or arrays, attributes)
    "add": [([(2, 3), (4,)], {}), ([(2,), np.ones(2, int)], {})],
    "sub": [([(2, 3), (3, 2)], {})],
    "mul": [([(2, 3), (2,)], {})],
    "div": [([(2,), (3,)], {}), ([np.ones(2, int), np.zeros(2, int)], {})],
    "exp": [([np.ones(2, int)], {})],
    "log": [([np.ones(2, np.uint8)], {})],
    "sqrt": [([np.ones(2, int)], {})],
    "pow": [([np.ones(2, int)], {"exponent": 2})],
    "tanh": [([np.ones(2, int)], {})],
    "sigmoid": [([np.ones(2, int)], {})],
    "clamp": [([(2,)], {"min": 1, "max": 0}), ([(2,)], {"min": float("nan")})],
    "clamp_grad": [([(2,), (3,)], {})],
    "relu_grad": [([(2,), (3,)], {})],
    "sum": [([(2, 3)], {"dims": [2]}), ([(2, 3)], {"dims": [0, -2]}), ([(2, 3)], {"dims": [-3]})],
    "mean": [([np.ones(2, int)], {}), ([()], {"dims": [1]}), ([()], {"dims": [0, -1]})],
    "max": [([(0, 3)], {"dims": [0]}), ([(2, 3)], {"dims": [5]})],
    "max_grad": [([(2,), (2, 3), (3,)], {"dims": [1]})],
    "matmul": [([(2, 3), (2, 3)], {}), ([(2,), (2,)], {}), ([(2, 2, 3), (3, 3, 2)], {}), ([(2, 3), (1, 3, 2)], {})],
    "linear": [([(2, 3), (4, 2)], {}), ([(2, 3), (4, 3), (3,)], {}), ([(3,), (4, 3)], {})],
    "softmax": [([(2, 3)], {"dim": 2}), ([()], {}), ([np.ones((2, 2), int)], {})],
    "log_softmax": [([(2, 3)], {"dim": -3})],
    "conv2d": [([(1, 3, 4, 4), (2, 2, 3, 3)], {}), ([(3, 4, 4), (2, 3, 3, 3)], {}), ([(1, 3, 2, 4), (2, 3, 3, 3)], {}),
               ([(1, 3, 4, 4), (2, 3, 3, 3), (3,)], {}), ([(1, 3, 4, 4), (2, 3, 3, 3)], {"stride": 0}),
               ([(1, 3, 4, 4), (2, 3, 3, 3)], {"padding": -1}), ([(1, 3, 4, 4), (2, 3, 3, 3)], {"dilation": 0}),
               ([(1, 3, 4, 4), (2, 3, 3, 3)], {"groups": 0}), ([(1, 4, 4, 4), (3, 2, 3, 3)], {"groups": 2}),
               ([(1, 3, 4, 4), (2, 3, 3, 3)], {"dilation": 2**40}), ([(1, 3, 4, 4), (2, 3, 0, 3)], {})],
    "conv2d_fused": [([(1, 3, 4, 4), (2, 3, 3, 3), (2,), (1, 2, 4, 4)], {})],
    "conv2d_grad_input": [([(1, 2, 2, 2), (2, 3, 3, 3)], {"size": (9, 9)}), ([(1, 2, 2, 2), (2, 3, 3, 3)], {"size": (-1, 4)})],
    "conv2d_grad_weight": [([(1, 2, 2, 2), (1, 3, 4, 4)], {"size": (2, 3)}), ([(2, 2, 2, 2), (1, 3, 4, 4)], {"size": (3, 3)})],
    "max_pool2d": [([(1, 2, 4, 4)], {"kernel_size": 5, "stride": 1}), ([(1, 2, 4, 4)], {"kernel_size": 2, "stride": 1, "padding": 2}),
                   ([(2, 4, 4)], {"kernel_size": 2, "stride": 1}), ([(1, 2, 4, 4)], {"kernel_size": 0, "stride": 1})],
    "max_pool2d_grad": [([(1, 1, 2, 2), np.zeros((1, 1, 2, 2), int)], {"size": 4, "kernel_size": 2, "stride": 2})],
    "batch_norm": [([(2, 3, 2, 2), (3,), (3,), (3,), (2,)], {}), ([(1, 3, 1, 1)] + [(3,)] * 4, {}),
                   ([(0, 3, 2, 2)] + [(3,)] * 4, {}), ([(0, 3, 2, 2)] + [(3,)] * 4, {"groups": 3}), ([(2, 3, 0, 2)] + [(3,)] * 4, {}),
                   ([(2, 3, 1, 1)] + [(3,)] * 4, {"groups": 2}), ([(4, 3, 2, 2)] + [(3,)] * 4, {"groups": 3}),
                   ([(2, 3)] + [(3,)] * 4, {}), ([(2, 3, 2, 2)] + [(3,)] * 4 + [(2, 3, 2, 1)], {}), ([(2, 3, 2, 2)] + [(3,)] * 4, {"eps": -1})],
    "cat": [([(2, 3), (2, 4)], {}), ([(2, 3), (2,)], {}), ([(2, 3)], {"dim": 2}), ([(2,), np.ones(2, int)], {}), ([(2,), None], {})],
    "slice_grad": [([(2, 2)], {"shape": [2, 2], "start": [1, 0]}), ([(2,)], {"shape": [2, 2]}), ([(2,)], {"shape": [4], "step": [0]}),
                   ([(2,)], {"shape": [4], "start": [-2**63]})],
    "embedding": [([(3, 2), np.array([3])], {}), ([(3, 2), np.array([-1])], {}), ([(3, 2), (2,)], {}), ([(3,), np.array([0])], {})],
    "embedding_grad": [([(1, 2), np.array([5])], {"rows": 3}), ([(2, 2), np.array([0])], {"rows": 3}), ([(1, 2), np.array([0])], {"rows": -1})],
    "dropout": [([(2,)], {"p": 1, "seed": 0}), ([(2,)], {"p": -0.1, "seed": 0})],
    "cross_entropy": [([(2, 3), np.array([0, 3])], {}), ([(2, 3), np.array([0, -1])], {}), ([(2, 3), np.array([0])], {}), ([(2, 3), (2,)], {}),
                      ([(0, 3), np.zeros(0, int)], {})],
    "cross_entropy_grad": [([(), (2, 3), np.array([0, 3])], {})],
    "cosine_similarity": [([(2, 3), (2, 4)], {}), ([(3,), (3,)], {}), ([(2, 3), (2, 3)], {"eps": -1})],
    "normalize": [([(3,)], {})],
    "spatial_attention": [([(2, 3, 4, 4), (2, 5, 4, 3), (2, 5)], {}), ([(2, 3, 4, 4), (2, 5, 4, 4), (1, 5)], {}), ([(2, 3, 0, 4), (2, 5, 0, 4), (2, 5)], {})],
    "arc_margin": [([(2, 3), np.array([0, 3])], {"s": 1, "m": 0.5}), ([(2, 3), np.array([-1, 0])], {"s": 1, "m": 0.5})],
    "arc_margin_grad": [([(2, 3), (2, 3), np.array([0, 3])], {"s": 1, "m": 0.5})],
    "reshape": [([(2, 3)], {"shape": [5]}), ([(2, 3)], {"shape": [-1, -1]}), ([(2, 3)], {"shape": [4, -1]}), ([(0,)], {"shape": [0, -1]}),
                ([(2, 3)], {"shape": [2**40, 2**40]}), ([(2, 3)], {"shape": [-2, -3]})],
    "permute": [([(2, 3)], {"dims": [0]}), ([(2, 3)], {"dims": [0, 0]}), ([(2, 3)], {"dims": [0, 2]})],
    "slice": [([(4,)], {"step": [0]}), ([(4,)], {"step": [-1]}), ([(4,)], {"start": [0, 0]})],
    "expand": [([(2, 3)], {"shape": [3]}), ([(2, 3)], {"shape": [2, 4]}), ([(2,)], {"shape": [-1, 2]}), ([(1,)], {"shape": [2**62]})],
}


def make(value):
    if value is None or isinstance(value, np.ndarray):
        return as_tensor(value)
    return as_tensor(np.ones(value, np.float32))


@pytest.mark.parametrize("name", list(MUST_FAIL))
def test_wrong_calls_raise_errors_that_name_the_op(name):
    """Shapes, dtypes and attributes that no kernel may see."""
    for tensors, attrs in MUST_FAIL[name]:
        with pytest.raises((ValueError, TypeError, IndexError), match=f"^{name}: ") as error:
            _asen.apply(name, [make(t) for t in tensors], attrs)
        assert len(str(error.value)) > len(name) + 10


def test_max_pool2d_grad_ignores_or_refuses_wrong_indices():
    """The reference scatters and must check; the fast kernel gathers, and never meets a foreign index."""
    attrs = {"size": 4, "kernel_size": 2, "stride": 2}
    tensors = [make((1, 1, 2, 2)), make(np.full((1, 1, 2, 2), 99, np.int32))]
    _asen.set_kernel_paths("reference")
    with pytest.raises(IndexError, match="^max_pool2d_grad: "):
        _asen.apply("max_pool2d_grad", tensors, attrs)
    _asen.set_kernel_paths("all")
    np.testing.assert_array_equal(to_array(_asen.apply("max_pool2d_grad", tensors, attrs)), np.zeros((1, 1, 4, 4)))


def mutations(array):
    """The array made wrong in one way each."""
    if array.dtype == np.float64:
        yield array.astype(np.float32)
        yield array.astype(np.int64)
    else:
        yield array.astype(np.float64)
        yield array.astype(np.int32)
        yield array - 100
        yield array + 100
    yield array[None]
    for d in range(array.ndim):
        yield np.concatenate([array, np.take(array, [0] if array.shape[d] else [], d)], d)
        yield np.take(array, [], d)
    if array.ndim:
        yield array[0] if array.shape[0] else array.reshape(-1)
    yield np.ones([1] * 8) if array.dtype == np.float64 else np.zeros([1] * 8, np.int64)


@every(SAMPLES)
def test_mutated_inputs_work_or_raise(sample):
    """An input of another dtype, rank or size either has a meaning (broadcasting) or is refused with
    an error that names the op: never a crash. Absent inputs likewise. (Run under ASan too.)"""
    for i, array in enumerate(sample.arrays):
        for wrong in itertools.chain([None], mutations(array)) if array is not None else []:
            tensors = [as_tensor(a) for a in sample.arrays]
            tensors[i] = None if wrong is None else as_tensor(np.ascontiguousarray(wrong).reshape(wrong.shape))
            try:
                out = apply(sample.name, tensors, sample.attrs)
            except (ValueError, TypeError, IndexError, NotImplementedError) as error:
                assert str(error).startswith(f"{sample.name}: "), error
            else:
                assert all(y.numel() >= 0 for y in out)
                assert wrong is not None or SPECS[sample.name]["inputs"].split()[min(i, len(SPECS[sample.name]["inputs"].split()) - 1)].endswith("?")


@pytest.mark.parametrize("call", [
    lambda x: _asen.relu(), lambda x: _asen.relu(1.0), lambda x: _asen.relu(x, x), lambda x: _asen.relu(x, 1), lambda x: _asen.relu(x, slope=1),
    lambda x: _asen.relu(x, x=x), lambda x: _asen.add(x), lambda x: _asen.add(x, "1"), lambda x: _asen.add(x, None), lambda x: _asen.cat(),
    lambda x: _asen.cat(x), lambda x: _asen.cat([]), lambda x: _asen.cat([x, 1, "a"]), lambda x: _asen.dropout(x), lambda x: _asen.pow(x, "2"),
    lambda x: _asen.sum(x, 1.5), lambda x: _asen.sum(x, dims="a"), lambda x: _asen.sum(x, 0, True, 3), lambda x: _asen.copy(x, "float1"),
    lambda x: _asen.copy(x, 7), lambda x: x.reshape(2.0, 2), lambda x: _asen.conv2d(x, x, stride=(1, 2, 3)), lambda x: x.permute(*range(9)),
    lambda x: _asen.apply("nothing", [x]), lambda x: _asen.apply("relu", [x, x]), lambda x: _asen.apply("relu", [x] + ["s"] * 100),
    lambda x: _asen.apply("relu", x), lambda x: _asen.apply("relu", [x], {"a": 1}), lambda x: _asen.apply("relu", [x], {1: 1}),
    lambda x: _asen.apply("add", [x], {"a": x}), lambda x: _asen.sum(x, dims=0, dim=0), lambda x: _asen.cat([x] * 2000),
])
def test_wrong_arguments_raise(call):
    """Missing, surplus, unknown and mistyped arguments: Python's own kinds of errors."""
    with pytest.raises((TypeError, ValueError)):
        call(as_tensor(np.ones((2, 2), np.float32)))


# ---- (g) attributes ----

# op.attribute: why no value of it changes a result.
WITHOUT_EFFECT = {
    "sort.nan_first": "only NaN are placed by it: tests/test_torch_names.py",
    "normalize_grad.eps": "the saved divisors say where the norm was clamped",
}


def outcome(sample, attrs):
    """Everything that a call can change, or the error."""
    copy = Sample(SPECS[sample.name], sample.text)
    copy.attrs = attrs
    try:
        out, after = forward(copy)
        gradients = run(copy)[1]
    except (ValueError, TypeError) as error:
        return str(error)
    return [(a.shape, a.dtype.str, a.tobytes()) for a in [*out, *gradients.values(), *(a for a in after if a is not None)]]


@pytest.mark.parametrize("name", [n for n in SPECS if SPECS[n]["attrs"] and n not in COVERED_BY])
def test_every_attribute_reaches_the_kernel(name):
    """For each attribute with a default there is a sample that gives another value, and leaving it
    out changes the outcome (the value itself is held to PyTorch by test_op_parity.py)."""
    for field in SPECS[name]["attrs"].split():
        attribute = field.partition(":")[0]
        if f"{name}.{attribute}" in WITHOUT_EFFECT:
            continue
        given = [s for s in samples_of(SPECS[name]) if attribute in s.attrs]
        assert given, f"no sample of {name} gives {attribute}"
        if "=" not in field:
            continue
        assert any(outcome(s, s.attrs) != outcome(s, {k: v for k, v in s.attrs.items() if k != attribute}) for s in given), attribute


# ---- what single rows promise ----


def philox(seed, index):
    """Number `index` of the counter-based generator (Salmon et al. 2011, Philox4x32-10)."""
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    block = index // 4
    c = [block & 0xFFFFFFFF, block >> 32, 0, 0]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k1, p0 & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c[index % 4]


@pytest.mark.parametrize("path", ["fast", "reference"])
def test_dropout_mask_is_the_generators(path):
    """Element i, in memory order, is kept iff number offset + i is at least p: on 2-D and (channels
    last in memory) 4-D tensors; and about p of many are dropped."""
    _asen.set_kernel_paths(path, "reference")
    for shape, seed, offset, p in [((50,), 7, 0, 0.5), ((3, 5, 2, 7), 12345678901, 5, 0.3), ((9,), 1, 2**34 + 3, 0.9)]:
        y = to_array(_asen.dropout(as_tensor(np.ones(shape, np.float32)), p, seed, offset))
        flat = (y.transpose(0, 2, 3, 1) if len(shape) == 4 else y).reshape(-1)
        kept = np.array([philox(seed, offset + i) * 2.0**-32 >= p for i in range(flat.size)])
        np.testing.assert_array_equal(flat, np.where(kept, np.float32(1 / (1 - p)), 0))
    many = to_array(_asen.dropout(as_tensor(np.ones(100000, np.float32)), 0.3, 5))
    assert abs((many == 0).mean() - 0.3) < 5 * (0.21 / 100000) ** 0.5


def test_arc_margin_at_the_ends_of_the_cosine_has_finite_gradients():
    """sqrt(1 - c^2) has an infinite slope at c = 1; the gradient clamps 1 - c^2 at 1e-12."""
    c = as_tensor(np.array([[1.0, 0.1], [-1.0, 0.1], [1.0, -1.0]])).requires_grad_()
    y = _asen.arc_margin(c, as_tensor(np.array([0, 0, 1])), 10.0, 0.5)
    y.sum().backward()
    assert np.isfinite(to_array(c.grad)).all()


def test_max_shares_its_gradient_between_equal_maxima():
    x = as_tensor(np.array([[3.0, 3.0, 1.0], [2.0, 0.0, 2.0]])).requires_grad_()
    _asen.max(x, dims=1).sum().backward()
    np.testing.assert_array_equal(to_array(x.grad), [[0.5, 0.5, 0], [0.5, 0, 0.5]])


@pytest.mark.parametrize("path", ["fast", "reference"])
@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "tanh", "sigmoid", "relu", "neg"])
def test_elementwise_functions_over_their_whole_range(name, path):
    """Zeros, subnormals, huge values, infinities and NaN, element by element: 4 units in the last
    place of float32 (or of the smallest normal number)."""
    values = np.array([0.0, -0.0, 1e-40, -1e-40, 1e-38, 1e-20, 1e-7, 1e-4, 0.1, 0.5, 1, 2, 5, 9, 10, 17, 20, 50, 80, 87, 88, 88.7, 89, 100, 1e3,
                       1e10, 3e38, np.inf, np.nan], np.float32)
    values = np.concatenate([values, -values, np.linspace(-12, 12, 1001, dtype=np.float32)])
    exact = {"exp": np.exp, "log": np.log, "sqrt": np.sqrt, "tanh": np.tanh, "neg": np.negative,
             "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "relu": lambda x: np.where(x <= 0, 0, x)}[name]
    _asen.set_kernel_paths(path, "reference")
    with np.errstate(all="ignore"):
        want = exact(values.astype(np.float64)).astype(np.float32)
        ours = to_array(_asen.apply(name, [as_tensor(values)]))
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(want))
        np.testing.assert_array_equal(ours[np.isinf(want)], want[np.isinf(want)])
        fine = np.isfinite(want)
        error = np.abs(ours[fine].astype(np.float64) - want[fine])
        bound = np.maximum(np.abs(want[fine]) * 4 * 2.0**-24, 2.0**-126)
    assert (error <= bound).all(), list(zip(values[fine][error > bound], ours[fine][error > bound], want[fine][error > bound]))[:5]


def test_softmax_of_large_scores_neither_overflows_nor_vanishes():
    for path in ("fast", "reference"):
        _asen.set_kernel_paths(path, "reference")
        x = as_tensor(np.array([[1e4, 1e4, -1e4], [-1e30, -1e30, -1e30]], np.float32))
        np.testing.assert_allclose(to_array(_asen.softmax(x)), [[0.5, 0.5, 0], [1 / 3] * 3], rtol=1e-6)
        np.testing.assert_allclose(to_array(_asen.log_softmax(x))[0], [-np.log(2), -np.log(2), -20000 - np.log(2)], rtol=1e-6)
        loss, _ = _asen.cross_entropy(x, as_tensor(np.array([2, 0])))
        np.testing.assert_allclose(loss.item(), (20000 + np.log(2) + np.log(3)) / 2, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_integer_arithmetic_is_numpys(dtype):
    """Wrapping around; division rounds down."""
    rng = np.random.default_rng(3)
    info = np.iinfo(dtype)
    a, b = (rng.integers(info.min, info.max, 100, dtype, endpoint=True) for _ in range(2))
    b[b == 0] = 3
    with np.errstate(over="ignore"):
        for name, f in [("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("div", np.floor_divide)]:
            np.testing.assert_array_equal(to_array(_asen.apply(name, [as_tensor(a), as_tensor(b)])), f(a, b))
        np.testing.assert_array_equal(to_array(_asen.neg(as_tensor(a))), np.negative(a))
        np.testing.assert_array_equal(to_array(_asen.sum(as_tensor(a))), a.sum(dtype=dtype))


@pytest.mark.parametrize("target", ["bool", "uint8", "int32", "int64", "float16", "float32", "float64"])
def test_copy_converts_as_numpy_does(target):
    """Between all dtypes that NumPy has, on values that both hold."""
    for source in ("bool", "uint8", "int32", "int64", "float16", "float32", "float64"):
        values = np.array([0, 1, 2, 3, 100, 0.5, 1.75, 65.3]).astype(source)
        np.testing.assert_array_equal(to_array(_asen.copy(_asen.from_numpy(values), target)), values.astype(target))


def test_bfloat16_rounds_to_nearest_even():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    want = (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(to_array(_asen.copy(_asen.copy(as_tensor(values), "bfloat16"), "float32")), want)
