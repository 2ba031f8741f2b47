"""AttributeClassifier and its command: values and probabilities are those of the heads, of one branch and of both; what
evaluation counts; how often each part of the model runs; how many images are held; and what is refused."""

import json
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest

import asenpp
import engine_kit as kit
from asenpp.checkpoint import CheckpointError
from asenpp.data.index import DataError, load_eval
from asenpp.engine import EngineError
from asenpp.inference import AttributeClassifier, base
from asenpp.inference.__main__ import main
from asenpp.metrics import classification_report
from asenpp.transforms import GlobalTransform, LocalTransform, decode

Image = pytest.importorskip("PIL.Image")
COSINE = ["SOLVER.LOSS", "cosine", "DATA.NUM_IMAGES", 96, "DATA.TRAIN_BATCHSIZE", 16, "DATA.IMAGES_PER_VALUE", 2,
          "SOLVER.EPOCHS", 2, "SOLVER.BASE_LR", 1e-3, "SOLVER.BASE_LR_SLOW", 1e-3, "EVAL.SUBSET", 0, "SOLVER.BETA", 0.4,
          "DATA.TEST_BATCHSIZE", 8, "DEVICE", "cpu"]
STAGES = ("s1", "s2")
NAMES = ["sleeve_length", "bottom_length", "neckline", "pattern", "colour", "style"]
SIZES = [4, 4, 4, 4, 6, 3]
COLOURS = ["red", "yellow", "green", "blue", "purple", "black"]


