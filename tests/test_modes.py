"""no_grad and autocast: re-entrant, by thread, as decorators of functions, generators and coroutines. Each program of
PROGRAMS runs with PyTorch's no_grad, too, and must see the same."""

import asyncio
import threading

import pytest

import asenpp
from asenpp import _asen, amp


class Ours:
    no_grad = asenpp.no_grad
    on = staticmethod(lambda: not _asen.is_grad_enabled())
    restore = staticmethod(lambda: _asen.set_grad_enabled(True))


class Autocast:
    """on: in the dtype of the mode."""
    no_grad = staticmethod(lambda: amp.autocast("bfloat16"))
    on = staticmethod(lambda: amp.autocast_dtype() == "bfloat16")
    restore = staticmethod(lambda: setattr(amp._state, "dtype", None))


@pytest.fixture(params=[Ours, Autocast, "torch"])
def kind(request):
    if request.param != "torch":
        yield request.param
        request.param.restore()
        return
    torch = pytest.importorskip("torch")

    class Theirs:
        no_grad = torch.no_grad
        on = staticmethod(lambda: not torch.is_grad_enabled())

    yield Theirs
    torch.set_grad_enabled(True)


def function(kind):
    @kind.no_grad()
    def f(a, b=1):
        "A docstring."
        return a, b, kind.on()

    return [f(1, b=2), f.__name__, f.__doc__, kind.on()], [(1, 2, True), "f", "A docstring.", False]


def recursive(kind):
    seen = []

    @kind.no_grad()
    def f(depth):
        seen.append(kind.on())
        if depth:
            f(depth - 1)
        seen.append(kind.on())

    f(3)
    return [seen, kind.on()], [[True] * 8, False]


def failing(kind):
    @kind.no_grad()
    def f(depth):
        if depth == 0:
            raise KeyError("at the bottom")
        f(depth - 1)

    try:
        f(3)
    except KeyError as error:
        return [str(error), kind.on()], ["'at the bottom'", False]


def generator(kind):
    seen = []

    @kind.no_grad()
    def g():
        seen.append(kind.on())
        got = yield "a"
        seen.append((got, kind.on()))
        try:
            yield "b"
        except KeyError:
            seen.append(("thrown", kind.on()))
        try:
            yield "c"
        finally:
            seen.append(("closed", kind.on()))

    it = g()
    out = [next(it), kind.on(), it.send(5), kind.on(), it.throw(KeyError()), kind.on(), it.close(), kind.on()]
    return [out, seen], [["a", False, "b", False, "c", False, None, False],
                         [True, (5, True), ("thrown", True), ("closed", True)]]


def generator_result(kind):
    @kind.no_grad()
    def g():
        yield 1
        return kind.on()

    def outer():
        result = yield from g()
        yield result, kind.on()

    return list(outer()) + [kind.on()], [1, (True, False), False]


def generator_failing(kind):
    @kind.no_grad()
    def g():
        yield kind.on()
        raise ValueError("within")

    it = g()
    out = [next(it)]
    try:
        next(it)
    except ValueError as error:
        out.append(str(error))
    return out + [list(it), kind.on()], [True, "within", [], False]


def generators_interleaved(kind):
    @kind.no_grad()
    def g():
        for _ in range(3):
            yield kind.on()

    a, b, seen = g(), g(), []
    for x, y in zip(a, b):
        seen += [x, y, kind.on()]
    return seen + [kind.on()], [True, True, False] * 3 + [False]


def two_threads(kind):
    """Both are within the function at once, and leave in the order in which they entered."""
    within, leave = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]
    seen = [None, None]

    @kind.no_grad()
    def f(i):
        within[i].set()
        assert leave[i].wait(30)
        return kind.on()

    def work(i):
        seen[i] = [kind.on(), f(i), kind.on()]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for i in range(2):
        threads[i].start()
        assert within[i].wait(30)
    elsewhere = kind.on()
    for i in range(2):
        leave[i].set()
        threads[i].join(30)
    return [seen, elsewhere, kind.on()], [[[False, True, False]] * 2, False, False]


PROGRAMS = [function, recursive, failing, generator, generator_result, generator_failing, generators_interleaved,
            two_threads]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_as_decorators_as_in_pytorch(kind, program):
    got, wanted = program(kind)
    assert got == wanted


@pytest.fixture(params=[Ours, Autocast])
def mine(request):
    yield request.param
    request.param.restore()


def test_one_object_nested_in_itself(mine):
    """PyTorch's keeps one state an object, and stays on here."""
    mode = mine.no_grad()
    with mode:
        with mode:
            with pytest.raises(KeyError), mode:
                raise KeyError
            assert mine.on()
        assert mine.on()
    assert not mine.on() and not mode._before


def test_one_object_in_two_threads(mine):
    mode, seen = mine.no_grad(), []
    entered, leave = threading.Event(), threading.Event()

    def work():
        with mode:
            entered.set()
            assert leave.wait(30)
            seen.append(mine.on())
        seen.append(mine.on())

    thread = threading.Thread(target=work)
    with mode:
        thread.start()
        assert entered.wait(30)
    assert not mine.on()
    leave.set()
    thread.join(30)
    assert seen == [True, False] and not mine.on() and not mode._before


def test_coroutines(mine):
    """On at each step, off while others run; PyTorch's decorator is on only while the coroutine is made."""
    seen = []

    @mine.no_grad()
    async def f(name):
        for _ in range(3):
            seen.append((name, mine.on()))
            await asyncio.sleep(0)
        return mine.on()

    async def other():
        for _ in range(3):
            seen.append(("other", mine.on()))
            await asyncio.sleep(0)

    async def main():
        return await asyncio.gather(f("a"), f("b"), other())

    assert asyncio.run(main()) == [True, True, None]
    assert seen == [("a", True), ("b", True), ("other", False)] * 3 and not mine.on()


def test_a_cancelled_coroutine_leaves_the_mode(mine):
    cleaned = []

    @mine.no_grad()
    async def f():
        try:
            await asyncio.sleep(1000)
        finally:
            cleaned.append(mine.on())

    async def main():
        task = asyncio.ensure_future(f())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return mine.on()

    assert asyncio.run(main()) is False and cleaned == [True]


def test_asynchronous_generators_are_refused(mine):
    async def g():
        yield 1

    with pytest.raises(TypeError, match="asynchronous generator g"):
        mine.no_grad()(g)


def test_a_block_within_a_generator_that_another_thread_closes(mine):
    """That thread keeps its own state."""
    def g():
        with mine.no_grad():
            yield

    it, seen = g(), []
    next(it)
    thread = threading.Thread(target=lambda: (it.close(), seen.append(mine.on())))
    thread.start()
    thread.join(30)
    assert seen == [False] and mine.on(), "this thread's block was never left"


def test_without_parentheses():
    @asenpp.no_grad
    def f():
        return _asen.is_grad_enabled()

    assert f() is False and _asen.is_grad_enabled()


def test_nothing_is_recorded_and_then_it_is():
    x = asenpp.ones(2, requires_grad=True)

    @asenpp.no_grad()
    def f(depth):
        return f(depth - 1) if depth else x * 2

    assert not f(2).requires_grad and (x * 2).requires_grad


def test_disabled_autocast_changes_nothing():
    with amp.autocast("float16"):
        with amp.autocast("bfloat16", enabled=False):
            assert amp.autocast_dtype() == "float16"
        assert amp.autocast_dtype() == "float16"
    assert amp.autocast_dtype() is None
