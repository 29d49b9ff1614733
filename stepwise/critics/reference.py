"""A critic that needs no model: the reference solution itself.

Its first error is the first step with a number that neither the problem nor the reference has
(`data.localization.first_absent`), its proposal the reference's next step. Training on that is distillation of
references, one step at a time, and is called so: the critic of InT writes as the solver would, a reference does not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stepwise.data.localization import numbers_in
from stepwise.steps import split_steps

NO_REFERENCE = 'the problem has no reference solution; give one, or set another critic.method than "reference"'
_GSM8K = re.compile(r"<<[^<>\n]*>>|^####.*", re.MULTILINE)


def next_step(reference: str, question: str, prefix: Sequence[str]) -> str | None:
    r"""The first step of `reference` whose result is not there yet, never its last step, which states the answer.

    The result of a step is its last number. Steps end at blank lines, or at every line where there are none. None where
    no step is left but the last.

    >>> reference = "Beth has 48 / 2 = 24.\nThey have 48 + 24 = 72.\nSo 72."
    >>> next_step(reference, "Ann has 48, Beth half of it?", [])
    'Beth has 48 / 2 = 24.'
    >>> next_step(reference, "Ann has 48, Beth half of it?", ["Half of 48 is 24, since 2 * 24 = 48."])
    'They have 48 + 24 = 72.'
    """
    text = _GSM8K.sub("", reference)
    steps = split_steps(text)
    if len(steps) == 1:
        steps = split_steps(text, mode="lines")
    there = set(numbers_in(" ".join((question, *prefix))))
    return next((step for step in steps[:-1] if (found := numbers_in(step)) and found[-1] not in there), None)
