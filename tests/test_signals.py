"""A run that is asked to stop ends its step, saves, and says by its status what happened; it goes on to the bit."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ilql import checkpoint
from ilql.cli import train_main
from ilql.config import dump
from ilql.diagnostics import survey
from ilql.signals import Listener, Stopped
from ilql.trainer import Run, train
from tests.reliability.runs import fork, wait
from tests.tiny import config, dataset

OPTIONS: dict[str, Any] = {"steps": 6, "log": {"every": 2, "validate_every": 3, "checkpoint_every": 4}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("tiny") / "data")


def same(one: Path, other: Path) -> None:
    """The last checkpoint in every byte, and the log."""
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    mine, theirs = (checkpoint.latest(run / "checkpoints")[0] for run in (one, other))
    assert mine is not None
    assert theirs is not None
    assert mine.name == theirs.name
    assert {p.name: p.read_bytes() for p in mine.iterdir()} == {p.name: p.read_bytes() for p in theirs.iterdir()}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [0, 1, 3, 5])
def test_a_signal_in_a_step_ends_the_step_and_saves(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, step: int
) -> None:
    whole = train(config(data, tmp_path / "whole", **OPTIONS))
    cfg = config(data, tmp_path / "part", **OPTIONS)
    real = Run.step

    def meanwhile(self: Run, window: Any) -> float | None:
        if self.progress.step == step:
            os.kill(os.getpid(), signum)
        return real(self, window)

    before = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", meanwhile)
        with pytest.raises(
            Stopped, match=f"{signum.name}: stopped and saved after step {step + 1}; .* --resume"
        ) as caught:
            train(cfg)
    assert caught.value.status == 128 + signum
    assert signal.getsignal(signum) is before
    assert step + 1 in checkpoint.steps(tmp_path / "part" / "checkpoints")
    assert not (tmp_path / "part" / "model").exists()
    train(cfg, resume=True)
    same(whole, tmp_path / "part")


def test_a_signal_while_the_last_step_is_saved_ends_it_all(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(dump(config(data, tmp_path / "runs", **OPTIONS)))
    real = Run.save

    def meanwhile(self: Run, log: Any) -> None:
        if self.progress.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, log)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", meanwhile)
        assert train_main(["--config", str(path), "--seeds", "0-1"]) == 143
    assert [run.name for run in (tmp_path / "runs").iterdir()] == ["seed-0"], "another one was begun"
    assert not (tmp_path / "runs" / "seed-0" / "model").exists()
    assert train_main(["--config", str(path), "--seeds", "0-1"]) == 0
    same(train(config(data, tmp_path / "whole", **OPTIONS)), tmp_path / "runs" / "seed-0")


def test_a_signal_breaks_off_a_validation_which_is_done_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(config(data, tmp_path / "whole", **OPTIONS))
    cfg = config(data, tmp_path / "part", **OPTIONS)
    read = 0

    def asked(*args: Any) -> Any:
        nonlocal read
        learner, batches, autocast = args

        def counted() -> Any:
            nonlocal read
            for batch in batches:
                read += 1
                if read == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return survey(learner, counted(), autocast)

    with monkeypatch.context() as patch:
        patch.setattr("ilql.diagnostics.survey", asked)
        with pytest.raises(Stopped, match="after step 3"):
            train(cfg)
    assert read == 1
    assert '"validation/total"' not in (tmp_path / "part" / "metrics.jsonl").read_text()
    train(cfg, resume=True)
    same(whole, tmp_path / "part")


def test_the_command_says_so_and_a_second_signal_ends_it_at_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(dump(config(data, tmp_path / "run", **OPTIONS)))
    real, save = Run.step, Run.save

    def asked(self: Run, window: Any) -> float | None:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, window)

    def again(self: Run, log: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(self, log)

    monkeypatch.setattr(Run, "step", asked)
    assert train_main(["--config", str(path)]) == 143
    assert "SIGTERM: stopped and saved after step 1; the same command with --resume goes on" in capsys.readouterr().err
    monkeypatch.setattr(Run, "save", again)
    pid = fork(lambda: train_main(["--config", str(path), "--resume"]), tmp_path / "log.txt")
    assert wait(pid) == 143
    assert list(checkpoint.steps(tmp_path / "run" / "checkpoints")) == [1]
    assert "stopped and saved" not in (tmp_path / "log.txt").read_text()
    monkeypatch.undo()
    assert train_main(["--config", str(path), "--resume"]) == 0


def test_processes_that_collate_are_deaf(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal's Ctrl-C reaches the whole group: the workers too, whose batches the step still needs."""
    cfg = config(data, tmp_path / "run", **{**OPTIONS, "batch": {"dialogues": 4, "workers": 2, "accumulate": 3}})
    real = Run.step

    def asked(self: Run, window: Any) -> float | None:
        if self.progress.step == 1:
            os.killpg(0, signal.SIGTERM)
        return real(self, window)

    monkeypatch.setattr(Run, "step", asked)

    def work() -> int:
        os.setpgid(0, 0)
        try:
            train(cfg)
        except Stopped as stopped:
            return stopped.status
        return 0

    assert wait(fork(work, tmp_path / "log.txt")) == 143, (tmp_path / "log.txt").read_text()
    assert list(checkpoint.steps(tmp_path / "run" / "checkpoints")) == [2]


def test_a_forked_process_leaves_the_parent_alone() -> None:
    with Listener() as listener:
        pid = os.fork()
        if not pid:
            listener.hear(signal.SIGTERM, None)
            listener.hear(signal.SIGTERM, None)
            os._exit(0 if listener.signum == 0 else 1)
        assert wait(pid) == 0
