"""What a dataset of compared dialogues has to be. Decision: looked at whole before training, since a dialogue whose
partner is missing would be silently left out of every batch.
"""

from __future__ import annotations

import numpy as np

from ilql.rows import Rows
from ilql.types import InputError


def check_pairs(rows: Rows, algo: str) -> None:
    """Refuse a split in which a dialogue is of no pair, or a pair is not two dialogues with the rewards 1 and 0."""
    where, names, returns = f"{rows.folder} ({rows.split})", rows.pair, rows.returns
    lone = sum(name is None for name in names)
    if lone:
        raise InputError(
            f"{algo} learns from pairs of dialogues, but {lone:,} of {len(names):,} in {where} are of none; make a "
            "dataset of pairs: python -m datasets_prep preferences --input PAIRS.jsonl --step utterance --output DIR"
        )
    each, pair, size = np.unique(names.astype(str), return_inverse=True, return_counts=True)
    likes = np.bincount(pair, returns == 1, len(each))
    wrong = np.flatnonzero((size != 2) | (likes != 1) | (np.bincount(pair, returns == 0, len(each)) != 1))
    if len(wrong):
        name = each[wrong[0]]
        found = ", ".join(f"{reward:g}" for reward in returns[names == name].tolist())
        raise InputError(
            f"{where}: the dialogues of pair {name!r} have the rewards {found}, but the preferred one of two has 1 and "
            f"the other 0 ({len(wrong):,} such pairs); build the dataset of pairs again"
        )
