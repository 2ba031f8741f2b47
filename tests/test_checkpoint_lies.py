"""Headers that lie, files that are two things at once, and files cut off, in every container: one clear error."""

import io
import json
import re
import struct
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

import checkpoint_kit as kit
from asenpp import checkpoint
from asenpp.checkpoint import CheckpointError
from asenpp.checkpoint.records import Records

STORAGE = kit.Storage(np.arange(6, dtype=np.float32))
OBJ = {"a": kit.Tensor(STORAGE, 0, (2, 3), (3, 1)), "b": kit.Tensor(STORAGE, 2, (4,), (1,))}
TRUTH = {"t": kit.tensor(np.array([True, False]))}
SAFE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "I64", "shape": [], "data_offsets": [8, 16]}}
WHOLE = {"zip": kit.zip_file(OBJ), "zip64": kit.zip_file(OBJ, zip64=True), "stream": kit.stream_file(OBJ), "tar": kit.tar_file(OBJ),
         "safetensors": kit.safetensors_file(SAFE, bytes(16))}


def refused(path, data: bytes, named: str) -> None:
    path.write_bytes(data)
    for read in (checkpoint.load, checkpoint.inspect):
        with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}: .*{named}"):
            read(path)


def tensors(*rows) -> dict[str, kit.Tensor]:
    return {str(i): kit.Tensor(STORAGE, *row) for i, row in enumerate(rows)}


@pytest.mark.parametrize("make", [kit.zip_file, kit.stream_file, kit.tar_file], ids=["zip", "stream", "tar"])
@pytest.mark.parametrize("row", [
    (0, (7,), (1,)), (3, (4,), (1,)), (0, (2, 3), (4, 1)), (0, (3,), (3,)), (-1, (2,), (1,)), (0, (-2,), (1,)), (0, (2,), (-1,)),
    (5, (2, 2), (0, 1)), (1 << 62, (1,), (1,)), (0, (1 << 62, 1 << 62), (0, 0)), (0, (2,), (1 << 62,)), (0, (1,) * 33, (1,) * 33)])
def test_views_that_reach_beyond_their_storage(tmp_path, make, row):
    """Offsets, sizes and strides are held against the storage; and the same rows, put right, are read."""
    refused(tmp_path / "x", make(tensors(row)), "")
    (tmp_path / "x").write_bytes(make(tensors((0, (2, 3), (3, 1)), (5, (2, 2), (0, 0)), (0, (1,) * 32, (1,) * 32))))
    assert len(checkpoint.load(tmp_path / "x")) == 3


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) >= 1
    at = data.rindex(old)
    return data[:at] + new + data[at + len(old):]


COUNT = struct.pack("<q", 6)
STREAM = {
    "a count that is not the object's": (patched(WHOLE["stream"], COUNT, struct.pack("<q", 5)), "has 5 elements, and the object asks "
                                                                                             "for 6"),
    "a negative count": (patched(WHOLE["stream"], COUNT, struct.pack("<q", -6)), "-6 elements"),
    "more elements than the file holds": (kit.stream_file({}, pickle=kit.dump({}, None).replace(b"}(u", b"(" + kit.text("storage")
                                          + b"ctorch\nFloatStorage\n" + kit.text("0") + kit.text("cpu")
                                          + b"\x8a\x08" + struct.pack("<q", 1 << 60) + b"NtQ")), "storages of .* bytes in a file of"),
    "something behind its end": (WHOLE["stream"] + b"PK\x03\x04", "4 bytes are left over"),
    "no end": (WHOLE["stream"][:-1], "ends after 23 of 24 bytes"),
    "a storage that the list has not": (patched(WHOLE["stream"], kit.dump(["0"]), kit.dump([])), "names 0 storages"),
    "a storage that only the list has": (patched(WHOLE["stream"], kit.dump(["0"]), kit.dump(["0", "1"])), "names 2 storages"),
    "a storage twice in the list": (patched(WHOLE["stream"], kit.dump(["0"]), kit.dump(["0", "0"])), "names 2 storages"),
    "another protocol": (WHOLE["stream"].replace(kit.dump(1001), kit.dump(1002), 1), "it is 1002, not 1001"),
    "an odd byte order": (WHOLE["stream"].replace(kit.text("little_endian") + b"\x88", kit.text("little_endian") + b"N"),
                          "neither little nor big"),
    "truth values of 2": (kit.stream_file(TRUTH)[:-1] + b"\2", "truth values, holds 2"),
}


