"""The comparison of routing policies: what is chosen where, who beats whom, and a run that goes on where it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from evals import routing, routing_robustness, routing_world
from evals.routing_arms import ARMS, FEES, SHARES, Material, chosen
from evals.routing_claims import (
    Ends,
    choose,
    filtered_against_published,
    step_against_query,
    why_step,
)
from evals.routing_rows import ALL, HINDSIGHT, STRONG, Cost, Row, costs, curves, hindsight
from evals.routing_samples import best, majority
from evals.routing_tables import compared, sentences
from evals.routing_world import ChangedScorer
from stepwise.errors import DataError
from stepwise.models.scorers import Scored
from stepwise.routing.estimates import Outcomes
from stepwise.routing.mixing import halves
from stepwise.types import Problem, Usage
from tests.fakes import ScriptedScorer
from tests.routing.lab_world import LabWorld
from tests.routing.test_on_lab import shipped

N = 40
WEAK = [i % 5 < 2 for i in range(N)]  # 40 % right
PROBLEM = Problem("p", "What is 1 + 1?")


def row(arm: str, correct: list[bool], strong: float, setting: float | None = None, level: str = "step", seed: int = 0):
    flat = (10.0,) * N
    return Row(
        arm, level, setting, seed, tuple(correct), (strong,) * N, (10.0 + strong,) * N, flat, (strong,) * N, flat
    )


def right(share: float) -> list[bool]:
    """The weak model's right ones and more, up to a share of all."""
    return [was or (i * 7919 % N) < share * N for i, was in enumerate(WEAK)]


def ends() -> list[Row]:
    return [row("never", WEAK, 0.0, level="alone"), row("always", [True] * N, 100.0, level="alone")]


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


def test_seeds_are_averaged_problem_by_problem() -> None:
    rows = [row("a", [i % 2 == seed for i in range(N)], 10.0 + seed, 0.5, seed=seed) for seed in (0, 1)]
    (found,) = curves(rows, STRONG)["a"]
    assert set(found.correct) == {0.5}
    assert set(found.cost) == {10.5}


def test_parameter_tokens_weigh_what_each_model_ran_through() -> None:
    one = row("a", WEAK, 5.0)
    assert one.cost(Cost("x", "x", (1.0, 100.0, 10_000.0)))[0] == 10 + 500 + 100_000
    assert [cost.sizes for cost in costs((1.0, 2.0, 3.0))[:3]] == [None, None, (1.0, 2.0, 3.0)]


def test_hindsight_takes_the_cheapest_right_one_of_each_problem() -> None:
    truth = row("truth at each step", [i < 30 for i in range(N)], 20.0, level="bound")
    found = hindsight([*ends(), truth], STRONG)
    assert found is not None
    assert found.correct == (1.0,) * N
    expected = [0.0 if was else 20.0 if i < 30 else 100.0 for i, was in enumerate(WEAK)]
    assert list(found.cost) == expected
    assert hindsight(ends(), STRONG) is None


def test_a_setting_is_chosen_on_one_half_and_told_with_its_figures_on_the_other() -> None:
    here, there = halves(N)
    assert sorted(here + there) == list(range(N))
    lucky = [True if i in here else WEAK[i] for i in range(N)]  # good where it is chosen, worthless elsewhere
    both = Ends(*(curves(ends(), STRONG)[name][0] for name in ("never", "always")))
    arms = curves([row("lucky", lucky, 10.0), row("honest", [True] * N, 50.0)], STRONG)
    found = choose(arms, both, 0.8, samples=50)
    assert found is not None
    assert (found.arm, found.share, found.pgr.value) == ("lucky", 0.1, 0.0)


def families(cheap: float, dear: float):
    both = Ends(*(curves(ends(), STRONG)[name][0] for name in ("never", "always")))
    step = curves([row("s", right(0.99), cheap, 0.1)], STRONG)
    query = curves([row("q", right(0.99), dear, 0.1, "query")], STRONG)
    return step, query, both


def test_the_claim_on_whole_problem_routers_follows_the_rows() -> None:
    assert "CPT80: shown. s over q (chosen on the other half): 0.20" in step_against_query(
        *families(10, 50), samples=50
    )
    assert "CPT80: refuted" in step_against_query(*families(40, 50), samples=50)
    step, _, both = families(10, 50)
    assert "no query-level arm" in step_against_query(step, {}, both, samples=50)


def test_the_claim_on_beliefs_follows_the_rows() -> None:
    both = Ends(*(curves(ends(), STRONG)[name][0] for name in ("never", "always")))
    good, bad = row("planned", right(0.95), 10.0), row("published", right(0.5), 10.0)
    (line,) = filtered_against_published(curves([good, bad], STRONG), both, samples=50)
    assert "planned beats published at equal strong tokens: shown" in line
    swapped = curves([row("planned", right(0.5), 10.0), row("published", right(0.95), 10.0)], STRONG)
    assert "refuted" in filtered_against_published(swapped, both, samples=50)[0]


def test_routing_loses_where_all_tokens_count_and_the_sentence_says_so() -> None:
    rows = [*ends(), dataclasses.replace(row("threshold", right(0.99), 60.0, 0.5), all_tokens=(170.0,) * N)]
    said = sentences(rows, [STRONG, ALL], samples=20)
    assert any(line.startswith("(d) in strong tokens") and line.endswith("routing wins.") for line in said)
    assert any(line.startswith("(d) in all generated tokens") and "strong model alone wins" in line for line in said)
    assert [line.arm for line in compared(rows, ALL, samples=20)] == ["threshold"]


