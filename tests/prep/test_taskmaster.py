"""Rated actions: how records chain into trajectories, whose reward is whose, rejects, and the published counts."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datasets_prep.encode import Encoder
from datasets_prep.rejects import Placed, Reject
from datasets_prep.taskmaster import episodes
from datasets_prep.tokenizer import train
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

HELLO = {"role": "agent", "text": "Hi there."}
ASKS = {"role": "user", "text": "What is on?"}
CALL = {"role": "agent", "api": {"find": {"where": "SF"}}}
ANSWER = {"role": "api", "response": {"find": {"name": ["Nope", "é"]}}}
SAYS = {"role": "agent", "text": "Nope."}
OTHER = {"role": "agent", "text": "Nothing."}
THANKS = {"role": "user", "text": "thanks"}
BYE = {"role": "agent", "text": "Enjoy."}
TOOL = [{"type": "function", "function": {"name": "find", "arguments": {"where": "SF"}}}]


def record(id: str, context: list[Any], generation: Any, reward: Any) -> dict[str, Any]:
    inside = {"context": json.dumps(context), "generation": json.dumps(generation)}
    return {"conversation_id": id, **inside, "reward": reward}


START = [HELLO, ASKS]
CONVERSATION = [
    record("r1", START, CALL, 1.0),
    record("r2", [*START, CALL, ANSWER], OTHER, 0.0),
    record("r3", [*START, CALL, ANSWER], SAYS, 1.0),
    record("r4", [*START, CALL, ANSWER, SAYS, THANKS], BYE, 0.0),
]


def read(tmp_path: Path, *files: list[Any], **options: Any) -> list[Episode | Reject]:
    paths = [tmp_path / f"reward_{k:02d}.json" for k in range(len(files))]
    for path, records in zip(paths, files, strict=True):
        path.write_text(json.dumps(records, indent=1))
    return list(episodes(paths, seed=0, **options))


def test_records_of_a_conversation_chain_and_each_action_has_its_own_reward(tmp_path: Path) -> None:
    aside, trunk = read(tmp_path, CONVERSATION)
    assert trunk == Placed(
        "r4",
        (
            Turn(AGENT, "Hi there.", act=False),  # nobody rated it
            Turn(PARTNER, "What is on?"),
            Turn(AGENT, "", 1.0, tool_calls=TOOL),
            Turn("tool", '{"find":{"name":["Nope","é"]}}'),
            Turn(AGENT, "Nope.", 1.0),
            Turn(PARTNER, "thanks"),
            Turn(AGENT, "Enjoy.", 0.0),
        ),
        False,
        {"group": "r1", "up": 2, "down": 1},
        file="reward_00.json",
        line=20,
    )
    # the conversation did not go on with this one: the context is only its context, and the call was learned from above
    assert isinstance(aside, Placed)
    assert (aside.id, aside.line, aside.meta) == ("r2", 8, {"group": "r1", "up": 0, "down": 1})
    assert aside.turns[:4] == (
        trunk.turns[0],
        trunk.turns[1],
        Turn(AGENT, "", act=False, tool_calls=TOOL),
        trunk.turns[3],
    )
    assert aside.turns[4:] == (Turn(AGENT, "Nothing.", 0.0),)


def test_options(tmp_path: Path) -> None:
    found = [e for e in read(tmp_path, CONVERSATION, down=-1, ends="over") if isinstance(e, Episode)]
    assert [[t.reward for t in e.turns if t.is_action] for e in found] == [[-1], [1, 1, -1]]
    assert [(e.meta["up"], e.meta["down"]) for e in found] == [(0, 1), (2, 1)]
    assert all(e.terminated for e in found)


def test_a_conversation_goes_on_in_the_next_file_and_ends_where_contexts_part(tmp_path: Path) -> None:
    other = [HELLO, {"role": "user", "text": "Popcorn?"}]
    files = [CONVERSATION[:1], [*CONVERSATION[2:], record("s1", other, SAYS, 0.0), record("t1", [], BYE, 1.0)]]
    found = [e for e in read(tmp_path, *files, [record("u1", START, CALL, 1.0)]) if isinstance(e, Episode)]
    assert [(e.id, e.meta["group"]) for e in found] == [("r4", "r1"), ("s1", "s1"), ("t1", "t1"), ("u1", "u1")]
    assert [sum(turn.is_action for turn in e.turns) for e in found] == [3, 1, 1, 1]


def test_an_empty_context_begins_only_the_conversation_that_it_leads_to(tmp_path: Path) -> None:
    records = [record("t1", [], HELLO, 1.0), record("r1", START, CALL, 0.0)]
    (found,) = read(tmp_path, records)
    assert isinstance(found, Episode)
    assert [turn.reward for turn in found.turns if turn.is_action] == [1.0, 0.0]
    other = [record("t1", [], BYE, 1.0), record("r1", START, CALL, 0.0)]
    assert [e.meta["group"] for e in read(tmp_path, other) if isinstance(e, Episode)] == ["t1", "r1"]


def test_of_two_records_that_are_alike_one_is_inside(tmp_path: Path) -> None:
    twice = [record("r1", START, CALL, 1.0), record("r1b", START, CALL, 0.0), CONVERSATION[2]]
    found = [e for e in read(tmp_path, twice) if isinstance(e, Episode)]
    assert [(e.id, [t.reward for t in e.turns if t.is_action]) for e in found] == [("r1", [1.0]), ("r3", [0.0, 1.0])]


def test_an_encoder_takes_the_calls_as_actions(tmp_path: Path) -> None:
    _, trunk = read(tmp_path, CONVERSATION)
    assert isinstance(trunk, Episode)
    encoder = Encoder(train("byte", []))
    row = encoder.encode(trunk, "utterance")
    assert row["reward"] == [1.0, 1.0, 0.0]
    said = [encoder.text(row["tokens"][s:e]) for s, e in zip(row["start"], row["end"], strict=True)]
    assert said == [json.dumps(TOOL, separators=(",", ":")), "Nope.", "Enjoy."]


GOOD = record("g", START, CALL, 1.0)
BROKEN = {"context": "[{", "generation": "{"}


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"reward": 0.5}, "reward", "it is 0.5, neither 0 nor 1"),
        ({"reward": "1"}, "reward", "Expected `float`, got `str`"),
        ({"reward": True}, "reward", "`bool`"),
        ({"reward": None}, "reward", "`null`"),
        ({"reward": float("nan")}, "reward", "NaN is no finite number"),
        ({"reward": ...}, "", "missing required field `reward`"),
        ({"conversation_id": 5}, "conversation_id", "`int`"),
        ({"conversation_id": ""}, "conversation_id", "it is empty"),
        ({"conversation_id": "r1"}, "conversation_id", "it is that of an earlier record"),
        ({"conversation_id": ...}, "", "missing required field `conversation_id`"),
        ({"context": "[{"}, "context", "not a JSON object"),
        ({"context": "{}"}, "context", "Expected `array`"),
        ({"context": []}, "context", "Expected `str`"),
        ({"context": json.dumps([{"role": "robot", "text": "x"}])}, "context[0].role", "Invalid enum value 'robot'"),
        ({"context": json.dumps([{"role": "user", "api": {}}])}, "context[0]", "'user' needs text alone, not ['api']"),
        ({"context": json.dumps([HELLO, {"role": "user", "text": ""}])}, "context[1].text", "it is empty"),
        ({"context": json.dumps([{"role": "api"}])}, "context[0]", "'api' needs response alone, not []"),
        ({"generation": "x"}, "generation", "not a JSON object"),
        ({"generation": json.dumps(ASKS)}, "generation.role", "it is not the agent's"),
        (
            {"generation": json.dumps({**CALL, "text": "x"})},
            "generation",
            "needs text or api alone, not ['text', 'api']",
        ),
        ({"generation": json.dumps({**CALL, "api": {"f": 5}})}, "generation.api.f", "its arguments are no object"),
        ({"generation": '{"role": "agent", "text": "\\ud800"}'}, "generation.text", "surrogate"),
    ],
)
def test_a_fault_costs_one_record(tmp_path: Path, changes: dict[str, Any], field: str, reason: str) -> None:
    bad = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    found = read(tmp_path, [CONVERSATION[0], bad, *CONVERSATION[2:]])
    (fault,) = (item for item in found if isinstance(item, Reject))
    assert (fault.file, fault.line) == ("reward_00.json", 8)
    assert fault.field in (f"[1].{field}".rstrip("."), field)
    assert reason in fault.reason
    assert [item.id for item in found if isinstance(item, Episode)] == ["r4"]  # the conversation goes on


def test_bad_inputs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--input reward_00\.json"):
        episodes([], seed=0)
    path = tmp_path / "casino.json"
    path.write_text('[{"chat_logs": []}]')
    with pytest.raises(InputError, match="like one of casino"):
        list(episodes([path], seed=0))


@pytest.mark.parametrize(
    ("name", "conversations", "trajectories", "ups", "downs", "calls"),
    [("tm3", 583, 650, 552, 2948, 1889), ("tm4", 948, 2443, 2552, 448, 2268)],
)
def test_published_counts(
    corpora: Callable[[str], Path],
    name: str,
    conversations: int,
    trajectories: int,
    ups: int,
    downs: int,
    calls: int,
) -> None:
    """Every record of the files is the action of one trajectory, with the record's own reward."""
    paths = sorted(corpora(f"taskmaster/{name}").glob("*.json"))
    items = list(episodes(paths, seed=0))
    assert not [item for item in items if isinstance(item, Reject)]
    found = [item for item in items if isinstance(item, Episode)]
    assert len(found) == trajectories
    assert len({episode.meta["group"] for episode in found}) == conversations
    assert sum(episode.meta["up"] for episode in found) == ups
    assert sum(episode.meta["down"] for episode in found) == downs
    actions = [turn for episode in found for turn in episode.turns if turn.is_action]
    assert sum(bool(turn.tool_calls) for turn in actions) == calls

    def key(context: list[Any], reward: float) -> tuple[int, str, float]:
        return len(context) - 1, json.dumps(context[-1], sort_keys=True), reward

    raw = Counter(
        key([*json.loads(r["context"]), json.loads(r["generation"])], r["reward"])
        for path in paths
        for r in json.loads(path.read_text())
    )
    assert raw.total() == ups + downs

    def said(turn: Turn) -> dict[str, Any]:
        if not turn.tool_calls:
            return {"role": "agent", "text": turn.text}
        return {"role": "agent", "api": {c["function"]["name"]: c["function"]["arguments"] for c in turn.tool_calls}}

    ours = Counter(
        key([*episode.turns[:k], said(turn)], turn.reward)
        for episode in found
        for k, turn in enumerate(episode.turns)
        if turn.is_action
    )
    assert ours == raw
