"""Value-balanced batches of images: what is in them, how they are drawn, and how an epoch is resumed."""

import json
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from asenpp.data import checks
from asenpp.data.balanced import BalancedSampler, ImageBatch, _Epoch
from asenpp.data.index import Attributes, DataError, Labels, build_table
from asenpp.data.samplers import TripletSampler

ROOT = Path(__file__).resolve().parent.parent
SIZES = (3, 2, 4)


def labels_of(rows):
    return Labels(*(np.array(column, np.int64) for column in zip(*rows)))


def shop(images=60, seed=5, sizes=SIZES):
    """Images with none, one or all attributes labelled, some with two values of one; ids with gaps."""
    rng, rows = random.Random(seed), []
    for image in range(images):
        for attribute, size in enumerate(sizes):
            for value in rng.sample(range(size), rng.choice((0, 1, 1, 1, 2))):
                rows.append((3 * image + 1, attribute, value))
    return rows


def by_image(rows, usable=None):
    """{image: {(attribute, value), …}}"""
    found = defaultdict(set)
    for image, attribute, value in rows:
        if usable is None or value in usable[attribute]:
            found[image].add((attribute, value))
    return found


def lists(batches):
    return [[column.tolist() for column in batch] for batch in batches]


def make(rows, num_images=0, batch_size=16, images_per_value=4, seed=0, usable=None, sizes=SIZES):
    return BalancedSampler(labels_of(rows), sizes, num_images, batch_size, images_per_value, seed, usable)


def test_without_groups_each_image_comes_once_a_round():
    """IMAGES_PER_VALUE 0: by chance, in full batches, each image once before any comes again; all labels with it."""
    rows = shop()
    known = by_image(rows)
    sampler = make(rows, num_images=3 * len(known), batch_size=16, images_per_value=0)
    batches = list(sampler)
    ids = [i for batch in batches for i in batch.images.tolist()]
    assert len(ids) == 3 * len(known) and all(len(set(b.images.tolist())) == len(b.images) for b in batches)
    turns = defaultdict(list)
    for place, image in enumerate(ids):
        turns[image].append(place)
    assert {len(places) for places in turns.values()} == {3}
    assert len(set(ids[:len(known)])) >= len(known) - 16    # a batch between two rounds may hold some back
    for batch in batches:
        for row, image in enumerate(batch.images.tolist()):
            mine = batch.rows == row
            assert set(zip(batch.attributes[mine].tolist(), batch.values[mine].tolist())) == known[image]
    assert lists(make(rows, batch_size=16, images_per_value=0, seed=1)) != lists(make(rows, batch_size=16, images_per_value=0))


def any_sampler(case):
    """(labels, sampler): few images, so that batches often hold all of them; rows may be there twice."""
    rng = random.Random(case)
    images, attributes, values = rng.randint(1, 13), rng.randint(1, 3), rng.randint(1, 2)
    rows = [(rng.randrange(images), rng.randrange(attributes), rng.randrange(values))
            for _ in range(rng.randint(1, 50))]
    return rows, make(rows, rng.choice((0, rng.randint(1, 120))), rng.randint(1, 15), rng.randint(1, 5), case)


# -- what is in a batch ----------------------------------------------------------------------------

@pytest.mark.parametrize("case", range(100))
def test_a_batch_holds_each_image_once_with_all_its_labels(case):
    """Any labels (repeated, partial, several values of an attribute): batches as many and as large as announced,
    each id once, all labels of its images and no others, sorted, int64."""
    rows, sampler = any_sampler(case)
    known, batches = by_image(rows), list(sampler)
    total, size = sampler.num_images, min(sampler.batch_size, len(known))
    assert [len(b.images) for b in batches] == [min(size, total - k) for k in range(0, total, size)]
    assert len(batches) == len(sampler)
    for batch in batches:
        assert isinstance(batch, ImageBatch)
        assert all(c.dtype == np.int64 and c.flags.c_contiguous for c in batch)
        ids = batch.images.tolist()
        assert len(set(ids)) == len(ids)
        keys = list(zip(batch.attributes.tolist(), batch.rows.tolist(), batch.values.tolist()))
        assert keys == sorted((a, row, v) for row, image in enumerate(ids) for a, v in known[image])


