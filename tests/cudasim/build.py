"""Builds the CUDA plugin for the simulated device: kernels/*.c and *.cu by gcc and g++, with the simulator.

    python tests/cudasim/build.py OUT.so                          everything
    python tests/cudasim/build.py OUT.so --stubs                  rows that have no kernel yet are declined
    python tests/cudasim/build.py OUT.so --stubs --only move.cu pool.cu    the skeleton and these files alone
    python tests/cudasim/build.py OUT.so --sources a.cu b.c       the simulator and these files, no plugin
    python tests/cudasim/build.py OUT.so --check                  every load and store checked: bounds, races (slower)

Then `ASENPP_CUDA_PLUGIN=OUT.so`, or `_asen.load_plugin("OUT.so")`, and tensors go `.to("cuda")`.
`python tests/cudasim/try.py OUT.so relu` runs an op's samples on it and compares with the CPU.

Objects are kept under build/cudasim by the content of what went into them, so a second build is quick.
Warnings are not errors here (nvcc and the core's own build see to them): CUDASIM_CFLAGS adds flags.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / "build" / "cudasim"
SKELETON = ("plugin.c", "device.c", "transfer.c")
CC, CXX = (shlex.split(os.environ.get(name, otherwise)) for name, otherwise in (("CC", "gcc"), ("CXX", "g++")))
COMMON = ["-g1", "-fPIC", "-fvisibility=hidden", "-D_GNU_SOURCE", "-Wall", "-Wno-unused-parameter",
          "-U_FORTIFY_SOURCE", "-fno-stack-protector", "-fcf-protection=none"]
# A kernel's accesses are checked against the alignment of their types: hardware faults where x86 does not.
KERNEL = ["-std=c++17", "-O2", "-x", "c++", "-DASEN_CUDASIM", "-fsanitize=alignment", "-fsanitize-recover=alignment",
          "-fno-exceptions", "-Wno-unknown-pragmas", "-Wno-unused-function", "-fno-strict-aliasing",
          "-fno-threadsafe-statics"]
# What calls the hooks of check.cpp; ThreadSanitizer's own library has no part in it.
CHECKS = ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"]
PLUGIN_C = ["-std=c11", "-O2", "-DASEN_CUDASIM"]
SIMULATOR = ["-std=c++17", "-O2"]
HOT = {"gemm.cpp": ["-O3", "-funroll-loops"]}  # arithmetic that training waits for


class BuildError(RuntimeError):
    """What went wrong, with the compiler's words."""


def headers() -> list[Path]:
    """The folders of CUDA's, cuBLAS's and cuDNN's headers. Raises BuildError naming what is missing."""
    sys.path.insert(0, str(ROOT / "kernels"))
    try:
        import toolkit
    finally:
        sys.path.pop(0)
    try:
        return toolkit.headers()
    except toolkit.ToolkitError as error:
        raise BuildError(str(error)) from None


def machine_flags() -> list[str]:
    """AVX2 where this machine has it: the simulated convolutions live on it."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return []
    return ["-march=x86-64-v3"] if {"avx2", "fma", "bmi2"} <= set(flags) else []


def digest(*parts: object) -> str:
    made = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        made.update(len(data).to_bytes(8, "little") + data)
    return made.hexdigest()[:24]


def state_of(path: str) -> str:
    """What a header's change is seen by: its text where it is ours, else time and size."""
    p = Path(path)
    try:
        if p.is_relative_to(ROOT):
            return digest(p.read_bytes())
        found = p.stat()
        return f"{found.st_mtime_ns} {found.st_size}"
    except OSError:
        return "missing"


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def compile_one(source: Path, command: list[str], version: str) -> Path:
    """The object of a source: from the cache, or made."""
    CACHE.mkdir(parents=True, exist_ok=True)
    name = f"{source.stem}-{digest(str(source), command, version)}"
    listing = CACHE / f"{name}.json"
    try:
        known = json.loads(listing.read_text())
        made = CACHE / known["object"]
        if made.exists() and all(state_of(path) == state for path, state in known["inputs"].items()):
            return made
    except (OSError, ValueError, KeyError):
        pass
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        deps, out = f"{folder}/deps", f"{folder}/out.o"
        done = run([*command, "-MD", "-MF", deps, "-c", str(source), "-o", out])
        if done.returncode:
            raise BuildError(f"{source}: does not compile for the simulated device\n{done.stderr}")
        if done.stderr:
            print(done.stderr, file=sys.stderr)
        text = Path(deps).read_text().split(":", 1)[1].replace("\\\n", " ")
        inputs = {str(Path(path).resolve()): "" for path in text.split()}
        inputs = {path: state_of(path) for path in inputs}
        made = CACHE / f"{name}-{digest(Path(out).read_bytes())}.o"
        os.replace(out, made)
        Path(f"{folder}/list").write_text(json.dumps({"object": made.name, "inputs": inputs}))
        os.replace(f"{folder}/list", listing)
    return made


