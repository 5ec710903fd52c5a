"""Training above frozen blocks from stored states is training above frozen blocks."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ilql import frozen
from ilql.algos import ALGOS
from ilql.annotate import cache
from ilql.border import join
from ilql.build import ModelConfig, build
from ilql.data import collate
from ilql.model import ILQLModel
from ilql.rows import Rows
from ilql.schema import sha256
from ilql.sealed import written
from ilql.trainer import train
from ilql.types import InputError
from tests.test_cached import LOG, stored
from tests.test_frozen import OPT
from tests.test_replay import BOS, assert_same, statistics
from tests.test_trainer import assert_close, refused, rows, same, stop_at, weights
from tests.tiny import config, dataset
from tests.toys import chat_row, tiny

SHAPE: dict[str, Any] = {"layers": 3, "extra": {"tie_word_embeddings": False}, "dropout": 0.0}


class Place:
    """Datasets at both steps, a run to start from, and its caches below the last blocks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = {step: dataset(folder / step, step=step) for step in ("token", "utterance")}
        self.base = train(config(self.data["token"], folder / "base", "bc", steps=2, model=SHAPE))

    def cache(self, step: str = "token", history: int | str = "full", layers: int = 1) -> Path:
        folder = self.folder / f"{step}-{history}-{layers}"
        if not folder.exists():
            cache(self.base, self.data[step], folder, history=history, layers=layers, dtype="float64", tokens=100)
        return folder

    def both(self, output: Path, algo: str = "ilql", step: str = "token", layers: int = 1, **options: Any) -> list[Any]:
        """The config of a run that computes the frozen blocks, and of one that reads them."""
        data = {"path": str(self.data[step]), **options.pop("data", {})}
        folder = str(self.cache(step, data.get("history", "full"), layers))
        options = {"init_from": str(self.base), "log": LOG, "batch": {"dialogues": 5}, **options}
        options["model"] = SHAPE | {"freeze": 3 - layers} | options.get("model", {})
        return [
            config(d, output / name, algo, **options)  # type: ignore[arg-type]
            for name, d in (("plain", data), ("cached", data | {"cache": folder}))
        ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("border"))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    ("history", "algo", "step"),
    [("full", "ilql", "token"), (1, "ilql", "token"), ("full", "bc", "utterance"), (0, "bc", "utterance")],
)
def test_twenty_steps_equal_those_above_frozen_blocks(
    place: Place, tmp_path: Path, algo: str, step: str, history: int | str, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"history": history, "reward_scale": 0.5}
    first, second = place.both(tmp_path, algo, step, layers, steps=20, data=data)
    plain = train(first)
    ran: list[int] = []
    count = frozen.entering

    def entering(lm: Any, *args: Any) -> Any:
        ran.append(sum(isinstance(b, frozen._Skip) for b in frozen.blocks(lm)))
        return count(lm, *args)

    monkeypatch.setattr(frozen, "entering", entering)
    found = train(second)
    assert len(ran) >= 20
    assert_close(plain, found)
    before, after = weights(place.base), weights(found)
    moved = {n for n in before if n.startswith("lm.transformer.h.") and not torch.equal(before[n], after[n])}
    assert moved == {n for n in before if any(n.startswith(f"lm.transformer.h.{i}.") for i in range(3 - layers, 3))}
    assert "validation/total" in rows(found)[-1]


@pytest.mark.parametrize("algo", [name for name, algo in ALGOS.items() if name != "ilql" and stored(algo)])
def test_every_algorithm_reads_stored_states(place: Place, tmp_path: Path, algo: str) -> None:
    plain, found = place.both(tmp_path, algo, ALGOS[algo].STEPS[0], steps=3, batch={"dialogues": None, "tokens": 200})
    assert_close(train(plain), train(found))


def test_dropout_in_trained_blocks_alone(place: Place, tmp_path: Path) -> None:
    # A dialogue a micro-batch: of several, each way lays the tokens in its own order, and other ones drop out.
    options: dict[str, Any] = {"model": {"dropout": 0.2}, "steps": 3, "batch": {"dialogues": 1}}
    plain, found = place.both(tmp_path, **options)
    assert_close(train(plain), train(found))


