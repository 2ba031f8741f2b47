"""The type Tensor: indexing, views, NumPy and DLPack, conversions, operators with numbers, life and threads."""

import gc
import itertools
import os
import random
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from asenpp import _asen

ROOT = Path(__file__).resolve().parent.parent
Tensor = _asen.Tensor
DTYPES = ["bool", "uint8", "int32", "int64", "float16", "float32", "float64"]


def tensor(values, dtype=np.float32):
    """In memory of our own, in the dense layout."""
    return _asen.from_numpy(np.array(values, dtype)).clone()


def numbered(*shape, dtype=np.float32):
    return np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)


def in_use():
    return _asen.memory_stats()["current"]


# ---- indexing ----


def random_key(rng, shape):
    """A key that NumPy takes: integers, slices with positive steps, None, at most one Ellipsis."""
    items = []
    for n in shape[: rng.randint(0, len(shape))]:
        kind = rng.random()
        if kind < 0.4 and n:
            items.append(rng.randrange(-n, n))
        else:
            bounds = [rng.choice([None, rng.randint(-n - 2, n + 2)]) for _ in range(2)]
            items.append(slice(*bounds, rng.choice([None, 1, 2, 3, 2**62])))
    if rng.random() < 0.4:
        items.insert(rng.randint(0, len(items)), Ellipsis)
    for _ in range(rng.choice([0, 0, 1, 2])):
        items.insert(rng.randint(0, len(items)), None)
    return items[0] if len(items) == 1 and rng.random() < 0.5 else tuple(items)


def test_indexing_is_numpys():
    """2000 random keys over shapes of 0 to 5 dims, dense and permuted, empty dims among them: values,
    shapes, errors, and the memory is shared."""
    rng = random.Random(0)
    shapes = [(), (5,), (3, 4), (2, 3, 4), (2, 3, 4, 5), (2, 1, 3, 2, 2), (0, 3), (2, 0, 3)]
    for _ in range(2000):
        array = numbered(*rng.choice(shapes))
        if rng.random() < 0.3:
            array = array.transpose(rng.sample(range(array.ndim), array.ndim))
        t = _asen.from_numpy(array)
        key = random_key(rng, array.shape)
        try:
            want = array[key]
        except IndexError:  # an Ellipsis moved an integer to a smaller dim
            with pytest.raises(IndexError):
                t[key]
            continue
        ours = t[key]
        assert ours.shape == np.shape(want), key
        np.testing.assert_array_equal(ours.numpy(), want, str(key))
        if isinstance(want, np.ndarray) and want.size:
            assert ours.data_ptr() == want.ctypes.data, key


@pytest.mark.parametrize("key", [3, -4, (0, 4), (0, 0, 0), slice(None, None, -1), slice(0, 2, 0), 1.0, "a", [0, 3], [0.0], [True, False], (0, 1, True, [True] * 2), (Ellipsis, Ellipsis),
                                 2**70, (None,) * 20, (None,) * 7 + (Ellipsis,), (None,) * 14 + (Ellipsis,), np.array([3]),
                                 np.array([0.0]), np.ones((3, 3), bool), ([0], [0], [0])],
                         ids=str)
def test_wrong_keys_raise(key):
    with pytest.raises((IndexError, TypeError, ValueError)):
        tensor(numbered(3, 4))[key]


def test_a_tensor_of_int64_picks_rows():
    t = tensor(numbered(5, 3))
    np.testing.assert_array_equal(t[tensor([4, 0, 4], np.int64)].numpy(), numbered(5, 3)[[4, 0, 4]])
    with pytest.raises(IndexError, match="5"):
        t[tensor([5], np.int64)]


def test_iteration_ends_and_length_counts():
    assert [row.tolist() for row in tensor(numbered(3, 2))] == numbered(3, 2).tolist()
    assert len(tensor(numbered(3, 2))) == 3
    for f in (len, list):
        with pytest.raises(TypeError):
            f(tensor(1.0))


# ---- views and layouts ----