def compile_all(sources: list[Path], check: bool, flags: list[str] | None = None) -> list[Path]:
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'kernels'}", f"-I{HERE}"]
    include += [f"-isystem{folder}" for folder in headers()]
    extra = shlex.split(os.environ.get("CUDASIM_CFLAGS", ""))
    version = run([*CXX, "--version"]).stdout
    objects = []
    for source in sources:
        ours = source.parent == HERE and source.suffix == ".cpp"
        language = [*CC, *PLUGIN_C] if source.suffix == ".c" else [*CXX, *(SIMULATOR if ours else KERNEL)]
        if check and source.suffix == ".cu":
            language += CHECKS
        command = [*language, *COMMON, *HOT.get(source.name, []), *machine_flags(), *include, *extra, *(flags or [])]
        objects.append(compile_one(source, command, version))
    return objects


STUBS = """\
/* Rows without a kernel are declined; what else is missing fails. */
#include "cuda.h"
#define WEAK __attribute__((weak, visibility("hidden")))
#define OP(name, ...) WEAK int cuda_##name(const asen_call *call) { return ASEN_DECLINED; }
#include "ops/ops.def"
#define MISSING { return cuda_host.fail(ASEN_ERR_UNSUPPORTED_OR_DEVICE, "%s is a stub in this build", __func__); }
WEAK int cuda_fill(void *self, void *target, const void *value, size_t size, int64_t count) MISSING
WEAK int cuda_write_strided(void *self, const asen_tensor *target, const asen_tensor *source) MISSING
WEAK int cuda_optim_step(void *self, const asen_optim_call *call) MISSING
WEAK int cuda_unscale(void *self, asen_dtype dtype, int64_t count, void *const *data, const int64_t *length,
                      double factor, bool *finite) MISSING
""".replace("ASEN_ERR_UNSUPPORTED_OR_DEVICE", "ASEN_ERR_DEVICE")


def write_if_new(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path


def missing_symbols(stderr: str) -> list[str]:
    return sorted(set(re.findall(r"undefined reference to `((?:cuda|cublas|cudnn|conv_)\w*)'", stderr)))


def link(out: Path, objects: list[Path], exports: list[str], stubs: bool) -> None:
    script = write_if_new(CACHE / f"exports-{digest(exports)}.map", "{ global: " + " ".join(f"{e};" for e in exports) + " local: *; };\n")
    out.parent.mkdir(parents=True, exist_ok=True)
    making = out.with_name(f"{out.name}.{os.getpid()}")
    command = [*CXX, "-shared", "-o", str(making), *map(str, objects), f"-Wl,--version-script={script}",
               "-Wl,--no-undefined", "-Wl,-z,nodelete", "-lm", "-lpthread", "-ldl"]
    done = run(command)
    missing = missing_symbols(done.stderr)
    if done.returncode and stubs and missing:
        print("stubs that fail for: " + ", ".join(missing), file=sys.stderr)
        text = "".join(f"int {name}(void) {{ return 1; }}\n" for name in missing)
        stub = write_if_new(CACHE / f"missing-{digest(missing)}.c", text)
        done = run([*command, str(compile_one(stub, [*CC, *COMMON, "-w"], ""))])
    if done.returncode:
        raise BuildError(f"{out} does not link\n{done.stderr[-6000:]}")
    os.replace(making, out)


def build(out: Path, stubs: bool = False, only: list[str] | None = None, sources: list[Path] | None = None,
          check: bool = False) -> Path:
    """Builds `out`. Raises BuildError."""
    if sources is None:
        folder = ROOT / "kernels"
        names = [*SKELETON, *only] if only else [p.name for p in sorted(folder.iterdir()) if p.suffix in (".c", ".cu")]
        sources = [folder / name for name in dict.fromkeys(names)]
    if stubs:
        sources.append(write_if_new(CACHE / "stubs.c", STUBS))
    simulator = sorted(HERE.glob("*.cpp"))
    link(Path(out).resolve(), compile_all([*sources, *simulator], check), ["asen_plugin_init", "cudasim_*", "test_*"], stubs)
    return Path(out)


def plugin(check: bool = False) -> Path:
    """The whole plugin for the simulated device, built where it is not. Raises BuildError."""
    return build(CACHE / ("_asen_cuda_sim_check.so" if check else "_asen_cuda_sim.so"), check=check)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stubs", action="store_true", help="rows without a kernel are declined")
    parser.add_argument("--only", nargs="+", help="these files of kernels/, besides the skeleton")
    parser.add_argument("--sources", nargs="+", type=Path, help="these files instead of the plugin")
    parser.add_argument("--check", action="store_true", help="check every load and store of kernels")
    args = parser.parse_args()
    try:
        build(args.out, args.stubs, args.only, [p.resolve() for p in args.sources] if args.sources else None,
              args.check)
    except BuildError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
