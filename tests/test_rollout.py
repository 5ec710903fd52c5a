"""Rollouts: lock step, rewards on the right turns, ends, and the way back into a log."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from datasets_prep import chat
from ilql.envs.deal_or_no_deal import DealOrNoDeal, parse_scenario
from ilql.envs.maze import Maze, optimal_return
from ilql.rollout import rollout, selfplay, to_log
from ilql.types import AGENT, PARTNER, Episode, Reply, Turn
from tests.scripted import Scripted, negotiator, walker


class Countdown:
    """Says the numbers from its seed down to 0, where it ends; `truncate` makes that end a limit from outside."""

    def __init__(self, truncate: bool = False, last: str = "bang") -> None:
        self.truncate, self.last = truncate, last

    def reset(self, seed: int) -> str:
        self.left = seed
        return str(seed)

    def step(self, utterance: str) -> Reply:
        self.left -= 1
        if self.left:
            return Reply(str(self.left), 1.0)
        return Reply(self.last, 5.0, terminated=not self.truncate, truncated=self.truncate)


class PingPong:
    """Two seats; seat 0 is paid 1 for its words only when seat 1 answers; `facts` are there. Four words and it ends."""

    def reset(self, seed: int) -> tuple[str, str]:
        self.said: list[str] = []
        return f"zero {seed}", ""

    @property
    def mover(self) -> int:
        return len(self.said) % 2

    def move(self, utterance: str) -> tuple[Reply, Reply]:
        mover = self.mover
        self.said.append(utterance)
        over = len(self.said) == 4
        heard = Reply(utterance, terminated=over)
        return (Reply(utterance, 1.0, terminated=over), Reply("", terminated=over)) if mover else (Reply(""), heard)

    def facts(self, seat: int) -> dict[str, Any]:
        return {"seat": seat, "words": len(self.said)}


def test_lock_step_batches_of_those_still_running() -> None:
    policy = Scripted(lambda turns: "ok")
    episodes = rollout(policy, Countdown, [3, 1, 2], progress=False)
    assert policy.batches == [3, 2, 1]
    assert [episode.total_reward for episode in episodes] == [7.0, 5.0, 6.0]
    assert episodes[2].turns == (
        Turn(PARTNER, "2"),
        Turn(AGENT, "ok", 1.0),
        Turn(PARTNER, "1"),
        Turn(AGENT, "ok", 5.0),
        Turn(PARTNER, "bang"),
    )
    assert episodes[2].terminated
    assert episodes[2].meta == {"group": "seed-2", "seed": 2}


def test_a_limits_text_is_no_state() -> None:
    (episode,) = rollout(Scripted(lambda turns: "ok"), lambda: Countdown(truncate=True), [1], progress=False)
    assert episode.turns == (Turn(PARTNER, "1"), Turn(AGENT, "ok", 5.0))
    assert not episode.terminated
    assert episode.meta["last_reply"] == "bang"


def test_a_silent_end_adds_no_turn() -> None:
    (episode,) = rollout(Scripted(lambda turns: "ok"), lambda: Countdown(last=""), [1], progress=False)
    assert episode.turns[-1] == Turn(AGENT, "ok", 5.0)
    assert episode.terminated


def test_the_callers_limit_keeps_the_last_observation() -> None:
    policy = Scripted(lambda turns: "ok")
    cut, ended = rollout(policy, Countdown, [5, 2], max_turns=2, progress=False)
    assert policy.batches == [2, 2]
    assert not cut.terminated
    assert cut.turns[-1] == Turn(PARTNER, "3")
    assert "last_reply" not in cut.meta
    assert ended.terminated


def test_ids_tell_repeated_seeds_apart() -> None:
    episodes = rollout(Scripted(lambda turns: "ok"), Countdown, [1, 1, 2], progress=False)
    assert [episode.id for episode in episodes] == ["seed-1", "seed-1-2", "seed-2"]


def test_a_policy_must_answer_every_dialogue() -> None:
    class Short(Scripted):
        def respond(self, dialogues: Any) -> list[str]:
            return super().respond(dialogues)[1:]

    with pytest.raises(RuntimeError, match="1 answers to 2 dialogues"):
        rollout(Short(lambda turns: "ok"), Countdown, [1, 1], progress=False)


@pytest.mark.parametrize("mirror", [False, True])
def test_the_optimal_walker_has_the_optimal_return(mirror: bool) -> None:
    episodes = rollout(walker(mirror), lambda: Maze(mirror=mirror), range(25), progress=False)
    assert sum(episode.total_reward for episode in episodes) / 25 == pytest.approx(-6.84)
    assert sum(episode.total_reward for episode in episodes) / 25 == pytest.approx(optimal_return(Maze(mirror=mirror)))
    assert all(episode.terminated and episode.turns[-1].text == "Success\n" for episode in episodes)


def test_a_walker_that_stands_still_is_truncated_at_minus_101() -> None:
    (episode,) = rollout(Scripted(lambda turns: "move left\n"), Maze, [0], progress=False)
    assert episode.total_reward == -101
    assert not episode.terminated
    assert episode.turns[-1].role == AGENT
    assert episode.meta["last_reply"] == "Failure\n"
    assert not episode.meta["success"]


def test_an_environment_stands_for_copies_of_itself() -> None:
    maze = Maze(mirror=True)
    made = rollout(walker(True), lambda: Maze(mirror=True), range(25), progress=False)
    assert rollout(walker(True), maze, range(25), progress=False) == made
    assert maze.steps == 0, "the one given is not played itself"


def test_the_same_seeds_give_the_same_episodes() -> None:
    def play(seed: int) -> list[Episode]:
        rng = random.Random(seed)
        policy = Scripted(lambda turns: rng.choice(["move up\n", "move down\n", "move left\n", "move right\n"]))
        return rollout(policy, Maze, range(5), progress=False)

    assert play(1) == play(1)
    assert play(1) != play(2)


def test_a_late_reward_reaches_the_utterance_that_earned_it() -> None:
    ((one, two),) = selfplay(
        (Scripted(lambda turns: "ping"), Scripted(lambda turns: "pong")), PingPong, [7], progress=False
    )
    ping, pong = Turn(AGENT, "ping", 1.0), Turn(PARTNER, "pong")
    assert one.turns == (Turn(PARTNER, "zero 7"), ping, pong, ping, pong)
    assert two.turns == (Turn(PARTNER, "ping"), Turn(AGENT, "pong"), Turn(PARTNER, "ping"), Turn(AGENT, "pong"))
    assert (one.id, two.id) == ("seed-7:a", "seed-7:b")
    assert one.meta == {"group": "seed-7", "seed": 7, "seat": 0, "words": 4}
    assert one.terminated
    assert two.terminated


def test_games_are_batched_by_policy() -> None:
    ping, pong = Scripted(lambda turns: "ping"), Scripted(lambda turns: "pong")
    selfplay((ping, pong), PingPong, range(3), progress=False)
    assert (ping.batches, pong.batches) == ([3, 3], [3, 3])
    both = Scripted(lambda turns: "same")
    selfplay((both, both), PingPong, range(3), progress=False)
    assert both.batches == [3, 3, 3, 3]


def test_the_callers_limit_cuts_a_game_off() -> None:
    policy = Scripted(lambda turns: "word")
    ((one, two),) = selfplay((policy, policy), PingPong, [0], max_turns=3, progress=False)
    assert not one.terminated
    assert not two.terminated
    assert sum(turn.is_action for episode in (one, two) for turn in episode.turns) == 3


def test_paying_a_silent_seat_is_the_games_fault() -> None:
    class Unfair(PingPong):
        def move(self, utterance: str) -> tuple[Reply, Reply]:
            return Reply(""), Reply("", 1.0)

    with pytest.raises(RuntimeError, match="has not spoken"):
        selfplay((Scripted(lambda turns: "x"), Scripted(lambda turns: "x")), Unfair, [0], progress=False)


def test_transcripts_can_be_built_again(tmp_path: Path) -> None:
    scenario = parse_scenario("1 0 4 2 1 2", "1 4 4 1 1 2")
    games = selfplay((negotiator(True), negotiator(True)), lambda: DealOrNoDeal([scenario]), [0], progress=False)
    walks = rollout(Scripted(lambda turns: "move left\n"), Maze, [0, 1], max_turns=3, progress=False)
    walks += rollout(walker(), Maze, range(3), progress=False)
    episodes = [*games[0], *walks]
    path = tmp_path / "transcripts.jsonl"
    path.write_text("".join(json.dumps(to_log(episode)) + "\n" for episode in episodes))
    again = list(chat.episodes([path]))
    assert len(again) == 7
    for before, after in zip(episodes, again, strict=True):
        assert isinstance(after, Episode)
        assert (after.id, after.terminated, tuple(after.turns)) == (before.id, before.terminated, before.turns)
        assert after.meta == before.meta
        assert after.total_reward == before.total_reward


def test_every_field_of_a_turn_reaches_the_log() -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "book"}}}
    turns = (
        Turn("system", "be kind"),
        Turn(AGENT, "copied", act=False),
        Turn(PARTNER, "hi"),
        Turn(AGENT, "let me see", 0.5, logp=[-1.0, -2.0], tool_calls=[call]),
        Turn("tool", "it is a book", name="look", tool_call_id="c1"),
        Turn(AGENT, "a book", logp=-3.0),
    )
    assert to_log(Episode("e", turns, False, {"k": 1}, [{"type": "function"}])) == {
        "id": "e",
        "messages": [
            {"role": "system", "content": "be kind"},
            {"role": "assistant", "content": "copied", "loss_mask": 0},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "let me see", "tool_calls": [call], "reward": 0.5, "logp": [-1.0, -2.0]},
            {"role": "tool", "content": "it is a book", "name": "look", "tool_call_id": "c1"},
            {"role": "assistant", "content": "a book", "reward": 0.0, "logp": -3.0},
        ],
        "terminated": False,
        "meta": {"k": 1},
        "tools": [{"type": "function"}],
    }
