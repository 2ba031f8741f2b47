"""What the JSON of a benchmark or a campaign says beside its numbers: the commit, the processor, the versions.

Ratios are taken pair by pair: two competitors measured one right after the other, so that a drift of the machine
hits both alike. A ratio's summary is the median of the pairs and their spread.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from pathlib import Path


def commit(root: Path, but: str = "") -> str:
    """The commit of a checkout, with "+" where tracked files differ from it; but: a folder that may (results, which
    grow while they are made)."""
    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True).stdout.strip()

    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *([f":!{but}"] if but else []))
    return (head or "unknown") + ("+" if changed else "")


def processor() -> str:
    """The processor's name as the kernel gives it, and how many this process may use."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{name}, {len(os.sched_getaffinity(0))} processors"


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine(**checkouts: Path) -> dict:
    """The head of a benchmark's result: `machine(ours=ROOT, before=path)`."""
    return {"commits": {name: commit(root) for name, root in checkouts.items()}, **_here(),
            "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "GOMP_", "ASENPP_"))}}


def campaign(but: str = "") -> dict:
    """The head of a campaign's result. but: see commit."""
    return {"commit": commit(Path(__file__).resolve().parent.parent, but), **_here()}


def _here() -> dict:
    return {"processor": processor(), "python": platform.python_version(), "numpy": version("numpy"),
            "torch": version("torch")}


def ratios(ours: list[float], other: list[float]) -> dict:
    """ours / other, pair by pair: the median and the spread."""
    pairs = sorted(a / b for a, b in zip(ours, other, strict=True))
    return {"median": statistics.median(pairs), "min": pairs[0], "max": pairs[-1], "pairs": len(pairs)}


def write(path: str | Path | None, result: dict) -> None:
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(result, indent=1) + "\n")


def report(path: str | Path | None, result: dict) -> None:
    """Prints a campaign's result, too."""
    print(json.dumps(result, indent=1))
    write(path, result)
