"""Small things that several tests build: rows written by hand, a trunk that is a table, and a plain re-computation of
the losses over padded [B, T, V] tables that shares no code with the package."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2Config
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutput

from ilql.algos import ALGOS, critic, reads_prior
from ilql.build import ModelConfig, build
from ilql.model import ILQLConfig, ILQLModel
from ilql.proposals import states

BOS = 0
# Every algorithm at every time step that it is defined for.
AT_STEPS = [(name, step) for name, algo in ALGOS.items() for step in algo.STEPS]


def row(
    tokens: list[int],
    start: list[int],
    end: list[int],
    reward: list[float],
    *,
    turn: list[int] | None = None,
    terminated: bool = True,
    name: str = "d",
) -> dict[str, Any]:
    """One dialogue as `Rows` gives it."""
    return {
        "id": name,
        "tokens": np.array(tokens, np.int32),
        "turn": np.array([1] if turn is None else turn, np.int32),
        "start": np.array(start, np.int32),
        "end": np.array(end, np.int32),
        "reward": np.array(reward, np.float64),
        "logp": np.full(len(start), np.nan, np.float32),
        "terminated": terminated,
        "meta": "{}",
    }


def chat_row(rng: np.random.Generator, vocab: int, exchanges: int, *, terminated: bool = True, name: str = "d") -> dict:
    """A random dialogue at token steps: a partner's turn of 1 to 4 tokens, the agent's header, 1 to 4 tokens of the
    agent, and so on; where it is cut off, a partner's turn and the agent's header follow."""
    tokens, turn, start = [BOS], [], []
    for _ in range(exchanges):
        turn.append(len(tokens))
        tokens += rng.integers(1, vocab, rng.integers(1, 5)).tolist()
        turn.append(len(tokens))
        tokens.append(int(rng.integers(1, vocab)))  # the header
        size = int(rng.integers(1, 5))
        start += range(len(tokens), len(tokens) + size)
        tokens += rng.integers(1, vocab, size).tolist()
    if not terminated:
        turn.append(len(tokens))
        tokens += rng.integers(1, vocab, 3).tolist()
        turn.append(len(tokens))
        tokens.append(int(rng.integers(1, vocab)))
    end = [s + 1 for s in start]
    reward, logp = rng.normal(size=len(start)).tolist(), np.full(len(start), -2.5, np.float32)
    return row(tokens, start, end, reward, turn=turn, terminated=terminated, name=name) | {"logp": logp}


def tiny(
    architecture: str = "gpt2", vocab: int = 23, *, seed: int = 0, model: Mapping[str, Any] | None = None, **config: Any
) -> ILQLModel:
    """A float64 model of two layers whose targets differ from its critics, so that a mix-up shows."""
    torch.manual_seed(seed)
    shape = {"layers": 2, "width": 16, "heads": 2, "context": 256, "dtype": "float64", **(model or {})}
    cfg = ModelConfig(architecture=architecture, **shape)
    made = build(cfg, vocab_size=vocab, bos_id=BOS, pad_id=1, end_ids=[2], **config)
    with torch.no_grad():
        for p in [*made.q_target.parameters(), *made.q.parameters()]:
            p.add_(0.3 * torch.randn_like(p))
    return made.eval()


def spoken(row: Mapping[str, Any]) -> dict[str, Any]:
    """A dialogue at token steps as one at utterance steps: actions that follow each other at once are one, and their
    rewards a sum."""
    first = np.flatnonzero(np.append(True, row["start"][1:] != row["end"][:-1]))
    last = np.append(first[1:], len(row["start"])) - 1
    reward = np.add.reduceat(np.asarray(row["reward"], np.float64), first)
    logp = np.add.reduceat(np.asarray(row["logp"], np.float32), first)
    return {**row, "start": row["start"][first], "end": row["end"][last], "reward": reward, "logp": logp}


def proposed(r: dict[str, Any]) -> dict[str, Any]:
    """A dialogue at utterance steps with candidates for its states, made of its own tokens: now none, now the logged
    reply among others or alone, now one twice."""
    tokens, n = r["tokens"].tolist(), len(r["start"])
    given = []
    for i in range(states(n, int(r["end"][-1]), len(tokens), bool(r["terminated"]))):
        logged = tokens[r["start"][i] : r["end"][i]] if i < n else []
        others = [tokens[1:3], [tokens[-1], tokens[1]], tokens[1:3], [*tokens[2:4], tokens[-1]]]
        kinds = [[logged, *others], others, [logged], []]
        given.append(kinds[(i + len(tokens)) % 4] if i < n else others)
    return r | {"proposals": given}


def at_step(rows: list[dict[str, Any]], step: str) -> list[dict[str, Any]]:
    """Dialogues at token steps as those at a time step; of utterances every two are a pair."""
    if step == "token":
        return rows
    return [proposed(spoken(r)) | {"pair": f"pair {i // 2}"} for i, r in enumerate(rows)]


class TableTrunk(nn.Module):
    """h_t is the one-hot of token t: what is learned from it is a table over tokens."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab
        self.config = GPT2Config(vocab_size=vocab, n_embd=vocab)
        self.base_model = self._forward
        self.out = nn.Linear(vocab, vocab, bias=False)
        self.eye = nn.Embedding.from_pretrained(torch.eye(vocab, dtype=torch.float64), freeze=True)

    def _forward(self, input_ids: Tensor, **kwargs: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=self.eye(input_ids))

    def forward(self, input_ids: Tensor, **kwargs: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.out(self.eye(input_ids)))

    def get_output_embeddings(self) -> nn.Module:
        return self.out

    def _init_weights(self, module: nn.Module) -> None: ...


