"""Hooks of a module: functions that are called before and after its forward()."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

__all__ = ["Hooks", "RemovableHandle"]

_numbers = itertools.count()


class RemovableHandle:
    """What registering a hook returns; remove() takes the hook away, `with handle:` at the end of the block."""

    def __init__(self, table: dict[int, Any], number: int):
        self._table, self._number = table, number

    def remove(self) -> None:
        """Takes the hook away; once it is gone, nothing happens."""
        self._table.pop(self._number, None)

    def __enter__(self) -> "RemovableHandle":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.remove()


class Hooks:
    """The hooks of one module, in the order in which they are called: number -> (hook, with_kwargs)."""

    def __init__(self) -> None:
        self.before: dict[int, tuple[Callable[..., Any], bool]] = {}
        self.after: dict[int, tuple[Callable[..., Any], bool]] = {}

    def __copy__(self) -> "Hooks":
        twin = Hooks()
        twin.before.update(self.before)
        twin.after.update(self.after)
        return twin

    def __bool__(self) -> bool:
        return bool(self.before or self.after)

    def add_before(self, hook: Callable[..., Any], prepend: bool, with_kwargs: bool) -> RemovableHandle:
        return _added(self.before, hook, prepend, with_kwargs)

    def add_after(self, hook: Callable[..., Any], prepend: bool, with_kwargs: bool) -> RemovableHandle:
        return _added(self.after, hook, prepend, with_kwargs)

    def call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """module.forward(*args, **kwargs) with its hooks. One that is removed meanwhile is still called."""
        for hook, with_kwargs in list(self.before.values()):
            if with_kwargs:
                given = hook(module, args, kwargs)
                if given is not None:
                    if not (isinstance(given, tuple) and len(given) == 2):
                        raise RuntimeError(f"{type(module).__name__}: a forward pre-hook with kwargs returns None or "
                                           f"(args, kwargs), not {type(given).__name__}")
                    args, kwargs = given
            else:
                given = hook(module, args)
                if given is not None:
                    args = given if isinstance(given, tuple) else (given,)
        result = module.forward(*args, **kwargs)
        for hook, with_kwargs in list(self.after.values()):
            given = hook(module, args, kwargs, result) if with_kwargs else hook(module, args, result)
            if given is not None:
                result = given
        return result


def _added(table: dict[int, Any], hook: Callable[..., Any], prepend: bool, with_kwargs: bool) -> RemovableHandle:
    if not callable(hook):
        raise TypeError(f"a hook is a function, not {type(hook).__name__}")
    number = next(_numbers)
    table[number] = hook, bool(with_kwargs)
    if prepend:
        for other in [n for n in table if n != number]:
            table[other] = table.pop(other)
    return RemovableHandle(table, number)
