"""Files written whole or not at all.

The new content goes to a temporary file in the target's folder, which is flushed to disk and then
renamed over the target; the folder is flushed last. Whatever fails before the rename leaves the
old file as it was. A temporary file is locked as long as its writer lives, so that the next writer
can tell what a killed one left behind, and remove it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not a Unix: leftovers stay
    fcntl = None

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _lock(descriptor: int, wait: bool) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held by a writer that lives, or a file system without locks
        return False
    return True


def _remove_leftovers(folder: str, prefix: str) -> None:
    """Removes what killed writers of this target left: temporary files that nobody has locked."""
    if fcntl is None:
        return
    ours = re.compile(re.escape(prefix) + r"[0-9a-f]{12}\.tmp")
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if not ours.fullmatch(name):
                continue
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    if _lock(descriptor, wait=False):
                        os.unlink(path)
                finally:
                    os.close(descriptor)


def _create(folder: str, prefix: str, path: str) -> tuple[int, str]:
    """A new temporary file, locked, with the permissions of the file at `path` if there is one.
    Another writer may take it for a leftover between its creation and its lock: then the next."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    while True:
        temporary = os.path.join(folder, f"{prefix}{secrets.token_hex(6)}.tmp")
        try:
            descriptor = os.open(temporary, flags, 0o666)
        except FileExistsError:
            continue
        _lock(descriptor, wait=True)
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(temporary), os.fstat(descriptor)):
                return descriptor, temporary
        os.close(descriptor)


def _explain(error: OSError, path: str, folder: str, needed: int | None) -> OSError:
    """The same error, saying what could not be written, how much it needs and what is free."""
    text = f"cannot write {path}: {os.strerror(error.errno) if error.errno else error}"
    if needed is not None:
        text += f"; {needed} bytes are needed"
    if error.errno in _FULL:
        with contextlib.suppress(OSError):
            text += f", {shutil.disk_usage(folder).free} are free in {folder}"
    text += "; the file there is unchanged" if os.path.exists(path) else "; nothing was written"
    return OSError(error.errno, text)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, needed: int | None = None) -> Iterator[BinaryIO]:
    """A binary file to write, which becomes `path` when the block ends without an exception.

    needed: the size it will have, for the message when the disk is full. A link is followed. An
    OSError of the writing is raised anew with a message that names path, bytes needed and free.
    Raises FileNotFoundError when the folder is missing, IsADirectoryError and ValueError when the
    target is a folder or something else that is no file.
    """
    path = os.path.realpath(os.fspath(path))
    folder, name = os.path.split(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, f"cannot write {path}: a folder is there")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"cannot write {path}: what is there is not a regular file")
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, f"cannot write {path}: the folder {folder} does not exist")

    prefix = f".{name}."
    _remove_leftovers(folder, prefix)
    temporary = None
    try:
        descriptor, temporary = _create(folder, prefix, path)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
            temporary = None
    except OSError as error:
        raise _explain(error, path, folder, needed) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot flush folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def copy_file(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies a file, whole or not at all: model_best from checkpoint. Raises FileNotFoundError
    when the source is missing, otherwise as `atomic_file`."""
    with open(source, "rb") as file:
        with atomic_file(target, needed=os.fstat(file.fileno()).st_size) as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
