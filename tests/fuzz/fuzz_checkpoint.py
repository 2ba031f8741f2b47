"""Mutated checkpoints: fuzz_checkpoint.py [--count N] [--seed S] [--seconds T].

`asenpp.checkpoint.load` and `inspect` are called on mutations of a file of every container that they read
(both byte orders, ZIP64, files of GPUs among them; see `make_seeds`). Half of the mutations leave the
container whole (lengths, checksums) and change what is in it. A case fails when it

    raises anything but CheckpointError or OSError,
    takes over a second of processor time (a timer of the system's),
    needs over 64 MB beyond the file's size: the process may not have more address space than
        that beyond what it had before the first case (RLIMIT_AS; so whatever a case leaves behind
        counts, too), or
    starts, imports or evaluates anything (an audit hook).

A crash ends the process, and with it the run; the file that did it is named by ASENPP_FUZZ_LAST.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import errno
import functools
import io
import os
import pathlib
import pickletools
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile
import zlib

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import checkpoint_kit as kit  # noqa: E402
from asenpp import checkpoint  # noqa: E402

HEADROOM = 64 << 20
SECOND = 1.0
TOUCHED = 1 << 20  # a tensor of more bytes, which takes strides of zero, is not read through
FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "exec", "compile", "import",
             "os.remove", "os.rename", "socket.connect", "ctypes.dlopen", "pickle.find_class")
OPCODES = b"(.0125FIJKLMNPQRSTUVXabcdeghijlopqrstu}])BC" + bytes(range(0x80, 0x99))
PIECES = [b"N", b"K\1", b"\x8a\1\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"G" + bytes(8), b"C\1x", kit.text("a"), kit.text("storage"),
          b")", b"]", b"}", b"(", b"0", b"1", b"2", b"\x85", b"\x86", b"\x87", b"t", b"l", b"d", b"a", b"e", b"s", b"u", b"R",
          b"\x81", b"b", b"Q", b"q\0", b"h\0", b"h\1", b"h\2", b"ctorch\nFloatStorage\n", b"ctorch\nuint16\n", b"ctorch\nSize\n",
          b"ctorch.storage\nUntypedStorage\n", b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch._utils\n_rebuild_parameter\n",
          b"ccollections\nOrderedDict\n", b"c_codecs\nencode\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\nscalar\n",
          b"ctorch.nn.parameter\nParameter\n", b"ctorch\ndevice\n", b"cos\nsystem\n"]
_armed = False
_caught: list[str] = []
_address_space = 0  # of the process before the first case


class Hang(BaseException):
    """What the timer raises."""


def _audit(event, args):
    if _armed and event in FORBIDDEN:
        _caught.append(f"{event}{args!r:.200}")


def _alarm(number, frame):
    raise Hang(f"{SECOND} s and still at work")


def _object():
    weights = kit.Storage(np.arange(12, dtype=np.float32), location="cuda:0")
    state = collections.OrderedDict(weight=kit.Tensor(weights, 0, (3, 4), (4, 1)), part=kit.Tensor(weights, 4, (2, 2), (1, 2)),
                                    wide=kit.Tensor(weights, 1, (5, 3), (0, 1)), half=kit.tensor(np.ones(2, np.float16)),
                                    brain=kit.Tensor(kit.Storage(np.ones(2, np.int16), "BFloat16"), 0, (2,), (1,)),
                                    flag=kit.tensor(np.array([True, False])), steps=kit.tensor(np.array([3])))
    state._metadata = collections.OrderedDict({"": {"version": 2}})
    return {"epoch": 2, "lr": 0.1, "name": "asen", "state": state, "list": [1, (2, None, -5), True],
            "size": kit.Call(kit.Global("torch", "Size"), ((1, 2),)), "dtype": kit.Global("torch", "float16"),
            "scalar": kit.Call(kit.Global("numpy.core.multiarray", "scalar"), (
                kit.Raw(b"cnumpy\ndtype\n(X\2\0\0\0f8K\0K\1tR(K\3X\1\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"),
                kit.Call(kit.Global("_codecs", "encode"), ("\0" * 6 + "\xf0?", "latin1"))))}


def make_seeds(folder: pathlib.Path) -> dict[str, bytes]:
    """name -> bytes of whole files; a name begins with its container's."""
    w = np.arange(12, dtype=np.float32).reshape(3, 4)
    checkpoint.save({"epoch": 2, "state": collections.OrderedDict(w=w, v=w[1:], n=np.uint32([1, 2]), b=b"x")}, folder / "seed")
    seeds = {"zip of ours": (folder / "seed").read_bytes()}
    checkpoint.save({"w": w, "h": w[0].astype(np.float16), "f": w > 3}, folder / "s.safetensors", metadata={"a": "b"})
    seeds["safetensors"] = (folder / "s.safetensors").read_bytes()
    seeds |= {"zip": kit.zip_file(_object()), "zip big": kit.zip_file(_object(), "big"),
              "zip 64": kit.zip_file(_object(), None, zip64=True), "stream": kit.stream_file(_object()),
              "stream big": kit.stream_file(_object(), "big")}
    state = _object()["state"]
    parameter = kit.Raw(b"ctorch.nn.parameter\nParameter\n)\x81(M\xe8\x03Q\x88ccollections\nOrderedDict\n)RNtb")
    view = {7: (state["weight"].storage, 2, 4)}
    seeds["tar"] = kit.tar_file({**state, "p": parameter}, views=view)
    seeds["tar big"] = kit.tar_file({**state, "p": parameter}, order="big", views=view)
    return seeds


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A change or a few: bits, bytes, lengths, opcodes, ranges, an end."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if not data:
            break
        at, kind, length = rng.randrange(len(data)), rng.randrange(18), rng.randint(1, 24)
        if kind < 5:
            data[at] ^= 1 << rng.randrange(8)
        elif kind < 8:
            data[at] = rng.randrange(256)
        elif kind < 10:
            size = rng.choice((1, 2, 4, 8))
            value = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, len(data), rng.randrange(1 << 24)))
            data[at:at + size] = (value & (256**size - 1)).to_bytes(size, rng.choice(("little", "big")))
        elif kind < 12:
            data[at:at + rng.randrange(2)] = bytes([rng.choice(OPCODES)])
        elif kind < 13:
            del data[at:at + length]
        elif kind < 14:
            data[at:at] = data[at:at + length] * rng.choice((1, 1, 1, 50))
        elif kind < 17:
            other = rng.randrange(len(data))
            data[at:at + length] = data[other:other + length]
        elif rng.randrange(6) == 0:
            del data[at:]
    return bytes(data)


