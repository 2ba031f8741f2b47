"""What each op of csrc/ops/ops.def means, said in PyTorch: the other side of the parity tests.

`REFERENCE[name](tensors, attrs)` takes a list of torch tensors (None where absent) and the
attributes by name, and returns the tuple of the op's outputs. PyTorch's own op where it has one,
else the formula of the row's docstring. Gradients come from PyTorch's autograd, so a formula here
must be differentiable where ours is. Nothing of asenpp is imported here.
"""

import math

import torch
import torch.nn.functional as F

REFERENCE = {}


def op(function):
    REFERENCE[function.__name__.rstrip("_")] = function
    return function


def dims_of(attrs, x):
    dims = attrs.get("dims", ())
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    return dims or tuple(range(x.ndim))


# ---- elementwise ----

for _name in ("add", "sub", "mul", "div"):
    REFERENCE[_name] = lambda t, attrs, f=getattr(torch, _name): (f(t[0], t[1]),)
for _name in ("neg", "exp", "log", "sqrt", "relu", "tanh", "sigmoid"):
    REFERENCE[_name] = lambda t, attrs, f=getattr(torch, _name): (f(t[0]),)


@op
def pow_(t, attrs):
    return (t[0] ** attrs["exponent"],)


@op
def clamp(t, attrs):
    return (torch.clamp(t[0], attrs.get("min", -math.inf), attrs.get("max", math.inf)),)


@op
def clamp_grad(t, attrs):
    inside = (t[1] >= attrs.get("min", -math.inf)) & (t[1] <= attrs.get("max", math.inf))
    return (torch.where(inside, t[0], torch.zeros_like(t[0])),)


@op
def relu_grad(t, attrs):
    return (torch.where(t[1] > 0, t[0], torch.zeros_like(t[0])),)


@op
def copy(t, attrs):
    return (t[0].to(getattr(torch, attrs["dtype"])) if "dtype" in attrs else t[0].clone(),)


# ---- comparing and choosing ----


@op
def compare(t, attrs):
    return ((torch.lt, torch.le, torch.eq, torch.ne, torch.gt, torch.ge)[attrs["relation"]](t[0], t[1]),)


@op
def where(t, attrs):
    return (torch.where(t[0], t[1], t[2]),)


# ---- reductions ----


@op
def sum_(t, attrs):
    return (torch.sum(t[0], dims_of(attrs, t[0]), keepdim=bool(attrs.get("keepdim", 0))),)


@op
def mean(t, attrs):
    return (torch.mean(t[0], dims_of(attrs, t[0]), keepdim=bool(attrs.get("keepdim", 0))),)


@op
def max_(t, attrs):
    return (torch.amax(t[0], dims_of(attrs, t[0]), keepdim=bool(attrs.get("keepdim", 0))),)


@op
def max_grad(t, attrs):
    dy, x, y = t
    shape = [1 if d in [k % x.ndim for k in dims_of(attrs, x)] else n for d, n in enumerate(x.shape)]
    equal = (x == y.reshape(shape)).to(x.dtype)
    count = equal.sum([k % x.ndim for k in dims_of(attrs, x)], keepdim=True)
    return (torch.where(equal > 0, dy.reshape(shape) * equal / count, torch.zeros_like(x)),)


# ---- matrices ----


@op
def matmul(t, attrs):
    a = t[0].transpose(-1, -2) if attrs.get("trans_a") else t[0]
    b = t[1].transpose(-1, -2) if attrs.get("trans_b") else t[1]
    return (a @ b,)


@op
def linear(t, attrs):
    return (F.linear(t[0], t[1], t[2] if len(t) > 2 else None),)


@op
def softmax(t, attrs):
    return (torch.softmax(t[0], attrs.get("dim", -1)),)


@op
def log_softmax(t, attrs):
    return (torch.log_softmax(t[0], attrs.get("dim", -1)),)


# ---- convolution, pooling, normalisation ----


def geometry(attrs):
    return {k: attrs[k] for k in ("stride", "padding", "dilation", "groups") if k in attrs}


def optional(t, i):
    return t[i] if i < len(t) else None


@op
def conv2d(t, attrs):
    return (F.conv2d(t[0], t[1], optional(t, 2), **geometry(attrs)),)


@op
def conv2d_grad_input(t, attrs):
    dy, w = t
    shape = (dy.shape[0], w.shape[1] * attrs.get("groups", 1), *attrs["size"])
    return (torch.nn.grad.conv2d_input(shape, w, dy, **geometry(attrs)),)


