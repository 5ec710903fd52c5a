"""Files are read for what they are; one that is cut short or of another corpus is a fault of the file."""

import bz2
import gzip
import json
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from datasets_prep import CORPORA
from datasets_prep.files import LOOKS, refuse_others, stem, stems, whole
from datasets_prep.lines import parts
from ilql.types import InputError

TEXT = b"\n".join(b'{"n": %d}' % n for n in range(5000)) + b"\n\nlast"
EXPECTED = [*((n, b'{"n": %d}\n' % (n - 1)) for n in range(1, 5001)), (5002, b"last")]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


def lines(path: Path) -> list[tuple[int, bytes]]:
    return [line for part in parts(path, "x") for line in part.lines()]


PACKERS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstd}


@pytest.mark.parametrize("form", ["plain", *PACKERS])
@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz", "log.zst"])
def test_a_file_is_what_its_bytes_say(tmp_path: Path, form: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PACKERS[form](b"\xef\xbb\xbf" + TEXT) if form in PACKERS else TEXT)
    assert lines(path) == EXPECTED
    assert whole(path) == TEXT


@pytest.mark.parametrize("form", PACKERS)
def test_pieces_packed_one_behind_the_other_are_one_file(tmp_path: Path, form: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(PACKERS[form](TEXT[:777]) + PACKERS[form](TEXT[777:]))
    assert lines(path) == EXPECTED


@pytest.mark.parametrize("form", PACKERS)
@pytest.mark.parametrize("kept", [-1, -9, 0.5, 11, 5])
def test_a_compressed_file_cut_short_is_an_error(tmp_path: Path, form: str, kept: float) -> None:
    packed = PACKERS[form](TEXT)
    path = tmp_path / "log.jsonl"
    path.write_bytes(packed[: int(kept * len(packed)) if isinstance(kept, float) else kept])
    for read in (whole, lines):
        with pytest.raises(InputError, match=r"log\.jsonl is cut short: its compressed data end in the middle"):
            read(path)


@pytest.mark.parametrize("form", PACKERS)
def test_a_damaged_compressed_file_is_an_error(tmp_path: Path, form: str) -> None:
    packed = bytearray(PACKERS[form](TEXT))
    packed[20:60] = bytes(40)
    path = tmp_path / "log"
    path.write_bytes(packed)
    with pytest.raises(InputError, match=r"log is (damaged|cut short): its compressed data"):
        lines(path)


def test_a_window_of_gigabytes_is_an_error(tmp_path: Path) -> None:
    """A zstd frame header that asks for 2 GB, as packed by `zstd --long=31`."""
    path = tmp_path / "log.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\x09\x00\x00x")
    with pytest.raises(InputError, match=r"log\.zst needs a larger memory window .*: zstd -d --long=31"):
        lines(path)


def test_other_forms_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for data in (bz2.compress(TEXT), lzma.compress(TEXT)):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"log\.jsonl is compressed in a form that is not read"):
            whole(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("log", TEXT)
    with pytest.raises(InputError, match="unpack it, or pack it with gzip or zstd"):
        whole(path)
    path.write_text("{}", encoding="utf-16")
    with pytest.raises(InputError, match="is UTF-16; convert it to UTF-8"):
        whole(path)
    for nothing in (b"", b" \n\n", b"\xef\xbb\xbf", gzip.compress(b"\n"), zstd(b"")):
        path.write_bytes(nothing)
        for read in (whole, lines):
            with pytest.raises(InputError, match=r"log\.jsonl is empty: it holds no dialogue"):
                read(path)
    with pytest.raises(InputError, match="is a folder; give its files"):
        whole(tmp_path)
    with pytest.raises(InputError, match=r"cannot read .*absent: No such file"):
        whole(tmp_path / "absent")


def test_stems() -> None:
    names = ("log.jsonl", "a/log.jsonl.gz", "log.zst", "log", "a.b.json.zst", "log.parquet")
    assert [stem(name) for name in names] == ["log", "log", "log", "log", "a.b", "log"]
    assert stems([Path("a/log.jsonl"), Path("x"), Path("log.gz")]) == ["log.1", "x", "log.3"]


MESSAGES = json.dumps({"id": "x", "messages": [{"role": "user", "content": 'the "chat_logs": [' * 5}]})
BEGINNINGS = {
    "chat": (MESSAGES, '\n{"prompt": "a", "completion": "b"}', '{"rewards": [1], "samples": ["a"]}'),
    "casino": ('[{"dialogue_id": 1, "chat_logs": []}]', '[\n {\n  "chat_logs" : [{"text": "\\"generation\\": 1"}]}'),
    "craigslist": (
        '[{"uuid": "C_1", "scenario": {"category": "bike", "kbs": []}}]',
        '[\n {"scenario": {\n  "kbs" : [{"item": {"Title": "my \\"chat_logs\\": x"}}]}}]',
    ),
    "deal_or_no_deal": ("1 4 4 1 1 2 THEM: i would like", "1 4 4 1 1 2 YOU: hi", "<input> 1 4 4 1 1 2 </input>"),
    "preferences": ('{"prompt": "a \\"messages\\": x", "chosen": "b"}', '\n{"rejected": [], "chosen": []}'),
    "reddit": (json.dumps({"id": "t3_x", "title": 'my "messages": x', "comments": []}),),
    "taskmaster": ('[\n    {\n        "conversation_id": "dlg-1", "context": "[]", "generation": "{}"}]',),
    "visdial": (
        '[{"split": "train", "image_id": 1, "caption": "a \\"chat_logs\\": x", "dialog": []}]',
        '{"version": "1.0", "split": "val", "data": {"questions": ["is it \\"messages\\": x"]',
        '{\n "data" : {\n  "dialogs": [{"caption": "a bus"}]}}',
    ),
}


def test_a_file_of_another_corpus_is_named(tmp_path: Path) -> None:
    assert BEGINNINGS.keys() == LOOKS.keys()
    path = tmp_path / "x.json"
    for name, texts in BEGINNINGS.items():
        for text in texts:
            for data in (text.encode(), gzip.compress(text.encode())):
                path.write_bytes(data)
                refuse_others(path, name)
                for other in set(CORPORA) - {name}:
                    with pytest.raises(InputError, match=f"not look like a file of {other}, but like one of {name}: "):
                        refuse_others(path, other)
    path.write_bytes(b"PAR1 and so on")
    refuse_others(path, "chat")
    refuse_others(path, "preferences")
    with pytest.raises(InputError, match="like one of chat"):
        refuse_others(path, "casino")
    path.write_text("what is this?")
    for name in CORPORA:
        refuse_others(path, name)


@pytest.mark.parametrize("corpus", ["chat", "casino", "reddit"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, corpus: str) -> None:
    """A pipe that nobody writes to, and a device without an end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="is a pipe or a device"):
            list(CORPORA[corpus].episodes([path], seed=0))
