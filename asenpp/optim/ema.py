"""EMA: an exponential moving average of a model's weights, to be evaluated and saved in their place.

With d_t = min(decay, (1 + t) / (10 + t)) for the update t = 1, 2, ..., an average a follows its weight w by
a = d_t a + (1 - d_t) w, from a_0 = w_0: while t is small the average is over fewer steps, so that the initial
weights do not hold back that of a short training (TensorFlow's ExponentialMovingAverage with num_updates;
Polyak and Juditsky 1992 for averaging). It is computed as a += (1 - d_t)(w - a), which is what the core's SGD
does with the rate -(1 - d_t), the gradient w and the weight decay -1: one pass over the memory, without
temporaries, on every device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import _asen
from .._asen import Tensor
from ..nn.module import Module

__all__ = ["EMA"]

_HALF = ("float16", "bfloat16")


class EMA:
    """The moving average of what a model's state dict holds, under the same names.

    Parameters and floating buffers (running statistics) are averaged in float32 (float64 ones in float64),
    integer buffers are copied. Tensors that the model shares under several names are averaged once, and shared
    here too. The averages lie on the model's device and are no part of the tape.

    model: stands as it is to be trained: in its dtype and on its device.
    decay: in (0, 1); about 1 / (1 - decay) steps are averaged in the end.
    """

    def __init__(self, model: Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"EMA: decay is {decay}: it must be between 0 and 1")
        self.model, self.decay, self.updates = model, decay, 0
        self._averages: dict[str, Tensor] = {}
        self._distinct: list[str] = []  # one name for each average
        self._is_applied = False
        known: dict[Any, Tensor] = {}
        for name, tensor in model.state_dict().items():
            key = tensor._memory, tuple(tensor.shape), tensor.stride(), tensor.dtype
            if key not in known:
                known[key] = (tensor.to(dtype="float32") if tensor.dtype in _HALF else tensor).clone()
                self._distinct.append(name)
            self._averages[name] = known[key]

    def update(self) -> None:
        """Takes in the model's weights: call it after each optimizer step.

        Raises RuntimeError within applied(), ValueError where the model has other tensors than at first.
        """
        self._refuse_applied("update()")
        t = self.updates + 1
        rest = 1.0 - min(self.decay, (1 + t) / (10 + t))
        alike: dict[tuple[str, str], tuple[list[Tensor], list[Tensor]]] = {}
        for average, tensor in self._pairs():
            if average.dtype in ("float32", "float64"):
                averages, weights = alike.setdefault((average.dtype, average.device), ([], []))
                averages.append(average)
                weights.append(tensor.to(dtype=average.dtype).contiguous())
            else:
                average.copy_(tensor)
        for averages, weights in alike.values():
            _asen.optim_step("sgd", averages, weights, None, None, 1, -rest, weight_decay=-1.0)
        self.updates = t

    @contextmanager
    def applied(self) -> Iterator[Module]:
        """`with ema.applied():` the model holds the averages; afterwards its own weights again, in the same bits.

        What is written into the model's tensors meanwhile is lost. A graph recorded before the block cannot be run
        backward after it. Raises RuntimeError where it is applied already, ValueError as update() does.
        """
        self._refuse_applied("applied()")
        pairs = self._pairs()
        own = [tensor.clone() for _, tensor in pairs]
        try:
            self._is_applied = True
            for average, tensor in pairs:
                tensor.copy_(average)
            yield self.model
        finally:
            for (_, tensor), value in zip(pairs, own):
                tensor.copy_(value)
            self._is_applied = False

    # -- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """{"model": names of the model's state dict and their averages, "updates": how many there were}; the
        tensors share memory with the averages. The model's load_state_dict() takes "model"."""
        return {"model": dict(self._averages), "updates": self.updates}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes up a state_dict() of the same model: copies of its averages, and the number of updates.

        The averages may be tensors or NumPy arrays. Raises ValueError where keys, names or shapes differ, and
        RuntimeError within applied(); nothing is changed then.
        """
        self._refuse_applied("load_state_dict()")
        if not {"model", "updates"} <= state_dict.keys():
            raise ValueError("EMA: the given state has no 'model' and 'updates': it is not that of a moving average")
        given, updates = state_dict["model"], int(state_dict["updates"])
        if updates < 0:
            raise ValueError(f"EMA: the given state counts {updates} updates: it must be 0 or more")
        self._compare_names(given, "the given state")
        for name, average in self._averages.items():
            if np.shape(given[name]) != tuple(average.shape):
                raise ValueError(f"EMA: {name} is {tuple(average.shape)} in the model, {np.shape(given[name])} in the "
                                 "given state")
        for name, average in self._averages.items():
            value = given[name]
            average.copy_(value.detach() if hasattr(value, "detach") else value)
        self.updates = updates

    # -- the model's tensors ------------------------------------------------------------------------

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each average and an alias of the model's tensor. These are asked for anew each time, since a buffer may
        have been set to another tensor."""
        state = self.model.state_dict()
        self._compare_names(state, "the model by now")
        pairs = [(self._averages[name], state[name]) for name in self._distinct]
        for name, (average, tensor) in zip(self._distinct, pairs):
            if average.shape != tensor.shape or average.device != tensor.device:
                raise ValueError(f"EMA: {name} is {tuple(tensor.shape)} on {tensor.device}, its average "
                                 f"{tuple(average.shape)} on {average.device}: make the EMA after the model was changed "
                                 "or moved")
        return pairs

    def _compare_names(self, names: Mapping[str, Any], whose: str) -> None:
        missing = [name for name in self._averages if name not in names]
        unexpected = [str(name) for name in names if name not in self._averages]
        if missing or unexpected:
            what = [f"{verb} {names[0]}" for verb, names in (("lacks", missing), ("has", unexpected)) if names]
            raise ValueError(f"EMA: {whose} {' and '.join(what)}: the names differ from those averaged "
                             f"({len(missing)} missing, {len(unexpected)} unexpected)")

    def _refuse_applied(self, what: str) -> None:
        if self._is_applied:
            raise RuntimeError(f"EMA: {what} within applied(): the model holds the averages there, not its own weights")
