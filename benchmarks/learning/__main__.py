"""python benchmarks/learning: see command.py."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

from benchmarks.learning.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
