"""The moving average of weights: its formula, its state, and what a model computes while it holds it."""

import numpy as np
import pytest
from test_backend import build, run  # noqa: F401 (build is a fixture)

import asenpp
import engine_kit
from asenpp import _asen, nn
from asenpp.nn import functional as F
from asenpp.nn.fold import conv_bn
from asenpp.optim import EMA


INTEGERS = ("count", "bn.num_batches_tracked")


class Net(nn.Module):
    """A convolution with batch norm, one without, a table under two names, a count, and a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1)
        self.table = nn.Parameter(asenpp.randn(4, 6))
        self.again = nn.ModuleDict({"table": nn.Module()})
        self.again["table"].weight = self.table
        self.register_buffer("count", asenpp.tensor(np.array([3, 4])))
        self.register_buffer("unsaved", asenpp.zeros(2), persistent=False)

    def forward(self, x):
        return F.linear(self.second(conv_bn(self.conv, self.bn, x, relu=True)).mean(dim=(2, 3)), self.table.transpose(0, 1))


def net(dtype="float32", seed=0):
    asenpp.manual_seed(seed)
    return Net().to(dtype)


def move(model, step):
    """Other values in every tensor, as a training step makes them."""
    rng = np.random.default_rng(step)
    for tensor in [p.detach() for p in model.parameters()] + list(model.buffers()):
        fresh = rng.uniform(0.5, 1.5, tensor.shape) if tensor.dtype != "int64" else rng.integers(9, size=tensor.shape)
        tensor.copy_(asenpp.from_numpy(fresh).to(dtype=tensor.dtype))


def values(state):
    """Copies of a state dict that lend nothing."""
    return {name: np.array(_asen.to_numpy_readonly(tensor)) for name, tensor in state.items()}


def same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes(), name


def evaluated(model, x):
    with asenpp.no_grad():
        return np.array(_asen.to_numpy_readonly(model.eval()(x)))


@pytest.fixture
def images():
    return asenpp.from_numpy(np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)).contiguous()


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-13), ("bfloat16", 1e-6)])
@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_formula(dtype, tolerance, decay):
    """Parameters and running statistics follow the formula in float64, for 0.5 past the warm-up of the decay;
    integers are copied; what is not saved is left out."""
    model = net(dtype)
    ema = EMA(model, decay)
    exact = {name: np.array(t.to(dtype="float64").tolist()) for name, t in model.state_dict().items()}
    for t in range(1, 31):
        move(model, t)
        ema.update()
        d = min(decay, (1 + t) / (10 + t))
        for name, tensor in model.state_dict().items():
            w = np.array(tensor.to(dtype="float64").tolist())
            exact[name] = w if name in INTEGERS else d * exact[name] + (1 - d) * w
    state = ema.state_dict()
    assert state["updates"] == 30 and list(state["model"]) == list(model.state_dict()) and "unsaved" not in state["model"]
    for name, average in state["model"].items():
        wanted = "int64" if name in INTEGERS else "float64" if dtype == "float64" else "float32"
        assert average.dtype == wanted and not average.requires_grad, name
        np.testing.assert_allclose(_asen.to_numpy_readonly(average), exact[name], rtol=tolerance, err_msg=name)
    assert "bn.running_var" in exact and not np.allclose(exact["bn.running_var"], 1)


def test_weights_that_stand_still_are_their_average():
    """In every bit, after any number of updates: w - a is 0."""
    model = net()
    before = values(model.state_dict())
    ema = EMA(model, 0.9)
    for _ in range(20):
        ema.update()
    same_bits(values(ema.state_dict()["model"]), before)


def test_an_update_leaves_model_and_tape_alone(images):
    """A loss of before the update still goes backward; no weight is written, and none is shared with its average."""
    model = net()
    ema = EMA(model, 0.9)
    loss = model(images).sum()
    versions = [t._version for t in model.state_dict().values()]
    ema.update()
    assert [t._version for t in model.state_dict().values()] == versions
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    storages = {_asen.storage_id(t) for t in model.state_dict().values()}
    assert storages.isdisjoint(_asen.storage_id(t) for t in ema.state_dict()["model"].values())


def test_shared_parameters_are_averaged_once(tmp_path):
    """The attribute table of ASEN++ stands under the names of both branches: one average, moved once an update."""
    model = asenpp.build_model(engine_kit.config(tmp_path, "s2", "MODEL.PRETRAINED", False), pretrained=False)
    names = [name for name in model.state_dict() if ".attrnet." in name]
    assert len(names) == 2
    ema = EMA(model, 0.9)
    table = model.state_dict()[names[0]]
    start = np.array(table.tolist())
    table.fill_(5.0)
    ema.update()
    averages = ema.state_dict()["model"]
    assert averages[names[0]]._memory == averages[names[1]]._memory
    np.testing.assert_allclose(averages[names[0]].tolist(), 2 / 11 * start + 9 / 11 * 5.0, rtol=1e-6)
    with ema.applied():
        a, b = (model.choices[branch]["attrnet"].state_dict() for branch in ("global", "local"))
        assert [t._memory for t in a.values()] == [t._memory for t in b.values()] == [table._memory]
        np.testing.assert_array_equal(table.tolist(), averages[names[0]].tolist())
    np.testing.assert_array_equal(table.tolist(), np.full(start.shape, 5.0))


def test_a_resumed_average_goes_on_in_the_same_bits(tmp_path):
    """Through a checkpoint file, into an EMA of a model of other weights; the file's averages load into a model."""
    model, other = net(), net(seed=5)
    ema = EMA(model, 0.8)
    for step in range(12):
        move(model, step)
        ema.update()
    asenpp.save({"ema": ema.state_dict()}, tmp_path / "c.pth.tar")
    at_save = values(ema.state_dict()["model"])
    state = asenpp.load(tmp_path / "c.pth.tar")["ema"]
    again = EMA(other, 0.8)
    again.load_state_dict(state)
    for step in range(12, 20):
        for average in (ema, again):
            move(average.model, step)
            average.update()
    assert again.updates == ema.updates == 20
    same_bits(values(again.state_dict()["model"]), values(ema.state_dict()["model"]))
    fresh = net(seed=9)
    fresh.load_state_dict(state["model"])
    same_bits(values(fresh.state_dict()), at_save)
    copied = EMA(fresh, 0.8)
    copied.load_state_dict(ema.state_dict())
    ema.update()
    assert copied.updates == 20 and not np.array_equal(copied.state_dict()["model"]["table"].tolist(),
                                                       ema.state_dict()["model"]["table"].tolist())


