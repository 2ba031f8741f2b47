"""The configuration: what files may say, what they become, and what is said where they are wrong."""

import copy
import io
import pickle
import random
from pathlib import Path

import pytest

from asenpp import _asen
from asenpp.config import DEFAULTS, Config, ConfigError, _literal, _yaml_value, load_config

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = {"KFashion", "Fashion14k", "FashionAI", "DARN", "DeepFashion", "FashionMNIST", "Garments"}


@pytest.fixture
def load(tmp_path):
    """load(text, ..., opts=None): a configuration from files a.yaml, b.yaml, ... of these texts."""
    def load_texts(*texts, opts=None):
        files = []
        for letter, text in zip("abcdef", texts):
            files.append(tmp_path / f"{letter}.yaml")
            files[-1].write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(*files, opts=opts)
    return load_texts


@pytest.fixture
def refused(load):
    """refused(text, ..., opts=None): the message of the ConfigError that these texts cause."""
    def message(*texts, opts=None):
        with pytest.raises(ConfigError) as caught:
            load(*texts, opts=opts)
        return str(caught.value)
    return message


# -- files and defaults ---------------------------------------------------------------------------

def test_defaults_are_the_published_ones():
    """Nothing merged: the defaults, spot-checked against the published values."""
    cfg = load_config()
    assert cfg.to_dict() == DEFAULTS
    assert (cfg.MODEL.TYPE, cfg.SOLVER.TYPE, cfg.DEVICE, cfg.SOLVER.AMP) == ("ASEN", "StepLR", "auto", "off")
    assert cfg.SOLVER.BASE_LR == 1e-4 and cfg.SOLVER.MARGIN == 0.2 and cfg.SOLVER.BETA == 0.6
    assert cfg.INPUT.PIXEL_STD == (0.229, 0.224, 0.225) and cfg.MODEL.LOCAL.BACKBONE.NAME == "resnet34"
    assert cfg.HEAD.s == 10.0 and cfg.LOGGER.LEVEL == 20 and cfg.DATA.NUM_TRIPLETS == 100000


def test_every_shipped_folder_is_known():
    assert {path.name for path in (ROOT / "config").iterdir()} == SHIPPED


@pytest.mark.parametrize("stage", ["s1", "s2"])
@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_configurations_load(name, stage, load):
    """Both stages of each shipped folder load, say what they should, and survive a dump."""
    cfg = load_config(ROOT / "config" / name / f"{name}.yaml", ROOT / "config" / name / f"{stage}.yaml")
    assert (cfg.NAME, cfg.SAVE_DIR) == (f"{name}_{stage}", "runs")
    assert cfg.MODEL.LOCAL.ENABLE is (stage == "s2")
    assert cfg.DATA.NUM_ATTRIBUTES == len(cfg.DATA.ATTRIBUTES.NAME) == len(cfg.DATA.ATTRIBUTES.NUM)
    assert cfg.DATA.GROUNDTRUTH.TRAIN == "label_train.txt"
    last = "valid" if name in ("KFashion", "Fashion14k") else "test"
    assert cfg.DATA.GROUNDTRUTH.QUERY.TEST == f"query_{last}.txt"
    assert cfg.DATA.PATH_FILE.TEST == f"filenames_{last}.txt"
    if stage == "s2":
        assert (cfg.SOLVER.ALIGN_WEIGHT, cfg.SOLVER.LOCAL_WEIGHT, cfg.INPUT.THRESHOLD) == (0.1, 0.1, 0.1)
    assert load(cfg.dump()) == cfg


def test_shipped_attribute_numbers():
    """The table of attributes, and the style classifiers' own settings."""
    numbers = {name: load_config(ROOT / "config" / name / f"{name}.yaml").DATA.ATTRIBUTES.NUM for name in SHIPPED}
    assert numbers["FashionAI"] == (6, 9, 8, 6, 5, 5, 10, 5)
    assert numbers["DARN"] == (20, 13, 55, 7, 28, 11, 26, 8, 17)
    assert numbers["DeepFashion"] == (156, 218, 180, 216, 230)
    assert numbers["FashionMNIST"] == (10, 5)
    assert (numbers["KFashion"], numbers["Fashion14k"]) == ((3,), (11,))
    style = load_config(ROOT / "config/Fashion14k/Fashion14k.yaml")
    assert (style.MODEL.TYPE, style.HEAD.out_features) == ("ArcStyleClassification", 11)
    assert (style.SOLVER.TYPE, style.DATA.TRAIN_BATCHSIZE) == ("CosineAnnealingLR", 128)


