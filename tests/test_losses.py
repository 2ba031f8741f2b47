"""The losses: against PyTorch in float64 (loss_reference_torch.py), central differences, numbers worked out by hand.

Held to 1e-10 in float64, values and gradients of embeddings and weights alike; in float32 to FLOAT32 of what the loss is
made of. Cases are perturbed to see that the comparison notices.
"""

import math
import tracemalloc
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from asenpp import _asen
from asenpp._asen import Tensor
from asenpp.engine import losses

try:
    import loss_reference_torch as reference
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    reference = None

needs_torch = pytest.mark.skipif(reference is None, reason="PyTorch is not installed: nothing to compare with")

TOLERANCE = 1e-10           # of values and gradients in float64, absolute
FLOAT32 = 2e-6              # of a term's slope in its cosines (s, 1/t, 1), for each term; of the largest entry of a gradient
ASEN = dict(margin=0.2, whole_weight=0.7, local_weight=0.3, align_weight=0.4)


@dataclass(frozen=True)
class Case:
    """A loss of some arrays: its name, its numbers by name, and how the arrays are drawn."""

    name: str
    numbers: dict = field(default_factory=dict)
    several: bool = False       # images with several values
    count: int = 15             # images
    classes: int = 5
    seed: int = 0
    second: bool = True         # with weights (cosine) or local embeddings (asen, align)

    def __str__(self):
        numbers = " ".join(f"{k} {v}" for k, v in self.numbers.items())
        return f"{self.name} {numbers}{' several' * self.several}{' one branch' * (not self.second)}"

    @property
    def counted(self):
        return self.name in ("cosine", "supcon", "dense_triplet")

    def arrays(self):
        """(embeddings, weights or local embeddings or None), of lengths from 0.1 to 10."""
        rng = np.random.default_rng(self.seed)
        drawn = [rng.standard_normal((n, 8)) * 10 ** rng.uniform(-1, 1, (n, 1))
                 for n in (self.count, self.classes if self.name == "cosine" else self.count)]
        return drawn if self.second and self.name in ("cosine", "align", "asen") else [drawn[0], None]

    def labels(self):
        """[(row, value)]: a value an image; where several, some images have two or three."""
        rng = np.random.default_rng(self.seed + 100)
        sizes = rng.integers(1, 4, self.count) if self.several else np.ones(self.count, int)
        return [(row, int(v)) for row, size in enumerate(sizes) for v in np.sort(rng.permutation(self.classes)[:size])]


COSINE, SUPCON, DENSE = dict(scale=16.0, margin=0.2, smoothing=0.0), dict(temperature=0.1), dict(margin=0.2)
CASES = [
    Case("triplet", dict(margin=0.2)), Case("align"), Case("asen", ASEN), Case("asen", ASEN, second=False),
    Case("cosine", COSINE), Case("cosine", COSINE | dict(scale=64.0, margin=0.35)), Case("cosine", COSINE | dict(smoothing=0.1)),
    Case("cosine", COSINE, several=True), Case("cosine", COSINE | dict(smoothing=0.1), several=True),
    Case("cosine", COSINE | dict(margin=0.0, scale=1.0), count=1, classes=3),
    Case("supcon", SUPCON), Case("supcon", SUPCON, several=True), Case("supcon", dict(temperature=0.01), several=True),
    Case("supcon", SUPCON, classes=12),         # some images have no positive
    Case("dense_triplet", DENSE), Case("dense_triplet", DENSE, several=True), Case("dense_triplet", dict(margin=0.0)),
    Case("dense_triplet", dict(margin=1.5), several=True), Case("dense_triplet", DENSE, classes=12),
]
COUNTED = [case for case in CASES if case.counted]
every = pytest.mark.parametrize("case", CASES, ids=str)
every_counted = pytest.mark.parametrize("case", COUNTED, ids=str)


def split(labels):
    """(rows, values), int64."""
    return tuple(np.array(part, np.int64) for part in zip(*labels))


