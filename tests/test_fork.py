"""After os.fork() parent and child both compute, to the same bits, whatever other threads did at that moment.

Everything runs in processes of its own, with children that are watched (fork_kit.py): a child that hangs is
killed and counted. A fork must find all locks of the core at rest and leave the child an OpenMP and a oneDNN
that work.
"""

import pytest

from process_kit import run_code

PRELUDE = """
import os, sys, threading
import numpy as np
import asenpp
from asenpp import _asen
import fork_kit
from fork_kit import Busy, network, outcome, step, watched
asenpp.set_num_threads(2)
PATIENCE = 15
"""


def run(code, *args, **options):
    return run_code(PRELUDE + code, *args, **options)


def test_a_child_repeats_what_the_parent_has_cached():
    """Convolution forward, both gradients, batch norm, products: the parent's plans and packed filters."""
    run("""
net = network()
before = step(net)
def child():
    assert asenpp.get_num_threads() == 2
    assert step(net) == before
for _ in range(3):
    assert watched(child, PATIENCE) == "ok"
    assert step(net) == before      # and the parent goes on
""")


def test_children_of_children_compute():
    run("""
net = network()
before = step(net)
def same():
    assert step(net) == before
def child():
    same()
    assert watched(grandchild, PATIENCE) == "ok"
    same()
def grandchild():
    assert watched(same, PATIENCE) == "ok"      # before it has computed itself
    same()
assert watched(child, 4 * PATIENCE) == "ok"
same()
""")


def test_a_child_before_anything_was_computed():
    run("""
net = network()
def child():
    assert step(net) == step(net)
assert watched(child, PATIENCE) == "ok"
step(net)
""")


@pytest.mark.parametrize("threads", [1, 3])
def test_forks_while_threads_compute(threads):
    """Whatever lock a busy thread holds at that moment; the threads go on afterwards."""
    run(f"""
counts = fork_kit.fork_while_threads_compute(20, {threads}, PATIENCE)
assert counts["ok"] == 20, counts
assert counts["rounds_of_threads"] >= {threads}, counts
""")


def test_forks_in_a_thread_while_others_compute():
    """The thread that forks is the child's only one, with an OpenMP team of its own."""
    run("""
net, other = network(), network(1)
before, expected = step(net), step(other)
counts = []
def same():
    assert step(net) == before
def forks():
    same()
    for _ in range(15):
        counts.append(watched(same, PATIENCE))
        same()
def work(number):
    assert step(other) == expected
with Busy(1, work):
    thread = threading.Thread(target=forks)
    thread.start()
    thread.join()
assert counts == ["ok"] * 15, counts
""")


def test_a_child_computes_in_threads_of_its_own():
    run("""
net, others = network(), [network(seed) for seed in (1, 2, 3)]
before, expected = step(net), [step(n) for n in others]
def work(number):
    assert step(others[number]) == expected[number]
def child():
    with Busy(3, work) as busy:
        for _ in range(5):
            assert step(net) == before
    assert sum(busy.rounds) > 0
with Busy(3, work):
    for _ in range(5):
        assert watched(child, PATIENCE) == "ok"
""")


def test_a_child_with_another_number_of_threads():
    run("""
net = network()
step(net)
def child():
    for threads in (1, 3, 2):
        asenpp.set_num_threads(threads)
        assert step(net) == step(net)
assert watched(child, PATIENCE) == "ok"
""")


def test_a_training_loop_goes_on_in_the_child():
    """Models, optimizer and state: parent and child end with the same weights."""
    run("""
from asenpp import nn, optim
asenpp.manual_seed(1)
model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())
sgd = optim.Adam(model.parameters(), lr=1e-2)
x = asenpp.randn(4, 3, 16, 16)
def train(steps):
    for _ in range(steps):
        sgd.zero_grad()
        loss = (model(x) * model(x)).mean()
        loss.backward()
        sgd.step()
def weights():
    return b"".join(v.detach().numpy().tobytes() for v in model.state_dict().values() if v.ndim)
train(3)
read, write = os.pipe()
def child():
    train(3)
    with os.fdopen(write, "wb") as pipe:
        pipe.write(weights())
assert watched(child, PATIENCE) == "ok"
os.close(write)
train(3)
with os.fdopen(read, "rb") as pipe:
    assert pipe.read() == weights()
""")


