"""The stream, tar and safetensors containers: PyTorch's files come in equal, ours go out, lies and
programs are refused."""

import io
import os
import pickle
import random
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest

from asenpp import checkpoint, convert
from asenpp.checkpoint import BFloat16, CheckpointError


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def tar_file(path, tensors, obj=None):
    """The oldest layout, by hand: tensors are torch tensors, ids are their keys."""
    import torch

    def dump(value):
        return pickle.dumps(value, 2)

    storages, records, place = bytearray(dump(len(tensors))), bytearray(dump(len(tensors))), {}
    for i, (name, tensor) in enumerate(tensors.items()):
        tensor = tensor.contiguous()
        place[name] = i
        storages += dump((i, "cuda:0", torch.FloatStorage)) + struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes()
        records += dump((100 + i, i, torch.FloatTensor)) + struct.pack("<ii", tensor.dim(), 0)
        records += struct.pack(f"<{2 * tensor.dim() + 1}q", *tensor.shape, *tensor.stride(), 0)
    storages += dump([])
    if obj is None:
        obj = b"\x80\x02}" + b"".join(b"X" + struct.pack("<I", len(n)) + n.encode() + b"M" + struct.pack("<H", 100 + i) + b"Qs"
                                      for n, i in place.items()) + b"."
    with tarfile.open(path, "w") as tar:
        for name, data in (("sys_info", dump({"little_endian": True})), ("pickle", obj), ("tensors", records),
                           ("storages", storages)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def written(tmp_path, kind, state):
    import torch

    path = tmp_path / f"{kind}.safetensors"
    if kind == "tar":
        return tar_file(path, state)
    if kind == "safetensors":
        checkpoint.save({k: v.numpy() for k, v in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    return path


KINDS = ["zip", "stream", "tar", "safetensors"]


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_comes_in_equal_and_goes_out(tmp_path, kind, writable):
    torch = pytest.importorskip("torch")
    import torch_models

    state = {k: v for k, v in torch_models.ResNet("resnet18").state_dict().items() if v.dtype == torch.float32}
    path = written(tmp_path, kind, state)
    got = checkpoint.load(path, writable=writable)
    assert list(got) == list(state)
    assert all(np.array_equal(got[k], state[k].numpy()) for k in state)
    infos = dict(convert.tensors(checkpoint.inspect(path)[1]))
    assert {k: infos[k].shape for k in state} == {k: tuple(v.shape) for k, v in state.items()}
    assert convert.convert(str(path), str(tmp_path / "out.pth")) == []
    back = torch.load(tmp_path / "out.pth", weights_only=True)
    assert all(torch.equal(back[k], state[k]) for k in state)


@pytest.mark.parametrize("legacy", [False, True])
def test_dtypes_views_and_shared_storages(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.bfloat16)
    obj = {"b": base.view(4, 6).t(), "c": base[3:5], "s": torch.tensor(3.), "e": torch.empty(0, 3),
           "h": torch.ones(3).half(), "t": torch.tensor([True, False]), "i": torch.arange(5, dtype=torch.int16)}
    torch.save(obj, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
    got = checkpoint.load(tmp_path / "x")
    assert isinstance(got["b"], BFloat16) and np.shares_memory(got["b"].bits, got["c"].bits)
    for name, value in obj.items():
        want = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
        assert np.array_equal(np.asarray(got[name]), want) and got[name].shape == tuple(value.shape)
    checkpoint.save(got, tmp_path / "y")
    back = torch.load(tmp_path / "y", weights_only=True)
    assert all(back[k].dtype == obj[k].dtype and torch.equal(back[k], obj[k]) for k in obj)


@pytest.mark.parametrize("kind", ["stream", "tar"])
def test_programs_are_refused(tmp_path, kind):
    torch = pytest.importorskip("torch")
    trace = tmp_path / "trace"
    if kind == "tar":
        path = tar_file(tmp_path / "x", {}, pickle.dumps(Evil(trace), 2))
    else:
        path = tmp_path / "x"
        torch.save({"a": Evil(trace)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="system"):
        checkpoint.load(path)
    assert not trace.exists()


def test_exponential_values_do_not_hang(tmp_path):
    """A persistent id of 60 doublings: naming it in full would take 2^60 steps."""
    magic = pickle.dumps(0x1950a86a20f9469cfc6c, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    (tmp_path / "x").write_bytes(magic + b"\x80\x02N" + b"2\x86" * 60 + b"Q.")
    with pytest.raises(CheckpointError, match="persistent id"):
        checkpoint.load(tmp_path / "x")


@pytest.mark.parametrize("kind", KINDS)
def test_mutations_are_errors_or_harmless(tmp_path, kind):
    """Bytes changed by chance: the object or an error of ours, and bounded memory."""
    torch = pytest.importorskip("torch")
    path = written(tmp_path, kind, {"a": torch.rand(4, 3), "b": torch.rand(5)})
    data, rng = path.read_bytes(), random.Random(0)
    bad = tmp_path / "bad"
    tracemalloc.start()
    try:
        for _ in range(800):
            lie = bytearray(data[:rng.choice([len(data), rng.randrange(1, len(data))])])
            for _ in range(rng.randint(1, 4)):
                lie[rng.randrange(len(lie))] = rng.choice([0, 1, 255, rng.randrange(256)])
            bad.write_bytes(lie)
            try:
                checkpoint.load(bad, writable=True)
            except CheckpointError as error:
                assert str(bad) in str(error)
        assert tracemalloc.get_traced_memory()[1] < len(data) + (64 << 20)
    finally:
        tracemalloc.stop()
