"""The CUDA plugin among what else happens in a process: loaded twice, beside libraries that choose other GPUs, in forked
children, with libraries of another version, short of memory.

Each test runs the real plugin on the simulated device (tests/cudasim) in a process of its own. Skipped where there is no
C++ compiler or no CUDA header.
"""

import re
import shutil

import pytest

from cudasim import build as cudasim
from test_cudasim import STEP, built, run

pytestmark = pytest.mark.skipif(shutil.which(cudasim.CXX[0]) is None, reason=f"no C++ compiler here ({cudasim.CXX[0]})")


@pytest.fixture(scope="module")
def plugin():
    return built(cudasim.plugin)


def succeed(code, plugin, *args, **environment):
    """What a process printed that ended well and left no fault."""
    status, out, err = run(code, plugin, *args, ASENPP_CUDA_PLUGIN=str(plugin), CUDASIM_STRICT="1", **environment)
    assert status == 0, (out + err)[-4000:]
    return out


# ---- loading ----

TWICE = STEP + """
import os, threading
assert right(step(3, "cuda"), 3)
before = alive()
for path in sys.argv[1:]:
    for _ in range(2):
        threads = [threading.Thread(target=_asen.load_plugin, args=[path]) for _ in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
    assert right(step(3, "cuda"), 3), f"wrong after {path} was loaded again"
assert alive() == before, (alive(), before)
assert simulator.call_table()["cudaGetDeviceCount"] == 1
"""


def test_a_second_load_leaves_the_device_alone(plugin, tmp_path):
    """Streams, plans and pinned memory are those of before, and convolutions are right; a link is the same file."""
    link = tmp_path / "link.so"
    link.symlink_to(plugin)
    succeed(TWICE, plugin, link, plugin)


def test_a_copy_of_the_plugin_is_refused_before_it_calls_cuda(plugin, tmp_path):
    copy = shutil.copy(plugin, tmp_path / "copy.so")
    succeed(STEP + """
assert right(step(3, "cuda"), 3)
try:
    _asen.load_plugin(sys.argv[2])
except ValueError as error:
    assert "'cuda' is loaded already" in str(error), error
else:
    raise AssertionError("loaded")
second = Simulator(sys.argv[2], load=False)
assert sum(second.call_table().values()) == 0 and second.live() == 0
assert right(step(3, "cuda"), 3)
""", plugin, copy)


# ---- several GPUs ----

OTHER_GPU = STEP + """
import threading
assert right(step(3, "cuda"), 3)

def everything():
    assert right(step(4, "cuda"), 4)                # kernels, cuDNN, cuBLASLt, copies, optimizer, plans for a new shape
    x = _asen.from_numpy(np.arange(24, dtype=np.float32).reshape(4, 6)).to("cuda")
    view = x[1:3, ::2]
    view.fill_(2.0)
    view.copy_(view * 3.0)
    assert _asen.unscale([x.detach()], 0.5) is True
    assert x.tolist()[1][:3] == [3.0, 3.5, 3.0]
    _asen.set_option("cuda", "release", 1)          # handles are made anew
    assert right(step(5, "cuda"), 5)
    _asen.memory_info("cuda")
    _asen.empty_cache("cuda")
    _asen.synchronize("cuda")

for choice in (1, 2, 0):
    simulator.set_device(choice)
    everything()
    assert simulator.get_device() == choice, "the thread's choice is another one now"

failed = []
def thread(choice):
    try:
        if choice:
            simulator.set_device(choice)
        for _ in range(2):
            everything()
            assert simulator.get_device() == choice
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=thread, args=[choice]) for choice in (0, 1, 2)]
[t.start() for t in threads]
[t.join() for t in threads]
assert not failed, failed
simulator.set_device(1)
del everything
gc.collect()
assert simulator.violations() == 0, simulator.last_violation()
"""


