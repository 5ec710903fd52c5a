"""Builds a dataset folder. Decision: processes read and encode parts of the input, and the main one says, in the order
of the input, what becomes of each dialogue and writes; so any number of workers gives the same bytes. The folder is
written beside its final place and appears there whole, or not at all.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets_prep import CORPORA, check, rewards, split, stats
from datasets_prep import tokenizer as tk
from datasets_prep.beside import beside
from datasets_prep.chunks import chunks
from datasets_prep.columns import Columns
from datasets_prep.encode import Encoder
from datasets_prep.layout import MarkLayout, compact, content
from datasets_prep.rejects import Reject
from datasets_prep.talks import Talks
from datasets_prep.work import Source, Task, all_done, calm
from datasets_prep.write import SplitWriter
from ilql import atomic, schema
from ilql.types import PARTNER, InputError, Turn


@dataclass(frozen=True)
class Options:
    """What the command line says; see `python -m datasets_prep CORPUS --help`."""

    corpus: str
    output: Path
    inputs: list[Path] = field(default_factory=list)
    step: str = "token"
    tokenizer: str = "bpe:8192"
    action_tokens: list[str] = field(default_factory=list)
    turn_tokens: bool = False
    validation: str | None = None
    overlong: str = "reject"
    max_length: int | None = None
    max_reject_rate: float = 0.01
    workers: int = 1
    seed: int = 0
    corpus_options: dict[str, Any] = field(default_factory=dict)
    rewards: dict[str, float] = field(default_factory=dict)
    zscore: bool = False


def build(options: Options) -> dict[str, Any]:
    """Build the dataset and return its manifest. Raises InputError, and then leaves nothing behind."""
    _refuse(options)
    output = options.output
    made = [folder for folder in (output.parent, *output.parent.parents) if not folder.exists()]
    try:
        # What is written is about as large as what was read, unless that was compressed.
        with atomic.folder(output, sum(map(_size, options.inputs))) as part:
            return _fill(part, options)
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else has put something there
                folder.rmdir()
        raise


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in _files(path)) if path.is_dir() else path.stat().st_size


def _refuse(options: Options) -> None:
    """Everything that can be known to fail before work begins."""
    output = options.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"--output {output} exists already; nothing is overwritten, give a new folder")
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"--output {output} would lie in {above}, which is a file; give another folder")
    for path in options.inputs:
        if not path.exists():
            raise InputError(f"--input {path} does not exist")
    if options.max_length is not None and options.max_length < 4:
        raise InputError(f"--max-length {options.max_length} leaves no room for a dialogue")
    if options.max_length is None and options.overlong != "reject":
        raise InputError(f"--overlong {options.overlong} needs --max-length, the number of tokens to cut at")
    if options.workers < 1:
        raise InputError(f"--workers {options.workers} must be at least 1")
    if not 0 <= options.max_reject_rate <= 1:
        raise InputError(f"--max-reject-rate {options.max_reject_rate} is not a share between 0 and 1")


def _fill(part: Path, options: Options) -> dict[str, Any]:
    sources = beside(lambda: [{"name": path.name, "sha256": _digest(path)} for path in _sources(options)])
    source = Source(options.corpus, options.seed, options.corpus_options)
    tokenizer = _tokenizer(options, source)
    actions, words = turn_texts(options)
    tk.add_words(tokenizer, words)
    tk.add_action_tokens(tokenizer, actions)
    _refuse_words(Encoder(tokenizer), words)  # refuses a tokenizer that cannot serve, by the name that the user gave
    tokenizer.save_pretrained(part / "tokenizer")
    encoder = Encoder.from_folder(part / "tokenizer")
    writers = {name: SplitWriter(part, name) for name in schema.SPLITS}
    tallies = {name: stats.Tally() for name in schema.SPLITS}
    count, prefix, reasons = 0, 0, Counter[str]()
    examples: dict[str, Reject] = {}
    splitter = _splitter(options)
    scales, told = _scales(options, source)
    task = _task(part, options, source, encoder, splitter.grouped, scales)
    action_ids = list(tk.action_tokens(encoder.tokenizer).values())
    work = splitter.read(source.parts)
    with (
        calm(),
        (part / "rejected.jsonl").open("w", encoding="utf-8", newline="\n") as rejected,
        tqdm(desc="encoding", unit=" dialogues", disable=None) as bar,
    ):
        for chunk in chunks(all_done(task, work, options.workers), splitter):
            count += chunk.size
            bar.update(chunk.size)
            for fault in chunk.rejects:
                rejected.write(json.dumps(fault.as_dict(), ensure_ascii=True) + "\n")
                kind = _kind(fault)
                reasons[kind] += 1
                examples.setdefault(kind, fault)
            for name, found in chunk.rows.items():
                rows = Columns.together(found)
                prefix = rows.width(0)
                writers[name].write(rows.batch())
                tallies[name].add(rows, encoder.unk_id, action_ids)
    splitter.close()
    for writer in writers.values():
        writer.close()
    written, refused = sum(w.rows for w in writers.values()), reasons.total()
    if count != written + refused:
        raise AssertionError(f"{count} episodes in, but {written} rows out and {refused} rejected")
    _judge(count, refused, reasons, examples, options)
    if not writers["train"].rows:
        raise InputError("no dialogue is left for train; look at --input, --validation and --max-length")
    statistics = _statistics({n: t for n, t in tallies.items() if writers[n].rows}, encoder)
    statistics |= {"episodes_in": count, "rows_out": written, "rejected": refused, "rejected_reasons": dict(reasons)}
    if options.rewards:
        statistics["rewards"] = told
    manifest = _manifest(part, options, encoder, writers, statistics, refused) | {"sources": sources()}
    manifest |= {"prefix": prefix} if prefix else {}
    (part / "manifest.json").write_text(schema.sealed(manifest), encoding="utf-8")
    return manifest


def _task(
    part: Path,
    options: Options,
    source: Source,
    encoder: Encoder,
    grouped: bool,
    scales: dict[str, rewards.Scale],
) -> Task:
    return Task(
        source=source,
        tokenizer=str(part / "tokenizer"),
        layout=encoder.layout if isinstance(encoder.layout, MarkLayout) else None,
        step=options.step,
        max_length=options.max_length,
        overlong=options.overlong,
        grouped=grouped,
        scales=scales,
    )


def _statistics(tallies: Mapping[str, stats.Tally], encoder: Encoder) -> dict[str, Any]:
    """What the splits hold, and how often each action token is used in all of them."""
    uses = sum((tally.action_tokens for tally in tallies.values()), Counter[int]())
    each: dict[str, Any] = {name: tally.summary() for name, tally in tallies.items()}
    return each | {"action_tokens": {text: uses[i] for text, i in tk.action_tokens(encoder.tokenizer).items()}}


def _splitter(options: Options) -> split.Splitter:
    corpus, validation = CORPORA[options.corpus], split.parse(options.validation)
    return split.Splitter(corpus, options.inputs, validation, options.seed)


def _tokenizer(options: Options, source: Source) -> Any:
    """The tokenizer that --tokenizer names, trained on the train split where it is to be trained."""
    if not tk.is_trained_kind(options.tokenizer):
        return tk.load(options.tokenizer)

    def texts() -> Iterator[str]:
        for talks, which in _training(options, source, "reading for the tokenizer"):
            for i in which:
                yield from _said(talks, i)

    return tk.train(options.tokenizer, () if options.tokenizer == "byte" else texts())


def _training(options: Options, source: Source, what: str) -> Iterator[tuple[Talks, list[int]]]:
    """All dialogues in a pass of their own, and which of them are to be trained on, before any is encoded."""
    splitter = _splitter(options)
    with tqdm(desc=what, unit=" dialogues", disable=None) as bar:
        for name, work in splitter.read(source.parts):
            talks = source.read(work).talks
            placed, faults = splitter.place(name, split.look(talks, splitter.grouped)), check.faults(talks)
            yield talks, [i for i, found in enumerate(placed) if found == "train" and i not in faults]
            bar.update(len(talks))
    splitter.close()


def _scales(options: Options, source: Source) -> tuple[dict[str, rewards.Scale], dict[str, Any]]:
    """How rewards by replies enter their sum, and what is to be said of them."""
    tally = rewards.Tally(options.rewards)
    if options.rewards:
        for talks, which in _training(options, source, "reading for the rewards"):
            tally.add(talks.take(which))
    return tally.scales(options.rewards, options.zscore)


def _said(talks: Talks, i: int) -> list[str]:
    """What a tokenizer learns of a dialogue: nothing of one that cannot be written."""
    at, tools = slice(talks.first[i], talks.first[i + 1]), talks.tools[i]
    try:
        said = list(map(content, talks.text[at], talks.calls[at])) + ([compact(list(tools))] if tools else [])
        "".join(said).encode()
    except (Reject, UnicodeEncodeError):
        return []
    return said


def turn_texts(options: Options) -> tuple[list[str], list[str]]:
    """Turns that are one token each: the agent's, and the partner's."""
    if not options.turn_tokens:
        return options.action_tokens, []
    corpus = CORPORA[options.corpus]
    if not hasattr(corpus, "turn_texts"):
        known = ", ".join(name for name, module in CORPORA.items() if hasattr(module, "turn_texts"))
        raise InputError(
            f"--turn-tokens: the turns of {options.corpus} are no closed set (those of {known} are); name some by "
            "--action-token"
        )
    actions, words = corpus.turn_texts(**options.corpus_options)
    listed = {text.strip() for text in actions}
    return [*actions, *(text for text in options.action_tokens if text.strip() not in listed)], words


def _refuse_words(encoder: Encoder, words: list[str]) -> None:
    """A tokenizer that would not make one token of a word, since its template changes the texts of turns."""
    for word in words:
        token = encoder.tokenizer.backend_tokenizer.token_to_id(word)
        if token not in encoder.state([Turn(PARTNER, word)])[0]:
            raise InputError(
                f"--turn-tokens: the chat template of --tokenizer does not leave {word!r} as it is; use word, byte or "
                "bpe:SIZE"
            )


def _kind(fault: Reject) -> str:
    """The reason without what differs from line to line, for counting."""
    field_name = re.sub(r"\[\d+\]", "", fault.field)
    reason = fault.reason
    if "unknown field" not in reason:  # there the name is the reason
        reason = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", reason)
    reason = re.sub(r"\(.*\)$", "(...)", reason)
    return ": ".join(part for part in (field_name, reason) if part)


def _judge(count: int, refused: int, reasons: Counter[str], examples: dict[str, Reject], options: Options) -> None:
    """Fail where there is nothing, or too much of it is faulty."""
    if not count:
        files = ", ".join(str(path) for path in options.inputs)
        raise InputError(f"{options.corpus} found no dialogue in {files or 'its input'}; give a file that holds some")
    if refused > options.max_reject_rate * count:
        common = "; ".join(f"{n} x {kind} (first: {examples[kind]})" for kind, n in reasons.most_common(3))
        raise InputError(
            f"{refused} of {count} dialogues were rejected, more than --max-reject-rate {options.max_reject_rate:g} "
            f"allows, so nothing was written; the commonest reasons: {common}"
        )


def _manifest(
    part: Path,
    options: Options,
    encoder: Encoder,
    writers: dict[str, SplitWriter],
    statistics: dict[str, Any],
    refused: int,
) -> dict[str, Any]:
    """All that is known of the dataset, without paths, times or the number of workers."""
    others: dict[str, int | None] = {"rejected.jsonl": refused}
    others |= {f"tokenizer/{p.relative_to(part / 'tokenizer').as_posix()}": None for p in _files(part / "tokenizer")}
    files = {name: {"sha256": schema.sha256(part / name), "rows": n} for name, n in others.items()}
    for writer in writers.values():
        files |= {name: {"sha256": digest, "rows": writer.files[name]} for name, digest in writer.digests().items()}
    validation = split.parse(options.validation)
    name = Path(options.tokenizer).resolve().name if Path(options.tokenizer).is_dir() else options.tokenizer
    if tk.is_trained_kind(options.tokenizer):
        name = options.tokenizer
    return {
        "schema_version": schema.VERSION,
        "step": options.step,
        "corpus": options.corpus,
        "arguments": {
            "action_token": options.action_tokens,
            "max_length": options.max_length,
            "max_reject_rate": options.max_reject_rate,
            "overlong": options.overlong,
            "seed": options.seed,
            "step": options.step,
            "tokenizer": name,
            "turn_tokens": options.turn_tokens,
            **({"rewards": options.rewards, "zscore": options.zscore} if options.rewards else {}),
            "validation": _plain(str(validation) if isinstance(validation, split.Fold) else validation),
            **{key: _plain(value) for key, value in options.corpus_options.items()},
        },
        "tokenizer": {
            "name": name,
            "sha256": schema.folder_sha256(part / "tokenizer"),
            "vocab_size": encoder.vocab_size,
        },
        "package_version": package_version(),
        "statistics": statistics,
        "files": dict(sorted(files.items())),
    }


def _sources(options: Options) -> list[Path]:
    """All that is read."""
    more = options.corpus_options.values()
    validation = split.parse(options.validation)
    return [path for path in (*options.inputs, *more, validation) if isinstance(path, Path)]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    return schema.folder_sha256(path) if path.is_dir() else schema.sha256(path)


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Path) else value


def package_version() -> str:
    try:
        return importlib.metadata.version("ilql")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
