"""Training and evaluation as functions: that they learn, repeat themselves to the bit, and follow the
formulas; memory, logs and what is public.
"""

import json
import random
import subprocess
import sys

import numpy as np
import pytest

import asenpp
import engine_kit as kit
from asenpp import _asen
from asenpp.data.samplers import TripletBatch
from asenpp.engine import EngineError, Interrupted, evaluation, losses, memory, training
from asenpp.engine.log import MetricsFile
from asenpp.engine.step import TripletStep

STYLES = ["colour", "style"], [6, 3]    # of Garments: the two that are learned in seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data/Garments with all attributes; two/data/Garments with colour and style alone."""
    from asenpp.data.garments import prepare

    folder = tmp_path_factory.mktemp("engine")
    prepare(folder / "data" / "Garments", images=240, size=kit.PIXELS, quiet=True)
    kit.choose_attributes(folder / "data" / "Garments", folder / "two" / "data" / "Garments", [4, 5])
    return folder


def arc(folder, stage, *more):
    return kit.config(folder / "two", stage, *kit.only(*STYLES), "MODEL.TYPE", "ArcStyleClassification",
                      "HEAD.in_features", 16, "HEAD.out_features", 6, *more)


# -- training ---------------------------------------------------------------------------------------

def test_training_learns(folder):
    """mAP rises far above that of the untrained model (about the share of relevant candidates: 0.17, 0.33)."""
    cfg = kit.config(folder / "two", "s1", *kit.only(*STYLES), "NAME", "learns", "INPUT.GLOBAL_SIZE", 48,
                     "DATA.NUM_TRIPLETS", 320, "DATA.TRAIN_BATCHSIZE", 8, "SOLVER.EPOCHS", 4, "SOLVER.BASE_LR", 3e-4,
                     "MODEL.EMBED_SIZE", 64, "MODEL.ATTRIBUTE.EMBED_SIZE", 16, "EVAL.SUBSET", 0)
    asenpp.manual_seed(0)
    untrained = asenpp.engine.evaluate(cfg, model=asenpp.build_model(cfg))
    assert untrained["mAP"] < 0.5
    trained = asenpp.engine.train(cfg)
    assert trained["best_mAP"] > untrained["mAP"] + 0.2, (untrained, trained)
    best = asenpp.engine.evaluate(cfg, split="VALID", checkpoint=trained["best"])
    assert best["mAP"] == trained["best_mAP"]


def test_same_seed_same_bits(folder):
    """Twice the same seed: the same checkpoints and metrics, bit for bit; another seed: others."""
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        random.random()     # what the process did before does not matter
        asenpp.engine.train(kit.config(folder, "s2", "NAME", name, "SEED", seed, "SOLVER.EPOCHS", 1))
    assert kit.same_run(folder / "runs" / "one", folder / "runs" / "two") == []
    assert kit.same_run(folder / "runs" / "one", folder / "runs" / "three", but=("seed",)) != []


@pytest.mark.parametrize("make, stage, more", [
    (kit.config, "s2", []),
    (arc, "s1", ["SOLVER.TYPE", "CosineAnnealingLR"]),
    (arc, "s1", ["SOLVER.OBJECTIVE", "anchor", "SOLVER.OPTIMIZER_NAME", "AdamW"]),
])
def test_resumed_in_the_same_bits(folder, monkeypatch, make, stage, more):
    """Also with crops from attention maps, with dropout, at the end of an epoch, and stopped twice."""
    runs = folder / "runs" if make is kit.config else folder / "two" / "runs"
    asenpp.engine.train(make(folder, stage, "NAME", "at_once", *more), overwrite=True)
    cfg = make(folder, stage, "NAME", "in_pieces", *more)
    resume, last = None, runs / "in_pieces" / "checkpoint.pth.tar"
    for steps in (2, 6):
        with monkeypatch.context() as patch:
            kit.stop_after(patch, steps)
            with pytest.raises(Interrupted, match="--resume"):
                asenpp.engine.train(cfg, resume=resume, overwrite=resume is None)
        resume = str(last)
        assert asenpp.load(last)["step"] == steps
    # An evaluation that is stopped is made again.
    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluation, "run", lambda *arguments: (_ for _ in ()).throw(Interrupted()))
        with pytest.raises(Interrupted):
            asenpp.engine.train(cfg, resume=resume)
    result = asenpp.engine.train(cfg, resume=resume)
    assert kit.same_run(runs / "in_pieces", runs / "at_once") == []
    assert (result["epochs"], result["step"]) == (2, 12)


