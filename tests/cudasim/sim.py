"""What tests ask the simulated device: faults, what is alive, failures on demand."""

from __future__ import annotations

import ctypes
from pathlib import Path


class Simulator:
    """The hooks of a library made by build.py; loads it as the device "cuda" unless told not to."""

    def __init__(self, path: str | Path, load: bool = True) -> None:
        path = str(Path(path).resolve())
        if load:
            from asenpp import _asen

            _asen.load_plugin(path)
        self.lib = lib = ctypes.CDLL(path)
        lib.cudasim_last_violation.restype = ctypes.c_char_p
        for name in ("live", "launches", "calls", "failed", "last_engine"):
            getattr(lib, f"cudasim_{name}").restype = ctypes.c_longlong
        for name in ("live_bytes", "pending"):
            getattr(lib, f"cudasim_{name}").restype = ctypes.c_ulonglong
        lib.cudasim_fail_with.argtypes = [ctypes.c_char_p, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_int]
        lib.cudasim_plan_needs.argtypes = [ctypes.c_ulonglong]
        lib.cudasim_seed.argtypes = [ctypes.c_ulonglong]
        lib.cudasim_report.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        lib.cudasim_call_table.argtypes = lib.cudasim_report.argtypes

    @staticmethod
    def _name(text: str | None) -> bytes | None:
        return None if text is None else text.encode()

    def violations(self) -> int:
        """Faults since the last reset: each was written to stderr (and to the file $CUDASIM_LOG)."""
        return self.lib.cudasim_violations()

    def last_violation(self) -> str:
        return self.lib.cudasim_last_violation().decode()

    def reset(self) -> None:
        """Takes faults back, and with them the error that made every later call fail."""
        self.lib.cudasim_reset()

    def live(self, kind: str | None = None) -> int:
        """Objects that exist: memory, host, stream, event, cublas, cudnn; None: all."""
        return self.lib.cudasim_live(self._name(kind))

    def live_bytes(self, kind: str | None = None) -> int:
        return self.lib.cudasim_live_bytes(self._name(kind))

    def _text(self, function: object) -> str:
        size = function(None, 0) + 1  # type: ignore[operator]
        buffer = ctypes.create_string_buffer(size)
        function(buffer, size)  # type: ignore[operator]
        return buffer.value.decode()

    def _table(self, function: object) -> dict[str, int]:
        rows = (line.rsplit(" ", 1) for line in self._text(function).splitlines())
        return {name: int(count) for name, count in rows}

    def report(self) -> str:
        """A line for each object that exists."""
        return self._text(self.lib.cudasim_report)

    def launches(self, kernel: str | None = None) -> int:
        """Kernels launched so far, by name (`sum_kernel<float, 4>`, as in the source) or all."""
        return self.lib.cudasim_launches(self._name(kernel))

    def call_table(self) -> dict[str, int]:
        """Calls by API function."""
        return self._table(self.lib.cudasim_call_table)

    def calls(self, name: str = "*") -> int:
        """How many calls that can be made to fail there were."""
        return self.lib.cudasim_calls(name.encode())

    def fail(self, name: str, nth: int, status: int = 0, times: int = 1) -> None:
        """The nth call of an API function from now ("*": of any) fails, and so many from it on, with this status (0: the
        function's own); nth 0: none."""
        self.lib.cudasim_fail_with(name.encode(), nth, times, status)

    def plan_needs(self, nbytes: int) -> None:
        """cuDNN makes plans only where so many bytes of the device's memory are free."""
        self.lib.cudasim_plan_needs(nbytes)

    def last_engine(self) -> int:
        """The engine of cuDNN's plan that was executed last."""
        return self.lib.cudasim_last_engine()

    def set_device(self, index: int) -> None:
        """Chooses a GPU for this thread, as another library may."""
        assert self.lib.cudasim_set_device(index)

    def get_device(self) -> int:
        """The GPU of this thread."""
        return self.lib.cudasim_get_device()

    def failed(self) -> int:
        return self.lib.cudasim_failed()

    def seed(self, seed: int) -> None:
        """Another order of blocks and threads."""
        self.lib.cudasim_seed(seed)

    def pending(self) -> int:
        """Pieces of work that are queued and have not run."""
        return self.lib.cudasim_pending()
