"""The models and training steps of asenpp written with PyTorch's modules: what the tests hold ours against.

Written from the formulas (ResNet to layer3 or layer4, attribute-aware attention, the two style
classifiers, the losses, three passes a step), with the same state-dict names, so that one state dict
fits both. Nothing of asenpp is imported here.
"""

import contextlib
import math

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        outputs = width * (4 if bottleneck else 1)
        sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)] if bottleneck else [
            (inputs, width, 3, stride), (width, width, 3, 1)]
        self.count = len(sizes)
        for i, (cin, cout, size, step) in enumerate(sizes, 1):
            setattr(self, f"conv{i}", nn.Conv2d(cin, cout, size, step, size // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(cout))
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.count:
                y = F.relu(y)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, name, layer4=False):
        super().__init__()
        counts = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}[name]
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage in range(4 if layer4 else 3):
            blocks = []
            for i in range(counts[stage]):
                blocks.append(Block(channels, 64 << stage, 2 if stage and not i else 1, name == "resnet50"))
                channels = (64 << stage) * (4 if name == "resnet50" else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer3(self.layer2(self.layer1(x)))

    def average(self, features):
        return self.layer4(features).mean((2, 3))


class Table(nn.Module):
    def __init__(self, count, size):
        super().__init__()
        self.attr_embedding = nn.Embedding(count, size)

    def forward(self, index):
        return self.attr_embedding(index)


class Attention(nn.Module):
    def __init__(self, attr, channels, common, rate, embed, spatial=True, channel=True):
        super().__init__()
        self.spatial, self.channel = spatial, channel
        if spatial:
            self.attr_transform1 = nn.Linear(attr, common)
            self.conv = nn.Conv2d(channels, common, 1)
        if channel:
            self.attr_transform2 = nn.Linear(attr, attr)
            self.fc1 = nn.Linear(channels + attr, channels // rate)
            self.fc2 = nn.Linear(channels // rate, channels)
        self.feature_fc = nn.Linear(channels, embed)

    def forward(self, x, a):
        m = None
        if self.spatial:
            k, q = torch.tanh(self.conv(x)), torch.tanh(self.attr_transform1(a))
            scores = torch.einsum("bc,bchw->bhw", q, k) / math.sqrt(k.shape[1])
            m = scores.flatten(1).softmax(1).view_as(scores)
            v = torch.einsum("bhw,bchw->bc", m, x)
        else:
            v = x.mean((2, 3))
        if self.channel:
            joined = torch.cat([v, F.relu(self.attr_transform2(a))], 1)
            v = v * torch.sigmoid(self.fc2(F.relu(self.fc1(joined))))
        return self.feature_fc(v), m


WIDTH = {"resnet18": 256, "resnet34": 256, "resnet50": 1024}


class ASEN(nn.Module):
    def __init__(self, cfg, layer4=False):
        super().__init__()
        table = Table(cfg.DATA.NUM_ATTRIBUTES, cfg.MODEL.ATTRIBUTE.EMBED_SIZE)
        self.choices = nn.ModuleDict()
        for branch in ("global", "local") if cfg.MODEL.LOCAL.ENABLE else ("global",):
            part = cfg.MODEL[branch.upper()]
            spatial, channel = part.ATTENTION.SPATIAL, part.ATTENTION.CHANNEL
            self.choices[branch] = nn.ModuleDict()
            self.choices[branch]["attrnet"] = table
            self.choices[branch]["basenet"] = ResNet(part.BACKBONE.NAME, layer4)
            self.choices[branch]["attnnet"] = Attention(
                cfg.MODEL.ATTRIBUTE.EMBED_SIZE, WIDTH[part.BACKBONE.NAME], spatial.COMMON_EMBED_SIZE,
                channel.REDUCTION_RATE, cfg.MODEL.EMBED_SIZE, spatial.ENABLE, channel.ENABLE)

    def forward(self, branch, x, a):
        part = self.choices[branch]
        return part["attnnet"](part["basenet"](x), part["attrnet"](a))


class StyleClassification(ASEN):
    def __init__(self, cfg):
        super().__init__(cfg, layer4=True)
        self.fc = nn.Sequential(nn.Linear(cfg.MODEL.EMBED_SIZE, 512), nn.Linear(512, cfg.HEAD.out_features))

    def logits(self, features, embedding, labels=None):
        return self.fc(embedding)

    def style(self, x, a, labels=None):
        return self.fc(self("global", x, a)[0])


class Head(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head
        self.weight = nn.Parameter(torch.zeros(head.out_features, head.in_features))

    def forward(self, x, labels=None):
        c = F.linear(F.normalize(x), F.normalize(self.weight))
        if labels is None:
            return c
        phi = c * math.cos(self.head.m) - (1 - c * c).sqrt() * math.sin(self.head.m)
        if self.head.easy_margin:
            phi = torch.where(c > 0, phi, c)
        else:
            phi = torch.where(c > math.cos(math.pi - self.head.m), phi, c - self.head.m * math.sin(math.pi - self.head.m))
        return torch.where(F.one_hot(labels, c.shape[1]).bool(), phi, c) * self.head.s


class ArcStyleClassification(nn.Module):
    """Without dropout: the tests compare with ours in evaluation mode, or with p = 0."""

    def __init__(self, cfg):
        super().__init__()
        self.body = ASEN(cfg, layer4=True)
        self.fc = nn.Linear({"resnet50": 2048}.get(cfg.MODEL.GLOBAL.BACKBONE.NAME, 512), 1024)
        self.fc1 = nn.Sequential(nn.Identity(), nn.Linear(cfg.MODEL.EMBED_SIZE + 1024, 1024), nn.Linear(1024, 1024),
                                 nn.Identity(), nn.Linear(1024, cfg.HEAD.in_features))
        self.head = Head(cfg.HEAD)

    def logits(self, features, embedding, labels=None):
        average = self.body.choices["global"]["basenet"].average(features)
        return self.head(self.fc1(torch.cat([embedding, self.fc(average)], 1)), labels)

    def style(self, x, a, labels=None):
        part = self.body.choices["global"]
        features = part["basenet"](x)
        embedding = part["attnnet"](features, part["attrnet"](a))[0]
        return self.logits(features, embedding, labels)


# -- a training step, as published: three passes -------------------------------------------------------

def triplet(x, p, n, margin):
    return F.margin_ranking_loss(F.cosine_similarity(x, p), F.cosine_similarity(x, n), torch.ones_like(x[:, 0]), margin)


def step(model, solver, images, attributes, crops=None, labels=None):
    """(total loss, its parts, global embeddings, attention maps) of one step.

    images, crops: three tensors each, of anchors, positives and negatives; they pass one after another.
    labels: for a style model, the styles of anchors and negatives.
    """
    asen = getattr(model, "body", model)
    part = asen.choices["global"]
    features = [part["basenet"](x) for x in images]
    whole, maps = zip(*(part["attnnet"](f, part["attrnet"](attributes)) for f in features))
    parts = {"global": triplet(*whole, solver.MARGIN)}
    total = solver.GLOBAL_WEIGHT * parts["global"]
    if crops is not None:
        local = [asen("local", x, attributes)[0] for x in crops]
        parts["local"] = triplet(*local, solver.MARGIN)
        parts["align"] = sum(F.relu(1 - F.cosine_similarity(g, l)).mean() for g, l in zip(whole, local))
        total = total + solver.LOCAL_WEIGHT * parts["local"] + solver.ALIGN_WEIGHT * parts["align"]
    if labels is not None:
        # layer4 runs for all three passes, as it does in the published forward: its statistics move.
        logits = [model.logits(f, e, None if i == 1 else labels[i // 2]) for i, (f, e) in enumerate(zip(features, whole))]
        parts["anchor"] = F.cross_entropy(logits[0], labels[0])
        parts["negative"] = F.cross_entropy(logits[2], labels[1])
        total = 0.1 * total + 0.5 * parts["anchor"] + 0.5 * parts["negative"]
    return total, parts, torch.cat(whole), torch.cat(maps)


def parameter_groups(model, lr, lr_slow):
    """Local backbone and attention at `lr`, all else at `lr_slow`; without a local branch all at `lr`."""
    asen = getattr(model, "body", model)
    if "local" not in asen.choices:
        return [{"params": list(model.parameters()), "lr": lr}]
    fast = [p for name in ("basenet", "attnnet") for p in asen.choices["local"][name].parameters()]
    slow = [p for p in model.parameters() if not any(p is q for q in fast)]
    return [{"params": fast, "lr": lr}, {"params": slow, "lr": lr_slow}]


# -- weights and inputs at which float32 is well behaved -----------------------------------------------

@contextlib.contextmanager
def away_from_kinks(model, groups=1, window=0.25):
    """In a forward pass of float64 inside this, the bias before each ReLU (of a batch norm or a linear
    layer) moves, channel by channel, so that 0 comes to lie in the middle of the widest gap between that
    channel's values within `window` of 0.

    A ReLU whose input is 1e-7 is decided by rounding, and one of a million decided otherwise moves
    gradients by a thousandth: at such weights PyTorch in float32 agrees neither with itself in float64 nor
    with its other memory layout. At these, with as many ReLUs open as before, all of them agree to 1e-5,
    and so anything above it is an error. groups: the batch is that many passes, batch norm taken apart.
    Yields the list of the smallest distances from 0, one for each ReLU.
    """
    last, distances, relu, batch_norm = [], [], F.relu, F.batch_norm

    def shifted(x):
        channels = x.detach().transpose(0, 1).flatten(1).sort(1).values
        shift = x.new_zeros(len(channels))
        for c, values in enumerate(channels):
            near = values[values.abs() < window]
            edges = torch.cat([near.new_tensor([-window]), near, near.new_tensor([window])])
            i = int(edges.diff().argmax())
            shift[c] = -(edges[i] + edges[i + 1]) / 2
        before = last[-1].bias.detach().clone()
        # Rounded to float32: both precisions get the same bias.
        last[-1].bias.data = (before + shift).float().to(before.dtype)
        x = x + (last[-1].bias.detach() - before).reshape((-1,) + (1,) * (x.ndim - 2))
        distances.append(float(x.detach().abs().min()))
        return relu(x)

    def grouped(x, mean, var, weight, bias, training, momentum, eps):
        if not training:
            return batch_norm(x, mean, var, weight, bias, False, momentum, eps)
        return torch.cat([batch_norm(part, None, None, weight, bias, True, 0, eps) for part in x.chunk(groups)])

    hooks = [m.register_forward_hook(lambda module, inputs, output: last.append(module)) for m in model.modules()
             if isinstance(m, (nn.BatchNorm2d, nn.Linear))]
    F.relu, F.batch_norm = shifted, grouped
    try:
        with torch.no_grad():
            yield distances
    finally:
        F.relu, F.batch_norm = relu, batch_norm
        for hook in hooks:
            hook.remove()
