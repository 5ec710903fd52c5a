"""The one config system. Decision: nested typed dataclasses, each beside the code that it steers; here they are joined,
read from a YAML file and the command line (which wins), checked by jsonargparse, and written back.

A config names one algorithm, and its options stand under its own name: `algo: ilql`, `ilql.tau: 0.8`.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jsonargparse
import yaml

from ilql.algos import ALGOS, reads_prior
from ilql.build import ModelConfig
from ilql.data import DataConfig
from ilql.optim import OptimConfig
from ilql.order import BatchConfig
from ilql.plain import Loader
from ilql.runlog import LogConfig
from ilql.types import InputError

LARGEST = 2**24  # bytes of a config


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    algo: a name of `ilql.algos.ALGOS`. output: the run folder, which must not exist. steps: optimizer steps.
    hyper: the algorithm's own options; in YAML and on the command line they stand under the algorithm's name.
    init_from: a run whose weights to start from, as far as shapes fit. bf16: autocast. compile: the trunk's blocks.
    device: auto takes an accelerator where there is one. threads: of torch on the CPU, null for its own choice.
    skip_nonfinite: windows that may be left out for a number that is not finite before that stops the run.
    auto_micro_batch: divide micro-batches that do not fit into memory; the step and its loss stay the same.
    """

    algo: str
    data: DataConfig
    output: str
    steps: int
    hyper: Any = None
    seed: int = 0
    init_from: str | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    log: LogConfig = field(default_factory=LogConfig)
    bf16: bool = False
    compile: bool = False
    device: Literal["auto", "cpu"] = "auto"
    threads: int | None = None
    skip_nonfinite: int = 0
    auto_micro_batch: bool = False

    def __post_init__(self) -> None:
        if self.algo not in ALGOS:
            raise InputError(
                f"algo: unknown algorithm {self.algo!r}{_near(self.algo, ALGOS)}; known: {', '.join(ALGOS)}"
            )
        own = ALGOS[self.algo].Config
        if self.hyper is None:
            object.__setattr__(self, "hyper", own())
        if not isinstance(self.hyper, own):
            raise InputError(f"hyper is a {type(self.hyper).__name__} of another algorithm than {self.algo!r}")
        for name, value, least in (
            ("steps", self.steps, 1),
            ("seed", self.seed, 0),
            ("skip_nonfinite", self.skip_nonfinite, 0),
            ("threads", 1 if self.threads is None else self.threads, 1),
            ("batch.accumulate", self.batch.accumulate, 1),
            ("batch.passes", self.batch.passes, 1),
            ("batch.tokens", self.batch.tokens, 1),
            ("batch.dialogues", 1 if self.batch.dialogues is None else self.batch.dialogues, 1),
            ("batch.decisions", self.batch.decisions, 1),
            ("batch.workers", self.batch.workers, 0),
            ("data.history", 1 if self.data.history is None else self.data.history, 0),
            ("data.path", len(self.data.path), 1),
        ):
            if value < least:
                raise InputError(f"{name} is {value}, but must be at least {least}")
        if self.seed >= 2**31:  # generators add a process's number to it, and some take 32 bits
            raise InputError(f"seed is {self.seed}, but must be below 2147483648")
        if "\0" in self.output:
            raise InputError(f"output is {self.output!r}, which no folder can be called; give another")
        weights = self.data.weights
        if weights is not None and (len(weights) != len(self.data.path) or not all(0 < w < math.inf for w in weights)):
            raise InputError("data.weights needs one number above 0 for each folder of data.path")
        if self.data.cache is not None:
            self._check_cache(self.data.cache)
        if not getattr(self.hyper, "bc_weight", 1.0):
            self._check_actor()
        if reads_prior(ALGOS[self.algo], self.hyper) and self.init_from is None and self.model.pretrained is None:
            raise InputError(
                f"{self.algo} stays near a prior, which is the actor that training begins with: set init_from to a run"
            )
        if self.bf16 and self.model.dtype == "float64":
            raise InputError("bf16 and model.dtype float64 exclude each other; drop one")

    def _check_actor(self) -> None:
        """An actor that nothing trains has to come from somewhere, and to stay as it is."""
        if self.init_from is None and self.model.pretrained is None:
            raise InputError(f"{self.algo}.bc_weight is 0, but nothing gives the actor: set init_from to a run")
        apart = self.model.critic_trunk == "own" or self.model.detach_critics
        if self.model.freeze != "trunk" and not apart:
            raise InputError(
                f"{self.algo}.bc_weight is 0, but critics would move the actor's trunk: set model.freeze to trunk"
            )

    def _check_cache(self, cache: list[str]) -> None:
        if len(cache) != len(self.data.path):
            raise InputError(f"data.cache needs one folder for each of data.path, {len(self.data.path)} of them")
        if not self.model.freeze:
            raise InputError(
                "data.cache holds what a frozen trunk computes; set model.freeze to trunk or a number of blocks"
            )
        if self.model.freeze == "trunk" and getattr(self.hyper, "closing", 1.0) != 1:
            raise InputError(f"{self.algo}.closing needs dialogues, and data.cache holds decisions; leave one out")
        if self.model.freeze == "trunk" and hasattr(ALGOS[self.algo], "whole") and ALGOS[self.algo].whole(self.hyper):
            raise InputError(f"{self.algo} reads whole dialogues here, and data.cache holds decisions; leave it out")
        if self.batch.dialogues is not None and self.model.freeze == "trunk":
            raise InputError("batch.dialogues says nothing to data.cache, which knows decisions; set batch.decisions")


