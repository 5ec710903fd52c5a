"""The registry of environments and their arguments."""

import pytest

from ilql import envs
from ilql.types import InputError


def test_every_environment_keeps_the_modules_contract() -> None:
    for name, module in envs.ENVS.items():
        assert module.__name__ == f"ilql.envs.{name}"
        assert module.SEATS in (1, 2)
        assert callable(module.make)
        assert callable(module.summary)


def test_an_unknown_name_suggests_the_near_one() -> None:
    with pytest.raises(InputError, match="did you mean 'maze'"):
        envs.find("mase")
    with pytest.raises(InputError, match="choose one of deal_or_no_deal, maze"):
        envs.find("zzz")


def test_given_arguments_win_over_recorded_ones_and_strange_recorded_ones_are_left_aside() -> None:
    recorded = {"observation": "partial", "mirror": True, "dialogues": 1240}
    assert envs.arguments("maze", recorded, {}) == {"observation": "partial", "mirror": True}
    assert envs.arguments("maze", recorded, {"mirror": "False"}) == {"observation": "partial", "mirror": False}
    assert envs.arguments("deal_or_no_deal", {}, {"max_turns": "7"}) == {"max_turns": 7}


@pytest.mark.parametrize(
    ("env", "given", "says"),
    [
        ("maze", {"observaton": "full"}, "did you mean 'observation'"),
        ("maze", {"mirror": "yes"}, "mirror=yes: it must be true or false"),
        ("deal_or_no_deal", {"max_turns": "many"}, "max_turns=many: it must be of type int"),
    ],
)
def test_bad_arguments(env: str, given: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        envs.arguments(env, {}, given)
