"""The study of asking for help: what is read off the frontiers, and which settings are tried."""

from __future__ import annotations

import numpy as np
import pytest

from evals import asking
from stepwise.routing import Relay, Threshold
from stepwise.routing.compare import Measured, TraceView
from stepwise.routing.metrics import cost_of
from stepwise.types import Problem, Step, Trace, Usage


def arm(right: int, strong_tokens: int, n: int = 10) -> Measured:
    """The first `right` of n problems right, each at so many strong tokens."""
    author = "strong" if strong_tokens else "weak"
    step = Step("So it is.", author, usage=Usage("m", 1, 5, 5, strong_tokens or 7))
    views = tuple(
        TraceView(Trace(Problem(f"p{i}", "?", "1"), (step,), "answer"), "arm", "CORRECT" if i < right else "WRONG")
        for i in range(n)
    )
    return Measured("arm", "arm", 0.5, views, cost_of([view.trace for view in views]))


def test_the_share_of_the_gap_is_read_off_the_line_through_the_settings_and_both_models() -> None:
    weak, strong = arm(4, 0), arm(9, 100)
    assert asking.gap_at([weak, strong], [], 0.5).value == pytest.approx(0.5)  # a random mix
    assert asking.gap_at([weak, strong], [arm(8, 20)], 0.2).value == pytest.approx(0.8)
    assert asking.gap_at([weak, strong], [arm(8, 20)], 0.1).value == pytest.approx(0.4)
    found = asking.gap_at([weak, strong], [arm(8, 20)], 0.2)
    assert found.low is not None
    assert found.low < 0.8
    assert asking.gap_at([strong, weak], [], 0.5).value is None  # no gap to share


def test_settings_flag_growing_shares_and_no_setting_twice() -> None:
    values = [i / 100 for i in range(100)]
    tried = asking._spread(Threshold(0.5), "low", values)
    flagged = [sum(value < policy.threshold for value in values) for policy in tried]
    assert flagged == sorted(flagged)
    assert (flagged[0], flagged[-1]) == (3, 30)
    assert len(asking._spread(Relay(), "high", [1.0] * 50)) == 1


def test_what_is_caught_is_counted_by_rank_and_equal_ranks_in_part() -> None:
    wrong = np.array([0.5, 0.5, 0.0, 1.0])
    assert asking.caught(np.array([1.0, 2.0, 3.0, 4.0]), wrong, 0.25) == pytest.approx(0.5)
    assert asking.caught(np.zeros(4), wrong, 0.25) == pytest.approx(0.25)  # no order: as at random
    assert asking.caught(np.array([1.0, 2.0, 3.0, 4.0]), wrong, 1.0) == pytest.approx(1.0)
