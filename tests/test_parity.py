"""Every model against PyTorch with the same weights: outputs, losses, all gradients, running statistics.

In float64 on the reference kernels the mathematics is held to 1e-10. In float32 the kernels that ship are
held to PyTorch's float64, relative and by norms: gradients to 1e-4, the rest to 1e-5; in training, where
batch norm amplifies rounding, at most to twice what PyTorch's own float32 misses, where that is more.
The weights are such that no ReLU's input is so near 0 that rounding decides it (torch_models.away_from_kinks
says why). PyTorch makes three passes a step, ours one batch in three groups. No dropout: its masks differ.
"""

import numpy as np
import pytest

from asenpp import _asen, models
from asenpp._asen import Tensor
import parity_kit as kit

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
import torch_models as tm  # noqa: E402 - it needs PyTorch
from parity_torch import settled, settled_model, torch_model, torch_results, twin  # noqa: E402

EXACT, OUTPUT, GRADIENT = 1e-10, 1e-5, 1e-4


@pytest.fixture(autouse=True)
def all_paths():
    yield
    _asen.set_kernel_paths("all")


def worst(results, exact, kind):
    return max((value, what) for what, value in kit.apart(results, exact, kind).items())


def compare(name, ours, exact, dtype, single=None):
    """exact, single: PyTorch's results in float64, and in float32 where those may set the limit."""
    print(f"\n{name}, {dtype}:", end="")
    for kind in sorted({what.split()[0] for what in exact}):
        limit = EXACT if dtype == "float64" else GRADIENT if kind == "gradient" else OUTPUT
        found, theirs = worst(ours, exact, kind), single and worst(single, exact, kind)[0]
        print(f" {kind} {found[0]:.1e}" + (f" (PyTorch {theirs:.1e})" if theirs else ""), end="")
        assert found[0] < max(limit, 2 * (theirs or 0)), found


def mode(training):
    return "training" if training else "inference"


def both_dtypes(test):
    return pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])(
        pytest.mark.parametrize("dtype", ["float64", "float32"])(test))


# -- backbones ----------------------------------------------------------------------------------------

def backbone_results(model, x, dy, make):
    """Either side: the feature map of layer3, the average of layer4, and gradients of a combination."""
    leaf = make(x)
    leaf.requires_grad_()
    features = model(leaf)
    average = (model.layer4_average if hasattr(model, "layer4_average") else model.average)(features)
    ((features * make(dy[0])).sum() + (average * make(dy[1])).sum()).backward()
    return kit.gathered(model) | {"gradient of x": kit.array(leaf.grad), "output features": kit.array(features),
                                            "output average": kit.array(average)}


@both_dtypes
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_resnet(name, dtype, training):
    """conv1 to layer4, at odd sizes. In float32 larger: batch norm over a handful of values is ill-conditioned."""
    count, size, left = (2, 33, 3) if dtype == "float64" else (4, 65, 5)
    if dtype == "float64":
        _asen.set_kernel_paths("reference")
    ours = getattr(models, name)(layer4=True)
    x = kit.draw("x", (count, 3, size, size))
    dy = [kit.draw("dy", shape) for shape in ((count, models.resnet.LAYER3_WIDTH[name], left, left),
                                              (count, models.resnet.LAYER4_WIDTH[name]))]

    def make():
        return tm.ResNet(name, layer4=True)

    state = settled(make, kit.seeded_state(ours), training, lambda model: model.average(model(torch.tensor(x).double())))
    ours.load_state_dict(state)
    ours.to(dtype).train(training)
    mine = backbone_results(ours, x, dy, lambda a: Tensor(a.astype(dtype)))
    exact, single = (backbone_results(twin(make, state, t, training), x, dy, lambda a: torch.tensor(a).to(getattr(torch, t)))
                     for t in ("float64", "float32"))
    compare(f"{name} {mode(training)}", mine, exact, dtype, single if training and dtype == "float32" else None)


# -- attention ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_attention(dtype, count):
    """Embedding, map and gradients, those of the inputs too."""
    if dtype == "float64":
        _asen.set_kernel_paths("reference")
    sizes = (24, 64, 32, 2, 48)
    ours = models.AttributeAttention(*sizes)
    x, a, dy, dm = (kit.draw(what, shape) for what, shape in (
        ("x", (count, 64, 7, 5)), ("a", (count, 24)), ("dy", (count, 48)), ("dm", (count, 7, 5))))

    def make():
        return tm.Attention(*sizes)

    state = settled(make, kit.seeded_state(ours), True, lambda model: model(torch.tensor(x).double(), torch.tensor(a).double()))
    ours.load_state_dict(state)
    results = []
    for model, to in ((ours.to(dtype), lambda v: Tensor(v.astype(dtype))), (twin(make, state), lambda v: torch.tensor(v).double())):
        leaves = [to(x), to(a)]
        for leaf in leaves:
            leaf.requires_grad_()
        y, m = model(*leaves)
        loss = (y * to(dy)).sum() + (m * to(dm)).sum()
        loss.backward()
        results.append(kit.gathered(model) | {"output embedding": kit.array(y), "output map": kit.array(m)}
                       | {f"gradient of {n}": kit.array(leaf.grad) for n, leaf in zip("xa", leaves)})
    compare(f"attention, batch {count}", *results, dtype)


# -- whole models -------------------------------------------------------------------------------------

@both_dtypes
@pytest.mark.parametrize("kind", kit.MODELS)
def test_model(kind, dtype, training):
    """A step's losses, embeddings, maps, gradients of every parameter, running statistics of three passes."""
    if dtype == "float64":
        _asen.set_kernel_paths("reference")
    cfg = kit.config(kind)
    given = kit.batch(2, 40, seed=3, attributes=1 if "Style" in kind else 2)
    state = settled_model(cfg, given, training)
    assert list(state) == list(torch_model(cfg).state_dict())
    ours = kit.our_results(cfg, state, given, dtype, training)
    exact, single = (torch_results(cfg, state, given, t, training) for t in ("float64", "float32"))
    compare(f"{kind} {mode(training)}", ours, exact, dtype, single if training and dtype == "float32" else None)
    assert training == bool(np.any(ours["buffer " + next(n for n in state if n.endswith("num_batches_tracked"))] == 3))


def test_the_comparison_can_fail():
    """One value of one gradient off by a thousandth of its norm is seen; so is a statistic that moved once too often."""
    cfg, given = kit.config("ASEN global"), kit.batch(2, 32, seed=3)
    state = settled_model(cfg, given, True)
    ours, theirs = (make(cfg, state, given) for make in (kit.our_results, torch_results))
    compare("as they are", ours, theirs, "float32")
    for what in ("gradient choices.global.basenet.layer2.0.bn1.weight", "buffer choices.global.basenet.bn1.num_batches_tracked"):
        wrong = ours[what].copy()
        wrong.reshape(-1)[0] += 1e-3 * kit.norm(wrong)
        with pytest.raises(AssertionError):
            compare("perturbed", ours | {what: wrong}, theirs, "float32")
