"""Find the first error of an attempt at a problem, show what is said of each step, and with --propose a step to put in
its place (InT, arXiv 2601.14209).

[critic], [models.critic] and [scorer] of the configuration say who is asked, and how. --compare asks about every row
of a labelled FILE and says how far that is above guessing a constant position, before anything is spent on it.
FILE (or standard input) holds one attempt:

- JSON: an object with question (or problem), steps (a list of texts) or solution (one text), and optionally reference,
  answer and id; a row of ProcessBench, or of a traces.jsonl, is taken as it is, and of a file with several the one that
  --row names
- text: the problem, a line ---, the attempt (steps end at blank lines), and optionally a line --- and a reference
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from cyclopts import Parameter
from pydantic import PositiveInt, ValidationError
from rich.padding import Padding

from stepwise import critics
from stepwise.config import Config
from stepwise.critics.asked import AskedRow, attempt_key, localizing, remembered
from stepwise.critics.inputs import as_steps
from stepwise.data.localization import above_constant, absent_number, count
from stepwise.data.processbench import ProcessBenchRow, read_rows
from stepwise.data.tables import parse_table
from stepwise.errors import BackendError, ConfigError, DataError
from stepwise.grading import Verdict, find_answer, grade
from stepwise.models.lab_judges import critics_of, refuse_lab_judge_of
from stepwise.records import from_json
from stepwise.report.terminal import printable, show_intervention, show_localization
from stepwise.runs.plan import PlannedCalls, plan_localizing, plan_proposing
from stepwise.runs.shell import PIPE, POSITIONAL, Options, Run, complain, program
from stepwise.steps import SplitMode, encodable, split_steps
from stepwise.types import Problem, Trace, Usage, as_problem

_FIELDS = ("id", "question", "problem", "steps", "solution", "reference", "answer", "label")


class _Attempt(NamedTuple):
    """A problem, the steps of an attempt at it, and, of a labelled row, its first wrong one (-1: there is none)."""

    problem: Problem
    steps: list[str]
    label: int | None = None


class _Options(Options):
    neutral = ("as_json", "file", "row", "propose", "n", "split", "first_error")

    file: Annotated[Path | None, POSITIONAL, PIPE] = None
    """the attempt; - or nothing: standard input"""
    row: PositiveInt | None = None
    """the Nth attempt of a file with several, from 1"""
    propose: bool = False
    """propose a step to put in the place of the first error"""
    compare: bool = False
    """ask about all rows of FILE, which has ProcessBench's columns, and compare with a constant guess"""
    n: PositiveInt | None = None
    """with --compare: the first N rows"""
    split: SplitMode = "paragraphs"
    """where a step of a whole solution ends; "numbered" and "lines" are for one without blank lines"""
    first_error: int | None = None
    """with --propose: it is step N (from 0), do not look for it"""
    as_json: Annotated[bool, Parameter("--json")] = False
    """print one JSON object on one line"""


def _plan(config: Config, args: _Options) -> list[PlannedCalls]:
    if args.compare:
        rows = _labelled(config, args)
        return plan_localizing(config, [_size(row.problem, [step.text for step in row.trace.steps]) for row in rows])
    attempt = _read(args)
    sizes = [_size(attempt.problem, attempt.steps)]
    looked_for = plan_localizing(config, sizes) if args.first_error is None else []
    return [*looked_for, *(plan_proposing(config, sizes) if args.propose else [])]


def _size(problem: Problem, steps: list[str]) -> tuple[int, int]:
    texts = (problem.question, problem.reference or "", *steps)
    return sum(len(text.encode("utf-8", "replace")) for text in texts), len(steps)


