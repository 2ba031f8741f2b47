"""The command that converts and lists checkpoints."""

from collections import OrderedDict

import numpy as np
import pytest

import checkpoint_kit as kit
from asenpp import checkpoint, convert

SHARED = kit.Storage(np.arange(12, dtype=np.float32), location="cuda:0")
STATE = OrderedDict({"conv.weight": kit.Tensor(SHARED, 0, (3, 4), (1, 3)), "part": kit.Tensor(SHARED, 2, (2, 2), (4, 1)),
                     "half": kit.tensor(np.float16([1, 2])), "flag": kit.tensor(np.array([True, False])),
                     "empty": kit.tensor(np.empty((0, 3), np.int64)),
                     "brain": kit.Tensor(kit.Storage(np.uint16([0x3F80, 0xC000]), "BFloat16"), 0, (2,), (1,))})
SOURCES = {
    "zip": lambda: kit.zip_file({"epoch": 3, "model": STATE, "optimizer": {"lr": [0.1]}}),
    "zip, big-endian": lambda: kit.zip_file({"epoch": 3, "model": STATE, "optimizer": {"lr": [0.1]}}, "big"),
    "stream": lambda: kit.stream_file({"epoch": 3, "model": STATE, "optimizer": {"lr": [0.1]}}),
    "tar": lambda: kit.tar_file({"epoch": 3, "model": STATE, "optimizer": {"lr": [0.1]}}),
    "bare": lambda: kit.stream_file(STATE),
    "safetensors": lambda: safetensors(),
}


def safetensors() -> bytes:
    header, data = {"__metadata__": {"epoch": "3"}}, b""
    for name, code in (("conv.weight", "F32"), ("part", "F32"), ("half", "F16"), ("flag", "BOOL"), ("empty", "I64"),
                       ("brain", "BF16")):
        tensor = STATE[name]
        array = np.lib.stride_tricks.as_strided(tensor.storage.array[tensor.offset:], tensor.size, [
            s * tensor.storage.array.itemsize for s in tensor.stride]) if 0 not in tensor.size else np.empty(tensor.size, "i8")
        header[name] = {"dtype": code, "shape": list(tensor.size), "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    return kit.safetensors_file(header, data)


def check(state) -> None:
    assert set(state) == set(STATE)
    assert state["conv.weight"].tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert state["part"].tolist() == [[2, 3], [6, 7]] and state["half"].dtype == np.float16
    assert state["flag"].tolist() == [True, False] and state["empty"].shape == (0, 3)
    assert np.asarray(state["brain"]).tolist() == [1, -2] and isinstance(state["brain"], checkpoint.BFloat16)


@pytest.mark.parametrize("target", ["out.pth.tar", "out.safetensors"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_container_to_both_that_are_written(tmp_path, capsys, source, target):
    (tmp_path / "in").write_bytes(SOURCES[source]())
    assert convert.main([str(tmp_path / "in"), str(tmp_path / target)]) == 0
    left_out = capsys.readouterr().err
    got = checkpoint.load(tmp_path / target)
    whole = source not in ("bare", "safetensors")
    if target == "out.safetensors":
        check(got)
        assert got.metadata == ({} if source == "bare" else {"epoch": "3"})
        assert ("optimizer: left out" in left_out) == whole
    else:
        check(got["model"] if whole else got)
        assert not whole or got["epoch"] == 3 and got["optimizer"] == {"lr": [0.1]}
        assert left_out == ("" if source != "safetensors" else
                            f"{tmp_path / target}: there is no place in it for metadata epoch: left out\n")
        torch = pytest.importorskip("torch")
        back = torch.load(tmp_path / target, weights_only=True)
        assert (back["model"] if whole else back)["brain"].dtype == torch.bfloat16


@pytest.mark.parametrize("source", SOURCES)
def test_info_lists_every_container(tmp_path, capsys, source):
    (tmp_path / "in").write_bytes(SOURCES[source]())
    assert convert.main(["--info", str(tmp_path / "in")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    prefix = "" if source in ("bare", "safetensors") else "model."
    for row in ("conv.weight float32 3×4 48", "part float32 2×2 16", "half float16 2 4", "flag bool 2 2", "empty int64 0×3 0",
                "brain bfloat16 2 4"):
        assert (prefix + row).split() in lines
    assert lines[-1] == "6 tensors, 74 bytes".split()


def test_what_safetensors_cannot_hold_is_an_error(tmp_path, capsys):
    for obj, message in (({"epoch": 3}, "no tensors"), ([1], "a dictionary of tensors")):
        checkpoint.save(obj, tmp_path / "in")
        assert convert.main([str(tmp_path / "in"), str(tmp_path / "out.safetensors")]) == 1
        assert message in capsys.readouterr().err and not (tmp_path / "out.safetensors").exists()


def test_a_tensor_larger_than_memory_is_an_error(tmp_path, capsys):
    """Strides of zero make a petabyte of sixteen bytes: listed, and refused in one line when written out."""
    wide = kit.Tensor(kit.Storage(np.ones(4, np.float32)), 0, (1 << 24, 1 << 24), (0, 0))
    (tmp_path / "in").write_bytes(kit.zip_file({"w": wide}))
    assert convert.main(["--info", str(tmp_path / "in")]) == 0
    assert "16777216×16777216  1125899906842624" in capsys.readouterr().out
    assert convert.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert "need more memory than there is" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_errors_are_told(tmp_path, capsys):
    (tmp_path / "x").write_bytes(b"no checkpoint")
    assert convert.main(["--info", str(tmp_path / "x")]) == 1
    assert "not a checkpoint" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        convert.main([str(tmp_path / "x")])
