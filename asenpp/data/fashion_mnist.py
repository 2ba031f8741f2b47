"""The data set FashionMNIST: Zalando's 70,000 images of garments, as image and index files.

Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms" (2017), MIT licence; four IDX files, of which Debian's package
dataset-fashion-mnist has a copy. Attributes: the category, and where the garment is worn.
Validation images are the last of each class of Zalando's training part; test images are its test
part. In both, the first fifth of each class are queries and the others candidates.
"""

from __future__ import annotations

import gzip
import zlib
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from ..progress import bar
from ..workers import Workers
from .index import DataError
from .prepare import check_target, whole_folder, write_eval, write_meta, write_train

SYSTEM_SOURCE = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"
SIDE = 28
CATEGORIES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
              "Bag", "Ankle boot")
WORN = ("top", "bottom", "whole body", "feet", "hand")
WORN_OF = (0, 1, 0, 2, 0, 3, 0, 3, 4, 3)  # by category
IMAGES_A_FOLDER = 5000


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """A uint8 array from an IDX file (plain or gzip): 0, 0, 8 (uint8), number of dimensions, the
    sizes as big-endian 32-bit integers, then the data. Raises DataError for anything else."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise DataError(f"{path}: cannot be read ({error}); get the file anew") from error
    if data[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{path}: not an IDX file of bytes in {dimensions} dimensions (it begins with "
                        f"{data[:4].hex() or 'nothing'}, 000008{dimensions:02x} was expected)")
    head = 4 + 4 * dimensions
    if len(data) < head:
        raise DataError(f"{path}: ends within its header; get the file anew")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", dimensions, 4))
    expected = head + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise DataError(f"{path}: {len(data)} bytes, its header says {expected}; get the file anew")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _find(folder: Path, part: str, kind: str) -> Path:
    for name in (f"{part}-{kind}-ubyte.gz", f"{part}-{kind}-ubyte", f"{part}-{kind.replace('-', '.')}-ubyte"):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: {part}-{kind}-ubyte.gz is not there; install the Debian or Ubuntu "
                    f"package (as root: apt-get install {PACKAGE}), or name a folder with the four "
                    "*-ubyte.gz files by --source")


def read_part(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """(images (N, 28, 28) uint8, categories (N,) uint8) of a part, "train" or "t10k"."""
    image_path, label_path = _find(folder, part, "images-idx3"), _find(folder, part, "labels-idx1")
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError(f"{image_path}: images of {images.shape[1]} x {images.shape[2]}, "
                        f"{SIDE} x {SIDE} were expected")
    if len(images) != len(labels):
        raise DataError(f"{image_path} has {len(images)} images, {label_path} {len(labels)} labels: "
                        "do they belong together?")
    if len(labels) and labels.max() >= len(CATEGORIES):
        raise DataError(f"{label_path}: label {labels.max()}, 0 to {len(CATEGORIES) - 1} were expected")
    return images, labels


def balanced(labels: np.ndarray, count: int, what: str, last: bool = False) -> np.ndarray:
    """Sorted rows of `count` images, as many of each class as possible: its first or last ones."""
    classes = len(CATEGORIES)
    chosen = []
    for category in range(classes):
        rows = np.flatnonzero(labels == category)
        wanted = count // classes + (category < count % classes)
        if wanted > len(rows):
            raise DataError(f"--{what} {count}: the source has {len(rows)} images of class {category} "
                            f"({CATEGORIES[category]}) to give, {wanted} are needed; ask for fewer")
        chosen.append(rows[len(rows) - wanted:] if last else rows[:wanted])
    return np.sort(np.concatenate(chosen))


def _is_query(labels: np.ndarray) -> np.ndarray:
    """True for the first fifth of each class (at least one image)."""
    query = np.zeros(len(labels), bool)
    for category in range(len(CATEGORIES)):
        rows = np.flatnonzero(labels == category)
        query[rows[:max(1, len(rows) // 5)]] = True
    return query


def _write_images(folder: Path, split: str, images: np.ndarray, progress: Any) -> list[str]:
    from PIL import Image

    names = [f"{split}/{row // IMAGES_A_FOLDER:02d}/{row:05d}.png" for row in range(len(images))]
    for name in names[::IMAGES_A_FOLDER]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)

    done: SimpleQueue = SimpleQueue()       # how many were written, or what went wrong

    def write(rows: range) -> None:
        try:
            for row in rows:
                Image.fromarray(images[row]).save(folder / names[row], "PNG", compress_level=1)
        except BaseException as error:
            done.put(error)
        else:
            done.put(len(rows))

    step = 500
    parts = [range(a, min(a + step, len(images))) for a in range(0, len(images), step)]
    workers = Workers(2)
    try:
        for rows in parts:
            workers.submit(partial(write, rows))
        for _ in parts:
            count = done.get()
            if isinstance(count, BaseException):
                raise count
            progress.update(count)
    finally:
        workers.close()
    return names


def prepare(out: str | Path, source: str | Path | None = None, train: int | None = None,
            valid: int = 5000, test: int = 10000, force: bool = False, quiet: bool = False) -> bool:
    """Write the data set into the folder `out`; False where it was there already, complete.

    source: folder with the four IDX files, default the Debian package's
    train, valid, test: numbers of images, balanced over the classes; train None: all that valid leaves
    Raises DataError for a source that is missing or damaged, numbers that cannot be had, an `out`
    that holds something else.
    """
    out = Path(out)
    classes = len(CATEGORIES)
    for what, count, minimum in (("train", train, 2 * classes), ("valid", valid, 2 * classes),
                                 ("test", test, 2 * classes)):
        if count is not None and count < minimum:
            raise DataError(f"--{what} {count}: at least {minimum} are needed, two of each class")
    made_by = {"command": "fashion_mnist", "version": 1, "train": train, "valid": valid, "test": test}
    if check_target(out, made_by, force):
        if not quiet:
            print(f"{out} is complete already (--force makes it anew)")
        return False

    folder = Path(source) if source is not None else SYSTEM_SOURCE
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; install the Debian or Ubuntu package (as root: "
                        f"apt-get install {PACKAGE}), or name a folder with the four *-ubyte.gz files "
                        "by --source")
    images, labels = read_part(folder, "train")
    test_images, test_labels = read_part(folder, "t10k")
    valid_rows = balanced(labels, valid, "valid", last=True)
    rest = np.setdiff1d(np.arange(len(labels)), valid_rows)
    train_rows = rest if train is None else rest[balanced(labels[rest], train, "train")]
    test_rows = balanced(test_labels, test, "test")

    total = len(train_rows) + len(valid_rows) + len(test_rows)
    with whole_folder(out) as target, bar(total=total, unit=" images", desc="FashionMNIST",
                                           disable=quiet) as progress:
        for split, part, categories in (("train", images[train_rows], labels[train_rows]),
                                        ("valid", images[valid_rows], labels[valid_rows]),
                                        ("test", test_images[test_rows], test_labels[test_rows])):
            names = _write_images(target, split, part, progress)
            rows = [(int(category), WORN_OF[category]) for category in categories]
            if split == "train":
                write_train(target, names, rows)
            else:
                write_eval(target, split, names, rows, _is_query(categories))
        write_meta(target, "FashionMNIST", [("category", CATEGORIES), ("worn", WORN)], made_by)
    if not quiet:
        print(f"{out}: {len(train_rows)} training, {len(valid_rows)} validation and "
              f"{len(test_rows)} test images")
    return True
