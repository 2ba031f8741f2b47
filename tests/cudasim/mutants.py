"""Mutants of the CUDA kernels on the simulated device: does a test notice when a kernel loses a barrier or a bound?

    python tests/cudasim/mutants.py                       all of them; 1 where one lives without a known reason
    python tests/cudasim/mutants.py --kinds barrier       those of some kinds
    python tests/cudasim/mutants.py --named               those of NAMED (with --kinds: those, too)
    python tests/cudasim/mutants.py --list                what there is, without running anything
    python tests/cudasim/mutants.py --out FILE.json       results with commit and processor
    python tests/cudasim/mutants.py --cases REGEX         with those cases alone whose names match

Mutants are derived from the sources, so they follow every change of theirs:
    barrier     one __syncthreads or __syncwarp is not executed
    bound       one comparison is shifted: < is <=, <= is <, > is >=, >= is >
    alignment   one test of a remainder or a stride always holds
All are compiled into one plugin, in which a number chooses the one that is alive (-1: none). Every load and store is
checked (build.py --check), every tensor is an allocation of its own, and the device has one multiprocessor, so that
blocks take more than one turn; what lives there meets the default device, too.

The cases are the test functions of tests/cuda. A first pass without a mutant notes which case reaches which
mutant; then each mutant meets the cases that reach it, each time in a process of its own, until one fails. It
is killed by
    numbers   an assertion of the case
    fault     a violation that the simulator reports: a race, an access out of bounds, a divergent barrier
    error     an exception that the case does not expect
    endless   more CPU time than any case needs
EQUIVALENT names those that no test can tell from the original, with the reason; one of them that is killed, or
that no longer exists, is an error as well.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import itertools
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "cuda"), str(ROOT)]

import build as cudasim  # noqa: E402
from benchmarks import record  # noqa: E402
from mutants_known import EQUIVALENT, NAMED  # noqa: E402

FOLDER = cudasim.CACHE / "mutants"
TESTS = ("tests/cuda/test_cuda_ops.py", "tests/cuda/test_cuda_kernels.py", "tests/cuda/test_cuda_device.py")
# Cases that say nothing about kernels and take long, or that read what other cases left behind.
LEFT_OUT = {"test_large_and_many_uploads", "test_memory_is_told", "test_every_row_was_run", "test_the_comparison_can_fail",
            "test_wrong_calls_are_refused_as_on_the_cpu", "test_memory_returns_after_forward_and_backward"}
CPU_SECONDS = 10  # of a case; the longest take two


# ---- finding them ----

# Loops over the elements of a vector or an unrolled step: their bounds are constants of the types.
UNROLLED = re.compile(r"for \(int \w+ = [01]; \w+ < (V|U|N|K|PART|CHUNK_VECTORS|WIDE / N|4|4 / N|8|vector_size<T>); ")


@dataclass(frozen=True)
class Mutant:
    number: int
    file: str
    function: str
    kind: str
    text: str    # the line, as it stands
    turn: int    # among the mutants of this file, function, kind and text
    start: int   # in the file's text
    end: int
    old: str     # the operator, or the barrier

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        return self.file, self.function, self.kind, self.text, self.turn

    def __str__(self) -> str:
        turn = f" ({self.turn + 1})" if self.turn else ""
        return f"{self.file}: {self.function}: {self.kind}{turn}: {self.text}"


def blanked(text: str) -> str:
    """The text with comments, literals and preprocessor lines replaced by blanks: positions stay."""
    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match.group())

    pattern = r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|^[ \t]*#(?:\\\n|[^\n])*"
    return re.sub(pattern, blank, text, flags=re.S | re.M)


def functions(code: str) -> Iterator[tuple[int, int, str]]:
    """(begin, end, name) of each function body: braces after a parameter list, outside of other functions."""
    depth, inside, begin, name, parens = 0, 0, 0, "", []
    last = (0, 0)  # the parentheses that closed last, outside of others
    for i, c in enumerate(code):
        if c == "(":
            parens.append(i)
        elif c == ")" and parens:
            first = parens.pop()
            if not parens:
                last = (first, i)
        elif c == "{":
            depth += 1
            if not inside and re.fullmatch(r"\s*(const)?\s*", code[last[1] + 1:i]) and last[1]:
                found = re.search(r"([\w~]+)\s*$", code[:last[0]])
                if found:
                    inside, begin, name = depth, i, found[1]
        elif c == "}":
            if inside == depth and inside:
                yield begin, i, name
                inside = 0
            depth -= 1


def operand_before(code: str, at: int) -> str:
    """The left operand of a comparison that begins at `at`, roughly."""
    depth, i = 0, at
    while i > 0:
        c = code[i - 1]
        if c in ")]":
            depth += 1
        elif c in "([":
            if depth == 0:
                break
            depth -= 1
        elif depth == 0 and (c in ";{},?:" or code[i - 2:i] in ("&&", "||") or (c == "=" and code[i - 2] not in "=!<>")):
            break
        i -= 1
    return code[i:at]


def mutants_of(path: Path, first: int = 0) -> list[Mutant]:
    """All mutants of a source file, numbered from `first` on."""
    text = path.read_text()
    code = blanked(text)
    bodies = list(functions(code))
    found: list[Mutant] = []
    turns: dict[tuple[str, ...], int] = {}

    def add(kind: str, start: int, end: int) -> None:
        body = next((b for b in bodies if b[0] <= start < b[1]), None)
        if body is None:
            return
        line = text[text.rfind("\n", 0, start) + 1:text.find("\n", start)]
        code_line = code[code.rfind("\n", 0, start) + 1:code.find("\n", start)]
        if re.match(r"\s*(enum|static_assert|typedef|template)\b", code_line) or "constexpr" in code_line:
            return  # constants: nothing that could be chosen when the program runs
        if UNROLLED.search(code_line):
            return
        shown = re.sub(r"\s*/\*.*", "", line).strip()
        place = (body[2], kind, shown)
        turn = turns[place] = turns.get(place, -1) + 1
        found.append(Mutant(first + len(found), path.name, body[2], kind, shown, turn, start, end, text[start:end].strip()))

    for match in re.finditer(r"__sync(?:threads|warp)\([^()]*\)| (<=?|>=?) | (==|!=) ", code):
        if match[2]:
            left = operand_before(code, match.start())
            if " % " in left or " & 15" in left or "stride" in left:
                add("alignment", *match.span(2))
        elif match[1]:
            add("bound", *match.span(1))
        else:
            add("barrier", *match.span())
    return found


# ---- one plugin of all ----

HEADER = """\
/* Comparisons that one of many numbers changes: `a < b` is written `a < mutant<LT>{k} > b`, which keeps the
 * precedence, and is `a <= b` where mutant k lives. */
