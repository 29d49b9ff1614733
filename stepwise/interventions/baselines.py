"""Every dataset that interventions are compared with, from the same problems and the same collection.

`build(kind, source, cfg)` gives the rows of one kind, `write_dataset` makes a directory of them that can be gone on
with after an interruption. `KINDS` has the kinds; each is one function of a chunk of problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise.config import Config
from stepwise.data.examples import Example, unique, write_examples
from stepwise.data.problems import Checked, check_problems
from stepwise.errors import BudgetExceededError, DataError
from stepwise.grading import GRADER_VERSION
from stepwise.interventions import controls, reflection, solutions, stages
from stepwise.interventions.caps import Spent
from stepwise.interventions.chunks import run_chunks, sealed_rows
from stepwise.interventions.pipeline import ROWS
from stepwise.interventions.settings import uncapped
from stepwise.interventions.work import BuildSettings, Truth, Work, Writers, collected_for, problems_of
from stepwise.models.store import key_of
from stepwise.runs.plan import Planned, plan_localizing, plan_proposing
from stepwise.runs.progress import progress
from stepwise.types import Problem, to_json

if TYPE_CHECKING:
    from stepwise.runs.directory import RunDirectory

Source = str | Path | Iterable[Problem]
"""The directory of a collection, or problems."""

KINDS: dict[str, Callable[[Work], list[Example]]] = {
    "intervention": controls.interventions,
    "unfiltered": controls.unfiltered,
    "suffix": controls.suffix,
    "moved": controls.moved,
    "random": controls.random_place,
    "earlier": controls.earlier,
    "later": controls.later,
    "oracle": controls.oracle,
    "reference": solutions.references,
    "reflection": reflection.reflections,
    "strong": solutions.strong,
    "rejection": solutions.rejection,
    "first_tokens": solutions.first_tokens,
    "own_corpus": solutions.own_corpus,
}
"""The kinds of dataset. Those before "reference" need a collection; the others take it where they can."""
FILES = (*ROWS, "counts", "spent")
NEED_COLLECTION = tuple(KINDS)[: tuple(KINDS).index("reference")]


def build(
    kind: str,
    source: Source,
    cfg: Config,
    *,
    problems: Iterable[Problem] | None = None,
    settings: BuildSettings | None = None,
    writers: Writers | None = None,
    truth: Truth | None = None,
    counts: Counter[str] | None = None,
) -> list[Example]:
    """The rows of one kind (a key of `KINDS`).

    `source` is the directory of a collection, or problems. `problems` are those of the collection, where it does not
    hold them itself and they are not the lab's. `truth` finds first errors for the kind "oracle". `counts`, where
    given, is added to: what became of what. Raises DataError for an unknown kind, a kind that needs a collection and is
    given problems, another prompt than the collection's, and problems that cannot be used; BackendError where a model
    is gone.
    """
    settings = settings or BuildSettings()
    given = Ingredients(kind, source, cfg, settings, problems, truth)
    own = writers or Writers(cfg)
    rows: list[Example] = []
    try:
        with progress(f"building {kind}", len(given.members)) as advance:
            for chunk in given.chunks():
                work = given.work(chunk, own)
                rows += KINDS[kind](work)
                if counts is not None:
                    counts.update(work.counts)
                advance(len(chunk))
    finally:
        if writers is None:
            own.close()
    return unique(rows)


def write_dataset(
    kind: str,
    source: Source,
    cfg: Config,
    out: str | Path,
    *,
    problems: Iterable[Problem] | None = None,
    settings: BuildSettings | None = None,
    writers: Writers | None = None,
    truth: Truth | None = None,
    licence: str = "other",
) -> Path:
    """`build` into the directory `out`: dataset.jsonl, the card beside it, and what models wrote on the way.

    Going on after an interruption needs no more than the same call. Raises as `build` does, and DataError for a
    directory of another run; OSError where the disk is full, BudgetExceededError where the next chunk would pass a cap
    of `budget`: what was sealed before stays.
    """
    from stepwise.runs.directory import opened

    settings = settings or BuildSettings()
    given = Ingredients(kind, source, cfg, settings, problems, truth)
    with opened(out, program="build_dataset", config=uncapped(cfg), arguments=given.arguments()) as directory:
        return write_in(directory, given, writers, licence)


def write_in(
    directory: RunDirectory, given: Ingredients, writers: Writers | None = None, licence: str = "other"
) -> Path:
    """`write_dataset` in a directory that is open already, as a program's is.

    Where a cap of [budget] is reached, the dataset of what is sealed is written, and BudgetExceededError raised.
    """
    own = writers or Writers(given.config)

    def work(members: Sequence[Problem]) -> dict[str, Sequence[Any]]:
        own.forget()
        chunk = given.work(members, own)
        rows = KINDS[given.kind](chunk)
        spent = [Spent(role, usage) for role, usage in chunk.usage.items()]
        return {**chunk.written, "examples": rows, "counts": [dict(chunk.counts)], "spent": spent}

    try:
        run_chunks(directory, given.members, given.size, work, FILES, f"building {given.kind}", given.config)
    except BudgetExceededError:
        _dataset(directory, given, licence)
        raise
    finally:
        if writers is None:
            own.close()
    return _dataset(directory, given, licence)


class Ingredients:
    """What a dataset is made from, checked."""

    def __init__(
        self,
        kind: str,
        source: Source,
        config: Config,
        settings: BuildSettings,
        problems: Iterable[Problem] | None = None,
        truth: Truth | None = None,
    ) -> None:
        if kind not in KINDS:
            raise DataError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
        self.kind, self.config, self.settings, self.truth = kind, config, settings, truth
        self.collected = None
        if isinstance(source, str | Path):
            self.collected = collected_for(Path(source), config)
            found = problems_of(Path(source), problems)
        elif kind in NEED_COLLECTION:
            raise DataError(f"kind {kind!r} is made from a collection; give the directory that `collect` wrote")
        else:
            found = list(source)
        self.checked = Checked((), {}, ()) if kind == "own_corpus" else check_problems(found)
        # The corpus is drawn in one go, whatever the problems are.
        self.members: Sequence[Any] = [None] if kind == "own_corpus" else self.checked.problems
        self.size = settings.chunk

    def chunks(self) -> list[Sequence[Any]]:
        """The members, chunk by chunk."""
        return [self.members[first : first + self.size] for first in range(0, len(self.members), self.size)]

    def work(self, members: Sequence[Any], writers: Writers) -> Work:
        """One chunk with what was collected for it."""
        known = {problem.id: problem for problem in members if problem is not None}
        collected = None
        if self.collected is not None:
            by_stage = self.collected
            collected = {
                stage: [row for name in known for row in by_stage.get(stage, {}).get(name, [])] for stage in ROWS
            }
        return Work(self.kind, known, self.config, self.settings, writers, collected, self.truth)

    def planned(self) -> list[Planned]:
        """The most that the models are asked for. Prompts count by their bytes, which no tokenizer exceeds."""
        n, settings, how = len(self.checked.problems), self.settings, self.settings.collect
        text = sum(len(p.question.encode()) + len((p.reference or "").encode()) for p in self.checked.problems)
        written = {
            "strong": ("strong", settings.per_problem, how.max_tokens),
            "first_tokens": ("weak", 1, how.max_tokens if settings.full_share else settings.first_tokens),
        }
        if self.collected is None:
            fresh = ("weak", settings.samples, how.max_tokens)
            written |= {"rejection": fresh, "reflection": fresh}
        role, each, longest = written.get(self.kind, ("weak", 0, 0))
        plan = [Planned(role, n * each, text, n * each * longest)] if each else []  # type: ignore[arg-type]
        plan += self._asked() if self.kind in ("reflection", "random", "earlier", "later", "oracle") else []
        return plan

    def _asked(self) -> list[Planned]:
        """What a critic is asked for, and what is guided, as if each attempt were as long as it may be."""
        found = (
            () if self.collected is None else [f for rows in self.collected.get("failures", {}).values() for f in rows]
        )
        longest, how = self.settings.collect.max_tokens, self.settings.collect
        n = len(self.checked.problems)
        sizes = [(sum(map(len, f.steps)) * 4 + 4000, len(f.steps)) for f in found] or (
            [(longest * 4 + 4000, 12)] * (n * self.settings.per_problem)
        )
        if self.kind != "reflection":
            guided = len(sizes) * self.config.critic.candidates * how.guided
            return [
                *plan_proposing(self.config, sizes),
                Planned("weak", guided, sum(s for s, _ in sizes), guided * longest),
            ]
        sizes = sizes * self.settings.rounds
        return [
            *plan_localizing(self.config, sizes),
            *plan_proposing(self.config, sizes),
            Planned("weak", len(sizes), sum(s for s, _ in sizes), len(sizes) * longest),
        ]

    def arguments(self) -> dict[str, Any]:
        """What a directory of this dataset belongs to."""
        rows = (
            None
            if self.collected is None
            else [to_json(r) for s in self.collected.values() for p in s.values() for r in p]
        )
        digest = key_of({"problems": [to_json(p) for p in self.checked.problems], "collection": rows})
        return {"kind": self.kind, **self.settings.model_dump(mode="json"), "source": digest}


def _dataset(own: RunDirectory, given: Ingredients, licence: str) -> Path:
    counts: Counter[str] = Counter()
    for row in sealed_rows(own.path, "counts", dict):
        counts.update(row)
    examples = unique(sealed_rows(own.path, "examples", Example))
    written = {
        name: sealed_rows(own.path, name, ROWS[name]) for name in ("rollouts", "located", "candidates", "guided")
    }
    card = {
        "kind": given.kind,
        "what became of what": dict(counts),
        "problems": {"used": len(given.checked.problems), "left out": given.checked.excluded},
        "generated tokens": {name: stages.spent(rows).generated_tokens for name, rows in written.items() if rows},
        "models": {role: sorted({e.models[role] for e in examples if role in e.models})
                   for role in sorted({role for e in examples for role in e.models})},
        "settings": {
            **given.settings.model_dump(mode="json"),
            "configuration": uncapped(given.config).hash,
            "prompt": given.config.prompt.hash,
            "sampling": given.config.sampling.model_dump(),
            "seed": given.config.seed,
            "grader": GRADER_VERSION,
        },
    }  # fmt: skip
    path = own.claim("dataset.jsonl")
    own.claim("dataset.md")
    return write_examples(path, examples, card=card, licence=licence)
