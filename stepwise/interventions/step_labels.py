"""Labels for the steps of the weak model's own solutions: from rollouts of their beginnings, from a critic, or both.

`step_search` has the rules. Steps of solutions that ended right are called right by `bisect`, and of a problem that the
weak model never solves from the start rollouts tell nothing; the critic does.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stepwise.config import Config, Roles
from stepwise.data.problems import CheckedProblems, check_problems
from stepwise.data.step_labels import Label, LabelledSolution, write_step_labels
from stepwise.grading import Verdict, grade_many
from stepwise.interventions.chunks import working
from stepwise.interventions.pipeline import (
    Chunk,
    completed,
    grade_rollouts,
    locate_errors,
    rollout_request,
    sample_rollouts,
)
from stepwise.interventions.rows import FailedAttempt, by_id, first_of_each
from stepwise.interventions.settings import CollectSettings, Role, Writers
from stepwise.interventions.step_search import LabelSettings, bisect, every_step, is_bad
from stepwise.io import read_json, write_text
from stepwise.models.store import key_of
from stepwise.records import record, to_json
from stepwise.runs.chunks import run_chunks, sealed_rows
from stepwise.runs.directory import RunDirectory
from stepwise.seeds import seed_for
from stepwise.steps import extract_answer, join_steps
from stepwise.types import Problem, Usage

COST = "cost.json"
"""What labels cost and what became of what, beside the file that has them."""


@record()
class LabelledAttempt:
    """A solution with what was found out about its steps.

    `start` is (ended right, judged) of its problem's solutions, `tried` has (steps kept, ended right, judged) for each
    boundary that rollouts went on from. `labels` are those of the rollouts, `critic` those of the critic, empty where
    it was not asked or said nothing; `people` those that it came with. `note` says why there are no labels.

    >>> LabelledAttempt("p/r0", "1 + 1?", ("It is 3.",), False, (4, 8), labels=(0.0,)).tried
    ()
    """

    id: str
    question: str
    steps: tuple[str, ...]
    right: bool
    start: tuple[int, int]
    tried: tuple[tuple[int, int, int], ...] = ()
    labels: tuple[Label, ...] = ()
    critic: tuple[Label, ...] = ()
    people: tuple[Label, ...] = ()
    note: str = ""
    usage: Usage = Usage()


def label_steps(
    problems: Any,
    cfg: Config | str | Path,
    out: str | Path | RunDirectory,
    *,
    settings: LabelSettings | Mapping[str, Any] | None = None,
    writers: Writers | None = None,
    check: Sequence[tuple[Problem, LabelledSolution]] = (),
) -> Path:
    """Label the steps of the weak model's solutions of `problems`; returns `out`/labels.jsonl, with what they cost
    beside it.

    `check` are solutions with labels of people, and their problems with an answer: rollouts go on from these first, so
    that `read_attempts` says how often they name the same first error. Going on after an interruption needs no more
    than the same call. Raises as `collect` does.

    Example:
        problems = [lab.problem for lab in sw.lab.generate("train", 20)]
        label_steps(problems, sw.Config.lab(), "out/label_steps")
    """
    cfg, settings = Config.of(cfg, "cfg"), LabelSettings.of(settings, "settings")
    checked = problems if isinstance(problems, CheckedProblems) else check_problems(problems)
    members = [*_to_check(check, settings.check), *((problem, ()) for problem in checked.problems)]
    digest = key_of({"members": [to_json(part) for problem, given in members for part in (problem, *given)]})
    arguments = {**settings.model_dump(), "problems": digest}
    asks_critic = settings.by != "rollouts"
    roles: list[Roles] = ["weak", "critic"] if asks_critic else ["weak"]
    if asks_critic:
        (writers or Writers(cfg)).refuse_lab()
    with working(out, "label_steps", cfg, arguments, writers, roles) as (directory, crew):

        def finish() -> Path:
            rows = read_attempts(directory.path)
            path = directory.claim("labels.jsonl")
            write_step_labels(path, list(solutions_of(rows, settings.by, cfg)))
            write_text(directory.claim(COST), json.dumps(summary(rows, settings.by), indent=1) + "\n")
            return path

        return run_chunks(
            directory, members, settings.chunk, ["attempts"], partial(_work, cfg, settings), finish, crew=crew,
            label="labelling",
        )  # fmt: skip


def read_attempts(out: str | Path) -> list[LabelledAttempt]:
    """All attempts of the sealed chunks of a run, those with labels of people first.

    Example:
        rows = read_attempts("out/label_steps")
    """
    return sealed_rows(out, "attempts", LabelledAttempt)


def solutions_of(rows: Iterable[LabelledAttempt], by: str, cfg: Config) -> Iterable[LabelledSolution]:
    """What is trained on: the attempts that have labels, without those that came with labels of people. By "both", of
    the wrong ones those of which rollouts and critic name the same first error.

    >>> row = LabelledAttempt("p/r0", "1 + 1?", ("It is 3.",), False, (4, 8), labels=(0.0,), critic=())
    >>> [len([*solutions_of([row], by, Config())]) for by in ("rollouts", "both")]
    [1, 0]
    """
    for row in rows:
        labels = row.critic if by == "critic" else row.labels
        if by == "both" and not row.right and not _agree(row.labels, row.critic):
            continue
        if not row.people and any(label is not None for label in labels):
            yield LabelledSolution.of(row.question, row.steps, labels, by, splitter=cfg.prompt.splitter)


def summary(rows: Sequence[LabelledAttempt], by: str) -> dict[str, Any]:
    """What was spent and what became of what: how many attempts were labelled, undecided and disagreed about, and how
    often first errors are those that people named.

    >>> row = LabelledAttempt("p/r0", "1 + 1?", ("It is 3.",), False, (4, 8), labels=(0.0,))
    >>> summary([row], "rollouts")["attempts"]
    {'first error found': 1}
    """
    own, people = [row for row in rows if not row.people], [row for row in rows if row.people]
    wrong = [row for row in own if not row.right]
    both = [row for row in wrong if _place(row.labels) is not None and _place(row.critic) is not None]
    found = {name: [row for row in people if _place(getattr(row, name)) is not None] for name in ("labels", "critic")}
    same = {name: sum(_agree(getattr(row, name), row.people) for row in part) for name, part in found.items()}
    return {
        "generated tokens": sum((row.usage for row in rows), Usage()).generated_tokens,
        "attempts": dict(Counter(row.note or ("ended right" if row.right else "first error found") for row in own)),
        "rollouts": sum(judged for row in rows for *_, judged in row.tried),
        "first errors by both": len(both),
        "of these on another step": sum(not _agree(row.labels, row.critic) for row in both),
        "checked against people": len(people),
        "first errors found by rollouts, by the critic": [len(part) for part in found.values()],
        "of these the step that people named": list(same.values()),
    }


def tokens_of(paths: Iterable[Path]) -> int | None:
    """How many tokens models generated for the labels at `paths` (runs, or the files in them), None where none says.

    >>> tokens_of([Path("labels.jsonl")]) is None
    True
    """
    files = [(path if path.is_dir() else path.parent) / COST for path in paths]
    name = "generated tokens"
    known = [read_json(file, "remove it", {name: int})[name] for file in files if file.is_file()]
    return sum(known) if known else None


def _place(labels: Sequence[Label]) -> int | None:
    return labels.index(0.0) if 0.0 in labels else None


def _agree(labels: Sequence[Label], others: Sequence[Label]) -> bool:
    return _place(labels) is not None and _place(labels) == _place(others)


def _to_check(
    check: Sequence[tuple[Problem, LabelledSolution]], most: int
) -> list[tuple[Problem, list[LabelledSolution]]]:
    """Solutions with a first error by problem, at most so many, under ids of their own."""
    groups: dict[str, tuple[Problem, list[LabelledSolution]]] = {}
    for problem, s in [pair for pair in check if pair[1].complete and pair[1].first_error is not None][:most]:
        of_check = dataclasses.replace(problem, id=f"check/{problem.id}")
        groups.setdefault(of_check.id, (of_check, []))[1].append(s)
    return list(groups.values())


def _work(
    cfg: Config, settings: LabelSettings, models: Writers, members: Sequence[tuple[Problem, Sequence[LabelledSolution]]]
) -> dict[str, Sequence[Any]]:
    cached: list[Role] = ["weak", "localizer"] if settings.by != "rollouts" else ["weak"]
    models.reset_caches(*cached)
    sampled = CollectSettings(
        rollouts=settings.attempts, max_tokens=settings.max_tokens, concurrency=settings.concurrency
    )
    part = Chunk(by_id(problem for problem, _ in members), models, cfg, sampled)
    return {"attempts": _label_chunk(part, {p.id: given for p, given in members if given}, settings)}


def _label_chunk(
    chunk: Chunk, given: Mapping[str, Sequence[LabelledSolution]], settings: LabelSettings
) -> list[LabelledAttempt]:
    """All attempts of a chunk's problems that get labels."""
    rollouts = grade_rollouts(sample_rollouts(chunk, chunk.writers.weak), chunk.problems)
    rows: dict[str, LabelledAttempt] = {}
    owners: dict[str, Problem] = {}
    for problem in chunk.problems.values():
        own = [row for row in rollouts if row.problem == problem.id]
        judged = [row for row in own if row.verdict in (Verdict.CORRECT, Verdict.WRONG, Verdict.NO_ANSWER)]
        start = (sum(row.verdict is Verdict.CORRECT for row in judged), len(judged))
        several = first_of_each([row for row in judged if row.steps], lambda row: row.steps)
        chosen = first_of_each(several, lambda row: row.verdict is Verdict.CORRECT, settings.labelled)
        attempts = [
            LabelledAttempt(row.id, problem.question, row.steps, row.verdict is Verdict.CORRECT, start)
            for row in ([] if problem.id in given else chosen)
        ] + [
            LabelledAttempt(f"{problem.id}/p{i}", problem.question, s.steps, False, start, people=s.labels)
            for i, s in enumerate(given.get(problem.id, ()))
        ]
        spent = sum((row.usage for row in own), Usage())
        for i, row in enumerate(attempts):  # what the problem's solutions cost stands with the first of them
            note = "" if start[0] or settings.by == "critic" else "never solved from the start"
            rows[row.id] = dataclasses.replace(row, note=note, usage=spent if not i else Usage())
            owners[row.id] = problem
    open_rows = [row for row in rows.values() if not row.note]
    for row in open_rows:
        if row.right:
            rows[row.id] = dataclasses.replace(row, labels=(1.0,) * len(row.steps), critic=(1.0,) * len(row.steps))
    wrong = [row for row in open_rows if not row.right]
    if settings.by != "critic":
        asked = wrong if settings.label == "bisect" else open_rows
        rows |= by_id(_Rollouts(chunk, settings, owners).label([rows[row.id] for row in asked]))
    if settings.by != "rollouts":
        failures = [_failed(row, owners, chunk) for row in wrong]
        for located in locate_errors(failures, chunk):
            row = rows[located.failure]
            named = not located.failed and located.first_error is not None
            critic = LabelledSolution.of_first_error(row.question, row.steps, located.first_error).labels
            rows[row.id] = dataclasses.replace(
                row, critic=critic if named else (), usage=row.usage + located.usage,
                note=row.note or ("" if named or row.labels else "the critic names no error"),
            )  # fmt: skip
    return list(rows.values())


