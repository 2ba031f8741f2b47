"""Files of other programs in use: --resume and MODEL.PRETRAINED take every container and every form of what
the published programs write, and what we write goes to PyTorch whole."""

import json
import re
from collections import OrderedDict

import numpy as np
import pytest

import asenpp
import checkpoint_kit as kit
from asenpp import checkpoint, models
from asenpp.engine.command import main
from asenpp.engine.state import read
from engine_kit import IMAGES, PIXELS, command, files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data/Garments, and runs/Garments_s1: a finished stage 1."""
    from asenpp.data.garments import prepare

    folder = tmp_path_factory.mktemp("interchange")
    prepare(folder / "data" / "Garments", images=IMAGES, size=PIXELS, quiet=True)
    assert main(command(folder, "s1")) == 0
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    return checkpoint.load(folder / "runs/Garments_s1/checkpoint.pth.tar")


def as_kit(state) -> OrderedDict:
    return OrderedDict((name, kit.tensor(value, "cuda:0")) for name, value in state.items())


def published(state, form: str):
    return {"published": {"epoch": 7, "model": state, "mAP": 0.5}, "bare": state,
            "state_dict": {"state_dict": state, "arch": "asen"}}[form]


FILES = [(container, form) for container in ("zip", "stream", "tar") for form in ("published", "bare", "state_dict")]
FILES.append(("safetensors", "bare"))


def write(path, container: str, form: str, state) -> str:
    if container == "safetensors":
        path = path.with_suffix(".safetensors")
        checkpoint.save(state, path)
    else:
        if container == "tar":  # it has no tensors without dimensions
            state = OrderedDict((name, value) for name, value in state.items() if value.ndim)
        make = {"zip": kit.zip_file, "stream": kit.stream_file, "tar": kit.tar_file}[container]
        path.write_bytes(make(published(as_kit(state), form)))
    return str(path)


@pytest.mark.parametrize("container,form", FILES)
def test_resume_takes_any_file(folder, trained, tmp_path, capsys, container, form):
    """--test gives the very result of the weights' own run; training takes the weights and begins at epoch 1."""
    path = write(tmp_path / "file.pth.tar", container, form, trained["model"])
    assert "optimizer" not in read(path) and (form != "bare" or list(read(path)) == ["model"])
    events = folder / "runs/Garments_s1/metrics.jsonl"
    before = len(events.read_text().splitlines())
    assert main(command(folder, "s1", "--resume", path, "--test", "VALID")) == 0
    (event,) = [json.loads(line) for line in events.read_text().splitlines()[before:]]
    assert event["event"] == "test" and event["mAP"] == trained["mAP"]

    name = re.sub(r"\W", "_", f"{container}_{form}")
    assert main(command(folder, "s1", "--resume", path, opts=["NAME", name, "SOLVER.EPOCHS", 1, "SOLVER.BASE_LR", 1e-12])) == 0
    own = len(trained["model"])
    there = own - sum(value.ndim == 0 for value in trained["model"].values()) * (container == "tar")
    said = capsys.readouterr().out
    assert f"{there} of the model's {own} tensors taken" in said
    if there < own:
        assert f"{own - there} not there and left as they are (the first: " in said
    saved = checkpoint.load(folder / "runs" / name / "checkpoint.pth.tar")
    assert saved["epoch"] == 1
    for key, value in trained["model"].items():
        if "running" not in key and value.ndim:
            np.testing.assert_allclose(saved["model"][key], value, atol=1e-9)


def test_what_is_ignored_is_told(folder, trained, tmp_path, capsys):
    state = OrderedDict(trained["model"])
    state["classifier.weight"] = np.ones(3, np.float32)
    path = write(tmp_path / "file.pth.tar", "zip", "published", state)
    assert main(command(folder, "s1", "--resume", path, "--test", "VALID")) == 0
    assert "1 of the checkpoint's ignored (the first: classifier.weight)" in capsys.readouterr().out


def test_a_file_without_weights_is_an_error(folder, tmp_path, capsys):
    checkpoint.save({"epoch": 3}, tmp_path / "x")
    assert main(command(folder, "s1", "--resume", str(tmp_path / "x"), opts=["NAME", "none"])) == 1
    assert "holds no model" in capsys.readouterr().err


