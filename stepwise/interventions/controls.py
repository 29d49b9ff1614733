"""Interventions in other forms: what to clone, and where. Each changes one thing about the collection's dataset.

InT's ablation (arXiv 2601.14209, the table on what to clone in SFT): `unfiltered` has no success filter, `suffix` adds
the continuation that ended right; leaving out the prefix is a loss weight ([sft] prefix_weight), not another dataset.
The rest are ours: they ask whether it matters where the step stands, and who found the place.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence

from stepwise.data.examples import Example
from stepwise.grading import Verdict
from stepwise.interventions.building import Builder, lab_truth
from stepwise.interventions.pipeline import check_candidates, guide, propose_candidates, select, survivors
from stepwise.interventions.rows import Candidate, FailedAttempt, GuidedRollout, Located, by_id
from stepwise.seeds import rng as seeded


def interventions(builder: Builder) -> list[Example]:
    """The collection's examples as they are."""
    return builder.stage("examples")


def unfiltered(builder: Builder) -> list[Example]:
    """Without the success filter: of each attempt the first candidate that passes the checks that need no rollout."""
    attempts, guided = by_id(builder.stage("failures")), _guided(builder)
    rows = [
        _of_candidate(builder, row, attempts[row.failure], guided[row.id], "unfiltered")
        for row in _first(survivors(builder.stage("candidates")))
    ]
    builder.counts["without a success"] += sum(not row.successes for row in rows)
    return rows


def suffix(builder: Builder) -> list[Example]:
    """With the first guided continuation that ended right as `suffix`, so that whole solutions are trained on."""
    guided, rows = _guided(builder), []
    for example in builder.stage("examples"):
        right = [row for row in guided[example.parents["candidate"]] if row.verdict is Verdict.CORRECT]
        if not right:
            builder.counts["without a continuation that ended right"] += 1
            continue
        first = min(right, key=lambda row: row.sample)
        parents = {**example.parents, "guided": first.id}
        rows.append(dataclasses.replace(example, id=first.id, suffix=first.text, complete=True, variant="suffix",
                                        parents=parents))  # fmt: skip
    return rows


def moved(builder: Builder) -> list[Example]:
    """The same text, in place of a random other step of the attempt."""
    attempts, rows = by_id(builder.stage("failures")), []
    for example in builder.stage("examples"):
        steps = attempts[example.parents["failure"]].steps
        place = _other_place(builder, f"{example.id}|moved", len(steps), len(example.prefix))
        if place is None:
            builder.counts["attempts of one step"] += 1
            continue
        rows.append(dataclasses.replace(example, id=f"{example.id}/moved", prefix=steps[:place], variant="moved",
                                        successes=0, guided=0))  # fmt: skip
    return rows


def random_place(builder: Builder) -> list[Example]:
    """Proposed for a random other step than the one that the critic found."""
    return _proposed_at(
        builder, "random", lambda row, found: _other_place(builder, f"{row.id}|place", len(row.steps), found)
    )


def earlier(builder: Builder) -> list[Example]:
    """Proposed for the step before the one that the critic found."""
    return _proposed_at(builder, "earlier", lambda row, found: found - 1 if found else None)


def later(builder: Builder) -> list[Example]:
    """Proposed for the step after the one that the critic found."""
    return _proposed_at(builder, "later", lambda row, found: found + 1 if found + 1 < len(row.steps) else None)


def oracle(builder: Builder) -> list[Example]:
    """Proposed for the first error in truth, which `truth` knows; without it, the lab's problems know it."""
    truth = builder.truth or lab_truth
    return _proposed_at(builder, "oracle", lambda row, _: truth(builder.problems[row.problem], row.steps))


def _proposed_at(builder: Builder, name: str, place: Callable[[FailedAttempt, int], int | None]) -> list[Example]:
    """The stages from proposing on, for the attempts in which the critic found an error, at other places.

    With `only_right` off the success filter and its rollouts are left out.
    """
    attempts = by_id(builder.stage("failures"))
    located, renamed = list[Located](), dict[str, FailedAttempt]()
    for row in builder.stage("located"):
        if row.first_error is None or row.failed:
            continue
        at = place(attempts[row.failure], row.first_error)
        if at is None:
            builder.counts["attempts without such a place"] += 1
            continue
        builder.counts["at the same place as the critic's"] += at == row.first_error
        own = f"{row.failure}/{name}"  # other ids, so that nothing is mistaken for the collection's
        located.append(dataclasses.replace(row, id=f"{own}/l", failure=own, first_error=at, critical_error=None,
                                           reason=""))  # fmt: skip
        renamed[own] = dataclasses.replace(attempts[row.failure], id=own)
    candidates = check_candidates(propose_candidates(located, renamed, builder), renamed, builder)
    kept, guided = survivors(candidates), list[GuidedRollout]()
    if builder.options.only_right:
        guided = guide(kept, renamed, builder)
        rows = select(kept, guided, renamed, builder)
    else:
        rows = [_of_candidate(builder, row, renamed[row.failure], (), "") for row in _first(kept)]
    for stage, written in (("located", located), ("candidates", candidates), ("guided", guided)):
        builder.keep(stage, written)
    return [
        dataclasses.replace(
            row, variant=name, parents={**row.parents, "failure": row.parents["failure"].rpartition("/")[0]}
        )
        for row in rows
    ]


def _of_candidate(
    builder: Builder, row: Candidate, attempt: FailedAttempt, guided: Sequence[GuidedRollout], variant: str
) -> Example:
    """The row of a candidate, with the outcomes of its guided rollouts."""
    judged = [rollout for rollout in guided if rollout.verdict is not None]
    return builder.example(
        row.id, row.problem, row.content, "intervention", parents={"failure": row.failure, "candidate": row.id},
        models={**({"weak": judged[0].made.model} if judged else {}), "critic": row.made.model}, seed=row.made.seed,
        prefix=attempt.steps[: row.location], successes=sum(one.verdict == "CORRECT" for one in judged),
        guided=len(judged), with_reference=row.with_reference, complete=False, variant=variant,
    )  # fmt: skip


def _first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first candidate of each attempt."""
    first: dict[str, Candidate] = {}
    for row in candidates:
        first.setdefault(row.failure, row)
    return list(first.values())


def _other_place(builder: Builder, name: str, steps: int, place: int) -> int | None:
    """A random step other than `place`, None where there is none."""
    places = [other for other in range(steps) if other != place]
    return seeded(builder.config.seed, name).choice(places) if places else None


def _guided(builder: Builder) -> defaultdict[str, list[GuidedRollout]]:
    rows: defaultdict[str, list[GuidedRollout]] = defaultdict(list)
    for row in builder.stage("guided"):
        rows[row.candidate].append(row)
    return rows