def loss_of(case, e, second, labels=None):
    """(loss, number of terms or None) of our tensors."""
    numbers = case.numbers
    if case.counted:
        rows, values = split(case.labels() if labels is None else labels)
        tensors = [e, second] if case.name == "cosine" else [e]
        return getattr(losses, case.name)(*tensors, rows, values, **numbers)
    if case.name == "asen":
        solver = SimpleNamespace(MARGIN=numbers["margin"], GLOBAL_WEIGHT=numbers["whole_weight"],
                                 LOCAL_WEIGHT=numbers["local_weight"], ALIGN_WEIGHT=numbers["align_weight"])
        return losses.asen(e, second, solver)[0], None
    return (losses.align(e, second) if case.name == "align" else losses.triplet(e, numbers["margin"])), None


def host(tensor):
    return np.array(tensor.detach().to(device="cpu").numpy())


def ours(case, dtype="float64", device="cpu", arrays=None, labels=None):
    """{"value", "count", "gradient 0", "gradient 1"} as arrays."""
    tensors = [None if a is None else Tensor(a.astype(dtype)).to(device=device) for a in (arrays or case.arrays())]
    for tensor in tensors:
        if tensor is not None:
            tensor.requires_grad_()
    total, count = loss_of(case, *tensors, labels)
    assert total.shape == () and total.dtype == dtype and total.device == device
    assert count is None or type(count) is float
    total.backward()
    return {"value": host(total), "count": np.array(np.nan if count is None else count),
            **{f"gradient {i}": host(t.grad) for i, t in enumerate(tensors) if t is not None}}


def theirs(case, labels=None):
    """The same of PyTorch."""
    tensors = [None if a is None else reference.torch.tensor(a, requires_grad=True) for a in case.arrays()]
    arguments = tensors if case.name in ("cosine", "align", "asen") else tensors[:1]
    if case.counted:
        total, count = getattr(reference, case.name)(*arguments, case.labels() if labels is None else labels, **case.numbers)
    else:
        total, count = getattr(reference, case.name)(*arguments, **case.numbers), math.nan
    total.backward()
    return {"value": total.detach().numpy(), "count": np.array(float(count)),
            **{f"gradient {i}": t.grad.numpy() for i, t in enumerate(tensors) if t is not None}}


def compare(found, wanted, tolerance=TOLERANCE):
    assert found.keys() == wanted.keys()
    np.testing.assert_equal(found["count"], wanted["count"], err_msg="count")
    for what in wanted:
        np.testing.assert_allclose(found[what], wanted[what], rtol=0, atol=tolerance, err_msg=what)


def slope(case):
    """How much a term moves with a cosine."""
    return case.numbers.get("scale", 1 / case.numbers.get("temperature", 1.0))


def compare_float32(case, found, exact):
    """float32 against the float64 of the same (rounded) arrays. The same terms are counted."""
    np.testing.assert_equal(found["count"], exact["count"])
    terms = exact["count"] if case.counted else 1.0
    assert abs(found["value"] - exact["value"]) <= FLOAT32 * slope(case) * max(terms, 1.0)
    for what in (k for k in exact if k.startswith("gradient")):
        allowed = FLOAT32 * slope(case) * np.abs(exact[what]).max()
        np.testing.assert_allclose(found[what], exact[what], rtol=0, atol=allowed, err_msg=what)


def rounded(case):
    """The case's arrays as float32 holds them."""
    return [None if a is None else a.astype(np.float32).astype(np.float64) for a in case.arrays()]


# ---- against PyTorch ----


@needs_torch
@every
def test_equals_pytorch_in_float64(case):
    """Value, number of terms and gradients."""
    compare(ours(case), theirs(case))


MUTANTS = [(case, name) for case in CASES for name in case.numbers
           if not (case.name == "asen" and not case.second and name in ("local_weight", "align_weight"))]


@needs_torch
@pytest.mark.parametrize("case, name", MUTANTS, ids=[f"{case}: {name}" for case, name in MUTANTS])
def test_a_number_that_is_off_is_noticed(case, name):
    """Each number of each formula moved by 1e-6 in the reference: the comparison fails."""
    moved = replace(case, numbers=case.numbers | {name: case.numbers[name] + 1e-6})
    with pytest.raises(AssertionError):
        compare(ours(case), theirs(moved))


@needs_torch
@every_counted
def test_a_wrong_label_is_noticed(case):
    """One image's value moved in the reference: the comparison fails."""
    labels = case.labels()
    row, value = labels[0]
    moved = [((row, (value + 1) % case.classes) if r == row else (r, v)) for r, v in labels]
    with pytest.raises(AssertionError):
        compare(ours(case), theirs(case, sorted(set(moved))))


