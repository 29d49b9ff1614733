"""A small routing POMDP of our own, random ones, and what checks a plan without using the solver's reduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stepwise.routing.pomdp import Plan, RoutingPomdp

SMALL = RoutingPomdp(
    p_weak=0.85,
    p_strong=(0.95, 0.99),
    hazard=(0.0, 0.0, 0.2, 0.3, 0.5, 1.0),
    observation=((0.05, 0.10, 0.25, 0.60), (0.30, 0.40, 0.20, 0.10), (0.45, 0.30, 0.15, 0.10)),
    tokens_per_step=20.0,
    discount=1.0,
)
SMALL_PRICES = (0.2, 0.6)


def random_model(seed: int) -> tuple[RoutingPomdp, tuple[float, ...]]:
    """Five steps at most, two or three observations, one or two strong models, and their prices."""
    rng = np.random.default_rng(seed)
    models = 1 + seed % 2
    observation = rng.dirichlet(np.full(2 + seed % 2, 0.7), size=3)
    model = RoutingPomdp(
        p_weak=rng.uniform(0.5, 1.0),
        p_strong=tuple(rng.uniform(0.6, 1.0, models)),
        hazard=(0.0, *rng.uniform(0.0, 0.6, 4), 1.0),
        observation=tuple(tuple(row) for row in observation.tolist()),
        tokens_per_step=30.0,
        discount=0.98,
    )
    return model, tuple(rng.uniform(0.0, 0.8, models))


def ends(model: RoutingPomdp, published: bool) -> tuple[float, ...]:
    """The chance that step n is the last, for n = 0, 1, ..."""
    return model.hazard if published else (*model.hazard[1:], 1.0)


def transitions(model: RoutingPomdp) -> list[np.ndarray]:
    """P(state after the next draft | state) of keeping and of each strong model, in the full three states."""
    p = model.p_weak
    keep = np.array([[p, 0, 1 - p], [0, 1, 0], [0, 1, 0]])
    strong = [np.array([[p * q, 1 - q, q * (1 - p)]] * 3) for q in model.p_strong]
    for matrix in strong:
        matrix[1] = (0, 1, 0)
    return [keep, *strong]


def expand(
    model: RoutingPomdp, prices: Any, published: bool, step: int, belief: Any, last: bool = False
) -> list[float]:
    """Value of each action at `belief` (it need not add up to 1), by expanding the whole tree of what may follow."""
    belief = np.asarray(belief, dtype=float)
    fees = [0.0, *(price * model.tokens_per_step * belief.sum() for price in prices)]
    if last:
        right = [belief[0], *(q * (belief[0] + belief[2]) for q in model.p_strong)]
        return [model.reward * x - fee for x, fee in zip(right, fees, strict=True)]
    chance = ends(model, published)
    end = chance[step + 1] if step + 1 < len(model.hazard) - 1 else 1.0
    values = []
    for matrix, fee in zip(transitions(model), fees, strict=True):
        total = 0.0
        for column in np.asarray(model.observation).T:
            seen = (belief @ matrix) * column
            total += end * max(expand(model, prices, published, step, seen, last=True)) if end else 0.0
            total += (1 - end) * max(expand(model, prices, published, step + 1, seen)) if end < 1 else 0.0
        values.append(model.discount * total - fee)
    return values


def simulate(plan: Plan, episodes: int, seed: int) -> tuple[float, float]:
    """Mean and standard error of what following `plan` on the filtered belief earns (corrected hazard, discounted)."""
    model, rng = plan.model, np.random.default_rng(seed)
    likelihood, matrices = np.asarray(model.observation), transitions(model)
    cumulative = likelihood.cumsum(1) / likelihood.sum(1, keepdims=True)
    chance, fees = ends(model, False), [0.0, *(price * model.tokens_per_step for price in plan.prices)]
    p = model.p_weak
    state = np.where(rng.random(episodes) < p, 0, 2)
    prior = np.tile([p, 0.0, 1 - p], (episodes, 1))
    alive, earned = np.ones(episodes, dtype=bool), np.zeros(episodes)
    for step in range(len(model.hazard) - 1):
        seen = np.minimum((rng.random(episodes)[:, None] > cumulative[state]).sum(1), likelihood.shape[1] - 1)
        belief = prior * likelihood[:, seen].T
        belief /= belief.sum(1, keepdims=True)
        ending = alive & (rng.random(episodes) < chance[step])
        x = np.stack([belief[:, 0], *(q * (belief[:, 0] + belief[:, 2]) for q in model.p_strong)])
        going_on = plan.curves[step].bounds(np.clip(x, 0, 1))[0]
        action = (np.where(ending, model.reward * x, going_on) - np.asarray(fees)[:, None]).argmax(0)
        earned -= alive * model.discount**step * np.asarray(fees)[action]
        committed = state.copy()
        for index, q in enumerate(model.p_strong, start=1):
            written = (action == index) & (state != 1)
            committed[written] = np.where(rng.random(written.sum()) < q, 0, 1)
        earned += ending * model.discount**step * model.reward * (committed == 0)
        alive &= ~ending
        state = np.where(committed == 0, np.where(rng.random(episodes) < p, 0, 2), 1)
        prior = np.einsum("es,est->et", belief, np.stack(matrices)[action])
    return float(earned.mean()), float(earned.std() / np.sqrt(episodes))


def critical_tokens(plan: Plan, step: int, belief: Sequence[float], *, last: bool = False) -> float:
    """Tokens of this step up to which some strong model is worth more than keeping it; 0 if none ever is."""
    keep, *others = plan.action_values(step, belief, 0.0, last=last)
    gains = zip((value - keep for value in others), plan.prices, strict=True)
    return max(0.0 if gain <= 0 else float("inf") if price == 0 else gain / price for gain, price in gains)
