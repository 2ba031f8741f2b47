"""Held to what PyTorch computed, where PyTorch is absent: fixtures/, written by scripts/make_parity_fixtures.py.

A few ops; a step of each model; optimizers; the losses of short trainings; checkpoint files that PyTorch
wrote. In float64 on the reference kernels to 1e-8, in float32 on the kernels that ship. The tests that run
beside PyTorch (test_parity*.py) go further.
"""

from pathlib import Path

import numpy as np
import pytest

import asenpp
import parity_fixtures as fixtures
import parity_kit as kit
from asenpp import _asen, checkpoint, models, nn, optim
from op_samples import Sample
from test_ops import SPECS, to_array
import test_ops

FOLDER = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def kept():
    with np.load(FOLDER / "parity.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(autouse=True)
def all_paths():
    yield
    _asen.set_kernel_paths("all")


def under(kept, case):
    """{name: array} of one case."""
    found = {name.partition("/")[2]: value for name, value in kept.items() if name.partition("/")[0] == case}
    assert found, f"fixtures/ have no {case}: run scripts/make_parity_fixtures.py"
    return found


def close(ours, theirs, tolerance, what):
    assert ours.shape == theirs.shape, what
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(np.abs(theirs).max(initial=0), 1e-30), err_msg=what)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-10), ("float32", 3e-6)])
@pytest.mark.parametrize("name, text", fixtures.OPS, ids=[name for name, _ in fixtures.OPS])
def test_op(kept, name, text, dtype, tolerance):
    """Outputs, running statistics and gradients."""
    if dtype == "float64":
        _asen.set_kernel_paths("reference")
    want = under(kept, f"op {name}")
    sample = Sample(SPECS[name], text)
    # The stored inputs: a Generator's stream may change with NumPy.
    sample.arrays = [None if a is None else want.pop(f"input {i}").astype(a.dtype) for i, a in enumerate(sample.arrays)]
    outputs, after = test_ops.forward(sample, dtype)
    for k, output in enumerate(outputs):
        close(output, want.pop(f"output {k}"), tolerance, f"output {k}")
    for i, array in enumerate(after):
        if sample.inputs[i].startswith("running_"):
            close(array, want.pop(f"input {sample.inputs[i]} after the call"), tolerance, sample.inputs[i])
    if SPECS[name]["differentiable"]:
        tensors = [test_ops.as_tensor(a, dtype) for a in sample.arrays]
        for i in sample.gradient_inputs():
            tensors[i].requires_grad_()
        out = test_ops.apply(name, tensors, sample.attrs)
        test_ops.start_backward(out, {k: test_ops.as_tensor(want.pop(f"cotangent {k}").astype(np.float64), dtype)
                                      for k in sample.gradient_outputs()})
        for i in sample.gradient_inputs():
            close(to_array(tensors[i].grad), want.pop(f"gradient of {sample.inputs[i]}"), tolerance, f"gradient of {sample.inputs[i]}")
    assert not want, f"not compared: {list(want)}"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("training", [True, False], ids=fixtures.mode)
@pytest.mark.parametrize("kind", kit.MODELS)
def test_step(kept, kind, training, dtype):
    """Losses, embeddings, maps; of every gradient and moved statistic its norm and its product with a random
    vector, relative to that norm. In float32 gradients only where no ReLU hangs in the balance."""
    if dtype == "float64":
        _asen.set_kernel_paths("reference")
    case = f"{kind} {fixtures.mode(training)}"
    want, (cfg, given) = under(kept, case), fixtures.step_config(kind)
    state = kit.seeded_state(models.build_model(cfg), fixtures.SEED)
    if case == fixtures.SETTLED:
        state = fixtures.with_shifts(state, want.pop("shifts"))
    ours = fixtures.summary(kit.our_results(cfg, state, given, dtype, training), training)
    assert ours.keys() == want.keys()
    for what, value in ours.items():
        # Batch norm over the few values of a small image amplifies rounding.
        tolerance = 1e-8 if dtype == "float64" else 1e-4 if training else 1e-5
        if not what.endswith("numbers"):
            close(value, want[what], tolerance, what)
        elif dtype == "float64" or case == fixtures.SETTLED or what.startswith("buffer"):
            norms = np.maximum(want[what][:, :1], 1e-6 * want[what][:, 0].max())
            # A product with a random vector is a difference's norm times a standard normal number.
            assert (np.abs(value - want[what]) < [tolerance, 4 * tolerance] * norms).all(), what
            wrong = value * [1, 1.001]
            assert not (np.abs(wrong - want[what]) < [tolerance, 4 * tolerance] * norms).all(), what


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 3e-6)])
@pytest.mark.parametrize("case", fixtures.OPTIMIZERS)
def test_optimizer(kept, case, dtype, tolerance):
    """Parameters after 20 steps under a cosine schedule."""
    if dtype == "float64":
        _asen.set_kernel_paths("reference")
    tensors = fixtures.optimized(optim, optim.lr_scheduler, case, lambda a: nn.Parameter(a.astype(dtype)),
                                 lambda a: asenpp.tensor(a.astype(dtype)))
    ours = np.concatenate([to_array(p).reshape(-1) for p in tensors])
    np.testing.assert_allclose(ours, kept[f"optimizer {case}"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("stage", fixtures.TRAININGS)
def test_training(kept, stage, dtype):
    """The losses of a few steps of Adam: to 1e-8, and in float32 to twice what PyTorch's missed, but for one
    ReLU decided otherwise, which moves them by up to 1e-4."""
    want = under(kept, f"training {stage}")
    if dtype == "float64":
        _asen.set_kernel_paths("reference")
    cfg = kit.training_config(stage)
    state = kit.seeded_state(models.build_model(cfg), fixtures.SEED)
    losses = kit.our_training(cfg, state, fixtures.TRAININGS[stage], dtype, fixtures.SEED)[0]
    limit = 1e-8 if dtype == "float64" else max(2 * float(want["distance"]), 1e-4)
    assert np.abs(losses - want["losses"]).max() < limit
    assert np.abs(losses[1:] - want["losses"][:-1]).max() > limit


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("kind", ["zip", "stream", "tar"])
def test_checkpoint_file(kind, writable):
    """Files that PyTorch wrote (the old tar: laid out by hand with PyTorch's pickles) load equal, to the bit."""
    content = checkpoint.load(FOLDER / f"checkpoint_{kind}.pth.tar", writable=writable)
    want = fixtures.checkpoint_arrays()
    if kind == "tar":
        want = {name: value for name, value in want.items() if value.dtype == np.float32}
        want["bfloat16"] = None
    else:
        assert (content["epoch"], content["mAP"]) == (3, 0.25)
        content = content["model"]
        want |= {"view": want["weight"].transpose(0, 2, 3, 1)[:, ::2], "bfloat16": None}
        assert np.shares_memory(content["view"], content["weight"])
        bits = want["weight"].view(np.uint32).astype(np.uint64)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        np.testing.assert_array_equal(content["bfloat16"].bits, rounded)
    assert content.keys() | {"bfloat16"} == want.keys()
    for name, value in want.items():
        if value is not None:
            got = np.asarray(content[name])
            assert (got.dtype, got.shape) == (value.dtype, value.shape), name
            np.testing.assert_array_equal(got, value, name)


def test_fixtures_are_small():
    """They go into every checkout and every source distribution."""
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 100_000
