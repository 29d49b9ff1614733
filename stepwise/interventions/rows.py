"""The rows of the pipeline, one type per stage; each names its parents, and says what made it.

Ids are built from ids: problem `p`, its rollout number 3 `p/r3`, the candidate number 0 for that attempt `p/r3/c0`, a
guided rollout of it `p/r3/c0/g7`, whichever stage wrote them. So an example leads back to every text behind it, with
seed, model, prompt and configuration. Where a model failed, a row says so in words (`error`, `failed`), and `cause` is
the failure as an object.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Literal, Protocol, TypeVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepwise.data.examples import Example
from stepwise.errors import DataError
from stepwise.grading import Verdict
from stepwise.interventions.checks.leaks import LeakVerdict
from stepwise.steps import extract_answer, split_steps
from stepwise.types import Failure, Finish, Intervention, KeptSplitter, Omitted, Problem, Step, Trace, Usage

_FROZEN = ConfigDict(extra="forbid")
_CAUSE: Any = Field(default=None, exclude_if=lambda value: value is None)  # files without a failure are as before
_FORM: Any = Field(default="", exclude_if=lambda value: not value)


@dataclass(frozen=True, config=_FROZEN)
class Made:
    """What a text comes from: the model's name with the hash of its weights, the hashes of prompt and configuration,
    and its random numbers, which are those of sample `draw` of a request with `seed`.

    >>> Made("weak.gguf@11989165", prompt_hash="a1", config_hash="b2", seed=7, draw=3).draw
    3
    """

    model: str
    prompt_hash: str
    config_hash: str
    seed: int
    draw: int = 0


@dataclass(frozen=True, config=_FROZEN)
class Rollout:
    r"""A solution that the model wrote. `text` as written; `verdict` None before it is graded.

    `token_ids` are those of the whole text, as sampled. `error` says why there is no text. `thought`: the mark of the
    thought in which the text begins.

    >>> Rollout("p/r0", "p", 0, r"So \boxed{2}.", "answer", Made("weak", "", "", 0)).answer
    '2'
    """

    id: str
    problem: str
    sample: int
    text: str
    finish: Finish
    made: Made
    usage: Usage = Usage()
    token_ids: tuple[int, ...] = ()
    error: str = ""
    verdict: Verdict | None = None
    cause: Failure | None = _CAUSE
    thought: Omitted = ""
    splitter: KeptSplitter = "paragraphs"

    @property
    def steps(self) -> tuple[str, ...]:
        """The text in steps."""
        return tuple(split_steps(self.text, self.splitter))

    @property
    def answer(self) -> str | None:
        """Content of its last closed box, None without one."""
        return extract_answer(self.thought + self.text)


@dataclass(frozen=True, config=_FROZEN)
class GuidedRollout(Rollout):
    r"""What the model wrote after the kept prefix and the `candidate` (an id); `text` is the continuation alone. One
    with code and an invented output counts neither as right nor as wrong: it has no verdict, and `error` says so.

    `phase` says what it was for: to see whether any ends right, to find the best candidate of an attempt, or to
    measure the one that is kept afresh.

    >>> GuidedRollout("c/g0", "p", 0, r"So \boxed{2}.", "answer", Made("weak", "", "", 0), candidate="c").phase
    'filter'
    """

    candidate: str = ""
    phase: Literal["filter", "compare", "fresh"] = "filter"


@dataclass(frozen=True, config=_FROZEN)
class FailedAttempt:
    """An attempt that ended wrong; its id is that of its rollout. So many `copies` of its text were among them.

    >>> FailedAttempt("p/r0", "p", ("1 + 1 = 3.",), "3", Verdict.WRONG).trace(Problem("p", "1 + 1?")).text
    '1 + 1 = 3.'
    """

    id: str
    problem: str
    steps: tuple[str, ...]
    answer: str | None
    verdict: Verdict
    copies: int = Field(default=1, ge=1)
    splitter: KeptSplitter = "paragraphs"

    def trace(self, problem: Problem) -> Trace:
        """The attempt, as the modules take it."""
        finish: Literal["answer", "eos"] = "eos" if self.answer is None else "answer"
        return Trace(problem, tuple(Step(text, "weak") for text in self.steps), finish, splitter=self.splitter)


@dataclass(frozen=True, config=_FROZEN)
class Located:
    """Where `failure` (the id of a failed attempt) goes wrong. `first_error` None with no `failed`: the critic finds
    every step right.

    `failed` says why there is no result; then `first_error` means nothing. `with_reference`: the critic saw one.

    >>> Located("p/r0/l", "p", "p/r0", first_error=1, made=Made("critic", "", "", 0), reason="2 * 3 is 6").first_error
    1
    """

    id: str
    problem: str
    failure: str
    first_error: int | None
    made: Made
    critical_error: int | None = None
    reason: str = ""
    failed: str = ""
    with_reference: bool = True
    usage: Usage = Usage()
    cause: Failure | None = _CAUSE


@dataclass(frozen=True, config=_FROZEN)
class Candidate:
    """A step proposed in place of step `location` of `failure` (the id of a failed attempt) and of all that follows.

    `leak` None before the check; `leak_reason` and `leak_text` say what it found. `unsound` is the first equation in it
    that is false, `form` why it is not one step of a solution. `rate` is the share of attempts that end right from
    behind so many right steps (`acceptance`). `failed` says why there is no step; then `content` is empty.

    >>> attempt = FailedAttempt("p/r0", "p", ("So 1.", "1 + 1 = 3."), "3", Verdict.WRONG)
    >>> row = Candidate("p/r0/c0", "p", "p/r0", 1, "1 + 1 = 2.", Made("critic", "", "", 0))
    >>> [step.text for step in row.splice(attempt, Problem("p", "1 + 1?")).steps]
    ['So 1.', '1 + 1 = 2.']
    """

    id: str
    problem: str
    failure: str
    location: int
    content: str
    made: Made
    failed: str = ""
    leak: LeakVerdict | None = None
    leak_reason: str = ""
    leak_text: str = ""
    unsound: str = ""
    form: str = _FORM
    rate: float | None = _CAUSE
    with_reference: bool = True
    usage: Usage = Usage()
    cause: Failure | None = _CAUSE

    def splice(self, attempt: FailedAttempt, problem: Problem) -> Trace:
        """The kept prefix and the candidate, in steps as a reader of the text finds them; raises DataError for another
        attempt's row, IndexError past its end.
        """
        if attempt.id != self.failure:
            raise DataError(f"candidate {self.id!r} is for the attempt {self.failure!r}, not {attempt.id!r}")
        spliced = Intervention(self.location, self.content).apply(attempt.trace(problem))
        if attempt.splitter == "paragraphs":  # it is one paragraph
            return spliced
        written = tuple(Step(text, "intervention") for text in split_steps(self.content, attempt.splitter))
        return dataclasses.replace(spliced, steps=(*spliced.steps[:-1], *written))


ROWS: dict[str, Any] = {
    "rollouts": Rollout,
    "failures": FailedAttempt,
    "located": Located,
    "candidates": Candidate,
    "guided": GuidedRollout,
    "examples": Example,
}
"""The stages by the names of their files, with the type of their rows."""
WRITTEN = ("rollouts", "located", "candidates", "guided")
"""The stages in which models write."""


def spent(rows: Iterable[Any]) -> Usage:
    """What the texts of these rows (or predictions) cost.

    >>> made = Made("weak", "", "", 0)
    >>> spent([Rollout("p/r0", "p", 0, "So 2.", "eos", made, Usage("weak", 1, generated_tokens=9))]).generated_tokens
    9
    """
    return sum((row.usage for row in rows), Usage())


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


Row = TypeVar("Row", bound=_Identified)
T = TypeVar("T")


def by_id(rows: Iterable[Row]) -> dict[str, Row]:
    """Rows by id; raises DataError where an id occurs twice.

    >>> sorted(by_id([Problem("a", "What is 2 + 3?"), Problem("b", "Why?")]))
    ['a', 'b']
    """
    result: dict[str, Row] = {}
    for row in rows:
        if row.id in result:
            raise DataError(f"the id {row.id!r} occurs twice; ids must differ")
        result[row.id] = row
    return result


def parent(rows: Mapping[str, Row], name: str, child: str) -> Row:
    """The row with the id `name`; raises DataError naming `child` where it is missing.

    >>> parent({"p": Problem("p", "1 + 1?")}, "p", "p/r0").question
    '1 + 1?'
    """
    if name not in rows:
        raise DataError(f"row {child!r}: its parent {name!r} is not among the rows given")
    return rows[name]


def first_of_each(rows: Iterable[T], key: Callable[[T], Hashable], n: int = 1) -> list[T]:
    """The first `n` rows with the same key, in order.

    >>> first_of_each(["a1", "b1", "a2", "a3"], lambda row: row[0], n=2)
    ['a1', 'b1', 'a2']
    """
    seen: Counter[Hashable] = Counter()
    result = []
    for row in rows:
        seen[key(row)] += 1
        if seen[key(row)] <= n:
            result.append(row)
    return result
