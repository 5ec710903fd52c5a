"""The documentation is true: its example runs, its commands parse, its numbers and defaults are the code's."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as benchmarks
from datasets_prep import CORPORA, chat, options
from datasets_prep.build import Options, build
from datasets_prep.encode import Encoder
from datasets_prep.tokenizer import train as train_tokenizer
from ilql import annotate, cli, evaluate, ope, seeds
from ilql.algos import ALGOS, reads_prior
from ilql.config import flat, load_config, make_config
from ilql.data import collate, decisions
from ilql.rows import Rows
from ilql.types import Episode

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
POINTER = re.compile(r"`(\w+)`\s+\(`([\w/]+\.py):(\d+)`\)")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def table(text: str) -> dict[str, str]:
    """First cell -> second cell of every table row whose first cell is one piece of code."""
    rows = re.findall(r"^\| `([^`|]+)` \| ([^|]+?) \|", text, re.MULTILINE)
    return {name: cell.strip("`") for name, cell in rows}


# ---- the example -----------------------------------------------------------------------------------------------------


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    (code,) = blocks(read("README.md"), "python")
    assert code == read("examples/chat_api.py")
    (log,) = blocks(read("README.md"), "jsonl")
    (tmp_path / "log.jsonl").write_text(log, encoding="utf-8")
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "example.py", "log.jsonl", "out", "2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scored = [line for line in done.stdout.splitlines() if re.search(r"log pi +-\d.* Q +-?\d.* V +-?\d", line)]
    assert scored[-1].startswith("<|end|>")
    assert len(scored) > 5
    assert done.stdout.splitlines()[len(scored) :]  # the answer
    assert (tmp_path / "out" / "run" / "model" / "config.json").is_file()


# ---- commands --------------------------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    for block in blocks(page.read_text(encoding="utf-8"), "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def parse(words: list[str]) -> None:
    """Check a command's options by the parser that it would meet: InputError for a fault in them."""
    if words[0] == "torchrun":
        words = ["python", *words[words.index("train.py") :]]
    assert words[0] == "python", words
    if words[1] == "train.py":
        rest, several = cli._seeds(words[2:])
        assert several is None or seeds.numbers(several)
        load_config([cli._spelled(word) for word in rest if word != "--resume"])
    elif words[1] == "eval.py":
        if "--data" in words:
            ope._parser().parse_args(words[2:])
        else:
            evaluate._configs(words[2:])
    elif words[1:3] == ["-m", "datasets_prep"]:
        if words[3] == "inspect":
            assert "DIR [--row N]" in read("datasets_prep/__main__.py")
        elif words[3] != "--list":
            options.parse(words[3], words[4:])
    elif words[1:3] == ["-m", "ilql.annotate"]:
        parsers = {"cache": annotate.cache_parser, "logprobs": annotate.logprobs_parser}
        parsers |= {"label": annotate.label_parser, "propose": annotate.propose_parser}
        parsers[words[3]]().parse_args(words[4:])
    elif words[1:3] == ["-m", "benchmarks"]:
        benchmarks.parser().parse_args(words[3:])
    elif words[1] == "-m" and words[2].startswith("examples."):
        assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file(), words
    else:
        assert words[1:3] == ["-m", "ilql.export"], words
        assert len(words) == 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = list(commands(page))
    for words in found:
        parse(words)
    assert found or page.name in ("algorithms.md", "dependencies.md", "log.md", "results.md")


# ---- the worked example and the log format ---------------------------------------------------------------------------

WORKED: list[dict[str, Any]] = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo", "reward": 1},
    {"role": "user", "content": "ok"},
    {"role": "assistant", "content": "bye", "reward": 2},
]


@pytest.mark.parametrize(("column", "step"), [(0, "token"), (1, "utterance")])
def test_the_worked_example_is_what_the_builder_writes(tmp_path: Path, column: int, step: str) -> None:
    text = read("docs/data.md")
    shown: dict[str, list[float]] = {}
    for line in text[text.index("| column | `--step token`") :].split("\n\n")[0].splitlines()[2:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        shown[name.strip("`")] = [float(number) for number in cells[column].split()]

    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"messages": WORKED}) + "\n", encoding="utf-8")
    build(Options("chat", inputs=[log], output=tmp_path / "data", tokenizer="byte", step=step))
    row = Rows(tmp_path / "data")[0]
    encoder = Encoder.from_folder(tmp_path / "data" / "tokenizer")
    for name in ("turn", "start", "end", "reward"):
        assert row[name].tolist() == shown[name]
    at = decisions(row["start"], row["end"], len(row["tokens"]), True)
    assert at.state.tolist() == shown["state, read at"]
    assert at.next.tolist() == shown["next state, read at"]
    batch = collate([row], gamma=0.9, bos=encoder.bos_id)
    assert batch.ret.tolist() == pytest.approx(shown["return to go, gamma .9"])

    names = {"BOS": "<|bos|>", "user": "<|user|>", "agent": "<|assistant|>", "end": "<|end|>"}
    written = text[text.index("token     BOS") :].splitlines()[0].split()[1:]
    assert encoder.tokenizer.convert_ids_to_tokens(row["tokens"].tolist()) == [names.get(w, w) for w in written]
    unfolded = collate([row], gamma=0.9, bos=encoder.bos_id, history=1)
    assert sorted(unfolded.run.segments.lengths) == [9, 10]  # positions 0 to 8, and BOS with 9 to 17
    cut = {**row, "tokens": row["tokens"][:14], "turn": row["turn"], "terminated": False}
    cut |= {name: row[name][: 3 if step == "token" else 1] for name in ("start", "end", "reward")}
    assert collate([cut], gamma=0.9, bos=encoder.bos_id).next[-1] == 13


