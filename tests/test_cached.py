"""Training from a cache is training on a frozen trunk; and a cache of anything else is refused."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Model

from ilql import atomic, sealed, states
from ilql.algos import ALGOS
from ilql.annotate import cache
from ilql.cached import open_cache
from ilql.config import TrainConfig
from ilql.feed import read
from ilql.replay import Split
from ilql.rows import Rows
from ilql.schema import SPLITS
from ilql.trainer import train
from ilql.types import InputError
from tests.reliability.mutations import mutations
from tests.test_trainer import assert_close, refused, rows, same, stop_at, weights
from tests.tiny import config, dataset
from tests.toys import defaults

LOG: dict[str, Any] = {"every": 1, "validate_every": 5, "validation_batches": 9, "checkpoint_every": 0}


def stored(algo: Any) -> bool:
    """Whether an algorithm reads rows as they are stored, no more than is, and one decision without the others."""
    whole = hasattr(algo, "whole") and algo.whole(algo.Config())
    return not hasattr(algo, "prepare") and not hasattr(algo, "OFFERED") and not whole


ALGORITHMS = [(name, step) for name, algo in ALGOS.items() for step in algo.STEPS if stored(algo)]


class Place:
    """Datasets at both steps, and a run whose trunk is frozen from then on; its output embedding is not tied."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = {step: dataset(folder / step, step=step) for step in ("token", "utterance")}
        shape = {"extra": {"tie_word_embeddings": False}}
        self.bases = {
            dtype: train(config(self.data["token"], folder / dtype, "bc", steps=2, model={"dtype": dtype, **shape}))
            for dtype in ("float64", "float32")
        }

    def cache(self, step: str, history: int | str = "full", dtype: str = "float64") -> Path:
        folder = self.folder / f"{step}-{history}-{dtype}"
        if not folder.exists():
            cache(self.bases[dtype], self.data[step], folder, history=history, dtype=dtype, tokens=100)
        return folder

    def config(self, output: Path, algo: str = "ilql", step: str = "token", **options: Any) -> TrainConfig:
        """From the frozen trunk; from a cache where `data.cache` is among the options."""
        dtype = options.pop("dtype", "float64")
        model = {"freeze": "trunk", "dtype": dtype, "extra": {"tie_word_embeddings": False}}
        data = {"path": str(self.data[step]), **options.pop("data", {})}
        options = {
            "init_from": str(self.bases[dtype]),
            "model": model,
            "log": LOG,
            "batch": {"dialogues": 99},
        } | options
        return config(data, output, algo, **options)  # type: ignore[arg-type]

    def cached(self, output: Path, algo: str = "ilql", step: str = "token", **options: Any) -> TrainConfig:
        folder = self.cache(step, options.get("data", {}).get("history", "full"), options.get("dtype", "float64"))
        batch = {"dialogues": None, "decisions": 9999} | options.pop("batch", {})
        data = {"cache": str(folder)} | options.pop("data", {})
        return self.config(output, algo, step, data=data, batch=batch, **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("cached"))


