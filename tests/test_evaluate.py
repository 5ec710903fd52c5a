"""`eval.py`: what it plays, prints and writes, with scripted policies in a run's place."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets_prep import chat, tokenizer
from datasets_prep.encode import Encoder
from ilql import decode
from ilql.build import ModelConfig, build
from ilql.envs import deal_or_no_deal as dond
from ilql.evaluate import main
from ilql.types import PARTNER, Episode, Policy, Turn
from tests.scripted import Scripted, grabber, negotiator, walker

FIRST, SECOND = "1 0 4 2 1 2", "1 4 4 1 1 2"
Load = Callable[..., Policy]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as far as `eval.py` looks into it before loading the model."""
    return make_run(tmp_path / "run")


def make_run(folder: Path) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "config.yaml").write_text("")
    return folder


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Callable[[Load], list[dict[str, Any]]]:
    """Puts a function in `load_policy`'s place; returns the calls it gets."""

    def install(load: Load) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def record(folder: Path, **options: Any) -> Policy:
            calls.append({"folder": Path(folder).name, **options})
            return load(Path(folder), **options)

        monkeypatch.setattr(decode, "load_policy", record)
        return calls

    return install


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "eval.json").read_text())


def still(turns: object) -> str:
    return "move left\n"


def test_the_maze_by_beta(run: Path, loads: Any, capsys: pytest.CaptureFixture[str]) -> None:
    calls = loads(lambda folder, **options: walker() if options["beta"] else Scripted(still))
    options = ["--support-top-k", "3", "--max-new-tokens", "2", "--greedy", "--quiet"]
    assert main([str(run), "--env", "maze", "--episodes", "25", "--beta", "0", "4", "4", *options]) == 0
    shared = {"greedy": True, "temperature": 1.0, "max_new_tokens": 2, "dtype": torch.float32}
    shared |= {"support_top_k": 3, "support_top_p": None, "target_return": None, "candidates": None}
    assert calls == [{"folder": "run", "beta": beta, **shared} for beta in (0.0, 4.0)]
    printed = capsys.readouterr().out
    assert "| policy | n   | return                     | success % " in printed
    assert "| beta 4 | 25  | -6.84 [" in printed
    assert "100.00 [100.00, 100.00]" in printed

    folder = run / "eval" / "maze-1"
    rows = report(folder)["rows"]
    assert [(row["name"], row["beta"], row["n"]) for row in rows] == [("beta-0", 0.0, 25), ("beta-4", 4.0, 25)]
    assert rows[0]["metrics"]["return"] == {"mean": -101.0, "low": -101.0, "high": -101.0}
    best = rows[1]["metrics"]["return"]
    assert best["mean"] == pytest.approx(-6.84)
    assert -8.5 < best["low"] < -6.84 < best["high"] < -5.2
    assert rows[1]["metrics"]["steps"]["mean"] == pytest.approx(7.84)
    assert report(folder)["settings"] == {
        "run": "run",
        "env": "maze",
        "env_arguments": {},
        "episodes": 25,
        "seed": 0,
        "greedy": True,
        "temperature": None,
        "support_top_k": 3,
        "support_top_p": None,
        "max_new_tokens": 2,
        "dtype": "float32",
    }


