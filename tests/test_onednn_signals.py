"""Signals while oneDNN computes (csrc/cpu/onednn/signals.c): their handlers do not write over the heap.

oneDNN's matrix products keep the stack pointer on the heap. Without alternate stacks the first test ends in an abort of
the C library, in a fault, or does not end.
"""

import pytest

from process_kit import run_code

PRODUCTS = """
import sys, threading
import numpy as np
from asenpp import _asen

rng = np.random.default_rng(0)
def array(*shape):
    return _asen.from_numpy(rng.standard_normal(shape).astype(np.float32)).clone()
def product(name):
    if name == "linear":
        inputs, attrs = [array(256, 1200), array(256, 1200)], {}
    else:
        inputs, attrs = [array(8, 64, 16, 16), array(8, 64, 16, 16)], {"size": (1, 1)}
    _asen.set_kernel_paths("onednn")
    return lambda: np.array(_asen.apply(name, inputs, attrs).numpy())
"""

STORM = PRODUCTS + """
import ctypes, os, signal, time

name, threads, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
_asen.set_num_threads(threads)
run, taken, same = product(name), 0, []
def take(number, frame):
    global taken
    taken += 1
signal.signal(signal.SIGUSR1, take)
def compute():
    first = run()
    same.extend(np.array_equal(first, run()) for _ in range(steps))
libc, computing = ctypes.CDLL(None), threading.Thread(target=compute)
computing.start()
while computing.is_alive():
    for task in os.listdir("/proc/self/task"):
        if int(task) != threading.get_native_id():
            libc.tgkill(os.getpid(), int(task), signal.SIGUSR1)
    time.sleep(1e-4)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)   # one may be on its way yet, and Python's end sets the default action
print(len(same), all(same), taken > 0)
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name, isa", [("conv2d_grad_weight", "DEFAULT"), ("linear", "AVX2")])
def test_signals_to_all_threads_spoil_nothing(name, isa, threads):
    """Not to the main thread, which faulthandler protects here."""
    steps = 1000 if name == "linear" else 3000
    out, _ = run_code(STORM, name, threads, steps, OMP_NUM_THREADS=str(threads), ONEDNN_MAX_CPU_ISA=isa)
    assert out.split() == [str(steps), "True", "True"]


STACKS = PRODUCTS + """
import ctypes, mmap

class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("bytes", ctypes.c_size_t)]
libc, DISABLED = ctypes.CDLL(None), 2
_asen.set_num_threads(1)
run, seen = product("conv2d_grad_weight"), {}
def present():
    stack = Stack()
    assert libc.sigaltstack(None, ctypes.byref(stack)) == 0
    return None if stack.flags & DISABLED else (stack.at, stack.bytes)
def plain():
    before = present()
    run()
    first = present()
    run()
    seen.update(before=before, first=first, second=present())
def own():
    memory = ctypes.create_string_buffer(1 << 17)
    mine = Stack(ctypes.addressof(memory), 0, 1 << 17)
    assert libc.sigaltstack(ctypes.byref(mine), None) == 0
    run()
    seen.update(mine=mine.at, kept=present()[0])
    mine.flags = DISABLED
    assert libc.sigaltstack(ctypes.byref(mine), None) == 0
def in_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
in_thread(plain)
assert seen["before"] in (None, seen["first"])  # a sanitizer gives each thread one
at, size = seen["first"]
assert size >= 1 << 15 and seen["second"] == (at, size), seen
in_thread(own)
assert seen["mine"] == seen["kept"], seen

def mappings():
    with open("/proc/self/maps") as lines:
        return sum(1 for line in lines)
count = mappings()
for _ in range(100):
    in_thread(run)
assert mappings() < count + 50, (count, mappings())
print("done")
"""


def test_a_thread_has_an_alternate_stack_of_its_own_until_it_ends():
    """One from the first product on, none where it has one already; and what ended threads had is given back."""
    assert run_code(STACKS)[0].split() == ["done"]
