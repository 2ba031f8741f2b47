"""Backbones, attention, ASEN and the style classifiers: single promises held against PyTorch's modules, then
names, folding, pretrained files and errors. test_parity.py holds whole models to PyTorch."""

import hashlib
import http.server
import threading

import numpy as np
import pytest

from asenpp import _asen, models, nn, optim, random
from asenpp._asen import Tensor
from asenpp.config import load_config
from asenpp.models import pretrained
from asenpp.models.resnet import LAYER3_WIDTH, LAYER4_WIDTH
from asenpp.nn import functional as F


@pytest.fixture
def tm():
    pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    import torch_models

    return torch_models


@pytest.fixture(autouse=True)
def seeded():
    random.manual_seed(11)
    yield
    _asen.set_grad_enabled(True)
    _asen.set_kernel_paths("all")


def config(*opts):
    return load_config(opts=["MODEL.PRETRAINED", False, "MODEL.GLOBAL.BACKBONE.NAME", "resnet18",
                             "MODEL.LOCAL.BACKBONE.NAME", "resnet18", "MODEL.EMBED_SIZE", 48,
                             "MODEL.ATTRIBUTE.EMBED_SIZE", 24, "MODEL.GLOBAL.ATTENTION.SPATIAL.COMMON_EMBED_SIZE", 32,
                             "DATA.ATTRIBUTES.NAME", "[style, length]", "DATA.ATTRIBUTES.NUM", "[3, 2]", *opts])


def images(count=6, size=48, dtype=np.float32):
    return np.random.default_rng(5).standard_normal((count, 3, size, size)).astype(dtype)


def twins(ours, theirs, dtype="float32"):
    """Weights of ours, moved a little off their special starts, in both; both of one dtype."""
    import torch

    rng = np.random.default_rng(1)
    for name, tensor in [*ours.named_parameters(), *ours.named_buffers()]:
        if name.rpartition(".")[2] in ("running_mean", "bias"):
            tensor.detach().copy_(0.1 * rng.standard_normal(tensor.shape))
        elif "bn" in name and tensor.ndim == 1:
            tensor.detach().copy_(rng.uniform(0.7, 1.3, tensor.shape))
    state = {k: torch.tensor(v.numpy().copy()) for k, v in ours.state_dict().items()}
    theirs.load_state_dict(state)
    ours.to(dtype)
    theirs.to(getattr(torch, dtype))
    return ours, theirs


def error(ours, theirs):
    """Largest difference over the largest value."""
    ours, theirs = ours.detach().numpy(), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)


def no_grad(function, *args, **kwargs):
    before = _asen.set_grad_enabled(False)
    try:
        return function(*args, **kwargs)
    finally:
        _asen.set_grad_enabled(before)


def gradient_errors(ours, theirs):
    """Of all parameters; the scale of each is at least a thousandth of the largest gradient (float32 noise
    of batch norm makes up gradients that are zero in exact arithmetic)."""
    theirs = dict(theirs.named_parameters())
    floor = max(float(q.grad.abs().max()) for q in theirs.values() if q.grad is not None) * 1e-3
    result = {}
    for name, p in ours.named_parameters():
        q = theirs[name]
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            scale = max(float(q.grad.abs().max()), floor)
            result[name] = np.abs(p.grad.numpy() - q.grad.numpy()).max() / scale
    return result


# -- backbones ----------------------------------------------------------------------------------------

