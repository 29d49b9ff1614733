"""What a policy may look at before it decides: glimpses, samples to compare, ratings and verifications.

Every piece is bought under the caps and kept as a step in `Step.evidence`, so that it counts in every cost. What fails,
may not be afforded or cannot be read is evidence that is missing, not an error: the policy decides without it.

A rating and a verification are asked for as questions of their own, under the prompt that problems are solved under:
any backend can answer them, but neither shares a cached prefix with the solution.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from stepwise.errors import CapabilityError
from stepwise.models.base import Completion, Generator, Request
from stepwise.models.scorers.judge import parse
from stepwise.routing.policy import Look
from stepwise.seeds import stable_hash
from stepwise.steps import Splitter, has_answer, join_steps
from stepwise.steps.thoughts import open_thought
from stepwise.types import Problem, Step

if TYPE_CHECKING:
    from stepwise.routing.trim import Solver

_DIGIT = re.compile(r"\W*([0-9])(?![0-9]|\.[0-9])")


WITH_DRAFT = ("logprobs", "token_logprobs", "entropy")
"""What comes with a draft and is not asked for by itself."""


def check_logprobs(model: Generator, role: str, looks: Mapping[str, str]) -> None:
    """Raises `CapabilityError` where `model` gives no log-probabilities, which a signal that `looks` names needs.

    Example:
        check_logprobs(weak, "weak", {"entropy": "first_token_entropy"})  # raises where `weak` is behind an API
    """
    whole = next((what for what in ("entropy", "call") if what in looks), "")
    if whole and not model.capabilities.entropy:
        kind = "policy" if whole == "call" else "signal"
        raise CapabilityError(
            f"{kind} {looks[whole]!r} needs the whole distribution at each token, which the {role} model "
            f"{model.name!r} does not tell; load it in this process (llamacpp/...), or take a signal on the tokens "
            "drawn (least_logprob, mean_logprob)"
        )
    wanted_by = next((looks[what] for what in (*WITH_DRAFT, "first_token") if what in looks), "")
    if not model.capabilities.logprobs:
        raise CapabilityError(
            f"signal {wanted_by!r} needs log-probabilities, and the {role} model "
            f"{model.name!r} gives none; load it in this process (llamacpp/...) or behind a server whose chat "
            'completions have top_logprobs (with continuation = "probe", which finds that out), or take a '
            "signal on scores or texts (score, score_drop, agreement)"
        )


@dataclasses.dataclass(slots=True)
class Evidence:
    """What the policy has seen of the step being made; `done` names what it asked for.

    >>> seen = Evidence(rating=7)
    >>> seen.done.add("rating")
    >>> seen.rating, seen.done
    (7, {'rating'})
    """

    done: set[str] = dataclasses.field(default_factory=set)
    # of the place in the solution
    first_token: tuple[float, ...] = ()
    resamples: tuple[Step, ...] = ()
    verification: tuple[bool | None, ...] = ()
    call: float | None = None
    marker: str = ""  # by which it was asked for
    # of the draft
    logprobs: tuple[tuple[float, ...], ...] = ()
    rating: int | None = None


class _Kind(NamedTuple):
    """One kind of evidence: who is asked what, and what becomes of the answers. `keep` returns what to note on each."""

    role: Literal["weak", "strong"]
    request: Callable[[Solver, Look], Request]
    keep: Callable[[Evidence, Sequence[Completion]], list[str]]

    async def gather(self, solver: Solver, look: Look) -> None:
        """Buy it; where a cap refuses it, there is none."""
        result = await solver.ask(self.role, self.request(solver, look))
        if result.finish == "budget":
            return
        for sample, word in zip(result.samples, self.keep(solver.evidence, result.samples), strict=True):
            note = word if sample.failed is None else f"failed: {sample.failed}"
            solver.paid_evidence.append(
                Step(sample.text, self.role, usage=sample.usage, decision=f"{look.what}: {note}")
            )


def _glimpse(solver: Solver, look: Look) -> Request:
    """The draft's own request, cut after one token: the draft, if it is written, begins with the same token."""
    request = solver.step_request("weak")
    return dataclasses.replace(request, max_tokens=1, least_tokens=0, top_logprobs=min(look.n, 20))


