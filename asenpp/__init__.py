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
           "where", "maximum", "minimum", "no_grad", "manual_seed", "set_num_threads", "get_num_threads", "memory_stats")
_PUBLIC: dict[str, tuple[str, str | None]] = {
    "Tensor": ("_asen", "Tensor"),
    "from_numpy": ("_asen", "from_numpy"),
    "from_dlpack": ("_asen", "from_dlpack"),
    **{name: ("basics", name) for name in _BASICS},
    "load_config": ("config", "load_config"),
    "Config": ("config", "Config"),
    "ConfigError": ("config", "ConfigError"),
    "build_model": ("models", "build_model"),
    "load": ("checkpoint", "load"),
    "save": ("checkpoint", "save"),
    **{name: (name, None) for name in ("amp", "checkpoint", "config", "cuda", "data", "engine", "inference", "metrics", "models",
                                       "nn", "optim", "plots", "random", "transforms")},
}

__all__ = ["__version__", *_PUBLIC]


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
    return sorted({*globals(), *__all__})
