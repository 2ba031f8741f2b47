"""The drawn garments: reproducible, independent attributes, and boxes that are true."""

import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from asenpp.data import checks, garments
from asenpp.data.index import DataError, load_eval, load_train

Image = pytest.importorskip("PIL.Image")
SIZES = [len(values) for _, values in garments.ATTRIBUTES]


def make_cfg(out):
    """The configuration of a prepared folder, its attributes taken from its meta.json."""
    entry = json.loads((out / "meta.json").read_text())["Garments"]
    names = [item["name"] for item in entry["attributes"]]
    sizes = [item["num"] for item in entry["attributes"]]
    sides = {side: SimpleNamespace(**{s.upper(): entry[s]["label_file"][side] for s in ("valid", "test")})
             for side in ("query", "candidate")}
    return SimpleNamespace(DATA=SimpleNamespace(
        BASE_PATH=str(out.parent), DATASET=out.name, IMAGE_ROOT="", NUM_ATTRIBUTES=len(names),
        ATTRIBUTES=SimpleNamespace(NAME=names, NUM=sizes),
        PATH_FILE=SimpleNamespace(**{s.upper(): entry[s]["fname_list"] for s in garments.SPLITS}),
        GROUNDTRUTH=SimpleNamespace(TRAIN=entry["train"]["label_file"], QUERY=sides["query"],
                                    CANDIDATE=sides["candidate"])))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """One prepared folder for all tests that only read it."""
    out = tmp_path_factory.mktemp("data") / "Garments"
    assert garments.prepare(out, images=200, seed=3, size=64, format="png", quiet=True)
    return out


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes(prepared, tmp_path):
    """The same seed gives the same files, index and images alike; another seed does not."""
    again = tmp_path / "again"
    garments.prepare(again, images=200, seed=3, size=64, format="png", quiet=True)
    assert contents(again) == contents(prepared)
    other = tmp_path / "other"
    garments.prepare(other, images=200, seed=4, size=64, format="png", quiet=True)
    for name in ("label_train.txt", "boxes.json", "train/000000.png"):
        assert contents(other)[name] != contents(prepared)[name]


def test_index_files_load_and_pass_the_checks(prepared):
    """The folder is what training and evaluation read: counts, images there, every value drawable."""
    cfg = make_cfg(prepared)
    train = load_train(cfg)
    assert len(train.paths) == 140 and train.attributes.names == garments.NAMES
    assert checks.usable_values(train) == [list(range(n)) for n in SIZES]
    assert checks.missing_images(train.paths) == []
    assert checks.check_meta(cfg, train.attributes) == []
    for split in ("VALID", "TEST"):
        part = load_eval(cfg, split)
        assert len(part.paths) == 30 and checks.missing_images(part.paths) == []
        assert checks.check_eval(part) == []
        assert len(part.queries.images) == 60 and len(part.candidates.images) == 120
        assert not set(part.queries.images.tolist()) & set(part.candidates.images.tolist())
    with Image.open(train.paths[0]) as image:
        assert image.size == (64, 64) and image.mode == "RGB"


