"""What other programs and machines wrote, in every container: dtypes, views, byte orders, GPUs, ZIP64.

Most files are made by checkpoint_kit, so that these tests run without PyTorch; that the kit makes what PyTorch
does is a test, too."""

import io
from collections import OrderedDict

import numpy as np
import pytest

import checkpoint_kit as kit
from asenpp import checkpoint
from asenpp.checkpoint import BFloat16, CheckpointError

VARIANTS = {
    "zip": lambda obj: kit.zip_file(obj),
    "zip, big-endian": lambda obj: kit.zip_file(obj, "big"),
    "zip without byteorder": lambda obj: kit.zip_file(obj, None),
    "zip named by its file": lambda obj: kit.zip_file(obj, root="checkpoint.pth"),
    "zip64": lambda obj: kit.zip_file(obj, zip64=True),
    "zip64, big-endian": lambda obj: kit.zip_file(obj, "big", zip64=True),
    "stream": lambda obj: kit.stream_file(obj),
    "stream, big-endian": lambda obj: kit.stream_file(obj, "big"),
    "stream of a big-endian machine": lambda obj: kit.stream_file(obj, "big", native=False),
    "tar": lambda obj: kit.tar_file(obj),
    "tar, big-endian": lambda obj: kit.tar_file(obj, order="big"),
    "tar of a big-endian machine": lambda obj: kit.tar_file(obj, order="big", native=False),
}
NO_TAR = [name for name in VARIANTS if "tar" not in name]
DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1"]


def written(tmp_path, data: bytes):
    path = tmp_path / "file"
    path.write_bytes(data)
    return path


def view(tensor: kit.Tensor) -> np.ndarray:
    """What a tensor of the kit says, by NumPy."""
    array = tensor.storage.array
    if not tensor.size or 0 in tensor.size:
        return np.array(array[tensor.offset]) if not tensor.size else np.empty(tensor.size, array.dtype)
    strides = [s * array.itemsize for s in tensor.stride]
    return np.lib.stride_tricks.as_strided(array[tensor.offset:], tensor.size, strides)


def state(location="cpu", scalar=True) -> OrderedDict:
    rng = np.random.default_rng(0)
    tensors = OrderedDict((name, kit.tensor((rng.standard_normal((2, 3)) * 50).astype(name), location)) for name in DTYPES)
    shared = kit.Storage(np.arange(24, dtype=np.float32), location=location)
    tensors |= {"whole": kit.Tensor(shared, 0, (4, 6), (6, 1)), "transposed": kit.Tensor(shared, 0, (6, 4), (1, 6)),
                "part": kit.Tensor(shared, 7, (2, 3), (6, 1)), "step": kit.Tensor(shared, 1, (8,), (3,)),
                "expanded": kit.Tensor(shared, 5, (3, 4, 2), (0, 1, 0)), "overlapping": kit.Tensor(shared, 0, (5, 4), (2, 3)),
                "channels last": kit.Tensor(shared, 0, (1, 2, 3, 4), (24, 1, 8, 2)),
                "empty": kit.Tensor(shared, 24, (0, 3), (3, 1)), "empty alone": kit.tensor(np.empty((2, 0), np.int64))}
    if scalar:  # the oldest container had no tensors without dimensions
        tensors |= {"scalar": kit.tensor(np.float64(3.5)), "scalar inside": kit.Tensor(shared, 9, (), ())}
    return tensors


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_dtypes_views_and_byte_orders(tmp_path, variant, writable):
    """Every dtype, shared storages, any strides, empty and 0-dimensional tensors, of a CPU and of a GPU."""
    for location in ("cpu", "cuda:0"):
        tensors = state(location, scalar="tar" not in variant)
        got = checkpoint.load(written(tmp_path, VARIANTS[variant](tensors)), writable=writable)
        assert list(got) == list(tensors)
        for name, tensor in tensors.items():
            want = view(tensor)
            assert got[name].dtype == want.dtype and got[name].dtype.isnative and got[name].shape == want.shape, name
            assert np.array_equal(got[name], want), name
            assert got[name].flags.writeable == writable or not got[name].size
        assert got["transposed"].strides == (4, 24) and got["expanded"].strides[0] == 0
        if writable:
            got["whole"][0, 1] = -7
            assert got["transposed"][1, 0] == got["step"][0] == -7, "views share their storage"


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16(tmp_path, variant):
    values = np.float32([1, -2.5, 3e38, 0])
    bits = kit.Storage((values.view(np.uint32) >> 16).astype(np.uint16), "BFloat16")
    got = checkpoint.load(written(tmp_path, VARIANTS[variant]({"b": kit.Tensor(bits, 0, (2, 2), (2, 1))})))["b"]
    assert isinstance(got, BFloat16)
    assert np.array_equal(np.asarray(got), (values.view(np.uint32) >> 16 << 16).view(np.float32).reshape(2, 2))


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_stands_beside_tensors(tmp_path, variant):
    """_metadata, torch.Size, dtypes, devices, NumPy scalars of either byte order, bytes, Python's values."""
    model = OrderedDict(w=kit.tensor(np.ones(2, np.float32)))
    model._metadata = OrderedDict({"": {"version": 2}})

    def scalar(code: str, order: str, raw: bytes):
        state = f"(K\3X\1\0\0\0{order}NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb".encode("latin1")
        dtype = kit.Raw(b"cnumpy\ndtype\n(" + kit.text(code) + b"K\0K\1tR" + state)
        return kit.Call(kit.Global("numpy.core.multiarray", "scalar"),
                        (dtype, kit.Call(kit.Global("_codecs", "encode"), (raw.decode("latin1"), "latin1"))))

    obj = {"model": model, "size": kit.Call(kit.Global("torch", "Size"), ([2, 3],)), "dtype": kit.Global("torch", "float16"),
           "device": kit.Call(kit.Global("torch", "device"), ("cuda", 0)), "epoch": 3, "none": None, "mAP": 0.5, "yes": True,
           "f": scalar("f8", "<", np.float64(0.1).tobytes()), "g": scalar("f4", ">", np.array(0.5, ">f4").tobytes()),
           "i": scalar("i8", "<", np.int64(-3).tobytes()), "list": [1, (2, "x")],
           "bytes": kit.Call(kit.Global("_codecs", "encode"), ("\0\xff", "latin1"))}
    got = checkpoint.load(written(tmp_path, VARIANTS[variant](obj)))
    assert got["model"]._metadata == model._metadata and got["model"]["w"].tolist() == [1, 1]
    assert got["size"] == (2, 3) and got["dtype"] == np.float16 and got["device"] == "cuda:0" and got["bytes"] == b"\0\xff"
    assert (got["f"], got["g"], got["i"]) == (0.1, 0.5, -3)
    assert [got[k] for k in ("epoch", "none", "mAP", "yes", "list")] == [3, None, 0.5, True, [1, (2, "x")]]


