"""Trunks with a state: dialogues are read apart, in training and in decoding, and the past that is kept is the past."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from datasets_prep.build import Options, build
from ilql import packed
from ilql.algos import ilql
from ilql.build import ModelConfig
from ilql.build import build as build_model
from ilql.config import load_config
from ilql.data import collate
from ilql.decode import LMPolicy, load
from ilql.envs.recall import make
from ilql.generation import Choice, Generator
from ilql.kv import AnewRows, TrunkRows, rows_of
from ilql.learner import Learner
from ilql.model import ILQLModel
from ilql.recurrent import is_recurrent
from ilql.rollout import rollout
from ilql.trainer import train
from ilql.types import InputError
from tests.toys import BOS, chat_row, plain_ilql, tiny

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = {
    "mamba": {},
    "falcon_mamba": {},
    "mamba2": {"num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "jamba": {"num_experts": 1, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "olmo_hybrid": {},
    "rwkv": {},
}
PROMPTS = [[0, 3, 4, 5, 6, 7, 8], [0, 9, 3], [0, 4, 4, 5, 8]]


def small(family: str) -> ILQLModel:
    return tiny(family, model={"extra": FAMILIES[family]})


def loop(model: ILQLModel, prompt: list[int], tokens: int = 6) -> list[int]:
    """Greedy, the whole dialogue read anew, alone and without padding, for every token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + tokens and ids[-1] != 2:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), beta=2.0, use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_dialogues_of_a_batch_are_read_apart(family):
    model = small(family)
    assert is_recurrent(model.lm)
    assert not packed.supports(model.lm)
    rng = np.random.default_rng(0)
    rows = [chat_row(rng, 23, n, name=f"d{n}") for n in (3, 1, 2)]
    batch = collate(rows, gamma=0.9, bos=BOS, acted=False).to("cpu", torch.float64)
    with torch.no_grad():
        together = model.hidden(*batch.run)[batch.where[batch.state]]
        alone = []
        for r in rows:
            ids = torch.from_numpy(r["tokens"].astype(np.int64))[None]
            alone.append(model.lm.base_model(ids, use_cache=False).last_hidden_state[0, r["start"] - 1])
    near = 1e-5 if family in ("mamba2", "olmo_hybrid") else 1e-9  # whose scans are in float32 and by chunks
    torch.testing.assert_close(together, torch.cat(alone), rtol=near, atol=near)


@pytest.mark.parametrize("family", ["mamba", "olmo_hybrid"])
def test_losses_are_those_of_dialogues_one_by_one(family):
    model = small(family)
    rng = np.random.default_rng(1)
    rows = [chat_row(rng, 23, n, name=f"d{n}", terminated=n != 2) for n in (3, 1, 2)]
    batch = collate(rows, gamma=0.9, bos=BOS, acted=False).to("cpu", torch.float64)
    got = Learner(model, ilql, ilql.Config(gamma=0.9, tau=0.7, cql_weight=0.1))(batch)
    for name, want in plain_ilql(model, rows, gamma=0.9, tau=0.7, cql_weight=0.1).items():
        torch.testing.assert_close(got[name].mean(), want, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_a_loop_without_a_past(family):
    model = small(family)
    want = [loop(model, prompt) for prompt in PROMPTS]
    answer = Generator(model, pad=1, ends=[2])(PROMPTS, [6] * 3, Choice(beta=2.0, temperature=None))
    assert answer == want
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[1] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    made = model.generate(ids, attention_mask=mask, beta=2.0, max_new_tokens=6, do_sample=False)
    for row, answer in zip(made[:, width:].tolist(), want, strict=True):
        assert row[: len(answer)] == answer


def test_what_is_kept_of_the_past_is_tried():
    assert rows_of(small("mamba").lm) is rows_of(small("lfm2").lm) is TrunkRows
    assert rows_of(small("rwkv").lm) is AnewRows  # knows no padding in front
    assert rows_of(tiny("llama").lm) is TrunkRows


def test_rows_that_leave_take_their_state_with_them():
    lm = small("mamba").lm
    rows, anew = (kind(lm, PROMPTS, 1) for kind in (TrunkRows, AnewRows))
    with torch.no_grad():
        for step in range(3):
            tokens = torch.tensor([3, 4, 5][: 3 - step])
            have, want = (r.step(tokens) if step else r.prefill() for r in (rows, anew))
            torch.testing.assert_close(have, want, rtol=1e-6, atol=1e-6)  # parts of Mamba are in float32 always
            for r in (rows, anew):
                r.keep(torch.tensor([[2, 1], [1]][step]) if step < 2 else torch.tensor([0]))


def test_a_critics_own_trunk_may_be_recurrent():
    model = tiny("mamba", model={"critic_trunk": "own"})
    with torch.no_grad():
        for p in model.critic_trunk.parameters():
            p.add_(0.1 * torch.randn_like(p))
    want = [loop(model, prompt) for prompt in PROMPTS]
    assert Generator(model, pad=1, ends=[2])(PROMPTS, [6] * 3, Choice(beta=2.0, temperature=None)) == want


def test_a_past_from_outside_is_refused():
    with pytest.raises(InputError, match="takes no past from outside"):
        small("mamba")(input_ids=torch.tensor([[0, 3]]), past_key_values=object(), use_cache=True)


@pytest.mark.parametrize("freeze", ["trunk", 1])
def test_a_frozen_part_stays(freeze):
    model = tiny("mamba", model={"freeze": freeze})
    moving = [name for name, p in model.lm.named_parameters() if p.requires_grad]
    assert all("layers.1" in name or "norm_f" in name for name in moving)
    assert bool(moving) == (freeze == 1)


def test_a_pretrained_one_is_taken(tmp_path):
    tiny("mamba").lm.save_pretrained(tmp_path / "mamba")
    cfg = ModelConfig(pretrained=str(tmp_path / "mamba"), dtype="float64")
    model = build_model(cfg, vocab_size=23, bos_id=0, pad_id=1, end_ids=[2])
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "mamba", dtype=torch.float64)
    ids = torch.tensor([[0, 3, 4]])
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids).logits, again(input_ids=ids).logits.double(), rtol=1e-5, atol=1e-5
        )


def test_the_recipe_of_the_word_trains_on_a_recurrent_trunk_and_plays(tmp_path):
    options = {"turn_tokens": True, "corpus_options": {"dialogues": 40, "delay": 2}}
    build(Options("recall", output=tmp_path / "data", tokenizer="word", **options))
    words = [
        "--data.path",
        str(tmp_path / "data"),
        "--output",
        str(tmp_path / "run"),
        "--steps",
        "2",
        "--log.every",
        "1",
    ]
    words += ["--batch.dialogues", "4", "--model.architecture", "mamba", "--model.width", "16", "--device", "cpu"]
    run = train(load_config(["--config", str(ROOT / "examples" / "recall_ilql.yaml"), *words]))
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == [1, 2]
    assert logged[0]["total"] != logged[1]["total"]
    model, encoder = load(run)
    played = rollout(LMPolicy(model, encoder, beta=4.0, max_new_tokens=1), make(delay=2), range(4), progress=False)
    assert all(episode.terminated for episode in played)
