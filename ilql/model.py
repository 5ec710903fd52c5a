"""The model: one trunk, the actor (its language-model head), K critics with frozen targets, and V, all on the same h_t.

Decision: it is an ordinary model of transformers (`from_pretrained`, `save_pretrained`, `generate`), so that decoding
with `beta` is a keyword of `forward` and caches, left padding, sampling and beams come from there. What a training
step needs is in `ilql.learner`; nothing there asks for a table over the vocabulary. `ilql.build` makes models to train.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ilql import beginning, frozen, passes, recurrent
from ilql.heads import ScalarHead, TiedHead, VocabularyHead, init_head
from ilql.likelihood import Likelihood, LikelihoodHead
from ilql.model_config import ILQLConfig
from ilql.prefix import Segments
from ilql.scores import SCORES, extracted, support
from ilql.types import InputError

__all__ = ["ILQLConfig", "ILQLModel"]


class ILQLModel(PreTrainedModel, GenerationMixin):
    """Trunk and language-model head (`lm`), critics `q`, their frozen copies `q_target`, and `v`; where the config asks
    for them, a trunk that critics and V read in the actor's place (`critic_trunk`), and a frozen average of the trunk
    that critics read, for the targets (`target_trunk`)."""

    config_class = ILQLConfig
    config: ILQLConfig
    base_model_prefix = "lm"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: ILQLConfig, lm: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self._still: list[nn.Module] = []  # stays in eval mode
        self._tuples = False  # what the trunk's blocks give
        self.lm = lm if lm is not None else AutoModelForCausalLM.from_config(config.text_config)
        text: Any = config.text_config
        width, vocabulary = int(text.hidden_size), int(text.vocab_size)
        hidden = config.head_width or 2 * width

        def critic() -> nn.Module:
            if config.critic == "scalar":
                return ScalarHead(width, hidden)
            if config.head == "tied":
                head: VocabularyHead = TiedHead(width, vocabulary, self.lm.get_output_embeddings())
            else:
                head = VocabularyHead(width, hidden, vocabulary)
            return head if config.likelihood is None else LikelihoodHead(head, Likelihood(**config.likelihood))

        self.q = nn.ModuleList(critic() for _ in range(config.critics))
        self.q_target = nn.ModuleList(critic() for _ in range(config.critics))
        self.v = ScalarHead(width, hidden) if config.critics or config.critic == "value" else None
        size = config.prefix
        self.beginning = None if size is None else beginning.Beginning(**size, width=width)
        self.beginning_prior = copy.deepcopy(self.beginning) if config.prior else None
        # Made before `post_init`, which learns there what of them is tied, and is saved once.
        self.prior: PreTrainedModel | None = copy.deepcopy(self.lm) if config.prior else None
        self.target_actor: PreTrainedModel | None = copy.deepcopy(self.lm) if config.target_actor else None
        self.post_init()  # draws fresh weights, so copies are made behind it
        trunk: Any = self.lm.base_model
        own, average = config.critic_trunk == "own", config.target_trunk == "average"
        self.critic_trunk: PreTrainedModel | None = copy.deepcopy(trunk) if own else None
        self.target_trunk: PreTrainedModel | None = copy.deepcopy(trunk) if average else None
        self.sync_targets()
        self.begin_actors()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, VocabularyHead | ScalarHead) and not getattr(module, "_is_hf_initialized", False):
            init_head(module)
        elif not isinstance(module, nn.Linear):  # a head's two layers are drawn with the head
            self.lm._init_weights(module)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but a checkpoint that lacks a weight is an error, and what was frozen comes back so."""
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        bad = sorted(info["missing_keys"]) + sorted(str(m) for m in info["mismatched_keys"])
        if bad:
            name = args[0] if args else kwargs.get("pretrained_model_name_or_path")
            raise InputError(f"{name}: the checkpoint lacks the weight {bad[0]} ({len(bad)} in all); train it again")
        model.freeze()
        return (model, info) if wants_info else model

    def freeze(self) -> None:
        """Take the gradient from the targets and from what `config.freeze` names of the trunk. Loading forgets it."""
        self.freeze_targets()
        self._still = frozen.apply(self.lm, self.config.freeze)
        self._still += [copied for copied in (self.target_trunk, self.prior, self.target_actor) if copied is not None]
        self._tuples = isinstance(self.config.freeze, int) and frozen.gives_tuples(self.lm)
        self.train(self.training)

    def train(self, mode: bool = True) -> ILQLModel:
        """As in torch, but what is frozen stays in eval mode: no dropout there."""
        super().train(mode)
        for module in self._still:
            module.eval()
        return self

    def freeze_targets(self) -> None:
        """Loading, PEFT and `requires_grad_(True)` on a parent forget what is frozen; so this is called after them."""
        for module in (self.q_target, self.target_trunk, self.prior, self.target_actor, self.beginning_prior):
            if module is not None:
                module.requires_grad_(False)

    @torch.no_grad()
    def sync_targets(self) -> None:
        """Make the targets a copy of what they follow, and frozen."""
        for target, online in zip(*self._followed(), strict=True):
            target.copy_(online)
        self.freeze_targets()

    @torch.no_grad()
    def begin_trunks(self, names: Sequence[str]) -> None:
        """Make `critic_trunk` a copy of the actor's trunk, `target_trunk` one of the trunk that critics read."""
        pairs = {"critic_trunk": self.lm.base_model, "target_trunk": self.critic_trunk or self.lm.base_model}
        for name, source in pairs.items():
            if name in names:
                getattr(self, name).load_state_dict(source.state_dict())

    @torch.no_grad()
    def begin_actors(self) -> None:
        """Make the prior and the average copies of the actor, and frozen; for the start of training only."""
        for copied in (self.prior, self.target_actor):
            if copied is not None:
                copied.load_state_dict(self.lm.state_dict())
                copied.requires_grad_(False)
        if self.beginning is not None and self.beginning_prior is not None:
            self.beginning_prior.load_state_dict(self.beginning.state_dict())
            self.beginning_prior.requires_grad_(False)

    @torch.no_grad()
    def update_targets(self, polyak: float) -> None:
        """target <- (1 - polyak) target + polyak online."""
        targets, online = self._followed()
        if targets:
            torch._foreach_lerp_(targets, online, polyak)

    def _followed(self) -> tuple[list[Tensor], list[Tensor]]:
        """The targets' weights, and those that they follow."""
        targets: list[Tensor] = list(self.q_target.parameters())
        online: list[Tensor] = list(self.q.parameters())
        if self.target_trunk is not None:
            trunk = self.lm.base_model if self.critic_trunk is None else self.critic_trunk
            targets += self.target_trunk.parameters()
            online += trunk.parameters()
        if self.target_actor is not None:
            targets += self.target_actor.parameters()
            online += self.lm.parameters()
        return targets, online

    @property
    def judges(self) -> nn.ModuleList:
        """The critics that decode: the targets; or, where these read an average of the trunk that decoding would have
        to run beside it, the critics that they follow."""
        return self.q_target if self.target_trunk is None else self.q

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

    def critic_hidden(self, hidden: Tensor, *run: Any) -> Tensor:
        """What critics and V read, (T, D), given the actor's `hidden` of the same `run`."""
        if self.critic_trunk is not None:
            return self.hidden(*run, trunk=self.critic_trunk)
        return hidden.detach() if self.config.detach_critics else hidden

    def target_hidden(self, hidden: Tensor, *run: Any) -> Tensor:
        """What the target critics read, (T, D), given what critics read: constant where they have an average."""
        if self.target_trunk is None:
            return hidden
        with torch.no_grad():
            return self.hidden(*run, trunk=self.target_trunk)

    def hidden(
        self,
        tokens: Tensor,
        position: Tensor,
        segments: Segments,
        prefix: Tensor | None = None,
        *,
        stored: Tensor | None = None,
        trunk: PreTrainedModel | None = None,
    ) -> Tensor:
        """h_t of packed segments: (T), (T) -> (T, D). A position attends to its segment and the ancestors of that.

        prefix (rows, F): the table that tokens below 0 are rows of.
        stored (T, D): what the frozen part of the trunk gives for these tokens, which then does not run. trunk: another
        one than the actor's; with `stored`, one that shares the frozen part.
        """
        outer = self.lm if trunk is None else trunk
        if prefix is not None:
            with self.begins(prefix, outer):
                return self.hidden(tokens, position, segments, stored=stored, trunk=trunk)
        if self.beginning is not None and not (self.beginning.reading or outer is self.prior):
            beginning.check(self.beginning.size, None, 1)
        if stored is None:
            return passes.hidden(outer, tokens, position, segments)
        freeze = self.config.freeze
        if freeze == frozen.TRUNK:
            return stored
        with frozen.entering(outer, int(freeze or 0), stored, self._tuples):
            return passes.hidden(outer, tokens, position, segments)

    @contextmanager
    def begins(self, prefix: Tensor, lm: PreTrainedModel | None = None) -> Iterator[None]:
        """While the actor reads, or the prior: tokens below 0 are rows of the table `prefix` (rows, F)."""
        outer = self.lm if lm is None else lm
        own = self.beginning if outer is self.lm else self.beginning_prior
        if own is None:
            raise InputError("a prefix is given, but this model was trained without any; leave it out")
        with own.read(outer.get_input_embeddings(), prefix):
            yield

    def q_values(self, hidden: Tensor, action: Tensor | None = None, heads: Any = None) -> Tensor:
        """The pessimistic Q, min over critics, by default the `judges`: of all tokens (..., D) -> (..., V), or of some:
        (N, D), (N, C) -> (N, C). hidden: of the trunk that these critics read."""
        heads = self.judges if heads is None else heads
        each = [q(hidden) if action is None else q.among(q.features(hidden), action) for q in heads]
        return torch.stack(each).amin(0)

    @beginning.rows
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
        prefix: Tensor | None = None,  # taken by `beginning.rows`
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits (B, T or logits_to_keep, V).

        prefix (B, F): what each row begins with, where the model was trained with such; read with a row's first tokens.

        beta None or 0: the actor's own. Otherwise the config's score, log pi_b + beta (Q - V), within the support of
        pi_b (`ilql.scores.support`); beta is in units of the model's own, scaled rewards.
        """
        trunk: Any = self.lm.base_model
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "inputs_embeds": inputs_embeds}
        given |= {"input_ids": input_ids, **kwargs}
        if recurrent.is_recurrent(self.lm):
            if use_cache and past_key_values is not None:
                raise InputError(
                    "a recurrent trunk takes no past from outside: pass use_cache=False, or use `generate`"
                )
            out = recurrent.read(trunk, given)
        else:
            out = trunk(past_key_values=past_key_values, use_cache=use_cache, **given)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = out.last_hidden_state[:, keep]
        logits = self.lm.get_output_embeddings()(hidden)
        if beta:
            read = hidden
            if self.critic_trunk is not None:
                read = self._anew(self.critic_trunk, given, out, past_key_values)[:, keep]
            logits = self.reweighted(read, logits, beta, support_top_k, support_top_p)
        if self.config.prior_words is not None:
            near = self._anew(self.prior.base_model, given, out, past_key_values)  # type: ignore[union-attr]
            logits = self.among_priors(near[:, keep], logits)
        return CausalLMOutputWithPast(logits=logits, past_key_values=getattr(out, "past_key_values", None))

    def _anew(self, trunk: Any, given: dict[str, Any], out: Any, past: Any) -> Tensor:
        """h of another trunk than the actor's for the same tokens, which have to be whole dialogues."""
        if past is not None and past.get_seq_length() > out.last_hidden_state.shape[1]:
            raise InputError("critics with a trunk of their own, and a prior, keep no past: pass use_cache=False")
        other = recurrent.read(trunk, given) if recurrent.is_recurrent(self.lm) else trunk(use_cache=False, **given)
        return other.last_hidden_state  # type: ignore[no-any-return]

    def among_priors(self, near: Tensor, logits: Tensor) -> Tensor:
        """-inf for all words but the prior's likeliest `config.prior_words` (and what is as likely as the last of
        them): logits (..., V), and what the prior's output embedding reads (..., D)."""
        likely: Tensor = self.prior.get_output_embeddings()(near)  # type: ignore[union-attr]
        return logits.masked_fill(~support(likely, top_k=self.config.prior_words), -torch.inf)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Recurrent trunks, critics with a trunk of their own and a prior that bounds the words
        read the whole dialogue anew for every token; the loop of `ilql.generation` does not."""
        apart = (self.critic_trunk is not None and kwargs.get("beta")) or self.config.prior_words is not None
        if recurrent.is_recurrent(self.lm) or apart:
            kwargs["use_cache"] = False
        return super().generate(*args, **kwargs)

    def check_beta(self, beta: float) -> None:
        """Refuse to re-weight without critics of tokens, or where the actor alone is the policy."""
        if self.v is not None and self.config.scores == "actor":
            raise InputError(f"beta is {beta}, but {self.config.algo} decodes by its actor alone; use beta 0")
        if not self.q:
            raise InputError(f"beta is {beta}, but this model has no token critics ({self.config.algo}); use beta 0")
        if self.config.critic == "scalar":
            raise InputError(
                f"beta is {beta}, but this model's critics judge whole utterances and no tokens ({self.config.algo}): "
                "let them choose among candidates (--candidates), or use beta 0"
            )

    def respond(self, messages: Sequence[Any], **options: Any) -> str:
        """The agent's next utterance in a dialogue of chat `messages`: `ilql.decode.respond`, by the tokenizer in the
        folder that the model was loaded from."""
        return import_module("ilql.decode").respond(self, messages, **options)  # type: ignore[no-any-return]

    def reweighted(
        self, hidden: Tensor, logits: Tensor, beta: float, top_k: int | None = None, top_p: float | None = None
    ) -> Tensor:
        """Score every token at `hidden` (..., D), which is what critics read, given the actor's `logits` (..., V); -inf
        outside the support."""
        self.check_beta(beta)
        rows = hidden.flatten(0, -2)
        v: Tensor = self.v(rows)  # type: ignore[misc]
        q = partial(self.q_values, rows)
        scored, token = extracted(
            SCORES[self.config.scores], logits.flatten(0, -2), q, v, beta, top_k=top_k, top_p=top_p
        )
        if token is not None:
            every = scored.new_full((len(scored), logits.shape[-1]), -torch.inf)
            scored = every.scatter_(1, token, scored)
        return scored.view_as(logits)


AutoConfig.register("ilql", ILQLConfig)
AutoModelForCausalLM.register(ILQLConfig, ILQLModel)
