"""Builds `asenpp._asen`, the C core, and the CUDA plugin.

What is particular here: every C file of csrc/ belongs to the module, flags depend on its folder,
oneDNN comes from pip packages and its shared library is copied into the package, and a missing system
library ends the build with one line that names the package to install.

Objects are kept under a digest of all that went into them (text of the source and of all headers,
flags, versions; no paths and no times). So a build after any change is right, and one in pip's
isolated environment, whose folder has a new name each time, compiles no more than another.

Where a CUDA toolkit is found (kernels/toolkit.py), the plugin `asenpp/_asen_cuda.so` is built too.

Environment: CC, ASENPP_CFLAGS (added when compiling and linking), ASENPP_ONEDNN and ASENPP_CUDA (0: build
without, 1: end where it is not found), ASENPP_CUDA_ARCH ("90": the GPUs to compile for; default all).
"""

from __future__ import annotations

import filecmp
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
# A file's folder decides its flags, and a folder that is not named here is an error. Images are bit-exact and
# references an oracle, so the compiler may not contract a*b+c there; our fast kernels want exactly that, and
# their functions are cloned by target. That a loop marked `omp simd` was not vectorised is no warning (clang's).
COMMON = ["-O2", "-DNDEBUG", "-fvisibility=hidden", "-fPIC", "-D_GNU_SOURCE", *WARNINGS]
PLAIN = ["-std=c11", "-ffp-contract=off"]
FAST = ["-std=gnu11", "-O3", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno",
        "-Wno-pass-failed"]
FLAGS = {
    "core": PLAIN,
    "ops": PLAIN,
    "ops/shape": PLAIN,
    "autograd": PLAIN,
    "cpu": PLAIN,
    "cpu/ref": PLAIN,
    "cpu/fast": FAST,
    "cpu/onednn": ["-std=gnu11", "-fopenmp"],
    "image": PLAIN,
    "metrics": PLAIN,
    "metrics/similarity": FAST,
    "config": PLAIN,
    "python": PLAIN,
}
# Without what would want C++'s run-time library: the plugin is linked as C.
CUDA_HOST = ["-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-threadsafe-statics", *WARNINGS]
CUDA_FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-Xcompiler", ",".join(CUDA_HOST)]
CUDA_ARCHITECTURES = ["75", "80", "86", "89", "90", "100", "120"]
CUDA_PTX = ["90", "120"]  # for GPUs that come later
SYSTEM = [  # header, flag that links it, Debian and Ubuntu package
    ("Python.h", "", "python3-dev"),
    ("omp.h", "-fopenmp", "libomp-dev"),  # GCC brings its own
    ("yaml.h", "-lyaml", "libyaml-dev"),
    ("jpeglib.h", "-ljpeg", "libjpeg-dev"),
]
PLUGIN = "_asen_cuda.so"
ONEDNN = ("onednn-devel-cpu-gomp", "onednn-cpu-gomp")  # headers, library


def pip_package_files(name: str) -> list[Path]:
    """The files of an installed pip package, or nothing where it is not installed."""
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(str(f.locate())).resolve() for f in files]


def find_onednn() -> tuple[Path, dict[str, Path]] | None:
    """(include folder, {name in the package: file to bundle}); None to build without oneDNN."""
    wish = os.environ.get("ASENPP_ONEDNN")
    if wish == "0":
        return None
    headers, files = (pip_package_files(name) for name in ONEDNN)
    include = [f.parent for f in headers if f.name == "dnnl.h" and f.parent.name == "include"]
    bundle = {f.name: f for f in files if f.name == "libdnnl.so.3"}
    if include and bundle:
        bundle |= {f"oneDNN-{f.name}": f for f in files
                   if f.name in ("LICENSE", "THIRD-PARTY-PROGRAMS") and f.parent.name == "onednn"}
        return include[0], bundle
    remedy = f"the pip package {ONEDNN[0]} (2023.2.0) is not installed here"
    if wish == "1":
        sys.exit(f"asenpp: no oneDNN: {remedy}")
    print(f"asenpp: building without oneDNN, on our own kernels alone (slower): {remedy}", file=sys.stderr)
    return None


