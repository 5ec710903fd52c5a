"""The runner tells a caught bug from one that survives, that no longer applies, or that breaks its test instead."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")
ADD = "def add(a, b):\n    return a + b\n"
TESTS = """\
import pytest
from ilql.sums import add

@pytest.fixture
def two():
    return add(1, 1) if add(1, 1) == 2 else 1 / 0

def test_add():
    assert add(2, 3) == 5

def test_weak():
    assert add(0, 0) == 0

def test_fixture(two):
    assert two == 2
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A tiny project of its own, with a name that an installed package has too."""
    root = tmp_path / "checkout"
    for name, text in {
        "ilql/__init__.py": "",
        "ilql/sums.py": ADD,
        "tests/test_sums.py": TESTS,
        "tests/mutants/README": "",
        ".gitignore": "ignored/\n",
        "ignored/big.bin": "data and runs are not copied",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q", "."], cwd=root, check=True)
    return root


def patch(root: Path, name: str, test: str, was: str = "    return a + b", now: str = "    return a - b") -> None:
    (root / f"tests/mutants/{name}.patch").write_text(
        f"# bug: {name}\n# test: tests/test_sums.py::{test}\n"
        "diff --git a/ilql/sums.py b/ilql/sums.py\n--- a/ilql/sums.py\n+++ b/ilql/sums.py\n"
        f"@@ -1,2 +1,2 @@\n def add(a, b):\n-{was}\n+{now}\n"
    )


def run(root: Path, *names: str, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, RUN, *names, "--root", root, "--warm"], env=os.environ | env, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_only_a_failing_test_counts_as_a_kill(checkout: Path) -> None:
    patch(checkout, "caught", "test_add")
    patch(checkout, "weak_test", "test_weak")
    patch(checkout, "stale", "test_add", was="    return b + a")
    patch(checkout, "error_in_fixture", "test_fixture")
    patch(checkout, "syntax_error", "test_add", now="    return a +")
    status, output = run(checkout)
    assert (status, "1 of 5 planted" in output) == (1, True), output
    said = {line.split()[0]: line for line in output.splitlines() if line and not line.startswith(" ")}
    assert said["caught"].endswith(" killed")
    assert "SURVIVED: tests/test_sums.py::test_weak: passed" in said["weak_test"]
    assert "does not apply" in said["stale"]
    assert "broke" in said["error_in_fixture"]
    assert "broke" in said["syntax_error"]
    assert (checkout / "ilql/sums.py").read_text() == ADD  # the checkout is never touched


def test_a_named_test_that_fails_or_is_missing_without_a_bug_is_refused(checkout: Path) -> None:
    patch(checkout, "no_such_test", "test_missing")
    status, output = run(checkout, "no_such_test")
    assert status == 1
    assert "must pass before a bug is planted" in output


def test_a_patch_without_its_header_and_an_unknown_name_are_usage_errors(checkout: Path) -> None:
    assert run(checkout, "unheard_of")[0] == 2
    (checkout / "tests/mutants/bare.patch").write_text("--- a/x\n+++ b/x\n")
    status, output = run(checkout, "bare")
    assert (status, "# bug:" in output) == (2, True)


def test_neither_a_hook_nor_a_repository_around_the_copy_disturbs(checkout: Path) -> None:
    patch(checkout, "minus", "test_add")
    with tempfile.TemporaryDirectory(prefix="m-") as around:  # pytest's own would be too long for a socket's name
        subprocess.run(["git", "init", "-q", around], check=True)
        Path(around, ".gitignore").write_text("*\n")
        status, output = run(checkout, GIT_DIR="/nowhere", TMPDIR=around)
    assert status == 0, output