@needs_torch
@every
def test_a_wrong_gradient_is_noticed(case):
    """One entry off by 1e-9: the comparison fails."""
    found = ours(case)
    found["gradient 0"].flat[0] += 1e-9
    with pytest.raises(AssertionError, match="gradient 0"):
        compare(found, theirs(case))


@needs_torch
def test_several_values_are_not_as_many_images():
    """The reference with each label an image of its own, so that an image's other values count as wrong: noticed."""
    case = Case("cosine", COSINE, several=True)
    labels, (e, w) = case.labels(), case.arrays()
    rows, values = split(labels)
    apart, count = reference.cosine(reference.torch.tensor(e[rows]), reference.torch.tensor(w),
                                    list(enumerate(values.tolist())), **case.numbers)
    found = ours(case)
    assert found["count"] == case.count < count == len(labels)
    assert abs(float(apart) - found["value"]) > 1


# ---- precision ----


@every
def test_float32_is_near_float64(case):
    compare_float32(case, ours(case, "float32"), ours(case, "float64", arrays=rounded(case)))


@every
def test_the_float32_comparison_can_fail(case):
    found, exact = ours(case, "float32"), ours(case, "float64", arrays=rounded(case))
    for what, off in (("value", 1e-5 * slope(case) * max(float(np.nan_to_num(exact["count"], nan=1.0)), 1.0)),
                      ("gradient 0", 1e-5 * slope(case) * np.abs(exact["gradient 0"]).max())):
        if off:
            with pytest.raises(AssertionError):
                compare_float32(case, found | {what: found[what] + off}, exact)


# ---- central differences ----


@every
def test_gradients_are_central_differences(case):
    """Along random directions, in float64: to 1e-6 of the gradient's norm."""
    arrays, found = case.arrays(), ours(case)
    rng = np.random.default_rng(1)
    for i in (i for i, a in enumerate(arrays) if a is not None):
        for _ in range(3):
            direction = rng.standard_normal(arrays[i].shape) * 1e-6
            ends = [ours(case, arrays=[a if j != i else a + sign * direction for j, a in enumerate(arrays)])["value"]
                    for sign in (1, -1)]
            gradient = found[f"gradient {i}"]
            wanted = (gradient * direction).sum()
            assert abs((ends[0] - ends[1]) / 2 - wanted) <= 1e-6 * np.linalg.norm(gradient) * np.linalg.norm(direction) + 1e-14


# ---- by hand ----


def terms(function, *arrays, labels, **numbers):
    """(total, count, gradients) of a loss in float64."""
    tensors = [Tensor(np.array(a, np.float64)).requires_grad_() for a in arrays]
    total, count = function(*tensors, *split(labels), **numbers)
    total.backward()
    return total.item(), count, [host(t.grad) for t in tensors]


def test_cosine_by_hand():
    """Cosines 1 and 0: logits 2 (1 - 0.25) and 0 of the true and the other class; the target smoothed to 0.95 and 0.05."""
    e, w = [[3.0, 0.0]], [[2.0, 0.0], [0.0, 5.0]]
    total, count, _ = terms(losses.cosine, e, w, labels=[(0, 0)], scale=2.0, margin=0.25)
    assert (total, count) == (pytest.approx(math.log(1 + math.exp(-1.5)), abs=1e-15), 1.0)
    total, _, _ = terms(losses.cosine, e, w, labels=[(0, 0)], scale=2.0, margin=0.25, smoothing=0.1)
    assert total == pytest.approx(math.log(math.exp(1.5) + 1) - 0.95 * 1.5, abs=1e-15)


def test_cosine_of_two_values_by_hand():
    """Values 0 and 1 of three classes: each against class 2 alone (logit 0), and half of each."""
    e, w = [[1.0, 0.0, 0.0]], np.eye(3)
    for eps in (0.0, 0.1):
        total, count, _ = terms(losses.cosine, e, w, labels=[(0, 0), (0, 1)], scale=2.0, margin=0.25, smoothing=eps)
        wanted = sum(math.log(1 + math.exp(logit)) - (1 - eps / 2) * logit for logit in (1.5, -0.5)) / 2
        assert (total, count) == (pytest.approx(wanted, abs=1e-15), 1.0)


