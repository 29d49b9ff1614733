"""The replay on a small made-up file: arms in the right order, curves that are curves, a clear error without a file."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from evals import replay
from evals.replay_arms import WORLDS, Seen, arms, cumulative_sum, given_least, law_of, worlds
from evals.simulated_traces import simulate
from stepwise.routing.pomdp.filter import ObservationLaw
from tests.published import write_scores

BINS = 10
X = (np.arange(BINS) + 0.5) / BINS


def law(*shapes: tuple[float, float]) -> ObservationLaw:
    rows = [X**a * (1 - X) ** b for a, b in shapes]
    return ObservationLaw(tuple(i / BINS for i in range(BINS + 1)), tuple(tuple(r / r.sum()) for r in rows))


@pytest.fixture(scope="module")
def traces() -> list[Seen]:
    hazard = (0.0, 0.0, 0.0, 0.2, 0.3, 0.4, 1.0)
    drawn = simulate(500, p_weak=0.85, hazard=hazard, law=law((4, 0.5), (0.5, 3), (0.5, 3)), seed=3)
    return [replay.seen_of(trace) for trace in drawn]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(80):
        label = int(rng.integers(-1, 4))
        noise = rng.uniform(-0.2, 0.2, (2, 4))
        scores = [0.75 + n if label < 0 or t < label else 0.3 + n for n in [0] for t in range(4)]
        both = {name: np.clip(scores + noise[j], 0, 1).tolist() for j, name in enumerate(("one", "two"))}
        steps = [f"step {t}" for t in range(4)]
        rows.append({"id": f"r{i}", "problem": f"q{i // 2}", "steps": steps, "label": label, "scores": both})
    path = tmp_path / "scores.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_program_measures_every_arm_for_every_reward_model(data: Path, tmp_path: Path, capsys) -> None:
    assert replay.main(["--data", str(data), "--splits", "2", "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "replay.json").read_text())
    assert list(result["models"]) == ["one", "two"]
    for found in result["models"].values():
        assert found["traces"] == 80
        assert set(found["worlds"]) == set(WORLDS)
        for name, row in found["arms"].items():
            curve = row["curve"]
            assert len(curve) == len(replay.SHARES), name
            assert all(a <= b + 1e-9 for a, b in pairwise(curve)), name
            assert 0 <= row["here"][1] <= row["here"][0] <= row["here"][2] <= 1
        assert found["arms"]["filter on the score"]["here"][0] > 0.85
        assert found["arms"]["score"]["log_likelihood"] is None
    out = capsys.readouterr().out
    assert "one: 80 traces" in out
    assert "pair drawn anew" in out


def test_all_traces_of_a_problem_are_on_one_side(data: Path) -> None:
    own = replay.load(data)["one"]
    fitted, measured = replay.halves(own, 0)
    assert len(fitted) + len(measured) == len(own)
    assert len(fitted) % 2 == len(measured) % 2 == 0


def test_where_scores_are_independent_the_filter_on_the_score_wins(traces: list[Seen]) -> None:
    row = replay.measure(traces[:250], traces[250:], "counts")
    best = row["filter on the score"]
    for other in ("score", "score drop", "cumulative sum", "filter on the pair"):
        assert best["here"] > row[other]["here"], other
    assert best["log_likelihood"] > row["published belief (pair)"]["log_likelihood"]


def test_the_law_of_the_score_given_the_least_does_not_learn_from_the_least(traces: list[Seen]) -> None:
    pair = law_of(traces, pair=True)
    given = given_least(pair)
    rows = np.asarray(given.rows).reshape(3, given.bins, given.bins)
    assert rows.sum(axis=2) == pytest.approx(np.full((3, given.bins), 1 / given.bins))


def test_the_two_worlds_differ_in_where_the_least_comes_from(traces: list[Seen]) -> None:
    drawn = worlds(traces, 60, 0)
    carried = [np.minimum.accumulate([1.0, *seen.scores[:-1]]) for seen in drawn[WORLDS[1]]]
    assert all((a == seen.least).all() for a, seen in zip(carried, drawn[WORLDS[1]], strict=True))
    assert any((np.diff(seen.least) > 0).any() for seen in drawn[WORLDS[0]])


def test_the_cumulative_sum_never_falls_below_nought_and_starts_again_after_an_alarm() -> None:
    made = law((4, 0.5), (0.5, 3), (0.5, 3))
    seen = Seen(np.asarray([0.9, 0.1, 0.1, 0.9]), np.ones(4), np.zeros(4, dtype=int))
    free, stopped = cumulative_sum(seen, made), cumulative_sum(seen, made, alarm=1.0)
    assert free[0] == 0
    assert free[2] == pytest.approx(2 * free[1])
    assert stopped[1] == pytest.approx(free[1])
    assert stopped[2] == pytest.approx(free[1])


def test_a_step_at_the_edge_of_the_budget_counts_in_part() -> None:
    errors = np.asarray([True, True, False, False])
    assert replay.caught(np.asarray([3.0, 1.0, 2.0, 0.0]), errors, 0.5) == 0.5
    assert replay.caught(np.ones(4), errors, 0.25) == pytest.approx(0.25)


def test_arms_are_the_same_for_the_same_traces(traces: list[Seen]) -> None:
    first, second = (arms(traces[:100])["filter on the score"](traces[200]).here for _ in range(2))
    assert (first == second).all()


def test_a_missing_file_and_missing_scores_are_clear_errors(tmp_path: Path, capsys) -> None:
    assert replay.main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "a")]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "bare.jsonl").write_text(json.dumps({"problem": "q", "steps": ["a"], "label": -1}) + "\n")
    assert replay.main(["--data", str(tmp_path / "bare.jsonl"), "--out", str(tmp_path / "b")]) == 2
    assert "no scores by the name of a reward model" in capsys.readouterr().err


def test_real_scores_correlate_within_a_state_and_a_filter_counts_the_least_twice(tmp_path: Path) -> None:
    own = replay.load(write_scores(tmp_path))
    lags = [replay.lag_correlation(found) for found in own.values()]
    assert lags == pytest.approx([0.865, 0.363, 0.633], abs=0.001)
    for found in own.values():
        row = replay.measure(*replay.halves(found, 0), "kernel")
        assert row["filter on the score"]["here"] > row["filter on the pair"]["here"]
        assert row["filter on the score"]["log_likelihood"] > row["published belief (pair)"]["log_likelihood"] + 0.05
