"""Augmentation: each change against a plain model in NumPy and Pillow, the draws against a Philox of our own; what an
image becomes depends on (seed, epoch, id) alone; the local crop shows what the map of the augmented view marks."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")

from asenpp import _asen  # noqa: E402
from asenpp.data.loader import BatchLoader  # noqa: E402
from asenpp.transforms import Augmentation, Draw, GlobalTransform, LocalTransform, decode, pixel_table  # noqa: E402

F32 = np.float32
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
ALL = {"flip": 0.5, "crop": 0.4, "erase": 0.5, "jitter": 0.4}


def config(flip=0.0, crop=1.0, erase=0.0, jitter=0.0, seed=0, size=32, local=16, threshold=0.4):
    return SimpleNamespace(SEED=seed, INPUT=SimpleNamespace(
        PIXEL_MEAN=MEAN, PIXEL_STD=STD, GLOBAL_SIZE=size, LOCAL_SIZE=local, THRESHOLD=threshold, EXIF=False,
        AUGMENT=SimpleNamespace(FLIP=flip, CROP=crop, ERASE=erase, JITTER=jitter, JITTER_COLOUR=False)))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def views(cfg, images, ids, epoch=0, dtype=np.uint8):
    """(pixels, draws) of each image by itself."""
    augment, transform, size = Augmentation(cfg), GlobalTransform(cfg), cfg.INPUT.GLOBAL_SIZE
    pixels, draws = np.empty((len(images), size, size, 3), dtype), np.zeros((len(images), augment.FIELDS))
    for i, (image, image_id) in enumerate(zip(images, ids, strict=True)):
        augment.into([image], [image_id], [i], epoch, transform, pixels, draws)
    return pixels, draws


def plain(cfg, image):
    """The global transform, 8 bits."""
    t = GlobalTransform(cfg)
    out = np.empty((1, t.global_size, t.global_size, 3), np.uint8)
    _asen.global_batch([image], [0], out, t.mean, t.std)
    return out[0]


def part_of(image, x, y, width, height, size):
    """The part of the image, black outside, resized by Pillow, along rows first: some versions take columns first."""
    x, y, width, height = (int(v) for v in (x, y, width, height))
    whole = Image.fromarray(image).crop((x, y, x + width, y + height))
    return np.asarray(whole.resize((size, height), Image.BILINEAR).resize((size, size), Image.BILINEAR))


def jittered(pixels, brightness, contrast, saturation, grey=None):
    """The definition in float64, each step clipped and none rounded: (pixels, mean grey of the brightened)."""
    weights = np.array([0.299, 0.587, 0.114])
    x = np.clip(pixels * float(brightness), 0, 255)
    grey = (x @ weights).mean() if grey is None else grey
    x = np.clip(contrast * x + (1 - contrast) * grey, 0, 255)
    return np.clip(saturation * x + (1 - saturation) * (x @ weights)[..., None], 0, 255), grey


# -- the draws

def philox(seed, block):
    """Philox4x32-10 of the counter (block, 0): four 32-bit numbers."""
    low = 0xFFFFFFFF
    k0, k1 = seed & low, seed >> 32
    c0, c1, c2, c3 = block & low, block >> 32, 0, 0
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & low, (p0 >> 32) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return c0, c1, c2, c3


def between(number, low, high):
    return low + (high - low) * (number / 2**32)


def rectangle(key, first, area, least, most, lowest, highest, fits, height, width):
    for t in range(10):
        n = philox(key, first + t)
        aspect = math.exp(between(n[1], math.log(lowest), math.log(highest)))
        part = area * between(n[0], least, most)
        h, w = math.floor(math.sqrt(part / aspect) + 0.5), math.floor(math.sqrt(part * aspect) + 0.5)
        if fits(h, w):
            return n[3] * (width - w + 1) >> 32, n[2] * (height - h + 1) >> 32, w, h
    return None


def model_draw(cfg, image_id, epoch, height, width, size):
    """docs/reference.md 5, augmentation, number by number."""
    a, mask = cfg.INPUT.AUGMENT, 2**64 - 1
    n = philox((cfg.SEED & mask) ^ 0x61756D656E746174, epoch)
    key, first = n[1] << 32 | n[0], image_id * 32 & mask
    n = philox(key, first)
    factors = [between(v, 1 - a.JITTER, 1 + a.JITTER) if a.JITTER else 1.0 for v in n[1:]]
    side = min(height, width)
    shown = centre = ((width - side) // 2, (height - side) // 2, side, side)
    if a.CROP < 1:
        shown = rectangle(key, first + 2, side * side, a.CROP, 1, 3 / 4, 4 / 3,
                          lambda h, w: 1 <= h <= height and 1 <= w <= width, height, width) or centre
    erased = None
    if philox(key, first + 1)[0] / 2**32 < a.ERASE:
        erased = rectangle(key, first + 12, size * size, 0.02, 0.33, 0.3, 3.3,
                           lambda h, w: 1 <= h < size and 1 <= w < size, size, size)
    return Draw(n[0] / 2**32 < a.FLIP, shown, erased or (0, 0, 0, 0), *factors, 0.0)


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5])
def test_draws_equal_the_model(seed):
    """Number by number, with a Philox in Python: images of every shape, ids up to 2^40, one below 0."""
    rng = np.random.default_rng(seed % 100)
    cfg = config(**ALL, seed=seed, size=24)
    augment = Augmentation(cfg)
    for i in range(1500):
        height, width = (int(v) for v in rng.integers(1, 60, 2)) if i % 2 else (28, 28)
        image_id = -3 if i == 0 else int(rng.integers(0, 2**40)) if i % 3 else i
        epoch = i % 5
        got = augment.draw(image_id, epoch, height, width, 24)
        assert got == model_draw(cfg, image_id, epoch, height, width, 24), (image_id, epoch, height, width)


def test_one_draw_is_what_it_was():
    """On every machine, in every version: runs are resumed."""
    augment = Augmentation(config(**ALL, size=224))
    assert augment.draw(123456, 3, 1200, 800, 224) == Draw(
        1.0, (30.0, 208.0, 695.0, 658.0), (0.0, 0.0, 0.0, 0.0), 0.6587365865707397, 1.0127692814916371,
        0.8780465453863143, 0.0)
    assert augment.draw(123461, 3, 1200, 800, 224) == Draw(
        0.0, (21.0, 47.0, 559.0, 674.0), (70.0, 44.0, 154.0, 106.0), 1.187209578976035, 1.1746003238484262,
        1.243412652052939, 0.0)


def test_probabilities_ranges_and_bounds():
    """Over 6000 ids; five standard deviations."""
    count, height, width, size = 6000, 150, 100, 64
    augment = Augmentation(config(0.3, 0.25, 0.6, 0.4, size=size))
    draws = [augment.draw(i, 0, height, width, size) for i in range(count)]

    def near(values, expected, deviation):
        assert abs(np.mean(values) - expected) < 5 * deviation / math.sqrt(count), (np.mean(values), expected)

    near([d.mirrored for d in draws], 0.3, math.sqrt(0.3 * 0.7))
    near([d.erased[2] > 0 for d in draws], 0.6, math.sqrt(0.6 * 0.4))
    for name in ("brightness", "contrast", "saturation"):
        values = np.array([getattr(d, name) for d in draws])
        near(values, 1.0, 0.8 / math.sqrt(12))
        assert 0.6 <= values.min() < 0.602 and 1.398 < values.max() <= 1.4
    factors = np.array([[d.mirrored, d.brightness, d.contrast, d.saturation, d.erased[2] > 0, d.shown[0], d.shown[2]]
                        for d in draws])
    mixed = np.corrcoef(factors.T)
    np.fill_diagonal(mixed, 0)
    mixed[5, 6] = mixed[6, 5] = 0       # a wide window has less room to the left
    assert abs(mixed).max() < 5 / math.sqrt(count), "properties are drawn independently"

    x, y, w, h = np.array([d.shown for d in draws]).T
    assert (x >= 0).all() and (y >= 0).all() and (x + w <= width).all() and (y + h <= height).all()
    assert (x == 0).any() and (y == 0).any() and (x + w == width).any() and (y + h == height).any()
    area, aspect = w * h / (100 * 100), w / h
    assert 0.24 < area.min() < 0.26 and 0.97 < area.max() < 1.02
    assert 0.73 < aspect.min() < 0.77 and 1.29 < aspect.max() < 1.37
    near((y / np.maximum(height - h, 1))[h < height], 0.5, 1 / math.sqrt(12) + 0.02)

    x, y, w, h = np.array([d.erased for d in draws if d.erased[2]]).T
    assert (x >= 0).all() and (y >= 0).all() and (x + w <= size).all() and (y + h <= size).all()
    assert (x == 0).any() and (y + h == size).any() and (w < size).all() and (h < size).all()
    area, aspect = w * h / size**2, w / h
    assert 0.018 < area.min() < 0.03 and 0.31 < area.max() < 0.34
    assert 0.27 < aspect.min() < 0.35 and 2.9 < aspect.max() < 3.7
    near(area, 0.5 * (0.02 + 0.33), 0.1)


def test_windows_have_uniform_areas_and_log_uniform_aspects():
    """Where every window fits: CROP so small and the aspect free. By quantiles, of U[c, 1] where the area alone decides."""
    augment = Augmentation(config(crop=0.05))
    w, h = np.array([augment.draw(i, 1, 1000, 1000, 32).shown for i in range(4000)]).T[2:]
    fits = w * h <= 0.74 * 1e6     # below, every aspect of [3/4, 4/3] fits
    area, aspect = np.sort(w[fits] * h[fits] / 1e6), np.sort(np.log(w[fits] / h[fits]))
    steps = np.linspace(0, 1, len(area))
    assert abs(area - (0.05 + (0.74 - 0.05) * steps)).max() < 0.03
    assert abs(aspect - math.log(4 / 3) * (2 * steps - 1)).max() < 0.03


def test_each_property_has_numbers_of_its_own():
    """Switching one on leaves the others' draws as they are."""
    alone = {key: Augmentation(config(**{key: value})) for key, value in ALL.items()}
    together = Augmentation(config(**ALL))
    for i in range(200):
        a = together.draw(i, 2, 40, 50, 32)
        assert a.mirrored == alone["flip"].draw(i, 2, 40, 50, 32).mirrored
        assert a.shown == alone["crop"].draw(i, 2, 40, 50, 32).shown
        assert a.erased == alone["erase"].draw(i, 2, 40, 50, 32).erased
        assert a[3:6] == alone["jitter"].draw(i, 2, 40, 50, 32)[3:6]


