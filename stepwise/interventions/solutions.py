r"""Datasets of whole solutions, and of their beginnings: what interventions are compared with.

What differs from the papers:
1. UPFT (arXiv 2503.02875) puts a template of its own before the beginnings; here the prompt is the one of all methods.
   The beginnings are sampled as such, so they cost k tokens each, and are cut where the text of k tokens ends.
2. Rejection sampling (RFT, arXiv 2308.01825) keeps right solutions with distinct equation lists; here the same text
   counts once.
3. A reference without a box gets a last step that has one, since answers are graded by their box.
4. Self-reflections (InT, arXiv 2601.14209, the baselines of its experiments): whole rewrites of failed attempts, the
   reference in view. One that does not end right is left out, and one with a false equation is
   left out as such an intervention is (`check_sums`).
5. A critic that knows no task but its own cannot write a whole solution. With it an attempt is repaired step by step:
   locate the first error, put a step in its place, let the weak model go on, and locate again.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from stepwise import critics
from stepwise.data.examples import Example, Origin
from stepwise.grading import Verdict, grade, grade_many
from stepwise.interventions.building import Builder
from stepwise.interventions.checks.candidates import check_sums
from stepwise.interventions.checks.sums import false_equations
from stepwise.interventions.pipeline import guide, has_reference, locate_errors, propose_candidates, sample_rollouts
from stepwise.interventions.rows import FailedAttempt, Rollout, by_id, first_of_each
from stepwise.interventions.settings import one_candidate
from stepwise.lab.problems import endless
from stepwise.seeds import rng as seeded
from stepwise.seeds import seed_for
from stepwise.steps import SEPARATOR, Splitter, boxed, extract_answer, join_steps, normalize_text, split_steps


def _references(builder: Builder) -> list[Example]:
    """The reference solutions as they stand, one for each problem that has one."""
    rows = []
    for problem in builder.problems.values():
        text = normalize_text(problem.reference or "")
        if not text:
            builder.counts["problems without a reference solution"] += 1
            continue
        if not boxed(text):
            text = SEPARATOR.join((text, rf"So the answer is \boxed{{{problem.answer}}}."))
        right = grade(extract_answer(text), problem.answer or "") is Verdict.CORRECT
        if not right:
            builder.counts["references whose answer is not the gold answer"] += 1
        if right:
            rows.append(builder.example(f"{problem.id}/reference", problem.id, text, "reference", with_reference=True))
    return rows


def _strong(builder: Builder) -> list[Example]:
    """The right solutions by the strong model (distillation)."""
    rollouts = builder.sampled(builder.writers.strong, builder.options.per_problem, "strong")
    right = [row for row in rollouts if row.verdict is Verdict.CORRECT]
    builder.counts["solutions"] += len(rollouts)
    builder.counts["right solutions"] += len(right)
    return _whole(builder, first_of_each(right, lambda row: (row.problem, row.text)), "strong", "strong")


def _rejection(builder: Builder) -> list[Example]:
    """The model's own right solutions (RFT), at most `per_problem` of a problem, the same text once."""
    correct = (row for row in builder.rollouts() if row.verdict is Verdict.CORRECT)
    right = first_of_each(correct, lambda row: (row.problem, row.text))
    builder.counts["right rollouts, the same text once"] += len(right)
    builder.counts["problems without a right rollout"] += len(builder.problems.keys() - {row.problem for row in right})
    kept = first_of_each(right, lambda row: row.problem, builder.options.per_problem)
    return _whole(builder, kept, "rejection", "weak")


def _first_tokens(builder: Builder) -> list[Example]:
    """The first tokens of one sample for each problem, whatever it ends in, and a share of whole ones (UPFT)."""
    options, rows = builder.options, []
    drawn = {name: random.Random(f"{builder.config.seed}|{name}|whole").random() for name in builder.problems}
    for whole in (False, True):
        names = [name for name, draw in drawn.items() if (draw < options.full_share) is whole]
        length = builder.settings.max_tokens if whole else options.first_tokens
        part = dataclasses.replace(
            builder.but(rollouts=1, max_tokens=length), problems={name: builder.problems[name] for name in names}
        )
        rollouts = sample_rollouts(part, builder.writers.weak) if names else []
        builder.written["rollouts"] += rollouts
        # What is cut at its longest has no end to be trained on, so it is a beginning too.
        rows += [
            builder.example(f"{row.id}/first", row.problem, row.text, "first_tokens", parents={"rollout": row.id},
                            models={"weak": row.made.model}, seed=row.made.seed,
                            complete=row.finish in ("answer", "eos"), variant="whole" if whole else "")
            for row in rollouts if row.text
        ]  # fmt: skip
        builder.counts["whole solutions" if whole else "beginnings"] += len(rollouts)
    return rows