def test_runs_of_several_seeds_are_one_table(run: Path, loads: Any, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = run, make_run(run.parent / "seed-1")
    calls = loads(lambda folder, **options: walker() if folder.name == "run" else Scripted(still))
    words = ["--env", "maze", "--episodes", "5", "--beta", "0", "4", "--quiet"]
    assert main([str(good), str(bad), *words]) == 0
    assert [call["folder"] for call in calls] == ["run", "run", "seed-1", "seed-1"]
    each = [report(folder / "eval" / "maze-1") for folder in (good, bad)]
    both = report(run.parent / "eval" / "maze-1")
    assert both["settings"]["runs"] == ["run", "seed-1"]
    assert both["settings"]["evaluations"] == ["maze-1", "maze-1"]
    assert "run" not in both["settings"]
    for row, one, other in zip(both["rows"], each[0]["rows"], each[1]["rows"], strict=True):
        means = [one["metrics"]["return"]["mean"], other["metrics"]["return"]["mean"]]
        assert row["means of runs"]["return"] == means
        assert means[0] > -11 > -101 == means[1]
        assert (row["runs"], row["n"], row["beta"]) == (2, 5, one["beta"])
        assert row["metrics"]["return"]["mean"] == pytest.approx(sum(means) / 2)
        assert row["metrics"]["return"]["low"] == -101 < -20 < row["metrics"]["return"]["high"]
    printed = capsys.readouterr().out
    assert "| policy | runs | n   | runs' return" in printed
    assert "over runs and episodes; eval.json in" in printed
    assert main([str(good), str(bad), *words, "--output", str(run.parent / "all")]) == 0
    assert report(run.parent / "all")["settings"]["evaluations"] == ["maze-2", "maze-2"]


def test_runs_that_cannot_be_one_table_are_refused(run: Path, loads: Any, capsys: pytest.CaptureFixture[str]) -> None:
    calls = loads(lambda folder, **options: walker())
    other, far = make_run(run.parent / "other"), make_run(run.parent / "x" / "far")
    (other / "data.json").write_text('{"corpus": "maze", "arguments": {"mirror": true}}')
    for words, told in (
        ([run, run], "a run is named twice"),
        ([run, far], "say by --output where"),
        ([run, other], "other was trained for another maze than"),
        ([run, run.parent / "none"], "none"),
    ):
        assert main([*map(str, words), "--env", "maze", "--quiet"]) == 2
        assert told in capsys.readouterr().err
    assert calls == []
    assert not (run.parent / "eval").exists()


def test_a_target_return_reaches_the_policy_and_the_report(run: Path, loads: Any) -> None:
    calls = loads(lambda folder, **options: walker())
    assert main([str(run), "--env", "maze", "--episodes", "2", "--beta", "0", "--target-return", "-7", "--quiet"]) == 0
    assert [call["target_return"] for call in calls] == [-7]
    assert report(run / "eval" / "maze-1")["settings"]["target_return"] == -7


def test_transcripts_are_logs(run: Path, loads: Any) -> None:
    loads(lambda folder, **options: walker() if options["beta"] else Scripted(still))
    assert main([str(run), "--env", "maze", "--episodes", "3", "--beta", "0", "0.5", "--quiet"]) == 0
    for name, terminated, total in (("beta-0", False, -101), ("beta-0.5", True, None)):
        found = list(chat.episodes([run / "eval" / "maze-1" / "transcripts" / f"{name}.jsonl"]))
        assert len(found) == 3
        for episode in found:
            assert isinstance(episode, Episode)
            assert episode.terminated == terminated
            assert total is None or episode.total_reward == total


def test_nothing_is_overwritten_and_the_same_seed_gives_the_same_files(run: Path, loads: Any, tmp_path: Path) -> None:
    def sampler(folder: Path, **options: Any) -> Policy:
        torch.rand(3)  # loading may draw numbers too
        moves = ["move up\n", "move down\n", "move left\n", "move right\n"]
        return Scripted(lambda turns: moves[int(torch.randint(4, ()))])

    loads(sampler)
    command = [str(run), "--env", "maze", "--episodes", "4", "--beta", "0", "1", "--quiet"]
    assert main(command) == main(command) == main([*command, "--seed", "1"]) == 0
    one, two, three = (run / "eval" / f"maze-{i}" for i in (1, 2, 3))
    assert (one / "eval.json").read_bytes() == (two / "eval.json").read_bytes()
    transcripts = [(folder / "transcripts" / "beta-1.jsonl").read_bytes() for folder in (one, two, three)]
    assert transcripts[0] == transcripts[1] != transcripts[2]
    # every row starts from the same seed
    assert (one / "transcripts" / "beta-0.jsonl").read_bytes() == transcripts[0]

    chosen = tmp_path / "here"
    assert main([*command, "--output", str(chosen)]) == 0
    before = (chosen / "eval.json").read_bytes()
    assert main([*command, "--output", str(chosen), "--seed", "5"]) == 2
    assert (chosen / "eval.json").read_bytes() == before


def test_the_datasets_arguments_are_the_environments(run: Path, loads: Any) -> None:
    arguments = {"mirror": True, "dialogues": 1240, "seed": 3}
    (run / "data.json").write_text(json.dumps({"corpus": "maze", "arguments": arguments}))
    loads(lambda folder, **options: walker(mirror=True))
    command = ["--env", "maze", "--episodes", "25", "--quiet"]
    assert main([str(run), *command]) == 0
    assert main([str(run / "model"), *command]) == 0  # a model's folder finds its run's facts, and reports there
    for number in (1, 2):
        written = report(run / "eval" / f"maze-{number}")
        assert written["settings"]["env_arguments"] == {"mirror": True}
        assert written["rows"][0]["metrics"]["return"]["mean"] == pytest.approx(-6.84)

    loads(lambda folder, **options: walker())
    assert main([str(run), *command, "--env-arg", "mirror=false"]) == 0  # what is given wins
    others = [{"corpus": "maze", "arguments": {"mirror": False}}]
    (run / "data.json").write_text(json.dumps({"corpus": "chat", "arguments": arguments, "others": others}))
    assert main([str(run), *command]) == 0  # of several datasets the one of that name counts
    assert report(run / "eval" / "maze-4")["settings"]["env_arguments"] == {"mirror": False}
    (run / "data.json").write_text(json.dumps({"corpus": "chat", "arguments": arguments}))
    assert main([str(run), *command]) == 0  # another corpus' arguments mean nothing here
    assert report(run / "eval" / "maze-5")["settings"]["env_arguments"] == {}


@pytest.fixture
def scenarios(tmp_path: Path) -> Path:
    path = tmp_path / "selfplay.txt"
    path.write_text(f"{FIRST}\n{SECOND}\n1 10 3 0 1 0\n1 2 3 2 1 2\n")
    return path


def test_a_game_is_played_in_both_seats_against_the_partner(run: Path, loads: Any, scenarios: Path) -> None:
    partner = make_run(run.parent / "bc")
    calls = loads(lambda folder, **options: negotiator(wants=folder.name == "run"))
    options = ["--partner", str(partner), "--beta", "2", "--support-top-p", "0.9", "--temperature", "0.7"]
    options += ["--dtype", "bfloat16", "--quiet"]
    command = [str(run), "--env", "deal_or_no_deal", "--scenarios", str(scenarios), "--episodes", "2", *options]
    assert main(command) == 0
    shared = {"greedy": False, "temperature": 0.7, "max_new_tokens": 64, "dtype": torch.bfloat16}
    assert calls == [
        {"folder": "bc", "beta": 0.0, **shared},
        {
            "folder": "run",
            "beta": 2.0,
            **shared,
            "support_top_k": None,
            "support_top_p": 0.9,
            "target_return": None,
            "candidates": None,
        },
    ]
    written = report(run / "eval" / "deal_or_no_deal-1")
    assert (written["settings"]["partner"], written["settings"]["partner_beta"]) == ("bc", 0.0)
    assert written["settings"]["env_arguments"] == {"scenarios": "selfplay.txt"}
    reference, ours = (row["metrics"] for row in written["rows"])
    assert [row["n"] for row in written["rows"]] == [4, 4]
    # The partner offers everything away: 0 in seat 0, 10 in seat 1. The run takes everything in both.
    assert reference["points (all)"] == {"mean": 5.0, "low": 5.0, "high": 5.0}
    assert ours["points (all)"] == {"mean": 10.0, "low": 10.0, "high": 10.0}
    assert ours["gain in points (all)"] == {"mean": 5.0, "low": 5.0, "high": 5.0}
    assert ours["partner's points (all)"]["mean"] == 0.0
    assert "gain in points (all)" not in reference
    assert ours["agreement %"]["mean"] == 100.0


@pytest.mark.parametrize("how", ["sample", "best"])
def test_both_sides_choose_of_closed_sets(run: Path, loads: Any, scenarios: Path, how: str) -> None:
    calls = loads(lambda folder, **options: negotiator(wants=True))
    command = [str(run), "--env", "deal_or_no_deal", "--scenarios", str(scenarios), "--episodes", "1", "--quiet"]
    assert main([*command, "--closed", how]) == 0
    assert [call["closed"] for call in calls] == [dond.closed] * 2
    assert [call["closed_best"] for call in calls] == [how == "best"] * 2
    assert report(run / "eval" / "deal_or_no_deal-1")["settings"]["closed"] == how
    assert main(command) == 0
    assert "closed" not in report(run / "eval" / "deal_or_no_deal-2")["settings"]


def test_a_games_transcripts_tell_the_sides(run: Path, loads: Any, scenarios: Path) -> None:
    loads(lambda folder, **options: negotiator(wants=options["beta"] > 0))
    command = [str(run), "--env", "deal_or_no_deal", "--scenarios", str(scenarios), "--episodes", "1", "--beta", "2"]
    assert main([*command, "--quiet"]) == 0  # without --partner it is the run's own actor
    path = run / "eval" / "deal_or_no_deal-1" / "transcripts" / "beta-2.jsonl"
    found = [episode for episode in chat.episodes([path]) if isinstance(episode, Episode)]
    assert [(e.id, e.meta["side"], e.meta["seat"], e.total_reward) for e in found] == [
        ("seed-0:a", "run", 0, 10.0),
        ("seed-0:b", "partner", 1, 0.0),
        ("seed-0-swapped:b", "run", 1, 10.0),
        ("seed-0-swapped:a", "partner", 0, 0.0),
    ]
    assert len({episode.meta["group"] for episode in found}) == 1


def test_games_without_a_deal_have_no_points_where_agreed(run: Path, loads: Any, scenarios: Path, capsys: Any) -> None:
    loads(lambda folder, **options: grabber())
    assert main([str(run), "--env", "deal_or_no_deal", "--scenarios", str(scenarios), "--quiet"]) == 0
    row = report(run / "eval" / "deal_or_no_deal-1")["rows"][1]["metrics"]
    assert row["agreement %"]["mean"] == row["points (all)"]["mean"] == 0
    assert row["points (agreed)"] == {"mean": None, "low": None, "high": None}
    assert "–" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--env", "mase"], "unknown environment 'mase': did you mean 'maze'?"),
        (["--env", "maze", "--episodes", "0"], "--episodes is 0, but must be at least 1"),
        (["--env", "maze", "--beta", "-1"], "--beta is -1.0"),
        (["--env", "maze", "--beta", "nan"], "--beta is nan"),
        (["--env", "maze", "--beta", "x"], "argument --beta: invalid float value: 'x'"),
        (["--env", "maze", "--temperature", "0"], "--temperature is 0.0, but must be above 0"),
        (["--env", "maze", "--support-top-p", "1.5"], "--support-top-p is 1.5"),
        (["--env", "maze", "--support-top-k", "0"], "--support-top-k is 0"),
        (["--env", "maze", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["--env", "maze", "--closed", "best"], "--closed: maze has no closed sets of utterances"),
        (["--env", "deal_or_no_deal", "--closed", "all"], "--closed is all, but must be one of sample, best"),
        (["--env", "maze", "--dtype", "float8"], "--dtype is float8, but must be one of float32, bfloat16"),
        (["--env", "maze", "--episods", "5"], "unknown option '--episods': did you mean '--episodes'?"),
        (["--env", "maze", "--env-arg", "observation"], "write it as KEY=VALUE"),
        (["--env", "maze", "--env-arg", "observation=both"], "must be full or partial"),
        (["--env", "maze", "--env-arg", "observe=full"], "did you mean 'observation'?"),
        (["--env", "maze", "--scenarios", "x"], "unknown argument of maze 'scenarios'"),
        (["--env", "maze", "--partner", "RUN"], "--partner is for games"),
        (["--env", "deal_or_no_deal"], "give --scenarios FILE"),
        (["--env", "deal_or_no_deal", "--scenarios", "absent.txt"], "cannot read scenarios from absent.txt"),
        ([], "the following arguments are required: --env"),
    ],
)
def test_bad_options(run: Path, loads: Any, capsys: Any, options: list[str], says: str) -> None:
    calls = loads(lambda folder, **given: walker())
    assert main([str(run), *(str(run) if word == "RUN" else word for word in options)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert says in err
    assert calls == []
    assert not (run / "eval").exists()


def test_bad_folders(run: Path, loads: Any, capsys: Any, tmp_path: Path) -> None:
    loads(lambda folder, **options: walker())
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = make_run(tmp_path / "broken")
    (broken / "data.json").write_text("{")
    for folder, says in (
        (tmp_path / "absent", "does not exist"),
        (empty, "no model/"),
        (broken, "data.json: not valid JSON"),
    ):
        assert main([str(folder), "--env", "maze", "--quiet"]) == 2
        assert says in capsys.readouterr().err
    assert main([str(run), "--env", "deal_or_no_deal", "--partner", str(empty), "--quiet"]) == 2
    assert "no model/" in capsys.readouterr().err
    assert not list(empty.iterdir())


def test_a_real_model_plays(tmp_path: Path, scenarios: Path) -> None:
    encoder = Encoder(tokenizer.train("byte", []))
    ids: dict[str, Any] = {"vocab_size": encoder.vocab_size, "bos_id": encoder.bos_id, "pad_id": encoder.pad_id}
    model = build(ModelConfig(layers=1, width=16, heads=2, context=256), end_ids=encoder.end_ids, history=None, **ids)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    options = ["--episodes", "2", "--beta", "0", "2", "--max-new-tokens", "4", "--support-top-k", "5", "--quiet"]
    command = [str(folder), "--env", "deal_or_no_deal", "--scenarios", str(scenarios), *options]
    assert main([*command, "--env-arg", "max_turns=3"]) == main([*command, "--env-arg", "max_turns=3"]) == 0
    one, two = (folder / "eval" / f"deal_or_no_deal-{i}" / "transcripts" / "beta-2.jsonl" for i in (1, 2))
    assert one.read_bytes() == two.read_bytes()
    found = [episode for episode in chat.episodes([one]) if isinstance(episode, Episode)]
    assert len(found) == 8
    assert {episode.meta["outcome"] for episode in found} == {"turn_limit"}
    # What the actor says anything of is followed by a selection where the game asks for one.
    policy = decode.load_policy(folder, closed=dond.closed, max_new_tokens=4)
    state = [Turn(PARTNER, FIRST), Turn(PARTNER, "<selection>")]
    assert all(said == dond.NO_AGREEMENT or dond.parse_selection(said) for said in policy.respond([state] * 8))


def test_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[1] / "eval.py"
    command = [sys.executable, str(script), str(tmp_path / "absent"), "--env", "maze"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert len(script.read_text().splitlines()) <= 30
