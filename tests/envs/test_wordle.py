"""Texts, rewards, tries and colours of Wordle, the latter against a second, plain implementation."""

import re
from collections import Counter
from pathlib import Path

import pytest

from ilql.envs import wordle as module
from ilql.envs.wordle import OWN_WORDS, PATTERNS, TRIES, Wordle, colours, load_words, make, spell, summary, unspell
from ilql.rollout import rollout
from ilql.types import AGENT, PARTNER, InputError, Turn

# Fifty words with as many repeated letters as there are, so that a table of them holds every case of repetition.
REPEATED = """
    geese eerie mamma daddy puppy queue llama alpha radar rotor level refer kayak civic sissy fluff mummy bobby error
    array added dread arena banal ocean steel sleet teeth these sheet cocoa macaw vivid dizzy skill small abbey babes
    speed erase crepe steal abide eagle elate tepee onion union allow loyal
""".split()  # noqa: SIM905 (a column of words)


def plain(guess: str, word: str) -> str:
    """The official colours letter by letter of the alphabet: of each, the word's occurrences that are not hit are given
    to the guess's from the left."""
    answer = ["g" if a == b else "b" for a, b in zip(guess, word, strict=True)]
    for letter in set(guess):
        hits = sum(a == b == letter for a, b in zip(guess, word, strict=True))
        free = word.count(letter) - hits
        for i, a in enumerate(guess):
            if a == letter and answer[i] == "b" and free > 0:
                answer[i], free = "y", free - 1
    return "".join(answer)


def test_the_table_holds_every_case_of_repeated_letters() -> None:
    """How often a letter stands in guess and word, and how many of these hit: all that can be is there up to three."""
    assert len(REPEATED) == len(set(REPEATED)) == 50
    cases = set()
    for guess in REPEATED:
        for word in REPEATED:
            for letter, n in Counter(guess).items():
                hits = sum(a == b == letter for a, b in zip(guess, word, strict=True))
                cases.add((n, word.count(letter), hits))
    wanted = {(n, m, h) for n in (1, 2) for m in range(4) for h in range(min(n, m) + 1)}
    wanted |= {(3, m, h) for m in range(3) for h in range(m + 1)}
    assert wanted <= cases


def test_official_colours_against_the_plain_way() -> None:
    different = 0
    for guess in REPEATED:
        for word in REPEATED:
            assert colours(guess, word) == plain(guess, word), (guess, word)
            different += colours(guess, word) != colours(guess, word, "lmrl")
    assert different > 400


@pytest.mark.parametrize(
    ("guess", "word", "official", "lmrl"),
    [
        ("crane", "crane", "ggggg", "ggggg"),
        ("crane", "chair", "gygbb", "gygbb"),
        ("speed", "abide", "bbyby", "bbyyy"),
        ("speed", "erase", "ybyyb", "ybyyb"),
        ("speed", "steal", "gbgbb", "gbgyb"),
        ("speed", "crepe", "bygyb", "bygyb"),
        ("geese", "these", "bbggg", "byggg"),
        ("eerie", "speed", "yybbb", "yybby"),
        ("llama", "small", "yygyb", "yygyy"),
        ("abbey", "babes", "yyggb", "yyggb"),
    ],
)
def test_colours_by_hand(guess: str, word: str, official: str, lmrl: str) -> None:
    assert colours(guess, word, "lmrl") == lmrl
    assert colours(guess, word) == official


def test_the_published_rule_colours_every_letter_that_occurs() -> None:
    for guess in REPEATED:
        for word in REPEATED:
            for a, b, colour in zip(guess, word, colours(guess, word, "lmrl"), strict=True):
                assert colour == ("g" if a == b else "y" if word.count(a) else "b")


def test_the_own_list() -> None:
    words = load_words(OWN_WORDS)
    assert len(words) >= 400
    assert list(words) == sorted(set(words))
    assert all(re.fullmatch("[a-z]{5}", word) for word in words)
    assert len({word for word in words if len(set(word)) < 5}) > 50  # repeated letters matter in it too


def test_published_texts_byte_for_byte() -> None:
    game = Wordle(words=["chair", "crane", "small"])
    assert game.hide("chair") == "Wordle:\n"
    first = game.step("c r a n e\n")
    assert (first.text, first.reward, first.over) == ("g y g b b\n", -1.0, False)
    won = game.step("c h a i r\n")
    assert (won.text, won.reward, won.terminated, won.truncated) == ("g g g g g\n", 0.0, True, False)
    assert game.facts() == {"word": "chair", "solved": True, "guesses": 2, "invalid": 0}
    with pytest.raises(RuntimeError, match="call reset"):
        game.step("c h a i r\n")


