"""Texts written piece by piece have the tokens that the tokenizer itself gives them."""

import re
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from datasets_prep import pieces
from datasets_prep import tokenizer as tk

TEXTS = ["hello there you two , how're you? it's a <tag> x=1 re-use  of 'em\n\n\tyes", "don't we'll they've I'd I'm"]
ODD = ["naïve", "a\u00a0b", "x\u001cy", "\x0b", "日本", "a\u2003b", "\x7f"]


def backend(kind: str) -> Tokenizer:
    made = tk.train(kind, TEXTS).backend_tokenizer
    made.encode_special_tokens = True
    return made


BACKENDS = {kind: backend(kind) for kind in ("word", "word:20", "bpe:300", "bpe:340")}
SPLITTERS = {kind: pieces.splitter(made) for kind, made in BACKENDS.items()}
WORDS = [
    "hello",
    "there",
    "'s",
    "'ll",
    "<tag>",
    "<",
    ">",
    "x=1",
    "re-use",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "'",
    "_",
    "9",
]
texts = st.lists(st.one_of(st.sampled_from(WORDS), st.text(st.characters(max_codepoint=127), max_size=5))).map("".join)


@pytest.mark.parametrize("kind", BACKENDS)
@settings(max_examples=400)
@given(found=st.lists(texts, min_size=1, max_size=5))
def test_any_text_has_the_tokenizers_tokens(kind: str, found: list[str]) -> None:
    split, made = SPLITTERS[kind], BACKENDS[kind]
    assert split is not None
    for text, got in split(found).items():
        assert got == array("i", made.encode(text, add_special_tokens=False).ids).tobytes()
    assert set(split(found)) == {text for text in found if text and not re.search(r"[^\t\n\r -~]", text)}


def test_texts_of_other_characters_are_left_to_the_tokenizer() -> None:
    split = SPLITTERS["bpe:300"]
    assert split is not None
    assert set(split([*ODD, "", "plain"])) == {"plain"}


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MEMO", 8)
    split, made = pieces.splitter(BACKENDS["bpe:300"]), BACKENDS["bpe:300"]
    assert split is not None
    for i in range(30):
        said = [f"word{k} n{i}" for k in range(i % 5)] + ["hello there"]
        got = split(said)
        assert got == {text: array("i", made.encode(text).ids).tobytes() for text in said}
        assert len(split._known) <= 8 or i % 5 > 2


def test_tokenizers_that_split_in_other_ways_are_not_taken_apart() -> None:
    assert pieces.splitter(backend("byte")) is None
    with_a_space = backend("bpe:300")
    with_a_space.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    lower = backend("bpe:300")
    lower.normalizer = normalizers.Lowercase()
    words = backend("word")
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+"), "isolated")
    bare = Tokenizer(models.BPE())
    added = backend("bpe:300")
    added.add_tokens([AddedToken("hello there", special=False)])
    dropping = backend("bpe:300")
    dropping.model.dropout = 0.5
    for made in (with_a_space, lower, words, bare, added, dropping):
        assert pieces.splitter(made) is None
