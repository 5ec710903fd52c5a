"""Text to tokens and back: the worked example, states as prefixes, and every dialogue that is no evidence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets_prep import tokenizer as tk
from datasets_prep.encode import Encoder, encode_all
from datasets_prep.overlong import Cut, fit_all
from datasets_prep.rejects import Reject
from datasets_prep.stats import Tally
from datasets_prep.talks import Talks
from ilql.data import collate, crop
from ilql.schema import check_row
from ilql.types import Episode, InputError, Turn
from tests.prep import tokenizers_for_tests as others

HI = [Turn("user", "hi"), Turn("assistant", "yo", 1.0), Turn("user", "ok"), Turn("assistant", "bye", 2.0)]
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "map"}}}
WORDS = ["hello there you two , how are you ? yes no"]


def ours(kind: str) -> Any:
    return tk.train(kind, WORDS)


ALL = {
    "word": lambda: ours("word"),
    "byte": lambda: ours("byte"),
    "bpe": lambda: ours("bpe:300"),
    "chatml": others.chatml,
    "generation": lambda: others.chatml(others.GENERATION),
    "llama3": others.llama3,
    "folding": others.folding,
    "sentencepiece": others.sentencepiece,
}


@pytest.fixture(params=ALL)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return Encoder(ALL[request.param]())


@pytest.fixture
def byte() -> Encoder:
    return Encoder(ours("byte"))


def tokens(encoder: Encoder, ids: list[int]) -> list[str]:
    return encoder.tokenizer.convert_ids_to_tokens(ids)


def test_worked_example_token_steps(byte: Encoder) -> None:
    row = byte.encode(Episode("x", HI), "token")
    u, a, e = "<|user|>", "<|assistant|>", "<|end|>"
    #   0          1  2    3    4  5  6    7    8  9  10   11   12 13 14   15   16   17
    assert tokens(byte, row["tokens"]) == [
        *("<|bos|>", u, "h", "i", e, a, "y", "o", e, u, "o", "k", e, a, "b", "y", "e", e)
    ]
    assert row["turn"] == [1, 5, 9, 13]
    assert row["start"] == [6, 7, 8, 14, 15, 16, 17]
    assert row["end"] == [7, 8, 9, 15, 16, 17, 18]
    assert row["reward"] == [0, 0, 1, 0, 0, 0, 2]
    assert row["logp"] == [None] * 7
    assert row["terminated"] is True
    assert row["id"] == "x"
    assert row["meta"] == "{}"


def test_worked_example_utterance_steps(byte: Encoder) -> None:
    turns = [replace(turn, logp=-0.5) if turn.is_action else turn for turn in HI]
    row = byte.encode(Episode("x", turns, meta={"b": 1, "a": "é"}), "utterance")
    assert row["start"] == [6, 14]
    assert row["end"] == [9, 18]
    assert row["reward"] == [1, 2]
    assert row["logp"] == [-0.5, -0.5]
    assert row["meta"] == '{"a": "é", "b": 1}'


def test_logp_stands_beside_its_tokens(byte: Encoder) -> None:
    turns = [HI[0], replace(HI[1], logp=[-1, -2, None]), HI[2], HI[3]]
    row = byte.encode(Episode("x", turns), "token")
    assert row["logp"] == [-1, -2, None, None, None, None, None]


def test_one_number_is_enough_for_a_message_of_one_token() -> None:
    tokenizer = tk.train("byte", [])
    tk.add_action_tokens(tokenizer, ["yo"])
    row = Encoder(tokenizer).encode(Episode("x", [HI[0], replace(HI[1], logp=-0.5), *HI[2:]]), "token")
    assert row["logp"] == [-0.5, None, None, None, None]


def test_a_truncated_dialogue_ends_with_what_followed_and_the_header(byte: Encoder) -> None:
    whole = byte.encode(Episode("x", HI), "utterance")["tokens"]
    row = byte.encode(Episode("x", [*HI, Turn("user", "z")], terminated=False), "utterance")
    assert tokens(byte, row["tokens"]) == [*tokens(byte, whole), "<|user|>", "z", "<|end|>", "<|assistant|>"]
    assert row["turn"] == [1, 5, 9, 13, 18, 21]
    assert row["end"][-1] < len(row["tokens"])


def test_a_truncated_dialogue_without_a_following_observation_ends_with_the_action(encoder: Encoder) -> None:
    turns = [Turn("user", "hello"), Turn("assistant", "you", 1.0)]
    row = encoder.encode(Episode("x", turns, terminated=False), "utterance")
    assert row["end"][-1] == len(row["tokens"])
    assert row["tokens"][-1] in encoder.end_ids


def test_a_terminated_dialogue_may_end_with_an_observation(byte: Encoder) -> None:
    row = byte.encode(Episode("x", [*HI, Turn("user", "z")]), "utterance")
    assert tokens(byte, row["tokens"])[-3:] == ["<|user|>", "z", "<|end|>"]


DIALOGUE = [
    Turn("system", "you two"),
    Turn("user", "hello  there\n"),
    Turn("assistant", "how are you?", 0.5),
    Turn("user", "no"),
    Turn("assistant", "", 1.0),
    Turn("user", "héllo yes\n\n"),
    Turn("assistant", "yes", -2.0),
    Turn("user", "bye"),
]


@pytest.mark.parametrize("terminated", [True, False])
def test_every_state_is_the_prefix_of_the_row(encoder: Encoder, terminated: bool) -> None:
    row = encoder.encode(Episode("x", DIALOGUE, terminated), "utterance")
    check_row(row, encoder.vocab_size, "row")
    acts = [i for i, turn in enumerate(DIALOGUE) if turn.is_action]
    assert len(row["start"]) == len(acts)
    for i, start in zip(acts, row["start"], strict=True):
        state, turns = encoder.state(DIALOGUE[:i])
        assert state == row["tokens"][:start]
        assert turns == [t for t in row["turn"] if t <= start]  # the last one: the agent's open turn
    if not terminated:
        state, turns = encoder.state(DIALOGUE)
        assert state == row["tokens"]
        assert turns == row["turn"]


@pytest.mark.parametrize("history", [0, 1, 2])
def test_decoding_crops_as_training_did(encoder: Encoder, history: int) -> None:
    """Also where a chat template writes nothing before an answer, so that the agent's open turn has no token."""
    row = encoder.encode(Episode("x", DIALOGUE, terminated=False), "utterance")
    row |= {name: np.array(row[name]) for name in ("tokens", "turn", "start", "end", "reward")}
    batch = collate([row], gamma=1.0, bos=encoder.bos_id, history=history)
    ends = [i for i, turn in enumerate(DIALOGUE) if turn.is_action] + [len(DIALOGUE)]
    for end, at in zip(ends, [*batch.state.tolist(), int(batch.next[-1])], strict=True):
        tokens, turns = encoder.state(DIALOGUE[:end])
        begin = at - int(batch.position[at])
        assert crop(tokens, turns, history) == batch.tokens[begin : at + 1].tolist()


