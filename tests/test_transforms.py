"""Decoding and the transforms against Pillow, OpenCV, torchvision's arithmetic in NumPy, and an
independent model of the rules (docs/reference.md 5). Equal means equal bits throughout."""

import io
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from asenpp import _asen
from asenpp.transforms import GlobalTransform, LocalTransform, decode, decode_bytes, image_size

Image = pytest.importorskip("PIL.Image")

F32 = np.float32
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def config(global_size=224, local_size=112, threshold=0.4, exif=False):
    return SimpleNamespace(INPUT=SimpleNamespace(
        PIXEL_MEAN=MEAN, PIXEL_STD=STD, GLOBAL_SIZE=global_size, LOCAL_SIZE=local_size, THRESHOLD=threshold,
        EXIF=exif))


def noise(height, width, seed=0, extreme=False):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return (pixels > 127).astype(np.uint8) * 255 if extreme else pixels


def pillow_resize(pixels, height, width):
    """Pillow's resize, rows first, then columns: one axis at a time, since Pillow 13 takes columns
    first where the height shrinks much more than the width."""
    image = Image.fromarray(np.ascontiguousarray(pixels)).resize((width, pixels.shape[0]), Image.BILINEAR)
    return np.asarray(image.resize((width, height), Image.BILINEAR))


def resized(pixels, height, width):
    out = np.empty((height, width, 3), np.uint8)
    _asen.image_resize(pixels, out, height, width)
    return out


def normalized(pixels):
    scaled = pixels.astype(F32) / F32(255)
    return ((scaled - np.array(MEAN, F32)) / np.array(STD, F32)).transpose(2, 0, 1)


# -- resize

SIDES = [1, 2, 3, 5, 16, 31, 64, 97, 224, 333]


@pytest.mark.parametrize("height,width", list(itertools.product(SIDES, SIDES)))
def test_resize_equals_pillow(height, width):
    """Up, down, odd and one-pixel sizes, each axis on its own scale; noise and black-and-white."""
    for i, (to_height, to_width) in enumerate(itertools.product([1, 7, 32, 50, 224], [1, 6, 33, 112, 225])):
        pixels = noise(height, width, seed=i, extreme=i % 3 == 0)
        assert (resized(pixels, to_height, to_width) == pillow_resize(pixels, to_height, to_width)).all()


def test_resize_equals_pillow_in_one_call():
    """Where Pillow takes rows first whatever its version, its two passes in one call are the oracle."""
    for height, width, to_height, to_width in [(700, 500, 313, 224), (500, 700, 224, 313), (28, 28, 64, 64),
                                               (1200, 30, 1201, 224), (301, 299, 112, 112), (1, 1, 9, 9)]:
        pixels = noise(height, width)
        expected = np.asarray(Image.fromarray(pixels).resize((to_width, to_height), Image.BILINEAR))
        assert (resized(pixels, to_height, to_width) == expected).all()


def test_the_comparison_can_fail():
    """A resize that is wrong by one in one pixel is seen, and so is another filter."""
    pixels = noise(90, 70)
    expected = pillow_resize(pixels, 33, 44)
    assert not (np.asarray(Image.fromarray(pixels).resize((44, 33), Image.HAMMING)) == expected).all()
    wrong = resized(pixels, 33, 44)
    wrong[5, 6, 1] ^= 1
    assert not (wrong == expected).all()


def test_resize_of_a_window_equals_the_window_of_the_resize():
    rng = np.random.default_rng(5)
    for _ in range(100):
        height, width, to_height, to_width = (int(v) for v in rng.integers(1, 120, 4))
        pixels = noise(height, width)
        whole = pillow_resize(pixels, to_height, to_width)
        y, x = int(rng.integers(to_height)), int(rng.integers(to_width))
        out = np.empty((int(rng.integers(1, to_height - y + 1)), int(rng.integers(1, to_width - x + 1)), 3), np.uint8)
        _asen.image_resize(pixels, out, to_height, to_width, y, x)
        assert (out == whole[y:y + out.shape[0], x:x + out.shape[1]]).all()


