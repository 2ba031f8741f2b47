"""Writes in place and autograd: PyTorch's rules. A write on a result is part of the graph, also through views; one on a
leaf that requires a gradient is refused while recording; what was saved for backward and is overwritten raises there.
tests/inplace_programs.py draws programs at random; here stand the cases by name, and those without PyTorch."""

import gc
import threading

import numpy as np
import pytest

import asenpp
from asenpp import _asen, nn

PROGRAMS = 400  # of tests/inplace_programs.py; `make inplace` runs more


def leaf(values):
    return _asen.from_numpy(np.array(values, np.float64)).clone().requires_grad_()


def constant(values):
    return _asen.from_numpy(np.array(values, np.float64)).clone()


def values(t):
    return None if t is None else np.array(t.detach().tolist())


# -- results -------------------------------------------------------------------------------------

def test_a_zeroed_result_sends_no_gradient_to_what_it_was():
    a = leaf([1.0, 2.0])
    z = a * 1.0
    z.zero_()
    assert z.requires_grad and not z.is_leaf
    z.sum().backward()
    np.testing.assert_array_equal(values(a.grad), [0, 0])


def test_a_copied_result_sends_its_gradient_to_the_source():
    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    z = a * 1.0
    assert z.copy_(b * 3.0) is z
    (z * z).sum().backward()
    np.testing.assert_array_equal(values(a.grad), [0, 0])
    np.testing.assert_array_equal(values(b.grad), [54, 72])


def test_a_plain_tensor_joins_the_graph_by_what_is_copied_into_it():
    """Also a leaf's values: the tensor is a result by then, not another name of the leaf."""
    for make in (lambda b: b, lambda b: b * 1.0):
        b, z = leaf([3.0, 4.0]), constant([0.0, 0.0])
        z.copy_(make(b))
        assert z.requires_grad and not z.is_leaf
        (z * 2.0).sum().backward()
        np.testing.assert_array_equal(values(b.grad), [2, 2])
        assert z.grad is None


def test_copying_converts_broadcasts_and_keeps_the_gradient():
    b = _asen.from_numpy(np.array([3.0], np.float32)).clone().requires_grad_()
    z = constant([[1.0, 2.0], [3.0, 4.0]])
    z.copy_(b)
    (z * constant([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert b.grad.dtype == "float32" and values(b.grad).tolist() == [10]


def test_integers_join_no_graph():
    a, z = leaf([1.5, 2.5]), _asen.from_numpy(np.zeros(2, np.int64)).clone()
    z.copy_(a * 2.0)
    assert not z.requires_grad and z.tolist() == [3, 5]


VIEWS = {"slice": lambda z: z[1:3], "row": lambda z: z[2], "step": lambda z: z[::2], "reshape": lambda z: z.reshape(2, 2),
         "column": lambda z: z.reshape(2, 2)[:, 1], "transpose": lambda z: z.reshape(2, 2).t(), "unsqueeze": lambda z: z.unsqueeze(1),
         "view of a view": lambda z: z[1:].reshape(1, 3).t()[1:]}
FILLS = {"zero_": lambda v, b: v.zero_(), "fill_": lambda v, b: v.fill_(2.0), "copy_": lambda v, b: v.copy_(b[0] * 3.0),
         "mul": lambda v, b: _asen.apply_("mul", [v, b[1]]), "tanh": lambda v, b: _asen.apply_("tanh", [v])}


@pytest.mark.parametrize("through", ["the view", "the base"])
@pytest.mark.parametrize("plain", [False, True], ids=["a result", "a plain tensor"])
@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS.keys())
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_views_and_bases_follow_each_other(view, fill, plain, through):
    """A view is written and the base used, and the other way round; the values and gradients are those of a program
    without any writes: the base is put together from its parts."""
    torch = pytest.importorskip("torch")
    gradients = []
    for lib in ("asenpp", "torch"):
        if lib == "asenpp":
            a, b = leaf([1.0, 2.0, 3.0, 4.0]), leaf([5.0, 6.0])
        else:
            a, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0]))
        z = a.detach().clone() if plain else a * 2.0
        v = view(z)
        before = view(z)
        apply = fill if lib == "asenpp" else {
            FILLS["mul"]: lambda v, b: v.mul_(b[1]), FILLS["tanh"]: lambda v, b: v.copy_(v.tanh())}.get(fill, fill)
        apply(v if through == "the view" else z, b)
        out = sum((t * t).sum() for t in (z, v, before, view(z), z.detach()))
        if out.requires_grad:
            out.backward()
        gradients.append([out.tolist(), a.grad.tolist() if a.grad is not None else None,
                          b.grad.tolist() if b.grad is not None else None, z.requires_grad, v.requires_grad, before.is_leaf])
    ours, theirs = gradients
    assert ours[3:] == theirs[3:]
    for mine, its in zip(ours[:3], theirs[:3]):
        assert (mine is None) == (its is None)
        if mine is not None:
            np.testing.assert_allclose(mine, its, rtol=1e-12, atol=1e-12)


