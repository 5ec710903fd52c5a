"""The model that a run begins with. Decision: config and datasets are checked against each other here, before a weight
is made, and whatever the model has to know of them (history, reward scale, tokenizer) goes into its own config.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ilql import spelling, warmstart
from ilql.algos import ALGOS, critic, reads_prior
from ilql.build import build
from ilql.config import TrainConfig
from ilql.feed import Feed
from ilql.learner import check_fits
from ilql.model import ILQLModel
from ilql.scores import SCORES
from ilql.types import InputError


def make_model(cfg: TrainConfig, feed: Feed) -> ILQLModel:
    """The model that the config describes, for the datasets' tokenizer."""
    algo = ALGOS[cfg.algo]
    encoder = feed.encoder
    if cfg.init_from:
        theirs = warmstart.tokenizer_of(Path(cfg.init_from))
        if theirs not in (None, feed.manifests[0]["tokenizer"]["sha256"]):
            raise InputError(
                f"init_from: {cfg.init_from} was trained with another tokenizer than {cfg.data.path[0]} has; "
                f"build the dataset with --tokenizer {cfg.init_from}/model"
            )
    if cfg.model.pretrained is not None:
        warmstart.check_vocabulary(cfg.model.pretrained, encoder.tokenizer.get_vocab(), cfg.data.path[0])
    size = feed.manifests[0].get("prefix")
    model = build(
        cfg.model,
        vocab_size=encoder.vocab_size,
        bos_id=encoder.bos_id,
        pad_id=encoder.pad_id,
        end_ids=encoder.end_ids,
        critic=critic(algo, feed.manifests[0]["step"], cfg.hyper),
        history=cfg.data.history,
        scores=next(name for name, score in SCORES.items() if score is algo.scores),
        reward_scale=cfg.data.reward_scale,
        algo=cfg.algo,
        prior=reads_prior(algo, cfg.hyper),
        prefix=None if size is None else {"size": size, "bos": encoder.bos_id},
        **feed.fields,
    )
    passes = getattr(cfg.hyper, "passes", 1)
    if passes > 1 and not any(isinstance(m, torch.nn.Dropout) and m.p for m in model.lm.modules()):
        raise InputError(f"{cfg.algo}.passes is {passes}, but without dropout all passes are alike: set model.dropout")
    if model.v is not None and model.config.critic == "value":
        model.v.out.bias.data.fill_(model.config.baseline * model.config.reward_scale)
    if cfg.model.embedding == "spelled":
        spelling.begin(model, encoder.tokenizer.get_vocab())
    check_fits(model, feed.longest, encoder.vocab_size)
    return model
