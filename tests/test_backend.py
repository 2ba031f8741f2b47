"""The device table suits an asynchronous device.

A toy device (tests/toydevice) queues everything and runs it late, in a thread of its own. These
tests prove that a training step of convolution, grouped batch norm and Adam gives the CPU's bits
there, that nothing runs before somebody must wait, and that a missing kernel, a foreign ABI and a
mix of devices are clear errors. They run in a process of their own, since devices stay loaded.
"""

import ctypes.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler here")
    folder = tmp_path_factory.mktemp("toy")

    def make(name, *flags):
        target = folder / f"{name}.so"
        subprocess.run(
            [compiler, "-std=c11", "-O1", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror",
             "-fPIC", "-shared", "-fvisibility=hidden", *flags, f"-I{ROOT / 'csrc'}",
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
error(ValueError, "loaded already", lambda: _asen.load_plugin(sys.argv[1]))
error(IndexError, "queued kernel failed", lambda: _asen.embedding(
    a.to("toy"), _asen.from_numpy(np.array([7])).to("toy")).to("cpu"))
start = _asen.memory_stats("toy")["current"]
b = a.to("toy")
assert _asen.memory_stats("toy")["current"] > start
del b
assert _asen.memory_stats("toy")["current"] == start
""",
        build("toy"))


def test_plugin_of_another_version_is_refused(build):
    run(
        """
import sys
from asenpp import _asen
try:
    _asen.load_plugin(sys.argv[1])
except RuntimeError as e:
    assert "another version" in str(e)
else:
    raise AssertionError("loaded")
""",
        build("wrong", "-DTOY_WRONG_ABI"))


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
