"""The device table suits an asynchronous device.

A toy device (tests/toydevice) queues everything and runs it late, in a thread of its own. These
tests prove that a training step of convolution, grouped batch norm and Adam gives the CPU's bits
there, that nothing runs before somebody must wait, that a missing kernel, a foreign ABI and a
mix of devices are clear errors, and that a device is opened once, whatever is loaded how often. They run in a process of their own, since devices stay loaded.
"""

import ctypes.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    compiler = shutil.which((os.environ.get("CC") or "cc").split()[-1])
    if compiler is None:
        pytest.skip("no C compiler here")
    folder = tmp_path_factory.mktemp("toy")

    def make(name, *flags, csrc=ROOT / "csrc"):
        target = folder / f"{name}.so"
        subprocess.run(
            [compiler, "-std=c11", "-O1", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror",
             "-fPIC", "-shared", "-fvisibility=hidden", *flags, f"-I{csrc}",
             str(ROOT / "tests/toydevice/toy.c"), "-o", str(target), "-lpthread"], check=True)
        return target

    return make


def run(code, *args):
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_step_on_an_asynchronous_device(build):
    out = run(
        """
import ctypes, sys
import numpy as np
from asenpp import _asen
_asen.load_plugin(sys.argv[1])
toy = ctypes.CDLL(sys.argv[1])
toy.toy_queued.restype = toy.toy_ran.restype = ctypes.c_uint64
_asen.set_kernel_paths("reference")

def steps(device):
    rng = np.random.default_rng(0)
    def tensor(*shape):
        return _asen.from_numpy(rng.standard_normal(shape).astype(np.float32)).contiguous().to(device)
    x = tensor(6, 3, 9, 8)
    params = [tensor(5, 3, 3, 3), tensor(5), tensor(5)]
    for p in params:
        p.requires_grad_()
    running = [tensor(5) * 0, tensor(5) * 0 + 1]
    state = [[p.detach() * 0 for p in params] for _ in range(2)]
    for step in range(1, 4):
        y = _asen.conv2d(x, params[0], stride=2, padding=1)
        y, mean, invstd = _asen.batch_norm(y, params[1], params[2], running[0], running[1], groups=3, relu=True)
        loss = (y * y).mean(dim=(2, 3)).sum()
        for p in params:
            p.grad = None
        loss.backward()
        _asen.optim_step("adam", [p.detach() for p in params], [p.grad for p in params], *state, step, 1e-2)
    return loss, params + running

before = toy.toy_ran()
loss, tensors = steps("toy")
assert toy.toy_queued() > 50, toy.toy_queued()
early = toy.toy_ran() - before
cpu_loss, cpu_tensors = steps("cpu")
assert loss.item() == cpu_loss.item(), (loss.item(), cpu_loss.item())
for a, b in zip(tensors, cpu_tensors):
    a, b = a.detach().to("cpu").numpy(), b.detach().numpy()
    assert np.isfinite(a).all() and (a == b).all(), abs(a - b).max()
assert toy.toy_ran() == toy.toy_queued()
print("ran before anybody waited:", early)
""",
        build("toy"))
    assert out.strip() == "ran before anybody waited: 0"


def test_gradients_flow_between_devices(build):
    """to() is part of the graph: what is moved there, converted, and moved back has a gradient where it started."""
    run(
        """
import sys
import numpy as np
from asenpp import _asen
_asen.load_plugin(sys.argv[1])
x = _asen.from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3)).requires_grad_()
there = x.to("toy")
assert there.requires_grad and not there.is_leaf
y = (there * there).to(dtype="float64", device="cpu")
(y * 3.0).sum().backward()
assert x.grad.device == "cpu" and x.grad.dtype == "float32"
assert x.grad.tolist() == (6 * np.arange(6.0).reshape(2, 3)).tolist()
_asen.set_grad_enabled(False)
assert not x.to("toy").requires_grad
""",
        build("toy"))


