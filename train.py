"""Train an algorithm on dialogue datasets: `python train.py --config examples/X.yaml [--a.b value ...] [--resume]`."""

import sys

from ilql.cli import train_main

if __name__ == "__main__":
    sys.exit(train_main())
