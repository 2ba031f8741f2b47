"""The public API: every name is where it is said to be, says what it does, and costs nothing to import."""

import builtins
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import asenpp

# Module -> the names that users import from it: what docs/api.md lists.
PUBLIC = {
    "asenpp": "Tensor tensor from_numpy zeros ones randn arange cat stack no_grad manual_seed set_num_threads memory_stats "
              "load_config build_model load save cuda nn optim models transforms metrics engine",
    "asenpp.cuda": "is_available",
    "asenpp.nn": "Module Parameter Sequential ModuleDict Conv2d BatchNorm2d Linear Embedding Dropout functional",
    "asenpp.nn.functional": "conv2d batch_norm relu tanh sigmoid softmax max_pool2d adaptive_avg_pool2d linear "
                            "cross_entropy cosine_similarity margin_ranking_loss normalize dropout",
    "asenpp.optim": "SGD Adam AdamW lr_scheduler",
    "asenpp.optim.lr_scheduler": "StepLR CosineAnnealingLR",
    "asenpp.models": "ASEN StyleClassification ArcStyleClassification resnet18 resnet34 resnet50",
    "asenpp.transforms": "GlobalTransform LocalTransform",
    "asenpp.metrics": "average_precision mean_average_precision classification_report",
    "asenpp.engine": "train evaluate",
}
METHODS = {
    "asenpp.Tensor": "numpy __array__ __dlpack__ shape dtype device grad backward detach to "
                     "__add__ __sub__ __mul__ __truediv__ __neg__ __pow__ __matmul__ __getitem__",
    "asenpp.nn.Module": "state_dict load_state_dict train eval to",
    "asenpp.optim.Optimizer": "step zero_grad state_dict load_state_dict",
}
# Parameters that a call must take by these names.
PARAMETERS = {
    "asenpp.load_config": ("opts",),
    "asenpp.build_model": ("cfg",),
    "asenpp.load": ("path",),
    "asenpp.save": ("obj", "path"),
    "asenpp.transforms.GlobalTransform": ("cfg",),
    "asenpp.transforms.GlobalTransform.__call__": ("image",),
    "asenpp.transforms.LocalTransform": ("cfg",),
    "asenpp.transforms.LocalTransform.__call__": ("image", "attention_map"),
    "asenpp.metrics.mean_average_precision": ("queries", "candidates", "q_values", "c_values"),
    "asenpp.engine.train": ("cfg",),
    "asenpp.engine.evaluate": ("cfg",),
}
NAMES = [(module, name) for module, names in PUBLIC.items() for name in names.split()]
# With what the modules offer beyond that list.
OFFERED = sorted({(module, name) for module in PUBLIC for name in importlib.import_module(module).__all__
                  if name != "__version__"} | set(NAMES))


def find(path):
    """The object of a dotted path: modules first, then attributes."""
    parts = path.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for name in parts[n:]:
            value = getattr(value, name)
        return value
    raise ModuleNotFoundError(path)


@pytest.mark.parametrize("module, name", NAMES, ids=[".".join(pair) for pair in NAMES])
def test_names_are_where_they_are_said_to_be(module, name):
    """`from module import name` works, and `import *` brings it."""
    scope = {}
    exec(f"from {module} import {name}", scope)
    assert scope[name] is not None
    assert name in find(module).__all__


def own_doc(value):
    """The docstring written for it: a class's does not come from its base."""
    return (vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__) or ""


@pytest.mark.parametrize("module, name", OFFERED, ids=[".".join(pair) for pair in OFFERED])
def test_what_is_public_has_a_docstring(module, name):
    """Modules, classes and functions."""
    assert own_doc(getattr(find(module), name)).strip()


@pytest.mark.parametrize("path, name", [(p, n) for p, names in METHODS.items() for n in names.split()],
                         ids=lambda v: v)
