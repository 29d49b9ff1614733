"""What scorers and modules say of attempts, asked once: rows are on disk as they come, and a second start goes on."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stepwise.config import Config
from stepwise.data.localization import Localizer, Outcome
from stepwise.data.processbench import ProcessBenchRow
from stepwise.models.scorers import Scorer, score_items
from stepwise.runs.plan import Planned, plan_localizing
from stepwise.runs.progress import progress
from stepwise.runs.shell import Run
from stepwise.types import Usage

BATCH = 16  # attempts that are scored together


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ScoredRow:
    """Scores of one attempt, one per step, or why there are none."""

    key: str
    scores: tuple[float, ...]
    error: str
    usage: Usage


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class OutcomeRow:
    """What a localizer said of one attempt."""

    key: str
    outcome: Outcome


def key_of(example: ProcessBenchRow) -> str:
    """The same for rows that are the same to whoever reads them: question, reference and steps."""
    problem = example.problem
    texts = (problem.question, repr(problem.reference), *(step.text for step in example.trace.steps))
    return hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()[:32]


def with_scores(
    run: Run, scorer: Scorer, sets: Mapping[str, Sequence[ProcessBenchRow]]
) -> dict[str, list[ProcessBenchRow]]:
    """The examples with `scorer`'s scores in their steps, or the error in the note of their trace.

    Scores are kept in scores.jsonl: attempts that an earlier start scored are not scored again, unless that failed.
    """
    known = {row.key: row for row in run.rows("scores.jsonl", ScoredRow) if not row.error}
    todo = list({key_of(e): e for rows in sets.values() for e in rows if key_of(e) not in known}.items())
    if todo:
        with progress(f"scoring with {scorer.name}", len(todo)) as advance:
            for start in range(0, len(todo), BATCH):
                keys, examples = zip(*todo[start : start + BATCH], strict=True)
                items = [(e.problem, [step.text for step in e.trace.steps]) for e in examples]
                made = [
                    ScoredRow(key, tuple(scored.scores), scored.error, scored.usage)
                    for key, scored in zip(keys, score_items(scorer, items), strict=True)
                ]
                run.write("scores.jsonl", *made)
                known.update((row.key, row) for row in made)
                advance(len(made))
    return {name: [_scored(example, known[key_of(example)]) for example in rows] for name, rows in sets.items()}


def _scored(example: ProcessBenchRow, row: ScoredRow) -> ProcessBenchRow:
    steps = example.trace.steps
    if not row.error:
        steps = tuple(dataclasses.replace(step, score=s) for step, s in zip(steps, row.scores, strict=True))
    return example._replace(
        trace=dataclasses.replace(example.trace, steps=steps, scorer_usage=row.usage, note=row.error)
    )


def by_module(run: Run, module: Any, sets: Mapping[str, Sequence[ProcessBenchRow]], threads: int) -> Localizer:
    """What `module(problem=, steps=)` says of each example, `threads` at a time; kept in outcomes.jsonl as they finish.

    Attempts of which an earlier start knows the outcome are not asked for again, unless it was a failure. DSPy's cache
    is not asked, so that usage is what the work costs.
    """
    from stepwise.critics.module import run_all

    for predictor in getattr(module, "predictors", list)():
        predictor.lm = predictor.lm and predictor.lm.copy(cache=False)
    known = {row.key: row.outcome for row in run.rows("outcomes.jsonl", OutcomeRow) if not row.outcome.error}
    todo = {key_of(e): e for rows in sets.values() for e in rows if key_of(e) not in known}
    keys, lock = list(todo), Lock()

    def keep(index: int, made: Any) -> None:
        error = " ".join((made.failure or "").split())
        outcome = Outcome(None if error else made.first_error, error, len(made.repairs), made.usage)
        with lock:
            known[keys[index]] = outcome
            run.write("outcomes.jsonl", OutcomeRow(keys[index], outcome))

    if todo:
        items = [{"problem": e.problem, "steps": [step.text for step in e.trace.steps]} for e in todo.values()]
        run_all(module, items, concurrency=threads, progress="localizing", on_result=keep)
    return lambda example: known[key_of(example)]


def planned(config: Config, name: str, examples: Sequence[ProcessBenchRow]) -> list[Planned]:
    """The most that localizer `name` could ask about `examples`."""
    if name not in ("scorer", "module"):
        return []
    texts = [(e.problem.question, e.problem.reference or "", *(step.text for step in e.trace.steps)) for e in examples]
    attempts = [(len("".join(row).encode("utf-8", "replace")), len(row) - 2) for row in texts]
    if name == "scorer":
        config = config.model_copy(update={"critic": config.critic.model_copy(update={"method": "scorer"})})
    return plan_localizing(config, attempts)