def test_published_kfashion_file_is_accepted(load):
    """A file as the style fork writes it: its names, no TEST file list, new keys under GROUNDTRUTH."""
    cfg = load("""
DATA:
  DATASET: Kfashion
  NUM_ATTRIBUTES: 1
  ATTRIBUTES: {NAME: [style], NUM: [3]}
  PATH_FILE: {TRAIN: filenames_train.txt, VALID: filenames_valid.txt}
  GROUNDTRUTH:
    TRAIN: label_train.txt
    QUERY: {VALID: query_valid.txt, TEST: query_valid.txt}
    CANDIDATE: {VALID: candidate_valid.txt, TEST: candidate_valid.txt}
""", "NAME: kfashion_classification\nSAVE_DIR: runs\nMODEL: {TYPE: StyleClassification}\n")
    assert cfg.NAME == "kfashion_classification" and cfg.DATA.GROUNDTRUTH.TRAIN == "label_train.txt"
    assert cfg.DATA.PATH_FILE.TEST == ""


def test_files_merge_left_to_right(load):
    cfg = load("SOLVER: {EPOCHS: 3, MARGIN: 0.3}", "SOLVER: {EPOCHS: 4}", opts=["SOLVER.BETA", "0.5"])
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.MARGIN, cfg.SOLVER.BETA) == (4, 0.3, 0.5)


def test_empty_files_and_groups(load):
    """A file of comments and a group with all its keys commented out change nothing."""
    assert load("", "# nothing\n", "---\n", "SOLVER:\n  # EPOCHS: 3\nNAME: ''\n") == load_config()


