"""Which rows make up an optimizer step, and which of them go through the model at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from stepwise.config import is_lab
from stepwise.config.training import FitConfig
from stepwise.errors import DataError
from stepwise.seeds import rng as seeded

Settings = TypeVar("Settings", bound=FitConfig)
_FEW = 20  # optimizer steps, in a whole run


def for_few_rows(settings: Settings, rows: int, weak: str) -> Settings:
    """`settings` with a smaller batch where there are few `rows`, so that there are some optimizer steps (and as many
    passes as before), unless a batch or a number of tokens is set, or the model is the lab's, whose figures were
    measured with the default.

    >>> for_few_rows(FitConfig(), 14, "llamacpp/mine.gguf").batch
    2
    """
    if "batch" in settings.model_fields_set or settings.tokens is not None or is_lab(weak):
        return settings
    chosen = settings.model_copy(update={"batch": _batch_for(rows, settings)})
    chosen.model_fields_set.discard("batch")
    return chosen


def _batch_for(rows: int, settings: FitConfig) -> int:
    return max(1, min(settings.batch, rows * settings.epochs // _FEW))


def in_words(rows: int, steps: int, settings: FitConfig) -> str:
    """What a run will do, in a line: rows, optimizer steps, and what another batch would make of them.

    >>> in_words(640, 40, FitConfig())
    '640 rows: 40 optimizer steps, learning rate 0.0002 at its peak'
    """
    line = f"{rows} rows: {steps} optimizer steps, learning rate {settings.learning_rate:g} at its peak"
    name, default = type(settings).__name__.removesuffix("Config").lower(), type(settings).model_fields["batch"].default
    chosen = "batch" not in settings.model_fields_set and settings.batch < default
    other = default if chosen else _batch_for(rows, settings)
    if settings.tokens is not None or (not chosen and (steps >= _FEW or other == settings.batch)):
        return line
    would = f"{name}.batch = {other} would make {settings.epochs * -(-rows // other)}"
    if chosen:
        return f"{line}; for so few rows a batch is {settings.batch} ({would})"
    return f"{line}; that is few: {would} (now {settings.batch})"


def plan_steps(
    trained: Sequence[int], settings: FitConfig, name: str, members: Callable[[random.Random], list[int]] | None = None
) -> list[list[int]]:
    """Which rows make up each optimizer step, as positions in `trained`, their tokens with a loss.

    `members` gives the rows of an epoch (None: all of them), which is shuffled anew by a seed made of `name` and its
    number. With `tokens` set, as many epochs as that takes, and the last step is the one that reaches it.

    >>> plan = plan_steps([10] * 6, FitConfig(epochs=1, batch=4), "seed 1")
    >>> [len(step) for step in plan]
    [4, 2]
    """
    plan: list[list[int]] = []
    seen, epoch = 0, 0
    while settings.tokens is not None or epoch < settings.epochs:
        rng = seeded(name, epoch)
        order = list(range(len(trained))) if members is None else members(rng)
        rng.shuffle(order)
        for first in range(0, len(order), settings.batch):
            plan.append(order[first : first + settings.batch])
            seen += sum(trained[i] for i in plan[-1])
            if settings.tokens is not None and seen >= settings.tokens:
                return plan
        epoch += 1
    return plan


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions of `lengths` in groups, longest first; the padded tokens of a group (members times the longest) are at
    most `budget`.

    One sequence that is longer than `budget` makes a group of its own: it cannot be split. Raises DataError for a
    budget below 1.

    >>> micro_batches([2, 9, 5, 5], budget=10)
    [[1], [2, 3], [0]]
    """
    if budget < 1:
        raise DataError(f"budget is {budget}; lora.micro_tokens must be at least 1")
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