def tar_with(member: str, change, obj=OBJ, **options) -> bytes:
    members = kit.tar_members(obj, **options)
    return kit.tar_of({**members, member: change(members[member])})


def header(change) -> bytes:
    """The tar file with its first header changed, and the checksum right."""
    info = tarfile.TarInfo("sys_info")
    change(info)
    return info.tobuf(tarfile.GNU_FORMAT) + WHOLE["tar"][512:]


def as_link(info) -> None:
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"


ROW = struct.pack("<ii5q", 2, 0, 2, 3, 3, 1, 0)
TAR = {
    "a negative count": (tar_with("storages", lambda data: patched(data, COUNT, struct.pack("<q", -1))), "longer than what is left"),
    "more elements than the member": (tar_with("storages", lambda data: patched(data, COUNT, struct.pack("<q", 1 << 60))),
                                      "longer than what is left"),
    "elements of the next member": (tar_with("storages", lambda data: patched(data, COUNT, struct.pack("<q", 20))),
                                    "longer than what is left"),
    "a storage twice": (tar_with("storages", lambda data: kit.dump(2) + 2 * data[len(kit.dump(1)):-len(kit.dump([]))]
                                 + kit.dump([])), "there twice"),
    "too many storages": (tar_with("storages", lambda data: kit.dump(1 << 40)), "a count of"),
    "a view beyond its root": (kit.tar_file(OBJ, views={9: (STORAGE, 4, 3)}), "a view of 3 elements from 4 in a storage of 6"),
    "dimensions without end": (tar_with("tensors", lambda data: patched(data, ROW, struct.pack("<i", 1 << 30) + ROW[4:])),
                               "dimensions"),
    "a tensor of no storage": (tar_with("tensors", lambda data: data.replace(kit.opcodes(0, None) + b"ctorch",
                                                                              kit.opcodes(5, None) + b"ctorch")), "not there"),
    "an id of no tensor": (tar_with("pickle", lambda data: data.replace(kit.opcodes(1000, None), kit.opcodes(55, None))),
                           "tensor 55 is not there"),
    "truth values of 2": (tar_with("storages", lambda data: patched(data, b"\1\0\x80", b"\2\0\x80"), TRUTH), "truth values"),
    "a member that is not there": (kit.tar_of({k: v for k, v in kit.tar_members(OBJ).items() if k != "tensors"}), "without tensors"),
    "a member twice": (WHOLE["tar"][:1024] + WHOLE["tar"], "once each"),
    "another member": (kit.tar_of({**kit.tar_members(OBJ), "evil": b""}), "'evil'"),
    "a link": (header(as_link), "of type b'2'"),
    "a member beyond the file": (header(lambda info: setattr(info, "size", 1 << 40)), "reaches beyond the file"),
    "a wrong checksum": (b"S" + WHOLE["tar"][1:], "damaged tar header"),
    "something behind its end": (WHOLE["tar"] + WHOLE["zip"], "something behind its end"),
}


def safe(change=None, data: bytes = bytes(16)) -> bytes:
    header = json.loads(json.dumps(SAFE))
    if change:
        change(header)
    return kit.safetensors_file(header, data)


