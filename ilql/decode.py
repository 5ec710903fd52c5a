"""From a trained model to answers and scores. Decision: `ilql.generation` decodes; here stand only the way from turns
to tokens and back, and the window that training saw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from datasets_prep.encode import Encoder
from datasets_prep.layout import called
from datasets_prep.rejects import Reject
from ilql import beginning, control, rerank
from ilql.closed import Closed, choose
from ilql.data import collate, crop, longest_window
from ilql.generation import Choice, Generator, uniform
from ilql.model import ILQLModel
from ilql.quiet import quiet
from ilql.sealed import check_weights, reading, without_code
from ilql.types import AGENT, Episode, InputError, Turn

Message = Mapping[str, Any]


def model_folder(run: str | Path) -> Path:
    """The model's folder of a run folder, or the folder itself where it is a model's."""
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"{run} does not exist; train it with `python train.py --config ... --output {run}`")
    for folder in (run / "model", run):
        if (folder / "config.json").is_file():
            return folder
    raise InputError(f"{run} has no model/ yet: finish the run, or resume it with `python train.py ... --resume`")


def load(run: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[ILQLModel, Encoder]:
    """The model of a run (or model) folder, ready to decode, and the encoder of its tokenizer."""
    folder = model_folder(run)
    check_weights(folder)
    with reading(f"{folder} cannot be loaded", "; train it again"), quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False, use_safetensors=True)
    if not isinstance(model, ILQLModel):
        raise InputError(f"{folder} is a {type(model).__name__}, not a model of this package")
    without_code(model, folder)
    return model.to(device).eval(), Encoder.from_folder(folder)  # type: ignore[arg-type]


@contextmanager
def _dialogues() -> Iterator[None]:
    """A dialogue that cannot be encoded is the caller's input here, not a line of a log to be counted."""
    try:
        yield
    except Reject as reject:
        raise InputError(f"the dialogue cannot be read: {reject.field}: {reject.reason}") from None