def test_a_buffer_filled_row_by_row():
    rows = [leaf([float(i), 1.0]) for i in range(3)]
    buffer = constant(np.zeros((3, 2)))
    for i, row in enumerate(rows):
        buffer[i].copy_(row * row)
    (buffer * constant([[1.0], [2.0], [3.0]])).sum().backward()
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(values(row.grad), (i + 1) * 2 * np.array([i, 1.0]))


def test_channels_last_bases_take_regions():
    """A 4-D result lies channels-last: a region of its gradient does, too."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    a, b, w = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 2, 4)), rng.standard_normal((2, 3, 4, 5))
    got = []
    for make in (leaf, lambda x: torch.tensor(x, requires_grad=True)):
        x, y, weight = make(a), make(b), make(w).detach()
        z = x * 2.0
        z[:, 1:, :, 3].copy_(y * 3.0)
        z.permute(0, 2, 3, 1)[1].zero_()
        (z * weight).sum().backward()
        got.append([z.tolist(), x.grad.tolist(), y.grad.tolist()])
    for mine, its in zip(*got):
        np.testing.assert_allclose(mine, its, rtol=1e-12)


def test_in_place_ops_are_their_ops():
    """Every differentiable elementwise row: value and gradients of z = op(z), also where z is given twice."""
    for name, args, attrs in (("mul", 1, {}), ("add", 1, {}), ("sub", 1, {}), ("div", 1, {}), ("exp", 0, {}), ("tanh", 0, {}),
                              ("relu", 0, {}), ("clamp", 0, {"min": 0.5, "max": 3.0}), ("pow", 0, {"exponent": 3.0}),
                              ("sqrt", 0, {}), ("neg", 0, {})):
        got = []
        for in_place in (False, True):
            a, b = leaf([0.3, 2.0, 4.0]), leaf([1.5, -2.0, 0.5])
            z = a * 1.0
            inputs = [z, b][:1 + args]
            out = _asen.apply_(name, inputs, attrs) if in_place else _asen.apply(name, inputs, attrs)
            assert (out is z) == in_place
            (out * constant([1.0, 2.0, 3.0])).sum().backward()
            got.append([out.tolist(), a.grad.tolist(), b.grad.tolist() if args else None])
        assert got[0] == got[1], name
    a = leaf([2.0, 3.0])
    z = a * 1.0
    _asen.apply_("mul", [z, z])
    z.sum().backward()
    np.testing.assert_array_equal(values(a.grad), [4, 6])


def test_in_place_ops_keep_shape_and_dtype():
    z = leaf([1.0, 2.0]) * 1.0
    before = values(z)
    with pytest.raises(ValueError, match=r"add in place: the result is \(3, 2\)"):
        _asen.apply_("add", [z, constant(np.ones((3, 2)))])
    with pytest.raises(ValueError, match="float32"):
        _asen.apply_("copy", [z], {"dtype": "float32"})
    with pytest.raises(TypeError, match="must be a Tensor"):
        _asen.apply_("add", [1.0, z])
    np.testing.assert_array_equal(values(z), before)


def test_batch_norms_result_can_be_written():
    """relu in place after a convolution is the commonest of all."""
    rng = np.random.default_rng(0)
    x = _asen.from_numpy(rng.standard_normal((2, 3, 5, 5)).astype(np.float32)).clone()
    conv = nn.Conv2d(3, 4, 3)
    want = conv(x).relu()
    want.sum().backward()
    expected = values(conv.weight.grad)
    conv.zero_grad()
    _asen.apply_("relu", [conv(x).flatten(1)]).sum().backward()
    np.testing.assert_allclose(values(conv.weight.grad), expected, rtol=1e-5, atol=1e-5)


# -- what is refused ---------------------------------------------------------------------------------

WRITES = {"zero_": lambda t: t.zero_(), "fill_": lambda t: t.fill_(1.0), "copy_": lambda t: t.copy_(constant(2.0)),
          "an op": lambda t: _asen.apply_("mul", [t, 2.0])}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_leaves_and_their_views_are_not_written_while_recording(write):
    a = leaf([1.0, 2.0, 3.0, 4.0])
    for target in (a, a[1:], a.reshape(2, 2), a.reshape(2, 2).t()[0]):
        with pytest.raises(ValueError, match=r"leaf that requires a gradient is written in place.*no_grad\(\)"):
            write(target)
    np.testing.assert_array_equal(values(a), [1, 2, 3, 4])
    with asenpp.no_grad():
        write(a)
        write(a[1:])
    write(a.detach())
    (a * a).sum().backward()
    np.testing.assert_array_equal(values(a.grad), 2 * values(a))


def test_what_has_a_gradient_is_not_copied_into_a_leaf():
    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    with pytest.raises(ValueError, match="leaf"):
        a.copy_(b * 1.0)
    with asenpp.no_grad():
        a.copy_(b * 1.0)
    assert a.is_leaf and a.tolist() == [3, 4]


def test_views_made_without_recording():
    """They know nothing of the graph, so they are no way to change it."""
    a = leaf([1.0, 2.0])
    z = a * 1.0
    with asenpp.no_grad():
        v = z[:1]
    with pytest.raises(ValueError, match="made under no_grad"):
        v.zero_()
    plain = constant([1.0, 2.0])
    with asenpp.no_grad():
        v = plain[:1]
    v.zero_()
    with pytest.raises(ValueError, match="made under no_grad"):
        v.copy_(a[:1])
    plain.copy_(a)
    with pytest.raises(ValueError, match="take the view again"):
        (v * 2.0).sum()
    with asenpp.no_grad():
        assert (v * 2.0).tolist() == [2.0]


def test_views_of_what_is_not_contiguous():
    """A region of its gradient would lie otherwise: refused, at the write or when the view is used."""
    b = leaf([5.0, 6.0])
    base = constant([1.0, 2.0, 3.0, 4.0])[::2].detach()
    with pytest.raises(ValueError, match="not contiguous is written in place while recording"):
        base[:1].copy_(b[:1])
    view = base.unsqueeze(0)
    base.copy_(b * 2.0)
    with pytest.raises(ValueError, match="not contiguous, and that was written"):
        view.sum()
    (base * 3.0).sum().backward()
    np.testing.assert_array_equal(values(b.grad), [6, 6])


def test_elements_that_lie_on_one_another():
    base = constant([1.0])
    wide = base.expand(3)
    for write in (lambda: wide.copy_(constant([1.0, 2.0, 3.0])), lambda: _asen.apply_("add", [wide, constant([1.0, 2.0, 3.0])]),
                  lambda: base.unsqueeze(0).expand(2, 3)[1].copy_(constant([1.0, 2.0, 3.0]))):
        with pytest.raises(ValueError, match=r"lie on one another.*clone\(\)"):
            write()
    assert base.tolist() == [1.0]
    windows = _asen.from_numpy(np.lib.stride_tricks.as_strided(np.arange(6.0), (4, 3), (8, 8), writeable=True))
    with pytest.raises(ValueError, match="lie on one another"):
        windows.copy_(windows * 2.0)
    assert wide.fill_(4.0).tolist() == [4, 4, 4] and windows.zero_().sum().item() == 0  # the order does not matter


def test_overlapping_copies_are_as_if_the_source_were_read_first():
    for target, source in ((slice(1, None), slice(0, -1)), (slice(0, -1), slice(1, None)), (slice(0, 6, 2), slice(1, 4)),
                           (slice(1, 4), slice(0, 6, 2))):
        array = np.arange(6.0)
        t = constant(array)
        t[target].copy_(t[source])
        array[target] = array[source].copy()
        np.testing.assert_array_equal(values(t), array)
    shared = np.arange(6.0)
    a, b = _asen.from_numpy(shared), _asen.from_numpy(shared)  # two storages over one array
    a[1:].copy_(b[:-1])
    np.testing.assert_array_equal(shared, [0, 0, 1, 2, 3, 4])
    square = constant(np.arange(9.0).reshape(3, 3))
    square.t().copy_(square)
    np.testing.assert_array_equal(values(square), np.arange(9.0).reshape(3, 3).T)


@pytest.mark.parametrize("write", [lambda z: z.zero_(), lambda z: z[1:].fill_(0.0), lambda z: z.reshape(2, 1).t().zero_(),
                                   lambda z: z.detach().zero_(), lambda z: _asen.apply_("neg", [z]),
                                   lambda z: _asen.optim_step("sgd", [z.detach()], [constant([1.0, 1.0])], None, None, 1, 0.1)],
                         ids=["whole", "slice", "transposed", "detached", "op", "optimizer"])
def test_what_was_saved_and_is_written_raises_at_backward(write):
    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    for make in (lambda z: (z, z * b), lambda z: (z, z.t() * b if z.ndim == 2 else z[:] * b)):
        z, y = make(a * 2.0)
        write(z)
        with pytest.raises(ValueError, match="changed in place between forward and backward"):
            y.sum().backward()
    y = (a * 2.0).exp()
    write(y)
    with pytest.raises(ValueError, match="changed in place"):
        y.sum().backward()


# -- gradients ---------------------------------------------------------------------------------------

def test_gradients_are_memory_of_their_own():
    """The seed, another leaf's gradient or a part of one may be written without changing a gradient."""
    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    seed = constant([1.0, 1.0])
    (a + b).backward(seed)
    seed.zero_()
    a.grad.fill_(7.0)
    np.testing.assert_array_equal(values(b.grad), [1, 1])
    c = leaf([1.0, 2.0, 3.0, 4.0])
    (c[:2] + c[2:]).backward(constant([1.0, 2.0]))
    np.testing.assert_array_equal(values(c.grad), [1, 2, 1, 2])


