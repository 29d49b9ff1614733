"""What every builder of a dataset works with: problems, what was collected for them, settings, and who writes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stepwise.config import Config
from stepwise.data.examples import Example, Origin
from stepwise.data.problems import read_problems
from stepwise.errors import DataError
from stepwise.interventions import stages
from stepwise.interventions.pipeline import ROWS, read_stage
from stepwise.interventions.rows import Candidate, Failure, GuidedRollout, Rollout, by_id
from stepwise.interventions.settings import CollectSettings, uncapped
from stepwise.models.base import Backend
from stepwise.types import Problem, Usage

Truth = Callable[[Problem, Sequence[str]], "int | None"]
"""The true first error of an attempt, None where every step is right."""


class BuildSettings(BaseModel):
    """How many of what, for the kinds of dataset that need it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    per_problem: int = Field(default=4, ge=1)
    """most rows of one problem: right rollouts, rewrites, solutions by the strong model"""
    samples: int = Field(default=8, ge=1)
    """solutions of each problem that the weak model writes where there is no collection to take them from"""
    only_right: bool = True
    """keep only what grades as right (references, rewrites, solutions by the strong model)"""
    reflection: Literal["auto", "rewrite", "repair"] = "auto"
    """a whole rewrite in one call, or repaired step by step; auto: repair where the critic knows only its own task"""
    rounds: int = Field(default=3, ge=1)
    """repair: most errors that are put right in one attempt"""
    first_tokens: int = Field(default=8, ge=1)
    """first_tokens: length of the beginnings, in tokens of the weak model"""
    full_share: float = Field(default=0.1, ge=0, le=1)
    """first_tokens: share of problems whose whole solution is taken instead"""
    own_corpus: int = Field(default=1000, ge=1)
    """own_corpus: number of solutions"""
    chunk: int = Field(default=8, ge=1)
    """problems that are done together, and done again together after an interruption"""
    collect: CollectSettings = CollectSettings()
    """what is sampled or guided anew is as here"""

    def hash_with(self, config: Config, kind: str) -> str:
        """Twelve hex digits for configuration without its caps, settings and kind of dataset."""
        return hashlib.sha256(f"{uncapped(config).hash} {kind} {self.model_dump_json()}".encode()).hexdigest()[:12]


class Writers:
    """The models by what they do, each loaded when it is first asked for. Those given are used as they are.

    `weak` and `strong` are backends, the others modules: ErrorLocalizer, InterventionProposer with one candidate, and
    SolutionRewriter.
    """

    def __init__(
        self,
        config: Config,
        *,
        weak: Backend | None = None,
        strong: Backend | None = None,
        localizer: Any = None,
        proposer: Any = None,
        rewriter: Any = None,
    ) -> None:
        self._config = config
        given = {"weak": weak, "strong": strong, "localizer": localizer, "proposer": proposer, "rewriter": rewriter}
        self._given = {name: writer for name, writer in given.items() if writer is not None}
        self._loaded: list[Backend] = []

    @functools.cached_property
    def weak(self) -> Backend:
        """The model that is to be trained."""
        return self._backend("weak")

    @functools.cached_property
    def strong(self) -> Backend:
        """The model that steps are escalated to."""
        return self._backend("strong")

    @functools.cached_property
    def localizer(self) -> Any:
        """Finds first errors."""
        from stepwise.critics import ErrorLocalizer

        return self._given.get("localizer") or ErrorLocalizer.from_config(self._config)

    @functools.cached_property
    def proposer(self) -> Any:
        """Writes a step in place of an error."""
        from stepwise.critics import InterventionProposer

        return self._given.get("proposer") or InterventionProposer.from_config(one_candidate(self._config))

    @functools.cached_property
    def rewriter(self) -> Any:
        """Writes a failed attempt anew."""
        from stepwise.critics.rewriter import SolutionRewriter

        return self._given.get("rewriter") or SolutionRewriter.from_config(self._config)

    def _backend(self, role: Literal["weak", "strong"]) -> Backend:
        if role in self._given:
            backend: Backend = self._given[role]
            return backend
        from stepwise.models import load_backend

        self._loaded.append(load_backend(getattr(self._config.models, role), prompt=self._config.prompt))
        return self._loaded[-1]

    def forget(self) -> None:
        """Empty the caches of the local models that are loaded."""
        used = [vars(self)[name] for name in ("weak", "strong") if name in vars(self)]
        for backend in used:
            getattr(backend, "forget", lambda: None)()
        if {"localizer", "proposer", "rewriter"} & (vars(self).keys() - self._given.keys()):
            from stepwise.models.shared import shared_engine

            if self._config.models.critic.local:
                shared_engine(self._config.models.critic).forget()

    def close(self) -> None:
        """Free the backends that were loaded here."""
        while self._loaded:
            self._loaded.pop().close()

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def one_candidate(config: Config) -> Config:
    """The configuration with one candidate for each error; of several, each is a call of its own."""
    how = config.critic
    warm = how.temperature or (0.7 if how.candidates > 1 else 0.0)  # greedy candidates would all be the same
    return config.model_copy(update={"critic": how.model_copy(update={"candidates": 1, "temperature": warm})})


