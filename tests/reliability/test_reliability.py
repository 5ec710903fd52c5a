"""The promises of docs/reliability.md in short; `make soak` asks the same many more times."""

import signal
from pathlib import Path

import pytest

from ilql import checkpoint
from ilql.trainer import train
from tests.reliability.crashes import crash_points
from tests.reliability.disk import full_disks
from tests.reliability.elsewhere import elsewhere
from tests.reliability.flips import bit_flips
from tests.reliability.fuzz import fuzz
from tests.reliability.hostile import hostile
from tests.reliability.kills import kill_points
from tests.reliability.memory import long_line
from tests.reliability.mutations import mutations
from tests.reliability.numbers import PLACES, broken_number
from tests.reliability.runs import ALGORITHMS
from tests.reliability.stops import order_stops
from tests.tiny import config, dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def saved(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = train(config(data, tmp_path_factory.mktemp("saved") / "run", steps=1))
    found, _ = checkpoint.latest(run / "checkpoints")
    assert found is not None
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "signum"), [("ilql", signal.SIGTERM), ("ilql", signal.SIGKILL), ("ilql_utterance", signal.SIGKILL)]
)
def test_killed_at_random_a_run_ends_the_same(tmp_path: Path, algo: str, signum: signal.Signals) -> None:
    assert algo in ALGORITHMS
    kill_points(tmp_path, algo, signum, 2)


@pytest.mark.parametrize("replace", [False, True])
def test_a_crash_at_any_operation_leaves_a_whole_checkpoint(tmp_path: Path, replace: bool) -> None:
    assert crash_points(tmp_path, replace)["operations"] > 30


def test_every_flipped_bit_is_told(saved: Path) -> None:
    assert bit_flips(saved, 60)["files"] >= 5


@pytest.mark.parametrize(("workers", "stops"), [(0, 10), (2, 2)])
def test_the_order_goes_on_where_it_stopped(tmp_path: Path, workers: int, stops: int) -> None:
    order_stops(tmp_path, stops, workers)


@pytest.mark.parametrize("place", PLACES)
def test_a_number_that_is_not_finite_moves_no_weight(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    broken_number(data, tmp_path / "run", place, monkeypatch)


def test_a_disk_that_fills_up_costs_no_checkpoint(saved: Path, tmp_path: Path) -> None:
    full_disks(saved, tmp_path / "checkpoints", 4)


def test_every_change_of_a_dataset_is_told(tmp_path: Path) -> None:
    assert mutations(dataset(tmp_path / "data"), 42)["files"] >= 3


def test_odd_records_are_rows_or_rejected(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 240)["rejected"] > 50


def test_memory_does_not_grow_with_a_line(tmp_path: Path) -> None:
    assert long_line(tmp_path, 2**28)["more_memory"] < 2**28 / 2


def test_hostile_files_are_refused(saved: Path, tmp_path: Path) -> None:
    assert sum(hostile(tmp_path, saved.parents[1]).values()) >= 20


@pytest.mark.slow
def test_surroundings_change_no_byte(tmp_path: Path) -> None:
    assert elsewhere(tmp_path, 4, 2)["files"] > 5
