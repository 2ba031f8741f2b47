"""Plans every convolution of the shipped configurations with the real cuDNN, without a GPU.

    python tests/cudnn_plans/plans.py --devices DIR [--fused all|sample|none] [--dtype float32,...]

DIR holds descriptions of GPUs (JSON, as cuDNN writes device properties). The planner (planner.c with
kernels/cudnn_graph.c) runs in a process of its own for each of them, with a stand-in driver
(fake_driver.c) on its loader path alone. For each plan that the plugin would run, its numerical and
behaviour notes and its workspace are checked here, by numbers of cuDNN's header written down anew, so
that a wrong filter in C shows. Exit status 1 where a check fails or a plan is missing that should be
there; dtypes that a GPU has no tensor cores for are reported as unsupported.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(HERE.parent), str(HERE)]

from graphs import Graph, odd, samples, shipped  # noqa: E402

DTYPES = {"float16": 4, "bfloat16": 5, "float32": 6, "float64": 7, "tf32": 6}    # asen_dtype
DEFAULT = ("float32", "bfloat16", "float16", "tf32")
ITEM = {"float16": 2, "bfloat16": 2, "float32": 4, "tf32": 4, "float64": 8}

# cudnnBackendNumericalNote_t and cudnnBackendBehaviorNote_t, as bits.
TENSOR_CORE, DOWN_CONVERT, REDUCED_REDUCTION, NONDETERMINISTIC = 1 << 0, 1 << 1, 1 << 2, 1 << 4
WINOGRAD_6, WINOGRAD_13 = 1 << 7, 1 << 8
COMPILED, REORDERED = 1 << 0, 1 << 1 | 1 << 2
NEVER = DOWN_CONVERT | REDUCED_REDUCTION | NONDETERMINISTIC | WINOGRAD_6 | WINOGRAD_13

# Properties that newer versions of cuDNN ask for and older descriptions lack; from public
# specifications: bits of the memory bus.
BUS_WIDTH = {"Tesla T4": 256, "NVIDIA A100-SXM4-80GB": 5120, "NVIDIA H100 80GB HBM3": 5120, "NVIDIA B200": 8192,
             "NVIDIA GeForce RTX 3090": 384, "NVIDIA GeForce RTX 4090": 384, "NVIDIA GeForce RTX 5090": 512}


class PlannerError(RuntimeError):
    """The planner cannot be built or does not run; the message says why."""


class Device(NamedTuple):
    name: str
    sm: int
    properties: dict

    def runs(self, dtype: str) -> bool:
        """Whether cuDNN has convolutions in this dtype for the GPU."""
        return dtype != "bfloat16" or self.sm >= 80


class Plan(NamedTuple):
    engine: int
    notes: int
    behavior: int
    workspace: int


class Answer(NamedTuple):
    """The plans found, and what was met on the way (conv_search)."""

    plans: list[Plan]
    proposed: int
    refused: int
    too_large: int
    unbuildable: int
    refused_notes: int
    refused_behavior: int
    milliseconds: float
    why: str


# -- the planner --------------------------------------------------------------------------------------

def _toolkit():
    """kernels/toolkit.py, which knows where CUDA's headers and libraries may be."""
    sys.path.insert(0, str(ROOT / "kernels"))
    try:
        import toolkit
    finally:
        sys.path.remove(str(ROOT / "kernels"))
    return toolkit


def build(folder: Path) -> Path:
    """The planner, built in `folder` unless it is there already. Raises PlannerError where it cannot be."""
    toolkit = _toolkit()
    compiler = shutil.which((os.environ.get("CC") or "cc").split()[0])
    if compiler is None:
        raise PlannerError("no C compiler here")
    try:
        include = toolkit.headers()
    except toolkit.ToolkitError as error:
        raise PlannerError(f"no CUDA headers: {error}") from None
    names = ("lib/libcudnn.so.9", "lib64/libcudnn.so.9", f"lib/{os.uname().machine}-linux-gnu/libcudnn.so.9")
    library = next((root / name for root in toolkit.roots() for name in names if (root / name).is_file()), None)
    if library is None:
        raise PlannerError("libcudnn.so.9 is missing (pip install nvidia-cudnn-cu13)")
    sources = [HERE / "planner.c", ROOT / "kernels" / "cudnn_graph.c"]
    inputs = [*sources, HERE / "fake_driver.c", *sorted((ROOT / "kernels").glob("*.h")), *sorted((ROOT / "csrc").rglob("*.h"))]
    digest = hashlib.sha256(repr((compiler, include, library)).encode())
    for path in inputs:
        digest.update(path.read_bytes())
    target = folder / digest.hexdigest()[:16]
    if not (target / "planner").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            _compile(Path(partial) / "made", compiler, sources, include, library)
            if not target.exists():
                os.replace(Path(partial) / "made", target)
    return target / "planner"