def test_paths_in_hangul(tmp_path):
    path = tmp_path / "설정.yaml"
    path.write_text("NAME: 스트리트\nDATA: {BASE_PATH: 데이터/이미지}\n", encoding="utf-8")
    cfg = load_config(path)
    assert (cfg.NAME, cfg.DATA.BASE_PATH) == ("스트리트", "데이터/이미지")
    path.write_text("모델: 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="설정.yaml:1: unknown key 모델"):
        load_config(path)


def test_missing_file_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_config(tmp_path / "none.yaml")
    assert caught.value.filename.endswith("none.yaml")
    with pytest.raises(IsADirectoryError):
        load_config(str(tmp_path))


# -- scalars --------------------------------------------------------------------------------------

def test_plain_scalars_become_literals(load):
    """1e-4 is text in YAML 1.1 and a float here; list elements keep YAML's reading."""
    cfg = load("SOLVER: {BASE_LR: 1e-4, MARGIN: 1, DECAY_RATE: .5, EPOCHS: 0x10}\n"
               "MODEL: {LOCAL: {ENABLE: yes}}\nDATA: {ATTRIBUTES: {EXTRA: [1e-4, 1.0e-4, on, ~, '1', x]}}\n")
    assert cfg.SOLVER.BASE_LR == 1e-4 and cfg.SOLVER.EPOCHS == 16 and cfg.SOLVER.DECAY_RATE == 0.5
    assert cfg.SOLVER.MARGIN == 1.0 and type(cfg.SOLVER.MARGIN) is float
    assert cfg.MODEL.LOCAL.ENABLE is True
    assert cfg.DATA.ATTRIBUTES.EXTRA == ("1e-4", 1e-4, True, None, "1", "x")


def test_quoted_text(load, refused):
    """Quoted numbers stay text where text is expected, and are numbers where numbers are."""
    cfg = load("NAME: '123'\nSOLVER: {BASE_LR: '1e-3'}\nSAVE_DIR: |-\n  45\nDATA: {DATASET: !!str 6}\n")
    assert (cfg.NAME, cfg.SAVE_DIR, cfg.DATA.DATASET, cfg.SOLVER.BASE_LR) == ("123", "45", "6", 1e-3)
    assert "a.yaml:1: NAME must be text, not an int (123); put it in quotes" in refused("NAME: 123")


def test_lists_and_tuples(load, refused):
    assert load("INPUT: {PIXEL_MEAN: '(0.5, 0.4, 0.3)'}").INPUT.PIXEL_MEAN == (0.5, 0.4, 0.3)
    assert load("INPUT:\n  PIXEL_MEAN: (0.5, 0.4, 0.3)\n").INPUT.PIXEL_MEAN == (0.5, 0.4, 0.3)
    assert load("INPUT: {PIXEL_MEAN: [1, 0.4, 0.3]}").INPUT.PIXEL_MEAN == (1, 0.4, 0.3)
    assert "INPUT.PIXEL_MEAN must be a list, not a float" in refused("INPUT: {PIXEL_MEAN: 0.5}")
    assert "SOLVER.BETA must be a float, not a list" in refused("SOLVER: {BETA: [0.5]}")


def test_null_passes_for_scalars(load, refused):
    assert load("NAME: ~\n").NAME is None
    assert "INPUT.PIXEL_MEAN must be a list, not null" in refused("INPUT: {PIXEL_MEAN: null}")
    assert "a.yaml:1: SOLVER.EPOCHS is null: it must be more than 0" in refused("SOLVER: {EPOCHS: null}")


def test_yaml_scalars_as_pyyaml_reads_them():
    """Every short text over the characters that matter is resolved as PyYAML does."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: nothing to compare with")
    texts = ["yes", "No", "TRUE", "tRUE", "on", "Off", "null", "Null", "NULL", "~", "", "None", "y", "n",
             "0b101", "0x1F", "-0x1f", "017", "08", "1_000", "+12", "190:20:30", "1:30.5", "1e3", "1.e+3",
             "1.5e3", "1.5e+3", ".5", ".5e-1", "-1.5", ".inf", "-.Inf", "+.INF", ".nan", "1.", "-", "+", ".", "=", "<<"]
    source = random.Random(0)
    texts += ["".join(source.choices("0123456789.+-_:exb", k=source.randrange(1, 7))) for _ in range(5000)]
    compared = 0
    for text in texts:
        resolved = yaml.SafeLoader(io.StringIO("")).resolve(yaml.ScalarNode, text, (True, False))
        kind = resolved.rpartition(":")[2]
        try:
            expected = getattr(yaml.SafeLoader(io.StringIO("")), f"construct_yaml_{kind}")(
                yaml.ScalarNode(resolved, text)) if kind in ("bool", "int", "float", "null") else text
        except ValueError:      # PyYAML crashes on 0x_ and its like: text here
            expected = text
        if text.startswith(("-.", "+.")) and kind == "str":
            continue            # a number here
        value = _yaml_value(text)
        assert (type(value), repr(value)) == (type(expected), repr(expected)), text
        compared += kind in ("int", "float")
    assert compared > 500


def test_hostile_literals_are_text():
    """Nothing in a scalar is run, and none exhausts the parser."""
    for text in ("__import__('os')", "{'a': 1}", "b'x'", "{1}", "1+2j", "(" * 300, "-" * 4000 + "1",
                 "[" * 200 + "]" * 200, "9" * 5000, "a\0b", "'\\N{nothing}'", "10**10**10", "'a' * 10**9"):
        assert _literal(text) == text


# -- errors of merging ----------------------------------------------------------------------------

def test_unknown_keys_name_file_line_and_a_guess(refused):
    assert refused("NAME: x\nMODEL:\n  LOCAL:\n    ENABEL: True\n").endswith(
        "a.yaml:4: unknown key MODEL.LOCAL.ENABEL: did you mean MODEL.LOCAL.ENABLE?")
    assert "unknown key solver: did you mean SOLVER?" in refused("solver: {}")
    assert "unknown key SOLVER.THRESHOLD: did you mean INPUT.THRESHOLD?" in refused("SOLVER: {THRESHOLD: 0.1}")
    assert "b.yaml:1: unknown key ZZZ (known here: NAME," in refused("NAME: x", "ZZZ: 1")


def test_new_keys_only_where_they_are_allowed(load, refused):
    """Under DATA.ATTRIBUTES and DATA.GROUNDTRUTH themselves, of any type; nowhere deeper."""
    cfg = load("DATA: {ATTRIBUTES: {NOTE: 1e-3, TREE: {a: {b: [x]}}}}", "DATA: {ATTRIBUTES: {TREE: {c: 2}}}",
               opts=["DATA.ATTRIBUTES.MORE", "x"])
    assert (cfg.DATA.ATTRIBUTES.NOTE, cfg.DATA.ATTRIBUTES.MORE) == (1e-3, "x")
    assert cfg.DATA.ATTRIBUTES.TREE.to_dict() == {"a": {"b": ["x"]}, "c": 2}
    assert "unknown key DATA.GROUNDTRUTH.QUERY.TRAIN" in refused("DATA: {GROUNDTRUTH: {QUERY: {TRAIN: x}}}")
    assert "unknown key DATA.NEW" in refused("DATA: {NEW: x}")


@pytest.mark.parametrize("text, message", [
    ("SOLVER:\n  EPOCHS: many\n", "a.yaml:2: SOLVER.EPOCHS must be an int, not text (many)"),
    ("SOLVER:\n  EPOCHS: 1.5\n", "a.yaml:2: SOLVER.EPOCHS must be an int, not a float (1.5)"),
    ("SOLVER:\n  EPOCHS: True\n", "a.yaml:2: SOLVER.EPOCHS must be an int, not True or False"),
    ("SOLVER: {BETA: True}", "SOLVER.BETA must be a float, not True or False"),
    ("SOLVER: {BETA: .nan}", "a.yaml:1: SOLVER.BETA must be a finite number"),
    ("SOLVER: {BETA: 1e999}", "a.yaml:1: SOLVER.BETA must be a finite number"),
    ("SOLVER: {MARGIN: 1" + "0" * 400 + "}", "a.yaml:1: SOLVER.MARGIN is too large"),
    ("MODEL: {LOCAL: {ENABLE: 1}}", "MODEL.LOCAL.ENABLE must be True or False, not an int"),
    ("NAME: off", "a.yaml:1: NAME must be text, not True or False (off); put it in quotes"),
    ("NAME: {a: 1}", "a.yaml:1: NAME must be text, not a mapping"),
    ("MODEL: 3", "a.yaml:1: MODEL is a group of keys (TYPE, PRETRAINED, "),
    ("MODEL: [1]", "a.yaml:1: MODEL is a group of keys"),
    ("- NAME\n", "a.yaml:1: a configuration is a mapping"),
    ("only text\n", "a.yaml:1: a configuration is a mapping"),
])
def test_wrong_types(text, message, refused):
    assert message in refused(text)


# -- YAML -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, message", [
    (b"NAME: x\nDATA: [1, 2\nSOLVER: 3\n", "a.yaml:3: not valid YAML: "),
    (b"NAME: x\nNAME: 'y\n", "a.yaml:2: not valid YAML: found unexpected end of stream at the end of the file"),
    (b"A:\n\t- b\n", "a.yaml:2: not valid YAML: found character that cannot start any token"),
    (b"NAME: x\n\nSAVE_DIR: y\nNAME: z\n", "a.yaml:4: the key NAME stands twice in one mapping (first on line 1)"),
    (b"NAME: \xff\n", "a.yaml:1: not valid YAML: invalid leading UTF-8 octet"),
    (b"a\n\0b", "a.yaml:2: not valid YAML: control characters are not allowed"),
    (b"NAME: *nobody\n", "a.yaml:1: the alias *nobody has no anchor"),
    (b"NAME: &a [*a]\n", "a.yaml:1: the alias *a lies within its own anchor"),
    (b"NAME: !!python/object:os.system x\n", "a.yaml:1: the tag tag:yaml.org,2002:python/object:os.system"),
    (b"NAME: !!int 3\n", "a.yaml:1: the tag"),
    (b"NAME: x\n---\nNAME: y\n", "a.yaml:2: a second document starts here"),
    (b"? [a]\n: 1\n", "a.yaml:1: a key must be a word"),
    (b"? {a: 1}\n: 1\n", "a.yaml:1: a key must be a word"),
    (b"[" * 100, "a.yaml:1: nested deeper than 64 levels"),
    (b"[" * 5000, "a.yaml:1: "),
    (b"{a: " * 5000, "a.yaml:1: "),
    (b"x" * (4 << 20) + b"x", "a.yaml: larger than 4194304 bytes"),
    (b"".join(b"- &a%d x\n" % i for i in range(1001)), "a.yaml:1001: more than 1000 anchors"),
    (b"DATA:\n  <<: 3\n", "a.yaml:2: << takes a mapping"),
])
def test_yaml_errors_say_where(text, message, refused):
    assert message in refused(text)


def test_a_yaml_bomb_is_refused(refused):
    """Nine levels of nine aliases are a billion values; so are long texts used very often."""
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    assert "more than 100000 values" in refused(bomb)
    assert "more than 4194304 bytes" in refused("a: &a " + "x" * 100000 + "\nb: [" + "*a, " * 1000 + "x]\n")
    deep = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 80))
    assert "nested deeper than 64 levels" in refused(deep)


def test_aliases_and_merge_keys(load):
    """Anchors give copies; what a mapping says itself wins over what << brings."""
    cfg = load("""
MODEL:
  GLOBAL:
    BACKBONE: &small {NAME: resnet18, EMBED_SIZE: 256}
  LOCAL:
    BACKBONE:
      <<: [*small, {NAME: resnet50}]
      NAME: resnet34
NAME: &n abc
SAVE_DIR: *n
""")
    assert cfg.MODEL.GLOBAL.BACKBONE.to_dict() == {"NAME": "resnet18", "EMBED_SIZE": 256}
    assert cfg.MODEL.LOCAL.BACKBONE.to_dict() == {"NAME": "resnet34", "EMBED_SIZE": 256}
    assert cfg.SAVE_DIR == "abc"


def test_parse_yaml_gives_lines_and_styles(tmp_path):
    """The shape of the C core's answer, from bytes and from a path, and its names in messages."""
    text = b"a: 1\nb:\n  - 'x'\n  - ~\n"
    tree = (1, {"a": (1, (1, "1", True)),
                "b": (2, (3, [(3, "x", False), (4, "~", True)], False))}, False)
    (tmp_path / "f.yaml").write_bytes(text)
    assert _asen.parse_yaml(text) == _asen.parse_yaml(tmp_path / "f.yaml") == tree
    assert _asen.parse_yaml(memoryview(text)) == tree
    assert _asen.parse_yaml("a: 1".encode("utf-16")) == (1, {"a": (1, (1, "1", True))}, False)
    assert _asen.parse_yaml(b"") is None and _asen.parse_yaml(b'"a\\0b"')[1] == "a\0b"
    with pytest.raises(ValueError, match="^here.yaml:1: "):
        _asen.parse_yaml(b"[", "here.yaml")
    with pytest.raises(TypeError):
        _asen.parse_yaml(3)


# -- opts -----------------------------------------------------------------------------------------

def test_opts_as_a_command_line_gives_them(load):
    """Text: numbers, booleans in either spelling, lists in Python's or YAML's, text as it stands."""
    cfg = load("SOLVER: {EPOCHS: 9}", opts=[
        "SOLVER.EPOCHS", "3", "SOLVER.BASE_LR", "1e-3", "MODEL.LOCAL.ENABLE", "true", "NAME", "123",
        "SAVE_DIR", "'quoted'", "INPUT.PIXEL_MEAN", "[0.5, 0.5, 0.5]", "SOLVER.AMP", "off",
        "DATA.ATTRIBUTES.NAME", "[a b, c]", "DATA.ATTRIBUTES.NUM", "(2, 3)", "DATA.DATASET", "",
        "DATA.PATH_FILE", "{TRAIN: t.txt}"])
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.BASE_LR, cfg.MODEL.LOCAL.ENABLE) == (3, 1e-3, True)
    assert (cfg.NAME, cfg.SAVE_DIR, cfg.SOLVER.AMP, cfg.DATA.DATASET) == ("123", "quoted", "off", "")
    assert cfg.INPUT.PIXEL_MEAN == (0.5, 0.5, 0.5) and cfg.DATA.ATTRIBUTES.NAME == ("a b", "c")
    assert cfg.DATA.ATTRIBUTES.NUM == (2, 3) and cfg.DATA.NUM_ATTRIBUTES == 2
    assert cfg.DATA.PATH_FILE.TRAIN == "t.txt"


