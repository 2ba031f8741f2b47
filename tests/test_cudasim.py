"""The simulated CUDA device (tests/cudasim) shows the faults that hardware hides.

Each fault is planted (cudasim/planted.cu) beside a healthy twin and runs in a process of its own, since a fault
may end it. The second half runs the real plugin on it: drivers that are missing, memory that is full, and every
single call of the CUDA libraries failing once. Skipped where there is no C++ compiler or no CUDA header.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cudasim import build as cudasim

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(shutil.which(cudasim.CXX[0]) is None, reason=f"no C++ compiler here ({cudasim.CXX[0]})")


def built(make):
    try:
        cudasim.headers()
    except cudasim.BuildError as error:
        pytest.skip(f"no CUDA headers here: {error}")
    return make()


@pytest.fixture(scope="module")
def planted():
    return built(lambda: cudasim.build(cudasim.CACHE / "planted.so", sources=[cudasim.HERE / "planted.cu"]))


@pytest.fixture(scope="module")
def checked():
    """The same with every load and store of kernels checked."""
    return built(lambda: cudasim.build(cudasim.CACHE / "planted_check.so", sources=[cudasim.HERE / "planted.cu"], check=True))


@pytest.fixture(scope="module")
def plugin():
    return built(cudasim.plugin)


def run(code, *args, **environment):
    """A Python process; (exit status, output, errors)."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1",
           **environment}
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, cwd=ROOT, env=env,
                          timeout=600)
    return done.returncode, done.stdout, done.stderr


PROBE = """
import ctypes, json, sys
from cudasim.sim import Simulator
simulator = Simulator(sys.argv[1], load=False)
function = getattr(simulator.lib, "test_" + sys.argv[2])
function.restype = ctypes.c_double
print(json.dumps([function(), simulator.violations(), simulator.last_violation()]))
print(simulator.report())
"""


class Probe:
    """What a planted program gave: its value, the number of faults, the last one's text, what was left alive."""

    def __init__(self, library, name, **environment):
        status, out, err = run(PROBE, library, name, **environment)
        assert status == 0, err
        first, _, self.alive = out.partition("\n")
        self.value, self.faults, self.text = json.loads(first)
        self.err = err


# ---- device memory and the host ----


@pytest.mark.parametrize("name, verb", [("host_read", "reads"), ("host_write", "writes")])
def test_host_access_of_device_memory_ends_the_process(planted, name, verb):
    status, _, err = run(PROBE, planted, name)
    assert status == 86
    assert f"the host {verb} device memory" in err and "of allocation #1 of 4096 bytes" in err


def test_log_file(planted, tmp_path):
    """Where a test runner swallows stderr."""
    status, _, _ = run(PROBE, planted, "host_read", CUDASIM_LOG=str(tmp_path / "log"))
    assert status == 86 and "the host reads device memory" in (tmp_path / "log").read_text()


def test_kernel_argument_that_points_to_the_host(planted):
    assert "kernel write_kernel: argument 0 points to memory of the host" in Probe(planted, "host_pointer").text


# ---- what runs late ----


@pytest.mark.parametrize("healthy, value, faulty", [
    ("read_with_wait", 3, "read_without_wait"),
    ("streams_ordered", 6, "streams_unordered"),
    ("sum_with_barrier", 2016, "sum_without_barrier"),
    ("shared_set", 63, "shared_unset"),
    ("slot_reused_in_time", 1, "slot_reused_early"),
])
def test_missing_order_gives_wrong_numbers(planted, healthy, value, faulty):
    good, bad = Probe(planted, healthy), Probe(planted, faulty)
    assert good.value == value and good.faults == 0
    assert math.isnan(bad.value) or bad.value == 2, "the fault does not show"


def test_pageable_memory_may_be_reused_at_once(planted):
    assert Probe(planted, "pageable_source_reused").value == 1


def test_a_quick_queue_shows_what_a_late_one_hides(planted):
    """A source that is written after its copy was queued: right on a late queue, wrong on an eager one, and on a
    drawn one either, by the seed."""
    def value(name, **environment):
        probe = Probe(planted, name, **environment)
        assert probe.faults == 0, probe.text
        return probe.value

    assert value("slot_filled_late") == 2
    assert value("slot_filled_late", CUDASIM_QUEUE="eager") == 1
    drawn = [value("slot_filled_late", CUDASIM_QUEUE="drawn", CUDASIM_SEED=str(seed)) for seed in range(1, 9)]
    assert set(drawn) == {1, 2}
    assert drawn == [value("slot_filled_late", CUDASIM_QUEUE="drawn", CUDASIM_SEED=str(seed)) for seed in range(1, 9)]
    for queue in ("eager", "drawn"):
        for name, right in (("slot_filled_in_time", 2), ("read_with_wait", 3), ("streams_ordered", 6), ("slot_reused_in_time", 1)):
            assert value(name, CUDASIM_QUEUE=queue) == right


