"""The data set Garments: drawn garments whose attributes are independent and sit in known places.

Each image is a figure in a top, a skirt or trousers, and with a bag. Six attributes, each drawn by
itself (every value equally often, so that none tells anything about another):

    sleeve_length   how far the sleeves reach down the arms
    bottom_length   how far the skirt or the trousers reach down the legs
    neckline        the cut at the neck
    pattern         on the body of the top (not on the sleeves)
    colour          of the skirt or trousers (that of the top is chance)
    style           told by the bag: dark briefcase, red handbag or green backpack

All else is chance and says nothing: skirt or trousers, the top's colours, skin, hair, pose of the
arms, hand that holds the bag, place and size of the figure, background, light, noise. Where each
attribute is seen in each image is kept as its true boxes, so that one can measure whether an
attention map looks there.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..progress import bar
from .index import DataError
from .prepare import SPLITS, check_target, whole_folder, write_eval, write_meta, write_train

ATTRIBUTES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("sleeve_length", ("sleeveless", "short", "elbow", "long")),
    ("bottom_length", ("mini", "knee", "calf", "ankle")),
    ("neckline", ("round", "v", "square", "high")),
    ("pattern", ("plain", "stripes", "dots", "checks")),
    ("colour", ("red", "yellow", "green", "blue", "purple", "black")),
    ("style", ("formal", "semi-formal", "casual")),
)
NAMES = tuple(name for name, _ in ATTRIBUTES)
OVERSAMPLE = 3

COLOURS = {"red": (196, 36, 40), "yellow": (236, 196, 40), "green": (40, 142, 66),
           "blue": (38, 84, 190), "purple": (136, 52, 160), "black": (30, 30, 34)}
# Cool or light, so that fabric and skin are never mistaken for each other.
TOP_COLOURS = ((240, 240, 238), (70, 120, 196), (64, 160, 120), (150, 110, 190), (110, 190, 200),
               (120, 126, 140))
SKINS = ((255, 224, 196), (241, 194, 157), (224, 172, 125), (198, 134, 86), (141, 85, 48), (92, 58, 38))
HAIRS = ((30, 24, 22), (70, 44, 26), (120, 76, 40), (200, 160, 90), (120, 120, 124), (150, 60, 30))
BAGS = {"formal": (58, 42, 34), "semi-formal": (190, 44, 66), "casual": (60, 140, 90)}
SHOES = ((40, 28, 22), (80, 50, 30), (30, 32, 44), (110, 30, 38))

# The figure, in units of its height, its middle at x = 0.5.
SHOULDER, CHEST, WAIST, HEM = 0.215, 0.30, 0.47, 0.53      # heights
SLEEVE_REACH = (0.0, 0.32, 0.62, 1.0)                        # part of the arm's length, by value
BOTTOM_REACH = (0.655, 0.755, 0.855, 0.955)                  # heights of the hem, by value
ANKLE = 0.96

Point = tuple[float, float]
Box = tuple[int, int, int, int]


class Garment(NamedTuple):
    """A drawn image (RGB uint8 (size, size, 3)), and attribute name -> boxes (x, y, w, h) in pixels."""

    pixels: np.ndarray
    boxes: dict[str, list[Box]]


def _vary(rng: random.Random, colour: tuple[int, ...], amount: int) -> tuple[int, ...]:
    return tuple(min(255, max(0, channel + rng.randint(-amount, amount))) for channel in colour)


def _shade(colour: tuple[int, ...], factor: float) -> tuple[int, ...]:
    return tuple(min(255, max(0, round(channel * factor))) for channel in colour)


class _Canvas:
    """Pillow's drawing in figure units, under the figure's place, size and mirroring."""

    def __init__(self, pixels: int, left: float, top: float, scale: float, mirror: bool, image: Any):
        from PIL import ImageDraw

        self.pixels, self.left, self.top, self.scale, self.mirror = pixels, left, top, scale, mirror
        self.image = image
        self.draw = ImageDraw.Draw(image)

    def at(self, point: Point) -> Point:
        x = 1 - point[0] if self.mirror else point[0]
        return ((self.left + x * self.scale) * self.pixels, (self.top + point[1] * self.scale) * self.pixels)

    def length(self, units: float) -> int:
        return max(1, round(units * self.scale * self.pixels))

    def polygon(self, points: list[Point], fill: Any) -> None:
        self.draw.polygon([self.at(p) for p in points], fill=fill)

    def rectangle(self, x: float, y: float, width: float, height: float, fill: Any) -> None:
        self.polygon([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], fill)

    def ellipse(self, centre: Point, rx: float, ry: float, fill: Any = None, outline: Any = None,
                width: float = 0.0) -> None:
        x, y = self.at(centre)
        rx, ry = rx * self.scale * self.pixels, ry * self.scale * self.pixels
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill, outline=outline,
                          width=self.length(width) if outline else 1)

    def limb(self, points: list[Point], width: float, fill: Any) -> None:
        """A thick line with round joints."""
        places = [self.at(p) for p in points]
        thick = self.length(width)
        self.draw.line(places, fill=fill, width=thick)
        for x, y in places:
            self.draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=fill)

    def box(self, points: list[Point], margin: float, size: int) -> Box:
        """The box around points in pixels of the finished image of `size`, clipped to it."""
        xs, ys = zip(*(self.at(p) for p in points))
        extra = margin * self.scale * self.pixels
        factor = size / self.pixels
        left, top = (max(0, math.floor((min(v) - extra) * factor)) for v in (xs, ys))
        right, bottom = (min(size, math.ceil((max(v) + extra) * factor)) for v in (xs, ys))
        return left, top, right - left, bottom - top


def _mirrored(points: list[Point]) -> list[Point]:
    """The right half of an outline (top to bottom) closed by its left half."""
    return points + [(1 - x, y) for x, y in reversed(points)]


def _background(rng: random.Random, pixels: int) -> Any:
    from PIL import Image, ImageDraw

    def muted() -> tuple[int, ...]:
        grey = rng.randint(150, 225)
        return _vary(rng, (grey, grey, grey), 14)

    image = Image.new("RGB", (1, 2))
    image.putdata([muted(), muted()])
    image = image.resize((pixels, pixels), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 5)):
        x, y = rng.uniform(-0.1, 0.9) * pixels, rng.uniform(-0.1, 0.9) * pixels
        w, h = rng.uniform(0.05, 0.4) * pixels, rng.uniform(0.05, 0.4) * pixels
        kind = draw.rectangle if rng.random() < 0.5 else draw.ellipse
        kind((x, y, x + w, y + h), fill=muted())
    if rng.random() < 0.5:
        draw.rectangle((0, rng.uniform(0.75, 0.95) * pixels, pixels, pixels), fill=muted())
    return image


def _draw_pattern(canvas: _Canvas, rng: random.Random, pattern: str, base: tuple[int, ...],
                  outline: list[Point]) -> None:
    """The body of the top: `base`, with the pattern inside `outline`."""
    from PIL import Image, ImageChops, ImageDraw

    canvas.polygon(outline, base)
    if pattern == "plain":
        return
    light = sum(base) > 400
    ink = _shade(base, rng.uniform(0.3, 0.5)) if light else tuple(
        round(255 - (255 - channel) * rng.uniform(0.15, 0.3)) for channel in base)
    period = rng.uniform(0.06, 0.075)
    cover = Image.new("L", canvas.image.size)
    ImageDraw.Draw(cover).polygon([canvas.at(p) for p in outline], fill=255)
    marks = Image.new("L", canvas.image.size)
    draw = ImageDraw.Draw(marks)
    (x0, y0), (x1, y1) = canvas.at((0.28, 0.18)), canvas.at((0.72, 0.56))
    x0, x1 = min(x0, x1), max(x0, x1)
    step = period * canvas.scale * canvas.pixels
    columns = [x0 + (i + rng.random() * 0.1) * step for i in range(int((x1 - x0) / step) + 1)]
    rows = [y0 + (i + rng.random() * 0.1) * step for i in range(int((y1 - y0) / step) + 1)]
    if pattern == "dots":
        radius = 0.30 * step
        for i, y in enumerate(rows):
            for x in columns:
                x += (i % 2) * step / 2
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    else:
        for y in rows:
            draw.rectangle((x0, y, x1, y + 0.42 * step), fill=255 if pattern == "stripes" else 150)
        if pattern == "checks":
            across = Image.new("L", canvas.image.size)
            vertical = ImageDraw.Draw(across)
            for x in columns:
                vertical.rectangle((x, y0, x + 0.42 * step, y1), fill=150)
            marks = ImageChops.add(marks, across)
    canvas.image.paste(ink, (0, 0), ImageChops.multiply(marks, cover))


def _draw_neckline(canvas: _Canvas, neckline: str, skin: tuple[int, ...], base: tuple[int, ...]) -> None:
    edge = _shade(base, 0.72)
    if neckline == "high":
        canvas.polygon([(0.445, 0.145), (0.555, 0.145), (0.575, 0.225), (0.425, 0.225)], _shade(base, 0.9))
        for y in (0.168, 0.192):
            canvas.rectangle(0.438, y, 0.124, 0.006, edge)
    elif neckline == "round":
        canvas.ellipse((0.5, 0.21), 0.092, 0.062, edge)
        canvas.ellipse((0.5, 0.21), 0.082, 0.052, skin)
    elif neckline == "v":
        canvas.polygon([(0.40, 0.195), (0.60, 0.195), (0.5, 0.345)], edge)
        canvas.polygon([(0.415, 0.195), (0.585, 0.195), (0.5, 0.322)], skin)
    else:
        canvas.rectangle(0.395, 0.19, 0.21, 0.10, edge)
        canvas.rectangle(0.407, 0.19, 0.186, 0.088, skin)


def _draw_bag(canvas: _Canvas, style: str, hand: Point, colour: tuple[int, ...]) -> list[Point]:
    """The bag below a hand; corners of the space that it may take."""
    x, y = hand
    dark, light = _shade(colour, 0.6), _shade(colour, 1.5)
    top = y + 0.045
    if style == "formal":       # a briefcase: wide, a stiff handle, a lid with two locks
        handle = ((x - 0.04, top), (x - 0.04, y), (x + 0.04, y), (x + 0.04, top))
        canvas.draw.line([canvas.at(p) for p in handle], fill=dark, width=canvas.length(0.016))
        canvas.rectangle(x - 0.115, top, 0.23, 0.14, colour)
        canvas.rectangle(x - 0.115, top + 0.05, 0.23, 0.012, dark)
        for lock in (x - 0.06, x + 0.06):
            canvas.rectangle(lock - 0.014, top + 0.042, 0.028, 0.033, (230, 200, 110))
    elif style == "semi-formal":  # a handbag: a high arched handle, a body that widens downwards
        canvas.ellipse((x, top + 0.015), 0.055, 0.075, None, dark, 0.016)
        canvas.polygon([(x - 0.06, top + 0.02), (x + 0.06, top + 0.02), (x + 0.10, top + 0.14),
                        (x - 0.10, top + 0.14)], colour)
        canvas.ellipse((x, top + 0.075), 0.022, 0.022, light)
    else:                       # a backpack: high and rounded, a loop, a front pocket
        canvas.ellipse((x, top - 0.01), 0.025, 0.03, None, dark, 0.014)
        canvas.ellipse((x, top + 0.055), 0.085, 0.065, colour)
        canvas.rectangle(x - 0.085, top + 0.055, 0.17, 0.11, colour)
        canvas.rectangle(x - 0.058, top + 0.085, 0.116, 0.065, light)
        canvas.rectangle(x - 0.058, top + 0.085, 0.116, 0.013, dark)
    return [(x - 0.115, y - 0.02), (x + 0.115, top + 0.165)]


def _arm(rng: random.Random, side: int, swing: float) -> list[Point]:
    """Shoulder, elbow, hand; `side` is -1 or 1, `swing` the upper arm's angle from hanging."""
    shoulder = (0.5 + side * 0.15, SHOULDER + 0.03)
    bend = swing + rng.uniform(-0.25, 0.1)
    elbow = (shoulder[0] + side * 0.16 * math.sin(swing), shoulder[1] + 0.16 * math.cos(swing))
    hand = (elbow[0] + side * 0.15 * math.sin(bend), elbow[1] + 0.15 * math.cos(bend))
    return [shoulder, elbow, hand]


