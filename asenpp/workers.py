"""Threads that work for a calling thread, which an exception may leave at any instruction.

Python's own means (threading.Condition, Event and Semaphore, queue.Queue, ThreadPoolExecutor, Thread.start and join)
take and release locks in Python code: a KeyboardInterrupt in between leaves a lock held, and whoever wants it next
waits for ever. Here an exception in the calling thread is harmless. Invariants:

- The calling thread takes no lock. It hands over by operations that are whole in C (put and get of a SimpleQueue,
  append and popleft of a deque, storing an attribute), and waits in SimpleQueue.get alone, which looks at signals.
- What it hands over is a state, not a change of one: whoever reads it acts on what is there, so that what an exception
  cut short is made good by doing it again.
- Every wait has a queue of its own: what was put there for a wait that was left, nobody else is waiting for.
- Locks are held by the threads made here only; no signal handler runs in those.
"""

from __future__ import annotations

import _thread
import atexit
import os
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

__all__ = ["Event", "Workers"]


class Event:
    """threading.Event without a lock: it is set once, and who waits is woken."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[SimpleQueue] = []

    def set(self) -> None:
        self._is_set = True
        for queue in list(self._waiting):
            queue.put(None)

    def is_set(self) -> bool:
        return self._is_set

    def wait(self) -> None:
        mine: SimpleQueue = SimpleQueue()
        self._waiting.append(mine)      # first: who sets the event looks at the list after
        if not self._is_set:
            mine.get()


class Workers:
    """Threads that call what is submitted, the oldest first. They begin as tasks come.

    count: how many; fewer where the system gives no more. owner: when it is gone, they end. A task must not raise.
    In a forked child there are no threads, and tasks are not taken up.
    """

    def __init__(self, count: int, owner: object = None) -> None:
        self._tasks: SimpleQueue = SimpleQueue()    # None: end
        self._closed = False
        self._asked, self._count = 0, count         # threads: what the caller counts may fall short,
        self._places = deque(range(count))          # so each takes a place, or ends at once
        self._alive: deque[int] = deque()           # idents
        self._ended = Event()
        self._process = os.getpid()
        if owner is not None:                       # all of it in C, unlike a __del__, which can be cut short
            self._owner = weakref.ref(owner, partial(self._tasks.put, None))

    def submit(self, task: Callable[[], object]) -> None:
        """Has a thread call `task`. Does nothing after close(). RuntimeError where the system gives no thread at all."""
        if self._closed:
            return
        if self._asked < self._count:
            try:
                # Not threading.Thread: its start() and join() hold locks in Python code.
                _thread.start_new_thread(self._run, ())
            except RuntimeError:
                if not self._asked:
                    raise
            self._asked += 1
        self._tasks.put(task)

    def close(self) -> None:
        """Ends the threads after the task that each is at, and waits for them; what waits is dropped.

        Calling it again, also after an exception cut it short, is harmless.
        """
        self._closed = True
        self._tasks.put(None)
        if self._process == os.getpid() and self._alive and _thread.get_ident() not in self._alive:
            self._ended.wait()

    def _run(self) -> None:
        """A thread."""
        self._alive.append(_thread.get_ident())     # then looks at _closed; close() does the reverse
        _running.add(self)
        if self._places and not self._closed:
            try:
                self._places.popleft()
            except IndexError:
                pass
            else:
                self._work()
        self._alive.remove(_thread.get_ident())
        if self._closed and not self._alive:
            _running.discard(self)
            self._ended.set()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if not self._closed:
                task()
            del task                                # it may be the last to refer to the owner
        self._closed = True                         # where the owner is gone
        self._tasks.put(None)                       # for the others


_running: set[Workers] = set()


@atexit.register
def _close_all() -> None:
    """Threads are not left to run while the interpreter is taken down."""
    for workers in list(_running):
        workers.close()
