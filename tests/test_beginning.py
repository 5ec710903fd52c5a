"""Numbers that a dialogue begins with: every state sees them, wherever it is computed, and nobody else's."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets_prep.build import Options, build
from datasets_prep.encode import Encoder
from ilql.beginning import Beginning, Table, begun, prompts, token
from ilql.copies import prior_hidden
from ilql.data import collate
from ilql.decode import LMPolicy, load, score
from ilql.export import export
from ilql.model import ILQLConfig, ILQLModel
from ilql.propose import propose
from ilql.rollout import to_log
from ilql.rows import Rows
from ilql.trainer import train
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn
from tests.tiny import config

F, BOS, V = 3, 0, 40
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "llama": {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
}


def model(shape: str = "gpt2", prefix: bool = True, **more: Any) -> ILQLModel:
    torch.manual_seed(0)
    text = {**SHAPES[shape], "vocab_size": V, "bos_token_id": BOS, "eos_token_id": 1, "pad_token_id": 2}
    cfg = ILQLConfig(text_config=text, prefix={"size": F, "bos": BOS} if prefix else None, **more)
    made = ILQLModel(cfg).double().eval()
    if made.beginning is not None:
        torch.nn.init.normal_(made.beginning.weight)
    made.generation_config.bos_token_id, made.generation_config.pad_token_id = BOS, 2
    made.generation_config.eos_token_id = 1
    return made


def row(tokens: list[int], prefix: list[float] | None, name: str = "x", history: bool = False) -> dict[str, Any]:
    """BOS and a turn of the partner, one of the agent, another of each."""
    n = len(tokens)
    at = {"turn": [1, n // 3, n // 2, n - 2], "start": [n // 3, n - 2], "end": [n // 2, n]}
    found = {key: np.array(value, np.int32) for key, value in at.items()}
    found |= {"tokens": np.array(tokens, np.int32), "reward": np.zeros(2, np.float32), "terminated": True, "id": name}
    return found if prefix is None else found | {"prefix": np.array(prefix, np.float32)}


TOKENS = [BOS, *range(5, 34)]
ONE, TWO = [1.0, -2.0, 0.5], [0.0, 1.0, 3.0]


def by_hand(made: ILQLModel, tokens: list[int], prefix: list[float]) -> torch.Tensor:
    """h of one dialogue alone, through embeddings that are made here."""
    vectors = made.lm.get_input_embeddings()(torch.tensor(tokens))
    vectors = torch.cat([vectors[:1] + made.beginning.weight @ torch.tensor(prefix).double(), vectors[1:]])
    return made.lm.base_model(inputs_embeds=vectors[None], use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("history", [None, 1])
def test_rows_of_equal_tokens_and_other_prefixes_share_nothing(shape: str, history: int | None) -> None:
    made = model(shape)
    rows = [row(TOKENS, ONE), row(TOKENS, TWO), row(TOKENS, ONE), row([*TOKENS[:-1], 4], TWO)]
    batch = collate(rows, gamma=0.9, bos=BOS, history=history)
    hidden = made.hidden(*batch.run)[batch.where[batch.state]].view(4, 2, -1)
    assert torch.equal(hidden[0], hidden[2])
    assert (hidden[0] - hidden[1]).abs().amax(1).min() > 1e-3
    states = [TOKENS[:10], TOKENS[:28]] if history is None else [TOKENS[:10], [BOS, *TOKENS[15:28]]]
    for given, found in zip((ONE, TWO, ONE, TWO), hidden, strict=True):
        for state, h in zip(states, found, strict=True):
            torch.testing.assert_close(h, by_hand(made, state, given)[-1], rtol=1e-9, atol=1e-9)
    if history is None:
        assert len(batch.run.tokens) < 3 * len(TOKENS)  # what is alike, prefix and all, is computed once


def test_the_projection_learns_and_positions_stay() -> None:
    made, plain = model(), model(prefix=False)
    batch = collate([row(TOKENS, ONE), row(TOKENS, TWO)], gamma=0.9, bos=BOS)
    bare = collate([row(TOKENS, None)], gamma=0.9, bos=BOS)
    assert batch.run.position.tolist() == bare.run.position.tolist() * 2
    made.hidden(*batch.run).square().sum().backward()
    assert made.beginning is not None
    assert made.beginning.weight.grad is not None
    assert (made.beginning.weight.grad.abs() > 0).all()
    torch.nn.init.zeros_(made.beginning.weight)  # then the numbers say nothing
    of_both = made.hidden(*batch.run)[batch.where[batch.state]]
    torch.testing.assert_close(of_both, plain.hidden(*bare.run)[bare.where[bare.state]].repeat(2, 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_generate_reads_it_once_under_padding_caches_and_beams(shape: str) -> None:
    made = model(shape)
    ids = torch.tensor([[2, 2, BOS, 7, 8, 9], [BOS, 5, 6, 7, 8, 9]])
    mask = (ids != 2).long()
    prefix = torch.tensor([ONE, TWO]).double()
    for row_, own in zip(ids, (ONE, TWO), strict=True):
        alone = row_[row_ != 2].tolist()
        wanted = alone[:]
        for _ in range(6):
            head = made.get_output_embeddings()
            wanted.append(int(head(by_hand(made, wanted, own)[-1]).argmax()))
            if wanted[-1] == 1:
                break
        table = torch.tensor([own]).double()
        for cache in (True, False):
            found = made.generate(
                torch.tensor([alone]), prefix=table, max_new_tokens=6, do_sample=False, use_cache=cache
            )
            assert found[0].tolist() == wanted
    place = (mask.cumsum(1) - 1).clamp(min=0)
    logits = made(ids, mask, place, prefix=prefix).logits[:, -1]
    for k, own in enumerate((ONE, TWO)):
        alone = ids[k][mask[k] == 1].tolist()
        torch.testing.assert_close(logits[k], made.get_output_embeddings()(by_hand(made, alone, own)[-1]))
    beams = made.generate(ids, attention_mask=mask, prefix=prefix, max_new_tokens=4, num_beams=3, do_sample=False)
    swapped = made.generate(
        ids.flip(0), attention_mask=mask.flip(0), prefix=prefix.flip(0), max_new_tokens=4, num_beams=3, do_sample=False
    )
    assert torch.equal(beams, swapped.flip(0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "reads a prefix of 3 numbers with every dialogue, but none is given"),
        (torch.zeros(2, 4), r"but one of shape \(4,\) is given"),
        (torch.full((2, F), torch.nan), "not finite"),
    ],
)
def test_a_prefix_that_a_model_cannot_read(given: Any, message: str) -> None:
    ids = torch.tensor([[BOS, 7], [BOS, 8]])
    with pytest.raises(InputError, match=message):
        model()(ids, prefix=given)
    with pytest.raises(InputError, match="trained without any"):
        model(prefix=False)(ids, prefix=torch.zeros(2, F))
    with pytest.raises(InputError, match="but none is given"):
        model().hidden(*collate([row(TOKENS, None)], gamma=0.9, bos=BOS).run)
    with pytest.raises(InputError, match="trained without any"):
        model(prefix=False).hidden(*collate([row(TOKENS, ONE)], gamma=0.9, bos=BOS).run)
    for more in ({"critic_trunk": "own"}, {"target_trunk": "average"}, {"prior": True, "prior_words": 3}):
        with pytest.raises(InputError, match="read by the shared trunk and the prior alone"):
            model(**more)


def test_the_prior_keeps_the_projection_of_the_start() -> None:
    made = model(prior=True)
    made.begin_actors()
    batch = collate([row(TOKENS, ONE)], gamma=0.9, bos=BOS)
    hidden = made.hidden(*batch.run)
    before = prior_hidden(made, hidden, batch.run)
    torch.testing.assert_close(before, hidden)
    with torch.no_grad():
        made.beginning.weight.add_(1.0)  # type: ignore[union-attr]
    assert torch.equal(prior_hidden(made, hidden, batch.run), before)
    assert not made.beginning_prior.weight.requires_grad  # type: ignore[union-attr]


def test_tokens_of_a_table() -> None:
    table = Table()
    assert [table.token(x) for x in (ONE, TWO, ONE)] == [-1, -2, -1]
    found = table.tensor()
    assert found is not None
    assert found.tolist() == [ONE, TWO]
    assert token(1) == -2
    assert Table().tensor() is None
    ids = torch.tensor([[2, BOS, 7], [BOS, 2, 8]])
    assert begun(ids, torch.tensor([[0, 1, 1], [1, 1, 1]])).tolist() == [[2, -1, 7], [-2, 2, 8]]
    embedding = torch.nn.Embedding(4, 2)
    with pytest.raises(InputError, match="reads 3 numbers"), Beginning(3, 2, 0).read(embedding, torch.zeros(1, 2)):
        pass
    with pytest.raises(IndexError):
        embedding(torch.tensor([-1]))  # outside of it an id below 0 is none


# ---- from logs to answers --------------------------------------------------------------------------------------------


def episodes(count: int = 64) -> list[Episode]:
    """What is right to say stands in the prefix alone."""
    turns = {k: (Turn(PARTNER, "which?"), Turn(AGENT, word, 1.0)) for k, word in enumerate(("red", "blue"))}
    return [Episode(f"e{i}", turns[i % 2], True, {}, prefix=[float(i % 2), 1.0 - i % 2, 0.5]) for i in range(count)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beginning")
    (folder / "log.jsonl").write_text("".join(json.dumps(to_log(e)) + "\n" for e in episodes()))
    build(Options("chat", folder / "data", [folder / "log.jsonl"], tokenizer="word"))
    train(config(str(folder / "data"), folder / "run", "bc", steps=60, optim={"lr": 0.01}))
    return folder


def test_a_log_with_a_prefix_becomes_a_policy_that_reads_it(place: Path) -> None:
    rows = Rows(place / "data")
    assert rows.prefix == F
    assert rows[1]["prefix"].tolist() == [1.0, 0.0, 0.5]
    made, encoder = load(place / "run")
    policy = LMPolicy(made, encoder, greedy=True, max_new_tokens=4)
    some = episodes(6)
    said = policy.respond([e.turns[:1] for e in some], prefix=[e.prefix for e in some])
    assert said == ["red", "blue"] * 3
    assert made.respond(some[1].turns[:1], prefix=some[1].prefix, greedy=True, max_new_tokens=4) == "blue"
    mine = [sum(one.logp for one in score(made, e, encoder)) for e in some[:2]]
    wrong = [Episode("w", some[0].turns, prefix=some[1].prefix), Episode("w", some[1].turns, prefix=some[0].prefix)]
    assert all(sum(one.logp for one in score(made, e, encoder)) < m - 1 for e, m in zip(wrong, mine, strict=True))
    with pytest.raises(InputError, match="but none is given"):
        policy.respond([some[0].turns[:1]])
    with pytest.raises(InputError, match="but none is given"):
        score(made, some[0].turns, encoder)
    sampled = LMPolicy(made, encoder, max_new_tokens=4)
    assert sampled.respond([e.turns[:1] for e in some], prefix=[e.prefix for e in some]) == said


def test_a_run_goes_on_only_with_a_prefix_of_as_many_numbers(place: Path, tmp_path: Path) -> None:
    again = config(str(place / "data"), tmp_path / "on", "bc", steps=1, init_from=str(place / "run"))
    train(again)
    log = tmp_path / "plain.jsonl"
    log.write_text('{"messages": [{"role": "user", "content": "which?"}, {"role": "assistant", "content": "red"}]}\n')
    build(Options("chat", tmp_path / "plain", [log], tokenizer=str(place / "data" / "tokenizer")))
    with pytest.raises(InputError, match="reads 3 numbers with every dialogue, and the dataset has none"):
        train(config(str(tmp_path / "plain"), tmp_path / "off", "bc", steps=1, init_from=str(place / "run")))
    with pytest.raises(InputError, match="another prefix"):
        train(config([str(place / "data"), str(tmp_path / "plain")], tmp_path / "mix", "bc", steps=1))  # type: ignore[arg-type]


def test_a_plain_model_would_forget_it(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reads a prefix of 3 numbers, and a plain model reads none"):
        export(place / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_candidates_are_judged_with_it(place: Path, tmp_path: Path) -> None:
    """Critics drawn at random value a candidate by the prefix as `score` does, and the best by these values is said."""
    both = [
        replace(e, id=f"{e.id}-{word}", turns=(e.turns[0], Turn(AGENT, word, 1.0)))
        for e in episodes(16)
        for word in ("red", "blue")
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(to_log(e)) + "\n" for e in both))
    tokenizer = str(place / "data" / "tokenizer")
    build(Options("chat", tmp_path / "data", [tmp_path / "log.jsonl"], step="utterance", tokenizer=tokenizer))
    train(config(tmp_path / "data", tmp_path / "run", "mc", steps=40, optim={"lr": 0.01}, mc={"cql_weight": 0.0}))
    made, encoder = load(tmp_path / "run")
    torch.manual_seed(0)
    for weight in made.q.parameters():
        torch.nn.init.normal_(weight)
    made.sync_targets()
    prefixes, first = (4 * torch.randn(6, F)).tolist(), both[0].turns[:1]
    policy = LMPolicy(made, encoder, candidates=2, beta=1.0, greedy=True, max_new_tokens=4)
    with prompts(made, prefixes, [policy.prompt(first)] * 6) as told:
        found = propose(policy, told, 2, temperature=None, judged=True)
    best = []
    for given, some in zip(prefixes, found, strict=True):
        texts = [encoder.text(one.tokens) for one in some]
        alone = [Episode("x", (*first, Turn(AGENT, text)), prefix=given) for text in texts]
        q = [score(made, episode, encoder)[-1].q for episode in alone]
        assert [one.q for one in some] == pytest.approx(q, rel=1e-5)
        best.append(max(zip(q, texts, strict=True))[1])  # type: ignore[type-var]
    assert len({some[0].q for some in found}) == 6
    assert policy.respond([first] * 6, prefix=prefixes) == best


def test_an_encoder_writes_it_and_a_deep_copy_keeps_it(place: Path) -> None:
    encoder = Encoder.from_folder(place / "data" / "tokenizer")
    assert encoder.encode(episodes(2)[1], "token")["prefix"].tolist() == [1.0, 0.0, 0.5]
    assert copy.deepcopy(load(place / "run")[0]).config.prefix == {"size": F, "bos": encoder.bos_id}
