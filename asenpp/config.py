"""Configuration: published defaults, YAML files merged over them, then `--opts`.

The C core gives every scalar of a file with its line and style; here values are decoded, merged,
type-checked against the defaults and validated as a whole. The result is a read-only tree:

    cfg = load_config("config/Garments/Garments.yaml", "config/Garments/s1.yaml",
                      opts=["SOLVER.EPOCHS", "2"])
    cfg.SOLVER.BASE_LR

The merging rules are yacs's, with three relaxations: an int passes for a float, a quoted number
stays text where text is expected, and `--opts` takes text for text as it stands.
"""

from __future__ import annotations

import ast
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

__all__ = ["Config", "ConfigError", "load_config", "DEFAULTS"]


def _branch(backbone: str, width: int, common: int) -> dict[str, Any]:
    return {
        "BACKBONE": {"NAME": backbone, "EMBED_SIZE": width},
        "ATTENTION": {
            "SPATIAL": {"ENABLE": True, "COMMON_EMBED_SIZE": common},
            "CHANNEL": {"ENABLE": True, "REDUCTION_RATE": 2},
        },
    }


# The published keys with ASEN++'s values; the lines marked + are this project's own keys. A value's
# type is the type that files must give.
DEFAULTS: dict[str, Any] = {
    "NAME": "",
    "SAVE_DIR": "",
    "DEVICE": "auto",
    "SEED": 0,                                  # +
    "NUM_THREADS": 0,                           # + 0: as many as the machine grants
    "MODEL": {
        "TYPE": "ASEN",
        "PRETRAINED": True,                     # + True, False, a path or URL, or one of them a branch:
        "EMBED_SIZE": 1024,                     #   {GLOBAL: ..., LOCAL: ...}
        "ATTRIBUTE": {"EMBED_SIZE": 512},
        "GLOBAL": _branch("resnet50", 1024, 512),
        "LOCAL": {"ENABLE": False, **_branch("resnet34", 256, 256)},
    },
    "HEAD": {"in_features": 512, "out_features": 3, "s": 10.0, "m": 0.5, "easy_margin": False},
    "INPUT": {
        "PIXEL_MEAN": [0.485, 0.456, 0.406],
        "PIXEL_STD": [0.229, 0.224, 0.225],
        "GLOBAL_SIZE": 224,
        "LOCAL_SIZE": 112,
        "THRESHOLD": 0.4,
        "EXIF": False,                          # + turn images as their EXIF orientation says
        "AUGMENT": {                            # + training images changed at random, each epoch anew
            "FLIP": 0.0,                        #   probability of being mirrored left to right
            "CROP": 1.0,                        #   random resized crops of at least this part of the area
            "ERASE": 0.0,                       #   probability of a rectangle without content
            "JITTER": 0.0,                      #   brightness, contrast, saturation times 1 - x … 1 + x
            "JITTER_COLOUR": False,             #   JITTER also where an attribute is called colour
        },
    },
    "DATA": {
        "NUM_WORKERS": 4,
        "NUM_TRIPLETS": 100000,
        "TRAIN_BATCHSIZE": 16,                  #   triplets with SOLVER.LOSS triplet, else images
        "NUM_IMAGES": 0,                        # + images an epoch where SOLVER.LOSS is not triplet; 0: all
        "IMAGES_PER_VALUE": 4,                  # + images of one value that a batch of images holds together; 0: not balanced
        "TEST_BATCHSIZE": 64,
        "BASE_PATH": "data",
        "DATASET": "",
        "IMAGE_ROOT": "",                       # + may hold {split}; empty: BASE_PATH/DATASET
        "SKIP_UNUSABLE_VALUES": False,          # + train without values that have fewer than two images
        "NUM_ATTRIBUTES": -1,
        "ATTRIBUTES": {"NAME": [], "NUM": []},
        "PATH_FILE": {"TRAIN": "", "VALID": "", "TEST": ""},
        "GROUNDTRUTH": {"QUERY": {"VALID": "", "TEST": ""}, "CANDIDATE": {"VALID": "", "TEST": ""}},
    },
    "SOLVER": {
        "EVAL_STEPS": 1,
        "OPTIMIZER_NAME": "Adam",
        "TYPE": "StepLR",
        "LOSS": "triplet",                      # +
        "SCALE": 16.0,                          # + s of the cosine loss
        "TEMPERATURE": 0.1,                     # + tau of the supcon loss
        "LABEL_SMOOTHING": 0.0,                 # + of the cosine loss
        "HEAD_LR_FACTOR": 10.0,                 # + learning rate of the heads of the cosine loss: BASE_LR times this
        "WARMUP_STEPS": 0,                      # + of TYPE WarmupCosine
        "ACCUMULATE": 1,                        # + parts in which a batch is taken, their gradients summed
        "EMA_DECAY": 0.0,                       # + of the moving average of the weights; 0: none is kept
        "EARLY_STOP": 0,                        # + evaluations without a better mAP that end a training; 0: none do
        "OBJECTIVE": "combined",                # +
        "AMP": "off",                           # +
        "STEP_SIZE": 3,
        "DECAY_RATE": 0.9,
        "EPOCHS": 50,
        "LOG_PERIOD": 800,
        "BASE_LR": 1e-4,
        "BASE_LR_SLOW": 1e-5,
        "ALIGN_WEIGHT": 1.0,
        "LOCAL_WEIGHT": 1.0,
        "GLOBAL_WEIGHT": 1.0,
        "MARGIN": 0.2,
        "BETA": 0.6,
    },
    "EVAL": {"SUBSET": 0},                      # + the first N queries of each attribute; 0: all
    "LOGGER": {"LEVEL": 20, "STREAM": "stdout"},
}

