"""Every dataset that interventions are compared with, from the same problems and the same collection.

`KINDS` has the kinds; each is one function of a chunk of problems (`Builder`). `build(kind, source, cfg)` gives the
rows of one kind, `write_dataset` makes a directory of them that can be gone on with after an interruption.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stepwise.config import Config, Roles
from stepwise.data.examples import Example, unique
from stepwise.data.problems import CheckedProblems, check_problems, load_problems
from stepwise.errors import DataError
from stepwise.interventions import building, solutions
from stepwise.interventions.building import Builder
from stepwise.interventions.chunks import working, write_sealed
from stepwise.interventions.collection import read_stage
from stepwise.interventions.rows import ROWS, WRITTEN, FailedAttempt, by_id, parent, spent
from stepwise.interventions.settings import BuildSettings, Writers, in_use
from stepwise.io import read_rows
from stepwise.lab.problems import SPLITS, LabProblem, make
from stepwise.models.store import key_of
from stepwise.records import to_json
from stepwise.runs.chunks import run_chunks, sealed_counts, sealed_rows
from stepwise.runs.directory import RunDirectory
from stepwise.runs.plan import PlannedCalls, plan_localizing, plan_proposing
from stepwise.runs.progress import progress
from stepwise.steps import join_steps
from stepwise.types import Problem

Source = Any
"""The directory of a collection, or what `load_problems` takes."""

KINDS: Mapping[str, Callable[[Builder], list[Example]]] = building.KINDS | solutions.KINDS
"""The kinds of dataset, each one function of a chunk of problems."""
NEED_COLLECTION = tuple(building.KINDS)
_FILES = (*ROWS, "counts")
_ASK_CRITICS = ("reflection", "random", "earlier")


def build(
    kind: str,
    source: Source,
    cfg: Config | str | Path,
    *,
    problems: Iterable[Problem] | None = None,
    settings: BuildSettings | Mapping[str, Any] | None = None,
    writers: Writers | None = None,
    counts: Counter[str] | None = None,
) -> list[Example]:
    """The rows of one kind (a key of `KINDS`).

    `source` is the directory of a collection, or problems. `problems` are those of the collection, where it does not
    hold them itself and they are not the lab's. `counts`, where
    given, is added to: what became of what. Raises DataError for an unknown kind, a kind that needs a collection and is
    given problems, another prompt than the collection's, and problems that cannot be used; BackendError where a model
    is gone.

    Example:
        config = sw.Config.lab()
        rows = build("rejection", sw.load_problems("gsm8k", split="train", n=100), config)
        rows = build("unfiltered", "out/int", config)  # of the collection that `collect` wrote there
    """
    cfg = Config.of(cfg, "cfg")
    recipe = Recipe(kind, source, cfg, settings, problems)
    rows: list[Example] = []
    members, size = recipe.members, recipe.settings.chunk
    with in_use(writers, cfg) as models, progress(f"building {kind}", len(members)) as advance:
        for first in range(0, len(members), size):
            builder = recipe.builder(members[first : first + size], models)
            rows += KINDS[kind](builder)
            if counts is not None:
                counts.update(builder.counts)
            advance(len(members[first : first + size]))
    return unique(rows)


def write_dataset(
    kind: str,
    source: Source,
    cfg: Config | str | Path,
    out: str | Path | RunDirectory,
    *,
    problems: Iterable[Problem] | None = None,
    settings: BuildSettings | Mapping[str, Any] | None = None,
    writers: Writers | None = None,
    licence: str = "other",
) -> Path:
    """`build` into the directory `out`: dataset.jsonl, the card beside it, and what models wrote on the way.

    Going on after an interruption needs no more than the same call. Raises as `build` does, and DataError for a
    directory of another run; OSError where the disk is full, BudgetExceededError where the next chunk would pass a cap
    of `budget`: what was sealed before stays, and has become a dataset.

    Example:
        write_dataset("reflection", "out/int", sw.Config.lab(), "out/reflection", licence="mit")
    """
    return Recipe(kind, source, cfg, settings, problems).write(out, writers, licence)


class Recipe:
    """What a dataset of one kind is made from, checked; arguments are those of `build`.

    Example:
        recipe = Recipe("moved", "out/int", config)  # from what `collect` wrote
        with in_use(None, config) as writers:
            rollouts = recipe.builder(recipe.members, writers).rollouts()
    """

    def __init__(
        self,
        kind: str,
        source: Source,
        config: Config | str | Path,
        settings: BuildSettings | Mapping[str, Any] | None = None,
        problems: Iterable[Problem] | None = None,
    ) -> None:
        if kind not in KINDS:
            raise DataError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
        self.kind, self.config = kind, (config := Config.of(config, "cfg"))
        self.settings = BuildSettings.of(settings, "settings")
        self.collected: Mapping[str, Mapping[str, list[Any]]] | None = None
        if isinstance(source, str | Path) and (kind in NEED_COLLECTION or not _is_file_or_name(source)):
            self.collected = _collected_for(Path(source), config)
            source = problems_of(Path(source), problems)
        elif kind in NEED_COLLECTION:
            raise DataError(f"kind {kind!r} is made from a collection; give the directory that `collect` wrote")
        # The corpus is drawn in one go, whatever the problems are.
        self.checked = CheckedProblems((), {}, ()) if kind == "own_corpus" else check_problems(source)
        self.members: Sequence[Any] = [None] if kind == "own_corpus" else self.checked.problems

    def builder(self, members: Sequence[Any], writers: Writers) -> Builder:
        """One chunk with what was collected for it; ConfigError where the lab's critic would be asked about others."""
        if self.kind in _ASK_CRITICS:
            writers.refuse_lab()
        problems = {problem.id: problem for problem in members if problem is not None}
        collected = None
        if self.collected is not None:
            collected = {
                stage: [row for name in problems for row in rows.get(name, ())]
                for stage, rows in self.collected.items()
            }
        settings = self.settings
        return Builder(problems, writers, self.config, settings.collect, self.kind, settings, collected)

    def write(self, out: str | Path | RunDirectory, writers: Writers | None = None, licence: str = "other") -> Path:
        """See `write_dataset`."""
        config, label = self.config, f"building {self.kind}"
        arguments = {"kind": self.kind, **self.settings.model_dump(mode="json"), "source": self._digest()}
        with working(out, "build_dataset", config, arguments, writers) as (directory, crew):

            def finish() -> Path:
                return self._finish(directory, licence)

            return run_chunks(
                directory, self.members, self.settings.chunk, _FILES, self._work, finish, crew=crew, label=label
            )

    def _work(self, models: Writers, members: Sequence[Any]) -> dict[str, Sequence[Any]]:
        models.reset_caches()
        builder = self.builder(members, models)
        rows = KINDS[self.kind](builder)
        return {**builder.written, "examples": rows, "counts": [dict(builder.counts)]}

    def planned(self) -> list[PlannedCalls]:
        """The most that the models are asked for. Prompts count by their bytes, which no tokenizer exceeds."""
        settings, longest = self.settings, self.settings.collect.max_tokens
        n = len(self.checked.problems)
        text = sum(len(p.question.encode()) + len((p.reference or "").encode()) for p in self.checked.problems)
        written: dict[str, tuple[Roles, int, int]] = {
            "strong": ("strong", settings.per_problem, longest),
            "first_tokens": ("weak", 1, longest if settings.full_share else settings.first_tokens),
        }
        if self.collected is None:
            written |= dict.fromkeys(("rejection", "reflection"), ("weak", settings.samples, longest))
        plan = []
        if self.kind in written:
            role, each, tokens = written[self.kind]
            plan.append(PlannedCalls(role, n * each, text, n * each * tokens))
        if self.kind not in _ASK_CRITICS:
            return plan
        Writers(self.config).refuse_lab()
        # What a critic is asked for, and what is guided, as if each attempt were as long as it may be.
        failures = [row for rows in (self.collected or {}).get("failures", {}).values() for row in rows]
        sizes = [(sum(map(len, row.steps)) * 4 + 4000, len(row.steps)) for row in failures]
        sizes = sizes or [(longest * 4 + 4000, 12)] * (n * settings.per_problem)
        if self.kind == "reflection":
            sizes, rollouts = sizes * settings.rounds, 1
            plan += plan_localizing(self.config, sizes)
        else:
            rollouts = self.config.critic.candidates * settings.collect.guided
        plan += plan_proposing(self.config, sizes)
        guided = len(sizes) * rollouts
        return [*plan, PlannedCalls("weak", guided, sum(size for size, _ in sizes), guided * longest)]

    def _digest(self) -> str:
        rows = None
        if self.collected is not None:
            rows = [to_json(row) for stage in self.collected.values() for found in stage.values() for row in found]
        return key_of({"problems": [to_json(p) for p in self.checked.problems], "collection": rows})

    def _finish(self, directory: RunDirectory, licence: str) -> Path:
        """The dataset of what is sealed, and its card."""
        rows = {name: sealed_rows(directory.path, name, ROWS[name]) for name in WRITTEN}
        examples = unique(sealed_rows(directory.path, "examples", Example))
        roles = sorted({role for example in examples for role in example.models})
        card = {
            "kind": self.kind,
            "what became of what": dict(sealed_counts(directory.path)),
            "problems": {"used": len(self.checked.problems), "left out": self.checked.excluded},
            "generated tokens": {name: spent(found).generated_tokens for name, found in rows.items() if found},
            "models": {role: sorted({e.models[role] for e in examples if role in e.models}) for role in roles},
        }
        return write_sealed(directory, self.config, card, self.settings.model_dump(mode="json"), licence=licence)