def test_stage_two_trains_what_it_should(folder):
    """Local backbone and attention at BASE_LR, all else at BASE_LR_SLOW: with BASE_LR 0 only the latter move."""
    start = asenpp.engine.train(kit.config(folder, "s1", "NAME", "before", "SOLVER.EPOCHS", 1))["checkpoint"]
    cfg = kit.config(folder, "s2", "NAME", "slow", "SOLVER.BASE_LR", 0.0, "SOLVER.EPOCHS", 1)
    before = {k: np.array(v) for k, v in fresh_weights(cfg).items()}
    after = asenpp.load(asenpp.engine.train(cfg, resume=start)["checkpoint"])["model"]
    moved = {name for name in after if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
             and not np.array_equal(after[name], before[name])}
    assert any(name.startswith("choices.global.attnnet") for name in moved)
    assert not [name for name in moved if name.startswith(("choices.local.basenet", "choices.local.attnnet"))]


def fresh_weights(cfg):
    """The initial weights of a run."""
    from asenpp.engine.run import seed_everything

    seed_everything(cfg.SEED)
    return asenpp.build_model(cfg).state_dict()


# -- formulas ---------------------------------------------------------------------------------------

def cosine(a, b):
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def test_losses_are_the_formulas(folder):
    """Triplet, alignment and total against NumPy in float64."""
    draw = np.random.default_rng(1)
    g, l = draw.normal(size=(2, 15, 7))
    g[5:10] = g[:5] + 0.5 * g[5:10]     # positives are near
    cfg = kit.config(folder, "s2", "SOLVER.MARGIN", 0.3, "SOLVER.GLOBAL_WEIGHT", 0.7, "SOLVER.LOCAL_WEIGHT", 0.2,
                     "SOLVER.ALIGN_WEIGHT", 0.4)

    def triplet(e):
        return np.maximum(0, 0.3 - cosine(e[:5], e[5:10]) + cosine(e[:5], e[10:])).mean()

    align = sum(np.maximum(0, 1 - cosine(g[i:i + 5], l[i:i + 5])).mean() for i in (0, 5, 10))
    total, parts = losses.asen(asenpp.tensor(g), asenpp.tensor(l), cfg.SOLVER)
    for name, value in (("global", triplet(g)), ("local", triplet(l)), ("align", align)):
        assert parts[name].item() == pytest.approx(value, rel=1e-10)
    assert total.item() == pytest.approx(0.7 * triplet(g) + 0.2 * triplet(l) + 0.4 * align, rel=1e-10)


def some_triplets(count, attributes=1):
    draw = np.random.default_rng(0)
    ids = np.arange(count)
    return TripletBatch(ids, ids, ids, draw.integers(0, attributes, count), draw.integers(0, 3, count),
                        draw.integers(3, 6, count))


def test_one_batch_is_three_passes(folder):
    """Loss and running statistics of the one batch of 3 B are those of three passes x, p, n."""
    cfg = kit.config(folder, "s1")
    pixels = np.random.default_rng(2).normal(size=(9, 32, 32, 3)).astype(np.float32)
    triplets = some_triplets(3, 6)
    together, apart = asenpp.build_model(cfg), asenpp.build_model(cfg)
    apart.load_state_dict(together.state_dict())
    loss = TripletStep(together, cfg, "cpu")(pixels, triplets, None)[0]
    images = _asen.from_numpy(pixels).permute(0, 3, 1, 2)
    passes = [apart.forward_branch("global", images[i:i + 3], triplets.attributes)[0] for i in (0, 3, 6)]
    assert losses.triplet(asenpp.cat(passes), cfg.SOLVER.MARGIN).item() == pytest.approx(loss.item(), rel=1e-4)
    ours, theirs = together.state_dict(), apart.state_dict()
    for name in ours:
        if "running" in name or "num_batches" in name:
            np.testing.assert_allclose(ours[name].numpy(), theirs[name].numpy(), rtol=1e-4, atol=1e-6, err_msg=name)


