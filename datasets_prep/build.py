"""Builds a dataset folder. Decision: the main process parses, worker processes encode chunks whose borders depend on
the input alone, and results are written in the order of the input; so any number of workers gives the same bytes. The
folder is written beside its final place and appears there whole, or not at all.
"""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import re
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from datasets_prep import CORPORA, split, stats
from datasets_prep import tokenizer as tk
from datasets_prep.encode import Encoder, Row, check
from datasets_prep.layout import compact, content
from datasets_prep.overlong import fit
from datasets_prep.rejects import Reject
from datasets_prep.write import SplitWriter, batch
from ilql import schema
from ilql.types import InputError

CHUNK_DIALOGUES, CHUNK_CHARACTERS = 256, 1_000_000


@dataclass(frozen=True)
class Options:
    """What the command line says; see `python -m datasets_prep CORPUS --help`."""

    corpus: str
    output: Path
    inputs: list[Path] = field(default_factory=list)
    step: str = "token"
    tokenizer: str = "bpe:8192"
    action_tokens: list[str] = field(default_factory=list)
    validation: str | None = None
    overlong: str = "reject"
    max_length: int | None = None
    max_reject_rate: float = 0.01
    workers: int = 1
    seed: int = 0
    corpus_options: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Chunk:
    """What a worker makes of some dialogues."""

    rejects: list[Reject]
    batches: dict[str, pa.RecordBatch]
    facts: dict[str, list[stats.Facts]]


def build(options: Options) -> dict[str, Any]:
    """Build the dataset and return its manifest. Raises InputError, and then leaves nothing behind."""
    _refuse(options)
    output = options.output
    made = [folder for folder in (output.parent, *output.parent.parents) if not folder.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".part", dir=output.parent))
    try:
        manifest = _fill(part, options)
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o777 & ~mask)
        part.replace(output)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        for folder in made:
            folder.rmdir()
        raise
    return manifest


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
    validation = split.parse(options.validation)

    def source() -> Iterator[split.Item]:
        corpus = CORPORA[options.corpus]
        return split.items(corpus, options.inputs, validation, options.seed, options.corpus_options)

    tokenizer = _tokenizer(options, source)
    tk.add_action_tokens(tokenizer, options.action_tokens)
    Encoder(tokenizer)  # refuses a tokenizer that cannot serve by the name that the user gave
    tokenizer.save_pretrained(part / "tokenizer")
    encoder = Encoder.from_folder(part / "tokenizer")
    writers = {name: SplitWriter(part, name) for name in schema.SPLITS}
    tallies = {name: stats.Tally() for name in schema.SPLITS}
    count, reasons = 0, Counter[str]()
    examples: dict[str, Reject] = {}
    task = _Task(str(part / "tokenizer"), options.step, options.max_length, options.overlong)
    with (
        (part / "rejected.jsonl").open("w", encoding="utf-8", newline="\n") as rejected,
        tqdm(desc="encoding", unit=" dialogues", disable=None) as bar,
    ):
        for size, chunk in _encoded(_chunks(source()), task, options.workers):
            count += size
            bar.update(size)
            for fault in chunk.rejects:
                rejected.write(json.dumps(fault.as_dict(), ensure_ascii=True) + "\n")
                kind = _kind(fault)
                reasons[kind] += 1
                examples.setdefault(kind, fault)
            for name, rows in chunk.batches.items():
                writers[name].write(rows)
                for row in chunk.facts[name]:
                    tallies[name].add(row)
    for writer in writers.values():
        writer.close()
    rows, refused = sum(w.rows for w in writers.values()), reasons.total()
    if count != rows + refused:
        raise AssertionError(f"{count} episodes in, but {rows} rows out and {refused} rejected")
    _judge(count, refused, reasons, examples, options)
    if not writers["train"].rows:
        raise InputError("no dialogue is left for train; look at --input, --validation and --max-length")
    statistics: dict[str, Any] = {n: t.summary() for n, t in tallies.items() if writers[n].rows}
    statistics |= {"episodes_in": count, "rows_out": rows, "rejected": refused, "rejected_reasons": dict(reasons)}
    uses = sum((t.action_tokens for t in tallies.values()), Counter[int]())
    statistics["action_tokens"] = {text: uses[i] for text, i in tk.action_tokens(encoder.tokenizer).items()}
    manifest = _manifest(part, options, encoder, writers, statistics, refused)
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (part / "manifest.json").write_text(text, encoding="utf-8")
    return manifest


