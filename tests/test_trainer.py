"""Training: the numbers do not depend on how a step is split, a run that was killed ends as if it had not been, and
what cannot be used is refused before anything is written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config

import ilql.algos
from datasets_prep import tokenizer as tk
from datasets_prep.encode import Encoder
from ilql import checkpoint, runfolder, warmstart
from ilql.config import TrainConfig, dump
from ilql.feed import read
from ilql.initial import make_model
from ilql.launch import start
from ilql.learner import Out
from ilql.model import ILQLModel
from ilql.progress import TrainingError
from ilql.rows import Rows
from ilql.schema import sealed, sha256
from ilql.trainer import Run, train
from ilql.types import InputError
from tests.tiny import config, dataset, replace_rows

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("tiny") / "data")


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, Tensor]:
    found, _ = checkpoint.latest(run / "checkpoints")
    assert found is not None
    return checkpoint.load(found)[0]["model"]


def fresh(cfg: TrainConfig) -> ILQLModel:
    """The model as a run begins with it."""
    set_seed(cfg.seed)
    return make_model(cfg, read(cfg))


def assert_close(one: Path, other: Path) -> None:
    for a, b in zip(rows(one), rows(other), strict=True):
        assert a == pytest.approx({**b, "epoch": a["epoch"]}, rel=1e-9, abs=1e-12)
    mine, theirs = weights(one), weights(other)
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-9)


# ---- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["ilql", "mc", "bc"])
def test_the_split_of_a_step_does_not_matter(data: Path, tmp_path: Path, algo: str) -> None:
    log = {"every": 1, "validate_every": 2, "validation_batches": 99}
    whole = train(config(data, tmp_path / "8", algo, batch={"dialogues": 8}, log=log))
    for size, accumulate in ((4, 2), (1, 8)):
        batch = {"dialogues": size, "accumulate": accumulate}
        assert_close(whole, train(config(data, tmp_path / str(size), algo, batch=batch, log=log)))
    counts = [row["bc"] for row in rows(whole)]
    assert len(set(counts)) == 4


def test_two_processes_equal_one(data: Path, tmp_path: Path) -> None:
    log = {"every": 1, "validate_every": 3, "validation_batches": 2, "checkpoint_every": 2}
    batch = {"dialogues": 4, "accumulate": 2}
    one = train(config(data, tmp_path / "one", batch=batch, log=log, steps=3))
    cfg = config(data, tmp_path / "two", batch={"dialogues": 4}, log=log, steps=3)
    done = launch(cfg, tmp_path, "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("3/3") >= 1
    assert_close(one, tmp_path / "two")


def test_a_launcher_that_starts_too_few_processes_is_refused(data: Path, tmp_path: Path) -> None:
    cfg = config(data, tmp_path / "run")
    done = launch(cfg, tmp_path, "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    assert "error: several processes were asked for but 1 takes part; start them with torchrun" in done.stderr
    assert not (tmp_path / "run").exists()


def launch(cfg: TrainConfig, folder: Path, *module: str) -> subprocess.CompletedProcess[str]:
    path = folder / "config.yaml"
    path.write_text(dump(cfg))
    command = [sys.executable, "-m", *module, str(ROOT / "train.py"), "--config", str(path)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)


@pytest.mark.parametrize("step", ["token", "utterance"])
def test_the_loss_is_the_mean_over_the_window_action_tokens(tmp_path: Path, step: str) -> None:
    """Against transformers' own forward, one dialogue at a time."""
    cfg = config(
        dataset(tmp_path / "data", step=step), tmp_path / "run", "bc", steps=1, batch={"dialogues": 5, "accumulate": 2}
    )
    feed, model = read(cfg), fresh(cfg).eval()
    total, count = 0.0, 0
    for batch in feed.order.batches(0)[:2]:
        for row in (feed.rows[i] for i in batch):
            tokens = torch.tensor(np.array(row["tokens"]), dtype=torch.long)
            logp = model.lm(tokens[None]).logits[0].log_softmax(-1)
            for begin, end in zip(row["start"], row["end"], strict=True):
                for t in range(begin, end):
                    total -= float(logp.detach()[t - 1, tokens[t]])
                    count += 1
    train(cfg)
    assert rows(tmp_path / "run")[0]["bc"] == pytest.approx(total / count, rel=1e-9)


