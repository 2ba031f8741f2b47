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
        self.map: mmap.mmap | None = None

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
        if self.listing:
            return Storage(None, dtype, count)
        if crc is not None:
            self.check(name, start, size, crc)
        if count == 0:
            return Storage(np.empty(0, dtype), dtype, 0)
        mapped = not self.writable and start % dtype.itemsize == 0 and (order == "<" or dtype.itemsize == 1)
        if mapped:
            if self.map is None:
                self.map = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
            raw = np.frombuffer(self.map, np.uint8, size, start)
        else:
            raw = np.empty(size, np.uint8)
            self._fill(name, start, memoryview(raw))
        if dtype.kind == "b" and raw.max() > 1:
            raise self.error(f"{name}, a storage of truth values, holds {raw.max()}")
        array = raw.view(dtype)
        if order == ">" and dtype.itemsize > 1:
            array.view(f"u{dtype.itemsize}").byteswap(inplace=True)
        array.flags.writeable = self.writable
        return Storage(array, dtype, count)

    def _fill(self, name: str, start: int, buffer: memoryview) -> None:
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
