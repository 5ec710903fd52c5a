"""From Arrow rows to batches. Decision: a batch is *flat*: dialogues (or windows of them) lie one behind the other in
one vector of tokens, decisions are integer positions in it, and no mask exists after this file.

Shape alphabet: T tokens of the batch, N decisions, M action tokens. `decisions` holds all off-by-one reasoning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ilql import offers
from ilql.beginning import Table, begin
from ilql.offers import Offers
from ilql.pieces import Pieces, Run, run_of, tokens_of
from ilql.prefix import apart, positions
from ilql.types import InputError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class DataConfig:
    """Which transitions to learn from.

    path: dataset folders. weights: passes over each folder an epoch (1 each where not given; .5 takes another half of
    the rows each epoch). cache: for each folder one of `ilql.annotate cache`, with its hidden states under what is
    frozen of the trunk, which then does not run. history: turns before the agent's turn that a state holds, None
    ("full") for all.
    reward_scale: factor on every reward; reported values are divided by it again.
    """

    path: list[str]
    weights: list[float] | None = None
    cache: list[str] | None = None
    history: int | None = None
    reward_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.reward_scale < math.inf:  # reported values are divided by it
            raise InputError(f"data.reward_scale is {self.reward_scale}, but must be above 0")


class Decisions(NamedTuple):
    """Positions in one dialogue, each (n)."""

    state: np.ndarray  # where s_i is read: the token before the action
    last: np.ndarray  # the action's last token
    next: np.ndarray  # where s_{i+1} is read; for the last transition see `decisions`
    has_next: bool  # whether the last transition's `next` is a state (or is not needed, the dialogue having terminated)


def decisions(start: np.ndarray, end: np.ndarray, length: int, terminated: bool) -> Decisions:
    """Where states, actions and next states are read in a dialogue of `length` tokens.

    Action i is tokens[start_i : end_i]. A dialogue that was cut off ends with the observation that followed the last
    action and the agent's header, and bootstraps from its last position; where nothing followed, the last transition
    has no target. After termination `next` is unused (the discount is 0) and holds the last action's last token.
    """
    has_next = terminated or length > int(end[-1])
    final = length - 1 if has_next and not terminated else int(end[-1]) - 1
    state = start - 1
    return Decisions(state, end - 1, np.append(state[1:], final), has_next)


def returns(reward: np.ndarray, gamma: float) -> np.ndarray:
    """Discounted return to go, (n): G_i = r_i + gamma G_{i+1}."""
    out = np.empty(len(reward), np.float64)
    total = 0.0
    for i in range(len(reward) - 1, -1, -1):
        out[i] = total = float(reward[i]) + gamma * total
    return out


def window_start(turn: Sequence[int] | np.ndarray, current: int, history: int | None) -> int:
    """Where the window of turn number `current` begins: `history` turns before it. 0 is the dialogue's own beginning.

    A window that begins later is read behind a BOS of its own, so that every state has a position.
    """
    if history is None or current - history <= 0:
        return 0
    return int(turn[current - history])


def longest_window(row: Row, history: int | None) -> int:
    """Tokens of the longest piece that a dialogue is read in."""
    turn, start, length = row["turn"], row["start"], len(row["tokens"])
    if history is None:
        return length
    begins = [window_start(turn, t, history) for t in range(len(turn))]
    ends = [*turn[1:].tolist(), length]
    agents = np.unique(np.append(np.searchsorted(turn, start, side="right") - 1, len(turn) - 1)).tolist()
    return max(ends[t] - begins[t] + (1 if begins[t] else 0) for t in agents)


def offer_windows(row: Row, history: int | None) -> list[int]:
    """Where the windows of the states begin that a row has proposals for: of its transitions, and the one behind."""
    turn = row["turn"]
    turns: list[int] = np.asarray(np.searchsorted(turn, row["start"], side="right") - 1).tolist()
    turns += [len(turn) - 1] * (len(row["proposals"]) - len(turns))
    return [window_start(turn, t, history) for t in turns]


def longest_offer(row: Row, history: int | None) -> int:
    """Tokens of the longest piece that a candidate makes behind its state."""
    ends = [*row["start"].tolist(), len(row["tokens"])]
    states = zip(offer_windows(row, history), ends, row["proposals"], strict=False)
    return max((end - begin + (1 if begin else 0) + len(c) for begin, end, some in states for c in some), default=0)


def crop(tokens: Sequence[int], turn: Sequence[int], history: int | None) -> list[int]:
    """The state's tokens as training saw them, for a dialogue whose last turn is the agent's open header."""
    begin = window_start(turn, len(turn) - 1, history)
    return list(tokens) if begin == 0 else [tokens[0], *tokens[begin:]]


@dataclass
class Batch:
    """Flat decisions. Every index addresses `tokens`, in which dialogues (or windows) lie end to end.

    tokens (T) ids, that of a BOS below 0 where the dialogue has a prefix (`ilql.beginning`); position (T), restarting
    at 0 with every piece; target (M) positions of action tokens, whose logits are read at target - 1; owner (M') the
    decision of each of the first M' action tokens: action tokens without a decision (an algorithm that bootstraps
    cannot use a transition whose next state was not logged) come last, for behaviour cloning only; state, last, next
    (N) positions; reward, discount, ret (N); floor (N): the return to go where the dialogue terminated, -inf where it
    was cut off and nobody knows the rest; first (N): whether it is its dialogue's first; behaviour (N): log-probability
    of the action under the policy that wrote it, nan where that is unknown; ids: the dialogues; pair (P, 2): the last
    decisions of two dialogues that were compared, the preferred one's first (they share the row's `pair`, follow each
    other and differ in their return). offered: an actor's candidates at each decision's state, but for the logged
    action; offered_next: those at its next state (None where the algorithm asks for none).

    run: what the trunk has to compute, which is what pieces share only once; where (T): the row of the trunk's output
    that holds a position's h_t. hidden: what a frozen part of the trunk gives for `run`, stored; where that is the
    whole trunk, `run` is empty and this its output.
    """

    tokens: Tensor
    position: Tensor
    target: Tensor
    owner: Tensor
    state: Tensor
    last: Tensor
    next: Tensor
    reward: Tensor
    discount: Tensor
    ret: Tensor
    floor: Tensor
    first: Tensor
    behaviour: Tensor
    run: Run
    where: Tensor
    ids: Sequence[str]
    pair: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.int64))
    hidden: Tensor | None = None
    offered: Offers | None = None
    offered_next: Offers | None = None

    @property
    def n(self) -> int:
        return len(self.state)

    @property
    def m(self) -> int:
        return len(self.target)

    @property
    def size(self) -> int:
        """How many tokens are learned from: all that the trunk reads, or the action tokens where it does not run."""
        return len(self.tokens) if len(self.run.tokens) else self.m

    @property
    def action(self) -> Tensor:
        """The last token of each action, (N): at token steps the action itself."""
        return self.tokens[self.last]

    @property
    def utterance(self) -> Tensor:
        """Which utterance of the batch each decision is part of, counted from 0, (N). Not known of batches from a cache
        of the whole trunk."""
        return self._opens.cumsum(0) - 1

    @property
    def _opens(self) -> Tensor:
        """Which decisions begin an utterance, (N)."""
        first = self.state.new_ones(self.n, dtype=torch.bool)
        first[1:] = (self.state[1:] != self.last[:-1]) | (self.discount[:-1] == 0)
        return first

    @property
    def closing(self) -> Tensor:
        """Which action tokens lie in the turn that ends their dialogue, behind its first token, (M): what is said to
        end it, not that it ends. Not known of batches from a cache of the whole trunk."""
        first, turn = self._opens, self.utterance
        ends = first.new_zeros(int(turn[-1]) + 1)
        ends[turn[self.discount == 0]] = True
        m = len(self.owner)  # the others have no decision
        opens = first[self.owner] & (self.target[:m] == self.state[self.owner] + 1)
        out = first.new_zeros(self.m)
        out[:m] = ends[turn][self.owner] & ~opens
        return out

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """Move every tensor; `dtype` is for the real numbers (collated in float64), the indices keep theirs."""

        def move(value: Any) -> Any:
            if isinstance(value, Run):
                return value._replace(
                    tokens=move(value.tokens), position=move(value.position), prefix=move(value.prefix)
                )
            if isinstance(value, Offers):
                return Offers(*map(move, value))
            if not isinstance(value, Tensor):
                return value
            return value.to(device, dtype if value.is_floating_point() else None)

        return Batch(**{f.name: move(getattr(self, f.name)) for f in fields(self)})


def _shifts(row: Row, at: Decisions, history: int | None, pieces: Pieces, acted: bool) -> tuple[np.ndarray, int]:
    """What to add to the positions of each decision (n), and to those of the state after the last one."""
    turn, start, end = row["turn"], row["start"], row["end"]
    tokens = np.ascontiguousarray(row["tokens"], np.int32).tobytes()
    length = len(tokens) // 4
    bootstraps = at.next[-1] > at.last[-1]
    if history is None:
        shift = pieces.add(tokens, 0, length if bootstraps else int(end[-1]), bootstraps or acted)
        return np.full(len(start), shift), shift
    owner = np.asarray(np.searchsorted(turn, start, side="right")) - 1  # the turn that each action stands in
    firsts = np.flatnonzero(np.diff(owner, prepend=-1))
    counts = np.diff(firsts, append=len(start))
    ends = end[firsts + counts - 1].tolist()
    shift_of = [
        pieces.add(tokens, window_start(turn, t, history), e, acted)
        for t, e in zip(owner[firsts].tolist(), ends, strict=True)
    ]
    shifts = np.repeat(np.array(shift_of, np.int64), counts)
    if not bootstraps:
        return shifts, int(shifts[-1])
    # The row's last turn is the agent's open header, which has no token of its own in some chat templates.
    return shifts, pieces.add(tokens, window_start(turn, len(turn) - 1, history), length, True)


def collate(
    rows: Iterable[Row],
    *,
    gamma: float,
    bos: int,
    history: int | None = None,
    reward_scale: float = 1.0,
    bootstraps: bool = True,
    acted: bool = True,
    offered: bool = False,
) -> Batch:
    """Lay dialogues end to end as decisions.

    gamma: discount of a time step. history: see DataConfig. bootstraps: whether the algorithm needs the next state;
    then a last transition without one is no decision, and its tokens are left to behaviour cloning. acted: whether h is
    read at an action's last token (scalar critics of utterances do, critics over the vocabulary do not). offered:
    whether the dialogues' proposals are read too; then a next state without any, logged reply or other, is none.
    """
    pieces, table = Pieces(bos), Table()
    parts: list[dict[str, np.ndarray]] = []
    here: list[tuple[int, int]] = []
    after: list[tuple[int, int]] = []
    ids, n = [], 0
    compared: list[tuple[Any, float, int]] = []
    for row in rows:
        at = decisions(row["start"], row["end"], len(row["tokens"]), bool(row["terminated"]))
        row, pieces.bos = begin(row, table, bos)
        shifts, final = _shifts(row, at, history, pieces, acted)
        logged: list[int] = (at.last + shifts).tolist()
        places = offers.lay(row, offer_windows(row, history), logged, pieces) if offered else None
        has_next = at.has_next and (places is None or len(places[-1]) > 0)
        keep = len(shifts) if has_next or not bootstraps else len(shifts) - 1
        columns = _steps(row, at, shifts, final, gamma, reward_scale)
        parts.append({name: column[:keep] for name, column in columns.items()} | _acts(row, shifts, keep, n))
        ids.append(str(row["id"]))
        if places is not None:
            here += offers.here(places, logged, keep, n)
            after += offers.after(places, keep, n)
        n += keep
        compared.append((row.get("pair") if keep else None, float(np.sum(row["reward"])), n - 1))
    if not pieces.known:
        raise InputError("a batch without dialogues; the dataset is empty")
    flat = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    flat["target"] = np.concatenate([flat["target"], flat.pop("orphan")])
    run, where = run_of(pieces.read)
    return Batch(
        tokens=tokens_of(pieces.known),
        position=torch.from_numpy(positions(apart([len(piece) // 4 for piece in pieces.known]))),
        **{name: torch.from_numpy(column) for name, column in flat.items()},  # type: ignore[arg-type]
        run=run._replace(prefix=table.tensor()),
        where=where,
        ids=ids,
        pair=_pairs(compared),
        offered=offers.gather(here) if offered else None,
        offered_next=offers.gather(after) if offered else None,
    )


def _pairs(compared: Sequence[tuple[Any, float, int]]) -> Tensor:
    """`Batch.pair` from each dialogue's `pair`, return and last decision."""
    found = []
    waits: tuple[Any, float, int] = (None, 0.0, 0)
    for name, reward, last in compared:
        other, less, before = waits
        waits = name, reward, last
        if name is not None and name == other and reward != less:
            found.append((last, before) if reward > less else (before, last))
            waits = (None, 0.0, 0)
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 2)


