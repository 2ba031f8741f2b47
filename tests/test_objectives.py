"""Training on labelled images, and the training aids: that a step computes what it says, that runs repeat
themselves to the bit and resume in the same bits in every mode, and what is refused."""

import json
import re
import signal

import numpy as np
import pytest

import asenpp
import engine_kit as kit
from asenpp import _asen
from asenpp.checkpoint import CheckpointError
from asenpp.data.balanced import ImageBatch
from asenpp.data.samplers import TripletBatch
from asenpp.engine import EngineError, Interrupted, losses, memory, training
from asenpp.engine.step import ImageStep, TripletStep
from asenpp.engine.weights import initial_model

LOSSES = ("cosine", "supcon", "dense_triplet")
IMAGES = ["DATA.NUM_IMAGES", 44, "DATA.TRAIN_BATCHSIZE", 8, "DATA.IMAGES_PER_VALUE", 2]
STEPS = 6       # of an epoch, with IMAGES and with the triplets of engine_kit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data/Garments, small."""
    from asenpp.data.garments import prepare

    folder = tmp_path_factory.mktemp("objectives")
    prepare(folder / "data" / "Garments", images=kit.IMAGES, size=kit.PIXELS, quiet=True)
    return folder


def config(folder, stage, loss, *more):
    return kit.config(folder, stage, "SOLVER.LOSS", loss, *(IMAGES if loss != "triplet" else ()), *more)


def model_of(cfg, seed=0):
    asenpp.manual_seed(seed)
    return asenpp.build_model(cfg)


def image_batch(count=7, seed=0):
    """Images with some, one or all attributes labelled; some have two values of an attribute."""
    draw = np.random.default_rng(seed)
    labels = set()
    for row in range(count):
        for attribute in draw.choice(6, size=[1, 3, 6][row % 3], replace=False):
            for value in draw.choice(3, size=2 if row == 4 else 1, replace=False):
                labels.add((int(attribute), row, int(value)))
    attributes, rows, values = np.array(sorted(labels), np.int64).T
    return ImageBatch(np.arange(count), np.ascontiguousarray(rows), np.ascontiguousarray(attributes),
                      np.ascontiguousarray(values))


def pixels_of(count, size=32, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size, size, 3)).astype(np.float32)


def crops_of(pixels):
    """Crops that depend on the image and on its map."""
    def crops(maps, rows=None):
        rows = np.arange(len(pixels)) if rows is None else rows
        return (pixels[rows] * (1 + maps.reshape(len(maps), -1)[:, :1, None, None] * 10)).astype(np.float32)

    return crops


# -- one step ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("stage", ["s1", "s2"])
def test_a_step_is_its_definition(folder, loss, stage):
    """Each (image, labelled attribute) forwarded by itself, then the loss of each attribute by its function: their
    terms added up over their number, weighted as the configuration says. (Batch norm by running statistics, so
    that an image can be forwarded alone.)"""
    cfg = config(folder, stage, loss, "SOLVER.GLOBAL_WEIGHT", 0.7, "SOLVER.LOCAL_WEIGHT", 0.3, "SOLVER.ALIGN_WEIGHT", 0.2,
                 "SOLVER.LABEL_SMOOTHING", 0.1 if loss == "cosine" else 0.0)
    model, batch, pixels = model_of(cfg).eval(), image_batch(), pixels_of(7)
    step = ImageStep(model, cfg, "cpu", 6)
    total, parts = step(pixels, batch, crops_of(pixels))

    expected, count = {"global": 0.0, "local": 0.0}, 0.0
    aligned = []
    for attribute in np.unique(batch.attributes):
        mine = batch.attributes == attribute
        rows = np.unique(batch.rows[mine])
        embeddings = {"global": [], "local": []}
        for row in rows:
            image = asenpp.tensor(pixels[row:row + 1].transpose(0, 3, 1, 2).copy())
            embedding, attention = model.forward_branch("global", image, [attribute])
            embeddings["global"].append(embedding)
            if stage == "s2":
                crop = crops_of(pixels)(attention.detach().numpy(), np.array([row]))
                local = model.forward_branch("local", asenpp.tensor(crop.transpose(0, 3, 1, 2).copy()), [attribute])[0]
                embeddings["local"].append(local)
                aligned.append(max(0.0, 1 - asenpp.nn.functional.cosine_similarity(embedding, local).item()))
        places = np.searchsorted(rows, batch.rows[mine])
        for branch in ("global", "local")[:1 + (stage == "s2")]:
            together = asenpp.cat(embeddings[branch])
            if loss == "cosine":
                terms = losses.cosine(together, model.heads[branch].rows(attribute), places, batch.values[mine], 16.0,
                                      0.2, 0.1)
            elif loss == "supcon":
                terms = losses.supcon(together, places, batch.values[mine], 0.1)
            else:
                terms = losses.dense_triplet(together, places, batch.values[mine], 0.2)
            expected[branch] += terms.total.item()
            count += terms.count if branch == "global" else 0
            expected[f"{branch} count"] = expected.get(f"{branch} count", 0) + terms.count
    assert count > 0
    whole = expected["global"] / expected["global count"]
    assert parts["global"].item() == pytest.approx(whole, rel=2e-5)
    if stage == "s1":
        assert total.item() == pytest.approx(0.7 * whole, rel=2e-5)
        return
    local = expected["local"] / expected["local count"]
    assert parts["local"].item() == pytest.approx(local, rel=2e-5)
    assert parts["align"].item() == pytest.approx(3 * np.mean(aligned), rel=2e-5)
    assert total.item() == pytest.approx(0.7 * whole + 0.3 * local + 0.2 * 3 * np.mean(aligned), rel=2e-5)


