"""What a checkpoint that cannot be read or written raises."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file that is not a checkpoint this package reads, or an object that no checkpoint can
    hold. The message names the file (or the place in the object) and what was met."""