def test_supcon_by_hand():
    """Two images alike and a third at a right angle: exp(1/t) over exp(1/t) + 1 for two anchors; the third has none."""
    total, count, _ = terms(losses.supcon, [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], labels=[(0, 4), (1, 4), (2, 7)], temperature=0.5)
    assert (total, count) == (pytest.approx(2 * math.log(1 + math.exp(-2)), abs=1e-15), 2.0)


def test_supcon_of_several_values_by_hand():
    """Of the same images the first has a value in common with each of the others: two positives, of similarity 2 and 0."""
    total, count, _ = terms(losses.supcon, [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], labels=[(0, 4), (0, 7), (1, 4), (2, 7)],
                            temperature=0.5)
    denominator = math.log(math.exp(2) + 1)
    assert (total, count) == (pytest.approx(denominator - 1 + denominator - 2 + math.log(2), abs=1e-14), 3.0)


def test_dense_triplet_by_hand():
    """Of the same images: triplets (0, 1, 2) and (1, 0, 2), with cosines 1 and 0; at margin 1 neither is active."""
    e, labels = [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], [(0, 4), (1, 4), (2, 7)]
    assert terms(losses.dense_triplet, e, labels=labels, margin=1.5)[:2] == (pytest.approx(1.0, abs=1e-15), 2.0)
    total, count, (gradient,) = terms(losses.dense_triplet, e, labels=labels, margin=1.0)
    assert (total, count) == (0.0, 0.0) and not gradient.any()


def test_images_that_share_one_of_several_values_are_positives():
    """Image 1 shares a value with each of the others, which share none."""
    positive, negative = losses._pairs(*split([(0, 0), (1, 0), (1, 1), (2, 1)]), 3)
    assert positive.tolist() == [[False, True, False], [True, False, True], [False, True, False]]
    assert negative.tolist() == [[False, False, True], [False, False, False], [True, False, False]]


def test_the_order_of_labels_and_images_does_not_matter():
    for case in COUNTED:
        order = np.random.default_rng(2).permutation(case.count)
        place = np.argsort(order)
        e, second = case.arrays()
        labels = [(int(place[row]), value) for row, value in case.labels()][::-1]
        found, wanted = ours(case, arrays=[e[order], second], labels=labels), ours(case)
        found["gradient 0"] = found["gradient 0"][place]
        compare(found, wanted)


# ---- counting active triplets ----


@pytest.mark.parametrize("seed", range(20))
def test_active_triplets_are_counted_one_by_one(seed):
    """Cosines on a grid of quarters, so that many triplets lie exactly on the margin, against a loop over all."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12))
    cosines, margin = rng.integers(-4, 5, (n, n)) / 4, float(rng.choice([0.0, 0.25, 0.5, 3.0]))
    kind = rng.integers(0, 3, (n, n))           # neither, positive, negative
    weights, active = np.zeros((n, n)), 0
    for x in range(n):
        for p in np.flatnonzero(kind[x] == 1):
            for m in np.flatnonzero(kind[x] == 2):
                if margin - cosines[x, p] + cosines[x, m] > 0:
                    weights[x, p] -= 1
                    weights[x, m] += 1
                    active += 1
    found, count = losses._active_triplets(cosines, kind == 1, kind == 2, margin)
    np.testing.assert_array_equal(found, weights)
    assert count == active


def test_dense_triplet_takes_memory_of_pairs():
    """Of 256 images: at most 16 matrices of pairs, where a float of each triplet would take 256."""
    n = 256
    e = Tensor(np.random.default_rng(0).standard_normal((n, 8))).requires_grad_()
    rows = np.arange(n)
    losses.dense_triplet(e, rows, rows % 4, 0.2)        # what is loaded at the first call
    before = _asen.memory_stats("cpu")["current"]
    _asen.reset_peak_memory("cpu")
    tracemalloc.start()
    try:
        losses.dense_triplet(e, rows, rows % 4, 0.2).total.backward()
        arrays = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert _asen.memory_stats("cpu")["peak"] - before + arrays < 16 * n * n * 8


# ---- degenerate batches ----

ONE, PAIR, ALONE, ALL = [(0, 0)], [(0, 0), (1, 0)], [(0, 0), (1, 1), (2, 2)], [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize("function, labels, numbers", [
    (losses.supcon, ONE, SUPCON), (losses.supcon, ALONE, SUPCON),
    (losses.dense_triplet, ONE, DENSE), (losses.dense_triplet, ALONE, DENSE), (losses.dense_triplet, ALL, DENSE),
    (losses.dense_triplet, PAIR, DENSE)], ids=lambda x: getattr(x, "__name__", str(x)))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_terms_are_zero_with_a_history(function, labels, numbers, dtype):
    """One image, no positives, no negatives: total 0, count 0, and a gradient of zeros."""
    rows, values = split(labels)
    e = Tensor(np.random.default_rng(0).standard_normal((len(labels), 4)).astype(dtype)).requires_grad_()
    total, count = function(e, rows, values, **numbers)
    assert (total.item(), count) == (0.0, 0.0)
    total.backward()
    assert e.grad.shape == e.shape and not host(e.grad).any()


def test_two_images_of_one_value_have_nothing_to_tell_apart():
    """SupCon of a pair: the only other image is the positive: two terms of 0."""
    total, count, (gradient,) = terms(losses.supcon, [[1.0, 2.0], [3.0, -1.0]], labels=PAIR, temperature=0.1)
    assert (total, count) == (0.0, 2.0)
    assert np.abs(gradient).max() < 1e-14


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cosine_with_one_class_is_zero(smoothing):
    """K = 1, and all of K an image's own: the softmax has one class left."""
    for e, w, labels in (([[1.0, 2.0]], [[3.0, 1.0]], ONE), ([[1.0, 2.0]], np.eye(2), [(0, 0), (0, 1)])):
        total, count, gradients = terms(losses.cosine, e, w, labels=labels, scale=64.0, margin=0.35, smoothing=smoothing)
        assert (total, count) == (0.0, 1.0)
        assert not any(g.any() for g in gradients)


