"""The type stub asenpp/_asen.pyi against the module it describes: it is what scripts/make_stubs.py
writes, names what is there and nothing else, and its signatures are called as they stand: by name, by
position, with defaults left out and written out."""

import ast
import importlib.util
import inspect
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from op_samples import Sample, samples_of

import asenpp
from asenpp import _asen
from asenpp._asen import Tensor
from asenpp.composed import Extrema

ROOT = Path(__file__).resolve().parent.parent
STUB = ROOT / "asenpp" / "_asen.pyi"
COMMAND = "make dev && python scripts/make_stubs.py"
SPECS = {spec["name"]: spec for spec in _asen.op_specs()}

# ---- the stub, parsed ----


def signature_of(function):
    """The ast of a definition as an inspect.Signature; defaults written `...` stay Ellipsis."""
    a = function.args
    parameters = []
    positional = a.posonlyargs + a.args
    defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults
    for i, (arg, default) in enumerate(zip(positional, defaults)):
        kind = inspect.Parameter.POSITIONAL_ONLY if i < len(a.posonlyargs) else inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters.append((arg, kind, default))
    if a.vararg:
        parameters.append((a.vararg, inspect.Parameter.VAR_POSITIONAL, None))
    parameters += [(arg, inspect.Parameter.KEYWORD_ONLY, d) for arg, d in zip(a.kwonlyargs, a.kw_defaults)]
    return inspect.Signature(
        [inspect.Parameter(arg.arg, kind, annotation=arg.annotation,
                           default=inspect.Parameter.empty if default is None else ast.literal_eval(default))
         for arg, kind, default in parameters], return_annotation=function.returns)


def definitions(body):
    """Name -> signatures; annotated names and properties have none."""
    result = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            decorators = [ast.unparse(d) for d in node.decorator_list]
            plain = not any(d == "property" or d.endswith(".setter") for d in decorators)
            result.setdefault(node.name, []).extend([signature_of(node)] if plain else [])
        elif isinstance(node, ast.AnnAssign) and not node.target.id.startswith("_") or \
                isinstance(node, ast.AnnAssign) and node.target.id.startswith("__"):
            result[node.target.id] = []
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            result[node.name] = []
    return result


TREE = ast.parse(STUB.read_text(encoding="utf-8"))
FUNCTIONS = definitions(TREE.body)
METHODS = definitions(next(n for n in TREE.body if isinstance(n, ast.ClassDef) and n.name == "Tensor").body)


def fits(value, annotation):
    """Whether a value is of the annotated type, as far as the stub's annotations go."""
    text = ast.unparse(annotation)
    if isinstance(annotation, ast.BinOp):
        return fits(value, annotation.left) or fits(value, annotation.right)
    if isinstance(annotation, ast.Subscript):
        outer = ast.unparse(annotation.value)
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if outer == "tuple" and ast.unparse(inner[-1]) != "...":
            return isinstance(value, tuple) and len(value) == len(inner) and all(map(fits, value, inner))
        if outer in ("tuple", "list"):
            return isinstance(value, (tuple if outer == "tuple" else list)) and all(fits(v, inner[0]) for v in value)
        if outer == "dict":
            return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
        return {"NDArray": lambda: isinstance(value, np.ndarray),
                "Iterator": lambda: all(fits(v, inner[0]) for v in value)}[outer]()
    if text == "CapsuleType":
        return type(value).__name__ == "PyCapsule"
    if text == "_YamlNode":
        return isinstance(value, tuple) and len(value) == 3
    if text in ("Any", "None"):
        return text == "Any" or value is None
    return type(value) is {"int": int, "bool": bool, "str": str, "bytearray": bytearray, "bytes": bytes, "float": float, "Extrema": Extrema,
                           "Tensor": Tensor, "Self": Tensor}[text.removeprefix("builtins.")]


# ---- the text and the names ----