def check_system(compiler: list[str], flags: list[str]) -> None:
    """End with one line that names what to install, instead of a page of compiler output."""

    def builds(header: str, link: str = "") -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(f"#include <stddef.h>\n#include <stdio.h>\n#include <{header}>\n"
                              "int main(void) { return 0; }\n")
            command = [*compiler, *flags, str(source), *link.split(), "-o", str(Path(folder, "probe"))]
            return subprocess.run(command, capture_output=True).returncode == 0

    if shutil.which(compiler[0]) is None or not builds("stdio.h"):
        sys.exit(f"asenpp: no working C compiler ({compiler[0]}): apt-get install gcc libc6-dev")
    missing = [package for header, link, package in SYSTEM if not builds(header, link)]
    if missing:
        sys.exit(f"asenpp: missing system libraries: apt-get install {' '.join(missing)}")


def replace(source: Path, target: Path) -> None:
    """Copy a file where its content is new. A process that has the old one mapped keeps it."""
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copyfile(source, partial)
    os.replace(partial, target)


class Build(build):
    """build, of what the source tree holds now: a file deleted there must not reach the wheel."""

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib, "asenpp"), ignore_errors=True)
        super().run()


class BuildExt(build_ext):
    """build_ext with per-file flags, parallel and incremental compilation, and bundling."""

    bundle: dict[str, Path] = {}

    def copy_extensions_to_source(self) -> None:
        """In-place builds: the bundled libraries go beside the module."""
        super().copy_extensions_to_source()
        self.copy_bundle(ROOT / "asenpp" / "_libs")
        built, target = Path(self.build_lib, "asenpp", PLUGIN), ROOT / "asenpp" / PLUGIN
        if built.exists():
            replace(built, target)
        else:
            target.unlink(missing_ok=True)

    def copy_bundle(self, folder: Path) -> None:
        for old in folder.glob("*"):
            if old.name not in self.bundle:
                old.unlink()
        for name, file in self.bundle.items():
            replace(file, folder / name)

    def build_extension(self, ext: Extension) -> None:
        import numpy

        compiler = (os.environ.get("CC") or "cc").split()
        extra = os.environ.get("ASENPP_CFLAGS", "").split()
        include = [f"-I{sysconfig.get_path(kind)}" for kind in ("include", "platinclude")]
        check_system(compiler, [*include, *extra])
        onednn = find_onednn()
        define = []
        include.append(f"-I{numpy.get_include()}")
        versions = [sys.version, numpy.__version__,
                    subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout]
        if onednn:
            include.append(f"-I{onednn[0]}")
            define.append("-DASEN_ONEDNN=1")
            self.bundle = onednn[1]
            versions.append(importlib.metadata.version(ONEDNN[0]))

        objects = self.compile(compiler, [*define, *extra], include, versions)
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        link = [*compiler, "-shared", "-fopenmp", *extra, "-o", str(output), *objects]
        self.copy_bundle(output.parent / "_libs")
        if onednn:
            link += [str(output.parent / "_libs" / "libdnnl.so.3"), "-Wl,-rpath,$ORIGIN/_libs"]
        link += [*(flag for _, flag, _ in SYSTEM if flag), "-lm", "-ldl", "-lpthread"]
        self.spawn(link)
        self.build_plugin(output.parent / PLUGIN)

    def object_folder(self, name: str) -> Path:
        """Where objects are kept: `build_temp`, but for editable builds, where that is thrown away."""
        folder = Path(self.build_temp, name)
        if self.editable_mode:
            folder = ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder.resolve()

    def compile(self, compiler: list[str], flags: list[str], include: list[str],
                versions: list[str]) -> list[str]:
        """The objects of csrc/."""
        common = digest_of(compiler, flags, versions, headers_of("csrc"))

        def command(source: Path) -> list[str]:
            return [*compiler, *COMMON, *flags_of(source), *flags, "-Icsrc", *include]

        return compile_all(sorted((ROOT / "csrc").rglob("*.c")), command, common, self.object_folder("csrc"))

    def build_plugin(self, output: Path) -> None:
        """asenpp/_asen_cuda.so from kernels/, where a CUDA toolkit is found; one line where not."""
        wish = os.environ.get("ASENPP_CUDA")
        output.unlink(missing_ok=True)
        if wish == "0" or not (ROOT / "kernels").is_dir():
            return
        sys.path.insert(0, str(ROOT / "kernels"))
        import toolkit
        sys.path.remove(str(ROOT / "kernels"))
        try:
            tools = toolkit.find()
        except toolkit.ToolkitError as error:
            if wish == "1":
                sys.exit(f"asenpp: no CUDA plugin: {error}")
            print(f"asenpp: building without the CUDA plugin: {error}", file=sys.stderr)
            return
        compiler = (os.environ.get("CC") or "cc").split()
        extra = os.environ.get("ASENPP_CFLAGS", "").split()
        include = [flag for folder in tools.include for flag in ("-isystem", str(folder))]
        device = [*CUDA_FLAGS, *gencode(os.environ.get("ASENPP_CUDA_ARCH"))]
        if extra:
            device += ["-Xcompiler", ",".join(extra), *(["-Werror", "all-warnings"] if "-Werror" in extra else [])]
        common = digest_of(compiler, extra, device, tools.version,
                           *(toolkit_version(folder) for folder in tools.include), headers_of("csrc", "kernels"))

        def command(source: Path) -> list[str]:
            if source.suffix == ".cu":
                return [str(tools.nvcc), *device, "-Icsrc", *include]
            return [*compiler, *COMMON, "-std=c11", *extra, "-Icsrc", *include]

        sources = sorted([*(ROOT / "kernels").glob("*.cu"), *(ROOT / "kernels").glob("*.c")])
        objects = compile_all(sources, command, common, self.object_folder("kernels"))
        # cuDNN and cuBLASLt are found at run time by name: asenpp/cuda.py looks for pip's packages.
        self.spawn([*compiler, "-shared", *extra, "-o", str(output), *objects, *map(str, tools.libraries),
                    "-Wl,--no-undefined", "-Wl,--exclude-libs,ALL", "-ldl", "-lrt", "-lpthread", "-lm"])


