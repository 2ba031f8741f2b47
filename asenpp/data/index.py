"""The index files of a data set: which images there are, and what their attributes are.

    filenames_{train,valid,test}.txt           one image path a line; the line number (from 0) is the image id
    label_train.txt                            id (attribute value)+
    {query,candidate}_{valid,test}.txt         id attribute value

All text is UTF-8. What is read here has been checked: every id names a line of the file of names,
every attribute and value lies within DATA.ATTRIBUTES. Files hold up to some hundred thousand lines,
so the good case is read in bulk; only a file with an error is walked line by line, to name the line.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import chain
from typing import Any, Iterator, NamedTuple, Sequence

import numpy as np

PREPARED = {  # data sets that asenpp makes itself: the command that does
    "FashionMNIST": "python -m asenpp.data fashion_mnist",
    "Garments": "python -m asenpp.data garments",
}


class DataError(ValueError):
    """A data set that cannot be used; the message names file, line or value, and the remedy."""


class Attributes(NamedTuple):
    """DATA.ATTRIBUTES: names, and the number of values of each."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]


class Labels(NamedTuple):
    """Labelled images, int64 arrays of one length, in file order."""

    images: np.ndarray
    attributes: np.ndarray
    values: np.ndarray

    def take(self, rows: np.ndarray) -> "Labels":
        """The rows chosen by an index array or a boolean mask."""
        return Labels(*(column[rows] for column in self))


@dataclass(frozen=True)
class TrainSet:
    """Images to train on. `table[attribute][value]` is the list of image ids, in file order."""

    dataset: str
    attributes: Attributes
    paths: list[str]
    labels: Labels
    table: list[list[list[int]]]


class Features(NamedTuple):
    """What an evaluation has to compute, so that the backbone runs once an image.

    images:     image ids, each once, in the order of their first appearance (queries first)
    pairs:      (P, 2) int64, [row in images, attribute], each once, sorted by row
    first:      (len(images) + 1,): the pairs of images[i] are pairs[first[i]:first[i + 1]]
    queries:    (Q,) row in pairs of each query
    candidates: (C,) row in pairs of each candidate
    """

    images: np.ndarray
    pairs: np.ndarray
    first: np.ndarray
    queries: np.ndarray
    candidates: np.ndarray