def test_the_stub_is_up_to_date(tmp_path):
    """The committed stub is what the script writes for the built module."""
    target = tmp_path / "_asen.pyi"
    package = Path(_asen.__file__).parent.parent
    code = ("import runpy, sys; sys.path.insert(0, sys.argv[3]); import asenpp._asen; sys.argv = sys.argv[1:3]; "
            "runpy.run_path(sys.argv[0], run_name='__main__')")
    run = subprocess.run([sys.executable, "-c", code, ROOT / "scripts" / "make_stubs.py", target, package],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    new, old = target.read_text(encoding="utf-8").splitlines(), STUB.read_text(encoding="utf-8").splitlines()
    changed = [line for line in new if line not in set(old)] or [line for line in old if line not in set(new)]
    assert new == old, f"asenpp/_asen.pyi is out of date ({changed[:3]} …): run `{COMMAND}`"


def test_the_stub_names_what_the_module_has():
    """Both ways: every public name of the module, and nothing that is not there."""
    there = {n for n in dir(_asen) if not n.startswith("_")}
    assert set(FUNCTIONS) == there, f"{sorted(set(FUNCTIONS) ^ there)}: run `{COMMAND}`"


def test_the_stub_names_what_a_tensor_has():
    """Both ways, with the special methods that the type defines itself. __rpow__ is there only because
    C has one slot for both (it always declines); __iter__ is made of __len__ and __getitem__; the text
    and the name of the type need no stub. __delitem__ shares the slot of __setitem__, and refuses."""
    there = set(vars(Tensor)) - {"__rpow__", "__delitem__", "__doc__", "__module__", "__repr__"}
    assert set(METHODS) - {"__iter__"} == there, f"{sorted(set(METHODS) ^ there)}: run `{COMMAND}`"
    with pytest.raises(TypeError, match="unsupported operand"):
        2 ** Tensor([1.0])
    with pytest.raises(TypeError, match="deleted"):
        del Tensor([1.0])[0]


@pytest.mark.parametrize("owner", [_asen, Tensor], ids=["module", "Tensor"])
def test_every_public_name_has_a_docstring(owner):
    """Ops, and what was written by hand."""
    without = [n for n in dir(owner) if not n.startswith("_") and not (getattr(owner, n).__doc__ or "").strip()]
    assert not without
    assert {n for n, s in SPECS.items() if owner is _asen or s["method"]} <= set(dir(owner))  # so the ops were among them
    assert not [n for n, spec in SPECS.items() if not spec["doc"].strip()]


def test_stubtest_agrees(tmp_path):
    """mypy's own comparison of the stub with the module; what it may say is in the test above, and that
    the class is a `disjoint base`, which only newer type checkers know."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    allowed = tmp_path / "allowed"
    allowed.write_text("asenpp._asen.Tensor\nasenpp._asen.Tensor.__rpow__\nasenpp._asen.Tensor.__delitem__\nasenpp._asen.Tensor.__iter__\n")
    package = Path(asenpp.__file__).parent.parent
    if not (package / "asenpp" / "_asen.pyi").exists():
        pytest.skip(f"the package under test, in {package}, has no stub beside it")
    config = tmp_path / "mypy.ini"  # the stub of the package leads mypy into all of it; only _asen is asked about
    config.write_text("[mypy]\n[mypy-asenpp.*]\nignore_errors = True\n[mypy-asenpp._asen]\nignore_errors = False\n")
    run = subprocess.run([sys.executable, "-m", "mypy.stubtest", "asenpp._asen", "--allowlist", allowed,
                          "--mypy-config-file", config, "--ignore-unused-allowlist"], cwd=package, capture_output=True, text=True,
                         env={**os.environ, "MYPY_CACHE_DIR": str(tmp_path / "cache")})
    assert run.returncode == 0, run.stdout + run.stderr


# ---- ops ----

# Calls of the rows that have no samples of their own.
CALLS = {
    "max_pool2d_grad": "dy[1,2,2,2] index[1,2,2,2]i16 size=4,4 kernel_size=2 stride=2",
    "batch_norm_grad": "dy[4,3,2,2] x[4,3,2,2] y[4,3,2,2] weight[3] mean[1,3] invstd[1,3]p training=1 | "
                       "dy[4,3,2,2] x[4,3,2,2] y[4,3,2,2] weight[3] mean[2,3] invstd[2,3]p training=1 groups=2 residual=1",
    "cosine_similarity_grad": "dy[4] a[4,5] b[4,5] y[4] norm_a[4]p norm_b[4]p",
    "normalize_grad": "dy[4,5] y[4,5] norm[4]p",
    "spatial_attention_grad": "dv[2,6] x[2,6,4,5] q[2,3] m[2,4,5]p k[2,3,4,5] | "
                              "dv[2,6] dm[2,4,5] x[2,6,4,5] q[2,3] m[2,4,5]p k[2,3,4,5]",
    "arc_margin_grad": "dy[4,3] cosine[4,3]u target[4]i3 s=10 m=0.5",
}


def fresh(sample):
    """Tensors of the sample's arrays; the index of a pooling is int32."""
    arrays = [None if a is None else a.astype(np.int32) if sample.name == "max_pool2d_grad" and a.dtype == np.int64
              else a.copy() for a in sample.arrays]
    return [None if a is None else _asen.from_numpy(np.asarray(a)) for a in arrays]


def op_calls(sample, signature, method):
    """Ways to call the op as this signature says, each (args, kwargs) with new tensors; none where the
    signature is for other attributes than the sample's."""
    names = list(signature.parameters)
    several = [p.name for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL]
    attrs = dict(sample.attrs)
    if "dim" in names and "dims" in attrs:
        attrs["dim"] = attrs.pop("dims")

    def arguments():
        tensors = fresh(sample)
        if sample.variadic:
            args, kwargs = ([tensors[0], tensors[1:]] if method else [tensors]), {}
        elif several:
            args, kwargs = tensors, {}
        else:
            args = tensors[:1] if method else []
            kwargs = dict(zip(sample.inputs[len(args):], tensors[len(args):]))
        if several:
            return [*args, *attrs.get(several[0], ())], {n: v for n, v in attrs.items() if n != several[0]}
        return args, {**kwargs, **attrs}

    def by_position(defaults):
        args, kwargs = arguments()
        bound = signature.bind(*args, **kwargs)
        if defaults:
            bound.apply_defaults()
            for name in [n for n, v in bound.arguments.items() if v is ...]:
                del bound.arguments[name]
        return bound.args, bound.kwargs

    try:
        signature.bind(*arguments()[0], **arguments()[1])
    except TypeError:
        return
    yield arguments()
    yield by_position(False)
    yield by_position(True)


def tensors_in(*values):
    """The tensors among values, lists and tuples of them, in their order."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(*value)


def arrays_of(*values):
    return [t.detach().numpy() for t in tensors_in(*values)]


def test_internals_are_no_methods():
    """Gradients, and what stands behind other methods, are functions of the core alone."""
    internal = {n for n, s in SPECS.items() if not s["method"]}
    assert {n for n in SPECS if "_grad" in n} | {"normalize_pixels", "conv2d_fused", "compare"} <= internal
    composed = {n for n in internal if hasattr(Tensor, n)}  # by another function: of the same name, PyTorch's meaning
    assert composed == {"add", "sub", "mul", "div", "where", "max", "sort", "gather"}


@pytest.mark.parametrize("name, method", [(n, m) for m in (False, True) for n in SPECS if SPECS[n]["method"] or not m],
                         ids=lambda v: v if isinstance(v, str) else "method" if v else "function")
def test_ops_are_called_as_the_stub_says(name, method):
    """Every signature of the stub is met by a sample of the row; called with names, by position, and
    with all defaults written out, it gives what apply() gives and leaves its inputs as that does (running
    statistics move), and the number of outputs is the stub's."""
    signatures = (METHODS if method else FUNCTIONS)[name]
    function = getattr(Tensor if method else _asen, name)
    spec = SPECS[name]
    samples = samples_of(spec) or [Sample(spec, text) for text in CALLS[name].split("|")]
    met = set()
    for sample in samples:
        inputs = fresh(sample)
        expected = arrays_of(_asen.apply(name, inputs, sample.attrs), inputs)
        calls = [(i, call) for i, s in enumerate(signatures) for call in op_calls(sample, s, method)]
        assert calls, f"no signature of the stub takes {name}: {sample.text}"
        for i, (args, kwargs) in calls:
            result = function(*args, **kwargs)
            assert fits(result, signatures[i].return_annotation), (sample.text, signatures[i])
            for got, want in zip(arrays_of(result, args, list(kwargs.values())), expected, strict=True):
                np.testing.assert_array_equal(got, want, err_msg=f"{name}: {sample.text}: {kwargs}")
            met.add(i)
    assert met == set(range(len(signatures))), f"{name}: no sample for {[signatures[i] for i in set(range(len(signatures))) - met]}"


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_numbers_where_the_stub_allows_them(name):
    """The inputs of which the stub says `Tensor | float`, and only these ops."""
    number = {n for n in SPECS for s in FUNCTIONS[n] for p in s.parameters.values()
              if ast.unparse(p.annotation) == "Tensor | float"}
    assert number == {"add", "sub", "mul", "div"}
    function = getattr(_asen, name)
    x, two = _asen.from_numpy(np.array([1.0, 4.0])), _asen.from_numpy(np.array(2.0))
    np.testing.assert_array_equal(function(x, 2.0).numpy(), function(x, two).numpy())
    np.testing.assert_array_equal(function(2, x).numpy(), function(two, x).numpy())


# ---- what was written by hand ----


def tensor(*shape, dtype=np.float32):
    return Tensor(np.arange(1, 1 + int(np.prod(shape)), dtype=dtype).reshape(shape))


def whole(*shape):
    return tensor(*shape, dtype=np.int64)


def mask():
    return tensor(2) > 1


def jpeg():
    data = io.BytesIO()
    Image.fromarray(pixels()).save(data, "JPEG")
    return data.getvalue()


def pixels():
    return np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)


