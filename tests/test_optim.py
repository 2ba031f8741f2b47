"""Optimizers and schedules: the values are PyTorch's over many steps, and so are the state dicts."""

import numpy as np
import pytest

from asenpp import _asen, nn, optim
from asenpp._asen import Tensor
from asenpp.optim import lr_scheduler

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")

SHAPES = [(3, 4, 3, 3), (7,), (5, 6), (2, 3)]
CASES = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    "sgd nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "sgd defaults": ("SGD", {}),
    "adam": ("Adam", {"lr": 0.01}),
    "adam decay": ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    "adam defaults": ("Adam", {}),
    "adamw": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    "adamw defaults": ("AdamW", {}),
}


def parameters(dtype=np.float32):
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    return [nn.Parameter(v.copy()) for v in values], [torch.nn.Parameter(torch.tensor(v)) for v in values]


def set_gradients(ours, theirs, step, skip=()):
    for i, (p, q) in enumerate(zip(ours, theirs)):
        if i in skip:
            p.grad = q.grad = None
            continue
        grad = np.random.default_rng([step, i]).standard_normal(q.shape).astype(p.detach().numpy().dtype)
        p.grad, q.grad = Tensor(grad).contiguous(), torch.tensor(grad)


def compare(ours, theirs, tolerance):
    for p, q in zip(ours, theirs):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_pytorchs(case, dtype, tolerance):
    """Two groups, one with a rate of its own; one parameter has no gradient in some steps, so step
    counts part ways."""
    name, settings = CASES[case]
    ours, theirs = parameters(dtype)
    a = getattr(optim, name)([{"params": ours[:2]}, {"params": ours[2:], "lr": 0.02}], **settings)
    b = getattr(torch.optim, name)([{"params": theirs[:2]}, {"params": theirs[2:], "lr": 0.02}], **settings)
    for step in range(20):
        set_gradients(ours, theirs, step, skip=(1, 3) if step % 4 == 1 else ())
        a.step(), b.step()
    compare(ours, theirs, tolerance)


def test_a_parameter_without_gradient_keeps_still():
    ours, _ = parameters()
    before = ours[0].detach().numpy().copy()
    adam = optim.Adam(ours)
    adam.step()
    np.testing.assert_array_equal(ours[0].detach().numpy(), before)
    assert adam.state_dict()["state"] == {}


@pytest.mark.parametrize("case", ["sgd momentum", "adam", "adamw"])
def test_state_passes_both_ways(case):
    """Ours is loaded by PyTorch and PyTorch's by ours, in the middle of a run; both then go on alike."""
    name, settings = CASES[case]
    ours, theirs = parameters()
    a, b = getattr(optim, name)(ours, **settings), getattr(torch.optim, name)(theirs, **settings)
    for step in range(3):
        set_gradients(ours, theirs, step)
        a.step(), b.step()
    state = a.state_dict()
    assert list(state) == ["state", "param_groups"] and list(state["state"]) == [0, 1, 2, 3]
    assert list(state["state"][0]) == list(b.state_dict()["state"][0])
    as_torch = {"state": {i: {k: torch.tensor(np.asarray(v)) for k, v in values.items()}
                          for i, values in state["state"].items()}, "param_groups": state["param_groups"]}
    fresh_a, fresh_b = (getattr(module, name)(tensors, lr=1.0) for module, tensors in ((optim, ours), (torch.optim, theirs)))
    fresh_a.load_state_dict(b.state_dict())
    fresh_b.load_state_dict(as_torch)
    assert fresh_a.param_groups[0]["lr"] == settings["lr"]
    for step in range(3, 8):
        set_gradients(ours, theirs, step)
        fresh_a.step(), fresh_b.step()
    compare(ours, theirs, 2e-6)


