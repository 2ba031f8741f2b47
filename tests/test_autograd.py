"""The tape: what is recorded, freed, shared, refused. Gradients of single ops are test_ops.py's."""

import gc
import threading

import numpy as np
import pytest

from asenpp import _asen


def leaf(values, dtype=np.float64):
    return _asen.from_numpy(np.array(values, dtype)).clone().requires_grad_()


def constant(values, dtype=np.float64):
    return _asen.from_numpy(np.array(values, dtype)).clone()


def in_use():
    return _asen.memory_stats()["current"]


@pytest.fixture(autouse=True)
def recording():
    yield
    _asen.set_grad_enabled(True)


# ---- what a gradient is ----


def test_product_with_itself():
    """Both inputs are one tensor: its gradient is the sum of both."""
    x = leaf([1.0, -2.0, 3.0])
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2, -4, 6])


def test_shared_subexpressions():
    """A result used three times gets all three gradients before it hands its own on."""
    x = leaf([0.5, 2.0])
    y = x.exp()
    z = y * y + y / x
    (z + y).sum().backward()
    e, v = np.exp([0.5, 2.0]), np.array([0.5, 2.0])
    np.testing.assert_allclose(x.grad.numpy(), 2 * e * e + e / v - e / v**2 + e, rtol=1e-14)


def test_backward_twice_accumulates():
    """Into .grad, over separate graphs; None clears it."""
    x = leaf([1.0, 2.0])
    for k in (1, 2, 3):
        (x * 3.0).sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), [3 * k, 3 * k])
    x.grad = None
    assert x.grad is None
    (x * 2.0).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2, 2])


def test_a_given_gradient_starts_backward():
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    (x * x).backward(constant([[1.0, 0.0], [0.5, -1.0]]))
    np.testing.assert_array_equal(x.grad.numpy(), [[2, 0], [3, -8]])


def test_backward_of_a_leaf():
    x = leaf(3.0)
    x.backward()
    assert x.grad.item() == 1


def test_gradients_never_share_memory():
    """The gradient of a sum is handed to both inputs; writing into one .grad (clipping, zeroing) must
    change neither the other nor the gradient that the user gave."""
    x, y, seed = leaf([1.0, 2.0]), leaf([3.0, 4.0]), constant([1.0, 1.0])
    (x + y).backward(seed)
    x.grad.fill_(7.0)
    np.testing.assert_array_equal(y.grad.numpy(), [1, 1])
    np.testing.assert_array_equal(seed.numpy(), [1, 1])
    y.grad.fill_(5.0)
    np.testing.assert_array_equal(x.grad.numpy(), [7, 7])
    np.testing.assert_array_equal(seed.numpy(), [1, 1])
    z = leaf([1.0, 2.0])
    z.backward(seed)
    z.grad.zero_()
    np.testing.assert_array_equal(seed.numpy(), [1, 1])


def test_gradients_are_dense():
    """Optimizers run over flat memory: a gradient that came as a view is laid out."""
    x, y = leaf(np.ones((2, 3))), leaf(np.ones((2, 3, 4, 5)))
    (x.sum() + y.permute(0, 2, 3, 1).sum() + x.t().sum()).backward()
    assert x.grad.is_contiguous() and y.grad.is_contiguous()
    np.testing.assert_array_equal(x.grad.numpy(), np.full((2, 3), 2))


