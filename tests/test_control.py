"""Control tokens: what is written, where it is laid, and that a prompt is the beginning of a training row."""

from __future__ import annotations

import numpy as np
import pytest

from datasets_prep import tokenizer as tk
from datasets_prep.encode import Encoder
from ilql import control
from ilql.data import collate, crop, window_start
from ilql.types import Episode, InputError, Turn
from tests.prep import tokenizers_for_tests as others
from tests.toys import row


@pytest.mark.parametrize(
    ("value", "digits", "want"),
    [
        (-83.0, 2, "-83"),
        (-101.0, 2, "-100"),
        (-101.0, 3, "-101"),
        (1234.0, 2, "1200"),
        (0.3549, 2, "0.35"),
        (0.1 + 0.2, 2, "0.3"),
        (-0.04, 1, "-0.04"),
        (0.0, 2, "0"),
        (-1e-15, 2, "0"),
        (1e-7, 2, "0.0000001"),
        (5e20, 3, "500000000000000000000"),
    ],
)
def test_a_return_is_a_short_text(value, digits, want):
    assert control.written(value, digits) == want
    assert control.text(value, digits) == f"return {want}"


def notes(text: str) -> list[int]:
    """90 and the number's letters."""
    return [90, *(100 + ord(c) for c in text.removeprefix("return "))]


def test_notes_are_laid_at_the_beginning_of_the_agents_turns():
    # BOS | 5 6 | [7] 8* 9* | 5 | [7] 8* | 5: the agent's turns begin at 3 and 7, rewards 1, 0 and 2
    before = row([0, 5, 6, 7, 8, 9, 5, 7, 8, 5], [4, 5, 8], [5, 6, 9], [1, 0, 2], turn=[1, 3, 6, 7, 9])
    got = control.prepare(before, notes, 2)
    three, two = 100 + ord("3"), 100 + ord("2")
    assert got["tokens"].tolist() == [0, 5, 6, 90, three, 7, 8, 9, 5, 90, two, 7, 8, 5]
    assert got["turn"].tolist() == [1, 3, 8, 9, 13]
    assert got["start"].tolist() == [6, 7, 12]
    assert got["end"].tolist() == [7, 8, 13]
    assert got["reward"].tolist() == [1, 0, 2]
    assert before["tokens"].tolist() == [0, 5, 6, 7, 8, 9, 5, 7, 8, 5], "the stored row stays as it is"
    assert got["tokens"].dtype == got["start"].dtype == np.int32


def test_an_utterance_is_one_action_and_an_observed_turn_of_the_agent_is_told_nothing():
    # the agent's first turn (at 1) is an observation; its second one is an action of three tokens
    before = row([0, 7, 8, 5, 7, 8, 9, 2], [5], [8], [-1.5], turn=[1, 3, 4])
    got = control.prepare(before, lambda text: [90, 91], 2)
    assert got["tokens"].tolist() == [0, 7, 8, 5, 90, 91, 7, 8, 9, 2]
    assert (got["turn"].tolist(), got["start"].tolist(), got["end"].tolist()) == ([1, 3, 4], [7], [10])


def test_a_window_holds_as_many_turns_as_without():
    before = row([0, 5, 6, 7, 8, 9, 5, 7, 8, 5], [4, 5, 8], [5, 6, 9], [1, 0, 2], turn=[1, 3, 6, 7, 9])
    got = control.prepare(before, notes, 2)
    assert window_start(got["turn"], 3, 1) == 8, "the partner's turn before"
    batch = collate([got], gamma=1.0, bos=0, history=1, bootstraps=False)
    pieces = batch.tokens.tolist()
    assert pieces[:8] == got["tokens"][:8].tolist()
    assert pieces[8:] == [0, *got["tokens"][8:13].tolist()]


TALK = [
    Turn("system", "play"),
    Turn("user", "hi"),
    Turn("assistant", "yo", reward=1.0),
    Turn("assistant", "so?", reward=0.25),
    Turn("user", "ok"),
    Turn("assistant", "quoted", act=False),
    Turn("user", "go on"),
    Turn("assistant", "bye", reward=-2.0),
    Turn("user", "well"),
    Turn("assistant", "ciao", reward=4.0),
]


ALTERNATING = [TALK[1], TALK[2], TALK[4], TALK[7], TALK[8], TALK[9]]
ENCODERS = {
    "byte": lambda: tk.train("byte", []),
    "bpe": lambda: tk.train("bpe:300", ["hi ok yo bye well"] * 3),
    "chatml": others.chatml,
    "llama3": others.llama3,
    "folding": others.folding,
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("step", ["token", "utterance"])
@pytest.mark.parametrize("history", [None, 1, 3])
def test_a_prompt_is_the_beginning_of_a_row(name, step, history):
    encoder = Encoder(ENCODERS[name]())
    talk = ALTERNATING if name == "folding" else TALK
    stored = encoder.encode(Episode("d", talk), step)
    stored |= {name: np.array(stored[name], np.int32) for name in ("tokens", "turn", "start", "end")}
    told = control.prepare(stored, encoder.note, 3)
    acts = [i for i, turn in enumerate(talk) if turn.is_action]
    begins = told["start"][np.append(True, told["start"][1:] != told["end"][:-1])]
    assert len(begins) == len(acts)
    batch = collate([told], gamma=1.0, bos=encoder.bos_id, history=history, bootstraps=False)
    laid = batch.tokens.tolist()
    total = sum(turn.reward for turn in talk)
    for i, begin in zip(acts, begins.tolist(), strict=True):
        tokens, turn = control.state(encoder.open(talk[:i]), talk[:i], total, encoder.note, 3)
        assert tokens == told["tokens"][:begin].tolist()
        assert turn == told["turn"][told["turn"] <= begin].tolist()
        window = crop(tokens, turn, history)
        assert any(laid[k : k + len(window)] == window for k in range(len(laid)))


def test_what_was_had_is_taken_off_what_is_wanted():
    encoder = Encoder(tk.train("byte", []))
    tokens, _ = control.state(encoder.open(TALK[:7]), TALK[:7], 10.0, encoder.note, 3)
    said = encoder.tokenizer.decode(tokens)
    assert said.count("return") == 3
    assert [said.index(f"return {x}<") for x in ("10", "9", "8.75")] == sorted(
        said.index(f"return {x}<") for x in ("10", "9", "8.75")
    )


def test_a_tokenizer_without_digits_is_refused():
    encoder = Encoder(tk.train("word", ["hi there", "return"]))
    with pytest.raises(InputError, match="no tokens for 'return -83'"):
        encoder.note("return -83")


def test_a_return_that_no_dialogue_had_is_doubted():
    assert control.advise(-3.0, -3.0, 5.0) is None
    assert control.advise(5.0, -3.0, 5.0) is None
    told = control.advise(6.0, -3.0, 5.0)
    assert told is not None
    assert all(part in told for part in ("6", "-3", "5"))