@functools.lru_cache(maxsize=64)
def operations(data: bytes) -> tuple[tuple[bytes, ...], int]:
    """The opcodes of the pickle that `data` begins with, their arguments included, and where it ends."""
    starts = [position for _, _, position in pickletools.genops(data)]
    ends = [*starts[1:], starts[-1] + 1]
    return tuple(data[start:end] for start, end in zip(starts, ends)), ends[-1]


def mutate_opcodes(data: bytes, rng: random.Random) -> bytes:
    """`data` with whole opcodes of its pickle gone, doubled, swapped or replaced: it parses, and means something else."""
    steps, end = operations(data)
    changed = list(steps)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if len(changed) < 2:
            break
        at, other = rng.randrange(1, len(changed)), rng.randrange(1, len(changed))
        kind = rng.randrange(6)
        if kind == 0:
            del changed[at]
        elif kind == 1:
            changed.insert(other, changed[at])
        elif kind == 2:
            changed[at], changed[other] = changed[other], changed[at]
        elif kind == 3:
            changed[at] = changed[other]
        else:
            changed[at:at + kind - 4] = [rng.choice(PIECES)]
    return b"".join(changed) + data[end:]


def mutate_inside(name: str, data: bytes, rng: random.Random) -> bytes:
    """The container whole, with right lengths and checksums, around something changed."""
    if name.startswith("zip"):
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            for info in old.infolist():
                record = old.read(info)
                change = rng.choice((mutate, mutate_opcodes)) if info.filename.endswith(".pkl") else lambda data, rng: data
                new.writestr(info.filename, change(record, rng))
        return kit.zip64_end(out.getvalue()) if "64" in name else out.getvalue()
    if name.startswith("tar"):
        members, at = {}, 0
        while data[at:at + 1] != b"\0":
            size = int(data[at + 124:at + 135], 8)
            members[data[at:at + 100].rstrip(b"\0").decode()] = data[at + 512:at + 512 + size]
            at += 512 + -(-size // 512) * 512
        for member in rng.sample(sorted(members), rng.randint(1, 2)):
            members[member] = rng.choice((mutate, mutate_opcodes))(members[member], rng)
        return kit.tar_of(members)
    if name == "safetensors":
        (length,) = struct.unpack_from("<Q", data)
        return kit.safetensors_file(mutate(data[8:8 + length], rng), data[8 + length:])
    place = 0
    for _ in range(rng.choice((2, 3, 3, 3, 4))):  # of the stream's five pickles
        place += operations(data[place:])[1]
    return data[:place] + mutate_opcodes(data[place:], rng)


def touch(value) -> None:
    """Reads every element, so that one outside the file is a crash."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            touch(item)
    elif getattr(value, "nbytes", TOUCHED) < TOUCHED:
        np.asarray(value).tobytes()


def check(data: bytes, path: str, read, **options) -> tuple[str | None, bool]:
    """(None or what is wrong with how `data` was read, whether it was taken for a checkpoint)."""
    global _armed
    with open(path, "wb") as file:
        file.write(data)
    wrong, taken = None, False
    _armed = True
    _limit(2 * len(data))  # the file's size, and its map
    signal.setitimer(signal.ITIMER_PROF, SECOND)
    try:
        touch(read(path, **options))
        taken = True
    except checkpoint.CheckpointError:
        pass
    except OSError as error:
        wrong = str(error) if error.errno == errno.ENOMEM else None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        wrong = f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        _armed = False
    if _caught:
        wrong = f"it did {_caught[0]}"
        _caught.clear()
    return wrong, taken


def _limit(more: int) -> None:
    if _address_space:
        resource.setrlimit(resource.RLIMIT_AS, (_address_space + HEADROOM + more, resource.getrlimit(resource.RLIMIT_AS)[1]))


def arm() -> None:
    """The audit hook, the timer's handler and the limit of address space, for this process."""
    global _address_space
    sys.addaudithook(_audit)
    signal.signal(signal.SIGPROF, _alarm)
    with open("/proc/self/statm") as file:
        _address_space = int(file.read().split()[0]) * resource.getpagesize()


def fuzz(count: int, seed: int, seconds: float | None = None) -> int:
    """How many cases went wrong; each is kept as a file beside the report."""
    rng = random.Random(seed)
    folder_of = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    failures = done = 0
    tried: collections.Counter = collections.Counter()
    accepted: collections.Counter = collections.Counter()
    with tempfile.TemporaryDirectory(dir=folder_of) as folder:
        seeds = make_seeds(pathlib.Path(folder))
        names, path = sorted(seeds), os.environ.get("ASENPP_FUZZ_LAST") or os.path.join(folder, "case")
        for name in names:  # this imports whatever reading needs, too
            for writable in (False, True):
                wrong, taken = check(seeds[name], path, checkpoint.load, writable=writable, verify=True)
                if wrong or not taken:
                    raise SystemExit(f"the seed {name} itself is not read ({wrong})")
        for codec in ("ascii", "latin-1", "utf-8", "cp437"):
            codecs.lookup(codec)  # Python imports a codec when it is first used
        arm()
        start = time.monotonic()
        for done in range(1, count + 1):
            name = rng.choice(names)
            data = (mutate_inside(name, seeds[name], rng) if rng.random() < 0.5 else mutate(seeds[name], rng))
            if rng.random() < 0.2:
                wrong, taken = check(data, path, checkpoint.inspect)
            else:
                wrong, taken = check(data, path, checkpoint.load, writable=rng.random() < 0.5, verify=rng.random() < 0.2)
            tried[name] += 1
            accepted[name] += taken
            if wrong:
                failures += 1
                kept = os.path.join(tempfile.gettempdir(), f"asenpp-fuzz-{zlib.crc32(data):08x}")
                with open(kept, "wb") as file:
                    file.write(data)
                print(f"case {done} ({name}): {wrong}; kept as {kept}", flush=True)
            if seconds is not None and time.monotonic() - start > seconds:
                break
        spent = time.monotonic() - start
    shares = ", ".join(f"{name} {tried[name]} ({100 * accepted[name] // tried[name]} % read)" for name in sorted(tried))
    print(f"{done} cases, {done / max(spent, 1e-9):.0f}/s, {failures} went wrong: {shares}")
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float)
    given = parser.parse_args()
    sys.exit(bool(fuzz(given.count, given.seed, given.seconds)))