def ramp():
    return np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)


def floats(*shape):
    return np.zeros(shape, np.float32)


THREE = (0.5, 0.5, 0.5)


def optimizer(kind):
    return [kind, [tensor(3)], [tensor(3)], [tensor(3)], [tensor(3)], 2, 0.1]


# One call a name (or several), by position: new arguments each time.
METHOD_CALLS = {
    "__new__": [lambda: (Tensor, [1.0, 2.0])],
    "numpy": [lambda: (tensor(2),)],
    "item": [lambda: (tensor(1),)],
    "tolist": [lambda: (tensor(2, 2),)],
    "to": [lambda: (tensor(2), "float64"), lambda: (tensor(2), None, "int64", "cpu"), lambda: (tensor(2),)],
    "float": [lambda: (tensor(2),)],
    "double": [lambda: (tensor(2),)],
    **{name: [lambda: (tensor(2),)] for name in ("long", "half", "int", "bool")},
    "bfloat16": [lambda: (tensor(2),)],
    "clone": [lambda: (tensor(2),)],
    "contiguous": [lambda: (tensor(2),)],
    "is_contiguous": [lambda: (tensor(2),)],
    "detach": [lambda: (tensor(2),)],
    "copy_": [lambda: (tensor(2), [3.0, 4.0]), lambda: (tensor(2), tensor(1))],
    "fill_": [lambda: (tensor(2), 3.0)],
    "zero_": [lambda: (tensor(2),)],
    "backward": [lambda: (tensor(1).requires_grad_(),), lambda: (tensor(2).requires_grad_(), tensor(2), True)],
    "requires_grad_": [lambda: (tensor(2),), lambda: (tensor(2), False)],
    "size": [lambda: (tensor(2, 3),), lambda: (tensor(2, 3), -1)],
    "stride": [lambda: (tensor(2, 3),)],
    "storage_offset": [lambda: (tensor(2, 3)[1],)],
    "numel": [lambda: (tensor(2, 3),)],
    "data_ptr": [lambda: (tensor(2, 3),)],
    "view": [lambda: (tensor(2, 3), (3, 2)), lambda: (tensor(2, 3), 3, 2)],
    "flatten": [lambda: (tensor(2, 3),), lambda: (tensor(2, 3, 4), 1)],
    "unsqueeze": [lambda: (tensor(2, 3), 0)],
    "squeeze": [lambda: (tensor(1, 3),), lambda: (tensor(1, 3), 0)],
    "transpose": [lambda: (tensor(2, 3), 0, 1)],
    "t": [lambda: (tensor(2, 3),)],
    "__array__": [lambda: (tensor(2), "float64", True), lambda: (tensor(2),)],
    "__dlpack__": [lambda: (tensor(2),)],
    "__dlpack_device__": [lambda: (tensor(2),)],
    "__len__": [lambda: (tensor(2),)],
    "__getitem__": [lambda: (tensor(2, 3), 0), lambda: (tensor(2, 3), (None, ..., slice(0, 2))),
                    lambda: (tensor(2, 3), tensor(2, dtype=np.int64) - 1)],
    "__bool__": [lambda: (tensor(1),)],
    "__float__": [lambda: (tensor(1),)],
    "__int__": [lambda: (tensor(1),)],
    "__neg__": [lambda: (tensor(2),)],
    "__matmul__": [lambda: (tensor(2, 3), tensor(3, 2))],
    "__rmatmul__": [lambda: (tensor(2, 3), tensor(3, 2))],
    "__pow__": [lambda: (tensor(2), 2.0)],
    **{name: [lambda: (tensor(2), tensor(2)), lambda: (tensor(2), 2.0)]
       for side in ("", "r") for name in (f"__{side}add__", f"__{side}sub__", f"__{side}mul__", f"__{side}truediv__")},
    **{f"__{side}mod__": [lambda: (whole(2), whole(2)), lambda: (whole(2), 2)] for side in ("", "r")},
    **{f"__{side}floordiv__": [lambda: (whole(2), whole(2)), lambda: (whole(2), 2)] for side in ("", "r")},
    **{f"__{side}{name}__": [lambda: (mask(), mask()), lambda: (mask(), True)] for side in ("", "r") for name in ("and", "or", "xor")},
    **{f"__i{name}__": [lambda: (tensor(2), tensor(2)), lambda: (tensor(2), 2.0)] for name in ("add", "sub", "mul", "truediv")},
    **{f"__i{name}__": [lambda: (mask(), mask()), lambda: (mask(), True)] for name in ("and", "or", "xor")},
    "__ifloordiv__": [lambda: (whole(2), whole(2)), lambda: (whole(2), 2)],
    **{f"{name}_": [lambda: (tensor(2), tensor(2)), lambda: (tensor(2), 2.0)] for name in ("add", "sub", "mul", "div")},
    **{f"{name}_": [lambda: (tensor(2),)] for name in ("neg", "exp", "sqrt", "tanh", "sigmoid", "relu")},
    "clamp_": [lambda: (tensor(2), 0.5, 1.5)],
    "masked_fill_": [lambda: (tensor(2), mask(), 3.0)],
    "__invert__": [lambda: (mask(),)],
    **{f"__{name}__": [lambda: (tensor(2), tensor(2)), lambda: (tensor(2), 1.5)] for name in ("lt", "le", "eq", "ne", "gt", "ge")},
    "__hash__": [lambda: (tensor(2),)],
    "__setitem__": [lambda: (tensor(2, 3), 0, 1.0), lambda: (tensor(2, 3), tensor(2, 3) > 2, tensor(1))],
    # composed
    **{name: [lambda: (tensor(2), tensor(2)), lambda: (tensor(2), 2.0)]
       for name in ("add", "sub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge")},
    **{name: [lambda: (tensor(2, 3),)] for name in ("sign", "abs", "isnan", "isinf", "isfinite", "logical_not", "nonzero", "cpu",
                                                    "dim", "element_size", "is_floating_point", "__abs__", "__copy__")},
    "__deepcopy__": [lambda: (tensor(2), {})],
    "__reduce_ex__": [lambda: (tensor(2), 2)],
    "__contains__": [lambda: (tensor(2), 1.0)],
    "__format__": [lambda: (tensor(2).sum(), ".2f")],
    **{name: [lambda: (tensor(2, 3), tensor(3))] for name in ("maximum", "minimum")},
    **{name: [lambda: (tensor(2, 3),), lambda: (tensor(2, 3), 0), lambda: (tensor(2, 3), 1, True)]
       for name in ("any", "all", "amax", "amin", "max", "min", "argmax", "argmin")},
    "where": [lambda: (tensor(2), mask(), 3.0)],
    "masked_fill": [lambda: (tensor(2), mask(), 3.0)],
    **{name: [lambda: (tensor(2, 3),), lambda: (tensor(2, 3), 0, True)] for name in ("sort", "argsort")},
    "topk": [lambda: (tensor(2, 3), 2), lambda: (tensor(2, 3), 1, 0, False)],
    **{name: [lambda: (tensor(2, 3),), lambda: (tensor(2, 3), 0, False), lambda: (tensor(2, 3), (0, 1), None, True)]
       for name in ("var", "std")},
    "norm": [lambda: (tensor(2, 3),), lambda: (tensor(2, 3), 1, 0)],
    "gather": [lambda: (tensor(2, 3), 1, whole(2, 1) - 1)],
    "narrow": [lambda: (tensor(2, 3), 1, 0, 2)],
    "split": [lambda: (tensor(4), 2), lambda: (tensor(2, 3), [1, 2], 1)],
    "chunk": [lambda: (tensor(4), 2), lambda: (tensor(2, 3), 2, 1)],
    "unbind": [lambda: (tensor(2, 3),), lambda: (tensor(2, 3), 1)],
    **{name: [lambda: (tensor(6), tensor(2, 3))] for name in ("view_as", "type_as")},
    "expand_as": [lambda: (tensor(3), tensor(2, 3))],
    "new_full": [lambda: (tensor(1), (2, 3), 4.0)],
    **{name: [lambda: (tensor(1), 2, 3)] for name in ("new_zeros", "new_ones")},
}

