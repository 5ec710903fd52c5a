"""The algorithms, one a file. Decision: the registry is this dict, and an algorithm is a module with

`Config` (a frozen dataclass), `loss(out, batch, cfg) -> {name: vector}` of unreduced, weighted losses, `PER_TOKEN`
(names of those with one number an action token; the others have one a decision), `scores` (how its policy is
extracted), `STEPS` (the time steps it is defined for), `CRITIC` (see `critic`; None for an actor alone) and
`BOOTSTRAPS` (whether a transition needs its next state). Where it applies: `BACKUP` (what `Out.q_next` is, a name in
`ilql.backups`); `behaviour(cfg)` (whether it reads `Batch.behaviour`, which then has to be known of every decision);
`whole(cfg)` (whether it reads the decisions of a dialogue together, in their order); `PRIOR = True`, or `prior(cfg)`
where that depends on the options (whether it reads `Out.prior_logp` or `Out.kl`, of the actor as training began with
it); `OFFERED = True` (it reads the dialogues' proposals); `PAIRED = True` (it reads `Batch.pair`, so every dialogue has
to be one of a pair); `select(returns, cfg) -> mask of dialogues` (the part of them that it learns from);
`fields(returns, cfg)` (further fields of the model's config); `level(to_go, cfg)` (its field `baseline`: see
`ilql.algos.baseline`); `advise(returns, cfg) -> sentence or None` (what about the scaled returns of the dialogues does
not suit the options); `prepare(row, note, cfg) -> row` (a row as it reads it: `ilql.control`).
"""

from types import ModuleType
from typing import Any

from ilql.algos import (
    a_lol,
    actor_critic,
    archer,
    awac,
    bc,
    chai,
    cql,
    dt,
    filtered_bc,
    ilql,
    ilql_utterance,
    kl_control,
    mc,
    oreo,
    ppo,
    q_sft,
    reinforce,
    reward_model,
    sarsa,
    topr,
)

ALGOS = {
    "bc": bc,
    "filtered_bc": filtered_bc,
    "dt": dt,
    "mc": mc,
    "sarsa": sarsa,
    "cql": cql,
    "awac": awac,
    "q_sft": q_sft,
    "ilql": ilql,
    "ilql_utterance": ilql_utterance,
    "archer": archer,
    "a_lol": a_lol,
    "chai": chai,
    "reinforce": reinforce,
    "ppo": ppo,
    "topr": topr,
    "oreo": oreo,
    "kl_control": kl_control,
    "actor_critic": actor_critic,
    "reward_model": reward_model,
}


def critic(algo: ModuleType, step: str, cfg: Any = None) -> str | None:
    """The kind of an algorithm's critics on data of a time step, as in ILQLConfig: of utterances they are scalar, since
    there is no list of all utterances; at token steps they are what the algorithm says. V alone ("value") is there
    only where it is the baseline, by default."""
    if algo.CRITIC == "value":
        return "value" if getattr(cfg, "baseline", "value") == "value" else None
    return "scalar" if algo.CRITIC is not None and step == "utterance" else algo.CRITIC


def reads_prior(algo: ModuleType, hyper: Any) -> bool:
    """Whether an algorithm with these options reads the actor as training began with it."""
    return bool(algo.prior(hyper)) if hasattr(algo, "prior") else getattr(algo, "PRIOR", False)
