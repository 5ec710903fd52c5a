"""`python -m datasets_prep CORPUS --output DIR ...`, `--list`, and `inspect DIR --row N`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ilql.command import guard, printable
from ilql.types import InputError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

USAGE = """usage: python -m datasets_prep CORPUS --output DIR [options]    build a dataset from dialogue logs
       python -m datasets_prep CORPUS --help                    the corpus and its options
       python -m datasets_prep --list                           the corpora
       python -m datasets_prep inspect DIR [--row N]            show a dialogue of a dataset"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 2 for an input that cannot be used, 130 where Ctrl-C ended it."""
    return guard(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def _main(words: list[str]) -> int:
    from datasets_prep import build, options, show, split, stats

    try:
        if words == ["--list"]:
            print(options.listing())
        elif words in (["--help"], ["-h"]):
            print(USAGE)
        elif not words or words[0].startswith("-"):
            raise InputError(f"give the corpus first\n{USAGE}")
        elif words[0] == "inspect":
            print(show.inspect(words[1:]))
        else:
            chosen = options.parse(words[0], words[1:])
            manifest = build.build(chosen)
            found = manifest["statistics"]
            print(stats.table(found))
            print(f"\ntokenizer: {manifest['tokenizer']['name']}, {manifest['tokenizer']['vocab_size']:,} tokens")
            for reason, count in sorted(found["rejected_reasons"].items(), key=lambda pair: -pair[1])[:3]:
                print(printable(f"rejected: {count:,} x {reason}"))
            print(
                f"episodes in {found['episodes_in']:,} = rows out {found['rows_out']:,} + rejected "
                f"{found['rejected']:,}; written to {chosen.output}"
            )
            uses = {text.strip(): count for text, count in found["action_tokens"].items()}
            for text in chosen.action_tokens:
                if not uses[text.strip()]:
                    print(f"note: no turn of the agent says {text!r} (--action-token)", file=sys.stderr)
            if split.parse(chosen.validation) is not None and "validation" not in found:
                print("note: no dialogue fell into the validation split", file=sys.stderr)
    except SystemExit as end:  # argparse's --help
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
