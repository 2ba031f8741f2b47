"""Optimizers, learning-rate schedules and the moving average of weights; PyTorch's names where it has them."""

from . import lr_scheduler
from .ema import EMA
from .optimizer import SGD, Adam, AdamW, Optimizer

__all__ = ["Optimizer", "SGD", "Adam", "AdamW", "EMA", "lr_scheduler"]
