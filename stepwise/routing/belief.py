"""How likely each score is in each state of TRIM's routing POMDP: right, wrong earlier, wrong just now."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import ConfigDict

from stepwise.errors import DataError

Belief = tuple[float, float, float]
Row = tuple[float, ...]
_SUM = 1e-6  # how far probabilities may be from adding up to 1


@dataclass(frozen=True)
class ObservationLaw:
    """How likely each score is in each state, as a table over bins.

    Args:
        edges: of the bins, growing from 0 to 1; bin i holds edges[i] <= score < edges[i + 1], the last one also 1.
        rows: P(bin | state), a row for each of right, wrong earlier, wrong just now. With `pair`, P(pair of bins |
            state), the bin of the current score running fastest: column = bins * (bin of least earlier) + bin.
        pair: whether an observation is (least earlier score, current score); the least is 1 at the first step.

    As plain JSON by `stepwise.types.to_json` and `from_json`. Raises `DataError` for edges that do not grow from 0 to
    1 and for rows that are not probabilities over these bins.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    edges: tuple[float, ...]
    rows: tuple[Row, Row, Row]
    pair: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", tuple(map(float, self.edges)))
        object.__setattr__(self, "rows", tuple(tuple(map(float, row)) for row in self.rows))
        grows = all(low < high for low, high in zip(self.edges, self.edges[1:], strict=False))
        if len(self.edges) < 2 or self.edges[0] != 0 or self.edges[-1] != 1 or not grows:
            raise DataError(f"edges are {self.edges!r}; give numbers that grow from 0.0 to 1.0")
        check_rows("rows", self.rows)
        columns = self.bins**2 if self.pair else self.bins
        if len(self.rows[0]) != columns:
            raise DataError(f"rows have {len(self.rows[0])} entries for {columns} observations; give one for each")

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], observation: Literal["pair", "score"] = "pair") -> ObservationLaw:
        """The law in TRIM's published parameters, as `RoutingPomdp.from_dict` reads it."""
        table = next((part for key, part in d.items() if key.startswith("observation")), None)
        if not table:
            raise DataError("the parameters have no 'observation'; give TRIM's published layout")
        pairs, rows = (next(iter(table.values()))[key] for key in ("pairs", "prob"))
        bins = round(len(pairs) ** 0.5)
        if [tuple(int(value * bins) for value in pair) for pair in pairs] != [divmod(i, bins) for i in range(bins**2)]:
            raise DataError("observation.pairs is not a square grid of bin centres; give TRIM's published layout")
        law = cls(tuple(i / bins for i in range(bins + 1)), tuple(map(tuple, rows)), pair=True)
        return law if observation == "pair" else law.score_only()

    @property
    def bins(self) -> int:
        """Number of bins of a score."""
        return len(self.edges) - 1

    def score_only(self) -> ObservationLaw:
        """The law of the current score alone."""
        if not self.pair:
            return self
        first, second, third = (tuple(sum(row[i :: self.bins]) for i in range(self.bins)) for row in self.rows)
        return ObservationLaw(self.edges, (first, second, third))

    def column(self, score: float, least: float = 1.0) -> int:
        """Index in a row of what is seen: `score` in [0, 1], after steps of which the worst scored `least`.

        Raises `DataError` where a score is not in [0, 1].
        """
        if not (0 <= score <= 1 and 0 <= least <= 1):
            wrong = least if 0 <= score <= 1 else score
            raise DataError(f"score is {wrong!r}; give a probability in [0, 1], or None where a step was not scored")
        column = bisect_right(self.edges, score, 1, self.bins) - 1
        return column + self.bins * (bisect_right(self.edges, least, 1, self.bins) - 1) if self.pair else column

    def likelihoods(self, score: float, least: float = 1.0) -> Belief:
        """P(what is seen | state) of the three states; see `column`."""
        return self._columns[self.column(score, least)]

    @cached_property
    def _columns(self) -> tuple[Belief, ...]:
        return tuple(zip(*self.rows, strict=True))


def check_probabilities(name: str, values: Sequence[float]) -> None:
    """Raises `DataError` naming `name` unless `values` are probabilities, at least one."""
    if not values:
        raise DataError(f"{name} is empty; give at least one probability")
    for value in values:
        if not 0 <= value <= 1:
            raise DataError(f"{name} has {value!r}; a probability lies in [0, 1]")


def check_rows(name: str, rows: Sequence[Sequence[float]]) -> None:
    """Raises `DataError` naming `name` unless `rows` are three distributions over the same observations."""
    lengths = [len(row) for row in rows]
    if len(lengths) != 3 or len(set(lengths)) != 1 or not lengths[0]:
        raise DataError(f"{name} has rows of lengths {lengths}; give three of one length, one for each state")
    for state, row in enumerate(rows):
        if not all(value >= 0 for value in row) or not abs(sum(row) - 1.0) <= _SUM:
            raise DataError(
                f"{name}[{state}] has {min(row):.9g} as its least entry and adds up to {sum(row):.9g}; "
                "give probabilities that add up to 1"
            )