#pragma once
extern bool cudasim_mutant_is(int k);
enum { MUTANT_LT, MUTANT_LE, MUTANT_GT, MUTANT_GE, MUTANT_EQ, MUTANT_NE };
template <int OP> struct mutant { int k; };
template <typename A, int OP> struct mutant_left { A a; int k; };
template <typename A, int OP> inline mutant_left<A, OP> operator<(A a, mutant<OP> m) { return {a, m.k}; }
template <typename A, int OP> inline mutant_left<A, OP> operator==(A a, mutant<OP> m) { return {a, m.k}; }
template <typename A, int OP, typename B> inline bool operator>(mutant_left<A, OP> l, B b)
{
    bool alive = cudasim_mutant_is(l.k);
    switch (OP) {
    case MUTANT_LT: return alive ? l.a <= b : l.a < b;
    case MUTANT_LE: return alive ? l.a < b : l.a <= b;
    case MUTANT_GT: return alive ? l.a >= b : l.a > b;
    default: return alive ? l.a > b : l.a >= b;
    }
}
template <typename A, int OP, typename B> inline bool operator!=(mutant_left<A, OP> l, B b)
{
    bool alive = cudasim_mutant_is(l.k);
    return OP == MUTANT_EQ ? alive || l.a == b : !alive && l.a != b;
}
"""
HOOK = """\
static int alive = -1;
static unsigned char reached[%d];
bool cudasim_mutant_is(int k)
{
    reached[k] = 1;
    return k == alive;
}
extern "C" __attribute__((visibility("default"))) void cudasim_mutant(int k) { alive = k; }
extern "C" __attribute__((visibility("default"))) unsigned char *cudasim_mutants_reached(void) { return reached; }
"""
NAMES = {"<": "LT", "<=": "LE", ">": "GT", ">=": "GE", "==": "EQ", "!=": "NE"}


def rewritten(text: str, mutants: list[Mutant]) -> str:
    for m in sorted(mutants, key=lambda m: -m.start):
        if m.kind == "barrier":
            new = f"(void)(cudasim_mutant_is({m.number}) || ({m.old}, true))"
        else:
            first, second = ("==", "!=") if m.kind == "alignment" else ("<", ">")
            new = f"{first} mutant<MUTANT_{NAMES[m.old]}>{{{m.number}}} {second}"
        text = text[:m.start] + new + text[m.end:]
    return text


def compile_one(source: Path) -> list[Path]:
    # Compiling takes most of the time, so less of it: -O1.
    return cudasim.compile_all([source], check=True, flags=["-w", "-O1", "-include", str(FOLDER / "mutant.h")])


def build(kernels: Path, mutants: list[Mutant]) -> Path:
    """The plugin of all mutants. Raises BuildError."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.cu*"):
        if not (kernels / old.name).exists():
            old.unlink()
    cudasim.write_if_new(FOLDER / "mutant.h", HEADER)
    for path in sorted([*kernels.glob("*.cu"), *kernels.glob("*.cuh"), *kernels.glob("*.h")]):
        cudasim.write_if_new(FOLDER / path.name, rewritten(path.read_text(), [m for m in mutants if m.file == path.name]))
    hook = cudasim.write_if_new(FOLDER / "mutant_hook.cpp", HOOK % (len(mutants) + 1))
    sources = sorted(FOLDER.glob("*.cu"), key=lambda p: -p.stat().st_size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(itertools.chain.from_iterable(pool.map(compile_one, sources)))
    others = [*sorted(kernels.glob("*.c")), *sorted(HERE.glob("*.cpp")), hook]
    objects += cudasim.compile_all(others, check=True)
    out = FOLDER / "mutants.so"
    cudasim.link(out, objects, ["asen_plugin_init", "cudasim_*"], stubs=False)
    return out


# ---- cases ----


@dataclass
class Case:
    name: str
    call: Callable[[], object]
    seconds: float = 0.0
    reached: frozenset[int] = field(default_factory=frozenset)


def cases_of(module: object) -> Iterator[Case]:
    """The test functions of a module with all values of their parameters; those that want fixtures are left out."""
    for name, function in vars(module).items():
        if not name.startswith("test_") or not callable(function) or name in LEFT_OUT:
            continue
        choices = []
        for mark in getattr(function, "pytestmark", []):
            if mark.name == "parametrize":
                names = [n.strip() for n in mark.args[0].split(",")] if isinstance(mark.args[0], str) else list(mark.args[0])
                choices.append([dict(zip(names, value if len(names) > 1 else [value])) for value in mark.args[1]])
        for chosen in itertools.product(*choices):
            arguments: dict[str, object] = {}
            for values in chosen:
                arguments.update(values)
            if set(arguments) != set(inspect.signature(function).parameters):
                continue
            words = [f"{getattr(v, 'name', '')} {getattr(v, 'text', v)}".strip() for v in arguments.values()]
            yield Case(f"{name}[{', '.join(words)}]", functools.partial(function, **arguments))


def load_cases(pattern: str) -> list[Case]:
    """Imports the tests. References are computed once, here, for all processes."""
    import asenpp

    asenpp.set_num_threads(1)  # processes are forked from this one
    import test_cuda_ops

    reference = keep_references(test_cuda_ops)
    cases = [case for path in TESTS for case in cases_of(__import__(Path(path).stem)) if re.search(pattern, case.name)]
    for case in cases:
        sample = case.call.keywords.get("sample")  # type: ignore[attr-defined]
        if sample is not None:
            reference(test_cuda_ops.ops.rounded(sample))
    return cases


def keep_references(module: object) -> Callable[[object], object]:
    """Has the module's `reference` remember its results."""
    compute, known = module.reference, {}  # type: ignore[attr-defined]

    def reference(sample: object) -> object:
        key = (sample.name, sample.text, *(a is not None and a.tobytes() for a in sample.arrays))  # type: ignore[attr-defined]
        if key not in known:
            known[key] = compute(sample)
        return known[key]

    module.reference = reference  # type: ignore[attr-defined]
    return reference


class Noticed(Exception):
    """How a case failed: numbers, fault, error."""


def run_case(case: Case, simulator: object) -> None:
    """Raises Noticed. Switches go back to their defaults, as tests/cuda/conftest.py does it."""
    import pytest

    from asenpp import _asen, cuda

    try:
        try:
            case.call()
            cuda.synchronize()
        finally:
            _asen.set_kernel_paths("all")
            _asen.set_grad_enabled(True)
            if simulator.violations():  # type: ignore[attr-defined]
                raise Noticed("fault", simulator.last_violation())  # type: ignore[attr-defined]
    except Noticed:
        raise
    except pytest.skip.Exception:
        return
    except (AssertionError, pytest.fail.Exception) as error:
        raise Noticed("numbers", str(error)) from None
    except Exception as error:  # whatever it is, the test would fail
        raise Noticed("error", f"{type(error).__name__}: {error}") from None


def in_child(work: Callable[[], object], environment: dict[str, str], log: Path) -> tuple[object, int]:
    """What `work` returns in a process of its own, or None and how that ended."""
    log.write_text("")
    out = log.with_suffix(".out")
    out.unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.environ.update(environment, CUDASIM_LOG=str(log))
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            out.write_bytes(pickle.dumps(work()))
            status = 0
        except BaseException as error:  # reported; the parent goes on
            log.write_text(f"{type(error).__name__}: {error}")
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return (pickle.loads(out.read_bytes()) if ended == 0 else None), ended


def loaded(plugin: Path) -> object:
    """In a child: the simulated device, opened."""
    from asenpp import cuda
    from sim import Simulator

    os.environ["ASENPP_CUDA_PLUGIN"] = str(plugin)
    assert cuda.is_available(), cuda.why_not()
    return Simulator(plugin, load=False)


def limit(seconds: float) -> None:
    """A signal ends the process after so much CPU time from now, or if it waits for something that never comes."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(int(20 * seconds))


@dataclass
class Device:
    """One simulated device: its cases, and what they reach."""

    name: str
    environment: dict[str, str]
    plugin: Path
    cases: list[Case]

    def survey(self, count: int) -> None:
        """A pass without a mutant: what each case reaches, and that all pass."""
        import ctypes

        def work() -> object:
            simulator = loaded(self.plugin)
            hook = simulator.lib.cudasim_mutants_reached  # type: ignore[attr-defined]
            hook.restype = ctypes.POINTER(ctypes.c_ubyte)
            reached, found = hook(), []
            for case in self.cases:
                ctypes.memset(reached, 0, count)
                limit(CPU_SECONDS)
                begin = time.process_time()
                run_case(case, simulator)
                seconds = time.process_time() - begin
                found.append((seconds, frozenset(k for k in range(count) if reached[k])))
            return found

        log = FOLDER / "survey.log"
        found, ended = in_child(work, self.environment, log)
        if found is None:
            sys.exit(f"without a mutant, on {self.name}: status {ended}: {log.read_text()[-3000:]}")
        for case, (seconds, reached) in zip(self.cases, found):  # type: ignore[call-overload]
            case.seconds, case.reached = seconds, reached

    def try_mutant(self, number: int) -> dict[str, object]:
        """{"verdict": lives, unreached, numbers, fault, error or endless, "case", "how"}"""
        import ctypes

        cases = sorted((c for c in self.cases if number in c.reached), key=lambda c: c.seconds)
        if not cases:
            return {"verdict": "unreached"}
        place = FOLDER / f"case-{number}"

        def work() -> object:
            simulator = loaded(self.plugin)
            simulator.lib.cudasim_mutant(ctypes.c_int(number))  # type: ignore[attr-defined]
            for case in cases:
                place.write_text(case.name)
                limit(CPU_SECONDS)
                try:
                    run_case(case, simulator)
                except Noticed as noticed:
                    return {"verdict": noticed.args[0], "case": case.name, "how": noticed.args[1]}
            return {"verdict": "lives", "cases": len(cases)}

        log = FOLDER / f"mutant-{number}.log"
        found, ended = in_child(work, self.environment, log)
        text, case = log.read_text(), place.read_text() if place.exists() else ""
        for path in (log, log.with_suffix(".out"), place):
            path.unlink(missing_ok=True)
        if found is not None:
            return found  # type: ignore[return-value]
        if os.WIFSIGNALED(ended) and os.WTERMSIG(ended) in (signal.SIGPROF, signal.SIGALRM):
            return {"verdict": "endless", "case": case, "how": f"more than {CPU_SECONDS} s of CPU time, or waiting for ever"}
        if os.WIFSIGNALED(ended) or os.WEXITSTATUS(ended) == 86:
            return {"verdict": "fault", "case": case, "how": text.strip()[-1000:] or f"status {ended}"}
        return {"verdict": "broken", "case": case, "how": text[-1000:]}


KILLED = ("numbers", "fault", "error", "endless")


def devices_of(plugin: Path, pattern: str) -> list[Device]:
    common = {"ASENPP_NO_MEMORY_CACHE": "1", "OMP_NUM_THREADS": "1", "CUDASIM_QUEUE": "late"}
    one = HERE / "devices" / "one_multiprocessor.json"
    os.environ.update(common)
    cases = load_cases(pattern)
    return [Device("one multiprocessor", {"CUDASIM_DEVICE": str(one), **common}, plugin, cases),
            Device("the default device", common, plugin, [Case(c.name, c.call) for c in cases])]


def reason_of(mutant: Mutant) -> str | None:
    """Why it cannot be told from the original, where EQUIVALENT says so."""
    for file, function, kind, text, reason in EQUIVALENT:
        if (file, function) == (mutant.file, mutant.function) and kind in (mutant.kind, "*") and text in (mutant.text, "*"):
            return reason
    return None


def matches(name: tuple[str, str, str, str], mutant: Mutant) -> bool:
    return name == (mutant.file, mutant.function, mutant.kind, mutant.text)


def campaign(mutants: list[Mutant], chosen: list[Mutant], plugin: Path, pattern: str) -> list[dict[str, object]]:
    """A result for each chosen mutant."""
    first, second = devices_of(plugin, pattern)
    first.survey(len(mutants))
    surveyed = False
    results = []
    for m in chosen:
        found = {"device": first.name, **first.try_mutant(m.number)}
        if found["verdict"] not in KILLED and reason_of(m) is None:
            if not surveyed:
                second.survey(len(mutants))
                surveyed = True
            again = {"device": second.name, **second.try_mutant(m.number)}
            if again["verdict"] in KILLED or found["verdict"] == "unreached":
                found = again
        found["reason"] = reason_of(m)
        results.append({"file": m.file, "function": m.function, "kind": m.kind, "text": m.text, "turn": m.turn, **found})
        print(f"{found['verdict']:10} {m}", flush=True)
    return results


def judge(results: list[dict[str, object]], mutants: list[Mutant]) -> list[str]:
    """What is wrong: mutants that live, that are unclear, or that EQUIVALENT or NAMED have wrongly."""
    wrong = []
    for r in results:
        name = f"{r['file']}: {r['function']}: {r['kind']}: {r['text']}"
        if r["verdict"] not in KILLED and r["reason"] is None:
            wrong.append(f"{r['verdict']}: {name} {r.get('how', '')}")
        if r["verdict"] == "broken" and r["reason"] is not None:
            wrong.append(f"broken: {name} {r.get('how', '')}")
    for file, function, kind, text, _ in EQUIVALENT:
        if not any((m.file, m.function) == (file, function) and kind in (m.kind, "*") and text in (m.text, "*") for m in mutants):
            wrong.append(f"EQUIVALENT names what is no longer there: {file}: {function}: {kind}: {text}")
        killed = [r for r in results if (r["file"], r["function"], r["kind"], r["text"]) == (file, function, kind, text)]
        if killed and all(r["verdict"] in KILLED for r in killed):
            wrong.append(f"EQUIVALENT names what is killed: {file}: {function}: {kind}: {text}")
    for name in NAMED:
        if not any(matches(name, m) for m in mutants):
            wrong.append(f"NAMED has what is no longer there: {name}")
    return wrong


def all_mutants(kernels: Path) -> list[Mutant]:
    found: list[Mutant] = []
    for path in sorted([*kernels.glob("*.cu"), *kernels.glob("*.cuh")]):
        found += mutants_of(path, len(found))
    return found


def chosen_by(mutant: Mutant, kinds: list[str] | None, named: bool) -> bool:
    if not kinds and not named:
        return True
    return mutant.kind in (kinds or ()) or (named and any(matches(name, mutant) for name in NAMED))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=Path, default=ROOT / "kernels", help="the sources")
    parser.add_argument("--cases", default="", metavar="REGEX", help="only cases whose names match")
    parser.add_argument("--files", nargs="+", help="mutants of these files alone")
    parser.add_argument("--kinds", nargs="+", choices=("barrier", "bound", "alignment"), help="of these kinds alone")
    parser.add_argument("--named", action="store_true", help="those of NAMED, whatever their kind, and no others without --kinds")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    mutants = all_mutants(args.kernels.resolve())
    chosen = [m for m in mutants if (not args.files or m.file in args.files) and chosen_by(m, args.kinds, args.named)]
    if args.list:
        for m in chosen:
            print(m)
        print(len(chosen), "mutants")
        return
    begin = time.monotonic()
    try:
        plugin = build(args.kernels.resolve(), mutants)
    except cudasim.BuildError as error:
        sys.exit(str(error))
    results = campaign(mutants, chosen, plugin, args.cases)
    wrong = judge(results, mutants)
    counts: dict[str, int] = {}
    for r in results:
        verdict = "equivalent" if r["verdict"] not in KILLED and r["reason"] else str(r["verdict"])
        counts[verdict] = counts.get(verdict, 0) + 1
    print(", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())), f"of {len(results)}")
    record.write(args.out, {**record.campaign(), "seconds": round(time.monotonic() - begin), "counts": counts,
                            "mutants": results})
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