def problems_of(collection: Path, given: Any) -> list[Problem]:
    """The problems of a collection, in its order: those given, those of its problems.jsonl, or the lab's by their ids.

    Raises DataError where the directory holds no collection, and for an id that is in none of them.

    Example:
        problems = problems_of(Path("out/int"), None)  # those that were collected for
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


def _collected_for(collection: Path, config: Config) -> dict[str, dict[str, list[Any]]]:
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
    """The lab's problem with that id, with its truth; DataError where it is none of the lab's.

    >>> lab_problem("lab/test/3").problem.id
    'lab/test/3'
    """
    head, _, number = name.rpartition("/")
    split = head.removeprefix("lab/")
    if not head.startswith("lab/") or split not in SPLITS or not number.isdecimal():
        raise DataError(f"problem {name!r} is none of the lab's; give `problems`, those that were collected for")
    return make(split, int(number))


def _is_file_or_name(source: str | Path) -> bool:
    """Whether it is no directory of a collection, but a file of problems or the name of a set of them."""
    return Path(source).is_file() if isinstance(source, Path) else not Path(source).is_dir()


def pairs(examples: Sequence[Example], failures: Iterable[FailedAttempt]) -> list[dict[str, Any]]:
    """Pairs for preference training such as DPO (arXiv 2305.18290): a row for each example whose attempt has a step in
    its place. `prompt` is the question, `chosen` and `rejected` are the kept prefix with the intervention and with the
    wrong step.

    What the two share cancels out of DPO's loss, so the prefix may stand in them, under whatever chat template. Both
    texts end in the middle of a solution: switch off an end-of-message token that a trainer would add. Raises DataError
    for an example whose attempt is not among the failures.

    Example:
        rows = pairs(read_stage("out/int", "examples"), read_stage("out/int", "failures"))
        adapter = dpo(read_pairs(rows), config, "out/dpo")
    """
    attempts = by_id(failures)
    rows = []
    for example in examples:
        steps = parent(attempts, example.parents.get("failure", ""), example.id).steps
        at = len(example.prefix)
        if at >= len(steps) or steps[at] == example.intervention:
            continue
        chosen, rejected = (
            join_steps((*example.prefix, step), example.splitter) for step in (example.intervention, steps[at])
        )
        rows.append({
            "id": example.id, "prompt": example.question, "chosen": chosen, "rejected": rejected,
            "answer": example.answer, "prompt_hash": example.prompt_hash,
        })  # fmt: skip
    return rows