def test_an_unknown_schedule_is_refused(planted):
    status, _, err = run(PROBE, planted, "read_with_wait", CUDASIM_QUEUE="soon")
    assert status == 86 and "CUDASIM_QUEUE is 'soon'" in err


def test_order_of_threads_is_drawn(planted):
    """A race may hide in one order: seeds give others."""
    results = {str(Probe(planted, "sum_without_barrier", CUDASIM_SEED=str(seed)).value) for seed in range(6)}
    assert "2016.0" not in results
    assert all(Probe(planted, "sum_with_barrier", CUDASIM_SEED=str(seed)).value == 2016 for seed in range(3))


# ---- memory ----


def test_fresh_memory_is_nan(planted):
    assert math.isnan(Probe(planted, "fresh_memory").value)


@pytest.mark.parametrize("name, text", [
    ("write_one_behind", r"kernel write_kernel wrote at \S+, 0 bytes behind the end of allocation #1 of 40 bytes"),
    ("write_far_behind", r"kernel write_kernel writes \S+, 80 bytes behind the end of allocation #1 of 4096 bytes"),
    ("write_before", r"kernel write_kernel writes \S+, 4 bytes before allocation #1"),
    ("read_behind", r"kernel read_kernel reads \S+, 256 bytes behind the end of allocation #1 of 4096 bytes"),
    ("read_null", r"kernel read_kernel reads \(nil\), which is no device memory"),
    ("use_after_free", r"kernel read_kernel reads \S+, byte 0 of allocation #1 of 4096 bytes, which was freed"),
    ("free_twice", r"cudaFree of \S+, byte 0 of allocation #1 of 4096 bytes, which was freed"),
    ("copy_too_long", r"cudaMemcpy writes 4100 bytes at \S+, byte 0 of allocation #1 of 4096 bytes"),
])
def test_wrong_address(planted, name, text):
    probe = Probe(planted, name)
    assert probe.faults == 1 and re.search(text, probe.text), probe.text
    assert probe.value != 0, "the call that waits must fail, too"
    assert probe.text in probe.err


def test_right_address(planted):
    probe = Probe(planted, "write_inside")
    assert probe.faults == 0 and probe.value == 0


def test_leak_is_listed(planted):
    alive = Probe(planted, "leak").alive
    assert "memory" in alive and "12345 bytes" in alive and "event" in alive
    assert "stream" not in alive, "it was destroyed"


def test_end_of_process(planted):
    """For runs that do not ask: leaks are listed, and a fault becomes the process's."""
    status, _, err = run(PROBE, planted, "leak", CUDASIM_REPORT="1", CUDASIM_STRICT="1")
    assert status == 0 and "12345 bytes of device memory" in err
    status, _, err = run(PROBE, planted, "free_twice", CUDASIM_STRICT="1")
    assert status == 86 and "1 faults; the last: cudaFree of" in err


def test_memory_limit(planted):
    assert Probe(planted, "all_memory", CUDASIM_MEMORY="64M").value == 64


# ---- blocks ----


@pytest.mark.parametrize("name, text", [
    ("divergent_barrier", "__syncthreads at .*planted.cu:[0-9]+ is divergent: 40 of 64 threads came, 24 have ended"),
    ("different_barriers", "threads wait at different barriers"),
    ("divergent_shuffle", "__shfl_xor_sync at .* is divergent: warp . waits for lanes 0xffffffff, and 0x0000ffff came"),
    ("different_shuffles", "__shfl_sync at .* is divergent"),
    ("partial_warp", "the mask 0xffffffff names lanes that the warp lacks"),
    ("shared_overflow", "writes behind the end of the shared array partial"),
    ("shared_unlaunched", "dynamic shared memory is used, and the launch gave none"),
    ("misaligned_vector", "planted.cu:[0-9]+ wants an alignment of 16 bytes"),
    ("too_many_threads", "beyond the device's limits"),
    ("no_blocks", "beyond the device's limits"),
    ("much_shared", "102400 bytes of dynamic shared memory, and 49152 are allowed"),
])
def test_faulty_kernel(planted, name, text):
    probe = Probe(planted, name)
    assert probe.faults == 1 and re.search(text, probe.text), probe.text
    assert re.match("kernel [a-z_]*_kernel", probe.text), "the message names the kernel"


@pytest.mark.parametrize("name, value", [("warp_sum", 32896), ("aligned_vector", 0), ("much_shared_asked", 1), ("many_barriers", 1),
                                         ("many_threads", 1)])
def test_healthy_kernel(planted, name, value):
    probe = Probe(planted, name)
    assert probe.faults == 0 and probe.value == value, probe.text


def test_limits_follow_the_description(planted, tmp_path):
    description = tmp_path / "small.json"
    description.write_text(json.dumps({"deviceVer": 750, "maxThreadsPerBlock": 128, "deviceName": "small"}))
    assert "beyond the device's limits" in Probe(planted, "many_threads", CUDASIM_DEVICE=str(description)).text


# ---- every load and store (build.py --check) ----


@pytest.mark.parametrize("name, text", [
    ("read_in_granule", r"kernel read_kernel: a read of 4 bytes at \S+, 0 bytes behind the end of allocation #1 of 40 bytes"),
    ("write_one_behind", r"kernel write_kernel: a write of 4 bytes at \S+, 0 bytes behind the end of allocation #1 of 40 bytes"),
    ("race_same_value", "a race with a write by thread [0-9]+ of this block"),
    ("race_of_blocks", "a race with a (read|write) by "),
    ("sum_without_barrier", "shared memory: a race with a (read|write) by "),
    ("shared_overflow", "outside of every shared array"),
])
def test_checked_access(checked, name, text):
    probe = Probe(checked, name)
    assert probe.faults == 1 and re.search(text, probe.text), probe.text


@pytest.mark.parametrize("name", ["write_inside", "sum_with_barrier", "shared_set", "warp_sum", "atomics", "aligned_vector",
                                  "streams_ordered", "much_shared_asked", "many_threads"])
def test_checked_healthy_access(checked, name):
    probe = Probe(checked, name)
    assert probe.faults == 0, probe.text


# ---- failures on demand ----

FAIL_ALL = """
import ctypes, sys
from cudasim.sim import Simulator
simulator = Simulator(sys.argv[1], load=False)
function = getattr(simulator.lib, "test_" + sys.argv[2])
function.restype = ctypes.c_double
for nth in range(1, 100):
    before, live = simulator.failed(), simulator.live()
    simulator.fail("*", nth)
    value = function()
    if simulator.failed() == before:
        break
    if value == 0:
        print("call", nth, "failed and nobody noticed")
    if simulator.live() != live:
        print("call", nth, "failed and something leaked")
print(nth - 1, "calls")
"""


@pytest.mark.parametrize("name, found", [("all_checked", ""), ("one_unchecked", "nobody noticed"), ("leak_on_error", "leaked")])
def test_missing_error_check(planted, name, found):
    status, out, err = run(FAIL_ALL, planted, name)
    assert status == 0, err
    assert found in out and out.endswith(" calls\n") and not out.endswith("\n0 calls\n")
    assert found or len(out.splitlines()) == 1, out


# ---- cuDNN's descriptors ----


@pytest.mark.parametrize("name, text", [
    ("cudnn_missing_attribute", "a tensor lacks attribute"),
    ("cudnn_three_strides", "4 dimensions and 3 strides"),
    ("cudnn_overlapping_strides", "elements overlap"),
    ("cudnn_odd_alignment", "power of two"),
    ("cudnn_wrong_type", "is of another type"),
    ("cudnn_finalized_twice", "finalized twice"),
    ("cudnn_unfinalized_part", "the tensor is not finalized"),
    ("cudnn_destroyed", "does not exist"),
])
def test_wrong_descriptor(planted, name, text):
    probe = Probe(planted, name)
    assert probe.value != 0 and probe.faults == 1 and text in probe.text


def test_right_descriptor(planted):
    assert Probe(planted, "cudnn_tensor").value == 0


# ---- the plugin on it ----


def test_plugin_exports(plugin):
    """One symbol for the core, the simulator's hooks, nothing of CUDA's."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm here")
    out = subprocess.run([nm, "-D", "--defined-only", str(plugin)], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in out.splitlines()}
    assert "asen_plugin_init" in names
    assert {n for n in names if not n.startswith("cudasim_")} == {"asen_plugin_init"}


WHY = "from asenpp import cuda; print(cuda.why_not())"


@pytest.mark.parametrize("driver, text", [("none", "no NVIDIA driver"), ("old", "driver is for CUDA 11.4"), ("nodevice", "sees no GPU")])
def test_machine_without_a_usable_gpu(plugin, driver, text):
    status, out, err = run(WHY, ASENPP_CUDA_PLUGIN=str(plugin), CUDASIM_DRIVER=driver)
    assert status == 0, err
    assert text in out


def test_device_too_old(plugin, tmp_path):
    description = tmp_path / "old.json"
    description.write_text('{"deviceVer": 700, "deviceName": "NVIDIA V100"}')
    status, out, err = run(WHY, ASENPP_CUDA_PLUGIN=str(plugin), CUDASIM_DEVICE=str(description))
    assert status == 0 and "compute capability 7.0" in out, out + err


def test_opening_fails_at_each_call(plugin):
    """Whatever fails while the device is opened, the reason is said, and a second try works."""
    status, out, err = run("""
import sys
from asenpp import _asen
from cudasim.sim import Simulator
simulator = Simulator(sys.argv[1], load=False)
for nth in range(1, 100):
    before = simulator.failed()
    simulator.fail("*", nth)
    try:
        _asen.load_plugin(sys.argv[1])
    except (RuntimeError, MemoryError) as error:
        assert "cuda" in str(error) or "GPU" in str(error), error
    else:
        break
print(nth - 1, simulator.failed())
""", plugin)
    assert status == 0, err
    calls, failed = map(int, out.split())
    assert calls == failed >= 5


def test_out_of_memory_says_what_was_asked(plugin):
    status, out, err = run("""
import sys
import numpy as np
from asenpp import _asen, cuda
assert cuda.is_available(), cuda.why_not()
held = []
try:
    for _ in range(100):
        held.append(_asen.from_numpy(np.zeros(1 << 18, np.float32)).to("cuda"))
except MemoryError as error:
    print(len(held), error)
held.clear()
print(_asen.from_numpy(np.ones(1 << 18, np.float32)).to("cuda").numpy().sum())
""", ASENPP_CUDA_PLUGIN=str(plugin), CUDASIM_MEMORY="48M")
    assert status == 0, err
    assert "out of memory on cuda" in out and "1.0 MiB asked" in out and out.endswith("262144.0\n"), out


# One step of a small network; each round has a batch size of its own, so that plans are made anew.
STEP = """
import gc, json, sys
import numpy as np
from asenpp import _asen, cuda
from cudasim.sim import Simulator

assert cuda.is_available(), cuda.why_not()
simulator = Simulator(sys.argv[1], load=False)
rng = np.random.default_rng(0)
arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((6, 4, 3, 3), (6,), (6,), (3, 6), (3,))]

def step(batch, device):
    x = _asen.from_numpy(np.linspace(-1, 1, batch * 4 * 5 * 5, dtype=np.float32).reshape(batch, 4, 5, 5)).to(device)
    p = [_asen.from_numpy(a).clone().to(device) for a in arrays]
    for t in p:
        t.requires_grad_()
    running = [_asen.from_numpy(np.ones(6, np.float32)).clone().to(device) for _ in range(2)]
    y, _, _ = _asen.batch_norm(_asen.conv2d(x, p[0], padding=1), p[1], p[2], running[0], running[1], relu=True)
    y = _asen.linear(_asen.mean(y, dims=[2, 3]), p[3], p[4])
    loss = _asen.sum(_asen.mul(y, y))
    loss.backward()
    detached, grads = [t.detach() for t in p], [t.grad for t in p]
    state = [[t.detach() * 0 for t in p] for _ in range(2)]
    _asen.optim_step("adam", detached, grads, *state, 1, 1e-2)
    return [np.array(t.detach().numpy()) for t in (*p, *running, loss)]

def right(found, batch):
    return all(np.allclose(a, b, rtol=2e-3, atol=2e-4) for a, b in zip(found, step(batch, "cpu"), strict=True))

def alive():
    gc.collect()
    return {kind: simulator.live(kind) for kind in ("cudnn", "cublas", "event", "stream", "host")} | {
        "bytes": _asen.memory_stats("cuda")["current"]}
"""

EVERY_CALL = STEP + """
assert right(step(2, "cuda"), 2)
start = alive()
assert right(step(3, "cuda"), 3)
growth = {kind: n - start[kind] for kind, n in alive().items()}
raised = recovered = 0
for nth in range(1, 2000):
    batch = nth + 3
    start, before = alive(), simulator.failed()
    simulator.fail("*", nth)
    try:
        found = step(batch, "cuda")
    except (RuntimeError, MemoryError, NotImplementedError) as error:
        raised += 1
        found = None
    simulator.fail("*", 0)
    if simulator.failed() == before:
        break
    if found is not None:
        recovered += 1
        assert right(found, batch), f"call {nth} failed, nothing was raised, and the result is wrong"
    assert right(step(batch, "cuda"), batch), f"after a failure of call {nth} a second try is wrong"
    grown = {kind: n - start[kind] for kind, n in alive().items()}
    assert grown == growth or found is not None and grown["bytes"] == 0, f"call {nth} failed: {grown}, and {growth} without\\n{simulator.report()[-3000:]}"
    assert simulator.violations() == 0, simulator.last_violation()
