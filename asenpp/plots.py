"""Pictures of a training and of attention, with matplotlib, which is imported when one is drawn.

No display and no pyplot is needed: figures are made on their own canvas, and nothing is left open.
What is drawn are figures that others computed: there is no arithmetic on data here.

    python -m asenpp.plots runs/NAME/metrics.jsonl --out curves.png
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from .data.index import DataError

__all__ = ["training_curves", "attention_overlay", "read_metrics", "main"]


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, out: str | os.PathLike | None) -> Any:
    """Writes the figure, whole or not at all; the format follows the file's extension."""
    if out is None:
        return figure
    from .checkpoint.atomic import atomic_file

    extension = os.path.splitext(os.fspath(out))[1][1:].lower()
    known = figure.canvas.get_supported_filetypes()
    if extension not in known:
        raise DataError(f"{os.fspath(out)}: a picture's name must end in one of .{', .'.join(sorted(known))}")
    data = io.BytesIO()
    figure.savefig(data, format=extension, dpi=120)
    with atomic_file(out, needed=data.tell()) as file:
        file.write(data.getvalue())
    return figure


# -- training -------------------------------------------------------------------------------------

def read_metrics(metrics_jsonl: str | os.PathLike) -> list[dict[str, Any]]:
    """The events of a metrics.jsonl, in file order. A last line that is still being written is left out.

    Raises FileNotFoundError, and DataError for a file that holds something else.
    """
    path = os.fspath(metrics_jsonl)
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    events = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise DataError(f"{path}:{number}: no event of a training ({error}); a metrics.jsonl, as a run folder "
                            "has it, was expected") from None
        events.append(event)
    return events


def _rate_names(count: int) -> list[str]:
    if count == 2:      # the groups of stage 2, see ASEN.parameter_groups
        return ["local branch", "global branch, heads"]
    return ["all"] if count == 1 else [f"group {i}" for i in range(count)]


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """{name: (steps, values)} of rows {"step", name: value}, names in order of first appearance."""
    columns: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                steps, values = columns.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    return columns


def _draw(axes: Any, rows: Sequence[dict[str, Any]], bold: str = "", **line: Any) -> None:
    """One line a name; `bold` is black and thick, and single points are marked."""
    for name, (steps, values) in _columns(rows).items():
        style = {"color": "black", "linewidth": 2.2, "zorder": 3} if name == bold else {"linewidth": 1.3, **line}
        axes.plot(steps, values, label=name, marker="o" if len(steps) < 12 else None, markersize=3, **style)


def training_curves(metrics_jsonl: str | os.PathLike, out: str | os.PathLike | None = None) -> Any:
    """The course of a training: loss and its parts, learning rates, and mAP by attribute, over steps.

    metrics_jsonl: SAVE_DIR/NAME/metrics.jsonl. out: a picture to write (.png, .pdf, .svg, …).

    mAP is that of VALID, in [0, 1]; a star marks the best, a diamond a test (`--test`). For style
    models macro-F1 is dashed.

    Returns a matplotlib Figure. Raises FileNotFoundError; DataError for a file without training
    events, or a picture of unknown format.
    """
    events = read_metrics(metrics_jsonl)
    try:
        train = [event for event in events if event.get("event") == "train"]
        evals = [event for event in events if event.get("event") == "eval"]
        tests = [event for event in events if event.get("event") == "test" and event.get("step") is not None]
        if not train and not evals:
            raise DataError(f"{os.fspath(metrics_jsonl)}: no training has been logged in it yet")
        losses = [{"step": e["step"], "loss": e["loss"], **e["parts"]} for e in train]
        rates = [{"step": e["step"], **dict(zip(_rate_names(len(e["lr"])), e["lr"]))} for e in train]
        scores = [{"step": e["step"], "total": e["mAP"], **e["attributes"]} for e in evals]
        macro = [{"step": e["step"], "macro-F1": e["style"]["macro"]["f1"]} for e in evals if "style" in e]
        tested = [(e["step"], e["mAP"]) for e in tests]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{os.fspath(metrics_jsonl)}: an event lacks {error}: was it written by asenpp?") from None

    figure = _figure(9, 9)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 2, 3]})
    top.set_title(os.path.basename(os.path.dirname(os.path.abspath(metrics_jsonl))))
    _draw(top, losses, bold="loss")
    top.set_ylabel("loss")
    _draw(middle, rates, drawstyle="steps-post")
    middle.set_ylabel("learning rate")
    middle.set_yscale("log")
    _draw(bottom, scores, bold="total")
    _draw(bottom, macro, color="gray", linestyle="--")
    if scores:
        best = max(scores, key=lambda row: row["total"])
        bottom.plot([best["step"]], [best["total"]], "*", color="black", markersize=12, zorder=4,
                    label=f"best: {best['total']:.4f}")
    if tested:
        bottom.plot(*zip(*tested), "D", color="tab:red", markersize=6, zorder=4, linestyle="none",
                    label=f"test: {tested[-1][1]:.4f}")
    bottom.set_ylabel("mAP, 0 to 1")
    bottom.set_xlabel("step")
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return _save(figure, out)