def test_opts_as_python_values():
    import numpy as np

    cfg = load_config(opts=["SOLVER.EPOCHS", np.int64(3), "SOLVER.BETA", 1, "MODEL.PRETRAINED", False,
                            "DATA.ATTRIBUTES.NAME", ["a"], "DATA.ATTRIBUTES.NUM", (2,), "SAVE_DIR", Path("x/y"),
                            "DATA.PATH_FILE", {"TRAIN": "t"}])
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.BETA, cfg.MODEL.PRETRAINED) == (3, 1.0, False)
    assert type(cfg.SOLVER.EPOCHS) is int and cfg.SAVE_DIR == "x/y" and cfg.DATA.PATH_FILE.TRAIN == "t"


@pytest.mark.parametrize("opts, message", [
    (["SOLVER.EPOCH", "3"], "--opts: unknown key SOLVER.EPOCH: did you mean SOLVER.EPOCHS?"),
    (["SOLVER.EPOCHS", "x"], "--opts: SOLVER.EPOCHS must be an int, not text (x)"),
    (["SOLVER.EPOCHS", "0"], "--opts: SOLVER.EPOCHS is 0: it must be more than 0"),
    (["SOLVER.EPOCHS"], "--opts: SOLVER.EPOCHS has no value"),
    (["SOLVER", "3"], "--opts: SOLVER is a group of keys"),
    (["SOLVER.EPOCHS.x", "3"], "--opts: SOLVER.EPOCHS must be an int, not a mapping"),
    (["SOLVER..EPOCHS", "3"], "is no key"),
    ([3, "3"], "'3' is no key"),
    (["DATA.ATTRIBUTES" + ".a" * 5000, "3"], "is no key"),
    (["INPUT.PIXEL_MEAN", "[0.5"], "--opts INPUT.PIXEL_MEAN:1: not valid YAML"),
    (["SOLVER.EPOCHS", {1, 2}], "SOLVER.EPOCHS: a number, text, bool, None or list was expected"),
])
def test_opts_errors_name_the_key(opts, message, refused):
    assert message in refused(opts=opts)


