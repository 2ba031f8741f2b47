"""The wheel: what is in it, that it works away from the source tree, and what a build says when
something is missing. Builds run in a copy of the tree, so that neither its module nor its build
folder is touched; objects compiled before are carried along (they are kept by content)."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("asenpp", "csrc", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
CLEAN = {key: value for key, value in os.environ.items()
         if not key.startswith(("ASENPP_", "PYTHON")) and key != "LD_LIBRARY_PATH"}
CLEAN["ASENPP_CUDA"] = "0"  # the plugin takes minutes; `make cuda` builds it


def need_build_requirements():
    """Skip, visibly, where `pip install "asenpp[test]"` was not run: these tests use no network."""
    for name, minimum in (("setuptools", 77), ("numpy", 2)):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"building needs {name} here")
        if int(found.split(".")[0]) < minimum:
            pytest.skip(f"building needs {name} >= {minimum} here, not {found}")


def copy_tree(target, parts=PARTS):
    """The source tree, without what was built in it."""
    target.mkdir()
    for part in parts:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("*.so", "_libs", "__pycache__"))
        elif source.exists():
            shutil.copy(source, target / part)
    return target


def run(*command, cwd, **env):
    return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True,
                          env={**CLEAN, **env})


def build_ext(tree, **env):
    return run(sys.executable, "setup.py", "-q", "build_ext", "--build-temp", "objects", "--build-lib", "lib",
               cwd=tree, **env)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without isolation by the interpreter of the tests, from a tree with leftovers
    of earlier builds in it that must not get in."""
    need_build_requirements()
    folder = tmp_path_factory.mktemp("wheel")
    tree = copy_tree(folder / "tree")
    for objects in ROOT.glob("build/temp.*"):
        shutil.copytree(objects, tree / "build" / objects.name)
    stale = tree / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "asenpp"
    stale.mkdir(parents=True)
    for leftover in (stale / "deleted.py", tree / "asenpp/_asen.old.so", tree / "asenpp/_libs/old.so"):
        leftover.parent.mkdir(exist_ok=True)
        leftover.write_text("")
    done = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index",
               "-w", folder, ".", cwd=tree)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel installed in it, and nothing else."""
    site = tmp_path_factory.mktemp("site")
    done = run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel,
               cwd=site)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(wheel.parent / "tree")  # nothing may still lead there
    return site


def module_of(site):
    (module,) = (site / "asenpp").glob("_asen.*.so")
    return module


def test_wheel_content(wheel):
    """The wheel is of this platform, holds every Python file of the tree and nothing that a build
    left behind, our licence, and oneDNN's beside its library."""
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {p.relative_to(ROOT).as_posix() for pattern in ("*.py", "*.pyi", "py.typed")
               for p in (ROOT / "asenpp").rglob(pattern)}
    assert {n for n in names if n.endswith((".py", ".pyi", "py.typed"))} == sources
    (module,) = [n for n in names if n.endswith(".so")]
    assert module == "asenpp/_asen" + sysconfig.get_config_var("EXT_SUFFIX")
    libs = {n for n in names if n.startswith("asenpp/_libs/")}
    if libs:
        assert libs == {f"asenpp/_libs/{n}" for n in
                        ("libdnnl.so.3", "oneDNN-LICENSE", "oneDNN-THIRD-PARTY-PROGRAMS")}
    assert any(re.fullmatch(r"asenpp-[^/]*\.dist-info/licenses/LICENSE", n) for n in names)
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-{platform}.whl") and "-none-any" not in wheel.name


