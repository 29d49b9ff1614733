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

from stepwise.data.examples import Example
from stepwise.grading import Verdict, grade_many
from stepwise.interventions import stages
from stepwise.interventions.critic import ask_all, model_name
from stepwise.interventions.rows import Candidate, Failure, GuidedRollout, by_id
from stepwise.interventions.soundness import false_equations
from stepwise.interventions.work import Work, continued, every, one_candidate
from stepwise.seeds import seed_for
from stepwise.steps import SEPARATOR, boxed, extract_answer, normalize_text, split_steps
from stepwise.types import Usage


def reflections(work: Work) -> list[Example]:
    """Rewrites of the weak model's failed attempts, at most `per_problem` of a problem."""
    how = work.settings.reflection
    if how == "auto":
        how = "repair" if work.config.critic_is_bare else "rewrite"
    failures = work.failures()
    work.counts["failed attempts"] += len(failures)
    return _rewritten(work, failures) if how == "rewrite" else _repaired(work, failures)


def _rewritten(work: Work, failures: Sequence[Failure]) -> list[Example]:
    items = [{"problem": work.problems[f.problem], "steps": list(f.steps)} for f in failures]
    seeds = [seed_for(work.config.seed, f.id, "rewrite") for f in failures]
    rewriter = work.writers.rewriter
    found = ask_all(rewriter, items, seeds, work.settings.collect, "rewriting")
    work.pay("critic", sum((made.usage for made in found), Usage()))
    texts = [normalize_text(made.solution or "") for made in found]
    verdicts = grade_many([(extract_answer(t), work.problems[f.problem].answer)
                           for t, f in zip(texts, failures, strict=True)])  # fmt: skip
    rows, model, sums = [], model_name(rewriter), work.settings.collect.check_sums
    for failure, seed, text, verdict in zip(failures, seeds, texts, verdicts, strict=True):
        work.counts["rewrites that failed"] += not text
        work.counts["rewrites that end right"] += verdict is Verdict.CORRECT
        unsound = sums and any(false_equations(step) for step in split_steps(text))
        work.counts["rewrites with a false equation"] += unsound
        if text and not unsound and (verdict is Verdict.CORRECT or not work.settings.only_right):
            rows.append(_example(work, failure, text, {"critic": model}, seed))
    return rows


@dataclasses.dataclass
class _Repair:
    """An attempt under repair: as it stands now, and the candidates that it has taken in."""

    failure: Failure
    now: Failure
    candidates: tuple[Candidate, ...] = ()
    ended: bool = False


def _repaired(work: Work, failures: Sequence[Failure]) -> list[Example]:
    """All attempts a round further at a time, until the critic finds no more error in them or the rounds are used up.

    An attempt that grades as right is not asked about again, unless the answers are not looked at (`only_right`).
    """
    repairs = [_Repair(f, dataclasses.replace(f, id=f"{f.id}/x0")) for f in failures]
    for number in range(work.settings.rounds):
        left = [r for r in repairs if not r.ended]
        if left:
            _round(work, left, number)
    rows = []
    for repair in repairs:
        changed = bool(repair.candidates) and repair.now.answer is not None
        right = repair.now.verdict is Verdict.CORRECT
        work.counts["attempts that took a repair"] += bool(repair.candidates)
        work.counts["rewrites that end right"] += right
        if changed and (right or not work.settings.only_right):
            last = repair.candidates[-1]
            models = {"critic": last.made.model, "weak": work.writers.weak.name}
            rows.append(_example(work, repair.failure, SEPARATOR.join(repair.now.steps), models, last.made.seed,
                                 candidate=last.id))  # fmt: skip
    return rows


def _round(work: Work, repairs: Sequence[_Repair], number: int) -> None:
    one, how = one_candidate(work.config), work.settings.collect
    attempts = by_id(repair.now for repair in repairs)
    located = stages.locate_errors(list(attempts.values()), work.problems, work.writers.localizer, work.config, how)
    made = stages.propose_candidates(located, attempts, work.problems, work.writers.proposer, one, how)
    made = stages.check_sums(made) if how.check_sums else made
    work.counts["repairs with a false equation"] += sum(bool(row.unsound) for row in made)
    usable = {row.failure: row for row in made if not row.failed and not row.unsound}
    going_on = [row for row in usable.values() if not boxed(row.content)]
    single = every(how, 1)
    guided = stages.guide(going_on, attempts, work.problems, work.writers.weak, work.config, single)
    work.keep("located", located)
    work.keep("candidates", made)
    work.keep("guided", guided)
    behind = {row.candidate: row for row in guided}
    verdicts = dict(zip(usable, grade_many([
        (_answer(row, behind.get(row.id)), work.problems[row.problem].answer) for row in usable.values()
    ]), strict=True))  # fmt: skip
    for repair in repairs:
        row = usable.get(repair.now.id)
        if row is None:  # no error found any more, or no step that can be used
            repair.ended = True
            continue
        rollout = behind.get(row.id)
        verdict, name = verdicts[repair.now.id], f"{repair.failure.id}/x{number + 1}"
        repair.now = Failure(name, row.problem, continued(row, repair.now, rollout), _answer(row, rollout), verdict)
        repair.candidates += (row,)
        repair.ended = work.settings.only_right and verdict is Verdict.CORRECT
    work.keep("failures", [repair.now for repair in repairs if repair.candidates])


def _answer(row: Candidate, rollout: GuidedRollout | None) -> str | None:
    return extract_answer(row.content) if rollout is None else rollout.answer


def _example(work: Work, failure: Failure, text: str, models: dict[str, str], seed: int, **parents: str) -> Example:
    row = work.example(f"{failure.id}/x", failure.problem, text, "reflection", models=models,
                       parents={"failure": failure.id, **parents},
                       with_reference=bool((work.problems[failure.problem].reference or "").strip()))  # fmt: skip
    return dataclasses.replace(row, seed=seed)
