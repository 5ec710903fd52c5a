"""The atoms of every algorithm: pure functions of vectors, one number a decision (N) or an action token (M).

Decision: nothing here sees a table over the vocabulary, a mask, a batch or a config, and nothing is reduced: the
trainer divides by the global count. Constants of the optimisation (targets, weights) are detached here, in the one
place that a reader of the papers would look. K is the number of critics, always the leading axis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def td_target(reward: Tensor, discount: Tensor, v_next: Tensor) -> Tensor:
    """r + gamma V(s'), (N), a constant. `discount` is gamma, or 0 where the dialogue terminated (Snell et al. 2022).

    An action that terminates has no successor: whatever `v_next` holds there must not reach the target (0 * inf is
    nan).
    """
    return (reward + torch.where(discount == 0, 0.0, discount * v_next)).detach()


def td(q: Tensor, target: Tensor) -> Tensor:
    """Squared Bellman error of every critic, summed over the critics: (K, N), (N) -> (N). No factor 1/2."""
    return (q - target).square().sum(0)


def huber(q: Tensor, target: Tensor) -> Tensor:
    """Bellman error u = q - target as smooth L1, (N): u^2 / 2 where |u| < 1, else |u| - 1/2, so that no target pulls
    harder than by 1. The target is constant."""
    return torch.nn.functional.smooth_l1_loss(q, target.detach(), reduction="none")


def expectile(v: Tensor, q: Tensor, tau: float) -> Tensor:
    """Expectile regression of V on Q: |tau - 1(u < 0)| u^2 with u = Q - V, (N) (Kostrikov et al. 2021, eq. 5).

    tau = .5 is half the squared error, and V the mean of Q; tau -> 1 draws V to the largest Q of the data. Q is
    constant.
    """
    u = q.detach() - v
    return (tau - (u < 0).to(u.dtype)).abs() * u.square()


def gumbel(v: Tensor, q: Tensor, beta: float, clip: float) -> Tensor:
    """Gumbel regression of V on Q: exp(z) - z - 1 with z = (Q - V) / beta, (N) (XQL, Garg et al. 2023).

    V becomes beta log E exp(Q / beta): the largest Q of the data as beta -> 0, the mean as beta grows. Above z = clip
    exp goes on as its tangent, so that no gradient is larger than there, and none is lost. Q is constant.
    """
    z = (q.detach() - v) / beta
    over = (z - clip).clamp(min=0.0)
    return (z - over).exp() * (1 + over) - z - 1


def sparse(v: Tensor, q: Tensor, alpha: float) -> Tensor:
    """1(w > 0) w^2 + V / alpha with w = 1 + (Q - V) / (2 alpha), (N) (SQL, Xu et al. 2023).

    V becomes the number of which E max(0, w) = 1: actions whose Q is more than 2 alpha below V do not count at all.
    Towards the largest Q of the data as alpha -> 0, the mean as alpha grows. Q is constant.
    """
    w = 1 + (q.detach() - v) / (2 * alpha)
    return w.clamp(min=0.0).square() + v / alpha


def cql(q: Tensor, q_lse: Tensor) -> Tensor:
    """Conservative penalty: log-sum-exp of Q over all actions less Q of the logged one, (K, N) -> (N), summed over K.

    At token steps this is the cross-entropy of the Q head with the logged token (Kumar et al. 2020, eq. 4; Snell et
    al. 2022).
    """
    return (q_lse - q).sum(0)


def lse_among(q: Tensor, others: Tensor, owner: Tensor) -> Tensor:
    """log-sum-exp over the logged action and the others that were offered in its place: (K, N), (K, P), (P) -> (K, N).

    owner: the decision of each of the others, none of which is the logged action. With `cql` a penalty of at least 0,
    as the logged action is among those summed; without it there it has no lower bound.
    """
    top = q.detach().scatter_reduce(1, owner.expand_as(others), others.detach(), "amax")
    return top + (q - top).exp().index_add(1, owner, (others - top[:, owner]).exp()).log()


def best_among(q: Tensor, owner: Tensor, n: int) -> Tensor:
    """The largest Q of what is offered to each of n decisions: (R), (R) -> (N), 0 where nothing is."""
    return q.new_zeros(n).scatter_reduce(0, owner, q, "amax", include_self=False)


def soft_among(q: Tensor, owner: Tensor, n: int, temperature: float) -> Tensor:
    """The mean Q under softmax(Q / temperature) of what is offered to each of n decisions: (R), (R) -> (N), 0 where
    nothing is. Towards 0 the largest Q, above it the mean."""
    weight = ((q - best_among(q, owner, n)[owner]) / temperature).exp()
    total = q.new_zeros(n).index_add(0, owner, weight)
    return q.new_zeros(n).index_add(0, owner, weight / total[owner] * q)


def weighted_ce(logp: Tensor, rest: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy with a target that gives the action its `weight` and the remainder 1 - weight to the rest:
    -[w log p(a) + (1 - w) rest], (K, N), (K, N), (N) -> (N), summed over K (Hong et al. 2024, sec. 4).

    rest: the log-likelihood of what gets the remainder. p becomes w times the logs' policy. The weight is constant.
    """
    weight = weight.detach()
    return -(weight * logp + (1 - weight) * rest).sum(0)


def psi_target(reward: Tensor, prior_logp: Tensor, discount: Tensor, lse_next: Tensor, c: float) -> Tensor:
    """r / c + log p(a) + gamma log sum_a' exp Psi(s', a'), (N), a constant (Jaques et al. 2019).

    Its fixed point makes softmax(Psi) the policy of the largest return less c KL(pi || p), and without rewards the
    prior p itself. lse_next does not matter where the discount is 0.
    """
    return td_target(reward / c + prior_logp, discount, lse_next)


def kl_to_prior(logp: Tensor, prior_logp: Tensor) -> Tensor:
    """log pi(a) - log p(a) of tokens, (M): the sampled divergence from the prior, which is constant. Its mean over
    tokens that pi itself would say is KL(pi || p); over those of a log it may be below 0."""
    return logp - prior_logp.detach()


def nll(logp: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Weighted negative log-likelihood of the actor, (M). The weight is constant."""
    if isinstance(weight, Tensor):
        if weight.shape != logp.shape:
            raise ValueError(f"one weight a token: weight has shape {tuple(weight.shape)}, logp {tuple(logp.shape)}")
        weight = weight.detach()
    return -logp * weight


def per_action(logp: Tensor, owner: Tensor, n: int) -> Tensor:
    """log pi of each of n actions, the sum over its tokens: (M), (M') -> (N). owner: the action of each of the first M'
    tokens; tokens without one come last."""
    owned = logp[: len(owner)]
    return owned.new_zeros(n).index_add(0, owner, owned)


def clipped_ratio(logp: Tensor, reference: Tensor, clip: float) -> Tensor:
    """pi(a | s) / pi_ref(a | s), (N), between 1 - clip and 1 + clip, a constant (Baheti et al. 2023).

    The logarithm is clipped before exp, so that no ratio overflows.
    """
    low, high = (math.log(bound) if bound else -math.inf for bound in (1 - clip, 1 + clip))
    return torch.exp((logp.detach() - reference).clamp(low, high))


def importance_ratio(logp: Tensor, behaviour: Tensor, limit: float) -> Tensor:
    """rho = pi(a | s) / mu(a | s), (N), at most `limit` (truncated importance sampling, Ionides 2008). Its gradient is
    rho times that of log pi, where rho stands at the limit too.

    The logarithm is held below the limit's before exp, so that no ratio overflows. behaviour (N): log mu(a | s).
    """
    change = logp - behaviour
    over = (change.detach() - math.log(limit)).clamp(min=0.0)
    return torch.exp(change - over)


def of_dialogue(logp: Tensor, first: Tensor) -> Tensor:
    """log-probability of a whole dialogue at each of its decisions, (N): the sum over them, of which the decision's own
    part alone has a gradient. first (N): where a dialogue begins; its decisions stand in a row.

    So the ratio of two of these weighs the gradient of each step by how likely the whole dialogue has become.
    """
    dialogue = first.long().cumsum(0) - 1
    constant = logp.detach()
    total = constant.new_zeros(int(first.sum())).index_add(0, dialogue, constant)
    return logp - constant + total[dialogue]


def ppo_clip(ratio: Tensor, advantage: Tensor, clip: float | None) -> Tensor:
    """-min(rho A, clip(rho, 1 - clip, 1 + clip) A), (N) (Schulman et al. 2017, eq. 7); None: -rho A (eq. 6). The
    advantage is a constant.

    Where A is above 0 a ratio above 1 + clip teaches no more, where it is below 0 one below 1 - clip.
    """
    advantage = advantage.detach()
    plain = ratio * advantage
    return -plain if clip is None else -torch.minimum(plain, ratio.clamp(1 - clip, 1 + clip) * advantage)


def tapered_ratio(
    logp: Tensor,
    behaviour: Tensor,
    advantage: Tensor,
    positive: tuple[float, float] = (1.0, 1.0),
    negative: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """pi / mu, (N), within `positive` where the advantage is at least 0 and within `negative` where it is below; a
    constant (Le Roux et al. 2025, eq. 7; the defaults are its eq. 8). logp, behaviour: of what the advantage is of.

    The logarithm is held below the upper bound's before exp, so that no ratio overflows.
    """
    change = (logp - behaviour).detach()

    def within(low: float, high: float) -> Tensor:
        top = math.log(high) if high else -math.inf
        return change.clamp(max=top).exp().clamp(min=low)

    return torch.where(advantage >= 0, within(*positive), within(*negative))


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected), one number a pair: (P), (P) -> (P), or (K, P) of several critics each
    (Bradley and Terry 1952; Ziegler et al. 2019, eq. 1 for two; Ouyang et al. 2022, eq. 1).

    The probability that the chosen one is preferred is sigmoid of the difference: a number added to all rewards
    changes nothing.
    """
    return -torch.nn.functional.logsigmoid(chosen - rejected)


def soft_return(reward: Tensor, discount: Tensor, v_next: Tensor, first: Tensor) -> Tensor:
    """Return to go S = r + gamma S', (N), of dialogues whose decisions stand in a row; a constant. Where the last one
    has a discount, the dialogue was cut off, and S' is `v_next` there.

    reward (N): here less what the step costs. first (N): where a dialogue begins. A step of the loop is one place from
    the end of every dialogue.
    """
    begins = first.nonzero().squeeze(1)
    ends = torch.cat([begins[1:], begins.new_tensor([len(first)])]) - 1
    out = reward.detach().clone()
    out[ends] = td_target(reward[ends], discount[ends], v_next[ends])
    at = ends - 1
    while len(at):
        begins, at = begins[at >= begins], at[at >= begins]
        out[at] += discount[at] * out[at + 1]
        at = at - 1
    return out


def oreo_value(v: Tensor, soft: Tensor) -> Tensor:
    """(V - S)^2, (N), S = sum of the rewards to come less beta log pi / ref each, a constant (Wang et al. 2024: the
    telescoped soft Bellman equation, as a regression of V)."""
    return (v - soft.detach()).square()


def oreo_policy(v: Tensor, soft: Tensor, cost: Tensor) -> Tensor:
    """The same residual as a regression of the policy, (N). Its gradient goes through the decision's own cost, beta log
    pi / ref, which is in S; V and what S has of later decisions are constants (Wang et al. 2024)."""
    return ((v - soft).detach() + cost - cost.detach()).square()


def awr_weight(advantage: Tensor, beta: float, clip: float) -> Tensor:
    """min(exp(beta A), clip), (N), a constant: advantage-weighted regression (Kostrikov et al. 2021, eq. 7).

    The exponent is clipped before exp, so that no advantage overflows.
    """
    limit = torch.log(torch.as_tensor(clip, dtype=advantage.dtype, device=advantage.device))
    return torch.exp(torch.minimum(beta * advantage.detach(), limit))