FUNCTION_CALLS = {
    "from_numpy": [lambda: (np.zeros(3),)],
    "to_numpy_readonly": [lambda: (tensor(2, 3),)],
    "owned": [lambda: (tensor(2, 3),), lambda: (np.zeros(3),), lambda: ([1.0],)],
    "from_dlpack": [lambda: (np.zeros(3),), lambda: (np.zeros(3).__dlpack__(),)],
    "apply": [lambda: ("relu", [tensor(2)]), lambda: ("pow", (tensor(2),), {"exponent": 2.0})],
    "apply_": [lambda: ("relu", [tensor(2)]), lambda: ("pow", (tensor(2),), {"exponent": 2.0})],
    "op_specs": [lambda: ()],
    "choose": [lambda: (mask(), tensor(2), 0.0), lambda: (mask(), 1.0, tensor(2))],
    "promote": [lambda: (tensor(2), 3.0), lambda: (tensor(2), mask())],
    "full": [lambda: ((2, 3), 1.5, "float64"), lambda: ((), 7, "int64", "cpu")],
    "storage_id": [lambda: (tensor(2),)],
    "storage_bytes": [lambda: (tensor(2),)],
    "storage_view": [lambda: (tensor(2, 3), "float32", (2,)), lambda: (tensor(2, 3), "float32", (2, 2), (3, 1), 1)],
    "set_grad_enabled": [lambda: (True,)],
    "is_grad_enabled": [lambda: ()],
    "enter_mode": [lambda: ({}, int, str, 2), lambda: ({}, int, str)],
    "leave_mode": [lambda: ({}, str), lambda: ({}, str, None, None, None)],
    "set_num_threads": [lambda: (_asen.get_num_threads(),)],
    "get_num_threads": [lambda: ()],
    "memory_stats": [lambda: (), lambda: ("cpu",)],
    "reset_peak_memory": [lambda: (), lambda: ("cpu",)],
    "empty_cache": [lambda: (), lambda: ("cpu",)],
    "synchronize": [lambda: (), lambda: ("cpu",)],
    "set_kernel_paths": [lambda: ("fast", "onednn", "reference"), lambda: ("all",)],
    "dispatch_counts": [lambda: (), lambda: (False,)],
    "optim_step": [lambda: tuple(optimizer("sgd")), lambda: tuple(optimizer("adam")), lambda: tuple(optimizer("adamw")),
                   lambda: (*optimizer("sgd")[:3], None, None, 1, 0.1)],
    "unscale": [lambda: ([tensor(2, 3)], 0.5), lambda: ([], 1.0)],
    "edition": [lambda: (), lambda: (tensor(2, 3), None)],
    "packed_filters": [lambda: ()],
    "memory_info": [lambda: (), lambda: ("cpu",)],
    "parse_yaml": [lambda: (b"a: [1, b]",), lambda: (b"", "name")],
    "metrics_rank": [lambda: (np.arange(4.0), np.zeros(4, np.int64))],
    "metrics_average_precision": [lambda: (np.arange(4.0), np.arange(4) > 2)],
    "metrics_retrieval": [lambda progress=progress: (floats(2, 3), floats(4, 3), np.zeros(2, np.int64), np.zeros(4, np.int64),
                                            np.zeros((2, 6)), 1, progress) for progress in (None, print)],
    "metrics_confusion": [lambda: (np.zeros(3, np.int64), np.ones(3, np.int64), np.zeros((2, 2), np.int64))],
    "jpeg_size": [lambda: (jpeg(),)],
    "jpeg_decode": [lambda: (bytearray(jpeg()),)],
    "image_resize": [lambda: (pixels(), np.zeros((4, 3, 3), np.uint8), 8, 6),
                     lambda: (pixels(), np.zeros((4, 3, 3), np.uint8), 8, 6, 1, 2)],
    "map_resize": [lambda: (ramp(), floats(6, 8))],
    "local_box": [lambda: (ramp(), 16, 0.5, 8, 6)],
    "global_batch": [lambda: ([pixels()], [0], floats(1, 4, 4, 3), THREE, THREE)],
    "local_batch": [lambda: ([pixels()], ramp()[None], 16, 0.5, floats(1, 4, 4, 3), THREE, THREE)],
    "augment_draw": [lambda: (3, 8, 6, 4, (0.5, 0.5, 0.5, 0.5), 0, 1)],
    "augment_batch": [lambda: ([pixels()], [7], [0], floats(1, 4, 4, 3), np.zeros((1, 13)), (0.5, 0.5, 0.5, 0.5), 0, 1,
                               THREE, THREE)],
    "augment_local_batch": [lambda: ([pixels()], ramp()[None], np.ones((1, 13)), 16, 0.5, floats(1, 4, 4, 3), THREE,
                                     THREE)],
}
UNCALLED = {"load_plugin", "set_option", "__iter__", "cuda"}  # tested below, or by tests/cuda
VOLATILE = {"memory_stats", "data_ptr", "dispatch_counts", "__new__", "__hash__", "storage_id", "storage_bytes", "bfloat16",
            "__reduce_ex__", "__deepcopy__"}


