"""Tokenizers: trained on the corpus (`word`, `byte`, `bpe:SIZE`), or anyone's from a folder or the hub.

Decision: all that the encoder must know of a tokenizer is stored inside its own files (`turn_format`, `action_tokens`
in tokenizer_config.json), so `AutoTokenizer.from_pretrained(folder)` alone brings it back. Code that a tokenizer's
repository ships is never run.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from datasets_prep import stranger
from ilql.types import InputError

if TYPE_CHECKING:  # importing it takes seconds, which a worker that only writes tokens does not have to wait
    from transformers import PreTrainedTokenizerFast

BOS, PAD, UNK, END = "<|bos|>", "<|pad|>", "<|unk|>", "<|end|>"
ROLES = ("system", "user", "assistant", "tool")
MARKS = {role: f"<|{role}|>" for role in ROLES}
TURN_FORMAT = "ilql"  # the value of `turn_format`: turns are written as mark, content, END

# Words are letters and digits, joined inside by ' - _ =, with the space before them; <tag>s are words too. Everything
# else is punctuation or white space, so every text is covered and joins back to itself.
WORDS = r" ?<\w+>| ?[\p{L}\p{N}]+(?:[’'=_-][\p{L}\p{N}]+)*| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# The same tokens as `Encoder` for ordinary text, so that `apply_chat_template` and a server work too.
TEMPLATE = (
    "{{ bos_token }}"
    "{% if tools %}{{ '<|system|>' + tools | tojson(separators=(',', ':')) + '<|end|>' }}{% endif %}"
    "{% for message in messages %}"
    "{% set text = message['content'] or '' %}"
    "{% if message['tool_calls'] %}"
    "{% set text = text + ('\\n' if text else '') + message['tool_calls'] | tojson(separators=(',', ':')) %}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ text + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ text + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def is_trained_kind(name: str) -> bool:
    """Whether a `--tokenizer` names a kind to train (`word`, `byte`, `bpe:SIZE`), not a folder or hub name."""
    return re.fullmatch(r"(word|byte|bpe)(:.*)?", name) is not None


def train(kind: str, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train `word[:SIZE]`, `byte` or `bpe:SIZE` on texts (the contents of turns); the same texts give the same files.

    SIZE counts the special tokens. Raises InputError for a kind or size that cannot be.
    """
    name, colon, number = kind.partition(":")
    size = int(number) if number.isascii() and number.isdigit() else None
    if (colon and size is None) or (name == "bpe" and size is None) or (name == "byte" and colon):
        raise InputError(f"--tokenizer {kind!r} is not word, word:SIZE, byte or bpe:SIZE, for example bpe:8192")
    specials = [BOS, PAD, *([UNK] if name == "word" else []), END, *MARKS.values()]
    least = len(specials) + (256 if name == "bpe" else 1)
    if size is not None and not least <= size < 2**31:
        raise InputError(
            f"--tokenizer {kind}: SIZE must be at least {least}, which the special and base tokens need, and below 2^31"
        )
    makers = {"word": _word, "byte": _byte, "bpe": _bpe}
    if name not in makers:
        raise InputError(f"--tokenizer {kind!r} is not word, word:SIZE, byte or bpe:SIZE")
    from transformers import PreTrainedTokenizerFast

    backend = makers[name](texts, specials, size)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNK if name == "word" else None,
        additional_special_tokens=list(MARKS.values()),
        clean_up_tokenization_spaces=False,
        turn_format=TURN_FORMAT,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _word(texts: Iterable[str], specials: list[str], size: int | None) -> Tokenizer:
    """Whole words. A space before each text makes a first word the same as one inside; decoding takes it off again."""
    backend = Tokenizer(models.WordLevel(unk_token=UNK))
    backend.normalizer = normalizers.Prepend(" ")
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "isolated")
    backend.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.WordLevelTrainer(vocab_size=size or 2**31, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return backend


def _byte(texts: Iterable[str], specials: list[str], size: int | None) -> Tokenizer:
    """The 256 bytes in order after the special tokens, no merges; nothing is learned from the texts."""
    vocabulary = {token: i for i, token in enumerate([*specials, *_byte_letters()])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _bpe(texts: Iterable[str], specials: list[str], size: int | None) -> Tokenizer:
    """Byte-level byte-pair encoding: no text is unknown."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size or 0,
        special_tokens=specials,
        initial_alphabet=_byte_letters(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _byte_letters() -> list[str]:
    """The letter that stands for each byte 0..255 in a byte-level vocabulary: itself where it prints, else 256 + n."""
    printing = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]


def load(name: str) -> Any:
    """The tokenizer of a local folder or a hub name.

    One without a chat template gets our turn marks as added special tokens, so a plain language model can be used; its
    trunk is then resized to the larger vocabulary. Raises InputError where it cannot be loaded.
    """
    from transformers import AutoTokenizer

    stranger.check(Path(name) / "tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except BaseException as error:  # tokenizers raises Exception itself, and where it panics not even that
        kind = "folder" if Path(name).exists() else "local folder or a tokenizer on the hub that can be reached"
        raise InputError(f"--tokenizer {name!r} is no {kind} with a loadable tokenizer ({_reason(error)})") from None
    if tokenizer.init_kwargs.pop("auto_map", None):
        said = "tokenizer_config.json names code of its own (auto_map), which is never run"
        warnings.warn(f"{name}: {said}", stacklevel=2)
    if not getattr(tokenizer, "is_fast", False) or not hasattr(tokenizer, "backend_tokenizer"):
        raise InputError(f"--tokenizer {name!r} has no tokenizer.json (a `tokenizers` backend), which is needed here")
    if len(tokenizer) == 0:
        raise InputError(f"--tokenizer {name!r} has an empty vocabulary")
    for how in ("is_local", "local_files_only"):  # how it was loaded is no part of it: saved again, the same bytes
        tokenizer.init_kwargs.pop(how, None)
    if turn_format(tokenizer) != TURN_FORMAT and not tokenizer.chat_template:
        _adopt(tokenizer)
    _refuse_halves(tokenizer, name)
    return tokenizer


def _refuse_halves(tokenizer: Any, name: str) -> None:
    """InputError for a tokenizer that says of itself what it does not hold, or that cannot write every text."""
    actions = tokenizer.init_kwargs.get("action_tokens") or {}
    if not isinstance(actions, dict) or not all(isinstance(text, str) for pair in actions.items() for text in pair):
        raise InputError(f"--tokenizer {name!r}: its action_tokens are no texts; build the dataset again")
    backend = tokenizer.backend_tokenizer
    needed = [*actions.values(), *([END, *MARKS.values()] if turn_format(tokenizer) == TURN_FORMAT else [])]
    missing = next((token for token in needed if backend.token_to_id(token) is None), None)
    if missing is None and turn_format(tokenizer) == TURN_FORMAT and tokenizer.bos_token_id is None:
        missing = "bos_token"
    if missing is not None:
        raise InputError(f"--tokenizer {name!r} has no token {missing!r}, which its config names; copy it again")
    try:
        backend.encode("a \N{SNOWMAN}\U000f1234", add_special_tokens=False)
    except BaseException as error:
        raise InputError(f"--tokenizer {name!r} cannot write every text ({_reason(error)}); use another") from None


def _reason(error: BaseException) -> str:
    """The first line of what a library says against a file; raises what is no word of a library."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _adopt(tokenizer: Any) -> None:
    """Give a tokenizer without a chat template our turn marks."""
    backend = tokenizer.backend_tokenizer
    wanted = [END, *MARKS.values(), *([] if tokenizer.pad_token else [PAD])]
    if tokenizer.bos_token is None and tokenizer.eos_token is None:
        wanted.append(BOS)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in wanted])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = PAD
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token or BOS
    tokenizer.eos_token = END
    tokenizer.init_kwargs["turn_format"] = TURN_FORMAT
    tokenizer.chat_template = TEMPLATE


