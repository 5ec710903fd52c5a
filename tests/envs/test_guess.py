"""The game of questions: what is heard by whom, what a guess is worth, and how often scripted people err."""

import random
from statistics import mean

import pytest

from ilql.envs.guess import ANSWERER, ATTRIBUTES, OBJECTS, QUESTIONER, TASKS, Guess, GuessGame, Person, make
from ilql.rollout import rollout, selfplay
from ilql.types import AGENT, PARTNER, InputError, Turn
from tests.scripted import Scripted

ANY = "any any"


def game(what: str = "filled red star", task: str = "colour shape", rounds: int = 2) -> GuessGame:
    found = GuessGame(rounds)
    found.reset(0)
    found.object, found.task = tuple(what.split()), tuple(task.split())  # type: ignore[assignment]
    return found


def test_who_hears_what_and_what_it_is_worth() -> None:
    play = game()
    assert play.mover == 0
    one, two = play.move("which colour")
    assert (one.text, one.reward, two.text, two.reward) == ("", 0.0, "filled red star\nwhich colour", 0.0)
    assert play.mover == 1
    one, two = play.move(" red ")
    assert (one.text, two.text) == ("red", "")
    one, two = play.move("red any which style")
    assert (one.reward, two.text, two.reward) == (0.5, "which style", 0.5)  # from 1 to 1/2
    one, two = play.move("filled")
    one, two = play.move("red square")
    assert (one.text, one.reward, two.reward) == ("", -0.5, -0.5)  # and back to 1
    assert one.terminated
    assert two.terminated
    with pytest.raises(RuntimeError, match="call reset"):
        play.move("red star")
    assert play.facts(0) == {
        "role": QUESTIONER,
        "object": "filled red star",
        "task": "colour shape",
        "guess": "red square",
        "distance": 1.0,
    }


@pytest.mark.parametrize(
    ("guess", "distance"),
    [
        ("red star", 0.0),
        ("red any", 0.5),
        ("any any", 1.0),
        ("blue star", 1.0),
        ("blue any", 1.5),
        ("blue circle", 2.0),
        ("star red", 1.0),  # a value of another attribute is none of this one
        ("red", 0.5),
        ("", 1.0),
        ("red star star", 0.0),
    ],
)
def test_the_distance_of_one_hot_vectors(guess: str, distance: float) -> None:
    play = game(rounds=1)
    play.move("which colour")
    play.move("red")
    reply, _ = play.move(guess)
    assert reply.reward == 1 - distance
    assert play.distance == distance
    vectors = []
    for said in (guess.split(), ["red", "star"]):
        padded = [*said, "any", "any"]
        names = zip(padded, ("colour", "shape"), strict=False)
        vectors.append([float(word == value) for word, name in names for value in ATTRIBUTES[name]])
    assert sum((a - b) ** 2 for a, b in zip(*vectors, strict=True)) / 2 == distance


def test_silence_is_heard_and_a_first_guess_is_a_question() -> None:
    play = game()
    _, heard = play.move(" ")
    assert heard.text == "filled red star\n..."
    told, _ = play.move("")
    assert told.text == "..."
    again, heard = play.move("red star")  # a guess without a question
    assert (again.reward, heard.text) == (1.0, "...")
    first, heard = game().move("red star which style")
    assert (first.reward, heard.text) == (0.0, "filled red star\nred star which style")


def test_objects_and_tasks_are_drawn_alike() -> None:
    play = GuessGame()
    drawn = []
    for seed in range(3000):
        first, second = play.reset(seed)
        assert second == ""
        assert first == f"Find {play.task[0]} and {play.task[1]}."
        drawn.append((play.object, play.task))
    assert {what for what, _ in drawn} == {*OBJECTS}
    assert len(OBJECTS) == 64
    for task in TASKS:
        assert mean(found == task for _, found in drawn) == pytest.approx(1 / 6, abs=0.03)


@pytest.mark.parametrize(("slip", "lie", "worth"), [(0.0, 0.0, 1.0), (0.0, 1.0, -1.0), (0.0, 0.25, 0.5)])
@pytest.mark.parametrize("seat", [QUESTIONER, ANSWERER])
def test_people_are_as_good_as_they_say(seat: str, slip: float, lie: float, worth: float) -> None:
    """By hand: without slips both values are asked for; each answer is right with chance 1 - lie, worth 1/2, or wrong,
    worth -1/2."""

    class People:
        def __init__(self) -> None:
            self.person = Person(seat, random.Random(1), slip, lie)

        def respond(self, dialogues: list[list[Turn]]) -> list[str]:
            said = [[t.text for t in turns if t.role == AGENT] for turns in dialogues]
            heard = [[t.text for t in turns if t.role == PARTNER] for turns in dialogues]
            return [self.person.say(h, s, len(s) == 2) for h, s in zip(heard, said, strict=True)]

    found = rollout(People(), make(seat=seat, slip=slip, lie=lie), range(600), progress=False)
    assert mean(e.total_reward for e in found) == pytest.approx(worth, abs=0.07)
    if seat == QUESTIONER and worth == 1:
        assert {e.meta["distance"] for e in found} == {0.0}


def test_a_person_asks_for_what_it_has_not_heard_of_and_lies_of_the_same_attribute() -> None:
    asks = Person(QUESTIONER, random.Random(0), slip=0.0)
    assert asks.say(["Find colour and shape."], [], False) == "which colour"
    assert asks.say(["Find colour and shape.", "red"], ["which colour"], False) == "red any which shape"
    assert asks.say(["Find colour and shape.", "solid"], ["which colour"], False) == "any any which colour"
    assert asks.say(["Find colour and shape.", "red", "star"], ["x", "y"], True) == "red star"
    told = Person(ANSWERER, random.Random(0), lie=1.0)
    answers = {told.say(["filled red star\nwhich colour"], [], False) for _ in range(60)}
    assert answers == {"green", "blue", "purple"}
    assert told.say(["filled red star\nwhich colour", "well"], ["red"], False) == "..."


def test_both_seats_of_two_policies_are_paid_the_same() -> None:
    def says(*words: str) -> Scripted:
        return Scripted(lambda turns: words[sum(turn.role == AGENT for turn in turns)])

    asks, answers = says("which colour", "red any which shape", "red star"), says("red", "star")
    pairs = selfplay((asks, answers), GuessGame, range(8), progress=False)
    for one, two in pairs:
        paid = [[turn.reward for turn in episode.turns if turn.role == AGENT] for episode in (one, two)]
        assert paid[0][0] == 0
        assert paid[0][1:] == paid[1]
        assert one.total_reward == 1 - one.meta["distance"]
        assert [turn.role for turn in two.turns] == [PARTNER, AGENT] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"slip": 1.5}, "slip is 1.5"),
        ({"lie": -1}, "lie is -1"),
        ({"seat": "x"}, "seat is 'x'"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**options)  # type: ignore[arg-type]


def test_a_seat_alone_begins_where_the_agent_is_to_speak() -> None:
    one, two = Guess(), Guess(ANSWERER, slip=0.0)
    assert one.reset(3).startswith("Find ")
    first = two.reset(3).split("\n")
    assert first[0].split() == list(two.game.object)
    assert first[1] == f"which {two.game.task[0]}"
