"""What a run says: log lines, one JSON line an event, and bars for work that takes a while.

Log lines look like the published program's: `%(asctime)s ASEN %(levelname)s: ...`.

metrics.jsonl holds no times of day, so that two runs with the same seed write the same bytes. A
checkpoint remembers how long the file was (`MetricsFile.size`); resuming cuts what came after, so
that an event is never there twice. Events of tests (`--test`) are kept when training is resumed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from ..progress import bar
from .errors import EngineError

__all__ = ["MetricsFile", "get_logger", "progress", "duration"]

FORMAT = "%(asctime)s ASEN %(levelname)s: %(message)s"


class _Handler(logging.StreamHandler):
    """Writes above a progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        with _bar_aside(self.stream):
            super().emit(record)


@contextlib.contextmanager
def _bar_aside(stream: Any) -> Iterator[None]:
    if "tqdm" in sys.modules and _has_terminal():
        with sys.modules["tqdm"].tqdm.external_write_mode(file=stream):
            yield
    else:
        yield


def _has_terminal() -> bool:
    return bool(getattr(sys.stderr, "isatty", lambda: False)())


def get_logger(cfg: Any) -> logging.Logger:
    """The logger "ASEN" as LOGGER.LEVEL and LOGGER.STREAM ("stdout" or a file's path) say.

    Raises EngineError for a log file that cannot be opened.
    """
    logger = logging.getLogger("ASEN")
    for old in [h for h in logger.handlers if isinstance(h, _Handler)]:
        logger.removeHandler(old)
        if old.stream not in (sys.stdout, sys.__stdout__):
            old.close()
    target = cfg.LOGGER.STREAM
    if target == "stdout":
        stream = sys.stdout
    else:
        try:
            stream = open(target, "a", encoding="utf-8")
        except OSError as error:
            raise EngineError(f"LOGGER.STREAM: {target} cannot be written ({error.strerror}); "
                              "name another file, or stdout") from None
    handler = _Handler(stream)
    handler.setFormatter(logging.Formatter(FORMAT))
    logger.addHandler(handler)
    logger.setLevel(cfg.LOGGER.LEVEL)
    logger.propagate = False
    return logger


class MetricsFile:
    """SAVE_DIR/NAME/metrics.jsonl: `write(event="train", ...)` appends a line.

    path: None writes nothing.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        self._file = None if path is None else open(path, "ab")

    def write(self, **event: Any) -> None:
        if self._file is not None:
            self._file.write((json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n").encode())
            self._file.flush()

    def size(self) -> int:
        """Bytes that are safely on disk."""
        if self._file is None:
            return 0
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def cut(self, size: int) -> int:
        """Drops what a training wrote after `size` bytes; returns how many events were dropped."""
        if self.path is None or self._file is None or self.size() <= size:
            return 0
        with open(self.path, "rb") as file:
            file.seek(size)
            later = file.read().splitlines(keepends=True)
        kept = [line for line in later if _is_test(line)]
        self._file.truncate(size)
        self._file.seek(0, os.SEEK_END)
        self._file.write(b"".join(kept))
        self._file.flush()
        return len(later) - len(kept)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def _is_test(line: bytes) -> bool:
    try:
        return json.loads(line).get("event") == "test"
    except ValueError:      # the end of a line that was cut off
        return False


def progress(items: Iterable, total: int, what: str, unit: str, initial: int = 0) -> Iterable:
    """`items` behind a bar on stderr with the time left; just `items` where there is no terminal."""
    if not _has_terminal():
        return items
    return bar(items, total=total, desc=what, unit=unit, initial=initial, leave=False, dynamic_ncols=True)


def duration(seconds: float) -> str:
    """A time span in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
