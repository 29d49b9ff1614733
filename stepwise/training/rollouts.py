r"""Groups of rollouts as the trainer needs them: token ids with their log-probabilities, steps as spans of tokens, and
what the grader says.

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
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stepwise.errors import BackendError, DataError
from stepwise.grading import Verdict, grade_many
from stepwise.io import read_rows, write_rows
from stepwise.steps import SEPARATOR, extract_answer, next_fence, split_steps
from stepwise.types import Finish, Problem

if TYPE_CHECKING:
    from stepwise.config.training import RlConfig
    from stepwise.models.engine import Engine, Generation

Spans = tuple[tuple[int, int], ...]
_LINE_END = re.compile(rb"\r\n|\r|\n|\Z")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class RlRollout:
    """One sampled solution of step `step` (from 1 on) of a training run, and the credit that it got.

    `problem` is the problem's id, `sample` the number in the group. `token_ids` are as sampled, the end of the message
    included, `logprobs` the sampler's, one per id; `spans` gives the tokens [start, stop) of each of `steps`. `verdict`
    is None where there is no text. `reward` is 1 or 0, None for a rollout that carries none (it is masked). What the
    credit scheme did not ask for is None or empty: `first_error` (0-based), `step_scores`, and `step_advantages`, the
    mean advantage of each step's tokens (None for a step without a token of its own). `hint` has the steps that were
    written ahead of it: they are in none of the other fields.
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

    @property
    def solution(self) -> str:
        """Hint and text as one: what is graded."""
        return SEPARATOR.join((*self.hint, self.text))


def step_ranges(data: bytes) -> list[tuple[int, int]]:
    """Where the steps of a text lie in its bytes, [start, stop) each, without the blank lines between them.

    The steps are those that `split_steps` finds in the decoded text; bytes that are not UTF-8 count as text.
    """
    ranges: list[tuple[int, int]] = []
    begin, end, start, fence = -1, -1, 0, ""
    for mark in _LINE_END.finditer(data):
        line = data[start : mark.start()].decode("utf-8", "replace")
        fence = next_fence(fence, line)
        if line.strip():
            begin, end = start if begin < 0 else begin, mark.start()
        elif begin >= 0 and not fence:
            ranges.append((begin, end))
            begin = -1
        start = mark.end()
    return [*ranges, (begin, end)] if begin >= 0 else ranges


def token_spans(pieces: Sequence[bytes], end: int | None = None) -> Spans:
    """The tokens [start, stop) of every step of the text that `pieces`, the bytes of each token, make together.

    Only the first `end` bytes count as text (None: all); tokens behind belong to the last step. The spans cover all
    tokens in order; a text without steps has none. The module's docstring has the rule.
    """
    ranges = step_ranges(b"".join(pieces)[:end])
    owners: list[int] = []  # the step of each token
    at = step = 0
    for piece in pieces:
        while step < len(ranges) and ranges[step][1] <= at:
            step += 1
        inside = step < len(ranges) and ranges[step][0] < at + len(piece)
        owners.append(step if inside else max(step - 1, 0))
        at += len(piece)
    return tuple(pairwise([*(bisect_left(owners, step) for step in range(len(ranges))), len(pieces)]))


def sample_groups(
    problems: Sequence[Problem],
    prompts: Mapping[str, Sequence[int]],
    engine: Engine,
    rl: RlConfig,
    *,
    seed: int,
    step: int,
    hints: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[list[RlRollout], int]:
    """`rl.group` solutions of each problem, not graded yet, and how many prompt tokens were evaluated for them.

    `prompts` are token ids by problem id, and end with the problem's hint where `hints` has one. The random numbers
    follow from `seed`, `step`, the problem's id and the sample's number alone. A prompt is evaluated once for its
    group. Raises BackendError where most rollouts fail.
    """
    from stepwise.models.engine import GenerationJob
    from stepwise.seeds import seed_for

    jobs = [
        GenerationJob(
            tuple(prompts[problem.id]), max_tokens=rl.max_tokens, n=rl.group, temperature=rl.temperature,
            top_p=rl.top_p, top_k=rl.top_k, seed=seed_for(seed, problem.id, "rl", step), stop="solution",
        )
        for problem in problems
    ]  # fmt: skip
    made = engine.generate(jobs)
    errors = [one.error for one in made if one.finish == "error"]
    if 2 * len(errors) > len(made):
        raise BackendError(f"{engine.name} failed for {len(errors)} of {len(made)} rollouts, first: {errors[0]}")
    told = [(hints or {}).get(problem.id, ()) for problem in problems]
    rows = [_rollout(one, problems[one.job], engine, step, told[one.job]) for one in made]
    return rows, sum(one.evaluated_tokens for one in made)


def _rollout(made: Generation, problem: Problem, engine: Engine, step: int, hint: tuple[str, ...]) -> RlRollout:
    pieces = [engine.token_bytes(token) for token in made.ids]
    end = made.end if made.cut else None
    steps = tuple(split_steps(made.text))
    spans = token_spans(pieces, end)
    if len(spans) != len(steps):  # would give credit to the wrong tokens
        raise BackendError(
            f"a rollout of problem {problem.id!r} has {len(steps)} steps, but {len(spans)} spans of tokens"
        )
    return RlRollout(
        f"{problem.id}/s{step}/r{made.sample}", step, problem.id, problem.question, made.sample, made.text, steps,
        spans, made.ids, made.logprobs, made.finish, hint=hint,
    )  # fmt: skip


def grade_rollouts(
    rollouts: Sequence[RlRollout], problems: Mapping[str, Problem], no_answer: Literal["mask", "wrong"]
) -> list[RlRollout]:
    r"""The same rollouts with verdict and reward: 1 for CORRECT, 0 for WRONG, and None for what could not be judged.

    A rollout without a closed \boxed{} is NO_ANSWER, whose reward is None or, with `no_answer` "wrong", 0. Raises
    DataError for a rollout whose problem is not among `problems` (by id).
    """
    missing = next((row for row in rollouts if row.problem not in problems), None)
    if missing is not None:
        raise DataError(f"rollout {missing.id!r}: its problem {missing.problem!r} is not among the problems given")
    verdicts = grade_many([(extract_answer(row.solution), problems[row.problem].answer) for row in rollouts])
    wrong = (Verdict.WRONG, Verdict.NO_ANSWER) if no_answer == "wrong" else (Verdict.WRONG,)
    graded = []
    for row, verdict in zip(rollouts, verdicts, strict=True):
        reward = 1.0 if verdict is Verdict.CORRECT else 0.0 if verdict in wrong else None
        graded.append(row if row.finish == "error" else dataclasses.replace(row, verdict=verdict, reward=reward))
    return graded


def rollouts_name(step: int) -> str:
    """Name of the file of a step's rollouts (from step 1 on), inside the run's directory."""
    return f"rollouts/step-{step:05d}.jsonl"


def write_rollouts(path: Path, rollouts: Sequence[RlRollout]) -> None:
    """Write a step's rollouts as JSON Lines; the file has its name once it is whole."""
    write_rows(path, rollouts)


def read_rollouts(path: str | Path) -> list[RlRollout]:
    """The rows of `write_rollouts`; raises DataError for a missing file, and for a line that is no rollout."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; give a file that grpo wrote, such as OUT/{rollouts_name(1)}")
    return read_rows(path, RlRollout)
