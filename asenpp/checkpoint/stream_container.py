"""PyTorch's stream container (0.1.10 to 1.5, and `_use_new_zipfile_serialization=False`).

Pickles one after another: a magic number, the protocol 1001, system information, the object, the
list of the storages' keys; then each storage of that list as an int64 count of elements and its
data. Persistent ids are ('storage', class, key, location, elements, view), where view is None or
(key of the view, offset, elements). The object comes before its data: its storages are allocated as
its pickle asks for them, never more than the file is long, and filled when they come. On big-endian
machines most versions write little-endian storages all the same: there the count tells which it is.
"""

from __future__ import annotations

from typing import BinaryIO

from .pickle_reader import Name, PickleError, brief, read_pickle
from .records import Records, parse_order
from .tensors import NAMES, Storage

MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # LONG1 of 0x1950a86a20f9469cfc6c
PROTOCOL = 1001


class _Storages:
    """persistent id -> Storage, not yet filled. order: what the file says of its machine."""

    def __init__(self, records: Records, order: str):
        self.records, self.order = records, order
        self.known: dict[str, Storage] = {}
        self.bytes = 0

    def load(self, pid) -> Storage:
        if type(pid) is tuple and len(pid) == 4 and pid[0] == "module":
            raise PickleError(f"it holds a module of class {brief(pid[1])} with its source, not its state dict: save its "
                              "state_dict() with torch.save")
        if not (type(pid) is tuple and len(pid) in (5, 6) and pid[0] == "storage" and isinstance(pid[1], Name)
                and pid[1].dtype is not None and isinstance(pid[2], str) and type(pid[4]) is int and pid[4] >= 0):
            raise PickleError(f"persistent id {brief(pid)} is not a storage's")
        _, kind, key, _, count, view = (*pid, None)[:6]
        storage = self.known.get(key)
        if storage is None:
            self.bytes += 8 + count * kind.dtype.itemsize
            if self.bytes > self.records.size:
                raise PickleError(f"storages of {brief(self.bytes)} bytes in a file of {self.records.size}")
            storage = self.known[key] = self.records.reserve(kind.dtype, count, self.order)
        elif storage.dtype != kind.dtype or storage.count != count:
            raise PickleError(f"storage {brief(key)} is {kind.text} of {brief(count)} here and "
                              f"{storage.dtype} of {storage.count} elsewhere")
        if view is None:
            return storage
        if not (type(view) is tuple and len(view) == 3 and isinstance(view[0], str)):
            raise PickleError(f"view {brief(view)} of storage {brief(key)} is none")
        return storage.part(view[1], view[2])


def read_stream(file: BinaryIO, path: str, *, writable: bool, verify: bool, listing: bool):
    """The object in an open file. See `asenpp.checkpoint.load`; there are no checksums to verify."""
    records = Records(file, path, writable=writable, listing=listing)
    part, position = "the magic number", 0

    def take(what: str, start: int, load=_no_id):
        nonlocal part
        part = what
        return read_pickle(records.map, start, records.size, NAMES, load)

    try:
        _, position = take("the magic number", 0)
        protocol, position = take("the protocol", position)
        if protocol != PROTOCOL or type(protocol) is not int:
            raise PickleError(f"it is {brief(protocol)}, not {PROTOCOL}")
        system, position = take("the system information", position)
        order = "<"
        if isinstance(system, dict) and "little_endian" in system:
            order = parse_order("little" if system["little_endian"] is True else
                                "big" if system["little_endian"] is False else "?", "little_endian", records)
        declared = _Storages(records, order)
        obj, position = take("the object", position, declared.load)
        keys, position = take("the list of storages", position)
        if not (type(keys) is list and all(isinstance(key, str) for key in keys)):
            raise PickleError("it is no list of keys")
        if len(set(keys)) != len(keys) or set(keys) != set(declared.known):
            raise PickleError(f"it names {len(keys)} storages, and the object asks for {len(declared.known)} others")
        for key in keys:
            part = f"storage {brief(key)}"
            storage = declared.known[key]
            raw = records.read(part, position, 8)
            count = int.from_bytes(raw, "little", signed=True)
            if order == ">" and count != storage.count:
                count = int.from_bytes(raw, "big", signed=True)
            else:
                storage.order = "<"
            if count != storage.count:
                raise PickleError(f"it has {count} elements, and the object asks for {storage.count}")
            end = position + 8 + count * storage.dtype.itemsize
            if end > records.size:
                raise PickleError(f"it ends after {records.size - position - 8} of {end - position - 8} bytes")
            records.fill(part, storage, position + 8)
            position = end
        if position != records.size:
            raise records.error(f"{records.size - position} bytes are left over after the last storage")
        return obj
    except PickleError as error:
        raise records.error(f"{part}: {error}") from None


def _no_id(pid):
    raise PickleError(f"a persistent id, {brief(pid)}, where none belongs")
