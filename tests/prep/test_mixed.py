"""Datasets of a corpus that has everything in it are what they were, whatever way they are built."""

import json
from pathlib import Path

import pytest

from datasets_prep import chunks, lines, work
from tests.prep import mixed
from tests.prep.workers import punctual

DIGESTS = json.loads(mixed.STORED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    mixed.write_logs(folder)
    mixed.tokenizers(folder)
    return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in mixed.LIMITS.items():
        monkeypatch.setattr(chunks, name, value)


def test_every_build_is_stored() -> None:
    assert set(DIGESTS) == set(mixed.BUILDS)
    assert all(found["rows"] > 20 for found in DIGESTS.values())


@pytest.mark.parametrize("name", mixed.BUILDS)
def test_a_dataset_is_what_it_was(name: str, logs: Path, tmp_path: Path) -> None:
    assert mixed.run(name, logs, tmp_path / "out") == DIGESTS[name]


@pytest.mark.parametrize("name", ["word", "byte, utterances", "chatml", "deal", "maze"])
def test_workers_change_nothing(name: str, logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = punctual(monkeypatch, after=1)
    for module, constant in ((lines, "PART_LINES"), (work, "DIALOGUES")):
        monkeypatch.setattr(module, constant, 16)
    assert mixed.run(name, logs, tmp_path / "out", "--workers", "2") == DIGESTS[name]
    assert done


def test_little_work_starts_no_worker(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "ProcessPoolExecutor", None)
    assert mixed.run("word", logs, tmp_path / "out", "--workers", "2") == DIGESTS["word"]
