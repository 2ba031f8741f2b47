"""PyTorch's ZIP container (PyTorch 1.6 and later).

`<root>/data.pkl` is a pickle whose persistent ids ('storage', class, key, location, elements) stand
for the raw records `<root>/data/<key>`; `<root>/byteorder` (absent: little) and `<root>/version` go
with them. Records are stored uncompressed, 64-byte aligned. Local headers of PyTorch's own files
carry no sizes: only the central directory is believed, and every record is held against it and
against the file before anything is mapped or allocated.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import zipfile
import zlib
from typing import BinaryIO

import numpy as np

from .atomic import atomic_file
from .errors import CheckpointError
from .pickle_reader import MAX_PICKLE, Name, PickleError, names, read_pickle
from .pickle_writer import Pickler
from .tensors import Storage, rebuild_tensor

MAGIC = b"PK\x03\x04"
ROOT = "archive"
ALIGNMENT = 64
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, lengths of name and extra field
_CHUNK = 16 << 20
_LARGE = 1 << 30  # from here on a record gets the longer ZIP64 header


# --- writing ------------------------------------------------------------------------------------


def _write_record(archive: zipfile.ZipFile, name: str, data) -> None:
    """One stored record whose data begins at a multiple of ALIGNMENT: the extra field pads."""
    data = memoryview(data)
    info = zipfile.ZipInfo(f"{ROOT}/{name}")
    info.file_size = len(data)
    large = len(data) > _LARGE
    start = archive.fp.tell() + 30 + len(info.filename) + (20 if large else 0) + 4
    padding = -start % ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as record:
        for chunk in range(0, len(data), _CHUNK):
            record.write(data[chunk:chunk + _CHUNK])


def _elements(array: np.ndarray) -> memoryview | bytes:
    """An array's elements in C order, little-endian; copied only where they do not lie so."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return memoryview(array.reshape(-1).view(np.uint8)) if array.size else b""


def write_zip(obj, path: str | os.PathLike) -> None:
    """Writes `obj` to `path`, whole or not at all. See `asenpp.checkpoint.save`."""
    pickler = Pickler(obj)
    needed = len(pickler.data) + sum(array.nbytes + 300 for array in pickler.storages) + 1000
    with atomic_file(path, needed) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _write_record(archive, "data.pkl", pickler.data)
        _write_record(archive, "byteorder", b"little")
        for key, array in enumerate(pickler.storages):
            _write_record(archive, f"data/{key}", _elements(array))
        _write_record(archive, "version", b"3\n")


# --- reading ------------------------------------------------------------------------------------


class _Archive:
    """An open ZIP file whose records are where, and as long as, its directory says."""

    def __init__(self, file: BinaryIO, path: str):
        self.file, self.path = file, path
        self.size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                infos, directory = archive.infolist(), archive.start_dir
        except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError,
                EOFError) as error:
            raise self.error(f"a ZIP file that is cut off or damaged ({error})") from None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise self.error("a ZIP file whose directory lies outside it") from None
        infos.sort(key=lambda info: info.header_offset)
        ends = [info.header_offset for info in infos[1:]] + [directory]
        self.records = {info.filename: (info, end) for info, end in zip(infos, ends)}
        if infos and infos[0].header_offset < 0:
            raise self.error("a ZIP file whose records begin before it")
        if len(self.records) != len(infos):
            raise self.error("two records have the same name")

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {message}")

    def find(self, name: str) -> tuple[int, int, int]:
        """(start, size, CRC) of a record's data in the file."""
        if name not in self.records:
            raise self.error(f"record {name} is missing")
        info, end = self.records[name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise self.error(f"record {name} is compressed or encrypted; PyTorch stores records as they are: "
                             "was the file packed anew?")
        self.file.seek(info.header_offset)
        header = self.file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or header[:4] != MAGIC:
            raise self.error(f"record {name} does not begin where the directory says")
        start = info.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header)[1:])
        if info.compress_size != info.file_size or start + info.file_size > min(end, self.size):
            raise self.error(f"record {name} of {info.file_size} bytes does not fit where the directory says")
        return start, info.file_size, info.CRC

    def read_into(self, name: str, start: int, crc: int | None, buffer: memoryview) -> None:
        self.file.seek(start)
        done = value = 0
        while done < len(buffer):
            count = self.file.readinto(buffer[done:done + _CHUNK])
            if not count:
                raise self.error(f"record {name} ends after {done} of {len(buffer)} bytes")
            if crc is not None:
                value = zlib.crc32(buffer[done:done + count], value)
            done += count
        if crc is not None and value != crc:
            raise self.error(f"record {name} is damaged (its CRC is {value:08x}, not {crc:08x})")

    def read(self, name: str, limit: int, verify: bool) -> bytes:
        start, size, crc = self.find(name)
        if size > limit:
            raise self.error(f"record {name} has {size} bytes, more than the {limit} that are read")
        data = bytearray(size)
        self.read_into(name, start, crc if verify else None, memoryview(data))
        return bytes(data)


