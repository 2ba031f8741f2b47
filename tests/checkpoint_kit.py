"""Checkpoint files made by hand, byte by byte and without PyTorch: what it wrote on other machines (byte
orders, GPUs, its oldest containers), and what nobody should write."""

from __future__ import annotations

import io
import json
import math
import struct
import tarfile
import zipfile
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

KINDS = {"f8": "Double", "f4": "Float", "f2": "Half", "i8": "Long", "i4": "Int", "i2": "Short", "i1": "Char", "u1": "Byte",
         "b1": "Bool"}


class Global(NamedTuple):
    """A name, as GLOBAL pushes it."""

    module: str
    name: str


class Call(NamedTuple):
    """A call by REDUCE."""

    function: Any
    args: tuple


class Raw(bytes):
    """Opcodes as they are."""


class Storage:
    """Elements; kind: the class's name without "Storage"."""

    def __init__(self, array, kind: str | None = None, location: str = "cpu"):
        self.array = np.asarray(array).reshape(-1)
        self.kind = kind or KINDS[self.array.dtype.str[1:]]
        self.location = location

    def data(self, order: str) -> bytes:
        return self.array.astype(self.array.dtype.newbyteorder("<" if order == "little" else ">")).tobytes()


class Tensor(NamedTuple):
    """A view of a storage, in elements."""

    storage: Storage
    offset: int
    size: tuple
    stride: tuple


def tensor(array, location: str = "cpu") -> Tensor:
    """A contiguous tensor over a storage of its own."""
    array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
    return Tensor(Storage(array, location=location), 0, array.shape, tuple(s // array.itemsize for s in array.strides))


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def opcodes(value, persistent) -> bytes:
    """The opcodes that leave `value` on the stack. persistent(tensor or storage): its opcodes."""
    def all_of(values) -> bytes:
        return b"".join(opcodes(v, persistent) for v in values)

    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, Global):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return all_of(value) + b"R"
    if isinstance(value, (Tensor, Storage)):
        return persistent(value)
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"\x8a\x08" + struct.pack("<q", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, tuple):
        return b"(" + all_of(value) + b"t"
    if isinstance(value, list):
        return b"](" + all_of(value) + b"e"
    assert isinstance(value, dict), value
    start = b"ccollections\nOrderedDict\n)R(" if isinstance(value, OrderedDict) else b"}("
    items = start + b"".join(opcodes(k, persistent) + opcodes(v, persistent) for k, v in value.items()) + b"u"
    if hasattr(value, "_metadata"):
        items += b"}" + text("_metadata") + opcodes(value._metadata, persistent) + b"sb"
    return items


def dump(value, persistent=None) -> bytes:
    """A whole pickle of protocol 2."""
    return b"\x80\x02" + opcodes(value, persistent) + b"."


def rebuilt(value: Tensor, storage: bytes) -> bytes:
    """The call of torch._utils._rebuild_tensor_v2 on a storage's opcodes."""
    return opcodes(Call(Global("torch._utils", "_rebuild_tensor_v2"),
                        (Raw(storage), value.offset, value.size, value.stride, False, OrderedDict())), None)


class _Keys:
    """Storages in the order in which they are met, and their persistent ids of 5 or 6 fields."""

    def __init__(self, fields: int):
        self.fields, self.storages = fields, []

    def persistent(self, value) -> bytes:
        if isinstance(value, Tensor):
            return rebuilt(value, self.persistent(value.storage))
        if not any(value is known for known in self.storages):
            self.storages.append(value)
        key = str(next(i for i, known in enumerate(self.storages) if known is value))
        fields = ("storage", Global("torch", value.kind + "Storage"), key, value.location, len(value.array), None)
        return opcodes(fields[:self.fields], None) + b"Q"


def zip_file(obj, order: str | None = "little", zip64: bool = False, root: str = "archive", pickle: bytes | None = None,
             records=()) -> bytes:
    """order None: without a record `byteorder`. zip64: with the longer headers and end of ZIP64."""
    keys, out = _Keys(5), io.BytesIO()
    data = dump(obj, keys.persistent) if pickle is None else pickle
    with zipfile.ZipFile(out, "w") as archive:
        def write(name, content):
            with archive.open(zipfile.ZipInfo(f"{root}/{name}"), "w", force_zip64=zip64) as record:
                record.write(content)

        write("data.pkl", data)
        if order is not None:
            write("byteorder", order.encode())
        for i, storage in enumerate(keys.storages):
            write(f"data/{i}", storage.data(order or "little"))
        for name, content in records:
            write(name, content)
        write("version", b"3\n")
    return zip64_end(out.getvalue()) if zip64 else out.getvalue()


def zip64_end(data: bytes) -> bytes:
    """The same archive with the ends that one beyond 4 GB has, as PyTorch writes them for every file."""
    count, size, start = struct.unpack("<10xHII2x", data[-22:])
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:-22] + record + locator + end


