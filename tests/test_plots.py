"""Plots: what is drawn is what was logged, and drawing needs no display."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import asenpp
from asenpp import plots
from asenpp.data.index import DataError
from asenpp.engine.log import MetricsFile

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def metrics(tmp_path):
    """A log of a style model's stage 2, as the engine writes it: 4 train events, 2 evaluations, a test."""
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    with MetricsFile(str(path)) as log:
        for i in range(4):
            parts = {"global": 0.2 - 0.01 * i, "local": 0.3}
            if i > 1:       # a part that comes later
                parts["anchor"] = 1.0 + i
            log.write(event="train", epoch=1 + i // 2, iteration=5 * (i % 2), step=1 + 5 * i, loss=0.5 - 0.1 * i,
                      parts=parts, lr=[1e-3, 1e-4])
            if i % 2:
                log.write(event="eval", epoch=1 + i // 2, step=1 + 5 * i, best=i == 1, mAP=0.6 - 0.1 * i,
                          attributes={"style": 0.7 - 0.1 * i, "hem": 0.25}, style={"macro": {"f1": 0.1 * i}})
        log.write(event="test", epoch=1, step=6, mAP=0.45, attributes={"style": 0.5, "hem": 0.4})
        log.write(event="test", epoch=None, step=None, mAP=0.1, attributes={})
    return path


def lines(axes):
    return {line.get_label(): [list(map(float, values)) for values in (line.get_xdata(), line.get_ydata())]
            for line in axes.get_lines()}


def is_drawn(path):
    """Whether a picture has more than one colour."""
    with Image.open(path) as image:
        return image.convert("RGB").getextrema() != ((255, 255),) * 3 and min(image.size) > 200


def test_curves_are_what_was_logged(metrics, tmp_path):
    """Each line of each panel has the logged steps and values; the best and the tested are marked; a half-written
    last line is left out."""
    with open(metrics, "a") as file:
        file.write('{"event": "train", "st')
    figure = plots.training_curves(metrics, tmp_path / "curves.png")
    loss, rates, scores = map(lines, figure.axes)
    steps = [1, 6, 11, 16]
    assert loss == {"loss": [steps, pytest.approx([0.5, 0.4, 0.3, 0.2])],
                    "global": [steps, pytest.approx([0.2, 0.19, 0.18, 0.17])],
                    "local": [steps, [0.3] * 4], "anchor": [[11, 16], [3, 4]]}
    assert rates == {"local branch": [steps, [1e-3] * 4], "global branch, heads": [steps, [1e-4] * 4]}
    assert scores == {"total": [[6, 16], pytest.approx([0.5, 0.3])], "style": [[6, 16], pytest.approx([0.6, 0.4])],
                      "hem": [[6, 16], [0.25, 0.25]], "macro-F1": [[6, 16], pytest.approx([0.1, 0.3])],
                      "best: 0.5000": [[6], [0.5]], "test: 0.4500": [[6], [0.45]]}
    assert figure.axes[2].get_ylabel() == "mAP, 0 to 1"
    assert is_drawn(tmp_path / "curves.png")


def test_command_writes_a_picture_without_a_display(metrics, tmp_path):
    """`python -m asenpp.plots` works without DISPLAY, under a backend that needs one, and leaves pyplot alone."""
    out = tmp_path / "곡선.png"
    code = ("import sys; from asenpp import plots; assert 'matplotlib' not in sys.modules; status = plots.main(); "
            "assert 'matplotlib.pyplot' not in sys.modules; sys.exit(status)")
    environment = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    done = subprocess.run([sys.executable, "-c", code, str(metrics), "--out", str(out)], capture_output=True, text=True,
                          env={**environment, "PYTHONPATH": str(ROOT), "MPLBACKEND": "TkAgg"})
    assert done.returncode == 0, done.stderr
    assert is_drawn(out)


@pytest.mark.parametrize("text, message", [
    (None, "No such file"), ("", "no training"), ('{"event": "test", "step": 1}\n', "no training"),
    ("nonsense\n", "metrics.jsonl:1: "), ('{"event": "train", "step": 1}\n', "lacks 'loss'"), ("[1]\n", ":1: ")])
