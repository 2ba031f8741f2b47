"""Adding an op is as little work as docs/architecture.md says, and what is left out is named: the lines of its worked
example go into a copy of the core, which is built and tried, and into the op table that the CUDA plugin is linked by."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from test_packaging import CLEAN, build_ext, copy_tree, need_build_requirements, run

ROOT = Path(__file__).resolve().parent.parent
OP = "leaky_relu"
BEFORE = {  # where the example's lines go: before this one, or to the end
    "csrc/ops/ops.def": "/* ---- reductions ---- */",
    "csrc/autograd/rules.c": "/* ---- the table ---- */",
    "csrc/ops/elementwise.def": "#undef UNARY",
}
MAX_FILES, MAX_LINES = 6, 20  # for the CPU, with a gradient, without tests, stubs and comments


def documented_edits():
    """{file: code} of the worked example, step by step: the file that a step names first, and its indented lines."""
    text = (ROOT / "docs/architecture.md").read_text().split("## How to add an op, worked through")[1]
    edits = {}
    for step in re.split(r"^\d+\. ", text, flags=re.MULTILINE)[1:]:
        code = re.findall(r"^ {7}(.*)$|^$", step, re.MULTILINE)
        name = re.search(r"`(csrc/[\w./]+\.(?:c|def))`", step)
        if name and any(code):
            edits[name[1]] = "\n".join(code).strip() + "\n"
    return edits


def lines_of_code(text):
    return [line for line in re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL).splitlines() if line.strip()]


def apply(edits, tree):
    for name, code in edits.items():
        text = (tree / name).read_text()
        at = text.index(BEFORE[name]) if name in BEFORE else len(text)
        (tree / name).write_text(f"{text[:at]}{'' if name.endswith('.def') else chr(10)}{code}\n{text[at:]}")


def test_the_example_is_short():
    edits = documented_edits()
    assert set(BEFORE) < set(edits)
    kernels = edits.pop("csrc/ops/elementwise.def")
    lines = sum(len(lines_of_code(code)) for code in edits.values())
    print(f"{OP}: {lines} lines in {len(edits)} files; {len(lines_of_code(kernels))} more for the fast kernels and the GPU's")
    assert len(edits) <= MAX_FILES and lines <= MAX_LINES


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources with the example's lines."""
    tree = copy_tree(tmp_path_factory.mktemp("op") / "tree")
    apply(documented_edits(), tree)
    return tree


TRY = """
import numpy as np
import asenpp
from asenpp import _asen

x = np.array([[-2.0, -0.0, 0.0], [0.5, np.nan, 3.0]])
dy = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
for dtype, path in (("float64", "reference"), ("float32", "fast")):
    for kwargs, slope in (({}, 0.01), ({"negative_slope": 0.25}, 0.25)):
        t = asenpp.from_numpy(x.astype(dtype))
        t.requires_grad_(True)
        _asen.dispatch_counts(True)
        y = t.leaky_relu(**kwargs)
        y.backward(asenpp.from_numpy(dy.astype(dtype)))
        ran = _asen.dispatch_counts()
        assert ran["leaky_relu"][path] == 1 and ran["leaky_relu_grad"][path] == 1, ran
        tolerance = 1e-15 if dtype == "float64" else 1e-7
        np.testing.assert_allclose(y.detach().numpy(), np.where(x > 0, x, slope * x), rtol=tolerance)
        np.testing.assert_allclose(t.grad.numpy(), np.where(x > 0, dy, slope * dy), rtol=tolerance)
print("well")
"""


def test_the_example_computes(tree):
    """Built without optimising and without oneDNN: what is tried is the op. The reference runs in float64, the fast
    kernel, of the expression table, in float32."""
    need_build_requirements()
    done = build_ext(tree, ASENPP_CFLAGS="-O0", ASENPP_ONEDNN="0")
    assert done.returncode == 0, done.stderr
    for module in (tree / "lib" / "asenpp").glob("_asen*.so"):
        shutil.copy(module, tree / "asenpp")
    done = run(sys.executable, "-c", TRY, cwd=tree)
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr


def needed_by_the_plugin(tree, folder):
    """The functions that the plugin's op table refers to, when it is compiled with the csrc/ of a tree."""
    sys.path.insert(0, str(ROOT / "tests" / "cudasim"))
    try:
        import build
    finally:
        sys.path.pop(0)
    try:
        include = [f"-isystem{path}" for path in build.headers()]
    except build.BuildError as error:
        pytest.skip(f"the plugin's op table cannot be compiled here: {error}")
    target = folder / "plugin.o"
    subprocess.run(["cc", "-std=c11", "-fPIC", "-D_GNU_SOURCE", f"-I{tree / 'csrc'}", f"-I{ROOT / 'kernels'}", *include,
                    "-c", str(ROOT / "kernels" / "plugin.c"), "-o", str(target)], check=True, env=CLEAN)
    listing = subprocess.run(["nm", "-u", str(target)], check=True, capture_output=True, text=True).stdout
    return target, set(re.findall(r"\bcuda_\w+", listing))


def test_a_plugin_without_the_kernels_does_not_link(tree, tmp_path):
    """Its table wants a kernel for every row, by name, and it is linked with --no-undefined."""
    if shutil.which("nm") is None or shutil.which("cc") is None:
        pytest.skip("cc and nm (binutils) are not installed")
    today = needed_by_the_plugin(ROOT, tmp_path)[1]
    target, wanted = needed_by_the_plugin(tree, tmp_path)
    assert wanted - today == {f"cuda_{OP}", f"cuda_{OP}_grad"}
    link = subprocess.run(["cc", "-shared", str(target), "-o", str(tmp_path / "plugin.so"), "-Wl,--no-undefined"],
                          capture_output=True, text=True, env=CLEAN)
    assert link.returncode != 0 and re.search(rf"undefined (reference|symbol)\W+(to\W+)?cuda_{OP}\b", link.stderr), link.stderr
    assert '"-Wl,--no-undefined"' in (ROOT / "setup.py").read_text()