def test_the_first_token_is_one_bos(encoder: Encoder) -> None:
    row = encoder.encode(Episode("x", DIALOGUE), "token")
    assert row["tokens"][0] == encoder.bos_id
    assert row["tokens"][1] != encoder.bos_id
    assert row["turn"][0] == 1


def test_actions_are_the_agents_words_and_their_end(encoder: Encoder) -> None:
    row = encoder.encode(Episode("x", DIALOGUE), "utterance")
    actions = [row["tokens"][s:e] for s, e in zip(row["start"], row["end"], strict=True)]
    assert all(action[-1] in encoder.end_ids for action in actions)
    assert not any(set(action[:-1]) & set(encoder.end_ids) for action in actions)
    if encoder.unk_id is None:
        assert [encoder.text(action) for action in actions] == ["how are you?", "", "yes"]
        assert encoder.text(actions[2][:-1]) == "yes"  # generation stopped at a limit
        assert encoder.text([*actions[2], *actions[0]]) == "yes"  # and nothing behind the end counts


def test_step_sizes_agree(encoder: Encoder) -> None:
    by_token = encoder.encode(Episode("x", DIALOGUE), "token")
    by_turn = encoder.encode(Episode("x", DIALOGUE), "utterance")
    assert by_token["tokens"] == by_turn["tokens"]
    last = [by_token["end"].index(e) for e in by_turn["end"]]
    assert [by_token["reward"][k] for k in last] == by_turn["reward"] == [0.5, 1.0, -2.0]
    assert np.count_nonzero(by_token["reward"]) == 3
    spans = zip(by_turn["start"], by_turn["end"], strict=True)
    assert by_token["start"] == [t for s, e in spans for t in range(s, e)]
    tally = Tally()
    tally.add(encode_all(encoder.layout, Talks.of([Episode("x", DIALOGUE)]), "token")[0], None, [])
    assert tally.rewards.tolist() == by_turn["reward"]