def test_epochs_seeds_and_ids_differ():
    first = Augmentation(config(**ALL))
    other = Augmentation(config(**ALL, seed=1))
    draws = {d for i in range(50) for d in (first.draw(i, 0, 40, 50, 32), first.draw(i, 1, 40, 50, 32),
                                            other.draw(i, 0, 40, 50, 32))}
    assert len(draws) == 150


# -- each change

SIZES = [(40, 50), (50, 40), (28, 28), (32, 32), (90, 31), (32, 70), (1, 1), (1, 9), (9, 1), (3, 200)]


@pytest.mark.parametrize("dtype", [np.uint8, F32])
def test_a_mirrored_view_is_the_mirrored_bits(dtype):
    cfg = config(flip=1.0)
    for height, width in SIZES:
        image = noise(height, width)
        pixels, draws = views(cfg, [image], [5], dtype=dtype)
        expected = plain(cfg, image) if dtype is np.uint8 else GlobalTransform(cfg).batch([image])[0]
        assert (pixels[0] == expected[:, ::-1]).all(), (height, width)
        assert Draw.of_row(draws[0]).mirrored


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_window_is_the_resized_part(flip):
    cfg = config(flip=flip, crop=0.2)
    shapes = set()
    for i, (height, width) in enumerate(SIZES * 8):
        image = noise(height, width, i)
        pixels, draws = views(cfg, [image], [i])
        shown = Draw.of_row(draws[0]).shown
        shapes.add(shown[2:])
        expected = part_of(image, *shown, 32)
        assert (pixels[0] == (expected[:, ::-1] if flip else expected)).all(), (height, width, shown)
    assert len(shapes) > 30


