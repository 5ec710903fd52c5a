"""From a config to a model to train. Decision: a trunk that training or decoding would silently get wrong is refused
here, by trying it on a few tokens, not by a list of families.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ilql.model import ILQLConfig, ILQLModel
from ilql.prefix import Segments, paths, positions
from ilql.recurrent import is_recurrent, taken
from ilql.sealed import check_weights, reading, without_code
from ilql.types import InputError

ARCHITECTURES = ("gpt2", "llama")  # shapes that `architecture` trains from scratch and tests cover; others may work
BRANCHED = Segments([3, 2, 2], [-1, -1, 0], [0, 0, 2])  # two pieces, and one that branches off the first


@dataclass(frozen=True)
class ModelConfig:
    """Which trunk and heads to train.

    pretrained: a folder or hub name of any causal LM; None trains `architecture` from scratch in the given shape.
    context: longest dialogue in tokens (from scratch). dropout: of embeddings and residual branches, where the family
    has it. extra: further fields of the trunk's config. critics: K, 1 or 2 (the minimum of the targets is taken).
    head: what critics over the vocabulary end in, a matrix of their own (mlp, the papers') or the language model's
    output embedding (tied, smaller by far, and another model). head_width: of the heads' hidden layer, None = twice the
    trunk's width. dtype: of the weights. embedding: from scratch, random, or spelled: a token's vector begins as a sum
    of its characters' (see `ilql.spelling`). freeze: what is not trained: "trunk", all but an untied output embedding;
    or N, the embeddings and the lowest N blocks. An output embedding that is tied is frozen with the embeddings.
    critic_trunk: own gives critics and V a trunk of their own, a copy of the actor's at the beginning. target_trunk:
    average lets the target critics read a moving average of the trunk that critics read. detach_critics: what critics
    and V learn does not move the trunk.
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
    head: Literal["mlp", "tied"] = "mlp"
    head_width: int | None = None
    dtype: str = "float32"
    embedding: Literal["random", "spelled"] = "random"
    freeze: Literal["trunk"] | int | None = None
    critic_trunk: Literal["shared", "own"] = "shared"
    target_trunk: Literal["shared", "average"] = "shared"
    detach_critics: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "context", "head_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"model.{name} is {value}, but must be at least 1")
        if not 0 <= self.dropout <= 1:
            raise InputError(f"model.dropout is {self.dropout}, but must be a share between 0 and 1")
        if isinstance(self.freeze, int) and self.freeze < 0:
            raise InputError(f"model.freeze is {self.freeze}, but must be at least 0")
        if self.embedding == "spelled" and self.pretrained is not None:
            raise InputError("model.embedding spelled is for training from scratch; drop it or model.pretrained")
        more = [name for name in ("critic_trunk", "target_trunk") if getattr(self, name) != "shared"]
        if self.freeze is not None and more:
            raise InputError(f"model.freeze and model.{more[0]} {getattr(self, more[0])} exclude each other; drop one")
        if self.critic_trunk == "own" and self.detach_critics:
            raise InputError(
                "model.detach_critics takes the gradient from a trunk that model.critic_trunk own replaces"
            )


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


def _pretrained(name: str, dtype: torch.dtype, vocab_size: int) -> PreTrainedModel:
    """The language model of a folder or hub name, with room for the dataset's tokens."""
    check_weights(Path(name))
    with reading(f"model.pretrained: {name!r} is no causal LM"):
        lm = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=False, use_safetensors=True)
    without_code(lm, name)
    if isinstance(lm, ILQLModel):
        lm = lm.lm.requires_grad_(True)  # what that run froze is none of this one's business
    if vocab_size > lm.config.get_text_config().vocab_size:
        lm.resize_token_embeddings(vocab_size)
    return lm  # type: ignore[no-any-return]


