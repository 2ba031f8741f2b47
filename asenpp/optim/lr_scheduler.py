"""Learning rates over epochs (StepLR, CosineAnnealingLR) or over optimizer steps (WarmupCosine): call
step() after each. The values of the first two are PyTorch's, digit by digit, because the recursions are;
WarmupCosine is a function of the number of steps alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .optimizer import Optimizer

__all__ = ["StepLR", "CosineAnnealingLR", "WarmupCosine"]


class _Schedule:
    """Counts epochs or steps (last_epoch, from 0) and sets the rate of each group of an optimizer."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = 0

    def step(self) -> None:
        """One epoch on; for a schedule over optimizer steps, one step."""
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
        """The epoch (or step) and the settings: plain numbers. The rates are in the optimizer's state."""
        return {**{k: v for k, v in self.__dict__.items() if k != "optimizer"}, "_last_lr": self.get_last_lr()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a state_dict of this class (ours or PyTorch's), and its rates.

        Raises ValueError for the state of another class, and where the number of groups differs; nothing is
        changed then.
        """
        lacking = [k for k in (*self.__dict__, "_last_lr") if k != "optimizer" and k not in state]
        if lacking:
            raise ValueError(f"{type(self).__name__}: the given state has no {', '.join(lacking)}: it is not that of a "
                             f"{type(self).__name__}")
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


class WarmupCosine(_Schedule):
    """A linear warm-up to the base rate, then half a cosine down to eta_min: over optimizer steps, not epochs.

    For optimizer steps t = 0, 1, ..., with W = warmup_steps and T = total_steps,
        eta_t = base (t + 1) / W                                                     t < W
        eta_t = eta_min + (base - eta_min)(1 + cos(pi (t - W) / (T - W))) / 2        W <= t < T
        eta_t = eta_min                                                              t >= T
    (Goyal et al. 2017; Loshchilov and Hutter 2017), each group from its own base rate. The rate of step 0 is
    set at once. last_epoch counts steps. Raises ValueError unless 0 <= warmup_steps < total_steps.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, total_steps: int, eta_min: float = 0.0):
        if warmup_steps < 0:
            raise ValueError(f"WarmupCosine: warmup_steps is {warmup_steps}: it must be 0 or more")
        if warmup_steps >= total_steps:
            raise ValueError(f"WarmupCosine: warmup_steps is {warmup_steps} and total_steps {total_steps}: the warm-up "
                             "must be shorter than the training")
        super().__init__(optimizer)
        self.warmup_steps, self.total_steps, self.eta_min = warmup_steps, total_steps, eta_min
        for group, base in zip(optimizer.param_groups, self.base_lrs):
            group["lr"] = self.rate(group["lr"], base)

    def rate(self, lr: float, base: float) -> float:
        t, warmup, total, low = self.last_epoch, self.warmup_steps, self.total_steps, self.eta_min
        if t < warmup:
            return base * ((t + 1) / warmup)
        if t >= total:
            return low
        return low + (base - low) * (1 + math.cos(math.pi * (t - warmup) / (total - warmup))) / 2
