"""Whole rewrites of failed attempts, the reference in view: the self-reflections InT is compared with.

What differs from InT (arXiv 2601.14209, the baselines of its experiments):
1. A rewrite that does not end right is left out unless `only_right` is off; one with a false equation is left out as
   such an intervention is (`check_sums`).
2. A critic that knows no task but its own cannot write a whole solution. With it an attempt is repaired step by step:
   locate the first error, put a step in its place, let the weak model go on, and locate again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from stepwise import critics
from stepwise.data.examples import Example
from stepwise.grading import Verdict, grade_many
from stepwise.interventions.building import Builder
from stepwise.interventions.checks.sums import false_equations
from stepwise.interventions.pipeline import check_sums, guide, has_reference, locate_errors, propose_candidates
from stepwise.interventions.rows import FailedAttempt, by_id, spent
from stepwise.interventions.writers import one_candidate
from stepwise.seeds import seed_for
from stepwise.steps import SEPARATOR, boxed, extract_answer, normalize_text, split_steps


def reflections(builder: Builder) -> list[Example]:
    """Rewrites of the weak model's failed attempts, at most `per_problem` of a problem."""
    form = builder.options.reflection
    if form == "auto":
        form = "repair" if builder.config.critic_is_bare else "rewrite"
    failures = builder.failures()
    builder.counts["failed attempts"] += len(failures)
    return _rewritten(builder, failures) if form == "rewrite" else _repaired(builder, failures)


def _rewritten(builder: Builder, failures: Sequence[FailedAttempt]) -> list[Example]:
    """Each attempt written anew in one call."""
    items = [{"problem": builder.problems[row.problem], "steps": list(row.steps)} for row in failures]
    seeds = [seed_for(builder.config.seed, row.id, "rewrite") for row in failures]
    rewriter, settings = builder.writers.rewriter, builder.settings
    replies = critics.ask_all(rewriter, items, seeds, label="rewriting", concurrency=settings.concurrency)
    builder.pay("critic", spent(replies))
    texts = [normalize_text(reply.get("solution") or "") for reply in replies]
    verdicts = _graded(builder, failures, [extract_answer(text) for text in texts])
    rows, model = [], critics.model_name(rewriter)
    for failure, seed, text, verdict in zip(failures, seeds, texts, verdicts, strict=True):
        unsound = settings.check_sums and any(false_equations(step) for step in split_steps(text))
        builder.counts["rewrites that failed"] += not text
        builder.counts["rewrites that end right"] += verdict is Verdict.CORRECT
        builder.counts["rewrites with a false equation"] += unsound
        if text and not unsound and (verdict is Verdict.CORRECT or not builder.options.only_right):
            rows.append(_example(builder, failure, text, {"critic": model}, seed))
    return rows


def _repaired(builder: Builder, failures: Sequence[FailedAttempt]) -> list[Example]:
    """All attempts a round further at a time, until the critic finds no more error in them or the rounds are used up.

    An attempt that grades as right is not asked about again, unless the answers are not looked at (`only_right`).
    """
    only_right, model = builder.options.only_right, builder.writers.weak.name
    now = {row.id: dataclasses.replace(row, id=f"{row.id}/x0") for row in failures}  # each attempt as it stands
    last: dict[str, tuple[str, str, int]] = {}  # the candidate that it took in last: its id, its model and its seed
    pending = list(now)
    for number in range(1, builder.options.rounds + 1):
        repaired = _round(builder, [now[name] for name in pending], number) if pending else {}
        for name in pending:
            if now[name].id in repaired:
                last[name], now[name] = repaired[now[name].id]
        # Those without an error found, or without a step that can be used, have ended.
        pending = [name for name in pending if now[name].id == f"{name}/x{number}"]
        pending = [name for name in pending if not (only_right and now[name].verdict is Verdict.CORRECT)]
    rows = []
    for failure in failures:
        attempt, right = now[failure.id], now[failure.id].verdict is Verdict.CORRECT
        builder.counts["attempts that took a repair"] += failure.id in last
        builder.counts["rewrites that end right"] += right
        if failure.id in last and attempt.answer is not None and (right or not only_right):
            candidate, critic, seed = last[failure.id]
            text, models = SEPARATOR.join(attempt.steps), {"critic": critic, "weak": model}
            rows.append(_example(builder, failure, text, models, seed, candidate=candidate))
    return rows


def _round(
    builder: Builder, standing: Sequence[FailedAttempt], number: int
) -> dict[str, tuple[tuple[str, str, int], FailedAttempt]]:
    """The attempts that took a repair, by id: the candidate that they took in, and how they stand after it."""
    attempts = by_id(standing)
    one = dataclasses.replace(builder, config=one_candidate(builder.config))
    located = locate_errors(standing, builder)
    candidates = propose_candidates(located, attempts, one)
    candidates = check_sums(candidates) if builder.settings.check_sums else candidates
    usable = [row for row in candidates if not row.failed and not row.unsound]
    single = dataclasses.replace(builder, settings=builder.settings.exactly(1))
    guided = guide([row for row in usable if not boxed(row.content)], attempts, single)
    behind = {row.candidate: row for row in guided}
    answers = [behind[row.id].answer if row.id in behind else extract_answer(row.content) for row in usable]
    verdicts = _graded(builder, usable, answers)
    repaired = {}
    for row, answer, verdict in zip(usable, answers, verdicts, strict=True):
        before = attempts[row.failure]
        rest = behind[row.id].steps if row.id in behind else ()
        after = FailedAttempt(
            f"{before.id.rpartition('/')[0]}/x{number}", row.problem,
            (*before.steps[: row.location], row.content, *rest), answer, verdict,
        )  # fmt: skip
        repaired[before.id] = ((row.id, row.made.model, row.made.seed), after)
    builder.counts["repairs with a false equation"] += sum(bool(row.unsound) for row in candidates)
    for stage, rows in (("located", located), ("candidates", candidates), ("guided", guided)):
        builder.keep(stage, rows)
    changed = [row for row in standing if row.id in repaired or not row.id.endswith("/x0")]
    builder.keep("failures", [repaired[row.id][1] if row.id in repaired else row for row in changed])
    return repaired


def _graded(builder: Builder, rows: Sequence[Any], answers: Sequence[str | None]) -> list[Verdict]:
    return grade_many([(a, builder.problems[row.problem].answer) for a, row in zip(answers, rows, strict=True)])


def _example(
    builder: Builder, failure: FailedAttempt, text: str, models: dict[str, str], seed: int, **parents: str
) -> Example:
    return builder.example(
        f"{failure.id}/x", failure.problem, text, "reflection", models=models, seed=seed,
        parents={"failure": failure.id, **parents}, with_reference=has_reference(builder.problems[failure.problem]),
    )  # fmt: skip
