"""Interrupts the calling thread: at each of its instructions in turn, and at random moments many times.

    python tests/interrupts.py --count 10000 --out build/interrupts.json

Four kinds of work with threads of the loader beside: iterating over batches, cutting local crops, evaluating a
model, closing while batches are made; and entering and leaving no_grad and autocast. After each interrupt the loader
is closed, or used again and its batches compared. A hang ends the process with a traceback of all threads (WATCHDOG seconds). `every_instruction` raises from
a trace function instead, at the first, second, ... instruction that the calling thread executes in asenpp and in the
standard library; tests/test_interrupts.py does both in short.
"""

from __future__ import annotations

import _thread
import argparse
import faulthandler
import gc
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from asenpp.data import loader as loader_module  # noqa: E402
from asenpp.data.loader import BatchLoader  # noqa: E402
from asenpp.transforms import Augmentation  # noqa: E402
from benchmarks import record  # noqa: E402

WATCHDOG = 30
CFG = SimpleNamespace(SEED=0, INPUT=SimpleNamespace(
    PIXEL_MEAN=[0.485, 0.456, 0.406], PIXEL_STD=[0.229, 0.224, 0.225], GLOBAL_SIZE=16, LOCAL_SIZE=8,
    THRESHOLD=0.4, EXIF=False, AUGMENT=SimpleNamespace(FLIP=0.5, CROP=0.5, ERASE=0.5, JITTER=0.2)))
BATCHES = [[0, 1, 2], [3, 3], [], [4, 5, 6, 7], [0, 2, 4]]
MAPS = np.random.default_rng(0).random((4, 3, 3), dtype=np.float32)
BOUND = 4000        # bytes: of decoded images, so few that work is put aside


def make_images(folder: Path) -> list[str]:
    from PIL import Image

    rng = np.random.default_rng(1)
    paths = [str(folder / f"{i}.png") for i in range(8)]
    for i, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 256, (20 + i, 30 - i, 3), dtype=np.uint8)).save(path)
    return paths


def make_loader(paths: list[str], workers: int = 2, batches=None, augmented: bool = False) -> BatchLoader:
    return BatchLoader(BATCHES if batches is None else batches, paths, CFG, workers, keep_images=True,
                       max_decoded_bytes=BOUND, cache_bytes=0, augment=Augmentation(CFG) if augmented else None)


def expect_no_threads() -> None:
    """What was dropped unclosed ends, too, though nobody waits for it; a thread that has said that it ends, ends."""
    gc.collect()
    end = time.monotonic() + WATCHDOG / 2
    while _thread._count():
        if time.monotonic() > end:
            raise AssertionError(f"{_thread._count()} threads are left")
        time.sleep(0.0005)


# -- at each instruction ----------------------------------------------------------------------------

def _is_ours(filename: str) -> bool:
    return filename.startswith((str(ROOT / "asenpp"), os.path.dirname(os.__file__))) and "site-packages" not in filename


def trace_sites(work, target=None, occurrence: int = 1) -> dict:
    """Calls `work` and counts how often this thread executes each instruction, (code, offset); raises
    KeyboardInterrupt before the given execution of `target`."""
    sites: dict = {}

    def local(frame, event, argument):
        if event == "opcode":
            site = frame.f_code, frame.f_lasti
            sites[site] = sites.get(site, 0) + 1
            if site == target and sites[site] == occurrence:
                raise KeyboardInterrupt
        return local

    def trace(frame, event, argument):
        if not _is_ours(frame.f_code.co_filename):
            return None
        frame.f_trace_opcodes = True
        return local

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return sites


class Scenario:
    """A use of the loader; `check` after the interrupt. `augmented`: whether its loader augments."""

    def __init__(self, paths: list[str], workers: int, augmented: bool) -> None:
        self.paths, self.workers, self.augmented = paths, workers, augmented
        self.loader: BatchLoader | None = None
        with make_loader(paths, 0, None, augmented) as loader:
            self.expected = [batch.pixels for batch in loader]

    def all(self) -> None:
        """From making a loader to closing it."""
        self.loader = None
        self.loader = make_loader(self.paths, self.workers, None, self.augmented)
        for number, batch in enumerate(self.loader):
            if number == 3:
                batch.local(MAPS)
                break
        next(iter(self.loader))
        self.loader.close()

    def fails(self) -> None:
        """An iterable that raises KeyboardInterrupt itself: the second comes while the first is dealt with."""
        def batches():
            yield from BATCHES[:2]
            raise KeyboardInterrupt

        self.loader = make_loader(self.paths, self.workers, batches(), self.augmented)
        run = iter(self.loader)
        try:
            for _ in run:
                pass
        finally:
            run.close()

    def check(self) -> None:
        loader, self.loader = self.loader, None
        if loader is None:
            return
        if not loader._closed:
            if loader._run is not None:         # a pass that was cut short ends, or goes on
                try:
                    for batch in loader._run:
                        assert batch.pixels.shape[1:] == (16, 16, 3)
                except KeyboardInterrupt:       # from `fails`
                    pass
            for batch, pixels in zip(loader.iterate(BATCHES), self.expected, strict=True):
                assert (batch.pixels == pixels).all()
            assert loader.stats()["decoded_bytes"] <= BOUND
        loader.close()
        loader.close()


def every_instruction(paths: list[str], name: str, workers: int) -> dict:
    """Raises before the first and before the last execution of each instruction that the work consists of."""
    loader_module.available_bytes = lambda: 1 << 30     # nothing but thousands of instructions that read /proc
    scenario = Scenario(paths, workers, augmented=name != "fails")
    work = getattr(scenario, name)
    sites = trace_sites(work)
    scenario.check()
    raised = 0
    began = time.monotonic()
    for site, count in sites.items():
        for occurrence in {1, count} if workers else {1}:
            faulthandler.dump_traceback_later(WATCHDOG, exit=True)
            raised += trace_sites(work, site, occurrence).get(site, 0) >= occurrence
            scenario.check()
    expect_no_threads()
    faulthandler.cancel_dump_traceback_later()
    return {"instructions": len(sites), "functions": len({code for code, _ in sites}), "raised": raised, "seconds": round(time.monotonic() - began, 1)}


