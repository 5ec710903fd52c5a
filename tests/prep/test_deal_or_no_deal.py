"""The negotiation corpus: rewards, turns, rejects, and the published counts."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datasets_prep.deal_or_no_deal import Order, _read, episodes, groups, permuted, rename
from datasets_prep.rejects import Placed, Reject
from ilql.envs.deal_or_no_deal import (
    ITEMS,
    DealOrNoDeal,
    counts,
    feasible_allocations,
    metrics,
    parse_numbers,
    parse_scenario,
    parse_selection,
    points,
    spell_selection,
)
from ilql.types import AGENT, PARTNER, Episode, InputError, Turn

OWN, PARTNERS = "1 0 4 2 1 2", "1 4 4 1 1 2"
TALK = "YOU: i would like 4 hats and you can have the rest . <eos> THEM: deal <eos>"
DEAL = f"{OWN} {TALK} YOU: <selection> item0=0 item1=4 item2=0 <eos> reward=8 agree {PARTNERS}"
OTHER = (
    f"{PARTNERS} THEM: i would like 4 hats and you can have the rest . <eos> YOU: deal <eos> "
    f"THEM: <selection> item0=1 item1=0 item2=1 <eos> reward=6 agree {OWN}"
)


ORDERS: list[Order] = list(itertools.permutations(range(3)))  # type: ignore[arg-type]


def read(tmp_path: Path, *lines: str, **options: Any) -> list[Episode | Reject]:
    path = tmp_path / "data.txt"
    path.write_text("".join(line + "\n" for line in lines))
    return list(episodes([path], **options, seed=0))


def test_the_two_sides_of_a_dialogue(tmp_path: Path) -> None:
    one, two = read(tmp_path, DEAL, OTHER)
    assert one == Placed(
        "data-1:a",
        (
            Turn(PARTNER, OWN),
            Turn(AGENT, "i would like 4 hats and you can have the rest ."),
            Turn(PARTNER, "deal"),
            Turn(AGENT, "<selection> item0=0 item1=4 item2=0", 8.0),
        ),
        True,
        {"group": f"{OWN} | {PARTNERS}", "outcome": "deal", "partner": PARTNERS, "points": 8},
        file="data.txt",
        line=1,
    )
    assert isinstance(two, Placed)
    assert two.turns == (
        Turn(PARTNER, PARTNERS),
        Turn(PARTNER, "i would like 4 hats and you can have the rest ."),
        Turn(AGENT, "deal"),
        Turn(PARTNER, "<selection>"),
        Turn(AGENT, "<selection> item0=1 item1=0 item2=1", 6.0),
    )
    assert (two.id, two.line, two.meta["group"]) == ("data-1:b", 2, one.meta["group"])


def test_lines_that_are_not_the_two_sides_of_one_dialogue_are_not_paired(tmp_path: Path) -> None:
    ids = [episode.id for episode in read(tmp_path, DEAL, DEAL, OTHER, OTHER) if isinstance(episode, Episode)]
    assert ids == ["data-1:a", "data-2:a", "data-2:b", "data-4:a"]


def test_the_environment_says_what_the_corpus_says(tmp_path: Path) -> None:
    """Both sides' turns of a logged dialogue, played in the environment, give the logged turns and rewards."""
    one, two = read(tmp_path, DEAL, OTHER)
    assert isinstance(one, Episode)
    assert isinstance(two, Episode)
    game = DealOrNoDeal([parse_scenario(OWN, PARTNERS)])
    heard = [[text] for text in game.reset(0)]
    paid = [0.0, 0.0]
    said = [[t for t in e.turns if t.is_action] for e in (one, two)]
    while any(said):
        replies = game.move(said[game.mover].pop(0).text)
        for seat, reply in enumerate(replies):
            heard[seat] += [reply.text] * bool(reply.text)
            paid[seat] += reply.reward
    assert heard == [[t.text for t in e.turns if not t.is_action] for e in (one, two)]
    assert paid == [one.total_reward, two.total_reward]
    assert game.facts(0) == {**one.meta, "seat": 0}
    assert game.facts(1) == {**two.meta, "seat": 1}


@pytest.mark.parametrize(
    ("end", "selection", "outcome"),
    [
        ("<selection> item0=0 item1=4 item2=0 <eos> reward=8 disagree", "item0=0 item1=4 item2=0", "disagree"),
        ("<selection> no agreement <eos> reward=no agreement agree", "no agreement", "no_agreement"),
        ("<selection> no agreement <eos> reward=no agreement disagree", "no agreement", "no_agreement"),
        ("<selection> disconnect <eos> reward=disconnect agree", "disconnect", "disconnect"),
    ],
)
def test_without_a_deal_the_reward_is_0(tmp_path: Path, end: str, selection: str, outcome: str) -> None:
    (episode,) = read(tmp_path, f"{OWN} {TALK} YOU: {end} {PARTNERS}")
    assert isinstance(episode, Episode)
    assert episode.turns[-1] == Turn(AGENT, f"<selection> {selection}", 0.0)
    assert episode.meta["outcome"] == outcome
    assert "points" not in episode.meta
    assert episode.terminated


