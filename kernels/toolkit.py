"""Finds what the CUDA plugin is built with: nvcc, the headers, cudart, cuBLASLt and cuDNN.

From the pip packages of requirements.txt (looked for in the site-packages of this interpreter and of those
it was made from, since pip's build isolation hides installed packages from `import`), from CUDA_HOME, from
the nvcc on PATH, or from /usr/local/cuda; each piece from the first that has it, the compiler deciding the
major version. Nothing is imported from or run in these packages but `nvcc --version`.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

CUDNN = "libcudnn.so.9"


class ToolkitError(RuntimeError):
    """What is missing, in one line, with the remedy."""


class Toolkit(NamedTuple):
    """nvcc, and the folders that hold headers; cudart (static), cuBLASLt and cuDNN as files."""

    nvcc: Path
    version: str
    include: list[Path]
    cudart: Path
    cublas: Path
    cudnn: Path

    @property
    def libraries(self) -> list[Path]:
        return [self.cudart, self.cublas, self.cudnn]


def _site_packages() -> list[Path]:
    """Folders that may hold pip's nvidia/ packages."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path]
    folders += site.getsitepackages() if hasattr(site, "getsitepackages") else []
    tail = Path(f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages")
    folders += [Path(prefix) / tail for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)]
    virtual = os.environ.get("VIRTUAL_ENV")
    if virtual:
        folders.append(Path(virtual) / tail)
    found: list[Path] = []
    for folder in map(Path, filter(None, folders)):
        if (folder / "nvidia").is_dir() and folder not in found:
            found.append(folder)
    return found


def roots() -> list[Path]:
    """Folders with include/ and lib/ in the order in which they are asked."""
    found = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for folder in _site_packages():
        found += sorted(p for p in (folder / "nvidia").iterdir() if p.is_dir())
    on_path = shutil.which("nvcc")
    if on_path:
        found.append(Path(on_path).resolve().parent.parent)
    found += [Path("/usr/local/cuda"), Path("/usr/lib/cuda"), Path("/usr")]
    return found


def _first(places: list[Path], *relative: str) -> Path | None:
    return next((p / name for p in places for name in relative if (p / name).is_file()), None)


def _library(places: list[Path], *names: str) -> Path | None:
    machine = {"x86_64": "x86_64-linux", "aarch64": "sbsa-linux"}.get(os.uname().machine, "x86_64-linux")
    folders = ("lib", "lib64", f"targets/{machine}/lib", f"lib/{os.uname().machine}-linux-gnu")
    return _first(places, *(f"{folder}/{name}" for name in names for folder in folders))


def headers() -> list[Path]:
    """The include folders of CUDA's runtime, cuBLASLt and cuDNN. Raises ToolkitError."""
    places, found = roots(), []
    for header, package in (("cuda_runtime.h", "nvidia-cuda-runtime"), ("crt/host_defines.h", "nvidia-cuda-crt"),
                            ("cublasLt.h", "nvidia-cublas"), ("cudnn.h", "nvidia-cudnn-cu13")):
        place = _first(places, f"include/{header}")
        if place is None:
            raise ToolkitError(f"{header} is missing (pip install {package})")
        folder = place.parent.parent if "/" in header else place.parent
        if folder not in found:
            found.append(folder)
    return found


def _top(nvcc: Path) -> Path:
    """The folder that this nvcc takes its own headers and libraries from; it may be a wrapper."""
    done = subprocess.run([str(nvcc), "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull],
                          capture_output=True, text=True)
    found = re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
    return Path(found[1].strip()).resolve() if found else nvcc.resolve().parent.parent


def find() -> Toolkit:
    """The toolkit to build with. Raises ToolkitError naming the first thing that is missing."""
    places = roots()
    nvcc = _first(places, "bin/nvcc") or shutil.which("nvcc")
    if nvcc is None:
        raise ToolkitError("no CUDA compiler (nvcc): pip install -r kernels/requirements.txt, or set CUDA_HOME")
    nvcc = Path(nvcc)
    try:
        text = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"release (\d+)\.(\d+)", text)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ToolkitError(f"{nvcc} does not run: {error}") from None
    if version is None or int(version[1]) < 13:
        raise ToolkitError(f"{nvcc} is not of CUDA 13: the plugin is written for it")
    top = _top(nvcc)
    places = [top, *places]
    own = top / "include"  # before others: a compiler goes with its own headers
    include = [own] if (own / "cuda_runtime.h").is_file() else []
    include += [folder for folder in headers() if folder != own]
    cudart = _library(places, "libcudart_static.a")
    cublas = _library(places, f"libcublasLt.so.{version[1]}")
    cudnn = _library(places, CUDNN)
    for what, package, path in (("libcudart_static.a", "nvidia-cuda-runtime", cudart),
                                (f"libcublasLt.so.{version[1]}", "nvidia-cublas", cublas),
                                (CUDNN, "nvidia-cudnn-cu13", cudnn)):
        if path is None:
            raise ToolkitError(f"{what} is missing (pip install {package})")
    assert cudart is not None and cublas is not None and cudnn is not None
    return Toolkit(nvcc, text.strip().splitlines()[-1], include, cudart, cublas, cudnn)


if __name__ == "__main__":
    try:
        print(find())
    except ToolkitError as error:
        sys.exit(str(error))
