"""From image files to network inputs: decoding, the global and the local transform, augmentation.

The arithmetic is C (`csrc/image/`) and equals, bit for bit, what the published program gets from
Pillow, OpenCV and torchvision. Images are uint8 RGB arrays (height, width, 3); results are float32.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from . import _asen

__all__ = ["Augmentation", "Draw", "GlobalTransform", "LocalTransform", "decode", "decode_bytes", "image_size",
           "pixel_table"]

_JPEG = b"\xff\xd8\xff"
_ORIENTATION = 0x0112
# EXIF orientation -> (transpose, flip up-down, flip left-right), in this order.
_TURNS = {2: (False, False, True), 3: (False, True, True), 4: (False, True, False),
          5: (True, False, False), 6: (True, False, True), 7: (True, True, True),
          8: (True, True, False)}


def _named(error: Exception, name: str) -> Exception:
    """`error` again, with the file's name in front, as an OSError or ValueError of one argument."""
    kind = MemoryError if isinstance(error, MemoryError) else (
        ValueError if isinstance(error, ValueError) and not isinstance(error, OSError) else OSError)
    return kind(f"{name}: {error}")


def _to_rgb(image) -> np.ndarray:
    """A PIL image as uint8 (height, width, 3); alpha is dropped, not blended."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours, without Pillow's warning
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation not in _TURNS:
        return pixels
    transpose, flip_rows, flip_columns = _TURNS[orientation]
    if transpose:
        pixels = pixels.transpose(1, 0, 2)
    if flip_rows:
        pixels = pixels[::-1]
    if flip_columns:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _open_with_pillow(data: bytes, name: str):
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise OSError(f"{name}: not an image file" if data else f"{name}: the file is empty") from None
    except Exception as error:
        raise _named(error, name) from None


def _orientation(image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata does not make the pixels unreadable
        return 1


def decode_bytes(data: bytes, name: str = "image", exif: bool = False) -> np.ndarray:
    """Decodes an image file that is already in memory; see `decode`. `name` is for error messages."""
    if data[:3] == _JPEG:
        try:
            height, width, pixels = _asen.jpeg_decode(data)
        except NotImplementedError:
            pass  # CMYK and other rarities: Pillow
        except (OSError, ValueError, MemoryError) as error:
            raise _named(error, name) from None
        else:
            array = np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
            return _turn(array, _orientation(_open_with_pillow(data, name))) if exif else array
    with _open_with_pillow(data, name) as image:
        try:
            array = _to_rgb(image)
        except Exception as error:  # Pillow's decoders raise many kinds
            raise _named(error, name) from None
        return _turn(array, _orientation(image)) if exif else array


def decode(path: str | os.PathLike, exif: bool = False) -> np.ndarray:
    """Decodes an image file to RGB: uint8 (height, width, 3).

    JPEG goes through libjpeg-turbo, every other format through Pillow. Alpha is dropped, grayscale
    repeated. `exif=True` applies the EXIF orientation.

    Raises OSError (FileNotFoundError, ...) naming the file: missing, truncated, broken, no image.
    """
    with open(path, "rb") as file:
        data = file.read()
    return decode_bytes(data, os.fspath(path), exif)


def image_size(data: bytes, name: str = "image") -> tuple[int, int]:
    """(height, width) in the header of an image file in memory; EXIF orientation is not applied."""
    if data[:3] == _JPEG:
        try:
            return _asen.jpeg_size(data)
        except NotImplementedError:
            pass
        except OSError as error:
            raise _named(error, name) from None
    with _open_with_pillow(data, name) as image:
        return image.height, image.width


def _as_pixels(image, exif: bool) -> np.ndarray:
    if isinstance(image, (str, os.PathLike)):
        return decode(image, exif)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise TypeError("an image array must be uint8 of shape (height, width, 3), but is "
                            f"{image.dtype} of shape {image.shape}")
        return np.ascontiguousarray(image)
    if hasattr(image, "convert") and hasattr(image, "getexif"):
        pixels = _to_rgb(image)
        return _turn(pixels, _orientation(image)) if exif else pixels
    raise TypeError("an image must be a path, a PIL image or a uint8 array of shape (height, width, 3), "
                    f"but is {type(image).__name__}")


def _triple(values, key: str) -> tuple[float, float, float]:
    numbers = tuple(float(v) for v in values)
    if len(numbers) != 3:
        raise ValueError(f"{key} needs three numbers (red, green, blue), but has {len(numbers)}")
    return numbers


def _output(out, count: int, size: int) -> np.ndarray:
    shape = (count, size, size, 3)
    if out is None:
        return np.empty(shape, np.float32)
    if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"out must be C-contiguous float32 of shape {shape}, but is {out.dtype} of shape {out.shape}")
    return out


class _Transform:
    def __init__(self, cfg: Any) -> None:
        settings = cfg.INPUT
        self.mean = _triple(settings.PIXEL_MEAN, "INPUT.PIXEL_MEAN")
        self.std = _triple(settings.PIXEL_STD, "INPUT.PIXEL_STD")
        if not all(v > 0 for v in self.std):
            raise ValueError(f"INPUT.PIXEL_STD must be above 0, but is {list(self.std)}")
        self.global_size = self._positive(settings.GLOBAL_SIZE, "INPUT.GLOBAL_SIZE")
        self.exif = bool(getattr(settings, "EXIF", False))

    @staticmethod
    def _positive(value, key: str) -> int:
        if int(value) < 1:
            raise ValueError(f"{key} must be at least 1, but is {value}")
        return int(value)


def pixel_table(cfg: Any) -> np.ndarray:
    """What each 8-bit value becomes in each channel, (x / 255 - mean) / std: (3, 256) float32, bit for bit as the
    transforms have it. `cfg` is anything with PIXEL_MEAN and PIXEL_STD under `cfg.INPUT`."""
    t = _Transform(cfg)
    value = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = (np.asarray(v, np.float32)[:, None] for v in (t.mean, t.std))
    return (value - mean) / std


class GlobalTransform(_Transform):
    """The whole image as the global branch sees it.

    The shorter side is resized to `INPUT.GLOBAL_SIZE` with Pillow's antialiased bilinear filter, the
    centre square cropped, scaled to [0, 1], `INPUT.PIXEL_MEAN` subtracted, divided by
    `INPUT.PIXEL_STD` (docs/reference.md 5). `cfg` is anything with these under `cfg.INPUT`;
    `INPUT.EXIF` true applies the EXIF orientation of files.
    """

    def __call__(self, image: Any) -> np.ndarray:
        """A path, PIL image or uint8 (height, width, 3) -> float32 (3, size, size).

        The result is a view whose memory is channels-last. OSError names a file that cannot be read.
        """
        return self.batch([image])[0].transpose(2, 0, 1)

    def batch(self, images: Iterable[Any], out: np.ndarray | None = None) -> np.ndarray:
        """Many images -> float32 (count, size, size, 3), channels last; written into `out` if given."""
        pixels = [_as_pixels(image, self.exif) for image in images]
        out = _output(out, len(pixels), self.global_size)
        _asen.global_batch(pixels, range(len(pixels)), out, self.mean, self.std)
        return out


class LocalTransform(_Transform):
    """The part of the image that an attention map points at, as the local branch sees it.

    The map is resized to `INPUT.GLOBAL_SIZE`² as OpenCV's INTER_LINEAR does, normalised to its range
    and cut at `INPUT.THRESHOLD`; the square about what is kept is cropped from the original image and
    resized to `INPUT.LOCAL_SIZE` (docs/reference.md 5). A constant map gives the whole centre square.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.size = self._positive(cfg.INPUT.LOCAL_SIZE, "INPUT.LOCAL_SIZE")
        self.threshold = float(cfg.INPUT.THRESHOLD)
        if not 0 <= self.threshold < 1:
            raise ValueError(f"INPUT.THRESHOLD must lie in [0, 1), but is {self.threshold}: "
                             "at 1 and above nothing of a map would be kept")

    def box(self, attention_map: Any, height: int, width: int) -> tuple[int, int, int]:
        """(x, y, d) in pixels: the square that the map (rows, columns) marks in a height x width image."""
        map_ = np.ascontiguousarray(attention_map, np.float32)
        return _asen.local_box(map_, self.global_size, self.threshold, height, width)

    def __call__(self, image: Any, attention_map: Any) -> np.ndarray:
        """An image as for GlobalTransform and its map, float (rows, columns) -> float32 (3, size, size).

        The result is a view whose memory is channels-last. ValueError: the map holds NaN or infinity.
        """
        return self.batch([image], np.asarray(attention_map)[None])[0].transpose(2, 0, 1)

    def batch(self, images: Iterable[Any], maps: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Images and their maps (count, rows, columns) -> float32 (count, size, size, 3), channels last."""
        pixels = [_as_pixels(image, self.exif) for image in images]
        out = _output(out, len(pixels), self.size)
        maps = np.ascontiguousarray(maps, np.float32)
        _asen.local_batch(pixels, maps, self.global_size, self.threshold, out, self.mean, self.std)
        return out


class Draw(NamedTuple):
    """What was drawn for an image; x, y, width and height in pixels."""

    mirrored: float                                         # 1 or 0
    shown: tuple[float, float, float, float]                # x, y, width, height in the image: what the view shows
    erased: tuple[float, float, float, float]               # x, y, width, height in the view; width 0: nothing
    brightness: float                                       # factors; 1: as it is
    contrast: float
    saturation: float
    grey: float                                             # mean grey of the brightened view; 0 if not jittered

    @classmethod
    def of_row(cls, row: Any) -> "Draw":
        """From a row of `Batch.draws`."""
        mirrored, x, y, width, height, *rest = (float(v) for v in row)
        return cls(mirrored, (x, y, width, height), (rest[0], rest[1], rest[2], rest[3]), *rest[4:])


class Augmentation:
    """How training images are changed at random (docs/reference.md 5, augmentation): for BatchLoader(augment=...).

    cfg: anything with `INPUT.AUGMENT` (FLIP, CROP, ERASE, JITTER) and `SEED`. False where nothing is switched on. What
    is drawn for an image depends on (SEED, epoch, image id) and its size alone. ValueError names a key out of range.
    """

    FIELDS = 13     # of a row of draws

    def __init__(self, cfg: Any) -> None:
        keys = cfg.INPUT.AUGMENT
        self.settings = float(keys.FLIP), float(keys.CROP), float(keys.ERASE), float(keys.JITTER)
        self.seed = int(cfg.SEED)
        self.draw(0, 0, 1, 1, 1)    # checks the settings

    def __bool__(self) -> bool:
        return self.settings != (0.0, 1.0, 0.0, 0.0)

    def draw(self, image_id: int, epoch: int, height: int, width: int, size: int) -> Draw:
        """What is drawn for an image of height x width pixels that is shown at size x size."""
        return Draw.of_row(_asen.augment_draw(image_id, height, width, size, self.settings, self.seed, epoch))

    def into(self, images: Any, ids: Any, slots: Any, epoch: int, transform: GlobalTransform, pixels: np.ndarray,
             draws: np.ndarray) -> None:
        """The augmented view of image i, uint8 (height, width, 3) with id ids[i], goes to pixels[slots[i]], (count,
        size, size, 3), float32 or uint8; what was drawn to draws[slots[i]], float64 (count, FIELDS)."""
        _asen.augment_batch(images, ids, slots, pixels, draws, self.settings, self.seed, epoch, transform.mean,
                            transform.std)
