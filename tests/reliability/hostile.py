"""Files that would run code, leave their folder or fill the memory. Decision: each is made and then opened by the
function that opens such a file for a user; it has to be refused by InputError, or, where that is promised, read with a
warning; and a file that any code of theirs would have written, the canary, must not be there.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from datasets_prep import chat, tokenizer
from datasets_prep.features import Features
from ilql import checkpoint, schema
from ilql.build import ModelConfig, build
from ilql.config import load_config
from ilql.decode import load
from ilql.rows import Rows
from ilql.sealed import Damaged
from ilql.types import InputError
from tests.tiny import dataset

CODE = "import pathlib; pathlib.Path({!r}).write_text('x')\n"
GOOD = b'{"messages": [{"role": "assistant", "content": "yo"}]}\n'
Case = Callable[["Place"], Any]


class Runs:
    """What a pickle runs when it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


class Place:
    """A folder of one's own, with copies of a dataset and of a run."""

    def __init__(self, folder: Path, data: Path, run: Path) -> None:
        folder.mkdir()
        self.folder, self.canary = folder, folder / "canary"
        self.data, self.run = folder / "data", folder / "run"
        shutil.copytree(data, self.data)
        shutil.copytree(run, self.run)
        self.model = self.run / "model"
        self.pickle = pickle.dumps(Runs(self.canary))

    def write(self, name: str, data: bytes | str) -> Path:
        path = self.folder / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def edit(self, path: Path, **changes: Any) -> Path:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return path

    def reseal(self, files: dict[str, Any] | None = None) -> Path:
        """The dataset's manifest, written as we would."""
        path = self.data / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["files"] |= files or {}
        for name, entry in manifest["files"].items():
            if (self.data / name).is_file():
                entry["sha256"] = schema.sha256(self.data / name)
        path.write_text(schema.sealed(manifest))
        return self.data

    def pretrained(self, folder: Path | None = None) -> Any:
        cfg = ModelConfig(pretrained=str(folder or self.model))
        return build(cfg, vocab_size=8, bos_id=0, pad_id=1, end_ids=[2], critic=None)

    def log(self, data: bytes) -> list[Any]:
        return list(chat.episodes([self.write("log", data)]))

    def config(self, text: str) -> Any:
        return load_config(["--config", str(self.write("c.yaml", text))])


def _pickled_weights(place: Place) -> Any:
    (place.model / "manifest.json").unlink(missing_ok=True)
    (place.model / "model.safetensors").unlink()
    (place.model / "pytorch_model.bin").write_bytes(place.pickle)
    return place.pretrained()


def _weights_of_torch(place: Place) -> Any:
    """Whole ones, which a reader of pickles would read."""
    (place.model / "manifest.json").unlink(missing_ok=True)
    torch.save(load_file(place.model / "model.safetensors"), place.model / "pytorch_model.bin")
    (place.model / "model.safetensors").unlink()
    return place.pretrained()


def _pickle_named_safetensors(place: Place) -> Any:
    (place.model / "manifest.json").unlink(missing_ok=True)
    (place.model / "model.safetensors").write_bytes(place.pickle)
    return load(place.run)


def _shards_elsewhere(place: Place) -> Any:
    (place.model / "manifest.json").unlink(missing_ok=True)
    (place.model / "model.safetensors").rename(place.folder / "elsewhere.bin")
    (place.folder / "elsewhere.bin").write_bytes(place.pickle)
    index = {"metadata": {}, "weight_map": {"x": "../../elsewhere.bin"}}
    (place.model / "model.safetensors.index.json").write_text(json.dumps(index))
    return load(place.run)


def _code_of_a_model(place: Place, kind: str) -> Any:
    (place.model / "manifest.json").unlink(missing_ok=True)
    (place.model / "code.py").write_text(CODE.format(str(place.canary)))
    names = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    place.edit(place.model / "config.json", auto_map=names, **({"model_type": kind} if kind else {}))
    return load(place.run)


def _config_of_a_model(place: Place, **changes: Any) -> Any:
    """Whoever reads it: to decode, and to train from."""
    (place.model / "manifest.json").unlink(missing_ok=True)
    place.edit(place.model / "config.json", **changes)
    with contextlib.suppress(InputError):
        place.pretrained()
        raise AssertionError(f"trained from {changes}")
    return load(place.run)


def _code_of_a_tokenizer(place: Place, kind: str) -> Any:
    folder = place.data / "tokenizer"
    (folder / "code.py").write_text(CODE.format(str(place.canary)))
    names = {"AutoTokenizer": ["code.T", "code.T"]}
    place.edit(folder / "tokenizer_config.json", auto_map=names, **({"tokenizer_class": kind} if kind else {}))
    if kind:
        (folder / "tokenizer.json").unlink()
    return tokenizer.load(str(folder))


