"""Plant known bugs one by one and demand that the test named for each fails. Decision: a test suite is itself tested.

`tests/mutants/<name>.patch` is a unified diff against the tree; above the diff it says

    # bug: one sentence on what is planted
    # test: tests/test_x.py::test_y        (one line a test; each of them must fail)

The named tests must pass on the tree as it is. Each bug is planted in a copy; the checkout is never touched. Exit
status 1 says that a bug survived, that its patch no longer applies, or that its test broke rather than failed.

Tests run in forks of one process that has imported the libraries, which takes longer than most of the tests. What they
import of the copy is compiled once, and checked by its contents: a planted bug may be as long and as old as the code.
"""

from __future__ import annotations

import argparse
import compileall
import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import NoReturn
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 300.0  # seconds a test; one that hangs has not failed
WARM = (
    "torch",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "accelerate",
    "datasets",
    "jsonargparse",
    "hypothesis",
)
BEFORE_IMPORT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # and no network: `main`
ELSEWHERE = 99  # exit status of tests that would import another `ilql`
FORKS = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Mutant:
    path: Path
    bug: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    name: str
    killed: bool
    seconds: float
    verdict: str


def read(path: Path) -> Mutant:
    """Parse the header of a patch; a header without its bug or test is a ValueError."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = lines[: next((i for i, line in enumerate(lines) if line.startswith(("diff ", "--- "))), len(lines))]
    found = {
        key: [line.removeprefix(f"# {key}:").strip() for line in header if line.startswith(f"# {key}:")]
        for key in ("bug", "test")
    }
    if len(found["bug"]) != 1 or not found["test"]:
        raise ValueError(
            f"{path}: above the diff must stand one line `# bug: ...` and a line `# test: file::name` or more"
        )
    return Mutant(path, found["bug"][0], tuple(found["test"]))


def clean_environment() -> dict[str, str]:
    """Without the settings of a caller's git (a hook has GIT_DIR) and pytest."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "PYTEST_"))}


def run(command: Sequence[str], tree: Path) -> tuple[int, str]:
    """Exit status and output of a command in a tree; `git apply` must not take a repository around it for its own."""
    own = {"GIT_CEILING_DIRECTORIES": str(tree.parent)}
    ran = subprocess.run(command, cwd=tree, env=clean_environment() | own, capture_output=True, text=True)
    return ran.returncode, ran.stdout + ran.stderr