@pytest.mark.parametrize("container", ["zip", "stream", "tar", "safetensors"])
def test_pretrained_takes_imagenet_files(tmp_path, container):
    """As published: layer4 and the classifier are there too, in the tar container as Parameters; the report
    names what was taken, what is missing and what was ignored."""
    source = models.resnet18(layer4=True)
    state = OrderedDict((name, np.array(value.detach().numpy())) for name, value in source.state_dict().items()
                        if "num_batches" not in name)
    state |= {"fc.weight": np.ones((1000, 512), np.float32), "fc.bias": np.ones(1000, np.float32)}
    path = tmp_path / "resnet18-5c106cde.pth"
    if container == "tar":
        named = list(as_kit(state).items())
        pickled = b"ccollections\nOrderedDict\n)R(" + b"".join(
            kit.text(name) + b"ctorch.nn.parameter\nParameter\n)\x81(M" + (1000 + i).to_bytes(2, "little")
            + b"Q\x88ccollections\nOrderedDict\n)RNtb" for i, (name, _) in enumerate(named)) + b"u"
        members = kit.tar_members([tensor for _, tensor in named])
        path.write_bytes(kit.tar_of({**members, "pickle": b"\x80\x02" + pickled + b"."}))
    else:
        path = write(path, container, "bare", state)
    model = models.build_model(asenpp.load_config(*files("s1"), opts=[
        "MODEL.PRETRAINED", str(path), "MODEL.GLOBAL.BACKBONE.NAME", "resnet18"]))
    net = models.resnet18()
    report = models.load_pretrained(net, "resnet18", str(path))
    own = net.state_dict()
    assert sorted(report.loaded) == sorted(name for name in own if "num_batches" not in name)
    assert all("num_batches" in name for name in report.missing)
    assert sorted(report.unexpected) == sorted(name for name in state if name.startswith(("layer4", "fc")))
    backbone = model.choices["global"]["basenet"].state_dict()
    for name in report.loaded:
        assert np.array_equal(own[name].numpy(), state[name]) and np.array_equal(backbone[name].numpy(), state[name])


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_weights_of_other_dtypes_load(tmp_path, dtype):
    """load_state_dict takes what `load` gives for half, double and bfloat16 files, and reports on it."""
    net = asenpp.nn.Linear(3, 2)
    weight = np.float32([[1, -2, 3], [0.5, 0, 8]])
    if dtype == "bfloat16":
        storage = kit.Storage((weight.view(np.uint32) >> 16).astype(np.uint16), "BFloat16")
        tensor = kit.Tensor(storage, 0, (2, 3), (3, 1))
    else:
        tensor = kit.tensor(weight.astype(dtype))
    (tmp_path / "x").write_bytes(kit.stream_file({"weight": tensor, "extra": tensor}))
    report = net.load_state_dict(asenpp.load(tmp_path / "x"), strict=False)
    assert report == (["weight"], ["bias"], ["extra"])
    value = net.weight.detach().numpy()
    assert value.dtype == np.float32 and np.array_equal(value, weight)


def test_a_trained_checkpoint_goes_to_pytorch_whole(folder, trained):
    """weights_only=True takes optimizer, schedule, sampler, random states and configuration; what PyTorch writes of
    them goes on in the same bits."""
    torch = pytest.importorskip("torch")
    path = folder / "runs/Garments_s1/checkpoint.pth.tar"
    got = torch.load(path, weights_only=True)
    assert {"epoch", "model", "mAP", "best_mAP", "optimizer", "schedule", "sampler", "random", "python_random", "seed", "threads",
            "name", "config"} <= set(got)

    def plain(value):
        if isinstance(value, torch.Tensor):
            return value.numpy()
        if isinstance(value, dict):
            result = type(value)((key, plain(item)) for key, item in value.items())
            if hasattr(value, "_metadata"):
                result._metadata = value._metadata
            return result
        return type(value)(map(plain, value)) if isinstance(value, (list, tuple)) else value

    assert kit.same(plain(got), trained)

    opts = ["NAME", "through_pytorch"]
    assert main(command(folder, "s1", opts=[*opts, "SOLVER.EPOCHS", 1])) == 0
    run = folder / "runs/through_pytorch/checkpoint.pth.tar"
    torch.save(torch.load(run, weights_only=True), run)
    assert main(command(folder, "s1", "--resume", str(run), opts=opts)) == 0
    resumed = checkpoint.load(run)
    assert kit.same(resumed["model"], trained["model"]) and kit.same(resumed["optimizer"], trained["optimizer"])
