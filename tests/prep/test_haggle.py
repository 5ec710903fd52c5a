"""The scripted sellers: what asking first brings, how often the logs do it, and that they keep to the rules."""

from pathlib import Path
from statistics import mean

import pytest

from datasets_prep.__main__ import main
from datasets_prep.haggle import PHRASES, SELLERS, episodes
from examples.haggle_optimum import gain
from ilql import schema
from ilql.envs.haggle import ACTS, ASK, ITEMS, OFFER, Haggle, parse
from ilql.types import AGENT, PARTNER, Episode


def logs(dialogues: int, seed: int = 0) -> list[Episode]:
    found = list(episodes([], seed=seed, dialogues=dialogues))
    assert all(isinstance(episode, Episode) for episode in found)
    return found  # type: ignore[return-value]


def test_a_seller_that_asks_first_earns_more_than_the_same_that_does_not() -> None:
    for name in ("firm", "middle"):
        brings = gain(SELLERS[name], 1000)
        assert brings.low > 0.02
        assert 0.03 < brings.mean < 0.12


def test_what_the_sellers_say_is_what_they_mean() -> None:
    assert set(PHRASES) == set(ACTS)
    for act, phrases in PHRASES.items():
        for phrase in phrases:
            assert parse(phrase.format(price=85), 300) == ((OFFER, 85) if act == OFFER else (act, None))


def test_logs_of_mixed_quality() -> None:
    found = logs(6000)
    assert mean(e.total_reward for e in found) == pytest.approx(0.147, abs=0.02)
    asked = mean(e.meta["asked"] > 0 for e in found)
    assert asked == pytest.approx(0.25, abs=0.02)
    turns = sorted(len(e.turns) for e in found)
    assert 3 <= turns[300] <= mean(turns) <= turns[5700] <= 11
    by_kind = {name: mean(e.total_reward for e in found if e.meta["policy"] == name) for name in SELLERS}
    assert by_kind["soft"] > by_kind["firm"] + 0.1
    assert all(0.2 < mean(e.meta["policy"] == name for e in found) < 0.3 for name in SELLERS)
    first = [e for e in found if parse(e.turns[1].text, 100).act == ASK]
    assert len(first) > 0.05 * len(found)  # before any price
    assert {e.meta["item"] for e in found} == {name for name, _ in ITEMS}


def test_talks_obey_the_environment() -> None:
    for episode in logs(200):
        assert [turn.role for turn in episode.turns] == [PARTNER, *[AGENT, PARTNER] * (len(episode.turns) // 2)]
        env = Haggle()
        assert episode.turns[0].text in {env.reset(seed) for seed in range(60)}
        assert episode.terminated
        assert episode.meta["deal"] == (episode.meta["price"] is not None)
        assert not episode.meta["deal"] or episode.meta["price"] <= episode.meta["limit"]


def test_the_seed_decides_and_a_talk_does_not_depend_on_the_others() -> None:
    assert logs(20, seed=3) == logs(40, seed=3)[:20]
    assert logs(20, seed=3) != logs(20, seed=4)


@pytest.mark.parametrize("step", ["token", "utterance"])
def test_a_small_vocabulary_and_short_talks(step: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["haggle", "--output", str(out), "--tokenizer", "word", "--step", step, "--dialogues", "1000"]
    assert main([*arguments, "--validation", "0.1"]) == 0
    manifest = schema.validate(out)
    statistics = manifest["statistics"]
    assert statistics["rejected"] == 0
    assert 250 < manifest["tokenizer"]["vocab_size"] < 500
    assert 40 < statistics["train"]["tokens_per_dialogue"]["p50"] < 100


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--input", __file__], "leave --input out"),
        (["--dialogues", "0"], "--dialogues is 0"),
        (["--validation", __file__], "leave --input out"),
    ],
)
def test_bad_options(arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["haggle", "--output", str(tmp_path / "out"), "--tokenizer", "word", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
