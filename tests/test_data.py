"""Index files: what is read from them, what is refused, and the checks before training."""

import os
import random
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from asenpp.data import checks
from asenpp.data.index import (Attributes, DataError, EvalSet, Labels, build_table, image_root,
                               load_eval, load_train, read_attributes, read_filenames, read_labels,
                               resolve_paths)
from asenpp.data.samplers import TripletSampler

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("ASENPP_SHARED") or ROOT.parent / "shared")
KFASHION = SHARED / "data" / "Kfashion"
COLOUR_SIZE = Attributes(("colour", "size"), (3, 2))

FILES = {
    "filenames_train.txt": "스트리트/1.jpg\n리조트/2 b.jpg\nc.jpg\nd.jpg\ne.jpg\nf.jpg\n",
    "filenames_valid.txt": "a.jpg\nb.jpg\n/abs/c.jpg\n",
    "filenames_test.txt": "t.jpg\nu.jpg\n",
    "label_train.txt": "0 0 0 1 0\n1 0 0 1 1\n2 0 1 1 0\n3 0 1\n4 0 2 1 1\n5 0 2\n",
    "query_valid.txt": "2 0 1\n0 1 0\n",
    "candidate_valid.txt": "0 0 1\n1 0 2\n1 1 0\n2 0 1\n",
    "query_test.txt": "0 0 0\n0 1 1\n",
    "candidate_test.txt": "1 0 0\n1 1 1\n",
}


def make_cfg(base, dataset="Shop", names=("colour", "size"), sizes=(3, 2), **data):
    """A configuration with the keys that the data sets read."""
    def by_split(stem):
        return SimpleNamespace(VALID=f"{stem}_valid.txt", TEST=f"{stem}_test.txt")
    values = dict(
        BASE_PATH=str(base), DATASET=dataset, NUM_ATTRIBUTES=len(names),
        ATTRIBUTES=SimpleNamespace(NAME=list(names), NUM=list(sizes)),
        PATH_FILE=SimpleNamespace(TRAIN="filenames_train.txt", VALID="filenames_valid.txt",
                                  TEST="filenames_test.txt"),
        GROUNDTRUTH=SimpleNamespace(TRAIN="label_train.txt", QUERY=by_split("query"),
                                    CANDIDATE=by_split("candidate")))
    values.update(data)
    return SimpleNamespace(DATA=SimpleNamespace(**values))


@pytest.fixture
def shop(tmp_path):
    """A small data set on disk, and its configuration."""
    folder = tmp_path / "Shop"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return make_cfg(tmp_path), folder


# -- reading -------------------------------------------------------------------------------------

def test_train_set(shop):
    """Paths (Hangul, spaces) and the table of image ids by attribute and value, in file order."""
    train = load_train(shop[0])
    assert train.paths[0].endswith("Shop/스트리트/1.jpg") and train.paths[1].endswith("리조트/2 b.jpg")
    assert train.table == [[[0, 1], [2, 3], [4, 5]], [[0, 2], [1, 4]]]
    assert train.labels.images.tolist() == [0, 0, 1, 1, 2, 2, 3, 4, 4, 5]


def test_eval_set(shop):
    """Queries and candidates keep file order; by_attribute groups them; absolute lines stay."""
    valid = load_eval(shop[0], "VALID")
    assert valid.split == "valid" and valid.paths[2] == "/abs/c.jpg"
    assert valid.queries.images.tolist() == [2, 0] and valid.candidates.values.tolist() == [1, 2, 0, 1]
    assert [(a, q.tolist(), c.tolist()) for a, q, c in valid.by_attribute()] == [
        (0, [0], [0, 1, 3]), (1, [1], [2])]
    assert load_eval(shop[0], "test").split == "test"
    with pytest.raises(DataError, match="VALID or TEST"):
        load_eval(shop[0], "train")


def test_features_compute_each_image_once(shop):
    """features(): each image once, each (image, attribute) once, and every row finds its own pair."""
    rng = np.random.RandomState(0)
    sides = [Labels(rng.randint(0, 40, n), rng.randint(0, 3, n), np.zeros(n, np.int64)) for n in (50, 80)]
    names = Attributes(("a", "b", "c"), (1, 1, 1))
    evals = EvalSet("x", "valid", names, [""] * 40, *sides)
    plan = evals.features()
    assert len(set(plan.images.tolist())) == len(plan.images)
    assert len({tuple(pair) for pair in plan.pairs.tolist()}) == len(plan.pairs)
    for labels, rows in zip(sides, (plan.queries, plan.candidates)):
        assert (plan.images[plan.pairs[rows, 0]] == labels.images).all()
        assert (plan.pairs[rows, 1] == labels.attributes).all()
    for i in range(len(plan.images)):
        assert (plan.pairs[plan.first[i]:plan.first[i + 1], 0] == i).all()
    assert plan.first[-1] == len(plan.pairs)
    seen = list(dict.fromkeys(sides[0].images.tolist() + sides[1].images.tolist()))
    assert plan.images.tolist() == seen