def test_opts_is_no_string():
    with pytest.raises(TypeError, match="opts is a list"):
        load_config(opts="SOLVER.EPOCHS 3")


# -- the whole ------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, message", [
    ("MODEL: {LOCAL: {ENABLE: True}, GLOBAL: {ATTENTION: {SPATIAL: {ENABLE: False}}}}", "MODEL.LOCAL.ENABLE is True, but"),
    ("INPUT: {THRESHOLD: 1}", "a.yaml:1: INPUT.THRESHOLD is 1.0: it must be in [0, 1)"),
    ("INPUT: {THRESHOLD: -0.1}", "INPUT.THRESHOLD"),
    ("SOLVER: {BETA: 1.01}", "SOLVER.BETA is 1.01"),
    ("HEAD: {m: 4}", "HEAD.m is 4.0: it is an angle"),
    ("INPUT: {PIXEL_MEAN: [1, 2]}", "INPUT.PIXEL_MEAN is [1, 2]: it must be three numbers"),
    ("INPUT: {PIXEL_STD: [1, 0, 1]}", "INPUT.PIXEL_STD is [1, 0, 1]: it must be three positive numbers"),
    ("INPUT: {PIXEL_STD: [1e-4, 1, 1]}", "in lists, write 1.0e-4 for 1e-4"),
    ("DEVICE: tpu", "DEVICE is 'tpu': it must be auto, cpu or cuda"),
    ("MODEL: {TYPE: Asen}", "MODEL.TYPE is 'Asen': it must be ASEN, StyleClassification or ArcStyleClassification"),
    ("MODEL: {GLOBAL: {BACKBONE: {NAME: resnet101}}}", "MODEL.GLOBAL.BACKBONE.NAME is 'resnet101'"),
    ("MODEL: {GLOBAL: {BACKBONE: {EMBED_SIZE: 256}}}", "EMBED_SIZE is 256: resnet50 gives 1024 channels"),
    ("MODEL: {LOCAL: {ATTENTION: {CHANNEL: {REDUCTION_RATE: 257}}}}", "nothing is left of 256 channels"),
    ("MODEL: {PRETRAINED: ''}", "MODEL.PRETRAINED is empty"),
    ("MODEL: {PRETRAINED: {GLOBAL: x.pth, OTHER: y.pth}}", "unknown key MODEL.PRETRAINED.OTHER"),
    ("MODEL: {PRETRAINED: 3}", "MODEL.PRETRAINED must be True or False"),
    ("SOLVER: {OPTIMIZER_NAME: adam}", "SOLVER.OPTIMIZER_NAME is 'adam': it must be Adam, AdamW or SGD"),
    ("SOLVER: {TYPE: Step}", "SOLVER.TYPE"),
    ("SOLVER: {OBJECTIVE: both}", "SOLVER.OBJECTIVE"),
    ("SOLVER: {OBJECTIVE: anchor}", "MODEL.TYPE ASEN has none"),
    ("SOLVER: {AMP: fp8}", "SOLVER.AMP is 'fp8': it must be off, tf32, bf16 or fp16"),
    ("DATA: {TRAIN_BATCHSIZE: 0}", "DATA.TRAIN_BATCHSIZE is 0"),
    ("DATA: {NUM_WORKERS: -1}", "DATA.NUM_WORKERS is -1: it must be 0 or more"),
    ("DATA: {NUM_ATTRIBUTES: 0}", "DATA.NUM_ATTRIBUTES is 0"),
    ("DATA: {NUM_ATTRIBUTES: 2, ATTRIBUTES: {NAME: [a], NUM: [2]}}", "has 1 entries, but DATA.NUM_ATTRIBUTES is 2"),
    ("DATA: {ATTRIBUTES: {NAME: [a, b], NUM: [2]}}", "DATA.ATTRIBUTES.NUM has 1 entries, but DATA.ATTRIBUTES.NAME has 2"),
    ("DATA: {ATTRIBUTES: {NAME: [a, a], NUM: [2, 2]}}", "DATA.ATTRIBUTES.NAME names a twice"),
    ("DATA: {ATTRIBUTES: {NAME: [off], NUM: [2]}}", "DATA.ATTRIBUTES.NAME is [False]: names are text"),
    ("DATA: {ATTRIBUTES: {NAME: [a], NUM: [x]}}", "DATA.ATTRIBUTES.NUM is ['x']"),
    ("DATA: {ATTRIBUTES: {NAME: [a], NUM: [True]}}", "DATA.ATTRIBUTES.NUM is [True]"),
    ("DATA: {ATTRIBUTES: {NAME: [a], NUM: [2], VALUES: [[x]]}}", "DATA.ATTRIBUTES.VALUES must hold"),
    ("DATA: {IMAGE_ROOT: 'x/{splitt}'}", "DATA.IMAGE_ROOT holds {splitt}: only {split} is known"),
    ("MODEL: {TYPE: StyleClassification}\nDATA: {ATTRIBUTES: {NAME: [style], NUM: [11]}}",
     "HEAD.out_features is 3, but attribute 0 has 11 values"),
])
def test_configurations_that_cannot_work(text, message, refused):
    assert message in refused(text)