def test_resize_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="window"):
        _asen.image_resize(noise(4, 4), np.empty((5, 5, 3), np.uint8), 4, 4)
    with pytest.raises(ValueError, match="cannot be resized"):
        _asen.image_resize(np.empty((0, 4, 3), np.uint8), np.empty((4, 4, 3), np.uint8), 4, 4)
    with pytest.raises(TypeError, match="uint8"):
        _asen.image_resize(noise(4, 4).astype(F32), np.empty((4, 4, 3), np.uint8), 4, 4)
    with pytest.raises((ValueError, BufferError)):
        _asen.image_resize(noise(8, 8)[::2], np.empty((4, 4, 3), np.uint8), 4, 4)


# -- the global transform


def model_global(pixels, size):
    height, width = pixels.shape[:2]
    if width <= height:
        to_width, to_height = size, int(size * height / width)
    else:
        to_width, to_height = int(size * width / height), size
    image = pillow_resize(pixels, to_height, to_width)
    top, left = int(round((to_height - size) / 2)), int(round((to_width - size) / 2))
    return normalized(image[top:top + size, left:left + size])


@pytest.mark.parametrize("size", [1, 7, 64, 224])
def test_global_transform_equals_pillow_and_numpy(size):
    """Portrait and landscape, both parities of the crop's margin, sides that are already right."""
    transform = GlobalTransform(config(size))
    rng = np.random.default_rng(size)
    sizes = [(int(a), int(b)) for a, b in rng.integers(1, 400, (25, 2))]
    for height, width in [*sizes, (size, size), (size, size + 1), (size + 3, size), (1, 300), (300, 1), (28, 28)]:
        pixels = noise(height, width)
        got = transform(pixels)
        assert got.shape == (3, size, size) and got.dtype == F32
        assert got.transpose(1, 2, 0).flags.c_contiguous, "channels last in memory"
        assert (got == model_global(pixels, size)).all(), (height, width)


def test_global_transform_equals_torchvision_where_it_is_installed():
    torchvision = pytest.importorskip("torchvision")
    t = torchvision.transforms
    theirs = t.Compose([t.Resize(224), t.CenterCrop(224), t.ToTensor(), t.Normalize(MEAN, STD)])
    for height, width in [(300, 400), (401, 301), (100, 80)]:
        image = Image.fromarray(noise(height, width))
        assert (GlobalTransform(config())(image) == theirs(image).numpy()).all()


def test_normalization_equals_torch_where_it_is_installed():
    torch = pytest.importorskip("torch")
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)
    tensor.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])
    assert (GlobalTransform(config(16))(pixels) == tensor.numpy()).all()


def test_every_kind_of_input_gives_the_same(tmp_path):
    pixels = noise(60, 50)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    transform = GlobalTransform(config(32))
    expected = transform(pixels)
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels)):
        assert (transform(image) == expected).all()
    out = np.full((2, 32, 32, 3), np.nan, F32)
    assert transform.batch([pixels, tmp_path / "a.png"], out) is out
    assert (out == expected.transpose(1, 2, 0)).all()
    for bad in (pixels.astype(F32), pixels[..., 0], 7):
        with pytest.raises(TypeError, match="image"):
            transform(bad)
    with pytest.raises(ValueError, match="out must be"):
        transform.batch([pixels], np.empty((1, 32, 32, 3)))


# -- the attention map


def model_axis(count, to_count):
    """(index, weight) by output, of the position (i + 0.5)*scale - 0.5 in double, rounded to float."""
    scale = 1.0 / (to_count / count)
    position = np.array([(i + 0.5) * scale - 0.5 for i in range(to_count)]).astype(F32)
    index = np.floor(position)
    return index.astype(int), position - index


def model_map_resize(map_, size):
    height, width = map_.shape
    x, fx = model_axis(width, size)
    y, fy = model_axis(height, size)
    fx = np.where((x < 0) | (x >= width - 1), F32(0), fx)      # columns drop the outer weight
    x = np.clip(x, 0, width - 1)
    right = np.minimum(x + 1, width - 1)
    rows = map_[:, x] * (F32(1) - fx) + map_[:, right] * fx
    top, bottom = np.clip(y, 0, height - 1), np.clip(y + 1, 0, height - 1)  # rows keep it
    return rows[top] * (F32(1) - fy)[:, None] + rows[bottom] * fy[:, None]