def test_style_objectives(folder):
    """combined is 0.1 asen + 0.5 CE(anchor) + 0.5 CE(negative), of triplets of attribute 0; anchor is CE(anchor)."""
    draw = np.random.default_rng(3)
    triplets = some_triplets(4, 2)
    assert 0 < (triplets.attributes == 0).sum() < 4
    for objective, images in (("combined", 12), ("anchor", 4)):
        cfg = arc(folder, "s1", "SOLVER.OBJECTIVE", objective)
        step = TripletStep(asenpp.build_model(cfg), cfg, "cpu")
        pixels = draw.normal(size=(images, 32, 32, 3)).astype(np.float32)
        assert len(step.ids(triplets)) == images
        total, parts = step(pixels, triplets, None)
        values = {name: part.item() for name, part in parts.items()}
        expected = values["anchor"] if objective == "anchor" else (
            0.1 * values["global"] + 0.5 * values["anchor"] + 0.5 * values["negative"])
        assert total.item() == pytest.approx(expected, rel=1e-5)
        total.backward()
        assert np.abs(step.model.head.weight.grad.numpy()).max() > 0
        # Without a triplet of attribute 0 there is nothing to classify, and nothing fails.
        rest = triplets._replace(attributes=np.ones(4, np.int64))
        assert np.isfinite(step(pixels, rest, None)[0].item())


# -- evaluation -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def both(folder):
    """A model with both branches, and its configuration."""
    asenpp.manual_seed(5)
    cfg = kit.config(folder, "s2", "EVAL.SUBSET", 2, "DATA.TEST_BATCHSIZE", 7)
    return cfg, asenpp.build_model(cfg)


def test_evaluation_is_the_definition(folder, both):
    """mAP from features computed one image and attribute at a time: beta-weighted cosines of both branches."""
    cfg, model = both
    result = asenpp.engine.evaluate(cfg, model=model)
    data = evaluation._first_queries(asenpp.data.index.load_eval(cfg, "VALID"), 2)
    whole, local = asenpp.transforms.GlobalTransform(cfg), asenpp.transforms.LocalTransform(cfg)
    known = {}

    def embed(image, attribute):
        if (image, attribute) not in known:
            pixels = np.ascontiguousarray(whole(data.paths[image])[None])
            g, attention = model.forward_branch("global", asenpp.tensor(pixels), [attribute])
            crop = np.ascontiguousarray(local(data.paths[image], attention.numpy()[0])[None])
            l = model.forward_branch("local", asenpp.tensor(crop), [attribute])[0]
            known[image, attribute] = [e.numpy()[0] / np.linalg.norm(e.numpy()) for e in (g, l)]
        return known[image, attribute]

    model.eval()
    expected, counts = {}, {}
    with asenpp.no_grad():
        for attribute in (0, 4):
            q, c = (side.take(np.flatnonzero(side.attributes == attribute)) for side in (data.queries, data.candidates))
            average = []
            for image, value in zip(q.images, q.values):
                g, l = embed(image, attribute)
                scores = [0.6 * g @ embed(i, attribute)[0] + 0.4 * l @ embed(i, attribute)[1] for i in c.images]
                average.append(asenpp.metrics.average_precision(scores, c.values == value))
            name = data.attributes.names[attribute]
            expected[name], counts[name] = np.mean(average), len(average)
    for name in expected:
        assert result["attributes"][name] == pytest.approx(expected[name], abs=0.02), name
        assert result["queries"][name] == counts[name] == 2
    weights = list(result["queries"].values())
    assert result["mAP"] == pytest.approx(np.average(list(result["attributes"].values()), weights=weights))
    # All metrics, by attribute and in total, agree with what is there beside them.
    *attributes, last = result["metrics"]
    assert last == "total" and attributes == list(result["attributes"])
    assert {name: result["metrics"][name]["mAP"] for name in attributes} == result["attributes"]
    assert result["metrics"]["total"]["mAP"] == result["mAP"]
    for metric in asenpp.metrics.METRICS:
        scores = [result["metrics"][name][metric] for name in attributes]
        assert result["metrics"]["total"][metric] == pytest.approx(np.average(scores, weights=weights)), metric


