"""Tests of the device "cuda": on a GPU, or on the simulated one (tests/cudasim) that ASENPP_CUDA_PLUGIN names.

Without either they skip, and say what is missing. `make test-gpu` and `make test-sim` run them. Tests marked
`gpu` are of a real one's: speed, memory, and precision that the simulation does not have.
"""

import os

import pytest

from asenpp import _asen, cuda

SIMULATED = bool(os.environ.get("ASENPP_CUDA_PLUGIN"))


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/cuda/" not in item.path.as_posix():
            continue
        if not cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=f"CUDA is unavailable: {cuda.why_not()}"))
        elif SIMULATED and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="the device is simulated: this asks a real GPU"))


@pytest.fixture(autouse=True)
def as_at_first():
    """Switches back to their defaults; nothing queued by one test fails in the next."""
    yield
    _asen.set_kernel_paths("all")
    _asen.set_grad_enabled(True)
    if cuda.is_available():
        cuda.allow_tf32(False)
        cuda.autotune(0)
        cuda.synchronize()