def test_methods_are_there_and_say_what_they_do(path, name):
    """The methods and properties that users call; special methods have Python's own docstrings or none."""
    value = getattr(find(path), name)
    assert name.startswith("__") or own_doc(value).strip()


def calls_of(value):
    """What can be called on a public object: itself, or a class's own public methods."""
    if inspect.isfunction(value):
        return [value]
    if not inspect.isclass(value) or not value.__module__.startswith("asenpp") or value is asenpp.Tensor:
        return []
    found = [f.__func__ if isinstance(f, (staticmethod, classmethod)) else f.fget if isinstance(f, property) else f
             for n, f in vars(value).items() if not n.startswith("_") or n in ("__init__", "__call__")]
    return [f for f in found if inspect.isfunction(f) and f.__module__.startswith("asenpp")]


def is_annotated(function):
    """Every parameter and the result; the result of __init__ is known."""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    return all(p.annotation is not p.empty for p in parameters) and \
        (signature.return_annotation is not signature.empty or function.__name__ == "__init__")


@pytest.mark.parametrize("module, name", OFFERED, ids=[".".join(pair) for pair in OFFERED])
def test_what_is_public_is_annotated(module, name):
    """py.typed promises annotations: functions, and the public methods of classes."""
    without = [f.__qualname__ for f in calls_of(getattr(find(module), name)) if not is_annotated(f)]
    assert not without, f"not annotated: {without}"


@pytest.mark.parametrize("path", PARAMETERS)
def test_parameters_have_their_names(path):
    """What users may write as keywords."""
    assert set(PARAMETERS[path]) <= set(inspect.signature(find(path)).parameters)


def test_dir_shows_what_was_not_loaded_yet():
    """For completion in notebooks."""
    assert set(PUBLIC["asenpp"].split()) <= set(dir(asenpp))


def test_a_name_that_is_not_there_is_named():
    """The lazy package answers like any module."""
    with pytest.raises(AttributeError, match="'asenpp' has no attribute 'zeroes'"):
        asenpp.zeroes
    with pytest.raises(ImportError, match="zeroes"):
        exec("from asenpp import zeroes")


def modules_after(code):
    """The modules that a new process has loaded after the code."""
    package = str(Path(asenpp.__file__).parent.parent)
    run = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {package!r}); {code}; print(*sys.modules)"],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return {name.partition(".")[0] for name in run.stdout.split()} | set(run.stdout.split())


def test_importing_asenpp_imports_little():
    """Not PyTorch, not matplotlib, not Pillow, not tqdm; not even the C core."""
    loaded = modules_after("import asenpp")
    assert "asenpp" in loaded
    assert not loaded & {"torch", "matplotlib", "PIL", "tqdm", "numpy", "cv2", "sklearn", "asenpp._asen"}


def test_using_every_public_name_imports_neither_torch_nor_matplotlib():
    """PyTorch is for tests only, drawing for those who draw."""
    uses = "; ".join(f"from {module} import {name}" for module, name in OFFERED)
    loaded = modules_after(uses)
    assert "asenpp._asen" in loaded and "asenpp.engine.training" in loaded
    assert not loaded & {"torch", "matplotlib", "cv2", "sklearn"}


def test_the_package_says_that_it_is_typed():
    """py.typed and the stub lie beside the module's sources."""
    source = Path(__file__).resolve().parent.parent / "asenpp"
    assert (source / "py.typed").exists() and (source / "_asen.pyi").exists()


def test_stub_of_the_package_names_what_the_package_offers():
    """asenpp/__init__.pyi, which type checkers read instead of the lazy __getattr__, offers the same names."""
    import ast

    from pathlib import Path

    tree = ast.parse(Path(asenpp.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    names = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname for alias in node.names if alias.asname}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    assert names - {"__all__"} == {"__version__", *asenpp._PUBLIC}
    assert set(asenpp._PUBLIC) - set(asenpp.__all__) == set(asenpp._SHADOWS) & set(dir(builtins))
