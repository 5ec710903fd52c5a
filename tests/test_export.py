"""The exported actor is a plain language model of transformers, with its tokenizer beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, LlamaForCausalLM

from datasets_prep import tokenizer as tk
from datasets_prep.encode import Encoder
from ilql.build import ModelConfig, build
from ilql.decode import load
from ilql.export import export, main
from ilql.quiet import quiet
from ilql.types import InputError, Turn


def saved(run: Path, architecture: str = "gpt2") -> Path:
    encoder = Encoder(tk.train("byte", []))
    model = build(
        ModelConfig(architecture=architecture, layers=2, width=16, heads=2, context=64),
        vocab_size=encoder.vocab_size,
        bos_id=encoder.bos_id,
        pad_id=encoder.pad_id,
        end_ids=encoder.end_ids,
    )
    with quiet():
        model.save_pretrained(run / "model")
    encoder.tokenizer.save_pretrained(run / "model")
    return run


@pytest.mark.parametrize(("architecture", "kind"), [("gpt2", GPT2LMHeadModel), ("llama", LlamaForCausalLM)])
def test_the_actor_is_exported_as_a_plain_language_model(tmp_path, architecture, kind):
    run = saved(tmp_path / "run", architecture)
    out = export(run, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(out).eval()
    assert type(plain) is kind
    assert plain.config.model_type == architecture
    model, encoder = load(run)
    ids = torch.tensor([encoder.state([Turn("user", "hi")])[0]])
    assert torch.equal(plain(input_ids=ids).logits, model(input_ids=ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(out)
    messages = [{"role": "user", "content": "hi"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert torch.equal(prompt["input_ids"], ids)
    options = {"do_sample": False, "max_new_tokens": 6}
    assert torch.equal(plain.generate(**prompt, **options), model.generate(**prompt, **options))
    assert plain.generation_config.eos_token_id == encoder.end_ids
    assert Encoder.from_folder(out).end_ids == encoder.end_ids


def test_the_export_needs_nothing_of_ours(tmp_path):
    out = export(saved(tmp_path / "run"), tmp_path / "out")
    code = (
        "import sys; from transformers import AutoModelForCausalLM as A; "
        f"A.from_pretrained({str(out)!r}); assert 'ilql' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


def test_the_command(tmp_path, capsys):
    run = saved(tmp_path / "run")
    assert main([str(run), str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "the actor as a plain language model" in said.out
    assert said.err == ""
    assert main([str(run), str(tmp_path / "out")]) == 2
    assert main([str(tmp_path / "none"), str(tmp_path / "other")]) == 2
    said = capsys.readouterr()
    assert [line.startswith("error: ") for line in said.err.splitlines()] == [True, True]
    assert "exists; name a new folder" in said.err
    assert not (tmp_path / "other").exists()


def test_nothing_is_overwritten(tmp_path):
    run = saved(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for taken in ("file", "full"):
        with pytest.raises(InputError, match="exists"):
            export(run, tmp_path / taken)
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert (export(run, tmp_path / "empty") / "config.json").is_file()