@pytest.mark.parametrize("variant", NO_TAR)
def test_parameters_and_older_calls(tmp_path, variant):
    """_rebuild_parameter around a tensor, and _rebuild_tensor of four arguments."""
    array = np.arange(6, dtype=np.float32)
    storage = kit.Storage(array)
    old = kit.Call(kit.Global("torch._utils", "_rebuild_tensor"), (storage, 1, (2, 2), (2, 1)))
    parameter = kit.Call(kit.Global("torch._utils", "_rebuild_parameter"), (kit.tensor(array), True, OrderedDict()))
    got = checkpoint.load(written(tmp_path, VARIANTS[variant]({"old": old, "parameter": parameter})))
    assert got["old"].tolist() == [[1, 2], [3, 4]] and np.array_equal(got["parameter"], array)


def test_parameters_and_views_of_the_oldest_files(tmp_path):
    """Parameters made by BUILD (the same one twice is one), and storages that are views of another."""
    root = kit.Storage(np.arange(10, dtype=np.float64))
    members = kit.tar_members({"whole": kit.Tensor(root, 0, (10,), (1,)), "p": kit.Raw(
        b"ctorch.nn.parameter\nParameter\n)\x81q\5(M\xe8\x03Q\x88ccollections\nOrderedDict\n)RNtb"), "again": kit.Raw(b"h\5")},
        views={77: (root, 4, 5)})
    described = kit.dump((2000, 77, kit.Global("torch", "DoubleTensor")))
    tensor = np.array([2, 0], "<i4").tobytes() + np.array([2, 2, 2, 1, 1], "<i8").tobytes()
    members["tensors"] = kit.dump(2) + members["tensors"][len(kit.dump(1)):] + described + tensor
    members["pickle"] = members["pickle"][:-2] + kit.text("view") + b"M\xd0\x07Q" + b"u."
    got = checkpoint.load(written(tmp_path, kit.tar_of(members)), writable=True)
    assert got["p"] is got["again"] and np.array_equal(got["p"], np.arange(10))
    assert got["view"].tolist() == [[5, 6], [7, 8]] and np.shares_memory(got["view"], got["whole"])


@pytest.mark.filterwarnings("ignore:.*legacy")
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_kit_makes_what_pytorch_reads(tmp_path, variant):
    """Holds the files of these tests against PyTorch itself, where it reads their kind on this machine."""
    torch = pytest.importorskip("torch")
    tensors = state(scalar="tar" not in variant)
    if "big-endian" in variant and "zip" not in variant:
        pytest.skip("PyTorch on a little-endian machine reads no big-endian stream or tar")
    if "big-endian" in variant:
        tensors = OrderedDict((name, t) for name, t in tensors.items() if name not in ("b1", "u1", "i1"))
    path = written(tmp_path, VARIANTS[variant](tensors))
    got = torch.load(path, weights_only="tar" not in variant, map_location="cpu")
    for name, tensor in tensors.items():
        assert np.array_equal(got[name].numpy(), view(tensor)), name