def test_validation_is_without_dropout_and_draws_nothing(data: Path, tmp_path: Path) -> None:
    cfg = config(data, tmp_path / "run", model={"dropout": 0.5}, log={"validate_every": 1})
    feed = read(cfg)
    run = Run(cfg, start(cfg), feed, make_model(cfg, feed))
    before = torch.get_rng_state()
    first = run.validate()
    assert run.validate() == first
    assert torch.equal(torch.get_rng_state(), before)
    assert run.stepper.learner.training


def test_a_row_is_the_mean_since_the_last_row(data: Path, tmp_path: Path) -> None:
    each = rows(train(config(data, tmp_path / "1", steps=5)))
    found = rows(train(config(data, tmp_path / "3", steps=5, log={"every": 3})))
    assert [row["step"] for row in found] == [3, 5]
    for name in ("q", "v", "cql", "bc", "total", "grad_norm"):
        assert found[0][name] == pytest.approx(sum(row[name] for row in each[:3]) / 3, rel=1e-12)
        assert found[1][name] == pytest.approx(sum(row[name] for row in each[3:]) / 2, rel=1e-12)
    assert found[0]["total"] == pytest.approx(sum(found[0][k] for k in ("q", "v", "cql", "bc")))


def test_the_scale_of_values_is_reported_in_the_logs_units(data: Path, tmp_path: Path) -> None:
    batch = {"dialogues": 3, "accumulate": 2}
    still = {"lr": 1e-30}
    cfg = config(data, tmp_path / "run", steps=2, batch=batch, log={"every": 2}, optim=still)
    scaled = replace(cfg, output=str(tmp_path / "scaled"), data=replace(cfg.data, reward_scale=0.25))
    (row,), (other,) = rows(train(cfg)), rows(train(scaled))
    feed, model = read(cfg), fresh(cfg)
    v, q = [], []
    for part in feed.order.batches(0)[:4]:
        found = Out(model, model.hidden(*(batch := feed.collate([feed.rows[i] for i in part])).run), batch)
        v += found.v.tolist()
        q += found.q.amin(0).tolist()
    expected = {
        "mean_v": np.mean(v),
        "std_v": np.std(v),
        "mean_q": np.mean(q),
        "mean_advantage": np.mean(q) - np.mean(v),
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert {name: other[name] / 4 for name in expected} == pytest.approx(expected, rel=1e-9)
    assert "mean_v" not in rows(train(config(data, tmp_path / "bc", "bc", steps=1)))[0]


def test_targets_follow_the_critics_after_every_step(data: Path, tmp_path: Path) -> None:
    cfg = config(data, tmp_path / "run", steps=1, ilql={"polyak": 0.25})
    before = checkpoint.model_tensors(fresh(cfg))
    after = weights(train(cfg))
    moved = 0
    for name, target in after.items():
        if name.startswith("q_target."):
            online = name.replace("q_target.", "q.")
            torch.testing.assert_close(target, 0.75 * before[online] + 0.25 * after[online], rtol=0, atol=1e-12)
            moved += not torch.equal(before[online], after[online])
    assert moved == 8


def test_clipping_bounds_the_step_but_not_the_reported_norm(data: Path, tmp_path: Path) -> None:
    free = rows(train(config(data, tmp_path / "free", steps=1)))
    clipped = rows(train(config(data, tmp_path / "clipped", steps=1, optim={"clip": 1e-6})))
    assert clipped[0]["grad_norm"] == free[0]["grad_norm"] > 1
    state = checkpoint.load(tmp_path / "clipped" / "checkpoints" / "step-1")[0]["optimizer"]
    squares = sum(float((m / 0.1).square().sum()) for name, m in state.items() if name.endswith("/exp_avg"))
    assert squares**0.5 == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("options", [{"batch": {"workers": 2}}, {"threads": 1}])
def test_what_must_not_matter_to_the_bit(data: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    one = train(config(data, tmp_path / "one", steps=8))
    other = train(config(data, tmp_path / "other", steps=8, **options))
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert all(torch.equal(t, weights(other)[name]) for name, t in weights(one).items())


def test_bf16_trains_float32_weights(data: Path, tmp_path: Path) -> None:
    exact = rows(train(config(data, tmp_path / "a", model={"dtype": "float32"})))
    run = train(config(data, tmp_path / "b", model={"dtype": "float32"}, bf16=True))
    assert {t.dtype for t in weights(run).values()} == {torch.float32}
    assert rows(run)[0]["total"] != exact[0]["total"]
    assert rows(run)[0]["total"] == pytest.approx(exact[0]["total"], rel=0.02)


# ---- going on --------------------------------------------------------------------------------------------------------

LONG: dict[str, Any] = {
    "steps": 9,
    "model": {"dropout": 0.1},
    "optim": {"schedule": "cosine", "warmup": 2},
    "batch": {"dialogues": 4, "accumulate": 2},
    "log": {"every": 3, "validate_every": 4, "checkpoint_every": 2, "keep": 3},
}


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real = Run.step

    def dying(self: Run, window: Any) -> float:
        if self.progress.step == step:
            raise KeyboardInterrupt
        return real(self, window)

    monkeypatch.setattr(Run, "step", dying)


def same(one: Path, other: Path) -> None:
    """The same bytes wherever no seconds are involved."""
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert (one / "best.json").read_bytes() == (other / "best.json").read_bytes()
    assert sha256(one / "model" / "model.safetensors") == sha256(other / "model" / "model.safetensors")
    mine, theirs = checkpoint.steps(one / "checkpoints"), checkpoint.steps(other / "checkpoints")
    assert mine.keys() == theirs.keys()
    for step, folder in mine.items():
        for name in ("model.safetensors", "optimizer.safetensors", "random.json"):
            assert sha256(folder / name) == sha256(theirs[step] / name), (step, name)


@pytest.mark.parametrize("step", [0, 1, 3, 4, 5, 7, 8])
def test_a_stopped_run_goes_on_to_the_bit(data: Path, tmp_path: Path, monkeypatch: Any, step: int) -> None:
    """Across an epoch's end (3 windows), in the middle of a row of the log (3 steps), with dropout."""
    whole = train(config(data, tmp_path / "whole", **LONG))
    cfg = config(data, tmp_path / "part", **LONG)
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    torch.rand(3)
    train(cfg, resume=True)
    same(whole, tmp_path / "part")
    timing = [json.loads(line)["step"] for line in (tmp_path / "part" / "timing.jsonl").read_text().splitlines()]
    assert timing == [3, 6, 9]


@pytest.mark.parametrize("step", [2, 4, 7])
def test_a_run_stopped_within_a_pass_goes_on_to_the_bit(
    data: Path, tmp_path: Path, monkeypatch: Any, step: int
) -> None:
    """3 steps an epoch, each taken twice: after 2 (between passes 2), after 4 and 6 steps checkpoints."""
    options = {**LONG, "batch": {**LONG["batch"], "passes": 2}}
    whole = train(config(data, tmp_path / "whole", **options))
    cfg = config(data, tmp_path / "part", **options)
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    train(cfg, resume=True)
    same(whole, tmp_path / "part")
    once = train(config(data, tmp_path / "once", **LONG))
    assert (once / "metrics.jsonl").read_bytes() != (whole / "metrics.jsonl").read_bytes()


def test_every_pass_learns_from_the_same_dialogues(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[list[tuple[str, ...]]] = []
    real = Run.step

    def told(self: Run, window: Any) -> float:
        seen.append([tuple(taken.batch.ids) for taken in window])
        return real(self, window)

    monkeypatch.setattr(Run, "step", told)
    train(config(data, tmp_path / "run", steps=6, batch={"dialogues": 4, "accumulate": 2, "passes": 3}))
    assert seen[0] == seen[1] == seen[2] != seen[3]
    assert seen[3] == seen[4] == seen[5]


def test_a_damaged_checkpoint_is_passed_over(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(config(data, tmp_path / "whole", **LONG))
    cfg = config(data, tmp_path / "part", **LONG)
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    with (tmp_path / "part/checkpoints/step-6/model.safetensors").open("r+b") as file:
        file.seek(500)
        file.write(b"damage")
    capsys.readouterr()
    train(cfg, resume=True)
    said = capsys.readouterr().err
    assert "step-6: model.safetensors does not match its sha256" in said
    assert "continues from" in said
    assert (tmp_path / "part/checkpoints/invalid-step-6").is_dir()
    same(whole, tmp_path / "part")


def test_where_no_checkpoint_is_valid_nothing_is_begun_or_changed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config(data, tmp_path / "run", steps=2, log={"checkpoint_every": 1})
    run = train(cfg)
    os.truncate(run / "checkpoints/step-1/random.json", 9)
    (run / "checkpoints/step-2/manifest.json").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"no checkpoint of \S+run is valid; put a whole copy of one back, or"):
        train(cfg, resume=True)
    said = capsys.readouterr().err
    assert "step-1: random.json has 9 bytes instead of" in said
    assert "step-2: manifest.json is missing" in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_best_checkpoint_that_is_damaged_is_named(data: Path, tmp_path: Path) -> None:
    log = {"every": 1, "validate_every": 1, "checkpoint_every": 1, "model": "best"}
    cfg = config(data, tmp_path / "run", "bc", steps=12, optim={"lr": 0.05}, log=log)
    best = json.loads((train(cfg) / "best.json").read_text())["step"]
    assert best < 11, "the premise of this test"
    os.truncate(tmp_path / f"run/checkpoints/step-{best}/model.safetensors", 9)
    with pytest.raises(InputError, match=rf"step-{best} has the best weights and cannot be loaded .*--log.model last"):
        train(cfg, resume=True)
    last = replace(cfg, log=replace(cfg.log, model="last"))
    exported = checkpoint.model_tensors(AutoModelForCausalLM.from_pretrained(train(last, resume=True) / "model"))
    assert all(torch.equal(exported[name], tensor) for name, tensor in weights(tmp_path / "run").items())


def test_a_kill_right_behind_the_last_checkpoint(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**LONG, "steps": 8}  # whose last validation is the best
    whole = train(config(data, tmp_path / "whole", **options))
    assert json.loads((whole / "best.json").read_text())["step"] == 8, "the premise of this test"
    cfg = config(data, tmp_path / "part", **options)
    real = Run.tidy

    def dying(self: Run) -> None:
        if self.progress.step == 8:
            raise KeyboardInterrupt
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "tidy", dying)
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    train(cfg, resume=True)
    same(whole, tmp_path / "part")


def test_resuming_a_finished_run_changes_nothing(data: Path, tmp_path: Path) -> None:
    cfg = config(data, tmp_path / "run", **LONG)
    run = train(cfg)
    copy = shutil.copytree(run, tmp_path / "copy")
    train(cfg, resume=True)
    same(copy, run)


def test_resume_begins_where_there_is_nothing(data: Path, tmp_path: Path) -> None:
    train(config(data, tmp_path / "run", steps=1), resume=True)
    assert rows(tmp_path / "run")[0]["step"] == 1


@pytest.mark.slow
def test_kill_9_and_resume(data: Path, tmp_path: Path) -> None:
    options = {**LONG, "steps": 60, "log": {**LONG["log"], "every": 1, "checkpoint_every": 7}}
    whole = train(config(data, tmp_path / "whole", **options))
    path = tmp_path / "config.yaml"
    path.write_text(dump(config(data, tmp_path / "part", **options)))
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(path), "--resume"]
    log = tmp_path / "part" / "metrics.jsonl"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        for _ in range(12_000):
            if log.exists() and log.read_bytes().count(b"\n") >= 20:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "part" / "model").exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "continues from" in done.stderr
    same(whole, tmp_path / "part")