SAFETENSORS = {
    "bytes behind its end": (safe(data=bytes(17)), "end at byte .*, and the file at"),
    "a file that ends before": (safe(data=bytes(15)), "and the file at"),
    "a gap": (safe(lambda h: h["b"].update(data_offsets=[9, 17]), bytes(17)), "overlap or leave a gap"),
    "an overlap": (safe(lambda h: h["b"].update(data_offsets=[4, 12])), "overlap or leave a gap"),
    "offsets that run back": (safe(lambda h: h["a"].update(data_offsets=[8, 0])), "has -8 bytes"),
    "another size than its shape's": (safe(lambda h: h["a"].update(shape=[3])), "has 8 bytes"),
    "a negative shape": (safe(lambda h: h["a"].update(shape=[-2])), "odd shape"),
    "a shape of truth": (safe(lambda h: h["b"].update(shape=[True])), "odd shape"),
    "a shape that overflows": (safe(lambda h: h["a"].update(shape=[1 << 62, 1 << 62, 0], data_offsets=[0, 0])
                                   or h["b"].update(data_offsets=[0, 8]), bytes(8)), "tensor 'a': a tensor of size"),
    "an unknown dtype": (safe(lambda h: h["a"].update(dtype="F4")), "'F4'"),
    "something more": (safe(lambda h: h["a"].update(more=1)), "or more than these"),
    "a name twice": (kit.safetensors_file(b'{"a":{},"a":{}}'), "there twice"),
    "metadata that are no strings": (safe(lambda h: h.update(__metadata__={"a": 1})), "no dictionary of strings"),
    "a header that is no JSON": (kit.safetensors_file(b"{nothing"), "no JSON"),
    "a header that is too long": (kit.safetensors_file(b"{" + b" " * (5 << 20)), "more than the"),
    "an integer of many digits": (kit.safetensors_file(b'{"a":' + b"1" * 30 + b"}"), "an integer of 30 digits"),
    "a header of many parts": (kit.safetensors_file(b'{"a":[' + b"1," * 200_000 + b"1]}"), "more than 200000 parts"),
    "truth values of 2": (kit.safetensors_file({"t": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\2"), "truth values"),
}
LIES = {**{f"stream: {k}": v for k, v in STREAM.items()}, **{f"tar: {k}": v for k, v in TAR.items()},
        **{f"safetensors: {k}": v for k, v in SAFETENSORS.items()}}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_named(tmp_path, lie):
    data, named = LIES[lie]
    path = tmp_path / "x"
    if "truth values" in lie:  # elements, which a listing does not read
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=named):
            checkpoint.load(path)
    else:
        refused(path, data, named)


@pytest.mark.parametrize("kind", WHOLE)
def test_every_truncation_is_an_error(tmp_path, kind):
    """Of a tar file's end, zeros may be missing."""
    (tmp_path / "x").write_bytes(WHOLE[kind])
    whole = checkpoint.load(tmp_path / "x")
    content = len(WHOLE[kind].rstrip(b"\0")) if kind == "tar" else len(WHOLE[kind])
    for length in {*range(0, len(WHOLE[kind]), 41), *range(content - 110, len(WHOLE[kind]), 1 if kind != "tar" else 97)}:
        (tmp_path / "x").write_bytes(WHOLE[kind][:length])
        try:
            got = checkpoint.load(tmp_path / "x")
            assert length >= content and kit.same(got, whole)
        except CheckpointError as error:
            assert str(tmp_path / "x") in str(error)


def test_no_storage_is_taken_from_outside_the_file(tmp_path):
    """The containers look first; what maps and reads for them looks again."""
    (tmp_path / "x").write_bytes(bytes(64))
    for writable in (False, True):
        with open(tmp_path / "x", "rb") as file:
            records = Records(file, "x", writable=writable)
            assert records.storage("s", 32, np.dtype("<f4"), 8).array.size == 8
            for start, count in ((32, 9), (64, 1), (-4, 1), (0, 1 << 62), (0, -1), (1 << 70, 1)):
                with pytest.raises(CheckpointError, match="reaches beyond the file of 64"):
                    records.storage("s", start, np.dtype("<f4"), count)


# -- two things at once ------------------------------------------------------------------------------

def test_a_zip_behind_something_else(tmp_path):
    """`zipfile` would find the archive at the end; the other reader the file in front."""
    for kind in ("stream", "tar", "safetensors"):
        refused(tmp_path / "x", WHOLE[kind] + WHOLE["zip"], "")
    refused(tmp_path / "x", b"PK\x03\x04" + bytes(60) + WHOLE["zip"], "another file is in front of it")
    refused(tmp_path / "x", WHOLE["zip"] + WHOLE["zip"], "another file is in front of it")
    refused(tmp_path / "x", WHOLE["zip"] + b"x", "something behind its end")
    refused(tmp_path / "x", WHOLE["zip"] + WHOLE["stream"], "something behind its end")


def test_a_file_that_looks_like_two_containers(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(257 - 30 - len("archive/data.pkl")) + b"ustar")
    assert out.getvalue()[257:262] == b"ustar"
    refused(tmp_path / "x", out.getvalue(), "PyTorch's ZIP container and like PyTorch's tar container at once")


def test_a_directory_that_the_end_does_not_name(tmp_path):
    """The ZIP64 end is believed where there is one, by `zipfile` too: it must be as bounded as the other."""
    count = 60_000
    entry = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0)
    directory = b"".join(entry + b"%040d" % i for i in range(count))
    start = len(WHOLE["zip"]) - 22
    data = WHOLE["zip"][:-22] + directory
    tail = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), start)
    tail += struct.pack("<4sIQI", b"PK\x06\x07", 0, len(data), 1)
    tail += struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, 100, start, 0)  # small, and not the largest number
    refused(tmp_path / "x", data + tail, "a directory of 5160000 bytes")
    place = struct.pack("<Q", len(WHOLE["zip64"]) - 22 - 20 - 56)
    refused(tmp_path / "x", patched(WHOLE["zip64"], place, bytes(8)), "ZIP64 end is cut off or damaged")
    refused(tmp_path / "x", WHOLE["zip64"].replace(b"PK\x06\x07", b"PK\x06\x08"), "ZIP64 end is cut off or damaged")