def test_views_share_memory():
    """A write through the base shows in every view, and the reverse."""
    t = tensor(numbered(2, 3, 4))
    views = [t.reshape(6, 4), t.permute(2, 0, 1), t[1], t[:, ::2], t.flatten(), t.unsqueeze(1), t.transpose(0, 2), t[0, None].expand(5, 3, 4),
             t.view(2, 12), t.detach()]
    t.fill_(3.0)
    for v in views:
        assert (v.numpy() == 3).all()
    views[2].fill_(5.0)
    assert t.numpy()[1].min() == 5 and t.numpy()[0].max() == 3


def test_reshape_of_channels_last_memory_reads_in_logical_order():
    """4-D tensors lie N, H, W, C in memory: their flattening must not show it, with and without a copy."""
    array = numbered(2, 3, 4, 5)
    t = tensor(array)
    assert t.stride() == (60, 1, 15, 3) and t.is_contiguous()
    for shape in [(120,), (2, 60), (6, 20), (2, 3, 20), (5, 4, 3, 2), (1, 2, 3, 4, 5), (2, 3, 2, 2, 5), (24, 5)]:
        np.testing.assert_array_equal(t.reshape(*shape).numpy(), array.reshape(shape))
    assert t.permute(0, 2, 3, 1).reshape(2, 20, 3).data_ptr() == t.data_ptr()  # this one needs no copy
    assert t.reshape(2, 3, 20).shape == (2, 3, 20)


