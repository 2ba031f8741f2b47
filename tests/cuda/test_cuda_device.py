"""The device itself: copies of every kind, writing in place, optimizers, mixed precision's checks, messages."""

import os

import numpy as np
import pytest

from asenpp import _asen, amp, cuda, nn, optim

DTYPES = ["bool", "uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64"]


def host(tensor):
    return np.array(tensor.detach().to(device="cpu").numpy())


def random(*shape, dtype=np.float32, seed=0):
    return np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def test_there_and_back():
    """Every dtype, every rank, empty and not: the same bytes."""
    for dtype in DTYPES:
        for shape in [(), (1,), (7,), (0,), (3, 5), (2, 3, 4, 5), (0, 3, 4, 5), (2, 1, 3, 1, 2)]:
            x = _asen.from_numpy(np.asarray(random(*shape) * 50)).to(dtype=dtype)
            back = x.to(device="cuda").to(device="cpu")
            assert back.dtype == dtype and back.shape == shape
            np.testing.assert_array_equal(host(back.to(dtype="float64")), host(x.to(dtype="float64")))


def test_gradients_flow_between_devices():
    x = _asen.from_numpy(random(3, 4)).requires_grad_()
    (x.to(device="cuda").exp().to(device="cpu") * 2.0).sum().backward()
    assert x.grad.device == "cpu"
    np.testing.assert_allclose(host(x.grad), 2 * np.exp(host(x)), rtol=1e-6)


def test_large_and_many_uploads():
    """More bytes than the ring of pinned slots holds, and the source overwritten at once."""
    big = np.arange(9_000_003, dtype=np.float32)
    source = big.copy()
    tensor = _asen.from_numpy(source).to(device="cuda")
    source[:] = -1
    np.testing.assert_array_equal(host(tensor), big)
    buffer, kept = np.zeros(1000, np.float32), []
    for i in range(40):
        buffer[:] = i
        kept.append(_asen.from_numpy(buffer).to(device="cuda"))
    for i, tensor in enumerate(kept):
        assert (host(tensor) == i).all()


def test_uploads_into_memory_that_is_still_read():
    """A freed block comes back at once; the queued reader must see its old content."""
    x = _asen.from_numpy(np.full(100_000, 2, np.float32)).to(device="cuda")
    results = []
    for i in range(20):
        y = x * 3.0
        results.append(y + x)
        del x, y
        x = _asen.from_numpy(np.full(100_000, i, np.float32)).to(device="cuda")
    expected = [8.0] + [4.0 * i for i in range(19)]
    for tensor, value in zip(results, expected):
        assert (host(tensor) == value).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bfloat16"])
def test_writing_into_views(dtype):
    """copy_ and fill_ into strided views, from the device and the host, change those elements and no others."""
    base = _asen.from_numpy(random(6, 5, 4) * 9).to(dtype=dtype)
    for view in (lambda t: t[1::2, :, ::3], lambda t: t.permute(2, 0, 1)[1:3], lambda t: t[2], lambda t: t[:, 3]):
        ours, exact = base.to(device="cuda"), base.clone()
        values = _asen.from_numpy(random(*view(exact).shape, seed=1) * 9).to(dtype=dtype)
        view(exact).copy_(values)
        view(ours).copy_(values.to(device="cuda"))
        np.testing.assert_array_equal(host(ours.to(dtype="float64")), host(exact.to(dtype="float64")))
        ours = base.to(device="cuda")
        view(ours).copy_(values)
        np.testing.assert_array_equal(host(ours.to(dtype="float64")), host(exact.to(dtype="float64")))
    ours, exact = base.to(device="cuda"), base.clone()
    ours.fill_(3), exact.fill_(3)
    np.testing.assert_array_equal(host(ours.to(dtype="float64")), host(exact.to(dtype="float64")))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind, settings", [
    ("sgd", {}), ("sgd", {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    ("sgd", {"momentum": 0.9, "nesterov": True}), ("adam", {}), ("adam", {"weight_decay": 0.1, "eps": 1e-6}),
    ("adamw", {"weight_decay": 0.1, "beta1": 0.8, "beta2": 0.9})])
