"""Where a run stands, as checkpoints keep it."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from ilql.progress import Progress
from ilql.types import InputError


def test_a_record_is_read_back() -> None:
    progress = Progress(step=3, best={"step": 2.0})
    record = {"progress": asdict(progress), "metrics": 10, "environment": {}}
    assert Progress.read(record, "step-3") == progress


@pytest.mark.parametrize("lost", ["metrics", "pieces"])
def test_another_versions_checkpoint_is_refused_by_name(lost: str) -> None:
    record: dict[str, dict[str, object]] = {"progress": asdict(Progress()), "metrics": {}, "environment": {}}
    for part in (record, record["progress"]):
        part.pop(lost, None)
    with pytest.raises(InputError, match="step-3 is of another version of ilql"):
        Progress.read(record, "step-3")
