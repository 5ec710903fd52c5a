"""The config system: what wins, what is refused and how it is said, and that what is written reads back equal."""

import os
from pathlib import Path

import pytest

from ilql.algos import filtered_bc, ilql
from ilql.config import TrainConfig, dump, load_config, make_config, options
from ilql.data import DataConfig
from ilql.runlog import LogConfig
from ilql.types import InputError

BASE = "algo: ilql\ndata:\n  path: logs\noutput: runs/a\nsteps: 10\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return yaml_file(tmp_path, BASE)


def yaml_file(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text)
    return path


def refusal(argv: list[str]) -> str:
    with pytest.raises(InputError) as caught:
        load_config(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_stand_where_nothing_is_said(base: Path) -> None:
    cfg = load_config(["--config", str(base)])
    assert cfg == TrainConfig(algo="ilql", data=DataConfig(["logs"]), output="runs/a", steps=10)
    assert isinstance(cfg.hyper, ilql.Config)


def test_the_command_line_wins_over_the_file_wherever_it_stands(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, BASE + "ilql:\n  tau: 0.9\n  gamma: 0.5\noptim:\n  lr: 1e-3\n")
    for argv in (
        ["--ilql.tau", ".8", "--config", str(path), "--steps=100", "--optim.lr", "1e-5"],
        ["--config", str(path), "--ilql.tau", ".8", "--steps", "100", "--optim.lr=1e-5"],
    ):
        cfg = load_config(argv)
        assert (cfg.hyper.tau, cfg.hyper.gamma, cfg.steps, cfg.optim.lr) == (0.8, 0.5, 100, 1e-5)


def test_a_later_file_wins_over_an_earlier_one(base: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("steps: 7\noptim:\n  lr: 0.5\n")
    cfg = load_config(["--config", str(base), "--config", str(second)])
    assert (cfg.steps, cfg.optim.lr, cfg.output) == (7, 0.5, "runs/a")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--data.path", "a"], ["a"]),
        (["--data.path", "a", "b"], ["a", "b"]),
        (["--data.path", "a", "1", "--seed", "3"], ["a", "1"]),
        (["--data.path=a"], ["a"]),
        (["--data.path", '["a", "b"]'], ["a", "b"]),
    ],
)
def test_data_path_takes_one_folder_or_several(base: Path, argv: list[str], expected: list[str]) -> None:
    assert load_config(["--config", str(base), *argv]).data.path == expected


def test_pairs_on_the_command_line(base: Path) -> None:
    for argv in (["--optim.betas", ".8", ".95"], ["--optim.betas", "[.8, .95]"], ["--optim.betas=[.8, .95]"]):
        assert load_config(["--config", str(base), *argv, "--steps", "3"]).optim.betas == (0.8, 0.95)


def test_lists_of_numbers_on_the_command_line(base: Path) -> None:
    cfg = load_config(["--config", str(base), "--data.path", "a", "b", "--data.weights", "1", ".5"])
    assert cfg.data.weights == [1.0, 0.5]
    assert cfg.data.path == ["a", "b"]


