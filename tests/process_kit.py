"""Python code in a process of its own: for what must neither crash nor hang, which a test has to survive."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent


def run_code(code, *args, timeout=240, expect=0, **environment):
    """Runs the code, with this package and tests/ to import from, and returns what it printed (out, err). The test fails
    where it hangs or ends with another status than `expect`; no process of it is left."""
    package = os.environ.get("ASENPP_TEST_PACKAGE") or str(TESTS.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, str(TESTS)]), "OMP_WAIT_POLICY": "passive",
                   **environment}
    with subprocess.Popen([sys.executable, "-X", "faulthandler", "-c", code, *map(str, args)], env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"hangs after {timeout} s:\n{out}\n{err}")
    assert process.returncode == expect, f"status {process.returncode}\n{out}\n{err}"
    return out, err
