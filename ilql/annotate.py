"""`python -m ilql.annotate cache|label|logprobs|propose RUN DATA`: what a dataset gets from a model. Decision: a
dataset stays as it was built; what a model adds is a folder of its own that says of which model and dataset it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoConfig

from datasets_prep.encode import Encoder
from ilql import border, cached, frozen, packed, rewarded, states
from ilql.build import ModelConfig, build
from ilql.columns import row_bytes
from ilql.command import Parser, guard
from ilql.data import collate, longest_window
from ilql.decode import model_folder
from ilql.learner import Out, check_fits
from ilql.model import ILQLConfig, ILQLModel
from ilql.proposed import propose_all
from ilql.quiet import quiet
from ilql.rewrite import rewrite
from ilql.rows import Rows
from ilql.schema import SCHEMA, SPLITS
from ilql.sealed import reading
from ilql.types import InputError
from ilql.warmstart import check_vocabulary


def cache(
    source: str | Path,
    dataset: str | Path,
    output: str | Path | None = None,
    *,
    history: int | str | None = None,
    layers: int = 0,
    dtype: str = "bfloat16",
    tokens: int = 16384,
) -> Path:
    """Store the hidden states of a dataset under a trunk; returns the folder, which must be new.

    source: a run folder of train.py, a model folder, or the folder of any causal language model. output: None for
    DATASET-cache. history: turns, "full", or None for the model's own. layers: the highest blocks that are left to
    train; above 0 the states are those below them, at every position. dtype: stored as. tokens: of dialogues that the
    trunk runs on at a time. Raises InputError where source and dataset do not fit, or the disk has no room.
    """
    dataset = Path(dataset)
    folder = Path(output) if output is not None else dataset.with_name(f"{dataset.name}-cache")
    if folder.exists():
        raise InputError(f"{folder} exists; name another --output")
    if tokens < 1:
        raise InputError(f"--tokens is {tokens}, but must be at least 1")
    splits = [Rows(dataset, split) for split in SPLITS]
    encoder = Encoder.from_folder(dataset / "tokenizer")
    for rows in splits:
        rows.check(encoder.vocab_size)
        rows.refuse_prefix("annotate cache")
    model = trunk(Path(source), encoder, dataset)
    own = model.config.history
    window = own if history is None else None if history == "full" else int(history)
    check_fits(model, max((longest_window(row, window) for rows in splits for row in rows), default=0), 0)
    form = freeze(model, layers)
    counts = cached.measure(form, dataset, encoder.bos_id, window, tokens)
    report(form, counts, dtype, int(model.config.get_text_config().hidden_size), folder)
    total = sum(split["tokens"] for split in counts.values())
    with tqdm(total=total, unit="token", unit_scale=True, mininterval=1.0) as bar:
        cached.write(
            form,
            model,
            dataset,
            folder,
            counts,
            name=str(source),
            bos=encoder.bos_id,
            history=window,
            dtype=dtype,
            budget=tokens,
            advance=bar.update,
        )
    return folder


def logprobs(source: str | Path, dataset: str | Path, output: str | Path | None = None, *, tokens: int = 16384) -> Path:
    """Write a dataset with the log-probability of every action under an actor as its column `logp`; returns its folder,
    which must be new.

    source: a run folder of train.py, a model folder, or the folder of any causal language model, which takes the place
    of the policy that wrote the dialogues; it reads them in the window of its own history. output: None for
    DATASET-logprobs. tokens: of dialogues that it runs on at a time. Raises InputError where source and dataset do not
    fit.
    """
    dataset = Path(dataset)
    folder = Path(output) if output is not None else dataset.with_name(f"{dataset.name}-logprobs")
    if folder.exists():
        raise InputError(f"{folder} exists; name another --output")
    splits = {split: Rows(dataset, split) for split in SPLITS}
    encoder = Encoder.from_folder(dataset / "tokenizer")
    for rows in splits.values():
        rows.check(encoder.vocab_size)
    model = trunk(Path(source), encoder, dataset)
    if model.config.control is not None:
        raise InputError(
            f"{source} is told the return it is to get, so that it has no one policy; score by another run"
        )
    history = model.config.history
    check_fits(model, max((longest_window(row, history) for rows in splits.values() for row in rows), default=0), 0)
    found = {split: actions_logp(model.eval(), rows, encoder.bos_id, tokens) for split, rows in splits.items()}
    about = {"name": str(source), "digest": frozen.digest(model.lm, frozen.TRUNK), "history": history}
    rewrite(dataset, folder, SCHEMA.field("logp"), found, {"logprobs": about})
    return folder


@torch.no_grad()
def actions_logp(model: ILQLModel, rows: Rows, bos: int, tokens: int) -> list[np.ndarray]:
    """log pi of every transition's action, as a whole, of each dialogue: float32 (n) each."""
    found: list[np.ndarray] = []
    for _, dialogues in cached.groups(rows, tokens):
        history = model.config.history
        batch = collate(dialogues, gamma=1.0, bos=bos, history=history, bootstraps=False, acted=False).to(model.device)
        logp = Out(model, model.hidden(*batch.run), batch).logp.double()
        each = torch.zeros(batch.n, dtype=logp.dtype, device=logp.device).index_add_(0, batch.owner, logp)
        ends = np.cumsum([len(row["start"]) for row in dialogues])[:-1]
        found += np.split(each.float().cpu().numpy(), ends)
    return found


