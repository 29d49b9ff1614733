"""Routing with a scorer that is worse than the one the policies were fitted on, and on longer problems.

Every condition (a changed scorer on the usual problems, or problems longer than any seen in fitting) is measured twice:
with the policies as fitted on the scorer as it is and on the usual problems, and fitted again under the condition on
other problems. Prints the area of mixed settings of each entry of the board, what becomes of the setting that was the
cheapest to 80 % of the gap before, and what refitting gives back; writes rows.jsonl and robustness.json. Lab figures: a
test bed, no benchmark.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import Field, PositiveInt

from stepwise.errors import DataError
from stepwise.lab.problems import generate
from stepwise.models.scorers import Scored
from stepwise.models.scorers.base import WrappedScorer
from stepwise.models.store import CallCache
from stepwise.routing import Never, StepRouter
from stepwise.routing.board import Board, BoardRow, Job
from stepwise.routing.entries import FittingData, entries_of
from stepwise.routing.estimates import Estimate, of_draws
from stepwise.routing.metrics import OperatingPoint, cheapest, pgr
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program
from stepwise.types import Problem

USUAL = "as it is"
LONG = "longer problems"
DEFAULT = (
    "threshold",
    "belief",
    "belief, memoryless pair",
    "belief, published",
    "planned",
    "published",
    "score drop",
    "cumulative sum",
    "cascade, least score",
)
_ELSEWHERE = 100_000  # problems from this number on are for fitting where a split has to serve both ends
NOISE, HEAT, BIAS = 2.0, 3.0, 2.0
Change = Callable[[float, str], float]  # (log-odds of a step, its place) -> log-odds


def _noise(logit: float, place: str) -> float:
    return logit + NOISE * random.Random(place).gauss(0.0, 1.0)


SCORERS: dict[str, tuple[str, Change]] = {
    "plain": ("as it is", lambda logit, _: logit),
    "noisy": (f"log-odds plus normal noise of deviation {NOISE:g}, drawn once for each step as written", _noise),
    "cold": (f"log-odds times {HEAT:g}: too sure", lambda logit, _: HEAT * logit),
    "hot": (f"log-odds divided by {HEAT:g}: not sure enough", lambda logit, _: logit / HEAT),
    "strict": (f"log-odds less {BIAS:g}: too low", lambda logit, _: logit - BIAS),
    "lenient": (f"log-odds plus {BIAS:g}: too high", lambda logit, _: logit + BIAS),
}


class ChangedScorer(WrappedScorer):
    """`scorer` with the log-odds of its scores changed; what it costs and all else is the scorer's own.

    A score nearer to 0 or 1 than 1e-6 counts as that near, so that log-odds are finite.
    """

    def __init__(self, scorer: Any, kind: str) -> None:
        super().__init__(scorer)
        self.kind = kind
        self.name = scorer.name if kind == "plain" else f"{scorer.name}, {kind}"
        self._change = SCORERS[kind][1]

    @property
    def identity(self) -> str:
        """Each kind's own."""
        return self.name

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """The scorer's, changed."""
        result = await self.scorer.ascore(problem, steps, known)
        return result._replace(scores=self._changed(problem, steps, result.scores))

    def _changed(self, problem: Problem | str, steps: Sequence[str], scores: Sequence[float]) -> list[float]:
        if self.kind == "plain":
            return list(scores)
        question = problem if isinstance(problem, str) else problem.question
        changed = []
        for i, score in enumerate(scores):
            kept = min(max(score, 1e-6), 1 - 1e-6)
            place = f"{question}\n{'/'.join(steps[: i + 1])}"
            logit = self._change(math.log(kept / (1 - kept)), place)
            changed.append(1 / (1 + math.exp(-max(-50.0, min(50.0, logit)))))
        return changed


class Condition(NamedTuple):
    """What is measured: `name` without "refitted", the scorer, the split, whether the entries are fitted under it."""

    name: str
    scorer: str
    split: str
    refit: bool

    @property
    def key(self) -> str:
        """Its name in tables."""
        return f"{self.name}, refitted" if self.refit else self.name