def test_without_a_window_that_fits_the_centre_square_is_shown():
    """No window of 3 to 4 is as large as CROP asks."""
    augment = Augmentation(config(crop=0.999999))
    shown = [augment.draw(i, 0, 1000, 1001, 32).shown for i in range(100)]
    assert shown.count((0, 0, 1000, 1000)) > 80
    assert {augment.draw(i, 0, 7, 1, 32).shown for i in range(50)} == {(0, y, 1, 1) for y in range(7)}, "1 x 1 fits anywhere"


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_the_erased_rectangle_and_nothing_else(flip):
    cfg, none = config(flip=flip, erase=1.0), config(flip=flip)
    image = noise(50, 60)
    mean = np.floor(255 * np.array(MEAN, F32).astype(float) + 0.5)
    for i in range(200):
        bytes_, draws = views(cfg, [image], [i])
        floats, same = views(cfg, [image], [i], dtype=F32)
        assert (draws == same).all()
        x, y, w, h = (int(v) for v in Draw.of_row(draws[0]).erased)
        assert w > 0 and h > 0
        inside = np.zeros((32, 32), bool)
        inside[y:y + h, x:x + w] = True
        assert (bytes_[0][inside] == mean).all() and (floats[0][inside] == 0).all()
        assert (bytes_[0][~inside] == views(none, [image], [i])[0][0][~inside]).all()
        assert (floats[0][~inside] == views(none, [image], [i], dtype=F32)[0][0][~inside]).all()


