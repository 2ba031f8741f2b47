"""Files that are broken, lie, or want to run something: one clear error, and nothing else happens."""

import io
import pathlib
import pickle
import re
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import checkpoint_kit as kit
from asenpp import checkpoint
from asenpp.checkpoint import CheckpointError


def archive(path, data_pkl: bytes, records=(), root="archive", **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr(f"{root}/data.pkl", data_pkl)
        for name, data in records:
            file.writestr(f"{root}/{name}", data)
    return path


def tensor_pickle(offset=0, size=(2,), stride=(1,), count=4, kind="FloatStorage", key="0") -> bytes:
    """The pickle of one tensor, by hand: protocol 0 numbers in a protocol 2 frame."""
    def ints(values):
        return b"(" + b"".join(b"I%d\n" % v for v in values) + b"t"

    return (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n" + kind.encode()
            + b"\nX" + struct.pack("<I", len(key)) + key.encode() + b"X\x03\0\0\0cpuI%d\ntQ" % count
            + b"I%d\n" % offset + ints(size) + ints(stride) + b"\x89ccollections\nOrderedDict\n)RtR.")


STORAGE = [("data/0", np.arange(4, dtype="<f4").tobytes())]


def test_the_handmade_tensor_is_right_when_honest(tmp_path):
    """Guards the tests below: without a lie the same bytes are read."""
    got = checkpoint.load(archive(tmp_path / "x", tensor_pickle(1, (2,), (2,)), STORAGE))
    np.testing.assert_array_equal(got, np.float32([1, 3]))


@pytest.mark.parametrize("lie", [
    {"size": (5,)}, {"offset": 3}, {"stride": (4,)}, {"offset": -1}, {"size": (-1,)}, {"stride": (-1,)},
    {"size": (2, 2)}, {"count": 5}, {"count": 1 << 62}, {"count": -4}, {"offset": 1 << 70}, {"stride": (1 << 70,)},
    {"size": (1 << 62,), "stride": (0,)}, {"size": (1 << 40, 1 << 40, 0), "stride": (0, 0, 1)},
    {"size": (1,) * 40, "stride": (1,) * 40}, {"kind": "DoubleStorage"}, {"key": "1"}, {"key": "../0"},
    {"kind": "ByteStorage"}, {"kind": "NoStorage"}, {"kind": "float32"}])
def test_lies_about_tensors_are_refused(tmp_path, lie):
    """Sizes, strides, offsets, counts, keys that the storage does not bear out."""
    path = archive(tmp_path / "x", tensor_pickle(**lie), STORAGE)
    for writable in (False, True):
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            checkpoint.load(path, writable=writable)


def test_truth_values_are_zero_or_one(tmp_path):
    path = archive(tmp_path / "x", tensor_pickle(kind="BoolStorage", count=4), [("data/0", b"\0\1\1\2")])
    with pytest.raises(CheckpointError, match="truth values"):
        checkpoint.load(path)


# Ways of a pickle to call something, as opcodes, and what a refusal names. SYSTEM calls os.system(COMMAND).
COMMAND = b"<command>"
SYSTEM = b"cos\nsystem\n" + COMMAND + b"\x85R"
WAYS = {
    "reduce": (SYSTEM, "os.system"),
    "eval": (b"cbuiltins\neval\n" + kit.text("__import__('os').system") + b"\x85R" + COMMAND + b"\x85R", "builtins.eval"),
    "getattr": (b"cbuiltins\ngetattr\ncos\n__dict__\n" + kit.text("__getitem__") + b"\x86R" + kit.text("system") + b"\x85R"
                + COMMAND + b"\x85R", "builtins.getattr"),
    "stack_global": (kit.text("posix") + kit.text("system") + b"\x93" + COMMAND + b"\x85R", "posix.system"),
    "inst": (b"(" + COMMAND + b"ios\nsystem\n", "INST"),
    "obj": (b"(cos\nsystem\n" + COMMAND + b"o", "os.system"),
    "obj alone": (b"(" + COMMAND + b"o", "OBJ"),
    "build": (b"ccollections\nOrderedDict\n)R}" + kit.text("__setstate__") + b"cos\nsystem\nsb" + COMMAND + b"b", "os.system"),
    "build of a name that is read": (b"ccollections\nOrderedDict\n)R}" + kit.text("__setstate__") + b"c_codecs\nencode\nsb"
                                     + COMMAND + b"b", "odd attributes"),
    "newobj": (b"\x80\x04csubprocess\nPopen\n" + COMMAND + b"\x85\x81", "subprocess.Popen"),
    "newobj_ex": (b"\x80\x04csubprocess\nPopen\n" + COMMAND + b"\x85}\x92", "subprocess.Popen"),
    "newobj_ex of a name that is read": (b"\x80\x04ccollections\nOrderedDict\n)}\x92", "NEWOBJ_EX"),
    "extension": (b"\x82\x01", "EXT1"),
    "import": (b"casenpp_no_such_module\nname\n", "asenpp_no_such_module"),
    "in a list of a key": (b"](" + SYSTEM + b"e0N", "os.system"),
    "in a persistent id": (b"(" + kit.text("storage") + SYSTEM + kit.text("0") + kit.text("cpu") + b"K\x04tQ", "os.system"),
    "in a persistent id's location": (b"(" + kit.text("storage") + b"ctorch\nFloatStorage\n" + kit.text("0") + SYSTEM
                                      + b"K\x04tQ", "os.system"),
    "in a tensor's hooks": (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\0))\x89" + SYSTEM + b"tR", "os.system"),
    "in metadata": (b"ccollections\nOrderedDict\n)R}" + kit.text("_metadata") + SYSTEM + b"sb", "os.system"),
}
ALONE = {"obj alone", "build of a name that is read", "newobj", "newobj_ex", "newobj_ex of a name that is read", "extension",
         "import"}  # these run nothing in Python either, as they stand


