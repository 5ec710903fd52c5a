"""Files of every corpus that reads files, with odd records in them: bytes changed anywhere, values that do not belong
there, and whatever Hypothesis makes of JSON. Decision: what comes out is counted against what went in, every line by
itself; an exception that is no InputError, or a crash, ends this process.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from datasets_prep.encode import Encoder
from datasets_prep.layout import MarkLayout
from datasets_prep.tokenizer import train
from datasets_prep.work import Source, Task, do
from ilql.types import InputError
from tests.prep.test_corpora import SAMPLES

LISTS = tuple(name for name, text in SAMPLES.items() if text.startswith("["))
TOGETHER = 20  # odd records in a file of lines; a list has one, since behind a fault of its commas it breaks off
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 0.5, 1e308, -1e308, 2**63, 10**30, 1e-320, float("nan"), float("inf"), "", " ", "x"),
    *("\ud800", "\0", "a\0b", "\u2028", "\N{PILE OF POO}", "\ufeff", "1", "true", "x" * 5000, "<eos>", "\x1b[2J"),
    *([], {}, [[]], {"": None}, {"a": {"a": {}}}, [None] * 300, {str(k): k for k in range(300)}),
)
BYTES = (b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\n", b"\r", b'"', b"\\", b"{", b"[", b"]}", b",", b"\x80")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def records(name: str) -> list[str]:
    """The sample's records, as text."""
    text = SAMPLES[name]
    return [json.dumps(one) for one in json.loads(text)] if name in LISTS else text.strip().split("\n")


def bytes_changed(record: str, rng: random.Random) -> bytes:
    data = bytearray(record.encode())
    for _ in range(rng.randint(1, 3)):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        how = rng.randrange(6)
        if how == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at:at] = rng.choice(BYTES) * rng.choice((1, 1, 1, 100, 3000))
        elif how == 2:
            del data[at : min(end, at + 20)]
        elif how == 3:
            del data[at:]
        elif how == 4:
            data[at:at] = data[at:end]
        else:
            data[at:end] = bytes(rng.randrange(256) for _ in range(min(8, end - at)))
    return bytes(data)


def value_changed(record: str, rng: random.Random, odd: Any) -> bytes:
    """Some value, or name, of a record is another; of a record that is no JSON, a word is."""
    try:
        value = json.loads(record)
    except ValueError:
        words = record.split(" ")
        words[rng.randrange(len(words))] = str(odd)
        return " ".join(words).replace("\n", " ").encode("utf-8", "surrogatepass")
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict | list):
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            places += [(inner, key) for key in keys]
            waiting += [inner[key] for key in keys]
    holder, key = rng.choice(places)
    how = rng.randrange(4)
    if how == 0 and isinstance(holder, dict):
        holder[rng.choice(("", "x" * 300, "\ud800", f"{key}s", "reward"))] = holder.pop(key)
    elif how == 1:
        del holder[key]
    else:
        holder[key] = odd
    return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


class Fuzz:
    """Reads odd files and counts. Raises AssertionError where the count is wrong."""

    def __init__(self, folder: Path, seed: int) -> None:
        tokenizer = train("byte", [])
        tokenizer.save_pretrained(folder / "tokenizer")
        self.path, self.rng = folder / "odd", random.Random(seed)
        layout = Encoder(tokenizer).layout
        assert isinstance(layout, MarkLayout)
        self.task = {
            name: Task(Source(name, 0, {}), str(folder / "tokenizer"), layout, "token", None, "reject", False)
            for name in SAMPLES
        }
        self.layout = layout
        self.found = Counter[str]()

    def read(self, name: str, odd: list[bytes]) -> None:
        """A file of whole records with odd ones between them."""
        good = [record.encode() for record in records(name)]
        if name in LISTS:
            data = b"[" + b",\n".join([*good[:1], *odd, *good[1:]]) + b"]"
        else:
            data = b"\n".join(line for one in odd for line in (good[0], one)) + b"\n" + good[-1]
        self.path.write_bytes(data)
        self.found["records"] += len(odd)
        if any(line.strip() for line in data.split(b"\n")):
            self.count(name, data)

    def count(self, name: str, data: bytes) -> None:
        lines: set[int] = set()
        told = ""
        try:
            for work in self.task[name].source.parts([self.path]):
                done = do(self.task[name], self.layout, work)
                rows = len(done.rows.id)
                assert len(done.seen) == rows + len(done.faults), "rows in are not rows out and rejected"
                for reject in (*done.rejects.values(), *done.faults.values()):
                    assert reject.file == "odd", reject
                    assert reject.line > 0, reject
                    assert reject.reason, reject
                    json.dumps(reject.as_dict()).encode()
                talks = self.task[name].source.read(work).talks
                lines |= {line for _, line in talks.place} | {reject.line for reject in done.rejects.values()}
                self.found["rows"] += rows
                self.found["rejected"] += len(done.rejects) + len(done.faults)
        except InputError as error:
            told = str(error)
        if told:
            assert str(self.path) in told, told
            self.found["refused files"] += 1
            return
        if name not in LISTS:
            blank = name != "deal_or_no_deal"
            wanted = {k for k, line in enumerate(_lines(data), 1) if line.strip() or not blank}
            assert lines == wanted, f"lines that are neither rows nor rejected: {sorted(lines ^ wanted)}"


def _lines(data: bytes) -> list[bytes]:
    found = data.split(b"\n")
    found[0] = found[0].removeprefix(b"\xef\xbb\xbf")
    return found if found[-1] else found[:-1]


def fuzz(folder: Path, count: int, seeded: int = 0) -> dict[str, Any]:
    """So many odd records, evenly over the corpora; a third of each kind."""
    what = Fuzz(folder, seeded)
    rng, names = what.rng, list(SAMPLES)
    odds: list[Any] = []

    @seed(seeded)
    @settings(
        max_examples=max(1, count // 3),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(JSON)
    def collect(value: Any) -> None:
        odds.append(value)

    collect()
    for name in names:
        each = -(-count // len(names))
        together = 1 if name in LISTS else TOGETHER
        batch: list[bytes] = []
        for k in range(each):
            record = rng.choice(records(name))
            if k % 3 == 0:
                batch.append(bytes_changed(record, rng))
            else:
                batch.append(value_changed(record, rng, rng.choice(ODD if k % 3 == 1 else odds)))
            if len(batch) == together or k == each - 1:
                what.read(name, batch)
                batch = []
    return {"corpora": len(names), **what.found}