def test_applied_evaluates_the_averages_and_gives_the_weights_back(images):
    """Folded weights and packed filters follow both ways: the outputs are those of a model that was loaded with the
    averages, and afterwards the first ones again."""
    model, twin = net(), net(seed=3)
    ema = EMA(model, 0.9)
    move(model, 1)
    ema.update()
    twin.load_state_dict(ema.state_dict()["model"])
    before, raw = evaluated(model, images), values(model.state_dict())
    versions = [t._version for t in model.state_dict().values()]
    same_bits({"y": before}, {"y": evaluated(model, images)})
    averages = values(ema.state_dict()["model"])
    for _ in range(2):
        with ema.applied() as inside:
            assert inside is model
            assert all(t._version > v for t, v in zip(model.state_dict().values(), versions))
            same_bits(values(model.state_dict()), averages)
            same_bits({"y": evaluated(model, images)}, {"y": evaluated(twin, images)})
            assert not np.allclose(evaluated(model, images), before)
            versions = [t._version for t in model.state_dict().values()]
        assert all(t._version > v for t, v in zip(model.state_dict().values(), versions))
        same_bits(values(model.state_dict()), raw)
        same_bits({"y": evaluated(model, images)}, {"y": before})
    same_bits(values(ema.state_dict()["model"]), averages)


def test_an_exception_inside_gives_the_weights_back():
    model = net()
    ema = EMA(model, 0.9)
    move(model, 1)
    ema.update()
    raw = values(model.state_dict())
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            with ema.applied():
                model.state_dict()["table"].zero_()
                raise error("inside")
        same_bits(values(model.state_dict()), raw)
    ema.update()
    assert ema.updates == 2