def test_gradients_through_views_slices_and_cat():
    """reshape, permute, expand, index, cat in one expression, against PyTorch."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    values = np.random.default_rng(0).standard_normal((2, 3, 4, 5))

    def f(x, cat, t):
        a = x.permute(0, 2, 3, 1)[:, 1:4:2, ..., -1]
        b = x.reshape(2, 3, 20)[:, 1][:, 5:15].reshape(2, 2, 5)
        c = x[1, None, 0, 0].expand(2, 2, 5)
        return (cat([a, b * a, c], 1) * t).sum() + x[0, 0, 0, 0] * x[0, 0, 0, 0]

    t = np.random.default_rng(1).standard_normal((2, 6, 5))
    ours, theirs = leaf(values), torch.tensor(values, requires_grad=True)
    f(ours, _asen.cat, constant(t)).backward()
    f(theirs, torch.cat, torch.tensor(t)).backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-14, atol=1e-14)


def test_gradient_of_a_view_of_a_leaf_reaches_the_leaf():
    x = leaf([1.0, 2.0, 3.0])
    row = x[1]
    assert not row.is_leaf and row.requires_grad and row.grad is None
    (row * 5.0).backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0, 5, 0])


def test_gradients_flow_through_conversions():
    x = leaf([1.0, 2.0], np.float32)
    (x.double() * constant([2.0, 3.0])).sum().backward()
    assert x.grad.dtype == "float32"
    np.testing.assert_array_equal(x.grad.numpy(), [2, 3])


def test_only_what_wants_a_gradient_gets_one():
    x, c = leaf([1.0]), constant([2.0])
    y = (c * c + 1.0) * x
    assert not (c * c).requires_grad and y.requires_grad
    y.backward()
    assert c.grad is None and x.grad.item() == 5


def test_unused_inputs_get_none():
    x, y = leaf([1.0]), leaf([1.0])
    (x * 2.0).backward()
    assert y.grad is None


def test_many_inputs():
    """cat of hundreds: more inputs than the tape's fixed arrays."""
    parts = [leaf([float(i)]) for i in range(300)]
    (_asen.cat(parts) * constant(np.arange(300.0))).sum().backward()
    assert [p.grad.item() for p in parts] == list(range(300))