def pytest_in(tree: str, arguments: list[str], log: str) -> NoReturn:
    """Run pytest in a tree, which comes before any installed `ilql`, in subprocesses too; never returns."""
    os.setsid()  # what it starts can be stopped with it
    gc.freeze()  # a collection over all that the libraries hold takes longer than most of the tests, and copies it
    os.chdir(tree)
    os.environ["PYTHONPATH"] = tree
    sys.path.insert(0, tree)
    sys.dont_write_bytecode = True
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(output, stream)
    found = find_spec("ilql")
    status = ELSEWHERE
    if found is not None and Path(str(found.origin)).resolve().is_relative_to(tree):
        import pytest

        status = int(pytest.main(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def copy_tree(root: Path, to: Path) -> None:
    """Copy what git tracks, or would: data, runs and environments stay behind."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        command, cwd=root, env=clean_environment(), capture_output=True, text=True, check=True
    ).stdout
    for name in sorted(filter(None, listed.split("\0"))):
        if (root / name).is_file():  # a tracked file that was deleted is listed too
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)
    compileall.compile_dir(to, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[str, str]:
    """ "passed", "failed" or what else befell the tests, and pytest's output."""
    with tempfile.TemporaryDirectory(prefix="-said-", dir=tree.parent) as name:
        return said(tree, tests, Path(name))


def said(tree: Path, tests: Sequence[str], work: Path) -> tuple[str, str]:
    report, log = work / "report.xml", work / "log"
    arguments = ["-qx", "--tb=short", "--assert=plain", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
    process = FORKS.Process(target=pytest_in, args=(str(tree), arguments, str(log)))
    process.start()
    process.join(TIMEOUT)
    if process.exitcode is None:
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        return f"no end after {TIMEOUT:.0f} s", ""
    output = log.read_text(errors="replace")
    if process.exitcode == ELSEWHERE:
        return "broke (it would import an ilql outside the copy)", output
    if process.exitcode not in (0, 1):
        return f"broke (pytest status {process.exitcode})", output
    suite = ElementTree.parse(report).getroot().find("testsuite")
    if suite is None or int(suite.get("errors", 0)):
        return "broke (an error outside the test)", output
    if int(suite.get("failures", 0)):
        return "failed", output
    return ("passed" if int(suite.get("skipped", 0)) < int(suite.get("tests", 0)) else "skipped"), output


def plant(tree: Path, patch: Path) -> str:
    """Apply a patch to a tree; the reason where it does not apply, else ""."""
    apply = ["git", "apply", "--whitespace=nowarn", str(patch.resolve())]
    named = [line.split("\t")[2] for line in run([*apply, "--numstat"], tree)[1].splitlines() if "\t" in line]
    before = {p: p.read_bytes() for name in named if (p := tree / name).suffix == ".py" and p.is_file()}
    status, output = run(apply, tree)
    if status:
        return f"does not apply: {output.strip().splitlines()[-1]}"
    return "" if any(not p.exists() or p.read_bytes() != was for p, was in before.items()) else "changes no Python file"


def try_one(mutant: Mutant, pristine: Path, work: Path) -> Outcome:
    """Plant one bug in a fresh copy and run its tests there, each by itself."""
    began = time.monotonic()
    tree = work / mutant.path.stem
    subprocess.run(["cp", "-Rp", pristine, tree], check=True)
    verdict = plant(tree, mutant.path)
    if not verdict:
        results = {test: run_tests(tree, [test]) for test in mutant.tests}
        lived = [f"{test}: {result}" for test, (result, _) in results.items() if result != "failed"]
        verdict = "killed" if not lived else "SURVIVED: " + "; ".join(lived)
        for result, output in results.values():
            verdict += f"\n{output}" if result.startswith("broke") else ""
    shutil.rmtree(tree)
    return Outcome(mutant.path.stem, verdict == "killed", time.monotonic() - began, verdict)


def check_pristine(pristine: Path, mutants: Sequence[Mutant], pool: ThreadPoolExecutor, jobs: int) -> str:
    """Why the copy is no ground to plant bugs on, or "". Tests of a file stay together, for their fixtures."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    files = sorted({test.partition("::")[0] for test in tests})
    shares = [[t for t in tests if files.index(t.partition("::")[0]) % (4 * jobs) == i] for i in range(4 * jobs)]
    for result, output in pool.map(lambda share: run_tests(pristine, share), filter(None, shares)):
        if result != "passed":
            return f"the named tests must pass before a bug is planted, but: {result}\n{output}"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="patches to try, without .patch (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout")
    parser.add_argument("--warm", nargs="*", default=WARM, help="modules to import once for all tests")
    args = parser.parse_args(argv)
    for name in set(os.environ) - clean_environment().keys():  # the server of forks takes the environment over
        del os.environ[name]
    os.environ.update(BEFORE_IMPORT, HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    FORKS.set_forkserver_preload(list(args.warm))
    patches = sorted((args.root / "tests/mutants").glob("*.patch"))
    unknown = set(args.names) - {p.stem for p in patches}
    if unknown or not patches:
        print(f"error: no such patch: {', '.join(sorted(unknown)) or 'tests/mutants/*.patch'}", file=sys.stderr)
        return 2
    try:
        mutants = [read(p) for p in patches if not args.names or p.stem in args.names]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        work = Path(name).resolve()
        pristine = work / "-pristine"
        copy_tree(args.root, pristine)
        with ThreadPoolExecutor(args.jobs) as pool:
            if fault := check_pristine(pristine, mutants, pool, args.jobs):
                print(f"error: {fault}", file=sys.stderr)
                return 1
            outcomes = []
            for mutant, outcome in zip(mutants, pool.map(lambda m: try_one(m, pristine, work), mutants), strict=True):
                outcomes.append(outcome)
                print(f"{outcome.name:32} {outcome.seconds:5.0f} s  {outcome.verdict}\n    {mutant.bug}", flush=True)
    killed = sum(outcome.killed for outcome in outcomes)
    print(f"{killed} of {len(outcomes)} planted bugs were caught")
    return 0 if killed == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
