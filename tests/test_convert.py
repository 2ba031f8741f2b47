"""The command that converts and lists checkpoints."""

import numpy as np

from asenpp import checkpoint, convert


def test_to_safetensors_and_back(tmp_path, capsys):
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    checkpoint.save({"epoch": 3, "model": {"w": weight}, "optimizer": {}}, tmp_path / "a.pth.tar")
    assert convert.main([str(tmp_path / "a.pth.tar"), str(tmp_path / "b.safetensors")]) == 0
    assert "optimizer" in capsys.readouterr().err, "what is left out is named"
    got = checkpoint.load(tmp_path / "b.safetensors")
    assert np.array_equal(got["w"], weight) and got.metadata == {"epoch": "3"}
    assert convert.main(["--info", str(tmp_path / "a.pth.tar")]) == 0
    assert "model.w  float32  2×3  24" in capsys.readouterr().out


def test_errors_are_told(tmp_path, capsys):
    (tmp_path / "x").write_bytes(b"no checkpoint")
    assert convert.main(["--info", str(tmp_path / "x")]) == 1
    assert "not a checkpoint" in capsys.readouterr().err
