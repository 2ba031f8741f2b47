"""Modules and functions: values and gradients are PyTorch's, names and errors are as promised."""

import copy
import json
import pickle

import numpy as np
import pytest

from asenpp import _asen, basics, nn, randn, random
from asenpp._asen import Tensor
from asenpp.nn import functional as F
from asenpp.nn.fold import conv_bn


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")


@pytest.fixture(autouse=True)
def seeded():
    random.manual_seed(7)
    yield
    _asen.set_grad_enabled(True)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def no_grad(function, *args, **kwargs):
    before = _asen.set_grad_enabled(False)
    try:
        return function(*args, **kwargs)
    finally:
        _asen.set_grad_enabled(before)


def close(ours, theirs, tolerance=2e-5):
    theirs = theirs.detach().numpy()
    assert tuple(ours.shape) == theirs.shape
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


# -- layers against PyTorch ---------------------------------------------------------------------------

LAYERS = {
    "conv 3x3": (lambda n: n.Conv2d(3, 5, 3, padding=1), (2, 3, 9, 8)),
    "conv 7x7 stride 2": (lambda n: n.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), (2, 3, 17, 16)),
    "conv 1x1 stride 2": (lambda n: n.Conv2d(4, 6, 1, stride=2), (2, 4, 7, 7)),
    "conv groups": (lambda n: n.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 6)),
    "conv dilated": (lambda n: n.Conv2d(2, 3, (3, 1), dilation=2), (1, 2, 9, 9)),
    "batch norm": (lambda n: n.BatchNorm2d(5), (4, 5, 3, 3)),
    "linear": (lambda n: n.Linear(6, 4), (3, 6)),
    "linear without bias": (lambda n: n.Linear(6, 4, bias=False), (3, 6)),
    "linear of 3 dims": (lambda n: n.Linear(6, 4), (2, 5, 6)),
    "linear of 1 dim": (lambda n: n.Linear(6, 4), (6,)),
    "relu": (lambda n: n.ReLU(), (3, 4)),
    "tanh": (lambda n: n.Tanh(), (3, 4)),
    "sigmoid": (lambda n: n.Sigmoid(), (3, 4)),
    "softmax": (lambda n: n.Softmax(dim=1), (3, 4)),
    "max pool": (lambda n: n.MaxPool2d(3, 2, 1), (2, 3, 9, 8)),
    "max pool without stride": (lambda n: n.MaxPool2d(2), (2, 3, 8, 8)),
    "global average": (lambda n: n.AdaptiveAvgPool2d(1), (2, 3, 5, 4)),
    "identity": (lambda n: n.Identity(), (2, 3)),
    "sequence": (lambda n: n.Sequential(n.Conv2d(3, 4, 3, bias=False), n.BatchNorm2d(4), n.ReLU(), n.Flatten(), n.Linear(16, 2)),
                 (3, 3, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_pytorchs(torch, name):
    """Forward, input gradient, parameter gradients and buffers, with the same state dict in both."""
    make, shape = LAYERS[name]
    ours, theirs = make(nn), make(torch.nn)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    report = ours.load_state_dict(theirs.state_dict())
    assert report.missing == report.unexpected == [] and report.loaded == list(theirs.state_dict())
    x = Tensor(numbers(*shape)).requires_grad_()
    tx = torch.tensor(numbers(*shape), requires_grad=True)
    y, ty = ours(x), theirs(tx)
    close(y, ty)
    dy = numbers(*ty.shape, seed=1)
    y.backward(Tensor(dy))
    ty.backward(torch.tensor(dy))
    close(x.grad, tx.grad)
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters()):
        close(p.grad, q.grad), key
    for (key, b), c in zip(ours.named_buffers(), theirs.buffers()):
        close(b, c), key


def test_embedding(torch):
    ours, theirs = nn.Embedding(5, 3), torch.nn.Embedding(5, 3)
    ours.load_state_dict(theirs.state_dict())
    index = np.array([[4, 0], [4, 2]])
    y, ty = ours(index), theirs(torch.tensor(index))
    close(y, ty)
    (y * y).sum().backward()
    (ty * ty).sum().backward()
    close(ours.weight.grad, theirs.weight.grad)
    with pytest.raises(TypeError, match="integers are wanted"):
        ours([0.5])
    with pytest.raises((IndexError, ValueError)):
        ours([5])


def test_losses(torch):
    """Cross-entropy, cosine similarity and the ranking loss, values and gradients."""
    a, b, c = (numbers(4, 6, seed=s) for s in range(3))
    target = np.array([0, 5, 2, 2])

    def loss(n, f, tensors, labels, ones):
        x, p, q = tensors
        cosine = n.CosineSimilarity(dim=1)
        rank = n.MarginRankingLoss(0.2)(cosine(x, p), cosine(x, q), ones)
        return rank + n.CrossEntropyLoss()(x * 3, labels) + (f.normalize(p, dim=1) * q).sum()

    ours = [Tensor(v).requires_grad_() for v in (a, b, c)]
    theirs = [torch.tensor(v, requires_grad=True) for v in (a, b, c)]
    y = loss(nn, F, ours, target, 1)
    ty = loss(torch.nn, torch.nn.functional, theirs, torch.tensor(target), torch.ones(4))
    close(y, ty)
    y.backward(), ty.backward()
    for p, q in zip(ours, theirs):
        close(p.grad, q.grad)
    signs = np.array([1, -1, -1, 1], np.float32)
    close(F.margin_ranking_loss(Tensor(a[:, 0]), Tensor(b[:, 0]), Tensor(signs), 0.1),
          torch.nn.functional.margin_ranking_loss(*map(torch.tensor, (a[:, 0], b[:, 0], signs)), margin=0.1))


def test_fused_batch_norm_is_the_parts(torch):
    """Residual and ReLU in one pass give what they give apart, in both modes, gradients too."""
    for training in (True, False):
        ours, theirs = nn.BatchNorm2d(5), torch.nn.BatchNorm2d(5)
        ours.train(training), theirs.train(training)
        x, r = Tensor(numbers(4, 5, 3, 3)).requires_grad_(), Tensor(numbers(4, 5, 3, 3, seed=1)).requires_grad_()
        tx, tr = (torch.tensor(v.detach().numpy().copy(), requires_grad=True) for v in (x, r))
        y, ty = ours(x, residual=r, relu=True), torch.relu(theirs(tx) + tr)
        close(y, ty)
        (y * y).sum().backward(), (ty * ty).sum().backward()
        for p, q in ((x.grad, tx.grad), (r.grad, tr.grad), (ours.weight.grad, theirs.weight.grad)):
            close(p, q, 1e-4)


def test_batch_norm_groups_are_passes(torch):
    """One batch in three groups is three passes: outputs, running statistics, counter."""
    ours, theirs = nn.BatchNorm2d(5), torch.nn.BatchNorm2d(5)
    x = numbers(6, 5, 4, 4)
    y = ours(Tensor(x), groups=3)
    ty = torch.cat([theirs(torch.tensor(part)) for part in np.split(x, 3)])
    close(y, ty)
    for b, c in zip(ours.buffers(), theirs.buffers()):
        close(b, c)
    assert int(ours.num_batches_tracked) == 3


@pytest.mark.parametrize("size, groups", [((0, 5, 4, 4), 1), ((0, 5, 4, 4), 3), ((2, 5, 0, 4), 1), ((1, 5, 1, 1), 1),
                                          ((3, 5, 1, 1), 3)])
def test_batch_norm_without_statistics_is_refused(size, groups):
    """A training batch that has no variance spoils nothing: not the running statistics, not their counter. In
    evaluation it passes."""
    bn = nn.BatchNorm2d(5)
    bn(Tensor(numbers(4, 5, 3, 3)))
    before = [b.numpy().copy() for b in bn.buffers()]
    with pytest.raises(ValueError, match="(no|one) value a channel and group: training needs more"):
        bn(Tensor(np.zeros(size, np.float32)), groups=groups)
    for b, values in zip(bn.buffers(), before):
        assert np.array_equal(b.numpy(), values)
    bn.eval()
    assert bn(Tensor(np.zeros(size, np.float32))).shape == size


@pytest.mark.parametrize("bias", [False, True])
def test_folded_batch_norm(bias):
    """Folding changes nothing, and follows every change of weights or statistics."""
    conv, bn = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=bias), nn.BatchNorm2d(6)
    x, r = Tensor(numbers(3, 4, 8, 8)), Tensor(numbers(3, 6, 4, 4, seed=2))

    def check():
        cases = [(True, None), (True, r), (False, r), (False, None)]
        folded = [no_grad(conv_bn, conv, bn, x, relu, residual).numpy() for relu, residual in cases]
        for (relu, residual), got in zip(cases, folded):
            np.testing.assert_allclose(got, conv_bn(conv, bn, x, relu, residual).detach().numpy(), rtol=1e-5, atol=1e-5)
        no_grad(conv_bn, conv, bn, x)  # the other path drops folded weights: they shall lie there at the next change
        assert "_folded" in bn.__dict__
        return folded[-1]

    def running_pass():
        bn.training = True
        bn(conv(x))
        bn.training = False

    def fill():
        bn.running_var.fill_(4.0)
        bn.weight.detach().copy_(numbers(6, seed=3))

    conv.eval(), bn.eval()
    before = check()
    for change in (running_pass, fill, lambda: conv.weight.detach().copy_(numbers(6, 4, 3, 3, seed=4)),
                   lambda: bn.load_state_dict({"bias": np.ones(6)}, strict=False)):
        change()
        after = check()
        assert np.abs(after - before).max() > 1e-3
        before = after