def config(folder, stage, *more):
    return kit.config(folder, stage, *COSINE, *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data/Garments, small, and runs of both stages."""
    from asenpp.data.garments import prepare

    folder = tmp_path_factory.mktemp("attributes")
    prepare(folder / "data" / "Garments", images=kit.IMAGES, size=kit.PIXELS, quiet=True)
    first = asenpp.engine.train(config(folder, "s1", "NAME", "s1"))
    asenpp.engine.train(config(folder, "s2", "NAME", "s2"), resume=first["checkpoint"])
    return folder


def weights(folder, stage):
    return folder / "runs" / stage / "checkpoint.pth.tar"


@pytest.fixture(scope="module")
def classifiers(folder):
    return {stage: AttributeClassifier(config(folder, stage), weights(folder, stage)) for stage in STAGES}


@pytest.fixture(scope="module")
def paths(folder):
    """All images of the split, queries first, as evaluation takes them."""
    data = load_eval(config(folder, "s1"), "VALID")
    return [data.paths[i] for i in data.features().images]


# -- what is computed -------------------------------------------------------------------------------

@pytest.mark.parametrize("stage", STAGES)
def test_values_are_those_that_evaluation_counts(folder, classifiers, paths, stage):
    """The whole report of each head, accuracy and confusion matrix, follows from predict() on the same images."""
    cfg = config(folder, stage)
    result = asenpp.engine.evaluate(cfg, "VALID", checkpoint=str(weights(folder, stage)))
    data = load_eval(cfg, "VALID")
    told = dict(zip(paths, classifiers[stage].predict(paths)))
    varied = 0
    for attribute, name in enumerate(NAMES):
        truth, guess = [], []
        for labels in (data.queries, data.candidates):
            mine = labels.attributes == attribute
            truth += labels.values[mine].tolist()
            guess += [told[data.paths[i]][name]["value"] for i in labels.images[mine]]
        names = list(cfg.DATA.ATTRIBUTES.VALUES[attribute])
        report = classification_report(truth, [names.index(value) for value in guess], names)
        assert report == result["heads"][name] and report["support"] == len(truth) == 24
        varied += len(set(guess)) > 1
    assert varied >= 4      # predictions that are all alike would be reproduced by chance


def by_hand(classifier, cfg, image, attribute, crop_map=None):
    """Probabilities of one attribute of one image: softmax of SCALE times the cosines, BETA of them the global
    branch's, the crop cut from the image itself by its map (or by `crop_map`)."""
    model = classifier._model
    with asenpp.no_grad():
        whole, attention = model.forward_branch("global", asenpp.tensor(GlobalTransform(cfg)(image)[None]), [attribute])
        branches = {"global": (whole, 1.0)}
        if model.has_local:
            found = attention.numpy()[0] if crop_map is None else crop_map
            local = model.forward_branch("local", asenpp.tensor(LocalTransform(cfg)(image, found)[None]), [attribute])[0]
            branches = {"global": (whole, cfg.SOLVER.BETA), "local": (local, 1 - cfg.SOLVER.BETA)}
    first = sum(SIZES[:attribute])
    cosines = 0.0
    for branch, (embedding, share) in branches.items():
        e = embedding.numpy()[0].astype(np.float64)
        w = model.heads[branch].weight.detach().numpy()[first:first + SIZES[attribute]].astype(np.float64)
        cosines = cosines + share * (w @ e) / np.linalg.norm(w, axis=1) / np.linalg.norm(e)
    exponents = np.exp(cfg.SOLVER.SCALE * cosines)
    return exponents / exponents.sum()


@pytest.mark.parametrize("stage", STAGES)
def test_probabilities_are_the_softmax_of_the_heads(folder, classifiers, paths, stage):
    """And predict() names the likeliest and its probability. A crop of the middle instead would be seen."""
    cfg, classifier = config(folder, stage), classifiers[stage]
    got, told = classifier.probabilities(paths[:5]), classifier.predict(paths[:5])
    assert list(got) == list(told[0]) == NAMES
    moved = 0.0
    for attribute, name in enumerate(NAMES):
        assert got[name].shape == (5, SIZES[attribute]) and got[name].dtype == np.float32
        for row, path in enumerate(paths[:5]):
            want = by_hand(classifier, cfg, decode(path), attribute)
            assert got[name][row] == pytest.approx(want, abs=2e-5)
            values = list(cfg.DATA.ATTRIBUTES.VALUES[attribute])
            assert told[row][name] == {"value": values[want.argmax()], "probability": float(got[name][row].max())}
            assert type(told[row][name]["probability"]) is float
            if stage == "s2":
                middle = by_hand(classifier, cfg, decode(path), attribute, np.ones((2, 2), np.float32))
                moved = max(moved, np.abs(middle - want).max())
    assert stage == "s1" or moved > 1e-3


def test_crops_come_from_the_image_as_it_was_given(folder, classifiers):
    """Not from what the global branch saw: detail that its transform averages away is there for the local one."""
    cfg, classifier = config(folder, "s2"), classifiers["s2"]
    draw = np.random.default_rng(0)
    large = np.kron(draw.integers(0, 256, (5, 4, 3)), np.ones((60, 70, 1))).astype(np.uint8)
    large[::2] //= 2
    rows = classifier.probabilities([large])
    for attribute, name in enumerate(NAMES):
        assert rows[name][0] == pytest.approx(by_hand(classifier, cfg, large, attribute), abs=2e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_many_are_as_one(classifiers, paths, stage, tmp_path):
    """Batches give, in order, what single images give; paths, PIL images and arrays mix; an iterator will do."""
    classifier = classifiers[stage]
    images = [*paths[:9], Image.open(paths[9]), decode(paths[10])]
    many = classifier.probabilities(iter(images))
    for row, path in enumerate(paths[:11]):
        one = classifier.probabilities([path])
        for name in NAMES:
            assert many[name][row] == pytest.approx(one[name][0], abs=1e-5)
    assert [list(values) for values in classifier.predict(iter(images))] == [NAMES] * 11
    assert classifier.predict([]) == []
    assert {name: rows.shape for name, rows in classifier.probabilities([]).items()} == {
        name: (0, size) for name, size in zip(NAMES, SIZES)}


@pytest.mark.parametrize("stage", STAGES)
def test_exif_orientation_is_applied(classifiers, stage, tmp_path):
    """A file turned by EXIF counts as the upright picture, for the crops too; without it the result would be another."""
    draw = np.random.default_rng(1)
    upright = np.kron(draw.integers(0, 256, (8, 5, 3)), np.ones((9, 9, 1))).astype(np.uint8)
    lying = np.ascontiguousarray(np.rot90(upright, 1))      # orientation 6: turn it clockwise to see it upright
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(lying).save(tmp_path / "turned.png", exif=exif)
    seen, want, wrong = (classifiers[stage].probabilities([image])
                         for image in (tmp_path / "turned.png", upright, lying))
    assert all((seen[name] == want[name]).all() for name in NAMES)
    assert any(not np.allclose(want[name], wrong[name], atol=1e-3) for name in NAMES)


# -- which attributes, and what runs ----------------------------------------------------------------

def counted(monkeypatch, model):
    """Images that pass each part of the model from now on."""
    seen = {}

    def count(module, what, attribute="forward"):
        real = getattr(module, attribute)

        def call(x, *arguments):
            seen[what] = seen.get(what, 0) + x.shape[0]
            return real(x, *arguments)
        monkeypatch.setattr(module, attribute, call, raising=False)

    for branch, part in model.choices.items():
        count(part["basenet"], f"{branch} backbone")
        count(part["attnnet"], f"{branch} attention")
        count(part["attnnet"], f"{branch} keys", "keys")
    return seen


def test_the_backbone_runs_once_an_image(classifiers, paths, monkeypatch):
    """And its keys; attention once for each image and attribute that is asked for, and so the local branch."""
    with monkeypatch.context() as patch:
        seen = counted(patch, classifiers["s1"]._model)
        classifiers["s1"].predict(paths[:10])
    assert seen == {"global backbone": 10, "global keys": 10, "global attention": 60}
    with monkeypatch.context() as patch:
        seen = counted(patch, classifiers["s2"]._model)
        classifiers["s2"].predict(paths[:10], ["colour", "neckline"])
    assert seen == {"global backbone": 10, "global keys": 10, "global attention": 20,
                    "local backbone": 20, "local attention": 20, "local keys": 20}


@pytest.mark.parametrize("stage", STAGES)
def test_attributes_can_be_chosen(classifiers, paths, stage):
    """In the order in which they are asked for, with the same answers; unknown ones are named beside the known."""
    classifier = classifiers[stage]
    every, some = (classifier.predict(paths[:3], chosen) for chosen in (None, ["style", "colour"]))
    assert [list(values) for values in some] == [["style", "colour"]] * 3
    assert some == [{name: values[name] for name in ("style", "colour")} for values in every]
    assert list(classifier.probabilities(paths[:3], "pattern")) == ["pattern"]
    for method in (classifier.predict, classifier.probabilities, classifier.stream):
        with pytest.raises(EngineError, match=f"no attribute 'color', 'hem' .*has: {', '.join(NAMES)}"):
            method(paths[:3], ["style", "color", "hem"])


def test_values_without_names_are_ids(folder, classifiers, paths):
    kept = kit.only(NAMES, SIZES)
    classifier = AttributeClassifier(config(folder, "s1", *kept), weights(folder, "s1"))
    assert classifiers["s1"].values["colour"] == COLOURS
    assert classifier.values["colour"] == ["0", "1", "2", "3", "4", "5"]
    named, plain = (c.predict(paths[:1])[0]["colour"]["value"] for c in (classifiers["s1"], classifier))
    assert COLOURS[int(plain)] == named


# -- how much is held -------------------------------------------------------------------------------

def watched(count, alive, most):
    """Pictures drawn one by one; most[0] becomes the largest number of them that exist at once."""
    for seed in range(count):
        picture = np.random.default_rng(seed).integers(0, 256, (40, 30, 3)).astype(np.uint8)
        alive.add(seed)
        weakref.finalize(picture, alive.discard, seed)
        most[0] = max(most[0], len(alive))
        yield picture
        del picture


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("method", ["predict", "probabilities", "stream"])
def test_images_are_held_a_batch_at_a_time(classifiers, stage, method):
    """Of 30 pictures never more than a batch of 8 and the next one exist."""
    alive, most = set(), [0]
    if method == "stream":
        for picture, _ in classifiers[stage].stream(watched(30, alive, most), ["colour"]):
            del picture
    else:
        getattr(classifiers[stage], method)(watched(30, alive, most), ["colour"])
    assert most[0] <= 9 and not alive


def test_large_images_make_batches_shorter(classifiers, monkeypatch):
    """Where crops are cut from them; where they are not, only what the model sees is held."""
    monkeypatch.setattr(base, "_KEPT_BYTES", 3 * 40 * 30 * 3)
    for stage, most_alive in (("s2", 4), ("s1", 9)):
        alive, most = set(), [0]
        told = classifiers[stage].predict(watched(20, alive, most), ["colour"])
        assert len(told) == 20 and most[0] <= most_alive
    seen = []
    monkeypatch.setattr(classifiers["s2"], "_tell", lambda batch, chosen: seen.append(len(batch)) or {})
    classifiers["s2"].predict(watched(8, set(), [0]))
    assert seen == [3, 3, 2]


def test_results_come_as_batches_are_done(classifiers, paths, tmp_path):
    """stream() answers the first image after one batch; what came before an image that cannot be used is answered."""
    drawn = []
    results = classifiers["s1"].stream(drawn.append(path) or path for path in paths[:20])
    assert next(results)[0] == paths[0] and len(drawn) == 8
    results.close()
    missing = str(tmp_path / "missing.png")
    answered = []
    with pytest.raises(FileNotFoundError, match="missing.png"):
        for path, _ in classifiers["s1"].stream([*paths[:10], missing, *paths[10:]]):
            answered.append(path)
    assert answered == paths[:10]
    failed = []
    told = classifiers["s1"].stream([paths[0], missing, paths[1]], failed=lambda image, error: failed.append(image))
    assert [path for path, _ in told] == paths[:2] and failed == [missing]


# -- what is refused --------------------------------------------------------------------------------

def test_what_has_no_heads_is_refused_with_the_remedy(folder):
    """A configuration, a checkpoint, both; a style model; heads of other attributes; one stage's weights for two."""
    plain = asenpp.engine.train(kit.config(folder, "s1", "NAME", "plain", "SOLVER.EPOCHS", 1))["checkpoint"]
    triplet = config(folder, "s1", "SOLVER.LOSS", "triplet")
    with pytest.raises(EngineError, match="SOLVER.LOSS is triplet.*no heads.*train with SOLVER.LOSS cosine"):
        AttributeClassifier(triplet, plain)
    with pytest.raises(EngineError, match="SOLVER.LOSS is triplet.*s1.*has them: --opts SOLVER.LOSS cosine"):
        AttributeClassifier(triplet, weights(folder, "s1"))
    with pytest.raises(CheckpointError, match="plain.*no heads.*SOLVER.LOSS was triplet.*train with SOLVER.LOSS cosine"):
        AttributeClassifier(config(folder, "s1"), plain)
    style = config(folder, "s1", "SOLVER.LOSS", "triplet", "MODEL.TYPE", "StyleClassification", "HEAD.out_features", 4)
    with pytest.raises(EngineError, match="MODEL.TYPE is StyleClassification.*SOLVER.LOSS cosine"):
        AttributeClassifier(style, weights(folder, "s1"))
    with pytest.raises(EngineError, match="DATA.ATTRIBUTES.NAME is empty"):
        AttributeClassifier(asenpp.load_config(kit.files("s1")[1], opts=["SOLVER.LOSS", "cosine"]), weights(folder, "s1"))
    other = config(folder, "s1", *kit.only(NAMES, SIZES[::-1]))     # as many rows of heads as before
    with pytest.raises(CheckpointError, match="other attributes: DATA.ATTRIBUTES.NUM"):
        AttributeClassifier(other, weights(folder, "s1"))
    with pytest.raises(CheckpointError, match="MODEL.LOCAL.ENABLE is False there and True here"):
        AttributeClassifier(config(folder, "s2"), weights(folder, "s1"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        AttributeClassifier(config(folder, "s1"), folder / "nowhere")


def test_the_global_branch_of_stage_two_will_do(folder, paths):
    """Without MODEL.LOCAL the local branch and its heads are left out, and the line says so."""
    classifier = AttributeClassifier(config(folder, "s1"), weights(folder, "s2"))
    assert "ignored" in classifier.loaded
    row = classifier.probabilities(paths[:1])["colour"][0]
    assert row == pytest.approx(by_hand(classifier, config(folder, "s1"), decode(paths[0]), 4), abs=2e-5)


def test_images_that_cannot_be_used_are_named(classifiers, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    with pytest.raises((OSError, DataError), match="broken.jpg"):
        classifiers["s2"].predict([tmp_path / "broken.jpg"])
    with pytest.raises(TypeError, match="uint8"):
        classifiers["s1"].predict([np.zeros((4, 4))])


def spoil(folder, stage, target, tensor, change):
    """A checkpoint with one tensor changed."""
    state = asenpp.load(weights(folder, stage))
    state["model"] = {**state["model"], tensor: change(np.array(state["model"][tensor]))}
    asenpp.save(state, target / "spoilt.pth.tar")
    return target / "spoilt.pth.tar"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("tensor", ["choices.global.basenet.conv1.weight", "choices.global.attnnet.conv.weight",
                                    "heads.global.weight"])
def test_spoilt_weights_are_named(folder, tmp_path, stage, tensor):
    """One NaN in a checkpoint, also in the backbone, whose ReLU makes zeros of it."""
    path = spoil(folder, stage, tmp_path, tensor, lambda values: np.where(np.arange(values.size).reshape(
        values.shape) == values.size - 1, np.float32(np.nan), values))
    with pytest.raises(EngineError, match=f"spoilt.pth.tar: {tensor} is not finite"):
        AttributeClassifier(config(folder, stage), path)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("tensor", ["choices.global.basenet.layer3.1.bn2.weight",       # the map is not finite
                                    "choices.global.attnnet.feature_fc.weight"])        # only the embedding is not
def test_results_that_overflow_are_named(folder, paths, tmp_path, stage, tensor):
    """Finite weights of which nothing finite is computed."""
    path = spoil(folder, stage, tmp_path, tensor, lambda values: np.full(values.shape, 3e38, np.float32))
    with pytest.raises(EngineError, match="spoilt.pth.tar: the result is not finite"):
        AttributeClassifier(config(folder, stage), path).predict(paths[:1])


# -- the command ------------------------------------------------------------------------------------

def arguments(folder, stage, *rest):
    return ["attributes", "--cfg", *kit.files(stage), "--opts", *map(str, kit.options(folder, *COSINE)), "--resume",
            str(weights(folder, stage)), *map(str, rest)]


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_prints_json_lines(folder, classifiers, paths, stage, tmp_path):
    """One an image, in order, Hangul kept, also where the locale is C."""
    korean = tmp_path / "치마.png"
    Image.open(paths[0]).save(korean)
    images = [str(korean), *paths[:9]]
    environment = {**os.environ, "PYTHONPATH": str(kit.ROOT), "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "asenpp.inference", *arguments(folder, stage, *images)],
                          capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode("utf-8").splitlines()
    assert "치마" in lines[0]
    assert [json.loads(line) for line in lines] == [
        {"image": path, "attributes": values} for path, values in zip(images, classifiers[stage].predict(images))]


def test_the_command_takes_names_of_attributes(folder, paths, capsys):
    assert main(arguments(folder, "s1", "--attributes", "style,colour", paths[0])) == 0
    assert list(json.loads(capsys.readouterr().out)["attributes"]) == ["style", "colour"]
    assert main(arguments(folder, "s1", "--attributes", "style,color", paths[0])) == 1
    out, err = capsys.readouterr()
    assert out == "" and "'color'" in err and "colour" in err and "Traceback" not in err
    with pytest.raises(SystemExit) as left:
        main(["attributes", "--cfg", *kit.files("s1"), paths[0]])
    assert left.value.code == 2


def test_the_command_goes_on_when_asked(folder, paths, tmp_path, capsys):
    """A missing image ends the command after those before it; with --keep-going the others are done, and it is
    reported at the end."""
    missing = str(tmp_path / "missing.png")
    images = [paths[0], missing, paths[1]]
    assert main(arguments(folder, "s1", *images)) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["image"] for line in out.splitlines()] == paths[:1] and missing in err
    assert main(arguments(folder, "s1", "--keep-going", *images)) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["image"] for line in out.splitlines()] == paths[:2]
    assert missing in err and "1 files could not be used" in err


def test_the_command_says_what_has_no_heads(folder, paths, capsys):
    given = [*arguments(folder, "s1", paths[0])]
    given[given.index("cosine")] = "supcon"
    assert main(given) == 1
    err = capsys.readouterr().err
    assert "SOLVER.LOSS is supcon" in err and "SOLVER.LOSS cosine" in err and "Traceback" not in err
