"""Tokenizers trained on a corpus: lossless, deterministic, and whole after a round trip through their files."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets_prep import tokenizer as tk
from datasets_prep.encode import Encoder
from ilql.schema import folder_sha256
from ilql.types import Episode, InputError, Turn
from tests.prep import tokenizers_for_tests as others

TEXTS = ["hello there , hello", "i'd like item0=3 <selection> books", "a well-known  gap", "line\nbreak é 東京!"]


def ids(tokenizer: Any, text: str) -> list[int]:
    encoder = Encoder(tokenizer)
    row = encoder.encode(Episode("x", [Turn("assistant", text)]), "utterance")
    return row["tokens"][row["start"][0] : -1]


@pytest.mark.parametrize("kind", ["word", "byte", "bpe:300"])
@pytest.mark.parametrize("text", [*TEXTS, "", "hello", "there hello", "books"])
def test_known_text_comes_back(kind: str, text: str) -> None:
    tokenizer = tk.train(kind, TEXTS)
    assert Encoder(tokenizer).text(ids(tokenizer, text)) == text


def test_a_word_is_the_same_at_the_start_and_inside() -> None:
    tokenizer = tk.train("word", TEXTS)
    assert ids(tokenizer, "hello there hello")[0] == ids(tokenizer, "hello there hello")[2]
    assert len(ids(tokenizer, "i'd like item0=3 <selection> well-known")) == 5


def test_unknown_words_are_unk_and_only_they() -> None:
    tokenizer = tk.train("word", TEXTS)
    assert ids(tokenizer, "hello zebra there")[1] == tokenizer.unk_token_id
    assert ids(tokenizer, "hello zebra there").count(tokenizer.unk_token_id) == 1
    assert tk.train("byte", []).unk_token_id is None


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=4))
def test_word_loses_nothing_that_it_was_trained_on(texts: list[str]) -> None:
    tokenizer = tk.train("word", texts)
    for text in texts:
        found = ids(tokenizer, text)
        assert tokenizer.unk_token_id not in found
        assert Encoder(tokenizer).text(found) == text


def test_byte_is_the_bytes_in_order() -> None:
    tokenizer = tk.train("byte", [])
    assert len(tokenizer) == 7 + 256
    assert ids(tokenizer, "é\x00a") == [7 + b for b in "é\x00a".encode()]


def test_word_with_a_size_keeps_the_commonest() -> None:
    tokenizer = tk.train("word:10", ["b a a", "c a b"])
    assert len(tokenizer) == 10
    assert tokenizer.unk_token_id not in ids(tokenizer, "a b")
    assert ids(tokenizer, "c") == [tokenizer.unk_token_id]


def test_bpe_merges_and_keeps_its_size() -> None:
    tokenizer = tk.train("bpe:280", ["hello hello hello there there"] * 5)
    assert len(tokenizer) <= 280
    assert len(ids(tokenizer, "hello")) < 5


@pytest.mark.parametrize("kind", ["word", "byte", "bpe:300"])
def test_the_same_texts_give_the_same_files(kind: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        tk.train(kind, iter(TEXTS * 20)).save_pretrained(tmp_path / name)
    assert folder_sha256(tmp_path / "a") == folder_sha256(tmp_path / "b")
    assert str(tmp_path) not in (tmp_path / "a/tokenizer_config.json").read_text()


@pytest.mark.parametrize("kind", ["word", "byte", "bpe:300"])
def test_the_files_alone_bring_it_back(kind: str, tmp_path: Path) -> None:
    tokenizer = tk.train(kind, TEXTS)
    tk.add_action_tokens(tokenizer, ["go up"])
    again = Encoder.from_folder(others.saved(tokenizer, tmp_path / "a"))
    episode = Episode("x", [Turn("user", TEXTS[1]), Turn("assistant", "go up"), Turn("assistant", TEXTS[0])])
    assert again.encode(episode, "token") == Encoder(tokenizer).encode(episode, "token")
    assert again.end_ids == Encoder(tokenizer).end_ids
    assert (again.bos_id, again.pad_id, again.vocab_size) == (0, 1, len(tokenizer))
    others.saved(again.tokenizer, tmp_path / "b")
    assert folder_sha256(tmp_path / "a") == folder_sha256(tmp_path / "b")


@pytest.mark.parametrize("kind", ["word", "byte", "bpe:300"])
def test_an_added_word_is_one_token_wherever_it_stands_and_comes_back(kind: str, tmp_path: Path) -> None:
    tokenizer = tk.train(kind, TEXTS)
    tk.add_words(tokenizer, ["g b\n", "over there", "one"])
    tk.add_action_tokens(tokenizer, ["go up"])
    for one in (tokenizer, tk.load(others.saved(tokenizer, tmp_path / "a"))):
        encoder = Encoder(one)
        for text in ("g b\n", "over there", "one"):
            found = ids(one, text)
            assert len(found) == 1
            assert encoder.text(found) == text
        assert ids(one, "hello over there")[-1:] == ids(one, "over there")
        assert encoder.text(ids(one, "hello over there")) == "hello over there"
        assert encoder.state([Turn("user", "g b\n")])[0][2:-2] == ids(one, "g b\n")  # mark, word, end, header


@pytest.mark.parametrize("kind", ["bpe", "bpe:", "bpe:x", "bpe:100", "word:-1", "word:3", "byte:9", "bpe:²"])
def test_impossible_kinds(kind: str) -> None:
    assert tk.is_trained_kind(kind)
    with pytest.raises(InputError, match=f"--tokenizer '?{kind}"):
        tk.train(kind, TEXTS)


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    for name in (str(tmp_path), "nobody/no-such-tokenizer"):
        with pytest.raises(InputError, match="--tokenizer"):
            tk.load(name)
