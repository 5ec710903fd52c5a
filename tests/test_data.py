"""Off-by-one reasoning, windows, readers and the order of data."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from ilql.data import collate, crop, decisions, returns
from ilql.order import BatchConfig, Order
from ilql.rows import Mix, Rows
from ilql.schema import SCHEMA, VERSION, sealed, sha256
from ilql.types import InputError
from tests.toys import chat_row, row

# `hi | *yo | ok | *bye` as letters with an end token E each; rewards 1 and 2; * marks the agent's turns.
#           0    1    2    3    4    5    6    7    8    9    10   11   12   13
LETTERS = ["B", "h", "i", "E", "y", "o", "E", "o", "k", "E", "b", "y", "e", "E"]
TURNS = [1, 4, 7, 10]
CODE = {letter: i for i, letter in enumerate(dict.fromkeys(LETTERS))}
TOKENS = [CODE[letter] for letter in LETTERS]


def token_row(**changes):
    start = [4, 5, 6, 10, 11, 12, 13]
    return row(TOKENS, start, [s + 1 for s in start], [0, 0, 1, 0, 0, 0, 2], turn=TURNS) | changes


def utterance_row(**changes):
    return row(TOKENS, [4, 10], [7, 14], [1, 2], turn=TURNS) | changes


def pieces(batch) -> list[int]:
    """The lengths of the pieces of a batch: a piece begins wherever the position is 0."""
    begins = (batch.position == 0).nonzero().flatten().tolist()
    return [b - a for a, b in pairwise([*begins, len(batch.tokens)])]


def test_worked_example_at_token_steps():
    batch = collate([token_row()], gamma=0.9, bos=CODE["B"])
    assert batch.tokens.tolist() == TOKENS
    assert batch.position.tolist() == list(range(14))
    assert batch.target.tolist() == [4, 5, 6, 10, 11, 12, 13]
    assert batch.owner.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert batch.state.tolist() == [3, 4, 5, 9, 10, 11, 12]
    assert batch.last.tolist() == [4, 5, 6, 10, 11, 12, 13]
    assert batch.next.tolist() == [4, 5, 9, 10, 11, 12, 13]
    assert batch.reward.tolist() == [0, 0, 1, 0, 0, 0, 2]
    assert batch.discount.tolist() == [0.9] * 6 + [0]
    assert batch.ret[-1] == 2
    assert batch.ret[2] == pytest.approx(1 + 0.9**4 * 2)


def test_worked_example_at_utterance_steps():
    batch = collate([utterance_row()], gamma=0.9, bos=CODE["B"])
    assert batch.target.tolist() == [4, 5, 6, 10, 11, 12, 13]
    assert batch.owner.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert batch.state.tolist() == [3, 9]
    assert batch.last.tolist() == [6, 13]
    assert batch.next.tolist() == [9, 13]
    assert batch.discount.tolist() == [0.9, 0]
    assert batch.ret.tolist() == pytest.approx([2.8, 2])


def test_a_truncated_dialogue_bootstraps_from_its_last_position():
    tokens = [*TOKENS, CODE["o"], CODE["E"]]  # an observation follows, its last token stands for the header
    cut = {"tokens": np.array(tokens, np.int32), "terminated": False, "turn": np.array([*TURNS, 14])}
    for made in (token_row(**cut), utterance_row(**cut)):
        batch = collate([made], gamma=0.9, bos=CODE["B"])
        assert batch.next[-1] == 15
        assert batch.discount[-1] == 0.9
        assert len(batch.tokens) == 16


def test_a_cut_without_a_following_state_is_cloned_but_not_bootstrapped():
    batch = collate([token_row(terminated=False), token_row()], gamma=0.9, bos=CODE["B"])
    assert (batch.n, batch.m, len(batch.owner)) == (13, 14, 13)
    assert batch.target[-1] == 13, "the orphan stands last"
    assert batch.owner.tolist() == list(range(13))
    assert (batch.discount == 0).sum() == 1, "only the dialogue that terminated ends with discount 0"
    whole = collate([token_row(terminated=False)], gamma=0.9, bos=CODE["B"], bootstraps=False)
    assert (whole.n, whole.m) == (7, 7), "without bootstrapping every transition counts"


@pytest.mark.parametrize("history", [None, 1])
def test_what_closes_a_dialogue_is_its_last_turn_behind_the_first_token(history):
    for made in (token_row(), utterance_row()):
        batch = collate([made, made], gamma=0.9, bos=CODE["B"], history=history)
        assert batch.closing.tolist() == [False, False, False, False, True, True, True] * 2, "`y e E` of `bye`"
        tail = {"tokens": np.array([*TOKENS, CODE["o"]]), "turn": np.array([*TURNS, 14]), "terminated": False}
        batch = collate([made | tail, made], gamma=0.9, bos=CODE["B"], history=history)
        assert batch.closing.tolist() == [False] * 11 + [True] * 3, "a dialogue that was cut off is not closed"
        batch = collate([made | {"terminated": False}, made], gamma=0.9, bos=CODE["B"], history=history)
        known = len(batch.owner)  # the tokens behind have no decision, and nobody knows what they close
        assert batch.closing.tolist() == [False] * (known - 3) + [True] * 3 + [False] * (14 - known)


def test_a_turn_of_one_token_closes_a_dialogue_by_itself():
    batch = collate([row([0, 1, 2, 3, 4], [2, 4], [3, 5], [0, 1])], gamma=0.9, bos=0)
    assert batch.closing.tolist() == [False, False], "the turn's first token is not counted"


def test_decisions_of_a_single_action():
    at = decisions(np.array([2]), np.array([5]), 5, True)
    assert (at.state.tolist(), at.last.tolist(), at.next.tolist(), at.has_next) == ([1], [4], [4], True)
    assert not decisions(np.array([2]), np.array([5]), 5, False).has_next
    assert decisions(np.array([2]), np.array([5]), 8, False).next.tolist() == [7]


def test_returns_are_discounted_to_go():
    assert returns(np.array([1.0, 2.0, 4.0]), 0.5).tolist() == [3.0, 4.0, 4.0]


def test_windows_hold_the_last_turns_behind_a_bos():
    batch = collate([token_row()], gamma=0.9, bos=CODE["B"], history=1)
    # the first window is the dialogue's beginning; the second is `ok` and `bye` behind a BOS
    assert pieces(batch) == [7, 8]
    assert batch.tokens.tolist() == [*TOKENS[:7], CODE["B"], *TOKENS[7:]]
    assert batch.position.tolist() == [*range(7), *range(8)]
    assert batch.state.tolist() == [3, 4, 5, 10, 11, 12, 13]
    assert batch.next.tolist() == [4, 5, 10, 11, 12, 13, 14], "the next state is in the other window"
    wide = collate([token_row()], gamma=0.9, bos=CODE["B"], history=3)
    assert pieces(wide) == [7, 14], "three turns before the last turn are the whole dialogue"


def test_a_truncated_window_bootstraps_from_its_own_window():
    tokens = [*TOKENS, CODE["o"], CODE["E"]]
    made = token_row(tokens=np.array(tokens, np.int32), terminated=False, turn=np.array([*TURNS, 14, 15]))
    batch = collate([made], gamma=0.9, bos=CODE["B"], history=1)
    assert pieces(batch) == [7, 8, 3]
    assert batch.next[-1] == 17
    assert batch.tokens[batch.next[-1] - 2 :].tolist() == [CODE["B"], CODE["o"], CODE["E"]]


def test_crop_is_the_window_of_training():
    state = [*TOKENS[:10], 99]  # ... | ok | the agent's open header
    turn = [1, 4, 7, 10]
    assert crop(state, turn, 1) == [TOKENS[0], *TOKENS[7:10], 99]
    assert crop(state, turn, 3) == state
    assert crop(state, turn, None) == state


def test_identical_windows_are_laid_once():
    same = collate([token_row(), token_row()], gamma=0.9, bos=CODE["B"], history=1)
    once = collate([token_row()], gamma=0.9, bos=CODE["B"], history=1)
    assert pieces(same) == pieces(once)
    assert same.n == 2 * once.n
    assert same.state.tolist() == once.state.tolist() * 2


def test_the_trunk_runs_each_beginning_once():
    longer = row([*TOKENS[:7], 8, 9], [4, 5, 6, 8], [5, 6, 7, 9], [0, 0, 1, 1], turn=[1, 4, 7])
    short = row(TOKENS[:7], [4, 5, 6], [5, 6, 7], [0, 0, 1], turn=TURNS[:2])
    other = row([*TOKENS[:6], 9], [4, 5, 6], [5, 6, 7], [0, 0, 1], turn=TURNS[:2])
    for rows in ([longer, short, other], [other, short, longer]):
        batch = collate(rows, gamma=0.9, bos=CODE["B"], acted=False)
        assert len(batch.tokens) == 9 + 7 + 7
        assert batch.run.tokens.tolist() == [*TOKENS[:7], 8], "no h is read at the last action token"
        for index in (batch.state, batch.target - 1, batch.next[batch.discount != 0]):
            assert torch.equal(batch.run.tokens[batch.where[index]], batch.tokens[index])
            assert torch.equal(batch.run.position[batch.where[index]], batch.position[index])
        read = collate(rows, gamma=0.9, bos=CODE["B"], acted=True)
        assert torch.equal(read.run.tokens[read.where[read.last]], read.tokens[read.last])
        assert len(read.run.tokens) == 9 + 7, "one dialogue begins another, the third ends otherwise"


def test_the_reward_scale_reaches_rewards_and_returns():
    batch = collate([token_row()], gamma=0.9, bos=CODE["B"], reward_scale=0.5)
    assert batch.reward.tolist() == [0, 0, 0.5, 0, 0, 0, 1]
    assert batch.ret[-1] == 1
    assert batch.to("cpu", torch.float32).reward.dtype == torch.float32
    assert batch.to("cpu", torch.float32).state.dtype == torch.int64


def write_dataset(folder: Path, rows: list[dict], **manifest) -> Path:
    (folder / "train").mkdir(parents=True)
    table = pa.Table.from_pylist(
        [{k: v if isinstance(v, str | bool) else list(v) for k, v in r.items()} for r in rows], SCHEMA
    )
    path = folder / "train" / "data-00000.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(table, max_chunksize=3)
    files = {"train/data-00000.arrow": {"sha256": sha256(path), "rows": len(rows)}}
    content = {
        "schema_version": VERSION,
        "step": "token",
        "tokenizer": {"sha256": "x", "vocab_size": 40},
        "files": files,
    }
    (folder / "manifest.json").write_text(sealed(content | manifest))
    return folder


def test_rows_are_read_back_as_written(tmp_path):
    rng = np.random.default_rng(0)
    made = [chat_row(rng, 40, 1 + i % 4, terminated=bool(i % 2), name=f"d{i}") for i in range(11)]
    rows = Rows(write_dataset(tmp_path / "a", made))
    assert len(rows) == 11
    assert rows.lengths.tolist() == [len(r["tokens"]) for r in made]
    assert rows.returns == pytest.approx([np.float32(r["reward"]).sum() for r in made], rel=1e-6)
    for got, want in zip(rows, made, strict=True):
        assert got["id"] == want["id"]
        assert got["terminated"] is want["terminated"]
        for name in ("tokens", "turn", "start", "end"):
            assert got[name].tolist() == want[name].tolist()
        assert got["reward"].tolist() == np.float32(want["reward"]).tolist()
    with pytest.raises(IndexError):
        rows[11]


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.json"):
        Rows(tmp_path)
    folder = write_dataset(tmp_path / "a", [token_row()])
    (folder / "train" / "data-00000.arrow").unlink()
    with pytest.raises(InputError, match="missing"):
        Rows(folder)


def test_datasets_of_different_steps_or_tokenizers_do_not_mix(tmp_path):
    a = Rows(write_dataset(tmp_path / "a", [token_row()]))
    b = Rows(write_dataset(tmp_path / "b", [token_row()], step="utterance"))
    c = Rows(write_dataset(tmp_path / "c", [token_row()], tokenizer={"sha256": "y", "vocab_size": 40}))
    with pytest.raises(InputError, match="step"):
        Mix([a, b])
    with pytest.raises(InputError, match="tokenizer"):
        Mix([a, c])
    mix = Mix([a, a])
    assert len(mix) == 2
    assert mix[1]["id"] == a[0]["id"]


def lengths(n: int = 200) -> np.ndarray:
    return np.random.default_rng(1).integers(5, 60, n)


def test_an_epoch_visits_every_row_once_within_the_budget():
    sizes = lengths()
    order = Order(sizes, BatchConfig(tokens=300), seed=3)
    batches = order.batches(0)
    assert sorted(i for b in batches for i in b) == list(range(200))
    assert max(sizes[b].sum() for b in batches) <= 300
    assert order.batches(0) == Order(sizes, BatchConfig(tokens=300), seed=3).batches(0)
    assert order.batches(0) != order.batches(1)
    assert batches != Order(sizes, BatchConfig(tokens=300), seed=4).batches(0)
    firsts = [sizes[b[0]] for b in batches]
    assert firsts != sorted(firsts), "batches are shuffled, not sorted by length"


def test_a_dialogue_beyond_the_budget_is_a_batch_of_its_own():
    batches = Order(np.array([10, 900, 10]), BatchConfig(tokens=30), seed=0).batches(0)
    assert sorted(sorted(b) for b in batches) == [[0, 2], [1]]


def test_processes_share_an_epoch_without_overlap():
    cfg = BatchConfig(dialogues=7)
    parts = [Order(lengths(), cfg, seed=5, rank=r, world=3).batches(2) for r in range(3)]
    assert len({len(p) for p in parts}) == 1
    rows = [i for p in parts for b in p for i in b]
    assert len(rows) == len(set(rows))
    whole = Order(lengths(), cfg, seed=5).batches(2)
    shared = [list(b) for group in zip(*parts, strict=True) for b in group]
    assert shared == [list(b) for b in whole[: 3 * len(parts[0])]]


def test_weights_are_passes_an_epoch():
    weight = np.array([0.0] * 100 + [2.0] * 50 + [0.5] * 50)
    order = Order(lengths(), BatchConfig(dialogues=10), seed=0, weight=weight)
    seen = np.bincount([i for b in order.batches(0) for i in b], minlength=200)
    assert seen[:100].sum() == 0
    assert (seen[100:150] == 2).all()
    assert 10 <= seen[150:].sum() <= 40


def test_the_rows_of_a_pair_lie_side_by_side_in_one_batch_of_one_process():
    pair = np.random.default_rng(2).permutation(np.arange(200) // 2)  # its rows anywhere
    for cfg in (BatchConfig(dialogues=7), BatchConfig(tokens=300), BatchConfig(dialogues=1)):
        parts = [Order(lengths(), cfg, seed=5, rank=r, world=3, pair=pair).batches(2) for r in range(3)]
        rows = [i for p in parts for b in p for i in b]
        assert len(rows) == len(set(rows)) > 180
        for batch in (b for p in parts for b in p):
            assert pair[batch[::2]].tolist() == pair[batch[1::2]].tolist()
    sizes = {len(b) for b in Order(lengths(), BatchConfig(dialogues=7), seed=5, pair=pair).batches(0)}
    assert sizes == {6, 2}
    halves = Order(np.full(4, 5), BatchConfig(dialogues=2), seed=0, weight=np.array([2, 0, 0, 2.0]), pair=pair4())
    assert sorted(sorted(b) for b in halves.batches(0)) == [[0, 3], [0, 3]]


def pair4() -> np.ndarray:
    return np.array([0, 1, 1, 0])


def test_rows_of_no_pair_are_drawn_for_themselves():
    alone = np.arange(200)
    assert [[*b] for b in Order(lengths(), BatchConfig(dialogues=7), seed=5, pair=alone).batches(0)] == [
        [*b] for b in Order(lengths(), BatchConfig(dialogues=7), seed=5).batches(0)
    ]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [2, 1, 0, 4, 3], [0, 2, 1, 4, 3]])
def test_a_batch_knows_which_last_decision_was_preferred(order):
    """Two utterances, then one; a dialogue of no pair between two pairs."""
    one = row([0, 1, 2, 1, 3], [2, 4], [3, 5], [0, 1.0], turn=[1, 2, 3, 4])
    other = row([0, 1, 4], [2], [3], [0.0], turn=[1, 2])
    rows = [one | {"pair": "x"}, other | {"pair": "x"}, other, other | {"pair": "y"}, one | {"pair": "y"}]
    batch = collate([rows[i] for i in order], gamma=0.9, bos=0, bootstraps=False)
    best, worst = batch.pair.T
    assert batch.reward[best].tolist() == [1] * len(best)
    assert batch.reward[worst].tolist() == [0] * len(worst)
    first = np.cumsum([0] + [len(rows[i]["start"]) for i in order])
    last = {i: int(first[k + 1]) - 1 for k, i in enumerate(order)}
    wanted = [[last[0], last[1]], [last[4], last[3]]]
    assert batch.pair.tolist() == (wanted[1:] if order[1] == 2 else wanted)  # parted, x is no pair


def test_passes_repeat_the_batches_of_a_step():
    """9 batches of 7 rows for each of 3 processes, 2 a step: 4 whole steps an epoch, each taken three times."""
    plain = BatchConfig(dialogues=7, accumulate=2)
    for rank in range(3):
        once = Order(lengths(), plain, seed=5, rank=rank, world=3).batches(1)
        again = Order(lengths(), replace(plain, passes=3), seed=5, rank=rank, world=3).batches(1)
        steps = [[list(b) for b in once[i : i + 2]] for i in range(0, 8, 2)]
        assert len(once) == 9
        assert [list(b) for b in again] == [b for step in steps for _ in range(3) for b in step]


def test_passes_over_an_epoch_shorter_than_a_step():
    batches = Order(np.full(3, 5), BatchConfig(dialogues=3, accumulate=4, passes=2), seed=0).batches(0)
    assert [sorted(b) for b in batches] == [[0, 1, 2]] * 8
