"""Models on the GPU: the numbers of the CPU, forward, losses and all gradients; training and evaluation by main.py.

Training follows the CPU's run: the first loss to 1e-5, later ones within 1 % of the largest, at a learning rate of
1e-5: Adam's first steps are of one length whatever the gradient, so that roundings of 1e-7 in small gradients
become whole steps; at 1e-3 two runs part within ten steps on any two devices.
"""

import json

import numpy as np
import pytest

import asenpp
import engine_kit as kit
from asenpp import _asen, amp, cuda, models, random
from asenpp._asen import Tensor
from asenpp.config import load_config
from asenpp.engine import losses
from asenpp.engine.command import main
from asenpp.nn import functional as F


def host(tensor):
    return np.array(tensor.detach().to(device="cpu").numpy())


def build(kind, *opts):
    """The same model twice: float64 on the CPU's reference, float32 on the GPU."""
    cfg = load_config(opts=["MODEL.PRETRAINED", False, "MODEL.GLOBAL.BACKBONE.NAME", "resnet18", "MODEL.TYPE", kind,
                            "MODEL.LOCAL.BACKBONE.NAME", "resnet18", "MODEL.EMBED_SIZE", 48,
                            "MODEL.ATTRIBUTE.EMBED_SIZE", 24, "MODEL.GLOBAL.ATTENTION.SPATIAL.COMMON_EMBED_SIZE", 32,
                            "HEAD.in_features", 16, "DATA.ATTRIBUTES.NAME", "[style, length]",
                            "DATA.ATTRIBUTES.NUM", "[3, 2]", *opts])
    made = []
    for _ in range(2):
        random.manual_seed(3)
        made.append(asenpp.build_model(cfg))
    return made[0].double(), made[1].to(device="cuda"), cfg