def turn_format(tokenizer: Any) -> str | None:
    """`TURN_FORMAT` where the tokenizer writes turns with our marks; None where its chat template does."""
    return tokenizer.init_kwargs.get("turn_format")


def add_action_tokens(tokenizer: Any, texts: Sequence[str]) -> None:
    """Make each listed agent turn, its end included, one new special token, remembered in the tokenizer's own files.

    The token's string is the text; where the vocabulary has that string already (the word "yes" of a large model, which
    may go on) it is the text with the tokenizer's end token behind it. Raises InputError for an empty or repeated text.
    """
    strings: dict[str, str] = dict(tokenizer.init_kwargs.get("action_tokens") or {})
    for text in texts:
        if not text.strip():
            raise InputError("--action-token: an empty text cannot be an action")
        if text.strip() in {known.strip() for known in strings}:
            raise InputError(f"--action-token {text!r} is given twice; leave one out")
        backend, ending = tokenizer.backend_tokenizer, tokenizer.eos_token or END
        string = next((s for s in (text, text + ending) if backend.token_to_id(s) is None), None)
        if string is None:
            raise InputError(f"--action-token {text!r} is in the tokenizer's vocabulary already; leave it out")
        backend.add_special_tokens([AddedToken(string, special=True, normalized=False)])
        strings[text] = string
    if strings:
        tokenizer.init_kwargs["action_tokens"] = strings


def add_words(tokenizer: Any, texts: Sequence[str]) -> None:
    """Make each text one ordinary token wherever it stands, white space included; decoding gives the text back."""
    words = [AddedToken(text, special=False, normalized=False) for text in texts]
    tokenizer.backend_tokenizer.add_tokens(words)


def action_tokens(tokenizer: Any) -> dict[str, int]:
    """Text -> id of the action tokens that the tokenizer's files remember."""
    strings = tokenizer.init_kwargs.get("action_tokens") or {}
    return {text: tokenizer.backend_tokenizer.token_to_id(string) for text, string in strings.items()}


def backend_without(tokenizer: Any, ids: Iterable[int]) -> str:
    """The JSON text of a backend that does not know some added tokens, so that texts never turn into them."""
    hidden = set(ids)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] not in hidden]
    state["truncation"] = state["padding"] = None  # nothing is ever cut or padded behind the encoder's back
    return json.dumps(state)
