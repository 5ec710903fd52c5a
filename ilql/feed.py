"""What a run learns from, in place: the datasets of a config, checked, mixed, selected and ordered. Decision: every
fault of the input is found here, before a model is built or a file written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from transformers import AutoConfig

from datasets_prep.encode import Encoder
from ilql import actor
from ilql.algos import ALGOS, critic
from ilql.border import Dialogues
from ilql.cached import Cache, open_cache
from ilql.config import TrainConfig
from ilql.data import Batch, Row, collate, longest_offer, longest_window
from ilql.diagnostics import highest
from ilql.frozen import TRUNK
from ilql.model import ILQLModel
from ilql.order import BatchConfig, Order
from ilql.pairs import check_pairs
from ilql.replay import Decisions
from ilql.rows import Mix, Rows
from ilql.schema import sha256
from ilql.sealed import reading
from ilql.types import InputError


class Picked(Sequence[dict[str, Any]]):
    """Some rows of a sequence, by index."""

    def __init__(self, rows: Mix, index: np.ndarray) -> None:
        self.rows, self.chosen, self.lengths = rows, index, rows.lengths[index]

    @property
    def selected(self) -> np.ndarray | None:
        """The chosen rows' numbers, None for all."""
        return None if len(self.chosen) == len(self.rows) else self.chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> dict[str, Any]:  # type: ignore[override]
        return self.rows[int(self.chosen[i])]

    def __getitems__(self, index: Sequence[int]) -> list[dict[str, Any]]:
        return [self[i] for i in index]

    @property
    def pair(self) -> np.ndarray | None:
        """Which of the chosen rows are pairs, see `Mix`."""
        numbers = self.rows.pair
        return None if numbers is None else numbers[self.chosen]

    def weights(self, each: Sequence[float]) -> np.ndarray:
        """The weight of each row, of one number a dataset."""
        return np.repeat(each, [len(part) for part in self.rows.parts])[self.chosen]


@dataclass
class Fixed:
    """The same batches every time, made when they are asked for."""

    rows: Picked | Decisions | Dialogues
    collate: Callable[[Any], Batch]
    which: Sequence[Sequence[int]]

    def __iter__(self) -> Iterator[Batch]:
        return (self.collate(self.rows.__getitems__(index)) for index in self.which)


@dataclass
class Feed:
    """rows (dialogues, or decisions from caches) and their order; validation: the fixed batches of this process;
    manifests: of the datasets; mixture: what each of several gives to an epoch; digests: of every dataset's and cache's
    manifest; longest: tokens of the longest piece that a dialogue is read in; fields: what the algorithm adds to the
    model's config; advice: what about the data does not suit the algorithm's options; most: the largest value
    that can be believed, in the log's units (see `ilql.diagnostics`)."""

    rows: Picked | Decisions | Dialogues
    order: Order
    collate: Callable[[Any], Batch]
    validation: Iterable[Batch]
    encoder: Encoder
    manifests: list[dict[str, Any]]
    digests: list[str]
    longest: int
    fields: dict[str, Any] = field(default_factory=dict)
    advice: str | None = None
    caches: list[Cache] = field(default_factory=list)
    most: float = math.inf
    mixture: str | None = None

    def check_trunk(self, model: ILQLModel, cfg: TrainConfig) -> None:
        """Refuse caches of another trunk than the model's, which has its weights by now."""
        for cache in self.caches:
            cache.check_trunk(model, _trunk(cfg) or "from scratch")

    def check_actor(self, model: ILQLModel, cfg: TrainConfig) -> None:
        """Refuse proposals of another actor than the run's that training begins as; the model has its weights."""
        if getattr(ALGOS[cfg.algo], "OFFERED", False):
            actor.check_model(self.manifests[0], cfg.data.path[0], model, str(cfg.init_from))


