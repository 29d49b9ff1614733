"""Interventions in other forms: what to clone, and where. Each changes one thing about the collection's dataset.

InT's ablation (arXiv 2601.14209, the table on what to clone in SFT): `unfiltered` has no success filter, `suffix` adds
the continuation that ended right; leaving out the prefix is a loss weight ([sft] prefix_weight), not another dataset.
The rest are ours: they ask whether it matters where the step stands, and who found the place.
"""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Callable

from stepwise.data.examples import Example
from stepwise.grading import Verdict
from stepwise.interventions import stages
from stepwise.interventions.rows import Candidate, Failure, GuidedRollout, Located, by_id
from stepwise.interventions.work import Work, checked, lab_truth


def interventions(work: Work) -> list[Example]:
    """The collection's examples as they are."""
    return work.stage("examples")


def unfiltered(work: Work) -> list[Example]:
    """Without the success filter: of each attempt the first candidate that passes the checks that need no rollout."""
    attempts, guided = by_id(work.stage("failures")), _guided(work)
    first: dict[str, Candidate] = {}
    for row in stages.survivors(work.stage("candidates")):
        first.setdefault(row.failure, row)
    rows = [
        work.of_candidate(row, attempts[name].steps[: row.location], guided[row.id], row.id, variant="unfiltered")
        for name, row in first.items()
    ]
    work.counts["without a success"] += sum(not row.successes for row in rows)
    return rows


def suffix(work: Work) -> list[Example]:
    """With the first guided continuation that ended right as `suffix`, so that whole solutions are trained on."""
    guided, rows = _guided(work), []
    for example in work.stage("examples"):
        right = [row for row in guided[example.parents["candidate"]] if row.verdict is Verdict.CORRECT]
        if not right:
            work.counts["without a continuation that ended right"] += 1
            continue
        found = min(right, key=lambda row: row.sample)
        parents = {**example.parents, "guided": found.id}
        rows.append(dataclasses.replace(example, id=found.id, suffix=found.text, complete=True, variant="suffix",
                                        parents=parents))  # fmt: skip
    return rows


def moved(work: Work) -> list[Example]:
    """The same text, in place of a random other step of the attempt."""
    attempts, rows = by_id(work.stage("failures")), []
    for example in work.stage("examples"):
        steps = attempts[example.parents["failure"]].steps
        places = [place for place in range(len(steps)) if place != len(example.prefix)]
        if not places:
            work.counts["attempts of one step"] += 1
            continue
        place = random.Random(f"{work.config.seed}|{example.id}|moved").choice(places)
        rows.append(dataclasses.replace(example, id=f"{example.id}/moved", prefix=steps[:place], variant="moved",
                                        successes=0, guided=0))  # fmt: skip
    return rows


def random_place(work: Work) -> list[Example]:
    """Proposed for a random other step than the one that the critic found."""

    def place(failure: Failure, found: int) -> int | None:
        places = [place for place in range(len(failure.steps)) if place != found]
        return random.Random(f"{work.config.seed}|{failure.id}|place").choice(places) if places else None

    return _proposed_at(work, "random", place)


def earlier(work: Work) -> list[Example]:
    """Proposed for the step before the one that the critic found."""
    return _proposed_at(work, "earlier", lambda failure, found: found - 1 if found else None)


def later(work: Work) -> list[Example]:
    """Proposed for the step after the one that the critic found."""
    return _proposed_at(work, "later", lambda failure, found: found + 1 if found + 1 < len(failure.steps) else None)


def oracle(work: Work) -> list[Example]:
    """Proposed for the first error in truth, which `truth` knows; without it, the lab's problems know it."""
    truth = work.truth or lab_truth
    return _proposed_at(work, "oracle", lambda failure, _: truth(work.problems[failure.problem], failure.steps))


def _proposed_at(work: Work, name: str, place: Callable[[Failure, int], int | None]) -> list[Example]:
    """The stages from proposing on, for the attempts in which the critic found an error, at other places.

    With `only_right` off the success filter and its rollouts are left out.
    """
    config, how = work.config, work.settings.collect
    attempts = by_id(work.stage("failures"))
    located = []
    for row in work.stage("located"):
        if row.first_error is None or row.failed:
            continue
        failure = attempts[row.failure]
        at = place(failure, row.first_error)
        if at is None:
            work.counts["attempts without such a place"] += 1
            continue
        work.counts["at the same place as the critic's"] += at == row.first_error
        located.append(_renamed(row, failure, name, at))
    known = {row.failure: dataclasses.replace(attempts[row.failure.rpartition("/")[0]], id=row.failure)
             for row in located}  # fmt: skip
    proposed = stages.propose_candidates(located, known, work.problems, work.writers.proposer, config, how)
    made = checked(proposed, known, work.problems, how)
    kept = stages.survivors(made)
    guided = (
        stages.guide(kept, known, work.problems, work.writers.weak, config, how) if work.settings.only_right else []
    )
    for stage, rows in (("located", located), ("candidates", made), ("guided", guided)):
        work.keep(stage, rows)
    if work.settings.only_right:
        found = stages.select(kept, guided, work.problems, known, config, how)
        return [_origin(row, name) for row in found]
    first = {row.failure: row for row in reversed(kept)}
    return [
        _origin(work.of_candidate(row, known[row.failure].steps[: row.location], (), row.id), name)
        for row in kept
        if first[row.failure] is row
    ]


def _renamed(row: Located, failure: Failure, name: str, at: int) -> Located:
    """As if the error had been found there; other ids, so that nothing is mistaken for the collection's."""
    own = f"{failure.id}/{name}"
    return dataclasses.replace(row, id=f"{own}/l", failure=own, first_error=at, critical_error=None, reason="")


def _origin(row: Example, name: str) -> Example:
    attempt = row.parents["failure"].rpartition("/")[0]
    return dataclasses.replace(row, variant=name, parents={**row.parents, "failure": attempt})


def _guided(work: Work) -> defaultdict[str, list[GuidedRollout]]:
    found: defaultdict[str, list[GuidedRollout]] = defaultdict(list)
    for row in work.stage("guided"):
        found[row.candidate].append(row)
    return found
