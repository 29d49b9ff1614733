r"""Rollouts as the trainer needs them: token ids with their log-probabilities, steps as spans of tokens, what the
grader says, and the hints that they begin with.

Steps are those of `stepwise.steps.split_steps`. Which step a token belongs to is decided by bytes: the step that holds
the first of its bytes that lies in any step. So the blank line after a step is the step's own, a token such as
".\n\nThe" belongs to the step that it ends, and "\n\nThe" to the one that it begins. A token without such a byte
(blank lines, the end of the message) belongs to the step before it, at the very beginning to the first one. Should one
token hold a whole step besides the end of the one before, that step has no token of its own: its span is empty.
"""

from __future__ import annotations

import dataclasses
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepwise.config.training import CreditConfig
from stepwise.credit import Reward
from stepwise.data.examples import Example
from stepwise.errors import ConfigError, DataError
from stepwise.grading import Verdict, grade_many
from stepwise.io import read_rows
from stepwise.steps import SEPARATOR, Splitter, join_steps, next_block, split_steps
from stepwise.types import Finish, Omitted, Problem

Spans = tuple[tuple[int, int], ...]
Hints = Mapping[str, tuple[str, ...]]
"""Steps by problem id that are written ahead of every rollout of that problem."""
HINTED_SCHEMES = ("outcome", "distill")
"""Credit schemes that ask nothing about single steps: others would be asked about steps that nobody sampled."""
_BOXES = ("\\boxed", "\\fbox", "<think>", "</think>")
_OMITTED = Field(exclude_if=lambda value: not value)  # stands in no file where nobody is asked
_LINE_END = re.compile(rb"\r\n|\r|\n|\Z")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class RlRollout:
    """One sampled solution of step `step` (from 1 on) of a training run, and the credit that it got.

    `problem` is the problem's id, `sample` the number in the group. `token_ids` are as sampled, the end of the message
    included, `logprobs` the sampler's, one per id; `spans` gives the tokens [start, stop) of each of `steps`. `verdict`
    is None where there is no text. `reward` is 1 or 0, None for a rollout that carries none (it is masked). What the
    credit scheme did not ask for is None or empty: `first_error` (0-based), `step_scores`, and `step_advantages`, the
    mean advantage of each step's tokens (None for a step without a token of its own). `hint` has the steps that were
    written ahead of it: they are in none of the other fields. `thought`: the mark of the thought in which it begins.

    With [rl] marker, `calls` has the places of the marker in `token_ids`, each at the beginning of a step of the strong
    model's, and `foreign` the tokens [start, stop) that the policy did not sample, whose `logprobs` are 0;
    `strong_tokens` is how many the strong model wrote, which the reward is less for.

    Example:
        for row in read_rollouts("out/rl/rollouts/step-00001.jsonl"):
            print(row.problem, row.reward, row.first_error, row.step_advantages)
    """

    id: str
    step: int
    problem: str
    question: str
    sample: int
    text: str
    steps: tuple[str, ...]
    spans: Spans
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    verdict: Verdict | None = None
    reward: float | None = None
    first_error: int | None = None
    step_scores: tuple[float, ...] = ()
    step_advantages: tuple[float | None, ...] = ()
    hint: tuple[str, ...] = ()
    thought: Omitted = ""
    calls: Annotated[tuple[int, ...], _OMITTED] = ()
    foreign: Annotated[Spans, _OMITTED] = ()
    strong_tokens: Annotated[int, _OMITTED] = 0

    @property
    def sampled(self) -> NDArray[np.bool_]:
        """(T,), whether the policy sampled the token."""
        sampled = np.ones(len(self.token_ids), dtype=np.bool_)
        for start, stop in self.foreign:
            sampled[start:stop] = False
        return sampled

    @property
    def solution(self) -> str:
        """Hint and text as one, after the mark of a thought that the prompt opened: what is graded."""
        return self.thought + SEPARATOR.join((*self.hint, self.text))


