"""A convex function on [0, 1] between two piecewise linear ones: chords of its nodes above, tangents at them below.

The chords of a convex function lie above it and its tangents below it, so two such functions bound it everywhere from
what is known at a few nodes. Nodes are added where neighbouring tangents cross, as in the sandwich algorithm (Rote,
Computing 48, 1992).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_CLOSEST = 1e-9  # nodes nearer than this to each other would only resolve rounding


class Known(NamedTuple):
    """What is known of the function at some places: a lower bound, an upper bound, and a slope of the lower one."""

    lower: Array
    upper: Array
    slope: Array


@dataclass(frozen=True, eq=False)
class Sandwich:
    """Bounds of a convex function, each as lines `offset + slope x`; all arrays are one-dimensional.

    `nodes` (n, ascending from 0 to 1) have a tangent each; between nodes i and i + 1 lies one chord, and the tangent of
    i holds up to `crossing[i]`. `gap` is the largest distance of the two bounds anywhere.
    """

    nodes: Array
    tangent_offset: Array
    tangent_slope: Array
    chord_offset: Array
    chord_slope: Array
    crossing: Array
    gap: float

    @classmethod
    def around(cls, function: Callable[[Array], Known], eps: float) -> Sandwich:
        """Bounds of `function`, refined until chords and tangents of its lower bound are within `eps` of each other.

        `function` takes places (n) and must be convex in both its bounds; it is called a handful of times, each time
        with all places that are new.
        """
        nodes = np.linspace(0.0, 1.0, 17)
        known = function(nodes)
        while True:
            crossing, low = _meet(nodes, known)
            share = (crossing - nodes[:-1]) / np.diff(nodes)
            chord = known.lower[:-1] + share * np.diff(known.lower)
            inside = np.minimum(crossing - nodes[:-1], nodes[1:] - crossing) > _CLOSEST
            new = crossing[inside & (chord - low > eps)]
            if not new.size:
                break
            places = np.concatenate([nodes, new])
            order = np.argsort(places, kind="stable")
            nodes = places[order]
            known = Known(*(np.concatenate(pair)[order] for pair in zip(known, function(new), strict=True)))
        above = known.upper[:-1] + share * np.diff(known.upper)
        chord_slope = np.diff(known.upper) / np.diff(nodes)
        return cls(
            nodes=nodes,
            tangent_offset=known.lower - known.slope * nodes,
            tangent_slope=known.slope,
            chord_offset=known.upper[:-1] - chord_slope * nodes[:-1],
            chord_slope=chord_slope,
            crossing=crossing,
            gap=float(max((above - low).max(), (known.upper - known.lower).max())),
        )

    def lines(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """Tangent offset and slope, then chord offset and slope, that hold at `x` (any shape, in [0, 1])."""
        i = np.minimum(np.searchsorted(self.nodes[1:], x, side="right"), len(self.crossing) - 1)
        j = i + (x > self.crossing[i])
        return self.tangent_offset[j], self.tangent_slope[j], self.chord_offset[i], self.chord_slope[i]

    def bounds(self, x: Array) -> tuple[Array, Array]:
        """The function's lower and upper bound at `x` (any shape, in [0, 1])."""
        below, below_slope, above, above_slope = self.lines(x)
        return below + below_slope * x, above + above_slope * x


def _meet(nodes: Array, known: Known) -> tuple[Array, Array]:
    """Where the tangents of neighbouring nodes cross (n - 1), kept between the two, and the lower bound there."""
    bend = np.diff(known.slope)
    step = np.diff(nodes)
    behind = known.lower[1:] - known.slope[1:] * step  # the right tangent at the left node
    bent = bend > 1e-12
    along = np.divide(known.lower[:-1] - behind, bend, out=step / 2, where=bent)
    along = np.clip(along, 0.0, step)
    return nodes[:-1] + along, known.lower[:-1] + known.slope[:-1] * along
