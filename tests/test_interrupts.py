"""An exception at any instruction of the calling thread leaves nobody waiting (tests/interrupts.py does the work, in
a process of its own: a hang ends that with a traceback of all its threads)."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("PIL.Image")

from asenpp.workers import Event, Workers  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def interrupts(*arguments):
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "interrupts.py"), *map(str, arguments)], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("scenario, workers", [("all", 2), ("fails", 2)])
def test_an_exception_at_each_instruction(scenario, workers):
    """From making a loader to closing it, through batches and crops; and while another exception is dealt with. The
    loader can be used again after each, and closes."""
    result = interrupts("--every", scenario, workers)
    assert result["raised"] > 500 and result["functions"] > 15, "the work is traced"


def test_interrupts_at_random_moments():
    result = interrupts("--count", 100)
    assert set(result["kinds"]) == {"iterating", "crops", "closing", "modes", "evaluating"}
    assert result["interrupts"] >= 100
    assert [kind["modes_left_on"] for kind in result["kinds"].values()] == [0] * 5, "no_grad and autocast are left"


def test_workers_do_what_is_submitted_and_end():
    done, all_done = [], Event()
    workers = Workers(3)
    for number in range(100):
        workers.submit(lambda number=number: done.append(number))
    workers.submit(all_done.set)
    all_done.wait()
    workers.close()
    workers.close()
    workers.submit(lambda: done.append("late"))
    assert sorted(done) == list(range(100)), "each once; nothing after close()"


def test_closing_lets_the_task_at_hand_end_and_drops_the_rest():
    begun, go_on, done = Event(), Event(), []
    workers = Workers(1)
    workers.submit(lambda: (begun.set(), go_on.wait(), done.append("first")))
    workers.submit(lambda: done.append("second"))
    begun.wait()
    closer = threading.Thread(target=workers.close)
    closer.start()
    while not workers._closed:
        time.sleep(0.001)
    go_on.set()
    closer.join(30)
    assert not closer.is_alive() and done == ["first"]


def test_workers_end_with_their_owner():
    class Owner:
        pass

    owner, did = Owner(), Event()
    workers = Workers(2, owner)
    workers.submit(did.set)
    did.wait()
    del owner
    workers._ended.wait()


def test_a_task_may_close_its_workers():
    """As a finalizer that runs in a worker's thread may."""
    workers, closed = Workers(2), Event()
    workers.submit(lambda: (workers.close(), closed.set()))
    closed.wait()
    workers.close()


def test_a_forked_child_makes_threads_of_its_own(tmp_path):
    """A loader that the parent has used makes batches in a child; a pass that was begun in the parent says so."""
    sys.path.insert(0, str(ROOT / "tests"))
    from interrupts import make_images, make_loader

    loader = make_loader(make_images(tmp_path))
    run = iter(loader)
    expected = next(run).pixels
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)
            with pytest.raises(RuntimeError, match="forked"):
                next(run)
            good = (next(iter(loader)).pixels == expected).all() and len(list(loader)) == 5
            loader.close()
            os._exit(0 if good else 1)
        except BaseException:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(list(loader)) == 5
    loader.close()


def test_bars_keep_no_thread():
    tqdm = pytest.importorskip("tqdm")
    from asenpp.progress import bar

    before = tqdm.tqdm.monitor, threading.active_count()
    with open(os.devnull, "w") as file:
        assert list(bar(range(3), file=file)) == [0, 1, 2]
    assert (tqdm.tqdm.monitor, threading.active_count()) == before


def test_an_event_that_is_set_between_a_look_and_a_wait_is_seen():
    """Who sets it wakes those it finds waiting: one that is about to wait must be found, or find it set."""
    event = Event()

    class Setting(list):
        def append(self, item):
            event.set()
            super().append(item)

    event._waiting = Setting()
    waiter = threading.Thread(target=event.wait, daemon=True)
    waiter.start()
    waiter.join(30)
    assert not waiter.is_alive()