@pytest.mark.parametrize("kind", ["noise", "dark", "bright", "grey"])
def test_jitter_is_the_definition_within_half_a_level(kind):
    """Rounded once, at the end: half a level and what the fixed point loses."""
    image = {"noise": noise(40, 40), "dark": noise(40, 40) // 8, "bright": 255 - noise(40, 40) // 8,
             "grey": noise(40, 40)[..., :1].repeat(3, axis=2)}[kind]
    for jitter in (0.1, 0.5, 1.0):
        cfg = config(jitter=jitter)
        for i in range(40):
            pixels, draws = views(cfg, [image], [i])
            d = Draw.of_row(draws[0])
            expected, grey = jittered(plain(cfg, image), d.brightness, d.contrast, d.saturation)
            assert abs(d.grey - grey) < 0.01
            assert abs(pixels[0] - expected).max() < 0.5 + 0.02


def forced(image, size, brightness=1.0, contrast=1.0, saturation=1.0, grey=0.0):
    """The whole of a square image with these factors."""
    row = np.array([[0, 0, 0, len(image), len(image), 0, 0, 0, 0, brightness, contrast, saturation, grey]], float)
    out = np.empty((1, size, size, 3), np.uint8)
    _asen.augment_local_batch([image], np.ones((1, 2, 2), F32), row, 32, 0.4, out, (0, 0, 0), (1, 1, 1))
    return out[0]


def test_extreme_factors():
    image = noise(16, 16)
    assert (forced(image, 16) == image).all()
    assert (forced(image, 16, brightness=0) == 0).all()
    assert (forced(image, 16, contrast=0, grey=93.4) == 93).all()
    grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    assert abs(forced(image, 16, saturation=0) - grey).max() < 0.52
    for factors in [(2, 2, 2), (2, 1, 0), (1, 2, 2), (2, 0, 2), (0, 2, 0)]:
        expected, _ = jittered(image, *factors, grey=120.0)
        assert abs(forced(image, 16, *factors, grey=120.0) - expected).max() < 0.52


