"""Parity with PyTorch, held model by model."""

import numpy as np
import pytest

from asenpp import _asen, models, random
from asenpp._asen import Tensor

pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")


@pytest.fixture(autouse=True)
def seeded():
    random.manual_seed(11)
    yield
    _asen.set_kernel_paths("all")


@pytest.mark.parametrize("training", [True, False])
def test_resnet34_in_float64(training):
    """Reference kernels in double agree with PyTorch to 1e-8: output, all gradients, running statistics;
    gradients norm by norm, with a floor of a thousandth of the largest norm."""
    import torch
    import torch_models

    _asen.set_kernel_paths("reference")
    rng = np.random.default_rng(1)
    ours, theirs = models.resnet34(), torch_models.ResNet("resnet34")
    theirs.load_state_dict({k: torch.tensor(v.numpy().copy()) for k, v in ours.state_dict().items()})
    ours.to("float64"), theirs.double()
    ours.train(training), theirs.train(training)
    x = rng.standard_normal((2, 3, 32, 32))
    y, ty = ours(Tensor(x)), theirs(torch.tensor(x))
    dy = rng.standard_normal(tuple(ty.shape))
    y.backward(Tensor(dy)), ty.backward(torch.tensor(dy))

    def gap(a, b, floor=1e-30):
        a, b = a.detach().numpy(), b.detach().numpy()
        assert a.shape == b.shape
        return np.linalg.norm(a - b) / max(np.linalg.norm(b), floor)

    assert gap(y, ty) < 1e-8
    others = dict(theirs.named_parameters())
    floor = 1e-3 * max(float(q.grad.norm()) for q in others.values())
    worst = max(gap(p.grad, others[name].grad, floor) for name, p in ours.named_parameters())
    print(f"resnet34 float64 training={training}: output {gap(y, ty):.1e}, gradients {worst:.1e}")
    assert worst < 1e-8
    for (key, b), (_, c) in zip(ours.named_buffers(), theirs.named_buffers()):
        assert gap(b, c) < 1e-8, key