def _steps(
    row: Row, at: Decisions, shifts: np.ndarray, final: int, gamma: float, reward_scale: float
) -> dict[str, np.ndarray]:
    """What a Batch says of each decision of a row, (n) each; shifts and final: see `_shifts`."""
    reward = np.asarray(row["reward"], np.float64) * reward_scale
    discount = np.full(len(shifts), gamma)
    if row["terminated"] or not at.has_next:
        discount[-1] = 0.0
    ret = returns(reward, gamma)
    return {
        "state": at.state + shifts,
        "last": at.last + shifts,
        "next": at.next + np.append(shifts[1:], final),
        "reward": reward,
        "discount": discount,
        "ret": ret,
        "floor": ret if row["terminated"] else np.full(len(ret), -np.inf),
        "first": np.arange(len(ret)) == 0,
        "behaviour": np.asarray(row["logp"], np.float64) if "logp" in row else np.full(len(ret), np.nan),
    }


def _acts(row: Row, shifts: np.ndarray, keep: int, first: int) -> dict[str, np.ndarray]:
    """Positions of a row's action tokens: those of its first `keep` decisions, which number `first` and on, with their
    owners, and the orphans of the decision that was left out."""
    start, size = row["start"], row["end"] - row["start"]
    which: np.ndarray = np.repeat(np.arange(len(start)), size)
    begins: np.ndarray = start + shifts - (np.cumsum(size) - size)
    place = np.arange(len(which)) + begins[which]
    owned = which < keep
    return {"target": place[owned], "owner": which[owned] + first, "orphan": place[~owned]}
