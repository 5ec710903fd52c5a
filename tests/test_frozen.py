"""What is frozen stays, all else moves; dropout is off in it, and no activation of it is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from ilql import checkpoint, frozen
from ilql.build import ModelConfig, build
from ilql.model import ILQLModel
from ilql.prefix import apart
from ilql.trainer import train
from ilql.types import InputError
from tests.test_trainer import fresh, rows, same, stop_at, weights
from tests.tiny import config, dataset

OPT = {"ffn_dim": 64, "word_embed_proj_dim": 32, "do_layer_norm_before": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("tiny") / "data")


def made(freeze: Any, architecture: str = "gpt2", **options: Any) -> ILQLModel:
    cfg = ModelConfig(architecture=architecture, layers=3, width=32, heads=2, context=64, freeze=freeze, **options)
    return build(cfg, vocab_size=50, bos_id=0, pad_id=1, end_ids=[2])


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


HEADS = {f"{h}.{part}.{kind}" for h in ("q.0", "q.1", "v") for part in ("hidden", "out") for kind in ("weight", "bias")}
TARGETS = {name.replace("q.", "q_target.") for name in HEADS if name.startswith("q.")}


def is_trained(name: str, freeze: Any, tied: bool) -> bool:
    """By the names of GPT-2's weights."""
    if not name.startswith("lm."):
        return True
    if name == "lm.lm_head.weight":
        return not tied
    if freeze == "trunk":
        return False
    return name.startswith("lm.transformer.ln_f") or any(
        name.startswith(f"lm.transformer.h.{i}.") for i in range(freeze, 3)
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("freeze", ["trunk", 0, 1, 2])
def test_exactly_what_is_not_frozen_moves(data: Path, tmp_path: Path, freeze: Any, tied: bool) -> None:
    model = {"layers": 3, "freeze": freeze, "extra": {"tie_word_embeddings": tied}, "dropout": 0.1}
    cfg = config(data, tmp_path / "run", model=model, steps=3)
    before = {name: tensor.clone() for name, tensor in checkpoint.model_tensors(fresh(cfg)).items()}
    after = weights(train(cfg))
    assert moved(before, after) == {name for name in before if is_trained(name, freeze, tied)}
    assert len(moved(before, after)) >= len(HEADS | TARGETS)
    optimized = checkpoint.load(tmp_path / "run" / "checkpoints" / "step-3")[0]["optimizer"]
    assert {name.rsplit("/", 1)[0] for name in optimized} == moved(before, after) - TARGETS


def test_a_frozen_run_is_resumed_and_started_from_frozen(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "steps": 6,
        "model": {"layers": 3, "freeze": 1, "dropout": 0.1},
        "log": {"every": 2, "validate_every": 3, "checkpoint_every": 2},
    }
    whole = train(config(data, tmp_path / "whole", **options))
    cfg = config(data, tmp_path / "part", **options)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    train(cfg, resume=True)
    same(whole, tmp_path / "part")
    loaded = ILQLModel.from_pretrained(whole / "model").train()
    mine = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert mine == {name for name in weights(whole) if is_trained(name, 1, True)} - TARGETS
    assert not loaded.lm.transformer.h[0].training
    assert loaded.lm.transformer.h[1].training
    further = config(data, tmp_path / "next", init_from=str(whole), model={"layers": 3, "freeze": "trunk"})
    last = weights(train(further))
    assert not any(name.startswith("lm.") for name in moved(weights(whole), last))
    free = config(data, tmp_path / "free", model={"layers": 3, "pretrained": str(whole / "model")}, steps=1)
    assert all(p.requires_grad for p in fresh(free).lm.parameters())


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt", "gpt_neox", "phi"])
def test_blocks_and_what_lies_below_them_are_found(architecture: str) -> None:
    model = made(2, architecture, extra=OPT if architecture == "opt" else {}, dropout=0.1)
    assert len(frozen.blocks(model.lm)) == 3
    free = {name for name, p in model.lm.base_model.named_parameters() if p.requires_grad}
    (path,) = [n for n, m in model.lm.base_model.named_modules() if m is frozen.blocks(model.lm)]
    assert {n for n in free if n.startswith(f"{path}.")} == {
        n for n, _ in model.lm.base_model.named_parameters() if n.startswith(f"{path}.2.")
    }
    rest = {n for n in free if not n.startswith(path)}
    assert rest
    assert all("norm" in name or "ln_f" in name for name in rest), rest
    model.train()
    dropping = [n for n, m in model.lm.base_model.named_modules() if isinstance(m, nn.Dropout) and m.training]
    assert all(name.startswith(f"{path}.2.") for name in dropping), dropping


def test_a_list_within_a_block_is_no_list_of_blocks() -> None:
    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.ModuleDict({"experts": nn.ModuleList([nn.Identity()] * 8)}) for _ in "ab")

    lm: Any = type("LM", (), {"base_model": Base()})()
    assert frozen.blocks(lm) is lm.base_model.layers


