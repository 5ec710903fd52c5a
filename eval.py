"""Play a trained run in an environment: `python eval.py RUN --env ENV --episodes N --beta 0 1 4 16`; see `--help`."""

from __future__ import annotations

import sys

from ilql.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