def outcome(value):
    """What a call gave, or left in its arguments, to be compared."""
    if isinstance(value, Tensor):
        return outcome(value.detach().numpy())
    if isinstance(value, np.ndarray):
        return (value.dtype.name, value.tolist())
    if isinstance(value, (list, tuple)):
        return [outcome(v) for v in value]
    return type(value).__name__ if "PyCapsule" in type(value).__name__ else value


BY_HAND = [(Tensor, name) for name in METHOD_CALLS] + [(_asen, name) for name in FUNCTION_CALLS]


def test_everything_written_by_hand_is_called():
    """No signature of the script goes without a call."""
    written = {n for n, signatures in FUNCTIONS.items() if signatures and n not in SPECS}
    written |= {n for n, signatures in METHODS.items() if signatures and not (n in SPECS and SPECS[n]["method"])}
    assert written == set(METHOD_CALLS) | set(FUNCTION_CALLS) | UNCALLED


def takes(signature, args):
    """Whether these positional arguments are for this signature: `*shape` is for integers, `*names` for text."""
    try:
        bound = signature.bind(*args)
    except TypeError:
        return False
    return all({"Any", type(value).__name__.replace("NoneType", "None")} & {part.removeprefix("builtins.") for part in
               ast.unparse(p.annotation).split(" | ")} for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL
               for value in bound.arguments.get(p.name, ()))


