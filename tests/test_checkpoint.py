"""Checkpoints: what is saved comes back to the bit, every damage is told, no kill leaves a half one in its place."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ilql import atomic, checkpoint, sealed
from ilql.types import InputError

TENSORS = {"model": {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(2, dtype=torch.int64)}}
DOCUMENTS = {"trainer": {"step": 3, "x": 0.1 + 0.2, "logs": {"metrics.jsonl": 7}}, "random": [1, 2]}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints" / "step-3"
    checkpoint.save(folder, TENSORS, DOCUMENTS)
    return folder


def test_what_is_saved_comes_back(saved: Path) -> None:
    tensors, documents = checkpoint.load(saved)
    assert documents == DOCUMENTS
    assert {k: set(v) for k, v in tensors.items()} == {"model": {"a.weight", "b"}}
    for name, tensor in TENSORS["model"].items():
        assert torch.equal(tensors["model"][name], tensor)
        assert tensors["model"][name].dtype == tensor.dtype
    assert {p.suffix for p in saved.iterdir()} == {".json", ".safetensors"}


def test_every_flipped_byte_is_told(saved: Path) -> None:
    rng = random.Random(0)
    for path in sorted(saved.iterdir()):
        content = path.read_bytes()
        for at in {0, len(content) - 1, *(rng.randrange(len(content)) for _ in range(30))}:
            path.write_bytes(content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :])
            with pytest.raises(sealed.Damaged):
                checkpoint.load(saved)
        path.write_bytes(content)
    checkpoint.verify(saved)


def _resign(folder: Path, change: Callable[[dict], None]) -> None:
    """What a stranger can do: change the manifest and compute its digest again."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(sealed.written(manifest))


def _respace(folder: Path) -> None:
    """The same manifest to a reader of JSON, in other bytes."""
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("\n", "\t\n"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), "cannot be read"),
        (lambda f: (f / "manifest.json").write_text("[]"), "cannot be read"),
        (lambda f: os.truncate(f / "model.safetensors", 20), "20 bytes instead of"),
        (lambda f: _resign(f, lambda m: m.update(version=9)), "version 9"),
        (lambda f: _respace(f), "does not match its own digest"),
        (lambda f: _resign(f, lambda m: m["files"].update({"../x.json": {"bytes": 1, "sha256": ""}})), "'../x.json'"),
        (lambda f: _resign(f, lambda m: m["files"].update({"a.pt": {"bytes": 1, "sha256": ""}})), "'a.pt'"),
    ],
)
def test_damage_is_named(saved: Path, damage: Callable[[Path], None], reason: str) -> None:
    damage(saved)
    with pytest.raises(sealed.Damaged, match=reason):
        checkpoint.verify(saved)


