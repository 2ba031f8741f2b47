"""Checkpoints: what is saved comes back, exchange with PyTorch both ways, files whole or not at all."""

import errno
import math
import os
import re
import signal
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from asenpp import checkpoint
from asenpp.checkpoint import CheckpointError, atomic, zip_container
from checkpoint_kit import same

DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def example():
    """Every kind of value, in the shape of a training checkpoint."""
    rng = np.random.default_rng(0)
    model = OrderedDict((f"layer.{name}", (rng.standard_normal((3, 4)) * 10).astype(name)) for name in DTYPES)
    model["conv.weight"] = rng.standard_normal((8, 3, 5, 5)).astype(np.float32)
    model["empty"] = np.empty((0, 3), np.float32)
    model["scalar"] = np.array(7, np.int64)
    model._metadata = OrderedDict({"": {"version": 1}, "bn": {"version": 2}})
    return {"epoch": 3, "model": model, "mAP": 0.25, "name": "스타일", "none": None, "flags": [True, False],
            "ints": [0, 255, 256, 65535, 65536, -1, 2**31 - 1, -2**31, 2**31, 2**63, -2**200], "nested": ([(), (1,)],
            (1, 2), (1, 2, 3), (1, 2, 3, 4)), "floats": [math.inf, -0.0, 5e-324], "bytes": b"\x00\xff\n", "": {},
            3: {4: "int keys"}, "many": list(range(2500))}


def to_numpy(value):
    """A torch object with its tensors as arrays."""
    import torch
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    if isinstance(value, dict):
        result = type(value)((key, to_numpy(item)) for key, item in value.items())
        if hasattr(value, "_metadata"):
            result._metadata = value._metadata
        return result
    if isinstance(value, (list, tuple)):
        return type(value)(map(to_numpy, value))
    return value


# --- what is saved comes back ---------------------------------------------------------------------


@pytest.mark.parametrize("writable", [False, True])
def test_what_is_saved_comes_back(tmp_path, writable):
    path = tmp_path / "checkpoint.pth.tar"
    checkpoint.save(example(), path)
    got = checkpoint.load(path, writable=writable, verify=True)
    assert same(got, example())
    weight = got["model"]["conv.weight"]
    assert weight.flags.writeable == writable
    if writable:
        weight[:] = 0
        assert same(checkpoint.load(path), example()), "the copy is not the file"