def test_another_gpu_is_chosen_by_somebody_else(plugin):
    """As after torch.cuda.set_device(1), in this thread and in others: everything is queued and allocated on our GPU, and
    the choice is left as it was."""
    succeed(OTHER_GPU, plugin, CUDASIM_DEVICES="3")


def test_another_gpu_is_chosen_before_the_device_is_opened(plugin):
    succeed(STEP.replace("assert cuda.is_available()", """
simulator = Simulator(sys.argv[1], load=False)
simulator.set_device(1)
assert cuda.is_available()""") + """
assert simulator.get_device() == 1
assert right(step(3, "cuda"), 3)
assert simulator.get_device() == 1
""", plugin, CUDASIM_DEVICES="2")


@pytest.mark.parametrize("what", ["CUDA_OK(cuda_enter(&before_));", "cuda_leave(before_);"])
def test_without_the_guard_it_shows(plugin, what):
    """The simulated device sees it where a function of the plugin does not choose its GPU, or leaves it chosen."""
    text = (cudasim.ROOT / "kernels/plugin.c").read_text()
    assert text.count(what) == 1
    text = text.replace(what, "before_ = CUDA_DEVICE;" if "enter" in what else "(void)before_;")
    source = cudasim.write_if_new(cudasim.CACHE / f"plugin_without_{what[8:13].strip('(_')}.c", text)
    kernels = [p for p in sorted((cudasim.ROOT / "kernels").iterdir()) if p.suffix in (".c", ".cu") and p.name != "plugin.c"]
    library = cudasim.build(cudasim.CACHE / f"{source.stem}.so", sources=[*kernels, source])
    status, out, err = run(OTHER_GPU, library, ASENPP_CUDA_PLUGIN=str(library), CUDASIM_DEVICES="3")
    assert status != 0 and re.search("belongs to GPU|on GPU|choice is another", err), (out + err)[-2000:]


# ---- forks ----

FORK = STEP + """
import os, signal, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)     # of forks in processes with threads
assert right(step(3, "cuda"), 3)
x = _asen.from_numpy(np.ones((4, 6), np.float32)).to("cuda")
image = _asen.from_numpy(np.ones((2, 4, 5, 5), np.float32)).to("cuda")
filters = _asen.from_numpy(np.ones((6, 4, 3, 3), np.float32)).to("cuda")

def calls():
    yield lambda: x + x
    yield lambda: x.to("cpu")
    yield lambda: x.tolist()
    yield lambda: _asen.from_numpy(np.ones((7, 3), np.float32)).to("cuda")
    yield lambda: _asen.from_numpy(np.ones((1 << 20), np.float32)).to("cuda")
    yield lambda: x.fill_(1.0)
    yield lambda: x[1:3, ::2].copy_(x[1:3, ::2])
    yield lambda: _asen.matmul(x, x, trans_b=True)
    yield lambda: _asen.conv2d(image, filters)
    yield lambda: _asen.unscale([x.detach()], 0.5)
    yield lambda: _asen.optim_step("sgd", [x.detach()], [x.detach()], None, None, 1, 0.1)
    yield lambda: _asen.synchronize("cuda")
    yield lambda: _asen.memory_info("cuda")
    yield lambda: _asen.set_option("cuda", "tf32", 1)
    yield lambda: _asen.set_option("cuda", "release", 1)
    yield lambda: cuda.synchronize()
    yield lambda: cuda.require()

def child():
    # every kind of call is the error that says what to do, and nothing reaches CUDA
    for i, call in enumerate(calls()):
        try:
            call()
        except RuntimeError as error:
            assert "forked" in str(error) and "spawn" in str(error), (i, error)
        else:
            raise AssertionError(f"call {i} did something")
    assert not cuda.is_available() and "spawn" in cuda.why_not()
    _asen.empty_cache("cuda")       # gives nothing back: it is the parent's
    globals().update(x=None, image=None, filters=None)
    assert _asen.from_numpy(np.ones(3, np.float32)).tolist() == [1.0] * 3
    assert simulator.violations() == 0, simulator.last_violation()

def forked(body):
    pid = os.fork()
    if pid == 0:
        signal.alarm(120)           # a hang ends the child, and the test
        try:
            body()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def test_a_forked_child_is_told(plugin):
    """And the parent goes on, with all that it had queued."""
    succeed(FORK + """
