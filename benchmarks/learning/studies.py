"""The matrix: every study with its data, modes, seeds and budget.

A mode is an objective and aids, joined by "+": "cosine+flip". All modes of a study have the same batches of 96
images (32 triplets), the same schedule (Adam, 20 steps of warm-up, cosine decay to the last step) and the same
number of image-forwards; their learning rates were chosen from the same three on VALID (study `rates`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

Options = dict[str, Any]

BATCH = 96
SHORT, CONVERGED = 48_000, 192_000          # image-forwards on FashionMNIST: 500 and 2,000 steps
HELD_OUT = 28_800                           # 300 steps
DRAWN, DRAWN_LOCAL = 15_360, 30_720         # on Garments, whose images cost four times as much: 160 and 320 steps
TINY = 48

# -- data sets ------------------------------------------------------------------------------------


class Data(NamedTuple):
    """files: configurations; images: of the training part; labels: of one image; seconds: an image-forward of
    training takes about so long on one core pair (for estimates)."""

    name: str
    files: tuple[str, ...]
    images: int
    labels: int
    seconds: float
    stage2: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


FASHION = Data("FashionMNIST", ("config/FashionMNIST/FashionMNIST.yaml",), 55_000, 2, 2.3e-3,
               ("config/FashionMNIST/FashionMNIST.yaml", "config/FashionMNIST/s2.yaml"))
GARMENTS = Data("Garments", ("config/Garments/Garments.yaml",), 420, 6, 9e-3,
                ("config/Garments/Garments.yaml", "config/Garments/s2.yaml"))
SHIPPED_GARMENTS = GARMENTS._replace(files=("config/Garments/Garments.yaml", "config/Garments/cosine.yaml"))
MORE_GARMENTS = SHIPPED_GARMENTS._replace(name="Garments3000", images=2100)    # python -m asenpp.data garments --images 3000
TINY_GARMENTS = GARMENTS._replace(name="TinyGarments", images=112, seconds=0.02, options=(
    ("INPUT.GLOBAL_SIZE", 32), ("INPUT.LOCAL_SIZE", 32), ("MODEL.EMBED_SIZE", 16), ("MODEL.ATTRIBUTE.EMBED_SIZE", 8),
    ("EVAL.SUBSET", 4)))

# Training on a part of the values, retrieving the others. On FashionMNIST the images of held-out categories are not
# seen in training at all: where a garment is worn follows from its category, so their other label would tell it. On
# Garments attributes are independent: an image keeps its labels of attributes whose value is not held out.
# style has three values: fewer than two would be left on one side, so it is trained whole and not asked for.
WITHOUT_SHOES = {"kind": "held_out", "values": {"0": [7, 8, 9]}, "whole_images": True}
WITHOUT_TOPS = {"kind": "held_out", "values": {"0": [0, 2, 4]}, "whole_images": True}
WITHOUT_HALF = {"kind": "held_out", "whole_images": False,
                "values": {"0": [2, 3], "1": [2, 3], "2": [2, 3], "3": [2, 3], "4": [3, 4, 5]}}
ONE_LABEL = {"kind": "one_label"}
NOISE = {"kind": "noise", "share": 0.1}
TENTH = {"kind": "part", "share": 0.1}

# -- modes ----------------------------------------------------------------------------------------

OBJECTIVES: dict[str, Options] = {
    "triplet": {"SOLVER.LOSS": "triplet", "SOLVER.MARGIN": 0.2},
    "cosine": {"SOLVER.LOSS": "cosine", "SOLVER.MARGIN": 0.2, "SOLVER.SCALE": 16.0, "SOLVER.HEAD_LR_FACTOR": 10.0},
    "supcon": {"SOLVER.LOSS": "supcon", "SOLVER.TEMPERATURE": 0.1},
    "dense_triplet": {"SOLVER.LOSS": "dense_triplet", "SOLVER.MARGIN": 0.2},
}
WARMUP = 20             # steps; of trainings below 80 steps a quarter
SCHEDULE: Options = {"SOLVER.OPTIMIZER_NAME": "Adam", "SOLVER.TYPE": "WarmupCosine"}
AIDS: dict[str, Options] = {
    "constant_rate": {"SOLVER.TYPE": "StepLR", "SOLVER.STEP_SIZE": 1_000_000},
    "flip": {"INPUT.AUGMENT.FLIP": 0.5},
    "crop": {"INPUT.AUGMENT.CROP": 0.6},
    "erase": {"INPUT.AUGMENT.ERASE": 0.25},
    "jitter": {"INPUT.AUGMENT.JITTER": 0.2},
    "ema": {"SOLVER.EMA_DECAY": 0.99},
    "smoothing": {"SOLVER.LABEL_SMOOTHING": 0.1},
    "accumulate": {"SOLVER.ACCUMULATE": 2},
    "unbalanced": {"DATA.IMAGES_PER_VALUE": 0},
    "local": {},        # stage 2 on top, within the same budget: see stages()
}

# What was chosen on VALID. A study that looks at TEST is refused where RATES is not what `rates` found.
TRIED = (3e-4, 1e-3, 3e-3)
RATES: dict[tuple[str, str], float] = {
    (data, objective): 1e-3 for data in ("FashionMNIST", "Garments") for objective in OBJECTIVES}
# By budget the mode of the study `recipes` that is carried to TEST, such as "cosine+flip"; "": none yet.
BEST = {SHORT: "", CONVERGED: ""}
RECOMMENDED = BEST[CONVERGED] or "cosine"   # what the documentation recommends for values that are all known
OPEN_SET = "cosine"     # and where values are retrieved that training did not have

# -- the table ------------------------------------------------------------------------------------


class Study(NamedTuple):
    """modes: mode -> how many seeds, from first_seed on. final: TEST is looked at. rule: see datasets.py.
    shipped: the configuration decides everything, the budget too. boxes: attention is measured after each stage."""

    name: str
    data: Data
    modes: Mapping[str, int]
    budget: int = 0
    final: bool = False
    label: str = ""
    rule: Mapping[str, Any] | None = None
    first_seed: int = 0
    tried: tuple[float, ...] = ()
    shipped: bool = False
    boxes: bool = False
    batch: int = BATCH


EACH = {objective: 1 for objective in OBJECTIVES}
PAIRED = {"triplet": 5, "cosine": 5, "supcon": 5}
CARRIED = {budget: {mode: 5} if mode else {} for budget, mode in BEST.items()}
# Aids together, one seed each at either budget: what is carried is the best of these on VALID.
RECIPES = {mode: 1 for mode in (
    "cosine", "cosine+flip", "cosine+unbalanced", "cosine+unbalanced+flip", "cosine+unbalanced+flip+smoothing+ema",
    "cosine+unbalanced+flip+smoothing+ema+crop", "cosine+unbalanced+flip+smoothing+ema+crop+erase")}
THREE = {"triplet": 2, "cosine": 2, "supcon": 2}

STUDIES: tuple[Study, ...] = (
    Study("rates", FASHION, EACH, SHORT, first_seed=100, tried=TRIED),
    Study("rates", GARMENTS, EACH, DRAWN, first_seed=100, tried=TRIED),
    Study("aids", FASHION, {"cosine": 2, **{f"cosine+{aid}": 2 for aid in AIDS}}, SHORT),
    Study("recipes", FASHION, RECIPES, SHORT, first_seed=100),
    Study("recipes", FASHION, RECIPES, CONVERGED, first_seed=100),
    Study("short", FASHION, {**PAIRED, **CARRIED[SHORT], "dense_triplet": 2}, SHORT, final=True),
    Study("converged", FASHION, {**PAIRED, **CARRIED[CONVERGED]}, CONVERGED, final=True),
    Study("held_out", FASHION, {**PAIRED, **CARRIED[CONVERGED], "dense_triplet": 2}, HELD_OUT, final=True, rule=WITHOUT_SHOES,
          label="FashionMNIST without sneaker, bag, ankle boot"),
    Study("held_out", FASHION, {**PAIRED, **CARRIED[CONVERGED], "dense_triplet": 2}, HELD_OUT, final=True, rule=WITHOUT_TOPS,
          label="FashionMNIST without T-shirt, pullover, coat"),
    Study("held_out", GARMENTS, {**PAIRED, "dense_triplet": 2}, DRAWN, final=True, rule=WITHOUT_HALF,
          label="Garments without half of the values"),
    Study("one_label", FASHION, THREE, SHORT, final=True, rule=ONE_LABEL),
    Study("one_label", GARMENTS, THREE, DRAWN, final=True, rule=ONE_LABEL),
    Study("noise", FASHION, THREE, SHORT, final=True, rule=NOISE),
    Study("tenth", FASHION, THREE, SHORT, final=True, rule=TENTH),
    Study("garments", SHIPPED_GARMENTS, {"shipped": 5}, final=True, shipped=True, boxes=True),
    # One label an image is a sixth of the labels: of 600 images too few to tell values by. Both are shown.
    Study("garments_one_label", SHIPPED_GARMENTS, {"shipped": 2}, final=True, shipped=True, rule=ONE_LABEL),
    Study("garments_one_label", MORE_GARMENTS, {"shipped": 5}, final=True, shipped=True, rule=ONE_LABEL,
          label="Garments of 3,000 images"),
    # "cosine": what the local branch gives on top of it, within the same budget.
    Study("boxes", GARMENTS, {**{f"{objective}+local": 2 for objective in OBJECTIVES}, "cosine": 2}, DRAWN_LOCAL,
          final=True, boxes=True),
)
# A matrix of seconds, that tries the scripts themselves.
TINY_STUDIES: tuple[Study, ...] = (
    Study("rates", TINY_GARMENTS, {"triplet": 1}, TINY, first_seed=100, tried=TRIED[:2], batch=12),
    Study("held_out", TINY_GARMENTS, {"triplet": 1, "supcon": 1}, TINY, final=True, rule=WITHOUT_HALF, batch=12),
    Study("one_label", TINY_GARMENTS, {"triplet": 1}, TINY, final=True, rule=ONE_LABEL, batch=12),
    Study("boxes", TINY_GARMENTS, {"triplet+local": 1, "cosine+local": 1}, 2 * TINY, final=True, boxes=True, batch=12),
)

# -- from a study to its runs ---------------------------------------------------------------------


class Stage(NamedTuple):
    """One training: configuration files, and what is changed on top of them."""

    files: tuple[str, ...]
    options: Options

    def files_under(self, root: Path) -> list[str]:
        return [str(root / file) for file in self.files]


class Run(NamedTuple):
    """One line of the results. mode: with the rate where several are tried. options: what the table adds to the
    files. budget: 0 where the configuration decides it."""

    study: str
    data: Data
    label: str
    mode: str
    seed: int
    budget: int
    stages: tuple[Stage, ...]
    rule: Mapping[str, Any] | None
    final: bool
    boxes: bool
    rate: float

    def __str__(self) -> str:
        return f"{self.study}/{self.label}/{self.mode}/seed{self.seed}"


def epochs(steps: int, batch: int, images: int) -> int:
    """The least number of epochs of equally many steps in which no epoch needs more images than there are."""
    most = max(1, images // batch)
    return next(count for count in range(1, steps + 1) if steps % count == 0 and steps // count <= most)


def lasting(steps: int, batch: int, images: int, options: Options) -> Options:
    """`options` for a training of so many steps, each of `batch` image-forwards of the global branch."""
    count = epochs(steps, batch, images)
    keys: Options = {**options, "SOLVER.EPOCHS": count}
    if options["SOLVER.TYPE"] == "WarmupCosine":
        keys["SOLVER.WARMUP_STEPS"] = min(WARMUP, steps // 4)
    if options["SOLVER.LOSS"] == "triplet":
        return {**keys, "DATA.TRAIN_BATCHSIZE": batch // 3, "DATA.NUM_TRIPLETS": steps // count * (batch // 3)}
    return {**keys, "DATA.TRAIN_BATCHSIZE": batch, "DATA.NUM_IMAGES": steps // count * batch}


def local_steps(steps: int, cost: int) -> tuple[int, int]:
    """How a budget of so many steps is spent on stage 1 and stage 2, a step of which costs as much as `cost` of stage
    1: about half of the budget each, and numbers that divide well."""
    second = steps // 2 // cost
    second = second // 4 * 4 or max(1, second)
    return steps - second * cost, second


def part_of(rule: Mapping[str, Any] | None, images: int) -> int:
    """At least so many training images a derived data set has."""
    if rule is None or rule["kind"] in ("one_label", "noise"):
        return images
    if rule["kind"] == "part":
        return int(images * rule["share"])
    return int(images * 0.7) if rule["whole_images"] else int(images * 0.9)


def _stages(study: Study, mode: str, rate: float) -> tuple[Stage, ...]:
    data = study.data
    always: Options = {**dict(data.options), "SOLVER.EVAL_STEPS": 1_000_000, "SOLVER.LOG_PERIOD": 1}
    if study.rule is not None:
        always["DATA.SKIP_UNUSABLE_VALUES"] = True
    if study.shipped:
        return (Stage(data.files, always),)
    objective, *aids = mode.split("+")
    options = {**always, **SCHEDULE, **OBJECTIVES[objective], "SOLVER.BASE_LR": rate}
    for aid in aids:
        options.update(AIDS[aid])
    steps = study.budget // study.batch
    if steps * study.batch != study.budget:
        raise ValueError(f"{study.name}: {study.budget} image-forwards are no whole number of batches of {study.batch}")
    images = part_of(study.rule, data.images)
    if "local" not in aids:
        return (Stage(data.files, lasting(steps, study.batch, images, options)),)
    labels = 1 if options["SOLVER.LOSS"] == "triplet" or study.rule == ONE_LABEL else data.labels
    first, second = local_steps(steps, 1 + labels)
    return (Stage(data.files, lasting(first, study.batch, images, options)),
            Stage(data.stage2, lasting(second, study.batch, images, options)))


def runs(tiny: bool = False) -> list[Run]:
    """All runs in the order in which they are done: study by study, seed by seed, so that modes alternate."""
    found = []
    for study in TINY_STUDIES if tiny else STUDIES:
        for seed in range(study.first_seed, study.first_seed + max(study.modes.values())):
            for mode, seeds in study.modes.items():
                if seed - study.first_seed >= seeds:
                    continue
                objective = mode.split("+")[0]
                for rate in study.tried or (RATES.get((study.data.name, objective), 1e-3),):
                    found.append(Run(study.name, study.data, study.label or study.data.name,
                                     f"{mode}@{rate:g}" if study.tried else mode, seed, study.budget,
                                     _stages(study, mode, rate), study.rule, study.final, study.boxes, rate))
    return found
