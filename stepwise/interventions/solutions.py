r"""Datasets of whole solutions, and of their beginnings: what interventions are compared with.

What differs from the papers:
1. UPFT (arXiv 2503.02875) puts a template of its own before the beginnings; here the prompt is the one of all methods.
   The beginnings are sampled as such, so they cost k tokens each, and are cut where the text of k tokens ends.
2. Rejection sampling (RFT, arXiv 2308.01825) keeps right solutions with distinct equation lists; here the same text
   counts once.
3. A reference without a box gets a last step that has one, since answers are graded by their box.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable
from itertools import islice

from stepwise.data.examples import Example, Origin
from stepwise.grading import Verdict, grade
from stepwise.interventions.building import Builder, first_of_each
from stepwise.interventions.pipeline import sample_rollouts
from stepwise.interventions.rows import Rollout
from stepwise.lab import corpus
from stepwise.steps import SEPARATOR, boxed, extract_answer, normalize_text


def references(builder: Builder) -> list[Example]:
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
        if right or not builder.options.only_right:
            rows.append(builder.example(f"{problem.id}/reference", problem.id, text, "reference", with_reference=True))
    return rows


def strong(builder: Builder) -> list[Example]:
    """Solutions by the strong model (distillation), right ones unless `only_right` is off."""
    rollouts = builder.sampled(builder.writers.strong, builder.options.per_problem, "strong", "strong")
    right = [row for row in rollouts if row.verdict is Verdict.CORRECT]
    builder.counts["solutions"] += len(rollouts)
    builder.counts["right solutions"] += len(right)
    kept = right if builder.options.only_right else [row for row in rollouts if row.text]
    return _whole(builder, _distinct(kept), "strong", "strong")


def rejection(builder: Builder) -> list[Example]:
    """The model's own right solutions (RFT), at most `per_problem` of a problem, the same text once."""
    right = _distinct(row for row in builder.rollouts() if row.verdict is Verdict.CORRECT)
    builder.counts["right rollouts, the same text once"] += len(right)
    builder.counts["problems without a right rollout"] += len(builder.problems.keys() - {row.problem for row in right})
    return _whole(builder, first_of_each(right, builder.options.per_problem), "rejection", "weak")


def first_tokens(builder: Builder) -> list[Example]:
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
        builder.keep("rollouts", rollouts)
        # What is cut at its longest has no end to be trained on, so it is a beginning too.
        rows += [
            builder.example(f"{row.id}/first", row.problem, row.text, "first_tokens", parents={"rollout": row.id},
                            models={"weak": row.made.model}, seed=row.made.seed,
                            complete=row.finish in ("answer", "eos"), variant="whole" if whole else "")
            for row in rollouts if row.text
        ]  # fmt: skip
        builder.counts["whole solutions" if whole else "beginnings"] += len(rollouts)
    return rows


def own_corpus(builder: Builder) -> list[Example]:
    """Solutions as lab-weak was pretrained on: training on more of them is the sham that must change nothing.

    The lab's alone: of no other model is the corpus known. Problems are drawn as the corpus draws them, other ones than
    pretraining saw; those of the source are not used.
    """
    seed = 1000 + builder.config.seed
    rng = random.Random(f"own corpus|{seed}")
    drawn = {lab.problem.id: lab for lab in islice(corpus.problems(seed), builder.options.own_corpus)}
    builder = dataclasses.replace(builder, problems={name: lab.problem for name, lab in drawn.items()})
    return [
        builder.example(f"{name}/own", name, SEPARATOR.join(lab.solution(rng, misled=True)), "own_corpus",
                        models={"weak": "llamacpp/lab-weak"})
        for name, lab in drawn.items()
    ]  # fmt: skip


def _whole(builder: Builder, rollouts: Iterable[Rollout], origin: Origin, role: str) -> list[Example]:
    return [
        builder.example(row.id, row.problem, normalize_text(row.text), origin, parents={"rollout": row.id},
                        models={role: row.made.model}, seed=row.made.seed)
        for row in rollouts
    ]  # fmt: skip


def _distinct(rows: Iterable[Rollout]) -> list[Rollout]:
    kept: dict[tuple[str, str], Rollout] = {}
    for row in rows:
        kept.setdefault((row.problem, row.text), row)
    return list(kept.values())
