"""What a loop did and measured, round by round, and what the target costs after each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stepwise.errors import DataError
from stepwise.io import read_json, read_rows
from stepwise.records import record
from stepwise.rounds.scoring import LoopScorer
from stepwise.routing import Always, Never
from stepwise.routing.compare import Measured, PolicyRow
from stepwise.routing.deciding import label_of
from stepwise.routing.metrics import OperatingPoint, cpt_interpolated
from stepwise.stats import Interval
from stepwise.types import InNotebook, Usage

Part = Literal["validation", "test"]
_Counts = tuple[int, ...]


@record()
class LoopPoint:
    """One policy on the validation or test problems after a round (0: before the first), a number for each problem.

    `right` counts right answers of `samples` solutions; `strong` and `tokens` are tokens by the strong model and by
    both, of all of them together. `row` is the first solution's, for tables and plots.

    Example:
        result = sw.loop(problems, config, "out/loop", validation=validation, test=test)
        result.point(0, "Threshold 0.50").at()  # OperatingPoint(cost=6.0, accuracy=0.5)
    """

    round: int
    part: Part
    row: PolicyRow
    samples: int
    right: _Counts
    strong: _Counts
    tokens: _Counts

    @property
    def policy(self) -> str:
        """Its label."""
        return self.row.policy

    def at(self, index: Any = slice(None)) -> OperatingPoint:
        """Mean strong tokens a problem, and accuracy, over the problems at `index`."""
        right, strong = (np.asarray(counts)[index].mean() / self.samples for counts in (self.right, self.strong))
        return OperatingPoint(float(strong), float(right))


@record()
class LoopRound:
    """What a round did. `adapter` is the weak model's from now on, None for the untrained one.

    `rows` counts what was learned from, by origin. `spent` has the usage by role, of routing and collecting. `change`
    is the weak model's accuracy alone on validation problems less that before the round, paired by problem. `measured`
    is the round whose points hold for this model: an earlier one where this was rolled back. `setting` is the policy's,
    and `held` whether it comes to the target on validation problems. `scorer` is what scores from now on, `notes` say
    which stage had nothing to do.

    Example:
        >>> LoopRound(0, None, {}, {}, None, False, 0, 0.5, True).rolled_back
        False
    """

    number: int
    adapter: str | None
    rows: Mapping[str, int]
    spent: Mapping[str, Usage]
    change: Interval | None
    rolled_back: bool
    measured: int
    setting: float
    held: bool
    scorer: LoopScorer | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class LoopResult(InNotebook):
    """All rounds, and what was measured. `target` is the accuracy on validation problems that was to be held.

    Example:
        [result.tokens_at_target(done.number, 0.8) for done in loop(problems, config, "out/loop", ...).rounds]
    """

    target: float
    rounds: tuple[LoopRound, ...]
    points: tuple[LoopPoint, ...]

    def __str__(self) -> str:
        """A line for each round, on the test problems."""
        lines = []
        for done in self.rounds:
            weak = self.point(done.measured, label_of(Never())).at()
            routed = next(
                p for p in self.points if (p.round, p.part, p.row.setting) == (done.measured, "test", done.setting)
            ).at()
            lines.append(
                f"round {done.number}{' (rolled back)' if done.rolled_back else ''}: weak alone {weak.accuracy:.1%}, "
                f"routed at {done.setting:g} {routed.accuracy:.1%} for {routed.cost:.1f} strong tokens a problem"
            )
        return "\n".join(lines)

    def point(self, number: int, policy: str, part: Part = "test") -> LoopPoint:
        """The policy with this label after a round; raises DataError where it was not measured."""
        found = [p for p in self.points if (p.round, p.policy, p.part) == (number, policy, part)]
        if not found:
            raise DataError(f"no {policy!r} in round {number} on {part} problems")
        return found[0]

    def tokens_at_target(self, number: int, target: float, index: Any = slice(None)) -> float | None:
        """Strong tokens a test problem to recover `target` of the gap of round 0, by mixing the settings of a round.

        The strong model alone is one of them. None where it is no better than the weak one. `index`: of test problems,
        for resampling.
        """
        weak, strong = (self.point(0, label_of(policy)).at(index) for policy in (Never(), Always()))
        measured = self.rounds[number].measured
        here = [p.at(index) for p in self.points if (p.round, p.part) == (measured, "test")]
        own = min(here, key=lambda point: point.cost)
        if own.accuracy >= weak.accuracy + target * (strong.accuracy - weak.accuracy):
            return own.cost
        return cpt_interpolated(here, weak, strong, target)


def read_loop(out: str | Path) -> LoopResult:
    """What a loop has done so far in the directory `out`. Raises DataError where it has finished no round.

    Example:
        read_loop("out/loop").rounds[-1].held
    """
    rounds = read_rows(Path(out) / "rounds.jsonl", LoopRound)
    if not rounds:
        raise DataError(f"{out} has no finished round of a loop; start one with `stepwise loop`")
    target = read_json(Path(out) / "target.json", "give another directory", {"accuracy": float})["accuracy"]
    return LoopResult(float(target), tuple(rounds), tuple(read_rows(Path(out) / "points.jsonl", LoopPoint)))


def point_of(number: int, part: Part, measured: Sequence[Measured]) -> LoopPoint:
    """The point of a policy from what was measured, an entry for each solution of the problems.

    Example:
        point_of(1, "test", compare(router, Never(), problems)).at().accuracy
    """
    traces = [[view.trace for view in each.views] for each in measured]

    def total(count: Any) -> _Counts:
        return tuple(sum(count(trace) for trace in of_problem) for of_problem in zip(*traces, strict=True))

    right = np.sum([each.correct for each in measured], axis=0)
    return LoopPoint(
        number, part, measured[0].row, len(measured), tuple(int(n) for n in right),
        total(lambda trace: trace.usage.get("strong", Usage()).generated_tokens),
        total(lambda trace: sum(usage.generated_tokens for usage in trace.usage.values())),
    )  # fmt: skip