def _failed(row: LabelledAttempt, owners: Mapping[str, Problem], chunk: Chunk) -> FailedAttempt:
    return FailedAttempt(row.id, owners[row.id].id, row.steps, None, Verdict.WRONG, splitter=chunk.splitter)


class _Rollouts:
    """Rollouts of the weak model from the boundaries of attempts, those of all attempts in common batches."""

    def __init__(self, chunk: Chunk, settings: LabelSettings, owners: Mapping[str, Problem]) -> None:
        self.chunk, self.settings, self.owners = chunk, settings, owners
        self.counts: dict[str, dict[int, tuple[int, int]]] = {}
        self.usage: dict[str, Usage] = {}

    def label(self, rows: Sequence[LabelledAttempt]) -> list[LabelledAttempt]:
        """The rows with labels, counts and usage."""
        self.counts, self.usage = {row.id: {} for row in rows}, {row.id: Usage() for row in rows}
        labels = self._bisected(rows) if self.settings.label == "bisect" else self._rated(rows)
        return [
            dataclasses.replace(
                row, labels=labels[row.id], usage=row.usage + self.usage[row.id],
                tried=tuple((place, *counts) for place, counts in sorted(self.counts[row.id].items())),
                note="undecided" if self.settings.label == "bisect" and 0.0 not in labels[row.id] else "",
            )
            for row in rows
        ]  # fmt: skip

    def _bisected(self, rows: Sequence[LabelledAttempt]) -> dict[str, tuple[Label, ...]]:
        settings, labels = self.settings, dict[str, tuple[Label, ...]]()
        starts = self._starts(rows)
        searches = {row.id: bisect(len(row.steps)) for row in rows}
        wanted: dict[str, int] = {}

        def go_on(row: LabelledAttempt, step: Callable[[], int]) -> None:
            try:
                wanted[row.id] = step()
            except StopIteration as done:
                labels[row.id] = done.value
                wanted.pop(row.id, None)

        for row in rows:
            go_on(row, lambda search=searches[row.id]: next(search))  # type: ignore[misc]
        while wanted:
            self._ask([(row, wanted[row.id]) for row in rows if row.id in wanted])
            for row in [row for row in rows if row.id in wanted]:
                right, judged = self.counts[row.id][wanted[row.id]]
                bad = is_bad(right, judged, starts[self.owners[row.id].id], settings.level)
                if bad is not None or judged + settings.rollouts > settings.most:
                    go_on(row, lambda search=searches[row.id], bad=bad: search.send(bad))  # type: ignore[misc]
        return labels

    def _starts(self, rows: Sequence[LabelledAttempt]) -> dict[str, tuple[int, int]]:
        """The rate at the start of each problem (its id), from as many rollouts as a boundary gets at most: every
        boundary is compared with it, and what is not known of it no rollout elsewhere makes good.
        """
        first = {self.owners[row.id].id: row for row in reversed(rows)}
        if (more := self.settings.most - self.settings.attempts) > 0:
            self._ask([(row, 0) for row in first.values()], more)
        counts = {name: (row.start, self.counts[row.id].get(0, (0, 0))) for name, row in first.items()}
        return {name: (start[0] + new[0], start[1] + new[1]) for name, (start, new) in counts.items()}

    def _rated(self, rows: Sequence[LabelledAttempt]) -> dict[str, tuple[Label, ...]]:
        self._ask([(row, place) for row in rows for place in range(1, len(row.steps))])
        labels = {}
        for row in rows:
            counts = [row.start, *(self.counts[row.id][place] for place in range(1, len(row.steps)))]
            rates = [right / judged if judged else None for right, judged in counts]
            labels[row.id] = every_step([*rates, float(row.right)], self.settings.label, self.settings.progress)
        return labels

    def _ask(self, wanted: Sequence[tuple[LabelledAttempt, int]], n: int | None = None) -> None:
        """Count `n` (None: `settings.rollouts`) more rollouts of each attempt from behind so many of its steps."""
        chunk, requests = self.chunk, []
        for row, place in wanted:
            prefix = _failed(row, self.owners, chunk).trace(self.owners[row.id]).prefix(place).steps
            asked = self.counts[row.id].setdefault(place, (0, 0))[1]
            seed = seed_for(chunk.config.seed, row.id, "boundary", place, asked)
            requests.append(rollout_request(chunk, self.owners[row.id], prefix, seed, n or self.settings.rollouts))
        texts = completed(chunk.writers.weak, requests, "going on from boundaries")
        whole = [
            join_steps([*(step.text for step in request.prefix), text.text], chunk.splitter) for text, request in texts
        ]
        golds = [request.problem.answer for _, request in texts]
        verdicts = grade_many(list(zip(map(extract_answer, whole), golds, strict=True)))
        for (text, _), verdict in zip(texts, verdicts, strict=True):
            row, place = wanted[text.request]
            right, judged = self.counts[row.id][place]
            known = text.finish != "error" and verdict in (Verdict.CORRECT, Verdict.WRONG, Verdict.NO_ANSWER)
            self.counts[row.id][place] = (right + (known and verdict is Verdict.CORRECT), judged + known)
            self.usage[row.id] += text.usage