def test_three_passes_as_one(tm):
    """A batch in three groups gives the embeddings, gradients and running statistics of three passes."""
    import torch

    ours, theirs = twins(models.resnet18(), tm.ResNet("resnet18"))
    x = images(6, 48)
    y = no_grad(ours, Tensor(x), groups=3)
    ty = torch.cat([theirs(torch.tensor(part)) for part in np.split(x, 3)])
    assert error(y, ty) < 1e-4
    for (key, b), (_, c) in zip(ours.named_buffers(), theirs.named_buffers()):
        assert error(b, c) < 1e-4, key
    assert int(ours.bn1.num_batches_tracked) == 3

    _asen.set_kernel_paths("reference")
    ours, theirs = twins(models.resnet18(), tm.ResNet("resnet18"), "float64")
    x = images(6, 32, np.float64)
    dy = np.random.default_rng(2).standard_normal((6, 256, 2, 2))
    ours(Tensor(x), groups=3).backward(Tensor(dy))
    torch.cat([theirs(torch.tensor(part)) for part in np.split(x, 3)]).backward(torch.tensor(dy))
    assert max(gradient_errors(ours, theirs).values()) < 1e-8


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_folded_inference(name):
    """Without gradients evaluation runs folded convolutions only, with the same result; a pass in training
    and a step in between are seen."""
    ours = getattr(models, name)(layer4=name == "resnet18")
    x = Tensor(images(2, 48)).contiguous()
    sgd = optim.SGD(ours.parameters(), lr=1e-3)
    for again in (True, False):
        ours.eval()
        apart = ours(x)
        no_grad(ours, x)
        _asen.dispatch_counts(True)
        folded = no_grad(ours, x)
        assert set(_asen.dispatch_counts()) == {"conv2d_fused", "max_pool2d"}
        assert error(folded, apart) < 1e-5
        if name == "resnet18":
            assert error(no_grad(ours.layer4_average, folded), ours.layer4_average(apart)) < 1e-5
        if again:
            ours.train()(x).mean().backward()
            sgd.step()