def step(model, x, local, device, dtype, training):
    """Loss of one batch of triplets of both branches, and the gradients."""
    model.train(training)
    random.manual_seed(4)       # of dropout
    images = [Tensor(a.astype(dtype)).to(device=device) for a in (x, local)]
    attributes = np.tile([0, 1], 3)
    features = model.backbone(images[0], "global", 3)
    whole, attention = model.attend(features, attributes, "global")
    part = model.forward_branch("local", images[1], attributes, 3)[0]
    loss = losses.triplet(whole, 0.9) + losses.triplet(part, 0.9) * 0.5 + losses.align(whole, part) * 0.1
    if hasattr(model, "logits"):
        loss = loss + F.cross_entropy(model.logits(whole, features, np.arange(6) % 3), np.arange(6) % 3)
    loss.backward()
    return host(loss), host(whole), host(attention), {name: host(p.grad) for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["ASEN", "StyleClassification", "ArcStyleClassification"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_models_are_the_cpus(kind, training):
    """Against float64: embeddings and maps to 1e-5, the gradient of all parameters to 1e-4 of its norm; in training
    mode batch norm over small maps amplifies roundings: 1e-2, as PyTorch's own float32 stands from its float64."""
    exact, ours, _ = build(kind, "MODEL.LOCAL.ENABLE", True)
    rng = np.random.default_rng(0)
    x, local = rng.standard_normal((6, 3, 64, 64)), rng.standard_normal((6, 3, 48, 48))
    _asen.set_kernel_paths("reference")
    wanted = step(exact, x, local, "cpu", np.float64, training)
    _asen.set_kernel_paths("all")
    got = step(ours, x, local, "cuda", np.float32, training)
    assert abs(got[0] - wanted[0]) < 1e-5 * abs(wanted[0])
    for a, b in zip(got[1:3], wanted[1:3]):
        assert np.abs(a - b).max() < (1e-4 if training else 1e-5) * np.abs(b).max()
    assert got[3].keys() == wanted[3].keys()
    square = sum(np.square(g).sum() for g in wanted[3].values())
    error = sum(np.square(got[3][name] - g).sum() for name, g in wanted[3].items())
    assert np.sqrt(error / square) < (1e-2 if training else 1e-3), np.sqrt(error / square)


def test_after_the_first_step_nothing_is_asked_of_the_driver():
    """Two steps warm the cache; the third takes all its memory from it, and leaves as much in use."""
    _, ours, _ = build("ASEN", "MODEL.LOCAL.ENABLE", True)
    rng = np.random.default_rng(0)
    x, local = rng.standard_normal((6, 3, 32, 32)), rng.standard_normal((6, 3, 32, 32))
    seen = []
    for _ in range(3):
        step(ours, x, local, "cuda", np.float32, True)
        ours.zero_grad()
        stats = _asen.memory_stats("cuda")
        seen.append((stats["system_requests"], stats["current"]))
    assert seen[1] == seen[2]


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_folded_inference(dtype):
    """Convolution, batch norm, residual and ReLU in one call: near the unfolded float64 model; twice the same bits.
    The same model then computes in float32: weights folded in one precision are not used in another."""
    exact, ours, _ = build("ASEN")
    x = np.random.default_rng(1).standard_normal((3, 3, 64, 64))
    exact.eval(), ours.eval()
    _asen.set_kernel_paths("reference")
    wanted = host(exact(Tensor(x), [0, 1, 0])[0])
    _asen.set_kernel_paths("all")
    with asenpp.no_grad(), amp.autocast(dtype or "float16", enabled=dtype is not None):
        got = [host(ours(Tensor(x.astype(np.float32)).to(device="cuda"), [0, 1, 0])[0]) for _ in range(2)]
    assert got[0].dtype == np.float32
    np.testing.assert_array_equal(got[0], got[1])
    with asenpp.no_grad():
        plain = host(ours(Tensor(x.astype(np.float32)).to(device="cuda"), [0, 1, 0])[0])
    assert np.abs(plain - wanted).max() < 2e-5 * np.abs(wanted).max()
    assert np.abs(got[0] - wanted).max() < {None: 2e-5, "bfloat16": 0.05, "float16": 0.01}[dtype] * np.abs(wanted).max()


def test_state_goes_both_ways():
    """A model's state comes to the CPU in files and back, and keeps its bits."""
    _, ours, cfg = build("ASEN", "MODEL.LOCAL.ENABLE", True)
    state = ours.state_dict()
    other = asenpp.build_model(cfg)
    other.load_state_dict(state)
    for name, tensor in other.state_dict().items():
        np.testing.assert_array_equal(host(tensor), host(state[name]))


# ---- main.py ----

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from asenpp.data.garments import prepare

    folder = tmp_path_factory.mktemp("cuda")
    prepare(folder / "data" / "Garments", images=kit.IMAGES, size=kit.PIXELS, quiet=True)
    return folder


def losses_of(folder, name):
    lines = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return ([line["loss"] for line in lines if line["event"] == "train"],
            [line["mAP"] for line in lines if line["event"] == "eval"], lines)


def train(folder, stage, name, device, *opts, resume=None):
    arguments = ["--resume", str(folder / "runs" / resume / "checkpoint.pth.tar")] if resume else []
    assert main(kit.command(folder, stage, *arguments, opts=["NAME", name, "DEVICE", device, "SOLVER.LOG_PERIOD", 1,
                                                             "SOLVER.BASE_LR", 1e-5, "SOLVER.BASE_LR_SLOW", 1e-5, *opts])) == 0
    return losses_of(folder, name)


def follows(ours, exact):
    assert len(ours) == len(exact) > 3
    assert abs(ours[0] - exact[0]) < 1e-5 * abs(exact[0])
    assert max(abs(a - b) for a, b in zip(ours, exact)) < 0.01 * max(map(abs, exact)), (ours, exact)


@pytest.fixture(scope="module")
def stage_one(folder):
    return {device: train(folder, "s1", f"{device}_s1", device) for device in ("cpu", "cuda")}


def test_stage_one_follows_the_cpu(stage_one):
    follows(stage_one["cuda"][0], stage_one["cpu"][0])


def test_stage_two_follows_the_cpu_and_is_evaluated(folder, stage_one, capsys):
    """From the same stage-1 weights, written on the GPU: both branches with crops from their maps, then --test; the
    GPU's checkpoint evaluates on the CPU to the same mAP up to near ties."""
    ours, exact = (train(folder, "s2", f"{device}_s2", device, "SOLVER.EPOCHS", 1, resume="cuda_s1")
                   for device in ("cuda", "cpu"))
    follows(ours[0], exact[0])
    best = str(folder / "runs" / "cuda_s2" / "model_best.pth.tar")
    capsys.readouterr()
    tested = {}
    for device in ("cuda", "cpu"):
        assert main(kit.command(folder, "s2", "--resume", best, "--test", "TEST", opts=["NAME", f"test_{device}", "DEVICE", device])) == 0
        tested[device] = losses_of(folder, f"test_{device}")[2][-1]
    assert tested["cuda"]["attributes"].keys() == tested["cpu"]["attributes"].keys()
    assert abs(tested["cuda"]["mAP"] - tested["cpu"]["mAP"]) < 0.01


def test_the_same_seed_gives_the_same_bits_and_resuming_keeps_them(folder, stage_one):
    """Two runs; and one that stopped after its first epoch and went on: the same checkpoints and metrics."""
    train(folder, "s1", "again_s1", "cuda")
    assert kit.same_run(folder / "runs" / "cuda_s1", folder / "runs" / "again_s1") == []
    train(folder, "s1", "parts_s1", "cuda", "SOLVER.EPOCHS", 1)
    train(folder, "s1", "parts_s1", "cuda", resume="parts_s1")
    assert kit.same_run(folder / "runs" / "cuda_s1", folder / "runs" / "parts_s1") == []


IMAGES = ["DATA.NUM_IMAGES", 16, "DATA.TRAIN_BATCHSIZE", 4, "DATA.IMAGES_PER_VALUE", 2, "SOLVER.EPOCHS", 1]
AIDS = ["SOLVER.TYPE", "WarmupCosine", "SOLVER.WARMUP_STEPS", 2, "SOLVER.EMA_DECAY", 0.9, "INPUT.AUGMENT.FLIP", 0.5,
        "INPUT.AUGMENT.CROP", 0.7]


@pytest.mark.parametrize("loss, stage, more", [
    ("cosine", "s2", [*AIDS, "SOLVER.ACCUMULATE", 2, "SOLVER.LABEL_SMOOTHING", 0.1]), ("supcon", "s1", AIDS),
    ("dense_triplet", "s1", [])])
def test_image_batches_follow_the_cpu_and_repeat_themselves(folder, loss, stage, more):
    """Each loss over labelled images, with the training aids: losses as on the CPU, and the same bits again on the GPU.
    (Nothing is erased: pixels that are made 8-bit for the GPU have no exact mean.)"""
    options = ["SOLVER.LOSS", loss, *IMAGES, *more]
    ours, exact, again = (train(folder, stage, f"{loss}_{name}", device, *options)
                          for name, device in (("cuda", "cuda"), ("cpu", "cpu"), ("again", "cuda")))
    follows(ours[0], exact[0])
    assert kit.same_run(folder / "runs" / f"{loss}_cuda", folder / "runs" / f"{loss}_again") == []


@pytest.mark.parametrize("loss, mode", [("cosine", "bf16"), ("supcon", "fp16")])
def test_image_batches_train_in_other_precisions(folder, loss, mode):
    options = ["SOLVER.LOSS", loss, *IMAGES, "SOLVER.EMA_DECAY", 0.9]
    ours = train(folder, "s1", f"{loss}_{mode}", "cuda", *options, "SOLVER.AMP", mode)[0]
    exact = train(folder, "s1", f"{loss}_{mode}_off", "cuda", *options)[0]
    assert max(abs(a - b) for a, b in zip(ours, exact)) < 0.05 * max(exact)


@pytest.mark.parametrize("mode", ["tf32", "bf16", "fp16"])
def test_other_precisions_train(folder, stage_one, mode):
    """Losses near the float32 run's; the log says how many steps were left out, and at which scale."""
    ours, _, lines = train(folder, "s1", f"{mode}_s1", "cuda", "SOLVER.AMP", mode, "SOLVER.EPOCHS", 1)
    exact = stage_one["cuda"][0][:len(ours)]
    assert abs(ours[0] - exact[0]) < 0.05 * abs(exact[0])
    assert max(abs(a - b) for a, b in zip(ours, exact)) < 0.05 * max(exact)
    first = next(line for line in lines if line["event"] == "train")
    assert ("skipped" in first) == (mode != "tf32")


@pytest.fixture
def scaled(monkeypatch):
    """Makes the scale that fp16 begins with."""
    from asenpp.engine import precision

    def make(scale):
        monkeypatch.setattr(precision.amp, "GradScaler", lambda _, *rest, **more: amp_scaler(scale, *rest, **more))

    amp_scaler = amp.GradScaler
    return make


def test_steps_that_overflow_are_left_out_and_told(folder, scaled, capsys):
    """A scale far too large: the first steps are skipped, it comes down, and the rest trains; checkpoint and metrics
    count the same."""
    scaled(2.0**30)
    found, _, lines = train(folder, "s1", "overflow", "cuda", "SOLVER.AMP", "fp16", "DATA.NUM_TRIPLETS", 80)
    state = asenpp.load(folder / "runs" / "overflow" / "checkpoint.pth.tar")
    skipped = state["scaler"]["skipped"]
    assert 0 < skipped < 40 and state["step"] == 40 - skipped == max(line["step"] for line in lines)
    assert state["scaler"]["scale"] == 2.0**30 / 2**skipped
    assert [line["skipped"] for line in lines if line["event"] == "train"][-1] == skipped
    assert np.isfinite(found).all() and "steps left out so far" in capsys.readouterr().out


def test_a_training_that_only_overflows_is_an_error(folder, scaled, capsys):
    """In one line, with the remedy; and no checkpoint of it."""
    scaled(2.0**120)
    assert main(kit.command(folder, "s1", opts=["NAME", "hopeless", "DEVICE", "cuda", "SOLVER.AMP", "fp16",
                                                "DATA.NUM_TRIPLETS", 240])) != 0
    error = capsys.readouterr().err
    assert "not finite" in error and "SOLVER.AMP off" in error and "Traceback" not in error
    assert not (folder / "runs" / "hopeless" / "checkpoint.pth.tar").exists()


def test_a_model_is_evaluated_where_it_lies(folder):
    """evaluate(cfg, model=...): on the CPU although DEVICE would be the GPU, and the other way round."""
    for device, other in (("cpu", "cuda"), ("cuda", "cpu")):
        cfg = kit.config(folder, "s1", "NAME", "lies", "DEVICE", other)
        model = asenpp.build_model(cfg).to(device=device)
        assert 0 < asenpp.engine.evaluate(cfg, model=model)["mAP"] <= 1


def test_style_models_train(folder, stage_one):
    """Dropout, the margin and cross-entropy in a stage-2 run of the Arc model."""
    ours, exact = (train(folder, "s2", f"arc_{device}", device, "MODEL.TYPE", "ArcStyleClassification", "SOLVER.EPOCHS", 1,
                         "HEAD.in_features", 16, "HEAD.out_features", 4) for device in ("cuda", "cpu"))
    follows(ours[0], exact[0])


def test_memory_is_checked_against_the_gpus(folder, stage_one, monkeypatch, capsys):
    """A batch that does not fit is refused before training, with the batch that does."""
    from asenpp.engine import memory

    real = _asen.memory_info
    monkeypatch.setattr(memory._asen, "memory_info", lambda device="cpu": (40 << 20, 1 << 30) if device == "cuda" else real(device))
    _asen.empty_cache("cuda")
    assert main(kit.command(folder, "s1", opts=["NAME", "large", "DEVICE", "cuda", "DATA.TRAIN_BATCHSIZE", 512])) != 0
    error = capsys.readouterr().err
    assert "memory of the GPU" in error and "DATA.TRAIN_BATCHSIZE" in error


def test_style_inference_is_the_cpus(tmp_path):
    """StyleClassifier on the same images: probabilities to 1e-4; in bfloat16 to 0.05."""
    from asenpp.inference import StyleClassifier
    from test_inference import config, drawing, save_weights

    path = tmp_path / "weights.pth.tar"
    save_weights(config(), path)
    pictures = [drawing(i) for i in range(5)]
    exact = StyleClassifier(config(), path).probabilities(pictures)
    assert np.ptp(exact, axis=0).max() > 1e-3
    for mode, tolerance in (("off", 1e-4), ("bf16", 0.05)):
        ours = StyleClassifier(config("DEVICE", "cuda", "SOLVER.AMP", mode), path).probabilities(pictures)
        assert np.abs(ours - exact).max() < tolerance


@pytest.fixture(scope="module")
def told_by_heads(folder):
    """Both stages with SOLVER.LOSS cosine, trained on the CPU: (configuration, checkpoint) of a stage and device."""
    cosine = ["SOLVER.LOSS", "cosine", "DATA.NUM_IMAGES", 32, "DATA.TRAIN_BATCHSIZE", 16, "SOLVER.EPOCHS", 1]
    resume = None
    for stage in ("s1", "s2"):
        cfg = kit.config(folder, stage, "NAME", f"heads_{stage}", "DEVICE", "cpu", *cosine)
        resume = asenpp.engine.train(cfg, resume=resume)["checkpoint"]
    return lambda stage, *opts: (kit.config(folder, stage, *cosine, *opts),
                                 str(folder / "runs" / f"heads_{stage}" / "checkpoint.pth.tar"))


@pytest.mark.parametrize("stage", ["s1", "s2"])
def test_attributes_are_told_as_on_the_cpu(folder, told_by_heads, stage):
    """AttributeClassifier on the same images: probabilities to 1e-4; in bfloat16 to 0.05."""
    from asenpp.inference import AttributeClassifier

    paths = sorted((folder / "data" / "Garments" / "test").iterdir())[:5]
    exact = AttributeClassifier(*told_by_heads(stage, "DEVICE", "cpu")).probabilities(paths)
    assert max(np.ptp(rows, axis=0).max() for rows in exact.values()) > 1e-2
    for mode, tolerance in (("off", 1e-4), ("bf16", 0.05)):
        ours = AttributeClassifier(*told_by_heads(stage, "DEVICE", "cuda", "SOLVER.AMP", mode)).probabilities(paths)
        distance = max(np.abs(ours[name] - rows).max() for name, rows in exact.items())
        assert list(ours) == list(exact) and distance < tolerance, (mode, distance)