def test_only_usable_labels_come():
    """Values and attributes left out neither draw images nor come along with them; images that have no other
    label are not counted."""
    rows = shop() + [(1000, 1, 0), (1001, 2, 1)]
    usable = [[0, 2], [], [0, 2, 3]]
    known = by_image(rows, usable)
    sampler = make(rows, usable=usable)     # num_images 0: as many as have a label
    assert sampler.num_images == len(known) < len(by_image(rows))
    seen = set()
    for batch in sampler.epoch():
        assert {1000, 1001}.isdisjoint(batch.images.tolist())
        for row, a, v in zip(*(c.tolist() for c in batch[1:])):
            assert (a, v) in known[batch.images[row]]
            seen.add((a, v))
        assert len(batch.rows) == sum(len(known[i]) for i in batch.images.tolist())
    assert seen == {(0, 0), (0, 2), (2, 0), (2, 2), (2, 3)}


def test_tiny_sets():
    """One image, or fewer than a batch: the batch is all there are, as often as the epoch needs."""
    assert make([(7, 1, 1)]).num_images == 1
    assert lists(make([(7, 1, 1)], batch_size=96)) == [[[7], [0], [1], [1]]]
    five = [(i, 0, i % 2) for i in range(5)]
    batches = lists(make(five, num_images=12, batch_size=96))
    assert [sorted(b[0]) for b in batches[:2]] == [[0, 1, 2, 3, 4]] * 2 and len(batches[2][0]) == 2


def test_a_value_with_few_images_does_not_hold_up_the_batch():
    """Groups of 50 where no value has 50 images: they stay smaller, and the batch still is full."""
    rows = [(i, 0, i % 3) for i in range(30)]
    for batch in make(rows, num_images=290, batch_size=29, images_per_value=50):
        assert len(batch.images) == 29
        assert sorted(Counter(batch.values.tolist()).values()) == [9, 10, 10]


# -- how they are drawn ----------------------------------------------------------------------------

def drawn(sampler, batches, number=0):
    """Per batch [(attribute, value, image ids)], the groups in the order of their turns."""
    epoch = _Epoch(sampler._table, sampler.images_per_value, sampler.seed, number)
    for batch in range(batches):
        ids = sampler._table.ids[epoch.draw(sampler._batch_size(batch))].tolist()
        groups = []
        for attribute, value, count in epoch.groups:
            groups.append((attribute, value, ids[:count]))
            ids = ids[count:]
        assert not ids
        yield groups


@pytest.mark.parametrize("case", range(100))
def test_attributes_and_values_take_turns(case):
    """After every group: attributes have had the same number of turns, give or take one, and so have the values
    of each; none comes twice in a row where there is another. A group holds images of its value, as many as asked,
    but where the batch is full or holds all of them."""
    rows, sampler = any_sampler(case)
    known = by_image(rows)
    values = defaultdict(set)
    for a, v in set().union(*known.values()):
        values[a].add(v)
    turns, last = Counter(), {}
    for groups, batch in zip(drawn(sampler, len(sampler)), sampler):
        assert [i for *_, ids in groups for i in ids] == batch.images.tolist()
        there = set()
        for attribute, value, ids in groups:
            assert all((attribute, value) in known[i] for i in ids)
            there.update(ids)
            everything = {i for i in known if (attribute, value) in known[i]}
            assert len(ids) == sampler.images_per_value or everything <= there or (
                len(there) == len(batch.images) and groups[-1][2] is ids)
            for key, item, others in (("attribute", attribute, set(values)), (attribute, value, values[attribute])):
                assert len(others) == 1 or last.get(key) != item
                last[key] = item
                turns[key, item] += 1
                counts = [turns[key, other] for other in others]
                assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("case", range(100))