def test_a_frozen_trunk_keeps_no_activations_and_drops_nothing() -> None:
    tokens, position = torch.arange(6), torch.arange(6)
    model = made("trunk", dropout=0.5).train()
    assert model.training
    assert model.v is not None
    assert model.v.training
    h = model.hidden(tokens, position, apart([6]))
    assert not h.requires_grad
    assert torch.equal(h, model.hidden(tokens, position, apart([6])))
    saved: list[Tensor] = []
    part = made(2, dropout=0.5).train()
    seen: list[Tensor] = []
    part.lm.base_model.h[2].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        assert part.hidden(tokens, position, apart([6])).requires_grad
    part.hidden(tokens, position, apart([6]))
    assert torch.equal(*seen), "no dropout below the trained block"
    assert not seen[0].requires_grad
    count = len(saved)
    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        made(1).hidden(tokens, position, apart([6]))
    assert count < len(saved), "one block more keeps more"


def test_a_run_that_trains_nothing_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.freeze: trunk leaves no weight to train: .* tied .*model\.freeze: N"):
        train(config(data, tmp_path / "run", "bc", model={"freeze": "trunk"}))
    assert not (tmp_path / "run").exists()
    untied = train(
        config(data, tmp_path / "run", "bc", model={"freeze": "trunk", "extra": {"tie_word_embeddings": False}})
    )
    assert rows(untied)[-1]["bc"] < rows(untied)[0]["bc"]


def test_a_tied_actor_is_the_frozen_one(data: Path, tmp_path: Path) -> None:
    found = rows(train(config(data, tmp_path / "run", model={"freeze": "trunk"}, batch={"dialogues": 99}, steps=3)))
    assert found[0]["bc"] == pytest.approx(found[2]["bc"], rel=1e-12)
    assert found[2]["q"] != found[0]["q"]


@pytest.mark.parametrize("number", [2, 7])
def test_more_blocks_than_there_are_are_refused(data: Path, tmp_path: Path, number: int) -> None:
    with pytest.raises(InputError, match=rf"model\.freeze is {number}, but the trunk has 2 blocks: name 0 to 1, or"):
        train(config(data, tmp_path / "run", model={"freeze": number}))
    with pytest.raises(InputError, match=r"model\.freeze is -1"):
        config(data, tmp_path / "run", model={"freeze": -1})


# ---- identity --------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_frozen_part_alone(tmp_path: Path) -> None:
    model = made("trunk", extra={"tie_word_embeddings": False})
    lm: Any = model.lm
    whole, two = frozen.digest(lm, "trunk"), frozen.digest(lm, 2)
    assert len({whole, two, frozen.digest(lm, 1)}) == 3
    lm.save_pretrained(tmp_path / "plain")
    for dtype in (torch.float32, torch.float64):
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=dtype)
        assert frozen.digest(again, "trunk") == whole
        assert frozen.digest(again, 2) == two
    for target, changes_whole, changes_two in (
        (lm.lm_head.weight, False, False),
        (lm.transformer.ln_f.weight, True, False),
        (lm.transformer.h[1].mlp.c_fc.weight, True, True),
    ):
        before = target.detach().clone()
        with torch.no_grad():
            target.view(-1)[3] += 1
        assert (frozen.digest(lm, "trunk") != whole, frozen.digest(lm, 2) != two) == (changes_whole, changes_two)
        with torch.no_grad():
            target.copy_(before)
    narrow = frozen.digest(lm.bfloat16(), "trunk")
    assert narrow != whole
    assert frozen.digest(lm.float(), "trunk") == narrow


def test_the_digest_knows_how_the_weights_are_used() -> None:
    def of(**changes: Any) -> str:
        shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8, "vocab_size": 9} | changes
        cfg = AutoConfig.for_model("gpt2", bos_token_id=0, **{"eos_token_id": 1, **shape})
        torch.manual_seed(0)
        return frozen.digest(AutoModelForCausalLM.from_config(cfg), "trunk")

    same = of()
    assert of(n_head=4) != same
    assert of(activation_function="relu") != same
    assert of(resid_pdrop=0.5, eos_token_id=3, use_cache=False) == same
