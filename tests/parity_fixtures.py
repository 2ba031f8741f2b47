"""What scripts/make_parity_fixtures.py and tests/test_parity_fixtures.py agree on: cases, seeds, what is kept.

Nothing here needs PyTorch.
"""

import numpy as np

import parity_kit as kit

SEED = 7

# Small samples, in the words of csrc/ops/ops.def: stride, padding, odd sizes, a batch of one, groups.
OPS = [
    ("conv2d", "x[1,3,9,8] w[5,3,3,3] bias[5] stride=2 padding=1"),
    ("conv2d_fused", "x[1,3,5,4] w[4,3,3,3] bias[4] residual[1,4,5,4] padding=1 relu=1"),
    ("max_pool2d", "x[1,3,9,7]d kernel_size=3 stride=2 padding=1"),
    ("batch_norm", "x[6,3,3,3] weight[3] bias[3] running_mean[3] running_var[3]p residual[6,3,3,3] groups=3 relu=1"),
    ("linear", "x[1,7] w[5,7] bias[5]"),
    ("softmax", "x[3,7]"),
    ("embedding", "weight[5,3] index[4]i5"),
    ("cross_entropy", "logits[4,3] target[4]i3"),
    ("cosine_similarity", "a[4,5] b[4,5]"),
    ("normalize", "x[4,5]"),
    ("spatial_attention", "x[2,6,3,5] z[2,3,3,5] q[2,3]"),
    ("arc_margin", "cosine[4,3]u target[4]i3 s=10 m=0.5"),
]

OPTIMIZERS = {
    "sgd": ("SGD", {"lr": 0.1}), "sgd momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    "sgd nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}), "adam": ("Adam", {}),
    "adam decay": ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}), "adamw": ("AdamW", {"lr": 0.01}),
}
SHAPES = [(3, 2, 3, 3), (7,), (2, 3)]

TRAININGS = {1: 5, 2: 3}    # stage: steps

# The one step whose float32 gradients are held to 1e-4 too: its biases are moved away from the kinks of ReLUs
# (torch_models.away_from_kinks), and the shifts are the largest thing stored.
SETTLED = "ASEN global training"


def mode(training):
    return "training" if training else "inference"


def step_config(kind):
    """(configuration, batch) of one step."""
    return kit.config(kind), kit.batch(2, 40, SEED, attributes=1 if "Style" in kind else 2)


def packed_shifts(before, after):
    """What moved the biases away from the kinks of ReLUs, in the order of names, as float16."""
    return np.concatenate([(after[n] - before[n]).reshape(-1) for n in sorted(before) if n.endswith("bias")]).astype(np.float16)


def with_shifts(state, shifts):
    state, at = dict(state), 0
    for name in sorted(state):
        if name.endswith("bias"):
            size = state[name].size
            state[name] = state[name] + shifts[at:at + size].astype(np.float32).reshape(state[name].shape)
            at += size
    assert at == len(shifts)
    return state


def summary(results, training):
    """What is kept of a step's results: losses; two numbers for each gradient and, where they move, statistic;
    a corner of each output."""
    found = {what: value for what, value in results.items() if what.startswith("loss")}
    for kind in ("gradient", "buffer") if training else ("gradient",):
        names = [what for what in results if what.startswith(kind)]
        found[f"{kind} numbers"] = np.array([[kit.norm(results[n]), (results[n] * kit.draw(n, results[n].shape)).sum()] for n in names])
    return found | {what: value.reshape(len(value), -1)[:2, :6] for what, value in results.items() if what.startswith("output")}


def optimized(optim, lr_scheduler, case, parameter, tensor):
    """Parameters after 20 steps of either side's optimizer: two groups, a schedule each 5 steps; one has no gradient in some."""
    name, settings = OPTIMIZERS[case]
    tensors = [parameter(kit.draw(f"optimizer {i}", shape, SEED).astype(np.float64)) for i, shape in enumerate(SHAPES)]
    optimizer = getattr(optim, name)([{"params": tensors[:1]}, {"params": tensors[1:], "lr": 0.02}], **settings)
    schedule = lr_scheduler.CosineAnnealingLR(optimizer, T_max=3, eta_min=1e-4)
    for step in range(20):
        for i, (p, shape) in enumerate(zip(tensors, SHAPES)):
            absent = i == 1 and step % 4 == 1
            p.grad = None if absent else tensor(kit.draw(f"step {step} {i}", shape, SEED).astype(np.float64))
        optimizer.step()
        if step % 5 == 4:
            schedule.step()
    return tensors


def checkpoint_arrays():
    """What the checkpoint files hold, besides a view and bfloat16s of "weight"."""
    return {"weight": kit.draw("weight", (3, 2, 3, 4), SEED), "half": kit.draw("half", (5,), SEED).astype(np.float16),
            "double": kit.draw("double", (2, 2), SEED).astype(np.float64), "bias": kit.draw("bias", (3,), SEED),
            "number": np.array(12, np.int64), "mask": np.array([True, False, True]), "bytes": np.arange(7, dtype=np.uint8),
            "nothing": np.zeros((0, 3), np.float32)}