def test_the_logs_that_are_shown_are_read(tmp_path: Path) -> None:
    shown = [json.loads(block) for block in blocks(read("docs/data.md"), "json")]
    lines = [line for line in shown if "messages" in line]
    assert len(lines) == 3
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    encoder = Encoder(train_tokenizer("byte", []))
    for episode in chat.episodes([path]):
        assert isinstance(episode, Episode), episode
        assert encoder.encode(episode, "utterance")["start"]
    fields = table(read("docs/data.md"))
    missing = [name for name in chat.FIELDS if name not in fields and name not in ("name", "tool_call_id")]
    assert missing == []


# ---- tables and pointers ---------------------------------------------------------------------------------------------


def shown_default(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("algo", ALGOS)
def test_every_training_option_stands_in_a_table_with_its_default(algo: str) -> None:
    needed = {"init_from": "r"} if reads_prior(ALGOS[algo], ALGOS[algo].Config()) else {}
    defaults = flat(make_config(algo=algo, data="d", output="o", steps=1, **needed))
    own = {key for key in defaults if key.startswith(f"{algo}.")}
    required = {"algo", "output", "steps", "data.path"}
    general, algorithms = table(read("docs/training.md")), table(read("docs/algorithms.md"))
    for key in defaults.keys() - own - needed.keys():
        wanted = "required" if key in required else shown_default(defaults[key])
        assert general.get(key) == wanted, key
    for key in own:
        assert algorithms.get(key) == shown_default(defaults[key]), key
    assert {key for key in general if "." in key and "/" not in key} <= defaults.keys()


def test_every_option_of_the_builders_stands_in_a_table_with_its_default() -> None:
    text = read("docs/data.md")
    everywhere = table(text[: text.index("## The corpora")])
    for name, corpus in CORPORA.items():
        rows = everywhere | table(text[text.index(f"\n### {name}\n") :].split("\n##")[1])
        for action in options._parser(name, corpus)._actions:
            flag = next(s for s in action.option_strings if s.startswith("--"))
            assert flag == "--help" or f"`{flag}" in text, flag
            if flag in rows and flag != "--help":
                default = (
                    "none" if action.default in (None, []) else "off" if action.default is False else action.default
                )
                assert rows[flag] == ("required" if action.required else str(default)), flag


def test_every_option_of_eval_stands_in_a_table_with_its_default() -> None:
    rows = table(read("docs/evaluation.md"))
    for action in evaluate._parser()._actions:
        name = action.option_strings[0] if action.option_strings else action.dest.upper()
        if name == "-h":
            continue
        assert name in rows
        default = action.default[0] if isinstance(action.default, list) and action.default else action.default
        if isinstance(default, float | int) and not isinstance(default, bool):
            assert rows[name] == f"{default:g}"


@pytest.mark.parametrize(
    ("section", "parser"),
    [
        ("Hidden states, stored once", annotate.cache_parser),
        ("Proposals", annotate.propose_parser),
        ("Learned rewards", annotate.label_parser),
    ],
)
def test_every_option_of_annotate_stands_in_a_table_with_its_default(section: str, parser: Any) -> None:
    rows = table(read("docs/training.md").split(f"\n## {section}\n")[1].split("\n## ")[0])
    for action in parser()._actions:
        name = action.option_strings[0] if action.option_strings else str(action.metavar)
        if name != "-h":
            named = re.search(r"\(default: (.*)\)", action.help or "")
            assert rows[name] == (named[1] if named else "required"), name
            assert named is None or action.default in (None, named[1]) or str(action.default) == named[1]


def defined(name: str, path: str) -> int:
    """The line where a file defines a function or class; a module's own before a class's."""
    lines = enumerate(read(path).splitlines(), 1)
    places = [(len(m[1]), i) for i, line in lines if (m := re.match(rf"( *)(?:def|class) {name}\b", line))]
    assert places, f"{path} defines no {name}"
    return min(places)[1]


def test_a_pointer_leads_to_the_definition_that_it_names() -> None:
    wrong, found = [], 0
    for page in PAGES:
        for name, path, number in POINTER.findall(page.read_text(encoding="utf-8")):
            found += 1
            if int(number) != defined(name, path):
                wrong.append(f"{page.name}: `{name}` (`{path}:{number}`)")
    assert wrong == [], "`python tests/test_readme.py` writes the right lines"
    assert found > 20


def test_every_algorithm_corpus_and_environment_stands_in_the_readme() -> None:
    from ilql.envs import ENVS

    text = read("README.md")
    for folder, names in (("ilql/algos", ALGOS), ("datasets_prep", CORPORA), ("ilql/envs", ENVS)):
        for name in names:
            assert re.search(rf"^\| `{name}` \|.*`{folder}/{name}\.py`", text, re.MULTILINE), name


if __name__ == "__main__":  # lines of code have moved: set the pointers anew
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = POINTER.sub(lambda m: f"`{m[1]}` (`{m[2]}:{defined(m[1], m[2])}`)", old)
        if new != old:
            page.write_text(new, encoding="utf-8")