def test_pretrained_forms(load):
    assert load("MODEL: {PRETRAINED: weights/r50.pth}").MODEL.PRETRAINED == "weights/r50.pth"
    assert load("MODEL: {PRETRAINED: False}").MODEL.PRETRAINED is False
    per_branch = load("MODEL: {PRETRAINED: {GLOBAL: 'a.pth', LOCAL: False}}")
    assert per_branch.MODEL.PRETRAINED.to_dict() == {"GLOBAL": "a.pth", "LOCAL": False}
    assert load(per_branch.dump()) == per_branch


def test_widths_and_counts_follow(load):
    """Unset, BACKBONE.EMBED_SIZE follows the backbone and NUM_ATTRIBUTES the names."""
    cfg = load("MODEL: {GLOBAL: {BACKBONE: {NAME: resnet18}}, LOCAL: {BACKBONE: {NAME: resnet50}}}\n"
               "DATA: {ATTRIBUTES: {NAME: [a, b], NUM: [2, 3]}}\n")
    assert (cfg.MODEL.GLOBAL.BACKBONE.EMBED_SIZE, cfg.MODEL.LOCAL.BACKBONE.EMBED_SIZE) == (256, 1024)
    assert cfg.DATA.NUM_ATTRIBUTES == 2
    assert load("DATA: {NUM_ATTRIBUTES: 8}").DATA.NUM_ATTRIBUTES == 8


