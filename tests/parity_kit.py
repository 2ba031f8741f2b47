"""What the parity tests share: weights and inputs from a seed, our side of a training step, how far two
results are apart. PyTorch's side is torch_models.py; nothing here needs it.

Numbers come from NumPy's RandomState, whose stream is frozen (Generator's may change): the committed
fixtures hold what PyTorch made of them.
"""

import zlib
from typing import NamedTuple

import numpy as np

from asenpp import _asen, models, nn, optim
from asenpp._asen import Tensor
from asenpp.config import load_config
from asenpp.data.samplers import TripletBatch
from asenpp.engine.step import TripletStep

MODELS = ["ASEN global", "ASEN", "StyleClassification", "ArcStyleClassification"]


def config(kind, *opts, backbone="resnet18"):
    """A small configuration. kind: one of MODELS; all but "ASEN global" have the local branch too."""
    return load_config(opts=[
        "MODEL.TYPE", kind.partition(" ")[0], "MODEL.LOCAL.ENABLE", kind != "ASEN global", "MODEL.PRETRAINED", False,
        "MODEL.GLOBAL.BACKBONE.NAME", backbone, "MODEL.LOCAL.BACKBONE.NAME", backbone,
        "MODEL.EMBED_SIZE", 48, "MODEL.ATTRIBUTE.EMBED_SIZE", 24,
        "MODEL.GLOBAL.ATTENTION.SPATIAL.COMMON_EMBED_SIZE", 32, "MODEL.LOCAL.ATTENTION.SPATIAL.COMMON_EMBED_SIZE", 16,
        "HEAD.in_features", 20, "DATA.ATTRIBUTES.NAME", "[style, length]", "DATA.ATTRIBUTES.NUM", "[3, 4]",
        "SOLVER.GLOBAL_WEIGHT", 1.0, "SOLVER.LOCAL_WEIGHT", 0.3, "SOLVER.ALIGN_WEIGHT", 0.2, "SOLVER.MARGIN", 0.9, *opts])


def draw(name, shape, seed=1):
    """Standard normal float32, by name."""
    return np.random.RandomState([seed, zlib.crc32(name.encode())]).standard_normal(shape).astype(np.float32)


def seeded_state(model, seed=1):
    """{name: float32 array} for a model of ours: initial weights, but batch norm and biases off their
    special starts, as training leaves them."""
    state = {}
    for name, tensor in model.state_dict().items():
        shape, last = tensor.shape, name.rpartition(".")[2]
        value = draw(name.replace(".local.attrnet.", ".global.attrnet."), shape, seed)    # one table, two names
        if last == "num_batches_tracked":
            state[name] = np.zeros(shape, np.int64)
            continue
        if last == "running_var" or last == "weight" and len(shape) == 1:
            value = 1 + 0.3 * np.tanh(value)
        elif len(shape) == 1:
            value = 0.1 * value
        elif "attnnet" in name or len(shape) == 2 and "embedding" not in name:
            value = np.tanh(value) / np.sqrt(np.prod(shape[1:]))
        elif len(shape) == 4:
            value = value * np.sqrt(2 / (shape[0] * shape[2] * shape[3]))
        state[name] = value.astype(np.float32)
    return state


def our_model(cfg, state, dtype="float32", training=True):
    model = models.build_model(cfg)
    model.load_state_dict(state)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0      # PyTorch's mask is another
    return model.to(dtype).train(training)


class Batch(NamedTuple):
    """Triplets: images and crops (3 B, 3, S, S) float32, anchors, positives, negatives; B attributes, and
    the values of anchor and negative."""

    images: np.ndarray
    crops: np.ndarray
    attributes: np.ndarray
    values: np.ndarray
    negative_values: np.ndarray


def batch(count, size, seed, attributes=1):
    """Positives resemble their anchors, so that there is something to learn."""
    images, crops = (draw(what, (3 * count, 3, size, size), seed) for what in ("images", "crops"))
    for x in (images, crops):
        x[count:2 * count] = 0.7 * x[:count] + 0.7 * x[count:2 * count]
    numbers = np.arange(count)
    return Batch(images, crops, numbers % attributes, numbers % 3, (numbers + 1) % 3)


