"""A module imports only from those before it: the lower rooms can be read, tested and used without the upper."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The rooms that turn text into tokens, at building and at decoding alike.
ENCODE = tuple(
    f"datasets_prep.{name}"
    for name in (
        "rejects",
        "limits",
        "talks",
        "tokenizer",
        "check",
        "pieces",
        "layout",
        "template",
        "columns",
        "encode",
        "overlong",
    )
)
# Bottom first. A name stands for the module or package and all inside it, unless a longer name is listed too.
ORDER = (
    "ilql.types",
    "datasets_prep.stranger",
    "ilql.quiet",
    "ilql.command",
    "ilql.proposals",
    "ilql.atomic",
    "ilql.verified",
    "ilql.schema",
    "ilql.sealed",
    "ilql.rows",
    "ilql.pairs",
    "ilql.columns",
    "ilql.order",
    "ilql.prefix",
    "ilql.pieces",
    "ilql.offers",
    "ilql.beginning",
    "ilql.data",
    "ilql.control",
    "ilql.kernels",
    "ilql.heads",
    "ilql.divergence",
    "ilql.floored",
    "ilql.likelihood",
    "ilql.recurrent",
    "ilql.packed",
    "ilql.passes",
    "ilql.scores",
    "ilql.frozen",
    "ilql.prepack",
    "ilql.model_config",
    "ilql.model",
    "ilql.copies",
    "ilql.spelling",
    "ilql.actor",
    "ilql.lean",
    "ilql.kv",
    "ilql.generation",
    "ilql.propose",
    "ilql.closed",
    "ilql.rerank",
    "ilql.build",
    "ilql.compiled",
    "ilql.backups",
    "ilql.learner",
    "ilql.agreement",
    "ilql.diagnostics",
    "ilql.losses",
    "ilql.algos",
    "ilql.optim",
    "ilql.runlog",
    "ilql.checkpoint",
    "ilql.plain",
    "ilql.config",
    "ilql.runfolder",
    "ilql.warmstart",
    "ilql.cached",
    "ilql.states",
    "ilql.replay",
    "ilql.border",
    *ENCODE,
    "ilql.launch",
    "ilql.feed",
    "ilql.initial",
    "ilql.progress",
    "ilql.faults",
    "ilql.signals",
    "ilql.stepper",
    "ilql.stream",
    "ilql.trainer",
    "ilql.seeds",
    "ilql.decode",
    "ilql.export",
    "ilql.rewrite",
    "ilql.proposed",
    "ilql.rewarded",
    "ilql.annotate",
    "ilql.envs",
    "datasets_prep",
    "ilql.rollout",
    "ilql.report",
    "ilql.ranking",
    "ilql.verdicts",
    "ilql.ope",
    "ilql.scoreboard",
    "ilql.evaluate",
    "ilql.cli",
)
# Narrower than the order: what these may import of ours.
ONLY = dict.fromkeys(ENCODE, ("ilql.types", "ilql.schema", "datasets_prep.stranger", *ENCODE)) | {
    "ilql.envs": ("ilql.types",),
    "datasets_prep": (
        *(f"ilql.{name}" for name in ("types", "command", "atomic", "verified", "schema", "envs")),
        "datasets_prep",
        *ENCODE,
    ),
}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def entry(module: str) -> str | None:
    """The longest name of ORDER that `module` is, or lies in."""
    return max((o for o in ORDER if f"{module}.".startswith(f"{o}.")), key=len, default=None)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(tree: ast.Module) -> list[str]:
    """Every module that the file names in an import, at the top, in functions and under TYPE_CHECKING."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names.append("." * node.level + (node.module or ""))
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name for name in below if is_module(name)]
            names += found + [node.module] * (len(found) < len(below))
    return names


