"""The strong model for several steps on end: what such a run is worth, in the exact solution of the routing POMDP.

Nothing is seen during a run, and each of its steps is right with chance q after right ones. So the chance y that all
committed steps are right shrinks by q at each, and what the run is worth is a line in y up to its end and the known
convex function of `pomdp` from there on: the reduction to one dimension holds. Handing over for good is a run that no
solution outlasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from stepwise.errors import DataError
from stepwise.routing.sandwich import Array, Sandwich


@dataclass(frozen=True, eq=False)
class Run:
    """offset + slope y + weight F(shrink y): worth of a run after its first step, which is right with all before with
    chance y. `curve` bounds F; None where every solution has ended by then (weight 0).
    """

    offset: float
    slope: float
    weight: float
    shrink: float
    curve: Sandwich | None

    @classmethod
    def of(
        cls,
        length: int,
        later: Sequence[Sandwich],
        ends: Sequence[float],
        *,
        q: float,
        fee: float,
        reward: float,
        discount: float,
    ) -> Self:
        """The run of `length` steps whose first is step n.

        `later` bounds F_n, F_{n+1}, ...; `ends` has the chance that step n + 1, n + 2, ... is the last one if it is
        reached, and has a 1.0; `fee` is the price of each step after the first.
        """
        offset = slope = 0.0
        going_on, shrink = 1.0, 1.0
        for end in ends[: length - 1]:
            going_on *= discount
            shrink *= q
            offset -= going_on * fee
            slope += going_on * end * reward * shrink
            going_on *= 1.0 - end
            if not going_on:
                return cls(offset, slope, 0.0, shrink, None)
        return cls(offset, slope, going_on, shrink, later[length - 1])

    def lines(self, y: Array) -> tuple[Array, Array, Array, Array]:
        """Offset and slope of a line below and of one above that hold at `y` (any shape, in [0, 1])."""
        if self.curve is None:
            flat, rising = 0 * y + self.offset, 0 * y + self.slope
            return flat, rising, flat, rising
        below, below_slope, above, above_slope = self.curve.lines(self.shrink * y)
        scale = self.weight * self.shrink
        return (
            self.offset + self.weight * below,
            self.slope + scale * below_slope,
            self.offset + self.weight * above,
            self.slope + scale * above_slope,
        )

    def bounds(self, y: Array) -> tuple[Array, Array]:
        """(lower, upper) at `y` (any shape, in [0, 1])."""
        below, below_slope, above, above_slope = self.lines(y)
        return below + below_slope * y, above + above_slope * y


class Option(NamedTuple):
    """Something that can be done at a draft: `writer` 0 keeps it, j has strong model j write `length` steps on end.

    `q` is the chance that the step is then right if it still can be (None: as the draft is), `fee` the price of a step
    of usual length, `then` what follows, as a function of the chance that all committed steps are right.
    """

    writer: int
    length: int
    q: float | None
    fee: float
    then: Sandwich | Run | None


def run_lengths(lengths: Sequence[int]) -> tuple[int, ...]:
    """`lengths` by size, each once, 1 among them; raises `DataError` unless they are whole numbers of at least 1."""
    for length in lengths:
        if not (isinstance(length, int) and length >= 1):
            raise DataError(f"a run of {length!r} steps is none; give whole numbers of at least 1")
    return tuple(sorted({1, *lengths}))