queued = x * 2.0
assert forked(child) == 0
assert queued.tolist() == [[2.0] * 6] * 4
def grandchild():
    assert forked(child) == 0
assert forked(grandchild) == 0
assert right(step(3, "cuda"), 3) and right(step(6, "cuda"), 6)
""", plugin)


def test_forks_while_threads_use_the_device(plugin):
    """Whatever locks they hold at that moment."""
    succeed(FORK + """
stop = threading.Event()
def use(batch):
    while not stop.is_set():
        if not right(step(batch, "cuda"), batch):
            wrong.append(batch)
wrong = []
threads = [threading.Thread(target=use, args=[3 + i]) for i in range(2)]
[t.start() for t in threads]
codes = [forked(child) for _ in range(15)]
stop.set()
[t.join() for t in threads]
assert codes == [0] * 15 and not wrong, (codes, wrong)
""", plugin)


def test_a_fork_before_cuda_is_used(plugin):
    """Each process opens the device for itself."""
    succeed("""
import os, sys
import numpy as np
from asenpp import _asen, cuda
pid = os.fork()
assert cuda.is_available(), cuda.why_not()
assert _asen.from_numpy(np.ones(3, np.float32)).to("cuda").tolist() == [1.0] * 3
if pid == 0:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
""", plugin)


# ---- libraries of another version ----

@pytest.mark.parametrize("variable, found, text", [
    ("CUDASIM_CUDNN", "9.10.2 12.9", r"cuDNN 9\.10\.2 for CUDA 12\.9 is loaded \(.*\), and 9\.8 or later for CUDA 13 is wanted"),
    ("CUDASIM_CUDNN", "9.1.0 13.0", r"cuDNN 9\.1\.0 for CUDA 13\.0 .* nvidia-cudnn-cu13"),
    ("CUDASIM_CUDNN", "10.0.0 13.0", r"cuDNN 10\.0\.0"),
    ("CUDASIM_CUBLASLT", "12.8", r"cuBLASLt 12\.8 for CUDA 12 is loaded .*, and 13 for CUDA 13 .* nvidia-cublas"),
])
def test_library_of_another_version_is_refused(plugin, variable, found, text):
    """Before anything of it is used, with the remedy; nothing stays open."""
    out = succeed("""
