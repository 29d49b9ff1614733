r"""Hints: steps that are written ahead of every rollout of a problem, so that a group starts where it can succeed.

What differs from POPE (arXiv 2601.18779): a hint is forced text of the solution itself, not an instruction in the
prompt, so nothing on it is trained; and which problems of a run have one is for the caller to say (a hinted copy of a
problem is a problem with another id).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from stepwise.config.training import CreditConfig
from stepwise.data.examples import Example
from stepwise.errors import ConfigError, DataError
from stepwise.steps import SEPARATOR, next_fence, split_steps
from stepwise.types import Problem

Hints = Mapping[str, tuple[str, ...]]
SCHEMES = ("outcome", "distill")
"""Credit schemes that ask nothing about single steps: others would be asked about steps that nobody sampled."""
_BOXES = ("\\boxed", "\\fbox", "<think>", "</think>")


def check_hints(hints: Mapping[str, Sequence[str]], problems: Iterable[Problem], cfg: CreditConfig) -> Hints:
    """The hints, by problem id, in the form of `split_steps`.

    Raises ConfigError for a credit scheme that judges steps; DataError, naming the problem, for an id that no problem
    has, an empty hint, one that is a text instead of steps, one that holds an answer, and an open code fence.
    """
    if hints and cfg.scheme not in SCHEMES:
        raise ConfigError(
            f'rl.credit.scheme is "{cfg.scheme}", which judges steps, and those of a hint are not the policy\'s; with '
            f"hints set {' or '.join(SCHEMES)}"
        )
    known, found = {problem.id for problem in problems}, {}
    for name, steps in hints.items():
        where = f"the hint of problem {name!r}"
        if name not in known:
            raise DataError(f"hints name the problem {name!r}, which is not among the problems; leave it out")
        if isinstance(steps, str):
            raise DataError(f"{where} is a text ({steps!r:.60}); give its steps, such as split_steps(text)")
        text = SEPARATOR.join(steps)
        if not (hint := tuple(split_steps(text))):
            raise DataError(f"{where} has no text ({list(steps)!r:.60}); give at least one step, or leave it out")
        if held := next((mark for mark in _BOXES if mark in text), None):
            raise DataError(f"{where} holds {held} ({hint[-1]!r:.60}); end it before the answer, and without reasoning")
        fence = ""
        for line in text.split("\n"):
            fence = next_fence(fence, line)
        if fence:
            raise DataError(f"{where} leaves a code fence open ({fence}); close it")
        found[name] = hint
    return found


def hints_of(rows: Iterable[Example], problems: Iterable[Problem]) -> dict[str, tuple[str, ...]]:
    """Prefix and intervention of the first row of each problem that has one, by problem id; rows of others are left.

    Raises DataError where no row belongs to any of the problems, for a row of a whole solution or of first tokens, and
    for one whose question is not that of the problem with its id.
    """
    known, found = {problem.id: problem for problem in problems}, {}
    for row in rows:
        name = row.parents.get("problem", "")
        if name not in known or name in found:
            continue
        if row.complete or row.origin == "first_tokens":
            raise DataError(
                f"row {row.id!r} is no step to go on from (origin {row.origin}); give hints as interventions"
            )
        if row.question != known[name].question:
            raise DataError(
                f"row {row.id!r}: its question is not that of problem {name!r} ({row.question!r:.60}); give the "
                "problems that the interventions were made from"
            )
        found[name] = (*row.prefix, *split_steps(row.intervention))
    if not found:
        raise DataError("no row of the hints belongs to any of the problems (parents.problem); give rows of theirs")
    return found