@program(_Options, doc=__doc__, plan=_plan, resumable=lambda args: args.compare or None)
def main(run: Run[_Options], module: Callable[[Config], Any] | None = None) -> int:
    if run.args.compare:
        return _compare(run, module)
    attempt, first, located, proposed = _read(run.args), run.args.first_error, None, None
    if first is None:
        located = _localized((module or critics.ErrorLocalizer.from_config)(run.config), run.config, attempt)
        first = located.first_error
        if not run.args.as_json:
            _show_located(run, attempt, located)
    if run.args.propose and first is not None and not (located and located.failure):
        proposer = critics.InterventionProposer.from_config(run.config)
        proposed = _asked(proposer, problem=attempt.problem, steps=attempt.steps, first_error=first)
        if not run.args.as_json:
            _show_proposed(run, attempt, proposed)
    failure = next((result.failure for result in (located, proposed) if result is not None and result.failure), None)
    if run.args.as_json:
        row = {"id": attempt.problem.id, "steps": attempt.steps, "label": attempt.label, "first_error": first}
        row |= {"split": run.args.split} if run.args.split != "paragraphs" else {}
        row |= _located_row(located) if located is not None else {}
        row |= _proposed_row(attempt, proposed) if run.args.propose else {}
        run.say_json(row | {"failure": failure})
    return int(failure is not None)


def _localized(module: Any, config: Config, attempt: _Attempt) -> Any:
    """The prediction of `module`."""
    located = _asked(module, problem=attempt.problem, steps=attempt.steps)
    try:
        refuse_lab_judge_of([attempt.problem.question], critics_of(config)["localizer"], "critic", config.allow_lab)
    except ConfigError as error:  # one verdict that is looked at is shown, with what it is worth
        located.warnings = [*located.warnings, str(error)]
    said, right = find_answer("\n\n".join(attempt.steps)).answer, attempt.problem.answer
    if located.first_error is None and not located.failure and said and right and grade(said, right) is Verdict.WRONG:
        located.warnings = [*located.warnings, f"the answer {said} is not {right}, so that some step is wrong"]
    return located


def _asked(module: Any, **item: Any) -> Any:
    """What `module` says; raises BackendError where its language model cannot be reached or refuses."""
    from dspy.utils.exceptions import LMError

    try:
        return module(**item)
    except LMError as error:
        raise BackendError(f"models.critic was asked and failed: {str(error).strip().splitlines()[0]}") from error


def _compare(run: Run[_Options], module: Callable[[Config], Any] | None) -> int:
    """Ask about every labelled row, until Ctrl-C, and print what that is worth beside a guess and the references."""
    rows, file = _labelled(run.config, run.args), "compared.jsonl"
    localizer = (module or critics.ErrorLocalizer.from_config)(run.config)
    try:
        known = remembered(run.rows(file, AskedRow), rows, partial(run.write, file), localizing(localizer, 1))
    except KeyboardInterrupt:
        known = {row.key: row for row in run.rows(file, AskedRow)}
    answered = [row for row in rows if attempt_key(row) in known]
    if len(answered) < len(rows):
        if not answered:
            raise KeyboardInterrupt
        run.say(f"interrupted after {len(answered)} of {len(rows)} rows, the same command goes on; of these:")
    code, rows = 0 if len(answered) == len(rows) else 130, answered
    said = [known[attempt_key(row)].outcome for row in rows]
    found = above_constant(said, rows)
    asked = {"scorer": run.config.scorer.title, "reference": "the references' numbers"}
    name = asked.get(run.config.critic.method, run.config.models.critic.model)
    lines, counts = {name: found}, count(said, rows)
    if run.config.critic.method != "reference" and all(row.problem.reference for row in rows):
        lines["the references' numbers"] = above_constant([absent_number(row) for row in rows], rows)
    failures = [outcome.error for outcome in said if outcome.error]
    run.refuse_failure(failures, len(said), "rows")
    if run.args.as_json:
        run.say_json({name: {**line._asdict(), "difference": line.difference} for name, line in lines.items()})
        return code
    for who, line in lines.items():
        run.say(f"{who}: {line}")
    if counts.right:
        run.say(f"{name}: {counts.cleared} of {counts.right} right attempts are found right")
    if failures:
        run.say(f"{len(failures)} of {len(said)} failed, for example: {failures[0].splitlines()[0][:160]}")
    if (gain := found.difference) is not None and gain.low <= 0:
        run.say('Interventions at places that are a guess are spent in vain: take a larger critic, or "reference".')
    return code


