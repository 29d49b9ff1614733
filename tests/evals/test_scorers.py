"""The benchmark of scorers: what it chooses on others, keeps, and counts; on solutions and outcomes made by hand."""

from __future__ import annotations

import doctest
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals import real, scorers_frontier
from evals.scorers import main
from evals.scorers_arms import Row, asked
from evals.scorers_frontier import RANDOM, STRONG, WEAK, Arm, Outcomes, against_random, at_budget, costs_of, size_ratio
from evals.scorers_tables import CHEAP, above, fixed, quality_of, splits_of
from stepwise.data.step_labels import LabelledSolution
from stepwise.models.scorers import Scored
from stepwise.types import Usage


def solutions(n: int) -> list[LabelledSolution]:
    """Three steps each, the last one wrong in every other solution."""
    return [LabelledSolution.of(f"{i} + 1?", ["One.", "Add.", f"It is {i}."], [1, 1, 1 - i % 2]) for i in range(n)]


def scores(made: list[LabelledSolution], wrong: float = 0.3) -> list[list[float]]:
    return [[0.9, 0.8, 0.7 if s.first_error is None else wrong] for s in made]


# ----- what scores are worth


def test_halves_are_used_where_there_are_both_and_folds_share_no_problem() -> None:
    made = solutions(20)
    halves = {s: "odd" if i < 8 else "even" for i, s in enumerate(made)}
    assert splits_of(made, halves, 5) == [(list(range(8, 20)), list(range(8)))]
    folds = splits_of(made, dict.fromkeys(made, "even"), 5)
    assert sorted(i for _, measured in folds for i in measured) == list(range(20))
    assert all(not {made[i].problem_id for i in a} & {made[i].problem_id for i in b} for a, b in folds)


def test_threshold_and_calibration_are_those_of_the_other_problems() -> None:
    made = solutions(20)
    halves = {s: "odd" if i % 4 < 2 else "even" for i, s in enumerate(made)}
    splits = splits_of(made, halves, 5)
    good: Any = quality_of("good", fixed(scores(made), made), made, splits)
    assert (good.auroc.value, good.f1.value, good.failed, len(good.solutions)) == (1.0, 100.0, 0, 10)
    assert good.ece.value < good.ece_raw
    shifted = [
        [x / 2 for x in each] if halves[s] == "odd" else each for s, each in zip(made, scores(made), strict=True)
    ]
    moved: Any = quality_of("moved", fixed(shifted, made), made, splits)
    assert (moved.auroc.value, moved.f1.value) == (1.0, 0.0)  # ranks are as good, the others' threshold is not


def test_solutions_without_scores_are_counted_and_leads_are_on_those_of_both() -> None:
    made = solutions(40)
    splits = splits_of(made, {}, 4)
    some: Any = quality_of(
        "some", fixed([each if i % 5 else None for i, each in enumerate(scores(made))], made), made, splits
    )
    assert (some.failed, len(some.solutions)) == (8, 32)
    flat = quality_of("flat", fixed([[0.5] * 3 for _ in made], made), made, splits)
    lead = above(some, flat)
    assert lead is not None
    assert lead.value == pytest.approx(0.5)


# ----- rows


class Kept:
    """A run that keeps rows in memory."""

    def __init__(self) -> None:
        self.kept: list[Row] = []

    def rows(self, name: str, cls: Any) -> list[Row]:
        return list(self.kept)

    def write(self, name: str, *rows: Row) -> None:
        self.kept += rows


def test_what_a_scorer_said_is_asked_once_and_only_up_to_first_errors() -> None:
    made, seen = solutions(4), list[int]()

    def load(stack: ExitStack) -> Any:
        def ask(s: LabelledSolution) -> Scored:
            seen.append(len(s.steps[: s.judged.stop]))
            return Scored([0.5] * 3, Usage("m", 1, evaluated_tokens=7))

        return ask

    run: Any = Kept()
    assert len(asked(run, {"m": load}, made[:2])["m"]) == 2
    said = asked(run, {"m": load}, made)["m"]
    assert seen == [3] * 4
    assert [said[s].usage.evaluated_tokens for s in made] == [7] * 4
    assert len(run.kept) == 4


