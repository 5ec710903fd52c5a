"""The command that stores hidden states: what it reads, says and refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from datasets_prep import tokenizer as tk
from ilql import cached, cli, frozen
from ilql.annotate import cache, main
from ilql.decode import load
from ilql.model import ILQLModel
from ilql.rows import Rows
from ilql.schema import validate
from ilql.trainer import train
from ilql.types import InputError
from tests.test_cached import split_of
from tests.tiny import config, dataset


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, and run/ with windows of two turns in float32."""
    folder = tmp_path_factory.mktemp("annotate")
    data: Any = {"path": str(dataset(folder / "data")), "history": 2}
    train(config(data, folder / "run", "bc", steps=1, model={"dtype": "float32"}))
    return folder


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return found


def test_the_command_says_what_it_takes_before_it_writes(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    said: list[str] = []
    real = cached.write

    def write(*args: Any, **options: Any) -> None:
        said.append(capsys.readouterr().out)
        assert not folder.exists()
        real(*args, **options)

    monkeypatch.setattr(cached, "write", write)
    assert cli.main(["annotate", "cache", str(place / "run"), str(place / "data"), "--output", str(folder)]) == 0
    found = manifest(folder)
    counts = found["splits"].values()
    positions, tokens = (sum(split[name] for split in counts) for name in ("positions", "tokens"))
    decisions = sum(split["decisions"] for split in counts)
    size = positions * 2 * 32 + decisions * 37 + decisions * 12  # the index columns: a row a decision and a token
    assert f"{folder}: {size / tokens:.0f} bytes a token, {size:,} bytes in all ({positions:,} states of " in said[0]
    assert "64 bytes each" in said[0]
    on_disk = sum(p.stat().st_size for p in folder.rglob("*.arrow"))
    assert size < on_disk < size + 6 * 2000
    assert (found["history"], found["dtype"], found["width"], found["step"]) == (2, "bfloat16", 32, "token")
    assert tokens == sum(Rows(place / "data", split).lengths.sum() for split in ("train", "validation"))
    assert found["trunk"]["digest"] == frozen.digest(ILQLModel.from_pretrained(place / "run" / "model").lm, "trunk")
    captured = capsys.readouterr()
    assert f"--data.cache {folder} --model.freeze trunk --data.history 2" in captured.out
    assert "token/s" in captured.err


def test_a_full_disk_is_noticed_before_anything_is_written(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert main(["cache", str(place / "run"), str(place / "data"), "--output", str(tmp_path / "a" / "b")]) == 2
    assert "a/b needs" in (error := capsys.readouterr().err)
    assert error.startswith("error: ")
    assert "the disk has 1,000 left" in error
    assert list(tmp_path.iterdir()) == []


def test_any_language_model_is_a_trunk(place: Path, tmp_path: Path) -> None:
    """In its own precision, and not through a pickle."""
    plain = tmp_path / "plain"
    torch.manual_seed(1)
    shape = GPT2Config(vocab_size=263, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1)
    lm = AutoModelForCausalLM.from_config(shape, dtype=torch.float64).eval()
    lm.save_pretrained(plain)
    folder = cache(plain, place / "data", tmp_path / "cache", dtype="float64")
    assert manifest(folder)["history"] == "full"
    opened = split_of(folder, place / "data")
    row = Rows(place / "data")[0]
    with torch.no_grad():
        h = lm.base_model(torch.tensor(row["tokens"].tolist())[None]).last_hidden_state[0, int(row["start"][0]) - 1]
    first = int(opened.tokens["read"].take(opened.decisions["token"].range(0, 1))[0])
    assert torch.allclose(torch.from_numpy(opened.hidden.range(first, first + 1)[0].copy()), h, rtol=0, atol=1e-12)
    run = train(
        config(
            {"path": str(place / "data"), "cache": str(folder)},  # type: ignore[arg-type]
            tmp_path / "run",
            steps=1,
            model={"pretrained": str(plain), "freeze": "trunk"},
            batch={"dialogues": None},
        )
    )
    assert (run / "model").is_dir()
    torch.save(lm.state_dict(), plain / "pytorch_model.bin")
    (plain / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights in safetensors, and no others are read"):
        cache(plain, place / "data", tmp_path / "other")


@pytest.mark.parametrize("step", ["token", "utterance"])
def test_log_probabilities_are_those_of_the_window_that_the_run_was_trained_on(
    place: Path, tmp_path: Path, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = dataset(tmp_path / step, step=step, seed=3)
    assert cli.main(["annotate", "logprobs", str(place / "run"), str(data), "--tokens", "60"]) == 0
    folder = tmp_path / f"{step}-logprobs"
    assert capsys.readouterr().out.startswith(f"{folder}: the dataset with log-probabilities under ")
    assert manifest(folder)["logprobs"] | {"digest": ""} == {"name": str(place / "run"), "digest": "", "history": 2}
    validate(folder)
    model, _ = load(place / "run")
    for split in ("train", "validation"):
        before, after = Rows(data, split), Rows(folder, split)
        assert len(before) == len(after)
        for old, new in zip(before, after, strict=True):
            same = [name for name in old if name != "logp"]
            assert all(np.array_equal(old[name], new[name]) for name in same)
            for start, end, got in zip(new["start"], new["end"], new["logp"], strict=True):
                turn = int(np.searchsorted(new["turn"], start, side="right")) - 1
                begin = 0 if turn <= 2 else int(new["turn"][turn - 2])
                ids = torch.tensor([[*([int(new["tokens"][0])] if begin else []), *new["tokens"][begin:end].tolist()]])
                with torch.no_grad():
                    table = model(input_ids=ids).logits[0].log_softmax(-1)
                n = int(end - start)
                want = sum(table[-1 - k, ids[0, -k]].item() for k in range(n, 0, -1))
                assert got == pytest.approx(want, abs=1e-4)
    assert main(["logprobs", str(place / "run"), str(data)]) == 2
    assert "exists; name another --output" in capsys.readouterr().err


def test_a_run_that_is_told_its_return_has_no_log_probabilities(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {"layers": 1, "width": 16, "heads": 2, "context": 128}
    run = train(config(place / "data", tmp_path / "run", "dt", steps=1, model=shape))
    assert main(["logprobs", str(run), str(place / "data")]) == 2
    assert "is told the return it is to get" in capsys.readouterr().err


def test_states_below_the_last_blocks(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All positions, and the count is exact where dialogues are not cut into windows."""
    folder = tmp_path / "cache"
    arguments = ["cache", str(place / "run"), str(place / "data"), "--layers", "1", "--history", "full"]
    assert main([*arguments, "--output", str(folder)]) == 0
    found = manifest(folder)
    lm = ILQLModel.from_pretrained(place / "run" / "model").lm
    assert found["trunk"]["freeze"] == 1
    assert found["trunk"]["digest"] == frozen.digest(lm, 1) != frozen.digest(lm, "trunk")
    assert all(split["positions"] == split["tokens"] for split in found["splits"].values())
    out = capsys.readouterr().out
    assert f"--data.cache {folder} --model.freeze 1 --data.history full" in out
    tokens, dialogues = (sum(split[name] for split in found["splits"].values()) for name in ("tokens", "dialogues"))
    size = tokens * (2 * 32 + 4) + dialogues * 12
    assert f"{size / tokens:.0f} bytes a token, {size:,} bytes in all" in out
    assert size < sum(p.stat().st_size for p in folder.rglob("*.arrow")) < size + 6 * 2000
    monkeypatch.setattr("ilql.packed.supports", lambda lm: False)
    assert main([*arguments, "--output", str(tmp_path / "other")]) == 2
    assert "can only be cached whole; use --layers 0" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_trunk_that_cannot_begin_later_is_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = frozen.border
    monkeypatch.setattr(frozen, "border", lambda *args: real(*args).roll(1, 0))
    with pytest.raises(InputError, match="cannot begin with block 1; cache it whole"):
        cache(place / "run", place / "data", tmp_path / "cache", layers=1)
    assert list(tmp_path.iterdir()) == []


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "hidden states" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["cache", "--help"])
    assert ended.value.code == 0
    assert "--history" in capsys.readouterr().out


def test_options(place: Path, tmp_path: Path) -> None:
    small = cache(place / "run" / "model", place / "data", tmp_path / "a", history="full", dtype="float32", tokens=1)
    assert manifest(small)["history"] == "full"
    assert manifest(cache(place / "run", place / "data", tmp_path / "b", history=0))["history"] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cache", "{run}", "{data}", "--output", "{run}"], "run exists; name another --output"),
        (["cache", "{run}", "{data}", "--tokens", "0"], "--tokens is 0"),
        (["cache", "{run}", "{data}", "--layers", "2"], "--layers is 2, but the trunk has 2 blocks: name 0 to 1"),
        (["cache", "{run}", "{data}", "--layers", "-1"], "--layers is -1"),
        (["cache", "{run}", "{data}", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["cache", "{run}", "{data}", "--history", "some"], "'some' is neither a number of turns nor full"),
        (["cache", "{run}", "{data}", "--outptu", "x"], "did you mean '--output'?"),
        (["cache", "{run}", "{run}"], "is not a dataset"),
        (["cache", "{data}", "{data}"], "has no model/ yet"),
        (["cache", "{run}/nowhere", "{data}"], "nowhere does not exist"),
        (["cahce", "{run}", "{data}"], "unknown command 'cahce'; the commands are cache"),
        (["cache", "{run}"], "the following arguments are required: DATA"),
    ],
)
def test_what_cannot_be_done_is_refused(
    place: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.iterdir())
    assert main([word.format(run=place / "run", data=place / "data") for word in arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert sorted(place.iterdir()) == before


def test_what_does_not_fit_is_refused(place: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shape = {"vocab_size": 263, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 1}
    for changes, says in (
        ({"n_positions": 20}, "the model's context is 20"),
        ({"vocab_size": 200}, "has 263 tokens, but the model's vocabulary is 200"),
    ):
        AutoModelForCausalLM.from_config(GPT2Config(**shape | changes)).save_pretrained(plain)
        with pytest.raises(InputError, match=says):
            cache(plain, place / "data", tmp_path / "cache")
    AutoModelForCausalLM.from_config(GPT2Config(**shape)).save_pretrained(plain)
    tk.train("word", ["other words"]).save_pretrained(plain)
    with pytest.raises(InputError, match="another tokenizer than the model"):
        cache(plain, place / "data", tmp_path / "cache")
    (plain / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        cache(plain, place / "data", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