class LMPolicy:
    """Answers batches of dialogues; a `Policy` of `ilql.types`.

    beta: 0 is the actor. greedy: argmax instead of sampling at `temperature`. support_top_k, support_top_p: bounds of
    the behaviour policy's support (see `ilql.scores.support`); with them a step reads that many rows of the critics'
    weights instead of all. Sampling draws from torch's global generator, max_new_tokens numbers a dialogue.
    target_return: the undiscounted return, in the log's units, that an agent that is told one (`dt`) is to reach in the
    whole dialogue; None: the largest of its training data. Rewards on the agent's turns are taken off as they come.
    closed: what may be said, see `ilql.closed`. An utterance of a closed set is chosen as a whole, by beta, temperature
    and support as ever. closed_best: there the likeliest is taken, even where other utterances are sampled.
    candidates: the actor proposes so many distinct utterances (`ilql.propose`), sampled at `temperature` without
    replacement, and the critics choose one (`ilql.rerank`): drawn from softmax(beta Q + log pi); greedy, of the best of
    a beam search that of the largest Q, at beta 0 the likeliest. Of a closed set, the set is what is proposed.
    """

    def __init__(
        self,
        model: ILQLModel,
        encoder: Encoder,
        *,
        beta: float = 0.0,
        greedy: bool = False,
        temperature: float = 1.0,
        support_top_k: int | None = None,
        support_top_p: float | None = None,
        max_new_tokens: int = 64,
        batch_size: int = 64,
        target_return: float | None = None,
        closed: Closed | None = None,
        closed_best: bool = False,
        candidates: int | None = None,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise InputError(f"temperature is {temperature}, but must be above 0; for the argmax use greedy decoding")
        if not 0 <= beta < math.inf:
            raise InputError(f"beta is {beta}, but must be a number from 0 (the actor alone) up")
        if candidates is not None:
            rerank.check(model, candidates, support_top_k, support_top_p)
        elif beta:
            model.check_beta(beta)
        for name, number in (
            ("support_top_k", support_top_k),
            ("max_new_tokens", max_new_tokens),
            ("batch_size", batch_size),
        ):
            if number is not None and number < 1:
                raise InputError(f"{name} is {number}, but must be at least 1")
        if support_top_p is not None and not 0 < support_top_p <= 1:
            raise InputError(f"support_top_p is {support_top_p}, but must be in (0, 1]")
        self.model, self.encoder, self.greedy, self.batch_size = model, encoder, greedy, batch_size
        self.max_new_tokens, self.candidates = max_new_tokens, candidates
        self.choice = Choice(beta, None if greedy else temperature, support_top_k, support_top_p)
        self.closed, self.closed_choice = closed, replace(self.choice, temperature=None) if closed_best else self.choice
        self.generator = Generator(model, pad=encoder.pad_id, ends=encoder.end_ids)
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.cut = 0  # dialogues whose oldest turns did not fit the context
        self.target = control.target(model.config.control, model.config.algo, target_return)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The state's tokens, in the window of training; older turns go where the model's context is too short."""
        with _dialogues():
            laid = self.encoder.open(turns)
        tokens, starts = laid.tokens, laid.turn
        if self.target is not None:
            digits = self.model.config.control["digits"]  # type: ignore[index]
            tokens, starts = control.state(laid, turns, self.target, self.encoder.note, digits)
        history = self.model.config.history
        out = crop(tokens, starts, history)
        # A quarter of the context at most is set aside for the answer: it may end sooner, the state cannot.
        room = None if self.context is None else self.context - max(1, min(self.max_new_tokens, self.context // 4))
        if room is None or len(out) <= room:
            return out
        self.cut += 1
        before = len(starts) - 1
        for fewer in range(before if history is None else min(history, before), -1, -1):
            out = [tokens[0], *tokens[starts[len(starts) - 1 - fewer] :]]
            if len(out) <= room:
                return out
        raise InputError(f"the agent's header alone does not fit a context of {self.context}; use a longer one")

    def room(self, prompt: Sequence[int]) -> int:
        """Tokens that the answer may have."""
        return self.max_new_tokens if self.context is None else min(self.max_new_tokens, self.context - len(prompt))

    def respond(
        self, dialogues: Sequence[Sequence[Turn]], prefix: Sequence[Sequence[float] | None] | None = None
    ) -> list[str]:
        """One utterance a dialogue. prefix: what each begins with, where the model was trained with such."""
        with beginning.prompts(self.model, prefix, [self.prompt(turns) for turns in dialogues]) as prompts:
            return self._said(dialogues, prompts)

    def _said(self, dialogues: Sequence[Sequence[Turn]], prompts: Sequence[Sequence[int]]) -> list[str]:
        if self.closed is None:
            return [self.encoder.text(ids) for ids in self.complete(prompts)]
        draws = self.closed_choice.temperature is not None
        noise = uniform(len(prompts), 1).squeeze(1) if draws else None  # a number a dialogue, chosen for or not
        sets = [self.closed(turns, "") for turns in dialogues]
        talking = [i for i, some in enumerate(sets) if some is None]
        said = [""] * len(dialogues)
        for i, ids in zip(talking, self.complete([prompts[i] for i in talking]), strict=True):
            said[i] = self.encoder.text(ids)
            sets[i] = self.closed(dialogues[i], said[i])
        chosen = {i: some for i, some in enumerate(sets) if some is not None}
        with _dialogues():
            answers = [[self.encoder.action(dialogues[i], text) for text in some] for i, some in chosen.items()]
        drawn = None if noise is None else noise[list(chosen)]
        places = self.among([prompts[i] for i in chosen], answers, drawn)
        for (i, some), k in zip(chosen.items(), places, strict=True):
            said[i] = some[k]
        return said

    def among(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], noise: Tensor | None = None
    ) -> list[int]:
        """Which of its answers, given as tokens, each prompt gets. noise: (prompts), as for `ilql.closed.choose`."""
        for prompt, some in zip(prompts, answers, strict=True):
            longest = max(map(len, some))
            if self.context is not None and len(prompt) + longest > self.context:
                raise InputError(
                    f"an utterance to choose from has {longest} tokens, and the dialogue {len(prompt)}: together more "
                    f"than the model's context of {self.context}; raise max_new_tokens, which is set aside for answers"
                )
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        chosen = [0] * len(prompts)
        for part in (order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)):
            drawn = None if noise is None else noise[part]
            pick = choose if self.candidates is None else rerank.pick
            places = pick(self.model, [prompts[i] for i in part], [answers[i] for i in part], self.closed_choice, drawn)
            for i, k in zip(part, places, strict=True):
                chosen[i] = k
        return chosen

    def complete(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The tokens of one utterance a prompt, its end included. Prompts of like length share a batch; greedy decoding
        answers equal prompts once. A sampled answer does not depend on which prompts share its batch."""
        if self.candidates is not None:
            return rerank.best(self, prompts, self.candidates, self.choice.beta, self.choice.temperature)
        keys = [tuple(p) for p in prompts]
        todo = list(dict.fromkeys(keys)) if self.greedy else keys
        noise = None if self.greedy else uniform(len(todo), self.max_new_tokens)
        order = sorted(range(len(todo)), key=lambda i: len(todo[i]))
        replies: list[list[int]] = [[] for _ in todo]
        for part in (order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)):
            rooms = [self.room(todo[j]) for j in part]
            answers = self.generator(
                [todo[j] for j in part], rooms, self.choice, None if noise is None else noise[part]
            )
            for j, ids in zip(part, answers, strict=True):
                replies[j] = ids
        if not self.greedy:
            return replies
        answer = dict(zip(todo, replies, strict=True))
        return [answer[k] for k in keys]


