"""The model: one trunk, the actor (its language-model head), K critics with frozen targets, and V, all on the same h_t.

Decision: it is an ordinary model of transformers (`from_pretrained`, `save_pretrained`, `generate`), so that decoding
with `beta` is a keyword of `forward` and caches, left padding, sampling and beams come from there. What a training
step needs is in `ilql.learner`; nothing there asks for a table over the vocabulary.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ilql import packed
from ilql.heads import ScalarHead, VocabularyHead, init_head
from ilql.scores import SCORES, support
from ilql.types import InputError

ARCHITECTURES = ("gpt2", "llama")  # shapes that `architecture` trains from scratch and tests cover; others may work


@dataclass(frozen=True)
class ModelConfig:
    """Which trunk and heads to train.

    pretrained: a folder or hub name of any causal LM; None trains `architecture` from scratch in the given shape.
    context: longest dialogue in tokens (from scratch). dropout: of embeddings and residual branches, where the family
    has it. extra: further fields of the trunk's config. critics: K, 1 or 2
    (the minimum of the targets is taken). head_width: of the heads' hidden layer, None = twice the trunk's width.
    dtype: of the weights.
    """

    pretrained: str | None = None
    architecture: str = "gpt2"
    layers: int = 4
    width: int = 128
    heads: int = 4
    context: int = 1024
    dropout: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)
    critics: int = 2
    head_width: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "context", "head_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"model.{name} is {value}, but must be at least 1")


class ILQLConfig(PreTrainedConfig):
    """text_config: the trunk's own config. critics: K, 0 for an actor alone. critic: "vocabulary" (Q(s, .) read at the
    state) or "scalar" (Q(s, a) read at the utterance's last token). history: see DataConfig. scores: a name in
    `ilql.scores.SCORES`. reward_scale: by which Q and V must be divided to be in the log's units."""

    model_type = "ilql"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012

    text_config: dict | PreTrainedConfig | None = None
    critics: int = 2
    critic: str = "vocabulary"
    head_width: int | None = None
    history: int | None = None
    scores: str = "advantage"
    reward_scale: float = 1.0
    algo: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = AutoConfig.for_model("gpt2")
        elif isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**self.text_config)
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        if self.scores not in SCORES:
            raise InputError(f"scores is {self.scores!r}, not one of {', '.join(SCORES)}")
        super().__post_init__(**kwargs)


