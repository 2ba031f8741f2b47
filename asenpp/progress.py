"""Progress bars: tqdm's, without the thread that it keeps beside them.

tqdm starts and joins that thread in the calling thread, and shares a lock of Python's with it: an exception at the
wrong moment, and the program hangs when it ends (see asenpp.workers). Without it a bar is redrawn when work was done,
not while none is.
"""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["bar"]


@functools.lru_cache(maxsize=None)
def _bar_class() -> Any:
    from tqdm import tqdm

    return type("tqdm", (tqdm,), {"monitor_interval": 0})


def bar(*arguments: Any, **options: Any) -> Any:
    """tqdm(...)."""
    return _bar_class()(*arguments, **options)