def test_random_numbers_in_a_child():
    """Drawn on from the parent's state; also where a thread was drawing, which holds the generator's lock."""
    run("""
asenpp.manual_seed(3)
asenpp.randn(5)
read, write = os.pipe()
def child():
    os.write(write, asenpp.randn(5).numpy().tobytes())
assert watched(child, PATIENCE) == "ok"
assert os.read(read, 100) == asenpp.randn(5).numpy().tobytes()
with Busy(2, lambda number: asenpp.randn(300000)):
    assert [watched(lambda: asenpp.randn(5), PATIENCE) for _ in range(10)] == ["ok"] * 10
""")


def test_a_pool_of_forked_processes():
    """multiprocessing with "fork", the programs that PyTorch's users write."""
    run("""
import multiprocessing
net = network()
before = step(net)
def same(number):
    return step(net) == before
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(same, range(8)).get(4 * PATIENCE) == [True] * 8
assert step(net) == before
""")


@pytest.mark.parametrize("end", ["sys.exit(0)", "pass", "os._exit(0)"])
def test_a_child_ends_in_every_way(end):
    """Also with the handlers of exit, which free the core's objects and join what threads there are."""
    run(f"""
net = network()
before = step(net)
with Busy(2, lambda number: step(network(number + 1))):
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            break
        pids.append(pid)
    if pid != 0:
        assert [outcome(p, PATIENCE) for p in pids] == ["ok"] * 4
    else:
        assert step(net) == before
        {end}
        # The block's end joins the parent's threads, which threading knows to be gone.
""")


@pytest.mark.parametrize("first", ["torch", "asenpp._asen"])
def test_beside_pytorch(first):
    """Whichever of the two brought the OpenMP runtime that both use."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    run_code(f"import {first}\nimport torch\n" + PRELUDE + """
net = network()
before = step(net)
def child():
    assert step(net) == before
assert watched(child, PATIENCE) == "ok"
x = torch.ones(600, 600)
x @ x
assert watched(child, PATIENCE) == "ok"
assert step(net) == before
""")


def test_a_fork_inside_backward():
    """A finalizer that backward sets off forks: parent and child finish their backward."""
    run("""
import weakref
net = network()
before = step(net)
class Array(np.ndarray):
    pass
outcomes = []
def finalize():
    outcomes.append(watched(lambda: step(net), PATIENCE))
leaf = asenpp.ones(3, requires_grad=True)
array = np.ones(3, np.float32).view(Array)
y = leaf * asenpp.from_numpy(array)   # backward reads the array's memory, then lets it go
weakref.finalize(array, finalize)
del array
assert not outcomes
y.sum().backward()
assert outcomes == ["ok"], outcomes
assert leaf.grad.tolist() == [1.0, 1.0, 1.0]
assert step(net) == before
""")


def test_a_fork_inside_a_parallel_region():
    """The team cannot be let go there: the child computes in one thread, and says so once."""
    run("""
import ctypes, logging
records = []
class Keep(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())
logging.getLogger("asenpp").addHandler(Keep())
net = network()
before = step(net)
asenpp.set_num_threads(1)
alone = step(net)
asenpp.set_num_threads(2)
outcomes = []
def child():
    assert asenpp.get_num_threads() == 1
    assert step(net) == alone
    assert len(records) == 1 and "one thread" in records[0], records
    assert watched(lambda: step(net), PATIENCE) == "ok"
    step(net)
    assert len(records) == 1, records
@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def region(unused):
    outcomes.append(watched(child, PATIENCE))
gomp = ctypes.CDLL("libgomp.so.1")  # one thread, one level deep; nested regions then make teams
gomp.GOMP_parallel(region, None, 1, 0)
assert outcomes == ["ok"], outcomes
assert step(net) == before and asenpp.get_num_threads() == 2 and not records
""")