def flags_of(source: Path) -> list[str]:
    """The flags of a file of csrc/, by its folder."""
    folder = source.parent.relative_to(ROOT / "csrc").as_posix()
    if folder not in FLAGS:
        raise SystemExit(f"asenpp: {source.relative_to(ROOT)}: setup.py's FLAGS do not name the folder '{folder}'")
    return FLAGS[folder]


def digest_of(*parts: object) -> "hashlib._Hash":
    return hashlib.sha256(repr(parts).encode())


def headers_of(*folders: str) -> list[tuple[str, bytes]]:
    """Names and texts of all that is included from these folders."""
    return [(header.relative_to(ROOT).as_posix(), header.read_bytes()) for folder in folders
            for pattern in ("*.h", "*.def", "*.inc", "*.cuh") for header in sorted((ROOT / folder).rglob(pattern))]


def toolkit_version(include: Path) -> list[str]:
    """The lines of CUDA's headers that say which version they are of."""
    return [line for name in ("cudnn_version.h", "cublas_api.h", "cuda_runtime_api.h") if (include / name).is_file()
            for line in (include / name).read_text(errors="replace").splitlines() if re.search("VERSION|_VER_", line)]


def gencode(wish: str | None) -> list[str]:
    """nvcc's flags for architectures: those of ASENPP_CUDA_ARCH ("90 100"), else all with PTX."""
    names = wish.replace(",", " ").split() if wish else CUDA_ARCHITECTURES
    flags = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
    return flags if wish else [*flags, *(f"-gencode=arch=compute_{n},code=compute_{n}" for n in CUDA_PTX)]


def compile_all(sources: list[Path], command: Callable[[Path], list[str]], common: "hashlib._Hash",
                folder: Path) -> list[str]:
    """The objects of `sources`, compiled as far as `folder` does not hold them already."""

    def compile_one(source: Path) -> str:
        digest = common.copy()
        line = command(source)
        digest.update(repr([word for word in line if os.sep not in word]).encode() + source.read_bytes())
        name = "-".join(source.relative_to(ROOT).with_suffix("").parts[1:])
        target = folder / f"{name}-{digest.hexdigest()[:20]}.o"
        if target.exists():
            return str(target)
        partial = target.with_suffix(f".{os.getpid()}.o")
        # Relative paths, so that no folder of this machine gets into the module.
        done = subprocess.run([*line, "-c", str(source.relative_to(ROOT)), "-o", str(partial)],
                              capture_output=True, text=True, cwd=ROOT)
        sys.stderr.write(done.stdout + done.stderr)
        if done.returncode:
            partial.unlink(missing_ok=True)
            raise SystemExit(f"asenpp: {source.relative_to(ROOT)} does not compile")
        os.replace(partial, target)
        return str(target)

    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(compile_one, sources))
    for old in {str(f) for f in folder.glob("*.o")} - set(objects):
        Path(old).unlink(missing_ok=True)
    return objects


setup(ext_modules=[Extension("asenpp._asen", ["csrc/python/module.c"])],
      cmdclass={"build": Build, "build_ext": BuildExt})
