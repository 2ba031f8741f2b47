"""Checkpoints from one container to another, and what is in one.

    python -m asenpp.convert IN OUT       OUT: PyTorch's ZIP container, or *.safetensors
    python -m asenpp.convert --info IN    every tensor's name, dtype, shape and bytes, none of them loaded

IN may be any container that `asenpp.load` reads. Safetensors hold one flat dictionary of tensors: of
a checkpoint they get the state dict under "model" or "state_dict", and its text and numbers as
metadata; of safetensors the ZIP container gets the tensors alone. What is left out is named.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .checkpoint import BFloat16, CheckpointError, TensorInfo, inspect, load, save

MAX_DEPTH = 100


def tensors(obj: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, TensorInfo]]:
    """(dotted name, what is known of it) of all tensors in an object that `inspect` gave."""
    if isinstance(obj, TensorInfo):
        yield prefix or "(the object itself)", obj
    elif depth > MAX_DEPTH:
        raise CheckpointError(f"{prefix[:80]}… lies deeper than {MAX_DEPTH} levels")
    elif isinstance(obj, (Mapping, list, tuple)):
        for key, value in obj.items() if isinstance(obj, Mapping) else enumerate(obj):
            if isinstance(value, (TensorInfo, Mapping, list, tuple)):
                yield from tensors(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)


def flat(obj: Any) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """(tensors, metadata, names of what safetensors cannot hold) of a loaded object."""
    if not isinstance(obj, Mapping):
        raise CheckpointError(f"safetensors hold a dictionary of tensors, and this is a {type(obj).__name__}")
    metadata = dict(getattr(obj, "metadata", {}))
    left_out = []
    key = next((key for key in ("model", "state_dict") if isinstance(obj.get(key), Mapping)), None)
    if key is not None:
        for name, value in obj.items():
            if isinstance(value, (str, int, float)) and isinstance(name, str):
                metadata[name] = str(value)
            elif name != key:
                left_out.append(str(name))
        obj = obj[key]
    held = {}
    for name, value in obj.items():
        if isinstance(name, str) and isinstance(getattr(value, "shape", None), tuple) and (
                isinstance(value, BFloat16) or hasattr(value, "strides")):
            held[name] = value
        else:
            left_out.append(str(name))
    if not held:
        raise CheckpointError("there are no tensors under 'model' or 'state_dict', nor in the object itself")
    return held, metadata, left_out


def convert(source: str, target: str) -> list[str]:
    """Writes what `source` holds to `target`; gives the names of what was left out."""
    obj = load(source)
    if not target.endswith(".safetensors"):
        save(obj, target)
        return [f"metadata {name}" for name in getattr(obj, "metadata", {})]
    try:
        held, metadata, left_out = flat(obj)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    save(held, target, metadata=metadata)
    return left_out


def _show(path: str) -> None:
    container, obj = inspect(path)
    rows = [(name, info.dtype, "×".join(map(str, info.shape)) or "()", f"{info.nbytes}")
            for name, info in tensors(obj)]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
    print(f"{path}: {container}, {os.path.getsize(path)} bytes")
    for name, dtype, shape, nbytes in rows:
        text = f"{name:{widths[0]}}  {dtype:{widths[1]}}  {shape:{widths[2]}}  {nbytes:>{widths[3]}}"
        print("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text))
    print(f"{len(rows)} tensors, {sum(int(row[3]) for row in rows)} bytes")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, or 1 after an error that it has told."""
    parser = argparse.ArgumentParser(prog="python -m asenpp.convert", description="Converts and lists checkpoints.")
    parser.add_argument("source", metavar="IN", help="a checkpoint: PyTorch's ZIP, stream or tar container, safetensors")
    parser.add_argument("target", metavar="OUT", nargs="?", help="*.safetensors, or another name for PyTorch's ZIP container")
    parser.add_argument("--info", action="store_true", help="list the tensors of IN without loading them")
    options = parser.parse_args(arguments)
    if options.info == (options.target is not None):
        parser.error("give IN and OUT, or --info and IN")
    try:
        if options.info:
            _show(options.source)
        else:
            left_out = convert(options.source, options.target)
            if left_out:
                names = ", ".join(left_out[:5]) + (", …" if len(left_out) > 5 else "")
                print(f"{options.target}: there is no place in it for {names}: left out",
                      file=sys.stderr)
    except MemoryError as error:  # a tensor with strides of zero may be larger than its file
        print(f"error: {options.source}: its tensors need more memory than there is ({error})", file=sys.stderr)
        return 1
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
