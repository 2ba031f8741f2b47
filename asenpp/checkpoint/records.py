"""Elements that lie somewhere in a file: mapped, or read straight into their place.

All containers come here with a place that they have held against the file. Nothing is allocated
before the place is known to lie in the file, and no storage is in memory twice.
"""

from __future__ import annotations

import mmap
import os
import zlib
from typing import BinaryIO

import numpy as np

from .errors import CheckpointError
from .tensors import Storage

_CHUNK = 16 << 20


class Records:
    """An open file, `path` in messages. writable: elements are read into memory of their own.
    listing: nothing is read; storages know their dtype and length alone."""

    def __init__(self, file: BinaryIO, path: str, *, writable: bool = False, listing: bool = False):
        self.file, self.path, self.writable, self.listing = file, path, writable, listing
        self.size = os.fstat(file.fileno()).st_size
        self._map: mmap.mmap | None = None

    @property
    def map(self) -> mmap.mmap:
        """The whole file, read-only."""
        if self._map is None:
            self._map = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {message}")

    def read(self, name: str, start: int, count: int) -> bytes:
        """`count` bytes, a small number, at `start`; `name` is what they are called in messages."""
        if not 0 <= start <= self.size - count:
            raise self.error(f"{name}: {count} bytes at {start} reach beyond the file of {self.size}")
        self.file.seek(start)
        data = self.file.read(count)
        if len(data) != count:
            raise self.error(f"{name} ends after {len(data)} of {count} bytes")
        return data

    def check(self, name: str, start: int, count: int, crc: int) -> None:
        """Holds bytes against their CRC-32."""
        value = done = 0
        while done < count:
            chunk = self.read(name, start + done, min(count - done, 1 << 20))
            value, done = zlib.crc32(chunk, value), done + len(chunk)
        if value != crc:
            raise self.error(f"{name} is damaged (its CRC is {value:08x}, not {crc:08x})")

    def storage(self, name: str, start: int, dtype: np.dtype, count: int, *, order: str = "<",
                crc: int | None = None) -> Storage:
        """`count` elements at byte `start`, in native byte order. order: "<" or ">", the file's."""
        size = count * dtype.itemsize
        if count < 0 or not 0 <= start <= self.size - size:
            raise self.error(f"{name} of {count} elements of {dtype.itemsize} bytes at {start} reaches beyond the "
                             f"file of {self.size}")
        if crc is not None and not self.listing:
            self.check(name, start, size, crc)
        if self.listing or self.writable or count == 0 or start % dtype.itemsize or order == ">" and dtype.itemsize > 1:
            storage = self.reserve(dtype, count, order)
            self.fill(name, storage, start)
            return storage
        array = np.frombuffer(self.map, np.uint8, size, start).view(dtype)
        self._check_truth(name, array)
        return Storage(array, dtype, count, order)

    def reserve(self, dtype: np.dtype, count: int, order: str = "<") -> Storage:
        """A storage in memory of its own, for `fill`; the caller knows that the file is long enough.
        Where it is not to be written to, its array is a read-only view of the one that is filled."""
        if self.listing:
            return Storage(None, dtype, count, order)
        array = np.empty(count, dtype).view()
        array.flags.writeable = self.writable
        return Storage(array, dtype, count, order)

    def fill(self, name: str, storage: Storage, start: int) -> None:
        """Reads a reserved storage's elements from byte `start`."""
        if storage.array is None:
            return
        array = storage.array.base
        if array.size:
            self._read_into(name, start, memoryview(array.view(np.uint8)))
        self._check_truth(name, array)
        if storage.order == ">" and array.itemsize > 1:
            array.view(f"u{array.itemsize}").byteswap(inplace=True)

    def _check_truth(self, name: str, array: np.ndarray) -> None:
        if array.dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
            raise self.error(f"{name}, a storage of truth values, holds {array.view(np.uint8).max()}")

    def _read_into(self, name: str, start: int, buffer: memoryview) -> None:
        self.file.seek(start)
        done = 0
        while done < len(buffer):
            count = self.file.readinto(buffer[done:done + _CHUNK])
            if not count:
                raise self.error(f"{name} ends after {done} of {len(buffer)} bytes")
            done += count


def parse_order(value, what: str, records: Records) -> str:
    """"<" for little-endian, ">" for big, from a file's own word for it."""
    if value not in ("little", "big"):
        raise records.error(f"{what} is {value!r:.40}, neither little nor big")
    return "<" if value == "little" else ">"