import sys
from asenpp import cuda
from cudasim.sim import Simulator
print(cuda.why_not())
assert not cuda.is_available()
assert Simulator(sys.argv[1], load=False).live() == 0
""", plugin, **{variable: found})
    assert re.search(text, out), out


def test_libraries_of_this_version_are_accepted(plugin):
    for found in ("9.8.0 13.0", "9.99.1 13.9"):
        succeed("from asenpp import cuda; assert cuda.is_available(), cuda.why_not()", plugin, CUDASIM_CUDNN=found)


# ---- searching plans ----

SEARCH = STEP + """
import logging
class Keep(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
said = []
logging.getLogger("asenpp").addHandler(Keep())

def convolve(n, groups=1, dilation=1):
    x = np.linspace(-1, 1, n * 4 * 9 * 9, dtype=np.float32).reshape(n, 4, 9, 9)
    w = np.linspace(-1, 1, 8 * (4 // groups) * 9, dtype=np.float32).reshape(8, 4 // groups, 3, 3)
    found, want = (_asen.conv2d(_asen.from_numpy(x).to(device), _asen.from_numpy(w).to(device), groups=groups,
                                dilation=dilation).numpy() for device in ("cuda", "cpu"))
    assert np.allclose(found, want, rtol=1e-4, atol=1e-5)

convolve(1)
best = simulator.last_engine()
batch = 1
PLANNING = ("cudnnBackendCreateDescriptor", "cudnnBackendSetAttribute", "cudnnBackendFinalize", "cudnnBackendGetAttribute")
def calls(name):
    # how often a convolution of a new shape makes the call
    global batch
    batch += 1
    before = simulator.calls(name)
    convolve(batch)
    return simulator.calls(name) - before
"""
NOT_SUPPORTED, INTERNAL, NO_HOST_MEMORY, NO_MEMORY, EXECUTION, BAD_PARAM, NOT_INITIALIZED = 3000, 4000, 4003, 4004, 5003, 2000, 1001


@pytest.mark.parametrize("status", [INTERNAL, EXECUTION, BAD_PARAM, NOT_INITIALIZED, 1008, 5000])
def test_a_broken_status_is_an_error_and_no_plan_is_kept(plugin, status):
    """Whichever call of the search it comes from: cuDNN's words are raised; the next try has the best plan."""
    succeed(SEARCH + """
status = int(sys.argv[2])
for name in PLANNING:
    for nth in range(1, calls(name) + 1):
        batch += 1
        simulator.fail(name, nth, status)
        try:
            convolve(batch)
        except RuntimeError as error:
            assert name in str(error) and "STATUS" in str(error) and f"x ({batch}, 4, 9, 9)" in str(error), error
        else:
            raise AssertionError(f"call {nth} of {name} was passed over")
        start = alive()
        convolve(batch)
        assert simulator.last_engine() == best, (name, nth)
assert not said, said
""", plugin, status)


@pytest.mark.parametrize("status", [NO_MEMORY, NO_HOST_MEMORY])
def test_memory_that_runs_out_is_given_back_and_the_search_repeated(plugin, status):
    """Once: the caller sees nothing, and has the best plan. For good: MemoryError, and nothing is kept."""
    succeed(SEARCH + """
status = int(sys.argv[2])
for name in PLANNING:
    for nth in range(1, calls(name) + 1):
        batch += 1
        simulator.fail(name, nth, status)
        convolve(batch)
        assert simulator.last_engine() == best, (name, nth)
        batch += 1
        simulator.fail(name, nth, status, times=10**6)
        try:
            convolve(batch)
        except MemoryError as error:
            assert "nothing is left to give back" in str(error) and name in str(error), error
        else:
            raise AssertionError(f"call {nth} of {name} was passed over")
        simulator.fail(name, 0)
        convolve(batch)
        assert simulator.last_engine() == best, (name, nth)
assert not said, said
""", plugin, status)


def test_a_plan_that_wants_the_memory_that_is_kept_for_reuse(plugin):
    """Blocks that were freed fill the GPU: they go back, and the best plan is made."""
    succeed(SEARCH + """
held = [_asen.from_numpy(np.zeros(1 << 20, np.float32)).to("cuda") for _ in range(40)]
held.clear()
cached = _asen.memory_stats("cuda")["cached"]
assert cached >= 40 << 22
simulator.plan_needs(_asen.memory_info("cuda")[0] + (100 << 20))
convolve(2)
assert simulator.last_engine() == best
assert _asen.memory_stats("cuda")["cached"] < cached
held = [_asen.from_numpy(np.zeros(1 << 20, np.float32)).to("cuda") for _ in range(40)]
try:
    convolve(3)
except MemoryError as error:
    assert "nothing is left to give back" in str(error), error
else:
    raise AssertionError("a worse plan was taken")
held.clear()
convolve(3)
assert simulator.last_engine() == best
""", plugin, CUDASIM_MEMORY="512M")


def test_a_fault_of_a_kernel_is_not_lost_when_memory_is_given_back(plugin):
    succeed(SEARCH + """
table = _asen.from_numpy(np.ones((3, 2), np.float32)).to("cuda")
_asen.embedding(table, _asen.from_numpy(np.array([7])).to("cuda"))
_asen.empty_cache("cuda")
try:
    cuda.synchronize()
except IndexError as error:
    assert "an index is 7" in str(error)
else:
    raise AssertionError("lost")
""", plugin)


def test_an_unsupported_candidate_is_passed_over(plugin):
    """The one answer after which the next candidate is tried."""
    succeed(SEARCH + """
engines = set()
for nth in range(1, calls("cudnnBackendFinalize") + 1):
    batch += 1
    simulator.fail("cudnnBackendFinalize", nth, 3000 + nth % 15)
    try:
        convolve(batch)
    except RuntimeError as error:       # of what is finalized when a plan runs
        assert nth == calls("cudnnBackendFinalize"), error
    else:
        engines.add(simulator.last_engine())
assert best in engines and len(engines) == 2, engines
""", plugin)


def test_a_slow_way_is_said_once(plugin):
    """Where cuDNN has no plan at all, and where cuBLASLt has no algorithm: one line each, through Python's logging."""
    succeed(SEARCH + """
for n in range(1, 4):
    convolve(n, groups=2, dilation=2)
assert len(said) == 1 and "cuDNN has no plan for conv2d of x (1, 4, 9, 9)" in said[0] and "proposed" in said[0], said
product = [_asen.from_numpy(np.ones(s, np.float32)).to("cuda") for s in ((2, 4, 3, 3), (5, 4, 1, 1))]
for _ in range(2):
    simulator.fail("cublasLtMatmulAlgoGetHeuristic", 1, 15)
    assert (_asen.conv2d(*product).numpy() == 4).all()
assert len(said) == 2 and "cuBLASLt has no algorithm for conv2d of x (2, 4, 3, 3)" in said[1], said
""", plugin)


@pytest.mark.parametrize("name, status", [("cudnnCreate", NOT_INITIALIZED), ("cudnnCreate", NO_MEMORY),
                                          ("cublasLtCreate", 1), ("cublasLtMatmulAlgoGetHeuristic", 3), ("cublasLtMatmul", 3),
                                          ("cudnnBackendExecute", NO_MEMORY)])
def test_memory_for_handles_and_kernels(plugin, name, status):
    """Libraries allocate behind our back: once it fails, what is kept for reuse goes back and it is tried again."""
    succeed(STEP + """
assert right(step(3, "cuda"), 3)
_asen.set_option("cuda", "release", 1)
before = _asen.memory_stats("cuda")["cached"]
simulator.fail(sys.argv[2], 1, int(sys.argv[3]))
failed = simulator.failed()
assert before > 0
assert right(step(3, "cuda"), 3)
assert simulator.failed() == failed + 1
simulator.fail(sys.argv[2], 1, int(sys.argv[3]), times=2)
_asen.set_option("cuda", "release", 1)
try:
    step(4, "cuda")
except (MemoryError, RuntimeError) as error:
    assert sys.argv[2] in str(error), error
else:
    raise AssertionError("it was tried a third time")
assert right(step(4, "cuda"), 4)
""", plugin, name, status)


# ---- calls that fail half way ----

def test_unscale_that_fails_half_way_leaves_no_answer_behind(plugin):
    """Kernels of the failed call were queued, and write that something is not finite: not into the next call's answer."""
    succeed("""
import sys
import numpy as np
from asenpp import _asen, cuda
from cudasim.sim import Simulator
assert cuda.is_available(), cuda.why_not()
simulator = Simulator(sys.argv[1], load=False)
def tensors(value, count):
    return [_asen.from_numpy(np.full(3, value, np.float32)).to("cuda") for _ in range(count)]
bad, good = tensors(np.inf, 900), tensors(1.0, 3)
cuda.synchronize()
simulator.fail("cudaLaunchKernel", 2)
try:
    _asen.unscale(bad, 1.0)
except RuntimeError as error:
    assert "unscale_kernel" in str(error), error
else:
    raise AssertionError("one launch is enough: the test wants more tensors")
assert _asen.unscale(good, 1.0) is True
""", plugin)
