"""The command line of the builders. Decision: one parser a corpus; the keyword arguments of its `episodes` are its
options, so a corpus is one file and its options are written once. Words are never abbreviated, and a wrong one is
answered with the near one.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from datasets_prep import CORPORA, rewards
from datasets_prep.build import Options
from datasets_prep.overlong import MODES
from ilql.schema import STEPS
from ilql.types import InputError


class Parser(argparse.ArgumentParser):
    """argparse that raises InputError, and knows near names."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        found, unknown = self.parse_known_args(argv)
        if unknown:
            word = unknown[0].partition("=")[0]
            names = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(word, names, 1)
            if not word.startswith("-"):
                raise InputError(f"{word!r} stands where an option should (see {self.prog} --help)")
            hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            raise InputError(f"unknown option {word}; {hint}")
        return found


def corpus_options(corpus: ModuleType) -> dict[str, inspect.Parameter]:
    """The keyword arguments of a corpus' `episodes` that are its own."""
    parameters = inspect.signature(corpus.episodes, eval_str=True).parameters
    return {name: p for name, p in parameters.items() if name not in ("inputs", "seed")}


def first_line(corpus: ModuleType) -> str:
    """The first sentence of a corpus' docstring."""
    paragraph = " ".join((corpus.__doc__ or "").strip().split("\n\n")[0].split())
    return re.split(r"\. (?=[A-Z])", paragraph)[0].rstrip(".:")


def listing() -> str:
    """What `--list` prints."""
    lines = []
    for name, corpus in CORPORA.items():
        lines.append(f"{name}\n    {first_line(corpus)}")
        lines += [f"    {_flag(key)} (default: {p.default})" for key, p in corpus_options(corpus).items()]
    return "\n".join(lines)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_option(parser: Parser, name: str, parameter: inspect.Parameter) -> None:
    """One keyword argument as an option: bool, Literal, or anything that its type makes of a word; None is left out."""
    kind = parameter.annotation
    required = parameter.default is inspect.Parameter.empty
    settings: dict[str, Any] = {"dest": f"corpus.{name}", "required": required, "help": "an option of this corpus"}
    if not required:
        settings |= {"default": parameter.default, "help": f"an option of this corpus (default: {parameter.default})"}
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if kind is bool:
        parser.add_argument(_flag(name), action=argparse.BooleanOptionalAction, **settings)
    elif typing.get_origin(kind) is typing.Literal:
        parser.add_argument(_flag(name), choices=typing.get_args(kind), **settings)
    elif typing.get_origin(kind) in (list, tuple):
        parser.add_argument(_flag(name), nargs="+", type=typing.get_args(kind)[0], **settings)
    else:
        parser.add_argument(_flag(name), type=kind, metavar=getattr(kind, "__name__", "VALUE").upper(), **settings)


def _parser(name: str, corpus: ModuleType) -> Parser:
    parser = Parser(prog=f"python -m datasets_prep {name}", description=corpus.__doc__)
    add = parser.add_argument
    add("--input", nargs="+", action="extend", type=Path, default=[], metavar="PATH", help="files of the corpus")
    add("--output", type=Path, required=True, metavar="DIR", help="the dataset's folder, which must not exist")
    add("--step", choices=STEPS, default="token", help="what a time step is (default: token)")
    add(
        "--tokenizer",
        default="bpe:8192",
        metavar="X",
        help="word, word:SIZE, byte or bpe:SIZE to train one on the train split (SIZE counts special tokens), or a "
        "local folder or hub name (default: bpe:8192)",
    )
    add(
        "--action-token",
        nargs="+",
        action="extend",
        default=[],
        metavar="TEXT",
        help="turns of the agent that are one token each, their end included",
    )
    add(
        "--turn-tokens",
        action="store_true",
        help="turns of the closed sets that the corpus knows are one token each: the agent's with their end, "
        "the partner's without",
    )
    add(
        "--validation",
        metavar="FRACTION|K/N|FILE",
        help="a share of the dialogues, drawn by group, the K-th of N such, or the corpus' own validation file "
        "(default: none)",
    )
    own = corpus_options(corpus).get("reward")
    add(
        "--reward",
        default=None if own is None else own.default,
        metavar="NAME=WEIGHT,...",
        help="rewards by the partner's replies in place of the log's: "
        + ", ".join([*rewards.REWARDS, rewards.LOGGED])
        + ("" if own is None else f"; or the corpus' own: {', '.join(_choices(own))} (default: {own.default})"),
    )
    add("--zscore", action="store_true", help="give each of these mean 0 and deviation 1 over the train split")
    add("--max-length", type=int, metavar="L", help="tokens a dialogue may have (default: any number)")
    add("--overlong", choices=MODES, default="reject", help="what becomes of longer ones (default: reject)")
    add("--max-reject-rate", type=float, default=0.01, metavar="R", help="share of rejects allowed (default: 0.01)")
    add("--workers", type=int, default=1, metavar="N", help="processes that encode (default: 1)")
    add("--seed", type=int, default=0, metavar="S", help="of the split, and of generated corpora (default: 0)")
    for option, parameter in corpus_options(corpus).items():
        if option != "reward":
            _add_option(parser, option, parameter)
    return parser


def _choices(reward: inspect.Parameter) -> tuple[str, ...]:
    """The names of a corpus' own rewards."""
    return typing.get_args(reward.annotation)


def _rewards(corpus: ModuleType, text: str | None, zscore: bool) -> tuple[dict[str, float], dict[str, Any]]:
    """The weights of rewards by replies that --reward names, and the corpus' own option where it names that."""
    own = corpus_options(corpus).get("reward")
    plain = text is None or (own is not None and text in _choices(own))
    if plain and zscore:
        raise InputError("--zscore is about rewards by the partner's replies; name some: --reward sentiment=1")
    if plain:
        return {}, {} if own is None else {"reward": text}
    assert text is not None
    if own is not None and "=" not in text:
        near = difflib.get_close_matches(text, [*_choices(own), *rewards.REWARDS], 1)
        hint = f"did you mean {near[0]!r}?" if near else f"its own are {', '.join(_choices(own))}"
        raise InputError(f"--reward: there is no reward {text!r} without a weight; {hint}")
    return rewards.parse(text), {} if own is None else {"reward": own.default}


def parse(name: str, argv: Sequence[str]) -> Options:
    """The options after a corpus' name. Raises InputError; `--help` exits."""
    if name not in CORPORA:
        near = difflib.get_close_matches(name, [*CORPORA, "inspect"], 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the corpora are {', '.join(CORPORA)}"
        raise InputError(f"unknown corpus {name!r}; {hint}")
    found = vars(_parser(name, CORPORA[name]).parse_all(argv))
    own = {key.removeprefix("corpus."): value for key, value in found.items() if key.startswith("corpus.")}
    weights, more = _rewards(CORPORA[name], found["reward"], found["zscore"])
    return Options(
        corpus=name,
        output=found["output"],
        inputs=found["input"],
        step=found["step"],
        tokenizer=found["tokenizer"],
        action_tokens=found["action_token"],
        turn_tokens=found["turn_tokens"],
        validation=found["validation"],
        overlong=found["overlong"],
        max_length=found["max_length"],
        max_reject_rate=found["max_reject_rate"],
        workers=found["workers"],
        seed=found["seed"],
        corpus_options=own | more,
        rewards=weights,
        zscore=found["zscore"],
    )
