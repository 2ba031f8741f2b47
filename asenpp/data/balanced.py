"""Batches of images, balanced by value or as they come: what the losses over the images of a batch draw from.

A batch is made of groups of images that share one value of one attribute, the M-per-class batches of
metric learning (Hermans et al. 2017, "In Defense of the Triplet Loss", section 2: P classes, K images
each), for several attributes at once. Rare values come as often as frequent ones.

What is random comes from `random.Random.random()` alone, seeded by a string: Python promises that
sequence for every version and process. So an epoch is the same wherever it is drawn.
"""

from __future__ import annotations

import random
import zlib
from array import array
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np

from .index import DataError, Labels
from .samplers import EpochSampler


class ImageBatch(NamedTuple):
    """Images of one step and all their labels: int64 arrays.

    images:             (B,) image ids, each once; the images of a group follow each other
    rows:               (L,) label l is of the image images[rows[l]]
    attributes, values: (L,) its attribute, and the value there

    Labels are sorted by (attribute, row, value), each once. An image may have several values of one
    attribute, or no label of it.
    """

    images: np.ndarray
    rows: np.ndarray
    attributes: np.ndarray
    values: np.ndarray


class _Cycle:
    """Items that take turns: a shuffled order of all, shuffled anew when it is used up.

    At any moment the turns of two items differ by at most one. The same item comes twice in a row
    only where there is no other.
    """

    def __init__(self, items: Sequence[int], draw: Callable[[], float]):
        self._items, self._draw = list(items), draw
        self._next = len(self._items)
        self._last: int | None = None

    def turn(self) -> int:
        if self._next == len(self._items):
            self._shuffle()
            self._next = 0
        self._last = self._items[self._next]
        self._next += 1
        return self._last

    def _shuffle(self) -> None:
        items = self._items
        for end in range(len(items) - 1, 0, -1):
            place = int(self._draw() * (end + 1))
            items[place], items[end] = items[end], items[place]
        if items[0] == self._last and len(items) > 1:
            place = 1 + int(self._draw() * (len(items) - 1))
            items[0], items[place] = items[place], items[0]


class _Pool:
    """The images of one value, drawn without replacement in rounds.

    order[:left]              still to be drawn in this round
    order[left:left + kept]   came up while they were in the batch already; they stay in the round
    order[left + kept:]       drawn in this round

    An image of one label only is drawn once a round. One that other groups have brought into the batch
    may miss a round that ends there: it goes over into the next one.
    """

    def __init__(self, images: np.ndarray):
        self._order = array("q", images.tobytes())
        self._left = len(self._order)
        self._kept = 0
        self._refilled = False      # in this batch

    def draw(self, count: int, batch: dict[int, None], draw: Callable[[], float]) -> int:
        """Puts `count` images that are not in the batch into it, or all that there are; how many."""
        order, taken = self._order, 0
        while taken < count and (self._left or self._refill()):
            place = int(draw() * self._left)
            self._left -= 1
            left, image = self._left, order[place]
            order[place] = order[left]
            if image in batch:
                order[left] = image
                self._kept += 1
                continue
            end = left + self._kept
            order[left] = order[end]
            order[end] = image
            batch[image] = None
            taken += 1
        return taken

    def _refill(self) -> bool:
        """A new round, the kept with the others; False where all images are in the batch.

        Between a first refill and the end of that round all images come up, and then all are in the
        batch: no batch needs a second one, and what was kept stays in the round.
        """
        if self._refilled:
            return False
        self._refilled = True
        self._left, self._kept = len(self._order), 0
        return True

    def end_batch(self) -> None:
        self._left += self._kept
        self._kept = 0
        self._refilled = False


