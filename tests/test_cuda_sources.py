"""The boundaries of the CUDA plugin, held by reading its sources, and the built plugin where there is one. No GPU is needed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import asenpp
from asenpp import _asen, cuda
from test_boundaries import includes, without_comments

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(p for p in (ROOT / "kernels").iterdir() if p.suffix in (".c", ".h", ".cu", ".cuh"))
PLUGIN = Path(cuda.__file__).with_name(cuda.PLUGIN)
ROWS = [spec["name"] for spec in _asen.op_specs() if not spec["view"]]


def test_there_are_sources():
    assert len(SOURCES) > 15 and {p.suffix for p in SOURCES} == {".c", ".h", ".cu", ".cuh"}


def defined():
    """Rows that have a definition, plain, through a macro that pastes the row's name, or in the elementwise table."""
    text = "\n".join(without_comments(p.read_text()) for p in SOURCES)
    found = set(re.findall(r"\bint cuda_(\w+)\(const asen_call \*\s*\w+\)\s*\{", text))
    pasting = set(re.findall(r"#define (\w+)\([^)]*\)(?:[^\n]*\\\n)*[^\n]*int cuda_##", text))
    for macro in pasting:
        found |= set(re.findall(rf"^{macro}\((\w+)", text, re.MULTILINE))
    if any("ops/elementwise.def" in includes(p) for p in SOURCES):
        found |= set(re.findall(r"^(?:UNARY|BINARY)\((\w+)", (ROOT / "csrc/ops/elementwise.def").read_text(), re.MULTILINE))
    return found


def test_every_row_has_a_kernel():
    """By definition in the sources; a missing one would not link either."""
    missing = sorted(set(ROWS) - defined())
    assert not missing, f"rows of ops.def without a CUDA kernel: {', '.join(missing)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_the_plugin_neither_prints_nor_ends_the_process(path):
    code = without_comments(path.read_text())
    calls = re.findall(r"\b(abort|_?exit|quick_exit|assert|perror|printf|fprintf|puts|err|warnx?|__trap)\s*\(", code)
    assert not calls, f"{path.name} calls {', '.join(sorted(set(calls)))}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_kernels_keep_to_what_the_simulation_knows(path):
    """Launches through ASEN_LAUNCH, shared memory through its macros; no float atomics, which would make sums depend
    on the order of threads; no library of kernels."""
    code = without_comments(path.read_text())
    if path.name != "kernels.cuh":
        assert "<<<" not in code and "__shared__" not in code
    assert not re.search(r"atomicAdd\s*\(\s*\(?\s*(float|double)", code)
    for name in includes(path):
        assert not re.match(r"cub/|thrust/|cooperative_groups|cuda/", name), f"{path.name} includes {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_headers_stay_behind_their_boundaries(path):
    """cuDNN only in cudnn_*, cuBLASLt only in matmul.c, Python nowhere."""
    for name in includes(path):
        if "cudnn" in name and name != "cudnn_graph.h":
            assert path.name.startswith("cudnn_"), f"{path.name} includes {name}"
        if "cublas" in name:
            assert path.name == "matmul.c", f"{path.name} includes {name}"
        assert name != "Python.h"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_files_stay_below_800_lines(path):
    assert len(path.read_text().splitlines()) < 800


@pytest.fixture(scope="module")
def dynamic():
    """What the built plugin says of itself to the loader."""
    if not PLUGIN.exists():
        pytest.skip(f"this build has no CUDA plugin: {cuda.why_not()}")
    if shutil.which("objdump") is None or shutil.which("nm") is None:
        pytest.skip("objdump and nm (binutils) are not installed")
    return (subprocess.run(["objdump", "-p", str(PLUGIN)], check=True, capture_output=True, text=True).stdout,
            subprocess.run(["nm", "-D", "--defined-only", str(PLUGIN)], check=True, capture_output=True, text=True).stdout)


def test_the_plugin_exports_only_its_init_function(dynamic):
    names = {line.split()[-1].split("@")[0] for line in dynamic[1].splitlines()} - {"_init", "_fini", "_edata", "_end", "__bss_start"}
    assert names == {"asen_plugin_init"}


def test_the_plugin_needs_what_it_says(dynamic):
    """cuDNN and cuBLASLt by name, the driver not at all (cudart looks for it when it runs), no C++ run time; and no
    path of the machine that it was built on."""
    needed = set(re.findall(r"NEEDED\s+(\S+)", dynamic[0]))
    assert set(cuda._LIBRARIES) <= needed
    assert not any(re.match(r"libcuda\.|libcudart|libstdc", name) for name in needed), needed
    assert "RPATH" not in dynamic[0] and "RUNPATH" not in dynamic[0]
    assert str(ROOT).encode() not in PLUGIN.read_bytes()


def test_why_not_is_one_sentence_that_names_something():
    """Where CUDA does not work, whatever the reason, it is said in one line, and the rest of the package works."""
    reason = cuda.why_not()
    assert cuda.is_available() == (reason == "")
    if reason:
        assert "\n" not in reason and len(reason) > 20
        with pytest.raises(RuntimeError, match="CUDA is unavailable: "):
            cuda.memory_info()
        for use in (lambda: _asen.memory_stats("cuda"), lambda: asenpp.zeros(2, device="cuda"),
                    lambda: _asen.set_option("cuda", "tf32", 1)):
            with pytest.raises(RuntimeError, match="CUDA is unavailable: "):
                use()