def test_the_command_measures_published_scores_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = solutions(20)
    rows = [
        {"problem": s.question, "steps": list(s.steps), "label": -1 if s.first_error is None else 2,
         "scores": {"prm": each}, "half": "odd" if i % 4 < 2 else "even"}
        for i, (s, each) in enumerate(zip(made, scores(made), strict=True))
    ]  # fmt: skip
    file = tmp_path / "mr.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["--labels", str(file), "--skip", "place", "--out", str(tmp_path / "out")]) == 0
    assert "mr: 20 solutions of 20 problems, 10 first errors among 60 steps" in capsys.readouterr().out
    found = {row["scorer"]: row for row in map(json.loads, (tmp_path / "out" / "metrics.jsonl").open())}
    assert set(found) == {"prm", "length of the step", CHEAP}
    assert found["prm"]["auroc"][0] == 1.0


# ----- routing


def outcomes(
    right: dict[str, list[int]], cost: dict[str, float], run: dict[str, tuple[float, float, float]]
) -> Outcomes:
    """Arms by name: a family, then "|" and a setting."""
    arms = [Arm(name.partition("|")[0], name, lambda problems: []) for name in right]
    n = len(right[WEAK])
    costs = np.array([[[cost[arm.name]] * n] * 4 for arm in arms])
    ran = np.array([[[tokens] * n for tokens in run[arm.name]] for arm in arms])
    return Outcomes(arms, np.array([right[arm.name] for arm in arms], float), costs, ran, np.array([1.0] * len(arms)))


RIGHT = {WEAK: [1, 0, 0, 0], STRONG: [1, 1, 1, 1], f"{RANDOM}|1": [1, 0, 1, 0], "probe|1": [1, 1, 1, 0]}
COST = {WEAK: 0.0, STRONG: 90.0, f"{RANDOM}|1": 30.0, "probe|1": 30.0}
RAN = {
    WEAK: (100.0, 0.0, 0.0),
    STRONG: (0.0, 100.0, 0.0),
    f"{RANDOM}|1": (80.0, 70.0, 0.0),
    "probe|1": (120.0, 40.0, 20.0),
}
EVERY = np.arange(4)


def test_accuracy_is_compared_at_the_same_cost() -> None:
    made = outcomes(RIGHT, COST, RAN)
    assert against_random(made, "probe", 0)(EVERY) == pytest.approx(0.25)
    assert at_budget(made, "probe", 1 / 6)(EVERY) == pytest.approx(0.5)  # half way from weak alone
    dear = outcomes(RIGHT, {**COST, STRONG: 20.0}, RAN)  # the strong model alone is better and costs less
    assert against_random(dear, "probe", 0)(EVERY) == pytest.approx(-0.25)


def test_the_ratio_of_sizes_is_where_parameter_tokens_are_equal() -> None:
    made = outcomes(RIGHT, COST, RAN)
    ratio = size_ratio(made, 3)(EVERY)
    share = 2 / 3  # of the gap
    assert 120 + 20 + ratio * 40 == pytest.approx((1 - share) * 100 + ratio * share * 100)
    assert size_ratio(made, 2)(EVERY) == float("inf")  # it reads more with the strong model than that saves


def test_costs_of_a_problem_count_the_scorer_by_its_size() -> None:
    row = real.Row("p", "a", "CORRECT", Usage("w", 1, 0, 10, 4), Usage("s", 1, 0, 20, 6), Usage("k", 1, 0, 30, 0))
    rates = {role: {"reads": 10.0, "writes": 2.0} for role in ("weak", "strong")}
    facts = {"rates": rates, "sizes": {"weak": 1.0, "strong": 3.0, "prm": 2.0}}
    assert costs_of(row, "prm", facts) == (6, 10, 14 + 3 * 26 + 2 * 30, 1 + 2 + 2 + 3 + 30 / 5)
    assert costs_of(row, "", facts)[2] == 14 + 3 * 26


def test_the_examples_in_docstrings_are_true() -> None:
    assert not doctest.testmod(scorers_frontier).failed


@pytest.mark.slow
def test_the_lab_is_scored_and_routed_and_a_second_start_asks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--lab", "8", "--route", "4", "--calibrate", "6", "--shares", "0.3", "--majority", "1", "3"]
    command += ["--scorer", "llamacpp/lab-scorer", "--samples", "1", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    capsys.readouterr()
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").open()]
    assert {"llamacpp/lab-scorer", "agreement of 1"} <= {row.get("scorer") for row in rows}
    assert {"escalate, llamacpp/lab-scorer, 30%", "majority of 3"} <= {row.get("arm") for row in rows}
    sizes = {name: (tmp_path / "out" / name).stat().st_size for name in ("rows.jsonl", "routed.jsonl", "answers.jsonl")}
    assert main(command) == 0
    assert {name: (tmp_path / "out" / name).stat().st_size for name in sizes} == sizes
    assert "4 problems, every setting" in capsys.readouterr().out
