"""Mixed precision, as far as the CPU shows it: what autocast converts, and the scaler's arithmetic and decisions.

What the GPU computes under it is held to float32 in tests/cuda.
"""

import numpy as np
import pytest

from asenpp import amp, nn, optim
from asenpp._asen import Tensor


def test_lowered_follows_the_context():
    """Tensors are converted inside the context, nesting restores, float64 and absent ones are left alone."""
    x, wide = Tensor(np.ones(3, np.float32)), Tensor(np.ones(3))
    assert amp.lowered(x, None) == (x, None)
    with amp.autocast("bfloat16"):
        assert [t.dtype for t in amp.lowered(x, x)] == ["bfloat16", "bfloat16"]
        assert amp.lowered(x, None)[1] is None
        assert amp.lowered(wide, wide)[0].dtype == "float64"
        with amp.autocast("float16"):
            assert amp.lowered(x)[0].dtype == "float16"
        with amp.autocast("float16", enabled=False):
            assert amp.lowered(x)[0].dtype == "bfloat16"
        assert amp.lowered(x)[0].dtype == "bfloat16"
    assert amp.lowered(x)[0] is x
    assert amp.raised(x.to("float16")).dtype == "float32" and amp.raised(wide) is wide


def test_gradients_come_back_in_float32():
    """The conversion is part of the graph: a float32 parameter used in 16 bits has a float32 gradient."""
    x = Tensor(np.array([1.0, 2.5], np.float32)).requires_grad_()
    with amp.autocast("bfloat16"):
        low, = amp.lowered(x)
    (amp.raised(low) * Tensor(np.array([3.0, 4.0], np.float32))).sum().backward()
    assert x.grad.dtype == "float32" and x.grad.tolist() == [3.0, 4.0]


def test_bad_arguments():
    with pytest.raises(ValueError, match="float16 or bfloat16"):
        amp.autocast("float32")
    for arguments in ({"init_scale": 0}, {"growth_factor": 0.5}, {"backoff_factor": 2}, {"growth_interval": 0}):
        with pytest.raises(ValueError, match="GradScaler"):
            amp.GradScaler(**arguments)


def model():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.detach().copy_(np.array([[0.5, -1.0]], np.float32))
    return layer, optim.SGD(layer.parameters(), lr=0.5)


def test_scaled_steps_are_the_plain_ones():
    """A power of two as the scale leaves the same bits."""
    x = Tensor(np.array([[3.0, 5.0]], np.float32))
    (a, plain), (b, scaled) = model(), model()
    scaler = amp.GradScaler(1024.0)
    for _ in range(3):
        plain.zero_grad(), a(x).sum().backward(), plain.step()
        scaled.zero_grad(), scaler.scale(b(x).sum()).backward()
        assert scaler.step(scaled)
        scaler.update()
    np.testing.assert_array_equal(a.weight.detach().numpy(), b.weight.detach().numpy())


def test_a_step_that_overflowed_is_left_out_and_counted():
    """An infinite or NaN gradient: weights stay, the scale halves; after growth_interval good steps it doubles."""
    layer, optimizer = model()
    before = layer.weight.detach().numpy().copy()
    scaler = amp.GradScaler(8.0, growth_interval=2)
    for bad in (np.inf, np.nan):
        optimizer.zero_grad()
        scaler.scale(layer(Tensor(np.array([[1.0, bad]], np.float32))).sum()).backward()
        assert not scaler.step(optimizer)
        scaler.update()
    assert (layer.weight.detach().numpy() == before).all()
    assert (scaler.get_scale(), scaler.skipped, scaler.skipped_in_a_row) == (2.0, 2, 2)
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(layer(Tensor(np.ones((1, 2), np.float32))).sum()).backward()
        assert scaler.step(optimizer)
        scaler.update()
    assert (scaler.get_scale(), scaler.skipped, scaler.skipped_in_a_row) == (4.0, 2, 0)
    other = amp.GradScaler()
    other.load_state_dict(scaler.state_dict())
    assert other.state_dict() == scaler.state_dict()


def test_a_scaler_that_is_off_is_not_there():
    layer, optimizer = model()
    scaler = amp.GradScaler(enabled=False)
    loss = layer(Tensor(np.ones((1, 2), np.float32))).sum()
    assert scaler.scale(loss) is loss and scaler.get_scale() == 1.0
    loss.backward()
    assert scaler.step(optimizer)
    np.testing.assert_array_equal(layer.weight.detach().numpy(), [[0.0, -1.5]])


def test_a_shared_parameter_is_unscaled_once():
    """One tensor in two groups: its gradient is divided once."""
    p = nn.Parameter(np.ones(2, np.float32))
    optimizer = optim.SGD([{"params": [p]}], lr=1.0)
    optimizer.param_groups.append(dict(optimizer.param_groups[0], lr=0.0))
    (p * 4.0).sum().backward()
    amp.GradScaler(4.0).step(optimizer)
    np.testing.assert_array_equal(p.grad.numpy(), [1.0, 1.0])
