"""Folders under digests. Decision: `manifest.json` is written last, holds size and sha256 of every file and a digest of
itself, and has one spelling only; so whatever bit of such a folder changes afterwards, it shows.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ilql.schema import LARGEST, sha256
from ilql.types import InputError

VERSION = 1
MANIFEST = "manifest.json"
NAME = re.compile(r"\w[\w.-]*")  # cannot lead out of the folder


class Damaged(Exception):
    """A folder that must not be loaded; the text says why."""


def seal(folder: Path) -> None:
    """Write the manifest of a folder's files, of which none lies deeper."""
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(written({"version": VERSION, "files": files}), encoding="utf-8")


def digest(manifest: Mapping[str, Any]) -> str:
    """Digest of a manifest without its own digest field."""
    rest = {k: v for k, v in manifest.items() if k != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def written(manifest: Mapping[str, Any]) -> str:
    """A manifest as the only text that `verify` takes for it, with its digest."""
    return json.dumps({**manifest, "digest": digest(manifest)}, indent=1) + "\n"


def unchanged(manifest: Mapping[str, Any], text: bytes) -> bool:
    """Whether a file's text is what `written` makes of the manifest that was read from it."""
    try:
        rest = {name: value for name, value in manifest.items() if name != "digest"}
        return text == written(rest).encode()
    except (ValueError, RecursionError):  # half of a character
        return False


def verify(folder: Path, kind: str = "", known: re.Pattern[str] = NAME) -> list[str]:
    """The names of a folder's files that end so, after every byte of them was checked. Raises Damaged with the reason,
    for a name that is not among the `known` too."""
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise Damaged(f"{MANIFEST} is missing")
    try:
        text = path.read_bytes()
        manifest = json.loads(text)
        if not unchanged(manifest, text):
            raise Damaged(f"{MANIFEST} does not match its own digest")
        if manifest["version"] != VERSION:
            raise Damaged(f"version {manifest['version']!r}, but this package reads version {VERSION}")
        files = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({type(error).__name__})") from None
    for name in files:
        if not known.fullmatch(name) or name == MANIFEST:
            raise Damaged(f"{MANIFEST} names a file {name!r} that is not part of the folder")
    found = [name for name in files if name.endswith(kind)]
    for name in found:
        size, wanted = files[name]
        file = folder / name
        if file.is_symlink() or not file.is_file():
            raise Damaged(f"{name} is missing")
        if file.stat().st_size != size:
            raise Damaged(f"{name} has {file.stat().st_size} bytes instead of {size}")
        if sha256(file) != wanted:
            raise Damaged(f"{name} does not match its sha256")
    return found


def check_weights(folder: Path) -> None:
    """Refuse a model's folder whose weights have changed since it was sealed. Configs and cards may be edited, and
    models that others have made have no seal. An index of shards may name none but safetensors of the same folder, and
    a config no kernels."""
    refuse_kernels(folder)
    for path in folder.glob("*.index.json"):
        try:
            shards = {str(name) for name in json.loads(path.read_bytes())["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(f"{path} is no index of weights; copy it again") from None
        for name in sorted(shards):
            if not NAME.fullmatch(name) or not name.endswith(".safetensors"):
                raise InputError(f"{path} names {name!r}, which is no .safetensors file of its folder")
    if not (folder / MANIFEST).is_file():
        return
    try:
        verify(folder, ".safetensors")
    except Damaged as reason:
        raise InputError(
            f"{folder} is damaged: {reason}; copy it again, or write it anew: train.py with --resume"
        ) from None


def refuse_kernels(folder: Path) -> None:
    """InputError where a model's config names code on the hub for its attention or experts (a kernel, `OWNER/NAME`):
    transformers would fetch and run it. Whatever else is wrong with a config is said by what reads it."""
    path = folder / "config.json"
    try:
        waiting = [json.loads(path.read_bytes())] if path.is_file() and path.stat().st_size <= LARGEST else []
    except (ValueError, RecursionError):
        return
    while waiting:
        part = waiting.pop()
        inner = part if isinstance(part, dict) else dict(enumerate(part)) if isinstance(part, list) else {}
        for name, value in inner.items():
            if str(name).endswith("_implementation") and "/" in json.dumps(value):
                raise InputError(f"{path}: {name} names code of its own, {value!r}, which is never run; take it out")
        waiting += inner.values()


@contextmanager
def reading(what: str, mend: str = "") -> Iterator[None]:
    """Whatever the libraries say against a stranger's model or tokenizer is one sentence: `what` (reason) `mend`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of any kind: a config makes them divide by its zeros and look up its names
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{what} ({reason}){mend}") from None


def without_code(model: Any, name: object) -> None:
    """Say that a model's config names code of its own, which was not run, and forget it, so that what is saved from
    here on does not name it either."""
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "auto_map", None):
            warnings.warn(f"{name}: config.json names code of its own (auto_map), which is never run", stacklevel=3)
            del config.auto_map
