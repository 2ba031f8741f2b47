"""Checkpoints of every model, between PyTorch and asenpp: PyTorch's files, in each of its containers, come in
equal; ours are read by torch.load(weights_only=True), equal. To the bit, names, order and dtypes included."""

from collections import OrderedDict

import numpy as np
import pytest

import asenpp
import checkpoint_kit
import parity_kit as kit
from asenpp import models

torch = pytest.importorskip("torch", reason="PyTorch is not installed: it writes and reads the files here")
import torch_models as tm  # noqa: E402 - it needs PyTorch

BACKBONES, CONTAINERS = ["resnet18", "resnet34", "resnet50"], ["zip", "stream", "tar"]


def pair(kind):
    """(ours, PyTorch's) with fresh weights of their own."""
    if kind in BACKBONES:
        return getattr(models, kind)(layer4=True), tm.ResNet(kind, layer4=True)
    cfg = kit.config(kind)
    return models.build_model(cfg), getattr(tm, cfg.MODEL.TYPE)(cfg)


def randomized(theirs):
    """All tensors, statistics and counters included, get values that no start has."""
    torch.manual_seed(1)
    for tensor in [*theirs.parameters(), *theirs.buffers()]:
        tensor.data.copy_(torch.randint(5, 99, tensor.shape) if tensor.dtype == torch.int64 else torch.randn(tensor.shape))
    return theirs


def written(path, kind, state):
    """state, inside the published dict of a checkpoint (a tar: alone, and without counters, which it knows not)."""
    if kind == "tar":
        path.write_bytes(checkpoint_kit.tar_file({name: checkpoint_kit.tensor(value.numpy(), "cuda:0")
                                                  for name, value in state.items() if value.dtype == torch.float32}))
        return path
    torch.save({"epoch": 3, "model": state, "mAP": 0.25}, path, _use_new_zipfile_serialization=kind == "zip")
    return path


def same(ours, theirs):
    """Bits, dtypes, names and their order."""
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        array = np.asarray(ours[name].numpy() if hasattr(ours[name], "numpy") else ours[name])
        want = value.detach().numpy()
        assert (array.dtype, array.shape) == (want.dtype, want.shape), name
        identical = array.tobytes() == want.tobytes()   # apart: pytest would print how megabytes differ
        assert identical, name


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", BACKBONES + kit.MODELS)
def test_pytorchs_file_comes_in_equal(tmp_path, kind, container):
    """Through asenpp.load, and into the model."""
    ours, theirs = pair(kind)
    state = randomized(theirs).state_dict()
    read = asenpp.load(written(tmp_path / "checkpoint.pth.tar", container, state))
    if container != "tar":
        assert (read["epoch"], read["mAP"]) == (3, 0.25)
        read = read["model"]
    else:
        state = OrderedDict((name, value) for name, value in state.items() if value.dtype == torch.float32)
    same(read, state)
    with pytest.raises(AssertionError):
        same(read, {name: value + 1 if name == "conv1.weight" or name.endswith("layer1.0.conv1.weight") else value
                    for name, value in state.items()})
    report = ours.load_state_dict(read, strict=container != "tar")
    assert not report.unexpected and all(name.endswith("num_batches_tracked") for name in report.missing)
    after = ours.state_dict()
    same({name: after[name] for name in state}, state)
    if kind == "ASEN":
        names = [f"choices.{branch}.attrnet.attr_embedding.weight" for branch in ("global", "local")]
        assert after[names[0]].data_ptr() == after[names[1]].data_ptr(), "one table under two names"


@pytest.mark.parametrize("kind", BACKBONES + kit.MODELS)
def test_our_file_is_read_by_pytorch(tmp_path, kind):
    """weights_only=True, and its model takes the state strictly."""
    ours, theirs = pair(kind)
    ours.load_state_dict({name: value.numpy() for name, value in randomized(pair(kind)[1]).state_dict().items()})
    state = ours.state_dict()
    asenpp.save({"epoch": 3, "model": state, "mAP": 0.25}, tmp_path / "checkpoint.pth.tar")
    read = torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)
    assert (read["epoch"], read["mAP"]) == (3, 0.25)
    same(state, read["model"])
    theirs.load_state_dict(read["model"], strict=True)
    same(state, theirs.state_dict())


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_whole_checkpoint_goes_over(tmp_path, name):
    """Weights and the optimizer's state, saved by ours after two steps: PyTorch goes on from it as ours does."""
    cfg, given = kit.config("ASEN global"), kit.batch(2, 32, seed=3)
    ours, theirs = kit.our_model(cfg, kit.seeded_state(models.build_model(cfg))), tm.ASEN(cfg)
    settings = {"lr": 1e-3} | ({"momentum": 0.9} if name == "SGD" else {})
    optimizer = getattr(asenpp.optim, name)(ours.parameters(), **settings)
    other = getattr(torch.optim, name)(theirs.parameters(), lr=1.0)
    for step in range(2):
        optimizer.zero_grad()
        kit.our_step(ours, cfg, given)[0].backward()
        optimizer.step()
    asenpp.save({"model": ours.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pth.tar")
    read = torch.load(tmp_path / "x.pth.tar", weights_only=True)
    theirs.load_state_dict(read["model"])
    other.load_state_dict(read["optimizer"])
    before = {n: p.detach().clone() for n, p in theirs.named_parameters()}
    for (n, p), (m, q) in zip(ours.named_parameters(), theirs.named_parameters()):
        assert n == m
        q.grad = torch.tensor(p.grad.numpy().copy())
    optimizer.step(), other.step()
    for n, p in ours.named_parameters():
        q = dict(theirs.named_parameters())[n].detach()
        np.testing.assert_allclose(p.detach().numpy(), q.numpy(), rtol=2e-6, atol=2e-7, err_msg=n)
    assert any(not torch.equal(before[n], q) for n, q in theirs.named_parameters())
