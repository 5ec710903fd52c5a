"""A small corpus with everything in it that logs have, builds of it in every way, and their stored digests.

`python -m tests.prep.mixed` writes the digests anew. Decision: what a digest covers is what a reader of the folder
sees (rows, the borders of record batches, rejects, statistics), not bytes of files, which differ between versions of
pyarrow. Only `random()` of the generator is used, which no version of Python changes.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from datasets_prep import chunks
from datasets_prep.__main__ import main
from tests.prep import tokenizers_for_tests as others

STORED = Path(__file__).with_name("mixed.json")
TEXTS = (
    *(
        "hello there",
        "how are you?",
        "yes",
        "no",
        " yes\n",
        "",
        "  two  spaces ",
        "tab\tand\nline\n\n",
        "don't we'll I'm",
    ),
    *(
        "naïve café — “quoted”",
        "日本語のテキスト",
        "a😀b",
        "no\u00a0break\u2003wide",
        "x = f(1, 2) # 3.14e-10",
        "ÀÉÎ" * 3,
    ),
    *("<|end|> is text", "<|im_end|>", "</s>", "<|eot_id|>now", "<tag> item0=3 it’s re-use", "word " * 30, "A" * 70),
    *("\u001c\u001f\u0085odd", "'s ''ll 'S", "0123 456 78", "...!!! ??", "\r\n", "é", "é", "ﬀ"),
)
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "maß", "n": 3}}}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "é <b>"}}]
SCENARIOS = (("1 0 4 2 1 2", "1 4 4 1 1 2"), ("2 1 1 6 2 1", "2 0 1 10 2 0"), ("3 1 2 2 1 3", "3 2 2 2 1 0"))
SAID = ("i want hats", "deal .", "no way", "you take the balls", "ok")
DEALS = ("item0=0 item1=1 item2=0", "item0=1 item1=0 item2=1", "item0=9 item1=0 item2=0")
PICKS = (*DEALS, "no agreement", "disconnect")
LIMITS = {"DIALOGUES": 16, "CHARACTERS": 3000}


class Dice:
    """Draws that no version of Python changes."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def below(self, n: int) -> int:
        return int(self._random() * n)

    def of(self, choices: Sequence[Any]) -> Any:
        return choices[self.below(len(choices))]

    def chance(self, p: float) -> bool:
        return self._random() < p


