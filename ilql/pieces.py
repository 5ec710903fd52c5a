"""What a batch lays end to end, and what of it the trunk computes. Decision: a piece is known by its tokens, so each
distinct one is laid once, and of what distinct ones share only one is computed (`ilql.prefix`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ilql.prefix import Segments, positions, share


class Run(NamedTuple):
    """What the trunk computes: tokens (U), position (U), and the segments that these lie in. prefix: the table that
    tokens below 0 are rows of (see `ilql.beginning`)."""

    tokens: Tensor
    position: Tensor
    segments: Segments
    prefix: Tensor | None = None


def run_of(pieces: Mapping[bytes, bool]) -> tuple[Run, Tensor]:
    """What the trunk computes of pieces (their int32 tokens as bytes -> whether h at their last token is read), and for
    every position of all pieces the row of its output, (T); a position that nobody reads has a row out of range."""
    segments, tokens, rows = share([piece if read else piece[:-4] for piece, read in pieces.items()])
    where = [r if read else np.append(r, len(tokens) // 4) for r, read in zip(rows, pieces.values(), strict=True)]
    run = Run(tokens_of([tokens]), torch.from_numpy(positions(segments)), segments)
    return run, torch.from_numpy(np.concatenate(where))


def tokens_of(pieces: Iterable[bytes]) -> Tensor:
    """The ids of pieces laid end to end, (T)."""
    return torch.from_numpy(np.frombuffer(b"".join(pieces), np.int32).astype(np.int64))


class Pieces:
    """Lays windows end to end, each distinct one once."""

    def __init__(self, bos: int) -> None:
        self.bos = np.int32(bos).tobytes()
        self.known: dict[bytes, int] = {}
        self.read: dict[bytes, bool] = {}
        self.size = 0

    def add(self, tokens: bytes, begin: int, end: int, read: bool) -> int:
        """Add tokens[begin:end], behind a BOS where that is no beginning; returns what to add to a row's positions.

        read: whether h at the last token is read.
        """
        piece = tokens[4 * begin : 4 * end]
        if begin:
            piece = self.bos + piece
        return self.lay(piece, read) - begin + (1 if begin else 0)

    def lay(self, piece: bytes, read: bool = True) -> int:
        """Add a whole piece; returns where it begins."""
        offset = self.known.get(piece)
        if offset is None:
            offset = self.known[piece] = self.size
            self.size += len(piece) // 4
        self.read[piece] = read or self.read.get(piece, False)
        return offset
