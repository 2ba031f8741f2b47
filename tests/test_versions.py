"""One version a storage: whoever writes moves it after the write, and whatever is kept of the values (packed filters,
folded weights, saved tensors) is kept under it."""

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest

import asenpp
from asenpp import _asen, nn, optim
from asenpp._asen import Tensor
from asenpp.nn import functional as F
from asenpp.nn.fold import conv_bn


def owned(array):
    """A tensor of our own memory."""
    return _asen.from_numpy(np.ascontiguousarray(array)).clone()


def values(tensor):
    """A copy that lends nothing."""
    return np.array(tensor.detach().tolist())


# -- the number ----------------------------------------------------------------------------------

def statistics_move(t):
    F.batch_norm(owned(np.ones((4, 6, 2, 2), np.float32)), t, owned(np.ones(6, np.float32)), owned(np.ones(6, np.float32)),
                 owned(np.zeros(6, np.float32)), True, 0.1, 1e-5)


WRITES = {
    "fill_": lambda t: t.fill_(2.0),
    "zero_": lambda t: t.zero_(),
    "copy_": lambda t: t.copy_(t * 2.0),
    "copy_ of an array": lambda t: t.copy_(np.ones(6, np.float32)),
    "a slice's fill_": lambda t: t[2:3].fill_(1.0),
    "a reshaped view's zero_": lambda t: t.reshape(2, 3).zero_(),
    "a transposed view's copy_": lambda t: t.reshape(2, 3).t().copy_(np.ones((3, 2), np.float32)),
    "an alias's fill_": lambda t: t.detach().fill_(3.0),
    "an optimizer's step": lambda t: _asen.optim_step("sgd", [t], [owned(np.ones(6, np.float32))], None, None, 1, 0.1),
    "an optimizer's state": lambda t: _asen.optim_step("sgd", [owned(np.ones(6, np.float32))],
                                                       [owned(np.ones(6, np.float32))], [t], None, 2, 0.1, momentum=0.9),
    "unscale": lambda t: _asen.unscale([t], 0.5),
    "running statistics": statistics_move,
    "a NumPy view": lambda t: t.numpy().fill(4.0),
    "a DLPack view": lambda t: np.from_dlpack(t),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_every_write_moves_the_version_of_all_views(write):
    t = owned(np.arange(6, dtype=np.float32))
    views = [t, t.detach(), t[1:], t.reshape(3, 2), t.reshape(2, 3).t(), t.detach().unsqueeze(0).expand(4, 6)]
    before = t._version
    assert {v._version for v in views} == {before}
    write(t)
    after = t._version
    assert after > before and {v._version for v in views} == {after}
    assert t.clone()._version == t.clone()._version  # a copy counts for itself
    t.clone().zero_()
    assert t._version == after


@pytest.mark.parametrize("read", [lambda t: t * 2.0, lambda t: t.sum().item(), lambda t: t.tolist(), repr, lambda t: t.clone(),
                                  lambda t: _asen.to_numpy_readonly(t).sum(), lambda t: np.array(t, copy=True),
                                  lambda t: asenpp.tensor(t), lambda t: float(t[0]), lambda t: list(t)],
                         ids=["op", "item", "tolist", "repr", "clone", "read-only array", "np.array", "tensor()", "float", "rows"])
def test_reading_is_no_write(read):
    t = owned(np.arange(6, dtype=np.float32))
    before = t._version
    read(t)
    assert t._version == before and _asen.edition(t) is not None


def test_a_write_that_fails_half_way_counts():
    """The values may be the old ones, the new ones or both: nothing that was kept can be trusted."""
    t, other = owned(np.ones(6, np.float32)), owned(np.ones(4, np.float32))
    before = t._version
    with pytest.raises(Exception):
        t.copy_(other)                      # refused before anything is written
    assert t._version == before
    np.testing.assert_array_equal(values(t), np.ones(6))


def test_loading_moves_the_version():
    net = nn.Linear(3, 2)
    alias = net.state_dict()["weight"]
    before = alias._version
    net.load_state_dict({"weight": np.ones((2, 3)), "bias": np.zeros(2)})
    assert alias._version > before and net.weight._version == alias._version
    np.testing.assert_array_equal(values(net.weight), np.ones((2, 3)))


def test_loading_copies():
    """The array that was loaded may be used again."""
    array = np.ones((2, 3), np.float32)
    net = nn.Linear(3, 2)
    net.load_state_dict({"weight": array, "bias": np.zeros(2, np.float32)})
    array[:] = 7
    np.testing.assert_array_equal(values(net.weight), np.ones((2, 3)))


# -- exports -------------------------------------------------------------------------------------

EXPORTS = {"numpy": lambda t: t.numpy(), "__array__": np.asarray, "a view of the array": lambda t: t.numpy()[1:].reshape(-1)[::2],
           "an unused capsule": lambda t: t.__dlpack__(), "NumPy's from_dlpack": np.from_dlpack,
           "a memoryview": lambda t: memoryview(t.numpy())}


@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS.keys())
def test_an_export_counts_until_its_last_view_is_gone(export):
    t = owned(np.arange(6, dtype=np.float32))
    first = _asen.edition(t)
    assert first is not None and _asen.edition(t) == first
    view, second = export(t), export(t.detach()[0:4])
    assert _asen.edition(t) is None
    del view
    gc.collect()
    assert _asen.edition(t) is None, "one more is out"
    del second
    gc.collect()
    last = _asen.edition(t)
    assert last is not None and last != first, "what was written there is not known"
    assert _asen.edition(t) == last


