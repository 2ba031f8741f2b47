"""A short form of tests/differential.py: tensors against NumPy over random views, operations and writes in place."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import differential
from asenpp import _asen

SCRIPT = Path(__file__).resolve().parent / "differential.py"


@pytest.mark.parametrize("seed", range(4))
def test_a_few_thousand_checks(seed):
    """`make differential` runs a million."""
    rounds, checks = differential.campaign(seed, 2500)
    assert checks >= 2500 and rounds > 50


def test_every_kind_of_step_is_taken():
    """The first rounds write, compare, pick, order, reduce, convert: nothing is left out for want of luck."""
    steps = set()
    with np.errstate(all="ignore"):
        for number in range(150):
            one = differential.Round(1, number)
            one.run()
            steps |= {line.split(" ")[0] for line in one.log}
    assert {"arithmetic", "comparison", "choice", "unary", "conversion", "reduction", "ordering", "picking", "write", "index",
            "permute", "expand", "transpose", "narrow", "fill_", "copy_", "set", "put", "add_", "mul_", "masked_fill_"} <= steps


@pytest.mark.parametrize("name, wrong", [
    ("copy_", lambda f: lambda self, source: f(self, source) if self.numel() < 2 else self),           # writes nothing
    ("__lt__", lambda f: lambda self, other: self <= other),
    ("argmax", lambda f: lambda self, dim=None, keepdim=False: f(self, dim, keepdim) * 0),
    ("permute", lambda f: lambda self, *dims: f(self, *dims).clone()),                                 # no view: writes are lost
], ids=["copy_", "<", "argmax", "permute"])
def test_a_wrong_method_is_found(monkeypatch, name, wrong):
    """Each of these mistakes is a mismatch within a few thousand checks."""
    monkeypatch.setattr(_asen.Tensor, name, wrong(getattr(_asen.Tensor, name)))
    with pytest.raises(differential.Mismatch, match="seed 0, round"):
        differential.campaign(0, 20000)


def test_the_result_says_what_was_run(tmp_path):
    """JSON with counts, commit and processor."""
    out = tmp_path / "result.json"
    done = subprocess.run([sys.executable, SCRIPT, "--checks", "200", "--seed", "5", "--out", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["checks"] >= 200 and result["mismatches"] == 0 and {"commit", "processor", "seed", "seconds"} <= set(result)
