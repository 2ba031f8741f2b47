"""main.py: what it does with good and bad options, and what is left when it is stopped.

Every mistake ends in one line on stderr that names the thing and the remedy, and leaves the files of
a run as they were. A run that is killed (SIGKILL) or stopped (Ctrl-C, SIGTERM) and resumed ends in
the same bits as one that was not.
"""

import os
import shutil
import signal
import time

import numpy as np
import pytest

import asenpp
from asenpp.checkpoint import atomic
from asenpp.engine.command import main
from engine_kit import IMAGES, PIXELS, command, differences, files, same_run, start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data/Garments, and runs/Garments_s1: a finished stage 1."""
    from asenpp.data.garments import prepare

    folder = tmp_path_factory.mktemp("main")
    prepare(folder / "data" / "Garments", images=IMAGES, size=PIXELS, quiet=True)
    assert main(command(folder, "s1")) == 0
    return folder


def said(capsys, code, arguments):
    """The one line of stderr that `arguments` end in, with exit status `code`."""
    try:
        assert main(arguments) == code
    except SystemExit as stop:      # argparse, for options
        assert stop.code == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error if code == 2 else error.strip().splitlines()[-1]


# -- the commands that users type --------------------------------------------------------------------

def test_both_stages_and_the_test(folder, capsys):
    """The three commands of docs/reference.md 1 work, and write what they should in the published form."""
    assert main(command(folder, "s2", "--resume", str(folder / "runs/Garments_s1/checkpoint.pth.tar"))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(" ASEN INFO: " in line for line in lines)
    # What tells a useful checkpoint from one that loads nothing (the shared table has two names).
    assert any("104 of the model's 206 tensors taken, 102 not there" in line for line in lines)
    assert any("iteration 0/6" in line and "global" in line and "align" in line for line in lines)
    # Stage 2 shows both learning rates, BASE_LR and BASE_LR_SLOW.
    assert any(line.endswith("learning rate 0.001, 0.0001") for line in lines)
    best = folder / "runs" / "Garments_s2" / "model_best.pth.tar"
    assert main(command(folder, "s2", "--resume", str(best), "--test", "TEST")) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("sleeve_length", "style", "total"):
        (line,) = [line for line in lines if f"INFO: {name}: " in line]
        scores = dict(pair.split() for pair in line.split(f" {name}: ")[1].split(", "))
        assert list(scores) == ["mAP", "recall@1", "recall@5", "recall@10", "precision@10", "map@r"]
        assert 0 < float(scores["mAP"]) <= 1 and all(0 <= float(score) <= 1 for score in scores.values())
    events = [line for line in (best.parent / "metrics.jsonl").read_text().splitlines()]
    assert sum('"event": "eval"' in line for line in events) == 2
    assert sum('"event": "test"' in line for line in events) == 1


# -- stopping and resuming --------------------------------------------------------------------------

def until(process, condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def steps_saved(path):
    return asenpp.load(path)["step"] if path.exists() else 0


@pytest.fixture(scope="module")
def whole(folder):
    """A run of four epochs that nobody disturbs."""
    assert main(command(folder, "s1", opts=["NAME", "whole", "SOLVER.EPOCHS", 4])) == 0
    return folder / "runs" / "whole"


def test_killed_and_resumed_ends_in_the_same_bits(folder, whole):
    """SIGKILL in the middle of an epoch: weights, optimizer, random states and metrics.jsonl of the resumed
    run are those of the undisturbed one, to the bit."""
    run, opts = folder / "runs" / "killed", ["NAME", "killed", "SOLVER.EPOCHS", 4]
    process = start(command(folder, "s1", "--save-minutes", "0", opts=opts))
    until(process, lambda: steps_saved(run / "checkpoint.pth.tar") >= 8)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    reached = asenpp.load(run / "checkpoint.pth.tar")
    assert process.returncode == -signal.SIGKILL and 8 <= reached["step"] < 24
    assert differences(reached["model"], asenpp.load(whole / "checkpoint.pth.tar")["model"])
    assert main(command(folder, "s1", "--resume", str(run / "checkpoint.pth.tar"), opts=opts)) == 0
    assert same_run(run, whole) == []


@pytest.mark.parametrize("number, name", [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_stopped_and_resumed_ends_in_the_same_bits(folder, whole, number, name):
    """Ctrl-C and SIGTERM finish the step, save, say how to go on, exit with 130; resuming is exact."""
    run, opts = folder / "runs" / name, ["NAME", name, "SOLVER.EPOCHS", 4]
    process = start(command(folder, "s1", opts=opts))
    until(process, lambda: (run / "metrics.jsonl").exists() and b"train" in (run / "metrics.jsonl").read_bytes())
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in error
    assert f"--resume {run / 'checkpoint.pth.tar'}" in error and f"NAME {name}" in error
    assert 1 <= steps_saved(run / "checkpoint.pth.tar") < 24
    assert main(command(folder, "s1", "--resume", str(run / "checkpoint.pth.tar"), opts=opts)) == 0
    assert same_run(run, whole) == []


def test_a_finished_run_goes_on_with_more_epochs(folder, whole):
    """Two epochs, resumed with SOLVER.EPOCHS 4, are the same as four."""
    source = folder / "runs" / "Garments_s1"
    shutil.copytree(source, folder / "runs" / "longer" / "Garments_s1")
    opts = ["SAVE_DIR", str(folder / "runs" / "longer"), "SOLVER.EPOCHS", 4]
    resumed = folder / "runs" / "longer" / "Garments_s1"
    assert main(command(folder, "s1", "--resume", str(resumed / "checkpoint.pth.tar"), opts=opts)) == 0
    assert same_run(resumed, whole) == []


# -- mistakes ---------------------------------------------------------------------------------------

def test_a_run_is_not_overwritten_silently(folder, capsys):
    """The error names the ways out; nothing changes; --overwrite starts anew."""
    run = folder / "runs" / "Garments_s1"
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    line = said(capsys, 1, command(folder, "s1"))
    assert "--overwrite" in line and "--resume" in line and "NAME" in line
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}
    assert main(command(folder, "s1", "--overwrite")) == 0
    assert before["metrics.jsonl"] == (run / "metrics.jsonl").read_bytes()  # the same seed: the same run


def test_test_needs_resume(capsys):
    assert "--test needs --resume" in said(capsys, 2, ["--cfg", *files("s1"), "--test", "TEST"])


def test_unknown_split(capsys):
    assert "TRAIN" in said(capsys, 2, ["--cfg", *files("s1"), "--resume", "x", "--test", "TRAIN"])


def test_missing_checkpoint(folder, capsys):
    line = said(capsys, 1, command(folder, "s2", "--resume", str(folder / "nothing.pth.tar")))
    assert "nothing.pth.tar" in line and "no checkpoint" in line


def test_what_is_no_checkpoint(folder, capsys):
    (folder / "text.pth.tar").write_text("no checkpoint at all")
    assert "text.pth.tar: not a checkpoint" in said(
        capsys, 1, command(folder, "s1", "--resume", str(folder / "text.pth.tar"), opts=["NAME", "other"]))


def test_missing_configuration(capsys):
    assert "nowhere.yaml" in said(capsys, 1, ["--cfg", "nowhere.yaml"])


@pytest.mark.parametrize("opts, parts", [
    (["SOLVER.LEARNING_RATE", 1], ["SOLVER.LEARNING_RATE"]),
    (["SOLVER.EPOCHS", "many"], ["SOLVER.EPOCHS", "int", "many"]),
    (["DEVICE", "cuda"], ["CUDA is unavailable: ", "DEVICE cpu"]),
    (["NAME", ""], ["NAME is empty"]),
    (["LOGGER.STREAM", "/nowhere/at/all.log"], ["LOGGER.STREAM", "/nowhere/at/all.log"]),
    (["DATA.PATH_FILE.TRAIN", "absent.txt"], ["absent.txt", "no such index file"]),
    (["MODEL.PRETRAINED", "/nowhere/weights.pth"], ["/nowhere/weights.pth"]),
])
def test_options_that_cannot_be(folder, capsys, opts, parts):
    """Unknown keys, wrong types, missing files: the line names them."""
    if asenpp.cuda.is_available() and opts[0] == "DEVICE":
        pytest.skip("CUDA can be used here")
    line = said(capsys, 1, command(folder, "s1", opts=["NAME", "mistake", *opts]))
    assert all(part in line for part in parts), line
    assert not (folder / "runs" / "mistake").exists()


def test_yaml_that_is_none(folder, capsys, tmp_path):
    (tmp_path / "broken.yaml").write_text("SOLVER:\n  EPOCHS: [1, 2\nNAME: x\n")
    line = said(capsys, 1, ["--cfg", *files("s1"), str(tmp_path / "broken.yaml")])
    assert "broken.yaml:" in line


@pytest.fixture
def spoilt(folder, tmp_path):
    """A copy of the data set to be spoilt, and options that use it."""
    shutil.copytree(folder / "data", tmp_path / "data")
    return tmp_path / "data" / "Garments", ["SAVE_DIR", str(tmp_path / "runs"), "DATA.BASE_PATH", str(tmp_path / "data")]


def test_image_id_out_of_range(folder, spoilt, capsys):
    data, opts = spoilt
    with open(data / "label_train.txt", "a") as file:
        file.write("99999 0 1\n")
    line = said(capsys, 1, command(folder, "s1", opts=opts))
    assert "label_train.txt:" in line and "99999" in line and "out of range" in line


def test_value_without_images(folder, spoilt, capsys):
    """Said before training, with attribute and value; skipped on request."""
    data, opts = spoilt
    lines = (data / "label_train.txt").read_text().splitlines()
    values = [dict(zip(*[iter(line.split()[1:])] * 2)) for line in lines]
    kept = [line for line, value in zip(lines, values) if value["4"] != "5"]
    (data / "label_train.txt").write_text("\n".join(kept) + "\n")
    line = said(capsys, 1, command(folder, "s1", opts=opts))
    assert "attribute 4 (colour), value 5: 0 images" in line and "SKIP_UNUSABLE_VALUES" in line
    opts = [*opts, "DATA.SKIP_UNUSABLE_VALUES", True, "SOLVER.EPOCHS", 1]
    assert main(command(folder, "s1", opts=opts)) == 0
    assert "colour: skipped values 5" in capsys.readouterr().out


def test_truncated_image(folder, spoilt, capsys):
    data, opts = spoilt
    for path in sorted((data / "train").iterdir()):
        path.write_bytes(path.read_bytes()[:200])
    line = said(capsys, 1, command(folder, "s1", opts=opts))
    assert "/train/" in line and ".jpg" in line
    # Nothing was saved, so mending the image and typing the command again is all there is to do.
    shutil.copytree(folder / "data" / "Garments" / "train", data / "train", dirs_exist_ok=True)
    assert main(command(folder, "s1", opts=opts)) == 0


def test_missing_image(folder, spoilt, capsys):
    data, opts = spoilt
    (data / "valid" / "000003.jpg").unlink()
    line = said(capsys, 1, command(folder, "s1", opts=opts))
    assert "valid/000003.jpg" in line and "missing" in line


def test_checkpoint_of_another_architecture(folder, capsys):
    """In training and in testing, by a shape and by a name; the message says what differs."""
    first = str(folder / "runs/Garments_s1/checkpoint.pth.tar")
    wider = ["NAME", "wider", "MODEL.EMBED_SIZE", 32]
    line = said(capsys, 1, command(folder, "s1", "--resume", first, opts=wider))
    assert "another architecture" in line and "MODEL.EMBED_SIZE is 16 there and 32 here" in line
    deeper = ["NAME", "deeper", "MODEL.GLOBAL.BACKBONE.NAME", "resnet34"]
    for more in ([], ["--test", "VALID"]):
        line = said(capsys, 1, command(folder, "s1", "--resume", first, *more, opts=deeper))
        assert "MODEL.GLOBAL.BACKBONE.NAME is resnet18 there and resnet34 here" in line
    line = said(capsys, 1, command(folder, "s2", "--resume", first, "--test", "VALID"))
    assert "choices.local" in line and "MODEL.LOCAL.ENABLE is False there and True here" in line
    assert not (folder / "runs" / "wider").exists()


def test_full_disk_keeps_the_last_checkpoint(folder, capsys, monkeypatch):
    """A checkpoint that cannot be written leaves the one before whole, and no debris."""
    run, opts = folder / "runs" / "full", ["NAME", "full"]
    real = os.fsync

    def full(descriptor):
        if (run / "checkpoint.pth.tar").exists() and os.fstat(descriptor).st_size > 1 << 20:
            raise OSError(28, "No space left on device")
        return real(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", full)
    line = said(capsys, 1, command(folder, "s1", opts=opts))
    monkeypatch.undo()
    assert "checkpoint" in line or "model_best" in line
    assert "space" in line.lower()
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == []
    saved = asenpp.load(run / "checkpoint.pth.tar", verify=True)
    assert saved["epoch"] == 1
    assert main(command(folder, "s1", "--resume", str(run / "checkpoint.pth.tar"), opts=opts)) == 0
    assert same_run(run, folder / "runs" / "Garments_s1") == []


def test_a_loss_that_is_not_finite(folder, capsys):
    """Stops with epoch and iteration, and saves nothing over the last checkpoint."""
    opts = ["NAME", "nan", "SOLVER.BASE_LR", 1e30, "SOLVER.OPTIMIZER_NAME", "SGD"]
    line = said(capsys, 1, command(folder, "s1", "--save-minutes", "1", opts=opts))
    assert "the loss is" in line and "epoch 1, iteration" in line and "SOLVER.BASE_LR" in line
    assert not (folder / "runs" / "nan" / "checkpoint.pth.tar").exists()


def test_weights_only_from_another_name(folder, capsys):
    """Of another NAME only the weights are taken: the run begins at epoch 1."""
    first = folder / "runs" / "Garments_s1" / "checkpoint.pth.tar"
    assert main(command(folder, "s1", "--resume", str(first), opts=["NAME", "again", "SOLVER.EPOCHS", 1])) == 0
    saved = asenpp.load(folder / "runs" / "again" / "checkpoint.pth.tar")
    assert (saved["epoch"], saved["step"]) == (1, 6)
    assert not np.array_equal(saved["model"]["choices.global.attnnet.fc1.weight"],
                              asenpp.load(first)["model"]["choices.global.attnnet.fc1.weight"])


def test_another_number_of_threads_warns(folder, capsys):
    run = folder / "runs" / "Garments_s1"
    assert main(command(folder, "s1", "--resume", str(run / "checkpoint.pth.tar"), opts=["NUM_THREADS", 2])) == 0
    assert "written with 1 threads, now there are 2" in capsys.readouterr().out