def dialogue(dice: Dice, i: int) -> dict[str, Any]:
    """One log line as an object; now and then something in it is a fault."""
    messages: list[dict[str, Any]] = []
    if dice.chance(0.2):
        messages.append({"role": "system", "content": dice.of(TEXTS)})
    speaker = dice.below(2)
    for _ in range(1 + dice.below(9)):
        role = ("user", "assistant")[speaker]
        text = dice.of(TEXTS) if dice.chance(0.8) else f"{dice.of(TEXTS)} {dice.below(1000)}"
        message: dict[str, Any] = {"role": role, "content": text}
        if role == "assistant":
            if dice.chance(0.5):
                message["reward"] = dice.of((0, 1, -2.5, 0.1, 1e-3, 3e38))
            if dice.chance(0.1):
                message["tool_calls"] = [CALL] * (1 + dice.below(2))
                message["content"] = dice.of((None, "", text))
                messages += [message, {"role": "tool", "content": dice.of(TEXTS), "tool_call_id": "1", "name": "look"}]
                continue
            if dice.chance(0.1):
                message["loss_mask"] = dice.below(2)
                message.pop("reward", None)
            if dice.chance(0.1):
                message["logp"] = dice.of((-0.5, 0, -1, 0.5, [-0.1], [-1, None, -0.25], None))
        messages.append(message)
        if dice.chance(0.9):
            speaker = 1 - speaker
    out: dict[str, Any] = {"messages": messages}
    if dice.chance(0.8):
        out["id"] = dice.of((f"d{i}", f"d{i}", f"{i // 2}:{'ab'[i % 2]}", i, f"é{i}", f"d{i - 3}"))
    if dice.chance(0.3):
        out["terminated"] = dice.chance(0.3)
    if dice.chance(0.2):
        out["reward"] = dice.of((0, 2, -0.7, 1e300))
    if dice.chance(0.5):
        out["meta"] = dice.of(
            ({}, {"b": 1, "a": "é"}, {"group": i // 7}, {"group": None, "x": [1.5, {"y": None}]}, None)
        )
    if dice.chance(0.1):
        out["tools"] = TOOLS
    return out


def line(dice: Dice, i: int) -> str:
    """One line of a log, about one in eight of them no dialogue."""
    found = dialogue(dice, i)
    if not dice.chance(0.125):
        return json.dumps(
            found, ensure_ascii=dice.chance(0.5), separators=dice.of(((",", ":"), (", ", ": "), (" , ", " : ")))
        )
    fault = dice.below(12)
    first = found["messages"][0]
    text = json.dumps(found)
    if fault == 0:
        return text[:-4]
    if fault == 1:
        return ""
    if fault == 2:
        return text[:-1] + ', "terminated": true, "terminated": true}'
    if fault == 3:
        return text[:-1] + ', "meta": {"k": 1, "k": {"j": 2}}}'
    if fault == 4:
        first["rewrad"] = 1
    elif fault == 5:
        first["role"] = "asistant"
    elif fault == 6:
        first |= {"role": "user", "reward": 1}
    elif fault == 7:
        found["reward"] = float("nan")
    elif fault == 8:
        found["messages"] = []
    elif fault == 9:
        first["content"] = [{"type": "text", "text": "x"}]
    elif fault == 10:
        return text.replace('"content": "', '"content": "\\ud800', 1)
    else:
        first["content"] = dice.of(TEXTS) * 60
    return json.dumps(found)


def write_logs(folder: Path) -> None:
    """log.jsonl, more.jsonl, held.jsonl, and deal.txt with its val.txt."""
    dice = Dice(7)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line(dice, i) for i in range(260)]
    (folder / "log.jsonl").write_text("\n".join(lines[:180]), encoding="utf-8", newline="\n")
    text = "".join(text + "\r\n" for text in lines[180:220])
    (folder / "more.jsonl").write_bytes(
        b"\xef\xbb\xbf" + text.encode() + b'{"messages": [{"role": "user", "content": "\xff"}]}\n'
    )
    (folder / "held.jsonl").write_text("\n".join(lines[220:]) + "\n\n", encoding="utf-8", newline="\n")
    (folder / "deal.txt").write_text("\n".join([*deals(dice), "broken", ""]), encoding="utf-8", newline="\n")
    talk = "<dialogue> YOU: hi <eos> </dialogue> <output> item0=0 </output>"
    scenario = f"<input> {SCENARIOS[0][0]} </input> {talk} <partner_input> {SCENARIOS[0][1]} </partner_input>\n"
    (folder / "val.txt").write_text(scenario, encoding="utf-8", newline="\n")


def deals(dice: Dice) -> list[str]:
    """Lines of Deal or No Deal, one or both sides of a dialogue, some of which contradict themselves."""
    lines = []
    for i in range(60):
        own, other = dice.of(SCENARIOS)
        talk = [(dice.below(2), dice.of(SAID)) for _ in range(dice.below(4))]
        pick = dice.of(PICKS)
        for side, (mine, yours) in enumerate(((own, other), (other, own))[: 1 + dice.below(2)]):
            values = [int(x) for x in mine.split()]
            items = [int(part[-1]) for part in pick.split()] if pick.startswith("item") else []
            worth = sum(v * n for v, n in zip(values[1::2], items, strict=True)) if items else pick
            said = "".join(f"{('YOU', 'THEM')[who ^ side]}: {text} <eos> " for who, text in talk)
            closer = ("YOU", "THEM")[(i + side) % 2]
            worth = 7 if dice.chance(0.1) else worth
            flag = dice.of(("agree", "agree", "disagree"))
            lines.append(f"{mine} {said}{closer}: <selection> {pick} <eos> reward={worth} {flag} {yours}")
    return lines


def tokenizers(folder: Path) -> None:
    """Tokenizers of strangers, saved beside the logs."""
    plain = others.stranger(None, ["<|endoftext|>"], eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    made = {"chatml": others.chatml(), "llama3": others.llama3(), "folding": others.folding(), "plain": plain}
    for name, tokenizer in (made | {"sentencepiece": others.sentencepiece()}).items():
        others.saved(tokenizer, folder / name)


CHAT = "chat --input log.jsonl more.jsonl"
BUILDS = {
    "word": f"{CHAT} --tokenizer word --validation 0.2 --max-length 60 --overlong front --action-token yes no",
    "word, utterances": f"{CHAT} --tokenizer word:60 --step utterance --validation held.jsonl",
    "byte": f"{CHAT} --tokenizer byte --max-length 200 --overlong tail --seed 3",
    "byte, utterances": f"{CHAT} --tokenizer byte --step utterance --max-length 300 --validation held.jsonl",
    "bpe": f"{CHAT} --tokenizer bpe:300 --validation held.jsonl",
    "bpe, the other role": f"{CHAT} --tokenizer bpe:400 --step utterance --agent-role user --validation 0.5",
    "plain": f"{CHAT} --tokenizer plain --action-token yes --validation 0.1",
    "chatml": f"{CHAT} --tokenizer chatml --max-length 150 --overlong tail --action-token yes --validation 0.2",
    "chatml, utterances": f"{CHAT} --tokenizer chatml --step utterance --max-length 99 --overlong front",
    "llama3": f"{CHAT} --tokenizer llama3 --validation held.jsonl",
    "folding": f"{CHAT} --tokenizer folding --step utterance",
    "sentencepiece": f"{CHAT} --tokenizer sentencepiece",
    "deal": "deal_or_no_deal --input deal.txt --tokenizer word --validation val.txt",
    "deal, bpe": "deal_or_no_deal --input deal.txt --tokenizer bpe:300 --step utterance --validation 0.3",
    "maze": "maze --dialogues 40 --tokenizer word --validation 0.2 --seed 5",
}
FILES = (
    "log.jsonl",
    "more.jsonl",
    "held.jsonl",
    "deal.txt",
    "val.txt",
    "chatml",
    "llama3",
    "folding",
    "sentencepiece",
    "plain",
)


def run(name: str, logs: Path, output: Path, *more: str) -> dict[str, Any]:
    """Build one of BUILDS and return what a reader sees of it."""
    words = [str(logs / word) if word in FILES else word for word in BUILDS[name].split()]
    assert main([*words, "--output", str(output), "--max-reject-rate", "1", *more]) == 0
    return seen(output)


def seen(folder: Path) -> dict[str, Any]:
    """Rows and rejects of a dataset, and the digests of its rows, borders, rejects and statistics."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {"statistics": manifest["statistics"], "rejected": (folder / "rejected.jsonl").read_text()}
    for path in sorted(folder.glob("*/*.arrow")):
        with pa.ipc.open_stream(str(path)) as reader:
            found[path.relative_to(folder).as_posix()] = [batch.to_pylist() for batch in reader]
    counts = {"rows": manifest["statistics"]["rows_out"], "faults": manifest["statistics"]["rejected"]}
    digests = {
        key: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest() for key, value in found.items()
    }
    return counts | digests


def rewrite() -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        for key, value in LIMITS.items():
            patch.setattr(chunks, key, value)
        write_logs(Path(name))
        tokenizers(Path(name))
        found = {build: run(build, Path(name), Path(name) / f"out{i}") for i, build in enumerate(BUILDS)}
    STORED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    rewrite()
