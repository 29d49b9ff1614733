"""Numbers and verdicts as a reader sees them."""

from __future__ import annotations

from stepwise.routing.compare import PolicyRow

MISSING = "–"
VERDICT_WORDS: dict[str, str] = {
    "": "not graded",
    "correct": "right",
    "wrong": "wrong",
    "no_answer": "no answer",
    "unparseable_prediction": "answer not readable",
    "unparseable_gold": "gold answer not readable",
    "timeout": "grading timed out",
    "error": "grading failed",
}


def verdict_word(verdict: str) -> str:
    """A verdict in words a reader needs no manual for.

    >>> verdict_word("UNPARSEABLE_GOLD"), verdict_word("CORRECT")
    ('gold answer not readable', 'right')
    """
    return VERDICT_WORDS.get(verdict.lower(), verdict.replace("_", " ").lower())


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as a percentage.

    Example:
        >>> percent(0.785)
        '78.5 %'
    """
    return MISSING if value is None else f"{100 * value:.{digits}f} %"


def count(value: float | None) -> str:
    """A count with thousands separators.

    >>> count(12345), count(None)
    ('12,345', '–')
    """
    return MISSING if value is None else f"{value:,.0f}"


def quantity(value: float | None) -> str:
    """A large number with three digits and an SI suffix.

    Example:
        >>> quantity(12_340_000)
        '12.3 M'
    """
    if value is None:
        return MISSING
    size, suffix = float(value), ""
    for suffix in ("", "k", "M", "G", "T", "P", "E"):
        if size < 999.5 or suffix == "E":
            break
        size /= 1000
    digits = 0 if size >= 99.95 or size == int(size) else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {suffix}".rstrip()


def interval(row: PolicyRow) -> str:
    """The 95 % interval of the accuracy, in percent.

    >>> interval(PolicyRow("Never", "never", None, 0.4, 0.3, 0.5, 0.0, 0, 900, None, 60, None, n=10))
    '30.0–50.0'
    """
    if row.accuracy_low is None or row.accuracy_high is None:
        return MISSING
    return f"{100 * row.accuracy_low:.1f}–{100 * row.accuracy_high:.1f}"