def our_step(model, cfg, given):
    """(total loss, its parts) as the engine makes them: one batch of 3 B, the crops given."""
    dtype = "float64" if next(model.parameters()).dtype == "float64" else "float32"
    images, crops = (np.ascontiguousarray(x.transpose(0, 2, 3, 1)).astype(dtype) for x in (given.images, given.crops))
    nothing = np.zeros(len(given.attributes), np.int64)
    triplets = TripletBatch(nothing, nothing, nothing, given.attributes, given.values, given.negative_values)
    return TripletStep(model, cfg, "cpu")(images, triplets, lambda maps: crops)


def array(tensor):
    return np.array(tensor.detach().numpy(), np.float64)


def gathered(model, losses=()):
    """{what: float64 array}: after backward, gradients and statistics of a model of either side, and losses."""
    found = {f"loss {name}": array(loss) for name, loss in dict(losses).items()}
    found |= {f"gradient {name}": array(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return found | {f"buffer {name}": array(b) for name, b in model.named_buffers()}


def our_results(cfg, state, given, dtype="float32", training=True):
    """Losses, all gradients, statistics, embeddings and maps of one step."""
    model = our_model(cfg, state, dtype, training)
    loss, parts = our_step(model, cfg, given)
    loss.backward()
    found = gathered(model, parts | {"total": loss})
    before = _asen.set_grad_enabled(False)
    try:
        whole, maps = model.forward_branch("global", Tensor(given.images.astype(dtype)), np.tile(given.attributes, 3), groups=3)
    finally:
        _asen.set_grad_enabled(before)
    return found | {"output embedding": array(whole), "output map": array(maps)}


def norm(a):
    return float(np.linalg.norm(np.asarray(a, np.float64)))


def apart(ours, theirs, kind="", floor=1e-6):
    """{what: |ours - theirs| / |theirs|}, by norms, of the results whose names begin with `kind`. Gradients
    that vanish in exact arithmetic are rounding: a norm counts for at least `floor` of the kind's largest."""
    assert ours.keys() == theirs.keys()
    chosen = [what for what in theirs if what.startswith(kind)]
    assert chosen, kind
    minimum = {k: floor * max(norm(theirs[w]) for w in chosen if w.startswith(k)) for k in {w.split()[0] for w in chosen}}
    found = {}
    for what in chosen:
        assert ours[what].shape == theirs[what].shape, what
        found[what] = norm(ours[what] - theirs[what]) / max(norm(theirs[what]), minimum[what.split()[0]], 1e-300)
    return found


def whole(ours, theirs, kind="gradient"):
    """|ours - theirs| / |theirs| of all gradients as one vector."""
    chosen = [what for what in theirs if what.startswith(kind)]
    return (sum(norm(ours[w] - theirs[w]) ** 2 for w in chosen) / sum(norm(theirs[w]) ** 2 for w in chosen)) ** 0.5


# -- short trainings ----------------------------------------------------------------------------------

SIZE, TRIPLETS, EPOCH = 40, 4, 2     # pixels, triplets a step, steps an epoch


def training_config(stage, *opts):
    """The published rates."""
    return config("ASEN" if stage == 2 else "ASEN global", "SOLVER.BASE_LR", 1e-4, "SOLVER.BASE_LR_SLOW", 1e-5,
                  "SOLVER.STEP_SIZE", 1, "SOLVER.DECAY_RATE", 0.9, "SOLVER.MARGIN", 0.3, *opts)


def run(model, step, optimizer, schedule, steps, seed):
    """The losses of a training on either side. step(batch): the loss."""
    losses = []
    for number in range(steps):
        optimizer.zero_grad()
        loss = step(batch(TRIPLETS, SIZE, 100 * seed + number, attributes=2))
        loss.backward()
        optimizer.step()
        losses.append(float(array(loss)))
        if number % EPOCH == EPOCH - 1:
            schedule.step()
    return np.array(losses)


def our_training(cfg, state, steps, dtype="float32", seed=1):
    """(losses, model after it)."""
    model, solver = our_model(cfg, state, dtype), cfg.SOLVER
    optimizer = optim.Adam(model.parameter_groups(solver.BASE_LR, solver.BASE_LR_SLOW), lr=solver.BASE_LR)
    schedule = optim.lr_scheduler.StepLR(optimizer, solver.STEP_SIZE, solver.DECAY_RATE)
    return run(model, lambda given: our_step(model, cfg, given)[0], optimizer, schedule, steps, seed), model
