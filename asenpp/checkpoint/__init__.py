"""Checkpoints: nested Python objects with arrays, in PyTorch's formats and without PyTorch.

`save` writes PyTorch's ZIP container, which `torch.load(path, weights_only=True)` reads, or
safetensors. `load` reads these and PyTorch's older containers, whoever wrote them, and runs nothing
that the file contains. Each container is a module of its own, and a row of CONTAINERS below.

    atomic.py          files whole or not at all
    pickle_writer.py   objects -> pickle
    pickle_reader.py   pickle -> objects, on a stack machine with a fixed table of names
    tensors.py         tensors as views of storages, bfloat16
    records.py         elements mapped from a file, or read into their place
    zip_container.py   PyTorch's ZIP container (1.6 and later)
    stream_container.py  … stream container (0.1.10 to 1.5)
    tar_container.py   … tar container (older)
    safetensors.py     safetensors
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .atomic import copy_file
from .errors import CheckpointError
from .safetensors import probe_safetensors, read_safetensors, write_safetensors
from .stream_container import MAGIC as STREAM_MAGIC
from .stream_container import read_stream
from .tar_container import probe_tar, read_tar
from .tensors import BFloat16, TensorInfo
from .zip_container import MAGIC as ZIP_MAGIC
from .zip_container import read_zip, write_zip

__all__ = ["BFloat16", "CheckpointError", "TensorInfo", "copy_file", "inspect", "load", "save", "weights"]


class Container(NamedTuple):
    """name: for messages. probe(head, size): whether a file of `size` bytes with these first 512
    is one. read(file, path, *, writable, verify, listing): its object."""

    name: str
    probe: Callable[[bytes, int], bool]
    read: Callable


CONTAINERS = [
    Container("PyTorch's ZIP container", lambda head, size: head.startswith(ZIP_MAGIC), read_zip),
    Container("PyTorch's stream container", lambda head, size: STREAM_MAGIC in head[:32], read_stream),
    Container("PyTorch's tar container", probe_tar, read_tar),
    Container("safetensors", probe_safetensors, read_safetensors),
]


def save(obj: Any, path: str | os.PathLike, *, metadata: Mapping[str, str] | None = None) -> None:
    """Writes `obj` to `path`, whole or not at all: as safetensors where the name ends in
    .safetensors, else in PyTorch's ZIP container.

    obj: nested dicts, OrderedDicts (their `_metadata` included), lists, tuples, str, bytes, int,
    float, bool, None, NumPy scalars (written as Python's), and arrays: numpy.ndarray, or anything
    with `numpy()` or `__array__`, of float64/32/16, int and uint of 64/32/16/8 bits or bool, or a BFloat16.
    Arrays become contiguous CPU tensors of the same shape; those over the same memory share a storage.
    Safetensors hold one flat dictionary of arrays, and `metadata`, strings by name (None: those that
    `obj` was loaded with).

    The file appears at once and complete, or the old one stays as it was, also when the machine
    stops in between. Raises CheckpointError, naming the place in `obj`, for what cannot be saved;
    OSError for a disk that is full and the like, naming path, bytes needed and bytes free;
    FileNotFoundError when the folder does not exist.
    """
    if os.fsdecode(path).endswith(".safetensors"):
        write_safetensors(obj, path, metadata)
    elif metadata is not None:
        raise ValueError(f"metadata is for safetensors, and {os.fsdecode(path)} does not end in .safetensors: "
                         "put it into the object")
    else:
        write_zip(obj, path)


def load(path: str | os.PathLike, *, writable: bool = False, verify: bool = False) -> Any:
    """The object in the checkpoint at `path`, with NumPy arrays for its tensors, and BFloat16 for
    those of bfloat16. The container is told by its contents; safetensors give an OrderedDict with
    the file's strings as its attribute `metadata`.

    Tensors are views of their storages, with the shape and strides that the file gives; those that
    share memory in the file share it here. They are mapped from the file, read-only; with
    `writable` they are read into memory of their own. A mapped file must not be shortened while it
    is in use (`save` never does: it makes a new file). `verify` holds every record against its
    checksum, where the container has them; files written by torch with checksums switched off fail.

    Nothing in the file is run or imported: a pickle that asks for anything but tensors and plain
    values is refused. Raises FileNotFoundError, and CheckpointError, which names the file and what
    was met, for a file that is no checkpoint, is cut off, or lies about its contents.
    """
    return _read(path, writable=writable, verify=verify, listing=False)[1]


def inspect(path: str | os.PathLike) -> tuple[str, Any]:
    """(name of the container, its object with a TensorInfo for each tensor): no data are read.
    Raises as `load`."""
    return _read(path, writable=False, verify=False, listing=True)


def weights(obj: Any) -> Mapping[str, Any] | None:
    """The state dict in a loaded object: what stands under "model" or "state_dict", or the object
    itself where it is one (a dictionary with tensors); None where there is none."""
    if not isinstance(obj, Mapping):
        return None
    for key in ("model", "state_dict"):
        if isinstance(obj.get(key), Mapping):
            return obj[key]
    return obj if any(isinstance(getattr(value, "shape", None), tuple) for value in obj.values()) else None


def _read(path: str | os.PathLike, **options) -> tuple[str, Any]:
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
        found = [container for container in CONTAINERS if container.probe(head, size)]
        if not found:
            raise CheckpointError(f"{shown}: not a checkpoint (it begins with {head[:8]!r})")
        if len(found) > 1:
            raise CheckpointError(f"{shown}: looks like {' and like '.join(c.name for c in found)} at once")
        return found[0].name, found[0].read(file, shown, **options)
