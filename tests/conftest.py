"""What every test stands on. Decision: a test sees no network, one thread and fixed seeds, whoever runs it and however,
so the variables are set here, before torch and the Hugging Face libraries are imported, and reach subprocesses too.
"""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    DO_NOT_TRACK="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
)

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# The same examples each time; no deadline, since a shared machine's pauses are not the code's.
settings.register_profile("ilql", derandomize=True, deadline=None, database=None)
settings.load_profile("ilql")


@pytest.fixture(autouse=True)
def seeds() -> None:
    """The same numbers for a test, whichever tests ran before it in the process."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - code under test may use the global generator
    torch.manual_seed(0)


def published(name: str) -> Path:
    """A file or folder of the published corpora under ILQL_CORPORA; skips where that is unset, fails where it is
    set and the file is missing."""
    root = os.environ.get("ILQL_CORPORA")
    if not root:
        pytest.skip("ILQL_CORPORA is unset: it names the folder that holds the published corpora")
    path = Path(root).resolve() / name
    if not path.exists():
        pytest.fail(f"ILQL_CORPORA is set to {root}, but {path} does not exist", pytrace=False)
    return path


@pytest.fixture(scope="session")
def corpora() -> Callable[[str], Path]:
    """`corpora("deal_or_no_deal/data.txt")` is that file's path; see `published`."""
    return published