print(json.dumps([raised, recovered]))
"""


def test_every_call_failing_once(plugin):
    """Each call of cudart, cuBLASLt and cuDNN that a training step makes fails once: an exception or, where there is
    another way, the right result; nothing leaks, and the next step is right."""
    status, out, err = run(EVERY_CALL, plugin, ASENPP_CUDA_PLUGIN=str(plugin))
    assert status == 0, err[-4000:]
    raised, recovered = json.loads(out)
    print(f"{raised} failures raised, {recovered} had another way")
    assert raised > 100


# One order less in the plugin's uploads and downloads: a statement, and what stands in its place.
LESS_ORDER = {
    "kernels before the upload": (r"CUDA_OK\(CUDA_CALL\(cudaStreamWaitEvent\(cuda.stream, s->arrived, 0\)\)\);", ""),
    "a slot's host memory": (r"CUDA_OK\(CUDA_CALL\(cudaEventSynchronize\(s->arrived\)\)\);", ""),
    "a slot's device memory": (r"CUDA_OK\(CUDA_CALL\(cudaStreamWaitEvent\(uploads, s->taken, 0\)\)\);", ""),
    "downloads": (r"return cuda_synchronize\(self\);\n\}\s*$", "return ASEN_OK;\n}\n"),
}
UPLOADS = """
import numpy as np
from asenpp import _asen, cuda
assert cuda.is_available(), cuda.why_not()
tensors = [_asen.from_numpy(np.full(1000, k, np.float32)).to("cuda") for k in range(20)]
total = sum(abs(t.numpy() - k).max() for k, t in enumerate(tensors))
print("right" if total == 0 else "wrong")
"""


@pytest.mark.parametrize("what", [None, *LESS_ORDER])
def test_plugin_with_less_order(plugin, what):
    """The plugin's own synchronisation is needed, each piece of it: without one, numbers are wrong here."""
    library = plugin
    if what is not None:
        pattern, instead = LESS_ORDER[what]
        text, count = re.subn(pattern, instead, (ROOT / "kernels/transfer.c").read_text())
        assert count == 1, "kernels/transfer.c reads differently now: change LESS_ORDER with it"
        name = re.sub(r"\W+", "_", what)
        source = cudasim.write_if_new(cudasim.CACHE / f"transfer_less_{name}.c", text)
        kernels = [p for p in sorted((ROOT / "kernels").iterdir()) if p.suffix in (".c", ".cu") and p.name != "transfer.c"]
        library = cudasim.build(cudasim.CACHE / f"less_{name}.so", sources=[*kernels, source])
    status, out, err = run(UPLOADS, ASENPP_CUDA_PLUGIN=str(library))
    assert status == 0, err
    assert out == ("right\n" if what is None else "wrong\n")


def test_tf32_shows_in_the_numbers(plugin):
    """The simulated plans really round: a plan that the plugin should have refused would be seen."""
    status, out, err = run(STEP + """
def error(tf32):
    cuda.allow_tf32(tf32)
    x = rng.standard_normal((2, 64, 9, 9)).astype(np.float32)
    w = rng.standard_normal((8, 64, 3, 3)).astype(np.float32)
    args = [_asen.from_numpy(a) for a in (x, w)]
    found = _asen.conv2d(*[a.to("cuda") for a in args]).numpy()
    want = _asen.conv2d(*[_asen.from_numpy(a.astype(np.float64)) for a in (x, w)]).numpy()
    return float(np.abs(found - want).max() / np.abs(want).max())
print(json.dumps([error(False), error(True)]))
""", plugin, ASENPP_CUDA_PLUGIN=str(plugin))
    assert status == 0, err
    exact, rounded = json.loads(out)
    assert exact < 1e-6 and rounded > 1e-5


def test_every_access_of_a_step(plugin):
    """With every tensor an allocation of its own and every load and store checked: no bounds broken, no races."""
    plugin = cudasim.plugin(check=True)
    status, out, err = run(STEP + """
assert right(step(3, "cuda"), 3)
print(simulator.violations(), simulator.last_violation())
""", plugin, ASENPP_CUDA_PLUGIN=str(plugin), ASENPP_NO_MEMORY_CACHE="1")
    assert status == 0, err
    assert out.startswith("0 "), out