def test_subset_is_seeded_and_in_order(shop):
    """subset(): the number asked for, rows of the whole in file order, the same for the same seed."""
    count = 100
    labels = Labels(np.arange(count), np.zeros(count, np.int64), np.zeros(count, np.int64))
    whole = EvalSet("x", "valid", COLOUR_SIZE, [""] * count, labels, labels)
    part = whole.subset(10, None, seed=3)
    ids = part.queries.images.tolist()
    assert len(ids) == 10 and ids == sorted(ids) and len(part.candidates.images) == count
    assert ids == whole.subset(10, None, seed=3).queries.images.tolist()
    assert ids != whole.subset(10, None, seed=4).queries.images.tolist()


def test_line_ends_and_byte_order_mark(tmp_path):
    """Files saved on Windows, with spaces or empty lines at the end, read as the plain ones."""
    path = tmp_path / "f.txt"
    path.write_bytes("\ufeff가.jpg\r\n b.jpg \r\n\r\n".encode())
    assert read_filenames(str(path)) == ["가.jpg", "b.jpg"]
    path.write_bytes(b"\xef\xbb\xbf0 0 1\r\n\r\n1\t1 0\r\n")
    assert read_labels(str(path), 2, COLOUR_SIZE).values.tolist() == [1, 0]


# -- where images lie ----------------------------------------------------------------------------

def test_image_root(tmp_path):
    """IMAGE_ROOT with the split in it; without it BASE_PATH/DATASET; other braces are left alone."""
    cfg = make_cfg("data", "Kfashion")
    assert image_root(cfg, "train") == "data/Kfashion"
    cfg.DATA.IMAGE_ROOT = "/big/{x}/{split}/images"
    assert image_root(cfg, "valid") == "/big/{x}/valid/images"
    assert resolve_paths("/big/train/images", ["스/1.jpg", "/a/b.jpg"]) == ["/big/train/images/스/1.jpg", "/a/b.jpg"]


@pytest.mark.parametrize("test_name", ["", "filenames_valid.txt"])
def test_test_split_without_files_is_the_valid_one(shop, test_name):
    """KFashion names no TEST file of names, Fashion14k names the valid one: valid files and images."""
    cfg, _ = shop
    cfg.DATA.IMAGE_ROOT = "/big/{split}/images"
    cfg.DATA.PATH_FILE.TEST = test_name
    cfg.DATA.GROUNDTRUTH.QUERY.TEST = cfg.DATA.GROUNDTRUTH.CANDIDATE.TEST = ""
    test = load_eval(cfg, "TEST")
    assert test.split == "valid" and test.paths[0] == "/big/valid/images/a.jpg"
    assert test.queries.images.tolist() == [2, 0]


# -- what is refused -----------------------------------------------------------------------------

@pytest.mark.parametrize("name, text, message", [
    ("label_train.txt", "0 0 0\n1 0 x\n", r"label_train.txt:2: 'x' is not an integer"),
    ("label_train.txt", "0 0 0\n\n1 0 1.0\n", r"label_train.txt:3: '1.0' is not an integer"),
    ("label_train.txt", "0 0 1_0\n", r"label_train.txt:1: '1_0' is not an integer"),
    ("label_train.txt", "0 0 99999999999999999999\n", r"label_train.txt:1: '9+' is not an integer"),
    ("label_train.txt", "0 0 0\n1 0\n", r"label_train.txt:2: 2 numbers"),
    ("label_train.txt", "0 0 0 1\n", r"label_train.txt:1: 4 numbers"),
    ("label_train.txt", "0 0 0\n6 0 0\n", r"label_train.txt:2: image id 6 .* 6 lines"),
    ("label_train.txt", "-1 0 0\n", r"label_train.txt:1: image id -1"),
    ("label_train.txt", "0 0 0\n1 0 0 2 0\n", r"label_train.txt:2: attribute 2 .*names 2"),
    ("label_train.txt", "0 -1 0\n", r"label_train.txt:1: attribute -1"),
    ("label_train.txt", "0 0 0 1 1\n1 0 3 1 1\n", r"label_train.txt:2: value 3 of attribute 0 \(colour\).* 0 to 2"),
    ("label_train.txt", "\n0 1 -2\n", r"label_train.txt:2: value -2 of attribute 1 \(size\)"),
    ("label_train.txt", "", r"label_train.txt: holds no labels"),
    ("filenames_train.txt", "a.jpg\n\nb.jpg\n", r"filenames_train.txt:2: empty line"),
    ("filenames_train.txt", "\n", r"filenames_train.txt: holds no image paths"),
])
def test_bad_training_files_are_named(shop, name, text, message):
    """Each fault of a training file is an error with file, line and what was expected."""
    cfg, folder = shop
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_train(cfg)