Boards = Mapping[str, Board]


class _Options(Options):
    problems: PositiveInt = 200
    """measured"""
    points: PositiveInt = 8
    """per entry"""
    fit: PositiveInt = 300
    """fitting problems"""
    calibrate: PositiveInt = 200
    """as many others for the settings"""
    resamples: PositiveInt = 400
    """of the bootstrap"""
    entries: tuple[str, ...] = Field(DEFAULT, description="of the board")
    scorers: tuple[str, ...] = Field(
        ("noisy", "cold", "hot", "strict", "lenient"),
        description="; ".join(f"{name}: {what}" for name, (what, _) in SCORERS.items() if name != "plain"),
    )


@program(_Options, doc=__doc__)
def main(run: Run[_Options], models: tuple[Any, Any, Any] | None = None) -> None:
    unknown = [kind for kind in run.args.scorers if kind not in SCORERS]
    if unknown:
        raise DataError(f"--scorers {unknown[0]!r} is none; the kinds are {', '.join(SCORERS)}")
    config = run.config
    weak, strong, scorer = models or (config.models.weak, config.models.strong, config.scorer)
    with (
        CallCache(run.path("calls.jsonl")) as cache,
        StepRouter(
            weak, strong, scorer, Never(), prompt=config.prompt, sampling=config.sampling, cache=cache,
            max_steps=config.routing.max_steps, seed=config.seed,
        ) as router,
    ):  # fmt: skip
        boards = measured(run, router, conditions(run.args.scorers))
        run.say(cache.summary())
    report(run, boards)


def conditions(scorers: Sequence[str]) -> list[Condition]:
    """The usual one, then each other with the policies as they were and fitted again."""
    changed = [(kind, kind, "test") for kind in scorers] + [(LONG, "plain", "test-long")]
    return [
        Condition(USUAL, "plain", "test", False),
        *(Condition(*one, refit) for one in changed for refit in (False, True)),
    ]


def measured(run: Run[_Options], router: StepRouter, wanted: Sequence[Condition]) -> dict[str, Board]:
    """A board for each condition; rows that are in the file are not measured again."""
    rows: dict[str, list[BoardRow]] = {}
    done = {(row.entry, row.key, row.seed): row for row in run.rows("rows.jsonl", BoardRow)}
    usual = _data(run.args, router, wanted[0])
    entries = entries_of(run.args.entries)
    with progress("conditions", len(wanted)) as advance:
        for condition in wanted:
            there = _data(run.args, router, condition)
            fitted = there if condition.refit else usual
            for entry in entries:
                job = Job(f"{condition.key}: {entry.name}", entry, there)
                for found in job.measure(entry.policies(fitted), [0], done, {}, None):
                    if found.fresh:
                        run.write("rows.jsonl", found.row)
                    rows.setdefault(condition.key, []).append(dataclasses.replace(found.row, entry=entry.name))
            advance(1, condition.key)
    return {key: Board.of({}, own) for key, own in rows.items()}


def _data(args: _Options, router: StepRouter, condition: Condition) -> FittingData:
    """Fitted on problems of the split itself only where it says so, and then on others than those measured."""
    split, usual = condition.split, condition.split == "test"
    parts = (
        generate("val", args.calibrate) if usual else generate(split, args.calibrate, start=_ELSEWHERE),
        generate("train", args.fit) if usual else generate(split, args.fit, start=2 * _ELSEWHERE),
        generate(split, args.problems),
    )
    other = router.with_policy(Never())
    other.models = other.models._replace(scorer=ChangedScorer(router.models.scorer, condition.scorer))
    set_on, fit_on, measured = ([lab.problem for lab in labs] for labs in parts)
    return FittingData(other, set_on, fit_on, measured, args.points)


def _names(board: Board) -> list[str]:
    return [name for name in board.entries if name not in ("never", "always")]


