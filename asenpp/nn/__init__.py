"""Layers, containers and losses under PyTorch's names."""

from . import functional, init
from .module import LoadReport, Module, ModuleDict, ModuleList, RemovableHandle, Sequential
from .modules import (AdaptiveAvgPool2d, BatchNorm2d, Conv2d, CosineSimilarity, CrossEntropyLoss, Dropout, Embedding,
                      Flatten, Identity, LeakyReLU, Linear, MarginRankingLoss, MaxPool2d, ReLU, Sigmoid, Softmax, Tanh)
from .parameter import Buffer, Parameter

__all__ = ["functional", "init", "Module", "Sequential", "ModuleList", "ModuleDict", "LoadReport", "RemovableHandle", "Parameter",
           "Buffer", "Conv2d", "BatchNorm2d", "Linear", "Embedding", "Dropout", "ReLU", "LeakyReLU", "Tanh", "Sigmoid", "Softmax",
           "MaxPool2d", "AdaptiveAvgPool2d", "Identity", "Flatten", "CrossEntropyLoss", "CosineSimilarity",
           "MarginRankingLoss"]