def test_applied_refuses_what_would_mix_the_two():
    """Nested blocks, updates and loads; the block around them stays whole."""
    model = net()
    ema = EMA(model, 0.9)
    move(model, 1)
    ema.update()
    raw, averages = values(model.state_dict()), values(ema.state_dict()["model"])
    with ema.applied():
        for what, call in (("applied", lambda: ema.applied().__enter__()), ("update", ema.update),
                           ("load_state_dict", lambda: ema.load_state_dict(ema.state_dict()))):
            with pytest.raises(RuntimeError, match=rf"EMA: {what}\(\) within applied\(\)"):
                call()
        same_bits(values(model.state_dict()), averages)
    same_bits(values(model.state_dict()), raw)
    assert ema.updates == 1


def test_sixteen_bits_hold_the_rounded_average():
    model = net("float16")
    ema = EMA(model, 0.9)
    move(model, 1)
    ema.update()
    raw = values(model.state_dict())
    with ema.applied():
        assert model.table.dtype == "float16"
        np.testing.assert_array_equal(model.table.detach().tolist(), ema.state_dict()["model"]["table"].half().tolist())
    same_bits(values(model.state_dict()), raw)


def test_a_buffer_that_was_set_anew_is_followed():
    model = net()
    ema = EMA(model, 0.9)
    model.bn.running_mean = asenpp.full((5,), 11.0)
    ema.update()
    np.testing.assert_allclose(ema.state_dict()["model"]["bn.running_mean"].tolist(), np.full(5, 9.0), rtol=1e-6)


def test_bad_input():
    model = net()
    for decay in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="EMA: decay is"):
            EMA(model, decay)
    ema = EMA(model, 0.9)
    good = ema.state_dict()
    before = values(good["model"])
    weights = dict(good["model"])
    renamed = {("other" if name == "table" else name): tensor for name, tensor in weights.items()}
    for state, message in ((weights, "no 'model' and 'updates'"),
                           ({**good, "model": renamed}, "lacks table and has other.*1 missing, 1 unexpected"),
                           ({**good, "model": {**weights, "count": np.zeros(3, np.int64)}},
                            r"count is \(2,\) in the model, \(3,\) in the given state"),
                           ({**good, "updates": -1}, "counts -1 updates")):
        with pytest.raises(ValueError, match=message):
            ema.load_state_dict(state)
    model.extra = nn.Parameter(asenpp.zeros(2))
    with pytest.raises(ValueError, match="the model by now has extra"):
        ema.update()
    del model.extra
    model.table = nn.Parameter(asenpp.zeros(3, 6))
    with pytest.raises(ValueError, match=r"table is \(3, 6\) on cpu, its average \(4, 6\) on cpu"):
        ema.update()
    same_bits(values(ema.state_dict()["model"]), before)
    assert ema.updates == 0


def test_an_asynchronous_device_gives_the_cpus_bits(build):  # noqa: F811
    """Updates, a state that is loaded, and applied(), on the toy device; the averages lie where their weights do."""
    run(
        """
import sys
import numpy as np
import asenpp
from asenpp import _asen, nn
from asenpp.optim import EMA
_asen.load_plugin(sys.argv[1])
_asen.set_kernel_paths("reference")

def averaged(device):
    asenpp.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(device=device)
    ema = EMA(model, 0.9)
    for step in range(6):
        rng = np.random.default_rng(step)
        for tensor in model.state_dict().values():
            tensor.copy_(rng.standard_normal(tensor.shape).astype(np.float32))
        ema.update()
        if step == 3:
            state, ema = ema.state_dict(), EMA(model, 0.9)
            ema.load_state_dict(state)
    devices = [t.device for t in model.state_dict().values()]
    assert [t.device for t in ema.state_dict()["model"].values()] == devices and devices.count(device) >= 6
    before = [t.to("cpu").tolist() for t in model.state_dict().values()]
    with ema.applied():
        inside = [t.to("cpu").tolist() for t in model.state_dict().values()]
    assert [t.to("cpu").tolist() for t in model.state_dict().values()] == before != inside
    return inside

assert averaged("toy") == averaged("cpu")
model = nn.Linear(2, 2)
ema = EMA(model, 0.9)
model.to(device="toy")
try:
    ema.update()
except ValueError as e:
    assert "weight is (2, 2) on toy, its average (2, 2) on cpu: make the EMA after" in str(e), e
else:
    raise AssertionError("the model moved unseen")
""",
        build("toy"))
