"""The negotiation's rules, its referee and its metrics."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ilql.envs import deal_or_no_deal as dond
from ilql.envs.deal_or_no_deal import DealOrNoDeal, group, load_scenarios, make, metrics, pareto_optimal, summary
from ilql.rollout import selfplay
from ilql.types import AGENT, PARTNER, Episode, InputError, Reply, Turn
from tests.scripted import grabber, negotiator

FIRST, SECOND = "1 0 4 2 1 2", "1 4 4 1 1 2"
SCENARIO = dond.parse_scenario(FIRST, SECOND)


def game(max_turns: int = 20) -> DealOrNoDeal:
    return DealOrNoDeal([SCENARIO], max_turns)


def finish(*utterances: str) -> tuple[tuple[Reply, Reply], DealOrNoDeal]:
    table = game()
    table.reset(0)
    for utterance in utterances:
        replies = table.move(utterance)
    return replies, table


def test_a_published_dialogue_played_again() -> None:
    table = game()
    assert table.reset(0) == (FIRST, SECOND)
    assert table.mover == 0
    assert table.move("i would like 4 hats and you can have the rest .") == (
        Reply(""),
        Reply("i would like 4 hats and you can have the rest ."),
    )
    assert table.mover == 1
    assert table.move("deal") == (Reply("deal"), Reply(""))
    assert table.mover == 0
    assert table.move("<selection> item0=0 item1=4 item2=0") == (Reply(""), Reply("<selection>"))
    assert table.mover == 1
    end = table.move("<selection> item0=1 item1=0 item2=1")
    assert end == (Reply("", 8.0, terminated=True), Reply("", 6.0, terminated=True))
    assert table.facts(1) == {
        "group": f"{FIRST} | {SECOND}",
        "partner": FIRST,
        "seat": 1,
        "outcome": "deal",
        "points": 6,
    }
    with pytest.raises(RuntimeError, match="call reset"):
        table.move("deal")


def test_a_selection_is_one_of_all_that_may_be_made() -> None:
    seat = [Turn(PARTNER, FIRST), Turn(PARTNER, "deal")]
    every = dond.closed([*seat, Turn(PARTNER, "<selection>")], "")
    assert every is not None
    assert len(every) == len(set(every)) == 2 * 5 * 2 + 1
    assert every[-1] == dond.NO_AGREEMENT
    assert {dond.parse_selection(text) for text in every[:-1]} == set(dond.feasible_allocations((1, 4, 1)))
    assert dond.closed(seat, "<selection> item0=7 i want") == dond.closed(seat, " <selection>") == every
    assert dond.closed(seat, "") is None
    assert dond.closed(seat, "i take <selection>") is None
    assert dond.closed([], "") is None
    assert dond.closed([Turn(PARTNER, "hello"), Turn(PARTNER, "<selection>")], "") is None, "no numbers, no set"
    assert dond.closed([*seat, Turn(AGENT, "<selection>")], "") is None, "only the partner's word closes the talk"


def test_the_points_stay_with_their_seats_when_seat_1_closes() -> None:
    (one, two), table = finish("hi", "<selection> item0=1 item1=0 item2=1", "<selection> item0=0 item1=4 item2=0")
    assert (one.reward, two.reward) == (8.0, 6.0)
    assert table.outcome == "deal"


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ("<selection> item0=1 item1=4 item2=1", "<selection> item0=1 item1=0 item2=1", "disagree"),
        ("<selection> item0=0 item1=3 item2=0", "<selection> item0=1 item1=0 item2=1", "disagree"),  # a hat is left
        ("<selection> item0=0 item1=4 item2=0", "<selection> no agreement", "no_agreement"),
        ("<selection> no agreement", "<selection> item0=1 item1=0 item2=1", "no_agreement"),
        ("<selection> item0=0 item1=4", "<selection> item0=1 item1=0 item2=1", "no_agreement"),
        ("<selection> item0=0 item1=4 item2=0", "ok thanks", "no_agreement"),
        ("<selection> item0=0 item1=4 item2=0", "<selection> item0=1 item1=0 item2=1 please", "no_agreement"),
    ],
)
def test_without_a_deal_nobody_gets_a_point(first: str, second: str, outcome: str) -> None:
    (one, two), table = finish(first, second)
    assert (one, two) == (Reply("", 0.0, terminated=True),) * 2
    assert table.outcome == outcome
    assert "points" not in table.facts(0)


def test_the_turn_limit_is_no_deal_and_lets_a_closed_talk_finish() -> None:
    table = game(max_turns=2)
    table.reset(0)
    assert not any(reply.over for reply in table.move("hi"))
    assert table.move("hello") == (Reply("hello", terminated=True), Reply("", terminated=True))
    assert table.outcome == "turn_limit"
    table.reset(0)
    table.move("hi")
    table.move("<selection> item0=1 item1=0 item2=1")
    assert table.move("<selection> item0=0 item1=4 item2=0")[0].reward == 8.0


def test_consecutive_seeds_play_every_scenario_once_in_a_fixed_mixed_order() -> None:
    scenarios = [dond.parse_scenario(f"1 {a} 1 {10 - a} 1 0", f"1 0 1 {a} 1 {10 - a}") for a in range(11)]
    tables = [DealOrNoDeal(scenarios), DealOrNoDeal(scenarios)]
    orders = [[table.reset(seed) for seed in range(11)] for table in tables]
    assert orders[0] == orders[1]
    assert len(set(orders[0])) == 11
    assert orders[0] != [(dond.spell(one), dond.spell(two)) for one, two in scenarios]
    assert [tables[0].reset(seed) for seed in range(3, 14)] == orders[0][3:] + orders[0][:3]


def test_feasible_allocations() -> None:
    every = list(dond.feasible_allocations((1, 4, 1)))
    assert len(every) == len(set(every)) == 20
    assert (0, 0, 0) in every
    assert (1, 4, 1) in every


def test_pareto_by_hand() -> None:
    assert pareto_optimal(SCENARIO, (8, 6))  # the book is worth nothing to the first, and 4 to the second
    assert not pareto_optimal(SCENARIO, (8, 2))  # the second could have the book as well
    assert pareto_optimal(SCENARIO, (10, 4))
    assert not pareto_optimal(SCENARIO, (0, 0))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 0 4 2 1", "not six numbers"),
        ("1 0 4 2 1 x", "not six numbers"),
        ("1 0 4 2 1 -2", "not six numbers"),
        ("1 0 4 2 1 3", "worth 11 together, not 10"),
    ],
)
def test_bad_numbers(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dond.parse_numbers(text)


def test_agreeing_negotiators_share_everything() -> None:
    pairs = selfplay((negotiator(False), negotiator(False)), game, range(4), progress=False)
    assert metrics(pairs) == {
        "agreement %": 100.0,
        "points (all)": 0.0,
        "partner's points (all)": 10.0,
        "points (agreed)": 0.0,
        "partner's points (agreed)": 10.0,
        "Pareto-optimal %": 100.0,
        "turns": 2.0,
    }


def test_grabbers_get_nothing() -> None:
    pairs = selfplay((grabber(), grabber()), game, range(2), progress=False)
    assert [(a.total_reward, b.total_reward) for a, b in pairs] == [(0, 0)] * 2
    columns = summary(pairs)
    assert columns["agreement %"] == [0.0, 0.0]
    assert columns["points (agreed)"] == [None, None]
    assert metrics(pairs)["points (agreed)"] != metrics(pairs)["points (agreed)"]  # nan
    assert columns["turns"] == [0.0, 0.0]


def test_metrics_tell_ours_from_the_partners() -> None:
    first = Episode("x:a", [Turn(PARTNER, FIRST)], meta={"outcome": "deal", "points": 8, "partner": SECOND})
    second = Episode("x:b", [Turn(PARTNER, SECOND)], meta={"outcome": "deal", "points": 2, "partner": FIRST})
    lost = Episode("y:a", [Turn(PARTNER, FIRST)], meta={"outcome": "disagree", "partner": SECOND})
    values = metrics([(first, second), (lost, lost)])
    assert (values["agreement %"], values["points (all)"], values["partner's points (all)"]) == (50.0, 4.0, 1.0)
    assert (values["points (agreed)"], values["partner's points (agreed)"]) == (8.0, 2.0)
    assert values["Pareto-optimal %"] == 0.0


def test_scenarios_of_the_three_forms(tmp_path: Path) -> None:
    pairs = tmp_path / "selfplay.txt"
    pairs.write_text(f"{FIRST}\n{SECOND}\n{SECOND}\n{FIRST}\n{FIRST}\n{SECOND}\n")
    assert load_scenarios(pairs) == [SCENARIO, SCENARIO[::-1], SCENARIO]
    lines = tmp_path / "data.txt"
    lines.write_text(
        f"{FIRST} YOU: hi <eos> THEM: <selection> no agreement <eos> reward=no agreement agree {SECOND}\n"
        f"{SECOND} THEM: hi <eos> YOU: <selection> no agreement <eos> reward=no agreement agree {FIRST}\n"
    )
    assert load_scenarios(lines) == [SCENARIO]
    val = tmp_path / "val.txt"
    val.write_text(
        f"<input> {SECOND} </input> <dialogue> YOU: hi <eos> THEM: <selection> </dialogue> "
        f"<partner_input> {FIRST} </partner_input>\n"
    )
    assert load_scenarios(val) == [SCENARIO[::-1]]
    assert group(SCENARIO) == group(SCENARIO[::-1])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (f"{FIRST}\n", "line 1: this side has no partner"),
        (f"{FIRST}\n1 4 3 2 0 0\n", "line 1: the sides .* count different items"),
        (f"{FIRST}\n1 4 4 1 1\n", "line 1: '1 4 4 1 1' is not six numbers"),
        ("hello\n", "line 1"),
    ],
)
def test_bad_scenario_files(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "scenarios.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        load_scenarios(path)


def test_make_needs_scenarios_and_can_leave_some_out(tmp_path: Path) -> None:
    path, seen = tmp_path / "selfplay.txt", tmp_path / "seen.txt"
    path.write_text(f"{FIRST}\n{SECOND}\n{FIRST}\n{FIRST}\n")
    seen.write_text(f"{SECOND}\n{FIRST}\n")
    with pytest.raises(InputError, match="--scenarios FILE"):
        make()
    with pytest.raises(InputError, match=r"cannot read scenarios from .*: No such file"):
        make(scenarios=str(tmp_path / "absent.txt"))
    with pytest.raises(InputError, match="max_turns is 0"):
        make(scenarios=str(path), max_turns=0)
    assert make(scenarios=str(path), exclude=str(seen))().scenarios == [(SCENARIO[0], SCENARIO[0])]
    with pytest.raises(InputError, match="nothing is left to play"):
        make(scenarios=str(seen), exclude=str(path))


def test_published_scenarios(corpora: Callable[[str], Path]) -> None:
    folder = corpora("deal_or_no_deal")
    pairs = load_scenarios(folder / "selfplay.txt")
    assert len(pairs) == 4086
    assert len({group(pair) for pair in pairs}) == 2215
    assert len(load_scenarios(folder / "val.txt")) == 200
    assert len(load_scenarios(folder / "data.txt")) == 2084
    unseen = make(str(folder / "selfplay.txt"), str(folder / "data.txt"))().scenarios
    assert len(unseen) == 744
    assert len({group(pair) for pair in unseen}) == 394
