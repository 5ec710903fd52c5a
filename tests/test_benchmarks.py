"""The benchmarks run, and refuse to time what does not compute the same."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as command
from benchmarks import (
    build,
    cache,
    candidates,
    dataset,
    decode,
    flop,
    goals,
    memory,
    page,
    pairs,
    plain_decode,
    plain_train,
    scaling,
    train,
    tree,
    trust,
)
from benchmarks.pairs import Disagreement, Measured
from benchmarks.report import Section
from benchmarks.shapes import TINY, Shape, dialogues, make
from ilql.algos import ilql
from ilql.closed import values
from ilql.data import Batch, collate
from ilql.losses import expectile
from ilql.schema import validate
from ilql.types import InputError

ROOT = Path(__file__).resolve().parents[1]
KINDS = (train.FP32, train.BF16, train.TRLX, train.SNELL)


@pytest.mark.slow
def test_a_quick_run_of_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, asked, probe = tmp_path / "found.json", {}, memory.probe

    def first_of_a_sort(**question: Any) -> dict[str, int]:
        """A process for one trainer and one for a dataset: the others would ask the same."""
        sort = frozenset(question)
        if sort not in asked:
            asked[sort] = probe(**question)
        return asked[sort]

    monkeypatch.setattr(memory, "probe", first_of_a_sort)
    monkeypatch.setattr(pairs.times, "__defaults__", (0.01,))  # seconds that a round of a step fills
    assert command.main(["all", "--quick", "--pairs", "2", "--json", str(found)]) == 0
    report = json.loads(found.read_text())
    assert set(report["sections"]) == set(command.SECTIONS)
    assert all(section["rows"] for section in report["sections"].values())
    assert report["goals"] == []  # tiny shapes are no measure of anything
    assert "| trlx style " in capsys.readouterr().out


def test_candidates_that_are_judged_wrong_stop_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    repliers = candidates.Repliers(TINY, 8, 2)
    repliers.check()
    assert [len(reply) for run in repliers.runs().values() for reply in run()] == [8] * 4  # type: ignore[attr-defined]
    monkeypatch.setattr(candidates, "values", lambda *given: [1.01 * q + 0.01 for q in values(*given)])
    with pytest.raises(Disagreement, match="q is"):
        repliers.check()


# ---- nothing is timed that disagrees ---------------------------------------------------------------------------------


def test_the_trainers_compute_the_same() -> None:
    trainers = train.Trainers(TINY, KINDS)
    trainers.check()
    assert set(trainers.warm) == set(KINDS)


@pytest.mark.parametrize("kind", [train.TRLX, train.SNELL, train.FP32])
@pytest.mark.parametrize("term", ["q", "v", "cql", "bc"])
def test_a_wrong_loss_stops_the_benchmark(kind: str, term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = train.Trainers(TINY, KINDS)
    right = trainers.losses

    def wrong(which: str) -> dict[str, torch.Tensor]:
        losses = right(which)
        return losses | {term: losses[term] * 1.001} if which == kind else losses

    monkeypatch.setattr(trainers, "losses", wrong)
    with pytest.raises(Disagreement, match=term):
        train.compare(trainers, 1)


def test_a_wrong_gradient_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = train.Trainers(TINY, KINDS)
    right = trainers.losses

    def half(which: str) -> dict[str, torch.Tensor]:
        losses = right(which)
        if which == train.TRLX:
            losses["v"] = losses["v"].detach()
        return losses

    monkeypatch.setattr(trainers, "losses", half)
    with pytest.raises(Disagreement, match="the norm of the gradient"):
        train.compare(trainers, 1)


def test_a_mistake_in_our_own_loss_is_told_by_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ilql, "expectile", lambda v, q, tau: expectile(v, q, 1 - tau))
    assert command.main(["train", "--quick", "--pairs", "1"]) == 1
    told = capsys.readouterr()
    assert "error: 2 x 32" in told.err
    assert "nothing was timed" in told.err
    assert "Training steps" not in told.out


def test_heads_on_stored_states_compute_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = train.Trainers(TINY, [train.TRLX])
    trainers.check()
    stored = cache.Cached(TINY, tmp_path)
    assert stored.model.config.freeze == "trunk"
    before = [p.clone() for p in stored.model.parameters()]
    stored.check(*trainers.found[train.TRLX])
    for step in stored.steps().values():
        step()
    moved = {
        name.split(".")[0]
        for (name, p), old in zip(stored.model.named_parameters(), before, strict=True)
        if not torch.equal(p, old)
    }
    assert moved == {"q", "q_target", "v"}
    with pytest.raises(Disagreement, match="ours from stored h_t"):
        stored.check(*trainers.found[train.TRLX])  # the weights have moved


def test_rows_apart_are_the_same_rows() -> None:
    for _, rows in tree.works(TINY.vocabulary, quick=True).values():
        batch = collate(rows, gamma=1.0, bos=0, acted=False)
        whole = tree.rows_apart(batch)
        assert len(batch.run.tokens) < len(whole.run.tokens) == sum(len(row["tokens"]) for row in rows)
        read = batch.where < len(batch.run.tokens)
        assert torch.equal(batch.run.tokens[batch.where[read]], whole.run.tokens[whole.where[read]])
        assert torch.equal(batch.run.position[batch.where[read]], whole.run.position[whole.where[read]])


def test_a_tree_that_is_wrong_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tree.rows_apart

    def misplaced(batch: Batch) -> Batch:
        whole = right(batch)
        return replace(whole, run=whole.run._replace(position=whole.run.position + 1))

    monkeypatch.setattr(tree, "rows_apart", misplaced)
    with pytest.raises(Disagreement, match="exchanges"):
        tree.measure(1, quick=True)


def test_the_decoders_answer_alike() -> None:
    decoders = decode.Decoders(TINY, 8)
    decoders.check()
    greedy = decoders.trlx.complete(decoders.prompts, 8, greedy=True)[0]
    assert greedy == decoders.policy(decoders.model, greedy=True).complete(decoders.prompts)
    assert len(set(map(tuple, greedy))) > 1


@pytest.mark.parametrize("part", ["q_target", "v", "lm"])
def test_a_wrong_decoder_stops_the_benchmark(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoders = decode.Decoders(TINY, 8)
    other = decode.Decoders(TINY, 8).model
    with torch.no_grad():
        for p in getattr(other, part).parameters():
            p.copy_(p.flip(0))
    right = decoders.policy
    monkeypatch.setattr(decoders, "policy", lambda model, greedy=False: right(other, greedy))
    if part == "v":
        decoders.check()  # the same number for all tokens: no choice depends on it
        return
    with pytest.raises(Disagreement, match="greedy answers differ"):
        decoders.check()


def test_answers_that_stop_early_are_less_work() -> None:
    with pytest.raises(Disagreement, match="1 of 2 tokens"):
        decode.same("x", [[4]], ([[4, 5]], [[1.0, 1.0]]))
    decode.same("x", [[4, 6]], ([[4, 5]], [[1.0, 1e-6]]))  # a tie but for rounding
    with pytest.raises(Disagreement, match="row 0 at token 1"):
        decode.same("x", [[4, 6]], ([[4, 5]], [[1.0, 1e-2]]))


def test_no_answer_of_ours_ends_early() -> None:
    decoders = decode.Decoders(TINY, 8)
    assert [len(a) for a in decoders.policy(decoders.low).complete(decoders.prompts)] == [8] * len(decoders.prompts)


def test_decoding_in_bf16_must_be_like_that_in_fp32() -> None:
    decode.alike("x", [[1, 2], [3, 4]], [[1, 9], [4, 4]])
    with pytest.raises(Disagreement, match="only 1 of 3"):
        decode.alike("x", [[1], [2], [3]], [[1], [3], [4]])
    with pytest.raises(Disagreement, match="only 0 of 1"):
        decode.alike("x", [[1]], [[1, 2]])


# ---- what is counted -------------------------------------------------------------------------------------------------


def test_flop_are_those_of_the_plain_step_without_padding() -> None:
    shape = Shape("equal", 2, 32, 2, 61, 3, mean=40, most=40, spread=None)
    # rows of equal length with a decision at every token: nothing is padded in the plain step
    rows = []
    for row in dialogues(shape):
        n = len(row["tokens"])
        start = row["start"][:0].dtype.type(1) + torch.arange(n - 1).numpy().astype(row["start"].dtype)
        reward = torch.zeros(n - 1).numpy()
        rows.append({**row, "start": start, "end": start + 1, "reward": reward, "turn": start[:1]})
    assert len({len(r["tokens"]) for r in rows}) == 1
    model = make(shape)
    cfg = ilql.Config(cql_weight=0.1)
    padded = plain_train.Padded(rows)
    with FlopCounterMode(display=False) as counter:
        torch.stack(list(plain_train.trlx(model, padded, cfg).values())).sum().backward()
    batch = collate(rows, gamma=0.99, bos=0, acted=False)
    mine = flop.step(model, batch)
    width, hidden, layers, n = 32, 64, 2, len(rows[0]["tokens"])
    # The plain step runs the language model at every position and the last token, reads whole target tables, computes V
    # once, and attends to what comes later too (torch counts 2.5 products for attention's backward).
    b = len(rows)
    last = b * 6 * flop.layers(model) + b * 6 * width * 61
    targets = 2 * batch.n * 2 * (hidden * 61 - hidden)
    following = -2 * (width * hidden + hidden) * (batch.n - b)
    counted = counter.get_flop_counts()["Global"]
    attention = sum(v for k, v in counted.items() if "attention" in str(k))
    mine_attention = layers * 12 * width * b * ((n - 1) * n // 2)
    assert mine - mine_attention + last + targets + following == counter.get_total_flops() - attention


def test_flop_of_dialogues_add_up() -> None:
    """A short dialogue beside a long one costs no more than alone: nothing padded is counted as useful."""
    model, rows = make(TINY), dialogues(TINY)
    assert len({len(row["tokens"]) for row in rows}) > 1

    def count(some: list[dict[str, Any]]) -> float:
        return flop.step(model, collate(some, gamma=0.99, bos=0, acted=False))

    assert count(rows) == sum(count([row]) for row in rows)


def test_decoding_reads_every_weight_but_the_critics_tables() -> None:
    model = make(TINY)
    numbers = sum(p.numel() for p in model.lm.transformer.h.parameters() if p.ndim == 2) + 61 * 32
    numbers += 3 * (32 * 64 + 64) + 64 + 2 * 40 * 65
    assert flop.decoding_bytes(model, 2, 20) == 4 * numbers
    assert flop.decoding_bytes(model.to(torch.bfloat16), 2, 20) == 2 * numbers
    assert flop.decoding_bytes(model, 8, 20) == 2 * (numbers + 2 * 21 * 65)  # no more rows than words


def test_every_generated_dialogue_is_well_formed(tmp_path: Path) -> None:
    vocabulary = dataset.byte_encoder().vocab_size
    rows = dialogues(Shape("many", 1, 1, 1, vocabulary, 200, spread=1.2))
    dataset.write(tmp_path / "data", rows, vocabulary)
    assert validate(tmp_path / "data")["files"]["train/data-00000.arrow"]["rows"] == 200


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_a_speedup_is_the_ratio_of_medians_with_the_range_of_pairs() -> None:
    assert pairs.speedup([1.0, 2.0, 4.0], [8.0, 6.0, 4.0]) == Measured(3.0, 1.0, 8.0)


def test_every_round_times_all_and_begins_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    steps = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = pairs.times(steps, 3, dict.fromkeys("abc", 9.0))
    assert "".join(order) == "abcbcacab"
    assert all(len(each) == 3 for each in seconds.values())
    order.clear()
    pairs.times(steps, 1, {"a": 0.1, "b": 2.0, "c": 0.06}, least=0.2)
    assert "".join(order) == "aabcccc"
    for wanted, warm, rounds in ((2, 0.1, 2), (3, 0.1, 6), (3, 0.3, 4), (3, 9.0, 3)):
        short = pairs.times(steps, wanted, dict.fromkeys("abc", warm))
        assert {len(each) for each in short.values()} == {rounds}


def test_the_exponent_of_growth() -> None:
    assert scaling.exponent([1, 2, 4], [3.0, 6.0, 12.0]) == pytest.approx(1.0)
    assert scaling.exponent([1, 2, 4], [1.0, 4.0, 16.0]) == pytest.approx(2.0)


def test_a_goal_is_met_or_missed_by_its_figure() -> None:
    found = {
        "train/first/bf16": Measured(5.01, 4.0, 6.0),
        "train/first/fp32": Measured(2.49, 2.0, 3.0),
        "train/third/fp32": Measured(2.2, 2.0, 2.4),
        "train/third/bf16": Measured(0.7, 0.6, 0.8),
        "memory/first/fp32/GB": Measured(0.6, 0.6, 0.6),
        "memory/dataset/own": Measured(0.01, 0.01, 0.01),
        "memory/dataset/peak": Measured(0.06, 0.06, 0.06),
    }
    rows = {(row["work"], row["goal"]): row for row in goals.verdicts(found, bf16=True)}
    assert len(rows) == len(goals.GOALS)

    def cells(work: str) -> list[tuple[str, str]]:
        return [(row["measured"], row[""]) for (name, _), row in rows.items() if name.startswith(work)]

    assert cells("train, 4 x 768, V 50,257, 8 dialogues, in bf16") == [("5.01x [4.00, 6.00]", "met")]
    assert cells("train, 4 x 768, V 50,257, 8 dialogues, in fp32") == [("2.49x [2.00, 3.00]", "missed")]
    assert cells("train, 4 x 128") == [("2.20x [2.00, 2.40] in fp32", "met")]
    assert cells("the same in gigabytes") == [("0.600 GB", "missed")]
    assert cells("memory of training") == [("+1.0 %; with the mapped files' pages: +6.0 %", "met")]
    assert cells("decode, 4 x 128") == [("not in this run", "–")]
    assert "not judged" in goals.verdicts(found, bf16=False)[0][""]


def test_every_figure_of_a_goal_is_measured_by_some_section(tmp_path: Path) -> None:
    """Names in goals are those that the sections write; a misspelt one would be missing for ever."""
    section = Section("all", "")
    for place, shape in train.shapes(quick=False).items():
        low = {kind: [1.0] for kind in KINDS}
        small = train.Trainers(TINY, KINDS)
        train.lines(section.figures, place, small, low, True)
        assert shape.name
    stored = cache.Cached(TINY, tmp_path)
    stored.steps()
    for place in ("first", "third"):
        seconds = {kind: [1.0] for kind in (cache.FP32, cache.BF16, train.TRLX)}
        train.cache_lines(section, place, stored, seconds)
    decoders = decode.Decoders(TINY, 8)
    for place in decode.shapes(quick=False):
        decode.lines(section, place, decoders, {kind: [1.0] for kind in KINDS}, True)
        for count in (1, candidates.COUNT):
            repliers = candidates.Repliers(TINY, 8, count)
            candidates.line(section, place, repliers, {kind: [1.0] for kind in (candidates.ONE, candidates.AMONG)})
    memory_probe = {"base": 1, "peak": 3, "own": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "probe", lambda **_: memory_probe)
        patch.setattr(memory, "write", lambda *_: 1)
        patch.setattr(memory, "ROWS", 5)
        found = memory.measure()
        patch.setattr(scaling, "compare", lambda *_: {train.FP32: [1.0], train.BF16: [1.0], train.TRLX: [2.0]})
        longer = lambda shape, _: train.Trainers(replace(TINY, mean=TINY.mean + shape.mean // 64), KINDS)  # noqa: E731
        patch.setattr(scaling, "Trainers", longer)
        grown = scaling.measure(1)
        ways = {way: [1.0] for way in (build.OURS, build.TWO, build.ROWS, build.MAP)}
        patch.setattr(build, "compare", lambda *_: (ways, 10))
        patch.setattr(build, "synthetic", lambda *_: None)
        patch.setattr(build, "negotiations", lambda *_: None)
        built = build.measure(1, tmp_path)
    for key in ("epoch", "build"):
        trust.lines(section, key, key, 1.0, {"a part": 0.01}, Measured(0.01, 0.01, 0.01))
    assert section.rows[-1]["share"] == "1.00 % [1.00, 1.00]"
    known = section.figures | found.figures | grown.figures | built.figures
    wanted = {name for goal in goals.GOALS for name in (*goal.figures, *(n for _, n in goal.beside))}
    assert {n for n in wanted if n.split("/")[0] in command.SECTIONS} <= set(known)


# ---- the page --------------------------------------------------------------------------------------------------------


HEAD: dict[str, Any] = {
    "command": "python -m benchmarks all",
    "machine": {"cores": 2},
    "pairs": 5,
    "minutes": 1.0,
    "goals": True,
}


def test_a_run_is_put_between_the_markers_of_a_page(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n", encoding="utf-8")
    section = Section("train", "Training steps", [{"a": 1}], {"train/first/fp32": Measured(3, 2, 4)})
    text = page.markdown(HEAD, [section], bf16=True)
    page.write(path, text, [section])
    once = path.read_text(encoding="utf-8")
    page.write(path, text, [section])
    assert path.read_text(encoding="utf-8") == once
    assert once.startswith(f"before\n{page.BEGIN}\n")
    assert once.endswith(f"{page.END}\nafter\n")
    assert "old" not in once
    assert "3.00x [2.00, 4.00]" in once


@pytest.mark.parametrize("text", ["", page.BEGIN, page.END + page.BEGIN])
def test_a_page_without_markers_is_refused_before_anything_runs(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    assert command.main(["all", "--write", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: --write: {path} must have")


@pytest.mark.parametrize("argv", [["train"], ["all", "--quick"], ["all", "--shape", "768"]])
def test_only_a_whole_run_is_kept(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*argv, "--write", "docs/performance.md"]) == 2
    assert "keeps whole runs only" in capsys.readouterr().err


def test_the_page_of_the_documentation_has_a_place_and_every_goal() -> None:
    path = ROOT / "docs" / "performance.md"
    page.check(path)
    text = path.read_text(encoding="utf-8")
    for goal in goals.GOALS:
        assert f"| {goal.work} " in text
    with pytest.raises(InputError, match="cannot be read"):
        page.check(ROOT / "docs" / "none.md")


def test_the_growth_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    section = Section("scaling", "Growth")
    for axis, (_, sizes) in scaling.AXES.items():
        for size in sizes:
            for kind in (train.FP32, train.BF16, train.TRLX):
                section.figures[f"scaling/{axis}/{size}/{kind}"] = Measured(size, 0.9 * size, 1.1 * size)
    scaling.plot(section, tmp_path / "plot.png")
    assert 5_000 < (tmp_path / "plot.png").stat().st_size < 100_000


def test_the_plain_decoder_reads_the_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    decoders = decode.Decoders(TINY, 8)
    plain = plain_decode.Trlx(decoders.model, 1.0, 20)
    before = plain.complete(decoders.prompts, 8, greedy=True)[0]
    decoders.model.sync_targets()
    assert plain.complete(decoders.prompts, 8, greedy=True)[0] != before


# ---- building --------------------------------------------------------------------------------------------------------


def test_other_rows_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.jsonl"
    build.synthetic(log, 5)
    plain = build.plain
    monkeypatch.setattr(build, "plain", lambda *x: plain(*x) | {"turn": [0]})
    with pytest.raises(Disagreement, match="turn of d0 differs"):
        build.compare("a log", log, tmp_path, 1)
