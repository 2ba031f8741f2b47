"""`python -m asenpp.inference …`: attributes and styles of images, and styles of the persons in pose files.

Exit status: 0 done; 1 something that a user can put right, said in one line a file; 2 options that
make no sense; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from ..engine.errors import mistakes

__all__ = ["main"]

_PROGRAM = "python -m asenpp.inference"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=_PROGRAM, allow_abbrev=False,
                                     description="Tell the values of attributes with a model trained with SOLVER.LOSS cosine, "
                                                 "or styles with a style model (global branch).")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    attributes = commands.add_parser("attributes", help="the values of image files' attributes: a JSON line each",
                                     allow_abbrev=False,
                                     description='Print {"image", "attributes": {NAME: {"value", "probability"}}} for '
                                                 "each image, a JSON line each.")
    image = commands.add_parser("image", help="the style of image files: a JSON line each", allow_abbrev=False,
                                description='Print {"image", "style", "score"} for each image, a JSON line each.')
    poses = commands.add_parser("poses", help="the style of each person in a folder of pose files",
                                allow_abbrev=False,
                                description="Write, for each pose file, a JSON file of the same name that holds "
                                            "the style of each person.")
    for command in (attributes, image, poses):
        command.add_argument("--cfg", nargs="+", required=True, metavar="FILE",
                             help="YAML files, merged left to right over the defaults")
        command.add_argument("--resume", required=True, metavar="CHECKPOINT",
                             help="the weights, of either stage" if command is not attributes else
                             "the weights, with heads: of stage 2 for both branches (MODEL.LOCAL.ENABLE)")
        command.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE",
                             help="keys to change on top of the files, such as DEVICE cpu")
        command.add_argument("--keep-going", action="store_true",
                             help="go on after a file that cannot be used, and report all of them at the end")
    for command in (attributes, image):
        command.add_argument("images", nargs="+", metavar="IMAGE", help="image files; put them last, after --resume")
    attributes.add_argument("--attributes", metavar="NAME,NAME…", type=lambda text: text.split(","),
                            help="the attributes that are asked for; all where it is left out")
    poses.add_argument("--json-root", required=True, metavar="DIR", help="pose files, found in all its subfolders")
    poses.add_argument("--img-prefix", required=True, metavar="DIR",
                       help="where the images lie: DIR/NAME.jpg for NAME.json")
    poses.add_argument("--out", required=True, metavar="DIR", help="where the results go, under the same names")
    poses.add_argument("--crops", metavar="DIR", help="also save the crop of each person here")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; `arguments` as in sys.argv[1:]."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("Stopped; what was written so far is whole.", file=sys.stderr)
        return 130
    except BrokenPipeError:     # whoever read our lines has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except mistakes() as error:
        if os.environ.get("ASENPP_TRACEBACK"):
            raise
        print(f"{_PROGRAM}: error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    from ..config import load_config

    cfg = load_config(*options.cfg, opts=options.opts)
    if options.command == "attributes":
        problems = _attributes(cfg, options)
    else:
        problems = _styles(cfg, options)
    for problem in problems:
        print(f"{_PROGRAM}: error: {problem}", file=sys.stderr)
    if problems:
        print(f"{_PROGRAM}: {len(problems)} files could not be used", file=sys.stderr)
    return 1 if problems else 0


def _attributes(cfg, options: argparse.Namespace) -> list[str]:
    """Prints a line an image; returns what was wrong with the others."""
    from .attributes import AttributeClassifier

    classifier = AttributeClassifier(cfg, options.resume)
    print(classifier.loaded, file=sys.stderr)
    problems: list[str] = []
    failed = (lambda image, error: problems.append(str(error))) if options.keep_going else None
    for path, values in classifier.stream(options.images, options.attributes, failed):
        _print({"image": path, "attributes": values})
    return problems


def _styles(cfg, options: argparse.Namespace) -> list[str]:
    """image and poses; returns what was wrong with files that could not be used."""
    from .classifier import StyleClassifier

    classifier = StyleClassifier(cfg, options.resume)
    print(classifier.loaded, file=sys.stderr)
    if options.command == "image":
        return _images(classifier, options.images, options.keep_going)
    from .poses import classify_poses

    written, problems = classify_poses(classifier, options.json_root, options.img_prefix, options.out,
                                       options.crops, options.keep_going)
    print(f"{written} files written to {options.out}", file=sys.stderr)
    return problems


def _images(classifier, paths: Sequence[str], keep_going: bool) -> list[str]:
    """Prints a line an image; returns what was wrong with the others."""
    from ..data.index import DataError

    problems = []
    for path in paths:
        try:
            result = classifier.classify(path)
        except (DataError, OSError) as error:
            if not keep_going:
                raise
            problems.append(str(error))
        else:
            _print({"image": path, **result})
    return problems


def _print(result: dict[str, Any]) -> None:
    """A JSON line on the standard output, at once."""
    if hasattr(sys.stdout, "reconfigure"):      # names that are not UTF-8 become JSON escapes
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    print(json.dumps(result, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    sys.exit(main())