def freeze(model: ILQLModel, layers: int) -> cached.Form:
    """Freeze the trunk below its highest `layers` blocks; returns the form of its cache."""
    if layers:
        count = len(frozen.blocks(model.lm))
        if not 0 < layers < count:
            raise InputError(f"--layers is {layers}, but the trunk has {count} blocks: name 0 to {count - 1}")
        if not packed.supports(model.lm):
            raise InputError(f"the trunk {model.lm.config.model_type!r} can only be cached whole; use --layers 0")
        model.config.freeze = count - layers
    else:
        model.config.freeze = frozen.TRUNK
    model.freeze()
    return border.FORM if layers else states.FORM


def report(form: cached.Form, counts: dict[str, dict[str, int]], dtype: str, width: int, folder: Path) -> None:
    """Print what a cache will take; InputError where the disk has less room."""
    positions, tokens = (sum(split[name] for split in counts.values()) for name in ("positions", "tokens"))
    size = cached.total_bytes(form, counts, dtype, width)
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    each = row_bytes(cached.hidden_kind(dtype, width))
    print(
        f"{folder}: {size / max(1, tokens):.0f} bytes a token, {size:,} bytes in all ({positions:,} states of "
        f"{tokens:,} tokens, {each} bytes each); {free:,} bytes are free on the disk",
        flush=True,
    )
    if free < size:
        raise InputError(f"{folder} needs {size:,} bytes but the disk has {free:,} left; free some, or name --output")