@pytest.mark.parametrize("lend", [lambda t: _asen.from_dlpack(t.__dlpack__()), lambda t: _asen.from_numpy(t.numpy()),
                                  lambda t: _asen.from_numpy(t.numpy()[1:])], ids=["DLPack", "numpy", "a part"])
def test_memory_that_was_lent_to_ourselves_is_no_export(lend):
    """What comes back is the same storage: its writes are known."""
    t = owned(np.arange(6, dtype=np.float32))
    back = lend(t)
    gc.collect()
    before = _asen.edition(t)
    assert before is not None and back._version == t._version
    back.fill_(3.0)
    assert back._version == t._version and _asen.edition(t) not in (None, before)
    assert t.tolist()[1:] == [3.0] * 5


def test_the_memory_outlives_the_tensor_while_it_is_lent():
    t = owned(np.arange(6, dtype=np.float32))
    view = t.numpy()[2:]
    del t
    gc.collect()
    others = [owned(np.full(6, 9.0, np.float32)) for _ in range(8)]
    np.testing.assert_array_equal(view, [2, 3, 4, 5])
    del others


def test_a_read_only_array_cannot_be_made_writable():
    array = _asen.to_numpy_readonly(owned(np.arange(6, dtype=np.float32)))
    np.testing.assert_array_equal(array, np.arange(6))
    with pytest.raises(ValueError):
        array[0] = 1
    with pytest.raises(ValueError):
        array.flags.writeable = True


def test_saving_lends_nothing(tmp_path):
    """Weights that were saved are trusted as before."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    tensors = [*net.parameters(), *net.buffers()]
    before = [t._version for t in tensors]
    asenpp.save(net.state_dict(), tmp_path / "x")
    asenpp.save({k: v for k, v in net.state_dict().items()}, tmp_path / "x.safetensors")
    assert [t._version for t in tensors] == before
    assert _asen.edition(*tensors) is not None


def test_foreign_memory_is_never_trusted():
    """Its owner may write at any time."""
    array = np.arange(6, dtype=np.float32)
    assert _asen.edition(_asen.from_numpy(array)) is None
    assert _asen.edition(_asen.from_dlpack(array)) is None
    assert _asen.edition(_asen.owned(array)) is not None
    assert _asen.edition(Tensor([1.0, 2.0])) is not None, "an array that nobody else has"
    assert _asen.edition(asenpp.zeros(3)) is not None and _asen.edition(asenpp.tensor(array)) is not None


def test_an_array_that_a_weak_reference_reaches_is_foreign():
    """The array that __array__ made is nobody else's, except where it left a weak reference behind."""
    class Source:
        def __init__(self, remember):
            self.remember = remember

        def __array__(self, dtype=None, copy=None):
            array = np.zeros(3, np.float32)
            self.seen = weakref.ref(array) if self.remember else None
            return array

    source = Source(True)
    tensor = Tensor(source)
    assert _asen.edition(tensor) is None
    source.seen()[:] = 1
    assert tensor.tolist() == [1, 1, 1]
    assert _asen.edition(Tensor(Source(False))) is not None


def test_parameters_own_their_memory():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for kind in (nn.Parameter, nn.parameter.Buffer):
        for data in (array, _asen.from_numpy(array), _asen.from_dlpack(array), array.T.copy().T):
            p = kind(data)
            assert _asen.edition(p) is not None and p.is_contiguous()
            p.detach().fill_(1.0)
            np.testing.assert_array_equal(array, np.arange(6).reshape(2, 3))
    t = owned(array)
    assert nn.Parameter(t)._memory == t._memory  # a tensor's own memory is shared, as in PyTorch


