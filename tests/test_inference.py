"""Style inference and the label generator, against docs/reference.md 7 and 9 told once more in plain words here."""

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import asenpp
from asenpp.data.__main__ import main as data_main
from asenpp.data.index import DataError, load_eval, load_train
from asenpp.inference import StyleClassifier, classify_poses
from asenpp.inference.__main__ import main
from asenpp.transforms import GlobalTransform

Image = pytest.importorskip("PIL.Image")
ROOT = Path(__file__).resolve().parent.parent
KFASHION = str(ROOT / "config" / "KFashion" / "KFashion.yaml")
STAGE2 = str(ROOT / "config" / "KFashion" / "s2.yaml")
SIZE = 64
SEED = 3
TINY = ["MODEL.PRETRAINED", False, "MODEL.GLOBAL.BACKBONE.NAME", "resnet18", "MODEL.LOCAL.BACKBONE.NAME", "resnet18",
        "MODEL.EMBED_SIZE", 16, "MODEL.ATTRIBUTE.EMBED_SIZE", 8, "MODEL.GLOBAL.ATTENTION.SPATIAL.COMMON_EMBED_SIZE", 8,
        "HEAD.in_features", 8, "INPUT.GLOBAL_SIZE", SIZE, "INPUT.LOCAL_SIZE", 32, "DATA.TEST_BATCHSIZE", 2,
        "NUM_THREADS", 1, "DEVICE", "cpu"]
NAMES = ["formal", "semi-formal", "casual"]


def config(*more, files=(KFASHION,)):
    return asenpp.load_config(*files, opts=[*TINY, *more])


def save_weights(cfg, path):
    """A checkpoint of random weights, as the published programs write them."""
    asenpp.manual_seed(SEED)
    model = asenpp.build_model(cfg)
    pixels = GlobalTransform(cfg).batch([drawing(seed) for seed in range(8)]).transpose(0, 3, 1, 2)
    with asenpp.no_grad():      # batch norm's running statistics: without them all images look alike
        for _ in range(12):
            model.forward_style(asenpp.tensor(pixels), [0] * 8)
    asenpp.save({"epoch": 1, "model": model.state_dict(), "mAP": 0.5}, path)
    return model.eval()


def drawing(seed, height=90, width=70):
    """A picture that differs with its seed, and in every part of itself."""
    rng = np.random.RandomState(seed)
    rough = Image.fromarray(rng.randint(0, 256, (7, 6, 3)).astype(np.uint8))
    return np.asarray(rough.resize((width, height), Image.BILINEAR))


@pytest.fixture(scope="module")
def arc(tmp_path_factory):
    """(checkpoint, model, classifier) of an ArcStyleClassification."""
    path = tmp_path_factory.mktemp("weights") / "arc.pth.tar"
    model = save_weights(config(), path)
    return path, model, StyleClassifier(config(), path)


