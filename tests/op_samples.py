"""Calls of every op of csrc/ops/ops.def, as text: what the op tests run, on every device.

    "x[2,3] index[4]i5 eps=1e-5"

is a call with the inputs x and index and the attribute eps. After a shape: "p" positive, "u" in (-0.9, 0.9),
"d" all different, "i7" int64 in [0, 7), "b" uint8, "t" bool, "z" zeros, "o" ones; else normal. Inputs without a
gradient are integers or named running_*. A row without samples fails test_ops.py, unless COVERED_BY says
through which row it is tested.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

import numpy as np

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

# For each row its usual forms, attributes away from their defaults (each must reach the kernel), and shapes
# that models use or that fill no vector.
SAMPLES = {
    "add": [
        "a[2,3] b[2,3]", "a[2,3,4,5] b[3,1,1]", "a[4] b[]", "a[3,1] b[1,4]", "a[1,1,1,1] b[2,3,2,2]",
        "a[2,64,3,3] b[64,1,1]", "a[0,3] b[3]", "a[2,1,3,1,2] b[4,1,5,1]",
    ],
    "sub": ["a[2,3] b[2,3]", "a[2,3,4,5] b[2,1,4,1]", "a[] b[3]"],
    "mul": ["a[2,3] b[2,3]", "a[2,3,4,5] b[2,3,1,1]", "a[5,1] b[4]", "a[2,3,4,4] b[2,1,4,4]", "a[] b[]"],
    "div": ["a[2,3] b[2,3]p", "a[2,3,4,5] b[5]p", "a[3] b[]p"],
    "neg": ["x[2,3]", "x[2,3,4,5]"],
    "exp": ["x[2,3]", "x[2,3,4,5]"],
    "log": ["x[2,3]p", "x[2,3,4,5]p"],
    "sqrt": ["x[2,3]p", "x[2,3,4,5]p"],
    "pow": [
        "x[2,3]p exponent=2.5", "x[7] exponent=3", "x[4,5] exponent=2", "x[3,4]p exponent=0", "x[3,4] exponent=1",
        "x[3]p exponent=-1.5",
    ],
    "clamp": ["x[3,4] min=-0.5 max=0.5", "x[2,3,4,5] min=0", "x[9] max=0.3"],
    "clamp_grad": ["dy[3,4] x[3,4] min=-0.5 max=0.5", "dy[2,3,4,5] x[2,3,4,5] min=0", "dy[3,4] x[3,4] max=0.1"],
    "relu": ["x[3,4]", "x[2,3,4,5]"],
    "relu_grad": ["dy[3,4] y[3,4]", "dy[2,3,4,5] y[2,3,4,5]"],
    "tanh": ["x[3,4]", "x[2,3,4,5]"],
    "sigmoid": ["x[3,4]", "x[2,3,4,5]"],
    "copy": ["x[3,4]", "x[2,3,4,5] dtype=float64", "x[] dtype=float64", "x[3,4] dtype=float32"],
    "compare": [
        "a[2,3] b[2,3] relation=0", "a[2,3,4,5] b[2,1,4,1] relation=5", "a[4]i3 b[3,1]i3 relation=2", "a[3,4]i2 b[4]i2 relation=1",
        "a[2,70]i2 b[2,70]i2 relation=3", "a[] b[5] relation=4", "a[2,3]b b[3]b relation=4", "a[4]t b[4]t relation=2",
    ],
    "where": [
        "condition[2,3]t a[2,3] b[2,3]", "condition[3,1,1]t a[2,1,4,5] b[5]", "condition[]t a[2] b[2]",
        "condition[2,1,70]t a[1,3,1] b[]",
    ],
    "sum": [
        "x[3,4]", "x[2,3,4,5] dims=1", "x[2,3,4,5] dims=0,2,3", "x[2,3,4] dims=2 keepdim=1", "x[2,3,4] dims=0,1",
        "x[2,3,4,5] dims=-1,1 keepdim=1", "x[]", "x[2,65,3,3] dims=0,2,3", "x[3,2,1,2,2] dims=1,3",
    ],
    "mean": [
        "x[3,4]", "x[2,3,4,5] dims=2,3", "x[2,3,4,5] dims=2,3 keepdim=1", "x[2,3,4] dims=1", "x[2,256,3,3] dims=2,3",
        "x[7] dims=0 keepdim=1",
    ],
    "max": ["x[3,4]d", "x[2,3,4,5]d dims=2,3", "x[2,3,4]d dims=1 keepdim=1", "x[2,3,4,5]d dims=1,3", "x[4]d dims=0"],
    "max_grad": [
        "dy[] x[3,4]d y[]", "dy[2,4] x[2,3,4]d y[2,4] dims=1", "dy[2,1,4] x[2,3,4]d y[2,1,4] dims=1 keepdim=1",
        "dy[2] x[2,3]z y[2]z dims=1",
    ],
    "matmul": [
        "a[3,4] b[4,5]", "a[4,3] b[4,5] trans_a=1", "a[3,4] b[5,4] trans_b=1", "a[4,3] b[5,4] trans_a=1 trans_b=1",
        "a[2,3,4] b[2,4,5]", "a[2,3,4] b[2,5,4] trans_b=1", "a[1,1] b[1,1]", "a[65,7] b[7,33]",
        "a[3,2,4] b[3,2,5] trans_a=1", "a[2,4,3] b[2,5,4] trans_a=1 trans_b=1",
    ],
    "linear": [
        "x[3,4] w[5,4] bias[5]", "x[1,7] w[2,7]", "x[4,16] w[8,16] bias[8]", "x[1,65] w[3,65] bias[3]",
        "x[5,64] w[64,64]",
    ],
    "softmax": [
        "x[3,4]", "x[2,3,4] dim=1", "x[2,3,4,5] dim=1", "x[5] dim=0", "x[2,3,4,5] dim=3", "x[2,3,4,5] dim=0",
        "x[3,65]",
    ],
    "log_softmax": ["x[3,4]", "x[2,3,4] dim=1", "x[5] dim=0", "x[2,3,4,5] dim=1", "x[2,3,4,5] dim=-1"],
    "conv2d": [
        "x[2,3,5,6] w[4,3,3,3] bias[4] padding=1", "x[1,3,9,8] w[5,3,3,3] stride=2 padding=1",
        "x[2,4,6,6] w[6,4,1,1]", "x[2,4,7,7] w[6,4,1,1] stride=2", "x[2,3,12,12] w[8,3,7,7] stride=2 padding=3",
        "x[2,4,5,5] w[6,2,3,3] groups=2 padding=1", "x[1,2,7,7] w[3,2,3,3] dilation=2",
        "x[1,3,7,9] w[4,3,3,5] stride=2,1 padding=1,2 dilation=1,2 bias[4]", "x[1,64,5,5] w[3,64,3,3] padding=1",
        "x[2,65,3,3] w[2,65,1,1] bias[2]", "x[3,1,4,4] w[2,1,4,4]",
        "x[2,4,9,9] w[4,2,3,3] groups=2 dilation=2 stride=2 padding=2",
    ],
    "conv2d_grad_input": [
        "dy[2,4,5,6] w[4,3,3,3] padding=1 size=5,6", "dy[1,5,5,4] w[5,3,3,3] stride=2 padding=1 size=9,8",
        "dy[2,6,4,4] w[6,4,1,1] stride=2 size=7,7", "dy[2,6,5,5] w[6,2,3,3] groups=2 padding=1 size=5,5",
        "dy[1,3,4,2] w[3,2,3,3] stride=2,3 padding=1,0 dilation=1,2 size=7,9",
    ],
    "conv2d_grad_weight": [
        "dy[2,4,5,6] x[2,3,5,6] padding=1 size=3,3", "dy[1,5,5,4] x[1,3,9,8] stride=2 padding=1 size=3,3",
        "dy[2,6,4,4] x[2,4,7,7] stride=2 size=1,1", "dy[2,6,5,5] x[2,4,5,5] groups=2 padding=1 size=3,3",
        "dy[1,3,4,2] x[1,2,7,9] stride=2,3 padding=1,0 dilation=1,2 size=3,3",
    ],
    "conv2d_fused": [
        "x[2,3,5,6] w[4,3,3,3] bias[4] padding=1 relu=1", "x[2,4,6,6] w[4,4,1,1] bias[4] residual[2,4,6,6] relu=1",
        "x[2,4,6,6] w[4,4,3,3] bias[4] residual[2,4,6,6] padding=1",
        "x[2,4,7,7] w[6,2,3,3] bias[6] groups=2 stride=2 padding=2 dilation=2 relu=1",
        "x[1,2,5,5] w[3,2,3,3] stride=1,2",
    ],
    "max_pool2d": [
        "x[2,3,7,8]d kernel_size=3 stride=2 padding=1", "x[1,2,4,4]d kernel_size=2 stride=2",
        "x[1,3,9,5]d kernel_size=3,2 stride=1,2 padding=1,0", "x[2,64,5,5]d kernel_size=3 stride=2 padding=1",
    ],
    "batch_norm": [
        "x[4,3,5,5] weight[3] bias[3] running_mean[3]z running_var[3]o",
        "x[6,3,4,4] weight[3] bias[3] running_mean[3]z running_var[3]o groups=3 relu=1",
        "x[4,5,3,3] weight[5] bias[5] running_mean[5]z running_var[5]o residual[4,5,3,3] groups=2 relu=1",
        "x[4,3,5,5] weight[3] bias[3] running_mean[3] running_var[3]p training=0",
        "x[4,3,5,5] weight[3] bias[3] running_mean[3] running_var[3]p residual[4,3,5,5] training=0 relu=1",
        "x[4,3,2,2] weight[3] bias[3] running_mean[3] running_var[3]p momentum=0.3 eps=1e-3",
        "x[3,65,3,3] weight[65] bias[65] running_mean[65] running_var[65]p groups=3 relu=1",
        "x[1,64,3,3] weight[64] bias[64] running_mean[64] running_var[64]p",
        "x[6,64,1,3] weight[64] bias[64] running_mean[64] running_var[64]p residual[6,64,1,3] groups=3 relu=1",
        "x[2,2,3,3] weight[2] bias[2] running_mean[2] running_var[2]p residual[2,2,3,3]",
        "x[4,3,2,2] weight[3] bias[3] running_mean[3] running_var[3]p training=0 groups=3 eps=0.1",
    ],
    "cat": [
        "x[2,3] x[1,3]", "x[2,3] x[2,4] dim=1", "x[2,3,4,4] x[2,2,4,4] dim=1", "x[2,3] x[0,3] x[2,3]",
        "x[1,2,3,3] x[1,65,3,3] x[1,1,3,3] dim=1", "x[2,3,4,4] x[2,3,1,4] dim=-2", "x[3]",
    ],
    "slice_grad": ["dy[2,2] shape=4,5 start=1,0 step=1,3", "dy[1,2,2,2] shape=2,3,4,4 start=1,1,0,1 step=1,1,2,2"],
    "embedding": [
        "weight[5,3] index[4]i5", "weight[6,2] index[2,3]i6", "weight[4,3] index[]i4", "weight[4,3] index[2,3,2]i4",
        "weight[4,3] index[2,2,3,2]i4",
    ],
    "embedding_grad": ["dy[4,3] index[4]i5 rows=5", "dy[2,3,2,3] index[2,3,2]i4 rows=4", "dy[2,3] index[2]i2 rows=6"],
    "sort": [
        "x[2,5]d", "x[2,3,4,5]d dim=1 descending=1", "x[7]d k=3", "x[3,4]d dim=0 k=1 descending=1 nan_first=1", "x[2,33]d dim=-1 descending=1 k=5",
        "x[3,0] dim=1", "x[3,1]d",
    ],
    "gather": [
        "x[3,4] index[2,4]i3 dim=0", "x[2,3,4,5] index[2,2,3,7]i5 dim=3", "x[6] index[9]i6 dim=0", "x[2,3,4,5] index[1,3,2,2]i4 dim=-2",
    ],
    "gather_grad": ["dy[2,4] index[2,4]i3 shape=3,4 dim=0", "dy[2,2,3,7] index[2,2,3,7]i5 shape=2,3,4,5 dim=3", "dy[9] index[9]i2 shape=6 dim=0"],
    "dropout": [
        "x[3,4] p=0.5 seed=7", "x[40] p=0.1 seed=3 offset=100", "x[2,3,4,4] p=0.3 seed=1", "x[2,3] p=0 seed=1",
        "x[5,5] p=0.6 seed=12345678901 offset=3", "x[2,5,3,3] p=0.4 seed=2 offset=1",
    ],
    "normalize_pixels": ["x[2,3,4,5]b table[3,256]", "x[1,1,2,3]b table[1,256]"],
    "cross_entropy": ["logits[4,3] target[4]i3", "logits[1,5] target[1]i5"],
    "cross_entropy_grad": ["dy[] softmax[4,3]p target[4]i3"],
    "cosine_similarity": [
        "a[4,5] b[4,5]", "a[1,16] b[1,16]", "a[2,3]z b[2,3]", "a[3,65] b[3,65] eps=2", "a[2,4] b[2,4] eps=30",
    ],
    "normalize": ["x[4,5]", "x[1,16]", "x[2,3]z", "x[3,65] eps=1e-3", "x[3,4] eps=30"],
    "spatial_attention": [
        "x[2,6,4,5] z[2,3,4,5] q[2,3]", "x[1,8,7,7] z[1,4,7,7] q[1,4]", "x[1,65,3,3] z[1,17,3,3] q[1,17]",
        "x[3,2,1,5] z[3,1,1,5] q[3,1]",
    ],
    "arc_margin": [
        "cosine[4,3]u target[4]i3 s=10 m=0.5", "cosine[4,3]u target[4]i3 s=10 m=0.5 easy_margin=1",
        "cosine[6,5]u target[6]i5 s=3 m=0.2",
    ],
    "reshape": [
        "x[2,6] shape=3,4", "x[2,3,4,5] shape=2,60", "x[2,12] shape=2,3,2,2", "x[2,3,4,5] shape=5,4,3,2",
        "x[6] shape=1,2,1,3", "x[2,3,4] shape=-1", "x[0,3] shape=3,0", "x[1,3,2,2] shape=1,12",
    ],
    "permute": ["x[2,3,4] dims=2,0,1", "x[2,3,4,5] dims=0,2,3,1", "x[2,3,4,5] dims=3,-2,0,1"],
    "slice": [
        "x[4,5] start=1,0 stop=3,5 step=1,2", "x[4,5] start=-3 stop=-1",
        "x[2,3,4,5] start=0,1,0,1 stop=2,3,4,4 step=1,1,2,3", "x[3,4] start=2 stop=1",
    ],
    "expand": [
        "x[3,1] shape=2,3,4", "x[] shape=3", "x[1,3,1,1] shape=2,3,2,2", "x[2,1] shape=-1,3", "x[3] shape=2,2,2,3",
    ],
}

LARGE = {
    "add": ["a[2,65,33,31] b[65,1,1]", "a[3,64,15,13] b[3,64,15,13]", "a[100003] b[100003]", "a[2,3,5,7] b[2,1,5,7]"],
    "sub": ["a[7,1,9] b[5,1]", "a[1,256,7,7] b[1,256,1,1]"],
    "mul": ["a[2,65,33,31] b[2,65,1,1]", "a[16,512] b[16,512]", "a[33,1] b[257]"],
    "div": ["a[2,65,9,7] b[65,1,1]p"],
    "neg": ["x[2,65,9,7]"],
    "exp": ["x[3,64,15,13]", "x[1,256,7,7]"],
    "log": ["x[3,65,15,13]p"],
    "sqrt": ["x[3,65,15,13]p"],
    "pow": ["x[3,65,15,13]p exponent=0.7", "x[1001] exponent=2"],
    "clamp": ["x[3,65,15,13] min=0"],
    "relu": ["x[3,65,15,13]", "x[1,256,7,7]"],
    "tanh": ["x[3,65,15,13]", "x[1,256,7,7]"],
    "sigmoid": ["x[16,513]"],
    "sum": ["x[3,65,33,31] dims=0,2,3", "x[3,65,33,31]", "x[48,513] dims=1"],
    "mean": ["x[3,65,33,31] dims=2,3", "x[1,256,7,7] dims=2,3", "x[1001]"],
    "max": ["x[3,65,9,11]d dims=2,3"],
    "matmul": ["a[65,256] b[256,64]", "a[3,17,65] b[3,65,3]", "a[1,256] b[256,1]"],
    "linear": ["x[16,256] w[65,256] bias[65]", "x[1,513] w[3,513]"],
    "softmax": ["x[16,1000]", "x[3,65,7,9] dim=1"],
    "log_softmax": ["x[16,1000]"],
    "conv2d": [
        "x[1,3,65,63] w[64,3,7,7] stride=2 padding=3", "x[2,65,15,13] w[64,65,3,3] padding=1 bias[64]",
        "x[1,256,14,14] w[64,256,1,1]", "x[2,64,29,31] w[65,64,1,1] stride=2",
        "x[1,64,17,17] w[256,64,3,3] stride=2 padding=1",
    ],
    "conv2d_fused": [
        "x[1,3,33,31] w[64,3,7,7] bias[64] stride=2 padding=3 relu=1",
        "x[2,64,15,13] w[65,64,3,3] bias[65] residual[2,65,15,13] padding=1 relu=1",
    ],
    "max_pool2d": [
        "x[2,64,33,31]d kernel_size=3 stride=2 padding=1", "x[1,3,64,64]d kernel_size=3 stride=2 padding=1",
    ],
    "batch_norm": [
        "x[6,64,15,13] weight[64] bias[64] running_mean[64] running_var[64]p groups=3 relu=1",
        "x[1,256,7,9] weight[256] bias[256] running_mean[256] running_var[256]p",
        "x[3,65,31,29] weight[65] bias[65] running_mean[65] running_var[65]p residual[3,65,31,29] groups=3 relu=1",
        "x[9,3,33,31] weight[3] bias[3] running_mean[3] running_var[3]p groups=3",
        "x[2,64,15,13] weight[64] bias[64] running_mean[64] running_var[64]p residual[2,64,15,13] training=0 relu=1",
    ],
    "cat": ["x[1,64,7,9] x[1,65,7,9] dim=1", "x[3,5,7] x[3,5,1] dim=2"],
    "embedding": ["weight[65,256] index[64]i65"],
    "dropout": ["x[3,65,15,13] p=0.3 seed=9", "x[100003] p=0.1 seed=1 offset=77"],
    "cross_entropy": ["logits[64,65] target[64]i65"],
    "cosine_similarity": ["a[48,257] b[48,257]", "a[1,1024] b[1,1024]"],
    "normalize": ["x[48,257]", "x[1,1024]"],
    "spatial_attention": ["x[3,256,14,14] z[3,65,14,14] q[3,65]", "x[1,64,7,7] z[1,64,7,7] q[1,64]"],
    "arc_margin": ["cosine[64,65]u target[64]i65 s=10 m=0.5"],
}


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
            tensor = re.fullmatch(r"(\w+)\[([\d,]*)\](p|u|d|z|o|b|t|i\d+)?", word)
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
    if kind == "b":
        return rng.integers(0, 256, shape, np.uint8)
    if kind == "t":
        return rng.integers(0, 2, shape).astype(bool)
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


def samples_of(spec: dict[str, Any]) -> list[Sample]:
    """The samples of a row of `op_specs()`."""
    return [Sample(spec, text) for text in SAMPLES.get(spec["name"], [])]


def large_samples_of(spec: dict[str, Any]) -> list[Sample]:
    return [Sample(spec, text) for text in LARGE.get(spec["name"], [])]