def test_optimizer_steps_are_the_cpus(dtype, kind, settings):
    """Twenty steps over tensors of many sizes, those that fill no vector among them."""
    shapes = [(3,), (1,), (64, 3, 7, 7), (1001,), (5, 7), (2048,), (0,), (33, 65)]
    def start(device):
        return [[_asen.from_numpy(random(*s, dtype=dtype, seed=i)).contiguous().to(device=device) for i, s in enumerate(shapes)]
                for _ in range(1)][0], [[_asen.from_numpy(np.zeros(s, dtype)).contiguous().to(device=device) for s in shapes] for _ in range(2)]
    (ours, our_state), (exact, exact_state) = start("cuda"), start("cpu")
    _asen.set_kernel_paths("reference")
    for step in range(1, 21):
        grads = [_asen.from_numpy(random(*s, dtype=dtype, seed=100 * step + i)).contiguous() for i, s in enumerate(shapes)]
        _asen.optim_step(kind, ours, [g.to(device="cuda") for g in grads], *our_state, step, 1e-2, **settings)
        _asen.optim_step(kind, exact, grads, *exact_state, step, 1e-2, **settings)
    for a, b in zip(ours, exact):
        np.testing.assert_allclose(host(a), host(b), rtol=0, atol=2e-6 if dtype == np.float32 else 1e-13)


