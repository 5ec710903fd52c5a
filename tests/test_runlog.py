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
    with pytest.raises(InputError, match=rf"metrics\.jsonl is shorter than its checkpoint recorded \({length} bytes\)"):
        RunLog(tmp_path, length=length, step=2)


def test_a_full_disk_names_the_log_and_the_bytes(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.metrics(row(1))
    match = r"metrics\.jsonl cannot be written .*: it needs \d+ bytes and the disk has [\d,]+ left; .* use --resume"
    with limited((tmp_path / METRICS).stat().st_size + 5), pytest.raises(InputError, match=match):
        log.metrics(row(2))
    log.close()
