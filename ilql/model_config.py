"""What a model's config says beside the trunk's own. Decision: whatever decoding has to know of training (history, how
the policy is extracted, the scale of values) stands here, so that a model folder is used as it was trained.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from ilql.scores import SCORES
from ilql.types import InputError


class ILQLConfig(PreTrainedConfig):
    """text_config: the trunk's own config. critics: K, 0 for an actor alone. critic: "vocabulary" (Q(s, .) read at the
    state), "likelihood" (the same as probabilities; `likelihood`: how, the fields of `ilql.likelihood.Likelihood`),
    "scalar" (Q(s, a) read at the utterance's last token) or "value" (no Q, but V). history: see DataConfig. scores: a
    name in `ilql.scores.SCORES`. reward_scale: by which Q and V must be divided to be in the log's units. control:
    `digits` of the returns that the agent is told, and from what `low` to what `high` they reach in the data (see
    `ilql.control`). baseline: what returns were compared with in training, a constant in the log's units (0: none).
    prior: whether a frozen copy of the actor as it was at the start of training stands beside it. prior_words: of how
    many words, the likeliest of the prior, the actor chooses the next one in decoding, None for all. target_actor:
    whether a moving average of the actor, by which it is trained, stands beside it. prefix: `size`, how many numbers
    every dialogue begins with, and the token `bos` that they are added to (see `ilql.beginning`). head, head_width,
    freeze, critic_trunk, target_trunk, detach_critics: see ModelConfig."""

    model_type = "ilql"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012

    text_config: dict | PreTrainedConfig | None = None
    critics: int = 2
    critic: str = "vocabulary"
    likelihood: dict[str, Any] | None = None
    head: str = "mlp"
    head_width: int | None = None
    history: int | None = None
    scores: str = "advantage"
    reward_scale: float = 1.0
    algo: str | None = None
    control: dict[str, Any] | None = None
    baseline: float = 0.0
    freeze: str | int | None = None
    critic_trunk: str = "shared"
    target_trunk: str = "shared"
    detach_critics: bool = False
    prior: bool = False
    prior_words: int | None = None
    target_actor: bool = False
    prefix: dict[str, int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = AutoConfig.for_model("gpt2")
        elif isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**self.text_config)
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        told, prefix = self.control or {}, self.prefix or {}
        numbers = {"history": self.history, "head_width": self.head_width, "baseline": self.baseline}
        numbers |= {f"control.{name}": told.get(name) for name in ("digits", "low", "high") if self.control is not None}
        numbers |= {f"prefix.{name}": prefix.get(name) for name in ("size", "bos") if self.prefix is not None}
        for name, value in numbers.items():
            optional = name in ("history", "head_width") and value is None
            if not optional and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise InputError(f"{name} of the model's config is {value!r}, but must be a number")
        if self.scores not in SCORES:
            raise InputError(f"scores is {self.scores!r}, not one of {', '.join(SCORES)}")
        if self.head not in ("mlp", "tied"):
            raise InputError(f"head is {self.head!r}, not mlp or tied")
        if self.critic_trunk not in ("shared", "own") or self.target_trunk not in ("shared", "average"):
            raise InputError(
                f"critic_trunk is {self.critic_trunk!r} and target_trunk {self.target_trunk!r}: see --help"
            )
        others = {"critic_trunk": self.critic_trunk == "own", "target_trunk": self.target_trunk == "average"}
        others |= {"an average of the actor": self.target_actor, "prior_words": self.prior_words is not None}
        if self.prefix is not None and any(others.values()):
            what = next(name for name, used in others.items() if used)
            raise InputError(
                f"{what}: dialogues with a prefix are read by the shared trunk and the prior alone; drop it"
            )
        if (self.critic == "likelihood") != (self.likelihood is not None):
            raise InputError(f"critic is {self.critic!r} and likelihood {self.likelihood!r}: give both, or neither")
        if self.prior_words is not None and not (self.prior and self.prior_words > 0):
            raise InputError(f"prior_words is {self.prior_words}, but must be at least 1, and needs a prior")
        super().__post_init__(**kwargs)
