"""ImageNet weights for backbones: a published file by name, a path, or a URL.

Files are kept in a folder (ASENPP_HOME, else XDG_CACHE_HOME/asenpp, else ~/.cache/asenpp), checked
against the hash in their names, and read without running anything in them (asenpp.checkpoint).
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from ..nn import LoadReport, Module
from ..progress import bar

__all__ = ["PretrainedError", "cache_folder", "fetch", "load_pretrained", "pretrained_file"]

FILES = {"resnet18": "resnet18-5c106cde.pth", "resnet34": "resnet34-333f7ec4.pth", "resnet50": "resnet50-19c8e357.pth"}
BASE_URL = "https://download.pytorch.org/models/"
TIMEOUT = 30  # seconds without an answer


class PretrainedError(RuntimeError):
    """Weights that cannot be had or do not fit; the message says what to do."""


def cache_folder() -> Path:
    """The folder that keeps downloaded weights."""
    home = os.environ.get("ASENPP_HOME")
    if home:
        return Path(home)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "asenpp"


def fetch(source: str, name: str = "") -> Path:
    """The local file of a path, or of a URL, downloaded into the cache folder when it is not there yet.

    The download goes to a temporary file, is checked against the hash in the file's name
    (`-<first hex digits of its SHA-256>.`), and renamed. Raises PretrainedError.
    """
    if urllib.parse.urlsplit(source).scheme not in ("http", "https"):
        path = Path(source).expanduser()
        if not path.is_file():
            raise PretrainedError(f"there is no file {path} with pretrained weights (MODEL.PRETRAINED{name})")
        return path
    filename = os.path.basename(urllib.parse.urlsplit(source).path)
    if not filename:
        raise PretrainedError(f"{source} names no file")
    target = cache_folder() / filename
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(source, target)
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise PretrainedError(
            f"cannot download {source} ({reason}). Put the file at {target}, or give its path as "
            "MODEL.PRETRAINED, or go on without pretrained weights: --opts MODEL.PRETRAINED False") from None
    return target


def _download(url: str, target: Path) -> None:
    expected = re.search(r"-([0-9a-f]{8,64})\.", target.name)
    digest = hashlib.sha256()
    handle, temporary = tempfile.mkstemp(prefix=target.name + ".", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            size = int(answer.headers.get("Content-Length") or 0) or None
            with bar(total=size, unit="B", unit_scale=True, desc=target.name) as progress:
                while block := answer.read(1 << 20):
                    file.write(block)
                    digest.update(block)
                    progress.update(len(block))
            if size is not None and progress.n != size:
                raise PretrainedError(f"{url} broke off after {progress.n} of {size} bytes: try again")
        if expected and not digest.hexdigest().startswith(expected[1]):
            raise PretrainedError(f"{url} gave another file than its name says (its SHA-256 begins with "
                                  f"{digest.hexdigest()[:8]}, not {expected[1]}): nothing was kept")
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def pretrained_file(kind: str, source: bool | str = True) -> Path:
    """The local file of load_pretrained's source, fetched if need be. Raises PretrainedError."""
    return fetch(BASE_URL + FILES[kind] if source is True else str(source))


def load_pretrained(backbone: Module, kind: str, source: bool | str = True) -> LoadReport:
    """Gives a backbone the weights of a file.

    kind: "resnet18", "resnet34" or "resnet50".
    source: True (the published ImageNet file), a path or a URL; a state dict or a checkpoint with one
        under "model" or "state_dict".

    Raises PretrainedError where the file cannot be had, cannot be read, or lacks weights.
    """
    path = pretrained_file(kind, source)
    from ..checkpoint import load, weights

    try:
        loaded = load(path)
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{path}: cannot be read as weights: {error}") from error
    state = weights(loaded)
    if state is None:
        raise PretrainedError(f"{path} holds no state dict but a {type(loaded).__name__} without tensors")
    try:
        report = backbone.load_state_dict(state, strict=False)
    except ValueError as error:
        raise PretrainedError(f"{path} does not fit {kind}: {error}") from None
    absent = [name for name in report.missing if not name.endswith("num_batches_tracked")]
    if absent:
        raise PretrainedError(f"{path} lacks {len(absent)} of {kind}'s weights, such as {absent[0]}")
    return report
