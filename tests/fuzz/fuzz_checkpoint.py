"""Mutated checkpoints: fuzz_checkpoint.py [--count N] [--seed S] [--seconds T].

Every container that asenpp.checkpoint reads gets its seed files here (PyTorch's old stream is made
by torch, and left out with a word where torch is absent), and `asenpp.checkpoint.load` is called on
mutations of them. A case fails when it raises anything but CheckpointError or OSError, allocates
over 64 MB beyond the file's size (tracemalloc, which NumPy reports to), takes over a second of
processor time, or starts, imports or evaluates anything (an audit hook). Maps of the file are not allocations.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import io
import json
import os
import pathlib
import random
import struct
import sys
import tempfile
import time
import tracemalloc
import zipfile
import zlib

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from asenpp import checkpoint  # noqa: E402

ROOM = 64 << 20
SECOND = 1.0
FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "exec", "compile", "import",
             "os.remove", "os.rename", "socket.connect", "ctypes.dlopen", "pickle.find_class")
_armed = False
_caught: list[str] = []


def _audit(event, args):
    if _armed and event in FORBIDDEN:
        _caught.append(f"{event}{args!r:.200}")


sys.addaudithook(_audit)


def _object():
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    state = collections.OrderedDict(weight=weights, part=weights[1:], half=np.ones(2, np.float16),
                                    flag=np.array([True, False]), steps=np.array(3, np.int64))
    return {"epoch": 2, "lr": 0.1, "name": "asen", "state": state, "list": [1, (2, None, b"x"), True]}


def make_seeds(folder: pathlib.Path) -> dict[str, bytes]:
    """name -> bytes of whole files."""
    checkpoint.save(_object(), folder / "seed")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
                         "__metadata__": {"a": "b"}}).encode()
    seeds = {"zip": (folder / "seed").read_bytes(),
             "safetensors": struct.pack("<Q", len(header)) + header + np.ones(4, np.float32).tobytes()}
    try:
        import torch
    except ImportError:
        print("no torch here: PyTorch's stream container is not among the seeds")
    else:
        out = io.BytesIO()
        torch.save({"w": torch.ones(2, 3), "n": 1, "l": [torch.zeros(2, dtype=torch.int64)]}, out,
                   _use_new_zipfile_serialization=False)
        seeds["stream"] = out.getvalue()
    return seeds


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to six changes: bits, bytes, lengths, ranges, an end."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at, kind = rng.randrange(len(data) or 1), rng.randrange(16)
        length = rng.randint(1, 24)
        if not data:
            break
        if kind < 5:
            data[at] ^= 1 << rng.randrange(8)
        elif kind < 8:
            data[at] = rng.randrange(256)
        elif kind < 11:
            size = rng.choice((1, 2, 4, 8))
            value = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, len(data)))
            data[at:at + size] = (value & (256**size - 1)).to_bytes(size, "little")
        elif kind < 12:
            del data[at:at + length]
        elif kind < 13:
            data[at:at] = data[at:at + length]
        elif kind < 15:
            other = rng.randrange(len(data))
            data[at:at + length] = data[other:other + length]
        elif rng.randrange(6) == 0:
            del data[at:]
    return bytes(data)


def mutate_pickle(data: bytes, rng: random.Random) -> bytes:
    """The ZIP container again, whole and with right checksums, around a mutated pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            record = old.read(info)
            new.writestr(info.filename, mutate(record, rng) if info.filename.endswith(".pkl") else record)
    return out.getvalue()


def check(data: bytes, path: str, **options) -> str | None:
    """None, or what is wrong with how `data` was read. tracemalloc must run."""
    global _armed
    with open(path, "wb") as file:
        file.write(data)
    tracemalloc.reset_peak()
    before, start = tracemalloc.get_traced_memory()[0], time.process_time()
    wrong, _armed = None, True
    try:
        checkpoint.load(path, **options)
    except (checkpoint.CheckpointError, OSError):
        pass
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        wrong = f"{type(error).__name__}: {error}"
    finally:
        _armed = False
    spent, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1] - before
    if _caught:
        wrong = f"it did {_caught.pop()}"
        _caught.clear()
    if peak > len(data) + ROOM:
        wrong = f"{peak} bytes allocated for a file of {len(data)}"
    if spent > SECOND:
        wrong = f"{spent:.2f} s"
    return wrong


def fuzz(count: int, seed: int, seconds: float | None = None) -> int:
    """How many cases went wrong; each is kept as a file beside the report."""
    rng = random.Random(seed)
    folder_of = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    failures = done = 0
    with tempfile.TemporaryDirectory(dir=folder_of) as folder:
        seeds = make_seeds(pathlib.Path(folder))
        names, path = sorted(seeds), os.path.join(folder, "case")
        tracemalloc.start(1)
        for name in names:
            check(seeds[name], path)  # imports whatever reading needs
            _caught.clear()
        for codec in ("ascii", "latin-1", "utf-8", "raw-unicode-escape", "unicode-escape", "cp437"):
            codecs.lookup(codec)  # Python imports a codec when it is first used
        start = time.monotonic()
        for done in range(1, count + 1):
            name = rng.choice(names)
            if name == "zip" and rng.random() < 0.5:
                data = mutate_pickle(seeds[name], rng)
            else:
                data = mutate(seeds[name], rng)
            wrong = check(data, path, writable=rng.random() < 0.5, verify=rng.random() < 0.2)
            if wrong:
                failures += 1
                kept = os.path.join(tempfile.gettempdir(), f"asenpp-fuzz-{zlib.crc32(data):08x}")
                with open(kept, "wb") as file:
                    file.write(data)
                print(f"case {done} ({name}): {wrong}; kept as {kept}", flush=True)
            if seconds is not None and time.monotonic() - start > seconds:
                break
        tracemalloc.stop()
        spent = time.monotonic() - start
    print(f"{done} cases of {', '.join(names)}, {done / max(spent, 1e-9):.0f}/s, {failures} went wrong")
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float)
    given = parser.parse_args()
    sys.exit(bool(fuzz(given.count, given.seed, given.seconds)))