# -- the tree -------------------------------------------------------------------------------------

def test_a_configuration_is_frozen():
    cfg = load_config()
    before = cfg.to_dict()
    for change in (lambda: setattr(cfg.SOLVER, "EPOCHS", 3), lambda: setattr(cfg, "NEW", 3),
                   lambda: cfg.SOLVER.__setitem__("EPOCHS", 3), lambda: delattr(cfg.SOLVER, "EPOCHS"),
                   lambda: cfg.SOLVER.__delitem__("EPOCHS"), lambda: setattr(cfg, "_values", {})):
        with pytest.raises(AttributeError, match="read-only"):
            change()
    with pytest.raises(AttributeError, match=r"SOLVER.EPOCHS.*opts=\[\"SOLVER.EPOCHS\", value\]"):
        cfg.SOLVER.EPOCHS = 3
    cfg.to_dict()["SOLVER"]["EPOCHS"] = 3
    assert isinstance(cfg.INPUT.PIXEL_MEAN, tuple) and cfg.to_dict() == before


def test_access():
    cfg = load_config()
    assert cfg["SOLVER"]["EPOCHS"] == cfg.SOLVER.EPOCHS == 50
    assert "SOLVER" in cfg and "EPOCH" not in cfg.SOLVER and cfg.SOLVER.get("EPOCH", 7) == 7
    assert list(cfg.EVAL) == ["SUBSET"] and len(cfg.EVAL) == 1 and "EPOCHS" in dir(cfg.SOLVER)
    with pytest.raises(AttributeError, match="EVAL has no key SUBSETS .it has: SUBSET."):
        cfg.EVAL.SUBSETS
    with pytest.raises(KeyError):
        cfg["NOPE"]
    assert getattr(cfg.DATA.GROUNDTRUTH, "TRAIN", "") == ""