def written_out(signature, args):
    """The arguments with all defaults that the stub states."""
    bound = signature.bind(*args)
    for p in signature.parameters.values():
        if p.default not in (p.empty, ...):
            bound.arguments.setdefault(p.name, p.default)
    bound.arguments = {n: bound.arguments[n] for n in signature.parameters if n in bound.arguments}
    return bound.args, bound.kwargs


def with_names(signature, args):
    """What can be given by name, by name."""
    parameters, positional, named = list(signature.parameters.values()), [], {}
    for i, value in enumerate(args):
        p = parameters[min(i, len(parameters) - 1)]
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in ("self", "cls"):
            named[p.name] = value
        else:
            positional.append(value)
    return positional, named


def wrong_name(signature, args):
    """The last positional-only argument by name; None where there is none."""
    at = [i for i, p in enumerate(signature.parameters.values()) if p.kind is p.POSITIONAL_ONLY and i < len(args)]
    if not at or list(signature.parameters)[at[-1]] == "self":
        return None
    i = at[-1]
    return [*args[:i], *args[i + 1:]], {list(signature.parameters)[i]: args[i]}


@pytest.mark.parametrize("owner, name", BY_HAND, ids=[name for _, name in BY_HAND])
def test_the_rest_is_called_as_the_stub_says(owner, name):
    """Each signature is met by a call; the call works by position, with names for what has names, and
    with the defaults written out, with the same outcome; it gives the annotated type; what the stub says
    is positional only cannot be given by name."""
    signatures = (METHODS if owner is Tensor else FUNCTIONS)[name]
    function = getattr(owner, name)
    met = set()

    def run(args, kwargs, signature):
        """The result, and what became of the arguments, as far as they say the same each time."""
        result = function(*args, **kwargs)
        assert fits(result, signature.return_annotation), (result, ast.unparse(signature.return_annotation))
        return (None, []) if name in VOLATILE else (outcome(result), outcome([*args, *kwargs.values()]))

    for make in (METHOD_CALLS if owner is Tensor else FUNCTION_CALLS)[name]:
        fitting = [i for i, signature in enumerate(signatures) if takes(signature, make())]
        assert fitting, f"no signature of the stub takes {make()}"
        met.update(fitting)
        for signature in (signatures[i] for i in fitting):
            result, left = run(make(), {}, signature)
            assert run(*with_names(signature, make()), signature) == (result, left)
            full_result, full_left = run(*written_out(signature, make()), signature)
            assert (full_result, full_left[:len(left)]) == (result, left)
            wrong = None if name.startswith("__") else wrong_name(signature, make())
            if wrong is not None:
                with pytest.raises(TypeError):
                    function(*wrong[0], **wrong[1])
    assert met == set(range(len(signatures))), f"no call for signatures {set(range(len(signatures))) - met} of {name}"


