"""`python -m benchmarks [all|train|cache|decode|candidates|build|tree|scaling|memory|trust]`: ours against plain
re-creations of what the published trainers do, as tables; `all` adds the table of goals. Misses are stated, and are no
failure of the command; numbers that do not agree are: then nothing is timed, and the status is 1.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers.utils import logging

from benchmarks import build, candidates, decode, machine, memory, page, scaling, train, tree, trust
from benchmarks.pairs import Disagreement, say
from benchmarks.report import Section
from ilql.atomic import write_text
from ilql.types import InputError

SECTIONS: dict[str, Callable[[argparse.Namespace], list[Section]]] = {
    "train": lambda o: train.measure(("train", "cache") if o.what == "all" else ("train",), o.pairs, o.shape, o.quick),
    "cache": lambda o: train.measure(("cache",), o.pairs, o.shape, o.quick),
    "decode": lambda o: [decode.measure(o.pairs, o.shape, o.quick)],
    "candidates": lambda o: [candidates.measure(o.pairs, o.shape, o.quick)],
    "build": lambda o: [build.measure(o.pairs, corpora(), o.quick)],
    "tree": lambda o: [tree.measure(o.pairs, o.quick)],
    "scaling": lambda o: [scaling.measure(o.pairs, o.quick)],
    "memory": lambda o: [memory.measure(o.shape, o.quick)],
    "trust": lambda o: [trust.measure(o.pairs, o.quick)],
}


def corpora() -> Path | None:
    """Where the published corpora lie, by ILQL_CORPORA."""
    known = os.environ.get("ILQL_CORPORA")
    return Path(known) if known else None


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument("what", nargs="?", default="all", choices=("all", *SECTIONS), help="default: all")
    out.add_argument("--pairs", type=int, default=5, help="rounds in which each is timed in turn (default 5)")
    out.add_argument("--shape", default="", metavar="WORDS", help="only shapes whose name holds this")
    out.add_argument("--json", type=Path, metavar="FILE", help="write everything found as JSON too")
    out.add_argument("--write", type=Path, metavar="PAGE", help="put a whole run into a page, between its markers")
    out.add_argument("--quick", action="store_true", help="tiny shapes: does everything run and agree? no figures")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    options = parser().parse_args(argv)
    logging.set_verbosity_error()
    try:
        run(options, argv)
    except (Disagreement, InputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, Disagreement) else 2
    return 0


def run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    """Measure, print and write."""
    if options.pairs < 1:
        raise InputError(f"--pairs is {options.pairs}, but must be at least 1")
    whole = options.what == "all" and not options.shape
    if options.write:
        if not whole or options.quick:
            raise InputError("--write keeps whole runs only: use it with `all`, without --shape and --quick")
        page.check(options.write)
    begin = time.perf_counter()
    sections: list[Section] = []
    for name in SECTIONS if options.what == "all" else (options.what,):
        if name not in (section.name for section in sections):
            sections += SECTIONS[name](options)
        gc.collect()
    head = {
        "command": " ".join(["python -m benchmarks", *argv]),
        "machine": machine.describe(),
        "pairs": options.pairs,
        "minutes": (time.perf_counter() - begin) / 60,
        "goals": whole and not options.quick,
    }
    bf16 = machine.has_bf16()
    text = page.markdown(head, sections, bf16)
    print(text)
    if options.json:
        write_text(options.json, page.as_json(head, sections, bf16))
    if options.write:
        page.write(options.write, text, sections)
    say(f"done in {head['minutes']:.1f} minutes")


if __name__ == "__main__":
    sys.exit(main())
