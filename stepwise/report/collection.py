"""The page of a collection: the funnel from rollouts to examples, and the attempts with what was put in their place.

All follows from the rows of its stages: nothing is asked of a model and nothing is graded anew.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

from stepwise.data.examples import unique
from stepwise.errors import DataError
from stepwise.interventions.collection import funnel, read_stage
from stepwise.interventions.filtering import accepted
from stepwise.interventions.rows import ROWS, Candidate, FailedAttempt, GuidedRollout, Located, spent
from stepwise.interventions.settings import CollectSettings
from stepwise.io import read_rows
from stepwise.report.series import Bar, bars_svg, stage_svg
from stepwise.report.shell import first_of_each, of_the_lab, write_page
from stepwise.runs.directory import read_card
from stepwise.types import Problem

MAX_CARDS = 200

# What became of a candidate, or of an attempt without one.
EXAMPLE, OUTDONE, TWIN = "became an example", "passed over for another candidate", "same example as another"
NO_SUCCESS, SAME_STEP = "without a guided success", "same step as another candidate"
UNREAD, UNCHECKED, UNGUIDED = "without a readable step", "not checked for leaks", "not guided"
FOUND_RIGHT, NOT_LOCATED = "without an error for the critic", "not located"
UNSOUND, NO_STEP, LUCK = "with a false equation", "in no solver's form", "with no more guided success than luck"
_LEAKS = {"leak": "with the answer given away", "answer_step": "of the answer's own step"}


@dataclass(frozen=True)
class _Stage:
    """One stage of the funnel: of `rows` rows, `kept` went on as `becomes`, and the others were left out, by reason."""

    name: str
    rows: int
    becomes: str
    kept: int
    left: dict[str, int]
    note: str = ""


@dataclass(frozen=True)
class _Card:
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
    fault: str = ""
    guided: tuple[int, int] | None = None
    continuation: GuidedRollout | None = None

    @property
    def mark(self) -> Literal["right", "open", "wrong"]:
        """How the fate is coloured."""
        return "right" if self.fate == EXAMPLE else "open" if self.fate in (OUTDONE, TWIN, SAME_STEP) else "wrong"


@dataclass(frozen=True)
class _Facts:
    """The rows of a collection by stage, each read once, and what follows from them."""

    rows: Mapping[str, Sequence[Any]]
    settings: CollectSettings = field(default_factory=lambda: CollectSettings(accept="success"))
    problems: Mapping[str, Problem] = field(default_factory=dict)

    @classmethod
    def read(cls, out: Path, run: Mapping[str, Any], problems: Iterable[Problem] = ()) -> _Facts:
        """The rows of all stages in `out`; raises DataError where there is none."""
        rows = {name: read_stage(out, name) for name in ROWS}
        if not rows["rollouts"]:
            raise DataError(f"{out} holds no sealed chunk of a collection; give the directory that `collect` wrote")
        known = {problem.id: problem for problem in (*read_rows(out / "problems.jsonl", Problem), *problems)}
        given = run.get("arguments", {})
        given = {"accept": "success"} | {name: given[name] for name in CollectSettings.model_fields if name in given}
        return cls(rows, CollectSettings.of(given, "arguments"), known)

    @cached_property
    def failures(self) -> dict[str, FailedAttempt]:
        """The failed attempts by id."""
        return {row.id: row for row in self.rows["failures"]}

    @cached_property
    def guided(self) -> dict[str, list[GuidedRollout]]:
        """The guided rollouts by candidate."""
        by_candidate: defaultdict[str, list[GuidedRollout]] = defaultdict(list)
        for row in self.rows["guided"]:
            by_candidate[row.candidate].append(row)
        return dict(by_candidate)

    @cached_property
    def outcomes(self) -> dict[str, tuple[int, int]]:
        """Of each candidate's guided rollouts, how many of those that were judged ended right, and how many were."""
        judged = {name: [r.verdict for r in rows if r.verdict is not None] for name, rows in self.guided.items()}
        return {name: (verdicts.count("CORRECT"), len(verdicts)) for name, verdicts in judged.items()}  # type: ignore[arg-type]

    @cached_property
    def fates(self) -> dict[str, str]:
        """What became of every candidate, by id."""
        examples = unique(self.rows["examples"])
        chosen, served = {row.id for row in examples}, {row.parents.get("failure") for row in examples}
        targets = {(row.parents.get("problem"), row.target) for row in examples}
        clean: set[tuple[str, int, str]] = set()
        fates = {}
        for row in self.rows["candidates"]:
            step = (row.failure, row.location, row.content)
            target = "\n\n".join((*self.failures[row.failure].steps[: row.location], row.content))
            dropped = _dropped(row)
            if row.id in chosen:
                fate = EXAMPLE
            elif row.id in self.guided and not self.outcomes[row.id][0]:
                fate = NO_SUCCESS
            elif row.id in self.guided and not accepted(row, self.guided[row.id], self.settings):
                fate = LUCK
            elif row.id in self.guided:
                again = self.settings.keep == "all" or (row.failure not in served and (row.problem, target) in targets)
                fate = TWIN if again else OUTDONE
            else:
                fate = dropped or (SAME_STEP if step in clean else UNGUIDED)
            if not dropped:
                clean.add(step)
            fates[row.id] = fate
        return fates

    def stages(self) -> list[_Stage]:
        """The funnel."""
        rows, guided = self.rows, self.guided
        failures, located, candidates = rows["failures"], rows["located"], rows["candidates"]
        became = Counter(self.fates.values())
        before = Counter(fate for name, fate in self.fates.items() if name not in guided)
        successes = sum(became[fate] for fate in (EXAMPLE, OUTDONE, TWIN))
        silent = sum(row.verdict == "NO_ANSWER" for row in failures)
        errors = sum(row.first_error is not None and not row.failed for row in located)
        counted = [row.verdict for row in rows["guided"] if row.phase != "fresh"]
        endings = f"{len(failures) - silent:,} end with a wrong answer, {silent:,} without an answer"
        lost = Counter(fate for row in located if (fate := _unlocated(row)))
        each = f"{len(candidates) / errors:.2g} for each error" if errors else ""
        tries = f"{len(counted):,} guided rollouts, {counted.count('CORRECT'):,} of them end right"
        return [
            _Stage("Rollouts", len(rows["rollouts"]), "failed attempts", len(failures), self._not_failed(), endings),
            _Stage("Failed attempts", len(located), "errors located", errors, dict(lost.most_common())),
            _Stage("Candidates", len(candidates), "candidates guided", len(guided), dict(before.most_common()), each),
            _Stage("Candidates guided", len(guided), "accepted", successes,
                  _some({NO_SUCCESS: became[NO_SUCCESS], LUCK: became[LUCK]}), tries),
            _Stage("Accepted", successes, "examples", became[EXAMPLE],
                  _some({OUTDONE: became[OUTDONE], TWIN: became[TWIN]})),
        ]  # fmt: skip

    def _not_failed(self) -> dict[str, int]:
        """Why rollouts are not among the failed attempts."""
        rollouts, failures = self.rows["rollouts"], self.rows["failures"]
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

    def success_bars(self) -> list[Bar]:
        """How many guided candidates have which share of rollouts that end right: none, then tenths up to all."""
        judged = [outcome for outcome in self.outcomes.values() if outcome[1]]
        counts = Counter(-(-10 * right // total) for right, total in judged)  # rounded up, in whole numbers
        names = ["none of the rollouts", *(f"over {10 * k - 10} % and up to {10 * k} %" for k in range(1, 11))]
        return [Bar(f"{10 * k}", counts[k], f"{name}: {counts[k]:,} of {len(judged):,} candidates")
                for k, name in enumerate(names)]  # fmt: skip

    def error_bars(self) -> list[Bar]:
        """How many attempts have their first error in which step (0-based)."""
        located = (row for row in self.rows["located"] if not row.failed)
        counts = Counter(row.first_error for row in located if row.first_error is not None)
        lengths = [len(row.steps) for row in self.failures.values()]
        steps = range(max(counts, default=-1) + 1)
        having = [sum(length > step for length in lengths) for step in steps]
        return [Bar(str(n), counts[n], f"step {n}: {counts[n]:,} of {having[n]:,} attempts that have this step")
                for n in steps]  # fmt: skip

    def cards(self) -> list[_Card]:
        """All candidates and the attempts without one, examples first, then by what became of them."""
        located: dict[str, Located] = {row.failure: row for row in self.rows["located"]}
        examples = self.rows["examples"]
        # Where the problems are not at hand, an example has its question.
        problems = {
            name: Problem(id=name, question=row.question, answer=row.answer)
            for row in examples
            if (name := row.parents.get("problem"))
        } | dict(self.problems)
        cards = []
        for row in self.rows["candidates"]:
            tries, failure = self.guided.get(row.id, []), self.failures[row.failure]
            leak = ": ".join(filter(None, (row.leak_reason, row.leak_text)))
            fault = row.failed or leak or row.form or row.unsound
            cards.append(_Card(
                row.id, problems.get(row.problem), row.problem, self.fates[row.id], failure.steps, failure.answer,
                located[row.failure].reason if row.failure in located else "", row.location, row.content, fault,
                self.outcomes.get(row.id),
                next((t for t in tries if t.verdict == "CORRECT"), tries[0] if tries else None),
            ))  # fmt: skip
        for place in self.rows["located"]:
            if (fate := _unlocated(place)) and place.failure in self.failures:
                failure = self.failures[place.failure]
                cards.append(_Card(
                    failure.id, problems.get(failure.problem), failure.problem, fate, failure.steps, failure.answer,
                    place.reason, fault=place.failed,
                ))  # fmt: skip
        fates = dict.fromkeys([EXAMPLE, NO_SUCCESS, OUTDONE, TWIN, *(card.fate for card in cards)])
        order = {fate: rank for rank, fate in enumerate(fates)}
        return sorted(cards, key=lambda card: order[card.fate])


def _dropped(row: Candidate) -> str:
    """Why a candidate was not to be guided; empty where it was."""
    if row.failed:
        return UNREAD
    if row.leak is None:
        return UNCHECKED
    if row.leak != "clean":
        return _LEAKS.get(str(row.leak), str(row.leak).replace("_", " "))
    return NO_STEP if row.form else UNSOUND if row.unsound else ""


def _unlocated(row: Located) -> str:
    """What became of an attempt in which no error was located; empty where one was."""
    return NOT_LOCATED if row.failed else FOUND_RIGHT if row.first_error is None else ""


def _some(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: n for name, n in counts.items() if n}


# ----- the page


def write_collection_report(
    path: str | Path, out: str | Path, *, problems: Iterable[Problem] = (), max_cards: int = MAX_CARDS
) -> Path:
    """Write the page of the collection in the directory `out` (what `collect` wrote) to `path`; returns the path.

    Questions come from `problems`, from out/problems.jsonl, or from the examples. At most `max_cards` candidates and
    attempts are shown, the first few of every fate. A collection that is not finished yet has a page too. The same
    directory gives the same bytes. Raises DataError where `out` holds no collection, or `max_cards` is negative.

    Example:
        sw.report.write_collection_report("runs/int/page.html", "runs/int")
    """
    if max_cards < 0:
        raise DataError(f"max_cards is {max_cards}; it must be 0 or more")
    out = Path(out)
    run = read_card(out)
    facts = _Facts.read(out, run, problems)
    stages, cards = facts.stages(), facts.cards()
    shown = first_of_each(cards, max_cards, lambda card: card.fate)
    names = {row.problem for row in facts.rows["rollouts"]}
    return write_page(
        path,
        "collection.html.jinja",
        title="Interventions collected from failed attempts",
        subtitle=f"{len(names):,} problems, {stages[0].rows:,} rollouts, {stages[-1].kept:,} examples",
        meta=_meta(run, facts),
        notes=_notes(run, facts, stages),
        lab=of_the_lab(run, "weak", "critic"),
        scripts=("common.js", "cards.js"),
        styles=("page.css", "cards.css"),
        stages=[(stage, _bar(stage, max(s.rows for s in stages))) for stage in stages],
        counts=funnel(out),
        figures=_figures(facts),
        cards=shown,
        total=len(cards),
    )


def _bar(stage: _Stage, whole: int) -> Markup:
    return stage_svg([("kept", stage.becomes, stage.kept), *(("left", *left) for left in stage.left.items())], whole)


def _figures(facts: _Facts) -> list[tuple[str, Markup]]:
    """Caption and drawing of what there is anything to draw of."""
    shares, errors = facts.success_bars(), facts.error_bars()
    figures = []
    if total := sum(bar.value for bar in shares):
        summary = f"Share of guided rollouts that end right, of {total:,} candidates; {shares[0].value:,} have none."
        drawing = bars_svg(shares, "guided rollouts that end right (%), up to", summary, "f2")
        figures.append(("Candidates by the share of their guided rollouts that end right", drawing))
    if errors:
        total, often = sum(bar.value for bar in errors), max(errors, key=lambda bar: bar.value).label
        summary = f"Step of the first error, of {total:,} attempts; most often step {often}."
        drawing = bars_svg(errors, "step of the first error, counted from 0", summary, "f3")
        figures.append(("Attempts by the step of their first error, as the critic found it", drawing))
    return figures


def _meta(run: Mapping[str, Any], facts: _Facts) -> dict[str, Any]:
    config, arguments, rows = run.get("config", {}), run.get("arguments", {}), facts.rows
    tokens = sum(spent(rows[name]).generated_tokens for name in ("rollouts", "located", "candidates", "guided"))
    models = {name: sorted({row.made.model for row in rows[name]}) for name in ("rollouts", "candidates", "located")}
    return {
        "configuration": run.get("config_hash", ""),
        "weak model": ", ".join(models["rollouts"]),
        "its adapter": config.get("models", {}).get("weak", {}).get("adapter"),
        "critic": ", ".join(models["candidates"] or models["located"]),
        "rollouts per problem": arguments.get("rollouts"),
        "candidates per error": config.get("critic", {}).get("candidates"),
        "guided rollouts, at most": arguments.get("guided"),
        "tokens generated": f"{tokens:,}",
        "status": "" if run.get("status") == "finished" else run.get("status", ""),
    }


def _notes(run: Mapping[str, Any], facts: _Facts, stages: Sequence[_Stage]) -> list[str]:
    notes, arguments, located = [], run.get("arguments", {}), facts.rows["located"]
    if blind := sum(not row.with_reference for row in located):
        notes.append(
            f"For {blind:,} of {len(located):,} attempts there was no reference solution: the critic was asked without "
            "one."
        )
    early = [name for name in ("enough", "drop_after", "miss") if arguments.get(name)]
    if early:
        notes.append(
            f"Guided rollouts of a candidate stop early ({', '.join(f'{name}: {arguments[name]}' for name in early)}), "
            "so a share of successes is of those that were run, and is too high on average where a success ends them."
        )
    if not stages[-1].kept:
        notes.append("No example came out; the funnel shows where the attempts were lost.")
    return notes
