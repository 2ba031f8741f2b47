"""Storages are mapped, or read straight into their place: no file is in memory twice, and a listing reads none.

Each case runs in a process of its own whose address space the system limits (RLIMIT_AS). The files are sparse:
they take no room on the disk."""

import os
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import checkpoint_kit as kit

SIZE = 256 << 20
SLACK = 24 << 20
KEY = "w"


def tensor_pickle(count: int, fields: int) -> bytes:
    class Shape:  # a storage of so many elements, which are written elsewhere
        array, kind, location = range(count), "Float", "cuda:0"

    keys = kit._Keys(fields)
    return kit.dump({KEY: kit.Tensor(Shape(), 0, (count // 2, 2), (2, 1))}, keys.persistent)


def sparse_zip(path, size: int, order: str = "little") -> None:
    """A ZIP archive with one storage of `size` bytes; places and sizes beyond 4 GB stand in ZIP64 fields."""
    records = [("data.pkl", tensor_pickle(size // 4, 5)), ("byteorder", order.encode()), ("data/0", size), ("version", b"3\n")]
    directory = b""
    with open(path, "wb") as file:
        for name, content in records:
            name, start = f"archive/{name}".encode(), file.tell()
            padding = -(start + 30 + len(name) + 4) % 64
            file.write(struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 45, 8, 0, 0, 0, 0, 0, 0, len(name), padding + 4) + name)
            file.write(b"FB" + struct.pack("<H", padding) + bytes(padding))  # PyTorch's local headers know no sizes
            length = content if isinstance(content, int) else len(content)
            if isinstance(content, int):
                file.seek(length, os.SEEK_CUR)
            else:
                file.write(content)
            wide, extra = [length, length, start], b""
            if max(wide) >= 0xFFFFFFFF:
                extra = struct.pack("<HH3Q", 1, 24, *wide)
                wide = [0xFFFFFFFF] * 3
            directory += struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 45, 45, 8, 0, 0, 0, 0, wide[0], wide[1], len(name),
                                     len(extra), 0, 0, 0, 0, wide[2]) + name + extra
        start = file.tell()
        file.write(directory)
        file.write(struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 4, 4, len(directory), start))
        file.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, start + len(directory), 1))
        file.write(struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 4, 4, len(directory), min(start, 0xFFFFFFFF), 0))


def sparse_stream(path, size: int) -> None:
    pickle = tensor_pickle(size // 4, 6)
    head = kit.stream_file(None, pickle=pickle)[:-len(kit.dump([]))] + kit.dump(["0"])
    with open(path, "wb") as file:
        file.write(head + struct.pack("<q", size // 4))
        file.truncate(file.tell() + size)


def sparse_tar(path, size: int) -> None:
    count = size // 4
    members = {"sys_info": kit.dump({"little_endian": True}), "pickle": kit.dump({KEY: kit.Raw(b"K\7Q")}),
               "tensors": kit.dump(1) + kit.dump((7, 0, kit.Global("torch", "FloatTensor"))) + struct.pack(
                   "<iiqqqqq", 2, 0, count // 2, 2, 2, 1, 0)}
    head = kit.dump(1) + kit.dump((0, "cuda:0", kit.Global("torch", "FloatStorage"))) + struct.pack("<q", count)
    info = tarfile.TarInfo("storages")
    info.size = len(head) + size + len(kit.dump([]))
    with open(path, "wb") as file:
        file.write(kit.tar_of(members)[:sum(512 + -(-len(data) // 512) * 512 for data in members.values())])
        file.write(info.tobuf(tarfile.USTAR_FORMAT) + head)
        file.seek(size, os.SEEK_CUR)
        file.write(kit.dump([]))
        file.truncate(-(-file.tell() // 512) * 512 + 1024)


def sparse_safetensors(path, size: int) -> None:
    head = kit.safetensors_file({KEY: {"dtype": "F32", "shape": [size // 8, 2], "data_offsets": [0, size]}})
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + size)


WRITERS = {"zip": sparse_zip, "zip, big-endian": lambda path, size: sparse_zip(path, size, "big"), "stream": sparse_stream,
           "tar": sparse_tar, "safetensors": sparse_safetensors}

PROGRAM = """
import resource, sys
sys.path[:0] = {path!r}
import numpy as np
import asenpp
from asenpp import checkpoint, convert
checkpoint.save({{"warm": np.ones(3)}}, {folder!r} + "/warm"); checkpoint.load({folder!r} + "/warm")
def limit(more):
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, resource.RLIM_INFINITY))
def peak():  # bytes; not ru_maxrss, which begins with that of the process which started this one
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
file = {folder!r} + "/file"
{body}
"""


def limited(tmp_path, body: str) -> str:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(path=sys.path, folder=str(tmp_path), body=body)],
                          capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# What lies where it can be mapped takes the address space of the map alone; what is read takes its memory
# and, for the pickle, the map.
MAPPED = [("zip", ""), ("safetensors", "")]
READ = [("zip", "writable=True"), ("safetensors", "writable=True"), ("zip, big-endian", ""), ("stream", ""), ("tar", "")]


@pytest.mark.parametrize("kind,options", MAPPED + READ)
def test_no_file_is_in_memory_twice(tmp_path, kind, options):
    """256 MB load within that and 24 MB; where they are read into memory, not with less."""
    WRITERS[kind](tmp_path / "file", SIZE)
    budget = SIZE if (kind, options) in MAPPED or kind == "safetensors" else 2 * SIZE  # the map and the memory
    body = f"""
limit({budget + SLACK})
got = checkpoint.load(file, {options})
value = got[{KEY!r}]
assert value.nbytes == {SIZE} and value.dtype.isnative and not value[::4096].any()
print("loaded")
"""
    assert "loaded" in limited(tmp_path, body)
    if (kind, options) not in MAPPED:
        less = f"""
limit({budget - SLACK})
try:
    checkpoint.load(file, {options})
except (MemoryError, OSError):
    print("too little")
"""
        assert limited(tmp_path, less) == "too little", "the limit is not what holds memory down: the test proves nothing"


@pytest.mark.parametrize("kind,options", READ)
def test_memory_that_is_touched_is_the_files_size(tmp_path, kind, options):
    """Peak resident memory: one file's size more than before, though the file is mapped as well."""
    WRITERS[kind](tmp_path / "file", SIZE)
    body = f"""
before = peak()
got = checkpoint.load(file, {options})
print(peak() - before)
"""
    grown = int(limited(tmp_path, body))
    assert SIZE - SLACK < grown < SIZE + SLACK


def test_saving_and_converting_copy_nothing(tmp_path):
    """An array of 256 MB is written, and a file of that size converted, in 24 MB beside it."""
    sparse_safetensors(tmp_path / "file", SIZE)
    body = f"""
limit({SIZE + SLACK})
assert convert.convert(file, file + ".pth") == []
checkpoint.load(file, writable=False)
"""
    limited(tmp_path, body)
    body = f"""
array = np.zeros(({SIZE // 4},), np.float32)
limit({SLACK})
checkpoint.save({{{KEY!r}: array}}, file + ".pth")
checkpoint.save({{{KEY!r}: array}}, file + ".safetensors")
print("saved")
"""
    assert limited(tmp_path, body) == "saved"


def test_files_beyond_4_gb(tmp_path):
    """ZIP64: a storage of 5 GB, mapped; its last elements are found, and those of a GPU."""
    size = 5 << 30
    sparse_zip(tmp_path / "file", size)
    with open(tmp_path / "file", "r+b") as file:
        file.seek(-1000, os.SEEK_END)
        end = file.read()
        at = (tmp_path / "file").stat().st_size - 1000 + end.index(b"PK\x03\x04")  # of the version, after the storage
        padded = at - 8
        file.seek(padded)
        file.write(struct.pack("<2f", 1.5, 2.5))
    from asenpp import checkpoint

    got = checkpoint.load(tmp_path / "file")[KEY]
    assert got.shape == (size // 8, 2) and got[-1].tolist() == [1.5, 2.5] and got[0].tolist() == [0, 0]


def test_pytorch_reads_the_same_zip64_file(tmp_path):
    """Holds the handmade archive against PyTorch: a file that only we read would prove little."""
    torch = pytest.importorskip("torch")
    sparse_zip(tmp_path / "file", 5 << 30)
    got = torch.load(tmp_path / "file", weights_only=True, mmap=True, map_location="cpu")[KEY]
    assert tuple(got.shape) == ((5 << 30) // 8, 2)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_listing_reads_no_elements(tmp_path, kind):
    """`--info` of a file whose elements (64 GB; of tar, whose headers hold no more, 4) fit no memory."""
    size = (4 if kind == "tar" else 64) << 30
    WRITERS[kind](tmp_path / "file", size)
    body = """
before = peak()
convert.main(["--info", file])
print(peak() - before)
"""
    lines = limited(tmp_path, body).splitlines()
    assert f"{KEY}  float32  {size // 8}×2  {size}" in lines
    assert int(lines[-1]) < SLACK
