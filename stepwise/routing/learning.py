"""Training a learned policy in the simulator; killed, it goes on.

A checkpoint holds weights, optimizer, the best weights so far and counters. Everything random follows from the seed and
the number of the batch, so a killed and resumed training gives the same policy as one that was left alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stepwise.errors import ConfigError
from stepwise.io import write_text
from stepwise.routing.learned import (
    Array,
    Figures,
    Kind,
    Learned,
    LearnedCard,
    Pair,
    Weights,
    files_of,
    forward,
    read_card,
)
from stepwise.routing.ppo import Learner, PpoSettings, rewards, save_tensors, settings_as_json
from stepwise.routing.simulator import Act, Drafts, RouterSimulator
from stepwise.seeds import stable_hash
from stepwise.types import to_json

if TYPE_CHECKING:
    pass

Advance = Callable[[int], None]


def likeliest(kind: Kind, weights: Weights) -> Act:
    """Decides in the simulator as `Learned` does."""
    return lambda drafts: forward(kind, weights, drafts.scores, drafts.tokens).argmax(1)


def drawn(kind: Kind, weights: Weights, rng: np.random.Generator) -> Act:
    """Draws actions by their probabilities."""

    def act(drafts: Drafts) -> Any:
        logits = forward(kind, weights, drafts.scores, drafts.tokens)
        return (logits + rng.gumbel(size=logits.shape)).argmax(1)

    return act


def train(
    world: RouterSimulator,
    settings: PpoSettings,
    pair: Pair,
    directory: str | Path,
    *,
    advance: Advance = lambda _: None,
) -> Learned:
    """The policy for `settings.price`, trained in `world` for the models of `pair` and saved in `directory`.

    The weights kept are those that did best on held-out episodes; the card's figures are of others. One that is there
    with the same settings is taken as it is, a checkpoint is gone on from. `advance` is told of each batch. Raises
    `ConfigError` where the directory holds a policy or a checkpoint of this price with other settings.
    """
    _, card_file = files_of(directory, settings.price)
    saved, price = settings_as_json(settings), settings.price
    if card_file.is_file():
        if read_card(card_file).settings != json.loads(json.dumps(saved)) or read_card(card_file).pair != pair:
            raise ConfigError(f"{card_file} is of a policy with other settings; give another directory")
        advance(settings.batches)
        return Learned(str(directory), price)
    Path(directory).mkdir(parents=True, exist_ok=True)
    checkpoint = card_file.with_suffix(".checkpoint")
    mark = str(stable_hash(repr(world), world.tokens, world.law, saved, pair))
    learner, best, found, at = Learner(settings), dict[str, Array](), -math.inf, 0
    if checkpoint.is_file():
        learner, best, notes = Learner.load(checkpoint, settings)
        found, at = float(notes["found"]), int(notes["at"])
        if notes["mark"] != mark:
            raise ConfigError(f"{checkpoint} is of other settings; remove it, or give another directory")
    advance(learner.done)
    while learner.done < settings.batches:
        number, now = learner.done, learner.arrays()
        rng = np.random.default_rng((settings.seed, 1, number))
        act = drawn(settings.kind, now, rng)
        made = world.play(act, settings.problems, runs=settings.runs, seed=(settings.seed, 0, number))
        learner.update(made.decisions, rewards(made.decisions, made.right, price, settings.draft_share))
        advance(1)
        if learner.done % settings.validate_every == 0 or learner.done == settings.batches:
            now = learner.arrays()
            value = played(world, settings, now, settings.validation, (settings.seed, 2)).objective
            if value > found:
                best, found, at = now, value, learner.done
            learner.save(checkpoint, best, mark=mark, found=repr(found), at=str(at))
    card = LearnedCard(settings.kind, price, settings.runs, settings.draft_share, pair, saved, at)
    figures = played(world, settings, best, settings.test, (settings.seed, 3))
    write_policy(directory, dataclasses.replace(card, simulated=figures), best)
    checkpoint.unlink(missing_ok=True)
    return Learned(str(directory), price)


def played(world: RouterSimulator, settings: PpoSettings, weights: Weights, n: int, seed: Any) -> Figures:
    """What the likeliest actions under `weights` do in `n` simulated episodes."""
    made = world.play(likeliest(settings.kind, weights), n, runs=settings.runs, seed=seed)
    return figures_of(made.right, made.strong_tokens, made.draft_tokens, settings)


def figures_of(right: Any, strong: Any, draft: Any, settings: PpoSettings) -> Figures:
    """Means over episodes, from what each of them was and took."""
    right, strong, draft = (np.asarray(values, dtype=float) for values in (right, strong, draft))
    objective = right - settings.price * (strong + settings.draft_share * draft)
    error = float(objective.std() / math.sqrt(len(right)))
    accuracy, strong_tokens, draft_tokens, value = (float(v.mean()) for v in (right, strong, draft, objective))
    return Figures(len(right), accuracy, strong_tokens, draft_tokens, value, error)


def write_policy(directory: str | Path, card: LearnedCard, weights: Weights) -> None:
    """Weights, then the card, which says that the policy is there."""
    import torch

    weights_file, card_file = files_of(directory, card.price)
    save_tensors(weights_file, {name: torch.as_tensor(value, dtype=torch.float32) for name, value in weights.items()})
    write_text(card_file, to_json(card) + "\n")
