"""The twins of our models in PyTorch, with our weights (parity_kit.py), and their training steps.

The models and formulas themselves are torch_models.py's.
"""

import numpy as np
import torch

import parity_kit as kit
import torch_models as tm
from asenpp import models

KINK = 2e-5     # of what is about 1: ten times what rounding moves


def twin(make, state, dtype="float64", training=True):
    model = make()
    model.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    return model.to(getattr(torch, dtype)).train(training)


def settled(make, state, training, forward, groups=1):
    """The state with biases moved away from kinks."""
    model = twin(make, state, "float64", training)
    with tm.away_from_kinks(model, groups) as distances:
        forward(model)
    assert min(distances) > KINK, "choose another seed"
    moved = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    # Statistics stay: they move in the pass.
    return {name: moved[name].astype(np.float32) if name.endswith("bias") else value for name, value in state.items()}


def torch_model(cfg):
    return getattr(tm, cfg.MODEL.TYPE)(cfg)


def torch_step(model, cfg, given):
    """Three passes; see torch_models.step."""
    dtype = next(model.parameters()).dtype
    images, crops = ([torch.tensor(part).to(dtype) for part in np.split(x, 3)] for x in (given.images, given.crops))
    labels = (torch.tensor(given.values), torch.tensor(given.negative_values))
    return tm.step(model, cfg.SOLVER, images, torch.tensor(given.attributes), crops if cfg.MODEL.LOCAL.ENABLE else None,
                   labels if cfg.MODEL.TYPE != "ASEN" else None)


def torch_results(cfg, state, given, dtype="float64", training=True):
    model = twin(lambda: torch_model(cfg), state, dtype, training)
    loss, parts, embedding, maps = torch_step(model, cfg, given)
    loss.backward()
    return kit.gathered(model, parts | {"total": loss}) | {"output embedding": kit.array(embedding), "output map": kit.array(maps)}


def one_pass(cfg, given):
    """Runs a PyTorch model on all images at once: every ReLU once."""
    def forward(model):
        asen, attributes = getattr(model, "body", model), torch.tensor(np.tile(given.attributes, 3))
        part = asen.choices["global"]
        features = part["basenet"](torch.tensor(given.images).double())
        part["attnnet"](features, part["attrnet"](attributes))
        if cfg.MODEL.TYPE == "ArcStyleClassification":
            part["basenet"].average(features)
        if cfg.MODEL.LOCAL.ENABLE:
            asen("local", torch.tensor(given.crops).double(), attributes)
    return forward


def settled_model(cfg, given, training, seed=1):
    state = kit.seeded_state(models.build_model(cfg), seed)
    return settled(lambda: torch_model(cfg), state, training, one_pass(cfg, given), groups=3)


def torch_training(cfg, state, steps, dtype="float64", seed=1, layout=torch.contiguous_format):
    """(losses, model after it); see parity_kit.our_training. layout: of the weights, which activations follow."""
    model, solver = twin(lambda: torch_model(cfg), state, dtype).to(memory_format=layout), cfg.SOLVER
    optimizer = torch.optim.Adam(tm.parameter_groups(model, solver.BASE_LR, solver.BASE_LR_SLOW), lr=solver.BASE_LR)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, solver.STEP_SIZE, solver.DECAY_RATE)
    return kit.run(model, lambda given: torch_step(model, cfg, given)[0], optimizer, schedule, steps, seed), model
