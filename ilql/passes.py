"""One pass of a trunk over packed segments. Decision: dialogues lie end to end without padding wherever the trunk lets
us say what attends to what; the others run padded, one row a path, and give the same rows of h.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ilql import packed
from ilql.prefix import Segments, paths


def hidden(lm: PreTrainedModel, tokens: Tensor, position: Tensor, segments: Segments) -> Tensor:
    """h_t of packed segments: (T), (T) -> (T, D). A position attends to its segment and the ancestors of that.

    lm: a language model, of which the trunk runs, or a trunk.
    """
    trunk = lm.base_model
    if packed.supports(lm):
        with packed.packed(lm):
            return trunk(
                input_ids=tokens[None],
                position_ids=position[None],
                use_cache=False,
                packed_plan=packed.Plan(segments, tokens.device),
            ).last_hidden_state[0]
    rows = [tokens[torch.from_numpy(path).to(tokens.device)] for path in paths(segments)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    place = torch.arange(ids.shape[1], device=ids.device)
    lengths, _, depths = (torch.tensor(numbers, device=ids.device)[:, None] for numbers in segments)
    real = place < depths + lengths
    out = trunk(input_ids=ids, attention_mask=real.long(), use_cache=False)
    return out.last_hidden_state[real & (place >= depths)]