def _show_located(run: Run[_Options], attempt: _Attempt, located: Any) -> None:
    """Print problem, steps with verdicts, and what it took; what went wrong goes to standard error."""
    run.console.print(printable(attempt.problem.id, "bold"))
    run.console.print(Padding(printable(attempt.problem.question), (0, 0, 1, 2), expand=False))
    if located.failure is None:
        show_localization(attempt.steps, located, run.console)
        if attempt.label is not None:
            truth = "no error" if attempt.label < 0 else f"step {attempt.label}"
            agrees = (located.first_error if located.first_error is not None else -1) == attempt.label
            run.say(f"the row is labelled: {truth} ({'the same' if agrees else 'not the same'})")
    else:
        complain(f"no verdict: {located.failure}")
    _say_notes(run, located)


def _show_proposed(run: Run[_Options], attempt: _Attempt, proposed: Any) -> None:
    if proposed.failure is not None:
        complain(f"no intervention: {proposed.failure}")
    else:
        for candidate, review in zip(proposed.candidates, proposed.reviews, strict=True):
            show_intervention(attempt.steps, candidate, review, run.console)
    _say_notes(run, proposed)


def _say_notes(run: Run[_Options], result: Any) -> None:
    """What is to be known beside a result: warnings, repairs, cost."""
    for warning in result.warnings:
        run.say(f"warning: {warning}")
    for reason in result.repairs:
        run.say(f"a reply could not be read and was asked for again: {reason}")
    if (used := result.usage).calls:
        run.say(f"calls: {used.calls}, tokens read: {used.prompt_tokens}, written: {used.generated_tokens}")


def _plain(value: Any) -> Any:
    """`value` as JSON takes it."""
    if isinstance(value, Usage):
        return dataclasses.asdict(value)
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _located_row(located: Any) -> dict[str, Any]:
    votes = located.get("votes")
    return {
        **{name: located.get(name) for name in ("first_error", "critical_error", "verdicts", "scores")},
        "checks": [_plain(check) for check in located.get("checks") or []],
        "reason": located.localization.reason if located.localization else "",
        "votes": votes and {"none" if first is None else str(first): n for first, n in votes.items()},
        **{name: _plain(located[name]) for name in ("warnings", "repairs", "usage")},
    }


def _proposed_row(attempt: _Attempt, proposed: Any) -> dict[str, Any]:
    """`proposal` is null where nothing was proposed, `intervention` too where that failed."""
    step = proposed.intervention if proposed is not None else None
    return {
        "intervention": step and dataclasses.asdict(step),
        "repaired": step and [*attempt.steps[: step.location], step.content],
        "proposal": proposed and {
            "candidates": [
                {**dataclasses.asdict(candidate), "review": review and review.toDict()}
                for candidate, review in zip(proposed.candidates, proposed.reviews, strict=True)
            ],
            **{name: _plain(proposed[name]) for name in ("warnings", "repairs", "usage")},
        },
    }  # fmt: skip


def _labelled(config: Config, args: _Options) -> list[ProcessBenchRow]:
    """The rows that --compare asks about; raises DataError, and ConfigError for the lab's models on other problems."""
    if args.file is None or args.propose or args.row is not None or args.first_error is not None:
        raise DataError("--compare asks about all rows of a FILE; give one, without --row, --propose and --first-error")
    rows = read_rows(args.file)[: args.n]
    if not rows:
        raise DataError(f"{args.file} holds no rows; give a file with the columns problem, steps, label")
    refuse_lab_judge_of([r.problem.question for r in rows], critics_of(config)["localizer"], "critic", config.allow_lab)
    return rows


def _read(args: _Options) -> _Attempt:
    """The attempt that the arguments name; raises DataError naming the file, the field, the value and the remedy."""
    if args.n is not None:
        raise DataError("--n goes with --compare; --row chooses one attempt of a file")
    attempt, first = _read_attempt(args), args.first_error
    if first is not None and not args.propose:
        raise DataError(f"--first-error is {first}, and nothing is to be proposed; add --propose, or leave it out")
    if first is not None and not 0 <= first < len(attempt.steps):
        raise DataError(f"--first-error is {first}; give a step of the attempt, 0 to {len(attempt.steps) - 1}")
    return attempt


