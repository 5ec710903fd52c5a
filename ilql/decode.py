"""From a trained model to answers and scores. Decision: `generate` of transformers does the decoding, with `beta` as a
keyword of the model's forward; here stand only the way from turns to tokens and back, and the window that training saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from datasets_prep.encode import Encoder
from ilql.data import collate, crop
from ilql.model import ILQLModel
from ilql.types import AGENT, Episode, InputError, Turn


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
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if not isinstance(model, ILQLModel):
        raise InputError(f"{folder} is a {type(model).__name__}, not a model of this package")
    return model.to(device).eval(), Encoder.from_folder(folder)  # type: ignore[arg-type]


class LMPolicy:
    """Answers batches of dialogues by `generate`; a `Policy` of `ilql.types`.

    beta: 0 is the actor. greedy: argmax instead of sampling at `temperature`. support_top_k, support_top_p: bounds of
    the behaviour policy's support (see `ilql.scores.support`). Sampling draws from torch's global generator.
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
    ) -> None:
        if temperature <= 0:
            raise InputError(f"temperature is {temperature}, but must be above 0; for the argmax use greedy decoding")
        self.model, self.encoder, self.greedy, self.batch_size = model, encoder, greedy, batch_size
        self.max_new_tokens = max_new_tokens
        self.options: dict[str, Any] = {
            "beta": beta,
            "do_sample": not greedy,
            **({} if greedy else {"temperature": temperature, "top_k": 0, "top_p": 1.0}),
            **({"support_top_k": support_top_k, "support_top_p": support_top_p} if beta else {}),
        }
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.cut = 0  # dialogues whose oldest turns did not fit the context

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The state's tokens, in the window of training; older turns go where the model's context is too short."""
        tokens, starts = self.encoder.state(turns)
        history = self.model.config.history
        out = crop(tokens, starts, history)
        # A quarter of the context at most is set aside for the answer: it may end sooner, the state cannot.
        room = None if self.context is None else self.context - max(1, min(self.max_new_tokens, self.context // 4))
        if room is None or len(out) <= room:
            return out
        self.cut += 1
        for fewer in range(min(history or len(starts), len(starts) - 1), -1, -1):
            out = [tokens[0], *tokens[starts[len(starts) - 1 - fewer] :]]
            if len(out) <= room:
                return out
        raise InputError(f"the agent's header alone does not fit a context of {self.context}; use a longer one")

    @torch.no_grad()
    def _generate(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        longest = max(len(p) for p in prompts)
        pad = self.encoder.pad_id
        rows = [[pad] * (longest - len(p)) + list(p) for p in prompts]
        real = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
        device = self.model.device
        out = self.model.generate(
            torch.tensor(rows, device=device),
            attention_mask=torch.tensor(real, device=device),
            pad_token_id=pad,
            eos_token_id=self.encoder.end_ids,
            max_new_tokens=min(self.max_new_tokens, (self.context or longest + self.max_new_tokens) - longest),
            **self.options,
        )
        ends = set(self.encoder.end_ids)
        replies = []
        for row in out[:, longest:].tolist():
            stop = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            replies.append(row[:stop])
        return replies

    def respond(self, dialogues: Sequence[Sequence[Turn]]) -> list[str]:
        """One utterance a dialogue. Dialogues of like length share a batch; greedy answers equal states once."""
        prompts = [tuple(self.prompt(turns)) for turns in dialogues]
        todo = list(dict.fromkeys(prompts)) if self.greedy else prompts
        order = sorted(range(len(todo)), key=lambda i: len(todo[i]))
        texts = [""] * len(todo)
        for i in range(0, len(order), self.batch_size):
            part = order[i : i + self.batch_size]
            for j, ids in zip(part, self._generate([todo[j] for j in part]), strict=True):
                texts[j] = self.encoder.text(ids)
        if not self.greedy:
            return texts
        answer = dict(zip(todo, texts, strict=True))
        return [answer[p] for p in prompts]


def load_policy(run: str | Path, **options: object) -> LMPolicy:
    """LMPolicy of a run (or model) folder; options as for LMPolicy."""
    model, encoder = load(run)
    return LMPolicy(model, encoder, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TokenScore:
    """One action token of a dialogue. Values are in the log's units; an actor alone has None for them.

    logp: under the actor. q: minimum over the target critics. v: at the token's state. advantage: q - v.
    """

    position: int
    token: str
    logp: float
    q: float | None
    v: float | None
    advantage: float | None


@torch.no_grad()
def score(model: ILQLModel, dialogue: Episode | Sequence[Turn], encoder: Encoder | None = None) -> list[TokenScore]:
    """log pi, Q, V and the advantage of every action token of a dialogue.

    encoder: of the model's tokenizer; None reads it from the folder that the model was loaded from.
    """
    if encoder is None:
        encoder = Encoder.from_folder(Path(model.config._name_or_path))
    episode = dialogue if isinstance(dialogue, Episode) else Episode("dialogue", list(dialogue))
    row = encoder.encode(episode, "token")
    row = {**row, "start": torch.tensor(row["start"]).numpy(), "end": torch.tensor(row["end"]).numpy()}
    row["tokens"] = torch.tensor(row["tokens"], dtype=torch.int32).numpy()
    batch = collate([row], gamma=1.0, bos=encoder.bos_id, history=model.config.history, bootstraps=False)
    batch = batch.to(model.device)
    hidden = model.hidden(*batch.run)[batch.where[batch.target - 1]]
    action = batch.tokens[batch.target]
    head: Any = model.get_output_embeddings()
    logits = head(hidden)
    logp = logits.log_softmax(-1).gather(1, action[:, None]).squeeze(1).tolist()
    q: list[float | None] = [None] * batch.m
    v: list[float | None] = [None] * batch.m
    if model.v is not None and model.config.critic == "vocabulary":
        scale = model.config.reward_scale
        each = [c.taken(hidden, action) for c in model.q_target]  # type: ignore[operator]
        q = (torch.stack(each).amin(0) / scale).tolist()
        v = (model.v(hidden) / scale).tolist()
    names = encoder.tokenizer.convert_ids_to_tokens(action.tolist())
    return [
        TokenScore(int(p), name, lp, a, b, None if a is None or b is None else a - b)
        for p, name, lp, a, b in zip(row["start"], names, logp, q, v, strict=True)
    ]


def respond(model: ILQLModel, messages: Sequence[dict[str, str]], encoder: Encoder, **options: object) -> str:
    """The agent's next utterance in a dialogue given as chat `messages`; options as for LMPolicy."""
    turns = [Turn(m["role"], m["content"]) for m in messages]
    if turns and turns[-1].role == AGENT:
        raise InputError("the last message is the agent's own; a reply needs a message of the partner last")
    return LMPolicy(model, encoder, **options).respond([turns])[0]  # type: ignore[arg-type]