def test_images_of_a_value_come_in_rounds(case):
    """Images with one label each: at every moment those of a value have been drawn equally often, give or take one."""
    rng = random.Random(case)
    counts = [rng.randint(1, 9) for _ in range(rng.randint(1, 4))]
    rows = [(10 * value + i, 0, value) for value, count in enumerate(counts) for i in range(count)]
    sampler = make(rows, 100, rng.randint(1, 12), rng.randint(1, 5), case, sizes=(len(counts),))
    times = Counter({image: 0 for image, *_ in rows})
    for groups in drawn(sampler, len(sampler)):
        for _, value, ids in groups:
            for image in ids:
                times[image] += 1
                of_value = [n for i, n in times.items() if i // 10 == value]
                assert max(of_value) - min(of_value) <= 1


@pytest.mark.parametrize("case", range(100))
def test_nobody_is_forgotten(case):
    """Several labels an image: from an image's draw for a value to its draw after the next for the same value,
    each image of that value has been in a batch."""
    rows, sampler = any_sampler(case)
    known = by_image(rows)
    batches = list(drawn(sampler, len(sampler)))
    inside = [{i for *_, ids in groups for i in ids} for groups in batches]
    when = defaultdict(list)
    for number, groups in enumerate(batches):
        for attribute, value, ids in groups:
            for image in ids:
                when[attribute, value, image].append(number)
    for (attribute, value, _), numbers in when.items():
        everything = {i for i in known if (attribute, value) in known[i]}
        for begin, end in zip(numbers, numbers[2:]):
            assert everything <= set().union(*inside[begin:end + 1])


def test_an_epoch_covers_equal_values_exactly():
    """Three values with eight images: an epoch of 24 images has each once."""
    rows = [(i, 0, i % 3) for i in range(24)]
    ids = [i for batch in make(rows, batch_size=6, images_per_value=2) for i in batch.images.tolist()]
    assert sorted(ids) == list(range(24))


def test_everything_is_drawn_by_chance():
    """Over 1200 seeds: which attribute, value and image comes first, second, ..., is even, within six deviations."""
    rows = [(i, a, i % 3) for i in range(12) for a in range(2)]
    counts = defaultdict(Counter)
    for seed in range(1200):
        groups = next(drawn(make(rows, batch_size=8, images_per_value=2, seed=seed, sizes=(3, 3)), 1))
        for place, (attribute, value, ids) in enumerate(groups):
            counts[place, "attribute", 2][attribute] += 1
            counts[place, "value", 3][value] += 1
            for i, image in enumerate(ids):
                counts[place, i, 12][image] += 1
    for (*_, kinds), found in counts.items():
        mean = 1200 / kinds
        assert len(found) == kinds and all(abs(n - mean) < 6 * (mean * (1 - 1 / kinds)) ** 0.5 for n in found.values())


def test_rare_values_come_as_often_as_frequent_ones():
    """8 images of one value, 400 of another: half of each batch."""
    rows = [(i, 0, int(i < 8)) for i in range(408)]
    for batch in make(rows, num_images=320, batch_size=16):
        assert np.bincount(batch.values).tolist() == [8, 8]


# -- the same anywhere -----------------------------------------------------------------------------

def test_draws_depend_on_seed_and_epoch():
    """Same seed, same epochs; another seed or epoch, other batches. The order of the file, and what it says
    twice, changes nothing."""
    rows = shop()
    again = rows + rows[::2]
    random.Random(1).shuffle(again)
    sampler, other = make(rows), make(again)
    first, second = lists(sampler), lists(sampler)
    assert first != second and [lists(other), lists(other)] == [first, second]
    assert lists(make(rows, seed=1)) != first
    random.seed(3)
    np.random.seed(3)
    assert lists(make(rows)) == first


PROGRAM = """
import json, sys
sys.path.insert(0, "tests")
from test_balanced import lists, make, shop
sampler = make(shop(), seed=11)
print(json.dumps([lists(sampler), lists(sampler)]))
"""


@pytest.mark.parametrize("hash_seed", ["0", "77"])
def test_another_process_draws_the_same(hash_seed):
    """Whatever Python salts its hashes with."""
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True,
                         check=True)
    sampler = make(shop(), seed=11)
    assert json.loads(run.stdout) == [lists(sampler), lists(sampler)]