def trunk(source: Path, encoder: Encoder, dataset: Path) -> ILQLModel:
    """The model of a run or model folder, or any causal language model as the actor of one without critics, in its own
    precision (at least float32)."""
    folder = model_folder(source)
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} has no weights in safetensors, and no others are read; save the model with those")
    with reading(f"{folder}/config.json cannot be read"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        words = int(config.get_text_config().vocab_size)
    if getattr(config, "control", None) is not None:
        raise InputError(f"{source} is told the return it is to get, which dialogues do not say; take another run")
    check_vocabulary(str(folder), encoder.tokenizer.get_vocab(), str(dataset))
    if encoder.vocab_size > words:
        raise InputError(
            f"{dataset}'s tokenizer has {encoder.vocab_size} tokens, but the model's vocabulary is "
            f"{words}: build the dataset with the model's tokenizer"
        )
    own = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    dtype = str(torch.promote_types(own, torch.float32)).removeprefix("torch.")
    with quiet():
        return build(
            ModelConfig(pretrained=str(folder), dtype=dtype),
            vocab_size=encoder.vocab_size,
            bos_id=encoder.bos_id,
            pad_id=encoder.pad_id,
            end_ids=encoder.end_ids,
            critic=None,
            history=config.history if isinstance(config, ILQLConfig) else None,
        )


def _window(text: str) -> int | str:
    if text == "full":
        return text
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of turns nor full")
    return int(text)


def cache_parser() -> Parser:
    parser = Parser(prog="python -m ilql.annotate cache", description=cache.__doc__, allow_abbrev=False)
    parser.add_argument("source", metavar="RUN_OR_MODEL", help="a run folder, or the folder of a causal language model")
    parser.add_argument("dataset", metavar="DATA", help="a dataset folder")
    parser.add_argument("--output", help="a new folder (default: DATA-cache)")
    parser.add_argument("--history", type=_window, help="turns of a state, or full (default: the model's own)")
    parser.add_argument("--layers", type=int, default=0, help="highest blocks that are left to train (default: 0)")
    parser.add_argument("--dtype", choices=cached.DTYPES, default="bfloat16", help="stored as (default: bfloat16)")
    parser.add_argument("--tokens", type=int, default=16384, help="that the trunk runs on at a time (default: 16384)")
    return parser


def _cache(argv: Sequence[str]) -> None:
    args = cache_parser().parse_args(argv)
    options = {"history": args.history, "layers": args.layers, "dtype": args.dtype, "tokens": args.tokens}
    folder = cache(args.source, args.dataset, args.output, **options)
    found = json.loads((folder / "manifest.json").read_bytes())
    as_here = f"--model.freeze {found['trunk']['freeze']} --data.history {found['history']}"
    print(f"{folder}: train from it with --data.cache {folder} {as_here}")


def logprobs_parser() -> Parser:
    parser = Parser(prog="python -m ilql.annotate logprobs", description=logprobs.__doc__, allow_abbrev=False)
    parser.add_argument("source", metavar="RUN_OR_MODEL", help="a run folder, or the folder of a causal language model")
    parser.add_argument("dataset", metavar="DATA", help="a dataset folder")
    parser.add_argument("--output", help="a new folder (default: DATA-logprobs)")
    parser.add_argument("--tokens", type=int, default=16384, help="that the trunk runs on at a time (default: 16384)")
    return parser


def _logprobs(argv: Sequence[str]) -> None:
    args = logprobs_parser().parse_args(argv)
    folder = logprobs(args.source, args.dataset, args.output, tokens=args.tokens)
    print(f"{folder}: the dataset with log-probabilities under {args.source}")


def label_parser() -> Parser:
    parser = Parser(prog="python -m ilql.annotate label", description=rewarded.label.__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="a run of reward_model")
    parser.add_argument("dataset", metavar="DATA", help="a dataset folder")
    parser.add_argument("--output", help="a new folder (default: DATA-labelled)")
    parser.add_argument(
        "--which", choices=rewarded.WHICH, default="last", help="the agent's utterances that get one (default: last)"
    )
    parser.add_argument(
        "--ensemble", choices=rewarded.ENSEMBLE, default="mean", help="of several critics (default: mean)"
    )
    parser.add_argument(
        "--normalise",
        choices=rewarded.NORMALISE,
        default="standard",
        help="to mean 0 and deviation 1 of the train split, or not (default: standard)",
    )
    parser.add_argument("--tokens", type=int, default=16384, help="that the model runs on at a time (default: 16384)")
    return parser


def _label(argv: Sequence[str]) -> None:
    args = vars(label_parser().parse_args(argv))
    folder = rewarded.label(args.pop("run"), args.pop("dataset"), args.pop("output"), **args)
    found = json.loads((folder / "manifest.json").read_bytes())["label"]
    print(f"{folder}: rewards less {found['mean']:.4g}, divided by {found['scale']:.4g}")
    for split, told in found["rewards"].items():
        print(f"{split}: {told['dialogues']:,} dialogues, return {told['mean']:.3f}, deviation {told['std']:.3f}")


def propose_parser() -> Parser:
    parser = Parser(prog="python -m ilql.annotate propose", description=propose_all.__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="the actor: a run folder or a model folder")
    parser.add_argument("dataset", metavar="DATA", help="a dataset folder at utterance steps")
    parser.add_argument("--output", help="a new folder (default: DATA-proposals)")
    parser.add_argument("--n", type=int, default=5, help="candidates a state, at most (default: 5)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of each token (default: 1.0)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--max-new-tokens", type=int, help="of a candidate (default: the longest logged reply's)")
    return parser


def _propose(argv: Sequence[str]) -> None:
    args = vars(propose_parser().parse_args(argv))
    folder = propose_all(args.pop("run"), args.pop("dataset"), args.pop("output"), **args)
    print(f"{folder}: train from it with --algo chai --data.path {folder}")


COMMANDS = {
    "cache": (_cache, "store the hidden states of a dataset under a trunk that will be frozen"),
    "label": (_label, "write a dataset anew with the rewards that a reward model gives"),
    "logprobs": (_logprobs, "write a dataset anew with log-probabilities of its actions under an actor"),
    "propose": (_propose, "write a dataset anew with what an actor would say at each of its states"),
}


def main(argv: Sequence[str] | None = None) -> int:
    return guard(lambda: _annotate(sys.argv[1:] if argv is None else argv))


def _annotate(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:10}{text}" for name, (_, text) in COMMANDS.items()]
        print(
            "usage: python -m ilql.annotate COMMAND ...\n\n" + "\n".join(lines) + "\n\nCOMMAND --help shows its options"
        )
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        raise InputError(f"unknown command {argv[0]!r}; the commands are {', '.join(COMMANDS)}")
    COMMANDS[argv[0]][0](argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
