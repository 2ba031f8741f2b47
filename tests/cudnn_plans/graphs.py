"""Every convolution graph that the shipped configurations build, found by running their models.

A model runs once on the CPU, in training and in inference, with a small batch; the calls of conv2d and
conv2d_fused are recorded, and the batch sizes of the configuration put in. So what is planned follows
the models: nothing about them is written down here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from op_samples import SAMPLES

ROOT = Path(__file__).resolve().parent.parent.parent
FORWARD, GRAD_INPUT, GRAD_WEIGHT = range(3)
KINDS = ("forward", "grad_input", "grad_weight")


class Graph(NamedTuple):
    """The words of conv_spec (kernels/cudnn_graph.h) but for the dtype and TF32."""

    kind: int
    n: int
    c: int
    h: int
    w: int
    o: int
    p: int
    q: int
    kh: int
    kw: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    bias: bool = False
    residual: bool = False
    relu: bool = False

    @property
    def fused(self) -> bool:
        return self.bias or self.residual or self.relu

    def words(self, dtype: int, tf32: bool) -> list[int]:
        return [self.kind, dtype, *self[1:10], *self.stride, *self.padding, *self.dilation, self.groups,
                int(self.bias), int(self.residual), int(self.relu), int(tf32)]

    def __str__(self) -> str:
        more = "".join(f" + {name}" for name in ("bias", "residual", "relu") if getattr(self, name))
        return (f"{KINDS[self.kind]}{more} x ({self.n}, {self.c}, {self.h}, {self.w}) w ({self.o}, "
                f"{self.c // self.groups}, {self.kh}, {self.kw}) stride {self.stride} padding {self.padding} "
                f"dilation {self.dilation} groups {self.groups}")


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _output(x: Any, w: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, **others: Any) -> tuple[int, ...]:
    """The shape of conv2d's result."""
    sizes = zip(x[2:], w[2:], _pair(stride), _pair(padding), _pair(dilation))
    return x[0], w[0], *((size + 2 * pad - gap * (kernel - 1) - 1) // step + 1
                         for size, kernel, step, pad, gap in sizes)


def forward(x: Any, w: Any, y: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
            **fused: bool) -> Graph:
    """The graph that the plugin makes of a call: shapes x, w, y and attributes. Where something follows
    the convolution there is a bias, of zeros if need be (kernels/cudnn_conv.c)."""
    if any(fused.values()):
        fused["bias"] = True
    return Graph(FORWARD, *x, w[0], y[2], y[3], w[2], w[3], _pair(stride), _pair(padding), _pair(dilation), groups,
                 **fused)


def gradients(graph: Graph, of_input: bool) -> list[Graph]:
    plain = graph._replace(bias=False, residual=False, relu=False)
    return [plain._replace(kind=kind) for kind in (GRAD_INPUT, GRAD_WEIGHT) if kind == GRAD_WEIGHT or of_input]


class Recorder:
    """Stands in for the two rows while a model runs: `with Recorder() as found:` gives a set of graphs.
    Zeros come out, of batch norm too, and cost nothing: shapes are what counts."""

    ROWS = ("conv2d", "conv2d_fused", "batch_norm")

    def __enter__(self) -> set[Graph]:
        import asenpp
        from asenpp import _asen

        self.core, self.rows, found = _asen, [getattr(_asen, name) for name in self.ROWS], set()

        def conv2d(x, w, bias=None, **attributes):
            y = _output(x.shape, w.shape, **attributes)
            graph = forward(x.shape, w.shape, y, **attributes, bias=bias is not None)
            found.add(graph)
            if _asen.is_grad_enabled() and w.requires_grad:
                found.update(gradients(graph, x.requires_grad))
            return asenpp.zeros(*y)

        def conv2d_fused(x, w, bias=None, residual=None, relu=False, **attributes):
            y = _output(x.shape, w.shape, **attributes)
            found.add(forward(x.shape, w.shape, y, **attributes, bias=bias is not None,
                              residual=residual is not None, relu=bool(relu)))
            return asenpp.zeros(*y)

        def batch_norm(x, *others, **attributes):
            zeros = asenpp.zeros(*x.shape, requires_grad=_asen.is_grad_enabled())
            return zeros, None, None

        for name, stand_in in zip(self.ROWS, (conv2d, conv2d_fused, batch_norm)):
            setattr(_asen, name, stand_in)
        return found

    def __exit__(self, *exception: Any) -> None:
        for name, row in zip(self.ROWS, self.rows):
            setattr(self.core, name, row)


def _images(count: int, size: int) -> Any:
    from asenpp import _asen

    return _asen.from_numpy(np.zeros((count, size, size, 3), np.float32)).permute(0, 3, 1, 2)


def _run(cfg: Any, model: Any, branch: str, batch: int, groups: int) -> None:
    images = _images(batch, cfg.INPUT.GLOBAL_SIZE if branch == "global" else cfg.INPUT.LOCAL_SIZE)
    model.attend(model.backbone(images, branch, groups), np.zeros(batch, np.int64), branch)


def _of_branch(cfg: Any, model: Any, branch: str) -> tuple[set[Graph], set[Graph]]:
    """Graphs of a training pass and of inference, with batch sizes that mean nothing."""
    import asenpp

    with Recorder() as training:
        _run(cfg, model.train(), branch, 3, 3)
    with Recorder() as inference, asenpp.no_grad():
        _run(cfg, model.eval(), branch, 1, 1)
    return training, inference