def test_a_loaded_state_is_a_copy_and_exact():
    """Going on from a copied state gives the same bits as never having stopped."""
    (ours, theirs), (again, _) = parameters(), parameters()
    a, b = optim.Adam(ours), optim.Adam(again)
    for step in range(2):
        set_gradients(ours, theirs, step)
        a.step()
    for p, q in zip(again, ours):
        p.detach().copy_(q.detach())
    b.load_state_dict(a.state_dict())
    for step in range(2, 5):
        for tensors, optimizer in ((ours, a), (again, b)):
            set_gradients(tensors, theirs, step)
            optimizer.step()
    for p, q in zip(ours, again):
        np.testing.assert_array_equal(p.detach().numpy(), q.detach().numpy())


def test_bad_input():
    ours, _ = parameters()
    with pytest.raises(ValueError, match="no parameter"):
        optim.Adam([])
    with pytest.raises(ValueError, match="given twice"):
        optim.Adam([ours[0], ours[0]])
    with pytest.raises(TypeError, match="parameters are tensors"):
        optim.Adam([3])
    with pytest.raises(ValueError, match="only its inputs"):
        optim.Adam([ours[0] * 2])
    for settings in ({"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": -1e-8}, {"weight_decay": float("nan")}):
        with pytest.raises(ValueError, match=f"Adam: {list(settings)[0]}"):
            optim.Adam(ours, **settings)
    with pytest.raises(ValueError, match="nesterov"):
        optim.SGD(ours, nesterov=True)
    adam = optim.Adam(ours)
    with pytest.raises(ValueError, match=r"groups of \[1, 3\]"):
        adam.load_state_dict(optim.Adam([{"params": ours[:1]}, {"params": ours[1:]}]).state_dict())
    state = {"state": {0: {"step": 1, "exp_avg": np.zeros(3), "exp_avg_sq": np.zeros(3)}},
             "param_groups": adam.state_dict()["param_groups"]}
    with pytest.raises(ValueError, match=r"parameter 0: exp_avg has the shape \(3,\), its parameter \(3, 4, 3, 3\)"):
        adam.load_state_dict(state)