def _step_ranges(data: bytes, splitter: Splitter = "paragraphs") -> list[tuple[int, int]]:
    """Where the steps of a text lie in its bytes, [start, stop) each, without the blank lines between them (where a
    step does not hold them).

    The steps are those that `split_steps` finds in the decoded text; bytes that are not UTF-8 count as text.
    """
    if splitter == "calculations":
        steps = split_steps(data.decode("utf-8", "surrogateescape"), splitter)
        return [*pairwise(accumulate((len(step.encode("utf-8", "surrogateescape")) for step in steps), initial=0))]
    ranges: list[tuple[int, int]] = []
    begin, end, start, fence = -1, -1, 0, ""
    for mark in _LINE_END.finditer(data):
        line = data[start : mark.start()].decode("utf-8", "replace")
        fence = next_block(fence, line)
        if line.strip():
            begin, end = start if begin < 0 else begin, mark.start()
        elif begin >= 0 and not fence:
            ranges.append((begin, end))
            begin = -1
        start = mark.end()
    return [*ranges, (begin, end)] if begin >= 0 else ranges


def token_spans(pieces: Sequence[bytes], end: int | None = None, splitter: Splitter = "paragraphs") -> Spans:
    r"""The tokens [start, stop) of every step of the text that `pieces`, the bytes of each token, make together.

    Only the first `end` bytes count as text (None: all); tokens behind belong to the last step. The spans cover all
    tokens in order; a text without steps has none. The module's docstring has the rule.

    >>> token_spans([b"One", b" step.\n\n", b"Two", b"."])
    ((0, 2), (2, 4))
    """
    ranges = _step_ranges(b"".join(pieces)[:end], splitter)
    owners: list[int] = []  # the step of each token
    at = step = 0
    for piece in pieces:
        while step < len(ranges) and ranges[step][1] <= at:
            step += 1
        inside = step < len(ranges) and ranges[step][0] < at + len(piece)
        owners.append(step if inside else max(step - 1, 0))
        at += len(piece)
    return tuple(pairwise([*(bisect_left(owners, step) for step in range(len(ranges))), len(pieces)]))


def grade_rollouts(
    rollouts: Sequence[RlRollout],
    problems: Mapping[str, Problem],
    no_answer: Literal["mask", "wrong"],
    reward: Reward | None = None,
    strong_cost: float = 0.0,
) -> list[RlRollout]:
    r"""The same rollouts with verdict and reward: 1 for CORRECT, 0 for WRONG and for an answer that cannot be read (it
    would be a way out) or with arithmetic left to do (`29 - 15`: paying for it teaches to skip it), and None for what
    could not be judged.

    A rollout without an answer in a \boxed{} is NO_ANSWER, whose reward is None or, with `no_answer` "wrong", 0.
    `reward` pays what could be judged, and what has no answer, in place of that. Each token of the strong model takes
    `strong_cost` off. Raises DataError for a rollout whose
    problem is not among `problems` (by id), ConfigError for a `reward` that returns no number from 0 to 1.

    Example:
        rollouts = grade_rollouts(rollouts, {"p": Problem("p", "1 + 1?", "2")}, no_answer="wrong")
        print([row.reward for row in rollouts])
    """
    missing = next((row for row in rollouts if row.problem not in problems), None)
    if missing is not None:
        raise DataError(f"rollout {missing.id!r}: its problem {missing.problem!r} is not among the problems given")
    pairs = [(row.solution, problems[row.problem].answer) for row in rollouts]
    verdicts = grade_many(pairs, outside_box=False, accept_arithmetic=False)
    paid: dict[Verdict, float | None] = {Verdict.CORRECT: 1.0, Verdict.WRONG: 0.0, Verdict.UNPARSEABLE_PREDICTION: 0.0}
    paid[Verdict.NO_ANSWER] = 0.0 if no_answer == "wrong" else None
    graded = []
    for row, verdict in zip(rollouts, verdicts, strict=True):
        earned = paid.get(verdict)
        if reward is not None and verdict in paid and row.finish != "error":
            earned = reward.checked(problems[row.problem], row.solution, verdict)
        if earned is not None:
            earned -= strong_cost * row.strong_tokens
        graded.append(row if row.finish == "error" else dataclasses.replace(row, verdict=verdict, reward=earned))
    return graded


