"""Several datasets with weights in one run: the shares come out, and stopping changes nothing."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets_prep.encode import Encoder
from ilql.config import TrainConfig
from ilql.feed import read
from ilql.order import times
from ilql.trainer import train
from tests.test_trainer import same, stop_at
from tests.tiny import config, dataset, episodes, replace_rows

SIZES, WEIGHTS = (24, 9, 15), (1.0, 3.0, 0.4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Datasets whose dialogues say which one they are of."""
    found = []
    for k, size in enumerate(SIZES):
        folder = dataset(tmp_path_factory.mktemp("mixture") / f"part-{k}", size, seed=k)
        encoder = Encoder.from_folder(folder / "tokenizer")
        rows = [{**encoder.encode(e, "token"), "id": f"{k}:{e.id}"} for e in episodes(size, k)]
        replace_rows(folder, rows)
        found.append(folder)
    return found


def mixed(folders: list[Path], output: Path, **options: Any) -> TrainConfig:
    data: Any = {"path": [str(folder) for folder in folders], "weights": list(WEIGHTS)}
    return config(data, output, **options)


def taken(cfg: TrainConfig, epochs: int, rank: int = 0, world: int = 1) -> list[Counter[str]]:
    """How often each dialogue is in the batches of each epoch."""
    feed = read(cfg, rank, world)
    return [
        Counter(i for rows in feed.order.batches(epoch) for i in feed.collate(feed.rows.__getitems__(rows)).ids)
        for epoch in range(epochs)
    ]


@pytest.mark.parametrize("batch", [{"dialogues": 4}, {"dialogues": None, "tokens": 100}])
def test_the_shares_come_out(folders: list[Path], tmp_path: Path, batch: dict[str, Any]) -> None:
    epochs = taken(mixed(folders, tmp_path / "run", batch=batch), 200)
    for epoch in epochs:
        for name, count in epoch.items():
            assert count == {"0": 1, "1": 3, "2": 1}[name[0]]
        assert len([name for name in epoch if name[0] != "2"]) == 24 + 9  # a whole number of passes leaves nobody out
    both = sum(epochs, Counter())
    expected = np.array(SIZES) * WEIGHTS * 200
    found = np.array([sum(n for name, n in both.items() if name[0] == k) for k in "012"])
    assert (found[:2] == expected[:2]).all()
    spread = np.sqrt(SIZES[2] * 200 * 0.4 * 0.6)
    assert abs(found[2] - expected[2]) < 4 * spread
    rare = [both[f"2:d{i}"] for i in range(SIZES[2])]
    assert max(abs(n - 80) for n in rare) < 4 * np.sqrt(200 * 0.4 * 0.6)  # another part of it each time


def test_the_order_is_the_seeds(folders: list[Path], tmp_path: Path) -> None:
    def order(**options: Any) -> list[list[int]]:
        return [list(rows) for rows in read(mixed(folders, tmp_path / "run", **options)).order.batches(3)]

    assert order(seed=1) == order(seed=1)
    assert order(seed=1) != order(seed=2)


def test_processes_share_a_mixture(folders: list[Path], tmp_path: Path) -> None:
    cfg = mixed(folders, tmp_path / "run", batch={"dialogues": 1})
    (whole,) = taken(cfg, 1)
    parts = [taken(cfg, 1, rank, 2)[0] for rank in (0, 1)]
    left = whole - (parts[0] + parts[1])
    assert left.total() == whole.total() % 2
    assert not (parts[0] + parts[1]) - whole


def test_a_run_on_a_mixture_resumes_and_says_what_it_takes(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"steps": 40, "log": {"every": 5, "checkpoint_every": 6, "validate_every": 20}}
    whole = train(mixed(folders, tmp_path / "whole", **options))
    assert (
        f"an epoch: {folders[0]} 24 dialogues x 1 (42.1 %), {folders[1]} 9 dialogues x 3 (47.4 %), "
        f"{folders[2]} 15 dialogues x 0.4 (10.5 %)"
    ) in capsys.readouterr().err
    cfg = mixed(folders, tmp_path / "part", **options)
    with monkeypatch.context() as patch:
        stop_at(patch, 33)  # in the third epoch
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    train(cfg, resume=True)
    same(whole, tmp_path / "part")
    written = json.loads((whole / "data.json").read_text())
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in folders]
    assert [written, *written.pop("others")] == manifests
    card = (whole / "model" / "README.md").read_text()
    assert card.count("Corpus `tiny` at token steps") == 3
    assert "# ilql on tiny\n" in card


def test_times_are_right_on_average_and_never_a_whole_one_off() -> None:
    weight = np.array([0.25, 1.0, 2.5] * 4000)
    found = times(weight, np.random.default_rng(0)).reshape(-1, 3)
    assert set(found[:, 0]) == {0, 1}
    assert set(found[:, 1]) == {1}
    assert set(found[:, 2]) == {2, 3}
    assert found.mean(0) == pytest.approx([0.25, 1, 2.5], abs=0.03)
