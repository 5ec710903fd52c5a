"""What a seller can earn in `haggle`, exactly, and what the scripted sellers do earn.

    python -m examples.haggle_optimum [--talks 2000]

Decision: nothing is estimated of the best seller. The buyer's kinds are finitely many and answer by rule, so what the
seller believes is the set of kinds that would have answered as the buyer did, each with the patience that is left to
it; the best move at each such set is found by searching all of them, best bound first. Left out is what no seller
gains by: a price off the grid of the limits (the next one on it is refused by the same buyers, at the same cost), one
above all limits of the set, which holding is too (the highest of them costs no more), one up to the bid (accepting).
"""

from __future__ import annotations

import argparse
import itertools
import random
from typing import NamedTuple

from datasets_prep.haggle import SELLERS, Seller, episodes, play
from ilql.envs.haggle import (
    ACCEPT,
    ASK,
    CANDOUR,
    DEAL,
    GAPS,
    GONE,
    ITEMS,
    LEAVE,
    LIMITS,
    OFFER,
    PATIENCE,
    STYLES,
    TALK,
    Buyer,
    Haggle,
    Move,
    State,
    draw_buyer,
    react,
    worth,
)
from ilql.report import Interval, bootstrap, table
from ilql.types import Episode


def kinds() -> dict[Buyer, float]:
    """All buyers that there are, each with its chance."""
    found = {}
    for limit, gap, style, candour, patience in itertools.product(LIMITS, GAPS, STYLES, CANDOUR, PATIENCE):
        chance = STYLES[style] * CANDOUR[candour] / len(LIMITS) / len(GAPS) / len(PATIENCE)
        found[Buyer(limit, gap, style, candour, patience)] = chance
    return found


class Belief(NamedTuple):
    """Who the buyer may be, each with the patience that is left, and what both sides know of the talk."""

    buyers: frozenset[tuple[Buyer, int]]
    refusals: int = 0
    asked: bool = False
    bid: int | None = None


class Search:
    """The values of beliefs, as sums over buyers of chance times return; divide by the chance of all for a mean.

    ask: whether the seller may ask for the budget.
    """

    def __init__(self, chances: dict[Buyer, float], ask: bool = True) -> None:
        self.chances = chances
        self.ask = ask
        self._known: dict[Belief, tuple[float, Move]] = {}

    def start(self) -> Belief:
        return Belief(frozenset((buyer, buyer.patience) for buyer in self.chances))

    def bound(self, belief: Belief) -> float:
        """What a seller would get who knew the buyer: an upper bound of the value."""
        return sum(self.chances[buyer] * worth(Move(DEAL, buyer.limit)) for buyer, _ in belief.buyers)

    def moves(self, belief: Belief) -> list[Move]:
        top = max(buyer.limit for buyer, _ in belief.buyers)
        offers = [Move(OFFER, price) for price in LIMITS if (belief.bid or 0) < price <= top]
        asking = [Move(ASK)] if self.ask else []
        return [Move(LEAVE), Move(TALK), *([Move(ACCEPT)] if belief.bid is not None else []), *asking, *offers]

    def outcome(self, belief: Belief, move: Move) -> tuple[float, list[Belief]]:
        """What a move brings at once, and the beliefs that may follow from it."""
        reward = 0.0
        following: dict[Move, tuple[State, set[tuple[Buyer, int]]]] = {}
        for buyer, patience in belief.buyers:
            state, answer = react(buyer, State(patience, belief.refusals, belief.asked, belief.bid), move)
            reward += self.chances[buyer] * worth(answer)
            if answer.act not in (DEAL, GONE):
                following.setdefault(answer, (state, set()))[1].add((buyer, state.patience))
        return reward, [Belief(frozenset(who), s.refusals, s.asked, s.bid) for s, who in following.values()]

    def best(self, belief: Belief) -> tuple[float, Move]:
        """The value of a belief and a best move there."""
        if belief not in self._known:
            tried = []
            for move in self.moves(belief):
                reward, following = self.outcome(belief, move)
                tried.append((reward + sum(map(self.bound, following)), reward, following, move))
            value, chosen = float("-inf"), Move(LEAVE)
            for bound, reward, following, move in sorted(tried, key=lambda one: -one[0]):
                if bound <= value:
                    break
                if (found := reward + sum(self.best(later)[0] for later in following)) > value:
                    value, chosen = found, move
            self._known[belief] = value, chosen
        return self._known[belief]


def follow(search: Search, buyer: Buyer) -> list[tuple[Move, Move]]:
    """The best seller's talk with a buyer: its moves and the answers."""
    belief, state = search.start(), State(buyer.patience)
    talk: list[tuple[Move, Move]] = []
    while not talk or talk[-1][1].act not in (DEAL, GONE):
        move = search.best(belief)[1]
        after, answer = react(buyer, state, move)
        talk.append((move, answer))
        _, following = search.outcome(belief, move)
        belief = next((later for later in following if (buyer, after.patience) in later.buyers), belief)
        state = after
    return talk


def perform(seller: Seller, talks: int) -> list[Episode]:
    """A scripted seller with buyers that are the same for every seller, and none of the logs'."""
    played = []
    for i in range(talks):
        rng, env = random.Random(f"optimum/{i}"), Haggle()
        first = env.meet(draw_buyer(rng), i % len(ITEMS), rng)
        played.append(play(env, first, "", seller, str(i), random.Random(i)))
    return played


def _row(name: str, played: list[Episode]) -> dict[str, object]:
    returns = bootstrap([episode.total_reward for episode in played])
    told = [100.0 * (episode.meta["asked"] > 0) for episode in played]
    return {"seller": name, "return": f"{returns.mean:.3f} [{returns.low:.3f}, {returns.high:.3f}]"} | {
        "deal %": bootstrap([100.0 * episode.meta["deal"] for episode in played]),
        "asked %": bootstrap(told),
    }


def gain(seller: Seller, talks: int) -> Interval:
    """What asking first brings a scripted seller, in talks with the same buyers."""
    asks, not_so = (perform(seller._replace(asks=share, asks_late=0.0), talks) for share in (1.0, 0.0))
    return bootstrap([a.total_reward - b.total_reward for a, b in zip(asks, not_so, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description="The optimum of haggle, and what scripted sellers earn.")
    parser.add_argument("--talks", type=int, default=2000, help="talks a scripted seller (default 2000)")
    talks = parser.parse_args().talks
    rows = [_row("the logs", [e for e in episodes([], seed=0) if isinstance(e, Episode)])]
    for name, seller in SELLERS.items():
        for asks, how in ((0.0, "never asks"), (1.0, "asks first")):
            rows.append(_row(f"{name}, {how}", perform(seller._replace(asks=asks, asks_late=0.0), talks)))
    chances = kinds()
    for ask, how in ((False, "the best that never asks"), (True, "the best")):
        value, move = Search(chances, ask).best(Search(chances).start())
        rows.append({"seller": f"{how}; begins with {move.act} {move.price or ''}".strip(), "return": f"{value:.4f}"})
    known = Search(chances).bound(Search(chances).start())
    rows.append({"seller": "one that knows the buyer's limit", "return": f"{known:.4f}"})
    print(table(rows))
    for name, seller in SELLERS.items():
        brings = gain(seller, talks)
        print(f"asking first brings {name} {brings.mean:.3f} [{brings.low:.3f}, {brings.high:.3f}]")


if __name__ == "__main__":
    main()
