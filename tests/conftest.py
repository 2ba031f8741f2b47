"""What all tests share: the checkout on sys.path, and few threads (machines that run tests are shared).

ASENPP_TEST_PACKAGE names another folder that holds the asenpp to test (tests/sanitize.sh)."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
# Two OpenMP runtimes live here (ours and PyTorch's): threads that wait must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(os.environ.get("ASENPP_TEST_PACKAGE") or ROOT)
for folder in (ROOT / "tests", PACKAGE):
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))


def pytest_report_header():
    import asenpp._asen

    module = Path(asenpp._asen.__file__)
    if PACKAGE not in module.parents:
        raise RuntimeError(f"the asenpp under test should come from {PACKAGE}, not from {module}")
    return f"module: {module}"
