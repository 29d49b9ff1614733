"""Losses of reinforcement learning on groups of rollouts: pure functions of tensors over right-padded tokens (B, T).

Every loss is a sum over tokens with one weight per rollout, worked out for the whole batch before it is cut up. So the
gradients of micro-batches add up to the batch's exactly, and leaving out a rollout whose advantages are all zero
changes nothing.

What differs from the papers:
1. GRPO (arXiv 2402.03300), Dr. GRPO (2503.20783) and DAPO (2503.14476) are here what they do to token losses: how these
   are added up and clipped. Baselines, the division by the standard deviation and RLOO's leave-one-out are advantages
   (`stepwise.credit`); DAPO's length penalty and its sampling until every group has a spread are left out.
2. Dr. GRPO's constant is the most tokens that a rollout may have, so the loss does not depend on what was sampled.
3. GRPO-lambda (2510.00194) keeps its "recent" trace alone; the size of the floor under the trace's weights is ours.
4. LaSeR (2510.14943) has no warm-up: its self-scores begin near zero, and so does their part of the advantage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from stepwise.errors import DataError

ArrayLike = Tensor | NDArray[Any]
Loss = Literal["grpo", "dr_grpo", "dapo", "grpo_lambda"]
Correction = Literal["none", "truncate", "mask"]
TRACE_FLOOR = 1e-6
"""Least weight of an earlier token in the trace of GRPO-lambda."""
LOWEST_ADVANTAGE = -0.1
"""Where GRPO-lambda cuts negative advantages off, which its long sums would blow up."""
LASER_BETA = 0.1
"""LaSeR's scale of self-scores, as published."""


class PolicyLoss(NamedTuple):
    """A micro-batch's part of the batch's loss, to be minimised, and what was seen on the way (not differentiated).

    Example:
        part = policy_loss(logprobs, old, advantages, mask, weights)
        part.total.backward()
    """

    total: Tensor
    """() the loss, divergence included"""
    clipped: Tensor
    """() tokens whose gradient the clip took away"""
    divergence: Tensor
    """() sum of the divergence from the base over tokens, before its weight"""


class Mismatch(NamedTuple):
    """How far the trainer's distribution is from the one that was sampled, over sampled tokens.

    >>> Mismatch(mean=0.01, worst=0.2, kl=0.0004, ess=0.98).ess
    0.98
    """

    mean: float
    """mean absolute difference of log-probabilities, in nats"""
    worst: float
    """the largest one"""
    kl: float
    """divergence of the trainer from the sampler in nats per token, by the k3 estimator"""
    ess: float
    """effective sample size of the importance weights as a share of the tokens, in (0, 1]"""


def rollout_weights(lengths: Sequence[int], loss: Loss, max_tokens: int) -> list[float]:
    """What the token losses of each rollout of a batch are multiplied by before they are added up.

    `lengths` are the sampled tokens of all rollouts of the batch, dropped and masked ones included. "grpo" and
    "grpo_lambda": the mean over each rollout's tokens, then over rollouts (GRPO, eq. 3); "dr_grpo": the same constant
    for all, 1 / (rollouts x `max_tokens`) (Dr. GRPO, section 3.2); "dapo": the mean over all tokens of the batch (DAPO,
    section 3.3).

    >>> rollout_weights([2, 4], "grpo", max_tokens=8), rollout_weights([2, 4], "dr_grpo", max_tokens=8)
    ([0.25, 0.125], [0.0625, 0.0625])
    """
    n, tokens = len(lengths), sum(lengths)
    if loss == "dr_grpo":
        return [1 / (n * max_tokens)] * n
    if loss == "dapo":
        return [1 / max(tokens, 1)] * n
    return [1 / (n * max(length, 1)) for length in lengths]


def policy_loss(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor,
    *,
    loss: Loss = "dr_grpo",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    decay: float = 0.99,
    correction: Tensor | None = None,
    reference: Tensor | None = None,
    kl: float = 0.0,
) -> PolicyLoss:
    """The clipped surrogate of PPO (arXiv 1707.06347, eq. 7) on token advantages, with the sign of a loss.

    `logprobs`, `old` (before the first update on this batch), `advantages`, `correction` (see `importance_weights`) and
    `reference` (the base's log-probabilities) are (B, T), `mask` (B, T) is True on sampled tokens, `weights` (B,) come
    from `rollout_weights`. The ratio counts between 1 - `clip_low` and 1 + `clip_high`. `decay` is lambda of
    GRPO-lambda. `kl` weighs the divergence from the base, which is added up as the token losses are. Raises DataError
    for a `kl` without a `reference`.

    >>> logprobs = torch.tensor([[-0.5, -1.0]], requires_grad=True)
    >>> advantages, mask = torch.tensor([[1.0, 1.0]]), torch.tensor([[True, True]])
    >>> part = policy_loss(logprobs, logprobs.detach(), advantages, mask, torch.tensor([0.5]))
    >>> round(float(part.total.detach()), 3)  # on policy, the ratio is 1
    -1.0
    """
    if kl and reference is None:
        raise DataError(f"kl is {kl:g}, but there are no log-probabilities of the base to diverge from; give reference")
    change = torch.where(mask, logprobs - old, 0.0)
    if loss == "grpo_lambda":
        change, advantages = _traced(change, decay), advantages.clamp(min=LOWEST_ADVANTAGE)
    ratio = change.exp()
    kept = ratio.clamp(1 - clip_low, 1 + clip_high)
    gain = torch.minimum(ratio * advantages, kept * advantages)
    clipped = (mask & (kept * advantages < ratio * advantages)).sum()
    shares = weights[:, None] * mask
    total = -(gain * shares if correction is None else gain * shares * correction).sum()
    divergence = total.new_zeros(())
    if reference is not None:
        each = torch.where(mask, _k3(logprobs, reference), 0.0)
        total = total + kl * (each * shares).sum()
        divergence = each.detach().sum()
    return PolicyLoss(total, clipped, divergence)


