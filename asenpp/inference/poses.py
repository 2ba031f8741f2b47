"""Pose files with the style of each person: one JSON in, one JSON of the same name out (docs/reference.md 7).

Invariants: input files are never written over; an output file is there whole or not at all, after
its crops; whatever is wrong with a file is said with its name.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint.atomic import atomic_file
from ..data.index import DataError
from ..engine.log import progress
from ..transforms import decode
from .classifier import StyleClassifier

__all__ = ["classify_poses"]

_JPEG_QUALITY = 95


def classify_poses(classifier: StyleClassifier, json_root: str | os.PathLike, img_prefix: str | os.PathLike,
                   out: str | os.PathLike, crops: str | os.PathLike | None = None,
                   keep_going: bool = False) -> tuple[int, list[str]]:
    """Classifies every person in every pose file below `json_root`.

    A pose file is {"meta_data": …, "pose_info": [{"bbox": [x, y, w, h], …}, …]}; its image is
    `img_prefix`/<stem>.jpg, EXIF orientation applied. `out` gets a file of the same name, in the
    same subfolder; a result of an earlier run is replaced.

    crops: a folder for the crop of each person, {image}_{i}_{style}_{score:.4f}.jpg.
    keep_going: go on after a pose file or image that cannot be used.

    Returns the number of files written, and what was wrong with the others. Raises DataError for
    the first file that cannot be used (unless keep_going), OSError where nothing can be written.
    """
    root, target = Path(json_root), Path(out)
    names = find_poses(root)
    _refuse_to_overwrite(root, target, names)
    mistakes: list[str] = []
    for name in progress(names, len(names), "poses", " files"):
        try:
            merged, pictures = _classify_file(classifier, root / name, Path(img_prefix))
        except DataError as error:
            if not keep_going:
                raise
            mistakes.append(str(error))
            continue
        if crops is not None:
            _save_crops(Path(crops) / name.parent, name.stem, pictures)
        _write(target / name, _encode(merged))
    return len(names) - len(mistakes), mistakes


def find_poses(root: Path) -> list[Path]:
    """All *.json below a folder, relative to it, sorted; hidden ones are left out.

    Raises DataError where there are none, OSError for a folder that cannot be read.
    """
    def refuse(error: OSError) -> None:
        raise error

    names = [Path(folder, file).relative_to(root) for folder, folders, files in os.walk(root, onerror=refuse)
             if not any(part.startswith(".") for part in Path(folder).relative_to(root).parts)
             for file in files if file.endswith(".json") and not file.startswith(".")]
    if not names:
        raise DataError(f"{root}: there are no pose files (*.json) below this folder (--json-root)")
    return sorted(names)


def _refuse_to_overwrite(root: Path, target: Path, names: list[Path]) -> None:
    source = os.path.realpath(root)
    for name in names:
        path = os.path.realpath(target / name)
        if os.path.commonpath([source, path]) == source:
            raise DataError(f"{target / name} would lie among the pose files in {root}: name another folder (--out)")


# -- one file -------------------------------------------------------------------------------------

def read_pose(path: Path) -> tuple[Any, list[dict[str, Any]]]:
    """meta_data and pose_info of a pose file. DataError names the file and what is wrong."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: no pose file: an object with meta_data and pose_info was expected")
    for key in ("meta_data", "pose_info"):
        if key not in content:
            raise DataError(f"{path}: no pose file: {key} is missing")
    people = content["pose_info"]
    if not isinstance(people, list) or not all(isinstance(entry, dict) for entry in people):
        raise DataError(f"{path}: pose_info must be a list of objects, one for each person")
    return content["meta_data"], people


def corners(bbox: Any) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a box [x, y, w, h] of numbers or text: each int(float()).

    Raises ValueError for anything else.
    """
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise ValueError("bbox must be [x, y, width, height]")
    try:
        x, y, w, h = (int(float(number)) for number in bbox)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"bbox {bbox} must hold four numbers") from None
    return x, y, x + w, y + h


def _cut(pixels: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    """The part of an image (height, width, 3) that an entry's box marks, as far as it lies inside."""
    if "bbox" not in entry:
        raise ValueError("bbox is missing")
    height, width = pixels.shape[:2]
    left, top, right, bottom = corners(entry["bbox"])
    crop = pixels[max(top, 0):max(bottom, 0), max(left, 0):max(right, 0)]
    if not crop.size:
        raise ValueError(f"bbox {entry['bbox']} holds nothing of the image, which is {width}×{height}")
    return crop


Picture = tuple[str, np.ndarray]     # the end of a crop's name, and its pixels


def _classify_file(classifier: StyleClassifier, path: Path, img_prefix: Path) -> tuple[dict, list[Picture]]:
    meta, people = read_pose(path)
    image = img_prefix / f"{path.stem}.jpg"
    try:
        pixels = decode(image, exif=True)
    except FileNotFoundError:
        raise DataError(f"{path}: its image {image} is missing (--img-prefix)") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: its image cannot be read: {error}") from None
    cut = []
    for i, entry in enumerate(people):
        try:
            cut.append(_cut(pixels, entry))
        except ValueError as error:
            raise DataError(f"{path}: pose_info[{i}]: {error}") from None
    try:
        found = classifier.predict(cut)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    pictures = []
    for i, (crop, (number, score)) in enumerate(zip(cut, found)):
        style = classifier.names[number].replace("/", "_").replace(os.sep, "_")
        pictures.append((f"{i}_{style}_{score:.4f}", crop))
    return _merged(meta, people, [number for number, _ in found]), pictures


def _merged(meta: Any, people: list[dict[str, Any]], classes: list[int]) -> dict[str, Any]:
    """The output's tree; the order of keys is part of the format."""
    contents = [{
        "bbox": entry["bbox"],
        "pose_info": {key: value for key, value in entry.items() if key != "bbox"},
        "face_info": {"sex": "", "age": "", "num_Landmark": "", "bbox": [], "Landmark": [], "Emotion": ""},
        "style_info": str(number),
    } for entry, number in zip(people, classes)]
    return {
        "meta_data": meta,
        "Contents_tag": {"caption_tag": []},
        "Caption_data": {"caption_data": ""},
        "Contents_info": {
            "object_contents_info": {"MAIN_CHARAC": "", "count": len(contents), "CNTS": contents},
            "brand_info": {"bbox": [], "TEXT": ""},
            "QR_info": {"bbox": [], "url": ""},
            "OCR_info": {"num_word": "", "words": [{"bbox": [], "TEXT": "", "class": ""}]},
        },
    }


# -- writing --------------------------------------------------------------------------------------

def _encode(merged: dict[str, Any]) -> bytes:
    """UTF-8. Half a surrogate pair, which JSON can say and UTF-8 cannot, stays an escape."""
    return json.dumps(merged, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, needed=len(data)) as file:
        file.write(data)


def _save_crops(folder: Path, image: str, pictures: list[Picture]) -> None:
    from PIL import Image

    for end, crop in pictures:
        data = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(crop)).save(data, "JPEG", quality=_JPEG_QUALITY)
        _write(folder / f"{image}_{end}.jpg", data.getvalue())