def test_wheel_works_from_another_folder(installed, tmp_path):
    """Installed elsewhere, the source tree neither on the path nor where the code runs, asenpp is
    the installed one, computes, and has oneDNN from its own folder."""
    code = f"""
import sys
sys.path[:] = [{str(installed)!r}] + [p for p in sys.path if p and p != {str(ROOT)!r}]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
import numpy as np
import asenpp._asen as m
a = m.from_numpy(np.eye(3, dtype=np.float32))
print(m.matmul(a, a).numpy().sum())
print(m.__file__)
print(*sorted({{line.split()[-1] for line in open("/proc/self/maps") if "libdnnl" in line}}))
"""
    done = run(sys.executable, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    total, file, dnnl = done.stdout.split("\n")[:3]
    assert float(total) == 3
    assert Path(file) == module_of(installed)
    bundled = installed / "asenpp/_libs/libdnnl.so.3"
    assert dnnl == (str(bundled) if bundled.exists() else "")


def test_oneDNN_is_bundled_where_it_is_there(installed):
    """Where the pip package is installed, the wheel must not silently be the slow one."""
    try:
        importlib.metadata.version("onednn-devel-cpu-gomp")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the pip package onednn-devel-cpu-gomp is not installed: the wheel has no oneDNN")
    assert (installed / "asenpp/_libs/libdnnl.so.3").stat().st_size > 1_000_000


def test_module_exports_one_symbol(installed):
    """PyInit__asen; beside it only the marks that linkers define themselves."""
    if not shutil.which("nm"):
        pytest.skip("nm (binutils) is not installed")
    lines = run("nm", "-D", "--defined-only", module_of(installed), cwd=installed).stdout.splitlines()
    names = {line.split()[-1] for line in lines} - {"_init", "_fini", "_edata", "_end", "__bss_start"}
    assert names == {"PyInit__asen"}


def test_module_knows_no_folder_of_the_build(installed, wheel):
    """Libraries are looked for beside the module only, and its text names no folder of the build."""
    if not shutil.which("readelf"):
        pytest.skip("readelf (binutils) is not installed")
    module = module_of(installed)
    entries = re.findall(r"\((\w+)\)\s+.*\[(.*)\]", run("readelf", "-d", module, cwd=installed).stdout)
    assert {value for tag, value in entries if tag == "NEEDED" and "/" in value} == set()
    bundled = (installed / "asenpp/_libs").exists()
    assert [e for e in entries if e[0] in ("RUNPATH", "RPATH")] == [("RUNPATH", "$ORIGIN/_libs")] * bundled
    assert str(wheel.parent).encode() not in module.read_bytes()
    assert str(ROOT).encode() not in module.read_bytes()


@pytest.fixture
def tree(tmp_path):
    """A source tree with two C files in place of csrc/, so that a build takes no time."""
    need_build_requirements()
    tree = copy_tree(tmp_path / "tree", ("setup.py", "pyproject.toml", "README.md", "LICENSE"))
    (tree / "asenpp").mkdir()
    (tree / "csrc/core").mkdir(parents=True)
    (tree / "csrc/python").mkdir()
    (tree / "csrc/core/number.h").write_text("#define NUMBER 1\nint number(void);\n")
    (tree / "csrc/core/number.c").write_text('#include "core/number.h"\nint number(void) { return NUMBER; }\n')
    (tree / "csrc/python/module.c").write_text(
        '#include <Python.h>\n#include "core/number.h"\n'
        'static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, "_asen", NULL, 0, NULL, NULL, NULL, NULL, NULL};\n'
        'PyMODINIT_FUNC PyInit__asen(void)\n{\n    PyObject *m = PyModule_Create(&def);\n'
        '    PyModule_AddIntConstant(m, "number", number());\n    return m;\n}\n')
    return tree


def number(tree):
    (module,) = (tree / "lib/asenpp").glob("_asen.*.so")
    done = run(sys.executable, "-c", "import sys, importlib.util as u\n"
               "s = u.spec_from_file_location('_asen', sys.argv[1]); m = u.module_from_spec(s)\n"
               "print(m.number)", module, cwd=tree)
    return int(done.stdout)


def objects(tree):
    return {path.name: path.stat().st_mtime_ns for path in (tree / "objects/csrc").iterdir()}


def test_incremental_build(tree):
    """Nothing new: nothing compiled. A header or flag that changed, even to a file that looks older,
    is seen. A C file that went is gone from the module."""
    assert build_ext(tree, ASENPP_ONEDNN="0").returncode == 0 and number(tree) == 1
    before = objects(tree)
    os.utime(tree / "csrc/core/number.c")
    assert build_ext(tree, ASENPP_ONEDNN="0").returncode == 0
    assert objects(tree) == before and len(before) == 2

    (tree / "csrc/core/number.h").write_text("#define NUMBER 2\nint number(void);\n")
    os.utime(tree / "csrc/core/number.h", (0, 0))
    assert build_ext(tree, ASENPP_ONEDNN="0").returncode == 0 and number(tree) == 2
    assert build_ext(tree, ASENPP_ONEDNN="0", ASENPP_CFLAGS="-DOTHER").returncode == 0
    assert not objects(tree).keys() & before.keys()

    (tree / "csrc/core/number.c").unlink()
    (tree / "csrc/python/module.c").write_text((tree / "csrc/python/module.c").read_text().replace("number())", "7)"))
    assert build_ext(tree, ASENPP_ONEDNN="0").returncode == 0 and number(tree) == 7
    assert len(objects(tree)) == 1


def test_a_folder_without_flags_ends_the_build(tree):
    """A file that moved to a folder which setup.py does not know is not compiled with whatever flags."""
    (tree / "csrc/other").mkdir()
    (tree / "csrc/core/number.c").rename(tree / "csrc/other/number.c")
    done = build_ext(tree, ASENPP_ONEDNN="0")
    assert done.returncode and done.stderr.splitlines()[-1] == (
        "asenpp: csrc/other/number.c: setup.py's FLAGS do not name the folder 'other'")


def test_broken_source_ends_the_build(tree):
    """A C file that does not compile ends the build, and leaves no object that the next one takes."""
    (tree / "csrc/core/number.c").write_text("int number(void) { return; }\n#error broken\n")
    done = build_ext(tree, ASENPP_ONEDNN="0")
    assert done.returncode and done.stderr.splitlines()[-1] == "asenpp: csrc/core/number.c does not compile"
    assert not [name for name in objects(tree) if name.startswith("core-number")]


@pytest.mark.parametrize("header, package", [
    ("yaml.h", "libyaml-dev"), ("jpeglib.h", "libjpeg-dev"), ("Python.h", "python3-dev"), ("omp.h", "libomp-dev")])
def test_missing_header(tree, tmp_path, header, package):
    """A system header that is missing (here: one before it, in an include folder of the compiler
    command, that fails) gives one line with the package to install."""
    (tmp_path / header).write_text("#error absent\n")
    done = build_ext(tree, ASENPP_ONEDNN="0", CC=f"cc -I{tmp_path}")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"asenpp: missing system libraries: apt-get install {package}"]


