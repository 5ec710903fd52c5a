"""Pairs of dialogues that were compared. Decision: a pair is whole or it is not there: what costs one of its dialogues,
whatever tokenizer or limit it is, costs the other one too, and both begin with the same turns.
"""

from __future__ import annotations

from datasets_prep.columns import Columns
from datasets_prep.rejects import Reject
from datasets_prep.talks import Talks


def whole_pairs(talks: Talks, rows: Columns, faults: dict[int, Reject]) -> tuple[Columns, dict[int, Reject]]:
    """The rows of dialogues whose pair stays whole, and what is wrong with all others, by their place.

    rows: of the dialogues that are not among the faults. The two dialogues of a pair follow each other in the talks.
    """
    if talks.pair is None:
        return rows, faults
    row = {i: k for k, i in enumerate(i for i in range(len(talks)) if i not in faults)}
    judged = [i for i, pair in enumerate(talks.pair) if pair is not None]
    late: dict[int, Reject] = {}
    for both in zip(judged[::2], judged[1::2], strict=True):
        found = [faults.get(i) for i in both]
        if any(found):
            first = next(fault for fault in found if fault is not None)
            reason = f"the other dialogue of its pair is no evidence: {first.reason}"
            late |= {i: Reject("", 0, first.field, reason) for i in both if i in row}
            continue
        cuts = {int(rows.cut[row[i], 0]) for i in both}
        if len(cuts) > 1:
            reason = "--overlong would cut the two dialogues of its pair differently; raise --max-length"
            late |= {i: Reject("", 0, "messages", reason) for i in both}
        elif cuts != {0} and not all(rows.terminated[row[i]] for i in both):
            reason = "its reply was cut off (--overlong tail), and that is what was compared; use front or reject"
            late |= {i: Reject("", 0, "messages", reason) for i in both}
    return rows.take([k for i, k in row.items() if i not in late]), faults | late
