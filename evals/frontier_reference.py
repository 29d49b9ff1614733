"""Accuracy at expected strong calls that another implementation measured on TRIM's published parameters.

Qwen2.5 1.5B with the 7B as the strong model, observations of MATH-train, published hazard, defaults as published. In
the world "drawn" all rows but those that filter and threshold are exact; "carried" was simulated, 100,000 problems.
"""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """A row: accuracy at each number of calls, and the standard error it was measured with (0: exact)."""

    accuracy: dict[float, float]
    error: float


_CALLS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5)
_FEW = (0.5, 1.0, 1.5, 2.0)
ROUNDING = 0.0005  # the rows have three digits


def _row(calls: tuple[float, ...], error: float, *accuracy: float) -> Known:
    return Known(dict(zip(calls, accuracy, strict=True)), error)


DRAWN = {
    "threshold": _row(_CALLS, 0, 0.394, 0.470, 0.546, 0.621, 0.697, 0.773, 0.875, 0.884),
    "published rule, gate 0.4": _row(_CALLS, 0, 0.439, 0.537, 0.626, 0.713, 0.779, 0.823, 0.837, 0.837),
    "published rule, gate 0.5": _row(_CALLS, 0, 0.439, 0.537, 0.626, 0.713, 0.779, 0.823, 0.846, 0.846),
    "uniform prior, no gate": _row(_CALLS, 0, 0.442, 0.539, 0.627, 0.715, 0.779, 0.824, 0.862, 0.868),
    "memoryless, true prior": _row(_CALLS, 0, 0.450, 0.556, 0.651, 0.733, 0.796, 0.845, 0.882, 0.885),
    "filter on pair, tau": _row(_CALLS, 0.0008, 0.437, 0.556, 0.669, 0.755, 0.819, 0.863, 0.885, 0.887),
    "filter on pair, optimal": _row(_CALLS, 0, 0.462, 0.574, 0.673, 0.757, 0.820, 0.863, 0.886, 0.887),
    "perfect state": _row(_CALLS, 0, 0.490, 0.635, 0.767, 0.890, 0.966, 0.966, 0.966, 0.966),
}
CARRIED = {
    "threshold": _row(_FEW, 0.0016, 0.471, 0.623, 0.775, 0.875),
    "published rule, gate 0.4": _row(_FEW, 0.0016, 0.520, 0.679, 0.829, 0.878),
    "memoryless, true prior": _row(_FEW, 0.0016, 0.536, 0.686, 0.823, 0.883),
    "filter on pair, plan": _row(_FEW, 0.0016, 0.538, 0.707, 0.828, 0.875),
    "filter on score, optimal": _row(_FEW, 0.0016, 0.552, 0.722, 0.835, 0.882),
    "filter on score, tau": _row(_FEW, 0.0016, 0.541, 0.723, 0.839, 0.884),
}
REFERENCE = {"drawn": DRAWN, "carried": CARRIED}
