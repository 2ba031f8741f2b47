"""The one source of random numbers for initial weights and dropout.

A NumPy generator (PCG64) per process, seeded by `manual_seed`. Its state is a tree of plain ints
and text, so that a checkpoint can hold it as JSON and a resumed run draws on as if never stopped.
Triplets are drawn with Python's own `random`, elsewhere: their order is the published one.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

__all__ = ["manual_seed", "generator", "dropout_seed", "get_state", "set_state"]

_generator: np.random.Generator | None = None


def manual_seed(seed: int) -> None:
    """Seeds the initialisers and dropout. seed: an int, 0 or more."""
    global _generator
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"manual_seed: a seed is an int of 0 or more, not {seed!r}")
    _generator = np.random.Generator(np.random.PCG64(int(seed)))


def generator() -> np.random.Generator:
    """The generator, made with seed 0 on first use."""
    if _generator is None:
        manual_seed(0)
    assert _generator is not None
    return _generator


def dropout_seed() -> int:
    """A seed for one dropout call, in [0, 2**63)."""
    return int(generator().integers(0, 2**63, dtype=np.uint64))


def get_state() -> dict[str, Any]:
    """The generator's state: plain ints and text, for `set_state` (and JSON)."""
    return _plain(generator().bit_generator.state)


def set_state(state: dict[str, Any]) -> None:
    """Takes up where `get_state` left off."""
    bits = np.random.PCG64(0)
    try:
        bits.state = state
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not the state of asenpp's random generator: {error!r}") from None
    global _generator
    _generator = np.random.Generator(bits)


def _in_child() -> None:
    """A forked child draws on from the same state, with a lock that no thread of the parent's holds."""
    if _generator is not None:
        set_state(get_state())


os.register_at_fork(after_in_child=_in_child)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value if isinstance(value, str) else int(value)
