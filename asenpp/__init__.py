"""ASEN++: attribute-specific embeddings of images of garments, on a C core of their own.

    import asenpp
    cfg = asenpp.load_config("config/Garments/Garments.yaml", "config/Garments/s1.yaml")
    asenpp.engine.train(cfg)

Everything is loaded when it is first used (PEP 562), so that importing asenpp costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> where it lives: (module, name there; None: the module itself).
_BASICS = ("tensor", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "randn", "arange", "cat", "stack",
           "where", "maximum", "minimum", "no_grad", "enable_grad", "set_grad_enabled", "is_grad_enabled", "manual_seed", "set_num_threads", "get_num_threads", "memory_stats")
_FUNCTIONS = ("abs", "add", "all", "amax", "amin", "any", "argmax", "argmin", "argsort", "chunk", "clamp", "clone",
              "div", "eq", "exp", "flatten", "gather", "ge", "gt", "isfinite", "isinf", "isnan", "le", "log",
              "log_softmax", "logical_not", "lt", "masked_fill", "matmul", "max", "mean", "min", "mul", "narrow",
              "ne", "neg", "nonzero", "norm", "numel", "permute", "pow", "relu", "reshape", "sigmoid", "sign",
              "softmax", "sort", "split", "sqrt", "squeeze", "std", "sub", "sum", "tanh", "topk", "transpose",
              "unbind", "unsqueeze", "var")
_DTYPES = ("float16", "half", "bfloat16", "float32", "float", "float64", "double", "uint8", "int32", "int", "int64",
           "long", "bool")
_PUBLIC: dict[str, tuple[str, str | None]] = {
    "Tensor": ("_asen", "Tensor"),
    "from_numpy": ("_asen", "from_numpy"),
    "from_dlpack": ("_asen", "from_dlpack"),
    **{name: ("basics", name) for name in _BASICS},
    **{name: ("functions", name) for name in _FUNCTIONS},
    **{name: ("dtypes", name) for name in _DTYPES},
    "load_config": ("config", "load_config"),
    "Config": ("config", "Config"),
    "ConfigError": ("config", "ConfigError"),
    "build_model": ("models", "build_model"),
    "load": ("checkpoint", "load"),
    "save": ("checkpoint", "save"),
    **{name: (name, None) for name in ("amp", "checkpoint", "config", "cuda", "data", "engine", "inference", "metrics", "models",
                                       "nn", "optim", "plots", "random", "transforms")},
}

# `from asenpp import *` leaves Python's own functions and types as they are.
_SHADOWS = ("abs", "all", "any", "bool", "float", "int", "max", "min", "pow", "sum")
__all__ = ["__version__", *(name for name in _PUBLIC if name not in _SHADOWS)]


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _PUBLIC[name]
    except KeyError:
        raise AttributeError(f"module 'asenpp' has no attribute {name!r}") from None
    value = importlib.import_module(f".{module}", __name__)
    if attribute is not None:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SHADOWS})