@pytest.mark.parametrize(
    ("old", "new", "field", "reason"),
    [
        ("reward=8", "reward=7", "reward", "it is '7', but the selection is worth 8"),
        ("reward=8", "reward=no agreement", "reward", "it is 'no agreement', but"),
        ("1 0 4 2 1 2 ", "1 0 4 2 1 3 ", "numbers", "worth 11 together"),
        (PARTNERS, "2 2 4 1 1 2", "numbers", "count different items"),
        ("item1=4", "item1=5", "selection", "takes more than there is"),
        ("item1=4", "item1=four", "selection", "is neither items nor"),
        ("item0=0 item1=4 item2=0", "no agreement", "reward", "it is '8', but the selection is 'no agreement'"),
        ("THEM: deal", "HE: deal", "talk", "utterance 2 begins with neither YOU nor THEM"),
        ("THEM: deal", "THEM:  ", "talk", "utterance 2 is empty"),
        ("THEM: deal", "THEM: <selection> x", "talk", "utterance 2 is a selection"),
        (" <eos> YOU: <selection>", " YOU: <selection>", "talk", "its last utterance has no <eos>"),
        (" agree ", " agrees ", "line", "it is not `six numbers"),
        ("1 0 4 2 1 2 ", "1 0 4 2 1 ", "line", "it is not `six numbers"),
    ],
)
def test_a_line_that_contradicts_itself_is_a_reject(
    tmp_path: Path, old: str, new: str, field: str, reason: str
) -> None:
    assert DEAL.count(old) == 1
    good, bad, after = read(tmp_path, DEAL, DEAL.replace(old, new), OTHER)
    assert isinstance(bad, Reject)
    assert (bad.file, bad.line, bad.field) == ("data.txt", 2, field)
    assert reason in bad.reason
    assert isinstance(good, Episode)
    assert isinstance(after, Episode)
    assert after.id == "data-3:a"


