"""The rank of what was logged among what was proposed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ilql import ranking
from tests.toys import BOS, at_step, chat_row, spoken, tiny


def test_chances_under_ties_are_those_of_any_order():
    before, beside = np.array([0, 0, 1, 2]), np.array([0, 1, 2, 0])
    assert ranking.first(before, beside).tolist() == [1, 0.5, 0, 0]
    assert ranking.reciprocal(before, beside).tolist() == pytest.approx([1, 0.75, (1 / 2 + 1 / 3 + 1 / 4) / 3, 1 / 3])
    assert ranking.reciprocal(before[:0], beside[:0]).shape == (0,)


def test_a_line_a_measure_and_one_for_chance():
    ranks = [
        ranking.Ranks(np.array([4, 2]), {"Q": np.array([[0, 0], [1, 0]])}),
        ranking.Ranks(np.array([], int), {"Q": np.zeros((0, 2), int)}),
        ranking.Ranks(np.array([4]), {"Q": np.array([[0, 0]])}),
    ]
    q, chance = ranking.lines(ranks, ["a", "b", "c"])
    assert q["is first, %"].mean == pytest.approx(200 / 3)
    assert q["mean of 1 / rank"].mean == pytest.approx(2.5 / 3)
    assert chance["is first, %"].mean == pytest.approx(100 / 3)  # 1/4, 1/2, 1/4
    assert chance["mean of 1 / rank"].mean == pytest.approx((2 * 25 / 48 + 3 / 4) / 3)
    assert (q["is first, %"].low, q["is first, %"].high) == (50.0, 100.0), "whole dialogues are drawn"
    assert ranking.lines(ranks[1:2], ["b"]) == []


def plain(model, r: dict, history: int | None) -> list[tuple[int, dict[str, tuple[int, int]]]]:
    """By a forward pass for each reply alone."""
    tokens, out = r["tokens"].tolist(), []
    for i, start in enumerate(r["start"].tolist()):
        logged = tokens[start : r["end"][i]]
        turn = int(np.searchsorted(r["turn"], start, side="right")) - 1
        begin = 0 if history is None or turn - history <= 0 else int(r["turn"][turn - history])
        state = ([BOS] if begin else []) + tokens[begin:start]
        said = list(dict.fromkeys([tuple(logged), *map(tuple, r["proposals"][i])]))
        values: dict[str, list[float]] = {"Q": [], "log pi": []}
        for reply in said:
            piece = [*state, *reply]
            h = model.lm.base_model(input_ids=torch.tensor([piece]), use_cache=False).last_hidden_state[0]
            at, token = (-1, None) if model.config.critic == "scalar" else (-2, reply[-1])
            each = [q(h[at]) if token is None else q(h[at])[token] for q in model.judges]
            values["Q"].append(min(float(x) for x in each))
            logp = model.get_output_embeddings()(h).log_softmax(-1)
            values["log pi"].append(sum(float(logp[len(state) + k - 1, t]) for k, t in enumerate(reply)))
        if len(said) > 1:
            standing = {k: (sum(x > v[0] for x in v[1:]), sum(x == v[0] for x in v[1:])) for k, v in values.items()}
            out.append((len(said), standing))
    return out


@pytest.mark.parametrize("history", [None, 1])
@pytest.mark.parametrize("critic", ["scalar", "vocabulary"])
def test_ranks_are_those_of_every_reply_alone(critic, history):
    rng = np.random.default_rng(3)
    rows = at_step([chat_row(rng, 23, 2 + i % 3, terminated=i % 2 == 0, name=f"d{i}") for i in range(9)], "utterance")
    model = tiny(critic=critic, history=history)
    with torch.no_grad():
        got = ranking.read(model, BOS, rows, batch_rows=2)
        want = [plain(model, r, history) for r in rows]
    assert len(got) == len(want)
    for ranks, expected in zip(got, want, strict=True):
        assert ranks.among.tolist() == [m for m, _ in expected]
        for name in ("Q", "log pi"):
            assert [tuple(x) for x in ranks.places[name].tolist()] == [places[name] for _, places in expected]
    assert sum(len(r.among) for r in got) > 5
    assert len({x for r in got for x in r.places["Q"][:, 0].tolist()}) > 1


def test_an_actor_alone_ranks_by_its_likelihood():
    rng = np.random.default_rng(3)
    rows = at_step([chat_row(rng, 23, 3, name="d")], "utterance")
    (ranks,) = ranking.read(tiny(critic=None), BOS, rows)
    assert ranks.places.keys() == {"log pi"}
    bare = spoken(chat_row(rng, 23, 2, name="d"))
    (none,) = ranking.read(tiny(critic=None), BOS, [bare | {"proposals": [[] for _ in bare["start"]]}])
    assert len(none.among) == 0