@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color"])
def test_jitter_is_pillows_enhancement(name):
    """What torchvision's ColorJitter calls for PIL images; Pillow truncates, and rounds the mean grey."""
    enhance = pytest.importorskip("PIL.ImageEnhance")
    image = noise(16, 16)
    grey = (image @ np.array([0.299, 0.587, 0.114])).mean()
    for factor in (0.0, 0.3, 1.0, 1.6):
        theirs = np.asarray(getattr(enhance, name)(Image.fromarray(image)).enhance(factor)).astype(int)
        key = {"Brightness": "brightness", "Contrast": "contrast", "Color": "saturation"}[name]
        assert abs(forced(image, 16, **{key: factor}, grey=grey) - theirs).max() <= 1


def test_all_together_are_the_changes_one_after_another():
    """Window, mirror, jitter, erasing, in this order; whatever the shape of the image and the size of the view."""
    for size in (1, 5, 32):
        cfg = config(**ALL, size=size)
        for i, (height, width) in enumerate(SIZES * 4):
            image = noise(height, width, i)
            pixels, draws = views(cfg, [image], [i], epoch=3)
            d = Draw.of_row(draws[0])
            view = part_of(image, *d.shown, size)
            expected, grey = jittered(view[:, ::-1] if d.mirrored else view, *d[3:6])
            x, y, w, h = (int(v) for v in d.erased)
            expected[y:y + h, x:x + w] = np.round(255 * np.array(MEAN))
            assert abs(pixels[0] - expected).max() < 0.52, (size, height, width)


# -- the loader

COUNT = 24
BATCHES = [[3, 1, 2, 3, 19], [5], [], [7, 7, 7], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [20, 10]] * 2


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    names = [folder / f"{i}.{'jpg' if i % 2 else 'png'}" for i in range(COUNT)]
    for i, name in enumerate(names):
        Image.fromarray(noise(20 + 3 * i, 90 - i, i)).save(name)
    return names


@pytest.mark.parametrize("dtype", [np.uint8, F32])
@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("cache", [0, 30_000, None])
def test_what_an_image_becomes_depends_on_seed_epoch_and_id_alone(paths, workers, cache, dtype):
    """Threads, batches, duplicates, cache and the order do not matter; of the second pass most come from the cache."""
    cfg = config(**ALL, seed=4)
    images = [decode(p) for p in paths]
    expected = {epoch: views(cfg, images, range(COUNT), epoch, dtype) for epoch in (0, 6)}
    assert (expected[0][0] != expected[6][0]).any(axis=(1, 2, 3)).all(), "epochs differ"
    with BatchLoader(BATCHES, paths, cfg, workers, keep_images=True, cache_bytes=cache, max_decoded_bytes=30_000,
                     normalize=dtype is F32, augment=Augmentation(cfg)) as loader:
        check_batches(loader, expected[0], images)
        check_batches(loader.iterate(BATCHES, epoch=6), expected[6], images)
        check_batches(loader.iterate(BATCHES[::-1], epoch=6), expected[6], images)
        check_batches(loader.iterate([[i] for i in range(COUNT)], epoch=0), expected[0], images)


def check_batches(batches, expected, images):
    pixels, draws = expected
    seen = 0
    for batch in batches:
        seen += 1
        assert (batch.pixels == pixels[batch.ids]).all() and (batch.draws == draws[batch.ids]).all()
        assert batch.pixels.dtype == pixels.dtype and batch.draws.shape == (len(batch.ids), Augmentation.FIELDS)
        assert all((image == images[i]).all() for i, image in zip(batch.ids, batch.images, strict=True))
    assert seen > 0


