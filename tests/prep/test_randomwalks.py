"""The generated walks are the published ones, letter for letter."""

import hashlib
import itertools
import json
from pathlib import Path
from statistics import mean

import pytest

from datasets_prep.__main__ import main
from datasets_prep.encode import Encoder
from datasets_prep.randomwalks import draw_walks, episodes
from datasets_prep.rejects import Reject
from ilql import schema
from ilql.envs.randomwalks import RandomWalks
from ilql.types import AGENT, PARTNER, Episode, Turn

PUBLISHED = "69d12e9cd7e4c474aa6f5d94862438390508d55e299c207c9d0d2cb453d00fd3"


@pytest.fixture(scope="module")
def published() -> list[Episode]:
    found = list(episodes([], seed=1000))
    assert all(isinstance(episode, Episode) for episode in found)
    return found  # type: ignore[return-value]


def walk(episode: Episode) -> str:
    return "".join(turn.text for turn in episode.turns)


def test_the_walks_are_the_published_ones(published: list[Episode]) -> None:
    walks = [walk(episode) for episode in published]
    assert walks[:5] == ["sda", "fda", "ebjnbdtkna", "jnbjna", "lbusdtkbui"]
    assert len(walks) == 1000
    assert hashlib.sha256("\n".join(walks).encode()).hexdigest() == PUBLISHED


def test_their_published_statistics(published: list[Episode]) -> None:
    assert mean(episode.total_reward for episode in published) == pytest.approx(0.3515, abs=5e-5)
    assert mean(episode.meta["nodes"] is not None for episode in published) == 0.56
    assert mean(episode.meta["nodes"] == episode.meta["shortest"] for episode in published) == 0.184
    steps = {pair for e in published for pair in itertools.pairwise(walk(e))}
    assert len(steps) == 51
    best: dict[str, float] = {}
    for e in published:
        best[walk(e)[0]] = max(best.get(walk(e)[0], 0), e.total_reward)
    assert mean(best.values()) == pytest.approx(0.992, abs=5e-4)
    assert sum(value < 1 for value in best.values()) == 1  # that start needs stitching


def test_walks_keep_to_the_graph_and_stop_at_the_goal_or_the_tenth_node(published: list[Episode]) -> None:
    graph = RandomWalks()
    for episode in published:
        nodes = walk(episode)
        assert all(b in graph.edges[a] for a, b in itertools.pairwise(nodes))
        assert "a" not in nodes[:-1]
        assert nodes[-1] == "a" or len(nodes) == 10
        assert 2 <= len(nodes) <= 10


def test_a_walk_is_one_turn_of_the_agent(published: list[Episode]) -> None:
    assert published[0].turns == (Turn(PARTNER, "s"), Turn(AGENT, "da", 1.0))
    assert published[0].meta == {"group": "walk-00000", "start": "s", "nodes": 3, "shortest": 3}
    assert all(episode.terminated for episode in published)
    assert [episode.id for episode in published[:2]] == ["walk-00000", "walk-00001"]


def test_the_first_walks_do_not_depend_on_how_many_follow() -> None:
    assert list(draw_walks(7, 20)) == list(draw_walks(7, 40))[:20]
    assert list(draw_walks(7, 20)) != list(draw_walks(8, 20))


def test_starts_that_cannot_reach_the_goal_are_counted_rejects() -> None:
    graph = RandomWalks(16)
    walks = list(draw_walks(16, 1000))
    found = list(episodes([], seed=16))
    assert len(found) == 1000
    for text, item in zip(walks, found, strict=True):
        assert isinstance(item, Episode) == (text[0] in graph.starts)
        if isinstance(item, Reject):
            assert item.field == "start"
            assert f"from {text[0]!r} the goal cannot be reached" in item.reason


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--input", __file__], "leave --input out"),
        (["--walks", "0"], "--walks is 0"),
        (["--seed", "-1"], "the seed is -1"),
        (["--seed", "4294967296"], "from 0 to 4294967295"),
        (["--seed", "6"], "choose another seed"),
        (["--seed", "16"], "303 of 1000 dialogues were rejected"),
        (["--turn-tokens"], "the turns of randomwalks are no closed set"),
    ],
)
def test_bad_options(arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["randomwalks", "--output", str(tmp_path / "out"), "--tokenizer", "byte", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_one_token_a_node_and_the_reward_on_the_end_token(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["randomwalks", "--output", str(out), "--tokenizer", "byte", "--seed", "1000", "--walks", "50"]) == 0
    manifest = schema.validate(out)
    assert manifest["arguments"]["seed"] == 1000
    assert manifest["statistics"]["train"]["tokens_per_action"]["max"] == 10  # nine letters and the end
    encoder = Encoder.from_folder(out / "tokenizer")
    row = encoder.encode(Episode("x", [Turn(PARTNER, "s"), Turn(AGENT, "da", 1.0)]), "token")
    assert row["start"] == [5, 6, 7]
    assert row["reward"] == [0, 0, 1]
    assert encoder.text(row["tokens"][5:]) == "da"


def test_a_graph_with_lost_nodes_builds_where_rejects_are_allowed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--tokenizer", "byte", "--seed", "16", "--walks", "100", "--max-reject-rate", "0.5"]
    assert main(["randomwalks", "--output", str(out), *options]) == 0
    statistics = schema.validate(out)["statistics"]
    assert statistics["rows_out"] + statistics["rejected"] == 100
    assert len((out / "rejected.jsonl").read_text().splitlines()) == statistics["rejected"] > 10
    assert json.loads((out / "rejected.jsonl").read_text().splitlines()[0])["field"] == "start"
