"""The scripted games: what their policy is worth, and one token a word and a pattern."""

import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest

from datasets_prep.__main__ import main
from datasets_prep.encode import Encoder
from datasets_prep.wordle import consistent, episodes, turn_texts
from ilql import schema
from ilql.envs.wordle import OWN_WORDS, PATTERNS, START, Wordle, colours, load_words, spell, unspell
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn


def logs(games: int, seed: int = 0, **options: Any) -> list[Episode]:
    found = list(episodes([], seed=seed, games=games, **options))
    assert all(isinstance(episode, Episode) for episode in found)
    return found  # type: ignore[return-value]


# Share of consistent guesses -> mean return with the published list of 431 words (the first: words at random; the
# third: the published data). Our list has 454 words, and other ones: a random player needs (N - 1) / N of every guess,
# and a skilled one about log(454 / 431) / log(answers told apart) guesses more, some hundredths. Hence a tolerance.
PUBLISHED = {0.0: -5.94, 0.25: -4.51, 1 / 3: -4.10, 0.5: -3.47, 0.75: -2.83, 1.0: -2.39}
OF_THE_LIST = 0.06


@pytest.mark.parametrize("rules", ["official", "lmrl"])
@pytest.mark.parametrize("skill", PUBLISHED)
def test_the_scripted_policies_are_worth_what_was_published(skill: float, rules: str) -> None:
    returns = [episode.total_reward for episode in logs(3000, skill=skill, rules=rules)]
    interval = 1.96 * stdev(returns) / math.sqrt(len(returns))
    assert interval < 0.06
    assert mean(returns) == pytest.approx(PUBLISHED[skill], abs=OF_THE_LIST + interval)


def most_telling(rules: str) -> float:
    """Mean return over all words of a player whose guess makes the entropy of the answer largest, a possible word first
    among equals, and who guesses one of the last two words at once; every answer is the environment's."""
    game = Wordle(rules)
    words, code = game.words, {text: i for i, text in enumerate(PATTERNS)}
    answer = np.array([[code[spell(colours(guess, word, rules))] for word in words] for guess in words])
    chosen: dict[tuple[int, ...], int] = {}

    def choose(left: tuple[int, ...]) -> int:
        if len(left) < 3:
            return left[0]
        if left not in chosen:
            counts = np.stack([np.bincount(row, minlength=len(code)) for row in answer[:, left]])
            share = np.where(counts, counts, len(left)) / len(left)  # an answer that never comes has no entropy
            entropy = -(share * np.log(share)).sum(1)
            entropy[list(left)] += 1e-9
            chosen[left] = int(entropy.argmax())
        return chosen[left]

    returns = []
    for word in words:
        game.hide(word)
        left, total, over = tuple(range(len(words))), 0.0, False
        while not over:
            guess = choose(left)
            reply = game.step(spell(words[guess]))
            left = tuple(i for i in left if answer[guess, i] == code.get(reply.text))
            total, over = total + reply.reward, reply.over
        returns.append(total)
    return mean(returns)


@pytest.mark.parametrize("rules", ["official", "lmrl"])
def test_the_most_telling_guess_is_worth_what_was_published(rules: str) -> None:
    """-1.95 with the published list; the optimum is -1.94 there. Ours has other words, and they tell more apart."""
    assert most_telling(rules) == pytest.approx(-1.95, abs=0.1)


def test_words_at_random_are_worth_what_chance_says() -> None:
    n = len(load_words(OWN_WORDS))
    returns = [episode.total_reward for episode in logs(3000, skill=0.0)]
    assert mean(returns) == pytest.approx(-sum((1 - 1 / n) ** k for k in range(1, 7)), abs=0.02)


def test_a_consistent_player_never_contradicts_an_answer() -> None:
    for rules in ("official", "lmrl"):
        for episode in logs(100, skill=1.0, rules=rules):
            known: list[tuple[str, str]] = []
            for said, heard in zip(episode.turns[1::2], episode.turns[2::2], strict=True):
                guess = unspell(said.text)
                assert all(colours(earlier, guess, rules) == answer for earlier, answer in known)
                known.append((guess, unspell(heard.text)))


def test_the_share_of_consistent_guesses_is_the_skill() -> None:
    """The first guess aside, which is always consistent; a uniform one is so too, now and then."""
    words = load_words(OWN_WORDS)
    allowed = consistent(words, "official")
    hits, chance = [], []
    for episode in logs(1000, skill=0.5):
        left = set(words)
        for k in range(1, len(episode.turns), 2):
            guess, answer = (unspell(turn.text) for turn in episode.turns[k : k + 2])
            if k > 1:
                hits.append(guess in left)
                chance.append(0.5 + 0.5 * len(left) / len(words))
            left &= allowed(guess, answer)
        assert episode.meta["word"] in left
    assert mean(hits) == pytest.approx(mean(chance), abs=0.03)


