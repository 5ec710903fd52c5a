"""How a reward model is judged: accuracy, log-loss and calibration worked by hand, and the report of a run."""

import math
from pathlib import Path

import numpy as np
import pytest

from ilql import ope, verdicts
from ilql.decode import load
from ilql.rewarded import utterance_rewards
from ilql.rows import Rows
from ilql.trainer import train
from ilql.types import InputError
from ilql.verdicts import accuracy, compared, ece, log_loss, read_pairs, reliability
from tests.algos.test_reward_model import pairs
from tests.tiny import config, dataset


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_what_is_said_of_gains_worked_by_hand() -> None:
    gain = np.array([logit(0.8), -logit(0.8), logit(0.8), logit(0.97), 0.0])
    assert accuracy(gain) == pytest.approx(100 * 3.5 / 5)
    assert log_loss(gain) == pytest.approx(-(2 * math.log(0.8) + math.log(0.2) + math.log(0.97) + math.log(0.5)) / 5)
    found = reliability(gain, 10)  # bins of .05: a tie, three at .8, one at .97
    assert [n for *_, n in found] == [1, 3, 1]
    assert np.array(found) == pytest.approx(np.array([[0.5, 0.5, 1], [0.8, 2 / 3, 3], [0.97, 1, 1]]))
    assert ece(gain) == pytest.approx(100 * (3 * (0.8 - 2 / 3) + 0.03) / 5)
    assert reliability(np.array([40.0]))[0][0] == 1  # sure beyond the last edge


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verdicts")
    train(config(pairs(folder, lines=40), folder / "run", "reward_model", steps=2))
    train(config(dataset(folder / "plain", step="utterance"), folder / "bc", "bc", steps=1))
    return folder


def test_a_gain_is_the_reward_of_the_preferred_dialogue_less_the_others(place: Path) -> None:
    """However the rows lie, and whichever comes first."""
    rows = Rows(place / "pairs", "validation")
    found = read_pairs(place / "run", [place / "pairs"], "validation")
    assert len(found) == len(rows) / 2
    model, encoder = load(place / "run")
    for pair in found:
        two = [rows[i] for i in range(len(rows)) if rows[i]["pair"] == pair.name]
        best, worst = sorted(two, key=lambda row: -row["reward"].sum())
        each = [next(utterance_rewards(model, [row], encoder.bos_id))[:, -1] for row in (best, worst)]
        np.testing.assert_allclose(pair.gains, each[0] - each[1], rtol=1e-4, atol=1e-6)
        assert pair.gain == pytest.approx(pair.gains.mean())
    turned = [rows[i] for i in reversed(range(len(rows)))]
    again = {pair.name: pair.gain for pair in compared(model, encoder, turned)}  # type: ignore[arg-type]
    assert again == pytest.approx({pair.name: pair.gain for pair in found}, rel=1e-4, abs=1e-6)


def test_the_report_of_a_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ope.main([str(place / "run"), "--data", str(place / "pairs")]) == 0
    said = capsys.readouterr().out
    for words in ("accuracy, %", "log-loss", "ECE, %", "critics agree, %", "says, %", "is right, %"):
        assert words in said
    count = len(Rows(place / "pairs", "validation")) // 2
    assert f"{count} in {count} conversations" in said
    two = [place / "pairs"] * 2
    assert verdicts.report(place / "run", two, "train").count("accuracy, %") == 3


def test_bad_input(place: Path) -> None:
    with pytest.raises(InputError, match=r"plain.* are of none; make a dataset of pairs"):
        verdicts.report(place / "run", [place / "plain"], "train")
    with pytest.raises(InputError, match="is a run of bc, not of reward_model"):
        read_pairs(place / "bc", [place / "pairs"], "train")
    other = pairs(place / "bc", tokenizer="word", validation=None)
    with pytest.raises(InputError, match="another tokenizer"):
        read_pairs(place / "run", [other], "train")
    with pytest.raises(InputError, match="no dialogue in its validation split"):
        read_pairs(place / "run", [other], "validation")
