"""Compiled blocks against plain ones."""

from __future__ import annotations

import torch

from ilql.compiled import compile_blocks
from tests.test_learner import assert_same, dialogues, gradients, means
from tests.toys import tiny


def test_compiled_blocks_give_the_same_losses_and_gradients():
    rows = dialogues()
    plain, compiled = tiny(), tiny()
    compile_blocks(compiled, backend="aot_eager")
    assert_same(means(compiled, rows), means(plain, rows))
    assert_same(gradients(compiled, means(compiled, rows)), gradients(plain, means(plain, rows)))
    for part in (rows[:2], rows[3:]):  # other lengths, the same code
        assert_same(means(compiled, part), means(plain, part))
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        tokens = torch.randint(0, 23, (2, 5))
        torch.testing.assert_close(compiled(tokens).logits, plain(tokens).logits)