def read(cfg: TrainConfig, rank: int = 0, world: int = 1) -> Feed:
    """Open the datasets of `cfg.data` for one of `world` processes. Raises InputError naming folder and mend."""
    parts = [Rows(path) for path in cfg.data.path]
    mix = Mix(parts)
    algo = ALGOS[cfg.algo]
    step = mix.parts[0].manifest["step"]
    _check_paired(cfg, parts)
    _check_step(cfg, parts[0])
    encoder = Encoder.from_folder(Path(cfg.data.path[0]) / "tokenizer")
    _check(cfg, parts, encoder)
    if cfg.data.cache is not None:
        _check_cacheable(cfg, parts)
    prepare = getattr(algo, "prepare", None)
    if prepare is not None:
        prepare = partial(prepare, note=encoder.note, cfg=cfg.hyper)
        mix = Mix(parts, prepare)
    offered = getattr(algo, "OFFERED", False)
    if offered:
        actor.check(parts, cfg.algo, cfg.init_from)
    options = {
        "gamma": getattr(cfg.hyper, "gamma", 1.0),  # an algorithm without values has no discount, and reads none
        "reward_scale": cfg.data.reward_scale,
        "bootstraps": algo.BOOTSTRAPS,
        "acted": critic(algo, step, cfg.hyper) == "scalar",
    }
    together = partial(collate, bos=encoder.bos_id, history=cfg.data.history, offered=offered, **options)
    piece = partial(_longest, history=cfg.data.history, offered=offered)
    longest = max(map(piece, mix), default=0)
    rows = {"train": select(mix, cfg, "train")}
    if cfg.log.validate_every:
        held = Mix([Rows(path, "validation") for path in cfg.data.path], prepare)
        if not len(held):
            raise InputError(
                f"log.validate_every is set, but {cfg.data.path[0]} has no validation split; "
                "set it to 0 or build the dataset with --validation"
            )
        _check_paired(cfg, held.parts)
        _check(cfg, held.parts, encoder)
        longest = max(longest, *map(piece, held))
        rows["validation"] = select(held, cfg, "validation")
    digests = [sha256(Path(path) / "manifest.json") for path in cfg.data.path]
    advise, fields = getattr(algo, "advise", None), getattr(algo, "fields", None)
    advice = advise(mix.returns * cfg.data.reward_scale, cfg.hyper) if advise else None
    facts = fields(mix.returns, cfg.hyper) if fields else {}
    manifests = [part.manifest for part in parts]
    to_go = np.concatenate([part.to_go(options["gamma"]) for part in parts])
    valued = algo.CRITIC and not getattr(algo, "PAIRED", False)  # what pairs are worth is no return
    most = highest(to_go) if valued else math.inf
    if hasattr(algo, "level"):
        facts["baseline"] = algo.level(to_go, cfg.hyper)
    feed = partial(Feed, encoder=encoder, manifests=manifests, longest=longest, advice=advice, fields=facts, most=most)
    if cfg.data.cache is None:
        fixed = _arrange(cfg, cfg.batch, rows, together, rank, world)
        return feed(**fixed | {"validation": list(fixed["validation"])}, digests=digests)
    caches = open_caches(cfg)
    digests += [sha256(cache.folder / "manifest.json") for cache in caches]
    batching, pools = _pools(cfg, caches, rows, together, options)
    return feed(**_arrange(cfg, batching, pools, _as_it_is, rank, world), digests=digests, caches=caches)


def _pools(
    cfg: TrainConfig,
    caches: Sequence[Cache],
    rows: Mapping[str, Picked],
    together: Callable[[Any], Batch],
    options: Mapping[str, Any],
) -> tuple[BatchConfig, dict[str, Decisions | Dialogues]]:
    """What batches are made of where hidden states are stored, of each split, and how many of these make one."""
    if cfg.model.freeze == TRUNK:
        each: dict[str, Decisions | Dialogues] = {
            split: Decisions(caches, split, picked.rows, picked.selected, **options) for split, picked in rows.items()
        }
        return replace(cfg.batch, dialogues=cfg.batch.decisions), each
    return cfg.batch, {
        split: Dialogues(caches, split, picked.rows, picked.chosen, together) for split, picked in rows.items()
    }


def _check(cfg: TrainConfig, parts: Sequence[Rows], encoder: Encoder) -> None:
    """Refuse datasets of other tokens, or without what the algorithm reads."""
    for part in parts:
        part.check(encoder.vocab_size)
        _check_behaviour(cfg, part)


def _check_cacheable(cfg: TrainConfig, parts: Sequence[Rows]) -> None:
    """Refuse stored hidden states where the algorithm reads others than those of the rows as they are."""
    for part in parts:
        part.refuse_prefix("data.cache")
    if hasattr(ALGOS[cfg.algo], "prepare"):
        raise InputError(f"data.cache holds rows as they are stored, and {cfg.algo} reads others; leave it out")
    if getattr(ALGOS[cfg.algo], "OFFERED", False):
        raise InputError(f"data.cache has no states of the proposals that {cfg.algo} reads; leave it out")


def _check_paired(cfg: TrainConfig, parts: Sequence[Rows]) -> None:
    """Refuse datasets that are no pairs where the algorithm learns from such."""
    if not getattr(ALGOS[cfg.algo], "PAIRED", False):
        return
    for part in parts:
        check_pairs(part, cfg.algo)
    if cfg.data.reward_scale != 1:
        raise InputError(
            f"data.reward_scale is for rewards in the log; those that {cfg.algo} learns are its own: use 1"
        )


def _check_step(cfg: TrainConfig, rows: Rows) -> None:
    """Refuse a dataset at a time step that the algorithm, or an option of it, is not defined for."""
    algo, step = ALGOS[cfg.algo], rows.manifest["step"]
    if step not in algo.STEPS:
        raise InputError(
            f"{cfg.algo} learns at {' or '.join(algo.STEPS)} steps, but {rows.folder} has {step} steps; build it "
            f"again: {rebuild(rows, algo.STEPS[0])}"
        )
    weight = getattr(cfg.hyper, "cql_weight", 0.0)
    if weight and algo.CRITIC == "vocabulary" and critic(algo, step) == "scalar":
        raise InputError(
            f"{cfg.algo}.cql_weight is {weight:g}, but {rows.folder} has utterance steps, and there is no "
            f"vocabulary of utterances to sum over; set {cfg.algo}.cql_weight to 0"
        )