def _read_attempt(args: _Options) -> _Attempt:
    file = None if args.file == Path("-") else args.file
    where = "standard input" if file is None else str(file)
    if file is None and sys.stdin.isatty():
        raise DataError("there is no FILE, and nothing is piped in; give a file (--help says what it holds) or a pipe")
    if file is not None and not file.is_file():
        raise DataError(f"{where}: no such file; give a file with one attempt (--help says how it looks)")
    data = sys.stdin.buffer.read() if file is None else file.read_bytes()
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 ({error}); save it as UTF-8") from None
    parts = re.split(r"^---[ \t]*$", text, flags=re.MULTILINE)
    if len(parts) > 1 or not text.lstrip().startswith(("{", "[")):
        return _from_text(parts, where, args.split)
    try:
        rows = parse_table(data, where)
    except DataError as error:
        raise DataError(f"{error}, or write plain text, a line --- between problem and attempt") from None
    if args.row is None and len(rows) > 1 and isinstance(rows[0], Mapping):
        raise DataError(f"{where} holds {len(rows)} attempts; choose one with --row, 1 to {len(rows)}")
    if (place := args.row or 1) > len(rows):
        raise DataError(f"--row is {place}, but {where} holds {len(rows)} attempts; give a smaller number")
    return _from_row(rows[place - 1], where if len(rows) == 1 else f"{where}, row {place}", args.split)


def _from_text(parts: list[str], where: str, split: SplitMode) -> _Attempt:
    if not 2 <= len(parts) <= 3:
        raise DataError(
            f"{where} has {len(parts) - 1} lines ---; it needs one between problem and attempt, and one more before a "
            "reference (or write JSON)"
        )
    for name, text in zip(("problem", "attempt", "reference"), parts, strict=False):
        if not text.strip():
            raise DataError(f"{where}: the {name} is empty; write it, or leave out the line --- of a reference")
    problem, reference = as_problem(parts[0].strip()), parts[2].strip() if len(parts) == 3 else None
    return _Attempt(Problem(problem.id, problem.question, None, reference), as_steps(split_steps(parts[1], split)))


def _from_row(row: Any, where: str, split: SplitMode) -> _Attempt:
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is {str(row)[:80]!r}; it must be an object with question and steps")
    if isinstance(row.get("problem"), Mapping):
        try:
            trace = from_json(Trace, json.dumps(row))
        except ValidationError as error:
            detail = error.errors()[0]
            field = ".".join(map(str, detail["loc"]))
            raise DataError(f"{where}, field {field}: {detail['msg']}; give a row as traces.jsonl has it") from None
        return _Attempt(trace.problem, as_steps(trace))
    row = {"id" if name == "idx" else name: str(x) if name == "idx" else x for name, x in row.items()}
    for name in row:
        close = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.8)
        if name not in _FIELDS and close and close[0] not in row:
            raise DataError(f"{where}, field {name}: there is no such field; did you mean {close[0]}?")
    question = _one_of(row, ("question", "problem"), where)
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{where}, field question: it is {question!r}; give the text of a problem")
    question, texts = encodable(question), {}
    for name in ("id", "reference", "answer"):
        value = row.get(name)
        if not isinstance(value, str | None):
            raise DataError(f"{where}, field {name}: it is {value!r}; write it as a text, in quotes")
        texts[name] = value and encodable(value)
    given, label = _one_of(row, ("steps", "solution"), where), row.get("label")
    steps = as_steps(split_steps(given, split) if isinstance(given, str) else given)
    if label is not None and (type(label) is not int or not -1 <= label < len(steps)):
        raise DataError(f"{where}, field label: it is {label!r}; give a step's number, or -1 for no error")
    named = texts["id"] or as_problem(question).id
    return _Attempt(Problem(named, question, texts["answer"], texts["reference"]), steps, label)


def _one_of(row: Mapping[str, Any], names: tuple[str, str], where: str) -> Any:
    if len(given := [name for name in names if row.get(name) is not None]) != 1:
        what = "there" if given else f"missing (of {', '.join(row)}; `stepwise route` writes attempts: traces.jsonl)"
        raise DataError(f"{where}: the fields {names[0]} and {names[1]} are both {what}; give one of them")
    return row[given[0]]


if __name__ == "__main__":
    sys.exit(main())
