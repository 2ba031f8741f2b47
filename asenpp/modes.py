"""Switches of a thread that are on within a block: no_grad, autocast.

A mode is a context manager and a decorator. One object may be entered again while it is entered, and in several
threads at once: what was before is kept by thread, the latest first. Decorated generators and coroutines have the mode
on while they run, not while they are suspended, as in PyTorch.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from . import _asen

__all__ = ["Mode"]


class Mode:
    """read: gives the switch of this thread; write: sets it; value: to what (left out: it stays as it is).

    Entering and leaving are one C call each, so that Ctrl-C finds the mode on within the block and nowhere else;
    therefore `read` and `write` are to be C functions.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], Any], *value: Any) -> None:
        self._before: dict[int, list[Any]] = {}     # by thread
        self._enter = functools.partial(_asen.enter_mode, self._before, read, write, *value)
        self._exit = functools.partial(_asen.leave_mode, self._before, write)

    if TYPE_CHECKING:
        def __enter__(self) -> None: ...
        def __exit__(self, *exception: Any) -> None: ...
    else:
        __enter__ = property(operator.attrgetter("_enter"))
        __exit__ = property(operator.attrgetter("_exit"))

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with the mode on. TypeError for asynchronous generators."""
        if inspect.isasyncgenfunction(function):
            raise TypeError(f"{type(self).__name__} cannot decorate the asynchronous generator {function.__name__}: "
                            "use `with` around what it computes, between its yields")
        if inspect.isgeneratorfunction(function):
            @functools.wraps(function)
            def generator(*arguments: Any, **named: Any) -> Any:
                return (yield from self._stepwise(function(*arguments, **named)))

            return generator
        if inspect.iscoroutinefunction(function):
            @functools.wraps(function)
            async def coroutine(*arguments: Any, **named: Any) -> Any:
                return await _Awaitable(self._stepwise(function(*arguments, **named)))

            return coroutine

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            with self:
                return function(*arguments, **named)

        return call

    def _stepwise(self, inner: Any) -> Generator[Any, Any, Any]:
        """A generator or coroutine with the mode on at each of its steps."""
        step, sent = inner.send, None
        try:
            while True:
                with self:
                    result = step(sent)
                try:
                    sent, step = (yield result), inner.send
                except GeneratorExit:
                    with self:
                        inner.close()
                    raise
                except BaseException as error:
                    sent, step = error, inner.throw
        except StopIteration as end:
            return end.value


class _Awaitable:
    def __init__(self, steps: Generator[Any, Any, Any]) -> None:
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._steps