def test_a_seed_may_be_the_tensor_or_its_gradient():
    a = leaf([1.0, 2.0])
    z = a * 3.0
    z.backward(z, retain_graph=True)
    np.testing.assert_array_equal(values(a.grad), [9, 18])
    z.backward(a.grad)
    np.testing.assert_array_equal(values(a.grad), [36, 72])


def test_accumulation_and_zero_grad_leave_what_was_taken():
    a = leaf([1.0, 2.0])
    (a * 2.0).sum().backward()
    taken = a.grad
    (a * 3.0).sum().backward()
    np.testing.assert_array_equal(values(a.grad), [5, 5])
    a.grad.zero_()
    np.testing.assert_array_equal(values(a.grad), [0, 0])
    assert values(taken).tolist() == [2, 2]
    a.grad = None
    assert a.grad is None and taken.tolist() == [2, 2]


# -- lives and threads -------------------------------------------------------------------------------

def test_graphs_of_writes_are_freed():
    """Base, views, and nodes of writes hold each other without cycles."""
    a = leaf(np.ones(1000))
    gc.collect()
    begin = asenpp.memory_stats()["current"]
    for _ in range(3):
        z = a * 2.0
        v, w = z[10:20], z.reshape(10, 100).t()
        v.copy_(a[:10] * 3.0)
        w.zero_()
        z.copy_(a * a)
        u = z[::2]
        _asen.apply_("mul", [u, a[:500]])
        del z, v, w
        (u * u).sum()
        del u
    gc.collect()
    assert asenpp.memory_stats()["current"] == begin