@pytest.mark.parametrize("dtype", [np.uint8, F32])
def test_switched_off_nothing_changes(paths, dtype):
    """No key, and keys that draw nothing: the bits of the plain transforms, crops included."""
    cfg = config()
    assert not Augmentation(cfg)
    for augment in (None, Augmentation(cfg)):
        with BatchLoader((), paths, cfg, 2, keep_images=True, normalize=dtype is F32, augment=augment) as loader:
            for batch in loader.iterate(BATCHES, epoch=5):
                assert batch.draws is None
                maps = np.random.default_rng(0).random((len(batch.ids), 5, 5), dtype=F32)
                files = [paths[i] for i in batch.ids]
                table, channels = pixel_table(cfg), np.arange(3)
                got = (batch.pixels, batch.local(maps))
                for mine, theirs in zip(got, (GlobalTransform(cfg).batch(files), LocalTransform(cfg).batch(files, maps))):
                    assert ((table[channels, mine] if dtype is np.uint8 else mine) == theirs).all()


def test_what_is_drawn_but_changes_nothing_keeps_the_bits(paths):
    """The plain view where an image is not mirrored and not erased."""
    cfg = config(flip=0.5, erase=0.5)
    images = [decode(p) for p in paths]
    pixels, draws = views(cfg, images, range(COUNT), dtype=F32)
    untouched = (draws[:, 0] == 0) & (draws[:, 7] == 0)
    assert 0 < untouched.sum() < COUNT
    assert (pixels[untouched] == GlobalTransform(cfg).batch(images)[untouched]).all()


def test_8_bits_become_the_floats_but_for_the_erased(paths):
    cfg = config(**{**ALL, "erase": 0.0})
    images = [decode(p) for p in paths]
    bytes_, floats = views(cfg, images, range(COUNT))[0], views(cfg, images, range(COUNT), dtype=F32)[0]
    assert (pixel_table(cfg)[np.arange(3), bytes_] == floats).all()


def test_an_error_names_the_file(paths, tmp_path):
    broken = tmp_path / "cut.jpg"
    broken.write_bytes(paths[1].read_bytes()[:-200])
    cfg = config(**ALL)
    with BatchLoader([[0, 1], [COUNT]], [*paths, broken], cfg, 2, augment=Augmentation(cfg)) as loader:
        run = iter(loader)
        next(run)
        with pytest.raises(OSError, match="cut.jpg"):
            next(run)


# -- the local crop

def map_of(rows, columns, size=32):
    """A map of the size of the view that marks rows [a, b) and columns [c, d)."""
    map_ = np.zeros((size, size), F32)
    map_[rows[0]:rows[1], columns[0]:columns[1]] = 1
    return map_


def model_part(rows, columns, draw, size=32):
    """Steps 3 to 5 of the local transform (docs/reference.md 5), mirrored and within what is shown: (x, y, w, h)."""
    w, h = columns[1] - columns[0], rows[1] - rows[0]
    d = max(w, h)
    xc, yc = columns[0] + w // 2, rows[0] + h // 2
    x = size - d if xc + d // 2 > size else max(0, xc - d // 2)
    y = size - d if yc + d // 2 > size else max(0, yc - d // 2)
    if draw.mirrored:
        x = size - x - d
    x0, y0, width, height = draw.shown
    return (int(x0) + int(x / size * width), int(y0) + int(y / size * height), max(1, int(d / size * width)),
            max(1, int(d / size * height)))


def some_rectangles(count, seed=0, size=32):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        (a, b), (c, d) = (np.sort(rng.choice(size + 1, 2, replace=False)).tolist() for _ in range(2))
        yield (a, b), (c, d)


@pytest.mark.parametrize("settings", [{"flip": 0.5}, {"crop": 0.3}, {"flip": 0.5, "crop": 0.3}, {"flip": 0.5, "erase": 1.0},
                                      {**ALL}])