def test_the_backbone_runs_once_an_image(both):
    """However many attributes are asked of it; and evaluation leaves the model in training mode."""
    cfg, model = both
    model.train()
    seen, real = [], type(model).backbone

    def count(self, images, branch="global", groups=1):
        seen.append((branch, images.shape[0]))
        return real(self, images, branch, groups)

    type(model).backbone, _ = count, None
    try:
        result = asenpp.engine.evaluate(cfg, model=model)
    finally:
        type(model).backbone = real
    assert sum(n for branch, n in seen if branch == "global") == result["images"]
    assert model.training


def test_an_attribute_without_queries_is_left_out(folder, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    kit.choose_attributes(folder / "two" / "data" / "Garments", tmp_path / "data" / "Garments", [0, 1])
    path = tmp_path / "data" / "Garments" / "query_valid.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if line.split()[1] == "0"))
    cfg = kit.config(tmp_path, "s1", *kit.only(*STYLES))
    result = asenpp.engine.evaluate(cfg, model=asenpp.build_model(cfg))
    assert list(result["attributes"]) == ["colour"] and result["mAP"] == result["attributes"]["colour"]
    assert "attribute 1 (style) has no queries and is left out" in capsys.readouterr().out


def test_style_report(folder, capsys):
    """Top-1 over queries and candidates of attribute 0 together, in the result and in the log."""
    cfg = arc(folder, "s1", "EVAL.SUBSET", 0)
    result = asenpp.engine.evaluate(cfg, model=asenpp.build_model(cfg))
    report, valid = result["style"], 240 * 15 // 100
    assert report["support"] == valid == sum(map(sum, report["confusion"]))
    assert report["accuracy"] == pytest.approx(sum(report["confusion"][i][i] for i in range(6)) / valid)
    assert "precision" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["choices.global.attrnet.attr_embedding.weight", "choices.global.basenet.conv1.weight",
                                  "choices.global.basenet.bn1.running_var", "choices.local.basenet.conv1.weight"])
def test_spoilt_weights_are_named(both, name):
    """Those of a backbone, too, which a ReLU may hide."""
    cfg, _ = both
    model = asenpp.build_model(cfg)
    model.state_dict()[name].detach()[0] = float("nan")
    with pytest.raises(EngineError, match=f"{name} is not finite"):
        asenpp.engine.evaluate(cfg, model=model)


def test_evaluate_needs_one_model(folder):
    with pytest.raises(EngineError, match="checkpoint or a model"):
        asenpp.engine.evaluate(kit.config(folder, "s1"))


# -- speed and memory -------------------------------------------------------------------------------

@pytest.mark.parametrize("make, stage", [(kit.config, "s1"), (kit.config, "s2"), (arc, "s1"), (arc, "s2")])
def test_no_reference_kernel_runs(folder, make, stage):
    """A float32 training step and an evaluation run on the fast and oneDNN kernels alone."""
    cfg = make(folder, stage, "NAME", "kernels", "SOLVER.EPOCHS", 1, "DATA.NUM_TRIPLETS", 4)
    _asen.dispatch_counts(True)
    asenpp.engine.train(cfg, overwrite=True)
    counts = _asen.dispatch_counts(True)
    assert sum(row["fast"] + row["onednn"] for row in counts.values()) > 100
    assert {name: row["reference"] for name, row in counts.items() if row["reference"]} == {}


def test_memory_names_the_batch_that_fits():
    """The batch that is named fits, the next larger one does not."""
    with pytest.raises(EngineError, match=r"batches of 128 triplets needs about 36\.4 GB, 20\.0 GB are available.*"
                                          r"DATA.TRAIN_BATCHSIZE 70\)"):
        memory.require(0.1e9, 258e6, 128, 20e9)
    assert memory.require(0.1e9, 258e6, 70, 20e9) <= 20e9
    with pytest.raises(EngineError):
        memory.require(0.1e9, 258e6, 71, 20e9)
    with pytest.raises(EngineError, match="not even one triplet"):
        memory.require(0.1e9, 258e6, 1, 0.2e9)