def table_model(vocab: int, critics: int = 1, **config: Any) -> ILQLModel:
    """An ILQLModel in float64 whose heads are tables over one-token states (their hidden layer is the identity)."""
    trunk: Any = TableTrunk(vocab)
    shape = GPT2Config(vocab_size=vocab, n_embd=vocab)
    full = ILQLConfig(text_config=shape, critics=critics, head_width=vocab, **config)
    model = ILQLModel(full, lm=trunk).double()
    for head in [*logits(model), model.v]:
        with torch.no_grad():
            head.hidden.weight.copy_(torch.eye(vocab))
            head.hidden.bias.zero_()
            head.out.weight.zero_()
            head.out.bias.zero_()
        head.hidden.requires_grad_(False)
    return model


def logits(model: ILQLModel) -> list[Any]:
    """The heads over the vocabulary: of the critics, then of the targets; those inside likelihood critics."""
    return [getattr(head, "logits", head) for head in [*model.q, *model.q_target]]


def model_fields(algo: Any, cfg: Any, step: str | None = None) -> dict[str, Any]:
    """What the model of an algorithm is built with, at a time step, by default its first."""
    kind = critic(algo, step or algo.STEPS[0], cfg)
    level = {"baseline": algo.level(np.zeros(1), cfg)} if hasattr(algo, "level") else {}
    own = {"prior": True} if reads_prior(algo, cfg) else {}
    return {"critic": kind, **own, **(algo.fields(np.zeros(1), cfg) if hasattr(algo, "fields") else {}), **level}


def defaults(algo: Any, step: str) -> Any:
    """The algorithm's default settings, without what a time step does not have."""
    whole = step == "utterance" and algo.CRITIC == "vocabulary"
    return algo.Config(**({"cql_weight": 0.0} if whole else {}))


def plain_ilql(model: ILQLModel, rows: list[dict], *, gamma: float, tau: float, cql_weight: float) -> dict[str, Tensor]:
    """The losses of Snell et al. 2022 at token steps over whole tables, one decision at a time."""
    sums = {name: torch.zeros((), dtype=torch.float64) for name in ("q", "v", "cql", "bc")}
    decisions = tokens = 0
    for r in rows:
        ids = torch.tensor(r["tokens"].astype(np.int64))
        h = model.lm.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        table = [q(h) for q in model.q]
        frozen = [q(h).detach() for q in model.q_target]
        v = model.v(h)
        logp = torch.log_softmax(model.lm.get_output_embeddings()(h), -1)
        n = len(r["start"])
        for i in range(n):
            at, action = int(r["start"][i]) - 1, int(ids[int(r["start"][i])])
            tokens += 1
            sums["bc"] = sums["bc"] - logp[at, action]
            if i + 1 < n:
                target = r["reward"][i] + gamma * v[int(r["start"][i + 1]) - 1].detach()
            elif r["terminated"]:
                target = torch.tensor(float(r["reward"][i]), dtype=torch.float64)
            elif len(ids) > int(r["end"][i]):
                target = r["reward"][i] + gamma * v[len(ids) - 1].detach()
            else:
                continue  # nothing to bootstrap from
            decisions += 1
            u = min(f[at, action] for f in frozen) - v[at]
            sums["v"] = sums["v"] + (tau if u >= 0 else 1 - tau) * u**2
            for q in table:
                sums["q"] = sums["q"] + (q[at, action] - target) ** 2
                sums["cql"] = sums["cql"] - cql_weight * torch.log_softmax(q[at], -1)[action]
    return {k: s / (tokens if k == "bc" else decisions) for k, s in sums.items()}


def plain_utterances(model: ILQLModel, rows: list[dict], *, gamma: float, tau: float) -> dict[str, Tensor]:
    """The losses of implicit Q-learning at utterance steps, each state and each utterance read by itself."""
    terms: dict[str, list[Tensor]] = {"q": [], "v": [], "bc": []}

    def read(tokens: np.ndarray) -> Tensor:
        ids = torch.tensor(tokens.astype(np.int64))[None]
        return model.lm.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]

    for r in rows:
        tokens, n = r["tokens"], len(r["start"])
        for i, (start, end) in enumerate(zip(r["start"].tolist(), r["end"].tolist(), strict=True)):
            before, behind = read(tokens[:start])[-1], read(tokens[:end])[-1]
            said = read(tokens[: end - 1])[start - 1 :]
            logp = torch.log_softmax(model.lm.get_output_embeddings()(said), -1)
            terms["bc"] += [-logp[k, int(tokens[start + k])] for k in range(end - start)]
            target = torch.tensor(float(r["reward"][i]), dtype=torch.float64)
            if i + 1 < n:
                target = target + gamma * model.v(read(tokens[: r["start"][i + 1]])[-1]).detach()
            elif not r["terminated"]:
                if len(tokens) == end:
                    continue  # nothing to bootstrap from
                target = target + gamma * model.v(read(tokens)[-1]).detach()
            u = min(q(behind).detach() for q in model.q_target) - model.v(before)
            terms["v"].append((tau if u >= 0 else 1 - tau) * u**2)
            terms["q"].append(sum((q(behind) - target) ** 2 for q in model.q))
    return {name: torch.stack(each).mean() for name, each in terms.items()}


def stats(**vectors: Any) -> SimpleNamespace:
    """An `Out` by hand: float64 vectors under its names."""
    return SimpleNamespace(**{k: torch.tensor(v, dtype=torch.float64) for k, v in vectors.items()})