NEW_KEYS_UNDER = ("DATA.ATTRIBUTES", "DATA.GROUNDTRUTH")
CHOICES = {
    "DEVICE": ("auto", "cpu", "cuda"),
    "MODEL.TYPE": ("ASEN", "StyleClassification", "ArcStyleClassification"),
    "MODEL.GLOBAL.BACKBONE.NAME": ("resnet18", "resnet34", "resnet50"),
    "MODEL.LOCAL.BACKBONE.NAME": ("resnet18", "resnet34", "resnet50"),
    "SOLVER.OPTIMIZER_NAME": ("Adam", "AdamW", "SGD"),
    "SOLVER.TYPE": ("StepLR", "CosineAnnealingLR", "WarmupCosine"),
    "SOLVER.LOSS": ("triplet", "cosine", "supcon", "dense_triplet"),
    "SOLVER.OBJECTIVE": ("combined", "anchor"),
    "SOLVER.AMP": ("off", "tf32", "bf16", "fp16"),
}
LAYER3_WIDTH = {"resnet18": 256, "resnet34": 256, "resnet50": 1024}

_SCALARS = (bool, int, float, str)
_MAX_DEPTH = 64     # of a key's parts and of a literal's brackets; the YAML reader has the same


class ConfigError(ValueError):
    """A configuration that cannot be used; the message begins with file:line or --opts."""


# -- the tree -------------------------------------------------------------------------------------

class Config(Mapping):
    """A read-only configuration: `cfg.SOLVER.BASE_LR`, `cfg["SOLVER"]["BASE_LR"]`.

    Lists are tuples. Keys that are no identifiers, or named like a method, are reached with [].
    """

    __slots__ = ("_values", "_path")

    def __init__(self, values: Mapping[str, Any], path: str = ""):
        prefix = f"{path}." if path else ""
        object.__setattr__(self, "_path", path)
        object.__setattr__(self, "_values", {k: _frozen(v, prefix + k) for k, v in values.items()})

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            try:
                return self._values[name]
            except KeyError:
                pass
        where = f"{self._path} has" if self._path else "the configuration has"
        raise AttributeError(f"{where} no key {name} (it has: {', '.join(self._values)})")

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def _refuse(self, key: Any, *_: Any) -> NoReturn:
        name = f"{self._path}.{key}" if self._path else key
        raise AttributeError(f"a configuration is read-only: to change {name}, load it again with "
                             f"opts=[\"{name}\", value]")

    __setattr__ = __delattr__ = __setitem__ = __delitem__ = _refuse

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __reduce__(self) -> tuple:
        return Config, (self.to_dict(), self._path)

    def __repr__(self) -> str:
        return f"Config({self.to_dict()!r})"

    def to_dict(self) -> dict[str, Any]:
        """A new tree of dicts and lists."""
        return {key: _thawed(value) for key, value in self._values.items()}

    def dump(self) -> str:
        """YAML text that loads to an equal configuration."""
        return "".join(_dump_group(self._values, ""))