def by_hand(model, pixels, factor):
    """Probabilities of one image: Pillow's resize, centre crop, normalising; softmax of factor times the logits."""
    image = Image.fromarray(pixels)
    short, long = min(image.size), max(image.size)
    longer = int(SIZE * long / short)
    image = image.resize((SIZE, longer) if image.width == short else (longer, SIZE), Image.BILINEAR)
    left, top = int(round((image.width - SIZE) / 2)), int(round((image.height - SIZE) / 2))
    square = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), np.float32) / 255
    batch = ((square - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[None].astype(np.float32)
    with asenpp.no_grad():
        logits = model.forward_style(asenpp.tensor(batch), [0])[2].numpy()[0].astype(np.float64) * factor
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


@pytest.mark.parametrize("kind, factor", [("ArcStyleClassification", 10.0), ("StyleClassification", 1.0)])
def test_score_is_the_softmax_of_the_classifier(tmp_path, kind, factor):
    """Style and score equal those computed by hand: for Arc models the softmax is over s times the cosines."""
    cfg = config("MODEL.TYPE", kind)
    model = save_weights(cfg, tmp_path / "c.pth.tar")
    classifier = StyleClassifier(cfg, str(tmp_path / "c.pth.tar"))
    for seed in range(3):
        pixels = drawing(seed)
        want = by_hand(model, pixels, factor)
        result = classifier.classify(pixels)
        assert list(result) == ["style", "score"] and type(result["score"]) is float
        assert result["style"] == NAMES[want.argmax()]
        assert result["score"] == pytest.approx(want.max(), abs=2e-5)
        assert classifier.probabilities([pixels])[0] == pytest.approx(want, abs=2e-5)
        if kind.startswith("Arc"):      # the published softmax without s is another number
            assert abs(by_hand(model, pixels, 1.0).max() - want.max()) > 1e-3


def test_many_are_as_one(arc, tmp_path):
    """Batches of 2 give, in order, what single images give; paths, PIL images and arrays mix; an iterator will do."""
    classifier = arc[2]
    arrays = [drawing(seed, 64 + 9 * seed, 80) for seed in range(5)]
    Image.fromarray(arrays[1]).save(tmp_path / "한복.png")
    images = [arrays[0], tmp_path / "한복.png", Image.fromarray(arrays[2]), arrays[3], arrays[4]]
    one_by_one = [classifier.classify(array) for array in arrays]
    assert len({result["score"] for result in one_by_one}) == 5 and len({r["style"] for r in one_by_one}) > 1
    for many, one in zip(classifier.classify_many(iter(images)), one_by_one):
        assert many["style"] == one["style"] and many["score"] == pytest.approx(one["score"], abs=1e-5)
    assert classifier.classify_many([]) == [] and classifier.probabilities([]).shape == (0, 3)


def test_exif_orientation_is_applied(arc, tmp_path):
    """A file turned by EXIF counts as the upright picture; without it the result would be another."""
    upright = drawing(1)
    lying = np.ascontiguousarray(np.rot90(upright, 1))      # orientation 6: turn it clockwise to see it upright
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(lying).save(tmp_path / "turned.png", exif=exif)
    classifier = arc[2]
    seen, want, wrong = (classifier.probabilities([image])[0] for image in (tmp_path / "turned.png", upright, lying))
    assert (seen == want).all()
    assert not np.allclose(want, wrong, atol=1e-4)


def test_either_stage_will_do(arc):
    """A stage 2 configuration with weights of stage 1 gives the same: only the global branch is used."""
    cfg = config(files=(KFASHION, STAGE2))
    assert cfg.MODEL.LOCAL.ENABLE
    assert StyleClassifier(cfg, arc[0]).classify(drawing(0)) == arc[2].classify(drawing(0))


def test_names_come_from_the_configuration(arc):
    """Without DATA.ATTRIBUTES.VALUES the style is the class id, as text."""
    number = NAMES.index(arc[2].classify(drawing(0))["style"])
    cfg = config("DATA.ATTRIBUTES.VALUES", [[]])
    assert StyleClassifier(cfg, arc[0]).classify(drawing(0))["style"] == str(number)


def test_mistakes_are_named(arc, tmp_path):
    """No classifier, no checkpoint, weights of another model, no image: errors that name the thing."""
    with pytest.raises(asenpp.engine.EngineError, match="MODEL.TYPE is ASEN"):
        StyleClassifier(config("MODEL.TYPE", "ASEN"), arc[0])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        StyleClassifier(config(), tmp_path / "nowhere")
    with pytest.raises(asenpp.checkpoint.CheckpointError, match="another architecture"):
        StyleClassifier(config("MODEL.TYPE", "StyleClassification"), arc[0])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    with pytest.raises((OSError, DataError), match="broken.jpg"):
        arc[2].classify(tmp_path / "broken.jpg")
    with pytest.raises(TypeError, match="uint8"):
        arc[2].classify(np.zeros((4, 4)))


# -- the command: images --------------------------------------------------------------------------

def arguments(command, path, *rest):
    return [command, "--cfg", KFASHION, "--opts", *map(str, TINY), "--resume", str(path), *map(str, rest)]


def test_image_command_prints_json_lines(arc, tmp_path):
    """`python -m asenpp.inference image` prints one JSON line an image, Hangul kept, also where the locale is C."""
    paths = [str(tmp_path / name) for name in ("정장.png", "b.png")]
    for seed, path in enumerate(paths):
        Image.fromarray(drawing(seed)).save(path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "asenpp.inference", *arguments("image", arc[0], *paths)],
                          capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode("utf-8").splitlines()
    assert "정장" in lines[0]
    assert [json.loads(line) for line in lines] == [
        {"image": path, **arc[2].classify(path)} for path in paths]


def test_image_command_goes_on_when_asked(arc, tmp_path, capsys):
    """A missing image ends the command; with --keep-going the others are done and it is reported at the end."""
    good, missing = tmp_path / "good.png", tmp_path / "missing.png"
    Image.fromarray(drawing(0)).save(good)
    assert main(arguments("image", arc[0], missing, good)) == 1
    out, err = capsys.readouterr()
    assert out == "" and str(missing) in err
    assert main(arguments("image", arc[0], "--keep-going", missing, good)) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["image"] == str(good) and str(missing) in err and "1 files could not be used" in err


# -- pose files -----------------------------------------------------------------------------------

def pose(*boxes, **more):
    return {"meta_data": {"이름": "사진", "b": 1, "a": [1.50, None]},
            "pose_info": [{"keypoints": [1, 2.5], "bbox": box, "id": f"사람{i}", **more}
                          for i, box in enumerate(boxes)]}


@pytest.fixture
def folders(tmp_path):
    """json/, images/ with two pose files, one of them in a subfolder."""
    for name in ("json/하위", "images"):
        (tmp_path / name).mkdir(parents=True)
    for seed, name in enumerate(("첫번째", "b.c")):
        Image.fromarray(drawing(seed)).save(tmp_path / "images" / f"{name}.jpg", quality=95)
    boxes = [5, 10, 40, 60], ["12.9", "20", "30.99", 1e1], [-8.5, 40, 30, 400]
    (tmp_path / "json/하위/첫번째.json").write_text(json.dumps(pose(*boxes)), encoding="utf-8")
    (tmp_path / "json/b.c.json").write_text(json.dumps(pose()), encoding="utf-8-sig")
    (tmp_path / "json/notes.txt").write_text("no pose file")
    return tmp_path


def pose_arguments(arc, folders, *more):
    return arguments("poses", arc[0], "--json-root", folders / "json", "--img-prefix", folders / "images",
                     "--out", folders / "out", *more)


def expected(document, styles):
    """The output, as docs/reference.md 7 describes it, as text."""
    people = []
    for entry, style in zip(document["pose_info"], styles):
        rest = dict(entry)
        box = rest.pop("bbox")
        people.append({"bbox": box, "pose_info": rest,
                       "face_info": {"sex": "", "age": "", "num_Landmark": "", "bbox": [], "Landmark": [],
                                     "Emotion": ""},
                       "style_info": style})
    contents = {"object_contents_info": {"MAIN_CHARAC": "", "count": len(people), "CNTS": people}}
    contents["brand_info"] = {"bbox": [], "TEXT": ""}
    contents["QR_info"] = {"bbox": [], "url": ""}
    contents["OCR_info"] = {"num_word": "", "words": [{"bbox": [], "TEXT": "", "class": ""}]}
    whole = {"meta_data": document["meta_data"], "Contents_tag": {"caption_tag": []},
             "Caption_data": {"caption_data": ""}, "Contents_info": contents}
    return json.dumps(whole, indent=2, ensure_ascii=False)


def test_poses_keep_names_order_and_text(arc, folders):
    """Every byte of the outputs: names and subfolders, order of keys, indent, Hangul, boxes unchanged; the classes
    and the crops' names are those of the parts that the boxes mark, corners being int(float())."""
    assert main(pose_arguments(arc, folders, "--crops", folders / "crops")) == 0
    with Image.open(folders / "images/첫번째.jpg") as image:
        pixels = np.asarray(image)
    # left 12, width 30, height 10; the third reaches over the edges: columns 0 to 21, rows 40 to the last
    parts = [pixels[10:70, 5:45], pixels[20:30, 12:42], pixels[40:90, 0:22]]
    found = [arc[2].classify(part) for part in parts]
    styles = [str(NAMES.index(result["style"])) for result in found]
    assert len(set(styles)) > 1
    text = (folders / "out/하위/첫번째.json").read_bytes().decode("utf-8")
    assert text == expected(json.loads((folders / "json/하위/첫번째.json").read_text(encoding="utf-8")), styles)
    assert (folders / "out/b.c.json").read_bytes().decode("utf-8") == expected(pose(), [])
    assert sorted(str(p.relative_to(folders / "out")) for p in (folders / "out").rglob("*.*")) == [
        "b.c.json", "하위/첫번째.json"]
    crops = {path.name: path for path in (folders / "crops").rglob("*.*")}
    names = [f"첫번째_{i}_{result['style']}_{result['score']:.4f}.jpg" for i, result in enumerate(found)]
    assert sorted(crops) == sorted(names)
    for name, part in zip(names, parts):
        with Image.open(crops[name]) as image:
            assert np.abs(np.asarray(image, int) - part).mean() < 6


BROKEN = {
    "{\"meta_data\": 1, ": "not JSON",
    "[" * 100000: "not JSON",
    "[]": "an object",
    "{\"pose_info\": []}": "meta_data is missing",
    "{\"meta_data\": 1}": "pose_info is missing",
    "{\"meta_data\": 1, \"pose_info\": {}}": "must be a list",
    json.dumps({"meta_data": 1, "pose_info": [{"id": 1}]}): r"pose_info\[0\]: bbox is missing",
    json.dumps(pose([0, 0, 9, 9], [1, 2, 3])): r"pose_info\[1\]: bbox must be",
    json.dumps(pose([0, 0, 9, "wide"])): "four numbers",
    json.dumps(pose([0, 0, 9, float("inf")])): "four numbers",
    json.dumps(pose([0, 0, 0, 9])): "holds nothing",
    json.dumps(pose([500, 0, 10, 9])): "holds nothing of the image, which is 70×90",
    json.dumps(pose([-50, 0, 10, 9])): "holds nothing",
}


@pytest.mark.parametrize("text, message", BROKEN.items(), ids=[m[:30] for m in BROKEN.values()])
def test_broken_pose_files_are_named(arc, folders, text, message):
    """What is wrong is said with the file's name, and there is no output for it; others are done with keep_going."""
    bad = folders / "json/b.c.json"
    bad.write_text(text)
    paths = folders / "json", folders / "images", folders / "out"
    with pytest.raises(DataError, match=message) as caught:
        classify_poses(arc[2], *paths)
    assert str(bad) in str(caught.value)
    written, mistakes = classify_poses(arc[2], *paths, keep_going=True)
    assert written == 1 and len(mistakes) == 1 and str(bad) in mistakes[0]
    assert not (folders / "out/b.c.json").exists() and (folders / "out/하위/첫번째.json").exists()


def test_missing_and_broken_images_are_named(arc, folders, capsys):
    """A pose file without image, and one with half an image: exit status 1, both names; reported at the end."""
    image = folders / "images/b.c.jpg"
    whole = image.read_bytes()
    image.unlink()
    assert main(pose_arguments(arc, folders)) == 1
    err = capsys.readouterr().err
    assert str(image) in err and str(folders / "json/b.c.json") in err and "--img-prefix" in err
    image.write_bytes(whole[:len(whole) // 2])
    assert main(pose_arguments(arc, folders, "--keep-going")) == 1
    err = capsys.readouterr().err
    assert str(image) in err and "1 files written" in err and "1 files could not be used" in err


def test_outputs_are_whole_or_not_there(arc, folders, monkeypatch):
    """A disk that fills up leaves the old output as it was, no half one, and ends the work even with keep_going."""
    (folders / "out").mkdir()
    (folders / "out/b.c.json").write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="b.c.json"):
        classify_poses(arc[2], folders / "json", folders / "images", folders / "out", keep_going=True)
    assert (folders / "out/b.c.json").read_text() == "old"
    assert [path.name for path in (folders / "out").rglob("*.*")] == ["b.c.json"]


def test_pose_files_are_never_written_over(arc, folders):
    """An output folder that is, or lies in, the input folder is refused; so is one whose files would land there."""
    for out in ("json", "json/out", "json/../json"):
        with pytest.raises(DataError, match="--out"):
            classify_poses(arc[2], folders / "json", folders / "images", folders / out)
    (folders / "json/json").mkdir()
    (folders / "json/하위/첫번째.json").rename(folders / "json/json/첫번째.json")
    with pytest.raises(DataError, match="--out"):
        classify_poses(arc[2], folders / "json", folders / "images", folders)
    (folders / "empty").mkdir()
    with pytest.raises(DataError, match="no pose files"):
        classify_poses(arc[2], folders / "empty", folders / "images", folders / "out")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        classify_poses(arc[2], folders / "nowhere", folders / "images", folders / "out")


def test_half_a_surrogate_stays_an_escape(arc, folders):
    """Text that JSON can hold and UTF-8 cannot comes out as valid JSON with the same content."""
    (folders / "json/b.c.json").write_text('{"meta_data": "\\ud83d 한", "pose_info": []}', encoding="utf-8")
    classify_poses(arc[2], folders / "json", folders / "images", folders / "out")
    text = (folders / "out/b.c.json").read_bytes().decode("utf-8")
    assert json.loads(text)["meta_data"] == "\ud83d 한" and "한" in text


# -- the label generator --------------------------------------------------------------------------

COUNTS = {"dressy": 15, "ethnic": 10, "한복": 5}     # in sorted order


@pytest.fixture
def classes(tmp_path, monkeypatch):
    """images/<class>/<i>.jpg (empty files will do), the working folder being the one that holds images/."""
    for name in reversed(COUNTS):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(COUNTS[name]):
            (tmp_path / "images" / name / f"{i}.jpg").touch()
    (tmp_path / "images/readme.txt").touch()
    (tmp_path / "images/dressy/notes.txt").touch()
    (tmp_path / "images/.cache").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def labels_config(folder):
    return asenpp.load_config(str(ROOT / "config/Fashion14k/Fashion14k.yaml"), opts=[
        "DATA.BASE_PATH", str(folder), "DATA.DATASET", "labels", "DATA.ATTRIBUTES.NUM", [3],
        "DATA.ATTRIBUTES.VALUES", [list(COUNTS)], "HEAD.out_features", 3])


def test_style_labels_splits_each_class(classes, capsys):
    """80 % train; of the rest 70 % candidates, rounded down, per class; classes by sorted name; ids of the valid part
    count candidates, then queries; every image once; the files load as a data set whose paths exist."""
    assert data_main(["style_labels", "images", "--out", "labels"]) == 0
    said = capsys.readouterr()
    assert "3 classes, 24 images to train on, 3 candidates and 3 queries" in said.out
    assert "class 한복: 5 images are too few for candidates" in said.err and "dressy" not in said.err
    assert (classes / "labels/classid.txt").read_text(encoding="utf-8") == "0:dressy\n1:ethnic\n2:한복\n"
    cfg = labels_config(classes)
    train, valid = load_train(cfg), load_eval(cfg, "VALID")
    assert Counter(train.labels.values.tolist()) == {0: 12, 1: 8, 2: 4}
    assert Counter(valid.candidates.values.tolist()) == {0: 2, 1: 1}
    assert Counter(valid.queries.values.tolist()) == {0: 1, 1: 1, 2: 1}
    assert train.labels.images.tolist() == list(range(24))
    assert valid.candidates.images.tolist() == [0, 1, 2] and valid.queries.images.tolist() == [3, 4, 5]
    every = train.paths + valid.paths
    assert len(set(every)) == 30 and all(os.path.isfile(path) for path in every)
    for labels, paths in ((train.labels, train.paths), (valid.candidates, valid.paths), (valid.queries, valid.paths)):
        for image, value in zip(labels.images, labels.values):
            assert Path(paths[image]).parent.name == list(COUNTS)[value]
    first = [int(Path(path).stem) for path in train.paths[:12]]
    assert first != sorted(first)       # shuffled


def test_style_labels_is_seeded_and_careful(classes, capsys):
    """The same seed writes the same bytes and says so; other files are not replaced without --force."""
    command = ["style_labels", "images", "--out", "labels", "--relative-to", "images", "--quiet"]

    def contents():
        return {path.name: path.read_bytes() for path in (classes / "labels").iterdir()}

    assert data_main(command) == 0
    before = contents()
    assert len(before) == 6
    assert before["filenames_train.txt"].decode().splitlines()[0].startswith("dressy/")
    assert data_main(command) == 0 and contents() == before
    capsys.readouterr()
    assert data_main([*command, "--seed", "1"]) == 1
    assert "--force" in capsys.readouterr().err and contents() == before
    assert data_main([*command, "--seed", "1", "--force"]) == 0
    changed = {name for name, data in contents().items() if data != before[name]}
    assert changed == {"filenames_train.txt", "filenames_valid.txt"}


def test_style_labels_names_what_is_wrong(classes, capsys):
    """A folder that is missing, has no classes, an empty class, or a name that no index file can hold."""
    (classes / "none").mkdir()
    (classes / "gap/empty").mkdir(parents=True)
    (classes / "blank/a").mkdir(parents=True)
    (classes / "blank/a/x\ny.jpg").touch()
    for folder, message in (("nowhere", "nowhere"), ("none", "no class folders"), ("gap", "gap/empty"),
                            ("blank", "rename it")):
        assert data_main(["style_labels", folder, "--out", "labels"]) == 1
        assert message in capsys.readouterr().err
    assert not (classes / "labels").exists()