def test_draws_stay_what_they_are():
    """A checkpoint within an epoch names a seed and a number: another version has to draw these batches too."""
    rows = [(i, a, (i >> a) % 2) for i in range(10) for a in range(2)]
    batches = [b.images.tolist() for b in make(rows, batch_size=4, images_per_value=2, seed=5)]
    assert batches == [[1, 0, 8, 4], [6, 7, 3, 9], [5, 4]]


# -- resuming --------------------------------------------------------------------------------------

@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("num_images", [100, 96, 0])
def test_resumed_epoch_is_the_same(num_images, ahead):
    """Stopped after any number of batches (some drawn in advance), saved through JSON, taken up by a fresh sampler:
    the rest of the epoch and the next one are as if never interrupted."""
    rows = shop()
    whole = make(rows, num_images)
    list(whole)
    expected = [lists(whole), lists(whole)]
    for stop in range(len(whole) + 1):
        first = make(rows, num_images)
        list(first)
        epoch = iter(first)
        used = lists(next(epoch) for _ in range(stop))
        for _ in range(min(ahead, len(first) - stop)):
            next(epoch)
        state = json.loads(json.dumps(first.state_dict(stop)))
        assert all(type(value) is int for value in state.values())

        second = make(rows, num_images)
        second.load_state_dict(state)
        assert second.state_dict() == state     # saved again before anything was drawn
        rest = lists(second)
        if stop == len(first):                  # the epoch was over: what follows is the next one
            assert state["batch"] == 0 and used == expected[0] and rest == expected[1]
        else:
            assert used + rest == expected[0] and lists(second) == expected[1]


def test_start_batch_skips():
    """epoch(start_batch=k) yields the batches from k on of the same epoch; after the last one the next epoch begins."""
    rows = shop()
    whole = make(rows, 100)
    expected = [lists(whole), lists(whole)]
    for start in range(len(whole) + 1):
        sampler = make(rows, 100)
        epoch = sampler.epoch(start)
        assert sampler.state_dict()["batch"] == start % len(sampler)
        assert lists(epoch) == expected[0][start:]
        assert sampler.state_dict()["batch"] == 0 and lists(sampler) == expected[1]
    for start in (-1, 8):
        with pytest.raises(DataError, match=f"batch {start}.*7 batches"):
            make(rows, 100).epoch(start)


def test_an_epoch_left_behind_does_not_move_the_state():
    """Of two iterations the later one is under way, whoever still draws from the earlier."""
    sampler = make(shop(), 100)
    old, new = sampler.epoch(), sampler.epoch()
    next(new)
    state = sampler.state_dict()
    assert len(list(old)) == 7 and sampler.state_dict() == state and (state["epoch"], state["batch"]) == (1, 1)
    with pytest.raises(DataError, match="at batch 2: 1 were drawn"):
        sampler.state_dict(2)


