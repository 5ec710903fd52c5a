"""Embeddings by spelling: what is alike in them, that nothing else of a fresh model changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ilql.config import TrainConfig
from ilql.feed import read
from ilql.initial import make_model
from ilql.model import ILQLModel
from ilql.spelling import spelled
from ilql.types import InputError
from tests import tiny as runs

WORDS = ["crane", "crate", "nacre", "moist", "<|end|>"]
VOCABULARY = {word: row for row, word in enumerate(WORDS)}


def likeness(vectors: torch.Tensor, a: str, b: str) -> float:
    return float(torch.cosine_similarity(vectors[VOCABULARY[a]], vectors[VOCABULARY[b]], dim=0))


def test_tokens_are_as_near_as_their_letters() -> None:
    """crane and crate share four letters at their places; nacre has the letters of crane, one at its place."""
    torch.manual_seed(0)
    vectors = spelled(VOCABULARY, len(WORDS), 4096)
    assert likeness(vectors, "crane", "crate") > likeness(vectors, "crane", "nacre") + 0.1
    assert likeness(vectors, "crane", "nacre") > likeness(vectors, "crane", "moist") + 0.2
    assert torch.allclose(vectors.square().mean(1), torch.ones(len(WORDS)))


def test_the_same_seed_spells_alike_whatever_the_order_of_the_vocabulary() -> None:
    drawn = []
    for vocabulary in (VOCABULARY, dict(reversed(VOCABULARY.items()))):
        torch.manual_seed(0)
        drawn.append(spelled(vocabulary, len(WORDS) + 2, 8))
    assert torch.equal(*drawn)
    assert len(drawn[0].unique(dim=0)) == len(WORDS) + 2  # rows of no token are apart, too


def fresh(folder: Path, **model: Any) -> ILQLModel:
    cfg: TrainConfig = runs.config(folder / "data", folder / "run", model=model)
    torch.manual_seed(0)
    return make_model(cfg, read(cfg, 0, 1))


@pytest.mark.parametrize("more", [{}, {"critic_trunk": "own", "target_trunk": "average"}, {"architecture": "llama"}])
@pytest.mark.parametrize("tied", [True, False])
def test_only_the_embeddings_begin_elsewhere(more: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    runs.dataset(tmp_path / "data")
    options = more | {"extra": {"tie_word_embeddings": tied}}
    plain, model = fresh(tmp_path, **options), fresh(tmp_path, embedding="spelled", **options)
    both = model.lm.get_input_embeddings(), model.lm.get_output_embeddings()
    words = [module.get_parameter("weight").detach() for module in both]
    assert torch.allclose(words[0] / words[0].std(), words[1] / words[1].std())
    state = plain.state_dict()
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, state[name])}
    family = "embed_tokens" if "architecture" in more else "wte"
    assert {name.rsplit(".", 2)[-2] for name in moved} == {family, "lm_head"}
    for trunk in (model.critic_trunk, model.target_trunk):
        assert trunk is None or torch.equal(trunk.get_input_embeddings().weight, words[0])
    old = plain.lm.get_input_embeddings().get_parameter("weight").detach()
    assert float(words[0].std() / old.std()) == pytest.approx(1, abs=0.05)


def test_a_pretrained_model_has_its_embeddings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.embedding spelled is for training from scratch"):
        runs.config(tmp_path, tmp_path / "run", model={"pretrained": "gpt2", "embedding": "spelled"})
