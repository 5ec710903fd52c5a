"""What the rows of a batch share is computed once. Decision: the pieces of a batch form a tree of segments in which the
longest of the pieces that share a beginning stays whole, and every other one branches off where it differs: so most
tokens attend to just what lies before them, and only what is left of the branches needs a mask.

A segment attends to its ancestors, which are the beginning of its parent's path, and to itself; positions are depths.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

WORTH = 16  # tokens that pieces must share for one to branch off the other


class Segments(NamedTuple):
    """lengths: tokens of each segment; parents: the segment that it branches off, which stands before it, or -1;
    depths: how many ancestors it has, all on its parent's path."""

    lengths: list[int]
    parents: list[int]
    depths: list[int]


def apart(lengths: Sequence[int]) -> Segments:
    """Pieces that share nothing."""
    return Segments(list(lengths), [-1] * len(lengths), [0] * len(lengths))


def beside(parts: Sequence[Segments]) -> Segments:
    """Those of several batches, one after the other."""
    begins = np.cumsum([0] + [len(part.parents) for part in parts]).tolist()
    parents = [p if p < 0 else p + begin for part, begin in zip(parts, begins, strict=False) for p in part.parents]
    return Segments([n for part in parts for n in part.lengths], parents, [d for part in parts for d in part.depths])


def paths(segments: Segments) -> list[np.ndarray]:
    """The rows of every segment and its ancestors, from the beginning on: (depth + length) each."""
    out: list[np.ndarray] = []
    first = 0
    for length, parent, depth in zip(*segments, strict=True):
        own = np.arange(first, first + length)
        out.append(own if parent < 0 else np.concatenate([out[parent][:depth], own]))
        first += length
    return out


def positions(segments: Segments) -> np.ndarray:
    """The depth of every row."""
    return np.concatenate([np.arange(d, d + n) for n, _, d in zip(*segments, strict=True)])


def share(pieces: Sequence[bytes]) -> tuple[Segments, bytes, list[np.ndarray]]:
    """The segments of pieces (their int32 tokens as bytes), the segments' tokens end to end, and for every piece the
    rows that hold its tokens.

    A piece that begins another has no segment of its own: under causal attention its hidden states are the other's.
    """
    size = [len(piece) // 4 for piece in pieces]
    parent, depth = _branches(pieces)
    longest_first = sorted(range(len(pieces)), key=lambda i: (-size[i], i))
    age = dict(zip([-1, *longest_first], range(-1, len(pieces)), strict=True))
    # Parents stand before their branches, since they are longer; pieces that branch off at one place stand together.
    own = sorted((i for i in longest_first if depth[i] < size[i]), key=lambda i: (age[parent[i]], depth[i]))
    segment = {i: s for s, i in enumerate(own)} | {-1: -1}
    segments = Segments([size[i] - depth[i] for i in own], [segment[parent[i]] for i in own], [depth[i] for i in own])
    laid = paths(segments)
    rows = [laid[segment[i if i in segment else parent[i]]][: size[i]] for i in range(len(pieces))]
    return segments, b"".join(pieces[i][4 * depth[i] :] for i in own), rows


def _branches(pieces: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """For every piece the one that it branches off (-1: none), and the tokens that it shares with it.

    Sorted, a piece shares with its neighbours the most that it shares with any. Joined in the order of how much they
    share, the shorter of two groups' longest pieces branches off the other group's.
    """
    order = sorted(range(len(pieces)), key=pieces.__getitem__)
    shared = [(_common(pieces[a], pieces[b]), a, b) for a, b in pairwise(order)]
    parent, depth, longest = [-1] * len(pieces), [0] * len(pieces), list(range(len(pieces)))

    def group(i: int) -> int:
        while longest[i] != i:
            longest[i] = i = longest[longest[i]]
        return i

    for common, a, b in sorted(((c, a, b) for c, a, b in shared if c >= 0), reverse=True):
        host, guest = sorted((group(a), group(b)), key=lambda i: (-len(pieces[i]), i))
        parent[guest], depth[guest], longest[guest] = host, common, host
    for i in range(len(pieces)):  # where a parent itself begins no earlier, its own parent holds all ancestors
        while parent[i] >= 0 and depth[parent[i]] >= depth[i]:
            parent[i] = parent[parent[i]]
    return parent, depth


def _common(a: bytes, b: bytes) -> int:
    """Tokens that two neighbours in sorted order share: at least WORTH or all of the first's, else -1."""
    if not b.startswith(a[: 4 * WORTH]):
        return -1
    n = min(len(a), len(b)) // 4
    differ = np.frombuffer(a[: 4 * n], np.int32) != np.frombuffer(b[: 4 * n], np.int32)
    return int(differ.argmax()) if differ.any() else n