def test_a_stopped_run_goes_on_to_the_bit(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = {"every": 3, "validate_every": 4, "checkpoint_every": 2, "keep": 3}
    options: dict[str, Any] = {"steps": 9, "log": log, "batch": {"dialogues": 4, "accumulate": 2}}
    whole = train(place.both(tmp_path / "a", **options)[1])
    cfg = place.both(tmp_path / "b", **options)[1]
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    train(cfg, resume=True)
    same(whole, tmp_path / "b" / "cached")


def test_another_border_is_refused(place: Place, tmp_path: Path) -> None:
    data = {"cache": str(place.cache(layers=1))}
    options: dict[str, Any] = {"data": data, "batch": {"dialogues": None}}
    remedy = rf"python -m ilql\.annotate cache {place.base} {place.data['token']} --output NEW --history full"
    cfg = place.both(tmp_path, layers=2, **options)[0]
    refused(cfg, rf"is for model\.freeze 2, but here that is 1; make the right one: {remedy} --layers 2")
    cfg = place.both(tmp_path, model={"freeze": "trunk"}, **options)[0]
    refused(cfg, rf"is for model\.freeze 2, but here that is trunk; make the right one: {remedy}$")


def test_another_lower_block_is_refused_and_another_upper_one_is_not(place: Place, tmp_path: Path) -> None:
    fresh = train(config(place.data["token"], tmp_path / "fresh", "bc", steps=1, seed=9, model=SHAPE))
    cfg = place.both(tmp_path, init_from=str(fresh))[1]
    refused(cfg, rf"holds hidden states of the trunk {place.base} \(\w+\), but this run's trunk is {fresh}")
    further = train(place.both(tmp_path / "a", steps=2)[1])
    train(place.both(tmp_path / "b", init_from=str(further), steps=1)[1])


def test_states_of_other_tokens_are_refused(place: Place, tmp_path: Path) -> None:
    folder = shutil.copytree(place.cache(), tmp_path / "cache")
    path = folder / "train" / "tokens.arrow"
    raw = bytearray(path.read_bytes())
    first = np.asarray(Rows(place.data["token"])[0]["tokens"][:4], np.int32).tobytes()
    raw[raw.index(first) + 4] ^= 1
    path.write_bytes(raw)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["train/tokens.arrow"]["sha256"] = sha256(path)  # whoever wrote it sealed it so
    del manifest["digest"]
    (folder / "manifest.json").write_text(written(manifest))
    cfg = place.both(tmp_path, data={"cache": str(folder)}, batch={"dialogues": None})[0]
    with pytest.raises(InputError, match=r"dialogue \d+ is laid otherwise here; make the right one"):
        train(cfg)


@pytest.mark.parametrize("history", [None, 1])
@pytest.mark.parametrize("acted", [True, False])
def test_batches_side_by_side_are_the_batch(history: int | None, acted: bool) -> None:
    rng = np.random.default_rng(0)
    made = [chat_row(rng, 23, 1 + i % 3, terminated=i % 3 != 0, name=f"d{i}") for i in range(6)]
    made[1] = made[1] | {"terminated": False, "tokens": made[1]["tokens"][: made[1]["end"][-1]]}
    made.append(made[2])
    model = tiny()
    options: dict[str, Any] = {"gamma": 0.9, "bos": BOS, "history": history, "acted": acted}
    joined = join([collate([row], **options) for row in made])
    assert_same(statistics(model, joined), statistics(model, collate(made, **options)))
    assert joined.ids == [row["id"] for row in made]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "opt", "gpt_neox", "phi", "gemma2"])
def test_a_trunk_begins_at_its_border(architecture: str) -> None:
    """Also where the trunk asks its blocks for their kind of attention."""
    extra = OPT if architecture == "opt" else {}
    if architecture == "gemma2":
        extra = {"final_logit_softcapping": None, "attn_logit_softcapping": None, "head_dim": 16}
    cfg = ModelConfig(
        architecture=architecture, layers=3, width=32, heads=2, context=64, freeze=2, extra=extra, dtype="float64"
    )
    model: ILQLModel = build(cfg, vocab_size=50, bos_id=0, pad_id=1, end_ids=[2]).eval()
    batch = collate([chat_row(np.random.default_rng(i), 50, 2) for i in range(3)], gamma=1.0, bos=0)
    whole = model.hidden(*batch.run)
    stored = frozen.border(model.lm, 2, lambda: model.hidden(*batch.run))
    ran: list[int] = []
    for i, block in enumerate(frozen.blocks(model.lm)):
        block.register_forward_hook(lambda *a, i=i: ran.append(i))
    found = model.hidden(*batch.run, stored=stored)
    assert ran == [2]
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)
    assert [type(b) for b in frozen.blocks(model.lm)] == [type(frozen.blocks(model.lm)[2])] * 3
    found.sum().backward()
    assert {n.split(".")[0] for n, p in model.lm.named_parameters() if p.grad is not None}
    assert all(p.grad is None for b in list(frozen.blocks(model.lm))[:2] for p in b.parameters())


@pytest.mark.parametrize("architecture", ["gpt2", "falcon", "gptj", "bloom"])
def test_blocks_may_give_tuples(architecture: str) -> None:
    extra = {"rotary_dim": 8} if architecture == "gptj" else {}
    cfg = ModelConfig(architecture=architecture, layers=3, width=32, heads=2, context=64, freeze=2, extra=extra)
    lm = build(cfg, vocab_size=50, bos_id=0, pad_id=1, end_ids=[2]).eval().lm
    assert frozen.gives_tuples(lm) == (architecture != "gpt2")
    tokens = torch.arange(9)[None]

    def run() -> torch.Tensor:
        out = lm.base_model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
        return out.last_hidden_state[0]

    whole, stored = run(), frozen.border(lm, 2, run)
    with frozen.entering(lm, 2, stored, frozen.gives_tuples(lm)):
        torch.testing.assert_close(run(), whole)
