"""What a launch sets before anything is computed."""

import os

import pytest

from ilql import launch
from ilql.config import make_config

NAME = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


@pytest.mark.parametrize(("before", "after"), [(None, launch.KERNELS), ("7", "7")])
def test_few_compiled_kernels_are_kept_unless_somebody_says_how_many(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    monkeypatch.setenv(NAME, before or "")
    if before is None:
        monkeypatch.delenv(NAME)
    launch.start(make_config(algo="bc", data="data", output="run", steps=1, device="cpu"))
    assert os.environ[NAME] == after
