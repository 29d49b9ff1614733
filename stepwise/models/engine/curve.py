"""How fast a model decodes by the number of sequences in a batch, and how what runs is best divided into batches.

On a CPU a small batch can be slower than its sequences one after another: llama.cpp multiplies a few rows by kernels
that are worse than those for one row and for many. So the curve is measured, once, when a model is loaded; from then on
how a turn is split follows from it alone, and with it the last digits of every logit.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache

import numpy as np

from stepwise.errors import DataError
from stepwise.models.engine.context import LlamaContext

_SIZES = (1, 16, 4, 8, 2, 12, 6, 3)  # in this order, as far as the time goes
_MORE = (24, 32, 64, 128, 256)  # while they are faster still
_SECONDS = 3.0
_GAIN = 1.03
"""A larger batch must be faster by this factor to be worth keeping more problems open."""
SMALLEST = 50_000_000
"""Parameters below which a decode is too short to be worth splitting: such models keep the fixed split."""


class Curve:
    """Seconds of one decode of n sequences, a token each.

    Raises DataError for a curve without the size 1, or with a time that is not positive.

    >>> curve = Curve({1: 0.020, 2: 0.070, 4: 0.100, 8: 0.130, 16: 0.160})
    >>> curve.split(4), curve.split(9), curve.split(16), curve.fastest
    ((1, 1, 1, 1), (9,), (16,), 16)
    """

    def __init__(self, seconds: Mapping[int, float]):
        self.seconds = {int(n): float(value) for n, value in sorted(seconds.items())}
        if 1 not in self.seconds or not all(value > 0 for value in self.seconds.values()):
            raise DataError(f"curve is {seconds!r}; give seconds above 0 by number of sequences, 1 among them")
        self._sizes = list(self.seconds)
        self.split = lru_cache(maxsize=None)(self._split)

    @cached_property
    def fastest(self) -> int:
        """The number of sequences from which on more of them bring no more tokens a second."""
        best = max(n / self.cost(n) for n in self._sizes)
        return next(n for n in self._sizes if n / self.cost(n) * _GAIN >= best)

    def cost(self, n: int) -> float:
        """Seconds of one batch of n sequences, between measured sizes on a straight line; infinite beyond them."""
        place = bisect_left(self._sizes, n)
        if place == len(self._sizes):
            return float("inf")
        high = self._sizes[place]
        if high == n:
            return self.seconds[n]
        low = self._sizes[place - 1]
        return self.seconds[low] + (self.seconds[high] - self.seconds[low]) * (n - low) / (high - low)

    def _split(self, n: int) -> tuple[int, ...]:
        """The sizes of the batches, largest first, in which n sequences advance by a token in the least time."""
        best, last = [0.0], [0]
        for total in range(1, n + 1):
            seconds, size = min((best[total - size] + self.cost(size), -size) for size in range(1, total + 1))
            best.append(seconds)
            last.append(-size)
        sizes = []
        while n:
            sizes.append(last[n])
            n -= last[n]
        return tuple(sorted(sizes, reverse=True))

    def time(self, n: int) -> float:
        """Seconds in which n sequences advance by a token."""
        return sum(map(self.cost, self.split(n)))

    def __repr__(self) -> str:
        return f"Curve({self.seconds})"

    def to_dict(self) -> dict[str, float]:
        """Seconds by number of sequences, as JSON has it."""
        return {str(n): value for n, value in self.seconds.items()}


def measure(context: LlamaContext, clock: Callable[[], float] = time.process_time) -> Curve | None:
    """The curve of a loaded model whose streams are empty, which they are afterwards too; None for a tiny model.

    Takes a few seconds of `clock`: processor time, since machines are shared, but for a model on a GPU.

    Example:
        curve = measure(context)  # None for the lab's models
    """
    if context.parameters < SMALLEST:
        return None
    began, seconds = clock(), dict[int, float]()

    def is_late() -> bool:
        return len(seconds) > 2 and clock() - began > _SECONDS

    sizes = dict.fromkeys(min(size, context.streams) for size in _SIZES)
    for size in sizes:
        if not is_late():
            seconds[size] = _seconds(context, size, clock)
    for size in _MORE:
        best = max(n / value for n, value in seconds.items())
        if size > context.streams or is_late():
            break
        seconds[size] = _seconds(context, size, clock)
        if size / seconds[size] < best * _GAIN:
            break
    return Curve(seconds)


def _seconds(context: LlamaContext, size: int, clock: Callable[[], float]) -> float:
    """The least time of one decode of `size` sequences; the first of a shape also builds its graph."""
    tokens, times = np.arange(size) % context.vocabulary, []
    for position in range(3):
        context.token[:size], context.pos[:size], context.stream[:size] = tokens, position, np.arange(size)
        context.want[:size] = 1
        began = clock()
        context.decode(size, size)
        times.append(clock() - began)
    for stream in range(size):
        context.truncate(stream, 0)
    return max(min(times), 1e-6)