def test_missing_kernel_and_mixed_devices_are_clear_errors(build):
    run(
        """
import sys
import numpy as np
from asenpp import _asen
_asen.load_plugin(sys.argv[1])
a = _asen.from_numpy(np.ones((2, 3), np.float32))
def error(kind, part, f):
    try:
        f()
    except kind as e:
        assert part in str(e), str(e)
    else:
        raise AssertionError(part)
error(NotImplementedError, "tanh: no kernel on toy", lambda: a.to("toy").tanh())
error(ValueError, "different devices", lambda: a.to("toy") + a)
error(ValueError, "no device 'tpu'", lambda: a.to("tpu"))
error(IndexError, "queued kernel failed", lambda: _asen.embedding(
    a.to("toy"), _asen.from_numpy(np.array([7])).to("toy")).to("cpu"))
start = _asen.memory_stats("toy")["current"]
b = a.to("toy")
assert _asen.memory_stats("toy")["current"] > start
del b
assert _asen.memory_stats("toy")["current"] == start
""",
        build("toy"))


def test_what_a_plugin_warns_of_is_logged(build):
    """From any thread, with or without the GIL; a handler that raises harms nobody."""
    run(
        """
import logging, sys
from asenpp import _asen
_asen.load_plugin(sys.argv[1])
class Keep(logging.Handler):
    def emit(self, record):
        found.append((record.levelname, record.getMessage()))
        if len(found) == 1:
            raise KeyError("ours")
found = []
logging.getLogger("asenpp").addHandler(Keep())
_asen.set_option("toy", "warn", 1)
import time
while len(found) < 2:       # the interpreter comes by once the main thread has taken the GIL
    time.sleep(0)
assert found == [("WARNING", "toy: 1 of 2"), ("WARNING", "toy: 2 of 2")], found
""",
        build("warns"))


def refused(path, part):
    run(
        """
import sys
from asenpp import _asen
try:
    _asen.load_plugin(sys.argv[1])
except RuntimeError as e:
    assert "another version" in str(e) and sys.argv[2] in str(e), e
else:
    raise AssertionError("loaded")
assert sys.argv[1] not in open("/proc/self/maps").read(), "it is still mapped"
""",
        path, part)


def test_plugin_of_another_version_is_refused(build):
    refused(build("wrong", "-DTOY_WRONG_ABI"), "ASEN_BACKEND_ABI")


# What a plugin may have been built from: a file of csrc/, a change of it, and what the message names. All of them left the
# names of the ops alone.
OTHER_CORES = {
    "attribute": ("ops/ops.def", r"ATTRIBUTES\(pow, REQUIRED\(float, exponent\)", "ATTRIBUTES(pow, REQUIRED(int, exponent)",
                  "attributes pow"),
    "attributes": ("ops/ops.def", r'OP\(mean, "x", "y", reduce', 'OP(mean, "x", "y", none', "mean"),
    "input": ("ops/ops.def", r'OP\(linear, "x w bias\?"', 'OP(linear, "x w bias"', "linear"),
    "output": ("ops/ops.def", r'OP\(relu, "x", "y"', 'OP(relu, "x", "z"', "relu"),
    "flags": ("ops/ops.def", r'OP\(sum,([^)]*?)DENSE', r'OP(sum,\1STRIDED', "sum"),
    "larger tensor": ("core/tensor.h", r"int slot;", "int slot; int64_t more;", "sizeof(asen_tensor)"),
    "call in another order": ("ops/op.h", r"(    asen_tensor \*const \*in;\n)(    asen_tensor \*const \*out;\n)", r"\2\1",
                              "asen_call.in"),
    "smaller shapes": ("core/asen.h", r"#define ASEN_MAX_DIMS 8", "#define ASEN_MAX_DIMS 6", "ASEN_MAX_DIMS"),
    "backend in another order": ("ops/backend.h", r"(    int \(\*optim_step\).*?;\n)(.*)(    int \(\*set_option\).*?;\n)",
                                 r"\3\2\1", "asen_backend.optim_step"),
}


@pytest.mark.parametrize("what", OTHER_CORES)
def test_plugin_of_another_core_is_refused(build, what, tmp_path):
    """Op names alone do not tell: schemas and structs are compared, too."""
    file, pattern, instead, part = OTHER_CORES[what]
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    text, count = re.subn(pattern, instead, (ROOT / "csrc" / file).read_text(), count=1, flags=re.DOTALL)
    assert count == 1, f"{file} reads differently: change OTHER_CORES with it"
    (tmp_path / "csrc" / file).write_text(text)
    refused(build(re.sub(r"\W", "_", what), csrc=tmp_path / "csrc"), part)