def map_resized(map_, size):
    out = np.empty((size, size), F32)
    _asen.map_resize(map_, out)
    return out


MAPS = list(itertools.product([1, 2, 3, 7, 14, 30], [1, 2, 5, 14, 28], [7, 28, 64, 112, 224, 225]))


def test_map_resize_equals_the_model():
    rng = np.random.default_rng(3)
    for height, width, size in MAPS:
        map_ = rng.random((height, width), dtype=F32) / F32(height * width)
        expected = model_map_resize(map_, size)
        assert expected.dtype == F32
        assert (map_resized(map_, size) == expected).all(), (height, width, size)


def test_map_resize_equals_opencv():
    """OpenCV's own code. Its builds for x86 carry Intel's IPP, which (on processors with FMA)
    contracts and interpolates otherwise; it is switched off here. OpenCV halves by averaging areas:
    a map of twice the size, which no network gives, is left out."""
    cv2 = pytest.importorskip("cv2")
    ipp = getattr(cv2, "ipp", None)
    before = ipp.useIPP() if ipp else False
    rng = np.random.default_rng(4)
    try:
        if ipp:
            ipp.setUseIPP(False)
        for height, width, size in MAPS:
            if height == width == 2 * size:
                continue
            map_ = rng.random((height, width), dtype=F32)
            expected = cv2.resize(map_, (size, size), interpolation=cv2.INTER_LINEAR)
            assert (map_resized(map_, size) == expected).all(), (height, width, size)
    finally:
        if ipp:
            ipp.setUseIPP(before)


# -- boxes


def model_box(map_, size, threshold, height, width):
    """docs/reference.md 5, local transform, steps 1 to 5, word by word."""
    big = model_map_resize(map_, size)
    low, high = big.min(), big.max()
    if low == high:
        x = y = 0
        d = size
    else:
        pixels = (((big - low) / (high - low)) * F32(255)).astype(np.uint8)
        kept = pixels > math.floor(255 * threshold)
        columns, rows = np.flatnonzero(kept.any(0)), np.flatnonzero(kept.any(1))
        x, y = int(columns[0]), int(rows[0])
        w, h = int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
        xc, yc = x + w // 2, y + h // 2
        d = max(w, h)
        x = size - d if xc + d // 2 > size else max(0, xc - d // 2)
        y = size - d if yc + d // 2 > size else max(0, yc - d // 2)
    shorter, longer = min(height, width), max(height, width)
    x, y, d = (int(v / size * shorter) for v in (x, y, d))
    if height > width:
        y += (longer - shorter) // 2
    else:
        x += (longer - shorter) // 2
    return x, y, max(d, 1)


def some_map(rng, kind):
    shape = (int(rng.integers(1, 16)), int(rng.integers(1, 16)))
    map_ = rng.random(shape, dtype=F32)
    if kind == 1:  # a peak, as attention has
        map_ = map_ ** 20
    if kind == 2:  # a corner
        map_[:] = 0
        map_[rng.integers(2) - 1, rng.integers(2) - 1] = 1
    return map_ / map_.sum()


@pytest.mark.parametrize("size,threshold", [(224, 0.4), (224, 0.1), (64, 0.4), (33, 0.9), (112, 0.0), (224, 0.999)])
def test_boxes_equal_the_model(size, threshold):
    rng = np.random.default_rng(size)
    transform = LocalTransform(config(size, threshold=threshold))
    for i in range(60):
        map_ = some_map(rng, i % 3)
        height, width = (int(v) for v in rng.integers(1, 1500, 2))
        if i % 5 == 0:
            height = width
        assert transform.box(map_, height, width) == model_box(map_, size, threshold, height, width)


