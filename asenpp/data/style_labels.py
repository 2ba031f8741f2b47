"""Index files for a folder of class folders, as the style fork's label generator makes them (docs/reference.md 7).

    images/<class>/<image>   ->   classid.txt, filenames_train.txt, label_train.txt,
                                  filenames_valid.txt, candidate_valid.txt, query_valid.txt

Class ids count the folders in sorted order. Per class, shuffled: the first int(0.8 n) are for
training; of the rest the first int(0.7 rest) are candidates, the others queries. Ids of the valid
part count all candidates, then all queries. There is one attribute, 0. The same seed and the same
folder give the same files.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..checkpoint.atomic import atomic_file
from .index import DataError

__all__ = ["prepare", "find_images", "split"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TRAIN, CANDIDATES = 0.8, 0.7


def find_images(images: str | os.PathLike) -> dict[str, list[str]]:
    """{class: its image files, sorted} of a folder of class folders, classes sorted.

    Hidden files and folders are left out, and so are files that are no images by their extension.
    Raises DataError for a folder that is missing, has no class folders, or has one without images.
    """
    images = Path(images)
    try:
        classes = sorted(entry.name for entry in os.scandir(images)
                         if entry.is_dir() and not entry.name.startswith("."))
        found = {name: sorted(entry.name for entry in os.scandir(images / name) if entry.is_file()
                              and entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith("."))
                 for name in classes}
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); a folder of class folders "
                        "was expected") from None
    if not classes:
        raise DataError(f"{images}: has no class folders: images are looked for in {images}/<class>")
    empty = [name for name, files in found.items() if not files]
    if empty:
        raise DataError(f"{images / empty[0]}: holds no images ({', '.join(EXTENSIONS)}): put them there, or "
                        "remove the class folder")
    return found


def split(found: Mapping[str, Sequence[str]], seed: int = 0) -> tuple[list, list, list]:
    """(train, candidates, queries) of {class: images}: lists of (class, image, class id)."""
    rng = random.Random(seed)
    train, candidates, queries = [], [], []
    for number, (name, files) in enumerate(found.items()):
        items = [(name, file, number) for file in files]
        rng.shuffle(items)
        rest = items[int(TRAIN * len(items)):]
        train += items[:int(TRAIN * len(items))]
        candidates += rest[:int(CANDIDATES * len(rest))]
        queries += rest[int(CANDIDATES * len(rest)):]
    return train, candidates, queries


def _contents(found: Mapping[str, Sequence[str]], root: str, seed: int) -> dict[str, bytes]:
    """The files, by name. root: what stands before <class>/<image> in a line."""
    def lines(rows: Sequence[str]) -> bytes:
        for row in rows:
            if row != row.strip() or "\n" in row or "\r" in row:
                raise DataError(f"{row!r}: a path that begins or ends with blanks, or has a line break in it, cannot "
                                "stand in an index file: rename it")
        try:
            return "".join(f"{row}\n" for row in rows).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{error.object[:200]!r}: a name is not UTF-8, as index files are: rename it") from None

    def paths(items: Sequence[tuple[str, str, int]]) -> bytes:
        return lines([os.path.join(root, name, file) for name, file, _ in items])

    def labels(items: Sequence[tuple[str, str, int]], first: int = 0) -> bytes:
        return lines([f"{first + i} 0 {number}" for i, (_, _, number) in enumerate(items)])

    train, candidates, queries = split(found, seed)
    return {
        "classid.txt": lines([f"{number}:{name}" for number, name in enumerate(found)]),
        "filenames_train.txt": paths(train), "label_train.txt": labels(train),
        "filenames_valid.txt": paths(candidates + queries),
        "candidate_valid.txt": labels(candidates), "query_valid.txt": labels(queries, len(candidates)),
    }


def _warnings(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Classes too small for every part."""
    small = []
    for name, files in found.items():
        train = int(TRAIN * len(files))
        rest = len(files) - train
        lacks = [what for what, lacking in (
            ("training, which needs two", train < 2), ("candidates", int(CANDIDATES * rest) < 1)) if lacking]
        if lacks:
            small.append(f"class {name}: {len(files)} images are too few for {' and for '.join(lacks)}")
    return small


def prepare(images: str | os.PathLike, out: str | os.PathLike | None = None, seed: int = 0,
            relative_to: str | os.PathLike | None = None, force: bool = False, quiet: bool = False) -> bool:
    """Writes the index files of a folder of class folders; False where they were there already.

    images: the folder of class folders. out: where the files go (the folder that holds `images`).
    relative_to: lines are paths from this folder on, which DATA.IMAGE_ROOT must name; where it is
        left out, `images` stands in them as it was given (DATA.IMAGE_ROOT: .).
    force: replace other index files in `out`.

    Raises DataError for folders that cannot be used, OSError where nothing can be written.
    """
    found = find_images(images)
    out = Path(images).absolute().parent if out is None else Path(out)
    root = os.path.normpath(images) if relative_to is None else os.path.relpath(
        os.path.realpath(images), os.path.realpath(relative_to))
    files = _contents(found, "" if root == "." else root, seed)
    there = [name for name in files if (out / name).exists()]
    if len(there) == len(files) and all((out / name).read_bytes() == data for name, data in files.items()):
        if not quiet:
            print(f"{out} is complete already")
        return False
    if there and not force:
        raise DataError(f"{out} holds other index files ({', '.join(there)}): --force replaces them, or name "
                        "another --out")
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        with atomic_file(out / name, needed=len(data)) as file:
            file.write(data)
    for line in _warnings(found):
        print(f"asenpp.data: warning: {line}", file=sys.stderr)
    if not quiet:
        _say(out, found, files)
    return True


def _say(out: Path, found: Mapping[str, Sequence[str]], files: Mapping[str, bytes]) -> None:
    count = {name: data.count(b"\n") for name, data in files.items()}
    names = json.dumps(list(found), ensure_ascii=False)
    print(f"{out}: {len(found)} classes, {count['label_train.txt']} images to train on, "
          f"{count['candidate_valid.txt']} candidates and {count['query_valid.txt']} queries.\nFor the configuration: "
          f"DATA.ATTRIBUTES NUM [{len(found)}], VALUES [{names}]; HEAD.out_features {len(found)}")
