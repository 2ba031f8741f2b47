"""What the results say: Markdown tables by study, and the bars with their figures.

A mode has the options of its last line: seeds that were run with others are not mixed with it. Where a seed was run
again, its last line counts. Scores are in [0, 1].
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks import record

from .results import Row
from .studies import CONVERGED, OPEN_SET, RECOMMENDED, SHORT, STUDIES

Group = dict[str, dict[int, Row]]       # mode -> seed -> row
SEEDS = 5
MINUTES = 5
BEFORE = "4e31586"      # the commit whose bits the published mode keeps


def groups(rows: Sequence[Row]) -> dict[tuple[str, str, int], Group]:
    """(study, data, budget) -> its rows, budgets in the order of their last lines."""
    found: dict[tuple[str, str, int], Group] = {}
    for row in rows:
        if not row["scores"]:       # of the study published
            continue
        place = row["study"], row["data"], row["budget"]
        group = found[place] = found.pop(place, {})
        by_seed = group.setdefault(row["mode"], {})
        if any(other["options_hash"] != row["options_hash"] for other in by_seed.values()):
            by_seed.clear()
        by_seed[row["seed"]] = row
    return found


def score(row: Row, name: str = "", split: str = "") -> float:
    """mAP of an attribute, or in all; of TEST where it was looked at, or of `split`."""
    scores = row["scores"][split] if split else row["scores"].get("TEST", row["scores"]["VALID"])
    return scores["attributes"][name] if name else scores["mAP"]


def mean(rows: Sequence[Row], of: Callable[[Row], float]) -> float:
    return statistics.fmean(of(row) for row in rows)


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """mean (least to most)."""
    if len(values) == 1:
        return format(values[0], form)
    return f"{statistics.fmean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def paired(group: Group, mode: str, other: str, name: str = "") -> list[float]:
    """Differences mode - other of the seeds that both have."""
    ours, theirs = group.get(mode, {}), group.get(other, {})
    return [score(ours[seed], name) - score(theirs[seed], name) for seed in sorted(ours.keys() & theirs.keys())]


# -- tables ---------------------------------------------------------------------------------------

def markdown(rows: Sequence[Row]) -> str:
    """A table for each study and data set, in the order of the matrix."""
    order = {name: number for number, name in enumerate(dict.fromkeys(study.name for study in STUDIES))}
    parts = []
    for (study, data, budget), group in sorted(groups(rows).items(), key=lambda item: order.get(item[0][0], len(order))):
        some = next(iter(next(iter(group.values())).values()))
        split = "TEST" if "TEST" in some["scores"] else "VALID"
        parts.append(f"### {study}: {data}, {budget:,} image-forwards, {split}\n\n" + _table(group, split))
        for extra in (_metrics(group, split), _boxes(group)):
            if extra:
                parts.append(extra)
    return "\n\n".join(parts)


def _table(group: Group, split: str) -> str:
    first = next(iter(next(iter(group.values())).values()))
    names = list(first["scores"][split]["attributes"])
    # Aids are held against their objective alone, objectives against triplets.
    against = "triplet" if "triplet" in group else "cosine" if "cosine" in group else ""
    lines = [["mode", "seeds", "mAP", *names, "training, s", *([f"minus {against}, better in"] if against else [])]]
    for mode, by_seed in group.items():
        rows = list(by_seed.values())
        line = [mode, str(len(rows)), spread([score(row, "", split) for row in rows])]
        line += [spread([score(row, name, split) for row in rows]) for name in names]
        line.append(spread([row["seconds"] for row in rows], ".0f"))
        if against:
            gaps = paired(group, mode, against) if mode != against else []
            line.append("" if not gaps else "the same in every bit" if not any(gaps) else
                        f"{statistics.fmean(gaps):+.3f}, {sum(gap > 0 for gap in gaps)} of {len(gaps)}")
        lines.append(line)
    return _lines(lines)


def _leaves(tree: Any, prefix: str = "") -> dict[str, float]:
    if isinstance(tree, dict):
        return {name: value for key, part in tree.items() for name, value in _leaves(part, f"{prefix}{key} ").items()}
    return {prefix.strip(): float(tree)} if isinstance(tree, (int, float)) and not isinstance(tree, bool) else {}


def _metrics(group: Group, split: str) -> str:
    """What evaluations have beside mAP, the heads' classification too: a line for each, a column for each mode."""
    found = {mode: [{**_leaves(row["scores"][split].get("metrics", {})),
                     **_leaves({"heads": row["scores"][split].get("heads", {})})} for row in by_seed.values()]
             for mode, by_seed in group.items()}
    names = [name for name in dict.fromkeys(name for rows in found.values() for row in rows for name in row)
             if not name.endswith(" mAP")]
    if not names:
        return ""
    lines = [["metric", *found]]
    for name in names:
        values = {mode: [row[name] for row in rows if name in row] for mode, rows in found.items()}
        lines.append([name, *(format(statistics.fmean(v), ".3f") if v else "" for v in values.values())])
    return _lines(lines)


