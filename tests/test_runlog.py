"""The log of a run that goes on has every row once, whole, and says which file it could not write."""

import json
from pathlib import Path

import pytest

from ilql.runlog import METRICS, TIMING, RunLog
from ilql.types import InputError
from tests.test_atomic import limited


def row(step: int) -> dict[str, float | int]:
    return {"step": step, "total": 0.1 * step}


def write(folder: Path, steps: list[int], length: int = 0, after: int = 0) -> int:
    log = RunLog(folder, length=length, step=after)
    for step in steps:
        log.timing(step, 10.0, 5.0, {})
        log.metrics(row(step))
    length = log.length()
    log.close()
    return length


def test_rows_after_the_checkpoint_are_written_once(tmp_path: Path) -> None:
    length = write(tmp_path, [1, 2])
    assert length == (tmp_path / METRICS).stat().st_size
    write(tmp_path, [3, 4], length, 2)
    for name in (METRICS, TIMING):  # the process died within a line
        with (tmp_path / name).open("a") as file:
            file.write('{"step": 5, "tot')
    write(tmp_path, [3, 4, 5], length, 2)
    for name in (METRICS, TIMING):
        assert [json.loads(line)["step"] for line in (tmp_path / name).read_text().splitlines()] == [1, 2, 3, 4, 5]


def test_a_half_line_of_seconds_is_cut_off_even_behind_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, [1])
    with (tmp_path / TIMING).open("a") as file:
        file.write('{"step": 1, "se')
    write(tmp_path, [2], (tmp_path / METRICS).stat().st_size, 9)
    assert [json.loads(line)["step"] for line in (tmp_path / TIMING).read_text().splitlines()] == [1, 2]


def test_a_log_that_was_cut_by_others_is_refused(tmp_path: Path) -> None:
    length = write(tmp_path, [1, 2])
    (tmp_path / METRICS).write_bytes(b"")
    match = rf"metrics\.jsonl lacks the {length} bytes of whole rows of its checkpoint; put it back"
    with pytest.raises(InputError, match=match):
        RunLog(tmp_path, length=length, step=2)


def test_a_log_that_was_edited_is_not_cut_within_a_row(tmp_path: Path) -> None:
    length = write(tmp_path, [1, 2])
    path = tmp_path / METRICS
    path.write_text(" " + path.read_text() + "more")
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"lacks the {length} bytes of whole rows"):
        RunLog(tmp_path, length=length, step=2)
    assert path.read_bytes() == before


def test_tensorboard_shows_no_row_twice(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    length = 0
    for steps in ([1, 2, 3], [2, 3, 4]):  # the second goes on from the checkpoint of step 1
        log = RunLog(tmp_path, length=length, step=steps[0] - 1, tensorboard=True)
        for step in steps:
            log.metrics(row(step))
            length = length or log.length()
        log.close()
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in shown.Scalars("step")] == [1, 2, 3, 4]


def test_a_full_disk_names_the_log_and_the_bytes(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.metrics(row(1))
    match = r"metrics\.jsonl cannot be written .*: it needs \d+ bytes and the disk has [\d,]+ left; .* use --resume"
    with limited((tmp_path / METRICS).stat().st_size + 5), pytest.raises(InputError, match=match):
        log.metrics(row(2))
    log.close()


def test_a_full_disk_under_tensorboard_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    log = RunLog(tmp_path, tensorboard=True)
    monkeypatch.setattr(log.board, "add_scalar", full)
    monkeypatch.setattr(log.board, "close", full)
    match = r"tensorboard cannot be written \(No space left on device\): it needs \d+ bytes .* use --resume"
    with pytest.raises(InputError, match=match):
        log.metrics(row(1))
    log.close()