def test_six_wrong_guesses_end_it_and_cost_six() -> None:
    game = Wordle(words=["chair", "crane"])
    game.hide("chair")
    replies = [game.step("c r a n e\n") for _ in range(TRIES)]
    assert [reply.over for reply in replies] == [False] * 5 + [True]
    assert sum(reply.reward for reply in replies) == -6
    assert replies[-1].terminated  # the limit is the game's own
    assert replies[-1].text == "g y g b b\n"
    assert not game.facts()["solved"]
    with pytest.raises(ValueError, match="'small' is not of the list"):
        game.hide("small")


def test_the_sixth_guess_may_still_win() -> None:
    game = Wordle(words=["chair", "crane"])
    game.hide("chair")
    rewards = [game.step("crane").reward for _ in range(5)] + [game.step(" chair ").reward]
    assert rewards == [-1, -1, -1, -1, -1, 0]
    assert game.solved


@pytest.mark.parametrize("nonsense", ["small", "c r a n", "cranes", "", "CRANE", "c r a n é", "what?"])
def test_what_is_no_word_of_the_list_is_a_try_and_answered_by_an_empty_line(nonsense: str) -> None:
    game = Wordle(words=["chair", "crane"])
    game.hide("chair")
    reply = game.step(nonsense)
    assert (reply.text, reply.reward, reply.over) == ("\n", -1.0, False)
    assert game.facts() == {"word": "chair", "solved": False, "guesses": 1, "invalid": 1}
    assert all(game.step(nonsense).text == "\n" for _ in range(5))
    assert game.facts()["invalid"] == 6


def test_243_patterns() -> None:
    assert len(set(PATTERNS)) == 3**5
    assert {spell(colours(a, b, rules)) for a in REPEATED for b in REPEATED for rules in module.RULES} <= set(PATTERNS)
    assert [unspell(spell(word)) for word in REPEATED] == REPEATED


@pytest.mark.parametrize("first", [0, 100])
def test_consecutive_seeds_play_each_word_once_and_not_in_the_lists_order(first: int) -> None:
    game = Wordle()
    words = []
    for seed in range(first, first + len(game.words)):
        game.reset(seed)
        words.append(game.word)
    assert sorted(words) == list(game.words)
    assert len({word[0] for word in words[:40]}) > 8


def test_the_rules_matter() -> None:
    texts = []
    for rules in ("official", "lmrl"):
        game = make(rules=rules)()
        game.hide("about")
        texts.append(game.step("t o t a l").text)
    assert texts == ["y y b y b\n", "y y y y b\n"]


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    game = make(words=write(tmp_path / "w.txt", "zebra\n\n  crane \r\n"))()
    assert game.words == ("zebra", "crane")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("crane\nfour\n", "line 2: 'four' is not five small letters from a to z"),
        ("crane\nCHAIR\n", "line 2: 'CHAIR' is not"),
        ("\ncafés\n", "line 2: 'cafés' is not"),
        ("it's!\n", "line 1"),
        ("two words\n", "line 1"),
        ("crane\nchair\ncrane\n", "line 3: 'crane' stands on line 1 too"),
        ("", "is empty"),
        ("\n \n", "is empty"),
    ],
)
def test_bad_lists(text: str, says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "w.txt", text)
    with pytest.raises(InputError, match=re.escape(f"{path}") + ".*" + re.escape(says)):
        make(words=path)


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; name the list that the dataset was built with"):
        make(words="nowhere.txt")
    (tmp_path / "w.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot read words from"):
        make(words=str(tmp_path / "w.txt"))
    with pytest.raises(InputError, match="cannot read words from"):
        load_words(tmp_path)


def test_unknown_rules() -> None:
    with pytest.raises(InputError, match="the rules of wordle are 'lmlr', but must be official or lmrl"):
        make(rules="lmlr")


def test_summary(tmp_path: Path) -> None:
    class Player:
        def respond(self, dialogues: list[list[Turn]]) -> list[str]:
            return ["c r a n e\n" if len(turns) == 1 else "n o n s e\n" for turns in dialogues]

    words = write(tmp_path / "w.txt", "crane\nchair\n")
    played = sorted(rollout(Player(), make(words=words), [0, 1], progress=False), key=lambda e: e.total_reward)
    assert [e.total_reward for e in played] == [-6, 0]
    assert summary(played) == {
        "solved %": [0.0, 100.0],
        "guesses": [6.0, 1.0],
        "no word %": [pytest.approx(500 / 6), 0.0],
    }
    assert [(t.role, t.text) for t in played[1].turns] == [
        (PARTNER, "Wordle:\n"),
        (AGENT, "c r a n e\n"),
        (PARTNER, "g g g g g\n"),
    ]
    assert module.SEATS == 1