def _draws(board: Board, entry: str, samples: int) -> Any:
    mixed = board.mixed(entry, "strong_tokens", samples)
    assert mixed is not None
    return mixed.area()


def kept_settings(boards: Boards) -> dict[str, dict[str, tuple[float, float]]]:
    """By entry and condition (those without refitting) the PGR and the cost share of the setting that was the cheapest
    to 80 % of the gap under the usual condition; an entry that never gets there is left out.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    weak, strong = (_point(boards[USUAL].entries[name][0]) for name in ("never", "always"))
    for entry in _names(boards[USUAL]):
        rows = boards[USUAL].entries[entry]
        best = cheapest([_point(row) for row in rows], weak, strong, 0.8)
        for key, board in boards.items() if best is not None else ():
            same = [row for row in board.entries[entry] if row.setting == rows[best or 0].setting]
            if same and not key.endswith("refitted"):
                low, high = (_point(board.entries[name][0]) for name in ("never", "always"))
                point = _point(same[0])
                found.setdefault(entry, {})[key] = (pgr(point, low, high) or 0.0, point.cost / high.cost)
    return found


def _point(row: BoardRow) -> OperatingPoint:
    n = len(row.correct)
    return OperatingPoint(sum(row.strong_tokens) / n, sum(row.correct) / n)


def sentences(boards: Boards, area: Mapping[str, Mapping[str, Estimate]], samples: int) -> list[str]:
    """For each condition who loses most and least, and what refitting gives back."""
    said = []
    for key in boards:
        if key == USUAL or key.endswith("refitted"):
            continue
        again = f"{key}, refitted"
        if key == LONG:  # other problems: nothing to pair
            shown = "; ".join(f"{name} {_area(own[key])}, refitted {_area(own[again])}" for name, own in area.items())
            said.append(f"{key}: area {shown}.")
            continue
        falls = {
            name: [
                of_draws(_draws(boards[there], name, samples) - _draws(boards[USUAL], name, samples))
                for there in (key, again)
            ]
            for name in _names(boards[USUAL])
        }
        order = sorted(falls, key=lambda name: falls[name][0].value or 0.0)
        shown = "; ".join("{} {}, refitted {}".format(name, *map(_change, falls[name])) for name in order)
        said.append(f"{key}: change of the area, those that lose most first: {shown}.")
    return said


def report(run: Run[_Options], boards: Boards) -> None:
    """Print the tables and sentences, and write them."""
    samples = run.args.resamples
    area = {
        name: {key: of_draws(_draws(board, name, samples)) for key, board in boards.items()}
        for name in _names(boards[USUAL])
    }
    settings = kept_settings(boards)
    title = "Area of mixed settings, strong tokens (a random mix of the two models has 0.5)"
    run.table(title, ("", *boards), [(name, *map(_area, own.values())) for name, own in area.items()])
    kept = [key for key in boards if not key.endswith("refitted")]
    run.table(
        "The setting that was the cheapest to 80 % of the gap, kept: PGR and share of the strong model's tokens",
        ("", *kept),
        [
            (name, *(f"{own[key][0]:.2f} at {own[key][1]:.0%}" if key in own else "" for key in kept))
            for name, own in settings.items()
        ],
    )
    said = sentences(boards, area, samples)
    for sentence in said:
        run.say(sentence)
    figures = {name: {key: dataclasses.asdict(one) for key, one in own.items()} for name, own in area.items()}
    result = {"area": figures, "kept": settings, "sentences": said}
    run.path("robustness.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _area(found: Estimate) -> str:
    return "–" if found.value is None else f"{found.value:.3f}"


def _change(found: Estimate) -> str:
    if found.value is None:
        return "unknown"
    low, high = ("?" if end is None else f"{end:+.3f}" for end in (found.low, found.high))
    return f"{found.value:+.3f} ({low} to {high})"


if __name__ == "__main__":
    raise SystemExit(main())
