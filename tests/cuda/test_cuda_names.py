"""PyTorch's names on the GPU: the cases of tests/test_torch_names.py there against the CPU, which is held to PyTorch."""

import numpy as np
import pytest

import test_torch_names as names
from asenpp import _asen

# What makes its tensors on the CPU, or asks whether there is a GPU.
ELSEWHERE = {"torch.full, .zeros_like, .ones_like, .full_like", "Tensor.cuda", "Tensor.cpu", "Tensor.to", "Tensor.size, .shape, .stride",
             "Tensor.contiguous", "Tensor.type_as, .is_cuda"}
CASES = [(name, i) for name, i in names.RUNS if name not in ELSEWHERE]


class OnDevice(names.Side):
    """asenpp's side, its tensors on a device."""

    def __init__(self, device, case):
        super().__init__("asenpp", case)
        self.device = device

    def of(self, values, dtype=None, grad=True):
        made = super().of(values, dtype, grad=False).to(device=self.device)
        if grad and made.is_floating_point():
            made.requires_grad_()
            self.leaves.append(made)
        return made


def outcome(device, name, function):
    side = OnDevice(device, name)
    results = names.flat(function(side))
    return [names.plain(side, r) for r in results], names.backward(side, results)


@pytest.mark.parametrize("name, i", CASES, ids=[f"{n}-{i}" for n, i in CASES])
def test_as_on_the_cpu(name, i):
    """Values, dtypes, shapes and gradients; what the CPU lacks (16 bits) the GPU may have."""
    ours = outcome("cuda", name, names.CASES[name][i])
    theirs = outcome("cpu", name, names.CASES[name][i])
    for a, b in zip(ours[0] + ours[1], theirs[0] + theirs[1], strict=True):
        if b is None:
            assert a is None
        else:
            names.same(a, b, max(names.TOLERANCE[name], 1e-6))


@pytest.mark.parametrize("key", [([3],), ([-4],), ([0, 2], [1, 4]), ([0], [5]), ([1], [-5])], ids=str)
def test_an_index_that_is_not_there_is_found(key):
    """Also where the numbers of a row and a column make that of another place; when the device is next waited for."""
    x = _asen.from_numpy(np.zeros((3, 4), np.float32)).to("cuda")
    with pytest.raises(IndexError):
        x[key if len(key) > 1 else key[0]].to("cpu")


@pytest.mark.parametrize("n", [2, 31, 33, 257, 1000])
@pytest.mark.parametrize("descending", [False, True])
def test_sorting_is_stable_at_every_length(n, descending):
    """Merged runs of all lengths, equal elements and NaN; several lines, inner dims too."""
    rng = np.random.default_rng(n)
    array = rng.choice(np.array([1.0, 2.0, 3.0, np.nan, -np.inf], np.float32), (3, n, 2))
    for k in (-1, 1, n // 2):
        ours = _asen.sort(_asen.from_numpy(array).to("cuda"), dim=1, descending=descending, k=k)
        want = _asen.sort(_asen.from_numpy(array), dim=1, descending=descending, k=k)
        for a, b in zip(ours, want):
            np.testing.assert_array_equal(a.to("cpu").numpy(), b.numpy())


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e19, 1e30])
def test_rows_whose_squares_leave_the_range_of_float(scale):
    """Norms, cosines and their gradients are the CPU's."""
    rng = np.random.default_rng(3)
    weights = np.asarray(rng.standard_normal((5, 70)), np.float32)
    a, b = (np.asarray(scale * rng.uniform(0.5, 1, (5, 70)), np.float32) for _ in range(2))
    for name, arrays in (("normalize", [a]), ("cosine_similarity", [a, b])):
        results = []
        for device in ("cpu", "cuda"):
            tensors = [_asen.from_numpy(x).to(device).requires_grad_() for x in arrays]
            out = _asen.apply(name, tensors, {"eps": 0.0})
            (out[0] * _asen.from_numpy(weights if out[0].ndim == 2 else weights[:, 0].copy()).to(device)).sum().backward()
            results.append([t.detach().to("cpu").numpy().astype(np.float64) for t in (*out, *(t.grad for t in tensors))])
        for ours, want in zip(results[1], results[0]):
            np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