def test_the_reason_compares_knowing_which_problem_with_knowing_which_step() -> None:
    truth = row("truth at each step", [True] * N, 6.0, level="bound")
    said = why_step([*ends(), truth])
    assert said is not None
    assert "takes 60% of the strong model's tokens" in said  # the weak model fails 24 of 40
    assert "takes 6% and solves 100.0%" in said
    assert why_step(ends()) is None


def test_votes() -> None:
    assert majority(["3", None, "4", "4", "3"]) == "3"
    assert majority([None, None]) is None
    nothing = Usage()
    assert best([Scored([0.9, 0.2], nothing), Scored([0.5], nothing), Scored([], nothing, "no step")]) == 1


def test_fewer_points_are_taken_evenly_and_an_unknown_arm_is_refused() -> None:
    few = Material(None, "plain", "plain", (), (), (), points=3)  # type: ignore[arg-type]
    assert few.spread(SHARES) == [SHARES[0], SHARES[6], SHARES[-1]]
    assert Material(None, "plain", "plain", (), (), ()).spread(FEES) == list(FEES)  # type: ignore[arg-type]
    assert {arm.name for arm in chosen(["planned"])} == {"never", "always", "planned"}
    with pytest.raises(DataError, match="'plan'"):
        chosen(["plan"])


@pytest.fixture
def world(monkeypatch) -> LabWorld:
    made = LabWorld(12, "test")
    for split, n in (("train", 70), ("val", 30)):
        made.made |= LabWorld(n, split).made
    models = {"llamacpp/lab-weak": made.weak, "llamacpp/lab-strong": made.strong}
    monkeypatch.setattr(routing_world, "load_backend", lambda spec, **_: models[spec.model])
    monkeypatch.setattr(routing_world, "load_scorer", lambda *_, **__: made.scorer)
    monkeypatch.setenv("COLUMNS", "200")
    return made


SIZE = ["--problems", "12", "--seeds", "2", "--points", "3", "--fit", "70", "--calibrate", "30", "--resamples", "20"]


def test_a_run_cut_off_goes_on_and_ends_in_the_same_rows_without_asking_a_model_again(
    world: LabWorld, tmp_path: Path, capsys
) -> None:
    args = [*SIZE, "--arms", "threshold", "planned", "published", "truth at each step", "question classifier"]
    args += ["--out", str(tmp_path / "out")]
    assert routing.main(args) == 0
    file = tmp_path / "out" / "rows.jsonl"
    rows = file.read_text().splitlines()
    assert {json.loads(line)["arm"] for line in rows} == {"never", "always", *args[args.index("--arms") + 1 : -2]}
    file.write_text("\n".join(rows[:5]) + "\n")
    asked = len(world.weak.requests) + len(world.strong.requests)
    assert routing.main(args) == 0
    assert file.read_text().splitlines() == rows
    assert len(world.weak.requests) + len(world.strong.requests) == asked
    result = json.loads((tmp_path / "out" / "routing.json").read_text())
    area = {line["arm"]: line["area"]["value"] for line in result["costs"]["strong_tokens"]}
    assert area["truth at each step"] > area["threshold"] > area["question classifier"]
    assert area[HINDSIGHT] >= area["truth at each step"]
    assert "The router's own work" in capsys.readouterr().out


def test_scores_that_are_too_low_cost_tokens_until_thresholds_are_set_again(world: LabWorld, tmp_path: Path) -> None:
    fresh = routing_world.generate("test-long", 100, start=routing_world.ELSEWHERE)
    world.made |= LabWorld(12, "test-long").made | {one.problem.id: one for one in fresh}
    args = [*SIZE, "--scorers", "strict", "--arms", "threshold", "--out", str(tmp_path / "out")]
    assert routing_robustness.main(args) == 0
    result = json.loads((tmp_path / "out" / "robustness.json").read_text())
    areas = {key: one["value"] for key, one in result["area"]["threshold"].items()}
    assert list(areas) == ["as it is", "strict", "strict, refitted", "longer problems", "longer problems, refitted"]
    assert areas["strict, refitted"] == pytest.approx(areas["as it is"])  # the same steps are flagged
    kept = result["kept"]["threshold"]
    assert kept["strict"][1] > kept["as it is"][1]


@pytest.mark.slow
@pytest.mark.skipif(not shipped(), reason="the lab's models are not in this checkout")
def test_every_arm_on_thirty_lab_problems(tmp_path: Path) -> None:
    args = ["--problems", "30", "--seeds", "1", "--points", "4", "--samples", "4", "--out", str(tmp_path / "out")]
    assert routing.main(args) == 0
    result = json.loads((tmp_path / "out" / "routing.json").read_text())
    lines = {line["arm"]: line for line in result["costs"]["strong_tokens"]}
    assert {arm.name for arm in ARMS if arm.level != "alone"} <= set(lines)
    area = {arm: line["area"]["value"] for arm, line in lines.items()}
    assert area["truth at each step"] > 0.9
    assert max(area["threshold"], area["planned"]) > max(area["random"], area["random problems"]) + 0.1
    assert lines["majority of k"]["most"] < 0.3  # the weak model errs by rule, so votes do not help
    assert all(row["share_of_decoding"] < 0.1 for row in result["overhead"])


def test_outcomes_of_one_arm_on_other_problems_are_refused() -> None:
    short = Row("a", "step", 0.5, 1, (True,), (1.0,), (1.0,), (1.0,), (1.0,), (1.0,))
    with pytest.raises(DataError, match="different problems"):
        curves([row("a", WEAK, 1.0, 0.5), short], STRONG)
    assert isinstance(curves([short], STRONG)["a"][0], Outcomes)
