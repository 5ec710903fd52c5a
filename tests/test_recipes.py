"""The recipes in examples/: each is a valid config, every algorithm has one for the maze, and that one trains."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from datasets_prep import maze as corpus
from datasets_prep.build import Options, build
from ilql.algos import ALGOS
from ilql.annotate import logprobs
from ilql.config import load_config
from ilql.proposed import propose_all
from ilql.trainer import train
from tests.prep import test_craigslist
from tests.prep.test_casino import DEAL, WALK
from tests.tiny import config

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "examples").glob("*.yaml"))
MOVES = ["move left", "move right", "move up", "move down"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_config(path):
    cfg = load_config(["--config", str(path)])
    assert cfg.output.startswith("runs/")
    assert all(folder.startswith("data/") for folder in cfg.data.path)


def recipe(algo: str) -> Path:
    return ROOT / "examples" / f"maze_{algo}.yaml"


@pytest.fixture(scope="module")
def maze(tmp_path_factory):
    """The folders that the recipes name, by the commands in their comments, with fewer dialogues."""
    folder = tmp_path_factory.mktemp("maze")
    few = {"dialogues": 40}
    judged = {"of": "maze", "ranked": 4, "noise": 20.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "episodes", partial(corpus.episodes, **few))
        build(Options("preferences", folder / "maze-pairs", tokenizer="word", step="utterance", corpus_options=judged))
    for name, tokenizer in (("maze", "word"), ("maze-bpe", "bpe:512")):
        build(Options("maze", output=folder / name, tokenizer=tokenizer, action_tokens=MOVES, corpus_options=few))
    cloned = ["--data.path", str(folder / "maze"), "--output", str(folder / "clone"), "--steps", "1", "--device", "cpu"]
    logprobs(train(load_config(["--config", str(recipe("bc")), *cloned])), folder / "maze")
    spoken = folder / "maze-utterance"
    build(Options("maze", output=spoken, tokenizer="word", step="utterance", corpus_options=few))
    words = ["--data.path", str(spoken), "--output", str(folder / "bc"), "--steps", "1", "--device", "cpu"]
    logprobs(train(load_config(["--config", str(recipe("bc")), *words])), spoken)
    shape = {"layers": 1, "width": 16, "heads": 2, "context": 64}
    cloned = config({"path": str(spoken), "history": 1}, folder / "actor", "bc", steps=1, model=shape)
    propose_all(train(cloned), spoken, n=3)
    return folder


@pytest.fixture(scope="module")
def casino(tmp_path_factory):
    folder = tmp_path_factory.mktemp("casino")
    (folder / "casino.json").write_text(json.dumps([DEAL, WALK]))
    words = ["Accept-Deal", "Reject-Deal", "Walk-Away"]
    options = {"inputs": [folder / "casino.json"], "tokenizer": "bpe:300", "action_tokens": words}
    build(Options("casino", output=folder / "data", **options))
    return folder / "data"


def trained(recipe: str, **options: object) -> Path:
    """The run folder of a recipe's first two steps, which differ."""
    options |= {"steps": 2, "log.every": 1, "log.validate_every": 0, "device": "cpu"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    run = train(load_config(["--config", str(ROOT / "examples" / recipe), *words]))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["total"] != rows[1]["total"]
    return run


def test_the_recipe_of_a_negotiation_trains(casino, tmp_path):
    trained("casino_ilql.yaml", **{"data.path": casino, "output": tmp_path / "run"})


def test_the_recipes_of_a_negotiation_near_its_prior_train(casino, tmp_path):
    cloned = trained("casino_bc.yaml", **{"data.path": casino, "output": tmp_path / "bc"})
    near = {"data.path": casino, "init_from": cloned, "output": tmp_path / "run", "optim.warmup": 0}
    trained("casino_kl_control.yaml", **near)


def test_the_recipes_of_bargains_train(tmp_path):
    data = tmp_path / "data"
    (tmp_path / "dev.json").write_text(json.dumps([test_craigslist.DEAL, test_craigslist.QUIT]))
    build(Options("craigslist", data, [tmp_path / "dev.json"], tokenizer="word", step="utterance"))
    actor = trained("craigslist_ilql_utterance.yaml", **{"data.path": data, "output": tmp_path / "actor"})
    offered = propose_all(actor, data, n=2)
    proposed = {"data.path": offered, "init_from": actor, "output": tmp_path / "run"}
    trained("craigslist_chai.yaml", **proposed)


@pytest.mark.parametrize("algo", ALGOS)
def test_the_recipe_of_every_algorithm_trains(algo, maze, tmp_path):
    plain = load_config(["--config", str(recipe(algo))])
    (asked,) = plain.data.path
    options = {"data.path": maze / Path(asked).name, "output": tmp_path / "run", "steps": 2}
    options |= {"batch.dialogues": 4, "log.every": 1}
    if plain.init_from in ("runs/maze-bc", "runs/maze-bc-utterance"):
        options["init_from"] = tmp_path / "bc"
        of = ["--data.path", str(options["data.path"]), "--output", str(tmp_path / "bc"), "--device", "cpu"]
        train(load_config(["--config", str(recipe("bc")), *of, "--steps", "1", "--batch.dialogues", "4"]))
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    cfg = load_config(["--config", str(recipe(algo)), *words, "--device", "cpu"])
    assert cfg.algo == algo
    run = train(cfg)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["total"] != rows[1]["total"]
    assert (run / "model" / "config.json").is_file()