def test_a_deep_chain_of_writes_is_walked_and_freed():
    a = leaf([1.0, 2.0, 3.0])
    z = a * 1.0
    for _ in range(20000):
        _asen.apply_("add", [z[1:], 1.0])
    z.sum().backward()
    np.testing.assert_array_equal(values(a.grad), [1, 1, 1])
    del z
    gc.collect()


def test_threads_write_one_tensor_in_place():
    """Nodes are exchanged while others read them: nothing crashes, and afterwards the graph is whole."""
    a = leaf(np.ones(64))
    z = a * 1.0
    stop, errors = threading.Event(), []

    def work(function):
        while not stop.is_set():
            try:
                function()
            except ValueError as error:  # such as "changed in place between forward and backward"
                errors.append(str(error))

    threads = [threading.Thread(target=work, args=(f,)) for f in (
        lambda: _asen.apply_("mul", [z, 1.0]), lambda: z[3:7].zero_(), lambda: (z * 2.0).sum(), lambda: z[1:].requires_grad,
        lambda: (z[2:] + 1.0).sum().backward(retain_graph=True))]
    for thread in threads:
        thread.start()
    for _ in range(300):
        z.fill_(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    assert all("changed in place" in text for text in errors), set(errors)
    z.copy_(a * 5.0)
    a.grad = None
    z.sum().backward()
    np.testing.assert_array_equal(values(a.grad), np.full(64, 5.0))


def test_a_write_while_an_op_runs_is_seen_by_backward():
    """Another thread overwrites an input during the op: backward raises, unless what it reads is what the op read."""
    rng = np.random.default_rng(0)
    x = _asen.from_numpy(rng.standard_normal(1 << 22).astype(np.float32)).clone().requires_grad_()
    w = _asen.from_numpy(rng.standard_normal(1 << 22).astype(np.float32)).clone()
    for number in range(30):
        go, w_now = threading.Barrier(2), float(number)

        def write():
            go.wait()
            for _ in range(number * 40):
                pass
            w[:1].fill_(w_now)

        thread = threading.Thread(target=write)
        thread.start()
        go.wait()
        y = x * w
        thread.join()
        try:
            y.backward(y)
        except ValueError as error:
            assert "changed in place" in str(error)
        else:
            assert y[0].item() == np.float32(x[0].item()) * np.float32(w_now), f"round {number}"
    (x * w).sum().backward()


# -- at random -----------------------------------------------------------------------------------------

def test_random_programs_do_what_pytorchs_do():
    """Ops, views, writes, no_grad and backward in any order: the same values and gradients, or an error on both sides."""
    pytest.importorskip("torch")
    import inplace_programs

    ends = [inplace_programs.run(seed) for seed in range(1, PROGRAMS + 1)]
    assert sum(end == "compared" for end in ends) > 0.7 * PROGRAMS


def test_the_comparison_notices(monkeypatch):
    """Planted faults: writes that the graph does not hear of, and a gradient that is off, are found."""
    pytest.importorskip("torch")
    import inplace_programs

    def unrecorded(self, name, x, *rest):
        with asenpp.no_grad():
            return _asen.apply_(name, [x, *rest])

    monkeypatch.setattr(inplace_programs.Ours, "apply_", unrecorded)
    with pytest.raises(inplace_programs.Differs):
        for seed in range(1, 200):
            inplace_programs.run(seed)


def test_a_copy_onto_itself_is_a_write():
    """As in PyTorch, also where elements lie on one another and nothing is to be copied."""
    x = leaf([1.0])
    y = x.tanh()
    view = y.detach().expand(2)
    view.copy_(view)
    with pytest.raises(ValueError, match="changed in place"):
        y.backward()


def test_a_view_that_had_to_copy_is_not_written():
    """Four dims lie channels-last: view(-1) of them copies, and in PyTorch the write would reach x."""
    x = asenpp.zeros(2, 3, 4, 5)
    copied = x.view(-1)
    writes = [lambda: copied.zero_(), lambda: copied.__setitem__(0, 1.0), lambda: copied[2:4].fill_(1.0),
              lambda: copied.detach().add_(1.0), lambda: copied.copy_(asenpp.ones(120)), lambda: x.view_as(copied).relu_()]
    for write in writes:
        for recording in (True, False):
            with asenpp.set_grad_enabled(recording), pytest.raises(ValueError, match=r"view\(\) had to copy"):
                write()
    for free in (x.reshape(-1), copied.clone(), copied + 0, nn.Parameter(copied).detach(), copied.reshape(2, 60).clone()):
        free.fill_(1.0)
    x.view(2, 3, 20)[0, 0, 0]
    y = asenpp.zeros(6, 4)
    y.view(-1)[5] = 1.0
    assert y[1, 1].item() == 1