@op
def conv2d_grad_weight(t, attrs):
    dy, x = t
    shape = (dy.shape[1], x.shape[1] // attrs.get("groups", 1), *attrs["size"])
    return (torch.nn.grad.conv2d_weight(x, shape, dy, **geometry(attrs)),)


@op
def conv2d_fused(t, attrs):
    y = F.conv2d(t[0], t[1], optional(t, 2), **geometry(attrs))
    if optional(t, 3) is not None:
        y = y + t[3]
    return (torch.relu(y) if attrs.get("relu") else y,)


@op
def max_pool2d(t, attrs):
    y, index = F.max_pool2d(t[0], attrs["kernel_size"], attrs["stride"], attrs.get("padding", 0), return_indices=True)
    return y, index.to(torch.int32)


@op
def batch_norm(t, attrs):
    """Moves t[3] and t[4] in place, as the op does."""
    x, weight, bias, running_mean, running_var = t[:5]
    eps, momentum, training = attrs.get("eps", 1e-5), attrs.get("momentum", 0.1), bool(attrs.get("training", 1))
    parts = x.chunk(attrs.get("groups", 1)) if training else (x,)
    y = torch.cat([F.batch_norm(p, running_mean, running_var, weight, bias, training, momentum, eps) for p in parts])
    if training:
        m = torch.stack([p.mean((0, 2, 3)) for p in parts])
        v = torch.stack([p.var((0, 2, 3), unbiased=False) for p in parts])
    else:
        m, v = running_mean[None], running_var[None]
    if optional(t, 5) is not None:
        y = y + t[5]
    return torch.relu(y) if attrs.get("relu") else y, m, 1 / torch.sqrt(v + eps)


# ---- structure ----


@op
def cat(t, attrs):
    return (torch.cat(t, attrs.get("dim", 0)),)


@op
def slice_grad(t, attrs):
    out = torch.zeros(attrs["shape"], dtype=t[0].dtype)
    window = tuple(slice(a, a + (n - 1) * s + 1, s) for a, s, n in zip(attrs["start"], attrs["step"], t[0].shape))
    out[window] = t[0]
    return (out,)


@op
def sort(t, attrs):
    """nan_first changes nothing without NaN."""
    dim, k = attrs.get("dim", -1), attrs.get("k", -1)
    values, indices = torch.sort(t[0], dim=dim, descending=bool(attrs.get("descending")), stable=True)
    k = values.shape[dim] if k == -1 else k
    return values.narrow(dim, 0, k), indices.narrow(dim, 0, k)


@op
def gather(t, attrs):
    return (torch.gather(t[0], attrs["dim"], t[1]),)


@op
def gather_grad(t, attrs):
    return (torch.zeros(attrs["shape"], dtype=t[0].dtype).scatter_add(attrs["dim"], t[1], t[0]),)


@op
def normalize_pixels(t, attrs):
    x, table = t
    return (torch.stack([table[c][x[:, c].long()] for c in range(x.shape[1])], 1),)


@op
def embedding(t, attrs):
    return (F.embedding(t[1], t[0]),)


@op
def embedding_grad(t, attrs):
    dy, index = t
    out = torch.zeros(attrs["rows"], dy.shape[-1], dtype=dy.dtype)
    return (out.index_add(0, index.reshape(-1), dy.reshape(-1, dy.shape[-1])),)


# ---- losses and similarities ----


@op
def cross_entropy(t, attrs):
    return F.cross_entropy(t[0], t[1]), torch.softmax(t[0], 1)


@op
def cross_entropy_grad(t, attrs):
    dy, softmax, target = t
    return (dy * (softmax - F.one_hot(target, softmax.shape[1]).to(softmax.dtype)) / len(softmax),)


def clamped_norm(x, eps):
    return torch.linalg.vector_norm(x, dim=1).clamp_min(eps)


@op
def cosine_similarity(t, attrs):
    eps = attrs.get("eps", 1e-8)
    norm_a, norm_b = clamped_norm(t[0], eps), clamped_norm(t[1], eps)
    return (t[0] * t[1]).sum(1) / (norm_a * norm_b), norm_a, norm_b


@op
def normalize(t, attrs):
    norm = clamped_norm(t[0], attrs.get("eps", 1e-12))
    return t[0] / norm[:, None], norm


@op
def spatial_attention(t, attrs):
    x, z, q = t
    k = torch.tanh(z)
    score = torch.einsum("bc,bchw->bhw", q, k) / math.sqrt(z.shape[1])
    m = torch.softmax(score.flatten(1), 1).reshape(score.shape)
    return torch.einsum("bhw,bchw->bc", m, x), m, k


@op
def arc_margin(t, attrs):
    c, target = t
    m = attrs["m"]
    phi = c * math.cos(m) - torch.sqrt((1 - c * c).clamp_min(1e-12)) * math.sin(m)
    if attrs.get("easy_margin"):
        margin = torch.where(c > 0, phi, c)
    else:
        margin = torch.where(c > math.cos(math.pi - m), phi, c - m * math.sin(math.pi - m))
    chosen = F.one_hot(target, c.shape[1]).bool()
    return (attrs["s"] * torch.where(chosen, margin, c),)


# ---- views ----


@op
def reshape(t, attrs):
    return (t[0].reshape(attrs["shape"]),)


@op
def permute(t, attrs):
    return (t[0].permute(attrs["dims"]),)


@op
def slice_(t, attrs):
    n = t[0].ndim
    start, stop, step = (list(attrs.get(k, ())) for k in ("start", "stop", "step"))
    start, stop, step = start + [0] * (n - len(start)), stop + [2**62] * (n - len(stop)), step + [1] * (n - len(step))
    return (t[0][tuple(slice(*s) for s in zip(start, stop, step))],)


@op
def expand(t, attrs):
    return (t[0].expand(attrs["shape"]),)
