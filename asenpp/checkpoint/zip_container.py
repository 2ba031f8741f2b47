"""PyTorch's ZIP container (PyTorch 1.6 and later).

`<root>/data.pkl` is a pickle whose persistent ids ('storage', class, key, location, elements) stand
for the raw records `<root>/data/<key>`; `<root>/byteorder` (absent: little) and `<root>/version` go
with them. Records are stored uncompressed, 64-byte aligned. Local headers of PyTorch's own files
carry no sizes: only the central directory is believed, and every record is held against it and
against the file before anything is mapped or allocated.
"""

from __future__ import annotations

import errno
import os
import struct
import zipfile
from typing import BinaryIO

import numpy as np

from .atomic import atomic_file
from .errors import CheckpointError
from .pickle_reader import MAX_PICKLE, Name, PickleError, brief, read_pickle
from .pickle_writer import Pickler
from .records import Records, parse_order
from .tensors import NAMES, Storage

MAGIC = b"PK\x03\x04"
ROOT = "archive"
ALIGNMENT = 64
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, lengths of name and extra field
_CHUNK = 16 << 20
MAX_DIRECTORY = 4 << 20  # bytes; a record takes up to 150
_END = struct.Struct("<4s8xIIH")  # signature, …, size and place of the directory, length of the comment
_LOCATOR = struct.Struct("<4s4xQ4x")  # signature, place of the ZIP64 end
_END64 = struct.Struct("<4s36xQQ")
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


def elements(array: np.ndarray) -> memoryview | bytes:
    """An array's elements in C order, little-endian; copied only where they do not lie so."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return memoryview(array.reshape(-1).view(np.uint8)) if array.size else b""


def _read_back(pickler: Pickler) -> None:
    """Raises CheckpointError for what would be refused when it is read: it is too late to learn that then."""
    try:
        read_pickle(pickler.data, 0, len(pickler.data), NAMES, lambda pid: Storage(None, pid[1].dtype, pid[4]))
    except PickleError as error:
        raise CheckpointError(f"cannot save the object, since it could not be read back: {error}") from None


def write_zip(obj, path: str | os.PathLike) -> None:
    """Writes `obj` to `path`, whole or not at all. See `asenpp.checkpoint.save`."""
    pickler = Pickler(obj)
    _read_back(pickler)
    needed = len(pickler.data) + sum(array.nbytes + 300 for array in pickler.storages) + 1000
    with atomic_file(path, needed) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _write_record(archive, "data.pkl", pickler.data)
        _write_record(archive, "byteorder", b"little")
        for key, array in enumerate(pickler.storages):
            _write_record(archive, f"data/{key}", elements(array))
        _write_record(archive, "version", b"3\n")


# --- reading ------------------------------------------------------------------------------------


class _Archive:
    """An open ZIP file whose records are where, and as long as, its directory says."""

    def __init__(self, file: Records):
        self.file, self.error = file, file.error
        self._check_end()
        try:
            with zipfile.ZipFile(file.file) as archive:
                infos, directory = archive.infolist(), archive.start_dir
        except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError,
                EOFError) as error:
            raise self.error(f"a ZIP file that is cut off or damaged ({error!s:.200})") from None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise self.error("a ZIP file whose directory lies outside it") from None
        infos.sort(key=lambda info: info.header_offset)
        ends = [info.header_offset for info in infos[1:]] + [directory]
        self.records = {info.filename: (info, end) for info, end in zip(infos, ends)}
        if infos and infos[0].header_offset != 0:
            raise self.error("a ZIP file whose records do not begin where it does: another file is in front of it")
        if len(self.records) != len(infos):
            raise self.error("two records have the same name")

    def _check_end(self) -> None:
        """The end record ends the file, and its directory is no larger than is read: `zipfile`
        would look for it further in front, and parse a directory of any size."""
        tail = self.file.read("the end", max(0, self.file.size - _END.size), min(self.file.size, _END.size))
        if len(tail) < _END.size or tail[:4] != b"PK\x05\x06":
            raise self.error("a ZIP file that is cut off, or has something behind its end")
        _, size, start, _ = _END.unpack(tail)
        at = self.file.size - _END.size - _LOCATOR.size
        locator = self.file.read("the ZIP64 locator", at, _LOCATOR.size) if at >= 0 else b""
        if locator[:4] == b"PK\x06\x07":  # `zipfile` believes it, whatever the end record says
            at -= _END64.size
            record = self.file.read("the ZIP64 end", at, _END64.size) if at >= 0 else b""
            if record[:4] != b"PK\x06\x06" or _LOCATOR.unpack(locator)[1] != at:
                raise self.error("a ZIP file whose ZIP64 end is cut off or damaged")
            size = _END64.unpack(record)[1]
        elif 0xFFFFFFFF in (size, start):
            raise self.error("a ZIP file whose ZIP64 end is cut off or damaged")
        if size > MAX_DIRECTORY:
            raise self.error(f"a ZIP file with a directory of {size} bytes, more than the {MAX_DIRECTORY} that are read")

    def find(self, name: str) -> tuple[int, int, int]:
        """(start, size, CRC) of a record's data in the file."""
        if name not in self.records:
            raise self.error(f"record {brief(name)} is missing")
        info, end = self.records[name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise self.error(f"record {brief(name)} is compressed or encrypted; PyTorch stores records as they are: "
                             "was the file packed anew?")
        header = self.file.read(f"the header of {brief(name)}", info.header_offset, _LOCAL_HEADER.size)
        if header[:4] != MAGIC:
            raise self.error(f"record {brief(name)} does not begin where the directory says")
        start = info.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header)[1:])
        if info.compress_size != info.file_size or start + info.file_size > min(end, self.file.size):
            raise self.error(f"record {brief(name)} of {info.file_size} bytes does not fit where the directory says")
        return start, info.file_size, info.CRC


