"""The command `ilql`: the same functions as the scripts, so that an installed package can do everything. Decision: a
command's module is imported when the command is called, and within the guard that keeps tracebacks from users.

Status: 0 done, 1 training broke down (a loss that is not finite), 2 the input or an option cannot be used, 130 and 143
stopped by SIGINT (Ctrl-C) and by SIGTERM.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from functools import partial

from ilql import __version__
from ilql.command import guard
from ilql.types import InputError

# Command -> the function behind it and one line for the help.
COMMANDS = {
    "prep": ("datasets_prep.__main__:main", "build a dataset from dialogue logs"),
    "train": ("ilql.cli:train_main", "train an algorithm on datasets"),
    "eval": ("ilql.evaluate:main", "play episodes with a trained policy and print the table"),
    "annotate": ("ilql.annotate:main", "store what a model adds to a dataset: hidden states"),
    "export": ("ilql.export:main", "write a run's actor as a plain language model"),
}
TRAIN_HELP = """usage: train.py --config FILE.yaml [--key value ...] [--seeds 0-4] [--resume] [--allow-inexact]

A key given here wins over the file's; lists take several values: --data.path A B.
  --seeds 0-4      one run a seed, in OUTPUT/seed-N; finished ones are skipped, interrupted ones go on
  --resume         continue the run in --output from its newest valid checkpoint
  --allow-inexact  resume even where the result may differ from an uninterrupted run's
  --skip-nonfinite N   leave out up to N windows whose loss or gradient is not finite, and count them
  --auto-micro-batch   divide micro-batches that do not fit into memory; the step and its loss stay the same

SIGTERM or Ctrl-C: the step ends, a checkpoint is written, status 143 or 130; a second one ends the process at once.

"""


def _spelled(word: str) -> str:
    """Two options of the config are also written as a command's."""
    name, equals, value = word.partition("=")
    if name == "--auto-micro-batch":
        return f"--auto_micro_batch={value or 'true'}"
    return f"--skip_nonfinite{equals}{value}" if name == "--skip-nonfinite" else word


def train_main(argv: Sequence[str] | None = None) -> int:
    """`train.py`: options as in `ilql.config`, and --seeds, --resume, --allow-inexact; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guard(lambda: _train(words), "interrupted; the same command with --resume goes on from the last checkpoint")


def _train(argv: list[str]) -> int:
    from ilql.config import load_config, options

    if "-h" in argv or "--help" in argv:
        print(TRAIN_HELP + options())
        return 0
    argv, several = _seeds([_spelled(word) for word in argv])
    flags = {name: name in argv for name in ("--resume", "--allow-inexact")}
    cfg = load_config([word for word in argv if word not in flags])

    import torch.distributed

    from ilql import seeds
    from ilql.progress import TrainingError
    from ilql.signals import Stopped
    from ilql.trainer import train

    try:
        if several is None:
            run = train(cfg, resume=flags["--resume"], allow_inexact=flags["--allow-inexact"])
        else:
            runs = seeds.configs(cfg, seeds.numbers(several))
            out = sys.stdout if os.environ.get("RANK", "0") == "0" else sys.stderr  # one of several processes
            seeds.train_each(runs, train, flags["--allow-inexact"], partial(print, file=out, flush=True))
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        return stopped.status
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if several is None:
        print(f"run folder: {run}")
    return 0


def _seeds(argv: list[str]) -> tuple[list[str], str | None]:
    """The other words of a command line, and what stands behind --seeds."""
    place = next((i for i, word in enumerate(argv) if word.split("=")[0] == "--seeds"), None)
    if place is None:
        return argv, None
    _, equals, value = argv[place].partition("=")
    rest = argv[place + 1 :]
    if not equals:
        value, rest = (rest[0], rest[1:]) if rest and not rest[0].startswith("--") else ("", rest)
    if any(word.split("=")[0] == "--seed" for word in argv):
        raise InputError("--seed and --seeds exclude each other; drop one")
    return argv[:place] + rest, value


def main(argv: Sequence[str] | None = None) -> int:
    """`ilql COMMAND ...`; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--version"]:
        print(f"ilql {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {name:10}{text}" for name, (_, text) in COMMANDS.items()]
        print("usage: ilql COMMAND ...\n\n" + "\n".join(lines) + "\n\nilql COMMAND --help shows its options")
        return 0 if words else 2
    if words[0] not in COMMANDS:
        print(f"error: unknown command {words[0]!r}; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, _, function = COMMANDS[words[0]][0].partition(":")
    return guard(lambda: getattr(importlib.import_module(module), function)(words[1:]))
