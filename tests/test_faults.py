"""What is not finite stops or is left out and counted; what does not fit into memory is divided."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ilql.algos
from ilql import checkpoint, faults
from ilql.cli import train_main
from ilql.config import dump
from ilql.progress import TrainingError
from ilql.stepper import Stepper
from ilql.trainer import train
from tests.test_trainer import rows, weights
from tests.tiny import config, dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("tiny") / "data")


def break_losses(monkeypatch: pytest.MonkeyPatch, at: set[int]) -> list[list[str]]:
    """Every micro-batch whose number is in `at` has one loss that is not a number; returns the dialogues of all."""
    real = ilql.algos.bc.loss
    seen: list[list[str]] = []

    def breaking(out: Any, batch: Any, cfg: Any) -> dict[str, Tensor]:
        seen.append(list(batch.ids))
        vectors = real(out, batch, cfg)
        return {k: v * torch.nan for k, v in vectors.items()} if len(seen) in at else vectors

    monkeypatch.setattr(ilql.algos.bc, "loss", breaking)
    return seen


def test_so_many_windows_are_left_out_and_counted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    cfg = config(data, tmp_path / "run", "bc", batch={"dialogues": 3, "accumulate": 2}, log={"checkpoint_every": 1})
    path.write_text(dump(cfg))
    with monkeypatch.context() as patch:
        seen = break_losses(patch, {2, 5, 9})
        assert train_main(["--config", str(path), "--skip-nonfinite", "2"]) == 1
    said = capsys.readouterr().err
    assert f"step 0: bc is nan on dialogues {', '.join(seen[1])} (kept in" in said
    assert "left out, 1 of at most 2" in said
    assert "error: step 2: bc is nan" in said
    assert "--skip-nonfinite N" in said
    assert [row.get("skipped") for row in rows(tmp_path / "run")] == [1, 2]
    kept = sorted((tmp_path / "run" / "nonfinite").iterdir())
    assert [p.name for p in kept] == ["step-0-0.json", "step-1-1.json", "step-2-2.json"]
    (batch,) = json.loads(kept[0].read_text())["batches"]
    assert batch["dialogues"] == seen[1]
    assert batch["losses"] == {"bc": "nan"}
    assert len(batch["tokens"]) == len(batch["position"]) > 0
    with monkeypatch.context() as patch:  # goes on from the second step; the broken numbers were left behind
        break_losses(patch, set())
        assert train_main(["--config", str(path), "--resume"]) == 0
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_full_disk_does_not_take_the_place_of_what_was_at_fault(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = break_losses(monkeypatch, {1})
    monkeypatch.setattr("ilql.faults.FOLDER", "config.yaml")  # where no folder can be made
    with pytest.raises(TrainingError) as caught:
        train(config(data, tmp_path / "run", "bc"))
    assert f"bc is nan on dialogues {', '.join(seen[0])} (not kept: " in str(caught.value)
    assert "config.yaml" in str(caught.value)


def test_a_window_that_is_left_out_moves_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are those of a run that never saw it: its first step is that of the second window."""
    cfg = config(data, tmp_path / "run", "bc", steps=1, skip_nonfinite=1)
    with monkeypatch.context() as patch:
        seen = break_losses(patch, {1})
        train(cfg)
    assert len(seen) == 2
    with monkeypatch.context() as patch:
        real = ilql.trainer.stream
        patch.setattr("ilql.trainer.stream", lambda *args: (next(source := real(*args)), source)[1])
        train(config(data, tmp_path / "other", "bc", steps=1))
    mine, theirs = weights(tmp_path / "run"), weights(tmp_path / "other")
    assert all(torch.equal(t, theirs[name]) for name, t in mine.items())


def scarce(monkeypatch: pytest.MonkeyPatch, rows: int, after: int = 0) -> list[int]:
    """Memory for no more than so many dialogues in a micro-batch, after the first few; returns how many each had that
    was tried."""
    real = ilql.algos.ilql.loss
    tried: list[int] = []

    def greedy(out: Any, batch: Any, cfg: Any) -> dict[str, Tensor]:
        tried.append(len(batch.ids))
        if len(batch.ids) > rows and len(tried) > after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return real(out, batch, cfg)

    monkeypatch.setattr(ilql.algos.ilql, "loss", greedy)
    return tried


def test_what_does_not_fit_is_divided_and_the_step_stays(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = {"dialogues": 6, "accumulate": 2}
    whole = train(config(data, tmp_path / "whole", batch=batch))
    with monkeypatch.context() as patch:
        tried = scarce(patch, 2, after=1)  # by then there is a gradient of half the window
        train(config(data, tmp_path / "part", batch=batch, auto_micro_batch=True))
    assert tried[:3] == [6, 6, 3]
    assert tried[3:9] == [2] * 6
    assert max(tried[3:]) == 2
    said = capsys.readouterr().err
    assert "step 0: out of memory on a micro-batch of 6 rows" in said
    assert "from here on each is divided into 4" in said
    for a, b in zip(rows(whole), rows(tmp_path / "part"), strict=True):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-12)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(tmp_path / "part")[name], tensor, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "mend"),
    [({}, "lower batch.tokens"), ({"auto_micro_batch": True}, r"not even one fits alone: .*data\.history")],
)
def test_out_of_memory_names_the_shape_and_what_to_set(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], mend: str
) -> None:
    scarce(monkeypatch, 0)
    match = rf"step 0: out of memory on a micro-batch of 4 rows, \d+ tokens, \d+ decisions.*; {mend}"
    with pytest.raises(TrainingError, match=match):
        train(config(data, tmp_path / "run", **options))
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == {}


def test_memory_for_the_optimizer_is_missed_in_one_sentence(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def move(self: Stepper, step: int) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nmore")

    monkeypatch.setattr(Stepper, "move", move)
    with pytest.raises(
        TrainingError, match=r"step 0: out of memory \(\[enforce fail\] .* memory\); the last checkpoint"
    ):
        train(config(data, tmp_path / "run"))


def test_other_errors_are_no_want_of_memory() -> None:
    assert faults.is_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert faults.is_memory(MemoryError())
    assert not faults.is_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not faults.is_memory(ValueError("out of memory"))


def test_the_first_weight_that_is_not_finite_is_named() -> None:
    weights = {"a": torch.full((3,), 3e38), "b": torch.tensor([1.0, torch.nan]), "c": torch.tensor([torch.inf])}
    assert faults.bad_weight(weights) == "b"
    assert faults.bad_weight({"a": weights["a"]}) is None


def test_weights_that_broke_are_never_saved(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Stepper.move

    def breaking(self: Stepper, step: int) -> None:
        real(self, step)
        if step == 2:
            with torch.no_grad():
                next(iter(self.parameters.values())).view(-1)[0] = torch.inf

    monkeypatch.setattr(Stepper, "move", breaking)
    with pytest.raises(TrainingError, match=r"step 3: the weight lm\.\S+ is not finite after it; the last checkpoint"):
        train(config(data, tmp_path / "run", log={"checkpoint_every": 1}))
    assert list(checkpoint.steps(tmp_path / "run" / "checkpoints")) == [1, 2]
