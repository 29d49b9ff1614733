"""Micro-batches by a budget of tokens, and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stepwise.errors import DataError

T = TypeVar("T", int, float, bool)


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions of `lengths` in groups, longest first; the padded tokens of a group (members times the longest) are at
    most `budget`.

    One sequence that is longer than `budget` makes a group of its own: it cannot be split.
    """
    if budget < 1:
        raise DataError(f"budget is {budget}; lora.micro_tokens must be at least 1")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[list[int]] = []
    for i in order:
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def pad(rows: Sequence[Sequence[T]], fill: T) -> NDArray[np.generic]:
    """Rows of unequal length as one array (B, T), filled on the right."""
    width = max((len(row) for row in rows), default=0)
    padded = np.full((len(rows), width), fill)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded
