"""Every op of csrc/ops.def, through `op_specs()`: the rows say what is tested, so a new row is tested.

For each sample of each row: gradients by central differences in float64 on the reference path,
values and gradients against PyTorch in float64 (op_reference_torch.py), the fast and the oneDNN
kernels in float32 against the reference in float64, memory, layouts, and errors.
"""

import itertools
import re
import zlib

import numpy as np
import pytest

from asenpp import _asen

SPECS = {spec["name"]: spec for spec in _asen.op_specs()}

# Rows without samples, and the differentiable row through whose gradient they are tested.
COVERED_BY = {
    "max_pool2d_grad": "max_pool2d",
    "batch_norm_grad": "batch_norm",
    "cosine_similarity_grad": "cosine_similarity",
    "normalize_grad": "normalize",
    "spatial_attention_grad": "spatial_attention",
    "arc_margin_grad": "arc_margin",
}

# Outputs through which gradients flow, where that is more than the first.
DIFFERENTIABLE_OUTPUTS = {"spatial_attention": (0, 1)}

# Samples beyond those of ops.def: attributes away from their defaults (each must reach the kernel),
# and shapes that models use or that fill no vector.
MORE = {
    "add": "a[1,1,1,1] b[2,3,2,2] | a[2,64,3,3] b[64,1,1] | a[0,3] b[3] | a[2,1,3,1,2] b[4,1,5,1]",
    "mul": "a[2,3,4,4] b[2,1,4,4] | a[] b[]",
    "sum": "x[2,3,4,5] dims=-1,1 keepdim=1 | x[] | x[2,65,3,3] dims=0,2,3 | x[3,2,1,2,2] dims=1,3",
    "mean": "x[2,256,3,3] dims=2,3 | x[7] dims=0 keepdim=1",
    "max": "x[2,3,4,5]d dims=1,3 | x[4]d dims=0",
    "matmul": "a[1,1] b[1,1] | a[65,7] b[7,33] | a[3,2,4] b[3,2,5] trans_a=1 | a[2,4,3] b[2,5,4] trans_a=1 trans_b=1",
    "linear": "x[1,65] w[3,65] bias[3] | x[5,64] w[64,64]",
    "softmax": "x[2,3,4,5] dim=3 | x[2,3,4,5] dim=0 | x[3,65]",
    "log_softmax": "x[2,3,4,5] dim=1 | x[2,3,4,5] dim=-1",
    "conv2d": "x[1,3,7,9] w[4,3,3,5] stride=2,1 padding=1,2 dilation=1,2 bias[4] | x[1,64,5,5] w[3,64,3,3] padding=1 "
              "| x[2,65,3,3] w[2,65,1,1] bias[2] | x[3,1,4,4] w[2,1,4,4] | x[2,4,9,9] w[4,2,3,3] groups=2 dilation=2 stride=2 padding=2",
    "conv2d_grad_input": "dy[1,3,4,2] w[3,2,3,3] stride=2,3 padding=1,0 dilation=1,2 size=7,9",
    "conv2d_grad_weight": "dy[1,3,4,2] x[1,2,7,9] stride=2,3 padding=1,0 dilation=1,2 size=3,3",
    "conv2d_fused": "x[2,4,7,7] w[6,2,3,3] bias[6] groups=2 stride=2 padding=2 dilation=2 relu=1 | x[1,2,5,5] w[3,2,3,3] stride=1,2",
    "max_pool2d": "x[1,3,9,5]d kernel_size=3,2 stride=1,2 padding=1,0 | x[2,64,5,5]d kernel_size=3 stride=2 padding=1",
    "batch_norm": "x[4,3,2,2] weight[3] bias[3] running_mean[3] running_var[3]p momentum=0.3 eps=1e-3 "
                  "| x[3,65,3,3] weight[65] bias[65] running_mean[65] running_var[65]p groups=3 relu=1 "
                  "| x[1,64,3,3] weight[64] bias[64] running_mean[64] running_var[64]p "
                  "| x[6,64,1,3] weight[64] bias[64] running_mean[64] running_var[64]p residual[6,64,1,3] groups=3 relu=1 "
                  "| x[2,2,3,3] weight[2] bias[2] running_mean[2] running_var[2]p residual[2,2,3,3] "
                  "| x[4,3,2,2] weight[3] bias[3] running_mean[3] running_var[3]p training=0 groups=3 eps=0.1",
    "cat": "x[2,3] x[0,3] x[2,3] | x[1,2,3,3] x[1,65,3,3] x[1,1,3,3] dim=1 | x[2,3,4,4] x[2,3,1,4] dim=-2 | x[3]",
    "slice_grad": "dy[1,2,2,2] shape=2,3,4,4 start=1,1,0,1 step=1,1,2,2",
    "embedding": "weight[4,3] index[]i4 | weight[4,3] index[2,3,2]i4 | weight[4,3] index[2,2,3,2]i4",
    "embedding_grad": "dy[2,3,2,3] index[2,3,2]i4 rows=4 | dy[2,3] index[2]i2 rows=6",
    "dropout": "x[2,3] p=0 seed=1 | x[5,5] p=0.6 seed=12345678901 offset=3 | x[2,5,3,3] p=0.4 seed=2 offset=1",
    "cosine_similarity": "a[2,3]z b[2,3] | a[3,65] b[3,65] eps=2 | a[2,4] b[2,4] eps=30",
    "normalize": "x[2,3]z | x[3,65] eps=1e-3 | x[3,4] eps=30",
    "spatial_attention": "x[1,65,3,3] z[1,17,3,3] q[1,17] | x[3,2,1,5] z[3,1,1,5] q[3,1]",
    "arc_margin": "cosine[6,5]u target[6]i5 s=3 m=0.2",
    "reshape": "x[2,3,4,5] shape=5,4,3,2 | x[6] shape=1,2,1,3 | x[2,3,4] shape=-1 | x[0,3] shape=3,0 | x[1,3,2,2] shape=1,12",
    "permute": "x[2,3,4,5] dims=3,-2,0,1",
    "slice": "x[4,5] start=-3 stop=-1 | x[2,3,4,5] start=0,1,0,1 stop=2,3,4,4 step=1,1,2,3 | x[3,4] start=2 stop=1",
    "expand": "x[1,3,1,1] shape=2,3,2,2 | x[2,1] shape=-1,3 | x[3] shape=2,2,2,3",
    "pow": "x[3,4]p exponent=0 | x[3,4] exponent=1 | x[3]p exponent=-1.5",
    "copy": "x[] dtype=float64",
}

# ---- samples ----


class Sample:
    """One call: the op's name, its arrays in float64 and int64 (None where absent), its attributes."""

    def __init__(self, spec, text):
        self.name, self.text = spec["name"], text
        names = [n.strip("?*") for n in spec["inputs"].split()]
        self.variadic = spec["inputs"].endswith("*")
        kinds = {a.partition(":")[0]: a.partition(":")[2][0] for a in spec["attrs"].split()}
        rng = np.random.default_rng(zlib.crc32(f"{self.name} {text}".encode()))
        self.arrays = [] if self.variadic else [None] * len(names)
        self.inputs = [] if self.variadic else names
        self.attrs = {}
        for word in text.split():
            tensor = re.fullmatch(r"(\w+)\[([\d,]*)\](p|u|d|z|o|i\d+)?", word)
            if tensor:
                array = fill(rng, [int(n) for n in tensor[2].split(",") if n], tensor[3])
                if self.variadic:
                    self.arrays.append(array)
                    self.inputs.append(f"{tensor[1]}[{len(self.arrays) - 1}]")
                else:
                    self.arrays[names.index(tensor[1])] = array
            else:
                key, _, value = word.partition("=")
                self.attrs[key] = parse_attr(kinds[key], value)
        while self.arrays and self.arrays[-1] is None:
            self.arrays.pop()

    def gradient_inputs(self):
        """Indices of the inputs that have a gradient."""
        return [i for i, a in enumerate(self.arrays)
                if a is not None and a.dtype == np.float64 and not self.inputs[i].startswith("running_")]

    def gradient_outputs(self):
        return DIFFERENTIABLE_OUTPUTS.get(self.name, (0,))


def fill(rng, shape, kind):
    if kind is None:
        return rng.standard_normal(shape)
    if kind[0] == "i":
        return rng.integers(0, int(kind[1:]), shape)
    n = int(np.prod(shape))
    return {
        "p": lambda: rng.uniform(0.5, 2, shape),
        "u": lambda: rng.uniform(-0.9, 0.9, shape),
        "d": lambda: (rng.permutation(n) * 0.1 - 1).reshape(shape),
        "z": lambda: np.zeros(shape),
        "o": lambda: np.ones(shape),
    }[kind]()


def parse_attr(kind, value):
    if kind == "t":
        return value
    if kind == "f":
        return float(value)
    if kind in "ls":
        return [int(v) for v in value.split(",")]
    numbers = tuple(int(v) for v in value.split(","))
    return numbers if len(numbers) > 1 else numbers[0]


def samples_of(spec):
    texts = [t.strip() for t in f"{spec['samples']} | {MORE.get(spec['name'], '')}".split("|")]
    return [Sample(spec, t) for t in texts if t]


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
    """dy for each output with a gradient."""
    rng = np.random.default_rng(zlib.crc32(f"dy {sample.name} {sample.text}".encode()))
    return {k: rng.standard_normal(shapes[k]) for k in sample.gradient_outputs()}


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
    assert set(MORE) <= set(SPECS)


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
    if sample.name == "copy" and "dtype" in sample.attrs:
        assert sample.attrs["dtype"] == "float64"
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


# ---- (d) parity with PyTorch ----

PARITY = 1e-10


def assert_parity(ours, theirs, what):
    assert ours.shape == theirs.shape, what
    assert ours.dtype == theirs.dtype, what
    if ours.dtype.kind != "f":
        np.testing.assert_array_equal(ours, theirs, what)
    else:
        np.testing.assert_allclose(ours, theirs, rtol=PARITY, atol=PARITY, err_msg=what)


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("torch", reason="PyTorch is not installed: parity is not tested")
    import op_reference_torch

    return op_reference_torch.REFERENCE


def dropout_reference(sample, ours):
    """The mask is our generator's own (tested below): the formula is x mask / (1 - p)."""
    p = sample.attrs["p"]
    kept = np.where(sample.arrays[0] != 0, ours != 0, True)
    return lambda t, attrs: (t[0] * t[0].new_tensor(kept) / (1 - p),)


@every(SAMPLES)
def test_equals_pytorch(sample, reference):
    """Outputs, inputs changed in place, and gradients, all in float64."""
    import torch

    ours, after = forward(sample)
    if sample.name == "dropout":
        f = dropout_reference(sample, ours[0])
    else:
        f = reference[sample.name]
    tensors = [None if a is None else torch.tensor(a) for a in sample.arrays]
    if SPECS[sample.name]["differentiable"]:
        for i in sample.gradient_inputs():
            tensors[i].requires_grad_()
    theirs = f(tensors, sample.attrs)
    assert len(ours) == len(theirs)
    for k, (a, b) in enumerate(zip(ours, theirs)):
        assert_parity(a, b.detach().numpy(), f"output {k}")
    for i, (a, t) in enumerate(zip(after, tensors)):
        if a is not None:
            assert_parity(a, t.detach().numpy(), f"input {sample.inputs[i]} after the call")
    if not SPECS[sample.name]["differentiable"]:
        return
    _, gradients = run(sample)
    total = sum((theirs[k] * torch.tensor(dy)).sum() for k, dy in cotangents(sample, [t.shape for t in theirs]).items())
    total.backward()
    for i, gradient in gradients.items():
        assert_parity(gradient, tensors[i].grad.numpy(), f"gradient of {sample.inputs[i]}")