def test_other_files_are_refused(metrics, tmp_path, capsys, text, message):
    """A file that is missing, empty or something else: exit status 1, its name, and no picture."""
    metrics.unlink()
    if text is not None:
        metrics.write_text(text)
    assert plots.main([str(metrics), "--out", str(tmp_path / "c.png")]) == 1
    err = capsys.readouterr().err
    assert message in err and str(metrics) in err
    assert not (tmp_path / "c.png").exists()


def test_unknown_picture_formats_are_refused(metrics, tmp_path):
    """The error names the formats that there are; nothing is written."""
    with pytest.raises(DataError, match=r"\.png"):
        plots.training_curves(metrics, tmp_path / "curves.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("height, width", [(80, 120), (120, 80), (100, 100)])
def test_overlay_lies_where_the_model_looks(tmp_path, height, width):
    """The map covers the centre square that the global transform shows; the solid square is the local branch's crop;
    true boxes are dashed where they were given."""
    cfg = asenpp.load_config(opts=["INPUT.GLOBAL_SIZE", 40, "INPUT.LOCAL_SIZE", 20, "INPUT.THRESHOLD", 0.5])
    attention = np.zeros((5, 5), np.float32)
    attention[1, 3] = 1
    image = np.full((height, width, 3), 200, np.uint8)
    figure = plots.attention_overlay(image, attention, cfg, box=[(1, 2, 30, 40), (5, 6, 7)], out=tmp_path / "a.png")
    plain, overlaid = figure.axes
    assert len(plain.images) == 1 and len(overlaid.images) == 2
    short, long = min(height, width), max(height, width)
    left, top = ((long - short) // 2, 0) if width > height else (0, (long - short) // 2)
    assert overlaid.images[1].get_extent() == pytest.approx(
        [left - 0.5, left + short - 0.5, top + short - 0.5, top - 0.5], abs=short / 40)
    assert (np.asarray(overlaid.images[1].get_array()) == attention).all()
    squares = [(patch.get_x() + 0.5, patch.get_y() + 0.5, patch.get_width(), patch.get_height())
               for patch in overlaid.patches]
    x, y, side = asenpp.transforms.LocalTransform(cfg).box(attention, height, width)
    assert squares == [(x, y, side, side)] * 2 + [(1, 2, 30, 40), (5, 6, 7, 7)]
    peak = left + short * 3.5 / 5, top + short * 1.5 / 5
    assert x <= peak[0] <= x + side and y <= peak[1] <= y + side and side < short / 2
    assert is_drawn(tmp_path / "a.png")


def test_overlay_takes_one_box_paths_and_refuses_batches(tmp_path):
    """An image file, a single box; a batch of maps is refused by its shape."""
    cfg = asenpp.load_config(opts=["INPUT.GLOBAL_SIZE", 40, "INPUT.LOCAL_SIZE", 20])
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(tmp_path / "x.png")
    attention = np.eye(4, dtype=np.float32)
    figure = plots.attention_overlay(tmp_path / "x.png", attention, cfg, box=np.array([1, 2, 3, 4]))
    assert len(figure.axes[0].patches) == 3
    with pytest.raises(ValueError, match=r"\(1, 4, 4\)"):
        plots.attention_overlay(tmp_path / "x.png", attention[None], cfg)
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        plots.attention_overlay(tmp_path / "nowhere.png", attention, cfg)


def test_real_logs_can_be_read(tmp_path):
    """Events are the engine's own: a training of a moment, and what its log says, drawn."""
    import engine_kit

    from asenpp.data import garments
    from asenpp.engine import train

    garments.prepare(tmp_path / "data" / "Garments", images=engine_kit.IMAGES, size=engine_kit.PIXELS, quiet=True)
    cfg = engine_kit.config(tmp_path, "s1", "SOLVER.EPOCHS", 1)
    train(cfg)
    path = tmp_path / "runs" / cfg.NAME / "metrics.jsonl"
    loss, rates, scores = map(lines, plots.training_curves(path).axes)
    train_events = [event for event in map(json.loads, path.read_text().splitlines()) if event["event"] == "train"]
    assert loss["loss"][1] == [event["loss"] for event in train_events] and len(train_events) == 3
    assert set(scores) == {"total", *cfg.DATA.ATTRIBUTES.NAME, *(label for label in scores if label[:5] == "best:")}
    assert rates["all"][1] == [1e-3] * 3
