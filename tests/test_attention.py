"""After a short training the attention maps look where their attributes are.

Garments keeps the true boxes of each attribute in each image. What is measured is the share of an
attention map that falls into them, against what a uniform map would have there (chance).
"""

import json
import os

import numpy as np
import pytest

import asenpp
import engine_kit as kit

NAMES, SIZES, NUMBERS, PIXELS = ["colour", "style"], [6, 3], [4, 5], 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from asenpp.data.garments import prepare

    folder = tmp_path_factory.mktemp("attention")
    prepare(folder / "all" / "Garments", images=400, size=PIXELS, quiet=True)
    kit.choose_attributes(folder / "all" / "Garments", folder / "data" / "Garments", NUMBERS)
    return folder


def inside(model, cfg, boxes):
    """{attribute: (share of the maps inside the true boxes, share of a uniform map)}, means over VALID."""
    model.eval()
    data, whole = asenpp.data.index.load_eval(cfg, "VALID"), asenpp.transforms.GlobalTransform(cfg)
    shares = {name: [] for name in NAMES}
    with asenpp.no_grad():
        for path in data.paths:
            features = model.backbone(asenpp.tensor(np.ascontiguousarray(whole(path)[None])))
            for number, name in enumerate(NAMES):
                attention = model.attend(features, [number])[1].numpy()[0]
                covered = coverage(boxes[f"valid/{os.path.basename(path)}"][name], attention.shape)
                shares[name].append(((attention * covered).sum(), covered.mean()))
    return {name: np.mean(rows, axis=0) for name, rows in shares.items()}


def coverage(boxes, shape):
    """How much of each cell of a map lies in the boxes, in [0, 1]: (rows, columns)."""
    mask = np.zeros((PIXELS, PIXELS))
    for x, y, width, height in boxes:
        mask[y:y + height, x:x + width] = 1
    # Each pixel belongs to the cell over it, whatever the map's size.
    rows, columns = (np.arange(PIXELS) * n // PIXELS for n in shape)
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (rows[:, None], columns[None, :]), mask)
    np.add.at(counts, (rows[:, None], columns[None, :]), 1)
    return sums / counts


def test_attention_looks_where_the_attribute_is(folder):
    """Half a minute of training on two attributes puts far more of the maps into the true boxes than chance,
    and than the untrained model does."""
    cfg = kit.config(folder, "s1", *kit.only(NAMES, SIZES), "NAME", "looks", "INPUT.GLOBAL_SIZE", 80,
                     "DATA.NUM_TRIPLETS", 320, "DATA.TRAIN_BATCHSIZE", 8, "SOLVER.EPOCHS", 4, "SOLVER.BASE_LR", 3e-4,
                     "MODEL.EMBED_SIZE", 64, "MODEL.ATTRIBUTE.EMBED_SIZE", 16, "SOLVER.EVAL_STEPS", 4)
    boxes = json.loads((folder / "all" / "Garments" / "boxes.json").read_text())["valid"]
    asenpp.manual_seed(0)
    model = asenpp.build_model(cfg)
    before = inside(model, cfg, boxes)
    # An untrained map is about uniform: the measure does not favour the boxes by itself.
    for share, chance in before.values():
        assert 0.7 * chance < share < 1.3 * chance, before
    model.load_state_dict(asenpp.load(asenpp.engine.train(cfg)["checkpoint"])["model"])
    after = inside(model, cfg, boxes)
    assert after["colour"][0] > 1.4 * after["colour"][1], after
    assert sum(share for share, _ in after.values()) > 1.4 * sum(chance for _, chance in after.values()), after
