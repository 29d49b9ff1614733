"""The small frozen types that travel through the whole library: records that refuse wrong types with the field's name,
and that `to_json` / `from_json` carry through a JSON Lines file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from stepwise.errors import DataError, wrong_type
from stepwise.records import record
from stepwise.steps import Splitter, extract_answer, join_steps

Finish = Literal["step", "answer", "eos", "length", "repeat", "error", "budget"]
TraceFinish = Literal["", "answer", "capped", "eos", "length", "repeat", "error", "steps", "budget", "interrupted"]
T = TypeVar("T")
_PLAIN_NAME = re.compile(r"[^\s?=()^*+\\{}]*")  # nothing in it that a question has


class InNotebook:
    """What a notebook shows as HTML and `print` as text; `stepwise.report.notebook` writes both. A class with words of
    its own (`__str__`) is shown as these.

    Example:
        router.solve_all(problems)  # as the last line of a cell: the steps, coloured by who wrote them
        print(router.solve_all(problems))  # a line for each
    """

    def _repr_html_(self) -> str:
        from stepwise.report.notebook import html_of

        return html_of(self)

    def __str__(self) -> str:
        from stepwise.report.notebook import text_of

        return text_of(self)


@record()
class Problem(InNotebook):
    """A question with its gold answer and, where there is one, a reference solution.

    `metadata` has what else a file says of it (`stepwise.data.problems`); it makes no difference between two problems.

    Raises `DataError` where a question stands in the place of the id: Problem("1 + 1?", "2").

    >>> Problem("1", "What is 2 + 3?", "5") == Problem("1", "What is 2 + 3?", "5", metadata={"level": 1})
    True
    >>> print(Problem("1", "What is 2 + 3?", "5"))
    1: What is 2 + 3?
    answer: 5
    """

    id: Annotated[str, Field(description="a name of its own, such as '1'; sw.load_problems makes one of the question")]
    question: str
    answer: str | None = None
    reference: str | None = None
    source: str = ""
    metadata: Annotated[dict[str, Any], Field(exclude_if=lambda value: not value)] = dataclasses.field(
        default_factory=dict, compare=False
    )

    def __str__(self) -> str:
        told = {self.id: self.question, "answer": self.answer, "reference": self.reference}
        return "\n".join(f"{name}: {text}" for name, text in told.items() if text is not None)

    @staticmethod
    def _refuse_by_position(id: Any, question: Any = "?", *rest: Any) -> None:
        """Without names, a question is easily given as the id, and its answer as the question."""
        if not isinstance(id, str) or not isinstance(question, str):
            return
        value = any(char.isdigit() for char in question) and not any(c.isalpha() or c in "?=" for c in question)
        if not _PLAIN_NAME.fullmatch(id) or value:
            raise DataError(
                f"Problem({id!r:.60}, {question!r:.60}) takes the first for the id and the second for the question; "
                "give them by name, Problem(id=..., question=..., answer=...), or several rows to sw.load_problems"
            )


FailureKind = Literal["refused", "gone", "again", "budget"]


@record()
class Failure:
    """Why a model gave nothing, as an object: nobody reads it out of a text.

    `kind` is "refused" (this request alone cannot be done; others go on), "gone" (the model is not there: stop, and
    resume when it is), "again" (a later try may succeed) or "budget" (the cap with the key `cap` would be passed).
    `reason` is one line for a person, without secrets.

    >>> str(Failure("budget", "the cap of 100 strong tokens is reached", cap="strong_tokens"))
    'the cap of 100 strong tokens is reached'
    """

    kind: FailureKind
    reason: str
    cap: str = ""

    def __str__(self) -> str:
        return self.reason


@record()
class Usage:
    """What one piece of work cost a model, in tokens and calls.

    `prompt_tokens` is the length of the prefixes as asked for; `evaluated_tokens` counts only those that the model had
    to run through (the rest came from its cache). An API that does not say what it cached reports the two as equal.
    What is answered from memory (a solution that a scorer has scored before) is no call. `model` is the model's name
    ("" once usages of different models were added up); `cost` is money, None when no price
    is known.

    >>> (Usage("m", 1, generated_tokens=40) + Usage("m", 1, generated_tokens=2)).generated_tokens
    42
    """

    model: str = ""
    calls: int = 0
    prompt_tokens: int = 0
    evaluated_tokens: int = 0
    generated_tokens: int = 0
    retries: int = 0
    cost: float | None = None

    def __add__(self, other: Usage) -> Usage:
        if self == _NO_USAGE or other == _NO_USAGE:
            return other if self == _NO_USAGE else self
        cost = None if self.cost is None or other.cost is None else self.cost + other.cost
        return Usage(
            self.model if self.model == other.model else "",
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.evaluated_tokens + other.evaluated_tokens,
            self.generated_tokens + other.generated_tokens,
            self.retries + other.retries,
            cost,
        )


_NO_USAGE = Usage()  # made once: sums over traces add to it tens of thousands of times


@record(allow_inf_nan=False)
class TokenStats:
    """How sure a model was of the tokens of one step as it drew them, under the distribution before temperature.

    `least` and `mean` are of the log-probabilities (natural, at most 0) of the tokens drawn, those that end the step
    included; `entropy` is the mean over the same places of the whole vocabulary's entropy in nats, None where it is not
    known (APIs tell the likeliest tokens alone).

    >>> TokenStats(least=-2.5, mean=-0.3).entropy is None  # not known
    True
    """

    least: float
    mean: float
    entropy: float | None = None

    @classmethod
    def of(cls, logprobs: Sequence[float] | None, entropies: Sequence[float] = ()) -> TokenStats | None:
        """From the values of each token, to four decimals; None where there are none, or one that is no number.

        >>> TokenStats.of([-0.5, -0.1], [0.7, 0.1])
        TokenStats(least=-0.5, mean=-0.3, entropy=0.4)
        """
        if not logprobs or not all(map(math.isfinite, (*logprobs, *entropies))):
            return None
        entropy = round(statistics.fmean(entropies), 4) if entropies else None
        return cls(round(min(logprobs), 4), round(statistics.fmean(logprobs), 4), entropy)


Omitted = Annotated[str, Field(exclude_if=lambda value: not value)]  # stands in no file where it is empty
KeptSplitter = Annotated[Splitter, Field(exclude_if=lambda value: value == "paragraphs")]


@record()
class Step:
    """One step of a solution: its text without the blank line after it, and who wrote it.

    `author` is the role in the config ("weak", "strong", "intervention", or any model's name); the model's name is in
    `usage`. `score` is the scorer's probability that the step is correct, in [0, 1], None where it was not scored.
    `token_ids` are the ids that `usage.model` itself sampled, blank line included, empty where they are not known.
    `discarded` holds the drafts that were thrown away for this step, first to last; `evidence` what models wrote for
    the policy to decide on (a glimpse at the first token, samples to compare, a rating), which never stood for the
    step; `decision` says what the policy did and why. `token_stats`: how sure the model was of its tokens, where it
    tells; it makes no difference between two steps. `thought`: the mark of a thought that its writer's chat template
    opened ahead of the solution, such as "<think>".

    >>> Step("2 + 3 = 5.", "weak", score=0.9).author
    'weak'
    """

    text: str
    author: Annotated[str, Field(description="who wrote it, such as 'weak'")]
    score: float | None = Field(default=None, ge=0, le=1)
    usage: Usage = Usage()
    token_ids: tuple[int, ...] = ()
    discarded: tuple[Step, ...] = ()
    decision: str = ""
    evidence: tuple[Step, ...] = ()
    token_stats: Annotated[TokenStats | None, Field(exclude_if=lambda value: value is None)] = dataclasses.field(
        default=None, compare=False
    )
    thought: Omitted = ""

    @staticmethod
    def _refuse_by_position(text: Any, author: Any = "", *rest: Any) -> None:
        """Without names, text and author are easily exchanged."""
        if isinstance(author, str) and any(char.isspace() for char in author.strip()):
            raise DataError(
                f"Step({text!r:.60}, {author!r:.60}) takes the first for the text and the second for its author; give "
                "them by name: Step(text=..., author='weak')"
            )


@record()
class Trace(InNotebook):
    r"""One attempt at a problem. `finish` says how it ended: "" while it is open, "answer" when a box was closed,
    "capped" where it was too, but a cap kept steps from the strong model.

    `scorer_usage` is what scoring this trace cost; `note` names what went wrong where something did. `abandoned` holds
    the drafts of a step that never came to be (it was empty, or a model failed at it) and the evidence on it, so that
    what they cost is not lost. `splitter` says where its steps were ended.

    >>> Trace(Problem("p", "1 + 1?"), (Step(r"So it is \boxed{2}.", "weak"),), "answer").answer
    '2'
    """

    problem: Problem
    steps: tuple[Step, ...] = ()
    finish: TraceFinish = ""
    scorer_usage: Usage = Usage()
    note: str = ""
    abandoned: tuple[Step, ...] = ()
    splitter: KeptSplitter = "paragraphs"

    @property
    def text(self) -> str:
        """The solution: the steps, joined by blank lines or by the separators that they hold."""
        return join_steps((step.text for step in self.steps), self.splitter)

    @property
    def solution(self) -> str:
        """What is read for an answer: `text`, with the mark of the thought that the prompt of its last step opened."""
        return (self.steps[-1].thought if self.steps else "") + self.text

    @property
    def answer(self) -> str | None:
        """Content of the last closed box outside of thoughts, None when there is none."""
        return extract_answer(self.solution)

    @property
    def usage(self) -> dict[str, Usage]:
        """What each author spent on it ("weak", "strong", ...), discarded drafts included, the scorer under "scorer".

        >>> step = Step("2", "weak", usage=Usage("w", 1, 5, 5, 3))
        >>> Trace(Problem("p", "1 + 1?"), (step,)).usage["weak"].generated_tokens
        3
        """
        spent: dict[str, Usage] = {}
        for step in self.written:
            spent[step.author] = spent.get(step.author, _NO_USAGE) + step.usage
        return spent | ({"scorer": self.scorer_usage} if self.scorer_usage != _NO_USAGE else {})

    @property
    def written(self) -> Iterable[Step]:
        """Every text that a model wrote for it: steps, discarded drafts, evidence, and abandoned ones."""
        for step in self.steps:
            yield from (*step.evidence, *step.discarded, step)
        yield from self.abandoned

    def prefix(self, n: int) -> Trace:
        """The first `n` steps as an open trace; raises IndexError unless 0 <= n <= len(steps)."""
        if not 0 <= n <= len(self.steps):
            raise IndexError(f"prefix({n}): the trace has {len(self.steps)} steps; n must lie in 0..{len(self.steps)}")
        return dataclasses.replace(self, steps=self.steps[:n], finish="", note="", abandoned=())

    def show(self) -> None:
        """Print the trace to the terminal, each step coloured by its author."""
        from stepwise.report.terminal import show_trace

        show_trace(self)


class Traces(list[Trace], InNotebook):
    """A list of traces that shows itself in a notebook; `policy` is what a table calls that they were made under, and
    `prices` are `ModelConfig.prices` by role.

    >>> Traces([Trace(Problem("p", "1 + 1?"))], "Never")[0].problem.id
    'p'
    """

    def __init__(self, traces: Iterable[Trace] = (), policy: str = "", prices: Mapping[str, Any] | None = None):
        super().__init__(traces)
        self.policy, self.prices = policy, dict(prices or {})


@record()
class Localization:
    """The first error of an attempt: its 0-based step index, None where every step is right, and why.

    >>> Localization(first_error=1, verdicts=(True, False)).first_error
    1
    """

    first_error: int | None
    verdicts: tuple[bool, ...] = ()
    reason: str = ""


@record()
class Intervention:
    """One step to put in place of step `location` (0-based) and of all that follows it (InT, arXiv 2601.14209).

    >>> wrong = Trace(Problem("p", "1 + 1?"), (Step("1 + 1 = 3.", "weak"),))
    >>> Intervention(0, "1 + 1 = 2.").apply(wrong).text
    '1 + 1 = 2.'
    """

    location: int
    content: str

    def apply(self, trace: Trace) -> Trace:
        """Steps before `location`, then `content`: an open trace; IndexError when the trace is shorter than that."""
        if not 0 <= self.location <= len(trace.steps):
            raise IndexError(f"Intervention.location is {self.location}, but the trace has {len(trace.steps)} steps")
        kept = trace.prefix(self.location)
        return dataclasses.replace(kept, steps=(*kept.steps, Step(self.content, "intervention")))


def as_problem(problem: Problem | str) -> Problem:
    """A `Problem` as it is, a string as a problem with that question and an id made from it.

    >>> as_problem("1 + 1?").id
    'q-c97c3a9c9b99'
    """
    if isinstance(problem, Problem):
        return problem
    if not isinstance(problem, str):
        raise DataError(wrong_type("problem", problem, "give a Problem, or the text of a question"))
    return Problem(id="q-" + hashlib.sha256(problem.encode()).hexdigest()[:12], question=problem)