@pytest.mark.parametrize("legacy", [False, True])
def test_unsigned_integers_by_pytorch(tmp_path, legacy):
    """Dtypes without a storage class: PyTorch's come in, views included, and go out to PyTorch."""
    torch = pytest.importorskip("torch")
    base = torch.arange(12, dtype=torch.int32).to(torch.uint32)
    obj = {"a": base.view(3, 4), "t": base.view(3, 4).t(), "part": base[5:7], "h": torch.tensor([65535], dtype=torch.uint16),
           "l": torch.tensor(2**64 - 1, dtype=torch.uint64)}
    torch.save(obj, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
    got = checkpoint.load(tmp_path / "x")
    assert {k: v.dtype.name for k, v in got.items()} == {"a": "uint32", "t": "uint32", "part": "uint32", "h": "uint16",
                                                         "l": "uint64"}
    assert all(np.array_equal(got[k], obj[k].numpy()) for k in obj)
    checkpoint.save(got, tmp_path / "y")
    back = torch.load(tmp_path / "y", weights_only=True)
    assert all(back[k].dtype == obj[k].dtype and np.array_equal(back[k].numpy(), obj[k].numpy()) for k in obj)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("make,named", [
    (lambda torch: torch.zeros(2, dtype=torch.complex64), "ComplexFloatStorage"),
    (lambda torch: torch.zeros(2, dtype=torch.complex128), "ComplexDoubleStorage"),
    (lambda torch: torch.zeros(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    (lambda torch: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8), "_rebuild_qtensor"),
    (lambda torch: torch.eye(2).to_sparse(), "_rebuild_sparse_tensor"),
    (lambda torch: torch.ones(2, dtype=torch.complex64).conj().imag, "stand for others"),
    (lambda torch: torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    (lambda torch: torch.zeros(2).untyped_storage(), "Storage"),
])
def test_what_is_not_read_is_named(tmp_path, make, named, legacy):
    torch = pytest.importorskip("torch")
    torch.save({"x": make(torch)}, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
    for read in (checkpoint.load, checkpoint.inspect):
        with pytest.raises(CheckpointError, match=named):
            read(tmp_path / "x")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "x")
    with pytest.raises(CheckpointError, match="TorchScript program"):
        checkpoint.load(tmp_path / "x")


def test_safetensors_of_every_dtype(tmp_path):
    codes = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8",
             "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "b1", "BF16": "<u2"}
    header, data, want = {"__metadata__": {"epoch": "3"}}, b"", {}
    for code, dtype in codes.items():
        for shape in ((2, 3), (), (0, 4)):
            array = np.random.default_rng(len(data)).integers(0, 2, shape).astype(dtype)
            header[f"{code}{shape}"] = {"dtype": code, "shape": list(shape), "data_offsets": [len(data), len(data) + array.nbytes]}
            data += array.tobytes()
            want[f"{code}{shape}"] = array
    got = checkpoint.load(written(tmp_path, kit.safetensors_file(header, data)))
    assert got.metadata == {"epoch": "3"}
    for name, array in want.items():
        value = got[name].bits if name.startswith("BF16") else got[name]
        assert value.dtype == array.dtype and value.shape == array.shape and np.array_equal(value, array), name
    header["c"] = {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [len(data), len(data) + 1]}
    with pytest.raises(CheckpointError, match="F8_E4M3"):
        checkpoint.load(written(tmp_path, kit.safetensors_file(header, data + b"x")))


def test_files_of_python_2(tmp_path):
    """Its pickles have byte strings for names and numbers, and long integers as text."""
    pickle = b"\x80\x02}(U\5epochK\3T\4\0\0\0nameU\4asenU\3bigI4294967296\nU\4longL-17L\nU\4trueI01\nu."
    for data in (kit.zip_file(None, pickle=pickle), kit.stream_file(None, pickle=pickle), kit.tar_file({}, pickle=pickle)):
        assert checkpoint.load(written(tmp_path, data)) == {"epoch": 3, "name": "asen", "big": 1 << 32, "long": -17, "true": True}


def test_every_protocol(tmp_path):
    """torch.save(pickle_protocol=…): 2 to 4 in both containers."""
    torch = pytest.importorskip("torch")
    for protocol in (2, 3, 4):
        for new in (True, False):
            out = io.BytesIO()
            torch.save({"a": torch.ones(2), "b": b"\0\xff", "n": [1, 2.5, None, (True,)]}, out, pickle_protocol=protocol,
                       _use_new_zipfile_serialization=new)
            got = checkpoint.load(written(tmp_path, out.getvalue()))
            assert got["a"].tolist() == [1, 1] and got["b"] == b"\0\xff" and got["n"] == [1, 2.5, None, (True,)]
