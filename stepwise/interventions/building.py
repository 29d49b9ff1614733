"""A dataset of one chunk of problems on its way (`Builder`), and interventions in other forms.

Each of these changes one thing about the collection's dataset: what to clone, and where. InT's ablation (arXiv
2601.14209, the table on what to clone in SFT): `unfiltered` has no success filter, `suffix` adds the continuation that
ended right; leaving out the prefix is a loss weight ([sft] prefix_weight), not another dataset. The rest are ours: they
ask whether it matters where the step stands, and who found the place.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepwise.data.examples import Example, Origin
from stepwise.errors import DataError
from stepwise.grading import Verdict
from stepwise.interventions.checks.candidates import check_candidates, survivors
from stepwise.interventions.pipeline import (
    Chunk,
    grade_rollouts,
    guide,
    keep_failures,
    propose_candidates,
    sample_rollouts,
    select,
)
from stepwise.interventions.rows import (
    ROWS,
    Candidate,
    FailedAttempt,
    GuidedRollout,
    Located,
    Rollout,
    by_id,
    first_of_each,
)
from stepwise.interventions.settings import BuildSettings, hash_of
from stepwise.models.base import Backend
from stepwise.seeds import rng as seeded


@dataclasses.dataclass(frozen=True)
class Builder(Chunk):
    """One chunk of problems on its way to a dataset of one kind; `settings` are for what is sampled or guided anew.

    `collected` has the rows of a collection's stages that belong to these problems, None where there is no collection.
    What models write on the way is kept in `written` by stage; `counts` says what became of what.

    Example:
        builder = recipe.builder(recipe.members[:20], Writers(config))
        rollouts = builder.rollouts()  # of the collection, else fresh ones
    """

    kind: str
    options: BuildSettings
    collected: Mapping[str, Sequence[Any]] | None = None
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    written: dict[str, list[Any]] = dataclasses.field(default_factory=lambda: {name: [] for name in ROWS})

    def stage(self, name: str) -> list[Any]:
        """The rows of a stage; DataError where there is no collection to take them from."""
        if self.collected is None:
            raise DataError(f"kind {self.kind!r} is made from a collection; give the directory that `collect` wrote")
        return list(self.collected[name])

    def rollouts(self) -> list[Rollout]:
        """Graded solutions by the weak model: those of the collection, else fresh ones."""
        if self.collected is not None:
            return self.stage("rollouts")
        return self.sampled(self.writers.weak, self.options.samples)

    def sampled(self, model: Backend, n: int, name: str = "r") -> list[Rollout]:
        """`n` fresh graded solutions of each problem by `model`; their ids end in `name` and a number."""
        rows = sample_rollouts(self.but(rollouts=n), model)
        rows = [dataclasses.replace(row, id=f"{row.problem}/{name}{row.sample}") for row in rows]
        graded = grade_rollouts(rows, self.problems)
        self.written["rollouts"] += graded
        return graded

    def failures(self) -> list[FailedAttempt]:
        """Attempts of the weak model that ended wrong, at most `per_problem` of each problem."""
        if self.collected is not None:
            failures = self.stage("failures")
        else:
            failures = keep_failures(self.rollouts())
            self.written["failures"] += failures
        return first_of_each(failures, lambda row: row.problem, self.options.per_problem)

    def example(
        self,
        name: str,
        problem: str,
        text: str,
        origin: Origin,
        *,
        parents: Mapping[str, str] | None = None,
        models: Mapping[str, str] | None = None,
        seed: int | None = None,
        **more: Any,
    ) -> Example:
        """A row about `problem` (an id), a whole solution unless `more`, which are further fields, says otherwise."""
        about = self.problems[problem]
        whole = {"prefix": (), "successes": 0, "guided": 0, "with_reference": False, "complete": True}
        return Example(
            id=name, question=about.question, answer=about.answer or "", intervention=text, origin=origin,
            parents={"problem": problem, **(parents or {})}, models=dict(models or {}), source=about.source,
            prompt_hash=self.config.prompt.hash, config_hash=hash_of(self.config, self.options, self.kind),
            seed=self.config.seed if seed is None else seed, splitter=self.splitter, **{**whole, **more},
        )  # fmt: skip


def _interventions(builder: Builder) -> list[Example]:
    """The collection's examples as they are."""
    return builder.stage("examples")


def _unfiltered(builder: Builder) -> list[Example]:
    """Without the success filter: of each attempt the first candidate that passes the checks that need no rollout."""
    attempts, guided = by_id(builder.stage("failures")), _guided(builder)
    rows = [
        _of_candidate(builder, row, attempts[row.failure], guided[row.id], "unfiltered")
        for row in first_of_each(survivors(builder.stage("candidates")), lambda row: row.failure)
    ]
    builder.counts["without a success"] += sum(not row.successes for row in rows)
    return rows


def _suffix(builder: Builder) -> list[Example]:
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


def _moved(builder: Builder) -> list[Example]:
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


def _random_place(builder: Builder) -> list[Example]:
    """Proposed for a random other step than the one that the critic found."""
    return _proposed_at(
        builder, "random", lambda row, found: _other_place(builder, f"{row.id}|place", len(row.steps), found)
    )


def _earlier(builder: Builder) -> list[Example]:
    """Proposed for the step before the one that the critic found."""
    return _proposed_at(builder, "earlier", lambda row, found: found - 1 if found else None)


def _proposed_at(builder: Builder, name: str, place: Callable[[FailedAttempt, int], int | None]) -> list[Example]:
    """The stages from proposing on, for the attempts in which the critic found an error, at other places."""
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
        name_here = f"{row.failure}/{name}"  # other ids, so that nothing is mistaken for the collection's
        located.append(dataclasses.replace(
            row, id=f"{name_here}/l", failure=name_here, first_error=at, critical_error=None, reason=""
        ))  # fmt: skip
        renamed[name_here] = dataclasses.replace(attempts[row.failure], id=name_here)
    candidates = check_candidates(propose_candidates(located, renamed, builder), renamed, builder)
    usable = survivors(candidates)
    guided = guide(usable, renamed, builder)
    for stage, written in (("located", located), ("candidates", candidates), ("guided", guided)):
        builder.written[stage] += written
    return [
        dataclasses.replace(
            row, variant=name, parents={**row.parents, "failure": row.parents["failure"].rpartition("/")[0]}
        )
        for row in select(usable, guided, renamed, builder)
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


def _other_place(builder: Builder, name: str, steps: int, place: int) -> int | None:
    """A random step other than `place`, None where there is none."""
    places = [other for other in range(steps) if other != place]
    return seeded(builder.config.seed, name).choice(places) if places else None


def _guided(builder: Builder) -> defaultdict[str, list[GuidedRollout]]:
    rows: defaultdict[str, list[GuidedRollout]] = defaultdict(list)
    for row in builder.stage("guided"):
        rows[row.candidate].append(row)
    return rows


KINDS: dict[str, Callable[[Builder], list[Example]]] = {
    "intervention": _interventions,
    "unfiltered": _unfiltered,
    "suffix": _suffix,
    "moved": _moved,
    "random": _random_place,
    "earlier": _earlier,
}
"""The kinds of dataset that need a collection."""
