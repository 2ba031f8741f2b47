"""The losses on the GPU: against PyTorch's float64 to 1e-10, and without PyTorch against the CPU; float32 to its bound."""

import numpy as np
import pytest

import test_losses as kit
from asenpp import _asen


@kit.needs_torch
@kit.every
def test_equals_pytorch_in_float64(case):
    """Value, number of terms and gradients, as on the CPU."""
    kit.compare(kit.ours(case, device="cuda"), kit.theirs(case))


@kit.every
def test_equals_the_cpu_in_float64(case):
    kit.compare(kit.ours(case, device="cuda"), kit.ours(case))


@kit.needs_torch
@pytest.mark.parametrize("case, name", kit.MUTANTS, ids=[f"{case}: {name}" for case, name in kit.MUTANTS])
def test_a_number_that_is_off_is_noticed(case, name):
    """Each number of each formula moved by 1e-6 in the reference: the comparison fails."""
    moved = kit.replace(case, numbers=case.numbers | {name: case.numbers[name] + 1e-6})
    with pytest.raises(AssertionError):
        kit.compare(kit.ours(case, device="cuda"), kit.theirs(moved))


@kit.every
def test_float32_is_near_float64(case):
    kit.compare_float32(case, kit.ours(case, "float32", "cuda"), kit.ours(case, arrays=kit.rounded(case)))


@pytest.mark.parametrize("name, numbers", [("supcon", kit.SUPCON), ("dense_triplet", kit.DENSE)])
@pytest.mark.parametrize("labels", [kit.ONE, kit.ALONE], ids=["one image", "no positives"])
def test_no_terms_are_zero_with_a_history(name, numbers, labels):
    case = kit.Case(name, numbers, count=len(labels))
    found = kit.ours(case, "float32", "cuda", labels=labels)
    assert found["value"] == 0 and found["count"] == 0
    assert found["gradient 0"].shape == (len(labels), 8) and not found["gradient 0"].any()


@kit.every
def test_the_same_bits_again(case):
    """Two calls: value and gradients to the bit."""
    first, again = (kit.ours(case, "float32", "cuda") for _ in range(2))
    for what in first:
        np.testing.assert_array_equal(first[what], again[what], err_msg=what)


def test_memory_is_of_pairs():
    """Dense triplets of 256 images: at most 16 matrices of pairs on the device, where a float of each triplet takes 256."""
    n = 256
    e = _asen.Tensor(np.random.default_rng(0).standard_normal((n, 8))).to(device="cuda").requires_grad_()
    rows = np.arange(n)
    before = _asen.memory_stats("cuda")["current"]
    _asen.reset_peak_memory("cuda")
    kit.losses.dense_triplet(e, rows, rows % 4, 0.2).total.backward()
    assert _asen.memory_stats("cuda")["peak"] - before < 16 * n * n * 8
