"""PyTorch's tar container (before 0.1.10; the oldest ImageNet files).

Members `storages` (a pickled count; for each a pickle (key, location, class), an int64 count of
elements, data; then a pickled list of views (key, root's key, offset, elements)), `tensors` (a
count; for each a pickle (key, storage's key, class), int32 dimensions, 4 bytes of padding, int64
sizes, strides and offset), `pickle` (the object, whose persistent ids are keys of tensors or
storages), and `sys_info`. The archive is read by its headers here, so that none makes us read more
than there is.
"""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

from .pickle_reader import Name, PickleError, brief, read_pickle
from .records import Records, parse_order
from .tensors import MAX_AXES, NAMES, Storage, rebuild_tensor

_BLOCK = 512
_MEMBERS = ("sys_info", "pickle", "tensors", "storages")
_MAX_HEADERS = 64
_MAX_TENSORS = 20_000


def probe_tar(head: bytes, size: int) -> bool:
    return head[257:262] == b"ustar"


def _number(field: bytes) -> int:
    """A tar header's number: octal digits, or GNU's binary form."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")
    if text.strip(b"01234567"):
        raise ValueError
    return int(text or b"0", 8)


def _members(records: Records) -> dict[str, tuple[int, int]]:
    """Name -> (start, end) of the regular files that matter."""
    found: dict[str, tuple[int, int]] = {}
    position = 0
    for _ in range(_MAX_HEADERS):
        if position == records.size:
            return found
        block = records.read("a tar header", position, _BLOCK)
        if not block.strip(b"\0"):
            while position < records.size:
                count = min(records.size - position, 1 << 20)
                if records.read("the tar file's end", position, count).strip(b"\0"):
                    raise records.error("a tar file that has something behind its end")
                position += count
            return found
        try:
            size, checksum = _number(block[124:136]), _number(block[148:156])
        except ValueError:
            size, checksum = 0, -1
        if checksum != sum(block[:148]) + sum(block[156:]) + 8 * ord(" "):
            raise records.error(f"a damaged tar header at byte {position}")
        name = block[:100].split(b"\0")[0].decode("latin1").removeprefix("./")
        kind, start = block[156:157], position + _BLOCK
        if size > records.size - start:
            raise records.error(f"tar member {brief(name)} of {size} bytes reaches beyond the file")
        if kind in (b"0", b"\0"):
            if name not in _MEMBERS or name in found:
                raise records.error(f"tar member {brief(name)}, which is not one of {', '.join(_MEMBERS)} once each: not "
                                    "PyTorch's container")
            found[name] = (start, start + size)
        elif kind in (b"x", b"g"):
            if b" size=" in records.read("an extended header", start, min(size, 1 << 16)):
                raise records.error("an extended tar header that changes sizes")
        elif kind != b"5":
            raise records.error(f"tar member {brief(name)} of type {kind!r}: not PyTorch's container")
        position = start + -(-size // _BLOCK) * _BLOCK
    raise records.error(f"a tar file of more than {_MAX_HEADERS} members: not PyTorch's container")


class _Reader:
    """The members, one after another. `position` moves through the one that is being read."""

    def __init__(self, records: Records):
        self.records, self.members = records, _members(records)
        self.part, self.position, self.end, self.order = "sys_info", 0, 0, "<"
        self.storages: dict[Any, Storage] = {}
        self.tensors: dict[Any, Any] = {}

    def open(self, member: str) -> None:
        self.part = member
        if member not in self.members:
            raise self.records.error(f"a tar file without {member}: not PyTorch's container")
        self.position, self.end = self.members[member]

    def pickle(self, load=None, parts: type | tuple = ()):
        value, self.position = read_pickle(self.records.map, self.position, self.end, NAMES, load or _no_id, parts)
        return value

    def integers(self, code: str, count: int = 1) -> tuple[int, ...]:
        form = struct.Struct(f"{self.order}{count}{code}")
        if form.size > self.end - self.position:
            raise PickleError(f"it ends where {count} integers belong")
        data = self.records.read(self.part, self.position, form.size)
        self.position += form.size
        return form.unpack(data)

    def length(self, itemsize: int) -> int:
        """A storage's count of elements. Files of big-endian machines may be little-endian all the
        same: then only that count fits."""
        (count,) = self.integers("q")
        if self.order == ">" and not 0 <= count * itemsize <= self.end - self.position:
            self.order, self.position = "<", self.position - 8
            (count,) = self.integers("q")
        return count

    def count(self) -> int:
        value = self.pickle()
        if type(value) is not int or not 0 <= value <= _MAX_TENSORS:
            raise PickleError(f"a count of {brief(value)}, not of 0 to {_MAX_TENSORS}")
        return value

    def entry(self) -> tuple:
        value = self.pickle(parts=Name)
        if not (type(value) is tuple and len(value) == 3 and _is_key(value[0]) and isinstance(value[2], Name)):
            raise PickleError(f"{brief(value)} describes no storage and no tensor")
        return value

    def read_system(self) -> None:
        self.open("sys_info")
        system = self.pickle()
        if isinstance(system, dict) and "little_endian" in system:
            value = system["little_endian"]
            self.order = parse_order("little" if value is True else "big" if value is False else "?", "little_endian",
                                     self.records)

    def read_storages(self) -> None:
        self.open("storages")
        for _ in range(self.count()):
            key, _, kind = self.entry()
            if kind.dtype is None or str(key) in self.storages:
                raise PickleError(f"storage {brief(key)} of class {brief(kind)} has no dtype, or is there twice")
            count = self.length(kind.dtype.itemsize)
            size = count * kind.dtype.itemsize
            if not 0 <= size <= self.end - self.position:
                raise PickleError(f"storage {brief(key)} of {count} elements is longer than what is left of it")
            self.storages[str(key)] = self.records.storage(f"storage {brief(key)}", self.position, kind.dtype, count,
                                                           order=self.order)
            self.position += size
        views = self.pickle()
        if not isinstance(views, list):
            raise PickleError("no list of views at its end")
        for view in views:
            if not (type(view) is tuple and len(view) == 4 and _is_key(view[0]) and _is_key(view[1])
                    and str(view[1]) in self.storages and str(view[0]) not in self.storages):
                raise PickleError(f"{brief(view)} is no view of a storage")
            self.storages[str(view[0])] = self.storages[str(view[1])].part(view[2], view[3])

    def read_tensors(self) -> None:
        self.open("tensors")
        for _ in range(self.count()):
            key, storage_key, _ = self.entry()
            if not _is_key(storage_key) or str(storage_key) not in self.storages or str(key) in self.tensors:
                raise PickleError(f"tensor {brief(key)} is there twice, or is of storage {brief(storage_key)}, which is "
                                  "not there")
            axes, _ = self.integers("i", 2)
            if not 0 <= axes <= MAX_AXES:
                raise PickleError(f"tensor {brief(key)} of {axes} dimensions")
            size, stride = self.integers("q", axes), self.integers("q", axes)
            (offset,) = self.integers("q")
            storage = self.storages[str(storage_key)]
            if axes == 0:  # tensors without dimensions were empty ones
                size, stride, offset = (0,), (1,), 0
            self.tensors[str(key)] = rebuild_tensor(storage, offset, size, stride)

    def load(self, pid):
        """A tensor's or storage's key -> the tensor or storage."""
        if _is_key(pid):
            value = self.tensors.get(str(pid), self.storages.get(str(pid)))
            if value is not None:
                return value
        elif type(pid) is tuple:
            raise PickleError(f"it holds a module of class {brief(pid)} with its source, not its state dict")
        raise PickleError(f"tensor {brief(pid)} is not there")


def _is_key(value) -> bool:
    return type(value) is int or isinstance(value, str) and len(value) <= 100


def _no_id(pid):
    raise PickleError(f"a persistent id, {brief(pid)}, where none belongs")


def read_tar(file: BinaryIO, path: str, *, writable: bool, verify: bool, listing: bool):
    """The object in an open file. See `asenpp.checkpoint.load`; only headers have checksums."""
    records = Records(file, path, writable=writable, listing=listing)
    reader = _Reader(records)
    try:
        reader.read_system()
        reader.read_storages()
        reader.read_tensors()
        reader.open("pickle")
        return reader.pickle(reader.load)
    except PickleError as error:
        raise records.error(f"{reader.part}: {error}") from None
