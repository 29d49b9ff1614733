"""What the decider refuses before it asks a model."""

from __future__ import annotations

import math
from typing import Any

import pytest

from stepwise.errors import DataError

dspy = pytest.importorskip("dspy")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scores": [0.5, 1.7]}, r"scores\[1\] is 1.7; a probability lies in \[0, 1\]"),
        ({"scores": [math.nan]}, r"scores\[0\] is nan"),
        ({"scores": [0.5, None, 0.5]}, "there are 3 scores for 2 steps"),
        ({"budget": -4}, "budget is -4; give the tokens that are left"),
    ],
)
def test_scores_and_budgets_that_mean_nothing_are_refused(given: dict[str, Any], message: str) -> None:
    from stepwise.critics import StepDecider
    from tests.scripted_lm import ScriptedLM

    with pytest.raises(DataError, match=message):
        StepDecider(ScriptedLM([]))(problem="1 + 1?", steps=["One.", "Two."], **given)