def test_a_second_load_is_harmless(build, tmp_path):
    """The same file, by its path, another path, a symbolic and a hard link: what was queued is there, nothing is opened
    again."""
    library = build("twice")
    (tmp_path / "link.so").symlink_to(library)
    (tmp_path / "hard.so").hardlink_to(library)
    run(
        """
import ctypes, os, sys
import numpy as np
from asenpp import _asen
_asen.load_plugin(sys.argv[1])
toy = ctypes.CDLL(sys.argv[1])
a = _asen.from_numpy(np.arange(6, dtype=np.float32)).to("toy")
b = a * 2.0
for path in (sys.argv[1], os.path.join(os.path.dirname(sys.argv[1]), ".", "twice.so"), *sys.argv[2:]):
    _asen.load_plugin(path)
    b = b + a
assert toy.toy_opened() == 1, toy.toy_opened()
assert b.to("cpu").tolist() == [6.0 * i for i in range(6)]
""",
        library, tmp_path / "link.so", tmp_path / "hard.so")


def test_threads_that_load_at_once(build):
    run(
        """
import ctypes, sys, threading
from asenpp import _asen
start, errors = threading.Barrier(8), []
def load():
    start.wait()
    try:
        _asen.load_plugin(sys.argv[1])
        _asen.memory_stats("toy")
    except Exception as error:
        errors.append(error)
threads = [threading.Thread(target=load) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
assert not errors, errors
assert ctypes.CDLL(sys.argv[1]).toy_opened() == 1
""",
        build("threads"))


def test_a_copy_under_another_name_is_refused_unopened(build, tmp_path):
    """Another library with statics of its own, whose device has a name that is taken."""
    library = build("first")
    copy = shutil.copy(library, tmp_path / "second.so")
    run(
        """
import ctypes, sys
import numpy as np
from asenpp import _asen
_asen.load_plugin(sys.argv[1])
a = _asen.from_numpy(np.ones(3, np.float32)).to("toy")
second = ctypes.CDLL(sys.argv[2])       # held, so that it can be asked
for _ in range(3):
    try:
        _asen.load_plugin(sys.argv[2])
    except ValueError as e:
        assert "a device 'toy' is loaded already" in str(e) and sys.argv[2] in str(e), e
    else:
        raise AssertionError("loaded")
assert second.toy_opened() == 0
assert (a + a).to("cpu").tolist() == [2.0] * 3
import _ctypes
_ctypes.dlclose(second._handle)
assert sys.argv[2] not in open("/proc/self/maps").read(), "refusing kept it mapped"
""",
        library, copy)


def test_a_device_that_fails_to_open(build):
    """What its libraries started goes on: a thread in its code, a function at exit. No device is there; a second try may
    work."""
    run(
        """
import ctypes, sys
import numpy as np
from asenpp import _asen
try:
    _asen.load_plugin(sys.argv[1])
except RuntimeError as e:
    assert "does not open" in str(e)
else:
    raise AssertionError("loaded")
try:
    _asen.memory_stats("toy")
except ValueError as e:
    assert "no device 'toy'" in str(e)
else:
    raise AssertionError("there")
assert sys.argv[1] in open("/proc/self/maps").read(), "unmapped under a thread that runs in it"
toy = ctypes.CDLL(sys.argv[1])
before = toy.toy_ticks()
while toy.toy_ticks() == before:
    pass
_asen.load_plugin(sys.argv[1])
assert _asen.from_numpy(np.ones(3, np.float32)).to("toy").to("cpu").tolist() == [1.0] * 3
""",
        build("fails", "-DTOY_OPEN_FAILS"))


def test_library_that_is_no_plugin_is_refused():
    run(
        """
import sys
from asenpp import _asen
for path, part in [(sys.argv[1], "lacks asen_plugin_init"), ("/nonexistent.so", "cannot load")]:
    try:
        _asen.load_plugin(path)
    except RuntimeError as e:
        assert part in str(e), str(e)
    else:
        raise AssertionError(path)
""",
        ctypes.util.find_library("m") or "libm.so.6")
