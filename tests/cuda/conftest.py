"""Tests of the device "cuda": on a GPU, or on the simulated one (tests/cudasim) that ASENPP_CUDA_PLUGIN names.

Without either they skip, and say what is missing. `make test-gpu` and `make test-sim` run them.
"""

import functools
import os
import sys
from pathlib import Path

import pytest

from asenpp import _asen, cuda

SIMULATED = bool(os.environ.get("ASENPP_CUDA_PLUGIN"))


@functools.lru_cache(maxsize=None)
def simulator():
    """The hooks of the simulated device."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "cudasim"))
    from sim import Simulator

    return Simulator(os.environ["ASENPP_CUDA_PLUGIN"], load=False)


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/cuda/" in item.path.as_posix() and not cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=f"CUDA is unavailable: {cuda.why_not()}"))


@pytest.fixture(autouse=True)
def as_at_first():
    """Switches back to their defaults; nothing queued by one test fails in the next."""
    before = simulator().violations() if SIMULATED and cuda.is_available() else 0
    yield
    _asen.set_kernel_paths("all")
    _asen.set_grad_enabled(True)
    if cuda.is_available():
        cuda.allow_tf32(False)
        cuda.autotune(0)
        cuda.synchronize()
        if SIMULATED:   # a wrong call of cuDNN, say, is answered with an error, which a fallback would hide
            assert simulator().violations() == before, simulator().last_violation()