def rollouts_name(step: int) -> str:
    """Name of the file of a step's rollouts (from step 1 on), inside the run's directory.

    >>> rollouts_name(1)
    'rollouts/step-00001.jsonl'
    """
    return f"rollouts/step-{step:05d}.jsonl"


def read_rollouts(path: str | Path) -> list[RlRollout]:
    """The rows of `write_rollouts`; raises DataError for a missing file, and for a line that is no rollout.

    Example:
        rows = read_rollouts("out/rl/rollouts/step-00001.jsonl")
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; give a file that grpo wrote, such as OUT/{rollouts_name(1)}")
    return read_rows(path, RlRollout)


def check_hints(
    hints: Mapping[str, Sequence[str]],
    problems: Iterable[Problem],
    cfg: CreditConfig,
    splitter: Splitter = "paragraphs",
) -> Hints:
    """The hints, by problem id, in the form of `split_steps`.

    What differs from POPE (arXiv 2601.18779): a hint is forced text of the solution itself, not an instruction in the
    prompt, so nothing on it is trained; and which problems of a run have one is for the caller to say (a hinted copy of
    a problem is a problem with another id). Raises ConfigError for a credit scheme that judges steps; DataError, naming
    the problem, for an id that no problem has, an empty hint, one that is a text instead of steps, one that holds an
    answer, and an open code fence.

    >>> check_hints({"p": ["One and one."]}, [Problem("p", "1 + 1?", "2")], CreditConfig())
    {'p': ('One and one.',)}
    """
    if hints and cfg.scheme not in HINTED_SCHEMES:
        raise ConfigError(
            f'rl.credit.scheme is "{cfg.scheme}", which judges steps, and those of a hint are not the policy\'s; with '
            f"hints set {' or '.join(HINTED_SCHEMES)}"
        )
    known, checked = {problem.id for problem in problems}, {}
    for name, steps in hints.items():
        where = f"the hint of problem {name!r}"
        if name not in known:
            raise DataError(f"hints name the problem {name!r}, which is not among the problems; leave it out")
        if isinstance(steps, str):
            raise DataError(f"{where} is a text ({steps!r:.60}); give its steps, such as split_steps(text)")
        text, fence = join_steps(steps, splitter), ""
        if not (hint := tuple(split_steps(text, splitter))):
            raise DataError(f"{where} has no text ({list(steps)!r:.60}); give at least one step, or leave it out")
        if held := next((mark for mark in _BOXES if mark in text), None):
            raise DataError(f"{where} holds {held} ({hint[-1]!r:.60}); end it before the answer, and without reasoning")
        for line in text.split("\n"):
            fence = next_block(fence, line)
        if fence:
            raise DataError(f"{where} leaves a code fence open ({fence}); close it")
        checked[name] = hint
    return checked


def hints_of(rows: Iterable[Example], problems: Iterable[Problem]) -> dict[str, tuple[str, ...]]:
    """Prefix and intervention of the first row of each problem that has one, by problem id; rows of others are left.

    Raises DataError where no row belongs to any of the problems, for a row of a whole solution or of first tokens, and
    for one whose question is not that of the problem with its id.

    Example:
        hints = hints_of(read_examples("out/int/dataset.jsonl"), problems)
    """
    known, hints = {problem.id: problem for problem in problems}, dict[str, tuple[str, ...]]()
    for row in rows:
        name = row.parents.get("problem", "")
        if name not in known or name in hints:
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
        hints[name] = (*row.prefix, *split_steps(row.intervention, row.splitter))
    if not hints:
        raise DataError("no row of the hints belongs to any of the problems (parents.problem); give rows of theirs")
    return hints
