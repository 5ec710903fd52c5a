"""The algorithms, one a file. Decision: the registry is this dict, and an algorithm is a module with

`Config` (a frozen dataclass), `loss(out, batch, cfg) -> {name: vector}` of unreduced, weighted losses, `PER_TOKEN`
(names of those with one number an action token; the others have one a decision), `scores` (how its policy is
extracted), `STEPS` (the time steps it is defined for), `CRITIC` ("vocabulary", "scalar" or None for an actor alone),
`BOOTSTRAPS` (whether a transition needs its next state), and where it applies `BACKUP` (what `Out.q_next` is, a name in
`ilql.backups`) and `select(returns, cfg) -> mask of dialogues` (the part of them that it learns from).
"""

from ilql.algos import awac, bc, cql, filtered_bc, ilql, mc, sarsa

ALGOS = {"bc": bc, "filtered_bc": filtered_bc, "mc": mc, "sarsa": sarsa, "cql": cql, "awac": awac, "ilql": ilql}
