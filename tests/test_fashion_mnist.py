"""Fashion-MNIST as image and index files: nothing lost on the way, nothing half-written."""

import gzip
import json
import os
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import asenpp
from asenpp.data import fashion_mnist
from asenpp.data.index import Attributes, DataError, build_table, read_filenames, read_labels

Image = pytest.importorskip("PIL.Image")
ROOT = Path(__file__).resolve().parent.parent
BOTH = Attributes(("category", "worn"), (10, 5))
# What the second attribute, written out: (category, worn)
WORN = {"T-shirt/top": "top", "Pullover": "top", "Coat": "top", "Shirt": "top", "Trouser": "bottom",
        "Dress": "whole body", "Sandal": "feet", "Sneaker": "feet", "Ankle boot": "feet", "Bag": "hand"}


def idx(array):
    """An IDX file of bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def make_source(folder, train=400, test=100, pack=gzip.compress, suffix=".gz"):
    """Four IDX files with random images, classes balanced but shuffled; returns the arrays."""
    rng = np.random.RandomState(0)
    folder.mkdir(exist_ok=True)
    parts = {}
    for part, count in (("train", train), ("t10k", test)):
        images = rng.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))
        parts[part] = (images, labels)
    return parts


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(source arrays, prepared folder): 60 valid images, all others, folders of at most 100."""
    base = tmp_path_factory.mktemp("mnist")
    parts = make_source(base / "idx")
    saved, fashion_mnist.IMAGES_A_FOLDER = fashion_mnist.IMAGES_A_FOLDER, 100
    try:
        assert fashion_mnist.prepare(base / "out", base / "idx", valid=60, test=100, quiet=True)
    finally:
        fashion_mnist.IMAGES_A_FOLDER = saved
    return parts, base / "out"


def read_split(out, split):
    names = read_filenames(str(out / f"filenames_{split}.txt"))
    pixels = []
    for name in names:
        with Image.open(out / name) as image:
            assert image.mode == "L"
            pixels.append(np.asarray(image))
    return names, np.stack(pixels)


def test_every_image_arrives_unchanged(prepared):
    """Train and valid images together are the source's training part, test its test part: each
    image once, bit for bit, under its own label, in the source's order within a split."""
    parts, out = prepared
    images, labels = parts["train"]
    where = {image.tobytes(): row for row, image in enumerate(images)}
    seen = []
    for split, count in (("train", 340), ("valid", 60)):
        names, pixels = read_split(out, split)
        rows = [where[image.tobytes()] for image in pixels]
        assert len(rows) == count and rows == sorted(rows)
        files = ["label_train.txt"] if split == "train" else ["query_valid.txt", "candidate_valid.txt"]
        for file in files:
            found = read_labels(str(out / file), count, BOTH, several=True)
            category = found.attributes == 0
            assert (labels[rows][found.images[category]] == found.values[category]).all()
        seen += rows
    assert sorted(seen) == list(range(400))
    _, pixels = read_split(out, "test")
    assert (pixels == parts["t10k"][0]).all()


def test_worn_follows_the_category(prepared):
    """The second attribute is the place where the category is worn, in all three splits."""
    _, out = prepared
    entry = json.loads((out / "meta.json").read_text())["FashionMNIST"]
    (category, worn) = entry["attributes"]
    assert (category["name"], category["num"], worn["name"], worn["num"]) == ("category", 10, "worn", 5)
    place = [worn["values"].index(WORN[name]) for name in category["values"]]
    for file, count in (("label_train.txt", 340), ("query_test.txt", 100), ("candidate_test.txt", 100)):
        labels = read_labels(str(out / file), count, BOTH, several=True)
        pairs = dict(((i, a), v) for i, a, v in zip(*(c.tolist() for c in labels)))
        assert pairs and all(pairs[i, 1] == place[v] for (i, a), v in pairs.items() if a == 0)
    assert all(len(ids) >= 2 for lists in build_table(
        read_labels(str(out / "label_train.txt"), 340, BOTH, several=True), BOTH) for ids in lists)


