"""Trains and evaluates runs by main.py, each stage in a process of its own, and appends their results.

A run that stands in the results is not done again. One that was stopped goes on from its checkpoint, whose folder
carries the hash of the run's options: another configuration is another run. VALID is evaluated once, at the end of a
training; TEST only in studies marked final, and only where the choices that they rest on are frozen (see unfrozen).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from asenpp.config import DEFAULTS, load_config
from asenpp.engine.state import flat
from benchmarks import record

from . import datasets, results, studies
from .results import Row
from .studies import RATES, Run, Stage

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = "docs/learning"           # grows while runs are done
# Sets of drawn garments: images, and their width in pixels.
DRAWN = {"Garments": (600, 128), "Garments3000": (3000, 128), "TinyGarments": (160, 48)}
# Keys that say where and how fast, not what.
_ELSEWHERE = ("SAVE_DIR", "NAME", "NUM_THREADS", "DEVICE", "LOGGER.", "DATA.NUM_WORKERS", "DATA.BASE_PATH",
              "DATA.DATASET", "SOLVER.LOG_PERIOD")


class RunError(RuntimeError):
    """A run that could not be finished; the message says where its log is."""


class Waiting(RunError):
    """A run that must not look at TEST yet; the message says why."""


class Settings(NamedTuple):
    """out: the file of results. work: run folders, logs, derived data sets. data: where prepared data sets lie."""

    out: Path
    work: Path
    data: Path
    jobs: int = 1
    threads: int = 2
    device: str = "cpu"
    tiny: bool = False


# -- what a run is --------------------------------------------------------------------------------

def as_opts(options: dict[str, Any]) -> list[str]:
    return [text for name, value in options.items() for text in (name, str(value))]


def configuration(stage: Stage) -> Any:
    return load_config(*(ROOT / file for file in stage.files), opts=as_opts(stage.options))


def options_hash(run: Run) -> str:
    """Of all that decides a run: keys that are not the default's, the rule of its data, what is evaluated."""
    default = flat(DEFAULTS)
    stages = []
    for stage in run.stages:
        try:
            keys = flat(configuration(stage).to_dict())
        except (OSError, ValueError) as error:
            return f"unreadable ({error})"
        stages.append({name: value for name, value in keys.items()
                       if not name.startswith(_ELSEWHERE) and value != default.get(name)})
    text = json.dumps([stages, run.rule, run.final, run.boxes], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def forwards(cfg: Any, images: int, labels: float) -> int:
    """Image-forwards of a training: global ones, and with a local branch one for each crop.

    images: of the training part; labels: of an image, on average.
    """
    solver, data, local = cfg.SOLVER, cfg.DATA, bool(cfg.MODEL.LOCAL.ENABLE)
    if solver.LOSS == "triplet":
        return solver.EPOCHS * data.NUM_TRIPLETS * 3 * (2 if local else 1)
    return round(solver.EPOCHS * (data.NUM_IMAGES or images) * (1 + (labels if local else 0)))


def budget(run: Run) -> int:
    """Image-forwards by the table; where the configuration decides, by the configuration. 0: it cannot be read."""
    labels = 1 if run.rule and run.rule["kind"] == "one_label" else run.data.labels
    try:
        return run.budget or sum(forwards(configuration(stage), run.data.images, labels) for stage in run.stages)
    except (OSError, ValueError):
        return 0


def key(run: Run) -> tuple[Any, ...]:
    return run.study, run.label, run.mode, run.seed, budget(run), options_hash(run)


def left(runs: Iterable[Run], rows: Sequence[Row]) -> list[Run]:
    """Those that stand in no row."""
    done = {results.key(row) for row in rows}
    return [run for run in runs if key(run) not in done]


def estimate(run: Run, rows: Sequence[Row], threads: int) -> float:
    """Seconds: as the rows of the same images took on as many threads, else as the table says."""
    measured = [row["process_seconds"] / row["budget"] for row in rows
                if row["images_of"] == run.data.name and row["threads"] == threads and row["scores"]]
    each = statistics.median(measured) if measured else run.data.seconds * (2 if threads == 1 else 1)
    return budget(run) * each


# -- choices come before TEST ---------------------------------------------------------------------

@functools.cache
def _rate_keys() -> frozenset[tuple[Any, ...]]:
    return frozenset(key(run) for run in studies.runs() if run.study == "rates")


def best_rates(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[float, int]]:
    """(data, objective) -> the learning rate with the best mAP on VALID, and how many were tried: of runs as the table
    has them by now."""
    scores: dict[tuple[str, str], dict[float, float]] = {}
    for row in rows:
        if results.key(row) in _rate_keys():
            tried = scores.setdefault((row["data"], row["mode"].split("@")[0]), {})
            tried[row["rate"]] = row["scores"]["VALID"]["mAP"]
    return {pair: (max(tried, key=lambda rate: tried[rate]), len(tried)) for pair, tried in scores.items()}


@functools.cache
def _recipe_keys() -> frozenset[tuple[Any, ...]]:
    return frozenset(key(run) for run in studies.runs() if run.study == "recipes")


def best_recipe(rows: Sequence[Row], budget: int) -> tuple[str, int]:
    """The mode of the study recipes with the best mAP on VALID at a budget, and how many of them are there."""
    scores = {row["mode"]: row["scores"]["VALID"]["mAP"] for row in rows
              if row["budget"] == budget and results.key(row) in _recipe_keys()}
    return max(scores, key=lambda mode: scores[mode], default=""), len(scores)


def unfrozen(run: Run, rows: Sequence[Row], commit: str) -> str:
    """Why a run must not look at TEST yet; "" where it may."""
    if not run.final:
        return ""
    if commit.endswith("+"):
        return "the checkout has changes: what was chosen on VALID is committed before TEST is looked at"
    if run.stages[0].files[-1].endswith("cosine.yaml"):     # a shipped file holds its own rate
        return ""
    pair = (run.data.name, run.mode.split("+")[0])
    rate, tried = best_rates(rows).get(pair, (0.0, 0))
    if tried < 3:
        return f"the study rates has {tried} of 3 learning rates of {pair[1]} on {pair[0]}"
    if RATES[pair] != rate:
        return f"RATES says {RATES[pair]:g} for {pair[1]} on {pair[0]}, the study rates found {rate:g}"
    if run.study in ("short", "converged"):
        best, tried = best_recipe(rows, run.budget)
        if tried < len(studies.RECIPES):
            return f"the study recipes has {tried} of {len(studies.RECIPES)} modes of {run.budget} image-forwards"
        if studies.BEST[run.budget] != best:
            return f"BEST says {studies.BEST[run.budget]!r} for {run.budget} image-forwards, the study recipes found {best!r}"
    return ""


# -- doing it -------------------------------------------------------------------------------------

class Runner:
    """Does runs, `jobs` at once. `stop()` ends the trainings at work; each saves a checkpoint first."""

    def __init__(self, settings: Settings, say: Any = print) -> None:
        self.settings, self.say = settings, say
        self.stopped = False
        self._children: set[subprocess.Popen] = set()
        self._lock = threading.Lock()           # of the children
        self._preparing = threading.Lock()

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            for child in self._children:
                child.send_signal(signal.SIGTERM)

    def all(self, runs: Sequence[Run]) -> int:
        """Does runs; returns how many were not done. What failed is in WORK/failures.log, and does not stop the
        others."""
        failed = done = 0
        waiting: Counter[str] = Counter()
        pool = ThreadPoolExecutor(self.settings.jobs)
        tasks = {pool.submit(self._one, run): run for run in runs}
        try:
            for task in as_completed(tasks):
                run, done = tasks[task], done + 1
                try:
                    row = task.result()
                except Waiting as why:
                    waiting[str(why)] += 1
                except Exception as error:  # noqa: B902: whatever it is, it is this run's alone
                    failed += 1
                    self._failure(run, error)
                else:
                    scores = ", ".join(f"{split} {found['mAP']:.4f}" for split, found in row["scores"].items())
                    self.say(f"[{done}/{len(tasks)}] {run}: {scores}, {row['seconds']:.0f} s")
        except BaseException:
            self.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        for reason, count in waiting.items():
            self.say(f"{count} runs wait: {reason}")
        return failed + sum(waiting.values())

    def _failure(self, run: Run, error: Exception) -> None:
        text = f"{run}: {type(error).__name__}: {error}"
        self.say(f"FAILED {text}")
        self.settings.work.mkdir(parents=True, exist_ok=True)
        with open(self.settings.work / "failures.log", "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def _one(self, run: Run) -> Row:
        if self.stopped:
            raise RunError("stopped before it began")
        head = record.campaign(but=RESULTS)
        if not self.settings.tiny:
            why = unfrozen(run, results.read(self.settings.out), head["commit"])
            if why:
                raise Waiting(why)
        row = self.execute(run, head)
        results.append(self.settings.out, row)
        return row

    def execute(self, run: Run, head: Row) -> Row:
        """Trains and evaluates one run; its line of the results."""
        folder, name = self.dataset(run), self._name(run)
        train = datasets.read_train(folder)
        labels = sum(len(pairs) for _, pairs in train) / len(train)
        spent, seconds, whole, stops = 0, 0.0, 0.0, 0
        checkpoint, boxes = "", {}
        for number, stage in enumerate(run.stages, 1):
            arguments = self._arguments(run, stage, folder, f"{name}_s{number}")
            cfg = load_config(*stage.files_under(ROOT), opts=arguments[1])
            spent += forwards(cfg, len(train), labels)
            times = self._train(arguments, self.settings.work / "runs" / cfg.NAME, checkpoint)
            seconds, whole, stops = seconds + times[0], whole + times[1], stops + times[2]
            checkpoint = str(self.settings.work / "runs" / cfg.NAME / "model_best.pth.tar")
            if run.boxes:
                boxes[f"stage {number}"] = self._boxes(arguments, checkpoint, cfg.NAME)
        if spent != budget(run):
            raise RunError(f"the configuration makes {spent} image-forwards, the table says {budget(run)}")
        events = self._events(cfg.NAME)
        scores = {"VALID": scores_of(next(e for e in reversed(events) if e["event"] == "eval"))}
        if run.final:
            scores["TEST"] = self._test(arguments, checkpoint, cfg.NAME)
        return {"study": run.study, "data": run.label, "images_of": run.data.name, "mode": run.mode, "seed": run.seed,
                "budget": spent, "rate": run.rate, "options_hash": options_hash(run), "rule": run.rule,
                "options": [stage.options for stage in run.stages], "files": [list(s.files) for s in run.stages],
                "seconds": round(seconds, 3), "process_seconds": round(whole, 3), "resumed": stops, "scores": scores,
                **({"boxes": boxes} if boxes else {}), "threads": self.settings.threads, "jobs": self.settings.jobs,
                "device": self.settings.device, **head}

    def _name(self, run: Run) -> str:
        words = f"{run.study}_{run.label}_{run.mode}_{run.seed}_{options_hash(run)}"
        return re.sub(r"[^A-Za-z0-9_.+@-]+", "-", words)

    # -- data sets ----------------------------------------------------------------------------------

    def dataset(self, run: Run) -> Path:
        """The folder of the run's data set, made where it can be made."""
        with self._preparing:
            source = self._source(run.data.name)
            if run.rule is None:
                return source
            mark = hashlib.sha256(json.dumps(run.rule, sort_keys=True).encode()).hexdigest()[:8]
            target = self.settings.work / "data" / f"{run.data.name}-{run.rule['kind']}-{mark}-{run.seed}"
            datasets.derive(source, target, run.rule, run.seed)
            return target

    def _source(self, name: str) -> Path:
        folder = self.settings.data / name
        if (folder / "label_train.txt").exists():
            return folder
        if name not in DRAWN:
            raise RunError(f"{folder} is not there: python -m asenpp.data fashion_mnist --out {folder}, or name another "
                           "folder by --data")
        from asenpp.data.garments import prepare

        folder = self.settings.work / "data" / name
        images, size = DRAWN[name]
        prepare(folder, images=images, size=size, quiet=True)
        return folder

    # -- processes ----------------------------------------------------------------------------------

    def _arguments(self, run: Run, stage: Stage, folder: Path, name: str) -> tuple[list[str], list[str]]:
        """--cfg and --opts."""
        options = {**stage.options, "NAME": name, "SAVE_DIR": self.settings.work / "runs", "SEED": run.seed,
                   "DEVICE": self.settings.device, "NUM_THREADS": self.settings.threads,
                   "DATA.BASE_PATH": folder.parent, "DATA.DATASET": folder.name}
        return stage.files_under(ROOT), as_opts(options)

    def _train(self, arguments: tuple[list[str], list[str]], folder: Path, before: str) -> tuple[float, float, int]:
        """(seconds in the training's loop, of its processes, how often it was taken up again)."""
        last, log = folder / "checkpoint.pth.tar", self._log(folder.name)
        if last.exists():
            how = ["--resume", str(last)]
        else:
            how = ["--overwrite", *(["--resume", before] if before else [])]
            log.unlink(missing_ok=True)
        began = time.monotonic()
        try:
            self._main(log, arguments, [*how, "--save-minutes", "1"])
        finally:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "a") as file:
                file.write(f"process {time.monotonic() - began:.3f} s\n")
        return times_in(log.read_text(errors="replace"))

    def _test(self, arguments: tuple[list[str], list[str]], checkpoint: str, name: str) -> Row:
        def found() -> list[Row]:
            return [event for event in self._events(name) if event["event"] == "test" and event["split"] == "TEST"]

        if not found():
            self._main(self._log(f"{name}.test"), arguments, ["--resume", checkpoint, "--test", "TEST"])
        return scores_of(found()[-1])

    def _boxes(self, arguments: tuple[list[str], list[str]], checkpoint: str, name: str) -> Row:
        log = self._log(f"{name}.boxes")
        out = log.with_suffix(".json")
        self._process(log, [str(Path(__file__).resolve().parent), "boxes", "--checkpoint", checkpoint, "--out", str(out),
                            "--cfg", *arguments[0], "--opts", *arguments[1]])
        return json.loads(out.read_text())

    def _main(self, log: Path, arguments: tuple[list[str], list[str]], how: Sequence[str]) -> None:
        self._process(log, [str(ROOT / "main.py"), "--cfg", *arguments[0], *how, "--opts", *arguments[1]])

    def _process(self, log: Path, command: Sequence[str]) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
        with open(log, "ab") as file:
            with self._lock:
                if self.stopped:
                    raise RunError("stopped")
                child = subprocess.Popen([sys.executable, "-u", *command], stdout=file, stderr=file, env=environment,
                                         cwd=ROOT, start_new_session=True)
                self._children.add(child)
            try:
                status = child.wait()
            finally:
                with self._lock:
                    self._children.discard(child)
        if status:
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or [""]
            raise RunError(f"status {status}: {last[0][:300]} ({log})")

    def _log(self, name: str) -> Path:
        return self.settings.work / "logs" / f"{name}.log"

    def _events(self, name: str) -> list[Row]:
        text = (self.settings.work / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


def scores_of(event: Row) -> Row:
    """What an evaluation's event says of quality; of the heads' classification, accuracy and macro averages."""
    found: Row = {name: event[name] for name in ("mAP", "attributes", "metrics", "queries") if name in event}
    if "heads" in event:
        found["heads"] = {name: {"accuracy": report["accuracy"], "macro": report["macro"]}
                          for name, report in event["heads"].items()}
    return found


_LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ASEN INFO: (.*)$")


def times_in(text: str) -> tuple[float, float, int]:
    """From a training's log: seconds between its beginning and its last step (checkpoints included, evaluation not),
    seconds of its processes from start to end, and how often it was taken up again."""
    spans: list[list[datetime]] = []
    whole = 0.0
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            when = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f")
            if re.search(r": \d+ epochs of \d+ iterations", match[2]):
                spans.append([when, when])
            elif re.match(r"Epoch \d+/\d+ iteration", match[2]) and spans:
                spans[-1][1] = when
        elif line.startswith("process "):
            whole += float(line.split()[1])
    seconds = sum((end - begin).total_seconds() for begin, end in spans)
    if not seconds:
        raise RunError("the log has no line of a training step")
    return seconds, max(seconds, whole), len(spans) - 1
