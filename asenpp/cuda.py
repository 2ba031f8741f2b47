"""Whether a GPU can be used, and if not, why not; which GPU it is and how it computes.

The device "cuda" is the first GPU that CUDA_VISIBLE_DEVICES leaves. Its code is a plugin beside the core
(docs/cuda.md), loaded when somebody first asks; ASENPP_CUDA_PLUGIN names another one in its place (the
tests' simulated device).
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
import threading
from pathlib import Path

from . import _asen

__all__ = ["is_available", "is_built", "why_not", "require", "memory_info", "allow_tf32", "autotune", "synchronize"]

PLUGIN = "_asen_cuda.so"
# What the plugin needs by name, and the pip package that has it.
_LIBRARIES = {"libcublasLt.so.13": "nvidia-cublas", "libcudnn.so.9": "nvidia-cudnn-cu13"}


def is_built() -> bool:
    """Whether this build has the plugin (whatever the machine has)."""
    return os.path.exists(_plugin())


def _plugin() -> str:
    return os.environ.get("ASENPP_CUDA_PLUGIN") or os.path.join(os.path.dirname(os.path.abspath(__file__)), PLUGIN)


def _check_driver() -> None:
    """Raises OSError where there is no driver: before cuDNN's hundreds of megabytes are mapped for nothing."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise OSError(f"no NVIDIA driver is loaded here ({error}): install it, or run on the CPU") from None


def _load_library(name: str) -> None:
    """Loads a library that the plugin needs: the system's, or that of pip's nvidia packages. Raises OSError."""
    try:
        ctypes.CDLL(name)
        return
    except OSError as error:
        reason = str(error)
    for folder in map(Path, filter(None, sys.path)):
        for path in sorted(folder.glob(f"nvidia/*/lib/{name}")):
            ctypes.CDLL(str(path))
            return
    raise OSError(f"{name} is not installed (pip install '{_LIBRARIES[name]}'): {reason}")


_lock = threading.Lock()
_forked = False


def _in_child() -> None:
    """After a fork: a thread that held the lock is not there, and what the parent opened cannot be used."""
    global _lock, _forked
    _lock = threading.Lock()
    _forked = _forked or _load.cache_info().currsize > 0 and not _load()


os.register_at_fork(after_in_child=_in_child)


def why_not() -> str:
    """What stands between this process and CUDA, in one sentence; "" where CUDA works.

    Loads the plugin on the first call, so nothing of CUDA is touched before somebody asks.
    """
    if _forked:
        return ("CUDA cannot be used in a process that was forked after CUDA was: start it with multiprocessing's method "
                "'spawn', or fork before the device \"cuda\" is first named")
    with _lock:     # a second thread that asks meanwhile waits, and does not load it again
        return _load()


@functools.lru_cache(maxsize=None)
def _load() -> str:
    other, path = os.environ.get("ASENPP_CUDA_PLUGIN"), _plugin()
    if not is_built():
        return (f"ASENPP_CUDA_PLUGIN names {path}, which is not there" if other else
                f"this build has no CUDA plugin (asenpp/{PLUGIN}): build it with a CUDA toolkit, see docs/cuda.md")
    try:
        if not other:
            _check_driver()
            for name in _LIBRARIES:
                _load_library(name)
        _asen.load_plugin(path)
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        return re.sub(r"\s+", " ", str(error))
    return ""


def is_available() -> bool:
    """Whether tensors and models can be moved to the device "cuda"."""
    return not why_not()


def require() -> None:
    """Loads the device "cuda" (whoever names it first does); RuntimeError, with the reason, where it cannot be used."""
    if why_not():
        raise RuntimeError(f"CUDA is unavailable: {why_not()}")


def memory_info() -> tuple[int, int]:
    """Bytes of the GPU's memory: free and in all. RuntimeError where CUDA is unavailable."""
    require()
    info = _asen.memory_info("cuda")
    assert info is not None
    return info


def allow_tf32(on: bool) -> None:
    """Whether float32 convolutions and matrix products may round their inputs to TF32 (10 bits of mantissa) on
    GPUs since compute capability 8.0. Off at first. RuntimeError where CUDA is unavailable."""
    require()
    _asen.set_option("cuda", "tf32", int(on))


def autotune(plans: int = 4) -> None:
    """When a convolution of a new shape is met, tries this many of cuDNN's plans on the data and keeps the fastest
    (PyTorch's cudnn.benchmark); 0 turns it off, as at first. Faster, but timings decide: two runs may differ in
    their last bits. Every plan keeps the precision asked for and is deterministic in itself. ValueError above 8;
    RuntimeError where CUDA is unavailable."""
    require()
    _asen.set_option("cuda", "autotune", plans)


def synchronize() -> None:
    """Waits until all that was queued on the GPU has run. Raises what went wrong there; RuntimeError where CUDA
    is unavailable."""
    require()
    _asen.synchronize("cuda")
