"""What must hold of a data set before a long run starts on it.

The published sampler crashes, hours in or at once, on an attribute with one value or a value with
fewer than two images. Here that is found first, and named.
"""

from __future__ import annotations

import json
import os
from typing import Any, Iterable

import numpy as np

from .index import Attributes, DataError, EvalSet, TrainSet


def usable_values(train_set: TrainSet, skip: bool = False, images: int = 2) -> list[list[int]]:
    """Per attribute the values that can be trained on: all of them, or DataError.

    A value needs `images` different images, an attribute two such values, so that something differs.
    skip: DATA.SKIP_UNUSABLE_VALUES: leave out the values that do not, and the attributes with fewer
    than two values left (their lists are empty); an error only when nothing is left.
    images: 2 for the losses over pairs of equal value (triplet, supcon, dense_triplet), 1 for cosine,
    which compares an image to the weights of the values: one image teaches it something.
    """
    if images not in (1, 2):
        raise ValueError(f"usable_values: images={images}, 1 or 2 was expected")
    needed = "at least one is needed" if images == 1 else "at least two are needed"
    usable: list[list[int]] = []
    remedy = ("give it more images, change DATA.ATTRIBUTES, or set DATA.SKIP_UNUSABLE_VALUES True "
              "to train without it")
    problems = []
    for attribute, (name, lists) in enumerate(zip(train_set.attributes.names, train_set.table)):
        counts = [len(set(ids)) for ids in lists]
        problems += [f"attribute {attribute} ({name}), value {value}: {count} "
                     f"image{'s' * (count != 1)}, {needed}"
                     for value, count in enumerate(counts) if count < images]
        if len(lists) < 2:
            problems.append(f"attribute {attribute} ({name}) has one value only, so nothing differs in it")
        kept = [value for value, count in enumerate(counts) if count >= images]
        usable.append(kept if len(kept) >= 2 else [])
    if problems and not skip:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise DataError(f"data set {train_set.dataset}, training labels: " + "; ".join(problems[:5])
                        + f"{more}; {remedy}")
    if not any(usable):
        lack = ("an image each, so nothing can be told apart" if images == 1 else
                "two images each, so no triplet can be drawn")
        raise DataError(f"data set {train_set.dataset}: no attribute has two values with {lack}; "
                        "check DATA.GROUNDTRUTH.TRAIN")
    return usable


def skipped_values(train_set: TrainSet, usable: list[list[int]]) -> list[str]:
    """What `usable_values(…, skip=True)` left out, one line an attribute, for the log."""
    lines = []
    for name, lists, kept in zip(train_set.attributes.names, train_set.table, usable):
        left_out = sorted(set(range(len(lists))) - set(kept))
        if left_out:
            lines.append(f"{name}: " + ("skipped wholly" if not kept else
                                        "skipped values " + ", ".join(map(str, left_out))))
    return lines


def check_eval(eval_set: EvalSet) -> list[str]:
    """Warnings about an evaluation; DataError when queries of an attribute have no candidates.

    Warned of: an attribute without queries (it is left out of the total), and queries whose value
    no candidate has (their average precision is 0 whatever the model does).
    """
    warnings = []
    for attribute, query_rows, candidate_rows in eval_set.by_attribute():
        name = eval_set.attributes.names[attribute]
        where = f"data set {eval_set.dataset}, {eval_set.split}: attribute {attribute} ({name})"
        if not len(query_rows):
            warnings.append(f"{where} has no queries and is left out")
            continue
        if not len(candidate_rows):
            raise DataError(f"{where} has {len(query_rows)} queries but no candidates; check "
                            f"DATA.GROUNDTRUTH.CANDIDATE.{eval_set.split.upper()}")
        values = eval_set.queries.values[query_rows]
        alone = ~np.isin(values, eval_set.candidates.values[candidate_rows])
        if alone.any():
            named = ", ".join(map(str, np.unique(values[alone]).tolist()))
            warnings.append(f"{where}: {int(alone.sum())} queries have a value ({named}) that no "
                            "candidate has; their average precision is 0")
    return warnings


def missing_images(paths: Iterable[str], limit: int = 10) -> list[str]:
    """The first image files that are not there, at most `limit` of them."""
    missing: list[str] = []
    for path in paths:
        if len(missing) >= limit:
            break
        if not os.path.isfile(path):
            missing.append(path)
    return missing


def check_images(dataset: str, paths: Iterable[str], key: str = "DATA.IMAGE_ROOT") -> None:
    """DataError when image files are missing, naming the first ones."""
    missing = missing_images(paths, 3)
    if missing:
        raise DataError(f"data set {dataset}: images are missing, the first: {', '.join(missing)}; "
                        f"put them there, or set {key} (or DATA.BASE_PATH)")


def check_meta(cfg: Any, attributes: Attributes) -> list[str]:
    """Differences between DATA.ATTRIBUTES and a meta.json, as warnings; none where there is no file.

    Looked for in DATA.BASE_PATH/DATA.DATASET and in DATA.BASE_PATH:
    {dataset: {"attributes": [{"name": …, "num": …}, …]}}.
    """
    for folder in (os.path.join(cfg.DATA.BASE_PATH, cfg.DATA.DATASET), cfg.DATA.BASE_PATH):
        path = os.path.join(folder, "meta.json")
        try:
            with open(path, encoding="utf-8") as file:
                entry = json.load(file).get(cfg.DATA.DATASET)
            if entry is None:
                continue
            found = [(str(item["name"]), int(item["num"])) for item in entry["attributes"]]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return [f"{path}: not readable as data set descriptions ({error!r}), left aside"]
        here = list(zip(attributes.names, attributes.sizes))
        if found != here:
            return [f"{path} describes {cfg.DATA.DATASET} as {found}, DATA.ATTRIBUTES as {here}"]
        return []
    return []
