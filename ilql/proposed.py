"""`python -m ilql.annotate propose RUN DATA`: the dataset again, with what a run's actor would say at every state.
Decision: an actor is asked once for each distinct state, in the window that it was trained on, so that states which
look alike to it have the same candidates; a candidate that does not end its turn is no reply, and is dropped.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from datasets_prep.encode import Encoder
from ilql import actor, proposals
from ilql.data import window_start
from ilql.decode import LMPolicy, load_policy, model_folder
from ilql.feed import rebuild
from ilql.propose import propose
from ilql.rewrite import rewrite
from ilql.rows import Rows
from ilql.schema import SPLITS
from ilql.types import InputError
from ilql.warmstart import check_vocabulary, tokenizer_of

AT_A_TIME = 256  # states, between two moves of the bar
State = bytes  # int32 tokens: a dataset's states are many


def propose_all(
    run: str | Path,
    dataset: str | Path,
    output: str | Path | None = None,
    *,
    n: int = 5,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int | None = None,
) -> Path:
    """Write a dataset with proposals; returns its folder, which must be new.

    run: the actor, a run or model folder. output: None for DATASET-proposals. n: candidates a state, at most; equal
    ones are one. temperature: of each token. max_new_tokens: of a candidate, None for the longest logged reply's.
    Raises InputError where run and dataset do not fit each other, or the actor ends no candidate.
    """
    dataset = Path(dataset)
    folder = Path(output) if output is not None else dataset.with_name(f"{dataset.name}-proposals")
    if folder.exists():
        raise InputError(f"{folder} exists; name another --output")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"--max-new-tokens is {max_new_tokens}, but must be at least 1")
    parts = {split: Rows(dataset, split) for split in SPLITS}
    first = parts["train"]
    policy = _policy(Path(run), dataset, first)
    for rows in parts.values():
        rows.check(policy.encoder.vocab_size)
    asked = {split: _states(rows, policy.model.config.history) for split, rows in parts.items()}
    longest = max((len(state) // 4 for some in asked.values() for one in some for state in one), default=0)
    if policy.context is not None and longest >= policy.context:
        raise InputError(f"a state has {longest} tokens, which leaves no room for a reply in {policy.context} of {run}")
    policy.max_new_tokens = max_new_tokens or max(int((r["end"] - r["start"]).max()) for x in parts.values() for r in x)
    torch.manual_seed(seed)
    distinct = sorted({state for some in asked.values() for one in some for state in one}, key=lambda s: (len(s), s))
    found = dict(zip(distinct, _ask(policy, distinct, n, temperature), strict=True))
    ended = {state: [tokens for tokens, whole in some if whole] for state, some in found.items()}
    if not any(ended.values()):
        raise InputError(
            f"{run} ended none of its proposals within {policy.max_new_tokens} tokens; raise --max-new-tokens, or "
            "train it longer"
        )
    about = {
        "name": str(run),
        "sha256": actor.digest(policy.model),
        "tokenizer": first.manifest["tokenizer"]["sha256"],
        "n": n,
        "temperature": temperature,
        "seed": seed,
        "max_new_tokens": policy.max_new_tokens,
    }
    about |= _counts([ended[state] for some in asked.values() for one in some for state in one], found, ended)
    each = {split: [[ended[state] for state in one] for one in some] for split, some in asked.items()}
    rewrite(dataset, folder, pa.field(proposals.NAME, proposals.TYPE, nullable=False), each, {proposals.NAME: about})
    print(_summary(folder, about))
    return folder


def _counts(every: Sequence[Any], found: Mapping[State, Any], ended: Mapping[State, Any]) -> dict[str, int]:
    """every: the candidates of each state of the dataset; found, ended: of each distinct state, all and those kept."""
    return {
        "states": len(every),
        "candidates": sum(map(len, every)),
        "without": sum(not some for some in every),
        "distinct_states": len(found),
        "not_ended": sum(map(len, found.values())) - sum(map(len, ended.values())),
    }


def _policy(run: Path, dataset: Path, rows: Rows) -> LMPolicy:
    """The run's policy, which can speak in the dataset's states and whose tokens mean what the dataset's do."""
    rows.refuse_prefix("annotate propose")
    if rows.manifest["step"] != "utterance":
        raise InputError(
            f"proposals are whole utterances, but {dataset} has {rows.manifest['step']} steps; build it again: "
            f"{rebuild(rows, 'utterance')}"
        )
    policy = load_policy(run)
    if policy.model.config.control is not None:
        raise InputError(
            f"{run} has to be told a return before it speaks, and states hold none; propose by another run"
        )
    theirs, mine = tokenizer_of(run), rows.manifest["tokenizer"]["sha256"]
    if theirs not in (None, mine):
        raise InputError(
            f"{run} was trained with another tokenizer than {dataset} has; build the dataset with --tokenizer "
            f"{model_folder(run)}"
        )
    vocabulary = Encoder.from_folder(dataset / "tokenizer").tokenizer.get_vocab()
    check_vocabulary(str(model_folder(run)), vocabulary, str(dataset))
    return policy


def _states(rows: Rows, history: int | None) -> list[list[State]]:
    """The states of each dialogue as the actor sees them: those of its transitions, and the one that follows."""
    out = []
    for row in rows:
        turn, start, length = row["turn"], row["start"].tolist(), len(row["tokens"])
        tokens = np.ascontiguousarray(row["tokens"], np.int32).tobytes()
        turns = [int(t) for t in turn.searchsorted(row["start"], side="right") - 1]
        if proposals.states(len(start), int(row["end"][-1]), length, bool(row["terminated"])) > len(start):
            start.append(length)
            turns.append(len(turn) - 1)
        begins = [window_start(turn, t, history) for t in turns]
        pairs = zip(begins, start, strict=True)
        out.append([(tokens[:4] if b else b"") + tokens[4 * b : 4 * at] for b, at in pairs])
    return out


def _ask(
    policy: LMPolicy, states: Sequence[State], n: int, temperature: float
) -> Iterator[list[tuple[list[int], bool]]]:
    """The candidates of each state and whether they ended."""
    with tqdm(total=len(states), unit="state", mininterval=1.0) as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what does not end is counted here
        for i in range(0, len(states), AT_A_TIME):
            part = [np.frombuffer(state, np.int32).tolist() for state in states[i : i + AT_A_TIME]]
            for some in propose(policy, part, n, temperature=temperature):
                yield [(p.tokens, p.ended) for p in some]
            bar.update(len(part))


def _summary(folder: Path, about: Mapping[str, Any]) -> str:
    mean, count = about["candidates"] / max(1, about["states"]), about["states"]
    said = f"{folder}: {mean:.2f} candidates a state ({count:,} states, {about['distinct_states']:,} of them distinct)"
    if about["not_ended"]:
        said += (
            f"; dropped {about['not_ended']:,} that did not end within {about['max_new_tokens']} tokens, which leaves "
            f"{about['without']:,} states without any: these are offered their logged reply"
        )
    return said
