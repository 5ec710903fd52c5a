"""What a training step computes. Decision: `Out` computes a statistic when a loss first reads it, so that nothing is
computed that no loss asks for, and only at the positions of decisions. `Learner` is the module that DDP or FSDP wraps:
its forward ends in the algorithm's loss, so every parameter is used inside the wrapper.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ilql import copies
from ilql.backups import actors_value, value
from ilql.data import Batch
from ilql.divergence import divergence
from ilql.floored import floored_lse
from ilql.heads import taken_and_lse
from ilql.model import ILQLModel
from ilql.offers import Offers
from ilql.types import InputError


class Out:
    """Statistics of a batch, one number a decision (N) or action token (M), critics leading (K).

    Each is computed once for every distinct h_t and action that it is read from, and spread to the decisions by index.
    token_weight (M): how a loss is going to weigh `logp`, set before that is read; None for all alike.
    """

    token_weight: Tensor | None = None

    def __init__(self, model: ILQLModel, hidden: Tensor, batch: Batch, backup: str | None = None) -> None:
        """hidden (U, D): the trunk's output for `batch.run`. backup: what `q_next` is, see `ilql.backups`."""
        self.model, self.hidden, self.batch, self.backup = model, hidden, batch, backup
        self._learns = torch.is_grad_enabled()
        self._scalar = model.config.critic == "scalar"
        self._likelihood = model.config.critic == "likelihood"

    @cached_property
    def critic_hidden(self) -> Tensor:
        """What critics and V read, (U, D): `hidden`, or as the config says."""
        with torch.set_grad_enabled(self._learns):  # a constant may be the first to ask for it
            return self.model.critic_hidden(self.hidden, *self.batch.run)

    @cached_property
    def target_hidden(self) -> Tensor:
        """What the target critics read, (U, D): what critics read, or as the config says."""
        return self.model.target_hidden(self.critic_hidden, *self.batch.run)

    @cached_property
    def logp(self) -> Tensor:
        """log pi(a) of every action token under the actor, (M). Exact whatever the loss does with it; where the loss
        weighs it by `token_weight`, its gradient comes by the shorter way."""
        head: Any = self.model.get_output_embeddings()
        row, action, spread = self._distinct_acts(self.batch.target, self.batch.target - 1)
        bias, times = getattr(head, "bias", None), _times(spread, self.token_weight)
        taken, lse = taken_and_lse(self.hidden[row], head.weight, bias, action, times)
        return (taken - lse)[spread]

    @cached_property
    def logit(self) -> Tensor:
        """The actor's logit of every action token, (M), in float32 or wider: its Q where an algorithm says so."""
        head: Any = self.model.get_output_embeddings()
        row, action, spread = self._distinct_acts(self.batch.target, self.batch.target - 1)
        wide = torch.promote_types(self.hidden.dtype, torch.float32)
        taken = (self.hidden[row].to(wide) * head.weight[action].to(wide)).sum(-1)
        bias = getattr(head, "bias", None)
        return (taken if bias is None else taken + bias[action].to(wide))[spread]

    @torch.no_grad()
    def actor_next(self, backup: str, passes: int = 1, least: str = "action") -> Tensor:
        """The next state's value by the logits of the average actor, (N): a constant, and 0 where nothing follows.

        backup, least: see `ilql.backups.actors_value`. passes: see `ilql.copies.averaged_hidden`.
        """
        each = copies.averaged_hidden(self.model, self.hidden, self.batch.run, self.batch.hidden, passes)
        head: Any = self.model.target_actor.get_output_embeddings()  # type: ignore[union-attr]
        return self._at_next(lambda place: actors_value(head, [h[place] for h in each], backup, least))

    @cached_property
    @torch.no_grad()
    def prior_hidden(self) -> Tensor:
        """What the prior's output embedding reads, (U, D): a constant."""
        return copies.prior_hidden(self.model, self.hidden, self.batch.run, self.batch.hidden)

    @cached_property
    @torch.no_grad()
    def prior_logp(self) -> Tensor:
        """log p(a) of every action token under the prior, (M): a constant."""
        h, head = self.prior_hidden, self._prior_head
        row, action, spread = self._distinct_acts(self.batch.target, self.batch.target - 1)
        taken, lse = taken_and_lse(h[row], head.weight, getattr(head, "bias", None), action)
        return (taken - lse)[spread]

    @cached_property
    def kl(self) -> Tensor:
        """KL(pi || p) from the prior over the vocabulary at every action token's state, (M), in nats: exact, and
        differentiable in pi."""
        h, head = self.prior_hidden, self._prior_head
        place, spread = _distinct(self.batch.where[self.batch.target - 1])
        return divergence(self.hidden[place], self.model.get_output_embeddings(), h[place], head)[spread]

    @property
    def _prior_head(self) -> Any:
        return self.model.prior.get_output_embeddings()  # type: ignore[union-attr]

    @cached_property
    def _acts(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a critic reads, once for each distinct action in its state: h, the action's last token, the spread."""
        last = self.batch.last
        row, action, spread = self._distinct_acts(last, last if self._scalar else last - 1)
        self._act_rows = row
        return self.critic_hidden[row], action, spread

    def _distinct_acts(self, place: Tensor, read: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The distinct pairs of a row of `hidden`, that of position `read`, and an action token, that at `place`, and
        which of them each entry is. Rows of the batch that share a beginning share its rows of `hidden` too."""
        pair, spread = _distinct((self.batch.where[read] << 32) + self.batch.tokens[place])
        return pair >> 32, pair & 0xFFFFFFFF, spread

    @cached_property
    def _critics(self) -> tuple[Tensor, Tensor]:
        h, action, spread = self._acts
        times = _times(spread)
        pairs = [q.taken_and_lse(h, action, times) for q in self.model.q]  # type: ignore[operator]
        return torch.stack([p[0] for p in pairs])[:, spread], torch.stack([p[1] for p in pairs])[:, spread]

    @cached_property
    def q(self) -> Tensor:
        """Q of the logged action by every critic, (K, N). A loss that reads `q_lse` too reads it first: then both come
        from one pass over the vocabulary."""
        if "_critics" in self.__dict__:
            return self.model.q[0].value(self.q_logp) if self._likelihood else self._critics[0]  # type: ignore[operator]
        h, action, spread = self._acts
        each = [q(h) if self._scalar else q.taken(h, action) for q in self.model.q]  # type: ignore[operator]
        return torch.stack(each)[:, spread]

    @cached_property
    def q_lse(self) -> Tensor:
        """log-sum-exp of Q over all actions, (K, N); token critics only."""
        return self._critics[1]

    @cached_property
    def q_lse_floored(self) -> Tensor:
        """log-sum-exp over all actions of the larger of Q and the batch's `floor`, (K, N); token critics only."""
        # A state has a floor in each dialogue that passes through it, so nothing is shared.
        h = self.critic_hidden[self.batch.where[self.batch.state]]
        floor = self.batch.floor.to(torch.promote_types(h.dtype, torch.float32))
        return torch.stack([floored_lse(q.features(h), *q.words(), floor) for q in self.model.q])  # type: ignore

    @cached_property
    def q_logp(self) -> Tensor:
        """log p of the logged action by likelihood critics, (K, N)."""
        taken, norm = self._critics
        return taken - norm

    @cached_property
    def q_rest(self) -> Tensor:
        """The log-likelihood, by likelihood critics, of what gets the probability that the logged action is not worth,
        (K, N): the mean over all other tokens, or the dummy action's."""
        norm = self._critics[1]
        if self.model.q[0].how.rest == "dummy":  # type: ignore[union-attr]
            return -norm
        h, _, spread = self._acts
        size = len(self.model.q[0].words()[1])  # type: ignore[operator]
        mean = torch.stack([q.mean_logit(h) for q in self.model.q])[:, spread]  # type: ignore[operator]
        return (size * (mean - norm) - self.q_logp) / (size - 1)

    @cached_property
    @torch.no_grad()
    def q_target(self) -> Tensor:
        """Q of the logged action, the minimum over the frozen critics, (N): a constant."""
        h, action, spread = self._acts
        if self.target_hidden is not self.critic_hidden:
            h = self.target_hidden[self._act_rows]
        each = [q(h) if self._scalar else q.taken(h, action) for q in self.model.q_target]  # type: ignore[operator]
        return torch.stack(each).amin(0)[spread]

    @cached_property
    def q_offered(self) -> Tensor:
        """Q of the other replies offered at the decisions' states by every critic, (K, P), of `batch.offered`; scalar
        critics only."""
        place, spread = _distinct(self.batch.where[_there(self.batch.offered).last])
        h = self.critic_hidden[place]
        return torch.stack([q(h) for q in self.model.q])[:, spread]

    @cached_property
    @torch.no_grad()
    def q_target_offered(self) -> Tensor:
        """Q of the replies offered at the next states, the minimum over the frozen critics, (R), of
        `batch.offered_next`: a constant; scalar critics only."""
        place, spread = _distinct(self.batch.where[_there(self.batch.offered_next).last])
        h = self.target_hidden[place]
        return torch.stack([q(h) for q in self.model.q_target]).amin(0)[spread]

    @cached_property
    def v(self) -> Tensor:
        """V at the state, (N)."""
        place, spread = _distinct(self.batch.where[self.batch.state])
        return self.model.v(self.critic_hidden[place])[spread]  # type: ignore[misc]

    @cached_property
    @torch.no_grad()
    def v_next(self) -> Tensor:
        """V at the next state, (N): a constant, and 0 where the discount is 0 and nothing follows."""
        return self._at_next(lambda place: self.model.v(self.critic_hidden[place]))  # type: ignore[misc]

    @cached_property
    @torch.no_grad()
    def q_next(self) -> Tensor:
        """The next state's value by the target critics and the backup, (N): a constant, and 0 where nothing follows."""
        if self.backup is None:
            raise RuntimeError("this loss reads q_next, but its algorithm names no BACKUP")
        backup = self.backup
        return self._at_next(
            lambda place: value(self.model, self.target_hidden[place], backup, acting=self.hidden[place])
        )

    def _at_next(self, read: Callable[[Tensor], Tensor]) -> Tensor:
        """What `read` makes of the rows of distinct next states, spread to the decisions, (N)."""
        follows = self.batch.discount != 0
        place, spread = _distinct(self.batch.where[self.batch.next[follows]])
        out = torch.zeros(self.batch.n, dtype=self.hidden.dtype, device=self.hidden.device)
        out[follows] = read(place)[spread].to(out.dtype)
        return out


def _there(offers: Offers | None) -> Offers:
    if offers is None:
        raise RuntimeError("this loss reads proposals, but its algorithm does not say OFFERED = True")
    return offers


def _distinct(index: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct numbers of an index vector, and which of them each entry is."""
    place, spread = torch.unique(index, return_inverse=True)
    return place, spread


def _times(spread: Tensor, weight: Tensor | None = None) -> Tensor:
    """How often each distinct entry is read, or what its readers weigh together: its share of a sum over all."""
    return torch.bincount(spread, None if weight is None else weight.detach().double()).double()


class Learner(nn.Module):
    """Batch in, unreduced losses out. What the last pass computed is kept until somebody takes it."""

    _out: Out | None = None

    def __init__(self, model: ILQLModel, algo: ModuleType, cfg: Any) -> None:
        super().__init__()
        self.model, self.algo, self.cfg = model, algo, cfg

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The algorithm's loss vectors, each (M) where its name is in `algo.PER_TOKEN`, else (N)."""
        self._out = None
        hidden = self.model.hidden(*batch.run, stored=batch.hidden)
        out = Out(self.model, hidden, batch, getattr(self.algo, "BACKUP", None))
        losses = self.algo.loss(out, batch, self.cfg)
        for name, loss in losses.items():
            wanted = batch.m if name in self.algo.PER_TOKEN else batch.n
            if loss.shape != (wanted,):
                raise RuntimeError(f"loss {name!r} has shape {tuple(loss.shape)}, but must be ({wanted},)")
        self._out = out
        return losses

    def take(self) -> Out:
        """The statistics of the last pass, given away: whoever holds them holds its activations."""
        out, self._out = self._out, None
        if out is None:
            raise RuntimeError("there was no pass since the last one was taken")
        return out


def check_fits(model: ILQLModel, longest: int, vocab_size: int) -> None:
    """Refuse a dataset that the model cannot read: a dialogue beyond its context or tokens beyond its vocabulary."""
    text: Any = model.config.get_text_config()
    context = getattr(text, "max_position_embeddings", None)
    if context is not None and longest > context:
        raise InputError(
            f"the longest dialogue has {longest} tokens, but the model's context is {context}: "
            "set model.context (from scratch), or build the dataset with --max-length"
        )
    if vocab_size > text.vocab_size:
        raise InputError(
            f"the dataset's tokenizer has {vocab_size} tokens, but the model's vocabulary is {text.vocab_size}: "
            "build the dataset with the model's tokenizer"
        )