def load_policy(run: str | Path, *, dtype: torch.dtype = torch.float32, **options: object) -> LMPolicy:
    """LMPolicy of a run (or model) folder, its weights in `dtype`; options as for LMPolicy."""
    model, encoder = load(run, dtype=dtype)
    if model.config.algo == "reward_model":
        raise InputError(f"{run} is a reward model and no policy; judge it on pairs, by eval.py {run} --data PAIRS")
    return LMPolicy(model, encoder, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TokenScore:
    """One action token of a dialogue. Values are in the log's units; an actor alone has None for them.

    logp: under the actor. q: minimum over the target critics. v: at the token's state. advantage: q - v. Critics of
    utterances say what they are of at an utterance's last token, about the whole of it: v is at the state before it,
    and its other tokens have None.
    """

    position: int
    token: str
    logp: float
    q: float | None
    v: float | None
    advantage: float | None


@torch.no_grad()
def score(
    model: ILQLModel, dialogue: Episode | Sequence[Turn | Message], encoder: Encoder | None = None
) -> list[TokenScore]:
    """log pi, Q, V and the advantage of every action token of a dialogue: an Episode, turns, or chat `messages`.

    encoder: of the model's tokenizer; None reads it from the folder that the model was loaded from. Raises InputError
    for a dialogue without a turn of the agent, or beyond the model's context.
    """
    encoder = beside(model) if encoder is None else encoder
    episode = dialogue if isinstance(dialogue, Episode) else Episode("dialogue", turns_of(dialogue))
    with _dialogues():
        row = encoder.encode(episode, "utterance" if model.config.critic == "scalar" else "token")
    row |= {name: np.asarray(row[name], np.int32) for name in ("tokens", "turn", "start", "end")}
    if model.config.control is not None:  # told what came of it
        row = control.prepare(row, encoder.note, model.config.control["digits"])
    history = model.config.history
    longest, context = (
        longest_window(row, history),
        getattr(model.config.get_text_config(), "max_position_embeddings", None),
    )
    if context is not None and longest > context:
        raise InputError(
            f"the dialogue has {longest} tokens, but the model's context is {context}; leave out old turns"
        )
    batch = collate([row], gamma=1.0, bos=encoder.bos_id, history=history, bootstraps=False).to(model.device)
    hidden, at = model.hidden(*batch.run), batch.where[batch.target - 1]
    action = batch.tokens[batch.target]
    logits = model.get_output_embeddings()(hidden[at])
    logp = logits.log_softmax(-1).gather(1, action[:, None]).squeeze(1).tolist()
    q: list[float | None] = [None] * batch.m
    v: list[float | None] = [None] * batch.m
    if model.q and model.v is not None:
        scale, read = model.config.reward_scale, model.critic_hidden(hidden, *batch.run)
        before, h = read[batch.where[batch.state]], read[batch.where[batch.last]]
        scalar = model.config.critic == "scalar"
        each = [c(h) if scalar else c.taken(before, batch.action) for c in model.judges]  # type: ignore[operator]
        values = zip((torch.stack(each).amin(0) / scale).tolist(), (model.v(before) / scale).tolist(), strict=True)
        ends = np.cumsum(row["end"] - row["start"]) - 1  # of each decision's last token among all
        for i, (one, other) in zip(ends.tolist(), values, strict=True):
            q[i], v[i] = one, other
    places = np.concatenate([np.arange(s, e) for s, e in zip(row["start"], row["end"], strict=True)]).tolist()
    names = encoder.tokenizer.convert_ids_to_tokens(action.tolist())
    return [
        TokenScore(p, name, lp, a, b, None if a is None or b is None else a - b)
        for p, name, lp, a, b in zip(places, names, logp, q, v, strict=True)
    ]


def turns_of(dialogue: Sequence[Turn | Message]) -> list[Turn]:
    """Turns of chat `messages`: role, content, and where given the other fields of a log's message, rewards aside."""
    turns: list[Turn] = []
    for i, m in enumerate(dialogue):
        if isinstance(m, Turn):
            turns.append(m)
            continue
        if not isinstance(m, Mapping):
            raise InputError(f"message {i + 1} is {m!r}, but must be a Turn or a mapping with role and content")
        content = "" if m.get("content") is None and m.get("tool_calls") else m.get("content")
        if not isinstance(m.get("role"), str) or not isinstance(content, str):
            raise InputError(f"message {i + 1} must have a role and a content, both text")
        try:
            calls = called(m.get("tool_calls"))
        except Reject as fault:
            raise InputError(f"message {i + 1}: {fault}") from None
        named = m.get("name"), m.get("tool_call_id")
        turns.append(Turn(m["role"], content, 0.0, None, m.get("loss_mask", 1) != 0, calls, *named))
    return turns


def beside(model: ILQLModel) -> Encoder:
    """The encoder of the tokenizer in the folder that the model was loaded from."""
    folder = model.config._name_or_path
    if not folder:
        raise InputError("the model was not loaded from a folder, where its tokenizer would be; give an encoder")
    return Encoder.from_folder(Path(folder))


def respond(
    model: ILQLModel,
    messages: Sequence[Turn | Message],
    encoder: Encoder | None = None,
    prefix: Sequence[float] | None = None,
    **options: Any,
) -> str:
    """The agent's next utterance in a dialogue given as chat `messages` (or turns); options as for LMPolicy. encoder:
    as for `score`. prefix: what the dialogue begins with. `model.respond(messages, ...)` is the same."""
    encoder = beside(model) if encoder is None else encoder
    turns = turns_of(messages)
    if turns and turns[-1].role == AGENT:
        raise InputError("the last message is the agent's own; a reply needs a message of the partner last")
    return LMPolicy(model, encoder, **options).respond([turns], [prefix])[0]