def test_one_of_several_outputs():
    """Gradients through the map alone, and through the vector alone, add up to both."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s) for s in ((2, 3, 4, 5), (2, 2, 4, 5), (2, 2))]
    weights = [rng.standard_normal(s) for s in ((2, 3), (2, 4, 5))]

    def gradients(*outputs):
        t = [leaf(a) for a in arrays]
        out = _asen.spatial_attention(*t)
        total = None
        for k in outputs:
            part = (out[k] * constant(weights[k])).sum()
            total = part if total is None else total + part
        total.backward()
        return [np.zeros(a.shape) if x.grad is None else x.grad.numpy() for x, a in zip(t, arrays)]

    for both, vector, maps in zip(gradients(0, 1), gradients(0), gradients(1)):
        np.testing.assert_allclose(both, vector + maps, rtol=1e-12, atol=1e-14)


# ---- errors ----


def test_backward_without_a_graph_is_an_error():
    with pytest.raises(ValueError, match="backward"):
        constant([1.0]).backward()
    with pytest.raises(ValueError, match="backward"):
        leaf([1.0]).detach().backward()


def test_backward_of_several_elements_needs_a_gradient_of_the_shape():
    x = leaf([1.0, 2.0]) * 2.0
    with pytest.raises(ValueError, match="needs the gradient"):
        x.backward()
    with pytest.raises(ValueError, match=r"\(3,\)"):
        x.backward(constant([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="float32"):
        x.backward(constant([1.0, 2.0], np.float32))
    with pytest.raises(TypeError):
        x.backward([1.0, 2.0])


def test_a_second_backward_needs_retain_graph():
    """The first one frees what it saved; asked to keep it, the second gives the same again."""
    x = leaf([2.0])
    y = x * x
    y.backward()
    with pytest.raises(ValueError, match="retain_graph"):
        y.backward()
    x.grad = None
    y = x * x
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 12
    with pytest.raises(ValueError, match="retain_graph"):
        y.backward()


def test_integers_have_no_gradients():
    for dtype in (np.int64, np.uint8, np.int32, np.bool_):
        with pytest.raises(TypeError, match="only floating"):
            _asen.from_numpy(np.zeros(2, dtype)).requires_grad_()


def test_requires_grad_of_a_result_cannot_be_changed():
    y = leaf([1.0]) * 2.0
    with pytest.raises(ValueError, match="detach"):
        y.requires_grad = False
    y.requires_grad = True  # it does already
    assert y.requires_grad


def test_requires_grad_can_be_taken_away_from_a_leaf():
    x = leaf([1.0])
    y = x * x
    x.requires_grad = False
    assert not (x * 2.0).requires_grad and y.requires_grad
    with pytest.raises(TypeError):
        del x.requires_grad


def test_grad_takes_only_what_fits():
    x = leaf([1.0, 2.0])
    for wrong in (constant([1.0]), constant([1.0, 2.0], np.float32)):
        with pytest.raises(ValueError, match="grad"):
            x.grad = wrong
    with pytest.raises(TypeError):
        x.grad = 1.0
    x.grad = constant([3.0, 4.0])
    (x * 1.0).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [4, 5])


@pytest.mark.parametrize("change", [lambda t: t.fill_(0.0), lambda t: t.copy_(t * 2.0), lambda t: t.zero_(), lambda t: t[:1].fill_(3.0)],
                         ids=["fill_", "copy_", "zero_", "a view's fill_"])
@pytest.mark.parametrize("what", ["input", "result"])
def test_changes_in_place_between_forward_and_backward_are_errors(change, what):
    """mul saves its inputs, exp its result: overwritten, the gradient would be silently wrong."""
    x, w = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    if what == "input":
        y = x * w
        change(w.detach())
    else:
        y = x.exp()
        change(y.detach())
    with pytest.raises(ValueError, match="changed in place"):
        y.sum().backward()


def test_changes_of_what_is_not_saved_are_fine():
    """add saves nothing."""
    x, w = leaf([1.0, 2.0]), constant([3.0, 4.0])
    y = x + w
    w.zero_()
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [1, 1])


def test_an_optimizer_step_counts_as_a_change():
    """Weights moved between forward and backward are caught too."""
    x, w = leaf([1.0, 2.0], np.float32), leaf([3.0, 4.0], np.float32)
    y = x * w
    _asen.optim_step("sgd", [w.detach()], [constant([1.0, 1.0], np.float32)], None, None, 1, 0.1)
    with pytest.raises(ValueError, match="changed in place"):
        y.sum().backward()


def test_a_failed_backward_leaves_the_graph_usable():
    """After an error nothing is pending: the same leaves give right gradients again."""
    x, w = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    z = x * w
    y = z.exp()
    z.detach().zero_()
    y.detach().zero_()
    with pytest.raises(ValueError, match="changed in place"):
        (y + z).sum().backward()
    x.grad = w.grad = None
    (x * w).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [3, 4])


# ---- recording ----


def test_nothing_is_recorded_while_off():
    x = leaf([1.0])
    assert _asen.is_grad_enabled()
    assert _asen.set_grad_enabled(False) is True
    y = x * x
    assert _asen.set_grad_enabled(True) is False
    assert not y.requires_grad and y.is_leaf
    with pytest.raises(ValueError):
        y.backward()


def test_recording_is_a_thread_of_its_own():
    """Off in one thread is not off in another."""
    _asen.set_grad_enabled(False)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(_asen.is_grad_enabled()))
    thread.start()
    thread.join()
    assert seen == [True] and not _asen.is_grad_enabled()


def test_detach_cuts_the_graph_and_shares_memory():
    x = leaf([1.0, 2.0])
    y = x * 2.0
    d = y.detach()
    assert not d.requires_grad and d.data_ptr() == y.data_ptr()
    (d * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2, 4])


# ---- memory ----


def test_a_graph_without_backward_is_freed():
    """The result out of sight, everything saved for backward is gone."""
    gc.collect()
    x = leaf(np.ones(10000))
    start = in_use()
    y = x
    for _ in range(20):
        y = (y * y).exp() + y
    assert in_use() > start + 20 * 80000
    del y
    assert in_use() == start


def test_backward_frees_what_was_saved():
    """While the result is still there; only the gradient is new."""
    x = leaf(np.ones(10000))
    start = in_use()
    y = x
    for _ in range(20):
        y = y.tanh() * y
    total = y.sum()
    del y
    held = in_use()
    total.backward()
    assert held > start + 20 * 80000
    assert in_use() < start + 2 * 100000
    del total
    x.grad = None
    assert in_use() == start


def test_a_chain_of_100000_nodes_neither_recurses_nor_leaks():
    """Run back and dropped, and dropped without being run: iteratively both."""
    x = leaf([1.0, 2.0], np.float32)
    start = in_use()
    for backward in (True, False):
        y = x
        for _ in range(100_000):
            y = -y
        if backward:
            y.sum().backward()
            np.testing.assert_array_equal(x.grad.numpy(), [1, 1])
            x.grad = None
        del y
        assert in_use() == start


def test_a_graph_of_exponentially_many_paths_runs_once_a_node():
    """60 doublings: 2^60 paths, 60 nodes."""
    x = leaf([1.0])
    y = x
    for _ in range(60):
        y = y + y
    y.backward()
    assert x.grad.item() == 2.0**60


def test_errors_in_backward_free_everything():
    x, w = leaf(np.ones(1000)), leaf(np.ones(1000))
    start = in_use()
    for _ in range(3):
        y = (x * w).exp()
        y.detach().zero_()
        with pytest.raises(ValueError):
            y.sum().backward()
        del y
        assert in_use() == start


# ---- threads ----


def test_two_threads_share_leaves():
    """Forward and backward over the same leaves from two threads: no gradient is lost."""
    x = leaf(np.ones(1000))
    errors = []

    def work():
        try:
            for _ in range(100):
                (x * 2.0).exp().sum().backward()
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for t in threads:
        t.start()
    seen = [x.grad for _ in range(2000)]  # reading while backward replaces it
    for t in threads:
        t.join()
    assert not errors and len(seen) == 2000
    np.testing.assert_allclose(x.grad.numpy(), 200 * 2 * np.exp(2) * np.ones(1000), rtol=1e-12)


def test_only_what_a_rule_reads_is_saved():
    """What the gradient does not need may be overwritten: a factor whose partner wants no gradient, the result of a
    batch norm without ReLU."""
    w, x = leaf([3.0]), constant([2.0])
    for y, written in ((w * x, w), (w / x, w), (_asen.linear(x.reshape(1, 1), w.reshape(1, 1)), w)):
        written.detach().fill_(7.0)
        w.grad = None
        y.sum().backward()
        assert w.grad.item() in (2.0, 0.5)
    y = w * x
    x.fill_(5.0)
    with pytest.raises(ValueError, match="changed in place"):
        y.sum().backward()

    scale, shift, mean, var = (_asen.from_numpy(np.full(3, v, np.float32)) for v in (1, 0, 0, 1))
    scale = scale.clone().requires_grad_()
    image = _asen.from_numpy(np.random.default_rng(0).standard_normal((4, 3, 5, 5)).astype(np.float32))
    gradients = []
    for relu, inplace in ((False, False), (False, True), (True, False)):
        y = _asen.batch_norm(image, scale, shift, mean, var, relu=relu)[0]
        scale.grad = None
        (y.relu_() if inplace else y.relu()).sum().backward()
        gradients.append(scale.grad.numpy())
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-6)
    np.testing.assert_allclose(gradients[2], gradients[0], rtol=1e-5)
    y = _asen.batch_norm(image, scale, shift, mean, var, relu=True)[0]
    y.relu_()
    with pytest.raises(ValueError, match="batch_norm: its result was changed in place"):
        y.sum().backward()
