"""What every kind of dataset is made with: problems, what was collected for them, settings, and who writes."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stepwise.config import Config
from stepwise.data.examples import Example, Origin
from stepwise.data.problems import load_problems
from stepwise.errors import DataError
from stepwise.interventions.collection import read_stage
from stepwise.interventions.pipeline import Chunk, grade_rollouts, keep_failures, sample_rollouts
from stepwise.interventions.rows import ROWS, FailedAttempt, Rollout, by_id, spent
from stepwise.interventions.settings import BuildSettings, hash_of
from stepwise.io import read_rows
from stepwise.lab.problems import SPLITS, LabProblem, make
from stepwise.models.base import Backend
from stepwise.types import Problem, Usage

Truth = Callable[[Problem, Sequence[str]], "int | None"]
"""The true first error of an attempt, None where every step is right."""


@dataclasses.dataclass(frozen=True)
class Builder(Chunk):
    """One chunk of problems on its way to a dataset of one kind; `settings` are for what is sampled or guided anew.

    `collected` has the rows of a collection's stages that belong to these problems, None where there is no collection.
    What models write on the way is kept in `written` by stage, what they cost in `usage` by role; `counts` says what
    became of what.
    """

    kind: str
    options: BuildSettings
    collected: Mapping[str, Sequence[Any]] | None = None
    truth: Truth | None = None
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    written: dict[str, list[Any]] = dataclasses.field(default_factory=lambda: {name: [] for name in ROWS})
    usage: dict[str, Usage] = dataclasses.field(default_factory=dict)

    def keep(self, stage: str, rows: Sequence[Any], role: str = "weak") -> None:
        """Keep rows that were made for this dataset; `role` wrote them where it was not the critic."""
        self.written[stage] += rows
        locates = "scorer" if self.config.critic.method == "scorer" else "critic"
        if stage != "failures":
            self.pay({"located": locates, "candidates": "critic"}.get(stage, role), spent(rows))

    def pay(self, role: str, usage: Usage) -> None:
        """Count what was asked of a model."""
        self.usage[role] = self.usage.get(role, Usage()) + usage

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

    def sampled(self, model: Backend, n: int, name: str = "r", role: str = "weak") -> list[Rollout]:
        """`n` fresh graded solutions of each problem by `role`; their ids end in `name` and a number."""
        rows = sample_rollouts(self.but(rollouts=n), model)
        rows = [dataclasses.replace(row, id=f"{row.problem}/{name}{row.sample}") for row in rows]
        graded = grade_rollouts(rows, self.problems)
        self.keep("rollouts", graded, role)
        return graded

    def failures(self) -> list[FailedAttempt]:
        """Attempts of the weak model that ended wrong, at most `per_problem` of each problem."""
        if self.collected is not None:
            return first_of_each(self.stage("failures"), self.options.per_problem)
        failures = keep_failures(self.rollouts())
        self.keep("failures", failures)
        return first_of_each(failures, self.options.per_problem)

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
            seed=self.config.seed if seed is None else seed, **{**whole, **more},
        )  # fmt: skip


def first_of_each(rows: Iterable[Any], n: int) -> list[Any]:
    """The first `n` rows of each problem, in order."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row.problem] += 1
        if seen[row.problem] <= n:
            kept.append(row)
    return kept


def problems_of(collection: Path, given: Iterable[Problem] | None) -> list[Problem]:
    """The problems of a collection, in its order: those given, those of its problems.jsonl, or the lab's by their ids.

    Raises DataError where the directory holds no collection, and for an id that is in none of them.
    """
    names = list(dict.fromkeys(row.problem for row in read_stage(collection, "rollouts")))
    if not names:
        raise DataError(f"{collection} holds no sealed chunk of a collection; give the directory that `collect` wrote")
    file, known = collection / "problems.jsonl", dict[str, Problem]()
    if given is not None or file.exists():
        known = by_id(read_rows(file, Problem) if given is None else load_problems(given))
    else:
        for name in names:
            with suppress(DataError):
                known[name] = lab_problem(name).problem
    if missing := [name for name in names if name not in known]:
        raise DataError(
            f"{len(missing)} problems of {collection} are not among those given, first {missing[0]!r}; "
            "give the problems that were collected for"
        )
    return [known[name] for name in names]


def collected_for(collection: Path, config: Config) -> dict[str, dict[str, list[Any]]]:
    """The rows of a collection by stage and problem; DataError for one that was made under another prompt."""
    rows: dict[str, dict[str, list[Any]]] = {name: defaultdict(list) for name in ROWS}
    for name, of_problem in rows.items():
        for row in read_stage(collection, name):
            of_problem[row.parents["problem"] if isinstance(row, Example) else row.problem].append(row)
    prompts = {row.made.prompt_hash for rollouts in rows["rollouts"].values() for row in rollouts}
    if other := prompts - {config.prompt.hash}:
        raise DataError(
            f"{collection} was collected under another prompt ({min(other)}, now {config.prompt.hash}); "
            "give the configuration that it was collected with"
        )
    return rows


def lab_problem(name: str) -> LabProblem:
    """The lab's problem with that id, with its truth; DataError where it is none of the lab's."""
    head, _, number = name.rpartition("/")
    split = head.removeprefix("lab/")
    if not head.startswith("lab/") or split not in SPLITS or not number.isdecimal():
        raise DataError(f"problem {name!r} is none of the lab's, so its truth is not known; give `truth`")
    return make(split, int(number))


def lab_truth(problem: Problem, steps: Sequence[str]) -> int | None:
    """`Truth` for the lab's problems."""
    return lab_problem(problem.id).first_error(steps)