def test_backbone_names_and_initial_weights():
    """torchvision's names; N(0, sqrt(2 / (k k out))); layer4 only where asked for."""
    for name, count in (("resnet18", 90), ("resnet34", 174), ("resnet50", 258)):
        net = getattr(models, name)()
        assert len(net.state_dict()) == count
        assert not any(key.startswith("layer4") or key.startswith("fc") for key in net.state_dict())
        assert net(Tensor(images(1, 33))).shape == (1, LAYER3_WIDTH[name], 3, 3)
    state = models.resnet18(layer4=True).state_dict()
    assert len(state) == 120  # torchvision's 122 without fc
    assert state["layer4.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    weight = state["layer3.1.conv2.weight"].numpy()
    assert abs(weight.std() / (2 / (9 * 256)) ** 0.5 - 1) < 0.01 and weight.shape == (256, 256, 3, 3)
    assert state["layer3.1.bn2.weight"].numpy().min() == 1 and state["layer3.1.bn2.bias"].numpy().max() == 0
    with pytest.raises(ValueError, match="without layer4"):
        net.layer4_average(Tensor(np.zeros((1, 1024, 2, 2), np.float32)))


# -- ASEN ---------------------------------------------------------------------------------------------

ATTENTIONS = {"both": (), "spatial": ("CHANNEL",), "channel": ("SPATIAL",), "neither": ("CHANNEL", "SPATIAL")}


@pytest.mark.parametrize("case", ATTENTIONS)
def test_attention_is_the_formula(tm, case):
    """Embedding, map and all gradients, with each part of the attention on and off, in double."""
    import torch

    _asen.set_kernel_paths("reference")
    parts = {"spatial": "SPATIAL" not in ATTENTIONS[case], "channel": "CHANNEL" not in ATTENTIONS[case]}
    ours, theirs = twins(models.AttributeAttention(8, 16, 12, 2, 10, **parts),
                         tm.Attention(8, 16, 12, 2, 10, **parts), "float64")
    rng = np.random.default_rng(4)
    x, a, dy, dm = (rng.standard_normal(s) for s in ((3, 16, 5, 4), (3, 8), (3, 10), (3, 5, 4)))
    leaves = [Tensor(x).requires_grad_(), Tensor(a).requires_grad_()]
    others = [torch.tensor(x, requires_grad=True), torch.tensor(a, requires_grad=True)]
    (y, m), (ty, tmap) = ours(*leaves), theirs(*others)
    assert error(y, ty) < 1e-10
    loss, tloss = (y * Tensor(dy)).sum(), (ty * torch.tensor(dy)).sum()
    if parts["spatial"]:
        assert error(m, tmap) < 1e-10 and abs(m.detach().numpy().sum((1, 2)) - 1).max() < 1e-12
        loss, tloss = loss + (m * Tensor(dm)).sum(), tloss + (tmap * torch.tensor(dm)).sum()
    else:
        assert m is None
    loss.backward(), tloss.backward()
    assert max(gradient_errors(ours, theirs).values()) < 1e-8
    for p, q in zip(leaves, others):
        if q.grad is not None:
            assert error(p.grad, q.grad) < 1e-8


def stage2_loss(f, model, x, a, groups=None):
    """Triplet losses of both branches and their alignment, for one triplet."""
    def embed(branch):
        return model.forward_branch(branch, x, a, groups=3)[0] if groups else model(branch, x, a)[0]

    g, l = embed("global"), embed("local")
    loss = 0
    for e in (g, l):
        loss = loss + f.margin_ranking_loss(f.cosine_similarity(e[:1], e[1:2]), f.cosine_similarity(e[:1], e[2:]),
                                            1 if groups else x.new_ones(1), margin=0.9)
    align = f.cosine_similarity(g, l)
    return loss + 0.1 * (1 - align).mean()


def test_asen_step(tm):
    """Both branches, losses, gradients (the shared table's from both branches) and a step of Adam with
    the two rates, against PyTorch in evaluation statistics and double."""
    import torch

    _asen.set_kernel_paths("reference")
    cfg = config("MODEL.LOCAL.ENABLE", True)
    ours, theirs = twins(models.ASEN(cfg), tm.ASEN(cfg), "float64")
    ours.eval(), theirs.eval()
    groups = ours.parameter_groups(1e-3, 1e-4)
    a = optim.Adam(groups)
    names = [{name for name, p in ours.named_parameters() if any(p is q for q in group["params"])} for group in groups]
    assert all(name.startswith("choices.local.") for name in names[0])
    assert "choices.global.attrnet.attr_embedding.weight" in names[1] and len(names[0] | names[1]) == len(
        list(ours.parameters()))
    lookup = dict(theirs.named_parameters())
    b = torch.optim.Adam([{"params": [lookup[n] for n in sorted(part)], "lr": lr}
                          for part, lr in zip(names, (1e-3, 1e-4))])
    x, attributes = images(3, 32, np.float64), np.array([1, 1, 1])

    def losses():
        return (stage2_loss(F, ours, Tensor(x), attributes, groups=3),
                stage2_loss(torch.nn.functional, theirs, torch.tensor(x), torch.tensor(attributes)))

    first = losses()
    first[0].backward(), first[1].backward()
    assert abs(float(first[0]) - first[1].item()) < 1e-10
    assert max(gradient_errors(ours, theirs).values()) < 1e-8
    a.step(), b.step()
    with torch.no_grad():
        second = no_grad(losses)
    assert abs(float(second[0]) - second[1].item()) < 1e-6 < abs(float(second[0]) - float(first[0]))


def test_features_once_an_image():
    """backbone() and attend() give what forward() gives; one image keeps the map's batch axis."""
    model = models.ASEN(config()).eval()
    x = Tensor(images(2))
    features = model.backbone(x)
    for attribute in (0, 1):
        embedding, attention_map = model.attend(features, [attribute] * 2)
        again, _ = model(x, [attribute] * 2)
        np.testing.assert_array_equal(embedding.detach().numpy(), again.detach().numpy())
    assert embedding.shape == (2, 48) and attention_map.shape == (2, 3, 3)
    assert model.attend(model.backbone(Tensor(images(1))), [1])[1].shape == (1, 3, 3)
    assert np.abs(model.attend(features, [0, 0])[0].detach().numpy() - again.detach().numpy()).max() > 1e-3
    assert not model.has_local
    with pytest.raises(KeyError, match="'local'"):
        model.forward_branch("local", x, [0, 0])


def test_shared_table_has_two_names():
    model = models.ASEN(config("MODEL.LOCAL.ENABLE", True))
    state = model.state_dict()
    names = [f"choices.{branch}.attrnet.attr_embedding.weight" for branch in ("global", "local")]
    assert state[names[0]].data_ptr() == state[names[1]].data_ptr()
    assert sum("attr_embedding" in name for name, _ in model.named_parameters()) == 1
    assert [n for n in state if ".attnnet." in n][:12] == [
        f"choices.global.attnnet.{layer}.{kind}" for layer in
        ("attr_transform1", "conv", "attr_transform2", "fc1", "fc2", "feature_fc") for kind in ("weight", "bias")]
    stage1 = models.ASEN(config())
    report = model.load_state_dict(stage1.state_dict(), strict=False)
    assert not report.unexpected and all(n.startswith("choices.local.") for n in report.missing)
    np.testing.assert_array_equal(state[names[1]].numpy(), stage1.state_dict()[names[0]].numpy())


# -- style models -------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["StyleClassification", "ArcStyleClassification"])
def test_style_models(tm, kind):
    """Names; logits with and without labels, and gradients, against PyTorch in double."""
    import torch

    _asen.set_kernel_paths("reference")
    cfg = config("MODEL.TYPE", kind, "HEAD.in_features", 20)
    ours, theirs = twins(models.build_model(cfg), getattr(tm, kind)(cfg), "float64")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.eval(), theirs.eval()
    x, attributes, labels = images(3, 32, np.float64), [0, 0, 0], np.array([2, 0, 1])
    _, attention_map, logits = ours(Tensor(x), attributes)
    tlogits = theirs.style(torch.tensor(x), torch.tensor(attributes))
    assert error(logits, tlogits) < 1e-8 and attention_map.shape == (3, 2, 2)
    scale = cfg.HEAD.s if kind.startswith("Arc") else 1
    assert error(ours.probabilities(logits), (scale * tlogits).softmax(1)) < 1e-8
    embedding, _, logits = ours.forward_style(Tensor(x), attributes, labels)
    tlogits = theirs.style(torch.tensor(x), torch.tensor(attributes), torch.tensor(labels))
    F.cross_entropy(logits, labels).backward()
    torch.nn.functional.cross_entropy(tlogits, torch.tensor(labels)).backward()
    assert error(logits, tlogits) < 1e-8
    assert max(gradient_errors(ours, theirs).values()) < 1e-8
    np.testing.assert_array_equal(ours.forward_branch("global", Tensor(x), attributes)[0].detach().numpy(),
                                  embedding.detach().numpy())


@pytest.mark.parametrize("easy", [True, False])
def test_arc_head(tm, easy):
    """Both margins, on cosines of every kind; the gradient is finite where feature and row coincide."""
    import torch

    cfg = config("HEAD.in_features", 4, "HEAD.easy_margin", easy, "HEAD.m", 1.2)
    ours, theirs = twins(models.ArcMarginHead(4, 3, cfg.HEAD.s, cfg.HEAD.m, easy), tm.Head(cfg.HEAD), "float64")
    x, labels = np.random.default_rng(3).standard_normal((60, 4)), np.arange(60) % 3
    cosines = ours(Tensor(x)).detach().numpy()[np.arange(60), labels]
    assert cosines.min() < np.cos(np.pi - 1.2) < 0 < cosines.max()
    leaf, other = Tensor(x).requires_grad_(), torch.tensor(x, requires_grad=True)
    y, ty = ours(leaf, labels), theirs(other, torch.tensor(labels))
    (y * y).sum().backward(), (ty * ty).sum().backward()
    assert error(y, ty) < 1e-10 and error(leaf.grad, other.grad) < 1e-8
    assert error(ours.weight.grad, theirs.weight.grad) < 1e-8
    same = Tensor(ours.weight.detach().numpy() * 2.0).requires_grad_()
    ours(same, [0, 1, 2]).sum().backward()
    assert np.isfinite(same.grad.numpy()).all()


def test_style_model_extras():
    """Published names; dropout is there in training; heads are in the slow group; layer4 stands unused in
    the local branch."""
    cfg = config("MODEL.TYPE", "ArcStyleClassification", "MODEL.LOCAL.ENABLE", True)
    model = models.build_model(cfg)
    state = model.state_dict()
    assert {"body.choices.global.attrnet.attr_embedding.weight", "body.choices.local.basenet.layer4.1.bn2.bias",
            "fc.weight", "fc1.1.weight", "fc1.2.bias", "fc1.4.weight", "head.weight"} <= set(state)
    assert "head.bias" not in state and state["head.weight"].shape == (3, 512)
    assert state["fc.weight"].shape == (1024, LAYER4_WIDTH["resnet18"])
    assert state["fc1.1.weight"].shape == (1024, 48 + 1024)
    bound = (6 / (3 + 512)) ** 0.5
    assert 0.9 * bound < np.abs(state["head.weight"].numpy()).max() <= bound * 1.0001
    fast, slow = model.parameter_groups(1e-4, 1e-5)
    assert any(p is model.head.weight for p in slow["params"]) and (fast["lr"], slow["lr"]) == (1e-4, 1e-5)
    assert len(fast["params"]) + len(slow["params"]) == len(list(model.parameters()))
    features = model.backbone(Tensor(images(2)))
    embedding, _ = model.attend(features, [0, 0])
    assert np.abs((model.logits(embedding, features) - model.logits(embedding, features)).detach().numpy()).max() > 0
    assert model.backbone(Tensor(images(2)), "local").average is None and model.has_local
    one = models.build_model(config("MODEL.TYPE", "StyleClassification")).parameter_groups(1e-4, 1e-5)
    assert len(one) == 1 and one[0]["lr"] == 1e-4


def test_model_without_attributes():
    with pytest.raises(ValueError, match="DATA.NUM_ATTRIBUTES is not set"):
        models.build_model(load_config(opts=["MODEL.PRETRAINED", False]))


# -- pretrained weights -------------------------------------------------------------------------------

@pytest.fixture
def server(tmp_path):
    """A web server on this machine for files of a folder; yields its address and the folder."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", folder
        httpd.shutdown()
        thread.join()


def test_download(server, tmp_path, monkeypatch):
    """Into the cache folder, once; a file that is not what its name says leaves nothing."""
    url, folder = server
    monkeypatch.setenv("ASENPP_HOME", str(tmp_path / "cache"))
    content = b"weights" * 1000
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(content)
    (folder / "resnet18-00000000.pth").write_bytes(content)
    path = pretrained.fetch(f"{url}/{name}")
    assert path == tmp_path / "cache" / name and path.read_bytes() == content
    (folder / name).unlink()
    assert pretrained.fetch(f"{url}/{name}") == path
    with pytest.raises(models.PretrainedError, match="another file than its name says"):
        pretrained.fetch(f"{url}/resnet18-00000000.pth")
    with pytest.raises(models.PretrainedError, match="(?s)cannot download.*Put the file at.*MODEL.PRETRAINED False"):
        pretrained.fetch(f"{url}/absent.pth")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [name]
    with pytest.raises(models.PretrainedError, match="there is no file"):
        pretrained.fetch(str(tmp_path / "absent.pth"))


def test_without_network(tmp_path, monkeypatch):
    """The message says where the file belongs and how to go on without it."""
    monkeypatch.setenv("ASENPP_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained, "BASE_URL", "http://127.0.0.1:9/")
    with pytest.raises(models.PretrainedError, match=f"Put the file at {tmp_path}/resnet18-5c106cde.pth"):
        models.build_model(config("MODEL.PRETRAINED", True))
    models.build_model(config("MODEL.PRETRAINED", True), pretrained=False)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("ASENPP_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert pretrained.cache_folder() == tmp_path / "asenpp"


def test_pretrained_file(tmp_path):
    """A state dict with a classifier and layer4, as ImageNet's files have, fills the backbone of the branch
    that asks for it; a file of another backbone, and one that is none, are errors."""
    checkpoint = pytest.importorskip("asenpp.checkpoint", reason="asenpp.checkpoint is not there yet")
    random.manual_seed(99)
    source = models.resnet18(layer4=True)
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    path = tmp_path / "resnet18.pth"
    checkpoint.save({**state, "fc.weight": Tensor(np.zeros((10, 512), np.float32))}, path)
    cfg = config("MODEL.LOCAL.ENABLE", True, "MODEL.PRETRAINED", {"GLOBAL": str(path), "LOCAL": False})
    model = models.build_model(cfg)
    for name in ("conv1.weight", "layer3.1.bn2.weight", "layer2.0.downsample.0.weight"):
        want = state[name].numpy()
        np.testing.assert_array_equal(model.choices["global"]["basenet"].state_dict()[name].numpy(), want)
    assert np.abs(model.choices["local"]["basenet"].conv1.weight.detach().numpy() - state["conv1.weight"].numpy()).max() > 0
    with pytest.raises(models.PretrainedError, match="does not fit resnet50|lacks"):
        models.resnet50(pretrained=str(path))
    with pytest.raises(models.PretrainedError, match="lacks .* of resnet34"):
        models.resnet34(pretrained=str(path))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(models.PretrainedError, match="cannot be read"):
        models.resnet18(pretrained=str(tmp_path / "text.pth"))


def test_same_seed_same_model():
    first = models.build_model(config()).state_dict()
    random.manual_seed(11)
    second = models.build_model(config()).state_dict()
    for name, value in first.items():
        np.testing.assert_array_equal(value.numpy(), second[name].numpy())
    assert isinstance(nn.Sequential(nn.Identity()), nn.Module)