def _pattern(place: Place) -> Any:
    path = place.data / "tokenizer" / "tokenizer.json"
    split = {"type": "Split", "pattern": {"Regex": "(a{1000}){1000}" * 10_000}, "behavior": "Isolated", "invert": False}
    place.edit(path, pre_tokenizer=split)
    return tokenizer.load(str(path.parent))


def _backend(place: Place, how: Callable[[dict[str, Any]], object]) -> Any:
    path = place.data / "tokenizer" / "tokenizer.json"
    found = json.loads(path.read_text())
    how(found)
    path.write_text(json.dumps(found))
    return tokenizer.load(str(path.parent))


def _replacing(pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": "x"}


def _config_of_a_tokenizer(place: Place, **changes: Any) -> Any:
    return tokenizer.load(str(place.edit(place.data / "tokenizer" / "tokenizer_config.json", **changes).parent))


def _grown(found: dict[str, Any]) -> None:
    part = _replacing(".") | {"content": "x" * 1000}
    found["normalizer"] = {"type": "Sequence", "normalizers": [part] * 4}


def _table(found: dict[str, Any]) -> None:
    found["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}


def _padded(found: dict[str, Any]) -> None:
    names = {"pad_id": 0, "pad_type_id": 0, "pad_token": "x", "pad_to_multiple_of": None, "direction": "Right"}
    found["padding"] = {"strategy": {"Fixed": 10**12}, **names}


def _behind_another(place: Place) -> Any:
    path = place.data / "tokenizer" / "tokenizer.json"
    long = json.dumps({"type": "Split", "pattern": {"Regex": "(a{1000}){1000}" * 10_000}, "behavior": "Isolated"})
    path.write_text(path.read_text().replace("{", f'{{"pre_tokenizer": {long},', 1))
    return tokenizer.load(str(path.parent))


def _many(found: dict[str, Any]) -> None:
    found["added_tokens"] += [{**found["added_tokens"][0], "id": 300 + k, "content": f"<{k}>"} for k in range(10**5)]


def _checkpoint(place: Place, change: Callable[[Path], object]) -> Any:
    folder = next((place.run / "checkpoints").iterdir())
    change(folder)
    return checkpoint.load(folder)


def _named_outside(folder: Path) -> None:
    from ilql import sealed

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../config.yaml"] = next(iter(manifest["files"].values()))
    (folder / "manifest.json").write_text(sealed.written(manifest))


def _linked(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere")


def _linked_data(place: Place) -> Any:
    path = place.data / "train" / "data-00000.arrow"
    path.rename(place.folder / "elsewhere")
    path.symlink_to(place.folder / "elsewhere")
    return Rows(place.reseal())


def _arrow_bomb(place: Place) -> Any:
    path = place.data / "train" / "data-00000.arrow"
    with pa.ipc.open_stream(path.read_bytes()) as stream:  # not mapped, since it is written over
        table = stream.read_all()
    big = table.set_column(table.schema.get_field_index("meta"), "meta", pa.array(["x" * 2**22] * len(table)))
    with pa.ipc.new_stream(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_table(big.cast(table.schema))
    return Rows(place.reseal())


def _parquet_bomb(place: Place) -> Any:
    texts = pa.array(["x" * 2**20] * 80)
    table = pa.table({"prompt": texts, "completion": texts})
    pq.write_table(table, place.folder / "log", use_dictionary=False, compression="zstd")
    return list(chat.episodes([place.folder / "log"]))


def _archive(place: Place, kind: str) -> Any:
    data, name = io.BytesIO(), "../canary"
    if kind == "zip":
        with zipfile.ZipFile(data, "w") as packed:
            packed.writestr(name, GOOD)
    else:
        with tarfile.open(fileobj=data, mode="w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.size = len(GOOD)
            archive.addfile(member, io.BytesIO(GOOD))
    return _rejected(place.log(data.getvalue()))


def _rejected(found: list[Any]) -> None:
    """Lines that are rejected are refused by the build, by whoever gave them."""
    if all(isinstance(item, Exception) for item in found):
        raise InputError(f"{len(found)} rejected")


def _pickled_array(place: Place) -> Any:
    np.save(place.folder / "f.npy", np.array([Runs(place.canary)], object), allow_pickle=True)
    return Features(place.folder / "f.npy", "image_id")


def _doubled(k: int) -> str:
    return f"a{k + 1}: &a{k + 1} [*a{k}, *a{k}]\n"


NAMES = ("../x.arrow", "/etc/passwd.arrow", "train/../../x.arrow")
ENTRY = {"sha256": "0" * 64, "rows": 1}
REFUSED: dict[str, Case] = {
    "pickled weights": _pickled_weights,
    "weights in torch's own form": _weights_of_torch,
    "a pickle in the place of safetensors": _pickle_named_safetensors,
    "an index of shards that names a file elsewhere": _shards_elsewhere,
    "a pickle as a dataset's log": lambda p: _rejected(p.log(p.pickle)),
    "a pickled array of features": _pickled_array,
    "attention by a kernel on the hub": lambda p: _config_of_a_model(p, _attn_implementation="somebody/kernel"),
    "a kernel of a part of the model": lambda p: _config_of_a_model(p, attn_implementation={"text_config": "a/b"}),
    "weights that are quantized by others": lambda p: _config_of_a_model(p, quantization_config=[1]),
    "a model of no family": lambda p: _config_of_a_model(p, model_type="gpt2"),
    "a model of a family that is a list": lambda p: _config_of_a_model(p, text_config=[1]),
    "a config of a model that is all code": lambda p: _code_of_a_model(p, "of_its_own"),
    "a tokenizer that is all code": lambda p: _code_of_a_tokenizer(p, "OfItsOwn"),
    "a tokenizer's pattern of 150,000 characters": _pattern,
    "one behind another of its name": _behind_another,
    "a tokenizer's pattern that is none": lambda p: _backend(p, lambda f: f.update(normalizer=_replacing("("))),
    "a tokenizer's ids of 2^31": lambda p: _backend(p, lambda f: f["model"]["vocab"].update(a=2**31)),
    "a tokenizer's normaliser that makes 10^12 characters of one": lambda p: _backend(p, _grown),
    "a tokenizer's table that breaks off": lambda p: _backend(p, _table),
    "a tokenizer that fills up to 10^12 tokens": lambda p: _backend(p, _padded),
    "a tokenizer of 100,000 added tokens": lambda p: _backend(p, _many),
    "a tokenizer without its marks": lambda p: _backend(p, lambda f: f.update(added_tokens=[], model={})),
    "action tokens that are no texts": lambda p: _config_of_a_tokenizer(p, action_tokens={"a": 1}),
    "a beginning that is none": lambda p: _config_of_a_tokenizer(p, bos_token=None),
    **{f"a manifest that names {n}": lambda p, n=n: Rows(p.reseal({n: dict(ENTRY)})) for n in NAMES},
    "a checkpoint that names a file elsewhere": lambda p: _checkpoint(p, _named_outside),
    "a checkpoint with a link": lambda p: _checkpoint(p, _linked),
    "a dataset with a link": _linked_data,
    "a compressed Arrow file": _arrow_bomb,
    "a Parquet file that unpacks to 200 times its size": _parquet_bomb,
    "a gzip file that unpacks to 1,000 times its size": lambda p: p.log(gzip.compress(GOOD + b" " * 2**27)),
    "a zip archive with ../canary": lambda p: _archive(p, "zip"),
    "a tar archive with ../canary": lambda p: _archive(p, "tar"),
    "a YAML tag that calls": lambda p: p.config(f"!!python/object/apply:os.system ['touch {p.canary}']"),
    "a YAML tag of a value": lambda p: p.config(f"steps: !!python/object/apply:os.system ['touch {p.canary}']"),
    "YAML aliases of aliases": lambda p: p.config("a0: &a0 [x, x]\n" + "".join(map(_doubled, range(20)))),
}
WARNED: dict[str, Case] = {
    "auto_map in a model's config": lambda p: _code_of_a_model(p, ""),
    "auto_map in a tokenizer's config": lambda p: _code_of_a_tokenizer(p, ""),
}


def hostile(folder: Path, run: Path) -> dict[str, Any]:
    """All of them; raises AssertionError for the first that is not refused, or that left its canary."""
    data = dataset(folder / "whole")
    for k, (name, case) in enumerate({**REFUSED, **WARNED}.items()):
        place = Place(folder / f"case{k}", data, run)
        said = ""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                case(place)
            except (InputError, Damaged) as error:
                said = str(error)
        warned = " ".join(str(one.message) for one in caught)
        assert said if name in REFUSED else "auto_map" in warned, f"{name}: {said or warned or 'read'}"
        assert "\n" not in said, f"{name}: {said}"
        assert not place.canary.exists(), f"{name}: its code ran"
        shutil.rmtree(place.folder)
    return {"refused": len(REFUSED), "read with a warning": len(WARNED)}
