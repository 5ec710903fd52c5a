"""Several seeds by one command: which they are, where they go, and that each is the run that it would be alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ilql import cli, seeds, trainer
from ilql.config import dump
from ilql.progress import TrainingError
from ilql.types import InputError
from tests import tiny


def test_seeds_are_named_by_ranges_and_lists() -> None:
    assert seeds.numbers("0-4") == [0, 1, 2, 3, 4]
    assert seeds.numbers("7") == [7]
    assert seeds.numbers("3, 0,8-9") == [3, 0, 8, 9]


@pytest.mark.parametrize("text", ["", "4-0", "0..4", "-1", "1,,2", "0-3,2", "a", "0-99999999999"])
def test_what_names_no_seeds_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--seeds"):
        seeds.numbers(text)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.dataset(tmp_path_factory.mktemp("seeds") / "data")


def config(data: Path, output: Path, **options: object) -> str:
    cfg = tiny.config(data, output, steps=3, threads=1, model={"dropout": 0.1}, **options)
    path = output.parent / f"{output.name}.yaml"
    path.write_text(dump(cfg))
    return str(path)


def files(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in ("metrics.jsonl", "model/model.safetensors")}


def test_each_is_the_run_that_it_would_be_alone(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.train_main(["--config", config(data, tmp_path / "several"), "--seeds", "0-2"]) == 0
    assert f"seed 1 (2 of 3): {tmp_path}/several/seed-1" in capsys.readouterr().out
    found = [files(tmp_path / "several" / f"seed-{seed}") for seed in range(3)]
    assert len({f["metrics.jsonl"] for f in found}) == 3
    assert cli.train_main(["--config", config(data, tmp_path / "alone"), "--seed", "2"]) == 0
    assert files(tmp_path / "alone") == found[2]
    written = yaml.safe_load((tmp_path / "several" / "seed-2" / "config.yaml").read_text())
    assert written["seed"] == 2


def test_finished_ones_are_skipped_and_interrupted_ones_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frequent = {"every": 1, "checkpoint_every": 1}
    command = ["--config", config(data, tmp_path / "runs", log=frequent), "--seeds"]
    assert cli.train_main(["--config", config(data, tmp_path / "whole", log=frequent), "--seeds=0-1"]) == 0
    step = trainer.Run.step

    def breaks(self: trainer.Run, window: list) -> float:
        if self.cfg.seed == 1 and self.progress.step == 2:
            raise TrainingError("broken")
        return step(self, window)

    monkeypatch.setattr(trainer.Run, "step", breaks)
    assert cli.train_main([*command, "0-2"]) == 1
    assert not (tmp_path / "runs" / "seed-2").exists()
    assert not (tmp_path / "runs" / "seed-1" / "model").exists()
    monkeypatch.setattr(trainer.Run, "step", step)
    capsys.readouterr()
    before = (tmp_path / "runs" / "seed-0" / "timing.jsonl").read_bytes()
    assert cli.train_main([*command, "0-1"]) == 0
    assert "seed-0 is finished" in capsys.readouterr().out
    assert (tmp_path / "runs" / "seed-0" / "timing.jsonl").read_bytes() == before
    for seed in (0, 1):
        assert files(tmp_path / "runs" / f"seed-{seed}") == files(tmp_path / "whole" / f"seed-{seed}")


def test_another_config_or_place_is_refused_before_anything_trains(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(data, tmp_path / "runs")
    assert cli.train_main(["--config", path, "--seeds", "1"]) == 0
    assert cli.train_main(["--config", path, "--seeds", "0-1", "--optim.lr", "0.5"]) == 2
    assert "seed-1/config.yaml has optim.lr" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "seed-0").exists()
    assert cli.train_main(["--config", path, "--seeds", "0-1", "--output", str(tmp_path / "runs" / "seed-1")]) == 2
    assert "is a run folder" in capsys.readouterr().err
    assert cli.train_main(["--config", path, "--seeds", "0-1", "--seed", "3"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert cli.train_main(["--config", path, "--seeds"]) == 2
    assert "write it as 0-4" in capsys.readouterr().err


def test_a_finished_run_that_is_to_be_longer_goes_on(data: Path, tmp_path: Path) -> None:
    trainer.train(tiny.config(data, tmp_path / "run", steps=2))
    assert seeds.finished(tiny.config(data, tmp_path / "run", steps=2), False)
    assert not seeds.finished(tiny.config(data, tmp_path / "run", steps=3), True)