# -- attention ------------------------------------------------------------------------------------

def _boxes(box: Any) -> list[tuple[float, float, float, float]]:
    """One box or many, each (x, y, w, h) or (x, y, d), as (x, y, w, h)."""
    if box is None:
        return []
    many = [box] if len(box) and not hasattr(box[0], "__len__") else box
    if not all(len(one) in (3, 4) for one in many):
        raise ValueError("a box is (x, y, width, height) or (x, y, side), in pixels of the image")
    return [(one[0], one[1], one[2], one[3] if len(one) == 4 else one[2]) for one in many]


def attention_overlay(image: Any, attention_map: Any, cfg: Any, box: Any = None,
                      out: str | os.PathLike | None = None) -> Any:
    """Where an attribute's attention lies: the image, and beside it the image with the map over it.

    image: a path, a PIL image or a uint8 RGB array (height, width, 3). attention_map: (rows,
    columns), for the part of the image that the global transform shows the model: its centre
    square. cfg: see asenpp.load_config. box: true boxes to draw dashed, one or a list of
    (x, y, width, height) or (x, y, side) in pixels. out: a picture to write.

    The solid square is what the local branch sees: the crop at INPUT.THRESHOLD.

    Returns a matplotlib Figure. Raises OSError for an image that cannot be read, ValueError for a
    map that is not 2-D or not finite.
    """
    import numpy as np
    from matplotlib.patches import Rectangle

    from .transforms import LocalTransform, _as_pixels

    pixels = _as_pixels(image, bool(cfg.INPUT.EXIF))
    attention_map = np.asarray(attention_map)
    if attention_map.ndim != 2:
        raise ValueError(f"attention_map must be (rows, columns), but has the shape {attention_map.shape}: one "
                         "image's map is wanted")
    height, width = pixels.shape[:2]
    x, y, side = LocalTransform(cfg).box(attention_map, height, width)
    left, top, square = _centre_square(height, width, cfg.INPUT.GLOBAL_SIZE)

    figure = _figure(8, 8 * height / (2 * width) + 0.4)
    plain, overlaid = figure.subplots(1, 2)
    for axes in (plain, overlaid):
        axes.imshow(pixels)
        axes.set_axis_off()
    overlaid.imshow(attention_map, cmap="jet", alpha=0.5, interpolation="bilinear",
                    extent=(left - 0.5, left + square - 0.5, top + square - 0.5, top - 0.5))
    for axes in (plain, overlaid):
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), side, side, fill=False, edgecolor="white", linewidth=3))
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), side, side, fill=False, edgecolor="black", linewidth=1.5))
        for bx, by, bw, bh in _boxes(box):
            axes.add_patch(Rectangle((bx - 0.5, by - 0.5), bw, bh, fill=False, edgecolor="lime", linewidth=1.5,
                                     linestyle="--"))
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)
    return _save(figure, out)


def _centre_square(height: int, width: int, size: int) -> tuple[float, float, float]:
    """(left, top, side) in pixels of the image of what the global transform keeps (docs/reference.md 5)."""
    short, long = min(height, width), max(height, width)
    offset = int(round((int(size * long / short) - size) / 2)) * short / size
    return (offset, 0, short) if width > height else (0, offset, short)


# -- command line ---------------------------------------------------------------------------------

def main(arguments: Sequence[str] | None = None) -> int:
    """Draws training curves; 0, or 1 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m asenpp.plots", allow_abbrev=False,
                                     description="Draw the course of a training: loss, learning rates, mAP.")
    parser.add_argument("metrics", metavar="METRICS", help="SAVE_DIR/NAME/metrics.jsonl")
    parser.add_argument("--out", required=True, metavar="FILE", help="the picture: .png, .pdf, .svg, …")
    options = parser.parse_args(arguments)
    try:
        training_curves(options.metrics, options.out)
    except (DataError, OSError, ImportError) as error:
        print(f"asenpp.plots: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