@dataclasses.dataclass
class Work:
    """One chunk of problems on its way to a dataset of one kind.

    `collected` has the rows of a collection's stages that belong to these problems, None where there is no collection.
    What models write on the way is kept in `written` by stage, what they cost in `usage` by role; `counts` says what
    became of what.
    """

    kind: str
    problems: dict[str, Problem]
    config: Config
    settings: BuildSettings
    writers: Writers
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
            self.pay({"located": locates, "candidates": "critic"}.get(stage, role), stages.spent(rows))

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
        return self.sampled(self.writers.weak, self.settings.samples)

    def sampled(self, backend: Backend, n: int, name: str = "r", role: str = "weak") -> list[Rollout]:
        """`n` fresh graded solutions of each problem by `role`; their ids end in `name` and a number."""
        settings = self.settings.collect.model_copy(update={"rollouts": n})
        made = stages.sample_rollouts(list(self.problems.values()), backend, self.config, settings)
        named = [dataclasses.replace(row, id=f"{row.problem}/{name}{row.sample}") for row in made]
        graded = stages.grade_rollouts(named, self.problems)
        self.keep("rollouts", graded, role)
        return graded

    def failures(self) -> list[Failure]:
        """Attempts of the weak model that ended wrong, at most `per_problem` of each problem."""
        if self.collected is None:
            found = stages.keep_failures(self.rollouts())
            self.keep("failures", found)
        else:
            found = self.stage("failures")
        return most(found, self.settings.per_problem)

    def example(
        self,
        name: str,
        problem: str,
        text: str,
        origin: Origin,
        *,
        parents: Mapping[str, str],
        models: Mapping[str, str],
        made: Any = None,
        **more: Any,
    ) -> Example:
        """A row about `problem` (an id); `made` says with which random numbers, `more` are further fields."""
        about, more = self.problems[problem], {"complete": True, "variant": "", **more}
        return Example(
            name, about.question, about.answer or "", more.pop("prefix", ()), text, origin,
            {"problem": problem, **parents}, dict(models), self.config.prompt.hash,
            self.settings.hash_with(self.config, self.kind), self.config.seed if made is None else made.seed,
            more.pop("successes", 0), more.pop("guided", 0), more.pop("with_reference", False), about.source, **more,
        )  # fmt: skip

    def of_candidate(
        self, row: Candidate, prefix: Sequence[str], guided: Sequence[GuidedRollout], name: str, **more: Any
    ) -> Example:
        """The row of a candidate after `prefix`, with the outcomes of its guided rollouts."""
        judged = [made for made in guided if made.verdict is not None]
        weak = {"weak": judged[0].made.model} if judged else {}
        return self.example(
            name, row.problem, row.content, "intervention", parents={"failure": row.failure, "candidate": row.id},
            models={**weak, "critic": row.made.model}, made=row.made, prefix=tuple(prefix),
            successes=sum(made.verdict == "CORRECT" for made in judged), guided=len(judged),
            with_reference=row.with_reference, **{"complete": False, **more},
        )  # fmt: skip


def every(settings: CollectSettings, n: int) -> CollectSettings:
    """The settings with which `guide` asks for exactly `n` rollouts of each candidate."""
    alike = {"enough": None, "miss": 0.0, "average": None, "keep": "all", "compare": 0, "fresh": 0}
    return settings.model_copy(update={**alike, "guided": n, "batch": min(n, settings.batch)})


def checked(
    candidates: Sequence[Candidate],
    failures: Mapping[str, Failure],
    problems: Mapping[str, Problem],
    settings: CollectSettings,
) -> list[Candidate]:
    """The same candidates with what the checks say that need no rollout."""
    found = stages.check_candidates(candidates, failures, problems)
    return stages.check_sums(found) if settings.check_sums else found


def most(rows: Sequence[Any], n: int) -> list[Any]:
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
    file = collection / "problems.jsonl"
    if given is not None:
        known = by_id(given)
    elif file.exists():
        known = by_id(read_problems(file))
    else:
        known = {name: problem for name in names if (problem := _of_the_lab(name)) is not None}
    if missing := [name for name in names if name not in known]:
        raise DataError(
            f"{len(missing)} problems of {collection} are not among those given, first {missing[0]!r}; "
            "give the problems that were collected for"
        )
    return [known[name] for name in names]


def collected_for(collection: Path, config: Config) -> dict[str, dict[str, list[Any]]]:
    """The rows of a collection by stage and problem; DataError for one that was made under another prompt."""
    found: dict[str, dict[str, list[Any]]] = {}
    for name in ROWS:
        for row in read_stage(collection, name):
            found.setdefault(name, {}).setdefault(_problem_of(row), []).append(row)
    prompts = {row.made.prompt_hash for rows in found.get("rollouts", {}).values() for row in rows}
    if other := prompts - {config.prompt.hash}:
        raise DataError(
            f"{collection} was collected under another prompt ({min(other)}, now {config.prompt.hash}); "
            "give the configuration that it was collected with"
        )
    return found


def lab_problem(name: str) -> Any:
    """The lab's problem with that id, with its truth; DataError where it is none of the lab's."""
    from stepwise.lab.problems import SPLITS, make

    head, _, number = name.rpartition("/")
    split = head.removeprefix("lab/")
    if not head.startswith("lab/") or split not in SPLITS or not number.isdecimal():
        raise DataError(f"problem {name!r} is none of the lab's, so its truth is not known; give `truth`")
    return make(split, int(number))


def lab_truth(problem: Problem, steps: Sequence[str]) -> int | None:
    """`Truth` for the lab's problems."""
    first: int | None = lab_problem(problem.id).first_error(steps)
    return first


def _of_the_lab(name: str) -> Problem | None:
    with suppress(DataError):
        problem: Problem = lab_problem(name).problem
        return problem
    return None


def _problem_of(row: Any) -> str:
    return str(row.parents["problem"]) if isinstance(row, Example) else str(row.problem)


def continued(row: Candidate, failure: Failure, rollout: GuidedRollout | None) -> tuple[str, ...]:
    """The steps of the attempt as it goes on after the candidate."""
    kept = (*failure.steps[: row.location], row.content)
    return kept if rollout is None else (*kept, *rollout.steps)