@pytest.mark.parametrize("text, message", [
    ("0 0 1 1 0\n", r"query_valid.txt:1: 5 numbers; a line reads 'id attribute value'"),
    ("0 0 1\n3 0 1\n", r"query_valid.txt:2: image id 3"),
    ("0 0 1\n0 1 +-1\n", r"query_valid.txt:2: '\+-1' is not an integer"),
])
def test_bad_query_files_are_named(shop, text, message):
    """A query line has exactly three numbers, in range of its own file of names."""
    cfg, folder = shop
    (folder / "query_valid.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        load_eval(cfg, "VALID")


def test_missing_files_are_named_with_the_remedy(shop, tmp_path):
    """A missing index file: its path, and what to do; a prepared data set names its command."""
    cfg, folder = shop
    (folder / "label_train.txt").unlink()
    with pytest.raises(DataError, match=r"label_train.txt: no such index file; put the index files into .*Shop"):
        load_train(cfg)
    with pytest.raises(DataError, match=r"python -m asenpp.data garments --out .*Garments"):
        load_train(make_cfg(tmp_path, "Garments"))
    cfg.DATA.PATH_FILE.TRAIN = ""
    with pytest.raises(DataError, match=r"DATA.PATH_FILE.TRAIN is empty"):
        load_train(cfg)
    cfg.DATA.PATH_FILE.TRAIN = "."
    with pytest.raises(DataError, match=r"is a folder"):
        load_train(cfg)


def test_not_utf8_is_named(shop):
    """A file of names in another encoding (CP949) is an error, not mojibake."""
    cfg, folder = shop
    (folder / "filenames_train.txt").write_bytes("스트리트/1.jpg\n".encode("cp949"))
    with pytest.raises(DataError, match="not UTF-8"):
        load_train(cfg)


@pytest.mark.parametrize("change, message", [
    (dict(ATTRIBUTES=SimpleNamespace(NAME=["a"], NUM=[2, 3]), NUM_ATTRIBUTES=1), "1 entries, NUM has 2"),
    (dict(ATTRIBUTES=SimpleNamespace(NAME=["a"], NUM=[0]), NUM_ATTRIBUTES=1), "0 values for 'a'"),
    (dict(ATTRIBUTES=SimpleNamespace(NAME=[], NUM=[])), "NAME is empty"),
    (dict(NUM_ATTRIBUTES=3), "NUM_ATTRIBUTES is 3"),
])
def test_attributes_must_agree(change, message):
    """Names, numbers of values and NUM_ATTRIBUTES that contradict each other are named."""
    with pytest.raises(DataError, match=message):
        read_attributes(make_cfg("data", **change))
    assert read_attributes(make_cfg("data", NUM_ATTRIBUTES=-1)) == COLOUR_SIZE


# -- checks before training ----------------------------------------------------------------------

def train_set(table_values, names=("colour", "size"), sizes=(3, 2), shop=None, folder=None):
    (folder / "label_train.txt").write_text(table_values)
    return load_train(make_cfg(folder.parent, names=names, sizes=sizes))


def test_unusable_values(shop):
    """A value with fewer than two images: an error naming data set, attribute and value, or skipped."""
    folder = shop[1]
    assert checks.usable_values(load_train(shop[0])) == [[0, 1, 2], [0, 1]]
    few = train_set("0 0 0 1 0\n1 0 0 1 0\n2 0 1 1 1\n3 0 2\n4 0 2\n", folder=folder)
    with pytest.raises(DataError, match=r"Shop.*attribute 0 \(colour\), value 1: 1 image,.*"
                                        r"attribute 1 \(size\), value 1.*SKIP_UNUSABLE_VALUES"):
        checks.usable_values(few)
    usable = checks.usable_values(few, skip=True)
    assert usable == [[0, 2], []]
    assert checks.skipped_values(few, usable) == ["colour: skipped values 1", "size: skipped wholly"]
    for batch in TripletSampler(few.table, 30, 10, random.Random(0), usable):
        assert set(batch.attributes.tolist()) == {0}


def test_same_image_twice_is_one_image(shop):
    """An image listed twice under a value cannot be its own positive."""
    twice = train_set("0 0 0\n0 0 0\n1 0 1\n2 0 1\n", ("colour",), (2,), folder=shop[1])
    with pytest.raises(DataError, match=r"value 0: 1 image"):
        checks.usable_values(twice)


def test_one_value_or_nothing_usable(shop):
    """An attribute with one value is refused; with nothing left to skip to, so is the data set."""
    one = train_set("0 0 0\n1 0 0\n", ("colour",), (1,), folder=shop[1])
    with pytest.raises(DataError, match="has one value only"):
        checks.usable_values(one)
    with pytest.raises(DataError, match="no triplet can be drawn"):
        checks.usable_values(one, skip=True)


def test_eval_checks(shop):
    """Queries without candidates are an error; an attribute without queries and queries whose value
    no candidate has are warnings; a sound evaluation has none."""
    cfg, folder = shop
    assert checks.check_eval(load_eval(cfg, "VALID")) == []
    (folder / "query_valid.txt").write_text("0 0 0\n1 0 1\n")
    unseen, left_out = checks.check_eval(load_eval(cfg, "VALID"))
    assert "1 queries have a value (0)" in unseen and "(size) has no queries" in left_out
    (folder / "query_valid.txt").write_text(FILES["query_valid.txt"])
    (folder / "candidate_valid.txt").write_text("0 0 1\n")
    with pytest.raises(DataError, match=r"attribute 1 \(size\) has 1 queries but no candidates"):
        checks.check_eval(load_eval(cfg, "VALID"))


def test_missing_images(tmp_path):
    """The first missing files, at most the limit; nothing for files that are there."""
    there = tmp_path / "가.jpg"
    there.write_bytes(b"")
    paths = [str(there)] + [str(tmp_path / f"{i}.jpg") for i in range(9)]
    assert checks.missing_images(paths, 2) == paths[1:3]
    assert checks.missing_images(paths, 100) == paths[1:]
    checks.check_images("Shop", paths[:1])
    with pytest.raises(DataError, match="0.jpg.*DATA.IMAGE_ROOT"):
        checks.check_images("Shop", paths)


def test_meta(shop, tmp_path):
    """meta.json: silent when it agrees, is absent or knows other data sets; a warning when it does not."""
    cfg, folder = shop
    assert checks.check_meta(cfg, COLOUR_SIZE) == []
    meta = tmp_path / "meta.json"
    meta.write_text('{"Shop": {"attributes": [{"name": "colour", "num": 3}, {"name": "size", "num": 2}]}}')
    assert checks.check_meta(cfg, COLOUR_SIZE) == []
    (warning,) = checks.check_meta(cfg, Attributes(("colour", "size"), (3, 4)))
    assert "Shop" in warning and "4" in warning
    (folder / "meta.json").write_text("{")
    (warning,) = checks.check_meta(cfg, COLOUR_SIZE)
    assert "not readable" in warning


# -- scale ---------------------------------------------------------------------------------------

@pytest.mark.skipif(not KFASHION.is_dir(), reason=f"no KFashion index files in {KFASHION} (set ASENPP_SHARED)")
def test_kfashion_index_files(capsys):
    """The real files: the class counts of docs/reference.md 2, every image once, and triplets drawn from them."""
    cfg = make_cfg(KFASHION.parent, "Kfashion", ("style",), (3,), IMAGE_ROOT="/images/{split}/images")
    cfg.DATA.PATH_FILE.TEST = ""
    cfg.DATA.GROUNDTRUTH.QUERY.TEST = "query_valid.txt"
    cfg.DATA.GROUNDTRUTH.CANDIDATE.TEST = "candidate_valid.txt"
    begin = time.perf_counter()
    train, test = load_train(cfg), load_eval(cfg, "TEST")
    read = time.perf_counter() - begin
    assert [len(ids) for ids in train.table[0]] == [52082, 58133, 49517]
    assert len(test.queries.images) == 74573 and len(test.candidates.images) == 18644
    both = np.concatenate([test.queries.values, test.candidates.values])
    assert np.bincount(both).tolist() == [14834, 72007, 6376]
    assert train.paths[0].startswith("/images/train/images/스트리트/")
    assert test.paths[0].startswith("/images/valid/images/")
    assert len(test.features().pairs) == 93217
    assert checks.usable_values(train) == [[0, 1, 2]] and checks.check_eval(test) == []
    begin = time.perf_counter()
    triplets = sum(len(b.anchors) for b in TripletSampler(train.table, 100000, 128, random.Random(0)))
    assert triplets == 100000
    with capsys.disabled():
        print(f"\n  KFashion: all index files read in {read:.2f} s, 100,000 triplets drawn in "
              f"{time.perf_counter() - begin:.2f} s")


def test_bulk_reading_is_the_plain_rule():
    """build_table equals the published loop on random labels, duplicates included."""
    rng = np.random.RandomState(1)
    n = 3000
    attributes = Attributes(("a", "b", "c"), (4, 1, 7))
    which = rng.randint(0, 3, n)
    labels = Labels(rng.randint(0, 500, n), which, rng.randint(0, 100, n) % np.array(attributes.sizes)[which])
    expected = [[[] for _ in range(size)] for size in attributes.sizes]
    for image, attribute, value in zip(*(column.tolist() for column in labels)):
        expected[attribute][value].append(image)
    assert build_table(labels, attributes) == expected
