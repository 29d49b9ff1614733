"""The columns of the table, defined once for the page and the terminal, and how numbers are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from stepwise.routing.compare import PolicyRow

MISSING = "–"


class _Column(NamedTuple):
    """One column: its heading, what it means, how a row is written in it, and the value it is sorted by.

    Where there is little room, as in a terminal of 80 columns, only those that are not `extra` are shown.
    """

    title: str
    hint: str
    text: Callable[[PolicyRow], str]
    value: Callable[[PolicyRow], float | str | None]
    extra: bool = False


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as a percentage, e.g. 0.785 -> "78.5 %"."""
    return MISSING if value is None else f"{100 * value:.{digits}f} %"


def count(value: float | None) -> str:
    """A count with thousands separators."""
    return MISSING if value is None else f"{value:,.0f}"


def quantity(value: float | None) -> str:
    """A large number with three digits and an SI suffix, e.g. 12_340_000 -> "12.3 M"."""
    if value is None:
        return MISSING
    size, suffix = float(value), ""
    for suffix in ("", "k", "M", "G", "T", "P", "E"):
        if size < 999.5 or suffix == "E":
            break
        size /= 1000
    digits = 0 if size >= 99.95 or size == int(size) else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {suffix}".rstrip()


def _seconds(value: float | None) -> str:
    """A duration in seconds, one decimal below 100."""
    return MISSING if value is None else f"{value:,.{1 if value < 100 else 0}f}"


def interval(row: PolicyRow) -> str:
    """The 95 % interval of the accuracy, in percent."""
    if row.accuracy_low is None or row.accuracy_high is None:
        return MISSING
    return f"{100 * row.accuracy_low:.1f}–{100 * row.accuracy_high:.1f}"


COLUMNS: tuple[_Column, ...] = (
    _Column("Policy", "the rule that keeps or escalates, and its setting", lambda r: r.policy, lambda r: r.policy),
    _Column("Accuracy", "share of problems answered right", lambda r: percent(r.accuracy), lambda r: r.accuracy),
    _Column("95 % interval", "of the accuracy, in percent", interval, lambda r: r.accuracy_low, extra=True),
    _Column(
        "Strong share",
        "share of the kept tokens that the strong model wrote",
        lambda r: percent(r.strong_share),
        lambda r: r.strong_share,
    ),
    _Column(
        "Strong tokens",
        "tokens that the strong model generated",
        lambda r: count(r.strong_tokens),
        lambda r: r.strong_tokens,
        extra=True,
    ),
    _Column(
        "All tokens",
        "tokens that both models generated, discarded drafts included",
        lambda r: count(r.generated_tokens),
        lambda r: r.generated_tokens,
    ),
    _Column(
        "Parameter tokens",
        "number of weights times tokens, scorer and prefill included",
        lambda r: quantity(r.parameter_tokens),
        lambda r: r.parameter_tokens,
        extra=True,
    ),
    _Column("Calls", "requests to the models", lambda r: count(r.calls), lambda r: r.calls),
    _Column("Seconds", "wall-clock time of the run", lambda r: _seconds(r.seconds), lambda r: r.seconds),
)


def caption(rows: Sequence[PolicyRow]) -> str:
    """How many problems stand behind the rows."""
    sizes = sorted({row.n for row in rows})
    if not sizes:
        return "No policy was measured."
    if len(sizes) == 1:
        return f"{sizes[0]:,} problem{'s' if sizes[0] > 1 else ''} per policy; totals over all of them."
    return f"{sizes[0]:,} to {sizes[-1]:,} problems per policy; totals over a policy's own problems."
