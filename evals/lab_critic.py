"""What lab-critic is taught: to check an attempt against a reference, and to write the step that puts it right.

Attempts are misled solutions with slips, and right ones; the truth of every step is the problem's checker's. References
come at all granularities. Two trap families are withheld (`CRITIC_WITHHELD`), so that a test can tell a skill from a
list of known errors. Prompts are those of the compact adapter, without its instructions.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stepwise.critics.formats.compact_format import write_fields, write_request
from stepwise.critics.signatures import ProposeIntervention, StepCheck, VerifyAttempt, numbered
from stepwise.lab.families import CRITIC_WITHHELD
from stepwise.lab.problems import LabProblem, endless
from stepwise.lab.references import Granularity, reference
from stepwise.seeds import rng as seeded
from stepwise.steps import boxed

from .lab_corpus import END, IGNORE, Bundle, Example, bundle, prompt_text, slipped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GRANULARITIES: dict[Granularity, float] = {"full": 0.6, "regrouped": 0.25, "compressed": 0.15}
RIGHT_SHARE = 0.3
PROPOSALS = 0.5
"""Share of attempts with an error after which the intervention is asked for as well."""
VERIFICATIONS_LATER = 0.2
"""In the second part of the training: the share of attempts that are verified too."""


def _localization(problem: LabProblem, steps: Sequence[str]) -> dict[str, Any]:
    """The true output of VerifyAttempt: checks up to the first wrong step, the earliest and the critical error."""
    first = problem.first_error(steps)
    checks = []
    for i, text in enumerate(steps[: len(steps) if first is None else first + 1]):
        true = problem.true_step(steps[:i])
        verdict = "wrong" if i == first else "right"
        checks.append(StepCheck(step=i, quote=result_of(text), expected=result_of(true or ""), verdict=verdict))
    recovered = boxed(steps[-1]) == [problem.problem.answer]
    return {"checks": checks, "first_error": first, "critical_error": None if recovered else first}


def _intervention(problem: LabProblem, steps: Sequence[str], first_error: int) -> dict[str, Any] | None:
    """The true output of ProposeIntervention, None where no right step exists there."""
    content = problem.true_step(steps[:first_error])
    return None if content is None else {"location": first_error, "content": content}


def result_of(step: str) -> str:
    """What a step comes to: its box, or its last number."""
    return (boxed(step) or re.findall(r"\d+", step) or [""])[-1]


def _example(request: str, reply: str, tokenizer: PreTrainedTokenizerFast) -> Example:
    """A chat of one exchange, with the loss on the reply and the end of the message."""
    prompt = tokenizer(prompt_text(request))["input_ids"]
    answer = tokenizer(reply + END)["input_ids"]
    return prompt + answer, [IGNORE] * (len(prompt) - 1) + answer + [IGNORE]


def criticized(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[Example]:
    """The corpus of the first part of lab-critic's training."""
    rng = seeded("critic", seed)
    for problem, steps, inputs in _attempts(seed, rng):
        found = _localization(problem, steps)
        yield _verification(inputs, found, tokenizer)
        first = found["first_error"]
        if first is None or rng.random() >= PROPOSALS:
            continue
        proposed = _intervention(problem, steps, first)
        if proposed is not None:
            request = write_request(ProposeIntervention, {**inputs, "first_error": first})
            yield _example(request, write_fields(ProposeIntervention, proposed), tokenizer)


def repaired(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[Bundle]:
    """The corpus of the second part: for each attempt the right step in place of every one of its steps, and for some
    the verification. In the first part hardly any of the loss is on steps, since verifications are ten times as long.
    """
    rng = seeded("repair", seed)
    for problem, steps, inputs in _attempts(seed, rng):
        found = []
        if rng.random() < VERIFICATIONS_LATER:
            found.append(_verification(inputs, _localization(problem, steps), tokenizer))
        for place in range(min(len(steps), len(problem.operations))):
            proposed = _intervention(problem, steps, place)
            if proposed is not None:
                request = write_request(ProposeIntervention, {**inputs, "first_error": place})
                found.append(_example(request, write_fields(ProposeIntervention, proposed), tokenizer))
        if found:
            yield bundle(found)


def _attempts(seed: int, rng: random.Random) -> Iterator[tuple[LabProblem, list[str], dict[str, str]]]:
    """Problems without the withheld families, an attempt at each, and what the critic is shown."""
    for problem in endless(seed, long_share=0.08):
        if set(problem.traps) & set(CRITIC_WITHHELD):
            continue
        steps = slipped(problem, rng, misled=rng.random() >= RIGHT_SHARE)
        granularity = rng.choices(list(GRANULARITIES), list(GRANULARITIES.values()))[0]
        inputs = {
            "problem": problem.problem.question,
            "reference": reference(problem, granularity),
            "attempt": numbered(steps),
        }
        yield problem, steps, inputs


def _verification(inputs: dict[str, str], found: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Example:
    return _example(write_request(VerifyAttempt, inputs), write_fields(VerifyAttempt, found), tokenizer)
