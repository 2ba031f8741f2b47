"""The walls between the rooms of csrc/ (docs/architecture.md), held by reading the sources and the built module."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from asenpp import _asen

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in (".c", ".h", ".def", ".inc"))


def name_of(path):
    return path.relative_to(CSRC).as_posix()



def without_comments(text):
    """C source without comments, and with string literals emptied; line breaks stay."""
    pattern = r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|//[^\n]*|/\*.*?\*/'
    return re.sub(pattern, lambda m: m[0] if m[0][0] == "'" else '""' if m[0][0] == '"' else "\n" * m[0].count("\n"),
                  text, flags=re.DOTALL)


def includes(path):
    return re.findall(r'^\s*#\s*include\s*[<"]([^">]+)[">]', path.read_text(), re.MULTILINE)


def test_there_are_sources():
    """The other tests would pass on an empty folder."""
    assert len(SOURCES) > 40
    assert any("Python.h" in includes(p) for p in SOURCES) and any(i.startswith("numpy/") for p in SOURCES for i in includes(p))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_headers_stay_behind_their_walls(path):
    """Python.h only in python/, NumPy's headers only in one file of it, oneDNN's only in cpu/onednn/, libyaml's
    only in config/, libjpeg's only in image/jpeg.c, CUDA's nowhere here."""
    where = name_of(path)
    for name in includes(path):
        if name in ("Python.h", "structmember.h") or name.startswith(("cpython/", "python/")):
            assert where.startswith("python/"), f"{where} includes {name}"
        if name.startswith("numpy/"):
            assert where == "python/numpy.c", f"{where} includes {name}"
        if "dnnl" in name:
            assert where.startswith("cpu/onednn/"), f"{where} includes {name}"
        if name == "yaml.h":
            assert where == "config/config.c", f"{where} includes {name}"
        if name in ("jpeglib.h", "jerror.h", "turbojpeg.h"):
            assert where == "image/jpeg.c", f"{where} includes {name}"
        assert not re.match(r"cuda|cudnn|cublas|nccl|nvrtc|device_launch", name), f"{name_of(path)} includes {name}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_the_core_neither_prints_nor_ends_the_process(path):
    """Errors are status codes and messages (status.h): a library never aborts, exits or prints."""
    code = without_comments(path.read_text())
    calls = re.findall(r"\b(abort|_?exit|quick_exit|raise|assert|perror|v?f?printf|puts|putchar|fputs|psignal|err|warnx?)\s*\(", code)
    assert not calls, f"{name_of(path)} calls {', '.join(sorted(set(calls)))}"
    assert not re.search(r"\b(stdout|stderr)\b", code), f"{name_of(path)} names a standard stream"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_stay_below_800_lines(path):
    assert len(path.read_text().splitlines()) < 800


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix == ".c" and p.parent.name == "python"], ids=name_of)
def test_no_static_types(path):
    """Types come from specs, so that each interpreter has its own."""
    assert not re.search(r"\bstatic\s+PyTypeObject\s+\w+\s*=", without_comments(path.read_text()))


def test_the_module_exports_only_its_init_function():
    """-fvisibility=hidden: two modules in a process must not meet each other's symbols."""
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    lines = subprocess.run(["nm", "-D", "--defined-only", _asen.__file__], check=True, capture_output=True, text=True).stdout.split("\n")
    names = {line.split()[-1] for line in lines if line} - {"_init", "_fini", "_edata", "_end", "__bss_start"}
    sanitizer = {n for n in names if n.startswith(("__asan", "__ubsan", "__odr_asan", "__sancov"))}
    assert names - sanitizer == {"PyInit__asen"}


def test_the_comment_stripper_sees_calls():
    """What the print test rests on."""
    assert without_comments('a(); /* exit(1) */ b("exit(1)"); // abort()\nabort();') == 'a();  b(""); \nabort();'