def make_config(*, algo: str, data: Any, output: str | Path, steps: int, **options: Any) -> TrainConfig:
    """A config from Python, checked as a YAML file is.

    data: a folder, several, or a mapping of `data.*`. options: the other keys; sections are mappings:
    `make_config(algo="ilql", data="logs", output="runs/a", steps=100, ilql={"tau": .8}, optim={"lr": 1e-3})`.
    """
    data = data if isinstance(data, Mapping) else {"path": data}
    everything = {"algo": algo, "data": data, "output": str(output), "steps": steps, **options}
    return _resolve({key: (value, "make_config") for key, value in _flat(everything, "make_config")})


def load_config(argv: Sequence[str]) -> TrainConfig:
    """The config of a command line: `--config FILE.yaml` and `--key value ...`; a later file wins over an earlier one,
    and the command line over every file. Raises InputError naming the file or option, the key and the mend.
    """
    files, options = _split(argv)
    merged: dict[str, tuple[Any, str]] = {}
    for name in files:
        merged |= {key: (value, name) for key, value in _flat(_read(Path(name)), name)}
    return _resolve(merged | {key: (value, "command line") for key, value in options.items()})


def dump(cfg: TrainConfig) -> str:
    """The config as YAML, which `load_config(["--config", FILE])` reads back to an equal one."""
    out = {name: value for name, value in asdict(cfg).items() if name != "hyper"}
    out["data"]["history"] = "full" if cfg.data.history is None else cfg.data.history
    out[cfg.algo] = asdict(cfg.hyper)
    # JSON has no tuples, so this makes lists of them; floats keep all their digits.
    return yaml.safe_dump(json.loads(json.dumps(out)), sort_keys=False, allow_unicode=True)


def flat(cfg: TrainConfig) -> dict[str, Any]:
    """Every option of a config by its full key: `{"optim.lr": 0.0001, ...}`."""
    return dict(_flat(yaml.safe_load(dump(cfg)), "config"))


def options() -> str:
    """The help text: every option with its type and default."""
    return _parser().format_help()


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_dir() and (not path.is_file() or path.stat().st_size > LARGEST):
        raise InputError(f"--config {path} is no file of at most {LARGEST:,} bytes, as every config is; name another")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise InputError(f"--config {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{path}{where}: not plain YAML ({what}); mend it") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected `key: value` lines, found {type(content).__name__}")
    return content


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Config files and options of a command line. A list takes all values up to the next option."""
    files: list[str] = []
    given: dict[str, Any] = {}
    known = _keys()
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise InputError(f"unexpected argument {word!r}; options are written --key value")
        name, equals, value = word[2:].partition("=")
        values = [value] if equals else []
        many = _is_list(known.get(name))
        while rest and not equals and (many or not values) and not _is_option(rest[0]):
            values.append(rest.pop(0))
        if name != "config" and name not in known:
            _refuse(name, "command line")
        if not values:
            raise InputError(f"option --{name} needs a value")
        if name == "config":
            files += values
        elif many and len(values) == 1 and values[0].lstrip().startswith("["):
            given[name] = values[0]
        else:
            given[name] = values if many else values[0]
    return files, given


def _is_option(word: str) -> bool:
    return re.match(r"--[A-Za-z]", word) is not None


def _is_list(hint: Any) -> bool:
    return any(get_origin(part) in (list, tuple) for part in (hint, *get_args(hint)))


def _flat(content: Mapping[Any, Any], where: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested mapping by their full key; the first unknown key is an error."""
    known, sections = _keys(), _sections()
    for name, value in content.items():
        key = f"{prefix}{name}"
        if "." in str(name):
            raise InputError(f"{where}: {name!r} has a dot; nest the keys, `{str(name).replace('.', ': {', 1)}: ...}}`")
        if key in sections:
            if value is not None and not isinstance(value, Mapping):
                raise InputError(f"{where}: {key!r} is a section, write its keys below it, not {value!r}")
            yield from _flat(value or {}, where, f"{key}.")
        elif key in known:
            yield key, value
        else:
            _refuse(key, where)


