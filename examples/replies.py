"""What a policy says on held-out contexts, beside its prior: the measure of an agent that is rewarded by its partner's
replies, where no partner is at hand.

    python -m examples.replies runs/casino-kl-control DATA/casino_valid.json --partner runs/casino-bc \\
        --output replies.json

In the state before each of the agent's turns in the file (or every so manieth) the policy and its prior, the copy in
the run, say one utterance each, sampled with the same seed. Printed, each with a bootstrap interval over dialogues: the
sentiment of what they say themselves; the sentiment of a SIMULATED reply, that of a language model which plays the
partner by the same text with the roles exchanged, and which is no person; KL(pi || p) a word of what the policy said,
over the whole vocabulary; and distinct-1 and -2, the share of different words and pairs of words.

Decision: contexts are the log's own and one utterance deep, so nothing that the policy says feeds back into what it
reads. The partner is the dialogue's other seat, which knows its own priorities.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets_prep import casino
from datasets_prep.rewards import Heard, sentiment
from ilql import decode
from ilql.atomic import write_text
from ilql.command import guard
from ilql.copies import prior_hidden
from ilql.data import collate
from ilql.decode import LMPolicy
from ilql.model import ILQLModel
from ilql.report import bootstrap
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

Context = tuple[str, list[Turn], Turn]  # the dialogue, what was said, and what the other seat was told at first


def contexts(path: Path, every: int) -> list[Context]:
    """The states before the agent's turns that follow a turn of the partner, both seats."""
    episodes = [e for e in casino.episodes([path], seed=0) if isinstance(e, Episode)]
    told = {e.id: e.turns[0] for e in episodes}
    found = []
    for e in episodes:
        dialogue, side = e.id.rsplit(":", 1)
        other = told[f"{dialogue}:{'b' if side == 'a' else 'a'}"]
        for k, turn in enumerate(e.turns):
            if turn.role == AGENT and k > 1 and e.turns[k - 1].role == PARTNER:
                found.append((dialogue, list(e.turns[:k]), other))
    return found[::every]


def exchanged(turns: Sequence[Turn], said: str, other: Turn) -> list[Turn]:
    """The dialogue as the other seat knows it, after the agent has said something."""
    swap = {AGENT: PARTNER, PARTNER: AGENT}
    return [other, *(Turn(swap[t.role], t.text) for t in turns[1:]), Turn(PARTNER, said)]


@torch.no_grad()
def divergences(policy: LMPolicy, turns: Sequence[Turn], said: str) -> float:
    """KL(pi || p) in nats a word of an utterance that was said, over the whole vocabulary."""
    model, encoder = policy.model, policy.encoder
    row: dict[str, Any] = dict(encoder.encode(Episode("d", [*turns, Turn(AGENT, said)]), "token"))
    row |= {name: np.asarray(row[name], np.int32) for name in ("tokens", "turn", "start", "end")}
    batch = collate([row], gamma=1.0, bos=encoder.bos_id, history=model.config.history, bootstraps=False)
    last = batch.target > int(row["turn"][-1])
    h = model.hidden(*batch.run)
    at = batch.where[batch.target[last] - 1]
    near = prior_hidden(model, h, batch.run)[at]
    logp = model.get_output_embeddings()(h[at]).log_softmax(-1)
    prior: Any = model.prior
    other = prior.get_output_embeddings()(near).log_softmax(-1)
    return float((logp.exp() * (logp - other)).sum(-1).mean())


def distinct(texts: Sequence[str], n: int) -> float:
    """Different runs of n words of all, a share."""
    runs = [run for text in texts for run in zip(*(text.lower().split()[i:] for i in range(n)), strict=False)]
    return len(set(runs)) / len(runs) if runs else float("nan")


def speak(policy: LMPolicy, states: Sequence[Sequence[Turn]], seed: int) -> list[str]:
    torch.manual_seed(seed)
    return policy.respond(states)


