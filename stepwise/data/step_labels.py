"""Solutions with a label for each step, what a scorer is trained on and measured against.

`load_step_labels` reads the columns of published sets:

| set | columns | a step is right where |
|---|---|---|
| ours (`write_step_labels`) | question, steps, labels | its label says so, 0 to 1 |
| ProcessBench, arXiv 2412.06559 | problem, steps, label | it stands before the first error; what follows has no label |
| MR-GSM8K, arXiv 2312.17080 | question, model_output_steps, model_output_solution_first_error_step | the same |
| PRM800K, arXiv 2305.20050 | question, label, each with fields of its own | its rating is 1, or 0 (neutral), as there |
| Math-Shepherd, arXiv 2312.08935 | input, label | its mark is + |
| TRL's form of both | prompt, completions, labels | its label is true |

Every alternative step that PRM800K rated is a solution of its own: only that step has a label.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from stepwise.data.processbench import ProcessBenchRow, from_row
from stepwise.data.tables import read_table
from stepwise.errors import DataError, NothingToLearnError
from stepwise.io import write_rows
from stepwise.records import record
from stepwise.runs.progress import announce
from stepwise.seeds import seed_for
from stepwise.steps import Splitter, join_steps, split_steps
from stepwise.types import Localization, Step, Trace, as_problem

Label = Annotated[float, Field(ge=0, le=1)] | None
Scores = Sequence[Sequence[float]]
_MARK = "ки"  # Math-Shepherd's
_NUMBER = re.compile(r"Step \d+:\s*")
_FEWEST = 10  # problems
_OTHERWISE = 0.05  # share of solutions


@record(allow_inf_nan=False)
class LabelledSolution:
    """A solution with a label for each step: 1 right, 0 wrong, between them a share, None where nothing is known.

    `problem_id` is the same for the same question. `source` says who gave the labels, `splitter` where the steps were
    ended. Raises DataError unless there are as many labels as steps.

    >>> LabelledSolution.of("1 + 1?", ["It is 2.", "So 3."], [1, 0]).first_error
    1
    """

    problem_id: str
    question: str
    steps: tuple[str, ...]
    labels: tuple[Label, ...]
    source: str = ""
    splitter: Splitter = "paragraphs"

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.steps) or not self.steps:
            raise DataError(
                f"LabelledSolution {self.problem_id!r}: {len(self.labels)} labels for {len(self.steps)} steps; give "
                "one for each step, None where it is not known, and at least one step"
            )

    @classmethod
    def of(
        cls, question: str, steps: Sequence[str], labels: Sequence[float | None], source: str = "", **fields: Any
    ) -> LabelledSolution:
        """With the id that the question has."""
        return cls(as_problem(question).id, question, tuple(steps), tuple(labels), source, **fields)

    @classmethod
    def of_first_error(
        cls, question: str, steps: Sequence[str], first: int | None, source: str = ""
    ) -> LabelledSolution:
        """Right before step `first` (0-based), wrong there, without labels after it; right throughout for None."""
        labels = [1.0 if first is None or i < first else 0.0 if i == first else None for i in range(len(steps))]
        return cls.of(question, steps, labels, source)

    @property
    def first_error(self) -> int | None:
        """The first step whose label is below one half, None where there is none."""
        return next((i for i, label in enumerate(self.labels) if label is not None and label < 0.5), None)

    @property
    def judged(self) -> range:
        """The steps up to and including the first error: what scorers are measured on."""
        return range(len(self.steps) if self.first_error is None else self.first_error + 1)

    @property
    def complete(self) -> bool:
        """Whether every step up to the first error has a label, so that it is known which one is the first."""
        return all(self.labels[i] is not None for i in self.judged)

    def as_row(self) -> ProcessBenchRow:
        """As `data.localization` takes it."""
        problem = as_problem(self.question)
        return ProcessBenchRow(
            problem, Trace(problem, tuple(Step(text, "") for text in self.steps)), Localization(self.first_error)
        )


def load_step_labels(source: str | Path | Any) -> list[LabelledSolution]:
    """The labelled solutions, each once, of a file or a dataset in any of the forms above, or a run of `label_steps`.

    Raises DataError naming file, row and field for a row that is none of them.

    >>> row = {"problem": "1 + 1?", "steps": ["It is 2.", "So 3.", "Done."], "label": 1}
    >>> load_step_labels([row])[0].labels
    (1.0, 0.0, None)
    """
    if isinstance(source, list | tuple) and all(isinstance(row, LabelledSolution) for row in source):
        return list(source)
    rows, where = read_table(source, prefer="labels")
    solutions: dict[LabelledSolution, None] = {}
    for number, row in enumerate(rows, 1):
        place = f"{where}, row {number}"
        columns = set(row) if isinstance(row, Mapping) else set()
        reader = next((read for needed, read in _READERS if needed <= columns), None)
        if reader is None:
            forms = "; ".join(", ".join(sorted(needed)) for needed, _ in _READERS)
            raise DataError(f"{place} has the columns {', '.join(columns) or 'of no row'}; labelled steps have {forms}")
        try:
            solutions |= dict.fromkeys(reader(row, place))
        except DataError as error:
            raise DataError(str(error) if str(error).startswith(place) else f"{place}: {error}") from None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{place} is not in the published form ({type(error).__name__}: {error})") from None
    return list(solutions)


def write_step_labels(path: str | Path, solutions: Sequence[LabelledSolution]) -> None:
    """JSON Lines for `load_step_labels`, whole or not at all. Example: `write_step_labels("mine.jsonl", solutions)`."""
    write_rows(path, solutions)


class LabelSplits(NamedTuple):
    """Labelled solutions that share no problem. Example: `splits = split_by_problem(solutions); len(splits.test)`."""

    train: list[LabelledSolution]
    validation: list[LabelledSolution]
    test: list[LabelledSolution]


def split_by_problem(
    solutions: Sequence[LabelledSolution], seed: int = 0, shares: tuple[float, float] = (0.15, 0.25)
) -> LabelSplits:
    """Shares of the problems for validation and test, the others for training; which ones follows from the seed and
    the problems' ids alone.

    >>> solutions = [LabelledSolution.of(f"{n} + 1?", ["It is 2."], [float(n == 1)]) for n in range(20)]
    >>> [len(part) for part in split_by_problem(solutions)]
    [12, 3, 5]
    """
    ids = sorted({s.problem_id for s in solutions}, key=lambda name: (seed_for(seed, "labels", name), name))
    first, second = round(shares[0] * len(ids)), round(sum(shares) * len(ids))
    part = {name: 1 if i < first else 2 if i < second else 0 for i, name in enumerate(ids)}
    return LabelSplits(*([s for s in solutions if part[s.problem_id] == i] for i in range(3)))


def with_splitter(solutions: Sequence[LabelledSolution], splitter: Splitter) -> list[LabelledSolution]:
    """The solutions whose steps end where `splitter` ends them; how many others were left out is said. Raises DataError
    where those are more than a twentieth: these labels are of other steps than the models of a run write.

    >>> with_splitter([LabelledSolution.of("1 + 1?", ["Add.", "It is 2."], [1, 1])], "paragraphs")[0].steps
    ('Add.', 'It is 2.')
    """

    def fits(s: LabelledSolution) -> bool:
        return s.splitter == splitter and split_steps(join_steps(s.steps, splitter), splitter) == list(s.steps)

    fitting = [s for s in solutions if fits(s)]
    if others := [s for s in solutions if not fits(s)]:
        first = others[0]
        told = (
            f"{len(others)} of {len(solutions)} labelled solutions have steps that do not end where prompt.splitter = "
            f"{splitter!r} ends them (first {first.problem_id!r}, labelled under {first.splitter!r})"
        )
        if len(others) > _OTHERWISE * len(solutions):
            raise DataError(f"{told}; set the splitter of the labels, or label solutions that were split so")
        announce(f"{told}; they are left out")
    return fitting


def check_step_labels(splits: LabelSplits) -> None:
    """Raise NothingToLearnError where nothing can be trained and measured on these, before anything is computed: too
    few problems, or a part without right steps or without first errors. Example: `check_step_labels(splits)`.
    """
    problems = {s.problem_id for part in splits for s in part}
    if len(problems) < _FEWEST:
        raise NothingToLearnError(
            f"the labels are of {len(problems)} problems; give {_FEWEST} at least, hundreds for figures worth reading"
        )
    for name, part in splits._asdict().items():
        wrong = sum(s.first_error is not None for s in part)
        right = sum(label is not None and label >= 0.5 for s in part for label in s.labels)
        if not wrong or not right:
            raise NothingToLearnError(
                f"the {len(part)} {name} solutions have {right} right steps and {wrong} first errors; both are "
                "needed, so give more problems"
            )


# ----- readers: rows as published


def _ours(row: Mapping[str, Any], where: str) -> Iterator[LabelledSolution]:
    fields = {name: row[name] for name in ("source", "splitter") if row.get(name)}
    yield LabelledSolution.of(row["question"], row["steps"], row["labels"], **fields)


def _processbench(row: Mapping[str, Any], where: str) -> Iterator[LabelledSolution]:
    read = from_row(row, where)
    steps = [step.text for step in read.trace.steps]
    yield LabelledSolution.of_first_error(read.problem.question, steps, read.localization.first_error, "processbench")


def _mr_gsm8k(row: Mapping[str, Any], where: str) -> Iterator[LabelledSolution]:
    steps, first = row["model_output_steps"], row["model_output_solution_first_error_step"]
    steps = split_steps(steps, "lines") if isinstance(steps, str) else steps
    place = None if str(row["model_output_solution_correctness"]).lower() in ("correct", "true") else int(first) - 1
    if place is not None and not 0 <= place < len(steps):
        raise DataError(f"field model_output_solution_first_error_step: {first!r}; it must lie in 1..{len(steps)}")
    yield LabelledSolution.of_first_error(row["question"], steps, place, "mr-gsm8k")


def _prm800k(row: Mapping[str, Any], where: str) -> Iterator[LabelledSolution]:
    question, before, labels = row["question"]["problem"], list[str](), list[float | None]()
    for step in row["label"]["steps"]:
        rated = [(c["text"], None if c["rating"] is None else float(c["rating"] >= 0)) for c in step["completions"]]
        chosen = step["chosen_completion"]
        human = step.get("human_completion") if chosen is None else None
        # Where none was chosen, labelling stopped: the first completion is the solution's own step.
        place = None if human else chosen or 0
        for i, (text, label) in enumerate(rated):
            if i != place and label is not None:
                yield LabelledSolution.of(question, [*before, text], [None] * len(before) + [label], "prm800k")
        written = (human if isinstance(human, str) else human["text"], 1.0) if human else rated[place or 0]
        before, labels = [*before, written[0]], [*labels, written[1]]
    if any(label is not None for label in labels):
        yield LabelledSolution.of(question, before, labels, "prm800k")


def _math_shepherd(row: Mapping[str, Any], where: str) -> Iterator[LabelledSolution]:
    *pieces, rest = row["input"].split(_MARK)
    text, at, labels = row["label"], 0, list[float]()
    for piece in pieces:  # the two texts are the same but for a mark of one character, so that places are known
        at += len(piece) + 1
        if text[at - 1 - len(piece) : at - 1] != piece or text[at - 1] not in "+-":
            raise DataError(f"field label: it differs from input at step {len(labels) + 1} by more than + or -")
        labels.append(float(text[at - 1] == "+"))
    if rest.strip() or not pieces:
        raise DataError(f"field input: it must end with the mark {_MARK!r} of its last step")
    question, _, first = pieces[0].rpartition("Step 1:")
    steps = [_NUMBER.sub("", piece.strip(), count=1) for piece in [first, *pieces[1:]]]
    yield LabelledSolution.of(question.strip(), steps, labels, "math-shepherd")


def _trl(row: Mapping[str, Any], where: str) -> Iterator[LabelledSolution]:
    yield LabelledSolution.of(row["prompt"], row["completions"], [float(label) for label in row["labels"]], "trl")


_READERS: tuple[tuple[set[str], Callable[[Mapping[str, Any], str], Iterator[LabelledSolution]]], ...] = (
    ({"question", "steps", "labels"}, _ours),
    ({"problem", "steps", "label"}, _processbench),
    ({"question", "model_output_steps", "model_output_solution_first_error_step"}, _mr_gsm8k),
    ({"prompt", "completions", "labels"}, _trl),
    ({"input", "label"}, _math_shepherd),
    ({"question", "label"}, _prm800k),
)
