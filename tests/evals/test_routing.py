"""Routing under a worse scorer and on longer problems, and the router's own work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals import routing_overhead, routing_robustness
from evals.routing_robustness import ChangedScorer
from evals.scorers_routing import majority
from stepwise.lab.problems import generate
from stepwise.types import Problem
from tests.fakes import ScriptedScorer
from tests.routing.lab_world import LabWorld
from tests.routing.test_on_lab import shipped

PROBLEM = Problem("p", "What is 1 + 1?")


def test_a_changed_scorer_is_the_same_each_time_and_only_noise_changes_the_order() -> None:
    steps = [f"step {i}" for i in range(12)]
    scorer = ScriptedScorer({text: (i + 1) / 14 for i, text in enumerate(steps)})
    plain = ChangedScorer(scorer, "plain").score(PROBLEM, steps)
    assert plain == scorer.score(PROBLEM, steps)
    for kind in ("cold", "hot", "strict", "lenient"):
        changed = ChangedScorer(scorer, kind).score(PROBLEM, steps)
        assert changed == sorted(changed), kind
        assert changed != plain
    noisy = ChangedScorer(scorer, "noisy")
    seen = noisy.score(PROBLEM, steps)
    assert seen != sorted(seen)
    assert seen == noisy.score(PROBLEM, steps)
    assert seen[:3] == noisy.score(PROBLEM, steps[:3])


def test_votes() -> None:
    assert majority(["3", None, "4", "4", "3"]) == "3"
    assert majority([None, None]) is None


def test_scores_that_are_too_low_cost_tokens_until_thresholds_are_set_again(tmp_path: Path) -> None:
    world = LabWorld(12, "test")
    elsewhere = routing_robustness._ELSEWHERE
    for split, n, at in (("train", 70, 0), ("val", 30, 0), ("test-long", 12, 0), ("test-long", 30, elsewhere),
                         ("test-long", 70, 2 * elsewhere)):  # fmt: skip
        world.made |= {made.problem.id: made for made in generate(split, n, start=at)}
    size = ["--problems", "8", "--points", "2", "--fit", "20", "--calibrate", "16", "--resamples", "20"]
    args = [*size, "--scorers", "strict", "--entries", "threshold", "--out", str(tmp_path / "out")]
    assert routing_robustness.main(args, models=(world.weak, world.strong, world.scorer)) == 0
    result = json.loads((tmp_path / "out" / "robustness.json").read_text())
    areas = {key: one["value"] for key, one in result["area"]["threshold"].items()}
    assert list(areas) == ["as it is", "strict", "strict, refitted", "longer problems", "longer problems, refitted"]
    assert areas["strict, refitted"] == pytest.approx(areas["as it is"])  # the same steps are flagged
    kept = result["kept"]["threshold"]
    assert kept["strict"][1] > kept["as it is"][1]


@pytest.mark.slow
@pytest.mark.skipif(not shipped(), reason="the lab's models are not in this checkout")
def test_the_routers_own_work_is_a_small_part_of_decoding(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert routing_overhead.main(["--problems", "32", "--fit", "100", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert all(row["share"] < 0.1 for row in rows)
