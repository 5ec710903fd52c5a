"""Rows with their past: as the trunk gives them, whatever the batch, and after rows have left."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ilql.kv import LeanRows, TrunkRows
from ilql.lean import lean
from ilql.model import ILQLModel
from tests.test_lean import make

PROMPTS = [[0, 5, 6, 7, 8], [0, 9], [0, 4, 11, 3], [0, 9], [0]]
CASES = [
    (family, dtype, tolerance)
    for family in ("gpt2", "llama", "qwen3", "gpt_neox", "opt", "bloom")
    for dtype, tolerance in (("float64", 1e-9), ("float32", 1e-5))
    if (family, dtype) != ("bloom", "float64")  # has no numbers there for a padded row, in `generate` neither
]


def rows_of(model: ILQLModel, prompts: Sequence[Sequence[int]], room: int) -> LeanRows | TrunkRows:
    written = lean(model.lm)
    if written is None:
        return TrunkRows(model.lm, prompts, pad=1)
    return LeanRows(written, prompts, room, model.dtype, torch.device("cpu"))


def plain(model: ILQLModel, ids: list[int]) -> Tensor:
    return model.lm.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]


@torch.no_grad()
@pytest.mark.parametrize(("family", "dtype", "tolerance"), CASES)
def test_rows_are_the_trunks_own(family, dtype, tolerance):
    model = make(family, {}, dtype)
    rows, texts = rows_of(model, PROMPTS, 6), [list(p) for p in PROMPTS]
    hidden = rows.prefill()
    # After the third token two rows leave, after the fifth all but one, which moves.
    stay = {2: [0, 4, 2], 4: [1]}
    for t in range(6):
        want = torch.stack([plain(model, ids) for ids in texts])
        scale = float(want.abs().max())
        torch.testing.assert_close(hidden, want, rtol=0, atol=tolerance * scale)
        token = torch.arange(len(texts)) + 3 * t + 2
        if t in stay:
            rows.keep(torch.tensor(stay[t]))
            texts, token = [texts[i] for i in stay[t]], token[stay[t]]
        for ids, new in zip(texts, token.tolist(), strict=True):
            ids.append(new)
        hidden = rows.step(token)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_equal_prompts_are_computed_once(family):
    model = make(family, {})
    written = lean(model.lm)
    assert written is not None
    counts: list[int] = []

    def counted(tokens: Tensor, *rest: Tensor) -> Tensor:
        counts.append(len(tokens))
        return written.forward(tokens, *rest)  # type: ignore[arg-type]

    rows = LeanRows(written._replace(forward=counted), PROMPTS, 3, torch.float64, torch.device("cpu"))
    rows.prefill()
    hidden = rows.step(torch.tensor([3, 4, 5, 6, 7]))
    assert counts == [5 + 2 + 4 + 1, 5]
    torch.testing.assert_close(hidden[3], plain(model, [*PROMPTS[3], 6]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(hidden[1], plain(model, [*PROMPTS[1], 4]), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_the_past_is_kept_in_float32_at_least():
    model = make("gpt2", {}, "bfloat16")
    rows = rows_of(model, PROMPTS, 2)
    assert isinstance(rows, LeanRows)
    assert rows.prefill().dtype == torch.bfloat16
    assert rows.past.dtype == torch.float32
    assert rows.step(torch.tensor([3, 4, 5, 6, 7])).dtype == torch.bfloat16


@torch.no_grad()
def test_a_row_that_moves_copies_no_other():
    rows = rows_of(make("gpt2", {}), PROMPTS, 2)
    assert isinstance(rows, LeanRows)
    rows.prefill()
    before, place = rows.past.clone(), rows.past.data_ptr()
    rows.keep(torch.tensor([0, 4, 2]))
    assert rows.past.data_ptr() == place
    assert torch.equal(rows.past, before[:, [0, 4, 2]])
