"""Data sets derived from others: index files of their own, images by absolute path.

Image ids stay those of the source: training images that are left out have no line in label_train.txt. A rule is
plain data, as it stands in the results:

    {"kind": "held_out", "values": {attribute: [value, …]}, "whole_images": bool}
        Training without these values. whole_images: images that have one are not seen at all; else they lose that label,
        and those without a label left are not seen. Queries and candidates: of these values alone.
    {"kind": "one_label"}               one label an image is kept, drawn by the seed
    {"kind": "noise", "share": s}       that share of the labels replaced by another value of the attribute
    {"kind": "part", "share": s}        that share of the training images, drawn by the seed
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asenpp.data.index import read_filenames
from asenpp.data.prepare import SPLITS, whole_folder, write_lines

Pairs = list[tuple[int, int]]       # (attribute, value) of one image
NOTE = "derived.json"


def read_train(folder: Path) -> list[tuple[int, Pairs]]:
    """label_train.txt: (image id, its labels), in file order."""
    found = []
    for line in (folder / "label_train.txt").read_text(encoding="utf-8").splitlines():
        image, *labels = map(int, line.split())
        found.append((image, list(zip(labels[::2], labels[1::2]))))
    return found


def training_labels(train: list[tuple[int, Pairs]], rule: Mapping[str, Any], seed: int) -> list[tuple[int, Pairs]]:
    """What is left for training under a rule."""
    rng, kind = random.Random(seed), rule["kind"]
    if kind == "one_label":
        return [(image, [rng.choice(pairs)]) for image, pairs in train]
    if kind == "part":
        chosen = set(rng.sample(range(len(train)), int(len(train) * rule["share"])))
        return [row for number, row in enumerate(train) if number in chosen]
    if kind == "noise":
        return _noisy(train, rule["share"], rng)
    held = {(int(attribute), value) for attribute, values in rule["values"].items() for value in values}
    left = []
    for image, pairs in train:
        kept = [pair for pair in pairs if pair not in held]
        if kept and not (rule["whole_images"] and len(kept) < len(pairs)):
            left.append((image, kept))
    return left


def _noisy(train: list[tuple[int, Pairs]], share: float, rng: random.Random) -> list[tuple[int, Pairs]]:
    sizes: dict[int, int] = {}
    for _, pairs in train:
        for attribute, value in pairs:
            sizes[attribute] = max(sizes.get(attribute, 0), value + 1)
    places = [(row, column) for row, (_, pairs) in enumerate(train) for column in range(len(pairs))]
    changed = set(rng.sample(places, round(len(places) * share)))
    return [(image, [(a, rng.choice([v for v in range(sizes[a]) if v != value]) if (row, column) in changed else value)
                     for column, (a, value) in enumerate(pairs)])
            for row, (image, pairs) in enumerate(train)]


def _asked(lines: list[str], rule: Mapping[str, Any]) -> list[str]:
    """Lines of a query or candidate file that an evaluation keeps."""
    if rule["kind"] != "held_out":
        return lines
    held = {(attribute, str(value)) for attribute, values in rule["values"].items() for value in values}
    return [line for line in lines if tuple(line.split()[1:]) in held]


def derive(source: Path, target: Path, rule: Mapping[str, Any], seed: int) -> None:
    """Writes the derived data set, whole or not at all; does nothing where it lies there already."""
    note = {"source": str(source.resolve()), "rule": dict(rule), "seed": seed}
    try:
        if json.loads((target / NOTE).read_text()) == note:
            return
    except (OSError, ValueError):
        pass
    with whole_folder(target) as folder:
        for split in SPLITS:
            names = read_filenames(str(source / f"filenames_{split}.txt"))
            write_lines(folder / f"filenames_{split}.txt", [str(source.resolve() / name) for name in names])
        write_lines(folder / "label_train.txt", [
            f"{image} " + " ".join(f"{a} {v}" for a, v in pairs)
            for image, pairs in training_labels(read_train(source), rule, seed)])
        for split in SPLITS[1:]:
            for side in ("query", "candidate"):
                lines = (source / f"{side}_{split}.txt").read_text(encoding="utf-8").splitlines()
                write_lines(folder / f"{side}_{split}.txt", _asked(lines, rule))
        (folder / NOTE).write_text(json.dumps(note) + "\n")
