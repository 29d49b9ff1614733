"""The comparison of loops: what an arm saves is read off the target that was frozen before."""

from __future__ import annotations

import pytest

from evals.rounds import ARMS, DOSES, SETTINGS, paired, tokens_at_target
from evals.rounds import _Routed as Routed
from stepwise.rounds import LoopPoint
from stepwise.routing.compare import PolicyRow


def point(policy: str, right: list[int], strong: list[int]) -> LoopPoint:
    row = PolicyRow(policy, "x", None, sum(right) / 4, 0.0, 1.0, None, sum(strong), 90, None, 9, None, n=4)
    return LoopPoint(0, "test", row, 1, tuple(right), tuple(strong), tuple(strong))


def arm(name: str, alone: list[int], routed: list[int], cost: int) -> Routed:
    points = [point("Never (weak alone)", alone, [0] * 4), point("Threshold 0.50", routed, [cost] * 4)]
    if name == "none":
        points.insert(1, point("Always (strong alone)", [1] * 4, [100] * 4))
    return Routed(name, 0, "refitted", None, tuple(points))


def test_tokens_at_the_target_are_measured_against_the_untrained_model_and_paired_by_problem() -> None:
    none = arm("none", [0, 0, 0, 0], [1, 1, 1, 1], 40)
    loop = arm("loop", [1, 1, 0, 0], [1, 1, 1, 1], 10)
    assert tokens_at_target(none, none) == pytest.approx(32)  # .8 of the way to all right
    assert tokens_at_target(loop, none) == pytest.approx(6)  # from a half, in its own line
    assert tokens_at_target(arm("rl", [1, 1, 1, 1], [1, 1, 1, 1], 0), none) == 0
    gain = paired([loop], [none])
    assert gain is not None
    assert gain.value == pytest.approx(26)
    assert gain.low <= gain.value <= gain.high


def test_the_arms_are_those_that_were_stated() -> None:
    assert ARMS[0] == "none"
    assert [f"distilled, {dose:g}" for dose in DOSES] == [name for name in ARMS if name.startswith("distilled")]
    assert {"rl", "int", "loop", "lessons"} < set(ARMS)
    assert len(SETTINGS) == 5