def test_the_same_object_gives_the_same_bytes(tmp_path):
    """No time or chance in a file: equal runs have equal checkpoints."""
    for name in "ab":
        checkpoint.save(example(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_layouts_byte_orders_and_array_likes(tmp_path):
    """Channels-last strides, slices, big-endian and read-only arrays, numpy(), __array__."""
    array = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)

    class Tensor:
        def __init__(self, grad):
            self.grad = grad

        def detach(self):
            return Tensor(False)

        def numpy(self):
            assert not self.grad, "numpy() of a tensor that needs its gradient"
            return array

    class Like:
        def __array__(self, dtype=None, copy=None):
            return array

    channels_last = np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    obj = {"channels_last": channels_last, "slice": array[:, ::2, 1:, ::-1], "big": array.astype(">f4"),
           "tensor": Tensor(True), "like": Like(), "expanded": np.broadcast_to(array[0, 0, 0], (3, 5))}
    checkpoint.save(obj, tmp_path / "x")
    got = checkpoint.load(tmp_path / "x")
    for name, want in {**obj, "tensor": array, "like": array, "big": array}.items():
        assert same(got[name], np.ascontiguousarray(want)), name


def test_identical_objects_stay_identical_and_memory_is_written_once(tmp_path):
    """The attribute table stands in a state dict under two names: one storage."""
    table = np.arange(100000, dtype=np.float32).reshape(100, 1000)
    checkpoint.save({"global": table, "local": table, "view": table.reshape(-1), "part": table[:50]}, tmp_path / "x")
    got = checkpoint.load(tmp_path / "x", writable=True)
    assert got["global"] is got["local"]
    assert np.shares_memory(got["global"], got["view"])
    assert not np.shares_memory(got["global"], got["part"])
    assert os.path.getsize(tmp_path / "x") < 1.6 * table.nbytes


def test_records_are_stored_and_aligned(tmp_path):
    """The container as PyTorch makes it: stored, 64-byte aligned, one root, little-endian."""
    checkpoint.save(example(), tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    with zipfile.ZipFile(tmp_path / "x") as archive:
        assert archive.testzip() is None
        infos = archive.infolist()
        assert {info.filename.split("/")[0] for info in infos} == {"archive"}
        assert archive.read("archive/byteorder") == b"little" and archive.read("archive/version") == b"3\n"
        for info in infos:
            name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
            assert info.compress_type == zipfile.ZIP_STORED
            assert (info.header_offset + 30 + name + extra) % 64 == 0, info.filename


def test_large_records_keep_their_alignment(tmp_path, monkeypatch):
    """Records above a gigabyte need a longer header; the path is taken here for small ones."""
    monkeypatch.setattr(zip_container, "_LARGE", 10)
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        zip_container._write_record(archive, "data/0", b"x" * 5)
        zip_container._write_record(archive, "data/1", b"y" * 100)
        zip_container._write_record(archive, "data/2", b"z" * 5)
    data = (tmp_path / "x").read_bytes()
    for content in (b"x" * 5, b"y" * 100, b"z" * 5):
        assert data.index(content) % 64 == 0
    with zipfile.ZipFile(tmp_path / "x") as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("value,place", [
    ({"a": [1, {"b": object()}]}, r"a\[1\]\.b: a builtins\.object"),
    ({1, 2}, "the object itself: a builtins.set"),
    ({"x": np.array(["text"])}, "x: arrays of dtype <U4"),
    ({"x": np.array([None])}, "x: arrays of dtype object"),
    ({"x": np.zeros(2, np.complex64)}, "x: arrays of dtype complex64"),
    ({"x": 1 << 5000}, "x: an integer of"),
    ({(1, (2,)): 0}, "a tuple as key"),
    ({"x": np.ndarray}, "x: a builtins.type"),
])
def test_what_cannot_be_saved_is_named_and_nothing_is_written(tmp_path, value, place):
    with pytest.raises(CheckpointError, match=place):
        checkpoint.save(value, tmp_path / "x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name,obj,message", [
    ("x", {"list": [1000] * 700_000}, "could not be read back: .* more than 40 MB of values"),
    ("x", {"text": "a" * (5 << 20)}, "could not be read back: .* a string of"),
    ("x", {(i, 0): i for i in range(2000)}, "could not be read back: .* tuples as keys"),
    ("x", [np.zeros(1) for _ in range(25_000)], "could not be read back: .* too many values"),
    ("x.safetensors", {str(i): np.zeros(1) for i in range(30_000)}, "30000 tensors: their header would have more than"),
])
def test_what_would_not_be_read_is_not_written(tmp_path, name, obj, message):
    """The bounds of reading hold for writing: a file that comes out and not in again is a loss."""
    with pytest.raises(CheckpointError, match=message):
        checkpoint.save(obj, tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_as_many_tensors_as_are_written_are_read(tmp_path):
    arrays = {f"a rather long name of a tensor {i}": np.full(1, i) for i in range(8000)}
    for name in ("x", "x.safetensors"):
        checkpoint.save(arrays, tmp_path / name)
        got = checkpoint.load(tmp_path / name)
        assert len(got) == 8000 and all(int(value[0]) == i for i, value in enumerate(got.values()))


def test_cycles_and_depth_are_refused(tmp_path):
    cycle = {"a": []}
    cycle["a"].append(cycle)
    with pytest.raises(CheckpointError, match=r"a\[0\]: it contains itself"):
        checkpoint.save(cycle, tmp_path / "x")
    deep = []
    for _ in range(1000):
        deep = [deep]
    with pytest.raises(CheckpointError, match="deeper than"):
        checkpoint.save(deep, tmp_path / "x")


# --- PyTorch --------------------------------------------------------------------------------------


def test_torch_reads_what_we_write(tmp_path):
    """weights_only=True, mapped and not: the same values, OrderedDict and _metadata included."""
    torch = pytest.importorskip("torch")
    obj = example()
    checkpoint.save(obj, tmp_path / "x")
    for options in ({}, {"mmap": True}):
        got = to_numpy(torch.load(tmp_path / "x", weights_only=True, **options))
        assert same(got, obj)


def test_we_read_what_torch_writes(tmp_path):
    """torch.save of every kind of value; optimizers, parameters, views, sizes and dtypes."""
    torch = pytest.importorskip("torch")

    def tensors(value):
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value)
        if isinstance(value, dict):
            result = type(value)((key, tensors(item)) for key, item in value.items())
            if hasattr(value, "_metadata"):
                result._metadata = value._metadata
            return result
        return value

    torch.save(tensors(example()), tmp_path / "x")
    assert same(checkpoint.load(tmp_path / "x", verify=True), example())

    base = torch.arange(24, dtype=torch.float32)
    views = {"t": base.view(4, 6).t(), "offset": base[5:9], "step": base[::3], "expanded": base[:4].expand(3, 4),
             "channels_last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
             "parameter": torch.nn.Parameter(torch.ones(3)), "one": base[7:8].view(1, 1)}
    extra = {"size": torch.Size([1, 2]), "dtype": torch.float16, "device": torch.device("cuda", 1),
             "scalar": np.float64(0.5), "scalar32": np.float32(0.25), "integer": np.int64(-3), "flag": np.bool_(True)}
    torch.save({**views, **extra}, tmp_path / "y")
    got = checkpoint.load(tmp_path / "y", writable=True)
    for name, want in views.items():
        assert same(np.ascontiguousarray(got[name]), np.ascontiguousarray(want.detach().numpy())), name
    assert got["channels_last"].strides == views["channels_last"].numpy().strides
    got["offset"][0] = -1
    assert got["t"][5, 0] == -1, "views share their storage"
    assert got["size"] == (1, 2) and got["dtype"] == np.dtype("float16") and got["device"] == "cuda:1"
    assert [got[name] for name in ("scalar", "scalar32", "integer", "flag")] == [0.5, 0.25, -3, True]


def test_a_training_state_goes_to_torch_and_back(tmp_path):
    """Model and Adam state dicts of a torch module, through our reader and writer, load again."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    adam.step()
    torch.save({"model": model.state_dict(), "optimizer": adam.state_dict()}, tmp_path / "a")
    ours = checkpoint.load(tmp_path / "a")
    checkpoint.save(ours, tmp_path / "b")
    back = torch.load(tmp_path / "b", weights_only=True)
    model.load_state_dict(back["model"])
    adam.load_state_dict(back["optimizer"])
    assert same(to_numpy(back), ours)


# --- whole or not at all --------------------------------------------------------------------------


def only(folder, name):
    return os.listdir(folder) == [name]


def test_missing_things_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "absent"))):
        checkpoint.load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="the folder .*nowhere does not exist"):
        checkpoint.save({}, tmp_path / "nowhere" / "x")
    with pytest.raises(IsADirectoryError, match="a folder is there"):
        checkpoint.save({}, tmp_path)
    with pytest.raises(ValueError, match="not a regular file"):
        checkpoint.save({}, os.devnull)
    assert not os.path.isfile(os.devnull)


def test_full_disk_by_the_system(tmp_path):
    """A real failure of the kernel's, in a process whose files may not grow past 100 kB: the old
    file is intact, the temporary is gone, the message names path, bytes needed and free."""
    path = tmp_path / "x"
    checkpoint.save({"old": 1}, path)
    before = path.read_bytes()
    program = f"""
import resource, signal, numpy as np
from asenpp import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save({{"new": np.zeros(100_000, np.float32), "more": np.zeros(100)}}, {str(path)!r})
except OSError as error:
    print(error.errno, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert re.match(rf"{errno.EFBIG} .*cannot write {re.escape(str(path))}: .*; 40\d{{4}} bytes are needed, "
                    rf"\d+ are free in {re.escape(str(tmp_path))}; the file there is unchanged", done.stdout)
    assert path.read_bytes() == before and only(tmp_path, "x")


def test_full_disk_on_a_tiny_file_system(tmp_path):
    """ENOSPC itself, where this process may mount a file system of 64 kB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
                      capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        path = folder / "x"
        checkpoint.save({"old": 1}, path)
        with pytest.raises(OSError, match="8.... bytes are needed, .* are free") as caught:
            checkpoint.save({"new": np.zeros(10_000)}, path)
        assert caught.value.errno == errno.ENOSPC
        assert checkpoint.load(path) == {"old": 1} and only(folder, "x")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
@pytest.mark.parametrize("what", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failure_anywhere_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch, where, what):
    path = tmp_path / "x"
    checkpoint.save({"old": 1}, path)

    def fail(*args, **options):
        raise what

    if where == "write":
        monkeypatch.setattr(zipfile._ZipWriteFile, "write", fail)
    else:
        monkeypatch.setattr(atomic.os, where, fail)
    with pytest.raises(type(what)) as caught:
        checkpoint.save({"new": np.zeros(1000)}, path)
    monkeypatch.undo()
    if isinstance(what, OSError):
        assert caught.value.errno == errno.ENOSPC and str(path) in str(caught.value)
    assert checkpoint.load(path) == {"old": 1} and only(tmp_path, "x")


def test_killed_while_writing(tmp_path):
    """SIGKILL in the middle: the old file is there; the next save removes what was left, but not
    what a living writer is writing."""
    path = tmp_path / "x"
    checkpoint.save({"old": 1}, path)
    program = f"""
import os, signal
from asenpp.checkpoint.atomic import atomic_file
with atomic_file({str(path)!r}) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2 and checkpoint.load(path) == {"old": 1}
    with atomic.atomic_file(path) as alive:
        assert len(os.listdir(tmp_path)) == 2, "the dead one's file is gone, this one's is there"
        checkpoint.save({"second": 2}, path)
        alive.write(b"first in, last out")
    assert path.read_bytes() == b"first in, last out" and only(tmp_path, "x")


def test_permissions_and_links_stay(tmp_path):
    """A file keeps its mode, a link keeps pointing; a new file gets the mode that open() gives."""
    real = tmp_path / "real"
    checkpoint.save(1, real)
    open(tmp_path / "plain", "w").close()
    assert real.stat().st_mode == (tmp_path / "plain").stat().st_mode
    real.chmod(0o640)
    (tmp_path / "link").symlink_to(real)
    checkpoint.save(2, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and checkpoint.load(real) == 2
    assert real.stat().st_mode & 0o777 == 0o640


def test_copy_file(tmp_path):
    checkpoint.save({"a": 1}, tmp_path / "checkpoint")
    checkpoint.copy_file(tmp_path / "checkpoint", tmp_path / "best")
    assert (tmp_path / "best").read_bytes() == (tmp_path / "checkpoint").read_bytes()
    with pytest.raises(FileNotFoundError):
        checkpoint.copy_file(tmp_path / "absent", tmp_path / "best")
    assert checkpoint.load(tmp_path / "best") == {"a": 1}


def test_torch_is_not_imported():
    """Reading and writing load no torch, and name neither pickle nor any importer."""
    program = """
import sys, numpy as np, tempfile, os
from asenpp import checkpoint
path = os.path.join(tempfile.mkdtemp(), "x")
checkpoint.save({"a": np.ones(3)}, path)
assert checkpoint.load(path)["a"].sum() == 3
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout.strip() == "False"
    folder = os.path.dirname(checkpoint.__file__)
    for name in os.listdir(folder):
        if name.endswith(".py"):
            text = open(os.path.join(folder, name), encoding="utf-8").read()
            assert not re.search(r"^\s*(import|from) +(pickle|torch|marshal|importlib)\b", text, re.M), name