# -- at random moments ------------------------------------------------------------------------------

class Interrupter:
    """`run(work, seconds)` calls `work` with SIGINTs somewhere in that time; the number that it took."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.armed = False
        self.hits = 0
        signal.signal(signal.SIGALRM, self._take)

    def _take(self, number, frame) -> None:
        if self.armed:
            self.hits += 1
            raise KeyboardInterrupt

    def run(self, work, seconds: float) -> bool:
        """Whether work was interrupted. Every fourth time more than one interrupt comes."""
        before = self.hits
        delay = max(1e-6, seconds * self.random.random())
        again = self.random.choice((0, 0, 0, self.random.uniform(20e-6, 300e-6)))
        try:
            try:
                self.armed = True
                signal.setitimer(signal.ITIMER_REAL, delay, again)
                work()
            finally:
                self.armed = False
        except KeyboardInterrupt:
            self.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        return self.hits > before


class Campaign:
    def __init__(self, folder: Path, seed: int) -> None:
        self.paths = make_images(folder)
        self.interrupter = Interrupter(seed)
        self.scenario = Scenario(self.paths, 2, augmented=False)
        self.folder = folder
        self.loader: BatchLoader | None = None
        self.batch = None
        self.evaluation = None

    def _fresh(self) -> BatchLoader:
        if self.loader is None or self.loader._closed:
            self.loader = make_loader(self.paths)
        return self.loader

    def iterating(self) -> None:
        for _ in self._fresh():
            pass

    def crops(self) -> None:
        if self.batch is None:
            self.batch = next(b for b in self._fresh().iterate(BATCHES[3:]))
        for _ in range(3):
            self.batch.local(MAPS)

    def closing(self) -> None:
        loader = make_loader(self.paths)
        self.loader = loader
        next(iter(loader))
        loader.close()

    def modes(self) -> None:
        from asenpp import amp, no_grad

        for _ in range(200):
            with no_grad(), amp.autocast("bfloat16"):
                pass

    def evaluating(self) -> None:
        self.evaluation.run(self.model)

    def _prepare_evaluation(self) -> None:
        sys.path.insert(0, str(ROOT / "tests"))
        from engine_kit import IMAGES, PIXELS, config

        from asenpp.data.garments import prepare
        from asenpp.engine.evaluation import Evaluation
        from asenpp.engine.log import get_logger
        from asenpp.models import build_model

        prepare(self.folder / "data" / "Garments", images=IMAGES, size=PIXELS, quiet=True)
        cfg = config(self.folder, "s2", "DATA.NUM_WORKERS", 2, "EVAL.SUBSET", 2, "MODEL.PRETRAINED", False,
                     "LOGGER.LEVEL", 40, "MODEL.GLOBAL.BACKBONE.NAME", "resnet18", "MODEL.LOCAL.BACKBONE.NAME", "resnet18")
        from asenpp import _asen

        _asen.set_num_threads(2)        # make_loader has no more workers than that
        self.evaluation = Evaluation(cfg, "VALID", get_logger(cfg))
        self.model = build_model(cfg, pretrained=False)
        self.evaluation.run(self.model)

    def run(self, kind: str, count: int) -> dict[str, float]:
        if kind == "evaluating":
            self._prepare_evaluation()
        work = getattr(self, kind)
        work()
        began = time.monotonic()
        for _ in range(3):
            work()
        typical = (time.monotonic() - began) / 3
        hits = rounds = left_on = 0
        from asenpp import _asen, amp

        began, first = time.monotonic(), self.interrupter.hits
        while self.interrupter.hits - first < count:
            faulthandler.dump_traceback_later(WATCHDOG, exit=True)
            hits += self.interrupter.run(work, 1.5 * typical)
            rounds += 1
            if not _asen.is_grad_enabled() or amp.autocast_dtype():
                left_on += 1
                _asen.set_grad_enabled(True)
                amp._state.dtype = None
            if rounds % 20 == 0 and kind != "evaluating":   # as good as new, or closed
                self.scenario.loader, self.loader, self.batch = self.loader, None, None
                self.scenario.check()
        if kind == "evaluating":
            self.evaluation.run(self.model)
            self.evaluation.loader.close()
            self.evaluation = None
        elif self.loader is not None:
            self.loader.close()
        self.loader = self.batch = None
        expect_no_threads()
        faulthandler.cancel_dump_traceback_later()
        return {"interrupts": self.interrupter.hits - first, "rounds": rounds, "rounds_interrupted": hits,
                "modes_left_on": left_on, "seconds": round(time.monotonic() - began, 1)}


KINDS = ("iterating", "crops", "closing", "modes", "evaluating")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10000, help="interrupts in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--every", nargs=2, metavar=("SCENARIO", "WORKERS"), help="at each instruction instead")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    options = parser.parse_args()
    result = {**record.campaign(), "hangs": 0}
    with tempfile.TemporaryDirectory() as folder:
        if options.every:
            name, workers = options.every
            result |= every_instruction(make_images(Path(folder)), name, int(workers))
        else:
            campaign = Campaign(Path(folder), options.seed)
            share = -(-options.count // len(options.kinds))
            result["seed"] = options.seed
            result["kinds"] = {kind: campaign.run(kind, share) for kind in options.kinds}
            result["interrupts"] = sum(kind["interrupts"] for kind in result["kinds"].values())
    record.report(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
