"""The arms of `evals.drift`, what is kept of a round, and what is read off: the AUROC of scorers, its decay, tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from stepwise.lab.families import SCORER_BLIND_SPOT
from stepwise.records import record
from stepwise.runs.shell import Run
from stepwise.stats import Interval, auroc, bootstrap

FEWEST = 100
"""First errors of the blind family without which nothing is said of it."""
PLANTED, ONCE, ANEW = "lab-scorer", "probe, fitted once", "probe, fitted anew"


class Arm(NamedTuple):
    """Of the steps that the policy keeps, a share that is escalated all the same; whether escalations are filtered by
    rollouts; whether the scorer is made anew each round.
    """

    explore: float = 0.0
    filtered: bool = False
    refit: bool = False


ARMS = {
    "gated": Arm(),
    "random, 5 %": Arm(explore=0.05),
    "random, 25 %": Arm(explore=0.25),
    "filtered": Arm(filtered=True),
    "refitted": Arm(refit=True),
}


@record()
class Round:
    """Scorers on what the weak model of `arm` writes after so many rounds ("start" before the first).

    `learned` counts its rows by family, `probe` is the [scorer] that was fitted to the model. `scores` has by scorer,
    for each measured problem (those of the blind family last), the scores of its solution's steps up to the first
    error; `errors` the family of that error, "" without one.
    """

    arm: str
    seed: int
    number: int
    adapter: str | None
    probe: dict[str, Any]
    learned: dict[str, int]
    strong_tokens: int
    errors: tuple[str, ...]
    scores: dict[str, tuple[tuple[float, ...], ...]]


def scorer_of(arm: str) -> str:
    """The scorer that an arm routes with."""
    return ANEW if arm in ARMS and ARMS[arm].refit else PLANTED


Part = Literal["all", "others", "blind"]


def area_of(row: Round, scorer: str, problems: int, part: Part = "all") -> Callable[[Any], float | None]:
    """AUROC of right steps against first errors, for `bootstrap`: all or those of the other families on the first
    `problems`, or those of the blind family on the problems that hold it.
    """
    place = slice(problems, None) if part == "blind" else slice(problems)
    pairs = [(scores, error) for scores, error in zip(row.scores[scorer][place], row.errors[place], strict=True)]
    right = [np.array(scores[:-1] if error else scores) for scores, error in pairs]
    blind = {SCORER_BLIND_SPOT}
    counts = blind if part == "blind" else {*row.errors} - {""} - (blind if part == "others" else set())
    wrong = [np.array(scores[-1:] if error in counts else ()) for scores, error in pairs]

    def area(index: Any) -> float | None:
        value = auroc(np.concatenate([right[i] for i in index]), np.concatenate([wrong[i] for i in index]))
        return None if np.isnan(value) else value

    return area


def decay(now: Round, before: Round, problems: int) -> Callable[[Any], float | None]:
    """AUROC of an arm's scorer after a round less that before the first, by indices of problems."""
    own = scorer_of(now.arm)
    return partial(_difference, *(area_of(row, own, problems) for row in (now, before)))


def _difference(x: Callable[[Any], float | None], y: Callable[[Any], float | None], index: Any) -> float | None:
    now, before = x(index), y(index)
    return None if now is None or before is None else now - before


def facts_of(rounds: Sequence[Round], problems: int, samples: int = 500) -> list[dict[str, Any]]:
    """What is shown of each round, of which the first `problems` measured ones are the plain ones."""
    result = []
    for row in rounds:
        mine = {(other.arm, other.number): other for other in rounds if other.seed == row.seed}
        start, gated = mine["start", 0], mine.get(("gated", row.number))
        plain = [error for error in row.errors[:problems] if error]
        facts: dict[str, Any] = {
            "arm": row.arm, "seed": row.seed, "round": row.number, "learned": row.learned,
            "strong_tokens": row.strong_tokens, "without_error": 1 - len(plain) / problems,
            "errors": dict(Counter(plain)), "blind_errors": row.errors[problems:].count(SCORER_BLIND_SPOT),
        }  # fmt: skip
        for part in get_args(Part):
            size = len(row.errors) - problems if part == "blind" else problems
            facts[f"auroc, {part}"] = {
                scorer: bootstrap(area_of(row, scorer, problems, part), size, samples=samples) for scorer in row.scores
            }
        if row.number:
            change = decay(row, start, problems)
            facts["decay"] = bootstrap(change, problems, samples=samples)
            if gated is not None and row.arm != "gated":
                base = decay(gated, start, problems)
                facts["over_gated"] = bootstrap(partial(_difference, change, base), problems, samples=samples)
        result.append(facts)
    return result


def without_power(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Arms and rounds that say nothing of the blind family."""
    return [
        f"{facts['arm']}, round {facts['round']}: {facts['blind_errors']} first errors of the family, no power"
        for facts in found
        if facts["blind_errors"] < FEWEST
    ]


def show(run: Run[Any], found: Sequence[Mapping[str, Any]]) -> None:
    """Print what was learned, what scorers are worth, and in words what follows."""
    args, family = run.args, SCORER_BLIND_SPOT
    learned, scored = list[tuple[str, ...]](), list[tuple[str, ...]]()
    for facts in found:
        place, rows, errors = (facts["arm"], str(facts["round"])), facts["learned"], facts["errors"]
        learned.append((
            *place, f"{sum(rows.values())}, {rows.get(family, 0)}", f"{facts['strong_tokens'] / args.train:.1f}",
            f"{facts['without_error']:.1%}", f"{sum(errors.values())}, {errors.get(family, 0)}",
            str(facts["blind_errors"]),
        ))  # fmt: skip
        scored += [
            (*place, scorer, *(_band(facts[f"auroc, {part}"][scorer]) for part in get_args(Part)))
            for scorer in facts["auroc, all"]
        ]
    run.table(
        f"{args.train} problems a round; measured on {args.problems}, and {args.blind} of {family!r}",
        ("arm", "round", "rows, of\nthe family", "strong tokens\na problem", "without\nan error",
         "errors, of\nthe family", "on its own\nproblems"),
        learned,
    )  # fmt: skip
    columns = ("arm", "round", "scorer", "all errors", "of other\nfamilies", "of the family,\non its own problems")
    run.table("AUROC of right steps against first errors (95 %)", columns, scored)
    for facts in found:
        if facts["round"] == args.rounds:
            run.say(verdict(facts))


def verdict(facts: Mapping[str, Any]) -> str:
    """Whether an arm's AUROC decays, and whether it slows or stops the decay of "gated", in words."""
    change, over = facts["decay"], facts.get("over_gated")
    decays = change is not None and change.high < 0
    text = f"{facts['arm']} (seed {facts['seed']}): the AUROC of its scorer ({scorer_of(facts['arm'])}) "
    text += f"{'decays' if decays else 'is not shown to decay'}, {_band(change, '+')}"
    if over is not None:
        better = f"{'slows' if decays else 'stops'} the decay of gated"
        word = "decays more than gated" if over.high < 0 else better if over.low > 0 else "cannot be told from gated"
        text += f"; it {word}, {_band(over, '+')}"
    return text + "."


def _band(interval: Interval | None, sign: str = "-") -> str:
    return "-" if interval is None else "{:{s}.3f} ({:{s}.3f} to {:{s}.3f})".format(*interval, s=sign)