def _tokenizer(options: Options, source: Callable[[], Iterator[split.Item]]) -> Any:
    """The tokenizer that --tokenizer names, trained on the train split where it is to be trained."""
    if not tk.is_trained_kind(options.tokenizer):
        return tk.load(options.tokenizer)

    def texts() -> Iterator[str]:
        for name, episode in tqdm(source(), desc="reading for the tokenizer", unit=" dialogues", disable=None):
            if name != "train" or isinstance(episode, Reject):
                continue
            try:
                check(episode.turns)
                found = [content(turn) for turn in episode.turns]
                found += [compact(list(episode.tools))] if episode.tools else []
                for text in found:
                    text.encode()
            except (Reject, UnicodeEncodeError):
                continue
            yield from found

    return tk.train(options.tokenizer, () if options.tokenizer == "byte" else texts())


@dataclass(frozen=True)
class _Task:
    tokenizer: str
    step: str
    max_length: int | None
    overlong: str


_encoder: tuple[str, Encoder] | None = None  # of this process


def _encode(task: _Task, items: list[split.Item]) -> Chunk:
    """Encode some dialogues, in a worker or in the main process."""
    global _encoder
    if _encoder is None or _encoder[0] != task.tokenizer:
        _encoder = task.tokenizer, Encoder.from_folder(task.tokenizer)
    encoder = _encoder[1]
    action_ids = list(tk.action_tokens(encoder.tokenizer).values())
    rejects: list[Reject] = []
    rows: dict[str, list[Row]] = {}
    facts: dict[str, list[stats.Facts]] = {}
    for name, item in items:
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        try:
            row, cut = fit(encoder, item, task.step, task.max_length, task.overlong)
        except Reject as fault:
            rejects.append(fault.at(item))
            continue
        rows.setdefault(name, []).append(row)
        facts.setdefault(name, []).append(stats.facts(row, cut, encoder.unk_id, action_ids))
    return Chunk(rejects, {name: batch(found) for name, found in rows.items()}, facts)


def _chunks(items: Iterable[split.Item]) -> Iterator[list[split.Item]]:
    """Runs of dialogues, bounded in number and in text."""
    chunk: list[split.Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        if not isinstance(item[1], Reject):
            size += sum(len(turn.text) for turn in item[1].turns)
        if len(chunk) >= CHUNK_DIALOGUES or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _encoded(chunks: Iterator[list[split.Item]], task: _Task, workers: int) -> Iterator[tuple[int, Chunk]]:
    """Encoded chunks in order, with the number of dialogues that went in; never more than a few wait in memory."""
    if workers == 1:
        for items in chunks:
            yield len(items), _encode(task, items)
        return
    # spawn: the tokenizers library runs threads, which a fork would break
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    waiting: deque[tuple[int, Future[Chunk]]] = deque()
    try:
        for items in chunks:
            waiting.append((len(items), pool.submit(_encode, task, items)))
            if len(waiting) >= 2 * workers:
                size, future = waiting.popleft()
                yield size, future.result()
        for size, future in waiting:
            yield size, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


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
    rows: dict[str, int | None] = {"rejected.jsonl": refused}
    rows |= {f"tokenizer/{p.relative_to(part / 'tokenizer').as_posix()}": None for p in _files(part / "tokenizer")}
    for writer in writers.values():
        rows |= writer.files
    sources = [*options.inputs]
    validation = split.parse(options.validation)
    if isinstance(validation, Path):
        sources.append(validation)
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
            "validation": validation.name if isinstance(validation, Path) else validation,
            **{key: _plain(value) for key, value in options.corpus_options.items()},
        },
        "sources": [{"name": path.name, "sha256": _digest(path)} for path in sources],
        "tokenizer": {
            "name": name,
            "sha256": schema.folder_sha256(part / "tokenizer"),
            "vocab_size": encoder.vocab_size,
        },
        "package_version": package_version(),
        "statistics": statistics,
        "files": {name: {"sha256": schema.sha256(part / name), "rows": n} for name, n in sorted(rows.items())},
    }


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
