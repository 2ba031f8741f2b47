"""Learning rates over epochs: call step() after each. Values are PyTorch's, digit by digit, because
the recursions are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .optimizer import Optimizer

__all__ = ["StepLR", "CosineAnnealingLR"]


class _Schedule:
    """Counts epochs (last_epoch, from 0) and sets the rate of each group of an optimizer."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = 0

    def step(self) -> None:
        """One epoch on."""
        self.last_epoch += 1
        for group, base in zip(self.optimizer.param_groups, self.base_lrs):
            group["lr"] = self.rate(group["lr"], base)

    def rate(self, lr: float, base: float) -> float:
        """The rate of epoch last_epoch, from that of the epoch before and that of epoch 0."""
        raise NotImplementedError

    def get_last_lr(self) -> list[float]:
        """The present rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the settings: plain numbers. The rates are in the optimizer's state."""
        return {**{k: v for k, v in self.__dict__.items() if k != "optimizer"}, "_last_lr": self.get_last_lr()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a state_dict of this class (ours or PyTorch's), and its rates.

        Raises ValueError where the number of groups differs.
        """
        if len(state["base_lrs"]) != len(self.base_lrs):
            raise ValueError(f"{type(self).__name__}: the given state has {len(state['base_lrs'])} groups, "
                             f"the optimizer {len(self.base_lrs)}")
        self.__dict__.update({k: state[k] for k in self.__dict__ if k in state})
        self.base_lrs = list(self.base_lrs)
        for group, base, lr in zip(self.optimizer.param_groups, self.base_lrs, state["_last_lr"]):
            group["initial_lr"], group["lr"] = base, lr


class StepLR(_Schedule):
    """The rate times gamma every step_size epochs."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1):
        if step_size < 1:
            raise ValueError(f"StepLR: step_size is {step_size}: it must be 1 or more")
        super().__init__(optimizer)
        self.step_size, self.gamma = step_size, gamma

    def rate(self, lr: float, base: float) -> float:
        return lr * self.gamma if self.last_epoch % self.step_size == 0 else lr


class CosineAnnealingLR(_Schedule):
    """Half a cosine from the rate of epoch 0 down to eta_min at epoch T_max (Loshchilov and Hutter 2017).

    eta_t = eta_min + (base - eta_min)(1 + cos(pi t / T_max)) / 2, as a recursion over t.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0):
        if T_max < 1:
            raise ValueError(f"CosineAnnealingLR: T_max is {T_max}: it must be 1 or more")
        super().__init__(optimizer)
        self.T_max, self.eta_min = T_max, eta_min

    def rate(self, lr: float, base: float) -> float:
        t, end, low = self.last_epoch, self.T_max, self.eta_min
        if (t - 1 - end) % (2 * end) == 0:  # the recursion would divide by 0: out of the valley
            return lr + (base - low) * (1 - math.cos(math.pi / end)) / 2
        return (1 + math.cos(math.pi * t / end)) / (1 + math.cos(math.pi * (t - 1) / end)) * (lr - low) + low
