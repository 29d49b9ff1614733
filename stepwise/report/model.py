"""What a report shows: `PolicyRow` and `TraceView` of `stepwise.routing.compare` on one page, and words for them.

Nothing is measured here: the caller does, fills these in, and hands a `Report` to `write_report` or `summary_table`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepwise.routing.compare import PolicyRow, TraceView

_FROZEN = ConfigDict(extra="forbid", allow_inf_nan=False)
AuthorKind = Literal["weak", "strong", "intervention", "other"]
_KINDS: dict[str, AuthorKind] = {"weak": "weak", "strong": "strong", "intervention": "intervention"}

LAB_NOTICE = (
    "Lab figures: measured on the embedded test bed, generated problems and tiny models that are wrong in a known way. "
    "They compare methods with one another and do not predict accuracy or savings on real models."
)

FINISH_WORDS: dict[str, str] = {
    "": "still open",
    "answer": "answered",
    "eos": "stopped without an answer",
    "length": "a step ran out of tokens",
    "repeat": "repeated itself",
    "error": "a model failed",
    "steps": "reached the step limit",
    "budget": "budget spent",
    "interrupted": "interrupted",
}

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


@dataclass(frozen=True, config=_FROZEN)
class Report:
    """Everything one page shows.

    `meta` are short facts in the order to show them (what was run, config hash, models, a date if any); `notes` are
    paragraphs. `lab` says that the figures come from the embedded test bed: the page and the table then say so.
    """

    title: str
    subtitle: str = ""
    rows: tuple[PolicyRow, ...] = ()
    traces: tuple[TraceView, ...] = ()
    meta: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    lab: bool = False


def author_kind(author: str) -> AuthorKind:
    """The colour class of an author; any name but the three known roles is "other"."""
    return _KINDS.get(author, "other")


def author_letter(author: str) -> str:
    """The letter of an author's badge, so that authors are told apart without colour."""
    return next((char.upper() for char in author if char.isalnum()), "?")[0]


def verdict_word(verdict: str) -> str:
    """A verdict in words a reader needs no manual for."""
    return VERDICT_WORDS.get(verdict.lower(), verdict.replace("_", " ").lower())