def test_a_constant_map_gives_the_whole_centre_square():
    transform = LocalTransform(config())
    for map_ in (np.full((14, 14), 1 / 196, F32), np.zeros((1, 1), F32)):
        assert transform.box(map_, 300, 500) == (100, 0, 300)
        assert transform.box(map_, 501, 300) == (0, 100, 300)
        assert transform.box(map_, 40, 40) == (0, 0, 40)


def test_a_bad_map_or_threshold_is_an_error():
    with pytest.raises(ValueError, match="THRESHOLD"):
        LocalTransform(config(threshold=1.0))
    with pytest.raises(ValueError, match="THRESHOLD"):
        _asen.local_box(np.eye(4, dtype=F32), 224, 1.0, 300, 300)
    with pytest.raises(ValueError, match="THRESHOLD"):
        _asen.local_box(np.eye(4, dtype=F32), 224, float("nan"), 300, 300)
    for value in (np.nan, np.inf):
        map_ = np.eye(4, dtype=F32)
        map_[1, 2] = value
        with pytest.raises(ValueError, match="NaN"):
            LocalTransform(config()).box(map_, 300, 300)
    with pytest.raises(ValueError, match="span"):
        LocalTransform(config()).box(np.array([[3e38, -3e38]], F32), 300, 300)


# -- the local transform


def model_local(pixels, map_, size, local_size, threshold):
    x, y, d = model_box(map_, size, threshold, *pixels.shape[:2])
    square = np.asarray(Image.fromarray(pixels).crop((x, y, x + d, y + d)))
    return normalized(pillow_resize(square, local_size, local_size)), (x, y, d)