# ---- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", ["full", 1])
@pytest.mark.parametrize(("algo", "step"), ALGORITHMS)
def test_twenty_steps_equal_those_of_the_frozen_trunk(
    place: Place, tmp_path: Path, algo: str, step: str, history: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch an epoch, so that both see the same decisions. Some dialogues are cut off."""
    assert not all(row["terminated"] for row in Rows(place.data[step]))
    options: dict[str, Any] = {"steps": 20, "data": {"history": history, "reward_scale": 0.5}}
    options |= {algo: asdict(defaults(ALGOS[algo], step))}
    plain = train(place.config(tmp_path / "plain", algo, step, **options))
    other = place.cached(tmp_path / "cached", algo, step, **options)
    with monkeypatch.context() as patch:
        patch.setattr(GPT2Model, "forward", lambda *a, **k: pytest.fail("the trunk ran"))
        patch.setattr("ilql.build.check_trunk", lambda model: None)
        found = train(other)
    assert_close(plain, found)
    before = weights(place.bases["float64"])
    moved = {
        name for name, tensor in weights(found).items() if name in before and not torch.equal(tensor, before[name])
    }
    assert moved == {"lm.lm_head.weight"}
    assert "validation/total" in rows(found)[-1]


def test_twenty_steps_in_float32(place: Place, tmp_path: Path) -> None:
    plain = train(place.config(tmp_path / "plain", steps=20, dtype="float32"))
    found = train(place.cached(tmp_path / "cached", steps=20, dtype="float32"))
    mine = weights(found)
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-5, atol=1e-5)


def test_two_caches_with_weights(place: Place, tmp_path: Path) -> None:
    other = dataset(tmp_path / "other", 8, seed=5)
    second = cache(place.bases["float64"], other, dtype="float64")
    assert second == tmp_path / "other-cache"
    both = {"path": [str(place.data["token"]), str(other)], "weights": [1, 3]}
    plain = train(place.config(tmp_path / "plain", data=both, steps=3))
    found = train(
        place.cached(tmp_path / "cached", data={**both, "cache": [str(place.cache("token")), str(second)]}, steps=3)
    )
    assert_close(plain, found)


def test_decisions_are_shuffled_and_each_is_seen_once_an_epoch(place: Place, tmp_path: Path) -> None:
    cfg = place.cached(tmp_path / "run", batch={"decisions": 10})
    feed = read(cfg)
    batches = feed.order.batches(0)
    whole = np.concatenate(batches)
    assert sorted(whole) == list(range(sum(len(row["start"]) for row in Rows(place.data["token"]))))
    assert {len(b) for b in batches[:-1]} == {10}
    made: Any = feed.rows
    assert max(len(set(made.__getitems__(b).ids)) for b in batches) > 5, "from many dialogues"
    again, other = np.concatenate(feed.order.batches(0)), np.concatenate(feed.order.batches(1))
    assert np.array_equal(again, whole)
    assert not np.array_equal(other, whole)
    halves = [read(cfg, rank, 2).order.batches(0) for rank in (0, 1)]
    assert sorted(np.concatenate(halves[0] + halves[1])) == sorted(np.concatenate(batches[: 2 * len(halves[0])]))


def test_a_transition_without_a_next_state_is_cloned_only(place: Place, tmp_path: Path) -> None:
    cfg = place.cached(tmp_path / "run", batch={"decisions": 1})
    pool: Any = read(cfg).rows
    follows = pool.parts[0].decisions["follows"].all()
    alone = pool.__getitems__(np.flatnonzero(follows == states.NOTHING)[:1])
    assert (alone.n, alone.m) == (0, 1)
    end = pool.__getitems__(np.flatnonzero(follows == states.TERMINAL)[:1])
    assert (end.n, float(end.discount)) == (1, 0.0)


# ---- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 5, 8])
def test_a_stopped_run_goes_on_to_the_bit(place: Place, tmp_path: Path, monkeypatch: Any, step: int) -> None:
    log = {"every": 3, "validate_every": 4, "checkpoint_every": 2, "keep": 3}
    options: dict[str, Any] = {"steps": 9, "log": log, "batch": {"decisions": 40, "accumulate": 2}}
    whole = train(place.cached(tmp_path / "whole", **options))
    cfg = place.cached(tmp_path / "part", **options)
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    torch.rand(3)
    train(cfg, resume=True)
    same(whole, tmp_path / "part")


def test_workers_change_nothing(place: Place, tmp_path: Path) -> None:
    one = train(place.cached(tmp_path / "one", batch={"decisions": 30}, steps=5))
    two = train(place.cached(tmp_path / "two", batch={"decisions": 30, "workers": 2}, steps=5))
    assert (one / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes()


def test_another_cache_in_its_place_is_refused(place: Place, tmp_path: Path, monkeypatch: Any) -> None:
    folder = shutil.copytree(place.cache("token"), tmp_path / "cache")
    cfg = place.cached(tmp_path / "run", data={"cache": str(folder)}, steps=6, log={**LOG, "checkpoint_every": 2})
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    shutil.rmtree(folder)
    cache(place.bases["float64"], place.data["token"], folder, dtype="float32")
    with pytest.raises(InputError, match=r"the checkpoint was made with datasets .* --allow-inexact"):
        train(cfg, resume=True)


def split_of(folder: Path, data: Path) -> Split:
    files = open_cache(folder, data, None, "x").columns(states.FORM, "train")
    return Split(files["hidden"]["h"], files["decisions"], files["tokens"])


# ---- files -----------------------------------------------------------------------------------------------------------


def test_the_same_bytes_again(place: Place, tmp_path: Path) -> None:
    first = place.cache("token")
    again = cache(place.bases["float64"], place.data["token"], tmp_path / "again", dtype="float64", tokens=100)
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert len(files) == 7
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in files)


def test_every_dialogue_has_its_states_whatever_the_budget(place: Place, tmp_path: Path) -> None:
    """A dialogue beyond the budget is laid by itself."""
    a, b = (
        cache(place.bases["float64"], place.data["token"], tmp_path / str(n), dtype="float64", tokens=n)
        for n in (1, 10**6)
    )
    one, other = (split_of(f, place.data["token"]) for f in (a, b))
    for name in states.DECISIONS.keys() - {"last", "next"}:
        assert np.array_equal(one.decisions[name].all(), other.decisions[name].all()), name
    for name in ("last", "next"):
        rows = [x.hidden.take(x.decisions[name].all()) for x in (one, other)]
        follows = one.decisions["follows"].all() == states.STATE if name == "next" else np.ones(len(rows[0]), bool)
        assert np.allclose(rows[0][follows], rows[1][follows], rtol=0, atol=1e-12)
    assert len(one.hidden) >= len(other.hidden), "the same beginning of two dialogues is stored once"


def test_a_failure_leaves_nothing(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ilql.model.ILQLModel.hidden", fail)
    monkeypatch.setattr("ilql.build.check_trunk", lambda model: None)
    with pytest.raises(KeyboardInterrupt):
        cache(place.bases["float64"], place.data["token"], tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_a_cache_of_another_trunk_is_refused(place: Place, tmp_path: Path) -> None:
    shape = {"freeze": "trunk", "extra": {"tie_word_embeddings": False}}
    other = train(config(place.data["token"], tmp_path / "other", "bc", steps=1, seed=4, model=shape))
    base = place.bases["float64"]
    refused(
        place.cached(tmp_path / "run", init_from=str(other)),
        rf"data\.cache: \S+ holds hidden states of the trunk {base} \(\w+\), but this run's trunk is {other} \(\w+\); "
        rf"make the right one: python -m ilql\.annotate cache {other} {place.data['token']} --output NEW --hist",
    )
    refused(place.cached(tmp_path / "run", init_from=None), r"but this run's trunk is from scratch")
    train(
        place.cached(
            tmp_path / "run", init_from=None, model={"pretrained": f"{base}/model", "freeze": "trunk"}, steps=1
        )
    )


def test_a_cache_of_another_dataset_is_refused(place: Place, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", 9)
    folder = place.cache("token")
    refused(
        place.config(tmp_path / "run", data={"path": str(data), "cache": str(folder)}, batch={"dialogues": None}),
        rf"{folder} is of the dataset {place.data['token']} \(\w+\), but data\.path is {data} \(\w+\); make the right "
        rf"one: python -m ilql\.annotate cache {place.bases['float64']} {data} --output NEW --history full",
    )


def test_a_cache_of_other_windows_is_refused(place: Place, tmp_path: Path) -> None:
    data = {"cache": str(place.cache("token")), "history": 2}
    refused(
        place.config(tmp_path / "run", data=data, batch={"dialogues": None}),
        r"has history full, but data\.history is 2; .* --history 2",
    )


def test_a_broken_cache_is_refused(place: Place, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return shutil.copytree(place.cache("token"), tmp_path / name)

    def refuse(folder: Path, match: str) -> None:
        refused(place.cached(tmp_path / "run", data={"cache": str(folder)}), match)

    refuse(tmp_path / "nowhere", r"nowhere is not a cache: it has no manifest\.json; make the right one: python -m")
    cut = broken("cut")
    path = cut / "train" / "hidden.arrow"
    path.write_bytes(path.read_bytes()[:-1000])
    refuse(cut, r"train/hidden\.arrow differs from its digest in the manifest; make the right one")
    gone = broken("gone")
    (gone / "train" / "tokens.arrow").unlink()
    refuse(gone, r"train/tokens\.arrow is named in the manifest but missing; make the right one")
    none = broken("none")
    (none / "manifest.json").unlink()
    refuse(none, r"it has no manifest\.json")
    for content in (b"{", b"[]", b'{"version": 1}', b'{"version": 2}'):
        (none / "manifest.json").write_bytes(content)
        refuse(none, r"is not a manifest of version 2")
    unlike = broken("unlike")
    manifest = json.loads((unlike / "manifest.json").read_bytes())
    manifest["width"] = 31
    atomic.write_text(unlike / "manifest.json", json.dumps(manifest, indent=1))
    refuse(unlike, r"manifest\.json does not match its own digest, so it was changed; make the right one")
    for change, match in (
        ({"width": 31}, r"hidden\.arrow cannot be read \(its columns are others\)"),
        ({"splits": {}}, r"unlike has no train split"),
        ({"dtype": "of its own"}, r"is no manifest of a cache"),
        ({"files": []}, r"is no manifest of a cache"),
    ):
        rest = {name: value for name, value in (manifest | {"width": 32} | change).items() if name != "digest"}
        atomic.write_text(unlike / "manifest.json", sealed.written(rest))
        refuse(unlike, match)


def test_every_change_of_a_cache_is_told(place: Place, tmp_path: Path) -> None:
    folder = shutil.copytree(place.cache("token"), tmp_path / "cache")

    def reads(path: Path) -> None:
        opened = open_cache(path, place.data["token"], None, "x")
        for split in SPLITS:
            opened.columns(states.FORM, split)

    assert mutations(folder, 49, readers=(reads,))["files"] == 7


def test_a_cache_of_the_first_version_is_read(place: Place, tmp_path: Path) -> None:
    """Its manifest had no digest, but those of its files."""
    folder = shutil.copytree(place.cache("token"), tmp_path / "cache")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["digest"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 1}))
    assert open_cache(folder, place.data["token"], None, "x").columns(states.FORM, "train")


def test_options_that_do_not_fit_a_cache_are_refused(place: Place, tmp_path: Path) -> None:
    folder = str(place.cache("token"))
    for options, match in (
        ({"model": {"freeze": None}}, r"set model\.freeze to trunk"),
        ({"batch": {"dialogues": 4}}, r"set batch\.decisions"),
        ({"batch": {"decisions": 0}}, r"batch\.decisions is 0"),
        ({"data": {"cache": [folder, folder]}}, r"one folder for each of data\.path, 1 of them"),
    ):
        with pytest.raises(InputError, match=match):
            place.cached(tmp_path / "run", **options)  # type: ignore[arg-type]
