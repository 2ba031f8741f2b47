"""Every op of csrc/ops/ops.def against PyTorch: outputs, what a call changes in place, and gradients.

The samples are those of op_samples.py: the usual forms, those with attributes away from their defaults
(strides, paddings, dilations, odd sizes, a batch of one, batch norm in groups), and large ones. PyTorch
computes in float64 (op_reference_torch.py). Ours does so on the reference kernels, to 1e-10, and in
float32 on the kernels that ship, to a few roundings.
"""

import numpy as np
import pytest

from asenpp import _asen
from test_ops import LARGE_SAMPLES, SAMPLES, SPECS, cotangents, every, forward, rounded, run

torch = pytest.importorskip("torch", reason="PyTorch is not installed: parity is not tested")
from op_reference_torch import REFERENCE  # noqa: E402 - it needs PyTorch

EVERY = SAMPLES + [s for samples in LARGE_SAMPLES.values() for s in samples]

EXACT = 1e-10
# Of the largest magnitude in the result: float32 rounds to 6e-8, and a sum of n terms loses about
# sqrt(n) roundings; the longest sums here, gradients of filters, have 4 thousand.
SHIPPED = 3e-6


@pytest.fixture(autouse=True)
def all_paths():
    yield
    _asen.set_kernel_paths("all")


def dropout_reference(sample, ours):
    """The mask is our generator's own (test_ops.py): the formula is x mask / (1 - p)."""
    p = sample.attrs["p"]
    kept = np.where(sample.arrays[0] != 0, ours != 0, True)
    return lambda t, attrs: (t[0] * t[0].new_tensor(kept) / (1 - p),)


def mine(sample, dtype=None):
    """{what: array} of a call and its gradients."""
    outputs, after = forward(sample, dtype)
    found = {f"output {k}": a for k, a in enumerate(outputs)}
    found |= {f"input {sample.inputs[i]} after the call": a for i, a in enumerate(after) if a is not None}
    return found | {f"gradient of {sample.inputs[i]}": a for i, a in run(sample, dtype)[1].items()}


def pytorchs(sample, first):
    """The same by PyTorch in float64. first: our first output, which shows dropout's mask."""
    f = dropout_reference(sample, first) if sample.name == "dropout" else REFERENCE[sample.name]
    differentiable = sample.gradient_inputs() if SPECS[sample.name]["differentiable"] else []
    tensors = [None if a is None else torch.tensor(a) for a in sample.arrays]
    for i in differentiable:
        tensors[i].requires_grad_()
    outputs = f(tensors, sample.attrs)
    found = {f"output {k}": t.detach().numpy() for k, t in enumerate(outputs)}
    found |= {f"input {sample.inputs[i]} after the call": t.detach().numpy() for i, t in enumerate(tensors) if t is not None}
    if differentiable:
        dys = cotangents(sample, [t.shape for t in outputs])
        sum((outputs[k] * torch.tensor(dy)).sum() for k, dy in dys.items()).backward()
    return found | {f"gradient of {sample.inputs[i]}": tensors[i].grad.numpy() for i in differentiable}


def check(ours, theirs, tolerance, relative):
    """`relative`: to the largest magnitude of each result; else element by element."""
    assert ours.keys() == theirs.keys()
    for what, a in ours.items():
        b = theirs[what]
        assert a.shape == b.shape, what
        if b.dtype.kind != "f" or not b.size:
            np.testing.assert_array_equal(a, b, what)
        elif relative:
            np.testing.assert_allclose(a.astype(np.float64), b, rtol=0, atol=tolerance * np.abs(b).max() + 1e-30, err_msg=what)
        else:
            assert a.dtype == b.dtype, what
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=what)


@pytest.mark.parametrize("path", ["reference", "all"])
@every(EVERY)
def test_equals_pytorch_in_float64(sample, path):
    """The mathematics: 1e-10, element by element, on the reference and on what dispatch chooses (copies
    and the like have fast kernels in float64 too); and the check itself can fail."""
    _asen.set_kernel_paths(path)
    ours = mine(sample)
    theirs = pytorchs(sample, ours["output 0"])
    check(ours, theirs, EXACT, relative=False)
    for what, a in ours.items():
        if a.dtype.kind == "f" and a.size:
            wrong = a.copy()
            wrong.reshape(-1)[-1] += 1e-8 * max(1.0, np.abs(a).max())
            with pytest.raises(AssertionError):
                check(ours | {what: wrong}, theirs, EXACT, relative=False)


@every(EVERY)
def test_shipped_kernels_equal_pytorch_in_float32(sample):
    """The kernels that training and evaluation run, on values that float32 holds."""
    if "float" in str(sample.attrs.get("dtype")):
        pytest.skip("a conversion has the dtype that it names: see the float64 test")
    sample = rounded(sample)
    ours = mine(sample, np.float32)
    check(ours, pytorchs(sample, ours["output 0"]), SHIPPED, relative=True)


def test_every_op_is_held_to_pytorch():
    """A row with samples has its PyTorch expression."""
    assert {s.name for s in SAMPLES} - set(REFERENCE) == {"dropout"}
