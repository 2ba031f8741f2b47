"""Small files that ask for much: bombs.py holds each to the bounds of fuzz_checkpoint.check.

Mutations hardly ever make these: they spend the most memory or time that a kind of opcode, or of header, can
be made to. Prints what went wrong; the exit status says whether anything did.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

import fuzz_checkpoint as fuzz
from fuzz_checkpoint import checkpoint, kit


def small(number: int) -> bytes:
    return b"J" + number.to_bytes(4, "little")


def safetensors_bombs() -> dict[str, bytes]:
    wide = "\U0001F600".encode()
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    headers = {"many numbers": b'{"a":[' + b"1," * 199_990 + b"1]}",
               "many objects": b'{"a":[' + b",".join([b'{"b":1}'] * 99_000) + b"]}",
               "more parts than are read": b'{"a":[' + b"1," * 400_000 + b"1]}",
               "a wide name": b'{"a":"' + wide + b"a" * ((4 << 20) - 100) + b'"}',
               "escapes": b'{"a":"' + b"\\n" * ((2 << 20) - 100) + b'"}',
               "nested lists": b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}",
               "a long number": b'{"a":' + b"1" * 3_000_000 + b"}",
               "many tensors": json.dumps({str(i): empty for i in range(20_000)}).encode()}
    return {f"safetensors: {name}": kit.safetensors_file(header) for name, header in headers.items()}


def pickle_bombs() -> dict[str, bytes]:
    """By name, pickles without PROTO and STOP."""
    n = 1_000_000
    ordered, wide = b"ccollections\nOrderedDict\nq\0", "\U0001F600" + "a" * ((4 << 20) - 8)
    pairs = b"".join(small(i) + b"N\x86" for i in range(20_000))
    return {
        "marks": b"N" * 300 + b"(" * n, "copies": b"N" + b"2" * n, "copies dropped": b"N" + b"20" * n,
        "lists": b"(" + b"]" * n + b"l", "dicts": b"(" + b"}" * n + b"l", "ordered dicts": ordered + b"(" + b"h\0)R" * n + b"l",
        "lists with an element": b"Nq\0(" + b"(h\0l" * n + b"l", "tuples": b"(" + b"N\x85" * n + b"l",
        "nested tuples": b"N" + b"\x85" * n, "nested lists": b"]" * n + b"a" * (n - 1),
        "memo": b"N" + b"".join(b"r" + i.to_bytes(4, "little") for i in range(n)), "memoize": b"N" + b"\x94" * n,
        "integers": b"(" + b"M\xff\xff" * n + b"l", "floats": b"(" + b"G12345678" * n + b"l",
        "long integers": b"(" + (b"\x8a\xff" + b"\x7f" * 255) * 50_000 + b"l", "digits": b"L" + b"1" * 5_000_000 + b"\n",
        "strings": b"(" + kit.text("a") * n + b"l", "wide strings": b"(" + kit.text(wide) * 4 + b"l",
        "keys": b"}(" + b"".join(small(i) + b"N" for i in range(300_000)) + b"u",
        "keys one by one": b"}" + b"".join(small(i) + b"Ns" for i in range(300_000)),
        "copies of a dict": ordered + b"](" + pairs + b"eq\1(" + b"h\0h\1\x85R" * 1000 + b"l",
        "copies of bytes": (b"c_codecs\nencode\nq\0" + kit.text("a" * (4 << 20)) + b"q\1" + kit.text("latin1") + b"q\2("
                            + b"h\0h\1h\2\x86R" * 100 + b"l"),
        "scalars": (b"cnumpy.core.multiarray\nscalar\nq\0cnumpy\ndtype\nX\2\0\0\0f8\x85Rq\1("
                    + b"h\0h\1C\x0812345678\x86R" * 200_000 + b"l"),
        "an exponential value": b"N" + b"2\x86" * 60, "an exponential list": b"](NNeq\0" + b"0(h\0h\0lq\0" * 60,
    }


def colliding_keys(count: int) -> bytes:
    """A dict of tuples (a, b) with one hash: CPython's for two lanes, solved for b."""
    p1, p2, p5, mask = 11400714785074694791, 14029467366897019727, 2870177450012600261, (1 << 64) - 1

    def rotate(x: int, by: int = 31) -> int:
        return (x << by | x >> 64 - by) & mask

    first = rotate((p5 + 1 * p2) & mask) * p1 & mask
    target = (first + 7 * p2) & mask      # what the second lane adds to, for (1, 7)
    inverse, pairs, a = pow(p2, -1, 1 << 64), b"", 1
    while count:
        b = (target - rotate((p5 + a * p2) & mask) * p1) * inverse & mask
        if b < 1 << 60:
            assert hash((a, b)) == hash((1, 7))
            pairs += small(a) + b"\x8a\x08" + b.to_bytes(8, "little") + b"\x86N"
            count -= 1
        a += 1
    return b"}(" + pairs + b"u"


def bombs() -> dict[str, bytes]:
    pickles = pickle_bombs()
    if sys.implementation.name == "cpython":
        pickles["keys of one hash"] = colliding_keys(20_000)
    storage = b"ctorch\nFloatStorage\nq\0("
    pickles_of_storages = storage + b"".join(
        b"(" + kit.text("storage") + b"h\0" + kit.text(f"{i:06d}") + kit.text("cpu") + b"K\0NtQ0" for i in range(100_000)) + b"l"
    result = {name: kit.zip_file(None, pickle=b"\x80\x04" + body + b".") for name, body in pickles.items()}
    result["stream: storages"] = kit.stream_file(None, pickle=b"\x80\x02" + pickles_of_storages + b".")
    result["stream: the list of keys"] = kit.stream_file(None)[:-4] + b"](" + kit.text("a") * 900_000 + b"e."
    entry = kit.dump((0, "cpu", kit.Global("torch", "FloatStorage")))
    members = kit.tar_members({})
    result["tar: storages"] = kit.tar_of({**members, "storages": kit.dump(19_999) + b"".join(
        kit.dump((i, "cpu", kit.Global("torch", "FloatStorage"))) + bytes(8) for i in range(19_999)) + kit.dump([])})
    result["tar: more storages than are read"] = kit.tar_of({**members, "storages": kit.dump(1 << 60) + entry})
    return result | safetensors_bombs()


if __name__ == "__main__":
    cases, wrong = bombs(), {}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "case")
        fuzz.check(kit.zip_file({"a": "ä"}), path, checkpoint.load)  # imports what reading needs
        fuzz.arm()
        for name, data in cases.items():
            complaint, _ = fuzz.check(data, path, checkpoint.load)
            if complaint:
                wrong[name] = complaint
    print(f"{len(cases)} bombs", wrong)
    sys.exit(bool(wrong))