def test_reshape_against_numpy():
    """Random chains of slicing, permuting and reshaping: as NumPy, whether a view is possible or not."""
    rng = random.Random(1)
    for _ in range(300):
        array, t = numbered(4, 6, 2, 3), tensor(numbered(4, 6, 2, 3))
        for _ in range(3):
            axes = rng.sample(range(array.ndim), array.ndim)
            array, t = array.transpose(axes), t.permute(*axes)
            if rng.random() < 0.5 and array.shape[0] > 1:
                array, t = array[::2], t[::2]
            factors = [f for f in (1, 2, 3, 4, 6) if array.size % f == 0]
            shape = [rng.choice(factors)]
            shape.append(array.size // shape[0])
            if rng.random() < 0.5:
                shape.insert(rng.randint(0, 2), 1)
            array, t = array.reshape(shape), t.reshape(shape)
            np.testing.assert_array_equal(t.numpy(), array)


def test_shape_methods():
    array = numbered(2, 1, 3)
    t = tensor(array)
    assert t.squeeze().shape == (2, 3) and t.squeeze(1).shape == (2, 3) and t.squeeze(0).shape == (2, 1, 3)
    assert t.unsqueeze(-1).shape == (2, 1, 3, 1) and t.flatten(1).shape == (2, 3) and tensor(1.0).flatten().shape == (1,)
    assert t.size() == (2, 1, 3) and t.size(-1) == 3 and t.ndim == 3 and t.numel() == 6
    np.testing.assert_array_equal(t[:, 0].t().numpy(), array[:, 0].T)
    for wrong in [lambda: t.flatten(3), lambda: tensor(1.0).flatten(100), lambda: t.unsqueeze(4), lambda: t.squeeze(-4), lambda: t.transpose(0, 3),
                  lambda: t.size(3), lambda: t.t(), lambda: t.reshape(7), lambda: tensor(numbered(*[1] * 8)).unsqueeze(0)]:
        with pytest.raises((IndexError, ValueError)):
            wrong()


def test_zero_sized_tensors():
    """Through views, reductions, products and NumPy."""
    t = tensor(np.zeros((0, 3)))
    assert t.shape == (0, 3) and t.sum().item() == 0 and (t + t).shape == (0, 3) and t.t().shape == (3, 0)
    assert t.numpy().shape == (0, 3) and t.clone().numel() == 0 and _asen.cat([t, t]).shape == (0, 3)
    np.testing.assert_array_equal(_asen.matmul(t.t(), t).numpy(), np.zeros((3, 3)))
    assert t.reshape(3, 0, 5).shape == (3, 0, 5) and t.fill_(1.0).tolist() == []


# ---- NumPy ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_there_and_back_shares_memory(dtype):
    array = numbered(3, 4, dtype=dtype)
    t = _asen.from_numpy(array)
    back = t.numpy()
    assert t.dtype == dtype and back.dtype == array.dtype and back.ctypes.data == array.ctypes.data
    array[1, 2] = 1
    assert t[1, 2].item() == 1
    back[0, 0] = 1
    assert array[0, 0] == 1


def test_from_numpy_copies_what_it_cannot_share():
    """Read-only arrays (nobody may write through a tensor), negative or odd strides, foreign byte order."""
    locked = numbered(3)
    locked.flags.writeable = False
    pairs = np.zeros(3, [("a", "i1"), ("b", "f4")])
    pairs["b"] = [1, 2, 3]
    for array in (locked, numbered(4)[::-1], pairs["b"], numbered(3).astype(">f4"), np.broadcast_to(np.float32(2), (2, 2))):
        t = _asen.from_numpy(array)
        np.testing.assert_array_equal(t.numpy(), array)
        t.fill_(9.0)
        assert (np.asarray(array) != 9).all()


def test_from_numpy_keeps_strides():
    base = numbered(4, 6)
    for array in (base[::2, 1::2], base.T, base[1], np.asfortranarray(base), np.lib.stride_tricks.as_strided(base, (3, 3), (24, 4))):
        t = _asen.from_numpy(array)
        np.testing.assert_array_equal(t.numpy(), array)
        assert t.data_ptr() == array.ctypes.data
        np.testing.assert_array_equal((t + t).numpy(), array + array)


def test_from_numpy_refuses_other_things():
    for wrong in (np.array(["a"]), np.array([1j]), np.array([None]), np.zeros(2, np.uint16), np.zeros(2, "M8[s]"), [1.0], 3.0, None):
        with pytest.raises(TypeError):
            _asen.from_numpy(wrong)
    with pytest.raises(ValueError, match="dims"):
        _asen.from_numpy(np.zeros([1] * 9))


def test_arrays_outlive_tensors_and_tensors_outlive_arrays():
    array = Tensor(numbered(1000)).numpy()
    gc.collect()
    np.testing.assert_array_equal(array, numbered(1000))
    t = _asen.from_numpy(numbered(1000))
    gc.collect()
    np.testing.assert_array_equal(t.numpy(), numbered(1000))


def test_the_array_protocol():
    """np.asarray shares, np.array copies, a dtype converts; a gradient is not lost silently."""
    t = tensor(numbered(2, 3))
    shared, copied = np.asarray(t), np.array(t)
    t.fill_(8.0)
    assert shared.max() == 8 and copied.max() == 5
    assert np.asarray(t, np.float64).dtype == np.float64 and np.shares_memory(np.asarray(t, np.float32), shared)
    with pytest.raises(RuntimeError, match="detach"):
        np.asarray(t.requires_grad_())
    with pytest.raises(RuntimeError, match="detach"):
        t.numpy()


def test_bfloat16_has_no_array():
    with pytest.raises(TypeError, match="float"):
        tensor([1.0]).to("bfloat16").numpy()
    assert "bfloat16" in repr(tensor([1.0]).to("bfloat16"))


def test_tensor_takes_anything_numpy_takes():
    assert Tensor([[1, 2], [3, 4]]).dtype == "int64" and Tensor(1.5).shape == () and Tensor((True, False)).dtype == "bool"
    t = tensor([1.0])
    assert Tensor(t).data_ptr() == t.data_ptr()
    for wrong in ([[1], [1, 2]], "text", {}, object()):
        with pytest.raises((TypeError, ValueError)):
            Tensor(wrong)
    with pytest.raises(TypeError):
        Tensor()


# ---- DLPack ----


def test_dlpack_with_numpy():
    t = tensor(numbered(2, 3, 4, 5))
    array = np.from_dlpack(t)
    np.testing.assert_array_equal(array, numbered(2, 3, 4, 5))
    t.fill_(4.0)
    assert (array == 4).all()
    own = np.from_dlpack(t, copy=True) if np.lib.NumpyVersion(np.__version__) >= "2.1.0" else array.copy()
    t.fill_(5.0)
    assert (own == 4).all()
    source = numbered(3, 4)
    back = _asen.from_dlpack(source.T)
    source[0, 0] = 77
    assert back[0, 0].item() == 77 and back.shape == (4, 3)


@pytest.mark.parametrize("dtype", [*DTYPES, "bfloat16"])
def test_dlpack_with_pytorch(dtype):
    """Both ways, sharing memory, with strides; each side outlives the other."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = torch.arange(12).reshape(3, 4).to(getattr(torch, dtype)).t()[1:]
    ours = _asen.from_dlpack(theirs)
    assert ours.dtype == dtype and ours.shape == (3, 3) and ours.data_ptr() == theirs.data_ptr()
    assert ours.to("float64").tolist() == theirs.double().tolist()
    back = torch.from_dlpack(ours)
    del ours
    theirs[0, 0] = 1
    assert back.dtype == theirs.dtype and torch.equal(back, theirs)
    del theirs
    gc.collect()
    assert back.double()[0, 0] == 1


def test_dlpack_refuses():
    """What cannot be shared honestly."""
    with pytest.raises(BufferError, match="detach"):
        tensor([1.0]).requires_grad_().__dlpack__()
    with pytest.raises(BufferError, match="device"):
        tensor([1.0]).__dlpack__(dl_device=(2, 0))
    with pytest.raises((BufferError, TypeError, RuntimeError)):
        _asen.from_dlpack(np.zeros(2, np.complex64))
    with pytest.raises(AttributeError):
        _asen.from_dlpack([1.0])
    capsule = tensor([1.0, 2.0]).__dlpack__()
    assert _asen.from_dlpack(capsule).tolist() == [1, 2]
    with pytest.raises(ValueError):
        _asen.from_dlpack(capsule)  # taken already
    assert tensor([1.0]).__dlpack_device__() == (1, 0)


# ---- conversions, copies ----


def test_conversions():
    t = tensor([0.0, 1.5, -2.5])
    assert t.to("float32") is t and t.float() is t and t.to("cpu") is t and t.to(dtype="float32", device="cpu") is t
    assert t.double().dtype == "float64" and t.long().tolist() == [0, 1, -2] and t.to("bool").tolist() == [False, True, True]
    assert t.to("double").dtype == "float64" and t.to("long").dtype == "int64" and t.to("half").tolist() == [0, 1.5, -2.5]
    for wrong in ("cuda:7", "float31", ""):
        with pytest.raises(ValueError):
            t.to(wrong)
    for wrong in (3, None, np.float32):
        with pytest.raises(TypeError):
            t.to(dtype=wrong) if wrong is not None else t.to(dtype=3)


def test_copy_in_place():
    """Broadcasting, converting, strided both sides, overlapping."""
    t = tensor(np.zeros((2, 3)))
    assert t.copy_(tensor([1.0, 2.0, 3.0], np.float64)) is t
    np.testing.assert_array_equal(t.numpy(), [[1, 2, 3]] * 2)
    t.copy_(np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(t.numpy(), numbered(2, 3))
    t[:, ::2].copy_(tensor([[9.0], [8.0]]))
    np.testing.assert_array_equal(t.numpy(), [[9, 1, 9], [8, 4, 8]])
    t.t().copy_(tensor(numbered(3, 2)))
    np.testing.assert_array_equal(t.numpy(), numbered(3, 2).T)
    for target, source in [(slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None)), (slice(None, None, 2), slice(0, 4)),
                           (slice(0, 4), slice(None, None, 2))]:
        ours, array = tensor(numbered(8)), numbered(8)
        ours[target].copy_(ours[source])
        array[target] = array[source].copy()
        np.testing.assert_array_equal(ours.numpy(), array)
    for wrong in (tensor(numbered(3)), tensor(numbered(2, 2, 3))):
        with pytest.raises(ValueError):
            tensor(np.zeros((2, 2))).copy_(wrong)


def test_filling():
    assert tensor([1.0, 2.0]).fill_(3).tolist() == [3, 3] and tensor([1.0, 2.0]).zero_().tolist() == [0, 0]
    assert tensor([1, 2], np.int64).fill_(-7).tolist() == [-7, -7]
    for dtype, value in [(np.uint8, 256), (np.uint8, -1), (np.int64, 0.5), (np.int32, 2**31), (np.int64, float("nan"))]:
        with pytest.raises(ValueError, match="not a value of"):
            tensor([1], dtype).fill_(value)
    with pytest.raises(TypeError):
        tensor([1.0]).fill_("1")


def test_one_element():
    assert tensor([[2.5]]).item() == 2.5 and tensor([[3]], np.int64).item() == 3
    assert float(tensor(2.5)) == 2.5 and int(tensor([7.9])) == 7 and bool(tensor(0.0)) is False and bool(tensor([1], np.int64)) is True
    for f in (float, int, bool, Tensor.item):
        with pytest.raises(ValueError, match=r"\(2,\)"):
            f(tensor([1.0, 2.0]))


def test_repr_says_what_it_is():
    text = repr(tensor([[1.0, 2.0]]).requires_grad_())
    assert "1. 2." in text and "(1, 2)" in text and "float32" in text and "cpu" in text and "requires_grad" in text


# ---- operators ----


@pytest.mark.parametrize("number", [2, 0.5, True, np.float32(0.25), np.float64(3), np.int64(3)], ids=repr)
def test_operators_with_numbers_on_both_sides(number):
    """Python's and NumPy's: the tensor decides the dtype, and its gradient goes on."""
    array = np.array([1.0, -2.0, 4.0], np.float32)
    for f in (lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / b):
        for pair in [lambda x: (x, number), lambda x: (number, x)]:
            t = tensor(array).requires_grad_()
            ours, want = f(*pair(t)), f(*pair(array.astype(np.float64)))
            assert isinstance(ours, Tensor) and ours.dtype == "float32" and ours.requires_grad
            np.testing.assert_allclose(ours.detach().numpy(), want, rtol=1e-6)
    np.testing.assert_allclose((tensor(np.abs(array)) ** number).numpy(), np.abs(array) ** np.float32(number), rtol=1e-6)
    np.testing.assert_array_equal((-tensor(array)).numpy(), -array)
    np.testing.assert_array_equal((tensor([[1.0, 2.0]]) @ tensor([[3.0], [4.0]])).numpy(), [[11]])


def test_operators_with_what_is_no_number():
    t = tensor([1.0, 2.0])
    for other in ("a", None, [1.0, 2.0], 1j, np.ones(2, np.float32), np.array("a"), np.array(1j), object()):
        for f in (lambda a, b: a + b, lambda a, b: a * b, lambda a, b: a @ b, lambda a, b: a < b, lambda a, b: a >= b):
            for pair in [(t, other), (other, t)]:
                with pytest.raises(TypeError):
                    f(*pair)
    for pair in [(t, np.ones(2, np.float32)), (np.ones(2, np.float32), t)]:  # not False, as for what does not compare
        with pytest.raises(TypeError, match="from_numpy"):
            pair[0] == pair[1]
    with pytest.raises(TypeError):
        t**t
    with pytest.raises(TypeError):
        2**t


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_integer_tensors_with_numbers(dtype):
    """Whole numbers that fit; fractions, / and what does not fit are errors, not roundings."""
    t = tensor([1, 2, 3], dtype)
    assert (t + 2).tolist() == [3, 4, 5] and (10 - t).tolist() == [9, 8, 7] and (t * np.int64(3)).tolist() == [3, 6, 9] and (t * True).tolist() == [1, 2, 3]
    assert (t + 2).dtype == np.dtype(dtype).name and _asen.div(t, 2).tolist() == [0, 1, 1]
    for wrong in (lambda: t * 0.5, lambda: 0.5 * t, lambda: t + np.float64(1), lambda: t / 2, lambda: 2 / t):
        with pytest.raises(TypeError, match="float"):
            wrong()
    for number in (2**63, -(2**64)):
        with pytest.raises(ValueError):
            t + number
    if dtype == np.uint8:
        for number in (256, -1):
            with pytest.raises(ValueError, match="uint8"):
                t + number


def test_mixed_dtypes_are_errors():
    """Nothing is converted behind the user's back."""
    for a, b in itertools.permutations(["uint8", "int64", "float32", "float64"], 2):
        with pytest.raises(TypeError, match="convert"):
            tensor([1], a) + tensor([1], b)


# ---- life ----


def test_weak_references():
    t = tensor([1.0])
    ref = weakref.ref(t)
    assert ref() is t
    del t
    gc.collect()
    assert ref() is None


def test_subclasses():
    """Attributes of their own, weak references, ops on them, and no leak of instances or of the class."""

    class Parameter(Tensor):
        def __new__(cls, data, name):
            return super().__new__(cls, data)

        def __init__(self, data, name):
            self.name = name

    p = Parameter(numbered(3), "w").requires_grad_()
    assert isinstance(p, Parameter) and p.name == "w" and type(p * 2.0) is Tensor
    (p * p).sum().backward()
    assert p.grad.tolist() == [0, 2, 4]
    p.me = p  # a cycle through its dict
    ref, kind = weakref.ref(p), weakref.ref(Parameter)
    del p
    gc.collect()
    assert ref() is None
    del Parameter
    gc.collect()
    assert kind() is None


def test_attributes_cannot_be_forged():
    t = tensor([1.0])
    for name in ("shape", "dtype", "ndim", "device", "is_leaf"):
        with pytest.raises(AttributeError):
            setattr(t, name, 1)


def test_no_leak_from_any_type_or_method():
    """A fresh process calls every method and property of every type of the module, rightly and with wrong
    arguments, and every function with wrong ones: afterwards there are as many objects, references to
    types and bytes in tensors as before."""
    code = textwrap.dedent("""
        import gc, sys
        import numpy as np
        from asenpp import _asen

        types = [v for v in vars(_asen).values() if isinstance(v, type)]
        assert _asen.Tensor in types
        functions = {k: v for k, v in vars(_asen).items() if callable(v) and not isinstance(v, type)}
        for dangerous in ("set_grad_enabled", "set_kernel_paths", "set_num_threads", "load_plugin", "empty_cache", "dispatch_counts"):
            functions.pop(dangerous, None)
        arguments = [(), (None,), (1,), ("b",), (b"b",), (1.5,), ([],), ({},), (object(),), (0, 1), (1, 2, 3), (None,) * 6, ("b",) * 12]

        def call(f, *args, **kwargs):
            try:
                f(*args, **kwargs)
            except Exception:
                pass

        def tensors():
            yield _asen.from_numpy(np.ones((2, 3), np.float32)).clone()
            yield _asen.from_numpy(np.ones((2, 3), np.float32)).requires_grad_()
            yield _asen.from_numpy(np.ones((), np.int64))
            yield _asen.from_numpy(np.ones((2, 2), np.float32)).requires_grad_() * 2.0
            yield _asen.from_numpy(np.ones((2, 2, 3, 3), np.float32))[:, ::2]

        def round():
            for given in arguments:  # what copies keep in the dict that they are given
                for value in given:
                    if isinstance(value, dict):
                        value.clear()
            for kind in types:
                for args in arguments:
                    call(kind, *args)
            for name in dir(_asen.Tensor):
                for t in tensors():
                    if not callable(getattr(_asen.Tensor, name, None)):
                        call(lambda: getattr(t, name))
                        call(setattr, t, name, t)
                        call(setattr, t, name, None)
                        call(delattr, t, name)
                        continue
                    if name in ("__init_subclass__", "__subclasshook__", "__reduce__", "__reduce_ex__"):
                        continue
                    for args in (*arguments, (t,), (t, t), (t, 1), ([t],), (np.ones(3, np.float32),)):
                        call(getattr(t, name), *args)
                    call(getattr(t, name), dim=0)
                    call(getattr(t, name), wrong=t)
            for f in functions.values():
                for args in arguments:
                    call(f, *args)
                for t in tensors():
                    call(f, t)
                    call(f, t, t)
                    call(f, [t, t])
                    call(f, t, wrong=1)
            for spec in _asen.op_specs():
                call(_asen.apply, spec["name"], list(tensors()))
            sub = type("Sub", (_asen.Tensor,), {})
            sub(np.ones(3)).x = 1

        def state():
            for _ in range(3):
                gc.collect()
            getattr(sys, "_clear_type_cache", int)()  # its slots hold names or None
            return {"blocks": sys.getallocatedblocks(), **{t.__name__: sys.getrefcount(t) for t in types},
                    "None": sys.getrefcount(None) if sys.getrefcount(None) < 1 << 29 else 0, "bytes": _asen.memory_stats()["current"]}

        for _ in range(3):
            round()
        before = state()
        for _ in range(10):
            round()
        after = state()
        growth = {k: after[k] - before[k] for k in before}
        assert growth.pop("bytes") == 0, growth
        assert growth.pop("blocks") < 50, growth  # ten rounds: a leak of one block a call shows as thousands
        assert all(abs(v) < 10 for v in growth.values()), growth
        print("held")
    """)
    done = subprocess.run([sys.executable, "-X", "faulthandler", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.strip() == "held", done.stdout + done.stderr


# ---- threads ----


def test_two_threads_run_ops_at_once():
    """Each on its own tensors and on shared ones, with errors in between: right results, messages of the
    thread's own, and no memory lost."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 8, 16, 16)).astype(np.float32), rng.standard_normal((8, 8, 3, 3)).astype(np.float32)
    shared, weight = tensor(x), tensor(w)
    want = _asen.relu(_asen.conv2d(shared, weight, padding=1)).numpy().copy()
    start = in_use()
    failures = []

    def work(k):
        try:
            for i in range(40):
                y = _asen.relu(_asen.conv2d(shared, weight, padding=1))
                np.testing.assert_array_equal(y.numpy(), want)
                z = tensor(np.full(1000 + k, i)) * 2.0
                assert z.sum().item() == 2 * i * (1000 + k)
                try:
                    tensor(np.zeros((k + 2, 3))) + tensor(np.zeros((k + 2, 5)))
                except ValueError as error:
                    assert f"({k + 2}, 3)" in str(error)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, failures
    assert in_use() == start


def test_a_list_changed_by_another_thread_during_a_call():
    """cat and the optimizer hold what they were given: a list emptied meanwhile takes nothing from them."""
    tensors = [tensor(np.ones(200_000)) for _ in range(8)]
    done = threading.Event()
    lists = []

    def empty():
        while not done.is_set():
            for values in list(lists):
                values.clear()

    thread = threading.Thread(target=empty)
    thread.start()
    try:
        for _ in range(20):
            values = [t.clone() for t in tensors]
            lists[:] = [values]
            try:
                assert _asen.cat(values).sum().item() in {200_000.0 * n for n in range(9)}
            except (TypeError, IndexError):
                pass  # emptied before the call
    finally:
        done.set()
        thread.join()


@pytest.mark.skipif(os.environ.get("ASENPP_NO_MEMORY_CACHE") == "1", reason="ASENPP_NO_MEMORY_CACHE=1: nothing is cached")
def test_memory_is_reused():
    """After the first round of a size nothing is asked of the system."""
    for _ in range(2):
        tensor(np.ones(12345)) * 2.0
    before = _asen.memory_stats()["system_requests"]
    for _ in range(10):
        tensor(np.ones(12345)) * 2.0
    stats = _asen.memory_stats()
    assert stats["system_requests"] == before
    _asen.reset_peak_memory()
    t = tensor(np.ones(1 << 20))
    assert _asen.memory_stats()["peak"] >= stats["current"] + 4 * (1 << 20)
    del t
    _asen.empty_cache()
    assert _asen.memory_stats()["cached"] == 0


def test_absurd_sizes_are_errors():
    """More than any machine has: an exception, not a crash."""
    with pytest.raises((MemoryError, ValueError)):
        tensor([0.0]).expand(2**40, 2**10).contiguous()
    with pytest.raises((MemoryError, ValueError)):
        tensor([0.0]).expand(2**62, 2**62)
    with pytest.raises((MemoryError, ValueError)):
        _asen.embedding_grad(tensor(np.ones((1, 2))), tensor([0], np.int64), 2**50)
