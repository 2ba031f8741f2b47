"""What one call of a small op costs: add, mul and matmul on a few elements up to 64 x 64, beside PyTorch.

    python benchmarks/op_calls.py [--before CHECKOUT] [--pairs 7] [--threads 1 2] [--only add] [--json FILE]

At these sizes the arithmetic is next to nothing: what is timed is the way from Python's operator to the kernel and
back, and, where a row is "recorded", the node that the tape keeps. Each competitor is a process of its own that
waits for its turn, and within a pair they take turns case by case:
  ours     this checkout
  before   another checkout, built in place, where --before names one
  torch    PyTorch
A time is the best of five batches of calls. Printed are nanoseconds a call (the median of the pairs) and the ratio
ours / other as its median with the spread over the pairs.

The bar: each row's median ratio to PyTorch is at most 1. The exit status is 1 where a row misses it, or where
PyTorch is not installed (then the bar is not met, whatever we took).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import timeit
from importlib.util import find_spec
from pathlib import Path

import record

ROOT = Path(__file__).resolve().parent.parent

# name: (statement, shape of a, shape of b); b of None is the number 1.5
CASES = {
    **{f"{name} ({n},)": (f"a {sign} b", (n,), (n,)) for name, sign in (("add", "+"), ("mul", "*")) for n in (4, 64)},
    **{f"{name} (64, 64)": (f"a {sign} b", (64, 64), (64, 64)) for name, sign in (("add", "+"), ("mul", "*"))},
    **{f"{name} (8, 8), a row": (f"a {sign} b", (8, 8), (8,)) for name, sign in (("add", "+"), ("mul", "*"))},
    **{f"{name} (4,), a number": (f"a {sign} b", (4,), None) for name, sign in (("add", "+"), ("mul", "*"))},
    **{f"matmul ({n}, {n})": ("a @ b", (n, n), (n, n)) for n in (2, 8, 16, 32, 64)},
}


def operands(kind: str, case: str, recorded: bool) -> dict:
    """The two operands; where a call is recorded, both want a gradient."""
    import numpy as np

    rng = np.random.default_rng(0)
    statement, *shapes = CASES[case]
    values = {}
    for name, shape in zip("ab", shapes, strict=True):
        if shape is None:
            values[name] = 1.5
            continue
        array = rng.standard_normal(shape, dtype=np.float32)
        if kind == "torch":
            import torch

            values[name] = torch.from_numpy(array.copy()).requires_grad_(recorded)
        else:
            import asenpp

            values[name] = asenpp.from_numpy(array).clone().requires_grad_(recorded)
    return values


def seconds(kind: str, case: str, recorded: bool) -> float:
    """Seconds a call: the best of five batches of about 10 ms."""
    timer = timeit.Timer(CASES[case][0], globals=operands(kind, case, recorded))
    calls = 200
    while (took := timer.timeit(calls)) < 0.005:
        calls *= 2
    calls = max(1, int(calls * 0.01 / took))
    return min(timer.repeat(5, calls)) / calls


def worker(kind: str, threads: int) -> None:
    """Answers lines of JSON, [case, recorded], with seconds a call."""
    if kind == "torch":
        import torch

        torch.set_num_threads(threads)
    else:
        import asenpp

        asenpp.set_num_threads(threads)
    for line in sys.stdin:
        print(json.dumps(seconds(kind, *json.loads(line))), flush=True)


class Competitor:
    """A process that measures when it is asked, and sleeps otherwise."""

    def __init__(self, kind: str, root: Path, threads: int):
        command = [sys.executable, __file__, "--worker", kind, "--root", str(root), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.kind = kind

    def seconds(self, case: str, recorded: bool) -> float:
        self.process.stdin.write(json.dumps([case, recorded]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.kind} failed at {case}: see above")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(kinds: dict[str, Path], threads: int, pairs: int, cases: list[str]) -> list[dict]:
    competitors = [Competitor(kind, root, threads) for kind, root in kinds.items()]
    taken: dict[tuple[str, bool], dict[str, list[float]]] = {
        (case, recorded): {kind: [] for kind in kinds} for case in cases for recorded in (False, True)}
    for turn in range(pairs):
        for (case, recorded), times in taken.items():
            for one in competitors if turn % 2 == 0 else competitors[::-1]:
                times[one.kind].append(one.seconds(case, recorded))
    for one in competitors:
        one.close()
    rows = []
    for (case, recorded), times in taken.items():
        row = {"case": case, "recorded": recorded, "threads": threads,
               "ns": {kind: statistics.median(values) * 1e9 for kind, values in times.items()},
               "ratios": {kind: record.ratios(times["ours"], times[kind]) for kind in kinds if kind != "ours"}}
        row["met"] = "torch" in kinds and row["ratios"]["torch"]["median"] <= 1
        rows.append(row)
    return rows


def show(rows: list[dict]) -> None:
    for row in rows:
        ns = "  ".join(f"{kind} {value:6.0f}" for kind, value in row["ns"].items())
        ratio = "  ".join(f"ours/{kind} {r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})"
                          for kind, r in row["ratios"].items())
        print(f"{row['threads']} threads  {row['case']:18s} {'recorded' if row['recorded'] else '':9s} ns: {ns}   {ratio}"
              f"   {'met' if row['met'] else 'NOT MET'}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, built in place, to alternate with")
    parser.add_argument("--pairs", type=int, default=7, help="how often each case is measured by each (at least 5)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", help="where the result is written")
    parser.add_argument("--worker", choices=["ours", "before", "torch"], help=argparse.SUPPRESS)
    parser.add_argument("--root", default=str(ROOT), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        sys.path.insert(0, args.root)
        worker(args.worker, args.threads[0])
        return 0
    if args.pairs < 5:
        parser.error("--pairs: at least 5")
    kinds = {"ours": ROOT}
    if args.before:
        kinds["before"] = args.before.resolve()
    if find_spec("torch"):
        kinds["torch"] = ROOT
    else:
        print("PyTorch is not installed: the bar is not met")
    cases = [case for case in CASES if args.only in case]
    rows = []
    for threads in args.threads:
        part = measure(kinds, threads, args.pairs, cases)
        show(part)
        rows += part
    met = all(row["met"] for row in rows)
    record.write(args.json, {"benchmark": "op_calls",
                             **record.machine(**{k: v for k, v in kinds.items() if k != "torch"}),
                             "met": met, "rows": rows})
    print("the bar is met" if met else f"the bar is NOT met: {sum(not row['met'] for row in rows)} of {len(rows)} rows miss it")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