@dataclass(frozen=True)
class EvalSet:
    """Images to evaluate on. `split` is "valid" also for a TEST that has no files of its own."""

    dataset: str
    split: str
    attributes: Attributes
    paths: list[str]
    queries: Labels
    candidates: Labels

    def by_attribute(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(attribute, rows in queries, rows in candidates) for each attribute, in file order."""
        for attribute in range(len(self.attributes.names)):
            yield (attribute, np.flatnonzero(self.queries.attributes == attribute),
                   np.flatnonzero(self.candidates.attributes == attribute))

    def features(self) -> Features:
        """The distinct (image, attribute) pairs, and where each query and candidate finds its own."""
        image = np.concatenate([self.queries.images, self.candidates.images])
        attribute = np.concatenate([self.queries.attributes, self.candidates.attributes])
        sorted_images, seen, inverse = np.unique(image, return_index=True, return_inverse=True)
        order = np.argsort(seen, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        count = max(len(self.attributes.names), 1)
        keys, rows = np.unique(rank[inverse.reshape(-1)] * count + attribute, return_inverse=True)
        pairs = np.stack([keys // count, keys % count], axis=1)
        first = np.searchsorted(pairs[:, 0], np.arange(len(order) + 1))
        rows = rows.reshape(-1)
        split = len(self.queries.images)
        return Features(sorted_images[order], pairs, first, rows[:split], rows[split:])

    def subset(self, queries: int | None, candidates: int | None, seed: int = 0) -> "EvalSet":
        """A smaller evaluation: so many queries and candidates, drawn by `seed`, in file order."""
        rng = np.random.RandomState(seed)

        def draw(labels: Labels, count: int | None) -> Labels:
            if count is None or count >= len(labels.images):
                return labels
            return labels.take(np.sort(rng.permutation(len(labels.images))[:count]))

        return EvalSet(self.dataset, self.split, self.attributes, self.paths,
                       draw(self.queries, queries), draw(self.candidates, candidates))


# -- reading one file ----------------------------------------------------------------------------

def _read_lines(path: str, remedy: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:  # universal newlines, as in the published readers
            lines = [line.strip() for line in file]
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such index file; {remedy}") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, an index file was expected; {remedy}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); "
                        "save it as UTF-8") from None
    while lines and not lines[-1]:
        lines.pop()
    return lines


def read_filenames(path: str, remedy: str = "check DATA.PATH_FILE") -> list[str]:
    """The image paths of a filenames_*.txt, as they stand in it; the position is the image id.

    Raises DataError for a file that is missing, empty or not UTF-8, or has an empty line within.
    """
    lines = _read_lines(path, remedy)
    if not lines:
        raise DataError(f"{path}: holds no image paths; {remedy}")
    if not all(lines):
        raise DataError(f"{path}:{lines.index('') + 1}: empty line, but the line number is the "
                        "image id; put the path there")
    return lines


def _first_bad_line(path: str, lines: list[str], numbers: list[int], form: str) -> DataError:
    """The error of a file that could not be read in bulk."""
    for number, line in zip(numbers, lines):
        words = line.split()
        for word in words:
            if not re.fullmatch(r"[+-]?[0-9]{1,18}", word):
                return DataError(f"{path}:{number}: '{word}' is not an integer; a line reads '{form}'")
        if len(words) != 3 and (form.count("+") == 0 or len(words) < 3 or len(words) % 2 == 0):
            return DataError(f"{path}:{number}: {len(words)} number{'s' * (len(words) != 1)}; "
                             f"a line reads '{form}'")
    return DataError(f"{path}: cannot be read; a line reads '{form}'")


def read_labels(path: str, images: int, attributes: Attributes, several: bool = False,
                remedy: str = "check DATA.GROUNDTRUTH") -> Labels:
    """The labels of a query or candidate file, or (`several`) of a label_train.txt.

    images: how many lines the file of names has. A line with several pairs becomes several rows.
    Raises DataError, with file and line, for what is no integer or out of range.
    """
    form = "id (attribute value)+" if several else "id attribute value"
    lines = _read_lines(path, remedy)
    numbers = list(range(1, len(lines) + 1))
    if not all(lines):
        kept = [(number, line) for number, line in zip(numbers, lines) if line]
        numbers, lines = [n for n, _ in kept], [line for _, line in kept]
    if not lines:
        raise DataError(f"{path}: holds no labels; {remedy}")
    words = [line.split() for line in lines]
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    text = list(chain.from_iterable(words))
    try:
        if any("_" in line for line in lines):  # int() reads 1_0 as ten
            raise ValueError
        flat = np.fromiter(map(int, text), np.int64, len(text))
    except (ValueError, OverflowError):
        raise _first_bad_line(path, lines, numbers, form) from None
    if (lengths < 3).any() or (lengths % 2 == 0).any() or not several and (lengths != 3).any():
        raise _first_bad_line(path, lines, numbers, form)

    starts = np.cumsum(lengths) - lengths
    pairs = np.delete(flat, starts).reshape(-1, 2) if several else flat.reshape(-1, 3)[:, 1:]
    repeats = (lengths - 1) // 2
    labels = Labels(np.repeat(flat[starts], repeats), np.ascontiguousarray(pairs[:, 0]),
                    np.ascontiguousarray(pairs[:, 1]))

    def refuse(bad: np.ndarray, what: str) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            line = numbers[int(np.repeat(np.arange(len(lines)), repeats)[row])]
            image, attribute, value = (int(column[row]) for column in labels)
            name = attributes.names[attribute] if 0 <= attribute < len(attributes.names) else ""
            size = attributes.sizes[attribute] if name else 0
            raise DataError(f"{path}:{line}: " + what.format(
                image=image, attribute=attribute, value=value, name=name, last=size - 1))

    refuse((labels.images < 0) | (labels.images >= images),
           f"image id {{image}} is out of range: the file of names has {images} lines "
           f"(ids 0 to {images - 1}); do the two files belong together?")
    count = len(attributes.names)
    refuse((labels.attributes < 0) | (labels.attributes >= count),
           f"attribute {{attribute}} is out of range: DATA.ATTRIBUTES names {count} (0 to {count - 1})")
    sizes = np.asarray(attributes.sizes, np.int64)
    refuse((labels.values < 0) | (labels.values >= sizes[labels.attributes]),
           "value {value} of attribute {attribute} ({name}) is out of range: "
           "DATA.ATTRIBUTES.NUM allows 0 to {last}")
    return labels


def build_table(labels: Labels, attributes: Attributes) -> list[list[list[int]]]:
    """table[attribute][value] = image ids in file order: plain lists, as random.sample wants them."""
    offsets = np.cumsum((0, *attributes.sizes))
    keys = offsets[labels.attributes] + labels.values
    order = np.argsort(keys, kind="stable")
    bounds = np.searchsorted(keys[order], np.arange(offsets[-1] + 1))
    images = labels.images[order].tolist()
    lists = [images[a:b] for a, b in zip(bounds[:-1], bounds[1:])]
    return [lists[a:b] for a, b in zip(offsets[:-1], offsets[1:])]


# -- from a configuration ------------------------------------------------------------------------

def read_attributes(cfg: Any) -> Attributes:
    """DATA.ATTRIBUTES of a configuration, checked against DATA.NUM_ATTRIBUTES."""
    data = cfg.DATA
    names = tuple(str(name) for name in data.ATTRIBUTES.NAME)
    sizes = tuple(data.ATTRIBUTES.NUM)
    if not names:
        raise DataError("DATA.ATTRIBUTES.NAME is empty: name the attributes of the data set")
    if len(names) != len(sizes):
        raise DataError(f"DATA.ATTRIBUTES.NAME has {len(names)} entries, NUM has {len(sizes)}: "
                        "one number of values for each name")
    for name, size in zip(names, sizes):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise DataError(f"DATA.ATTRIBUTES.NUM: {size!r} values for '{name}', a positive integer "
                            "was expected")
    if data.NUM_ATTRIBUTES not in (-1, len(names)):
        raise DataError(f"DATA.NUM_ATTRIBUTES is {data.NUM_ATTRIBUTES}, but DATA.ATTRIBUTES names "
                        f"{len(names)}")
    return Attributes(names, tuple(int(size) for size in sizes))


def image_root(cfg: Any, split: str) -> str:
    """The folder that the lines of filenames_<split>.txt are relative to.

    DATA.IMAGE_ROOT with "{split}" replaced ("train", "valid" or "test"), or where it is empty
    DATA.BASE_PATH/DATA.DATASET.
    """
    root = getattr(cfg.DATA, "IMAGE_ROOT", "") or ""
    if root:
        return os.path.expanduser(root.replace("{split}", split))
    return os.path.join(cfg.DATA.BASE_PATH, cfg.DATA.DATASET)


def resolve_paths(root: str, names: Sequence[str]) -> list[str]:
    """Image paths: root/<name>; absolute names as they stand."""
    return [os.path.join(root, name) for name in names]


def _index_file(cfg: Any, key: str, name: str) -> tuple[str, str]:
    """(path, remedy) of an index file that the configuration names under `key`."""
    folder = os.path.join(cfg.DATA.BASE_PATH, cfg.DATA.DATASET)
    if not name:
        raise DataError(f"{key} is empty: name the index file (in {folder}) in the configuration")
    if cfg.DATA.DATASET in PREPARED:
        remedy = f"prepare the data set: {PREPARED[cfg.DATA.DATASET]} --out {folder}"
    else:
        remedy = f"put the index files into {folder}, or set DATA.BASE_PATH, DATA.DATASET or {key}"
    return os.path.join(folder, name), remedy


def load_train(cfg: Any) -> TrainSet:
    """The training images and labels that a configuration names.

    Raises DataError for files that are missing or malformed, or do not fit DATA.ATTRIBUTES.
    """
    attributes = read_attributes(cfg)
    path, remedy = _index_file(cfg, "DATA.PATH_FILE.TRAIN", cfg.DATA.PATH_FILE.TRAIN)
    paths = resolve_paths(image_root(cfg, "train"), read_filenames(path, remedy))
    path, remedy = _index_file(cfg, "DATA.GROUNDTRUTH.TRAIN", getattr(cfg.DATA.GROUNDTRUTH, "TRAIN", ""))
    labels = read_labels(path, len(paths), attributes, several=True, remedy=remedy)
    return TrainSet(cfg.DATA.DATASET, attributes, paths, labels, build_table(labels, attributes))


def load_eval(cfg: Any, split: str) -> EvalSet:
    """The queries and candidates of a split, "VALID" or "TEST".

    A TEST without files of its own (KFashion, Fashion14k: not named, or the valid ones named) uses
    the valid files and the valid images, and says so in `EvalSet.split`.
    Raises DataError as `load_train` does.
    """
    split = split.upper()
    if split not in ("VALID", "TEST"):
        raise DataError(f"split '{split}': VALID or TEST was expected")
    attributes = read_attributes(cfg)

    def named(group: Any, key: str) -> tuple[str, str]:
        name = getattr(group, split) or group.VALID
        return _index_file(cfg, f"{key}.{split}", name)

    files = cfg.DATA.PATH_FILE
    folder = "valid" if split == "VALID" or files.TEST in ("", None, files.VALID) else "test"
    path, remedy = named(files, "DATA.PATH_FILE")
    paths = resolve_paths(image_root(cfg, folder), read_filenames(path, remedy))
    sides = []
    for key in ("QUERY", "CANDIDATE"):
        path, remedy = named(getattr(cfg.DATA.GROUNDTRUTH, key), f"DATA.GROUNDTRUTH.{key}")
        sides.append(read_labels(path, len(paths), attributes, remedy=remedy))
    return EvalSet(cfg.DATA.DATASET, folder, attributes, paths, *sides)