def _fresh(cfg: ModelConfig, dtype: torch.dtype, vocabulary: int, bos: int, pad: int, end: int) -> PreTrainedModel:
    """A language model from scratch."""
    try:
        trunk = shape(cfg, vocabulary, bos, pad, end)
        return AutoModelForCausalLM.from_config(trunk, dtype=dtype)  # type: ignore[no-any-return]
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:  # of transformers: widths that do not fit
        reason = str(error).split("\n")[0]
        raise InputError(f"model.architecture: {cfg.architecture!r} cannot be built ({reason})") from None


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

    vocab_size .. end_ids: of the dataset's tokenizer. critic: as in ILQLConfig, or None for an actor
    alone. config: further fields of ILQLConfig (history, scores, reward_scale, algo, ...). Raises InputError for a
    trunk that `check_trunk` refuses.
    """
    if not 0 <= cfg.critics <= 2 or (critic and cfg.critics < 1):
        raise InputError(f"model.critics is {cfg.critics}, but must be 1 or 2")
    trunks = {name: getattr(cfg, name) for name in ("critic_trunk", "target_trunk", "detach_critics")}
    if not critic and trunks != {"critic_trunk": "shared", "target_trunk": "shared", "detach_critics": False}:
        raise InputError(f"model.{', model.'.join(trunks)} are about critics, which {config.get('algo')} has not")
    if critic == "value" and cfg.target_trunk != "shared":
        raise InputError(
            f"model.target_trunk is about target critics, which {config.get('algo')} has not; leave it out"
        )
    dtype = getattr(torch, cfg.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"model.dtype is {cfg.dtype!r}, not a floating point type of torch such as float32")
    if cfg.pretrained is not None:
        lm = _pretrained(cfg.pretrained, dtype, vocab_size)
    else:
        lm = _fresh(cfg, dtype, vocab_size, bos_id, pad_id, end_ids[0])
    attention = lm.config._attn_implementation  # a new outer config resets it in the inner one
    full = ILQLConfig(
        text_config=lm.config,
        critics=0 if critic in (None, "value") else cfg.critics,
        critic=critic or "vocabulary",
        head=cfg.head,
        head_width=cfg.head_width,
        freeze=cfg.freeze,
        **trunks,
        **config,
    )
    full._attn_implementation = attention
    model = ILQLModel(full, lm=lm).to(dtype)
    model.generation_config.bos_token_id = bos_id
    model.generation_config.pad_token_id = pad_id
    model.generation_config.eos_token_id = list(end_ids)
    check_trunk(model)
    model.freeze()
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(
            f"model.freeze: {cfg.freeze} leaves no weight to train: there are no critics, and the output embedding is "
            "tied to the frozen input embedding; free some blocks (model.freeze: N)"
        )
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
    body: Any = model.lm.base_model
    recurs = is_recurrent(model.lm)
    trunk = body(**taken(body, input_ids=tokens[None], attention_mask=real, use_cache=False))
    if not recurs and not hasattr(trunk, "past_key_values"):
        raise InputError(f"the trunk {family!r} keeps no past keys and values, by which we decode; use another")
    # Fresh logits are too small for a cap to show; these are what a sure model's look like.
    sure = torch.linspace(-100, 100, len(model.lm.get_output_embeddings().weight), device=model.device)
    seen: list[Tensor] = []

    def head(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(args[0])
        return sure.to(output).expand_as(output)

    handle = model.lm.get_output_embeddings().register_forward_hook(head)
    try:
        logits = model.lm(input_ids=tokens[None], attention_mask=real, use_cache=False).logits
    finally:
        handle.remove()
    if not seen or not _near(seen[0], trunk.last_hidden_state) or not _near(logits, sure.to(logits).expand_as(logits)):
        raise InputError(f"the trunk {family!r} changes its logits after the output embedding; use another family")
    try:
        prefix = None if model.beginning is None else torch.zeros(1, model.beginning.size, device=model.device)
        hidden = model.hidden(tokens, torch.from_numpy(positions(BRANCHED)).to(tokens), BRANCHED, prefix)
    except NotImplementedError as error:
        raise InputError(f"the trunk {family!r} cannot train on packed dialogues ({error}); use another") from None
    separate = []
    for path, depth in zip(paths(BRANCHED), BRANCHED.depths, strict=True):
        one = {"input_ids": tokens[path][None], "attention_mask": real[:, : len(path)], "use_cache": False}
        alone = body(**taken(body, **one))
        separate.append(alone.last_hidden_state[0, depth:])
    if not _near(hidden, torch.cat(separate)):
        raise InputError(f"the trunk {family!r} mixes dialogues that are packed together; use another family")
    model.train(was_training)


def _near(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, of which low precision has more."""
    tolerance = 1e-3 if torch.finfo(a.dtype).bits >= 32 else 0.1
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)