def _near(key: str, known: Mapping[str, Any]) -> str:
    # The right name in the wrong section, or the nearest one.
    best = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    best = best or difflib.get_close_matches(key, known, 1, 0.5)
    return f"; did you mean {' or '.join(map(repr, best))}?" if best else ""


def _refuse(key: str, where: str) -> None:
    raise InputError(f"{where}: unknown option {key!r}{_near(key, _keys() | _sections()) or '; see --help'}")


# ---- checking --------------------------------------------------------------------------------------------------------


def _leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full key and type of every option of a dataclass; a nested dataclass is a section, given with its class."""
    hints = get_type_hints(cls)
    for item in fields(cls):
        hint = hints[item.name]
        yield f"{prefix}{item.name}", hint
        if is_dataclass(hint):
            yield from _leaves(hint, f"{prefix}{item.name}.")  # type: ignore[arg-type]


@cache
def _everything() -> dict[str, Any]:
    out = {key: hint for key, hint in _leaves(TrainConfig) if key != "hyper"}
    for name, algo in ALGOS.items():
        out |= {name: algo.Config, **dict(_leaves(algo.Config, f"{name}."))}
    return out


@cache
def _keys() -> dict[str, Any]:
    """Type of every option by its full key."""
    return {key: hint for key, hint in _everything().items() if not is_dataclass(hint)}


@cache
def _sections() -> dict[str, Any]:
    return {key: hint for key, hint in _everything().items() if is_dataclass(hint)}


def _parser(algo: str | None = None) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(prog="ilql train", exit_on_error=False, description="Train.")
    parser.add_class_arguments(TrainConfig, None, skip={"hyper"})
    for name, module in ALGOS.items():
        if algo in (None, name):
            parser.add_class_arguments(module.Config, name)
    return parser


def _resolve(given: Mapping[str, tuple[Any, str]]) -> TrainConfig:
    """Check types and build the dataclasses; `given` holds value and origin by full key."""
    required = [f.name for f in fields(TrainConfig) if f.default is MISSING and f.default_factory is MISSING]
    for key in [name for name in required if name != "data"] + ["data.path"]:
        if given.get(key, (None, ""))[0] is None:
            raise InputError(f"option {key!r} is not set; give it in the config file or as --{key}")
    algo = given["algo"][0]
    if algo not in ALGOS:
        where = given["algo"][1]
        raise InputError(f"{where}: unknown algorithm {algo!r}{_near(str(algo), ALGOS)}; known: {', '.join(ALGOS)}")
    nested: dict[str, Any] = {}
    for key, (value, where) in given.items():
        section, _, last = key.rpartition(".")
        if section in ALGOS and section != algo:
            raise InputError(
                f"{where}: {key!r} is an option of another algorithm than {algo!r}; remove it or change algo"
            )
        place = nested
        for part in section.split(".") if section else []:
            place = place.setdefault(part, {})
        place[last] = _plain(key, value)
    parser = _parser(algo)
    try:
        parsed = dict(vars(parser.instantiate(parser.parse_object(nested))))
        return TrainConfig(hyper=parsed.pop(algo), **parsed)
    except jsonargparse.ArgumentError as error:
        raise InputError(_readable(str(error), given)) from None


def _plain(key: str, value: Any) -> Any:
    """A value as the parser takes it: a list may be given as its only element, a path as itself, `full` as a word."""
    if key == "data.history" and value == "full":
        return None
    if _is_list(_keys()[key]):
        text = isinstance(value, str) and value.lstrip().startswith("[")  # a list written on the command line
        many = value if text or value is None or isinstance(value, (list, tuple)) else [value]
        return [str(v) if isinstance(v, Path) else v for v in many] if isinstance(many, (list, tuple)) else many
    return str(value) if isinstance(value, Path) else value


def _readable(message: str, given: Mapping[str, tuple[Any, str]]) -> str:
    """The parser's message as one sentence that says where the faulty key was set."""
    found = re.search(r'key "([^"]+)":\s*(.*)', message, re.DOTALL)
    if not found:
        return " ".join(message.split())
    key, what = found[1], " ".join(found[2].split())
    where = given[key][1] if key in given else "config"
    what = re.sub(r"<class '(\w+)'>", r"\1", what).replace("typing.", "")
    return f"{where}: option {key!r}: {what[:1].lower()}{what[1:]}"