def _part_of(line: list[Point], part: float) -> list[Point]:
    """The first `part` (0 to 1) of a line's length."""
    lengths = [math.dist(a, b) for a, b in zip(line, line[1:])]
    left = part * sum(lengths)
    points = [line[0]]
    for (x0, y0), (x1, y1), length in zip(line, line[1:], lengths):
        t = min(1.0, left / length)
        points.append((x0 + (x1 - x0) * t, y0 + (y1 - y0) * t))
        left -= length
        if left <= 1e-9:
            break
    return points


def draw_garment(values: tuple[int, ...], seed: int, size: int = 128) -> Garment:
    """One image with these values of ATTRIBUTES; `seed` decides everything else.

    values: one index into each attribute's values, in the order of ATTRIBUTES
    """
    from PIL import Image

    chosen = {name: names[value] for (name, names), value in zip(ATTRIBUTES, values)}
    rng = random.Random(seed)
    pixels = size * OVERSAMPLE
    scale = rng.uniform(0.88, 1.0)
    canvas = _Canvas(pixels, rng.uniform(-0.08, 0.08) + (1 - scale) / 2, rng.uniform(0, 1 - scale) - 0.01,
                     scale, rng.random() < 0.5, _background(rng, pixels))
    skin, hair = _vary(rng, rng.choice(SKINS), 8), _vary(rng, rng.choice(HAIRS), 10)
    base = _vary(rng, rng.choice(TOP_COLOURS), 14)
    lower = _vary(rng, COLOURS[chosen["colour"]], 16)
    bag = _vary(rng, BAGS[chosen["style"]], 24)
    boxes: dict[str, list[Box]] = {}

    # Legs and shoes, then the skirt or trousers over them.
    apart = rng.uniform(0.05, 0.075)
    shoe = _vary(rng, rng.choice(SHOES), 8)
    for side in (-1, 1):
        canvas.limb([(0.5 + side * 0.055, 0.5), (0.5 + side * apart, ANKLE)], 0.062, skin)
        canvas.ellipse((0.5 + side * (apart + 0.015), ANKLE + 0.012), 0.05, 0.022, shoe)
    reach = BOTTOM_REACH[values[1]]
    down = (reach - 0.49) / (ANKLE - 0.49)
    if rng.random() < 0.5:
        flare = 0.125 + rng.uniform(0.0, 0.06) * down
        outline = _mirrored([(0.605, 0.49), (0.5 + 0.13, 0.58), (0.5 + flare, reach)])
        canvas.polygon(outline, lower)
        for x in (-0.4, 0.1, 0.5):
            canvas.draw.line([canvas.at((0.5 + x * 0.1, 0.56)), canvas.at((0.5 + x * flare, reach))],
                             fill=_shade(lower, 0.8), width=canvas.length(0.006))
    else:
        outer, inner = 0.065 + apart * down + 0.06 * (1 - down), apart * down - 0.042 * down
        outline = [(0.395, 0.49), (0.605, 0.49), (0.5 + outer, reach), (0.5 + inner + 0.01, reach),
                   (0.5, 0.585), (0.5 - inner - 0.01, reach), (0.5 - outer, reach)]
        canvas.polygon(outline, lower)
        canvas.draw.line([canvas.at((0.5, 0.5)), canvas.at((0.5, 0.59))], fill=_shade(lower, 0.75),
                         width=canvas.length(0.006))
    boxes["colour"] = [canvas.box(outline, 0.0, size)]
    boxes["bottom_length"] = [canvas.box([(min(0.37, min(x for x, _ in outline)), 0.53),
                                          (max(0.63, max(x for x, _ in outline)), ANKLE)], 0.0, size)]

    # Head and neck behind the top.
    if rng.random() < 0.5:
        canvas.ellipse((0.5, 0.095), 0.085, 0.10, hair)
    canvas.limb([(0.5, 0.11), (0.5, 0.2)], 0.075, skin)
    canvas.ellipse((0.5, 0.082), 0.062, 0.075, skin)
    (left, top), (right, bottom) = canvas.at((0.432, 0.0)), canvas.at((0.568, 0.12))
    canvas.draw.pieslice((min(left, right), top, max(left, right), bottom), 180, 360, fill=hair)

    # Arms with sleeves, then the body of the top, so that the pattern ends at the shoulder.
    arms = [_arm(rng, -1, rng.uniform(0.12, 0.75)), _arm(rng, 1, rng.uniform(0.45, 0.75))]
    sleeve = _shade(base, 0.92)
    for arm in arms:
        canvas.limb(arm, 0.05, skin)
        canvas.ellipse(arm[-1], 0.03, 0.03, skin)
        if values[0]:
            covered = _part_of(arm, SLEEVE_REACH[values[0]])
            canvas.limb(covered, 0.074, sleeve)
            end, before = covered[-1], covered[-2]
            span = max(math.dist(end, before), 1e-6)
            across = (-(end[1] - before[1]) / span * 0.037, (end[0] - before[0]) / span * 0.037)
            canvas.draw.line([canvas.at((end[0] + k * across[0], end[1] + k * across[1])) for k in (-1, 1)],
                             fill=_shade(base, 0.6), width=canvas.length(0.014))
    boxes["sleeve_length"] = [canvas.box(arm, 0.037, size) for arm in arms]
    torso = _mirrored([(0.56, 0.19), (0.655, SHOULDER), (0.635, CHEST), (0.605, WAIST),
                       (0.62, HEM + rng.uniform(-0.01, 0.015))])
    # A generator of its own: how much a pattern draws leaves the chance of all else alone.
    _draw_pattern(canvas, random.Random(rng.randrange(2**32)), chosen["pattern"], base, torso)
    boxes["pattern"] = [canvas.box(torso, 0.0, size)]
    _draw_neckline(canvas, chosen["neckline"], skin, base)
    boxes["neckline"] = [canvas.box([(0.395, 0.145), (0.605, 0.345)], 0.0, size)]
    boxes["style"] = [canvas.box(_draw_bag(canvas, chosen["style"], arms[1][-1], bag), 0.0, size)]
    canvas.ellipse(arms[1][-1], 0.026, 0.026, skin)

    # Light from a side, and noise (RandomState: its numbers do not change between NumPy versions).
    image = canvas.image.resize((size, size), Image.Resampling.BOX)
    noise = np.random.RandomState(rng.randrange(2**32))
    ramp = np.linspace(-1, 1, size)
    light = (rng.uniform(0.86, 1.08) + rng.uniform(-0.1, 0.1) * ramp[:, None]
             + rng.uniform(-0.1, 0.1) * ramp[None, :])
    grain = noise.normal(0, rng.uniform(1, 4), (size, size, 3))
    lit = np.asarray(image, np.float64) * light[..., None] + grain
    return Garment(np.clip(np.rint(lit), 0, 255).astype(np.uint8), {name: boxes[name] for name in NAMES})


