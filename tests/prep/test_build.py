"""Logs in, a dataset folder out: nothing lost, nothing overwritten, the same bytes however it is built."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import datasets
import pytest

from datasets_prep import CORPORA, build, chunks, options, split, stats, write
from datasets_prep.__main__ import main
from datasets_prep.talks import Talks
from ilql import schema
from ilql.types import Episode, InputError, Turn
from tests.prep import tokenizers_for_tests as others
from tests.prep.workers import punctual

ROOT = Path(__file__).resolve().parents[2]


def line(number: int, text: str = "hello", **fields: Any) -> str:
    messages = [
        {"role": "user", "content": f"{text} {number}"},
        {"role": "assistant", "content": f"yes {number % 7}", "reward": number % 3},
        {"role": "user", "content": "ok"},
        {"role": "assistant", "content": "bye", "reward": 1},
    ]
    return json.dumps({"id": f"d{number}", "messages": messages} | fields)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(line(i) + "\n" for i in range(40)))
    return path


def prep(log: Path, out: Path, *more: str) -> int:
    return main(["chat", "--input", str(log), "--output", str(out), "--tokenizer", "byte", *more])


def rows(folder: Path, name: str = "train") -> list[dict[str, Any]]:
    files = sorted((folder / name).glob("*.arrow"))
    return [row for file in files for row in datasets.Dataset.from_file(str(file)).to_list()]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def nothing_left(tmp_path: Path, *known: str) -> bool:
    return sorted(p.name for p in tmp_path.iterdir()) == sorted(known)


def test_a_dataset_is_whole(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "data"
    assert prep(log, out, "--validation", "0.2") == 0
    manifest = schema.validate(out)
    train, held = rows(out), rows(out, "validation")
    assert {row["id"] for row in train + held} == {f"d{i}" for i in range(40)}
    assert 2 <= len(held) <= 16
    assert set(manifest["files"]) == set(contents(out)) - {"manifest.json"}
    assert manifest["files"]["train/data-00000.arrow"]["rows"] == len(train)
    assert manifest["files"]["rejected.jsonl"]["rows"] == 0
    assert manifest["tokenizer"] == {
        "name": "byte",
        "sha256": schema.folder_sha256(out / "tokenizer"),
        "vocab_size": 263,
    }
    assert manifest["sources"] == [{"name": "log.jsonl", "sha256": schema.sha256(log)}]
    assert manifest["arguments"]["agent_role"] == "assistant"
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    printed = capsys.readouterr().out
    assert "episodes in 40 = rows out 40 + rejected 0" in printed
    assert nothing_left(tmp_path / "new", "data")
    assert nothing_left(tmp_path, "log.jsonl", "new")


def test_statistics_count_what_is_there(tmp_path: Path) -> None:
    log, out = tmp_path / "log.jsonl", tmp_path / "out"
    a, u = {"role": "assistant", "content": "ab"}, {"role": "user", "content": "c"}
    dialogues = [
        {"messages": [u, a | {"reward": 3}]},
        {"messages": [u, a | {"reward": 3}]},
        {"messages": [a, u, a | {"reward": -1}, u], "terminated": False},
        {"messages": [u, a], "terminated": False},
        {"messages": [u]},
    ]
    log.write_text("\n".join(json.dumps(d) for d in dialogues))
    assert prep(log, out, "--max-reject-rate", "0.2") == 0
    found = json.loads((out / "manifest.json").read_text())["statistics"]
    train = found["train"]
    # BOS, turns of 4 (agent) and 3 tokens; the third dialogue ends with the agent's open header
    assert train["dialogues"] == 4
    assert train["tokens"] == 8 + 8 + (1 + 4 + 3 + 4 + 3 + 1) + 8
    assert train["turns"] == 2 + 2 + 4 + 2
    assert train["agent_turns"] == 5
    assert train["transitions"] == 15
    assert train["action_token_share"] == 0.375
    assert train["nonzero_reward_share"] == 0.6
    assert train["return"] == {"mean": 1.25, "min": -1, "p10": -0.7, "p50": 1.5, "p90": 3, "max": 3}
    assert train["reward"]["mean"] == 1
    assert train["tokens_per_action"]["max"] == 3
    assert (train["truncated"], train["transitions_without_target"], train["duplicates"]) == (2, 1, 2)
    assert (found["episodes_in"], found["rows_out"], found["rejected"]) == (5, 4, 1)


def test_unknown_words_are_counted_and_the_tokenizer_sees_train_alone(log: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text(line(100, "zebra giraffe") + "\n")
    out = tmp_path / "out"
    assert prep(log, out, "--validation", str(held), "--tokenizer", "word") == 0
    found = schema.validate(out)["statistics"]
    assert (found["train"]["unknown_tokens"], found["validation"]["unknown_tokens"]) == (0, 3)  # and "100"
    assert [row["id"] for row in rows(out, "validation")] == ["d100"]
    assert "zebra" not in (out / "tokenizer/tokenizer.json").read_text()


@pytest.mark.parametrize(("tokenizer", "workers"), [("word", "4"), ("folder", "2")])
def test_workers_and_order_of_files_give_the_same_bytes(
    log: Path, tmp_path: Path, tokenizer: str, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "DIALOGUES", 3)
    with log.open("a") as file:
        file.write("{broken\n" + line(50, "a" * 40) + "\n" + line(51) + "\n")
    name = str(others.saved(others.chatml(), tmp_path / "tok")) if tokenizer == "folder" else tokenizer
    more = ["--validation", "0.3", "--max-reject-rate", "1", "--tokenizer", name, "--max-length", "60"]
    more += ["--overlong", "tail", "--action-token", "bye", "--seed", "3"]
    one, four, again = (tmp_path / n for n in ("one", "four", "again"))
    assert prep(log, one, *more) == 0
    done = punctual(monkeypatch)
    assert prep(log, four, *more, "--workers", workers) == 0
    assert done
    moved = tmp_path / "elsewhere" / log.name
    moved.parent.mkdir()
    moved.write_bytes(log.read_bytes())
    assert prep(moved, again, *more) == 0
    assert contents(one) == contents(four) == contents(again)
    assert schema.validate(one)["statistics"]["rejected"] > 0


def test_rejects_are_written_down_in_order_with_their_place(log: Path, tmp_path: Path) -> None:
    bad = [
        line(1),  # the id is taken
        "{",
        json.dumps({"id": "p", "messages": [{"role": "user", "content": "x", "reward": 1}]}),
        json.dumps({"messages": [{"role": "user", "content": "x"}]}),
        line(60, reward=1e308),
        line(61, reward="1"),
    ]
    with log.open("a") as file:
        file.write("\n".join(bad))
    out = tmp_path / "out"
    assert prep(log, out, "--max-reject-rate", "0.5") == 0
    found = [json.loads(text) for text in (out / "rejected.jsonl").read_text().splitlines()]
    assert [(r["file"], r["line"], r["field"]) for r in found] == [
        *(("log.jsonl", 41, "id"), ("log.jsonl", 42, ""), ("log.jsonl", 43, "messages[0].reward")),
        *(("log.jsonl", 44, "messages"), ("log.jsonl", 45, "reward"), ("log.jsonl", 46, "reward")),
    ]
    assert all(r["reason"] for r in found)
    manifest = schema.validate(out)
    assert manifest["statistics"]["episodes_in"] == 46
    assert manifest["statistics"]["rows_out"] == len(rows(out)) == 40
    assert manifest["files"]["rejected.jsonl"]["rows"] == 6


def test_too_many_rejects_fail_with_the_commonest_reasons(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = ["{"] * 1 + [line(60 + i, rewrd=1) for i in range(4)] + [line(i) for i in range(3)]
    bad += [json.dumps({"id": f"n{i}", "messages": [{"role": "user", "content": "x"}]}) for i in range(2)]
    with log.open("a") as file:
        file.write("\n".join(bad))
    assert prep(log, tmp_path / "a" / "out", "--max-reject-rate", "0.19") == 2
    error = capsys.readouterr().err
    assert "10 of 50" in error
    assert "4 x rewrd" in error
    assert "3 x id" in error
    assert "2 x messages" in error
    assert "log.jsonl:42" in error
    assert "not a JSON" not in error
    assert nothing_left(tmp_path, "log.jsonl")
    assert prep(log, tmp_path / "out", "--max-reject-rate", "0.2") == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["chta"], "did you mean 'chat'"),
        (["zzz"], "the corpora are chat"),
        ([], "give the corpus first"),
        (["--input", "x"], "give the corpus first"),
        (["chat", "--input", "LOG"], "--output"),
        (["chat", "--output", "OUT"], "--input"),
        (["chat", "--input", "none.jsonl", "--output", "OUT"], "none.jsonl does not exist"),
        (["chat", "--input", "LOG", "--output", "OUT", "--max-lenght", "3"], "did you mean --max-length"),
        (["chat", "--input", "LOG", "--output", "OUT", "--valid", "3"], "--validation"),
        (["chat", "--input", "LOG", "--output", "OUT", "--step", "turn"], "--step"),
        (["chat", "--input", "LOG", "--output", "OUT", "--overlong", "front"], "--max-length"),
        (["chat", "--input", "LOG", "--output", "OUT", "--max-length", "1"], "--max-length 1"),
        (["chat", "--input", "LOG", "--output", "OUT", "--workers", "0"], "--workers 0"),
        (["chat", "--input", "LOG", "--output", "OUT", "--max-reject-rate", "7"], "--max-reject-rate"),
        (["chat", "--input", "LOG", "--output", "OUT", "--validation", "1.5"], "between 0 and 1"),
        (["chat", "--input", "LOG", "--output", "OUT", "--validation", "no.jsonl"], "no.jsonl"),
        (["chat", "--input", "LOG", "--output", "OUT", "--validation", "LOG"], "also an --input"),
        (["chat", "--input", "LOG", "--output", "OUT", "--validation", ""], "--validation"),
        (["chat", "--input", "LOG", "--output", "OUT", "--validation", "FULL"], "full is a folder"),
        (["chat", "--input", "LOG", "--output", "OUT", "--validation", "EMPTY"], "--validation"),
        (["maze", "--dialogues", "3", "--output", "OUT", "--validation", "LOG"], "give --validation a fraction"),
        (["chat", "--input", "LOG", "--output", "OUT", "--tokenizer", "bpe"], "bpe:8192"),
        (["chat", "--input", "LOG", "--output", "OUT", "--tokenizer", "nobody/nothing"], "nobody/nothing"),
        (["chat", "--input", "LOG", "--output", "OUT", "--action-token", " "], "--action-token"),
        (["chat", "--input", "LOG", "--output", "LOG"], "exists already"),
        (["chat", "--input", "LOG", "--output", "FULL"], "exists already"),
        (["chat", "--input", "LOG", "--output", "INSIDE"], "log.jsonl, which is a file"),
        (["deal_or_no_deal", "--input", "NOTHING", "--output", "OUT"], "nothing.txt is empty"),
        (["chat", "--input", "EMPTY", "--output", "OUT"], "is empty"),
        (["chat", "--input", "LOG", "--output", "OUT", "--agent-role", "bot"], "on a message of 'assistant'"),
        (
            ["chat", "--input", "LOG", "--output", "OUT", "--max-length", "9", "--max-reject-rate", "1"],
            "no dialogue is",
        ),
        (["maze", "--output", "OUT", "--agent-role", "x"], "--agent-role"),
        (["inspect", "FULL"], "not a dataset"),
    ],
)
def test_wrong_words_are_one_clear_sentence(
    words: list[str], reason: str, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full, empty = tmp_path / "full", tmp_path / "empty.jsonl"
    full.mkdir()
    (full / "mine").write_text("keep")
    empty.write_text("\n")
    (tmp_path / "nothing.txt").touch()
    names = {"INSIDE": log / "x" / "y", "NOTHING": tmp_path / "nothing.txt"}
    names |= {"LOG": log, "OUT": tmp_path / "out", "FULL": full, "EMPTY": empty}
    before = contents(tmp_path)
    assert main([str(names.get(word, word)) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert reason in error
    assert contents(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_a_template_that_cannot_serve_is_refused_by_the_name_given(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others.chatml(others.FORGETFUL).save_pretrained(tmp_path / "forgetful-7b")
    words = ["chat", "--input", str(log), "--output", str(tmp_path / "out")]
    assert main([*words, "--tokenizer", str(tmp_path / "forgetful-7b")]) == 2
    assert f"tokenizer '{tmp_path / 'forgetful-7b'}' cannot be used" in capsys.readouterr().err


def test_a_file_that_may_not_be_read_is_one_sentence(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(log))

    monkeypatch.setattr(build, "build", refuse)
    assert prep(log, tmp_path / "out") == 2
    assert capsys.readouterr().err == f"error: {log}: Permission denied\n"


def test_an_empty_output_folder_may_be_filled(log: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert prep(log, tmp_path / "out") == 0
    schema.validate(tmp_path / "out")


def test_ctrl_c_ends_a_build_in_a_line_and_leaves_nothing(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_tokenizer", asked)
    assert main(["chat", "--input", str(log), "--output", str(tmp_path / "out" / "data")]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
    assert not list(tmp_path.rglob("*data*"))


def test_the_command_line(log: Path, tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "datasets_prep", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ, check=False)

    out = str(tmp_path / "out")
    done = run("chat", "--input", str(log), "--output", out, "--tokenizer", "word", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "episodes in 40 = rows out 40 + rejected 0" in done.stdout
    schema.validate(out)
    again = run("chat", "--input", str(log), "--output", out)
    assert again.returncode == 2
    assert again.stdout == ""
    assert again.stderr.count("\n") == 1
    listed = run("--list")
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in CORPORA)
    assert "--agent-role" in listed.stdout


def test_inspect_moves_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = {"id": "a\x1b[2J\x07", "messages": [{"role": "assistant", "content": "\x1b]0;x\x9c\tb"}]}
    (tmp_path / "log").write_text(json.dumps(line))
    assert prep(tmp_path / "log", tmp_path / "out") == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert r"id a\x1b[2J\x07," in printed
    assert r"\x1b]0;x\x9c\x09b" in printed
    assert not any(ord(letter) < 32 and letter != "\n" for letter in printed)


def test_inspect_shows_spans_states_and_rewards(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert prep(log, out, "--action-token", "bye") == 0
    capsys.readouterr()
    assert main(["inspect", str(out), "--row", "5"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("train, row 5 of 40\nid d5, 23 tokens, 4 turns, 7 transitions (token steps), return 3,")
    assert "     1  <|user|>hello 5<|end|>\n" in printed
    assert "    10  <|assistant|>[[yes 5<|end|>]]\n        states 10 to 15; reward 2 on completing 16\n" in printed
    assert "[[bye]]\n        state 21; reward 1 on completing 22\n" in printed
    for words in (["--row", "40"], ["--row", "-1"], ["--split", "validation"]):
        assert main(["inspect", str(out), *words]) == 2
        assert "rows" in capsys.readouterr().err


def test_turn_tokens_are_those_that_the_corpus_lists_and_the_named_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tokenizer", "byte", "--dialogues", "20", "--turn-tokens", "--action-token", "move up", "fly"]
    assert main(["maze", "--output", str(tmp_path / "out"), *options]) == 0
    manifest = schema.validate(tmp_path / "out")
    uses = manifest["statistics"]["action_tokens"]
    assert set(uses) == {"move left\n", "move right\n", "move up\n", "move down\n", "fly"}
    assert manifest["statistics"]["train"]["tokens_per_action"]["max"] == 1
    assert manifest["arguments"]["action_token"] == ["move up", "fly"]
    assert capsys.readouterr().err.count("note: no turn of the agent says") == 1  # fly
    for row in rows(tmp_path / "out"):
        begins = [*row["turn"], len(row["tokens"])]
        sizes = {b - a for a, b in itertools.pairwise(begins)}
        assert sizes <= {2, 3}  # mark and action; mark, word and end


def test_turn_tokens_of_a_corpus_that_lists_none(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prep(log, tmp_path / "out", "--turn-tokens") == 2
    assert (
        "--turn-tokens: the turns of chat are no closed set (those of door, maze, recall, wordle are)"
        in capsys.readouterr().err
    )


def test_turn_tokens_and_a_template_that_strips_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = others.saved(others.llama3(), tmp_path / "tok")
    assert main(["maze", "--output", str(tmp_path / "out"), "--turn-tokens", "--tokenizer", str(tokenizer)]) == 2
    assert "does not leave 'The goal is" in capsys.readouterr().err


def test_of_many_action_tokens_the_rarest_and_commonest_are_printed() -> None:
    uses = {f"word {i}": i for i in range(30, 0, -1)}
    tally = stats.Tally().summary()
    text = stats.table({"train": tally, "action_tokens": uses})
    shown = [line.split("  ")[0] for line in text.split("\n\n")[-1].splitlines()]
    assert shown[0] == "action token (the rarest and commonest of 30)"
    assert shown[1:] == [f"'word {i}'" for i in (*range(1, 7), *range(25, 31))]
    text = stats.table({"train": tally, "action_tokens": dict(list(uses.items())[:12])})
    assert [line.split("  ")[0] for line in text.split("\n\n")[-1].splitlines()][1:3] == ["'word 30'", "'word 29'"]


def test_a_use_of_no_action_token_is_told(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prep(log, tmp_path / "out", "--action-token", "bye", "goodbye") == 0
    told = capsys.readouterr()
    assert "'goodbye'" in told.err
    assert "'bye'" not in told.err
    assert schema.read_manifest(tmp_path / "out")["statistics"]["action_tokens"] == {"bye": 40, "goodbye": 0}


def test_large_datasets_are_several_files(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "DIALOGUES", 3)
    monkeypatch.setattr(write.SplitWriter.__init__, "__defaults__", (1000,))
    out = tmp_path / "out"
    assert prep(log, out) == 0
    manifest = schema.validate(out)
    assert len(list((out / "train").iterdir())) > 3
    assert [row["id"] for row in rows(out)] == [f"d{i}" for i in range(40)]
    assert sum(e["rows"] for name, e in manifest["files"].items() if name.endswith(".arrow")) == 40
    assert main(["inspect", str(out), "--row", "39"]) == 0


def test_a_failure_half_way_leaves_nothing(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_manifest", fails)
    assert prep(log, tmp_path / "deep" / "out") == 130
    assert nothing_left(tmp_path, "log.jsonl")


def an(id: str, **meta: Any) -> Episode:
    return Episode(id, [Turn("assistant", "x")], meta=meta)


def placed(
    episodes: list[Episode], validation: float | split.Fold | Path, seed: int, groups: set[str] | None = None
) -> dict[str, str]:
    """The split of each dialogue of a corpus, by its id."""
    named = {} if groups is None else {"groups": lambda path: groups}
    splitter = split.Splitter(SimpleNamespace(**named), [], validation, seed)  # type: ignore[arg-type]
    splits = splitter.place("train", split.look(Talks.of(episodes), splitter.grouped))
    splitter.close()
    return {episode.id: name for episode, name in zip(episodes, splits, strict=True) if isinstance(name, str)}


def test_no_group_is_on_both_sides() -> None:
    episodes = [an(f"d{i}:{side}") for i in range(200) for side in "ab"]
    episodes += [an(f"e{i}", group=i % 50) for i in range(200)]
    found = placed(episodes, 0.3, 7)
    assert len(found) == 600
    assert all(found[f"d{i}:a"] == found[f"d{i}:b"] for i in range(200))
    assert all(found[f"e{i}"] == found[f"e{i + 50}"] for i in range(150))
    assert 120 < list(found.values()).count("validation") < 240
    assert len({split.group(f"f{i}", {"group": None}) for i in range(9)}) == 9
    assert placed(episodes[::-1], 0.3, 7) == found
    assert placed(episodes, 0.3, 8) != found


def test_folds_are_all_of_it_once() -> None:
    episodes = [an(f"d{i}:{side}") for i in range(200) for side in "ab"]
    folds = [split.parse(f"{k}/5") for k in range(1, 6)]
    found = [placed(episodes, fold, 7) for fold in folds]  # type: ignore[arg-type]
    for name in found[0]:
        assert [fold[name] for fold in found].count("validation") == 1
    assert all(40 < list(fold.values()).count("validation") < 120 for fold in found)
    assert found[0] == placed(episodes, 0.2, 7)
    for wrong in ("0/5", "6/5", "1/1"):
        with pytest.raises(InputError, match="folds of N are 1/N to N/N"):
            split.parse(wrong)


def test_a_validation_file_takes_its_groups_out_of_train(tmp_path: Path) -> None:
    episodes = [an("a", group="g"), an("b", group="h"), an("c", group="g")]
    assert placed(episodes, tmp_path, 0, {"g"}) == {"a": "validation", "b": "train", "c": "validation"}
    with pytest.raises(InputError, match="no dialogue of --input"):
        placed(episodes, tmp_path, 0, {"z"})


def test_a_dialogue_of_train_is_no_validation_of_a_file(tmp_path: Path) -> None:
    """The other side of a dialogue, or its group, in the validation file is a reject; ids made of lines say nothing."""

    def chat(turns: list[tuple[str, dict[str, Any]]]) -> str:
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
        return "".join(
            json.dumps({"messages": messages, **({"id": i} if i else {}), "meta": m}) + "\n" for i, m in turns
        )

    (tmp_path / "a").mkdir()
    log, held = tmp_path / "log.jsonl", tmp_path / "a" / "log.jsonl"
    log.write_text(chat([("42:a", {}), ("x", {"group": "g"}), ("", {})]))
    held.write_text(chat([("42:b", {}), ("y", {"group": "g"}), ("", {}), ("z", {})]))
    out = tmp_path / "out"
    assert prep(log, out, "--validation", str(held), "--max-reject-rate", "1") == 0
    assert [row["id"] for row in rows(out)] == ["42:a", "x", "log-3"]
    assert [row["id"] for row in rows(out, "validation")] == ["log-3", "z"]
    rejected = [json.loads(text) for text in (out / "rejected.jsonl").read_text().splitlines()]
    assert [(r["id"], r["line"]) for r in rejected] == [("42:b", 1), ("y", 2)]
    assert all("stands in --input too" in r["reason"] for r in rejected)


def test_options_come_from_the_signature(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def episodes(
        inputs: list[Path],
        *,
        seed: int,
        count: int = 3,
        share: float | None = None,
        kind: Literal["a", "b"] = "a",
        flip_it: bool = False,
        names: list[str] = [],  # noqa: B006
    ) -> Iterator[Episode]:
        yield an("x")

    module: Any = ModuleType("toy", "A toy. With more words.")
    module.episodes = episodes
    monkeypatch.setitem(CORPORA, "toy", module)
    words = ["--output", str(tmp_path / "o"), "--count", "5", "--share", "0.5", "--kind", "b", "--flip-it"]
    found = options.parse("toy", [*words, "--names", "p", "q"]).corpus_options
    assert found == {"count": 5, "share": 0.5, "kind": "b", "flip_it": True, "names": ["p", "q"]}
    assert options.parse("toy", words[:2]).corpus_options["share"] is None
    for wrong in (["--count", "x"], ["--kind", "c"], ["--flip-it=3"]):
        with pytest.raises(InputError, match=wrong[0].partition("=")[0]):
            options.parse("toy", [*words[:2], *wrong])
    assert "toy\n    A toy\n" in options.listing()