def reads_behaviour(algo: ModuleType, hyper: Any) -> bool:
    """Whether an algorithm reads the log-probabilities of the policy that wrote the dialogues."""
    return hasattr(algo, "behaviour") and bool(algo.behaviour(hyper))


def _check_behaviour(cfg: TrainConfig, rows: Rows) -> None:
    """Refuse a dataset without the log-probabilities that the algorithm reads."""
    if not reads_behaviour(ALGOS[cfg.algo], cfg.hyper):
        return
    missing = int(np.isnan(rows.logp).sum())
    if missing:
        raise InputError(
            f"{cfg.algo} reads the log-probability of every action under the policy that wrote it, but "
            f"{rows.folder} lacks {missing:,} of {len(rows.logp):,} in its {rows.split} split; let a run score them: "
            f"python -m ilql.annotate logprobs RUN {rows.folder}"
        )


def _longest(row: Row, history: int | None, offered: bool) -> int:
    """Tokens of the longest piece that a dialogue is read in."""
    return max(longest_window(row, history), longest_offer(row, history) if offered else 0)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _arrange(
    cfg: TrainConfig,
    batching: BatchConfig,
    rows: Mapping[str, Picked | Decisions | Dialogues],
    together: Callable[[Any], Batch],
    rank: int,
    world: int,
) -> dict[str, Any]:
    """The fields of Feed that say which rows make which batch. rows: of each split that is read."""
    train = rows["train"]
    weight = None if cfg.data.weights is None else train.weights(cfg.data.weights)
    which: list[Sequence[int]] = []
    if "validation" in rows:
        # A seed and epoch of its own: the same batches at every validation, whatever the run's seed.
        held = rows["validation"]
        order = Order(held.lengths, replace(batching, passes=1), 0, rank, world, pair=getattr(held, "pair", None))
        which = order.batches(0)[: math.ceil(cfg.log.validation_batches / world)]
    return {
        "rows": train,
        "order": Order(train.lengths, batching, cfg.seed, rank, world, weight, getattr(train, "pair", None)),
        "collate": together,
        "validation": Fixed(rows["validation"], together, which) if which else [],
        "mixture": _mixture(cfg, train) if len(cfg.data.path) > 1 else None,
    }


def _mixture(cfg: TrainConfig, rows: Picked | Decisions | Dialogues) -> str:
    """What each dataset gives to an epoch on average."""
    count = len(cfg.data.path)
    each = np.array(cfg.data.weights or [1.0] * count)
    sizes = np.bincount(rows.weights(range(count)).astype(int), minlength=count)
    shares = 100 * sizes * each / (sizes @ each)
    what = "decisions" if isinstance(rows, Decisions) else "dialogues"
    said = zip(cfg.data.path, sizes.tolist(), each.tolist(), shares.tolist(), strict=True)
    return "an epoch: " + ", ".join(f"{path} {n:,} {what} x {w:g} ({s:.1f} %)" for path, n, w, s in said)


def open_caches(cfg: TrainConfig) -> list[Cache]:
    """The caches of hidden states, one for each dataset."""
    source = _trunk(cfg) or "RUN"
    pairs = zip(cfg.data.cache or [], cfg.data.path, strict=True)
    freeze, layers = cfg.model.freeze, 0
    if isinstance(freeze, int):
        name = cfg.model.pretrained
        count = cfg.model.layers
        if name is not None:
            with reading(f"model.pretrained: {name!r} is no causal LM"):
                count = AutoConfig.from_pretrained(name, trust_remote_code=False).get_text_config().num_hidden_layers
        layers = max(0, count - freeze)
    return [open_cache(folder, dataset, cfg.data.history, source, freeze, layers) for folder, dataset in pairs]


def _trunk(cfg: TrainConfig) -> str | None:
    """The folder that the run's trunk comes from."""
    return cfg.init_from or cfg.model.pretrained


def select(mix: Mix, cfg: TrainConfig, split: str) -> Picked:
    """The dialogues that the algorithm learns from."""
    if not len(mix):
        raise InputError(f"{', '.join(cfg.data.path)}: the {split} split has no dialogue; build the dataset again")
    chosen = np.ones(len(mix), bool)
    pick = getattr(ALGOS[cfg.algo], "select", None)
    if pick is not None:
        try:
            chosen = pick(mix.returns, cfg.hyper)
        except InputError as error:
            raise InputError(f"{split} split: {error}") from None
    return Picked(mix, np.flatnonzero(chosen))


def rebuild(rows: Rows, step: str) -> str:
    """The command that builds a dataset again at another time step."""
    manifest = rows.manifest
    corpus = manifest.get("corpus", "CORPUS")
    name = f"{rows.folder}-{step}"
    return f"python -m datasets_prep {corpus} --input PATH --output {name} --step {step}"