class ILQLModel(PreTrainedModel, GenerationMixin):
    """Trunk and language-model head (`lm`), critics `q`, their frozen copies `q_target`, and `v`."""

    config_class = ILQLConfig
    config: ILQLConfig
    base_model_prefix = "lm"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: ILQLConfig, lm: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.lm = lm if lm is not None else AutoModelForCausalLM.from_config(config.text_config)
        text: Any = config.text_config
        width, vocabulary = int(text.hidden_size), int(text.vocab_size)
        hidden = config.head_width or 2 * width

        def critic() -> nn.Module:
            if config.critic == "vocabulary":
                return VocabularyHead(width, hidden, vocabulary)
            return ScalarHead(width, hidden)

        self.q = nn.ModuleList(critic() for _ in range(config.critics))
        self.q_target = nn.ModuleList(critic() for _ in range(config.critics))
        self.v = ScalarHead(width, hidden) if config.critics else None
        self.post_init()
        self.sync_targets()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, VocabularyHead | ScalarHead) and not getattr(module, "_is_hf_initialized", False):
            init_head(module)
        elif not isinstance(module, nn.Linear):  # a head's two layers are drawn with the head
            self.lm._init_weights(module)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but a checkpoint that lacks a weight is an error, and the targets come back frozen."""
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        bad = sorted(info["missing_keys"]) + sorted(str(m) for m in info["mismatched_keys"])
        if bad:
            name = args[0] if args else kwargs.get("pretrained_model_name_or_path")
            raise InputError(f"{name}: the checkpoint lacks the weight {bad[0]} ({len(bad)} in all); train it again")
        model.freeze_targets()
        return (model, info) if wants_info else model

    def freeze_targets(self) -> None:
        """Loading, PEFT and `requires_grad_(True)` on a parent forget what is frozen; so this is called after them."""
        self.q_target.requires_grad_(False)

    @torch.no_grad()
    def sync_targets(self) -> None:
        """Make the targets a copy of the critics, and frozen."""
        for target, online in zip(self.q_target.parameters(), self.q.parameters(), strict=True):
            target.copy_(online)
        self.freeze_targets()

    @torch.no_grad()
    def update_targets(self, polyak: float) -> None:
        """target <- (1 - polyak) target + polyak online."""
        targets: list[Tensor] = list(self.q_target.parameters())
        online: list[Tensor] = list(self.q.parameters())
        if targets:
            torch._foreach_lerp_(targets, online, polyak)

    def get_input_embeddings(self) -> nn.Module:
        return self.lm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm.get_output_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.lm.set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        raise InputError(
            "the critics have one output a token: add tokens before training, with --action-token at building"
        )

    def hidden(self, tokens: Tensor, position: Tensor, lengths: Sequence[int]) -> Tensor:
        """h_t of packed pieces: (T), (T) -> (T, D). Attention stays within each piece of `lengths`."""
        trunk = self.lm.base_model
        if packed.supports(self.lm):
            with packed.packed(self.lm):
                return trunk(
                    input_ids=tokens[None],
                    position_ids=position[None],
                    use_cache=False,
                    packed_plan=packed.plan(lengths, tokens.device),
                ).last_hidden_state[0]
        rows = nn.utils.rnn.pad_sequence(list(tokens.split(list(lengths))), batch_first=True)
        real = torch.arange(rows.shape[1], device=rows.device) < torch.tensor(lengths, device=rows.device)[:, None]
        return trunk(input_ids=rows, attention_mask=real.long(), use_cache=False).last_hidden_state[real]

    def q_values(self, hidden: Tensor) -> Tensor:
        """The pessimistic Q over all tokens, min over the target critics: (..., D) -> (..., V)."""
        return torch.stack([q(hidden) for q in self.q_target]).amin(0)

    def forward(  # the names and defaults are those that `generate` passes
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        beta: float | None = None,
        support_top_k: int | None = None,
        support_top_p: float | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits (B, T or logits_to_keep, V).

        beta None or 0: the actor's own. Otherwise the config's score, log pi_b + beta (Q - V), within the support of
        pi_b (`ilql.scores.support`); beta is in units of the model's own, scaled rewards.
        """
        out = self.lm.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = out.last_hidden_state[:, keep]
        logits = self.lm.get_output_embeddings()(hidden)
        if beta:
            logits = self.reweighted(hidden, logits, beta, support_top_k, support_top_p)
        return CausalLMOutputWithPast(logits=logits, past_key_values=out.past_key_values)

    def check_beta(self, beta: float) -> None:
        """Refuse to re-weight without critics of tokens."""
        if self.v is None or self.config.critic != "vocabulary":
            raise InputError(f"beta is {beta}, but this model has no token critics ({self.config.algo}); use beta 0")

    def reweighted(
        self, hidden: Tensor, logits: Tensor, beta: float, top_k: int | None = None, top_p: float | None = None
    ) -> Tensor:
        """Score every token at `hidden` (..., D), given the actor's `logits` (..., V); -inf outside the support."""
        self.check_beta(beta)
        logp = logits.float().log_softmax(-1) if logits.dtype != torch.float64 else logits.log_softmax(-1)
        v: Tensor = self.v(hidden).to(logp)  # type: ignore[misc]
        scored = SCORES[self.config.scores](logp, self.q_values(hidden).to(logp), v, beta)
        return scored.masked_fill(~support(logp, top_k, top_p), -torch.inf)


AutoConfig.register("ilql", ILQLConfig)
AutoModelForCausalLM.register(ILQLConfig, ILQLModel)


def shape(cfg: ModelConfig, vocabulary: int, bos: int, pad: int, end: int) -> PreTrainedConfig:
    """The trunk's config for training from scratch, whatever the family calls its fields."""
    if cfg.architecture not in CONFIG_MAPPING:
        near = difflib.get_close_matches(cfg.architecture, CONFIG_MAPPING, 1)
        hint = near[0] if near else " or ".join(ARCHITECTURES)
        raise InputError(f"model.architecture: {cfg.architecture!r} cannot be built, no such family; try {hint}")
    known = AutoConfig.for_model(cfg.architecture)
    for name in cfg.extra:
        if not hasattr(known, name):
            near = difflib.get_close_matches(name, known.to_dict(), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"model.extra: {cfg.architecture!r} has no field {name!r}{hint}")
    fields: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.heads,
        "intermediate_size": 4 * cfg.width,
        "max_position_embeddings": cfg.context,
        "tie_word_embeddings": True,
        "activation_function": "gelu_pytorch_tanh",  # GPT-2's own function, as one kernel
        "bos_token_id": bos,
        "pad_token_id": pad,
        "eos_token_id": end,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop"), cfg.dropout),
        **dict.fromkeys(("attn_pdrop", "attention_dropout"), 0.0),  # no fused attention kernel of CPUs drops weights
    }
    own = {name: value for name, value in fields.items() if hasattr(known, name)}
    return AutoConfig.for_model(cfg.architecture, **{**own, **cfg.extra})