def draw_values(count: int, rng: random.Random) -> list[tuple[int, ...]]:
    """Values for `count` images: each attribute's values equally often, in an order of its own."""
    columns = []
    for _, names in ATTRIBUTES:
        column = [i % len(names) for i in range(count)]
        rng.shuffle(column)
        columns.append(column)
    return list(zip(*columns))


def split_sizes(images: int) -> tuple[int, int, int]:
    """(train, valid, test): 70 %, 15 %, 15 %."""
    part = images * 15 // 100
    return images - 2 * part, part, part


def prepare(out: str | Path, images: int = 600, seed: int = 0, size: int = 128, format: str = "jpg",
            force: bool = False, quiet: bool = False) -> bool:
    """Write the data set into the folder `out`; False where it was there already, complete.

    images: in all; size: width and height in pixels; format: "jpg" (quality 90) or "png"
    boxes.json: {split: {image name: {attribute: [[x, y, w, h], …]}}}. In the valid and test parts
    the first third of the images are queries, the others candidates.
    Raises DataError for numbers that cannot work and for an `out` that holds something else.
    """
    out = Path(out)
    if images < 160:
        raise DataError(f"--images {images}: at least 160 are needed, for every value to be in every part")
    if not 32 <= size <= 1024:
        raise DataError(f"--size {size}: 32 to 1024 pixels were expected")
    made_by: dict[str, Any] = {"command": "garments", "version": 1, "images": images, "seed": seed,
                               "size": size, "format": format}
    if check_target(out, made_by, force):
        if not quiet:
            print(f"{out} is complete already (--force makes it anew)")
        return False

    from PIL import Image
    options: dict[str, Any] = {"compress_level": 3} if format == "png" else {"quality": 90, "subsampling": 0}
    rng = random.Random(seed)
    all_boxes: dict[str, dict[str, dict[str, list[Box]]]] = {}
    with whole_folder(out) as target, bar(total=images, unit=" images", desc="Garments",
                                           disable=quiet) as progress:
        for split, count in zip(SPLITS, split_sizes(images)):
            (target / split).mkdir()
            labels = draw_values(count, rng)
            names = [f"{split}/{row:06d}.{format}" for row in range(count)]
            boxes = all_boxes[split] = {}
            for name, values in zip(names, labels):
                garment = draw_garment(values, rng.randrange(2**32), size)
                Image.fromarray(garment.pixels).save(target / name, **options)
                boxes[name] = garment.boxes
                progress.update()
            if split == "train":
                write_train(target, names, labels)
            else:
                write_eval(target, split, names, labels, [row < count // 3 for row in range(count)])
        (target / "boxes.json").write_bytes((json.dumps(all_boxes, separators=(",", ":")) + "\n").encode())
        write_meta(target, "Garments", ATTRIBUTES, made_by)
    if not quiet:
        print(f"{out}: {', '.join(f'{n} {s}' for s, n in zip(SPLITS, split_sizes(images)))} images")
    return True
