"""What a policy may look at before it decides: glimpses, samples to compare, ratings and verifications.

Every piece is bought under the caps and kept as a step in `Step.evidence`, so that it counts in every cost. What fails,
may not be afforded or cannot be read is evidence that is missing, not an error: the policy decides without it.

A rating and a verification are asked for as questions of their own, under the prompt that problems are solved under:
any backend can answer them, but neither shares a cached prefix with the solution.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from stepwise.models.base import Completion, Request
from stepwise.models.budget import Reservation
from stepwise.models.scorers.judge import parse
from stepwise.routing.calls import Asked, Calls, Role
from stepwise.routing.open import OpenProblem
from stepwise.routing.policy import Look
from stepwise.seeds import stable_hash
from stepwise.steps import SEPARATOR
from stepwise.types import Problem, Step, Usage

_DIGIT = re.compile(r"\W*([0-9])(?![0-9]|\.[0-9])")


def rating_question(question: str, before: Sequence[str], step: str) -> str:
    """What the strong model is asked about a draft (SpecReason, arXiv 2504.07891: utility of a step, 0 to 9)."""
    return (
        f"Rate one step of a solution.\n\nProblem:\n{question}\n\n"
        f"Steps before:\n{SEPARATOR.join(before) or '(none)'}\n\n"
        f"The step to rate:\n{step}\n\nHow correct is this step, and how useful for solving the problem? "
        "Answer with one digit from 0 (useless or wrong) to 9 (certainly right), and nothing else."
    )


def read_rating(text: str) -> int | None:
    """The digit that an answer begins with, None where there is none; thinking before it does not count."""
    found = _DIGIT.match(text.rpartition("</think>")[2].strip())
    return int(found[1]) if found else None


def verification_question(question: str, steps: Sequence[str]) -> str:
    """What the weak model is asked about a whole solution (AutoMix, arXiv 2310.12963)."""
    return (
        f"Check a solution.\n\nProblem:\n{question}\n\nSolution:\n{SEPARATOR.join(steps)}\n\n"
        'Is its final answer correct? Answer with one word: "yes" if it is, "no" if it is not.'
    )


def gather(calls: Calls, look: Look, items: Sequence[OpenProblem]) -> None:
    """Get `look` for all `items`, as many at a time as the caps allow; where a scorer fails or may not be asked, the
    item is ended.
    """
    if look.what == "scores":
        calls.score(items)
    kind = _KINDS.get(look.what)
    if kind is None or not calls.prepared(kind.role, items):
        return

    def reserve(item: OpenProblem) -> Reservation:
        request = kind.request(calls, look, item)
        own = request.problem.question if request.problem != item.problem else ""
        return calls.reserve(kind.role, item, request, own)

    calls.served(items, reserve, partial(_asked, calls, look, kind))


class _Kind(NamedTuple):
    """One kind of evidence: who is asked what, and what becomes of the answers. `keep` returns what to note on each."""

    role: Role
    request: Callable[[Calls, Look, OpenProblem], Request]
    keep: Callable[[OpenProblem, Sequence[Completion]], list[str]]


def _asked(calls: Calls, look: Look, kind: _Kind, asked: Sequence[Asked]) -> None:
    requests = [kind.request(calls, look, item) for item, _ in asked]
    answers = iter(calls.ask(kind.role, requests))
    for (item, held), request in zip(asked, requests, strict=True):
        made = [next(answers) for _ in range(request.n)]
        if not calls.paid(kind.role, request):
            held.settle(sum((one.usage for one in made), Usage()))
        for one, word in zip(made, kind.keep(item, made), strict=True):
            note = f"failed: {one.error or 'no reason given'}" if one.finish == "error" else word
            item.evidence.append(Step(one.text, kind.role, usage=one.usage, decision=f"{look.what}: {note}"))


def _glimpse(calls: Calls, look: Look, item: OpenProblem) -> Request:
    """The draft's own request, cut after one token: the draft, if it is written, begins with the same token."""
    request = calls.step_request("weak", item)
    return dataclasses.replace(request, max_tokens=1, top_logprobs=min(look.n, 20))


def _keep_glimpse(item: OpenProblem, made: Sequence[Completion]) -> list[str]:
    top = made[0].top_logprobs
    item.looked.first_token = top[0] if top else ()
    return ["a glimpse at it" if top else "no log-probabilities came with it"]


def _samples(calls: Calls, look: Look, item: OpenProblem) -> Request:
    seed = stable_hash(calls.settings.seed, item.problem.id, len(item.steps), "resamples")
    return dataclasses.replace(calls.step_request("weak", item), n=look.n, seed=seed, top_logprobs=0)


def _keep_samples(item: OpenProblem, made: Sequence[Completion]) -> list[str]:
    item.looked.resamples = tuple(Step(one.text, "weak") for one in made if one.finish != "error")
    return ["to compare with the draft"] * len(made)


def _rating(calls: Calls, look: Look, item: OpenProblem) -> Request:
    draft = item.current.text if item.current is not None else ""
    question = rating_question(item.problem.question, [step.text for step in item.steps], draft)
    return Request(Problem(item.problem.id, question), stop="solution", max_tokens=8, temperature=0.0)


def _keep_rating(item: OpenProblem, made: Sequence[Completion]) -> list[str]:
    item.looked.rating = read_rating(made[0].text)
    return ["cannot be read" if item.looked.rating is None else f"{item.looked.rating} of 9"]


def _verification(calls: Calls, look: Look, item: OpenProblem) -> Request:
    question = verification_question(item.problem.question, [step.text for step in item.steps])
    seed = stable_hash(calls.settings.seed, item.problem.id, "verification")
    heat = calls.settings.sampling.temperature
    return Request(
        Problem(item.problem.id, question), stop="solution", max_tokens=8, n=look.n, temperature=heat, seed=seed
    )


def _keep_verification(item: OpenProblem, made: Sequence[Completion]) -> list[str]:
    read = [parse(one.text, "verdict") for one in made]
    item.looked.verification = tuple(None if value is None else value > 0 for value in read)
    words = {None: "cannot be read", True: "right", False: "wrong"}
    return [words[value] for value in item.looked.verification]


_KINDS = {
    "first_token": _Kind("weak", _glimpse, _keep_glimpse),
    "resamples": _Kind("weak", _samples, _keep_samples),
    "rating": _Kind("strong", _rating, _keep_rating),
    "verification": _Kind("weak", _verification, _keep_verification),
}