def measured(run: Path, partner: Path, found: Sequence[Context], seed: int) -> dict[str, Any]:
    """The figures of a run's policy and of its prior, and what they said."""
    model, encoder = decode.load(run)
    if model.prior is None:
        raise InputError(f"{run} has no prior beside its actor; name a run of an algorithm that has one (kl_control)")
    both = {"policy": model, "prior": near_its_prior(model)}
    other = decode.load_policy(partner, max_new_tokens=60)
    groups = [dialogue for dialogue, _, _ in found]
    states = [turns for _, turns, _ in found]
    out: dict[str, Any] = {"contexts": len(found), "dialogues": len(set(groups))}
    scores: dict[str, dict[str, list[float]]] = {}
    for name, speaker in both.items():
        policy = LMPolicy(speaker, encoder, max_new_tokens=60)
        said = speak(policy, states, seed)
        heard = speak(other, [exchanged(t, s, o) for s, (_, t, o) in zip(said, found, strict=True)], seed + 1)
        own = {"own": [sentiment(Heard(s, None)) for s in said]}
        own["simulated"] = [sentiment(Heard(s, None)) for s in heard]
        scores[name] = own
        out[name] = {key: list(bootstrap(values, groups=groups)) for key, values in own.items()}
        out[name] |= {f"distinct_{n}": distinct(said, n) for n in (1, 2)}
        out[name]["words"] = float(np.mean([len(s.split()) for s in said]))
        if name == "policy":
            away = [divergences(policy, t, s) for t, s in zip(states, said, strict=True)]
            out[name]["kl"] = list(bootstrap(away, groups=groups))
        out[name]["said"] = said[:20]
    for key in ("own", "simulated"):
        gap = np.array(scores["policy"][key]) - np.array(scores["prior"][key])
        out[f"{key}_gained"] = list(bootstrap(gap.tolist(), groups=groups))
    return out


def near_its_prior(model: ILQLModel) -> ILQLModel:
    """The same model with the prior for an actor."""
    other = ILQLModel(model.config, lm=None).to(model.dtype).eval()
    prior: Any = model.prior
    other.lm.load_state_dict(prior.state_dict())
    other.generation_config = model.generation_config
    return other


def shown(figures: dict[str, Any]) -> str:
    def span(values: Sequence[float]) -> str:
        mean, low, high = values
        return f"{mean:.3f} [{low:.3f}, {high:.3f}]"

    lines = [f"{figures['contexts']} contexts of {figures['dialogues']} dialogues"]
    for name in ("policy", "prior"):
        f = figures[name]
        lines.append(
            f"{name:7} own sentiment {span(f['own'])}, simulated reply {span(f['simulated'])}, distinct-1 "
            f"{f['distinct_1']:.3f}, -2 {f['distinct_2']:.3f}, {f['words']:.1f} words"
            + (f", KL {span(f['kl'])} nats a word" if "kl" in f else "")
        )
    lines += [f"{key} sentiment, policy less prior: {span(figures[f'{key}_gained'])}" for key in ("own", "simulated")]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.replies", description=__doc__)
    parser.add_argument("run", type=Path, help="a run with a prior, of kl_control or actor_critic")
    parser.add_argument("contexts", type=Path, help="a file of CaSiNo that was not trained on, casino_valid.json")
    parser.add_argument("--partner", type=Path, required=True, help="a run that plays the partner: the clone")
    parser.add_argument("--every", type=int, default=1, help="take every so manieth context")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON file for the figures and some utterances")
    args = parser.parse_args(argv)

    def work() -> int:
        figures = measured(args.run, args.partner, contexts(args.contexts, args.every), args.seed)
        if args.output:
            write_text(args.output, json.dumps(figures, indent=1) + "\n")
        print(shown(figures))
        return 0

    return guard(work)


if __name__ == "__main__":
    sys.exit(main())
