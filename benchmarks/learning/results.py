"""The file of results: one JSON line a run, appended whole, never changed.

A line whose end is missing (the machine stopped) is left aside by readers, and closed by the next that is appended.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """All whole lines; none where there is no file."""
    rows = []
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def append(path: Path, row: Row) -> None:
    """Adds a line and waits until it is on disk. Several processes may append."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(row, sort_keys=True, allow_nan=False) + "\n").encode()
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = b"\n" + line
        while line:
            line = line[os.write(file, line):]
        os.fsync(file)
    finally:
        os.close(file)


def key(row: Row) -> tuple[Any, ...]:
    """What makes two rows the same run."""
    return tuple(row[name] for name in ("study", "data", "mode", "seed", "budget", "options_hash"))
