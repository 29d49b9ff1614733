"""Attempts that are sums, and scripted models that find the wrong one only if the prompt is right."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from stepwise.critics.feedback import training_examples
from stepwise.data.processbench import ProcessBenchRow
from stepwise.types import Localization, Problem, Step, Trace
from tests.critics.critic import judged, verified
from tests.scripted_lm import Messages, ScriptedLM

SECRET = "Work out every sum again."
_SUM = re.compile(r"(\d+) \+ (\d+) = (\d+)")


def sums(first_errors: Sequence[int | None], *, seed: int = 0, steps: int = 4) -> list[Any]:
    """DSPy examples of `steps` sums each, of which the one at `first_errors[i]` is the first that is wrong."""
    made = []
    for row, first in enumerate(first_errors):
        numbers = [(seed + 7 * row + 3 * i + 2, row + 5 * i + 1) for i in range(steps)]
        texts = [f"{a} + {b} = {a + b + (i == first)}." for i, (a, b) in enumerate(numbers)]
        problem = Problem(f"p{row}", f"Add the numbers of row {seed}.{row}.")
        trace = Trace(problem, tuple(Step(text, "weak") for text in texts))
        made.append(ProcessBenchRow(problem, trace, Localization(first)))
    return training_examples(made)


def first_wrong(prompt: str) -> int | None:
    """What is true of the attempt in a prompt."""
    found = [(int(a) + int(b) == int(c)) for a, b, c in _SUM.findall(prompt)]
    return found.index(False) if False in found else None


def answer(messages: Messages, able: bool) -> str:
    """A reply to VerifyAttempt or JudgePrefix: the truth where the model is `able`, else step 0, or "wrong"."""
    request = messages[-1]["content"]
    steps, truth = len(_SUM.findall(request)), first_wrong(request)
    if request.endswith("#right"):
        return judged(truth is None if able else False)
    return verified(truth if able else 0, steps=steps)


def follower() -> ScriptedLM:
    """Finds the first wrong sum where its instructions have the SECRET; else it says step 0."""
    return ScriptedLM(lambda messages: answer(messages, SECRET in messages[0]["content"]), "follower")


def imitator() -> ScriptedLM:
    """Finds it where a solved example stands before the request; else it says step 0."""

    def reply(messages: Messages) -> str:
        return answer(messages, any(message["role"] == "assistant" for message in messages))

    return ScriptedLM(reply, "imitator")


def teacher() -> ScriptedLM:
    """Always finds it."""
    return ScriptedLM(lambda messages: answer(messages, True), "teacher")


def proposer(candidates: Sequence[str], wanted: str = "") -> ScriptedLM:
    """Writes what DSPy's optimizers ask for: as instructions the `candidates` in turn, "none" for all other fields.

    After the last candidate comes the last one again. What is not asked for with `wanted` in the prompt gets "Hurry.".
    """
    left = list(candidates)

    def reply(messages: Messages) -> str:
        prompt = "\n".join(str(message["content"]) for message in messages)
        request = prompt[prompt.rindex("Respond with") :]
        values = dict.fromkeys(re.findall(r"`(?:\[\[ ## )?(\w+)(?: ## \]\])?`", request), "none")
        for name in values:
            if "instruction" in name:
                values[name] = "Hurry." if wanted not in prompt else left.pop(0) if len(left) > 1 else left[0]
        if "JSON" in request:
            return json.dumps(values)
        return "\n".join(f"[[ ## {name} ## ]]\n{text}" for name, text in values.items())

    return ScriptedLM(reply, "proposer")
