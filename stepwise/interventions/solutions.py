r"""Datasets of whole solutions, and of their beginnings: what interventions are compared with.

What differs from the papers:
1. UPFT (arXiv 2503.02875) puts a template of its own before the beginnings; here the prompt is the one of all methods.
   The beginnings are sampled as such, so they cost k tokens each, and are cut where the text of k tokens ends.
2. Rejection sampling (RFT, arXiv 2308.01825) keeps right solutions with distinct equation lists; here the same text
   counts once.
3. A reference without a box gets a last step that has one, since answers are graded by their box.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from stepwise.data.examples import Example
from stepwise.grading import Verdict, grade
from stepwise.interventions import stages
from stepwise.interventions.rows import Rollout
from stepwise.interventions.work import Work, most
from stepwise.steps import SEPARATOR, boxed, extract_answer, normalize_text


def references(work: Work) -> list[Example]:
    """The reference solutions as they stand, one for each problem that has one."""
    rows = []
    for problem in work.problems.values():
        text = normalize_text(problem.reference or "")
        if not text:
            work.counts["problems without a reference solution"] += 1
            continue
        if not boxed(text):
            text = SEPARATOR.join((text, rf"So the answer is \boxed{{{problem.answer}}}."))
        if grade(extract_answer(text), problem.answer or "") is not Verdict.CORRECT:
            work.counts["references whose answer is not the gold answer"] += 1
            if work.settings.only_right:
                continue
        rows.append(work.example(f"{problem.id}/reference", problem.id, text, "reference", parents={}, models={},
                                 with_reference=True))  # fmt: skip
    return rows


def strong(work: Work) -> list[Example]:
    """Solutions by the strong model (distillation), right ones unless `only_right` is off."""
    found = work.sampled(work.writers.strong, work.settings.per_problem, "strong", "strong")
    return [
        work.example(row.id, row.problem, normalize_text(row.text), "strong", parents={"rollout": row.id},
                     models={"strong": row.made.model}, made=row.made)
        for row in _kept(work, found)
    ]  # fmt: skip


def rejection(work: Work) -> list[Example]:
    """The model's own right solutions (RFT), at most `per_problem` of a problem, the same text once."""
    right = list(_distinct(row for row in work.rollouts() if row.verdict is Verdict.CORRECT))
    work.counts["right rollouts, the same text once"] += len(right)
    work.counts["problems without a right rollout"] += len(work.problems.keys() - {row.problem for row in right})
    return [
        work.example(row.id, row.problem, normalize_text(row.text), "rejection", parents={"rollout": row.id},
                     models={"weak": row.made.model}, made=row.made)
        for row in most(right, work.settings.per_problem)
    ]  # fmt: skip


def first_tokens(work: Work) -> list[Example]:
    """The first tokens of one sample for each problem, whatever it ends in, and a share of whole ones (UPFT)."""
    settings, rows = work.settings, []
    whole = {name for name in work.problems if _share(work, name) < settings.full_share}
    for complete in (False, True):
        chosen = [p for p in work.problems.values() if (p.id in whole) is complete]
        length = settings.collect.max_tokens if complete else settings.first_tokens
        how = settings.collect.model_copy(update={"rollouts": 1, "max_tokens": length})
        made = stages.sample_rollouts(chosen, work.writers.weak, work.config, how) if chosen else []
        work.keep("rollouts", made)
        # What is cut at its longest has no end to be trained on, so it is a beginning too.
        rows += [
            work.example(f"{row.id}/first", row.problem, row.text, "first_tokens", parents={"rollout": row.id},
                         models={"weak": row.made.model}, made=row.made, complete=row.finish in ("answer", "eos"),
                         variant="whole" if complete else "")
            for row in made
            if row.text
        ]  # fmt: skip
        work.counts["whole solutions" if complete else "beginnings"] += len(made)
    return rows


def own_corpus(work: Work) -> list[Example]:
    """Solutions as lab-weak was pretrained on: training on more of them is the sham that must change nothing.

    The lab's alone: of no other model is the corpus known. Problems are drawn as the corpus draws them, other ones than
    pretraining saw; those of the source are not used.
    """
    import dataclasses
    from itertools import islice

    from stepwise.lab import corpus

    seed = 1000 + work.config.seed
    rng = random.Random(f"own corpus|{seed}")
    drawn = list(islice(corpus.problems(seed), work.settings.own_corpus))
    work = dataclasses.replace(work, problems={lab.problem.id: lab.problem for lab in drawn})
    return [
        work.example(f"{lab.problem.id}/own", lab.problem.id, SEPARATOR.join(lab.solution(rng, misled=True)),
                     "own_corpus", parents={}, models={"weak": "llamacpp/lab-weak"})
        for lab in drawn
    ]  # fmt: skip


def _share(work: Work, problem: str) -> float:
    return random.Random(f"{work.config.seed}|{problem}|whole").random()


def _kept(work: Work, found: list[Rollout]) -> list[Rollout]:
    work.counts["solutions"] += len(found)
    work.counts["right solutions"] += sum(row.verdict is Verdict.CORRECT for row in found)
    kept = [row for row in found if row.verdict is Verdict.CORRECT or (row.text and not work.settings.only_right)]
    return list(_distinct(kept))


def _distinct(rows: Iterator[Rollout] | list[Rollout]) -> Iterator[Rollout]:
    seen: set[tuple[str, str]] = set()
    for row in rows:
        if (row.problem, row.text) not in seen:
            seen.add((row.problem, row.text))
            yield row