def test_a_link_out_of_the_folder_is_refused(saved: Path, tmp_path: Path) -> None:
    (saved / "model.safetensors").rename(tmp_path / "elsewhere")
    (saved / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(sealed.Damaged, match="missing"):
        checkpoint.verify(saved)


def test_the_newest_valid_one_is_found_and_others_are_explained(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        checkpoint.save(tmp_path / f"step-{step}", TENSORS, DOCUMENTS)
    (tmp_path / "step-x").mkdir()
    (tmp_path / "step-100" / "trainer.json").write_text("{}")
    found, skipped = checkpoint.latest(tmp_path)
    assert found == tmp_path / "step-10"
    assert list(skipped) == [tmp_path / "step-100"]
    assert "trainer.json" in skipped[tmp_path / "step-100"]
    checkpoint.set_aside(skipped)
    assert list(checkpoint.steps(tmp_path)) == [9, 10]
    assert checkpoint.latest(tmp_path / "none") == (None, {})


def test_old_ones_go_but_never_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        checkpoint.save(tmp_path / f"step-{step}", TENSORS, DOCUMENTS)
    checkpoint.prune(tmp_path, 2, 2)
    assert list(checkpoint.steps(tmp_path)) == [2, 4, 5]
    checkpoint.prune(tmp_path, 2, 5)
    assert list(checkpoint.steps(tmp_path)) == [4, 5]


def test_a_crash_at_any_operation_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a kill: the operation number `k` raises, and nothing cleans up after it."""

    class Killed(BaseException):
        pass

    operations = [(os, "fsync"), (Path, "rename"), (Path, "mkdir"), (Path, "write_text"), (checkpoint, "save_file")]
    newer = {"trainer": {"step": 4}}
    k = 0
    while True:
        folder = tmp_path / str(k)
        checkpoint.save(folder / "step-3", TENSORS, DOCUMENTS)
        left = k
        with monkeypatch.context() as patch:
            for owner, name in operations:
                real = getattr(owner, name)

                def dying(*args, _real=real, **kwargs):
                    nonlocal left
                    left -= 1
                    if left < 0:
                        raise Killed
                    return _real(*args, **kwargs)

                patch.setattr(owner, name, dying)
            patch.setattr(shutil, "rmtree", lambda *a, **b: None)  # the lock falls with the process all the same
            try:
                checkpoint.save(folder / "step-4", TENSORS, newer)
                finished = True
            except Killed:
                finished = False
        found, skipped = checkpoint.latest(folder)
        assert found is not None
        assert skipped == {}
        assert checkpoint.load(found)[1] == (newer if found.name == "step-4" else DOCUMENTS)
        atomic.sweep(folder)
        assert {p.name for p in folder.iterdir()} <= {"step-3", "step-4"}
        if finished:
            assert found.name == "step-4"
            break
        k += 1
    assert k >= 10


def test_a_failed_write_names_the_path_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    checkpoint.save(tmp_path / "step-1", TENSORS, DOCUMENTS)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            InputError, match=r"step-2 cannot be written \(No space left on device\): it needs [\d,]+ bytes"
        ):
            checkpoint.save(tmp_path / "step-2", TENSORS, DOCUMENTS)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(
        InputError, match=r"step-2 cannot be written .* it needs [\d,]+ bytes and the disk has 1,000 left"
    ):
        checkpoint.save(tmp_path / "step-2", TENSORS, DOCUMENTS)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_saving_over_a_damaged_one_replaces_it(saved: Path) -> None:
    (saved / "trainer.json").write_text("{}")
    checkpoint.save(saved, TENSORS, {"trainer": 1})
    assert checkpoint.load(saved)[1] == {"trainer": 1}
    assert [p.name for p in saved.parent.iterdir()] == ["step-3"]


def test_random_states_come_back() -> None:
    random.seed(3)
    np.random.seed(4)  # noqa: NPY002
    torch.manual_seed(5)
    np.random.normal()  # noqa: NPY002 - leaves half of a pair behind, which is a part of the state
    random.gauss(0, 1)

    def draw() -> list[float]:
        return [random.gauss(0, 1), random.random(), *np.random.normal(size=3), *torch.randn(3).tolist()]  # noqa: NPY002

    states = json.loads(json.dumps(checkpoint.random_states()))
    expected = draw()
    draw()
    checkpoint.set_random_states(states)
    assert draw() == expected


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_goes_on_to_the_bit(fused: bool) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.AdamW, dict]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        return model, optimizer, {p: name for name, p in model.named_parameters()}

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer, names = fresh()
    for _ in range(3):
        step(model, optimizer)
    state = {k: v.clone() for k, v in checkpoint.optimizer_tensors(optimizer, names).items()}
    weights = {k: v.clone() for k, v in checkpoint.model_tensors(model).items()}
    assert "0.weight/exp_avg" in state
    for _ in range(2):
        step(model, optimizer)
    again, other, theirs = fresh()
    checkpoint.load_model(again, weights)
    checkpoint.load_optimizer(other, theirs, state)
    for _ in range(2):
        step(again, other)
    for name, tensor in checkpoint.model_tensors(model).items():
        assert torch.equal(tensor, checkpoint.model_tensors(again)[name]), name
    with pytest.raises(InputError, match="optimizes 'x'"):
        checkpoint.load_optimizer(other, theirs, {"x/step": torch.tensor(1.0)})


def test_tied_weights_are_saved_once_and_others_must_fit() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model.register_buffer("kept", torch.ones(2))
    model.register_buffer("derived", torch.ones(2), persistent=False)
    tensors = checkpoint.model_tensors(model)
    assert set(tensors) == {"0.weight", "0.bias", "1.bias", "kept"}
    with pytest.raises(InputError, match=r"'1.bias' is in one only"):
        checkpoint.load_model(model, {k: v for k, v in tensors.items() if k != "1.bias"})
    with pytest.raises(InputError, match="another shape or type"):
        checkpoint.load_model(model, tensors | {"kept": torch.ones(2, dtype=torch.float64)})