def test_dlpack_takes_the_named_arguments():
    """The keyword-only ones, with the defaults of the stub and with others."""
    (signature,) = METHODS["__dlpack__"]
    defaults = {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert set(defaults) == {"stream", "max_version", "dl_device", "copy"}
    assert fits(tensor(2).__dlpack__(**defaults), signature.return_annotation)
    assert fits(tensor(2).__dlpack__(max_version=(1, 0), dl_device=(1, 0), copy=True), signature.return_annotation)


def test_load_plugin_takes_a_path(tmp_path):
    """str, bytes and PathLike reach the loader, which names the missing file; an int does not."""
    for path in (tmp_path / "missing.so", str(tmp_path / "missing.so"), bytes(tmp_path / "missing.so")):
        with pytest.raises((OSError, RuntimeError, ValueError), match="missing.so"):
            _asen.load_plugin(path)
    with pytest.raises(TypeError):
        _asen.load_plugin(3)


def test_options_are_a_devices_own():
    """set_option takes (str, str, int); the CPU has none, which the error says."""
    with pytest.raises(ValueError, match="cpu has no option 'tf32'"):
        _asen.set_option("cpu", "tf32", 1)
    with pytest.raises(TypeError):
        _asen.set_option("cpu", "tf32", "1")


def test_tensors_are_iterated():
    """What __iter__ in the stub stands for: the rows."""
    assert [row.tolist() for row in tensor(2, 2)] == [[1, 2], [3, 4]]


@pytest.mark.parametrize("name, values", [("requires_grad", (True, False)), ("grad", (None, tensor(2)))])
def test_properties_are_set_as_the_stub_says(name, values):
    """The two with setters take what the stub says; the others take nothing."""
    for value in values:
        x = tensor(2).requires_grad_()
        setattr(x, name, value)
        got = getattr(x, name)
        assert got is value if not isinstance(value, Tensor) else got.tolist() == value.tolist()
    for other in ("shape", "ndim", "dtype", "device", "is_leaf"):
        with pytest.raises(AttributeError):
            setattr(tensor(2), other, 1)


def test_properties_have_the_types_of_the_stub():
    """Each property's annotation, with and without a gradient."""
    body = next(n for n in TREE.body if isinstance(n, ast.ClassDef) and n.name == "Tensor").body
    found = {n.name: n.returns for n in body if isinstance(n, ast.FunctionDef)
             and any(ast.unparse(d) == "property" for d in n.decorator_list)}
    assert set(found) == {n for n, v in vars(Tensor).items() if inspect.isgetsetdescriptor(v) or isinstance(v, property)}
    x = tensor(2, 3).requires_grad_()
    for value in (tensor(2, 3), x):
        assert all(fits(getattr(value, n), kind) for n, kind in found.items())
    x.sum().backward()
    assert fits(x.grad, found["grad"])
