"""`python -m ilql.export RUN OUT`: the actor alone as a plain language model of transformers, for servers that know
nothing of critics. Decision: what is lost (the re-weighting) is said at export."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ilql import atomic, sealed
from ilql.command import Parser, guard
from ilql.decode import load
from ilql.quiet import quiet
from ilql.types import InputError


def export(run: str | Path, out: str | Path) -> Path:
    """Write the actor of a run (or model) folder and its tokenizer to a new folder; returns it."""
    out = Path(out)
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise InputError(f"{out} exists; name a new folder")
    model, encoder = load(run)
    if model.beginning is not None:
        raise InputError(f"{run} reads a prefix of {model.beginning.size} numbers, and a plain model reads none")
    lm = model.lm
    lm.generation_config = model.generation_config
    size = sum(p.numel() * p.element_size() for p in lm.parameters())
    with atomic.folder(out, size + (1 << 22)) as temporary, quiet():
        lm.save_pretrained(temporary)
        encoder.tokenizer.save_pretrained(temporary)
        sealed.seal(temporary)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    return guard(lambda: _export(sys.argv[1:] if argv is None else argv))


def _export(argv: Sequence[str]) -> int:
    parser = Parser(prog="python -m ilql.export", description=__doc__)
    parser.add_argument("run", help="a run folder of train.py, or a model folder")
    parser.add_argument("out", help="a new folder for the plain language model")
    args = parser.parse_args(argv)
    out = export(args.run, args.out)
    print(f"{out}: the actor as a plain language model; the critics, and decoding with beta, stay with {args.run}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