def test_games_obey_the_environment() -> None:
    game = Wordle()
    for episode in logs(50):
        assert episode.turns[0] == Turn(PARTNER, game.hide(episode.meta["word"]))
        assert [turn.role for turn in episode.turns[1::2]] == [AGENT] * (len(episode.turns) // 2)
        for said, heard in zip(episode.turns[1::2], episode.turns[2::2], strict=True):
            reply = game.step(said.text)
            assert (said.reward, heard.text) == (reply.reward, reply.text)
        assert reply.terminated
        assert episode.terminated
        assert {"group": episode.id, **game.facts()} == episode.meta


def test_words_are_drawn_from_the_whole_list() -> None:
    found = logs(3000)
    assert len({episode.meta["word"] for episode in found}) > 440


def test_the_seed_decides_and_a_game_does_not_depend_on_the_others() -> None:
    assert logs(20, seed=3) == logs(40, seed=3)[:20]
    assert logs(20, seed=3) != logs(20, seed=4)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "list.txt"
    path.write_text("crane\nchair\nsmall\nllama\ngeese\n")
    return path


def prep(out: Path, *more: str) -> int:
    return main(["wordle", "--output", str(out), "--tokenizer", "word", "--games", "40", *more])


def test_one_token_a_word_and_a_pattern_and_the_texts_unchanged(words: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prep(out, "--turn-tokens", "--words", str(words)) == 0
    manifest = schema.validate(out)
    assert manifest["arguments"]["words"] == "list.txt"
    assert manifest["arguments"]["turn_tokens"] is True
    assert manifest["sources"] == [{"name": "list.txt", "sha256": schema.sha256(words)}]
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    encoder = Encoder.from_folder(out / "tokenizer")
    ids = {}
    for guess in load_words(words):
        episode = Episode("x", [Turn(PARTNER, START), Turn(AGENT, spell(guess), -1.0), Turn(PARTNER, PATTERNS[7])])
        row = encoder.encode(episode, "token")
        assert len(row["tokens"]) == 1 + 3 + 2 + 3
        assert (row["start"], row["end"], row["reward"]) == ([5], [6], [-1.0])
        ids[row["tokens"][5]] = guess
        assert encoder.text(row["tokens"][5:6]) == spell(guess)
        assert encoder.tokenizer.decode(row["tokens"][7:8]) == PATTERNS[7]
    assert len(ids) == 5
    seen = {encoder.state([Turn(PARTNER, pattern)])[0][2] for pattern in PATTERNS}
    assert len(seen) == 243
    assert not seen & ids.keys()


def test_without_the_flag_the_letters_are_tokens(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prep(out) == 0
    assert schema.validate(out)["statistics"]["train"]["tokens_per_action"]["p50"] == 7  # letters, line break, end
    encoder = Encoder.from_folder(out / "tokenizer")
    row = encoder.encode(Episode("x", [Turn(PARTNER, START), Turn(AGENT, spell("crane"))]), "utterance")
    assert encoder.text(row["tokens"][row["start"][0] :]) == spell("crane")


def test_texts_are_the_environments(words: Path) -> None:
    said, heard = turn_texts(words=words, rules="lmrl", games=3, skill=0.1)
    assert said == ["c r a n e\n", "c h a i r\n", "s m a l l\n", "l l a m a\n", "g e e s e\n"]
    assert heard == ["Wordle:\n", *PATTERNS]
    assert len(turn_texts()[0]) == len(load_words(OWN_WORDS))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--input", __file__], "leave --input out"),
        (["--games", "0"], "--games is 0"),
        (["--skill", "1.5"], "--skill is 1.5"),
        (["--skill", "nan"], "--skill is nan"),
        (["--rules", "lmlr"], "invalid choice: 'lmlr'"),
        (["--words", "nowhere.txt"], "cannot read words from nowhere.txt"),
        (["--turn-tokens", "--words", "nowhere.txt"], "cannot read words from nowhere.txt"),
        (["--words", __file__], "line 1: "),
        (["--validation", __file__], "leave --input out"),
    ],
)
def test_bad_options(arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prep(tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_skill_out_of_range_is_refused_from_python() -> None:
    with pytest.raises(InputError, match="--skill is -1"):
        episodes([], seed=0, skill=-1)