def test_editions_tell_tensors_apart():
    t = owned(np.arange(6, dtype=np.float32))
    seen = [_asen.edition(t), _asen.edition(t[1:]), _asen.edition(t.reshape(2, 3)), _asen.edition(t.reshape(2, 3).t()),
            _asen.edition(t, None), _asen.edition(None, t), _asen.edition(t, t), _asen.edition(t.clone())]
    assert None not in seen and len(set(seen)) == len(seen)
    assert _asen.edition(t.detach()) == seen[0] and _asen.edition() == b""
    with pytest.raises(TypeError):
        _asen.edition(1.0)


# -- packed filters ------------------------------------------------------------------------------

def convolution():
    rng = np.random.default_rng(0)
    return (owned(rng.standard_normal((1, 16, 9, 9)).astype(np.float32)),
            owned(rng.standard_normal((32, 16, 3, 3)).astype(np.float32)))


def packs(run):
    before = _asen.packed_filters()
    run()
    return _asen.packed_filters() - before


def filters_are_packed():
    return packs(lambda: _asen.conv2d(*convolution())) > 0


def test_a_filter_is_packed_once_until_it_is_written():
    if not filters_are_packed():
        pytest.skip("convolutions take filters as they lie here")
    x, w = convolution()

    def run():
        return _asen.conv2d(x, w)

    run()
    assert packs(run) == 0
    w.fill_(0.5)
    assert packs(run) == 1 and packs(run) == 0
    view = w.numpy()
    assert packs(run) == 1 and packs(run) == 1, "while it may be written, it is packed at every call"
    view[0] = 3
    del view
    assert packs(run) == 1 and packs(run) == 0
    np.testing.assert_array_equal(run().tolist(), _asen.conv2d(x, w.clone()).tolist())


def test_saved_and_printed_filters_stay_packed(tmp_path):
    if not filters_are_packed():
        pytest.skip("convolutions take filters as they lie here")
    x, w = convolution()
    p = nn.Parameter(w)
    _asen.conv2d(x, p)
    asenpp.save({"w": p}, tmp_path / "x")
    repr(p), p.tolist(), np.array(p.detach(), copy=True), asenpp.tensor(p)
    assert packs(lambda: _asen.conv2d(x, p)) == 0


def test_writes_through_lent_memory_count_at_once():
    torch = pytest.importorskip("torch")
    x, w = convolution()
    _asen.conv2d(x, w)
    for view in (w.numpy(), torch.from_dlpack(w), np.asarray(w), _asen.from_dlpack(w.__dlpack__()).numpy()):
        view[:] = view * 0.5 + 1
        np.testing.assert_array_equal(_asen.conv2d(x, w).tolist(), _asen.conv2d(x, w.clone()).tolist())
        view[0, 0] = -1
        del view
        np.testing.assert_array_equal(_asen.conv2d(x, w).tolist(), _asen.conv2d(x, w.clone()).tolist())


def test_a_filter_packed_during_a_write_is_packed_again():
    """Another thread convolves while the optimizer writes: whatever it saw is not kept. (With the version moved before
    the write, every other round was wrong for good.)"""
    rng = np.random.default_rng(0)
    w = owned(rng.standard_normal((256, 256, 3, 3)).astype(np.float32))
    grad, x = owned(np.ones(w.shape, np.float32)), owned(rng.standard_normal((1, 256, 3, 3)).astype(np.float32))
    _asen.conv2d(x, w, padding=1)
    for number in range(40):
        go = threading.Barrier(2)

        def convolve():
            go.wait()
            for _ in range(1 + number % 3):
                _asen.conv2d(x, w, padding=1)

        thread = threading.Thread(target=convolve)
        thread.start()
        go.wait()
        _asen.optim_step("sgd", [w], [grad], None, None, 1, 0.01)
        thread.join()
        assert np.array_equal(_asen.conv2d(x, w, padding=1).numpy(), _asen.conv2d(x, w.clone(), padding=1).numpy()), \
            f"round {number}"


# -- folded weights --------------------------------------------------------------------------------

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return conv_bn(self.conv, self.bn, x, relu=True)


def prepared():
    rng = np.random.default_rng(1)
    net = Net().eval()
    for tensor in (*net.parameters(), net.bn.running_mean, net.bn.running_var):
        tensor.detach().copy_(rng.uniform(0.5, 1.5, tensor.shape).astype(np.float32))
    return net, owned(rng.standard_normal((2, 3, 6, 6)).astype(np.float32))