def _frozen(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return Config(value, path)
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item, f"{path}[{i}]") for i, item in enumerate(value))
    return value


def _thawed(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


def _dump_group(values: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in values.items():
        key = key if re.fullmatch(r"[A-Za-z_][\w.-]*", key, re.ASCII) else _dump_value(key)
        if isinstance(value, Config) and value:
            yield f"{indent}{key}:\n"
            yield from _dump_group(value, indent + "  ")
        else:
            yield f"{indent}{key}: {_dump_value(value)}\n"


def _dump_value(value: Any) -> str:
    """One value in YAML's flow style, so written that YAML 1.1 gives back the same type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        text = repr(value)
        if not math.isfinite(value):
            return text.replace("inf", ".inf").replace("nan", ".nan")
        mantissa, _, exponent = text.partition("e")
        if not exponent:
            return text
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent):+d}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_dump_value, value))}]"
    if isinstance(value, Config):
        return f"{{{', '.join(f'{_dump_value(k)}: {_dump_value(v)}' for k, v in value.items())}}}"
    return '"' + "".join(_escaped(character) for character in value) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# -- scalars --------------------------------------------------------------------------------------

# YAML 1.1's words and numbers (yaml.org/type) as PyYAML reads them, which published files were
# written for (and -.5). Notably 1e-4 is no number: an exponent needs a point and a sign.
_WORDS = {word: value
          for value, names in ((True, "yes true on"), (False, "no false off"), (None, "null"))
          for name in names.split() for word in (name, name.title(), name.upper())}
_WORDS.update({"~": None, "": None})
_INT = re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*(:[0-5]?[0-9])*)")
_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+\.[0-9_]*"
                    r"|[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def _yaml_value(text: str) -> Any:
    """What a plain scalar stands for in YAML 1.1; the text itself where it is only text."""
    if text in _WORDS:
        return _WORDS[text]
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("+-").replace("_", "").lower()
    try:
        if _INT.fullmatch(text):
            if ":" in digits:
                return sign * int(_sixties(digits))
            base = 2 if digits.startswith("0b") else 16 if digits.startswith("0x") else \
                8 if len(digits) > 1 and digits.startswith("0") else 10
            return sign * int(digits, base)
        if _FLOAT.fullmatch(text):
            return sign * float(_sixties(digits) if ":" in digits else digits)
        if _SPECIAL_FLOAT.fullmatch(text):
            return sign * float(digits.lstrip("."))
    except (ValueError, OverflowError):     # such as 0x_, or more digits than Python converts
        pass
    return text


def _sixties(digits: str) -> Any:
    """1:30 is 90 in YAML 1.1."""
    total: Any = 0
    for part in digits.split(":"):
        total = total * 60 + (float(part) if "." in part else int(part))
    return total


def _literal(text: str) -> Any:
    """The Python literal in `text` (numbers, text, bool, None, lists and tuples), or `text`."""
    if len(text) > 4096 or text.count("(") + text.count("[") > _MAX_DEPTH:
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if _is_plain_data(value) else text


def _is_plain_data(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain_data, value))
    return value is None or isinstance(value, _SCALARS)


# -- merging --------------------------------------------------------------------------------------

# A node is what _asen.parse_yaml gives: (line, text | list of nodes | {key: (line, node)}, plain).
# `--opts` values given as Python values are nodes whose `plain` is _GIVEN and whose content is the
# value; those given as text have _TYPED.
_GIVEN, _TYPED = "given", "typed"


class _Merger:
    """The tree under construction, and where each key was set."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = _copied(DEFAULTS)
        self.origins: dict[str, str] = {}
        self.source = ""

    def fail(self, line: int, message: str) -> NoReturn:
        raise ConfigError(f"{self.source}:{line}: {message}" if line else f"{self.source}: {message}")

    def file(self, name: str, node: tuple | None) -> None:
        self.source = name
        if node is None or (node[1] == "" and node[2]):
            return
        if not isinstance(node[1], dict):
            self.fail(node[0], "a configuration is a mapping of keys to values")
        self.group("", self.values, DEFAULTS, node)

    def group(self, path: str, values: dict[str, Any], defaults: Mapping[str, Any], node: tuple) -> None:
        """Merges a mapping node into the group at `path`."""
        for key, (line, child) in self.entries(node).items():
            full = f"{path}.{key}" if path else key
            self.origins[full] = f"{self.source}:{line}" if line else self.source
            if key not in defaults:
                if path not in NEW_KEYS_UNDER:
                    self.unknown(line, full, path, defaults)
                values[key] = self.new_value(child, values.get(key))
            elif isinstance(defaults[key], dict):
                if child[1] == "" and child[2] is True:     # "MODEL:" with all below commented out
                    continue
                if not isinstance(child[1], dict):
                    self.fail(line, f"{full} is a group of keys ({', '.join(defaults[key])}), not a value")
                self.group(full, values[key], defaults[key], child)
            else:
                values[key] = self.value(line, full, defaults[key], child)

    def entries(self, node: tuple) -> dict[str, tuple]:
        """A mapping's entries, with YAML's merge key `<<` resolved: what is written here wins."""
        content = node[1]
        if "<<" not in content:
            return content
        line, merged = content["<<"]
        result = {key: entry for key, entry in content.items() if key != "<<"}
        for source in merged[1] if isinstance(merged[1], list) else [merged]:
            if not isinstance(source[1], dict):
                self.fail(line, "<< takes a mapping or a list of mappings")
            for key, entry in self.entries(source).items():
                result.setdefault(key, entry)
        return result

    def unknown(self, line: int, full: str, path: str, siblings: Mapping[str, Any]) -> NoReturn:
        import difflib

        name = full.rpartition(".")[2]
        upper = {key.upper(): key for key in siblings}
        close = difflib.get_close_matches(name.upper(), upper, 1, 0.7)
        if close:
            guess = f"{path}.{upper[close[0]]}" if path else upper[close[0]]
        else:
            every = {key.rpartition(".")[2]: key for key in _full_keys(DEFAULTS)}
            guess = every.get(name) or every.get(name.upper()) or ""
        self.fail(line, f"unknown key {full}" + (f": did you mean {guess}?" if guess else
                                                 f" (known here: {', '.join(siblings)})"))

    def new_value(self, node: tuple, old: Any) -> Any:
        """The value of a key without a default: any type; mappings merge with earlier ones."""
        line, content, style = node
        if isinstance(content, dict) and style is not _GIVEN:
            result = dict(old) if isinstance(old, dict) else {}
            for key, (_, child) in self.entries(node).items():
                result[key] = self.new_value(child, result.get(key))
            return result
        if isinstance(content, list) and style is not _GIVEN:
            return [self.element(item) for item in content]
        return self.scalar(node, None)

    def element(self, node: tuple) -> Any:
        """A list's element: YAML's types for plain text, and no Python literals."""
        _, content, plain = node
        if isinstance(content, str):
            return _yaml_value(content) if plain else content
        return self.new_value(node, None)

    def scalar(self, node: tuple, default: Any, choices: Sequence[str] = (), text_allowed: bool = False) -> Any:
        """The value of a scalar node, by style and by what its key expects."""
        _, text, style = node
        if style is _GIVEN:
            return text
        if text in choices:                       # off is also YAML's False
            return text
        if not style:                             # quoted
            return text if text_allowed or default is None or isinstance(default, str) else _literal(text)
        if style is _TYPED:
            value = _literal(text)
            if isinstance(default, str):
                return value if value is None or isinstance(value, str) else text
            return _yaml_value(text) if isinstance(value, str) and value == text else value
        value = _yaml_value(text)
        return _literal(text) if isinstance(value, str) else value

    def value(self, line: int, full: str, default: Any, node: tuple) -> Any:
        """The value of a known key, of its default's type."""
        content, style = node[1], node[2]
        if isinstance(content, dict) and style is not _GIVEN:
            if full != "MODEL.PRETRAINED":
                self.fail(line, f"{full} must be {_kind(default)}, not a mapping")
            return {key: self.value(at, f"{full}.{key}", True, child) if key in ("GLOBAL", "LOCAL") else
                    self.unknown(at, f"{full}.{key}", full, {"GLOBAL": 0, "LOCAL": 0})
                    for key, (at, child) in self.entries(node).items()}
        text_allowed = full.startswith("MODEL.PRETRAINED")
        if isinstance(content, list) and style is not _GIVEN:
            value: Any = [self.element(item) for item in content]
        else:
            value = self.scalar(node, default, CHOICES.get(full, ()), text_allowed)
        if isinstance(default, list):
            if isinstance(value, (list, tuple)):
                return _copied(list(value))
        elif value is None or type(value) is type(default):
            return self.finite(line, full, value)
        elif isinstance(default, float) and type(value) is int:
            try:
                return float(value)
            except OverflowError:
                self.fail(line, f"{full} is too large")
        elif text_allowed and isinstance(value, str):
            return value
        shown = content if isinstance(content, str) else repr(value)
        hint = ""
        if isinstance(default, str) and isinstance(value, (bool, int, float)):
            hint = "; put it in quotes if it is meant as text"
        self.fail(line, f"{full} must be {_kind(default)}, not {_kind(value)} ({shown[:60]}){hint}")

    def finite(self, line: int, full: str, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            self.fail(line, f"{full} must be a finite number, not {value}")
        return value

    def opts(self, opts: Sequence[Any]) -> None:
        """`--opts KEY VALUE ...`: each pair becomes a mapping node of one key."""
        self.source = "--opts"
        if isinstance(opts, (str, bytes)) or not isinstance(opts, Sequence):
            raise TypeError("opts is a list of keys and values: [\"SOLVER.EPOCHS\", 2, ...]")
        if len(opts) % 2:
            self.fail(0, f"{opts[-1]} has no value: KEY VALUE pairs were expected")
        for key, value in zip(opts[::2], opts[1::2]):
            if not isinstance(key, str) or not all(key.split(".")) or key.count(".") >= _MAX_DEPTH:
                self.fail(0, f"{str(key)[:80]!r} is no key: SOLVER.EPOCHS, for instance, is one")
            node: tuple = self.opt_node(key, value)
            for part in reversed(key.split(".")):
                node = (0, {part: (0, node)}, False)
            self.group("", self.values, DEFAULTS, node)

    def opt_node(self, key: str, value: Any) -> tuple:
        if isinstance(value, Mapping):
            return 0, {str(k): (0, self.opt_node(f"{key}.{k}", v)) for k, v in value.items()}, False
        if not isinstance(value, str):
            value = _plain_data(value)
            if value is _GIVEN:
                self.fail(0, f"{key}: a number, text, bool, None or list was expected")
            return 0, value, _GIVEN
        if value.lstrip()[:1] in ("[", "{") and isinstance(_literal(value), str):
            from ._asen import parse_yaml

            try:
                return parse_yaml(value.encode("utf-8", "surrogateescape"), f"--opts {key}")
            except ValueError as error:
                raise ConfigError(str(error)) from None
        return 0, value, _TYPED


def _plain_data(value: Any) -> Any:
    """A given value without NumPy's scalar types; _GIVEN where it is nothing a key may have."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, _SCALARS) and hasattr(value, "item") and not getattr(value, "shape", ()):
        value = value.item()
    return value if _is_plain_data(value) else _GIVEN


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


def _full_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _full_keys(value, f"{prefix}{key}.")


def _kind(value: Any) -> str:
    names = {bool: "True or False", int: "an int", float: "a float", str: "text", type(None): "null",
             list: "a list", tuple: "a list", dict: "a mapping"}
    return names.get(type(value), type(value).__name__)


# -- the whole configuration ----------------------------------------------------------------------

_POSITIVE = """MODEL.EMBED_SIZE MODEL.ATTRIBUTE.EMBED_SIZE MODEL.GLOBAL.BACKBONE.EMBED_SIZE
    MODEL.LOCAL.BACKBONE.EMBED_SIZE MODEL.GLOBAL.ATTENTION.SPATIAL.COMMON_EMBED_SIZE
    MODEL.LOCAL.ATTENTION.SPATIAL.COMMON_EMBED_SIZE MODEL.GLOBAL.ATTENTION.CHANNEL.REDUCTION_RATE
    MODEL.LOCAL.ATTENTION.CHANNEL.REDUCTION_RATE HEAD.in_features HEAD.out_features HEAD.s
    INPUT.GLOBAL_SIZE INPUT.LOCAL_SIZE DATA.NUM_TRIPLETS DATA.TRAIN_BATCHSIZE DATA.TEST_BATCHSIZE
    SOLVER.EVAL_STEPS SOLVER.STEP_SIZE SOLVER.EPOCHS SOLVER.LOG_PERIOD SOLVER.DECAY_RATE SOLVER.SCALE
    SOLVER.TEMPERATURE SOLVER.HEAD_LR_FACTOR SOLVER.ACCUMULATE""".split()
_NOT_NEGATIVE = """DATA.NUM_IMAGES DATA.IMAGES_PER_VALUE SOLVER.WARMUP_STEPS SOLVER.EARLY_STOP SEED NUM_THREADS DATA.NUM_WORKERS EVAL.SUBSET LOGGER.LEVEL SOLVER.BASE_LR
    SOLVER.BASE_LR_SLOW SOLVER.ALIGN_WEIGHT SOLVER.LOCAL_WEIGHT SOLVER.GLOBAL_WEIGHT
    SOLVER.MARGIN""".split()


class _Check:
    """What single types cannot say; completes the two keys that follow others."""

    def __init__(self, values: dict[str, Any], origins: Mapping[str, str]):
        self.values = values
        self.origins = origins

    def get(self, key: str) -> Any:
        value: Any = self.values
        for part in key.split("."):
            value = value[part]
        return value

    def need(self, fine: bool, key: str, message: str) -> None:
        """Raises where `fine` is false, naming the place that set `key` or the group it is in."""
        if fine:
            return
        place = key
        while place and place not in self.origins:
            place = place.rpartition(".")[0]
        raise ConfigError((f"{self.origins[place]}: " if place else "") + f"{key} {message}")

    def all(self) -> None:
        for key in (*_POSITIVE, *_NOT_NEGATIVE):
            value, positive = self.get(key), key in _POSITIVE
            fine = value is not None and (value >= 0 if not positive else value > 0)
            self.need(fine, key, f"is {_shown(value)}: it must be {'more than 0' if positive else '0 or more'}")
        for key, choices in CHOICES.items():
            self.need(self.get(key) in choices, key, f"is {_shown(self.get(key))}: it must be {_either(choices)}")
        self.ranges()
        self.learning()
        self.branches()
        self.attributes()
        self.style()

    def ranges(self) -> None:
        threshold, beta, margin = (self.get(k) for k in ("INPUT.THRESHOLD", "SOLVER.BETA", "HEAD.m"))
        self.need(threshold is not None and 0 <= threshold < 1, "INPUT.THRESHOLD",
                  f"is {_shown(threshold)}: it must be in [0, 1), or no pixel of an attention map is kept")
        self.need(beta is not None and 0 <= beta <= 1, "SOLVER.BETA",
                  f"is {_shown(beta)}: it weighs global against local features and must be in [0, 1]")
        self.need(margin is not None and 0 <= margin < math.pi, "HEAD.m",
                  f"is {_shown(margin)}: it is an angle in radians and must be in [0, pi)")
        for key, lower in (("INPUT.PIXEL_MEAN", -math.inf), ("INPUT.PIXEL_STD", 0.0)):
            values = self.get(key)
            fine = len(values) == 3 and all(
                type(v) in (int, float) and math.isfinite(v) and v > lower for v in values)
            self.need(fine, key, f"is {_shown(values)}: it must be three {'positive ' if lower == 0 else ''}numbers, "
                                 "for red, green and blue (in lists, write 1.0e-4 for 1e-4)")
        root = self.get("DATA.IMAGE_ROOT") or ""
        unknown = [field for field in re.findall(r"\{.*?\}", root) if field != "{split}"]
        self.need(not unknown, "DATA.IMAGE_ROOT", f"holds {', '.join(unknown)}: only {{split}} is known")

    def learning(self) -> None:
        """Keys of objectives and training aids: their ranges, and which go together."""
        for key, low, high, what in (
                ("INPUT.AUGMENT.FLIP", 0, 1, "a probability, in [0, 1]"),
                ("INPUT.AUGMENT.ERASE", 0, 1, "a probability, in [0, 1]"),
                ("INPUT.AUGMENT.JITTER", 0, 1, "the range of a factor, in [0, 1]"),
                ("SOLVER.SCALE", 1e-3, 1e4, "in [0.001, 10000]"), ("SOLVER.TEMPERATURE", 1e-4, 1e3, "in [0.0001, 1000]"),
                ("DATA.NUM_IMAGES", 0, 1e12, "a number of images, at most 10 to the 12"),
                ("SOLVER.LABEL_SMOOTHING", 0, 0.999, "in [0, 1)"), ("SOLVER.EMA_DECAY", 0, 0.999999, "in [0, 1)"),
                ("INPUT.AUGMENT.CROP", 0.01, 1, "the least part of the area that is left, in [0.01, 1]")):
            value = self.get(key)
            self.need(value is not None and low <= value <= high, key, f"is {_shown(value)}: it must be {what}")
        loss, accumulate = self.get("SOLVER.LOSS"), self.get("SOLVER.ACCUMULATE")
        self.need(accumulate == 1 or loss in ("triplet", "cosine"), "SOLVER.ACCUMULATE",
                  f"is {accumulate}, but the terms of SOLVER.LOSS {loss} are pairs of the whole batch: a part of it has "
                  "others; it must be 1")
        self.need(accumulate <= self.get("DATA.TRAIN_BATCHSIZE"), "SOLVER.ACCUMULATE",
                  f"is {accumulate}: a batch of {self.get('DATA.TRAIN_BATCHSIZE')} (DATA.TRAIN_BATCHSIZE) has fewer parts")
        group, batch = self.get("DATA.IMAGES_PER_VALUE"), self.get("DATA.TRAIN_BATCHSIZE")
        self.need(loss == "triplet" or batch > 1, "DATA.TRAIN_BATCHSIZE",
                  f"is {batch}: with SOLVER.LOSS {loss} a batch has two images or more")
        self.need(loss == "triplet" or group <= batch // 2, "DATA.IMAGES_PER_VALUE",
                  f"is {group}: a batch of {batch} images (DATA.TRAIN_BATCHSIZE) must have room for two values")
        self.need(self.get("SOLVER.WARMUP_STEPS") == 0 or self.get("SOLVER.TYPE") == "WarmupCosine",
                  "SOLVER.WARMUP_STEPS", f"is {self.get('SOLVER.WARMUP_STEPS')}, but SOLVER.TYPE "
                  f"{self.get('SOLVER.TYPE')} goes by epochs: it must be 0, or the type WarmupCosine")
        self.need(self.get("SOLVER.LABEL_SMOOTHING") == 0 or loss == "cosine", "SOLVER.LABEL_SMOOTHING",
                  f"is {self.get('SOLVER.LABEL_SMOOTHING')}, but only SOLVER.LOSS cosine has labels to smooth")
        augment, names = self.values["INPUT"]["AUGMENT"], self.get("DATA.ATTRIBUTES.NAME")
        coloured = [name for name in names if isinstance(name, str) and re.search("colou?r", name, re.IGNORECASE)]
        self.need(not augment["JITTER"] or augment["JITTER_COLOUR"] or not coloured, "INPUT.AUGMENT.JITTER",
                  f"is {augment['JITTER']}, but the attribute {''.join(coloured[:1])} is what it would blur: it must be 0, "
                  "or INPUT.AUGMENT.JITTER_COLOUR True")

    def branches(self) -> None:
        for branch in ("GLOBAL", "LOCAL"):
            key = f"MODEL.{branch}.BACKBONE"
            backbone, rate = self.get(key), f"MODEL.{branch}.ATTENTION.CHANNEL.REDUCTION_RATE"
            width = LAYER3_WIDTH[backbone["NAME"]]
            if f"{key}.EMBED_SIZE" not in self.origins:
                backbone["EMBED_SIZE"] = width
            self.need(backbone["EMBED_SIZE"] == width, f"{key}.EMBED_SIZE",
                      f"is {backbone['EMBED_SIZE']}: {backbone['NAME']} gives {width} channels")
            self.need(self.get(rate) <= width, rate, f"is {self.get(rate)}: nothing is left of {width} channels")
        self.need(not self.get("MODEL.LOCAL.ENABLE") or bool(self.get("MODEL.GLOBAL.ATTENTION.SPATIAL.ENABLE")),
                  "MODEL.LOCAL.ENABLE", "is True, but the local branch needs the attention map that "
                  "MODEL.GLOBAL.ATTENTION.SPATIAL.ENABLE False leaves out")
        pretrained = self.get("MODEL.PRETRAINED")
        for branch, value in pretrained.items() if isinstance(pretrained, dict) else [("", pretrained)]:
            self.need(isinstance(value, bool) or bool(value), "MODEL.PRETRAINED" + (branch and f".{branch}"),
                      "is empty: it must be True, False, a path or a URL")

    def attributes(self) -> None:
        data, group = self.values["DATA"], self.values["DATA"]["ATTRIBUTES"]
        names, sizes = group["NAME"], group["NUM"]
        self.need(all(isinstance(name, str) and name for name in names), "DATA.ATTRIBUTES.NAME",
                  f"is {_shown(names)}: names are text (put yes, no, on, off and numbers in quotes)")
        twice = sorted({name for name in names if names.count(name) > 1})
        self.need(not twice, "DATA.ATTRIBUTES.NAME", f"names {', '.join(twice)} twice")
        self.need(all(type(size) is int and size > 0 for size in sizes), "DATA.ATTRIBUTES.NUM",
                  f"is {_shown(sizes)}: it must hold a positive int, the number of values, for each attribute")
        if "DATA.NUM_ATTRIBUTES" not in self.origins and names:
            data["NUM_ATTRIBUTES"] = len(names)
        count = data["NUM_ATTRIBUTES"]
        self.need(count is not None and (count == -1 or count > 0), "DATA.NUM_ATTRIBUTES",
                  f"is {_shown(count)}: it must be more than 0 (or -1: not set)")
        self.need(len(names) == len(sizes), "DATA.ATTRIBUTES.NUM",
                  f"has {len(sizes)} entries, but DATA.ATTRIBUTES.NAME has {len(names)}: one for each attribute")
        self.need(count == -1 and not names or len(names) in (0, count), "DATA.ATTRIBUTES.NAME",
                  f"has {len(names)} entries, but DATA.NUM_ATTRIBUTES is {count}")
        values = group.get("VALUES")
        if values is not None:
            fine = isinstance(values, list) and len(values) == len(names) and all(
                isinstance(one, list) and all(isinstance(v, str) for v in one) and len(one) in (0, size)
                for one, size in zip(values, sizes))
            self.need(fine, "DATA.ATTRIBUTES.VALUES", "must hold a list for each attribute with the name of each "
                      "of its values as text (put yes, no, on, off and numbers in quotes), or an empty list")

    def style(self) -> None:
        kind, sizes = self.get("MODEL.TYPE"), self.get("DATA.ATTRIBUTES.NUM")
        self.need(kind == "ASEN" or self.get("SOLVER.LOSS") == "triplet" and self.get("SOLVER.ACCUMULATE") == 1,
                  "MODEL.TYPE", f"is {kind}, which trains on triplets, a batch at once: SOLVER.LOSS must be triplet and "
                  "SOLVER.ACCUMULATE 1")
        if kind == "ASEN":
            self.need(self.get("SOLVER.OBJECTIVE") == "combined", "SOLVER.OBJECTIVE",
                      "is 'anchor', the objective of a classifier: MODEL.TYPE ASEN has none")
        elif sizes:
            self.need(self.get("HEAD.out_features") == sizes[0], "HEAD.out_features",
                      f"is {self.get('HEAD.out_features')}, but attribute 0 has {sizes[0]} values "
                      f"(DATA.ATTRIBUTES.NUM): a {kind} needs one output for each")


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)[:80]


def _either(choices: Sequence[str]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


def load_config(*files: str | os.PathLike, opts: Sequence[Any] | None = None) -> Config:
    """The defaults, with YAML files merged over them left to right, then `opts`.

    files: paths of YAML 1.1 files.
    opts: keys and values in turn, ["SOLVER.EPOCHS", "2", ...]; values are text, read as Python
        literals or YAML, or Python values.

    Two keys follow others while nobody sets them: BACKBONE.EMBED_SIZE (the width of the backbone's
    layer3) and DATA.NUM_ATTRIBUTES (the number of DATA.ATTRIBUTES.NAME).

    Raises ConfigError (a ValueError), whose message names the key and where it stands, and OSError
    for a file that cannot be read.
    """
    from ._asen import parse_yaml

    merger = _Merger()
    for file in files:
        try:
            node = parse_yaml(os.fspath(file))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        merger.file(os.fsdecode(file), node)
    if opts:
        merger.opts(opts)
    _Check(merger.values, merger.origins).all()
    return Config(merger.values)
