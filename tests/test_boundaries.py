"""The layers of csrc/ and the boundaries between them (docs/architecture.md), held by reading the sources, the
build's flags and the built module."""

import ast
import re
import shutil
import subprocess
from collections import Counter
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


# Each layer, and the layers that it may include: those under it.
LAYERS = {
    "core": (),
    "ops": ("core",),
    "autograd": ("ops", "core"),
    "cpu": ("ops", "core"),
    "image": ("core",),
    "metrics": ("core",),
    "config": ("core",),
    "python": ("autograd", "ops", "core", "cpu", "image", "metrics", "config"),
    "kernels": ("ops", "core"),
}


def layer_includes(files):
    """[(including file, its layer, included file, its layer)] for includes of our own."""
    found = []
    for path, text in files.items():
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE):
            parts = path.split("/")
            layer = parts[1] if parts[0] == "csrc" else parts[0]
            found.append((path, layer, name, name.split("/")[0] if "/" in name else layer))
    return found


def arrows_upwards(files):
    return [f"{path} includes {name}" for path, layer, name, other in layer_includes(files)
            if other != layer and other not in LAYERS[layer]]


def circles(files):
    """Folders (cpu/fast, ops, …) that include each other in a circle."""
    graph = {}
    for path, _, name, _ in layer_includes(files):
        here, there = path.removeprefix("csrc/").rpartition("/")[0], name.rpartition("/")[0]
        graph.setdefault(here, set()).add(there or here)

    def reaches(start):
        seen, todo = set(), [n for n in graph.get(start, ()) if n != start]
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += graph.get(node, ())
        return seen

    return sorted(folder for folder in graph if folder in reaches(folder))


@pytest.fixture(scope="module")
def files():
    kernels = [p for p in (ROOT / "kernels").iterdir() if p.suffix in (".c", ".h", ".cu", ".cuh")]
    return {p.relative_to(ROOT).as_posix(): p.read_text() for p in [*SOURCES, *kernels]}


def test_every_folder_is_a_layer(files):
    assert {p.split("/")[1] if p.startswith("csrc/") else p.split("/")[0] for p in files} == set(LAYERS)


def test_layers_include_only_what_stands_under_them(files):
    assert arrows_upwards(files) == []


def test_folders_include_each_other_in_no_circle(files):
    assert circles(files) == []


def test_the_reference_is_independent_of_what_it_judges():
    """One table of expressions feeds the fast kernels and the GPU's; the oracle has its own."""
    users = {path.relative_to(ROOT).parts[:-1] for path in [*SOURCES, *(ROOT / "kernels").glob("*.cu")]
             if "ops/elementwise.def" in includes(path)}
    assert users == {("csrc", "cpu", "fast"), ("kernels",)}


FUNCTION = re.compile(r"^[a-zA-Z_][\w *]*?\b(\w+)\([^;{}]*?\)\s*[;{]", re.MULTILINE)
MACRO = re.compile(r"^#\s*(?:define|undef) (\w+)", re.MULTILINE)
FROM_OUTSIDE = {"PY_SSIZE_T_CLEAN"}  # Python's headers read it


def unused_in_headers(files):
    """Functions and macros of headers that no source names but to declare, define or undefine them. Names that a macro
    pastes together count as used."""
    code = {path: without_comments(text) for path, text in files.items()}
    everything = "\n".join(code.values())
    pasted = tuple(set(re.findall(r"\b(\w+)##", everything)))
    words = Counter(re.findall(r"\w+", everything))
    declared = Counter(FUNCTION.findall(everything) + MACRO.findall(everything))
    found = []
    for path, text in code.items():
        if path.endswith((".h", ".cuh")):
            names = set(FUNCTION.findall(text) + MACRO.findall(text)) - set(re.findall(r"#ifndef (\w+)", text)) - FROM_OUTSIDE
            found += [f"{path}: {name}" for name in sorted(names)
                      if words[name] <= declared[name] and not name.startswith(pasted)]
    return found


def test_headers_declare_only_what_is_used(files):
    assert unused_in_headers(files) == []


def test_an_unused_function_is_seen(files):
    planted = {**files, "csrc/core/half.h": files["csrc/core/half.h"] + "static inline float twice(float x) { return x + x; }\n"}
    assert unused_in_headers(planted) == ["csrc/core/half.h: twice"]


def test_comments_name_files_that_exist(files):
    """By path, or by the end of one: rules.c, autograd/rules.c."""
    folders = ("csrc", "kernels", "asenpp", "tests", "docs")
    there = [*ROOT.iterdir(), *(p for folder in folders for p in (ROOT / folder).rglob("*.*"))]
    tracked = [p.relative_to(ROOT).as_posix() for p in there]
    ends = {"/".join(path.split("/")[at:]) for path in tracked for at in range(path.count("/") + 1)}
    outside = {"Python.h"}
    for path, text in files.items():
        for comment in re.findall(r"/\*.*?\*/|//[^\n]*", text, re.DOTALL):
            for name in re.findall(r"\b[\w/]+\.(?:cuh?|cpp|[ch]|def|inc|py|md)\b", comment):
                assert name in ends | outside, f"{path} speaks of {name}"


@pytest.mark.parametrize("path, line", [("csrc/core/tensor.c", "autograd/tape.h"), ("csrc/ops/view.c", "autograd/record.h"),
                                        ("csrc/cpu/cpu.c", "autograd/tape.h"), ("kernels/plugin.c", "cpu/cpu.h")])
def test_an_arrow_upwards_is_seen(files, path, line):
    assert arrows_upwards({**files, path: files[path] + f'\n#include "{line}"\n'}) == [f"{path} includes {line}"]


def test_a_circle_is_seen(files):
    text = files["csrc/cpu/ref/ref.h"] + '\n#include "cpu/fast/fast.h"\n'
    other = files["csrc/cpu/fast/fast.h"] + '\n#include "cpu/ref/ref.h"\n'
    assert circles({**files, "csrc/cpu/ref/ref.h": text, "csrc/cpu/fast/fast.h": other}) == ["cpu/fast", "cpu/ref"]


def test_flags_of_each_file():
    """A file that moves must not silently lose -O3, OpenMP, or the ban on contraction."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    names = {"PLAIN", "FAST", "FLAGS"}
    code = [n for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id in names]
    values = {}
    exec(compile(ast.Module(code, []), "setup.py", "exec"), values)
    folders = {name_of(p).rpartition("/")[0] for p in SOURCES if p.suffix == ".c"}
    assert folders == set(values["FLAGS"])
    for folder, flags in values["FLAGS"].items():
        fast = folder in ("cpu/fast", "metrics/similarity")
        assert ("-O3" in flags) == fast, folder
        assert ("-ffp-contract=fast" in flags) == fast, folder
        assert ("-fopenmp" in flags) == (fast or folder == "cpu/onednn"), folder
        assert ("-ffp-contract=off" in flags) == (not fast and folder != "cpu/onednn"), folder


def test_there_are_sources():
    """The other tests would pass on an empty folder."""
    assert len(SOURCES) > 40
    assert any("Python.h" in includes(p) for p in SOURCES) and any(i.startswith("numpy/") for p in SOURCES for i in includes(p))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_foreign_headers_stay_in_their_folders(path):
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