class _Table:
    """The usable labels, each once, as arrays; images are numbered 0 to len(ids) - 1 by id.

    ids:        (D,) image ids, ascending
    first:      (D + 1,) the labels of image i are attributes[first[i]:first[i + 1]], values[…]
    offsets:    value v of attribute a is number offsets[a] + v among the values of all attributes
    members:    (L,) images by value: those of value number k are members[bounds[k]:bounds[k + 1]]
    values_of:  per attribute with labels the numbers of its values that have images
    """

    def __init__(self, labels: Labels, sizes: Sequence[int], usable: Sequence[Sequence[int]] | None):
        offsets = np.cumsum((0, *sizes))
        self.offsets: list[int] = offsets.tolist()
        self._refuse_outside(labels, np.asarray(sizes, np.int64))
        keys = offsets[labels.attributes] + labels.values
        images = labels.images
        if usable is not None:
            allowed = np.zeros(offsets[-1], bool)
            for attribute, chosen in enumerate(usable):
                allowed[offsets[attribute] + np.asarray(list(chosen), np.int64)] = True
            images, keys = images[allowed[keys]], keys[allowed[keys]]
        if not len(images):
            raise DataError("no image has a label to draw it by; check DATA.GROUNDTRUTH.TRAIN and DATA.ATTRIBUTES")
        there = np.zeros(images.max() + 1, bool)
        there[images] = True
        self.ids = np.flatnonzero(there)
        both = np.unique((np.cumsum(there) - 1)[images] * offsets[-1] + keys)
        numbers, keys = both // offsets[-1], both % offsets[-1]
        self.first = np.searchsorted(numbers, np.arange(len(self.ids) + 1))
        self.attributes = np.searchsorted(offsets, keys, side="right") - 1
        self.values = keys - offsets[self.attributes]
        order = np.argsort(keys, kind="stable")
        self.members = np.ascontiguousarray(numbers[order])
        self.bounds = np.searchsorted(keys[order], np.arange(offsets[-1] + 1))
        self.values_of = {attribute: found for attribute, (a, b) in enumerate(zip(self.offsets, self.offsets[1:]))
                          if (found := [k for k in range(a, b) if self.bounds[k + 1] > self.bounds[k]])}

    @staticmethod
    def _refuse_outside(labels: Labels, sizes: np.ndarray) -> None:
        bad = (labels.images < 0) | (labels.attributes < 0) | (labels.attributes >= len(sizes)) | (labels.values < 0)
        if not bad.any():
            bad = labels.values >= sizes[labels.attributes]
        if bad.any():
            row = int(np.argmax(bad))
            image, attribute, value = (int(column[row]) for column in labels)
            raise DataError(f"image {image} has value {value} of attribute {attribute}: DATA.ATTRIBUTES.NUM is "
                            f"{sizes.tolist()}")

    def fingerprint(self) -> int:
        """A number that other labels hardly share."""
        number = 0
        for column in (self.ids, self.first, self.attributes, self.values):
            number = zlib.crc32(column.astype("<i8").tobytes(), number)
        return number

    def batch(self, images: list[int]) -> ImageBatch:
        numbers = np.array(images, np.int64)
        starts = self.first[numbers]
        counts = self.first[numbers + 1] - starts
        rows = np.repeat(np.arange(len(numbers), dtype=np.int64), counts)
        places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts - starts, counts)
        attributes = self.attributes[places]
        order = np.argsort(attributes, kind="stable")      # the labels of an image are sorted already
        return ImageBatch(self.ids[numbers], rows[order], attributes[order], self.values[places[order]])


class _Epoch:
    """The draws of one epoch, batch after batch."""

    def __init__(self, table: _Table, images_per_value: int, seed: int, number: int):
        self.number = number
        self.groups: list[tuple[int, int, int]] = []    # of the last batch: (attribute, value, images)
        self._table, self._images_per_value = table, images_per_value
        self._draw = random.Random(f"images {seed} {number}").random
        self._attributes = _Cycle(list(table.values_of), self._draw)
        self._values = {attribute: _Cycle(values, self._draw) for attribute, values in table.values_of.items()}
        self._pools: dict[int, _Pool] = {}
        self._all = None if images_per_value else _Pool(np.arange(len(table.ids)))

    def draw(self, size: int) -> list[int]:
        """The next batch, as numbers in the table. size: at most as many as there are images."""
        batch: dict[int, None] = {}
        if self._all is not None:
            self._all.draw(size, batch, self._draw)
            self._all.end_batch()
            return list(batch)
        touched: dict[int, _Pool] = {}
        self.groups = []
        table = self._table
        while len(batch) < size:    # ends: within two cycles each value comes up, so each image can
            attribute = self._attributes.turn()
            value = self._values[attribute].turn()
            pool = self._pools.get(value)
            if pool is None:
                pool = self._pools[value] = _Pool(table.members[table.bounds[value]:table.bounds[value + 1]])
            touched[value] = pool
            taken = pool.draw(min(self._images_per_value, size - len(batch)), batch, self._draw)
            self.groups.append((attribute, value - table.offsets[attribute], taken))
        for pool in touched.values():
            pool.end_batch()
        return list(batch)


# What an epoch's draws depend on beside its number: names in a state, and where they come from.
_SETTINGS = {"num_images": "DATA.NUM_IMAGES", "batch_size": "DATA.TRAIN_BATCHSIZE",
             "images_per_value": "DATA.IMAGES_PER_VALUE", "seed": "SEED",
             "labels": "a checksum of DATA.GROUNDTRUTH.TRAIN as it is used"}