def test_folded_weights_are_made_once():
    conv, bn = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
    conv.eval(), bn.eval()
    x = Tensor(numbers(1, 4, 8, 8)).contiguous()
    no_grad(conv_bn, conv, bn, x)
    _asen.dispatch_counts(True)
    no_grad(conv_bn, conv, bn, x)
    assert list(_asen.dispatch_counts()) == ["conv2d_fused"]


# -- dropout and random numbers -----------------------------------------------------------------------

def test_dropout():
    """About p are zero, the others scaled; the gradient has the same mask; evaluation passes through."""
    layer = nn.Dropout(0.25)
    x = Tensor(np.ones((100, 100), np.float32)).requires_grad_()
    y = layer(x)
    y.sum().backward()
    values = y.detach().numpy()
    assert set(np.unique(values)) == {np.float32(0), np.float32(1) / np.float32(0.75)}
    assert abs((values == 0).mean() - 0.25) < 0.02
    np.testing.assert_array_equal(x.grad.numpy(), values)
    assert not np.array_equal(layer(x).detach().numpy(), values)
    assert layer.eval()(x) is x
    with pytest.raises(ValueError, match="p is 1.5"):
        nn.Dropout(1.5)


def test_seeds_and_states():
    """The same seed gives the same weights and masks; a state survives JSON and is taken up exactly."""
    def draw():
        return [nn.Linear(5, 4).weight.detach().numpy().copy(), F.dropout(Tensor(np.ones(64, np.float32))).numpy().copy()]

    random.manual_seed(3)
    first = draw()
    state = json.loads(json.dumps(random.get_state()))
    second = draw()
    random.manual_seed(3)
    for a, b in zip(first, draw()):
        np.testing.assert_array_equal(a, b)
    random.set_state(state)
    for a, b in zip(second, draw()):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], second[0])
    for bad in ({}, {"bit_generator": "PCG64"}, "seed"):
        with pytest.raises(ValueError, match="not the state"):
            random.set_state(bad)
    with pytest.raises(ValueError, match="a seed is an int"):
        random.manual_seed(-1)