SCHEDULES = {
    "step": ("StepLR", {"step_size": 3, "gamma": 0.9}),
    "step of 1": ("StepLR", {"step_size": 1, "gamma": 0.9}),
    "cosine": ("CosineAnnealingLR", {"T_max": 7, "eta_min": 1e-7}),
    "cosine of 1": ("CosineAnnealingLR", {"T_max": 1}),
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_rates_are_pytorchs(case):
    """The same floats, with two groups, past the end of the period; also after a reload."""
    name, settings = SCHEDULES[case]
    ours, theirs = parameters()

    def both(rates):
        a = optim.SGD([{"params": ours[:2]}, {"params": ours[2:], "lr": rates[1]}], lr=rates[0])
        b = torch.optim.SGD([{"params": theirs[:2]}, {"params": theirs[2:], "lr": rates[1]}], lr=rates[0])
        return a, b, getattr(lr_scheduler, name)(a, **settings), getattr(torch.optim.lr_scheduler, name)(b, **settings)

    _, b, first, second = both((1e-4, 1e-5))
    seen = []
    for epoch in range(20):
        assert first.get_last_lr() == second.get_last_lr(), epoch
        seen.append(first.get_last_lr()[0])
        b.step(), first.step(), second.step()
        if epoch == 9:
            state, theirs_state = first.state_dict(), second.state_dict()
    assert min(seen) < 0.6 * max(seen)
    for given in (state, theirs_state):
        a, _, again, _ = both((1e-4, 1e-5))
        again.load_state_dict(given)
        for epoch in range(10, 20):
            assert again.get_last_lr()[0] == seen[epoch] == a.param_groups[0]["lr"]
            again.step()


@pytest.mark.parametrize("warmup", [0, 1, 12])
def test_warmup_and_cosine_are_lambda_lrs(warmup):
    """Fifty steps, ten past the end, two groups of different base rates; from the first step on, and after a reload."""
    ours, theirs = parameters()
    bases, low, total = (1e-3, 3e-2), 1e-5, 40

    def make():
        sgd = optim.SGD([{"params": ours[:2]}, {"params": ours[2:], "lr": bases[1]}], lr=bases[0])
        return sgd, lr_scheduler.WarmupCosine(sgd, warmup, total, eta_min=low)

    def factor(base):
        def at(t):
            if t < warmup:
                return (t + 1) / warmup
            part = min((t - warmup) / (total - warmup), 1)
            return (low + (base - low) * (1 + np.cos(np.pi * part)) / 2) / base
        return at

    b = torch.optim.SGD([{"params": theirs[:2]}, {"params": theirs[2:], "lr": bases[1]}], lr=bases[0])
    second = torch.optim.lr_scheduler.LambdaLR(b, [factor(base) for base in bases])
    a, first = make()
    seen, states = [], []
    for step in range(50):
        assert first.get_last_lr() == [group["lr"] for group in a.param_groups]
        np.testing.assert_allclose(first.get_last_lr(), second.get_last_lr(), rtol=1e-12, err_msg=str(step))
        seen.append(first.get_last_lr()), states.append((first.state_dict(), a.state_dict()))
        b.step(), first.step(), second.step()
    assert seen[max(warmup - 1, 0)] == list(bases) == [max(rates) for rates in zip(*seen)]
    assert seen[total - 1][0] > low and seen[total:] == [[low, low]] * (50 - total)
    for stop in (0, 5, 20, 45):
        again_a, again = make()
        again_a.load_state_dict(states[stop][1])
        again.load_state_dict(states[stop][0])
        for step in range(stop, 50):
            assert again.get_last_lr() == seen[step] == [group["lr"] for group in again_a.param_groups]
            again.step()


def test_states_of_another_schedule_are_refused():
    """Each is told what the given state lacks, and goes on as it was."""
    make = {"StepLR": lambda o: lr_scheduler.StepLR(o, 3), "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
            "WarmupCosine": lambda o: lr_scheduler.WarmupCosine(o, 3, 9)}
    for name, build in make.items():
        for other in make.keys() - {name}:
            ours, _ = parameters()
            schedule, given = build(optim.SGD(ours, lr=0.1)), make[other](optim.SGD(ours, lr=0.2))
            given.step()
            before = schedule.state_dict()
            with pytest.raises(ValueError, match=f"{name}: the given state has no .*it is not that of a {name}"):
                schedule.load_state_dict(given.state_dict())
            assert schedule.state_dict() == before


def test_schedules_refuse():
    ours, _ = parameters()
    sgd = optim.SGD(ours)
    with pytest.raises(ValueError, match="step_size is 0"):
        lr_scheduler.StepLR(sgd, 0)
    with pytest.raises(ValueError, match="T_max is 0"):
        lr_scheduler.CosineAnnealingLR(sgd, 0)
    with pytest.raises(ValueError, match="warmup_steps is 20 and total_steps 20"):
        lr_scheduler.WarmupCosine(sgd, 20, 20)
    with pytest.raises(ValueError, match="warmup_steps is -1"):
        lr_scheduler.WarmupCosine(sgd, -1, 20)
    state = lr_scheduler.StepLR(sgd, 1).state_dict()
    with pytest.raises(ValueError, match="has 2 groups"):
        lr_scheduler.StepLR(sgd, 1).load_state_dict(dict(state, base_lrs=[1, 2]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_unscale_divides_and_sees_what_is_not_finite(dtype):
    """Gradients under a scaled loss: multiplied in place; one infinite or NaN element anywhere is told."""
    arrays = [np.arange(6, dtype=dtype).reshape(2, 3), np.arange(5, dtype=dtype)]
    tensors = [_asen.from_numpy(a.copy()) for a in arrays]
    assert _asen.unscale(tensors, 0.25) is True
    for tensor, array in zip(tensors, arrays):
        np.testing.assert_array_equal(tensor.numpy(), array * 0.25)
    for bad in (np.inf, np.nan):
        tensors[1].numpy()[3] = bad
        assert _asen.unscale(tensors, 1.0) is False