def test_memory_is_checked_before_training(folder, monkeypatch):
    """Measured, with the model left as it was; nothing of the run folder is made."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 60 << 20)
    with pytest.raises(EngineError, match="not enough memory.*DATA.TRAIN_BATCHSIZE"):
        asenpp.engine.train(kit.config(folder, "s1", "NAME", "huge", "DATA.TRAIN_BATCHSIZE", 4096, "DATA.NUM_TRIPLETS", 4096))
    assert not (folder / "runs" / "huge").exists()


def test_measuring_memory_leaves_no_trace(folder):
    cfg = arc(folder, "s2", "NAME", "trial")
    trainer = training._Trainer(cfg, asenpp.engine.log.get_logger(cfg), None)
    try:
        before = {k: v.numpy().tobytes() for k, v in trainer.model.state_dict().items()}
        drawn = asenpp.random.get_state()
        trainer.check_memory()
        assert {k: v.numpy().tobytes() for k, v in trainer.model.state_dict().items()} == before
        assert asenpp.random.get_state() == drawn
        assert all(p.grad is None for p in trainer.model.parameters())
    finally:
        trainer.close()


# -- logs and names ---------------------------------------------------------------------------------

def test_metrics_file_is_cut_at_the_checkpoint(tmp_path):
    """What training wrote after the checkpoint goes, tests stay, half a line goes."""
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(str(path)) as metrics:
        metrics.write(event="train", step=1)
        size = metrics.size()
        metrics.write(event="train", step=2)
        metrics.write(event="test", mAP=0.5)
    with open(path, "a") as file:
        file.write('{"event": "tra')
    with MetricsFile(str(path)) as metrics:
        assert metrics.cut(size) == 2
        metrics.write(event="train", step=2)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(e["event"], e.get("step")) for e in events] == [("train", 1), ("test", None), ("train", 2)]


def test_log_goes_to_a_file(folder, tmp_path, capsys):
    cfg = kit.config(folder, "s1", "LOGGER.STREAM", str(tmp_path / "log.txt"))
    asenpp.engine.evaluate(cfg, model=asenpp.build_model(cfg))
    assert "INFO: total:" in (tmp_path / "log.txt").read_text()
    assert capsys.readouterr().out == ""


def test_import_is_lazy():
    """`import asenpp` loads no NumPy, PyTorch, Pillow or matplotlib; every public name can be had afterwards."""
    script = ("import sys, asenpp; heavy = {'numpy', 'torch', 'PIL', 'matplotlib', 'tqdm', 'asenpp._asen'}; "
              "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
              "[getattr(asenpp, name) for name in asenpp.__all__]; asenpp.engine.train, asenpp.engine.evaluate; "
              "import asenpp.engine.training, asenpp.engine.evaluation; assert callable(asenpp.engine.train); "
              "assert not {'torch', 'matplotlib'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", script], cwd=kit.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tensors_from_nothing():
    """PyTorch's shapes, dtypes and values."""
    assert asenpp.zeros(2, 3).shape == (2, 3) and asenpp.ones((4,), dtype="int64").dtype == "int64"
    assert asenpp.tensor([1, 2]).dtype == "int64" and asenpp.tensor([1.0]).dtype == "float32"
    assert asenpp.arange(1, 7, 2).tolist() == [1, 3, 5]
    assert asenpp.stack([asenpp.zeros(2), asenpp.ones(2)], 1).tolist() == [[0, 1], [0, 1]]
    asenpp.manual_seed(1)
    first = asenpp.randn(3).tolist()
    asenpp.manual_seed(1)
    assert asenpp.randn(3).tolist() == first
    x = asenpp.ones(2, requires_grad=True)
    with asenpp.no_grad():
        assert not (x * 2).requires_grad
    (x * 2).sum().backward()
    assert x.grad.tolist() == [2, 2]
