"""Writing a data set folder: whole or not at all, in the form that `index` reads.

A folder is written under a temporary name beside its target and renamed when complete. Its
meta.json says what it holds and by which command and settings it was made, so that the same
command finds its own work again, and never takes somebody else's folder for it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Sequence

from .checks import missing_images
from .index import DataError, read_filenames

SPLITS = ("train", "valid", "test")


def index_files() -> list[str]:
    """The names of the index files of a data set, in the order of docs/reference.md 2."""
    return [f"filenames_{split}.txt" for split in SPLITS] + ["label_train.txt"] + [
        f"{side}_{split}.txt" for split in SPLITS[1:] for side in ("query", "candidate")]


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """A text file of `lines`, UTF-8, with Unix line ends."""
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def write_train(folder: Path, names: Sequence[str], labels: Sequence[Sequence[int]]) -> None:
    """filenames_train.txt and label_train.txt; labels[image][attribute] is the value."""
    write_lines(folder / "filenames_train.txt", names)
    write_lines(folder / "label_train.txt", [
        f"{image} " + " ".join(f"{attribute} {value}" for attribute, value in enumerate(row))
        for image, row in enumerate(labels)])


def write_eval(folder: Path, split: str, names: Sequence[str], labels: Sequence[Sequence[int]],
               is_query: Sequence[bool]) -> None:
    """filenames_<split>.txt, query_<split>.txt and candidate_<split>.txt: each image with all its
    attributes, on the side that `is_query` says."""
    write_lines(folder / f"filenames_{split}.txt", names)
    for side, chosen in (("query", True), ("candidate", False)):
        write_lines(folder / f"{side}_{split}.txt", [
            f"{image} {attribute} {value}" for image, row in enumerate(labels)
            if bool(is_query[image]) == chosen for attribute, value in enumerate(row)])


def write_meta(folder: Path, dataset: str, attributes: Sequence[tuple[str, Sequence[str]]],
               made_by: dict[str, Any]) -> None:
    """meta.json: attributes with the names of their values, files, and how the folder was made."""
    entry: dict[str, Any] = {"attributes": [
        {"name": name, "num": len(values), "values": list(values)} for name, values in attributes]}
    for split in SPLITS:
        labels: Any = "label_train.txt" if split == "train" else {
            side: f"{side}_{split}.txt" for side in ("query", "candidate")}
        entry[split] = {"fname_list": f"filenames_{split}.txt", "label_file": labels}
    entry["made_by"] = made_by
    text = json.dumps({dataset: entry}, indent=1, ensure_ascii=False) + "\n"
    (folder / "meta.json").write_bytes(text.encode())


def _made_by(folder: Path) -> dict[str, Any] | None:
    """The settings that made a folder; None for one that these commands did not make."""
    try:
        entries = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return next(entry["made_by"] for entry in entries.values() if "made_by" in entry)
    except (OSError, ValueError, AttributeError, TypeError, StopIteration):
        return None


def is_complete(folder: Path, made_by: dict[str, Any]) -> bool:
    """Whether `folder` exists and was made by these settings, with nothing missing since."""
    if _made_by(folder) != made_by or not all((folder / name).is_file() for name in index_files()):
        return False
    return not any(missing_images((str(folder / name) for name in
                                   read_filenames(str(folder / f"filenames_{split}.txt"))), 1)
                   for split in SPLITS)


def check_target(out: Path, made_by: dict[str, Any], force: bool) -> bool:
    """True where `out` already holds this data set; False where it is to be made.

    Raises DataError for a folder with something else in it: other settings, or files missing, go
    on with --force; a folder that these commands did not make is never replaced.
    """
    if not out.exists() or out.is_dir() and not any(out.iterdir()):
        return False
    made = _made_by(out) if out.is_dir() else None
    if made is None:
        raise DataError(f"{out} exists and was not made by asenpp.data: move it away, or name another --out")
    if force:
        return False
    if is_complete(out, made_by):
        return True
    if made != made_by:
        old = ", ".join(f"{key} {value}" for key, value in made.items() if made_by.get(key) != value)
        raise DataError(f"{out} holds this data set with other settings ({old}): --force makes it "
                        "anew, or name another --out")
    raise DataError(f"{out} is incomplete (files were removed): --force makes it anew")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends without an error."""
    out = Path(os.path.realpath(out))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}); name another --out") from error
    try:
        folder = temporary / "new"
        folder.mkdir()
        yield folder
        if out.exists():
            os.rename(out, temporary / "old")
        try:
            os.rename(folder, out)
        except OSError:
            if (temporary / "old").exists():
                os.rename(temporary / "old", out)
            raise
    except OSError as error:
        raise DataError(f"{out}: could not be written ({error}); nothing was changed") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