@every_counted
def test_collapsed_and_zero_embeddings(case):
    """All embeddings equal, and all zero: finite values and gradients, in float32."""
    for e in (np.ones((case.count, 8)), np.zeros((case.count, 8))):
        found = ours(case, "float32", arrays=[e, case.arrays()[1]])
        assert all(np.isfinite(found[what]).all() for what in found)
    if case.name == "dense_triplet":        # each triplet lies at the margin: at margin 0 none is active
        pairs = losses._pairs(*split(case.labels()), case.count)
        every_triplet = sum(int(p.sum()) * int(n.sum()) for p, n in zip(*pairs))
        exact = ours(case, arrays=[np.zeros((case.count, 8)), None])
        assert exact["count"] == (every_triplet if case.numbers["margin"] else 0)
        assert exact["value"] == pytest.approx(case.numbers["margin"] * every_triplet, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_exponents_are_finite(dtype):
    """Opposite and equal vectors at s = 64 and t = 0.01: terms of 64 (2 + m) and of 200, which float32 cannot exponentiate."""
    e = Tensor(np.array([[1, 0], [-1, 0]], dtype)).requires_grad_()
    w = Tensor(np.array([[-1, 0], [1, 0]], dtype)).requires_grad_()
    total, count = losses.cosine(e, w, *split([(0, 0), (1, 1)]), 64.0, 0.35)
    assert total.item() == pytest.approx(2 * 64 * 2.35, rel=1e-6) and count == 2
    total.backward()
    e3 = Tensor(np.array([[1, 0], [-1, 0], [1, 0]], dtype)).requires_grad_()
    total, count = losses.supcon(e3, *split([(0, 0), (1, 0), (2, 1)]), 0.01)
    assert total.item() == pytest.approx(200 + math.log(2), rel=1e-6) and count == 2
    total.backward()
    assert all(np.isfinite(host(t.grad)).all() for t in (e, w, e3))


@every_counted
def test_no_history_is_wanted_without_gradients(case):
    """Embeddings that need no gradient give the same value."""
    tensors = [None if a is None else Tensor(a) for a in case.arrays()]
    total, count = loss_of(case, *tensors)
    found = ours(case)
    assert (total.item(), count) == (found["value"], found["count"])


def test_not_a_number_is_not_hidden():
    """An embedding that is NaN makes each loss NaN."""
    for case in COUNTED:
        e, second = case.arrays()
        e[0, 0] = math.nan
        total, _ = loss_of(case, *(None if a is None else Tensor(a) for a in (e, second)))
        assert math.isnan(total.item()), str(case)
