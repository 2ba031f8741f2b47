"""Ctrl-C and SIGTERM: the first asks, the second Ctrl-C ends at once.

The work looks at `requested` where it can stop cleanly (after a training step, between the batches
of an evaluation). Handlers are set in the main thread only, and put back afterwards.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from .errors import Interrupted

__all__ = ["StopSignals"]


class StopSignals:
    """`with StopSignals(...) as stop:` collects signals; `stop.requested` says whether one came.

    say: what to print when one does.
    """

    def __init__(self, say: str = "stopping") -> None:
        self.requested = False
        self._say = say
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _take(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        # Not print: the handler may run in the middle of another one.
        os.write(2, f"\n{name}: {self._say}; Ctrl-C again ends at once, without saving\n".encode())

    def check(self) -> None:
        """Raises Interrupted when a signal has come."""
        if self.requested:
            raise Interrupted