@pytest.mark.parametrize(("text", "expected"), [("full", None), ("3", 3), ("0", 0)])
def test_history_is_full_or_a_number(base: Path, tmp_path: Path, text: str, expected: int | None) -> None:
    assert load_config(["--config", str(base), "--data.history", text]).data.history == expected
    path = yaml_file(tmp_path, BASE.replace("path: logs", f"path: logs\n  history: {text}"))
    assert load_config(["--config", str(path)]).data.history == expected


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--ilql.tua", ".8"], ["command line", "'ilql.tua'", "'ilql.tau'"]),
        (["--tau", ".8"], ["'tau'", "'ilql.tau'"]),
        (["--optim.lrr", "1"], ["'optim.lr'"]),
        (["--ilql.ta", ".8"], ["unknown option 'ilql.ta'"]),  # no abbreviations
        (["--ilql.tau", "high"], ["command line", "'ilql.tau'", "float", "high"]),
        (["--steps", "1.5"], ["'steps'", "int", "1.5"]),
        (["--seed"], ["--seed needs a value"]),
        (["--seed", "--steps", "3"], ["--seed needs a value"]),
        (["loose"], ["unexpected argument 'loose'"]),
        (["--algo", "iql"], ["unknown algorithm 'iql'", "'ilql'"]),
        (["--filtered_bc.top", ".1"], ["'filtered_bc.top'", "another algorithm than 'ilql'"]),
        (["--optim", "other.yaml"], ["unknown option 'optim'"]),
        (["--data.history", "all"], ["'data.history'"]),
        (["--steps", "0"], ["steps is 0"]),
        (["--optim.lr", "-1"], ["optim.lr"]),
        (["--optim.betas", "1.5", ".9"], ["optim.betas is [1.5, 0.9]"]),
        (["--optim.eps", "-1"], ["optim.eps"]),
        (["--optim.weight_decay", "-1"], ["optim.weight_decay"]),
        (["--ilql.tau", "0"], ["ilql.tau is 0.0", "(0, 1]"]),
        (["--ilql.tau", "1.5"], ["ilql.tau is 1.5"]),
        (["--ilql.gamma", "1.01"], ["ilql.gamma is 1.01"]),
        (["--ilql.v_loss", "huber"], ["ilql.v_loss", "huber", "gumbel"]),
        (["--ilql.v_temperature", "0"], ["ilql.v_temperature is 0.0", "above 0"]),
        (["--ilql.gumbel_clip", "-7"], ["ilql.gumbel_clip is -7.0"]),
        (["--ilql.polyak", "-1"], ["ilql.polyak is -1.0"]),
        (["--ilql.cql_weight", "-1"], ["ilql.cql_weight is -1.0"]),
        (["--algo", "mc", "--mc.gamma", "-1"], ["mc.gamma is -1.0"]),
        (["--algo", "mc", "--mc.polyak", "2"], ["mc.polyak is 2.0"]),
        (["--algo", "mc", "--mc.cql_weight", "-1"], ["mc.cql_weight is -1.0"]),
        (["--algo", "sarsa", "--sarsa.gamma", "2"], ["sarsa.gamma is 2.0"]),
        (["--algo", "sarsa", "--sarsa.cql_weight", ".inf"], ["sarsa.cql_weight is inf"]),
        (["--algo", "sarsa", "--sarsa.polyak", "-1"], ["sarsa.polyak is -1.0"]),
        (["--algo", "awac", "--awac.gamma", "2"], ["awac.gamma is 2.0"]),
        (["--algo", "awac", "--awac.tau", "0"], ["awac.tau is 0.0"]),
        (["--algo", "awac", "--awac.beta", "-1"], ["awac.beta is -1.0"]),
        (["--algo", "awac", "--awac.clip", "0"], ["awac.clip is 0.0"]),
        (["--algo", "awac", "--awac.polyak", "2"], ["awac.polyak is 2.0"]),
        (["--algo", "dt", "--dt.digits", "0"], ["dt.digits is 0", "between 1 and 6"]),
        (["--algo", "q_sft", "--q_sft.gamma", "2"], ["q_sft.gamma is 2.0"]),
        (["--algo", "q_sft", "--q_sft.low", "2"], ["q_sft.low is 2.0", "below q_sft.high"]),
        (["--algo", "q_sft", "--q_sft.rest", "none"], ["q_sft.rest", "dummy"]),
        (["--algo", "q_sft", "--q_sft.support", "2"], ["q_sft.support is 2.0"]),
        (["--algo", "q_sft", "--q_sft.polyak", "2"], ["q_sft.polyak is 2.0"]),
        (["--algo", "cql", "--cql.gamma", "-.1"], ["cql.gamma is -0.1"]),
        (["--algo", "cql", "--cql.cql_weight", "-1"], ["cql.cql_weight is -1.0"]),
        (["--algo", "cql", "--cql.polyak", "2"], ["cql.polyak is 2.0"]),
        (["--data.reward_scale", "0"], ["data.reward_scale is 0.0"]),
        (["--data.reward_scale", "-1"], ["data.reward_scale is -1.0"]),
        (["--model.layers", "0"], ["model.layers is 0"]),
        (["--model.width", "0"], ["model.width is 0"]),
        (["--model.heads", "0"], ["model.heads is 0"]),
        (["--model.context", "-5"], ["model.context is -5"]),
        (["--model.head_width", "0"], ["model.head_width is 0"]),
        (["--model.dropout", ".nan"], ["model.dropout is nan"]),
        (["--threads", "0"], ["threads is 0"]),
        (["--seed", "4294967296"], ["seed is 4294967296"]),
        (["--log.keep", "1"], ["log.keep"]),
        (["--log.model", "best"], ["log.validate_every"]),
        (["--log.model", "worst"], ["'log.model'", "worst"]),
        (["--batch.accumulate", "0"], ["batch.accumulate"]),
        (["--batch.passes", "0"], ["batch.passes"]),
        (["--data.weights", "1", "2"], ["data.weights"]),
        (["--data.weights", "0"], ["data.weights", "above 0"]),
        (["--data.weights", ".nan"], ["data.weights", "above 0"]),
        (["--data.weights", ".inf"], ["data.weights", "above 0"]),
        (["--bf16", "true", "--model.dtype", "float64"], ["bf16"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
    ],
)
def test_a_bad_command_line_is_refused_in_one_sentence(base: Path, argv: list[str], parts: list[str]) -> None:
    message = refusal(["--config", str(base), *argv])
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (BASE + "ilql:\n  tua: 0.8\n", ["unknown option 'ilql.tua'", "'ilql.tau'"]),
        (BASE + "stepz: 3\n", ["'stepz'", "'steps'"]),
        (BASE + "steps: 3\n", ["line 6", "'steps' stands twice"]),
        (BASE + "optim: fast\n", ["'optim' is a section"]),
        (BASE + "optim:\n  lr: fast\n", ["'optim.lr'", "float", "fast"]),
        (BASE + "optim:\n  lr: [1]\n", ["'optim.lr'"]),
        (BASE + "seed:\n  a: 1\n", ["'seed'"]),
        (BASE + "ilql.tau: 0.8\n", ["'ilql.tau'", "nest the keys"]),
        (BASE + "bc: {}\nfiltered_bc:\n  top: 0.1\n", ["'filtered_bc.top'", "another algorithm"]),
        (BASE.replace("ilql", "ilq"), ["unknown algorithm 'ilq'", "'ilql'"]),
        (BASE.replace("output: runs/a\n", ""), ["'output' is not set"]),
        (BASE.replace("data:\n  path: logs\n", ""), ["'data.path' is not set"]),
        ("- a\n", ["expected `key: value`"]),
        ("", ["expected `key: value`"]),
        ("a: [\n", ["line 2", "YAML"]),
        (BASE + "seed: !!python/object/apply:os.system ['touch canary']\n", ["line 6", "YAML"]),
        (BASE + "{}: 1\n", ["YAML"]),
        (BASE + "? [1, 2]\n: 3\n", ["YAML"]),
        ("\x00", ["YAML"]),
    ],
)
def test_a_bad_file_is_refused_with_its_name(
    tmp_path: Path, text: str, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(["--config", str(yaml_file(tmp_path, text))])
    for part in ("x.yaml" if "is not set" not in message else "", *parts):
        assert part in message
    assert not (tmp_path / "canary").exists()


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        assert f"--config {path} is no file of at most" in refusal(["--config", str(path)])


def test_a_name_that_no_folder_can_have_is_refused(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, BASE.replace("output: runs/a", 'output: "a\\0b"'))
    assert "output is 'a\\x00b'" in refusal(["--config", str(path)])


def test_a_section_cannot_name_a_class_or_a_file(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, BASE + "optim:\n  class_path: os.system\n")
    assert "unknown option 'optim.class_path'" in refusal(["--config", str(path)])


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--data.history", "2", "--data.path", "a", "ü b: #c", "--data.weights", "1", "0.30000000000000004"],
        ["--algo", "filtered_bc", "--filtered_bc.min_return", "-1.5", "--optim.betas", "[0.1, 0.2]"],
        ["--algo", "bc", "--optim.clip", "null", "--init_from", "runs/0", "--batch.dialogues", "3"],
        ["--model.extra", '{"rope_theta": 5.0, "x": [1, "2"]}', "--output", "123"],
    ],
)
def test_what_is_written_reads_back_equal(base: Path, tmp_path: Path, argv: list[str]) -> None:
    cfg = load_config(["--config", str(base), *argv])
    written = tmp_path / "config.yaml"
    written.write_text(dump(cfg), encoding="utf-8")
    again = load_config(["--config", str(written)])
    assert again == cfg
    assert dump(again) == dump(cfg)