def test_missing_compiler(tree, tmp_path):
    """No compiler, or one without a C library: one line each, with what to install."""
    done = build_ext(tree, CC=str(tmp_path / "no-cc"))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.endswith("apt-get install gcc libc6-dev\n")
    (tmp_path / "stdio.h").write_text("#error absent\n")
    done = build_ext(tree, CC=f"cc -I{tmp_path}")
    assert done.returncode == 1 and done.stderr.endswith("apt-get install gcc libc6-dev\n")
    assert len(done.stderr.splitlines()) == 1


def test_missing_oneDNN(tree):
    """Without the pip package the build goes on and says what that costs; ASENPP_ONEDNN=1 ends it."""
    hide = tree / "hide"  # setup.py asks importlib.metadata, which this sitecustomize makes forget
    hide.mkdir()
    (hide / "sitecustomize.py").write_text(
        "import importlib.metadata as m\nfiles = m.files\n"
        "m.files = lambda name: None if name.startswith('onednn') else files(name)\n")
    done = build_ext(tree, PYTHONPATH=str(hide))
    assert done.returncode == 0 and number(tree) == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("asenpp: building without oneDNN") and "onednn-devel-cpu-gomp" in line
    done = build_ext(tree, PYTHONPATH=str(hide), ASENPP_ONEDNN="1")
    assert done.returncode == 1 and done.stderr.startswith("asenpp: no oneDNN: the pip package")


def test_source_archive(tree):
    """The sdist holds what a build, the tests and the commands need."""
    names = ["MANIFEST.in", "Makefile", "config", "scripts", "tests"]
    for name in names:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tree / name)
    assert run(sys.executable, "setup.py", "-q", "sdist", cwd=tree).returncode == 0
    (archive,) = (tree / "dist").glob("*.tar.gz")
    shutil.unpack_archive(archive, tree / "unpacked")
    (top,) = (tree / "unpacked").iterdir()
    for part in ("LICENSE", "Makefile", "csrc/core/number.c", "csrc/core/number.h", "tests/test_packaging.py", "tests/sanitize.sh",
                 "scripts/system-packages.sh", "config/Garments/Garments.yaml", "pyproject.toml", "setup.py"):
        assert (top / part).is_file(), part