def test_the_local_crop_is_the_part_of_the_original(settings):
    """Bits without jitter, within half a level with it: the part, mirrored, with the factors and the grey of the view;
    nothing is erased."""
    cfg = config(**settings)
    for i, (rows, columns) in enumerate(some_rectangles(150)):
        image = noise(*SIZES[i % len(SIZES)], seed=i)
        _, draws = views(cfg, [image], [i])
        d = Draw.of_row(draws[0])
        out = np.empty((1, 16, 16, 3), np.uint8)
        parts = _asen.augment_local_batch([image], map_of(rows, columns)[None], draws, 32, 0.4, out, (0, 0, 0), (1, 1, 1))
        assert parts == [model_part(rows, columns, d)]
        expected = part_of(image, *parts[0], 16)
        expected = expected[:, ::-1] if d.mirrored else expected
        if cfg.INPUT.AUGMENT.JITTER:
            expected, _ = jittered(expected, *d[3:6], grey=d.grey)
            assert abs(out[0] - expected).max() < 0.52
        else:
            assert (out[0] == expected).all()


def test_not_changed_the_local_crop_is_the_local_transform(paths):
    """The same bits as LocalTransform where an image happens to be neither mirrored nor cut."""
    cfg = config(flip=0.5)
    rng = np.random.default_rng(1)
    with BatchLoader([list(range(COUNT))], paths, cfg, 2, keep_images=True, augment=Augmentation(cfg)) as loader:
        batch = next(iter(loader))
        maps = rng.random((COUNT, 5, 5), dtype=F32)
        got, plain_ones = batch.local(maps), LocalTransform(cfg).batch(paths, maps)
    same = batch.draws[:, 0] == 0
    assert 3 < same.sum() < COUNT - 3
    assert (got[same] == plain_ones[same]).all()
    assert not (got[~same] == plain_ones[~same]).all()


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("dtype", [np.uint8, F32])
def test_local_crops_do_not_depend_on_threads(paths, workers, dtype):
    cfg = config(**ALL)
    images = [decode(p) for p in paths]
    maps = np.random.default_rng(2).random((COUNT, 5, 5), dtype=F32)
    draws, t = views(cfg, images, range(COUNT), epoch=2)[1], LocalTransform(cfg)
    with BatchLoader((), paths, cfg, workers, keep_images=True, normalize=dtype is F32, augment=Augmentation(cfg)) as loader:
        for batch in loader.iterate([[4, 4, 9, 11, 0], list(range(COUNT)), []], epoch=2):
            got = batch.local(maps[:len(batch.ids)])
            assert got.dtype == dtype and len(got) == len(batch.ids)
            for i, image_id in enumerate(batch.ids):
                one = np.empty((1, 16, 16, 3), dtype)
                _asen.augment_local_batch([images[image_id]], maps[i:i + 1], draws[image_id:image_id + 1], 32, 0.4, one,
                                          t.mean, t.std)
                assert (got[i] == one[0]).all()


