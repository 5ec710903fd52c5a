"""Texts of plain ASCII, piece by piece. Decision: a tokenizer that splits a text by a pattern and then writes every
piece by itself writes a piece the same wherever it stands, so each distinct piece is asked of it once. The patterns of
our own tokenizers are known here (that of `bpe` is GPT-2's), as they read for printable ASCII, tabs and line breaks, on
whose classes of characters all libraries agree; a text with any other character is left to the tokenizer.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterable
from itertools import chain

from tokenizers import Tokenizer

from datasets_prep.tokenizer import WORDS

MEMO, MEMO_CHARACTERS = 200_000, 16 * 2**20  # pieces remembered
SPACE = r"[ \t\n\r]+(?![^ \t\n\r])|[ \t\n\r]+"
BYTE_LEVEL = rf"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^ \t\n\rA-Za-z0-9]+|{SPACE}"
OUR_WORDS = rf" ?<[A-Za-z0-9_]+>| ?[A-Za-z0-9]+(?:['=_-][A-Za-z0-9]+)*| ?[^ \t\n\rA-Za-z0-9]+|{SPACE}"
_odd = re.compile(r"[^\t\n\r -~]").search


class Pieces:
    """The tokens of texts, as the bytes of int32, by their pieces.

    before: what the tokenizer puts before a text; ask: the tokens of pieces.
    """

    def __init__(self, pattern: str, before: str, ask: Callable[[list[str]], list[bytes]]) -> None:
        self._split, self._before, self._ask = re.compile(pattern).findall, before, ask
        self._known: dict[str, bytes] = {}
        self._characters = 0

    def __call__(self, texts: Iterable[str]) -> dict[str, bytes]:
        """Of those texts that can be split here."""
        pieces = {text: self._split(self._before + text) for text in texts if text and not _odd(text)}
        new = set(chain.from_iterable(pieces.values())).difference(self._known)
        self._characters += sum(map(len, new))
        if len(self._known) + len(new) > MEMO or self._characters > MEMO_CHARACTERS:
            new = set(chain.from_iterable(pieces.values()))
            self._known, self._characters = {}, sum(map(len, new))
        if new:
            asked = list(new)
            self._known |= zip(asked, self._ask(asked), strict=True)
        return {text: b"".join(map(self._known.__getitem__, parts)) for text, parts in pieces.items()}


def splitter(backend: Tokenizer) -> Pieces | None:
    """How a tokenizer splits texts, where that is known here. No text may become an added token."""
    state = json.loads(backend.to_str())
    split, model = state["pre_tokenizer"] or {}, state["model"]
    if not all(token["special"] for token in state["added_tokens"]):
        return None

    def of_bpe(parts: list[str]) -> list[bytes]:
        return [array("i", one.ids).tobytes() for one in backend.encode_batch_fast(parts, add_special_tokens=False)]

    def of_words(parts: list[str]) -> list[bytes]:
        unknown = model["vocab"][model["unk_token"]]
        return [array("i", [model["vocab"].get(part, unknown)]).tobytes() for part in parts]

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    if split | byte_level == split and model["type"] == "BPE" and not state["normalizer"] and not model["dropout"]:
        return Pieces(BYTE_LEVEL, "", of_bpe)
    words = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
    if split == words and model["type"] == "WordLevel" and state["normalizer"] == {"type": "Prepend", "prepend": " "}:
        return Pieces(OUR_WORDS, " ", of_words)
    return None