class _Storages:
    """persistent id -> Storage, each record once."""

    def __init__(self, archive: _Archive, root: str, verify: bool):
        self.archive, self.root, self.verify = archive, root, verify
        self.known: dict[str, Storage] = {}
        self.order = "<"
        if f"{root}/byteorder" in archive.records:
            start, size, crc = archive.find(f"{root}/byteorder")
            if verify:
                archive.file.check("byteorder", start, size, crc)
            text = archive.file.read("byteorder", start, min(size, 16)).decode("ascii", "replace").strip()
            self.order = parse_order(text, "byteorder", archive.file)

    def load(self, pid) -> Storage:
        if not (type(pid) is tuple and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], Name)
                and pid[1].dtype is not None and isinstance(pid[2], str) and type(pid[4]) is int):
            raise PickleError(f"persistent id {brief(pid)} is not a storage's")
        _, kind, key, _, count = pid
        storage = self.known.get(key)
        if storage is None:
            storage = self.known[key] = self.read(f"{self.root}/data/{key}", kind.dtype, count)
        elif storage.dtype != kind.dtype or storage.count != count:
            raise PickleError(f"storage {brief(key)} is {kind.text} of {brief(count)} here and "
                              f"{storage.dtype} of {storage.count} elsewhere")
        return storage

    def read(self, name: str, dtype: np.dtype, count: int) -> Storage:
        start, size, crc = self.archive.find(name)
        if count < 0 or size != count * dtype.itemsize:
            raise PickleError(f"a storage of {brief(count)} elements of {dtype} has a record {brief(name)} of {size} bytes")
        return self.archive.file.storage(f"record {brief(name)}", start, dtype, count, order=self.order,
                                         crc=crc if self.verify else None)


def read_zip(file: BinaryIO, path: str, *, writable: bool, verify: bool, listing: bool):
    """The object in an open file. See `asenpp.checkpoint.load`."""
    archive = _Archive(Records(file, path, writable=writable, listing=listing))
    roots = [name[:-len("/data.pkl")] for name in archive.records if name.endswith("/data.pkl")]
    roots = [root for root in roots if "/" not in root]
    if len(roots) != 1:
        raise archive.error(f"a ZIP file with {len(roots)} records <root>/data.pkl: not PyTorch's container")
    for name in archive.records:
        if name == f"{roots[0]}/constants.pkl" or name.startswith(f"{roots[0]}/code/"):
            raise archive.error(f"a TorchScript program (it has {brief(name)}), which is not read: save its state_dict() "
                                "with torch.save")
    storages = _Storages(archive, roots[0], verify)
    start, size, crc = archive.find(f"{roots[0]}/data.pkl")
    if size > MAX_PICKLE:
        raise archive.error(f"data.pkl has {size} bytes, more than the {MAX_PICKLE} that are read")
    if verify:
        archive.file.check("data.pkl", start, size, crc)
    try:
        obj, end = read_pickle(archive.file.map, start, start + size, NAMES, storages.load)
    except PickleError as error:
        raise archive.error(f"{roots[0]}/data.pkl: {error}") from None
    if end != start + size:
        raise archive.error(f"{roots[0]}/data.pkl: {start + size - end} bytes are left over after it")
    return obj