def _batches(cfg: Any) -> tuple[set[int], set[int]]:
    """Images in a training pass (triplets, the last batch too), and in one of inference: whole, and two
    of the sizes that parts of batches have."""
    batch, whole = cfg.DATA.TRAIN_BATCHSIZE, cfg.DATA.TEST_BATCHSIZE
    last = cfg.DATA.NUM_TRIPLETS % batch
    return {3 * batch} | ({3 * last} if last else set()), {whole, whole - 1, 1}


def shipped() -> dict[Graph, str]:
    """Graphs of all of config/*/, each with the first configuration that has it."""
    import asenpp

    found: dict[Graph, str] = {}
    known: dict[Any, tuple[set[Graph], set[Graph]]] = {}
    for folder in sorted(path for path in (ROOT / "config").iterdir() if path.is_dir()):
        for stage in ("s2", "s1"):          # the first has both branches, so one model serves both
            cfg = asenpp.load_config(str(folder / f"{folder.name}.yaml"), str(folder / f"{stage}.yaml"))
            model = None
            for branch in ("global", "local") if cfg.MODEL.LOCAL.ENABLE else ("global",):
                settings = cfg.MODEL[branch.upper()]
                key = (cfg.MODEL.TYPE, branch, settings.BACKBONE, settings.ATTENTION, cfg.INPUT[f"{branch.upper()}_SIZE"])
                if key not in known:
                    model = model or asenpp.build_model(cfg, pretrained=False)
                    known[key] = _of_branch(cfg, model, branch)
                for graphs, batches in zip(known[key], _batches(cfg)):
                    for graph in sorted(graphs):
                        for n in sorted(batches):
                            found.setdefault(graph._replace(n=n), f"{folder.name} {stage} {branch}")
    return found


def samples() -> dict[Graph, str]:
    """Graphs of the op tests' samples, odd shapes, groups and dilation among them."""
    found: dict[Graph, str] = {}
    for name in (name for name in SAMPLES if name.startswith("conv2d")):
        for sample in SAMPLES[name]:
            shapes = {k: tuple(map(int, v.split(","))) for k, v in re.findall(r"(\w+)\[([\d,]+)\]", sample)}
            attributes = {k: tuple(map(int, v.split(","))) for k, v in re.findall(r"(\w+)=([\d,]+)", sample)}
            attributes = {k: v if len(v) > 1 else v[0] for k, v in attributes.items()}
            found[_sample(name, shapes, attributes)] = f"sample {sample}"
    return found


def _sample(name: str, shapes: dict[str, Any], attributes: dict[str, Any]) -> Graph:
    x, w, dy = (shapes.get(k) for k in ("x", "w", "dy"))
    size, relu = attributes.pop("size", 0), bool(attributes.pop("relu", 0))
    if name == "conv2d_grad_input":
        graph = forward((dy[0], w[1] * attributes.get("groups", 1), *_pair(size)), w, dy, **attributes)
        return graph._replace(kind=GRAD_INPUT)
    if name == "conv2d_grad_weight":
        graph = forward(x, (dy[1], x[1] // attributes.get("groups", 1), *_pair(size)), dy, **attributes)
        return graph._replace(kind=GRAD_WEIGHT)
    y = _output(x, w, **attributes)
    return forward(x, w, y, **attributes, bias="bias" in shapes, residual="residual" in shapes, relu=relu)


def odd() -> dict[Graph, str]:
    """What no model here has but a user's may: depthwise, groups with stride and dilation, filters larger
    than the image, strides that skip input, few and odd channels."""
    found: dict[Graph, str] = {}
    for x, w, attributes in (
        ((2, 8, 9, 9), (8, 1, 3, 3), dict(groups=8, padding=1)),
        ((2, 8, 9, 9), (16, 1, 3, 3), dict(groups=8, padding=1, stride=2)),
        ((2, 32, 9, 9), (64, 8, 3, 3), dict(groups=4, padding=2, dilation=2)),
        ((2, 6, 9, 9), (9, 2, 3, 3), dict(groups=3, padding=(2, 1), dilation=(2, 1), stride=(2, 1))),
        ((1, 5, 11, 7), (3, 5, 3, 5), dict(padding=(4, 6))),
        ((1, 1, 1, 1), (1, 1, 1, 1), {}),
        ((3, 7, 20, 20), (5, 7, 11, 11), dict(stride=4, padding=2)),
        ((2, 33, 8, 8), (17, 33, 3, 3), dict(padding=1)),
        ((2, 64, 28, 28), (64, 64, 3, 3), dict(padding=3, dilation=3)),
        ((2, 4, 8, 8), (6, 4, 8, 8), {}),
        ((2, 4, 8, 8), (6, 4, 1, 1), dict(stride=5)),
        ((2, 4, 300, 300), (6, 4, 41, 41), dict(padding=20)),
    ):
        y = _output(x, w, **attributes)
        plain = forward(x, w, y, **attributes)
        for graph in (plain, *gradients(plain, True), forward(x, w, y, **attributes, bias=True, residual=True, relu=True)):
            found[graph] = "odd"
    return found
