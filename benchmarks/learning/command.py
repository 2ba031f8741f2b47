"""The command line.

    python benchmarks/learning run                  everything that is left; again after a stop: it goes on
    python benchmarks/learning run --list           what is left, with an estimate
    python benchmarks/learning run --only '^rates'  runs whose name (study/data/mode/seedN) matches
    python benchmarks/learning published --before CHECKOUT
                                                    the published mode beside an older checkout, built in place
    python benchmarks/learning summary              Markdown tables of the results
    python benchmarks/learning bars                 each bar, its figure, met or not; status 1 where one is not met

Exit status: 0 done; 1 a run failed, a bar is not met or missing; 2 options that make no sense; 130 stopped.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import results, studies
from .runner import ROOT, Runner, Settings, estimate, left


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python benchmarks/learning", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and evaluate what is left of the matrix", allow_abbrev=False)
    run.add_argument("--work", type=Path, default=ROOT / "build/ablation", metavar="FOLDER",
                     help="run folders, logs, derived data sets (default: build/ablation)")
    run.add_argument("--data", type=Path, default=ROOT / "data", metavar="FOLDER",
                     help="where FashionMNIST lies; Garments is made under --work where it is not there")
    run.add_argument("--only", metavar="REGEX", help="runs whose study/data/mode/seedN has a match")
    run.add_argument("--list", action="store_true", help="say what is left, and do nothing")
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once (default: %(default)s)")
    run.add_argument("--threads", type=int, default=2, metavar="T", help="of each run (default: %(default)s)")
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    run.add_argument("--tiny", action="store_true", help="a matrix of seconds, that tries the scripts themselves")
    published = commands.add_parser("published", help="the published mode beside an older checkout, in pairs")
    published.add_argument("--before", type=Path, required=True, metavar="CHECKOUT", help="built in place")
    published.add_argument("--pairs", type=int, default=5, metavar="N")
    published.add_argument("--work", type=Path, default=ROOT / "build/ablation", metavar="FOLDER")
    published.add_argument("--data", type=Path, default=ROOT / "data", metavar="FOLDER")
    published.add_argument("--threads", type=int, default=2, metavar="T")
    tables = [commands.add_parser("summary", help="Markdown tables"), commands.add_parser("bars", help="the bars")]
    for one in (run, published, *tables):
        one.add_argument("--out", type=Path, default=ROOT / "docs/learning/results.jsonl", metavar="FILE",
                         help="the results (default: docs/learning/results.jsonl)")
    boxes = commands.add_parser("boxes", help="attention inside the true boxes of one model")
    boxes.add_argument("--cfg", nargs="+", required=True)
    boxes.add_argument("--opts", nargs="+", default=[])
    boxes.add_argument("--checkpoint", required=True)
    boxes.add_argument("--out", type=Path, required=True)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "run":
        if options.jobs < 1 or options.threads < 1:
            parser.error("--jobs and --threads are 1 or more")
        return _run(options)
    if options.command == "published":
        from . import published

        return 1 if published.run(options.out.resolve(), options.work.resolve(), options.data.resolve(),
                                  options.before.resolve(), options.threads, options.pairs) else 0
    if options.command == "boxes":
        return _boxes(options)
    from . import tables

    rows = results.read(options.out)
    if options.command == "summary":
        print(tables.markdown(rows))
        return 0
    notes = ROOT / "docs/learning.md"
    bars = tables.bars(rows, notes.read_text(encoding="utf-8") if notes.exists() else "")
    print("\n".join(map(str, bars)))
    return 0 if all(bar.met or not bar.required for bar in bars) else 1


def _run(options: argparse.Namespace) -> int:
    rows = results.read(options.out)
    runs = left([run for run in studies.runs(options.tiny) if re.search(options.only or "", str(run))], rows)
    settings = Settings(options.out.resolve(), options.work.resolve(), options.data.resolve(), options.jobs,
                        options.threads, options.device, options.tiny)
    seconds = [estimate(run, rows, options.threads) for run in runs]
    if options.list:
        for run, each in zip(runs, seconds):
            print(f"{each:7.0f} s  {run}")
    print(f"{len(runs)} runs left, about {sum(seconds) / options.jobs / 3600:.1f} h", flush=True)
    if options.list:
        return 0
    runner = Runner(settings, say=lambda line: print(line, flush=True))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failed = runner.all(runs)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on.", file=sys.stderr)
        return 130
    if failed:
        print(f"{failed} runs were not done; failures are in {settings.work / 'failures.log'}", file=sys.stderr)
    return 1 if failed else 0


def _boxes(options: argparse.Namespace) -> int:
    from asenpp.config import load_config
    from asenpp.engine.run import set_threads

    from .boxes import measure

    cfg = load_config(*options.cfg, opts=options.opts)
    set_threads(cfg)
    options.out.write_text(json.dumps(measure(cfg, options.checkpoint), indent=1) + "\n")
    return 0