def _traced(change: Tensor, decay: float) -> Tensor:
    """Eligibility traces over changes of log-probabilities (B, T): entry t is sum_{l <= t} tr(t, l) `change`_l, where
    tr(t, l) = max(`decay`^(t - l), `TRACE_FLOOR`) (GRPO-lambda, arXiv 2510.00194; the exponent of its ratio).

    At ratio 1 the gradient gives token l the sum of tr(t, l) over all tokens t from l on: early tokens weigh most.
    """
    places = torch.arange(change.shape[1], device=change.device)
    back = places[:, None] - places[None, :]  # (T, T): how far token l lies before token t
    weights = torch.where(back < 0, 0.0, (decay ** back.clamp(min=0)).clamp(min=TRACE_FLOOR)).to(change.dtype)
    return change @ weights.t()


def _k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Divergence KL(policy || reference) for each sampled token, estimated without bias and never below 0:
    r - 1 - log r with r = p_reference / p_policy (J. Schulman, "Approximating KL Divergence", 2020; GRPO, eq. 4).
    """
    difference = reference - logprobs
    return torch.expm1(difference) - difference


def importance_weights(trainer: ArrayLike, sampler: ArrayLike, correction: Correction, cap: float) -> Tensor:
    """Weights that make up for a sampler that is not the trainer, from the log-probabilities of both; any shape.

    w = p_trainer / p_sampler: "truncate" cuts it at `cap` (truncated importance sampling, Ionides 2008), "mask" sets it
    to 0 above `cap`, "none" is 1 everywhere. Not differentiated. Right only for tokens drawn from the sampler's whole
    distribution at temperature 1.

    >>> importance_weights([-1.0, -0.5], [-1.0, -2.0], "truncate", cap=2.0).tolist()
    [1.0, 2.0]
    """
    ratio = (torch.as_tensor(trainer) - torch.as_tensor(sampler)).detach().exp()
    if correction == "truncate":
        return ratio.clamp(max=cap)
    return torch.where(ratio > cap, 0.0, ratio) if correction == "mask" else torch.ones_like(ratio)


def _exact(values: ArrayLike) -> Tensor:
    """In float64, on the CPU: Metal has none."""
    return torch.as_tensor(values).detach().cpu().double()


def mismatch(trainer: ArrayLike, sampler: ArrayLike) -> Mismatch:
    """The `Mismatch` of log-probabilities (N,) of the same sampled tokens; raises DataError without any.

    >>> round(mismatch([-1.0, -0.5], [-1.1, -0.5]).mean, 3)
    0.05
    """
    difference = _exact(trainer) - _exact(sampler)
    if not difference.numel():
        raise DataError("there are no tokens to compare sampler and trainer on")
    ratio = difference.exp()
    return Mismatch(
        mean=float(difference.abs().mean()),
        worst=float(difference.abs().max()),
        kl=float((ratio - 1 - difference).mean()),
        ess=float(ratio.mean().square() / ratio.square().mean()),
    )


def self_scores(logprobs: Tensor, constant: float, beta: float = LASER_BETA) -> Tensor:
    """LaSeR's self-scores (B,): beta (log p(z | rollout) - `constant`), where z is a token that is never used, asked
    for right after the rollout, and the constant its mean log-probability under the base (arXiv 2510.14943).

    >>> self_scores(torch.tensor([-20.0, -24.0]), constant=-23.0, beta=0.5).tolist()
    [1.5, -0.5]
    """
    return beta * (logprobs - constant)


def self_score_loss(scores: Tensor, rewards: Tensor, weights: Tensor) -> Tensor:
    """LaSeR's auxiliary loss: the squared errors of self-scores (B,) against `rewards` (B,), with the `weights` (B,) of
    `class_weights`; rewards that are nan have weight 0 and do not count.

    >>> float(self_score_loss(torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])))
    0.125
    """
    return (weights * torch.where(weights > 0, scores - rewards, 0.0).square()).sum()


def class_weights(rewards: Sequence[float | None]) -> list[float]:
    """For each rollout of a batch, n / (2 n_class) / n: right and wrong ones weigh the same in sum, as LaSeR has it.

    None is a rollout without a reward: it weighs nothing. A batch of one class weighs 1/2 in all.

    >>> class_weights([1.0, 0.0, 0.0, None])
    [0.5, 0.25, 0.25, 0.0]
    """
    known = [reward for reward in rewards if reward is not None]
    return [0.0 if reward is None else 0.5 / known.count(reward) for reward in rewards]
