"""Builds `asenpp._asen`, the C core.

What is particular here: every C file of csrc/ belongs to the module, files are compiled in
parallel and only when they (or a header) changed, flags depend on a file's concern, oneDNN comes
from pip packages and its shared library is copied into the package, and a missing system library
ends the build with one line that names the package to install.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
# A file's concern decides its flags. Images are bit-exact, so the compiler may not contract
# a*b+c there; our fast kernels want exactly that, and their functions are cloned by target.
COMMON = ["-O2", "-fvisibility=hidden", "-fPIC", "-D_GNU_SOURCE", *WARNINGS]
FLAGS = {
    "cpu_fast_": ["-std=gnu11", "-O3", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno"],
    "cpu_onednn": ["-std=gnu11", "-fopenmp"],
    "": ["-std=c11", "-ffp-contract=off"],
}
SYSTEM = [  # header, library, Debian and Ubuntu package
    ("yaml.h", "yaml", "libyaml-dev"),
    ("jpeglib.h", "jpeg", "libjpeg-dev"),
]


def pip_package_files(name: str) -> list[Path]:
    """The files of an installed pip package, or nothing where it is not installed."""
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(str(f.locate())).resolve() for f in files]


def find_onednn() -> tuple[Path, Path] | None:
    """(include folder, libdnnl.so.3) of the oneDNN pip packages; None to build without it."""
    if os.environ.get("ASENPP_ONEDNN") == "0":
        return None
    headers = [f for f in pip_package_files("onednn-devel-cpu-gomp") if f.name == "dnnl.h"]
    libraries = [f for f in pip_package_files("onednn-cpu-gomp") if f.name == "libdnnl.so.3"]
    if headers and libraries:
        include = next((h.parent for h in headers if h.parent.name == "include"),
                       headers[0].parent.parent.parent)
        return include, libraries[0]
    if os.environ.get("ASENPP_ONEDNN") == "1":
        sys.exit("asenpp: oneDNN was not found: pip install onednn-devel-cpu-gomp==2023.2.0")
    print("asenpp: building without oneDNN (slow): the pip package onednn-devel-cpu-gomp is not here")
    return None


def check_system(compiler: list[str]) -> None:
    """One line that names the package, instead of a page of compiler output."""
    missing = []
    for header, library, package in SYSTEM:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(f"#include <stddef.h>\n#include <stdio.h>\n#include <{header}>\n"
                              "int main(void) { return 0; }\n")
            command = [*compiler, str(source), f"-l{library}", "-o", str(Path(folder, "probe"))]
            if subprocess.run(command, capture_output=True).returncode:
                missing.append(package)
    if missing:
        sys.exit(f"asenpp: missing system libraries: apt-get install {' '.join(missing)}")


class BuildExt(build_ext):
    """build_ext with per-file flags, parallel and incremental compilation, and bundling."""

    def copy_extensions_to_source(self) -> None:
        """In-place builds: the bundled libraries go beside the module."""
        super().copy_extensions_to_source()
        bundle = Path(self.build_lib, "asenpp", "_libs")
        if bundle.is_dir():
            shutil.copytree(bundle, ROOT / "asenpp" / "_libs", dirs_exist_ok=True)

    def build_extension(self, ext: Extension) -> None:
        import numpy

        compiler = (os.environ.get("CC") or "cc").split()
        if shutil.which(compiler[0]) is None:
            sys.exit("asenpp: no C compiler: apt-get install gcc libc6-dev")
        check_system(compiler)
        onednn = find_onednn()
        extra = os.environ.get("ASENPP_CFLAGS", "").split()
        include = [f"-I{path}" for path in [ROOT / "csrc", numpy.get_include(), *self.compiler.include_dirs]]
        define = []
        if onednn:
            include.append(f"-I{onednn[0]}")
            define.append("-DASEN_ONEDNN=1")

        temp = Path(self.build_temp, "csrc")
        temp.mkdir(parents=True, exist_ok=True)
        headers = [*(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc").glob("*.def"),
                   *(ROOT / "csrc").glob("*.inc")]
        newest_header = max(h.stat().st_mtime for h in [*headers, ROOT / "setup.py"])
        stamp = temp / "flags"
        flags_text = " ".join([*compiler, *include, *define, *extra])
        if not stamp.exists() or stamp.read_text() != flags_text:
            newest_header = float("inf")

        def compile_one(source: Path) -> str:
            target = temp / (source.stem + ".o")
            if target.exists() and target.stat().st_mtime > max(newest_header, source.stat().st_mtime):
                return str(target)
            flags = next(f for prefix, f in FLAGS.items() if source.name.startswith(prefix))
            command = [*compiler, *COMMON, *flags, *define, *include, *extra,
                       "-c", str(source), "-o", str(target)]
            done = subprocess.run(command, capture_output=True, text=True)
            sys.stderr.write(done.stderr)
            if done.returncode:
                target.unlink(missing_ok=True)
                raise SystemExit(f"asenpp: {source.name} does not compile")
            return str(target)

        jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        with ThreadPoolExecutor(jobs) as pool:
            objects = list(pool.map(compile_one, sorted((ROOT / "csrc").glob("*.c"))))
        stamp.write_text(flags_text)

        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        link = [*compiler, "-shared", "-fopenmp", *extra, "-o", str(output), *objects]
        if onednn:
            bundle = output.parent / "_libs"
            bundle.mkdir(exist_ok=True)
            library = bundle / "libdnnl.so.3"
            if not library.exists() or library.stat().st_size != onednn[1].stat().st_size:
                shutil.copyfile(onednn[1], library)
            link += [str(library), "-Wl,-rpath,$ORIGIN/_libs"]
        link += [*(f"-l{library}" for _, library, _ in SYSTEM), "-lm", "-ldl", "-lpthread"]
        self.spawn(link)


setup(ext_modules=[Extension("asenpp._asen", ["csrc/py_module.c"])], cmdclass={"build_ext": BuildExt})
