"""What values look like while they are learned. Decision: what the loss has computed anyway is summed at every step;
what needs the vocabulary, or whole dialogues, is read at validation only, of a sample of states and a chunk of them at
a time, so that no table of decisions x vocabulary outlives its chunk. All numbers are in the log's units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ilql import heads, packed
from ilql.agreement import bins, correlation, level, rank_correlation, slope
from ilql.data import Batch
from ilql.learner import Learner, Out
from ilql.model import ILQLModel
from ilql.prefix import paths
from ilql.scores import SCORES

QUANTILES = (0.1, 0.5, 0.9)
BETAS = (1.0, 4.0)
BINS = 5
SAMPLE = 512  # states of a batch that the vocabulary is asked for
MARGIN = 0.05  # of the range of returns, by which a value must be above all of them to count as impossible


# ---- at every step ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def sums(out: Out, most: float) -> Tensor:
    """What `metrics` makes means of, over the decisions (7) in float64; (0) where the loss has not read Q and V.

    most: no value should be above it.
    """
    read = out.__dict__.keys()  # cached properties that were computed
    if "v" not in read or not read & {"q", "_critics"}:
        return torch.zeros(0, dtype=torch.float64, device=out.hidden.device)
    scale = out.model.config.reward_scale
    v, each = out.v.double() / scale, out.q.double() / scale
    q = each.amin(0)
    gap = each.amax(0) - q
    found = [v, v.square(), q, q.square(), (q - v).square(), gap, (q > most).double()]
    return torch.stack(found).sum(1)


def work(model: ILQLModel, batch: Batch) -> tuple[int, int, int]:
    """Positions that the trunk computes, those that are no padding, and tokens of the batch; zeros where it does not
    run."""
    computed = len(batch.run.tokens)
    if not computed:
        return 0, 0, 0
    if packed.supports(model.lm):
        return computed, computed, len(batch.tokens)
    lengths = [len(path) for path in paths(batch.run.segments)]
    return len(lengths) * max(lengths), computed, len(batch.tokens)


def shares(cells: float, computed: float, tokens: float) -> dict[str, float]:
    """From `work`: of positions that are padding, and of tokens that other rows had computed already."""
    return {"padding": 1 - computed / cells, "shared": 1 - computed / tokens} if computed else {}


def metrics(values: Sequence[float], critics: int) -> dict[str, float]:
    """Means from the number of decisions and their `sums`; nothing from nothing."""
    if not values or not values[0]:
        return {}
    n, *rest = values
    v, vv, q, qq, aa, gap, above = (x / n for x in rest)
    row = {"mean_v": v, "std_v": _deviation(v, vv), "mean_q": q, "std_q": _deviation(q, qq)}
    row |= {"mean_advantage": q - v, "std_advantage": _deviation(q - v, aa)}
    if critics > 1:
        row["twin_gap"] = gap
    return row | {"q_above_returns": above}


def _deviation(mean: float, square: float) -> float:
    return math.sqrt(max(0.0, square - mean * mean))


def highest(returns: np.ndarray) -> float:
    """The largest value that can be believed, from returns to go of the training dialogues."""
    return float(returns.max() + MARGIN * np.ptp(returns))


def gradient_norms(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """The gradient's norm by the part of the model that it moves: trunk, critics, V."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            own = {"q": "critics", "v": "v", "critic_trunk": "critic_trunk"}
            part = own.get(name.split(".")[0], "trunk")
            parts.setdefault(part, []).append(parameter.grad)
    if len(parts) < 2:  # the whole is reported anyhow
        return {}
    return {
        f"grad_norm/{part}": float(torch.stack([torch.linalg.vector_norm(g).double() for g in grads]).norm())
        for part, grads in parts.items()
    }


# ---- at validation ---------------------------------------------------------------------------------------------------


@dataclass
class Survey:
    """Sums of the loss vectors over batches, how many decisions and action tokens, and columns of `columns`."""

    sums: dict[str, float] = field(default_factory=dict)
    n: int = 0
    m: int = 0
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def means(self, per_token: Container[str]) -> dict[str, float]:
        """Of the losses; `per_token` names those that have one number an action token."""
        return {name: x / max(1, self.m if name in per_token else self.n) for name, x in self.sums.items()}


@torch.no_grad()
def survey(
    learner: Learner,
    batches: Iterable[Batch],
    within: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Survey:
    """Read batches without learning from them. within: what the forward runs in, such as autocast."""
    found = Survey()
    parts: list[dict[str, np.ndarray]] = []
    was = learner.training
    learner.eval()
    try:
        for batch in batches:
            with within():
                vectors = learner(batch)
                parts.append(columns(learner.take()))
            found.n, found.m = found.n + batch.n, found.m + batch.m
            for name, vector in vectors.items():
                found.sums[name] = found.sums.get(name, 0.0) + float(vector.double().sum())
    finally:
        learner.train(was)
    found.columns = join(parts)
    return found


def join(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else {})}