def _keep_glimpse(evidence: Evidence, samples: Sequence[Completion]) -> list[str]:
    top = samples[0].top_logprobs
    evidence.first_token = top[0] if top else ()
    return ["a glimpse at it" if top else "no log-probabilities came with it"]


def _call(solver: Solver, look: Look) -> Request:
    solver.evidence.marker = look.token
    return _glimpse(solver, dataclasses.replace(look, n=1))


def _keep_call(evidence: Evidence, samples: Sequence[Completion]) -> list[str]:
    evidence.call = samples[0].call
    return ["how likely it asks for help"]


def _samples(solver: Solver, look: Look) -> Request:
    seed = stable_hash(solver.settings.seed, solver.problem.id, len(solver.steps), "resamples")
    return dataclasses.replace(solver.step_request("weak"), n=look.n, seed=seed, top_logprobs=0, least_tokens=0)


def _keep_samples(evidence: Evidence, samples: Sequence[Completion]) -> list[str]:
    evidence.resamples = tuple(Step(sample.text, "weak") for sample in samples if sample.failed is None)
    return ["to compare with the draft"] * len(samples)


def _rating(solver: Solver, look: Look) -> Request:
    """SpecReason's question to the strong model (arXiv 2504.07891): the utility of a step, 0 to 9."""
    before = solver.trace().text or "(none)"
    draft = solver.draft.text if solver.draft is not None else ""
    question = (
        f"Rate one step of a solution.\n\nProblem:\n{solver.problem.question}\n\nSteps before:\n{before}\n\n"
        f"The step to rate:\n{draft}\n\nHow correct is this step, and how useful for solving the problem? "
        "Answer with one digit from 0 (useless or wrong) to 9 (certainly right), and nothing else."
    )
    problem = Problem(id=solver.problem.id, question=question)
    return Request(problem, stop="solution", max_tokens=8, temperature=0.0, role="strong")


def _keep_rating(evidence: Evidence, samples: Sequence[Completion]) -> list[str]:
    digit = _DIGIT.match(samples[0].text.rpartition("</think>")[2].strip())  # thinking before it does not count
    evidence.rating = int(digit[1]) if digit else None
    return ["cannot be read" if evidence.rating is None else f"{evidence.rating} of 9"]


def _verification(solver: Solver, look: Look) -> Request:
    """AutoMix's question to the weak model about a whole solution (arXiv 2310.12963)."""
    solution = solver.trace().text
    question = (
        f"Check a solution.\n\nProblem:\n{solver.problem.question}\n\nSolution:\n{solution}\n\n"
        'Is its final answer correct? Answer with one word: "yes" if it is, "no" if it is not.'
    )
    seed = stable_hash(solver.settings.seed, solver.problem.id, "verification")
    heat, problem = solver.settings.sampling.temperature, Problem(id=solver.problem.id, question=question)
    return Request(problem, stop="solution", max_tokens=8, n=look.n, temperature=heat, seed=seed, role="weak")


def _keep_verification(evidence: Evidence, samples: Sequence[Completion]) -> list[str]:
    read = [parse(sample.text, "verdict") for sample in samples]
    evidence.verification = tuple(None if value is None else value > 0 for value in read)
    words = {None: "cannot be read", True: "right", False: "wrong"}
    return [words[value] for value in evidence.verification]


KINDS = {
    "first_token": _Kind("weak", _glimpse, _keep_glimpse),
    "call": _Kind("weak", _call, _keep_call),
    "resamples": _Kind("weak", _samples, _keep_samples),
    "rating": _Kind("strong", _rating, _keep_rating),
    "verification": _Kind("weak", _verification, _keep_verification),
}


def answered(steps: Sequence[Step], splitter: Splitter = "paragraphs") -> bool:
    r"""Whether the last step closes a box with an answer, after the thoughts that its prompt and the others opened.

    >>> answered([Step(r"So \boxed{2}.", "weak")]), answered([Step(r"So \boxed{2}.", "weak", thought="<think>")])
    (True, False)
    """
    last = steps[-1]
    before = join_steps((step.text for step in steps[:-1]), splitter)
    return has_answer(open_thought(last.thought + before) + last.text)
