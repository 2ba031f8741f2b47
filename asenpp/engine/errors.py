"""What the engine raises for things that a user can put right: one line, with the remedy."""

from __future__ import annotations

__all__ = ["EngineError", "Interrupted", "mistakes"]


class EngineError(RuntimeError):
    """Training or evaluation cannot go on; the message says why and what to do."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM was taken notice of; what was to be saved has been saved.

    remedy: how to go on.
    """

    def __init__(self, remedy: str = "") -> None:
        super().__init__(remedy)
        self.remedy = remedy


def mistakes() -> tuple[type[BaseException], ...]:
    """What a command line reports in one line: everything else is a bug and keeps its traceback."""
    from ..checkpoint import CheckpointError
    from ..config import ConfigError
    from ..data.index import DataError
    from ..models import PretrainedError

    return ConfigError, CheckpointError, DataError, PretrainedError, EngineError, OSError, MemoryError
