"""The safetensors container: a length, a JSON header of names, dtypes, shapes and offsets, data.

Not PyTorch's, and without anything to run. The header is bounded, and the tensors must cover the
data exactly, one after another, as the format's own reader asks.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import OrderedDict
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from .atomic import atomic_file
from .errors import CheckpointError
from .pickle_reader import BFLOAT16, PickleError, brief
from .pickle_writer import as_array
from .records import Records
from .tensors import rebuild_tensor
from .zip_container import elements

MAX_HEADER = 4 << 20
MAX_PARTS = 200_000  # commas and brackets of the header
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": BFLOAT16, "I64": "<i8", "I32": "<i4", "I16": "<i2",
          "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1"}
_NAMES = {np.dtype(code): name for name, code in DTYPES.items()}


class Tensors(OrderedDict):
    """Tensors by name, and the file's strings about them: `metadata`."""

    metadata: dict[str, str]


def probe_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return 2 <= length <= size - 8 and head[8:9] == b"{"


def write_safetensors(obj, path: str | os.PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a flat dictionary of arrays to `path`, whole or not at all; see `asenpp.checkpoint.save`.
    metadata: strings; where it is None, those that `obj` was read with."""
    metadata = getattr(obj, "metadata", None) if metadata is None else metadata
    if not isinstance(obj, Mapping):
        raise CheckpointError(f"cannot save a {type(obj).__name__} as safetensors: it must be a dictionary of arrays")
    header: dict = {}
    if metadata:
        if not all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items()):
            raise CheckpointError("cannot save metadata of safetensors that are not strings")
        header["__metadata__"] = dict(metadata)
    arrays = {}
    for name, value in obj.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise CheckpointError(f"cannot save {brief(name)} as safetensors: names are strings, and not __metadata__")
        try:
            array = as_array(value)
        except TypeError as error:
            raise CheckpointError(f"cannot save {name}: {error}") from None
        if array is None or array.dtype.newbyteorder("<") not in _NAMES:
            what = type(value).__name__ if array is None else f"an array of dtype {array.dtype}"
            raise CheckpointError(f"cannot save {name}: {what} is not what safetensors hold (a flat dictionary of arrays; "
                                  "of a checkpoint, save what stands under 'model')")
        arrays[name] = array
        header[name] = {"dtype": _NAMES[array.dtype.newbyteorder("<")], "shape": list(array.shape)}
    position = 0
    order = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)  # large elements first: all are aligned
    for name in order:
        header[name]["data_offsets"] = [position, position + arrays[name].nbytes]
        position += arrays[name].nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise CheckpointError(f"cannot save {len(arrays)} tensors: their header would have {len(text)} bytes, more than "
                              f"the {MAX_HEADER} that are read")
    if _parts(text) > MAX_PARTS:
        raise CheckpointError(f"cannot save {len(arrays)} tensors: their header would have more than the {MAX_PARTS} parts "
                              "that are read")
    with atomic_file(path, 8 + len(text) + position) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(elements(arrays[name]))


def _parts(header: bytes) -> int:
    return sum(map(header.count, (b",", b"[", b"{")))


def _pairs(pairs: list) -> dict:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name that is there twice")
    return result


def _integer(digits: str) -> int:
    if len(digits) > 20:  # converting takes the square of their number
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _header(records: Records) -> tuple[dict, int]:
    """The header, and where the data begin."""
    length = int.from_bytes(records.read("the header's length", 0, 8), "little")
    if length > MAX_HEADER:
        raise records.error(f"a header of {length} bytes, more than the {MAX_HEADER} that are read")
    text = records.read("the header", 8, length)
    if _parts(text) > MAX_PARTS:
        raise records.error(f"a header of more than {MAX_PARTS} parts")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_pairs, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise records.error(f"its header is no JSON ({error!s:.100})") from None
    return header, 8 + length


def _count(value) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def read_safetensors(file: BinaryIO, path: str, *, writable: bool, verify: bool, listing: bool) -> Tensors:
    """The tensors of an open file, by name. See `asenpp.checkpoint.load`; there are no checksums."""
    records = Records(file, path, writable=writable, listing=listing)
    header, base = _header(records)
    result = Tensors()
    result.metadata = header.pop("__metadata__", {})
    if not (isinstance(result.metadata, dict) and all(isinstance(v, str) for v in result.metadata.values())):
        raise records.error("__metadata__ is no dictionary of strings")
    places = []
    for name, entry in header.items():
        if not (isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}):
            raise records.error(f"tensor {brief(name)} has no dtype, shape and data_offsets, or more than these")
        kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(kind, str) or kind not in DTYPES:
            raise records.error(f"tensor {brief(name)} has dtype {brief(kind)}, which is not read")
        if not (isinstance(shape, list) and len(shape) <= 32 and all(map(_count, shape))
                and isinstance(offsets, list) and len(offsets) == 2 and all(map(_count, offsets))):
            raise records.error(f"tensor {brief(name)} has an odd shape or odd offsets")
        dtype, count = np.dtype(DTYPES[kind]), math.prod(shape)
        if offsets[1] - offsets[0] != count * dtype.itemsize:
            raise records.error(f"tensor {brief(name)} of {brief(count)} elements of {dtype.itemsize} bytes has "
                                f"{offsets[1] - offsets[0]} bytes")
        places.append((*offsets, name, dtype, tuple(shape), count))
    end = 0
    for start, stop, name, *_ in sorted(places, key=lambda place: place[:2]):
        if start != end:
            raise records.error(f"tensor {brief(name)} begins at byte {start} of the data, where {end} was expected: "
                                "tensors overlap or leave a gap")
        end = stop
    if base + end != records.size:
        raise records.error(f"its tensors end at byte {base + end}, and the file at {records.size}")
    for start, _, name, dtype, shape, count in places:
        stride, step = [], 1
        for n in reversed(shape):
            stride.insert(0, step)
            step *= max(n, 1)
        try:
            storage = records.storage(f"tensor {brief(name)}", base + start, dtype, count)
            result[name] = rebuild_tensor(storage, 0, shape, tuple(stride))
        except PickleError as error:
            raise records.error(f"tensor {brief(name)}: {error}") from None
    return result
