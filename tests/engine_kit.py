"""What the tests of the engine share: a small Garments, tiny configurations, comparing runs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "config" / "Garments"
IMAGES, PIXELS = 160, 48


def files(stage):
    return [str(CONFIG / "Garments.yaml"), str(CONFIG / f"{stage}.yaml")]


def options(folder, *more):
    """KEY VALUE ... of a run that takes a second: 6 iterations of 4 triplets an epoch, 32-pixel images."""
    return ["DATA.BASE_PATH", str(folder / "data"), "SAVE_DIR", str(folder / "runs"), "NUM_THREADS", 1,
            "INPUT.GLOBAL_SIZE", 32, "INPUT.LOCAL_SIZE", 32, "DATA.NUM_TRIPLETS", 22, "DATA.TRAIN_BATCHSIZE", 4,
            "SOLVER.EPOCHS", 2, "SOLVER.LOG_PERIOD", 2, "EVAL.SUBSET", 4, "MODEL.EMBED_SIZE", 16,
            "MODEL.ATTRIBUTE.EMBED_SIZE", 8, *more]


def config(folder, stage, *more):
    import asenpp

    return asenpp.load_config(*files(stage), opts=options(folder, *more))


def command(folder, stage, *arguments, opts=()):
    """Arguments of main.py."""
    return ["--cfg", *files(stage), *arguments, "--opts", *map(str, options(folder, *opts))]


def start(arguments, **options):
    """main.py in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-u", str(ROOT / "main.py"), *arguments], text=True, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def stop_after(monkeypatch, steps):
    """Ctrl-C, as it were, in step number `steps`."""
    from asenpp.engine import training

    real = training._Trainer._train

    def train(self, *arguments):
        real(self, *arguments)
        self.stop.requested = self.position.step == steps

    monkeypatch.setattr(training._Trainer, "_train", train)


def differences(a, b, path=""):
    """Where two checkpoints differ in a bit; an empty list where nowhere."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{path}.{key}: on one side only" for key in a.keys() ^ b.keys()]
        return found + [line for key in a.keys() & b.keys() for line in differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [line for i, (x, y) in enumerate(zip(a, b)) for line in differences(x, y, f"{path}[{i}]")]
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        same = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        return [] if same else [path]
    return [] if a == b else [f"{path}: {a!r:.60} != {b!r:.60}"]


def same_run(one, other, but=()):
    """Differences between two finished run folders: last checkpoint, best checkpoint, metrics.jsonl."""
    import asenpp

    found = []
    for name in ("checkpoint.pth.tar", "model_best.pth.tar"):
        a, b = asenpp.load(one / name), asenpp.load(other / name)
        for key in ("name", "config", *but):
            a.pop(key, None), b.pop(key, None)
        found += differences(a, b, name)
    if (one / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes():
        found.append("metrics.jsonl")
    return found


def choose_attributes(source, target, kept):
    """A data set of the same images that knows only some attributes, numbered anew in that order."""
    target.mkdir(parents=True)
    new = {str(old): str(number) for number, old in enumerate(kept)}
    for path in source.iterdir():
        if path.is_dir():
            (target / path.name).symlink_to(path)
        elif path.name.startswith("filenames"):
            (target / path.name).write_bytes(path.read_bytes())
        elif path.suffix == ".txt":
            lines = []
            for line in path.read_text().splitlines():
                image, *labels = line.split()
                pairs = [f"{new[a]} {v}" for a, v in zip(labels[::2], labels[1::2]) if a in new]
                lines += [" ".join([image, *pairs])] if pairs else []
            (target / path.name).write_text("\n".join(lines) + "\n")


def only(names, sizes):
    """Options for such a data set."""
    return ["DATA.ATTRIBUTES.NAME", list(names), "DATA.ATTRIBUTES.NUM", list(sizes),
            "DATA.ATTRIBUTES.VALUES", [[] for _ in names], "DATA.NUM_ATTRIBUTES", len(names)]