def test_many_tensors_in_one_step():
    """More tensors than fit into any table of fixed size."""
    ours = [_asen.from_numpy(np.full(3, i, np.float32)).to(device="cuda") for i in range(700)]
    grads = [_asen.from_numpy(np.ones(3, np.float32)).to(device="cuda") for _ in range(700)]
    _asen.optim_step("sgd", ours, grads, None, None, 1, 0.5)
    assert [float(host(t)[2]) for t in ours] == [i - 0.5 for i in range(700)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unscale(dtype):
    arrays = [random(5, 7, dtype=dtype), random(100_001, dtype=dtype, seed=1), random(0, dtype=dtype)]
    tensors = [_asen.from_numpy(a).to(device="cuda") for a in arrays]
    assert _asen.unscale(tensors, 0.5) is True
    for tensor, array in zip(tensors, arrays):
        np.testing.assert_array_equal(host(tensor), array * dtype(0.5))
    for place, bad in ((0, np.inf), (100_000, np.nan), (50_000, -np.inf)):
        arrays[1][place] = bad
        assert _asen.unscale([_asen.from_numpy(a).to(device="cuda") for a in arrays], 1.0) is False
        arrays[1][place] = 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_mixed_precision_step_is_near_the_float32_one(dtype):
    """Convolution, batch norm in groups, a linear head: parameters and gradients float32, near those of float32
    throughout, and not the same. (No ReLU: where rounding moves a value across its kink, gradients jump.)"""
    x = random(6, 8, 9, 9)
    def step(context):
        conv, bn, fc = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.Linear(16, 4)
        for i, p in enumerate([*conv.parameters(), *fc.parameters()]):
            p.detach().copy_(random(*p.shape, seed=i) * 0.2)
        model = nn.Sequential(conv, bn, fc).to(device="cuda")
        conv, bn, fc = model
        scaler = amp.GradScaler(256.0 if dtype == "float16" else 1.0)
        with context:
            y = bn(conv(_asen.from_numpy(x).contiguous().to(device="cuda")), groups=3)
            kind = y.dtype
            loss = (fc(amp.raised(y).mean(dims=(2, 3))) ** 2).mean()
        scaler.scale(loss).backward()
        assert scaler.step(optim.SGD(model.parameters(), lr=0.0))
        assert all(p.grad.dtype == p.dtype == "float32" for p in model.parameters())
        assert bn.running_mean.dtype == "float32"
        return kind, loss.item(), {name: host(p.grad) for name, p in model.named_parameters()}
    class none:
        def __enter__(self): pass
        def __exit__(self, *e): pass
    low, exact = step(amp.autocast(dtype)), step(none())
    assert (low[0], exact[0]) == (dtype, "float32")
    tolerance = 0.03 if dtype == "bfloat16" else 0.005
    assert 0 < abs(low[1] - exact[1]) < tolerance * abs(exact[1])
    for name, gradient in exact[2].items():
        error = np.linalg.norm(low[2][name] - gradient) / np.linalg.norm(gradient)
        assert 0 < error < tolerance, (name, error)


@pytest.mark.parametrize("option, value", [("direct_convolution", 1), ("autotune", 4), ("release", 1)])
def test_convolutions_under_every_option(option, value):
    """Our own kernels in place of cuDNN's, several plans tried, plans made anew: the same results."""
    x, w, dy = random(2, 8, 9, 7), random(16, 8, 3, 3, seed=1), random(2, 16, 5, 4, seed=2)

    def results():
        a, b = (_asen.from_numpy(v).contiguous().to(device="cuda").requires_grad_() for v in (x, w))
        y = _asen.conv2d(a, b, stride=2, padding=1)
        y.backward(_asen.from_numpy(dy).contiguous().to(device="cuda"))
        return host(y), host(a.grad), host(b.grad)

    exact = results()
    _asen.set_option("cuda", option, value)
    try:
        for ours, wanted in zip(results(), exact):
            np.testing.assert_allclose(ours, wanted, rtol=0, atol=4e-6 * np.abs(wanted).max())
    finally:
        if option != "release":
            _asen.set_option("cuda", option, 0)


def test_tf32_is_only_where_it_is_asked_for():
    """Off, a convolution and a product of 256 terms are within float32's rounding of float64; on, within TF32's
    (2^-11 an input); off again, the same bits as at first."""
    x, w, a, b = random(2, 64, 8, 8), random(64, 64, 3, 3, seed=1), random(64, 256, seed=2), random(256, 64, seed=3)
    exact = [host(_asen.conv2d(*(_asen.from_numpy(v.astype(np.float64)) for v in (x, w)), padding=1)),
             a.astype(np.float64) @ b]

    def results():
        on = [_asen.from_numpy(v).contiguous().to(device="cuda") for v in (x, w, a, b)]
        return [host(_asen.conv2d(on[0], on[1], padding=1)), host(_asen.matmul(on[2], on[3]))]

    def errors(found):
        return [np.abs(f - e).max() / np.abs(e).max() for f, e in zip(found, exact)]

    first = results()
    assert max(errors(first)) < 4e-6
    cuda.allow_tf32(True)
    rounded = errors(results())
    assert max(rounded) < 2e-3
    if os.environ.get("ASENPP_CUDA_PLUGIN"):    # the simulated GPU has tensor cores, and uses them
        assert min(rounded) > 2e-5
    cuda.allow_tf32(False)
    for one, again in zip(first, results()):
        np.testing.assert_array_equal(one, again)


def test_an_integer_zero_as_divisor_is_an_error_when_somebody_waits():
    a, b = (_asen.from_numpy(np.array(v)).to(device="cuda") for v in ([4, 6], [2, 0]))
    with pytest.raises(ValueError, match="div: integer division by zero"):
        _asen.div(a, b).to(device="cpu")
    assert host(_asen.div(a, _asen.from_numpy(np.array([2, 3])).to(device="cuda"))).tolist() == [2, 2]


def test_memory_is_told():
    """free and total; stats of the cache; after emptying it nothing is cached."""
    free, total = cuda.memory_info()
    assert 0 < free <= total
    x = _asen.from_numpy(np.zeros(1 << 20, np.float32)).to(device="cuda")
    stats = _asen.memory_stats("cuda")
    assert stats["current"] >= 4 << 20
    del x
    assert _asen.memory_stats("cuda")["cached"] > 0 or os.environ.get("ASENPP_NO_MEMORY_CACHE") == "1"
    _asen.empty_cache("cuda")
    assert _asen.memory_stats("cuda")["cached"] == 0


def test_out_of_memory_names_what_was_asked_and_what_is_held():
    """MemoryError; the device works on."""
    total = cuda.memory_info()[1]
    with pytest.raises(MemoryError, match=r"out of memory on cuda: .* MiB asked, .* MiB in use.*lower DATA.TRAIN_BATCHSIZE"):
        one = _asen.from_numpy(np.zeros(1, np.float32)).to(device="cuda")
        _asen.copy(one.expand(total))
    assert host(one + 1.0).tolist() == [1]


def test_options_and_messages():
    with pytest.raises(ValueError, match="cuda has no option 'speed'"):
        _asen.set_option("cuda", "speed", 1)
    with pytest.raises(ValueError, match="autotune"):
        cuda.autotune(9)
    a, b = _asen.from_numpy(np.ones(2, np.float32)), _asen.from_numpy(np.ones(2, np.float32)).to(device="cuda")
    with pytest.raises(ValueError, match="different devices"):
        a + b
    assert b.device == "cuda" and "cuda" in repr(b)
    np.testing.assert_array_equal(np.asarray(b), [1, 1])
    assert b.tolist() == [1, 1] and b.sum().item() == 2
    with pytest.raises(BufferError):
        b.__dlpack__()
