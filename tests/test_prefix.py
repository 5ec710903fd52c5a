"""Segments: every token once where that is worth it, in a tree whose paths are the pieces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilql import prefix
from ilql.prefix import WORTH, Segments, apart, beside, paths, positions, share

COMMON = list(range(100, 100 + WORTH))


def shared(rows):
    """The segments of rows of tokens, having checked that rows can be read from them."""
    segments, tokens, where = share([np.array(row, np.int32).tobytes() for row in rows])
    flat, depth = np.frombuffer(tokens, np.int32), positions(segments)
    assert len(flat) == len(depth) == sum(segments.lengths)
    for row, place in zip(rows, where, strict=True):
        assert flat[place].tolist() == list(row)
        assert depth[place].tolist() == list(range(len(row))), "positions are depths"
    for i, (parent, begin) in enumerate(zip(segments.parents, segments.depths, strict=True)):
        assert parent < i, "a parent stands before its branches"
        assert (parent < 0) == (begin == 0)
        assert parent < 0 or segments.depths[parent] < begin <= segments.depths[parent] + segments.lengths[parent]
    return segments


def test_candidates_branch_off_the_longest():
    rows = [[*COMMON, 1], [*COMMON, 2, 2, 2], [*COMMON, 3, 3]]
    assert shared(rows) == Segments([WORTH + 3, 2, 1], [-1, 0, 0], [0, WORTH, WORTH])
    assert shared(rows[::-1]) == shared(rows)


def test_chained_contexts_branch_off_the_last():
    turns = [[*range(20 * k, 20 * k + 20)] for k in range(1, 4)]
    rows = [[token for turn in turns[:k] for token in turn] + [1000 + k] * k for k in (1, 2, 3)]
    assert shared(rows) == Segments([63, 1, 2], [-1, 0, 0], [0, 20, 40])


def test_a_branch_may_have_branches():
    rows = [[*COMMON, *[1] * 40], [*COMMON, *[2] * 30], [*COMMON, *[2] * 20, 3]]
    assert shared(rows) == Segments([WORTH + 40, 30, 1], [-1, 0, 1], [0, WORTH, WORTH + 20])


def test_a_beginning_and_a_copy_have_no_segment():
    whole = [*COMMON, 1, 2, 3]
    rows = [whole[:2], whole, whole, whole[:2], whole[: WORTH + 1], [*COMMON, 9]]
    assert shared(rows) == Segments([WORTH + 3, 1], [-1, 0], [0, WORTH])


def test_what_all_dialogues_begin_with_makes_no_tree_of_the_batch():
    rows = [[0, *COMMON[: WORTH - 2], i, *[i] * i] for i in range(1, 9)]
    assert set(shared(rows).parents) == {-1}


def test_siblings_stand_together():
    rows = [[state, *COMMON, *[candidate] * (candidate + state)] for candidate in range(1, 5) for state in range(3)]
    segments = shared(rows)
    assert segments.parents == [-1] * 3 + [0] * 3 + [1] * 3 + [2] * 3


def test_pieces_apart():
    assert apart([3, 2]) == Segments([3, 2], [-1, -1], [0, 0])
    assert positions(apart([3, 2])).tolist() == [0, 1, 2, 0, 1]
    assert [path.tolist() for path in paths(Segments([3, 2], [-1, 0], [0, 1]))] == [[0, 1, 2], [0, 3, 4]]


def test_batches_side_by_side_keep_their_trees():
    tree = Segments([3, 2], [-1, 0], [0, 1])
    both = beside([apart([4]), tree, tree])
    assert both == Segments([4, 3, 2, 3, 2], [-1, -1, 1, -1, 3], [0, 0, 1, 0, 1])
    assert paths(both)[-1].tolist() == [9, 12, 13]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12), st.integers(1, 4))
def test_every_token_is_computed_once_where_it_is_worth_it(rows, worth):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "WORTH", worth)
        segments = shared(rows)
    beginnings = {tuple(row[:n]) for row in rows for n in range(1, len(row) + 1)}
    if worth == 1:
        assert sum(segments.lengths) == len(beginnings)
    # Of tokens computed again, each lies before the place where a branch would have been worth it.
    assert sum(min(n, worth - 1) for n in segments.lengths) + len(beginnings) >= sum(segments.lengths)