def test_copies_are_equal():
    cfg = load_config(opts=["NAME", "x"])
    for other in (copy.deepcopy(cfg), copy.copy(cfg), pickle.loads(pickle.dumps(cfg))):
        assert other == cfg and isinstance(other.SOLVER, Config) and hash(other) == hash(cfg)
    assert cfg != load_config()


def test_dump_round_trips_what_yaml_would_twist(load):
    """Texts that look like other things, odd characters and keys, floats that YAML reads as text."""
    values = ["1e-4", "yes", "~", "", " x ", "a: b", "# c", "'q\"\\", "줄\n바꿈\t\x7f\x85\u2028\ufeff", "😀", "*a", "<<"]
    cfg = load_config(opts=["DATA.ATTRIBUTES.TEXTS", values, "DATA.ATTRIBUTES.FLOATS", [1e-4, 1e-5, 1e22, 5e-324, -0.0, 1.0],
                            "DATA.ATTRIBUTES.TREE", {"a b": {"null": None, "e": []}, "없음": [[True, None], [1]]},
                            "DATA.ATTRIBUTES.INF", float("inf"), "SOLVER.BASE_LR", 1e-7, "NAME", "'1e-4'", "SAVE_DIR", None])
    assert cfg.NAME == "1e-4"
    again = load(cfg.dump())
    assert again == cfg and repr(again) == repr(cfg)
    assert again.DATA.ATTRIBUTES.TEXTS == tuple(values)


# -- never a crash --------------------------------------------------------------------------------

def test_random_bytes_never_crash():
    """Bytes, and shipped files with bytes changed: a tree or a ValueError with a place, never more."""
    source = random.Random(20)
    files = [path.read_bytes() for path in sorted((ROOT / "config").rglob("*.yaml"))]
    pieces = [b"&a ", b"*a", b": ", b"- ", b"\n", b"  ", b"[", b"]", b"{", b"}", b"'", b'"', b"|", b">", b"?",
              b"!!str ", b"%YAML 1.1\n", b"---\n", b"...\n", b"#", b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"x", b"<<"]
    parsed = 0
    for turn in range(3000):
        if turn % 3 == 0:
            data = source.randbytes(source.randrange(60))
        elif turn % 3 == 1:
            data = b"".join(source.choices(pieces, k=source.randrange(40)))
        else:
            data = bytearray(source.choice(files))
            for _ in range(source.randrange(1, 4)):
                data[source.randrange(len(data))] = source.randrange(256)
        try:
            _asen.parse_yaml(data, "f.yaml")
            parsed += 1
        except ValueError as error:
            assert str(error).startswith("f.yaml:"), data
    assert parsed > 200


def test_random_configurations_never_crash(tmp_path):
    """Known keys with random values: a configuration that survives its dump, or a ConfigError."""
    source = random.Random(21)
    keys = [key for group in ("MODEL.", "SOLVER.", "DATA.", "INPUT.", "HEAD.", "")
            for key in [group + name for name in (DEFAULTS[group[:-1]] if group else DEFAULTS)]]
    values = ["1", "-1", "0.5", "1e-3", "yes", "~", "x", "'3'", "[]", "[1, x]", "{a: 1}", "[[a], {b: c}]", "{}", "",
              "(1, 2)", "ASEN", "2020-01-01", "1:30", ".inf", "&a b", "<<: {NAME: q}", "9" * 30]
    good = 0
    for _ in range(1500):
        key, value = source.choice(keys), source.choice(values)
        text = "".join(f"{'  ' * i}{part}:\n" for i, part in enumerate(key.split(".")))[:-1] + f" {value}\n"
        path = tmp_path / "c.yaml"
        path.write_text(text)
        for arguments in ({"files": [path]}, {"files": [], "opts": [key, value]}):
            try:
                cfg = load_config(*arguments["files"], opts=arguments.get("opts"))
            except ConfigError:
                continue
            path.write_text(cfg.dump())
            assert load_config(path) == cfg, text
            path.write_text(text)
            good += 1
    assert good > 200


def test_parse_yaml_does_not_leak():
    """Trees and errors alike give back what they took (blocks counted by Python's allocator)."""
    import gc
    import sys

    def work():
        for text in (b"a: &x [1, {b: c}]\nd: *x\n", b"a: [1", b"a: 1\na: 2\n", b"? [x]\n: 1\n"):
            try:
                _asen.parse_yaml(text)
            except ValueError:
                pass
    for _ in range(50):
        work()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(500):
        work()
    gc.collect()
    assert sys.getallocatedblocks() - before < 200