def test_local_transform_equals_the_model():
    """Also squares that overrun the image by a pixel: there Pillow's crop is black."""
    rng = np.random.default_rng(7)
    overran = 0
    for i in range(150):
        size, local_size = ((224, 112), (64, 32), (33, 40))[i % 3]
        pixels = noise(*(int(v) for v in rng.integers(1, 300, 2)), seed=i) | 1
        map_ = some_map(rng, i // 3 % 3)
        transform = LocalTransform(config(size, local_size, 0.1))
        got = transform(pixels, map_)
        expected, (x, y, d) = model_local(pixels, map_, size, local_size, 0.1)
        assert got.shape == (3, local_size, local_size) and got.transpose(1, 2, 0).flags.c_contiguous
        assert (got == expected).all()
        overran += x + d > pixels.shape[1] or y + d > pixels.shape[0]
    assert overran > 0, "no square overran: the case is not tested"


def test_local_batch_equals_one_by_one():
    rng = np.random.default_rng(8)
    images = [noise(50 + i, 70, seed=i) for i in range(5)]
    maps = rng.random((5, 4, 4), dtype=F32)
    transform = LocalTransform(config(64, 32))
    out = transform.batch(images, maps)
    assert out.shape == (5, 32, 32, 3) and out.flags.c_contiguous
    for i in range(5):
        assert (out[i].transpose(2, 0, 1) == transform(images[i], maps[i])).all()
    with pytest.raises(ValueError, match="5 images, 4 maps"):
        transform.batch(images, maps[:4])


# -- decoding


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([y * 3 + x, x * 2, (y * x) // 5], -1).astype(np.uint8))


@pytest.mark.parametrize("options", [
    {}, {"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True, "quality": 95},
    {"optimize": True, "quality": 10}, {"restart_marker_blocks": 2}], ids=str)
def test_jpeg_equals_pillow(options):
    for height, width in [(1, 1), (8, 8), (17, 33), (200, 131)]:
        data = encoded(smooth(height, width), **options)
        assert image_size(data) == (height, width)
        assert (decode_bytes(data) == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()


def test_rare_jpegs_equal_pillow():
    """Grayscale in C; CMYK, with and without Adobe's marker of inversion, by Pillow."""
    for mode in ("L", "CMYK"):
        data = encoded(smooth(40, 30).convert(mode))
        got = decode_bytes(data)
        assert (got == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()
        assert got.shape == (40, 30, 3) and image_size(data) == (40, 30)
    with pytest.raises(NotImplementedError):
        _asen.jpeg_decode(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_other_formats_equal_pillow(mode, tmp_path):
    """Alpha is dropped: the colour below a transparent pixel stays."""
    rng = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 256, (20, 30)).astype(np.uint16))
    elif mode in ("RGBA", "LA"):
        image = Image.fromarray(rng.integers(0, 256, (20, 30, len(mode)), dtype=np.uint8), mode)
    else:
        image = Image.fromarray(noise(20, 30)).convert(mode)
    image.save(tmp_path / "a.png")
    got = decode(tmp_path / "a.png")
    assert got.shape == (20, 30, 3) and got.dtype == np.uint8
    assert (got == np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))).all()
    if mode == "RGBA":
        assert (got == np.asarray(image)[..., :3]).all()


def test_a_palette_with_transparency_loses_it_without_a_warning(tmp_path, recwarn):
    image = Image.fromarray(noise(20, 30)).convert("P")
    image.save(tmp_path / "a.png", transparency=bytes(range(256)))
    assert (decode(tmp_path / "a.png") == np.asarray(image.convert("RGB"))).all()
    assert not recwarn.list


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored_unless_asked_for(orientation, tmp_path):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.jpg", "a.png"):
        smooth(40, 30).save(tmp_path / name, exif=exif)
        image = Image.open(tmp_path / name)
        assert (decode(tmp_path / name) == np.asarray(image)).all()
        turned = np.asarray(ImageOps.exif_transpose(image))
        assert (decode(tmp_path / name, exif=True) == turned).all()
        expected = GlobalTransform(config(16))(turned)
        assert (GlobalTransform(config(16, exif=True))(tmp_path / name) == expected).all()
        assert (GlobalTransform(config(16, exif=True))(image) == expected).all()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_an_error_that_names_the_file(progressive, tmp_path):
    """Cut anywhere, in header or data: never a picture with a grey end, and never a crash."""
    data = encoded(Image.fromarray(noise(64, 48)), progressive=progressive)
    path = tmp_path / "한복 cut.jpg"
    for length in [*range(0, 700, 23), *range(700, len(data), 211), len(data) - 2]:
        path.write_bytes(data[:length])
        with pytest.raises(OSError, match="한복 cut.jpg"):
            decode(path)
    path.write_bytes(data)
    assert decode(path).shape == (64, 48, 3)


def test_missing_rows_are_an_error_even_with_an_end_marker():
    data = encoded(Image.fromarray(noise(64, 48)))
    with pytest.raises(OSError, match="broken JPEG"):
        decode_bytes(data[:len(data) // 2] + b"\xff\xd9")


def test_a_corrupted_jpeg_never_crashes():
    """Random bytes overwritten: pixels or an OSError, nothing else."""
    data = bytearray(encoded(Image.fromarray(noise(40, 40))))
    rng = np.random.default_rng(9)
    outcomes = set()
    for _ in range(300):
        bad = bytearray(data)
        for _ in range(int(rng.integers(1, 5))):
            bad[int(rng.integers(2, len(bad)))] = int(rng.integers(256))
        try:
            outcomes.add(decode_bytes(bytes(bad)).ndim)
        except OSError:
            outcomes.add("error")
    assert outcomes == {3, "error"}


def test_a_header_of_a_huge_image_is_refused_before_memory_is_taken():
    data = bytearray(encoded(smooth(16, 16)))
    start = data.index(b"\xff\xc0")
    data[start + 5:start + 9] = b"\xff\x00\xff\x00"
    for call in (decode_bytes, image_size):
        with pytest.raises(OSError, match="a.jpg.*65280 x 65280"):
            call(bytes(data), "a.jpg")


def test_other_bad_files_are_errors_that_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.jpg"):
        decode(tmp_path / "missing.jpg")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(OSError, match="empty.png: the file is empty"):
        decode(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(OSError, match="text.png: not an image"):
        decode(tmp_path / "text.png")
    data = encoded(Image.fromarray(noise(50, 50)), "PNG")
    (tmp_path / "cut.png").write_bytes(data[:len(data) // 2])
    with pytest.raises(OSError, match="cut.png"):
        decode(tmp_path / "cut.png")