def stream_file(obj, order: str = "little", native: bool = True, pickle: bytes | None = None) -> bytes:
    """native False: a big-endian machine whose storages are little-endian all the same."""
    keys = _Keys(6)
    data = dump(obj, keys.persistent) if pickle is None else pickle
    head = (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19." + dump(1001)
            + dump({"protocol_version": 1001, "little_endian": order == "little", "type_sizes": {"short": 2}}))
    written = order if native else "little"
    storages = b"".join(len(s.array).to_bytes(8, written) + s.data(written) for s in keys.storages)
    return head + data + dump([str(i) for i in range(len(keys.storages))]) + storages


def tar_members(obj, order: str = "little", native: bool = True, pickle: bytes | None = None,
                views: dict | None = None) -> dict[str, bytes]:
    """views: key -> (root storage, offset, elements), as lists of views name them."""
    storages: list[Storage] = []
    tensors: list[Tensor] = []

    def number(value, known) -> int:
        if not any(value is other for other in known):
            known.append(value)
        return next(i for i, other in enumerate(known) if other is value)

    def persistent(value) -> bytes:
        if isinstance(value, Storage):
            return opcodes(number(value, storages), None) + b"Q"
        number(value.storage, storages)
        return opcodes(1000 + number(value, tensors), None) + b"Q"

    data = dump(obj, persistent) if pickle is None else pickle
    code, written = "<" if order == "little" else ">", order if native else "little"
    stored, described = bytearray(dump(len(storages))), dump(len(tensors))  # bytes would be copied for each storage
    for i, s in enumerate(storages):
        stored += dump((i, s.location, Global("torch", s.kind + "Storage")))
        stored += len(s.array).to_bytes(8, written) + s.data(written)
    stored += dump([(key, number(root, storages), offset, count) for key, (root, offset, count) in (views or {}).items()])
    if not native:
        code = "<"
    for i, t in enumerate(tensors):
        described += dump((1000 + i, number(t.storage, storages), Global("torch", t.storage.kind + "Tensor")))
        described += struct.pack(f"{code}ii{2 * len(t.size) + 1}q", len(t.size), 0, *t.size, *t.stride, t.offset)
    return {"sys_info": dump({"protocol_version": 1000, "little_endian": order == "little", "type_sizes": {}}),
            "pickle": data, "tensors": described, "storages": bytes(stored)}


def tar_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def tar_file(obj, **options) -> bytes:
    return tar_of(tar_members(obj, **options))


def safetensors_file(header, data: bytes = b"") -> bytes:
    """header: a dictionary, or its bytes."""
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def same(a, b) -> bool:
    """Equality of nested values with arrays, types and array dtypes included."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        a, b = np.asarray(a), np.asarray(b)
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return (list(a) == list(b) and all(same(a[key], b[key]) for key in a)
                and same(getattr(a, "_metadata", None), getattr(b, "_metadata", None)))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b and math.copysign(1, a) == math.copysign(1, b) if isinstance(a, float) else a == b
