"""What goes into a module's prompt: steps, question and reference of an attempt, checked and made to fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stepwise.data.problems import load_problems
from stepwise.errors import DataError
from stepwise.models.scorers.base import texts_of
from stepwise.steps import encodable
from stepwise.types import Problem, Step, Trace

Steps = Sequence[str | Step] | Trace | str
"""An attempt: its steps, a trace, or a whole solution, which is split."""


def as_steps(steps: Steps) -> list[str]:
    r"""The texts of the steps of an attempt; a whole solution is split. Raises DataError where there are none.

    >>> as_steps("1 + 1 = 2.\n\nSo it is 2.")
    ['1 + 1 = 2.', 'So it is 2.']
    """
    found = texts_of(steps)
    for index, text in enumerate(found):
        if not text.strip():
            raise DataError(f"steps[{index}] is {text!r}; give the text of a step")
    if not found:
        raise DataError("steps is empty: there is nothing to check; give at least one step")
    return [encodable(text.strip("\n")) for text in found]  # line ends that a step may hold say nothing to a critic


def attempt_of(names: Sequence[str], args: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a module by name. `question` is another name of `problem`; a trace, or what has one (a router's
    prediction), brings its problem along, which its id stands for too. Raises DataError where there is no problem.

    >>> attempt_of(["problem", "steps"], [], {"question": "1 + 1?", "steps": ["It is 3."]})
    {'steps': ['It is 3.'], 'problem': '1 + 1?'}
    """
    given = {**dict(zip(names, args, strict=False)), **named}
    if "steps" not in names or "problem" not in names:
        return given
    if "question" in given:
        if given.get("problem") is not None:
            raise DataError("problem and question are both given; give one of the two")
        given["problem"] = given.pop("question")
    trace = given.get("steps")
    trace = trace if isinstance(trace, Trace) else getattr(trace, "trace", None)
    if isinstance(trace, Trace):
        given["steps"] = trace
        if given.get("problem") in (None, trace.problem.id):
            given["problem"] = trace.problem
    elif given.get("problem") is None:
        raise DataError("problem is missing; give the question, or as steps a trace, which knows it")
    if isinstance(given["problem"], Mapping) or hasattr(given["problem"], "toDict"):
        given["problem"] = load_problems(given["problem"])[0]
    return given


def question_and_reference(problem: Problem | str, reference: str | None) -> tuple[str, str | None]:
    """The texts that go into a prompt; `reference` defaults to the problem's own. Raises DataError for no question.

    >>> question_and_reference(Problem("p", "1 + 1?", reference="One and one is 2."), None)
    ('1 + 1?', 'One and one is 2.')
    """
    question = problem.question if isinstance(problem, Problem) else problem
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"problem is {question!r}; give the text of a problem")
    if reference is None and isinstance(problem, Problem):
        reference = problem.reference
    if not isinstance(reference, str | None):
        raise DataError(f"reference is {reference!r}; give the text of a right solution, or None")
    return _lines(question), _lines(reference) if reference is not None and reference.strip() else None


def _lines(text: str) -> str:
    """`text` with one kind of line end, so that what a format does at line beginnings misses none."""
    return "\n".join(encodable(text).splitlines())


def _cut_middle(text: str, longest: int, name: str, warnings: list[str]) -> str:
    """`text`, or its beginning and end with a mark between them, and a line in `warnings`."""
    if len(text) <= longest:
        return text
    kept = max(0, longest - 40)
    left_out = len(text) - kept
    warnings.append(f"{name} has {len(text)} characters; {left_out} in its middle were left out")
    return f"{text[: kept - kept // 2]} [... {left_out} characters left out ...] {text[len(text) - kept // 2 :]}"


def fitted(
    question: str, reference: str | None, steps: Sequence[str], longest: int
) -> tuple[str, str | None, list[str], list[str]]:
    """The three parts within `longest` characters in all, and warnings of what was left out.

    First the middle of the reference goes, then that of the longest steps, last that of the question; every step keeps
    its place, its number and its end. What is too long even so is left, with a warning.

    >>> _, reference, _, warnings = fitted("1 + 1?", "x" * 500, ["It is 3."], longest=300)
    >>> len(reference) < 300, len(warnings)
    (True, 1)
    """
    warnings: list[str] = []
    kept = list(steps)
    overflow = len(question) + len(reference or "") + sum(map(len, kept)) - longest
    if overflow > 0 and reference is not None:
        shorter = _cut_middle(reference, max(len(reference) - overflow, longest // 4), "the reference", warnings)
        overflow -= len(reference) - len(shorter)
        reference = shorter
    while overflow > 0 and max(map(len, kept)) > 200:
        place = max(range(len(kept)), key=lambda i: len(kept[i]))
        shorter = _cut_middle(kept[place], max(200, len(kept[place]) - max(overflow, 100)), f"step {place}", warnings)
        overflow -= len(kept[place]) - len(shorter)
        kept[place] = shorter
    if overflow > 0:
        shorter = _cut_middle(question, max(400, len(question) - overflow), "the problem", warnings)
        overflow -= len(question) - len(shorter)
        question = shorter
    if overflow > 0:
        warnings.append(f"what is left has {longest + overflow} characters, more than max_chars={longest}; it is sent")
    return question, reference, kept, warnings