@pytest.mark.parametrize("change, named", [
    (dict(num_images=64), r"num_images 100 \(DATA.NUM_IMAGES\), now it is 64"),
    (dict(batch_size=8), r"batch_size 16 \(DATA.TRAIN_BATCHSIZE\), now it is 8"),
    (dict(images_per_value=2), r"images_per_value 4 \(DATA.IMAGES_PER_VALUE\), now it is 2"),
    (dict(seed=1), r"seed 0 \(SEED\), now it is 1"),
    (dict(usable=[[0, 1], [0, 1], [0, 1, 2]]), r"labels \d+ \(a checksum of DATA.GROUNDTRUTH.TRAIN"),
])
def test_other_settings_in_mid_epoch_are_refused(change, named):
    """What an epoch's draws depend on may change between epochs, not within one; the message names it."""
    rows = shop()
    sampler = make(rows, 100)
    epoch = iter(sampler)
    next(epoch)
    other = make(rows, **{"num_images": 100, **change})
    with pytest.raises(DataError, match=named):
        other.load_state_dict(sampler.state_dict())
    list(epoch)
    other.load_state_dict(sampler.state_dict())
    fresh = make(rows, **{"num_images": 100, **change})
    list(fresh)
    assert lists(other) == lists(fresh)         # its own second epoch


def test_states_of_the_other_sampler_are_refused():
    """A checkpoint of triplets does not go on with images, nor the other way round; the message says what to do."""
    images, triplets = make(shop()), TripletSampler([[[0, 1], [2, 3]]], 10, 4, random.Random(0))
    before = images.state_dict(), triplets.state_dict()
    with pytest.raises(DataError, match="trained on triplets.*SOLVER.LOSS.*another NAME"):
        images.load_state_dict(triplets.state_dict())
    with pytest.raises(DataError, match="trained on batches of images.*SOLVER.LOSS.*another NAME"):
        triplets.load_state_dict(images.state_dict())
    assert (images.state_dict(), triplets.state_dict()) == before


# -- refused ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("arguments, message", [
    (dict(num_images=-1), "DATA.NUM_IMAGES is -1: at least 0"),
    (dict(batch_size=0), "DATA.TRAIN_BATCHSIZE is 0: at least 1"),
    (dict(images_per_value=-1), "DATA.IMAGES_PER_VALUE is -1: at least 0"),
    (dict(usable=[[], [], []]), "no image has a label.*DATA.GROUNDTRUTH.TRAIN"),
    (dict(rows=[(1, 0, 0), (2, 1, 2)]), r"image 2 has value 2 of attribute 1: DATA.ATTRIBUTES.NUM is \[3, 2, 4\]"),
    (dict(rows=[(1, 0, 0), (2, 3, 0)]), "image 2 has value 0 of attribute 3"),
    (dict(rows=[(1, 0, -1)]), "image 1 has value -1"),
    (dict(rows=[(-1, 0, 0)]), "image -1 has value 0"),
])
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(DataError, match=message):
        make(**{"rows": shop(), **arguments})


def train_set(rows, names=("colour", "size"), sizes=(3, 2)):
    labels, attributes = labels_of(rows), Attributes(names, sizes)
    return SimpleNamespace(dataset="Shop", attributes=attributes, labels=labels, table=build_table(labels, attributes))


def test_usable_values_for_images():
    """With images=1 a value needs one image, however often the file names it; with 2 a pair. An attribute needs two
    such values in either case."""
    data = train_set([(0, 0, 0), (0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 0, 2), (4, 0, 1), (0, 1, 0), (4, 1, 1)])
    assert checks.usable_values(data, images=1) == [[0, 1, 2], [0, 1]]
    assert checks.usable_values(data, skip=True, images=2) == [[1, 2], []]
    with pytest.raises(DataError, match=r"attribute 0 \(colour\), value 0: 1 image, at least two are needed"):
        checks.usable_values(data, images=2)
    empty = train_set([(0, 0, 0), (1, 0, 2), (2, 1, 0)])
    with pytest.raises(DataError, match=r"\(colour\), value 1: 0 images, at least one is needed.*SKIP_UNUSABLE_VALUES"):
        checks.usable_values(empty, images=1)
    assert checks.usable_values(empty, skip=True, images=1) == [[0, 2], []]
    with pytest.raises(DataError, match="two values with an image each, so nothing can be told apart"):
        checks.usable_values(train_set([(0, 0, 0), (1, 0, 0)]), skip=True, images=1)
    with pytest.raises(ValueError, match="images=3"):
        checks.usable_values(data, images=3)