def attention(rows: Sequence[Row], stage: str) -> dict[str, dict[str, float]]:
    """By attribute the means over seeds, and the ratios of those means."""
    found = {}
    for name in rows[0]["boxes"][stage]:
        own, chance, others = (mean(rows, lambda row: row["boxes"][stage][name][what])
                               for what in ("own", "chance", "others"))
        found[name] = {"own": own, "chance": chance, "others": others, "own/chance": _ratio(own, chance),
                       "own/others": _ratio(own, others)}
    return found


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.inf if a else math.nan


def _boxes(group: Group) -> str:
    lines = [["mode", "stage", "attribute", "inside its boxes", "chance", "maps of others there", "by chance", "by others"]]
    for mode, by_seed in group.items():
        rows = [row for row in by_seed.values() if "boxes" in row]
        for stage in rows[0]["boxes"] if rows else ():
            for name, a in attention(rows, stage).items():
                lines.append([mode, stage, name, f"{a['own']:.3f}", f"{a['chance']:.3f}", f"{a['others']:.3f}",
                              f"{a['own/chance']:.2f}", f"{a['own/others']:.2f}"])
    return _lines(lines) if len(lines) > 1 else ""


def _lines(lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(lines[0])
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


# -- bars -----------------------------------------------------------------------------------------

class Bar(NamedTuple):
    """required: False for an aim."""

    name: str
    figure: str
    met: bool
    required: bool = True

    def __str__(self) -> str:
        verdict = ("met" if self.met else "NOT MET") if self.required else f"aim, {'reached' if self.met else 'not reached'}"
        return f"{self.name}: {self.figure}: {verdict}"


def bars(rows: Sequence[Row], notes: str = "") -> list[Bar]:
    """notes: the text of docs/learning.md, which must say what is for open sets where the recommended mode loses."""
    found = groups(rows)
    return [*_fashion(found), _published(rows), *_garments(found), *_held_out(found, notes)]


def _complete(group: Group) -> dict[str, list[Row]]:
    """Modes with all five seeds, done on a processor from a commit as it stands."""
    return {mode: list(by_seed.values()) for mode, by_seed in group.items()
            if len(by_seed) >= SEEDS and all(_counts(row) and "TEST" in row["scores"] for row in by_seed.values())}


def _counts(row: Row) -> bool:
    return row["device"] == "cpu" and not row["commit"].endswith("+")


def _fashion(found: dict[tuple[str, str, int], Group]) -> list[Bar]:
    made = []
    for study, budget, most, total, category, aims in (("short", SHORT, 50_000, 0.90, 0.84, None),
                                                       ("converged", CONVERGED, 200_000, 0.925, 0.88, (0.93, 0.90))):
        name = f"1. FashionMNIST TEST within {most:,} image-forwards, total at least {total}, category at least {category}"
        modes = _complete(found.get((study, "FashionMNIST", budget), {}))
        if not modes or budget > most:
            made.append(Bar(name, "missing", False))
            continue
        # The best on VALID: TEST does not choose.
        best = max(modes, key=lambda mode: mean(modes[mode], lambda row: score(row, "", "VALID")))
        a, b = mean(modes[best], score), mean(modes[best], lambda row: score(row, "category"))
        figure = f"{best} {a:.4f}, {b:.4f} in {mean(modes[best], lambda row: row['seconds']):.0f} s"
        made.append(Bar(name, figure, a >= total and b >= category))
        if aims:
            made.append(Bar(f"   the aim {aims[0]}, {aims[1]}", figure, a >= aims[0] and b >= aims[1], False))
    return made


def _published(rows: Sequence[Row]) -> Bar:
    """Of the last commit that was compared; the ratio of times, pair by pair, is said and has no bar."""
    name = f"1. Published mode, {SEEDS} alternating pairs with {BEFORE}: the same bits"
    pairs = [row for row in rows if row["study"] == "published" and row["before"].startswith(BEFORE)
             and not row["before"].endswith("+") and _counts(row)]
    pairs = list({row["seed"]: row for row in pairs if row["commit"] == pairs[-1]["commit"]}.values())
    if not pairs:
        return Bar(name, "missing", False)
    differ = [row["differs"] for row in pairs if row["differs"]]
    times = record.ratios([row["seconds"] for row in pairs], [row["before_seconds"] for row in pairs])
    figure = (f"{len(pairs) - len(differ)} of {len(pairs)} pairs with {pairs[-1]['before'][:7]}"
              + (f" ({differ[0]})" if differ else "")
              + f", time {times['median']:.2f} ({times['min']:.2f} to {times['max']:.2f})")
    return Bar(name, figure, not differ and len(pairs) >= SEEDS)


def _shipped(found: dict[tuple[str, str, int], Group], study: str) -> list[Row]:
    """The five runs of the configuration that was run last."""
    last = [group for (name, _, _), group in found.items() if name == study][-1:]
    return _complete(last[0]).get("shipped", []) if last else []


def _garments(found: dict[tuple[str, str, int], Group]) -> list[Bar]:
    made = []
    rows, name = _shipped(found, "garments"), "2. Garments TEST"
    if not rows:
        made += [Bar(f"{name}, {what}", "missing", False) for what in ("scores", "time", "attention")]
    else:
        by_name = {one: mean(rows, lambda row: score(row, one)) for one in rows[0]["scores"]["TEST"]["attributes"]}
        total, least = mean(rows, score), min(by_name, key=lambda one: by_name[one])
        made.append(Bar(f"{name}, total at least 0.93, each attribute at least 0.75",
                        f"{total:.4f}, {least} {by_name[least]:.4f}", total >= 0.93 and by_name[least] >= 0.75))
        made.append(_time(name, rows))
        made += _attention(name, rows)
    rows, name = _shipped(found, "garments_one_label"), "2. Garments TEST, one label an image, total at least 0.75"
    if not rows:
        return [*made, Bar(name, "missing", False)]
    return [*made, Bar(name, f"{mean(rows, score):.4f} ({rows[0]['data']})", mean(rows, score) >= 0.75), _time("2. One label an image", rows)]


def _time(name: str, rows: Sequence[Row]) -> Bar:
    longest = max(row["process_seconds"] for row in rows)
    return Bar(f"{name}, training and its evaluation at most {MINUTES} minutes on at most two threads",
               f"{longest:.0f} s at most, {rows[0]['threads']} threads",
               longest <= 60 * MINUTES and all(row["threads"] <= 2 for row in rows))


def _attention(name: str, rows: Sequence[Row]) -> list[Bar]:
    if not all("boxes" in row for row in rows):
        return [Bar(f"{name}, attention", "missing", False)]
    stage = sorted(rows[0]["boxes"])[-1]
    by_name = attention(rows, stage)
    made = []
    for what, least in (("own/chance", 2.0), ("own/others", 1.3)):
        worst = min(by_name, key=lambda one: by_name[one][what])
        made.append(Bar(f"{name}, attention inside the true boxes, {what} at least {least} for each attribute",
                        f"{worst} {by_name[worst][what]:.2f}", by_name[worst][what] >= least))
    return made


def _held_out(found: dict[tuple[str, str, int], Group], notes: str) -> list[Bar]:
    made = []
    for study in (study for study in STUDIES if study.name == "held_out"):
        group = found.get((study.name, study.label, study.budget), {})
        name = f"3. {study.label}: {RECOMMENDED} no worse than triplet"
        whole = {mode: by_seed for mode, by_seed in group.items() if mode in _complete(group)}
        gaps, more = paired(whole, RECOMMENDED, "triplet"), paired(whole, OPEN_SET, RECOMMENDED)
        if len(gaps) < SEEDS:
            made.append(Bar(name, "missing", False))
            continue
        figure, met = f"{statistics.fmean(gaps):+.4f}, better in {sum(g > 0 for g in gaps)} of {len(gaps)}", True
        if statistics.fmean(gaps) < 0:
            said = "open set" in notes and OPEN_SET in notes
            met = OPEN_SET != RECOMMENDED and len(more) >= SEEDS and statistics.fmean(more) >= 0.03 and said
            if OPEN_SET != RECOMMENDED and more:
                figure += f"; {OPEN_SET} minus {RECOMMENDED} {statistics.fmean(more):+.4f}"
            figure += "" if said else "; docs/learning.md does not say which mode is for an open set"
        made.append(Bar(name, figure, met))
    return made
