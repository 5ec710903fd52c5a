"""The commands: which function each calls, and that bad input ends in one line and status 2."""

import importlib
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from ilql import cli
from ilql.types import InputError
from tests.tiny import dataset

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_command_calls_its_function_with_the_rest(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, function = cli.COMMANDS[command][0].partition(":")
    calls: list[list[str]] = []

    def answer(argv: list[str]) -> int:
        calls.append(argv)
        return 7

    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{function: answer}))
    assert cli.main([command, "--a", "b"]) == 7
    assert calls == [["--a", "b"]]


def test_bad_input_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(argv: list[str]) -> int:
        raise InputError("x.yaml: no such thing")

    monkeypatch.setitem(sys.modules, "ilql.export", types.SimpleNamespace(main=refuse))
    assert cli.main(["export"]) == 2
    assert capsys.readouterr() == ("", "error: x.yaml: no such thing\n")
    assert cli.main(["exprot"]) == 2
    assert "unknown command 'exprot'; the commands are prep, train" in capsys.readouterr().err
    assert cli.train_main(["--stepz", "3"]) == 2
    assert capsys.readouterr().err == "error: command line: unknown option 'stepz'; did you mean 'steps'?\n"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "export" in capsys.readouterr().out
    assert cli.main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--allow-inexact" in out
    assert "--ilql.tau" in out
    assert cli.main(["--version"]) == 0


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_has_its_function(name: str) -> None:
    module, _, function = cli.COMMANDS[name][0].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_help_needs_no_torch() -> None:
    code = "import sys; from ilql.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_train_py_trains_and_refuses(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", held=0)
    config = tmp_path / "x.yaml"
    config.write_text(
        f"algo: bc\ndata:\n  path: {data}\noutput: {tmp_path}/run\nsteps: 5\ndevice: cpu\n"
        "model: {layers: 1, width: 16, heads: 2, context: 64}\nbatch: {dialogues: 4}\nlog: {every: 1}\n"
    )

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "train.py"), "--config", str(config), *argv]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = run("--steps", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"run folder: {tmp_path}/run\n"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    again = run("--steps", "2")
    assert again.returncode == 2
    assert again.stderr == (
        f"error: the run folder {tmp_path}/run exists; choose another --output, or continue it with --resume\n"
    )
    broken = run("--optim.lr", "1e300", "--output", f"{tmp_path}/broken")
    assert broken.returncode == 1
    assert "Traceback" not in broken.stderr
    assert re.search(r"error: step 1: the weight lm\.\S+ is nan on dialogues d", broken.stderr)