class BalancedSampler(EpochSampler):
    """Value-balanced batches of images, an epoch at each iteration.

    Rule (per epoch): group after group, the next attribute of a shuffled cycle over the attributes,
    the next value of a shuffled cycle over its values, and `images_per_value` images of that value,
    without replacement in rounds. An image is in a batch once: one that is there already is kept for
    a later group. Where all images of a value are in the batch its group stays smaller, and the last
    group of a batch fills what is left. Cycles and rounds go on from batch to batch. An image brings
    all its labels, also those that it was not drawn by. With 0 images of a value there are no groups: all
    images take turns, each once in a round, however often their values are there.

    labels:           training labels; a row may be there twice, the order does not matter
    sizes:            DATA.ATTRIBUTES.NUM, the number of values of each attribute
    num_images:       DATA.NUM_IMAGES, images an epoch (the last batch may be smaller); 0: as many as
                      have a label
    batch_size:       DATA.TRAIN_BATCHSIZE, images a batch; where fewer have a label, a batch is all of them
    images_per_value: DATA.IMAGES_PER_VALUE, images of a group; 0: no groups
    seed:             SEED. The batches depend on it, the epoch's number and these arguments alone.
    usable:           per attribute the values to use (`checks.usable_values`); labels of other values
                      are left out of the batches too. None: all

    Raises DataError for numbers out of range, labels that do not fit `sizes`, and where no label is left.

    Batches are drawn as they are asked for, so the sampler may run ahead of the training by as much
    as a loader prefetches; `state_dict(next_batch)` says where training is.
    """

    def __init__(self, labels: Labels, sizes: Sequence[int], num_images: int, batch_size: int,
                 images_per_value: int, seed: int, usable: Sequence[Sequence[int]] | None = None):
        for key, number, least in (("DATA.NUM_IMAGES", num_images, 0), ("DATA.TRAIN_BATCHSIZE", batch_size, 1),
                                   ("DATA.IMAGES_PER_VALUE", images_per_value, 0)):
            if number < least:
                raise DataError(f"{key} is {number}: at least {least} was expected")
        self._table = _Table(labels, sizes, usable)
        self.num_images = num_images or len(self._table.ids)
        self.batch_size = batch_size
        self.images_per_value = images_per_value
        self.seed = seed
        self.labels = self._table.fingerprint()
        super().__init__(self.num_images, min(batch_size, len(self._table.ids)))
        self._start_epoch = 0               # the next iteration's number
        self._epoch: _Epoch | None = None   # under way

    def epoch(self, start_batch: int | None = None) -> Iterator[ImageBatch]:
        """The batches of an epoch from `start_batch` on (default: 0, or what was loaded).

        Those before it are drawn and dropped, so what follows is as if they had been used.
        """
        start = self._first(start_batch)
        epoch = _Epoch(self._table, self.images_per_value, self.seed, self._start_epoch)
        for batch in range(start):
            epoch.draw(self._batch_size(batch))
        self._epoch, self._drawn = epoch, start
        self._start_epoch, self._start_batch = epoch.number + 1, 0
        return self._batches(epoch, start)

    def _batch_size(self, batch: int) -> int:
        return min(self._size, self.num_images - batch * self._size)

    def _batches(self, epoch: _Epoch, start: int) -> Iterator[ImageBatch]:
        for batch in range(start, len(self)):
            images = epoch.draw(self._batch_size(batch))
            if epoch is self._epoch:
                self._drawn = batch + 1
            yield self._table.batch(images)

    # -- resuming --------------------------------------------------------------------------------

    def state_dict(self, next_batch: int | None = None) -> dict[str, Any]:
        """Where the sampling stands: ints only (fit for JSON and checkpoints).

        next_batch: the batch that training would use next; batches drawn ahead of it do not count.
        Default: all drawn batches were used. After the last batch the state is the next epoch's.
        """
        batch = self._used(next_batch)
        if self._epoch is None:
            number, batch = self._start_epoch, self._start_batch
        elif batch == len(self):
            number, batch = self._epoch.number + 1, 0
        else:
            number = self._epoch.number
        return {"epoch": number, "batch": batch, **{name: getattr(self, name) for name in _SETTINGS}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state: the next iteration goes on where it was taken.

        Raises DataError for the state of a TripletSampler, and for one from the middle of an epoch
        that was drawn with other settings; at an epoch's start they may change.
        """
        if "epoch" not in state:
            raise DataError("the checkpoint was trained on triplets (SOLVER.LOSS triplet), not on batches of images: "
                            "keep that loss to go on, or take its weights up under another NAME")
        for name, key in _SETTINGS.items():
            if state["batch"] and state[name] != getattr(self, name):
                raise DataError(f"the checkpoint stands in the middle of an epoch with {name} {state[name]} ({key}), "
                                f"now it is {getattr(self, name)}: keep it to go on")
        self._start_epoch, self._start_batch = int(state["epoch"]), int(state["batch"])
        self._epoch = None
        self._drawn = 0
