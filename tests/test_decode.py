"""From turns to answers and scores: the way there and back, the window of training, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as hf_logging

from datasets_prep import tokenizer as tk
from datasets_prep.encode import Encoder
from ilql import decode
from ilql.build import ModelConfig, build
from ilql.decode import LMPolicy, load, load_policy, model_folder, respond, score, turns_of
from ilql.generation import Generator
from ilql.model import ILQLModel
from ilql.types import Episode, InputError, Turn

HI = [{"role": "user", "content": "hi"}]
DIALOGUE = [
    Turn("system", "s"),
    Turn("user", "hi"),
    Turn("assistant", "yo", reward=1.0),
    Turn("user", "ok"),
    Turn("assistant", "bye"),
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(tk.train("byte", []))


def make(encoder: Encoder, architecture: str = "gpt2", *, context: int = 96, **options: Any) -> ILQLModel:
    """A model in float64 whose answers differ between dialogues and betas."""
    torch.manual_seed(5)
    model = build(
        ModelConfig(architecture=architecture, layers=2, width=16, heads=2, context=context, dtype="float64"),
        vocab_size=encoder.vocab_size,
        bos_id=encoder.bos_id,
        pad_id=encoder.pad_id,
        end_ids=encoder.end_ids,
        **options,
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.eval()


@pytest.fixture(scope="module")
def model(encoder: Encoder) -> ILQLModel:
    return make(encoder)


@pytest.fixture
def run(model: ILQLModel, encoder: Encoder, tmp_path: Path) -> Path:
    with decode.quiet():
        model.save_pretrained(tmp_path / "run" / "model")
    encoder.tokenizer.save_pretrained(tmp_path / "run" / "model")
    return tmp_path / "run"


# ---- score -----------------------------------------------------------------------------------------------------------


def plain_scores(model: ILQLModel, states: list[list[int]], actions: list[int], scale: float) -> list[tuple]:
    """(log pi, Q, V, A) of actions in states, each state by itself through the bare trunk."""
    out = []
    for ids, action in zip(states, actions, strict=True):
        h = model.lm.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
        logp = torch.log_softmax(model.lm.get_output_embeddings()(h), -1)[action].item()
        q = min(critic(h)[action].item() for critic in model.q_target) / scale
        v = model.v(h).item() / scale
        out.append((logp, q, v, q - v))
    return out


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_score_equals_a_plain_recomputation(encoder, architecture):
    model = make(encoder, architecture, reward_scale=0.25)
    with torch.no_grad():  # no critic is always the smaller one
        model.q_target[1].out.bias.copy_(model.q_target[0].out.bias + torch.randn(encoder.vocab_size))
    row = encoder.encode(Episode("d", DIALOGUE), "token")
    tokens = row["tokens"]
    got = score(model, DIALOGUE, encoder)
    assert [s.position for s in got] == row["start"]
    assert [s.token for s in got] == ["y", "o", "<|end|>", "b", "y", "e", "<|end|>"]
    want = plain_scores(model, [tokens[:s] for s in row["start"]], [tokens[s] for s in row["start"]], 0.25)
    for have, expected in zip(got, want, strict=True):
        assert (have.logp, have.q, have.v, have.advantage) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("history", [1, 2, 3])
def test_score_reads_the_window_of_training(encoder, history):
    model = make(encoder, history=history)
    row = encoder.encode(Episode("d", DIALOGUE), "token")
    tokens, turn = row["tokens"], row["turn"]
    states = []
    for s in row["start"]:
        current = max(i for i, begin in enumerate(turn) if begin < s)
        begin = turn[max(0, current - history)]
        states.append([tokens[0], *tokens[begin:s]])
    assert any(len(state) < s for state, s in zip(states, row["start"], strict=True))
    want = plain_scores(model, states, [tokens[s] for s in row["start"]], 1.0)
    for have, expected in zip(score(model, DIALOGUE, encoder), want, strict=True):
        assert (have.logp, have.q, have.v, have.advantage) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_scores_of_a_short_window_are_those_of_the_cropped_dialogue(encoder):
    model = make(encoder, history=1)
    whole, last = score(model, DIALOGUE, encoder), score(model, DIALOGUE[3:], encoder)
    assert [(s.logp, s.q, s.v) for s in whole[3:]] == [pytest.approx((s.logp, s.q, s.v)) for s in last]
    longer = score(make(encoder, history=2), DIALOGUE, encoder)
    assert longer[3].logp != pytest.approx(whole[3].logp), "two turns are another state than one"


@pytest.mark.parametrize("history", [None, 1])
def test_critics_of_utterances_score_an_utterance_at_its_last_token(encoder, history):
    model = make(encoder, reward_scale=0.25, critic="scalar", history=history)
    with torch.no_grad():  # no critic is always the smaller one
        model.q_target[1].out.bias.copy_(model.q_target[0].out.bias + 0.01)
        row = encoder.encode(Episode("d", DIALOGUE), "utterance")
        tokens, turn = row["tokens"], row["turn"]
        got = score(model, DIALOGUE, encoder)
        place = 0
        for start, end in zip(row["start"], row["end"], strict=True):
            current = max(i for i, begin in enumerate(turn) if begin < start)
            begin = 0 if history is None or current <= history else turn[current - history]
            said = torch.tensor([[*([tokens[0]] if begin else []), *tokens[begin:end]]])
            h = model.lm.base_model(input_ids=said).last_hidden_state[0]
            logp = model.get_output_embeddings()(h).log_softmax(-1)
            n = end - start
            q = min(c(h[-1]).item() for c in model.q_target) / 0.25
            v = model.v(h[-1 - n]).item() / 0.25
            own = got[place : place + n]
            assert [s.position for s in own] == list(range(start, end))
            want = [logp[k - n - 1, said[0, k - n]].item() for k in range(n)]
            assert [s.logp for s in own] == pytest.approx(want, rel=1e-9, abs=1e-9)
            assert [(s.q, s.v, s.advantage) for s in own[:-1]] == [(None, None, None)] * (n - 1)
            assert (own[-1].q, own[-1].v, own[-1].advantage) == pytest.approx((q, v, q - v), rel=1e-9, abs=1e-9)
            place += n
    assert place == len(got)


def test_an_actor_alone_has_no_values(encoder):
    critics = make(encoder)
    alone = make(encoder, critic=None, algo="bc")
    alone.lm.load_state_dict(critics.lm.state_dict())
    for a, b in zip(score(alone, DIALOGUE, encoder), score(critics, DIALOGUE, encoder), strict=True):
        assert (a.q, a.v, a.advantage) == (None, None, None)
        assert a.logp == pytest.approx(b.logp, rel=1e-12)
        assert b.q is not None


def test_episodes_turns_and_messages_score_alike(model, encoder):
    def numbers(dialogue: Any) -> list[float]:
        return [x for s in score(model, dialogue, encoder) for x in (s.position, s.logp, s.q, s.v, s.advantage)]

    want = numbers(Episode("d", DIALOGUE, terminated=True))
    assert numbers(DIALOGUE) == pytest.approx(want, rel=1e-12)
    messages = [{"role": t.role, "content": t.text} for t in DIALOGUE]
    assert numbers(messages) == pytest.approx(want, rel=1e-12)
    assert numbers(Episode("d", [*DIALOGUE, Turn("user", "well")], terminated=False)) == pytest.approx(want, rel=1e-9)
    messages[2]["loss_mask"] = 0
    assert numbers(messages) == pytest.approx(want[3 * 5 :], rel=1e-9), "the first answer is observation now"


def test_score_finds_the_encoder_beside_the_model(run, model, encoder):
    loaded, _ = load(run, dtype=torch.float64)
    want = score(model, DIALOGUE, encoder)
    assert [s.logp for s in score(loaded, DIALOGUE)] == pytest.approx([s.logp for s in want], rel=1e-12)


def test_tool_calls_are_part_of_the_action(model, encoder):
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    said = [*HI, {"role": "assistant", "content": None, "tool_calls": calls}]
    assert "".join(s.token for s in score(model, said, encoder)).startswith('[{"')


@pytest.mark.parametrize(
    ("dialogue", "says"),
    [
        (HI, "no turn of the agent"),
        ([], "no turn of the agent"),
        ([{"role": "bot", "content": "x"}], "role: 'bot' is none of"),
        ([{"role": "user"}], "message 1 must have a role and a content"),
        ([{"role": "user", "content": None}], "message 1 must have"),
        ([*HI, {"content": "x"}], "message 2 must have"),
        ([*HI, {"role": "assistant", "content": 3}], "message 2 must have"),
        ([Turn("user", "hi", reward=1.0), Turn("assistant", "yo")], "reward: on a turn of 'user'"),
        ([Turn("user", "hi"), Turn("assistant", "yo", reward=float("nan"))], "reward: NaN"),
        ([Turn("user", "h" * 200), Turn("assistant", "yo")], "context is 96"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(model, encoder, dialogue, says):
    with pytest.raises(InputError, match=r"^[^\n]+$") as error:
        score(model, dialogue, encoder)
    assert says in str(error.value)


def test_an_empty_content_is_a_content(model, encoder):
    assert [s.token for s in score(model, [*HI, {"role": "assistant", "content": ""}], encoder)] == ["<|end|>"]


def test_messages_are_read_as_a_log_is():
    call = {"function": {"name": "look", "arguments": '{"at": 5}'}}
    answer = {"role": "tool", "content": "a map", "name": "look", "tool_call_id": "c1"}
    assert turns_of([{"role": "assistant", "tool_calls": [call], "loss_mask": 0}, answer]) == [
        Turn("assistant", "", act=False, tool_calls=[{"function": {"name": "look", "arguments": {"at": 5}}}]),
        Turn("tool", "a map", name="look", tool_call_id="c1"),
    ]
    call["function"]["arguments"] = "{"
    with pytest.raises(InputError, match=r"message 1: .*tool_calls\[0\].function.arguments: a text that is no JSON"):
        turns_of([{"role": "assistant", "tool_calls": [call]}])


def test_a_long_dialogue_in_short_windows_fits(encoder):
    turns = [Turn("user", "0123456789"), Turn("assistant", "y")] * 12
    with pytest.raises(InputError, match="context is 96"):
        score(make(encoder), turns, encoder)
    assert len(score(make(encoder, history=2), turns, encoder)) == 24


# ---- answers ---------------------------------------------------------------------------------------------------------


def states() -> list[list[Turn]]:
    texts = ["a", "hello there", "hi", "what is it?", "no", "ok then, go on"]
    return [[Turn("user", t)] for t in texts] + [DIALOGUE[:4], [Turn("user", "hi"), *DIALOGUE[2:4]]]


def uncached(model: ILQLModel, encoder: Encoder, turns: list[Turn], beta: float, steps: int) -> str:
    ids, _ = encoder.state(turns)
    said: list[int] = []
    while len(said) < steps and not (said and said[-1] in encoder.end_ids):
        said.append(int(model(input_ids=torch.tensor([ids + said]), beta=beta).logits[0, -1].argmax()))
    return encoder.text(said)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_greedy_answers_do_not_depend_on_their_batch(encoder, architecture, beta):
    model = make(encoder, architecture)
    want = [uncached(model, encoder, turns, beta, 12) for turns in states()]
    assert len(set(want)) > 3
    for size in (1, 3, 64):
        policy = LMPolicy(model, encoder, beta=beta, greedy=True, max_new_tokens=12, batch_size=size)
        assert policy.respond(states()) == want
        assert policy.respond(states()[::-1]) == want[::-1]
    assert policy.respond([]) == []


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_sampled_answers_do_not_depend_on_their_batch(encoder, beta):
    model = make(encoder)
    answers = []
    for size in (1, 3, 64):
        torch.manual_seed(7)
        answers.append(LMPolicy(model, encoder, beta=beta, max_new_tokens=12, batch_size=size).respond(states()))
    assert answers[0] == answers[1] == answers[2]
    assert len(set(answers[0])) > 3


def test_an_answer_ends_where_the_turn_ends(encoder):
    model = make(encoder)
    with torch.no_grad():
        model.q_target[0].out.bias[encoder.end_ids[0]] += 1e4
        model.q_target[1].out.bias[encoder.end_ids[0]] += 1e4
    generated = LMPolicy(model, encoder, beta=1.0, max_new_tokens=9).complete([encoder.state([Turn("user", "hi")])[0]])
    assert generated == [[encoder.end_ids[0]]]
    assert respond(model, HI, encoder, beta=1.0) == ""


def test_equal_states_are_answered_once_where_that_is_the_same(model, encoder, monkeypatch):
    asked: list[int] = []
    generate = Generator.__call__

    def counted(self: Generator, prompts: Any, *rest: Any) -> list[list[int]]:
        asked.append(len(prompts))
        return generate(self, prompts, *rest)

    monkeypatch.setattr(Generator, "__call__", counted)
    same = [[Turn("user", "hi")]] * 5 + [[Turn("user", "ho")]]
    greedy = LMPolicy(model, encoder, greedy=True, max_new_tokens=4).respond(same)
    assert asked == [2]
    assert len(greedy) == 6
    assert len(set(greedy[:5])) == 1
    assert greedy[5] == LMPolicy(model, encoder, greedy=True, max_new_tokens=4).respond(same[5:])[0]
    asked.clear()
    torch.manual_seed(0)
    drawn = LMPolicy(model, encoder, max_new_tokens=4).respond(same)
    assert asked == [6]
    assert len(set(drawn[:5])) > 1, "sampled answers are drawn apart"


def test_a_closed_set_is_chosen_from_and_free_talk_stays_free(encoder):
    """Three states: one where only some may be said, one whose own utterance opens the set, one that is free."""
    model = make(encoder)
    few = ["yes", "no", "maybe so"]
    dialogues = [[Turn("user", "hi")], [Turn("user", "ok then")], [Turn("user", "well, well")]]
    free = LMPolicy(model, encoder, greedy=True, max_new_tokens=6).respond(dialogues)

    def offers(turns: Any, utterance: str) -> list[str] | None:
        return few if turns[0].text == "hi" or (utterance and utterance == free[1]) else None

    said = LMPolicy(model, encoder, greedy=True, max_new_tokens=6, beta=2.0, closed=offers)
    alone = LMPolicy(model, encoder, greedy=True, max_new_tokens=6, closed=offers)
    for policy in (said, alone):
        got = policy.respond(dialogues)
        plain = LMPolicy(model, encoder, greedy=True, max_new_tokens=6, beta=policy.choice.beta).respond(dialogues)
        assert got[2] == plain[2]
        logp = []
        for text in few:
            ids = encoder.action(dialogues[0], text)
            prompt = torch.tensor([[*policy.prompt(dialogues[0]), *ids]])
            with torch.no_grad():
                scores = model(prompt, beta=policy.choice.beta).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
            logp.append(float(scores[torch.arange(len(ids)), ids].sum()))
        assert got[0] == few[max(range(3), key=logp.__getitem__)]
    assert alone.respond(dialogues)[1] in few


def test_draws_of_a_closed_set_follow_the_seed_and_the_best_needs_none(encoder):
    model = make(encoder)
    few = ["a", "b", "c", "d"]
    state = [[Turn("user", "hi")]] * 40

    def said(**options: Any) -> list[str]:
        torch.manual_seed(3)
        return LMPolicy(model, encoder, closed=lambda turns, text: few, **options).respond(state)

    assert said() == said(batch_size=7)
    assert len(set(said(temperature=5.0))) > 1
    assert said(closed_best=True) == said(greedy=True) == [said(greedy=True)[0]] * 40


def test_a_closed_set_needs_room(encoder):
    model = make(encoder, context=16)
    policy = LMPolicy(model, encoder, max_new_tokens=2, closed=lambda turns, text: ["y" * 12])
    with pytest.raises(InputError, match="together more than the model's context of 16"):
        policy.respond([[Turn("user", "hello")]])


def test_temperature_sharpens(model, encoder):
    greedy = LMPolicy(model, encoder, greedy=True, max_new_tokens=5).respond(states())
    assert LMPolicy(model, encoder, temperature=1e-6, max_new_tokens=5).respond(states()) == greedy
    assert LMPolicy(model, encoder, temperature=1.0, max_new_tokens=5).respond(states()) != greedy


def test_the_support_reaches_decoding(model, encoder):
    actor = LMPolicy(model, encoder, greedy=True, max_new_tokens=5).respond(states())
    wild = LMPolicy(model, encoder, greedy=True, beta=50.0, max_new_tokens=5).respond(states())
    assert wild != actor
    assert (
        LMPolicy(model, encoder, greedy=True, beta=50.0, support_top_k=1, max_new_tokens=5).respond(states()) == actor
    )
    tight = LMPolicy(model, encoder, greedy=True, beta=50.0, support_top_p=1e-6, max_new_tokens=5)
    assert tight.respond(states()) == actor


def test_the_window_of_training_is_what_the_model_sees(encoder):
    policy = LMPolicy(make(encoder, history=1), encoder, greedy=True, max_new_tokens=8)
    ids, starts = encoder.state(DIALOGUE[:4])
    assert policy.prompt(DIALOGUE[:4]) == [ids[0], *ids[starts[-2] :]] == encoder.state(DIALOGUE[3:4])[0]
    assert policy.respond([DIALOGUE[:4]]) == policy.respond([DIALOGUE[3:4]])
    assert policy.cut == 0
    assert LMPolicy(make(encoder), encoder).prompt(DIALOGUE[:4]) == ids


@pytest.mark.parametrize("history", [None, 5])
def test_the_oldest_turns_go_where_the_context_is_short(encoder, history):
    turns = [Turn("user", "0123456789"), Turn("assistant", "yes")] * 5 + [Turn("user", "last")]
    policy = LMPolicy(make(encoder, history=history, context=48), encoder, greedy=True, max_new_tokens=10)
    prompt = policy.prompt(turns)
    whole, starts = encoder.state(turns)
    fits = next(s for s in starts if 1 + len(whole) - s <= 48 - 10)
    assert starts[-6] < fits < starts[-2], "some turns fit, and more would in the window"
    assert prompt == [encoder.bos_id, *whole[fits:]]
    assert policy.cut == 1
    policy.prompt(turns[-1:])
    assert policy.cut == 1, "a dialogue that fits is not counted"
    assert len(policy.respond([turns])) == 1


def test_an_answer_has_the_room_that_its_own_dialogue_leaves(encoder):
    model = make(encoder, context=32)
    with torch.no_grad():  # answers without end
        model.lm.get_output_embeddings().weight[encoder.end_ids] = 0
        model.lm.get_output_embeddings().weight[-1] *= 9
    policy = LMPolicy(model, encoder, greedy=True, max_new_tokens=20)
    short, long = [Turn("user", "x")], [Turn("user", "x" * 18)]
    assert len(policy.prompt(long)) == 22
    assert policy.cut == 0, "a quarter of the context is room enough"
    together = policy.respond([short, long, short])
    assert together == [policy.respond([short])[0], policy.respond([long])[0], together[0]]
    sizes = [len(ids) for ids in policy.complete([policy.prompt(turns) for turns in (short, long)])]
    assert sizes == [20, 10]


def test_a_turn_beyond_the_context_leaves_the_header_alone(encoder):
    policy = LMPolicy(make(encoder, context=32), encoder, max_new_tokens=20)
    assert policy.prompt([Turn("user", "x" * 40)]) == encoder.state([])[0]
    policy.context = 2
    with pytest.raises(InputError, match="header alone does not fit a context of 2"):
        policy.prompt([Turn("user", "x")])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"beta": float("inf")}, "beta is inf"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"support_top_k": 0}, "support_top_k is 0"),
        ({"support_top_p": 0.0}, "support_top_p is 0.0"),
        ({"support_top_p": 1.1}, "support_top_p is 1.1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_options_are_one_sentence(model, encoder, options, says):
    with pytest.raises(InputError, match=r"^[^\n]+$") as error:
        LMPolicy(model, encoder, **options)
    assert says in str(error.value)


def test_an_actor_alone_refuses_beta_before_it_plays(encoder):
    with pytest.raises(InputError, match="no token critics"):
        LMPolicy(make(encoder, critic=None), encoder, beta=1.0)


def test_respond_answers_messages_and_turns(model, encoder):
    options: dict[str, Any] = {"greedy": True, "max_new_tokens": 6, "beta": 2.0}
    want = LMPolicy(model, encoder, **options).respond([[Turn("user", "hi")]])[0]
    assert respond(model, HI, encoder, **options) == want
    assert respond(model, [Turn("user", "hi")], encoder, **options) == want
    assert isinstance(respond(model, [], encoder, **options), str), "the agent may speak first"


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([*HI, {"role": "assistant", "content": "yo"}], "the last message is the agent's own"),
        ([{"role": "bot", "content": "hi"}], "the dialogue cannot be read: messages[0].role: 'bot'"),
        ([{"role": "user", "content": "hi", "tool_calls": [{}]}], "only the agent calls tools"),
        ([{"role": "user"}], "message 1 must have"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(model, encoder, messages, says):
    with pytest.raises(InputError, match=r"^[^\n]+$") as error:
        respond(model, messages, encoder)
    assert says in str(error.value)


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_a_run_and_its_model_folder_load_alike(run, model):
    for folder in (run, run / "model", str(run)):
        loaded, encoder = load(folder, dtype=torch.float64)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
        assert not loaded.training
        assert encoder.end_ids == loaded.generation_config.eos_token_id
    assert load(run)[0].dtype == torch.float32
    policy = load_policy(run, greedy=True, beta=2.0, max_new_tokens=5)
    want = respond(load(run)[0], HI, encoder, greedy=True, beta=2.0, max_new_tokens=5)
    assert policy.respond([[Turn("user", "hi")]]) == [want]


def test_weights_in_bf16(run):
    policy = load_policy(run, dtype=torch.bfloat16, greedy=True, beta=2.0, support_top_k=5, max_new_tokens=5)
    assert policy.model.dtype == torch.bfloat16
    assert all(isinstance(text, str) for text in policy.respond(states()))


def test_decoding_is_silent(run, capfd, caplog):
    hf_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            model, encoder = load(run)
            for options in ({}, {"greedy": True}, {"beta": 2.0, "support_top_k": 3}):
                LMPolicy(model, encoder, max_new_tokens=4, **options).respond(states())
            score(model, DIALOGUE, encoder)
    finally:
        hf_logging.disable_propagation()
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
@pytest.mark.parametrize("shown", [True, False])
def test_the_bars_of_transformers_come_back(monkeypatch, shown):
    monkeypatch.setattr(hf_logging, "_tqdm_active", shown)
    with decode.quiet():
        assert not hf_logging.is_progress_bar_enabled()
    assert hf_logging.is_progress_bar_enabled() is shown


def test_folders_that_hold_no_model(tmp_path, run):
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "nothing")
    (tmp_path / "begun").mkdir()
    with pytest.raises(InputError, match="has no model/ yet"):
        model_folder(tmp_path / "begun")
    GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1, n_positions=8)).save_pretrained(
        tmp_path / "x"
    )
    with pytest.raises(InputError, match="is a GPT2LMHeadModel, not a model of this package"):
        load(tmp_path / "x")


@pytest.mark.parametrize("damage", ["cut", "config", "unknown"])
def test_a_damaged_model_is_one_sentence(run, damage):
    weights, config = run / "model" / "model.safetensors", run / "model" / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "config":
        config.write_text("{")
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "nonsense"}))
    with pytest.raises(InputError, match=r"^[^\n]+$") as error:
        load(run)
    assert "cannot be loaded" in str(error.value)
