"""What a collection's page shows, from the rows of its stages: what became of each attempt and candidate, and counts.

Nothing is asked of a model and nothing is graded anew.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stepwise.data.examples import unique
from stepwise.interventions.rows import Candidate, FailedAttempt, GuidedRollout, Located
from stepwise.report.charts import Bar
from stepwise.types import Problem

EXAMPLE, OUTDONE, TWIN = "became an example", "passed over for another candidate", "same example as another"
NO_SUCCESS, SAME_STEP = "without a guided success", "same step as another candidate"
UNREAD, UNCHECKED, UNGUIDED = "without a readable step", "not checked for leaks", "not guided"
FOUND_RIGHT, NOT_LOCATED = "without an error for the critic", "not located"
ORDER = (EXAMPLE, NO_SUCCESS, OUTDONE, TWIN)
UNSOUND = "with a false equation"
_LEAKS = {"leak": "with the answer given away", "answer_step": "of the answer's own step"}


@dataclass(frozen=True)
class Stage:
    """One stage of the funnel: of `rows` rows, `kept` went on as `becomes`, and the others were left out, by reason."""

    name: str
    rows: int
    becomes: str
    kept: int
    left: dict[str, int]
    note: str = ""


@dataclass(frozen=True)
class Card:
    """One candidate, or one attempt that has none, with all that is shown of it; texts are as they were written.

    `location` is the 0-based step of the first error. `guided` are the outcomes of the judged rollouts, None where
    there were none; `continuation` is the first of them that ended right, else the first.
    """

    id: str
    problem: Problem | None
    problem_id: str
    fate: str
    attempt: tuple[str, ...]
    answer: str | None
    reason: str = ""
    location: int | None = None
    content: str = ""
    found: str = ""
    guided: tuple[int, int] | None = None
    continuation: tuple[str, ...] = ()
    continuation_answer: str | None = None
    continuation_right: bool = False

    @property
    def mark(self) -> Literal["right", "open", "wrong"]:
        """How the fate is coloured."""
        return "right" if self.fate == EXAMPLE else "open" if self.fate in (OUTDONE, TWIN, SAME_STEP) else "wrong"


@dataclass(frozen=True)
class Facts:
    """The rows of a collection, each read once, and what follows from them."""

    rows: Mapping[str, Sequence[Any]]
    keep: str = "best"
    problems: Mapping[str, Problem] = field(default_factory=dict)

    def guided(self) -> dict[str, list[GuidedRollout]]:
        """The guided rollouts by candidate."""
        found: defaultdict[str, list[GuidedRollout]] = defaultdict(list)
        for row in self.rows["guided"]:
            found[row.candidate].append(row)
        return dict(found)


def _outcome(rollouts: Sequence[GuidedRollout]) -> tuple[int, int]:
    """How many of the rollouts that were judged ended right, and how many were judged."""
    judged = [row for row in rollouts if row.verdict is not None]
    return sum(row.verdict == "CORRECT" for row in judged), len(judged)


def fates(facts: Facts) -> dict[str, str]:
    """What became of every candidate, by id."""
    guided, examples = facts.guided(), unique(facts.rows["examples"])
    made, served = {row.id for row in examples}, {row.parents.get("failure") for row in examples}
    targets = {(row.parents.get("problem"), row.target) for row in examples}
    failures = {row.id: row for row in facts.rows["failures"]}
    clean: set[tuple[str, int, str]] = set()
    found = {}
    for row in facts.rows["candidates"]:
        step = (row.failure, row.location, row.content)
        target = "\n\n".join((*failures[row.failure].steps[: row.location], row.content))
        if row.id in made:
            fate = EXAMPLE
        elif row.id in guided and not _outcome(guided[row.id])[0]:
            fate = NO_SUCCESS
        elif row.id in guided:
            again = facts.keep == "all" or (row.failure not in served and (row.problem, target) in targets)
            fate = TWIN if again else OUTDONE
        else:
            fate = _dropped(row) or (SAME_STEP if step in clean else UNGUIDED)
        if not _dropped(row):
            clean.add(step)
        found[row.id] = fate
    return found


def stages(facts: Facts, found: Mapping[str, str]) -> list[Stage]:
    """The funnel; `found` is what `fates` says."""
    rows = facts.rows
    failures, located, candidates = rows["failures"], rows["located"], rows["candidates"]
    became, guided = Counter(found.values()), {row.candidate for row in rows["guided"]}
    before = Counter(fate for name, fate in found.items() if name not in guided)
    successes = sum(became[fate] for fate in (EXAMPLE, OUTDONE, TWIN))
    silent = sum(row.verdict == "NO_ANSWER" for row in failures)
    errors = sum(row.first_error is not None and not row.failed for row in located)
    right = sum(row.verdict == "CORRECT" for row in rows["guided"])
    endings = f"{len(failures) - silent:,} end with a wrong answer, {silent:,} without an answer"
    lost = _counted([_of_located(row) for row in located])
    each = f"{len(candidates) / errors:.2g} for each error" if errors else ""
    tries = f"{len(rows['guided']):,} guided rollouts, {right:,} of them end right"
    last = _some({OUTDONE: became[OUTDONE], TWIN: became[TWIN]})
    return [
        Stage("Rollouts", len(rows["rollouts"]), "failed attempts", len(failures), _of_rollouts(facts), endings),
        Stage("Failed attempts", len(located), "errors located", errors, lost),
        Stage("Candidates", len(candidates), "candidates guided", len(guided), dict(before.most_common()), each),
        Stage("Candidates guided", len(guided), "with a guided success", successes,
              _some({NO_SUCCESS: became[NO_SUCCESS]}), tries),
        Stage("With a guided success", successes, "examples", became[EXAMPLE], last),
    ]  # fmt: skip


def success_bars(facts: Facts) -> list[Bar]:
    """How many guided candidates have which share of rollouts that end right: none, then tenths up to all."""
    tries = [tried for tried in _outcomes(facts.guided()).values() if tried[1]]
    counts = Counter(-(-10 * right // judged) for right, judged in tries)  # rounded up, in whole numbers
    names = ["none of the rollouts", *(f"over {10 * k - 10} % and up to {10 * k} %" for k in range(1, 11))]
    return [Bar(f"{10 * k}", counts[k], f"{name}: {counts[k]:,} of {len(tries):,} candidates")
            for k, name in enumerate(names)]  # fmt: skip


def error_bars(facts: Facts) -> list[Bar]:
    """How many attempts have their first error in which step (0-based)."""
    failures = {row.id: row for row in facts.rows["failures"]}
    where = Counter(row.first_error for row in facts.rows["located"] if row.first_error is not None and not row.failed)
    bars = []
    for step in range(max(where, default=-1) + 1):
        long = sum(len(row.steps) > step for row in failures.values())
        bars.append(
            Bar(str(step), where[step], f"step {step}: {where[step]:,} of {long:,} attempts that have this step")
        )
    return bars


def cards(facts: Facts, found: Mapping[str, str]) -> list[Card]:
    """All candidates and the attempts without one, examples first, then by what became of them."""
    failures: dict[str, FailedAttempt] = {row.id: row for row in facts.rows["failures"]}
    located: dict[str, Located] = {row.failure: row for row in facts.rows["located"]}
    questions = {row.parents.get("problem", ""): row for row in facts.rows["examples"]}
    guided = facts.guided()

    def about(name: str) -> Problem | None:
        row = questions.get(name)
        return facts.problems.get(name) or (Problem(name, row.question, row.answer) if row else None)

    made = []
    for row in facts.rows["candidates"]:
        tries, failure = guided.get(row.id, []), failures[row.failure]
        shown = next((t for t in tries if t.verdict == "CORRECT"), tries[0] if tries else None)
        why = located[row.failure].reason if row.failure in located else ""
        made.append(Card(
            row.id, about(row.problem), row.problem, found[row.id], failure.steps, failure.answer, why, row.location,
            row.content, _why(row), _outcome(tries) if tries else None, shown.steps if shown else (),
            shown.answer if shown else None, bool(shown and shown.verdict == "CORRECT"),
        ))  # fmt: skip
    for place in facts.rows["located"]:
        if (fate := _of_located(place)) and place.failure in failures:
            failure = failures[place.failure]
            made.append(Card(failure.id, about(failure.problem), failure.problem, fate, failure.steps, failure.answer,
                             place.reason, found=place.failed))  # fmt: skip
    order = {fate: rank for rank, fate in enumerate(dict.fromkeys([*ORDER, *(card.fate for card in made)]))}
    return sorted(made, key=lambda card: order[card.fate])


def _outcomes(guided: Mapping[str, Sequence[GuidedRollout]]) -> dict[str, tuple[int, int]]:
    return {name: _outcome(tries) for name, tries in guided.items()}


def _dropped(row: Candidate) -> str:
    """Why a candidate was not to be guided; empty where it was."""
    if row.failed:
        return UNREAD
    if row.leak is None:
        return UNCHECKED
    if row.leak != "clean":
        return _LEAKS.get(str(row.leak), str(row.leak).replace("_", " "))
    return UNSOUND if _unsound(row) else ""


def _unsound(row: Candidate) -> str:
    """The false equation in a candidate, where they were looked for."""
    return str(getattr(row, "unsound", ""))


def _why(row: Candidate) -> str:
    return row.failed or ": ".join(part for part in (row.leak_reason, row.leak_text) if part) or _unsound(row)


def _of_located(row: Located) -> str:
    return NOT_LOCATED if row.failed else FOUND_RIGHT if row.first_error is None else ""


def _of_rollouts(facts: Facts) -> dict[str, int]:
    """Why rollouts are not among the failed attempts."""
    rollouts, failures = facts.rows["rollouts"], facts.rows["failures"]
    wrong = [row for row in rollouts if row.verdict in ("WRONG", "NO_ANSWER")]
    right = sum(row.verdict == "CORRECT" for row in rollouts)
    silent = sum(row.finish == "error" for row in rollouts)
    empty = sum(not row.steps for row in wrong)
    return _some({
        "ended right": right,
        "the model failed": silent,
        "could not be graded": len(rollouts) - right - silent - len(wrong),
        "empty": empty,
        "same text as another attempt": sum(row.copies - 1 for row in failures),
        "over the limit of attempts": len(wrong) - empty - sum(row.copies for row in failures),
    })  # fmt: skip


def _counted(reasons: Sequence[str]) -> dict[str, int]:
    return {reason: n for reason, n in Counter(reasons).most_common() if reason}


def _some(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: n for name, n in counts.items() if n}