def test_an_empty_line_bytes_and_the_other_form_are_rejects(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    val = f"<input> {OWN} </input> <dialogue> {TALK} YOU: <selection> </dialogue> <output> </output>"
    path.write_bytes(
        DEAL.encode() + b"\r\n\n" + DEAL.replace("hats", "h\xe4ts").encode("latin-1") + f"\n{val}".encode()
    )
    found = list(episodes([path], seed=0))
    assert isinstance(found[0], Episode)
    assert [reject.reason.split(",")[0] for reject in found[1:] if isinstance(reject, Reject)] == [
        "it is empty",
        "it is not UTF-8",
        "this is val.txt's form",
    ]


def test_bad_inputs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--input data\.txt"):
        episodes([], seed=0)
    with pytest.raises(InputError, match=r"cannot read .*absent.txt: No such file"):
        list(episodes([tmp_path / "absent.txt"], seed=0))


def test_groups_of_a_validation_file_are_the_corpus_groups(tmp_path: Path) -> None:
    path = tmp_path / "val.txt"
    path.write_text(f"<input> {PARTNERS} </input> <dialogue> </dialogue> <partner_input> {OWN} </partner_input>\n")
    (episode,) = read(tmp_path, DEAL)
    assert isinstance(episode, Episode)
    assert groups(path) == {episode.meta["group"]}


def test_the_items_change_places_in_numbers_words_and_selection(tmp_path: Path) -> None:
    found = read(tmp_path, DEAL, OTHER, permute_items=True)
    assert [e.id for e in found if isinstance(e, Episode)] == [
        *("data-1:a", "data-1.1:a", "data-1.2:a", "data-1.3:a", "data-1.4:a", "data-1.5:a"),
        *("data-1:b", "data-1.1:b", "data-1.2:b", "data-1.3:b", "data-1.4:b", "data-1.5:b"),
    ]
    assert [found[0], found[6]] == read(tmp_path, DEAL, OTHER)
    assert found[3] == Placed(  # books became hats, hats balls, balls books
        "data-1.3:a",
        (
            Turn(PARTNER, "1 2 1 0 4 2"),
            Turn(AGENT, "i would like 4 balls and you can have the rest ."),
            Turn(PARTNER, "deal"),
            Turn(AGENT, "<selection> item0=0 item1=0 item2=4", 8.0),
        ),
        True,
        {
            "group": f"{OWN} | {PARTNERS}",  # the original's: a split keeps them together
            "outcome": "deal",
            "partner": "1 2 1 4 4 1",
            "points": 8,
            "order": "hat ball book",
        },
        file="data.txt",
        line=1,
    )
    other = found[9]
    assert isinstance(other, Placed)
    assert [t.text for t in other.turns] == [
        *("1 2 1 4 4 1", "i would like 4 balls and you can have the rest .", "deal", "<selection>"),
        "<selection> item0=1 item1=1 item2=0",
    ]
    assert (other.line, other.meta["group"]) == (2, found[0].meta["group"])  # type: ignore[union-attr]


@pytest.mark.parametrize("order", ORDERS)
def test_each_number_of_a_selection_moves_with_its_word(order: Order) -> None:
    """For every selection: of what was n books there are n of what books became, and they are worth the same."""
    line = _read(
        "data.txt", 1, f"{OWN} {TALK} YOU: <selection> no agreement <eos> reward=no agreement agree {PARTNERS}"
    )
    numbers = line.scenario[0]
    for items in feasible_allocations(counts(numbers)):
        text = " ".join(f"{n} {word}" for n, word in zip(items, ITEMS, strict=True))
        moved = permuted(line._replace(selection=spell_selection(items), talk=(("YOU", text),)), order)
        theirs = parse_selection(moved.selection)
        assert theirs is not None
        assert sorted(moved.talk[0][1].split()) == sorted(text.split())
        said = moved.talk[0][1].split()
        assert [said[said.index(word) - 1] for word in ITEMS] == list(map(str, theirs))
        assert points(moved.scenario[0], theirs) == points(numbers, items)
    assert permuted(line, order).selection == "<selection> no agreement"


@pytest.mark.parametrize("order", ORDERS)
def test_the_opposite_order_gives_the_original_back(order: Order) -> None:
    line = _read("data.txt", 1, DEAL.replace("4 hats", "4 hats, the book's cover, my balls (a hat)"))
    back: Order = tuple(order.index(kind) for kind in range(3))  # type: ignore[assignment]
    assert permuted(permuted(line, order), back) == line
    assert (permuted(line, order) == line) == (order == (0, 1, 2))


def test_only_whole_words_are_items_and_a_basketball_is_a_ball() -> None:
    text = "that hat's mine, chat: bookworm basketballs balls basketball eyeball hats/books ."
    assert rename(text, (2, 0, 1)) == "that book's mine, chat: bookworm hats hats hat eyeball books/balls ."
    assert (
        rename(text, (1, 0, 2)) == "that book's mine, chat: bookworm basketballs balls basketball eyeball books/hats ."
    )


@pytest.fixture(scope="module")
def published(corpora: Callable[[str], Path]) -> list[Episode | Reject]:
    return list(episodes([corpora("deal_or_no_deal/data.txt")], seed=0))


def test_published_counts(published: list[Episode | Reject], corpora: Callable[[str], Path]) -> None:
    assert [item for item in published if isinstance(item, Reject)] == []
    found = [item for item in published if isinstance(item, Episode)]
    assert len(found) == len({episode.id for episode in found}) == 11182
    outcomes = Counter(episode.meta["outcome"] for episode in found)
    assert outcomes == {"deal": 8727, "disagree": 1184, "no_agreement": 1203, "disconnect": 68}
    assert len({episode.meta["group"] for episode in found}) == 2084
    validation = groups(corpora("deal_or_no_deal/val.txt"))
    assert len(validation) == 200
    assert sum(episode.meta["group"] in validation for episode in found) == 1087


def test_published_rewards(published: list[Episode | Reject]) -> None:
    for episode in published:
        assert isinstance(episode, Episode)
        deal = episode.meta["outcome"] == "deal"
        assert episode.total_reward == episode.turns[-1].reward == (episode.meta["points"] if deal else 0)
        assert 0 <= episode.total_reward <= 10
        assert episode.turns[-1].role == AGENT
        assert parse_numbers(episode.turns[0].text)


def test_people_score_as_published(published: list[Episode | Reject]) -> None:
    """Published, with the test dialogues: 80.5 % agreement, 6.0 points, 7.5 where agreed, 77.0 % Pareto-optimal."""
    by_id = {episode.id: episode for episode in published if isinstance(episode, Episode)}
    pairs = [
        (one, by_id[f"{name[:-1]}b"]) for name, one in by_id.items() if f"{name[:-1]}b" in by_id and name[-1] == "a"
    ]
    assert len(pairs) == 5409
    people = metrics(pairs + [(two, one) for one, two in pairs])
    assert people["agreement %"] == pytest.approx(80.5, abs=0.5)
    assert people["points (all)"] == pytest.approx(6.0, abs=0.05)
    assert people["points (agreed)"] == pytest.approx(7.5, abs=0.05)
    assert people["Pareto-optimal %"] == pytest.approx(77.0, abs=1.0)
    assert people["points (all)"] == people["partner's points (all)"]


def test_published_dialogues_under_all_orders(corpora: Callable[[str], Path]) -> None:
    found = list(episodes([corpora("deal_or_no_deal/data.txt")], permute_items=True, seed=0))
    assert len({e.id for e in found if isinstance(e, Episode)}) == 6 * 11182
    for original, *copies in zip(*(found[k::6] for k in range(6)), strict=True):
        assert isinstance(original, Episode)
        for copy in copies:
            assert isinstance(copy, Episode)
            assert copy.meta["group"] == original.meta["group"]
            assert [t.reward for t in copy.turns] == [t.reward for t in original.turns]
            assert sorted(copy.turns[0].text) == sorted(original.turns[0].text)
            items = parse_selection(copy.turns[-1].text)
            assert (items is None) == (parse_selection(original.turns[-1].text) is None)
            if copy.meta["outcome"] == "deal" and items is not None:
                assert points(parse_numbers(copy.turns[0].text), items) == original.total_reward
                parse_scenario(copy.turns[0].text, copy.meta["partner"])