def stream_with(pickle: bytes, place: int) -> bytes:
    """The stream container with its pickle number `place` replaced: system information, object, keys."""
    parts = [kit.dump({"little_endian": True}), kit.dump({}), kit.dump([])]
    parts[place] = pickle
    return b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19." + kit.dump(1001) + b"".join(parts)


PLACES = {
    "zip": lambda data: kit.zip_file(None, pickle=data, records=[("data/0", bytes(16))]),
    "stream": lambda data: stream_with(data, 1),
    "stream's system information": lambda data: stream_with(data, 0),
    "stream's keys": lambda data: stream_with(data, 2),
    **{f"tar's {member}": lambda data, member=member: kit.tar_of({**kit.tar_members({}), member: data})
       for member in ("sys_info", "storages", "tensors", "pickle")},
}


class Proof(pickle.Unpickler):
    """Python's own; names of PyTorch's, which need not be installed, stand for something that takes any arguments."""

    def find_class(self, module, name):
        return (lambda *_: None) if module.split(".")[0] == "torch" else super().find_class(module, name)

    def persistent_load(self, pid):
        return pid


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", WAYS)
def test_malicious_pickles_are_refused_and_nothing_runs(tmp_path, way, place):
    """Every way to call something, wherever a container has a pickle: refused with its name, and the file
    that it would make is absent. Each is proved to work first, with Python's own pickle."""
    trace = tmp_path / "trace"
    opcodes, named = WAYS[way]
    data = b"\x80\x02" + opcodes.replace(COMMAND, kit.text(f"touch {trace}")) + b"."
    if way not in ALONE:
        try:
            Proof(io.BytesIO(data)).load()
        except Exception:  # what it returns fits nowhere; it has run
            pass
        assert trace.exists(), "this pickle does nothing: the test proves nothing"
        trace.unlink()
    path = tmp_path / "x"
    path.write_bytes(PLACES[place](data))
    for read in (checkpoint.load, checkpoint.inspect):
        with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}: .*{re.escape(named)}"):
            read(path)
    assert not trace.exists()