def folded(net, x):
    with asenpp.no_grad():
        return values(net(x))


def unfolded(net, x):
    """The two layers one after the other."""
    return values(net(x))


TENSORS = ["conv.weight", "conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
MEANS = {
    "state_dict": lambda net, t, name: net.state_dict()[name].fill_(2.0),
    "detach": lambda net, t, name: t.detach().copy_(t.detach() * 3.0),
    "no_grad": lambda net, t, name: asenpp.no_grad()(t.zero_)(),
    "a view": lambda net, t, name: t.detach()[:2].fill_(0.25),
    "NumPy": lambda net, t, name: t.detach().numpy().fill(1.5),
    "optim": lambda net, t, name: _asen.optim_step("sgd", [t], [t.detach().clone()], None, None, 1, 0.5),
    "load": lambda net, t, name: net.load_state_dict({**net.state_dict(), name: np.full(t.shape, 0.75)}),
    "unscale": lambda net, t, name: _asen.unscale([t], 0.5),
    "another object": lambda net, t, name: setattr(getattr(net, name.split(".")[0]), name.split(".")[1], type(t)(t.detach() * 2.0)),
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("write", MEANS.values(), ids=MEANS.keys())
def test_folded_weights_follow_every_write(write, name):
    net, x = prepared()
    before = folded(net, x)
    np.testing.assert_allclose(before, unfolded(net, x), rtol=1e-4, atol=1e-5)
    before = folded(net, x)
    module, attribute = name.split(".")
    write(net, getattr(getattr(net, module), attribute), name)
    after = folded(net, x)
    np.testing.assert_allclose(after, unfolded(net, x), rtol=1e-4, atol=1e-5)
    assert not np.array_equal(before, after)


def test_folded_weights_follow_a_live_numpy_view():
    net, x = prepared()
    folded(net, x)
    view = net.conv.weight.detach().numpy()
    for value in (0.5, 2.0, 1.0):
        view[:] = value
        np.testing.assert_allclose(folded(net, x), unfolded(net, x), rtol=1e-4, atol=1e-5)


def test_folded_weights_follow_eps_and_running_statistics():
    net, x = prepared()
    first = folded(net, x)
    net.bn.eps = 0.5
    second = folded(net, x)
    assert not np.array_equal(first, second)
    net.train()
    net(x)
    net.eval()
    third = folded(net, x)
    assert not np.array_equal(second, third)
    np.testing.assert_allclose(third, unfolded(net, x), rtol=1e-4, atol=1e-5)


def test_folded_weights_are_kept_while_nothing_is_written(tmp_path):
    """One object, call after call; also after saving, printing, and changes of other modules."""
    net, x = prepared()
    folded(net, x)
    kept = net.bn.__dict__["_folded"].result
    asenpp.save(net.state_dict(), tmp_path / "x")
    repr(net.conv.weight)
    nn.Linear(2, 2).load_state_dict(nn.Linear(2, 2).state_dict())
    nn.Linear(2, 2).train()
    folded(net, x)
    assert net.bn.__dict__["_folded"].result is kept


def test_copies_of_a_module_do_not_inherit_folded_weights():
    """A pickled module may be read where the same numbers of storages mean others."""
    net, x = prepared()
    folded(net, x)
    for clone in (copy.deepcopy(net.bn.__dict__["_folded"]), pickle.loads(pickle.dumps(net.bn.__dict__["_folded"]))):
        assert clone.key is None and clone.result is None


def test_a_shared_batch_norm_is_folded_for_each_convolution():
    net, x = prepared()
    other = nn.Conv2d(3, 4, 3)
    for _ in range(2):
        for conv in (net.conv, other):
            with asenpp.no_grad():
                got = values(conv_bn(conv, net.bn, x))
            np.testing.assert_allclose(got, values(net.bn(conv(x))), rtol=1e-4, atol=1e-5)


def test_there_is_one_mechanism():
    """No counter in Python beside the storages' versions."""
    import asenpp.nn.parameter as parameter

    assert not any(hasattr(parameter, name) for name in ("generation", "changed", "_Owned", "_generation"))
    assert nn.Parameter.__mro__[1] is Tensor and parameter.Buffer.__mro__[1] is Tensor


def test_optimizer_steps_follow_into_evaluation():
    """Train a step, evaluate, again: the folded answer is that of the layers one by one."""
    net, x = prepared()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        net.train()
        optimizer.zero_grad()
        net(x).sum().backward()
        optimizer.step()
        net.eval()
        np.testing.assert_allclose(folded(net, x), unfolded(net, x), rtol=1e-4, atol=1e-4)