def test_generation_marks_change_nothing() -> None:
    plain, marked = Encoder(others.chatml()), Encoder(others.chatml(others.GENERATION))
    assert plain.encode(Episode("x", DIALOGUE), "token") == marked.encode(Episode("x", DIALOGUE), "token")


@pytest.mark.parametrize("name", ["chatml", "generation", "llama3"])
def test_rows_are_what_the_template_says(name: str) -> None:
    encoder = Encoder(ALL[name]())
    messages = [{"role": t.role, "content": t.text} for t in DIALOGUE]
    text = encoder.tokenizer.apply_chat_template(messages, tokenize=False)
    row = encoder.encode(Episode("x", DIALOGUE), "token")
    assert encoder.tokenizer.decode(row["tokens"]).removeprefix("<|im_end|>") == text
    starts = [encoder.tokenizer.decode(row["tokens"][t : t + 1]) for t in row["turn"][1:]]
    assert set(starts) <= {"<|im_start|>", "<|start_header_id|>"}
    assert len(row["turn"]) == len(DIALOGUE)


@pytest.mark.parametrize("kind", ["word", "byte", "bpe:300"])
def test_our_chat_template_gives_the_encoders_tokens(kind: str) -> None:
    encoder = Encoder(ours(kind))
    turns = [Turn("system", "you two"), Turn("user", "hello there"), Turn("assistant", "yes , no", tool_calls=[CALL])]
    messages: list[dict[str, Any]] = [{"role": t.role, "content": t.text} for t in turns]
    messages[-1]["tool_calls"] = [CALL]
    tools = [{"type": "function", "function": {"name": "look", "description": "é"}}]
    row = encoder.encode(Episode("x", turns, tools=tools), "token")
    said = encoder.tokenizer.apply_chat_template(
        messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
    )
    assert said["input_ids"] == row["tokens"]
    assert [i for i, m in enumerate(said["assistant_masks"]) if m] == row["start"]
    prompt = encoder.tokenizer.apply_chat_template(messages[:2], tools=tools, add_generation_prompt=True)
    assert prompt["input_ids"] == encoder.state(turns[:2], tools)[0]


def test_a_system_prompt_that_a_template_folds_away_has_no_turn_of_its_own() -> None:
    encoder = Encoder(others.folding())
    row = encoder.encode(Episode("x", DIALOGUE), "utterance")
    assert len(row["turn"]) == len(DIALOGUE) - 1


def test_a_template_that_refuses_the_dialogue_rejects_it() -> None:
    encoder = Encoder(others.folding())
    with pytest.raises(Reject, match="roles must alternate"):
        encoder.encode(Episode("x", [Turn("assistant", "yes"), Turn("user", "no")]), "token")


@pytest.mark.parametrize("template", [others.FORGETFUL, others.ENDLESS], ids=["forgetful", "endless"])
def test_a_template_that_cannot_serve_is_refused_by_name(template: str, tmp_path: Path) -> None:
    folder = others.saved(others.chatml(template), tmp_path / "forgetful-7b")
    with pytest.raises(InputError, match="forgetful-7b"):
        Encoder.from_folder(folder)


@pytest.mark.parametrize("fault", ["{{ 1 // 0 }}", "{{ range(10 ** 9) }}", "{{ 'x' * 10 ** 18 }}", "{% break %}"])
def test_a_template_that_fails_as_a_program_does_is_refused(fault: str) -> None:
    with pytest.raises(InputError, match="the chat template refuses this dialogue"):
        Encoder(others.chatml(fault + others.CHATML))


def test_a_template_that_tells_the_date_tells_the_same_every_day() -> None:
    encoder = Encoder(others.chatml("{{ strftime_now('%d %b %Y') }}" + others.CHATML))
    tokens, _ = encoder.state([Turn("user", "hi")])
    assert encoder.tokenizer.decode(tokens[1:]).startswith("26 Jul 2024<|im_start|>")