def _own_corpus(builder: Builder) -> list[Example]:
    """Solutions as lab-weak was pretrained on: training on more of them is the sham that must change nothing.

    The lab's alone: of no other model is the corpus known. Problems are drawn as the corpus draws them, other ones than
    pretraining saw; those of the source are not used.
    """
    seed = 1000 + builder.config.seed
    rng = seeded("own corpus", seed)
    drawn = {lab.problem.id: lab for lab in islice(endless(seed), builder.options.own_corpus)}
    builder = dataclasses.replace(builder, problems={name: lab.problem for name, lab in drawn.items()})
    return [
        builder.example(f"{name}/own", name, SEPARATOR.join(lab.solution(rng, misled=True)), "own_corpus",
                        models={"weak": "llamacpp/lab-weak"})
        for name, lab in drawn.items()
    ]  # fmt: skip


def _reflections(builder: Builder) -> list[Example]:
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
    replies = critics.ask_all(rewriter, items, seeds, label="rewriting", concurrency=settings.concurrency,
                              around=builder.writers.around)  # fmt: skip
    texts = [normalize_text(reply.get("solution") or "") for reply in replies]
    verdicts = _graded(builder, failures, [extract_answer(text) for text in texts])
    rows, model = [], critics.model_name(rewriter)
    for failure, seed, text, verdict in zip(failures, seeds, texts, verdicts, strict=True):
        unsound = settings.check_sums and any(false_equations(step) for step in split_steps(text))
        builder.counts["rewrites that failed"] += not text
        builder.counts["rewrites that end right"] += verdict is Verdict.CORRECT
        builder.counts["rewrites with a false equation"] += unsound
        if verdict is Verdict.CORRECT and not unsound:
            rows.append(_reflection(builder, failure, text, {"critic": model}, seed))
    return rows


def _repaired(builder: Builder, failures: Sequence[FailedAttempt]) -> list[Example]:
    """All attempts a round further at a time, until the critic finds no more error in them or the rounds are used up.

    An attempt that grades as right is not asked about again.
    """
    model = builder.writers.weak.name
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
        pending = [name for name in pending if now[name].verdict is not Verdict.CORRECT]
    rows = []
    for failure in failures:
        attempt, right = now[failure.id], now[failure.id].verdict is Verdict.CORRECT
        builder.counts["attempts that took a repair"] += failure.id in last
        builder.counts["rewrites that end right"] += right
        if failure.id in last and right:
            candidate, critic, seed = last[failure.id]
            text, models = join_steps(attempt.steps, builder.splitter), {"critic": critic, "weak": model}
            rows.append(_reflection(builder, failure, text, models, seed, candidate=candidate))
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
    usable = [row for row in candidates if not row.failed and not row.unsound and not row.form]
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
            _standing((*before.steps[: row.location], row.content, *rest), builder.splitter), answer, verdict,
            splitter=builder.splitter,
        )  # fmt: skip
        repaired[before.id] = ((row.id, row.made.model, row.made.seed), after)
    builder.counts["repairs with a false equation"] += sum(bool(row.unsound) for row in candidates)
    for stage, rows in (("located", located), ("candidates", candidates), ("guided", guided)):
        builder.written[stage] += rows
    changed = [row for row in standing if row.id in repaired or not row.id.endswith("/x0")]
    builder.written["failures"] += [repaired[row.id][1] if row.id in repaired else row for row in changed]
    return repaired


def _standing(steps: tuple[str, ...], splitter: Splitter) -> tuple[str, ...]:
    """Steps of several writers as a reader of their text finds them."""
    return steps if splitter == "paragraphs" else tuple(split_steps(join_steps(steps, splitter), splitter))


def _graded(builder: Builder, rows: Sequence[Any], answers: Sequence[str | None]) -> list[Verdict]:
    return grade_many([(a, builder.problems[row.problem].answer) for a, row in zip(answers, rows, strict=True)])


def _reflection(
    builder: Builder, failure: FailedAttempt, text: str, models: dict[str, str], seed: int, **parents: str
) -> Example:
    return builder.example(
        f"{failure.id}/x", failure.problem, text, "reflection", models=models, seed=seed,
        parents={"failure": failure.id, **parents}, with_reference=has_reference(builder.problems[failure.problem]),
    )  # fmt: skip


def _whole(builder: Builder, rollouts: Iterable[Rollout], origin: Origin, role: str) -> list[Example]:
    written = normalize_text if builder.splitter == "paragraphs" else str.strip
    return [
        builder.example(row.id, row.problem, written(row.text), origin, parents={"rollout": row.id},
                        models={role: row.made.model}, seed=row.made.seed)
        for row in rollouts
    ]  # fmt: skip


KINDS: dict[str, Callable[[Builder], list[Example]]] = {
    "reference": _references,
    "reflection": _reflections,
    "strong": _strong,
    "rejection": _rejection,
    "first_tokens": _first_tokens,
    "own_corpus": _own_corpus,
}
"""The kinds of dataset that take a collection where they can."""