def layer_faults(module: str, source: str) -> list[str]:
    """What `module` may not import, in words."""
    package = module.removesuffix(".__init__")
    own, faults = entry(package), []
    for name in imported(ast.parse(source)):
        if name.startswith("."):
            faults.append(f"{module} imports {name}: write the full name")
        if name.split(".")[0] not in ("ilql", "datasets_prep") or name == "ilql":
            continue
        other = entry(name)
        inside = package != module and f"{name}.".startswith(
            f"{package}."
        )  # a package's __init__ may gather its modules
        if other is None or own is None:
            faults.append(f"{module} imports {name}: {name if other is None else module} has no place in ORDER")
        elif own in ONLY and not inside and other not in ONLY[own]:
            faults.append(f"{module} imports {name}, but may import only {', '.join(ONLY[own])}")
        elif own not in ONLY and ORDER.index(other) > ORDER.index(own):
            faults.append(f"{module} imports {name}, which comes after it")
    return faults


def safety_faults(module: str, source: str) -> list[str]:
    """Ways to run code that came with a dataset or a checkpoint."""
    tree = ast.parse(source)
    faults = [f"{module} imports {name}" for name in imported(tree) if name.split(".")[0] in PICKLES]
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                faults.append(f"{module}, line {node.value.lineno}: trust_remote_code")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.save"):
            faults.append(f"{module}, line {node.lineno}: {ast.unparse(node.func)} pickles; use safetensors and JSON")
    return faults


def modules() -> list[tuple[str, str]]:
    paths = [p for top in ("ilql", "datasets_prep") for p in sorted((ROOT / top).rglob("*.py"))]
    return [(".".join(p.relative_to(ROOT).with_suffix("").parts), p.read_text(encoding="utf-8")) for p in paths]


def test_every_module_imports_only_from_those_before_it() -> None:
    assert len(modules()) > 5
    assert [fault for name, source in modules() for fault in layer_faults(name, source)] == []


def test_nothing_unpickles_or_trusts_remote_code() -> None:
    assert [fault for name, source in modules() for fault in safety_faults(name, source)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ilql.losses", "import ilql.algos"),
        ("ilql.losses", "from ilql import algos"),
        ("ilql.losses", "def f():\n    from ilql.algos.ilql import loss"),
        ("ilql.heads", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ilql.trainer import Trainer"),
        ("ilql.data", "from .types import Turn"),
        ("ilql.algos.mc", "from datasets_prep.encode import Encoder"),
        ("ilql.trainer", "import datasets_prep.chat"),
        ("ilql.envs.maze", "from ilql.schema import SCHEMA"),
        ("ilql.envs.maze", "from ilql.envs.chain import Chain"),
        ("datasets_prep.maze", "from ilql.data import Rows"),
        ("datasets_prep.encode", "from ilql.envs.maze import Maze"),
        ("datasets_prep.encode", "from datasets_prep.chat import episodes"),
        ("ilql.unheard_of", "from ilql.types import Turn"),
        ("ilql.__init__", "import ilql.unheard_of"),
    ],
)
def test_the_check_catches_a_planted_import(module: str, source: str) -> None:
    assert len(layer_faults(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ilql.algos.filtered_bc", "from ilql.algos.bc import loss"),
        ("ilql.algos.__init__", "from ilql.algos import bc, ilql"),
        ("ilql.envs.__init__", "from ilql.envs import maze"),
        ("ilql.decode", "from datasets_prep.encode import Encoder\nfrom ilql.types import Turn"),
        ("datasets_prep.maze", "from ilql import __version__\nfrom ilql.envs.maze import Maze"),
        ("ilql.cli", "from datasets_prep.__main__ import main"),
        ("ilql.types", "import numpy.typing"),
    ],
)
def test_the_check_lets_downward_imports_pass(module: str, source: str) -> None:
    assert layer_faults(module, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=flag)",
        "torch.load(path)",
    ],
)
def test_the_check_catches_planted_unsafe_code(source: str) -> None:
    assert len(safety_faults("ilql.x", source)) == 1