def test_bombs_stay_within_the_bounds():
    """Small files that ask for much: no second of processor time, and no 64 MB beyond the file's size."""
    done = subprocess.run([sys.executable, str(pathlib.Path(__file__).with_name("fuzz") / "bombs.py")], capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0 and "bombs" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("data", [
    b"", b".", b"\x80\x02", b"\x80\x02N", b"\x80\x02NN.", b"(.", b"0.", b"a.", b"h\x05.", b"]K\x01K\x02s.", b"}K\x01K\x02e.",
    b"\x80\x02]K\x01R.", b"]h\x00.", b"t.", b"(0t.", b"\x85.", b"}(K\x01u.", b"}]K\x01s.", b"Nb.", b"]Q.", b"Pabc\n.",
    b"ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsK\x01sb.", b"ccollections\nOrderedDict\nK\x01\x85R.",
    b"ctorch._utils\n_rebuild_tensor_v2\n)R.", b"ctorch\nFloatStorage\n)R.", b"ctorch\nSize\nN\x85R.",
    b"c_codecs\nencode\nX\x01\0\0\0aX\x03\0\0\0hex\x86R.", b"\x80\x02\x8a\xff.", b"X\xff\xff\xff\xffa.",
    b"X\x01\0\0\0\xff.", b"cnumpy\ndtype\nX\x02\0\0\0O8\x85R.", b"\x8f.", b"\xff", b"Iabc\n.", b"(I1\nI2\n0",
    b"B\xff\xff\xff\x7f.", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", b"\x8b\xff\xff\xff\x7f."])
def test_broken_pickles_are_refused(tmp_path, data):
    """Stack underflow, marks, memo, kinds, lengths: an error of ours, never another one."""
    path = archive(tmp_path / "x", data)
    with pytest.raises(CheckpointError, match="data.pkl"):
        checkpoint.load(path)


def test_exponential_keys_are_refused(tmp_path):
    """A key of 60 doublings would take 2^60 steps to hash."""
    body = b"}N" + b"2\x86" * 60 + b"K\x01s."
    with pytest.raises(CheckpointError, match="as key"):
        checkpoint.load(archive(tmp_path / "x", body))


def test_every_flipped_byte_is_an_error_or_harmless(tmp_path):
    """One byte changed, anywhere: the object or an error of ours; with `verify` and a change of an
    element, an error."""
    array = np.arange(40, dtype=np.float32)
    checkpoint.save({"a": array, "b": "text"}, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    elements = data.index(array.tobytes())
    bad = tmp_path / "bad"
    for i in range(0, len(data)):
        bad.write_bytes(data[:i] + bytes([data[i] ^ 0x41]) + data[i + 1:])
        try:
            checkpoint.load(bad, writable=bool(i % 2), verify=True)
            assert not elements <= i < elements + array.nbytes
        except CheckpointError as error:
            assert str(bad) in str(error)


def test_a_header_that_lies_is_refused(tmp_path):
    """Sizes and places in the central directory that reach beyond the file or into a neighbour,
    names that occur twice, compressed records."""
    path = archive(tmp_path / "x", tensor_pickle(), STORAGE)
    data = path.read_bytes()
    entry = data.rindex(b"archive/data/0") - 46
    assert data[entry:entry + 4] == b"PK\x01\x02"
    for field, value in ((20, 1 << 30), (24, 1 << 30), (24, 15), (42, 0), (42, 1 << 30), (42, 7)):
        lie = bytearray(data)
        struct.pack_into("<I", lie, entry + field, value)
        path.write_bytes(lie)
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            checkpoint.load(path)
    both = bytearray(data)  # compressed and plain size agree on more than there is
    struct.pack_into("<II", both, entry + 20, 1 << 30, 1 << 30)
    path.write_bytes(both)
    with pytest.raises(CheckpointError, match="does not fit"):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match="compressed"):
        checkpoint.load(archive(tmp_path / "z", tensor_pickle(), STORAGE, compression=zipfile.ZIP_DEFLATED))
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(tmp_path / "d", tensor_pickle(), STORAGE * 2)
    with pytest.raises(CheckpointError, match="same name"):
        checkpoint.load(tmp_path / "d")


def test_other_files_are_named(tmp_path):
    path = tmp_path / "x"
    for content, message in ((b"", "is empty"), (b"hello, world", "not a checkpoint"), (b"PK\x03\x04", "cut off")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}: .*{message}"):
            checkpoint.load(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "no checkpoint")
    with pytest.raises(CheckpointError, match="0 records <root>/data.pkl"):
        checkpoint.load(path)