def test_a_square_that_the_view_shows_is_found_in_the_crop():
    """A picture with a square, its left half red and its right half blue: the map is the view's own pixels; the crop
    shows the square, as the view does, and little else."""
    cfg = config(flip=0.5, crop=0.3, size=64, local=32)
    rng = np.random.default_rng(3)
    checked = mirrored = 0
    for i in range(300):
        height, width = (int(v) for v in rng.integers(80, 200, 2))
        side = min(height, width) // 4
        x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        image = np.zeros((height, width, 3), np.uint8)
        image[y:y + side, x:x + side // 2, 0] = 255
        image[y:y + side, x + side // 2:x + side, 2] = 255
        view, draws = views(cfg, [image], [i])
        d = Draw.of_row(draws[0])
        a, b, w, h = d.shown
        if not (a <= x and b <= y and x + side <= a + w and y + side <= b + h):
            continue
        checked += 1
        mirrored += d.mirrored
        out = np.empty((1, 32, 32, 3), np.uint8)
        part, = _asen.augment_local_batch([image], view[..., [0, 2]].max(axis=-1).astype(F32), draws, 64, 0.4, out, (0, 0, 0),
                                          (1, 1, 1))
        left, right = (0, 2) if not d.mirrored else (2, 0)
        assert view[0, :, :32, left].sum() + view[0, :, 32:, right].sum() > 0
        for channel, half in ((left, out[0, :, :14]), (right, out[0, :, 18:])):
            assert half[..., channel].mean() > 150 and half[..., 2 - channel].mean() < 40, (i, part, d)
        overlap = np.prod([min(p + q, r + side) - max(p, r) for p, q, r in ((part[0], part[2], x), (part[1], part[3], y))])
        assert overlap > 0.85 * side * side and overlap > 0.55 * part[2] * part[3], (i, part, d)
    assert checked > 50 and 10 < mirrored < checked - 10


# -- errors

@pytest.mark.parametrize("settings, message", [
    ({"flip": 1.1}, "FLIP must"), ({"flip": -0.1}, "FLIP must"), ({"flip": math.nan}, "FLIP must"), ({"crop": 0.0}, "CROP must"),
    ({"crop": 1.5}, "CROP must"), ({"erase": 2}, "ERASE must"), ({"jitter": -1}, "JITTER must"), ({"jitter": 1.01}, "JITTER must")])
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=f"INPUT.AUGMENT.{message}"):
        Augmentation(config(**settings))


def test_bad_arguments():
    image, out, draws = noise(8, 8), np.empty((1, 4, 4, 3), F32), np.zeros((1, 13))
    three, settings = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)

    def batch(images=(image,), ids=(0,), slots=(0,), out=out, draws=draws, settings=settings):
        _asen.augment_batch(images, ids, slots, out, draws, settings, 0, 0, three, three)

    batch()
    for bad, kind, message in (
            ({"ids": ()}, ValueError, "0 ids for 1 images"), ({"slots": (0, 1)}, ValueError, "2 slots for 1 images"),
            ({"slots": (1,)}, IndexError, "slot 1 of a batch of 1"), ({"slots": (-1,)}, IndexError, "slot -1"),
            ({"ids": ("a",)}, TypeError, "integer"), ({"ids": 3}, TypeError, "ids must be a sequence"),
            ({"draws": np.zeros((2, 13))}, ValueError, r"\(1, 13\)"), ({"draws": np.zeros((1, 12))}, ValueError, r"\(1, 13\)"),
            ({"draws": np.zeros((1, 13), F32)}, TypeError, "float64"), ({"out": out[0]}, TypeError, "4 axes"),
            ({"settings": (0.5, 0.5)}, TypeError, "length 4"), ({"settings": (2, 1, 0, 0)}, ValueError, "FLIP"),
            ({"images": (np.empty((0, 4, 3), np.uint8),)}, ValueError, "nothing to show")):
        with pytest.raises(kind, match=message):
            batch(**bad)

    def local(images=(image,), maps=np.ones((1, 3, 3), F32), draws=draws, size=32, threshold=0.4, out=out):
        return _asen.augment_local_batch(images, maps, draws, size, threshold, out, three, three)

    assert len(local()[0]) == 4
    wrong = [draws.copy() for _ in range(4)]
    wrong[0][0, 3] = math.nan
    wrong[1][0, 1] = -1
    wrong[2][0, 4] = 1e30
    wrong[3][0, 9] = 2.5
    far = draws.copy()
    far[0, 3] = 1e6
    for bad, kind, message in (
            *(({"draws": rows}, ValueError, "draws must be") for rows in wrong),
            ({"draws": far}, ValueError, "cannot be taken"),
            ({"maps": np.ones((2, 3, 3), F32)}, ValueError, "2 maps"), ({"maps": np.ones((3, 3), F32)}, TypeError, "3 axes"),
            ({"maps": np.full((1, 3, 3), np.nan, F32)}, ValueError, "NaN"), ({"threshold": 1.0}, ValueError, "THRESHOLD"),
            ({"size": 0}, ValueError, "GLOBAL_SIZE"), ({"draws": np.zeros((2, 13))}, ValueError, r"\(1, 13\)")):
        with pytest.raises(kind, match=message):
            local(**bad)
    for bad in ((0, 0, 4), (0, 4, 4, 0), (0, 4, 4, 20000), (0, 10**6, 10**6, 4)):
        with pytest.raises((ValueError, TypeError)):
            _asen.augment_draw(*bad, settings, 0, 0)
