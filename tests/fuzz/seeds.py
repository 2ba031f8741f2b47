"""Writes the seed corpus: seeds.py FOLDER makes FOLDER/jpeg and FOLDER/yaml."""

import io
import pathlib
import sys

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write_seeds(folder):
    jpeg, yaml = pathlib.Path(folder, "jpeg"), pathlib.Path(folder, "yaml")
    for path in (jpeg, yaml):
        path.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1).integers(0, 256, (33, 29, 3), np.uint8)
    kinds = {"rgb": ("RGB", {}), "grey": ("L", {}), "cmyk": ("CMYK", {}),
             "progressive": ("RGB", {"progressive": True}), "grey_progressive": ("L", {"progressive": True}),
             "restart": ("RGB", {"restart_marker_blocks": 1}), "full": ("RGB", {"subsampling": 0}),
             "optimized": ("RGB", {"optimize": True, "quality": 20})}
    for name, (mode, options) in kinds.items():
        out = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(out, "JPEG", **options)
        (jpeg / f"{name}.jpg").write_bytes(out.getvalue())
    for path in sorted((ROOT / "config").rglob("*.y*ml")):
        (yaml / "_".join(path.relative_to(ROOT / "config").parts)).write_bytes(path.read_bytes())
    (yaml / "syntax.yaml").write_text(
        "a: &x [1, 'b', \"c\\n\", {d: *y}]\n".replace("*y", "e") + "f: *x\ng: |\n  text\n  more\nh: !!str 1\n? i\n: ~\n")


if __name__ == "__main__":
    write_seeds(sys.argv[1])
