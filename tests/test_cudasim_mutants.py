"""The kernels' barriers and alignment tests are needed, and the tests of tests/cuda notice where one is missing.

tests/cudasim/mutants.py makes the mutants; here it runs over all barriers, and over those mutants that lived once. All
kinds with all cases: `make mutants`.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cudasim import build as cudasim

sys.path.insert(0, str(cudasim.HERE))

import mutants  # noqa: E402
import mutants_known as known  # noqa: E402

KERNELS = cudasim.ROOT / "kernels"
SCRIPT = cudasim.HERE / "mutants.py"
# Enough to reach every barrier: more turns than blocks, integers, transposed copies; a tenth of all cases.
CASES = "more_than_one_turn.*float32|integer_reductions|copies_of_any_strides.float|no_vectors.float32, (normalize|relu|max_pool2d) "


@pytest.fixture(scope="module")
def found():
    return mutants.all_mutants(KERNELS)


def test_what_is_known_is_there(found):
    """An entry of NAMED or EQUIVALENT whose line was changed is an error, not a mutant less."""
    assert mutants.judge([], found) == []
    text = mutants.judge([], [m for m in found if m.file != "reduce_rows.cu"])
    assert any("NAMED has what is no longer there" in line and "reduce_rows.cu" in line for line in text)


def test_every_barrier_in_the_sources_is_a_mutant(found):
    """The search for mutants misses none: as many as the sources have, comments aside."""
    for path in [*KERNELS.glob("*.cu"), *KERNELS.glob("*.cuh")]:
        count = mutants.blanked(path.read_text()).count("__sync")
        assert count == sum(m.kind == "barrier" and m.file == path.name for m in found), path.name
    assert len({m.key for m in found}) == len(found)


def test_a_mutant_that_lives_is_an_error(found):
    living = {"file": "a.cu", "function": "f", "kind": "barrier", "text": "__syncthreads();", "turn": 0, "reason": None}
    for verdict in ("lives", "unreached", "broken"):
        assert any(line.startswith(verdict) for line in mutants.judge([{**living, "verdict": verdict}], found))
    for verdict in mutants.KILLED:
        assert mutants.judge([{**living, "verdict": verdict}], found) == []


def test_barriers_and_what_lived_once_are_killed(tmp_path):
    """Each by what its absence does: a race or an access that hardware would not forgive, or wrong numbers."""
    if shutil.which(cudasim.CXX[0]) is None:
        pytest.skip(f"no C++ compiler here ({cudasim.CXX[0]})")
    try:
        cudasim.headers()
    except cudasim.BuildError as error:
        pytest.skip(f"no CUDA headers here: {error}")
    out = tmp_path / "mutants.json"
    done = subprocess.run([sys.executable, str(SCRIPT), "--kinds", "barrier", "--named", "--cases", CASES, "--out", str(out)],
                          capture_output=True, text=True, cwd=cudasim.ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads(out.read_text())["mutants"]
    assert len(results) >= 20
    for r in results:
        assert r["verdict"] in ("fault", "numbers"), r
        if r["kind"] == "barrier" and r["verdict"] == "fault":
            assert "a race with" in r["how"] or "divergent" in r["how"], r
        if r["kind"] == "alignment" and r["verdict"] == "fault":
            assert "wants an alignment of" in r["how"] or "outside" in r["how"] or "behind the end" in r["how"] or "a race" in r["how"], r
