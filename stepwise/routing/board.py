"""The board: what every entry did on every problem, its figures at equal cost, and a board beside an earlier one.

A cost is strong tokens, all generated tokens (discarded drafts included), money (cached prompt tokens at their price),
or seconds of models that work alone (what they read and write at their speeds, one problem after another). Figures are
those of settings mixed at random per problem, with vertices chosen on half of the problems and measured on the other.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from stepwise.config import Prices
from stepwise.errors import DataError, reason_of
from stepwise.io import read_json, write_text
from stepwise.models.reservations import money_for
from stepwise.plugins import identity_of
from stepwise.records import from_json, record
from stepwise.routing.compare import Measured, judge
from stepwise.routing.entries import Entry, FittingData
from stepwise.routing.estimates import Estimate, of_draws
from stepwise.routing.metrics import cost_of
from stepwise.routing.mixing import Mixed
from stepwise.routing.policy import Policy
from stepwise.seeds import stable_hash
from stepwise.types import Usage

BoardCost = Literal["strong_tokens", "all_tokens", "money", "seconds"]
BOARD_COSTS: dict[BoardCost, str] = {
    "strong_tokens": "strong tokens",
    "all_tokens": "all tokens",
    "money": "money",
    "seconds": "seconds",
}
GAINS = (0.0, 0.1, 0.2, 0.3)
"""Costs at which accuracy is compared, as shares of the way from the weak model's to the strong one's."""
LEVELS = (0.5, 0.8, 0.95)
_SAME = ("problems", "weak", "strong", "prompt", "sampling", "max_steps", "grader")
_REMEDY = "give the board.json of a run of stepwise board"
Speeds = Mapping[str, tuple[float, float]]
_TRAININGS = 1000  # a seed of a training counts as so many seeds of a run


@record(allow_inf_nan=False)
class BoardRow:
    """One setting of an entry: for every problem, in order, the share of its runs that were right, and mean costs.

    `key` says what was measured (policy, scorer, adapter, with their code), `seed` of which run, -1 for all together.
    A cost is None where it is not known.

    Example:
        >>> BoardRow("half", "step", 0.5, (1.0, 0.0), (3.0, 8.0), (20.0, 24.0)).costs("money") is None
        True
    """

    entry: str
    level: str
    setting: float | None
    correct: tuple[float, ...]
    strong_tokens: tuple[float, ...]
    all_tokens: tuple[float, ...]
    money: tuple[float, ...] | None = None
    seconds: tuple[float, ...] | None = None
    key: str = ""
    seed: int = -1

    def costs(self, cost: BoardCost) -> tuple[float, ...] | None:
        """One of the four."""
        values: tuple[float, ...] | None = getattr(self, cost)
        return values

    @classmethod
    def of(
        cls, entry: str, level: str, key: str, seed: int, measured: Measured, prices: Mapping[str, Prices | None],
        speeds: Speeds | None,
    ) -> BoardRow:  # fmt: skip
        """Of a measured policy; `prices` per million tokens and `speeds` (tokens a second read, written) by role."""
        spent = [view.trace.usage for view in measured.views]
        money = [_money(usage, prices) for usage in spent]
        return cls(
            entry, level, measured.setting, tuple(map(float, measured.correct)),
            tuple(float(cost_of([view.trace]).strong_tokens) for view in measured.views),
            tuple(float(cost_of([view.trace]).all_tokens) for view in measured.views),
            None if None in money else tuple(float(f"{one:.6g}") for one in money if one is not None),
            None if speeds is None else tuple(float(f"{_seconds(usage, speeds):.6g}") for usage in spent),
            key, seed,
        )  # fmt: skip


def _money(spent: Mapping[str, Usage], prices: Mapping[str, Prices | None]) -> float | None:
    total = 0.0
    for role, usage in spent.items():
        price = prices.get(role)
        if price is None:
            return None
        cached = usage.prompt_tokens - usage.evaluated_tokens
        total += float(money_for(price, usage.prompt_tokens, usage.generated_tokens, cached))
    return total


def _seconds(spent: Mapping[str, Usage], speeds: Speeds) -> float:
    pairs = [(usage, *speeds[role]) for role, usage in spent.items() if role in speeds]
    return sum(usage.evaluated_tokens / reads + usage.generated_tokens / writes for usage, reads, writes in pairs)


class _Found(NamedTuple):
    """A row, whether it was measured just now, and why solutions of it were lost to failures."""

    row: BoardRow
    fresh: bool
    lost: Sequence[str] = ()


class Job(NamedTuple):
    """An entry to measure with one scorer and one weak model: with `adapter`, of seed number `trained` of a training.

    Example:
        job = Job("threshold", entry, data)
        rows = [found.row for found in job.measure(entry.policies(data), range(3), {}, prices, speeds)]
    """

    name: str
    entry: Entry
    data: FittingData
    adapter: str = ""
    trained: int = 0

    def measure(
        self, policies: Sequence[Policy], seeds: Sequence[int], done: Mapping[tuple[str, str, int], BoardRow],
        prices: Mapping[str, Prices | None], speeds: Speeds | None,
    ) -> Iterator[_Found]:  # fmt: skip
        """A row for every setting and seed, those of `done` (by entry, key and seed) taken over."""
        models = self.data.router.models
        scorer = models.scorer if self.entry.scorer != "none" else None
        if speeds is not None and scorer is not None and scorer.parameters:
            ratio = models.weak.parameters / scorer.parameters  # it reads as fast as the weak model, by its size
            speeds = {**speeds, "scorer": (speeds["weak"][0] * ratio, speeds["weak"][1] * ratio)}
        for place, policy in enumerate(policies):
            key = f"{stable_hash(identity_of(policy), getattr(scorer, 'identity', ''), self.adapter):016x}"
            for seed in seeds:
                number = seed + _TRAININGS * self.trained
                if known := done.get((self.name, key, number)):
                    yield _Found(known, fresh=False)
                    continue
                measured = self._routed(policy, seed)
                row = BoardRow.of(self.name, self.entry.level, key, number, measured, prices, speeds)
                if self.adapter:  # settings differ from training to training, their places do not
                    row = dataclasses.replace(row, setting=float(place))
                lost = [view.trace.note for view in measured.views if view.trace.finish == "error"]
                yield _Found(row, fresh=True, lost=lost)

    def _routed(self, policy: Policy, seed: int) -> Measured:
        router = self.data.router.with_policy(policy)
        router.settings = dataclasses.replace(router.settings, seed=router.settings.seed + seed)
        for model in filter(None, router.models):
            model.reset_cache()
        return judge(router, router.solve_all(self.data.measured, progress=False))


class BoardLine(NamedTuple):
    """The figures of an entry at one cost: accuracies in [0, 1], CPT as shares of the strong model's cost.

    `gains` are over a random mix of the two models at the same cost, by the shares `GAINS`; `over` is the area less
    that of the reference, None for the reference itself.

    Example:
        best = board.lines("money")[0]
        print(best.entry, best.area, best.gains[0.2], best.cpt[0.8], best.over)
    """

    entry: str
    level: str
    settings: int
    area: Estimate
    gains: dict[float, Estimate]
    cpt: dict[float, Estimate]
    over: Estimate | None


class BoardChange(NamedTuple):
    """The area of an entry less that of an earlier board, and what that says.

    Example:
        worse = [change for change in board.against(Board.load("kept.json")) if change.verdict == "worse"]
    """

    entry: str
    cost: BoardCost
    area: Estimate
    verdict: Literal["better", "worse", "not told apart"]


@record(allow_inf_nan=False, extra="ignore")
class Board:
    """A board in a file: `facts` (problems, models, prompt, prices, speeds, ...) and the rows of all settings, those of
    the two models alone ("never", "always") among them.

    Example:
        board = Board.load("board.json")
        for line in board.lines("strong_tokens"):
            print(line.entry, line.area)
    """

    facts: dict[str, Any]
    rows: tuple[BoardRow, ...]

    @classmethod
    def of(cls, facts: Mapping[str, Any], rows: Sequence[BoardRow]) -> Board:
        """Rows of several seeds taken together, problem by problem."""
        groups: dict[tuple[str, float | None], list[BoardRow]] = {}
        for row in rows:
            groups.setdefault((row.entry, row.setting), []).append(row)
        return cls(dict(facts), tuple(_together(group) for group in groups.values()))

    @classmethod
    def load(cls, path: str | Path) -> Board:
        """The inverse of `save`; raises `DataError` for a file that is missing or holds no board."""
        try:
            return from_json(cls, json.dumps(read_json(path, _REMEDY, {"facts": dict, "rows": list})))
        except ValueError as error:
            raise DataError(f"{path} holds no board ({reason_of(error)}); {_REMEDY}") from None

    def save(self, path: str | Path, **more: Any) -> None:
        """Write it as JSON, a row a line, so that two of them can be compared; `more` stands beside it for readers."""
        fields = ("entry", "level", "setting", "correct", *BOARD_COSTS, "key")
        rows = ",\n".join(json.dumps({name: _short(getattr(row, name)) for name in fields}) for row in self.rows)
        head = {"facts": self.facts, **more}
        write_text(path, json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{rows}\n]}}\n')

    @property
    def entries(self) -> dict[str, list[BoardRow]]:
        """The settings of every entry."""
        found: dict[str, list[BoardRow]] = {}
        for row in self.rows:
            found.setdefault(row.entry, []).append(row)
        return found

    def mixed(self, entry: str, cost: BoardCost, samples: int = 1000) -> Mixed | None:
        """What is mixed of an entry; None where the cost of a setting is not known. Raises `DataError` for an entry
        that is not there.
        """
        named = self.entries
        if missing := [name for name in ("never", "always", entry) if name not in named]:
            raise DataError(f"the board has no entry {missing[0]!r}; it has {', '.join(named)}")
        rows = [named["never"][0], named["always"][0], *(named[entry] if entry not in ("never", "always") else [])]
        costs = [row.costs(cost) for row in rows]
        return None if None in costs else Mixed(np.array(costs), np.array([row.correct for row in rows]), samples)

    def lines(self, cost: BoardCost, reference: str = "threshold", samples: int = 1000) -> list[BoardLine]:
        """The figures of every entry but the two models alone, those with the largest area first; empty where the cost
        is not known. Raises `DataError` for fewer than 4 problems.
        """
        named = {name: own for name, own in self.entries.items() if name not in ("never", "always")}
        base = self.mixed(reference, cost, samples) if reference in named else None
        reached, found = None if base is None else base.area(), list[BoardLine]()
        for name, rows in named.items():
            mixed = self.mixed(name, cost, samples)
            if mixed is None:
                continue
            area = mixed.area()
            found.append(
                BoardLine(
                    name, rows[0].level, len(rows), of_draws(area),
                    {share: of_draws(mixed.gain_at(share)) for share in GAINS},
                    {x: of_draws(mixed.cpt(x)) for x in LEVELS},
                    None if reached is None or name == reference else of_draws(area - reached),
                )
            )  # fmt: skip
        return sorted(found, key=lambda line: -(line.area.value or 0.0))

    def refuse_other(self, before: Board) -> None:
        """Raise `DataError`, naming what differs, for a board of other problems, models or settings."""
        for key in _SAME:
            ours, theirs = self.facts.get(key), before.facts.get(key)
            if ours != theirs:
                raise DataError(
                    f"the boards differ in {key}: {ours!r} here, {theirs!r} there; measure both on the same, with the "
                    "options of the earlier run"
                )

    def against(self, before: Board, samples: int = 1000) -> Iterator[BoardChange]:
        """Every entry that both have, at every cost that both count alike. Raises what `refuse_other` raises."""
        self.refuse_other(before)
        for entry in (name for name in self.entries if name in before.entries and name not in ("never", "always")):
            for cost in BOARD_COSTS:
                counted = {"money": "prices", "seconds": "speeds"}.get(cost)
                pair = [board.mixed(entry, cost, samples) for board in (self, before)]
                if None in pair or (counted and self.facts.get(counted) != before.facts.get(counted)):
                    continue
                now, then = (mixed.area() for mixed in pair if mixed is not None)
                change = of_draws(now - then)
                if change.value is not None:
                    yield BoardChange(entry, cost, change, _verdict(change))


def _verdict(change: Estimate) -> Literal["better", "worse", "not told apart"]:
    if change.low is not None and change.low > 0:
        return "better"
    return "worse" if change.high is not None and change.high < 0 else "not told apart"


def _together(group: Sequence[BoardRow]) -> BoardRow:
    if len({len(row.correct) for row in group}) != 1:
        raise DataError(f"{group[0].entry}: its seeds were measured on different numbers of problems; give another out")

    def mean(name: str) -> tuple[float, ...] | None:
        values = [getattr(row, name) for row in group]
        if None in values:
            return None
        return tuple(sum(column) / len(group) for column in zip(*values, strict=True))

    return dataclasses.replace(group[0], seed=-1, **{name: mean(name) for name in ("correct", *BOARD_COSTS)})  # type: ignore[arg-type]


def _short(value: Any) -> Any:
    """Whole numbers without their point."""
    if isinstance(value, tuple):
        return [int(x) if x == int(x) else float(f"{x:.6g}") for x in value]
    return value
