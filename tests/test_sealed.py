"""Models whose weights changed after they were written are not loaded; what people edit is theirs."""

import json
from pathlib import Path

import pytest

from ilql import decode, export, warmstart
from ilql.feed import read
from ilql.initial import make_model
from ilql.sealed import Damaged, check_weights, seal, verify
from ilql.trainer import train
from ilql.types import InputError
from tests.tiny import config, dataset


def test_every_file_is_sealed_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1")
    (tmp_path / "b.bin").write_text("2")
    seal(tmp_path)
    assert verify(tmp_path) == ["a.txt", "b.bin"]
    (tmp_path / "a.txt").write_text("3")
    assert verify(tmp_path, ".bin") == ["b.bin"]
    with pytest.raises(Damaged, match=r"a\.txt does not match its sha256"):
        verify(tmp_path)


def test_a_flipped_bit_in_a_models_weights_is_told_wherever_they_are_read(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    run = train(config(data, tmp_path / "run", steps=1))
    out = export.export(run, tmp_path / "out")
    for folder in (run / "model", out):
        assert "model.safetensors" in verify(folder)
    settings = json.loads((run / "model" / "generation_config.json").read_text())
    (run / "model" / "generation_config.json").write_text(json.dumps({**settings, "top_k": 5}))
    decode.load(run)
    for folder in (run / "model", out):
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(-100, 2)
            byte = file.read(1)[0]
            file.seek(-100, 2)
            file.write(bytes([byte ^ 1]))
    match = r"model is damaged: model\.safetensors does not match its sha256"
    with pytest.raises(InputError, match=match):
        decode.load(run)
    cfg = config(data, tmp_path / "next", steps=1)
    model = make_model(cfg, read(cfg))
    with pytest.raises(InputError, match=match):
        warmstart.load(model, run)
    pretrained = config(data, tmp_path / "next", steps=1, model={"pretrained": str(out)})
    with pytest.raises(InputError, match="out is damaged"):
        make_model(pretrained, read(pretrained))


@pytest.mark.parametrize(
    "named",
    [
        {"_attn_implementation": "somebody/kernel"},
        {"text_config": {"attn_implementation": "paged|somebody/kernel"}},
        {"attn_implementation": {"text_config": "somebody/kernel"}},
        {"experts_implementation": "somebody/kernel"},
    ],
)
def test_a_config_that_names_a_kernel_is_refused_before_anything_reads_it(tmp_path: Path, named: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps(named))
    with pytest.raises(InputError, match=r"config\.json: \w+ names code of its own, .*/kernel.*, which is never run"):
        check_weights(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_attn_implementation": "sdpa"}))
    check_weights(tmp_path)


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "x.bin", "a/../x.safetensors"])
def test_an_index_of_shards_names_none_but_those_of_its_folder(tmp_path: Path, name: str) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"names '.*', which is no .safetensors file of its folder"):
        check_weights(tmp_path)