def test_initial_weights():
    """U(+-1/sqrt(fan_in)) for convolutions, linear layers and their biases; N(0, 1) for tables."""
    for layer, fan_in in ((nn.Conv2d(32, 64, 3), 288), (nn.Linear(300, 400), 300)):
        for tensor in layer.parameters():
            values, bound = tensor.detach().numpy(), fan_in ** -0.5
            assert 0.9 * bound < np.abs(values).max() <= bound * 1.0001
            if values.size > 1000:
                assert abs(values.std() * 3**0.5 / bound - 1) < 0.02 and abs(values.mean()) < 0.02 * bound
    table = nn.Embedding(100, 200).weight.detach().numpy()
    assert abs(table.std() - 1) < 0.03 and abs(table.mean()) < 0.03


# -- the tree of modules ------------------------------------------------------------------------------

class Twin(nn.Module):
    """Two names for one layer, a buffer, and a layer of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first
        self.parts = nn.ModuleDict({"norm": nn.BatchNorm2d(3), "list": nn.ModuleList([nn.Linear(3, 2, bias=False)])})
        self.register_buffer("count", Tensor(np.zeros(2, np.float32)))


def test_names_and_sharing():
    twin = Twin()
    assert list(twin.state_dict()) == [
        "count", "first.weight", "first.bias", "second.weight", "second.bias", "parts.norm.weight", "parts.norm.bias",
        "parts.norm.running_mean", "parts.norm.running_var", "parts.norm.num_batches_tracked", "parts.list.0.weight"]
    assert [name for name, _ in twin.named_parameters()] == [
        "first.weight", "first.bias", "parts.norm.weight", "parts.norm.bias", "parts.list.0.weight"]
    assert twin.state_dict()["parts.norm.num_batches_tracked"].dtype == "int64"
    assert [name for name, _ in twin.named_modules()] == ["", "first", "parts", "parts.norm", "parts.list",
                                                          "parts.list.0"]
    twin.to("float64")
    assert twin.first is twin.second and twin.first.weight.dtype == "float64"
    assert twin.parts["norm"].num_batches_tracked.dtype == "int64" and twin.count.dtype == "float64"
    assert twin.first.weight.requires_grad and isinstance(twin.first.weight, nn.Parameter)
    assert not twin.eval().parts["norm"].training and twin.train().parts["norm"].training
    seen = []
    twin.apply(seen.append)
    assert seen[-1] is twin and len(seen) == 6  # the shared one once, as in PyTorch
    assert "in_features" not in repr(twin) and "Linear(3, 3, bias=True)" in repr(twin)
    with pytest.raises(KeyError, match="no module 'x'.*norm, list"):
        twin.parts["x"]
    with pytest.raises(AttributeError, match="Twin has no attribute 'third'"):
        twin.third
    with pytest.raises(TypeError, match="is registered"):
        twin.first = 3
    with pytest.raises(ValueError, match="int64"):
        twin.to(dtype="int64")


def test_assignment_before_init_is_an_error():
    class Hasty(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(2, 2)

    with pytest.raises(AttributeError, match="super"):
        Hasty()


def test_state_round_trip():
    """Values survive, the given arrays stay apart from the module, float64 is converted."""
    source, target = Twin(), Twin()
    state = {name: tensor.numpy().astype(np.float64) if tensor.dtype == "float32" else tensor.numpy()
             for name, tensor in source.state_dict().items()}
    target.load_state_dict(state)
    for name, tensor in target.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), source.state_dict()[name].numpy())
        assert tensor.dtype == source.state_dict()[name].dtype
    state["first.weight"][:] = 0
    assert np.abs(target.first.weight.detach().numpy()).max() > 0


def test_loading_errors_change_nothing():
    twin = Twin()
    before = {name: tensor.numpy().copy() for name, tensor in twin.state_dict().items()}
    state = {name: np.ones_like(value) for name, value in before.items()}
    wrong = dict(state, **{"first.weight": np.ones((3, 4))})
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"first.weight: the model has \(3, 3\), the given state \(3, 4\)"):
            twin.load_state_dict(wrong, strict)
    with pytest.raises(ValueError, match="first.bias"):
        twin.load_state_dict(dict(state, **{"first.bias": np.float32(1)}))
    with pytest.raises(KeyError, match="missing: count; unexpected: extra"):
        twin.load_state_dict({**{k: v for k, v in state.items() if k != "count"}, "extra": np.ones(1)})
    for name, tensor in twin.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name])
    report = twin.load_state_dict({"count": np.ones(2), "extra": np.ones(1)}, strict=False)
    assert report.loaded == ["count"] and report.unexpected == ["extra"] and len(report.missing) == 10
    without_counter = {k: v for k, v in state.items() if "num_batches" not in k}
    assert twin.load_state_dict(without_counter).missing == ["parts.norm.num_batches_tracked"]


def test_gradients_are_forgotten():
    layer = nn.Linear(3, 2)
    layer(Tensor(numbers(4, 3))).sum().backward()
    assert layer.weight.grad is not None
    layer.zero_grad()
    assert layer.weight.grad is None
    layer.requires_grad_(False)
    assert not layer(Tensor(numbers(4, 3))).requires_grad


def test_what_is_not_built_says_so():
    x = Tensor(numbers(2, 3, 4, 4))
    with pytest.raises(ValueError, match="output_size must be 1"):
        F.adaptive_avg_pool2d(x, 2)
    with pytest.raises(ValueError, match="output_size must be 1"):
        nn.AdaptiveAvgPool2d(7)
    with pytest.raises(ValueError, match="norm: p is 'nuc'"):
        F.normalize(x, p="nuc")
    with pytest.raises(ValueError, match="eps is 0"):
        F.cosine_similarity(x, x, eps=0.0)
    with pytest.raises(NotImplementedError, match=r"float16: convert it first, as with \.float\(\)"):
        x.half() + 1
    with pytest.raises(ValueError, match="groups"):
        nn.Conv2d(3, 4, 3, groups=2)
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        nn.Module()(x)


def test_hooks_are_called_where_modules_are_folded():
    """In evaluation without gradients a convolution and its batch norm run as one, unless one of them has a hook."""
    conv, bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval()
    x = randn(2, 3, 5, 5)
    seen = []
    with basics.no_grad():
        folded = conv_bn(conv, bn, x)
        assert "_folded" in bn.__dict__
        for module in (conv, bn):
            with module.register_forward_hook(lambda m, args, y: seen.append(type(m).__name__)):
                np.testing.assert_allclose(conv_bn(conv, bn, x).numpy(), folded.numpy(), rtol=1e-5, atol=1e-6)
        conv_bn(conv, bn, x)
    assert seen == ["Conv2d", "BatchNorm2d"]


def test_a_model_is_copied_and_pickled_whole():
    """A ResNet after a step in evaluation: same outputs, its own weights, which the original's changes do not reach."""
    from asenpp.models import resnet18

    model = resnet18().eval()
    x = randn(1, 3, 32, 32)
    with basics.no_grad():
        before = model(x)
        twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        model.conv1.weight.fill_(0.0)
        for twin in twins:
            for ours, theirs in zip(twin(x) if isinstance(before, tuple) else [twin(x)], before if isinstance(before, tuple) else [before]):
                np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
            assert not twin.training and twin.conv1.weight.requires_grad
            assert [n for n, _ in twin.named_parameters()] == [n for n, _ in model.named_parameters()]