def test_attributes_are_independent():
    """Every value equally often, and knowing one attribute tells nothing about another: over all
    pairs of attributes, chi-square stays below its bound of one in 10^4."""
    values = np.array(garments.draw_values(1200, random.Random(0)))
    for column, size in zip(values.T, SIZES):
        assert set(Counter(column.tolist()).values()) == {1200 // size}

    def worst(table_of):
        result = 0.0
        for a, b in itertools.combinations(range(len(SIZES)), 2):
            seen = np.zeros((SIZES[a], SIZES[b]))
            np.add.at(seen, (table_of[:, a], table_of[:, b]), 1)
            expected = 1200 / seen.size
            freedom = (SIZES[a] - 1) * (SIZES[b] - 1)
            # Wilson-Hilferty: (chi2 / k)^(1/3) is normal with mean 1 - 2/9k and variance 2/9k
            chi = ((seen - expected) ** 2 / expected).sum()
            result = max(result, ((chi / freedom) ** (1 / 3) - 1 + 2 / 9 / freedom) / (2 / 9 / freedom) ** 0.5)
        return result

    assert worst(values) < 3.72
    tied = values.copy()
    tied[:, 1] = (tied[:, 1] + (tied[:, 0] == 0) * (tied[:, 1] == 1)) % SIZES[1]
    assert worst(tied) > 3.72  # the measure finds a slight tie


@pytest.mark.parametrize("attribute", range(len(SIZES)), ids=garments.NAMES)
def test_boxes_are_where_the_attribute_is(attribute):
    """Two images that differ in one attribute only differ where its boxes are, and nowhere else.

    The same seed draws the same chance for both, light and noise included: so outside of the boxes
    (and a pixel of anti-aliasing) all pixels must be equal."""
    size = 96
    for seed in range(30):
        base = [seed % n for n in SIZES]
        other = list(base)
        other[attribute] = (base[attribute] + 1 + seed % (SIZES[attribute] - 1)) % SIZES[attribute]
        a = garments.draw_garment(tuple(base), seed, size)
        b = garments.draw_garment(tuple(other), seed, size)
        changed = (a.pixels != b.pixels).any(axis=2)
        inside = np.zeros((size, size), bool)
        for x, y, w, h in a.boxes[garments.NAMES[attribute]] + b.boxes[garments.NAMES[attribute]]:
            assert 0 <= x < x + w <= size and 0 <= y < y + h <= size
            inside[max(0, y - 1):y + h + 1, max(0, x - 1):x + w + 1] = True
        assert changed.any(), f"seed {seed}: {base} and {other} look the same"
        assert not (changed & ~inside).any(), f"seed {seed}: pixels outside of the boxes changed"


def test_boxes_file_fits_the_images(prepared):
    """boxes.json has, for each image of each split, boxes of every attribute within the image, and
    of about the size that its place in the figure has."""
    boxes = json.loads((prepared / "boxes.json").read_text())
    for split in garments.SPLITS:
        names = (prepared / f"filenames_{split}.txt").read_text().split()
        assert list(boxes[split]) == names
        for entry in boxes[split].values():
            assert tuple(entry) == garments.NAMES
            for name, found in entry.items():
                assert len(found) == (2 if name == "sleeve_length" else 1)
                for x, y, w, h in found:
                    assert 0 <= x and 0 <= y and x + w <= 64 and y + h <= 64 and w >= 5 and h >= 7
                    assert w * h < 0.35 * 64 * 64


def test_existing_folders(prepared, tmp_path, capsys):
    """What is complete is reused and says so; other settings, missing files and foreign folders are
    errors and are left as they are; --force makes anew only what these commands made."""
    out = tmp_path / "g"
    arguments = dict(images=160, size=32, format="png")
    assert garments.prepare(out, quiet=True, **arguments)
    before = contents(out)
    assert not garments.prepare(out, **arguments)
    assert "complete already" in capsys.readouterr().out
    with pytest.raises(DataError, match="seed 0.*--force"):
        garments.prepare(out, seed=1, quiet=True, **arguments)
    assert contents(out) == before
    (out / "test" / "000001.png").unlink()
    with pytest.raises(DataError, match="incomplete.*--force"):
        garments.prepare(out, quiet=True, **arguments)
    assert garments.prepare(out, quiet=True, force=True, **arguments)
    assert contents(out) == before

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="not made by asenpp.data"):
        garments.prepare(mine, force=True, quiet=True, **arguments)
    assert contents(mine) == {"letter.txt": b"dear"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "mine"]


def test_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    """An error or Ctrl-C in the middle leaves neither the target nor temporary files behind."""
    drawn = garments.draw_garment
    for error in (KeyboardInterrupt, OSError):
        calls = []

        def stop_at_ten(*args, error=error, calls=calls):
            calls.append(args)
            if len(calls) == 10:
                raise error("disk full")
            return drawn(*args)

        monkeypatch.setattr(garments, "draw_garment", stop_at_ten)
        with pytest.raises((KeyboardInterrupt, DataError)):
            garments.prepare(tmp_path / "g", images=160, size=32, quiet=True)
        assert len(calls) == 10 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments, message", [(dict(images=100), "--images 100"), (dict(size=8), "--size 8")])
def test_bad_numbers(tmp_path, arguments, message):
    """Too few images for every value, or images too small to see anything, are refused."""
    with pytest.raises(DataError, match=message):
        garments.prepare(tmp_path / "g", quiet=True, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path):
    """`python -m asenpp.data garments` makes the folder (JPEG by default), says so, and ends with 1
    and one line when it cannot; --help names every option."""
    run = [sys.executable, "-m", "asenpp.data", "garments"]
    out = tmp_path / "new" / "Garments"
    done = subprocess.run([*run, "--out", str(out), "--images", "160", "--size", "32"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and "112 train, 24 valid, 24 test" in done.stdout, done.stderr
    with Image.open(out / "train" / "000000.jpg") as image:
        assert image.format == "JPEG" and image.size == (32, 32)
    done = subprocess.run([*run, "--out", str(out), "--images", "200"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "--force" in done.stderr
    shown = subprocess.run([*run, "--help"], capture_output=True, text=True).stdout
    for option in ("--out", "--images", "--seed", "--size", "--format", "--force", "--quiet"):
        assert option in shown