def test_what_would_change_the_bits_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(data, tmp_path / "run", **LONG)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    other = config(data, tmp_path / "run", **{**LONG, "optim": {"schedule": "cosine", "warmup": 3}})
    with pytest.raises(InputError, match=r"config.yaml has optim.warmup = 2, now it is 3; .* --allow-inexact"):
        train(other, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        with pytest.raises(InputError, match=r"threads 1, this process has 77; .* --allow-inexact"):
            train(cfg, resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    train(other, resume=True, allow_inexact=True)
    assert rows(tmp_path / "run")[-1]["step"] == 9


def test_a_config_that_was_rewritten_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.yaml agrees with the command line, but the checkpoint was made by another."""
    cfg = config(data, tmp_path / "run", **LONG)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    other = replace(cfg, steps=12)
    (tmp_path / "run" / "config.yaml").write_text(dump(other))
    with pytest.raises(InputError, match=r"made with config '\w{64}', .* --allow-inexact"):
        train(other, resume=True)
    spared = replace(cfg, skip_nonfinite=1, auto_micro_batch=True, batch=replace(cfg.batch, workers=1))
    (tmp_path / "run" / "config.yaml").write_text(dump(spared))
    train(spared, resume=True)


def test_a_second_process_on_the_folder_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(data, tmp_path / "run", steps=2)
    real = Run.step

    def meanwhile(self: Run, window: Any) -> float:
        with pytest.raises(InputError, match="another process is training in"):
            train(cfg, resume=True)
        with pytest.raises(InputError, match="another process"):
            runfolder.claim(tmp_path / "run", known=False, begins=True)
        return real(self, window)

    monkeypatch.setattr(Run, "step", meanwhile)
    train(cfg)
    assert len(rows(tmp_path / "run")) == 2


def test_a_run_that_another_process_went_on_with_meanwhile_is_not_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-4").mkdir(parents=True)
    with pytest.raises(InputError, match=r"another process has trained in .* since this one began; give the command"):
        runfolder.claim(tmp_path, known=True, begins=True)
    runfolder.claim(tmp_path, known=True, begins=False).close()


def test_forked_processes_do_not_hold_the_lock(tmp_path: Path) -> None:
    """Workers live on for seconds when their parent is killed, and a run must go on at once."""
    lock = runfolder.claim(tmp_path, known=False, begins=True)
    read, write = os.pipe()
    if not (pid := os.fork()):
        os.write(write, b"x")
        time.sleep(60)
        os._exit(0)
    assert os.read(read, 1) == b"x"
    lock.close()
    try:
        runfolder.claim(tmp_path, known=False, begins=True).close()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_the_best_and_the_last_are_kept(data: Path, tmp_path: Path) -> None:
    """A rate so high that the validation loss soon rises: the best step is neither the first nor among the last."""
    log = {"every": 1, "validate_every": 1, "checkpoint_every": 1, "keep": 2, "model": "best"}
    run = train(config(data, tmp_path / "run", "bc", steps=12, optim={"lr": 0.05}, log=log))
    totals = {int(row["step"]): row["validation/total"] for row in rows(run)}
    best = min(totals, key=lambda step: totals[step])
    assert 1 < best < 11, "the premise of this test"
    assert json.loads((run / "best.json").read_text()) == {"step": best, "validation/total": totals[best]}
    assert list(checkpoint.steps(run / "checkpoints")) == [best, 11, 12]
    exported = checkpoint.model_tensors(AutoModelForCausalLM.from_pretrained(run / "model"))
    kept = checkpoint.load(run / f"checkpoints/step-{best}")[0]["model"]
    assert all(torch.equal(exported[name], tensor) for name, tensor in kept.items())


def test_the_run_folder(data: Path, tmp_path: Path) -> None:
    run = train(config(data, tmp_path / "run", log={"every": 2, "tensorboard": True}))
    names = {p.name for p in run.iterdir() if not p.name.startswith(".")}
    assert names == {"config.yaml", "data.json", "metrics.jsonl", "timing.jsonl", "checkpoints", "model", "tensorboard"}
    assert json.loads((run / "data.json").read_text()) == json.loads((data / "manifest.json").read_text())
    assert [set(json.loads(line)) for line in (run / "timing.jsonl").read_text().splitlines()] == [
        {"step", "seconds", "tokens_per_second", "decisions_per_second", "padding", "shared"}
    ] * 2
    card = (run / "model" / "README.md").read_text()
    for part in ("# ilql on tiny", "beta=4.0", "| grad_norm |", "tau: 0.7"):
        assert part in card
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    assert all(torch.equal(t, weights(run)[n]) for n, t in checkpoint.model_tensors(model).items())
    trainer = checkpoint.load(run / "checkpoints" / "step-4")[1]["trainer"]
    assert trainer["environment"]["threads"] == 1
    assert trainer["environment"]["torch"] == torch.__version__
    assert trainer["metrics"] == (run / "metrics.jsonl").stat().st_size


# ---- starting from another run ---------------------------------------------------------------------------------------


def test_critics_after_cloning(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bc = train(config(data, tmp_path / "bc", "bc"))
    cfg = config(data, tmp_path / "ilql", init_from=str(bc), steps=1)
    model = fresh(cfg)
    heads = {name: t.clone() for name, t in checkpoint.model_tensors(model).items() if not name.startswith("lm.")}
    said = warmstart.load(model, bc)
    assert said == f"loaded lm from {bc}/model; fresh: q.0, q.1, q_target.0, q_target.1, v"
    now = checkpoint.model_tensors(model)
    assert all(torch.equal(t, now[name]) for name, t in heads.items())
    assert all(torch.equal(t, now[name]) for name, t in weights(bc).items())
    assert not any(p.requires_grad for p in model.q_target.parameters())
    capsys.readouterr()
    train(cfg)
    assert said in capsys.readouterr().err
    fresh_run = train(config(data, tmp_path / "cold", steps=1))
    assert rows(tmp_path / "ilql")[0]["bc"] < rows(fresh_run)[0]["bc"]


def test_all_of_a_run_with_the_same_shape_is_loaded(data: Path, tmp_path: Path) -> None:
    first = train(config(data, tmp_path / "first"))
    model = fresh(config(data, tmp_path / "next", seed=5))
    assert warmstart.load(model, first) == (f"loaded lm, q.0, q.1, q_target.0, q_target.1, v from {first}/model")
    assert all(torch.equal(t, weights(first)[n]) for n, t in checkpoint.model_tensors(model).items())


# ---- refusals --------------------------------------------------------------------------------------------------------


def refused(cfg: TrainConfig, match: str) -> None:
    with pytest.raises(InputError, match=match):
        train(cfg)
    assert not Path(cfg.output).exists()


def test_a_folder_that_exists_is_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"run exists; choose another --output, or continue it with --resume"):
        train(config(data, tmp_path / "run"))
    with pytest.raises(InputError, match="not a run folder"):
        train(config(data, tmp_path / "run"), resume=True)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/run cannot be written \(Not a directory\); choose another --output"):
        train(config(data, tmp_path / "file" / "run"))
    with pytest.raises(InputError, match="file is a file, not a run folder"):
        train(config(data, tmp_path / "file"), resume=True)


def test_data_that_does_not_fit_is_refused(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    utterance = dataset(tmp_path / "utterance", step="utterance")
    refused(
        config(utterance, out),
        r"ilql learns at token steps, but \S+utterance has utterance steps; build it again: "
        r"python -m datasets_prep tiny --input PATH --output \S+utterance-token --step token",
    )
    refused(
        config(data, out, "ilql_utterance"),
        r"ilql_utterance learns at utterance steps, but \S+ has token steps; build it again: "
        r"python -m datasets_prep tiny --input PATH --output \S+-utterance --step utterance",
    )
    refused(
        config(utterance, out, "sarsa"),
        r"sarsa\.cql_weight is 0\.01, but \S+utterance has utterance steps, .*; set sarsa\.cql_weight to 0$",
    )
    refused(config(tmp_path / "nowhere", out), "is not a dataset")
    none = dataset(tmp_path / "none", held=0)
    refused(config(none, out, log={"validate_every": 1}), "no validation split")
    refused(config(data, out, model={"context": 8}), "the model's context is 8")
    refused(config(data, out, init_from=str(tmp_path / "nowhere")), "has no model folder")


def test_tokenizers_that_differ_are_refused(data: Path, tmp_path: Path) -> None:
    other = dataset(tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["tokenizer"]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(sealed(manifest))
    match = f"other has another tokenizer than {data}; build it with --tokenizer {data}/tokenizer"
    refused(config([data, other], tmp_path / "run"), match)  # type: ignore[arg-type]
    steps = dataset(tmp_path / "steps", step="utterance")
    match = "steps has another step than .*; build it with --step token"
    refused(config([data, steps], tmp_path / "run"), match)  # type: ignore[arg-type]
    first = train(config(data, tmp_path / "first", "bc", steps=1))
    refused(config(other, tmp_path / "run", init_from=str(first)), "trained with another tokenizer than")
    refused(config(data, tmp_path / "run", init_from=str(first), model={"width": 16}), r"lm\.\S+ is \(263, 32\)")


def test_a_pretrained_trunk_with_another_tokenizer_is_refused(data: Path, tmp_path: Path) -> None:
    encoder = Encoder.from_folder(data / "tokenizer")
    trunk = tmp_path / "trunk"
    larger = GPT2Config(vocab_size=encoder.vocab_size + 9, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    AutoModelForCausalLM.from_config(larger).save_pretrained(trunk)
    cfg = config(data, tmp_path / "run", model={"pretrained": str(trunk)})
    assert fresh(cfg).config.get_text_config().vocab_size == encoder.vocab_size + 9, "no tokenizer, nothing to compare"
    encoder.tokenizer.save_pretrained(trunk)
    fresh(cfg)
    first = train(config(data, tmp_path / "first", "bc", steps=1))
    fresh(config(data, tmp_path / "run", model={"pretrained": str(first / "model")}))
    tk.train("word", ["other words"]).save_pretrained(trunk)
    refused(cfg, r"another tokenizer than the model \(.*build the dataset with --tokenizer \S+trunk")


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("tokens", 263, "token id 263 is outside the vocabulary of 263"),
        ("tokens", -1, "token id -1"),
        ("reward", np.nan, "not finite"),
    ],
)
def test_rows_out_of_range_are_refused(tmp_path: Path, column: str, value: float, match: str) -> None:
    data = dataset(tmp_path / "data", held=0)
    content = [{name: np.array(v).tolist() for name, v in row.items()} for row in Rows(data)]
    content[3][column][-1] = value
    replace_rows(data, content)
    refused(config(data, tmp_path / "run"), rf"train row 3 \('d3'\): .*{match}")


# ---- numbers that break down -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    real = ilql.algos.bc.loss
    calls: list[list[str]] = []

    def breaking(out: Any, batch: Any, cfg: Any) -> dict[str, Tensor]:
        vectors = real(out, batch, cfg)
        calls.append(batch.ids)
        if len(calls) == 6:  # the second micro-batch of the third step
            if where == "loss":
                vectors["bc"] = vectors["bc"] * torch.nan
            else:
                vectors["bc"].register_hook(lambda g: g * torch.nan)
        return vectors

    monkeypatch.setattr(ilql.algos.bc, "loss", breaking)
    digests: list[dict[str, Tensor]] = []
    keep = Run.refuse

    def spy(self: Run, *args: Any) -> None:
        digests.append({name: t.clone() for name, t in checkpoint.model_tensors(self.model).items()})
        keep(self, *args)

    monkeypatch.setattr(Run, "refuse", spy)
    cfg = config(data, tmp_path / "run", "bc", batch={"dialogues": 3, "accumulate": 2}, log={"checkpoint_every": 1})
    with pytest.raises(TrainingError) as caught:
        train(cfg)
    name, ids = ("bc", calls[5]) if where == "loss" else ("grad_norm", calls[4] + calls[5])
    assert f"step 2: {name} is nan on dialogues {', '.join(ids)} (kept in" in str(caught.value)
    assert all(torch.equal(t, weights(tmp_path / "run")[n]) for n, t in digests[0].items())
    assert list(checkpoint.steps(tmp_path / "run" / "checkpoints")) == [1, 2]
    assert os.path.getsize(tmp_path / "run" / "metrics.jsonl") > 0
