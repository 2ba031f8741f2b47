"""Optimizers over groups of parameters, with PyTorch's state dicts.

The arithmetic is one call into the C core for the parameters of a group that share dtype, device
and number of steps: normally one call a group. Parameters without a gradient are skipped, and their
number of steps does not move.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from .. import _asen
from .._asen import Tensor
from ..nn.parameter import forget_grad

__all__ = ["Optimizer", "SGD", "Adam", "AdamW"]


class Optimizer:
    """What all optimizers share.

    params: tensors that require gradients, or dicts {"params": tensors, "lr": ..., ...}, each a group
        with settings of its own. param_groups is the list of those dicts, settings complete.
    """

    kind = ""
    states: tuple[str, ...] = ()  # names of the state tensors, in the order the core takes them

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]):
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Tensor, dict[str, Any]] = {}
        given = list(params)
        if not given:
            raise ValueError(f"{type(self).__name__}: there is no parameter to optimize")
        for group in given if isinstance(given[0], Mapping) else [{"params": given}]:
            self.add_param_group(group)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Adds parameters with settings of their own; absent settings are the optimizer's."""
        group = {**self.defaults, **group}
        tensors = group.pop("params")
        tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        known = {id(p) for other in self.param_groups for p in other["params"]}
        for p in tensors:
            if not isinstance(p, Tensor):
                raise TypeError(f"{type(self).__name__}: parameters are tensors, not {type(p).__name__}")
            if not p.is_leaf:
                raise ValueError(f"{type(self).__name__}: the result of an op cannot be optimized, only its inputs")
            if id(p) in known:
                raise ValueError(f"{type(self).__name__}: a parameter of shape {tuple(p.shape)} is given twice")
            known.add(id(p))
        self.check(group)
        self.param_groups.append({"params": tensors, **group})

    def check(self, group: Mapping[str, Any]) -> None:
        """Raises ValueError for a setting that is out of range."""
        for name in ("lr", "eps", "weight_decay", "momentum"):
            if name in group and not group[name] >= 0:
                raise ValueError(f"{type(self).__name__}: {name} is {group[name]}: it must be 0 or more")
        for i, beta in enumerate(group.get("betas", ())):
            if not 0 <= beta < 1:
                raise ValueError(f"{type(self).__name__}: betas[{i}] is {beta}: it must be in [0, 1)")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients; with set_to_none=False they become zeros instead."""
        for group in self.param_groups:
            for p in group["params"]:
                forget_grad(p, set_to_none)

    def step(self) -> None:
        """Moves all parameters that have a gradient."""
        for group in self.param_groups:
            for alike in self._alike(group).values():
                self._update(group, *alike)

    def _alike(self, group: Mapping[str, Any]) -> dict[tuple, tuple[list[Tensor], list[Tensor]]]:
        """Parameters and gradients by dtype, device and number of steps."""
        result: dict[tuple, tuple[list[Tensor], list[Tensor]]] = {}
        for p in group["params"]:
            grad = p.grad
            if grad is None:
                continue
            steps = self.state.get(p, {}).get("step", 0)
            params, grads = result.setdefault((p.dtype, p.device, steps), ([], []))
            params.append(p)
            grads.append(grad.contiguous())
        return result

    def _update(self, group: Mapping[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        names = self.state_names(group)
        for p in params:
            state = self.state.setdefault(p, {"step": 0})
            for name in names:
                if name not in state:
                    state[name] = _zeros_like(p)
            state["step"] += 1
        lists = [[self.state[p][name] for p in params] for name in names] + [None, None]
        _asen.optim_step(self.kind, params, grads, lists[0], lists[1], self.state[params[0]]["step"],
                         group["lr"], **self.arguments(group))

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return self.states

    def arguments(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a group as the core takes them."""
        raise NotImplementedError

    # -- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """{"state": {number of the parameter: its tensors}, "param_groups": settings and numbers}, as
        PyTorch's; the tensors share memory with the optimizer's."""
        numbers = {id(p): i for i, p in enumerate(self._parameters())}
        state = {numbers[id(p)]: self.export(values) for p, values in self.state.items() if id(p) in numbers}
        groups = [{**{k: v for k, v in group.items() if k != "params"},
                   "params": [numbers[id(p)] for p in group["params"]]} for group in self.param_groups]
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def export(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {"step": Tensor(np.array(values["step"], np.float32)),
                **{name: tensor for name, tensor in values.items() if name != "step"}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes up a state_dict of this class (ours or PyTorch's): settings, and copies of the tensors.

        Raises ValueError where groups, numbers of parameters or shapes differ; nothing is changed then.
        """
        title = type(self).__name__
        given = state_dict["param_groups"]
        sizes, wanted = [len(g["params"]) for g in given], [len(g["params"]) for g in self.param_groups]
        if sizes != wanted:
            raise ValueError(f"{title}: the given state has groups of {sizes} parameters, this optimizer of {wanted}")
        order = [number for group in given for number in group["params"]]
        by_number = dict(zip(order, self._parameters()))
        loaded = {}
        for number, values in state_dict["state"].items():
            if number not in by_number:
                raise ValueError(f"{title}: the given state has a parameter {number} that is in no group")
            loaded[by_number[number]] = self._taken(f"{title}: parameter {number}", by_number[number], values)
        for group, settings in zip(self.param_groups, given):
            group.update({k: v for k, v in settings.items() if k != "params" and (k in group or k == "initial_lr")})
            if "betas" in group:
                group["betas"] = tuple(group["betas"])
        self.state = loaded

    def _taken(self, what: str, p: Tensor, values: Mapping[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {"step": int(values["step"]) if "step" in values else 1}
        for name in self.states:
            value = values.get(name)
            if value is None:
                continue
            if tuple(value.shape) != tuple(p.shape):
                raise ValueError(f"{what}: {name} has the shape {tuple(value.shape)}, its parameter {tuple(p.shape)}")
            result[name] = _zeros_like(p).copy_(value)
        return result

    def _parameters(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])


def _zeros_like(p: Tensor) -> Tensor:
    """A dense tensor of zeros of the shape, dtype and device of p, apart from the tape."""
    return p.detach().clone().zero_()


class SGD(Optimizer):
    """Gradient descent with momentum (PyTorch's form, Nesterov's too).

    g += weight_decay p;  b = g at first, then momentum b + (1 - dampening) g;
    p -= lr (g + momentum b with nesterov, b with momentum, else g).
    """

    kind = "sgd"
    states = ("momentum_buffer",)

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.0, dampening: float = 0.0,
                 weight_decay: float = 0.0, nesterov: bool = False):
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("SGD: nesterov needs a momentum and no dampening")
        super().__init__(params, {"lr": lr, "momentum": momentum, "dampening": dampening,
                                  "weight_decay": weight_decay, "nesterov": nesterov})

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return self.states if group["momentum"] else ()

    def arguments(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {name: group[name] for name in ("momentum", "dampening", "weight_decay", "nesterov")}

    def export(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {"momentum_buffer": values.get("momentum_buffer")}


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), in PyTorch's order of operations.

    g += weight_decay p;  m += (1 - beta1)(g - m);  v = beta2 v + (1 - beta2) g g;
    p -= lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps).
    """

    kind = "adam"
    states = ("exp_avg", "exp_avg_sq")

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    def arguments(self, group: Mapping[str, Any]) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        return {"beta1": beta1, "beta2": beta2, "eps": group["eps"], "weight_decay": group["weight_decay"]}


class AdamW(Adam):
    """Adam with decoupled weight decay, p *= 1 - lr weight_decay (Loshchilov and Hutter 2019)."""

    kind = "adamw"

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 1e-2):
        super().__init__(params, lr, betas, eps, weight_decay)
