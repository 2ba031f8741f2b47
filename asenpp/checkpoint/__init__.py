"""Checkpoints: nested Python objects with arrays, in PyTorch's formats and without PyTorch.

`save` writes PyTorch's ZIP container, which `torch.load(path, weights_only=True)` reads. `load`
reads it back, whoever wrote it, and runs nothing that the file contains. Each container is a
module of its own, and a row of CONTAINERS below.

    atomic.py          files whole or not at all
    pickle_writer.py   objects -> pickle
    pickle_reader.py   pickle -> objects, on a stack machine with a fixed table of names
    tensors.py         tensors as views of storages
    zip_container.py   PyTorch's ZIP container
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from .atomic import copy_file
from .errors import CheckpointError
from .zip_container import MAGIC as ZIP_MAGIC
from .zip_container import read_zip, write_zip

__all__ = ["CheckpointError", "copy_file", "load", "save"]


class Container(NamedTuple):
    """name: for messages. probe(head, size): whether a file of `size` bytes with these first 512
    is one. read(file, path, *, writable, verify): its object, or None where it is not read yet."""

    name: str
    probe: Callable[[bytes, int], bool]
    read: Callable | None


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return 2 <= length <= size - 8 and head[8:9] == b"{"


CONTAINERS = [
    Container("PyTorch's ZIP container", lambda head, size: head.startswith(ZIP_MAGIC), read_zip),
    Container("PyTorch's stream container (0.1.10 to 1.5)",
              lambda head, size: b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in head[:16], None),
    Container("PyTorch's tar container (before 0.1.10)", lambda head, size: head[257:262] == b"ustar", None),
    Container("safetensors", _is_safetensors, None),
]


def save(obj: Any, path: str | os.PathLike) -> None:
    """Writes `obj` to `path` in PyTorch's ZIP container, whole or not at all.

    obj: nested dicts, OrderedDicts (their `_metadata` included), lists, tuples, str, bytes, int,
    float, bool, None, NumPy scalars (written as Python's), and arrays: numpy.ndarray, or anything
    with `numpy()` or `__array__`, of float64/32/16, int64/32/16/8, uint8 or bool. Arrays become
    contiguous CPU tensors of the same shape; those over the same memory share a storage.

    The file appears at once and complete, or the old one stays as it was, also when the machine
    stops in between. Raises CheckpointError, naming the place in `obj`, for what cannot be saved;
    OSError for a disk that is full and the like, naming path, bytes needed and bytes free;
    FileNotFoundError when the folder does not exist.
    """
    write_zip(obj, path)


def load(path: str | os.PathLike, *, writable: bool = False, verify: bool = False) -> Any:
    """The object in the checkpoint at `path`, with NumPy arrays for its tensors.

    Tensors are views of their storages, with the shape and strides that the file gives; those that
    share memory in the file share it here. They are mapped from the file, read-only; with
    `writable` they are read into memory of their own. A mapped file must not be shortened while it
    is in use (`save` never does: it makes a new file). `verify` holds every record against its
    checksum; files written by torch with checksums switched off fail that.

    Nothing in the file is run or imported: a pickle that asks for anything but tensors and plain
    values is refused. Raises FileNotFoundError, and CheckpointError, which names the file and what
    was met, for a file that is no checkpoint, is cut off, or lies about its contents.
    """
    path = os.fspath(path)
    shown = os.fsdecode(path)
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "there is no checkpoint", shown) from None
    with file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(512)
        if not head:
            raise CheckpointError(f"{shown}: the file is empty")
        for container in CONTAINERS:
            if container.probe(head, size):
                if container.read is None:
                    raise CheckpointError(
                        f"{shown}: {container.name} is not read yet; load it with PyTorch and save it again "
                        "with PyTorch 1.6 or later")
                return container.read(file, shown, writable=writable, verify=verify)
    raise CheckpointError(f"{shown}: not a checkpoint (it begins with {head[:8]!r})")
