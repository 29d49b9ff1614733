"""What a localizer says of each step of an attempt, and what a proposer puts in place of one, in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, takewhile
from typing import Any

from rich.console import Console, RenderableType

from stepwise.report.terminal import COLOURS, indented, print_all, printable
from stepwise.types import Intervention

RIGHT, WRONG, UNKNOWN = "color(34)", "color(160)", "dim"
_MARKS = {True: ("✓", "right", RIGHT), False: ("✗", "wrong", WRONG), None: ("·", "not checked", UNKNOWN)}


def show_localization(steps: Sequence[str], found: Any, console: Console) -> None:
    """Print each step with its verdict and what it should be, the first error set apart.

    `found` is the prediction of an ErrorLocalizer without a failure.
    """
    print_all(console, _verdicts(steps, found))


def show_intervention(steps: Sequence[str], made: Intervention, review: Any, console: Console) -> None:
    """Print a proposed step, what its self-check said (None: there was none), and the attempt repaired up to there."""
    print_all(console, _repair(steps, made, review))


def _verdicts(steps: Sequence[str], found: Any) -> Iterator[RenderableType]:
    first, checks = found.first_error, _by_step(found.checks)
    scores = found.get("scores")
    for index, step in enumerate(steps):
        known = found.verdicts[index] if index < len(found.verdicts) else None
        mark, word, style = _MARKS[known]
        if index == first:
            mark, word, style = "✗", "FIRST ERROR" + _weight(found), f"{WRONG} bold"
            yield printable("")
        elif index == found.critical_error:
            word += ", critical error"
        score = f"  {scores[index]:.2f}" if scores else ""
        yield printable(f"{mark} step {index}  {word}{score}", style)
        yield indented(step, "" if index == first or known else "dim")
        row = checks.get(index)
        if row is not None and row.verdict == "wrong":
            yield indented(f"it says {row.quote}; it should be {row.expected}", style)
        elif index == first and found.localization.reason:
            yield indented(found.localization.reason, style)
        if index == first:
            yield printable("")
    if first is None:
        yield printable("")
        yield printable(f"Every step is right (of {len(steps)}).", f"{RIGHT} bold")


def _by_step(checks: Sequence[Any]) -> dict[int, Any]:
    """The rows that name step 0, 1, ... in order, as far as they do."""
    return {row.step: row for row, _ in takewhile(lambda pair: pair[0].step == pair[1], zip(checks, count()))}


def _weight(found: Any) -> str:
    if not found.checks:
        return ""
    if found.critical_error is None:
        return ", made up for by a later step"
    return ", never recovered from" if found.critical_error == found.first_error else ""


def _repair(steps: Sequence[str], made: Intervention, review: Any) -> Iterator[RenderableType]:
    style = COLOURS["intervention"]
    yield printable("")
    yield printable(f"The attempt up to there, with a new step {made.location}:", "bold")
    for index, step in enumerate(steps[: made.location]):
        yield printable(f"  step {index}", "dim")
        yield indented(step)
    yield printable(f"→ step {made.location}  intervention", f"{style} bold")
    yield indented(made.content, style)
    if review is not None:
        told = {
            "holds the final answer": review.contains_answer,
            "misses a key insight": review.misses_insight,
            "comes too late": review.too_late,
        }
        said = ", ".join(f"{what}: {'yes' if is_so else 'no'}" for what, is_so in told.items())
        yield indented(f"self-check: {said}", WRONG if any(told.values()) else "dim")