def build(
    cfg: ModelConfig,
    *,
    vocab_size: int,
    bos_id: int,
    pad_id: int,
    end_ids: Sequence[int],
    critic: str | None = "vocabulary",
    **config: Any,
) -> ILQLModel:
    """A model to train: the trunk pretrained or from scratch, fresh heads.

    vocab_size .. end_ids: of the dataset's tokenizer. critic: "vocabulary", "scalar", or None for an actor alone.
    config: further fields of ILQLConfig (history, scores, reward_scale, algo). Raises InputError for a trunk that
    `check_trunk` refuses.
    """
    if not 0 <= cfg.critics <= 2 or (critic and cfg.critics < 1):
        raise InputError(f"model.critics is {cfg.critics}, but must be 1 or 2")
    dtype = getattr(torch, cfg.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"model.dtype is {cfg.dtype!r}, not a floating point type of torch such as float32")
    if cfg.pretrained is not None:
        try:
            lm = AutoModelForCausalLM.from_pretrained(cfg.pretrained, dtype=dtype)
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(f"model.pretrained: {cfg.pretrained!r} is no causal LM ({reason})") from None
        if isinstance(lm, ILQLModel):
            lm = lm.lm
        if vocab_size > lm.config.get_text_config().vocab_size:
            lm.resize_token_embeddings(vocab_size)
    else:
        try:
            trunk = shape(cfg, vocab_size, bos_id, pad_id, end_ids[0])
            lm = AutoModelForCausalLM.from_config(trunk, dtype=dtype)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:  # of transformers: widths that do not fit
            reason = str(error).split("\n")[0]
            raise InputError(f"model.architecture: {cfg.architecture!r} cannot be built ({reason})") from None
    attention = lm.config._attn_implementation  # a new outer config resets it in the inner one
    full = ILQLConfig(
        text_config=lm.config,
        critics=cfg.critics if critic else 0,
        critic=critic or "vocabulary",
        head_width=cfg.head_width,
        **config,
    )
    full._attn_implementation = attention
    model = ILQLModel(full, lm=lm).to(dtype)
    model.generation_config.bos_token_id = bos_id
    model.generation_config.pad_token_id = pad_id
    model.generation_config.eos_token_id = list(end_ids)
    check_trunk(model)
    return model


@torch.no_grad()
def check_trunk(model: ILQLModel) -> None:
    """Refuse a trunk that we would misread: one whose logits are not its output embedding of the last hidden state
    (some families scale or cap them), whose cache has another form, or that cannot attend within packed pieces."""
    was_training = model.training
    model.eval()
    family, text = model.lm.config.model_type, model.config.get_text_config()
    tokens = torch.arange(7, device=model.device) % int(text.vocab_size)
    real = torch.ones_like(tokens)[None]
    trunk = model.lm.base_model(input_ids=tokens[None], attention_mask=real, use_cache=False)
    if not hasattr(trunk, "past_key_values"):
        raise InputError(f"the trunk {family!r} keeps no past keys and values, by which we decode; use another")
    # Fresh logits are too small for a cap to show; these are what a sure model's look like.
    sure = torch.linspace(-100, 100, len(model.lm.get_output_embeddings().weight), device=model.device)
    seen: list[Tensor] = []

    def head(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(args[0])
        return sure.to(output).expand_as(output)

    handle = model.lm.get_output_embeddings().register_forward_hook(head)
    try:
        logits = model.lm(input_ids=tokens[None], attention_mask=real).logits
    finally:
        handle.remove()
    if not seen or not _near(seen[0], trunk.last_hidden_state) or not _near(logits, sure.to(logits).expand_as(logits)):
        raise InputError(f"the trunk {family!r} changes its logits after the output embedding; use another family")
    try:
        position = torch.cat([torch.arange(4), torch.arange(3)]).to(tokens)
        hidden = model.hidden(tokens, position, [4, 3])
    except NotImplementedError as error:
        raise InputError(f"the trunk {family!r} cannot train on packed dialogues ({error}); use another") from None
    alone: list[Any] = [(t[None], real[:, : len(t)]) for t in tokens.split([4, 3])]
    separate = [model.lm.base_model(input_ids=t, attention_mask=mask, use_cache=False)[0][0] for t, mask in alone]
    if not _near(hidden, torch.cat(separate)):
        raise InputError(f"the trunk {family!r} mixes dialogues that are packed together; use another family")
    model.train(was_training)


def _near(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, of which low precision has more."""
    tolerance = 1e-3 if torch.finfo(a.dtype).bits >= 32 else 0.1
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)
