"""The command line of main.py: options in, exit status out.

Exit status: 0 done; 1 something that a user can put right, said in one line; 2 options that make
no sense; 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence

from .errors import Interrupted, mistakes

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="main.py", allow_abbrev=False,
        description="Train ASEN++ on images of garments, or evaluate what was trained.")
    parser.add_argument("--cfg", nargs="+", required=True, metavar="FILE",
                        help="YAML files, merged left to right over the defaults")
    parser.add_argument("--resume", metavar="CHECKPOINT",
                        help="of the same NAME: go on exactly where it stopped; of another NAME: start from its "
                             "weights; with --test: the model to evaluate")
    parser.add_argument("--test", choices=("VALID", "TEST"), help="evaluate on this split instead of training")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE",
                        help="keys to change on top of the files, such as SOLVER.EPOCHS 2")
    parser.add_argument("--overwrite", action="store_true",
                        help="start anew where SAVE_DIR/NAME holds a run already")
    parser.add_argument("--save-minutes", type=_minutes, default=10.0, metavar="M",
                        help="save a checkpoint within an epoch after so many minutes, too (default: %(default)g; "
                             "0: after every step)")
    return parser


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 <= minutes < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: 0 or more minutes were expected")
    return minutes


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; `arguments` as in sys.argv[1:]."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.test and not options.resume:
        parser.error("--test needs --resume CHECKPOINT: without it an untrained model would be evaluated")
    if options.test and options.overwrite:
        parser.error("--overwrite is for training: --test overwrites nothing")
    try:
        return _run(options)
    except Interrupted as stopped:
        print(f"Stopped. {stopped.remedy}".rstrip(), file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("Stopped at once, nothing was saved since the last checkpoint.", file=sys.stderr)
        return 130
    except mistakes() as error:
        if os.environ.get("ASENPP_TRACEBACK"):
            raise
        print(f"main.py: error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    from ..config import load_config

    cfg = load_config(*options.cfg, opts=options.opts)
    if options.test:
        from .evaluation import evaluate

        evaluate(cfg, split=options.test, checkpoint=options.resume)
    else:
        from .training import train

        command = ["python", "main.py", "--cfg", *options.cfg]
        train(cfg, resume=options.resume, overwrite=options.overwrite, save_seconds=60 * options.save_minutes,
              command=(command, ["--opts", *options.opts] if options.opts else []))
    return 0
