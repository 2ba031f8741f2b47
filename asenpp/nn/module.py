"""Module: a tree of named parameters, buffers and modules, with PyTorch's state dicts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, overload

import numpy as np

from .._asen import Tensor
from .hooks import Hooks, RemovableHandle
from .parameter import Buffer, Parameter, forget_grad

__all__ = ["Module", "Sequential", "ModuleList", "ModuleDict", "LoadReport", "RemovableHandle"]

_FLOATING = ("float16", "bfloat16", "float32", "float64")


class LoadReport(NamedTuple):
    """What load_state_dict did; lists of names.

    loaded: taken from the given state; missing: the module's names that it lacks, which keep
    their values; unexpected: its names that the module lacks.
    """

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]


class Module:
    """The base of all layers and models: set Parameters, Buffers and Modules as attributes, and
    define forward().

    A parameter or module that is reachable under several names is one object: it is trained once,
    and appears in the state dict under each name.
    """

    training: bool

    def __init__(self) -> None:
        object.__setattr__(self, "_parameters", {})
        object.__setattr__(self, "_buffers", {})
        object.__setattr__(self, "_modules", {})
        object.__setattr__(self, "training", True)

    # -- attributes -------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        kind = ("_parameters" if isinstance(value, Parameter) else "_buffers" if isinstance(value, Buffer)
                else "_modules" if isinstance(value, Module) else None)
        if "_modules" not in self.__dict__:
            if kind is not None:
                raise AttributeError(f"{type(self).__name__}: call super().__init__() before setting {name}")
            object.__setattr__(self, name, value)
            return
        registered = [registry for registry in ("_parameters", "_buffers", "_modules") if name in self.__dict__[registry]]
        if kind is None and registered and value is None:
            self.__dict__[registered[0]][name] = None
            return
        if registered == ["_buffers"] and isinstance(value, Tensor) and kind is None:
            if not value.is_leaf:
                raise ValueError(f"{type(self).__name__}.{name} is a buffer, which keeps no history: set it to "
                                 "detach() of this result of an op")
            kind, value = "_buffers", Buffer(value.detach())
        if kind is None and registered:
            raise TypeError(f"{type(self).__name__}.{name} is registered: it can be set to a Parameter, Buffer, "
                            f"Module or None, not {type(value).__name__}")
        for registry in registered:
            if registry != kind:
                del self.__dict__[registry][name]
        if kind is None:
            object.__setattr__(self, name, value)
        else:
            self.__dict__.pop(name, None)
            self.__dict__[kind][name] = value

    def __getattr__(self, name: str) -> Any:
        for registry in ("_parameters", "_buffers", "_modules"):
            owned = self.__dict__.get(registry)
            if owned is not None and name in owned:
                return owned[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        for registry in ("_parameters", "_buffers", "_modules"):
            if name in self.__dict__[registry]:
                del self.__dict__[registry][name]
                return
        object.__delattr__(self, name)

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Registers a parameter, or with None a name that has none (a layer without bias)."""
        if parameter is not None and not isinstance(parameter, Parameter):
            raise TypeError(f"{name}: a Parameter is wanted, not {type(parameter).__name__}")
        self._parameters[name] = parameter

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Registers a tensor that is saved and moved with the module but not learned.

        persistent: False leaves it out of state dicts, which then neither hold nor want it.
        """
        self._buffers[name] = tensor if tensor is None or isinstance(tensor, Buffer) else Buffer(tensor)
        unsaved = set(self.__dict__.get("_unsaved", ()))
        object.__setattr__(self, "_unsaved", unsaved - {name} if persistent else unsaved | {name})

    def add_module(self, name: str, module: "Module | None") -> None:
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"{name}: a Module is wanted, not {type(module).__name__}")
        if "." in name or not name:
            raise KeyError(f"{name!r} cannot name a module: it is empty or has a dot in it")
        self._modules[name] = module

    # -- the tree ---------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """Names and modules one level below, each module once."""
        return _once((name, module) for name, module in self._modules.items() if module is not None)

    def children(self) -> Iterator["Module"]:
        """The modules one level below, each once."""
        return (module for _, module in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """This module and all below it, each once, parents first."""
        return _once((name, module) for name, module in self._named_modules(prefix))

    def modules(self) -> Iterator["Module"]:
        return (module for _, module in self.named_modules())

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Names and parameters, each parameter once (under its first name)."""
        return _once(self._named("_parameters", prefix))

    def parameters(self) -> Iterator[Parameter]:
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        return _once(self._named("_buffers", prefix))

    def buffers(self) -> Iterator[Tensor]:
        return (buffer for _, buffer in self.named_buffers())

    def _named_modules(self, prefix: str) -> Iterator[tuple[str, "Module"]]:
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                yield from module._named_modules(f"{prefix}.{name}" if prefix else name)

    def _named(self, registry: str, prefix: str, saved: bool = False) -> Iterator[tuple[str, Any]]:
        """All of a registry, in this module and below; saved: what state dicts hold alone."""
        for path, module in self._named_modules(prefix):
            unsaved = module.__dict__.get("_unsaved", ()) if saved and registry == "_buffers" else ()
            for name, tensor in module.__dict__[registry].items():
                if tensor is not None and name not in unsaved:
                    yield f"{path}.{name}" if path else name, tensor

    def apply(self, function: Callable[["Module"], Any]) -> "Module":
        """Calls function(module) for every module below, children first, and for this one."""
        for module in self.children():
            module.apply(function)
        function(self)
        return self

    # -- modes, gradients, places ---------------------------------------------------------------------

    def train(self, mode: bool = True) -> "Module":
        """Training mode (or evaluation mode) for this module and all below it."""
        for module in self.modules():
            object.__setattr__(module, "training", bool(mode))
        return self

    def eval(self) -> "Module":
        """Evaluation mode: dropout passes through, batch norm uses its running statistics."""
        return self.train(False)

    def requires_grad_(self, on: bool = True) -> "Module":
        for parameter in self.parameters():
            parameter.requires_grad_(on)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients; with set_to_none=False they become zeros instead."""
        for parameter in self.parameters():
            forget_grad(parameter, set_to_none)

    def to(self, *targets: str | None, dtype: str | None = None, device: str | None = None) -> "Module":
        """Converts or moves parameters and buffers: to("float64"), to(device="cuda").

        Only floating tensors are converted. The parameters are new objects afterwards: make the
        optimizer after this call. Gradients are dropped.
        """
        for target in targets:
            if target in _FLOATING:
                dtype = target
            elif target is not None:
                device = target
        if dtype is not None and dtype not in _FLOATING:
            raise ValueError(f"a module can be converted to {', '.join(_FLOATING)}, not to {dtype}")
        moved: dict[int, Tensor] = {}
        for module in self.modules():
            for registry in (module._parameters, module._buffers):
                for name, tensor in registry.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in moved:
                        moved[id(tensor)] = module._moved(name, tensor, dtype, device)
                    registry[name] = moved[id(tensor)]
        return self

    def _moved(self, name: str, tensor: Tensor, dtype: str | None, device: str | None) -> Tensor:
        result = tensor.detach()
        if device is not None:
            result = result.to(device=device)
        if dtype is not None and tensor.dtype in _FLOATING:
            result = result.to(dtype=dtype)
        if result.dtype == tensor.dtype and result.device == tensor.device:
            return tensor
        return Parameter(result, tensor.requires_grad) if isinstance(tensor, Parameter) else Buffer(result)

    def float(self) -> "Module":
        return self.to("float32")

    def double(self) -> "Module":
        return self.to("float64")

    def half(self) -> "Module":
        return self.to("float16")

    def bfloat16(self) -> "Module":
        return self.to("bfloat16")

    def cpu(self) -> "Module":
        return self.to(device="cpu")

    def cuda(self) -> "Module":
        return self.to(device="cuda")

    # -- state ------------------------------------------------------------------------------------

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Names and values in PyTorch's order: each module's parameters, then its buffers, then its
        children. The tensors share memory with the module's."""
        state: dict[str, Tensor] = {}
        self._collect(state, prefix)
        return state

    def _collect(self, state: dict[str, Tensor], prefix: str) -> None:
        for registry in (self._parameters, self._buffers):
            for name, tensor in registry.items():
                if tensor is not None and not (registry is self._buffers and name in self.__dict__.get("_unsaved", ())):
                    state[prefix + name] = tensor.detach()
        for name, module in self._modules.items():
            if module is not None:
                module._collect(state, f"{prefix}{name}.")

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadReport:
        """Copies values by name into parameters and buffers.

        state: names to tensors or NumPy arrays; dtypes are converted.
        strict: names that are missing or unexpected are an error. (The counters of batch norm may be
            missing: files older than PyTorch 0.4.1 lack them.)

        Raises ValueError for a shape that differs, naming the key and both shapes, and KeyError where
        strict is not kept. Nothing is changed then.
        """
        targets = {**dict(self._named("_parameters", "")), **dict(self._named("_buffers", "", saved=True))}
        report = LoadReport([name for name in state if name in targets],
                            [name for name in targets if name not in state],
                            [str(name) for name in state if name not in targets])
        wrong = []
        for name in report.loaded:
            shape = getattr(state[name], "shape", None)
            shape = np.shape(state[name]) if shape is None else tuple(shape)
            if shape != tuple(targets[name].shape):
                wrong.append(f"{name}: the model has {tuple(targets[name].shape)}, the given state {shape}")
        if wrong:
            raise ValueError(f"{type(self).__name__}: shapes differ, so these are weights of another "
                             f"architecture or configuration: {_some(wrong)}")
        if strict:
            absent = [name for name in report.missing if name.rpartition(".")[2] != "num_batches_tracked"]
            if absent or report.unexpected:
                parts = [f"{kind}: {_some(names)}" for kind, names in
                         (("missing", absent), ("unexpected", report.unexpected)) if names]
                raise KeyError(f"{type(self).__name__}: the names differ ({'; '.join(parts)}); "
                               "strict=False takes those that fit")
        for name in report.loaded:
            value = state[name]
            targets[name].detach().copy_(value.detach() if hasattr(value, "detach") else value)
        return report

    # -- calls and text ---------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """forward(), between the hooks that were registered."""
        hooks = self.__dict__.get("_hooks")
        return self.forward(*args, **kwargs) if not hooks else hooks.call(self, args, kwargs)

    def register_forward_pre_hook(self, hook: Callable[..., Any], *, prepend: bool = False,
                                  with_kwargs: bool = False) -> RemovableHandle:
        """Calls hook(module, args) before forward(); what it returns, if not None, replaces the positional
        arguments (one value that is no tuple: the only one).

        prepend: before the hooks that are there, not after them. with_kwargs: hook(module, args, kwargs),
        which returns None or (args, kwargs). The handle's remove() takes the hook away.
        """
        return self._own_hooks().add_before(hook, prepend, with_kwargs)

    def register_forward_hook(self, hook: Callable[..., Any], *, prepend: bool = False,
                              with_kwargs: bool = False) -> RemovableHandle:
        """Calls hook(module, args, output) after forward(); what it returns, if not None, replaces the output.

        prepend: before the hooks that are there, not after them. with_kwargs: hook(module, args, kwargs,
        output). The handle's remove() takes the hook away. A convolution or batch norm with a hook is not
        folded in evaluation.
        """
        return self._own_hooks().add_after(hook, prepend, with_kwargs)

    def has_hooks(self) -> bool:
        """Whether calling the module is more than its forward()."""
        return bool(self.__dict__.get("_hooks"))

    def _own_hooks(self) -> Hooks:
        if "_modules" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__}: call super().__init__() before registering a hook")
        return self.__dict__.setdefault("_hooks", Hooks())

    # -- copies -------------------------------------------------------------------------------------

    def __copy__(self) -> "Module":
        """Another module with the same parameters and children: what is set on one is not set on the other."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update({name: dict(value) if name in ("_parameters", "_buffers", "_modules") else copy.copy(value) if name == "_hooks" else value
                              for name, value in self.__dict__.items()})
        return twin

    def extra_repr(self) -> str:
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): " + repr(module).replace("\n", "\n  ") for name, module in self._modules.items()]
        head = f"{type(self).__name__}({self.extra_repr()}"
        return head + ("\n  " + "\n  ".join(lines) + "\n" if lines else "") + ")"


class Sequential(Module):
    """Modules called one after the other: Sequential(a, b, ...) or Sequential({"name": a, ...}).

    net[i] is a module, net[a:b] a Sequential of those, under the same names.
    """

    def __init__(self, *modules: Any):
        super().__init__()
        named = modules[0].items() if len(modules) == 1 and isinstance(modules[0], Mapping) else enumerate(modules)
        for name, module in named:
            self.add_module(str(name), module)

    def forward(self, x: Any) -> Any:
        for module in self._modules.values():
            x = module(x)
        return x

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    @overload
    def __getitem__(self, i: int) -> Module: ...
    @overload
    def __getitem__(self, i: slice) -> "Sequential": ...

    def __getitem__(self, i: int | slice) -> Module:
        if isinstance(i, slice):
            return Sequential(dict(list(self._modules.items())[i]))
        return list(self._modules.values())[i]

    def append(self, module: Module) -> "Sequential":
        """One more module at the end, named by its place."""
        self.add_module(str(len(self._modules)), module)
        return self


class ModuleList(Module):
    """A list of modules, named by their places. modules[i] is one, modules[a:b] a ModuleList."""

    def __init__(self, modules: Any = ()):
        super().__init__()
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> "ModuleList":
        """One more module at the end."""
        self.add_module(str(len(self._modules)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> "ModuleList":
        """More modules at the end."""
        for module in modules:
            self.append(module)
        return self

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    @overload
    def __getitem__(self, i: int) -> Module: ...
    @overload
    def __getitem__(self, i: slice) -> "ModuleList": ...

    def __getitem__(self, i: int | slice) -> Module:
        if isinstance(i, slice):
            return ModuleList(list(self._modules.values())[i])
        return list(self._modules.values())[i]


class ModuleDict(Module):
    """Modules by name, reached by index and, where the name allows it, as attributes."""

    def __init__(self, modules: Mapping[str, Module] | None = None):
        super().__init__()
        for name, module in (modules or {}).items():
            self.add_module(name, module)

    def __getitem__(self, name: str) -> Module:
        try:
            return self._modules[name]
        except KeyError:
            raise KeyError(f"there is no module {name!r} (there is: {', '.join(self._modules)})") from None

    def __setitem__(self, name: str, module: Module) -> None:
        self.add_module(name, module)

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def update(self, modules: Mapping[str, Module]) -> None:
        """Adds modules by name, or puts them in the place of those that have the name."""
        for name, module in modules.items():
            self.add_module(name, module)

    def keys(self) -> Any:
        return self._modules.keys()

    def values(self) -> Any:
        return self._modules.values()

    def items(self) -> Any:
        return self._modules.items()


def _once(pairs: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    for name, item in pairs:
        if id(item) not in seen:
            seen.add(id(item))
            yield name, item


def _some(items: list[str]) -> str:
    return "; ".join(items[:6]) + (f"; and {len(items) - 6} more" if len(items) > 6 else "")