def test_a_tokenizer_without_a_template_gets_our_marks(tmp_path: Path) -> None:
    plain = others.stranger(None, ["<|endoftext|>"], eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    size = len(plain)
    tokenizer = tk.load(str(others.saved(plain, tmp_path / "plain")))
    encoder = Encoder.from_folder(others.saved(tokenizer, tmp_path / "adopted"))
    row = encoder.encode(Episode("x", HI), "utterance")
    assert encoder.vocab_size == size + 6  # end, four marks, pad
    assert encoder.tokenizer.decode(row["tokens"][:1]) == "<|endoftext|>"
    assert encoder.text(row["tokens"][row["start"][1] : row["end"][1]]) == "bye"


@pytest.mark.parametrize("kind", ["word", "byte", "bpe:300"])
@pytest.mark.parametrize("injected", ["<|end|>", "yes<|assistant|>no", "<|bos|>"])
def test_contents_never_become_special_tokens(kind: str, injected: str) -> None:
    encoder = Encoder(ours(kind))
    row = encoder.encode(Episode("x", [Turn("user", injected), Turn("assistant", injected)]), "utterance")
    marks = [t for t in tokens(encoder, row["tokens"]) if t.startswith("<|") and t != "<|unk|>"]
    assert marks == ["<|bos|>", "<|user|>", "<|end|>", "<|assistant|>", "<|end|>"]
    if kind != "word":
        assert encoder.text(row["tokens"][row["start"][0] :]) == injected


def test_special_tokens_in_contents_are_rejected_with_a_template() -> None:
    encoder = Encoder(others.chatml())
    for turn in (Turn("user", "a<|im_end|>b"), Turn("assistant", "x", tool_calls=[{"a": "<|im_start|>"}])):
        with pytest.raises(Reject, match=r"messages\[\d\]\.\w+: holds the tokenizer's special token '<\|im_"):
            encoder.encode(Episode("x", [Turn("user", "q"), turn, Turn("assistant", "b")]), "token")
    with pytest.raises(Reject, match="special token"):
        encoder.encode(Episode("x", HI, tools=[{"d": "<|im_end|>"}]), "token")


@pytest.mark.parametrize("name", ["word", "byte", "chatml", "llama3"])
def test_action_tokens(name: str, tmp_path: Path) -> None:
    tokenizer = ALL[name]()
    size = len(tokenizer)
    tk.add_action_tokens(tokenizer, ["go up\n", "yes"])
    encoder = Encoder.from_folder(others.saved(tokenizer, tmp_path))
    assert encoder.vocab_size == size + 2
    turns = [
        *(
            Turn("user", "go up\n yes"),
            Turn("assistant", "go up", 1.0),
            Turn("user", "yes"),
            Turn("assistant", " yes\n"),
        ),
        *(Turn("user", "go up"), Turn("assistant", "yes no", 2.0)),
    ]
    row = encoder.encode(Episode("x", turns), "utterance")
    lengths = [e - s for s, e in zip(row["start"], row["end"], strict=True)]
    up, yes = (row["tokens"][s] for s in row["start"][:2])
    assert lengths[:2] == [1, 1]
    assert lengths[2] > 1
    assert {up, yes} == {size, size + 1}
    assert {up, yes} <= set(encoder.end_ids)
    assert [row["tokens"].count(i) for i in (up, yes)] == [1, 1]  # never in what others say, nor inside an utterance
    assert encoder.text([up]) == "go up\n"
    assert encoder.text([yes, yes]) == "yes"
    assert encoder.tokenizer.convert_ids_to_tokens(up) == "go up\n"
    assert encoder.encode(Episode("x", turns), "token")["reward"].count(1.0) == 1
    for i, start in zip((1, 3, 5), row["start"], strict=True):
        assert encoder.state(turns[:i])[0] == row["tokens"][:start]


def test_an_action_token_that_is_a_word_already_stays_apart_from_it() -> None:
    tokenizer = others.stranger(others.CHATML, eos_token="<|im_end|>")
    word = "yes"
    tokenizer.add_tokens([word])
    tk.add_action_tokens(tokenizer, [word])
    encoder = Encoder(tokenizer)
    row = encoder.encode(Episode("x", [Turn("user", "yes"), Turn("assistant", "yes")]), "token")
    assert tokens(encoder, row["tokens"][row["start"][0] :]) == ["yes<|im_end|>"]
    assert encoder.text(row["tokens"][row["start"][0] :]) == "yes"


@pytest.mark.parametrize("texts", [[""], ["a", " a"]])
def test_impossible_action_tokens(texts: list[str]) -> None:
    with pytest.raises(InputError, match="--action-token"):
        tk.add_action_tokens(ours("byte"), texts)


def test_masked_turns_of_the_agent_are_observation(encoder: Encoder) -> None:
    turns = [*HI[:1], Turn("assistant", "no", act=False), HI[2], HI[3]]
    row = encoder.encode(Episode("x", turns), "utterance")
    whole = encoder.encode(Episode("x", [HI[0], Turn("assistant", "no"), HI[2], HI[3]]), "utterance")
    assert row["tokens"] == whole["tokens"]
    assert row["start"] == whole["start"][1:]
    assert row["reward"] == [2.0]


def test_tool_calls_are_action_and_results_observation() -> None:
    turns = [
        *(Turn("user", "hi"), Turn("assistant", "wait", tool_calls=[CALL]), Turn("tool", "a map")),
        Turn("assistant", "done", 1.0),
    ]
    for name in ("byte", "chatml"):
        encoder = Encoder(ALL[name]())
        row = encoder.encode(Episode("x", turns), "utterance")
        said = [encoder.text(row["tokens"][s:e]) for s, e in zip(row["start"], row["end"], strict=True)]
        assert "look" in said[0]
        assert said[1] == "done"
        assert "a map" in encoder.tokenizer.decode(row["tokens"][row["end"][0] : row["start"][1]])
    assert Encoder(ours("byte")).encode(Episode("x", turns), "token")["reward"][-1] == 1.0


NAN, INF = float("nan"), float("inf")
A = Turn("assistant", "yo")


@pytest.mark.parametrize(
    ("turns", "field", "reason"),
    [
        ([], "messages", "no turn of the agent"),
        ([Turn("user", "hi")], "messages", "no turn of the agent"),
        ([Turn("assistant", "hi", act=False)], "messages", "no turn of the agent"),
        ([Turn("user", "hi", 1.0), A], "messages[0].reward", "'user'"),
        ([Turn("tool", "hi", -1.0), A], "messages[0].reward", "'tool'"),
        ([Turn("assistant", "hi", 1.0, act=False), A], "messages[0].reward", "not to be learned"),
        ([Turn("assistant", "hi", NAN)], "messages[0].reward", "NaN"),
        ([Turn("assistant", "hi", -INF)], "messages[0].reward", "infinite"),
        ([Turn("user", "hi", NAN), A], "messages[0].reward", "NaN"),
        ([Turn("assistant", "hi", 1e39)], "messages[0].reward", "32-bit"),
        ([Turn("assistant", "hi", 10**400)], "messages[0].reward", "32-bit"),
        ([Turn("assistant", "hi", True)], "messages[0].reward", "bool"),
        ([Turn("assistant", "hi", "1")], "messages[0].reward", "str"),  # type: ignore[arg-type]
        ([A, Turn("user", "hi"), Turn("user", "hi", 1.0)], "messages[2].reward", "'user'"),
        ([A, Turn("assistant", "hi", logp=-1.0)], "messages[1].logp", "one number"),
        ([Turn("bot", "hi"), A], "messages[0].role", "'bot'"),
        ([Turn("user", "hi", tool_calls=[CALL]), A], "messages[0].tool_calls", "only the agent"),
        ([Turn("assistant", "hi\ud800")], "content", "surrogate"),
        ([Turn("assistant", "hi", tool_calls=[{"a": NAN}])], "tool_calls", "JSON"),
        ([Turn("assistant", "hi", logp=[-1.0])], "messages[0].logp", "1 numbers for a message of 3 tokens"),
        ([Turn("assistant", "hi", logp=-1.0)], "messages[0].logp", "one number"),
        ([Turn("assistant", "hi", logp=[-1.0, 0.5, -1.0])], "messages[0].logp", "above 0"),
        ([Turn("assistant", "hi", logp=[-1.0, NAN, -1.0])], "messages[0].logp", "NaN"),
    ],
)
def test_rejects(byte: Encoder, turns: list[Turn], field: str, reason: str) -> None:
    with pytest.raises(Reject, match=reason) as caught:
        byte.encode(Episode("x", turns), "token")
    assert caught.value.field == field


@pytest.mark.parametrize(("logp", "reason"), [([-1.0] * 3, "a list"), (0.1, "above 0"), (-INF, "infinite")])
def test_rejects_of_logp_at_utterance_steps(byte: Encoder, logp: Any, reason: str) -> None:
    with pytest.raises(Reject, match=reason):
        byte.encode(Episode("x", [Turn("assistant", "hi", logp=logp)]), "utterance")


def test_meta_that_is_no_json_is_rejected(byte: Encoder) -> None:
    for meta in ({"a": NAN}, {"a": {1, 2}}):
        with pytest.raises(Reject, match="JSON"):
            byte.encode(Episode("x", HI, meta=meta), "token")


def test_state_refuses_what_no_row_could_hold(byte: Encoder) -> None:
    with pytest.raises(Reject, match="'bot'"):
        byte.state([Turn("bot", "hi")])


def test_unknown_step(byte: Encoder) -> None:
    with pytest.raises(InputError, match="turn"):
        byte.encode(Episode("x", HI), "turn")


def fit(encoder: Encoder, episode: Episode, step: str, limit: int, mode: str) -> tuple[Any, Cut]:
    columns, faults = fit_all(encoder.layout, Talks.of([episode]), step, limit, mode)
    for fault in faults.values():
        raise fault
    return columns.row(0), Cut(*columns.cut[0].tolist())


LONG = [
    *(Turn("system", "s"), Turn("user", "aaaa"), Turn("assistant", "bb", 1.0), Turn("user", "cccc")),
    *(Turn("assistant", "dd", 2.0), Turn("user", "eeee"), Turn("assistant", "ff", 4.0)),
]  # as bytes: 1 + 3 + 6 + 4 + 6 + 4 + 6 + 4 = 34 tokens


@pytest.mark.parametrize(
    ("limit", "kept", "cost"),
    [
        *((34, "s aaaa bb cccc dd eeee ff", Cut()), (33, "s bb cccc dd eeee ff", Cut(1, 0))),
        *((27, "s cccc dd eeee ff", Cut(2, 1)), (14, "s eeee ff", Cut(4, 2)), (8, "s ff", Cut(5, 2))),
    ],
)
def test_overlong_front(byte: Encoder, limit: int, kept: str, cost: Cut) -> None:
    row, cut = fit(byte, Episode("x", LONG), "utterance", limit, "front")
    by_text = {turn.text: turn for turn in LONG}
    assert row == byte.encode(Episode("x", [by_text[text] for text in kept.split()]), "utterance")
    assert len(row["tokens"]) <= limit
    assert cut == cost


@pytest.mark.parametrize(
    ("limit", "kept", "cost"),
    [
        *((33, "s aaaa bb cccc dd eeee", Cut(1, 1)), (30, "s aaaa bb cccc", Cut(3, 2))),
        *((21, "s aaaa bb cccc", Cut(3, 2)), (20, "s aaaa bb", Cut(4, 2)), (14, "s aaaa bb", Cut(4, 2))),
    ],
)
def test_overlong_tail(byte: Encoder, limit: int, kept: str, cost: Cut) -> None:
    row, cut = fit(byte, Episode("x", LONG), "token", limit, "tail")
    turns = LONG[: len(kept.split())]
    assert row == byte.encode(Episode("x", turns, terminated=False), "token")
    assert len(row["tokens"]) <= limit
    assert cut == cost
    assert (row["end"][-1] < len(row["tokens"])) == (not turns[-1].is_action)


@pytest.mark.parametrize(
    ("mode", "limit", "reason"),
    [("reject", 33, "longer than"), ("front", 7, "no whole turns"), ("tail", 13, "no whole turns")]
    + [(mode, 4, "an action is longer") for mode in ("front", "tail", "reject")],
)
def test_overlong_rejects(byte: Encoder, mode: str, limit: int, reason: str) -> None:
    with pytest.raises(Reject, match=reason):
        fit(byte, Episode("x", LONG), "token", limit, mode)


def test_overlong_front_begins_where_the_template_allows() -> None:
    encoder = Encoder(others.folding())
    turns = [Turn("user", "hello"), A, Turn("user", "hello"), A]
    whole = encoder.encode(Episode("x", turns), "token")
    row, cut = fit(encoder, Episode("x", turns), "token", len(whole["tokens"]) - 1, "front")
    assert row == encoder.encode(Episode("x", turns[2:]), "token")
    assert cut == Cut(2, 0)


def text_of_turns() -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


BYTE, BPE = Encoder(ours("byte")), Encoder(ours("bpe:300"))


@given(st.lists(text_of_turns(), min_size=1, max_size=4))
def test_any_text_comes_back(texts: list[str]) -> None:
    turns = [turn for text in texts for turn in (Turn("user", text), Turn("assistant", text, 1.0))]
    for encoder in (BYTE, BPE):
        row = encoder.encode(Episode("x", turns), "utterance")
        actions = [row["tokens"][s:e] for s, e in zip(row["start"], row["end"], strict=True)]
        assert [encoder.text(action) for action in actions] == texts
        assert len(row["turn"]) == len(turns)
        assert encoder.state(turns[:-1])[0] == row["tokens"][: row["start"][-1]]