def test_the_backbone_runs_once_an_image(folder, monkeypatch):
    """And attention once for each (image, labelled attribute); its keys once an image."""
    cfg = config(folder, "s1", "cosine")
    model, batch, pixels = model_of(cfg), image_batch(), pixels_of(7)
    seen = {"backbone": 0, "attention": 0, "keys": 0}
    net, attention = model.choices["global"]["basenet"], model.choices["global"]["attnnet"]

    def counted(module, name, real):
        def call(x, *arguments):
            seen[name] += x.shape[0]
            return real(x, *arguments)
        monkeypatch.setattr(module, "forward" if name != "keys" else "keys", call, raising=False)

    counted(net, "backbone", net.forward)
    counted(attention, "attention", attention.forward)
    counted(attention, "keys", attention.keys)
    ImageStep(model, cfg, "cpu", 6)(pixels, batch, crops_of(pixels))
    assert seen == {"backbone": 7, "attention": len(set(zip(batch.rows, batch.attributes))), "keys": 7}


def gradients(model, losses_):
    for p in model.parameters():
        p.grad = None
    for loss in losses_:
        loss.backward()
    return {name: None if p.grad is None else p.grad.numpy().copy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("loss", ["triplet", "cosine"])
@pytest.mark.parametrize("stage", ["s1", "s2"])
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_accumulated_gradients_are_those_of_the_batch(folder, loss, stage, parts):
    """The losses of a batch's parts, weighted by their shares of the terms, add up to that of the batch, and so do
    their gradients: to float32's rounding, apart from batch norm (here by running statistics)."""
    cfg = config(folder, stage, loss)
    model = model_of(cfg).eval()
    if loss == "triplet":
        step, ids = TripletStep(model, cfg, "cpu"), np.arange(7)
        batch = TripletBatch(ids, ids + 7, ids + 14, ids % 6, ids % 2, 1 - ids % 2)
    else:
        step, batch = ImageStep(model, cfg, "cpu", 6), image_batch()
    pixels = pixels_of(len(step.ids(batch)))
    whole, _ = step(pixels, batch, crops_of(pixels))
    expected = gradients(model, [whole])
    pieces, terms, places = [], 0, []
    for where, part in step.parts(batch, parts):
        share = step.count(part) / step.count(batch)
        pieces.append(step(pixels[where], part, crops_of(pixels[where]))[0] * share)
        terms, places = terms + step.count(part), places + where.tolist()
    assert len(pieces) == parts and terms == step.count(batch) and sorted(places) == list(range(len(pixels)))
    assert sum(piece.item() for piece in pieces) == pytest.approx(whole.item(), rel=1e-5)
    got = gradients(model, pieces)
    assert any(value is not None and np.abs(value).max() > 0 for value in expected.values())
    for name, value in expected.items():
        assert (value is None) == (got[name] is None), name
        if value is not None:
            assert np.abs(got[name] - value).max() <= 2e-4 * np.abs(value).max() + 1e-7, name


def test_weights_start_alike_whatever_the_loss(folder):
    """The heads are drawn last: modes can be compared from one seed on."""
    plain, cosine = (model_of(config(folder, "s2", loss), 5).state_dict() for loss in ("triplet", "cosine"))
    assert set(cosine) - set(plain) == {"heads.global.weight", "heads.local.weight"}
    assert all(np.array_equal(plain[name].numpy(), cosine[name].numpy()) for name in plain)
    assert cosine["heads.global.weight"].shape == (25, 16)


def test_parameter_groups(folder):
    """Heads learn at the rate of their branch times HEAD_LR_FACTOR; every parameter is in one group."""
    model = model_of(config(folder, "s2", "cosine"))
    groups = model.parameter_groups(1.0, 0.1, 10.0)
    assert [group["lr"] for group in groups] == [1.0, 0.1, 1.0, 10.0]
    assert groups[2]["params"] == [model.heads["global"].weight]
    assert groups[3]["params"] == [model.heads["local"].weight]
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted({id(p) for p in model.parameters()})


# -- runs -------------------------------------------------------------------------------------------

AIDS = ["SOLVER.TYPE", "WarmupCosine", "SOLVER.WARMUP_STEPS", 3, "SOLVER.EMA_DECAY", 0.9, "SOLVER.EARLY_STOP", 5,
        "INPUT.AUGMENT.FLIP", 0.5, "INPUT.AUGMENT.CROP", 0.5, "INPUT.AUGMENT.ERASE", 0.5, "INPUT.AUGMENT.JITTER", 0.2,
        "INPUT.AUGMENT.JITTER_COLOUR", True, "DATA.NUM_WORKERS", 2]


def aids(loss):
    more = ["SOLVER.ACCUMULATE", 2] if loss in ("triplet", "cosine") else []
    return [*AIDS, *more, *(["SOLVER.LABEL_SMOOTHING", 0.1] if loss == "cosine" else [])]


@pytest.mark.parametrize("loss", ("triplet", *LOSSES))
@pytest.mark.parametrize("stage", ["s1", "s2"])
@pytest.mark.parametrize("with_aids", [False, True])
def test_same_seed_and_resumed_in_the_same_bits(folder, monkeypatch, loss, stage, with_aids):
    """Twice the same seed: at once; and stopped within the first epoch, at its end, and in the second, and gone on with.
    (What differed between two runs of a seed would differ between these.)"""
    more = aids(loss) if with_aids else []
    asenpp.engine.train(config(folder, stage, loss, "NAME", "at_once", *more), overwrite=True)
    cfg = config(folder, stage, loss, "NAME", "in_pieces", *more)
    resume, last = None, folder / "runs" / "in_pieces" / "checkpoint.pth.tar"
    for steps in (2, STEPS, STEPS + 3):
        with monkeypatch.context() as patch:
            kit.stop_after(patch, steps)
            with pytest.raises(Interrupted, match="--resume"):
                asenpp.engine.train(cfg, resume=resume, overwrite=resume is None)
        resume = str(last)
        assert asenpp.load(last)["step"] == steps
    result = asenpp.engine.train(cfg, resume=resume)
    assert kit.same_run(folder / "runs" / "in_pieces", folder / "runs" / "at_once") == []
    assert (result["epochs"], result["step"]) == (2, 2 * STEPS)


@pytest.mark.parametrize("loss, stage", [("triplet", "s2"), ("cosine", "s2"), ("supcon", "s1"), ("dense_triplet", "s1")])
def test_killed_and_resumed_ends_in_the_same_bits(folder, loss, stage):
    """SIGKILL, with every aid: the run goes on from the last step that was saved."""
    more = [*aids(loss), "SOLVER.EPOCHS", 4]
    asenpp.engine.train(config(folder, stage, loss, "NAME", "undisturbed", *more), overwrite=True)
    run = folder / "runs" / f"killed_{loss}"
    opts = ["SOLVER.LOSS", loss, *(IMAGES if loss != "triplet" else ()), "NAME", run.name, *more]
    process = kit.start(kit.command(folder, stage, "--save-minutes", "0", opts=opts))
    for line in process.stdout:
        if "Epoch 2/4 iteration 2/6" in line:
            process.kill()
            break
    process.communicate()
    last = run / "checkpoint.pth.tar"
    assert process.returncode == -signal.SIGKILL and STEPS < asenpp.load(last)["step"] < 4 * STEPS
    asenpp.engine.train(config(folder, stage, loss, "NAME", run.name, *more), resume=str(last))
    assert kit.same_run(run, folder / "runs" / "undisturbed") == []


@pytest.mark.parametrize("loss", LOSSES)
def test_image_batches_learn(folder, loss):
    """mAP rises above that of the untrained model."""
    kept = kit.only(["colour", "style"], [6, 3])
    if not (folder / "two").exists():
        kit.choose_attributes(folder / "data" / "Garments", folder / "two" / "data" / "Garments", [4, 5])
    cfg = kit.config(folder / "two", "s1", *kept, "NAME", f"learns_{loss}", "SOLVER.LOSS", loss, "DATA.NUM_IMAGES", 384,
                     "DATA.TRAIN_BATCHSIZE", 24, "SOLVER.EPOCHS", 2, "SOLVER.BASE_LR", 1e-3, "MODEL.EMBED_SIZE", 64,
                     "MODEL.ATTRIBUTE.EMBED_SIZE", 16, "EVAL.SUBSET", 0)
    untrained = asenpp.engine.evaluate(cfg, model=model_of(cfg))
    trained = asenpp.engine.train(cfg, overwrite=True)
    assert trained["best_mAP"] > untrained["mAP"] + 0.1, (untrained, trained)
    best = asenpp.engine.evaluate(cfg, split="VALID", checkpoint=trained["best"])
    assert best["mAP"] == trained["best_mAP"]
    if loss == "cosine":
        report = best["heads"]["colour"]
        assert report["accuracy"] > 0.4 and [row["name"] for row in report["per_class"]] == list("012345")


def test_heads_classify_as_their_cosines_say(folder):
    """classify() is SCALE times the cosines, BETA-weighted over both branches; without heads it says so."""
    cfg = config(folder, "s2", "cosine", "SOLVER.SCALE", 7.0, "SOLVER.BETA", 0.25)
    model, draw = model_of(cfg).eval(), np.random.default_rng(0)
    whole, local = draw.normal(size=(2, 5, 16)).astype(np.float32)

    def cosines(branch, e):
        w = model.heads[branch].weight.detach().numpy()[8:12]     # neckline: after sleeves and bottoms of 4 values each
        return (e / np.linalg.norm(e, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T

    got = model.classify(asenpp.tensor(whole), 2).detach().numpy()
    assert np.allclose(got, 7 * cosines("global", whole), atol=1e-5)
    got = model.classify(asenpp.tensor(whole), 2, asenpp.tensor(local)).detach().numpy()
    assert np.allclose(got, 7 * (0.25 * cosines("global", whole) + 0.75 * cosines("local", local)), atol=1e-5)
    with pytest.raises(ValueError, match="SOLVER.LOSS cosine"):
        model_of(config(folder, "s1", "supcon")).classify(asenpp.tensor(whole), 2)


def test_the_average_is_what_is_evaluated_and_saved(folder):
    """With EMA_DECAY `model` in both checkpoints is the average, whose mAP is the run's; training_model is not."""
    cfg = config(folder, "s1", "cosine", "NAME", "ema", "SOLVER.EMA_DECAY", 0.5)
    result = asenpp.engine.train(cfg, overwrite=True)
    state = asenpp.load(result["checkpoint"])
    assert state["ema_updates"] == state["step"] == 2 * STEPS
    assert kit.differences(state["model"], state["training_model"])
    assert asenpp.engine.evaluate(cfg, checkpoint=result["best"])["mAP"] == result["best_mAP"]
    plain = asenpp.engine.train(config(folder, "s1", "cosine", "NAME", "plain"), overwrite=True)
    assert kit.differences(asenpp.load(plain["checkpoint"])["model"], state["training_model"]) == []


def test_early_stopping(folder, monkeypatch, capsys):
    """The training ends after EARLY_STOP evaluations that were no better, says so, and stays ended when resumed."""
    scores = iter([0.3, 0.5, 0.4, 0.5, 0.6])
    real = training.Evaluation.run

    def run(self, *arguments):
        return {**real(self, *arguments), "mAP": next(scores)}

    monkeypatch.setattr(training.Evaluation, "run", run)
    cfg = config(folder, "s1", "supcon", "NAME", "early", "SOLVER.EPOCHS", 9, "SOLVER.EARLY_STOP", 2)
    result = asenpp.engine.train(cfg, overwrite=True)
    assert (result["epochs"], result["best_mAP"]) == (4, 0.5)
    assert "stopped early after epoch 4" in capsys.readouterr().out
    assert asenpp.engine.train(cfg, resume=result["checkpoint"])["epochs"] == 4
    longer = config(folder, "s1", "supcon", "NAME", "early", "SOLVER.EPOCHS", 5, "SOLVER.EARLY_STOP", 3)
    assert asenpp.engine.train(longer, resume=result["checkpoint"])["best_mAP"] == 0.6


def test_stage_two_takes_up_any_stage_one(folder, capsys):
    """Heads that the checkpoint lacks begin fresh, and the log says so; those that it has are taken."""
    plain = asenpp.engine.train(config(folder, "s1", "triplet", "NAME", "from_triplets", "SOLVER.EPOCHS", 1), overwrite=True)
    cfg = config(folder, "s2", "cosine", "NAME", "onto", "SOLVER.EPOCHS", 1)
    state = {"model": asenpp.load(plain["checkpoint"])["model"]}
    assert "global branch, heads: fresh" in initial_model(cfg, state, "it", whole=False)[1]
    heads = asenpp.engine.train(config(folder, "s1", "cosine", "NAME", "from_heads", "SOLVER.EPOCHS", 1), overwrite=True)
    state = {"model": asenpp.load(heads["checkpoint"])["model"]}
    lines = initial_model(cfg, state, "it", whole=False)[1]
    assert "global branch, heads: checkpoint it" in lines and "local branch, heads: fresh" in lines
    asenpp.engine.train(cfg, resume=heads["checkpoint"], overwrite=True)
    # And a model with heads is an embedding model like any other.
    assert asenpp.engine.evaluate(config(folder, "s1", "triplet"), checkpoint=heads["checkpoint"])["mAP"] > 0


@pytest.mark.parametrize("key, value", [("SOLVER.LOSS", "supcon"), ("SOLVER.TYPE", "StepLR"), ("SOLVER.EMA_DECAY", 0.0)])
def test_what_cannot_change_within_a_run(folder, key, value):
    start = ["NAME", "kept", "SOLVER.TYPE", "WarmupCosine", "SOLVER.EMA_DECAY", 0.5]
    done = asenpp.engine.train(config(folder, "s1", "cosine", *start, "SOLVER.EPOCHS", 1), overwrite=True)
    before = (folder / "runs" / "kept" / "checkpoint.pth.tar").read_bytes()
    with pytest.raises(EngineError, match=f"{key} was .* is {value} now: keep it .*NAME"):
        asenpp.engine.train(config(folder, "s1", "cosine", *start, key, value), resume=done["checkpoint"])
    assert (folder / "runs" / "kept" / "checkpoint.pth.tar").read_bytes() == before


@pytest.mark.parametrize("more, message", [
    (["SOLVER.EPOCHS", 3], "SOLVER.EPOCHS.*made 12 steps.*and 18 now"),
    (["DATA.NUM_IMAGES", 88], "SOLVER.EPOCHS.*made 12 steps.*and 22 now"),
    (["SOLVER.WARMUP_STEPS", 4], "SOLVER.WARMUP_STEPS made 3 steps.*and 4 now")])
def test_a_schedule_by_steps_is_kept_to_its_end(folder, more, message, capsys):
    """Its rate is 0 after the last step, so that more epochs would train nothing: they are refused, the run is left
    as it was, and no line invites to them. Of the same number of steps it goes on, and has nothing left to do."""
    same = ["NAME", "by_steps", "SOLVER.TYPE", "WarmupCosine", "SOLVER.WARMUP_STEPS", 3]
    last = folder / "runs" / "by_steps" / "checkpoint.pth.tar"
    if not last.exists():
        asenpp.engine.train(config(folder, "s1", "supcon", *same))
    before = last.read_bytes()
    with pytest.raises(EngineError, match=message + ".*NAME"):
        asenpp.engine.train(config(folder, "s1", "supcon", *same, *more), resume=str(last))
    assert last.read_bytes() == before
    assert asenpp.engine.train(config(folder, "s1", "supcon", *same), resume=str(last))["step"] == 2 * STEPS
    text = capsys.readouterr().out
    assert "all 2 epochs are done already" in text and "a larger SOLVER.EPOCHS" not in text


def test_resuming_names_what_changed_and_what_is_missing(folder, capsys):
    """A key that is as it was is not said to have changed; a checkpoint without a part of the state is named."""
    keys = ["NAME", "parts", "SOLVER.EMA_DECAY", 0.5, "SOLVER.EPOCHS"]
    done = asenpp.engine.train(config(folder, "s1", "cosine", *keys, 1), overwrite=True)["checkpoint"]
    capsys.readouterr()
    asenpp.engine.train(config(folder, "s1", "cosine", *keys, 2), resume=done)
    assert re.findall("WARNING: (.*?) was", capsys.readouterr().out) == ["SOLVER.EPOCHS"]
    whole = asenpp.load(done)
    for part in ("training_model", "ema_updates", "schedule", "sampler", "sums"):
        asenpp.save({key: value for key, value in whole.items() if key != part}, done)
        with pytest.raises(CheckpointError, match=f"checkpoint.pth.tar: .*incomplete .{part} is not there.*NAME"):
            asenpp.engine.train(config(folder, "s1", "cosine", *keys, 3), resume=done)
    asenpp.save({**whole, "ema_updates": -1}, done)
    with pytest.raises(CheckpointError, match="damaged .*updates"):
        asenpp.engine.train(config(folder, "s1", "cosine", *keys, 3), resume=done)


def test_evaluating_with_heads_that_are_not_there_names_the_key(folder):
    plain = asenpp.engine.train(config(folder, "s1", "triplet", "NAME", "no_heads", "SOLVER.EPOCHS", 1), overwrite=True)
    with pytest.raises(CheckpointError, match="heads.global.weight.*SOLVER.LOSS is triplet there and cosine here"):
        asenpp.engine.evaluate(config(folder, "s1", "cosine"), checkpoint=plain["checkpoint"])


def test_logs_say_what_is_counted(folder, capsys):
    asenpp.engine.train(config(folder, "s1", "cosine", "NAME", "counted", "SOLVER.EPOCHS", 1), overwrite=True)
    assert "counted: 1 epochs of 6 iterations, 8 images each" in capsys.readouterr().out
    events = [json.loads(line) for line in (folder / "runs" / "counted" / "metrics.jsonl").read_text().splitlines()]
    assert [len(event["lr"]) for event in events if event["event"] == "train"] == [2, 2, 2]


@pytest.mark.parametrize("stage", ["s1", "s2"])
def test_memory_is_checked_before_training(folder, monkeypatch, stage):
    """In images, and no more than there are; the model is left as it was (the runs above compare bits)."""
    # What other tests left in the cache counts as available, too.
    monkeypatch.setattr("asenpp.engine.memory.available_bytes", lambda: (40 << 20) - _asen.memory_stats("cpu")["cached"])
    cfg = config(folder, stage, "cosine", "NAME", "large", "DATA.TRAIN_BATCHSIZE", 4096, "DATA.NUM_IMAGES", 4096)
    with pytest.raises(EngineError, match="batches of [0-9]+ images .*(TRAIN_BATCHSIZE to|not even one image fits)"):
        asenpp.engine.train(cfg, overwrite=True)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_reference_kernel_runs(folder, loss):
    """In a float32 training step on labelled images, both branches."""
    cfg = config(folder, "s2", loss)
    model, batch, pixels = model_of(cfg), image_batch(), pixels_of(7)
    step = ImageStep(model, cfg, "cpu", 6)
    _asen.dispatch_counts(True)
    step(pixels, batch, crops_of(pixels))[0].backward()
    counts = _asen.dispatch_counts(True)
    assert sum(row["fast"] + row["onednn"] for row in counts.values()) > 100
    assert {name: row["reference"] for name, row in counts.items() if row["reference"]} == {}


def test_warmup_longer_than_the_training_is_an_error(folder):
    with pytest.raises(EngineError, match="WARMUP_STEPS is 12, but the training has 12 steps"):
        asenpp.engine.train(config(folder, "s1", "cosine", "NAME", "warm", "SOLVER.TYPE", "WarmupCosine",
                                   "SOLVER.WARMUP_STEPS", 12), overwrite=True)


@pytest.mark.parametrize("loss, more, message", [
    ("supcon", ["SOLVER.ACCUMULATE", 2], "SOLVER.ACCUMULATE.*pairs of the whole batch"),
    ("cosine", ["SOLVER.ACCUMULATE", 9], "batch of 8 .*has fewer parts"),
    ("cosine", ["SOLVER.WARMUP_STEPS", 2], "SOLVER.WARMUP_STEPS.*WarmupCosine"),
    ("supcon", ["SOLVER.LABEL_SMOOTHING", 0.1], "SOLVER.LABEL_SMOOTHING.*only SOLVER.LOSS cosine"),
    ("cosine", ["SOLVER.LABEL_SMOOTHING", 1.0], r"SOLVER.LABEL_SMOOTHING.*in \[0, 1\)"),
    ("cosine", ["SOLVER.EMA_DECAY", 1.0], "SOLVER.EMA_DECAY"), ("cosine", ["INPUT.AUGMENT.FLIP", 1.5], "AUGMENT.FLIP"),
    ("cosine", ["INPUT.AUGMENT.CROP", 0.0], "INPUT.AUGMENT.CROP"), ("cosine", ["SOLVER.LOSS", "arcface"], "SOLVER.LOSS"),
    ("cosine", ["INPUT.AUGMENT.JITTER", 0.2], "INPUT.AUGMENT.JITTER.*colour.*JITTER_COLOUR"),
    ("cosine", ["DATA.TRAIN_BATCHSIZE", 1], "DATA.TRAIN_BATCHSIZE.*two images"), ("cosine", ["DATA.NUM_IMAGES", 10**22], "DATA.NUM_IMAGES"),
    ("cosine", ["SOLVER.SCALE", 1e39], "SOLVER.SCALE"), ("supcon", ["SOLVER.TEMPERATURE", 1e-300], "SOLVER.TEMPERATURE"),
    ("cosine", ["DATA.IMAGES_PER_VALUE", 5], "DATA.IMAGES_PER_VALUE.*two values"),
    ("cosine", ["MODEL.TYPE", "StyleClassification", "HEAD.out_features", 4], "MODEL.TYPE.*SOLVER.LOSS must be triplet"),
])
def test_keys_that_do_not_go_together_are_named(folder, loss, more, message):
    with pytest.raises(asenpp.ConfigError, match=message):
        config(folder, "s1", loss, *more)


def test_memory_is_measured_until_it_is_steady():
    """Where few images peak at another moment than many: peaks as they were seen in stage 2, in MB."""
    peaks = {2: 25, 4: 28, 8: 42, 16: 75, 32: 139, 48: 204}
    asked = []

    def peak(count):
        asked.append(count)
        return peaks[count]

    fixed, each = memory._measure(peak, 48, 1e9)
    assert fixed + 48 * each == pytest.approx(204, rel=0.05)
    assert asked == [2, 4, 8, 16, 32]
    assert memory._measure(lambda count: 10 + 5 * count, 1000, 1e9) == (10, 5)       # a line: three measurements
    asked.clear()
    memory._measure(peak, 48, 240)              # 8 images took 42: 16 might take more than a quarter of 240
    assert asked == [2, 4, 8]
    assert memory._measure(lambda count: 7 * count, 3, 1e9) == (0.0, 7)


@pytest.mark.parametrize("more", [
    ["DATA.NUM_IMAGES", 9], ["DATA.NUM_IMAGES", 8, "SOLVER.ACCUMULATE", 8],
    ["INPUT.GLOBAL_SIZE", 32, "INPUT.LOCAL_SIZE", 16, "DATA.NUM_IMAGES", 9]])
def test_a_batch_of_one_value_is_named_before_training(folder, more):
    """Batch norm of one image with a map of one position; found at the start, not in the last batch."""
    cfg = config(folder, "s2", "cosine", "NAME", "single", "INPUT.GLOBAL_SIZE", 16, *more)
    with pytest.raises(EngineError, match="_SIZE is 16, which leaves one position.*NUM_IMAGES.*ACCUMULATE"):
        asenpp.engine.train(cfg, overwrite=True)
    assert not (folder / "runs" / "single").exists()


def test_what_is_switched_on_when_resuming_is_said(folder, capsys):
    """Also where the checkpoint's configuration lacks the key, as old ones do."""
    done = asenpp.engine.train(config(folder, "s1", "triplet", "NAME", "lacks", "SOLVER.EPOCHS", 1), overwrite=True)
    state = asenpp.load(done["checkpoint"])
    del state["config"]["INPUT"]["AUGMENT"], state["config"]["SOLVER"]["LOSS"], state["since_best"]
    asenpp.save(state, done["checkpoint"])
    asenpp.engine.train(config(folder, "s1", "triplet", "NAME", "lacks", "INPUT.AUGMENT.FLIP", 0.5), resume=done["checkpoint"])
    assert "INPUT.AUGMENT.FLIP was 0.0 when the checkpoint was written, and is 0.5 now" in capsys.readouterr().out


def test_training_images_are_augmented_by_epoch(folder, monkeypatch):
    """Those of training alone: what an epoch's step sees is Augmentation's view of (SEED, epoch, image), also after
    a resume; without INPUT.AUGMENT it is the plain transform's, as in evaluation."""
    from asenpp.data.index import load_train
    from asenpp.transforms import Augmentation, GlobalTransform, decode

    cfg = config(folder, "s1", "cosine", "NAME", "augmented", "INPUT.AUGMENT.CROP", 0.5, "INPUT.AUGMENT.FLIP", 0.5, "SEED", 7)
    paths, transform, augmentation = load_train(cfg).paths, GlobalTransform(cfg), Augmentation(cfg)
    seen, evaluated = [], []
    real, evaluate = ImageStep.__call__, training.Evaluation._batch
    monkeypatch.setattr(ImageStep, "__call__", lambda self, pixels, batch, crops: seen.append((batch.images, pixels.copy()))
                        or real(self, pixels, batch, crops))
    monkeypatch.setattr(training.Evaluation, "_batch", lambda self, model, batch, *more: evaluated.append(batch)
                        or evaluate(self, model, batch, *more))
    monkeypatch.setattr(training._Trainer, "check_memory", lambda self: None)

    def views(ids, epoch):
        pixels, draws = np.empty((len(ids), 32, 32, 3), np.float32), np.empty((len(ids), Augmentation.FIELDS))
        augmentation.into([decode(paths[i]) for i in ids], ids, list(range(len(ids))), epoch, transform, pixels, draws)
        return pixels

    with monkeypatch.context() as patch:
        kit.stop_after(patch, STEPS + 1)
        with pytest.raises(Interrupted):
            asenpp.engine.train(cfg, overwrite=True)
    asenpp.engine.train(cfg, resume=str(folder / "runs" / "augmented" / "checkpoint.pth.tar"))
    assert len(seen) == 2 * STEPS
    for number, (ids, pixels) in enumerate(seen):
        assert np.array_equal(pixels, views(ids.tolist(), number // STEPS)), number
        assert not np.array_equal(pixels, views(ids.tolist(), 1 - number // STEPS)), number
    assert evaluated and all(batch.draws is None for batch in evaluated)
    plain = config(folder, "s1", "cosine", "NAME", "plain", "SOLVER.EPOCHS", 1)
    seen.clear()
    asenpp.engine.train(plain, overwrite=True)
    ids, pixels = seen[0]
    assert np.array_equal(pixels, transform.batch([paths[i] for i in ids]))


@pytest.mark.parametrize("loss", ["triplet", "cosine"])
def test_parts_weigh_by_their_terms_in_training(folder, monkeypatch, loss):
    """A step of ACCUMULATE parts of unlike sizes has the loss and the gradients of the batch. (Batch norm by running
    statistics, as above.)"""
    counted = []
    real = training.Precision.step
    made = {}

    def step(self, losses_, optimizer):
        def kept():
            for loss in losses_:
                counted.append(loss.item())
                yield loss
        real(self, kept(), optimizer)
        made["gradients"] = [p.grad.numpy().copy() for group in optimizer.param_groups for p in group["params"]
                             if p.grad is not None]
        made["loss"] = sum(counted)
        made["parts"] = len(counted)
        raise Interrupted

    monkeypatch.setattr(training.Precision, "step", step)
    monkeypatch.setattr(training._Trainer, "check_memory", lambda self: self.model.eval())
    found = []
    for parts in (1, 3):
        counted.clear()
        cfg = config(folder, "s1", loss, "NAME", f"parts_{loss}_{parts}", "SOLVER.ACCUMULATE", parts)
        with pytest.raises(Interrupted):
            asenpp.engine.train(cfg, overwrite=True)
        found.append(dict(made))
    (one, three) = found
    assert (one["parts"], three["parts"]) == (1, 3)         # 8 images or 4 triplets in 3 parts: 3, 3, 2 or 2, 1, 1
    assert three["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for a, b in zip(one["gradients"], three["gradients"], strict=True):
        assert np.abs(a - b).max() <= 2e-4 * np.abs(a).max() + 1e-7


def test_rates_follow_the_steps(folder):
    """WarmupCosine over the steps of the whole training, heads at HEAD_LR_FACTOR times the rate; a line of the log has
    the rates that the next step takes."""
    cfg = config(folder, "s1", "cosine", "NAME", "rates", "SOLVER.TYPE", "WarmupCosine", "SOLVER.WARMUP_STEPS", 4,
                 "SOLVER.BASE_LR", 1e-3, "SOLVER.HEAD_LR_FACTOR", 5.0, "SOLVER.LOG_PERIOD", 1)
    asenpp.engine.train(cfg, overwrite=True)
    events = [json.loads(line) for line in (folder / "runs" / "rates" / "metrics.jsonl").read_text().splitlines()]
    rates = [event["lr"] for event in events if event["event"] == "train"]

    def rate(t):
        return (t + 1) / 4 if t < 4 else (1 + np.cos(np.pi * (t - 4) / (2 * STEPS - 4))) / 2

    expected = [[1e-3 * rate(t), 5e-3 * rate(t)] for t in range(1, 2 * STEPS + 1)]
    assert np.allclose(rates, expected, rtol=1e-9, atol=1e-15)