@torch.no_grad()
def columns(out: Out) -> dict[str, np.ndarray]:
    """Of every decision that has its return: `q` of the target critics, `v`, the discounted return to go `ret`, and
    whether it is its dialogue's `first`. With token critics, of a sample of these: `token_q`, `token_ret`, `logp` of
    the token, `gap` from the mean Q of all other tokens to the token's, and `kl_B` of pi_beta from the actor, for each
    of BETAS. Without critics nothing."""
    model, batch = out.model, out.batch
    if not model.q:
        return {}
    scale = model.config.reward_scale
    known = torch.isfinite(batch.floor)
    wide = {"q": out.q_target, "v": out.v, "ret": batch.ret}
    found = {name: x[known].double() / scale for name, x in wide.items()} | {"first": batch.first[known]}
    if model.config.critic != "scalar":
        place = known.nonzero().squeeze(1)
        if len(place) > SAMPLE:
            place = place[torch.linspace(0, len(place) - 1, SAMPLE, device=place.device).long()]
        found |= _over_vocabulary(out, place)
    return {name: x.detach().cpu().numpy() for name, x in found.items()}


def _over_vocabulary(out: Out, place: Tensor) -> dict[str, Tensor]:
    """The columns of the decisions `place` that ask for every token."""
    model, batch = out.model, out.batch
    at, action, v = batch.where[batch.state[place]], batch.action[place], out.v[place]
    h, read = out.hidden[at], out.critic_hidden[at]
    scale, words = model.config.reward_scale, model.config.get_text_config().vocab_size
    score = SCORES[model.config.scores]
    rows = max(1, heads.CHUNK // (words * max(4, h.element_size()) * (2 + len(model.q_target))))
    names = ["token_q", "logp", "gap"] + [f"kl_{beta:g}" for beta in BETAS]
    parts: list[list[Tensor]] = []
    for some, judged_by, acts, values in zip(*(x.split(rows) for x in (h, read, action, v)), strict=True):
        logits: Tensor = model.get_output_embeddings()(some)
        logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        q = model.q_values(judged_by).to(logp)
        taken = q.gather(1, acts[:, None]).squeeze(1)
        others = (q.sum(1) - taken) / max(1, words - 1)
        line = [taken / scale, logp.gather(1, acts[:, None]).squeeze(1), (taken - others) / scale]
        for beta in BETAS:
            sharper = score(logp, q, values.to(logp), beta).log_softmax(-1)
            line.append((sharper.exp() * (sharper - logp)).nan_to_num(0.0).sum(1))
        parts.append(line)
    found = {name: torch.cat([part[i] for part in parts]).double() for i, name in enumerate(names)} if parts else {}
    empty = h.new_zeros(0).double()
    return {name: found.get(name, empty) for name in names} | {"token_ret": batch.ret[place].double() / scale}


def judged(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What `columns` say; a number that has no meaning (nothing varies, nothing is there) is left out."""
    if not columns or not len(columns["q"]):
        return {}
    q, ret, first = columns["q"], columns["ret"], columns["first"]
    row = {"reliability_slope": slope(q, ret)}
    for share, value in zip(QUANTILES, np.quantile(q - columns["v"], QUANTILES), strict=True):
        row[f"advantage_p{100 * share:.0f}"] = float(value)
    for i, (value, outcome) in enumerate(bins(q, ret, BINS), 1):
        row |= {f"reliability_q{i}": value, f"reliability_return{i}": outcome}
    if first.any():
        v, outcome = columns["v"][first], ret[first]
        row |= {"first_v": float(v.mean()), "first_return": float(outcome.mean())}
        row["first_rank_correlation"] = rank_correlation(level(v), outcome)
    if len(columns.get("gap", ())):
        row["seen_gap"] = float(columns["gap"].mean())
        row["corr_q_logp"] = correlation(columns["token_q"], columns["logp"])
        row["corr_q_return"] = correlation(columns["token_q"], columns["token_ret"])
        row |= {f"kl_beta_{beta:g}": float(columns[f"kl_{beta:g}"].mean()) for beta in BETAS}
    return {name: float(x) for name, x in row.items() if math.isfinite(x)}


# ---- in plain words --------------------------------------------------------------------------------------------------


def doubts(row: Mapping[str, float]) -> dict[str, str]:
    """What a row of metrics gives cause to doubt: a sentence each, by the name of the metric."""
    said: dict[str, str] = {}
    above = row.get("q_above_returns", 0.0)
    if above > 0.1:
        said["q_above_returns"] = (
            f"{100 * above:.0f} % of the logged actions have a Q above every return to go of the training dialogues: "
            "values are overestimated; raise cql_weight, or lower tau or optim.lr"
        )
    if row.get("twin_gap", 0.0) > row.get("std_q", math.inf) > 0:
        said["twin_gap"] = (
            f"the two critics differ by {row['twin_gap']:.3g} on average, which is more than Q varies "
            f"({row['std_q']:.3g}): neither has settled; train longer, or lower optim.lr"
        )
    if row.get("validation/reliability_slope", 1.0) <= 0:
        said["validation/reliability_slope"] = (
            "on held-out dialogues a larger Q goes with a smaller return: the critics have learned nothing that lasts; "
            "look for overfitting (q against validation/q), or get more data"
        )
    if row.get("validation/seen_gap", 0.0) < 0:
        said["validation/seen_gap"] = (
            f"tokens that were not said have a Q {-row['validation/seen_gap']:.3g} above those that were, on average: "
            "decoding by these critics leaves the data; raise cql_weight, or decode with a support"
        )
    usual, worth = row.get("validation/corr_q_logp", 0.0), row.get("validation/corr_q_return", 0.0)
    if usual > max(0.3, worth + 0.1):
        said["validation/corr_q_logp"] = (
            f"Q follows how likely a token is (correlation {usual:.2f}) more than what came of it ({worth:.2f}): a "
            "large beta will only repeat the usual; lower cql_weight"
        )
    return said