class _Storages:
    """persistent id -> Storage, each record once."""

    def __init__(self, archive: _Archive, root: str, writable: bool, verify: bool):
        self.archive, self.root, self.writable, self.verify = archive, root, writable, verify
        self.known: dict[str, Storage] = {}
        self.map: mmap.mmap | None = None
        order = "little"
        if f"{root}/byteorder" in archive.records:
            order = archive.read(f"{root}/byteorder", 16, verify).decode("ascii", "replace").strip()
            if order not in ("little", "big"):
                raise archive.error(f"byteorder is {order!r}, neither little nor big")
        self.order = "<" if order == "little" else ">"

    def load(self, pid) -> Storage:
        if not (type(pid) is tuple and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], Name)
                and pid[1].dtype is not None and isinstance(pid[2], str) and type(pid[4]) is int):
            raise PickleError(f"persistent id {pid!r:.80} is not a storage's")
        _, kind, key, _, count = pid
        storage = self.known.get(key)
        if storage is None:
            storage = self.known[key] = Storage(self.read(f"{self.root}/data/{key}", kind.dtype, count))
        elif storage.array.dtype != kind.dtype or len(storage.array) != count:
            raise PickleError(f"storage {key} is {kind.text} of {count} here and "
                              f"{storage.array.dtype} of {len(storage.array)} elsewhere")
        return storage

    def read(self, name: str, dtype: np.dtype, count: int) -> np.ndarray:
        start, size, crc = self.archive.find(name)
        if count < 0 or size != count * dtype.itemsize:
            raise PickleError(f"a storage of {count} elements of {dtype} has a record {name} of {size} bytes")
        if count == 0:
            return np.empty(0, dtype)
        crc = crc if self.verify else None
        if self.writable:
            raw = np.empty(size, np.uint8)
            self.archive.read_into(name, start, crc, memoryview(raw))
        else:
            if self.map is None:
                self.map = mmap.mmap(self.archive.file.fileno(), 0, access=mmap.ACCESS_READ)
            raw = np.frombuffer(self.map, np.uint8, size, start)
            if crc is not None and zlib.crc32(raw) != crc:
                raise self.archive.error(f"record {name} is damaged (its CRC does not match)")
            if start % dtype.itemsize:
                raw = raw.copy()
        if dtype.kind == "b" and raw.max() > 1:
            raise PickleError(f"a storage of truth values, {name}, holds {raw.max()}")
        array = raw.view(dtype.newbyteorder(self.order))
        return array if self.order == "<" else array.astype(dtype)


def read_zip(file: BinaryIO, path: str, *, writable: bool, verify: bool):
    """The object in an open file. See `asenpp.checkpoint.load`."""
    archive = _Archive(file, path)
    roots = [name[:-len("/data.pkl")] for name in archive.records if name.endswith("/data.pkl")]
    roots = [root for root in roots if "/" not in root]
    if len(roots) != 1:
        raise archive.error(f"a ZIP file with {len(roots)} records <root>/data.pkl: not PyTorch's container")
    storages = _Storages(archive, roots[0], writable, verify)
    data = archive.read(f"{roots[0]}/data.pkl", MAX_PICKLE, verify)
    try:
        obj, _ = read_pickle(data, names(rebuild_tensor), storages.load)
    except PickleError as error:
        raise archive.error(f"{roots[0]}/data.pkl: {error}") from None
    return obj
