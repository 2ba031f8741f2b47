"""Whether a GPU can be used, and if not, why not."""

from __future__ import annotations

import functools
import os

from . import _asen

__all__ = ["is_available", "why_not"]

PLUGIN = "_asen_cuda.so"


@functools.lru_cache(maxsize=None)
def why_not() -> str:
    """What stands between this process and CUDA, in one sentence; "" where CUDA works.

    Loads the plugin on the first call, so nothing of CUDA is touched before somebody asks.
    """
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), PLUGIN)
    if not os.path.exists(path):
        return f"this build has no CUDA plugin (asenpp/{PLUGIN})"
    try:
        _asen.load_plugin(path)
        _asen.memory_stats("cuda")
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        return str(error)
    return ""


def is_available() -> bool:
    """Whether tensors and models can be moved to the device "cuda"."""
    return not why_not()
