"""Which images a training step sees.

The triplets are the published program's, draw for draw: with Python's `random` seeded alike, the
same triplets come out. What is added is that an epoch can be left in the middle and taken up again.
"""

from __future__ import annotations

import random
from typing import Any, Iterator, NamedTuple, Sequence

import numpy as np

from .index import DataError


class TripletBatch(NamedTuple):
    """Triplets of one step: int64 arrays of one length.

    anchors, positives, negatives: image ids
    attributes: the attribute in which anchor and positive agree and the negative differs
    values, negative_values: its value in the anchor (and positive), and in the negative
    """

    anchors: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    attributes: np.ndarray
    values: np.ndarray
    negative_values: np.ndarray


class EpochSampler:
    """What samplers share: an epoch of `total` items (triplets or images) in batches of `size`, the last one perhaps
    smaller. Subclasses have epoch(start_batch), state_dict(next_batch) and load_state_dict(state).
    """

    def __init__(self, total: int, size: int) -> None:
        self._total, self._size = total, size
        self._start_batch = 0               # where the next iteration begins
        self._drawn = 0                     # batches drawn in the epoch under way

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self._total // self._size)

    def sizes(self) -> tuple[int, int]:
        """Items in the largest and in the smallest batch."""
        return min(self._size, self._total), self._total % self._size or self._size

    def __iter__(self) -> Iterator[Any]:
        return self.epoch()

    def epoch(self, start_batch: int | None = None) -> Iterator[Any]:
        raise NotImplementedError

    def _first(self, start_batch: int | None) -> int:
        """The batch that an epoch begins with: as asked, or as loaded."""
        start = self._start_batch if start_batch is None else start_batch
        if not 0 <= start <= len(self):
            raise DataError(f"batch {start} to start from: an epoch has {len(self)} batches")
        return start

    def _used(self, next_batch: int | None) -> int:
        """Batches of the epoch under way that training has used; None: all that were drawn."""
        batch = self._drawn if next_batch is None else next_batch
        if not 0 <= batch <= self._drawn:
            raise DataError(f"sampler state at batch {batch}: {self._drawn} were drawn in this epoch")
        return batch


class TripletSampler(EpochSampler):
    """Batches of triplets, an epoch at each iteration.

    Rule (per epoch): `num_triplets` attributes by random.choices; then for each two values by
    random.sample, anchor and positive by random.sample from the first value's images, the negative
    by random.choice from the second's.

    table:   table[attribute][value] = list of image ids
    usable:  per attribute the values to draw from (`checks.usable_values`); None: all
    rng:     a random.Random; the default is the module `random`, the published program's source.
             A private one makes resuming independent of whoever else draws random numbers.

    Batches are drawn as they are asked for, so the sampler may run ahead of the training by as much
    as a loader prefetches; `state_dict(next_batch)` says where training is.
    """

    def __init__(self, table: Sequence[Sequence[Sequence[int]]], num_triplets: int, batch_size: int,
                 rng: Any = random, usable: Sequence[Sequence[int]] | None = None):
        if num_triplets < 1:
            raise DataError(f"DATA.NUM_TRIPLETS is {num_triplets}: at least 1 was expected")
        if batch_size < 1:
            raise DataError(f"DATA.TRAIN_BATCHSIZE is {batch_size}: at least 1 was expected")
        super().__init__(num_triplets, batch_size)
        self.table = table
        self.num_triplets = num_triplets
        self.batch_size = batch_size
        self.rng = rng
        # range() where nothing is left out: the same draws as from a list, and the published form.
        self._values: list[Sequence[int]] = [
            range(len(lists)) if usable is None or list(usable[a]) == list(range(len(lists)))
            else list(usable[a]) for a, lists in enumerate(table)]
        attributes = [a for a, values in enumerate(self._values) if usable is None or values]
        if not attributes:
            raise DataError("no attribute to draw triplets from")
        self._attributes = range(len(table)) if len(attributes) == len(table) else attributes
        self._epoch_state: Any = None       # the generator's state at the start of the epoch under way

    def epoch(self, start_batch: int | None = None) -> Iterator[TripletBatch]:
        """The batches of an epoch from `start_batch` on (default: 0, or what was loaded).

        Those before it are drawn and dropped, so what follows is as if they had been used.
        """
        start = self._first(start_batch)
        self._start_batch = 0
        self._epoch_state = self.rng.getstate()
        self._drawn = 0
        attributes = self.rng.choices(self._attributes, k=self.num_triplets)
        for batch in range(start):
            self._draw(attributes, batch)
        return self._batches(attributes, start)

    def _batches(self, attributes: list[int], start: int) -> Iterator[TripletBatch]:
        for batch in range(start, len(self)):
            columns = np.array(self._draw(attributes, batch), np.int64).T
            yield TripletBatch(*np.ascontiguousarray(columns))

    def _draw(self, attributes: list[int], batch: int) -> list[tuple[int, ...]]:
        sample, choice, table = self.rng.sample, self.rng.choice, self.table
        rows = []
        for attribute in attributes[batch * self.batch_size:(batch + 1) * self.batch_size]:
            positive, negative = sample(self._values[attribute], 2)
            x, p = sample(table[attribute][positive], 2)
            n = choice(table[attribute][negative])
            rows.append((x, p, n, attribute, positive, negative))
        self._drawn = batch + 1
        return rows

    # -- resuming --------------------------------------------------------------------------------

    def state_dict(self, next_batch: int | None = None) -> dict[str, Any]:
        """Where the sampling stands: ints, lists and None only (fit for JSON and checkpoints).

        next_batch: the batch that training would use next; batches drawn ahead of it do not count.
        Default: all drawn batches were used. After the last batch the state is the next epoch's.
        """
        batch = self._used(next_batch)
        if self._epoch_state is None or batch == len(self):
            state, batch = self.rng.getstate(), self._start_batch if self._epoch_state is None else 0
        else:
            state = self._epoch_state
        version, internal, gauss = state
        return {"version": version, "state": list(internal), "gauss": gauss, "batch": batch,
                "num_triplets": self.num_triplets, "batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state: the next iteration goes on where it was taken.

        Raises DataError for the state of a BalancedSampler, and for one from the middle of an epoch
        with another number of triplets or batch size.
        """
        if "state" not in state:
            raise DataError("the checkpoint was trained on batches of images, not on triplets (SOLVER.LOSS triplet): "
                            "keep its SOLVER.LOSS to go on, or take its weights up under another NAME")
        for name in ("num_triplets", "batch_size"):
            if state["batch"] and state[name] != getattr(self, name):
                raise DataError(f"the checkpoint stands in the middle of an epoch with {name} "
                                f"{state[name]}, now it is {getattr(self, name)}: keep it to go on")
        self.rng.setstate((int(state["version"]), tuple(int(i) for i in state["state"]), state["gauss"]))
        self._start_batch = int(state["batch"])
        self._epoch_state = None
        self._drawn = 0
