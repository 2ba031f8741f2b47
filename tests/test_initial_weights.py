"""What a training starts from: ImageNet weights first, the checkpoint over them (docs/reference.md 4). A file with
marked weights lies where the published one is looked for; learning rates of 0 leave weights as they were."""

import numpy as np
import pytest

import asenpp
import engine_kit as kit
from asenpp import models
from asenpp.engine import Interrupted, training
from asenpp.models import pretrained

pytest.importorskip("PIL.Image")

MARK = 0.125        # of every weight of the file
BACKBONES = ["MODEL.GLOBAL.BACKBONE.NAME", "resnet18", "MODEL.LOCAL.BACKBONE.NAME", "resnet18"]
STILL = ["SOLVER.BASE_LR", 0.0, "SOLVER.BASE_LR_SLOW", 0.0, "SOLVER.EPOCHS", 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data/Garments, and runs/first: a stage 1 without ImageNet weights."""
    from asenpp.data.garments import prepare

    folder = tmp_path_factory.mktemp("weights")
    prepare(folder / "data" / "Garments", images=kit.IMAGES, size=kit.PIXELS, quiet=True)
    asenpp.engine.train(config(folder, "s1", "first", "MODEL.PRETRAINED", False))
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(pretrained, "BASE_URL", "http://127.0.0.1:9/")


@pytest.fixture
def marked(tmp_path, monkeypatch):
    """The path of the marked file, in the folder that keeps downloads."""
    monkeypatch.setenv("ASENPP_HOME", str(tmp_path))
    state = models.resnet18(layer4=True).state_dict()
    path = tmp_path / pretrained.FILES["resnet18"]
    asenpp.save({name: asenpp.tensor(np.full(value.shape, MARK, np.float32)) for name, value in state.items()
                 if not name.endswith("num_batches_tracked")}, path)
    return path


@pytest.fixture
def nothing_looked_for(monkeypatch):
    monkeypatch.setattr(pretrained, "fetch", lambda source, name="": pytest.fail(f"{source} is looked for"))


def config(folder, stage, name, *more):
    return kit.config(folder, stage, "NAME", name, "MODEL.PRETRAINED", True, *BACKBONES, *STILL, *more)


def last(folder, name):
    return folder / "runs" / name / "checkpoint.pth.tar"


def weights(path, part=""):
    """Weights by name: what optimizers move, so neither statistics nor counters."""
    return {name: np.asarray(value) for name, value in asenpp.load(path)["model"].items()
            if part in name and not name.endswith(("running_mean", "running_var", "num_batches_tracked"))}


def is_marked(path, part):
    found = weights(path, part)
    return [bool((value == MARK).all()) for value in found.values()] == [True] * len(found)


def same(a, b):
    assert a.keys() == b.keys() and a
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_stage_two_gives_imagenet_weights_to_what_the_checkpoint_lacks(folder, marked, capsys):
    """The local backbone has the file's, the global branch and the attribute table the checkpoint's."""
    start, after = last(folder, "first"), last(folder, "second")
    asenpp.engine.train(config(folder, "s2", "second"), resume=str(start))
    assert is_marked(after, "choices.local.basenet")
    for part in ("choices.global.", "attrnet"):
        was = weights(start, part)
        assert same(was, {name: value for name, value in weights(after, part).items() if name in was})
    assert not is_marked(after, "choices.local.attnnet")
    said = [line.partition(" ASEN INFO: ")[2] for line in capsys.readouterr().out.splitlines()]
    for line in (f"attribute table: checkpoint {start}", f"global branch, backbone: checkpoint {start}",
                 f"global branch, attention: checkpoint {start}", f"local branch, backbone: ImageNet weights {marked}",
                 "local branch, attention: fresh"):
        assert said.count(line) == 1, (line, said)


def test_a_fresh_start_says_where_its_weights_are_from(folder, marked, capsys):
    asenpp.engine.train(config(folder, "s1", "fresh"))
    assert is_marked(last(folder, "fresh"), "choices.global.basenet")
    said = capsys.readouterr().out
    assert f"global branch, backbone: ImageNet weights {marked}\n" in said and "attribute table: fresh\n" in said


@pytest.mark.parametrize("wanted, line", [(False, "fresh"), ({"GLOBAL": True, "LOCAL": False}, "fresh"),
                                          ({"GLOBAL": False, "LOCAL": "file"}, "pretrained weights {file}")])
def test_each_branch_as_configured(folder, marked, capsys, wanted, line):
    if isinstance(wanted, dict) and wanted["LOCAL"]:
        other = marked.rename(marked.with_name("other.pth"))    # so that nothing lies where the published file would
        wanted, line = {**wanted, "LOCAL": str(other)}, line.format(file=other)
    cfg = config(folder, "s2", "configured", "MODEL.PRETRAINED", wanted)
    asenpp.engine.train(cfg, resume=str(last(folder, "first")), overwrite=True)
    assert f"local branch, backbone: {line}\n" in capsys.readouterr().out
    assert is_marked(last(folder, "configured"), "choices.local.basenet") == (line != "fresh")


def test_weights_that_cannot_be_had_are_an_error_as_at_a_fresh_start(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ASENPP_HOME", str(tmp_path))
    for stage, resume in (("s1", None), ("s2", str(last(folder, "first")))):
        with pytest.raises(models.PretrainedError, match="(?s)Put the file at .*resnet18-5c106cde.pth.*PRETRAINED False"):
            asenpp.engine.train(config(folder, stage, "offline"), resume=resume)
    assert not (folder / "runs" / "offline").exists()


def test_a_checkpoint_that_does_not_fit_is_the_first_error(folder, nothing_looked_for):
    with pytest.raises(asenpp.checkpoint.CheckpointError, match="architecture"):
        asenpp.engine.train(config(folder, "s2", "unfit", "MODEL.EMBED_SIZE", 8), resume=str(last(folder, "first")))


def test_what_the_checkpoint_covers_is_not_looked_for(folder, marked, monkeypatch, request):
    """Testing, stage 1 from stage 1, stage 2 from stage 2, and going on with a stage 2 that was stopped."""
    real = training._Trainer._train
    with monkeypatch.context() as patch:
        def stopped(self, *arguments):
            real(self, *arguments)
            self.stop.requested = True

        patch.setattr(training._Trainer, "_train", stopped)
        with pytest.raises(Interrupted):
            asenpp.engine.train(config(folder, "s2", "stopped"), resume=str(last(folder, "first")))
    request.getfixturevalue("nothing_looked_for")
    path = str(last(folder, "stopped"))
    asenpp.engine.train(config(folder, "s2", "stopped"), resume=path)
    assert is_marked(path, "choices.local.basenet")
    asenpp.engine.train(config(folder, "s2", "third"), resume=path)
    asenpp.engine.train(config(folder, "s1", "again"), resume=str(last(folder, "first")))
    asenpp.engine.evaluate(config(folder, "s2", "stopped"), split="TEST", checkpoint=path)
    assert same(weights(path), weights(last(folder, "third")))


def test_half_a_backbone_is_filled_up(folder, marked, tmp_path, capsys):
    """A published checkpoint (without a configuration) of an ASEN in a style model: layer4 is the file's."""
    bare = tmp_path / "published.pth.tar"
    state = asenpp.load(last(folder, "first"))
    asenpp.save({"epoch": 1, "mAP": 0.5, "model": state["model"]}, bare)
    cfg = config(folder, "s1", "style", "MODEL.TYPE", "StyleClassification", "HEAD.out_features", 4)
    asenpp.engine.train(cfg, resume=str(bare))
    after = last(folder, "style")
    assert is_marked(after, "choices.global.basenet.layer4")
    assert same(weights(bare, "basenet"), {k: v for k, v in weights(after, "basenet").items() if "layer4" not in k})
    said = capsys.readouterr().out
    assert f"tensors from checkpoint {bare}, the others ImageNet weights {marked}\n" in said
    assert "classifier: fresh\n" in said