def test_only_the_chosen_algorithm_is_written(base: Path) -> None:
    text = dump(load_config(["--config", str(base), "--algo", "bc"]))
    assert "bc:\n  closing: 1.0\n" in text
    assert "ilql:" not in text
    assert "history: full" in text


def test_from_python(tmp_path: Path) -> None:
    cfg = make_config(algo="ilql", data=tmp_path, output=tmp_path / "o", steps=3, ilql={"tau": 0.8}, optim={"lr": 0.1})
    assert (cfg.data.path, cfg.hyper.tau, cfg.optim.lr) == ([str(tmp_path)], 0.8, 0.1)
    assert make_config(algo="bc", data=["a", "b"], output="o", steps=1).data.path == ["a", "b"]
    with pytest.raises(InputError, match=r"unknown option 'optim.lrr'; did you mean 'optim.lr'"):
        make_config(algo="ilql", data="a", output="o", steps=3, optim={"lrr": 1})
    with pytest.raises(InputError, match="another algorithm"):
        TrainConfig(algo="ilql", data=DataConfig(["a"]), output="o", steps=1, hyper=filtered_bc.Config())


def test_help_names_every_section() -> None:
    text = options()
    for name in ("--data.path", "--ilql.tau", "--optim.lr", "--log.keep", "--model.layers", "--batch.tokens"):
        assert name in text


def test_tensorboard_is_missed_before_a_folder_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilql.runlog.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        LogConfig(tensorboard=True)
    LogConfig(tensorboard=False)