def _compile(folder: Path, compiler: str, sources: list[Path], include: list[Path], library: Path) -> None:
    common = [compiler, "-O2", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror"]
    headers = [f"-I{path}" for path in (ROOT / "csrc", ROOT / "kernels", *include)]
    (folder / "driver").mkdir(parents=True)
    for command in (
        [*common, "-std=c11", *headers, *map(str, sources), "-o", str(folder / "planner"), str(library),
         f"-Wl,-rpath,{library.parent}"],
        [*common, "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden", str(HERE / "fake_driver.c"), "-o",
         str(folder / "driver" / "libcuda.so.1"), "-Wl,-soname,libcuda.so.1", "-ldl"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PlannerError(f"the planner does not build:\n{done.stderr}")


def devices(folder: Path) -> list[Device]:
    """The GPUs described in a folder, oldest first."""
    found = []
    for path in sorted(folder.glob("*.json")):
        properties = json.loads(path.read_text())
        properties.setdefault("memoryBusWidth", BUS_WIDTH.get(properties["deviceName"], 256))
        found.append(Device(path.stem, properties["deviceVer"] // 10, properties))
    return sorted(found, key=lambda device: (device.sm, device.name))


def ask(planner: Path, device: Device, graphs: Sequence[Graph], dtype: str, wanted: int = 1) -> list[Answer]:
    """What the plugin would find for each graph; wanted 0: the first plan with the numerical filter off."""
    lines = [" ".join(map(str, (*graph.words(DTYPES[dtype], dtype == "tf32"), device.sm, wanted))) for graph in graphs]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CUDNN_", "NVIDIA_TF32"))}
    environment["LD_LIBRARY_PATH"] = str(planner.parent / "driver")
    with tempfile.TemporaryDirectory() as folder:
        description = Path(folder) / f"{device.name}.json"
        description.write_text(json.dumps(device.properties))
        done = subprocess.run([str(planner), str(description)], input="\n".join([*lines, ""]), capture_output=True,
                              text=True, env=environment)
    answers = [_answer(line) for line in done.stdout.splitlines()]
    if done.returncode or len(answers) != len(graphs):
        raise PlannerError(f"the planner ended with {done.returncode} after {len(answers)} of {len(graphs)} graphs on "
                           f"{device.name} in {dtype}: {done.stderr[-2000:]}")
    return answers


def _answer(line: str) -> Answer:
    field = line.split("\t")
    count = int(field[0])
    plans = [Plan(*map(int, field[i:i + 4])) for i in range(9, 9 + 4 * count, 4)]
    return Answer(plans, *map(int, field[1:7]), float(field[8]), field[9 + 4 * count])


# -- the checks ---------------------------------------------------------------------------------------

def workspace_limit(graph: Graph, dtype: str) -> int:
    activations = graph.n * (graph.c * graph.h * graph.w + graph.o * graph.p * graph.q)
    return (256 << 20) + activations * ITEM[dtype]


def faults(graph: Graph, dtype: str, device: Device, answer: Answer) -> list[str]:
    """What is wrong with an answer; nothing where the dtype is unsupported and no plan was found."""
    if not answer.plans:
        return [f"no plan: {answer.why or 'nothing was proposed'} (proposed {answer.proposed}, refused {answer.refused}, "
                f"notes {answer.refused_notes:#x}, too large {answer.too_large})"] if device.runs(dtype) else []
    found, plan = [], answer.plans[0]
    if not device.runs(dtype):
        found.append(f"a plan in {dtype} on sm_{device.sm}, which has none")
    wide = dtype == "float32" or dtype == "tf32" and device.sm < 80
    for bits, what in ((TENSOR_CORE if wide else 0, "float32 on tensor cores (TF32)"), (NONDETERMINISTIC, "nondeterministic"),
                       (NEVER & ~NONDETERMINISTIC, "less than the precision asked for")):
        if plan.notes & bits:
            found.append(f"{what}: notes {plan.notes:#x} of engine {plan.engine}")
    if plan.behavior & (COMPILED | REORDERED):
        found.append(f"compiled at run time or reordered: behaviour {plan.behavior:#x} of engine {plan.engine}")
    if plan.workspace > workspace_limit(graph, dtype):
        found.append(f"a workspace of {plan.workspace} bytes")
    return found


class Row(NamedTuple):
    """One device and dtype of the table."""

    device: Device
    dtype: str
    graphs: int
    planned: int
    tensor_core: int
    winograd: int
    largest: int
    seconds: float
    faults: list[tuple[Graph, str]]


def check(planner: Path, device: Device, dtype: str, graphs: Sequence[Graph]) -> Row:
    """Plans the graphs and judges what came out."""
    began = time.monotonic()
    answers = ask(planner, device, graphs, dtype)
    seconds = time.monotonic() - began
    chosen = [answer.plans[0] for answer in answers if answer.plans]
    wrong = [(graph, fault) for graph, answer in zip(graphs, answers) for fault in faults(graph, dtype, device, answer)]
    return Row(device, dtype, len(graphs), len(chosen), sum(bool(plan.notes & TENSOR_CORE) for plan in chosen),
               sum(bool(plan.notes & 1 << 5) for plan in chosen), max((plan.workspace for plan in chosen), default=0),
               seconds, wrong)


def choose(graphs: Iterable[Graph], fused: str) -> list[Graph]:
    """All unfused graphs, and all, every eighth or none of the fused ones."""
    graphs = list(graphs)
    more = [graph for graph in graphs if graph.fused]
    more = {"all": more, "sample": more[::8], "none": []}[fused]
    return [graph for graph in graphs if not graph.fused] + more


def table(rows: Iterable[Row]) -> str:
    """The figures by device and dtype."""
    lines = [f"{'device':16} {'dtype':9} {'graphs':>6} {'planned':>7} {'unsupported':>11} {'tensor cores':>12} "
             f"{'Winograd':>8} {'workspace MiB':>13} {'seconds':>7}"]
    for row in rows:
        lines.append(f"{row.device.name:16} {row.dtype:9} {row.graphs:6} {row.planned:7} {row.graphs - row.planned:11} "
                     f"{row.tensor_core:12} {row.winograd:8} {row.largest / 2**20:13.1f} {row.seconds:7.1f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--devices", type=Path, default=os.environ.get("ASENPP_CUDNN_DEVICES"),
                        help="folder of device descriptions (default: $ASENPP_CUDNN_DEVICES)")
    parser.add_argument("--fused", choices=("all", "sample", "none"), default="all")
    parser.add_argument("--dtype", default=",".join(DEFAULT), help=f"some of {', '.join(DTYPES)}")
    parser.add_argument("--samples", action="store_true",
                        help="the op tests' samples and odd shapes instead of the configurations")
    arguments = parser.parse_args()
    if arguments.devices is None or not Path(arguments.devices).is_dir():
        print("no folder of device descriptions: --devices DIR", file=sys.stderr)
        return 2
    try:
        planner = build(ROOT / "build" / "cudnn_plans")
        graphs = choose({**samples(), **odd()} if arguments.samples else shipped(), arguments.fused)
        rows = [check(planner, device, dtype, graphs) for device in devices(Path(arguments.devices))
                for dtype in arguments.dtype.split(",")]
    except PlannerError as error:
        print(error, file=sys.stderr)
        return 1
    print(table(rows))
    wrong = [f"{row.device.name} {row.dtype}: {graph}: {fault}" for row in rows for graph, fault in row.faults]
    print("\n".join(wrong[:200]) if wrong else "every plan keeps its promises")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