# -- bounds of values --------------------------------------------------------------------------------

@pytest.mark.parametrize("body,named", [
    (b"]q\0h\0a", "deeper than 100"), (b"}q\0" + kit.text("a") + b"h\0s", "deeper than 100"),
    (b"N" + b"\x85" * 101, "deeper than 100"), (b"]" * 101 + b"a" * 100, "deeper than 100"),
    (b"](NNeq\0" + b"0(h\0h\0lq\0" * 40, "shared ones counted each time"),
    (b"N\x85q\0" + b"0h\0h\0\x86q\0" * 40, "shared ones counted each time"),
    (b"ctorch\nFloatStorage\n\x85", "FloatStorage> where a value belongs"),
    (b"X\xff\xff\xff\x7f", "more than the 4194304"), (b"\x8b\0\1\0\0" + bytes(256), "more than the 255"),
    (b"L" + b"1" * 4096 + b"\n", "does not end within 4096"), (b"\x8f", "EMPTY_SET"), (b"S'a'\n", "STRING"),
])
def test_values_are_bounded(tmp_path, body, named):
    refused(tmp_path / "x", kit.zip_file(None, pickle=b"\x80\x04" + body + b"."), named)


def test_values_at_the_bounds_are_read(tmp_path):
    """Depth 100, and what is written that deep."""
    for body in (b"N" + b"\x85" * 100, b"]" * 100 + b"a" * 99):
        (tmp_path / "x").write_bytes(kit.zip_file(None, pickle=b"\x80\x02" + body + b"."))
        checkpoint.load(tmp_path / "x")
    deep = OrderedDict(a=1)
    for _ in range(99):
        deep = {"a": deep}
    checkpoint.save(deep, tmp_path / "x")
    assert checkpoint.load(tmp_path / "x") == deep
