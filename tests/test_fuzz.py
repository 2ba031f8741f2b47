"""A short fuzz of what reads foreign files: JPEG and YAML under sanitizers, checkpoints under an
audit hook. Each run mutates the same seeds in the same way. The full one is `make fuzz COUNT=1000000`."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FUZZ = ROOT / "tests" / "fuzz"
COMPILER = os.environ.get("CC", "cc")


def run(*command):
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment,
                          timeout=300)


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    if shutil.which(COMPILER.split()[0]) is None:
        pytest.skip(f"no C compiler {COMPILER} here")
    probe = run("sh", "-c", f"echo 'int main(void) {{ return 0; }}' | {COMPILER} -x c - "
                            f"-fsanitize=address,undefined -o {folder}/probe")
    if probe.returncode:
        pytest.skip(f"{COMPILER} has no sanitizer runtime here: {probe.stderr.strip()[-200:]}")
    built = run("sh", FUZZ / "build.sh", folder)
    assert built.returncode == 0, built.stderr
    seeds = run(sys.executable, FUZZ / "seeds.py", folder / "seeds")
    assert seeds.returncode == 0, seeds.stderr
    return folder


@pytest.mark.parametrize("name", ["jpeg", "yaml"])
def test_mutated_files_do_no_harm(targets, name):
    """No sanitizer report, no leak, no case over a second."""
    done = run(targets / name, targets / "seeds" / name, 20000, 1)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.startswith("20000 cases")


def test_mutated_checkpoints_do_no_harm():
    """Only CheckpointError or OSError, bounded memory and time, and nothing is run."""
    done = run(sys.executable, FUZZ / "fuzz_checkpoint.py", "--count", 10000, "--seed", 1)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "10000 cases" in done.stdout


def test_the_checkpoint_fuzz_sees_harm(tmp_path):
    """The fuzz itself fails for a reader that runs, allocates or raises what it must not, or hangs."""
    code = f"""
import sys, os, numpy
sys.path.insert(0, {str(FUZZ)!r})
import fuzz_checkpoint as f
def harm(action):
    return f.check(b'x', {str(tmp_path / "case")!r}, lambda path: action())[0]
def forever():
    while True:
        pass
f.arm()
assert harm(lambda: None) is None
assert harm(lambda: bytearray(40 << 20) and None) is None
assert 'os.system' in harm(lambda: os.system('true'))
assert 'MemoryError' in harm(lambda: bytearray(80 << 20) and None)
assert 'MemoryError' in harm(lambda: numpy.empty(80 << 20, 'u1') and None)
assert 'still at work' in harm(forever)
assert 'KeyError' in harm(lambda: {{}}['x'])
"""
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr[-4000:]
