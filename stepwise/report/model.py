"""What a report shows: one `PolicyRow` per policy and setting, one `TraceView` per routed problem, and their words.

Nothing is measured here: the caller does, fills these in, and hands a `Report` to `write_report` or `summary_table`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepwise.types import Trace

_FROZEN = ConfigDict(extra="forbid", allow_inf_nan=False)
Fraction = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]

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
class PolicyRow:
    """One operating point: a policy at one setting, measured on `n` problems.

    `family` groups the points that one line of the plot joins; the families "never" and "always" are drawn as the weak
    and the strong model's own points. `accuracy` and its 95 % interval are fractions in [0, 1], as is `strong_share`,
    the share of the kept tokens that the strong model wrote. Tokens, calls, seconds and parameter-tokens (number of
    weights times tokens, scorer and prefill included) are totals over the `n` problems. None means not known, never 0.
    """

    policy: str
    family: str
    setting: float | None
    accuracy: Fraction | None
    accuracy_low: Fraction | None
    accuracy_high: Fraction | None
    strong_share: Fraction | None
    strong_tokens: Count
    generated_tokens: Count
    parameter_tokens: Amount | None
    calls: Count
    seconds: Amount | None
    n: Annotated[int, Field(ge=1)]

    @property
    def anchor(self) -> Literal["", "weak", "strong"]:
        """Which model alone this row is: "weak" for the family "never", "strong" for "always", else ""."""
        if self.family == "never":
            return "weak"
        return "strong" if self.family == "always" else ""


@dataclass(frozen=True, config=_FROZEN)
class TraceView:
    """One trace to show: under which policy it was made, and its verdict.

    `verdict` is the value of a `stepwise.grading.Verdict`, "" where it was not graded. `parameter_tokens` is what the
    trace cost in weights times tokens, None where that is not known; tokens and calls are read from the trace itself.
    """

    trace: Trace
    policy: str = ""
    verdict: str = ""
    parameter_tokens: Amount | None = None

    @property
    def escalated(self) -> bool:
        """Whether the strong model wrote at least one of the steps that were kept."""
        return any(step.author == "strong" for step in self.trace.steps)


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
