"""The triplet sampler: the published program's draws, and epochs left and taken up again."""

import json
import random

import numpy as np
import pytest

from asenpp.data.index import DataError
from asenpp.data.samplers import TripletSampler


def make_table(sizes, images=60, seed=5):
    """A table with image ids that tell attribute and value apart by membership."""
    rng = random.Random(seed)
    table = []
    for size in sizes:
        lists = [[] for _ in range(size)]
        for image in range(images):
            lists[rng.randrange(size)].append(image)
        table.append(lists)
    return table


def published_epoch(table, num_triplets, batch_size):
    """docs/reference.md 5 word for word, on Python's `random`: per batch rows (x, p, n, a, vp, vn)."""
    attributes = random.choices(range(0, len(table)), k=num_triplets)
    batches = []
    for begin in range(0, num_triplets, batch_size):
        rows = []
        for a in attributes[begin:begin + batch_size]:
            vp, vn = random.sample(range(len(table[a])), 2)
            x, p = random.sample(table[a][vp], 2)
            n = random.choice(table[a][vn])
            rows.append((x, p, n, a, vp, vn))
        batches.append(rows)
    return batches


def rows_of(batch):
    return [tuple(row) for row in np.stack(batch, axis=1).tolist()]


# Few and many values: random.sample changes its algorithm at 22 values.
@pytest.mark.parametrize("sizes", [(2,), (3, 5, 4), (2, 40, 30)])
@pytest.mark.parametrize("num_triplets, batch_size", [(64, 16), (50, 16), (5, 16)])
def test_triplets_are_the_published_ones(sizes, num_triplets, batch_size):
    """Same seed, same triplets, over two epochs, from `random` itself and from a random.Random."""
    table = make_table(sizes, images=400)
    random.seed(11)
    expected = [published_epoch(table, num_triplets, batch_size) for _ in range(2)]
    random.seed(11)
    shared = TripletSampler(table, num_triplets, batch_size)
    assert [[rows_of(b) for b in shared] for _ in range(2)] == expected
    private = TripletSampler(table, num_triplets, batch_size, random.Random(11))
    assert [[rows_of(b) for b in private] for _ in range(2)] == expected
    assert len(private) == len(expected[0])


def test_comparison_can_fail():
    """Another seed gives other triplets, so the equality above says something."""
    table = make_table((3, 5, 4))
    a, b = (next(iter(TripletSampler(table, 64, 16, random.Random(seed)))) for seed in (1, 2))
    assert rows_of(a) != rows_of(b)


def test_a_triplet_is_one():
    """Anchor and positive are two images of the anchor's value, the negative is of another value."""
    table = make_table((3, 5))
    for batch in TripletSampler(table, 500, 64, random.Random(0)):
        assert all(column.dtype == np.int64 and column.flags.c_contiguous for column in batch)
        for x, p, n, a, vp, vn in rows_of(batch):
            assert vp != vn and x != p
            assert {x, p} <= set(table[a][vp]) and n in table[a][vn]


def test_unusable_values_are_never_drawn():
    """Values and attributes that are left out do not occur; all the others do."""
    table = [[[1, 2], [3], [4, 5], [6, 7]], [[1], [2, 3]], [[1, 2], [3, 4]]]
    sampler = TripletSampler(table, 600, 50, random.Random(0), usable=[[0, 2, 3], [], [0, 1]])
    drawn = {(a, v) for b in sampler for *_, a, vp, vn in rows_of(b) for v in (vp, vn)}
    assert drawn == {(0, 0), (0, 2), (0, 3), (2, 0), (2, 1)}


def test_usable_everything_changes_no_draw():
    """Naming all values as usable gives the same triplets as naming none."""
    table = make_table((3, 5, 4))
    plain = TripletSampler(table, 100, 16, random.Random(3))
    named = TripletSampler(table, 100, 16, random.Random(3), usable=[list(range(n)) for n in (3, 5, 4)])
    assert [rows_of(b) for b in plain] == [rows_of(b) for b in named]


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("stop", [0, 1, 4, 6, 7])
def test_resumed_epoch_is_the_same(stop, ahead):
    """Stopped after `stop` batches (drawn up to 3 more in advance), saved through JSON, taken up by
    a fresh sampler: the rest of the epoch and the next one are as if never interrupted."""
    table = make_table((3, 5, 4))
    whole = TripletSampler(table, 100, 16, random.Random(7))
    list(whole)
    expected = [[rows_of(b) for b in whole] for _ in range(2)]

    first = TripletSampler(table, 100, 16, random.Random(7))
    list(first)
    epoch = iter(first)
    used = [rows_of(next(epoch)) for _ in range(stop)]
    for _ in range(min(ahead, len(first) - stop)):
        next(epoch)
    state = json.loads(json.dumps(first.state_dict(stop)))

    second = TripletSampler(table, 100, 16, random.Random(999))
    second.load_state_dict(state)
    again = json.loads(json.dumps(second.state_dict()))  # saved again before anything was drawn
    assert again == state
    rest = [rows_of(b) for b in second]
    if stop == len(first):  # the epoch was over: what follows is the next one
        assert used == expected[0] and rest == expected[1]
    else:
        assert used + rest == expected[0]
        assert [rows_of(b) for b in second] == expected[1]


def test_start_batch_skips():
    """epoch(start_batch=k) yields the batches from k on of the same epoch."""
    table = make_table((3, 5, 4))
    whole = [rows_of(b) for b in TripletSampler(table, 100, 16, random.Random(7))]
    sampler = TripletSampler(table, 100, 16, random.Random(7))
    assert [rows_of(b) for b in sampler.epoch(5)] == whole[5:]
    assert sampler.state_dict()["batch"] == 0
    with pytest.raises(DataError, match="8"):
        sampler.epoch(8)


def test_state_is_plain():
    """A state holds ints, lists and None only: what weights_only checkpoints and JSON can carry."""
    state = TripletSampler(make_table((3,)), 10, 4, random.Random(0)).state_dict()
    for value in state.values():
        assert value is None or type(value) is int or (
            type(value) is list and all(type(item) is int for item in value))


def test_other_batch_size_in_mid_epoch_is_refused():
    """A state from the middle of an epoch does not fit another batch size; one from its end does."""
    table = make_table((3, 4))
    sampler = TripletSampler(table, 64, 16, random.Random(0))
    epoch = iter(sampler)
    next(epoch)
    middle = sampler.state_dict()
    with pytest.raises(DataError, match="batch_size 16"):
        TripletSampler(table, 64, 8).load_state_dict(middle)
    list(epoch)
    other = TripletSampler(table, 64, 8, random.Random(1))
    other.load_state_dict(sampler.state_dict())
    assert other.rng.getstate() == sampler.rng.getstate()


@pytest.mark.parametrize("arguments, named", [((0, 16), "NUM_TRIPLETS"), ((16, 0), "TRAIN_BATCHSIZE")])
def test_empty_epochs_are_refused(arguments, named):
    """No triplets, or batches of none: an error that names the key."""
    with pytest.raises(DataError, match=named):
        TripletSampler(make_table((3,)), *arguments)
