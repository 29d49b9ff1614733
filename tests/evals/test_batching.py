"""What a model reaches of its curve is counted in batches, and what the curve allows follows from the lengths."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.batching import allowed, curve_of, written
from stepwise.errors import DataError
from stepwise.models.engine import Engine
from stepwise.models.engine.curve import Curve
from stepwise.types import Problem

CURVE = Curve({1: 1.0, 2: 9.0, 4: 12.0, 8: 4.0})  # one by one up to 5, then together


def test_a_curve_is_read_from_rates() -> None:
    assert curve_of("1:50,16:100").seconds == {1: 0.02, 16: 0.16}
    for wrong in ("50", "1:a", "1:0", "2:50"):
        with pytest.raises(DataError, match="curve is"):
            curve_of(wrong)


def test_the_least_time_follows_from_what_is_alive_at_each_token() -> None:
    assert allowed(CURVE, [3], 8) == 3.0
    assert allowed(CURVE, [3, 1], 8) == 2.0 + 2 * 1.0
    assert allowed(CURVE, [2] * 8 + [5], 8) == pytest.approx(2 * 4.0 + 5 * 1.0)  # the ninth waits for a place


def test_four_problems_run_in_no_batch_that_the_curve_calls_slower_and_eight_together(tiny_gguf_path: Path) -> None:
    with Engine.load(tiny_gguf_path, context=1024, sequences=8) as engine:
        problems = [Problem(f"p{i}", f"{i} + 1 = ?") for i in range(8)]
        four = written(engine, problems[:4], CURVE, together=False)
        together = written(engine, problems[:4], CURVE, together=True)
        eight = written(engine, problems, CURVE, together=False)
    assert four["slower than singles"] == 0 < together["slower than singles"]
    assert set(four["sizes"]) == {1}
    assert max(eight["sizes"]) == 8
    assert 0.95 <= four["by count"] <= 1.0
    assert 0.95 <= eight["by count"] <= 1.0
    assert together["by count"] < 0.5