def test_splits_are_balanced(prepared):
    """Each class alike in valid and test; a fifth of each class are queries, and no image is both."""
    _, out = prepared
    for split, count in (("valid", 60), ("test", 100)):
        query, candidate = (read_labels(str(out / f"{side}_{split}.txt"), count, BOTH)
                            for side in ("query", "candidate"))
        a_class = count // 10
        assert np.bincount(query.values[query.attributes == 0]).tolist() == [a_class // 5] * 10
        assert np.bincount(candidate.values[candidate.attributes == 0]).tolist() == [a_class - a_class // 5] * 10
        assert set(query.images.tolist()) | set(candidate.images.tolist()) == set(range(count))
        assert not set(query.images.tolist()) & set(candidate.images.tolist())


def test_folders_stay_small(prepared):
    """No folder holds more images than the limit (100 in this fixture)."""
    _, out = prepared
    counts = [len(list(folder.iterdir())) for folder in (out / "train").iterdir()]
    assert sorted(counts) == [40, 100, 100, 100]
    assert fashion_mnist.IMAGES_A_FOLDER <= 5000


def test_subsets_are_balanced_and_disjoint(tmp_path):
    """Subset sizes give balanced classes; training and validation images never overlap."""
    images, labels = make_source(tmp_path / "idx", pack=bytes, suffix="")["train"]  # uncompressed too
    out = tmp_path / "out"
    fashion_mnist.prepare(out, tmp_path / "idx", train=100, valid=25, test=20, quiet=True)
    train = read_labels(str(out / "label_train.txt"), 100, BOTH, several=True)
    assert np.bincount(train.values[train.attributes == 0]).tolist() == [10] * 10
    valid = [image.tobytes() for image in read_split(out, "valid")[1]]
    assert len(valid) == 25
    assert not set(valid) & {image.tobytes() for image in read_split(out, "train")[1]}
    # what is valid does not depend on how many are trained on
    fashion_mnist.prepare(tmp_path / "more", tmp_path / "idx", valid=25, test=20, quiet=True)
    assert [image.tobytes() for image in read_split(tmp_path / "more", "valid")[1]] == valid


@pytest.mark.parametrize("arguments, message", [
    (dict(train=380), r"--train 380: the source has 3\d images"),
    (dict(valid=410), r"--valid 410: the source has 40 images"),
    (dict(test=5), r"--test 5: at least 20"),
])
def test_numbers_that_cannot_be_had(tmp_path, arguments, message):
    """Asking for more images than there are (or too few for queries and candidates) is refused."""
    make_source(tmp_path / "idx")
    with pytest.raises(DataError, match=message):
        fashion_mnist.prepare(tmp_path / "out", tmp_path / "idx", quiet=True,
                              **{"valid": 60, "test": 100, **arguments})
    assert not (tmp_path / "out").exists()


LABELS = np.arange(400, dtype=np.uint8) % 10


@pytest.mark.parametrize("name, data, message", [
    ("train-labels-idx1-ubyte.gz", None, "labels-idx1-ubyte.gz is not there.*apt-get install dataset-fashion-mnist"),
    ("train-labels-idx1-ubyte.gz", gzip.compress(idx(LABELS))[:-9], "cannot be read"),
    ("train-labels-idx1-ubyte.gz", gzip.compress(idx(LABELS)[:-1]), "407 bytes, its header says 408"),
    ("train-labels-idx1-ubyte.gz", b"<html>not found</html>", "not an IDX file.*3c68746d"),
    ("train-labels-idx1-ubyte.gz", idx(LABELS.reshape(20, 20)), "not an IDX file of bytes in 1 dim"),
    ("train-labels-idx1-ubyte.gz", b"\0\0\x08\1\0", "ends within its header"),
    ("train-labels-idx1-ubyte.gz", idx(LABELS[:-1]), "400 images.*399 labels"),
    ("train-labels-idx1-ubyte.gz", idx(LABELS + 1), "label 10, 0 to 9"),
    ("t10k-images-idx3-ubyte.gz", idx(np.zeros((100, 32, 32), np.uint8)), "32 x 32, 28 x 28 were expected"),
])
def test_damaged_sources_are_named(tmp_path, name, data, message):
    """A file that is absent, cut, of another kind or that contradicts another one: an error that
    names it, and nothing is written."""
    make_source(tmp_path / "idx")
    (tmp_path / "idx" / name).unlink()
    if data is not None:
        (tmp_path / "idx" / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        fashion_mnist.prepare(tmp_path / "out", tmp_path / "idx", valid=60, test=100, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["idx"]


def test_missing_package_is_named(tmp_path, monkeypatch):
    """Without --source and without the package: an error that names the package to install."""
    monkeypatch.setattr(fashion_mnist, "SYSTEM_SOURCE", tmp_path / "nowhere")
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist.*--source"):
        fashion_mnist.prepare(tmp_path / "out", quiet=True)


def test_command_line_makes_it_once(tmp_path):
    """The command prepares the folder, and a second time finds it complete."""
    make_source(tmp_path / "idx")
    run = [sys.executable, "-m", "asenpp.data", "fashion_mnist", "--source", str(tmp_path / "idx"),
           "--out", str(tmp_path / "out"), "--train", "100", "--valid", "50", "--test", "50"]
    first = subprocess.run(run, capture_output=True, text=True)
    assert first.returncode == 0 and "100 training, 50 validation and 50 test" in first.stdout, first.stderr
    second = subprocess.run(run, capture_output=True, text=True)
    assert second.returncode == 0 and "complete already" in second.stdout
    other = subprocess.run([*run, "--valid", "60"], capture_output=True, text=True)
    assert other.returncode == 1 and other.stderr.startswith("asenpp.data: ") and "valid 50" in other.stderr


@pytest.mark.skipif(not fashion_mnist.SYSTEM_SOURCE.is_dir(),
                    reason="Debian package dataset-fashion-mnist is not installed")
def test_the_real_files(tmp_path):
    """Zalando's files: sizes, balanced classes, and a known image (the first: an ankle boot)."""
    images, labels = fashion_mnist.read_part(fashion_mnist.SYSTEM_SOURCE, "train")
    assert images.shape == (60000, 28, 28) and np.bincount(labels).tolist() == [6000] * 10
    test_images, test_labels = fashion_mnist.read_part(fashion_mnist.SYSTEM_SOURCE, "t10k")
    assert test_images.shape == (10000, 28, 28) and np.bincount(test_labels).tolist() == [1000] * 10
    assert fashion_mnist.CATEGORIES[labels[0]] == "Ankle boot"
    fashion_mnist.prepare(tmp_path / "out", train=200, valid=100, test=100, quiet=True)
    assert (read_split(tmp_path / "out", "test")[1][0] == test_images[0]).all()


# -- make fashion-mnist -----------------------------------------------------------------------------

def commands(tmp_path, **environment):
    """(exit status, lines) of the script with an interpreter that prints its arguments."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(["sh", str(ROOT / "scripts" / "fashion-mnist.sh"), str(python)], capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"], **environment})
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize("quick", ["0", "1"])
@pytest.mark.parametrize("mode, stages, key", [("", ["cosine"], "NUM_IMAGES"), ("published", ["s1", "s2"], "NUM_TRIPLETS")])
def test_the_main_job_trains_what_its_mode_says(tmp_path, quick, mode, stages, key):
    """Each stage from the best weights of the one before, then TEST with the best of the last; QUICK reduces each, by keys
    that go together with its configuration."""
    status, lines = commands(tmp_path, QUICK=quick, **({"MODE": mode} if mode else {}))
    assert status == 0 and lines[0].startswith("-m asenpp.data fashion_mnist")
    runs, before = lines[1:-1], ""
    assert len(runs) == len(stages) + 1 and runs[-1].split(" --opts")[0].endswith("--test TEST")
    for stage, line in zip([*stages, stages[-1]], runs):
        found = shlex.split(line)
        files, opts = found[2:4], found[found.index("--opts") + 1:] if "--opts" in found else []
        cfg = asenpp.load_config(*(ROOT / file for file in files), opts=opts)
        assert cfg.NAME == f"FashionMNIST_{stage}" and (f"DATA.{key}" in opts) == (quick == "1")
        assert cfg.SOLVER.EPOCHS == 1 or quick == "0"
        assert not before or found[found.index("--resume") + 1] == before
        before = f"{cfg.SAVE_DIR}/{cfg.NAME}/model_best.pth.tar"


def test_a_mode_that_does_not_exist_is_named(tmp_path):
    assert commands(tmp_path, MODE="triplet") == (2, ["fashion-mnist: MODE is triplet: it must be published, or cosine "
                                                      "(the default)"])
